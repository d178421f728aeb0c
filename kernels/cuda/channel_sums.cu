// The gradients of a normalisation's weight and bias: for each channel, over all samples and elements,
//
//   dweight[c] = sum(grad (x - mean) rstd)        dbias[c] = sum(grad)
//
// Shapes: grad and x are (samples, channels, area), dweight and dbias (channels), C-contiguous. An element's
// mean and rstd stand at  sample * per_sample + c / per_channels:  for layer norm, whose columns are channels
// of area 1, per_sample = 1 and per_channels = channels; for group norm the number of groups, and the
// channels of one; for batch norm 0 and 1. A null mean or rstd is 0 or 1.
//
//   channel_sums_naive     the definition: one thread walks one channel
//   channel_sums_columns   + for small areas: lanes side by side take neighbours in a sample, so loads are
//                            coalesced; each element of the area has sums of its own
//   channel_sums_planes    + for others: a block for a channel, whose threads walk along its elements, 16
//                            bytes at a time, and two of these in flight
//   channel_sums_combine   the second pass of both
//
// There are few channels and many samples. So that a card is filled, the samples are cut into `parts`, each
// with blocks of its own, which leave partial sums (parts, channels) in a workspace; the second pass adds
// them. No atomics: the order of the additions depends on the shape alone. Arithmetic intensity: 5 operations
// for the 8 bytes of an element in float32: the time is that of reading grad and x once.
//
// In all but the naive rung grad and x (T) may be of 16 bits; what stands for a channel (C) is then float32.

#include "planes.cuh"
#include "rows.cuh"

constexpr int ROWS = THREADS / WARP;  // of threads, in blocks of 32 x ROWS

struct Statistics {
    long long per_sample, per_channels;
};

template <typename T>
struct Sums {
    T dweight = 0, dbias = 0;

    __device__ __forceinline__ void add(T grad, T x, T mean, T rstd) {
        dweight += grad * ((x - mean) * rstd);
        dbias += grad;
    }
};

// Grid: x = a thread for each channel.
template <typename T>
__global__ void channel_sums_naive(
    T* dweight, T* dbias, const T* grad, const T* x, const T* mean, const T* rstd, long long samples,
    long long channels, long long area, Statistics at
) {
    const long long c = global_thread_index();
    if (c >= channels) return;
    Sums<T> sums;
    for (long long n = 0; n < samples; n++) {
        const long long s = n * at.per_sample + c / at.per_channels, plane = (n * channels + c) * area;
        for (long long i = plane; i < plane + area; i++)
            sums.add(grad[i], x[i], value_or(mean, s, T(0)), value_or(rstd, s, T(1)));
    }
    dweight[c] = sums.dweight;
    dbias[c] = sums.dbias;
}

// A block of 32 x 8 threads takes 32 neighbouring columns, the elements of a sample, in one part of the
// samples, eight of these at a time. A load of a warp is one or two whole lines of memory. The eight rows of
// threads meet in shared memory.
//
// Grid: x = ceil(columns / 32) * parts, the parts of a strip one after the other. at.per_channels is in
// columns.
template <typename C, typename T>
__global__ void __launch_bounds__(THREADS) channel_sums_columns(
    C* partial_dweight, C* partial_dbias, const T* grad, const T* x, const C* mean, const C* rstd,
    long long samples, long long columns, long long parts, Statistics at
) {
    __shared__ C dweight_of_row[ROWS][WARP];
    __shared__ C dbias_of_row[ROWS][WARP];
    const long long column = blockIdx.x / parts * WARP + threadIdx.x, part = blockIdx.x % parts;
    const long long end = samples * (part + 1) / parts, group = column / at.per_channels;
    Sums<C> sums;
    if (column < columns)
#pragma unroll 4
        for (long long n = samples * part / parts + threadIdx.y; n < end; n += ROWS) {
            const long long i = n * columns + column, s = n * at.per_sample + group;
            sums.add(C(grad[i]), C(x[i]), value_or(mean, s, C(0)), value_or(rstd, s, C(1)));
        }
    dweight_of_row[threadIdx.y][threadIdx.x] = sums.dweight;
    dbias_of_row[threadIdx.y][threadIdx.x] = sums.dbias;
    __syncthreads();  // all rows have left theirs
    if (threadIdx.y > 0 || column >= columns) return;
    for (int row = 1; row < ROWS; row++) {
        sums.dweight += dweight_of_row[row][threadIdx.x];
        sums.dbias += dbias_of_row[row][threadIdx.x];
    }
    partial_dweight[part * columns + column] = sums.dweight;
    partial_dbias[part * columns + column] = sums.dbias;
}

// A block takes one channel of one part of the samples.
//
// Grid: x = channels * parts, the parts of a channel one after the other.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) channel_sums_planes(
    C* partial_dweight, C* partial_dbias, const T* grad, const T* x, const C* mean, const C* rstd,
    long long samples, long long channels, long long area, long long parts, Statistics at
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const long long c = blockIdx.x / parts, part = blockIdx.x % parts, group = c / at.per_channels;
    const Planes<WIDTH> planes(samples, channels, area, c, part, parts);
    Sums<C> sums;
    planes.for_each([&](auto... vectors) {
        const Vector<T, WIDTH> g[] = {load_vector<WIDTH>(grad + planes.at(vectors))...};
        const Vector<T, WIDTH> of_x[] = {load_vector<WIDTH>(x + planes.at(vectors))...};
        const long long s[] = {planes.sample(vectors) * at.per_sample + group...};
#pragma unroll
        for (int k = 0; k < int(sizeof...(vectors)); k++) {
            const C m = value_or(mean, s[k], C(0)), r = value_or(rstd, s[k], C(1));
#pragma unroll
            for (int i = 0; i < WIDTH; i++) sums.add(C(g[k].lane[i]), C(of_x[k].lane[i]), m, r);
        }
    });
    const C dweight = across_block<SUM>(sums.dweight);
    __syncthreads();  // all have read it
    const C dbias = across_block<SUM>(sums.dbias);
    if (threadIdx.x == 0) {
        partial_dweight[part * channels + c] = dweight;
        partial_dbias[part * channels + c] = dbias;
    }
}

// The parts of each channel, and the elements of its area, added up. The partial sums are (parts, channels,
// area). A lane has a channel, a row of threads every 32nd part; then the sums change places in shared
// memory, and a warp adds up what belongs to one channel.
//
// Grid: x = ceil(channels / 32); blockDim = (32, 32).
template <typename T>
__global__ void __launch_bounds__(WARP* WARP) channel_sums_combine(
    T* dweight, T* dbias, const T* partial_dweight, const T* partial_dbias, long long channels,
    long long area, long long parts
) {
    __shared__ T dweight_of_row[WARP][WARP + 1];  // the odd length keeps a column in banks of their own
    __shared__ T dbias_of_row[WARP][WARP + 1];
    const long long c = (long long)blockIdx.x * WARP + threadIdx.x;
    Sums<T> sums;
    if (c < channels)
#pragma unroll 4
        for (long long part = threadIdx.y; part < parts; part += WARP)
            for (long long i = (part * channels + c) * area; i < (part * channels + c + 1) * area; i++) {
                sums.dweight += partial_dweight[i];
                sums.dbias += partial_dbias[i];
            }
    dweight_of_row[threadIdx.y][threadIdx.x] = sums.dweight;
    dbias_of_row[threadIdx.y][threadIdx.x] = sums.dbias;
    __syncthreads();  // all rows have left theirs
    sums.dweight = across_warp<SUM>(dweight_of_row[threadIdx.x][threadIdx.y]);
    sums.dbias = across_warp<SUM>(dbias_of_row[threadIdx.x][threadIdx.y]);
    const long long summed = (long long)blockIdx.x * WARP + threadIdx.y;
    if (threadIdx.x == 0 && summed < channels) {
        dweight[summed] = sums.dweight;
        dbias[summed] = sums.dbias;
    }
}
