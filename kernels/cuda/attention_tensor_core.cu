// Scaled dot-product attention and its gradients in 16 bits, by products on tensor cores: attention.cu's
// formulas, shapes and division of the work, with q, k, v, g, out and the gradients of __half or __nv_bfloat16.
//
//   attention_tensor_core               a block walks along the keys for its QUERIES queries
//   attention_tensor_core_grad_keys     along the queries for its KEYS keys: the gradients of k and v
//   attention_tensor_core_grad_queries  along the keys for its QUERIES queries: the gradient of q
//
// Scores, softmax, sums and lse are float32; what is rounded to 16 bits is the factors of the products: p, and the
// gradient of the scores. The idea is that of FlashAttention-2 (Dao 2023, https://arxiv.org/abs/2307.08691): a
// warp has whole rows of the scores, 16 M of them, so that their softmax stays within four lanes; and the lanes
// that hold the sums of one product hold them as the next product takes its left factor, so that p never leaves
// the registers.
//
// Rows are multiples of 16 bytes apart. Tiles come by asynchronous copies, while the product before is at work. A
// row has one chunk of 16 bytes more than elements: an odd number of chunks, so that the 8 rows that ldmatrix
// reads at a time lie in different banks.
//
// Arithmetic intensity: with 128 queries a block reads k and v once for 4 x 128 x S x D operations, 128 a byte.
// From shared memory a warp loads, for 16 keys and 16 features, 512 bytes for M products of 8192 operations; with M
// = 2 32 a byte, where the tensor cores could do 32 in the time of one.
//
// Registers: the sums take M D / 2 floats of a thread, the scores M COLUMNS / 2, twice in the gradients; those of
// the keys have two sums. Needs compute capability 8.0.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "async_copy.cuh"
#include "attention_fragments.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int FRAGMENT_ROWS = WARPS * FRAGMENT;  // of a block, with one fragment for each warp

// Rows of D elements in shared memory.
template <typename T, int D>
struct Tile {
    static constexpr int PER_CHUNK = 8, CHUNKS = D / PER_CHUNK, PITCH = CHUNKS + 1;
    uint4* chunks;

    // The place behind `rows` of them.
    __device__ __forceinline__ Tile behind(int rows) const { return {chunks + rows * PITCH}; }

    // Starts the copies of the rows of x (rows, features) from `first` on; zeros outside.
    template <int ROWS>
    __device__ __forceinline__ void start(AsyncCopies& copies, const T* x, long long stride, long long first,
                                          long long rows, int features) const {
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / THREADS; i++) {
            const int at = threadIdx.x + i * THREADS, row = at / CHUNKS, column = at % CHUNKS * PER_CHUNK;
            const int left = first + row < rows && column < features ? features - column : 0;
            const T* from = left > 0 ? x + (first + row) * stride + column : x;
            copies.copy<16>(&chunks[row * PITCH + at % CHUNKS], from, min(left, PER_CHUNK) * int(sizeof(T)));
        }
    }

    // Four 8 x 8 matrices: of 16 rows, 16 elements from 16 k on.
    __device__ __forceinline__ const uint4* rows_first(int row, int k) const {
        return &chunks[(row + threadIdx.x % 16) * PITCH + 2 * k + threadIdx.x % WARP / 16];
    }

    // As a left factor: the rows below each other first.
    __device__ __forceinline__ void left(unsigned (&a)[4], int row, int k) const { ldmatrix(a, rows_first(row, k)); }

    // As a transposed right factor, for two times 8 of its columns, which are the tile's rows.
    __device__ __forceinline__ void right(unsigned (&b)[2][2], int row, int k) const {
        unsigned four[4];
        const int lane = threadIdx.x % WARP;
        ldmatrix(four, &chunks[(row + lane / 16 * 8 + lane % 8) * PITCH + 2 * k + lane / 8 % 2]);
        b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
    }

    // As a right factor: two times 8 columns of 16 rows.
    __device__ __forceinline__ void right_as_it_is(unsigned (&b)[2][2], int row, int k) const {
        unsigned four[4];
        ldmatrix_trans(four, rows_first(row, k));
        b[0][0] = four[0], b[0][1] = four[1], b[1][0] = four[2], b[1][1] = four[3];
    }
};

// Where this lane's elements of a warp's fragments stand: element i of fragment (m, n) is in row(m, i / 2) and
// column(n, i % 2) of the block's.
template <int M>
__device__ __forceinline__ int row_of(int m, int half) {
    return (threadIdx.x / WARP * M + m) * FRAGMENT + 8 * half + threadIdx.x % WARP / 4;
}

// sums += a b^T: the warp's rows of tile a times the first 8 N rows of tile b.
template <typename T, int D, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&sums)[M][N][4], Tile<T, D> a, Tile<T, D> b) {
#pragma unroll 2
    for (int k = 0; k < D / 16; k++) {  // fewer fragments at a time: registers
        unsigned left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) a.left(left[m], (threadIdx.x / WARP * M + m) * FRAGMENT, k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            unsigned right[2][2];
            b.right(right, 8 * n, k);
#pragma unroll
            for (int m = 0; m < M; m++) {
                Fragments<T>::multiply(sums[m][n], left[m], right[0]);
                Fragments<T>::multiply(sums[m][n + 1], left[m], right[1]);
            }
        }
    }
}

// sums += p b: p, rounded, times the first 8 N rows of tile b.
template <typename T, int D, int M, int N>
__device__ __forceinline__ void multiply(float (&sums)[M][D / 8][4], const float (&p)[M][N][4], Tile<T, D> b) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        unsigned left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) pack_left<T>(left[m], p[m], k);
#pragma unroll
        for (int f = 0; f < D / 8; f += 2) {
            unsigned right[2][2];
            b.right_as_it_is(right, 16 * k, f / 2);
#pragma unroll
            for (int m = 0; m < M; m++) {
                Fragments<T>::multiply(sums[m][f], left[m], right[0]);
                Fragments<T>::multiply(sums[m][f + 1], left[m], right[1]);
            }
        }
    }
}

// Writes the warp's rows of (rows, features), multiplied by `factor` of each.
template <typename T, int M, int F>
__device__ __forceinline__ void store_rows(T* out, float (&sums)[M][F][4], const float (&factor)[M][2],
                                           long long first, long long rows, int features) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        scale_rows(sums[m], factor[m]);
        const long long row = first + (threadIdx.x / WARP * M + m) * FRAGMENT;
        store_fragments(out + row * features, sums[m], rows - row, features, features);
    }
}

// Grid: x = a block for each QUERIES queries of each matrix. Shared memory: tiles of q, k and v.
template <typename T, int D, int QUERIES, int KEYS>
__global__ void __launch_bounds__(THREADS)
attention_tensor_core(T* out, float* lse, const T* q, const T* k, const T* v, AttentionShape shape) {
    constexpr int M = QUERIES / FRAGMENT_ROWS, N = KEYS / 8;
    extern __shared__ uint4 shared[];
    const Tile<T, D> q_tile{shared}, k_tile = q_tile.behind(QUERIES), v_tile = k_tile.behind(KEYS);
    const Task task(shape.L, QUERIES);
    q = task.of(q, shape.q_stride, shape.heads);
    k = task.of(k, shape.k_stride, shape.heads);
    v = task.of(v, shape.v_stride, shape.heads);

    AsyncCopies copies;
    q_tile.template start<QUERIES>(copies, q, shape.q_stride[2], task.first_row, shape.L, shape.E);
    k_tile.template start<KEYS>(copies, k, shape.k_stride[2], 0, shape.S, shape.E);
    copies.commit();
    RunningSoftmax softmax[M];
    float sums[M][D / 8][4] = {};
    const long long seen = task.first_row + QUERIES;  // by the last query, if is_causal
    const long long keys = shape.is_causal && seen < shape.S ? seen : shape.S;
    for (long long first = 0; first < keys; first += KEYS) {
        copies.wait<0>();
        __syncthreads();  // k is there, and the last v is done with
        v_tile.template start<KEYS>(copies, v, shape.v_stride[2], first, shape.S, shape.V);
        copies.commit();
        float scores[M][N][4] = {};
        multiply_rows(scores, q_tile, k_tile);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int end = visible(shape, task.first_row + row_of<M>(m, half), first, KEYS);
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& score = scores[m][n][2 * half + i];
                        score = column_of(n, i) < end ? score * (shape.scale * LOG2_E) : -INFINITY;
                    }
            }
#pragma unroll
        for (int m = 0; m < M; m++) {
            float scaled[2];
            softmax[m].add(scores[m], scaled);
            scale_rows(sums[m], scaled);
        }
        copies.wait<0>();
        __syncthreads();  // v is there, and k is done with
        if (first + KEYS < keys)
            k_tile.template start<KEYS>(copies, k, shape.k_stride[2], first + KEYS, shape.S, shape.E);
        copies.commit();
        multiply(sums, scores, v_tile);
    }
    float factor[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const long long query = task.first_row + row_of<M>(m, half);
            const float total = softmax[m].total(half), most = softmax[m].largest[half];
            factor[m][half] = 1 / total;
            if (threadIdx.x % 4 == 0 && query < shape.L)
                lse[task.matrix * shape.L + query] = most == -INFINITY ? NAN : most / LOG2_E + log(total);
        }
    store_rows(out + task.matrix * shape.L * shape.V, sums, factor, task.first_row, shape.L, shape.V);
}

// ---- the gradients ----
//
// Both have two tiles for their own rows, and walk along others, of which two pairs of tiles are there: one is
// at work while the next arrives.

// The power of 2 of a query's lse, and sum(g * out).
struct OfQuery {
    float log_sum, inner;

    __device__ __forceinline__ OfQuery(const float* lse, const float* row_sums, long long query, bool exists)
        : log_sum(exists ? lse[query] * LOG2_E : 0), inner(exists ? row_sums[query] : 0) {}

    // Turns a score into its probability, and the gradient of that into that of the score, but for the scale.
    __device__ __forceinline__ void apply(float& p, float& dp, float scale, bool sees) const {
        p = sees ? exp2f(p * (scale * LOG2_E) - log_sum) : 0;
        dp = sees ? p * (dp - inner) : 0;
    }
};

// Moves the inputs of a gradient to where the task's matrix begins. g is (matrices, L, g_stride), of which V are in a
// row.
template <typename T>
__device__ __forceinline__ void to_matrix(const Task& task, const AttentionShape& shape, long long g_stride,
                                          const T*& g, const T*& q, const T*& k, const T*& v, const float*& lse,
                                          const float*& row_sums) {
    q = task.of(q, shape.q_stride, shape.heads);
    k = task.of(k, shape.k_stride, shape.heads);
    v = task.of(v, shape.v_stride, shape.heads);
    g += task.matrix * shape.L * g_stride;
    lse += task.matrix * shape.L;
    row_sums += task.matrix * shape.L;
}

// Grid: x = a block for each KEYS keys of each matrix. Shared memory: tiles of k and v, two each of q and g.
template <typename T, int D, int QUERIES, int KEYS>
__global__ void __launch_bounds__(THREADS)
attention_tensor_core_grad_keys(T* dk, T* dv, const T* g, const T* q, const T* k, const T* v, const float* lse,
                                const float* row_sums, long long g_stride, AttentionShape shape) {
    constexpr int M = KEYS / FRAGMENT_ROWS, N = QUERIES / 8;
    extern __shared__ uint4 shared[];
    const Tile<T, D> k_tile{shared}, v_tile = k_tile.behind(KEYS), others = v_tile.behind(KEYS);
    const Task task(shape.S, KEYS);
    to_matrix(task, shape, g_stride, g, q, k, v, lse, row_sums);

    AsyncCopies copies;
    const auto start = [&](long long first, int stage) {
        const Tile<T, D> q_tile = others.behind(2 * stage * QUERIES), g_tile = q_tile.behind(QUERIES);
        q_tile.template start<QUERIES>(copies, q, shape.q_stride[2], first, shape.L, shape.E);
        g_tile.template start<QUERIES>(copies, g, g_stride, first, shape.L, shape.V);
        copies.commit();
    };
    const long long begin = shape.is_causal ? task.first_row / QUERIES * QUERIES : 0;
    k_tile.template start<KEYS>(copies, k, shape.k_stride[2], task.first_row, shape.S, shape.E);
    v_tile.template start<KEYS>(copies, v, shape.v_stride[2], task.first_row, shape.S, shape.V);
    start(begin, 0);
    const int keys = at_most(shape.S - task.first_row, KEYS);
    float k_sums[M][D / 8][4] = {}, v_sums[M][D / 8][4] = {};
    int stage = 0;
    for (long long first = begin; first < shape.L; first += QUERIES, stage ^= 1) {
        copies.wait<0>();
        __syncthreads();  // q and g are there, and the last ones are done with
        if (first + QUERIES < shape.L) start(first + QUERIES, stage ^ 1);
        const Tile<T, D> q_tile = others.behind(2 * stage * QUERIES), g_tile = q_tile.behind(QUERIES);
        float p[M][N][4] = {}, dp[M][N][4] = {};
        multiply_rows(p, k_tile, q_tile);
        multiply_rows(dp, v_tile, g_tile);
        const int queries = at_most(shape.L - first, QUERIES);
        // Key `row` is the one before query `column` if row + ahead < column.
        const int ahead = shape.is_causal ? -at_most(first - task.first_row, KEYS) : -KEYS;
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = column_of(n, i % 2);
                const OfQuery of(lse + first, row_sums + first, column, column < queries);
#pragma unroll
                for (int m = 0; m < M; m++) {
                    const int row = row_of<M>(m, i / 2);
                    const bool sees = column < queries && row < keys && row + ahead <= column;
                    of.apply(p[m][n][i], dp[m][n][i], shape.scale, sees);
                }
            }
        multiply(v_sums, p, g_tile);
        multiply(k_sums, dp, q_tile);
    }
    copies.wait<0>();  // where is_causal lets no query see these keys
    float ones[M][2], scales[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) ones[m][0] = ones[m][1] = 1, scales[m][0] = scales[m][1] = shape.scale;
    store_rows(dk + task.matrix * shape.S * shape.E, k_sums, scales, task.first_row, shape.S, shape.E);
    store_rows(dv + task.matrix * shape.S * shape.V, v_sums, ones, task.first_row, shape.S, shape.V);
}

// Grid: x = a block for each QUERIES queries of each matrix. Shared memory: tiles of q and g, two each of k and v.
template <typename T, int D, int QUERIES, int KEYS>
__global__ void __launch_bounds__(THREADS)
attention_tensor_core_grad_queries(T* dq, const T* g, const T* q, const T* k, const T* v, const float* lse,
                                   const float* row_sums, long long g_stride, AttentionShape shape) {
    constexpr int M = QUERIES / FRAGMENT_ROWS, N = KEYS / 8;
    extern __shared__ uint4 shared[];
    const Tile<T, D> q_tile{shared}, g_tile = q_tile.behind(QUERIES), others = g_tile.behind(QUERIES);
    const Task task(shape.L, QUERIES);
    to_matrix(task, shape, g_stride, g, q, k, v, lse, row_sums);

    AsyncCopies copies;
    const auto start = [&](long long first, int stage) {
        const Tile<T, D> k_tile = others.behind(2 * stage * KEYS), v_tile = k_tile.behind(KEYS);
        k_tile.template start<KEYS>(copies, k, shape.k_stride[2], first, shape.S, shape.E);
        v_tile.template start<KEYS>(copies, v, shape.v_stride[2], first, shape.S, shape.V);
        copies.commit();
    };
    q_tile.template start<QUERIES>(copies, q, shape.q_stride[2], task.first_row, shape.L, shape.E);
    g_tile.template start<QUERIES>(copies, g, g_stride, task.first_row, shape.L, shape.V);
    start(0, 0);
    float sums[M][D / 8][4] = {}, scales[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) scales[m][0] = scales[m][1] = shape.scale;
    const long long seen = task.first_row + QUERIES;
    const long long keys = shape.is_causal && seen < shape.S ? seen : shape.S;
    int stage = 0;
    for (long long first = 0; first < keys; first += KEYS, stage ^= 1) {
        copies.wait<0>();
        __syncthreads();  // k and v are there, and the last ones are done with
        if (first + KEYS < keys) start(first + KEYS, stage ^ 1);
        const Tile<T, D> k_tile = others.behind(2 * stage * KEYS), v_tile = k_tile.behind(KEYS);
        float p[M][N][4] = {}, dp[M][N][4] = {};
        multiply_rows(p, q_tile, k_tile);
        multiply_rows(dp, g_tile, v_tile);
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const long long query = task.first_row + row_of<M>(m, half);
                const OfQuery of(lse, row_sums, query, query < shape.L);
                const int end = visible(shape, query, first, KEYS);
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++)
                        of.apply(p[m][n][2 * half + i], dp[m][n][2 * half + i], shape.scale, column_of(n, i) < end);
            }
        multiply(sums, dp, k_tile);
    }
    store_rows(dq + task.matrix * shape.L * shape.E, sums, scales, task.first_row, shape.L, shape.E);
}
