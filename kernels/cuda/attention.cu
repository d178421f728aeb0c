// Scaled dot-product attention and its gradients, in float32, without the (L, S) matrix of scores in memory:
//
//   out = p v,  p = exp(scale q k^T - lse)          lse the logarithm of each row's sum of exponentials
//
// Shapes: q is (matrices, L, E), k (matrices, S, E), v (matrices, S, V), out (matrices, L, V), lse (matrices,
// L). The features of a row are neighbours; q, k and v may otherwise have any strides. D is E or V, whichever
// is larger, rounded up: the tiles hold zeros there, which add nothing. If is_causal, query i sees the keys 0
// to i. The idea is that of FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135).
//
//   attention_forward        a block walks along the keys for its QUERIES queries. The scores of a step are in
//                            registers, and are turned into p by an online softmax: with a step the largest
//                            score so far may grow, and what was summed under the old one is scaled down. Keys
//                            and values come by asynchronous copies, each while the others are at work
//   attention_row_sums       sum(g * out) of each query, for both gradients
//   attention_grad_keys      a block walks along the queries for its KEYS keys: the gradients of k and v
//   attention_grad_queries   a block walks along the keys for its QUERIES queries: the gradient of q
//
// The gradients compute p anew from lse: five products instead of the two of the forward pass, and seven, as
// scores and gradients of p are made in both kernels. A gradient is added up by one thread, in one order,
// without atomics: the same bits in every run.
//
// Arithmetic intensity: a block of 64 queries reads k and v once for 4 x 64 x S x D operations: 32 operations
// a byte, whatever L and S are; from the caches for the most part, as all blocks of a head read the same. All
// matrices of (rows, features) lie in shared memory as they do in global memory, with rows 4 floats longer:
// then 8 lanes that read 16 bytes each of 8 rows reach all 32 banks. For 64 multiply-adds a thread loads 8
// vectors, forward with 128 queries for 128 multiply-adds 12.
#include "attention_source.cuh"
#include "rows.cuh"
#include "vector.cuh"

constexpr int SIDE = 16;  // of the square of threads: thread (y, x) has rows y, y + 16, ... and columns x, ...
constexpr int THREADS = SIDE * SIDE;
constexpr int PAD = 4;

__device__ __forceinline__ int thread_row() { return threadIdx.x / SIDE; }
__device__ __forceinline__ int thread_column() { return threadIdx.x % SIDE; }

// Rows `first` to `first + ROWS` of x (rows, features) into a tile of D columns; zeros outside.
template <int ROWS, int D>
__device__ __forceinline__ void load_tile(float* tile, const float* x, long long stride, long long first,
                                          long long rows, int features) {
    constexpr int STEP = THREADS / (D / 4);  // a thread has every so many rows, of all of them the same columns
    const int row = threadIdx.x / (D / 4), column = threadIdx.x % (D / 4) * 4;
    const int left = min(rows - first, (long long)ROWS), columns = features - column;
    const bool vectors = features % 4 == 0 && stride % 4 == 0 && aligned<4>(x);
    x += (first + row) * stride + column;
    tile += row * (D + PAD) + column;
#pragma unroll
    for (int r = 0; r < ROWS; r += STEP) {
        const float* const from = x + r * stride;
        Vector<float> values = {};
        if (vectors) {
            if (row + r < left && columns > 0) values = load_vector(from);
        } else {
            for (int j = 0; j < 4; j++)
                if (row + r < left && j < columns) values.lane[j] = from[j];
        }
        store_vector(tile + r * (D + PAD), values);
    }
}

// sums[r][c] += a[row r] . b[row c]: rows of D features of two tiles.
template <int D, int R, int C>
__device__ __forceinline__ void multiply_rows(float (&sums)[R][C], const float* a, const float* b) {
    a += thread_row() * (D + PAD);
    b += thread_column() * (D + PAD);
#pragma unroll 1
    for (int d = 0; d < D; d += 4) {
        Vector<float> x[R], y[C];
#pragma unroll
        for (int r = 0; r < R; r++) x[r] = load_vector(a + r * SIDE * (D + PAD) + d);
#pragma unroll
        for (int c = 0; c < C; c++) y[c] = load_vector(b + c * SIDE * (D + PAD) + d);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int c = 0; c < C; c++) sums[r][c] += x[r].lane[i] * y[c].lane[i];
    }
}

// The features of a thread: neighbours by the vector, as many as one load brings.
template <int F>
constexpr int FEATURE_VECTOR = F < 4 ? F : 4;

template <int F>
__device__ __forceinline__ int feature(int f) {
    constexpr int WIDTH = FEATURE_VECTOR<F>;
    return f / WIDTH * WIDTH * SIDE + thread_column() * WIDTH + f % WIDTH;
}

// sums[r][f] += sum over j of p[row r][j] * x[j][feature f]: a tile of COLUMNS columns times one of features.
template <int COLUMNS, int R, int F>
__device__ __forceinline__ void multiply(float (&sums)[R][F], const float* p, const float* x) {
    constexpr int WIDTH = FEATURE_VECTOR<F>, D = F * SIDE;
    p += thread_row() * (COLUMNS + PAD);
#pragma unroll 1
    for (int j = 0; j < COLUMNS; j += 4) {
        Vector<float> weights[R];
#pragma unroll
        for (int r = 0; r < R; r++) weights[r] = load_vector(p + r * SIDE * (COLUMNS + PAD) + j);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int f = 0; f < F; f += WIDTH) {
                const auto values = load_vector<WIDTH>(x + (j + i) * (D + PAD) + feature<F>(f));
#pragma unroll
                for (int r = 0; r < R; r++)
#pragma unroll
                    for (int w = 0; w < WIDTH; w++)
                        sums[r][f + w] += weights[r].lane[i] * values.lane[w];
            }
    }
}

template <int COLUMNS, int R, int C>
__device__ __forceinline__ void store_tile(float* tile, const float (&values)[R][C]) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++)
            tile[(thread_row() + r * SIDE) * (COLUMNS + PAD) + thread_column() + c * SIDE] = values[r][c];
}

// Writes a thread's part of (rows, features), each of its rows divided by `divisor`.
template <int R, int F>
__device__ __forceinline__ void store_rows(float* out, const float (&values)[R][F], const float (&divisor)[R],
                                           long long first, long long rows, int features) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        const long long row = first + thread_row() + r * SIDE;
        if (row >= rows) continue;
#pragma unroll
        for (int f = 0; f < F; f++)
            if (feature<F>(f) < features) out[row * features + feature<F>(f)] = values[r][f] / divisor[r];
    }
}

// The largest value of the 16 threads of a row, but for NaN.
__device__ __forceinline__ float largest_of_row(float value) {
#pragma unroll
    for (int distance = SIDE / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

__device__ __forceinline__ float sum_of_row(float value) {
#pragma unroll
    for (int distance = SIDE / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

// The scores of keys that a query does not see become -infinity.
template <int R, int C>
__device__ __forceinline__ void hide(float (&scores)[R][C], const AttentionShape& shape, long long first_query,
                                     long long first_key) {
#pragma unroll
    for (int r = 0; r < R; r++) {
        const int seen = visible(shape, first_query + thread_row() + r * SIDE, first_key, C * SIDE);
#pragma unroll
        for (int c = 0; c < C; c++)
            if (thread_column() + c * SIDE >= seen) scores[r][c] = -INFINITY;
    }
}

template <int R, int C>
__device__ __forceinline__ void multiply_all(float (&values)[R][C], float factor) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++) values[r][c] *= factor;
}

// Grid: x = a block for each QUERIES queries of each matrix. Shared memory: tiles of q, k, v and p.
template <int D, int QUERIES, int KEYS>
__global__ void __launch_bounds__(THREADS, 2)
attention_forward(float* out, float* lse, const float* q, const float* k, const float* v, AttentionShape shape) {
    using Source = TileSource<float, D, THREADS>;
    constexpr int R = QUERIES / SIDE, C = KEYS / SIDE, F = D / SIDE, CHUNKS = D / 4 + 1;
    extern __shared__ float4 shared[];
    uint4 *const q_chunks = reinterpret_cast<uint4*>(shared), *const k_chunks = q_chunks + QUERIES * CHUNKS;
    uint4 *const v_chunks = k_chunks + KEYS * CHUNKS, *const p_chunks = v_chunks + KEYS * CHUNKS;
    const auto floats = [](uint4* chunks) { return reinterpret_cast<float*>(chunks); };
    const Task task(shape.L, QUERIES);
    Source of_q(task.of(q, shape.q_stride, shape.heads), shape.q_stride[2], shape.E, task.first_row);
    Source of_k(task.of(k, shape.k_stride, shape.heads), shape.k_stride[2], shape.E, 0);
    Source of_v(task.of(v, shape.v_stride, shape.heads), shape.v_stride[2], shape.V, 0);

    AsyncCopies copies;
    of_q.template start<QUERIES>(copies, q_chunks, shape.L - task.first_row);
    of_k.template start<KEYS>(copies, k_chunks, shape.S);
    copies.commit();
    RunningRow rows[R];
    float sums[R][F] = {};
    const float scale = shape.scale * LOG2_E;
    const bool keeps_order = keeps_order_of_scores(scale);
    const float left_scale = keeps_order ? scale : 1;
    const long long whole = keys_of(shape, task.first_row), keys = keys_of(shape, task.first_row + QUERIES - 1);
    for (long long first = 0; first < keys; first += KEYS) {
        copies.wait<0>();
        __syncthreads();  // k is there, and the last v and p are done with
        of_v.template start<KEYS>(copies, v_chunks, shape.S - first);
        copies.commit();
        float scores[R][C] = {};
        multiply_rows<D>(scores, floats(q_chunks), floats(k_chunks));
        if (!keeps_order || first + KEYS > whole) {
            if (!keeps_order) multiply_all(scores, scale);
            hide(scores, shape, task.first_row, first);
        }
        float factor[R];
        bool any_factor = false;
#pragma unroll
        for (int r = 0; r < R; r++) {
            float most = -INFINITY;
#pragma unroll
            for (int c = 0; c < C; c++) most = fmaxf(most, scores[r][c]);
            factor[r] = rows[r].begin(largest_of_row(most), left_scale);
            any_factor |= factor[r] != 1;
        }
        if (__any_sync(ALL_LANES, any_factor))
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int f = 0; f < F; f++) sums[r][f] *= factor[r];
#pragma unroll
        for (int r = 0; r < R; r++) {
#pragma unroll
            for (int c = 0; c < C; c++) scores[r][c] = rows[r].add(scores[r][c], left_scale);
            rows[r].end();
        }
        store_tile<KEYS>(floats(p_chunks), scores);
        copies.wait<0>();
        __syncthreads();  // p and v are there, and k is done with
        if (first + KEYS < keys) of_k.template start<KEYS>(copies, k_chunks, shape.S - first - KEYS);
        copies.commit();
        multiply<KEYS>(sums, floats(p_chunks), floats(v_chunks));
    }
    float total[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const long long query = task.first_row + thread_row() + r * SIDE;
        total[r] = sum_of_row(rows[r].sum);
        if (thread_column() == 0 && query < shape.L)
            lse[task.matrix * shape.L + query] = rows[r].log_sum(total[r]);
    }
    store_rows(out + task.matrix * shape.L * shape.V, sums, total, task.first_row, shape.L, shape.V);
}

// out[row] = sum(g * y) of (rows, V) matrices, where they are WIDE in vectors of 16 bytes. As many lanes as a row has
// vectors share it, each with the loads of ROWS_AT_ONCE rows on their way: a warp that reads rows of 128 bytes one
// after the other waits for most of its time.
//
// Grid: x = blocks of (lanes for a row, a power of two; rows / ROWS_AT_ONCE), of whole warps.
constexpr int ROWS_AT_ONCE = 4;

template <typename T, bool WIDE>
__global__ void attention_row_sums(float* out, const T* g, const T* y, long long rows, int V) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const long long first = (long long)blockIdx.x * blockDim.y * ROWS_AT_ONCE + threadIdx.y;
    float sums[ROWS_AT_ONCE] = {};
    for (int i = threadIdx.x * WIDTH; i < V; i += blockDim.x * WIDTH)
#pragma unroll
        for (int r = 0; r < ROWS_AT_ONCE; r++) {
            const long long row = min(first + r * blockDim.y, rows - 1);  // what is read twice is not stored
            const Vector<T, WIDTH> a = load_vector<WIDTH>(g + row * V + i), b = load_vector<WIDTH>(y + row * V + i);
#pragma unroll
            for (int k = 0; k < WIDTH; k++) sums[r] += float(a.lane[k]) * float(b.lane[k]);
        }
#pragma unroll
    for (int r = 0; r < ROWS_AT_ONCE; r++) {
        for (int distance = blockDim.x / 2; distance > 0; distance /= 2)
            sums[r] += __shfl_xor_sync(~0u, sums[r], distance);
        const long long row = first + r * blockDim.y;
        if (threadIdx.x == 0 && row < rows) out[row] = sums[r];
    }
}

// Grid: x = a block for each KEYS keys of each matrix. Shared memory: tiles of k, v, q, g and transposed p.
template <int D, int QUERIES, int KEYS>
__global__ void __launch_bounds__(THREADS, 2)
attention_grad_keys(float* dk, float* dv, const float* g, const float* q, const float* k, const float* v,
                    const float* lse, const float* row_sums, AttentionShape shape) {
    constexpr int R = KEYS / SIDE, C = QUERIES / SIDE, F = D / SIDE;
    extern __shared__ float4 shared[];
    float* const k_tile = reinterpret_cast<float*>(shared);
    float* const v_tile = k_tile + KEYS * (D + PAD);
    float* const q_tile = v_tile + KEYS * (D + PAD);
    float* const g_tile = q_tile + QUERIES * (D + PAD);
    float* const p_tile = g_tile + QUERIES * (D + PAD);
    const Task task(shape.S, KEYS);
    q = task.of(q, shape.q_stride, shape.heads);
    k = task.of(k, shape.k_stride, shape.heads);
    v = task.of(v, shape.v_stride, shape.heads);
    g += task.matrix * shape.L * shape.V;
    lse += task.matrix * shape.L;
    row_sums += task.matrix * shape.L;

    load_tile<KEYS, D>(k_tile, k, shape.k_stride[2], task.first_row, shape.S, shape.E);
    load_tile<KEYS, D>(v_tile, v, shape.v_stride[2], task.first_row, shape.S, shape.V);
    float k_sums[R][F] = {}, v_sums[R][F] = {}, ones[R];
#pragma unroll
    for (int r = 0; r < R; r++) ones[r] = 1;
    const long long begin = shape.is_causal ? task.first_row / QUERIES * QUERIES : 0;
    for (long long first = begin; first < shape.L; first += QUERIES) {
        __syncthreads();  // the last step's q and ds are done with
        load_tile<QUERIES, D>(q_tile, q, shape.q_stride[2], first, shape.L, shape.E);
        load_tile<QUERIES, D>(g_tile, g, shape.V, first, shape.L, shape.V);
        __syncthreads();
        float p[R][C] = {}, dp[R][C] = {};
        multiply_rows<D>(p, k_tile, q_tile);
        multiply_rows<D>(dp, v_tile, g_tile);
#pragma unroll
        for (int c = 0; c < C; c++) {
            const long long query = first + thread_column() + c * SIDE;
            const bool exists = query < shape.L;
            const float log_sum = exists ? lse[query] * LOG2_E : 0, inner = exists ? row_sums[query] : 0;
            const int seen = exists ? visible(shape, query, task.first_row, KEYS) : 0;
#pragma unroll
            for (int r = 0; r < R; r++) {
                const bool sees = thread_row() + r * SIDE < seen;
                p[r][c] = sees ? exp2f(p[r][c] * (shape.scale * LOG2_E) - log_sum) : 0;
                dp[r][c] = sees ? p[r][c] * (dp[r][c] - inner) * shape.scale : 0;
            }
        }
        store_tile<QUERIES>(p_tile, p);
        __syncthreads();
        multiply<QUERIES>(v_sums, p_tile, g_tile);
        __syncthreads();  // p is done with
        store_tile<QUERIES>(p_tile, dp);
        __syncthreads();
        multiply<QUERIES>(k_sums, p_tile, q_tile);
    }
    store_rows(dk + task.matrix * shape.S * shape.E, k_sums, ones, task.first_row, shape.S, shape.E);
    store_rows(dv + task.matrix * shape.S * shape.V, v_sums, ones, task.first_row, shape.S, shape.V);
}

// Grid: x = a block for each QUERIES queries of each matrix. Shared memory: tiles of q, g, k, v and ds.
template <int D, int QUERIES, int KEYS>
__global__ void __launch_bounds__(THREADS, 2)
attention_grad_queries(float* dq, const float* g, const float* q, const float* k, const float* v,
                       const float* lse, const float* row_sums, AttentionShape shape) {
    constexpr int R = QUERIES / SIDE, C = KEYS / SIDE, F = D / SIDE;
    extern __shared__ float4 shared[];
    float* const q_tile = reinterpret_cast<float*>(shared);
    float* const g_tile = q_tile + QUERIES * (D + PAD);
    float* const k_tile = g_tile + QUERIES * (D + PAD);
    float* const v_tile = k_tile + KEYS * (D + PAD);
    float* const ds_tile = v_tile + KEYS * (D + PAD);
    const Task task(shape.L, QUERIES);
    q = task.of(q, shape.q_stride, shape.heads);
    k = task.of(k, shape.k_stride, shape.heads);
    v = task.of(v, shape.v_stride, shape.heads);
    g += task.matrix * shape.L * shape.V;

    load_tile<QUERIES, D>(q_tile, q, shape.q_stride[2], task.first_row, shape.L, shape.E);
    load_tile<QUERIES, D>(g_tile, g, shape.V, task.first_row, shape.L, shape.V);
    float sums[R][F] = {}, log_sum[R], inner[R], ones[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const long long query = task.first_row + thread_row() + r * SIDE;
        log_sum[r] = query < shape.L ? lse[task.matrix * shape.L + query] * LOG2_E : 0;
        inner[r] = query < shape.L ? row_sums[task.matrix * shape.L + query] : 0;
        ones[r] = 1;
    }
    const long long seen = task.first_row + QUERIES;
    const long long keys = shape.is_causal && seen < shape.S ? seen : shape.S;
    for (long long first = 0; first < keys; first += KEYS) {
        __syncthreads();  // the last step's k and ds are done with
        load_tile<KEYS, D>(k_tile, k, shape.k_stride[2], first, shape.S, shape.E);
        load_tile<KEYS, D>(v_tile, v, shape.v_stride[2], first, shape.S, shape.V);
        __syncthreads();
        float p[R][C] = {}, dp[R][C] = {};
        multiply_rows<D>(p, q_tile, k_tile);
        multiply_rows<D>(dp, g_tile, v_tile);
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int seen = visible(shape, task.first_row + thread_row() + r * SIDE, first, KEYS);
#pragma unroll
            for (int c = 0; c < C; c++) {
                const float probability = exp2f(p[r][c] * (shape.scale * LOG2_E) - log_sum[r]);
                const bool sees = thread_column() + c * SIDE < seen;
                dp[r][c] = sees ? probability * (dp[r][c] - inner[r]) * shape.scale : 0;
            }
        }
        store_tile<KEYS>(ds_tile, dp);
        __syncthreads();
        multiply<KEYS>(sums, ds_tile, k_tile);
    }
    store_rows(dq + task.matrix * shape.L * shape.E, sums, ones, task.first_row, shape.L, shape.E);
}
