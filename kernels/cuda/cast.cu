// out[i] = x[i], converted between float32, float16 and bfloat16: to nearest, ties to even.
//
// Both arrays are contiguous, of n elements of two different types; they may start anywhere.
//
// There is one rung, vectorized. A float32 and a 16-bit number are 6 bytes for one instruction: the kernel runs
// at the speed of memory, and all it can do is to move vectors. A thread takes four neighbours, so that a
// float32 vector has 16 bytes and a 16-bit one 8, and in both arrays a warp's accesses are one run without gaps.
//
// Grid: x = n / (THREADS * N) blocks, rounded up.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
constexpr int N = 4;

template <typename To, typename From>
__global__ void __launch_bounds__(THREADS) cast(To* out, const From* x, long long n) {
    const long long begin = (long long)blockIdx.x * (THREADS * N);
    if (begin + THREADS * N <= n && aligned<N>(out) && aligned<N>(x)) {
        const long long i = begin + threadIdx.x * N;
        const Vector<From, N> from = load_vector<N>(x + i);
        Vector<To, N> to;
#pragma unroll
        for (int k = 0; k < N; k++) to.lane[k] = To(float(from.lane[k]));
        store_vector(out + i, to);
        return;
    }
    for (long long i = begin + threadIdx.x; i < begin + THREADS * N && i < n; i += THREADS)
        out[i] = To(float(x[i]));
}
