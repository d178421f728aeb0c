// The worker's side of the copy engine of compute capability 9.0 (see asynchronous.h).
#pragma once

#include "worker.h"

namespace {

// To 10 bits of mantissa, to nearest.
uint32_t round_to_tf32(uint32_t bits) {
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? bits : (bits + 0x1000) & ~0x1FFFu;
}

BoxInTensor Worker::box_in_tensor(const sim::BoxCopy& copy, const char* what) {
    BoxInTensor box{};
    memcpy(&box.map, copy.map, sizeof box.map);
    std::copy(copy.at, copy.at + 4, box.at);
    std::copy(copy.offset, copy.offset + 2, box.offset);
    if (box.map.magic != (copy.of_images ? TensorMap::MAGIC_OF_IMAGES : TensorMap::MAGIC))
        fail("%s: the tensor map is not one of the simulator's for such copies", what);
    if (box.map.dimensions() != copy.dimensions)
        fail("%s: the copy says where it is in %d dimensions, and the tensor map has %d", what, copy.dimensions,
             box.map.dimensions());
    for (int axis = 0; axis < 2 && copy.of_images; axis++) {
        const int lower = box.map.images.lower[axis], upper = int(box.last_corner(axis)), corner = box.at[1 + axis];
        const char* const name = axis ? "y" : "x";
        if (corner < lower || corner > upper)
            fail("%s: the filter's corner is at %s = %d, outside of where the map has it: %d to %d", what, name, corner,
                 lower, upper);
        if (box.offset[axis] < 0 || box.offset[axis] > 255)
            fail("%s: the tap is %d from the filter's corner along %s, and has to be 0 to 255", what, box.offset[axis],
                 name);
    }
    if (reinterpret_cast<uintptr_t>(copy.box) % BoxInTensor::ALIGNMENT)
        fail("%s: the box is %zu bytes past a multiple of %zu, after which the swizzle repeats", what,
             size_t(reinterpret_cast<uintptr_t>(copy.box) % BoxInTensor::ALIGNMENT), BoxInTensor::ALIGNMENT);
    return box;
}

void Worker::load_box(const sim::BoxCopy& copy, const void* return_address) {
    settle();
    BoxInTensor load = box_in_tensor(copy, copy.of_images ? "load_pixels" : "load_box");
    if (profiling) profiler.copy(load, Kind::LOAD, reinterpret_cast<uintptr_t>(return_address));
    const unsigned own = 1u << rank(), all = copy.blocks ? copy.blocks : own;
    for (unsigned to = 0; all >> to; to++) {
        if (!(all >> to & 1)) continue;
        load.box = in_block(copy.box, to, "load_box");
        visit(to, "load_box");
        start_load(load, in_block(copy.barrier, to, "load_box"), "load_box", return_address);
    }
}

// A word that comes to another block, or the own one, as a box does.
void Worker::store_in_block(void* to, uint32_t word, unsigned block, void* barrier, const void* return_address) {
    settle();
    if (reinterpret_cast<uintptr_t>(to) % sizeof word) fail("store_in_block: the address is no multiple of 4");
    BoxInTensor store{};
    store.is_word = true;
    store.word = word;
    store.box = in_block(to, block, "store_in_block");
    visit(block, "store_in_block");
    start_load(store, in_block(barrier, block, "store_in_block"), "store_in_block", return_address);
}

void Worker::start_load(const BoxInTensor& load, const void* address, const char* what,
                        const void* return_address) {
    MemoryBarrier& barrier = barrier_at(address, what, return_address);
    if (!barrier.fenced)
        fail("%s: the copy engine may not see the barrier: call fence_barrier_init() after its init()", what);
    if (!barrier.pending) try_complete(address, barrier);
    if (clocked) {
        const View view = clocks.view(current->number);
        const uint32_t time = barrier.phase + 1;
        load.each_chunk([&](unsigned char*, size_t, unsigned char* from, size_t bytes) {
            if (bytes) check(from, bytes, Kind::LOAD, return_address, view, barrier.clock, time);
        });
        check(load.box, load.bytes(), Kind::START_OF_STORE, return_address, view, barrier.clock, time);
        clocks.release(current->number, barrier.arrived);
    }
    barrier.loads.push_back(load);
    barrier.bytes -= load.bytes();
    notify(address, barrier);
}

void Worker::finish_load(const BoxInTensor& load) {
    if (load.is_word) memcpy(load.box, &load.word, sizeof load.word);
    load.each_chunk([&](unsigned char* chunk, size_t skip, const unsigned char* from, size_t bytes) {
        memset(chunk, 0, BoxInTensor::CHUNK);
        if (bytes) memcpy(chunk + skip, from, bytes);
        if (load.map.kind != TensorMap::TF32) return;
        for (size_t i = 0; i < BoxInTensor::CHUNK; i += 4) {
            uint32_t bits;
            memcpy(&bits, chunk + i, 4);
            bits = round_to_tf32(bits);
            memcpy(chunk + i, &bits, 4);
        }
    });
    if (watching) watcher.mark_written(load.box, load.bytes());
}

void Worker::store_box(const sim::BoxCopy& copy, const void* return_address) {
    settle();
    Asynchronous& mine = current->asynchronous;
    Store store{box_in_tensor(copy, "store_box"), ++mine.store_groups};
    if (const int least = std::min({copy.at[0], copy.at[1], copy.at[2]}); least < 0)
        fail("store_box: the box begins at %d, before the tensor, which on a card only a load may do", least);
    if (profiling) profiler.copy(store, Kind::STORE, reinterpret_cast<uintptr_t>(return_address));
    store.box = in_block(copy.box, rank(), "store_box");
    if (clocked) {
        if (!mine.box_clock) mine.box_clock = new_clock(), mine.tensor_clock = new_clock();
        const View view = clocks.view(current->number);
        store.each_chunk([&](unsigned char* chunk, size_t skip, unsigned char* to, size_t bytes) {
            if (!bytes) return;
            check(chunk + skip, bytes, Kind::LOAD, return_address, view, mine.box_clock, store.group);
            check(to, bytes, Kind::START_OF_STORE, return_address, view, mine.tensor_clock, store.group);
        });
    }
    mine.stores.push_back(store);
}

void Worker::wait_for_stores(int left) {
    settle();
    Asynchronous& mine = current->asynchronous;
    const uint32_t done = mine.store_groups - std::min<uint32_t>(left, mine.store_groups);
    std::erase_if(mine.stores, [&](const Store& store) {
        if (store.group > done) return false;
        store.each_chunk([&](const unsigned char* chunk, size_t skip, unsigned char* to, size_t bytes) {
            if (!bytes) return;
            memcpy(to, chunk + skip, bytes);
            if (watching) watcher.mark_written(to, bytes);
        });
        return true;
    });
    if (clocked && mine.box_clock) clocks.see(current->number, mine.box_clock, done);
}

void Worker::fence_for_copies() {
    settle();
    if (clocked) clocks.fence(current->number);
}

}  // namespace
