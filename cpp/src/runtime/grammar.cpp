// What may be said next under a GBNF grammar? llama.cpp's grammar sampler, asked and never drawn from.
#include <algorithm>
#include <cmath>

#include "abort_guard.h"
#include "gbnf.h"
#include "llama.h"
#include "llama_log.h"
#include "model.h"
#include "samplers.h"
#include "utf8.h"

namespace kad {

namespace {

struct Free {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};

using Sampler = std::unique_ptr<llama_sampler, Free>;

// llama.cpp takes the bytes of a token for whole characters without looking: a stray byte would swallow what follows it, a
// quote perhaps. So `open_`, the character that the text has begun, is kept here too.
class LlamaGrammar : public Grammar {
public:
    LlamaGrammar(const LlamaModel & model, Sampler sampler, std::string open = "")
        : model_(model), sampler_(std::move(sampler)), open_(std::move(open)) {}

    std::unique_ptr<Grammar> clone() const override {
        return std::make_unique<LlamaGrammar>(model_, Sampler(llama_sampler_clone(sampler_.get())), open_);
    }

    bool allows(Token id) override {
        if (!sayable(id)) return false;
        ask_.assign(1, { id, 0, 0 });
        apply();
        return ask_[0].logit == 0;
    }

    void restrict(uint8_t * ok, size_t n) override {
        ask_.clear();
        for (size_t i = 0; i < n; ++i) {
            if (!ok[i]) continue;
            ok[i] = i < model_.size() && sayable(Token(i));
            if (ok[i]) ask_.push_back({ Token(i), 0, 0 });
        }
        apply();
        for (const llama_token_data & asked : ask_) ok[asked.id] = asked.logit == 0;
    }

    void accept(Token id) override {
        if (id < 0 || size_t(id) >= model_.size() || model_.kind(id) == TokenKind::End || !allows(id)) {
            throw Error(KAD_INTERNAL_ERROR, "token " + std::to_string(id) + " was said against the grammar");
        }
        const LlamaLog   log(false);
        const AbortGuard guard;
        llama_sampler_accept(sampler_.get(), id);
        const std::string text = open_ + model_.bytes(id);
        open_                  = text.substr(text.size() - unfinished(text));
    }

private:
    const LlamaModel &            model_;
    Sampler                       sampler_;
    std::string                   open_;
    std::vector<llama_token_data> ask_;

    // Before the grammar is asked: is it a token with text, whole characters from where the text stands, or the end?
    bool sayable(Token id) const {
        if (id < 0 || size_t(id) >= model_.size()) return false;
        if (model_.kind(id) == TokenKind::End) return open_.empty();
        if (model_.kind(id) != TokenKind::Text) return false;
        const std::string & bytes = model_.bytes(id);
        if (bytes.find('\0') != std::string::npos) return false;
        const std::string text = open_ + bytes;
        return well_formed(text.substr(0, text.size() - unfinished(text)));
    }

    void apply() {
        if (ask_.empty()) return;
        const LlamaLog         log(false);
        const AbortGuard       guard;
        llama_token_data_array array = { ask_.data(), ask_.size(), -1, false };
        llama_sampler_apply(sampler_.get(), &array);
    }
};

// Why "<[12]>" or "<name>" names no token that can be said; "" when it does.
std::string check_token(const LlamaModel & model, const std::string & spelling) {
    Token id = -1;
    if (spelling.compare(0, 2, "<[") == 0) {
        const std::string digits = spelling.substr(2, spelling.size() - 4);
        if (spelling.size() < 5 || spelling[spelling.size() - 2] != ']' || digits.size() > 9 ||
            digits.find_first_not_of("0123456789") != std::string::npos) {
            return "expected <[id of a token]>";
        }
        id = Token(std::stol(digits));
        if (size_t(id) >= model.size()) return "expected a token id below " + std::to_string(model.size());
    } else {
        const std::vector<Token> ids = model.tokenize(spelling, true);
        if (ids.size() != 1) return "expected the spelling of one token, this is " + std::to_string(ids.size());
        id = ids[0];
    }
    return model.kind(id) == TokenKind::Text ? "" : "expected a token that can be said, this one is a control token";
}

} // namespace

std::unique_ptr<Grammar> make_grammar(const LlamaModel & model, const std::string & gbnf, const std::string & root,
                                      bool by_text) {
    const GrammarFacts facts =
        check_gbnf(gbnf, root, [&](const std::string & spelling) { return check_token(model, spelling); });
    if (by_text && !facts.token.empty()) {
        throw Error(KAD_INVALID_ARGUMENT, "grammar names a token, " + facts.token +
                                              ", and the two models' vocabularies differ; write it as text");
    }
    const LlamaLog   log(false);
    const AbortGuard guard;
    Sampler          sampler;
    std::string      why;
    try {
        sampler.reset(llama_sampler_init_grammar(model.vocab(), gbnf.c_str(), root.c_str()));
        why = log.reason();
    } catch (const std::exception & e) {
        why = std::string(": ") + e.what();
    }
    if (!sampler) {
        throw Error(KAD_INVALID_ARGUMENT, "grammar cannot be used by llama.cpp" + why +
                                              "; to it, repeating what may be empty is left recursion too");
    }
    return std::make_unique<LlamaGrammar>(model, std::move(sampler));
}

} // namespace kad
