// Watches the memory accesses of a checked launch: bounds, arrays that are only read, memory that nothing has
// written, and races.
//
// A checked kernel is compiled with -fsanitize=thread, which puts a call before every load and store. The
// calls end in the simulator's own hooks (hooks.h) instead of the sanitizer's runtime, and from there in a
// Watcher, which knows the arrays of the launch and the block's shared variables (regions.h).
//
// Two habits that are races by the rule of races.h, but do no harm on any card, are let pass: a store of the
// value that is there already (all threads set one flag), and a plain load of what others update by atomicCAS
// (the first guess of a loop around it).
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "regions.h"

namespace {

class Watcher {
  public:
    void begin_launch(const Checks& checks, void (*entry)(const unsigned char*), const unsigned char* arguments,
                      dim3 grid, dim3 block, size_t cluster_threads) {
        *this = Watcher();
        grid_size = grid, block_size = block, this->cluster_threads = cluster_threads;
        library = Library(reinterpret_cast<const void*>(entry));
        arguments_begin = reinterpret_cast<uintptr_t>(arguments), argument_bytes = checks.argument_bytes;
        regions.add_arrays(checks);
    }

    void begin_block() {
        acquired = false;
        memset(hand_over, 0, sizeof hand_over);
        memset(warp_hand_over, 0, sizeof warp_hand_over);
        regions.begin_block();
    }

    void add_shared(void* address, size_t bytes, size_t element, const char* name) {
        regions.add_shared(address, bytes, element, name);
    }

    // Memory that an asynchronous copy has come to.
    void mark_written(const void* address, size_t size) {
        const auto begin = reinterpret_cast<uintptr_t>(address);
        const Region* region = regions.find(begin, size);
        if (region && region->written) memset(region->written + (begin - region->begin), 1, size);
    }

    // Null if the access is sound; else what is wrong with it.
    const char* check(uintptr_t address, size_t size, Kind kind, uintptr_t return_address, const Who& who) {
        const uintptr_t pc = return_address - library.begin;
        Region*& guess = guesses[pc * 0x9E3779B1u >> 6 & (GUESSES - 1)];  // an instruction keeps to its array
        if (doubtful.region)
            if (const char* wrong = settle()) return wrong;
        if (is_store(kind) && is_atomic(kind)) acquire(address, who);
        if (!guess || !guess->contains(address, size) || (is_store(kind) && guess->read_only)) {
            if (library.contains(address) || address - arguments_begin < argument_bytes) return nullptr;
            Region* found = regions.find(address, size);
            if (!found) return outside(address, size, is_store(kind), pc);
            if (is_store(kind) && found->read_only) return writes_read_only(*found, address, pc);
            guess = found;
        }
        Region& region = *guess;
        if (region.written && kind != Kind::START_OF_STORE) {
            const bool loads = kind != Kind::STORE && kind != Kind::ATOMIC_STORE;
            if (loads && garbage.empty() && region.reads_unwritten(address, size))
                reads_garbage(region, address, pc, who);
            if (is_store(kind)) memset(region.written + (address - region.begin), 1, size);
        }
        if (!region.granules || kind == Kind::ATOMIC_LOAD) return nullptr;  // an atomic load is half of an update
        return who.view ? find_race_by_clocks(region, address, size, kind, pc, who)
                        : find_race<false>(region, address, size, kind, pc, who);
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

    // The first read of memory that nothing had written, with its block and thread; empty if there was none.
    // It is no error until it is clear that the store is not merely late, which makes it a race: that is at the
    // next barrier for shared memory, and at the end of the launch for all.
    const std::string& garbage_read(bool end_of_launch) const {
        static const std::string none;
        return garbage_is_shared || end_of_launch ? garbage : none;
    }

    // A thread that calls __threadfence() and then an atomic operation publishes what it, or its block, has
    // written; one that makes an atomic operation may then read it, and so may its block. That is how locks
    // and flags work. Which atomic variable they meet at is not compared, so that no correct kernel is
    // accused, and some races of kernels with fences go unseen.
    //
    // A lane does it for its whole warp, where another warp is concerned: a __syncwarp() stands before or after.
    void publish(uint32_t thread) {
        hand_over[thread] |= FENCED;
        warp_hand_over[thread / 32] |= FENCED;
        fenced = true;
        if (published.empty()) published.resize(size_t(grid_size.x) * grid_size.y * grid_size.z);
    }

    // Tells a race from other complaints.
    static bool is_race(const char* complaint) { return strncmp(complaint, "race ", 5) == 0; }

    // The line of a call that returns there, for a message.
    std::string line_of(uintptr_t return_address) const { return place(return_address - library.begin); }

    // What lies at an address, for a message: "x[3]".
    const char* name_of(uintptr_t address) {
        const Region* region = regions.find(address, 1);
        complaint = region ? region->index_text(address - region->begin) : "a pointer";
        return complaint.c_str();
    }

  private:
    static constexpr size_t GUESSES = 256;
    enum HandOver : uint8_t { FENCED = 1, PUBLISHED = 2, ACQUIRED = 4 };

    template <bool CLOCKED>
    const char* find_race(Region& region, uintptr_t address, size_t size, Kind kind, uintptr_t pc, const Who& who) {
        const bool store = is_store(kind);
        Event now(who, kind, pc);
        const size_t granule_bytes = size_t(1) << region.granule_shift, end = address - region.begin + size;
        const View* const view = CLOCKED ? who.view : nullptr;
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
            if (region.shared) granule.forget_other_blocks(CLOCKED ? view->cluster : Cluster{who.block, 1});
            if (clash(granule.store, now, view) && (store || !granule.store.swap)) report(granule.store, true, at);
            if (now.atomic && clash(granule.plain_store, now, view)) report(granule.plain_store, true, at);
            if (CLOCKED && is_asynchronous(now) && region.shared && !wrong && lacks_fence(granule.store, now, *view))
                wrong = no_fence(region, at, granule.store, now);
            if (store) {
                for (const Event& load : granule.loads)
                    if (clash(load, now, view) && !now.swap) report(load, false, at);
                granule.remember_store(now);
            } else {
                granule.remember_load(now, view);
            }
            at += count;
        }
        return wrong;
    }

    // Out of the way of launches without clocks, whose checks are to be quick.
    __attribute__((noinline)) const char* find_race_by_clocks(Region& region, uintptr_t address, size_t size, Kind kind,
                                                              uintptr_t pc, const Who& who) {
        return find_race<true>(region, address, size, kind, pc, who);
    }

    // Whether an event is of the copy engine or of the tensor cores, whose clocks follow those of the threads.
    bool is_asynchronous(const Event& event) const { return cluster_threads && event.warp_interval >= cluster_threads; }

    bool lacks_fence(const Event& store, const Event& now, const View& view) const {
        return store.exists() && store.bytes & now.bytes && !is_asynchronous(store) &&
               view.fenced[store.warp_interval] < store.interval;
    }

    bool clash(const Event& earlier, const Event& now, const View* view) const {
        if (!earlier.exists() || !(earlier.bytes & now.bytes) || (earlier.atomic && now.atomic)) return false;
        if (earlier.before(now, view)) return false;
        if (!fenced) return true;
        if (earlier.block != now.block) return !(acquired && published[earlier.block - 1]);
        if (earlier.warp() == now.warp())
            return !(hand_over[earlier.thread] & PUBLISHED && hand_over[now.thread] & ACQUIRED);
        return !(warp_hand_over[earlier.warp()] & PUBLISHED && warp_hand_over[now.warp()] & ACQUIRED);
    }

    // An atomic operation, be it on an array, a shared variable or a `__device__` variable.
    void acquire(uintptr_t address, const Who& who) {
        for (uint8_t* own : {&hand_over[who.thread], &warp_hand_over[who.thread / 32]})
            *own |= *own & FENCED ? ACQUIRED | PUBLISHED : ACQUIRED;
        if (const Region* region = regions.find(address, 1); region && region->shared) return;  // of this block only
        acquired = true;
        if (fenced) published[who.block] = true;
    }

    // ---- what is wrong ----------------------------------------------------------------------------------------

    __attribute__((cold)) const char* outside(uintptr_t address, size_t size, bool store, uintptr_t pc) {
        complaint = std::string(store ? "writes " : "reads ") + std::to_string(size) +
                    (size == 1 ? " byte" : " bytes");
        if (address < (1u << 30) && !regions.null_arguments.empty())
            return finish(" through a null pointer at " + place(pc) + ": None was passed for" +
                          regions.null_arguments + ", so the kernel must test it before use");
        const Region* nearest = regions.nearest(address);
        if (!nearest) return finish(" at " + place(pc) + ", but the launch has no memory to access");
        const ptrdiff_t offset = ptrdiff_t(address - nearest->begin);
        const size_t count = nearest->bytes / nearest->element;
        std::string text = " at " + nearest->index_text(offset) + " (" + place(pc) + "), ";
        text += offset < 0 ? "before the first element of " : "beyond the end of ";
        text += nearest->description + ", which has " + std::to_string(count) +
                (count == 1 ? " element" : " elements");
        text += nearest->shared ? ": make the variable larger, or compare the index with its size before the access"
                                : ": compare the index with the array's size before the access";
        return finish(text);
    }

    __attribute__((cold)) const char* writes_read_only(const Region& region, uintptr_t address, uintptr_t pc) {
        complaint = "writes to " + region.index_text(address - region.begin) + " (" + place(pc) + "), but " +
                    region.description + " " + region.read_only;
        return complaint.c_str();
    }

    __attribute__((cold)) void reads_garbage(const Region& region, uintptr_t address, uintptr_t pc, const Who& who) {
        garbage_is_shared = region.shared;
        garbage = "block " + triple(who.block, grid_size) + ", thread " + triple(who.thread, block_size) + ": reads " +
                  region.index_text(address - region.begin) + " of " + region.description + " at " + place(pc);
        garbage += region.shared
                       ? ", which no thread of the block has written: shared memory holds garbage when a block "
                         "starts; write every element that is read, those beyond the edges too"
                       : ", which nothing has written: what empty() gives is garbage; write it before, or start "
                         "from zeros";
    }

    // What the copy engine and the tensor cores read goes past what orders the accesses of threads.
    __attribute__((cold)) const char* no_fence(const Region& region, size_t offset, const Event& store,
                                               const Event& now) {
        complaint = "reads " + region.index_text(offset) + " of " + region.description + " at " + place(now.pc) +
                    " by the copy engine or the tensor cores, and thread " + triple(store.thread, block_size) +
                    " has written it at " + place(store.pc) +
                    " with no fence_for_copies() after it: each thread that writes calls it before the barrier";
        return complaint.c_str();
    }

    __attribute__((cold)) const char* race(const Region& region, size_t offset, const Event& earlier,
                                           bool earlier_stored, const Event& now, bool stored) {
        auto verb = [](const Event& event, bool store) {
            return event.atomic ? "updates" : store ? "writes" : "reads";
        };
        const bool other_block = earlier.block != now.block;
        complaint = "race on " + region.index_text(offset) + " of " + region.description + ": this thread " +
                    verb(now, stored) + " it at " + place(now.pc) + ", and ";
        if (other_block) complaint += "block " + triple(earlier.block - 1, grid_size) + ", ";
        complaint += "thread " + triple(earlier.thread, block_size) + (other_block ? " " : " of the same block ") +
                     verb(earlier, earlier_stored) + " it at " + place(earlier.pc);
        if (is_asynchronous(earlier) || is_asynchronous(now))
            return finish("; what the copy engine and the tensor cores do is ordered by waiting for it alone: a "
                          "Barrier, wait_for_stores(), or wgmma_wait()");
        if (other_block && region.shared)
            return finish("; blocks of a cluster are ordered by sync_cluster(), or its two halves, alone");
        if (other_block)
            return finish("; nothing orders two blocks: let each write a part of its own, use atomic operations, or "
                          "make two kernels of it");
        char advice[64];
        snprintf(advice, sizeof advice, "<order %x %x %s %s>", earlier.pc, now.pc,
                 earlier.warp() == now.warp() ? "warp" : "block", earlier_stored && stored ? "writes" : "reads");
        return finish(std::string(", with no barrier in between; ") + advice);
    }

    const char* finish(const std::string& text) {
        complaint += text;
        return complaint.c_str();
    }

    // `<pc 1234>` in a text stands for a line of the kernel's source, and `<order 1234 5678 warp reads>` for
    // advice on how to order the accesses of two lines by two threads of one warp (or block), one a read (or
    // both writes): Python puts them in.
    static std::string place(uintptr_t pc) {
        char text[32];
        snprintf(text, sizeof text, "<pc %zx>", size_t(pc));
        return text;
    }

    // A thread or a block, given as one number, by its three indices.
    static std::string triple(uint64_t number, dim3 size) {
        return "(" + std::to_string(number % size.x) + ", " + std::to_string(number / size.x % size.y) + ", " +
               std::to_string(number / size.x / size.y) + ")";
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
    Regions regions;
    Region* guesses[GUESSES] = {};
    Library library;
    uintptr_t arguments_begin = 0, argument_bytes = 0;
    dim3 grid_size, block_size;
    size_t cluster_threads = 0;  // of a launch with clocks
    bool fenced = false, acquired = false;  // any thread of the launch; any of the block
    std::vector<bool> published;            // by block
    uint8_t hand_over[1024] = {};           // by thread of the block
    uint8_t warp_hand_over[32] = {};        // by warp of the block
    std::string complaint, garbage;
    bool garbage_is_shared = false;
};

}  // namespace
