// Whole sequences of recurrent layers in one launch, of layers too large for one block: on compute capability 9.0 the
// blocks of a cluster share out the weights, and give each other what they need by way of their shared memories.
//
// Shapes and cells: see recurrent_cells.cuh. weight is (GATES * H, H), transposed (H, GATES * H).
//
// A cluster of BLOCKS blocks owns some rows of the batch for all time, and in it a block owns `units` of the state,
// whole vectors and a multiple of STREAMED, with all of their gates. It keeps their rows of the weights: in float32 up
// to 128 KB, in 16 bits 64 KB, in registers (recurrent_product.cuh), and what is left over in shared memory. No step
// reads weights from the L2 cache, nor from the L1 cache, which a barrier of the cluster empties.
//
// Forward, a block multiplies the whole state by its rows of the weights, makes its units of the new state, and
// stores each of them in the shared memories of all blocks: BLOCKS times `units` numbers a row. Backward, it makes
// its units of dz and multiplies by the same weights: parts of what goes back to the whole state, of which it stores
// each in the memory of the block that owns the unit, and that adds them up in the order of the blocks. That is H
// numbers a row from each block; to give all blocks all of dz would be GATES times as many. Both ways have two
// buffers in turn, each with a barrier in shared memory that counts the bytes that come. All blocks give to all: who
// has what was given for one step knows that all have read what was given for the step before, in the buffer that is
// next. A barrier of the cluster would do it, too, but each thread would first wait for all that it has stored, to
// global memory too. When its numbers are on their way a thread stores what later kernels want, asks memory for what
// the next step needs, and then waits.
//
// Reckoned, and measured on no card yet: a row of lstm with H = 256 in float32 is 32 K multiply-adds for each of 8
// blocks, 256 clocks (128 a clock), with all of their 128 KB of weights in registers. With H = 512, each of 16 blocks
// has 64 K, 512 clocks, and half of its 256 KB comes from shared memory, 1024 clocks (128 bytes a clock) for each ROWS
// rows. Numbers take some 200 clocks to another block, the stores 100 or more, the cell and the block's barriers 200
// to 300. 132 multiprocessors hold 16 clusters of 8: a batch of 32 is 2 rows for each, 1100 clocks or
// 0.6 us a step. With H = 512, 8 clusters of 16 have 4 rows, 2500 to 3500 clocks or 1.8 us. A launch a step takes the
// host 3 to 5 us; in a graph it takes the card one or two, and the weights, read from the L2 cache for each 8 rows,
// one with H = 256 and three with 512. Rows wait for each other in a cluster: with more than 8 for each, a launch a
// step, on all multiprocessors, takes as long.
//
// Arithmetic intensity: of memory, everything is read and written once. Registers: those of the product, and what a
// step leaves for after the barrier; at most 255, with one block on a multiprocessor.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "hopper.cuh"
#include "recurrent_cells.cuh"
#include "recurrent_product.cuh"

// For the shapes of large layers: forward GATES * H / BLOCKS columns of H terms, backward H of GATES * H / BLOCKS.
template <typename Cell>
constexpr int FORWARD_PARTS = Cell::GATES == 1 ? 32 : 16;
constexpr int BACKWARD_PARTS = 8;

// ---- the weights of a block -------------------------------------------------------------------------------------

// A vector of which `count` elements are there; the others are zero.
template <typename T>
__device__ __forceinline__ Vector<T> load_some(const T* from, int count, bool wide) {
    Vector<T> vector = {};
    if (wide) {
        if (count > 0) vector = load_vector(from);
    } else {
#pragma unroll
        for (int n = 0; n < Vector<T>::LENGTH; n++)
            if (n < count) vector.lane[n] = from[n];
    }
    return vector;
}

// Which units of all H a block owns, and whether vectors of weights are whole ones in memory.
struct Part {
    int H, first, units;
    bool wide;

    template <typename T>
    __device__ __forceinline__ Part(int H, int units, const T* weight) : H(H), units(units) {
        first = block_in_cluster() * units;
        wide = H % Vector<T>::LENGTH == 0 && aligned<Vector<T>::LENGTH>(weight);
    }
};

// Column g * units + u is gate g of the block's unit u; terms are those of the state.
template <typename T>
struct ForwardWeights {
    const T* weight;
    Part part;

    template <int LENGTH>
    __device__ __forceinline__ Vector<T> load(int column, int k) const {
        const int unit = part.first + column % part.units;
        const T* const row = weight + (long long)(column / part.units * part.H + unit) * part.H;
        return load_some(row + k, unit < part.H ? part.H - k : 0, part.wide);
    }
};

// Columns are those of the state, term g * units + u is gate g of the block's unit u.
template <int GATES, typename T>
struct BackwardWeights {
    const T* transposed;
    Part part;

    template <int LENGTH>
    __device__ __forceinline__ Vector<T> load(int column, int k) const {
        const int unit = part.first + k % part.units;
        const T* const row = transposed + ((long long)column * GATES + k / part.units) * part.H;
        return load_some(row + unit, column < part.H ? part.H - unit : 0, part.wide);
    }
};

// What the registers have no room for: the first columns from `resident_terms` on, then the others.
template <typename T>
struct InShared {
    const T *first, *others;
    int first_columns, resident_terms, K;
    static constexpr bool wide = true;
    static constexpr int UNROLL = 1;

    template <int LENGTH>
    __device__ __forceinline__ void load_columns(Vector<T, LENGTH> (&factor)[STREAMED], int from, int columns,
                                                 int k) const {
        const int column = from < columns ? from : columns - STREAMED;
        const bool is_first = column < first_columns;
        const int stride = is_first ? K - resident_terms : K;
        const T* const row =
            is_first ? first + column * stride - resident_terms : others + (column - first_columns) * stride;
#pragma unroll
        for (int c = 0; c < STREAMED; c++) factor[c] = load_vector<LENGTH>(row + c * stride + k);
    }
};

// Copies columns of weights, from a first term on, to `to`; returns its end.
template <typename T, typename Weights>
__device__ __forceinline__ T* copy_weights(T* to, const Weights& weights, int column, int columns, int k, int K) {
    constexpr int N = Vector<T>::LENGTH;
    const int vectors = (K - k) / N;
    for (int i = threadIdx.x; i < columns * vectors; i += THREADS)
        store_vector(to + i * N, weights.template load<N>(column + i / vectors, k + i % vectors * N));
    return to + columns * vectors * N;
}

// The product of a block's weights, what of them is not in registers at the start of `shared`, which moves on.
template <int ROWS, int PARTS, typename T, typename Weights>
__device__ __forceinline__ Product<T, ROWS, PARTS, InShared<T>> product_of(const Weights& weights, int columns, int K,
                                                                           unsigned char*& shared) {
    using OfBlock = Product<T, ROWS, PARTS, InShared<T>>;
    const int first_columns = columns < OfBlock::RESIDENT_COLUMNS ? columns : OfBlock::RESIDENT_COLUMNS;
    const int resident_terms = K < OfBlock::RESIDENT_TERMS ? K : OfBlock::RESIDENT_TERMS;
    T* const first = reinterpret_cast<T*>(shared);
    T* const others = copy_weights(first, weights, 0, first_columns, resident_terms, K);
    T* const end = copy_weights(others, weights, first_columns, columns - first_columns, 0, K);
    shared = reinterpret_cast<unsigned char*>(end);
    return {weights, InShared<T>{first, others, first_columns, resident_terms, K}, columns, K};
}

// ---- sequences --------------------------------------------------------------------------------------------------

// What a launch is about: the batch's rows, H, the rows of a cluster and the units of a block; the steps.
struct Sizes {
    long long rows;
    int steps, reverse, H, cluster_rows, units;
};

// Where a step stands in time.
__device__ __forceinline__ long long place_of(int step, const Sizes& sizes) {
    return sizes.reverse ? sizes.steps - 1 - step : step;
}

// The element of the state that this thread owns, if there is one.
template <int BLOCKS>
struct Owned : Element {
    int place, number;  // of its row among those of the cluster; of its unit among those of the block
    bool exists;

    // Grid: x = the batch, sizes.cluster_rows rows for each BLOCKS blocks.
    __device__ __forceinline__ Owned(const Sizes& sizes) {
        rows = sizes.rows;
        H = sizes.H;
        place = threadIdx.x / sizes.units;
        number = threadIdx.x % sizes.units;
        row = first_row(sizes) + place;
        unit = block_in_cluster() * sizes.units + number;
        exists = place < sizes.cluster_rows && row < rows && unit < H;
    }

    __device__ __forceinline__ static long long first_row(const Sizes& sizes) {
        return (long long)(blockIdx.x / BLOCKS) * sizes.cluster_rows;
    }
};

// Of two buffers, when all is there that the blocks of the cluster give for a step.
struct Arrivals {
    Barrier come[2];

    // To be called by all threads before a barrier of the cluster.
    __device__ __forceinline__ void start() {
        if (threadIdx.x == 0) {
            come[0].init(1);
            come[1].init(1);
            fence_barrier_init();
        }
    }

    // The barrier of exchange `number`, from 0 on, in which this block gets so many bytes.
    __device__ __forceinline__ Barrier& expect(int number, unsigned bytes) {
        Barrier& barrier = come[number % 2];
        if (threadIdx.x == 0) barrier.arrive_and_expect(bytes);
        return barrier;
    }

    __device__ __forceinline__ void wait(int number) { come[number % 2].wait_for_blocks(number / 2 % 2); }
};

__device__ __forceinline__ unsigned char* shared_memory() {
    extern __shared__ float4 shared[];
    return reinterpret_cast<unsigned char*>(shared);
}

// Grid: x = the batch, sizes.cluster_rows rows, a multiple of ROWS, for each BLOCKS blocks. Rows times the units of a
// block are at most THREADS.
template <int BLOCKS, int ROWS, typename Cell, typename T>
__device__ __forceinline__ void make_sequence(Cell cell, const T* weight, const Sizes& sizes) {
    using C = Computed<T>;
    constexpr int GATES = Cell::GATES;
    __shared__ Arrivals arrivals;
    arrivals.start();
    unsigned char* shared = shared_memory();
    const ForwardWeights<T> weights{weight, Part(sizes.H, sizes.units, weight)};
    const auto product =
        product_of<ROWS, FORWARD_PARTS<Cell>, T>(weights, GATES * sizes.units, BLOCKS * sizes.units, shared);
    const Owned<BLOCKS> owned(sizes);
    const int operand_size = sizes.cluster_rows * product.stride;
    C* const operands = reinterpret_cast<C*>(shared);  // two, in turn
    C* const found = operands + 2 * operand_size;
    for (int i = threadIdx.x; i < operand_size; i += THREADS) {
        const long long row = owned.first_row(sizes) + i / product.stride;
        const int k = i % product.stride;
        operands[i] = row < sizes.rows && k < sizes.H ? C(cell.h0[row * sizes.H + k]) : C(0);
        operands[operand_size + i] = 0;
    }
    C carried = 0;
    if (owned.exists) {
        cell.load_bias(owned);
        carried = cell.start(owned);
        cell.load(owned, place_of(0, sizes));
    }
    fence_for_copies();  // the operands were stored otherwise than other blocks will store there
    sync_cluster();  // all blocks have started, and their operands are there
#pragma unroll 1
    for (int step = 0;; step++) {
        C* const operand = operands + step % 2 * operand_size;
        C* const next = operands + (step + 1) % 2 * operand_size;
#pragma unroll 1
        for (int row = 0; row < sizes.cluster_rows; row += ROWS)
            product.multiply(Products<C>{found + row * product.columns, product.columns},
                             operand + row * product.stride);
        __syncthreads();  // the products are there
        T state = T(0);
        if (owned.exists) {
            C of_gate[GATES];
#pragma unroll
            for (int g = 0; g < GATES; g++)
                of_gate[g] = found[(owned.place * GATES + g) * sizes.units + owned.number];
            state = cell.advance(carried, of_gate);
        }
        const bool is_last = step + 1 == sizes.steps;
        if (!is_last) {  // units that do not exist are given, too, as 0: all blocks get something from all
            const int row_bytes = BLOCKS * sizes.units * sizeof(C);
            Barrier& come = arrivals.expect(step, sizes.cluster_rows * row_bytes);
            if (owned.place < sizes.cluster_rows)
#pragma unroll
                for (int block = 0; block < BLOCKS; block++)
                    store_in_block(next + owned.place * product.stride + owned.unit, C(state), block, come);
        }
        if (owned.exists) cell.store(owned, place_of(step, sizes), carried);
        if (is_last) break;
        if (owned.exists) cell.load(owned, place_of(step + 1, sizes));
        arrivals.wait(step);
    }
}

// A block leaves its part of what goes back to a unit with the block that owns it.
template <typename C>
struct SentBack {
    C* parts;
    int units;
    Barrier& come;

    __device__ __forceinline__ void leave(int row, int column, C sum) const {
        store_in_block(parts + row * units + column % units, sum, column / units, come);
    }
};

// Grid and block as above.
template <int BLOCKS, int ROWS, typename Cell, typename T>
__device__ __forceinline__ void make_grad_sequence(Cell cell, const T* transposed, const Sizes& sizes) {
    using C = Computed<T>;
    constexpr int GATES = Cell::GATES;
    __shared__ Arrivals arrivals;
    arrivals.start();
    unsigned char* shared = shared_memory();
    const BackwardWeights<GATES, T> weights{transposed, Part(sizes.H, sizes.units, transposed)};
    const auto product =
        product_of<ROWS, BACKWARD_PARTS, T>(weights, BLOCKS * sizes.units, GATES * sizes.units, shared);
    const Owned<BLOCKS> owned(sizes);
    const int part_size = sizes.cluster_rows * sizes.units;
    C* const operand = reinterpret_cast<C*>(shared);
    C* const parts = operand + sizes.cluster_rows * product.stride;  // of each block; two, in turn
    C* const own_operand = operand + owned.place * product.stride + owned.number;
    for (int i = threadIdx.x; i < sizes.cluster_rows * product.stride; i += THREADS) operand[i] = 0;
    const auto load = [&](int step) {
        const long long at = place_of(step, sizes);
        cell.load(owned, at, step == 0 ? -1 : place_of(step - 1, sizes));
    };
    if (owned.exists) load(sizes.steps - 1);
    sync_cluster();  // all blocks have started; all is zero before a thread leaves an element
    C carried = 0, dh = 0;
#pragma unroll 1
    for (int step = sizes.steps - 1;; step--) {
        T dz[GATES];
        if (owned.exists) {
            cell.advance(carried, dh, dz);
#pragma unroll
            for (int g = 0; g < GATES; g++) own_operand[g * sizes.units] = C(dz[g]);
        }
        const bool is_last = step == 0 && !Cell::GIVES_FIRST;
        const int number = sizes.steps - 1 - step;  // of the exchange
        C* const received = parts + number % 2 * BLOCKS * part_size;
        if (!is_last) {
            __syncthreads();  // dz is there
            C* const own = received + block_in_cluster() * part_size;
            Barrier& come = arrivals.expect(number, BLOCKS * part_size * sizeof(C));
#pragma unroll 1
            for (int row = 0; row < sizes.cluster_rows; row += ROWS)
                product.multiply(SentBack<C>{own + row * sizes.units, sizes.units, come},
                                 operand + row * product.stride);
        }
        if (owned.exists) {
#pragma unroll
            for (int g = 0; g < GATES; g++) dz[g] = T(own_operand[g * sizes.units]);  // no register kept it
            cell.store(owned, place_of(step, sizes), dz);
        }
        if (is_last) break;
        if (owned.exists && step > 0) load(step - 1);
        arrivals.wait(number);
        __syncthreads();  // dz was read
        if (owned.exists) {
            dh = 0;
            for (int block = 0; block < BLOCKS; block++)
                dh += received[block * part_size + owned.place * sizes.units + owned.number];
        }
        if (step == 0) break;
    }
    if constexpr (Cell::GIVES_FIRST) {
        if (owned.exists) cell.finish(owned, carried, dh);
    }
}

template <typename T, int BLOCKS, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(BLOCKS, 1, 1) lstm_cluster(
    T* hidden, T* cells, T* gates, const T* h0, const T* c0, const T* weight, const T* bias, const Sizes sizes
) {
    make_sequence<BLOCKS, ROWS>(Lstm<T>{hidden, cells, gates, h0, c0, bias}, weight, sizes);
}

template <typename T, int BLOCKS, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(BLOCKS, 1, 1) lstm_grad_cluster(
    T* dz, T* dh0, T* dc0, const T* transposed, const T* c0, const T* cells, const T* gates, const T* grad_y,
    const T* grad_c, const Sizes sizes
) {
    const LstmGrad<T> cell{dz, dh0, dc0, c0, cells, gates, grad_y, grad_c};
    make_grad_sequence<BLOCKS, ROWS>(cell, transposed, sizes);
}

template <typename T, int BLOCKS, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(BLOCKS, 1, 1) gru_cluster(
    T* y, T* gates, const T* a, const T* h0, const T* weight, const T* bias, const Sizes sizes
) {
    make_sequence<BLOCKS, ROWS>(Gru<T>{y, gates, a, h0, bias}, weight, sizes);
}

template <typename T, int BLOCKS, int ROWS>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(BLOCKS, 1, 1) gru_grad_cluster(
    T* da, T* db, T* dh0, const T* transposed, const T* h0, const T* y, const T* gates, const T* grad_y,
    const Sizes sizes
) {
    make_grad_sequence<BLOCKS, ROWS>(GruGrad<T>{da, db, dh0, h0, y, gates, grad_y}, transposed, sizes);
}

template <typename T, int BLOCKS, int ROWS, bool RELU>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(BLOCKS, 1, 1) rnn_cluster(
    T* y, const T* z, const T* h0, const T* weight, const Sizes sizes
) {
    make_sequence<BLOCKS, ROWS>(Rnn<T, RELU>{y, z, h0}, weight, sizes);
}

template <typename T, int BLOCKS, int ROWS, bool RELU>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(BLOCKS, 1, 1) rnn_grad_cluster(
    T* dz, const T* grad_y, const T* y, const T* transposed, const Sizes sizes
) {
    make_grad_sequence<BLOCKS, ROWS>(RnnGrad<T, RELU>{dz, grad_y, y}, transposed, sizes);
}
