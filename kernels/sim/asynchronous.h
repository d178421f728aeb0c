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
    static constexpr uint64_t BITS_16 = 1, BITS_32 = 2, TF32 = 11;  // kinds: as of cuda.h
    static constexpr uint64_t MAGIC = 0x5D0B0C5, MAGIC_OF_IMAGES = 0x5D0B0C6;
    struct Boxes {
        uint64_t sizes[3], strides[2];  // elements; bytes
        uint64_t box[3];
        uint64_t fourth_size, fourth_stride;  // 0 of a tensor of three dimensions
        uint64_t unused[2];
    };
    struct Images {
        uint64_t sizes[4], strides[3];  // channels, columns, rows, images
        int8_t lower[2], upper[2];      // where the filter's first and last corners are, across and down
        uint8_t steps[2], none[2];
        uint64_t unused[4];
    };

    uint64_t address, kind, element;  // the last in bytes
    union {
        Boxes boxes;
        Images images;
    };
    uint64_t magic;

    bool is_of_images() const { return magic == MAGIC_OF_IMAGES; }
    int dimensions() const { return is_of_images() || boxes.fourth_size ? 4 : 3; }
};
static_assert(sizeof(TensorMap) == 128);

// A box of a tensor, or a word that a thread stores, and where it goes in shared memory.
struct BoxInTensor {
    TensorMap map;
    int at[4];
    int offset[2];  // of images: from the filter's corner to the tap
    unsigned char* box;
    bool is_word;
    uint32_t word;

    static constexpr size_t ROW_BYTES = 128, CHUNK = 16, ALIGNMENT = 1024, PIXELS = 64;
    size_t rows() const { return map.is_of_images() ? PIXELS : map.boxes.box[1] * map.boxes.box[2]; }
    size_t bytes() const { return is_word ? sizeof word : rows() * ROW_BYTES; }

    // Calls `visit(row, address)` for each row of the box, with where x = 0 of it is in memory; 0: outside.
    template <class Visit>
    void each_row(Visit visit) const {
        const auto is_in = [](int64_t i, uint64_t size) { return 0 <= i && i < int64_t(size); };
        if (!map.is_of_images()) {
            const TensorMap::Boxes& t = map.boxes;
            for (size_t row = 0; row < rows(); row++) {
                const int64_t y = at[1] + int64_t(row % t.box[1]), z = at[2] + int64_t(row / t.box[1]);
                const int64_t w = map.dimensions() == 4 ? at[3] : 0;
                const bool inside = is_in(y, t.sizes[1]) && is_in(z, t.sizes[2]) && (w == 0 || is_in(w, t.fourth_size));
                visit(row, inside ? map.address + w * t.fourth_stride + z * t.strides[1] + y * t.strides[0] : 0);
            }
            return;
        }
        const TensorMap::Images& t = map.images;
        int64_t corner[] = {at[1], at[2]}, image = at[3];
        for (size_t row = 0; row < rows(); row++) {
            const int64_t x = corner[0] + offset[0], y = corner[1] + offset[1];
            const bool inside = is_in(x, t.sizes[1]) && is_in(y, t.sizes[2]) && is_in(image, t.sizes[3]);
            visit(row, inside ? map.address + image * t.strides[2] + y * t.strides[1] + x * t.strides[0] : 0);
            corner[0] += t.steps[0];
            if (corner[0] <= last_corner(0)) continue;
            corner[0] = t.lower[0];
            corner[1] += t.steps[1];
            if (corner[1] <= last_corner(1)) continue;
            corner[1] = t.lower[1];
            image++;
        }
    }

    int64_t last_corner(int axis) const { return int64_t(map.images.sizes[1 + axis]) - 1 + map.images.upper[axis]; }

    // Calls `visit(chunk, address, bytes)` for each 16 bytes of the box, `bytes` of which the tensor has.
    template <class Visit>
    void each_chunk(Visit visit) const {
        if (is_word) return;
        const int64_t columns = CHUNK / map.element;
        const int64_t size = map.is_of_images() ? map.images.sizes[0] : map.boxes.sizes[0];
        each_row([&](size_t row, uint64_t address) {
            for (size_t c = 0; c < ROW_BYTES / CHUNK; c++) {
                unsigned char* chunk = box + row * ROW_BYTES + (c ^ row % 8) * CHUNK;
                const int64_t x = at[0] + int64_t(c) * columns, begin = std::max<int64_t>(x, 0);
                const int64_t end = std::min<int64_t>(x + columns, size);
                const bool any = address && begin < end;
                visit(chunk, any ? (begin - x) * map.element : 0,
                      reinterpret_cast<unsigned char*>(address + begin * map.element),
                      any ? (end - begin) * map.element : 0);
            }
        });
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
    std::vector<Fiber*> here;  // who waits
    int arrived = 0;           // how many have come, with those who do not wait
    int count = 0;             // of how many
    Clocks::Row seen;          // by those who do not wait
};

// Sums of a warpgroup that are at work: 64 x 256 at most.
struct Accumulator {
    static constexpr int ROWS = 64, COLUMNS = 256;
    int columns;
    float (*sums[WARPGROUP])[4];  // where the threads have them
    std::vector<float> values = std::vector<float>(ROWS * COLUMNS);  // rows of COLUMNS
    uint32_t group = 0;            // the last that adds to them
    std::bitset<WARPGROUP> taken;  // by thread: whether it has them back
};

// A thread's registers that are factors of a product at work.
struct FactorsAtWork {
    const unsigned (*registers)[4];
    unsigned values[4];
    uint32_t group;
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
    uint32_t at_cluster_barrier = 0;  // the phase in which it has arrived and not waited; 0: none
    std::vector<Store> stores;
    uint32_t store_groups = 0;
    uint32_t box_clock = 0, tensor_clock = 0;  // of its stores: when they read boxes, and when they write
    uint32_t wgmma_groups = 0;
    bool wgmma_fenced = false;
    std::vector<FactorsAtWork> factors;
};

}  // namespace
