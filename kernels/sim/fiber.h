// A fiber: the stack and the saved state of one simulated thread.
#pragma once
#include <setjmp.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <new>

#include "asynchronous.h"
#include "runtime.h"

namespace {

struct Block;

constexpr size_t STACK_BYTES = 256 << 10;  // reserved, not committed: pages are taken when touched
// Stacks start at different offsets: if all had the same, their hot ends would fight for a few cache sets.
constexpr size_t STACK_STAGGER = 320, STACK_STAGGER_LIMIT = 64 << 10;

struct Fiber {
    sim::Thread thread;  // first, so that a Thread* is a Fiber*
    enum { READY, AT_BARRIER, IN_COLLECTIVE, WAITING, ENDED } state;  // WAITING: for what sm_90a adds
    Block* block;
    size_t number;                // in the cluster
    sim::Place place;             // where it waits
    sim::Collective* collective;  // what it brings to its warp, if IN_COLLECTIVE
    Asynchronous asynchronous;    // what it has set to work
    jmp_buf context;
    char* stack = nullptr;
    uint32_t warp_interval = 0;  // how many __syncwarp() it has passed since the last barrier
    bool started = false;  // whether `context` is inside `Worker::fiber_main`

    Fiber() = default;
    Fiber(const Fiber&) = delete;
    ~Fiber() {
        if (stack) munmap(stack, STACK_BYTES);
    }

    void reserve_stack() {
        void* memory = mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        stack = static_cast<char*>(memory);
        mprotect(stack, sysconf(_SC_PAGESIZE), PROT_NONE);  // stacks grow downwards: an overflow ends here
    }

    bool owns(uintptr_t address) const {
        return address - reinterpret_cast<uintptr_t>(stack) < STACK_BYTES ||
               address - reinterpret_cast<uintptr_t>(&thread) < sizeof thread;  // threadIdx and so on
    }

    // Leaves the running context for `function`, on this fiber's own stack. Neither returns.
    [[noreturn]] void start(void (*function)()) {
        ucontext_t starter;
        getcontext(&starter);
        starter.uc_stack.ss_sp = stack;
        starter.uc_stack.ss_size = STACK_BYTES - thread.linear * STACK_STAGGER % STACK_STAGGER_LIMIT;
        starter.uc_link = nullptr;
        makecontext(&starter, function, 0);
        setcontext(&starter);
        abort();  // unreachable: setcontext fails for a broken context only
    }
};

}  // namespace
