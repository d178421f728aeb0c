// What else makes the weights of attention: a mask of the scores, and dropout.
//
// A mask says which keys a query sees, or what to add to its scores, where -infinity hides a key, too. It is read where
// it lies, by strides of its own, 0 where it is broadcast; a query that sees no key has weights of 0. Of one whose
// scores are all -infinity by themselves the weights are NaN, as without a mask: where the mask shows a key, its score
// is finite.
//
// Dropout has no mask in memory. Of query i of a matrix, the weights of keys 4 j to 4 j + 3 take the four words of one
// block of Philox, number j of the row's ceil(S / 4) blocks: forward and backward draw the same, however they divide
// the work, and so does the reference. Lanes with parts of the same blocks compute one each, and pass its bits on.
#pragma once

#include "attention.cuh"
#include "philox.cuh"
#include "rows.cuh"

// As it is passed to a kernel. In a recorded step, seed and offset stand in memory.
struct AttentionWeighting {
    long long mask_stride[4];  // in elements: of a batch, a head, a query, a key
    unsigned long long seed, offset;
    unsigned threshold;  // of a word: what is below is dropped
    float kept_scale;    // 1 / (1 - p)
    bool drops;
};

// The weighting of one matrix, by a mask of bool or float.
template <typename Mask>
class Weighting {
  public:
    static constexpr float LEAST = -3.4028235e38f;  // the score of a key that is seen, at least

    bool has_mask, drops;
    float kept_scale;

    __device__ __forceinline__ Weighting(const Mask* mask, const unsigned long long* live,
                                         const AttentionWeighting& given, const AttentionShape& shape, const Task& task)
        : has_mask(mask), drops(given.drops), kept_scale(given.kept_scale), L(int(shape.L)), S(int(shape.S)),
          mask(mask + task.matrix / shape.heads * given.mask_stride[0] +
               task.matrix % shape.heads * given.mask_stride[1]),
          query_stride(given.mask_stride[2]), key_stride(given.mask_stride[3]), threshold(given.threshold),
          blocks_of_row((shape.S + 3) / 4), first_block(task.matrix * shape.L * blocks_of_row),
          seed(live ? live[0] : given.seed), offset(live ? live[1] : given.offset) {}

    // A score, in powers of 2, as the mask leaves it.
    __device__ __forceinline__ float masked(float score, long long query, long long key) const {
        if (!has_mask) return score;
        if (query >= L || key >= S) return -INFINITY;
        const Mask value = mask[query * query_stride + key * key_stride];
        if constexpr (sizeof(Mask) != 1) score = fmaf(value, LOG2_E, score);
        const bool is_seen = sizeof(Mask) == 1 ? value : value != -INFINITY;
        return !is_seen ? -INFINITY : score == -INFINITY ? LEAST : score;
    }

    // Which of the weights of four keys, `key` among them, are kept: a bit each.
    __device__ __forceinline__ unsigned kept(long long query, long long key) const {
        if (!drops) return 15;
        const Philox random(first_block + query * blocks_of_row + key / 4, seed, offset);
        unsigned bits = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) bits |= (random.words[i] >= threshold) << i;
        return bits;
    }

    // The sum of a row's powers, of which all lanes have `sum`: 0 if the query sees no key, and NaN if all that it sees
    // have scores of -infinity.
    __device__ __forceinline__ float total(const RunningRow& row, float sum) const {
        return row.reference == LEAST || (sum == 0 && !has_mask) ? NAN : sum;
    }

    // The factor of a row of weights that add up to `total`, and its logarithm: of a query that sees no key, the one
    // that makes probabilities of 0.
    __device__ __forceinline__ float factor(float total) const { return total == 0 ? 0 : kept_scale / total; }
    __device__ __forceinline__ float log_sum(const RunningRow& row, float total) const {
        return total == 0 ? INFINITY : row.log_sum(total);
    }

  private:
    int L, S;
    const Mask* mask;
    long long query_stride, key_stride;
    unsigned threshold;
    long long blocks_of_row, first_block;
    unsigned long long seed, offset;
};
