// Convolution with kernels of 1x1 and its two gradients on tensor cores, for images as they lie: the rung after
// conv2d_tensor_core.cu, whose transpositions take longer here than the product.
//
//   out[n]      (O, P) = weight (O, C)  times  x[n] (C, P)  plus bias, through ReLU where `relu`
//   grad_x[n]   (C, P) = weight^T       times  grad[n] (O, P)
//   grad_weight (O, C) = the sum over n of  grad[n] (O, P)  times  x[n]^T
//
// P is the pixels of a plane, which are neighbours: stride 1, no padding, groups = 1. Arrays are C-contiguous;
// planes, and the rows of the weight, are multiples of 16 bytes, so that no chunk of 16 bytes has pixels of two
// images. Or, but for grad_weight, images lie channels last, a matrix (N P, C) whose rows are multiples of 16
// bytes: then the convolution is one product of matrices. Elements are floats, whose factors are rounded to TF32,
// __half or __nv_bfloat16; sums are float32, and rounded once.
//
// Where the tiles are too few for a card's multiprocessors, K is cut into parts, as in conv2d_tensor_core.cu.
//
// The loop of tensor_core_tiles.cuh takes factors either way. Forward and for the input K are channels, which
// are planes: the images' tile has a line of pixels for each (AcrossK), and so has the transposed weight's; or they
// are neighbours in a pixel (AlongK). The columns are the pixels of all images, one after the other. For the weight
// K are the pixels of all images, of which a thread copies the same chunk of many channels (AlongK). They are cut
// into parts, for blocks of their own, which write their sums to `partial`, and conv2d_parts.cu adds these.
//
// Arithmetic intensity, registers and shared memory of tiles: as in conv2d_tensor_core.cu. Every element of
// the images is read by the rows of tiles alone, once for 64 or 128 channels of the result.
#include "common.cuh"
#include "conv2d_epilogue.cuh"
#include "tensor_core_copiers.cuh"

constexpr int TILE_N = 128;

// Blocks that share a multiprocessor. The addresses of floats AcrossK take more registers than three leave.
template <typename T, int TILE_M>
constexpr int MIN_BLOCKS = TILE_M == 128 || sizeof(T) == 4 ? 2 : 3;

// The channels that a block sums over.
struct Channels {
    int first, count;
};

struct PointwiseShape {
    int images, pixels;
    int rows, channels;      // of the product; for the weight: of grad and of x
    long long weight_pitch;  // from a row of the weight (O, C) to the next
};

// Brings the images' tile, from column `first` on: channels first a line for each channel.
template <typename T, bool CHANNELS_LAST>
struct ImageCopier {
    using Tile = AcrossK<T, TILE_N>;
    LineCopier<T, TILE_N> pixels;

    __device__ __forceinline__ ImageCopier(const T* source, long long first, const Channels& k, const PointwiseShape& s)
        : ImageCopier(source, first + Lines<T, TILE_N>().chunk * PER_CHUNK<T>, s.pixels, k, s) {}

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part) {
        pixels.start(copies, tile, part);
    }

  private:
    __device__ __forceinline__ ImageCopier(const T* source, long long column, int plane, const Channels& k,
                                           const PointwiseShape& s)
        : pixels(source + (column / plane * (s.channels - 1) + k.first) * plane + column, plane, k.count,
                 column / plane < s.images) {}
};

template <typename T>
struct ImageCopier<T, true> : MatrixCopier<T, TILE_N, false> {
    __device__ __forceinline__ ImageCopier(const T* source, long long first, const Channels& k, const PointwiseShape& s)
        : MatrixCopier<T, TILE_N, false>(source + k.first, s.channels, first, (long long)s.images * s.pixels,
                                         k.count) {}
};

// Stores a warp's results channels first. Two columns of a lane are neighbours in one image.
template <typename T, typename Tiling>
__device__ __forceinline__ void store_channels_first(T* out, const typename Tiling::Sums& sums,
                                                     const Epilogue<T>& result, int first_row, long long first_column,
                                                     const PointwiseShape& s) {
    constexpr int ROWS = 2 * Tiling::WARP_M / 16;  // of a lane
    const int lane = threadIdx.x % 32, row = first_row + Tiling::warp_row() + lane / 4;
    float starts[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) starts[i] = result.start_of(row + 8 * i);
#pragma unroll
    for (int n = 0; n < Tiling::WARP_N / 8; n++) {
        const long long column = first_column + Tiling::warp_column() + 8 * n + lane % 4 * 2;
        const long long image = column / s.pixels;
        if (image >= s.images) continue;
        T* const to = out + image * (s.rows - 1) * s.pixels + column;  // of row 0
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (row + 8 * i >= s.rows) continue;
            const float* const two = &sums[i / 2][n][i % 2 * 2];
            *reinterpret_cast<Pair<T>*>(to + (row + 8ll * i) * s.pixels) = {
                result.of(two[0], starts[i]), result.of(two[1], starts[i])};
        }
    }
}

template <typename T, typename Tiling, bool CHANNELS_LAST>
__device__ __forceinline__ void store(T* out, const typename Tiling::Sums& sums, const Epilogue<T>& result,
                                      int first_row, long long first_column, void* tiles, const PointwiseShape& s) {
    if constexpr (CHANNELS_LAST) {
        const long long first = first_column + Tiling::warp_column(), columns = (long long)s.images * s.pixels;
        store_channels_last<T, Tiling>(out, sums, result, first_row, tiles, [&](int pixel) {
            return first + pixel < columns ? (first + pixel) * s.rows : -1;
        });
    } else {
        store_channels_first<T, Tiling>(out, sums, result, first_row, first_column, s);
    }
}

// Forward, and where TRANSPOSED the gradient for the input, whose source is that of the output. Grid: x = the
// tiles, those of the same columns side by side, y = parts of `part_steps` of the steps, each with an array of results
// of its own; bias may be null. Out is T, or float for the sums of parts.
template <typename T, typename Out, int TILE_M, bool TRANSPOSED, bool CHANNELS_LAST>
__global__ void __launch_bounds__(128, MIN_BLOCKS<T, TILE_M>)
conv2d_pointwise(Out* out, const T* source, const T* weight, const Out* bias, bool relu, int part_steps,
                 PointwiseShape s) {
    using Tiling = TensorCoreTiling<TILE_M, TILE_N>;
    using Weights = MatrixCopier<T, TILE_M, TRANSPOSED>;
    using Images = ImageCopier<T, CHANNELS_LAST>;
    extern __shared__ __align__(128) uint4 tiles[];
    const int row_tiles = (s.rows + TILE_M - 1) / TILE_M, first_row = blockIdx.x % row_tiles * TILE_M;
    const long long first_column = (long long)(blockIdx.x / row_tiles) * TILE_N;

    const int first_step = blockIdx.y * part_steps;
    const int steps = min((s.channels + STEP<T> - 1) / STEP<T> - first_step, part_steps);
    const Channels k = {first_step * STEP<T>, min(s.channels - first_step * STEP<T>, steps * STEP<T>)};
    const T* const from = weight + (TRANSPOSED ? k.first * s.weight_pitch : k.first);
    Weights weights(from, s.weight_pitch, first_row, s.rows, k.count);
    Images images(source, first_column, k, s);
    typename Tiling::Sums sums = {};
    AsyncCopies copies;
    multiply_tiles<T, Tiling, typename Weights::Tile, typename Images::Tile>(
        sums, tiles, steps, copies, [&](uint4* a_tile, uint4* b_tile, Part part) {
            weights.start(copies, a_tile, part);
            images.start(copies, b_tile, part);
        });
    out += blockIdx.y * ((long long)s.images * s.pixels * s.rows);
    store<Out, Tiling, CHANNELS_LAST>(out, sums, {bias, relu, s.rows}, first_row, first_column, tiles, s);
}

// ---- gradient for the weight ----

// Brings a tile of channels along the pixels of all images.
template <typename T, int SIDE>
struct PixelCopier {
    RowCopier<T, SIDE> rows;
    int pixel, pixels;   // where the next chunk is in its plane, and how many a plane has
    long long to_next;   // from the end of a plane to the same channel in the next image
    long long next = 0;  // from this tile to the one after it

    __device__ __forceinline__ PixelCopier(const T* images, int channels, int first_channel, long long begin,
                                           int pixels)
        : rows(images + (long long)first_channel * pixels, pixels, channels - first_channel),
          pixels(pixels),
          to_next((long long)(channels - 1) * pixels) {
        const long long number = begin + threadIdx.x % CHUNKS * PER_CHUNK<T>, image = number / pixels;
        pixel = int(number % pixels);
        rows.skip(begin + image * to_next);
    }

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part, bool inside) {
        if (part.number == 0) {
            next = STEP<T>;
            for (pixel += STEP<T>; pixel >= pixels; pixel -= pixels) next += to_next;
        }
        rows.start(copies, tile, part, inside, next);
    }
};

// Grid: x = the tiles, for each part of part_length pixels.
template <typename T, int TILE_M>
__global__ void __launch_bounds__(128, MIN_BLOCKS<T, TILE_M>)
conv2d_pointwise_weight_grad(float* partial, const T* grads, const T* input, long long part_length,
                             PointwiseShape s) {
    using Tiling = TensorCoreTiling<TILE_M, TILE_N>;
    extern __shared__ __align__(128) uint4 tiles[];
    const Position tile(blockIdx.x, (s.channels + TILE_N - 1) / TILE_N, (s.rows + TILE_M - 1) / TILE_M);
    const int first_row = tile.x * TILE_M, first_column = tile.y * TILE_N;
    const long long begin = tile.plane * part_length;
    const long long end = min(begin + part_length, (long long)s.images * s.pixels);

    PixelCopier<T, TILE_M> grad_copier(grads, s.rows, first_row, begin, s.pixels);
    PixelCopier<T, TILE_N> input_copier(input, s.channels, first_column, begin, s.pixels);
    long long left = end - begin - threadIdx.x % CHUNKS * PER_CHUNK<T>;
    typename Tiling::Sums sums = {};
    AsyncCopies copies;
    multiply_tiles<T, Tiling, AlongK<T, TILE_M>, AlongK<T, TILE_N>>(
        sums, tiles, (end - begin + STEP<T> - 1) / STEP<T>, copies,
        [&](uint4* a_tile, uint4* b_tile, Part part) {
            grad_copier.start(copies, a_tile, part, left > 0);
            input_copier.start(copies, b_tile, part, left > 0);
            if (part.is_last()) left -= STEP<T>;
        });
    const int row = first_row + Tiling::warp_row(), column = first_column + Tiling::warp_column();
    float* part = partial + (tile.plane * s.rows + row) * s.channels + column;
#pragma unroll
    for (int m = 0; m < Tiling::WARP_M / 16; m++)
        store_fragments<Tiling::WARP_N / 8>(part + 16ll * m * s.channels, sums[m], s.rows - row - 16 * m,
                                            s.channels - column, s.channels);
}
