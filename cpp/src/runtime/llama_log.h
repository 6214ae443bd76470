// llama.cpp's log, captured while it loads something, so that an error message can say why.
#pragma once

#include <string>

namespace kad {

// While one lives, llama.cpp's warnings and errors are kept here (and everything goes to stderr if verbose); afterwards the
// host's log callback is back. The log is global to the process: captures queue.
class LlamaLog {
public:
    explicit LlamaLog(bool verbose);
    ~LlamaLog();
    LlamaLog(const LlamaLog &)             = delete;
    LlamaLog & operator=(const LlamaLog &) = delete;

    // ": " and the last error lines, or "" when there were none.
    std::string reason() const;

private:
    struct State;
    State * state_;
};

} // namespace kad
