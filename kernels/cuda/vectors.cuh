// Arrays read and written 16 bytes at a time: as many as one instruction moves.
#pragma once

#include "common.cuh"

// N neighbours in memory, moved by one load or store.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
    T lane[N];
};

// Whether an array of vectors may start at `data`.
template <int N, typename T>
__device__ __forceinline__ bool aligned(const T* data) {
    return reinterpret_cast<unsigned long long>(data) % sizeof(Vector<T, N>) == 0;
}

template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load_vector(const T* data) {
    return *reinterpret_cast<const Vector<T, N>*>(data);
}

template <typename T, int N>
__device__ __forceinline__ void store_vector(T* data, const Vector<T, N>& vector) {
    *reinterpret_cast<Vector<T, N>*>(data) = vector;
}
