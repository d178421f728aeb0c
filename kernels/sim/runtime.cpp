// The simulator's runtime: runs the threads of a CUDA launch on the CPU, without knowing the kernel.
//
// A block's threads are fibers: stacks between which one core switches in some ten nanoseconds. A fiber runs
// until it waits (for a barrier, for its warp) or ends, and then another one that is ready gets the core, in
// one of several orders. A kernel that forgets a barrier computes something else in another order; a kernel
// whose barriers can never be met leaves no fiber ready, which is reported as a deadlock.
//
// Blocks are independent, so several workers, each on an operating-system thread of its own, take them one
// by one; blocks of a cluster run together on one. A worker owns everything its block needs: fibers, shared
// memory, random state. A checked launch has one worker, and a Watcher that sees every access (checks.h).
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <numeric>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "barriers.h"
#include "copy_engine.h"
#include "interrupt.h"
#include "warpgroups.h"
#include "worker.h"

namespace {

// Looked at before each access of a kernel, so its place is fixed when the library is loaded.
__attribute__((tls_model("initial-exec"))) thread_local Worker* worker = nullptr;

std::string text_of(uint3 index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
}

void start_fiber() { worker->fiber_main(); }

// ---- the fiber's side ----------------------------------------------------------------------------------------

// A fiber is reused for thread after thread, block after block and launch after launch.
void Worker::fiber_main() {
    for (;;) {
        try {
            launch->entry(launch->arguments);
        } catch (...) {
            fail("C++ exception");
        }
        end_current();
    }
}

void Worker::wait(int state, const sim::Place& place) {
    current->state = decltype(current->state)(state);
    current->place = place;
    if (!_setjmp(current->context)) _longjmp(scheduler, 1);
}

void Worker::end_current() {
    settle();
    Fiber& fiber = *current;
    Block& block = *fiber.block;
    if (launch->options.asynchronous) end_asynchronous();
    fiber.state = Fiber::ENDED;
    block.live--;
    live--;
    // Those who wait may have waited for this thread only.
    if (block.live && block.at_barrier == block.live) release_barrier(block);
    if (live && at_cluster_barrier == live) release_cluster();
    if (in_collective)
        for (Fiber* other : warp_of(fiber))
            if (other->state == Fiber::IN_COLLECTIVE) finish_collective(*other);
    if (!_setjmp(fiber.context)) _longjmp(scheduler, 1);
}

// The fiber's stack is abandoned, with no destructor run: nothing on it may own memory.
void Worker::fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fail(format, arguments);
}

void Worker::fail(const char* format, va_list arguments) {
    vsnprintf(message, sizeof message, format, arguments);
    _longjmp(scheduler, 2);
}

void Worker::fail_access(const char* text) {
    if (!Watcher::is_race(text)) fail_for_garbage(true);  // which may well have led to this
    status = BAD_ACCESS;
    fail("%s", text);
}

void Worker::fail_for_garbage(bool end_of_launch) {
    report_garbage(end_of_launch);
    if (!error.empty()) _longjmp(scheduler, 1);
}

// Ends the launch with a message that names the thread, which need not be the running one.
void Worker::fail_as(const std::string& whole, Status as) {
    error = whole;
    status = as;
    _longjmp(scheduler, 1);
}

void Worker::barrier(const sim::Place& place) {
    settle();
    current->place = place;
    current->state = Fiber::AT_BARRIER;
    Block& block = *current->block;
    if (++block.at_barrier == block.live)
        release_barrier(block);
    else
        wait(Fiber::AT_BARRIER, place);
}

// A barrier that some threads of the block never reach, or that they reach at different lines, is met on some
// cards and not on others: no checked kernel gets away with it.
void Worker::check_barrier(const Block& block) {
    const Fiber *waiting = nullptr, *ended = nullptr, *elsewhere = nullptr;
    for (const Fiber* fiber : fibers_of(block)) {
        if (fiber->state == Fiber::ENDED && !ended) ended = fiber;
        if (fiber->state != Fiber::AT_BARRIER) continue;
        if (!waiting) waiting = fiber;
        if (!waiting->place.same_line(fiber->place) && !elsewhere) elsewhere = fiber;
    }
    if (!ended && !elsewhere) return;
    const std::string problem =
        ended ? "a barrier that not all threads of the block reach: " + std::to_string(threads - block.live) +
                    " have returned before it, the first of them thread " + text_of(ended->thread.thread_index) +
                    "; let every thread come to the barrier, and put the condition around the work instead"
              : "threads of one block wait at different barriers; __syncthreads() must stand where all threads of "
                "the block come to the same one, not inside a condition";
    fail_as(block_name(block) + ": " + describe_waiting(problem.c_str()), FAILED);
}

void Worker::release_barrier(Block& block) {
    if (watching) check_barrier(block);
    fail_for_garbage(false);
    if (profiling) meet_all(block, true);
    if (clocked) order_all(fibers_of(block));
    block.at_barrier = 0;
    block.interval++;
    for (Fiber* fiber : fibers_of(block)) {
        fiber->warp_interval = 0;
        if (fiber->state == Fiber::AT_BARRIER) fiber->state = Fiber::READY;
    }
}

std::span<Fiber* const> Worker::warp_of(const Fiber& fiber) const {
    const size_t first = fiber.thread.linear / WARP * WARP;
    return fibers_of(*fiber.block).subspan(first, std::min<size_t>(WARP, threads - first));
}

void Worker::collective(sim::Collective& mine) {
    settle();
    const sim::Thread& thread = current->thread;
    if (mine.mask && !(mine.mask >> thread.lane & 1))
        fail("%s at %s:%d: the mask 0x%08x leaves out lane %u, which calls it", mine.place.what, mine.place.file,
             mine.place.line, mine.mask, thread.lane);
    current->collective = &mine;
    current->state = Fiber::IN_COLLECTIVE;
    in_collective++;
    if (!mine.mask || !finish_collective(*current)) wait(Fiber::IN_COLLECTIVE, mine.place);
}

// If all lanes of the leader's mask have come with the same operation: finishes it for each of them.
bool Worker::finish_collective(const Fiber& leader) {
    const std::span<Fiber* const> warp = warp_of(leader);
    const unsigned lanes = warp.size(), mask = leader.collective->mask;
    const char* const what = leader.collective->place.what;
    const auto same = [&](const char* other) { return other == what || strcmp(other, what) == 0; };
    for (unsigned lane = lanes; lane-- > 0;) {  // the last are most often those to wait for
        const Fiber& fiber = *warp[lane];
        if (!(mask >> lane & 1) || fiber.state == Fiber::ENDED) continue;
        if (fiber.state != Fiber::IN_COLLECTIVE || fiber.collective->mask != mask ||
            !same(fiber.collective->place.what))
            return false;
    }
    const void* payloads[WARP] = {};
    for (unsigned lane = 0; lane < lanes; lane++)
        if (mask >> lane & 1 && warp[lane]->state != Fiber::ENDED) payloads[lane] = warp[lane]->collective->payload;
    const bool was_watching = std::exchange(watching, false);  // lanes look into each other's stacks here
    if (profiling) {
        uint32_t met[WARP];
        size_t number = 0;
        for (unsigned lane = 0; lane < lanes; lane++)
            if (payloads[lane]) met[number++] = warp[lane]->number;
        profiler.meet(met, number);
    }
    uint32_t warp_interval = 0;
    for (unsigned lane = 0; lane < lanes; lane++) {
        if (!payloads[lane]) continue;
        Fiber& fiber = *warp[lane];
        fiber.collective->finish(*fiber.collective, lane, payloads);
        fiber.state = Fiber::READY;
        in_collective--;
        warp_interval = std::max(warp_interval, fiber.warp_interval + 1);
    }
    watching = was_watching;
    if (profiling) profiler.forget_path(current->number);
    if (strcmp(what, "__syncwarp()") != 0) return true;  // the others exchange values and order no memory
    for (unsigned lane = 0; lane < lanes; lane++)
        if (payloads[lane]) warp[lane]->warp_interval = warp_interval;
    if (clocked) {
        std::vector<Fiber*> met;
        for (unsigned lane = 0; lane < lanes; lane++)
            if (payloads[lane]) met.push_back(warp[lane]);
        order_all(met);
    }
    return true;
}

// When no thread can go on, the lanes that wait for whoever comes (with mask 0) have met all that will come: they
// go on with those of their warp that wait at the same place. False if there are none.
bool Worker::release_active_lanes() {
    bool released = false;
    for (const Fiber* fiber : fibers) {
        if (fiber->state != Fiber::IN_COLLECTIVE || fiber->collective->mask) continue;
        const int line = fiber->collective->place.line;
        unsigned here = 0;
        for (const Fiber* other : warp_of(*fiber))
            if (other->state == Fiber::IN_COLLECTIVE && !other->collective->mask &&
                other->collective->place.line == line)
                here |= 1u << other->thread.lane;
        for (const Fiber* other : warp_of(*fiber))
            if (here >> other->thread.lane & 1) other->collective->mask = here;
        released = finish_collective(*fiber);
    }
    return released;
}

// The `__shared__` variable in the running block's memory.
void* Worker::static_variable(const sim::SharedVariable& variable) {
    const size_t end = variable.offset + variable.bytes;
    if (end > STATIC_SHARED_BYTES)
        sim_fail("the __shared__ variables take %zu bytes; static ones may take %zu", end, STATIC_SHARED_BYTES);
    if (end + launch->dynamic_shared > launch->options.shared_limit)
        sim_fail("a block has %zu bytes of shared memory, %zu of them dynamic; %s allows %zu",
                 end + launch->dynamic_shared, launch->dynamic_shared, launch->options.architecture,
                 launch->options.shared_limit);
    unsigned char* address = current->block->static_shared + variable.offset;
    if (watching) address += RED_ZONE * std::min(variable.number, RED_ZONES - 1);
    add_shared(address, variable.bytes, variable.element, variable.name);
    if (profiling) profiler.forget_path(current->number);  // the first thread alone has laid the variable out
    return address;
}

void* Worker::dynamic_variable(const char* name, size_t element) {
    unsigned char* const address = current->block->dynamic_shared;
    add_shared(address, launch->dynamic_shared, element, name);
    return address;
}

// All blocks of a cluster have the variable, those too that have yet to come to its declaration.
void Worker::add_shared(const unsigned char* own, size_t bytes, size_t element, const char* name) {
    if (!watching && !profiling) return;
    for (const Block& block : blocks) {
        unsigned char* const address = block.dynamic_shared + (own - current->block->dynamic_shared);
        if (watching) watcher.add_shared(address, bytes, element, name);
        if (profiling) profiler.add_shared(address, bytes, element, name);
    }
}

// Called before each access of a checked or profiled kernel. Most are to the thread's own stack.
__attribute__((always_inline)) inline void Worker::access(uintptr_t address, size_t bytes, Kind kind,
                                                          const void* return_address) {
    if ((watching || profiling) && !current->owns(address)) access_beyond_stack(address, bytes, kind, return_address);
}

void Worker::access_beyond_stack(uintptr_t address, size_t bytes, Kind kind, const void* return_address) {
    if (watching && *launch->interrupted) fail("interrupted at %s", watcher.line_of(uintptr_t(return_address)).c_str());
    const Fiber& fiber = *current;
    if (profiling || clocked) return access_otherwise(address, bytes, kind, return_address);
    const Who who{fiber.block->number, fiber.block->interval, fiber.warp_interval, fiber.thread.linear};
    const char* wrong = watcher.check(address, bytes, kind, reinterpret_cast<uintptr_t>(return_address), who);
    if (wrong) fail_access(wrong);
}

// In a profiled launch, or one with clocks: out of the way of the others, whose checks are to be quick.
void Worker::access_otherwise(uintptr_t address, size_t bytes, Kind kind, const void* return_address) {
    const Fiber& fiber = *current;
    if (clocked) {
        const size_t place = address - reinterpret_cast<uintptr_t>(blocks[0].dynamic_shared);
        if (place < block_shared * blocks.size()) visit(place / block_shared, "in_block");
        return check(reinterpret_cast<void*>(address), bytes, kind, return_address, clocks.view(fiber.number),
                     fiber.number, clocks.now(fiber.number));
    }
    const unsigned lanes = std::min<size_t>(WARP, threads - fiber.thread.linear / WARP * WARP);
    profiler.access(fiber.number, lanes, address, bytes, kind, reinterpret_cast<uintptr_t>(return_address));
}

// Called at the start of each basic block of a profiled kernel.
void Worker::enter(const void* return_address) {
    if (profiling) profiler.enter(current->number, reinterpret_cast<uintptr_t>(return_address));
}

// All of the block's threads are at a barrier, or have ended.
void Worker::meet_all(const Block& block, bool barrier) {
    for (size_t first = 0; first < threads; first += WARP) {
        uint32_t met[WARP];
        size_t number = 0;
        for (const Fiber* fiber : warp_of(*fibers[block.first + first]))
            if (!barrier || fiber->state == Fiber::AT_BARRIER) met[number++] = fiber->number;
        profiler.meet(met, number);
    }
    profiler.settle(barrier);
}

// The running thread's last store is done: reports it if it was a race.
void Worker::settle() {
    if (!watching) return;
    if (const char* wrong = watcher.settle()) fail_access(wrong);
}

void Worker::fence() {
    if (watching) watcher.publish(current->thread.linear);
}

// Called before each atomic operation of a checked kernel.
void Worker::atomic() {
    if (!watching || ++atomics < PATIENCE) return;
    settle();
    spinning++;
    wait(Fiber::READY, {"a loop of atomic operations", "", 0});
}

// ---- messages --------------------------------------------------------------------------------------------------

std::string Worker::block_name(const Block& block) const {
    return launch->kernel + (", block " + text_of(block.index));
}

// `what`, and where the threads wait that run together.
std::string Worker::describe_waiting(const char* what) {
    struct Group {
        sim::Place place;
        size_t count;
        uint3 first;
    };
    std::vector<Group> groups;
    for (const Fiber* each : fibers) {
        const Fiber& fiber = *each;
        if (fiber.state == Fiber::ENDED) continue;
        auto same = [&](const Group& group) { return group.place.same_line(fiber.place); };
        auto group = std::find_if(groups.begin(), groups.end(), same);
        if (group == groups.end())
            groups.push_back({fiber.place, 1, fiber.thread.thread_index});
        else
            group->count++;
    }
    std::string text = what;
    for (const Group& group : groups) {
        text += "\n  " + std::to_string(group.count) + " wait in " + group.place.what;
        if (group.place.line) text += " at " + std::string(group.place.file) + ":" + std::to_string(group.place.line);
        text += ", the first of them thread " + text_of(group.first);
    }
    if (live < fibers.size()) text += "\n  " + std::to_string(fibers.size() - live) + " have ended";
    text += describe_barriers();
    return text;
}

// ---- the pool of workers ---------------------------------------------------------------------------------------

std::mutex pool_mutex;
std::vector<std::unique_ptr<Worker>>& pool() {
    static auto* workers = new std::vector<std::unique_ptr<Worker>>;  // never destroyed: fibers may outlive exit()
    return *workers;
}

std::unique_ptr<Worker> take_worker() {
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (pool().empty()) return std::make_unique<Worker>();
    std::unique_ptr<Worker> taken = std::move(pool().back());
    pool().pop_back();
    return taken;
}

void give_back(std::unique_ptr<Worker> idle) {
    std::lock_guard<std::mutex> lock(pool_mutex);
    pool().push_back(std::move(idle));
}

}  // namespace

// ---- what kernels call -----------------------------------------------------------------------------------------

sim::Thread* sim_this_thread() { return &worker->current->thread; }

void sim_block_barrier(const sim::Place* place) { worker->barrier(*place); }

void sim_warp_collective(sim::Collective* collective) { worker->collective(*collective); }

void* sim_dynamic_shared(const char* name, size_t element) { return worker->dynamic_variable(name, element); }

void* sim_static_shared(const sim::SharedVariable* variable) { return worker->static_variable(*variable); }

void sim_starts_write(const void* address, size_t bytes) {
    if (worker->is_watching())
        worker->access(reinterpret_cast<uintptr_t>(address), bytes, Kind::START_OF_STORE, __builtin_return_address(0));
}

void sim_fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    worker->fail(format, arguments);
}

int sim_print(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    worker->print(format, arguments);
    va_end(arguments);
    return 0;
}

void sim_barrier_init(void* barrier, int arrivals) {
    worker->initialise(barrier, arrivals, __builtin_return_address(0));
}
void sim_barrier_arrive(void* barrier, unsigned block, unsigned bytes) {
    worker->arrive(barrier, block, bytes, __builtin_return_address(0));
}
void sim_barrier_wait(void* barrier, int parity, const sim::Place* place) {
    worker->wait_for(barrier, parity, *place, __builtin_return_address(0));
}
void sim_fence_barriers() { worker->fence_barriers(); }
void sim_named_barrier(int number, int threads, bool waits, const sim::Place* place) {
    worker->named_barrier(number, threads, waits, *place);
}
void sim_arrive_at_cluster(const char* what) { worker->arrive_at_cluster(what); }
void sim_wait_for_cluster(const sim::Place* place) { worker->wait_for_cluster(*place); }
unsigned sim_block_in_cluster() { return worker->rank(); }
void* sim_in_block(const void* pointer, unsigned block) { return worker->in_block(pointer, block, "in_block"); }
unsigned sim_shared_address(const void* pointer) {
    const size_t offset = worker->shared_offset(pointer);
    if (offset == ~size_t(0)) sim_fail("shared_address: the pointer is not to the block's shared memory");
    return offset;
}

void sim_load_box(const sim::BoxCopy* copy) { worker->load_box(*copy, __builtin_return_address(0)); }
void sim_store_in_block(void* to, unsigned word, unsigned block, void* barrier) {
    worker->store_in_block(to, word, block, barrier, __builtin_return_address(0));
}
void sim_store_box(const sim::BoxCopy* copy) { worker->store_box(*copy, __builtin_return_address(0)); }
void sim_wait_for_stores(int left) { worker->wait_for_stores(left); }
void sim_fence_for_copies() { worker->fence_for_copies(); }

void sim_set_registers(int count, const sim::Place* place) { worker->set_registers(count, *place); }
void sim_wgmma(const sim::Wgmma* call, const sim::Place* place) {
    worker->wgmma(*call, *place, __builtin_return_address(0));
}
void sim_wgmma_fence() { worker->wgmma_fence(); }
void sim_wgmma_commit() { worker->wgmma_commit(); }
void sim_wgmma_wait(int left, const sim::Place* place) { worker->wgmma_wait(left, *place); }

#include "hooks.h"
#include "scheduler.h"

// ---- what Python calls -----------------------------------------------------------------------------------------

// Runs a kernel. `sizes` holds the grid's x, y, z and the block's; none is zero. Returns a Status; unless it is
// DONE, with a message in `error`. At most `max_workers` blocks run at a time. A checked run needs a kernel that
// was compiled for it, and has one worker.
extern "C" __attribute__((visibility("default"))) int sim_launch(
    const char* kernel, Entry entry, const unsigned char* arguments, const unsigned* sizes, size_t dynamic_shared,
    const Options* options, char* error, size_t error_size) noexcept {
    Output output;
    Interrupt interrupt;
    Launch launch{kernel,         entry,    arguments, {sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]},
                  dynamic_shared, *options, &output, &interrupt.happened};
    const uint32_t max_workers = options->checks ? 1 : options->max_workers;
    std::atomic<uint64_t> next_cluster{0};
    std::atomic<bool> failed{false};
    std::vector<std::unique_ptr<Worker>> workers;
    std::vector<std::thread> threads;
    try {
        const uint64_t count = std::min<uint64_t>(std::max(1u, max_workers), launch.clusters());
        for (uint64_t i = 0; i < count; i++) workers.push_back(take_worker());
        for (uint64_t i = 1; i < count; i++)
            threads.emplace_back([&, i] { workers[i]->run(launch, next_cluster, failed); });
    } catch (const std::exception&) {
        // Fewer threads than hoped for; the blocks get done all the same, if there is one worker.
    }
    if (!workers.empty()) workers[0]->run(launch, next_cluster, failed);
    for (std::thread& thread : threads) thread.join();
    if (workers.empty()) snprintf(error, error_size, "%s: out of memory for the simulated threads", kernel);
    int status = failed || workers.empty() ? FAILED : DONE;
    for (auto& worker : workers) {
        if (!worker->error.empty()) {
            snprintf(error, error_size, "%s", worker->error.c_str());
            status = worker->status;
        }
        try {
            give_back(std::move(worker));
        } catch (const std::exception&) {
        }
    }
    return status;
}
