// Max and average pooling of 3 x 3 windows, walking down strips.
//
// At stride 1 or 2, with a padding of 1 or none. A thread takes as many neighbouring columns of windows as a vector
// has elements, and walks down. Of each row of the input it makes what the windows need of three columns, once, and
// keeps it in registers for the up to three rows of windows that this row belongs to: no shared memory and no barrier.
// It asks for BATCH rows of the input before it uses the first, and in float32 (EARLY) for the next ones before it
// stores what it made of these. WIDE: with a padding of 1 and rows of whole vectors; others are loaded element by
// element, which the L1 cache has together.
//
// At stride 1 two windows side by side share two of their columns, and two below each other two rows. What they
// share is combined once: in float32 that leaves 3 comparisons for a window of 9 elements, where the definition
// makes 9. With loads and stores these are some 20 instructions for the 9 bytes of an element; an H200 has time
// for 60 (132 multiprocessors x 128 a cycle, at 4.3 TB/s).
//
// Grid: x = a thread for each strip of columns, of each plane of a group; y = the segments of `rows` rows of windows;
// z = the groups of `planes`. A group is what a card runs at a time: so a segment begins as the one above it ends, and
// finds the rows that both of them read in the L2 cache.

#include "pool2d.cuh"

constexpr int THREADS = 128;  // in a block: with the registers of a strip seven find room, of 256 only three

template <typename T, int STRIDE, bool WIDE>
struct Strip {
    using C = Computed<T>;
    static constexpr int WINDOWS = WIDE || sizeof(T) == 8 ? Vector<T>::LENGTH : 4;
    static constexpr int REACH = (WINDOWS - 1) * STRIDE + 3;  // columns under them: one before the vectors
    static constexpr int BATCH = 2;                           // rows of the input
    static constexpr int KEPT = 3 - STRIDE;                   // rows that the next windows need, too
    static constexpr bool EARLY = sizeof(T) == 4;             // float32 alone leaves registers for the next rows

    const Pool2dShape& s;
    const T* first;  // the first vector's place in row 0 of the plane
    long long plane;
    int begin, end;  // rows of windows
    int column;      // the first window's

    __device__ __forceinline__ Strip(const T* input, const Pool2dShape& s, int planes, int rows) : s(s) {
        const unsigned number = blockIdx.x * blockDim.x + threadIdx.x, columns = (s.OW + WINDOWS - 1) / WINDOWS;
        const unsigned of_group = number / columns;
        plane = of_group < planes ? (long long)blockIdx.z * planes + of_group : s.planes;
        begin = blockIdx.y * rows;
        end = min(begin + rows, s.OH);
        column = (number - of_group * columns) * WINDOWS;
        first = input + plane * s.H * s.W + column * STRIDE;
    }

    __device__ __forceinline__ bool exists() const { return plane < s.planes; }

    __device__ __forceinline__ int pad_h() const { return WIDE ? 1 : s.pad_h; }
    __device__ __forceinline__ int pad_w() const { return WIDE ? 1 : s.pad_w; }

    // The elements of row y under the windows, and `padding` where there are none.
    __device__ __forceinline__ void load(C* to, int y, C padding) const {
        const bool inside = y >= 0 && y < s.H;
        const T* row = first + (long long)y * s.W;
        if constexpr (!WIDE) {
#pragma unroll
            for (int c = 0; c < REACH; c++) {
                const int x = c - s.pad_w;  // from `first`
                to[c] = inside && unsigned(column * STRIDE + x) < unsigned(s.W) ? C(row[x]) : padding;
            }
        } else {
#pragma unroll
            for (int v = 0; v < STRIDE; v++) {
                Vector<C, WINDOWS> elements;
#pragma unroll
                for (int n = 0; n < WINDOWS; n++) elements.lane[n] = padding;
                if (inside) elements = converted<C>(load_vector(row + v * WINDOWS));
#pragma unroll
                for (int n = 0; n < WINDOWS; n++) to[1 + v * WINDOWS + n] = elements.lane[n];
            }
            to[0] = inside && column > 0 ? C(row[-1]) : padding;
            if (STRIDE == 1) to[REACH - 1] = inside && column + WINDOWS < s.W ? C(row[WINDOWS]) : padding;
        }
    }

    // Combines neighbours in threes: out[w] of in[w STRIDE], in[w STRIDE + 1], in[w STRIDE + 2], in this order.
    template <int OUTPUTS, typename In, typename Out, typename Combine>
    static __device__ __forceinline__ void in_threes(const In* in, Out* out, Combine combine) {
        constexpr int PAIR = STRIDE == 1 && OUTPUTS % 2 == 0 ? 2 : 1;
#pragma unroll
        for (int w = 0; w < OUTPUTS; w += PAIR) {
            if constexpr (PAIR == 2) {
                const Out shared = combine(in[w + 1], in[w + 2]);
                out[w] = combine(in[w], shared);
                out[w + 1] = combine(shared, in[w + 3]);
            } else {
                out[w] = combine(combine(in[w * STRIDE], in[w * STRIDE + 1]), in[w * STRIDE + 2]);
            }
        }
    }

    // Calls each(row of windows, the rows of the input under BATCH / STRIDE of them) down the segment, after
    // take(k, elements) has been called for every row k of these that is new.
    template <typename Take, typename Keep, typename Each>
    __device__ __forceinline__ void down(C padding, Take take, Keep keep, Each each) const {
        C elements[BATCH][REACH];
#pragma unroll
        for (int k = 0; k < KEPT; k++) load(elements[k], begin * STRIDE - pad_h() + k, padding);
#pragma unroll
        for (int k = 0; k < KEPT; k++) take(k, elements[k]);
        const auto load_batch = [&](int y) {
#pragma unroll
            for (int k = 0; k < BATCH; k++) load(elements[k], y * STRIDE - pad_h() + KEPT + k, padding);
        };
        if (EARLY) load_batch(begin);
        for (int y = begin; y < end; y += BATCH / STRIDE) {
            if (!EARLY) load_batch(y);
#pragma unroll
            for (int k = 0; k < BATCH; k++) take(KEPT + k, elements[k]);
            if (EARLY && y + BATCH / STRIDE < end) load_batch(y + BATCH / STRIDE);
            each(y);
#pragma unroll
            for (int k = 0; k < KEPT; k++) keep(k, BATCH + k);
        }
    }

    template <typename Value>
    __device__ __forceinline__ void store(Value* to, int y, const Vector<Value, WINDOWS>& values) const {
        to += (plane * s.OH + y) * s.OW + column;
        if (WIDE || (column + WINDOWS <= s.OW && aligned<WINDOWS>(to))) {
            store_vector(to, values);
        } else {
#pragma unroll
            for (int w = 0; w < WINDOWS; w++)
                if (column + w < s.OW) to[w] = values.lane[w];
        }
    }
};

// An element and where it stands: 3 (row of the batch) + (column of the strip).
template <typename T>
struct Placed {
    T value;
    int place;
};

// Of two elements the larger; of equals the first; the last that is NaN, if NANS says that there may be any.
template <bool NANS, typename T>
__device__ __forceinline__ Placed<T> larger_of(Placed<T> a, Placed<T> b) {
    return b.value > a.value || (NANS && isnan(b.value)) ? b : a;
}

template <typename T, typename Tap, int STRIDE, bool WIDE>
struct MaxStrip {
    using Of = Strip<T, STRIDE, WIDE>;
    using C = Computed<T>;
    static constexpr int WINDOWS = Of::WINDOWS, OUTPUTS = Of::BATCH / STRIDE;
    Placed<C> rows[WINDOWS][Of::KEPT + Of::BATCH];  // the largest of three columns

    template <bool NANS>
    __device__ __forceinline__ void take(int k, const C* elements) {
        Placed<C> in[Of::REACH], largest[WINDOWS];
#pragma unroll
        for (int c = 0; c < Of::REACH; c++) in[c] = {elements[c], 3 * k + c};
        Of::template in_threes<WINDOWS>(in, largest, larger_of<NANS, C>);
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) rows[w][k] = largest[w];
    }

    template <bool NANS>
    __device__ __forceinline__ void each(const Of& strip, int y, T* out, Tap* taps) const {
        Placed<C> largest[WINDOWS][OUTPUTS];
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) Of::template in_threes<OUTPUTS>(rows[w], largest[w], larger_of<NANS, C>);
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            if (y + k >= strip.end) continue;
            Vector<T, WINDOWS> values;
            Vector<Tap, WINDOWS> winners;
#pragma unroll
            for (int w = 0; w < WINDOWS; w++) {
                int tap = largest[w][k].place - 3 * k * STRIDE - w * STRIDE;
                // Nothing is larger than the padding: the first element of the input.
                if (largest[w][k].value == -C(INFINITY))
                    tap = (y + k == 0 ? 3 * strip.pad_h() : 0) + (strip.column + w == 0 ? strip.pad_w() : 0);
                values.lane[w] = T(largest[w][k].value);
                winners.lane[w] = Tap(tap);
            }
            strip.store(out, y + k, values);
            strip.store(taps, y + k, winners);
        }
    }
};

// NaNs are rare: until a thread has met one it takes the shorter comparisons. The sum of some numbers is NaN if
// one of them is (or if there are infinities of both signs among them).
template <typename T, typename Tap, int STRIDE, bool WIDE>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 2 ? 4 : WIDE ? 7 : 6)
max_pool2d_rolling(T* out, Tap* taps, const T* input, Pool2dShape s, int planes, int rows) {
    using Of = Strip<T, STRIDE, WIDE>;
    using C = Computed<T>;
    const Of strip(input, s, planes, rows);
    if (!strip.exists()) return;
    MaxStrip<T, Tap, STRIDE, WIDE> of;
    bool nans = false;
    const auto take = [&](int k, const C* elements) {
        C sum = elements[0];
#pragma unroll
        for (int c = 1; c < Of::REACH; c++) sum += elements[c];
        nans = nans || isnan(sum);
        if (nans) {
            of.template take<true>(k, elements);
        } else {
            of.template take<false>(k, elements);
        }
    };
    const auto keep = [&](int to, int from) {
#pragma unroll
        for (int w = 0; w < Of::WINDOWS; w++)
            of.rows[w][to] = {of.rows[w][from].value, of.rows[w][from].place - 3 * Of::BATCH};
    };
    strip.down(-C(INFINITY), take, keep, [&](int y) {
        if (nans) {
            of.template each<true>(strip, y, out, taps);
        } else {
            of.template each<false>(strip, y, out, taps);
        }
    });
}

// At stride 1 a thread has two vectors on their way: seven blocks of a multiprocessor wait for 28 KB, about what an
// H200 needs there (gemv.cu). Single elements take more registers, and so does float64.
template <typename T, int STRIDE, bool WIDE>
constexpr int AVG_BLOCKS = (sizeof(T) == 8 ? 6 : STRIDE == 1 ? 7 : sizeof(T) == 2 ? 5 : 6) - !WIDE;

template <typename T, int STRIDE, bool WIDE>
__global__ void __launch_bounds__(THREADS, AVG_BLOCKS<T, STRIDE, WIDE>)
avg_pool2d_rolling(T* out, const T* input, Pool2dShape s, AvgDivisor how, int planes, int rows) {
    using Of = Strip<T, STRIDE, WIDE>;
    using C = Computed<T>;
    constexpr int WINDOWS = Of::WINDOWS, OUTPUTS = Of::BATCH / STRIDE;
    const Of strip(input, s, planes, rows);
    if (!strip.exists()) return;
    C sums[WINDOWS][Of::KEPT + Of::BATCH], factor[WINDOWS];
    const AvgWindow three(1, 3, 1, 1, 3);  // rows of the input, as nearly all windows have
#pragma unroll
    for (int w = 0; w < WINDOWS; w++)
        factor[w] = 1 / avg_divisor<C>(three, AvgWindow(strip.column + w, 3, STRIDE, strip.pad_w(), s.W), how);
    const auto add = [](C a, C b) { return a + b; };
    const auto take = [&](int k, const C* elements) {
        C of_three[WINDOWS];
        Of::template in_threes<WINDOWS>(elements, of_three, add);
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) sums[w][k] = of_three[w];
    };
    const auto keep = [&](int to, int from) {
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) sums[w][to] = sums[w][from];
    };
    strip.down(C(0), take, keep, [&](int y) {
        C sum[WINDOWS][OUTPUTS];
#pragma unroll
        for (int w = 0; w < WINDOWS; w++) Of::template in_threes<OUTPUTS>(sums[w], sum[w], add);
#pragma unroll
        for (int k = 0; k < OUTPUTS; k++) {
            if (y + k >= strip.end) continue;
            const AvgWindow window(y + k, 3, STRIDE, strip.pad_h(), s.H);
            Vector<T, WINDOWS> means;
#pragma unroll
            for (int w = 0; w < WINDOWS; w++) {
                means.lane[w] = T(sum[w][k] * factor[w]);
                if (window.inside.length() == 3) continue;
                const AvgWindow columns(strip.column + w, 3, STRIDE, strip.pad_w(), s.W);
                means.lane[w] = T(sum[w][k] / avg_divisor<C>(window, columns, how));
            }
            strip.store(out, y + k, means);
        }
    });
}
