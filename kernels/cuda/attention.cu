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
//                            registers, and are turned into p by an online softmax: with each step the largest
//                            score so far may grow, and what was summed under the old one is scaled down
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
// vectors.
#include "attention.cuh"
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

// How many of the `count` keys from `first` on a query sees.
__device__ __forceinline__ int keys_seen(const AttentionShape& shape, long long query, long long first, int count) {
    const long long end = shape.is_causal && query < shape.S ? query + 1 : shape.S;
    return min(end - first, (long long)count);
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

// The values of the 16 threads of a row combined, in each of them.
template <Operation OP>
__device__ __forceinline__ float across_row(float value) {
#pragma unroll
    for (int distance = SIDE / 2; distance > 0; distance /= 2)
        value = combine<OP>(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The online softmax of a thread's rows. Scores are multiplied by log2(e), as the units have powers of 2.
template <int R>
struct RunningSoftmax {
    float largest[R], sum[R];

    __device__ __forceinline__ RunningSoftmax() {
#pragma unroll
        for (int r = 0; r < R; r++) largest[r] = -INFINITY, sum[r] = 0;
    }

    // Turns scores into exponentials under the new largest score, and scales what was summed before.
    template <int C, int F>
    __device__ __forceinline__ void add(float (&scores)[R][C], float (&sums)[R][F]) {
#pragma unroll
        for (int r = 0; r < R; r++) {
            float m = largest[r];
#pragma unroll
            for (int c = 0; c < C; c++) m = combine<MAX>(m, scores[r][c]);
            m = across_row<MAX>(m);
            const float reference = m == -INFINITY ? 0.0f : m;  // no key seen so far: exp(-inf), not of NaN
            const float scaled = exp2f(largest[r] - reference);
            float total = 0;
#pragma unroll
            for (int c = 0; c < C; c++) total += scores[r][c] = exp2f(scores[r][c] - reference);
            sum[r] = sum[r] * scaled + across_row<SUM>(total);
            largest[r] = m;
#pragma unroll
            for (int f = 0; f < F; f++) sums[r][f] *= scaled;
        }
    }
};

// Grid: x = a block for each QUERIES queries of each matrix. Shared memory: tiles of q, of k and then v, and p.
template <int D, int QUERIES, int KEYS>
__global__ void __launch_bounds__(THREADS, 2)
attention_forward(float* out, float* lse, const float* q, const float* k, const float* v,
                  AttentionShape shape) {
    constexpr int R = QUERIES / SIDE, C = KEYS / SIDE, F = D / SIDE;
    extern __shared__ float4 shared[];
    float* const q_tile = reinterpret_cast<float*>(shared);
    float* const kv_tile = q_tile + QUERIES * (D + PAD);
    float* const p_tile = kv_tile + KEYS * (D + PAD);
    const Task task(shape.L, QUERIES);
    q = task.of(q, shape.q_stride, shape.heads);
    k = task.of(k, shape.k_stride, shape.heads);
    v = task.of(v, shape.v_stride, shape.heads);

    load_tile<QUERIES, D>(q_tile, q, shape.q_stride[2], task.first_row, shape.L, shape.E);
    RunningSoftmax<R> softmax;
    float sums[R][F] = {};
    const long long seen = task.first_row + QUERIES;  // by the last query, if is_causal
    const long long keys = shape.is_causal && seen < shape.S ? seen : shape.S;
    for (long long first = 0; first < keys; first += KEYS) {
        __syncthreads();  // the last step's v and p are done with
        load_tile<KEYS, D>(kv_tile, k, shape.k_stride[2], first, shape.S, shape.E);
        __syncthreads();
        float scores[R][C] = {};
        multiply_rows<D>(scores, q_tile, kv_tile);
#pragma unroll
        for (int r = 0; r < R; r++) {
            const int seen = keys_seen(shape, task.first_row + thread_row() + r * SIDE, first, KEYS);
#pragma unroll
            for (int c = 0; c < C; c++) {
                float& score = scores[r][c];
                score = thread_column() + c * SIDE < seen ? score * (shape.scale * LOG2_E) : -INFINITY;
            }
        }
        softmax.add(scores, sums);
        store_tile<KEYS>(p_tile, scores);
        __syncthreads();  // k is done with, p is there
        load_tile<KEYS, D>(kv_tile, v, shape.v_stride[2], first, shape.S, shape.V);
        __syncthreads();
        multiply<KEYS>(sums, p_tile, kv_tile);
    }
    store_rows(out + task.matrix * shape.L * shape.V, sums, softmax.sum, task.first_row, shape.L, shape.V);
    if (thread_column() == 0)
        for (int r = 0; r < R; r++) {
            const long long query = task.first_row + thread_row() + r * SIDE;
            const float m = softmax.largest[r];
            if (query < shape.L)
                lse[task.matrix * shape.L + query] = m == -INFINITY ? NAN : m / LOG2_E + log(softmax.sum[r]);
        }
}

// out[row] = sum(g * y) of (rows, V) matrices. Grid: x = a warp for each row, blockDim.y of them in a block.
template <typename T>
__global__ void attention_row_sums(float* out, const T* g, const T* y, long long rows, int V) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    float sum = 0;
    for (int i = threadIdx.x; i < V; i += WARP) sum += float(g[row * V + i]) * float(y[row * V + i]);
    sum = across_warp<SUM>(sum);
    if (threadIdx.x == 0) out[row] = sum;
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
            const int seen = exists ? keys_seen(shape, query, task.first_row, KEYS) : 0;
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
            const int seen = keys_seen(shape, task.first_row + thread_row() + r * SIDE, first, KEYS);
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
