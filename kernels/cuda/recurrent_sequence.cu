// Whole sequences of recurrent layers in one launch: lstm, gru and the plain rnn, and their gradients.
//
// Shapes and cells: see recurrent_cells.cuh. weight is (GATES * H, H), transposed (H, GATES * H).
//
// A launch a step (recurrent.cu) costs each step a launch: some microseconds of the host's time, or, recorded in a
// graph, one or two of the card's. Rows of a batch have nothing to do with each other, only with their own past. So
// here a block owns ROWS of them for all time, and no block waits for another: between two steps are two barriers
// of the block. The price is that a block multiplies by all of the weights itself. It keeps as much of them as it can
// where they cost nothing: in float32 up to COLUMNS * VECTORS vectors of 16 bytes in the registers of each thread, in
// all 128 KB. What is left over it reads again with each step, from the L1 cache as far as it fits there, or the L2
// cache.
//
// A step of lstm with H = 128 in float32 has 256 KB of weights. Half is in registers; the rest takes 1024 clocks from
// an L1 cache (128 bytes a clock), and 2048 from the L2 cache (64), where L1 is small. The 64 K multiply-adds of a row
// take 512 clocks (128 a clock), the cell and the barriers a few hundred: together, as reckoned, the time of about one
// launch in a graph. With H = 64 all weights are in registers. With H = 256 a megabyte is read from the L2 cache,
// 14 000 clocks, longer than a launch takes: there a launch a step wins, which spreads the weights over all
// multiprocessors.
//
// A product (recurrent_product.cuh) goes to shared memory; then thread e has all of element e of the block's states,
// makes its step and leaves the next operand. What an element carries from step to step never leaves its register,
// and what the cell needs comes from memory during the product. There are no atomics.
//
// Arithmetic intensity: of memory, everything is read and written once; 2 * GATES * H operations an element of the
// states. Registers: at most 255, with one block on a multiprocessor.

#include "recurrent_cells.cuh"
#include "recurrent_product.cuh"

constexpr int FORWARD_PARTS = 8;

// A gradient's product has GATES times fewer columns, of GATES times as many terms.
template <typename Cell>
constexpr int BACKWARD_PARTS = Cell::GATES == 1 ? FORWARD_PARTS : WARP;

// Weights (columns, K) where the caller has them, at most 4 * THREADS * THREADS of them.
template <typename T>
struct InMemory {
    const T* weight;
    int K;
    bool wide;
    static constexpr int UNROLL = 2;

    template <int LENGTH>
    __device__ __forceinline__ Vector<T, LENGTH> load(int column, int k) const {
        return load_vector<LENGTH>(weight + (column * K + k));
    }

    template <int LENGTH>
    __device__ __forceinline__ void load_columns(Vector<T, LENGTH> (&factor)[STREAMED], int first, int columns,
                                                 int k) const {
#pragma unroll
        for (int c = 0; c < STREAMED; c++)
            factor[c] = load<LENGTH>(first + c < columns ? first + c : columns - 1, k);
    }
};

template <int PARTS, int ROWS, typename T>
__device__ __forceinline__ Product<T, ROWS, PARTS, InMemory<T>> product_of(const T* weight, int columns, int K) {
    const InMemory<T> weights{weight, K, K % Vector<T>::LENGTH == 0 && aligned<Vector<T>::LENGTH>(weight)};
    return {weights, weights, columns, K};
}

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
template <int ROWS, int PARTS, typename C, typename T>
__device__ __forceinline__ void share_out(C*& operand, C*& found,
                                          const Product<T, ROWS, PARTS, InMemory<T>>& product) {
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
    const auto product = product_of<FORWARD_PARTS, ROWS>(weight, GATES * H, H);
    const Owned<ROWS> owned(rows, H);
    C *operand, *found, carried = 0;
    share_out(operand, found, product);
    C* const own_operand = operand + owned.place * product.stride + owned.unit;
    if (owned.exists) {
        cell.load_bias(owned);
        carried = cell.start(owned);
        *own_operand = C(cell.h0[owned.state()]);
    }
    for (long long step = 0; step < steps; step++) {
        const long long at = reverse ? steps - 1 - step : step;
        if (owned.exists) cell.load(owned, at);
        __syncthreads();  // the state before is there
        product.multiply(Products<C>{found, product.columns}, operand);
        __syncthreads();  // the products are there, and the state before was read
        if (!owned.exists) continue;
        C of_gate[GATES];
#pragma unroll
        for (int g = 0; g < GATES; g++) of_gate[g] = found[(owned.place * GATES + g) * H + owned.unit];
        *own_operand = C(cell.advance(carried, of_gate));
        cell.store(owned, at, carried);
    }
}

// Grid and block as above.
template <int ROWS, typename Cell, typename T>
__device__ __forceinline__ void make_grad_sequence(Cell cell, const T* transposed, long long rows, int H,
                                                   long long steps, bool reverse) {
    using C = Computed<T>;
    constexpr int GATES = Cell::GATES;
    const auto product = product_of<BACKWARD_PARTS<Cell>, ROWS>(transposed, H, GATES * H);
    const Owned<ROWS> owned(rows, H);
    C *operand, *found, carried = 0;
    share_out(operand, found, product);
    // What the step after `step` in time sends back. All threads come here.
    const auto sent_back = [&](bool is_last) -> C {
        if (is_last) return 0;
        __syncthreads();  // dz of the step after is there
        product.multiply(Products<C>{found, product.columns}, operand);
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
        cell.advance(carried, dh, dz);
        cell.store(owned, at, dz);
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
