// Memory for arrays: blocks that are kept when they are freed, and handed out again.
//
// A big array costs more time to come by than to fill: the system gives its pages one fault at a time, each
// cleared first, and takes them back when the array goes. So a freed block stays in a cache, its pages in
// place, for the next array of about its size.
//
//   block       64 bytes that describe it, then the data: aligned to 64 bytes, a cache line. Blocks of
//               MAPPED_SIZE and more are mappings of their own, aligned for huge pages where they hold some;
//               smaller ones come from the C library. In a mapping a block begins in the middle of a page:
//               large arrays of the C library begin 16 bytes into one, and a processor that compares the
//               last 12 bits of addresses would take each vector read from such an array for what was just
//               written a few bytes further into a page, and wait for it.
//   size class  eight to each power of two, so that at most an eighth of a block lies idle. Freed blocks of a
//               class form a list, the last freed in front: it may still lie in the processor's cache.
//   age list    all freed blocks in the order in which they were freed. The oldest go first.
//
// Freed blocks go back to the system, oldest first:
//   - when they are more than the cache's bound;
//   - when new memory is needed, and all that is held would exceed what arrays have held at one time by more
//     than a quarter and SLACK: so the process does not grow far beyond its own need;
//   - when new memory is needed, and all that is held would exceed the user's limit;
//   - when nobody has asked for them for `idle` nanoseconds. This is looked at whenever a mapping is freed.
//
// Everything that is shared stands in one struct behind one lock, which is held for a few instructions, for
// system calls only when memory comes or goes. A fork takes the lock first, so the child finds all in order.

#ifndef MINIGRAD_CACHING_ALLOCATOR_H
#define MINIGRAD_CACHING_ALLOCATOR_H

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { ALIGNMENT = 64, CLASSES = 480 };
#define PAGE ((size_t)4096)
#define INTO_PAGE (PAGE / 2)
#define MAPPED_SIZE ((size_t)128 << 10)
#define HUGE_PAGE ((size_t)2 << 20)
#define SLACK ((size_t)64 << 20)
#define MOST_BYTES ((size_t)1 << 48)  // a larger request can only be a mistake, or an overflow

typedef struct Block {
    struct Block *next, *previous;  // among the freed blocks of its class
    struct Block *newer, *older;    // among all freed blocks
    size_t size;                    // bytes of data asked for
    size_t capacity;                // bytes of data that fit
    size_t mapped;                  // bytes of its mapping, INTO_PAGE before it; 0: it is the C library's
    int64_t freed_at;               // nanoseconds
} Block;

_Static_assert(sizeof(Block) == ALIGNMENT, "the data behind a block's description must be aligned");

typedef struct {
    size_t allocated, most_allocated;    // bytes that arrays asked for; the most since the last reset
    size_t reserved, most_reserved;      // bytes of all blocks, freed ones too
    size_t held, most_held;              // bytes of the blocks that arrays hold; the most ever
    size_t allocations, taken, returned; // how many: blocks handed out, got from the system, given back to it
    size_t retries, failures;            // how often the cache was emptied for a request; requests refused
} MemoryStats;

static struct {
    pthread_mutex_t lock;
    Block *freed[CLASSES];
    Block *newest, *oldest;
    MemoryStats stats;
    size_t limit;      // of bytes reserved
    size_t most_cached; // of bytes of freed blocks; 0: nothing is kept, and every block is the C library's
    int64_t idle;      // nanoseconds after which a freed block goes back
} memory = {.lock = PTHREAD_MUTEX_INITIALIZER, .limit = SIZE_MAX};

// ---- size classes -------------------------------------------------------------------------------------------

// The class of a request, whose blocks hold `*capacity` bytes: multiples of 64 up to 1024, and from there on
// eight sizes to each power of two.
static inline int size_class(size_t size, size_t *capacity) {
    int exponent = size > 1 ? 63 - __builtin_clzll(size - 1) : 0;
    int shift = exponent > 9 ? exponent - 3 : 6;
    size_t steps = (size + ((size_t)1 << shift) - 1) >> shift;
    *capacity = steps << shift;
    return (shift - 6) * 8 + (int)steps;
}

// ---- the lists of freed blocks; all that follows expects the lock to be held ----------------------------------

static inline int64_t now(void) {
    struct timespec time;
#ifdef CLOCK_MONOTONIC_COARSE
    clock_gettime(CLOCK_MONOTONIC_COARSE, &time);
#else
    clock_gettime(CLOCK_MONOTONIC, &time);
#endif
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static inline void link_freed(Block *block, int class) {
    block->previous = NULL;
    block->next = memory.freed[class];
    if (block->next) block->next->previous = block;
    memory.freed[class] = block;
    block->newer = NULL;
    block->older = memory.newest;
    if (block->older) block->older->newer = block;
    else memory.oldest = block;
    memory.newest = block;
}

static inline void unlink_freed(Block *block, int class) {
    if (block->previous) block->previous->next = block->next;
    else memory.freed[class] = block->next;
    if (block->next) block->next->previous = block->previous;
    if (block->newer) block->newer->older = block->older;
    else memory.newest = block->older;
    if (block->older) block->older->newer = block->newer;
    else memory.oldest = block->newer;
}

// ---- from the system and back ---------------------------------------------------------------------------------

// `bytes` of fresh zeros. From a huge page on they begin at a multiple of one, and the system is asked to use
// them: a fault then brings 2 MB, and the processor finds them by one entry of its page tables.
static char *map_pages(size_t bytes) {
    size_t padding = bytes >= HUGE_PAGE ? HUGE_PAGE - PAGE : 0;
    char *start = mmap(NULL, bytes + padding, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) return NULL;
    if (padding) {
        size_t before = -(uintptr_t)start & (HUGE_PAGE - 1), after = padding - before;
        if (before) munmap(start, before);
        start += before;
        if (after) munmap(start + bytes, after);
#ifdef MADV_HUGEPAGE
        madvise(start, bytes, MADV_HUGEPAGE);
#endif
    }
    return start;
}

static Block *take_from_system(size_t capacity) {
    size_t bytes = sizeof(Block) + capacity, mapped = 0;
    Block *block;
    if (capacity >= MAPPED_SIZE && memory.most_cached > 0) {
        mapped = (INTO_PAGE + bytes + PAGE - 1) & ~(PAGE - 1);
        char *pages = map_pages(mapped);
        if (!pages) return NULL;
        block = (Block *)(pages + INTO_PAGE);
    } else if (posix_memalign((void **)&block, ALIGNMENT, bytes)) {
        return NULL;
    }
    block->capacity = capacity;
    block->mapped = mapped;
    memory.stats.reserved += capacity;
    memory.stats.taken++;
    if (memory.stats.reserved > memory.stats.most_reserved) memory.stats.most_reserved = memory.stats.reserved;
    return block;
}

static void return_to_system(Block *block) {
    memory.stats.reserved -= block->capacity;
    memory.stats.returned++;
    if (block->mapped) munmap((char *)block - INTO_PAGE, block->mapped);
    else free(block);
}

static void return_oldest(void) {
    Block *block = memory.oldest;
    size_t capacity;
    unlink_freed(block, size_class(block->capacity, &capacity));
    return_to_system(block);
}

// Give back freed blocks until no more than `most` bytes are reserved, or none is left.
static inline void shrink_to(size_t most) {
    while (memory.oldest && memory.stats.reserved > most) return_oldest();
}

// ---- a request ----------------------------------------------------------------------------------------------

// A freed block for the request, taken off the lists, or NULL. A mapping may be up to a quarter too big.
static inline Block *take_from_cache(int class, size_t capacity) {
    int last = capacity >= MAPPED_SIZE ? class + 2 : class;
    for (; class <= last; class++) {
        Block *block = memory.freed[class];
        if (block) {
            unlink_freed(block, class);
            return block;
        }
    }
    return NULL;
}

// Memory that was not in the cache: first what is kept beyond need, or beyond the limit, is given back.
static Block *take_new(size_t capacity) {
    MemoryStats *stats = &memory.stats;
    size_t need = stats->held + capacity > stats->most_held ? stats->held + capacity : stats->most_held;
    size_t bound = need + need / 4 + SLACK;
    shrink_to(bound - capacity);
    if (stats->reserved + capacity > memory.limit) {
        stats->retries++;
        shrink_to(memory.limit > capacity ? memory.limit - capacity : 0);
        if (stats->reserved + capacity > memory.limit) return NULL;
    }
    Block *block = take_from_system(capacity);
    if (!block && memory.oldest) {
        stats->retries++;
        shrink_to(0);
        block = take_from_system(capacity);
    }
    return block;
}

// Memory for `size` bytes, aligned to 64, or NULL. `*fresh`, if asked for: whether it is zeros already.
static void *memory_allocate(size_t size, int *fresh) {
    if (size > MOST_BYTES) return NULL;
    MemoryStats *stats = &memory.stats;
    size_t capacity = size;
    pthread_mutex_lock(&memory.lock);
    Block *block = NULL;
    if (memory.most_cached > 0) block = take_from_cache(size_class(size, &capacity), capacity);
    int cached = block != NULL;
    if (!cached) block = take_new(capacity);
    if (block) {
        block->size = size;
        stats->allocations++;
        stats->allocated += size;
        stats->held += block->capacity;
        if (stats->allocated > stats->most_allocated) stats->most_allocated = stats->allocated;
        if (stats->held > stats->most_held) stats->most_held = stats->held;
        if (fresh) *fresh = !cached && block->mapped;
    } else {
        stats->failures++;
    }
    pthread_mutex_unlock(&memory.lock);
    return block ? block + 1 : NULL;
}

static void memory_free(void *data) {
    if (!data) return;
    Block *block = (Block *)data - 1;
    MemoryStats *stats = &memory.stats;
    pthread_mutex_lock(&memory.lock);
    stats->allocated -= block->size;
    stats->held -= block->capacity;
    if (memory.most_cached > 0) {
        size_t capacity;
        link_freed(block, size_class(block->capacity, &capacity));
        if (block->mapped) {
            block->freed_at = now();
            while (memory.oldest != block && memory.oldest->freed_at < block->freed_at - memory.idle)
                return_oldest();
        } else {
            block->freed_at = block->older ? block->older->freed_at : now();
        }
        size_t most = stats->held + memory.most_cached;
        shrink_to(most < memory.limit ? most : memory.limit);
    } else {
        return_to_system(block);
    }
    pthread_mutex_unlock(&memory.lock);
}

static void *memory_reallocate(void *data, size_t size) {
    if (!data) return memory_allocate(size, NULL);
    Block *block = (Block *)data - 1;
    size_t kept = block->size < size ? block->size : size;
    void *moved = memory_allocate(size, NULL);
    if (!moved) return NULL;
    memcpy(moved, data, kept);
    memory_free(data);
    return moved;
}

// ---- settings, statistics, fork -------------------------------------------------------------------------------

static void memory_empty_cache(void) {
    pthread_mutex_lock(&memory.lock);
    shrink_to(0);
    pthread_mutex_unlock(&memory.lock);
}

static void memory_set_limit(size_t limit) {
    pthread_mutex_lock(&memory.lock);
    memory.limit = limit;
    shrink_to(limit);
    pthread_mutex_unlock(&memory.lock);
}

static void memory_set_idle(int64_t nanoseconds) {
    pthread_mutex_lock(&memory.lock);
    memory.idle = nanoseconds;
    pthread_mutex_unlock(&memory.lock);
}

static MemoryStats memory_stats(void) {
    pthread_mutex_lock(&memory.lock);
    MemoryStats stats = memory.stats;
    pthread_mutex_unlock(&memory.lock);
    return stats;
}

static void memory_reset_peak(void) {
    pthread_mutex_lock(&memory.lock);
    memory.stats.most_allocated = memory.stats.allocated;
    memory.stats.most_reserved = memory.stats.reserved;
    pthread_mutex_unlock(&memory.lock);
}

static void lock_before_fork(void) { pthread_mutex_lock(&memory.lock); }
static void unlock_after_fork(void) { pthread_mutex_unlock(&memory.lock); }

// To be called once, before anything else.
static void memory_start(size_t most_cached, int64_t idle) {
    memory.most_cached = most_cached;
    memory.idle = idle;
    pthread_atfork(lock_before_fork, unlock_after_fork, unlock_after_fork);
}

#endif
