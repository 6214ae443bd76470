// Ctrl-C while llama.cpp computes.
#pragma once

#include <atomic>

namespace kad {

// While one lives, SIGINT sets `flag` and then runs the handler that was there before. A NULL flag does nothing.
class CatchInterrupt {
public:
    explicit CatchInterrupt(std::atomic<bool> * flag);
    ~CatchInterrupt();
    CatchInterrupt(const CatchInterrupt &)             = delete;
    CatchInterrupt & operator=(const CatchInterrupt &) = delete;

private:
    bool active_ = false;
};

} // namespace kad
