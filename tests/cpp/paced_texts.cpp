// The pacer and the n-gram table without models: a text's guesses, right or wrong, are given, and what passes take. tests/test_pacing.py
// reads the declarations between the marks.
#include <algorithm>
#include <vector>

#include "runtime/ngram.h"
#include "runtime/pacing.h"

extern "C" {
/* pacing: begin */
// One text: n events. right[t]: the aligned model's guess at t is the outcome; confidence[t]: its probability; needed[t]: the
// event needs the aligned model's row; table[t]: the class of the n-gram table's guess at t, -1 = none; table_right[t].
typedef struct pace_text {
    int32_t         n;
    const int32_t * right;
    const double *  confidence;
    const int32_t * needed;
    const int32_t * table;
    const int32_t * table_right;
} pace_text;

typedef struct pace_machine {
    double  base[65], aligned[65]; // seconds of a pass of n tokens
    double  clock;                 // what the pacer is told, as a multiple of them: 0 stands still, NaN is no time
    int32_t lazy, most;            // may the aligned model be put off? most guesses
    int32_t copies;                // so many texts run in step, all the same
    double  draw, first;           // seconds of one draw; of the first one more
} pace_machine;

enum { PACE_AUTO = -2, PACE_PLAIN = -1, PACE_LAZY = 0 }; // else a fixed draft

// Writes the texts one after the other; seconds[i] of each. base_tokens: how often a base pass had this many tokens, [65].
void pace_write(const pace_machine * machine, const pace_text * texts, int32_t n_texts, int32_t how, double * seconds,
                int32_t * base_tokens);

// PassTimes after these observations: seconds(n) into out[64], n = 1 .. 64.
void pace_times(const int32_t * n_tokens, const double * seconds, int32_t n, double * out);

// The n-gram table after these events: at most `most` guesses; their number.
int32_t ngram_guess(const int32_t * events, int32_t n, int32_t most, int32_t * guesses, int32_t * match);
/* pacing: end */
}

namespace {

using namespace kad;

class Simulation {
public:
    Simulation(const pace_machine & machine, int32_t how, int32_t * base_tokens)
        : machine_(machine), how_(how), base_tokens_(base_tokens), first_(machine.first) {}

    double write(const pace_text & text) {
        Pacer pacer(base_, aligned_, nullptr, draw_, earlier_);
        pacer_  = &pacer;
        text_   = &text;
        total_  = 0;
        behind_ = 0;
        for (t_ = 0; t_ < text.n;) round();
        return total_;
    }

private:
    const pace_machine & machine_;
    int32_t              how_;
    int32_t *            base_tokens_;
    PassTimes            base_, aligned_;
    DrawTime             draw_;
    Shares               earlier_;
    Pacer *              pacer_  = nullptr;
    const pace_text *    text_   = nullptr;
    int32_t              t_      = 0;
    int                  behind_ = 0; // events that the aligned model has not evaluated
    double               total_  = 0;
    double               first_  = 0; // what only the first draw takes

    // n tokens of each copy, in as few passes as 64 tokens a pass allow.
    void spend(PassTimes & times, const double * seconds, int n) {
        for (int left = n * machine_.copies; left > 0; left -= 64) {
            const int m = std::min(left, 64);
            times.observe(size_t(m), seconds[m] * machine_.clock);
            total_ += seconds[m];
        }
    }
    void ask_aligned() {
        spend(aligned_, machine_.aligned, std::max(1, behind_));
        behind_ = 0;
    }

    Plan choose() {
        const int32_t room = std::min(machine_.most, text_->n - t_ - 1);
        if (how_ == PACE_AUTO) {
            std::vector<int> classes;
            for (int32_t i = t_; i < t_ + room && text_->table && text_->table[i] >= 0; ++i)
                classes.push_back(text_->table[i]);
            PaceLimits limits;
            limits.guesses = size_t(room);
            limits.lazy    = machine_.lazy != 0;
            limits.texts   = size_t(machine_.copies);
            return pacer_->plan(limits, classes);
        }
        if (how_ <= 0) return {};
        return { Plan::Drafter::Aligned, size_t(std::min(how_, room)) };
    }

    void round() {
        const Plan plan    = choose();
        size_t     guesses = plan.guesses;
        if (plan.drafter == Plan::Drafter::Aligned) {
            guesses = draft(plan);
            behind_ = 1;
        }
        spend(base_, machine_.base, int(guesses) + 1);
        ++base_tokens_[guesses + 1];
        const int32_t before = t_;
        say(plan, guesses);
        const size_t draws   = (guesses + size_t(t_ - before)) * size_t(machine_.copies);
        const double drawing = machine_.draw * double(draws) + first_;
        first_               = 0;
        draw_.observe(drawing * machine_.clock, draws);
        total_ += drawing;
    }

    // The first pass reads table's guesses along; as long as they are the aligned model's own, the next one needs no pass.
    size_t draft(const Plan & plan) {
        size_t guesses = 0, free = plan.along;
        behind_ += int(plan.along);
        ask_aligned();
        for (bool as_table = true;;) {
            const int32_t at = t_ + int32_t(guesses);
            ++guesses;
            behind_  = 1; // its own guess
            as_table = as_table && text_->table && text_->table[at] >= 0;
            if (as_table) {
                as_table = text_->right[at] && text_->table_right[at];
                pacer_->guessed_along(text_->table[at], as_table);
            }
            if (!as_table) free = 0;
            if (guesses >= plan.guesses || (how_ == PACE_AUTO && !pacer_->go_on(guesses, text_->confidence[at], free)))
                return guesses;
            if (free > 0) {
                --free;
            } else {
                ask_aligned();
            }
        }
    }

    void say(const Plan & plan, size_t guesses) {
        const bool table = plan.drafter == Plan::Drafter::NGram, plain = how_ == PACE_PLAIN || !machine_.lazy;
        bool       asked = plan.drafter == Plan::Drafter::Aligned; // the aligned rows of all guesses are there
        for (size_t i = 0;; ++i, ++t_) {
            const bool guessed = i < guesses, needs = plain || text_->needed[t_];
            if (needs && !(asked && guessed)) {
                if (table && !asked) behind_ += int(guesses);
                ask_aligned();
                asked = asked || table;
            }
            const bool right = table ? text_->table_right[t_] : text_->right[t_];
            tell(guessed && !table, needs || (guessed && !table));
            if (!asked) ++behind_;
            if (guessed && right) continue;
            ++t_;
            return;
        }
    }

    void tell(bool drafted, bool known) {
        using Agreement = PacedEvent::Agreement;
        PacedEvent event;
        event.aligned     = !known ? Agreement::Unknown : text_->right[t_] ? Agreement::Yes : Agreement::No;
        event.confidence  = drafted ? text_->confidence[t_] : -1;
        event.needed      = text_->needed[t_] != 0;
        event.by_base     = !event.needed;
        event.table       = text_->table ? text_->table[t_] : -1;
        event.table_right = text_->table && text_->table_right[t_];
        pacer_->said(event);
    }
};

} // namespace

void pace_write(const pace_machine * machine, const pace_text * texts, int32_t n_texts, int32_t how, double * seconds,
                int32_t * base_tokens) {
    Simulation simulation(*machine, how, base_tokens);
    for (int32_t i = 0; i < n_texts; ++i) seconds[i] = simulation.write(texts[i]);
}

void pace_times(const int32_t * n_tokens, const double * seconds, int32_t n, double * out) {
    PassTimes times;
    for (int32_t i = 0; i < n; ++i) times.observe(size_t(n_tokens[i]), seconds[i]);
    for (int k = 1; k <= 64; ++k) out[k - 1] = times.seconds(k);
}

int32_t ngram_guess(const int32_t * events, int32_t n, int32_t most, int32_t * guesses, int32_t * match) {
    NGramTable table;
    for (int32_t i = 0; i < n; ++i) table.append(events[i]);
    std::vector<NGramTable::Guess> found;
    table.guess(size_t(most), found);
    for (size_t i = 0; i < found.size(); ++i) {
        guesses[i] = found[i].event;
        match[i]   = found[i].match;
    }
    return int32_t(found.size());
}
