// A text's tokens when the tokeniser fails: tests/test_text_tokens.py reads the declaration between the marks.
#include <cstdint>

#include "runtime/text_bridge.h"

extern "C" {
/* text_tokens: begin */
// 64 times 64 pieces, each as a guess first and then as the text, by a tokeniser that gives a piece its own bytes and fails
// every `period`-th time (0: never); now and then all of the text at once. How often tokens were given that are not the text's bytes.
int32_t text_tokens_wrong(int32_t period, int32_t * failures);
/* text_tokens: end */
}

namespace {

class Bytes : public kad::Vocabulary {
public:
    int32_t         period = 0;
    mutable int32_t calls = 0, failures = 0;

    size_t              size() const override { return 256; }
    const std::string & bytes(kad::Token) const override { return none_; }
    kad::TokenKind      kind(kad::Token) const override { return kad::TokenKind::Text; }
    int32_t             type(kad::Token) const override { return 1; }

    std::vector<kad::Token> tokenize_continuation(const std::string & text) const override {
        if (period > 0 && ++calls % period == 0) {
            ++failures;
            throw kad::Error(KAD_MODEL_ERROR, "cannot be tokenised now");
        }
        return { text.begin(), text.end() };
    }

private:
    std::string none_;
};

int32_t wrong(kad::TextTokens & tokens, const std::string & text) try {
    return tokens.tokens(text) != std::vector<kad::Token>(text.begin(), text.end());
} catch (const kad::Error &) {
    return 0;
}

} // namespace

int32_t text_tokens_wrong(int32_t period, int32_t * failures) {
    Bytes vocabulary;
    vocabulary.period = period;
    kad::TextTokens text(vocabulary);
    int32_t         found = 0;
    std::string     said;
    for (int i = 0; i < 64 * 64; ++i) {
        const std::string next  = said + char('a' + i % 7) + (i % 5 == 0 ? " " : "");
        kad::TextTokens   ahead = text;
        found += wrong(ahead, next + "x") + wrong(ahead, next + "xy");
        found += wrong(text, next) + wrong(text, next);
        said = next;
        if (i % 512) continue;
        kad::TextTokens whole(vocabulary); // many pieces in one call, which goes on where it failed
        for (size_t call = 0; call <= said.size(); ++call) found += wrong(whole, said);
    }
    *failures = vocabulary.failures;
    return found;
}
