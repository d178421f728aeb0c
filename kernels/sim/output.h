// What the threads of a launch print. It is kept until the launch has ended, with or without an error, and then
// written in the order of blocks and threads: in whatever order they ran, the text is the same.
#pragma once
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

namespace {

class Output {
  public:
    void add(uint64_t block, unsigned thread, const char* format, va_list arguments) {
        va_list again;
        va_copy(again, arguments);
        std::string text(vsnprintf(nullptr, 0, format, again), '\0');
        va_end(again);
        vsnprintf(text.data(), text.size() + 1, format, arguments);
        const std::lock_guard<std::mutex> lock(mutex);
        lines.push_back({block, thread, std::move(text)});
    }

    ~Output() {
        auto key = [](const Line& line) { return std::tie(line.block, line.thread); };
        std::stable_sort(lines.begin(), lines.end(), [&](auto& a, auto& b) { return key(a) < key(b); });
        for (const Line& line : lines) fwrite(line.text.data(), 1, line.text.size(), stdout);
        if (!lines.empty()) fflush(stdout);
    }

  private:
    struct Line {
        uint64_t block;
        unsigned thread;
        std::string text;
    };
    std::vector<Line> lines;
    std::mutex mutex;
};

}  // namespace
