// Atomic operations and fences. Blocks may run on several of the CPU's cores, so they are truly atomic.
//
// Each has the variants _block and _system, which say who must see it as atomic; here it is the same. All are
// inlined, so that the line of a checked access is that of the kernel.
#pragma once
#include <type_traits>

namespace sim {

// Replaces *address by update(*address); returns the old value.
template <class T, class Update>
__forceinline__ T atomic_update(T* address, Update update) {
    T old, desired;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        desired = update(old);
    } while (!__atomic_compare_exchange(address, &old, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

// The card adds integers, floats, and the 16-bit floats with their pairs; all else it has for integers only.
template <class T>
constexpr bool can_add = sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8;
template <class T>
constexpr bool is_integer = std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);
template <class T>
constexpr bool is_unsigned = std::is_same_v<T, unsigned>;
template <class T>
constexpr bool can_exchange = is_integer<T> || std::is_same_v<T, float>;

}  // namespace sim

// The second argument takes no part in the deduction of T: atomicAdd(&counter, 1) works for any counter.
#define SIM_ATOMIC_NAME(name, types, expression)                                    \
    template <class T>                                                              \
        requires(sim::types<T>)                                                     \
    __forceinline__ T name(T* address, std::type_identity_t<T> value) {                             \
        return sim::atomic_update(address, [=](T old) -> T { return expression; }); \
    }
#define SIM_ATOMIC(name, types, expression)             \
    SIM_ATOMIC_NAME(name, types, expression)            \
    SIM_ATOMIC_NAME(name##_block, types, expression)    \
    SIM_ATOMIC_NAME(name##_system, types, expression)

SIM_ATOMIC(atomicAdd, can_add, old + value)
SIM_ATOMIC(atomicSub, is_integer, old - value)
SIM_ATOMIC(atomicMax, is_integer, old < value ? value : old)
SIM_ATOMIC(atomicMin, is_integer, value < old ? value : old)
SIM_ATOMIC(atomicAnd, is_integer, old & value)
SIM_ATOMIC(atomicOr, is_integer, old | value)
SIM_ATOMIC(atomicXor, is_integer, old ^ value)
SIM_ATOMIC(atomicInc, is_unsigned, old >= value ? 0 : old + 1)
SIM_ATOMIC(atomicDec, is_unsigned, old == 0 || old > value ? value : old - 1)
#undef SIM_ATOMIC

// The old value is not looked at: memory that nothing has written may be given its first value.
#define SIM_ATOMIC_EXCHANGE(name)                                   \
    template <class T>                                              \
        requires(sim::can_exchange<T>)                              \
    __forceinline__ T name(T* address, std::type_identity_t<T> value) {             \
        T old;                                                      \
        __atomic_exchange(address, &value, &old, __ATOMIC_RELAXED); \
        return old;                                                 \
    }
SIM_ATOMIC_EXCHANGE(atomicExch)
SIM_ATOMIC_EXCHANGE(atomicExch_block)
SIM_ATOMIC_EXCHANGE(atomicExch_system)
#undef SIM_ATOMIC_EXCHANGE
#undef SIM_ATOMIC_NAME

template <class T>
    requires(std::is_integral_v<T> && sizeof(T) >= 2)
__forceinline__ T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
    T old = compare;
    // The order tells the checks (hooks.h) that this is no step of atomic_update.
    __atomic_compare_exchange(address, &old, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    return old;
}
template <class T>
__forceinline__ T atomicCAS_block(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
    return atomicCAS(address, compare, value);
}
template <class T>
__forceinline__ T atomicCAS_system(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
    return atomicCAS(address, compare, value);
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
