// The models, their contexts, and the loop over the texts in them. Opening checks everything that can be checked before
// anything is loaded.
#pragma once

#include <atomic>

#include "generator.h"
#include "model.h"
#include "reproducible.h"

namespace kad {

struct EngineOptions {
    ModelOptions                models[ROLE_COUNT];
    kad_rule                    rule;
    int32_t                     n_ctx, n_threads, n_parallel;
    bool                        reproducible, verbose;
    int32_t                     max_pass[ROLE_COUNT];
    uint64_t                    memory_limit;
    std::function<bool(double)> progress;
};

class Engine {
public:
    // Throws what can be known without weights: options, headers, memory and, where a rule needs one vocabulary, vocabularies.
    static void check(const EngineOptions & options);

    explicit Engine(const EngineOptions & options);

    LlamaModel *                 model(kad_role role) { return models_[role].get(); }
    const LlamaModel *           model(kad_role role) const { return models_[role].get(); }
    Generator &                  generator() { return *generator_; }
    const Generator &            generator() const { return *generator_; }
    const EngineOptions &        options() const { return options_; }
    const VocabularyComparison & vocabularies() const { return comparison_; }
    const EventSpace &           events() const { return *events_; }
    int32_t                      max_pass(kad_role role) const { return max_pass_[role]; }
    bool speaks(kad_role role) const { return models_[role] && !options_.models[role].vocab_only; }

    std::atomic<bool> cancel{ false };
    bool              catch_sigint = false;

    // Models measured alone, for hosts that keep the answer.
    static PassInfo measure(const EngineOptions & options, kad_role role);

private:
    EngineOptions               options_;
    std::unique_ptr<LlamaModel> models_[ROLE_COUNT];
    VocabularyComparison        comparison_;
    std::unique_ptr<EventSpace> events_;
    std::unique_ptr<Generator>  generator_;
    int32_t                     max_pass_[ROLE_COUNT] = {};
};

} // namespace kad
