// The largest element of a row and the sum of its exponentials, found together in one walk.
#pragma once

#include "row_vectors.cuh"

// The online normaliser (https://arxiv.org/abs/1805.02867): the largest of the elements seen so far, m, and
// s = sum(exp(x - m)) over them. When a larger element comes, the sum is scaled by exp(old m - new m), as if
// that had been the largest all along. So one walk finds both, and two normalisers, of different elements of
// a row, add up to one.
template <typename T>
struct Normalizer {
    // Starts at the lowest finite number, not at -infinity: exp(-infinity - m) is then 0, not NaN.
    T m = -largest_finite(), s = 0;

    static __device__ __forceinline__ T largest_finite() {
        if constexpr (sizeof(T) == 4) return 3.402823466e+38f;
        return T(1.7976931348623157e+308);
    }

    __device__ __forceinline__ void add(T x) {
        if (x > m) {
            s = s * exp(m - x) + 1;
            m = x;
        } else {
            s += exp(x - m);  // a NaN, too, comes here
        }
    }

    // All elements of a part of a row. The largest of them is found first: one scaling for the part, and no branch
    // for an element.
    template <typename Stored, int COUNT>
    __device__ __forceinline__ void add(RowPart<Stored, COUNT>& part) {
        T largest = m;
        part.each([&](T x, int) { largest = fmax(largest, x); });
        s *= exp(m - largest);
        m = largest;
        part.each([&](T x, int) { s += term(x - m); });
    }

    // exp(x) for x <= 0, as a term of a sum of which the largest is 1. In float32 it is the card's own exp2, whose
    // error of up to |x| ulp is none to the sum, as |x| exp(x) < 0.4.
    static __device__ __forceinline__ T term(T x) {
        if constexpr (sizeof(T) == 4) return exp2f(x * 1.4426950f);  // log2(e)
        return exp(x);
    }

    // The sum with the smaller m is scaled, never the other one: a.add(b) has the same bits as b.add(a).
    __device__ __forceinline__ void add(Normalizer other) {
        const bool larger = other.m > m;
        const T scale = exp(larger ? m - other.m : other.m - m);
        s = larger ? s * scale + other.s : other.s * scale + s;
        m = larger ? other.m : m;
    }

    // The sum: NaN in a row with +infinity, which has counted as 1, as inf - inf is NaN.
    __device__ __forceinline__ T sum() const { return s + (m - m); }

    // Of the elements of all lanes of the warp, in each of them.
    __device__ __forceinline__ void add_across_warp() {
        for (int distance = WARP / 2; distance > 0; distance /= 2) {
            Normalizer other;
            other.m = __shfl_xor_sync(ALL_LANES, m, distance);
            other.s = __shfl_xor_sync(ALL_LANES, s, distance);
            add(other);
        }
    }

    // Of the elements of all threads of the block, in each of them; blocks of one dimension and whole warps.
    // One barrier; once in a kernel.
    __device__ __forceinline__ void add_across_block() {
        __shared__ T m_of_warp[WARP];
        __shared__ T s_of_warp[WARP];
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
        add_across_warp();
        if (lane == 0) {
            m_of_warp[warp] = m;
            s_of_warp[warp] = s;
        }
        __syncthreads();  // all warps have left theirs

        *this = Normalizer();
        if (lane < warps) {
            m = m_of_warp[lane];
            s = s_of_warp[lane];
        }
        add_across_warp();
    }

    // Of the elements of all threads that share a row, blockDim.x of them: a warp or a block.
    __device__ __forceinline__ void add_across_row() {
        if (blockDim.x == WARP) {
            add_across_warp();
        } else {
            add_across_block();
        }
    }
};
