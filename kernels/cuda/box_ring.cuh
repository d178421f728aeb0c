// What kernels share in which one warpgroup has the copy engine bring boxes (hopper.cuh), and others, the consumers,
// multiply them: the ring of stages that the boxes pass through, and how sums are stored.
//
// Of each stage, `full` tells the consumers that all bytes are there, `empty` the producer that all consumers have
// read them.
#pragma once

#include "hopper.cuh"
#include "tensor_core.cuh"

constexpr int OUT_BOXES = 2;  // of a consumer: it fills one while the other is stored

struct Box {
    unsigned char bytes[BOX_BYTES];
};

// In a block's dynamic shared memory, at a multiple of what the swizzle repeats after. An offset leaves the compiler
// the knowledge that this is shared memory, which a cast of the address to a number and back would not.
__device__ __forceinline__ Box* first_box(unsigned char* dynamic) {
    return reinterpret_cast<Box*>(dynamic + -shared_address(dynamic) % 1024);
}

template <int COUNT>
struct Ring {
    Barrier full[COUNT], empty[COUNT];
};

// Where the producer, or a consumer, is in the ring, and the parity of the phase that it waits for there.
template <int COUNT>
struct Turn {
    int stage = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (++stage == COUNT) stage = 0, parity ^= 1;
    }
};

// Fills COUNT boxes, one after the other in a consumer's own, and stores them: fill(i, box) has each thread write its
// part, store(i, box) one of them store it, at least once.
template <int COUNT, typename Fill, typename Store>
__device__ __forceinline__ void store_in_turn(Box* boxes, int group, Fill&& fill, Store&& store) {
    constexpr int IN_TURN = COUNT < OUT_BOXES ? COUNT : OUT_BOXES;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        Box& box = boxes[i % IN_TURN];
        if (threadIdx.x % WARPGROUP == 0) {
            if (i == 0 && COUNT % IN_TURN > 0)
                wait_for_stores<0>();  // of the last tile, whose last box this was
            else
                wait_for_stores<IN_TURN - 1>();
        }
        sync_warpgroup(group);
        fill(i, box);
        fence_for_copies();
        sync_warpgroup(group);
        if (threadIdx.x % WARPGROUP == 0) store(i, box);
    }
}

// Puts sums of 64 rows, and so many columns as a box has, number i of them, into a box. Each thread writes pairs of
// neighbours; those of a warp fall into different banks (for floats, two and two into the same).
template <typename T, int COUNT>
__device__ __forceinline__ void fill_box(const float (&sums)[COUNT][4], int i, Box& box) {
    constexpr int COLUMNS = BOX_ROW_BYTES / sizeof(T);
    const int lane = threadIdx.x % 32, first = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < COLUMNS / 8; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = first + 8 * half, byte = (8 * n + lane % 4 * 2) * sizeof(T);
            const float* sum = &sums[i * COLUMNS / 8 + n][2 * half];
            const Pair<T> pair = {T(sum[0]), T(sum[1])};
            *reinterpret_cast<Pair<T>*>(&box.bytes[r * BOX_ROW_BYTES + (byte ^ r % 8 * 16)]) = pair;
        }
}

// Stores a consumer's sums by way of its boxes.
template <typename T, int TILE_N>
__device__ __forceinline__ void store_boxes(const TensorMap& map, const float (&sums)[TILE_N / 8][4], int row,
                                            int column, int batch, Box* boxes, int group) {
    constexpr int COLUMNS = BOX_ROW_BYTES / sizeof(T);
    store_in_turn<TILE_N / COLUMNS>(
        boxes, group, [&](int i, Box& box) { fill_box<T>(sums, i, box); },
        [&](int i, const Box& box) { store_box(map, column + i * COLUMNS, row, batch, &box); });
}

// Stores a consumer's sums from a box, where no map tells their places: those of row r from out + start_of(r) on, or
// nowhere if that is negative. Of `columns`, whole vectors of 16 bytes, each thread stores one of several rows.
template <typename T, int TILE_N, typename StartOf>
__device__ __forceinline__ void store_apart(T* out, const float (&sums)[TILE_N / 8][4], int columns, Box& box,
                                            int group, StartOf&& start_of) {
    constexpr int COLUMNS = BOX_ROW_BYTES / sizeof(T), VECTORS = BOX_ROW_BYTES / 16, AT_ONCE = WARPGROUP / VECTORS;
    const int vector = threadIdx.x % VECTORS, first = threadIdx.x % WARPGROUP / VECTORS;
    long long starts[BOX_ROWS / AT_ONCE];
#pragma unroll
    for (int k = 0; k < BOX_ROWS / AT_ONCE; k++) starts[k] = start_of(first + k * AT_ONCE);
#pragma unroll
    for (int i = 0; i < TILE_N / COLUMNS; i++) {
        const int column = i * COLUMNS + vector * (COLUMNS / VECTORS);
        sync_warpgroup(group);  // the box was read
        fill_box<T>(sums, i, box);
        sync_warpgroup(group);
#pragma unroll
        for (int k = 0; k < BOX_ROWS / AT_ONCE; k++) {
            const int row = first + k * AT_ONCE, byte = row * BOX_ROW_BYTES + (vector ^ row % 8) * 16;
            if (starts[k] >= 0 && column < columns)
                *reinterpret_cast<uint4*>(out + starts[k] + column) = *reinterpret_cast<const uint4*>(&box.bytes[byte]);
        }
    }
}

// Puts 64 rows and 64 columns of sums, number i of them, into a box, transposed, in 16 bits: its rows are the
// columns. A thread writes single elements, of which neighbours in a word are of other lanes.
template <typename T, int COUNT>
__device__ __forceinline__ void fill_box_transposed(const float (&sums)[COUNT][4], int i, Box& box) {
    static_assert(BOX_ROWS * sizeof(T) == BOX_ROW_BYTES, "a box is a square");
    const int lane = threadIdx.x % 32, first = threadIdx.x % WARPGROUP / 32 * 16 + lane / 4;
#pragma unroll
    for (int n = 0; n < BOX_ROWS / 8; n++)
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int row = 8 * n + lane % 4 * 2 + k % 2, byte = (first + k / 2 * 8) * sizeof(T);
            T* const to = reinterpret_cast<T*>(&box.bytes[row * BOX_ROW_BYTES + (byte ^ row % 8 * 16)]);
            *to = T(sums[i * BOX_ROWS / 8 + n][k]);
        }
}

// Stores a consumer's sums transposed, by way of its boxes: `row`, a row's number, counts along the map's rows then.
template <typename T, int TILE_N>
__device__ __forceinline__ void store_boxes_transposed(const TensorMap& map, const float (&sums)[TILE_N / 8][4],
                                                       int row, int column, int batch, Box* boxes, int group) {
    store_in_turn<TILE_N / BOX_ROWS>(
        boxes, group, [&](int i, Box& box) { fill_box_transposed<T>(sums, i, box); },
        [&](int i, const Box& box) { store_box(map, row, column + i * BOX_ROWS, batch, &box); });
}

// The same from a box, in vectors of the 16 bytes of neighbouring rows, where no map tells their places: those from
// row r on stand at out + start_of(r), or nowhere if that is negative, and those of the next of `columns` `pitch`
// further on.
template <typename T, int TILE_N, typename StartOf>
__device__ __forceinline__ void store_apart_transposed(T* out, const float (&sums)[TILE_N / 8][4], int columns,
                                                       long long pitch, Box& box, int group, StartOf&& start_of) {
    constexpr int VECTORS = BOX_ROW_BYTES / 16, AT_ONCE = WARPGROUP / VECTORS;
    const int vector = threadIdx.x % VECTORS, first = threadIdx.x % WARPGROUP / VECTORS;
    const long long start = start_of(vector * (16 / sizeof(T)));
#pragma unroll
    for (int i = 0; i < TILE_N / BOX_ROWS; i++) {
        sync_warpgroup(group);  // the box was read
        fill_box_transposed<T>(sums, i, box);
        sync_warpgroup(group);
#pragma unroll
        for (int k = 0; k < BOX_ROWS; k += AT_ONCE) {
            const int row = first + k, column = i * BOX_ROWS + row;
            const int byte = row * BOX_ROW_BYTES + (vector ^ row % 8) * 16;
            if (start >= 0 && column < columns)
                *reinterpret_cast<uint4*>(out + start + column * pitch) =
                    *reinterpret_cast<const uint4*>(&box.bytes[byte]);
        }
    }
}

// Stores a consumer's sums, from `row` and `column` of a matrix (M, N) on, from its threads.
template <typename T, int TILE_N>
__device__ __forceinline__ void store_rows(T* out, const float (&sums)[TILE_N / 8][4], long long row,
                                           long long column, long long M, long long N) {
    row += threadIdx.x % WARPGROUP / 32 * 16;
    store_fragments<TILE_N / 8>(out + row * N + column, sums, M - row, N - column, N);
}
