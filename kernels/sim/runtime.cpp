// The simulator's runtime: runs the threads of a CUDA launch on the CPU, without knowing the kernel.
//
// A block's threads are fibers: stacks between which one core switches in some ten nanoseconds. A fiber runs
// until it waits (for a barrier, for its warp) or ends, and then another one that is ready gets the core, in
// an order drawn from a seed. A kernel that forgets a barrier computes something else in another order; a
// kernel whose barriers can never be met leaves no fiber ready, which is reported as a deadlock.
//
// Blocks are independent, so several workers, each on an operating-system thread of its own, take them one
// by one. A worker owns everything its block needs: fibers, shared memory, random state. A checked launch has
// one worker, and a Watcher that sees every access (checks.h).
#include "runtime.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checks.h"
#include "fiber.h"
#include "output.h"

namespace {

constexpr unsigned WARP = 32;
constexpr size_t STATIC_SHARED_BYTES = 48 << 10;   // what CUDA allows to static shared variables
constexpr size_t SHARED_ALIGNMENT = 1024;
// In a checked launch static shared variables stand this far apart, so that one's end is not another's start.
constexpr size_t RED_ZONE = 1024, RED_ZONES = 64;

enum Status { DONE = 0, FAILED = 1, BAD_ACCESS = 2 };  // what sim_launch returns

using Entry = void (*)(const unsigned char* arguments);

struct Launch {
    const char* kernel;
    Entry entry;
    const unsigned char* arguments;
    dim3 grid, block;
    size_t dynamic_shared;
    uint64_t seed;
    const Checks* checks;  // null: unchecked
    Output* output;

    uint64_t threads() const { return uint64_t(block.x) * block.y * block.z; }
    uint64_t blocks() const { return uint64_t(grid.x) * grid.y * grid.z; }
};

uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

// Runs one block at a time.
class Worker {
  public:
    void run(const Launch& launch, std::atomic<uint64_t>& next_block, std::atomic<bool>& failed) noexcept;
    std::string error;
    Status status = DONE;

    void barrier(const sim::Place& place);
    void collective(sim::Collective& collective);
    [[noreturn]] void fail(const char* format, ...);
    [[noreturn]] void fail(const char* format, va_list arguments);
    [[noreturn]] void fail_access(const char* text);
    [[noreturn]] void fiber_main();
    void* static_variable(const sim::SharedVariable& variable);
    void* dynamic_variable(size_t element);
    void access(uintptr_t address, size_t bytes, Kind kind, const void* return_address);
    void fence();
    void settle();
    void print(const char* format, va_list arguments) {
        launch->output->add(block_number, current->thread.linear, format, arguments);
    }
    const char* name_of(uintptr_t address) { return watcher.name_of(address); }

    Fiber* current = nullptr;

  private:
    void prepare(const Launch& launch);
    void run_block(uint64_t number);
    void draw_order(uint64_t number);
    void resume(Fiber& fiber);
    void wait(int state, const sim::Place& place);
    void end_current();
    void release_barrier();
    bool finish_collective(unsigned warp, const sim::Collective& leader);
    bool release_active_lanes();
    std::string describe_deadlock() const;
    std::string block_name() const;

    const Launch* launch = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers;  // at least as many as the block has threads
    std::vector<Fiber*> order;
    size_t threads = 0, live = 0, at_barrier = 0;
    uint3 block_index{};
    uint64_t block_number = 0;
    uint32_t interval = 0;  // how many barriers the block has passed
    std::vector<unsigned char> shared;
    unsigned char *static_shared = nullptr, *dynamic_shared = nullptr;
    size_t static_bytes = 0;
    Watcher watcher;
    bool watching = false;
    jmp_buf scheduler;
    char message[2048];  // of a fiber that failed
};

thread_local Worker* worker = nullptr;

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
    fiber.state = Fiber::ENDED;
    live--;
    // Those who wait may have waited for this thread only.
    if (live && at_barrier == live) release_barrier();
    unsigned warp = fiber.thread.linear / WARP;
    for (unsigned i = warp * WARP; i < std::min<size_t>(threads, (warp + 1) * WARP); i++)
        if (fibers[i]->state == Fiber::IN_COLLECTIVE) finish_collective(warp, *fibers[i]->collective);
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
    status = BAD_ACCESS;
    fail("%s", text);
}

void Worker::barrier(const sim::Place& place) {
    settle();
    if (++at_barrier == live)
        release_barrier();
    else
        wait(Fiber::AT_BARRIER, place);
}

void Worker::release_barrier() {
    at_barrier = 0;
    interval++;
    for (size_t i = 0; i < threads; i++) {
        fibers[i]->warp_interval = 0;
        if (fibers[i]->state == Fiber::AT_BARRIER) fibers[i]->state = Fiber::READY;
    }
}

void Worker::collective(sim::Collective& mine) {
    settle();
    const sim::Thread& thread = current->thread;
    if (mine.mask && !(mine.mask >> thread.lane & 1))
        fail("%s at %s:%d: the mask 0x%08x leaves out lane %u, which calls it", mine.place.what, mine.place.file,
             mine.place.line, mine.mask, thread.lane);
    current->collective = &mine;
    current->state = Fiber::IN_COLLECTIVE;
    if (!mine.mask || !finish_collective(thread.linear / WARP, mine)) wait(Fiber::IN_COLLECTIVE, mine.place);
}

// If all lanes of the leader's mask have come with the same operation: finishes it for each of them.
bool Worker::finish_collective(unsigned warp, const sim::Collective& leader) {
    const void* payloads[WARP] = {};
    const unsigned lanes = std::min<size_t>(WARP, threads - warp * WARP), mask = leader.mask;
    const char* const what = leader.place.what;
    for (unsigned lane = 0; lane < lanes; lane++) {
        const Fiber& fiber = *fibers[warp * WARP + lane];
        if (!(mask >> lane & 1) || fiber.state == Fiber::ENDED) continue;
        if (fiber.state != Fiber::IN_COLLECTIVE || fiber.collective->mask != mask ||
            strcmp(fiber.collective->place.what, what) != 0)
            return false;
        payloads[lane] = fiber.collective->payload;
    }
    const bool was_watching = std::exchange(watching, false);  // lanes look into each other's stacks here
    uint32_t warp_interval = 0;
    for (unsigned lane = 0; lane < lanes; lane++) {
        if (!payloads[lane]) continue;
        Fiber& fiber = *fibers[warp * WARP + lane];
        fiber.collective->finish(*fiber.collective, lane, payloads);
        fiber.state = Fiber::READY;
        warp_interval = std::max(warp_interval, fiber.warp_interval + 1);
    }
    watching = was_watching;
    if (strcmp(what, "__syncwarp()") != 0) return true;  // the others exchange values and order no memory
    for (unsigned lane = 0; lane < lanes; lane++)
        if (payloads[lane]) fibers[warp * WARP + lane]->warp_interval = warp_interval;
    return true;
}

// When no thread can go on, the lanes that wait for whoever comes (with mask 0) have met all that will come: they
// go on with those of their warp that wait at the same place. False if there are none.
bool Worker::release_active_lanes() {
    bool released = false;
    for (size_t i = 0; i < threads; i++) {
        if (fibers[i]->state != Fiber::IN_COLLECTIVE || fibers[i]->collective->mask) continue;
        const int line = fibers[i]->collective->place.line;
        const size_t first = i / WARP * WARP;
        unsigned here = 0;
        for (size_t j = i; j < std::min<size_t>(threads, first + WARP); j++)
            if (fibers[j]->state == Fiber::IN_COLLECTIVE && !fibers[j]->collective->mask &&
                fibers[j]->collective->place.line == line)
                here |= 1u << (j - first);
        for (size_t j = i; j < std::min<size_t>(threads, first + WARP); j++)
            if (here >> (j - first) & 1) fibers[j]->collective->mask = here;
        released = finish_collective(i / WARP, *fibers[i]->collective);
    }
    return released;
}

// The `__shared__` variable in the running block's memory.
void* Worker::static_variable(const sim::SharedVariable& variable) {
    const size_t end = variable.offset + variable.bytes;
    if (end > STATIC_SHARED_BYTES)
        sim_fail("the __shared__ variables take %zu bytes; static ones may take %zu", end, STATIC_SHARED_BYTES);
    if (!watching) return static_shared + variable.offset;
    unsigned char* address = static_shared + variable.offset + RED_ZONE * std::min(variable.number, RED_ZONES - 1);
    watcher.add_shared(address, variable.bytes, variable.element, variable.name);
    return address;
}

void* Worker::dynamic_variable(size_t element) {
    if (watching) watcher.add_shared(dynamic_shared, launch->dynamic_shared, element, "extern __shared__");
    return dynamic_shared;
}

// Called before each access of a checked kernel.
inline void Worker::access(uintptr_t address, size_t bytes, Kind kind, const void* return_address) {
    if (!watching) return;
    const Fiber& fiber = *current;
    if (fiber.owns(address)) return;
    const Who who{block_number, interval, fiber.warp_interval, fiber.thread.linear};
    const char* wrong = watcher.check(address, bytes, kind, reinterpret_cast<uintptr_t>(return_address), who);
    if (wrong) fail_access(wrong);
}

// The running thread's last store is done: reports it if it was a race.
void Worker::settle() {
    if (!watching) return;
    if (const char* wrong = watcher.settle()) fail_access(wrong);
}

void Worker::fence() {
    if (watching) watcher.publish();
}

// ---- the scheduler's side --------------------------------------------------------------------------------------

void Worker::resume(Fiber& fiber) {
    current = &fiber;
    switch (_setjmp(scheduler)) {
        case 0:
            if (fiber.started) _longjmp(fiber.context, 1);
            fiber.started = true;
            fiber.start(start_fiber);
        case 1:  // it waits, or has ended
            break;
        default: {  // it failed
            char thread[64];
            snprintf(thread, sizeof thread, "thread (%u, %u, %u)", current->thread.thread_index.x,
                     current->thread.thread_index.y, current->thread.thread_index.z);
            error = block_name() + ", " + thread + ": " + message;
        }
    }
}

void Worker::prepare(const Launch& next) {
    launch = &next;
    threads = next.threads();
    while (fibers.size() < threads) {
        auto fiber = std::make_unique<Fiber>();
        fiber->reserve_stack();
        fibers.push_back(std::move(fiber));
    }
    for (unsigned i = 0; i < threads; i++) {
        sim::Thread& thread = fibers[i]->thread;
        thread.thread_index = {i % next.block.x, i / next.block.x % next.block.y, i / next.block.x / next.block.y};
        thread.block_size = next.block;
        thread.grid_size = next.grid;
        thread.linear = i;
        thread.lane = i % WARP;
    }
    static_bytes = STATIC_SHARED_BYTES + (next.checks ? RED_ZONE * RED_ZONES : 0);
    shared.resize(SHARED_ALIGNMENT + static_bytes + next.dynamic_shared);
    auto address = reinterpret_cast<uintptr_t>(shared.data());
    static_shared = shared.data() + (SHARED_ALIGNMENT - address % SHARED_ALIGNMENT) % SHARED_ALIGNMENT;
    dynamic_shared = static_shared + static_bytes;
    watching = next.checks;
    if (watching) watcher.begin_launch(*next.checks, next.entry, next.arguments, next.grid, next.block);
}

// Seed 0 is the natural order; any other gives each block an order of its own, whoever runs it.
void Worker::draw_order(uint64_t number) {
    order.resize(threads);
    for (size_t i = 0; i < threads; i++) order[i] = fibers[i].get();
    if (!launch->seed) return;
    uint64_t random = mix(launch->seed ^ mix(number));
    for (size_t i = threads; i > 1; i--) {
        random = mix(random);
        std::swap(order[i - 1], order[random % i]);
    }
}

void Worker::run_block(uint64_t number) {
    const dim3& grid = launch->grid;
    block_index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
    for (size_t i = 0; i < threads; i++) {
        fibers[i]->state = Fiber::READY;
        fibers[i]->thread.block_index = block_index;
        fibers[i]->warp_interval = 0;
    }
    block_number = number;
    interval = 0;
    watcher.begin_block();
    live = threads;
    at_barrier = 0;
    memset(static_shared, 0xFF, static_bytes + launch->dynamic_shared);
    draw_order(number);
    while (live) {
        bool progress = false;
        for (Fiber* fiber : order) {
            if (fiber->state != Fiber::READY) continue;
            progress = true;
            resume(*fiber);
            if (!error.empty()) break;
        }
        if (!progress && !release_active_lanes()) error = describe_deadlock();
        if (!error.empty()) {
            // The fibers are left where they are, in the middle of the kernel: they start anew next time.
            for (auto& fiber : fibers) fiber->started = false;
            return;
        }
    }
}

void Worker::run(const Launch& next, std::atomic<uint64_t>& next_block, std::atomic<bool>& failed) noexcept {
    worker = this;
    error.clear();
    status = DONE;
    try {
        prepare(next);
        const uint64_t blocks = next.blocks();
        const uint64_t first = next.seed ? mix(next.seed) % blocks : 0;
        for (uint64_t i; !failed && (i = next_block++) < blocks;) {
            run_block((first + i) % blocks);
            if (!error.empty()) failed = true;
            if (!error.empty() && !status) status = FAILED;
        }
    } catch (const std::bad_alloc&) {
        error = std::string(next.kernel) + ": out of memory for the simulated threads";
        status = FAILED;
        failed = true;
    }
    if (watching) watcher = Watcher();  // its records may be large
    watching = false;
    worker = nullptr;
}

// ---- messages --------------------------------------------------------------------------------------------------

std::string Worker::block_name() const {
    char text[64];
    snprintf(text, sizeof text, ", block (%u, %u, %u)", block_index.x, block_index.y, block_index.z);
    return launch->kernel + std::string(text);
}

std::string Worker::describe_deadlock() const {
    struct Group {
        sim::Place place;
        size_t count;
        uint3 first;
    };
    std::vector<Group> groups;
    for (size_t i = 0; i < threads; i++) {
        const Fiber& fiber = *fibers[i];
        if (fiber.state == Fiber::ENDED) continue;
        auto same = [&](const Group& group) {
            return group.place.line == fiber.place.line && !strcmp(group.place.what, fiber.place.what);
        };
        auto group = std::find_if(groups.begin(), groups.end(), same);
        if (group == groups.end())
            groups.push_back({fiber.place, 1, fiber.thread.thread_index});
        else
            group->count++;
    }
    std::string text = block_name() + ": deadlock, no thread can go on";
    for (const Group& group : groups) {
        char line[512];
        snprintf(line, sizeof line, "\n  %zu wait in %s at %s:%d, the first of them thread (%u, %u, %u)", group.count,
                 group.place.what, group.place.file, group.place.line, group.first.x, group.first.y, group.first.z);
        text += line;
    }
    if (live < threads) text += "\n  " + std::to_string(threads - live) + " have ended";
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

void* sim_dynamic_shared(size_t element) { return worker->dynamic_variable(element); }

void* sim_static_shared(const sim::SharedVariable* variable) { return worker->static_variable(*variable); }

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

#include "hooks.h"

// ---- what Python calls -----------------------------------------------------------------------------------------

// Runs a kernel. `sizes` holds the grid's x, y, z and the block's; none is zero. Returns a Status; unless it is
// DONE, with a message in `error`. At most `max_workers` blocks run at a time. `checks` is null for a plain run;
// a checked one needs a kernel that was compiled for it, and has one worker.
extern "C" __attribute__((visibility("default"))) int sim_launch(
    const char* kernel, Entry entry, const unsigned char* arguments, const unsigned* sizes, size_t dynamic_shared,
    uint64_t seed, unsigned max_workers, const Checks* checks, char* error, size_t error_size) noexcept {
    Output output;
    Launch launch{kernel,         entry, arguments, {sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]},
                  dynamic_shared, seed,  checks,    &output};
    if (checks) max_workers = 1;
    std::atomic<uint64_t> next_block{0};
    std::atomic<bool> failed{false};
    std::vector<std::unique_ptr<Worker>> workers;
    std::vector<std::thread> threads;
    try {
        const uint64_t count = std::min<uint64_t>(std::max(1u, max_workers), launch.blocks());
        for (uint64_t i = 0; i < count; i++) workers.push_back(take_worker());
        for (uint64_t i = 1; i < count; i++)
            threads.emplace_back([&, i] { workers[i]->run(launch, next_block, failed); });
    } catch (const std::exception&) {
        // Fewer threads than hoped for; the blocks get done all the same, if there is one worker.
    }
    if (!workers.empty()) workers[0]->run(launch, next_block, failed);
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
