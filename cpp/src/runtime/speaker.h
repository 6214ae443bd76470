// One model's side of the conversation: its cache, and its rows of logits, ready to be drawn from.
#pragma once

#include <memory>
#include <vector>

#include "../core/logits.h"
#include "language_model.h"
#include "text_bridge.h"

namespace kad {

// A model's rows at one position, read for the two questions of method.md, section 4.
struct Row {
    size_t             length = 0; // tokens of the context that the row follows; 0 = no row here
    std::vector<float> own;        // prepared logits over the model's own ids
    std::vector<float> events;     // the same over events
    bool               read  = false;
    uint64_t           event = 0;                 // for which it was read
    std::vector<float> shaped_own, shaped_events; // after the speaker's samplers; empty when they are off
    Distribution       at_rule;                   // who speaks: raw, at the rule's temperature (base only)
    Distribution       spoken;                    // how this speaker speaks: shaped, at the sampling temperature
};

struct Reading {
    double   rule_temperature = 1; // 0: rows of this speaker are not asked by the rule
    double   temperature      = 1;
    Shaper * shaper           = nullptr; // owned by the sequence
};

struct EvaluationCount {
    int    passes  = 0;
    double seconds = 0;
};

class Speaker {
public:
    static constexpr size_t BLOCK = 64; // reproducible prompts are evaluated in blocks of this many tokens

    // max_pass: most tokens per pass outside the prompt. reproducible: fixed prompt blocks, only whole ones are reused.
    Speaker(LanguageModel & model, const EventSpace & events, kad_role role, bool reproducible, size_t max_pass);

    LanguageModel & model() { return model_; }
    size_t          max_pass() const { return max_pass_; }

    // A new text begins. keep_rows: room for this many rows.
    void begin(const Reading & reading, size_t keep_rows);

    // Room for at least n rows from here on. Making room forgets the rows at hand.
    void keep_rows(size_t n);

    // Evaluates the next block of the prompt; true when the row after the whole prompt is there. cached() is then the number
    // of prompt tokens that were not evaluated again.
    bool   prefill(const std::vector<Token> & prompt);
    size_t cached() const { return cached_; }
    size_t prefilled() const { return started_ ? tokens_.size() : 0; }

    // The row after `context`, evaluating what the cache lacks, read for event number `event`.
    Row & row(const std::vector<Token> & context, uint64_t event);

    // Makes the rows after the first `from`, from+1, ... all tokens of context, in one pass as far as limits allow. Then row()
    // has them at hand.
    void rows(const std::vector<Token> & context, size_t from);

    // How this model speaks over its own ids (further tokens of a character). Valid until the next call.
    const Distribution & own(const Row & row);

    // A draw from it by one coin.
    Token draw_own(Row & row, double coin, double & logprob);

    // The same among the ids with ok; logprob is still that of the whole row. If none of them has mass, from the row masked
    // before the samplers; -1 when nothing is left.
    Token draw_own_allowed(Row & row, const std::vector<uint8_t> & ok, double coin, double & logprob);

    // The row over events as this model speaks when only events with ok are left before its samplers, in `buffer`, which must
    // outlive `out`. False when nothing is left.
    bool restricted(const Row & row, const std::vector<uint8_t> & ok, std::vector<float> & buffer, Distribution & out);

    // Drops from the cache what does not belong to context.
    void trim(const std::vector<Token> & context);

    EvaluationCount count; // since begin()

private:
    LanguageModel &    model_;
    const EventSpace & events_;
    kad_role           role_;
    bool               reproducible_;
    size_t             max_pass_;
    Reading            reading_;
    std::vector<Token> tokens_;       // what the cache holds
    size_t             blocks_   = 0; // tokens of it that were evaluated as whole prompt blocks
    size_t             cached_   = 0;
    size_t             n_prompt_ = 0;
    bool               started_  = false; // prefill() has chosen what to reuse
    std::vector<Row>   rows_;             // slot length % size
    Distribution       own_;
    std::vector<float> masked_, masked_shaped_;

    bool   evaluate_block(const std::vector<Token> & context, size_t n_rows);
    void   rewind(size_t keep);
    void   evaluate(const Token * tokens, size_t n, size_t n_rows);
    void   store(const float * logits, size_t length);
    void   read(Row & row, uint64_t event);
    bool   mask(const Row & row, const std::vector<uint8_t> & ok_ids);
    size_t common_prefix(const std::vector<Token> & context) const;
    bool   has_row(size_t length) const { return rows_[length % rows_.size()].length == length; }
};

} // namespace kad
