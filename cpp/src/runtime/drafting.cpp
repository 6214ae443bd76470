// Where guesses come from, and the passes that score them (method.md, sections 3, 5 and 6). Nothing here can change the text: a
// guess says how far a round may go, and which rows are made together.
#include <algorithm>

#include "generator.h"
#include "timer.h"
#include "utf8.h"

namespace kad {

static bool begins_with(const std::vector<Token> & longer, const std::vector<Token> & shorter) {
    return shorter.size() <= longer.size() && std::equal(shorter.begin(), shorter.end(), longer.begin());
}

// ---- What a round will guess ------------------------------------------------------------------------------------------

size_t Generator::room_for_guesses(const Sequence & sequence) const {
    size_t room = std::min(sequence.draft, size_t(sequence.max_tokens) - sequence.events - 1);
    for (const Side & side : sequence.sides) {
        if (side.active) room = std::min(room, settings_.n_ctx - side.context.size());
    }
    return room;
}

// The grammar's states of the last round give way to the one before the next event.
static void reset_states(Sequence & sequence) {
    auto & states = sequence.constraints;
    if (states.empty()) return;
    std::swap(states[0], states[sequence.constrained]);
    states.erase(states.begin() + 1, states.end());
    sequence.constrained = 0;
}

void Generator::begin_round(Sequence & sequence, size_t n_texts) {
    Round & now = sequence.now;
    now.guesses.clear();
    now.said         = 0;
    now.decided      = false;
    now.as_table     = true;
    now.table_stands = true;
    now.plan         = {};
    reset_states(sequence);
    for (Side & side : sequence.sides) {
        if (!side.active) continue;
        side.ahead  = side.context;
        side.scored = 0;
        if (!events_.shared_ids()) side.ahead_tokens = *side.tokens;
    }
    const size_t room = room_for_guesses(sequence);
    if (sequence.mode == KAD_MODE_SPECULATIVE) now.plan = { Plan::Drafter::Aligned, room };
    if (sequence.pacer) plan_round(sequence, room, n_texts);
    if (now.plan.drafter == Plan::Drafter::NGram) take_table_guesses(sequence);
    now.drafting = now.plan.drafter == Plan::Drafter::Aligned && now.plan.guesses > 0;
}

// Adds a guess; false when nothing can be guessed after it: it ends the text, or the aligned model's context has no room.
bool Generator::add_guess(Sequence & sequence, Guess guess) {
    Side & aligned = sequence.sides[KAD_ROLE_ALIGNED];
    if (events_.ends(guess.event)) {
        sequence.now.guesses.push_back(std::move(guess));
        return false;
    }
    if (events_.shared_ids()) {
        for (Side & side : sequence.sides) {
            if (side.active) side.ahead.push_back(guess.event);
        }
    } else {
        const Timer timer(sequence.text_s);
        std::string text = sequence.text;
        for (const Guess & each : sequence.now.guesses) text += each.bytes;
        std::vector<Token> ahead = aligned.ahead;
        aligned.ahead_tokens->follow(text + guess.bytes, aligned.n_prompt, ahead);
        if (ahead.size() > settings_.n_ctx) return false;
        aligned.ahead.swap(ahead);
    }
    sequence.now.guesses.push_back(std::move(guess));
    aligned.scored = sequence.now.guesses.size();
    return true;
}

// The grammar's state behind a guess that was added.
void Generator::advance_guessed(Sequence & sequence, kad_role role, const std::vector<Token> & ids) {
    if (sequence.constraints.empty()) return;
    Constraint next = sequence.constraints.back().clone();
    next.accept(role, ids);
    sequence.constraints.push_back(std::move(next));
}

// ---- The aligned model drafts -----------------------------------------------------------------------------------------

// All texts that draft make one guess each, from one pass, until none goes on.
void Generator::draft(const Texts & texts) {
    pending_ = texts;
    for (;;) {
        auto & wants = wants_[KAD_ROLE_ALIGNED];
        wants.clear();
        pending_.erase(std::remove_if(pending_.begin(), pending_.end(), [](Sequence * s) { return !s->now.drafting; }),
                       pending_.end());
        if (pending_.empty()) return;
        for (Sequence * sequence : pending_) {
            Side &     side  = sequence->sides[KAD_ROLE_ALIGNED];
            const bool along = sequence->now.guesses.empty() && read_along(*sequence);
            wants.push_back(
                { &speaker(*sequence, KAD_ROLE_ALIGNED), along ? &side.along : &side.ahead, side.ahead.size() });
        }
        stages_[KAD_ROLE_ALIGNED]->make_rows(wants);
        for (Sequence * sequence : pending_) sequence->now.drafting = draft_one(*sequence);
    }
}

// The context that the aligned model's first pass of a round reads: with guesses of the n-gram table, so that its own guesses
// come out of one pass as long as they are the same. They are its own draws all the same, by the same coins.
bool Generator::read_along(Sequence & sequence) {
    const Round & now  = sequence.now;
    Side &        side = sequence.sides[KAD_ROLE_ALIGNED];
    if (now.plan.along == 0) return false;
    side.along = side.ahead;
    if (events_.shared_ids()) {
        for (size_t i = 0; i < now.plan.along; ++i) side.along.push_back(now.table[i].event);
    } else {
        const Timer timer(sequence.text_s);
        std::string text = sequence.text;
        for (size_t i = 0; i < now.plan.along; ++i) text += events_.bytes(now.table[i].event);
        side.ahead_tokens = *side.tokens;
        side.ahead_tokens->follow(text, side.n_prompt, side.along);
        side.ahead_tokens = *side.tokens;
    }
    const size_t most = std::min(settings_.n_ctx, side.ahead.size() + rows_kept(sequence, KAD_ROLE_ALIGNED) - 1);
    return side.along.size() <= most && begins_with(side.along, side.ahead);
}

// The next guess, the aligned model's own x_t, by the very coin that the draw at t will use: right with probability
// 1 - TV(pi, q'). Where a grammar refuses x_t, the draw at t will redraw: the guess is that proposal, by its coin. True when
// another guess is to follow. Guesses may go where the text never does: a row that cannot be drawn from is the draw's to
// report, should the text come there.
bool Generator::draft_one(Sequence & sequence) try {
    Round &     now        = sequence.now;
    double      confidence = 0;
    const Token x          = guess_one(sequence, confidence);
    if (x < 0) return false; // the aligned model has nothing to say there
    Said said;
    said.ids   = { events_.id(KAD_ROLE_ALIGNED, x) };
    said.bytes = events_.shared_ids() ? std::string() : events_.bytes(x);
    // A character that it starts is a character that it will finish, by the same coins.
    if (!events_.shared_ids() && !events_.ends(x) && unfinished(said.bytes)) {
        std::vector<Token> context = sequence.sides[KAD_ROLE_ALIGNED].ahead;
        Constraint *       state   = sequence.constraints.empty() ? nullptr : &sequence.constraints.back();
        const uint64_t     event   = sequence.events + now.guesses.size();
        if (finish_character(sequence, { KAD_ROLE_ALIGNED, context, event, state }, said)) return false;
        if (context.size() > settings_.n_ctx) return false;
    }
    if (!add_guess(sequence, { x, said.bytes, confidence })) return false;
    advance_guessed(sequence, KAD_ROLE_ALIGNED, said.ids);
    const size_t guessed = now.guesses.size();
    if (!sequence.pacer) return guessed < now.plan.guesses;
    compare_with_table(sequence, x);
    if (guessed >= now.plan.guesses) return false;
    const bool at_hand = now.plan.along > 0 && now.as_table && guessed <= now.plan.along;
    return sequence.pacer->go_on(guessed, confidence, at_hand ? now.plan.along - guessed + 1 : 0);
} catch (const Error & error) {
    if (error.status != KAD_NOT_A_NUMBER && error.status != KAD_MODEL_ERROR) throw;
    return false;
}

void Generator::compare_with_table(Sequence & sequence, Token guess) {
    Round &      now = sequence.now;
    const size_t at  = now.guesses.size() - 1;
    now.as_table     = now.as_table && at < now.table.size();
    if (!now.as_table) return;
    now.as_table = now.table[at].event == guess;
    sequence.pacer->guessed_along(now.table[at].match, now.as_table);
}

Token Generator::guess_one(Sequence & sequence, double & confidence) {
    const uint64_t event = sequence.events + sequence.now.guesses.size();
    Row &          row   = speaker(sequence, KAD_ROLE_ALIGNED).row(sequence.sides[KAD_ROLE_ALIGNED].ahead, event);
    Token          x     = row.spoken.draw(sequence.coins(event, PURPOSE_PROPOSAL));
    if (!sequence.constraints.empty() && !sequence.constraints.back().allows(x)) {
        const double coin = sequence.coins(event, PURPOSE_REDRAW);
        x                 = allowed_draw(sequence, sequence.constraints.back(), KAD_ROLE_ALIGNED, row, coin);
    }
    if (x >= 0) confidence = row.spoken.probability(x);
    return x;
}

// ---- The base scores --------------------------------------------------------------------------------------------------

// The base's rows after the text and after each guess, in one pass; so the reference's.
void Generator::verify(const Texts & texts) {
    for (const kad_role role : { KAD_ROLE_BASE, KAD_ROLE_REFERENCE }) {
        wants_[role].clear();
        for (Sequence * sequence : texts) {
            if (!sequence->sides[role].active) continue;
            lay(*sequence, role);
            wants_[role].push_back(want(*sequence, role));
        }
        if (!wants_[role].empty()) stages_[role]->make_rows(wants_[role]);
    }
}

// The context that a pass over the guesses not yet said evaluates, in `ahead`, and how many guesses it scores.
//
// With one vocabulary: the text and all guesses. Otherwise each model reads its own tokens of the text: C_i, those of the text
// and the first i guesses, need be no prefix of C_j for i < j. The row for the event after i guesses comes out of a pass over
// C_j when C_i is a prefix of it. The j taken is the one that scores the longest run C_0, C_1, ...: a round ends where the
// next row is missing. j = 0 scores one, so every pass makes progress.
void Generator::lay(Sequence & sequence, kad_role role) {
    Side &        side = sequence.sides[role];
    const Round & now  = sequence.now;
    size_t        most = now.guesses.size(); // guesses that a pass may go over: the end of the text is none
    if (most > 0 && events_.ends(now.guesses.back().event)) --most;
    side.scored = most;
    if (events_.shared_ids() || most <= now.said) return;
    const size_t n_paths = lay_paths(sequence, role, most - now.said);
    side.scored          = now.said;
    size_t best          = 0;
    for (size_t j = 1; j < n_paths; ++j) {
        size_t run = 0;
        while (run <= j && begins_with(paths_[j], paths_[run])) ++run;
        if (run == 0 || now.said + run - 1 <= side.scored) continue;
        best        = j;
        side.scored = now.said + run - 1;
    }
    side.ahead = paths_[best];
}

// C_0, C_1, ..., C_n into paths_, as far as the context and the rows that are kept have room; their number.
size_t Generator::lay_paths(Sequence & sequence, kad_role role, size_t n) {
    const Timer timer(sequence.text_s);
    Side &      side = sequence.sides[role];
    if (paths_.size() < n + 1) paths_.resize(n + 1);
    side.ahead_tokens = *side.tokens;
    paths_[0]         = side.context;
    std::string text  = sequence.text;
    for (size_t i = 1; i <= n; ++i) {
        text += sequence.now.guesses[sequence.now.said + i - 1].bytes;
        paths_[i] = paths_[i - 1];
        side.ahead_tokens->follow(text, side.n_prompt, paths_[i]);
        const size_t most = std::min(settings_.n_ctx, side.context.size() + rows_kept(sequence, role) - 1);
        if (paths_[i].size() > most) return i;
    }
    return n + 1;
}

// The rows of a role from the text as it stands, and as far as the round's guesses go on from it.
Want Generator::want(Sequence & sequence, kad_role role) {
    Side & side = sequence.sides[role];
    // More rows than are kept would overwrite the first, which is the one that is needed.
    const bool guided = sequence.now.said <= side.scored && begins_with(side.ahead, side.context) &&
                        side.ahead.size() - side.context.size() < rows_kept(sequence, role);
    return { &speaker(sequence, role), guided ? &side.ahead : &side.context, side.context.size() };
}

// Does the next event need rows that are not at hand? They are then in wants_.
bool Generator::wants_rows(Sequence & sequence) {
    const auto lacks = [&](kad_role role) {
        const Side & side = sequence.sides[role];
        return side.active && !speaker(sequence, role).has_row(side.context);
    };
    bool any = false;
    for (const kad_role role : { KAD_ROLE_BASE, KAD_ROLE_REFERENCE }) {
        if (!lacks(role)) continue;
        wants_[role].push_back(want(sequence, role));
        any = true;
    }
    if (any || !lacks(KAD_ROLE_ALIGNED)) return any;
    if (sequence.sides[KAD_ROLE_BASE].active && !needs_both(sequence) && drawn_without_aligned(sequence)) return false;
    if (sequence.now.plan.drafter == Plan::Drafter::NGram) lay(sequence, KAD_ROLE_ALIGNED);
    wants_[KAD_ROLE_ALIGNED].push_back(want(sequence, KAD_ROLE_ALIGNED));
    return true;
}

// ---- Pacing -----------------------------------------------------------------------------------------------------------

void Generator::start_pacing(Sequence & sequence) {
    const auto & reference = stages_[KAD_ROLE_REFERENCE];
    if (!stages_[KAD_ROLE_BASE] || !stages_[KAD_ROLE_ALIGNED]) return;
    sequence.pacer = std::make_unique<Pacer>(stages_[KAD_ROLE_BASE]->times, stages_[KAD_ROLE_ALIGNED]->times,
                                             reference ? &reference->times : nullptr, draw_time_, earlier_);
    // The aligned model's prompt: with one vocabulary both have the same.
    for (const Token id : sequence.sides[KAD_ROLE_ALIGNED].context) {
        const bool known = size_t(id) < events_.row_size(KAD_ROLE_ALIGNED);
        sequence.table.append(known ? events_.event(KAD_ROLE_ALIGNED, id) : NGramTable::NOTHING);
    }
}

void Generator::plan_round(Sequence & sequence, size_t room, size_t n_texts) {
    Round &    now = sequence.now;
    PaceLimits limits;
    limits.guesses = room;
    limits.lazy    = !needs_both(sequence);
    limits.texts   = n_texts;
    sequence.table.guess(std::max<size_t>(room, 1), now.table);
    classes_.clear();
    for (const NGramTable::Guess & guess : now.table) {
        // A table does not know how a character goes on that it has only the first token of.
        const bool whole = events_.shared_ids() || events_.ends(guess.event) || !unfinished(events_.bytes(guess.event));
        if (!sequence.ngram || !whole) break;
        classes_.push_back(guess.match);
    }
    now.plan = sequence.pacer->plan(limits, classes_);
}

void Generator::take_table_guesses(Sequence & sequence) try {
    Round & now = sequence.now;
    for (size_t i = 0; i < now.plan.guesses && i < now.table.size(); ++i) {
        const Token event = now.table[i].event;
        if (!sequence.constraints.empty() && !sequence.constraints.back().allows(event)) return;
        if (!add_guess(sequence, { event, events_.bytes(event), -1 })) return;
        const kad_role role = events_.id(KAD_ROLE_ALIGNED, event) >= 0 ? KAD_ROLE_ALIGNED : KAD_ROLE_BASE;
        advance_guessed(sequence, role, { events_.id(role, event) });
    }
} catch (const Error & error) {
    // Bytes that the other vocabulary's grammar cannot spell: no guess goes further, should the text come there it says so.
    if (error.status != KAD_MODEL_ERROR) throw;
}

// What the round's event teaches the pacer and the table.
void Generator::pace(Sequence & sequence, Token event, const Said & said) {
    Round &    now = sequence.now;
    PacedEvent seen;
    const bool drafted = now.plan.drafter == Plan::Drafter::Aligned && now.said < now.guesses.size();
    if (drafted || now.proposal >= 0) {
        const bool same = drafted ? said.guess == 1 : now.proposal == event;
        seen.aligned    = same ? PacedEvent::Agreement::Yes : PacedEvent::Agreement::No;
        seen.confidence = drafted ? now.guesses[now.said].confidence : -1;
    }
    seen.by_base = said.source == KAD_SOURCE_BASE;
    seen.needed  = pi_.has_value(); // a grammar may have asked for it
    // The table's guesses as they stood when the round began, while they are right: so they would have been used.
    if (now.table_stands && now.said < now.table.size()) {
        seen.table       = now.table[now.said].match;
        seen.table_right = now.table[now.said].event == event;
        now.table_stands = seen.table_right;
    }
    sequence.pacer->said(seen);
    sequence.table.append(event);
}

} // namespace kad
