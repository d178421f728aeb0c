// Watches the memory accesses of a checked launch: bounds, const arrays and races.
//
// A checked kernel is compiled with -fsanitize=thread, which puts a call before every load and store. The
// calls end in the simulator's own hooks (hooks.h) instead of the sanitizer's runtime, and from there in a
// Watcher, which knows the arrays of the launch and the block's shared variables: its regions.
//
// A race is two accesses of one byte by two threads, at least one of them a store and not both atomic, that
// nothing orders. Two habits that are races by this rule, but do no harm on any card, are let pass: a store
// of the value that is there already (all threads set one flag), and a plain load of what others update by
// atomicCAS (the first guess of a loop around it). What orders them: __syncthreads() for the threads of a block, __syncwarp() for the lanes of
// its mask, and nothing at all for two blocks (but see `publish`). Each granule of memory (an element of at
// most 8 bytes) remembers its last store and two loads; two are enough to find every race with a later store,
// if those that differ most are kept: of two blocks, else of two warps, else of two threads.
#pragma once
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "runtime.h"

namespace {

// An array of a launch, as Python describes it. A null pointer among the arguments has no bytes.
struct Array {
    uintptr_t begin;
    size_t bytes;
    uint32_t element;  // bytes of one
    uint32_t writeable;
    const char* name;         // "x"
    const char* description;  // "`const float* x` of shape (3, 4)"
};

// What a checked launch has beyond a plain one.
struct Checks {
    const Array* arrays;
    size_t count;
    size_t argument_bytes;
};

enum class Kind : uint8_t { LOAD, STORE, ATOMIC_LOAD, ATOMIC_UPDATE, COMPARE_AND_SWAP };

// The thread that makes an access, and where it stands between barriers.
struct Who {
    uint64_t block;          // as one number, x fastest
    uint32_t interval;       // how many barriers its block has passed
    uint32_t warp_interval;  // how many __syncwarp() it has passed since the block's last barrier
    uint32_t thread;         // threadIdx as one number
};

// An access that a granule remembers. All zero: none.
struct Event {
    uint32_t block;  // from 1
    uint32_t interval;
    uint32_t warp_interval : 20, thread : 10, atomic : 1, swap : 1;  // swap: by atomicCAS, atomic too
    uint32_t pc : 24, bytes : 8;  // where in the library; which bytes of the granule, as a mask

    bool exists() const { return block != 0; }
    unsigned warp() const { return thread / 32; }
    // Whether the program orders this event before `next`, which comes later in the simulation.
    bool before(const Event& next) const {
        if (block != next.block) return false;
        if (interval != next.interval || thread == next.thread) return true;
        return warp() == next.warp() && warp_interval < next.warp_interval;
    }
};

struct Granule {
    Event store, loads[2];

    void remember_load(const Event& next) {
        const bool old[2] = {!loads[0].exists() || loads[0].before(next), !loads[1].exists() || loads[1].before(next)};
        if (old[0]) {
            loads[0] = next;
            if (old[1]) loads[1] = {};
        } else if (old[1]) {
            loads[1] = next;
        } else if (loads[0].block == loads[1].block &&
                   (next.block != loads[0].block ||
                    (loads[0].warp() == loads[1].warp() && next.warp() != loads[0].warp()))) {
            loads[1] = next;
        }
    }
};

// A piece of memory that the kernel may use: an array of the launch or a variable in shared memory.
struct Region {
    uintptr_t begin = 0;
    size_t bytes = 0;
    uint32_t element = 1;
    bool writeable = true, shared = false;
    std::string name, description;
    unsigned granule_shift = 0;
    std::unique_ptr<Granule[], void (*)(void*)> granules{nullptr, free};  // none: it is never written

    bool contains(uintptr_t address, size_t size) const {
        return address - begin < bytes && size <= bytes - (address - begin);
    }

    void watch_races() {
        while (granule_shift < 3 && element % (2u << granule_shift) == 0) granule_shift++;
        const size_t count = (bytes >> granule_shift) + 1;
        // Zeroed by the system, page by page when they are touched.
        granules.reset(static_cast<Granule*>(calloc(count, sizeof(Granule))));
    }
};

class Watcher {
  public:
    void begin_launch(const Checks& checks, void (*entry)(const unsigned char*), const unsigned char* arguments,
                      dim3 grid, dim3 block) {
        *this = Watcher();
        grid_size = grid, block_size = block;
        library_begin = reinterpret_cast<uintptr_t>(entry);
        dl_iterate_phdr(find_library, this);
        arguments_begin = reinterpret_cast<uintptr_t>(arguments), argument_bytes = checks.argument_bytes;
        // Arrays that are written come first: memory that is also passed as const may be written.
        for (bool writeable : {true, false})
            for (size_t i = 0; i < checks.count; i++) {
                const Array& array = checks.arrays[i];
                if (bool(array.writeable) != writeable || (array.bytes && find(array.begin, array.bytes))) continue;
                if (!array.begin) null_arguments += std::string(null_arguments.empty() ? " " : ", ") + array.description;
                if (!array.begin) continue;
                Region& region = add(array.begin, array.bytes, array.element, array.name, array.description);
                region.writeable = writeable;
                if (writeable) region.watch_races();
            }
    }

    void begin_block() { acquired = false; }

    void add_shared(void* address, size_t bytes, size_t element, const char* name) {
        const auto begin = reinterpret_cast<uintptr_t>(address);
        for (const Region& region : regions)
            if (region.begin == begin && region.shared) return;
        std::string description = std::string("the shared variable ") + name;
        Region& region = add(begin, bytes, element, name, description.c_str());
        region.shared = true;
        region.watch_races();
    }

    // Null if the access is sound; else what is wrong with it.
    const char* check(uintptr_t address, size_t size, Kind kind, uintptr_t return_address, const Who& who) {
        const uintptr_t pc = return_address - library_begin;
        Region*& guess = guesses[pc * 0x9E3779B1u >> 6 & (GUESSES - 1)];  // an instruction keeps to its array
        const bool store = kind != Kind::LOAD && kind != Kind::ATOMIC_LOAD;
        if (const char* wrong = settle()) return wrong;
        if (!guess || !guess->contains(address, size) || (store && !guess->writeable)) {
            if (address - library_begin < library_bytes || address - arguments_begin < argument_bytes) return nullptr;
            Region* found = find(address, size);
            if (!found) return outside(address, size, store, pc);
            if (store && !found->writeable) return writes_const(*found, address, pc);
            guess = found;
        }
        if (store && kind != Kind::STORE && !guess->shared) {
            acquired = true;
            if (fenced) published[who.block] = true;
        }
        if (!guess->granules || kind == Kind::ATOMIC_LOAD) return nullptr;  // an atomic load is half of an update
        return find_race(*guess, address, size, kind, pc, who);
    }

    // Called before each access, and before another thread runs: whether the last store, if it came after
    // another thread's access, has changed what was there. Null if not.
    const char* settle() {
        if (!doubtful.region) return nullptr;
        const Doubtful store = std::exchange(doubtful, {});
        const void* memory = reinterpret_cast<const void*>(store.region->begin + store.offset);
        if (memcmp(memory, store.before, store.bytes) == 0) return nullptr;
        return race(*store.region, store.at, store.earlier, store.earlier_stored, store.now, true);
    }

    // A block that calls __threadfence() and then an atomic operation publishes what it has written; one that
    // makes an atomic operation may then read it. Which atomic variable they meet at is not compared, so
    // that no correct kernel is accused, and some races of kernels with fences go unseen.
    void publish() {
        fenced = true;
        if (published.empty()) published.resize(size_t(grid_size.x) * grid_size.y * grid_size.z);
    }

    // What lies at an address, for a message: "x[3]".
    const char* name_of(uintptr_t address) {
        const Region* region = find(address, 1);
        complaint = region ? index_text(*region, address - region->begin) : "a pointer";
        return complaint.c_str();
    }

    uint3 thread_index(uint32_t thread) const {
        return {thread % block_size.x, thread / block_size.x % block_size.y, thread / block_size.x / block_size.y};
    }

    // `<pc 1234>` in a text stands for a line of the kernel's source, and `<order 1234 5678 warp>` for advice on
    // how to order the accesses of two lines by two threads of one warp (or block): Python puts them in.
    std::string place(uintptr_t pc) const {
        char text[32];
        snprintf(text, sizeof text, "<pc %zx>", size_t(pc));
        return text;
    }

  private:
    static constexpr size_t GUESSES = 256;

    Region& add(uintptr_t begin, size_t bytes, size_t element, const char* name, const char* description) {
        Region& region = regions.emplace_back();
        region.begin = begin, region.bytes = bytes, region.element = element;
        region.name = name, region.description = description;
        return region;
    }

    Region* find(uintptr_t address, size_t size) {
        for (Region& region : regions)
            if (region.contains(address, size)) return &region;
        return nullptr;
    }

    const char* find_race(Region& region, uintptr_t address, size_t size, Kind kind, uintptr_t pc, const Who& who) {
        const bool store = kind != Kind::LOAD;
        Event now{};
        now.block = who.block + 1, now.interval = who.interval, now.warp_interval = who.warp_interval;
        now.thread = who.thread, now.pc = pc;
        now.atomic = kind == Kind::ATOMIC_UPDATE || kind == Kind::COMPARE_AND_SWAP;
        now.swap = kind == Kind::COMPARE_AND_SWAP;
        const size_t granule_bytes = size_t(1) << region.granule_shift, end = address - region.begin + size;
        const char* wrong = nullptr;
        auto report = [&](const Event& earlier, bool earlier_stored, size_t at) {
            if (kind != Kind::STORE || size > sizeof doubtful.before) {
                wrong = race(region, at, earlier, earlier_stored, now, store);
            } else if (!doubtful.region) {
                doubtful = {&region, address - region.begin, size, at, earlier, now, earlier_stored, {}};
                memcpy(doubtful.before, reinterpret_cast<const void*>(address), size);
            }
        };
        for (size_t at = address - region.begin; at < end && !wrong;) {
            Granule& granule = region.granules[at >> region.granule_shift];
            const size_t first = at & (granule_bytes - 1), count = std::min(granule_bytes - first, end - at);
            now.bytes = ((1u << count) - 1) << first;
            // Shared memory is another in each block.
            if (region.shared && granule.store.block != now.block) granule.store = {};
            if (region.shared && granule.loads[0].block != now.block) granule.loads[0] = granule.loads[1] = {};
            if (clash(granule.store, now) && (store || !granule.store.swap)) report(granule.store, true, at);
            if (store) {
                for (const Event& load : granule.loads)
                    if (clash(load, now) && !now.swap) report(load, false, at);
                granule.store = now;
                granule.loads[0] = granule.loads[1] = {};
            } else {
                granule.remember_load(now);
            }
            at += count;
        }
        return wrong;
    }

    bool clash(const Event& earlier, const Event& now) const {
        if (!earlier.exists() || !(earlier.bytes & now.bytes) || (earlier.atomic && now.atomic)) return false;
        if (earlier.before(now)) return false;
        const bool other_block = earlier.block != now.block;
        return !(other_block && fenced && acquired && published[earlier.block - 1]);
    }

    // ---- what is wrong ----------------------------------------------------------------------------------------

    const char* outside(uintptr_t address, size_t size, bool store, uintptr_t pc) {
        complaint = std::string(store ? "writes " : "reads ") + std::to_string(size) +
                    (size == 1 ? " byte" : " bytes");
        if (address < (1u << 30) && !null_arguments.empty())
            return finish(" through a null pointer at " + place(pc) + ": None was passed for" + null_arguments +
                          ", so the kernel must test it before use");
        Region* nearest = nullptr;
        for (Region& region : regions)
            if (!nearest || distance(region, address) < distance(*nearest, address)) nearest = &region;
        if (!nearest) return finish(" at " + place(pc) + ", but the launch has no memory to access");
        const ptrdiff_t offset = ptrdiff_t(address - nearest->begin);
        const size_t count = nearest->bytes / nearest->element;
        std::string text = " at " + index_text(*nearest, offset) + " (" + place(pc) + "), ";
        text += offset < 0 ? "before the first element of " : "beyond the end of ";
        text += nearest->description + ", which has " + std::to_string(count) +
                (count == 1 ? " element" : " elements");
        text += nearest->shared ? ": make the variable larger, or compare the index with its size before the access"
                                : ": compare the index with the array's size before the access";
        return finish(text);
    }

    const char* writes_const(const Region& region, uintptr_t address, uintptr_t pc) {
        complaint = "writes to " + index_text(region, address - region.begin) + " (" + place(pc) + "), but " +
                    region.description +
                    " is const: write to an output, or declare the parameter without const";
        return complaint.c_str();
    }

    const char* race(const Region& region, size_t offset, const Event& earlier, bool earlier_stored,
                     const Event& now, bool stored) {
        auto verb = [](const Event& event, bool store) { return event.atomic ? "updates" : store ? "writes" : "reads"; };
        const uint3 thread = thread_index(earlier.thread);
        const bool other_block = earlier.block != now.block;
        complaint = "race on " + index_text(region, offset) + " of " + region.description + ": this thread " +
                    verb(now, stored) + " it at " + place(now.pc) + ", and ";
        if (other_block) {
            const uint64_t block = earlier.block - 1;
            complaint += "block " + triple({unsigned(block % grid_size.x), unsigned(block / grid_size.x % grid_size.y),
                                            unsigned(block / grid_size.x / grid_size.y)}) + ", ";
        }
        complaint += "thread " + triple(thread) + (other_block ? " " : " of the same block ") +
                     verb(earlier, earlier_stored) + " it at " + place(earlier.pc);
        if (other_block)
            return finish("; nothing orders two blocks: let each write a part of its own, use atomic operations, or "
                          "make two kernels of it");
        char advice[64];
        snprintf(advice, sizeof advice, "<order %x %x %s>", earlier.pc, now.pc,
                 earlier.warp() == now.warp() ? "warp" : "block");
        return finish(std::string(", with no barrier in between; ") + advice);
    }

    const char* finish(const std::string& text) {
        complaint += text;
        return complaint.c_str();
    }

    // "x[12]", or "x[12] and 2 bytes" for an address between two elements.
    static std::string index_text(const Region& region, ptrdiff_t offset) {
        const ptrdiff_t element = region.element;
        ptrdiff_t index = offset / element, rest = offset % element;
        if (rest < 0) index--, rest += element;
        std::string text = region.name + "[" + std::to_string(index) + "]";
        return rest ? text + " and " + std::to_string(rest) + " bytes" : text;
    }

    static size_t distance(const Region& region, uintptr_t address) {
        return address < region.begin ? region.begin - address : address - std::min(address, region.begin + region.bytes);
    }

    static std::string triple(uint3 at) {
        return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) + ")";
    }

    // Finds the kernel's library by an address in it: its constants, and the places of instructions.
    static int find_library(dl_phdr_info* info, size_t, void* self_pointer) {
        auto& self = *static_cast<Watcher*>(self_pointer);
        uintptr_t end = 0;
        for (int i = 0; i < info->dlpi_phnum; i++)
            if (info->dlpi_phdr[i].p_type == PT_LOAD)
                end = std::max<uintptr_t>(end, info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
        if (self.library_begin - info->dlpi_addr >= end) return 0;
        self.library_begin = info->dlpi_addr;
        self.library_bytes = end;
        return 1;
    }

    // A store that clashes with an earlier access, unless it stores what is there already.
    struct Doubtful {
        const Region* region;  // null: there is none
        size_t offset, bytes;  // of the store, in the region
        size_t at;             // of the first clash, in the region
        Event earlier, now;
        bool earlier_stored;
        unsigned char before[16];
    };

    Doubtful doubtful{};
    std::deque<Region> regions;  // a deque, for they never move
    Region* guesses[GUESSES] = {};
    uintptr_t library_begin = 0, library_bytes = 0, arguments_begin = 0, argument_bytes = 0;
    dim3 grid_size, block_size;
    bool fenced = false, acquired = false;
    std::vector<bool> published;  // by block
    std::string null_arguments;
    std::string complaint;
};

}  // namespace
