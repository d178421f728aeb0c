// Arrays read and written several elements at a time: up to 16 bytes, the most that one instruction moves.
#pragma once

// N neighbours in memory, moved by one load or store: by default four floats or two doubles.
template <typename T, int N = 16 / sizeof(T)>
struct alignas(sizeof(T) * N) Vector {
    static constexpr int LENGTH = N;
    T lane[N];
};

// The length of a vector of 16 bytes (WIDE), or 1, where rows are not made of such vectors.
template <typename T, bool WIDE>
constexpr int WIDTH_OF = WIDE ? Vector<T>::LENGTH : 1;

// Whether a vector may start at `data`.
template <int N, typename T>
__device__ __forceinline__ bool aligned(const T* data) {
    return reinterpret_cast<unsigned long long>(data) % sizeof(Vector<T, N>) == 0;
}

// The vector that starts at `from`, in global or in shared memory; more than 16 bytes by several loads.
template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load_vector(const T* from) {
    constexpr int PART = Vector<T>::LENGTH;
    if constexpr (N <= PART) {
        return *reinterpret_cast<const Vector<T, N>*>(from);
    } else {
        Vector<T, N> vector;
#pragma unroll
        for (int begin = 0; begin < N; begin += PART) {
            const Vector<T> part = *reinterpret_cast<const Vector<T>*>(from + begin);
#pragma unroll
            for (int k = 0; k < PART; k++) vector.lane[begin + k] = part.lane[k];
        }
        return vector;
    }
}

template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* from) {
    return load_vector<Vector<T>::LENGTH>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, N>& vector) {
    constexpr int PART = Vector<T>::LENGTH;
    if constexpr (N <= PART) {
        *reinterpret_cast<Vector<T, N>*>(to) = vector;
    } else {
#pragma unroll
        for (int begin = 0; begin < N; begin += PART) {
            Vector<T> part;
#pragma unroll
            for (int k = 0; k < PART; k++) part.lane[k] = vector.lane[begin + k];
            *reinterpret_cast<Vector<T>*>(to + begin) = part;
        }
    }
}

// Calls function(places) for first, first + step, ... below end, COUNT of them at a time, so that the loads of all can
// be on their way before the first is used; and for the last ones, each alone. What is stored might be what is loaded
// next, as far as the compiler knows, and of unrolled steps each asks whether it is the last one: to unroll a loop
// leaves its loads waiting for each other.
template <int COUNT, typename Function>
__device__ __forceinline__ void in_batches(long long first, long long end, int step, Function function) {
    for (; first + (COUNT - 1) * step < end; first += COUNT * step) {
        long long places[COUNT];
#pragma unroll
        for (int k = 0; k < COUNT; k++) places[k] = first + k * step;
        function(places);
    }
    for (; first < end; first += step) {
        const long long last[1] = {first};
        function(last);
    }
}

template <typename A, typename B>
constexpr bool IS_SAME = false;

template <typename A>
constexpr bool IS_SAME<A, A> = true;

// The same numbers as another type: widened, or rounded.
template <typename To, typename From, int N>
__device__ __forceinline__ Vector<To, N> converted(const Vector<From, N>& from) {
    if constexpr (IS_SAME<To, From>) {
        return from;
    } else {
        Vector<To, N> to;
#pragma unroll
        for (int k = 0; k < N; k++) to.lane[k] = To(from.lane[k]);
        return to;
    }
}

// One store to global memory, for a vector put together of results that nvcc, left to itself, makes a store for
// each of: the instruction is spelled out.
__device__ __forceinline__ void store_results(float* to, const Vector<float>& vector) {
#ifdef MINIGRAD_SIM
    store_vector(to, vector);
#else
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "f"(vector.lane[0]), "f"(vector.lane[1]), "f"(vector.lane[2]), "f"(vector.lane[3])
                 : "memory");
#endif
}

__device__ __forceinline__ void store_results(double* to, const Vector<double>& vector) {
#ifdef MINIGRAD_SIM
    store_vector(to, vector);
#else
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)),
                 "d"(vector.lane[0]), "d"(vector.lane[1])
                 : "memory");
#endif
}

template <typename T>
__device__ __forceinline__ void store_results(T* to, const Vector<T>& vector) {
    store_vector(to, vector);
}
