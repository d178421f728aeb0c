// What orders the accesses of a launch in which not only __syncthreads() and __syncwarp() do: vector clocks.
//
// Each thread of a cluster of blocks has a clock, and so has whatever works beside the threads: the copies that
// one barrier waits for, the stores and the wgmma that a thread or a warpgroup waits for. An access is made at
// some time of some clock. A thread knows of each clock which of its times it has seen the end of; what happened
// until then comes before what the thread does next. Whoever waits for something takes over what that has seen.
// (C. Fidge, "Timestamps in message-passing systems that preserve the partial ordering", 1988.)
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <functional>
#include <vector>

namespace {

struct Cluster {
    uint64_t first_block, blocks;

    bool contains(uint64_t block) const { return block - first_block < blocks; }
};

// Where one thread, or a warpgroup, stands.
struct View {
    Cluster cluster;
    const uint32_t* seen;    // by clock
    const uint32_t* fenced;  // by thread's clock: until when its stores are visible to the copy engine
};

class Clocks {
  public:
    using Row = std::vector<uint32_t>;

    // Clocks 0, 1, ... are those of the threads.
    void begin(Cluster blocks, size_t block_threads) {
        cluster = blocks, threads = blocks.blocks * block_threads;
        used = threads;
        if (rows.size() < threads) rows.resize(threads);
        for (size_t i = 0; i < threads; i++) {
            rows[i].assign(threads + OTHERS, 0);
            rows[i][i] = 1;
        }
        fenced.assign(threads, 0);
        common.assign(threads + OTHERS, 0);
        changes++;
    }

    // A new clock; 0 if there are too many.
    uint32_t add() { return used < threads + OTHERS ? used++ : 0; }

    Row nothing() const { return Row(threads + OTHERS, 0); }
    uint32_t now(size_t thread) const { return rows[thread][thread]; }
    View view(size_t thread) const { return {cluster, rows[thread].data(), fenced.data()}; }

    // What all of these threads have seen.
    View common_view(size_t first, size_t count) {
        if (common_changes != changes || common_first != first) {
            common = rows[first];
            for (size_t i = first + 1; i < first + count; i++)
                combine(common, rows[i], [](uint32_t a, uint32_t b) { return std::min(a, b); });
            common_first = first, common_changes = changes;
        }
        return {cluster, common.data(), fenced.data()};
    }

    // What the thread has seen and done goes to `to`; what it does next is later.
    void release(size_t thread, Row& to) {
        join(to, rows[thread]);
        rows[thread][thread]++;
        changes++;
    }

    // Whether these threads, taken together, have seen all these times.
    bool have_seen(size_t first, size_t count, const Row& times) const {
        Row seen = rows[first];
        for (size_t i = first + 1; i < first + count; i++) join(seen, rows[i]);
        return std::equal(times.begin(), times.end(), seen.begin(), std::less_equal<uint32_t>());
    }

    void acquire(size_t thread, const Row& from) {
        join(rows[thread], from);
        changes++;
    }

    // The same, where `from` holds all that the thread has seen and released.
    void take_over(size_t thread, const Row& from) {
        const uint32_t now = rows[thread][thread];
        rows[thread] = from;
        rows[thread][thread] = now;
        changes++;
    }

    void see(size_t thread, uint32_t clock, uint32_t time) {
        rows[thread][clock] = std::max(rows[thread][clock], time);
        changes++;
    }

    void fence(size_t thread) {
        fenced[thread] = rows[thread][thread]++;
        changes++;
    }

    static void join(Row& to, const Row& from) {
        combine(to, from, [](uint32_t a, uint32_t b) { return std::max(a, b); });
    }

  private:
    static constexpr size_t OTHERS = 256;

    // A launch spends much of its time here: by pointers, of which the compiler makes vectors.
    template <class Function>
    static void combine(Row& to, const Row& from, Function function) {
        uint32_t* const a = to.data();
        const uint32_t* const b = from.data();
        for (size_t c = 0, size = to.size(); c < size; c++) a[c] = function(a[c], b[c]);
    }

    Cluster cluster{};
    size_t threads = 0, used = 0;
    std::vector<Row> rows;  // by thread
    Row fenced, common;
    uint64_t changes = 0, common_changes = ~0ull;
    size_t common_first = 0;
};

}  // namespace
