// llama.cpp ends the process where a file breaks its assumptions. While one of these lives, on this thread an assertion is
// an exception instead, which llama.cpp's own loader turns into "cannot be loaded".
#pragma once

namespace kad {

class AbortGuard {
public:
    AbortGuard();
    ~AbortGuard();
    AbortGuard(const AbortGuard &)             = delete;
    AbortGuard & operator=(const AbortGuard &) = delete;
};

} // namespace kad
