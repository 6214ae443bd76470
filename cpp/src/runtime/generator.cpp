#include "generator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "../core/reward.h"
#include "timer.h"
#include "utf8.h"

namespace kad {

Generator::Generator(LanguageModel * const (&models)[ROLE_COUNT], const EventSpace & events, const Settings & settings)
    : events_(events), settings_(settings) {
    size_t n_slots = SIZE_MAX;
    for (const kad_role role : ROLES) {
        if (!models[role]) continue;
        stages_[role] =
            std::make_unique<Stage>(*models[role], events, role, settings.reproducible, settings.max_pass[role]);
        n_slots = std::min(n_slots, models[role]->n_slots());
    }
    occupants_.resize(n_slots);
    begun_.resize(n_slots);
}

size_t Generator::max_draft() const {
    size_t most = SIZE_MAX;
    for (const auto & stage : stages_) {
        if (stage) most = std::min({ most, stage->model().max_rows() - 1, stage->model().max_batch() - 1 });
    }
    return most;
}

// ---- Beginning a text -------------------------------------------------------------------------------------------------

// The most guesses per round, and why they may be fewer than asked for. The base scores all guesses in one pass, and so does
// the reference.
void Generator::limit_draft(Sequence & sequence, kad_mode wanted, size_t draft) const {
    for (const kad_role role : ROLES) {
        if (!sequence.sides[role].active || stages_[role]->model().can_rewind()) continue;
        sequence.mode = wanted == KAD_MODE_AUTO ? KAD_MODE_AUTO : KAD_MODE_PLAIN;
        sequence.note = "no speculation: the cache of a " + settings_.architecture[role] + " model cannot rewind";
        if (wanted != KAD_MODE_AUTO) sequence.note += "; runs plain";
        return;
    }
    size_t most = stages_[KAD_ROLE_BASE]->max_pass();
    if (sequence.sides[KAD_ROLE_REFERENCE].active) most = std::min(most, stages_[KAD_ROLE_REFERENCE]->max_pass());
    if (settings_.reproducible && most < 2) {
        sequence.mode = wanted == KAD_MODE_AUTO ? KAD_MODE_AUTO : KAD_MODE_LAZY;
        sequence.note = "no speculation: no two rows of the base are bit-equal in one pass and alone";
        if (wanted != KAD_MODE_AUTO) sequence.note += "; runs lazy";
        return;
    }
    sequence.draft = std::min(draft, settings_.reproducible ? most - 1 : draft);
    if (sequence.draft == draft || wanted == KAD_MODE_AUTO) return;
    sequence.note = "draft shortened to " + std::to_string(sequence.draft) +
                    ": the base's rows are bit-equal up to passes of " + std::to_string(sequence.draft + 1);
}

// Why a run may not be what was asked for is said in sequence.note.
void Generator::choose_mode(Sequence & sequence, kad_mode wanted, size_t draft) const {
    const kad_rule_info & rule = rule_info(settings_.rule.kind);
    const bool            both = sequence.sides[KAD_ROLE_BASE].active && sequence.sides[KAD_ROLE_ALIGNED].active;
    sequence.mode              = wanted;
    sequence.draft             = 0;
    if (!both) {
        sequence.mode = KAD_MODE_PLAIN; // one model speaks: nothing to guess or to put off
        return;
    }
    if (wanted == KAD_MODE_SPECULATIVE || wanted == KAD_MODE_AUTO) limit_draft(sequence, wanted, draft);
    if (sequence.mode == KAD_MODE_LAZY && needs_both(sequence)) {
        const std::string reason = base_may_decide(sequence) ? std::string("log-probabilities need")
                                                             : "rule " + std::string(rule.name) + " needs";
        sequence.mode            = KAD_MODE_PLAIN;
        sequence.note = (wanted == KAD_MODE_SPECULATIVE ? sequence.note + ", but " : std::string()) + reason +
                        " both models at every token; runs plain";
    }
}

bool Generator::has(const Sequence & sequence) const { return occupants_[sequence.slot] == &sequence; }

void Generator::leave(const Sequence & sequence) {
    if (!has(sequence)) return;
    occupants_[sequence.slot] = nullptr;
    for (const auto & stage : stages_) {
        if (stage) stage->speaker(sequence.slot).set_idle(true);
    }
}

// A free slot, that which holds most of the prompts; else the slot of the text that was begun first.
size_t Generator::choose_slot(const Sequence & sequence) const {
    size_t best = 0, held = 0;
    bool   found = false;
    for (size_t slot = 0; slot < occupants_.size(); ++slot) {
        if (occupants_[slot]) continue;
        size_t common = 0;
        for (const kad_role role : ROLES) {
            const Side & side = sequence.sides[role];
            if (side.active) common += stages_[role]->speaker(slot).common_prefix(side.context);
        }
        if (found && common <= held) continue;
        best  = slot;
        held  = common;
        found = true;
    }
    if (found) return best;
    return size_t(std::min_element(begun_.begin(), begun_.end()) - begun_.begin());
}

// Idle slots are emptied when a text begins alone: their cells would be looked at by every pass.
void Generator::take_slot(Sequence & sequence) {
    sequence.slot    = choose_slot(sequence);
    const bool alone = std::all_of(occupants_.begin(), occupants_.end(), [](const Sequence * s) { return !s; });
    for (size_t slot = 0; alone && slot < occupants_.size(); ++slot) {
        for (const auto & stage : stages_) {
            if (stage && slot != sequence.slot && stage->model().shares_cells()) stage->speaker(slot).forget();
        }
    }
    occupants_[sequence.slot] = &sequence;
    begun_[sequence.slot]     = ++n_begun_;
}

void Generator::begin(Sequence & sequence, kad_mode wanted, size_t draft) {
    // Rule aligned never asks the base.
    sequence.sides[KAD_ROLE_BASE].active = stages_[KAD_ROLE_BASE] && settings_.rule.kind != KAD_RULE_ALIGNED;

    for (const kad_role role : { KAD_ROLE_ALIGNED, KAD_ROLE_REFERENCE })
        sequence.sides[role].active = stages_[role] != nullptr;

    choose_mode(sequence, wanted, draft);
    take_slot(sequence);
    for (const kad_role role : ROLES) {
        Side & side = sequence.sides[role];
        if (!side.active) continue;
        Reading reading;
        reading.temperature = sequence.temperature;
        reading.rule_temperature =
            looks_at(settings_.rule, role) ? rule_temperature(settings_.rule, sequence.temperature) : 0;

        // Under implicit-reward the base's chain acts on log pi, and the reference does not speak.
        const bool speaks = role == KAD_ROLE_ALIGNED || (role == KAD_ROLE_BASE && !is_joint());
        reading.shaper    = speaks ? side.shaper.get() : nullptr;
        reading.in_place  = !reading.shaper && sequence.constraints.empty();

        side.n_prompt = side.context.size();
        // The aligned model's rows at guesses are drawn from when the base has scored them, some passes later.
        const bool drafts = role == KAD_ROLE_ALIGNED && sequence.draft > 0;
        speaker(sequence, role).begin(reading, rows_kept(sequence, role), drafts);
    }
    if (sequence.mode == KAD_MODE_AUTO) start_pacing(sequence);
    if (sequence.max_tokens == 0) sequence.finish = KAD_FINISH_LENGTH;
}

Row & Generator::row(Sequence & sequence, kad_role role) {
    return speaker(sequence, role).row(sequence.sides[role].context, sequence.events);
}

// ---- Prompts ----------------------------------------------------------------------------------------------------------

// A block of each model's prompt: both are given to the backend before either is waited for.
bool Generator::prefill(Sequence & sequence) try {
    bool done = true;
    for (const kad_role role : ROLES) {
        if (sequence.sides[role].active) speaker(sequence, role).start_block(sequence.sides[role].context);
    }
    for (const kad_role role : ROLES) {
        Side & side = sequence.sides[role];
        if (side.active) done = speaker(sequence, role).finish_block(side.context) && done;
    }
    if (!done) return false;
    for (const kad_role role : ROLES) {
        if (!sequence.sides[role].active) continue;
        sequence.prompt_passes[role] = speaker(sequence, role).count.passes;
        sequence.prompt_eval_s[role] = speaker(sequence, role).count.seconds;
        sequence.prompt_read_s[role] = speaker(sequence, role).count.read_s;
    }
    return sequence.prefilled = true;
} catch (...) {
    // One model was interrupted while the other's block was under way.
    for (const auto & stage : stages_) {
        if (stage) stage->settle();
    }
    throw;
}

// What another slot holds of this prompt is taken over. Not in reproducible runs: each text's prompt is its own there.
void Generator::adopt_prompt(Sequence & sequence) {
    for (const kad_role role : ROLES) {
        const Side & side = sequence.sides[role];
        if (!side.active || !stages_[role]->model().shares_cells() || settings_.reproducible) continue;
        Speaker & own = speaker(sequence, role);
        if (own.started()) continue;
        size_t best = sequence.slot, most = 0;
        for (size_t slot = 0; slot < occupants_.size(); ++slot) {
            const size_t common = stages_[role]->speaker(slot).common_prefix(side.context);
            if (common > most) best = slot, most = common;
        }
        if (most > 0) own.adopt(stages_[role]->speaker(best), side.context);
    }
}

// Prompts are evaluated one text after the other, so that the later ones find what they share with the earlier ones.
void Generator::prefill(const Texts & texts) {
    for (Sequence * sequence : texts) {
        if (sequence->prefilled) continue;
        const auto start = Clock::now();
        adopt_prompt(*sequence);
        const bool done = prefill(*sequence);
        sequence->prompt_s += since(start);
        if (!done) return;
    }
}

// ---- A step -----------------------------------------------------------------------------------------------------------

// The cells that a text takes beyond those that it shares, or will share, with the texts that run already.
size_t Generator::cells_for(const Sequence & sequence, kad_role role) const {
    const Side &    side   = sequence.sides[role];
    const Speaker & own    = speaker(sequence, role);
    size_t          shared = 0;
    for (const Sequence * other : running_) {
        const Speaker & theirs = speaker(*other, role);
        shared = std::max(shared, own.started() ? own.shares(theirs) : theirs.common_prefix(side.context));
    }
    return side.context.size() - std::min(shared, side.context.size()) + 4 * (sequence.draft + 2);
}

// Texts that are ready for a round, as many as the cells hold: where slots share them the last ones wait. The cells of those
// that wait, and of open texts that are not among these, may be taken.
void Generator::choose_running(const Texts & texts) {
    running_.clear();
    for (const auto & stage : stages_) {
        for (size_t slot = 0; stage && slot < occupants_.size(); ++slot) stage->speaker(slot).set_idle(true);
    }
    size_t held[ROLE_COUNT] = {};
    bool   fits             = true;
    for (Sequence * sequence : texts) {
        for (const kad_role role : ROLES) {
            if (!sequence->sides[role].active || !stages_[role]->model().shares_cells()) continue;
            held[role] += cells_for(*sequence, role);
            fits = fits && (running_.empty() || held[role] <= settings_.n_ctx);
        }
        for (const kad_role role : ROLES) {
            if (sequence->sides[role].active) speaker(*sequence, role).set_idle(!fits);
        }
        if (fits) running_.push_back(sequence); // no later text overtakes one that waits
    }
}

void Generator::step(const Texts & texts) {
    Texts going;
    for (Sequence * sequence : texts) {
        if (sequence->lost && !sequence->failure) sequence->failure = sequence->lost;
        if (!sequence->failure && sequence->finish == KAD_FINISH_NONE) going.push_back(sequence);
    }
    choose_running(going);
    Texts ready;
    for (Sequence * sequence : running_) {
        if (sequence->prefilled) ready.push_back(sequence);
    }
    prefill(running_);
    if (ready.empty()) return;
    const auto   start  = Clock::now();
    const double before = passes_seconds();
    round(ready);
    const double seconds = since(start);
    size_t       draws   = 0;
    for (Sequence * sequence : ready) {
        sequence->generate_s += seconds;
        draws += sequence->now.guesses.size() + sequence->now.said;
    }
    draw_time_.observe(seconds - (passes_seconds() - before), draws);
}

// What passes took so far.
double Generator::passes_seconds() const {
    double seconds = 0;
    for (const auto & stage : stages_) seconds += stage ? stage->spent : 0;
    return seconds;
}

// One round: events t, t+1, ... as long as the guesses are right. Each is drawn with its own coins from its own rows, so
// a guess decides how far the round goes and never what is said. The position after the last right guess is drawn like
// any other.
void Generator::round(const Texts & texts) {
    for (Sequence * sequence : texts) begin_round(*sequence, texts.size());
    draft(texts);
    verify(texts);
    draw(texts);
}

// Draws all texts as far as their rows go; rows that several lack are made together.
void Generator::draw(const Texts & texts) {
    pending_ = texts;
    while (!pending_.empty()) {
        for (auto & wants : wants_) wants.clear();
        pending_.erase(std::remove_if(pending_.begin(), pending_.end(), [&](Sequence * s) { return !draw_on(*s); }),
                       pending_.end());
        for (const kad_role role : ROLES) {
            if (wants_[role].empty()) continue;
            // The row that another text is about to draw from outlives this pass: so each text goes on in the end.
            for (Sequence * sequence : pending_) {
                const Side & side = sequence->sides[role];
                if (side.active) speaker(*sequence, role).keep_row(side.context);
            }
            stages_[role]->make_rows(wants_[role]);
        }
    }
}

// True when the text goes on once the rows that it wants are made.
bool Generator::draw_on(Sequence & sequence) {
    try {
        while (!wants_rows(sequence)) {
            if (draw_next(sequence)) continue;
            if (sequence.finish != KAD_FINISH_NONE) close(sequence);
            return false;
        }
        return true;
    } catch (const Error & error) {
        sequence.failure = error;
        return false;
    }
}

// Draws and says one event; true when the next one of this round is to be drawn.
bool Generator::draw_next(Sequence & sequence) {
    Said        said;
    const Token event = timed_draw(sequence, said);
    const bool  more  = say(sequence, event, said);
    if (more) advance_constraint(sequence, said, said.guess == 1);
    if (sequence.pacer) pace(sequence, event, said);
    ++sequence.now.said;
    sequence.now.decided = false;
    return more && said.guess == 1 && sequence.now.said <= sequence.sides[KAD_ROLE_BASE].scored;
}

// ---- Drawing one event ------------------------------------------------------------------------------------------------

// Adds to draw_s what passes until its end, without the passes that it makes and the rows that it reads.
class Generator::DrawTimer {
public:
    DrawTimer(const Generator & generator, Sequence & sequence)
        : generator_(generator), sequence_(sequence), elsewhere_(elsewhere()) {}
    ~DrawTimer() { sequence_.draw_s += since(start_) - (elsewhere() - elsewhere_); }
    DrawTimer(const DrawTimer &)             = delete;
    DrawTimer & operator=(const DrawTimer &) = delete;

private:
    const Generator &       generator_;
    Sequence &              sequence_;
    const double            elsewhere_;
    const Clock::time_point start_ = Clock::now();

    double elsewhere() const {
        double seconds = 0;
        for (const kad_role role : ROLES) {
            if (!sequence_.sides[role].active) continue;
            const EvaluationCount & count = generator_.speaker(sequence_, role).count;
            seconds += count.seconds + count.read_s;
        }
        return seconds;
    }
};

Token Generator::timed_draw(Sequence & sequence, Said & said) {
    const DrawTimer timer(*this, sequence);
    return draw_event(sequence, said);
}

// The draw, which may need no row of the aligned model: is it enough?
bool Generator::drawn_without_aligned(Sequence & sequence) {
    const DrawTimer timer(*this, sequence);
    decide_kept(sequence);
    Outcome outcome;
    return draw_without_aligned(row(sequence, KAD_ROLE_BASE).spoken, sequence.now.kept,
                                DrawCoins(sequence.coins, sequence.events), outcome);
}

// The event at position sequence.events: section 3 with the rows of this context and the coins of this event.
Token Generator::draw_event(Sequence & sequence, Said & said) {
    pi_.reset();
    said.logprob = said.base_share = said.base_logprob = said.aligned_logprob = NAN;
    if (!sequence.sides[KAD_ROLE_BASE].active) return draw_alone(sequence, said, KAD_ROLE_ALIGNED);
    if (!sequence.sides[KAD_ROLE_ALIGNED].active) return draw_alone(sequence, said, KAD_ROLE_BASE);

    const DrawCoins coins(sequence.coins, sequence.events);
    decide_kept(sequence);
    Outcome         outcome;
    const KeptSet & kept  = sequence.now.kept;
    sequence.now.proposal = -1;
    if (needs_both(sequence) || !draw_without_aligned(row(sequence, KAD_ROLE_BASE).spoken, kept, coins, outcome)) {
        mix(sequence);
        sequence.now.proposal = pi_->aligned().draw(coins.proposal);
        outcome               = kad::draw(*pi_, sequence.now.proposal, coins);
        said.deferred_mass    = pi_->alpha();
    } else {
        said.deferred_mass = deferred_mass(row(sequence, KAD_ROLE_BASE).spoken, kept);
    }
    if (constraint(sequence) && !constraint(sequence)->allows(outcome.token)) outcome = redraw_event(sequence, said);
    said.source = outcome.source;
    if (sequence.logprobs) describe(sequence, outcome.token, said);
    return outcome.token;
}

// One model speaks. The aligned model's own draw is the proposal, by the first coin. Rule base without an aligned model has no
// proposal: the target itself, by the third.
Token Generator::draw_alone(Sequence & sequence, Said & said, kad_role role) {
    const bool      base = role == KAD_ROLE_BASE;
    Row &           own  = row(sequence, role);
    const DrawCoins coins(sequence.coins, sequence.events), again(sequence.coins, sequence.events, PURPOSE_REDRAW);
    Token           y = own.spoken.draw(base ? coins.residual : coins.proposal);
    if (constraint(sequence) && !constraint(sequence)->allows(y)) {
        y = allowed_draw(sequence, *constraint(sequence), role, own, base ? again.residual : again.proposal);
        if (y < 0) throw nothing_allowed(sequence);
    }
    said.source        = base ? KAD_SOURCE_BASE : KAD_SOURCE_ALIGNED;
    said.deferred_mass = base ? 0 : 1;
    if (sequence.logprobs) describe_alone(own.spoken, role, y, said);
    return y;
}

// The log-probability of an event where one model speaks.
void Generator::describe_alone(const Distribution & spoken, kad_role role, Token event, Said & said) {
    const bool base = role == KAD_ROLE_BASE;
    said.base_share = base ? 1 : 0;
    said.logprob = (base ? said.base_logprob : said.aligned_logprob) = spoken.log_probability(event);
}

// May there be events that the base's row alone decides? S must need p alone; a rule that is not lazy never has one token in it,
// but at temperature 0 the base's best token is enough (draw.h).
bool Generator::base_may_decide(const Sequence & sequence) const {
    const kad_rule_info & rule  = rule_info(settings_.rule.kind);
    const bool            alone = !rule.exchanged && !rule.reference && !looks_at(settings_.rule, KAD_ROLE_ALIGNED);
    return alone && (rule.lazy || sequence.temperature == 0);
}

// Must the aligned model's row be there at every event?
bool Generator::needs_both(const Sequence & sequence) const {
    return sequence.mode == KAD_MODE_PLAIN || sequence.logprobs || !base_may_decide(sequence);
}

// S (or T) at this position, from the raw rows.
void Generator::decide_kept(Sequence & sequence) {
    Round & now = sequence.now;
    if (now.decided) return;
    const auto at_rule = [&](kad_role role) {
        return looks_at(settings_.rule, role) ? &row(sequence, role).at_rule : nullptr;
    };
    if (is_joint()) {
        now.kept.nothing();
    } else {
        decide(settings_.rule, at_rule(KAD_ROLE_BASE), at_rule(KAD_ROLE_ALIGNED), now.kept);
    }
    now.decided = true;
}

// pi at this position; decide_kept() comes first.
void Generator::mix(Sequence & sequence) {
    if (is_joint()) return mix_joint(sequence, joint_logits(sequence, nullptr));
    const Distribution & q = row(sequence, KAD_ROLE_ALIGNED).spoken;
    pi_.emplace(row(sequence, KAD_ROLE_BASE).spoken, q, sequence.now.kept,
                rule_info(settings_.rule.kind).exchanged != 0);
}

// Log pi of implicit-reward: a row of its own, which the base's chain shapes; with ok, masked before that.
const float * Generator::joint_logits(Sequence & sequence, const std::vector<uint8_t> * ok) {
    const Side & side = sequence.sides[KAD_ROLE_BASE];
    implicit_reward(row(sequence, KAD_ROLE_BASE).own, row(sequence, KAD_ROLE_ALIGNED).own,
                    row(sequence, KAD_ROLE_REFERENCE).own, events_.size(), settings_.rule.threshold, joint_row_);
    for (size_t i = 0; ok && i < joint_row_.size(); ++i) {
        if (!(*ok)[i]) joint_row_[i] = -INFINITY;
    }
    if (!side.shaper || !possible(joint_row_.data(), joint_row_.size())) return joint_row_.data();
    joint_shaped_.resize(joint_row_.size());
    side.shaper->shape(side.context.data(), side.context.size(), sequence.events, joint_row_.data(),
                       joint_shaped_.data(), joint_row_.size());
    return joint_shaped_.data();
}

void Generator::mix_joint(Sequence & sequence, const float * logits) {
    joint_.set(logits, joint_row_.size(), sequence.temperature, "log pi of rule implicit-reward", nullptr,
               stages_[KAD_ROLE_BASE]->model().workers());
    pi_.emplace(joint_, row(sequence, KAD_ROLE_ALIGNED).spoken);
}

// The log-probabilities of an event under pi_, before a grammar.
void Generator::describe(Sequence & sequence, Token event, Said & said) {
    said.logprob         = std::log(pi_->probability(event));
    said.aligned_logprob = pi_->aligned().log_probability(event);
    said.base_logprob    = row(sequence, KAD_ROLE_BASE).spoken.log_probability(event);
    if (std::isnan(said.base_share)) said.base_share = pi_->base_share(event);
}

// ---- Saying it --------------------------------------------------------------------------------------------------------

// 0 where nothing was guessed, 1 for a right guess, 2 for one that the event corrects.
int Generator::guess_mark(Sequence & sequence, Token event, const std::string & bytes) {
    const Round & now = sequence.now;
    if (now.said >= now.guesses.size()) return 0;
    const Guess & guess = now.guesses[now.said];
    const bool    right = event == guess.event && (events_.shared_ids() || events_.ends(event) || bytes == guess.bytes);
    ++sequence.drafted;
    sequence.accepted += right;
    return right ? 1 : 2;
}

// Says an event: false when the text ends here.
bool Generator::say(Sequence & sequence, Token event, Said & said) {
    bool       ended = events_.ends(event);
    const bool fits  = !ended && append(sequence, event, said, ended);
    said.guess       = guess_mark(sequence, event, said.bytes);
    if (!fits) {
        // The text ends at the first event for which either model's own ids would exceed the context; it is not said.
        sequence.finish  = events_.ends(event) ? KAD_FINISH_EOG : KAD_FINISH_CONTEXT;
        sequence.settled = sequence.length;
        return false;
    }
    sequence.append(said.bytes);
    sequence.alpha_sum += said.deferred_mass;
    sequence.aligned_tokens += said.source == KAD_SOURCE_ALIGNED;
    sequence.said.push_back(said);
    if (sequence.finish == KAD_FINISH_NONE && ended) sequence.finish = KAD_FINISH_EOG;
    if (sequence.finish == KAD_FINISH_NONE && sequence.events >= size_t(sequence.max_tokens))
        sequence.finish = KAD_FINISH_LENGTH;
    if (sequence.finish != KAD_FINISH_NONE) sequence.settled = sequence.length;
    return sequence.finish == KAD_FINISH_NONE;
}

// The models' contexts with the event after them; false when one of them would not fit. `ended`: its speaker ended the text
// inside the character.
bool Generator::append(Sequence & sequence, Token event, Said & said, bool & ended) {
    const kad_role role = said.source == KAD_SOURCE_BASE ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    said.ids            = { events_.id(role, event) };
    said.bytes          = events_.bytes(event);
    bool fits           = true;
    if (events_.shared_ids()) {
        for (const Side & side : sequence.sides)
            fits = fits && !(side.active && side.context.size() + 1 > settings_.n_ctx);
        for (Side & side : sequence.sides) {
            if (side.active && fits) side.context.push_back(event);
        }
        return fits;
    }
    if (unfinished(said.bytes)) {
        const kad_role     speaker = events_.id(KAD_ROLE_BASE, event) >= 0 ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
        Side &             side    = sequence.sides[speaker];
        std::vector<Token> context = side.context;
        ended = finish_character(sequence, { speaker, context, sequence.events, constraint(sequence) }, said);
        // A character that the context has no room to finish is not said.
        fits = context.size() <= settings_.n_ctx;
    }
    const Timer       timer(sequence.text_s);
    const std::string text = sequence.text + said.bytes;
    for (Side & side : sequence.sides) {
        if (!side.active) continue;
        side.retokenise(text);
        if (side.context.size() > settings_.n_ctx) {
            side.context.resize(settings_.n_ctx);
            fits = false;
        }
    }
    return fits;
}

// Whoever starts a character finishes it: from its own distribution, no rule, its own ids appended, the coins 16, 17, ... of
// this event. A token that cannot continue the character is the last. True when the speaker ended the text instead. The context
// is then that of the next token of this speaker.
bool Generator::finish_character(Sequence & sequence, const Unfinished & at, Said & said) {
    double &                 own_logprob = at.role == KAD_ROLE_BASE ? said.base_logprob : said.aligned_logprob;
    std::unique_ptr<Grammar> grammar;
    if (at.constraint) {
        grammar = at.constraint->state(at.role);
        grammar->accept(said.ids[0]);
    }
    at.context.push_back(said.ids[0]);
    for (uint64_t i = 0; unfinished(said.bytes) && at.context.size() <= settings_.n_ctx; ++i) {
        double      logprob;
        const Token id = further_token(sequence, at, i, grammar.get(), logprob);
        said.logprob += logprob;
        own_logprob += logprob;
        const Token further = events_.event(at.role, id);
        if (events_.ends(further)) return true;
        const std::string & bytes        = events_.bytes(further);
        const bool          continues_it = continues(said.bytes, static_cast<unsigned char>(bytes[0]));
        said.bytes += bytes;
        said.ids.push_back(id);
        at.context.push_back(id);
        if (grammar) grammar->accept(id);
        if (!continues_it) break;
    }
    return false;
}

// The i-th further token of a character; one that the grammar refuses is drawn again, among those it allows.
Token Generator::further_token(Sequence & sequence, const Unfinished & at, uint64_t i, Grammar * grammar,
                               double & logprob) {
    Speaker &   speaker = this->speaker(sequence, at.role);
    Row &       row     = speaker.row(at.context, at.event);
    const Token id      = speaker.draw_own(row, sequence.coins(at.event, PURPOSE_CHARACTER + i), logprob);
    const auto  allows  = [&](Token each) {
        return grammar->allows(events_.ends(events_.event(at.role, each)) ? at.constraint->end_id(at.role) : each);
    };
    if (!grammar || allows(id)) return id;
    std::vector<uint8_t> ok(events_.row_size(at.role), 1);
    grammar->restrict(ok.data(), ok.size());
    const double coin  = sequence.coins(at.event, PURPOSE_CHARACTER_REDRAW + i);
    const Token  again = speaker.draw_own_allowed(row, ok, coin, logprob);
    if (again < 0) throw nothing_allowed(sequence);
    return again;
}

// The caches keep what belongs to the text; what was guessed beyond it, or lies in a stop string, is dropped.
void Generator::close(Sequence & sequence) {
    for (const kad_role role : ROLES) {
        Side & side = sequence.sides[role];
        if (!side.active) continue;
        size_t bytes = 0, keep = side.n_prompt;
        for (; keep < side.context.size(); ++keep) {
            const Token event = events_.event(role, side.context[keep]);
            if (event >= 0) bytes += events_.bytes(event).size();
            if (bytes > sequence.length) break;
        }
        side.context.resize(keep);
        speaker(sequence, role).trim(side.context);
    }
}

void Generator::event_row(Sequence & sequence, kad_role role, float * out) {
    if (!sequence.sides[role].active) {
        throw Error(KAD_INVALID_ARGUMENT, "this run has no rows of the " + std::string(role_name(role)) + " model");
    }
    choose_running({ &sequence });
    while (!sequence.prefilled) prefill(sequence);
    const Row & now = row(sequence, role);
    if (events_.shared_ids()) {
        std::copy(now.own, now.own + events_.size(), out);
    } else {
        events_.spread(role, now.by_event, out);
    }
}

size_t Generator::prompt_done(const Sequence & sequence) const {
    size_t done = 0;
    for (const kad_role role : ROLES) {
        const Side & side = sequence.sides[role];
        if (!side.active) continue;
        done += sequence.prefilled ? side.n_prompt : std::min(side.n_prompt, speaker(sequence, role).prefilled());
    }
    return done;
}

void Generator::read_counts(const Sequence & sequence, kad_stats & stats) const {
    int    passes[ROLE_COUNT]  = {};
    double seconds[ROLE_COUNT] = {};
    stats.read_s               = 0;
    for (const kad_role role : ROLES) {
        if (!sequence.sides[role].active || !sequence.prefilled) continue;
        passes[role]  = speaker(sequence, role).count.passes - sequence.prompt_passes[role];
        seconds[role] = speaker(sequence, role).count.seconds - sequence.prompt_eval_s[role];
        stats.read_s += speaker(sequence, role).count.read_s - sequence.prompt_read_s[role];
    }
    stats.base_passes      = passes[KAD_ROLE_BASE];
    stats.aligned_passes   = passes[KAD_ROLE_ALIGNED];
    stats.base_eval_s      = seconds[KAD_ROLE_BASE];
    stats.aligned_eval_s   = seconds[KAD_ROLE_ALIGNED];
    stats.reference_passes = passes[KAD_ROLE_REFERENCE];
    stats.reference_eval_s = seconds[KAD_ROLE_REFERENCE];

    const kad_role counted = sequence.sides[KAD_ROLE_BASE].active ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    stats.prompt_cached    = int32_t(speaker(sequence, counted).cached());
}

} // namespace kad
