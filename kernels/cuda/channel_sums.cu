// The gradients of a normalisation's weight and bias: for each channel, over all samples and all its elements,
//
//   dweight[c] = sum(grad (x - mean) rstd)        dbias[c] = sum(grad)
//
// Shapes: grad and x are (samples, channels, area), dweight and dbias (channels), C-contiguous. An element's
// mean and rstd stand at  sample * per_sample + c / per_channels:  for layer norm, whose columns are channels
// of area 1, per_sample = 1 and per_channels = channels; for group norm the number of groups, and the
// channels of one; for batch norm 0 and 1. A null mean or rstd is 0 or 1.
//
//   channel_sums_naive     the definition: one thread walks one channel
//   channel_sums_columns   + for area 1: lanes side by side take neighbouring channels, so loads are coalesced
//   channel_sums_planes    + for larger areas: a block for a channel, whose threads walk along its elements
//   channel_sums_combine   the second pass of both
//
// There are few channels and many samples. So that a card is filled, the samples are cut into `parts`, each
// with blocks of its own, which leave partial sums (parts, channels) in a workspace; the second pass adds them.
// No atomics: the order of the additions depends on the shape alone. Arithmetic intensity: 5 operations for
// the 8 bytes of an element in float32: the time is that of reading grad and x once.

#include "rows.cuh"

constexpr int THREADS = 256;
constexpr int ROWS = THREADS / WARP;  // of threads, in blocks of 32 x ROWS

struct Statistics {
    long long per_sample, per_channels;
};

template <typename T>
struct Sums {
    T dweight = 0, dbias = 0;

    __device__ __forceinline__ void add(T grad, T x, const T* mean, const T* rstd, long long s) {
        dweight += grad * ((x - (mean ? mean[s] : T(0))) * (rstd ? rstd[s] : T(1)));
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
    const long long group = c / at.per_channels;
    Sums<T> sums;
    for (long long n = 0; n < samples; n++)
        for (long long i = 0; i < area; i++) {
            const long long element = (n * channels + c) * area + i;
            sums.add(grad[element], x[element], mean, rstd, n * at.per_sample + group);
        }
    dweight[c] = sums.dweight;
    dbias[c] = sums.dbias;
}

// A block of 32 x 8 threads takes 32 neighbouring channels of one part of the samples, eight of these at a
// time. A load of a warp is one or two whole lines of memory. The eight rows of threads meet in shared memory.
//
// Grid: x = ceil(channels / 32) * parts, the parts of a strip one after the other.
template <typename T>
__global__ void __launch_bounds__(THREADS) channel_sums_columns(
    T* partial_dweight, T* partial_dbias, const T* grad, const T* x, const T* mean, const T* rstd,
    long long samples, long long channels, long long parts, Statistics at
) {
    __shared__ T dweight_of_row[ROWS][WARP];
    __shared__ T dbias_of_row[ROWS][WARP];
    const long long c = blockIdx.x / parts * WARP + threadIdx.x, part = blockIdx.x % parts;
    const long long end = samples * (part + 1) / parts, group = c / at.per_channels;
    Sums<T> sums;
    if (c < channels)
        for (long long n = samples * part / parts + threadIdx.y; n < end; n += ROWS)
            sums.add(grad[n * channels + c], x[n * channels + c], mean, rstd, n * at.per_sample + group);
    dweight_of_row[threadIdx.y][threadIdx.x] = sums.dweight;
    dbias_of_row[threadIdx.y][threadIdx.x] = sums.dbias;
    __syncthreads();  // all rows have left theirs
    if (threadIdx.y > 0 || c >= channels) return;
    for (int row = 1; row < ROWS; row++) {
        sums.dweight += dweight_of_row[row][threadIdx.x];
        sums.dbias += dbias_of_row[row][threadIdx.x];
    }
    partial_dweight[part * channels + c] = sums.dweight;
    partial_dbias[part * channels + c] = sums.dbias;
}

// A block takes one channel of one part of the samples. `lanes` threads, a power of two, walk along the
// elements of a sample side by side, and 256 / lanes samples are walked at a time.
//
// Grid: x = channels * parts, the parts of a channel one after the other.
template <typename T>
__global__ void __launch_bounds__(THREADS) channel_sums_planes(
    T* partial_dweight, T* partial_dbias, const T* grad, const T* x, const T* mean, const T* rstd,
    long long samples, long long channels, long long area, long long parts, int lanes, Statistics at
) {
    const long long c = blockIdx.x / parts, part = blockIdx.x % parts, group = c / at.per_channels;
    const long long end = samples * (part + 1) / parts;
    const int lane = threadIdx.x % lanes, first = threadIdx.x / lanes, step = THREADS / lanes;
    Sums<T> sums;
    for (long long n = samples * part / parts + first; n < end; n += step) {
        const long long plane = (n * channels + c) * area, s = n * at.per_sample + group;
        for (long long i = lane; i < area; i += lanes) sums.add(grad[plane + i], x[plane + i], mean, rstd, s);
    }
    const T dweight = across_block<SUM>(sums.dweight);
    __syncthreads();  // all have read it
    const T dbias = across_block<SUM>(sums.dbias);
    if (threadIdx.x == 0) {
        partial_dweight[part * channels + c] = dweight;
        partial_dbias[part * channels + c] = dbias;
    }
}

// A warp for each channel adds its parts.
//
// Grid: x = the channels, blockDim.y of them in a block; blockDim.x = 32.
template <typename T>
__global__ void channel_sums_combine(
    T* dweight, T* dbias, const T* partial_dweight, const T* partial_dbias, long long channels,
    long long parts
) {
    const long long c = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels) return;  // the whole warp
    Sums<T> sums;
    for (long long part = threadIdx.x; part < parts; part += WARP) {
        sums.dweight += partial_dweight[part * channels + c];
        sums.dbias += partial_dbias[part * channels + c];
    }
    sums.dweight = across_warp<SUM>(sums.dweight);
    sums.dbias = across_warp<SUM>(sums.dbias);
    if (threadIdx.x == 0) {
        dweight[c] = sums.dweight;
        dbias[c] = sums.dbias;
    }
}
