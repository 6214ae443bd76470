// The threads that evaluate, lent to the core between two passes.
#pragma once

#include <chrono>
#include <memory>

#include "../core/workers.h"

namespace kad {

// Of llama.cpp's CPU backend; NULL for one thread, and where the backend cannot be had. Where it keeps its threads (OpenMP)
// they are the ones that evaluate for the same caller, and start within microseconds. Elsewhere every job starts new ones.
// The first job finds out: if starting takes longer than `most` it does not pay, and from then on there is one worker, the
// caller. Nothing is started before that job: a process may fork between loading and generating.
std::unique_ptr<Workers> backend_workers(size_t                    n_threads,
                                         std::chrono::microseconds most = std::chrono::microseconds(30));

} // namespace kad
