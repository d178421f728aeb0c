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
// Blocks give each other their sums by stores that a barrier in shared memory counts: a barrier of the cluster would
// have each thread wait until all that it has stored, to global memory too, is there.
//
// While blocks of one cluster wait for what they have asked for, those of another are computing or storing: shared
// memory has room for two of them on a multiprocessor, 110 KB each. A thread asks for all of its vectors before it
// uses the first, copies past the registers (async_copy.cuh), and reads only what it has copied: no barrier for that.
//
// A cluster takes channel after channel where there are fewer clusters than channels. Copies of the next channel then
// come while one is stored or, with shared memory for two (`ahead`), while it is computed, too.
//
// Arithmetic intensity: about 10 operations for the 8 bytes of an element in float32, 12 of the gradient: bound by
// memory, which moves two thirds of what batch_norm.cu needs, of the gradient three fifths.
//
// Grid: x = clusters * BLOCKS, the blocks of a cluster one after the other.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "async_copy.cuh"
#include "batch_norm.cuh"
#include "hopper.cuh"

constexpr int BLOCK_THREADS = 256;

// The block's parts of the cluster's channels, each in shared memory while it is channel c's turn: of all arrays, one
// behind the other. The vectors of a part are numbered, and a thread has every BLOCK_THREADS-th of them.
template <typename T, int BLOCKS, int ARRAYS>
struct HeldChannels {
    static constexpr int WIDTH = Vector<T>::LENGTH;
    const T* arrays[ARRAYS];
    Planes<WIDTH> planes;  // of channel 0; those of c begin c * area elements further
    long long c, step, channels, area;
    bool ahead;
    Vector<T> *held, *next_held;  // one place, or if ahead two in turns
    AsyncCopies copies;

    __device__ __forceinline__ HeldChannels(const T* const (&from)[ARRAYS], long long samples, long long channels,
                                            long long area, bool ahead)
        : planes(samples, channels, area, 0, block_in_cluster(), BLOCKS), c(blockIdx.x / BLOCKS),
          step(gridDim.x / BLOCKS), channels(channels), area(area), ahead(ahead) {
        extern __shared__ float4 shared[];
#pragma unroll
        for (int k = 0; k < ARRAYS; k++) arrays[k] = from[k];
        held = next_held = reinterpret_cast<Vector<T>*>(shared);
        load(held, c);
        if (!ahead) return;
        next_held += ARRAYS * planes.all;
        load(next_held, c + step);
    }

    __device__ __forceinline__ bool is_left() const { return c < channels; }

    // Until this thread's vectors of channel c are there.
    __device__ __forceinline__ void wait() {
        if (ahead)
            copies.template wait<1>();
        else
            copies.template wait<0>();
    }

    // This thread's vector of the array k, in the type C.
    template <typename C>
    __device__ __forceinline__ Vector<C, WIDTH> vector(unsigned number, int k = 0) const {
        return converted<C>(held[k * planes.all + number]);
    }

    // Goes to the cluster's next channel; this thread is done with its vectors.
    __device__ __forceinline__ void next() {
        load(held, c + (ahead ? 2 : 1) * step);
        Vector<T>* const other = held;
        held = next_held;
        next_held = other;
        c += step;
    }

    // How many elements the part has.
    __device__ __forceinline__ unsigned count() const { return planes.all * WIDTH; }

    // Calls function(number of a vector) for this thread's vectors.
    template <typename Function>
    __device__ __forceinline__ void for_each(Function function) const {
        for (unsigned vector = threadIdx.x; vector < planes.all; vector += BLOCK_THREADS) function(vector);
    }

    // Calls function(number of a vector, where it begins in memory) for this thread's vectors of a channel. From one
    // to the next it takes additions, no division.
    template <typename Function>
    __device__ __forceinline__ void for_each_place(long long channel, Function function) const {
        const unsigned whole = BLOCK_THREADS / planes.of_plane, rest = BLOCK_THREADS % planes.of_plane;
        const unsigned plane = threadIdx.x / planes.of_plane;
        unsigned in_plane = threadIdx.x - plane * planes.of_plane;
        long long begin = planes.start + channel * area + plane * planes.stride;
        for_each([&](unsigned vector) {
            function(vector, begin + in_plane * WIDTH);
            begin += whole * planes.stride;
            in_plane += rest;
            if (in_plane >= planes.of_plane) {
                in_plane -= planes.of_plane;
                begin += planes.stride;
            }
        });
    }

  private:
    // Starts the copies of this thread's vectors of a channel, if there is such a one.
    __device__ __forceinline__ void load(Vector<T>* to, long long channel) {
        if (channel < channels)
            for_each_place(channel, [&](unsigned vector, long long at) {
#pragma unroll
                for (int k = 0; k < ARRAYS; k++) copies.template copy<16>(to + k * planes.all + vector, arrays[k] + at);
            });
        copies.commit();
    }
};

// What each block of a cluster gives to all of them, round after round. Who gives for a round has what all gave for the
// round before, and has read what they gave for those before that: there are two places, in turns.
template <typename Value, int BLOCKS>
struct Exchange {
    struct {
        Value of_block[BLOCKS];
        Barrier come;
    } place[2];

    // To be called first, by all threads; before give() all wait_for_cluster().
    __device__ __forceinline__ void start() {
        if (threadIdx.x == 0) {
            for (auto& each : place) each.come.init(1);
            fence_barrier_init();
        }
        arrive_at_cluster_relaxed();
    }

    // Gives `own`, and returns what the blocks give for this round.
    __device__ __forceinline__ const Value (&give(const Value& own, int round))[BLOCKS] {
        auto& here = place[round % 2];
        if (threadIdx.x == 0) here.come.arrive_and_expect(sizeof here.of_block);
        if (threadIdx.x < BLOCKS)
            store_in_block(&here.of_block[block_in_cluster()], own, threadIdx.x, here.come);
        here.come.wait_for_blocks(round / 2 % 2);
        return here.of_block;
    }
};

template <typename C, typename T, int BLOCKS>
__global__ void __launch_bounds__(BLOCK_THREADS, 2) __cluster_dims__(BLOCKS, 1, 1) batch_norm_cluster(
    T* y, C* mean, C* rstd, const T* x, const C* weight, const C* bias, long long samples, long long channels,
    long long area, C eps, C* running_mean, C* running_var, long long* batches, Following following, bool ahead
) {
    __shared__ Exchange<Moments<C>, BLOCKS> exchange;
    exchange.start();
    HeldChannels<T, BLOCKS, 1> part({x}, samples, channels, area, ahead);
    constexpr int WIDTH = part.WIDTH;
    wait_for_cluster();  // all blocks have started
    for (int round = 0; part.is_left(); part.next(), round++) {
        const long long c = part.c;
        const C w = value_or(weight, c, C(1)), shift = value_or(bias, c, C(0));
        part.wait();

        // The deviations from the mean of each thread's first vector, whose own mean is what that is off (norm.cu).
        // That it is one of a 57th of the elements or more costs six bits at most, however different the others are.
        C sum = 0, firsts = 0;
        if (threadIdx.x < part.planes.all) {
            const Vector<C, WIDTH> elements = part.template vector<C>(threadIdx.x);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) sum += elements.lane[i];
            firsts = WIDTH;
        }
        sum_over_row(sum, firsts, 0);
        const C about = sum / firsts, count = C(part.count());
        C deviations = 0, squares = 0;
        part.for_each([&](unsigned vector) {
            const Vector<C, WIDTH> elements = part.template vector<C>(vector);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                const C deviation = elements.lane[i] - about;
                deviations += deviation;
                squares += deviation * deviation;
            }
        });
        sum_over_row(deviations, squares, 1);
        const C off = deviations / count, of_part = squares - deviations * off;
        const auto& of_block = exchange.give(Moments<C>{count, about + off, of_part < 0 ? C(0) : of_part}, round);
        Moments<C> moments = {};
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) moments.add(of_block[block]);

        const C m = moments.mean, r = moments.rstd(eps), scale = r * w;
        part.for_each_place(c, [&](unsigned vector, long long at) {
            Vector<C, WIDTH> elements = part.template vector<C>(vector);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) elements.lane[i] = (elements.lane[i] - m) * scale + shift;
            store_vector(y + at, converted<T>(elements));
        });
        if (block_in_cluster() == 0 && threadIdx.x == 0) {
            mean[c] = m;
            rstd[c] = r;
            Running<C>{running_mean, running_var, batches, following}.move(c, m, r, eps);
        }
    }
}

// What a block has found for dweight and dbias.
template <typename T>
struct PartSums {
    T product, sum;
};

template <typename C, typename T, int BLOCKS>
__global__ void __launch_bounds__(BLOCK_THREADS, 2) __cluster_dims__(BLOCKS, 1, 1) batch_norm_grad_cluster(
    T* dx, C* dweight, C* dbias, const T* grad, const T* x, const C* mean, const C* rstd, const C* weight,
    long long samples, long long channels, long long area, bool ahead
) {
    __shared__ Exchange<PartSums<C>, BLOCKS> exchange;
    exchange.start();
    HeldChannels<T, BLOCKS, 2> part({grad, x}, samples, channels, area, ahead);
    constexpr int WIDTH = part.WIDTH, GRAD = 0, X = 1;
    wait_for_cluster();  // all blocks have started
    for (int round = 0; part.is_left(); part.next(), round++) {
        const long long c = part.c;
        const C m = mean[c], r = rstd[c], scale = r * value_or(weight, c, C(1)), count = C(samples * area);
        part.wait();

        C product = 0, sum = 0;
        part.for_each([&](unsigned vector) {
            const Vector<C, WIDTH> g = part.template vector<C>(vector, GRAD), of_x = part.template vector<C>(vector, X);
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                product += g.lane[i] * ((of_x.lane[i] - m) * r);
                sum += g.lane[i];
            }
        });
        sum_over_row(product, sum, round % 2);
        const auto& of_block = exchange.give(PartSums<C>{product, sum}, round);
        product = sum = 0;
#pragma unroll
        for (int block = 0; block < BLOCKS; block++) {
            product += of_block[block].product;
            sum += of_block[block].sum;
        }

        const C slope = r * (product / count), mean_grad = sum / count;
        part.for_each_place(c, [&](unsigned vector, long long at) {
            Vector<C, WIDTH> g = part.template vector<C>(vector, GRAD);
            const Vector<C, WIDTH> of_x = part.template vector<C>(vector, X);
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                g.lane[i] = gradient(g.lane[i], of_x.lane[i], m, slope, mean_grad, scale);
            store_vector(dx + at, converted<T>(g));
        });
        if (block_in_cluster() == 0 && threadIdx.x == 0) {
            dweight[c] = product;
            dbias[c] = sum;
        }
    }
}
