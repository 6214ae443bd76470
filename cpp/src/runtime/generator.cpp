#include "generator.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "../core/reward.h"
#include "utf8.h"

namespace kad {

Generator::Generator(LanguageModel * const (&models)[ROLE_COUNT], const EventSpace & events, const Settings & settings)
    : events_(events), settings_(settings) {

    for (const kad_role role : ROLES) {
        if (!models[role]) continue;
        speakers_[role] =
            std::make_unique<Speaker>(*models[role], events, role, settings.reproducible, settings.max_pass[role]);
    }
}

size_t Generator::max_draft() const {
    size_t most = SIZE_MAX;
    for (const kad_role role : ROLES) {
        if (!speakers_[role]) continue;
        LanguageModel & model = speakers_[role]->model();
        most                  = std::min({ most, model.max_rows() - 1, model.max_batch() - 1 });
    }
    return most;
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
    if (wanted == KAD_MODE_SPECULATIVE) {
        for (const kad_role role : ROLES) {
            if (!sequence.sides[role].active || speakers_[role]->model().can_rewind()) continue;
            sequence.mode = KAD_MODE_PLAIN;
            sequence.note =
                "no speculation: the cache of a " + settings_.architecture[role] + " model cannot rewind; runs plain";
            return;
        }
        // The base scores all guesses in one pass, and so does the reference.
        size_t most = speakers_[KAD_ROLE_BASE]->max_pass();
        if (sequence.sides[KAD_ROLE_REFERENCE].active) most = std::min(most, speakers_[KAD_ROLE_REFERENCE]->max_pass());
        if (!events_.shared_ids()) {
            sequence.mode = KAD_MODE_LAZY;
            sequence.note = "no speculation: the vocabularies differ; runs lazy";
        } else if (settings_.reproducible && most < 2) {
            sequence.mode = KAD_MODE_LAZY;
            sequence.note = "no speculation: no two rows of the base are bit-equal in one pass and alone; runs lazy";
        } else {
            sequence.draft = std::min(draft, settings_.reproducible ? most - 1 : draft);
            if (sequence.draft < draft) {
                sequence.note = "draft shortened to " + std::to_string(sequence.draft) +
                                ": the base's rows are bit-equal up to passes of " + std::to_string(sequence.draft + 1);
            }
        }
    }
    if (sequence.mode == KAD_MODE_LAZY && (!rule.lazy || sequence.logprobs)) {
        const std::string reason = rule.lazy ? std::string("log-probabilities") : "rule " + std::string(rule.name);
        sequence.mode            = KAD_MODE_PLAIN;
        sequence.note = (wanted == KAD_MODE_SPECULATIVE ? sequence.note + ", but " : std::string()) + reason +
                        " need both models at every token; runs plain";
    }
}

void Generator::begin(Sequence & sequence, kad_mode wanted, size_t draft) {
    // Rule aligned never asks the base.
    sequence.sides[KAD_ROLE_BASE].active = speakers_[KAD_ROLE_BASE] && settings_.rule.kind != KAD_RULE_ALIGNED;

    for (const kad_role role : { KAD_ROLE_ALIGNED, KAD_ROLE_REFERENCE })
        sequence.sides[role].active = speakers_[role] != nullptr;

    choose_mode(sequence, wanted, draft);
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

        side.n_prompt = side.context.size();
        speakers_[role]->begin(reading, sequence.draft + 2);
    }
    if (sequence.max_tokens == 0) sequence.finish = KAD_FINISH_LENGTH;
}

Row & Generator::row(Sequence & sequence, kad_role role, size_t ahead) {
    return speakers_[role]->row(sequence.sides[role].context, sequence.events + ahead);
}

bool Generator::prefill(Sequence & sequence) {
    for (const kad_role role : ROLES) {
        Side & side = sequence.sides[role];
        if (side.active && !speakers_[role]->prefill(side.context)) return false;
    }
    for (const kad_role role : ROLES) {
        if (!sequence.sides[role].active) continue;
        sequence.prompt_passes[role] = speakers_[role]->count.passes;
        sequence.prompt_eval_s[role] = speakers_[role]->count.seconds;
    }
    return sequence.prefilled = true;
}

void Generator::step(Sequence & sequence) {
    const auto start = std::chrono::steady_clock::now();
    const auto took  = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
    if (sequence.failure) {
        const Error failure = *sequence.failure;
        sequence.failure.reset();
        throw failure;
    }
    if (sequence.finish != KAD_FINISH_NONE) return;
    if (sequence.lost) throw *sequence.lost;
    if (!sequence.prefilled) {
        prefill(sequence);
        sequence.prompt_s += took();
        return;
    }
    try {
        round(sequence);
    } catch (const Error & error) {
        // What was said before the failure is handed out first.
        if (sequence.said.empty()) throw;
        sequence.failure = error;
    }
    sequence.generate_s += took();
}

// One round: events t, t+1, ... as long as the guesses are right. Each is drawn with its own coins from its own rows, so
// a guess decides how far the round goes and never what is said. The position after the last right guess is drawn like
// any other.
void Generator::round(Sequence & sequence) {
    guesses_.clear();
    if (sequence.mode == KAD_MODE_SPECULATIVE) {
        guess(sequence, room_for_guesses(sequence));
        score(sequence);
    }
    for (size_t i = 0;; ++i) {
        Said        said;
        const Token event   = draw_event(sequence, said);
        const bool  guessed = i < guesses_.size();
        const bool  right   = guessed && event == guesses_[i];
        sequence.drafted += guessed;
        sequence.accepted += right;
        said.guess      = guessed ? (right ? 1 : 2) : 0;
        const bool more = say(sequence, event, said);
        if (more) advance_constraint(sequence, said, right);
        if (!more || !right) break;
    }
    if (sequence.finish != KAD_FINISH_NONE) close(sequence);
}

size_t Generator::room_for_guesses(const Sequence & sequence) const {
    size_t room = std::min(sequence.draft, size_t(sequence.max_tokens) - sequence.events - 1);
    for (const Side & side : sequence.sides) room = std::min(room, settings_.n_ctx - side.context.size());
    return room;
}

// The aligned model's guess at t is its own x_t, by the very coin that the draw at t will use: right with probability
// 1 - TV(pi, q'). Where a grammar refuses x_t, the draw at t will redraw: the guess is that proposal, by its coin.
void Generator::guess(Sequence & sequence, size_t n) {
    Side &       side   = sequence.sides[KAD_ROLE_ALIGNED];
    const size_t said   = side.context.size();
    auto &       states = sequence.constraints;
    if (!states.empty()) {
        std::swap(states[0], states[sequence.constrained]);
        states.erase(states.begin() + 1, states.end());
        sequence.constrained = 0;
    }
    try {
        for (size_t i = 0; i < n; ++i) {
            const Token x = guess_one(sequence, i);
            if (x < 0) break; // the aligned model has nothing to say there
            guesses_.push_back(x);
            if (events_.ends(x)) break;
            side.context.push_back(x);
            if (states.empty()) continue;
            Constraint next = states.back().clone();
            next.accept(KAD_ROLE_ALIGNED, { x });
            states.push_back(std::move(next));
        }
    } catch (...) {
        side.context.resize(said);
        throw;
    }
    side.context.resize(said);
}

// -1 for no guess. Guesses may go where the text never does: a row that cannot be drawn from is the draw's to report, should
// the text come there.
Token Generator::guess_one(Sequence & sequence, size_t i) try {
    const uint64_t event = sequence.events + i;
    Row &          row   = this->row(sequence, KAD_ROLE_ALIGNED, i);
    const Token    x     = row.spoken.draw(sequence.coins(event, PURPOSE_PROPOSAL));
    if (sequence.constraints.empty() || sequence.constraints.back().allows(x)) return x;
    const double coin = sequence.coins(event, PURPOSE_REDRAW);
    return allowed_draw(sequence.constraints.back(), KAD_ROLE_ALIGNED, row, coin);
} catch (const Error & error) {
    if (error.status != KAD_NOT_A_NUMBER) throw;
    return -1;
}

// One pass over all guesses, of the base and of the reference: the rows after the text and after each guess.
void Generator::score(Sequence & sequence) {
    for (const kad_role role : { KAD_ROLE_BASE, KAD_ROLE_REFERENCE }) {
        Side & side = sequence.sides[role];
        if (!side.active) continue;
        const size_t said = side.context.size();
        for (const Token x : guesses_) {
            if (!events_.ends(x)) side.context.push_back(x);
        }
        try {
            speakers_[role]->rows(side.context, said);
        } catch (...) {
            side.context.resize(said);
            throw;
        }
        side.context.resize(said);
    }
}

// ---- Drawing one event ------------------------------------------------------------------------------------------------

// The event at position sequence.events: section 3 with the rows of this context and the coins of this event.
Token Generator::draw_event(Sequence & sequence, Said & said) {
    pi_.reset();
    said.logprob = said.base_share = said.base_logprob = said.aligned_logprob = NAN;
    if (!sequence.sides[KAD_ROLE_BASE].active) return draw_alone(sequence, said, KAD_ROLE_ALIGNED);
    if (!sequence.sides[KAD_ROLE_ALIGNED].active) return draw_alone(sequence, said, KAD_ROLE_BASE);

    const DrawCoins coins(sequence.coins, sequence.events);
    decide_kept(sequence);
    Outcome outcome;
    // Of the rules without S, T is no set that step 2 could be taken on.
    const kad_rule_info & rule = rule_info(settings_.rule.kind);
    const bool need_both = sequence.mode == KAD_MODE_PLAIN || sequence.logprobs || rule.exchanged || rule.reference;
    if (need_both || !draw_without_aligned(row(sequence, KAD_ROLE_BASE).spoken, kept_, coins, outcome)) {
        mix(sequence);
        outcome            = draw(*pi_, pi_->aligned().draw(coins.proposal), coins);
        said.deferred_mass = pi_->alpha();
    } else {
        said.deferred_mass = deferred_mass(row(sequence, KAD_ROLE_BASE).spoken, kept_);
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
        y = allowed_draw(*constraint(sequence), role, own, base ? again.residual : again.proposal);
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

// S (or T) at this position, from the raw rows.
void Generator::decide_kept(Sequence & sequence) {
    if (is_joint()) return kept_.nothing();
    const auto at_rule = [&](kad_role role) {
        return looks_at(settings_.rule, role) ? &row(sequence, role).at_rule : nullptr;
    };
    decide(settings_.rule, at_rule(KAD_ROLE_BASE), at_rule(KAD_ROLE_ALIGNED), kept_);
}

// pi at this position; decide_kept() comes first.
void Generator::mix(Sequence & sequence) {
    if (is_joint()) return mix_joint(sequence, joint_logits(sequence, nullptr));
    const Distribution & q = row(sequence, KAD_ROLE_ALIGNED).spoken;
    pi_.emplace(row(sequence, KAD_ROLE_BASE).spoken, q, kept_, rule_info(settings_.rule.kind).exchanged != 0);
}

// Log pi of implicit-reward: a row of its own, which the base's chain shapes; with ok, masked before that.
const float * Generator::joint_logits(Sequence & sequence, const std::vector<uint8_t> * ok) {
    const Side & side = sequence.sides[KAD_ROLE_BASE];
    implicit_reward(row(sequence, KAD_ROLE_BASE).own.data(), row(sequence, KAD_ROLE_ALIGNED).own.data(),
                    row(sequence, KAD_ROLE_REFERENCE).own.data(), events_.size(), settings_.rule.threshold, joint_row_);
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
    joint_.set(logits, joint_row_.size(), sequence.temperature, "log pi of rule implicit-reward");
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

// Says an event: false when the text ends here.
bool Generator::say(Sequence & sequence, Token event, Said & said) {
    bool ended = events_.ends(event);
    if (ended || !append(sequence, event, said, ended)) {
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
    if (unfinished(said.bytes)) ended = finish_character(sequence, event, said);
    // A character that the context has no room to finish is not said.
    for (const Side & side : sequence.sides) fits = fits && (!side.active || side.context.size() <= settings_.n_ctx);
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
// this event. A token that cannot continue the character is the last. True when the speaker ended the text instead.
bool Generator::finish_character(Sequence & sequence, Token event, Said & said) {
    const kad_role           role        = events_.id(KAD_ROLE_BASE, event) >= 0 ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    Side &                   side        = sequence.sides[role];
    const size_t             said_before = side.context.size();
    double &                 own_logprob = role == KAD_ROLE_BASE ? said.base_logprob : said.aligned_logprob;
    std::unique_ptr<Grammar> grammar;
    if (constraint(sequence)) {
        grammar = constraint(sequence)->state(role);
        grammar->accept(events_.id(role, event));
    }
    try {
        side.context.push_back(events_.id(role, event));
        for (uint64_t i = 0; unfinished(said.bytes) && side.context.size() <= settings_.n_ctx; ++i) {
            double      logprob;
            const Token id = further_token(sequence, role, i, grammar.get(), logprob);
            said.logprob += logprob;
            own_logprob += logprob;
            const Token further = events_.event(role, id);
            if (events_.ends(further)) return true;
            const std::string & bytes        = events_.bytes(further);
            const bool          continues_it = continues(said.bytes, static_cast<unsigned char>(bytes[0]));
            said.bytes += bytes;
            said.ids.push_back(id);
            side.context.push_back(id);
            if (grammar) grammar->accept(id);
            if (!continues_it) break;
        }
    } catch (...) {
        side.context.resize(said_before);
        throw;
    }
    return false;
}

// The i-th further token of a character; one that the grammar refuses is drawn again, among those it allows.
Token Generator::further_token(Sequence & sequence, kad_role role, uint64_t i, Grammar * grammar, double & logprob) {
    Speaker &   speaker = *speakers_[role];
    Row &       row     = speaker.row(sequence.sides[role].context, sequence.events);
    const Token id      = speaker.draw_own(row, sequence.coins(sequence.events, PURPOSE_CHARACTER + i), logprob);
    const auto  allows  = [&](Token each) {
        return grammar->allows(events_.ends(events_.event(role, each)) ? constraint(sequence)->end_id(role) : each);
    };
    if (!grammar || allows(id)) return id;
    std::vector<uint8_t> ok(row.own.size(), 1);
    grammar->restrict(ok.data(), ok.size());
    const double coin  = sequence.coins(sequence.events, PURPOSE_CHARACTER_REDRAW + i);
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
        speakers_[role]->trim(side.context);
    }
}

const float * Generator::event_row(Sequence & sequence, kad_role role) {
    if (!sequence.sides[role].active) {
        throw Error(KAD_INVALID_ARGUMENT, "this run has no rows of the " + std::string(role_name(role)) + " model");
    }
    while (!sequence.prefilled) prefill(sequence);
    Row & now = row(sequence, role);
    return events_.shared_ids() ? now.own.data() : now.events.data();
}

size_t Generator::prompt_done(const Sequence & sequence) const {
    size_t done = 0;
    for (const kad_role role : ROLES) {
        const Side & side = sequence.sides[role];
        if (side.active)
            done += sequence.prefilled ? side.n_prompt : std::min(side.n_prompt, speakers_[role]->prefilled());
    }
    return done;
}

void Generator::read_counts(const Sequence & sequence, kad_stats & stats) const {
    int    passes[ROLE_COUNT]  = {};
    double seconds[ROLE_COUNT] = {};
    for (const kad_role role : ROLES) {
        if (!sequence.sides[role].active || !sequence.prefilled) continue;
        passes[role]  = speakers_[role]->count.passes - sequence.prompt_passes[role];
        seconds[role] = speakers_[role]->count.seconds - sequence.prompt_eval_s[role];
    }
    stats.base_passes      = passes[KAD_ROLE_BASE];
    stats.aligned_passes   = passes[KAD_ROLE_ALIGNED];
    stats.base_eval_s      = seconds[KAD_ROLE_BASE];
    stats.aligned_eval_s   = seconds[KAD_ROLE_ALIGNED];
    stats.reference_passes = passes[KAD_ROLE_REFERENCE];
    stats.reference_eval_s = seconds[KAD_ROLE_REFERENCE];

    const kad_role counted = sequence.sides[KAD_ROLE_BASE].active ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    stats.prompt_cached    = int32_t(speakers_[counted]->cached());
}

} // namespace kad
