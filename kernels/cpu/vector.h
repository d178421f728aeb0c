/* Vector types of the widest registers that the instruction-set level offers.
 *
 * GCC and Clang vector extensions: `f32v` holds F32_LANES floats and takes + - * / and comparisons lane by
 * lane; a scalar operand is broadcast. `f32v_u` is the same vector at any address: read and write memory
 * through `*(f32v_u *)pointer`. By default both compilers contract `acc += x * y` to one fused multiply-add
 * where the level has it (x86-64-v3, -v4 and arm64).
 */
#ifndef MINIGRAD_VECTOR_H
#define MINIGRAD_VECTOR_H

#include <stddef.h>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16 /* SSE on x86-64-v2, NEON on arm64 */
#endif

#define F32_LANES (VECTOR_BYTES / 4)
#define F64_LANES (VECTOR_BYTES / 8)

typedef float f32v __attribute__((vector_size(VECTOR_BYTES)));
typedef double f64v __attribute__((vector_size(VECTOR_BYTES)));
typedef float f32v_u __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
typedef double f64v_u __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));

/* 128-bit vectors, which every level has: for transposing small blocks. */
typedef float f32x4 __attribute__((vector_size(16)));
typedef double f64x2 __attribute__((vector_size(16)));
typedef float f32x4_u __attribute__((vector_size(16), aligned(4), may_alias));
typedef double f64x2_u __attribute__((vector_size(16), aligned(8), may_alias));

#ifdef __AVX__ /* 256-bit ones, for two such blocks at a time */
typedef float f32x8 __attribute__((vector_size(32)));
typedef double f64x4 __attribute__((vector_size(32)));
typedef float f32x8_u __attribute__((vector_size(32), aligned(4), may_alias));
typedef double f64x4_u __attribute__((vector_size(32), aligned(8), may_alias));
#endif

/* Write UNROLL before a loop over register arrays: its bound is known once the function is inlined, and only
 * the unrolled loop lets the compiler keep the array in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#endif

/* HOLD(v) keeps the vector v in a register: GCC else reads one that is used twice from memory twice. */
#if defined(__SSE2__)
#define HOLD(v) __asm__("" : "+x"(v))
#elif defined(__aarch64__)
#define HOLD(v) __asm__("" : "+w"(v))
#else
#define HOLD(v)
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))
#define NEVER_INLINE static __attribute__((noinline, unused))
#define MAYBE_UNUSED static __attribute__((unused))

#endif
