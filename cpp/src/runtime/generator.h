// The loop: guess, one base pass, draw, keep or correct. Plain, lazy and speculative runs differ in the guesses alone, so
// they compute the same text (method.md, sections 3 and 5).
#pragma once

#include <optional>

#include "../core/draw.h"
#include "sequence.h"
#include "speaker.h"

namespace kad {

struct Settings {
    kad_rule    rule                 = { KAD_RULE_DUAL, 0.4, 1.0 };
    size_t      n_ctx                = 0; // most tokens per model, prompt and text
    bool        reproducible         = false;
    size_t      max_pass[ROLE_COUNT] = { SIZE_MAX, SIZE_MAX, SIZE_MAX }; // most rows per pass
    std::string architecture[ROLE_COUNT];                                // for messages
};

// An event of a given text: its ids in the vocabulary of the model that said it. One; or, where vocabularies differ, the chain of
// tokens that a character took.
struct Given {
    kad_role           speaker;
    std::vector<Token> ids;
};

class Generator {
public:
    // models, by role: base may be NULL with rule aligned, aligned with rule base; a reference stands with implicit-reward
    // alone. Models and events must outlive the generator.
    Generator(LanguageModel * const (&models)[ROLE_COUNT], const EventSpace & events, const Settings & settings);

    size_t max_draft() const;

    // Takes over the speakers' caches for this text. `wanted` is the mode asked for; what runs is in sequence.mode. The
    // sides' contexts hold the prompts; sides that the rule does not need are made inactive.
    void begin(Sequence & sequence, kad_mode wanted, size_t draft);

    // One piece of work: a block of a prompt, or one round. What is said goes to sequence.said. Throws; what was said until
    // then stands.
    void step(Sequence & sequence);

    // What pi says of a given text after the prompt (scoring.cpp), on a sequence that was begun and not stepped: fields of Said
    // but source and guess. One entry per event; with by_token one per id, a character's first token as the event that it is,
    // the further ones by their speaker's own distribution. The sequence is ended by it. Throws before anything is evaluated
    // for ids that no model has and for a text that no context holds.
    std::vector<Said> score_text(Sequence & sequence, const std::vector<Given> & events, bool by_token);

    // The row at the next position, as the rule sees it; events().size() floats.
    const float * event_row(Sequence & sequence, kad_role role);

    const EventSpace & events() const { return events_; }
    size_t             prompt_done(const Sequence & sequence) const;
    void               read_counts(const Sequence & sequence, kad_stats & stats) const;

private:
    const EventSpace &       events_;
    Settings                 settings_;
    std::unique_ptr<Speaker> speakers_[ROLE_COUNT];
    KeptSet                  kept_;
    std::vector<Token>       guesses_;
    std::vector<float>       joint_row_, joint_shaped_; // log pi of implicit-reward
    Distribution             joint_;
    std::optional<Mixture>   pi_; // of the position at hand
    std::vector<float>       restricted_[ROLE_COUNT];

    bool is_joint() const { return rule_info(settings_.rule.kind).reference != 0; }

    void   choose_mode(Sequence & sequence, kad_mode wanted, size_t draft) const;
    bool   prefill(Sequence & sequence);
    void   round(Sequence & sequence);
    size_t room_for_guesses(const Sequence & sequence) const;
    void   guess(Sequence & sequence, size_t n);
    Token  guess_one(Sequence & sequence, size_t i);
    void   score(Sequence & sequence);

    Token         draw_event(Sequence & sequence, Said & said);
    Token         draw_alone(Sequence & sequence, Said & said, kad_role role);
    void          decide_kept(Sequence & sequence);
    void          mix(Sequence & sequence);
    const float * joint_logits(Sequence & sequence, const std::vector<uint8_t> * ok);
    void          mix_joint(Sequence & sequence, const float * logits);
    void          describe(Sequence & sequence, Token event, Said & said);
    void          describe_alone(const Distribution & spoken, kad_role role, Token event, Said & said);

    Constraint * constraint(Sequence & sequence) const;
    void         advance_constraint(Sequence & sequence, const Said & said, bool guessed_right);
    Error        nothing_allowed(const Sequence & sequence) const;
    Outcome      redraw_event(Sequence & sequence, Said & said);
    Outcome draw_restricted(Sequence & sequence, Said & said, const std::vector<uint8_t> & ok, const DrawCoins & coins);
    Outcome draw_joint_restricted(Sequence & sequence, const std::vector<uint8_t> & ok, const DrawCoins & coins);
    bool    restricted(kad_role role, const Row & row, const std::vector<uint8_t> & ok, Distribution & out);
    Token   allowed_draw(Constraint & state, kad_role role, const Row & row, double coin);

    bool  say(Sequence & sequence, Token event, Said & said);
    bool  append(Sequence & sequence, Token event, Said & said, bool & ended);
    bool  finish_character(Sequence & sequence, Token event, Said & said);
    Token further_token(Sequence & sequence, kad_role role, uint64_t i, Grammar * grammar, double & logprob);
    void  close(Sequence & sequence);

    struct Path;
    struct Character;
    void                check_given(const Given & event, size_t i) const;
    std::vector<Given>  join_characters(const std::vector<Given> & tokens) const;
    const std::string & bytes_of(const Given & event, size_t i) const;
    void follow(const Sequence & sequence, const Given & event, bool by_token, std::string & text, Path * paths) const;
    void lay_paths(Sequence & sequence, const std::vector<Given> & events, bool by_token, Path * paths) const;
    size_t rows_ahead(const Sequence & sequence, kad_role role) const;
    void   advance(Sequence & sequence, kad_role role, Path & path);
    Said   weigh(Sequence & sequence, Token event);
    void   weigh_event(Sequence & sequence, const Given & event, bool by_token, Path * paths, std::vector<Said> & out);

    // The row after this role's context, for the event that comes `ahead` events after the next.
    Row & row(Sequence & sequence, kad_role role, size_t ahead = 0);
};

} // namespace kad
