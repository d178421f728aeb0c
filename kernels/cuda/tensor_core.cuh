// Tensor cores: a warp multiplies small matrices that lie in fragments, spread over its lanes' registers.
//
//   mma_tf32   (16 x 8) += (16 x 8) (8 x 8)      of floats, of which 10 bits of the mantissa count
//   mma_f16    (16 x 8) += (16 x 16) (16 x 8)    of __half
//   mma_bf16   the same of __nv_bfloat16
//
// Sums are float32. A register of an operand holds 32 bits: one float, or two neighbours of 16 bits, the
// first in the lower half. Lane 4 g + t (g < 8, t < 4) holds, as (row, word in the row):
//
//   a   the left matrix               a[0]: (g, t)  a[1]: (g + 8, t)  a[2]: (g, t + 4)  a[3]: (g + 8, t + 4)
//   b   the right one, transposed     b[0]: (g, t)  b[1]: (g, t + 4)
//   c   the sums, a float in a word   c[0]: (g, 2 t)  c[1]: (g, 2 t + 1)  c[2], c[3]: the same of row g + 8
//
// So the words of both operands run along k, and ldmatrix brings them from shared memory: it loads 8 rows of
// 16 bytes and gives word t of row g to lane 4 g + t. (NVIDIA, PTX ISA: "Matrix Fragments for mma",
// "ldmatrix".)
//
// All lanes of a warp call these together. mma needs compute capability 8.0 and traps below; ldmatrix needs
// 7.5. The simulator's twins gather the lanes' registers. They add the exact products in double and round
// once; a card keeps fewer digits of the sum, so its last bits differ.
#pragma once
#if defined(MINIGRAD_SIM)
#include "float16.h"
#endif

// ---- ldmatrix ----
//
// Loads as many 8 x 8 matrices of 16-bit elements as `out` has registers: 1, 2 or 4. The rows of matrix m are
// at the addresses, multiples of 16 bytes, that lanes 8 m .. 8 m + 7 give; it goes to out[m]. ldmatrix_trans
// transposes each matrix on its way.

#if defined(MINIGRAD_SIM)

template <bool TRANSPOSED, int COUNT>
__device__ void load_matrices(unsigned (&out)[COUNT], const void* row) {
    struct Rows {
        const unsigned short* rows[COUNT][8];
    };
    const sim::Place place = {"ldmatrix", __FILE__, __LINE__};
    const Rows all = sim::exchange<Rows>(~0u, row, place, [](auto& payloads) SIM_UNWATCHED {
        Rows all;
        for (int i = 0; i < 8 * COUNT; i++)
            all.rows[i / 8][i % 8] = sim::read_lane<const unsigned short*>(payloads, i);
        return all;
    });
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int m = 0; m < COUNT; m++) {
        if constexpr (TRANSPOSED)
            out[m] = all.rows[m][2 * t][g] | unsigned(all.rows[m][2 * t + 1][g]) << 16;
        else
            out[m] = reinterpret_cast<const unsigned*>(all.rows[m][g])[t];
    }
}

template <int COUNT>
__device__ void ldmatrix(unsigned (&out)[COUNT], const void* row) {
    load_matrices<false>(out, row);
}
template <int COUNT>
__device__ void ldmatrix_trans(unsigned (&out)[COUNT], const void* row) {
    load_matrices<true>(out, row);
}

#else

#define LDMATRIX(name, trans)                                                                      \
    __device__ __forceinline__ void name(unsigned (&out)[1], const void* row) {                    \
        asm volatile("ldmatrix.sync.aligned.m8n8.x1" trans ".shared.b16 {%0}, [%1];"               \
                     : "=r"(out[0])                                                                \
                     : "r"((unsigned)__cvta_generic_to_shared(row))                                \
                     : "memory");                                                                  \
    }                                                                                              \
    __device__ __forceinline__ void name(unsigned (&out)[2], const void* row) {                    \
        asm volatile("ldmatrix.sync.aligned.m8n8.x2" trans ".shared.b16 {%0, %1}, [%2];"           \
                     : "=r"(out[0]), "=r"(out[1])                                                  \
                     : "r"((unsigned)__cvta_generic_to_shared(row))                                \
                     : "memory");                                                                  \
    }                                                                                              \
    __device__ __forceinline__ void name(unsigned (&out)[4], const void* row) {                    \
        asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];"   \
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])                      \
                     : "r"((unsigned)__cvta_generic_to_shared(row))                                \
                     : "memory");                                                                  \
    }
LDMATRIX(ldmatrix, "")
LDMATRIX(ldmatrix_trans, ".trans")
#undef LDMATRIX

#endif

// ---- mma: c += a b ----

// Two floats, as registers for mma_tf32, rounded to 10 bits of mantissa: to nearest, ties away from zero. Without
// this, mma_tf32 ignores the lower 13 bits, which rounds toward zero: twice the error, and all to one side. Here they
// are left as they come, and half a unit of the last bit that counts is added; only a NaN could become another number
// by that. Both floats are of one row, or of one column: where one is NaN, all that the other would be a factor of is
// NaN, so that one comparison does for both. (cvt.rna.tf32 does the same at an eighth of the rate of an addition.)
__device__ __forceinline__ void to_tf32(unsigned& x, unsigned& y) {
#if defined(MINIGRAD_SIM)
    const float left = __uint_as_float(x), right = __uint_as_float(y);
    if (left == left && right == right) x += 0x1000, y += 0x1000;
#else
    asm("{ .reg .pred numbers;"
        "  setp.num.f32 numbers, %2, %3;"
        "  @numbers add.u32 %0, %0, 0x1000;"
        "  @numbers add.u32 %1, %1, 0x1000; }"
        : "+r"(x), "+r"(y)
        : "f"(__uint_as_float(x)), "f"(__uint_as_float(y)));
#endif
}

#if defined(MINIGRAD_SIM)

// `element(register, i)` is the i-th of the PER_REGISTER elements of a register, as a double. One lane makes the
// product for all, so that each element is brought to double once. What a lane that is missing would hold is NaN.
template <int PER_REGISTER, typename Element>
__device__ void mma(const char* what, float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                    Element element) {
    struct Fragments {
        const unsigned *a, *b;
        float* c;
    };
    const Fragments mine = {a, b, c};
    const unsigned lane = threadIdx.x % 32;
    sim::exchange<bool>(~0u, mine, {what, __FILE__, __LINE__}, [&](auto& payloads) SIM_UNWATCHED {
        unsigned first = 0;
        while (!payloads[first]) first++;
        if (lane != first) return true;
        typedef double Row __attribute__((vector_size(64)));
        constexpr int K = 8 * PER_REGISTER;
        double left[16][K];
        Row right[K], sums[16];
        memset(left, 0xFF, sizeof left);
        memset(right, 0xFF, sizeof right);
        memset(sums, 0xFF, sizeof sums);
        auto each = [&](auto visit) SIM_UNWATCHED {
            for (int i = 0; i < 32; i++)
                if (payloads[i]) visit(sim::read_lane<Fragments>(payloads, i), i / 4, i % 4);
        };
        each([&](const Fragments& of, int g, int t) SIM_UNWATCHED {
            for (int j = 0; j < PER_REGISTER; j++) {
                for (int i = 0; i < 4; i++)
                    left[g + i % 2 * 8][(t + i / 2 * 4) * PER_REGISTER + j] = element(of.a[i], j);
                for (int i = 0; i < 2; i++) right[(t + i * 4) * PER_REGISTER + j][g] = element(of.b[i], j);
            }
            for (int i = 0; i < 4; i++) sums[g + i / 2 * 8][2 * t + i % 2] = of.c[i];
        });
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < K; k++) sums[row] += left[row][k] * right[k];
        each([&](const Fragments& of, int g, int t) SIM_UNWATCHED {
            for (int i = 0; i < 4; i++) of.c[i] = float(sums[g + i / 2 * 8][2 * t + i % 2]);
        });
        return true;
    });
}

__device__ inline void mma_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma<1>("mma_tf32", c, a, b, [](unsigned word, int) SIM_UNWATCHED -> double {
        return __uint_as_float(word & ~0x1FFFu);
    });
}
__device__ inline void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma<2>("mma_f16", c, a, b, [](unsigned word, int i) SIM_UNWATCHED -> double {
        return sim::Half::widen(word >> 16 * i);
    });
}
__device__ inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    mma<2>("mma_bf16", c, a, b, [](unsigned word, int i) SIM_UNWATCHED -> double {
        return sim::Bfloat16::widen(word >> 16 * i);
    });
}

#elif __CUDA_ARCH__ >= 800

#define MMA(name, shape_and_types)                                                                        \
    __device__ __forceinline__ void name(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) { \
        asm volatile("mma.sync.aligned." shape_and_types                                                  \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                    \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                      \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                 \
    }
MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
MMA(mma_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
#undef MMA

#else

#define MMA(name)                                                                                      \
    __device__ __forceinline__ void name(float (&)[4], const unsigned (&)[4], const unsigned (&)[2]) { \
        __trap();                                                                                      \
    }
MMA(mma_tf32)
MMA(mma_f16)
MMA(mma_bf16)
#undef MMA

#endif

// ---- storing sums ----

template <typename T>
struct alignas(2 * sizeof(T)) Pair {
    T left, right;
};

// Writes a warp's sums, 16 x 8 of them in each of COUNT fragments side by side, to out, whose rows are
// `pitch` elements long, and of which `rows` rows and `columns` columns are left. A lane has pairs of
// neighbours, and stores them as such if all pairs in out are aligned: the 4 lanes of a row then write 32
// bytes of floats.
template <int COUNT, typename T>
__device__ __forceinline__ void store_fragments(T* out, const float (*sums)[4], long long rows, long long columns,
                                                long long pitch) {
    const int lane = threadIdx.x % 32, column = lane % 4 * 2;
    const bool aligned = pitch % 2 == 0 && size_t(out) % sizeof(Pair<T>) == 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = 8 * half + lane / 4;
        T* to = out + row * pitch + column;
#pragma unroll
        for (int n = 0; n < COUNT; n++) {
            if (row >= rows || 8 * n + column >= columns) continue;
            const Pair<T> pair = {T(sums[n][2 * half]), T(sums[n][2 * half + 1])};
            if (aligned) {
                *reinterpret_cast<Pair<T>*>(to + 8 * n) = pair;
            } else {
                to[8 * n] = pair.left;
                if (8 * n + column + 1 < columns) to[8 * n + 1] = pair.right;
            }
        }
    }
}
