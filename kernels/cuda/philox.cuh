// Philox4x32-10: random numbers computed from their position. J. K. Salmon, M. A. Moraes, R. O. Dror and
// D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011, https://doi.org/10.1145/2063384.2063405.
//
// A block of four 32-bit words is a function of a key, the seed, and of a counter: the block's number in its
// low half, an offset that names the stream in its high half. There is no state in memory and no order in
// which blocks must be computed, so the same numbers come out of any grid, on any device. A block takes 20
// multiplications, each of which gives both halves of its product, and about 60 other integer operations.
//
// kernels/philox.py has the same on whole arrays, and says which element takes which words.
#pragma once

#include "common.cuh"

struct Philox {
    unsigned words[4];

    __device__ __forceinline__ Philox(long long block, unsigned long long seed, unsigned long long offset)
        : words{unsigned(block), unsigned(block >> 32), unsigned(offset), unsigned(offset >> 32)} {
        unsigned key0 = unsigned(seed), key1 = unsigned(seed >> 32);
        for (int i = 0; i < 10; i++) {
            round(key0, key1);
            key0 += 0x9E3779B9;  // the golden ratio
            key1 += 0xBB67AE85;  // sqrt(3) - 1
        }
    }

    __device__ __forceinline__ void round(unsigned key0, unsigned key1) {
        const unsigned multiplier0 = 0xD2511F53, multiplier1 = 0xCD9E8D57;
        const unsigned high0 = __umulhi(multiplier0, words[0]), low0 = multiplier0 * words[0];
        const unsigned high1 = __umulhi(multiplier1, words[2]), low1 = multiplier1 * words[2];
        words[0] = high1 ^ words[1] ^ key0;
        words[2] = high0 ^ words[3] ^ key1;
        words[1] = low1;
        words[3] = low0;
    }

    // Two words as one number of 64 bits, for half = 0 and 1.
    __device__ __forceinline__ unsigned long long pair(int half) const {
        return words[2 * half] | (unsigned long long)words[2 * half + 1] << 32;
    }
};
