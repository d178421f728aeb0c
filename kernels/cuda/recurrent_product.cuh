// The product of a recurrent layer's step, by a block that makes all steps and keeps weights in its registers.
//
// The rows of a product, which are the columns of its result, are dealt to groups of PARTS lanes, and K to the lanes
// of a group: neighbours have neighbouring vectors, so that a group's read is whole lines of 128 bytes. The operand, a
// state or a dz of each row, lies in shared memory, where all groups of a warp read the same vectors. The sums of a
// group meet in shuffles.
//
// Registers: 128 of weights (64 in float64), 8 * ROWS sums, 4 to 8 vectors on their way. Weights of 16
// bits are widened once, and half as many vectors fill as many registers.
#pragma once

#include "rows.cuh"
#include "vector.cuh"

constexpr int THREADS = 256;
constexpr int STREAMED = 4;  // columns of a group whose weights are read at a time

// Products in an array (rows, columns).
template <typename C>
struct Products {
    C* first;
    int columns;

    __device__ __forceinline__ void leave(int row, int column, C sum) const { first[row * columns + column] = sum; }
};

// found.leave(r, m, the sum over k < K of operand[r][k] * weight[m, k]), for all m < columns. What is not in registers
// is streamed with each product: `streamed.load_columns(factor, m, columns, k)` reads it, for STREAMED columns from m
// on, by whole vectors if `wide`. Of columns past the end it may read any others in their place.
template <typename T, int ROWS, int PARTS, typename Streamed>
struct Product {
    using C = Computed<T>;
    static constexpr int N = Vector<T>::LENGTH, GROUPS = THREADS / PARTS;
    static constexpr int COLUMNS = 8, VECTORS = sizeof(T) == 4 ? 4 : 2;  // of a group; of a lane for each
    static constexpr int RESIDENT_COLUMNS = GROUPS * COLUMNS, RESIDENT_TERMS = PARTS * N * VECTORS;  // at most

    Streamed streamed;
    int columns, K, stride;  // stride: the elements of shared memory that a row of the operand takes
    int resident_terms;      // of each of the first columns
    Vector<C, N> resident[COLUMNS][VECTORS];

    // `weights` is read once, for what stays.
    template <typename Weights>
    __device__ __forceinline__ Product(const Weights& weights, const Streamed& streamed, int columns, int K)
        : streamed(streamed), columns(columns), K(K) {
        stride = (K + PARTS * N - 1) / (PARTS * N) * (PARTS * N);
        resident_terms = !streamed.wide ? 0 : K < RESIDENT_TERMS ? K : RESIDENT_TERMS;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int j = 0; j < VECTORS; j++) {
                const int k = (j * PARTS + part()) * N;
                resident[c][j] = {};
                const int column = group() * COLUMNS + c;
                if (k < resident_terms && column < columns)
                    resident[c][j] = converted<C>(weights.template load<N>(column, k));
            }
    }

    template <typename Found>
    __device__ __forceinline__ void multiply(const Found& found, const C* operand) const {
        if (warps_first(COLUMNS) < columns) {
            C sum[COLUMNS * ROWS] = {};
#pragma unroll
            for (int j = 0; j < VECTORS; j++) {
                if (j * PARTS * N >= resident_terms) break;
                add<COLUMNS, N>(sum, operand + (j * PARTS + part()) * N, [&](int c) { return resident[c][j]; });
            }
            const int first = group() * COLUMNS;
#pragma unroll
            for (int c = 0; c < COLUMNS; c += STREAMED)
                add_streamed(sum + c * ROWS, operand, first + c, resident_terms);
            leave<COLUMNS>(found, sum, first);
        }
        for (int begin = RESIDENT_COLUMNS; begin + warps_first(STREAMED) < columns; begin += GROUPS * STREAMED) {
            C sum[STREAMED * ROWS] = {};
            const int first = begin + group() * STREAMED;
            add_streamed(sum, operand, first, 0);
            leave<STREAMED>(found, sum, first);
        }
    }

private:
    __device__ __forceinline__ static int group() { return threadIdx.x / PARTS; }
    __device__ __forceinline__ static int part() { return threadIdx.x % PARTS; }

    // The first column of this thread's warp, where each group has `count`: lanes that shuffle go on together.
    __device__ __forceinline__ static int warps_first(int count) {
        return threadIdx.x / WARP * (WARP / PARTS) * count;
    }

    // LENGTH terms, of which `operand` points to the first, of COUNT columns.
    template <int COUNT, int LENGTH, typename Factor>
    __device__ __forceinline__ void add(C* sum, const C* operand, const Factor& factor) const {
        constexpr int STEP = LENGTH < 4 ? LENGTH : 4;  // in 16 bits half of the vector, for want of registers
#pragma unroll
        for (int begin = 0; begin < LENGTH; begin += STEP) {
            Vector<C, STEP> h[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++) h[r] = load_vector<STEP>(operand + r * stride + begin);
#pragma unroll
            for (int c = 0; c < COUNT; c++)
#pragma unroll
                for (int n = 0; n < STEP; n++) {
                    const C weight = C(factor(c).lane[begin + n]);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) sum[c * ROWS + r] += h[r].lane[n] * weight;
                }
        }
    }

    // The terms from `begin` on, of STREAMED columns of each group.
    __device__ __forceinline__ void add_streamed(C* sum, const C* operand, int first, int begin) const {
        if (streamed.wide)
            add_vectors<N>(sum, operand, first, begin);
        else
            add_vectors<1>(sum, operand, first, begin);
    }

    template <int LENGTH>
    __device__ __forceinline__ void add_vectors(C* sum, const C* operand, int first, int begin) const {
#pragma unroll(Streamed::UNROLL)
        for (int k = begin + part() * LENGTH; k < K; k += PARTS * LENGTH) {
            Vector<T, LENGTH> factor[STREAMED];
            streamed.load_columns(factor, first, columns, k);
            add<STREAMED, LENGTH>(sum, operand + k, [&](int c) { return factor[c]; });
        }
    }

    template <int COUNT, typename Found>
    __device__ __forceinline__ void leave(const Found& found, C* sum, int first) const {
        constexpr int VALUES = COUNT * ROWS;
        constexpr int SHARE = VALUES > PARTS ? VALUES / PARTS : 1, LANES = VALUES < PARTS ? PARTS / VALUES : 1;
        scattered_sums<VALUES, PARTS / 2>(sum);
        if (part() % LANES != 0) return;
#pragma unroll
        for (int i = 0; i < SHARE; i++) {
            const int value = part() / LANES * SHARE + i, column = first + value / ROWS;
            if (column < columns) found.leave(value % ROWS, column, sum[i]);
        }
    }
};
