// What compute capability 9.0 adds, as a worker keeps it: barriers in shared memory, copies that the copy engine
// makes (TMA), and products of a warpgroup that are at work (wgmma). See hopper.cuh for what kernels call.
//
// Nothing comes before somebody waits for it: a box arrives when its barrier is waited for, a store is made when it
// is waited for, and the sums of a wgmma are NaN until wgmma_wait(). So a kernel that forgets to wait computes
// something else, and a checked launch reports the access (clocks.h).
#pragma once
#include <stdint.h>

#include <bitset>
#include <vector>

#include "clocks.h"
#include "runtime.h"

namespace {

struct Fiber;

constexpr unsigned WARPGROUP = 128;

// The fields of hopper.cuh's TensorMap, as tensor_map.py encodes them for the simulator.
struct TensorMap {
    static constexpr uint64_t BITS_16 = 1, BITS_32 = 2, TF32 = 11, MAGIC = 0x5D0B0C5;  // kinds: as of cuda.h
    uint64_t address, kind, element;  // the last in bytes
    uint64_t sizes[3], strides[2];    // elements; bytes
    uint64_t box[3], unused[4], magic;
};
static_assert(sizeof(TensorMap) == 128);

// A box of a tensor, and where it lies in shared memory.
struct BoxInTensor {
    TensorMap map;
    int at[3];
    unsigned char* box;

    static constexpr size_t ROW_BYTES = 128, CHUNK = 16, ALIGNMENT = 1024;
    size_t rows() const { return map.box[1] * map.box[2]; }
    size_t bytes() const { return rows() * ROW_BYTES; }

    // Calls `visit(chunk, address, bytes)` for each 16 bytes of the box, `bytes` of which the tensor has.
    template <class Visit>
    void each_chunk(Visit visit) const {
        const int64_t columns = CHUNK / map.element;
        for (size_t row = 0; row < rows(); row++) {
            const int64_t y = at[1] + int64_t(row % map.box[1]), z = at[2] + int64_t(row / map.box[1]);
            const bool inside = 0 <= y && y < int64_t(map.sizes[1]) && 0 <= z && z < int64_t(map.sizes[2]);
            for (size_t c = 0; c < ROW_BYTES / CHUNK; c++) {
                unsigned char* chunk = box + row * ROW_BYTES + (c ^ row % 8) * CHUNK;
                const int64_t x = at[0] + int64_t(c) * columns, begin = std::max<int64_t>(x, 0);
                const int64_t end = std::min<int64_t>(x + columns, map.sizes[0]);
                const bool any = inside && begin < end;
                const uint64_t from = map.address + z * map.strides[1] + y * map.strides[0] + begin * map.element;
                visit(chunk, any ? (begin - x) * map.element : 0, reinterpret_cast<unsigned char*>(from),
                      any ? (end - begin) * map.element : 0);
            }
        }
    }
};

struct Store : BoxInTensor {
    uint32_t group;
};

struct MemoryBarrier {
    uint32_t expected = 0, pending = 0;  // arrivals in each phase, and those that this one lacks
    uint32_t phase = 0;                  // how many have ended
    int64_t bytes = 0;                   // announced, less those of copies that have been started
    const Fiber* owner = nullptr;        // who made it
    bool fenced = false;                 // whether the copy engine and other blocks see that
    std::vector<BoxInTensor> loads;      // of this phase
    uint32_t clock = 0;
    Clocks::Row arrived, ended;  // what was seen by those who came, up to now, and up to the end of the last phase
};

struct NamedBarrier {
    std::vector<Fiber*> here;
    int count = 0;  // for how many they wait
};

// Sums of a warpgroup that are at work: 64 x 256.
struct Accumulator {
    static constexpr int ROWS = 64, COLUMNS = 256;
    float (*sums[WARPGROUP])[4];  // where the threads have them
    std::vector<float> values = std::vector<float>(ROWS * COLUMNS);
    uint32_t group = 0;            // the last that adds to them
    std::bitset<WARPGROUP> taken;  // by thread: whether it has them back
};

struct Warpgroup {
    unsigned arrived = 0;  // at `place`, where all threads meet
    sim::Place place{};
    const void* calls[WARPGROUP];  // what each brings
    std::vector<Accumulator> at_work;
    uint32_t clock = 0;
};

// What a thread has set to work, and what it waits for.
struct Asynchronous {
    const void* waits_for = nullptr;
    std::vector<Store> stores;
    uint32_t store_groups = 0;
    uint32_t box_clock = 0, tensor_clock = 0;  // of its stores: when they read boxes, and when they write
    uint32_t wgmma_groups = 0;
    bool wgmma_fenced = false;
};

}  // namespace
