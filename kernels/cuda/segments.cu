// Positions grouped by key: the segments of equal keys, in their order, from a stable radix sort.
//
//   order    the positions 0 .. n - 1 sorted by their keys; equal keys keep their order
//   sorted   the keys in that order
//   starts   for each key where its segment begins in both: it is [starts[key], starts[key + 1])
//
// Shapes: keys, sorted and order are (n,), starts (size + 1,), all 64-bit. Keys lie in [0, size); what lies
// outside counts as `size` and so comes last, in no segment.
//
//   radix_count      how often each digit occurs in each tile of the keys
//   radix_scatter    the keys of a tile to where they belong by this digit, with their positions
//   segment_starts   a binary search for each key
//
// A digit is a byte. The keys are sorted by the last one, then by the one before it, as many as `size` has.
// Each sort keeps the order of the one before where digits are equal, so that after the last the keys are
// sorted altogether. A tile belongs to a block, which finds by itself where its keys go: it adds up the
// counts of all tiles, few numbers beside the keys. So one digit takes two launches.
//
// Arithmetic intensity: none to speak of, for 8 + 32 bytes a key and digit. Few keys take as long as launches
// do.

#include "rows.cuh"

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int BITS = 8, DIGITS = 1 << BITS;  // a thread for each digit

static_assert(DIGITS == THREADS, "each thread adds up the counts of one digit");

__device__ __forceinline__ long long key_at(const long long* keys, long long i, long long size) {
    const long long key = keys[i];
    return key >= 0 && key < size ? key : size;
}

__device__ __forceinline__ int digit_of(long long key, int shift) { return int(key >> shift) & (DIGITS - 1); }

// counts[tile, digit]. Integers are added by atomics: their sum does not depend on the order.
//
// Grid: x = the tiles, of `tile` keys each.
__global__ void __launch_bounds__(THREADS) radix_count(
    unsigned int* counts, const long long* keys, long long n, long long size, long long tile, int shift
) {
    __shared__ unsigned int of_digit[DIGITS];
    of_digit[threadIdx.x] = 0;
    __syncthreads();  // before the first is counted
    const long long begin = blockIdx.x * tile, end = begin + tile < n ? begin + tile : n;
    for (long long i = begin + threadIdx.x; i < end; i += THREADS)
        atomicAdd(&of_digit[digit_of(key_at(keys, i, size), shift)], 1u);
    __syncthreads();  // all are counted
    counts[blockIdx.x * DIGITS + threadIdx.x] = of_digit[threadIdx.x];
}

// Where this tile's first key with the digit threadIdx.x goes: after all smaller digits of all tiles, and
// after the same digit in the tiles before.
__device__ __forceinline__ long long first_place(const unsigned int* counts, int tiles) {
    __shared__ long long of_warp[WARPS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    long long before = 0, total = 0;
#pragma unroll 8
    for (int t = 0; t < tiles; t++) {
        const unsigned int count = counts[(long long)t * DIGITS + threadIdx.x];
        before += t < blockIdx.x ? count : 0;
        total += count;
    }
    long long up_to = total;  // and the totals of the smaller digits, by a scan over the warp, and the warps
    for (int distance = 1; distance < WARP; distance *= 2) {
        const long long other = __shfl_up_sync(ALL_LANES, up_to, distance);
        if (lane >= distance) up_to += other;
    }
    if (lane == WARP - 1) of_warp[warp] = up_to;
    __syncthreads();  // all warps have left their sums
    for (int w = 0; w < warp; w++) before += of_warp[w];
    return before + up_to - total;
}

// The lanes with the same digit as this one, among those that are `valid`.
__device__ __forceinline__ unsigned int peers_of(int digit, bool valid) {
    unsigned int peers = __ballot_sync(ALL_LANES, valid);
    for (int bit = 0; bit < BITS; bit++) {
        const unsigned int ones = __ballot_sync(ALL_LANES, digit >> bit & 1);
        peers &= digit >> bit & 1 ? ones : ~ones;
    }
    return peers;
}

// A round takes 256 keys. Among its equal digits a key comes after those of the lanes and of the warps
// before.
//
// Grid: x = the tiles. `order` is null for the first digit: 0, 1, 2, ...
__global__ void __launch_bounds__(THREADS) radix_scatter(
    long long* sorted, long long* sorted_order, const long long* keys, const long long* order,
    const unsigned int* counts, long long n, long long size, long long tile, int tiles, int shift
) {
    __shared__ unsigned int of_warp[WARPS][DIGITS];  // how many keys of a digit; then, how many are before it
    __shared__ long long place[DIGITS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    place[threadIdx.x] = first_place(counts, tiles);
    const long long begin = blockIdx.x * tile, end = begin + tile < n ? begin + tile : n;
    for (long long first = begin; first < end; first += THREADS) {
        const long long i = first + threadIdx.x;
        const bool valid = i < end;
        const long long key = valid ? key_at(keys, i, size) : 0;
        const int digit = digit_of(key, shift);
        for (int w = 0; w < WARPS; w++) of_warp[w][threadIdx.x] = 0;
        __syncthreads();  // zeros and places are set
        const unsigned int peers = peers_of(digit, valid);
        const int rank = __popc(peers & ((1u << lane) - 1));
        if (valid && rank == 0) of_warp[warp][digit] = __popc(peers);
        __syncthreads();  // all warps have counted theirs
        unsigned int before = 0;
        for (int w = 0; w < WARPS; w++) {
            const unsigned int count = of_warp[w][threadIdx.x];
            of_warp[w][threadIdx.x] = before;
            before += count;
        }
        __syncthreads();  // each key finds how many are before it
        if (valid) {
            const long long to = place[digit] + of_warp[warp][digit] + rank;
            sorted[to] = key;
            sorted_order[to] = order ? order[i] : i;
        }
        __syncthreads();  // all have read their places
        place[threadIdx.x] += before;
    }
}

// Grid: x = a thread for each of the size + 1 starts.
__global__ void segment_starts(long long* starts, const long long* sorted, long long n, long long size) {
    const long long key = global_thread_index();
    if (key > size) return;
    long long low = 0, high = n;
    while (low < high) {
        const long long middle = (low + high) / 2;
        if (sorted[middle] < key)
            low = middle + 1;
        else
            high = middle;
    }
    starts[key] = low;
}
