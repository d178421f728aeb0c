// Batch norm and its gradient with a channel held in shared memory: on compute capability 9.0, by clusters of blocks.
//
// Shapes and formulas: batch_norm.cu. Planes, the elements of a channel in a sample, are made of whole vectors of 16
// bytes, and there are samples for each of BLOCKS blocks.
//
// Batch norm reads a channel twice, for its statistics and to normalize it, and so does the gradient with grad and x.
// A channel of a batch, 800 KB of 64 images of 56 x 56 in float32, is too large for a multiprocessor, and between two
// launches everything goes back to memory. Here a cluster of BLOCKS blocks shares out the samples of a channel. Each
// block keeps its part in its shared memory, gives what it finds of it to the others (distributed shared memory), and
// makes its part of the result of what it has kept: memory is read once.
//
// While blocks of one cluster wait for what they have asked for, those of another are computing or storing: shared
// memory has room for two of them on a multiprocessor, 112 KB each. The copy engine brings the planes, and one block's
// after the other's: were both to come at once, memory would stand idle while both compute. And a block adds up the
// planes as they come, chunk by chunk, so that little is left to do when the last one is there.
//
// Arithmetic intensity: about 10 operations for the 8 bytes of an element in float32, 12 of the gradient: bound by
// memory, which moves two thirds of what batch_norm.cu needs, of the gradient three fifths.
//
// Grid: x = channels * BLOCKS, the blocks of a channel one after the other.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "batch_norm.cuh"
#include "hopper.cuh"

constexpr int CHUNKS = 4;  // of a block's planes, each with a barrier for its copies

// A block's part of a channel, of one plane or more. Its vectors are numbered, and stand so in shared memory.
template <typename T>
struct ChannelPart {
    static constexpr int WIDTH = Vector<T>::LENGTH;
    Planes<WIDTH> planes;
    unsigned number;       // of planes
    unsigned whole, rest;  // planes in THREADS vectors, and what is left

    __device__ __forceinline__ ChannelPart(long long samples, long long channels, long long area, long long c,
                                           long long parts)
        : planes(samples, channels, area, c, block_in_cluster(), parts), number(planes.all / planes.of_plane),
          whole(THREADS / planes.of_plane), rest(THREADS % planes.of_plane) {}

    // Where a chunk begins; no other has more planes than the first.
    __device__ __forceinline__ unsigned first_plane(int chunk) const {
        return (number * chunk + CHUNKS - 1) / CHUNKS;
    }
    __device__ __forceinline__ unsigned first_vector(int chunk) const { return first_plane(chunk) * planes.of_plane; }

    // Starts the copies of the part of each array to `held`, one array behind the other, chunk by chunk.
    template <int ARRAYS>
    __device__ __forceinline__ void load(Vector<T>* held, Barrier (&come)[CHUNKS],
                                         const T* const (&arrays)[ARRAYS]) const {
        if (threadIdx.x < WARP) {
            if (threadIdx.x == 0) {
                for (int chunk = 0; chunk < CHUNKS; chunk++) come[chunk].init(1);
                fence_barrier_init();
#pragma unroll 1
                for (int chunk = 0; chunk < CHUNKS; chunk++)
                    come[chunk].arrive_and_expect(ARRAYS * (first_vector(chunk + 1) - first_vector(chunk)) *
                                                  sizeof(Vector<T>));
            }
            __syncwarp();
#pragma unroll 1
            for (int chunk = 0; chunk < CHUNKS; chunk++)
                for (unsigned plane = first_plane(chunk) + threadIdx.x; plane < first_plane(chunk + 1); plane += WARP)
#pragma unroll
                    for (int k = 0; k < ARRAYS; k++)
                        load_bytes(held + k * planes.all + plane * planes.of_plane,
                                   arrays[k] + planes.start + plane * planes.stride,
                                   planes.of_plane * sizeof(Vector<T>), come[chunk]);
        }
        __syncthreads();  // the barriers are there
    }

    // Calls function(vector) for this thread's vectors, those of each chunk when it has come.
    template <typename Function>
    __device__ __forceinline__ void as_they_come(Barrier (&come)[CHUNKS], Function function) const {
        unsigned vector = threadIdx.x;
#pragma unroll 1  // eight times the code would have to come from memory, too
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            come[chunk].wait(0);
            for (; vector < first_vector(chunk + 1); vector += THREADS) function(vector);
        }
    }

    // Calls function(vector, where it begins in memory) for this thread's vectors. From one to the next it takes
    // additions, no division.
    template <typename Function>
    __device__ __forceinline__ void for_each(Function function) const {
        const unsigned plane = threadIdx.x / planes.of_plane;
        unsigned in_plane = threadIdx.x - plane * planes.of_plane;
        long long begin = planes.start + plane * planes.stride;
        for (unsigned vector = threadIdx.x; vector < planes.all; vector += THREADS) {
            function(vector, begin + in_plane * WIDTH);
            begin += whole * planes.stride;
            in_plane += rest;
            if (in_plane >= planes.of_plane) {
                in_plane -= planes.of_plane;
                begin += planes.stride;
            }
        }
    }

    // How many elements it has.
    __device__ __forceinline__ unsigned count() const { return planes.all * WIDTH; }
};

template <typename T>
__device__ __forceinline__ Vector<T>* shared_vectors() {
    extern __shared__ float4 shared[];
    return reinterpret_cast<Vector<T>*>(shared);
}

// Gives `own` to all blocks of the cluster, which have started; afterwards of_block has that of each.
template <int BLOCKS, typename Value>
__device__ __forceinline__ void share_out(Value (&of_block)[BLOCKS], const Value& own) {
    if (threadIdx.x < BLOCKS) *in_block(&of_block[block_in_cluster()], threadIdx.x) = own;
    sync_cluster();
}

template <typename C, typename T, int BLOCKS>
__global__ void __launch_bounds__(THREADS, 2) __cluster_dims__(BLOCKS, 1, 1) batch_norm_cluster(
    T* y, C* mean, C* rstd, const T* x, const C* weight, const C* bias, long long samples, long long channels,
    long long area, C eps, C* running_mean, C* running_var, long long* batches, Following following
) {
    __shared__ Moments<C> of_block[BLOCKS];
    __shared__ Barrier come[CHUNKS];
    arrive_at_cluster();
    const long long c = blockIdx.x / BLOCKS;
    const ChannelPart<T> part(samples, channels, area, c, BLOCKS);
    constexpr int WIDTH = ChannelPart<T>::WIDTH;
    Vector<T>* const held = shared_vectors<T>();
    part.load(held, come, {x});
    const C w = value_or(weight, c, C(1)), shift = value_or(bias, c, C(0));

    C sum = 0, none = 0;
    come[0].wait(0);
    for (unsigned vector = threadIdx.x; vector < part.first_vector(1); vector += THREADS) {
        const Vector<C, WIDTH> elements = converted<C>(held[vector]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sum += elements.lane[i];
    }
    sum_over_row(sum, none, 0);
    // The deviations from the first chunk's mean, whose own mean is what that is off (norm.cu). That it is one of an
    // eighth of the elements costs no more than three bits, however different the others are.
    const C about = sum / C(part.first_vector(1) * WIDTH), count = C(part.count());
    C deviations = 0, squares = 0;
    part.as_they_come(come, [&](unsigned vector) {
        const Vector<C, WIDTH> elements = converted<C>(held[vector]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            const C deviation = elements.lane[i] - about;
            deviations += deviation;
            squares += deviation * deviation;
        }
    });
    sum_over_row(deviations, squares, 1);
    const C off = deviations / count, of_part = squares - deviations * off;
    wait_for_cluster();  // all blocks have started
    share_out(of_block, Moments<C>{count, about + off, of_part < 0 ? C(0) : of_part});
    Moments<C> moments;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) moments.add(of_block[block]);

    const C m = moments.mean, r = moments.rstd(eps), scale = r * w;
    if (block_in_cluster() == 0 && threadIdx.x == 0) {
        mean[c] = m;
        rstd[c] = r;
    }
    part.for_each([&](unsigned vector, long long at) {
        Vector<C, WIDTH> elements = converted<C>(held[vector]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) elements.lane[i] = (elements.lane[i] - m) * scale + shift;
        store_vector(y + at, converted<T>(elements));
    });
    if (block_in_cluster() == 0 && threadIdx.x == 0)
        Running<C>{running_mean, running_var, batches, following}.move(c, m, r, eps);
}

// What a block has found for dweight and dbias.
template <typename T>
struct PartSums {
    T product, sum;
};

template <typename C, typename T, int BLOCKS>
__global__ void __launch_bounds__(THREADS, 2) __cluster_dims__(BLOCKS, 1, 1) batch_norm_grad_cluster(
    T* dx, C* dweight, C* dbias, const T* grad, const T* x, const C* mean, const C* rstd, const C* weight,
    long long samples, long long channels, long long area
) {
    __shared__ PartSums<C> of_block[BLOCKS];
    __shared__ Barrier come[CHUNKS];
    arrive_at_cluster();
    const long long c = blockIdx.x / BLOCKS;
    const ChannelPart<T> part(samples, channels, area, c, BLOCKS);
    constexpr int WIDTH = ChannelPart<T>::WIDTH;
    Vector<T>* const held_grad = shared_vectors<T>();
    Vector<T>* const held_x = held_grad + part.planes.all;
    part.load(held_grad, come, {grad, x});
    const C m = mean[c], r = rstd[c], scale = r * value_or(weight, c, C(1)), count = C(samples * area);

    C product = 0, sum = 0;
    part.as_they_come(come, [&](unsigned vector) {
        const Vector<C, WIDTH> g = converted<C>(held_grad[vector]), of_x = converted<C>(held_x[vector]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            product += g.lane[i] * ((of_x.lane[i] - m) * r);
            sum += g.lane[i];
        }
    });
    sum_over_row(product, sum, 0);
    wait_for_cluster();  // all blocks have started
    share_out(of_block, PartSums<C>{product, sum});
    product = sum = 0;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++) {
        product += of_block[block].product;
        sum += of_block[block].sum;
    }
    if (block_in_cluster() == 0 && threadIdx.x == 0) {
        dweight[c] = product;
        dbias[c] = sum;
    }
    const C slope = r * (product / count), mean_grad = sum / count;
    part.for_each([&](unsigned vector, long long at) {
        Vector<C, WIDTH> g = converted<C>(held_grad[vector]);
        const Vector<C, WIDTH> of_x = converted<C>(held_x[vector]);
#pragma unroll
        for (int i = 0; i < WIDTH; i++)
            g.lane[i] = gradient(g.lane[i], of_x.lane[i], m, slope, mean_grad, scale);
        store_vector(dx + at, converted<T>(g));
    });
}
