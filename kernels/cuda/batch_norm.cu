// Batch norm, forward and backward: normalisation of each channel over all samples.
//
//   y = (x - mean) rstd weight + bias      mean and variance of the channel, rstd = 1 / sqrt(variance + eps)
//   dx = (grad - dbias / count - normal dweight / count) rstd weight      normal = (x - mean) rstd
//
// Shapes: x, y, grad and dx are (samples, channels, area), all others (channels), C-contiguous; a channel has
// count = samples * area elements. Weight and bias may be null: 1 and 0. The gradients of weight and bias are
// sums over a channel, which channel_sums.cu finds first.
//
//   batch_norm_naive       the definition: one thread walks one channel
//   batch_norm_moments     + several blocks for each channel, each with a mean and a variance of its share
//   batch_norm_combine       and their combination
//   batch_norm_normalize   elementwise, with the statistics of the batch or (INFERENCE) with those given
//   batch_norm_grad_naive  one thread for each channel
//   batch_norm_grad        elementwise, with the sums of channel_sums.cu
//
// Arithmetic intensity: about 10 operations for the 12 bytes of reading an element twice and writing it once
// in float32, where an H200 can do 14 a byte (67 TFLOP/s over 4.8 TB/s): the kernels are bound by memory. A
// channel does not fit the caches, so its mean and variance are found in one walk, not two.

#include "rows.cuh"

constexpr int THREADS = 256;

// The number, the mean and the sum of the squared deviations from the mean, of the elements so far.
template <typename T>
struct Moments {
    T count = 0, mean = 0, squares = 0;

    // Welford's update (https://doi.org/10.1080/00401706.1962.10490022).
    __device__ __forceinline__ void add(T x) {
        count += 1;
        const T deviation = x - mean;
        mean += deviation / count;
        squares += deviation * (x - mean);
    }

    // Chan's formula for the union of two sets (https://doi.org/10.1080/00031305.1983.10483115).
    __device__ __forceinline__ void add(Moments other) {
        if (other.count == 0) return;
        const T total = count + other.count, distance = other.mean - mean;
        mean += distance * (other.count / total);
        squares += other.squares + distance * distance * (count * (other.count / total));
        count = total;
    }

    // Of all lanes of the warp, in lane 0: the upper half is added to the lower, five times.
    __device__ __forceinline__ void add_across_warp() {
        for (int distance = WARP / 2; distance > 0; distance /= 2) {
            Moments other;
            other.count = __shfl_down_sync(ALL_LANES, count, distance);
            other.mean = __shfl_down_sync(ALL_LANES, mean, distance);
            other.squares = __shfl_down_sync(ALL_LANES, squares, distance);
            add(other);
        }
    }
};

// Grid: x = a thread for each channel.
template <typename T>
__global__ void batch_norm_naive(
    T* y, T* mean, T* rstd, const T* x, const T* weight, const T* bias, long long samples,
    long long channels, long long area, T eps
) {
    const long long c = global_thread_index();
    if (c >= channels) return;
    T sum = 0, squares = 0;
    for (long long n = 0; n < samples; n++)
        for (long long i = 0; i < area; i++) sum += x[(n * channels + c) * area + i];
    const T count = T(samples * area), m = sum / count;
    for (long long n = 0; n < samples; n++)
        for (long long i = 0; i < area; i++) {
            const T deviation = x[(n * channels + c) * area + i] - m;
            squares += deviation * deviation;
        }
    const T r = 1 / sqrt(squares / count + eps);
    mean[c] = m;
    rstd[c] = r;
    const T scale = r * value_or(weight, c, T(1)), shift = value_or(bias, c, T(0));
    for (long long n = 0; n < samples; n++)
        for (long long i = 0; i < area; i++) {
            const long long element = (n * channels + c) * area + i;
            y[element] = (x[element] - m) * scale + shift;
        }
}

// The moments of one channel in one part of the samples, to partial[part, c]. `lanes` threads, a power of two,
// walk along the elements of a sample side by side, and 256 / lanes samples are walked at a time.
//
// Grid: x = channels * parts, the parts of a channel one after the other.
template <typename T>
__global__ void __launch_bounds__(THREADS) batch_norm_moments(
    T* partial_mean, T* partial_squares, const T* x, long long samples, long long channels, long long area,
    long long parts, int lanes
) {
    __shared__ T of_warp[3][THREADS / WARP];
    const long long c = blockIdx.x / parts, part = blockIdx.x % parts, end = samples * (part + 1) / parts;
    const int own = threadIdx.x % lanes, first = threadIdx.x / lanes, step = THREADS / lanes;
    Moments<T> moments;
    for (long long n = samples * part / parts + first; n < end; n += step)
        for (long long i = own; i < area; i += lanes) moments.add(x[(n * channels + c) * area + i]);
    moments.add_across_warp();

    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    if (lane == 0) {
        of_warp[0][warp] = moments.count;
        of_warp[1][warp] = moments.mean;
        of_warp[2][warp] = moments.squares;
    }
    __syncthreads();  // all warps have left theirs
    if (threadIdx.x > 0) return;
    for (int other = 1; other < THREADS / WARP; other++)
        moments.add({of_warp[0][other], of_warp[1][other], of_warp[2][other]});
    partial_mean[part * channels + c] = moments.mean;
    partial_squares[part * channels + c] = moments.squares;
}

// A warp for each channel combines its parts.
//
// Grid: x = the channels, blockDim.y of them in a block; blockDim.x = 32.
template <typename T>
__global__ void batch_norm_combine(
    T* mean, T* rstd, const T* partial_mean, const T* partial_squares, long long samples, long long channels,
    long long area, long long parts, T eps
) {
    const long long c = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels) return;  // the whole warp
    Moments<T> moments;
    for (long long part = threadIdx.x; part < parts; part += WARP) {
        const long long in_part = samples * (part + 1) / parts - samples * part / parts;
        const long long at = part * channels + c;
        moments.add({T(in_part * area), partial_mean[at], partial_squares[at]});
    }
    moments.add_across_warp();
    if (threadIdx.x == 0) {
        mean[c] = moments.mean;
        rstd[c] = 1 / sqrt(moments.squares / moments.count + eps);
    }
}

// y from known statistics: `spread` is the rstd of the batch or, INFERENCE, a variance. A row of threads takes
// one sample of one channel, so that there is one division for many elements.
//
// Grid: x = the samples' channels, blockDim.y of them in a block; blockDim.x threads walk along the area.
template <typename T, bool INFERENCE>
__global__ void batch_norm_normalize(
    T* y, const T* x, const T* mean, const T* spread, const T* weight, const T* bias, long long samples,
    long long channels, long long area, T eps
) {
    const long long plane = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (plane >= samples * channels) return;
    const long long c = plane % channels;
    const T m = mean[c], r = INFERENCE ? 1 / sqrt(spread[c] + eps) : spread[c];
    const T scale = r * value_or(weight, c, T(1)), shift = value_or(bias, c, T(0));
    for (long long i = threadIdx.x; i < area; i += blockDim.x)
        y[plane * area + i] = (x[plane * area + i] - m) * scale + shift;
}

// ---- the gradient ----

template <typename T>
__device__ __forceinline__ T gradient(T grad, T x, T m, T r, T mean_grad, T mean_product, T scale) {
    return (grad - mean_grad - (x - m) * r * mean_product) * scale;
}

// Grid: x = a thread for each channel.
template <typename T>
__global__ void batch_norm_grad_naive(
    T* dx, const T* grad, const T* x, const T* mean, const T* rstd, const T* weight, const T* dweight,
    const T* dbias, long long samples, long long channels, long long area
) {
    const long long c = global_thread_index();
    if (c >= channels) return;
    const T count = T(samples * area), m = mean[c], r = rstd[c];
    for (long long n = 0; n < samples; n++)
        for (long long i = 0; i < area; i++) {
            const long long element = (n * channels + c) * area + i;
            dx[element] = gradient(
                grad[element], x[element], m, r, dbias[c] / count, dweight[c] / count,
                r * value_or(weight, c, T(1))
            );
        }
}

// Grid: as batch_norm_normalize.
template <typename T>
__global__ void batch_norm_grad(
    T* dx, const T* grad, const T* x, const T* mean, const T* rstd, const T* weight, const T* dweight,
    const T* dbias, long long samples, long long channels, long long area
) {
    const long long plane = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (plane >= samples * channels) return;
    const long long c = plane % channels;
    const T count = T(samples * area), m = mean[c], r = rstd[c], scale = r * value_or(weight, c, T(1));
    const T mean_grad = dbias[c] / count, mean_product = dweight[c] / count;
    for (long long i = plane * area + threadIdx.x; i < (plane + 1) * area; i += blockDim.x)
        dx[i] = gradient(grad[i], x[i], m, r, mean_grad, mean_product, scale);
}
