#include "sampler_plugin.h"

#include <algorithm>
#include <cmath>
#include <memory>

#include "../core/deferral.h"
#include "../errors.h"
#include "host_sequence.h"
#include "llama.h"
#include "text_bridge.h"
#include "token_table.h"

namespace kad {

namespace {

// The ids of a vocabulary for EventSpace and compare(). Equal vocabularies only, so no text is ever tokenised.
class HostVocabulary : public Vocabulary {
public:
    explicit HostVocabulary(const llama_model * model)
        : table_(read_tokens(llama_model_get_vocab(model))), eos_(llama_vocab_eos(llama_model_get_vocab(model))) {}

    size_t              size() const override { return table_.bytes.size(); }
    const std::string & bytes(Token id) const override { return table_.bytes[size_t(id)]; }
    TokenKind           kind(Token id) const override { return table_.kinds[size_t(id)]; }
    int32_t             type(Token id) const override { return table_.types[size_t(id)]; }
    std::vector<Token>  tokenize_continuation(const std::string &) const override {
        throw Error(KAD_INTERNAL_ERROR, "a sampler tokenises no text");
    }

    // Its end-of-sequence token, else the lowest that ends a text, below n; -1 when there is none.
    Token end(size_t n) const {
        if (eos_ >= 0 && size_t(eos_) < n && kind(eos_) == TokenKind::End) return eos_;
        for (size_t i = 0; i < n; ++i) {
            if (kind(Token(i)) == TokenKind::End) return Token(i);
        }
        return -1;
    }

private:
    TokenTable table_;
    Token      eos_;
};

// Throws unless both vocabularies say the same by every id.
void check_equal(const HostVocabulary & base, const HostVocabulary & other, const std::string & names) {
    const VocabularyComparison found = compare(base, other);
    if (found.equal && base.size() && other.size()) return;
    std::string ids;
    for (const Token id : found.differing) ids += (ids.empty() ? "" : ", ") + std::to_string(id);
    throw Error(KAD_INVALID_ARGUMENT, "the vocabularies of " + names + " differ in " +
                                          std::to_string(found.n_differing) + " ids (the first: " + ids + "; " +
                                          shown(std::floor(1000 * found.overlap) / 10) +
                                          " % of the latter's tokens are in the former); a sampler needs equal ones: "
                                          "use kad_engine_open() for models of different families");
}

// What a sampler and its clones share.
struct Setup {
    kad_rule                        rule;
    HostVocabulary                  aligned;
    std::unique_ptr<HostVocabulary> base; // NULL: unknown, taken to be the aligned model's
    EventSpace                      events;
    std::vector<Token>              prompt;
    Token                           end = -1; // where end of generation stands

    explicit Setup(const PluginOptions & options)
        : rule(options.rule), aligned(llama_get_model(options.aligned)),
          base(options.base_model ? std::make_unique<HostVocabulary>(options.base_model) : nullptr),
          events(&base_or_aligned(), &aligned, true), prompt(options.prompt),
          end(base_or_aligned().end(events.size())) {
        if (base) check_equal(*base, aligned, "the base and the aligned model");
        if (options.reference) {
            const HostVocabulary reference(llama_get_model(options.reference));
            check_equal(aligned, reference, "the aligned and the reference model");
        }
        if (end < 0) end = aligned.end(events.size());
    }

    const HostVocabulary & base_or_aligned() const { return base ? *base : aligned; }
};

class Plugin {
public:
    explicit Plugin(const PluginOptions & options)
        : setup_(std::make_shared<const Setup>(options)), ids_(options.prompt),
          aligned_(std::make_unique<HostSequence>(options.aligned, options.aligned_id, "aligned")) {
        if (options.reference) {
            reference_ = std::make_unique<HostSequence>(options.reference, options.reference_id, "reference");
        }
        if (!ids_.empty()) follow(ids_);
    }

    // A clone. Without free sequences it is one that has failed.
    Plugin(const Plugin & other)
        : setup_(other.setup_), ids_(other.ids_), status_(other.status_), message_(other.message_) {
        attempt([&] {
            if (!other.aligned_) throw Error(KAD_BAD_STATE, "this is a clone of a clone that got no sequence");
            auto aligned = other.aligned_->copy();
            if (other.reference_) reference_ = other.reference_->copy();
            aligned_ = std::move(aligned);
        });
    }
    Plugin & operator=(const Plugin &) = delete;

    void accept(Token token) {
        attempt([&] { ids_.push_back(token); });
    }

    void reset() {
        if (!aligned_) return;
        status_ = KAD_OK;
        attempt([&] { ids_ = setup_->prompt; });
    }

    void copy_state(const Plugin & other) {
        if (!aligned_) return;
        status_ = other.status_;
        attempt([&] {
            message_ = other.message_;
            ids_     = other.ids_;
        });
    }

    void apply(llama_token_data_array & candidates) {
        if (status_ == KAD_OK) attempt([&] { mix(candidates); });
        if (status_ != KAD_OK) force_end(candidates);
        candidates.sorted = false;
    }

    void row(std::vector<Token> ids, float * logits, size_t n_vocab) {
        need_sequence();
        check_size(n_vocab);
        follow(ids);
        base_row_.assign(logits, logits + n_vocab);
        mix_rows(logits);
        ids_    = std::move(ids);
        status_ = KAD_OK;
    }

    void check() const {
        if (status_ != KAD_OK) throw Error(status_, message_);
    }

    Token end() const { return setup_->end; }

private:
    std::shared_ptr<const Setup>  setup_;
    std::vector<Token>            ids_; // prompt and accepted tokens
    std::unique_ptr<HostSequence> aligned_, reference_;
    kad_status                    status_ = KAD_OK;
    std::string                   message_;
    const float *                 aligned_logits_   = nullptr;
    const float *                 reference_logits_ = nullptr;
    std::vector<float>            base_row_, mixed_, p_, q_, r_;
    std::vector<double>           pi_;

    // What a callback of llama.cpp meets is kept: nothing may be thrown through it.
    template <typename Body>
    void attempt(Body body) noexcept {
        const kad_status status = guarded(body);
        if (status == KAD_OK) return;
        status_ = status;
        guarded([&] { message_ = kad_last_error(); });
    }

    void need_sequence() const {
        if (!aligned_) throw Error(KAD_BAD_STATE, message_);
    }

    void follow(const std::vector<Token> & ids) {
        aligned_logits_ = aligned_->follow(ids);
        if (reference_) reference_logits_ = reference_->follow(ids);
    }

    void check_size(size_t n) const {
        const size_t expected = setup_->base_or_aligned().size();
        if (n == expected) return;
        throw Error(KAD_INVALID_ARGUMENT,
                    "the base's row has " + std::to_string(n) + " logits; expected " + std::to_string(expected) +
                        ", its whole vocabulary: this sampler must come first in the chain" +
                        (setup_->base ? "" : ", and base_model be given where the base's vocabulary is padded"));
    }

    void mix(llama_token_data_array & candidates) {
        need_sequence();
        check_size(candidates.size);
        read_base(candidates);
        follow(ids_);
        mixed_.resize(base_row_.size());
        mix_rows(mixed_.data());
        for (size_t i = 0; i < candidates.size; ++i) candidates.data[i].logit = mixed_[size_t(candidates.data[i].id)];
    }

    // The base's logits by id: candidates may come in any order.
    void read_base(const llama_token_data_array & candidates) {
        const size_t      n = candidates.size;
        std::vector<bool> seen(n, false);
        base_row_.resize(n);
        for (size_t i = 0; i < n; ++i) {
            const llama_token_data & at = candidates.data[i];
            if (at.id < 0 || size_t(at.id) >= n || seen[size_t(at.id)]) {
                throw Error(KAD_INVALID_ARGUMENT, "candidate " + std::to_string(i) + " has token id " +
                                                      std::to_string(at.id) + "; expected every id from 0 to " +
                                                      std::to_string(n - 1) + " once: this sampler must come first");
            }
            seen[size_t(at.id)]      = true;
            base_row_[size_t(at.id)] = at.logit;
        }
    }

    // log pi of the rows at hand into out[base_row_.size()].
    void mix_rows(float * out) {
        const EventSpace & events = setup_->events;
        const size_t       n      = events.size();
        pi_.resize(n);
        p_.assign(base_row_.begin(), base_row_.begin() + ptrdiff_t(n));
        q_.assign(aligned_logits_, aligned_logits_ + n);
        events.prepare(KAD_ROLE_BASE, p_.data());
        events.prepare(KAD_ROLE_ALIGNED, q_.data());
        if (reference_) prepare_reference();
        const kad_status status =
            kad_mixture(&setup_->rule, p_.data(), q_.data(), reference_ ? r_.data() : nullptr, n, 1, pi_.data());
        if (status != KAD_OK) throw Error(status, std::string(kad_last_error()));
        std::fill(out, out + base_row_.size(), -INFINITY); // a padded tail is never said
        for (size_t i = 0; i < n; ++i) out[i] = float(std::log(pi_[i]));
        // Folded at the lowest id of either model's; the host looks for one of the base's.
        if (setup_->end >= 0) std::swap(out[setup_->end], out[events.event(KAD_ROLE_BASE, setup_->end)]);
    }

    // Ids that the reference lacks are impossible for it.
    void prepare_reference() {
        const size_t n = setup_->events.size();
        r_.assign(n, -INFINITY);
        std::copy(reference_logits_, reference_logits_ + std::min(n, reference_->n_vocab()), r_.begin());
        setup_->events.prepare(KAD_ROLE_ALIGNED, r_.data());
    }

    // Only end of generation is left, where the rest allows it: at 1e6 below, a token's probability is exactly 0 as a
    // double at any temperature under 1000. Not -inf: under a grammar that does not allow the end here, a row of nothing but
    // -inf makes llama.cpp end the process.
    void force_end(llama_token_data_array & candidates) const noexcept {
        if (candidates.size == 0) return;
        constexpr float FAR = 1e6F;
        size_t          at  = 0; // an array without the end gets it in place of its first token
        for (size_t i = 0; i < candidates.size; ++i) {
            llama_token_data & token = candidates.data[i];
            token.logit              = std::isfinite(token.logit) ? token.logit - FAR : -INFINITY;
            if (token.id == setup_->end) at = i;
        }
        if (setup_->end >= 0) candidates.data[at] = { setup_->end, 0, 0 };
    }
};

// ---- llama.cpp's interface ----------------------------------------------------------------------------------------------

Plugin & plugin(const llama_sampler * sampler) { return *static_cast<Plugin *>(sampler->ctx); }

const char * plugin_name(const llama_sampler *) { return "kad"; }

void plugin_accept(llama_sampler * sampler, llama_token token) { plugin(sampler).accept(token); }

void plugin_apply(llama_sampler * sampler, llama_token_data_array * candidates) { plugin(sampler).apply(*candidates); }

void plugin_reset(llama_sampler * sampler) { plugin(sampler).reset(); }

llama_sampler * plugin_clone(const llama_sampler * sampler);

void plugin_free(llama_sampler * sampler) { delete &plugin(sampler); }

void plugin_copy(const llama_sampler * from, llama_sampler * to) { plugin(to).copy_state(plugin(from)); }

llama_sampler_i * callbacks() {
    static llama_sampler_i table = [] {
        llama_sampler_i f = {}; // no backend functions: this sampler runs on the host
        f.name            = plugin_name;
        f.accept          = plugin_accept;
        f.apply           = plugin_apply;
        f.reset           = plugin_reset;
        f.clone           = plugin_clone;
        f.free            = plugin_free;
        f.copy_state      = plugin_copy;
        return f;
    }();
    return &table;
}

// NULL only when there is no memory for the few bytes of a sampler.
llama_sampler * plugin_clone(const llama_sampler * sampler) {
    llama_sampler * clone = nullptr;
    guarded([&] {
        auto copy = std::make_unique<Plugin>(plugin(sampler));
        clone     = llama_sampler_init(callbacks(), copy.get());
        copy.release();
    });
    return clone;
}

Plugin & ours(const llama_sampler * sampler) {
    need(sampler, "sampler");
    if (sampler->iface == callbacks()) return plugin(sampler);
    throw Error(KAD_INVALID_ARGUMENT,
                "sampler is not one of kad_sampler_init(); expected that one or its clone, not the "
                "chain it was added to (llama_sampler_chain_get() finds it there)");
}

} // namespace

llama_sampler * make_sampler(const PluginOptions & options) {
    check_rule(options.rule);
    if (options.rule.temperature == KAD_RULE_TEMPERATURE_SAMPLING) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "rule temperature \"sampling\" cannot be used in a sampler: what temperature the "
                    "chain has is not known here; expected a number > 0");
    }
    const kad_rule_info & rule = rule_info(options.rule.kind);
    if ((rule.reference != 0) != (options.reference != nullptr)) {
        throw Error(KAD_INVALID_ARGUMENT, std::string("rule ") + rule.name +
                                              (rule.reference ? " needs a reference context: the small model before "
                                                                "alignment; reference is NULL"
                                                              : " uses no reference context; leave reference NULL"));
    }
    auto            made    = std::make_unique<Plugin>(options);
    llama_sampler * sampler = llama_sampler_init(callbacks(), made.get());
    made.release();
    return sampler;
}

void sampler_check(const llama_sampler * sampler) { ours(sampler).check(); }

Token sampler_end(const llama_sampler * sampler) { return ours(sampler).end(); }

void sampler_row(llama_sampler * sampler, std::vector<Token> ids, float * logits, size_t n_vocab) {
    ours(sampler).row(std::move(ids), logits, n_vocab);
}

} // namespace kad
