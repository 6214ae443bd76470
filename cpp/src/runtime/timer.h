// Where the time goes: clocks that add up what a part took.
#pragma once

#include <chrono>

namespace kad {

using Clock = std::chrono::steady_clock;

inline double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Adds the seconds until its end, however that comes.
class Timer {
public:
    explicit Timer(double & to) : to_(to) {}
    ~Timer() { to_ += since(start_); }
    Timer(const Timer &)             = delete;
    Timer & operator=(const Timer &) = delete;

private:
    double &                to_;
    const Clock::time_point start_ = Clock::now();
};

} // namespace kad
