// The formulas of the optimizers, element by element, and the walk over the elements: shared by optim.cu,
// with one parameter a launch, and optim_many.cu.
#pragma once

#include "common.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

// Calls update(p, g, states...) for every element of block number `block`, by vectors where they fit: in
// whole blocks, at aligned addresses. It changes the references that it is given, all but g. What is stored in
// 16 bits comes as float32, and is rounded once.
template <typename T, typename Update, typename... State>
__device__ __forceinline__ void update_block(
    long long block, T* param, const T* grad, long long n, Update update, State*... states
) {
    using C = Computed<T>;
    constexpr int N = 16 / sizeof(T);
    const long long begin = block * (THREADS * N);
    if (begin + THREADS * N <= n && aligned<N>(param) && aligned<N>(grad) && (aligned<N>(states) && ...)) {
        const long long i = begin + threadIdx.x * N;
        const Vector<C, N> g = converted<C>(load_vector<N>(grad + i));
        Vector<C, N> p = converted<C>(load_vector<N>(param + i));
        const auto with = [&](auto... state) {
#pragma unroll
            for (int k = 0; k < N; k++) update(p.lane[k], g.lane[k], state.lane[k]...);
            store_vector(param + i, converted<T>(p));
            (store_vector(states + i, converted<T>(state)), ...);
        };
        with(converted<C>(load_vector<N>(states + i))...);
        return;
    }
    for (long long i = begin + threadIdx.x; i < begin + THREADS * N && i < n; i += THREADS) {
        const auto with = [&](C p, auto... state) {
            update(p, C(grad[i]), state...);
            param[i] = T(p);
            ((states[i] = T(state)), ...);
        };
        with(C(param[i]), C(states[i])...);
    }
}

// What a formula takes; the factors come in double, and are rounded here. Of a recorded step, `live` points to
// those that differ between two replays, and `live_momentum` to one that has a place of its own; otherwise they
// are null.
template <typename T>
struct Sgd {
    T lr, weight_decay;

    __device__ __forceinline__ Sgd(const double* live, double lr, double weight_decay)
        : lr(T(live ? live[0] : lr)), weight_decay(T(weight_decay)) {}

    __device__ __forceinline__ void operator()(T& p, T g) const {
        p -= lr * (weight_decay != 0 ? g + weight_decay * p : g);  // 0 times an infinite p would be NaN
    }
};

// new_share is 1 - dampening; at the first step 1, and the velocity 0, so that it becomes the gradient
// itself.
template <typename T>
struct Momentum {
    T lr, momentum, new_share, weight_decay;
    bool nesterov;

    __device__ __forceinline__ Momentum(
        const double* live, const double* live_momentum, double lr, double momentum, double new_share,
        double weight_decay, bool nesterov
    )
        : lr(T(live ? live[0] : lr)), momentum(T(live_momentum ? live_momentum[0] : momentum)), new_share(T(new_share)),
          weight_decay(T(weight_decay)), nesterov(nesterov) {}

    __device__ __forceinline__ void operator()(T& p, T g, T& v) const {
        if (weight_decay != 0) g += weight_decay * p;
        v = momentum * v + new_share * g;
        p -= lr * (nesterov ? g + momentum * v : v);
    }
};

// `shrink` is 1 - lr weight_decay in AdamW, else 1; `l2` is the weight_decay of Adam, else 0. step_size is
// lr / (1 - beta1^step), and sqrt_correction sqrt(1 - beta2^step): both averages start at 0 and so are too
// small.
template <typename T>
struct Adam {
    T new1, beta2, new2, eps, shrink, l2, step_size, sqrt_correction;

    __device__ __forceinline__ Adam(
        const double* live, double new1, double beta2, double new2, double eps, double shrink, double l2,
        double step_size, double sqrt_correction
    )
        : new1(T(live ? live[3] : new1)), beta2(T(beta2)), new2(T(new2)), eps(T(eps)), shrink(T(live ? live[0] : shrink)),
          l2(T(l2)), step_size(T(live ? live[1] : step_size)),
          sqrt_correction(T(live ? live[2] : sqrt_correction)) {}

    __device__ __forceinline__ void operator()(T& p, T g, T& m, T& v) const {
        p *= shrink;
        if (l2 != 0) g += l2 * p;
        m += new1 * (g - m);
        v = beta2 * v + new2 * g * g;
        p -= step_size * m / (sqrt(v) / sqrt_correction + eps);
    }
};
