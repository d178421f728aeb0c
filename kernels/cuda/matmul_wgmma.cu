// Matrix multiplication on the tensor cores of compute capability 9.0: out[i, j] = sum over k of a[i, k] *
// b[j, k], for each of a batch.
//
// Shapes: a is (batches, M, K), b, the right matrix transposed, is (batches, N, K), out is (batches, M, N). a
// and b come as tensor maps: in each either the elements along K are neighbours or, in 16 bits, those along M
// or N; the other strides are multiples of 16 bytes. out is C-contiguous. Sums are float32, and so is out for
// floats, whose factors the copy engine rounds to TF32. __half and __nv_bfloat16 come out as they go in.
//
//   matmul_wgmma   products of whole tiles in shared memory, which the copy engine fills
//
// mma.sync (matmul_tensor_core.cu) has each warp load its operands into registers first, and its threads copy
// the tiles. Here nobody does. One thread, the producer, tells the copy engine (TMA) which boxes to bring;
// the engine computes the addresses, and puts zeros where a box hangs over an edge. A warpgroup of 128
// threads, a consumer, then issues wgmma: 64 x 256 sums from tiles where they lie in shared memory.
//
// A block makes TILE_M x TILE_N elements of out with one producer and two consumers, 64 rows each. The tiles
// pass through a ring of STAGES stages; of each, `full` tells the consumers that all bytes are there, `empty`
// the producer that all consumers have read them. The producer runs ahead, into the next tile of out while
// the consumers still store the last: blocks are persistent, one for each multiprocessor, and take tile after
// tile. CLUSTER blocks, of neighbours in the same columns, share b: each loads its part, and the engine
// writes it into all of them.
//
// Results go to boxes in shared memory, from where the engine stores them, as far as they are inside; where
// rows of out are no multiples of 16 bytes the threads store pairs.
//
// Arithmetic intensity: a stage is (128 + 256) x 128 bytes for 2 x 128 x 256 x 64 operations in 16 bits: 85 a
// byte, of which a cluster of 2 asks the L2 cache for two thirds: 128. An H200 could do 206 for each byte of
// its memory (989 TFLOP/s over 4.8 TB/s): the order of the tiles (tile_order.cuh) leaves most to the cache.
// From shared memory a wgmma takes (64 + 256) x 32 bytes for 128 cycles of the tensor cores: 80 bytes of the
// 128 that a cycle can bring.
//
// Registers: at the start 65536 / 384 = 168 a thread; the producer's warpgroup gives back all but 40, and the
// consumers take 232, of which 128 are sums. Shared memory: 4 stages of 48 KB, and 2 boxes of 8 KB for each
// consumer: 224 KB of 227.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "hopper.cuh"
#include "tensor_core.cuh"
#include "tile_order.cuh"

constexpr int TILE_M = 128, TILE_N = 256;     // what a block makes of out at a time
constexpr int CONSUMERS = TILE_M / BOX_ROWS;  // warpgroups, of 64 rows each
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int STAGES = 4;
constexpr int CLUSTER = 2;  // blocks
constexpr int GROUP = 8;    // rows of clusters' tiles that are made one column after another
constexpr int A_BOXES = TILE_M / BOX_ROWS, B_BOXES = TILE_N / BOX_ROWS, STAGE_BOXES = A_BOXES + B_BOXES;
constexpr int OUT_BOXES = 2;  // of a consumer: it fills one while the other is stored

struct Box {
    unsigned char bytes[BOX_BYTES];
};

struct WgmmaShape {
    long long M, N, K, batches;
    int a_batched, b_batched;  // 0: all products have the same one
    int out_by_boxes;          // whether the copy engine can store out
};

// The tiles of all products, as clusters take them: CLUSTER tiles one below the other.
struct Tiles {
    int rows, columns, per_matrix, count;

    __device__ __forceinline__ explicit Tiles(const WgmmaShape& shape) {
        rows = (shape.M + CLUSTER * TILE_M - 1) / (CLUSTER * TILE_M);
        columns = (shape.N + TILE_N - 1) / TILE_N;
        per_matrix = rows * columns;
        count = per_matrix * int(shape.batches);
    }

    struct Place {
        int row, column, batch;  // of this block's tile; counted in elements of out
    };

    __device__ __forceinline__ Place operator[](int number) const {
        const int batch = number / per_matrix;
        const TilePlace place = tile_place(number - batch * per_matrix, rows, columns, GROUP);
        return {(place.row * CLUSTER + int(block_in_cluster())) * TILE_M, place.column * TILE_N, batch};
    }
};

struct Ring {
    Barrier full[STAGES], empty[STAGES];
};

// Where the producer, or a consumer, is in the ring, and the parity of the phase that it waits for there.
struct Turn {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// Has the copy engine bring the boxes of all tiles: those of a for this block, those of b for the cluster,
// each block its part.
template <typename T, bool A_ALONG_M, bool B_ALONG_N>
__device__ __forceinline__ void produce(Box* boxes, Ring& ring, const TensorMap& a_map,
                                        const TensorMap& b_map, const WgmmaShape& shape) {
    constexpr int STEP = BOX_ROW_BYTES / sizeof(T);
    const Tiles tiles(shape);
    const unsigned rank = block_in_cluster();
    Turn turn;
    for (int tile = blockIdx.x / CLUSTER; tile < tiles.count; tile += gridDim.x / CLUSTER) {
        const auto [row, column, batch] = tiles[tile];
        const int a_batch = shape.a_batched * batch, b_batch = shape.b_batched * batch;
        for (int k = 0; k < shape.K; k += STEP) {
            Barrier& full = ring.full[turn.stage];
            ring.empty[turn.stage].wait(turn.parity ^ 1);  // at first, for nothing
            full.arrive_and_expect(STAGE_BOXES * BOX_BYTES);
            Box* const box = boxes + turn.stage * STAGE_BOXES;
#pragma unroll
            for (int i = 0; i < A_BOXES; i++) {
                const int m = row + i * BOX_ROWS;
                load_box(box + i, a_map, A_ALONG_M ? m : k, A_ALONG_M ? k : m, a_batch, full);
            }
#pragma unroll
            for (int j = 0; j < B_BOXES / CLUSTER; j++) {
                const int i = rank * (B_BOXES / CLUSTER) + j, n = column + i * BOX_ROWS;
                const int x = B_ALONG_N ? n : k, y = B_ALONG_N ? k : n;
                if constexpr (CLUSTER == 1)
                    load_box(box + A_BOXES + i, b_map, x, y, b_batch, full);
                else
                    load_box(box + A_BOXES + i, b_map, x, y, b_batch, full, (1 << CLUSTER) - 1);
            }
            turn.next();
        }
    }
}

// Stores a consumer's sums by way of its boxes. Each thread writes pairs of neighbours; those of a warp fall
// into different banks (for floats, two and two into the same).
template <typename T>
__device__ __forceinline__ void store_boxes(const TensorMap& map, const float (&sums)[TILE_N / 8][4], int row,
                                            int column, int batch, Box* boxes, int group) {
    constexpr int COLUMNS = BOX_ROW_BYTES / sizeof(T);
    const int lane = threadIdx.x % 32, first = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < TILE_N / COLUMNS; i++) {
        Box& box = boxes[i % OUT_BOXES];
        if (threadIdx.x % WARPGROUP == 0) wait_for_stores<OUT_BOXES - 1>();
        sync_warpgroup(group);
#pragma unroll
        for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int r = first + 8 * half, byte = (8 * n + lane % 4 * 2) * sizeof(T);
                const float* sum = &sums[i * COLUMNS / 8 + n][2 * half];
                *reinterpret_cast<Pair<T>*>(&box.bytes[r * BOX_ROW_BYTES + (byte ^ r % 8 * 16)]) = {T(sum[0]),
                                                                                                  T(sum[1])};
            }
        fence_for_copies();
        sync_warpgroup(group);
        if (threadIdx.x % WARPGROUP == 0) store_box(map, column + i * COLUMNS, row, batch, &box);
    }
}

// Multiplies what the producer brings: 64 rows of each of the block's tiles. While a stage's products are at
// work, those of the stage before are done, and it is given back.
template <typename T, bool A_ALONG_M, bool B_ALONG_N>
__device__ __forceinline__ void consume(T* out, Box* boxes, Ring& ring, const TensorMap& out_map,
                                        const WgmmaShape& shape, int consumer) {
    constexpr int STEP = BOX_ROW_BYTES / sizeof(T), STEPS = 4;
    // From one wgmma's k to the next: 32 bytes of each row, or a quarter of the rows.
    constexpr int A_NEXT = (A_ALONG_M ? BOX_BYTES / STEPS : BOX_ROW_BYTES / STEPS) >> 4;
    constexpr int B_NEXT = (B_ALONG_N ? BOX_BYTES / STEPS : BOX_ROW_BYTES / STEPS) >> 4;
    const Tiles tiles(shape);
    const int thread = threadIdx.x % WARPGROUP, warp_row = thread / 32 * 16;
    Box* const out_boxes = boxes + STAGES * STAGE_BOXES + consumer * OUT_BOXES;
    float sums[TILE_N / 8][4];
    Turn turn;
    for (int tile = blockIdx.x / CLUSTER; tile < tiles.count; tile += gridDim.x / CLUSTER) {
        int before = 0;
        for (int k = 0; k < shape.K; k += STEP) {
            ring.full[turn.stage].wait(turn.parity);
            Box* const box = boxes + turn.stage * STAGE_BOXES;
            const unsigned long long a = describe_operand(shared_address(box + consumer));
            const unsigned long long b = describe_operand(shared_address(box + A_BOXES));
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < STEPS; i++)
                wgmma<T, A_ALONG_M, B_ALONG_N>(sums, a + i * A_NEXT, b + i * B_NEXT, k > 0 || i > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (k > 0 && thread < CLUSTER) ring.empty[before].arrive_at(thread);
            before = turn.stage;
            turn.next();
        }
        wgmma_wait<0>();
        if (thread < CLUSTER) ring.empty[before].arrive_at(thread);
        const auto [tile_row, column, batch] = tiles[tile];
        const int row = tile_row + consumer * BOX_ROWS;
        if (shape.out_by_boxes)
            store_boxes<T>(out_map, sums, row, column, batch, out_boxes, 1 + consumer);
        else
            store_fragments(out + (batch * shape.M + row + warp_row) * shape.N + column, sums,
                            shape.M - row - warp_row, shape.N - column, shape.N);
    }
    if (thread == 0) wait_for_stores<0>();
}

// a and b are read by way of their maps alone. Grid: x = clusters of CLUSTER blocks, as many as the card has
// places for.
template <typename T, bool A_ALONG_M, bool B_ALONG_N>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
matmul_wgmma(T* out, const T* a, const T* b, const __grid_constant__ TensorMap a_map,
             const __grid_constant__ TensorMap b_map, const __grid_constant__ TensorMap out_map,
             const WgmmaShape shape) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Ring ring;
    // At a multiple of what the swizzle repeats after.
    Box* const boxes = reinterpret_cast<Box*>((size_t(dynamic) + 1023) / 1024 * 1024);
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);  // one number, in a uniform register
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES; i++) {
            ring.full[i].init(1);
            ring.empty[i].init(CLUSTER * CONSUMERS);
        }
        fence_barrier_init();
    }
    if constexpr (CLUSTER == 1)
        __syncthreads();
    else
        sync_cluster();
    if (warpgroup == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce<T, A_ALONG_M, B_ALONG_N>(boxes, ring, a_map, b_map, shape);
    } else {
        take_registers<232>();
        consume<T, A_ALONG_M, B_ALONG_N>(out, boxes, ring, out_map, shape, warpgroup - 1);
    }
    if constexpr (CLUSTER > 1) {
        __syncwarp();
        sync_cluster();  // no block leaves while others of the cluster copy into it
    }
}
