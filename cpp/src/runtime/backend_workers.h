// The threads that evaluate, lent to the core between two passes: one pool, and no thread of our own.
#pragma once

#include <chrono>
#include <memory>

#include "../core/logits.h"

namespace kad {

// Of llama.cpp's CPU backend. NULL for one thread, where the backend cannot be had, and where starting a job takes longer
// than `most`, as it then saves nothing: rows are then read by the caller alone.
std::unique_ptr<Workers> backend_workers(size_t                    n_threads,
                                         std::chrono::microseconds most = std::chrono::microseconds(30));

} // namespace kad
