// grad[i] *= inverse, and *found = 1 if any grad[i] is infinite or NaN: what undoes the scale of a loss.
//
// grad is contiguous, of n elements, and may start anywhere. Many threads may set the flag: an atomic operation
// on an integer, whose result does not depend on their order.
//
// There is one rung, fused: one pass over memory, 8 bytes in float32 for two operations.
//
// Grid: x = n / (THREADS * N) blocks, rounded up, with N = 16 / sizeof(T).
#include "common.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;

template <typename T>
__global__ void __launch_bounds__(THREADS) unscale(T* grad, long long n, T inverse, int* found) {
    constexpr int N = 16 / sizeof(T);
    const long long begin = (long long)blockIdx.x * (THREADS * N);
    bool finite = true;
    if (begin + THREADS * N <= n && aligned<N>(grad)) {
        T* const own = grad + begin + threadIdx.x * N;
        Vector<T, N> g = load_vector<N>(own);
#pragma unroll
        for (int k = 0; k < N; k++) {
            finite = finite && isfinite(g.lane[k]);
            g.lane[k] *= inverse;
        }
        store_vector(own, g);
    } else {
        for (long long i = begin + threadIdx.x; i < begin + THREADS * N && i < n; i += THREADS) {
            finite = finite && isfinite(grad[i]);
            grad[i] *= inverse;
        }
    }
    if (!finite) atomicOr(found, 1);
}
