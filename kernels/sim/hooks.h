// The functions that the compiler calls in a checked or profiled kernel: before each access
// (-fsanitize=thread), and when an alignment, an index into an array of known size, or integer arithmetic is
// wrong (-fsanitize=alignment,...).
//
// Their names and arguments are those of the sanitizers' runtimes, which are not linked. Atomic operations
// come here instead of being done in the kernel, so here they are done.
#pragma once
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

namespace {

// A library's initialisation comes here too, outside of any launch.
inline void watch(const void* address, size_t bytes, Kind kind, const void* return_address) {
    if (worker) worker->access(reinterpret_cast<uintptr_t>(address), bytes, kind, return_address);
}

__attribute__((format(printf, 1, 2))) void sim_fail_access(const char* format, ...) {
    if (!worker) return;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    worker->fail_access(text);
}

inline void watch_atomic(const volatile void* address, size_t bytes, Kind kind, const void* return_address) {
    if (worker) worker->atomic();
    watch(const_cast<const void*>(address), bytes, kind, return_address);
}

// atomicCAS is the one atomic operation that asks for sequential consistency (atomics.h).
Kind update_kind(int order) { return order == __ATOMIC_SEQ_CST ? Kind::COMPARE_AND_SWAP : Kind::ATOMIC_UPDATE; }

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

}  // namespace

#define HERE __builtin_return_address(0)

#pragma GCC visibility push(default)
extern "C" {

#define SIM_ACCESS_HOOKS(bytes)                                                                        \
    void __tsan_read##bytes(void* address) { watch(address, bytes, Kind::LOAD, HERE); }                \
    void __tsan_write##bytes(void* address) { watch(address, bytes, Kind::STORE, HERE); }              \
    void __tsan_unaligned_read##bytes(void* address) { watch(address, bytes, Kind::LOAD, HERE); }      \
    void __tsan_unaligned_write##bytes(void* address) { watch(address, bytes, Kind::STORE, HERE); }    \
    void __tsan_read_write##bytes(void* address) { watch(address, bytes, Kind::STORE, HERE); }         \
    void __tsan_unaligned_read_write##bytes(void* address) { watch(address, bytes, Kind::STORE, HERE); }
SIM_ACCESS_HOOKS(1)
SIM_ACCESS_HOOKS(2)
SIM_ACCESS_HOOKS(4)
SIM_ACCESS_HOOKS(8)
SIM_ACCESS_HOOKS(16)
#undef SIM_ACCESS_HOOKS

void __tsan_read_range(void* address, size_t bytes) { watch(address, bytes, Kind::LOAD, HERE); }
void __tsan_write_range(void* address, size_t bytes) { watch(address, bytes, Kind::STORE, HERE); }

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    watch(from, bytes, Kind::LOAD, HERE);
    watch(to, bytes, Kind::STORE, HERE);
    return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    watch(from, bytes, Kind::LOAD, HERE);
    watch(to, bytes, Kind::STORE, HERE);
    return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    watch(to, bytes, Kind::STORE, HERE);
    return memset(to, value, bytes);
}

#define SIM_ATOMIC_HOOKS(bits)                                                                                 \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile uint##bits##_t* address, int) {                   \
        watch_atomic(address, bits / 8, Kind::ATOMIC_LOAD, HERE);                                              \
        return __atomic_load_n(address, __ATOMIC_SEQ_CST);                                                     \
    }                                                                                                          \
    uint##bits##_t __tsan_atomic##bits##_exchange(volatile uint##bits##_t* address, uint##bits##_t value, int) { \
        watch_atomic(address, bits / 8, Kind::ATOMIC_STORE, HERE);                                             \
        return __atomic_exchange_n(address, value, __ATOMIC_SEQ_CST);                                          \
    }                                                                                                          \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile uint##bits##_t* address, uint##bits##_t* old,   \
                                                      uint##bits##_t desired, int order, int) {                \
        watch_atomic(address, bits / 8, update_kind(order), HERE);                                             \
        return __atomic_compare_exchange_n(address, old, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);  \
    }                                                                                                          \
    /* clang++ asks for this one. */                                                                           \
    uint##bits##_t __tsan_atomic##bits##_compare_exchange_val(                                                 \
        volatile uint##bits##_t* address, uint##bits##_t old, uint##bits##_t desired, int order, int) {        \
        watch_atomic(address, bits / 8, update_kind(order), HERE);                                             \
        __atomic_compare_exchange_n(address, &old, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);        \
        return old;                                                                                            \
    }
SIM_ATOMIC_HOOKS(8)
SIM_ATOMIC_HOOKS(16)
SIM_ATOMIC_HOOKS(32)
SIM_ATOMIC_HOOKS(64)
#undef SIM_ATOMIC_HOOKS

void __tsan_atomic_thread_fence(int) { worker->fence(); }

void __sanitizer_cov_trace_pc() {
    if (worker) worker->enter(HERE);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

// ---- alignment and indices, as -fsanitize=undefined reports them ------------------------------------------------

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
struct TypeDescriptor {
    uint16_t kind, info;
    char name[1];  // in quotes: 'float [32]'
};
struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    unsigned char log_alignment, check;
};
struct OutOfBounds {
    SourceLocation location;
    const TypeDescriptor *array, *index;
};
struct Overflow {
    SourceLocation location;
    const TypeDescriptor* type;
};
struct Shift {
    SourceLocation location;
    const TypeDescriptor *left, *right;
};

// The value of an integer as the compiler passes it: in the argument itself, or if it is wider, by its address.
long long value_of(const TypeDescriptor* type, uintptr_t value) {
    const unsigned bits = 1u << (type->info >> 1);
    const bool is_signed = type->info & 1;
    return is_signed && bits < 64 ? (long long)(value << (64 - bits)) >> (64 - bits) : (long long)value;
}

void fail_overflow(const Overflow* data, uintptr_t left, const char* operation, uintptr_t right) {
    sim_fail_access("%lld %s %lld overflows the type %s at %s:%u: compute it in long long, as sizes and offsets may "
                    "have more than 31 bits",
                    value_of(data->type, left), operation, value_of(data->type, right), data->type->name,
                    base_name(data->location.file), data->location.line);
}

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
    const size_t alignment = size_t(1) << data->log_alignment;
    sim_fail_access("takes %s for a %s at %s:%u, but its address is %zu bytes past a multiple of %zu: start and step "
                    "by whole vectors, or access the elements one by one",
                    worker ? worker->name_of(address) : "", data->type->name, base_name(data->location.file),
                    data->location.line, size_t(address % alignment), alignment);
}

void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
    sim_fail_access("index %lld is outside of the type %s at %s:%u: compare it with the array's size before the access",
                    value_of(data->index, index), data->array->name, base_name(data->location.file),
                    data->location.line);
}

void __ubsan_handle_add_overflow(Overflow* data, uintptr_t left, uintptr_t right) {
    fail_overflow(data, left, "+", right);
}
void __ubsan_handle_sub_overflow(Overflow* data, uintptr_t left, uintptr_t right) {
    fail_overflow(data, left, "-", right);
}
void __ubsan_handle_mul_overflow(Overflow* data, uintptr_t left, uintptr_t right) {
    fail_overflow(data, left, "*", right);
}
void __ubsan_handle_negate_overflow(Overflow* data, uintptr_t value) { fail_overflow(data, 0, "-", value); }

void __ubsan_handle_divrem_overflow(Overflow* data, uintptr_t left, uintptr_t right) {
    if (value_of(data->type, right)) return fail_overflow(data, left, "/", right);
    sim_fail_access("divides %lld by zero at %s:%u", value_of(data->type, left), base_name(data->location.file),
                    data->location.line);
}

void __ubsan_handle_shift_out_of_bounds(Shift* data, uintptr_t, uintptr_t right) {
    sim_fail_access("shifts a %s by %lld bits at %s:%u", data->left->name, value_of(data->right, right),
                    base_name(data->location.file), data->location.line);
}
}
#pragma GCC visibility pop
#undef HERE
