// Cross-entropy of the rows of a matrix of logits x, each with the number t of its class, and the gradient.
//
//   cross_entropy        loss[row] = sum over i of q_i nll_i        nll_i = log(s) - (x[row, i] - m)
//   cross_entropy_grad   out[row, i] = grad[row] (p_i sum(q) - q_i)        p_i = exp(x[row, i] - m) / s
//
// m is the row's largest element, s = sum(exp(x - m)), and q_i the share of class i in the loss: at the target 1,
// elsewhere 0. Smoothing takes a part of that, to spread it evenly over all classes; each share is multiplied by its
// class's weight:   q_i = weight[i] ((1 - smoothing) (i == t) + smoothing / columns).
//
// Shapes: x and out are (rows, columns), target, loss and grad (rows), weight (columns) or null, for ones;
// C-contiguous. A target lies in [0, columns), or is ignore_index: its row has a loss and a gradient of 0. A row with
// a NaN or +infinity, or of nothing but -infinity, becomes NaN.
//
//   ..._naive       the definition: one thread walks one row
//   ..._warp        + a warp for each row: neighbouring lanes read neighbours; m and s found in one walk
//   ..._vectorized  + 16 bytes a load and several on their way; a block for each long row. From here on x and its
//                   gradient may be of 16 bits; they are computed with, and all else is, in float32
//   ..._registers   + of the gradient: the row kept in registers, and with it the exponentials
//
// What is saved beside log-softmax, then a choice from it, is memory traffic. The loss takes one walk along a
// row and writes one number for it; log-softmax would write as much as it reads. The gradient finds m and s
// anew from the logits, so nothing but these is kept for it. Arithmetic intensity: about 10 operations, most
// of an exponential, for the 4 bytes of an element in float32, 2.5 a byte, where an H200 can do 14 (67 TFLOP/s,
// 4.8 TB/s): the kernels are bound by memory. Smoothing adds 3 operations, and reads of the weights from the caches.

#include "normalizer.cuh"

// The shares of the classes in the loss of a row with the target t.
template <bool SMOOTHED, typename T>
struct Shares {
    const T* weight;
    long long t;
    T at_target, of_each;

    __device__ __forceinline__ Shares(const T* weight, long long t, T smoothing, long long columns)
        : weight(weight), t(t), at_target((1 - smoothing) * value_or(weight, t, T(1))), of_each(smoothing / columns) {}

    // That of class i, which may be any where there is no smoothing.
    __device__ __forceinline__ T of(long long i) const {
        const T share = i == t ? at_target : T(0);
        if constexpr (SMOOTHED) return share + of_each * value_or(weight, i, T(1));
        return share;
    }

    __device__ __forceinline__ void scale(T factor) {
        at_target *= factor;
        of_each *= factor;
    }
};

// The sum over all classes of weight[i] nll_i, as smoothing needs it, in the walk that finds m and s. For any number r,
//
//   sum of w_i nll_i = (log(s) + m - r) sum(w) + sum of w_i (r - x_i)
//
// With one of the row's logits for r, these are differences within the row: no digits are lost.
template <typename T>
struct ClassSums {
    const T* weight;
    T r, weights = 0, distances = 0;

    __device__ __forceinline__ ClassSums(const T* weight, T logit)
        : weight(weight), r(fabs(logit) <= Normalizer<T>::largest_finite() ? logit : T(0)) {}

    __device__ __forceinline__ void add(T x, long long i) {
        const T w = value_or(weight, i, T(1));
        weights += w;
        distances += w * (r - x);
    }

    // Of the threads of a row; once in a kernel.
    __device__ __forceinline__ void add_across_row() {
        weights = across_row<SUM>(weights);
        if (blockDim.x != WARP) __syncthreads();  // all have read the sums of the warps; others take their place
        distances = across_row<SUM>(distances);
    }

    __device__ __forceinline__ T nll(T m, T log_s) const { return (m - r + log_s) * weights + distances; }
};

// The definition, in walks along the row: its largest element, the sum, and where it is smoothed the likelihoods. The
// threads of a warp read elements that lie a row apart: each load touches 32 lines of memory.
//
// Grid: x = a thread for each row.
template <typename T, bool SMOOTHED>
__global__ void cross_entropy_naive(
    T* loss, const T* x, const long long* target, const T* weight, long long rows, long long columns,
    long long ignore_index, T smoothing
) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    const long long t = target[row];
    x += row * columns;
    if (t == ignore_index) {
        loss[row] = 0;
        return;
    }
    const Shares<SMOOTHED, T> shares(weight, t, smoothing, columns);
    T m = -T(INFINITY), s = 0;
    for (long long i = 0; i < columns; i++) m = combine<MAX>(m, x[i]);
    for (long long i = 0; i < columns; i++) s += exp(x[i] - m);
    T sum = 0;
    if constexpr (SMOOTHED) {
        for (long long i = 0; i < columns; i++) sum += shares.of(i) * (log(s) - (x[i] - m));
    } else {
        sum = shares.of(t) * (log(s) - (x[t] - m));
    }
    loss[row] = sum;
}

// A warp for each row. The lanes read side by side: a load of the warp is one to two whole lines of memory.
// Each has an online normaliser of its own, and shuffles make them the row's: one walk, no shared memory and
// no barrier.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool SMOOTHED>
__global__ void cross_entropy_warp(
    T* loss, const T* x, const long long* target, const T* weight, long long rows, long long columns,
    long long ignore_index, T smoothing
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    const long long t = target[row];
    x += row * columns;
    if (t == ignore_index) {
        if (threadIdx.x == 0) loss[row] = 0;
        return;
    }
    Normalizer<T> own;
    ClassSums<T> classes(weight, x[t]);
    for (long long i = threadIdx.x; i < columns; i += WARP) {
        own.add(x[i]);
        if constexpr (SMOOTHED) classes.add(x[i], i);
    }
    own.add_across_warp();
    if constexpr (SMOOTHED) classes.add_across_row();
    if (threadIdx.x != 0) return;
    const Shares<SMOOTHED, T> shares(weight, t, smoothing, columns);
    const T log_s = log(own.sum()), at_target = shares.at_target * (log_s - (x[t] - own.m));
    loss[row] = SMOOTHED ? at_target + shares.of_each * classes.nll(own.m, log_s) : at_target;
}

// Vectors of 16 bytes, several on their way at a time; a long row has a block for itself.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
template <typename T, typename C, bool SMOOTHED>
__global__ void __launch_bounds__(MAX_THREADS, FEWEST_BLOCKS<C>) cross_entropy_vectorized(
    C* loss, const T* x, const long long* target, const C* weight, long long rows, long long columns,
    long long ignore_index, C smoothing
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const long long t = target[row];
    x += row * columns;
    if (t == ignore_index) {  // all threads of the row
        if (threadIdx.x == 0) loss[row] = 0;
        return;
    }
    Normalizer<C> own;
    ClassSums<C> classes(weight, C(x[t]));
    walk(x, columns, -C(INFINITY), [&](auto& part, long long begin, int here) {
        own.add(part);
        if constexpr (SMOOTHED)
            part.each([&](C element, int i) {
                if (i < here) classes.add(element, begin + i);
            });
    });
    own.add_across_row();
    if constexpr (SMOOTHED) classes.add_across_row();
    if (threadIdx.x != 0) return;
    const Shares<SMOOTHED, C> shares(weight, t, smoothing, columns);
    const C log_s = log(own.sum()), at_target = shares.at_target * (log_s - (C(x[t]) - own.m));
    loss[row] = SMOOTHED ? at_target + shares.of_each * classes.nll(own.m, log_s) : at_target;
}

// ---- the gradient ----
//
// The rungs are those above, with one more walk, which writes. It reads the row from the caches if that is
// not too long; the last rung has it in registers. From _vectorized on the exponential is the card's own: in float32
// its relative error is |x - m| ulp, as that of the difference already is.

// The sum of a row's shares, in each of its threads; a block comes to one barrier for it.
template <bool SMOOTHED, typename T, typename Length>
__device__ __forceinline__ T sum_of(const Shares<SMOOTHED, T>& shares, Length columns) {
    if constexpr (SMOOTHED) {
        T sum = 0;
        for (Length i = threadIdx.x; i < columns; i += blockDim.x) sum += value_or(shares.weight, i, T(1));
        return shares.at_target + shares.of_each * across_row<SUM>(sum);
    } else {
        return shares.at_target;
    }
}

// Grid: x = a thread for each row.
template <typename T, bool SMOOTHED>
__global__ void cross_entropy_grad_naive(
    T* out, const T* grad, const T* x, const long long* target, const T* weight, long long rows, long long columns,
    long long ignore_index, T smoothing
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
    const Shares<SMOOTHED, T> shares(weight, t, smoothing, columns);
    T m = -T(INFINITY), s = 0, sum = SMOOTHED ? T(0) : shares.at_target;
    for (long long i = 0; i < columns; i++) m = combine<MAX>(m, x[i]);
    for (long long i = 0; i < columns; i++) s += exp(x[i] - m);
    if constexpr (SMOOTHED)
        for (long long i = 0; i < columns; i++) sum += shares.of(i);
    for (long long i = 0; i < columns; i++) out[i] = grad[row] * (exp(x[i] - m) / s * sum - shares.of(i));
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool SMOOTHED>
__global__ void cross_entropy_grad_warp(
    T* out, const T* grad, const T* x, const long long* target, const T* weight, long long rows, long long columns,
    long long ignore_index, T smoothing
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
    Shares<SMOOTHED, T> shares(weight, t, smoothing, columns);
    shares.scale(grad[row]);
    const T scale = sum_of(shares, columns) / own.sum();
    for (long long i = threadIdx.x; i < columns; i += WARP) out[i] = exp(x[i] - own.m) * scale - shares.of(i);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
// One block to a multiprocessor at least, which says that each thread may have 128 registers: the compiler would keep
// the kernel to 64 on sm_75, and spill.
template <typename T, typename C, bool SMOOTHED>
__global__ void __launch_bounds__(MAX_THREADS, 1) cross_entropy_grad_vectorized(
    T* out, const C* grad, const T* x, const long long* target, const C* weight, long long rows, long long columns,
    long long ignore_index, C smoothing
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const long long t = target[row];
    out += row * columns;
    x += row * columns;
    if (t == ignore_index) {  // all threads of the row
        walk(x, columns, C(0), [&](auto& part, long long begin, int here) {
            part.each([](C& element, int) { element = 0; });
            part.store(out + begin, here);
        });
        return;
    }
    Normalizer<C> own;
    walk(x, columns, -C(INFINITY), [&](auto& part, long long, int) { own.add(part); });
    own.add_across_row();
    Shares<SMOOTHED, C> shares(weight, t, smoothing, columns);
    shares.scale(grad[row]);
    const C scale = sum_of(shares, columns) / own.sum();
    walk(x, columns, C(0), [&](auto& part, long long begin, int here) {
        part.each([&](C& element, int) { element = Normalizer<C>::term(element - own.m) * scale; });
        if constexpr (SMOOTHED) {
            part.each([&](C& element, int i) {
                if (i < here) element -= shares.of(begin + i);
            });
        } else if (t >= begin && t < begin + here) {
            part.subtract(int(t - begin), shares.at_target);
        }
        part.store(out + begin, here);
    });
}

// The row stays in registers from its load to its store: memory is read once, and each element takes a single
// exponential, which is kept.
//
// Grid and block as above, with vectors for the whole row: blockDim.x * COUNT * 16 bytes. Of a SHORT row, with so many
// vectors for each lane of a warp, the largest element is found first, and no sum is scaled.
template <typename T, typename C, bool SMOOTHED, int SHORT>
__global__ void __launch_bounds__(SHORT ? SHORT_THREADS : MOST_THREADS<T>) cross_entropy_grad_registers(
    T* out, const C* grad, const T* x, const long long* target, const C* weight, long long rows, int columns,
    long long ignore_index, C smoothing
) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    const long long t = target[row];
    RowPart<T, SHORT ? SHORT : HELD<T>> part;
    // The row is on its way before its target is there: a multiprocessor has one block with a long row, and would wait
    // for both in turn. An ignored row is read for nothing.
    part.load(x + row * columns, columns, -C(INFINITY));
    Normalizer<C> own;
    part.each([&](C element, int) { own.m = fmax(own.m, element); });  // a NaN comes back in the sum
    if constexpr (SHORT > 0) own.m = across_warp<MAX>(own.m);
    const C mine = own.m;
    part.each([&](C& element, int) { own.s += element = Normalizer<C>::term(element - mine); });
    if constexpr (SHORT > 0) {
        own.s = across_warp<SUM>(own.s);
    } else {
        own.add_across_row();
    }
    if (t == ignore_index) {  // all threads of the row
        part.each([](C& element, int) { element = 0; });
        part.store(out + row * columns, columns);
        return;
    }
    Shares<SMOOTHED, C> shares(weight, t, smoothing, columns);
    shares.scale(grad[row]);
    const C scale = sum_of(shares, columns) * ((SHORT ? C(1) : exp(mine - own.m)) / own.sum());
    part.each([&](C& element, int i) {
        element *= scale;
        if constexpr (SMOOTHED)
            if (i < columns) element -= shares.of_each * value_or(weight, i, C(1));
    });
    part.subtract(int(t), shares.at_target);
    part.store(out + row * columns, columns);
}
