// How long to draft next? (method.md, sections 5 and 8.)
//
// A round guesses k events, one base pass of k + 1 tokens scores them, and 1 + (leading right guesses) events are said. Rounds
// are renewals, so the tokens per second of a plan are E[events] / E[seconds]. Both come from what was seen: what passes of
// each length took, how often the aligned model's row was needed, how often guesses were right. The plan with the largest
// quotient is taken. It decides how fast a text is written and never what it says.
//
// Seconds and counts are arguments: no clock, no model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kad {

// What a pass of n tokens takes with one model. Kept from text to text.
class PassTimes {
public:
    static constexpr size_t MOST = 64;

    // Values that are no time (NaN, infinite, negative) are passed over; what takes more than three times as long as expected
    // counts three times: somebody else had the processor.
    void observe(size_t n, double seconds);

    // Never below a nanosecond: a clock that stands still must not make a pass free. A length not seen yet lies on the line
    // between its neighbours. Beyond the longest seen the last slope goes on, slightly less steep: what looks as good as the
    // best is tried once. Before anything was seen: `guess` for one token.
    double seconds(double n, double guess = 0.05) const;

private:
    double estimate_[MOST + 1] = {}; // 0 = not seen
    size_t seen_[MOST + 1]     = {};

    double at(size_t n, double guess) const;
};

// What a draw of a guess or of an event takes outside passes: reading rows, the rule, tokenisers. Kept from text to text.
class DrawTime {
public:
    // A round's time outside passes, and how many draws it was for. Values that are no time are passed over. Of the first
    // two the lesser counts: the first round may have made threads. Then what takes more than three times as long as
    // expected counts three times.
    void observe(double seconds, size_t draws);

    operator double() const { return each_; }

private:
    double each_ = 0; // seconds
    size_t seen_ = 0;
};

// A share that is learnt as it goes, the latest counting most.
struct Share {
    double right, tested;

    explicit Share(double prior = 0.5, double weight = 4) : right(prior * weight), tested(weight) {}
    void add(double value, double half_life);
    void limit(double weight); // the same share, counting for no more than this
         operator double() const { return right / tested; }
};

struct Plan {
    // None: lazily where the rule allows it, plain otherwise.
    enum class Drafter { None, Aligned, NGram } drafter = Drafter::None;
    size_t guesses                                      = 0; // at most
    // The aligned model drafts, and its first pass reads so many of the table's guesses along: where its own guess is the
    // table's, the next one needs no pass.
    size_t along = 0;
};

// What a round may do.
struct PaceLimits {
    size_t guesses = 0;     // most of the aligned model, 0 = none
    bool   lazy    = false; // may the aligned model be put off until it is needed?
    size_t texts   = 1;     // that share every pass
};

// What is known of an event that was said.
struct PacedEvent {
    enum class Agreement { Unknown, No, Yes };

    Agreement aligned     = Agreement::Unknown; // was it the aligned model's own x?
    double    confidence  = -1;                 // q'(x) where x was a guess, else -1
    bool      by_base     = false;              // said by the base
    bool      needed      = true;               // was the aligned model's row needed?
    int       table       = -1;                 // the class of the n-gram table's guess, -1 for none
    bool      table_right = false;
};

// How guesses went: in one text, or in all texts so far.
struct Shares {
    static constexpr int TABLE_CLASSES = 4;
    static constexpr int BUCKETS       = 6; // of confidence

    Share right{ 0.8, 3 }; // the aligned model's guesses
    Share kept_right;      // the same where the base spoke
    Share needed{ 0.6, 3 };
    Share bucket[BUCKETS];
    Share table[TABLE_CLASSES]; // the n-gram table's guesses
    Share along[TABLE_CLASSES]; // how often they are the aligned model's own guesses

    Shares();
    void add(const PacedEvent & event, double half_life);

    // How likely a guess of this confidence is right: what its bucket has seen, and for a start the share of all.
    double right_at(double confidence) const;

    // What another text begins with: these shares with the weight of a few events.
    Shares beginning() const;
};

// One text's pace.
class Pacer {
public:
    static constexpr int TABLE_CLASSES = Shares::TABLE_CLASSES;

    // reference: NULL where there is no third model. earlier: of the texts before; what this one shows is added.
    Pacer(const PassTimes & base, const PassTimes & aligned, const PassTimes * reference, const DrawTime & draw,
          Shares & earlier);

    // table: the classes of the guesses that the n-gram table has for this round, from the first.
    Plan plan(const PaceLimits & limits, const std::vector<int> & table);

    // While the aligned model drafts: its guess number `guessed` (from 1) had the probability `confidence` under it. Is another
    // one worth its pass? By the marginal rule: go on while some longer draft adds more events per second than the text makes.
    // free: so many more need no pass of the aligned model, as long as they are the table's.
    bool go_on(size_t guessed, double confidence, size_t free = 0);

    // A guess of the aligned model where the table had one too: were they the same?
    void guessed_along(int table_class, bool same);

    void said(const PacedEvent & event);

private:
    const PassTimes & base_;
    const PassTimes & aligned_;
    const PassTimes * reference_;
    const DrawTime &  draw_;
    Shares &          earlier_;
    Shares            shares_;

    // Of the round under way.
    PaceLimits limits_;
    double     rate_     = 0; // events per second of the plan taken
    double     survival_ = 1; // that all guesses so far are right
    double     guess_s_  = 0; // what a guess of the aligned model takes

    double pass(double tokens) const;
    double draws(double n) const;
    double draft_seconds(size_t guesses, double all_right) const;
    size_t read_along(const std::vector<int> & table);
    double best_aligned(size_t & guesses) const;
    double best_table(const std::vector<int> & table, size_t & guesses) const;
};

} // namespace kad
