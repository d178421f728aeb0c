// One step of an optimizer, in place: param and what is remembered of it change, grad is only read.
//
// All arrays have n elements and are contiguous; they may start anywhere, and be of 16 bits. The factors are
// computed on the host, in double, and rounded here. In a recorded step those that differ between two replays
// stand in memory, where `live` points to, in double; otherwise it is null.
//
//   sgd_step        p -= lr g
//   momentum_step   v = momentum v + new_share g, p -= lr v; or with Nesterov's p -= lr (g + momentum v)
//   adam_step       Adam, https://arxiv.org/abs/1412.6980, and AdamW, https://arxiv.org/abs/1711.05101
//
// The rung fused: Adam reads four arrays and writes three, 28 bytes for about a dozen operations in
// float32, and nothing stays in a cache from one step to the next. One pass over memory is all there is to
// gain; as array expressions, each with a pass of its own, it would be some ten. Each thread takes 16 bytes
// of every array where all of them start at a multiple of 16. The next rung, optim_many.cu, has one launch for all
// parameters.
//
// Grid: x = n / (THREADS * N) blocks, rounded up, with N = 16 / sizeof(T).

#include "optim.cuh"

template <typename T>
__global__ void __launch_bounds__(THREADS)
sgd_step(T* param, const T* grad, long long n, double lr, double weight_decay, const double* live) {
    const Sgd<Computed<T>> update(live, lr, weight_decay);
    update_block(blockIdx.x, param, grad, n, update);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
momentum_step(T* param, const T* grad, T* velocity, long long n, double lr, double momentum, double new_share,
              double weight_decay, bool nesterov, const double* live, const double* live_momentum) {
    const Momentum<Computed<T>> update(live, live_momentum, lr, momentum, new_share, weight_decay, nesterov);
    update_block(blockIdx.x, param, grad, n, update, velocity);
}

template <typename T>
__global__ void __launch_bounds__(THREADS)
adam_step(T* param, const T* grad, T* exp_avg, T* exp_avg_sq, long long n, double new1, double beta2,
          double new2, double eps, double shrink, double l2, double step_size, double sqrt_correction,
          const double* live) {
    const Adam<Computed<T>> update(live, new1, beta2, new2, eps, shrink, l2, step_size, sqrt_correction);
    update_block(blockIdx.x, param, grad, n, update, exp_avg, exp_avg_sq);
}
