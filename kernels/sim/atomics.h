// Atomic operations and fences. Blocks may run on several of the CPU's cores, so they are truly atomic.
#pragma once

namespace sim {

// Replaces *address by update(*address); returns the old value.
template <class T, class Update>
T atomic_update(T* address, Update update) {
    T old, desired;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        desired = update(old);
    } while (!__atomic_compare_exchange(address, &old, &desired, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

// The second argument takes no part in the deduction of T: atomicAdd(&counter, 1) works for any counter.
template <class T>
struct Same {
    using Type = T;
};

}  // namespace sim

#define SIM_ATOMIC(name, expression)                                             \
    template <class T>                                                           \
    T name(T* address, typename sim::Same<T>::Type value) {                      \
        return sim::atomic_update(address, [=](T old) -> T { return expression; }); \
    }

SIM_ATOMIC(atomicAdd, old + value)
SIM_ATOMIC(atomicSub, old - value)
SIM_ATOMIC(atomicMax, old < value ? value : old)
SIM_ATOMIC(atomicMin, value < old ? value : old)
SIM_ATOMIC(atomicAnd, old & value)
SIM_ATOMIC(atomicOr, old | value)
SIM_ATOMIC(atomicXor, old ^ value)
SIM_ATOMIC(atomicExch, ((void)old, value))
SIM_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef SIM_ATOMIC

template <class T>
T atomicCAS(T* address, typename sim::Same<T>::Type compare, typename sim::Same<T>::Type value) {
    T old = compare;
    // The order tells the checks (hooks.h) that this is no step of atomic_update.
    __atomic_compare_exchange(address, &old, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    return old;
}

inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
