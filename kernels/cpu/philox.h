/* Philox4x32-10, LANES blocks at a time; kernels/philox.py says what it is and where it comes from.
 *
 * Each of a block's four words stands in the low half of a 64-bit lane, so that one multiplication gives both
 * halves of a product: the high half is shifted down, the low half is where it belongs. What is then left in
 * the upper half of a lane is ignored by the next multiplication. A round is 2 multiplications, 2 shifts and 4
 * exclusive-ors for PHILOX_LANES blocks: 80 operations, and 16 elements with AVX2 (32 with AVX-512).
 */
#ifndef MINIGRAD_PHILOX_H
#define MINIGRAD_PHILOX_H

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "vector.h"

/* INTERLEAVE_LOW and _HIGH: the lanes of a and b in turn, from the first and from the second half of each. */
#if defined(__AVX512F__)
#define PHILOX_BYTES 64
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#elif defined(__AVX2__)
#define PHILOX_BYTES 32
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 4, 1, 5)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 2, 6, 3, 7)
#else
#define PHILOX_BYTES 16
#define INTERLEAVE_LOW(a, b) __builtin_shufflevector(a, b, 0, 2)
#define INTERLEAVE_HIGH(a, b) __builtin_shufflevector(a, b, 1, 3)
#endif
#define PHILOX_LANES (PHILOX_BYTES / 8)

typedef uint64_t u64v __attribute__((vector_size(PHILOX_BYTES)));
typedef uint64_t u64v_u __attribute__((vector_size(PHILOX_BYTES), aligned(4), may_alias));

/* The products of the lanes' low halves. */
ALWAYS_INLINE u64v multiply_low(u64v a, uint32_t b) {
#if defined(__AVX512F__)
    return (u64v)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
    return (u64v)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#elif defined(__SSE2__)
    return (u64v)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(b));
#else
    return (a & 0xFFFFFFFF) * (uint64_t)b;
#endif
}

/* The 4 * PHILOX_LANES words of the blocks from `block` on. */
ALWAYS_INLINE void philox_vector(uint32_t *words, uint64_t block, uint64_t seed, uint64_t offset) {
    u64v number;
    for (int i = 0; i < PHILOX_LANES; i++) number[i] = block + i;
    u64v c0 = number, c1 = number >> 32, c2 = (u64v){0} + offset, c3 = (u64v){0} + (offset >> 32);
    uint32_t key0 = (uint32_t)seed, key1 = (uint32_t)(seed >> 32);
    UNROLL for (int i = 0; i < 10; i++) {
        u64v p0 = multiply_low(c0, 0xD2511F53), p1 = multiply_low(c2, 0xCD9E8D57);
        c0 = (p1 >> 32) ^ c1 ^ (uint64_t)key0;
        c2 = (p0 >> 32) ^ c3 ^ (uint64_t)key1;
        c1 = p1;
        c3 = p0;
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    u64v first = (c0 & 0xFFFFFFFF) | c1 << 32, second = (c2 & 0xFFFFFFFF) | c3 << 32;
    u64v_u *out = (u64v_u *)words; /* little-endian: a lane's low word comes first */
    out[0] = INTERLEAVE_LOW(first, second);
    out[1] = INTERLEAVE_HIGH(first, second);
}

/* A stretch of a stream, small enough to stay in the L1 cache between its making and its use. */
#define PHILOX_WORDS 512

MAYBE_UNUSED void philox_stretch(uint32_t *words, uint64_t first_block, uint64_t seed, uint64_t offset) {
    for (int i = 0; i < PHILOX_WORDS / 4; i += PHILOX_LANES)
        philox_vector(words + 4 * i, first_block + i, seed, offset);
}

#endif
