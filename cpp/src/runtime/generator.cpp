#include "generator.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "utf8.h"

namespace kad {

static constexpr kad_role ROLES[] = { KAD_ROLE_BASE, KAD_ROLE_ALIGNED };

Generator::Generator(LanguageModel * base, LanguageModel * aligned, const EventSpace & events,
                     const Settings & settings)
    : events_(events), settings_(settings) {
    LanguageModel * models[] = { base, aligned };
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
            if (speakers_[role]->model().can_rewind()) continue;
            sequence.mode = KAD_MODE_PLAIN;
            sequence.note =
                "no speculation: the cache of a " + settings_.architecture[role] + " model cannot rewind; runs plain";
            return;
        }
        if (!events_.shared_ids()) {
            sequence.mode = KAD_MODE_LAZY;
            sequence.note = "no speculation: the vocabularies differ; runs lazy";
        } else if (settings_.reproducible && speakers_[KAD_ROLE_BASE]->max_pass() < 2) {
            sequence.mode = KAD_MODE_LAZY;
            sequence.note = "no speculation: no two rows of the base are bit-equal in one pass and alone; runs lazy";
        } else {
            sequence.draft = std::min(draft, settings_.reproducible ? speakers_[KAD_ROLE_BASE]->max_pass() - 1 : draft);
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
    sequence.sides[KAD_ROLE_BASE].active    = speakers_[KAD_ROLE_BASE] && settings_.rule.kind != KAD_RULE_ALIGNED;
    sequence.sides[KAD_ROLE_ALIGNED].active = speakers_[KAD_ROLE_ALIGNED] != nullptr;
    choose_mode(sequence, wanted, draft);
    for (const kad_role role : ROLES) {
        Side & side = sequence.sides[role];
        if (!side.active) continue;
        Reading reading;
        reading.temperature = sequence.temperature;
        reading.rule_temperature =
            looks_at(settings_.rule, role) ? rule_temperature(settings_.rule, sequence.temperature) : 0;
        reading.shaper = side.shaper.get();
        side.n_prompt  = side.context.size();
        speakers_[role]->begin(reading, sequence.draft + 2);
    }
    if (sequence.max_tokens == 0) sequence.finish = KAD_FINISH_LENGTH;
}

Row & Generator::row(Sequence & sequence, kad_role role) { return speakers_[role]->row(sequence.sides[role].context); }

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
        said.guess = guessed ? (right ? 1 : 2) : 0;
        if (!say(sequence, event, said) || !right) break;
    }
    if (sequence.finish != KAD_FINISH_NONE) close(sequence);
}

size_t Generator::room_for_guesses(const Sequence & sequence) const {
    size_t room = std::min(sequence.draft, size_t(sequence.max_tokens) - sequence.events - 1);
    for (const Side & side : sequence.sides) room = std::min(room, settings_.n_ctx - side.context.size());
    return room;
}

// The aligned model's guess at t is its own x_t, by the very coin that the draw at t will use: right with probability
// 1 - TV(pi, q').
void Generator::guess(Sequence & sequence, size_t n) {
    Side &       side = sequence.sides[KAD_ROLE_ALIGNED];
    const size_t said = side.context.size();
    try {
        for (size_t i = 0; i < n; ++i) {
            const Token x =
                row(sequence, KAD_ROLE_ALIGNED).spoken.draw(sequence.coins(sequence.events + i, PURPOSE_PROPOSAL));
            guesses_.push_back(x);
            if (events_.ends(x)) break;
            side.context.push_back(x);
        }
    } catch (...) {
        side.context.resize(said);
        throw;
    }
    side.context.resize(said);
}

// One base pass over all guesses: the rows after the text and after each guess.
void Generator::score(Sequence & sequence) {
    Side &       side = sequence.sides[KAD_ROLE_BASE];
    const size_t said = side.context.size();
    for (const Token x : guesses_) {
        if (!events_.ends(x)) side.context.push_back(x);
    }
    try {
        speakers_[KAD_ROLE_BASE]->rows(side.context, said);
    } catch (...) {
        side.context.resize(said);
        throw;
    }
    side.context.resize(said);
}

// The event at position sequence.events: section 3 with the rows of this context and the coins of this event.
Token Generator::draw_event(Sequence & sequence, Said & said) {
    const DrawCoins coins(sequence.coins, sequence.events);
    said.logprob = said.base_share = NAN;
    if (!sequence.sides[KAD_ROLE_BASE].active) {
        const Distribution & q = row(sequence, KAD_ROLE_ALIGNED).spoken;
        const Token          x = q.draw(coins.proposal);
        said.source            = KAD_SOURCE_ALIGNED;
        said.deferred_mass     = 1;
        if (sequence.logprobs) said.logprob = q.log_probability(x), said.base_share = 0;
        return x;
    }
    Row & base = row(sequence, KAD_ROLE_BASE);
    if (!sequence.sides[KAD_ROLE_ALIGNED].active) {
        // Rule base without an aligned model: no proposal, so the target itself by the third coin.
        const Token y      = base.spoken.draw(coins.residual);
        said.source        = KAD_SOURCE_BASE;
        said.deferred_mass = 0;
        if (sequence.logprobs) said.logprob = base.spoken.log_probability(y), said.base_share = 1;
        return y;
    }
    const bool both = looks_at(settings_.rule, KAD_ROLE_ALIGNED);
    decide(settings_.rule, &base.at_rule, both ? &row(sequence, KAD_ROLE_ALIGNED).at_rule : nullptr, kept_);
    said.deferred_mass = deferred_mass(base.spoken, kept_);
    Outcome outcome;
    if (sequence.mode == KAD_MODE_PLAIN || sequence.logprobs ||
        !draw_without_aligned(base.spoken, kept_, coins, outcome)) {
        const Distribution & q = row(sequence, KAD_ROLE_ALIGNED).spoken;
        const Mixture        pi(base.spoken, q, kept_, rule_info(settings_.rule.kind).exchanged != 0);
        outcome            = draw(pi, q.draw(coins.proposal), coins);
        said.deferred_mass = pi.alpha();
        if (sequence.logprobs) {
            said.logprob    = std::log(pi.probability(outcome.token));
            said.base_share = pi.base_share(outcome.token);
        }
    }
    said.source = outcome.source;
    return outcome.token;
}

// Says an event: false when the text ends here.
bool Generator::say(Sequence & sequence, Token event, Said & said) {
    if (events_.ends(event)) {
        sequence.finish  = KAD_FINISH_EOG;
        sequence.settled = sequence.length;
        return false;
    }
    const kad_role role = said.source == KAD_SOURCE_BASE ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    said.id             = events_.id(role, event);
    said.bytes          = events_.bytes(event);

    bool ended = false, fits = true;
    if (events_.shared_ids()) {
        for (Side & side : sequence.sides) {
            if (side.active && side.context.size() + 1 > settings_.n_ctx) fits = false;
        }
        for (Side & side : sequence.sides) {
            if (side.active && fits) side.context.push_back(event);
        }
    } else {
        if (unfinished(said.bytes)) ended = finish_character(sequence, event, said);
        // A character that the context has no room to finish is not said.
        for (const Side & side : sequence.sides)
            fits = fits && (!side.active || side.context.size() <= settings_.n_ctx);
        const std::string text = sequence.text + said.bytes;
        for (Side & side : sequence.sides) {
            if (!side.active) continue;
            side.retokenise(text);
            if (side.context.size() > settings_.n_ctx) {
                side.context.resize(settings_.n_ctx);
                fits = false;
            }
        }
    }
    if (!fits) {
        // The text ends at the first event for which either model's own ids would exceed the context; it is not said.
        sequence.finish  = KAD_FINISH_CONTEXT;
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

// Whoever starts a character finishes it: from its own distribution, no rule, its own ids appended, the coins 16, 17, ... of
// this event. A token that cannot continue the character is the last. True when the speaker ended the text instead.
bool Generator::finish_character(Sequence & sequence, Token event, Said & said) {
    const kad_role role        = events_.id(KAD_ROLE_BASE, event) >= 0 ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    Side &         side        = sequence.sides[role];
    Speaker &      speaker     = *speakers_[role];
    const size_t   said_before = side.context.size();
    try {
        side.context.push_back(events_.id(role, event));
        for (uint64_t i = 0; unfinished(said.bytes) && side.context.size() <= settings_.n_ctx; ++i) {
            double      logprob;
            const Token id = speaker.draw_own(speaker.row(side.context),
                                              sequence.coins(sequence.events, PURPOSE_CHARACTER + i), logprob);
            said.logprob += logprob;
            const Token further = events_.event(role, id);
            if (events_.ends(further)) return true;
            const std::string & bytes        = events_.bytes(further);
            const bool          continues_it = continues(said.bytes, static_cast<unsigned char>(bytes[0]));
            said.bytes += bytes;
            side.context.push_back(id);
            if (!continues_it) break;
        }
    } catch (...) {
        side.context.resize(said_before);
        throw;
    }
    return false;
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
        throw Error(KAD_INVALID_ARGUMENT, "this run has no rows of the " +
                                              std::string(role == KAD_ROLE_BASE ? "base" : "aligned") + " model");
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
    int    passes[2]  = {};
    double seconds[2] = {};
    for (const kad_role role : ROLES) {
        if (!sequence.sides[role].active || !sequence.prefilled) continue;
        passes[role]  = speakers_[role]->count.passes - sequence.prompt_passes[role];
        seconds[role] = speakers_[role]->count.seconds - sequence.prompt_eval_s[role];
    }
    stats.base_passes      = passes[KAD_ROLE_BASE];
    stats.aligned_passes   = passes[KAD_ROLE_ALIGNED];
    stats.base_eval_s      = seconds[KAD_ROLE_BASE];
    stats.aligned_eval_s   = seconds[KAD_ROLE_ALIGNED];
    const kad_role counted = sequence.sides[KAD_ROLE_BASE].active ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    stats.prompt_cached    = int32_t(speakers_[counted]->cached());
}

} // namespace kad
