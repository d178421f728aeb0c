// Vectors of 16 bytes, the most that a thread loads or stores at once: four floats or two doubles.
#pragma once

template <typename T>
struct alignas(16) Vector {
    static constexpr int LENGTH = 16 / sizeof(T);
    T of[LENGTH];
};

// The vector that starts at `from`, in global or in shared memory: one load.
template <typename T>
__device__ __forceinline__ Vector<T> load_vector(const T* from) {
    return *reinterpret_cast<const Vector<T>*>(from);
}

// One store, for a vector that was loaded as one.
template <typename T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T>& vector) {
    *reinterpret_cast<Vector<T>*>(to) = vector;
}

// One store to global memory, for a vector put together of results: nvcc would make it a store for each
// element, so that the instruction is spelled out.
__device__ __forceinline__ void store_results(float* to, const Vector<float>& vector) {
#ifdef MINIGRAD_SIM
    store_vector(to, vector);
#else
    asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "f"(vector.of[0]), "f"(vector.of[1]), "f"(vector.of[2]), "f"(vector.of[3])
                 : "memory");
#endif
}

__device__ __forceinline__ void store_results(double* to, const Vector<double>& vector) {
#ifdef MINIGRAD_SIM
    store_vector(to, vector);
#else
    asm volatile("st.global.v2.f64 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)),
                 "d"(vector.of[0]), "d"(vector.of[1])
                 : "memory");
#endif
}
