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
//                            coalesced, of 16 bytes where these are whole; each element of the area has sums
//                            of its own
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

#include "columns.cuh"
#include "planes.cuh"
#include "rows.cuh"

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

// A block takes neighbouring columns, the elements of a sample, in one part of the samples, each of its threads a
// vector of them (columns.cuh). at.per_channels is in columns.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) channel_sums_columns(
    C* partial_dweight, C* partial_dbias, const T* grad, const T* x, const C* mean, const C* rstd,
    long long samples, long long columns, long long parts, Statistics at
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    __shared__ C dweight_of_thread[WIDTH][THREADS];
    __shared__ C dbias_of_thread[WIDTH][THREADS];
    const Columns<WIDTH> walk(samples, columns, parts);
    Sums<C> sums[WIDTH];
    C m[WIDTH], r[WIDTH];
    const auto look_up = [&](long long n) {
        walk.for_each_lane(at.per_channels, [&](int i, long long statistic) {
            m[i] = value_or(mean, n * at.per_sample + statistic, C(0));
            r[i] = value_or(rstd, n * at.per_sample + statistic, C(1));
        });
    };
    if (walk.column < columns && walk.first < walk.end) {
        look_up(walk.first);
        walk.template for_each<2>([&](const auto& samples) {
            constexpr int COUNT = sizeof(samples) / sizeof(samples[0]);
            Vector<T, WIDTH> g[COUNT], of_x[COUNT];
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                g[k] = load_vector<WIDTH>(grad + walk.begin(samples[k]));
                of_x[k] = load_vector<WIDTH>(x + walk.begin(samples[k]));
            }
#pragma unroll
            for (int k = 0; k < COUNT; k++) {
                if (at.per_sample) look_up(samples[k]);
#pragma unroll
                for (int i = 0; i < WIDTH; i++) sums[i].add(C(g[k].lane[i]), C(of_x[k].lane[i]), m[i], r[i]);
            }
        });
    }
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        dweight_of_thread[i][walk.thread] = sums[i].dweight;
        dbias_of_thread[i][walk.thread] = sums[i].dbias;
    }
    __syncthreads();  // all have left theirs
    walk.for_own_column([&](long long to, int lane, int first) {
        C dweight = 0, dbias = 0;
        for (int thread = first; thread < THREADS; thread += blockDim.x) {
            dweight += dweight_of_thread[lane][thread];
            dbias += dbias_of_thread[lane][thread];
        }
        partial_dweight[to] = dweight;
        partial_dbias[to] = dbias;
    });
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
// area). A lane has a channel, a row of threads every 32nd part, AT_ONCE of them on their way at a time: to have each
// wait for the one before would take as long as the sums themselves. Then the sums change places in shared memory, and
// a warp adds up what belongs to one channel.
//
// Grid: x = ceil(channels / 32); blockDim = (32, 32).
constexpr int AT_ONCE = 8;

template <typename T>
__global__ void __launch_bounds__(WARP * WARP, 1) channel_sums_combine(
    T* dweight, T* dbias, const T* partial_dweight, const T* partial_dbias, long long channels,
    long long area, long long parts
) {
    __shared__ T dweight_of_row[WARP][WARP + 1];  // the odd length keeps a column in banks of their own
    __shared__ T dbias_of_row[WARP][WARP + 1];
    const long long c = (long long)blockIdx.x * WARP + threadIdx.x;
    Sums<T> sums;
    for (long long i = c * area; c < channels && i < (c + 1) * area; i++)
        for (long long first = threadIdx.y; first < parts; first += AT_ONCE * WARP) {
            T weights[AT_ONCE], biases[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {  // past the last part that one again: no branch, which would wait
                const long long at = min(first + k * WARP, parts - 1) * channels * area + i;
                weights[k] = partial_dweight[at];
                biases[k] = partial_dbias[at];
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const bool there = first + k * WARP < parts;
                sums.dweight += there ? weights[k] : T(0);
                sums.dbias += there ? biases[k] : T(0);
            }
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
