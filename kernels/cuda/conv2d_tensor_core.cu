// Convolution and the gradient for its input on tensor cores: the rung after conv2d_pipelined.cu, whose
// products these are (conv2d_task.cuh), of one group, or of several neighbours.
//
//   out[n, o, pixel] = bias[o] + sum over tap, c of weights[o, tap, c] * source[n, pixel at tap, c]
//
// Shapes: weights is (rows, taps, channels) and source (N, H, W, channels): channels last, so that they are
// neighbours along K, as mma wants them, and a chunk of 16 bytes has one tap and one pixel. Pixels and taps
// are multiples of 16 bytes apart; zeros follow the last channel up to there. out is (N, rows, OH, OW), or
// (N, OH, OW, rows) where `channels_last`, without gaps. Elements are floats, whose factors are rounded to TF32,
// __half or __nv_bfloat16; sums are float32, and rounded once.
//
// Images that lie channels last are read where they are, and the result then lies so too (conv2d_epilogue.cuh): from
// layer to layer nothing is transposed. Users ask for that, with contiguous(memory_format=channels_last), as views
// that flatten such images have to be copies. All other images are transposed by a launch in front (transpose.cu),
// which moves 2 N C H W elements. For a 3x3 layer of stride 1 the product takes 18 O operations for each of these:
// in 16 bits at O = 64 288 for a byte moved, at O = 256 1152. With the 206 that an H200 has for a byte of its
// memory, the transposition takes 0.7, or 0.2, of the product's time at best; of a 1x1 layer's it takes more than
// the product. Weights that lie channels last are read where they are by the forward pass; the gradient for the
// input, whose rows and K are exchanged, has them transposed.
//
// Groups of few channels are made together, by products whose weights have zeros for the channels of the other
// groups (conv2d_merge_groups.cu); what a kernel calls a group is all that one product makes. Of 32 groups of 4
// channels 8 share a tile of 32 rows: 7 of 8 products are with zeros, as 28 of 32 rows would lie idle without. A
// 3x3 layer takes 18 operations for each byte of such groups that it reads or writes in 16 bits, with the zeros
// 144. An H200 can do 206, so that these are free. Its pixels come 9 times from the L2 cache, once for each tap, and
// that is what should bound it.
//
// A block makes TILE_M channels x TILE_N pixels in the loop of tensor_core_tiles.cuh. Its tile of the source
// is gathered by cp.async, which writes zeros where a tap lies in the padding, and by way of the L1 cache: the taps
// of a pixel are its neighbours'. Where each pixel stands is found once, by one thread, and kept in shared memory. A
// thread copies 4 pixels, and keeps where they begin: read before each copy, it made the copies wait 30 cycles each.
//
// Arithmetic intensity of a step, in operations for each byte copied: as in matmul_tensor_core.cu 64 in 16
// bits for a tile of 128 x 128, 43 for 64 x 128, 26 for 32 x 128. The taps of a pixel are its neighbours' pixels: most
// of these bytes come from the caches.
//
// Where the tiles are too few for a card's multiprocessors, the steps are cut into parts, for blocks of their own,
// whose sums conv2d_parts.cu adds. Products of merged groups, whose sums are short, and pooled ones are not cut.
//
// The padding's zeros are multiplied with like any number: where a weight is infinite and its pixel lies
// outside, out is NaN, as in the reference. NaN or infinity reaches the results that it is part of, and no
// others: a column's sums are its own, and so are a row's.
//
// Registers: 128 sums of a thread, and 32 of fragments, in a tile of 128 x 128; two blocks share a
// multiprocessor, or three of 64 x 128, or four of 32 x 128. Shared memory: 48, 36 or 30 KB of tiles, 3 KB of places.
#include "conv2d_epilogue.cuh"
#include "conv2d_task.cuh"
#include "tensor_core_tiles.cuh"

constexpr int TILE_N = 128;       // pixels
constexpr int OUTSIDE = -(1 << 30);  // a coordinate that no tap brings back into the source
constexpr int ALL_STEPS = 1 << 30;   // in one part

template <int TILE_M>
constexpr int MIN_BLOCKS = TILE_M == 128 ? 2 : TILE_M == 64 ? 3 : 4;  // of a multiprocessor

// How many elements the pixels of the source, and the taps and the rows of the weights, are apart.
struct Pitches {
    long long pixel, tap, row;
};

// How many rows and channels of a product are of one group of the convolution: all, or less if groups are merged.
struct Group {
    int rows, channels;
};

// The pixel that the first tap reads for a column, and the element of the source where it begins.
struct alignas(16) SourcePixel {
    int y, x;
    long long begin;
};

// Behind the tiles in shared memory: what a column reads, and where its result stands in channel 0 of out, or
// -1 beyond the last column.
struct Places {
    SourcePixel sources[TILE_N];
    long long results[TILE_N];

    // Of one pixel of out after the other; or where POOLED of the four pixels of one window of 2 x 2 after the
    // other, all with the place of the window's result.
    template <bool POOLED>
    __device__ __forceinline__ void find(const Task& task, int column, long long pitch, bool channels_last) {
        const Axis &vertical = task.vertical, &horizontal = task.horizontal;
        const long long number = task.first_column + column, last = task.columns() - 1;
        const auto place_of = [&](long long image, int y, int x, int height, int width) {
            const long long row = image * (channels_last ? 1 : task.all_rows()) * height + y;
            return number > last ? -1 : (row * width + x) * (channels_last ? task.all_rows() : 1);
        };
        if constexpr (POOLED) {
            const int height = vertical.results / 2, width = horizontal.results / 2;
            Position at(min(number, last) / 4, height, width);
            results[column] = place_of(at.plane, at.y, at.x, height, width);
            at.y = 2 * at.y + column / 2 % 2;
            at.x = 2 * at.x + column % 2;
            find_source(task, column, pitch, at, number > last);
            return;
        }
        const Position at(min(number, last), vertical.results, horizontal.results);
        find_source(task, column, pitch, at, number > last);
        const int result_y = at.y * vertical.result_stride + vertical.first_result;
        const int result_x = at.x * horizontal.result_stride + horizontal.first_result;
        results[column] =
            place_of(at.plane, result_y, result_x, vertical.result_size, horizontal.result_size);
    }

  private:
    __device__ __forceinline__ void find_source(const Task& task, int column, long long pitch, const Position& at,
                                                bool beyond) {
        const Axis &vertical = task.vertical, &horizontal = task.horizontal;
        const int y = at.y * vertical.source_stride + vertical.first_source;
        const int x = at.x * horizontal.source_stride + horizontal.first_source;
        const long long row = at.plane * vertical.source_size + y;
        sources[column] = {beyond ? OUTSIDE : y, x, (row * horizontal.source_size + x) * pitch};
    }
};

// Brings a thread's part of the tiles: of every LOADED_ROWS-th row or pixel one chunk, of the same tap and
// channels. K runs over the taps, in a tap over the channels. Where a tap's pixels are, and which of them are inside
// the source, a thread finds when it comes to the tap.
template <typename T, typename Tiling>
struct TileCopier {
    static constexpr int LOADED_ROWS = Tiling::THREADS / CHUNKS, PIXELS = TILE_N / LOADED_ROWS;
    static_assert(LOADED_ROWS % 8 == 0, "the chunks of a thread's rows are exchanged alike");

    const Task& task;
    const Places& places;
    const Pitches& pitches;
    const T *weights, *source;         // weights of the thread's first row
    const T *next_weights, *next_source;  // of its next chunk; the source's, where places begin
    long long begins[PIXELS];             // of its pixels
    int channel = threadIdx.x % CHUNKS * PER_CHUNK<T>, tap_y = 0, tap_x = 0;
    const int padded;     // channels, in whole chunks
    int rows;             // from the thread's first one on; none behind the last tap
    unsigned inside = 0;  // a bit for each of its pixels

    __device__ __forceinline__ TileCopier(const T* source, const T* weights, const Pitches& pitches,
                                          const Task& task, const Places& places, int first_step)
        : task(task),
          places(places),
          pitches(pitches),
          weights(weights + (task.first_row + threadIdx.x / CHUNKS) * pitches.row),
          source(source),
          next_weights(this->weights),
          next_source(source),
          padded((task.channels + PER_CHUNK<T> - 1) / PER_CHUNK<T> * PER_CHUNK<T>),
          rows(task.rows - task.first_row - int(threadIdx.x / CHUNKS)) {
        if (task.horizontal.taps == 0) tap_y = task.vertical.taps;
        channel += first_step * STEP<T>;
        find_tap();
#pragma unroll
        for (int i = 0; i < PIXELS; i++) begins[i] = places.sources[threadIdx.x / CHUNKS + i * LOADED_ROWS].begin;
    }

    __device__ __forceinline__ long long steps() const {
        const long long taps = (long long)task.vertical.taps * task.horizontal.taps;
        return (taps * padded + STEP<T> - 1) / STEP<T>;
    }

    // On to the tap that `channel` belongs to. The axes are copied, by a few loads at once; one by one, where they are
    // used, all would be waited for.
    __device__ __forceinline__ void find_tap() {
        const Axis vertical = task.vertical, horizontal = task.horizontal;
        while (channel >= padded && tap_y < vertical.taps) {
            channel -= padded;
            if (++tap_x < horizontal.taps) continue;
            tap_x = 0;
            tap_y++;
        }
        inside = 0;
        if (tap_y >= vertical.taps) {
            rows = 0;
            return;
        }
        const int tap = (vertical.first_tap + tap_y * vertical.tap_step) * task.taps_across +
                        horizontal.first_tap + tap_x * horizontal.tap_step;
        const int down = tap_y * vertical.source_step, right = tap_x * horizontal.source_step;
        next_weights = weights + tap * pitches.tap + channel;
        next_source = source + ((long long)down * horizontal.source_size + right) * pitches.pixel + channel;
#pragma unroll
        for (int i = 0; i < PIXELS; i++) {
            const SourcePixel& pixel = places.sources[threadIdx.x / CHUNKS + i * LOADED_ROWS];
            const bool is_inside = unsigned(pixel.y + down) < unsigned(vertical.source_size) &&
                                   unsigned(pixel.x + right) < unsigned(horizontal.source_size);
            inside |= unsigned(is_inside) << i;
        }
    }

    // Chunks are whole, or zeros: a number of bytes that is not known would cost each cp.async an addition, a mask and
    // a predicate more.
    __device__ __forceinline__ void start(AsyncCopies& copies, uint4* a_tile, uint4* b_tile, Part part) {
        constexpr int A_COUNT = Tiling::TILE_M / LOADED_ROWS;
        const int to = AlongK<T, TILE_N>::place_of(threadIdx.x / CHUNKS, threadIdx.x % CHUNKS);
#pragma unroll
        for (int i = 0; i < A_COUNT; i++)
            if (part.has(i, A_COUNT))
                copies.copy<CHUNK_BYTES>(&a_tile[to + i * LOADED_ROWS * CHUNKS],
                                         next_weights + i * LOADED_ROWS * pitches.row,
                                         i * LOADED_ROWS < rows ? CHUNK_BYTES : 0);
#pragma unroll
        for (int i = 0; i < PIXELS; i++)
            if (part.has(i, PIXELS))
                copies.copy<CHUNK_BYTES, true>(&b_tile[to + i * LOADED_ROWS * CHUNKS], next_source + begins[i],
                                               inside & (1 << i) ? CHUNK_BYTES : 0);
        if (!part.is_last()) return;
        next_weights += STEP<T>;
        next_source += STEP<T>;
        channel += STEP<T>;
        if (channel >= padded) find_tap();
    }
};

// Stores a warp's results channels first, 16 rows at a time, by way of the tiles' memory: a row of fragments has 8
// pixels, and a store straight from them would fill half of each sector of 32 bytes. From there a lane stores the same
// two pixels of every row, so that it asks once where they stand, and the loop is short: each block comes to it but
// once, and would wait for its instructions. Two neighbours, as a pair where they are that in out, too, and aligned; or
// pixels that are LANES apart.
template <typename T, typename Tiling>
__device__ __forceinline__ void store_channels_first(T* out, const typename Tiling::Sums& sums,
                                                     const Epilogue<T>& result, const Task& task,
                                                     const Places& places, void* tiles) {
    constexpr int LANES = Tiling::WARP_N / 2, ROWS_AT_ONCE = 32 / LANES;
    constexpr int PITCH = Tiling::WARP_N + 8;  // the lanes' fragments fall into different banks
    static_assert(Tiling::THREADS / 32 * 16 * PITCH * sizeof(T) <= Tiling::TILES * CHUNK_BYTES, "the rows fit");
    T* const slab = static_cast<T*>(tiles) + threadIdx.x / 32 * 16 * PITCH;
    const long long plane = (long long)task.vertical.result_size * task.horizontal.result_size;
    const bool even = plane % 2 == 0 && size_t(out) % sizeof(Pair<T>) == 0;
    const int lane = threadIdx.x % 32;
    const int first = lane % LANES * (even ? 2 : 1), second = first + (even ? 1 : LANES);
    const long long at = places.results[Tiling::warp_column() + first];
    const long long next = places.results[Tiling::warp_column() + second];
    const bool is_pair = even && at % 2 == 0 && next == at + 1;
#pragma unroll
    for (int m = 0; m < Tiling::WARP_M / 16; m++) {
        const int first_row = task.first_row + Tiling::warp_row() + 16 * m;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 8 * half + lane / 4;
            const float start = result.start_of(first_row + row);
#pragma unroll
            for (int n = 0; n < Tiling::WARP_N / 8; n++) {
                const float* const two = &sums[m][n][half * 2];
                const Pair<T> pair = {result.of(two[0], start), result.of(two[1], start)};
                *reinterpret_cast<Pair<T>*>(&slab[row * PITCH + 8 * n + lane % 4 * 2]) = pair;
            }
        }
        __syncwarp();
        const int rows = min(task.rows - first_row, 16);
        T* to = out + (first_row + lane / LANES) * plane;
#pragma unroll 4
        for (int row = lane / LANES; row < rows; row += ROWS_AT_ONCE, to += ROWS_AT_ONCE * plane) {
            const T* const from = &slab[row * PITCH];
            if (is_pair) {
                *reinterpret_cast<Pair<T>*>(to + at) = *reinterpret_cast<const Pair<T>*>(from + first);
            } else {
                if (at >= 0) to[at] = from[first];
                if (next >= 0) to[next] = from[second];
            }
        }
        __syncwarp();  // others may be put in their place
    }
}

template <typename T, typename Tiling>
__device__ __forceinline__ void store(T* out, const typename Tiling::Sums& sums, const Epilogue<T>& result,
                                      bool channels_last, const Task& task, const Places& places, void* tiles) {
    if (!channels_last) return store_channels_first<T, Tiling>(out, sums, result, task, places, tiles);
    const long long* const results = &places.results[Tiling::warp_column()];
    store_channels_last<T, Tiling>(out, sums, result, task.first_row, tiles,
                                   [&](int pixel) { return results[pixel]; });
}

// Finds the largest of each window of 2 x 2 pixels, after bias and ReLU, and which of the four it is: the first
// of equals, or the last NaN, as max_pool2d does, which sees numbers rounded to T. Two pixels of a window are a
// lane's pair, the other two its neighbour's; the even lane of both calls put(row, window, largest, tap), with row
// and window counted from the warp's first ones.
template <typename T, typename Tiling, typename Put>
__device__ __forceinline__ void pool(const typename Tiling::Sums& sums, const Epilogue<T>& result, int first_row,
                                     Put&& put) {
    const int lane = threadIdx.x % 32;
    const auto is_behind = [](float value, float best) { return value > best || value != value; };
#pragma unroll
    for (int half = 0; half < 2 * Tiling::WARP_M / 16; half++) {
        const int row = 8 * half + lane / 4;
        const float start = result.start_of(first_row + row);
#pragma unroll
        for (int n = 0; n < Tiling::WARP_N / 8; n++) {
            const float* const two = &sums[half / 2][n][half % 2 * 2];
            const float left = float(result.of(two[0], start)), right = float(result.of(two[1], start));
            const int which = is_behind(right, left);
            const float best = which ? right : left, below = __shfl_xor_sync(0xFFFFFFFFu, best, 1);
            const int which_below = __shfl_xor_sync(0xFFFFFFFFu, which, 1);
            const bool is_below = is_behind(below, best);
            if (lane % 2 == 0)
                put(row, 2 * n + lane % 4 / 2, T(is_below ? below : best), is_below ? 2 + which_below : which);
        }
    }
}

// Stores what pool() finds: the largest elements, and in `taps` which they are.
template <typename T, typename Tiling>
__device__ __forceinline__ void store_pooled(T* out, unsigned char* taps, const typename Tiling::Sums& sums,
                                             const Epilogue<T>& result, long long plane, const Task& task,
                                             const Places& places) {
    const int first_row = task.first_row + Tiling::warp_row();
    pool<T, Tiling>(sums, result, first_row, [&](int row, int window, T largest, int tap) {
        const long long at = places.results[Tiling::warp_column() + 4 * window];
        if (first_row + row >= task.rows || at < 0) return;
        out[(first_row + row) * plane + at] = largest;
        taps[(first_row + row) * plane + at] = tap;
    });
}

template <typename T, typename Tiling>
__device__ __forceinline__ void store_pooled_channels_last(T* out, unsigned char* taps,
                                                           const typename Tiling::Sums& sums,
                                                           const Epilogue<T>& result, const Task& task,
                                                           const Places& places, void* tiles) {
    constexpr int WINDOWS = Tiling::WARP_N / 4;
    using Slab = PixelSlab<T, Tiling::WARP_M, WINDOWS>;
    using TapSlab = PixelSlab<unsigned char, Tiling::WARP_M, WINDOWS>;
    constexpr int BYTES = Slab::BYTES + TapSlab::BYTES;
    static_assert(Tiling::THREADS / 32 * BYTES <= Tiling::TILES * CHUNK_BYTES, "the slabs fit");
    char* const memory = static_cast<char*>(tiles) + threadIdx.x / 32 * BYTES;
    Slab slab(memory);
    TapSlab tap_slab(memory + Slab::BYTES);
    const int first_row = task.first_row + Tiling::warp_row(), left = task.rows - first_row;
    pool<T, Tiling>(sums, result, first_row, [&](int row, int window, T largest, int tap) {
        slab.put(window, row, largest);
        tap_slab.put(window, row, tap);
    });
    const auto place_of = [&](int window) { return places.results[Tiling::warp_column() + 4 * window]; };
    slab.store(out + first_row, left, place_of);
    tap_slab.store(taps + first_row, left, place_of);
}

// Whether there is a NaN among a thread's sums, or nearly: opposite infinities pass for one.
template <typename Tiling>
__device__ __forceinline__ bool any_nan(const typename Tiling::Sums& sums) {
    float total = 0;
    for (const auto& columns : sums)
        for (const auto& fragment : columns)
            for (float sum : fragment) total += sum;
    return total != total;
}

// Where a NaN or an infinity of another group meets the zeros of merged weights, a result is NaN without cause.
// This makes all results anew that are NaN, each from its own group alone. Pointers are to what make_tile has
// found to be the product's.
template <typename T, typename Out, int TILE_M>
__device__ __forceinline__ void remake_nans(Out* out, const T* source, const T* weights,
                                            const Epilogue<Out>& result, const Pitches& pitches,
                                            long long row_pitch, const Group& group, const Task& task,
                                            const Places& places) {
    const Axis &vertical = task.vertical, &horizontal = task.horizontal;
    for (int i = threadIdx.x; i < TILE_M * TILE_N; i += blockDim.x) {
        const int row = task.first_row + i / TILE_N, column = i % TILE_N;
        if (row >= task.rows || places.results[column] < 0) continue;
        Out* const to = out + places.results[column] + row * row_pitch;
        if (float(*to) == float(*to)) continue;
        const SourcePixel pixel = places.sources[column];
        const int first_channel = row / group.rows * group.channels;
        float sum = 0;
        for (int tap = 0; tap < vertical.taps * horizontal.taps; tap++) {
            const int tap_y = tap / horizontal.taps, tap_x = tap % horizontal.taps;
            const int down = tap_y * vertical.source_step, right = tap_x * horizontal.source_step;
            const bool is_inside = unsigned(pixel.y + down) < unsigned(vertical.source_size) &&
                                   unsigned(pixel.x + right) < unsigned(horizontal.source_size);
            const int number = (vertical.first_tap + tap_y * vertical.tap_step) * task.taps_across +
                               horizontal.first_tap + tap_x * horizontal.tap_step;
            const T* const weight = weights + row * pitches.row + number * pitches.tap + first_channel;
            const T* const from = source + pixel.begin + first_channel +
                                  ((long long)down * horizontal.source_size + right) * pitches.pixel;
            for (int c = 0; c < group.channels; c++)
                sum += float(weight[c]) * (is_inside ? float(from[c]) : 0.0f);
        }
        *to = result.of(sum, result.start_of(row));
    }
}

// Makes a block's tile, once all its threads see the task, from part blockIdx.y of the steps; source and weights are
// the product's, and store(sums, places, tiles) puts it where it belongs, and may use the memory of the tiles.
template <typename T, int TILE_M, bool POOLED = false, typename Store>
__device__ __forceinline__ void make_tile(const T* source, const T* weights, const Pitches& pitches,
                                          bool channels_last, int part_steps, const Task& task, Store&& store) {
    using Tiling = TensorCoreTiling<TILE_M, TILE_N>;
    extern __shared__ __align__(128) uint4 tiles[];
    Places& places = *reinterpret_cast<Places*>(tiles + Tiling::TILES);
    static_assert(Tiling::THREADS == TILE_N, "a thread finds the place of a column");
    places.find<POOLED>(task, threadIdx.x, pitches.pixel, channels_last);
    __syncthreads();  // all have found theirs

    typename Tiling::Sums sums = {};
    AsyncCopies copies;
    const int first_step = blockIdx.y * part_steps;
    TileCopier<T, Tiling> copier(source, weights, pitches, task, places, first_step);
    const int steps = max(min(copier.steps() - first_step, (long long)part_steps), 0ll);
    multiply_tiles<T, Tiling, AlongK<T, TILE_M>, AlongK<T, TILE_N>>(
        sums, tiles, steps, copies,
        [&](uint4* a_tile, uint4* b_tile, Part part) { copier.start(copies, a_tile, b_tile, part); });
    store(sums, places, tiles);
}

template <typename T, typename Out, int TILE_M>
__device__ __forceinline__ void make_whole_tile(Out* out, const T* source, const T* weights, const Out* bias,
                                                bool relu, const Pitches& pitches, bool channels_last,
                                                const Group& group, int part_steps, const Task& task) {
    using Tiling = TensorCoreTiling<TILE_M, TILE_N>;
    const int first_row = task.group * task.rows;  // of the product
    const long long plane = (long long)task.vertical.result_size * task.horizontal.result_size;
    const long long row_pitch = channels_last ? 1 : plane;
    out += blockIdx.y * (task.images * plane * task.all_rows()) + first_row * row_pitch;
    source += task.group * task.channels;
    weights += first_row * pitches.row;
    const Epilogue<Out> result{bias ? bias + first_row : nullptr, relu, task.rows};
    const auto store_tile = [&](const auto& sums, const auto& places, auto* tiles) {
        store<Out, Tiling>(out, sums, result, channels_last, task, places, tiles);
        const bool is_merged = group.rows < task.rows;
        if (is_merged && __syncthreads_or(any_nan<Tiling>(sums)))  // all have stored theirs
            remake_nans<T, Out, TILE_M>(out, source, weights, result, pitches, row_pitch, group, task, places);
    };
    make_tile<T, TILE_M>(source, weights, pitches, channels_last, part_steps, task, store_tile);
}

// Grid: x = the tiles, those of the same pixels side by side; y = parts of `part_steps` of the steps, each with an
// array of results of its own; bias may be null. Out is T, or float for the sums of parts.
template <typename T, typename Out, int TILE_M>
__global__ void __launch_bounds__(128, MIN_BLOCKS<TILE_M>)
conv2d_forward_tensor_core(Out* out, const T* source, const T* weights, const Out* bias, bool relu,
                           Pitches pitches, bool channels_last, Group group, int part_steps, Conv2dShape s) {
    __shared__ Task task;
    if (threadIdx.x == 0) task = forward_task<TILE_M, TILE_N>(s);
    __syncthreads();  // the task is known
    make_whole_tile<T, Out, TILE_M>(out, source, weights, bias, relu, pitches, channels_last, group, part_steps,
                                    task);
}

// The same, of one group, through ReLU and max-pooling of windows of 2 x 2 side by side: out and taps are (N, rows,
// OH / 2, OW / 2). A last row or column of pixels that fills no window is not made.
template <typename T, int TILE_M>
__global__ void __launch_bounds__(128, MIN_BLOCKS<TILE_M>)
conv2d_pooled_tensor_core(T* out, unsigned char* taps, const T* source, const T* weights, const T* bias,
                          Pitches pitches, bool channels_last, Conv2dShape s) {
    using Tiling = TensorCoreTiling<TILE_M, TILE_N>;
    __shared__ Task task;
    if (threadIdx.x == 0) {
        task = forward_task<TILE_M, TILE_N>(s);
        task.vertical.results = s.OH / 2 * 2;
        task.horizontal.results = s.OW / 2 * 2;
    }
    __syncthreads();  // the task is known
    const long long plane = (long long)(s.OH / 2) * (s.OW / 2);
    const auto store_tile = [&](const auto& sums, const auto& places, auto* tiles) {
        const Epilogue<T> result{bias, true, task.rows};
        if (channels_last) {
            store_pooled_channels_last<T, Tiling>(out, taps, sums, result, task, places, tiles);
        } else {
            store_pooled<T, Tiling>(out, taps, sums, result, plane, task, places);
        }
    };
    make_tile<T, TILE_M, true>(source, weights, pitches, channels_last, ALL_STEPS, task, store_tile);
}

// Grid: x as input_grad_task has it, y as of forward. Here the source is the output's gradient, and the rows of the
// weights are channels of the input.
template <typename T, typename Out, int TILE_M>
__global__ void __launch_bounds__(128, MIN_BLOCKS<TILE_M>)
conv2d_input_grad_tensor_core(Out* grad_input, const T* source, const T* weights, Pitches pitches,
                              bool channels_last, Group group, int part_steps, Conv2dShape s, TapSteps steps) {
    __shared__ Task task;
    if (threadIdx.x == 0) task = input_grad_task<TILE_M, TILE_N>(s, steps);
    __syncthreads();  // the task is known
    if (task.first_column >= task.columns()) return;
    make_whole_tile<T, Out, TILE_M>(grad_input, source, weights, nullptr, false, pitches, channels_last, group,
                                    part_steps, task);
}
