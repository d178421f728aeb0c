// Convolution and its two gradients on the tensor cores of compute capability 9.0: the rung after
// conv2d_tensor_core.cu, for images that lie channels last, with groups = 1.
//
//   conv2d_wgmma               out[n, pixel, o] = bias[o] + sum over tap, c of source[n, pixel at tap, c] *
//                              weights[tap, o, c], through ReLU where `relu`; and the gradient for the input,
//                              which is such a sum over the other side of the weights for each phase of the stride
//   conv2d_weight_grad_wgmma   out[tap, c, o] = sum over n, pixel of source[n, pixel at tap, c] * grads[n, pixel, o]
//
// They are products of whole tiles in shared memory (wgmma_tiles.cuh). M are the pixels, or for the weight's
// gradient the channels of all taps; N are the channels that are made.
//
// The idea is the copy engine's im2col mode: it is told once how the filter moves over the images, and then finds
// the 64 pixels that follow each other in the result, from row to row and from image to image, where they stand in
// the source at the tap that a copy names. What lies in the padding, in no image, or beyond the last channel comes
// as zeros. conv2d_tensor_core.cu looks up each pixel, and asks of each whether it is inside, in all threads; here
// one thread adds up a few numbers for each step.
//
// Shapes: source (N, H, W, C), with pixels multiples of 16 bytes apart; weights (O, taps, C), of which the engine
// sees one (O, C) for each tap: its elements along C are neighbours, which is along K, or along N for the gradient
// for the input; of floats, which wgmma takes along K alone, that has a transposed copy. out is (pixels, O)
// without gaps, or in 16 bits (N, O, OH, OW), whose planes are multiples of 16 bytes. Elements are __half,
// __nv_bfloat16 or, but for the gradient for the weight, floats, which the engine rounds to TF32; sums are
// float32, and rounded once.
//
// Arithmetic intensity, in operations for each byte that a cluster asks of the L2 cache, in 16 bits: as in
// matmul_wgmma.cu 128 for tiles of 128 x 256, 85 for 128 x 128, 51 for 128 x 64. The taps of a pixel are its
// neighbours' pixels, which the L2 cache has: from memory all comes about once.
//
// Where tiles are few, K is cut into parts, products of their own, which split_k.cu adds up in the result's layout.
//
// A step of K has 64 channels of one tap (32 floats), or 64 pixels: of C channels in no whole steps, or O in no
// whole tiles, the rest is zeros, which cost as much.
//
// NaN and infinity: as in conv2d_tensor_core.cu, the padding's zeros are multiplied with like any number.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common.cuh"
#include "wgmma_tiles.cuh"

// How the filter moves. Its corner is the least pixel that any tap reads; taps lie right and down of it.
struct Filter {
    int height, width;                // of an image of the result
    int corner_y, corner_x;           // of the result's first pixel, in the source
    int stride_y, stride_x;           // of the corner, from pixel to pixel of the result
    int taps_down, taps_across;
    int first_down, first_right;      // from the corner to the first tap
    int step_down, step_right;        // from tap to tap
    int number, next_right, next_down;  // of the first tap's weights; what is to add to the right, and to the next row
};

// Where the pixels of a phase stand in the gradient for the input of a convolution with a stride: in images of height x
// width, down and right from the first by the stride.
struct Lattice {
    int height, width, first_y, first_x, stride_y, stride_x;
};

// One tap, as the distance from the corner.
struct Tap {
    int down, right;

    __device__ __forceinline__ Tap(const Filter& filter, int number)
        : down(filter.first_down + number / filter.taps_across * filter.step_down),
          right(filter.first_right + number % filter.taps_across * filter.step_right) {}
};

// Starts the copy of 64 pixels of the source, those that the tap reads for the result's pixels from `at` on.
__device__ __forceinline__ void load_source(Box* box, const TensorMap& map, int channel, const Position& at,
                                            const Tap& tap, const Filter& filter, Barrier& full) {
    load_pixels(box, map, channel, filter.corner_x + at.x * filter.stride_x, filter.corner_y + at.y * filter.stride_y,
                int(at.plane), tap.right, tap.down, full);
}

// ---- forward, and the gradient for the input ----

enum Stores { BY_THREADS, BY_BOXES, CHANNELS_FIRST, TO_LATTICE };

// For make_tiles. ALONG_N: the neighbours in the weights are the channels that are made, not those of the source.
template <typename T, int TILE_N, bool ALONG_N>
struct Convolution {
    using Place = typename Tiles<TILE_N>::Place;
    static constexpr bool IN_PARTS = TILE_N <= 128;

    T* out;
    float* partial;  // in place of out, if there are several parts
    const T* bias;   // may be null
    const TensorMap &source_map, &weights_map, &out_map;
    const Filter& filter;
    const Lattice& lattice;
    long long pixels, made;  // the result's, and its channels
    int channels;            // of the source
    bool relu;
    int stores, parts, part_steps;
    Tiles<TILE_N> tiles;  // whose batch is a part of the sums

    __device__ __forceinline__ int steps_of_tap() const { return (channels + STEP<T> - 1) / STEP<T>; }

    __device__ __forceinline__ int steps(int tile) const {
        const int steps = filter.taps_down * filter.taps_across * steps_of_tap();
        return IN_PARTS ? min(steps - tiles.batch_of(tile) * part_steps, part_steps) : steps;
    }

    // One tap after the other, and of each the channels.
    struct Source {
        const Convolution& all;
        Position boxes[A_BOXES];
        int column, channel, number, across;  // across: of the tap, in its row
        Tap tap;

        __device__ __forceinline__ Source(const Convolution& all, const Place& place)
            : Source(all, place, IN_PARTS ? place.batch * all.part_steps / all.steps_of_tap() : 0) {}

        // Whose first tap is the `first` of all.
        __device__ __forceinline__ Source(const Convolution& all, const Place& place, int first)
            : all(all),
              column(place.column),
              channel(IN_PARTS ? (place.batch * all.part_steps - first * all.steps_of_tap()) * STEP<T> : 0),
              number(all.filter.number + first * all.filter.next_right +
                     first / all.filter.taps_across * all.filter.next_down),
              across(first % all.filter.taps_across),
              tap(all.filter, first) {
#pragma unroll
            for (int i = 0; i < A_BOXES; i++)
                boxes[i] = Position(place.row + i * BOX_ROWS, all.filter.height, all.filter.width);
        }

        __device__ __forceinline__ void load(Box* a, Box* b, Barrier& full) {
#pragma unroll
            for (int i = 0; i < A_BOXES; i++)
                load_source(a + i, all.source_map, channel, boxes[i], tap, all.filter, full);
            load_for_cluster<TILE_N>(b, all.weights_map, full, [&](int i) {
                const int n = column + i * BOX_ROWS;
                return BoxPlace{ALONG_N ? n : channel, ALONG_N ? channel : n, number};
            });
            channel += STEP<T>;
            if (channel < all.channels) return;
            channel = 0;
            number += all.filter.next_right;
            tap.right += all.filter.step_right;
            if (++across < all.filter.taps_across) return;
            across = 0;
            number += all.filter.next_down;
            tap.right = all.filter.first_right;
            tap.down += all.filter.step_down;
        }
    };

    __device__ __forceinline__ Source source(const Place& place) const { return {*this, place}; }

    __device__ __forceinline__ void store(float (&sums)[TILE_N / 8][4], const Place& place, int consumer,
                                          Box* boxes) const {
        const int row = place.row + consumer * BOX_ROWS;
        if (IN_PARTS && parts > 1) return store_part(partial + place.batch * pixels * made, sums, row, place.column);
        if (bias) add_bias<TILE_N>(sums, bias + place.column, made - place.column);
        if (relu)
#pragma unroll
            for (int i = 0; i < TILE_N / 2; i++) sums[i / 4][i % 4] = relu_if(true, sums[i / 4][i % 4]);
        if (stores == BY_BOXES) return store_boxes<T, TILE_N>(out_map, sums, row, place.column, 0, boxes, 1 + consumer);
        if constexpr (sizeof(T) == 2)
            if (stores == CHANNELS_FIRST) return store_channels_first(sums, row, place.column, 1 + consumer, boxes);
        if constexpr (ALONG_N || sizeof(T) == 4)
            if (stores == TO_LATTICE) return store_to_lattice(sums, row, place.column, 1 + consumer, boxes);
        store_rows<T, TILE_N>(out, sums, row, place.column, pixels, made);
    }

  private:
    // As the result will lie. Channels first, the threads of a warp store 8 neighbours of 8 channels.
    __device__ __forceinline__ void store_part(float* part, const float (&sums)[TILE_N / 8][4], int first,
                                               int column) const {
        if (stores != CHANNELS_FIRST) return store_rows<float, TILE_N>(part, sums, first, column, pixels, made);
        const int plane = filter.height * filter.width, lane = threadIdx.x % 32;
        column += lane % 4 * 2;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int pixel = first + threadIdx.x % WARPGROUP / 32 * 16 + 8 * half + lane / 4, image = pixel / plane;
            if (pixel >= pixels) continue;
            float* const to = part + ((long long)image * made + column) * plane + pixel % plane;
#pragma unroll
            for (int n = 0; n < TILE_N / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (column + 8 * n + i < made) to[(8 * n + i) * plane] = sums[n][2 * half + i];
        }
    }

    // Vectors of pixels are in one image each: planes are whole vectors.
    __device__ __forceinline__ void store_channels_first(const float (&sums)[TILE_N / 8][4], int first, int column,
                                                         int group, Box* boxes) const {
        const int plane = filter.height * filter.width;
        store_apart_transposed<T, TILE_N>(out, sums, made - column, plane, *boxes, group, [&](int row) {
            const int pixel = first + row, image = pixel / plane;
            return pixel < pixels ? (image * made + column) * plane + pixel % plane : -1;
        });
    }

    __device__ __forceinline__ void store_to_lattice(const float (&sums)[TILE_N / 8][4], int first, int column,
                                                     int group, Box* boxes) const {
        store_apart<T, TILE_N>(out + column, sums, made - column, *boxes, group, [&](int row) {
            const Position at(first + row, filter.height, filter.width);
            const long long y = at.plane * lattice.height + lattice.first_y + at.y * lattice.stride_y;
            const int x = lattice.first_x + at.x * lattice.stride_x;
            return first + row < pixels ? (y * lattice.width + x) * made : -1;
        });
    }
};

// source and weights are read by way of their maps alone. Where there are several parts, of `part_steps` of the steps
// each, which tiles of up to 128 columns can have, their sums go to partial (parts, pixels, O) or, where stores is
// CHANNELS_FIRST, (parts, N, O, OH, OW), and nothing to out. Grid: x = clusters of CLUSTER blocks, as many as the card
// has places for.
template <typename T, int TILE_N, bool ALONG_N>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
conv2d_wgmma(T* out, const T* source, const T* weights, const T* bias, const __grid_constant__ TensorMap source_map,
             const __grid_constant__ TensorMap weights_map, const __grid_constant__ TensorMap out_map,
             const Filter filter, const Lattice lattice, long long pixels, int made, int channels, bool relu,
             int stores, float* partial, int parts, int part_steps) {
    make_tiles<T, TILE_N, false, ALONG_N>(Convolution<T, TILE_N, ALONG_N>{
        out, partial, bias, source_map, weights_map, out_map, filter, lattice, pixels, made, channels, relu, stores,
        parts, part_steps, {pixels, made, parts}});
}

// ---- the gradient for the weight ----

// For make_tiles. The rows are the channels of all taps, in boxes of 64 of one tap; the sums over the pixels are cut
// into parts, products of their own.
template <typename T, int TILE_N>
struct WeightGradient {
    using Place = typename Tiles<TILE_N>::Place;

    float* partial;
    bool to_out;  // in place of partial: out_map is that of (taps, O, C)
    const TensorMap &source_map, &grads_map, &out_map;
    const Filter& filter;
    long long pixels, part_length;  // the result's, and of them in a part: whole steps
    int made, channels;             // of the result, and of the source
    Tiles<TILE_N> tiles;

    __device__ __forceinline__ int steps(int number) const {
        const long long begin = tiles.batch_of(number) * part_length;
        return (min(pixels - begin, part_length) + STEP<T> - 1) / STEP<T>;
    }

    // What box `number` of the rows has.
    struct Rows {
        int tap, channel;

        __device__ __forceinline__ Rows(int number, int channels) {
            const int boxes = (channels + BOX_ROWS - 1) / BOX_ROWS;  // of a tap
            tap = number / boxes;
            channel = number % boxes * BOX_ROWS;
        }
    };

    struct Source {
        const WeightGradient& all;
        Tap taps[A_BOXES];
        int channels[A_BOXES], column, pixel;
        Position at, step;

        __device__ __forceinline__ void load(Box* a, Box* b, Barrier& full) {
#pragma unroll
            for (int i = 0; i < A_BOXES; i++)
                load_source(a + i, all.source_map, channels[i], at, taps[i], all.filter, full);
            load_for_cluster<TILE_N>(b, all.grads_map, full,
                                     [&](int i) { return BoxPlace{column + i * BOX_ROWS, pixel, 0}; });
            at.advance(step, all.filter.height, all.filter.width);
            pixel += STEP<T>;
        }
    };

    __device__ __forceinline__ Source source(const Place& place) const {
        static_assert(A_BOXES == 2 && STEP<T> == BOX_ROWS, "two boxes of rows; a step is the pixels of a box");
        const Rows rows[] = {{place.row / BOX_ROWS, channels}, {place.row / BOX_ROWS + 1, channels}};
        // Of boxes beyond the last nothing is stored, but their bytes are waited for.
        const int last = filter.taps_down * filter.taps_across - 1, begin = place.batch * part_length;
        return {*this,
                {{filter, min(rows[0].tap, last)}, {filter, min(rows[1].tap, last)}},
                {rows[0].channel, rows[1].channel},
                place.column,
                begin,
                {begin, filter.height, filter.width},
                {STEP<T>, filter.height, filter.width}};
    }

    __device__ __forceinline__ void store(const float (&sums)[TILE_N / 8][4], const Place& place, int consumer,
                                          Box* boxes) const {
        const Rows rows(place.row / BOX_ROWS + consumer, channels);
        const int taps = filter.taps_down * filter.taps_across;
        if (rows.tap >= taps) return;
        if (to_out)
            return store_boxes_transposed<T, TILE_N>(out_map, sums, rows.channel, place.column, rows.tap, boxes,
                                                     1 + consumer);
        float* const part = partial + ((long long)place.batch * taps + rows.tap) * channels * made;
        store_rows<float, TILE_N>(part, sums, rows.channel, place.column, channels, made);
    }
};

// out is written, source and grads are read by way of their maps alone. Grid: as for conv2d_wgmma. partial is
// (parts, taps, C, O). `to_out`, if there is one part and out lies as (O, taps, C), in whole vectors, it is not needed.
template <typename T, int TILE_N>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
conv2d_weight_grad_wgmma(T* out, float* partial, bool to_out, const T* source, const T* grads,
                         const __grid_constant__ TensorMap source_map, const __grid_constant__ TensorMap grads_map,
                         const __grid_constant__ TensorMap out_map, const Filter filter, long long pixels,
                         long long part_length, int parts, int made, int channels) {
    const int boxes = (channels + BOX_ROWS - 1) / BOX_ROWS * filter.taps_down * filter.taps_across;
    make_tiles<T, TILE_N, true, true>(WeightGradient<T, TILE_N>{
        partial, to_out, source_map, grads_map, out_map, filter, pixels, part_length, made, channels,
        {(long long)boxes * BOX_ROWS, made, parts}});
}

constexpr int SQUARE = 32, ROW_THREADS = 8, PART_THREADS = 4;

// out (O, C, taps), or (O, taps, C) where `channels_last`, = the sum of the parts of partial (parts, taps C, O), always
// in the same order; transposed by way of shared memory, so that both sides are touched along their rows.
//
// The parts are many where the results are few, and then there are few squares, too: so threads share an element's
// parts, and each asks for all its elements of several parts at once.
//
// Grid: x = squares of 32 channels of taps and 32 rows of out, the former side by side. Block: (32, 8, PART_THREADS or
// fewer).
template <typename T>
__global__ void __launch_bounds__(SQUARE* ROW_THREADS* PART_THREADS, 1)
conv2d_add_parts_wgmma(T* out, const float* partial, int parts, int taps, int channels, int made, bool channels_last) {
    constexpr int OWN = SQUARE / ROW_THREADS, AT_ONCE = 4;  // elements of a thread, and parts of which it asks for them
    __shared__ float squares[PART_THREADS][SQUARE][SQUARE + 1];  // a column more: banks that differ in a column
    const int rows = taps * channels, across = (rows + SQUARE - 1) / SQUARE;
    const int first_row = blockIdx.x % across * SQUARE, first_made = blockIdx.x / across * SQUARE;
    const float* from[OWN];  // behind the last row, or column, that one is read again
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int row = min(first_row + int(threadIdx.y) + i * ROW_THREADS, rows - 1);
        from[i] = partial + (long long)row * made + min(first_made + int(threadIdx.x), made - 1);
    }
    const int step = blockDim.z;  // to the next part of this thread
    float sums[OWN] = {};
    for (int part = threadIdx.z; part < parts; part += AT_ONCE * step) {
        float own[AT_ONCE][OWN] = {};
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (part + k * step >= parts) break;
#pragma unroll
            for (int i = 0; i < OWN; i++) own[k][i] = from[i][(part + k * step) * ((long long)rows * made)];
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
            for (int i = 0; i < OWN; i++) sums[i] += own[k][i];
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) squares[threadIdx.z][threadIdx.y + i * ROW_THREADS][threadIdx.x] = sums[i];
    __syncthreads();  // all sums are there
    const int row = first_row + threadIdx.x, tap = row / channels, channel = row % channels;
    const int place = channels_last ? row : channel * taps + tap;
    for (int i = threadIdx.z * ROW_THREADS + threadIdx.y; i < SQUARE; i += blockDim.z * ROW_THREADS) {
        if (row >= rows || first_made + i >= made) continue;
        float sum = squares[0][threadIdx.x][i];
        for (int other = 1; other < blockDim.z; other++) sum += squares[other][threadIdx.x][i];
        out[(long long)(first_made + i) * rows + place] = T(sum);
    }
}
