// The loop: guess, one base pass, draw, keep or correct. Plain, lazy and speculative runs differ in the guesses alone, so
// they compute the same text (method.md, sections 3 and 5).
#pragma once

#include "../core/draw.h"
#include "sequence.h"
#include "speaker.h"

namespace kad {

struct Settings {
    kad_rule    rule         = { KAD_RULE_DUAL, 0.4, 1.0 };
    size_t      n_ctx        = 0; // most tokens per model, prompt and text
    bool        reproducible = false;
    size_t      max_pass[2]  = { SIZE_MAX, SIZE_MAX }; // most rows per pass, by role
    std::string architecture[2];                       // for messages
};

class Generator {
public:
    // Either model may be NULL: rule base without an aligned model, rule aligned without a base. Models and events must
    // outlive the generator.
    Generator(LanguageModel * base, LanguageModel * aligned, const EventSpace & events, const Settings & settings);

    size_t max_draft() const;

    // Takes over the speakers' caches for this text. `wanted` is the mode asked for; what runs is in sequence.mode. The
    // sides' contexts hold the prompts; sides that the rule does not need are made inactive.
    void begin(Sequence & sequence, kad_mode wanted, size_t draft);

    // One piece of work: a block of a prompt, or one round. What is said goes to sequence.said. Throws; what was said until
    // then stands.
    void step(Sequence & sequence);

    // The row at the next position, as the rule sees it; events().size() floats.
    const float * event_row(Sequence & sequence, kad_role role);

    const EventSpace & events() const { return events_; }
    size_t             prompt_done(const Sequence & sequence) const;
    void               read_counts(const Sequence & sequence, kad_stats & stats) const;

private:
    const EventSpace &       events_;
    Settings                 settings_;
    std::unique_ptr<Speaker> speakers_[2];
    KeptSet                  kept_;
    std::vector<Token>       guesses_;

    void   choose_mode(Sequence & sequence, kad_mode wanted, size_t draft) const;
    bool   prefill(Sequence & sequence);
    void   round(Sequence & sequence);
    size_t room_for_guesses(const Sequence & sequence) const;
    void   guess(Sequence & sequence, size_t n);
    void   score(Sequence & sequence);
    Token  draw_event(Sequence & sequence, Said & said);
    bool   say(Sequence & sequence, Token event, Said & said);
    bool   finish_character(Sequence & sequence, Token event, Said & said);
    void   close(Sequence & sequence);
    // The row after this role's context, for the event that comes `ahead` events after the next.
    Row & row(Sequence & sequence, kad_role role, size_t ahead = 0);
};

} // namespace kad
