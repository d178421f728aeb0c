// Sums up to each element: out[o, i, c] = the sum over j <= i of x[o, j, c]; with `reverse` over j >= i.
//
// Shapes: x and out are (outer, length, inner), C-contiguous.
//
//   cumsum_rows      inner = 1: a warp, or for a longer row a block, walks along a row, a tile of neighbours at a time;
//                    within a warp sums travel from lane to lane in five shuffles, between warps by shared memory
//   cumsum_columns   a thread for each column, beside those of its neighbours
//
// Arithmetic intensity: one addition for 8 bytes in float32 (six, with those of the shuffles): bound by memory, where
// there are enough rows or columns to fill a card. The order of the additions depends on the shape alone. Arrays may
// be of 16 bits: the sums are formed in float32, and each is rounded once.

#include "rows.cuh"

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
// The sums of the warps are left in two places in turns, so that a tile takes a single barrier: when a warp comes
// to write where it wrote two tiles before, all have read what stood there.
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
cumsum_rows(T* out, const T* x, long long rows, long long length, int reverse) {
    using C = Computed<T>;
    __shared__ C of_warp[2][MAX_WARPS];
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    out += row * length;
    x += row * length;
    C carried = 0;  // from the tiles before
    for (long long begin = 0, turn = 0; begin < length; begin += blockDim.x, turn = 1 - turn) {
        const long long i = begin + threadIdx.x, at = reverse ? length - 1 - i : i;
        C sum = i < length ? C(x[at]) : C(0);
        for (int distance = 1; distance < WARP; distance *= 2) {
            const C before = __shfl_up_sync(ALL_LANES, sum, distance);
            if (lane >= distance) sum += before;
        }
        C before = carried;
        if (blockDim.x == WARP) {
            carried += __shfl_sync(ALL_LANES, sum, WARP - 1);
        } else {
            if (lane == WARP - 1) of_warp[turn][warp] = sum;
            __syncthreads();  // the sums of all warps are there
            for (int w = 0; w < blockDim.x / WARP; w++) {
                if (w == warp) before = carried;
                carried += of_warp[turn][w];
            }
        }
        if (i < length) out[at] = T(before + sum);
    }
}

// Grid: x = a thread for each of outer * inner columns.
template <typename T>
__global__ void cumsum_columns(T* out, const T* x, long long outer, long long length, long long inner, int reverse) {
    const long long column = global_thread_index();
    if (column >= outer * inner) return;
    const long long first = column / inner * length * inner + column % inner;
    Computed<T> sum = 0;
#pragma unroll 4
    for (long long i = 0; i < length; i++) {
        const long long at = first + (reverse ? length - 1 - i : i) * inner;
        sum += Computed<T>(x[at]);
        out[at] = T(sum);
    }
}
