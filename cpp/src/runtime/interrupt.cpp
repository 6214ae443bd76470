#include "interrupt.h"

#include <csignal>

namespace kad {

using Handler = void (*)(int);

static std::atomic<std::atomic<bool> *> flag_to_set{ nullptr }; // one at a time: signals belong to the process
static std::atomic<Handler>             previous{ nullptr };

// Only lock-free atomics and the previous handler: safe in a signal handler.
static void on_interrupt(int signal) {
    if (std::atomic<bool> * flag = flag_to_set.load()) flag->store(true);
    const Handler handler = previous.load();
    if (handler != SIG_DFL && handler != SIG_IGN && handler != SIG_ERR) handler(signal);
}

#if defined(_WIN32)

CatchInterrupt::CatchInterrupt(std::atomic<bool> * flag) {
    std::atomic<bool> * none = nullptr;
    if (!flag || !flag_to_set.compare_exchange_strong(none, flag)) return;
    active_ = true;
    previous.store(std::signal(SIGINT, on_interrupt));
}

CatchInterrupt::~CatchInterrupt() {
    if (!active_) return;
    std::signal(SIGINT, previous.load());
    flag_to_set.store(nullptr);
}

#else

static struct sigaction old_action;

CatchInterrupt::CatchInterrupt(std::atomic<bool> * flag) {
    std::atomic<bool> * none = nullptr;
    if (!flag || !flag_to_set.compare_exchange_strong(none, flag)) return;
    if (sigaction(SIGINT, nullptr, &old_action) != 0 || (old_action.sa_flags & SA_SIGINFO) ||
        old_action.sa_handler == SIG_IGN) {
        flag_to_set.store(
            nullptr); // a handler of another shape, or a signal that is not for this process: leave it alone
        return;
    }
    active_ = true;
    previous.store(old_action.sa_handler);
    struct sigaction action = old_action;
    action.sa_handler       = on_interrupt;
    sigaction(SIGINT, &action, nullptr);
}

CatchInterrupt::~CatchInterrupt() {
    if (!active_) return;
    sigaction(SIGINT, &old_action, nullptr);
    flag_to_set.store(nullptr);
}

#endif

} // namespace kad
