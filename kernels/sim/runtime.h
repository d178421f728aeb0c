// What simulated kernels and the simulator's runtime know of each other.
//
// A kernel is compiled into a library of its own, which holds nothing but the kernel and the headers'
// inline functions. Everything with state is in the runtime (runtime.cpp): the threads, their order, the
// shared memory, and who waits for whom.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 sizes) : x(sizes.x), y(sizes.y), z(sizes.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

namespace sim {

// A CUDA thread, as its kernel sees it. The four values are the built-in variables of CUDA C++.
struct Thread {
    uint3 thread_index;  // threadIdx
    uint3 block_index;   // blockIdx
    dim3 block_size;     // blockDim
    dim3 grid_size;      // gridDim
    unsigned linear;     // threadIdx as one number, x fastest: 32 in a row are a warp
    unsigned lane;       // linear % 32
};

// Where in the kernel's source a thread stands, for messages.
struct Place {
    const char* what;
    const char* file;
    int line;

    bool same_line(const Place& other) const {
        return line == other.line && !__builtin_strcmp(what, other.what) && !__builtin_strcmp(file, other.file);
    }
};

// What one lane brings to an operation of its warp. It waits until every lane of `mask` has brought the
// same operation; then `finish` is called once for each of them, with the payloads of all (null for lanes
// that take no part). As the lanes wait meanwhile, all of this may live on their stacks. A mask of 0 stands for
// all lanes that meet at this place: __activemask().
struct Collective {
    unsigned mask;
    const void* payload;
    void* result;
    void (*finish)(Collective& self, unsigned lane, const void* const (&payloads)[32]);
    Place place;
};

// A static `__shared__` variable. All of a library's have their places in one order: `offset` grows with
// `number`.
struct SharedVariable {
    const char* name;
    size_t bytes, element;  // of the whole, and of an element of an array
    size_t offset;
    size_t number;  // from 0
};

// What compute capability 9.0 adds; hopper.cuh says what it does.

// A copy of a box between shared memory and a tensor.
struct BoxCopy {
    void* box;
    const void* map;
    int at[4];
    void* barrier = nullptr;  // of a load
    unsigned blocks = 0;      // of the cluster to load into, a bit for each; 0: the own one
    int dimensions = 3;
    bool of_images = false;   // with a filter moving over them, whose taps are at `offset`
    int offset[2] = {0, 0};
};

// Of the factors of a wgmma: how many bytes they have, and what number some bits are.
struct Element {
    int bytes;
    float (*widen)(unsigned bits);
};

// What a thread brings to a wgmma.
struct Wgmma {
    float (*sums)[4];
    unsigned long long a, b;  // descriptors
    const unsigned (*a_registers)[4];  // or null: a is in shared memory
    Element element;
    bool a_along_m, b_along_n, add;
    int columns;

    bool same(const Wgmma& other) const {
        return a == other.a && b == other.b && !a_registers == !other.a_registers &&
               element.widen == other.element.widen && a_along_m == other.a_along_m &&
               b_along_n == other.b_along_n && add == other.add && columns == other.columns;
    }
};

}  // namespace sim

#pragma GCC visibility push(default)  // what libraries share; all else in them is hidden
extern "C" {

// The thread that is running. Seen from inside a kernel it never changes, hence the attribute: the
// compiler may call it once per function and keep the result.
sim::Thread* sim_this_thread() __attribute__((const));

// Waits until all threads of the block that have not ended are here: __syncthreads().
void sim_block_barrier(const sim::Place* place);

// Waits for the lanes of the collective's mask, then returns with its result in place.
void sim_warp_collective(sim::Collective* collective);

// printf: the text is written when the launch has ended, in the order of blocks and threads.
int sim_print(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The block's shared memory: the dynamic part, and room for static variables. Poisoned with 0xFF (a NaN,
// or -1) when a block starts, and aligned to 1024 bytes.
void* sim_dynamic_shared(const char* name, size_t element);  // the size of what it is declared an array of
void* sim_static_shared(const sim::SharedVariable* variable);

// A store to these bytes, which comes at some time from now on, begins: an asynchronous copy.
void sim_starts_write(const void* address, size_t bytes);

// Compute capability 9.0: barriers in shared memory, by number, and of the cluster.
void sim_barrier_init(void* barrier, int arrivals);
void sim_barrier_arrive(void* barrier, unsigned block, unsigned bytes);
void sim_barrier_wait(void* barrier, int parity, const sim::Place* place);
void sim_fence_barriers();
void sim_named_barrier(int number, int threads, bool waits, const sim::Place* place);
void sim_arrive_at_cluster(const char* what);
void sim_wait_for_cluster(const sim::Place* place);
unsigned sim_block_in_cluster();
void* sim_in_block(const void* pointer, unsigned block);
void sim_store_in_block(void* to, unsigned word, unsigned block, void* barrier);

// Compute capability 9.0: the copy engine, and the tensor cores.
unsigned sim_shared_address(const void* pointer);
void sim_load_box(const sim::BoxCopy* copy);
void sim_store_box(const sim::BoxCopy* copy);
void sim_wait_for_stores(int left);
void sim_fence_for_copies();
void sim_set_registers(int count, const sim::Place* place);
void sim_wgmma(const sim::Wgmma* call, const sim::Place* place);
void sim_wgmma_fence();
void sim_wgmma_commit();
void sim_wgmma_wait(int left, const sim::Place* place);

// Ends the launch with an error. Does not return.
[[noreturn]] void sim_fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
}
#pragma GCC visibility pop
