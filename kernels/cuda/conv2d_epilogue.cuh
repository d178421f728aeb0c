// From the sums of a convolution on tensor cores, whose rows are channels and whose columns are pixels, to its
// result: bias and ReLU, and the way to where channels come last.
#pragma once

#include "common.cuh"
#include "tensor_core_tiles.cuh"

// The result of a sum: plus the bias of its row, which may be null, and through ReLU where `relu`.
template <typename T>
struct Epilogue {
    const T* bias;
    bool relu;
    int rows;

    __device__ __forceinline__ float start_of(int row) const {
        return bias && row < rows ? float(bias[row]) : 0.0f;
    }
    __device__ __forceinline__ T of(float sum, float start) const { return T(relu_if(relu, sum + start)); }
};

// Results of a warp on their way to memory: PIXELS pixels of CHANNELS channels, elements of E. In the fragments of
// mma channels are spread over lanes, and a store straight from them would write single elements. So they go
// through shared memory, and from there in chunks of 16 bytes, side by side along the channels of a pixel.
template <typename E, int CHANNELS, int PIXELS>
struct PixelSlab {
    static constexpr int CHUNK = 16 / sizeof(E), CHUNKS = CHANNELS / CHUNK, AT_ONCE = 32 / CHUNKS;
    static constexpr int PITCH = CHANNELS + CHUNK;  // a chunk more: pixels begin in banks of their own
    static constexpr int BYTES = PIXELS * PITCH * sizeof(E);
    static_assert(CHANNELS % CHUNK == 0 && PIXELS % AT_ONCE == 0, "the lanes take whole chunks of whole pixels");

    E* elements;

    __device__ __forceinline__ explicit PixelSlab(void* memory) : elements(static_cast<E*>(memory)) {}

    __device__ __forceinline__ void put(int pixel, int channel, E value) {
        elements[pixel * PITCH + channel] = value;
    }

    // Stores the pixels, once all lanes have put theirs; `out` is the first channel's place in a pixel that
    // stands at 0, `left` how many channels out has from there on. Pixel number i stands at place_of(i), or
    // nowhere if that is negative.
    template <typename PlaceOf>
    __device__ __forceinline__ void store(E* out, int left, PlaceOf&& place_of) const {
        __syncwarp();
        const int lane = threadIdx.x % 32, channel = lane % CHUNKS * CHUNK;
#pragma unroll
        for (int i = 0; i < PIXELS; i += AT_ONCE) {
            const int pixel = i + lane / CHUNKS;
            const long long place = place_of(pixel);
            const E* const from = &elements[pixel * PITCH + channel];
            E* const to = out + place + channel;
            if (place < 0 || channel >= left) continue;
            if (channel + CHUNK <= left && size_t(to) % 16 == 0) {
                *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(from);
            } else {
#pragma unroll 1
                for (int k = 0; k < CHUNK && channel + k < left; k++) to[k] = from[k];
            }
        }
        __syncwarp();  // others may be put in their place
    }
};

// Stores a warp's results channels last, by way of the tiles' memory. Pixel number i of the warp's stands at
// place_of(i), or nowhere if that is negative.
template <typename T, typename Tiling, typename PlaceOf>
__device__ __forceinline__ void store_channels_last(T* out, const typename Tiling::Sums& sums,
                                                    const Epilogue<T>& result, int first_row, void* tiles,
                                                    PlaceOf&& place_of) {
    constexpr int PIXELS = 32;  // at a time
    using Slab = PixelSlab<T, Tiling::WARP_M, PIXELS>;
    static_assert(Tiling::THREADS / 32 * Slab::BYTES <= Tiling::TILES * CHUNK_BYTES, "the slabs fit");
    Slab slab(static_cast<char*>(tiles) + threadIdx.x / 32 * Slab::BYTES);
    const int lane = threadIdx.x % 32;
    first_row += Tiling::warp_row();
#pragma unroll
    for (int first = 0; first < Tiling::WARP_N; first += PIXELS) {
#pragma unroll
        for (int half = 0; half < 2 * Tiling::WARP_M / 16; half++) {
            const float start = result.start_of(first_row + 8 * half + lane / 4);
#pragma unroll
            for (int i = 0; i < PIXELS / 8 * 2; i++) {
                const float sum = sums[half / 2][first / 8 + i / 2][half % 2 * 2 + i % 2];
                slab.put(i / 2 * 8 + lane % 4 * 2 + i % 2, 8 * half + lane / 4, result.of(sum, start));
            }
        }
        slab.store(out + first_row, result.rows - first_row, [&](int pixel) { return place_of(first + pixel); });
    }
}
