// Scaled dot-product attention and its gradients, in float32, without the (L, S) matrix of scores in memory:
//
//   out = p v,  p = exp(scale q k^T - lse)          lse the logarithm of each row's sum of exponentials
//
// Shapes: q is (matrices, L, E), k (matrices, S, E), v (matrices, S, V), out and g (matrices, L, V), lse (matrices,
// L). The features of a row are neighbours; q, k, v and g may otherwise have any strides of whole chunks of 16 bytes. D
// is E or V, whichever is larger, rounded up: the tiles hold zeros there, which add nothing. If is_causal, query i sees
// the keys 0 to i. The idea is that of FlashAttention (Dao et al. 2022, https://arxiv.org/abs/2205.14135).
//
//   attention_forward        a block walks along the keys for its queries. The scores of a step are in registers,
//                            and are turned into p by an online softmax: with a step the largest score so far
//                            may grow, and what was summed under the old one is scaled down
//   attention_row_sums       sum(g * out) of each query, for both gradients
//   attention_grad_keys      a block walks along the queries for its keys: the gradients of k and v
//   attention_grad_queries   a block walks along the keys for its queries: the gradient of q
//
// The gradients compute p anew from lse: five products instead of the two of the forward pass, and seven, as
// scores and gradients of p are made in both kernels. A gradient is added up by one thread, in one order,
// without atomics: the same bits in every run.
//
// A block has ROWS rows of its own, each of its warps some of them, whole: what a product makes of them and the next
// takes up goes from lane to lane, and warps meet only where tiles change. A step is COLUMNS rows of the other side.
// Its two tiles come by asynchronous copies, each while the product that needs the other is at work.
//
// If WEIGHTED, there are a mask, or dropout, or both (attention_weighting.cuh); else they cost nothing.
//
// Arithmetic intensity: a block of 64 queries reads k and v once for 4 x 64 x S x D operations: 32 operations
// a byte, whatever L and S are; from the caches for the most part, as all blocks of a head read the same. From
// shared memory a thread loads 12 vectors for 128 multiply-adds of scores, and 16 for 256 of a product with p.
#include "attention_source.cuh"
#include "attention_weighting.cuh"
#include "rows.cuh"
#include "warp_tile.cuh"

constexpr int PAD = 4;
constexpr int PART = 32;  // columns that go from lane to lane at a time
constexpr int PART_PITCH = PART + PAD;
constexpr int WARPS_AT_A_TIME = 8;  // of a multiprocessor: registers for 255 of each thread

// Which part of its block's matrices a thread has. A warp's lanes stand LANES_Y x LANES_X, with ROWS_OF_LANE rows each:
// four neighbours, and again below those of all lanes; of scores, every LANES_X-th column; of D features, neighbours by
// four. Lanes 2 i and 2 i + 1 have the same columns, lanes 2 apart the same rows: only then are vectors that several
// lanes load together delivered in 2 turns of shared memory, not in 4.
//
// All matrices of (rows, features) lie in shared memory as they do in global memory, with rows PAD floats
// longer: then 8 lanes that read 16 bytes each of 8 rows reach all 32 banks, and so do 2 that store 64 bytes in
// rows 4 apart.
template <int D, int ROWS, int WARPS>
struct AttentionPatch {
    static constexpr int LANES_X = D < 128 ? 8 : 16, LANES_Y = WARP / LANES_X;
    static constexpr int ROWS_OF_BLOCK = ROWS, ROWS_OF_WARP = ROWS / WARPS, ROWS_OF_LANE = ROWS_OF_WARP / LANES_Y;
    static constexpr int FEATURES = D / LANES_X, COLUMNS_OF_PART = PART / LANES_X;
    static_assert(ROWS_OF_LANE % 4 == 0 && FEATURES % 4 == 0, "a lane has vectors");

    int warp_row, first, x;  // the first row of the warp, of the thread; which of the lanes side by side it is

    __device__ __forceinline__ AttentionPatch() {
        const int lane = threadIdx.x % WARP;
        warp_row = threadIdx.x / WARP * ROWS_OF_WARP;
        first = warp_row + (lane % 2 + lane / (2 * LANES_X) * 2) * 4;
        x = lane / 2 % LANES_X;
    }

    static constexpr __device__ __forceinline__ int below(int r) { return r / 4 * 4 * LANES_Y + r % 4; }
    __device__ __forceinline__ int row(int r) const { return first + below(r); }
    __device__ __forceinline__ int last_row() const { return warp_row + ROWS_OF_WARP - 1; }  // of the warp
    __device__ __forceinline__ int column(int c) const { return x + c * LANES_X; }
    __device__ __forceinline__ int feature(int f) const { return x * 4 + f * LANES_X; }  // of every fourth
};

// sums[r][c] += a[row r] . b[column c]: rows of D features of two tiles.
template <int D, int UNROLL = 2, int R, int C, typename Patch>
__device__ __forceinline__ void multiply_rows(float (&sums)[R][C], const float* a, const float* b, const Patch& patch) {
    a += patch.first * (D + PAD);
    b += patch.x * (D + PAD);
#pragma unroll UNROLL
    for (int d = 0; d < D; d += 4) {
        Vector<float> x[R], y[C];
#pragma unroll
        for (int r = 0; r < R; r++) x[r] = load_vector(a + Patch::below(r) * (D + PAD) + d);
#pragma unroll
        for (int c = 0; c < C; c++) y[c] = load_vector(b + c * Patch::LANES_X * (D + PAD) + d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float of_a[R], of_b[C];
#pragma unroll
            for (int r = 0; r < R; r++) of_a[r] = x[r].lane[i];
#pragma unroll
            for (int c = 0; c < C; c++) of_b[c] = y[c].lane[i];
            add_outer_product(sums, of_a, of_b);
        }
    }
}

// sums[r][f] += sum over columns j of p[row r][j] * x[j][feature f], of a tile x of D features. A warp's p goes through
// `shared`, its rows of PART_PITCH floats for the block's rows, PART columns at a time: those of a lane side by side.
template <int D, int R, int C, int F, typename Patch>
__device__ __forceinline__ void multiply(float (&sums)[R][F], const float (&p)[R][C], float* shared, const float* x,
                                         const Patch& patch) {
    constexpr int WIDTH = Patch::COLUMNS_OF_PART, PITCH = D + PAD;
    static_assert(C % WIDTH == 0, "whole parts");
    float* const rows = shared + patch.first * PART_PITCH;
    x += patch.feature(0);
#pragma unroll
    for (int part = 0; part < C; part += WIDTH) {
        __syncwarp();  // what stood there has been read
#pragma unroll
        for (int r = 0; r < R; r++) {
            Vector<float, WIDTH> columns;
#pragma unroll
            for (int c = 0; c < WIDTH; c++) columns.lane[c] = p[r][part + c];
            store_vector(rows + Patch::below(r) * PART_PITCH + patch.x * WIDTH, columns);
        }
        __syncwarp();
#pragma unroll 2
        for (int j = 0; j < PART; j += 4) {
            Vector<float> weights[R];
#pragma unroll
            for (int r = 0; r < R; r++) weights[r] = load_vector(rows + Patch::below(r) * PART_PITCH + j);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = (part + i % WIDTH) * Patch::LANES_X + j / WIDTH + i / WIDTH;
                float of_p[R], of_x[F];
#pragma unroll
                for (int r = 0; r < R; r++) of_p[r] = weights[r].lane[i];
                read_fragment<Patch::LANES_X>(of_x, x + column * PITCH);
                add_outer_product(sums, of_p, of_x);
            }
        }
    }
}

// Writes a thread's part of (rows, features), whose rows the block has from `first` on.
template <int R, int F, typename Patch>
__device__ __forceinline__ void store_rows(float* out, const float (&values)[R][F], long long first, long long rows,
                                           int features, const Patch& patch) {
    const bool vectors = features % 4 == 0 && aligned<4>(out);
#pragma unroll
    for (int r = 0; r < R; r++) {
        const long long row = first + patch.row(r);
        if (row >= rows) continue;
#pragma unroll
        for (int f = 0; f < F; f += 4) {
            const int left = features - patch.feature(f);
            float* const to = out + row * features + patch.feature(f);
            if (vectors) {
                if (left > 0) store_results(to, piece(values, r, f));
            } else {
#pragma unroll
                for (int w = 0; w < 4; w++)
                    if (w < left) to[w] = values[r][f + w];
            }
        }
    }
}

// The largest value of the lanes that share a row, but for NaN.
template <typename Patch>
__device__ __forceinline__ float largest_of_row(float value) {
#pragma unroll
    for (int distance = Patch::LANES_X; distance > 1; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

template <typename Patch>
__device__ __forceinline__ float sum_of_row(float value) {
#pragma unroll
    for (int distance = Patch::LANES_X; distance > 1; distance /= 2)
        value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

// Which of a step's columns the rows see, where they are the queries; or are seen by, where they are the keys. Both are
// counted from the first one of the block and of the step.
template <typename Patch, int COLUMNS, bool ROWS_ARE_QUERIES>
struct Sight {
    int columns, most;  // how many columns there are; by how much a key may be ahead of the query

    __device__ __forceinline__ Sight(bool is_causal, long long first_row, long long first_column, long long columns)
        : columns(at_most(columns - first_column, COLUMNS)), most(NO_LIMIT) {
        if (is_causal) most = at_most(ROWS_ARE_QUERIES ? first_row - first_column : first_column - first_row, NO_LIMIT);
    }

    __device__ __forceinline__ bool operator()(int row, int column) const {
        return column < columns && ahead(row, column) <= most;
    }
    __device__ __forceinline__ bool any_of(const Patch& patch) const {
        return (ROWS_ARE_QUERIES ? ahead(patch.last_row(), 0) : ahead(patch.warp_row, COLUMNS - 1)) <= most;
    }
    __device__ __forceinline__ bool all_of(const Patch& patch) const {
        const int largest = ROWS_ARE_QUERIES ? ahead(patch.warp_row, COLUMNS - 1) : ahead(patch.last_row(), 0);
        return columns == COLUMNS && largest <= most;
    }

  private:
    static constexpr int NO_LIMIT = Patch::ROWS_OF_BLOCK + COLUMNS;

    static __device__ __forceinline__ int ahead(int row, int column) {
        return ROWS_ARE_QUERIES ? column - row : row - column;
    }
};

// What a row and a column have that do not see each other becomes `hidden`.
template <int R, int C, typename Sight, typename Patch>
__device__ __forceinline__ void hide(float (&values)[R][C], float hidden, const Sight& sight, const Patch& patch) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++)
            if (!sight(patch.row(r), patch.column(c))) values[r][c] = hidden;
}

// Scores, in powers of 2, as the mask leaves them.
template <bool ROWS_ARE_QUERIES, int R, int C, typename Patch, typename Mask>
__device__ __forceinline__ void mask(float (&scores)[R][C], const Weighting<Mask>& weighting, long long first_row,
                                     long long first_column, const Patch& patch) {
    if (!weighting.has_mask) return;
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++) {
            const long long row = first_row + patch.row(r), column = first_column + patch.column(c);
            scores[r][c] = weighting.masked(scores[r][c], ROWS_ARE_QUERIES ? row : column,
                                            ROWS_ARE_QUERIES ? column : row);
        }
}

// Calls use(r, c, whether it is kept) for each of a thread's weights. A thread has four rows side by side. Where they
// are keys, these are one block of random words; where they are queries, four lanes with columns side by side have
// four blocks in common, and compute one each.
template <bool ROWS_ARE_QUERIES, int R, int C, typename Patch, typename Mask, typename Use>
__device__ __forceinline__ void each_weight(const Weighting<Mask>& weighting, long long first_row,
                                            long long first_column, const Patch& patch, Use&& use) {
    const int lane = threadIdx.x % WARP, among = patch.x % 4;
#pragma unroll
    for (int r = 0; r < R; r += 4)
#pragma unroll
        for (int c = 0; c < C; c++) {
            const long long row = first_row + patch.row(r), column = first_column + patch.column(c);
            const unsigned own = ROWS_ARE_QUERIES ? weighting.kept(row + among, column) : weighting.kept(column, row);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const unsigned bits = ROWS_ARE_QUERIES ? __shfl_sync(ALL_LANES, own, (lane & ~6) | i << 1) : own;
                use(r + i, c, bool(bits >> (ROWS_ARE_QUERIES ? among : i) & 1));
            }
        }
}

template <int R, int C>
__device__ __forceinline__ void multiply_all(float (&values)[R][C], float factor) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int c = 0; c < C; c++) values[r][c] *= factor;
}

// Starts the copies of a source's next rows to a tile, of which `left` are there.
template <int ROWS, typename Source>
__device__ __forceinline__ void start(Source& source, AsyncCopies& copies, float* tile, long long left) {
    if (left >= ROWS)  // then no copy has to ask
        source.template start<ROWS, true>(copies, tile, left);
    else
        source.template start<ROWS>(copies, tile, left);
}

// Waits for what has been started, of all threads; and for all that they read before.
__device__ __forceinline__ void arrive(AsyncCopies& copies) {
    copies.commit();
    copies.wait<0>();
    __syncthreads();
}

// Grid: x = a block for each ROWS queries of each matrix. Shared memory: tiles of q, k and v, and a part of p.
template <int D, int ROWS, int COLUMNS, int WARPS, typename Mask, bool WEIGHTED>
__global__ void __launch_bounds__(WARPS* WARP, WARPS_AT_A_TIME / WARPS)
attention_forward(float* out, float* lse, const float* q, const float* k, const float* v, AttentionShape shape,
                  const Mask* mask_of_scores, const unsigned long long* live, AttentionWeighting given) {
    using Patch = AttentionPatch<D, ROWS, WARPS>;
    using Source = TileSource<float, D, WARPS * WARP>;
    constexpr int R = Patch::ROWS_OF_LANE, C = COLUMNS / Patch::LANES_X, F = Patch::FEATURES, PITCH = D + PAD;
    extern __shared__ float4 shared[];
    float *const q_tile = reinterpret_cast<float*>(shared), *const k_tile = q_tile + ROWS * PITCH;
    float *const v_tile = k_tile + COLUMNS * PITCH, *const p_part = v_tile + COLUMNS * PITCH;
    const Patch patch;
    const Task task(shape, shape.L, ROWS);
    const Weighting<Mask> weighting(mask_of_scores, live, given, shape, task);
    const long long keys = keys_of(shape, task.first_row + ROWS - 1);
    const bool has_rows = task.first_row + patch.warp_row < shape.L;
    Source of_q(task.of(q, shape.q_stride, shape.heads), shape.q_stride[2], shape.E, task.first_row);
    Source of_k(task.of(k, shape.k_stride, shape.heads), shape.k_stride[2], shape.E, 0);
    Source of_v(task.of(v, shape.v_stride, shape.heads), shape.v_stride[2], shape.V, 0);

    AsyncCopies copies;
    start<ROWS>(of_q, copies, q_tile, shape.L - task.first_row);
    start<COLUMNS>(of_k, copies, k_tile, shape.S);
    arrive(copies);
    start<COLUMNS>(of_v, copies, v_tile, shape.S);
    RunningRow rows[R];
    float sums[R][F] = {};
    const float scale = shape.scale * LOG2_E;
    const bool keeps_order = !WEIGHTED && keeps_order_of_scores(scale);
    const float left_scale = keeps_order ? scale : 1;
    for (long long first = 0; first < keys; first += COLUMNS) {
        float scores[R][C] = {};
        const Sight<Patch, COLUMNS, true> sight(shape.is_causal, task.first_row, first, shape.S);
        const bool sees = has_rows && sight.any_of(patch);
        if (sees) {
            multiply_rows<D>(scores, q_tile, k_tile, patch);
            if (!keeps_order) multiply_all(scores, scale);
            if constexpr (WEIGHTED) mask<true>(scores, weighting, task.first_row, first, patch);
            if (!sight.all_of(patch)) hide(scores, -INFINITY, sight, patch);
            float factor[R];
            bool any_factor = false;
#pragma unroll
            for (int r = 0; r < R; r++) {
                float most = -INFINITY;
#pragma unroll
                for (int c = 0; c < C; c++) most = fmaxf(most, scores[r][c]);
                factor[r] = rows[r].begin(largest_of_row<Patch>(most), left_scale);
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
            if constexpr (WEIGHTED)
                if (weighting.drops)
                    each_weight<true, R, C>(weighting, task.first_row, first, patch, [&](int r, int c, bool kept) {
                        if (!kept) scores[r][c] = 0;
                    });
        }
        const long long next = first + COLUMNS;
        arrive(copies);  // v is there, and k is done with
        if (next < keys) start<COLUMNS>(of_k, copies, k_tile, shape.S - next);
        if (sees) multiply<D>(sums, scores, p_part, v_tile, patch);
        arrive(copies);  // the next k is there, and v is done with
        if (next < keys) start<COLUMNS>(of_v, copies, v_tile, shape.S - next);
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
        float total = sum_of_row<Patch>(rows[r].sum);
        if constexpr (WEIGHTED) total = weighting.total(rows[r], total);
        const long long query = task.first_row + patch.row(r);
        if (patch.x == 0 && query < shape.L)
            lse[task.matrix * shape.L + query] =
                WEIGHTED ? weighting.log_sum(rows[r], total) : rows[r].log_sum(total);
#pragma unroll
        for (int f = 0; f < F; f++) {
            if constexpr (WEIGHTED)
                sums[r][f] *= weighting.factor(total);
            else
                sums[r][f] /= total;
        }
    }
    store_rows(out + task.matrix * shape.L * shape.V, sums, task.first_row, shape.L, shape.V, patch);
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

// Grid: x = a block for each ROWS keys of each matrix. Shared memory: tiles of k, v, q and g, and a part of p.
template <int D, int ROWS, int COLUMNS, int WARPS, typename Mask, bool WEIGHTED>
__global__ void __launch_bounds__(WARPS* WARP, WARPS_AT_A_TIME / WARPS)
attention_grad_keys(float* dk, float* dv, const float* g, const float* q, const float* k, const float* v,
                    const float* lse, const float* row_sums, long long g_stride, AttentionShape shape,
                    const Mask* mask_of_scores, const unsigned long long* live, AttentionWeighting given) {
    using Patch = AttentionPatch<D, ROWS, WARPS>;
    using Source = TileSource<float, D, WARPS * WARP>;
    constexpr int R = Patch::ROWS_OF_LANE, C = COLUMNS / Patch::LANES_X, F = Patch::FEATURES, PITCH = D + PAD;
    extern __shared__ float4 shared[];
    float *const k_tile = reinterpret_cast<float*>(shared), *const v_tile = k_tile + ROWS * PITCH;
    float *const q_tile = v_tile + ROWS * PITCH, *const g_tile = q_tile + COLUMNS * PITCH;
    float* const p_part = g_tile + COLUMNS * PITCH;
    const Patch patch;
    const Task task(shape, shape.S, ROWS, true);
    const Weighting<Mask> weighting(mask_of_scores, live, given, shape, task);
    const long long begin = shape.is_causal ? task.first_row / COLUMNS * COLUMNS : 0;
    const bool has_rows = task.first_row + patch.warp_row < shape.S;
    Source of_k(task.of(k, shape.k_stride, shape.heads), shape.k_stride[2], shape.E, task.first_row);
    Source of_v(task.of(v, shape.v_stride, shape.heads), shape.v_stride[2], shape.V, task.first_row);
    Source of_q(task.of(q, shape.q_stride, shape.heads), shape.q_stride[2], shape.E, begin);
    Source of_g(g + task.matrix * shape.L * g_stride, g_stride, shape.V, begin);
    lse += task.matrix * shape.L;
    row_sums += task.matrix * shape.L;

    AsyncCopies copies;
    start<ROWS>(of_k, copies, k_tile, shape.S - task.first_row);
    start<ROWS>(of_v, copies, v_tile, shape.S - task.first_row);
    start<COLUMNS>(of_q, copies, q_tile, shape.L - begin);
    arrive(copies);
    start<COLUMNS>(of_g, copies, g_tile, shape.L - begin);
    float k_sums[R][F] = {}, v_sums[R][F] = {};
    const float scale = shape.scale * LOG2_E;
    for (long long first = begin; first < shape.L; first += COLUMNS) {
        float p[R][C] = {}, ds[R][C], log_sum[C], inner[C];
        const Sight<Patch, COLUMNS, false> sight(shape.is_causal, task.first_row, first, shape.L);
        const bool seen = has_rows && sight.any_of(patch), edge = !sight.all_of(patch);
#pragma unroll
        for (int c = 0; c < C; c++) {
            const bool exists = patch.column(c) < sight.columns;
            log_sum[c] = exists ? lse[first + patch.column(c)] * LOG2_E : 0;
            inner[c] = exists ? row_sums[first + patch.column(c)] : 0;
        }
        if (seen) {
            multiply_rows<D>(p, k_tile, q_tile, patch);
            if constexpr (WEIGHTED) {
                multiply_all(p, scale);
                mask<false>(p, weighting, task.first_row, first, patch);
            }
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int c = 0; c < C; c++) p[r][c] = exp2f(p[r][c] * (WEIGHTED ? 1 : scale) - log_sum[c]);
            if (edge) hide(p, 0, sight, patch);
        }
        arrive(copies);  // g is there
        if (seen) {
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int c = 0; c < C; c++) ds[r][c] = WEIGHTED ? 0 : -inner[c];
            multiply_rows<D, 1>(ds, v_tile, g_tile, patch);
            if constexpr (WEIGHTED) {
                each_weight<false, R, C>(weighting, task.first_row, first, patch, [&](int r, int c, bool kept) {
                    ds[r][c] = p[r][c] * ((kept ? ds[r][c] * weighting.kept_scale : 0) - inner[c]);
                    if (!kept) p[r][c] = 0;
                });
            } else {
#pragma unroll
                for (int r = 0; r < R; r++)
#pragma unroll
                    for (int c = 0; c < C; c++) ds[r][c] *= p[r][c];
            }
            if (edge) hide(ds, 0, sight, patch);
            multiply<D>(k_sums, ds, p_part, q_tile, patch);
        }
        const long long next = first + COLUMNS;
        __syncthreads();  // q is done with
        if (next < shape.L) start<COLUMNS>(of_q, copies, q_tile, shape.L - next);
        if (seen) multiply<D>(v_sums, p, p_part, g_tile, patch);
        arrive(copies);  // the next q is there, and g is done with
        if (next < shape.L) start<COLUMNS>(of_g, copies, g_tile, shape.L - next);
    }
    multiply_all(k_sums, shape.scale);
    if constexpr (WEIGHTED) multiply_all(v_sums, weighting.kept_scale);
    store_rows(dk + task.matrix * shape.S * shape.E, k_sums, task.first_row, shape.S, shape.E, patch);
    store_rows(dv + task.matrix * shape.S * shape.V, v_sums, task.first_row, shape.S, shape.V, patch);
}

// Grid: x = a block for each ROWS queries of each matrix. Shared memory: tiles of q, g, k and v, and a part of ds.
template <int D, int ROWS, int COLUMNS, int WARPS, typename Mask, bool WEIGHTED>
__global__ void __launch_bounds__(WARPS* WARP, WARPS_AT_A_TIME / WARPS)
attention_grad_queries(float* dq, const float* g, const float* q, const float* k, const float* v,
                       const float* lse, const float* row_sums, long long g_stride, AttentionShape shape,
                       const Mask* mask_of_scores, const unsigned long long* live, AttentionWeighting given) {
    using Patch = AttentionPatch<D, ROWS, WARPS>;
    using Source = TileSource<float, D, WARPS * WARP>;
    constexpr int R = Patch::ROWS_OF_LANE, C = COLUMNS / Patch::LANES_X, F = Patch::FEATURES, PITCH = D + PAD;
    extern __shared__ float4 shared[];
    float *const q_tile = reinterpret_cast<float*>(shared), *const g_tile = q_tile + ROWS * PITCH;
    float *const k_tile = g_tile + ROWS * PITCH, *const v_tile = k_tile + COLUMNS * PITCH;
    float* const ds_part = v_tile + COLUMNS * PITCH;
    const Patch patch;
    const Task task(shape, shape.L, ROWS);
    const Weighting<Mask> weighting(mask_of_scores, live, given, shape, task);
    const long long keys = keys_of(shape, task.first_row + ROWS - 1);
    const bool has_rows = task.first_row + patch.warp_row < shape.L;
    Source of_q(task.of(q, shape.q_stride, shape.heads), shape.q_stride[2], shape.E, task.first_row);
    Source of_g(g + task.matrix * shape.L * g_stride, g_stride, shape.V, task.first_row);
    Source of_k(task.of(k, shape.k_stride, shape.heads), shape.k_stride[2], shape.E, 0);
    Source of_v(task.of(v, shape.v_stride, shape.heads), shape.v_stride[2], shape.V, 0);

    AsyncCopies copies;
    start<ROWS>(of_q, copies, q_tile, shape.L - task.first_row);
    start<ROWS>(of_g, copies, g_tile, shape.L - task.first_row);
    start<COLUMNS>(of_v, copies, v_tile, shape.S);
    arrive(copies);
    start<COLUMNS>(of_k, copies, k_tile, shape.S);
    float sums[R][F] = {}, log_sum[R], inner[R];
#pragma unroll
    for (int r = 0; r < R; r++) {
        const long long query = task.first_row + patch.row(r);
        log_sum[r] = query < shape.L ? lse[task.matrix * shape.L + query] * LOG2_E : 0;
        inner[r] = query < shape.L ? row_sums[task.matrix * shape.L + query] : 0;
    }
    const float scale = shape.scale * LOG2_E;
    for (long long first = 0; first < keys; first += COLUMNS) {
        float p[R][C] = {}, ds[R][C];
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int c = 0; c < C; c++) ds[r][c] = WEIGHTED ? 0 : -inner[r];
        const Sight<Patch, COLUMNS, true> sight(shape.is_causal, task.first_row, first, shape.S);
        const bool sees = has_rows && sight.any_of(patch);
        if (sees) multiply_rows<D>(ds, g_tile, v_tile, patch);
        const long long next = first + COLUMNS;
        arrive(copies);  // k is there, and v is done with
        if (next < keys) start<COLUMNS>(of_v, copies, v_tile, shape.S - next);
        if (sees) {
            multiply_rows<D>(p, q_tile, k_tile, patch);
            if constexpr (WEIGHTED) {
                multiply_all(p, scale);
                mask<true>(p, weighting, task.first_row, first, patch);
                each_weight<true, R, C>(weighting, task.first_row, first, patch, [&](int r, int c, bool kept) {
                    ds[r][c] = (kept ? ds[r][c] * weighting.kept_scale : 0) - inner[r];
                });
            }
#pragma unroll
            for (int r = 0; r < R; r++)
#pragma unroll
                for (int c = 0; c < C; c++) ds[r][c] *= exp2f(p[r][c] * (WEIGHTED ? 1 : scale) - log_sum[r]);
            if (!sight.all_of(patch)) hide(ds, 0, sight, patch);
            multiply<D>(sums, ds, ds_part, k_tile, patch);
        }
        arrive(copies);  // the next v is there, and k is done with
        if (next < keys) start<COLUMNS>(of_k, copies, k_tile, shape.S - next);
    }
    multiply_all(sums, shape.scale);
    store_rows(dq + task.matrix * shape.L * shape.E, sums, task.first_row, shape.L, shape.E, patch);
}
