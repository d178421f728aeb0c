// The gradient of convolution for its weight on tensor cores: the rung after conv2d_pipelined.cu. In each group
//
//   out[o, c, tap] = sum over n, pixel of grad_output[n, o, pixel] * input[n, c, pixel at tap]
//
// Shapes: grad_output is (pixels, O) and input (N, H, W, C), channels last, with pixels multiples of 16 bytes
// apart, as for conv2d_tensor_core.cu; out is (O, C/groups, KH, KW), C-contiguous, or (O, KH, KW, C/groups).
// Elements are floats, whose factors are rounded to TF32, __half or __nv_bfloat16; sums are float32, and rounded once.
//
// K is the pixels of the batch, and channels last are neighbours across it: a tile has a line for each pixel
// (AcrossK), which ldmatrix transposes in 16 bits; floats, which it cannot, are read one by one. The columns
// are the chunks of 16 bytes of all taps, one tap after the other: a thread copies the same channels of the
// same tap in every step, and walks over the pixels. It does so by way of the L1 cache, for the taps of a tile read
// the same pixels.
//
// K is cut into parts, for blocks of their own, which write their sums to `partial` (parts, taps, O, C/groups);
// conv2d_parts.cu adds them.
//
// A product is of one group, or of several neighbours that have few channels (conv2d_merge_groups.py): then it
// makes for each row the columns of all, and keeps those of its own group. Without, these rows would lie idle.
//
// Arithmetic intensity, registers and shared memory of tiles: as in conv2d_tensor_core.cu. In a step of floats
// a warp reads 32 times 128 bytes of shared memory for 32 mma, so that it is bound by these.
#include "conv2d.cuh"
#include "tensor_core_copiers.cuh"

constexpr int TILE_N = 128;  // channels of taps

// Blocks that share a multiprocessor. The addresses of floats take more registers than three blocks leave, and
// than there are beside 128 sums: their tiles have 64 rows.
template <typename T, int TILE_M>
constexpr int MIN_BLOCKS = TILE_M == 128 || sizeof(T) == 4 ? 2 : 3;
template <typename T>
constexpr int MIN_BLOCKS<T, 32> = sizeof(T) == 4 ? 3 : 4;

// How many products there are, and the rows and channels of one, and of a group within it.
struct Products {
    int count, rows, channels, group_rows, group_channels;
};

// How the pixels of the input that a tap reads follow one another: down and right from one of a thread's to its next,
// the width and height of an image of them, and the distances in elements: to the next, and what is to add where a row,
// or an image, ends. The same for all threads: with these among the arguments, none keeps them in registers.
struct Walk {
    int down, right, width, height;
    long long to_next, to_next_row, to_next_image;
};

// Of the pixels of the output, from number `begin` to `end`, what the taps of TILE_N columns read. A thread has
// the same chunk of several pixels, as with the gradients' tile (LineCopier), and walks from one to the next by
// additions alone. Chunks are whole, or zeros: no sums of channels beyond the last are stored.
template <typename T>
struct InputCopier : Lines<T, TILE_N> {
    using Base = Lines<T, TILE_N>;
    const Conv2dShape& s;
    const Walk& walk;
    const T* from;     // this thread's chunk in the next pixel
    int y, x;          // where that is, in the input
    int y_end, x_end;  // where an image, and a row, of such pixels ends
    int left;          // pixels from the next one of this thread on; none, if its chunk is outside

    // Of a product's `channels`, from `input` on.
    __device__ __forceinline__ InputCopier(const T* input, int channels, long long pitch, long long begin,
                                           long long end, int first_chunk, const Conv2dShape& s, const Walk& walk)
        : s(s), walk(walk) {
        const int chunks = (channels + PER_CHUNK<T> - 1) / PER_CHUNK<T>;  // of a tap
        const int number = first_chunk + Base::chunk, tap = number / chunks;
        const int down = tap / s.KW * s.dilation_h - s.pad_h, right = tap % s.KW * s.dilation_w - s.pad_w;
        const Position at(begin + Base::first, s.OH, s.OW);
        y = at.y * s.stride_h + down, x = at.x * s.stride_w + right;
        y_end = walk.height + down, x_end = walk.width + right;
        left = tap < s.KH * s.KW ? int(end - begin) - Base::first : 0;
        from = input + number % chunks * PER_CHUNK<T> + ((at.plane * s.H + y) * s.W + x) * pitch;
    }

    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* tile, Part part) {
        constexpr int COUNT = STEP<T> / Base::AT_ONCE;
        uint4* to = &tile[AcrossK<T, TILE_N>::place_of(Base::first, Base::chunk)];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (!part.has(i, COUNT)) continue;
            const int line = i * Base::AT_ONCE;
            const bool is_inside = left > line && unsigned(y) < unsigned(s.H) && unsigned(x) < unsigned(s.W);
            copies.copy<CHUNK_BYTES, true>(to + line * Base::LINE, from, is_inside ? CHUNK_BYTES : 0);
            advance();
        }
        if (part.is_last()) left -= STEP<T>;
    }

  private:
    __device__ __forceinline__ void advance() {
        x += walk.right;
        y += walk.down;
        from += walk.to_next;
        if (x >= x_end) {
            x -= walk.width;
            y += s.stride_h;
            from += walk.to_next_row;
        }
        if (y >= y_end) {
            y -= walk.height;
            from += walk.to_next_image;
        }
    }
};

// Stores a warp's sums to a product's rows of a part (taps, O, C/groups): those of a row and a channel of the
// same group.
template <typename T, typename Tiling>
__device__ __forceinline__ void store(float* part, const typename Tiling::Sums& sums, int first_row,
                                      int first_chunk, const Products& products, const Conv2dShape& s) {
    const int chunks = (products.channels + PER_CHUNK<T> - 1) / PER_CHUNK<T>, pitch = products.group_channels;
    const int lane = threadIdx.x % 32, first_column = Tiling::warp_column() + lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < Tiling::WARP_N / 8; n++) {
        const int column = first_column + 8 * n, number = first_chunk + column / PER_CHUNK<T>;
        const int tap = number / chunks, channel = number % chunks * PER_CHUNK<T> + column % PER_CHUNK<T>;
        if (tap >= s.KH * s.KW) continue;
        const int group = channel / pitch, next_group = (channel + 1) / pitch;
#pragma unroll
        for (int half = 0; half < 2 * Tiling::WARP_M / 16; half++) {
            const int row = first_row + Tiling::warp_row() + 8 * half + lane / 4;
            if (row >= products.rows) continue;
            const int group_of_row = row / products.group_rows;
            float* to = part + ((long long)tap * s.O + row) * pitch;
            const float* const two = &sums[half / 2][n][half % 2 * 2];
            if (pitch % 2 == 0) {
                if (group == group_of_row) *reinterpret_cast<Pair<float>*>(to + channel % pitch) = {two[0], two[1]};
            } else {
                if (group == group_of_row) to[channel % pitch] = two[0];
                if (next_group == group_of_row) to[(channel + 1) % pitch] = two[1];
            }
        }
    }
}

// Grid: x = the tiles, those of the same columns side by side, for each product, for each part of part_length
// pixels. A pitch is how many elements pixels are apart.
template <typename T, int TILE_M>
__global__ void __launch_bounds__(128, MIN_BLOCKS<T, TILE_M>)
conv2d_weight_grad_tensor_core(float* partial, const T* grads, const T* input, long long grad_pitch,
                               long long input_pitch, long long part_length, Products products, Conv2dShape s,
                               Walk walk) {
    using Tiling = TensorCoreTiling<TILE_M, TILE_N>;
    extern __shared__ __align__(128) uint4 tiles[];
    constexpr int TILE_CHUNKS = TILE_N / PER_CHUNK<T>;
    const int chunks = (products.channels + PER_CHUNK<T> - 1) / PER_CHUNK<T> * s.KH * s.KW;
    const Position tile(blockIdx.x, (chunks + TILE_CHUNKS - 1) / TILE_CHUNKS, (products.rows + TILE_M - 1) / TILE_M);
    const int first_row = tile.x * TILE_M, first_chunk = tile.y * TILE_CHUNKS;
    const int product = int(tile.plane % products.count);
    const long long number = tile.plane / products.count, begin = number * part_length;
    const long long end = min(begin + part_length, (long long)s.N * s.OH * s.OW);

    auto grad_copier = copy_columns<T, TILE_M>(grads + begin * grad_pitch + product * products.rows, grad_pitch,
                                               int(end - begin), first_row, products.rows);
    InputCopier<T> input_copier(input + product * products.channels, products.channels, input_pitch, begin, end,
                                first_chunk, s, walk);
    typename Tiling::Sums sums = {};
    AsyncCopies copies;
    multiply_tiles<T, Tiling, AcrossK<T, TILE_M>, AcrossK<T, TILE_N>>(
        sums, tiles, (end - begin + STEP<T> - 1) / STEP<T>, copies,
        [&](uint4* a_tile, uint4* b_tile, Part part) {
            grad_copier.start(copies, a_tile, part);
            input_copier.start(copies, b_tile, part);
        });
    const long long part = number * s.KH * s.KW * s.O + product * products.rows;
    store<T, Tiling>(partial + part * products.group_channels, sums, first_row, first_chunk, products, s);
}
