// Two vocabularies, one text (method.md, section 6).
//
// An event is what can be said next. With equal vocabularies it is a token id. Otherwise it is a byte string: the two models
// meet in the bytes of their tokens. EventSpace turns either model's row of logits into a row over events, so that core/
// sees two rows of one length and never asks which case it is. TextTokens keeps a model's own tokenisation of the text.
//
// Events are numbered in the order in which draws go through them: base ids, then aligned ids, an event at its lowest id. An
// event that the base has is numbered by its lowest base id, so that a base row is a row over events as it stands, but for the
// few ids of equal bytes; numbers of ids that are no event of their own are never drawn.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../core/logits.h"
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

    // Makes a model's logits, in place, those it is sampled from: control tokens, tokens without bytes and the padded tail are
    // -inf; all end-of-generation tokens are folded (logsumexp) at the lowest. A prepared row is the first row_size(role) of them.
    void   prepare(kad_role role, float * logits) const;
    size_t row_size(kad_role role) const { return sides_[role].n; }

    // The id of `role` whose logit stands for `id` in a prepared row: the lowest end of generation for any of them.
    Token folded(kad_role role, Token id) const;

    // Where a prepared row of `role` has its end of generation; -1 when it has none.
    Token end_id(kad_role role) const { return sides_[role].ends.empty() ? -1 : sides_[role].ends[0]; }
    // Is text the spelling of an end of generation of either model?
    bool spells_end(const std::string & text) const;

    // Where vocabularies differ: a prepared (perhaps shaped) row over the events that this role can say, in the order of
    // events: entries(role) floats, entry i of which stands for the event that support(role) tells. Equal bytes are one event
    // with summed probability. The result lies in `buffer`.
    const float * project(kad_role role, const float * row, std::vector<float> & buffer) const;
    // Where the entries are the ids themselves (the base's): the same in place, without a copy of the row. `own` keeps what it
    // overwrites; restore() brings the row over ids back.
    bool            in_place(kad_role role) const { return !shared_ids_ && sides_[role].support.events.empty(); }
    void            project_in_place(kad_role role, float * row, std::vector<float> & own) const;
    void            restore(kad_role role, float * row, const std::vector<float> & own) const;
    size_t          entries(kad_role role) const { return sides_[role].n_entries; }
    const Support * support(kad_role role) const { return shared_ids_ ? nullptr : &sides_[role].support; }
    // The same over all events, with -inf where there is no entry: size() floats.
    void spread(kad_role role, const float * entries, float * out) const;

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
        size_t             n_entries = 0;  // of a projected row
        std::vector<Token> entry_ids;      // the lowest id of each entry, unless they are the ids themselves
        Support            support;        // which events they are
        std::vector<Token> byte_ids;       // 256, where vocabularies differ
    };

    Side   sides_[ROLE_COUNT];
    size_t n_events_   = 0;
    bool   shared_ids_ = true;
    Token  end_        = -1;

    void share_ids();
    void merge_bytes();
    void list_entries();
    void fill(Side & side, size_t n, const std::vector<bool> & ends);
};

// A model's own tokenisation of the text so far: a function of the text, whoever said what. The text is cut where a word
// begins after a word, or a line after a single line break (positions that the text alone determines and that tokenisers respect),
// and after 1,024 bytes
// at the latest (there a tokeniser may have joined what the cut parts); pieces are tokenised apart, so the cost of an event does not grow with the text.
// A guess that proves right is the text a moment later: the last pieces are remembered, by copies of this object together.
class TextTokens {
public:
    explicit TextTokens(const Vocabulary & vocabulary)
        : vocabulary_(&vocabulary), last_(std::make_shared<LastPieces>()) {}

    // Tokens of a text that extends (or is) the one given before. Valid until the next call.
    const std::vector<Token> & tokens(const std::string & text);

    // Goes on in `context`, which holds the text's tokens so far after n_prompt others: what agrees is kept.
    void follow(const std::string & text, size_t n_prompt, std::vector<Token> & context);

private:
    struct LastPieces {
        static constexpr size_t N = 64; // more than the longest draft
        std::string             text[N];
        std::vector<Token>      tokens[N];
        size_t                  next = 0;
    };

    const Vocabulary *          vocabulary_;
    size_t                      cut_     = 0; // bytes before this are settled
    size_t                      settled_ = 0; // tokens of those bytes
    std::vector<Token>          tokens_;
    std::string                 piece_;
    std::shared_ptr<LastPieces> last_;

    void add_piece(const std::string & text, size_t from, size_t length);
};

// The next cut after `from`, or npos while the text is too short to tell.
size_t next_cut(const std::string & text, size_t from);

} // namespace kad
