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
// WIDE, where a row of the output is as long as the input's, or as half of it at stride 2, and the input's is made of
// whole vectors, a strip is as wide as a vector of the input, of four elements or two of float64. At stride 1 a row
// takes one load and those of K - 1 pixels beside it, where four strips take 4 K. In machine code an output of 3 x 3
// took some 45 instructions, and takes 29, of which 9 are multiply-adds; at 49 us for 64 x 128 x 56 x 56 an H200 has
// time for 57. At stride 2 a row of two outputs takes two loads, before six, and input_grad stores whole vectors.
//
// K, the stride S and ROWS are compile-time constants, so that all loops over taps and rows are unrolled and
// what they index stays in registers. In float32 a thread takes up to 64 registers, 128 for K = 5.
//
// The padding's zeros are multiplied with like any number, as in conv2d_implicit_gemm.cu. Arrays may be of 16
// bits: registers hold float32, and a result is rounded once.

#include "conv2d.cuh"
#include "rows.cuh"
#include "vector.cuh"

constexpr int STRIP_THREADS = 256;
// Blocks of a multiprocessor that strips leave registers for; where nvcc is not told, it has loads wait for each other
// to save some.
template <typename T, int K>
constexpr int STRIP_BLOCKS = K == 5 ? sizeof(T) == 8 ? 1 : 2 : sizeof(T) == 8 ? 2 : sizeof(T) == 4 ? 4 : 3;
template <typename T>
constexpr int STRIP_PIXELS = sizeof(T) == 8 ? 2 : 4;  // of the input, in a row of a wide strip
constexpr int LOADS_AHEAD = 12;  // that a thread has under way while it adds up the row before them

// The COUNT elements of a source row that a thread takes, from `row` on; zeros for those outside. VECTOR of them,
// behind the first BEFORE ones, lie inside, and are one load.
template <int VECTOR, int BEFORE, typename C, typename T, int COUNT>
__device__ __forceinline__ void read_pixels(C (&pixels)[COUNT], const T* row, bool in_row,
                                            const bool (&in_column)[COUNT]) {
#pragma unroll
    for (int j = 0; j < COUNT; j++)
        if (j < BEFORE || j >= BEFORE + VECTOR) pixels[j] = in_row && in_column[j] ? C(row[j]) : C(0);
    if constexpr (VECTOR > 0) {
        Vector<T, VECTOR> vector = {};
        if (in_row) vector = load_vector<VECTOR>(row + BEFORE);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) pixels[BEFORE + j] = C(vector.lane[j]);
    }
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

// The source's channel of an output channel, mostly its own: two divisions are as much as two results take.
__device__ __forceinline__ int channel_of(int o, const Conv2dShape& s) { return s.O == s.C ? o : o / (s.O / s.C); }

// Grid: one dimension, a thread for each strip of each of the N * O planes of out. bias may be null.
template <typename T, int K, int S, int ROWS, bool FLIPPED, bool WIDE>
__global__ void __launch_bounds__(STRIP_THREADS, WIDE ? STRIP_BLOCKS<T, K> : 1)
conv2d_strips_forward(T* out, const T* input, const T* weight, const T* bias, bool relu,
                      Conv2dShape s) {
    constexpr int VECTOR = WIDE ? STRIP_PIXELS<T> : 0, WIDTH = WIDE ? VECTOR / S : 1;
    const int strips = (s.OH + ROWS - 1) / ROWS, columns = s.OW / WIDTH;
    const long long number = global_thread_index();
    if (number >= (long long)s.N * s.O * strips * columns) return;
    const Position at = position_of(number, strips, columns);
    const Division image(at.plane, s.O);
    const int o = image.rest, c = channel_of(o, s), first = at.y * ROWS, column = at.x * WIDTH;
    const int y = first * S - s.pad_h, x = column * S - s.pad_w;

    using C = Computed<T>;
    constexpr int SOURCE_ROWS = (ROWS - 1) * S + K, TAKEN = (WIDTH - 1) * S + K, AHEAD = LOADS_AHEAD / K;
    C weights[K][K], pixels[SOURCE_ROWS][TAKEN], sums[ROWS][WIDTH];
    bool in_column[TAKEN];
    read_weights<FLIPPED>(weights, weight + (long long)o * K * K);
    columns_inside(in_column, x, s.W);
    const C start = bias ? C(bias[o]) : C(0);
#pragma unroll
    for (int r = 0; r < ROWS * WIDTH; r++) sums[r / WIDTH][r % WIDTH] = start;

    const T* row = input + ((image.quotient * s.C + c) * s.H + y) * s.W + x;
    T* to = out + (at.plane * s.OH + first) * s.OW + column;
#pragma unroll
    for (int next = 0; next < SOURCE_ROWS + AHEAD; next++, row += s.W) {
        if (next < SOURCE_ROWS)
            read_pixels<VECTOR, K / 2>(pixels[next], row, unsigned(y + next) < unsigned(s.H), in_column);
        const int i = next - AHEAD;
        if (i < 0) continue;
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const int tap_y = i - r * S;
            if (tap_y < 0 || tap_y >= K) continue;
#pragma unroll
            for (int k = 0; k < WIDTH; k++)
#pragma unroll
                for (int j = 0; j < K; j++) sums[r][k] += pixels[i][k * S + j] * weights[tap_y][j];
            if (tap_y < K - 1) continue;
            Vector<T, WIDTH> results;
#pragma unroll
            for (int k = 0; k < WIDTH; k++) results.lane[k] = T(relu_if(relu, sums[r][k]));
            if (first + r < s.OH) store_vector(to, results);
            to += s.OW;
        }
    }
}

// Counted from where the padding begins, pixel S q + p takes part in output q + d by tap p - S d. A thread makes the
// pixels of ROWS values of q down, all S values of p for each, and as many of one q across; of a WIDE strip, a vector.
// That begins behind a padding of K / 2: the first p.
template <typename T, int K, int S, int ROWS, bool WIDE>
__global__ void __launch_bounds__(STRIP_THREADS, K == 3 || WIDE ? STRIP_BLOCKS<T, K> : 1)
conv2d_strips_input_grad(T* grad_input, const T* grad_output, const T* weight, Conv2dShape s) {
    constexpr int HEIGHT = ROWS * S, WIDTH = WIDE ? STRIP_PIXELS<T> : S, FIRST = WIDE ? K / 2 : 0;
    constexpr int BEFORE = (K - 1 - FIRST) / S;  // the first d is -BEFORE
    constexpr int TAKEN_ROWS = BEFORE + (FIRST + HEIGHT - 1) / S + 1, TAKEN = BEFORE + (FIRST + WIDTH - 1) / S + 1;
    constexpr int AHEAD = S == 1 ? 0 : LOADS_AHEAD / TAKEN;  // sums of 7 rows leave no registers for more
    const int pad_h = WIDE ? 0 : s.pad_h, pad_w = WIDE ? 0 : s.pad_w;  // in the strips
    const int first_y = pad_h / S, first_x = pad_w / S;                // the first q
    const int strips = ((s.H - 1 + pad_h) / S - first_y) / ROWS + 1;
    const int columns = ((s.W - 1 + pad_w) / S - first_x) / (WIDTH / S) + 1;
    const long long number = global_thread_index();
    if (number >= (long long)s.N * s.C * strips * columns) return;
    const Position at = position_of(number, strips, columns);
    const int y = first_y + at.y * ROWS, x = first_x + at.x * (WIDTH / S);
    const int first_output = y - BEFORE;

    using C = Computed<T>;
    C sums[HEIGHT][WIDTH] = {};
    bool in_column[TAKEN];
    columns_inside(in_column, x - BEFORE, s.OW);
    const int multiplier = s.O / s.C;
    const long long first_channel = (long long)Division(at.plane, s.C).rest * multiplier;
    for (int m = 0; m < multiplier; m++) {
        C weights[K][K], grads[TAKEN_ROWS][TAKEN];
        read_weights(weights, weight + (first_channel + m) * K * K);
        const T* row = grad_output + ((at.plane * multiplier + m) * s.OH + first_output) * s.OW + x - BEFORE;
#pragma unroll
        for (int next = 0; next < TAKEN_ROWS + AHEAD; next++, row += s.OW) {
            const bool in_row = unsigned(first_output + next) < unsigned(s.OH);
            if (next < TAKEN_ROWS)
                read_pixels<WIDE ? WIDTH / S : 0, BEFORE>(grads[next], row, in_row, in_column);
            const int i = next - AHEAD;
            if (i < 0) continue;
#pragma unroll
            for (int pixel = 0; pixel < HEIGHT * WIDTH; pixel++) {
                const int r = pixel / WIDTH, k = pixel % WIDTH, tap_y = FIRST + r - S * (i - BEFORE);
                if (tap_y < 0 || tap_y >= K) continue;
#pragma unroll
                for (int j = 0; j < TAKEN; j++) {
                    const int tap_x = FIRST + k - S * (j - BEFORE);
                    if (0 <= tap_x && tap_x < K) sums[r][k] += grads[i][j] * weights[tap_y][tap_x];
                }
            }
        }
    }

    const int to_y = y * S - pad_h, to_x = x * S - pad_w;
    T* to = grad_input + (at.plane * s.H + to_y) * s.W + to_x;
#pragma unroll
    for (int r = 0; r < HEIGHT; r++, to += s.W) {
        Vector<T, WIDTH> results;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) results.lane[k] = T(sums[r][k]);
        if (unsigned(to_y + r) >= unsigned(s.H)) continue;
        if constexpr (WIDE) {
            store_vector(to, results);
        } else {
#pragma unroll
            for (int k = 0; k < WIDTH; k++)
                if (unsigned(to_x + k) < unsigned(s.W)) to[k] = results.lane[k];
        }
    }
}

// Of a channel's strips, fewer than 2^31, each part takes as many as its block has threads, then the next part: so all
// of them have as much to do. The sums of the parts stand in `partial` (O, K K, parts), of what is computed with, and
// another kernel adds them; those of a single part are the result. Within a block they are combined by shuffles: the
// order of all additions is always the same.
//
// Grid: x = part + parts * channel of out.
template <typename Out, typename T, int K, int S, int ROWS, bool WIDE>
__global__ void __launch_bounds__(STRIP_THREADS, WIDE ? STRIP_BLOCKS<T, K> : 1)
conv2d_strips_weight_grad(Out* partial, const T* grad_output, const T* input, int parts, Conv2dShape s) {
    using C = Computed<T>;
    __shared__ C of_warp[K * K][STRIP_THREADS / WARP];
    const int part = int(blockIdx.x % parts), o = int(blockIdx.x / parts), c = channel_of(o, s);
    constexpr int VECTOR = WIDE ? STRIP_PIXELS<T> : 0, WIDTH = WIDE ? VECTOR / S : 1, TAKEN = (WIDTH - 1) * S + K;
    constexpr int SOURCE_ROWS = (ROWS - 1) * S + K;
    const int strips = (s.OH + ROWS - 1) / ROWS, columns = s.OW / WIDTH;

    C sums[K][K] = {};
    const unsigned all_strips = unsigned(s.N) * strips * columns, step = parts * STRIP_THREADS;
    for (unsigned number = part * STRIP_THREADS + threadIdx.x; number < all_strips; number += step) {
        const Position at = position_of(number, strips, columns);
        const long long n = at.plane;
        const int first = at.y * ROWS, rows = s.OH - first, column = at.x * WIDTH;
        const int y = first * S - s.pad_h, x = column * S - s.pad_w;
        C pixels[SOURCE_ROWS][TAKEN];
        Vector<C, WIDTH> grads[ROWS] = {};
        bool in_column[TAKEN];
        const T* grad = grad_output + ((n * s.O + o) * s.OH + first) * s.OW + column;
#pragma unroll
        for (int r = 0; r < ROWS; r++, grad += s.OW)
            if (r < rows) grads[r] = converted<C>(load_vector<WIDTH>(grad));

        columns_inside(in_column, x, s.W);
        const T* row = input + ((n * s.C + c) * s.H + y) * s.W + x;
#pragma unroll
        for (int i = 0; i < SOURCE_ROWS; i++, row += s.W)  // all of the strip is on its way at a time
            read_pixels<VECTOR, K / 2>(pixels[i], row, unsigned(y + i) < unsigned(s.H), in_column);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            if (r >= rows) break;  // not 0 * pixel, which may be infinite
#pragma unroll
            for (int k = 0; k < WIDTH * K * K; k++) {
                const int column = k / K % WIDTH, i = k / (K * WIDTH), j = k % K;
                sums[i][j] += pixels[r * S + i][column * S + j] * grads[r].lane[column];
            }
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
