// Losses of elements, whose sums and means are found where the losses themselves are not written; their gradients.
//
//   loss_sum     the sum of loss(x[i], target[i]), divided by `divisor`, times `scale`
//   loss_each    out[i] = loss(x[i], target[i]) scale
//   loss_grad    out[i] = slope(x[i], target[i]) scale g, g being grad[0] or grad[i]
//   class_mean   the sum of the losses of rows, divided by how many of the rows have a target that counts, or by the
//                weights of these
//
// Shapes: x and target are (n,), contiguous; target of a sum may be null, for zeros. The weights that a loss may have
// are (period,), and repeat along x. As in reduce.cu: vectors of 16 bytes, several on their way at a time, and a block
// for each part of `length` elements, whose results another launch adds up. The order of the additions depends on n
// alone.
//
// Arithmetic intensity: 3 operations (absolute, squared) to some 60 (two logarithms) for the 8 bytes of an element
// in float32, where an H200 can do 14 a byte (67 TFLOP/s, 4.8 TB/s): bound by memory.

#include "elementwise.cuh"
#include "row_vectors.cuh"

// The loss of x with the target t is
//
//   ABSOLUTE        |x - t|
//   SQUARED         (x - t)^2
//   HUBER           q (d - q / 2), where q is d = |x - t| limited to delta: a square below it, a line above
//   PROBABILITY     -(t log(x) + (1 - t) log(1 - x)), the logarithms being limited to -100 as in PyTorch
//   LOGISTIC        log(1 + exp(x)) - x t: the same of the probability whose logit is x
//   DIVERGENCE      t (log(t) - x), and -t x where t is 0; x is the logarithm of a probability
//   LOG_DIVERGENCE  exp(t) (t - x): the same of the probability whose logarithm is t
//   WEIGHTED        (1 - t) x + (1 + (w - 1) t) log(1 + exp(-x)): as LOGISTIC, with the weight w for what is positive
//
// delta being the limit, or the weight w.
enum Loss { ABSOLUTE, SQUARED, HUBER, PROBABILITY, LOGISTIC, DIVERGENCE, LOG_DIVERGENCE, WEIGHTED };

template <Loss LOSS, typename T>
__device__ __forceinline__ T loss_of(T x, T t, T delta) {
    if constexpr (LOSS == ABSOLUTE) return fabs(x - t);
    if constexpr (LOSS == SQUARED) return (x - t) * (x - t);
    if constexpr (LOSS == HUBER) {
        const T distance = fabs(x - t), limited = fmin(distance, delta);
        return limited * (distance - limited / 2);
    }
    if constexpr (LOSS == PROBABILITY)
        return -(t * larger(log(x), T(-100)) + (1 - t) * larger(log1p(-x), T(-100)));
    if constexpr (LOSS == LOGISTIC)
        return fmax(x, T(0)) + log1p(exp(-fabs(x))) - x * t;  // exp of what is not positive cannot overflow
    if constexpr (LOSS == DIVERGENCE) return (t == 0 ? T(0) : t * log(t)) - t * x;
    if constexpr (LOSS == WEIGHTED)
        return (1 - t) * x + (1 + (delta - 1) * t) * (fmax(-x, T(0)) + log1p(exp(-fabs(x))));
    return exp(t) * (t - x);
}

// The derivative for x.
template <Loss LOSS, typename T>
__device__ __forceinline__ T slope_of(T x, T t, T delta) {
    if constexpr (LOSS == ABSOLUTE) return sign_of(x - t);
    if constexpr (LOSS == SQUARED) return 2 * (x - t);
    if constexpr (LOSS == HUBER) return smaller(larger(x - t, -delta), delta);
    if constexpr (LOSS == PROBABILITY) return (x - t) / larger(x * (1 - x), T(1e-12));
    if constexpr (LOSS == LOGISTIC) return logistic(x) - t;
    if constexpr (LOSS == DIVERGENCE) return -t;
    if constexpr (LOSS == WEIGHTED) return (1 - t) - (1 + (delta - 1) * t) * logistic(-x);
    return -exp(t);
}

// As Input of elementwise.cuh: what repeats along the other inputs.
template <typename T>
struct Repeated {
    const T* data;
    long long period;

    __device__ __forceinline__ T at(long long i) const { return data[i % period]; }

    template <int N>
    __device__ __forceinline__ Vector<T, N> vector(long long i) const {
        Vector<T, N> values;
        long long at = i % period;
#pragma unroll
        for (int k = 0; k < N; k++) {
            values.lane[k] = data[at];
            at = at + 1 < period ? at + 1 : 0;
        }
        return values;
    }
};

// For each element its `delta`.
template <Loss LOSS, typename T>
__device__ __forceinline__ auto deltas_of(const T* weight, long long period, T delta) {
    if constexpr (LOSS == WEIGHTED)
        return Repeated<T>{weight, period};
    else
        return Input<T, T, 2>{nullptr, delta};
}

// Grid: x = the parts of n. out (parts,).
template <typename T, Loss LOSS>
__global__ void __launch_bounds__(THREADS) loss_sum(
    T* out, const T* x, const T* target, const T* weight, long long n, long long period, long long length, T divisor,
    T scale, T delta
) {
    constexpr int N = Vector<T>::LENGTH;
    const auto deltas = deltas_of<LOSS>(weight, period, delta);
    const long long begin = blockIdx.x * length, rest = n - begin;
    T sum[N] = {};  // one for each lane of the vectors: additions do not wait for one another
    walk(x + begin, rest < length ? rest : length, T(0), [&](auto& part, long long first, int here) {
        RowPart<T, UNROLL> targets{};
        if (target) targets.load(target + begin + first, here, T(0));
#pragma unroll
        for (int k = 0; k < UNROLL; k++) {
            const Vector<T> own = deltas.template vector<N>(begin + first + part.start(k));
#pragma unroll
            for (int i = 0; i < N; i++)
                if (part.start(k) + i < here)
                    sum[i] += loss_of<LOSS>(part.vector[k].lane[i], targets.vector[k].lane[i], own.lane[i]);
        }
    });
#pragma unroll
    for (int i = 1; i < N; i++) sum[0] += sum[i];
    sum[0] = across_block<SUM>(sum[0]);
    if (threadIdx.x == 0) out[blockIdx.x] = sum[0] / divisor * scale;
}

// Grid of both: x = n / (THREADS * the elements of a vector) blocks, rounded up.
template <typename T, Loss LOSS>
__global__ void __launch_bounds__(THREADS)
loss_each(T* out, const T* x, const T* target, const T* weight, long long n, long long period, T scale, T delta) {
    const auto loss = [=](T x, T t, T delta) { return loss_of<LOSS>(x, t, delta) * scale; };
    const auto deltas = deltas_of<LOSS>(weight, period, delta);
    flat<16 / sizeof(T)>(out, n, loss, Input<T, T, 0>{x, 0}, Input<T, T, 1>{target, 0}, deltas);
}

template <typename T, Loss LOSS>
__global__ void __launch_bounds__(THREADS) loss_grad(
    T* out, const T* grad, const T* x, const T* target, const T* weight, long long n, long long period, T scale,
    T delta, bool each
) {
    const Input<T, T, 0> inputs{x, 0};
    const Input<T, T, 1> targets{target, 0};
    const Input<T, T, 3> grads{each ? grad : nullptr, grad[0]};
    const auto slope = [=](T x, T t, T delta, T g) { return slope_of<LOSS>(x, t, delta) * (g * scale); };
    flat<16 / sizeof(T)>(out, n, slope, inputs, targets, deltas_of<LOSS>(weight, period, delta), grads);
}

// What a mean over classes needs between or before the kernels of cross_entropy.cu and nll_loss.cu: out[i], for each
// i < copies, is the sum of the values, divided by the weights of the targets (rows,) other than ignore_index, or by
// their number where weight is null; without targets, not divided. The values are the losses of the rows, or the
// gradient of their mean.
//
// Grid: one block, so that there is one launch: rows are few beside the logits, of which each has many.
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS) class_mean(
    T* out, const T* values, const long long* target, const T* weight, long long count, long long rows,
    long long copies, long long ignore_index
) {
    T sum = 0, weights = 0;
    long long counted = 0;
#pragma unroll 4
    for (long long i = threadIdx.x; i < count; i += blockDim.x) sum += values[i];
    sum = across_block<SUM>(sum);
    if (target && weight) {
#pragma unroll 4
        for (long long i = threadIdx.x; i < rows; i += blockDim.x)
            if (target[i] != ignore_index) weights += weight[target[i]];
        __syncthreads();  // all have read the sums of the warps; others take their place
        sum /= across_block<SUM>(weights);
    } else if (target) {
#pragma unroll 4
        for (long long i = threadIdx.x; i < rows; i += blockDim.x) counted += target[i] != ignore_index;
        sum /= T(across_block<SUM>(counted));
    }
    for (long long i = threadIdx.x; i < copies; i += blockDim.x) out[i] = sum;
}
