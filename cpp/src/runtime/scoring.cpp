// What does pi say of a text that is given? The numbers of a run with log-probabilities, without a draw.
//
// The contexts that a model goes through are laid out first (a path), so that a text which does not fit is refused before
// anything is evaluated. Then its rows are made ahead, many to a pass, as far as each context extends the one before: always
// where vocabularies are equal, nearly always otherwise. So each model evaluates each token once, and a token that
// re-tokenisation takes back is evaluated for the position that needs it alone.
#include <algorithm>
#include <cmath>

#include "generator.h"
#include "timer.h"
#include "utf8.h"

namespace kad {

// The contexts of one model, each as what changes from the one before. The first is the prompt, and not listed.
struct Generator::Path {
    struct Step {
        size_t             keep;
        std::vector<Token> added;
    };

    std::vector<Step>  steps;
    std::vector<Token> context;     // where the path has come while it is laid
    size_t             longest = 0; // of the contexts
    size_t             next    = 0; // the step to take next
    size_t             ready   = 0; // the rows after this many steps were made

    void add(size_t keep, std::vector<Token> added) {
        context.resize(keep);
        context.insert(context.end(), added.begin(), added.end());
        longest = std::max(longest, context.size());
        steps.push_back({ keep, std::move(added) });
    }
    void append(Token id) { add(context.size(), { id }); }
    void move_to(const std::vector<Token> & to) {
        const size_t n    = std::min(context.size(), to.size());
        const auto   keep = std::mismatch(to.begin(), to.begin() + ptrdiff_t(n), context.begin()).first;
        add(size_t(keep - to.begin()), { keep, to.end() });
    }
};

// A character made of several tokens, as finish_character() says it.
struct Generator::Character {
    std::string bytes;
    bool        open; // does the next token belong to it?

    Character(const std::string & first, bool whole) : bytes(first), open(!whole && unfinished(first)) {}
    void add(const std::string & further) {
        // A token that cannot go on with the character is its last, and so is one without bytes: the text's end.
        open = !further.empty() && continues(bytes, static_cast<unsigned char>(further[0]));
        bytes += further;
        open = open && unfinished(bytes);
    }
};

// The bytes that an id adds to the text: none for what cannot be said, and for the end.
const std::string & Generator::bytes_of(const Given & event, size_t i) const {
    static const std::string none;
    const Token              known = events_.event(event.speaker, event.ids[i]);
    return known < 0 ? none : events_.bytes(known);
}

static std::string at_event(size_t i) { return " at event " + std::to_string(i); }

void Generator::check_given(const Given & event, size_t i) const {
    const Vocabulary * vocabulary = events_.vocabulary(event.speaker);
    const std::string  name       = role_name(event.speaker);
    if (!vocabulary || !stages_[event.speaker])
        throw Error(KAD_INVALID_ARGUMENT, "source " + name + at_event(i) + ": no " + name + " model speaks here");
    if (event.ids.empty()) throw Error(KAD_INVALID_ARGUMENT, "no id" + at_event(i) + "; expected at least one");
    const size_t n = events_.row_size(event.speaker); // with equal vocabularies what all models have
    for (const Token id : event.ids) {
        if (id >= 0 && size_t(id) < n) continue;
        throw Error(KAD_INVALID_ARGUMENT, "id " + std::to_string(id) + at_event(i) + " is no token of the " + name +
                                              " model; expected 0 to " + std::to_string(n - 1));
    }
    Character character(bytes_of(event, 0), events_.shared_ids());
    for (size_t k = 1; k < event.ids.size(); ++k) {
        if (!character.open) {
            throw Error(KAD_INVALID_ARGUMENT, std::to_string(event.ids.size()) + " ids" + at_event(i) + ", but " +
                                                  std::to_string(k) +
                                                  " make the event; give the others events of their own");
        }
        character.add(bytes_of(event, k));
    }
}

// Tokens as events: those that make one character are one.
std::vector<Given> Generator::join_characters(const std::vector<Given> & tokens) const {
    std::vector<Given> events;
    Character          character("", true);
    for (const Given & token : tokens) {
        if (character.open && token.speaker == events.back().speaker) {
            events.back().ids.push_back(token.ids[0]);
            character.add(bytes_of(token, 0));
        } else {
            events.push_back(token);
            character = Character(bytes_of(token, 0), events_.shared_ids());
        }
    }
    return events;
}

// ---- The contexts -----------------------------------------------------------------------------------------------------

// One event further: the contexts of its further tokens, then those after it.
void Generator::follow(const Sequence & sequence, const Given & event, bool by_token, std::string & text,
                       Path * paths) const {
    if (events_.shared_ids()) {
        for (const kad_role role : ROLES) {
            if (sequence.sides[role].active) paths[role].append(event.ids[0]);
        }
        return;
    }
    Character character(bytes_of(event, 0), false);
    for (size_t k = 1; k < event.ids.size(); ++k) {
        paths[event.speaker].append(event.ids[k - 1]);
        character.add(bytes_of(event, k));
    }
    // A character that goes on, but has no more tokens: its speaker ended the text there.
    if (character.open && !by_token) paths[event.speaker].append(event.ids.back());
    text += character.bytes;
}

void Generator::lay_paths(Sequence & sequence, const std::vector<Given> & events, bool by_token, Path * paths) const {
    for (const kad_role role : ROLES) paths[role].context = sequence.sides[role].context;
    std::string text;
    for (const Given & event : events) {
        follow(sequence, event, by_token, text, paths);
        for (const kad_role role : ROLES) {
            Side & side = sequence.sides[role];
            if (!side.active || events_.shared_ids()) continue;
            side.retokenise(text);
            paths[role].move_to(side.context);
        }
    }
    for (const kad_role role : ROLES) {
        Side & side = sequence.sides[role];
        if (!side.active) continue;
        side.context.resize(side.n_prompt);
        if (!events.empty()) paths[role].steps.pop_back(); // nothing follows the last event: its row is not asked for
        if (paths[role].longest <= settings_.n_ctx) continue;
        throw Error(KAD_CONTEXT_TOO_SMALL, "prompt and text have " + std::to_string(paths[role].longest) +
                                               " tokens for the " + role_name(role) + " model, but the context holds " +
                                               std::to_string(settings_.n_ctx) + "; shorten the text or raise n_ctx");
    }
}

// Rows of one pass that are kept at a time: 32 MiB of them, but at least 8.
size_t Generator::rows_ahead(const Sequence & sequence, kad_role role) const {
    constexpr size_t BYTES = size_t(32) << 20;
    const size_t     own = events_.row_size(role), over_events = events_.shared_ids() ? 0 : events_.size();
    const size_t     copies = sequence.sides[role].shaper ? 2 : 1;
    const size_t     kept   = BYTES / (sizeof(float) * copies * (own + over_events));
    return std::min(std::max<size_t>(kept, 8), stages_[role]->max_pass());
}

// The next context of this role; where its row is not made yet, so are those of the contexts that extend it.
void Generator::advance(Sequence & sequence, kad_role role, Path & path) {
    if (path.next == path.steps.size()) return;
    std::vector<Token> & context = sequence.sides[role].context;
    const Path::Step &   step    = path.steps[path.next++];
    context.resize(step.keep);
    context.insert(context.end(), step.added.begin(), step.added.end());
    if (path.next <= path.ready) return;
    const size_t       most   = step.keep + rows_ahead(sequence, role);
    std::vector<Token> longer = context;
    path.ready                = path.next;
    for (; path.ready < path.steps.size(); ++path.ready) {
        const Path::Step & ahead = path.steps[path.ready];
        if (ahead.keep != longer.size() || longer.size() + ahead.added.size() > most) break;
        longer.insert(longer.end(), ahead.added.begin(), ahead.added.end());
    }
    stages_[role]->make_rows({ { &speaker(sequence, role), &longer, context.size() } });
}

// ---- The numbers ------------------------------------------------------------------------------------------------------

static Said unknown() {
    Said said    = {};
    said.logprob = said.base_share = said.deferred_mass = said.base_logprob = said.aligned_logprob = NAN;
    return said;
}

// An event at this position, -1 for one that cannot be said: what draw_event() would tell of it.
Said Generator::weigh(Sequence & sequence, Token event) {
    const bool base = sequence.sides[KAD_ROLE_BASE].active, aligned = sequence.sides[KAD_ROLE_ALIGNED].active;
    Said       said = unknown();
    pi_.reset();
    if (base && aligned) {
        sequence.now.decided = false;
        decide_kept(sequence);
        mix(sequence);
        said.deferred_mass = pi_->alpha();
        if (event >= 0) describe(sequence, event, said);
    } else {
        const kad_role role = base ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
        const Row &    own  = row(sequence, role);
        said.deferred_mass  = base ? 0 : 1;
        if (event >= 0) describe_alone(own.spoken, role, event, said);
    }
    if (event >= 0) return said;
    said.logprob = -INFINITY;
    if (base) said.base_logprob = -INFINITY;
    if (aligned) said.aligned_logprob = -INFINITY;
    if (!is_joint()) said.base_share = base && !aligned ? 1 : 0;
    return said;
}

// An event and the further tokens of its character; then the contexts after it.
void Generator::weigh_event(Sequence & sequence, const Given & event, bool by_token, Path * paths,
                            std::vector<Said> & out) {
    const kad_role role = event.speaker;
    out.push_back(weigh(sequence, events_.event(role, event.ids[0])));
    sequence.alpha_sum += out.back().deferred_mass;
    Character  character(bytes_of(event, 0), events_.shared_ids());
    const auto further = [&](Token id) {
        advance(sequence, role, paths[role]);
        const double logprob =
            speaker(sequence, role).own(row(sequence, role)).log_probability(events_.folded(role, id));
        if (by_token) out.push_back(unknown());
        Said &   said = out.back();
        double & own  = role == KAD_ROLE_BASE ? said.base_logprob : said.aligned_logprob;
        if (by_token) {
            said.logprob = own = logprob;
            said.base_share    = role == KAD_ROLE_BASE ? 1 : 0;
        } else {
            said.logprob += logprob;
            own += logprob;
        }
    };
    for (size_t k = 1; k < event.ids.size(); ++k) {
        further(event.ids[k]);
        character.add(bytes_of(event, k));
    }
    if (character.open && !by_token) {
        const Token end = events_.end_id(role);
        if (end >= 0) {
            further(end);
        } else {
            out.back().logprob = -INFINITY; // nothing could have ended it
        }
    }
    for (const kad_role each : ROLES) {
        if (sequence.sides[each].active) advance(sequence, each, paths[each]);
    }
}

std::vector<Said> Generator::score_text(Sequence & sequence, const std::vector<Given> & given, bool by_token) {
    if (sequence.prefilled || (sequence.finish != KAD_FINISH_NONE && sequence.max_tokens > 0))
        throw Error(KAD_BAD_STATE, "this sequence has begun or ended; open a new one to score a text");
    if (!sequence.constraints.empty()) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "a grammar is given, but scores are those of pi before a grammar; leave the grammar out");
    }
    for (size_t i = 0; i < given.size(); ++i) check_given(given[i], i);
    const std::vector<Given> events = by_token ? join_characters(given) : given;
    Path                     paths[ROLE_COUNT];
    sequence.finish = KAD_FINISH_LENGTH;
    lay_paths(sequence, events, by_token, paths);
    sequence.mode  = KAD_MODE_PLAIN;
    sequence.draft = 0;
    sequence.note.clear();
    for (const kad_role role : ROLES) {
        if (sequence.sides[role].active) speaker(sequence, role).keep_rows(rows_ahead(sequence, role) + 1);
    }
    const auto        start = Clock::now();
    std::vector<Said> out;
    if (events.empty()) return out;
    choose_running({ &sequence });
    while (!prefill(sequence)) {
    }
    sequence.prompt_s    = since(start);
    const auto prefilled = Clock::now();
    for (const Given & event : events) {
        weigh_event(sequence, event, by_token, paths, out);
        ++sequence.events;
    }
    sequence.generate_s = since(prefilled);
    return out;
}

} // namespace kad
