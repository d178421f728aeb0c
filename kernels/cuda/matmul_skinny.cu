// Products of a matrix and a few vectors: out[i, j] = sum over k of a[i, k] * b[k, j], plus a bias, where there is one.
// Sums are float32.
//
// Shapes: a is (..., M, K), b is (..., K, N), N at most VECTORS, out is (..., M, N), or lies as its transposed one: few
// rows times a matrix, as of a linear layer that is given a small batch, are the same product with everything
// transposed. Described as in matmul.cu. K = 0 gives zeros.
//
//   matmul_skinny   a block for 32 rows of a; its warps share out K, each with the sums of all vectors
//
// Arithmetic intensity: an element of a serves N multiply-adds, up to 16 operations a byte in 16 bits with 16 vectors,
// where tensor cores could do 200: all that counts is to read a once, as in gemv.cu. Of the tiles of
// matmul_tensor_core.cu 1/64 to 1/4 would be used. Here a is the larger operand of each mma, of 16 rows, and the vectors
// are the smaller one, of 8 columns. Floats are multiplied by CUDA cores: 4 operations a byte with 8 vectors, 8 with 16,
// where an H200 can do 14.
//
// Nothing passes through shared memory but the sums. The sum over k may take its terms in any order, as long as both
// operands have the same one: so a lane takes 16 bytes along K, of 4 rows of a and of each vector that it needs, and
// multiplies words 0 and 1 of them as the two words of k in a fragment, then words 2 and 3 (tensor_core.cuh). Where the
// columns of a are contiguous, it loads 4 neighbours of a column for each of these k, and puts the words together.
// A warp's step is 64 bytes along K of 32 rows, 2 KB, and 512 bytes more for every 8 vectors, from the caches.
//
// A product of few rows and a long K has too few blocks: K is cut into parts (split_k.cu). The order of the additions
// depends on the shape alone: there are no atomics.

#include "matmul.cuh"
#include "rows.cuh"
#include "tensor_core.cuh"
#include "vector.cuh"

constexpr int ROWS = 32;             // of a, of a block
constexpr int LANE_ROWS = 4;         // of these, of a lane
constexpr int WORDS = 4;             // of a row, that a lane takes at a time: 16 bytes
constexpr int LANES = 4;             // that share rows, side by side along K
constexpr int FRAGMENT_COLUMNS = 8;  // vectors in a fragment

template <int VALUE>
struct Constant {
    static constexpr int value = VALUE;
};

// Elements as they lie in memory, of which a word, 32 bits, has one or two.
template <int BYTES>
struct BitsOf {
    using type = unsigned;
};
template <>
struct BitsOf<2> {
    using type = unsigned short;
};
template <typename T>
using Bits = typename BitsOf<sizeof(T)>::type;

template <typename T>
constexpr int RUN = WORDS * 4 / sizeof(T);  // elements, that a lane takes of a row at a time
template <typename T>
constexpr bool ON_TENSOR_CORES = sizeof(T) == 2;

// The warps of a block, alone on a multiprocessor: a thread then has 128 registers, or 255 for the sums of floats, 32 or
// 64. And the steps whose loads a thread has on their way: 64 KB of a multiprocessor, but 32 beside 64 sums.
template <typename T>
constexpr int BLOCK_WARPS = ON_TENSOR_CORES<T> ? 16 : 8;
template <typename T, int VECTORS>
constexpr int AT_ONCE = ON_TENSOR_CORES<T> || VECTORS > 8 ? 2 : 4;

template <typename B>
__device__ __forceinline__ void pack(unsigned (&words)[WORDS], const B (&run)[RUN<B>]) {
#pragma unroll
    for (int w = 0; w < WORDS; w++) {
        if constexpr (sizeof(B) == 2)
            words[w] = run[2 * w] | unsigned(run[2 * w + 1]) << 16;
        else
            words[w] = run[w];
    }
}

// Loads a run, of a row or a vector, that is a chunk of 16 bytes; zeros, where it is not there.
template <typename B>
__device__ __forceinline__ void load_chunk(unsigned (&words)[WORDS], const B* from, bool there) {
    Vector<unsigned, WORDS> chunk = {};
    if (there) chunk = load_vector<WORDS>(reinterpret_cast<const unsigned*>(from));
#pragma unroll
    for (int w = 0; w < WORDS; w++) words[w] = chunk.lane[w];
}

// Loads a run of a row of a: WIDE, by one load; or element by element, of which those from `left` on are zeros.
template <bool WIDE, typename B>
__device__ __forceinline__ void load_run(unsigned (&words)[WORDS], const B* from, long long stride, int left) {
    if constexpr (WIDE) {
        load_chunk(words, from, true);
    } else {
        B run[RUN<B>];
#pragma unroll
        for (int k = 0; k < RUN<B>; k++) run[k] = k < left ? from[k * stride] : B(0);
        pack(words, run);
    }
}

// The same for the rows of a lane, where those are neighbours in memory.
template <bool WIDE, typename B>
__device__ __forceinline__ void load_columns(unsigned (&words)[LANE_ROWS][WORDS], const B* const (&rows)[LANE_ROWS],
                                             long long at, long long stride, int left) {
    B run[LANE_ROWS][RUN<B>];
#pragma unroll
    for (int k = 0; k < RUN<B>; k++) {
        if constexpr (WIDE) {
            const auto column = load_vector<LANE_ROWS>(rows[0] + at + k * stride);
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) run[i][k] = column.lane[i];
        } else {
#pragma unroll
            for (int i = 0; i < LANE_ROWS; i++) run[i][k] = k < left ? rows[i][at + k * stride] : B(0);
        }
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) pack(words[i], run[i]);
}

// c += a b for the fragments of elements of T. (These types are not there where floats alone are multiplied.)
template <typename T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
#ifdef __CUDA_FP16_H__
template <>
__device__ __forceinline__ void multiply_add<__half>(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma_f16(c, a, b);
}
template <>
__device__ __forceinline__ void multiply_add<__nv_bfloat16>(float (&c)[4], const unsigned (&a)[4],
                                                            const unsigned (&b)[2]) {
    mma_bf16(c, a, b);
}
#endif

// The sums of a warp, spread over its lanes. load(words, s, j) loads what a lane needs for step s of vector j, or of
// vectors 8 j .. 8 j + 7. All steps of one follow each other, so that its address does not wait in registers.
template <typename T, int VECTORS, bool TENSOR = ON_TENSOR_CORES<T>>
struct Sums {
    static constexpr int LOADS = VECTORS / FRAGMENT_COLUMNS;
    float fragments[2][LOADS][4] = {};  // of rows 0 and 1 of a lane, and 2 and 3

    __device__ __forceinline__ static int vector_of_load(int j) {
        return FRAGMENT_COLUMNS * j + threadIdx.x % WARP / LANES;
    }

    template <int STEPS, typename Load>
    __device__ __forceinline__ void multiply(const unsigned (&a)[STEPS][LANE_ROWS][WORDS], Load load) {
#pragma unroll
        for (int j = 0; j < LOADS; j++)
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                unsigned b[WORDS];
                load(b, s, j);
#pragma unroll
                for (int w = 0; w < WORDS; w += 2)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const unsigned left[4] = {a[s][2 * half][w], a[s][2 * half + 1][w], a[s][2 * half][w + 1],
                                                  a[s][2 * half + 1][w + 1]};
                        const unsigned right[2] = {b[w], b[w + 1]};
                        multiply_add<T>(fragments[half][j], left, right);
                    }
            }
    }

    // Calls put(row of the lane, vector, sum) for all sums, each in one lane of those that share the row.
    template <typename Put>
    __device__ __forceinline__ void give(Put put) {
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int j = 0; j < LOADS; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    put(2 * half + i / 2, FRAGMENT_COLUMNS * j + threadIdx.x % LANES * 2 + i % 2, fragments[half][j][i]);
    }
};

template <typename T, int VECTORS>
struct Sums<T, VECTORS, false> {
    static constexpr int LOADS = VECTORS;
    float of_row[LANE_ROWS][VECTORS] = {};  // over the k of the lane

    __device__ __forceinline__ static int vector_of_load(int j) { return j; }

    template <int STEPS, typename Load>
    __device__ __forceinline__ void multiply(const unsigned (&a)[STEPS][LANE_ROWS][WORDS], Load load) {
#pragma unroll
        for (int j = 0; j < VECTORS; j++)
#pragma unroll
            for (int s = 0; s < STEPS; s++) {
                unsigned b[WORDS];
                load(b, s, j);
#pragma unroll
                for (int w = 0; w < WORDS; w++)
#pragma unroll
                    for (int i = 0; i < LANE_ROWS; i++)
                        of_row[i][j] += __uint_as_float(a[s][i][w]) * __uint_as_float(b[w]);
            }
    }

    template <typename Put>
    __device__ __forceinline__ void give(Put put) {
        constexpr int SHARE = VECTORS / LANES;
#pragma unroll
        for (int i = 0; i < LANE_ROWS; i++) {
            scattered_sums<VECTORS, LANES / 2>(of_row[i]);
#pragma unroll
            for (int j = 0; j < SHARE; j++) put(i, threadIdx.x % LANES * SHARE + j, of_row[i][j]);
        }
    }
};

// Grid: x = 32 rows for each block, one matrix after the other; y = the parts of K, multiples of a step. ALONG_K:
// whether the neighbours in memory are those along K, or else of a column. WIDE: these are whole vectors of 16 bytes.
// Those of b are along K, and whole vectors; where K is none, zeros follow. Fewer than 2^32 vectors of 16 bytes lie
// between the first of these and the last, so that where each begins takes one register. Out: T, or float for parts of
// K. Shared memory: up to 34 KB.
template <typename T, typename Out, int VECTORS, bool ALONG_K, bool WIDE>
__global__ void __launch_bounds__(WARP * BLOCK_WARPS<T>, 1)
matmul_skinny(Out* out, const T* a, const T* b, MatmulShape shape, Batch batch, const Out* bias, bool transposed) {
    using B = Bits<T>;
    constexpr int STEP = LANES * RUN<T>;
    constexpr bool IN_VECTOR = WIDE && !ALONG_K;  // the rows of a lane are neighbours
    __shared__ float sums_of_warps[BLOCK_WARPS<T>][VECTORS][ROWS + 1];  // one more, for the banks
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int group = threadIdx.x % WARP / LANES, lane = threadIdx.x % LANES;
    const unsigned tiles = (shape.M + ROWS - 1) / ROWS, number = blockIdx.x / tiles;  // no more than there are blocks
    const long long first_row = (long long)(blockIdx.x % tiles) * ROWS;
    const int N = int(shape.N);
    long long left = select_part(a, b, shape);  // of K, from where the warp is on
    if (number != 0) select_batch(a, b, batch, number);

    // Past the end, a lane takes the last row or vector again, and what it finds is not stored.
    const auto row_of_lane = [&](int i) { return ALONG_K ? group + ROWS / LANE_ROWS * i : group * LANE_ROWS + i; };
    const B* rows[LANE_ROWS];
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i++) {
        const long long row = first_row + row_of_lane(i), last_row = shape.M - (IN_VECTOR ? LANE_ROWS : 1);
        rows[i] = reinterpret_cast<const B*>(a) + (row < last_row ? row : last_row) * shape.a_row_stride;
    }
    const long long a_stride = WIDE && ALONG_K ? 1 : shape.a_column_stride;
    const auto advance = [&](int places) {
        rows[0] += places * a_stride;
#pragma unroll
        for (int i = 1; i < LANE_ROWS; i++) rows[i] = IN_VECTOR ? rows[0] + i : rows[i] + places * a_stride;
    };

    // Steps at once lie side by side, so that one address of each row and vector serves for all of them.
    constexpr int COUNT = WIDE ? AT_ONCE<T, VECTORS> : 1;
    const int first = warp * COUNT * STEP;
    left -= first;  // rows and vectors go on from where the lane is
    const B* vectors = reinterpret_cast<const B*>(b) + first + lane * RUN<T>;
    const unsigned chunks = unsigned(shape.b_column_stride / RUN<T>);
    advance(first + lane * RUN<T>);
    Sums<T, VECTORS> sums;
    const auto make_steps = [&](auto steps, auto by_vectors, int to_next) {
        constexpr int STEPS = decltype(steps)::value;
        constexpr bool BY_VECTORS = decltype(by_vectors)::value;
        const auto left_of_run = [&](int s) { return at_most(left - s * STEP - lane * RUN<T>, RUN<T>); };
        unsigned words[STEPS][LANE_ROWS][WORDS];
#pragma unroll
        for (int s = 0; s < STEPS; s++) {
            const long long at = s * STEP * a_stride;
            if constexpr (ALONG_K) {
#pragma unroll
                for (int i = 0; i < LANE_ROWS; i++)
                    load_run<BY_VECTORS>(words[s][i], rows[i] + at, a_stride, left_of_run(s));
            } else {
                load_columns<BY_VECTORS>(words[s], rows, at, a_stride, left_of_run(s));
            }
        }
        sums.multiply(words, [&](unsigned(&vector)[WORDS], int s, int j) {
            const int column = min(N - 1, sums.vector_of_load(j));
            const B* const from = vectors + (unsigned long long)(column * chunks) * RUN<T> + s * STEP;
            load_chunk(vector, from, BY_VECTORS || left_of_run(s) > 0);
        });
        left -= to_next;
        advance(to_next);
        vectors += to_next;
    };
    if constexpr (WIDE)
        while (left >= COUNT * STEP) make_steps(Constant<COUNT>{}, Constant<true>{}, warps * COUNT * STEP);
    // Element by element: all, or those behind the last steps at once, which one warp takes.
    while (left > 0) make_steps(Constant<1>{}, Constant<false>{}, WIDE ? STEP : warps * STEP);

    sums.give([&](int i, int vector, float sum) { sums_of_warps[warp][vector][row_of_lane(i)] = sum; });
    __syncthreads();  // the sums of all warps are there
    out += number_of_part(shape, number) * shape.M * shape.N;
    for (int i = threadIdx.x; i < ROWS * N; i += blockDim.x) {
        const int row = transposed ? i % ROWS : i / N, vector = transposed ? i / ROWS : i % N;  // neighbours in out
        const long long in_out = first_row + row;
        if (in_out >= shape.M) continue;
        float total = 0;
        for (int other = 0; other < warps; other++) total += sums_of_warps[other][vector][row];
        if (bias) total += float(bias[transposed ? in_out : vector]);
        out[transposed ? vector * shape.M + in_out : in_out * N + vector] = Out(total);
    }
}
