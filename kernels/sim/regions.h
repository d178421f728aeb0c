// The memory that a checked kernel may use: the arrays of its launch, and the shared variables of a block.
#pragma once
#include <link.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <string>

#include "races.h"
#include "runtime.h"

namespace {

// An array of a launch, as Python describes it (checked.py). A null pointer among the arguments has no bytes.
struct Array {
    uintptr_t begin;
    size_t bytes;
    size_t element;           // bytes of one
    const char* name;         // "x"
    const char* description;  // "`const float* x` (3x4 float32)"
    const char* read_only;    // why it must not be written; null: it may be
    uint8_t* written;         // for each byte whether anything has written it; null: everything is written
};

// What a checked launch has beyond a plain one.
struct Checks {
    const Array* arrays;
    size_t count;
    size_t argument_bytes;
};

// Where the library of a kernel lies: its code and its constants.
struct Library {
    uintptr_t begin = 0;
    size_t bytes = 0;

    Library() = default;
    explicit Library(const void* inside) : begin(reinterpret_cast<uintptr_t>(inside)) {
        dl_iterate_phdr(
            [](dl_phdr_info* info, size_t, void* pointer) {
                auto& self = *static_cast<Library*>(pointer);
                uintptr_t end = 0;
                for (int i = 0; i < info->dlpi_phnum; i++)
                    if (info->dlpi_phdr[i].p_type == PT_LOAD)
                        end = std::max<uintptr_t>(end, info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
                if (self.begin - info->dlpi_addr >= end) return 0;
                self.begin = info->dlpi_addr, self.bytes = end;
                return 1;
            },
            this);
    }

    bool contains(uintptr_t address) const { return address - begin < bytes; }
};

struct Region {
    uintptr_t begin = 0;
    size_t bytes = 0;
    size_t element = 1;
    const char* read_only = nullptr;
    bool shared = false;
    std::string name, description;
    uint8_t* written = nullptr;
    unsigned granule_shift = 0;
    std::unique_ptr<Granule[], void (*)(void*)> granules{nullptr, free};  // none: it is never written
    std::unique_ptr<uint8_t[]> own_written;                              // of a shared variable

    bool contains(uintptr_t address, size_t size) const {
        return address - begin < bytes && size <= bytes - (address - begin);
    }

    void watch_races() {
        while (granule_shift < 3 && element % (2u << granule_shift) == 0) granule_shift++;
        const size_t count = (bytes >> granule_shift) + 1;
        // Zeroed by the system, page by page when they are touched.
        granules.reset(static_cast<Granule*>(calloc(count, sizeof(Granule))));
    }

    // What is in memory that nothing has written: 0xFF in shared memory (runtime.h), and in arrays made by
    // sim.empty the pattern of memory.py.
    bool is_poison(uintptr_t address) const {
        static constexpr uint8_t PATTERN[4] = {0xA5, 0xA5, 0xC5, 0xFF};
        return *reinterpret_cast<const uint8_t*>(address) == (shared ? 0xFF : PATTERN[address & 3]);
    }

    // Whether an access of these bytes reads any that nothing has written. A byte that holds something else
    // than poison was written by an instruction that the compiler did not report.
    bool reads_unwritten(uintptr_t address, size_t size) {
        uint8_t* const known = written + (address - begin);
        size_t written_words = 0;  // four bytes at a time are quicker
        for (uint32_t word; written_words < size / sizeof word; written_words++)
            if (memcpy(&word, known + written_words * sizeof word, sizeof word), word != 0x01010101) break;
        if (written_words * sizeof(uint32_t) == size) return false;
        bool unwritten = false;
        for (size_t i = 0; i < size; i++)
            if (!known[i]) is_poison(address + i) ? unwritten = true : known[i] = 1;
        return unwritten;
    }

    // "x[12]", or "x[12] and 2 bytes" for an address between two elements.
    std::string index_text(ptrdiff_t offset) const {
        const ptrdiff_t size = element;
        ptrdiff_t index = offset / size, rest = offset % size;
        if (rest < 0) index--, rest += size;
        std::string text = name + "[" + std::to_string(index) + "]";
        return rest ? text + " and " + std::to_string(rest) + " bytes" : text;
    }

    size_t distance(uintptr_t address) const {
        return address < begin ? begin - address : address - std::min(address, begin + bytes);
    }
};

class Regions {
  public:
    std::string null_arguments;  // descriptions of the null pointers among the arguments

    void add_arrays(const Checks& checks) {
        // Arrays that are written come first: memory that is also passed as const may be written.
        for (bool writeable : {true, false})
            for (size_t i = 0; i < checks.count; i++) {
                const Array& array = checks.arrays[i];
                if (!array.read_only != writeable || (array.bytes && find(array.begin, array.bytes))) continue;
                if (!array.begin) {
                    null_arguments += std::string(null_arguments.empty() ? " " : ", ") + array.description;
                    continue;
                }
                Region& region = add(array.begin, array.bytes, array.element, array.name, array.description);
                region.read_only = array.read_only;
                region.written = array.written;
                if (writeable) region.watch_races();
            }
    }

    void add_shared(void* address, size_t bytes, size_t element, const char* name) {
        const auto begin = reinterpret_cast<uintptr_t>(address);
        for (const Region& region : regions)
            if (region.begin == begin && region.shared) return;
        std::string description = std::string("the shared variable ") + name;
        Region& region = add(begin, bytes, element, name, description.c_str());
        region.shared = true;
        region.own_written.reset(new uint8_t[bytes]());
        region.written = region.own_written.get();
        region.watch_races();
    }

    // A new block's shared memory holds nothing yet.
    void begin_block() {
        for (Region& region : regions)
            if (region.shared) memset(region.written, 0, region.bytes);
    }

    Region* find(uintptr_t address, size_t size) {
        for (Region& region : regions)
            if (region.contains(address, size)) return &region;
        return nullptr;
    }

    const Region* nearest(uintptr_t address) const {
        const Region* nearest = nullptr;
        for (const Region& region : regions)
            if (!nearest || region.distance(address) < nearest->distance(address)) nearest = &region;
        return nearest;
    }

  private:
    Region& add(uintptr_t begin, size_t bytes, size_t element, const char* name, const char* description) {
        Region& region = regions.emplace_back();
        region.begin = begin, region.bytes = bytes, region.element = element;
        region.name = name, region.description = description;
        return region;
    }

    std::deque<Region> regions;  // a deque, for they never move
};

}  // namespace
