#include "abort_guard.h"

#include <cstdio>
#include <mutex>
#include <stdexcept>

#include "ggml.h"

namespace kad {

static thread_local int      guarded_depth = 0;
static std::mutex            mutex;
static int                   guards        = 0;
static ggml_abort_callback_t host_callback = nullptr;

// Only what runs on the calling thread is guarded: loading, samplers and grammars. Evaluation runs on threads of ggml, which an
// exception may not leave.
static void on_abort(const char * message) {
    if (guarded_depth > 0) throw std::runtime_error(message);
    if (host_callback) {
        host_callback(message);
    } else {
        std::fprintf(stderr, "%s\n", message);
    }
}

AbortGuard::AbortGuard() {
    std::lock_guard<std::mutex> lock(mutex);
    if (guards++ == 0) host_callback = ggml_set_abort_callback(on_abort);
    ++guarded_depth;
}

AbortGuard::~AbortGuard() {
    std::lock_guard<std::mutex> lock(mutex);
    --guarded_depth;
    if (--guards == 0) ggml_set_abort_callback(host_callback);
}

} // namespace kad
