// Two vocabularies, one text (method.md, section 6).
//
// An event is what can be said next. With equal vocabularies it is a token id. Otherwise it is a byte string: the two models
// meet in the bytes of their tokens. EventSpace turns either model's row of logits into a row over events, so that core/
// sees two rows of one length and never asks which case it is. TextTokens keeps a model's own tokenisation of the text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "language_model.h"

namespace kad {

struct VocabularyComparison {
    bool               equal       = false; // same bytes and type for every id up to the smaller size
    double             overlap     = 0;     // share of the aligned model's text tokens whose bytes the base has too
    size_t             n_differing = 0;
    std::vector<Token> differing; // the first five
};

VocabularyComparison compare(const Vocabulary & base, const Vocabulary & aligned);

class EventSpace {
public:
    // Any vocabulary may be NULL: then events are the others' ids. A reference has the others' vocabulary.
    EventSpace(const Vocabulary * base, const Vocabulary * aligned, bool equal, const Vocabulary * reference = nullptr);

    const Vocabulary * vocabulary(kad_role role) const { return sides_[role].vocabulary; }

    size_t size() const { return n_events_; }
    bool   shared_ids() const { return shared_ids_; } // events are ids

    // Own logits of `role` as sampled from: control tokens, tokens without bytes and the padded tail are -inf; all
    // end-of-generation tokens are folded (logsumexp) at the lowest. out has row_size(role) floats.
    void   prepare(kad_role role, const float * logits, float * out) const;
    size_t row_size(kad_role role) const { return sides_[role].n; }

    // The id of `role` whose logit stands for `id` in a prepared row: the lowest end of generation for any of them.
    Token folded(kad_role role, Token id) const;

    // Where a prepared row of `role` has its end of generation; -1 when it has none.
    Token end_id(kad_role role) const { return sides_[role].ends.empty() ? -1 : sides_[role].ends[0]; }
    // Is text the spelling of an end of generation of either model?
    bool spells_end(const std::string & text) const;

    // A prepared (perhaps shaped) row over events: equal bytes are one event with summed probability, standing at the
    // lowest of its ids, base ids before aligned ones. With shared ids this is a copy. out has size() floats.
    void project(kad_role role, const float * row, float * out) const;

    bool                ends(Token event) const { return event == end_; }
    const std::string & bytes(Token event) const;
    // The lowest id of `role` that says this event; -1 when it has none.
    Token id(kad_role role, Token event) const;
    // The event that says id; -1 for one that cannot be drawn.
    Token event(kad_role role, Token id) const { return sides_[role].event_of[size_t(id)]; }
    // Where vocabularies differ: the lowest id of `role` that is this byte and no more; -1 when there is none.
    Token byte_id(kad_role role, uint8_t byte) const { return sides_[role].byte_ids[byte]; }

private:
    struct Side {
        const Vocabulary * vocabulary = nullptr;
        size_t             n          = 0; // ids that take part
        std::vector<Token> forbidden;      // ids set to -inf
        std::vector<Token> ends;           // ids folded at ends[0]
        std::vector<Token> event_of;       // id -> event, -1
        std::vector<Token> id_of;          // event -> lowest id, -1
        std::vector<Token> merged;         // ids that share their event with a lower id
        std::vector<Token> byte_ids;       // 256, where vocabularies differ
    };

    Side   sides_[ROLE_COUNT];
    size_t n_events_   = 0;
    bool   shared_ids_ = true;
    Token  end_        = -1;

    void share_ids();
    void merge_bytes();
    void fill(Side & side, size_t n, const std::vector<bool> & ends);
};

// A model's own tokenisation of the text so far: a function of the text, whoever said what. The text is cut where a word
// begins after a word, or a line after a single line break (positions that the text alone determines and that tokenisers respect),
// and after 1,024 bytes
// at the latest (there a tokeniser may have joined what the cut parts); pieces are tokenised apart, so the cost of an event does not grow with the text.
class TextTokens {
public:
    explicit TextTokens(const Vocabulary & vocabulary) : vocabulary_(vocabulary) {}

    // Tokens of a text that extends (or is) the one given before. Valid until the next call.
    const std::vector<Token> & tokens(const std::string & text);

private:
    const Vocabulary & vocabulary_;
    size_t             cut_     = 0; // bytes before this are settled
    size_t             settled_ = 0; // tokens of those bytes
    std::vector<Token> tokens_;
};

// The next cut after `from`, or npos while the text is too short to tell.
size_t next_cut(const std::string & text, size_t from);

} // namespace kad
