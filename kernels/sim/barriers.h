// The worker's side of barriers between some threads of a block, or of a cluster (see asynchronous.h).
#pragma once

#include "worker.h"

namespace {

void Worker::begin_asynchronous() {
    if (clocked) clocks.begin({blocks[0].number, blocks.size()}, threads);
    barriers.clear();
    at_cluster_barrier = 0;
    if (clocked) arrived_at_cluster = clocks.nothing();
    for (Fiber* fiber : fibers) fiber->asynchronous = {};
    for (Block& block : blocks) {
        for (NamedBarrier& barrier : block.named_barriers) barrier = {};
        block.warpgroups.assign(threads / WARPGROUP, {});
        if (clocked) block.from_others = clocks.nothing();
    }
}

// The running thread returns: it leaves nothing at work, and nobody waiting for it.
void Worker::end_asynchronous() {
    if (!current->asynchronous.stores.empty())
        fail("returns before its store_box() has read shared memory: call wait_for_stores<0>() first");
    if (current->asynchronous.at_cluster_barrier)
        fail("returns after an arrive_at_cluster(), with no wait_for_cluster()");
    const Block& block = *current->block;
    if (clocked && block.live == 1 && !clocks.have_seen(block.first, threads, block.from_others))
        fail("leaves, the last thread of its block, with no sync_cluster() after what other blocks do in its shared "
             "memory");
    for (const NamedBarrier& barrier : block.named_barriers)
        if (block.live == 1 && barrier.arrived)
            fail("returns, the last thread of its block, and barrier %d has had %d arrivals that nobody waits for",
                 int(&barrier - block.named_barriers), barrier.arrived);
    if (current->thread.linear / WARPGROUP >= block.warpgroups.size()) return;
    const Warpgroup& group = block.warpgroups[current->thread.linear / WARPGROUP];
    if (group.arrived)
        fail("returns, and %u threads of its warpgroup wait in %s at %s:%d, where all %u must come", group.arrived,
             group.place.what, group.place.file, group.place.line, WARPGROUP);
    for (const Accumulator& sums : group.at_work)
        if (!sums.taken[current->thread.linear % WARPGROUP])
            fail("returns before its wgmma has ended: call wgmma_commit() and wgmma_wait<0>() first");
}

uint32_t Worker::new_clock() {
    const uint32_t clock = clocked ? clocks.add() : 0;
    if (clocked && !clock) fail("more barriers and asynchronous stores than the simulator's checks keep apart");
    return clock;
}

// An access by a thread of a kernel with clocks, or at `time` by what it has set to work.
void Worker::check(const void* address, size_t bytes, Kind kind, const void* return_address, const View& view,
                   uint32_t clock, uint32_t time) {
    const Who who{current->block->number, time, clock, current->thread.linear, &view};
    const char* wrong = watcher.check(reinterpret_cast<uintptr_t>(address), bytes, kind,
                                      reinterpret_cast<uintptr_t>(return_address), who);
    if (wrong) fail_access(wrong);
}

// These threads wait for each other: what each has done comes before what any of them does next.
void Worker::order_all(std::span<Fiber* const> met) {
    Clocks::Row all = clocks.nothing();
    for (const Fiber* fiber : met) clocks.release(fiber->number, all);
    for (const Fiber* fiber : met) clocks.take_over(fiber->number, all);
}

void Worker::wait_until(const void* what, const sim::Place& place) {
    current->asynchronous.waits_for = what;
    wait(Fiber::WAITING, place);
}

// Has those who wait for `what` go on; `then` is called for each.
template <class Then>
void Worker::wake(const void* what, Then then) {
    for (Fiber* fiber : fibers) {
        if (fiber->state != Fiber::WAITING || fiber->asynchronous.waits_for != what) continue;
        fiber->state = Fiber::READY;
        then(*fiber);
    }
}

// ---- barriers in shared memory ---------------------------------------------------------------------------------

size_t Worker::shared_offset(const void* address) const {
    const size_t offset = static_cast<const unsigned char*>(address) - current->block->dynamic_shared;
    return offset < block_shared ? offset : ~size_t(0);
}

// What lies at the same place in the shared memory of another block of the cluster.
unsigned char* Worker::in_block(const void* address, unsigned rank, const char* what) {
    const size_t offset = shared_offset(address);
    if (offset > block_shared) fail("%s: the address is not in the block's shared memory", what);
    if (rank >= blocks.size()) fail("%s: the cluster has no block %u, but %zu blocks", what, rank, blocks.size());
    return blocks[rank].dynamic_shared + offset;
}

// The running thread comes to the shared memory of another block of the cluster, or to the own one's.
void Worker::visit(unsigned rank, const char* what) {
    Block& block = blocks[rank];
    if (!block.live)
        fail("%s: block %u of the cluster has ended: let no block leave before the others, with sync_cluster()", what,
             rank);
    if (!clocked || rank == this->rank()) return;
    const uint32_t* const seen = &clocks.view(current->number).seen[block.first];
    if (std::none_of(seen, seen + threads, [](uint32_t time) { return time > 0; }))
        fail("%s: block %u of the cluster may not have started: call sync_cluster() before", what, rank);
    block.from_others[current->number] = clocks.now(current->number);
}

MemoryBarrier& Worker::barrier_at(const void* address, const char* what, const void* return_address) {
    if (!profiling) access(reinterpret_cast<uintptr_t>(address), 8, Kind::LOAD, return_address);
    const auto found = barriers.find(address);
    if (found == barriers.end()) fail("%s: nothing has made a barrier of this memory: call init() first", what);
    return found->second;
}

void Worker::initialise(void* address, int arrivals, const void* return_address) {
    if (reinterpret_cast<uintptr_t>(address) % 8) fail("Barrier::init: not at a multiple of 8 bytes");
    if (arrivals < 1 || arrivals >= 1 << 20) fail("Barrier::init: %d arrivals; from 1 to 2^20 - 1", arrivals);
    in_block(address, rank(), "Barrier::init");
    if (!profiling) access(reinterpret_cast<uintptr_t>(address), 8, Kind::STORE, return_address);
    memset(address, 0, 8);
    MemoryBarrier& barrier = barriers[address];
    const uint32_t clock = barrier.expected ? barrier.clock : new_clock();
    barrier = {};
    barrier.expected = barrier.pending = arrivals;
    barrier.owner = current;
    barrier.clock = clock;
    if (clocked) barrier.arrived = barrier.ended = clocks.nothing();
}

void Worker::fence_barriers() {
    for (auto& [_, barrier] : barriers) barrier.fenced = barrier.fenced || barrier.owner == current;
}

// Ends the barrier's phase if all that it waits for has come. Copies that it waits for are made now.
bool Worker::try_complete(const void* address, MemoryBarrier& barrier) {
    if (barrier.pending || barrier.bytes) return false;
    for (const BoxInTensor& load : barrier.loads) finish_load(load);
    barrier.loads.clear();
    barrier.pending = barrier.expected;
    barrier.phase++;
    if (clocked) {
        barrier.ended = barrier.arrived;
        barrier.ended[barrier.clock] = barrier.phase;
    }
    wake(address, [&](const Fiber& fiber) {
        if (clocked) clocks.acquire(fiber.number, barrier.ended);
    });
    return true;
}

// Something has come that threads may wait for. Nothing is made before one does.
void Worker::notify(const void* address, MemoryBarrier& barrier) {
    for (const Fiber* fiber : fibers)
        if (fiber->state == Fiber::WAITING && fiber->asynchronous.waits_for == address) {
            try_complete(address, barrier);
            return;
        }
}

void Worker::arrive(void* address, unsigned rank, unsigned bytes, const void* return_address) {
    settle();
    const char* const what = bytes ? "Barrier::arrive_and_expect" : "Barrier::arrive_at";
    address = in_block(address, rank, what);
    visit(rank, what);
    MemoryBarrier& barrier = barrier_at(address, what, return_address);
    if (rank != this->rank() && !barrier.fenced)
        fail("%s: call fence_barrier_init() after init(), before other blocks arrive", what);
    if (!barrier.pending && !try_complete(address, barrier))
        fail("%s: one arrival too many: this phase of %s has had its %u, and waits for bytes", what,
             watcher.name_of(uintptr_t(address)), barrier.expected);
    barrier.bytes += bytes;
    barrier.pending--;
    if (clocked) clocks.release(current->number, barrier.arrived);
    notify(address, barrier);
}

void Worker::wait_for(void* address, int parity, const sim::Place& place, const void* return_address) {
    settle();
    MemoryBarrier& barrier = barrier_at(address, place.what, return_address);
    if (int(barrier.phase & 1) == parity && !try_complete(address, barrier)) return wait_until(address, place);
    if (clocked) clocks.acquire(current->number, barrier.ended);
}

// What the barriers lack that threads wait at, for a message.
std::string Worker::describe_barriers() {
    std::string text;
    for (const auto& [address, barrier] : barriers) {
        bool awaited = false;
        for (const Fiber* fiber : fibers)
            awaited = awaited || (fiber->state == Fiber::WAITING && fiber->asynchronous.waits_for == address);
        if (!awaited) continue;
        text += "\n  the barrier ";
        if (watching) text += watcher.name_of(uintptr_t(address));
        text += ", in phase " + std::to_string(barrier.phase) + ", lacks " + std::to_string(barrier.pending) + " of " +
                std::to_string(barrier.expected) + " arrivals and " +
                std::to_string(std::max<int64_t>(0, barrier.bytes)) + " bytes";
        if (barrier.bytes < 0) text += "; " + std::to_string(-barrier.bytes) + " bytes more come than were announced";
    }
    return text;
}

// ---- barriers by number, and of the cluster --------------------------------------------------------------------

void Worker::named_barrier(int number, int count, bool waits, const sim::Place& place) {
    settle();
    if (number < 1 || number > 15) fail("%s: barriers have the numbers 1 to 15, got %d", place.what, number);
    NamedBarrier& barrier = current->block->named_barriers[number];
    if (barrier.arrived && barrier.count != count)
        fail("%s: barrier %d is for %d threads, and elsewhere for %d", place.what, number, count, barrier.count);
    barrier.count = count;
    if (waits) {
        barrier.here.push_back(current);
    } else if (clocked) {
        if (barrier.seen.empty()) barrier.seen = clocks.nothing();
        clocks.release(current->number, barrier.seen);
    }
    if (++barrier.arrived < count) return waits ? wait_until(&barrier, place) : void();
    if (clocked) {
        order_all(barrier.here);
        if (!barrier.seen.empty())
            for (const Fiber* fiber : barrier.here) clocks.acquire(fiber->number, barrier.seen);
    }
    wake(&barrier, [](const Fiber&) {});
    barrier = {};
}

void Worker::arrive_at_cluster(const char* what) {
    settle();
    uint32_t& phase = current->asynchronous.at_cluster_barrier;
    if (phase) fail("%s: the thread has arrived before, and must wait_for_cluster() first", what);
    phase = cluster_phase;
    if (clocked) clocks.release(current->number, arrived_at_cluster);
    if (++at_cluster_barrier == live) release_cluster();
}

void Worker::wait_for_cluster(const sim::Place& place) {
    settle();
    uint32_t& phase = current->asynchronous.at_cluster_barrier;
    if (!phase) fail("%s: the thread has not arrived: call arrive_at_cluster() before", place.what);
    if (phase == cluster_phase) wait_until(&at_cluster_barrier, place);
    phase = 0;
    if (clocked) clocks.acquire(current->number, seen_by_cluster);
}

// All threads of the cluster that have not ended have arrived.
void Worker::release_cluster() {
    at_cluster_barrier = 0;
    cluster_phase++;
    if (clocked) seen_by_cluster = std::exchange(arrived_at_cluster, clocks.nothing());
    wake(&at_cluster_barrier, [](const Fiber&) {});
}

}  // namespace
