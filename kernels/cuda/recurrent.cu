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
// Arrays (T) may be of 16 bits; sums and functions (C) are then float32. So is `carried` (rows, H), what an element
// takes with it from step to step outside of the product: the cell's state, that of a gru, and their gradients. It
// is a sum over the steps, to which 16 bits would soon add nothing more. What later kernels read, and the operand of
// the next product, is rounded once, where it is stored.
//
// Arithmetic intensity: a step reads the weights once for ROWS rows, 2 * ROWS / 4 = 4 operations a byte in float32
// and 8 in 16 bits, from the L2 cache, where they stay from step to step. A step of usual size takes the time of a
// few trips to that cache and of a launch. There are no atomics, and no result depends on the order of blocks.
//
// Registers: 32 sums, and 12 vectors of 4 words, beside some 20 addresses; twice as much in float64. In 16 bits
// the UNITS vectors of the weights, 8 elements each, are widened once for all rows, to 32 words.

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
template <int N, int ROWS, typename C, typename T>
__device__ __forceinline__ void add_products(
    C (&sum)[ROWS * UNITS], const T* const (&state)[ROWS], const T* const (&weight)[UNITS], int K
) {
    for (int k = threadIdx.x % WARP * N; k < K; k += WARP * N) {
        Vector<C, N> factor[UNITS];
#pragma unroll
        for (int u = 0; u < UNITS; u++) factor[u] = converted<C>(load_vector<N>(weight[u] + k));
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const Vector<C, N> h = converted<C>(load_vector<N>(state[r] + k));
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
template <int GATES, int ROWS, typename C, typename T>
__device__ __forceinline__ void multiply(C (&product)[GATES], const T* state, long long state_columns,
                                         const T* weight, long long weight_columns, long long rows, int H) {
    __shared__ C of_gate[GATES][WARP];
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

    C sum[ROWS * UNITS] = {};
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
template <int GATES, int ROWS, typename C, typename T>
__device__ __forceinline__ void multiply_forward(C (&product)[GATES], const T* state, const T* weight,
                                                 long long rows, int H) {
    multiply<GATES, ROWS>(product, state, H, weight + (long long)(threadIdx.x / WARP) * H * H, H, rows, H);
}

// What the gradient of a later step sends back to the state before it: dz (rows, GATES * H) times the weights, of
// which `transposed` is (H, GATES * H).
template <int GATES, int ROWS, typename T>
__device__ __forceinline__ Computed<T> multiply_backward(const T* dz, const T* transposed, long long rows, int H) {
    const int begin = threadIdx.x / WARP * H;
    Computed<T> product[GATES], total = 0;
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
template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(4 * WARP) lstm_step(
    T* hidden, T* cells, T* gates, C* carried, const T* h0, const T* c0, const T* weight, const T* bias,
    long long rows, int H, long long at, long long from
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit;
    T* const own = gates + at * 4 * size + place.row * 4 * H + place.unit;
    C z[4] = {}, c = 0, product[4];
    if (place.exists) {
        c = from < 0 ? C(c0[element]) : carried[element];
#pragma unroll
        for (int g = 0; g < 4; g++) z[g] = C(own[g * H]) + C(value_or(bias, g * H + place.unit, T(0)));
    }
    multiply_forward<4, ROWS>(product, from < 0 ? h0 : hidden + from * size, weight, rows, H);
    if (!place.exists) return;
    const C i = logistic(z[0] + product[0]), f = logistic(z[1] + product[1]);
    const C g = tanh(z[2] + product[2]), o = logistic(z[3] + product[3]);
    c = f * c + i * g;
    own[0] = T(i);
    own[H] = T(f);
    own[2 * H] = T(g);
    own[3 * H] = T(o);
    carried[element] = c;
    cells[at * size + element] = T(c);
    hidden[at * size + element] = T(o * tanh(c));
}

// dz of step `at`, from that of step `from`, the one after it, which left the cell's gradient in `carried`. A last
// launch, with `at` = -1, makes dh0 and dc0.
//
// Grid and block as above.
template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(4 * WARP) lstm_grad_step(
    T* dz, T* dh0, T* dc0, C* carried, const T* transposed, const T* c0, const T* cells, const T* gates,
    const T* grad_y, const T* grad_c, long long rows, int H, long long at, long long from, long long before
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit, here = at * size + element;
    const long long first = place.row * 4 * H + place.unit;  // gate
    C dh = 0, dc = 0, c = 0, c_before = 0, gate[4] = {};
    if (place.exists && from >= 0) dc = carried[element];
    if (place.exists && at >= 0) {
        dh = C(grad_y[here]);
        dc += C(value_or(grad_c, here, T(0)));
        c = C(cells[here]);
        c_before = C(before < 0 ? c0[element] : cells[before * size + element]);
#pragma unroll
        for (int g = 0; g < 4; g++) gate[g] = C(gates[at * 4 * size + first + g * H]);
    }
    if (from >= 0) dh += multiply_backward<4, ROWS>(dz + from * 4 * size, transposed, rows, H);
    if (!place.exists) return;
    if (at < 0) {
        dh0[element] = T(dh);
        dc0[element] = T(dc);
        return;
    }
    const C i = gate[0], f = gate[1], g = gate[2], o = gate[3], tanh_c = tanh(c);
    dc += dh * o * (1 - tanh_c * tanh_c);
    T* const own = dz + at * 4 * size + first;
    own[0] = T(dc * g * i * (1 - i));
    own[H] = T(dc * c_before * f * (1 - f));
    own[2 * H] = T(dc * i * (1 - g * g));
    own[3 * H] = T(dh * tanh_c * o * (1 - o));
    carried[element] = dc * f;
}

// ---- gated recurrent unit ---------------------------------------------------------------------------------------
//
// Of a, which the inputs contribute, and b = h' W' + bias: r and u are logistic(a + b) of the first two thirds; of
// the last, c = b and n = tanh(a + r c). Then h = (1 - u) n + u h'. gates (steps, 4, rows, H) are r, u, n and c.

// Grid: x = the strips of units, for each ROWS rows; a block has a warp for each third.
template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(3 * WARP) gru_step(
    T* y, T* gates, C* carried, const T* a, const T* h0, const T* weight, const T* bias, long long rows, int H,
    long long at, long long from
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit;
    C z[3] = {}, of_bias[3] = {}, h = 0, b[3];
    if (place.exists) {
        h = from < 0 ? C(h0[element]) : carried[element];
#pragma unroll
        for (int g = 0; g < 3; g++) {
            z[g] = C(a[at * 3 * size + place.row * 3 * H + g * H + place.unit]);
            of_bias[g] = C(value_or(bias, g * H + place.unit, T(0)));
        }
    }
    multiply_forward<3, ROWS>(b, from < 0 ? h0 : y + from * size, weight, rows, H);
    if (!place.exists) return;
    const C r = logistic(z[0] + (b[0] + of_bias[0])), u = logistic(z[1] + (b[1] + of_bias[1]));
    const C c = b[2] + of_bias[2], n = tanh(z[2] + r * c);
    h = n + u * (h - n);
    gates += at * 4 * size + element;
    gates[0] = T(r);
    gates[size] = T(u);
    gates[2 * size] = T(n);
    gates[3 * size] = T(c);
    carried[element] = h;
    y[at * size + element] = T(h);
}

// da and db, the gradients of a and of b, of step `at`, from db of step `from`, the one after it, which left in
// `carried` the part of its state's gradient that does not go through b. A last launch, with `at` = -1, makes dh0.
//
// Grid and block as above.
template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(3 * WARP) gru_grad_step(
    T* da, T* db, T* dh0, C* carried, const T* transposed, const T* h0, const T* y, const T* gates,
    const T* grad_y, long long rows, int H, long long at, long long from, long long before
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long element = place.row * H + place.unit;
    C dh = 0, h = 0, gate[4] = {};
    if (place.exists && from >= 0) dh = carried[element];
    if (place.exists && at >= 0) {
        dh += C(grad_y[at * size + element]);
        h = C(before < 0 ? h0[element] : y[before * size + element]);
#pragma unroll
        for (int g = 0; g < 4; g++) gate[g] = C(gates[(at * 4 + g) * size + element]);
    }
    if (from >= 0) dh += multiply_backward<3, ROWS>(db + from * 3 * size, transposed, rows, H);
    if (!place.exists) return;
    if (at < 0) {
        dh0[element] = T(dh);
        return;
    }
    const C r = gate[0], u = gate[1], n = gate[2], c = gate[3];
    const C of_n = dh * (1 - u) * (1 - n * n), of_r = of_n * c * r * (1 - r);
    const C of_u = dh * (h - n) * u * (1 - u);
    const long long own = at * 3 * size + place.row * 3 * H + place.unit;
    da[own] = db[own] = T(of_r);
    da[own + H] = db[own + H] = T(of_u);
    da[own + 2 * H] = T(of_n);
    db[own + 2 * H] = T(of_n * r);
    carried[element] = dh * u;
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
    Computed<T> x = place.exists ? Computed<T>(z[here]) : 0, product[1];
    multiply_forward<1, ROWS>(product, from < 0 ? h0 : y + from * size, weight, rows, H);
    if (!place.exists) return;
    x += product[0];
    if constexpr (RELU)
        y[here] = T(relu_if(true, x));
    else
        y[here] = T(tanh(x));
}

// dz of step `at`, from that of step `from`, the one after it. Grid and block as above.
template <typename T, int ROWS, bool RELU>
__global__ void __launch_bounds__(WARP) rnn_grad_step(
    T* dz, const T* grad_y, const T* y, const T* transposed, long long rows, int H, long long at, long long from
) {
    const long long size = rows * H;
    const Place<ROWS> place(rows, H);
    const long long here = at * size + place.row * H + place.unit;
    Computed<T> dh = place.exists ? Computed<T>(grad_y[here]) : 0;
    const Computed<T> state = place.exists ? Computed<T>(y[here]) : 0;
    if (from >= 0) dh += multiply_backward<1, ROWS>(dz + from * size, transposed, rows, H);
    if (!place.exists) return;
    if constexpr (RELU)
        dz[here] = T(state > 0 ? dh : 0);
    else
        dz[here] = T(dh * (1 - state * state));
}
