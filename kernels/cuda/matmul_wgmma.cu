// Matrix multiplication on the tensor cores of compute capability 9.0: out[i, j] = sum over k of a[i, k] *
// b[j, k], plus bias[j] where there is one, for each of a batch.
//
// Shapes: a is (batches, M, K), b, the right matrix transposed, is (batches, N, K), out is (batches, M, N), bias (N). a
// and b come as tensor maps: in each either the elements along K are neighbours or, in 16 bits, those along M
// or N; the other strides are multiples of 16 bytes. out is C-contiguous. Sums are float32, and so is out for
// floats, whose factors the copy engine rounds to TF32. __half and __nv_bfloat16 come out as they go in.
//
//   matmul_wgmma   products of whole tiles in shared memory, which the copy engine fills (wgmma_tiles.cuh)
//
// Where tiles are few they have 64 or 128 columns instead of 256, and K may be cut into parts, products of their own:
// split_k.cu adds them up.
//
// Results go to boxes in shared memory, from where the engine stores them, as far as they are inside; where
// rows of out are no multiples of 16 bytes the threads store pairs.
//
// Arithmetic intensity: a stage is (128 + 256) x 128 bytes for 2 x 128 x 256 x 64 operations in 16 bits: 85 a
// byte, of which a cluster of 2 asks the L2 cache for two thirds: 128. An H200 could do 206 for each byte of
// its memory (989 TFLOP/s over 4.8 TB/s): the order of the tiles (tile_order.cuh) leaves most to the cache.
// From shared memory a wgmma takes (64 + 256) x 32 bytes for 128 cycles of the tensor cores: 80 bytes of the
// 128 that a cycle can bring.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "wgmma_tiles.cuh"

struct WgmmaShape {
    long long M, N, K, batches;
    long long part, parts;     // of K: elements of each but the last, whole steps; how many there are
    int a_batched, b_batched;  // 0: all products have the same one
    int out_by_boxes;          // whether the copy engine can store out
};

// The products, for make_tiles.
template <typename T, int TILE_N, bool A_ALONG_M, bool B_ALONG_N>
struct MatrixProduct {
    using Place = typename Tiles<TILE_N>::Place;  // whose batch is a product: part after part, each of all matrices
    static constexpr bool IN_PARTS = TILE_N < 256;

    T* out;
    float* partial;  // (parts, batches, M, N), if there are several
    const T* bias;  // may be null
    const TensorMap &a_map, &b_map, &out_map;
    const WgmmaShape& shape;
    Tiles<TILE_N> tiles;

    __device__ __forceinline__ int steps(int tile) const {
        long long K = shape.K;
        if constexpr (IN_PARTS) {
            const long long left = K - tiles.batch_of(tile) / shape.batches * shape.part;
            K = left < shape.part ? left : shape.part;
        }
        return (K + STEP<T> - 1) / STEP<T>;
    }

    struct Source {
        const TensorMap &a_map, &b_map;
        int row, column, a_batch, b_batch, k;

        __device__ __forceinline__ void load(Box* a, Box* b, Barrier& full) {
#pragma unroll
            for (int i = 0; i < A_BOXES; i++) {
                const int m = row + i * BOX_ROWS;
                load_box(a + i, a_map, A_ALONG_M ? m : k, A_ALONG_M ? k : m, a_batch, full);
            }
            load_for_cluster<TILE_N>(b, b_map, full, [&](int i) {
                const int n = column + i * BOX_ROWS;
                return BoxPlace{B_ALONG_N ? n : k, B_ALONG_N ? k : n, b_batch};
            });
            k += STEP<T>;
        }
    };

    __device__ __forceinline__ Source source(const Place& place) const {
        int matrix = place.batch, k = 0;
        if constexpr (IN_PARTS) {
            const int part = matrix / int(shape.batches);
            matrix -= part * int(shape.batches);
            k = part * int(shape.part);
        }
        return {a_map, b_map, place.row, place.column, shape.a_batched * matrix, shape.b_batched * matrix, k};
    }

    __device__ __forceinline__ void store(float (&sums)[TILE_N / 8][4], const Place& place, int consumer,
                                          Box* boxes) const {
        const int row = place.row + consumer * BOX_ROWS;
        if (IN_PARTS && shape.parts > 1)
            return store_rows<float, TILE_N>(partial + place.batch * shape.M * shape.N, sums, row, place.column,
                                             shape.M, shape.N);
        if (bias) add_bias<TILE_N>(sums, bias + place.column, shape.N - place.column);
        if (shape.out_by_boxes)
            store_boxes<T, TILE_N>(out_map, sums, row, place.column, place.batch, boxes, 1 + consumer);
        else
            store_rows<T, TILE_N>(out + place.batch * shape.M * shape.N, sums, row, place.column, shape.M, shape.N);
    }
};

// a and b are read by way of their maps alone. Grid: x = clusters of CLUSTER blocks, as many as the card has
// places for.
template <typename T, int TILE_N, bool A_ALONG_M, bool B_ALONG_N>
__global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
matmul_wgmma(T* out, float* partial, const T* a, const T* b, const T* bias, const __grid_constant__ TensorMap a_map,
             const __grid_constant__ TensorMap b_map, const __grid_constant__ TensorMap out_map,
             const WgmmaShape shape) {
    make_tiles<T, TILE_N, A_ALONG_M, B_ALONG_N>(MatrixProduct<T, TILE_N, A_ALONG_M, B_ALONG_N>{
        out, partial, bias, a_map, b_map, out_map, shape, {shape.M, shape.N, shape.batches * shape.parts}});
}
