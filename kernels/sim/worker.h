// A worker: what it takes to run a block at a time on one of the CPU's cores. The functions are in runtime.cpp,
// and in scheduler.h.
#pragma once
#include <setjmp.h>
#include <stdarg.h>

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "checks.h"
#include "fiber.h"
#include "launch.h"
#include "profiler.h"

namespace {

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
    void fail_for_garbage(bool end_of_launch);
    [[noreturn]] void fail_as(const std::string& whole, Status as);
    [[noreturn]] void fiber_main();
    void* static_variable(const sim::SharedVariable& variable);
    void* dynamic_variable(const char* name, size_t element);
    void access(uintptr_t address, size_t bytes, Kind kind, const void* return_address);
    void enter(const void* return_address);
    void fence();
    void settle();
    void atomic();
    void print(const char* format, va_list arguments) {
        launch->output->add(block_number, current->thread.linear, format, arguments);
    }
    bool is_watching() const { return watching; }
    const char* name_of(uintptr_t address) { return watcher.name_of(address); }

    Fiber* current = nullptr;

  private:
    void prepare(const Launch& launch);
    void run_block(uint64_t number);
    uint64_t block_to_run(uint64_t i) const;
    void end_block();
    void end_launch();
    void report_garbage(bool end_of_launch);
    bool run_round();
    bool run_warps();
    void resume(Fiber& fiber);
    void wait(int state, const sim::Place& place);
    void end_current();
    void release_barrier();
    void check_barrier();
    void meet_all(bool barrier);
    bool release_active_lanes();
    bool finish_collective(unsigned warp, const sim::Collective& leader);
    std::string describe_waiting(const char* what) const;
    std::string block_name() const;

    const Launch* launch = nullptr;
    std::vector<std::unique_ptr<Fiber>> fibers;  // at least as many as the block has threads
    std::vector<Fiber*> order;    // of the block's threads, in each round
    std::vector<unsigned> warps;  // the order of its warps, if they run one by one
    uint64_t random = 0;
    size_t threads = 0, live = 0, at_barrier = 0;
    size_t spinning = 0, resumed = 0;  // in this round: who gave up the core in a loop of atomics, and all
    unsigned atomics = 0;              // that the running thread has made since it was resumed
    uint3 block_index{};
    uint64_t block_number = 0;
    uint32_t interval = 0;  // how many barriers the block has passed
    std::vector<unsigned char> shared;
    unsigned char *static_shared = nullptr, *dynamic_shared = nullptr;
    size_t static_bytes = 0;
    Watcher watcher;
    bool watching = false;
    Profiler profiler;
    bool profiling = false;
    jmp_buf scheduler;
    char message[2048];  // of a fiber that failed
};

}  // namespace
