// Up to how many rows per pass does a model give the very bits that it gives one by one? (method.md, section 3, arithmetic)
#pragma once

#include "model.h"

namespace kad {

struct PassInfo {
    int32_t max_pass = 1;
    int32_t type_k = -1, type_v = -1;
    int32_t tested = 0;
};

// Tries cache types (or only those named in the options' fields) and keeps the one with the longest passes. Makes and frees
// contexts of the model, of a fixed size. `progress`, which may be empty, hears the fraction done between
// passes and may answer false to give up (KAD_INTERRUPTED).
PassInfo measure_passes(LlamaModel & model, const ModelOptions & options, const ContextOptions & context,
                        const std::atomic<bool> * cancel, const std::function<bool(double)> & progress);

} // namespace kad
