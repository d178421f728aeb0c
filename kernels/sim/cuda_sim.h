// CUDA C++ for the CPU: what a .cu file needs to compile as C++20 and run on the simulator.
//
// Each CUDA thread runs on a fiber (a stack of its own) until it reaches a barrier or a warp operation, or
// ends; then the next one runs. See runtime.cpp. Beside these headers, one thing is done to a source before
// it is compiled (translate.py): C++ has no word for `__shared__` variables, so their declarations become
// references into the block's shared memory.
//
// MINIGRAD_SIM is defined, for device functions that need a plain C++ twin of their PTX.
#pragma once
#define MINIGRAD_SIM 1
// Of libstdc++'s <math.h>, leaves out C++17's special functions (std::riemann_zeta): CUDA has none of them, and each
// kernel's compilation would make their templates anew, precompiled header or not.
#define _GLIBCXX_BITS_SPECFUN_H 1
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <type_traits>

#include "assert.h"
#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (sim_this_thread()->thread_index)
#define blockIdx (sim_this_thread()->block_index)
#define blockDim (sim_this_thread()->block_size)
#define gridDim (sim_this_thread()->grid_size)
#define warpSize 32

#include "atomics.h"
#include "device_math.h"
#include "vector_types.h"
#include "warp.h"

// The place of the caller: default arguments are evaluated where the call stands.
inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    sim::Place place = {"__syncthreads()", file, line};
    sim_block_barrier(&place);
}

// The number of the block's threads for which the predicate holds, whether it holds for all, and for any. They
// meet at a counter in the block's shared memory.
inline int __syncthreads_count(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE());
inline int __syncthreads_and(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return __syncthreads_count(!predicate, file, line) == 0;
}
inline int __syncthreads_or(int predicate, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return __syncthreads_count(predicate, file, line) != 0;
}

#define printf(...) sim_print(__VA_ARGS__)

// Nanoseconds stand for the card's clock cycles.
inline unsigned long long __globaltimer() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}
inline long long clock64() { return (long long)__globaltimer(); }
inline void __nanosleep(unsigned) {}

// An address in shared memory is the pointer itself: keep it in a size_t.
inline size_t __cvta_generic_to_shared(const void* pointer) { return reinterpret_cast<size_t>(pointer); }
inline void* __cvta_shared_to_generic(size_t address) { return reinterpret_cast<void*>(address); }

[[noreturn]] inline void __trap(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    sim_fail("__trap() at %s:%d", file, line);
}

namespace sim {

// Static shared variables are laid out one after the other, in the order in which they are first met. The
// lower half counts their bytes, the upper half the variables.
inline uint64_t static_shared_used = 0;

template <class T>
SharedVariable reserve_static_shared(const char* name) {
    constexpr uint64_t alignment = alignof(T) < 16 ? 16 : alignof(T);
    uint64_t used = static_shared_used, offset, number;
    do {
        offset = ((used & 0xFFFFFFFF) + alignment - 1) / alignment * alignment;
        number = used >> 32;
    } while (!__atomic_compare_exchange_n(&static_shared_used, &used, (number + 1) << 32 | (offset + sizeof(T)),
                                          false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return {name, sizeof(T), sizeof(std::remove_all_extents_t<T>), offset, number};
}

// The shared variable that was declared as number Id in the source, in the running block's memory.
template <class T, int Id>
T& static_shared(const char* name) {
    static const SharedVariable variable = reserve_static_shared<T>(name);
    return *static_cast<T*>(sim_static_shared(&variable));
}

// `extern __shared__ T name[]`: all such arrays start where the dynamic shared memory does.
template <class T>
T* dynamic_shared(const char* name) {
    return static_cast<T*>(sim_dynamic_shared(name, sizeof(T)));
}

inline void block_barrier(const char* what, const char* file, int line) {
    Place place = {what, file, line};
    sim_block_barrier(&place);
}

// Arguments arrive one after the other, each in the next multiple of 16 bytes.
template <class T>
T take(const unsigned char*& at) {
    T value;
    memcpy(&value, at, sizeof value);
    at += (sizeof value + 15) / 16 * 16;
    return value;
}

template <class... Parameters>
struct Call {
    Call(void (*kernel)(Parameters...), Parameters... arguments) { kernel(arguments...); }
};

template <class... Parameters>
void call(void (*kernel)(Parameters...), const unsigned char* arguments) {
    // Braces, unlike parentheses, evaluate their parts from left to right.
    Call<Parameters...>{kernel, take<std::remove_cv_t<Parameters>>(arguments)...};
}

}  // namespace sim

inline int __syncthreads_count(int predicate, const char* file, int line) {
    int& count = sim::static_shared<int, -1>("the count of __syncthreads_count()");
    const auto wait = [=] { sim::block_barrier("__syncthreads_count()", file, line); };
    wait();  // all have read the count of the last call
    atomicExch(&count, 0);
    wait();
    if (predicate) atomicAdd(&count, 1);
    wait();
    return count;
}

// Ends a translated source: makes the kernel callable by the runtime.
#define SIM_ENTRY(...)                                                                                    \
    extern "C" __attribute__((visibility("default"))) void sim_entry(const unsigned char* arguments) { \
        sim::call(__VA_ARGS__, arguments);                                                             \
    }

// The same for a kernel's __launch_bounds__: the most threads that a block may have.
#define SIM_MAX_THREADS(...) \
    extern "C" __attribute__((visibility("default"))) unsigned sim_max_threads() { return __VA_ARGS__; }

// And for its __cluster_dims__: how many blocks run together, if they are neighbours along x.
#define SIM_CLUSTER(...)                                                             \
    extern "C" __attribute__((visibility("default"))) unsigned sim_cluster() {      \
        constexpr dim3 blocks(__VA_ARGS__);                                          \
        static_assert(blocks.y == 1 && blocks.z == 1, "the simulator's clusters lie along x"); \
        return blocks.x;                                                             \
    }
