// Two-dimensional convolution and its two gradients, computed directly. (The formula is in conv2d.cuh.)
//
// "Direct" is the definition, turned so that each thread owns one element of its result and gathers what
// adds to it: no two threads write to one place, no atomics are needed, and every sum has a fixed order.
//
//   conv2d_forward      a thread for each element of out
//   conv2d_input_grad   a thread for each element of the input: it looks up the outputs it took part in
//   conv2d_weight_grad  a block for each weight, for the sum over N, OH and OW is long
//
// Taps that lie outside of the input are skipped.
//
// Arithmetic intensity: each multiply-add loads an element of both factors, 0.25 operations a byte in
// float32. The threads of a warp are neighbours in a row of the result, so they share the weight and read
// neighbouring pixels, and the L1 cache catches most of the KH * KW uses of each pixel; but not the reuse
// over the channels of out. The next rungs are in conv2d_implicit_gemm.cu and conv2d_pipelined.cu, and, for
// groups of one channel, in conv2d_depthwise.cu and conv2d_strips.cu.

#include "conv2d.cuh"

// Grid: one dimension, a thread for each element of out. bias may be null.
template <typename T>
__global__ void conv2d_forward(T* out, const T* input, const T* weight, const T* bias, bool relu,
                               Conv2dShape s) {
    const long long number = global_thread_index();
    if (number >= (long long)s.N * s.O * s.OH * s.OW) return;
    const Position at(number, s.OH, s.OW);
    const int o = int(at.plane % s.O), channels = s.C / s.groups, group = o / (s.O / s.groups);
    const long long n = at.plane / s.O, image = (long long)s.H * s.W;

    const T* plane = input + (n * s.C + (long long)group * channels) * image;
    const T* w = weight + (long long)o * channels * s.KH * s.KW;
    T sum = bias ? bias[o] : T(0);
    for (int c = 0; c < channels; c++, plane += image, w += s.KH * s.KW) {
        for (int i = 0; i < s.KH; i++) {
            const int y = at.y * s.stride_h - s.pad_h + i * s.dilation_h;
            if (y < 0 || y >= s.H) continue;
            const T* row = plane + (long long)y * s.W;
            for (int j = 0; j < s.KW; j++) {
                const int x = at.x * s.stride_w - s.pad_w + j * s.dilation_w;
                if (x >= 0 && x < s.W) sum += row[x] * w[i * s.KW + j];
            }
        }
    }
    out[number] = relu_if(relu, sum);
}

// The output row (or column) in which tap `tap` reads the input at `at`; -1 if there is none.
__device__ __forceinline__ int output_of(int at, int tap, int stride, int pad, int dilation, int outputs) {
    const int start = at + pad - tap * dilation;
    if (start < 0 || start % stride != 0 || start / stride >= outputs) return -1;
    return start / stride;
}

// grad_input[n, c, y, x] = sum over o of its group and taps (i, j) of grad_output[n, o, oy, ox] *
// weight[o, c, i, j], where (oy, ox) is the output in which tap (i, j) reads pixel (y, x), if there is one.
//
// Grid: one dimension, a thread for each element of grad_input.
template <typename T>
__global__ void conv2d_input_grad(T* grad_input, const T* grad_output, const T* weight, Conv2dShape s) {
    const long long number = global_thread_index();
    if (number >= (long long)s.N * s.C * s.H * s.W) return;
    const Position at(number, s.H, s.W);
    const int channels = s.C / s.groups, out_channels = s.O / s.groups;
    const int channel = int(at.plane % s.C), group = channel / channels, c = channel % channels;
    const long long n = at.plane / s.C, image = (long long)s.OH * s.OW, taps = (long long)s.KH * s.KW;

    const T* first_plane = grad_output + (n * s.O + (long long)group * out_channels) * image;
    const T* first_weight = weight + ((long long)group * out_channels * channels + c) * taps;
    T sum = 0;
    for (int i = 0; i < s.KH; i++) {
        const int y = output_of(at.y, i, s.stride_h, s.pad_h, s.dilation_h, s.OH);
        if (y < 0) continue;
        for (int j = 0; j < s.KW; j++) {
            const int x = output_of(at.x, j, s.stride_w, s.pad_w, s.dilation_w, s.OW);
            if (x < 0) continue;
            const T* grad = first_plane + (long long)y * s.OW + x;
            const T* w = first_weight + i * s.KW + j;
            for (int o = 0; o < out_channels; o++, grad += image, w += channels * taps) sum += *grad * *w;
        }
    }
    grad_input[number] = sum;
}

// grad_weight[o, c, i, j] = sum over n, y, x of grad_output[n, o, y, x] * input[n, c', ...], the pixel that
// the tap reads for output (y, x). The threads of a block take every 256th output each; then their sums are
// added in shared memory, halving their number in each step. The order of the additions is always the same.
//
// Grid: one dimension, a block of WEIGHT_GRAD_THREADS for each element of grad_weight.
constexpr int WEIGHT_GRAD_THREADS = 256;

template <typename T>
__global__ void __launch_bounds__(WEIGHT_GRAD_THREADS)
conv2d_weight_grad(T* grad_weight, const T* grad_output, const T* input, Conv2dShape s) {
    __shared__ T sums[WEIGHT_GRAD_THREADS];
    const Position tap(blockIdx.x, s.KH, s.KW);
    const int channels = s.C / s.groups, c = int(tap.plane % channels), o = int(tap.plane / channels);
    const int channel = o / (s.O / s.groups) * channels + c;
    const long long outputs = (long long)s.OH * s.OW, image = (long long)s.H * s.W;

    T sum = 0;
    for (long long number = threadIdx.x; number < s.N * outputs; number += WEIGHT_GRAD_THREADS) {
        const Position at(number, s.OH, s.OW);
        const long long n = at.plane;
        const int y = at.y * s.stride_h - s.pad_h + tap.y * s.dilation_h;
        const int x = at.x * s.stride_w - s.pad_w + tap.x * s.dilation_w;
        if (y < 0 || y >= s.H || x < 0 || x >= s.W) continue;
        const T grad = grad_output[(n * s.O + o) * outputs + (long long)at.y * s.OW + at.x];
        sum += grad * input[(n * s.C + channel) * image + (long long)y * s.W + x];
    }

    sums[threadIdx.x] = sum;
    for (int half = WEIGHT_GRAD_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();  // the sums of the step before are complete
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) grad_weight[blockIdx.x] = sums[0];
}
