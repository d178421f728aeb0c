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
// the registers. Exponentials are made fragment by fragment where the second product takes them, so that the tensor
// cores have one fragment while the next is made; and what only the tiles at an edge need, masks, others do without.
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
// the keys have two sums. If WEIGHTED, there are a mask, or dropout, or both (attention_weighting.cuh); else they cost
// nothing. Needs compute capability 8.0.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention_fragments.cuh"
#include "attention_source.cuh"
#include "attention_weighting.cuh"

constexpr int WARPS = 4, THREADS = WARPS * WARP;
constexpr int FRAGMENT_ROWS = WARPS * FRAGMENT;  // of a block, with one fragment for each warp

// Rows of D elements in shared memory.
template <typename T, int D>
struct Tile {
    static constexpr int PER_CHUNK = 8, CHUNKS = D / PER_CHUNK, PITCH = CHUNKS + 1;
    uint4* chunks;

    // The place behind `rows` of them.
    __device__ __forceinline__ Tile behind(int rows) const { return {chunks + rows * PITCH}; }

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

template <typename T, int D>
using Source = TileSource<T, D, THREADS>;

// Where this lane's elements of a warp's fragments stand: element i of fragment (m, n) is in row_of(m, i / 2) and
// column_of(n, i % 2) of the block's.
template <int M>
__device__ __forceinline__ int row_of(int m, int half) {
    return (threadIdx.x / WARP * M + m) * FRAGMENT + 8 * half + threadIdx.x % WARP / 4;
}

// sums += a b^T: the warp's rows of tile a times the first 8 N rows of tile b. The fragments of so many steps
// are loaded AT_ONCE, into registers.
template <int AT_ONCE, typename T, int D, int M, int N>
__device__ __forceinline__ void multiply_rows(float (&sums)[M][N][4], Tile<T, D> a, Tile<T, D> b) {
#pragma unroll AT_ONCE
    for (int k = 0; k < D / 16; k++) {
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

// sums += p b: p, rounded, times the first 8 N rows of tile b. `prepare(m, n)` comes before fragment (m, n) of p is
// taken, while the products of those before are at work.
template <typename T, int D, int M, int N, typename Prepare>
__device__ __forceinline__ void multiply(float (&sums)[M][D / 8][4], const float (&p)[M][N][4], Tile<T, D> b,
                                         Prepare&& prepare) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        unsigned left[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) {
            prepare(m, 2 * k);
            prepare(m, 2 * k + 1);
            pack_left<T>(left[m], p[m], k);
        }
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

template <typename T, int D, int M, int N>
__device__ __forceinline__ void multiply(float (&sums)[M][D / 8][4], const float (&p)[M][N][4], Tile<T, D> b) {
    multiply(sums, p, b, [](int, int) {});
}

// Writes the warp's rows of (rows, features), multiplied by `factor` of each.
template <typename T, int M, int F>
__device__ __forceinline__ void store_rows(T* out, float (&sums)[M][F][4], const float (&factor)[M][2],
                                           long long first, long long rows, int features) {
#pragma unroll
    for (int m = 0; m < M; m++) {
        scale_rows(sums[m], factor[m]);
        const long long row = first + (threadIdx.x / WARP * M + m) * FRAGMENT;
        store_fragments<F>(out + row * features, sums[m], rows - row, features, features);
    }
}

// ---- masks and dropout ----

// A fragment of scores, in powers of 2, as the mask leaves it. `row` is that of element 0, `column` that of the step.
template <bool ROWS_ARE_QUERIES, typename Mask>
__device__ __forceinline__ void mask(float (&scores)[4], const Weighting<Mask>& weighting, long long row,
                                     long long column, int n) {
    if (!weighting.has_mask) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const long long of_row = row + 8 * (i / 2), of_column = column + column_of(n, i % 2);
        scores[i] = weighting.masked(scores[i], ROWS_ARE_QUERIES ? of_row : of_column,
                                     ROWS_ARE_QUERIES ? of_column : of_row);
    }
}

// Which of a fragment's weights are kept, a bit each. Where rows are queries, two lanes have two blocks of random words
// in common, of a row each; where they are keys, four lanes have four.
template <bool ROWS_ARE_QUERIES, typename Mask>
__device__ __forceinline__ unsigned kept(const Weighting<Mask>& weighting, long long row, long long column, int n) {
    const int lane = threadIdx.x % WARP;
    unsigned bits = 0;
    if constexpr (ROWS_ARE_QUERIES) {
        const int half = lane % 2;
        const unsigned own = weighting.kept(row + 8 * half, column + column_of(n, 0));
        const unsigned other = __shfl_xor_sync(ALL_LANES, own, 1);
        bits = (half ? other : own) >> 2 * half & 3;
        bits |= ((half ? own : other) >> 2 * half & 3) << 2;
    } else {
        const int among = lane / 4 % 4;
        const unsigned own = weighting.kept(column + column_of(n, among % 2), row + 8 * (among / 2));
#pragma unroll
        for (int i = 0; i < 4; i++)
            bits |= (__shfl_sync(ALL_LANES, own, (lane & ~12) | i << 2) >> among & 1) << i;
    }
    return bits;
}

// Grid: x = a block for each QUERIES queries of each matrix. Shared memory: tiles of q, k and v.
template <typename T, int D, int QUERIES, int KEYS, typename Mask, bool WEIGHTED>
__global__ void __launch_bounds__(THREADS)
attention_tensor_core(T* out, float* lse, const T* q, const T* k, const T* v, AttentionShape shape,
                      const Mask* mask_of_scores, const unsigned long long* live, AttentionWeighting given) {
    constexpr int M = QUERIES / FRAGMENT_ROWS, N = KEYS / 8;
    extern __shared__ uint4 shared[];
    const Tile<T, D> q_tile{shared}, k_tile = q_tile.behind(QUERIES), v_tile = k_tile.behind(KEYS);
    const Task task(shape.L, QUERIES);
    const Weighting<Mask> weighting(mask_of_scores, live, given, shape, task);
    Source<T, D> of_q(task.of(q, shape.q_stride, shape.heads), shape.q_stride[2], shape.E, task.first_row);
    Source<T, D> of_k(task.of(k, shape.k_stride, shape.heads), shape.k_stride[2], shape.E, 0);
    Source<T, D> of_v(task.of(v, shape.v_stride, shape.heads), shape.v_stride[2], shape.V, 0);

    AsyncCopies copies;
    of_q.template start<QUERIES>(copies, q_tile.chunks, shape.L - task.first_row);
    of_k.template start<KEYS>(copies, k_tile.chunks, shape.S);
    copies.commit();
    RunningSoftmax softmax[M];
    float sums[M][D / 8][4] = {};
    const float scale = shape.scale * LOG2_E;
    const bool keeps_order = !WEIGHTED && keeps_order_of_scores(scale);
    const float left_scale = keeps_order ? scale : 1;
    const long long whole = keys_of(shape, task.first_row), keys = keys_of(shape, task.first_row + QUERIES - 1);
    for (long long first = 0; first < keys; first += KEYS) {
        copies.wait<0>();
        __syncthreads();  // k is there, and the last v is done with
        of_v.template start<KEYS>(copies, v_tile.chunks, shape.S - first);
        copies.commit();
        float scores[M][N][4] = {};
        multiply_rows<D / 16>(scores, q_tile, k_tile);
        if (!keeps_order || first + KEYS > whole)
#pragma unroll
            for (int m = 0; m < M; m++) {
                if (!keeps_order) scale_rows(scores[m], {scale, scale});
                if constexpr (WEIGHTED)
#pragma unroll
                    for (int n = 0; n < N; n++)
                        mask<true>(scores[m][n], weighting, task.first_row + row_of<M>(m, 0), first, n);
                hide(scores[m], shape, task.first_row + row_of<M>(m, 0), first);
            }
        float factor[M][2];
#pragma unroll
        for (int m = 0; m < M; m++) softmax[m].begin(scores[m], factor[m], left_scale);
#pragma unroll
        for (int m = 0; m < M; m++) rescale_rows(sums[m], factor[m]);
        copies.wait<0>();
        __syncthreads();  // v is there, and k is done with
        if (first + KEYS < keys) of_k.template start<KEYS>(copies, k_tile.chunks, shape.S - first - KEYS);
        copies.commit();
        multiply(sums, scores, v_tile, [&](int m, int n) {
            softmax[m].add(scores[m][n], left_scale);
            if constexpr (WEIGHTED)
                if (weighting.drops) {
                    const unsigned bits = kept<true>(weighting, task.first_row + row_of<M>(m, 0), first, n);
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (!(bits >> i & 1)) scores[m][n][i] = 0;
                }
        });
#pragma unroll
        for (int m = 0; m < M; m++) softmax[m].end();
    }
    float factor[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const long long query = task.first_row + row_of<M>(m, half);
            const RunningRow& row = softmax[m].rows[half];
            float total = softmax[m].total(half);
            if constexpr (WEIGHTED) total = weighting.total(row, total);
            factor[m][half] = WEIGHTED ? weighting.factor(total) : 1 / total;
            if (threadIdx.x % 4 == 0 && query < shape.L)
                lse[task.matrix * shape.L + query] = WEIGHTED ? weighting.log_sum(row, total) : row.log_sum(total);
        }
    store_rows(out + task.matrix * shape.L * shape.V, sums, factor, task.first_row, shape.L, shape.V);
}

// ---- the gradients ----
//
// Both have two tiles for their own rows, and walk along others, of which two pairs of tiles are there: one is
// at work while the next arrives.

// Turns a score into its probability, and the gradient of that into that of the score, but for the scale.
__device__ __forceinline__ void apply(OfQuery of, float scale, float& p, float& dp) {
    p = exp2f(fmaf(p, scale, -of.log_sum));
    dp = p * (dp - of.inner);
}

// The same of a masked score in powers of 2, where what is kept of the weights is multiplied by `kept_scale`. What is
// left of p is the weight, but for that.
__device__ __forceinline__ void apply(OfQuery of, float kept_scale, bool is_kept, float& p, float& dp) {
    p = exp2f(p - of.log_sum);
    dp = p * ((is_kept ? dp * kept_scale : 0) - of.inner);
    if (!is_kept) p = 0;
}

// Turns a fragment of scores into masked ones, in powers of 2; returns which of its weights are kept.
template <bool ROWS_ARE_QUERIES, bool WEIGHTED, typename Mask>
__device__ __forceinline__ unsigned begin(float (&scores)[4], float scale, const Weighting<Mask>& weighting,
                                          long long row, long long column, int n) {
    if constexpr (WEIGHTED) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[i] *= scale;
        mask<ROWS_ARE_QUERIES>(scores, weighting, row, column, n);
        return kept<ROWS_ARE_QUERIES>(weighting, row, column, n);
    } else {
        return 0;
    }
}

// The inputs of a gradient: the matrices of a task, from a query and a key on, and its queries' numbers. g is
// (matrices, L, g_stride), of which V are in a row.
template <typename T, int D>
struct Inputs {
    Source<T, D> g, q, k, v;
    const float *lse, *row_sums;

    __device__ __forceinline__ Inputs(const Task& task, const AttentionShape& shape, const T* g, long long g_stride,
                                      const T* q, const T* k, const T* v, const float* lse, const float* row_sums,
                                      long long query, long long key)
        : g(g + task.matrix * shape.L * g_stride, g_stride, shape.V, query),
          q(task.of(q, shape.q_stride, shape.heads), shape.q_stride[2], shape.E, query),
          k(task.of(k, shape.k_stride, shape.heads), shape.k_stride[2], shape.E, key),
          v(task.of(v, shape.v_stride, shape.heads), shape.v_stride[2], shape.V, key),
          lse(lse + task.matrix * shape.L), row_sums(row_sums + task.matrix * shape.L) {}
};

// Grid: x = a block for each KEYS keys of each matrix. Shared memory: tiles of k and v, two each of q and g.
template <typename T, int D, int QUERIES, int KEYS, typename Mask, bool WEIGHTED>
__global__ void __launch_bounds__(THREADS)
attention_tensor_core_grad_keys(T* dk, T* dv, const T* g, const T* q, const T* k, const T* v, const float* lse,
                                const float* row_sums, long long g_stride, AttentionShape shape,
                                const Mask* mask_of_scores, const unsigned long long* live, AttentionWeighting given) {
    constexpr int M = KEYS / FRAGMENT_ROWS, N = QUERIES / 8, AT_ONCE = M == 1 ? D / 16 : 2;
    extern __shared__ uint4 shared[];
    const Tile<T, D> k_tile{shared}, v_tile = k_tile.behind(KEYS), others = v_tile.behind(KEYS);
    const Task task(shape.S, KEYS);
    const Weighting<Mask> weighting(mask_of_scores, live, given, shape, task);
    long long first = shape.is_causal ? task.first_row / QUERIES * QUERIES : 0;
    Inputs<T, D> from(task, shape, g, g_stride, q, k, v, lse, row_sums, first, task.first_row);

    OfQuery* const numbers = reinterpret_cast<OfQuery*>(others.behind(4 * QUERIES).chunks);  // lse as it is

    AsyncCopies copies;
    const auto start = [&](long long first, int stage) {
        const Tile<T, D> q_tile = others.behind(2 * stage * QUERIES), g_tile = q_tile.behind(QUERIES);
        from.q.template start<QUERIES>(copies, q_tile.chunks, shape.L - first);
        from.g.template start<QUERIES>(copies, g_tile.chunks, shape.L - first);
        if (threadIdx.x < QUERIES) {
            const long long query = first + threadIdx.x;
            OfQuery& of = numbers[stage * QUERIES + threadIdx.x];
            copies.copy<4>(&of.log_sum, from.lse + query, query < shape.L ? 4 : 0);
            copies.copy<4>(&of.inner, from.row_sums + query, query < shape.L ? 4 : 0);
        }
        copies.commit();
    };
    from.k.template start<KEYS>(copies, k_tile.chunks, shape.S - task.first_row);
    from.v.template start<KEYS>(copies, v_tile.chunks, shape.S - task.first_row);
    start(first, 0);
    const float scale = shape.scale * LOG2_E;
    float k_sums[M][D / 8][4] = {}, v_sums[M][D / 8][4] = {};
    int stage = 0;
    const auto step = [&](auto is_whole) {
        copies.wait<0>();
        __syncthreads();  // q and g are there, and the last ones are done with
        if (first + QUERIES < shape.L) start(first + QUERIES, stage ^ 1);
        const Tile<T, D> q_tile = others.behind(2 * stage * QUERIES), g_tile = q_tile.behind(QUERIES);
        float p[M][N][4] = {}, dp[M][N][4] = {};
        multiply_rows<AT_ONCE>(p, k_tile, q_tile);
        multiply_rows<AT_ONCE>(dp, v_tile, g_tile);
        const OfQuery* const of = numbers + stage * QUERIES;
        const int end = at_most(shape.L - first, QUERIES);
        const int ahead = shape.is_causal ? int(first - task.first_row) : KEYS;  // of the first key, the first query
        multiply(v_sums, p, g_tile, [&](int m, int n) {
            const unsigned bits = begin<false, WEIGHTED>(p[m][n], scale, weighting,
                                                         task.first_row + row_of<M>(m, 0), first, n);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = column_of(n, i % 2);
                const OfQuery of_column{of[column].log_sum * LOG2_E, of[column].inner};
                if constexpr (WEIGHTED)
                    apply(of_column, weighting.kept_scale, bits >> i & 1, p[m][n][i], dp[m][n][i]);
                else
                    apply(of_column, scale, p[m][n][i], dp[m][n][i]);
                if constexpr (!decltype(is_whole)::value)
                    if (column >= end || row_of<M>(m, i / 2) > column + ahead) p[m][n][i] = dp[m][n][i] = 0;
            }
        });
        multiply(k_sums, dp, q_tile);
        first += QUERIES;
        stage ^= 1;
    };
    if (shape.is_causal)
        while (first < shape.L && first < task.first_row + KEYS - 1) step(Flag<false>());
    while (first + QUERIES <= shape.L) step(Flag<true>());
    if (first < shape.L) step(Flag<false>());
    copies.wait<0>();  // where is_causal lets no query see these keys
    float v_scales[M][2], scales[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) {
        v_scales[m][0] = v_scales[m][1] = WEIGHTED ? weighting.kept_scale : 1;
        scales[m][0] = scales[m][1] = shape.scale;
    }
    store_rows(dk + task.matrix * shape.S * shape.E, k_sums, scales, task.first_row, shape.S, shape.E);
    store_rows(dv + task.matrix * shape.S * shape.V, v_sums, v_scales, task.first_row, shape.S, shape.V);
}

// Grid: x = a block for each QUERIES queries of each matrix. Shared memory: tiles of q and g, two each of k and v.
template <typename T, int D, int QUERIES, int KEYS, typename Mask, bool WEIGHTED>
__global__ void __launch_bounds__(THREADS)
attention_tensor_core_grad_queries(T* dq, const T* g, const T* q, const T* k, const T* v, const float* lse,
                                   const float* row_sums, long long g_stride, AttentionShape shape,
                                   const Mask* mask_of_scores, const unsigned long long* live,
                                   AttentionWeighting given) {
    constexpr int M = QUERIES / FRAGMENT_ROWS, N = KEYS / 8;
    extern __shared__ uint4 shared[];
    const Tile<T, D> q_tile{shared}, g_tile = q_tile.behind(QUERIES), others = g_tile.behind(QUERIES);
    const Task task(shape.L, QUERIES);
    const Weighting<Mask> weighting(mask_of_scores, live, given, shape, task);
    Inputs<T, D> from(task, shape, g, g_stride, q, k, v, lse, row_sums, task.first_row, 0);

    AsyncCopies copies;
    const auto start = [&](long long first, int stage) {
        const Tile<T, D> k_tile = others.behind(2 * stage * KEYS), v_tile = k_tile.behind(KEYS);
        from.k.template start<KEYS>(copies, k_tile.chunks, shape.S - first);
        from.v.template start<KEYS>(copies, v_tile.chunks, shape.S - first);
        copies.commit();
    };
    from.q.template start<QUERIES>(copies, q_tile.chunks, shape.L - task.first_row);
    from.g.template start<QUERIES>(copies, g_tile.chunks, shape.L - task.first_row);
    start(0, 0);
    const float scale = shape.scale * LOG2_E;
    float sums[M][D / 8][4] = {}, scales[M][2];
    OfQuery of[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            of[m][half] = of_query(from.lse, from.row_sums, task.first_row + row_of<M>(m, half), shape.L);
            scales[m][half] = shape.scale;
        }
    long long first = 0;
    int stage = 0;
    const long long whole = keys_of(shape, task.first_row), keys = keys_of(shape, task.first_row + QUERIES - 1);
    const auto step = [&](auto is_whole) {
        copies.wait<0>();
        __syncthreads();  // k and v are there, and the last ones are done with
        if (first + KEYS < keys) start(first + KEYS, stage ^ 1);
        const Tile<T, D> k_tile = others.behind(2 * stage * KEYS), v_tile = k_tile.behind(KEYS);
        float p[M][N][4] = {}, dp[M][N][4] = {};
        multiply_rows<D / 16>(p, q_tile, k_tile);
        multiply_rows<D / 16>(dp, g_tile, v_tile);
        int end[M][2];  // of the keys that a query sees
        if constexpr (!decltype(is_whole)::value)
#pragma unroll
            for (int i = 0; i < 2 * M; i++)
                end[i / 2][i % 2] = visible(shape, task.first_row + row_of<M>(i / 2, i % 2), first, KEYS);
        multiply(sums, dp, k_tile, [&](int m, int n) {
            const unsigned bits = begin<true, WEIGHTED>(p[m][n], scale, weighting,
                                                        task.first_row + row_of<M>(m, 0), first, n);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if constexpr (WEIGHTED)
                    apply(of[m][i / 2], weighting.kept_scale, bits >> i & 1, p[m][n][i], dp[m][n][i]);
                else
                    apply(of[m][i / 2], scale, p[m][n][i], dp[m][n][i]);
                if constexpr (!decltype(is_whole)::value)
                    if (column_of(n, i % 2) >= end[m][i / 2]) dp[m][n][i] = 0;
            }
        });
        first += KEYS;
        stage ^= 1;
    };
    while (first + KEYS <= whole) step(Flag<true>());
    while (first < keys) step(Flag<false>());
    store_rows(dq + task.matrix * shape.L * shape.E, sums, scales, task.first_row, shape.L, shape.E);
}
