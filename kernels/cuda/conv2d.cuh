// What the kernels of convolution share: the shapes, and which outputs a pixel takes part in.
//
//   out[n, o, y, x] = bias[o] + sum over c, i, j of
//                     input[n, g * C/groups + c, y * stride_h - pad_h + i * dilation_h,
//                                                x * stride_w - pad_w + j * dilation_w] * weight[o, c, i, j]
//
// where g = o / (O/groups) is the group of channel o, and elements outside of the input count as zero. It is
// cross-correlation, as in PyTorch. (i, j) is called a tap. Shapes: input (N, C, H, W), weight
// (O, C/groups, KH, KW), out (N, O, OH, OW), all C-contiguous. Where `relu`, max(out, 0) is stored in its place,
// from the registers: the bias and ReLU as launches of their own would each read and write all of out again.
#pragma once

#include "common.cuh"

struct Conv2dShape {
    int N, C, H, W;
    int O, OH, OW;
    int KH, KW;
    int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int groups;
};

// The element (y, x) of a plane of height x width; zero outside of it.
template <typename T>
__device__ __forceinline__ T element_or_zero(const T* plane, int y, int x, int height, int width) {
    const bool inside = unsigned(y) < unsigned(height) && unsigned(x) < unsigned(width);
    return inside ? plane[(long long)y * width + x] : T(0);
}

// Along one axis of the input gradient, a pixel takes part in output (at + pad - tap * dilation) / stride if
// that is a whole number. Whether it is depends on the pixel's phase alone, at % stride. Of the taps that do,
// one is followed by the next after `step` = stride / gcd(stride, dilation), and then the output lies
// `output_step` = dilation / gcd(stride, dilation) further back. So in each phase the input gradient is a
// convolution of stride 1, with 1 / step of the taps.
struct TapSteps {
    int step_h, step_w;
    int output_step_h, output_step_w;
};

// The pixels number, number + stride, number + 2 stride, ... of an axis, and the taps that reach them: first,
// first + step, ..., `taps` of them, or none.
struct Phase {
    int number, pixels;
    int first, taps;
    int first_output;  // in which the first tap reads the phase's first pixel; may lie outside of the array

    __device__ Phase(int number, int size, int kernel, int stride, int pad, int dilation, int step)
        : number(number), pixels((size - number + stride - 1) / stride), first(0) {
        const int last = min(step, kernel);
        while (first < last && (number + pad - first * dilation) % stride != 0) first++;
        taps = first < last ? (kernel - first - 1) / step + 1 : 0;
        first_output = (number + pad - first * dilation) / stride;
    }
};
