// Cross-entropy of the rows of a matrix of logits x, each with the number t of its class, and the gradient.
//
//   cross_entropy        loss[row] = log(s) - (x[row, t] - m)      m the row's largest element,
//   cross_entropy_grad   out[row, i] = grad[row] (exp(x[row, i] - m) / s - (i == t))      s = sum(exp(x - m))
//
// Shapes: x and out are (rows, columns), target, loss and grad (rows), C-contiguous. A target lies in
// [0, columns), or is ignore_index: its row has a loss and a gradient of 0. A row with a NaN or +infinity, or
// of nothing but -infinity, becomes NaN.
//
//   ..._naive       the definition: one thread walks one row
//   ..._warp        + a warp for each row: neighbouring lanes read neighbours; m and s found in one walk
//   ..._vectorized  + 16 bytes a load and several on their way; a block for each long row. From here on x, loss and
//                   their gradients may be of 16 bits, and are computed with in float32
//   ..._registers   + of the gradient: the row kept in registers, and with it the exponentials
//
// What is saved beside log-softmax, then a choice from it, is memory traffic. The loss takes one walk along a
// row and writes one number for it; log-softmax would write as much as it reads. The gradient finds m and s
// anew from the logits, so nothing but these is kept for it. Arithmetic intensity: about 10 operations, most
// of an exponential, for the 4 bytes of an element in float32, 2.5 a byte, where an H200 can do 14 (67 TFLOP/s,
// 4.8 TB/s): the kernels are bound by memory.

#include "normalizer.cuh"

// An element of the gradient, in column i.
template <typename T>
__device__ __forceinline__ T gradient(T grad, T x, T m, T s, long long i, long long t) {
    return grad * (exp(x - m) / s - (i == t ? T(1) : T(0)));
}

// The definition, in two walks along the row: its largest element, the sum. The threads of a warp read
// elements that lie a row apart: each load touches 32 lines of memory.
//
// Grid: x = a thread for each row.
template <typename T>
__global__ void cross_entropy_naive(
    T* loss, const T* x, const long long* target, long long rows, long long columns, long long ignore_index
) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    const long long t = target[row];
    x += row * columns;
    if (t == ignore_index) {
        loss[row] = 0;
        return;
    }
    T m = -T(INFINITY), s = 0;
    for (long long i = 0; i < columns; i++) m = combine<MAX>(m, x[i]);
    for (long long i = 0; i < columns; i++) s += exp(x[i] - m);
    loss[row] = log(s) - (x[t] - m);
}

// A warp for each row. The lanes read side by side: a load of the warp is one to two whole lines of memory.
// Each has an online normaliser of its own, and shuffles make them the row's: one walk, no shared memory and
// no barrier.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T>
__global__ void cross_entropy_warp(
    T* loss, const T* x, const long long* target, long long rows, long long columns, long long ignore_index
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    const long long t = target[row];
    x += row * columns;

    Normalizer<T> own;
    if (t != ignore_index)
        for (long long i = threadIdx.x; i < columns; i += WARP) own.add(x[i]);
    own.add_across_warp();
    if (threadIdx.x == 0) loss[row] = t == ignore_index ? T(0) : log(own.sum()) - (x[t] - own.m);
}

// Vectors of 16 bytes, several on their way at a time; a long row has a block for itself.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
template <typename T, typename C>
__global__ void __launch_bounds__(MAX_THREADS) cross_entropy_vectorized(
    C* loss, const T* x, const long long* target, long long rows, long long columns, long long ignore_index
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const long long t = target[row];
    x += row * columns;

    Normalizer<C> own;
    if (t != ignore_index) walk(x, columns, -C(INFINITY), [&](auto& part, long long, int) { own.add(part); });
    own.add_across_row();
    if (threadIdx.x == 0) loss[row] = t == ignore_index ? C(0) : log(own.sum()) - (C(x[t]) - own.m);
}

// ---- the gradient ----
//
// The rungs are those above, with one more walk, which writes. It reads the row from the caches if that is
// not too long; the last rung has it in registers.

// Grid: x = a thread for each row.
template <typename T>
__global__ void cross_entropy_grad_naive(
    T* out, const T* grad, const T* x, const long long* target, long long rows, long long columns,
    long long ignore_index
) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    const long long t = target[row];
    out += row * columns;
    x += row * columns;
    if (t == ignore_index) {
        for (long long i = 0; i < columns; i++) out[i] = 0;
        return;
    }
    T m = -T(INFINITY), s = 0;
    for (long long i = 0; i < columns; i++) m = combine<MAX>(m, x[i]);
    for (long long i = 0; i < columns; i++) s += exp(x[i] - m);
    for (long long i = 0; i < columns; i++) out[i] = gradient(grad[row], x[i], m, s, i, t);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T>
__global__ void cross_entropy_grad_warp(
    T* out, const T* grad, const T* x, const long long* target, long long rows, long long columns,
    long long ignore_index
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    const long long t = target[row];
    out += row * columns;
    x += row * columns;
    if (t == ignore_index) {
        for (long long i = threadIdx.x; i < columns; i += WARP) out[i] = 0;
        return;
    }
    Normalizer<T> own;
    for (long long i = threadIdx.x; i < columns; i += WARP) own.add(x[i]);
    own.add_across_warp();
    const T g = grad[row], s = own.sum();
    for (long long i = threadIdx.x; i < columns; i += WARP) out[i] = gradient(g, x[i], own.m, s, i, t);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
template <typename T, typename C>
__global__ void __launch_bounds__(MAX_THREADS) cross_entropy_grad_vectorized(
    T* out, const C* grad, const T* x, const long long* target, long long rows, long long columns,
    long long ignore_index
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const long long t = target[row];
    out += row * columns;
    x += row * columns;

    Normalizer<C> own;
    if (t != ignore_index) walk(x, columns, -C(INFINITY), [&](auto& part, long long, int) { own.add(part); });
    own.add_across_row();
    const C g = grad[row], s = own.sum();
    walk(x, columns, C(0), [&](auto& part, long long begin, int here) {
        part.each([&](C& element, int i) {
            element = t == ignore_index ? C(0) : gradient(g, element, own.m, s, begin + i, t);
        });
        part.store(out + begin, here);
    });
}

// The row stays in registers from its load to its store: memory is read once, and each element takes a single
// exponential, which is kept. In float32 its relative error is |x - m| ulp, as that of the difference already is.
//
// Grid and block as above, with vectors for the whole row: blockDim.x * HELD * 16 bytes.
template <typename T, typename C>
__global__ void __launch_bounds__(MOST_THREADS<T>) cross_entropy_grad_registers(
    T* out, const C* grad, const T* x, const long long* target, long long rows, int columns,
    long long ignore_index
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const long long t = target[row];
    RowPart<T, HELD<T>> part;
    if (t != ignore_index) {
        part.load(x + row * columns, columns, -C(INFINITY));
        Normalizer<C> own;
        part.each([&](C element, int) { own.m = fmax(own.m, element); });  // a NaN comes back in the sum
        const C mine = own.m;
        part.each([&](C& element, int) { own.s += element = Normalizer<C>::term(element - mine); });
        own.add_across_row();
        const C g = grad[row], scale = g * (exp(mine - own.m) / own.sum());
        part.each([&](C& element, int i) { element = element * scale - (i == t ? g : C(0)); });
    } else {
        part.each([](C& element, int) { element = 0; });
    }
    part.store(out + row * columns, columns);
}
