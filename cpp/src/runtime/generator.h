// The loop: guess, one base pass, draw, keep or correct. Plain, lazy and speculative runs differ in the guesses alone, so
// they compute the same text (method.md, sections 3 and 5).
#pragma once

#include <optional>

#include "../core/draw.h"
#include "sequence.h"
#include "speaker.h"

namespace kad {

// Most guesses of a round whose length the pacer chooses.
inline constexpr size_t AUTO_DRAFT = 15;

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

// One loop for any number of texts: their drafts are made in shared passes, their guesses scored in shared passes, and each is
// drawn by itself. One text is the common case, not another one.
class Generator {
public:
    // models, by role: base may be NULL with rule aligned, aligned with rule base; a reference stands with implicit-reward
    // alone. Models and events must outlive the generator.
    Generator(LanguageModel * const (&models)[ROLE_COUNT], const EventSpace & events, const Settings & settings);

    size_t max_draft() const;
    size_t max_texts() const { return occupants_.size(); }

    // Gives the text a slot of the caches and makes the speakers ready for it. `wanted` is the mode asked for; what runs is in
    // sequence.mode. The sides' contexts hold the prompts; sides that the rule does not need are made inactive. With no slot free
    // the text that was begun first is superseded. A text must leave before it is destroyed.
    void begin(Sequence & sequence, kad_mode wanted, size_t draft);
    bool has(const Sequence & sequence) const;
    void leave(const Sequence & sequence);

    // One piece of work for each of these texts: a block of a prompt, or one round. What is said goes to sequence.said, what
    // went wrong in one text to its failure. Throws what stopped them all; what was said until then stands.
    void step(const std::vector<Sequence *> & texts);

    // What pi says of a given text after the prompt (scoring.cpp), on a sequence that was begun and not stepped: fields of Said
    // but source and guess. One entry per event; with by_token one per id, a character's first token as the event that it is,
    // the further ones by their speaker's own distribution. The sequence is ended by it. Throws before anything is evaluated
    // for ids that no model has and for a text that no context holds.
    std::vector<Said> score_text(Sequence & sequence, const std::vector<Given> & events, bool by_token);

    // The row at the next position, as the rule sees it, into out: events().size() floats.
    void event_row(Sequence & sequence, kad_role role, float * out);

    const EventSpace & events() const { return events_; }
    size_t             prompt_done(const Sequence & sequence) const;
    void               read_counts(const Sequence & sequence, kad_stats & stats) const;

private:
    using Texts = std::vector<Sequence *>;

    const EventSpace &            events_;
    Settings                      settings_;
    std::unique_ptr<Stage>        stages_[ROLE_COUNT];
    std::vector<const Sequence *> occupants_; // by slot
    std::vector<uint64_t>         begun_;     // by slot: the number of its text
    uint64_t                      n_begun_ = 0;
    Shares                        earlier_;   // how guesses went in texts that were paced
    DrawTime                      draw_time_; // what draws took in all rounds

    // Of the step under way.
    Texts                           running_, pending_;
    std::vector<Want>               wants_[ROLE_COUNT];
    std::vector<float>              joint_row_, joint_shaped_; // log pi of implicit-reward
    Distribution                    joint_;
    std::optional<Mixture>          pi_; // of the position at hand
    std::vector<float>              restricted_[ROLE_COUNT];
    std::vector<std::vector<Token>> paths_;   // contexts after each guess
    std::vector<int>                classes_; // of the n-gram table's guesses

    bool      is_joint() const { return rule_info(settings_.rule.kind).reference != 0; }
    Speaker & speaker(const Sequence & sequence, kad_role role) const { return stages_[role]->speaker(sequence.slot); }

    // Rows that a speaker keeps: after the text and after each guess. Where vocabularies differ a guess may be several tokens of
    // the base, whose rows are not copied; the aligned model's are, and a pass over more of its tokens scores fewer guesses.
    size_t rows_kept(const Sequence & sequence, kad_role role) const {
        return (events_.shared_ids() || role == KAD_ROLE_ALIGNED ? 1 : 4) * (sequence.draft + 2);
    }
    void   choose_mode(Sequence & sequence, kad_mode wanted, size_t draft) const;
    void   limit_draft(Sequence & sequence, kad_mode wanted, size_t draft) const;
    size_t choose_slot(const Sequence & sequence) const;
    void   take_slot(Sequence & sequence);

    void   prefill(const Texts & texts);
    bool   prefill(Sequence & sequence);
    void   adopt_prompt(Sequence & sequence);
    size_t cells_for(const Sequence & sequence, kad_role role) const;
    void   choose_running(const Texts & texts);
    void   round(const Texts & texts);
    double passes_seconds() const;

    // drafting.cpp: where guesses come from, and the passes that score them.
    void   begin_round(Sequence & sequence, size_t n_texts);
    size_t room_for_guesses(const Sequence & sequence) const;
    void   plan_round(Sequence & sequence, size_t room, size_t n_texts);
    void   take_table_guesses(Sequence & sequence);
    void   draft(const Texts & texts);
    bool   draft_one(Sequence & sequence);
    bool   read_along(Sequence & sequence);
    void   compare_with_table(Sequence & sequence, Token guess);
    Token  guess_one(Sequence & sequence, double & confidence);
    bool   add_guess(Sequence & sequence, Guess guess);
    void   advance_guessed(Sequence & sequence, kad_role role, const std::vector<Token> & ids);
    void   verify(const Texts & texts);
    void   lay(Sequence & sequence, kad_role role);
    size_t lay_paths(Sequence & sequence, kad_role role, size_t n);
    Want   want(Sequence & sequence, kad_role role);
    bool   wants_rows(Sequence & sequence);
    void   start_pacing(Sequence & sequence);
    void   pace(Sequence & sequence, Token event, const Said & said);

    void draw(const Texts & texts);
    bool draw_on(Sequence & sequence);
    bool draw_next(Sequence & sequence);
    bool base_may_decide(const Sequence & sequence) const;
    bool needs_both(const Sequence & sequence) const;
    class DrawTimer;
    Token         timed_draw(Sequence & sequence, Said & said);
    bool          drawn_without_aligned(Sequence & sequence);
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
    bool    restricted(Sequence & sequence, kad_role role, const Row & row, const std::vector<uint8_t> & ok,
                       Distribution & out);
    Token   allowed_draw(Sequence & sequence, Constraint & state, kad_role role, const Row & row, double coin);

    // A character that `role` goes on with: where its context stands, which event it is, and the grammar before it.
    struct Unfinished {
        kad_role             role;
        std::vector<Token> & context;
        uint64_t             event;
        Constraint *         constraint;
    };
    int   guess_mark(Sequence & sequence, Token event, const std::string & bytes);
    bool  say(Sequence & sequence, Token event, Said & said);
    bool  append(Sequence & sequence, Token event, Said & said, bool & ended);
    bool  finish_character(Sequence & sequence, const Unfinished & at, Said & said);
    Token further_token(Sequence & sequence, const Unfinished & at, uint64_t i, Grammar * grammar, double & logprob);
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

    // The row after this role's context, for the next event.
    Row & row(Sequence & sequence, kad_role role);
};

} // namespace kad
