// The steps of recurrent layers: lstm, gru and the plain rnn, and their gradients. A launch is one step in time.
//
// Shapes: see recurrent_cells.cuh, which makes the new states of the products; weight is (GATES * H, H). `at` is the
// step that is computed, `from` the one that it continues; where `from` is -1 there is none.
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
// warps takes H of K. What an element carries from launch to launch lies in `carried` (rows, H).
//
// Arithmetic intensity: a step reads the weights once for ROWS rows, 2 * ROWS / 4 = 4 operations a byte in float32
// and 8 in 16 bits, from the L2 cache, where they stay from step to step. A step of usual size takes the time of a
// few trips to that cache and of a launch; small layers, for which the launch is most of it, have all their steps in
// one by recurrent_sequence.cu. There are no atomics, and no result depends on the order of blocks.
//
// Registers: 32 sums, and 12 vectors of 4 words, beside some 20 addresses; twice as much in float64. In 16 bits
// the UNITS vectors of the weights, 8 elements each, are widened once for all rows, to 32 words.

#include "recurrent_cells.cuh"
#include "rows.cuh"
#include "vector.cuh"

constexpr int UNITS = 4;  // columns of each gate that a block makes

// The element whose new state this thread makes, if it is of the first warp and there is one.
template <int ROWS>
struct Place : Element {
    bool exists;

    // Grid: x = the strips of UNITS units, for each ROWS rows.
    __device__ __forceinline__ Place(long long all_rows, int units) {
        constexpr int LANES = WARP / (UNITS * ROWS);  // that hold the same sum
        const int strips = (units + UNITS - 1) / UNITS, number = threadIdx.x % WARP / LANES;
        rows = all_rows;
        H = units;
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

// ---- a step of any cell -----------------------------------------------------------------------------------------

// Grid: x = the strips of units, for each ROWS rows; a block has a warp for each gate.
template <int ROWS, typename Cell, typename C, typename T>
__device__ __forceinline__ void make_step(Cell cell, C* carried, const T* weight, long long rows, int H,
                                          long long at, long long from) {
    const Place<ROWS> place(rows, H);
    C kept = 0, product[Cell::GATES];
    if (place.exists) {
        cell.load_bias(place);
        kept = from < 0 ? cell.start(place) : value_or(carried, place.state(), C(0));
        cell.load(place, at);
    }
    multiply_forward<Cell::GATES, ROWS>(product, from < 0 ? cell.h0 : cell.y + from * rows * H, weight, rows, H);
    if (!place.exists) return;
    cell.advance(kept, product);
    cell.store(place, at, kept);
    if (carried) carried[place.state()] = kept;
}

// From dz of step `from`, the one after `at`. A last launch, with `at` = -1, makes the gradients of the states
// before the first step, of cells that give them.
//
// Grid and block as above.
template <int ROWS, typename Cell, typename C, typename T>
__device__ __forceinline__ void make_grad_step(Cell cell, C* carried, const T* transposed, long long rows, int H,
                                               long long at, long long from, long long before) {
    constexpr int GATES = Cell::GATES;
    const Place<ROWS> place(rows, H);
    C kept = 0, sent_back = 0;
    if (place.exists && from >= 0) kept = value_or(carried, place.state(), C(0));
    if (place.exists && at >= 0) cell.load(place, at, before);
    if (from >= 0)
        sent_back = multiply_backward<GATES, ROWS>(cell.dz + from * rows * GATES * H, transposed, rows, H);
    if (!place.exists) return;
    if constexpr (Cell::GIVES_FIRST) {
        if (at < 0) return cell.finish(place, kept, sent_back);
    }
    T dz[GATES];
    cell.advance(kept, sent_back, dz);
    cell.store(place, at, dz);
    if (carried) carried[place.state()] = kept;
}

template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(4 * WARP, 1) lstm_step(
    T* hidden, T* cells, T* gates, C* carried, const T* h0, const T* c0, const T* weight, const T* bias,
    long long rows, int H, long long at, long long from
) {
    make_step<ROWS>(Lstm<T>{hidden, cells, gates, h0, c0, bias}, carried, weight, rows, H, at, from);
}

template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(4 * WARP, 1) lstm_grad_step(
    T* dz, T* dh0, T* dc0, C* carried, const T* transposed, const T* c0, const T* cells, const T* gates,
    const T* grad_y, const T* grad_c, long long rows, int H, long long at, long long from, long long before
) {
    const LstmGrad<T> cell{dz, dh0, dc0, c0, cells, gates, grad_y, grad_c};
    make_grad_step<ROWS>(cell, carried, transposed, rows, H, at, from, before);
}

template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(3 * WARP, 1) gru_step(
    T* y, T* gates, C* carried, const T* a, const T* h0, const T* weight, const T* bias, long long rows, int H,
    long long at, long long from
) {
    make_step<ROWS>(Gru<T>{y, gates, a, h0, bias}, carried, weight, rows, H, at, from);
}

template <typename C, typename T, int ROWS>
__global__ void __launch_bounds__(3 * WARP, 1) gru_grad_step(
    T* da, T* db, T* dh0, C* carried, const T* transposed, const T* h0, const T* y, const T* gates,
    const T* grad_y, long long rows, int H, long long at, long long from, long long before
) {
    const GruGrad<T> cell{da, db, dh0, h0, y, gates, grad_y};
    make_grad_step<ROWS>(cell, carried, transposed, rows, H, at, from, before);
}

template <typename T, int ROWS, bool RELU>
__global__ void __launch_bounds__(WARP) rnn_step(
    T* y, const T* z, const T* h0, const T* weight, long long rows, int H, long long at, long long from
) {
    constexpr Computed<T>* CARRIED = nullptr;
    make_step<ROWS>(Rnn<T, RELU>{y, z, h0}, CARRIED, weight, rows, H, at, from);
}

template <typename T, int ROWS, bool RELU>
__global__ void __launch_bounds__(WARP) rnn_grad_step(
    T* dz, const T* grad_y, const T* y, const T* transposed, long long rows, int H, long long at, long long from
) {
    constexpr Computed<T>* CARRIED = nullptr;
    make_grad_step<ROWS>(RnnGrad<T, RELU>{dz, grad_y, y}, CARRIED, transposed, rows, H, at, from, -1LL);
}
