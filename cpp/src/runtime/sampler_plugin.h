// The llama_sampler that puts pi into anybody's llama.cpp chain: kad_sampler_* in kad_llama.h is its manual.
#pragma once

#include <vector>

#include "../core/notation.h"

namespace kad {

struct PluginOptions {
    kad_rule            rule       = {};
    const llama_model * base_model = nullptr; // NULL: unknown
    llama_context *     aligned    = nullptr;
    llama_context *     reference  = nullptr; // NULL: none
    int32_t             aligned_id = 0, reference_id = 0;
    std::vector<Token>  prompt;
};

// A new sampler, which llama_sampler_free() frees.
llama_sampler * make_sampler(const PluginOptions & options);

// All three throw KAD_INVALID_ARGUMENT for a sampler that make_sampler() did not make. sampler_check() throws what its last
// callbacks met.
void  sampler_check(const llama_sampler * sampler);
Token sampler_end(const llama_sampler * sampler);
void  sampler_row(llama_sampler * sampler, std::vector<Token> ids, float * logits, size_t n_vocab);

} // namespace kad
