// Scaled dot-product attention in 16 bits on the tensor cores of compute capability 9.0: the rung after
// attention_tensor_core.cu, with its formulas, shapes and roundings. scale is positive.
//
//   attention_wgmma   a block walks along the keys for its 128 queries
//
// The idea is that of FlashAttention-3 (Shah et al. 2024, https://arxiv.org/abs/2407.08608). A warpgroup has the
// products made from tiles in shared memory (hopper.cuh) and does something else meanwhile: exponentials, which
// tensor cores cannot do. Three things overlap:
//
//   - one warpgroup, the producer, has the copy engine bring tiles of k and v through a ring; two, the consumers,
//     use them, 64 queries each;
//   - a consumer starts the scores of the next tile, and the product of the last probabilities with v, and takes the
//     softmax of those scores while that product is still at work;
//   - the consumers take turns: one starts its products when the other has started its own, so that the tensor cores
//     have one's products while the other has its softmax.
//
// The probabilities go from the sums of one product to the left factor of the next without leaving their registers;
// v, whose neighbours are along the columns, is read as it lies.
//
// Tiles of keys come from the last to the first: only the last has keys that some queries do not see.
//
// Bounds, reckoned for a multiprocessor and a tile of 128 keys: 4 x 128 x 128 x D operations take its tensor cores,
// with 4096 in a cycle, 16 D cycles: 1024 for D = 64, 2048 for D = 128. The 128 x 128 exponentials, 16 in a cycle,
// take 1024. Were they not at the same time, D = 64 would reach half of the tensor cores' rate at most, and D = 128
// two thirds. A step of a consumer is compiled to 433 instructions for D = 64, 473 for D = 128, of which 66 are
// exponentials: both consumers' take 866 and 946 of a scheduler's cycles.
//
// Arithmetic intensity: k and v are read once for 128 queries: 4 x 128 x S x D operations for 4 S D bytes, 128 a byte
// from the L2 cache. Blocks that follow each other have the same keys.
//
// Registers: of 168 a thread the producer gives back all but 40, and the consumers take 232, of which the scores are
// 64, the probabilities 32, and the sums D / 2. Shared memory: tiles of 128 rows, 32 KB for D = 128: q and 6 of k and v
// in turn. Results go by way of q's tile.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "attention_wgmma.cuh"

constexpr int QUERIES = 128, KEYS = 128;  // of a tile
constexpr int CONSUMERS = QUERIES / BOX_ROWS, THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int STAGES = 6;  // tiles of keys, or values

template <int D>
constexpr int TILE_BOXES = QUERIES / BOX_ROWS * ROW_BOXES<D>;

// What a block's threads share, but for the boxes.
struct Barriers {
    Barrier queries;
    Ring<STAGES> ring;
};

// Has the copy engine bring the tiles in the order of their use: the keys of each before the values of the one before.
template <int D>
__device__ __forceinline__ void produce(const Matrix& k, const Matrix& v, int count, Box* boxes, Ring<STAGES>& ring) {
    Turn<STAGES> turn;
    const auto load = [&](const Matrix& matrix, int tile, int next_row, int next_column) {
        ring.empty[turn.stage].wait(turn.parity ^ 1);  // at first, for nothing
        Barrier& full = ring.full[turn.stage];
        full.arrive_and_expect(TILE_BOXES<D> * BOX_BYTES);
        matrix.load<D, KEYS>(boxes + turn.stage * TILE_BOXES<D>, tile * KEYS, next_row, next_column, full);
        turn.next();
    };
    for (int tile = count - 1; tile >= -1; tile--) {
        if (tile >= 0) load(k, tile, 1, KEYS / BOX_ROWS);
        if (tile + 1 < count) load(v, tile + 1, ROW_BOXES<D>, 1);
    }
}

// The consumers' turns to start products: `count` for each, the first consumer's first.
class Turns {
  public:
    __device__ __forceinline__ Turns(int consumer, int count) : consumer(consumer), left(count) {
        if (consumer == 1) pass_to(0);
    }
    __device__ __forceinline__ void wait() { sync_threads<CONSUMERS * WARPGROUP>(FIRST_BARRIER + consumer); }
    __device__ __forceinline__ void pass() {
        if (--left > 0 || consumer == 0) pass_to(consumer ^ 1);
    }

  private:
    static constexpr int FIRST_BARRIER = 1 + CONSUMERS;  // after those of store_boxes
    static_assert(CONSUMERS == 2, "one has the turn, or the other");
    int consumer, left;

    __device__ __forceinline__ void pass_to(int other) {
        arrive_without_waiting<CONSUMERS * WARPGROUP>(FIRST_BARRIER + other);
    }
};

// The tiles of a consumer, one after the other.
template <int D>
struct Tiles {
    Box* boxes;
    Ring<STAGES>& ring;
    Turn<STAGES> turn;

    __device__ __forceinline__ void wait_for_next() { ring.full[turn.stage].wait(turn.parity); }

    // The descriptor of the tile that was waited for; the one after it is the next.
    __device__ __forceinline__ unsigned long long take() {
        const int stage = turn.stage;
        turn.next();
        return describe_operand(shared_address(boxes + stage * TILE_BOXES<D>));
    }

    // Gives the tile back that was taken as the last but `later`.
    __device__ __forceinline__ void give_back(int later) {
        const int stage = turn.stage - 1 - later;
        if (threadIdx.x % WARPGROUP == 0) ring.empty[stage < 0 ? stage + STAGES : stage].arrive_at(0);
    }
};

// The sums of a consumer, whose queries have the descriptor q, and whose lane's first row is `query`.
template <typename T, int D>
__device__ __forceinline__ void consume(float (&sums)[D / 8][4], RunningSoftmax& softmax, unsigned long long q,
                                        const AttentionShape& shape, long long query, int count, Tiles<D>& tiles,
                                        Turns& turns) {
    const float scale = shape.scale * LOG2_E;
    float scores[KEYS / 8][4], factor[2];
    unsigned p[KEYS / 16][4];
    tiles.wait_for_next();
    turns.wait();
    wgmma_fence();
    start_rows_by_rows<T, D>(scores, q, tiles.take());
    turns.pass();
    wgmma_wait<0>();
    wgmma_is_done(scores);
    tiles.give_back(0);
    hide(scores, shape, query, (long long)(count - 1) * KEYS);
    softmax.add_step(scores, factor, scale);
    pack_rows<T>(p, scores);
    tiles.wait_for_next();
    for (int left = count - 1; left > 0; left--) {
        turns.wait();
        wgmma_fence();
        start_rows_by_rows<T, D>(scores, q, tiles.take());
        tiles.wait_for_next();
        start_times_rows<T, D>(sums, p, tiles.take());
        turns.pass();
        wgmma_wait<1>();
        wgmma_is_done(scores);
        tiles.give_back(1);
        softmax.add_step(scores, factor, scale);
        // Here, and not later: the compiler moves no exponentials behind the loop that waits, which it would move
        // behind wgmma_wait<0>, where no product would be at work meanwhile.
        tiles.wait_for_next();
        wgmma_wait<0>();
        wgmma_is_done(sums);
        wgmma_is_done(p);
        tiles.give_back(0);
        rescale_rows(sums, factor);
        pack_rows<T>(p, scores);
    }
    wgmma_fence();
    start_times_rows<T, D>(sums, p, tiles.take());
    wgmma_wait<0>();
    wgmma_is_done(sums);
}

// q, k and v are read by way of their maps alone; out is written by way of its own where `out_by_boxes`. Grid: x = a
// block for each 128 queries of each matrix. Blocks are not persistent: where is_causal, their work differs, and the
// next goes to whoever is done.
template <typename T, int D>
__global__ void __launch_bounds__(THREADS, 1)
attention_wgmma(T* out, float* lse, const T* q, const T* k, const T* v, const __grid_constant__ TensorMap q_map,
                const __grid_constant__ TensorMap k_map, const __grid_constant__ TensorMap v_map,
                const __grid_constant__ TensorMap out_map, bool out_by_boxes, const AttentionShape shape) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Barriers barriers;
    Box* const q_boxes = first_box(dynamic);
    Box* const boxes = q_boxes + TILE_BOXES<D>;
    const int warpgroup = __shfl_sync(ALL_LANES, threadIdx.x / WARPGROUP, 0);  // one number, in a uniform register
    const Task task(shape, shape.L, QUERIES);
    const int count = (keys_of(shape, task.first_row + QUERIES - 1) + KEYS - 1) / KEYS;  // tiles of keys
    if (threadIdx.x == 0) {
        barriers.queries.init(1);
        for (int i = 0; i < STAGES; i++) {
            barriers.ring.full[i].init(1);
            barriers.ring.empty[i].init(CONSUMERS);
        }
        fence_barrier_init();
    }
    __syncthreads();
    if (warpgroup == 0) {
        give_registers<40>();
        if (threadIdx.x > 0) return;
        const Matrix queries(q_map, task.matrix, shape.heads, shape.q_stride);
        barriers.queries.arrive_and_expect(TILE_BOXES<D> * BOX_BYTES);
        queries.load<D, QUERIES>(q_boxes, int(task.first_row), ROW_BOXES<D>, 1, barriers.queries);
        produce<D>({k_map, task.matrix, shape.heads, shape.k_stride}, {v_map, task.matrix, shape.heads, shape.v_stride},
                   count, boxes, barriers.ring);
        return;
    }
    take_registers<232>();
    const int consumer = warpgroup - 1, lane = threadIdx.x % WARP;
    Box* const own_boxes = q_boxes + consumer * ROW_BOXES<D>;
    const long long first_row = task.first_row + consumer * BOX_ROWS;
    const long long query = first_row + threadIdx.x % WARPGROUP / WARP * FRAGMENT + lane / 4;
    float sums[D / 8][4] = {}, factor[2];
    RunningSoftmax softmax;
    Tiles<D> tiles{boxes, barriers.ring};
    Turns turns(consumer, count);
    barriers.queries.wait(0);
    const unsigned long long queries = describe_operand(shared_address(own_boxes));
    consume<T>(sums, softmax, queries, shape, query, count, tiles, turns);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const float total = softmax.total(half);
        factor[half] = 1 / total;
        if (lane % 4 == 0 && query + 8 * half < shape.L)
            lse[task.matrix * shape.L + query + 8 * half] = softmax.rows[half].log_sum(total);
    }
    scale_rows(sums, factor);
    if (out_by_boxes) {
        store_boxes<T, D>(out_map, sums, int(first_row), 0, task.matrix, own_boxes, 1 + consumer);
        if (threadIdx.x % WARPGROUP == 0) wait_for_stores<0>();
    } else {
        store_rows<T, D>(out + task.matrix * shape.L * shape.V, sums, first_row, 0, shape.L, shape.V);
    }
}
