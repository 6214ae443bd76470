#include "speaker.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "../core/draw.h"

namespace kad {

static const char * name_of(kad_role role) {
    static const char * const names[ROLE_COUNT] = { "base model", "aligned model", "reference model" };
    return names[role];
}

Speaker::Speaker(LanguageModel & model, const EventSpace & events, kad_role role, bool reproducible, size_t max_pass)
    : model_(model), events_(events), role_(role), reproducible_(reproducible),
      max_pass_(std::min(max_pass, std::min(model.max_batch(), model.max_rows()))), rows_(2) {}

void Speaker::begin(const Reading & reading, size_t keep_rows) {
    reading_ = reading;
    this->keep_rows(keep_rows);
    for (Row & row : rows_) {
        row.read = false;
        // A row after generated tokens may come from another pass than the one a fresh run would make.
        if (reproducible_) row.length = 0;
    }
    count    = EvaluationCount();
    started_ = false;
    cached_  = 0;
}

void Speaker::keep_rows(size_t n) {
    if (rows_.size() < n) rows_.assign(n, Row()); // rows move: old ones are forgotten
}

size_t Speaker::common_prefix(const std::vector<Token> & context) const {
    const size_t n = std::min(tokens_.size(), context.size());
    return size_t(std::mismatch(tokens_.begin(), tokens_.begin() + ptrdiff_t(n), context.begin()).first -
                  tokens_.begin());
}

// Keeps the first `keep` tokens of the cache; caches that cannot rewind start again from nothing.
void Speaker::rewind(size_t keep) {
    if (keep >= tokens_.size()) return;
    if (!model_.can_rewind()) keep = 0;
    tokens_.resize(keep);
    model_.drop(keep);
    blocks_ = std::min(blocks_, keep / BLOCK * BLOCK);
    for (Row & row : rows_) {
        if (row.length > keep) row.length = 0;
    }
}

void Speaker::trim(const std::vector<Token> & context) {
    // A cache that cannot rewind would be emptied: better keep it, a longer prompt may still extend it.
    if (model_.can_rewind()) rewind(common_prefix(context));
}

void Speaker::evaluate(const Token * tokens, size_t n, size_t n_rows) {
    const size_t at    = tokens_.size();
    const auto   start = std::chrono::steady_clock::now();
    try {
        model_.evaluate(tokens, n, at, n_rows);
    } catch (...) {
        const size_t keep = model_.can_rewind() ? at : 0;
        model_.drop(keep);
        tokens_.resize(keep);
        if (keep == 0) {
            blocks_ = 0;
            for (Row & row : rows_) row.length = 0;
        }
        throw;
    }
    count.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++count.passes;
    tokens_.insert(tokens_.end(), tokens, tokens + n);
    for (size_t i = 0; i < n_rows; ++i) store(model_.row(i), at + n - n_rows + i + 1);
}

void Speaker::store(const float * logits, size_t length) {
    Row & row  = rows_[length % rows_.size()];
    row.length = length;
    row.read   = false;
    row.own.resize(events_.row_size(role_));
    events_.prepare(role_, logits, row.own.data());
}

bool Speaker::prefill(const std::vector<Token> & prompt) {
    const size_t n = prompt.size();
    n_prompt_      = n;
    if (!started_) {
        const size_t common = common_prefix(prompt);
        if (reproducible_) {
            // Only whole blocks that were evaluated as prompt blocks, and never the last block: so that every row after
            // the prompt comes from the same passes whatever ran before.
            rewind(std::min({ blocks_, common / BLOCK * BLOCK, (n - 1) / BLOCK * BLOCK }));
        } else if (common == n && has_row(n)) {
            rewind(n);
        } else {
            rewind(std::min(common, n - 1));
        }
        cached_  = tokens_.size();
        started_ = true;
    }
    if (tokens_.size() == n && has_row(n)) return true;
    if (tokens_.size() >= n) rewind(n - 1); // interrupted between evaluation and row
    return evaluate_block(prompt, 1);
}

// The next block of the prompt, with rows after its last n_rows tokens if it is the last; true when it is.
bool Speaker::evaluate_block(const std::vector<Token> & context, size_t n_rows) {
    const size_t at = tokens_.size();
    const size_t block =
        std::min(reproducible_ ? std::min(BLOCK, model_.max_batch()) : model_.max_batch(), n_prompt_ - at);
    const bool last = at + block == n_prompt_;
    evaluate(context.data() + at, block, last ? std::min(n_rows, block) : 0);
    if (blocks_ == at && block == BLOCK) blocks_ = at + BLOCK;
    return last;
}

Row & Speaker::row(const std::vector<Token> & context, uint64_t event) {
    const size_t length = context.size();
    rows(context, length);
    if (!has_row(length)) throw Error(KAD_INTERNAL_ERROR, "no row after " + std::to_string(length) + " tokens");
    Row & row = rows_[length % rows_.size()];
    if (!row.read || row.event != event) read(row, event);
    return row;
}

void Speaker::rows(const std::vector<Token> & context, size_t from) {
    const size_t n      = context.size();
    const size_t common = common_prefix(context);
    // Where the cache already goes on beyond the context (guesses), its rows stay: they may prove right.
    if (common < n) rewind(common);
    while (from <= n && has_row(from)) ++from;
    if (from > n) return;
    rewind(from - 1);
    // A cache that could not rewind lacks the prompt too: it comes back in the blocks that it came in.
    while (tokens_.size() < n_prompt_) evaluate_block(context, from > n_prompt_ ? 0 : n_prompt_ - (from - 1));
    // What the cache lacks, in passes of at most max_pass_. Rows are wanted after the tokens from-1 .. n-1.
    for (size_t at = tokens_.size(); at < n; at = tokens_.size()) {
        const size_t pass = std::min(max_pass_, n - at);
        const size_t end  = at + pass;
        evaluate(context.data() + at, pass, end < from ? 0 : std::min(pass, end - (from - 1)));
    }
}

// One pass over the row where rule and speaker ask the same question of the same numbers; otherwise one each.
void Speaker::read(Row & row, uint64_t event) {
    const float * raw    = row.own.data();
    const float * spoken = raw;
    if (reading_.shaper) {
        // Truncation could drop the very token whose logit is NaN, and would sort by it.
        check_logits(raw, row.own.size(), name_of(role_));
        row.shaped_own.resize(row.own.size());
        // What the cache holds up to this row is its context: rows beyond a rewind are gone.
        reading_.shaper->shape(tokens_.data(), row.length, event, raw, row.shaped_own.data(), row.own.size());
        spoken = row.shaped_own.data();
    }
    if (!events_.shared_ids()) {
        row.events.resize(events_.size());
        events_.project(role_, raw, row.events.data());
        raw = row.events.data();
        if (reading_.shaper) {
            row.shaped_events.resize(events_.size());
            events_.project(role_, spoken, row.shaped_events.data());
        }
        spoken = reading_.shaper ? row.shaped_events.data() : raw;
    }
    row.spoken.set(spoken, events_.size(), reading_.temperature, name_of(role_));
    if (reading_.rule_temperature > 0) {
        if (spoken == raw && reading_.rule_temperature == reading_.temperature) {
            row.at_rule = row.spoken;
        } else {
            row.at_rule.set(raw, events_.size(), reading_.rule_temperature, name_of(role_));
        }
    }
    row.read  = true;
    row.event = event;
}

const Distribution & Speaker::own(const Row & row) {
    const bool shaped = reading_.shaper != nullptr;
    own_.set(shaped ? row.shaped_own.data() : row.own.data(), row.own.size(), reading_.temperature, name_of(role_));
    return own_;
}

Token Speaker::draw_own(Row & row, double coin, double & logprob) {
    const Token v = own(row).draw(coin);
    logprob       = own_.log_probability(v);
    return v;
}

// masked_: the own row with only ids of ok_ids left, after the samplers; false when none is left: a bias may ban what the
// grammar allows.
bool Speaker::mask(const Row & row, const std::vector<uint8_t> & ok_ids) {
    masked_ = row.own;
    for (size_t i = 0; i < masked_.size(); ++i) {
        if (!ok_ids[i]) masked_[i] = -INFINITY;
    }
    if (reading_.shaper && possible(masked_.data(), masked_.size())) {
        masked_shaped_.resize(masked_.size());
        reading_.shaper->shape(tokens_.data(), row.length, row.event, masked_.data(), masked_shaped_.data(),
                               masked_.size());
        masked_.swap(masked_shaped_);
    }
    return possible(masked_.data(), masked_.size());
}

Token Speaker::draw_own_allowed(Row & row, const std::vector<uint8_t> & ok, double coin, double & logprob) {
    Token v = draw_allowed(own_, ok, coin); // own_ is this row: draw_own() came first
    if (v >= 0) logprob = own_.log_probability(v);
    if (v >= 0 || !mask(row, ok)) return v;
    logprob = -INFINITY;
    own_.set(masked_.data(), masked_.size(), reading_.temperature, name_of(role_));
    return own_.draw(coin);
}

bool Speaker::restricted(const Row & row, const std::vector<uint8_t> & ok, std::vector<float> & buffer,
                         Distribution & out) {
    std::vector<uint8_t> ok_ids(row.own.size());
    for (size_t i = 0; i < ok_ids.size(); ++i) {
        const Token event = events_.event(role_, Token(i));
        ok_ids[i]         = event >= 0 && ok[size_t(event)];
    }
    if (!mask(row, ok_ids)) return false;
    buffer.resize(events_.size());
    events_.project(role_, masked_.data(), buffer.data());
    out.set(buffer.data(), buffer.size(), reading_.temperature, name_of(role_));
    return true;
}

} // namespace kad
