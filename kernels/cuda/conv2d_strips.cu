// Depthwise convolution with small square kernels, and its two gradients, by strips of rows.
//
// The formula is in conv2d.cuh, the shapes and what bounds a depthwise convolution in conv2d_depthwise.cu: an
// output takes 2 K K operations for the 8 bytes of reading a pixel and writing it, 2.25 a byte for K = 3.
// There a block copies pixels to shared memory, waits, and reads each of them K K times. Here a thread makes
// a strip, ROWS results of one column, and walks down its source rows: of each it reads the K pixels that its
// column takes, into registers, and adds them to the up to K results that the row is part of. So a pixel is
// read K times, not K K times, by neighbouring threads from the L1 cache; the weights stay in registers;
// there is no shared memory, no barrier, and all loads of a strip are independent of each other: those of the
// next rows are under way while a row is added up.
//
//   forward      a strip of an output channel; with FLIPPED weights, of what a stride of 1 makes of the
//                gradient, for a channel in and out: the same sum, with the taps in the other order
//   input_grad   a strip of pixels, S x S of them for each place of the source, S being the stride: which
//                taps reach which of these is known at compile time
//   weight_grad  a thread adds up K K sums over strips of its block's channel; the block adds those of its
//                threads
//
// K, the stride S and ROWS are compile-time constants, so that all loops over taps and rows are unrolled and
// what they index stays in registers. In float32 a thread takes up to 64 registers.
//
// The padding's zeros are multiplied with like any number, as in conv2d_implicit_gemm.cu. Arrays may be of 16
// bits: registers hold float32, and a result is rounded once.

#include "conv2d.cuh"
#include "rows.cuh"

constexpr int STRIP_THREADS = 256;
constexpr int LOADS_AHEAD = 12;  // that a thread has under way while it adds up the row before them

// The K elements of a source row that a column takes, from `row` on; zeros for those outside.
template <typename C, typename T, int K>
__device__ __forceinline__ void read_pixels(C (&pixels)[K], const T* row, bool in_row,
                                            const bool (&in_column)[K]) {
#pragma unroll
    for (int j = 0; j < K; j++) pixels[j] = in_row && in_column[j] ? C(row[j]) : C(0);
}

template <int K>
__device__ __forceinline__ void columns_inside(bool (&inside)[K], int first, int width) {
#pragma unroll
    for (int j = 0; j < K; j++) inside[j] = unsigned(first + j) < unsigned(width);
}

template <bool FLIPPED = false, typename C, typename T, int K>
__device__ __forceinline__ void read_weights(C (&weights)[K][K], const T* from) {
#pragma unroll
    for (int tap = 0; tap < K * K; tap++)
        weights[tap / K][tap % K] = C(from[FLIPPED ? K * K - 1 - tap : tap]);
}

// Grid: one dimension, a thread for each strip of each of the N * O planes of out. bias may be null.
template <typename T, int K, int S, int ROWS, bool FLIPPED>
__global__ void __launch_bounds__(STRIP_THREADS)
conv2d_strips_forward(T* out, const T* input, const T* weight, const T* bias, bool relu,
                      Conv2dShape s) {
    const int strips = (s.OH + ROWS - 1) / ROWS;
    const long long number = global_thread_index();
    if (number >= (long long)s.N * s.O * strips * s.OW) return;
    const Position at = position_of(number, strips, s.OW);
    const Division image(at.plane, s.O);
    const int o = image.rest, c = o / (s.O / s.C), first = at.y * ROWS;
    const int y = first * S - s.pad_h, x = at.x * S - s.pad_w;

    using C = Computed<T>;
    constexpr int SOURCE_ROWS = (ROWS - 1) * S + K, AHEAD = LOADS_AHEAD / K;
    C weights[K][K], pixels[SOURCE_ROWS][K], sums[ROWS];
    bool in_column[K];
    read_weights<FLIPPED>(weights, weight + (long long)o * K * K);
    columns_inside(in_column, x, s.W);
#pragma unroll
    for (int r = 0; r < ROWS; r++) sums[r] = bias ? C(bias[o]) : C(0);

    const T* row = input + ((image.quotient * s.C + c) * s.H + y) * s.W + x;
#pragma unroll
    for (int next = 0; next < SOURCE_ROWS + AHEAD; next++, row += s.W) {
        if (next < SOURCE_ROWS)
            read_pixels(pixels[next], row, unsigned(y + next) < unsigned(s.H), in_column);
        const int i = next - AHEAD;
        if (i < 0) continue;
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (0 <= i - r * S && i - r * S < K)
#pragma unroll
                for (int j = 0; j < K; j++) sums[r] += pixels[i][j] * weights[i - r * S][j];
    }

    T* to = out + (at.plane * s.OH + first) * s.OW + at.x;
#pragma unroll
    for (int r = 0; r < ROWS; r++, to += s.OW)
        if (first + r < s.OH) *to = T(relu_if(relu, sums[r]));
}

// Counted from where the padding begins, a pixel is S q + p with 0 <= p < S, and tap p + S t reads it for
// output q - t. A thread makes the pixels of one q across and ROWS of them down, all S x S values of p for
// each.
template <typename T, int K, int S, int ROWS>
__global__ void __launch_bounds__(STRIP_THREADS)
conv2d_strips_input_grad(T* grad_input, const T* grad_output, const T* weight, Conv2dShape s) {
    constexpr int REACH = (K + S - 1) / S;  // outputs along an axis that a pixel takes part in, at most
    const int first_y = s.pad_h / S, first_x = s.pad_w / S;  // the first q
    const int strips = ((s.H - 1 + s.pad_h) / S - first_y) / ROWS + 1;
    const int columns = (s.W - 1 + s.pad_w) / S - first_x + 1;
    const long long number = global_thread_index();
    if (number >= (long long)s.N * s.C * strips * columns) return;
    const Position at = position_of(number, strips, columns);
    const int y = first_y + at.y * ROWS, x = first_x + at.x;
    const int first_output = y - (REACH - 1);

    using C = Computed<T>;
    C sums[ROWS][S][S] = {};
    bool in_column[REACH];
    columns_inside(in_column, x - (REACH - 1), s.OW);
    const int multiplier = s.O / s.C;
    const long long first_channel = (long long)Division(at.plane, s.C).rest * multiplier;
    for (int m = 0; m < multiplier; m++) {
        C weights[K][K], grads[REACH];
        read_weights(weights, weight + (first_channel + m) * K * K);
        const T* row =
            grad_output + ((at.plane * multiplier + m) * s.OH + first_output) * s.OW + x - (REACH - 1);
#pragma unroll
        for (int i = 0; i < ROWS + REACH - 1; i++, row += s.OW) {
            read_pixels(grads, row, unsigned(first_output + i) < unsigned(s.OH), in_column);
#pragma unroll
            for (int pixel = 0; pixel < ROWS * S * S; pixel++) {
                const int r = pixel / (S * S), py = pixel / S % S, px = pixel % S;
                const int tap_y = py + S * (r + REACH - 1 - i);
                if (tap_y < py || tap_y >= K) continue;
#pragma unroll
                for (int j = 0; j < REACH; j++) {
                    const int tap_x = px + S * (REACH - 1 - j);
                    if (tap_x < K) sums[r][py][px] += grads[j] * weights[tap_y][tap_x];
                }
            }
        }
    }

    T* plane = grad_input + at.plane * s.H * s.W;
#pragma unroll
    for (int pixel = 0; pixel < ROWS * S * S; pixel++) {
        const int r = pixel / (S * S), py = pixel / S % S, px = pixel % S;
        const int to_y = (y + r) * S + py - s.pad_h, to_x = x * S + px - s.pad_w;
        if (unsigned(to_y) < unsigned(s.H) && unsigned(to_x) < unsigned(s.W))
            plane[(long long)to_y * s.W + to_x] = T(sums[r][py][px]);
    }
}

// Part number p takes the images p, p + parts, p + 2 parts, ..., of fewer than 2^31 strips. The sums of the
// parts stand in `partial` (O, K K, parts), of what is computed with, and another kernel adds them; those of a
// single part are the result. Within a block they are combined by shuffles: the order of all additions is always
// the same.
//
// Grid: x = part + parts * channel of out.
template <typename Out, typename T, int K, int S, int ROWS>
__global__ void __launch_bounds__(STRIP_THREADS)
conv2d_strips_weight_grad(Out* partial, const T* grad_output, const T* input, int parts, Conv2dShape s) {
    using C = Computed<T>;
    __shared__ C of_warp[K * K][STRIP_THREADS / WARP];
    const int part = int(blockIdx.x % parts), o = int(blockIdx.x / parts), c = o / (s.O / s.C);
    const int strips = (s.OH + ROWS - 1) / ROWS, images = (s.N - part + parts - 1) / parts;

    C sums[K][K] = {};
    const unsigned all_strips = unsigned(images) * strips * s.OW;
    for (unsigned number = threadIdx.x; number < all_strips; number += STRIP_THREADS) {
        const Position at = position_of(number, strips, s.OW);
        const long long n = part + at.plane * parts;
        const int first = at.y * ROWS, rows = s.OH - first, y = first * S - s.pad_h, x = at.x * S - s.pad_w;
        C grads[ROWS], pixels[K];
        bool in_column[K];
        const T* grad = grad_output + ((n * s.O + o) * s.OH + first) * s.OW + at.x;
#pragma unroll
        for (int r = 0; r < ROWS; r++, grad += s.OW) grads[r] = r < rows ? C(*grad) : C(0);

        columns_inside(in_column, x, s.W);
        const T* row = input + ((n * s.C + c) * s.H + y) * s.W + x;
#pragma unroll
        for (int i = 0; i < (ROWS - 1) * S + K; i++, row += s.W) {
            read_pixels(pixels, row, unsigned(y + i) < unsigned(s.H), in_column);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                if (0 <= i - r * S && i - r * S < K && r < rows)  // not 0 * pixel, which may be infinite
#pragma unroll
                    for (int j = 0; j < K; j++) sums[i - r * S][j] += pixels[j] * grads[r];
        }
    }

#pragma unroll
    for (int tap = 0; tap < K * K; tap++) {
        const C sum = across_warp<SUM>(sums[tap / K][tap % K]);
        if (threadIdx.x % WARP == 0) of_warp[tap][threadIdx.x / WARP] = sum;
    }
    __syncthreads();  // all warps have left theirs
    if (threadIdx.x < K * K) {
        C sum = 0;
        for (int warp = 0; warp < STRIP_THREADS / WARP; warp++) sum += of_warp[threadIdx.x][warp];
        partial[((long long)o * K * K + threadIdx.x) * parts + part] = Out(sum);
    }
}
