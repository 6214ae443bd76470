// One sequence in a context that belongs to the host program: made to hold given tokens, whatever it held before.
// Everything that would make llama.cpp end the process is checked first.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../core/notation.h"

struct llama_context;

namespace kad {

class HostSequence {
public:
    // Takes over sequence `id` of the context, which must be empty, until destroyed. The context must outlive this. `who`
    // names the model in messages.
    HostSequence(llama_context * context, int32_t id, const std::string & who);
    ~HostSequence(); // gives the sequence back, empty
    HostSequence(const HostSequence &)             = delete;
    HostSequence & operator=(const HostSequence &) = delete;

    // The same tokens in a free sequence of the same context. Throws KAD_BAD_STATE when none is free.
    std::unique_ptr<HostSequence> copy() const;

    // Brings the sequence to exactly these tokens: the common prefix stays, the rest goes, what is missing is evaluated.
    // Gives the n_vocab() logits after the last token, until the next call. When it throws, the next call starts from what
    // the cache still holds.
    const float * follow(const std::vector<Token> & tokens);

    size_t n_vocab() const { return n_vocab_; }

private:
    llama_context *    context_;
    int32_t            id_;
    std::string        who_;
    size_t             n_vocab_, n_ctx_;
    bool               keeps_history_ = true; // false: recurrent and hybrid models
    std::vector<Token> tokens_;               // in the cache
    std::vector<float> row_;                  // logits after tokens_, empty when they are not known

    std::string name() const;
    void        check(const std::vector<Token> & tokens) const;
    void        check_untouched();
    void        clear();
    void        rewind(size_t keep);
    bool        holds_window(size_t keep) const;
    void        evaluate(const std::vector<Token> & tokens);
    void        decode(Token * tokens, size_t n, bool with_row);
};

} // namespace kad
