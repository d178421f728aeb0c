// Convolution and its two gradients in float32 as matrix products whose operands are never stored: the rung
// after conv2d_implicit_gemm.cu, where the products and the words for them are explained.
//
// A thread makes a patch of 8 x 8 results, twice as wide and as high as there: with four reads of 16 bytes
// from shared memory, of 8 entries of a and 8 of b, it makes 64 multiply-adds. What that rung spends its
// other instructions on is finding pixels: for each entry that it gathers, a tap, two comparisons and an
// address. Here
//
//   order     K runs over slices of DEPTH channels, in a slice over the taps, in a tap over the channels. A
//             step is one tap of one slice: a thread finds its pixel once, and what it copies lies there in
//             one channel after the other
//   weights   are packed into that order by a launch of their own, which moves each of them once. A step of a
//             is then DEPTH lines, read 16 bytes at a time; and with rows and channels exchanged, the
//             gradient for the input is a convolution like any other (see Phase), made by the same code
//   copies    go to shared memory past the registers (async_copy.cuh), into a ring of STAGES pairs of tiles:
//             while one is multiplied, the next are on their way. A step has one barrier
//   patches   what a thread multiplies for one k is read from shared memory while it multiplies for the k
//             before
//
//   parts     where the tiles are too few to fill a card, as in the last layers of a network or for a single
//             image, the steps are cut into parts, for blocks of their own. They write their sums to an array
//             (parts, the result), which conv2d_parts.cu adds up
//
// In the gradient for the weight, K is the pixels of the batch. A tile has the channels of TAPS taps, so that
// there too a thread finds one pixel for all that it copies in a step.
//
// Arithmetic intensity, in operations for each byte copied: R C / (2 (R + C)) for a tile of R x C: 21 for
// 64 x 128, 32 for 128 x 128. In a step of 16 k a thread makes 1024 multiply-adds and 64 reads of shared
// memory, and about 100 instructions for everything else.
//
// Entries beyond K are copied as zeros, as the padding is; rows and columns beyond the last are not stored.
// NaN and infinity: as in conv2d_implicit_gemm.cu.

#include "async_copy.cuh"
#include "conv2d_task.cuh"
#include "vector.cuh"

constexpr int PATCH = 8;

// Blocks that share a multiprocessor: 12 warps leave a thread 168 registers, 64 of them for its sums, 2 x 16
// for what it multiplies. Blocks of 256 threads come in pairs, with 128 registers each. Where the copies pass
// through registers after all, these are not enough.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
template <int THREADS>
constexpr int RESIDENT_BLOCKS = 1;
#else
template <int THREADS>
constexpr int RESIDENT_BLOCKS = THREADS == 256 ? 2 : 384 / THREADS;
#endif

// A block's patches: ROWS / 8 x COLUMNS / 8, one for each thread.
template <int ROWS, int COLUMNS>
struct Patches {
    static constexpr int DOWN = ROWS / PATCH, ACROSS = COLUMNS / PATCH, THREADS = DOWN * ACROSS;
    static constexpr int WARP_ACROSS = ACROSS % 8 == 0 ? 8 : 4, WARP_DOWN = 32 / WARP_ACROSS;
    static_assert(ACROSS % WARP_ACROSS == 0 && DOWN % WARP_DOWN == 0, "whole warps");
    int y, x;  // of this thread's

    __device__ __forceinline__ Patches() {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        y = warp / (ACROSS / WARP_ACROSS) * WARP_DOWN + lane / WARP_ACROSS;
        x = warp % (ACROSS / WARP_ACROSS) * WARP_ACROSS + lane % WARP_ACROSS;
    }

    // Where row i, or column i, of the patch stands in the tile: in two vectors, so that neighbouring threads
    // read neighbouring vectors, which come from different banks.
    __device__ __forceinline__ int row(int i) const { return (i / 4 * DOWN + y) * 4 + i % 4; }
    __device__ __forceinline__ int column(int i) const { return (i / 4 * ACROSS + x) * 4 + i % 4; }

    __device__ __forceinline__ void read(float (&a)[PATCH], float (&b)[PATCH], const float* a_line,
                                         const float* b_line) const {
#pragma unroll
        for (int i = 0; i < PATCH; i += 4) {
            const Vector<float> of_a = load_vector(a_line + row(i)), of_b = load_vector(b_line + column(i));
#pragma unroll
            for (int lane = 0; lane < 4; lane++) a[i + lane] = of_a.lane[lane], b[i + lane] = of_b.lane[lane];
        }
    }

    // Adds to `sums` the products of `steps` pairs of tiles. load(a_tile, b_tile) starts this thread's copies
    // of the next pair.
    template <int STAGES, int DEPTH, int A_PITCH, int B_PITCH, typename Load>
    __device__ __forceinline__ void multiply(float (&sums)[PATCH][PATCH],
                                             float (&a_tiles)[STAGES][DEPTH][A_PITCH],
                                             float (&b_tiles)[STAGES][DEPTH][B_PITCH], int steps,
                                             AsyncCopies& copies, Load&& load) const {
        if (steps == 0) return;
#pragma unroll
        for (int stage = 0; stage < STAGES - 1; stage++) {
            if (stage < steps) load(a_tiles[stage], b_tiles[stage]);
            copies.commit();
        }
        copies.wait<STAGES - 2>();
        __syncthreads();  // the first pair is complete
        float a[2][PATCH], b[2][PATCH];
        read(a[0], b[0], a_tiles[0][0], b_tiles[0][0]);
        int reading = 0, writing = STAGES - 1;
        for (int left = steps; left > 0; left--) {
#pragma unroll
            for (int k = 0; k < DEPTH; k++) {
                if (k == DEPTH - 1) {
                    copies.wait<STAGES - 2>();
                    __syncthreads();  // the next pair is complete, and all have read this one
                    writing = reading;
                    reading = reading + 1 == STAGES ? 0 : reading + 1;
                }
                if (k < DEPTH - 1 || left > 1)
                    read(a[(k + 1) % 2], b[(k + 1) % 2], a_tiles[reading][(k + 1) % DEPTH],
                         b_tiles[reading][(k + 1) % DEPTH]);
                if (k == 0) {
                    if (left >= STAGES) load(a_tiles[writing], b_tiles[writing]);
                    copies.commit();
                }
#pragma unroll
                for (int i = 0; i < PATCH; i++)
#pragma unroll
                    for (int j = 0; j < PATCH; j++) sums[i][j] += a[k % 2][i] * b[k % 2][j];
            }
        }
    }
};

// ---- forward, and the gradient for the input ----

constexpr int DEPTH = 16;
constexpr int MAX_TAPS = 128;  // of a kernel

// packed (groups, slices, taps, DEPTH, pitch): the weight of channel slice * DEPTH + k and of a row; zeros
// beyond the last of both. Rows are channels of out and channels those of the input, or, with `exchanged`,
// the converse.
//
// Grid: one dimension, a thread for each element of packed.
__global__ void conv2d_pack_weight(float* packed, const float* weight, int pitch, bool exchanged,
                                   Conv2dShape s) {
    const int taps = s.KH * s.KW, outputs = s.O / s.groups, inputs = s.C / s.groups;
    const int rows = exchanged ? inputs : outputs, channels = exchanged ? outputs : inputs;
    const int slices = (channels + DEPTH - 1) / DEPTH;
    long long number = global_thread_index();
    const int row = int(number % pitch);
    number /= pitch;
    const int k = int(number % DEPTH);
    const Position at(number / DEPTH, slices, taps);
    if (at.plane >= s.groups) return;
    const int channel = at.y * DEPTH + k, tap = at.x;
    const long long o = at.plane * outputs + (exchanged ? channel : row), c = exchanged ? row : channel;
    const bool inside = row < rows && channel < channels;
    packed[global_thread_index()] = inside ? weight[(o * inputs + c) * taps + tap] : 0.0f;
}

struct TapPlace {
    int down, right, source;  // from the pixel that the first tap reads to that of this one
    int weight;               // from the slice's first weight to the first of this tap
};

template <int ROWS, int COLUMNS>
struct TileCopier {
    static constexpr int THREADS = Patches<ROWS, COLUMNS>::THREADS, VECTORS = ROWS / 4;
    static constexpr int PIXELS = COLUMNS > THREADS ? COLUMNS / THREADS : 1;  // that a thread copies from
    static constexpr int K_STEP = COLUMNS > THREADS ? 1 : THREADS / COLUMNS;
    using ATile = float[DEPTH][ROWS];
    using BTile = float[DEPTH][COLUMNS];

    const TapPlace* places;
    const float* weights;         // of the slice, this thread's first vector
    const float* pixels[PIXELS];  // the first tap's, in the slice's first channel that this thread copies
    int y[PIXELS], x[PIXELS];
    int tap = 0, taps, left;      // channels that are left, from there on
    int height, width, pitch, slice;
    long long plane;

    __device__ __forceinline__ TileCopier(const float* source, const float* packed, const Task& task,
                                          const TapPlace* places, int first_step)
        : places(places), taps(task.vertical.taps * task.horizontal.taps), height(task.vertical.source_size),
          width(task.horizontal.source_size) {
        const int slices = (task.channels + DEPTH - 1) / DEPTH, first_k = threadIdx.x / COLUMNS;
        pitch = (task.rows + ROWS - 1) / ROWS * ROWS;
        slice = task.all_taps * DEPTH * pitch;
        plane = (long long)height * width;
        left = task.channels - first_k;
        weights = packed + (long long)task.group * slices * slice + threadIdx.x / VECTORS * pitch +
                  task.first_row + threadIdx.x % VECTORS * 4;
        const long long columns = task.columns();
#pragma unroll
        for (int p = 0; p < PIXELS; p++) {
            const long long column = task.first_column + threadIdx.x % COLUMNS + p * THREADS;
            const Position at(min(column, columns - 1), task.vertical.results, task.horizontal.results);
            y[p] = at.y * task.vertical.source_stride + task.vertical.first_source;
            x[p] = at.x * task.horizontal.source_stride + task.horizontal.first_source;
            const long long channel = (at.plane * task.groups + task.group) * task.channels + first_k;
            pixels[p] = source + channel * plane + (long long)y[p] * width + x[p];
        }
        if (taps == 0) return;  // a phase that no tap reaches
        skip_slices(first_step / taps);
        tap = first_step % taps;
    }

    __device__ __forceinline__ void skip_slices(int count) {
        left -= count * DEPTH;
        weights += (long long)count * slice;
#pragma unroll
        for (int p = 0; p < PIXELS; p++) pixels[p] += count * DEPTH * plane;
    }

    __device__ __forceinline__ void load(AsyncCopies& copies, ATile& a_tile, BTile& b_tile) {
        const int thread = threadIdx.x;
        const TapPlace place = places[tap];
        const float* from = weights + place.weight;
#pragma unroll
        for (int v = 0; v < DEPTH * VECTORS; v += THREADS)
            copies.copy<16>(&a_tile[(thread + v) / VECTORS][thread % VECTORS * 4],
                            from + v / VECTORS * pitch);
#pragma unroll
        for (int p = 0; p < PIXELS; p++) {
            const bool inside = unsigned(y[p] + place.down) < unsigned(height) &&
                                unsigned(x[p] + place.right) < unsigned(width);
            const int channels = inside ? left : 0;
            const float* pixel = pixels[p] + place.source;
#pragma unroll
            for (int k = 0; k < DEPTH; k += K_STEP, pixel += K_STEP * plane)
                copies.copy<4>(&b_tile[thread / COLUMNS + k][thread % COLUMNS + p * THREADS], pixel,
                               k < channels ? 4 : 0);
        }
        if (++tap < taps) return;
        tap = 0;
        skip_slices(1);
    }
};

// Stores a thread's patch, plus the bias of its rows, which may be null, and through ReLU: 16 bytes at a time
// where results of neighbouring columns are neighbours in memory.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void store_patch(float* out, const float (&sums)[PATCH][PATCH], const float* bias,
                                            bool relu, const Task& task) {
    const Axis &vertical = task.vertical, &horizontal = task.horizontal;
    const Patches<ROWS, COLUMNS> patches;
    const long long columns = task.columns();
    const long long plane = (long long)vertical.result_size * horizontal.result_size;
    const bool in_order = vertical.result_stride == 1 && horizontal.result_stride == 1;
    const bool vectors = in_order && plane % 4 == 0 && aligned<4>(out);
#pragma unroll
    for (int j = 0; j < PATCH; j++) {
        const long long column = task.first_column + patches.column(j);
        if (column >= columns || (vectors && j % 4 > 0)) continue;
        const Position at(column, vertical.results, horizontal.results);
        const long long y = (long long)at.y * vertical.result_stride + vertical.first_result;
        const long long x = (long long)at.x * horizontal.result_stride + horizontal.first_result;
        float* to = out + (at.plane * task.groups + task.group) * task.rows * plane +
                    y * horizontal.result_size + x;
#pragma unroll
        for (int i = 0; i < PATCH; i++) {
            const int row = task.first_row + patches.row(i);
            if (row >= task.rows) continue;
            const float start = value_or(bias, (long long)task.group * task.rows + row, 0.0f);
            if (!vectors) {
                to[row * plane] = relu_if(relu, sums[i][j] + start);
                continue;
            }
            Vector<float> results;
#pragma unroll
            for (int lane = 0; lane < 4; lane++)
                results.lane[lane] = relu_if(relu, sums[i][j / 4 * 4 + lane] + start);
            store_results(to + row * plane, results);
        }
    }
}

// Makes a block's tile, once all its threads see the task: of all steps, or of part blockIdx.y of them.
template <int ROWS, int COLUMNS, int STAGES>
__device__ __forceinline__ void make_tile(float* out, const float* source, const float* packed,
                                          const float* bias, bool relu, const Task& task, int part_steps) {
    using Copier = TileCopier<ROWS, COLUMNS>;
    __shared__ __align__(16) float a_tiles[STAGES][DEPTH][ROWS];
    __shared__ __align__(16) float b_tiles[STAGES][DEPTH][COLUMNS];
    __shared__ TapPlace places[MAX_TAPS];

    const Axis &vertical = task.vertical, &horizontal = task.horizontal;
    const int taps = vertical.taps * horizontal.taps, pitch = (task.rows + ROWS - 1) / ROWS * ROWS;
    for (int tap = threadIdx.x; tap < taps; tap += Copier::THREADS) {
        const int i = tap / horizontal.taps, j = tap % horizontal.taps;
        const int down = i * vertical.source_step, right = j * horizontal.source_step;
        const int number = (vertical.first_tap + i * vertical.tap_step) * task.taps_across +
                           horizontal.first_tap + j * horizontal.tap_step;
        places[tap] = {down, right, down * horizontal.source_size + right, number * DEPTH * pitch};
    }
    __syncthreads();  // the places are complete

    float sums[PATCH][PATCH] = {};
    AsyncCopies copies;
    const int first_step = blockIdx.y * part_steps;
    const int steps = max(min(part_steps, (task.channels + DEPTH - 1) / DEPTH * taps - first_step), 0);
    Copier copier(source, packed, task, places, first_step);
    const Patches<ROWS, COLUMNS> patches;
    patches.multiply(sums, a_tiles, b_tiles, steps, copies,
                     [&](auto& a_tile, auto& b_tile) { copier.load(copies, a_tile, b_tile); });
    const long long plane = (long long)vertical.result_size * horizontal.result_size;
    out += blockIdx.y * (plane * task.images * task.groups * task.rows);
    store_patch<ROWS, COLUMNS>(out, sums, bias, relu, task);
}

// Grid: x = the tiles of all groups, those of the same columns side by side; y = parts of `part_steps` of the steps,
// each with an array of results of its own; bias may be null. packed: of conv2d_pack_weight.
template <int ROWS, int COLUMNS, int STAGES>
__global__ void __launch_bounds__(ROWS * COLUMNS / 64, RESIDENT_BLOCKS<ROWS * COLUMNS / 64>)
conv2d_forward_pipelined(float* out, const float* input, const float* packed, const float* bias,
                         bool relu, int part_steps, Conv2dShape s) {
    __shared__ Task task;
    if (threadIdx.x == 0) task = forward_task<ROWS, COLUMNS>(s);
    __syncthreads();  // the task is known
    make_tile<ROWS, COLUMNS, STAGES>(out, input, packed, bias, relu, task, part_steps);
}

// Grid: x = the tiles of all groups, for each phase as many as the largest one has; the number of phases is
// min(stride_h, H) * min(stride_w, W); y = parts as of forward. packed: of conv2d_pack_weight, with rows and channels
// exchanged.
template <int ROWS, int COLUMNS, int STAGES>
__global__ void __launch_bounds__(ROWS * COLUMNS / 64, RESIDENT_BLOCKS<ROWS * COLUMNS / 64>)
conv2d_input_grad_pipelined(float* grad_input, const float* grad_output, const float* packed, int part_steps,
                            Conv2dShape s, TapSteps steps) {
    __shared__ Task task;
    if (threadIdx.x == 0) task = input_grad_task<ROWS, COLUMNS>(s, steps);
    __syncthreads();  // the task is known
    if (task.first_column >= task.columns()) return;
    make_tile<ROWS, COLUMNS, STAGES>(grad_input, grad_output, packed, nullptr, false, task, part_steps);
}

// ---- gradient for the weight ----

constexpr int PIXELS = 8;  // the K of a step
constexpr int GRAD_STAGES = 3;
constexpr int GRAD_ROWS = 64;  // of a tile: channels of out

// A tile's columns are CHANNELS channels of each of TAPS taps. K is cut into parts of `part_length` pixels,
// for blocks of their own, which write their sums to `partial` (parts, taps, O, C/groups); conv2d_parts.cu
// adds them. In a step a thread copies pixel threadIdx.x % PIXELS of several rows of a, and of several channels
// of one tap; the tiles have four more elements in a line, so that its stores, which go down a column, meet
// different banks.
//
// Grid: x = the tiles of all groups, for each part.
template <int CHANNELS, int TAPS>
__global__ void __launch_bounds__(CHANNELS * TAPS, RESIDENT_BLOCKS<CHANNELS * TAPS>)
conv2d_weight_grad_pipelined(float* partial, const float* grad_output, const float* input,
                             long long part_length, Conv2dShape s) {
    constexpr int COLUMNS = CHANNELS * TAPS, THREADS = GRAD_ROWS * COLUMNS / 64;
    constexpr int A_STEP = THREADS / PIXELS, B_STEP = A_STEP / TAPS;  // rows between two copies of a thread
    __shared__ __align__(16) float a_tiles[GRAD_STAGES][PIXELS][GRAD_ROWS + 4];
    __shared__ __align__(16) float b_tiles[GRAD_STAGES][PIXELS][COLUMNS + 4];
    const int rows = s.O / s.groups, channels = s.C / s.groups, taps = s.KH * s.KW;
    const int row_tiles = (rows + GRAD_ROWS - 1) / GRAD_ROWS;
    const int channel_tiles = (channels + CHANNELS - 1) / CHANNELS;
    const Position tile(blockIdx.x / row_tiles, channel_tiles, (taps + TAPS - 1) / TAPS);
    const int group = int(tile.plane % s.groups), first_tap = tile.x * TAPS;
    const int first_row = int(blockIdx.x % row_tiles) * GRAD_ROWS, first_channel = tile.y * CHANNELS;
    const long long part = tile.plane / s.groups;

    const int k = threadIdx.x % PIXELS, a_row = threadIdx.x / PIXELS;
    const int own_tap = a_row / B_STEP, b_row = a_row % B_STEP;
    const int tap = first_tap + own_tap, rows_left = rows - first_row - a_row;
    const int channels_left = tap < taps ? channels - first_channel - b_row : 0;
    const int down = tap / s.KW * s.dilation_h - s.pad_h, right = tap % s.KW * s.dilation_w - s.pad_w;
    const long long outputs = (long long)s.OH * s.OW, plane = (long long)s.H * s.W;
    const long long begin = part * part_length, end = min(begin + part_length, s.N * outputs);
    const Position at(begin + k, s.OH, s.OW);
    const long long grad_plane = at.plane * s.O + (long long)group * rows + first_row + a_row;
    const float* grads = grad_output + grad_plane * outputs + (long long)at.y * s.OW + at.x;
    const float* image =
        input + (at.plane * s.C + (long long)group * channels + first_channel + b_row) * plane;
    int y = at.y * s.stride_h + down, x = at.x * s.stride_w + right, left = int(end - begin) - k;

    AsyncCopies copies;
    const auto load = [&](auto& a_tile, auto& b_tile) {
        const bool inside = unsigned(y) < unsigned(s.H) && unsigned(x) < unsigned(s.W);
        const int a_rows = left > 0 ? rows_left : 0, b_rows = left > 0 && inside ? channels_left : 0;
        const float* grad = grads;
#pragma unroll
        for (int r = 0; r < GRAD_ROWS; r += A_STEP, grad += A_STEP * outputs)
            if (GRAD_ROWS % A_STEP == 0 || a_row + r < GRAD_ROWS)
                copies.copy<4>(&a_tile[k][a_row + r], grad, r < a_rows ? 4 : 0);
        const float* pixel = image + (long long)y * s.W + x;
#pragma unroll
        for (int r = 0; r < CHANNELS; r += B_STEP, pixel += B_STEP * plane)
            copies.copy<4>(&b_tile[k][own_tap * CHANNELS + b_row + r], pixel, r < b_rows ? 4 : 0);
        left -= PIXELS;
        grads += PIXELS;
        x += PIXELS * s.stride_w;
        while (x >= s.OW * s.stride_w + right) x -= s.OW * s.stride_w, y += s.stride_h;
        while (y >= s.OH * s.stride_h + down) {
            y -= s.OH * s.stride_h;
            grads += (s.O - 1) * outputs;
            image += s.C * plane;
        }
    };

    const Patches<GRAD_ROWS, COLUMNS> patches;
    float sums[PATCH][PATCH] = {};
    patches.multiply(sums, a_tiles, b_tiles, int((end - begin + PIXELS - 1) / PIXELS), copies, load);

#pragma unroll
    for (int j = 0; j < PATCH; j++) {
        const int column = patches.column(j), channel = first_channel + column % CHANNELS;
        const int tap = first_tap + column / CHANNELS;
        if (channel >= channels || tap >= taps) continue;
        float* to = partial + ((part * taps + tap) * s.O + (long long)group * rows) * channels + channel;
#pragma unroll
        for (int i = 0; i < PATCH; i++) {
            const int row = first_row + patches.row(i);
            if (row < rows) to[(long long)row * channels] = sums[i][j];
        }
    }
}
