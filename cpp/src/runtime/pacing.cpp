#include "pacing.h"

#include <algorithm>
#include <cmath>

namespace kad {

static constexpr double HALF_LIFE = 40; // events
static constexpr double BEGINNING = 6;  // events that what is known from earlier texts counts for
static constexpr double CLEARLY   = 1.15;
static constexpr double AGREES =
    0.9; // how often the aligned model is taken to agree with a base that was not compared with it
static constexpr double MARGINAL =
    0.3; // of a pass of one token: what a further token is taken to cost before it was seen

// ---- What passes take -------------------------------------------------------------------------------------------------

void PassTimes::observe(size_t n, double seconds) {
    if (n == 0 || n > MOST || !(seconds >= 0) || !std::isfinite(seconds)) return;
    double & known = estimate_[n];
    if (seen_[n] > 0) seconds = std::min(seconds, 3 * known + 1e-6);
    const double weight =
        1 / double(std::min<size_t>(++seen_[n], 6)); // the mean of the first, then the latest count most
    known += weight * (seconds - known);
    known = std::max(known, 1e-9);
}

double PassTimes::at(size_t n, double guess) const {
    if (estimate_[n] > 0) return estimate_[n];
    size_t low = n, high = n;
    while (low > 0 && estimate_[low] == 0) --low;
    while (high <= MOST && estimate_[high] == 0) ++high;
    const bool below = low > 0, above = high <= MOST;
    const auto shape = [](size_t k) { return 1 + MARGINAL * double(k - 1); };
    if (!below && !above) return guess * shape(n);
    if (!below) return estimate_[high] * shape(n) / shape(high);
    if (above) {
        const double part = double(n - low) / double(high - low);
        return estimate_[low] + part * (estimate_[high] - estimate_[low]);
    }
    // The slope from one token to the longest seen, a little less steep.
    const double one   = low > 1 ? at(1, guess) : estimate_[1] * (1 - MARGINAL);
    const double slope = low > 1 ? (estimate_[low] - one) / double(low - 1) : estimate_[1] * MARGINAL;
    return estimate_[low] + 0.8 * std::max(0.0, slope) * double(n - low);
}

double PassTimes::seconds(double n, double guess) const {
    const double most  = std::min(std::max(n, 1.0), double(MOST));
    const size_t whole = size_t(most);
    const double lower = at(whole, guess);
    const double value = most > double(whole) ? lower + (most - double(whole)) * (at(whole + 1, guess) - lower) : lower;
    // Beyond what one pass holds: several.
    return std::max(1e-9, n > double(MOST) ? value * n / double(MOST) : value);
}

void DrawTime::observe(double seconds, size_t draws) {
    if (draws == 0 || !(seconds >= 0) || !std::isfinite(seconds)) return;
    const double each = seconds / double(draws);
    if (++seen_ <= 2) {
        each_ = seen_ == 1 ? each : std::min(each, each_);
    } else {
        each_ += 0.1 * (std::min(each, 3 * each_ + 1e-6) - each_);
    }
}

void Share::limit(double weight) {
    if (tested <= weight) return;
    right *= weight / tested;
    tested = weight;
}

void Share::add(double value, double half_life) {
    const double keep = std::exp2(-1 / half_life);
    right             = right * keep + value;
    tested            = tested * keep + 1;
}

// ---- How guesses went -------------------------------------------------------------------------------------------------

Shares::Shares() : kept_right(AGREES, 2) {
    // A table's guess is not trusted before it was right a few times; longer and surer matches sooner.
    const double priors[TABLE_CLASSES] = { 0.2, 0.35, 0.5, 0.7 };
    for (int i = 0; i < TABLE_CLASSES; ++i) table[i] = along[i] = Share(priors[i], 4);
    for (Share & each : bucket) each = Share(0, 0);
}

static int bucket_of(double confidence) {
    const double borders[] = { 0.1, 0.25, 0.5, 0.75, 0.95 };
    return int(std::upper_bound(std::begin(borders), std::end(borders), confidence) - std::begin(borders));
}

double Shares::right_at(double confidence) const {
    const Share & seen = bucket[bucket_of(confidence)];
    return (seen.right + 3 * double(right)) / (seen.tested + 3);
}

void Shares::add(const PacedEvent & event, double half_life) {
    needed.add(event.needed, half_life);
    const bool known = event.aligned != PacedEvent::Agreement::Unknown;
    const bool agree = event.aligned == PacedEvent::Agreement::Yes;
    if (known && event.by_base) kept_right.add(agree, half_life);
    // Where the base spoke and the aligned model was not asked, it would have agreed as often as it did elsewhere. What was seen
    // of that is forgotten in favour of a hope, so that a text which runs lazily tries guesses again some day.
    right.add(known ? double(agree) : double(kept_right), half_life);
    if (!known) kept_right.add(AGREES, 5 * half_life);
    if (known && event.confidence >= 0) bucket[bucket_of(event.confidence)].add(agree, half_life);
    if (event.table >= 0) table[event.table].add(event.table_right, half_life);
}

Shares Shares::beginning() const {
    Shares begin = *this;
    begin.right.limit(BEGINNING);
    begin.kept_right.limit(BEGINNING);
    begin.needed.limit(BEGINNING);
    for (Share & each : begin.bucket) each.limit(BEGINNING);
    for (Share & each : begin.table) each.limit(BEGINNING);
    for (Share & each : begin.along) each.limit(BEGINNING);
    return begin;
}

// ---- What a round promises --------------------------------------------------------------------------------------------

Pacer::Pacer(const PassTimes & base, const PassTimes & aligned, const PassTimes * reference, const DrawTime & draw,
             Shares & earlier)
    : base_(base), aligned_(aligned), reference_(reference), draw_(draw), earlier_(earlier),
      shares_(earlier.beginning()) {}

// The base's pass over this many tokens of each text, and the reference's.
double Pacer::pass(double tokens) const {
    const double n = tokens * double(limits_.texts);
    return base_.seconds(n) + (reference_ ? reference_->seconds(n, 0.01) : 0);
}

// n draws of each text.
double Pacer::draws(double n) const { return draw_ * n * double(limits_.texts); }

// Seconds of a round with k guesses of the aligned model, all of which are right with probability all_right: then its row
// behind the last one may be needed too. k = 0: its row at every event; or, lazily, at those that need it, a pass over all
// that were put off.
double Pacer::draft_seconds(size_t k, double all_right) const {
    const double texts = double(limits_.texts), one = aligned_.seconds(texts, 0.01);
    const double need = limits_.lazy ? std::max(double(shares_.needed), 0.02) : 1;
    if (k > 0) return double(k) * guess_s_ + pass(double(k) + 1) + need * all_right * one;
    return pass(1) + need * aligned_.seconds(std::min(texts / need, double(PassTimes::MOST)), 0.01);
}

// How many of the table's guesses the aligned model's first pass reads along, so that its guesses come fastest. A pass over m of
// them gives 1 + a + ... + a^m guesses, as each row is of use when all tables' guesses before it were its own.
size_t Pacer::read_along(const std::vector<int> & table) {
    const double texts = double(limits_.texts);
    double       rows = 1, all = 1;
    size_t       best = 0;
    guess_s_          = aligned_.seconds(texts, 0.01);
    for (size_t m = 1; m <= table.size() && m < limits_.guesses; ++m) {
        rows += all *= double(shares_.along[table[m - 1]]);
        const double each = aligned_.seconds(double(m + 1) * texts, 0.01) / rows;
        if (each >= guess_s_) continue;
        guess_s_ = each;
        best     = m;
    }
    return best;
}

// E[events] = 1 + a + a^2 + ... + a^k, as each guess is reached when all before it were right.
double Pacer::best_aligned(size_t & guesses) const {
    const double a      = std::min(double(shares_.right), 0.995);
    double       events = 1, all = 1, best = 0;
    guesses = 0;
    for (size_t k = 0; k <= limits_.guesses; ++k) {
        if (k > 0) events += all *= a;
        const double rate = events / (draft_seconds(k, all) + draws(double(k) + events));
        if (rate <= best) continue;
        best    = rate;
        guesses = k;
    }
    return best;
}

// Of the table's guesses only the base must score all; of the aligned model one pass over them, where any event needs it.
double Pacer::best_table(const std::vector<int> & table, size_t & guesses) const {
    const double need   = limits_.lazy ? double(shares_.needed) : 1;
    double       events = 1, all = 1, best = 0;
    guesses = 0;
    for (size_t k = 1; k <= std::min(table.size(), limits_.guesses); ++k) {
        events += all *= double(shares_.table[table[k - 1]]);
        const double any  = 1 - std::pow(1 - need, events);
        const double n    = (double(k) + 1) * double(limits_.texts);
        const double time = pass(double(k) + 1) + any * aligned_.seconds(n, 0.01) + draws(2 * events);
        if (events / time <= best) continue;
        best    = events / time;
        guesses = k;
    }
    return best;
}

Plan Pacer::plan(const PaceLimits & limits, const std::vector<int> & table) {
    limits_              = limits;
    survival_            = 1;
    const size_t along   = read_along(table);
    size_t       aligned = 0, offered = 0;
    const double drafted = best_aligned(aligned), taken = best_table(table, offered);
    rate_ = drafted; // of the drafts that go_on() is asked about
    // Of two guesses at a rate the larger is the more flattering one, and the table's misses come in bunches, where the text is
    // edited: its rate must be clearly the better.
    if (taken > CLEARLY * drafted) return { Plan::Drafter::NGram, offered };
    if (aligned == 0) return {};
    return { Plan::Drafter::Aligned, limits.guesses, along }; // go_on() says when to stop
}

bool Pacer::go_on(size_t guessed, double confidence, size_t free) {
    survival_ *= shares_.right_at(confidence);
    const double a      = std::min(double(shares_.right), 0.995);
    guess_s_            = aligned_.seconds(double(limits_.texts), 0.01);
    const double now    = draft_seconds(guessed, survival_);
    double       events = 0, all = survival_;
    for (size_t k = guessed + 1; k <= limits_.guesses; ++k) {
        events += all *= a;
        const double spared = double(std::min(free, k - guessed)) * guess_s_;
        const double more   = draft_seconds(k, all) - now - spared + draws(double(k - guessed) + events);
        if (events > rate_ * more) return true;
    }
    return false;
}

// ---- What was seen ----------------------------------------------------------------------------------------------------

void Pacer::said(const PacedEvent & event) {
    shares_.add(event, HALF_LIFE);
    earlier_.add(event, 10 * HALF_LIFE);
}

void Pacer::guessed_along(int table_class, bool same) {
    shares_.along[table_class].add(same, HALF_LIFE);
    earlier_.along[table_class].add(same, 10 * HALF_LIFE);
}

} // namespace kad
