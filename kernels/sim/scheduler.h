// The scheduler's side of a worker: which block runs next, and which of its fibers; a launch from its start to its end.
#pragma once

#include "worker.h"

namespace {

void Worker::resume(Fiber& fiber) {
    current = &fiber;
    atomics = 0;
    resumed++;
    switch (_setjmp(scheduler)) {
        case 0:
            if (fiber.started) _longjmp(fiber.context, 1);
            fiber.started = true;
            fiber.start(start_fiber);
        case 1:  // it waits, or has ended
            break;
        default:  // it failed
            error = block_name(*current->block) + ", thread " + text_of(current->thread.thread_index) + ": " + message;
    }
}

void Worker::prepare(const Launch& next) {
    launch = &next;
    threads = next.threads();
    const size_t together = next.options.cluster;
    while (all_fibers.size() < threads * together) {
        auto fiber = std::make_unique<Fiber>();
        fiber->reserve_stack();
        fiber->number = all_fibers.size();
        all_fibers.push_back(std::move(fiber));
    }
    blocks.resize(together);
    fibers.resize(threads * together);
    warps.clear();
    for (size_t number = 0; number < fibers.size(); number++) {
        Fiber& fiber = *(fibers[number] = all_fibers[number].get());
        const unsigned i = number % threads;
        sim::Thread& thread = fiber.thread;
        thread.thread_index = {i % next.block.x, i / next.block.x % next.block.y, i / next.block.x / next.block.y};
        thread.block_size = next.block;
        thread.grid_size = next.grid;
        thread.linear = i;
        thread.lane = i % WARP;
        fiber.block = &blocks[number / threads];
        if (thread.lane == 0) warps.push_back(&fibers[number]);
    }
    in_order = warps;
    profiling = next.options.report;
    watching = next.options.checks && !profiling;
    static_bytes = STATIC_SHARED_BYTES + (watching ? RED_ZONE * RED_ZONES : 0);
    // The dynamic part comes first, so that addresses in it are small: descriptors (hopper.cuh) hold 18 bits of them.
    const size_t dynamic_bytes = (next.dynamic_shared + SHARED_ALIGNMENT - 1) / SHARED_ALIGNMENT * SHARED_ALIGNMENT;
    block_shared = dynamic_bytes + static_bytes;
    shared.resize(SHARED_ALIGNMENT + block_shared * together);
    auto address = reinterpret_cast<uintptr_t>(shared.data());
    unsigned char* begin = shared.data() + (SHARED_ALIGNMENT - address % SHARED_ALIGNMENT) % SHARED_ALIGNMENT;
    for (Block& block : blocks) {
        block.first = (&block - blocks.data()) * threads;
        block.dynamic_shared = begin + (&block - blocks.data()) * block_shared;
        block.static_shared = block.dynamic_shared + dynamic_bytes;
    }
    clocked = watching && next.options.asynchronous;
    if (watching)
        watcher.begin_launch(*next.options.checks, next.entry, next.arguments, next.grid, next.block,
                             clocked ? fibers.size() : 0);
    if (profiling) profiler.begin_launch(*next.options.checks, next.options.report, next.entry, fibers.size());
    order = fibers;
    if (next.options.order == REVERSE) std::reverse(order.begin(), order.end());
}

template <class T>
void shuffle(std::vector<T>& values, uint64_t& random) {
    for (size_t i = values.size(); i > 1; i--) {
        random = mix(random);
        std::swap(values[i - 1], values[random % i]);
    }
}

// Gives every thread that is ready its turn. Returns whether there was one.
bool Worker::run_round() {
    if (launch->options.order == RANDOM) shuffle(order, random);
    bool progress = false;
    for (Fiber* fiber : order) {
        if (fiber->state != Fiber::READY) continue;
        progress = true;
        resume(*fiber);
        if (!error.empty()) break;
    }
    return progress;
}

// Lets each warp go on alone for as long as it can. Returns whether any could.
bool Worker::run_warps() {
    bool progress = false;
    for (Fiber** warp : warps)
        for (bool ready = true; ready && error.empty();) {
            ready = false;
            for (Fiber* fiber : warp_of(**warp)) {
                if (fiber->state != Fiber::READY) continue;
                progress = true;
                const size_t given_up = spinning;
                resume(*fiber);
                if (!error.empty()) break;
                ready = ready || spinning == given_up;
            }
        }
    return progress;
}

void Worker::begin_block(Block& block, uint64_t number) {
    const dim3& grid = launch->grid;
    block.number = number;
    block.index = {unsigned(number % grid.x), unsigned(number / grid.x % grid.y), unsigned(number / grid.x / grid.y)};
    for (Fiber* fiber : fibers_of(block)) {
        fiber->state = Fiber::READY;
        fiber->thread.block_index = block.index;
        fiber->warp_interval = 0;
    }
    block.interval = 0;
    block.live = threads;
    block.at_barrier = 0;
    memset(block.dynamic_shared, 0xFF, block_shared);
}

void Worker::run_cluster(uint64_t number) {
    watcher.begin_block();
    for (Block& block : blocks) begin_block(block, number * blocks.size() + (&block - blocks.data()));
    if (launch->options.asynchronous) begin_asynchronous();
    live = fibers.size();
    in_collective = 0;
    random = mix(launch->options.seed ^ mix(number));  // each block has orders of its own, whoever runs it
    if (launch->options.order == WARPS) {
        warps = in_order;
        if (launch->options.seed) shuffle(warps, random);
    }
    for (unsigned rounds_of_waiting = 0; live && error.empty();) {
        spinning = resumed = 0;
        const bool progress = launch->options.order == WARPS ? run_warps() : run_round();
        rounds_of_waiting = spinning && spinning == resumed ? rounds_of_waiting + 1 : 0;
        if (!error.empty()) break;
        const char* why = nullptr;
        if (*launch->interrupted) why = "interrupted";
        if (!progress && !release_active_lanes()) why = "deadlock, no thread can go on";
        if (rounds_of_waiting == ROUNDS_OF_WAITING)
            why = "livelock, threads wait in loops for what none of them does; a block cannot wait for one that has "
                  "not started";
        if (why) error = block_name(blocks[0]) + ": " + describe_waiting(why);
    }
    if (error.empty()) end_cluster();
    // After an error the fibers are left where they are, in the middle of the kernel: they start anew next time.
    if (!error.empty())
        for (Fiber* fiber : fibers) fiber->started = false;
}

void Worker::end_cluster() {
    for (const Block& block : blocks)
        if (profiling) meet_all(block, false);
    report_garbage(false);
}

void Worker::end_launch() {
    if (profiling && error.empty()) profiler.end_launch();
    report_garbage(true);
}

void Worker::report_garbage(bool end_of_launch) {
    if (!watching || !error.empty()) return;
    const std::string& read = watcher.garbage_read(end_of_launch);
    if (read.empty()) return;
    error = launch->kernel + (", " + read);
    status = BAD_ACCESS;
}

// The place of the i-th block, or cluster, to run, in an order of which every worker has the same idea.
uint64_t Worker::cluster_to_run(uint64_t i) const {
    const uint64_t blocks = launch->clusters(), seed = launch->options.seed;
    if (launch->options.order == REVERSE) return blocks - 1 - i;
    if (launch->options.order == FORWARD || !seed) return i;
    uint64_t step = mix(seed) % blocks | 1;  // with no divisor in common, every block has its turn
    while (std::gcd(step, blocks) != 1) step += 2;
    return (mix(seed + 1) % blocks + i % blocks * (step % blocks)) % blocks;
}

void Worker::run(const Launch& next, std::atomic<uint64_t>& next_cluster, std::atomic<bool>& failed) noexcept {
    worker = this;
    error.clear();
    status = DONE;
    try {
        prepare(next);
        const uint64_t clusters = next.clusters();
        for (uint64_t i; !failed && (i = next_cluster++) < clusters;) {
            run_cluster(cluster_to_run(i));
            if (!error.empty()) failed = true;
        }
        end_launch();
        if (!error.empty()) failed = true;
        if (!error.empty() && !status) status = FAILED;
    } catch (const std::bad_alloc&) {
        error = std::string(next.kernel) + ": out of memory for the simulated threads";
        status = FAILED;
        failed = true;
    }
    if (watching) watcher = Watcher();  // its records may be large
    if (profiling) profiler = Profiler();
    watching = profiling = false;
    worker = nullptr;
}

}  // namespace
