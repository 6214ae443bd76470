// Functions that a child process runs, well and badly. tests/test_extra_buffers.py reads the declaration between the marks.
#include <unistd.h>

#include <csignal>
#include <cstdint>

#include "runtime/extra_buffers.h"

extern "C" {
/* survives: begin */
// Did the child say true? 0: it does; 1: it says false; 2: SIGSEGV; 3: SIGILL; 4: SIGABRT; 5: it hangs; 6: it exits.
int32_t survives_case(int32_t which);
/* survives: end */
}

template <int SIGNAL>
static bool raises() {
    std::raise(SIGNAL);
    return true;
}

int32_t survives_case(int32_t which) {
    bool (*const cases[])() = { [] { return true; },
                                [] { return false; },
                                raises<SIGSEGV>,
                                raises<SIGILL>,
                                raises<SIGABRT>,
                                [] {
                                    for (;;) pause();
                                    return true;
                                },
                                []() -> bool { _exit(3); } };
    return kad::survives(cases[which], 1);
}
