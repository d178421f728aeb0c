// What hopper.cuh declares, for the simulator: each function does what its namesake there does. The work is the
// runtime's (barriers.h, copy_engine.h, warpgroups.h).
#pragma once
#include "float16.h"
#include "runtime.h"

#define SIM_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// Where in the block's shared memory the pointer points to: a descriptor has room for as much.
__forceinline__ unsigned shared_address(const void* pointer) { return sim_shared_address(pointer); }

// ---- barriers ----

struct Barrier {
    unsigned long long state;  // is the runtime's, which knows the barrier by its address

    __forceinline__ void init(int arrivals) { sim_barrier_init(this, arrivals); }
    __forceinline__ void arrive_and_expect(unsigned bytes) { sim_barrier_arrive(this, sim_block_in_cluster(), bytes); }
    __forceinline__ void arrive_at(unsigned block) { sim_barrier_arrive(this, block, 0); }
    __forceinline__ void wait(int parity, SIM_PLACE) {
        const sim::Place place = {"Barrier::wait()", file, line};
        sim_barrier_wait(this, parity, &place);
    }
    __forceinline__ void wait_for_blocks(int parity, SIM_PLACE) {
        const sim::Place place = {"Barrier::wait_for_blocks()", file, line};
        sim_barrier_wait(this, parity, &place);
    }
};

__forceinline__ void fence_barrier_init() { sim_fence_barriers(); }
__forceinline__ void arrive_at_cluster() { sim_arrive_at_cluster("arrive_at_cluster()"); }
__forceinline__ void wait_for_cluster(SIM_PLACE) {
    const sim::Place place = {"wait_for_cluster()", file, line};
    sim_wait_for_cluster(&place);
}
__forceinline__ void sync_cluster(SIM_PLACE) {
    const sim::Place place = {"sync_cluster()", file, line};
    sim_arrive_at_cluster(place.what);
    sim_wait_for_cluster(&place);
}
// Relaxed as they are, the simulator has them order all that the others do.
__forceinline__ void arrive_at_cluster_relaxed() { sim_arrive_at_cluster("arrive_at_cluster_relaxed()"); }
__forceinline__ void sync_cluster_relaxed(SIM_PLACE) {
    const sim::Place place = {"sync_cluster_relaxed()", file, line};
    sim_arrive_at_cluster(place.what);
    sim_wait_for_cluster(&place);
}
template <typename T>
__forceinline__ T* in_block(T* pointer, unsigned block) {
    return static_cast<T*>(sim_in_block(pointer, block));
}
template <typename Value>
__forceinline__ void store_in_block(Value* to, const Value& value, unsigned block, Barrier& barrier) {
    const Words<Value> words(value);
    for (int i = 0; i < words.COUNT; i++)
        sim_store_in_block(reinterpret_cast<unsigned*>(to) + i, words.word[i], block, &barrier);
}
__forceinline__ unsigned block_in_cluster() { return sim_block_in_cluster(); }
__forceinline__ void sync_warpgroup(int number, SIM_PLACE) {
    const sim::Place place = {"sync_warpgroup()", file, line};
    sim_named_barrier(number, WARPGROUP, true, &place);
}
template <int COUNT>
__forceinline__ void sync_threads(int number, SIM_PLACE) {
    const sim::Place place = {"sync_threads()", file, line};
    sim_named_barrier(number, COUNT, true, &place);
}
template <int COUNT>
__forceinline__ void arrive_without_waiting(int number, SIM_PLACE) {
    const sim::Place place = {"arrive_without_waiting()", file, line};
    sim_named_barrier(number, COUNT, false, &place);
}

template <int COUNT>
__forceinline__ void give_registers(SIM_PLACE) {
    const sim::Place place = {"give_registers()", file, line};
    sim_set_registers(COUNT, &place);
}
template <int COUNT>
__forceinline__ void take_registers(SIM_PLACE) {
    const sim::Place place = {"take_registers()", file, line};
    sim_set_registers(COUNT, &place);
}

// ---- copies of boxes ----

__forceinline__ void load_box(void* box, const TensorMap& map, int x, int y, int z, Barrier& barrier,
                              unsigned short blocks = 0) {
    const sim::BoxCopy copy = {box, &map, {x, y, z}, &barrier, blocks};
    sim_load_box(&copy);
}
__forceinline__ void load_box(void* box, const TensorMap& map, int x, int y, int z, int w, Barrier& barrier) {
    const sim::BoxCopy copy = {box, &map, {x, y, z, w}, &barrier, 0, 4};
    sim_load_box(&copy);
}
__forceinline__ void load_pixels(void* box, const TensorMap& map, int channel, int x, int y, int image, int right,
                                 int down, Barrier& barrier) {
    const sim::BoxCopy copy = {box, &map, {channel, x, y, image}, &barrier, 0, 4, true, {right, down}};
    sim_load_box(&copy);
}
__forceinline__ void store_box(const TensorMap& map, int x, int y, int z, const void* box) {
    const sim::BoxCopy copy = {const_cast<void*>(box), &map, {x, y, z}};
    sim_store_box(&copy);
}
template <int LEFT>
__forceinline__ void wait_for_stores() {
    sim_wait_for_stores(LEFT);
}
__forceinline__ void fence_for_copies() { sim_fence_for_copies(); }

// ---- wgmma ----

__forceinline__ void wgmma_fence() { sim_wgmma_fence(); }
__forceinline__ void wgmma_commit() { sim_wgmma_commit(); }
template <int LEFT>
__forceinline__ void wgmma_wait(SIM_PLACE) {
    const sim::Place place = {"wgmma_wait()", file, line};
    sim_wgmma_wait(LEFT, &place);
}

template <typename T>
float widen_factor(unsigned bits) {
    if constexpr (sizeof(T) == 4)
        return sim::bits<float>(bits & ~0x1FFFu);  // cut to TF32
    else
        return T::of_bits(bits);
}

template <typename T, bool A_ALONG_M, bool B_ALONG_N, int COUNT>
__forceinline__ void wgmma(float (&sums)[COUNT][4], unsigned long long a, unsigned long long b, bool add, SIM_PLACE) {
    static_assert(sizeof(T) == 2 || !(A_ALONG_M || B_ALONG_N), "TF32 operands lie along k");
    static_assert(COUNT == 8 || COUNT == 16 || COUNT == 24 || COUNT == 32, "64, 128, 192 or 256 columns");
    const sim::Element element = {sizeof(T), widen_factor<T>};
    const sim::Wgmma call = {sums, a, b, nullptr, element, A_ALONG_M, B_ALONG_N, add, 8 * COUNT};
    const sim::Place place = {"wgmma()", file, line};
    sim_wgmma(&call, &place);
}

template <typename T, bool B_ALONG_N, int COUNT>
__forceinline__ void wgmma(float (&sums)[COUNT][4], const unsigned (&a)[4], unsigned long long b, SIM_PLACE) {
    static_assert(sizeof(T) == 2 && (COUNT == 8 || COUNT == 16), "16 bits, 64 or 128 columns");
    const sim::Wgmma call = {sums, 0, b, &a, {sizeof(T), widen_factor<T>}, false, B_ALONG_N, true, 8 * COUNT};
    const sim::Place place = {"wgmma()", file, line};
    sim_wgmma(&call, &place);
}

template <typename T, int COUNT>
__forceinline__ void wgmma_is_done(T (&)[COUNT][4]) {}

#undef SIM_PLACE
