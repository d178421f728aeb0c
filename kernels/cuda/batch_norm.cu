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
//   batch_norm_normalize     elementwise; each block combines the shares of its channel itself
//   batch_norm_grad_naive  one thread for each channel
//   batch_norm_grad        elementwise; each block adds up its channel's shares of channel_sums.cu's sums
//   batch_norm_inference   elementwise, with statistics that are given
//
// A block of these walks along the elements of a channel, 16 bytes at a time (planes.cuh). For areas of a few
// elements, where that would read lines of memory for little of them, and for images whose channels come last,
// which are (samples * pixels, channels, 1), blocks go across channels instead:
//
//   batch_norm_moments_columns, batch_norm_combine, batch_norm_normalize_columns, batch_norm_grad_columns
//
// Channels that a cluster of blocks can hold are left to batch_norm_cluster.cu, rows of features of so few samples
// that a block can to batch_norm_registers.cu.
//
// Arithmetic intensity: about 10 operations for the 12 bytes of reading an element twice and writing it once
// in float32, where an H200 can do 14 a byte (67 TFLOP/s over 4.8 TB/s): the kernels are bound by memory. A
// channel does not fit the caches, so its mean and variance are found in one walk, not two. The second launches walk
// backward, from what the first have read last and the L2 cache, 50 MB of an H200, still has.
//
// In all but the naive rungs x, y, grad and dx (T) may be of 16 bits; what stands for a channel (C) is then
// float32.

#include "batch_norm.cuh"
#include "columns.cuh"

// The moments of part `part` of a channel's samples, as a kernel before this one left them.
template <typename T>
struct Shares {
    const T* mean;
    const T* squares;
    long long samples, channels, area, parts;

    __device__ __forceinline__ Moments<T> at(long long part, long long c) const {
        const long long in_part = samples * (part + 1) / parts - samples * part / parts;
        return {T(in_part * area), mean[part * channels + c], squares[part * channels + c]};
    }
};

// Grid: x = a thread for each channel.
template <typename T>
__global__ void batch_norm_naive(
    T* y, T* mean, T* rstd, const T* x, const T* weight, const T* bias, long long samples,
    long long channels, long long area, T eps, T* running_mean, T* running_var, long long* batches,
    Following following
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
    Running<T>{running_mean, running_var, batches, following}.move(c, m, r, eps);
    const T scale = r * value_or(weight, c, T(1)), shift = value_or(bias, c, T(0));
    for (long long n = 0; n < samples; n++)
        for (long long i = 0; i < area; i++) {
            const long long element = (n * channels + c) * area + i;
            y[element] = (x[element] - m) * scale + shift;
        }
}

// The moments of one channel in one part of the samples, to partial[part, c].
//
// Grid: x = channels * parts, the parts of a channel one after the other.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) batch_norm_moments(
    C* partial_mean, C* partial_squares, const T* x, long long samples, long long channels, long long area,
    long long parts
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const long long c = blockIdx.x / parts, part = blockIdx.x % parts;
    const Planes<WIDTH> planes(samples, channels, area, c, part, parts);
    Moments<C> moments = {};
    planes.for_each([&](auto... vectors) {
        const Vector<T, WIDTH> loaded[] = {load_vector<WIDTH>(x + planes.at(vectors))...};
        C elements[sizeof...(vectors) * WIDTH];
#pragma unroll
        for (int i = 0; i < int(sizeof...(vectors)) * WIDTH; i++)
            elements[i] = C(loaded[i / WIDTH].lane[i % WIDTH]);
        moments.add_elements(elements);
    });
    moments.add_across_block();
    if (threadIdx.x == 0) {
        partial_mean[part * channels + c] = moments.mean;
        partial_squares[part * channels + c] = moments.squares;
    }
}

// (x - m) * scale + shift for the elements of a walk.
template <typename C, typename T, int WIDTH, bool BACKWARD>
__device__ __forceinline__ void normalize(
    const Planes<WIDTH, BACKWARD>& planes, T* y, const T* x, C m, C scale, C shift
) {
    planes.for_each([&](auto... vectors) {
        const long long at[] = {planes.at(vectors)...};
        Vector<C, WIDTH> elements[] = {converted<C>(load_vector<WIDTH>(x + planes.at(vectors)))...};
#pragma unroll
        for (int k = 0; k < int(sizeof...(vectors)); k++) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++) elements[k].lane[i] = (elements[k].lane[i] - m) * scale + shift;
            store_vector(y + at[k], converted<T>(elements[k]));
        }
    });
}

// y, with the statistics of its channel combined from `moment_parts` shares.
//
// Grid: x = channels * parts, the parts of a channel one after the other.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) batch_norm_normalize(
    T* y, C* mean, C* rstd, const T* x, const C* partial_mean, const C* partial_squares, const C* weight,
    const C* bias, long long samples, long long channels, long long area, long long moment_parts,
    long long parts, C eps, C* running_mean, C* running_var, long long* batches, Following following
) {
    __shared__ C of_channel[2];
    const long long c = blockIdx.x / parts, part = blockIdx.x % parts;
    if (threadIdx.x < WARP) {
        const Shares<C> shares{partial_mean, partial_squares, samples, channels, area, moment_parts};
        Moments<C> moments = {};
        for (long long p = threadIdx.x; p < moment_parts; p += WARP) moments.add(shares.at(p, c));
        moments.add_across_warp();
        if (threadIdx.x == 0) {
            of_channel[0] = moments.mean;
            of_channel[1] = moments.rstd(eps);
            if (part == 0) {
                mean[c] = of_channel[0];
                rstd[c] = of_channel[1];
            }
        }
    }
    __syncthreads();  // the statistics are there
    const C scale = of_channel[1] * value_or(weight, c, C(1)), shift = value_or(bias, c, C(0));
    const Planes<WIDTH_OF<T, WIDE>, true> planes(samples, channels, area, c, part, parts);
    normalize(planes, y, x, of_channel[0], scale, shift);
    if (part == 0 && threadIdx.x == 0)
        Running<C>{running_mean, running_var, batches, following}.move(c, of_channel[0], of_channel[1], eps);
}

// y from statistics that are given.
//
// Grid: x = channels * parts, the parts of a channel one after the other.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) batch_norm_inference(
    T* y, const T* x, const C* mean, const C* variance, const C* weight, const C* bias, long long samples,
    long long channels, long long area, long long parts, C eps
) {
    const long long c = blockIdx.x / parts, part = blockIdx.x % parts;
    const C scale = 1 / sqrt(variance[c] + eps) * value_or(weight, c, C(1)), shift = value_or(bias, c, C(0));
    const Planes<WIDTH_OF<T, WIDE>> planes(samples, channels, area, c, part, parts);
    normalize(planes, y, x, mean[c], scale, shift);
}

// ---- the gradient ----

// Grid: x = a thread for each channel.
template <typename T>
__global__ void batch_norm_grad_naive(
    T* dx, const T* grad, const T* x, const T* mean, const T* rstd, const T* weight, const T* dweight,
    const T* dbias, long long samples, long long channels, long long area
) {
    const long long c = global_thread_index();
    if (c >= channels) return;
    const T count = T(samples * area), m = mean[c], r = rstd[c], scale = r * value_or(weight, c, T(1));
    const T slope = r * (dweight[c] / count), mean_grad = dbias[c] / count;
    for (long long n = 0; n < samples; n++)
        for (long long i = 0; i < area; i++) {
            const long long element = (n * channels + c) * area + i;
            dx[element] = gradient(grad[element], x[element], m, slope, mean_grad, scale);
        }
}

// dx, with dweight and dbias of its channel added up from `sum_parts` shares, which channel_sums.cu left.
//
// Grid: as batch_norm_normalize.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) batch_norm_grad(
    T* dx, C* dweight, C* dbias, const T* grad, const T* x, const C* mean, const C* rstd, const C* weight,
    const C* partial_dweight, const C* partial_dbias, long long samples, long long channels, long long area,
    long long sum_parts, long long parts
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    __shared__ C of_channel[2];
    const long long c = blockIdx.x / parts, part = blockIdx.x % parts;
    if (threadIdx.x < WARP) {
        C product = 0, sum = 0;
        for (long long p = threadIdx.x; p < sum_parts; p += WARP) {
            product += partial_dweight[p * channels + c];
            sum += partial_dbias[p * channels + c];
        }
        product = across_warp<SUM>(product);
        sum = across_warp<SUM>(sum);
        if (threadIdx.x == 0) {
            of_channel[0] = product;
            of_channel[1] = sum;
            if (part == 0) {
                dweight[c] = product;
                dbias[c] = sum;
            }
        }
    }
    __syncthreads();  // the sums are there
    const C count = C(samples * area), m = mean[c], r = rstd[c], scale = r * value_or(weight, c, C(1));
    const C slope = r * (of_channel[0] / count), mean_grad = of_channel[1] / count;
    const Planes<WIDTH, true> planes(samples, channels, area, c, part, parts);
    planes.for_each([&](auto... vectors) {
        const long long at[] = {planes.at(vectors)...};
        const Vector<C, WIDTH> of_x[] = {converted<C>(load_vector<WIDTH>(x + planes.at(vectors)))...};
        Vector<C, WIDTH> g[] = {converted<C>(load_vector<WIDTH>(grad + planes.at(vectors)))...};
#pragma unroll
        for (int k = 0; k < int(sizeof...(vectors)); k++) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                g[k].lane[i] = gradient(g[k].lane[i], of_x[k].lane[i], m, slope, mean_grad, scale);
            store_vector(dx + at[k], converted<T>(g[k]));
        }
    });
}

// ---- areas of a few elements, and channels last ----
//
// A column is an element of a sample, in all samples: there are channels * area. A block takes neighbouring columns,
// each of its threads a vector of them (columns.cuh). Where channels come last, pixels are samples of area 1, and
// columns channels.

// The moments of each column in one part of the samples, to partial[part, column].
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) batch_norm_moments_columns(
    C* partial_mean, C* partial_squares, const T* x, long long samples, long long channels, long long area,
    long long parts
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>, AT_ONCE = 4;
    __shared__ Moments<C> of_thread[WIDTH][THREADS];
    const Columns<WIDTH> at(samples, channels * area, parts);
    Moments<C> moments[WIDTH] = {};
    if (at.column < at.columns) {
        long long n = at.first;
        for (; n + (AT_ONCE - 1) * at.step < at.end; n += AT_ONCE * at.step) {
            Vector<T, WIDTH> rows[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) rows[k] = load_vector<WIDTH>(x + at.begin(n + k * at.step));
            const C share = moments[0].share_of(AT_ONCE);  // as of all lanes
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                C elements[AT_ONCE];
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++) elements[k] = C(rows[k].lane[i]);
                moments[i].add_elements(elements, share);
            }
        }
        for (; n < at.end; n += at.step) {
            const Vector<T, WIDTH> row = load_vector<WIDTH>(x + at.begin(n));
            const C share = moments[0].share_of(1);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) moments[i].add(Moments<C>{C(1), C(row.lane[i]), C(0)}, share);
        }
    }
#pragma unroll
    for (int i = 0; i < WIDTH; i++) of_thread[i][at.thread] = moments[i];
    __syncthreads();  // all have left theirs
    at.for_own_column([&](long long to, int lane, int first) {
        Moments<C> total = of_thread[lane][first];
        for (int other = first + blockDim.x; other < THREADS; other += blockDim.x) total.add(of_thread[lane][other]);
        partial_mean[to] = total.mean;
        partial_squares[to] = total.squares;
    });
}

// A warp for each channel combines the parts of its columns.
//
// Grid: x = the channels, blockDim.y of them in a block; blockDim.x = 32.
template <typename T>
__global__ void batch_norm_combine(
    T* mean, T* rstd, const T* partial_mean, const T* partial_squares, long long samples, long long channels,
    long long area, long long parts, T eps, T* running_mean, T* running_var, long long* batches,
    Following following
) {
    const long long c = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (c >= channels) return;  // the whole warp
    const Shares<T> shares{partial_mean, partial_squares, samples, channels * area, 1, parts};
    Moments<T> moments = {};
    for (long long i = threadIdx.x; i < parts * area; i += WARP)
        moments.add(shares.at(i / area, c * area + i % area));
    moments.add_across_warp();
    if (threadIdx.x == 0) {
        const T r = moments.rstd(eps);
        mean[c] = moments.mean;
        rstd[c] = r;
        Running<T>{running_mean, running_var, batches, following}.move(c, moments.mean, r, eps);
    }
}

// `spread` is the rstd of the batch or, INFERENCE, a variance.
template <typename C, typename T, bool WIDE, bool INFERENCE>
__global__ void __launch_bounds__(THREADS) batch_norm_normalize_columns(
    T* y, const T* x, const C* mean, const C* spread, const C* weight, const C* bias, long long samples,
    long long channels, long long area, long long parts, C eps
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const Columns<WIDTH, true> at(samples, channels * area, parts);
    if (at.column >= at.columns) return;
    C m[WIDTH], scale[WIDTH], shift[WIDTH];
    at.for_each_lane(area, [&](int i, long long c) {
        m[i] = mean[c];
        scale[i] = (INFERENCE ? 1 / sqrt(spread[c] + eps) : spread[c]) * value_or(weight, c, C(1));
        shift[i] = value_or(bias, c, C(0));
    });
    at.template for_each<4>([&](const auto& samples) {
        constexpr int COUNT = sizeof(samples) / sizeof(samples[0]);
        Vector<T, WIDTH> rows[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; k++) rows[k] = load_vector<WIDTH>(x + at.begin(samples[k]));
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            Vector<C, WIDTH> row = converted<C>(rows[k]);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) row.lane[i] = (row.lane[i] - m[i]) * scale[i] + shift[i];
            store_vector(y + at.begin(samples[k]), converted<T>(row));
        }
    });
}

template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS, 3) batch_norm_grad_columns(
    T* dx, const T* grad, const T* x, const C* mean, const C* rstd, const C* weight, const C* dweight,
    const C* dbias, long long samples, long long channels, long long area, long long parts
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>;
    const Columns<WIDTH, true> at(samples, channels * area, parts);
    if (at.column >= at.columns) return;
    const C count = C(samples * area);
    C m[WIDTH], slope[WIDTH], scale[WIDTH], mean_grad[WIDTH];
    at.for_each_lane(area, [&](int i, long long c) {
        m[i] = mean[c];
        slope[i] = rstd[c] * (dweight[c] / count);
        scale[i] = rstd[c] * value_or(weight, c, C(1));
        mean_grad[i] = dbias[c] / count;
    });
    at.template for_each<2>([&](const auto& samples) {
        constexpr int COUNT = sizeof(samples) / sizeof(samples[0]);
        Vector<T, WIDTH> rows[COUNT], grads[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            rows[k] = load_vector<WIDTH>(x + at.begin(samples[k]));
            grads[k] = load_vector<WIDTH>(grad + at.begin(samples[k]));
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            const Vector<C, WIDTH> of_x = converted<C>(rows[k]);
            Vector<C, WIDTH> g = converted<C>(grads[k]);
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                g.lane[i] = gradient(g.lane[i], of_x.lane[i], m[i], slope[i], mean_grad[i], scale[i]);
            store_vector(dx + at.begin(samples[k]), converted<T>(g));
        }
    });
}
