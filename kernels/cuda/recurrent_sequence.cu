// Whole sequences of recurrent layers in one launch: lstm, gru and the plain rnn, and their gradients.
//
// Shapes and cells: see recurrent_cells.cuh. weight is (GATES * H, H), transposed (H, GATES * H).
//
// A launch a step (recurrent.cu) costs each step a launch: some microseconds of the host's time, or, recorded in a
// graph, one or two of the card's. Rows of a batch have nothing to do with each other, only with their own past. So
// here a block owns ROWS of them for all time, and no block waits for another: between two steps are two barriers
// of the block. The price is that a block multiplies by all of the weights itself. It keeps as much of them as it can
// where they cost nothing: in float32 up to COLUMNS * VECTORS vectors of 16 bytes in the registers of each thread, in
// all 128 KB. In 16 bits they are widened once, and half as many vectors fill as many registers. What is left over it
// reads again with each step, from the L1 cache as far as it fits there, or the L2 cache.
//
// A step of lstm with H = 128 in float32 has 256 KB of weights. Half is in registers; the rest takes 1024 clocks from
// an L1 cache (128 bytes a clock), and 2048 from the L2 cache (64), where L1 is small. The 64 K multiply-adds of a row
// take 512 clocks (128 a clock), the cell and the barriers a few hundred: together, as reckoned, the time of about one
// launch in a graph. With H = 64 all weights are in registers. With H = 256 a megabyte is read from the L2 cache,
// 14 000 clocks, longer than a launch takes: there a launch a step wins, which spreads the weights over all
// multiprocessors.
//
// The rows of a product, which are the GATES * H columns of its result, are dealt to groups of PARTS lanes, and K to
// the lanes of a group: neighbours have neighbouring vectors, so that a group's read is whole lines of 128 bytes. The
// operand, a state or a dz of each row, lies in shared memory, where all groups of a warp read the same vectors. The
// sums of a group meet in shuffles and go to shared memory; then thread e has all of element e of the block's states,
// makes its step and leaves the next operand. What an element carries from step to step never leaves its register,
// and what the cell needs comes from memory during the product. There are no atomics.
//
// Arithmetic intensity: of memory, everything is read and written once; 2 * GATES * H operations an element of the
// states. Registers: 128 of weights (64 in float64), 8 * ROWS sums, 4 to 8 vectors on their way; at most 255, with one
// block on a multiprocessor.

#include "recurrent_cells.cuh"
#include "rows.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
constexpr int FORWARD_PARTS = 8;

// A gradient's product has GATES times fewer columns, of GATES times as many terms.
template <typename Cell>
constexpr int BACKWARD_PARTS = Cell::GATES == 1 ? FORWARD_PARTS : WARP;

// found[r][m] = the sum over k < K of operand[r][k] * weight[m, k], for all m < columns.
template <typename T, int ROWS, int PARTS>
struct Product {
    using C = Computed<T>;
    static constexpr int N = Vector<T>::LENGTH, GROUPS = THREADS / PARTS;
    static constexpr int COLUMNS = 8, VECTORS = sizeof(T) == 4 ? 4 : 2;  // of a group; of a lane for each
    static constexpr int STREAMED = 4;  // columns of a group whose weights are read at a time

    const T* weight;
    int columns, K, stride;  // stride: the elements of shared memory that a row of the operand takes
    bool wide;               // whether rows of the weights are made of vectors
    int resident_terms;      // of each of a group's first columns
    Vector<C, N> resident[COLUMNS][VECTORS];

    __device__ __forceinline__ Product(const T* weights, int all_columns, int terms)
        : weight(weights), columns(all_columns), K(terms) {
        stride = (K + PARTS * N - 1) / (PARTS * N) * (PARTS * N);
        wide = K % N == 0 && aligned<N>(weight);
        resident_terms = !wide ? 0 : K < PARTS * N * VECTORS ? K : PARTS * N * VECTORS;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int j = 0; j < VECTORS; j++) {
                const int k = (j * PARTS + part()) * N;
                resident[c][j] = {};
                if (k < resident_terms)
                    resident[c][j] = converted<C>(load_vector(row_of(group() * COLUMNS + c) + k));
            }
    }

    __device__ __forceinline__ static int group() { return threadIdx.x / PARTS; }
    __device__ __forceinline__ static int part() { return threadIdx.x % PARTS; }

    // Columns past the end read the last one in their place.
    __device__ __forceinline__ const T* row_of(int column) const {
        return weight + (long long)(column < columns ? column : columns - 1) * K;
    }

    __device__ __forceinline__ void multiply(C* found, const C* operand) const {
        if (warps_first(COLUMNS) < columns) {
            C sum[COLUMNS * ROWS] = {};
#pragma unroll
            for (int j = 0; j < VECTORS; j++) {
                if (j * PARTS * N >= resident_terms) break;
                const int k = (j * PARTS + part()) * N;
                Vector<C, N> h[ROWS];
#pragma unroll
                for (int r = 0; r < ROWS; r++) h[r] = load_vector<N>(operand + r * stride + k);
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) add(sum + c * ROWS, h, resident[c][j]);
            }
            const int first = group() * COLUMNS;
#pragma unroll
            for (int c = 0; c < COLUMNS; c += STREAMED)
                add_streamed(sum + c * ROWS, operand, first + c, resident_terms);
            leave<COLUMNS>(found, sum, first);
        }
        for (int begin = GROUPS * COLUMNS; begin + warps_first(STREAMED) < columns; begin += GROUPS * STREAMED) {
            C sum[STREAMED * ROWS] = {};
            const int first = begin + group() * STREAMED;
            add_streamed(sum, operand, first, 0);
            leave<STREAMED>(found, sum, first);
        }
    }

private:
    // The first column of this thread's warp, where each group has `count`: lanes that shuffle go on together.
    __device__ __forceinline__ static int warps_first(int count) {
        return threadIdx.x / WARP * (WARP / PARTS) * count;
    }

    template <int LENGTH>
    __device__ __forceinline__ static void add(C* sum, const Vector<C, LENGTH> (&h)[ROWS],
                                               const Vector<C, LENGTH>& factor) {
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int n = 0; n < LENGTH; n++) sum[r] += h[r].lane[n] * factor.lane[n];
    }

    // The terms from `begin` on, of STREAMED columns of each group, with weights from memory.
    __device__ __forceinline__ void add_streamed(C* sum, const C* operand, int first, int begin) const {
        if (wide)
            add_vectors<N>(sum, operand, first, begin);
        else
            add_vectors<1>(sum, operand, first, begin);
    }

    template <int LENGTH>
    __device__ __forceinline__ void add_vectors(C* sum, const C* operand, int first, int begin) const {
#pragma unroll 2
        for (int k = begin + part() * LENGTH; k < K; k += PARTS * LENGTH) {
            Vector<T, LENGTH> factor[STREAMED];
#pragma unroll
            for (int c = 0; c < STREAMED; c++) factor[c] = load_vector<LENGTH>(row_of(first + c) + k);
            Vector<C, LENGTH> h[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) h[r] = load_vector<LENGTH>(operand + r * stride + k);
#pragma unroll
            for (int c = 0; c < STREAMED; c++) add(sum + c * ROWS, h, converted<C>(factor[c]));
        }
    }

    template <int COUNT>
    __device__ __forceinline__ void leave(C* found, C* sum, int first) const {
        constexpr int VALUES = COUNT * ROWS;
        constexpr int SHARE = VALUES > PARTS ? VALUES / PARTS : 1, LANES = VALUES < PARTS ? PARTS / VALUES : 1;
        scattered_sums<VALUES, PARTS / 2>(sum);
        if (part() % LANES != 0) return;
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int value = part() / LANES * SHARE + i, column = first + value / ROWS;
            if (column < columns) found[value % ROWS * columns + column] = sum[i];
        }
    }
};

// The element of the state that this thread owns, if there is one.
template <int ROWS>
struct Owned : Element {
    int place;  // of its row among those of the block
    bool exists;

    // Grid: x = the batch, ROWS rows a block.
    __device__ __forceinline__ Owned(long long all_rows, int units) {
        rows = all_rows;
        H = units;
        place = threadIdx.x / H;
        unit = threadIdx.x % H;
        row = (long long)blockIdx.x * ROWS + place;
        exists = place < ROWS && row < rows;
    }
};

// Of a block: the rows of the operand, set to zero, for what lies past the last element counts as zero; and those of
// the product.
template <int ROWS, typename C, typename T, int PARTS>
__device__ __forceinline__ void share_out(C*& operand, C*& found, const Product<T, ROWS, PARTS>& product) {
    extern __shared__ float4 shared[];
    operand = reinterpret_cast<C*>(shared);
    found = operand + ROWS * product.stride;
    for (int i = threadIdx.x; i < ROWS * product.stride; i += THREADS) operand[i] = 0;
    __syncthreads();  // all is zero before a thread leaves an element
}

// Grid: x = the batch, ROWS rows a block. H * ROWS is at most THREADS.
template <int ROWS, typename Cell, typename T>
__device__ __forceinline__ void make_sequence(Cell cell, const T* weight, long long rows, int H, long long steps,
                                              bool reverse) {
    using C = Computed<T>;
    constexpr int GATES = Cell::GATES;
    const Product<T, ROWS, FORWARD_PARTS> product(weight, GATES * H, H);
    const Owned<ROWS> owned(rows, H);
    C *operand, *found, carried = 0;
    share_out(operand, found, product);
    C* const own_operand = operand + owned.place * product.stride + owned.unit;
    if (owned.exists) {
        carried = cell.start(owned);
        *own_operand = C(cell.h0[owned.state()]);
    }
    for (long long step = 0; step < steps; step++) {
        const long long at = reverse ? steps - 1 - step : step;
        if (owned.exists) cell.load(owned, at);
        __syncthreads();  // the state before is there
        product.multiply(found, operand);
        __syncthreads();  // the products are there, and the state before was read
        if (!owned.exists) continue;
        C of_gate[GATES];
#pragma unroll
        for (int g = 0; g < GATES; g++) of_gate[g] = found[(owned.place * GATES + g) * H + owned.unit];
        *own_operand = C(cell.advance(owned, at, carried, of_gate));
    }
}

// Grid and block as above.
template <int ROWS, typename Cell, typename T>
__device__ __forceinline__ void make_grad_sequence(Cell cell, const T* transposed, long long rows, int H,
                                                   long long steps, bool reverse) {
    using C = Computed<T>;
    constexpr int GATES = Cell::GATES;
    const Product<T, ROWS, BACKWARD_PARTS<Cell>> product(transposed, H, GATES * H);
    const Owned<ROWS> owned(rows, H);
    C *operand, *found, carried = 0;
    share_out(operand, found, product);
    // What the step after `step` in time sends back. All threads come here.
    const auto sent_back = [&](bool is_last) -> C {
        if (is_last) return 0;
        __syncthreads();  // dz of the step after is there
        product.multiply(found, operand);
        __syncthreads();  // the products are there, and dz was read
        return owned.exists ? found[owned.place * H + owned.unit] : 0;
    };
    for (long long step = steps - 1; step >= 0; step--) {
        const long long at = reverse ? steps - 1 - step : step;
        const long long before = step == 0 ? -1 : reverse ? at + 1 : at - 1;
        if (owned.exists) cell.load(owned, at, before);
        const C dh = sent_back(step == steps - 1);
        if (!owned.exists) continue;
        T dz[GATES];
        cell.advance(owned, at, carried, dh, dz);
#pragma unroll
        for (int g = 0; g < GATES; g++) operand[owned.place * product.stride + g * H + owned.unit] = C(dz[g]);
    }
    if constexpr (Cell::GIVES_FIRST) {
        const C dh = sent_back(false);
        if (owned.exists) cell.finish(owned, carried, dh);
    }
}

template <typename T, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) lstm_sequence(
    T* hidden, T* cells, T* gates, const T* h0, const T* c0, const T* weight, const T* bias, long long rows, int H,
    long long steps, bool reverse
) {
    make_sequence<ROWS>(Lstm<T>{hidden, cells, gates, h0, c0, bias}, weight, rows, H, steps, reverse);
}

template <typename T, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) lstm_grad_sequence(
    T* dz, T* dh0, T* dc0, const T* transposed, const T* c0, const T* cells, const T* gates, const T* grad_y,
    const T* grad_c, long long rows, int H, long long steps, bool reverse
) {
    const LstmGrad<T> cell{dz, dh0, dc0, c0, cells, gates, grad_y, grad_c};
    make_grad_sequence<ROWS>(cell, transposed, rows, H, steps, reverse);
}

template <typename T, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) gru_sequence(
    T* y, T* gates, const T* a, const T* h0, const T* weight, const T* bias, long long rows, int H, long long steps,
    bool reverse
) {
    make_sequence<ROWS>(Gru<T>{y, gates, a, h0, bias}, weight, rows, H, steps, reverse);
}

template <typename T, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) gru_grad_sequence(
    T* da, T* db, T* dh0, const T* transposed, const T* h0, const T* y, const T* gates, const T* grad_y,
    long long rows, int H, long long steps, bool reverse
) {
    const GruGrad<T> cell{da, db, dh0, h0, y, gates, grad_y};
    make_grad_sequence<ROWS>(cell, transposed, rows, H, steps, reverse);
}

template <typename T, int ROWS, bool RELU>
__global__ void __launch_bounds__(THREADS, 1) rnn_sequence(
    T* y, const T* z, const T* h0, const T* weight, long long rows, int H, long long steps, bool reverse
) {
    make_sequence<ROWS>(Rnn<T, RELU>{y, z, h0}, weight, rows, H, steps, reverse);
}

template <typename T, int ROWS, bool RELU>
__global__ void __launch_bounds__(THREADS, 1) rnn_grad_sequence(
    T* dz, const T* grad_y, const T* y, const T* transposed, long long rows, int H, long long steps, bool reverse
) {
    make_grad_sequence<ROWS>(RnnGrad<T, RELU>{dz, grad_y, y}, transposed, rows, H, steps, reverse);
}
