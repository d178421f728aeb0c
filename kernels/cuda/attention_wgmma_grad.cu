// The gradients of scaled dot-product attention in 16 bits on the tensor cores of compute capability 9.0: the rung
// after attention_tensor_core.cu, with its formulas, shapes, roundings and division of the work.
//
//   attention_wgmma_grad_keys     a block walks along the queries for its 128 keys: the gradients of k and v
//   attention_wgmma_grad_queries  along the keys for its 128 queries: the gradient of q
//
// No sum is shared by blocks, which makes the scores a second time, and the same bits in every run.
//
// A block has two tiles of its own, of which each of two consumers has 64 rows, and one warpgroup, the producer, brings
// pairs of tiles of 64 others. A consumer's products (attention_wgmma.cuh) are, with x and y its own, a and b the
// others',
//
//   scores = x a^T, and the gradient of the probabilities y b^T
//   keys:    grad_v += p^T b, grad_k += ds^T a     queries:    grad_q += ds a
//
// p and the gradient ds of the scores go from the sums of the first to the left factor of the last without leaving
// their registers. The last product of one step is at work while the first of the next are started. The two consumers
// do not wait for each other: while one has its exponentials, the tensor cores have the other's products.
//
// Bounds, reckoned for a multiprocessor and 64 others: the tensor cores take 4 D cycles for 2 x 128 x 64 x D
// operations, 16 D for the four products of the keys, 12 D for the three of the queries; 128 x 64 exponentials take 512
// cycles. From shared memory the first two products take (64 + 64) x 32 bytes for the 32 cycles of a wgmma: all that it
// can bring; the others, with a factor in registers, half of that. A step of both consumers, where all queries see all
// keys, is compiled to 520 instructions of a scheduler for the keys and D = 64, 612 for D = 128; 420 and 478 for the
// queries.
//
// Registers of a consumer for D = 128: 128 for the two sums of the keys, 32 each for scores and gradient, 16 each for
// the two as factors. Shared memory: four pairs of tiles, and the own two: 192 KB for D = 128.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention_wgmma.cuh"

constexpr int OWN = 128, OTHERS = 64;  // rows of tiles
constexpr int CONSUMERS = OWN / BOX_ROWS, THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int STAGES = 4;

template <int D>
constexpr int OWN_BOXES = OWN / BOX_ROWS * ROW_BOXES<D>;
template <int D>
constexpr int PAIR_BOXES = 2 * ROW_BOXES<D>;

struct Shared {
    OfQuery queries[STAGES][OTHERS];  // of the tiles of the keys' gradients
    Barrier own;
    Ring<STAGES> ring;
};

// Which of the others the block walks along.
struct Walk {
    int first, end;

    // Calls step(others' first row, Flag) for each tile; the flag is true of those from `whole` to `whole_end`. Three
    // loops, for in one the compiler makes of what only the others need selections in every step.
    template <typename Step>
    __device__ __forceinline__ void each(int whole, int whole_end, Step&& step) const {
        int at = first;
        for (; at < end && at < whole; at += OTHERS) step(at, Flag<false>());
        for (; at + OTHERS <= whole_end; at += OTHERS) step(at, Flag<true>());
        for (; at < end; at += OTHERS) step(at, Flag<false>());
    }
};

// Has the copy engine bring the own tiles, and pairs of others.
template <int D>
__device__ __forceinline__ void produce(const Matrix& x, const Matrix& y, const Matrix& a, const Matrix& b, int own_row,
                                        const Walk& walk, Box* boxes, Shared& shared) {
    shared.own.arrive_and_expect(2 * OWN_BOXES<D> * BOX_BYTES);
    x.load<D, OWN>(boxes, own_row, ROW_BOXES<D>, 1, shared.own);
    y.load<D, OWN>(boxes + OWN_BOXES<D>, own_row, ROW_BOXES<D>, 1, shared.own);
    Turn<STAGES> turn;
    for (int first = walk.first; first < walk.end; first += OTHERS) {
        shared.ring.empty[turn.stage].wait(turn.parity ^ 1);  // at first, for nothing
        Barrier& full = shared.ring.full[turn.stage];
        full.arrive_and_expect(PAIR_BOXES<D> * BOX_BYTES);
        Box* const pair = boxes + 2 * OWN_BOXES<D> + turn.stage * PAIR_BOXES<D>;
        a.load<D, OTHERS>(pair, first, 0, 1, full);
        b.load<D, OTHERS>(pair + ROW_BOXES<D>, first, 0, 1, full);
        turn.next();
    }
}

// Brings the numbers of the queries that the keys' block walks along, by one warp.
__device__ __forceinline__ void produce_numbers(const float* lse, const float* row_sums, long long queries,
                                                const Walk& walk, Shared& shared) {
    Turn<STAGES> turn;
    for (int first = walk.first; first < walk.end; first += OTHERS) {
        shared.ring.empty[turn.stage].wait(turn.parity ^ 1);
#pragma unroll
        for (int i = threadIdx.x % WARP; i < OTHERS; i += WARP)
            shared.queries[turn.stage][i] = of_query(lse, row_sums, first + i, queries);
        shared.ring.full[turn.stage].arrive_at(0);
        turn.next();
    }
}

// What a consumer has: the descriptors of its own tiles, and where it is in the ring.
template <int D>
struct Consumer {
    unsigned long long x, y;
    Box* pairs;
    Shared& shared;
    Turn<STAGES> turn;
    int before = 0;  // the stage of the step before

    __device__ __forceinline__ Consumer(int number, Box* boxes, Shared& shared)
        : x(describe_operand(shared_address(boxes + number * ROW_BOXES<D>))), y(x + OWN_BOXES<D> * NEXT_BOX),
          pairs(boxes + 2 * OWN_BOXES<D>), shared(shared) {}

    __device__ __forceinline__ unsigned long long others() const {
        return describe_operand(shared_address(pairs + turn.stage * PAIR_BOXES<D>));
    }

    // Starts the scores and the gradient of the probabilities, of the pair that comes next; then has the scores. Before
    // that, the products of the step before are done, which done() is told, and its pair is given back.
    template <typename T, typename Done>
    __device__ __forceinline__ void start(float (&scores)[OTHERS / 8][4], float (&grad)[OTHERS / 8][4], bool is_first,
                                          Done&& done) {
        shared.ring.full[turn.stage].wait(turn.parity);
        wgmma_fence();
        start_rows_by_rows<T, D>(scores, x, others());
        start_rows_by_rows<T, D>(grad, y, others() + ROW_BOXES<D> * NEXT_BOX);
        wgmma_wait<2>();
        done();
        if (!is_first) {
            __syncwarp();  // all lanes have read their queries' numbers
            if (threadIdx.x % WARP == 0) shared.ring.empty[before].arrive_at(0);
        }
        wgmma_wait<1>();
        wgmma_is_done(scores);
    }

    __device__ __forceinline__ void next() {
        before = turn.stage;
        turn.next();
    }
};

// Sets to 0 what is in a row r, column c of the lane for which is_hidden(r, c).
template <int N, typename IsHidden>
__device__ __forceinline__ void clear(float (&values)[N][4], IsHidden&& is_hidden) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (is_hidden(8 * (i / 2), column_of(n, i % 2))) values[n][i] = 0;
}

// Stores a consumer's gradient from its `row` on, by way of its boxes where the copy engine can.
template <typename T, int D>
__device__ __forceinline__ void store(T* out, const TensorMap& map, bool by_boxes, float (&sums)[D / 8][4], float scale,
                                      const Task& task, int row, long long rows, int columns, Box* boxes,
                                      int consumer) {
    const float factor[2] = {scale, scale};
    scale_rows(sums, factor);
    if (by_boxes)
        store_boxes<T, D>(map, sums, row, 0, task.matrix, boxes, 1 + consumer);
    else
        store_rows<T, D>(out + task.matrix * rows * columns, sums, row, 0, rows, columns);
}

__device__ __forceinline__ void init(Shared& shared, int numbers) {
    if (threadIdx.x == 0) {
        shared.own.init(1);
        for (int i = 0; i < STAGES; i++) {
            shared.ring.full[i].init(1 + numbers);
            shared.ring.empty[i].init(CONSUMERS * WARPGROUP / WARP);
        }
        fence_barrier_init();
    }
    __syncthreads();
}

// g is (matrices, L, V); like q, k and v it is read by way of its map alone, and the gradients are written by way of
// theirs where `k_by_boxes` and `v_by_boxes`. Grid: x = a block for each 128 keys of each matrix.
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1)
attention_wgmma_grad_keys(T* dk, T* dv, const T* g, const T* q, const T* k, const T* v, const float* lse,
                          const float* row_sums, const __grid_constant__ TensorMap g_map,
                          const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                          const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap dk_map,
                          const __grid_constant__ TensorMap dv_map, bool k_by_boxes, bool v_by_boxes,
                          const AttentionShape shape) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Shared shared;
    Box* const boxes = first_box(dynamic);
    const int warpgroup = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // one number, in a uniform register
    const Task task(shape, shape.S, OWN, true);
    const Walk walk{shape.is_causal ? int(task.first_row) : 0, int(shape.L)};
    init(shared, WARP);
    if (warpgroup == 0) {
        give_registers<24>();
        if (threadIdx.x == 0)
            produce<D>({k_map, task.matrix, shape.heads, shape.k_stride},
                       {v_map, task.matrix, shape.heads, shape.v_stride},
                       {q_map, task.matrix, shape.heads, shape.q_stride}, {g_map, task.matrix}, int(task.first_row),
                       walk, boxes, shared);
        else if (threadIdx.x / WARP == 1)
            produce_numbers(lse + task.matrix * shape.L, row_sums + task.matrix * shape.L, shape.L, walk, shared);
        return;
    }
    take_registers<240>();
    const int number = warpgroup - 1;
    const int row = int(task.first_row) + number * BOX_ROWS;
    const int lane_row = threadIdx.x % WARPGROUP / WARP * FRAGMENT + threadIdx.x % WARP / 4;
    const float scale = shape.scale * LOG2_E;
    float k_sums[D / 8][4] = {}, v_sums[D / 8][4] = {}, p[OTHERS / 8][4], grad[OTHERS / 8][4];
    unsigned p_factors[OTHERS / 16][4], ds_factors[OTHERS / 16][4];
    Consumer<D> consumer(number, boxes, shared);
    shared.own.wait(0);
    const auto is_done = [&] {
        wgmma_is_done(k_sums);
        wgmma_is_done(v_sums);
        wgmma_is_done(p_factors);
        wgmma_is_done(ds_factors);
    };
    const auto step = [&](int first, auto is_whole) {
        consumer.template start<T>(p, grad, first == walk.first, is_done);
        const OfQuery* const of = shared.queries[consumer.turn.stage];
        const unsigned long long others = consumer.others();
#pragma unroll
        for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] = exp2f(fmaf(p[n][i], scale, -of[column_of(n, i % 2)].log_sum));
        const int end = walk.end - first;
        const int begin = shape.is_causal ? row - first + lane_row : -OWN;  // of the lane's first key
        const auto is_hidden = [&](int r, int column) { return column >= end || column < begin + r; };
        if constexpr (!is_whole.value) clear(p, is_hidden);
        wgmma_wait<0>();
        wgmma_is_done(grad);
#pragma unroll
        for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) grad[n][i] = p[n][i] * (grad[n][i] - of[column_of(n, i % 2)].inner);
        if constexpr (!is_whole.value) clear(grad, is_hidden);
        pack_rows<T>(p_factors, p);
        pack_rows<T>(ds_factors, grad);
        wgmma_fence();
        start_times_rows<T, D>(v_sums, p_factors, others + ROW_BOXES<D> * NEXT_BOX);
        start_times_rows<T, D>(k_sums, ds_factors, others);
        if constexpr (D == 128) {  // registers: no place for the next scores beside the factors
            wgmma_wait<0>();
            is_done();
        }
        consumer.next();
    };
    walk.each(shape.is_causal ? row + BOX_ROWS : 0, walk.end, step);
    wgmma_wait<0>();
    wgmma_is_done(k_sums);
    wgmma_is_done(v_sums);
    Box* const own = boxes + number * ROW_BOXES<D>;
    store<T, D>(dk, dk_map, k_by_boxes, k_sums, shape.scale, task, row, shape.S, shape.E, own, number);
    store<T, D>(dv, dv_map, v_by_boxes, v_sums, 1, task, row, shape.S, shape.V, own + OWN_BOXES<D>, number);
    if (threadIdx.x % WARPGROUP == 0) wait_for_stores<0>();
}

// Grid: x = a block for each 128 queries of each matrix.
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1)
attention_wgmma_grad_queries(T* dq, const T* g, const T* q, const T* k, const T* v, const float* lse,
                             const float* row_sums, const __grid_constant__ TensorMap g_map,
                             const __grid_constant__ TensorMap q_map, const __grid_constant__ TensorMap k_map,
                             const __grid_constant__ TensorMap v_map, const __grid_constant__ TensorMap dq_map,
                             bool by_boxes, const AttentionShape shape) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Shared shared;
    Box* const boxes = first_box(dynamic);
    const int warpgroup = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // one number, in a uniform register
    const Task task(shape, shape.L, OWN);
    const Walk walk{0, int(keys_of(shape, task.first_row + OWN - 1))};
    init(shared, 0);
    if (warpgroup == 0) {
        give_registers<24>();
        if (threadIdx.x == 0)
            produce<D>({q_map, task.matrix, shape.heads, shape.q_stride}, {g_map, task.matrix},
                       {k_map, task.matrix, shape.heads, shape.k_stride},
                       {v_map, task.matrix, shape.heads, shape.v_stride}, int(task.first_row), walk, boxes, shared);
        return;
    }
    take_registers<240>();
    const int number = warpgroup - 1;
    const int row = int(task.first_row) + number * BOX_ROWS;
    const int query = row + threadIdx.x % WARPGROUP / WARP * FRAGMENT + threadIdx.x % WARP / 4;
    const float scale = shape.scale * LOG2_E;
    lse += task.matrix * shape.L;
    row_sums += task.matrix * shape.L;
    const OfQuery of[2] = {of_query(lse, row_sums, query, shape.L), of_query(lse, row_sums, query + 8, shape.L)};
    float sums[D / 8][4] = {}, p[OTHERS / 8][4], grad[OTHERS / 8][4];
    unsigned ds_factors[OTHERS / 16][4];
    Consumer<D> consumer(number, boxes, shared);
    shared.own.wait(0);
    const auto step = [&](int first, auto is_whole) {
        consumer.template start<T>(p, grad, first == 0, [&] {
            wgmma_is_done(sums);
            wgmma_is_done(ds_factors);
        });
#pragma unroll
        for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] = exp2f(fmaf(p[n][i], scale, -of[i / 2].log_sum));
        wgmma_wait<0>();
        wgmma_is_done(grad);
#pragma unroll
        for (int n = 0; n < OTHERS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) grad[n][i] = p[n][i] * (grad[n][i] - of[i / 2].inner);
        if constexpr (!is_whole.value)
            clear(grad, [&](int r, int column) { return column >= visible(shape, query + r, first, OTHERS); });
        pack_rows<T>(ds_factors, grad);
        wgmma_fence();
        start_times_rows<T, D>(sums, ds_factors, consumer.others());
        consumer.next();
    };
    walk.each(0, shape.is_causal && row < walk.end ? row : walk.end, step);
    wgmma_wait<0>();
    wgmma_is_done(sums);
    store<T, D>(dq, dq_map, by_boxes, sums, shape.scale, task, row, shape.L, shape.E, boxes + number * ROW_BOXES<D>,
                number);
    if (threadIdx.x % WARPGROUP == 0) wait_for_stores<0>();
}
