// Which accesses of one byte are a race: what each piece of memory remembers of the accesses made to it.
//
// A race is two accesses of one byte by two threads, at least one of them a store and not both atomic, that
// nothing orders. What orders them: __syncthreads() for the threads of a block, __syncwarp() for the lanes of
// its mask, and nothing at all for two blocks (but see Watcher::publish).
//
// Each granule of memory (an element of at most 8 bytes) remembers its last store, the plain store before it if
// that was atomic, and two loads; two are enough to find every race with a later store, if those that differ
// most are kept: of two blocks, else of two warps, else of two threads.
//
// Where barriers in shared memory and asynchronous copies order accesses too, events carry a clock (clocks.h).
#pragma once
#include <stdint.h>

#include "clocks.h"

namespace {

// START_OF_STORE: by an asynchronous copy, which comes at some time until it is waited for.
enum class Kind : uint8_t { LOAD, STORE, START_OF_STORE, ATOMIC_LOAD, ATOMIC_STORE, ATOMIC_UPDATE, COMPARE_AND_SWAP };

inline bool is_store(Kind kind) { return kind != Kind::LOAD && kind != Kind::ATOMIC_LOAD; }
inline bool is_atomic(Kind kind) { return kind >= Kind::ATOMIC_LOAD; }

// The thread that makes an access, and where it stands between barriers.
struct Who {
    uint64_t block;          // as one number, x fastest
    uint32_t interval;       // how many barriers its block has passed
    uint32_t warp_interval;  // how many __syncwarp() it has passed since the block's last barrier
    uint32_t thread;         // threadIdx as one number
    const View* view = nullptr;  // in a launch with clocks; `interval` is then a time, of the clock `warp_interval`
};

// An access that a granule remembers. All zero: none.
struct Event {
    uint32_t block;  // from 1
    uint32_t interval;
    uint32_t warp_interval : 20, thread : 10, atomic : 1, swap : 1;  // swap: by atomicCAS, atomic too
    uint32_t pc : 24, bytes : 8;  // where in the library; which bytes of the granule, as a mask

    Event() = default;
    Event(const Who& who, Kind kind, uintptr_t pc)
        : block(who.block + 1), interval(who.interval), warp_interval(who.warp_interval), thread(who.thread),
          atomic(is_atomic(kind)), swap(kind == Kind::COMPARE_AND_SWAP), pc(pc), bytes(0) {}

    bool exists() const { return block != 0; }
    // Whether it is one thread's, which has had nothing to wait for in between.
    bool is_at_the_time_of(const Event& next) const {
        return block == next.block && interval == next.interval && warp_interval == next.warp_interval &&
               thread == next.thread && atomic == next.atomic;
    }
    unsigned warp() const { return thread / 32; }
    // Whether the program orders this event before `next`, which comes later in the simulation.
    bool before(const Event& next, const View* view) const {
        if (view) return view->cluster.contains(block - 1) && view->seen[warp_interval] >= interval;
        if (block != next.block) return false;
        if (interval != next.interval || thread == next.thread) return true;
        return warp() == next.warp() && warp_interval < next.warp_interval;
    }
};

struct Granule {
    Event store, plain_store, loads[2];

    void remember_store(const Event& next) {
        plain_store = !next.atomic ? Event{} : store.atomic ? plain_store : store;
        store = next;
        loads[0] = loads[1] = {};
    }

    void remember_load(Event next, const View* view) {
        for (const Event& load : loads)
            if (load.is_at_the_time_of(next)) next.bytes |= load.bytes;
        const bool old[2] = {!loads[0].exists() || loads[0].before(next, view),
                             !loads[1].exists() || loads[1].before(next, view)};
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

    // Shared memory is another in each cluster of blocks.
    void forget_other_blocks(Cluster cluster) {
        if (!cluster.contains(store.block - 1)) store = plain_store = {};
        if (!cluster.contains(loads[0].block - 1)) loads[0] = loads[1] = {};
    }
};

}  // namespace
