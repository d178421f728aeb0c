// Sums up to each element: out[o, i, c] = the sum over j <= i of x[o, j, c]; REVERSE, over j >= i.
//
// Shapes: x and out are (outer, length, inner), C-contiguous.
//
//   cumsum_rows      inner = 1: a few lanes, a warp or, for a longer row, a block walk along it, UNROLL vectors of each
//                    thread at a time; a thread sums up its vectors, then within a warp sums travel from lane to lane
//                    in shuffles, between warps by shared memory
//   cumsum_columns   a thread for each column, beside those of its neighbours
//
// Arithmetic intensity: one addition for 8 bytes in float32 (three, with those of the shuffles): bound by memory, where
// there are enough rows or columns to fill a card. The order of the additions depends on the shape alone. Arrays may
// be of 16 bits: the sums are formed in float32, and each is rounded once.

#include "row_vectors.cuh"

// The value of the lane that stands `distance` before this one, or if REVERSE behind it.
template <bool REVERSE, typename C>
__device__ __forceinline__ C from_before(C value, int distance) {
    return REVERSE ? __shfl_down_sync(ALL_LANES, value, distance) : __shfl_up_sync(ALL_LANES, value, distance);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a power of two up to 32, or a multiple of 32 and then
// one row for a block. Past the last row it is summed up again. The sums of the warps are left in two places in turns,
// so that a tile takes a single barrier: when a warp comes to write where it wrote two tiles before, all have read what
// stood there.
template <typename T, bool REVERSE>
__global__ void __launch_bounds__(MAX_THREADS)
cumsum_rows(T* out, const T* x, long long rows, long long length) {
    using C = Computed<T>;
    constexpr int N = Vector<T>::LENGTH;
    __shared__ C of_warp[2][UNROLL][MAX_WARPS];
    const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y, row = min(place, rows - 1);
    const int lanes = min(int(blockDim.x), WARP), warps = blockDim.x / WARP;  // of a row
    const int lane = threadIdx.x % lanes, warp = threadIdx.x / WARP;
    const int last = ((threadIdx.y * blockDim.x + threadIdx.x) % WARP - lane) + (REVERSE ? 0 : lanes - 1);
    out += row * length;
    x += row * length;
    const long long step = (long long)blockDim.x * N * UNROLL;  // a tile
    C carried = 0;                                              // from the tiles before
    long long begin = REVERSE ? (length - 1) / step * step : 0;
    for (int turn = 0; begin >= 0 && begin < length; begin += REVERSE ? -step : step, turn ^= 1) {
        const int here = int(min(length - begin, step));
        RowPart<T, UNROLL> part;
        part.load(x + begin, here, C(0));
        C up_to[UNROLL], before[UNROLL], all[UNROLL];  // of a vector, with those of other lanes
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            up_to[k] = 0;
#pragma unroll
            for (int n = 0; n < N; n++) {
                C& element = part.vector[k].lane[REVERSE ? N - 1 - n : n];
                element = up_to[k] += element;
            }
        }
        for (int distance = 1; distance < lanes; distance *= 2)
#pragma unroll
            for (int k = 0; k < UNROLL; k++) {
                const C other = from_before<REVERSE>(up_to[k], distance);
                if (REVERSE ? lane + distance < lanes : lane >= distance) up_to[k] += other;
            }
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            before[k] = from_before<REVERSE>(up_to[k], 1);
            if (lane == (REVERSE ? lanes - 1 : 0)) before[k] = 0;
            all[k] = __shfl_sync(ALL_LANES, up_to[k], last);
            if (warps > 1 && lane == 0) of_warp[turn][k][warp] = all[k];
        }
        if (warps > 1) __syncthreads();  // the sums of all warps are there
#pragma unroll
        for (int i = 0; i < UNROLL; i++) {
            const int k = REVERSE ? UNROLL - 1 - i : i;
            C first = carried;
            if (warps > 1) {
                for (int j = 0; j < warps; j++) {
                    const int w = REVERSE ? warps - 1 - j : j;
                    if (w == warp) first = carried;
                    carried += of_warp[turn][k][w];
                }
            } else {
                carried += all[k];
            }
#pragma unroll
            for (int n = 0; n < N; n++) part.vector[k].lane[n] += first + before[k];
        }
        if (place < rows) part.store(out + begin, here);
    }
}

// Grid: x = a thread for each of outer * inner columns.
template <typename T>
__global__ void cumsum_columns(T* out, const T* x, long long outer, long long length, long long inner, int reverse) {
    const long long column = global_thread_index();
    if (column >= outer * inner) return;
    const long long first = column / inner * length * inner + column % inner;
    Computed<T> sum = 0;
    in_batches<8>(0, length, 1, [&](const auto& places) {
        constexpr int COUNT = sizeof(places) / sizeof(places[0]);
        T elements[COUNT];
        const auto at = [&](int k) { return first + (reverse ? length - 1 - places[k] : places[k]) * inner; };
#pragma unroll
        for (int k = 0; k < COUNT; k++) elements[k] = x[at(k)];
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            sum += Computed<T>(elements[k]);
            out[at(k)] = T(sum);
        }
    });
}
