// A launch as the runtime knows it, and how it is to be run.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>

#include "output.h"
#include "profiler.h"
#include "regions.h"
#include "runtime.h"

namespace {

constexpr unsigned WARP = 32;
constexpr size_t STATIC_SHARED_BYTES = 48 << 10;  // what CUDA allows to static shared variables
constexpr size_t SHARED_ALIGNMENT = 1024;
// In a checked launch static shared variables stand this far apart, so that one's end is not another's start.
constexpr size_t RED_ZONE = 1024, RED_ZONES = 64;

// A thread that has made so many atomic operations in a row may be waiting in a loop for another one, which
// must get the core some time. If all that are ready do so for so many rounds, none of them ever goes on.
constexpr unsigned PATIENCE = 1024, ROUNDS_OF_WAITING = 1024;

enum Status { DONE = 0, FAILED = 1, BAD_ACCESS = 2 };  // what sim_launch returns

// In which order the blocks run, and the threads of each. RANDOM is drawn anew whenever each thread has had
// its turn. WARPS lets a warp go on alone until it waits for others, as if the rest were slow.
enum Order : uint32_t { FORWARD, REVERSE, RANDOM, WARPS };

using Entry = void (*)(const unsigned char* arguments);

// How to run a launch, as Python says it (backend.py).
struct Options {
    uint64_t seed;
    size_t shared_limit;  // bytes of shared memory that a block of the architecture may have
    const char* architecture;
    const Checks* checks;  // null: plain
    Report report;         // null: not profiled; else the launch is profiled and not checked
    Order order;
    uint32_t max_workers;
    uint32_t cluster;       // blocks, neighbours along x, that run together
    uint32_t asynchronous;  // whether the kernel uses what sm_90a adds
};

struct Launch {
    const char* kernel;
    Entry entry;
    const unsigned char* arguments;
    dim3 grid, block;
    size_t dynamic_shared;
    Options options;
    Output* output;
    const std::atomic<bool>* interrupted;

    uint64_t threads() const { return uint64_t(block.x) * block.y * block.z; }
    uint64_t clusters() const { return uint64_t(grid.x) * grid.y * grid.z / options.cluster; }
};

uint64_t mix(uint64_t x) {  // splitmix64
    x += 0x9E3779B97F4A7C15;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

}  // namespace
