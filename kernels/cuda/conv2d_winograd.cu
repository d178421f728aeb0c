// 3x3 convolution with stride 1, and its two gradients, by Winograd's minimal filtering F(4x4, 3x3): float32.
//
// The output is cut into tiles of 4 x 4 pixels. The 6 x 6 pixels under a tile, seen as a polynomial, become
// its values at 6 x 6 points, and so do the kernels; there a convolution is a product, point by point:
//
//   forward      V = B^T d B    d: 6 x 6 windows of the input      (36, C, tiles)   winograd_input_to_points
//                U = G g G^T    g: 3 x 3 kernels                   (36, C, O)       winograd_weight_to_points
//                M = U^T V      36 products of matrices            (36, O, tiles)
//                out = A^T M A  + bias                                              winograd_points_to_output
//   input_grad   the same of grad_output, with the kernels rotated by half a turn, and U (36, O, C)
//   weight_grad  D = E d E^T    d: 4 x 4 tiles of grad_output      (36, O, tiles)   winograd_grad_to_points
//                S = D V^T      36 products, sums over tiles       (36, O, C)
//                grad = E^T (S / N N^T) E                                           winograd_points_to_weight
//
// The products are those of the ladder of matmul.cu.
//
// The points are 0, +-3/4, +-3/2 and infinity; kernels/cpu/conv2d_winograd.h has the method, its sources, and
// why these. Rounding errors are some 3 to 5 times those of the definition, and a value that is not finite
// reaches the whole tile.
//
// For the 16 outputs of a tile the products take 36 multiply-adds where the definition takes 144. The price
// is memory: values at points are 36 / 16 = 2.25 times as many as pixels, written once and read once. With
// C = O, that is 2 (1 + 2 * 2.25) = 11 floats, or 44 bytes, for each pixel and channel, where the products
// take 2 * 2.25 C = 4.5 C operations: C / 10 for each byte. So with 128 channels a card that does 12
// operations in the time of a byte is as busy with moving values as with the products, where the definition
// would take 18 C operations. F(2x2, 3x3) takes 64 multiply-adds for the 16 outputs and moves 4 times as many
// values as pixels: it would have to keep them on the chip.
//
// A transform has a thread for each tile and channel. The lanes of a warp are neighbouring tiles: what they
// read are neighbouring windows of a row, and at each point they write 128 bytes in a row. Registers: the 36
// values, those half transformed, and addresses; up to 104, so that 16 warps share a multiprocessor.

#include "common.cuh"
#include "vector.cuh"

constexpr int POINTS = 6, STEP = 4, TAPS = 3;  // along one axis
constexpr int THREADS = 256;

// The images of one side of a convolution, and the tiles they are cut into, some of which are transformed.
struct WinogradTiles {
    int channels, height, width;
    int pad_h, pad_w;          // the window of tile (0, 0) begins at pixel (-pad_h, -pad_w)
    unsigned rows, columns;    // of tiles in an image
    unsigned image, first;     // the first tile to transform, counted from the first one of its image
    unsigned count;            // tiles to transform
    unsigned pitch;            // elements from one channel to the next in the values at a point, >= count
};

// ---- the matrices ----

constexpr float A = 0.75f, B = 1.5f;  // the points, with 0, -A, -B and infinity
constexpr float A2 = A * A, B2 = B * B;

// 1 / N_p of each point p: the product of its distances from the other finite ones.
constexpr float INVERSE_N[POINTS] = {
    1 / (A2 * B2), 1 / (2 * A2 * (A2 - B2)), 1 / (2 * A2 * (A2 - B2)),
    1 / (2 * B2 * (B2 - A2)), 1 / (2 * B2 * (B2 - A2)), 1};

// v = B^T d
__device__ __forceinline__ void to_points(float (&v)[POINTS], const float (&d)[POINTS]) {
    const float even_a = d[4] - B2 * d[2], odd_a = d[3] - B2 * d[1];
    const float even_b = d[4] - A2 * d[2], odd_b = d[3] - A2 * d[1];
    v[0] = d[4] - (A2 + B2) * d[2] + (A2 * B2) * d[0];
    v[1] = even_a + A * odd_a;
    v[2] = even_a - A * odd_a;
    v[3] = even_b + B * odd_b;
    v[4] = even_b - B * odd_b;
    v[5] = d[5] - (A2 + B2) * d[3] + (A2 * B2) * d[1];
}

// v = E c: the values at the points of a polynomial of 3 or 4 coefficients.
template <int COUNT>
__device__ __forceinline__ void to_points(float (&v)[POINTS], const float (&c)[COUNT]) {
    static_assert(COUNT == TAPS || COUNT == STEP);
    const float even_a = c[0] + A2 * c[2], even_b = c[0] + B2 * c[2];
    float odd_a = c[1], odd_b = c[1];
    if (COUNT == STEP) {
        odd_a += A2 * c[COUNT - 1];
        odd_b += B2 * c[COUNT - 1];
    }
    v[0] = c[0];
    v[1] = even_a + A * odd_a;
    v[2] = even_a - A * odd_a;
    v[3] = even_b + B * odd_b;
    v[4] = even_b - B * odd_b;
    v[5] = c[COUNT - 1];
}

// c = E^T v
template <int COUNT>
__device__ __forceinline__ void from_points(float (&c)[COUNT], const float (&v)[POINTS]) {
    static_assert(COUNT == TAPS || COUNT == STEP);
    const float even_a = v[1] + v[2], odd_a = v[1] - v[2], even_b = v[3] + v[4], odd_b = v[3] - v[4];
    c[0] = v[0] + even_a + even_b;
    c[1] = A * odd_a + B * odd_b;
    c[2] = A2 * even_a + B2 * even_b;
    if (COUNT == STEP) c[COUNT - 1] = A * A2 * odd_a + B * B2 * odd_b;
    c[COUNT - 1] += v[POINTS - 1];
}

// values[i][j] = the values at the points of a window, COUNT pixels a side: columns first, then rows.
template <int COUNT>
__device__ __forceinline__ void window_to_points(float (&values)[POINTS][POINTS],
                                                 const float (&window)[COUNT][COUNT]) {
    float half[POINTS][COUNT];
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        float column[COUNT], at_points[POINTS];
#pragma unroll
        for (int i = 0; i < COUNT; i++) column[i] = window[i][j];
        to_points(at_points, column);
#pragma unroll
        for (int i = 0; i < POINTS; i++) half[i][j] = at_points[i];
    }
#pragma unroll
    for (int i = 0; i < POINTS; i++) to_points(values[i], half[i]);
}

// The other way: COUNT x COUNT results from products at the points.
template <int COUNT>
__device__ __forceinline__ void points_to_window(float (&window)[COUNT][COUNT],
                                                 const float (&values)[POINTS][POINTS]) {
    float half[POINTS][COUNT];
#pragma unroll
    for (int i = 0; i < POINTS; i++) from_points(half[i], values[i]);
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        float column[POINTS], results[COUNT];
#pragma unroll
        for (int i = 0; i < POINTS; i++) column[i] = half[i][j];
        from_points(results, column);
#pragma unroll
        for (int i = 0; i < COUNT; i++) window[i][j] = results[i];
    }
}

// ---- images ----

// Where a tile's window of pixels begins.
struct Corner {
    unsigned image;
    int y, x;

    __device__ __forceinline__ Corner(unsigned tile, const WinogradTiles& s) {
        const unsigned number = s.first + tile, row = number / s.columns;
        image = s.image + row / s.rows;
        y = int(row % s.rows) * STEP - s.pad_h;
        x = int(number % s.columns) * STEP - s.pad_w;
    }
};

// Windows of COUNT x COUNT pixels to points: values (36, channels, pitch). Pixels outside of an image are
// zeros, and so are the tiles beyond the last one.
template <int COUNT>
__device__ __forceinline__ void images_to_points(float* values, const float* images, const WinogradTiles& s) {
    const unsigned tile = blockIdx.x * blockDim.x + threadIdx.x;
    if (tile >= s.pitch) return;
    const Corner at(tile, s);
    const long long plane = (long long)s.height * s.width, point = (long long)s.channels * s.pitch;
    bool in_row[COUNT], in_column[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        in_row[i] = tile < s.count && unsigned(at.y + i) < unsigned(s.height);
        in_column[i] = unsigned(at.x + i) < unsigned(s.width);
    }
    const long long corner = plane * s.channels * at.image + (long long)at.y * s.width + at.x;
    for (int c = blockIdx.y * blockDim.y + threadIdx.y; c < s.channels; c += gridDim.y * blockDim.y) {
        const float* from = images + corner + c * plane;
        float window[COUNT][COUNT], at_points[POINTS][POINTS];
#pragma unroll
        for (int i = 0; i < COUNT; i++)
#pragma unroll
            for (int j = 0; j < COUNT; j++)
                window[i][j] = in_row[i] && in_column[j] ? from[(long long)i * s.width + j] : 0.0f;
        window_to_points(at_points, window);
        float* to = values + (long long)c * s.pitch + tile;
#pragma unroll
        for (int i = 0; i < POINTS; i++)
#pragma unroll
            for (int j = 0; j < POINTS; j++) to[(i * POINTS + j) * point] = at_points[i][j];
    }
}

// V = B^T d B. Grid: x = tiles, y = channels; blocks of THREADS threads in the same shape.
__global__ void __launch_bounds__(THREADS)
winograd_input_to_points(float* values, const float* input, WinogradTiles s) {
    images_to_points<POINTS>(values, input, s);
}

// D = E d E^T, the tiles of the output's gradient, which are the kernels of the gradient for the weight.
__global__ void __launch_bounds__(THREADS)
winograd_grad_to_points(float* values, const float* grad_output, WinogradTiles s) {
    images_to_points<STEP>(values, grad_output, s);
}

// out = A^T M A + bias, through ReLU where `relu`. Its tiles have no padding. bias may be null. Grid: as above.
__global__ void __launch_bounds__(THREADS)
winograd_points_to_output(float* out, const float* products, const float* bias, bool relu,
                          WinogradTiles s) {
    const unsigned tile = blockIdx.x * blockDim.x + threadIdx.x;
    if (tile >= s.count) return;
    const Corner at(tile, s);
    const long long plane = (long long)s.height * s.width, point = (long long)s.channels * s.pitch;
    const long long corner = plane * s.channels * at.image + (long long)at.y * s.width + at.x;
    const bool whole_rows = s.width % STEP == 0 && aligned<STEP>(out);  // then all of them start at vectors
    for (int c = blockIdx.y * blockDim.y + threadIdx.y; c < s.channels; c += gridDim.y * blockDim.y) {
        const float* from = products + (long long)c * s.pitch + tile;
        float at_points[POINTS][POINTS], pixels[STEP][STEP];
#pragma unroll
        for (int i = 0; i < POINTS; i++)
#pragma unroll
            for (int j = 0; j < POINTS; j++) at_points[i][j] = from[(i * POINTS + j) * point];
        points_to_window(pixels, at_points);
        const float start = bias ? bias[c] : 0.0f;
        float* to = out + corner + c * plane;
#pragma unroll
        for (int i = 0; i < STEP; i++) {
            if (at.y + i >= s.height) break;
            Vector<float, STEP> row;
#pragma unroll
            for (int j = 0; j < STEP; j++) row.lane[j] = relu_if(relu, pixels[i][j] + start);
            if (whole_rows) {
                store_results(to, row);
            } else {
#pragma unroll
                for (int j = 0; j < STEP; j++)
                    if (at.x + j < s.width) to[j] = row.lane[j];
            }
            to += s.width;
        }
    }
}

// ---- weights ----

// U = G g G^T, with G = E / N: at each point (groups, K, M), for sums over K channels that give M. For the
// output, kernel (k, m) of a group is that of input channel k and output channel m; for the input's gradient
// (`rotated` by half a turn) it is the other way round, as the weight lies. Grid: x = all kernels.
__global__ void __launch_bounds__(THREADS)
winograd_weight_to_points(float* values, const float* weight, long long count, int K, int M, bool rotated) {
    const long long number = global_thread_index();
    if (number >= count) return;
    const long long group = number / ((long long)K * M);
    const int k = int(number / M % K), m = int(number % M);
    const float* taps = weight + (rotated ? number : (group * M + m) * K + k) * TAPS * TAPS;
    float kernel[TAPS][TAPS], at_points[POINTS][POINTS];
#pragma unroll
    for (int i = 0; i < TAPS; i++)
#pragma unroll
        for (int j = 0; j < TAPS; j++) {
            const int tap = i * TAPS + j;
            kernel[i][j] = taps[rotated ? TAPS * TAPS - 1 - tap : tap];
        }
    window_to_points(at_points, kernel);
#pragma unroll
    for (int i = 0; i < POINTS; i++)
#pragma unroll
        for (int j = 0; j < POINTS; j++)
            values[(i * POINTS + j) * count + number] = INVERSE_N[i] * INVERSE_N[j] * at_points[i][j];
}

// The gradient for `count` kernels, from sums (parts, 36, count), which are added in their order.
__global__ void __launch_bounds__(THREADS)
winograd_points_to_weight(float* grad_weight, const float* sums, long long count, int parts) {
    const long long number = global_thread_index();
    if (number >= count) return;
    float at_points[POINTS][POINTS] = {}, kernel[TAPS][TAPS];
    for (int part = 0; part < parts; part++)
#pragma unroll
        for (int i = 0; i < POINTS; i++)
#pragma unroll
            for (int j = 0; j < POINTS; j++)
                at_points[i][j] += sums[(part * POINTS * POINTS + i * POINTS + j) * count + number];
#pragma unroll
    for (int i = 0; i < POINTS; i++)
#pragma unroll
        for (int j = 0; j < POINTS; j++) at_points[i][j] *= INVERSE_N[i] * INVERSE_N[j];
    points_to_window(kernel, at_points);
#pragma unroll
    for (int i = 0; i < TAPS; i++)
#pragma unroll
        for (int j = 0; j < TAPS; j++) grad_weight[(number * TAPS + i) * TAPS + j] = kernel[i][j];
}
