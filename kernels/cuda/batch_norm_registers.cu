// Batch norm of rows of features, forward and backward: batch_norm.cu's for an area of 1, in one launch.
//
// Shapes: x, y, grad and dx are (samples, columns), all others (columns), C-contiguous; weight and bias may be null.
//
// A block keeps neighbouring columns in its registers, of all samples, and finds their means, then the squares of the
// deviations, by shuffles and one barrier each. A batch of a small network, 128 x 512, is 256 KB: the card moves it in
// 0.1 us, and what takes time is to wait for memory, once for each launch. The kernels of batch_norm.cu for columns
// are three launches, forward as backward, which read x twice.
//
// Arithmetic intensity: about 10 operations for the 8 bytes of reading an element and writing it, in float32.

#include "batch_norm.cuh"
#include "columns.cuh"

constexpr int HELD_SAMPLES = 8;  // vectors that a thread holds: of x, or half of them of x and half of grad
constexpr int WARPS = THREADS / WARP;

// A thread's vectors of its columns, of samples blockDim.y apart, as they are stored. What is past the last sample or
// column is the last one again: around a load that may be left out nvcc puts a branch, behind the loads before it.
template <typename T, int WIDTH, int COUNT>
struct Samples {
    const Columns<WIDTH> at;
    const long long samples;
    Vector<T, WIDTH> rows[COUNT];

    __device__ __forceinline__ Samples(const T* x, long long samples, long long columns)
        : at(samples, columns, 1), samples(samples) {
        const long long column = min(at.column, columns - WIDTH);
#pragma unroll
        for (int k = 0; k < COUNT; k++) rows[k] = load_vector<WIDTH>(x + min(sample(k), samples - 1) * columns + column);
    }

    __device__ __forceinline__ long long sample(int k) const { return threadIdx.y + k * blockDim.y; }
    __device__ __forceinline__ bool has(int k) const { return sample(k) < samples; }
    __device__ __forceinline__ bool exists() const { return at.column < at.columns; }

    // Calls function(lane, column) for the columns of the block's first row of threads.
    template <typename Function>
    __device__ __forceinline__ void of_columns(Function function) const {
        if (threadIdx.y > 0 || !exists()) return;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) function(i, at.column + i);
    }

    __device__ __forceinline__ void store(T* to, int k, const Vector<T, WIDTH>& row) const {
        if (has(k) && exists()) store_vector(to + sample(k) * at.columns + at.column, row);
    }
};

// The sums of a column's values over the block, in all of its threads; TURN tells one call of a kernel from another.
template <int TURN, int COUNT, typename C>
__device__ __forceinline__ void add_down(C (&sums)[COUNT]) {
    __shared__ C of_warp[COUNT][WARPS][WARP];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, lane = thread % WARP;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        for (int distance = blockDim.x; distance < WARP; distance *= 2)
            sums[i] += __shfl_xor_sync(ALL_LANES, sums[i], distance);
        of_warp[i][thread / WARP][lane] = sums[i];
    }
    __syncthreads();  // the sums of all warps are there
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        sums[i] = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sums[i] += of_warp[i][warp][lane];
    }
}

// Grid: x = ceil(columns / (blockDim.x * WIDTH)); blockDim.x * blockDim.y = THREADS, blockDim.x is a power of two up to
// 32, and blockDim.y * HELD_SAMPLES >= samples.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) batch_norm_registers(
    T* y, C* mean, C* rstd, const T* x, const C* weight, const C* bias, long long samples, long long columns, C eps,
    C* running_mean, C* running_var, long long* batches, Following following
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>, COUNT = HELD_SAMPLES;
    const Samples<T, WIDTH, COUNT> of(x, samples, columns);
    C m[WIDTH] = {}, off[2 * WIDTH] = {}, r[WIDTH];
#pragma unroll
    for (int k = 0; k < COUNT; k++)
#pragma unroll
        for (int i = 0; i < WIDTH; i++) m[i] += of.has(k) ? C(of.rows[k].lane[i]) : C(0);
    add_down<0>(m);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) m[i] /= C(samples);
    // The deviations and their squares: the former add up to what rounding has left.
#pragma unroll
    for (int k = 0; k < COUNT; k++)
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            const C deviation = of.has(k) ? C(of.rows[k].lane[i]) - m[i] : C(0);
            off[i] += deviation;
            off[WIDTH + i] += deviation * deviation;
        }
    add_down<1>(off);
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        const C by = off[i] / C(samples);
        m[i] += by;
        r[i] = 1 / sqrt(off[WIDTH + i] / C(samples) - by * by + eps);
    }
    of.of_columns([&](int i, long long c) {
        mean[c] = m[i];
        rstd[c] = r[i];
        Running<C>{running_mean, running_var, batches, following}.move(c, m[i], r[i], eps);
    });
    if (!of.exists()) return;
    C scale[WIDTH], shift[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        scale[i] = r[i] * value_or(weight, of.at.column + i, C(1));
        shift[i] = value_or(bias, of.at.column + i, C(0));
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        Vector<T, WIDTH> row;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) row.lane[i] = T((C(of.rows[k].lane[i]) - m[i]) * scale[i] + shift[i]);
        of.store(y, k, row);
    }
}

// Grid: as above, with half as many samples.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(THREADS) batch_norm_grad_registers(
    T* dx, C* dweight, C* dbias, const T* grad, const T* x, const C* mean, const C* rstd, const C* weight,
    long long samples, long long columns
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>, COUNT = HELD_SAMPLES / 2;
    const Samples<T, WIDTH, COUNT> of(x, samples, columns), of_grad(grad, samples, columns);
    const long long first = min(of.at.column, columns - WIDTH);
    C m[WIDTH], r[WIDTH], scale[WIDTH], sums[2 * WIDTH] = {};
#pragma unroll
    for (int i = 0; i < WIDTH; i++) {
        m[i] = mean[first + i];
        r[i] = rstd[first + i];
        scale[i] = r[i] * value_or(weight, first + i, C(1));
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++)
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            const C g = of.has(k) ? C(of_grad.rows[k].lane[i]) : C(0);
            const C normal = of.has(k) ? (C(of.rows[k].lane[i]) - m[i]) * r[i] : C(0);
            sums[i] += g * normal;
            sums[WIDTH + i] += g;
        }
    add_down<0>(sums);
    of.of_columns([&](int i, long long c) {
        dweight[c] = sums[i];
        dbias[c] = sums[WIDTH + i];
    });
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        Vector<T, WIDTH> row;
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            const C slope = r[i] * (sums[i] / C(samples)), mean_grad = sums[WIDTH + i] / C(samples);
            row.lane[i] = T(gradient(C(of_grad.rows[k].lane[i]), C(of.rows[k].lane[i]), m[i], slope, mean_grad, scale[i]));
        }
        of.store(dx, k, row);
    }
}
