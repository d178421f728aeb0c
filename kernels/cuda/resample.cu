// Images seen through affine maps: each of a batch is cropped, mirrored, turned, moved and scaled in its own way.
//
//   out[n, c, i, j] = images[n, c] at (x, y) = matrices[n] (j, i, 1), counted from the middle of each image
//
// Shapes: images (count, channels, rows, columns), out (count, channels, height, width), matrices (count, 2, 3);
// all C-contiguous. A place between pixels shows the nearest one, or is interpolated from the four around it.
// Outside of an image is what the enum Border says.
//
// A thread computes a place once, for all channels. Neighbours in a row of out read neighbours of the image, unless
// it is turned, and what several threads read comes from the L1 cache.
//
// Arithmetic intensity: less than an operation for each byte, beside some 40 instructions for a place; bound by memory.

#include "common.cuh"

enum Border { CONSTANT, EDGE, REFLECT, SYMMETRIC };  // as BORDERS in resample.py

constexpr int FARTHEST = 1 << 22;  // pixels beyond the middle: there float32 still has halves

// Where `place` is found in a line of `count` pixels; -1: outside of it.
__device__ __forceinline__ int found_at(int place, int count, int border) {
    if (place >= 0 && place < count) return place;
    if (border == CONSTANT) return -1;
    if (border == EDGE || count == 1) return place < 0 ? 0 : count - 1;
    // Mirrored at the outermost pixels, or at their outer edges: the same again after `period`.
    const int period = border == REFLECT ? 2 * count - 2 : 2 * count;
    place %= period;
    if (place < 0) place += period;
    return place < count ? place : period - place - (border == SYMMETRIC);
}

template <typename C>
__device__ __forceinline__ void store(float* to, C value) { *to = value; }
template <typename C>
__device__ __forceinline__ void store(double* to, C value) { *to = value; }
template <typename C>
__device__ __forceinline__ void store(unsigned char* to, C value) {
    *to = (unsigned char)rint(value > 0 ? value < 255 ? value : C(255) : C(0));
}

// `middle` + a x + b y + c, not farther than FARTHEST; NaN becomes some such place.
template <typename C>
__device__ __forceinline__ C mapped(const C* row, C x, C y, C middle) {
    const C place = row[0] * x + row[1] * y + row[2] + middle;
    return place > -FARTHEST ? place < FARTHEST ? place : C(FARTHEST) : C(-FARTHEST);
}

// Grid: x = a thread for each pixel of out's images; y = these images, over again where there are more.
template <typename T, typename C, bool BILINEAR>
__global__ void resample(T* out, const T* images, const C* matrices, C fill, int border, long long count,
                         int channels, int rows, int columns, int height, int width) {
    const long long pixel = global_thread_index(), pixels = (long long)height * width;
    const long long plane = (long long)rows * columns;
    if (pixel >= pixels) return;
    const int i = int(pixel / width), j = int(pixel % width);
    const C x = j - C(width - 1) / 2, y = i - C(height - 1) / 2;
    for (long long n = blockIdx.y; n < count; n += gridDim.y) {
        const C across = mapped(matrices + 6 * n, x, y, C(columns - 1) / 2);
        const C down = mapped(matrices + 6 * n + 3, x, y, C(rows - 1) / 2);
        const T* image = images + n * channels * plane;
        T* result = out + n * channels * pixels + pixel;
        const C left = floor(BILINEAR ? across : across + C(0.5)), top = floor(BILINEAR ? down : down + C(0.5));
        const int near_column = found_at(int(left), columns, border), near_row = found_at(int(top), rows, border);
        const auto at = [&](int row, int column) {
            return row < 0 || column < 0 ? fill : C(image[(long long)row * columns + column]);
        };
        if constexpr (BILINEAR) {
            const int far_column = found_at(int(left) + 1, columns, border);
            const int far_row = found_at(int(top) + 1, rows, border);
            const C right = across - left, below = down - top;
            for (int c = 0; c < channels; c++, image += plane, result += pixels) {
                const C upper = at(near_row, near_column) * (1 - right) + at(near_row, far_column) * right;
                const C lower = at(far_row, near_column) * (1 - right) + at(far_row, far_column) * right;
                store(result, upper * (1 - below) + lower * below);
            }
        } else {
            for (int c = 0; c < channels; c++, image += plane, result += pixels)
                store(result, at(near_row, near_column));
        }
    }
}
