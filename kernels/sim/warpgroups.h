// The worker's side of what the four warps of a warpgroup do together: wgmma (see asynchronous.h).
#pragma once

#include "worker.h"

namespace {

// Sums at work, as a thread sees them: a NaN of its own.
constexpr uint32_t AT_WORK = 0xFFF0AFAF;

Warpgroup& Worker::warpgroup(const char* what) {
    const size_t number = current->thread.linear / WARPGROUP;
    if (number >= current->block->warpgroups.size())
        fail("%s needs the %u threads of a warpgroup, and the block ends before", what, WARPGROUP);
    return current->block->warpgroups[number];
}

// Waits until all threads of the warpgroup have come. True for the last of them, which goes on at once.
bool Worker::gather(Warpgroup& group, const void* call, const sim::Place& place) {
    settle();
    if (group.arrived && strcmp(group.place.what, place.what))
        fail("%s at %s:%d: other threads of the warpgroup wait in %s at %s:%d; all %u execute the same", place.what,
             place.file, place.line, group.place.what, group.place.file, group.place.line, WARPGROUP);
    for (size_t i = 0; i < WARPGROUP; i++)
        if (fibers[first_of_warpgroup() + i]->state == Fiber::ENDED)
            fail("%s at %s:%d: other threads of the warpgroup have returned; all %u execute it", place.what, place.file,
                 place.line, WARPGROUP);
    group.place = place;
    group.calls[current->thread.linear % WARPGROUP] = call;
    if (++group.arrived < WARPGROUP) {
        wait_until(&group, place);
        return false;
    }
    group.arrived = 0;
    wake(&group, [](const Fiber&) {});
    return true;
}

void Worker::set_registers(int count, const sim::Place& place) {
    if (count < 24 || count > 256 || count % 8) fail("%s: %d is no multiple of 8 from 24 to 256", place.what, count);
    Warpgroup& group = warpgroup(place.what);
    if (!gather(group, &count, place)) return;
    for (const void* other : group.calls)
        if (*static_cast<const int*>(other) != count) fail("%s: the warps ask for different numbers", place.what);
}

void Worker::wgmma_fence() { current->asynchronous.wgmma_fenced = true; }

void Worker::wgmma_commit() { current->asynchronous.wgmma_groups++; }

void Worker::wgmma(const sim::Wgmma& call, const sim::Place& place, const void* return_address) {
    Warpgroup& group = warpgroup(place.what);
    if (!gather(group, &call, place)) return;
    if (clocked && !group.clock) group.clock = new_clock();
    const uint32_t groups = current->asynchronous.wgmma_groups;
    for (size_t i = 0; i < WARPGROUP; i++) {
        const auto& other = *static_cast<const sim::Wgmma*>(group.calls[i]);
        if (!other.same(call)) fail("%s: the threads of the warpgroup give different descriptors", place.what);
        if (fibers[first_of_warpgroup() + i]->asynchronous.wgmma_groups != groups)
            fail("%s: not all threads of the warpgroup have called wgmma_commit()", place.what);
    }
    Accumulator& sums = accumulator(group, call);
    sums.group = groups + 1;
    if (call.a_registers) keep_factors(group, sums.group);
    multiply(sums, group, call, return_address);
}

// The sums of this call. Those that are not at work yet are taken from the threads, and poisoned there.
Accumulator& Worker::accumulator(Warpgroup& group, const sim::Wgmma& call) {
    auto sums_of = [&](size_t i) { return static_cast<const sim::Wgmma*>(group.calls[i])->sums; };
    Accumulator* found = nullptr;
    for (Accumulator& other : group.at_work)
        if (other.sums[0] == sums_of(0)) found = &other;
    if (found && found->taken.any()) fail("wgmma: some threads of the warpgroup have not waited for these sums");
    if (!found) {
        found = &group.at_work.emplace_back();
        found->columns = call.columns;
        for (size_t i = 0; i < WARPGROUP; i++) {
            if (!fibers[first_of_warpgroup() + i]->asynchronous.wgmma_fenced)
                fail("wgmma: the threads' sums may not be in their registers yet: call wgmma_fence() before");
            found->sums[i] = sums_of(i);
            each_sum(*found, i, [&](int n, int j, int at) {
                float& sum = found->sums[i][n][j];
                found->values[at] = sum;
                memcpy(&sum, &AT_WORK, sizeof sum);
            });
        }
    }
    if (!call.add) std::fill(found->values.begin(), found->values.end(), 0.0f);
    return *found;
}

// The threads' registers with the left operand, of a product that belongs to the group with this number.
void Worker::keep_factors(const Warpgroup& group, uint32_t number) {
    for (size_t i = 0; i < WARPGROUP; i++) {
        Asynchronous& its = fibers[first_of_warpgroup() + i]->asynchronous;
        if (!its.wgmma_fenced)
            fail("wgmma: the threads' factors may not be in their registers yet: call wgmma_fence() before");
        FactorsAtWork& factors = its.factors.emplace_back();
        factors.registers = static_cast<const sim::Wgmma*>(group.calls[i])->a_registers;
        factors.group = number;
        memcpy(factors.values, *factors.registers, sizeof factors.values);
    }
}

// Thread i's sums[n][j] is number `at` of the whole.
template <class Visit>
void Worker::each_sum(const Accumulator& sums, unsigned thread, Visit visit) {
    const int row = thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
    for (int n = 0; n < sums.columns / 8; n++)
        for (int j = 0; j < 4; j++)
            visit(n, j, (row + j / 2 * 8) * Accumulator::COLUMNS + 8 * n + column + j % 2);
}

void Worker::wgmma_wait(int left, const sim::Place& place) {
    settle();
    Warpgroup& group = warpgroup(place.what);
    Asynchronous& mine = current->asynchronous;
    const unsigned thread = current->thread.linear % WARPGROUP;
    const uint32_t done = mine.wgmma_groups - std::min<uint32_t>(left, mine.wgmma_groups);
    std::erase_if(group.at_work, [&](Accumulator& at_work) {
        if (at_work.group > done || at_work.taken[thread]) return false;
        each_sum(at_work, thread, [&](int n, int j, int at) {
            float& sum = at_work.sums[thread][n][j];
            if (memcmp(&sum, &AT_WORK, sizeof sum))
                fail("%s: the thread has written to sums that a wgmma was at work on: wait first", place.what);
            sum = at_work.values[at];
        });
        mine.wgmma_fenced = false;
        at_work.taken.set(thread);
        return at_work.taken.all();
    });
    std::erase_if(mine.factors, [&](const FactorsAtWork& factors) {
        if (factors.group > done) return false;
        if (memcmp(factors.values, *factors.registers, sizeof factors.values))
            fail("%s: the thread has written to factors that a wgmma was at work on: wait first", place.what);
        mine.wgmma_fenced = false;
        return true;
    });
    if (clocked && group.clock) clocks.see(current->number, group.clock, done);
}

// ---- the product -----------------------------------------------------------------------------------------------

// Reads an operand, `rows` of 32 bytes along k, as floats: out[k][row].
template <int MOST>
void Worker::read_operand(float (*out)[MOST], int rows, uint64_t descriptor, bool along_rows, sim::Element element,
                          const View& view, uint32_t clock, uint32_t time, const void* return_address) {
    const size_t start = (descriptor & 0x3FFF) << 4, next_box = (descriptor >> 16 & 0x3FFF) << 4;
    const size_t next_8 = (descriptor >> 32 & 0x3FFF) << 4;
    if (descriptor >> 62 != 1 || descriptor >> 49 & 7)
        fail("wgmma: the descriptor is of another kind than describe_operand() makes, with the swizzle of 128 bytes");
    const int size = element.bytes, per_chunk = 16 / size, steps = 32 / size;
    const unsigned char* const memory = current->block->dynamic_shared;
    auto read = [&](size_t offset, auto store) {
        offset ^= (offset >> 7 & 7) << 4;
        const unsigned char* const chunk = memory + offset;
        if (offset + 16 > block_shared) fail("wgmma: an operand lies outside of the block's shared memory");
        if (clocked) check(chunk, 16, Kind::LOAD, return_address, view, clock, time);
        for (int i = 0; i < per_chunk; i++) {
            uint32_t bits = 0;
            memcpy(&bits, chunk + i * size, size);
            store(i, element.widen(bits));
        }
    };
    if (along_rows)
        for (int k = 0; k < steps; k++)
            for (int row = 0; row < rows; row += per_chunk)
                read(start + row / 64 * next_box + k / 8 * next_8 + k % 8 * 128 + row % 64 * size,
                     [&](int i, float x) { out[k][row + i] = x; });
    else
        for (int row = 0; row < rows; row++)
            for (int k = 0; k < steps; k += per_chunk)
                read(start + row / 8 * next_8 + row % 8 * 128 + k * size,
                     [&](int i, float x) { out[k + i][row] = x; });
}

// Reads the left operand from the threads' registers: those of tensor_core.cuh's mma, of 16 rows for each warp.
template <int M>
void Worker::read_registers(float (*out)[M], const Warpgroup& group, sim::Element element) {
    for (int thread = 0; thread < int(WARPGROUP); thread++) {
        const auto& registers = *static_cast<const sim::Wgmma*>(group.calls[thread])->a_registers;
        const int row = thread / 32 * 16 + thread % 32 / 4, k = thread % 4 * 2;
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 2; j++)
                out[k + i / 2 * 8 + j][row + i % 2 * 8] = element.widen(registers[i] >> 16 * j & 0xFFFF);
    }
}

// Done once for the warpgroup. Products are exact in float32, sums are rounded one by one.
void Worker::multiply(Accumulator& sums, const Warpgroup& group, const sim::Wgmma& call, const void* return_address) {
    constexpr int M = Accumulator::ROWS, N = Accumulator::COLUMNS;
    auto& [a, b] = factors;
    const View view = clocked ? clocks.common_view(first_of_warpgroup(), WARPGROUP) : View{};
    const auto read = [&](auto* out, int rows, uint64_t descriptor, bool along_rows) {
        read_operand(out, rows, descriptor, along_rows, call.element, view, group.clock, sums.group, return_address);
    };
    if (call.a_registers)
        read_registers(a, group, call.element);
    else
        read(a, M, call.a, call.a_along_m);
    read(b, call.columns, call.b, call.b_along_n);
    const int steps = 32 / call.element.bytes, columns = call.columns;
    if (profiling) profiler.multiply(uint64_t(2) * M * columns * steps);
    for (int m = 0; m < M; m++) {
        float row[N];
        memcpy(row, &sums.values[m * N], sizeof row);
        for (int k = 0; k < steps; k++)
            for (int n = 0; n < columns; n++) row[n] += a[k][m] * b[k][n];
        memcpy(&sums.values[m * N], row, sizeof row);
    }
}

}  // namespace
