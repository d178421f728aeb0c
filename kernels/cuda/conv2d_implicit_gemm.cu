// Convolution and its two gradients as matrix products, whose operands are never stored: implicit GEMM.
//
// In each group, all three are out (rows x columns) = a (rows x K) times b (K x columns), where an entry of a
// or b is a weight, or the pixel or gradient at a place that its row and column tell:
//
//                  rows        K             columns          a              b
//   forward        O/groups    taps          pixels of out    weight         input
//   input_grad     C/groups    taps          pixels of input  weight         grad_output
//   weight_grad    O/groups    pixels of out taps             grad_output    input
//
// "taps" are all (channel, i, j) of a kernel, "pixels" all (n, y, x) of a batch. im2col would write b to
// memory, KH * KW times the size of the input, to read it back. Here each block gathers a tile of a and a
// tile of b into shared memory as it needs them.
//
// A block has SIDE x SIDE threads and makes a tile of SIDE R x SIDE R results, R x R in each thread. It goes
// along K in steps of SIDE, for which each thread gathers R entries of a and R of b. The rungs, of all three:
//
//   tiled          <32, 1>   every entry is gathered once for 32 results
//   implicit_gemm  <16, 4>   every entry is gathered once for 64 results, and what a thread has read from
//                            shared memory, 4 entries of a and 4 of b, it uses 16 times, from registers
//
// Arithmetic intensity in float32, in operations for each byte gathered: a step takes 2 SIDE^2 R entries for
// 2 SIDE^3 R^2 operations, SIDE R / 4 a byte: 8 for tiled, 16 for implicit_gemm, where direct has 0.25. The
// caches stand between that and the memory, as neighbouring tiles and taps gather the same pixels. Reading
// shared memory, a warp of tiled takes 2 turns of 128 bytes (one entry of a for all lanes, 32 of b) for 32
// multiply-adds; of implicit_gemm 3 turns (2 x 4 of a, 16 x 4 of b) for 512. A multiprocessor of an H200 does
// one such turn and 128 multiply-adds in a cycle: the first is bound by shared memory, the second is not.
//
// Registers: in float32 implicit_gemm takes up to 128, so that two blocks share a multiprocessor; in float64
// up to 180. tiled stays within the 64 that 1024 threads leave each other.
//
// Entries beyond K are gathered as zeros. Rows and columns beyond the last repeat it, and are not stored. The
// padding's zeros are multiplied with like any number: where a weight is infinite and its pixel lies outside,
// out is NaN, as in the reference (direct skips these products). A NaN or an infinity in the images reaches
// the results that it is part of, and no others.

#include "conv2d.cuh"
#include "vector.cuh"

// The tile that a block makes: of which product, and its first row and column in it.
struct Tile {
    long long row, column;
    int group;
    long long slice;  // a phase of input_grad, a part of the sum in weight_grad

    // Neighbouring blocks share their columns, for which more is gathered from memory than for their rows.
    __device__ Tile(int size, long long rows, long long columns, int groups) {
        const long long row_tiles = (rows + size - 1) / size, column_tiles = (columns + size - 1) / size;
        long long number = blockIdx.x;
        row = number % row_tiles * size;
        number /= row_tiles;
        column = number % column_tiles * size;
        number /= column_tiles;
        group = int(number % groups);
        slice = number / groups;
    }
};

// This thread's R x R sums, over `steps` steps along K. operands.load() gathers this thread's share of the
// next two tiles: of a, R entries with one k, which is threadIdx.x if A_ALONG_K and else threadIdx.y, in the
// rows that the other index tells, SIDE apart; of b likewise, in columns.
//
// There are two tiles of each, in turns. While one is multiplied the entries of the next are already on their
// way into registers, and one barrier a step is enough: who writes to a tile again has passed the barrier
// that came after everyone's last reading of it.
//
// Shared memory in float64: 2 * 2 * 16 * 17 * 32 bytes = 34 KB, and 33 KB for tiled. The vector that is added
// to each row keeps the stores of a warp apart that go down a column.
template <int SIDE, int R, typename T, typename Operands>
__device__ __forceinline__ void multiply(T (&sums)[R][R], Operands& operands, long long steps) {
    __shared__ Vector<T, R> a_tiles[2][SIDE][SIDE + 1];
    __shared__ Vector<T, R> b_tiles[2][SIDE][SIDE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int a_k = Operands::A_ALONG_K ? tx : ty, a_row = Operands::A_ALONG_K ? ty : tx;
    const int b_k = Operands::B_ALONG_K ? tx : ty, b_column = Operands::B_ALONG_K ? ty : tx;

    T a[R], b[R];
    if (steps > 0) operands.load(a, b);
    for (long long step = 0; step < steps; step++) {
        auto& a_tile = a_tiles[step % 2];
        auto& b_tile = b_tiles[step % 2];
        for (int r = 0; r < R; r++) {
            a_tile[a_k][(a_row + r * SIDE) / R].lane[(a_row + r * SIDE) % R] = a[r];
            b_tile[b_k][(b_column + r * SIDE) / R].lane[(b_column + r * SIDE) % R] = b[r];
        }
        __syncthreads();  // both tiles are complete
        if (step + 1 < steps) operands.load(a, b);
        for (int k = 0; k < SIDE; k++) {
            const Vector<T, R> of_a = a_tile[k][ty], of_b = b_tile[k][tx];
            for (int r = 0; r < R; r++)
                for (int c = 0; c < R; c++) sums[r][c] += of_a.lane[r] * of_b.lane[c];
        }
    }
}

// ---- forward ----

// a: the weights of a row's channel, which lie in the order of K. b: the pixel that the tap reads for the
// column's pixel of out. The lanes of a warp gather neighbouring weights, and neighbouring pixels.
template <typename T, int SIDE, int R>
struct ForwardOperands {
    static constexpr bool A_ALONG_K = true, B_ALONG_K = false;
    const Conv2dShape& s;
    const int channels;
    const T* weights[R];
    const T* images[R];
    int y[R], x[R];  // of the pixel that tap (0, 0) reads
    long long k = threadIdx.x;
    Position tap;
    const Position step;

    __device__ ForwardOperands(const T* input, const T* weight, const Conv2dShape& s, const Tile& tile)
        : s(s), channels(s.C / s.groups), tap(threadIdx.y, s.KH, s.KW), step(SIDE, s.KH, s.KW) {
        const long long rows = s.O / s.groups, columns = (long long)s.N * s.OH * s.OW;
        for (int r = 0; r < R; r++) {
            const long long row = min(tile.row + threadIdx.y + r * SIDE, rows - 1);
            weights[r] = weight + (tile.group * rows + row) * channels * s.KH * s.KW;
            const Position at(min(tile.column + threadIdx.x + r * SIDE, columns - 1), s.OH, s.OW);
            images[r] = input + (at.plane * s.C + (long long)tile.group * channels) * s.H * s.W;
            y[r] = at.y * s.stride_h - s.pad_h;
            x[r] = at.x * s.stride_w - s.pad_w;
        }
    }

    __device__ __forceinline__ void load(T (&a)[R], T (&b)[R]) {
        const bool in_a = k < (long long)channels * s.KH * s.KW, in_b = tap.plane < channels;
        const long long plane = tap.plane * s.H * s.W;
        const int down = tap.y * s.dilation_h, right = tap.x * s.dilation_w;
        for (int r = 0; r < R; r++) {
            a[r] = in_a ? weights[r][k] : T(0);
            b[r] = in_b ? element_or_zero(images[r] + plane, y[r] + down, x[r] + right, s.H, s.W) : T(0);
        }
        k += SIDE;
        tap.advance(step, s.KH, s.KW);
    }
};

// Grid: x = the tiles of all groups; blocks of SIDE x SIDE threads. bias may be null.
template <typename T, int SIDE, int R>
__global__ void __launch_bounds__(SIDE * SIDE)
conv2d_forward_gemm(T* out, const T* input, const T* weight, const T* bias, bool relu,
                    Conv2dShape s) {
    const int rows = s.O / s.groups;
    const long long outputs = (long long)s.OH * s.OW, columns = s.N * outputs;
    const long long K = (long long)s.C / s.groups * s.KH * s.KW;
    const Tile tile(SIDE * R, rows, columns, s.groups);
    ForwardOperands<T, SIDE, R> operands(input, weight, s, tile);
    T sums[R][R] = {};
    multiply<SIDE>(sums, operands, (K + SIDE - 1) / SIDE);

    for (int c = 0; c < R; c++) {
        const long long column = tile.column + threadIdx.x * R + c, n = column / outputs;
        T* image = out + (n * s.O + (long long)tile.group * rows) * outputs + column % outputs;
        for (int r = 0; r < R; r++) {
            const long long row = tile.row + threadIdx.y * R + r;
            if (row >= rows || column >= columns) continue;
            const T sum = bias ? sums[r][c] + bias[tile.group * rows + row] : sums[r][c];
            image[row * outputs] = relu_if(relu, sum);
        }
    }
}

// ---- gradient for the input ----

// Of the pixels of one phase (see Phase). a: the weight of each tap that reaches the phase, for the row's
// channel. b: the gradient of the output in which the tap reads the column's pixel.
template <typename T, int SIDE, int R>
struct InputGradOperands {
    static constexpr bool A_ALONG_K = false, B_ALONG_K = false;
    const Conv2dShape& s;
    const TapSteps& steps;
    const Phase vertical, horizontal;
    const int channels, out_channels;
    const T* weights[R];
    const T* grads[R];
    int y[R], x[R];  // of the output in which the first tap reads the pixel
    Position tap;    // (channel of out, tap among those of the phase)
    const Position step;

    __device__ InputGradOperands(const T* grad_output, const T* weight, const Conv2dShape& s,
                                 const TapSteps& steps, const Phase& vertical, const Phase& horizontal,
                                 const Tile& tile)
        : s(s), steps(steps), vertical(vertical), horizontal(horizontal), channels(s.C / s.groups),
          out_channels(s.O / s.groups), tap(threadIdx.y, max(vertical.taps, 1), max(horizontal.taps, 1)),
          step(SIDE, max(vertical.taps, 1), max(horizontal.taps, 1)) {
        const long long columns = (long long)s.N * vertical.pixels * horizontal.pixels;
        const long long first_channel = (long long)tile.group * out_channels;
        for (int r = 0; r < R; r++) {
            const long long row = min(tile.row + threadIdx.x + r * SIDE, (long long)channels - 1);
            weights[r] = weight + (first_channel * channels + row) * s.KH * s.KW +
                         (long long)vertical.first * s.KW + horizontal.first;
            const Position at(min(tile.column + threadIdx.x + r * SIDE, columns - 1), vertical.pixels,
                              horizontal.pixels);
            grads[r] = grad_output + (at.plane * s.O + first_channel) * s.OH * s.OW;
            y[r] = vertical.first_output + at.y;
            x[r] = horizontal.first_output + at.x;
        }
    }

    __device__ __forceinline__ void load(T (&a)[R], T (&b)[R]) {
        const bool inside = tap.plane < out_channels;
        const long long plane = tap.plane * s.OH * s.OW;
        const long long weight = tap.plane * channels * s.KH * s.KW +
                                 (long long)tap.y * steps.step_h * s.KW + tap.x * steps.step_w;
        const int up = tap.y * steps.output_step_h, left = tap.x * steps.output_step_w;
        for (int r = 0; r < R; r++) {
            a[r] = inside ? weights[r][weight] : T(0);
            b[r] = inside ? element_or_zero(grads[r] + plane, y[r] - up, x[r] - left, s.OH, s.OW) : T(0);
        }
        tap.advance(step, vertical.taps, horizontal.taps);
    }
};

// Grid: x = the tiles of all groups, for each phase as many as the largest one has; the number of phases is
// min(stride_h, H) * min(stride_w, W). Blocks of SIDE x SIDE threads.
template <typename T, int SIDE, int R>
__global__ void __launch_bounds__(SIDE * SIDE)
conv2d_input_grad_gemm(T* grad_input, const T* grad_output, const T* weight, Conv2dShape s, TapSteps steps) {
    const int rows = s.C / s.groups, phases_w = min(s.stride_w, s.W);
    const long long largest_phase =
        (long long)s.N * ((s.H - 1) / s.stride_h + 1) * ((s.W - 1) / s.stride_w + 1);
    const Tile tile(SIDE * R, rows, largest_phase, s.groups);
    const int phase_y = int(tile.slice / phases_w), phase_x = int(tile.slice % phases_w);
    const Phase vertical(phase_y, s.H, s.KH, s.stride_h, s.pad_h, s.dilation_h, steps.step_h);
    const Phase horizontal(phase_x, s.W, s.KW, s.stride_w, s.pad_w, s.dilation_w, steps.step_w);
    const long long columns = (long long)s.N * vertical.pixels * horizontal.pixels;
    if (tile.column >= columns) return;  // the whole block

    const long long K = (long long)s.O / s.groups * vertical.taps * horizontal.taps;
    InputGradOperands<T, SIDE, R> operands(grad_output, weight, s, steps, vertical, horizontal, tile);
    T sums[R][R] = {};
    multiply<SIDE>(sums, operands, (K + SIDE - 1) / SIDE);

    const long long image = (long long)s.H * s.W;
    for (int c = 0; c < R; c++) {
        const long long column = tile.column + threadIdx.x * R + c;
        const Position at(column, vertical.pixels, horizontal.pixels);
        const long long y = vertical.number + (long long)at.y * s.stride_h;
        const long long x = horizontal.number + (long long)at.x * s.stride_w;
        T* pixel = grad_input + (at.plane * s.C + (long long)tile.group * rows) * image + y * s.W + x;
        for (int r = 0; r < R; r++) {
            const long long row = tile.row + threadIdx.y * R + r;
            if (row < rows && column < columns) pixel[row * image] = sums[r][c];
        }
    }
}

// ---- gradient for the weight ----

// a: the gradient of the row's channel of out. b: the pixel that the column's tap reads for it. K runs over
// the pixels of out, and so do the lanes of a warp.
template <typename T, int SIDE, int R>
struct WeightGradOperands {
    static constexpr bool A_ALONG_K = true, B_ALONG_K = true;
    const Conv2dShape& s;
    const T* grads[R];
    const T* images[R];
    int y[R], x[R];  // of the pixel that the tap reads for output (0, 0)
    Position at;     // in out
    const Position step;

    __device__ WeightGradOperands(const T* grad_output, const T* input, const Conv2dShape& s,
                                  const Tile& tile, long long begin)
        : s(s), at(begin + threadIdx.x, s.OH, s.OW), step(SIDE, s.OH, s.OW) {
        const int rows = s.O / s.groups, channels = s.C / s.groups;
        const long long columns = (long long)channels * s.KH * s.KW;
        for (int r = 0; r < R; r++) {
            const long long row = min(tile.row + threadIdx.y + r * SIDE, (long long)rows - 1);
            grads[r] = grad_output + ((long long)tile.group * rows + row) * s.OH * s.OW;
            const Position tap(min(tile.column + threadIdx.y + r * SIDE, columns - 1), s.KH, s.KW);
            images[r] = input + ((long long)tile.group * channels + tap.plane) * s.H * s.W;
            y[r] = tap.y * s.dilation_h - s.pad_h;
            x[r] = tap.x * s.dilation_w - s.pad_w;
        }
    }

    __device__ __forceinline__ void load(T (&a)[R], T (&b)[R]) {
        const bool inside = at.plane < s.N;
        const long long image = at.plane * s.C * s.H * s.W;
        const long long output = (at.plane * s.O * s.OH + at.y) * s.OW + at.x;
        const int down = at.y * s.stride_h, right = at.x * s.stride_w;
        for (int r = 0; r < R; r++) {
            a[r] = inside ? grads[r][output] : T(0);
            b[r] = inside ? element_or_zero(images[r] + image, y[r] + down, x[r] + right, s.H, s.W) : T(0);
        }
        at.advance(step, s.OH, s.OW);
    }
};

// The results are few and the sums long: K is every pixel of the batch. So K is cut into parts of
// `part_length`, a multiple of SIDE, each for blocks of its own, which write their sums to `partial`, one
// array of the weight's size after the other. split_k.cu adds them: no atomics, always the same order.
//
// Grid: x = the tiles of all groups, for each part; blocks of SIDE x SIDE threads.
template <typename T, int SIDE, int R>
__global__ void __launch_bounds__(SIDE * SIDE)
conv2d_weight_grad_gemm(T* partial, const T* grad_output, const T* input, long long part_length,
                        Conv2dShape s) {
    const int rows = s.O / s.groups;
    const long long columns = (long long)s.C / s.groups * s.KH * s.KW, K = (long long)s.N * s.OH * s.OW;
    const Tile tile(SIDE * R, rows, columns, s.groups);
    const long long begin = tile.slice * part_length, end = min(begin + part_length, K);
    WeightGradOperands<T, SIDE, R> operands(grad_output, input, s, tile, begin);
    T sums[R][R] = {};
    multiply<SIDE>(sums, operands, (end - begin + SIDE - 1) / SIDE);

    partial += (tile.slice * s.O + (long long)tile.group * rows) * columns;
    for (int r = 0; r < R; r++) {
        for (int c = 0; c < R; c++) {
            const long long row = tile.row + threadIdx.y * R + r, column = tile.column + threadIdx.x * R + c;
            if (row < rows && column < columns) partial[row * columns + column] = sums[r][c];
        }
    }
}
