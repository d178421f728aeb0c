// Ctrl-C while a kernel runs, which may be in a loop that never ends.
#pragma once
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

namespace {

// While it lives, Ctrl-C sets `happened`, beside what it did before, which is to raise KeyboardInterrupt when Python
// goes on. The workers look at it now and then. A second Ctrl-C ends the program, for a kernel that is in a loop
// without an access or a barrier. Python takes signals in the main thread only, and so does this.
class Interrupt {
  public:
    std::atomic<bool> happened{false};

    Interrupt() {
        if (getpid() != syscall(SYS_gettid)) return;
        sigaction(SIGINT, nullptr, &before);
        if (before.sa_flags & SA_SIGINFO || before.sa_handler == SIG_DFL || before.sa_handler == SIG_IGN) return;
        current = this;
        struct sigaction action = before;
        action.sa_handler = handle;
        sigaction(SIGINT, &action, nullptr);
    }
    Interrupt(const Interrupt&) = delete;
    ~Interrupt() {
        if (current != this) return;
        sigaction(SIGINT, &before, nullptr);
        current = nullptr;
    }

  private:
    static void handle(int number) {
        if (current->happened.exchange(true)) signal(SIGINT, SIG_DFL), raise(SIGINT);
        current->before.sa_handler(number);
    }

    static inline Interrupt* current = nullptr;
    struct sigaction before {};
};

}  // namespace
