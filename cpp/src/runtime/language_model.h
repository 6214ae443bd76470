// What the loop needs of a model, a vocabulary and a sampler chain; llama.cpp implements it in model.cpp, tables of numbers
// implement it in the tests.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../core/notation.h"

namespace kad {

class Workers;

inline constexpr kad_role ROLES[]    = { KAD_ROLE_BASE, KAD_ROLE_ALIGNED, KAD_ROLE_REFERENCE };
inline constexpr int      ROLE_COUNT = 3;

inline const char * role_name(kad_role role) {
    return role == KAD_ROLE_BASE ? "base" : role == KAD_ROLE_ALIGNED ? "aligned" : "reference";
}

// A part of a pass: tokens that go on with one slot of the cache.
struct Piece {
    size_t        slot;
    const Token * tokens;
    size_t        n;      // at least 1
    size_t        at;     // position of the first: what the slot holds before
    size_t        n_rows; // rows wanted, after the last n_rows tokens
};

// One model and its cache, which holds several texts: one to a slot.
class LanguageModel {
public:
    virtual ~LanguageModel() = default;

    virtual size_t n_vocab() const      = 0; // width of a row
    virtual size_t n_ctx() const        = 0; // most tokens in a slot
    virtual size_t n_slots() const      = 0;
    virtual bool   shares_cells() const = 0; // do all slots together hold n_ctx() tokens, and can copy() be used?
    virtual size_t max_batch() const    = 0; // most tokens per evaluate()
    virtual size_t max_rows() const     = 0; // most rows per evaluate()
    virtual bool   can_rewind() const   = 0; // can drop() keep a part of a slot?

    // Appends each piece to its slot; no slot comes twice. Afterwards row(i) is the i-th of the rows wanted, in the order of
    // the pieces. Throws; then the slots hold unknown numbers of tokens >= at. A pass that wants no row may still be running
    // when this returns: synchronize() waits for it, and so does row().
    virtual void evaluate(const Piece * pieces, size_t n_pieces) = 0;
    virtual void synchronize()                                   = 0;

    // n_vocab() logits until the next evaluate(); the caller may write to them.
    virtual float * row(size_t i) = 0;

    // The threads that evaluate, while nothing is evaluated; NULL for none but the caller's.
    virtual Workers * workers() { return nullptr; }

    // Keeps the first `keep` tokens of a slot. With can_rewind() false only 0 is allowed.
    virtual void drop(size_t slot, size_t keep) = 0;

    // An empty slot gets the first n tokens of another; cells are shared, nothing is evaluated.
    virtual void copy(size_t from, size_t to, size_t n) = 0;
};

enum class TokenKind { Text, Control, End, Empty };

class Vocabulary {
public:
    virtual ~Vocabulary() = default;

    virtual size_t              size() const          = 0;
    virtual const std::string & bytes(Token id) const = 0; // of a control token: its spelling
    virtual TokenKind           kind(Token id) const  = 0;
    virtual int32_t             type(Token id) const  = 0; // llama.cpp's token type, for comparing vocabularies

    // Tokenises valid UTF-8 that continues a text: special-token spellings are plain text, no space is put before the first
    // word, no BOS.
    virtual std::vector<Token> tokenize_continuation(const std::string & text) const = 0;
};

// A speaker's samplers: a function of its context, the event's number and the row, so that guesses, rewinds and runs that
// catch up need no state of it. Reads n prepared logits, writes them shaped (dropped tokens -inf), before the temperature.
class Shaper {
public:
    virtual ~Shaper() = default;

    // context: the n_context ids of the speaker's own context that the row follows, prompt and text. event: its number t.
    virtual void shape(const Token * context, size_t n_context, uint64_t event, const float * logits, float * shaped,
                       size_t n) = 0;
};

// What may be said next, over the ids of one vocabulary. Its state is what was accepted.
class Grammar {
public:
    virtual ~Grammar() = default;

    virtual std::unique_ptr<Grammar> clone() const = 0;

    // May this token be said next? Of an End token: may the text end here?
    virtual bool allows(Token id) = 0;

    // The same for all n ids at once: ok[id] becomes 0 where it is not allowed; entries that are 0 already are not asked.
    virtual void restrict(uint8_t * ok, size_t n) = 0;

    // Advances over a token that allows() is true of, which is no End token. Throws, and stays as it was, for another one.
    virtual void accept(Token id) = 0;
};

} // namespace kad
