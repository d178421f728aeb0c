// A worker: what it takes to run a block at a time, or a cluster of them, on one of the CPU's cores. The functions are
// in runtime.cpp, in scheduler.h, and those for what sm_90a adds in barriers.h, copy_engine.h and warpgroups.h.
#pragma once
#include <setjmp.h>
#include <stdarg.h>

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "asynchronous.h"
#include "checks.h"
#include "fiber.h"
#include "launch.h"
#include "profiler.h"

namespace {

// A block that runs.
struct Block {
    uint3 index;
    uint64_t number;
    size_t first;  // of its fibers
    size_t live, at_barrier;
    uint32_t interval;  // how many barriers it has passed
    unsigned char *dynamic_shared, *static_shared;
    NamedBarrier named_barriers[16];
    std::vector<Warpgroup> warpgroups;
    Clocks::Row from_others;  // when threads of other blocks last came to its shared memory
};

// Runs one block at a time, or the blocks of one cluster together.
class Worker {
  public:
    void run(const Launch& launch, std::atomic<uint64_t>& next_cluster, std::atomic<bool>& failed) noexcept;
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
    void add_shared(const unsigned char* own, size_t bytes, size_t element, const char* name);
    void access(uintptr_t address, size_t bytes, Kind kind, const void* return_address);
    void access_beyond_stack(uintptr_t address, size_t bytes, Kind kind, const void* return_address);
    void enter(const void* return_address);
    void fence();
    void settle();
    void atomic();

    void initialise(void* barrier, int arrivals, const void* return_address);
    void arrive(void* barrier, unsigned rank, unsigned bytes, const void* return_address);
    void wait_for(void* barrier, int parity, const sim::Place& place, const void* return_address);
    void fence_barriers();
    void named_barrier(int number, int count, bool waits, const sim::Place& place);
    void arrive_at_cluster(const char* what);
    void wait_for_cluster(const sim::Place& place);
    unsigned char* in_block(const void* address, unsigned rank, const char* what);
    unsigned rank() const { return current->block - blocks.data(); }
    size_t shared_offset(const void* address) const;

    void load_box(const sim::BoxCopy& copy, const void* return_address);
    void store_in_block(void* to, uint32_t word, unsigned block, void* barrier, const void* return_address);
    void store_box(const sim::BoxCopy& copy, const void* return_address);
    void wait_for_stores(int left);
    void fence_for_copies();

    void set_registers(int count, const sim::Place& place);
    void wgmma(const sim::Wgmma& call, const sim::Place& place, const void* return_address);
    void wgmma_fence();
    void wgmma_commit();
    void wgmma_wait(int left, const sim::Place& place);
    void print(const char* format, va_list arguments) {
        launch->output->add(current->block->number, current->thread.linear, format, arguments);
    }
    bool is_watching() const { return watching; }
    const char* name_of(uintptr_t address) { return watcher.name_of(address); }

    Fiber* current = nullptr;

  private:
    void prepare(const Launch& launch);
    void run_cluster(uint64_t number);
    void begin_block(Block& block, uint64_t number);
    uint64_t cluster_to_run(uint64_t i) const;
    void end_cluster();
    void end_launch();
    void report_garbage(bool end_of_launch);
    bool run_round();
    bool run_warps();
    void resume(Fiber& fiber);
    void wait(int state, const sim::Place& place);
    void end_current();
    void release_barrier(Block& block);
    void check_barrier(const Block& block);
    void meet_all(const Block& block, bool barrier);
    bool release_active_lanes();
    bool finish_collective(const Fiber& leader);
    std::string describe_waiting(const char* what);
    std::string block_name(const Block& block) const;
    std::span<Fiber* const> fibers_of(const Block& block) const { return {&fibers[block.first], threads}; }
    std::span<Fiber* const> warp_of(const Fiber& fiber) const;

    void begin_asynchronous();
    void end_asynchronous();
    uint32_t new_clock();
    __attribute__((noinline)) void access_otherwise(uintptr_t address, size_t bytes, Kind kind,
                                                    const void* return_address);
    void check(const void* address, size_t bytes, Kind kind, const void* return_address, const View& view,
               uint32_t clock, uint32_t time);
    void order_all(std::span<Fiber* const> met);
    void wait_until(const void* what, const sim::Place& place);
    template <class Then>
    void wake(const void* what, Then then);

    void visit(unsigned rank, const char* what);
    MemoryBarrier& barrier_at(const void* address, const char* what, const void* return_address);
    bool try_complete(const void* address, MemoryBarrier& barrier);
    void notify(const void* address, MemoryBarrier& barrier);
    std::string describe_barriers();
    void release_cluster();

    BoxInTensor box_in_tensor(const sim::BoxCopy& copy, const char* what);
    void start_load(const BoxInTensor& load, const void* barrier, const char* what, const void* return_address);
    void finish_load(const BoxInTensor& load);

    Warpgroup& warpgroup(const char* what);
    size_t first_of_warpgroup() const { return current->number - current->thread.linear % WARPGROUP; }
    bool gather(Warpgroup& group, const void* call, const sim::Place& place);
    Accumulator& accumulator(Warpgroup& group, const sim::Wgmma& call);
    template <class Visit>
    static void each_sum(const Accumulator& sums, unsigned thread, Visit visit);
    template <int MOST>
    void read_operand(float (*out)[MOST], int rows, uint64_t descriptor, bool along_rows, sim::Element element,
                      const View& view, uint32_t clock, uint32_t time, const void* return_address);
    void keep_factors(const Warpgroup& group, uint32_t number);
    template <int M>
    void read_registers(float (*out)[M], const Warpgroup& group, sim::Element element);
    void multiply(Accumulator& sums, const Warpgroup& group, const sim::Wgmma& call, const void* return_address);

    const Launch* launch = nullptr;
    std::vector<Block> blocks;                       // of the cluster
    std::vector<std::unique_ptr<Fiber>> all_fibers;  // at least as many as the cluster has threads
    std::vector<Fiber*> fibers;                      // of the cluster's threads, block after block
    std::vector<Fiber*> order;                       // in each round
    std::vector<Fiber**> in_order, warps;            // the warps by their first, and their order if they run one by one
    uint64_t random = 0;
    size_t threads = 0;  // of a block
    size_t live = 0;     // of the cluster: threads that have not ended
    size_t in_collective = 0;  // threads that wait for their warp
    size_t spinning = 0, resumed = 0;  // in this round: who gave up the core in a loop of atomics, and all
    unsigned atomics = 0;              // that the running thread has made since it was resumed
    std::vector<unsigned char> shared;
    size_t static_bytes = 0, block_shared = 0;
    size_t at_cluster_barrier = 0;
    uint32_t cluster_phase = 1;                       // of the cluster's barrier
    Clocks::Row arrived_at_cluster, seen_by_cluster;  // by those who came: in this phase, and in the last one
    std::unordered_map<const void*, MemoryBarrier> barriers;
    struct {
        float a[16][Accumulator::ROWS], b[16][Accumulator::COLUMNS];
    } factors;  // of the product that is made
    Clocks clocks;
    bool clocked = false;  // watching a kernel for sm_90a
    Watcher watcher;
    bool watching = false;
    Profiler profiler;
    bool profiling = false;
    jmp_buf scheduler;
    char message[2048];  // of a fiber that failed
};

}  // namespace
