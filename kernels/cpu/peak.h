/* What a core can do at most: chains of multiply-adds in registers, and reading and writing long arrays.
 *
 * fma_chains(steps, start): CHAINS independent vectors, each replaced `steps` times by x * FACTOR + TERM. No
 * memory is touched. A unit that takes a new multiply-add every cycle and needs 4 or 5 cycles for one is kept
 * busy by as many chains; two or four such units need two or four times as many. The value stays near 1.
 * Where the level has no fused multiply-add, the compiler makes a multiplication and an addition of it.
 *
 * read_f32(x, n): the sum of n floats, in as many vectors as hide the additions behind the loads.
 * triad_f32(out, a, b, n): out = a + 3 b, the "triad" of McCalpin's STREAM benchmark.
 */
#ifndef MINIGRAD_PEAK_H
#define MINIGRAD_PEAK_H

#include "vector.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define CHAINS 24 /* of 32 registers */
#else
#define CHAINS 12 /* of 16 registers */
#endif

#define FACTOR 0.999f
#define TERM 0.001f

static float fma_chains(ptrdiff_t steps, float start) {
    f32v chain[CHAINS], total = {0};
    UNROLL
    for (int c = 0; c < CHAINS; c++) chain[c] = (f32v){0} + (start + 0.01f * c);
    const f32v factor = (f32v){0} + FACTOR, term = (f32v){0} + TERM;
    for (ptrdiff_t step = 0; step < steps; step++) {
        UNROLL
        for (int c = 0; c < CHAINS; c++) chain[c] = chain[c] * factor + term;
    }
    UNROLL
    for (int c = 0; c < CHAINS; c++) total += chain[c]; /* so that no chain can be left out */
    float sum = 0;
    for (int lane = 0; lane < F32_LANES; lane++) sum += total[lane];
    return sum;
}

static float read_f32(const float *x, ptrdiff_t n) {
    enum { SUMS = 8 };
    f32v sums[SUMS] = {{0}};
    float sum = 0;
    ptrdiff_t i = 0;
    for (; i + SUMS * F32_LANES <= n; i += SUMS * F32_LANES) {
        UNROLL
        for (int s = 0; s < SUMS; s++) sums[s] += *(const f32v_u *)(x + i + s * F32_LANES);
    }
    for (; i < n; i++) sum += x[i];
    for (int s = 0; s < SUMS; s++)
        for (int lane = 0; lane < F32_LANES; lane++) sum += sums[s][lane];
    return sum;
}

static void triad_f32(float *out, const float *a, const float *b, ptrdiff_t n) {
    ptrdiff_t i = 0;
    for (; i + F32_LANES <= n; i += F32_LANES)
        *(f32v_u *)(out + i) = *(const f32v_u *)(a + i) + 3.0f * *(const f32v_u *)(b + i);
    for (; i < n; i++) out[i] = a[i] + 3.0f * b[i];
}

#endif
