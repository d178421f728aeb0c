// The weights of a convolution in groups, for the products of conv2d_tensor_core.cu: several neighbouring groups
// are made by one product, in which each has zeros for the channels of the others.
//
//   out[r, tap, k] = weight of row r, column k and tap, if row r and column k are of the same group, else 0
//
// Shapes: weight is (O, C/groups, KH, KW), any view; out is (rows, taps, pitch), where the rows are those of all
// groups, and k counts the columns of `merged` neighbours, then zeros up to the pitch. The rows of a group are its
// channels of the output and the columns those of the input, or, for the gradient for the input, the other way
// round: the strides tell. These are few elements beside the images.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common.cuh"

struct MergedGroups {
    int rows, columns;  // of one group
    int merged;         // groups of a product
    int KH, KW, pitch;
    // Of the weight, in elements: from a group to the next, and within it.
    long long group_stride, row_stride, column_stride, down, right;
};

// Grid: x = a thread for each of the elements of out.
template <typename T>
__global__ void conv2d_merge_groups(T* out, const T* weight, long long elements, MergedGroups s) {
    const long long number = global_thread_index();
    if (number >= elements) return;
    const Position at(number, s.KH * s.KW, s.pitch);
    const long long group = at.plane / s.rows;
    const T* of_group = weight + group * s.group_stride + at.plane % s.rows * s.row_stride;
    const bool is_own = at.x / s.columns == group % s.merged;
    out[number] = is_own ? of_group[at.x % s.columns * s.column_stride + at.y / s.KW * s.down + at.y % s.KW * s.right]
                         : T(0.0f);
}
