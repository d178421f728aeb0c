// A convolution, or the gradient for its input, as a product of matrices, of which a block makes a tile: the
// rows are channels of the result, the columns its pixels, K are taps and channels of the source. The gradient
// is a product for each phase of the stride (see Phase), with the weight's rows and channels exchanged.
#pragma once

#include "conv2d.cuh"

// Along one axis: result number `at` stands at at * result_stride + first_result. Its tap number t has the
// weight of tap first_tap + t * tap_step, and reads the source's element
// at * source_stride + first_source + t * source_step.
struct Axis {
    int results, result_size, result_stride, first_result;
    int source_size, source_stride, first_source, source_step;
    int taps, first_tap, tap_step;
};

// What a block makes. It stands in shared memory: kept in registers, it would cost them during the
// multiplication.
struct Task {
    Axis vertical, horizontal;
    int images, groups, group;
    int rows, channels;  // of a group
    int all_taps, taps_across;
    int first_row;
    long long first_column;

    __device__ __forceinline__ long long columns() const {
        return (long long)images * vertical.results * horizontal.results;
    }
    __device__ __forceinline__ int all_rows() const { return groups * rows; }
};

// For a grid whose x is the tiles of all groups, those of the same columns side by side: where channels come
// last, they read, and write, parts of the same pixels.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ Task forward_task(const Conv2dShape& s) {
    const int rows = s.O / s.groups, row_tiles = (rows + ROWS - 1) / ROWS;
    const long long columns = (long long)s.N * s.OH * s.OW;
    const Position at(blockIdx.x / row_tiles, int((columns + COLUMNS - 1) / COLUMNS), s.groups);
    return {{s.OH, s.OH, 1, 0, s.H, s.stride_h, -s.pad_h, s.dilation_h, s.KH, 0, 1},
            {s.OW, s.OW, 1, 0, s.W, s.stride_w, -s.pad_w, s.dilation_w, s.KW, 0, 1},
            s.N, s.groups, at.x, rows, s.C / s.groups, s.KH * s.KW, s.KW,
            int(blockIdx.x % row_tiles) * ROWS, (long long)at.y * COLUMNS};
}

__device__ __forceinline__ Axis axis_of_phase(const Phase& phase, int size, int outputs, int stride, int step,
                                              int output_step) {
    return {phase.pixels, size, stride, phase.number, outputs, 1, phase.first_output, -output_step,
            phase.taps, phase.first, step};
}

// For a grid whose x is the tiles of all groups, for each phase as many as the largest one has: the columns
// may begin beyond the last one. The number of phases is min(stride_h, H) * min(stride_w, W).
template <int ROWS, int COLUMNS>
__device__ __forceinline__ Task input_grad_task(const Conv2dShape& s, const TapSteps& steps) {
    const int rows = s.C / s.groups, row_tiles = (rows + ROWS - 1) / ROWS;
    const int phases_w = min(s.stride_w, s.W);
    const long long largest_phase =
        (long long)s.N * ((s.H - 1) / s.stride_h + 1) * ((s.W - 1) / s.stride_w + 1);
    const Position at(blockIdx.x / row_tiles, int((largest_phase + COLUMNS - 1) / COLUMNS), s.groups);
    const int number = int(at.plane);
    const Phase vertical(number / phases_w, s.H, s.KH, s.stride_h, s.pad_h, s.dilation_h, steps.step_h);
    const Phase horizontal(number % phases_w, s.W, s.KW, s.stride_w, s.pad_w, s.dilation_w, steps.step_w);
    return {axis_of_phase(vertical, s.H, s.OH, s.stride_h, steps.step_h, steps.output_step_h),
            axis_of_phase(horizontal, s.W, s.OW, s.stride_w, steps.step_w, steps.output_step_w),
            s.N, s.groups, at.x, rows, s.O / s.groups, s.KH * s.KW, s.KW,
            int(blockIdx.x % row_tiles) * ROWS, (long long)at.y * COLUMNS};
}
