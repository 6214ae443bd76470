// llama.cpp's log, captured while it works for us, so that an error message can say why and nothing else is printed.
#pragma once

#include <string>

namespace kad {

// While one lives, what llama.cpp logs on this thread comes here: errors are kept, and everything goes to stderr if verbose.
// Other threads' lines go where they went before. Captures may nest; the innermost listens.
class LlamaLog {
public:
    explicit LlamaLog(bool verbose);
    ~LlamaLog();
    LlamaLog(const LlamaLog &)             = delete;
    LlamaLog & operator=(const LlamaLog &) = delete;

    // ": " and the error lines, or "" when there were none.
    std::string reason() const;

    void receive(int level, const char * text);

private:
    bool        verbose_;
    std::string errors_;
    LlamaLog *  outer_;
};

} // namespace kad
