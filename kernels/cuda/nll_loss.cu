// The negative log-likelihood of classes, from rows x of log-probabilities, and its gradient.
//
//   nll_loss        loss[row] = -x[row, t] weight[t]      t being the row's target, target[row]
//   nll_loss_grad   out[row, i] = -grad[row] weight[t] if i is t, else 0
//
// Shapes: x and out are (rows, columns), target, loss and grad (rows), weight (columns) or null, for ones;
// C-contiguous. A target lies in [0, columns), or is ignore_index: its row has a loss and a gradient of 0.
//
// Arithmetic intensity: a product for a row. The loss reads one element of each row, a sector of 32 bytes; the
// gradient writes all of out, and is as fast as memory takes that.

#include "common.cuh"

// Grid: x = a thread for each row.
template <typename T>
__global__ void nll_loss(
    T* loss, const T* x, const long long* target, const T* weight, long long rows, long long columns,
    long long ignore_index
) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    const long long t = target[row];
    loss[row] = t == ignore_index ? T(0) : -x[row * columns + t] * value_or(weight, t, T(1));
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x threads walk along a row.
template <typename T>
__global__ void nll_loss_grad(
    T* out, const T* grad, const long long* target, const T* weight, long long rows, long long columns,
    long long ignore_index
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const long long t = target[row];
    const bool counts = t != ignore_index;
    const T at_target = counts ? -grad[row] * value_or(weight, t, T(1)) : T(0);
    for (long long i = threadIdx.x; i < columns; i += blockDim.x)
        out[row * columns + i] = counts && i == t ? at_target : T(0);
}
