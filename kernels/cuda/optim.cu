// One step of an optimizer, in place: param and what is remembered of it change, grad is only read.
//
// All arrays have n elements and are contiguous; they may start anywhere. The factors are computed on the
// host, in double, and then rounded. In a recorded step those that differ between two replays stand in memory,
// where `live` points to, in double; otherwise it is null.
//
//   sgd_step        p -= lr g
//   momentum_step   v = momentum v + new_share g, p -= lr v; or with Nesterov's p -= lr (g + momentum v)
//   adam_step       Adam, https://arxiv.org/abs/1412.6980, and AdamW, https://arxiv.org/abs/1711.05101
//
// There is one rung, fused: Adam reads four arrays and writes three, 28 bytes for about a dozen operations in
// float32, and nothing stays in a cache from one step to the next. One pass over memory is all there is to
// gain; as array expressions, each with a pass of its own, it would be some ten. Each thread takes 16 bytes
// of every array where all of them start at a multiple of 16.
//
// Grid: x = n / (THREADS * N) blocks, rounded up, with N = 16 / sizeof(T).

#include "common.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

// Calls update(p, g, states...) for every element, by vectors where they fit: in whole blocks, at aligned
// addresses. It changes the references that it is given, all but g.
template <typename T, typename Update, typename... State>
__device__ __forceinline__ void update_all(T* param, const T* grad, long long n, Update update, State*... states) {
    constexpr int N = 16 / sizeof(T);
    const long long begin = (long long)blockIdx.x * (THREADS * N);
    if (begin + THREADS * N <= n && aligned<N>(param) && aligned<N>(grad) && (aligned<N>(states) && ...)) {
        const long long i = begin + threadIdx.x * N;
        const Vector<T, N> g = load_vector<N>(grad + i);
        Vector<T, N> p = load_vector<N>(param + i);
        const auto with = [&](auto... state) {
#pragma unroll
            for (int k = 0; k < N; k++) update(p.lane[k], g.lane[k], state.lane[k]...);
            store_vector(param + i, p);
            (store_vector(states + i, state), ...);
        };
        with(load_vector<N>(states + i)...);
        return;
    }
    for (long long i = begin + threadIdx.x; i < begin + THREADS * N && i < n; i += THREADS)
        update(param[i], grad[i], states[i]...);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
sgd_step(T* param, const T* grad, long long n, T lr, T weight_decay, const double* live) {
    if (live) lr = T(live[0]);
    update_all(param, grad, n, [=](T& p, T g) {
        p -= lr * (weight_decay != 0 ? g + weight_decay * p : g);  // 0 times an infinite p would be NaN
    });
}

// new_share is 1 - dampening; at the first step 1, and the velocity 0, so that it becomes the gradient itself.
template <typename T>
__global__ void __launch_bounds__(THREADS)
momentum_step(T* param, const T* grad, T* velocity, long long n, T lr, T momentum, T new_share, T weight_decay,
              bool nesterov, const double* live) {
    if (live) lr = T(live[0]);
    update_all(param, grad, n, [=](T& p, T g, T& v) {
        if (weight_decay != 0) g += weight_decay * p;
        v = momentum * v + new_share * g;
        p -= lr * (nesterov ? g + momentum * v : v);
    }, velocity);
}

// `shrink` is 1 - lr weight_decay in AdamW, else 1; `l2` is the weight_decay of Adam, else 0. step_size is
// lr / (1 - beta1^step), and sqrt_correction sqrt(1 - beta2^step): both averages start at 0 and so are too
// small.
template <typename T>
__global__ void __launch_bounds__(THREADS)
adam_step(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, long long n, T new1, T beta2, T new2, T eps, T shrink,
          T l2, T step_size, T sqrt_correction, const double* live) {
    if (live) shrink = T(live[0]), step_size = T(live[1]), sqrt_correction = T(live[2]);
    update_all(param, grad, n, [=](T& p, T g, T& m, T& v) {
        p *= shrink;
        if (l2 != 0) g += l2 * p;
        m += new1 * (g - m);
        v = beta2 * v + new2 * g * g;
        p -= step_size * m / (sqrt(v) / sqrt_correction + eps);
    }, exp_avg, exp_avg_sq);
}
