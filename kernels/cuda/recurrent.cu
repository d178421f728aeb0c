// The steps of recurrent layers: lstm, gru and the plain rnn, and their gradients. A launch is one step in time.
//
// Shapes: states are (steps, rows, H), rows being the batch's; what belongs to gates has GATES times H columns, one
// gate beside the other; weight is (GATES * H, H). All are C-contiguous. `at` is the step that is computed, `from`
// the one that it continues; where `from` is -1 there is none.
//
//   lstm_step, gru_step, rnn_step                  the product h W', and of it and what the inputs contribute the
//                                                  gates and the new state, in one launch
//   lstm_grad_step, gru_grad_step, rnn_grad_step   the product dz W of the step after, and of it the gradients of
//                                                  this step's pre-activations
//
// The inputs of all steps were multiplied before, in one product; the weights' gradients are made after, from what
// the steps left. What must wait for the step before is the skinny product of this one: its rows are those of the
// batch, a few up to some tens. A block makes UNITS columns of each gate's product for ROWS rows, with a warp for
// each gate: the lanes of a warp share out K, so that rows of the state and of the weights are read by whole lines
// straight into registers, and no lane waits for a tile. 4 + 8 vectors of 16 bytes on their way at a time serve
// 32 sums. These meet in 31 shuffles (see scattered_sums), the gates' in shared memory, with the step's only
// barrier; then each lane of the first warp has all gates of one unit in registers, and makes its new state. The
// operands of that come from memory during the product.
//
// A gradient's product has K = GATES * H, from weights that were transposed once for all steps; each of the GATES
// warps takes H of K.
//
// Arithmetic intensity: a step reads the weights once for ROWS rows, 2 * ROWS / 4 = 4 operations a byte in float32,
// from the L2 cache, where they stay from step to step. A step of usual size takes the time of a few trips to that
// cache and of a launch. There are no atomics, and no result depends on the order of blocks.
//
// Registers: 32 sums, and 12 vectors of 4 words, beside some 20 addresses; twice as much in float64.

#include "rows.cuh"
#include "vector.cuh"

constexpr int UNITS = 4;  // columns of each gate that a block makes

// The sums of COUNT values over the lanes of a warp, COUNT being a power of two up to 32: lane L gets that of value
// L / (32 / COUNT). With each exchange a lane keeps half of its values, and gives the others to a lane that keeps
// those: 31 shuffles for 32 values, where 32 sums by across_warp would take 160.
template <int COUNT, int DISTANCE = WARP / 2, typename T>
__device__ __forceinline__ T scattered_sums(T* value) {
    if constexpr (DISTANCE == 0) {
        return value[0];
    } else if constexpr (COUNT == 1) {
        value[0] += __shfl_xor_sync(ALL_LANES, value[0], DISTANCE);
        return scattered_sums<1, DISTANCE / 2>(value);
    } else {
        const bool upper = threadIdx.x & DISTANCE;
#pragma unroll
        for (int i = 0; i < COUNT / 2; i++) {
            const T kept = upper ? value[COUNT / 2 + i] : value[i];
            const T given = upper ? value[i] : value[COUNT / 2 + i];
            value[i] = kept + __shfl_xor_sync(ALL_LANES, given, DISTANCE);
        }
        return scattered_sums<COUNT / 2, DISTANCE / 2>(value);
    }
}

// The unit of a row whose new state this thread makes, if it is of the first warp and there is one.
template <int ROWS>
struct Place {
    long long row;
    int unit;
    bool exists;

    // Grid: x = the strips of UNITS units, for each ROWS rows.
    __device__ __forceinline__ Place(long long rows, int H) {
        constexpr int LANES = WARP / (UNITS * ROWS);  // that hold the same sum
        const int strips = (H + UNITS - 1) / UNITS, number = threadIdx.x % WARP / LANES;
        row = (long long)(blockIdx.x / strips) * ROWS + number / UNITS;
        unit = blockIdx.x % strips * UNITS + number % UNITS;
        exists = row < rows && unit < H && threadIdx.x < WARP && threadIdx.x % LANES == 0;
    }
};

// What a lane adds to the products of ROWS rows of the state and UNITS rows of the weights, each of K elements. N
// is the length of the vectors in which they are read.
template <int N, int ROWS, typename T>
__device__ __forceinline__ void add_products(
    T (&sum)[ROWS * UNITS], const T* const (&state)[ROWS], const T* const (&weight)[UNITS], int K
) {
    for (int k = threadIdx.x % WARP * N; k < K; k += WARP * N) {
        Vector<T, N> factor[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; u++) factor[u] = load_vector<N>(weight[u] + k);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const Vector<T, N> h = load_vector<N>(state[r] + k);
#pragma unroll
            for (int u = 0; u < UNITS; u++)
#pragma unroll
                for (int n = 0; n < N; n++) sum[r * UNITS + u] += h.lane[n] * factor[u].lane[n];
        }
    }
}

// product[g] = the sum over k < H of state[row, k] * weight[unit, k], for the place of each lane of the first warp,
// of the state and the weight that warp g was given: pointers to their first row, and the elements of a row. Rows
// and units past the end read the last one in their place.
template <int GATES, int ROWS, typename T>
__device__ __forceinline__ void multiply(T (&product)[GATES], const T* state, long long state_columns,
                                         const T* weight, long long weight_columns, long long rows, int H) {
    __shared__ T of_gate[GATES][WARP];
    const int strips = (H + UNITS - 1) / UNITS, gate = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const long long first_row = (long long)(blockIdx.x / strips) * ROWS;
    const int first_unit = blockIdx.x % strips * UNITS;
    const T *of_row[ROWS], *of_unit[UNITS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        of_row[r] = state + (first_row + r < rows ? first_row + r : rows - 1) * state_columns;
#pragma unroll
    for (int u = 0; u < UNITS; u++)
        of_unit[u] = weight + (first_unit + u < H ? first_unit + u : H - 1) * weight_columns;

    T sum[ROWS * UNITS] = {};
    constexpr int N = Vector<T>::LENGTH;
    if (H % N == 0 && aligned<N>(state) && aligned<N>(weight))
        add_products<N>(sum, of_row, of_unit, H);
    else
        add_products<1>(sum, of_row, of_unit, H);
    of_gate[gate][lane] = scattered_sums<ROWS * UNITS>(sum);
    __syncthreads();  // the products of all gates are there
#pragma unroll
    for (int g = 0; g < GATES; g++) product[g] = of_gate[g][lane];
}

// The products of a step: those of the state before with each gate's weights.
template <int GATES, int ROWS, typename T>
__device__ __forceinline__ void multiply_forward(T (&product)[GATES], const T* state, const T* weight,
                                                 long long rows, int H) {
    multiply<GATES, ROWS>(product, state, H, weight + (long long)(threadIdx.x / WARP) * H * H, H, rows, H);
}

// What the gradient of a later step sends back to the state before it: dz (rows, GATES * H) times the weights, of
// which `transposed` is (H, GATES * H).
template <int GATES, int ROWS, typename T>
__device__ __forceinline__ T multiply_backward(const T* dz, const T* transposed, long long rows, int H) {
    const int begin = threadIdx.x / WARP * H;
    T product[GATES], total = 0;
    multiply<GATES, ROWS>(product, dz + begin, GATES * H, transposed + begin, GATES * H, rows, H);
#pragma unroll
    for (int g = 0; g < GATES; g++) total += product[g];
    return total;
}

// ---- long short-term memory -------------------------------------------------------------------------------------
//
// Of the gates i, f, g and o: c = f c' + i g and h = o tanh(c), from c' and h' of the step before.

// `gates` holds what the inputs contribute to the pre-activations, and then the gates.
//
// Grid: x = the strips of units, for each ROWS rows; a block has a warp for each gate.
template <typename T, int ROWS>
__global__ void __launch_bounds__(4 * WARP) lstm_step(
    T* hidden, T* cells, T* gates, const T* h0, const T* c0, const T* weight, const T* bias, long long rows, int H,
    long long at, long long from
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit;
    T* const own = gates + at * 4 * size + place.row * 4 * H + place.unit;
    T z[4] = {}, c = 0, product[4];
    if (place.exists) {
        c = from < 0 ? c0[element] : cells[from * size + element];
#pragma unroll
        for (int g = 0; g < 4; g++) z[g] = own[g * H] + value_or(bias, g * H + place.unit, T(0));
    }
    multiply_forward<4, ROWS>(product, from < 0 ? h0 : hidden + from * size, weight, rows, H);
    if (!place.exists) return;
    const T i = logistic(z[0] + product[0]), f = logistic(z[1] + product[1]);
    const T g = tanh(z[2] + product[2]), o = logistic(z[3] + product[3]);
    c = f * c + i * g;
    own[0] = i;
    own[H] = f;
    own[2 * H] = g;
    own[3 * H] = o;
    cells[at * size + element] = c;
    hidden[at * size + element] = o * tanh(c);
}

// dz of step `at`, from that of step `from`, the one after it, where dc, the cell's gradient, was left too. A last
// launch, with `at` = -1, makes dh0.
//
// Grid and block as above.
template <typename T, int ROWS>
__global__ void __launch_bounds__(4 * WARP) lstm_grad_step(
    T* dz, T* dh0, T* dc, const T* transposed, const T* c0, const T* cells, const T* gates, const T* grad_y,
    const T* grad_c, long long rows, int H, long long at, long long from, long long before
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit, here = at * size + element;
    const long long first = place.row * 4 * H + place.unit;  // gate
    T dh = 0, of_c = 0, c = 0, c_before = 0, gate[4] = {};
    if (place.exists && at >= 0) {
        dh = grad_y[here];
        of_c = value_or(grad_c, here, T(0)) + (from < 0 ? T(0) : dc[element]);
        c = cells[here];
        c_before = before < 0 ? c0[element] : cells[before * size + element];
#pragma unroll
        for (int g = 0; g < 4; g++) gate[g] = gates[at * 4 * size + first + g * H];
    }
    if (from >= 0) dh += multiply_backward<4, ROWS>(dz + from * 4 * size, transposed, rows, H);
    if (!place.exists) return;
    if (at < 0) {
        dh0[element] = dh;
        return;
    }
    const T i = gate[0], f = gate[1], g = gate[2], o = gate[3], tanh_c = tanh(c);
    of_c += dh * o * (1 - tanh_c * tanh_c);
    T* const own = dz + at * 4 * size + first;
    own[0] = of_c * g * i * (1 - i);
    own[H] = of_c * c_before * f * (1 - f);
    own[2 * H] = of_c * i * (1 - g * g);
    own[3 * H] = dh * tanh_c * o * (1 - o);
    dc[element] = of_c * f;
}

// ---- gated recurrent unit ---------------------------------------------------------------------------------------
//
// Of a, which the inputs contribute, and b = h' W' + bias: r and u are logistic(a + b) of the first two thirds; of
// the last, c = b and n = tanh(a + r c). Then h = (1 - u) n + u h'. gates (steps, 4, rows, H) are r, u, n and c.

// Grid: x = the strips of units, for each ROWS rows; a block has a warp for each third.
template <typename T, int ROWS>
__global__ void __launch_bounds__(3 * WARP) gru_step(
    T* y, T* gates, const T* a, const T* h0, const T* weight, const T* bias, long long rows, int H, long long at,
    long long from
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit;
    T z[3] = {}, of_bias[3] = {}, h = 0, b[3];
    const T* const before = from < 0 ? h0 : y + from * size;
    if (place.exists) {
        h = before[element];
#pragma unroll
        for (int g = 0; g < 3; g++) {
            z[g] = a[at * 3 * size + place.row * 3 * H + g * H + place.unit];
            of_bias[g] = value_or(bias, g * H + place.unit, T(0));
        }
    }
    multiply_forward<3, ROWS>(b, before, weight, rows, H);
    if (!place.exists) return;
    const T r = logistic(z[0] + (b[0] + of_bias[0])), u = logistic(z[1] + (b[1] + of_bias[1]));
    const T c = b[2] + of_bias[2], n = tanh(z[2] + r * c);
    gates += at * 4 * size + element;
    gates[0] = r;
    gates[size] = u;
    gates[2 * size] = n;
    gates[3 * size] = c;
    y[at * size + element] = n + u * (h - n);
}

// da and db, the gradients of a and of b, of step `at`, from db of step `from`, the one after it, which left in dh
// the part of its state's gradient that does not go through b. A last launch, with `at` = -1, makes dh that of h0.
//
// Grid and block as above.
template <typename T, int ROWS>
__global__ void __launch_bounds__(3 * WARP) gru_grad_step(
    T* da, T* db, T* dh, const T* transposed, const T* h0, const T* y, const T* gates, const T* grad_y,
    long long rows, int H, long long at, long long from, long long before
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit;
    T grad = 0, h = 0, gate[4] = {};
    if (place.exists) {
        grad = from < 0 ? T(0) : dh[element];
        if (at >= 0) {
            grad += grad_y[at * size + element];
            h = before < 0 ? h0[element] : y[before * size + element];
#pragma unroll
            for (int g = 0; g < 4; g++) gate[g] = gates[(at * 4 + g) * size + element];
        }
    }
    if (from >= 0) grad += multiply_backward<3, ROWS>(db + from * 3 * size, transposed, rows, H);
    if (!place.exists) return;
    if (at < 0) {
        dh[element] = grad;
        return;
    }
    const T r = gate[0], u = gate[1], n = gate[2], c = gate[3];
    const T of_n = grad * (1 - u) * (1 - n * n), of_r = of_n * c * r * (1 - r);
    const T of_u = grad * (h - n) * u * (1 - u);
    const long long own = at * 3 * size + place.row * 3 * H + place.unit;
    da[own] = db[own] = of_r;
    da[own + H] = db[own + H] = of_u;
    da[own + 2 * H] = of_n;
    db[own + 2 * H] = of_n * r;
    dh[element] = grad * u;
}

// ---- plain recurrent layer --------------------------------------------------------------------------------------
//
// y = tanh(z + y' W'), or max(0, ...) in its place: RELU.

// Grid: x = the strips of units, for each ROWS rows; a block is one warp.
template <typename T, int ROWS, bool RELU>
__global__ void __launch_bounds__(WARP) rnn_step(
    T* y, const T* z, const T* h0, const T* weight, long long rows, int H, long long at, long long from
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long here = at * size + place.row * H + place.unit;
    T x = place.exists ? z[here] : T(0), product[1];
    multiply_forward<1, ROWS>(product, from < 0 ? h0 : y + from * size, weight, rows, H);
    if (!place.exists) return;
    x += product[0];
    if constexpr (RELU)
        y[here] = x < 0 ? T(0) : x;
    else
        y[here] = tanh(x);
}

// dz of step `at`, from that of step `from`, the one after it. Grid and block as above.
template <typename T, int ROWS, bool RELU>
__global__ void __launch_bounds__(WARP) rnn_grad_step(
    T* dz, const T* grad_y, const T* y, const T* transposed, long long rows, int H, long long at, long long from
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long here = at * size + place.row * H + place.unit;
    T dh = place.exists ? grad_y[here] : T(0);
    const T state = place.exists ? y[here] : T(0);
    if (from >= 0) dh += multiply_backward<1, ROWS>(dz + from * size, transposed, rows, H);
    if (!place.exists) return;
    if constexpr (RELU)
        dz[here] = state > 0 ? dh : T(0);
    else
        dz[here] = dh * (1 - state * state);
}
