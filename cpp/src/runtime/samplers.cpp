// How does a speaker's chain of llama.cpp samplers change its row?
#include "samplers.h"

#include <algorithm>
#include <cfloat>
#include <cmath>

#include "abort_guard.h"
#include "llama.h"
#include "llama_log.h"
#include "model.h"

namespace kad {

namespace {

const char * name_of(kad_role role) { return role == KAD_ROLE_BASE ? "base" : "aligned"; }

void in_range(const char * name, double value, bool ok, const char * expected) {
    if (ok) return;
    throw Error(KAD_INVALID_ARGUMENT,
                std::string(name) + " " + shown(value) + " is out of range; expected " + expected);
}

// llama.cpp computes in float: a value must not overflow there.
bool fits(double value) { return std::isfinite(value) && std::fabs(value) <= double(FLT_MAX); }

void check_penalties(const SamplerSettings & s) {
    constexpr double MOST = 1e6; // times a count of tokens it stays far from overflow
    in_range("repeat_last_n", s.repeat_last_n, s.repeat_last_n >= -1, "0 (off) or more, or -1 for the whole context");
    in_range("repeat_penalty", s.repeat_penalty,
             fits(s.repeat_penalty) && float(s.repeat_penalty) > 0 && std::isfinite(1 / float(s.repeat_penalty)),
             "a finite value > 0 (1 is off)");
    in_range("frequency_penalty", s.frequency_penalty, std::fabs(s.frequency_penalty) <= MOST,
             "-1e6 to 1e6 (0 is off)");
    in_range("presence_penalty", s.presence_penalty, std::fabs(s.presence_penalty) <= MOST, "-1e6 to 1e6 (0 is off)");
}

void check_dry(const SamplerSettings & s) {
    constexpr size_t LONGEST = 40; // llama.cpp cuts a longer one
    in_range("dry_multiplier", s.dry_multiplier, s.dry_multiplier >= 0 && fits(s.dry_multiplier),
             "a finite value >= 0 (0 is off)");
    in_range("dry_base", s.dry_base, s.dry_base >= 1 && fits(s.dry_base), "a finite value >= 1");
    in_range("dry_allowed_length", s.dry_allowed_length, s.dry_allowed_length >= 0, "0 or more");
    in_range("dry_penalty_last_n", s.dry_penalty_last_n, s.dry_penalty_last_n >= -1,
             "0 (off) or more, or -1 for the whole context");
    for (const std::string & breaker : s.dry_sequence_breakers) {
        if (!breaker.empty() && breaker.size() <= LONGEST) continue;
        throw Error(KAD_INVALID_ARGUMENT, "dry_sequence_breakers has \"" + breaker + "\" of " +
                                              std::to_string(breaker.size()) + " bytes; expected 1 to " +
                                              std::to_string(LONGEST));
    }
}

} // namespace

void check_samplers(const SamplerSettings & s) {
    check_penalties(s);
    check_dry(s);
    in_range("top_k", s.top_k, s.top_k >= 0, "0 (off) or more");
    in_range("typical_p", s.typical_p, s.typical_p > 0 && s.typical_p <= 1, "0 < typical_p <= 1 (1 is off)");
    in_range("top_p", s.top_p, s.top_p > 0 && s.top_p <= 1, "0 < top_p <= 1 (1 is off)");
    in_range("min_p", s.min_p, s.min_p >= 0 && s.min_p < 1, "0 <= min_p < 1 (0 is off)");
    in_range("xtc_probability", s.xtc_probability, s.xtc_probability >= 0 && s.xtc_probability <= 1, "0 (off) to 1");
    in_range("xtc_threshold", s.xtc_threshold, s.xtc_threshold >= 0 && s.xtc_threshold <= 1,
             "0 to 1 (above 0.5 is off)");
    for (const auto & [text, bias] : s.logit_bias) {
        if (bias == -INFINITY || fits(bias)) continue;
        throw Error(KAD_INVALID_ARGUMENT, "logit_bias \"" + text + "\" is " + shown(bias) +
                                              "; expected a finite value to be added, or -inf to ban it");
    }
}

namespace {

// A text's bias, on all ids that say it: an end of generation stands at its folded id; bytes may belong to several ids.
std::vector<Token> biased_ids(const std::string & text, const LlamaModel & model, const EventSpace & events,
                              kad_role role) {
    std::vector<Token> ids;
    if (events.spells_end(text)) {
        if (events.end_id(role) >= 0) ids.push_back(events.end_id(role));
        return ids;
    }
    bool control = false;
    for (size_t i = 0; i < model.size(); ++i) {
        if (model.bytes(Token(i)) != text) continue;
        if (model.kind(Token(i)) == TokenKind::Text) ids.push_back(Token(i));
        if (model.kind(Token(i)) == TokenKind::Control) control = true;
    }
    if (!ids.empty()) return ids;
    const std::string what = "logit_bias \"" + text + "\" is ";
    if (control) {
        throw Error(KAD_INVALID_ARGUMENT, what + "a control token of the " + name_of(role) +
                                              " model, which is never said; give the text of an ordinary token");
    }
    throw Error(KAD_INVALID_ARGUMENT, what + "no single token of the " + name_of(role) +
                                          " model; give a text that every model has as one token (a word often "
                                          "begins with a space)");
}

// The window of tokens that a sampler remembers; no context is longer than the model's.
int32_t window(int32_t last_n, const LlamaModel & model) {
    const int32_t whole = int32_t(model.n_ctx());
    return last_n < 0 ? whole : std::min(last_n, whole);
}

class Chain {
public:
    Chain() : chain_(llama_sampler_chain_init(llama_sampler_chain_default_params())) {}
    ~Chain() { llama_sampler_free(chain_); }
    Chain(const Chain &)             = delete;
    Chain & operator=(const Chain &) = delete;

    void add(llama_sampler * sampler) {
        llama_sampler_chain_add(chain_, sampler);
        empty_ = false;
    }
    bool            empty() const { return empty_; }
    llama_sampler * get() const { return chain_; }

private:
    llama_sampler * chain_;
    bool            empty_ = true;
};

// One speaker's chain in two parts: what changes logits (and remembers tokens), and what drops tokens.
class Samplers : public Shaper {
public:
    Samplers(const EventSpace & events, kad_role role, const Coins & coins)
        : events_(events), role_(role), coins_(coins) {}

    void shape(const Token * context, size_t n_context, uint64_t event, const float * logits, float * shaped,
               size_t n) override {
        std::copy(logits, logits + n, shaped);
        for (const auto & [id, bias] : biases) {
            if (size_t(id) < n) shaped[id] = std::min(shaped[id] + bias, FLT_MAX);
        }
        if (!penalties.empty()) penalise(context, n_context, shaped, n);
        if (truncation.empty() && xtc_probability == 0) return;
        gather(shaped, n);
        std::fill(shaped, shaped + n, -INFINITY);
        apply(truncation.get());
        if (xtc_probability > 0) exclude_top_choices(event);
        for (size_t i = 0; i < array_.size; ++i) shaped[array_.data[i].id] = array_.data[i].logit;
    }

    std::vector<std::pair<Token, float>> biases;
    Chain                                penalties, truncation;
    size_t                               memory          = 0;     // most tokens that the penalties look back
    bool                                 typical         = false; // is it in `truncation`?
    float                                xtc_probability = 0, xtc_threshold = 0;

private:
    const EventSpace &            events_;
    kad_role                      role_;
    Coins                         coins_;
    std::vector<Token>            remembered_; // the context that the penalties hold the last tokens of
    std::vector<Token>            seen_;
    std::vector<llama_token_data> candidates_;
    llama_token_data_array        array_ = {};

    // Penalties and DRY change the logits of tokens that they remember, each by itself: no others are shown to them.
    void penalise(const Token * context, size_t n_context, float * row, size_t n) {
        remember(context, n_context);
        seen_.clear();
        for (size_t i = n_context - std::min(n_context, memory); i < n_context; ++i) {
            seen_.push_back(events_.folded(role_, context[i]));
        }
        std::sort(seen_.begin(), seen_.end());
        seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
        candidates_.clear();
        for (const Token id : seen_) {
            if (size_t(id) < n && row[id] != -INFINITY) candidates_.push_back({ id, row[id], 0 });
        }
        array_ = { candidates_.data(), candidates_.size(), -1, false };
        apply(penalties.get());
        for (const llama_token_data & changed : candidates_) row[changed.id] = std::min(changed.logit, FLT_MAX);
    }

    // Tokens that cannot be said are no candidates: typical sampling would make NaN of their p log p, as of that of tokens
    // whose probability a float cannot hold.
    void gather(const float * row, size_t n) {
        constexpr float FAINT = 80; // exp(-80) = 2e-35, divided by any vocabulary's sum still no zero
        const float     least = typical ? std::max(*std::max_element(row, row + n) - FAINT, -FLT_MAX) : -FLT_MAX;
        candidates_.clear();
        for (size_t i = 0; i < n; ++i) {
            if (row[i] >= least) candidates_.push_back({ llama_token(i), row[i], 0 });
        }
        array_ = { candidates_.data(), candidates_.size(), -1, false };
    }

    // The penalties hold the last tokens of context: what came since the last call is added where context goes on from there.
    // Either way they hold the same, so that shape() depends on its arguments alone.
    void remember(const Token * context, size_t n) {
        const size_t known = remembered_.size();
        const bool on = known <= n && n - known < memory && std::equal(remembered_.begin(), remembered_.end(), context);
        if (!on) llama_sampler_reset(penalties.get());
        for (size_t i = on ? known : n - std::min(n, memory); i < n; ++i) {
            llama_sampler_accept(penalties.get(), events_.folded(role_, context[i]));
        }
        remembered_.assign(context, context + n);
    }

    void apply(llama_sampler * chain) {
        if (array_.size > 0) llama_sampler_apply(chain, &array_);
    }

    // XTC draws whether it acts: made anew with a seed of this event, so that a guess drawn again meets the same coin.
    void exclude_top_choices(uint64_t event) {
        const uint32_t  seed = coins_.bits(event, PURPOSE_XTC, role_);
        llama_sampler * xtc  = llama_sampler_init_xtc(xtc_probability, xtc_threshold, 1, seed);
        apply(xtc);
        llama_sampler_free(xtc);
    }
};

void add_penalties(Samplers & samplers, const SamplerSettings & s, const LlamaModel & model) {
    const int32_t n = window(s.repeat_last_n, model), dry_n = window(s.dry_penalty_last_n, model);
    if (n > 0 && (s.repeat_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0)) {
        samplers.penalties.add(llama_sampler_init_penalties(int32_t(model.size()), n, float(s.repeat_penalty),
                                                            float(s.frequency_penalty), float(s.presence_penalty)));
        samplers.memory = size_t(n);
    }
    if (dry_n > 0 && float(s.dry_multiplier) > 0) {
        std::vector<const char *> breakers;
        for (const std::string & breaker : s.dry_sequence_breakers) breakers.push_back(breaker.c_str());
        samplers.penalties.add(llama_sampler_init_dry(model.vocab(), float(s.dry_multiplier), float(s.dry_base),
                                                      s.dry_allowed_length, dry_n, breakers.data(), breakers.size()));
        samplers.memory = std::max(samplers.memory, size_t(dry_n));
    }
}

void add_truncation(Samplers & samplers, const SamplerSettings & s) {
    samplers.typical = s.typical_p < 1;
    if (s.top_k > 0) samplers.truncation.add(llama_sampler_init_top_k(s.top_k));
    if (s.typical_p < 1) samplers.truncation.add(llama_sampler_init_typical(float(s.typical_p), 1));
    if (s.top_p < 1) samplers.truncation.add(llama_sampler_init_top_p(float(s.top_p), 1));
    if (s.min_p > 0) samplers.truncation.add(llama_sampler_init_min_p(float(s.min_p), 1));
}

} // namespace

std::unique_ptr<Shaper> make_samplers(const SamplerSettings & s, const LlamaModel & model, const EventSpace & events,
                                      kad_role role, double temperature, const Coins & coins) {
    const LlamaLog   log(false);
    const AbortGuard guard;
    auto             samplers = std::make_unique<Samplers>(events, role, coins);
    for (const auto & [text, bias] : s.logit_bias) {
        for (const Token id : biased_ids(text, model, events, role)) {
            if (bias != 0) samplers->biases.emplace_back(id, float(bias));
        }
    }
    try {
        add_penalties(*samplers, s, model);
    } catch (const std::exception & e) { // a vocabulary that cannot tokenise a breaker
        throw Error(KAD_MODEL_ERROR, std::string("the samplers of the ") + name_of(role) +
                                         " model cannot be made: " + e.what() + "; use other dry_sequence_breakers");
    }
    // llama.cpp's XTC does nothing above a threshold of one half.
    const bool xtc = s.xtc_probability > 0 && s.xtc_threshold <= 0.5;
    // At temperature 0 the best token is said. Top-k, top-p and min-p always keep it: they count only for what follows them.
    if (temperature > 0 || s.typical_p < 1 || xtc) add_truncation(*samplers, s);
    if (xtc) {
        samplers->xtc_probability = float(s.xtc_probability);
        samplers->xtc_threshold   = float(s.xtc_threshold);
    }
    const bool off = samplers->biases.empty() && samplers->penalties.empty() && samplers->truncation.empty() && !xtc;
    return off ? nullptr : std::move(samplers);
}

} // namespace kad
