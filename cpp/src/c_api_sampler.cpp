// The part of the C API that gives a llama_sampler. What the sampler does is in runtime/sampler_plugin.cpp.
#include "params.h"
#include "runtime/sampler_plugin.h"

using namespace kad;

static PluginOptions options_of(const kad_sampler_params & params) {
    need(params.aligned, "aligned");
    if (params.n_prompt) need(params.prompt, "prompt");
    PluginOptions options;
    options.rule         = params.rule;
    options.base_model   = params.base_model;
    options.aligned      = params.aligned;
    options.aligned_id   = params.aligned_seq_id;
    options.reference    = params.reference;
    options.reference_id = params.reference_seq_id;
    if (params.n_prompt) options.prompt.assign(params.prompt, params.prompt + params.n_prompt);
    return options;
}

extern "C" {

kad_sampler_params kad_sampler_default_params(void) {
    kad_sampler_params params = {};
    params.size               = sizeof params;
    params.rule               = { KAD_RULE_DUAL, 0.4, 1.0 };
    return params;
}

kad_status kad_sampler_init(const kad_sampler_params * params, struct llama_sampler ** out) {
    return guarded([&] {
        need(out, "out");
        const kad_sampler_params given = completed(params, kad_sampler_default_params(), "params");
        if (kad_library_check() != KAD_OK) throw Error(KAD_LIBRARY_MISMATCH, std::string(kad_last_error()));
        *out = make_sampler(options_of(given));
    });
}

kad_status kad_sampler_status(const struct llama_sampler * sampler) {
    return guarded([&] { sampler_check(sampler); });
}

kad_status kad_sampler_end(const struct llama_sampler * sampler, int32_t * id) {
    return guarded([&] {
        need(id, "id");
        *id = sampler_end(sampler);
    });
}

kad_status kad_sampler_row(struct llama_sampler * sampler, const int32_t * ids, size_t n_ids, float * logits,
                           size_t n_vocab) {
    return guarded([&] {
        need(sampler, "sampler");
        need(logits, "logits");
        if (n_ids) need(ids, "ids");
        sampler_row(sampler, n_ids ? std::vector<Token>(ids, ids + n_ids) : std::vector<Token>(), logits, n_vocab);
    });
}

} // extern "C"
