// Softmax over the rows of a matrix, its logarithm, that of the sum of exponentials, and the gradients of all.
//
//   softmax      out = exp(x - m) / s          m the row's largest element, s = sum(exp(x - m)):
//   log_softmax  out = (x - m) - log(s)        no exponential overflows, and s is at least 1
//   logsumexp    out = m + log(s)              one number for a row
//
// Shapes: all other arrays are (rows, columns), C-contiguous. Of each kernel there are two, for softmax and
// (LOGARITHM) for log_softmax. An element of -infinity has probability 0. A row with a NaN or +infinity, or
// of nothing but -infinity, becomes NaN: it has no softmax.
//
//   ..._naive       the definition: one thread walks one row
//   ..._warp        + a warp for each row: neighbouring lanes read neighbours, and combine by shuffles
//   ..._vectorized  + 16 bytes a load and several on their way; m and s found together, in one walk; a block for
//                   each long row. From here on the arrays may be of 16 bits, and are computed with in float32
//   ..._registers   + the row kept in registers, and with it the exponentials: memory is read once
//
// Arithmetic intensity: about 20 operations for an element, most of them in its exponential, for the 8 bytes
// of reading and writing it once in float32: 2.5 a byte, where an H200 can do 14 (67 TFLOP/s, 4.8 TB/s). The
// kernels are bound by memory. They read a row three times, with _vectorized twice and with _registers once; a
// row that fits the caches comes from memory once. So what counts is that loads are coalesced and that there
// are many of them at a time.

#include "normalizer.cuh"

// What an element is divided by, or, as a logarithm, what is taken from it: once for a row.
template <bool LOGARITHM, typename T>
__device__ __forceinline__ T divisor(T s) {
    if constexpr (LOGARITHM) return log(s);
    return s;
}

// An element of the result, in a row with the largest element m.
template <bool LOGARITHM, typename T>
__device__ __forceinline__ T normalized(T x, T m, T by) {
    if constexpr (LOGARITHM) return (x - m) - by;
    return exp(x - m) / by;
}

// exp(x), x <= 0, to be rounded to T: to 16 bits after the card's own exp2, whose error of up to |x| ulp of float32 is
// less than what that rounding takes.
template <typename T>
__device__ __forceinline__ Computed<T> exponential(Computed<T> x) {
    if constexpr (sizeof(T) == 2) return Normalizer<float>::term(x);
    return exp(x);
}

// The definition, in three walks along the row: its largest element, the sum, the results. The threads of a
// warp read elements that lie a row apart: each load touches 32 lines of memory.
//
// Grid: x = a thread for each row.
template <typename T, bool LOGARITHM>
__global__ void softmax_naive(T* out, const T* x, long long rows, long long columns) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    out += row * columns;
    x += row * columns;

    T m = -T(INFINITY), s = 0;
    for (long long i = 0; i < columns; i++) m = combine<MAX>(m, x[i]);
    for (long long i = 0; i < columns; i++) s += exp(x[i] - m);
    const T by = divisor<LOGARITHM>(s);
    for (long long i = 0; i < columns; i++) out[i] = normalized<LOGARITHM>(x[i], m, by);
}

// The same three walks by the 32 lanes of a warp, side by side: a load of the warp is one to two whole lines
// of memory. Each lane has a largest element and a sum of its own; shuffles make them the row's, between
// registers, with no shared memory and no barrier. A short row is still in the L1 cache when read again.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool LOGARITHM>
__global__ void softmax_warp(T* out, const T* x, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    out += row * columns;
    x += row * columns;

    T m = -T(INFINITY), s = 0;
    for (long long i = threadIdx.x; i < columns; i += WARP) m = combine<MAX>(m, x[i]);
    m = across_warp<MAX>(m);
    for (long long i = threadIdx.x; i < columns; i += WARP) s += exp(x[i] - m);
    const T by = divisor<LOGARITHM>(across_warp<SUM>(s));
    for (long long i = threadIdx.x; i < columns; i += WARP) out[i] = normalized<LOGARITHM>(x[i], m, by);
}

// Vectors of 16 bytes, several on their way at a time, and m and s found together: the online normaliser leaves
// two walks, one to read and one to read and write. A long row has a block for itself, with a single barrier.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
template <typename T, bool LOGARITHM>
__global__ void __launch_bounds__(MAX_THREADS)
softmax_vectorized(T* out, const T* x, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    out += row * columns;
    x += row * columns;

    using C = Computed<T>;
    Normalizer<C> own;
    walk(x, columns, -C(INFINITY), [&](auto& part, long long, int) { own.add(part); });
    own.add_across_row();
    const C by = LOGARITHM ? log(own.sum()) : 1 / own.sum();
    walk(x, columns, C(0), [&](auto& part, long long begin, int here) {
        part.each([&](C& element, int) {
            element = LOGARITHM ? (element - own.m) - by : exponential<T>(element - own.m) * by;
        });
        part.store(out + begin, here);
    });
}

// The row stays in registers from its load to its store: memory is read once, and each element takes a single
// exponential, which is kept.
//
// Grid and block as above, with vectors for the whole row: blockDim.x * COUNT * 16 bytes. Of a SHORT row, with so many
// vectors for a thread, blockDim.x is a power of two up to 32, and a warp may have several; past the last row it computes
// that again.
template <typename T, bool LOGARITHM, int SHORT>
__global__ void __launch_bounds__(SHORT ? SHORT_THREADS : MOST_THREADS<T>)
softmax_registers(T* out, const T* x, long long rows, int columns) {
    constexpr int COUNT = SHORT ? SHORT : HELD<T>;
    const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y, row = min(place, rows - 1);
    using C = Computed<T>;
    RowPart<T, COUNT> part;
    part.load(x + row * columns, columns, -C(INFINITY));
    Normalizer<C> own;
    part.each([&](C element, int) { own.m = fmax(own.m, element); });  // a NaN comes back in the sum
    if constexpr (SHORT > 0) own.m = across_warp<MAX>(own.m, blockDim.x);
    const C mine = own.m;
    part.each([&](C& element, int) {
        if constexpr (LOGARITHM) {
            own.s += Normalizer<C>::term(element - mine);
        } else {
            element = exponential<T>(element - mine);
            own.s += element;
        }
    });
    if constexpr (SHORT > 0) {
        own.s = across_warp<SUM>(own.s, blockDim.x);
    } else {
        own.add_across_row();
    }
    const C by = LOGARITHM ? log(own.sum()) : (SHORT ? C(1) : exp(mine - own.m)) / own.sum();
    part.each([&](C& element, int) { element = LOGARITHM ? (element - own.m) - by : element * by; });
    if (place < rows) part.store(out + row * columns, columns);
}

// ---- gradients ----
//
//   softmax      out = (grad - sum(grad y)) y          y the output of softmax
//   log_softmax  out = grad - exp(y) sum(grad)         y the output of log_softmax
//
// Two walks: the sum, the results. The rungs are those above, with one sum to combine. For an element in
// float32 they read 8 bytes, the second time from the caches if the row is not too long, and write 4, for 4
// operations and at most one exponential: they are bound by memory even more than softmax is.

// What an element adds to the row's sum.
template <bool LOGARITHM, typename T>
__device__ __forceinline__ T summand(T grad, T y) {
    return LOGARITHM ? grad : grad * y;
}

template <bool LOGARITHM, typename T>
__device__ __forceinline__ T gradient(T grad, T y, T sum) {
    if constexpr (LOGARITHM) return grad - exp(y) * sum;
    return (grad - sum) * y;
}

// Calls f(an element of a, that of b at the same place) for each.
template <typename T, int COUNT, typename Function>
__device__ __forceinline__ void for_both(RowPart<T, COUNT>& a, const RowPart<T, COUNT>& b, Function f) {
#pragma unroll
    for (int k = 0; k < COUNT; k++)
#pragma unroll
        for (int n = 0; n < a.N; n++) f(a.vector[k].lane[n], b.vector[k].lane[n]);
}

// Grid: x = a thread for each row.
template <typename T, bool LOGARITHM>
__global__ void softmax_grad_naive(T* out, const T* grad, const T* y, long long rows, long long columns) {
    const long long row = global_thread_index();
    if (row >= rows) return;
    const long long begin = row * columns, end = begin + columns;
    T sum = 0;
    for (long long i = begin; i < end; i++) sum += summand<LOGARITHM>(grad[i], y[i]);
    for (long long i = begin; i < end; i++) out[i] = gradient<LOGARITHM>(grad[i], y[i], sum);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = 32.
template <typename T, bool LOGARITHM>
__global__ void softmax_grad_warp(T* out, const T* grad, const T* y, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    const long long begin = row * columns + threadIdx.x, end = (row + 1) * columns;
    T sum = 0;
    for (long long i = begin; i < end; i += WARP) sum += summand<LOGARITHM>(grad[i], y[i]);
    sum = across_warp<SUM>(sum);
    for (long long i = begin; i < end; i += WARP) out[i] = gradient<LOGARITHM>(grad[i], y[i], sum);
}

// Grid: x = the rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one row for a block if more.
template <typename T, bool LOGARITHM>
__global__ void __launch_bounds__(MAX_THREADS)
softmax_grad_vectorized(T* out, const T* grad, const T* y, long long rows, long long columns) {
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // a whole warp, in a block that comes to no barrier
    out += row * columns;
    grad += row * columns;
    y += row * columns;
    Computed<T> sum = 0;
    const auto both = [&](auto f) {
        walk(grad, columns, Computed<T>(0), [&](auto& g, long long begin, int here) {
            RowPart<T, UNROLL> of_y;
            of_y.load(y + begin, here, Computed<T>(0));
            f(g, of_y, begin, here);
        });
    };
    both([&](auto& g, auto& of_y, long long, int) {
        for_both(g, of_y, [&](auto& grad, auto y) { sum += summand<LOGARITHM>(grad, y); });
    });
    sum = across_row<SUM>(sum);
    both([&](auto& g, auto& of_y, long long begin, int here) {
        for_both(g, of_y, [&](auto& grad, auto y) { grad = gradient<LOGARITHM>(grad, y, sum); });
        g.store(out + begin, here);
    });
}

// As in softmax_registers, with half as many vectors of each of the two arrays where a row is not SHORT.
template <typename T, bool LOGARITHM, int SHORT>
__global__ void __launch_bounds__(SHORT ? SHORT_THREADS : MOST_THREADS<T>)
softmax_grad_registers(T* out, const T* grad, const T* y, long long rows, int columns) {
    constexpr int COUNT = SHORT ? SHORT : HELD<T> / 2;
    const long long place = (long long)blockIdx.x * blockDim.y + threadIdx.y, row = min(place, rows - 1);
    RowPart<T, COUNT> g, of_y;
    g.load(grad + row * columns, columns, Computed<T>(0));
    of_y.load(y + row * columns, columns, Computed<T>(0));
    Computed<T> sum = 0;
    for_both(g, of_y, [&](auto& grad, auto y) { sum += summand<LOGARITHM>(grad, y); });
    sum = SHORT ? across_warp<SUM>(sum, blockDim.x) : across_row<SUM>(sum);
    for_both(g, of_y, [&](auto& grad, auto y) { grad = gradient<LOGARITHM>(grad, y, sum); });
    if (place < rows) g.store(out + row * columns, columns);
}

// ---- the logarithm of the sum of exponentials ----
//
// One walk, with an online normaliser; the gradient takes another, with the result in place of m and s. Where rows
// are long and few, a block has one of the `parts` of a row, of `length` elements each. The results of the parts are
// again such logarithms, and the result of these is the row's.
//
// Grid of both: x = the parts of all rows, blockDim.y of them in a block; blockDim.x = a multiple of 32; one part for
// a block if more.

// A row with a NaN becomes NaN, another one with +infinity that.
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
logsumexp(T* out, const T* x, long long rows, long long columns, long long parts, long long length) {
    const long long part = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (part >= rows * parts) return;  // a whole warp, in a block that comes to no barrier
    const long long begin = part % parts * length, rest = columns - begin;
    Normalizer<T> own;
    T infinite = 0;
    const auto add = [&](auto& elements, long long, int) {
        elements.each([&](T& element, int) {
            if (element == T(INFINITY)) infinite = element, element = 0;  // infinity - infinity is no number
        });
        own.add(elements);
    };
    walk(x + part / parts * columns + begin, rest < length ? rest : length, -T(INFINITY), add);
    own.add_across_row();
    infinite = across_row<MAX>(infinite);
    if (threadIdx.x == 0) out[part] = own.m + log(own.s) + infinite;
}

// g exp(x - y), y being the row's logarithm and g its gradient.
template <typename T>
__global__ void __launch_bounds__(256, 1) logsumexp_grad(
    T* out, const T* grad, const T* x, const T* y, long long rows, long long columns, long long parts,
    long long length
) {
    const long long part = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (part >= rows * parts) return;
    const long long row = part / parts, begin = part % parts * length, rest = columns - begin;
    const T g = grad[row], of_row = y[row];
    out += row * columns + begin;
    walk(x + row * columns + begin, rest < length ? rest : length, T(0), [&](auto& elements, long long at, int here) {
        elements.each([&](T& element, int) { element = g * exp(element - of_row); });
        elements.store(out + at, here);
    });
}
