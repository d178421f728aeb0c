// One step of an optimizer for many parameters, in one launch: the formulas of optim.cu. And the norm of many
// gradients, by which they are clipped.
//
// A network has dozens of parameters, most of them small. A launch for each takes longer than its work, and
// does not fill the card. Here the blocks of all parameters form one grid, and a block finds its parameter by
// a binary search in a table. The table comes with the launch, as a kernel parameter: it lies in constant
// memory, and needs no copy to the card, though the gradients are other arrays in every step.
//
// Grid: x = the blocks of all parameters, one parameter after the other; each has those of optim.cu.

#include "optim.cuh"
#include "rows.cuh"

// Up to 64 parameters: where they, their gradients and what is remembered of them begin, how many elements
// they have, and how many blocks come before theirs. Kernel parameters have room for 4 KB.
struct Tensors {
    unsigned long long param[64];
    unsigned long long grad[64];
    unsigned long long state[64];
    unsigned long long other_state[64];
    long long size[64];
    long long blocks_before[64];
    int count;
};

// Which parameter this block belongs to: the last whose blocks do not all come later.
__device__ __forceinline__ int parameter_of_block(const Tensors& tensors) {
    int low = 0, high = tensors.count - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (tensors.blocks_before[middle] <= blockIdx.x)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// Updates this block's elements. The states are the columns of the table that hold them.
template <typename T, typename Update, typename... Column>
__device__ __forceinline__ void update_tensors(
    const Tensors& tensors, Update update, const Column&... states
) {
    const int i = parameter_of_block(tensors);
    update_block(
        blockIdx.x - tensors.blocks_before[i], reinterpret_cast<T*>(tensors.param[i]),
        reinterpret_cast<const T*>(tensors.grad[i]), tensors.size[i], update,
        reinterpret_cast<T*>(states[i])...
    );
}

// `first` is the first parameter: it tells the type, and where all of them live.
template <typename T>
__global__ void __launch_bounds__(THREADS) sgd_steps(
    const T* first, Tensors tensors, double lr, double weight_decay, const double* live
) {
    const Sgd<Computed<T>> update(live, lr, weight_decay);
    update_tensors<T>(tensors, update);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) momentum_steps(
    const T* first, Tensors tensors, double lr, double momentum, double new_share, double weight_decay,
    bool nesterov, const double* live, const double* live_momentum
) {
    const Momentum<Computed<T>> update(live, live_momentum, lr, momentum, new_share, weight_decay, nesterov);
    update_tensors<T>(tensors, update, tensors.state);
}

template <typename T>
__global__ void __launch_bounds__(THREADS) adam_steps(
    const T* first, Tensors tensors, double new1, double beta2, double new2, double eps, double shrink, double l2,
    double step_size, double sqrt_correction, const double* live
) {
    const Adam<Computed<T>> update(live, new1, beta2, new2, eps, shrink, l2, step_size, sqrt_correction);
    update_tensors<T>(tensors, update, tensors.state, tensors.other_state);
}

// ---- the norm of all gradients ----
//
// Of the table, only the gradients are used. A block has `length` elements of a gradient, so many that there are few
// blocks: what each leaves for the norm, all of the second launch read.

// Calls function(element) for this block's elements of its gradient, by vectors where they fit; WRITES stores
// what it makes of them.
template <bool WRITES, typename T, typename Function>
__device__ __forceinline__ void for_each_of_gradient(const Tensors& tensors, long long length, Function function) {
    constexpr int N = 16 / sizeof(T);
    const int tensor = parameter_of_block(tensors);
    T* grad = reinterpret_cast<T*>(tensors.grad[tensor]);
    const long long n = tensors.size[tensor], first = (blockIdx.x - tensors.blocks_before[tensor]) * length;
    const long long last = first + length < n ? first + length : n;
    for (long long begin = first; begin < last; begin += THREADS * N) {
        if (begin + THREADS * N <= last && aligned<N>(grad)) {
            Vector<T, N> vector = load_vector<N>(grad + begin + threadIdx.x * N);
#pragma unroll
            for (int k = 0; k < N; k++) function(vector.lane[k]);
            if constexpr (WRITES) store_vector(grad + begin + threadIdx.x * N, vector);
            continue;
        }
        for (long long i = begin + threadIdx.x; i < begin + THREADS * N && i < last; i += THREADS) {
            T element = grad[i];
            function(element);
            if constexpr (WRITES) grad[i] = element;
        }
    }
}

// partial[block] = the sum of the squares of the block's elements.
template <typename T>
__global__ void __launch_bounds__(THREADS) squares_of_gradients(T* partial, Tensors tensors, long long length) {
    T sum = 0;
    for_each_of_gradient<false, T>(tensors, length, [&](T element) { sum += element * element; });
    sum = across_block<SUM>(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm[0] = the root of the sum of all partial sums, which each block finds for itself; and every gradient times
// max_norm / norm where that is below 1. Nothing of it waits for the host.
template <typename T>
__global__ void __launch_bounds__(THREADS) clip_gradients(
    T* norm, const T* partial, Tensors tensors, long long length, int parts, T max_norm
) {
    T sum = 0;
    for (int i = threadIdx.x; i < parts; i += THREADS) sum += partial[i];
    const T total = sqrt(across_block<SUM>(sum)), factor = max_norm / (total + T(1e-6));
    if (blockIdx.x == 0 && threadIdx.x == 0) norm[0] = total;
    if (factor >= 1) return;  // not where it is NaN, as the gradients then become
    for_each_of_gradient<true, T>(tensors, length, [&](T& element) { element *= factor; });
}
