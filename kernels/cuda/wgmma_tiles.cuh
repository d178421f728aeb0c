// A product of matrices on the tensor cores of compute capability 9.0, out (M, N) = a (M, K) b (K, N), tile by
// tile: what matmul_wgmma.cu and conv2d_wgmma.cu share. They differ in where the copy engine finds the boxes of
// a and b, and in what becomes of the sums.
//
// mma.sync (tensor_core_tiles.cuh) has each warp load its operands into registers first, and its threads copy
// the tiles. Here nobody does. One thread, the producer, tells the copy engine (TMA) which boxes to bring;
// the engine computes the addresses, and puts zeros where a box hangs over an edge. A warpgroup of 128
// threads, a consumer, then issues wgmma: 64 x TILE_N sums from tiles where they lie in shared memory.
//
// A block makes TILE_M x TILE_N elements of out with one producer and two consumers, 64 rows each. The tiles
// pass through a ring of stages; of each, `full` tells the consumers that all bytes are there, `empty` the
// producer that all consumers have read them. The producer runs ahead, into the next tile of out while the
// consumers still store the last: blocks are persistent, one for each multiprocessor, and take tile after
// tile. CLUSTER blocks, of neighbours in the same columns, share b: each loads its part, and the engine
// writes it into all of them.
//
// A stage is one step of K: 128 bytes of each row of a and b, in 2 boxes of a and TILE_N / 64 of b.
//
// Registers: at the start 65536 / 384 = 168 a thread; the producer's warpgroup gives back all but 40, and the
// consumers take 232, of which TILE_N / 2 are sums. Shared memory: a ring of 24 boxes of 8 KB, and 2 more for
// each consumer: 224 KB of 227.
#pragma once

#include "box_ring.cuh"
#include "tile_order.cuh"

constexpr int TILE_M = 128;                   // rows that a block makes of out at a time
constexpr int CONSUMERS = TILE_M / BOX_ROWS;  // warpgroups, of 64 rows each
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr int CLUSTER = 2;  // blocks
constexpr int GROUP = 8;    // rows of clusters' tiles that are made one column after another
constexpr int A_BOXES = TILE_M / BOX_ROWS, RING_BOXES = 24;

template <int TILE_N>
constexpr int B_BOXES = TILE_N / BOX_ROWS;
template <int TILE_N>
constexpr int STAGE_BOXES = A_BOXES + B_BOXES<TILE_N>;
template <int TILE_N>
constexpr int STAGES = RING_BOXES / STAGE_BOXES<TILE_N>;
template <typename T>
constexpr int STEP = BOX_ROW_BYTES / sizeof(T);  // of K

// The tiles of `batches` products, as clusters take them: CLUSTER tiles one below the other.
template <int TILE_N>
struct Tiles {
    int rows, columns, per_matrix, count;

    __device__ __forceinline__ Tiles(long long M, long long N, long long batches) {
        rows = (M + CLUSTER * TILE_M - 1) / (CLUSTER * TILE_M);
        columns = (N + TILE_N - 1) / TILE_N;
        per_matrix = rows * columns;
        count = per_matrix * int(batches);
    }

    struct Place {
        int row, column, batch;  // of this block's tile; counted in elements of out
    };

    __device__ __forceinline__ int batch_of(int number) const { return number / per_matrix; }

    __device__ __forceinline__ Place operator[](int number) const {
        const int batch = batch_of(number);
        const TilePlace place = tile_place(number - batch * per_matrix, rows, columns, GROUP);
        return {(place.row * CLUSTER + int(block_in_cluster())) * TILE_M, place.column * TILE_N, batch};
    }
};

struct BoxPlace {
    int x, y, z;
};

// Starts the copies of this block's share of b's boxes, which all blocks of the cluster get. Box i is found at
// place_of(i).
template <int TILE_N, typename PlaceOf>
__device__ __forceinline__ void load_for_cluster(Box* boxes, const TensorMap& map, Barrier& full,
                                                 PlaceOf&& place_of) {
    const int rank = block_in_cluster();
#pragma unroll
    for (int first = 0; first < B_BOXES<TILE_N>; first += CLUSTER) {
        const int i = first + rank;
        if (B_BOXES<TILE_N> % CLUSTER > 0 && i >= B_BOXES<TILE_N>) continue;
        const auto [x, y, z] = place_of(i);
        load_box(boxes + i, map, x, y, z, full, (1 << CLUSTER) - 1);
    }
}

// Has the copy engine bring the boxes of all of this block's tiles: those of a for itself, those of b for the
// cluster, each block its part.
template <int TILE_N, typename Product>
__device__ __forceinline__ void produce(const Product& product, Box* boxes, Ring<STAGES<TILE_N>>& ring) {
    Turn<STAGES<TILE_N>> turn;
    for (int tile = blockIdx.x / CLUSTER; tile < product.tiles.count; tile += gridDim.x / CLUSTER) {
        auto source = product.source(product.tiles[tile]);
        for (int left = product.steps(tile); left > 0; left--) {
            Barrier& full = ring.full[turn.stage];
            ring.empty[turn.stage].wait(turn.parity ^ 1);  // at first, for nothing
            full.arrive_and_expect(STAGE_BOXES<TILE_N> * BOX_BYTES);
            Box* const box = boxes + turn.stage * STAGE_BOXES<TILE_N>;
            source.load(box, box + A_BOXES, full);
            turn.next();
        }
    }
}

// Adds to a consumer's sums the bias of their columns, of which there are `columns` from the first on.
template <int TILE_N, typename T>
__device__ __forceinline__ void add_bias(float (&sums)[TILE_N / 8][4], const T* bias, long long columns) {
#pragma unroll
    for (int i = 0; i < TILE_N / 4; i++) {
        const int column = i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
        const float addend = column < columns ? float(bias[column]) : 0.0f;
        sums[i / 2][i % 2] += addend;
        sums[i / 2][2 + i % 2] += addend;
    }
}

// Multiplies what the producer brings: 64 rows of each of the block's tiles. While a stage's products are at
// work, those of the stage before are done, and it is given back.
template <typename T, int TILE_N, bool A_ALONG_M, bool B_ALONG_N, typename Product>
__device__ __forceinline__ void consume(const Product& product, Box* boxes, Ring<STAGES<TILE_N>>& ring,
                                        int consumer) {
    constexpr int STEPS = 4;
    // From one wgmma's k to the next: 32 bytes of each row, or a quarter of the rows.
    constexpr int A_NEXT = (A_ALONG_M ? BOX_BYTES / STEPS : BOX_ROW_BYTES / STEPS) >> 4;
    constexpr int B_NEXT = (B_ALONG_N ? BOX_BYTES / STEPS : BOX_ROW_BYTES / STEPS) >> 4;
    const int thread = threadIdx.x % WARPGROUP;
    Box* const out_boxes = boxes + RING_BOXES + consumer * OUT_BOXES;
    float sums[TILE_N / 8][4];
    Turn<STAGES<TILE_N>> turn;
    for (int tile = blockIdx.x / CLUSTER; tile < product.tiles.count; tile += gridDim.x / CLUSTER) {
        const int steps = product.steps(tile);
        int before = 0;
        for (int step = 0; step < steps; step++) {
            ring.full[turn.stage].wait(turn.parity);
            Box* const box = boxes + turn.stage * STAGE_BOXES<TILE_N>;
            const unsigned long long a = describe_operand(shared_address(box + consumer));
            const unsigned long long b = describe_operand(shared_address(box + A_BOXES));
            wgmma_fence();
#pragma unroll
            for (int i = 0; i < STEPS; i++)
                wgmma<T, A_ALONG_M, B_ALONG_N>(sums, a + i * A_NEXT, b + i * B_NEXT, step > 0 || i > 0);
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0 && thread < CLUSTER) ring.empty[before].arrive_at(thread);
            before = turn.stage;
            turn.next();
        }
        wgmma_wait<0>();
        wgmma_is_done(sums);
        if (thread < CLUSTER) ring.empty[before].arrive_at(thread);
        product.store(sums, product.tiles[tile], consumer, out_boxes);
    }
    if (thread == 0) wait_for_stores<0>();
}

// Makes this block's tiles of a product, which has
//
//   tiles                                a Tiles<TILE_N>
//   steps(number)                        of K, of tile `number`: at least one
//   source(place)                        whose load(a_boxes, b_boxes, full) starts the copies of one step after
//                                        the other
//   store(sums, place, consumer, boxes)  called by a consumer; its rows begin at consumer * BOX_ROWS of the tile,
//                                        and the OUT_BOXES boxes are its own
template <typename T, int TILE_N, bool A_ALONG_M, bool B_ALONG_N, typename Product>
__device__ __forceinline__ void make_tiles(const Product& product) {
    extern __shared__ unsigned char dynamic[];
    __shared__ Ring<STAGES<TILE_N>> ring;
    Box* const boxes = first_box(dynamic);
    const int warpgroup = __shfl_sync(~0u, threadIdx.x / WARPGROUP, 0);  // one number, in a uniform register
    if (threadIdx.x == 0) {
        for (int i = 0; i < STAGES<TILE_N>; i++) {
            ring.full[i].init(1);
            ring.empty[i].init(CLUSTER * CONSUMERS);
        }
        fence_barrier_init();
    }
    sync_cluster_relaxed();
    if (warpgroup == 0) {
        give_registers<40>();
        if (threadIdx.x == 0) produce<TILE_N>(product, boxes, ring);
    } else {
        take_registers<232>();
        consume<T, TILE_N, A_ALONG_M, B_ALONG_N>(product, boxes, ring, warpgroup - 1);
    }
    __syncwarp();
    sync_cluster();  // no block leaves while others of the cluster copy into it
}
