// llama.cpp's own samplers and grammars, as the loop wants them: one chain per speaker (method.md, section 4).
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../core/coins.h"
#include "language_model.h"
#include "text_bridge.h"

namespace kad {

class LlamaModel;

// What kad_sequence_params says of samplers, owned. Defaults are off.
struct SamplerSettings {
    std::vector<std::pair<std::string, double>> logit_bias; // text of one token -> added to its logit; -inf bans it
    int32_t                                     repeat_last_n         = 64; // -1: the whole context
    double                                      repeat_penalty        = 1;
    double                                      frequency_penalty     = 0;
    double                                      presence_penalty      = 0;
    double                                      dry_multiplier        = 0;
    double                                      dry_base              = 1.75;
    int32_t                                     dry_allowed_length    = 2;
    int32_t                                     dry_penalty_last_n    = -1; // -1: the whole context
    std::vector<std::string>                    dry_sequence_breakers = { "\n", ":", "\"", "*" };
    int32_t                                     top_k                 = 0;
    double                                      typical_p             = 1;
    double                                      top_p                 = 1;
    double                                      min_p                 = 0;
    double                                      xtc_probability       = 0;
    double                                      xtc_threshold         = 0.1;
};

// Throws KAD_INVALID_ARGUMENT by name and value.
void check_samplers(const SamplerSettings & settings);

// The chain of one speaker, in llama.cpp's order; NULL when all is off (at temperature 0: when nothing can change which token
// is best). A bias on text that is no single token of this vocabulary is refused, naming it. Refers to model and events.
std::unique_ptr<Shaper> make_samplers(const SamplerSettings & settings, const LlamaModel & model,
                                      const EventSpace & events, kad_role role, double temperature,
                                      const Coins & coins);

// A GBNF grammar over one model's vocabulary. Throws KAD_INVALID_ARGUMENT when it does not parse or lacks its root; and, with
// by_text (vocabularies differ), when it names tokens of a vocabulary rather than text.
std::unique_ptr<Grammar> make_grammar(const LlamaModel & model, const std::string & gbnf, const std::string & root,
                                      bool by_text);

} // namespace kad
