// Asynchronous copies from global to shared memory: cp.async, which a thread starts and later waits for. What
// comes goes past the registers, and the thread computes meanwhile:
//
//     AsyncCopies copies;
//     copies.copy<16>(&tile[i], &x[i]);     // 16 bytes are on their way
//     copies.commit();                      // the copies since the last commit are a group
//     copies.wait<0>();                     // until 0 groups are left: this thread's copies are there
//     __syncthreads();                      // and those of the others
//
// Below compute capability 8.0 the thread makes the copy itself, at once. On the simulator it is made at the
// wait that must have seen it arrive, and not earlier: who reads before that finds what was there. It counts
// as a store from its start on: who still reads the old values then, with no barrier in between, has a race.
#pragma once

struct AsyncCopies {
    // Copies BYTES, 4, 8 or 16; both addresses are multiples of it. With `valid` below BYTES, only so many
    // bytes are read, maybe none, and the rest of the destination becomes zero. 16 bytes go past the L1 cache, but
    // where CACHED: a block that will read them again finds them there. The L2 cache asks memory for all 128 bytes
    // around them: in most kernels the next step of a row is in them. (Unasked, ptxas adds that in some kernels and
    // not in others.)
    template <int BYTES, bool CACHED = BYTES < 16>
    __device__ __forceinline__ void copy(void* shared, const void* global, int valid = BYTES) {
        static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
#if defined(MINIGRAD_SIM)
        if ((size_t(shared) | size_t(global)) % BYTES != 0)
            sim_fail("an asynchronous copy of %d bytes: its addresses are no multiples of that", BYTES);
        if (started == CAPACITY) sim_fail("more than %d copies are on their way", CAPACITY);
        sim_starts_write(shared, BYTES);
        copies[started++] = {shared, global, BYTES, valid, groups};
#elif __CUDA_ARCH__ >= 800
        const unsigned to = (unsigned)__cvta_generic_to_shared(shared);
        const size_t from = __cvta_generic_to_global(global);
        if constexpr (!CACHED)
            asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                         ::"r"(to), "l"(from), "r"(valid) : "memory");
        else
            asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;"
                         ::"r"(to), "l"(from), "n"(BYTES), "r"(valid) : "memory");
#else
        Copy{shared, global, BYTES, valid, 0}.arrive();
#endif
    }

    __device__ __forceinline__ void commit() {
#if defined(MINIGRAD_SIM)
        groups++;
#elif __CUDA_ARCH__ >= 800
        asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    }

    // Waits until at most LEFT of this thread's groups, the latest, are on their way.
    template <int LEFT>
    __device__ __forceinline__ void wait() {
#if defined(MINIGRAD_SIM)
        int arrived = 0;
        while (arrived < started && copies[arrived].group < groups - LEFT) copies[arrived++].arrive();
        started -= arrived;
        for (int i = 0; i < started; i++) copies[i] = copies[i + arrived];
#elif __CUDA_ARCH__ >= 800
        asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
    }

  private:
    struct Copy {
        void* shared;
        const void* global;
        int bytes, valid, group;

        __device__ __forceinline__ void arrive() const {
            const bool whole = valid == bytes;
            if ((whole || valid == 0) && bytes == 16) return move<uint4>(whole);
            if ((whole || valid == 0) && bytes == 8) return move<uint2>(whole);
            if (whole || valid == 0) return move<unsigned>(whole);
            auto to = static_cast<unsigned char*>(shared);
            auto from = static_cast<const unsigned char*>(global);
            for (int i = 0; i < bytes; i++) to[i] = i < valid ? from[i] : 0;
        }

        template <typename Word>
        __device__ __forceinline__ void move(bool whole) const {
            *static_cast<Word*>(shared) = whole ? *static_cast<const Word*>(global) : Word{};
        }
    };

#if defined(MINIGRAD_SIM)
    static constexpr int CAPACITY = 256;
    Copy copies[CAPACITY];
    int started = 0, groups = 0;
#endif
};
