// What tensor cores of compute capability 9.0 add: products of whole tiles that lie in shared memory (wgmma),
// copies of tiles by the copy engine (TMA), and barriers that both of them work with. For sm_90a alone.
//
// A box is what one copy moves and the unit that tiles are made of: 64 rows of 128 bytes, one after the other
// (BOX_BYTES), at a multiple of 1024 bytes. Chunk c of 16 bytes of row r stands at c ^ (r % 8), the engine's
// 128-byte swizzle: 8 rows' chunks of one number fall into different banks.
//
// On the simulator (hopper.h) nothing comes before it is waited for, so that a forgotten wait is seen.
//
// (NVIDIA, PTX ISA: "Asynchronous Warpgroup Level Matrix Instructions", "cp.async.bulk.tensor", "mbarrier".)
#pragma once

constexpr int BOX_ROWS = 64, BOX_ROW_BYTES = 128, BOX_BYTES = BOX_ROWS * BOX_ROW_BYTES;
constexpr int WARPGROUP = 128;  // threads: four warps, the first of a number divisible by 4

// A CUtensorMap: where a tensor of three or four dimensions, or images, lie, and what a copy takes. The launcher has
// the driver fill it in (for the simulator it does so itself); the kernel takes it as a `const __grid_constant__`
// parameter.
struct alignas(64) TensorMap {
    unsigned long long words[16];
};

// Describes an operand of a wgmma that begins at `address` (shared_address). If its elements along k are
// neighbours, a box has 64 rows of the operand, and boxes follow each other; if those along the other side
// are, a box has 64 steps of k, and the next 64 rows are in the next box. 8 rows of a box are 1024 bytes.
__device__ __forceinline__ unsigned long long describe_operand(unsigned address) {
    constexpr unsigned long long SWIZZLE_128 = 1ull << 62;
    return SWIZZLE_128 | (unsigned long long)(8 * BOX_ROW_BYTES >> 4) << 32 |
           (unsigned long long)(BOX_BYTES >> 4) << 16 | (address >> 4 & 0x3FFF);
}

// A value as the words that a store takes.
template <typename Value>
struct Words {
    static_assert(sizeof(Value) % 4 == 0, "whole words of 4 bytes");
    static constexpr int COUNT = sizeof(Value) / 4;
    unsigned word[COUNT];

    __device__ __forceinline__ explicit Words(const Value& value) { memcpy(word, &value, sizeof value); }
};

#if defined(MINIGRAD_SIM)
#include "hopper.h"
#else

__device__ __forceinline__ unsigned shared_address(const void* pointer) {
    return (unsigned)__cvta_generic_to_shared(pointer);
}

// ---- barriers in shared memory ----
//
// A barrier's phase ends when all expected arrivals, and all bytes that arrivals announced, have come. Phases
// have parities 0, 1, 0, ...; to wait for parity 1 of a fresh barrier is not to wait.

struct Barrier {
    unsigned long long state;

    __device__ __forceinline__ void init(int arrivals) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(this)), "r"(arrivals));
    }

    // Arrives, and has the phase wait for so many bytes of copies.
    __device__ __forceinline__ void arrive_and_expect(unsigned bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                     ::"r"(shared_address(this)), "r"(bytes) : "memory");
    }

    // Arrives at this barrier of another block of the cluster, or of the own one. Not `.release.cluster`:
    // that waits until the thread's memory traffic is done, and there is none here that others have to see.
    __device__ __forceinline__ void arrive_at(unsigned block) {
        asm volatile("{\n"
                     ".reg .b32 there;\n"
                     "mapa.shared::cluster.u32 there, %0, %1;\n"
                     "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
                     "}" ::"r"(shared_address(this)), "r"(block) : "memory");
    }

    __device__ __forceinline__ void wait(int parity) {
        unsigned done;
        do {
            asm volatile("{\n"
                         ".reg .pred done;\n"
                         "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                         "selp.u32 %0, 1, 0, done;\n"
                         "}" : "=r"(done) : "r"(shared_address(this)), "r"(parity) : "memory");
        } while (!done);
    }

    // The same for what threads of other blocks have stored (store_in_block).
    __device__ __forceinline__ void wait_for_blocks(int parity) {
        unsigned done;
        do {
            asm volatile("{\n"
                         ".reg .pred done;\n"
                         "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2;\n"
                         "selp.u32 %0, 1, 0, done;\n"
                         "}" : "=r"(done) : "r"(shared_address(this)), "r"(parity) : "memory");
        } while (!done);
    }
};

// Makes the barriers' init visible to the copy engine and to the cluster.
__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// ---- blocks of a cluster ----

// A barrier of all threads of all blocks of the cluster, in two halves: what each has done before it arrives, all see
// when they have waited. A thread arrives and waits in turn. Before it arrives its stores have to be done, those to
// global memory too: they are better made between the two. Waiting empties the L1 cache.
__device__ __forceinline__ void arrive_at_cluster() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void wait_for_cluster() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

__device__ __forceinline__ void sync_cluster() {
    arrive_at_cluster();
    wait_for_cluster();
}

// The same for a first time, when all have to start: others see of what the thread has stored only the barriers that
// fence_barrier_init() has made visible, and nothing is waited for. It is not for the end: blocks could leave before
// the last stores to them, or arrivals at their barriers, have come.
__device__ __forceinline__ void arrive_at_cluster_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void sync_cluster_relaxed() {
    arrive_at_cluster_relaxed();
    wait_for_cluster();
}

// What lies in the shared memory of another block of the cluster where `pointer` points to in the own one's. It may
// be read and written from after a first sync_cluster(), when that block has started, until a last one, before which
// no block leaves.
template <typename T>
__device__ __forceinline__ T* in_block(T* pointer, unsigned block) {
    T* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(pointer), "r"(block));
    return there;
}

// Stores `value` where `to` points to, in that block of the cluster; its bytes count for `barrier` of that block, and
// who has waited there has them (wait_for_blocks). Where a barrier of the cluster makes a thread wait for all of its
// memory traffic, and then for all blocks, these words are on their way at once. What the block has read before a
// __syncthreads() in front of this, it has read before they come.
template <typename Value>
__device__ __forceinline__ void store_in_block(Value* to, const Value& value, unsigned block, Barrier& barrier) {
    const Words<Value> words(value);
#pragma unroll
    for (int i = 0; i < words.COUNT; i++)
        asm volatile("{\n"
                     ".reg .b32 there, barrier;\n"
                     "mapa.shared::cluster.u32 there, %0, %2;\n"
                     "mapa.shared::cluster.u32 barrier, %3, %2;\n"
                     "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [there], %1, [barrier];\n"
                     "}" ::"r"(shared_address(to) + 4 * i), "r"(words.word[i]), "r"(block),
                       "r"(shared_address(&barrier)) : "memory");
}

__device__ __forceinline__ unsigned block_in_cluster() {
    unsigned rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// For COUNT threads of the block, of whole warps; `number`, from 1 on, tells the groups apart.
template <int COUNT>
__device__ __forceinline__ void sync_threads(int number) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "n"(COUNT) : "memory");
}

// The same for threads that the others, of the COUNT, wait for, and that go on.
template <int COUNT>
__device__ __forceinline__ void arrive_without_waiting(int number) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "n"(COUNT) : "memory");
}

// For the threads of a warpgroup.
__device__ __forceinline__ void sync_warpgroup(int number) { sync_threads<WARPGROUP>(number); }

// ---- registers: what one warpgroup gives back, another takes ----

template <int COUNT>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- copies of boxes ----

// Starts the copy of the box at (x, y, z), x being the dimension of the 128 bytes, into `box`. Its bytes
// count for the barrier. What lies outside of the tensor comes as zeros.
__device__ __forceinline__ void load_box(void* box, const TensorMap& map, int x, int y, int z,
                                         Barrier& barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];"
                 ::"r"(shared_address(box)), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&barrier))
                 : "memory");
}

// The same into the blocks of the cluster whose bits are set, at the same place, for the same barrier in
// each.
__device__ __forceinline__ void load_box(void* box, const TensorMap& map, int x, int y, int z,
                                         Barrier& barrier, unsigned short blocks) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;"
                 ::"r"(shared_address(box)), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&barrier)),
                   "h"(blocks)
                 : "memory");
}

// The same of a tensor of four dimensions.
__device__ __forceinline__ void load_box(void* box, const TensorMap& map, int x, int y, int z, int w,
                                         Barrier& barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6];"
                 ::"r"(shared_address(box)), "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w),
                   "r"(shared_address(&barrier))
                 : "memory");
}

// Starts the copy of 64 pixels of images that lie channels last, from a map of how a filter moves over them (im2col
// mode): of each 128 bytes of channels, from `channel` on. The filter's corner stands at (x, y) of `image` for the
// first of them, moves as the map says, from row to row and from image to image, and what is copied is the pixel
// that lies `right` and `down` of it, from 0 to 255. What lies outside of the images comes as zeros.
__device__ __forceinline__ void load_pixels(void* box, const TensorMap& map, int channel, int x, int y, int image,
                                            int right, int down, Barrier& barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4, %5}], [%6], {%7, %8};"
                 ::"r"(shared_address(box)), "l"(&map), "r"(channel), "r"(x), "r"(y), "r"(image),
                   "r"(shared_address(&barrier)), "h"((unsigned short)right), "h"((unsigned short)down)
                 : "memory");
}

// Starts the copy of a box into the tensor, as far as it lies inside, and closes the thread's group of
// stores. Unlike a load, it must not begin before the tensor.
__device__ __forceinline__ void store_box(const TensorMap& map, int x, int y, int z, const void* box) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%1, %2, %3}], [%4];\n"
                 "cp.async.bulk.commit_group;"
                 ::"l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(box)) : "memory");
}

// Waits until all but this thread's last LEFT stores have read their boxes.
template <int LEFT>
__device__ __forceinline__ void wait_for_stores() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(LEFT) : "memory");
}

// Makes this thread's stores to shared memory visible to the copy engine.
__device__ __forceinline__ void fence_for_copies() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---- wgmma: a warpgroup's sums (64 x N) += a (64 x 32 bytes) b (32 bytes x N), N = 64, 128, 192 or 256 ----
//
// Thread 32 w + 4 g + t (g < 8, t < 4) holds in sums[n] columns 8 n + 2 t and + 1 of row 16 w + g, and the
// same of row 16 w + g + 8: a warp's 16 x 8 are those of mma_* in tensor_core.cuh.

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most LEFT committed groups are at work; their sums are not to be touched.
template <int LEFT>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}

// To be called for the sums, and factors in registers, of a product after the wait for it: the compiler, which takes
// a wgmma for done when it is issued, moves nothing that uses them from behind this to before the wait.
template <int COUNT>
__device__ __forceinline__ void wgmma_is_done(float (&sums)[COUNT][4]) {
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) asm volatile("" : "+f"(sums[i / 4][i % 4])::"memory");
}
template <int COUNT>
__device__ __forceinline__ void wgmma_is_done(unsigned (&factors)[COUNT][4]) {
#pragma unroll
    for (int i = 0; i < 4 * COUNT; i++) asm volatile("" : "+r"(factors[i / 4][i % 4])::"memory");
}

#define SUMS_1(n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
#define SUMS_4(n) SUMS_1(n), SUMS_1(n + 1), SUMS_1(n + 2), SUMS_1(n + 3)
#define SUMS_8 SUMS_4(0), SUMS_4(4)
#define SUMS_16 SUMS_8, SUMS_4(8), SUMS_4(12)
#define SUMS_24 SUMS_16, SUMS_4(16), SUMS_4(20)
#define SUMS_32 SUMS_24, SUMS_4(24), SUMS_4(28)
#define REGISTERS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 \
    REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_96 \
    REGISTERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define REGISTERS_128 \
    REGISTERS_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// The sums come last, for they have commas; %a, %b and so on follow them in the order of the operands.
#define WGMMA(shape_and_types, registers, a_operand, b_operand, add_operand, layouts, ...)                \
    asm volatile("{\n"                                                                                   \
                 ".reg .pred add;\n"                                                                     \
                 "setp.ne.b32 add, " add_operand ", 0;\n"                                                \
                 "wgmma.mma_async.sync.aligned." shape_and_types " {" registers "}, " a_operand           \
                 ", " b_operand ", add, 1, 1" layouts ";\n"                                              \
                 "}"                                                                                     \
                 : __VA_ARGS__                                                                           \
                 : "l"(a), "l"(b), "r"(int(add)), "n"(int(A_ALONG_M)), "n"(int(B_ALONG_N)))
#define WGMMA_OF_TYPE(n, registers, a_operand, b_operand, add_operand, layouts, ...)                      \
    if constexpr (sizeof(T) == 4)                                                                        \
        WGMMA("m64n" n "k8.f32.tf32.tf32", registers, a_operand, b_operand, add_operand, "",             \
              __VA_ARGS__);                                                                              \
    else if constexpr (IS_HALF<T>)                                                                       \
        WGMMA("m64n" n "k16.f32.f16.f16", registers, a_operand, b_operand, add_operand, layouts,         \
              __VA_ARGS__);                                                                              \
    else                                                                                                 \
        WGMMA("m64n" n "k16.f32.bf16.bf16", registers, a_operand, b_operand, add_operand, layouts,       \
              __VA_ARGS__)

template <typename T>
constexpr bool IS_HALF = false;
template <>
constexpr bool IS_HALF<__half> = true;

// sums = a b, or += a b if `add`. a and b are descriptors. A_ALONG_M and B_ALONG_N say that neighbours in
// memory are along the other side than k; TF32 has no such operands. It does not round floats, but cuts them.
template <typename T, bool A_ALONG_M, bool B_ALONG_N, int COUNT>
__device__ __forceinline__ void wgmma(float (&sums)[COUNT][4], unsigned long long a, unsigned long long b,
                                      bool add) {
    static_assert(sizeof(T) == 2 || !(A_ALONG_M || B_ALONG_N), "TF32 operands lie along k");
    static_assert(COUNT == 8 || COUNT == 16 || COUNT == 24 || COUNT == 32, "64, 128, 192 or 256 columns");
    if constexpr (COUNT == 8) {
        WGMMA_OF_TYPE("64", REGISTERS_32, "%32", "%33", "%34", ", %35, %36", SUMS_8);
    } else if constexpr (COUNT == 16) {
        WGMMA_OF_TYPE("128", REGISTERS_64, "%64", "%65", "%66", ", %67, %68", SUMS_16);
    } else if constexpr (COUNT == 24) {
        WGMMA_OF_TYPE("192", REGISTERS_96, "%96", "%97", "%98", ", %99, %100", SUMS_24);
    } else {
        WGMMA_OF_TYPE("256", REGISTERS_128, "%128", "%129", "%130", ", %131, %132", SUMS_32);
    }
}

#define WGMMA_OF_REGISTERS(n, type, registers, a_operand, b_operand, layout, ...)                         \
    asm volatile("{\n"                                                                                   \
                 ".reg .pred add;\n"                                                                     \
                 "setp.eq.b32 add, 0, 0;\n"                                                              \
                 "wgmma.mma_async.sync.aligned.m64n" n "k16.f32." type "." type " {" registers "}, {"     \
                 a_operand "}, " b_operand ", add, 1, 1, " layout ";\n"                                  \
                 "}"                                                                                     \
                 : __VA_ARGS__                                                                           \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(B_ALONG_N)))
#define WGMMA_OF_REGISTERS_AND_TYPE(n, ...)        \
    if constexpr (IS_HALF<T>)                      \
        WGMMA_OF_REGISTERS(n, "f16", __VA_ARGS__); \
    else                                           \
        WGMMA_OF_REGISTERS(n, "bf16", __VA_ARGS__)

// sums += a b in 16 bits, with a in registers: each warp's 16 x 16 as mma_* in tensor_core.cuh takes them. They are
// not to be touched while the product is at work.
template <typename T, bool B_ALONG_N, int COUNT>
__device__ __forceinline__ void wgmma(float (&sums)[COUNT][4], const unsigned (&a)[4], unsigned long long b) {
    static_assert(sizeof(T) == 2 && (COUNT == 8 || COUNT == 16), "16 bits, 64 or 128 columns");
    if constexpr (COUNT == 8) {
        WGMMA_OF_REGISTERS_AND_TYPE("64", REGISTERS_32, "%32, %33, %34, %35", "%36", "%37", SUMS_8);
    } else {
        WGMMA_OF_REGISTERS_AND_TYPE("128", REGISTERS_64, "%64, %65, %66, %67", "%68", "%69", SUMS_16);
    }
}
#undef WGMMA_OF_REGISTERS_AND_TYPE
#undef WGMMA_OF_REGISTERS
#undef WGMMA_OF_TYPE
#undef WGMMA
#undef REGISTERS_128
#undef REGISTERS_96
#undef REGISTERS_64
#undef REGISTERS_32
#undef SUMS_32
#undef SUMS_24
#undef SUMS_16
#undef SUMS_8
#undef SUMS_4
#undef SUMS_1

#endif
