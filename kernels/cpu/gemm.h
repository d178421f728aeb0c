/* Matrix multiplication on one thread, C (M, N) = A (M, K) B (K, N), for float (_f32) and double (_f64).
 *
 * The scheme is that of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (ACM TOMS,
 * 2008), with the loops named as in BLIS:
 *
 *   for jc in 0..N by NC                     a strip of B and C
 *     for pc in 0..K by KC                   pack B[pc:pc+KC, jc:jc+NC]  into panels of NR columns  (L3)
 *       for ic in 0..M by MC                 pack A[ic:ic+MC, pc:pc+KC]  into panels of MR rows     (L2)
 *         for jr in 0..NC by NR              one panel of B: KC x NR                               (L1)
 *           for ir in 0..MC by MR            micro-kernel: an MR x NR tile of C in registers
 *
 * Arithmetic intensity. For each step along K the micro-kernel reads MR + NR elements and makes MR * NR
 * multiply-adds: 12 x 32 means 384 for 44, so the loads hide behind the arithmetic. Packing costs MC * KC or
 * KC * NC copies, each used N / NR or M / MR times.
 *
 * What is here, for T = f32 and f64. Sizes and strides count elements, as ptrdiff_t; strides may have any
 * sign. A's element (i, p) is a[i * a_row + p * a_col], B's element (p, j) is b[p * b_row + j * b_col]; C is
 * row-major with row stride ldc. `accumulate` 0 overwrites C, 1 adds to it. No pointer needs an alignment but
 * that of its type; packed buffers at 64 bytes are read faster.
 *
 *   MR_T, NR_T                rows and columns of the register tile (compile-time constants)
 *   KC_T, MC_T, NC_T          largest block along K, M and N
 *   pack_a_T(rows, depth, a, a_row, a_col, out)
 *   pack_b_T(depth, columns, b, b_row, b_col, out)
 *                             panels of MR rows (NR columns). Panel q starts at out + q * MR * depth; its
 *                             element (i, p) lies at [p * MR + i]. Zeros fill up the last panel. Fast when
 *                             one of the two strides is 1.
 *   micro_kernel_T(depth, a_panel, b_panel, c, ldc, accumulate)
 *                             a full tile of C from one packed panel of each
 *   edge_kernel_T(rows, columns, depth, a_panel, b_panel, c, ldc, accumulate)
 *                             the same for any rows <= MR, columns <= NR; writes nothing outside them
 *   gemm_packed_T(M, N, K, a, a_row, a_col, b, b_row, b_col, c, ldc, accumulate, workspace)
 *                             the five loops above
 *   gemm_unpacked_T(as gemm_packed_T)
 *                             A read in place, and B too where that is fast: for small and thin matrices
 *   gemm_panels_T(M, N, K, a, a_row, a_col, b_panels, depth, c, ldc, epilogue)
 *                             A read in place, or MR rows at a time from a copy in L1, all of B packed
 *                             beforehand by pack_b with this depth, of which the first K are used: for a B
 *                             that serves many products. C as below. With contiguous rows of A it
 *                             is the fastest of all while B fits the L3 cache: A is read once, straight from
 *                             memory, and ahead of its use
 *   gemv_T(N, K, x, x_stride, b, b_row, b_col, y, epilogue, d_stride)
 *                             y[j] = sum over p of x[p] b[p, j], and D's element j is d[j * d_stride]
 *   gemm_T(as gemm_packed_T)  whichever of packed, unpacked, rows and gemv suits the sizes and strides
 *   gemm_add_T(..., ldc, epilogue, workspace), gemm_packed_add_T, gemm_unpacked_add_T
 *                             C = A B + D, where D's element (i, j) is d[i * d_row + j]: a bias has d_row 0,
 *                             accumulating has d = c, and NULL is no D; then, if `relu`, 0 in the place of
 *                             what is below. Both while the tile is still in registers
 *   Epilogue_T                {d, d_row, relu}; adding_T(d, d_row) is one without ReLU
 *   gemm_rows_add_T(as gemm_add_T)
 *                             pack_b, then gemm_panels
 *   suits_rows_T(M, N, K, a_col)
 *                             whether it may: many rows of A, contiguous, and a B that fits the L3 cache
 *   gemm_workspace_T(M, N, K) elements that `workspace` must hold for any of them, and for smaller products
 *
 * K = 0 gives D or zeros, and ReLU of them. In each of gemm_packed, gemm_unpacked and gemm_panels, the order in
 * which the products of one element are added depends on K alone, never on where the element lies.
 */
#ifndef MINIGRAD_GEMM_H
#define MINIGRAD_GEMM_H

#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "transpose.h"
#include "vector.h"

/* The register budget of a tile: its sums, the vectors of one row of B, one broadcast element of A. */
#if defined(__AVX512F__)
#define TILE_ROWS 12
#define TILE_VECTORS 2 /* 24 + 2 + 1 of 32 registers */
#elif defined(__aarch64__)
#define TILE_ROWS 8
#define TILE_VECTORS 3 /* 24 + 3 + 1 of 32 registers */
#else
#define TILE_ROWS 6
#define TILE_VECTORS 2 /* 12 + 2 + 1 of 16 registers */
#endif

/* A tile of more rows than a set of L1 has ways reads A in place slowly, above all rows a power of two apart: then
 * a copy of A pays where it serves not only a few panels of B. */
enum { FEWEST_WAYS = 8 };

MAYBE_UNUSED int copies_rows(void)
{
    static long ways; /* of L1: 8, or on newer processors of Intel 12 */
    if (TILE_ROWS <= FEWEST_WAYS) return 0;
#ifdef _SC_LEVEL1_DCACHE_ASSOC
    if (!ways) ways = sysconf(_SC_LEVEL1_DCACHE_ASSOC);
#endif
    if (ways <= 0) ways = FEWEST_WAYS;
    return TILE_ROWS > ways;
}

/* gemm_template.h is written in terms of the element type `real` and of NAME, which adds its suffix. */
#define real float
#define NAME(x) x##_f32
#define vector f32v
#define vector_u f32v_u
#define LANES F32_LANES
#include "gemm_template.h"
#undef real
#undef NAME
#undef vector
#undef vector_u
#undef LANES

#define real double
#define NAME(x) x##_f64
#define vector f64v
#define vector_u f64v_u
#define LANES F64_LANES
#include "gemm_template.h"
#undef real
#undef NAME
#undef vector
#undef vector_u
#undef LANES

#endif
