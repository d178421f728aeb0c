// Convolution where each group has one channel of the input (groups = C), and its two gradients: depthwise.
//
// The formula and the shapes are in conv2d.cuh. Channel c of the input makes channels c M to c M + M - 1 of
// out, where M = O/C is the channel multiplier, often 1. No sum runs over channels, so that as a product of
// matrices each group would have M rows, and no tile of it anything to reuse. An output takes 2 KH KW
// operations, 18 for a 3 x 3 kernel, for the 8 bytes of reading a pixel and writing an output: 2.25 a byte in
// float32, where an H200 can do 14 (67 TFLOP/s, 4.8 TB/s). So memory should be what bounds it. The direct
// kernels are bound by their instructions: for each tap they test whether the pixel lies inside, and make
// its address in 64 bits.
//
//   forward, input_grad   a block copies its part of a plane to shared memory once, zeros around it. From
//                         there a tap is a load at a fixed distance, a load of the weight, a multiply-add;
//                         and the copy serves all M channels of out, or the next tap of all pixels
//   weight_grad           a block reads a gradient once for up to 9 taps, whose sums it keeps in registers
//
// The padding's zeros are multiplied with like any number, as in conv2d_implicit_gemm.cu. Arrays (T) may be of 16
// bits: what is copied to shared memory is widened on the way (C), sums are float32, and a result is rounded once.

#include "conv2d.cuh"
#include "rows.cuh"

// A block makes a tile of TILE x TILE results of one plane, each thread TILE / BLOCK_HEIGHT of one column.
constexpr int TILE = 32;
constexpr int BLOCK_HEIGHT = 8;
constexpr int PER_THREAD = TILE / BLOCK_HEIGHT;

// Elements of the source that a tile of results is made of, at most: 69 x 69 is a kernel of 7 x 7 with
// stride 2. That is 19 KB of shared memory, in float64 38.
constexpr int SOURCE_ELEMENTS = 69 * 69;

// How, along one axis, results come from the source: result number `at` of the tile takes elements
// at * stride + tap * dilation, counted from the first one that the tile copies. The weight of the tap is
// first_weight + tap * weight_step.
struct Axis {
    int taps, stride, dilation;
    int first_weight, weight_step;
    int first_source;  // in the plane; negative in the padding

    // Elements that `results` neighbours take.
    __device__ __forceinline__ int reach(int results) const {
        return (results - 1) * stride + (taps - 1) * dilation + 1;
    }
};

// Copies rows x columns of `plane` to shared memory, with zeros for what lies outside of it.
template <typename C, typename T>
__device__ __forceinline__ void copy_source(C* source, const T* plane, const Axis& vertical,
                                            const Axis& horizontal, int height, int width) {
    const int rows = vertical.reach(TILE), columns = horizontal.reach(TILE);
    for (int y = threadIdx.y; y < rows; y += BLOCK_HEIGHT)
        for (int x = threadIdx.x; x < columns; x += TILE)
            source[y * columns + x] = C(
                element_or_zero(plane, vertical.first_source + y, horizontal.first_source + x, height, width)
            );
}

// Adds, for each of this thread's results, the products of all taps. A weight is read once for all of them.
template <typename C, typename T>
__device__ __forceinline__ void add_taps(C (&sums)[PER_THREAD], const C* source, const T* weight, int KW,
                                         const Axis& vertical, const Axis& horizontal) {
    const int columns = horizontal.reach(TILE), next = BLOCK_HEIGHT * vertical.stride * columns;
    source += threadIdx.y * vertical.stride * columns + threadIdx.x * horizontal.stride;
    weight += (long long)vertical.first_weight * KW + horizontal.first_weight;
    for (int i = 0; i < vertical.taps; i++) {
        for (int j = 0; j < horizontal.taps; j++) {
            const C factor = C(weight[j * horizontal.weight_step]);
            const C* from = source + j * horizontal.dilation;
            for (int r = 0; r < PER_THREAD; r++) sums[r] += from[r * next] * factor;
        }
        source += vertical.dilation * columns;
        weight += vertical.weight_step * (long long)KW;
    }
}

// Which tile of which plane a block makes: `column` and `row` are its first result's.
struct PlaneTile {
    long long plane;
    int row, column;

    __device__ PlaneTile(long long number, int height, int width) {
        const Position at(number, (height + TILE - 1) / TILE, (width + TILE - 1) / TILE);
        plane = at.plane;
        row = at.y * TILE;
        column = at.x * TILE;
    }
};

// Grid: x = the tiles of N * C planes of out's size; blocks of TILE x BLOCK_HEIGHT threads. bias may be null.
template <typename T>
__global__ void __launch_bounds__(TILE * BLOCK_HEIGHT)
conv2d_depthwise_forward(T* out, const T* input, const T* weight, const T* bias, bool relu,
                         Conv2dShape s) {
    using C = Computed<T>;
    __shared__ C source[SOURCE_ELEMENTS];
    const PlaneTile tile(blockIdx.x, s.OH, s.OW);
    const int multiplier = s.O / s.C;
    const long long first = tile.plane * multiplier;  // of the N * O planes of out
    const Axis vertical{s.KH, s.stride_h, s.dilation_h, 0, 1, tile.row * s.stride_h - s.pad_h};
    const Axis horizontal{s.KW, s.stride_w, s.dilation_w, 0, 1, tile.column * s.stride_w - s.pad_w};
    copy_source(source, input + tile.plane * s.H * s.W, vertical, horizontal, s.H, s.W);
    __syncthreads();

    const int x = tile.column + threadIdx.x, y = tile.row + threadIdx.y;
    out += (first * s.OH + y) * s.OW + x;
    const long long image = (long long)s.OH * s.OW;
    for (int m = 0; m < multiplier; m++) {
        C sums[PER_THREAD] = {};
        const int channel = int(first % s.O) + m;
        add_taps(sums, source, weight + (long long)channel * s.KH * s.KW, s.KW, vertical, horizontal);
        const C start = C(value_or(bias, channel, T(0)));
        for (int r = 0; r < PER_THREAD; r++) {
            const T sum = T(relu_if(relu, sums[r] + start));
            if (y + r * BLOCK_HEIGHT < s.OH && x < s.OW) out[(long long)r * BLOCK_HEIGHT * s.OW] = sum;
        }
        out += image;
    }
}

// The axis of a phase (see Phase) along which the first result of a tile is the phase's pixel number `at`.
// The last of the phase's taps meets the first output, so weights are taken from the last to the first.
__device__ __forceinline__ Axis axis_of_phase(const Phase& phase, int at, int step, int output_step) {
    const int last = max(phase.taps, 1) - 1;
    return {phase.taps, 1, output_step, phase.first + last * step, -step,
            phase.first_output + at - last * output_step};
}

// Each block makes pixels of one phase, for which the gradient is a convolution of stride 1; in a phase that
// no tap reaches, zeros.
//
// Grid: x = the tiles of N * C planes of the largest phase's size, for each of the min(stride_h, H) *
// min(stride_w, W) phases; blocks of TILE x BLOCK_HEIGHT threads.
template <typename T>
__global__ void __launch_bounds__(TILE * BLOCK_HEIGHT)
conv2d_depthwise_input_grad(T* grad_input, const T* grad_output, const T* weight, Conv2dShape s,
                            TapSteps steps) {
    using C = Computed<T>;
    __shared__ C source[SOURCE_ELEMENTS];
    const int phases_w = min(s.stride_w, s.W), phases = min(s.stride_h, s.H) * phases_w;
    const int number = int(blockIdx.x % phases);
    const PlaneTile tile(blockIdx.x / phases, (s.H - 1) / s.stride_h + 1, (s.W - 1) / s.stride_w + 1);
    const Phase phase_y(number / phases_w, s.H, s.KH, s.stride_h, s.pad_h, s.dilation_h, steps.step_h);
    const Phase phase_x(number % phases_w, s.W, s.KW, s.stride_w, s.pad_w, s.dilation_w, steps.step_w);
    const Axis vertical = axis_of_phase(phase_y, tile.row, steps.step_h, steps.output_step_h);
    const Axis horizontal = axis_of_phase(phase_x, tile.column, steps.step_w, steps.output_step_w);
    const int multiplier = phase_y.taps > 0 && phase_x.taps > 0 ? s.O / s.C : 0;

    C sums[PER_THREAD] = {};
    for (int m = 0; m < multiplier; m++) {
        const long long plane = tile.plane * multiplier + m, channel = tile.plane % s.C * multiplier + m;
        __syncthreads();  // everyone is done with the gradients before
        copy_source(source, grad_output + plane * s.OH * s.OW, vertical, horizontal, s.OH, s.OW);
        __syncthreads();  // these are complete
        add_taps(sums, source, weight + channel * s.KH * s.KW, s.KW, vertical, horizontal);
    }

    T* pixels = grad_input + tile.plane * s.H * s.W;
    const int column = tile.column + threadIdx.x;
    const long long x = phase_x.number + (long long)column * s.stride_w;
    for (int r = 0; r < PER_THREAD; r++) {
        const int row = tile.row + threadIdx.y + r * BLOCK_HEIGHT;
        const long long y = phase_y.number + (long long)row * s.stride_h;
        if (row < phase_y.pixels && column < phase_x.pixels) pixels[y * s.W + x] = T(sums[r]);
    }
}

// The sums are long, over every output of a channel, and each gradient is part of KH * KW of them. A thread
// keeps TAPS sums: a 3 x 3 kernel takes one block for a channel, a 5 x 5 kernel three. The outputs are cut
// into `parts`, each for blocks of its own; the sums of the parts stand in `partial` (O, KH KW, parts), of what is
// computed with, and another kernel adds them; those of a single part are the result. Within a block they are combined
// by shuffles: the order is always the same.
//
// Grid: x = part + parts * (TAPS taps of a channel of out + as many as a channel has * the channel).
constexpr int TAPS = 9;
constexpr int WEIGHT_GRAD_THREADS = 256;

template <typename Out, typename T>
__global__ void __launch_bounds__(WEIGHT_GRAD_THREADS)
conv2d_depthwise_weight_grad(Out* partial, const T* grad_output, const T* input, long long part_length,
                             int parts, Conv2dShape s) {
    using C = Computed<T>;
    __shared__ C of_warp[TAPS][WEIGHT_GRAD_THREADS / WARP];
    const int taps = s.KH * s.KW, multiplier = s.O / s.C;
    const Position place(blockIdx.x, (taps + TAPS - 1) / TAPS, parts);
    const long long o = place.plane, c = o / multiplier;
    const int first_tap = place.y * TAPS;

    int down[TAPS], right[TAPS];  // beyond the last tap, that one again
    for (int t = 0; t < TAPS; t++) {
        const int tap = min(first_tap + t, taps - 1);
        down[t] = tap / s.KW * s.dilation_h - s.pad_h;
        right[t] = tap % s.KW * s.dilation_w - s.pad_w;
    }

    C sums[TAPS] = {};
    const long long outputs = (long long)s.N * s.OH * s.OW, begin = place.x * part_length;
    const long long end = min(begin + part_length, outputs);
    Position at(begin + threadIdx.x, s.OH, s.OW);
    const Position step(WEIGHT_GRAD_THREADS, s.OH, s.OW);
    for (long long number = begin + threadIdx.x; number < end; number += WEIGHT_GRAD_THREADS) {
        const C grad = C(grad_output[((at.plane * s.O + o) * s.OH + at.y) * s.OW + at.x]);
        const T* plane = input + (at.plane * s.C + c) * s.H * s.W;
        const int y = at.y * s.stride_h, x = at.x * s.stride_w;
        for (int t = 0; t < TAPS; t++)
            sums[t] += grad * C(element_or_zero(plane, y + down[t], x + right[t], s.H, s.W));
        at.advance(step, s.OH, s.OW);
    }

    for (int t = 0; t < TAPS; t++) {
        sums[t] = across_warp<SUM>(sums[t]);
        if (threadIdx.x % WARP == 0) of_warp[t][threadIdx.x / WARP] = sums[t];
    }
    __syncthreads();  // all warps have left theirs
    const int tap = first_tap + threadIdx.x;
    if (threadIdx.x < TAPS && tap < taps) {
        C sum = 0;
        for (int warp = 0; warp < WEIGHT_GRAD_THREADS / WARP; warp++) sum += of_warp[threadIdx.x][warp];
        partial[(o * taps + tap) * parts + place.x] = Out(sum);
    }
}
