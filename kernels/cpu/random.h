/* Random numbers and dropout of random.pyx, a template: the including file defines
 *   REAL      the element type,
 *   NAME(f)   the name of f for this type: f_f32 or f_f64.
 *
 * Each function works on the elements [begin, end) of an array, begin being a multiple of PHILOX_WORDS. The
 * words of a stretch are made first, then used: two loops that the compiler turns into vectors.
 */

#define WORDS_OF_ONE (int)(sizeof(REAL) / 4) /* that an element takes */
#define STRETCH (PHILOX_WORDS / WORDS_OF_ONE)

MAYBE_UNUSED void NAME(uniform_array)(
    REAL *out, ptrdiff_t begin, ptrdiff_t end, uint64_t seed, uint64_t offset
) {
    uint32_t words[PHILOX_WORDS];
    for (ptrdiff_t first = begin; first < end; first += STRETCH) {
        philox_stretch(words, (uint64_t)first * WORDS_OF_ONE / 4, seed, offset);
        ptrdiff_t count = end - first < STRETCH ? end - first : STRETCH;
        for (ptrdiff_t i = 0; i < count; i++) out[first + i] = NAME(unit)(words + WORDS_OF_ONE * i);
    }
}

MAYBE_UNUSED void NAME(normal_array)(
    REAL *out, ptrdiff_t begin, ptrdiff_t end, uint64_t seed, uint64_t offset
) {
    uint32_t words[PHILOX_WORDS];
    REAL values[STRETCH];
    for (ptrdiff_t first = begin; first < end; first += STRETCH) {
        philox_stretch(words, (uint64_t)first * WORDS_OF_ONE / 4, seed, offset);
        ptrdiff_t count = end - first < STRETCH ? end - first : STRETCH;
        ptrdiff_t pairs = (count + 1) / 2; /* of the last, one number may be left over */
        for (ptrdiff_t i = 0; i < pairs; i++) NAME(box_muller)(values + 2 * i, words + 2 * WORDS_OF_ONE * i);
        memcpy(out + first, values, (size_t)count * sizeof(REAL));
    }
}

/* What is dropped is multiplied by 0: a NaN or an infinity stays visible, as NaN. */
MAYBE_UNUSED void NAME(dropout_array)(
    REAL *out, const REAL *x, ptrdiff_t begin, ptrdiff_t end, uint32_t threshold, double scale, uint64_t seed,
    uint64_t offset
) {
    uint32_t words[PHILOX_WORDS];
    const REAL factor = (REAL)scale;
    for (ptrdiff_t first = begin; first < end; first += PHILOX_WORDS) {
        philox_stretch(words, (uint64_t)first / 4, seed, offset);
        ptrdiff_t count = end - first < PHILOX_WORDS ? end - first : PHILOX_WORDS;
        for (ptrdiff_t i = 0; i < count; i++)
            out[first + i] = x[first + i] * (words[i] < threshold ? 0 : factor);
    }
}

#undef WORDS_OF_ONE
#undef STRETCH
#undef REAL
#undef NAME
