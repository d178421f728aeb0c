/* Normalisation for norm.pyx, a template: the including file defines
 *   REAL, VECTOR, LANES   the element type, its vector (vector.h) and the elements in one,
 *   NAME(f)               the name of f for this type: f_f32 or f_f64.
 *
 * With mean and rstd = 1 / sqrt(variance + eps) of the elements that are normalised together, n of them:
 *   y = (x - mean) rstd weight + bias
 *   dx = rstd (a - E[a] - (x - mean) rstd^2 E[a (x - mean)]),   a = grad weight
 *   dweight = sum(grad (x - mean)) rstd,   dbias = sum(grad)
 *
 * A *run* is a stretch of contiguous elements with one weight and one bias: a channel of a sample. Its sums
 * have SUMS independent chains of LANES partial sums; what runs come together is added in double.
 */

#include "lanes.h"

#define SUMS 4

#define FOR_VECTORS(i, count, n) for (ptrdiff_t i = 0, count = (n); count > 0; i += LANES, count -= LANES)

/* ---- runs ---- */

/* The sum of term(i, count) over the vectors at i of n elements, of which `count` are left. */
#define SUM_OF_VECTORS(sum, n, term)                                                  \
    VECTOR sum = {0};                                                                 \
    {                                                                                 \
        VECTOR chains[SUMS] = {{0}};                                                  \
        ptrdiff_t i = 0, size = (n);                                                  \
        for (; i + SUMS * LANES <= size; i += SUMS * LANES)                           \
            UNROLL for (int chain = 0; chain < SUMS; chain++)                         \
                chains[chain] += term(i + chain * LANES, LANES);                      \
        for (; i < size; i += LANES) chains[0] += term(i, size - i);                  \
        sum = (chains[0] + chains[1]) + (chains[2] + chains[3]);                      \
    }

/* The block's mean first, then the deviations from it while the block is in the L1 cache. The rest of a
   vector is filled with what adds 0. */
ALWAYS_INLINE Moments NAME(block_moments)(const REAL *x, ptrdiff_t n) {
#define ELEMENT(i, count) NAME(load)(x + (i), count, 0)
    SUM_OF_VECTORS(sum, n, ELEMENT)
#undef ELEMENT
    const REAL mean = NAME(lane_sum)(sum) / (REAL)n;
#define DEVIATION(i, count) (NAME(load)(x + (i), count, mean) - mean)
#define SQUARE(i, count) DEVIATION(i, count) * DEVIATION(i, count)
    SUM_OF_VECTORS(squares, n, SQUARE)
#undef SQUARE
#undef DEVIATION
    return (Moments){(double)n, mean, NAME(lane_sum)(squares)};
}

ALWAYS_INLINE Moments NAME(run_moments)(const REAL *x, ptrdiff_t n) {
    Moments total = {0};
    for (ptrdiff_t at = 0; at < n; at += BLOCK)
        add_moments(&total, NAME(block_moments)(x + at, n - at < BLOCK ? n - at : BLOCK));
    return total;
}

ALWAYS_INLINE void NAME(normalize_run)(
    REAL *y, const REAL *x, ptrdiff_t n, REAL mean, REAL scale, REAL shift
) {
    FOR_VECTORS(i, count, n)
        NAME(store)(y + i, count, (NAME(load)(x + i, count, 0) - mean) * scale + shift);
}

/* To `sums` the sums of grad and of grad (x - mean). */
ALWAYS_INLINE void NAME(add_gradient_sums)(
    double *sums, const REAL *grad, const REAL *x, ptrdiff_t n, REAL mean
) {
    VECTOR of_grad = {0}, of_product = {0};
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        VECTOR g = NAME(load)(grad + i, n - i, 0);
        of_grad += g;
        of_product += g * (NAME(load)(x + i, n - i, mean) - mean);
    }
    sums[0] += NAME(lane_sum)(of_grad);
    sums[1] += NAME(lane_sum)(of_product);
}

/* dx = grad * scale + (x - mean) * slope + shift */
ALWAYS_INLINE void NAME(gradient_run)(
    REAL *dx, const REAL *grad, const REAL *x, ptrdiff_t n, REAL mean, REAL scale, REAL slope, REAL shift
) {
    FOR_VECTORS(i, count, n) {
        VECTOR rest = (NAME(load)(x + i, count, 0) - mean) * slope + shift;
        NAME(store)(dx + i, count, NAME(load)(grad + i, count, 0) * scale + rest);
    }
}

ALWAYS_INLINE REAL NAME(element)(const void *array, ptrdiff_t i, REAL otherwise) {
    return array ? ((const REAL *)array)[i] : otherwise;
}

/* Mean and rstd number i, as the arrays hold them. */
ALWAYS_INLINE void NAME(store_statistics)(const Norm *p, ptrdiff_t i, Moments moments) {
    ((REAL *)p->mean)[i] = (REAL)moments.mean;
    ((REAL *)p->rstd)[i] = (REAL)(1 / sqrt(moments.squares / moments.count + p->eps));
}

/* ---- layer norm: rows of `area` elements, each with a weight of its own ---- */

MAYBE_UNUSED void NAME(layer_norm_rows)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const REAL *weight = p->weight, *bias = p->bias;
    const ptrdiff_t n = p->area;
    for (ptrdiff_t row = begin; row < end; row++) {
        const REAL *x = (const REAL *)p->x + row * n;
        REAL *y = (REAL *)p->y + row * n;
        NAME(store_statistics)(p, row, NAME(run_moments)(x, n));
        const REAL mean = ((REAL *)p->mean)[row], rstd = ((REAL *)p->rstd)[row];
        FOR_VECTORS(i, count, n) {
            VECTOR normal = (NAME(load)(x + i, count, 0) - mean) * rstd;
            if (weight) normal *= NAME(load)(weight + i, count, 0);
            if (bias) normal += NAME(load)(bias + i, count, 0);
            NAME(store)(y + i, count, normal);
        }
    }
}

/* The sums over the rows for dweight and dbias are kept apart for each part: `partial` is
   (parts, 2 area + GAP), 0 at first. In dx stands a, between the two walks over a row. */
MAYBE_UNUSED void NAME(layer_norm_grad_rows)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    const REAL *weight = p->weight;
    const ptrdiff_t n = p->area;
    REAL *dweight = (REAL *)p->partial + part * (2 * n + GAP), *dbias = dweight + n;
    for (ptrdiff_t row = begin; row < end; row++) {
        const REAL *x = (const REAL *)p->x + row * n, *grad = (const REAL *)p->grad + row * n;
        REAL *dx = (REAL *)p->y + row * n;
        const REAL mean = ((REAL *)p->mean)[row], rstd = ((REAL *)p->rstd)[row];
        VECTOR of_a = {0}, of_product = {0};
        FOR_VECTORS(i, count, n) {
            VECTOR g = NAME(load)(grad + i, count, 0), a = g;
            VECTOR normal = (NAME(load)(x + i, count, mean) - mean) * rstd;
            if (weight) a *= NAME(load)(weight + i, count, 0);
            NAME(store)(dx + i, count, a);
            of_a += a;
            of_product += a * normal;
            NAME(store)(dweight + i, count, NAME(load)(dweight + i, count, 0) + g * normal);
            NAME(store)(dbias + i, count, NAME(load)(dbias + i, count, 0) + g);
        }
        const REAL average = NAME(lane_sum)(of_a) / (REAL)n, along = NAME(lane_sum)(of_product) / (REAL)n;
        FOR_VECTORS(i, count, n) {
            VECTOR normal = (NAME(load)(x + i, count, mean) - mean) * rstd;
            NAME(store)(dx + i, count, (NAME(load)(dx + i, count, 0) - average - normal * along) * rstd);
        }
    }
}

/* ---- group norm: rows of `channels` runs; a sample has `groups` rows ---- */

MAYBE_UNUSED void NAME(group_norm_rows)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const ptrdiff_t area = p->area, n = p->channels * area;
    for (ptrdiff_t row = begin; row < end; row++) {
        const REAL *x = (const REAL *)p->x + row * n;
        REAL *y = (REAL *)p->y + row * n;
        NAME(store_statistics)(p, row, NAME(run_moments)(x, n));
        const REAL mean = ((REAL *)p->mean)[row], rstd = ((REAL *)p->rstd)[row];
        for (ptrdiff_t c = 0; c < p->channels; c++, x += area, y += area) {
            const ptrdiff_t channel = row % p->groups * p->channels + c;
            const REAL scale = rstd * NAME(element)(p->weight, channel, 1);
            NAME(normalize_run)(y, x, area, mean, scale, NAME(element)(p->bias, channel, 0));
        }
    }
}

/* The two sums of each run go to `partial`, (samples, groups * channels, 2) doubles, for dweight and dbias. */
MAYBE_UNUSED void NAME(group_norm_grad_rows)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const ptrdiff_t area = p->area, channels = p->channels, n = channels * area;
    for (ptrdiff_t row = begin; row < end; row++) {
        const REAL *x = (const REAL *)p->x + row * n, *grad = (const REAL *)p->grad + row * n;
        REAL *dx = (REAL *)p->y + row * n;
        const REAL mean = ((REAL *)p->mean)[row], rstd = ((REAL *)p->rstd)[row];
        const ptrdiff_t first = row % p->groups * channels;
        double *sums = (double *)p->partial + 2 * row * channels, of_a = 0, of_product = 0;
        for (ptrdiff_t c = 0; c < channels; c++) {
            double *own = sums + 2 * c, weight = NAME(element)(p->weight, first + c, 1);
            own[0] = own[1] = 0;
            NAME(add_gradient_sums)(own, grad + c * area, x + c * area, area, mean);
            of_a += weight * own[0];
            of_product += weight * own[1];
        }
        const REAL shift = (REAL)(-rstd * of_a / (double)n);
        const REAL slope = (REAL)(-rstd * of_product / (double)n * rstd * rstd);
        for (ptrdiff_t c = 0; c < channels; c++) {
            const ptrdiff_t at = c * area;
            const REAL scale = rstd * NAME(element)(p->weight, first + c, 1);
            NAME(gradient_run)(dx + at, grad + at, x + at, area, mean, scale, slope, shift);
        }
    }
}

MAYBE_UNUSED void NAME(group_norm_parameters)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const ptrdiff_t all = p->groups * p->channels;
    for (ptrdiff_t channel = begin; channel < end; channel++) {
        double dbias = 0, dweight = 0;
        for (ptrdiff_t sample = 0; sample < p->samples; sample++) {
            const double *sums = (const double *)p->partial + 2 * (sample * all + channel);
            dbias += sums[0];
            dweight += sums[1] * ((REAL *)p->rstd)[sample * p->groups + channel / p->channels];
        }
        ((REAL *)p->dweight)[channel] = (REAL)dweight;
        ((REAL *)p->dbias)[channel] = (REAL)dbias;
    }
}

/* ---- batch norm: a channel has a run in each sample ----
 *
 * Channels are done in blocks of neighbours that lie together in memory, at most MAX_CHANNELS of them. */

#define AT(sample, channel) (((sample) * p->channels + (channel)) * p->area)

MAYBE_UNUSED void NAME(batch_norm_channels)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const REAL *x = p->x;
    REAL *y = p->y, *mean = p->mean, *rstd = p->rstd;
    for (ptrdiff_t first = begin; first < end; first += p->at_once) {
        const ptrdiff_t last = first + p->at_once < end ? first + p->at_once : end;
        Moments moments[MAX_CHANNELS] = {{0}};
        for (ptrdiff_t sample = 0; sample < p->samples; sample++)
            for (ptrdiff_t c = first; c < last; c++)
                add_moments(&moments[c - first], NAME(run_moments)(x + AT(sample, c), p->area));
        for (ptrdiff_t c = first; c < last; c++) NAME(store_statistics)(p, c, moments[c - first]);
        for (ptrdiff_t sample = 0; sample < p->samples; sample++)
            for (ptrdiff_t c = first; c < last; c++) {
                const REAL scale = rstd[c] * NAME(element)(p->weight, c, 1), shift = NAME(element)(p->bias, c, 0);
                const ptrdiff_t at = AT(sample, c);
                NAME(normalize_run)(y + at, x + at, p->area, mean[c], scale, shift);
            }
    }
}

/* Without y there is no dx, and without rstd it is left out of dweight. */
MAYBE_UNUSED void NAME(batch_norm_grad_channels)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const REAL *x = p->x, *grad = p->grad, *mean = p->mean;
    REAL *dx = p->y;
    const double n = (double)p->samples * (double)p->area;
    for (ptrdiff_t first = begin; first < end; first += p->at_once) {
        const ptrdiff_t last = first + p->at_once < end ? first + p->at_once : end;
        double sums[MAX_CHANNELS][2] = {{0}};
        for (ptrdiff_t sample = 0; sample < p->samples; sample++)
            for (ptrdiff_t c = first; c < last; c++) {
                const ptrdiff_t at = AT(sample, c);
                NAME(add_gradient_sums)(sums[c - first], grad + at, x + at, p->area, mean[c]);
            }
        for (ptrdiff_t c = first; c < last; c++) {
            ((REAL *)p->dweight)[c] = (REAL)(sums[c - first][1] * NAME(element)(p->rstd, c, 1));
            if (p->dbias) ((REAL *)p->dbias)[c] = (REAL)sums[c - first][0];
        }
        for (ptrdiff_t sample = 0; dx && sample < p->samples; sample++)
            for (ptrdiff_t c = first; c < last; c++) {
                const double *own = sums[c - first];
                const REAL rstd = ((REAL *)p->rstd)[c], scale = rstd * NAME(element)(p->weight, c, 1);
                const REAL slope = (REAL)(-scale * own[1] / n * rstd * rstd), shift = (REAL)(-scale * own[0] / n);
                const ptrdiff_t at = AT(sample, c);
                NAME(gradient_run)(dx + at, grad + at, x + at, p->area, mean[c], scale, slope, shift);
            }
    }
}

/* Runs [begin, end) with given statistics: rstd is the variance here. */
MAYBE_UNUSED void NAME(batch_norm_inference_runs)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    for (ptrdiff_t run = begin; run < end; run++) {
        const ptrdiff_t c = run % p->channels, at = run * p->area;
        const REAL rstd = (REAL)(1 / sqrt(((REAL *)p->rstd)[c] + p->eps));
        const REAL scale = rstd * NAME(element)(p->weight, c, 1), shift = NAME(element)(p->bias, c, 0);
        const REAL *x = (const REAL *)p->x + at;
        NAME(normalize_run)((REAL *)p->y + at, x, p->area, ((REAL *)p->mean)[c], scale, shift);
    }
}

/* ---- batch norm of single elements (area 1): a vector holds neighbouring channels ---- */

#define FOR_CHANNELS(c, count) FOR_VECTORS(c, count, width)

#define FOR_ELEMENTS(sample, c, at, count)                                        \
    for (ptrdiff_t sample = 0; sample < p->samples; sample++)                     \
        for (ptrdiff_t c = 0, at = sample * p->channels + first, count = width; count > 0; \
             c += LANES, at += LANES, count -= LANES)

#define AS_VECTOR(array, c) (*(VECTOR *)((array) + (c)))

typedef REAL NAME(of_channels)[MAX_CHANNELS] __attribute__((aligned(VECTOR_BYTES)));

/* The parameters from `first` on, or `otherwise`. */
ALWAYS_INLINE VECTOR NAME(parameters)(const void *array, ptrdiff_t at, ptrdiff_t count, REAL otherwise) {
    return array ? NAME(load)((const REAL *)array + at, count, 0) : (VECTOR){0} + otherwise;
}

/* y = (x - mean) * scale + shift */
ALWAYS_INLINE void NAME(normalize_columns)(
    const Norm *p, ptrdiff_t first, ptrdiff_t width, const REAL *mean, const REAL *scale, const REAL *shift
) {
    FOR_ELEMENTS(sample, c, at, count) {
        VECTOR centred = NAME(load)((const REAL *)p->x + at, count, 0) - AS_VECTOR(mean, c);
        NAME(store)((REAL *)p->y + at, count, centred * AS_VECTOR(scale, c) + AS_VECTOR(shift, c));
    }
}

/* To sums the sums over the samples of x, or, given the mean, of its squared deviations. Four samples are added
   before a sum is read and written. */
ALWAYS_INLINE void NAME(add_columns)(
    REAL *sums, const Norm *p, ptrdiff_t first, ptrdiff_t width, const REAL *mean
) {
    enum { AT_ONCE = 4 };
    const REAL *x = (const REAL *)p->x + first;
    for (ptrdiff_t sample = 0; sample < p->samples; sample += AT_ONCE) {
        const ptrdiff_t left = p->samples - sample;
        FOR_CHANNELS(c, count) {
            VECTOR terms[AT_ONCE];
            UNROLL for (int k = 0; k < AT_ONCE; k++) {
                terms[k] = (VECTOR){0};
                if (k >= left) continue;
                terms[k] = NAME(load)(x + (sample + k) * p->channels + c, count, 0);
                if (mean) {
                    terms[k] -= AS_VECTOR(mean, c);
                    terms[k] *= terms[k];
                }
            }
            AS_VECTOR(sums, c) += (terms[0] + terms[1]) + (terms[2] + terms[3]);
        }
    }
}

MAYBE_UNUSED void NAME(batch_norm_columns)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const REAL n = (REAL)p->samples;
    for (ptrdiff_t first = begin; first < end; first += MAX_CHANNELS) {
        const ptrdiff_t width = end - first < MAX_CHANNELS ? end - first : MAX_CHANNELS;
        NAME(of_channels) mean, scale, shift; /* scale: the squares at first */
        FOR_CHANNELS(c, left) AS_VECTOR(mean, c) = AS_VECTOR(scale, c) = (VECTOR){0};
        NAME(add_columns)(mean, p, first, width, NULL);
        FOR_CHANNELS(c, left) AS_VECTOR(mean, c) /= n;
        NAME(add_columns)(scale, p, first, width, mean);
        for (ptrdiff_t c = 0; c < width; c++)
            NAME(store_statistics)(p, first + c, (Moments){(double)n, mean[c], scale[c]});
        FOR_CHANNELS(c, count) {
            VECTOR rstd = NAME(load)((REAL *)p->rstd + first + c, count, 0);
            AS_VECTOR(scale, c) = rstd * NAME(parameters)(p->weight, first + c, count, 1);
            AS_VECTOR(shift, c) = NAME(parameters)(p->bias, first + c, count, 0);
        }
        NAME(normalize_columns)(p, first, width, mean, scale, shift);
    }
}

MAYBE_UNUSED void NAME(batch_norm_grad_columns)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    const REAL *x = p->x, *grad = p->grad, n = (REAL)p->samples;
    for (ptrdiff_t first = begin; first < end; first += MAX_CHANNELS) {
        const ptrdiff_t width = end - first < MAX_CHANNELS ? end - first : MAX_CHANNELS;
        NAME(of_channels) mean, of_grad, of_product, scale;
        FOR_CHANNELS(c, count) {
            AS_VECTOR(mean, c) = NAME(parameters)(p->mean, first + c, count, 0);
            AS_VECTOR(of_grad, c) = AS_VECTOR(of_product, c) = (VECTOR){0};
        }
        FOR_ELEMENTS(sample, c, at, count) {
            VECTOR g = NAME(load)(grad + at, count, 0);
            AS_VECTOR(of_grad, c) += g;
            AS_VECTOR(of_product, c) += g * (NAME(load)(x + at, count, 0) - AS_VECTOR(mean, c));
        }
        FOR_CHANNELS(c, count) {
            VECTOR rstd = NAME(parameters)(p->rstd, first + c, count, 1);
            NAME(store)((REAL *)p->dweight + first + c, count, AS_VECTOR(of_product, c) * rstd);
            if (p->dbias) NAME(store)((REAL *)p->dbias + first + c, count, AS_VECTOR(of_grad, c));
            AS_VECTOR(scale, c) = rstd * NAME(parameters)(p->weight, first + c, count, 1);
            AS_VECTOR(of_grad, c) /= n; /* from here on: the averages */
            AS_VECTOR(of_product, c) *= rstd * rstd / n;
        }
        if (!p->y) continue;
        FOR_ELEMENTS(sample, c, at, count) {
            VECTOR slope = (NAME(load)(x + at, count, 0) - AS_VECTOR(mean, c)) * AS_VECTOR(of_product, c);
            VECTOR centred = NAME(load)(grad + at, count, 0) - AS_VECTOR(of_grad, c);
            NAME(store)((REAL *)p->y + at, count, (centred - slope) * AS_VECTOR(scale, c));
        }
    }
}

/* The channels [begin, end) with given statistics. */
MAYBE_UNUSED void NAME(batch_norm_inference_columns)(const Norm *p, int part, ptrdiff_t begin, ptrdiff_t end) {
    (void)part;
    for (ptrdiff_t first = begin; first < end; first += MAX_CHANNELS) {
        const ptrdiff_t width = end - first < MAX_CHANNELS ? end - first : MAX_CHANNELS;
        NAME(of_channels) mean, scale, shift;
        for (ptrdiff_t c = 0; c < width; c++) {
            const ptrdiff_t channel = first + c;
            mean[c] = ((REAL *)p->mean)[channel];
            scale[c] = (REAL)(1 / sqrt(((REAL *)p->rstd)[channel] + p->eps)) * NAME(element)(p->weight, channel, 1);
            shift[c] = NAME(element)(p->bias, channel, 0);
        }
        NAME(normalize_columns)(p, first, width, mean, scale, shift);
    }
}

#undef SUMS
#undef FOR_VECTORS
#undef SUM_OF_VECTORS
#undef AT
#undef FOR_CHANNELS
#undef FOR_ELEMENTS
#undef AS_VECTOR
#undef REAL
#undef VECTOR
#undef LANES
#undef NAME
