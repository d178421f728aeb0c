// Max and average pooling of windows that overlap, in tiles.
//
// A block makes a tile of windows of one plane. First it stages the input that they cover, padding included,
// in shared memory; then every thread makes the windows of a column that are blockDim.y rows apart. So global
// memory is asked once for each element, and again only for what neighbouring tiles share.
//
// For a float32 output of 3x3 windows at stride 1 (planes of 56 x 56), the definition asks for 44.0 bytes of
// input, the tiles for 5.8 (counted on the simulator, in sectors of 32 bytes); with the output and its tap it
// is 49.0 and 11.6: 4.2 times fewer. The least is 4 and 9. At stride 2 it is 80.8 and 24.3 (least: 16 and 21).
//
// Window x of a tile has its tap j in column x stride_w + j dilation_w. If columns lay in their order, a stride
// of 2 would make the 32 threads of a warp wait for 16 of the 32 banks. So they are sorted by their remainder
// modulo stride_w: in each class, a phase, neighbouring windows find neighbouring elements. The host pads the
// phases and rows so that no bank is asked twice, neither by the loads nor by the stores (pool2d_tiled.py).
//
// Grid: x = the tiles, of a row first and of a plane next. Block: (columns, some of the rows).
// Shared memory: input_rows * pitch elements, at most 24 KB. A thread takes some 40 registers, so that the
// 65536 of a multiprocessor are enough for six blocks of 256 threads; its 228 KB are enough for nine.

#include "pool2d.cuh"

struct PoolTile {
    int rows, columns;              // windows
    int input_rows, input_columns;  // under them; columns for whole turns of a row of threads
    int phase, pitch;               // elements from a phase, or a row, to the next in shared memory
};

template <typename T>
struct StagedInput {
    const Pool2dShape& s;
    const PoolTile& tile;
    const T* elements;
    long long plane;
    int first_y, x;  // the first window's row, and the column of this thread's windows

    // Stages the input of this block's tile, with `padding` where there is none.
    __device__ __forceinline__ StagedInput(const T* input, T padding, const Pool2dShape& s,
                                           const PoolTile& tile)
        : s(s), tile(tile) {
        extern __shared__ __align__(16) unsigned char shared[];
        T* const staged = reinterpret_cast<T*>(shared);
        const Position at = position_of(blockIdx.x, ceil_div(s.OH, tile.rows), ceil_div(s.OW, tile.columns));
        plane = at.plane, first_y = at.y * tile.rows, x = at.x * tile.columns + threadIdx.x;
        const int top = first_y * s.stride_h - s.pad_h;
        const int left = at.x * tile.columns * s.stride_w - s.pad_w;
        const int needed = (tile.columns - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1;
        const Range columns = {-left, min(needed, s.W - left)};  // those that there are
        for (int row = threadIdx.y; row < tile.input_rows; row += blockDim.y) {
            const bool inside = top + row >= 0 && top + row < s.H;
            const T* from = input + (plane * s.H + top + row) * s.W + left;
            for (int column = threadIdx.x; column < tile.input_columns; column += blockDim.x) {
                const bool exists = inside && column >= columns.begin && column < columns.end;
                const int place = s.stride_w == 1
                                      ? column
                                      : column % s.stride_w * tile.phase + column / s.stride_w;
                staged[row * tile.pitch + place] = exists ? from[column] : padding;
            }
        }
        elements = staged;
        __syncthreads();
    }

    // Calls see(element, tap) for all taps of the window in row `row` of the tile, and in this thread's column.
    template <typename See>
    __device__ __forceinline__ void window(int row, See see) const {
        const int step = s.dilation_w / s.stride_w, phase_step = s.dilation_w % s.stride_w;
        int tap = 0;
        for (int i = 0; i < s.kernel_h; i++) {
            const T* at = elements + (row * s.stride_h + i * s.dilation_h) * tile.pitch + threadIdx.x;
            for (int j = 0, phase = 0; j < s.kernel_w; j++) {
                see(*at, tap++);
                at += step + phase_step * tile.phase, phase += phase_step;
                if (phase >= s.stride_w) at += 1 - s.stride_w * tile.phase, phase -= s.stride_w;
            }
        }
    }

    // How many of the tile's rows there are.
    __device__ __forceinline__ int rows() const { return min(tile.rows, s.OH - first_y); }

    // The number of the window in that row.
    __device__ __forceinline__ long long number(int row) const {
        return (plane * s.OH + first_y + row) * s.OW + x;
    }
};

template <typename T, typename Tap>
__global__ void max_pool2d_tiled(T* out, Tap* taps, const T* input, Pool2dShape s, PoolTile tile) {
    using C = Computed<T>;
    const StagedInput<T> staged(input, T(-C(INFINITY)), s, tile);
    const Range columns = taps_inside(staged.x * s.stride_w - s.pad_w, s.kernel_w, s.dilation_w, s.W);
    for (int row = threadIdx.y; row < staged.rows(); row += blockDim.y) {
        const int y0 = (staged.first_y + row) * s.stride_h - s.pad_h;
        const Range rows = taps_inside(y0, s.kernel_h, s.dilation_h, s.H);
        Largest<C> largest(first_tap(rows, columns, s.kernel_w));  // padding is never larger
        staged.window(row, [&](T element, int tap) { largest.see(C(element), tap); });
        if (staged.x >= s.OW) continue;
        out[staged.number(row)] = T(largest.value);
        taps[staged.number(row)] = Tap(largest.tap);
    }
}

template <typename T>
__global__ void avg_pool2d_tiled(T* out, const T* input, Pool2dShape s, AvgDivisor how, PoolTile tile) {
    using C = Computed<T>;
    const StagedInput<T> staged(input, T(0), s, tile);
    const AvgWindow columns(staged.x, s.kernel_w, s.stride_w, s.pad_w, s.W);
    for (int row = threadIdx.y; row < staged.rows(); row += blockDim.y) {
        const AvgWindow rows(staged.first_y + row, s.kernel_h, s.stride_h, s.pad_h, s.H);
        const bool empty = !rows.inside.length() || !columns.inside.length();
        C sum = 0;
        staged.window(row, [&](T element, int) { sum += C(element); });
        if (staged.x >= s.OW) continue;
        out[staged.number(row)] = T(empty ? C(0) : sum / avg_divisor<C>(rows, columns, how));
    }
}
