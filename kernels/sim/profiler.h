// Counts what a kernel asks of a card's memory: requests, bytes, sectors, bank conflicts, divergence.
//
// A card serves a warp's loads together: those that its 32 lanes make by one instruction are one request. Here
// lanes run one after the other, so the k-th time that a lane comes to an instruction (since its block's last
// barrier) is taken together with the k-th time of the other lanes. What a request costs:
//
//   global memory   the 32-byte sectors that it touches; neighbours in one sector cost one
//   shared memory   wavefronts: its 32 banks, 4 bytes wide, each serve one word at a time; lanes that read the
//                   same word share it. Requests of 8 or 16 bytes a lane are served for 16 or 8 lanes at a time
//
// A box that the copy engine moves is one request of one lane to global memory, for however many blocks it is.
//
// Caches are not simulated: between the sectors asked for and the distinct ones lies what a cache may save.
//
// A profiled kernel is compiled to report its accesses (hooks.h), and each basic block that it enters
// (-fsanitize-coverage=trace-pc). From the latter come the arithmetic, counted in the machine code
// (profiler.py), and the divergence: whether the lanes of a warp came to a collective along different paths.
#pragma once
#include <stdint.h>

#include <algorithm>
#include <iterator>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "regions.h"

namespace {

// What Python is told at the end of a launch: how often the instruction at `pc` did `what`. For an access:
// requests of warps, accesses of lanes, their bytes, the sectors or wavefronts that they cost, and the fewest
// that so many bytes could cost.
using Report = void (*)(const char* what, uint64_t pc, uint64_t requests, uint64_t accesses, uint64_t bytes,
                        uint64_t cost, uint64_t least);

class Profiler {
  public:
    void begin_launch(const Checks& checks, Report told, void (*entry)(const unsigned char*), size_t threads) {
        *this = Profiler();
        report = told;
        library = Library(reinterpret_cast<const void*>(entry));
        regions.add_arrays(checks);
        instruction_of.assign(library.bytes, 0);
        entered.assign(library.bytes, 0);
        times.resize(threads);
        paths.assign(threads, 0);
        warps.resize((threads + 31) / 32);
    }

    void add_shared(void* address, size_t bytes, size_t element, const char* name) {
        regions.add_shared(address, bytes, element, name);
    }

    void access(uint32_t thread, unsigned lanes_of_warp, uintptr_t address, size_t size, Kind kind, uintptr_t pc) {
        const Region* region = regions.find(address, size);
        if (!region || kind == Kind::ATOMIC_LOAD) return;  // a constant, or half of an update
        const uint32_t number = number_of(pc, kind, region->shared);
        std::vector<uint32_t>& own_times = times[thread];
        if (own_times.size() <= number) own_times.resize(instructions.size());
        auto& requests = warps[thread / 32];
        const auto key = uint64_t(number) << 32 | own_times[number]++;
        Request& request = requests[key];
        request.add(thread % 32, address, size);
        if (request.lanes == lanes_of_warp) {
            count(instructions[number], request);
            requests.erase(key);
        }
    }

    // The copy engine moves a box.
    template <typename Box>
    void copy(const Box& box, Kind kind, uintptr_t pc) {
        Instruction& instruction = instructions[number_of(pc, kind, false)];
        size_t bytes = 0;
        std::unordered_set<uintptr_t> touched;
        box.each_chunk([&](const void*, size_t, const void* in_tensor, size_t size) {
            const auto begin = reinterpret_cast<uintptr_t>(in_tensor), end = begin + size;
            for (uintptr_t at = begin / SECTOR; size && at <= (end - 1) / SECTOR; at++) touched.insert(at);
            bytes += size;
        });
        distinct[is_store(kind)].insert(touched.begin(), touched.end());
        instruction.requests++;
        instruction.accesses++;
        instruction.bytes += bytes;
        instruction.cost += touched.size();
        instruction.least += (bytes + SECTOR - 1) / SECTOR;
    }

    // A warpgroup's tensor cores make so many multiplications and additions.
    void multiply(uint64_t operations) { of_tensor_cores += operations; }

    void enter(uint32_t thread, uintptr_t pc) {
        if (!library.contains(pc)) return;
        pc -= library.begin;
        entered[pc]++;
        paths[thread] = (paths[thread] ^ pc) * 0x9E3779B97F4A7C15u;
    }

    // The `number` threads, of one warp, have come to a collective, to a barrier, or to their ends.
    void meet(const uint32_t* of_warp, size_t number) {
        if (!number) return;
        const uint64_t path = paths[of_warp[0]];
        meetings++;
        divergent += std::any_of(of_warp, of_warp + number, [&](uint32_t thread) { return paths[thread] != path; });
        for (size_t i = 0; i < number; i++) paths[of_warp[i]] = 0;
    }

    // What the thread has entered since it met the others was done for all of them.
    void forget_path(uint32_t thread) { paths[thread] = 0; }

    // All threads of the block have come to a barrier, or to their ends: what is to be taken together, has been.
    void settle(bool barrier) {
        barriers += barrier;
        for (auto& requests : warps) {
            for (auto& [key, request] : requests) count(instructions[key >> 32], request);
            requests.clear();
        }
        for (auto& own_times : times) std::fill(own_times.begin(), own_times.end(), 0);
    }

    void end_launch() {
        static constexpr const char* NAMES[2][3] = {{"global load", "global store", "global atomic"},
                                                    {"shared load", "shared store", "shared atomic"}};
        for (const Instruction& i : instructions) {
            const int what = is_atomic(i.kind) ? 2 : is_store(i.kind);
            report(NAMES[i.shared][what], i.pc, i.requests, i.accesses, i.bytes, i.cost, i.least);
        }
        for (size_t pc = 0; pc < library.bytes; pc++)
            if (entered[pc]) report("block", pc, entered[pc], 0, 0, 0, 0);
        report("tensor cores", 0, of_tensor_cores, 0, 0, 0, 0);
        report("barrier", 0, barriers, 0, 0, 0, 0);
        report("meeting", 0, meetings, divergent, 0, 0, 0);
        for (int stored : {0, 1})
            report(stored ? "distinct stored" : "distinct loaded", 0, distinct[stored].size(), 0, 0, 0, 0);
    }

  private:
    static constexpr uintptr_t SECTOR = 32, BANKS = 32, WORD = 4;

    struct Instruction {
        uintptr_t pc;
        Kind kind;
        bool shared;
        uint64_t requests = 0, accesses = 0, bytes = 0, cost = 0, least = 0;
    };

    struct Request {
        uint32_t lanes = 0;
        uintptr_t addresses[32];
        uint8_t lane_of[32];  // lanes come in the order in which they run
        size_t size = 0;

        void add(unsigned lane, uintptr_t address, size_t bytes) {
            if (lanes < 32) {
                lane_of[lanes] = lane;
                addresses[lanes++] = address;
            }
            size = std::max(size, bytes);
        }
    };

    // The number in `instructions` of the one at `pc`.
    uint32_t number_of(uintptr_t pc, Kind kind, bool shared) {
        pc -= library.begin;
        if (!instruction_of[pc]) {
            instructions.push_back({pc, kind, shared});
            instruction_of[pc] = instructions.size();
        }
        return instruction_of[pc] - 1;
    }

    void count(Instruction& instruction, Request& request) {
        const size_t bytes = request.lanes * request.size;
        instruction.requests++;
        instruction.accesses += request.lanes;
        instruction.bytes += bytes;
        if (instruction.shared) {
            const unsigned at_a_time = request.size <= WORD ? 32 : request.size <= 8 ? 16 : 8;
            for (unsigned lane = 0; lane < 32; lane += at_a_time) {
                const unsigned cost = wavefronts(request, lane, lane + at_a_time);
                instruction.cost += cost;
                instruction.least += cost > 0;
            }
            return;
        }
        uintptr_t touched[32 * 2];
        unsigned sectors = 0;
        for (unsigned lane = 0; lane < request.lanes; lane++) {
            const uintptr_t last = (request.addresses[lane] + request.size - 1) / SECTOR;
            for (uintptr_t at = request.addresses[lane] / SECTOR; at <= last; at++)
                if (sectors < std::size(touched)) touched[sectors++] = at;
        }
        std::sort(touched, touched + sectors);
        const auto end = std::unique(touched, touched + sectors);
        for (auto at = touched; at < end; at++) distinct[is_store(instruction.kind)].insert(*at);
        instruction.cost += end - touched;
        std::sort(request.addresses, request.addresses + request.lanes);
        const size_t asked = std::unique(request.addresses, request.addresses + request.lanes) - request.addresses;
        instruction.least += (asked * request.size + SECTOR - 1) / SECTOR;
    }

    // How many words the busiest bank has to serve to the lanes [first, end), one after the other.
    static unsigned wavefronts(const Request& request, unsigned first, unsigned end) {
        uintptr_t words[32 * 4];
        unsigned number = 0;
        for (unsigned i = 0; i < request.lanes; i++) {
            if (request.lane_of[i] < first || request.lane_of[i] >= end) continue;
            const uintptr_t last = (request.addresses[i] + request.size - 1) / WORD;
            for (uintptr_t at = request.addresses[i] / WORD; at <= last; at++)
                if (number < std::size(words)) words[number++] = at;
        }
        std::sort(words, words + number);
        const auto unique_end = std::unique(words, words + number);
        unsigned of_bank[BANKS] = {}, most = 0;
        for (auto word = words; word < unique_end; word++) most = std::max(most, ++of_bank[*word % BANKS]);
        return most;
    }

    Report report = nullptr;
    Library library;
    Regions regions;
    std::vector<Instruction> instructions;
    std::vector<uint32_t> instruction_of;  // by pc: its number in `instructions`, from 1
    std::vector<uint64_t> entered;         // by pc: how often the basic block there was entered
    std::vector<std::vector<uint32_t>> times;  // by thread and instruction: how often since the last barrier
    std::vector<uint64_t> paths;               // by thread: a hash of the blocks entered since the last collective
    std::vector<std::unordered_map<uint64_t, Request>> warps;  // requests that not all lanes have joined yet
    std::unordered_set<uintptr_t> distinct[2];                 // sectors loaded, stored
    uint64_t barriers = 0, meetings = 0, divergent = 0, of_tensor_cores = 0;
};

}  // namespace
