// example_op: out[i] = sqrt(x[i]^2 + y[i]^2 + epsilon), for n elements. T is float or double.

// One thread for each element. Three arrays pass through memory once, and each element
// takes five operations: the memory is what limits it.
template <typename T>
__global__ void example_op_kernel(
    T* out, const T* x, const T* y, T epsilon, long long n
) {
    long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = sqrt(x[i] * x[i] + y[i] * y[i] + epsilon);
}
