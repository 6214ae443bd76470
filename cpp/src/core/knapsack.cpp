// How the set is found. Write h = -p log p for the value of a token and -log p for its value per mass, which falls as p
// grows: the relaxation, in which tokens may be split, defers the least probable tokens first and splits one, the
// critical token (Dantzig 1957). Seen from the kept side it keeps the most probable ones until a needed mass is covered.
//
// The search is that of Horowitz and Sahni (1974), from the most probable token down, "keep" first: a node has decided
// the positions from `end` up, so what is free is a prefix of the order and its relaxation two binary searches in
// prefix sums. Kept positions are runs of the order, which is all a node has to store. Fixed order, fixed tolerance,
// strict improvement and a limit on nodes make the set a function of p.
//
// Three facts prune it; `missing` is the kept mass that a node still has to cover.
//
//   One token for the rest. If a completion keeps a free token with p >= missing, keeping it alone covers too, and is no
//   worse since every h >= 0. h rises up to p = 1/e and falls beyond, so the cheapest such token is the least or the
//   most probable of them: two candidates close the case, and every free token with p >= missing may then be deferred.
//   In a fine-grained tail the first candidate all but meets the relaxation, which is why most rows need few nodes.
//
//   A run ends at its first hopeless token. Let j be a kept position of the last run and A(j) the relaxation's loss when
//   j is deferred while everything before it in the run stays kept and everything below it is free: the
//   positions of the run below j are refilled, and a further mass p(j) is kept from below at costs per mass
//   c(x) = -log p, x being the depth in mass: A(j) = integral from 0 to p(j) of c(x) + log p(j) dx, with c >= -log p(j).
//   A more probable j raises the integrand and the range, so A grows with j: if the bound of j is too low, so is that of
//   every further position of the run. (A relaxation that runs out of tokens counts as c = infinity.)
//
//   Equals. Tokens of equal probability may be exchanged, so a solution may be taken to keep the first of them in the
//   order "more probable, then lower id": when one is deferred, its equals below are. Then with `end` at the last of the equals
//   the argument of the second fact holds among them: once one is hopeless, so are those before it in the run.
//
// Rounding: prefix sums are compensated, so every sum is right to about 1e-16 of the row's mass or value, far below
// SLACK and TOLERANCE; a mass as small as that itself is uncertain.
#include "knapsack.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace kad {

static uint64_t bits_of(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// -p log p for 0 < p <= 1, within 1e-15 relative to libm's, without calls so that loops vectorise. p = 2^e m with m in
// [sqrt(1/2), sqrt(2)); log m = 2 artanh(s), s = (m-1)/(m+1), s^2 < 0.0295: the series to s^23 is below 1e-18 off.
// Not libm's logarithm, whose last bit depends on the machine. A subnormal p gets a value right to 5 % in 1e-305,
// and the order by value per mass.
static inline double value_of(double p) {
    const uint64_t bits     = bits_of(p);
    const int64_t  exponent = int64_t(bits - 0x3FE6A09E667F3BCDu) >> 52; // of sqrt(1/2)
    const uint64_t scaled   = bits - (uint64_t(exponent) << 52);
    double         m;
    std::memcpy(&m, &scaled, sizeof m);
    const double s = (m - 1) / (m + 1), z = s * s;
    double       series = 1.0 / 23;
    series              = series * z + 1.0 / 21;
    series              = series * z + 1.0 / 19;
    series              = series * z + 1.0 / 17;
    series              = series * z + 1.0 / 15;
    series              = series * z + 1.0 / 13;
    series              = series * z + 1.0 / 11;
    series              = series * z + 1.0 / 9;
    series              = series * z + 1.0 / 7;
    series              = series * z + 1.0 / 5;
    series              = series * z + 1.0 / 3;
    series              = series * z + 1.0;
    return -p * (double(exponent) * 0.69314718055994530942 + 2 * s * series);
}

// Buckets by exponent and the first six bits of the mantissa: 64 to the octave, all below 2^-64 in the first.
static constexpr int      BUCKET_SHIFT = 46;
static constexpr uint64_t FIRST_BUCKET = uint64_t(1023 - 64) << 6;
static constexpr size_t   BUCKETS      = 64 * 64 + 1;

static inline size_t bucket_of(double p) {
    const uint64_t key = bits_of(p) >> BUCKET_SHIFT;
    return key > FIRST_BUCKET ? std::min(size_t(key - FIRST_BUCKET), BUCKETS - 1) : 0;
}

// A sum with Kahan's correction.
struct Sum {
    double total = 0, error = 0;

    void add(double x) {
        const double y = x - error, t = total + y;
        error = (t - total) - y;
        total = t;
    }
};

// ---- The order -----------------------------------------------------------------------------------------------------

void Knapsack::fill(const double * p, size_t n) {
    begin_.assign(BUCKETS + 1, 0);
    for (size_t i = 0; i < n; ++i) {
        if (p[i] > 0) ++begin_[bucket_of(p[i]) + 1];
    }
    for (size_t b = 0; b < BUCKETS; ++b) begin_[b + 1] += begin_[b];
    items_ = begin_[BUCKETS];
    next_  = begin_;
    p_.resize(n);
    id_.resize(n);
    for (size_t i = n; i-- > 0;) {
        if (!(p[i] > 0)) continue;
        const size_t k = next_[bucket_of(p[i])]++;
        p_[k]          = p[i];
        id_[k]         = Token(i);
    }
    sum_buckets();
}

void Knapsack::sum_buckets() {
    sorted_.assign(BUCKETS, 0);
    value_.resize(p_.size());
    mass_.resize(p_.size() + 1);
    values_.resize(p_.size() + 1);
    for (size_t k = 0; k < items_; ++k) value_[k] = value_of(p_[k]);
    Sum mass, value;
    for (size_t b = 0; b < BUCKETS; ++b) {
        mass_[begin_[b]]   = mass.total;
        values_[begin_[b]] = value.total;
        for (size_t k = begin_[b]; k < begin_[b + 1]; ++k) {
            mass.add(p_[k]);
            value.add(value_[k]);
        }
    }
    mass_[items_]   = mass.total;
    values_[items_] = value.total;
}

// Orders a bucket and fills in its prefix sums between the borders, which stay as they are.
void Knapsack::sort_bucket(size_t bucket) {
    if (sorted_[bucket]) return;
    sorted_[bucket]   = 1;
    const size_t low  = begin_[bucket];
    const size_t high = begin_[bucket + 1];
    unsorted_.clear();
    for (size_t k = low; k < high; ++k) unsorted_.push_back({ p_[k], id_[k] });
    std::sort(unsorted_.begin(), unsorted_.end(),
              [](const Item & a, const Item & b) { return a.p < b.p || (a.p == b.p && a.id > b.id); });
    Sum mass{ mass_[low], 0 }, value{ values_[low], 0 };
    for (size_t k = low; k < high; ++k) {
        p_[k]      = unsorted_[k - low].p;
        id_[k]     = unsorted_[k - low].id;
        value_[k]  = value_of(p_[k]);
        mass_[k]   = mass.total;
        values_[k] = value.total;
        mass.add(p_[k]);
        value.add(value_[k]);
    }
}

// The largest position k whose mass below it is <= mass; items_ when all is. Its bucket is sorted.
size_t Knapsack::reach(double mass) {
    if (mass_[items_] <= mass) return items_;
    size_t low = 0, high = BUCKETS; // the mass below bucket low is <= mass, that below bucket high is not
    while (high - low > 1) {
        const size_t middle                          = (low + high) / 2;
        (mass_[begin_[middle]] <= mass ? low : high) = middle;
    }
    sort_bucket(low);
    const auto first = mass_.begin() + begin_[low], last = mass_.begin() + begin_[low + 1];
    return size_t(std::upper_bound(first, last, mass) - mass_.begin()) - 1;
}

// The first position with p >= weight > 0. Its bucket is sorted.
size_t Knapsack::first_at_least(double weight) {
    const size_t bucket = bucket_of(weight);
    sort_bucket(bucket);
    const auto first = p_.begin() + begin_[bucket], last = p_.begin() + begin_[bucket + 1];
    return size_t(std::lower_bound(first, last, weight) - p_.begin());
}

// ---- The search ----------------------------------------------------------------------------------------------------

double Knapsack::kept_mass() const {
    if (runs_.empty()) return 0;
    const Run & last = runs_.back();
    return last.mass + (mass_[last.high] - mass_[last.low]);
}

double Knapsack::kept_value() const {
    if (runs_.empty()) return 0;
    const Run & last = runs_.back();
    return last.value + (values_[last.high] - values_[last.low]);
}

// The most that can be deferred when the positions below `end` are free: the relaxation keeps them from the top down and
// splits `critical`. -infinity when they cannot cover what is missing.
double Knapsack::relax(size_t end, size_t & critical) {
    ++nodes_;
    const double missing = need_ - kept_mass();
    const double room    = mass_[end] - missing; // mass to defer below end
    if (room < 0 || end == 0) return -std::numeric_limits<double>::infinity();
    critical            = std::min(reach(room), end - 1);
    const double part   = std::min(1.0, std::max(0.0, (room - mass_[critical]) / p_[critical]));
    const double others = values_[end_] - kept_value() - values_[end]; // deferred from end up
    return others + values_[critical] + part * value_[critical];
}

// Can nothing better than the best set by more than TOLERANCE be under this bound? Remembers bounds given up.
bool Knapsack::hopeless(double bound) {
    if (bound > best_ * (1 + TOLERANCE)) return false;
    ceiling_ = std::max(ceiling_, bound);
    return true;
}

// Keeps the runs and one position more (end_: none) if that is the best so far.
void Knapsack::record(size_t extra) {
    const double value = values_[end_] - kept_value() - (extra < end_ ? value_[extra] : 0);
    if (!(value > best_)) return;
    best_       = value;
    best_runs_  = runs_;
    best_extra_ = extra;
}

// One token for the rest: tries the two candidates; from the position returned up, all is deferred.
size_t Knapsack::cover(size_t end) {
    const double missing = need_ - kept_mass();
    if (missing <= 0) {
        record(end_);
        return 0;
    }
    const size_t first = missing > 1 ? end : first_at_least(missing);
    if (first >= end) return end;
    size_t cheapest = first; // of its equals the one with the lowest id
    while (cheapest + 1 < end && p_[cheapest + 1] == p_[first]) ++cheapest;
    record(cheapest);
    sort_bucket(bucket_of(p_[end - 1]));
    record(end - 1);
    return first;
}

// Keeps what the relaxation keeps, run by run, as long as something better may be below.
void Knapsack::descend(size_t end) {
    for (;;) {
        end             = cover(end);
        size_t critical = 0;
        if (hopeless(relax(end, critical))) return;
        // Tokens with p >= missing are gone, so the run is not empty, but for rounding.
        const size_t low = std::min(critical + 1, end - 1);
        runs_.push_back({ low, end, kept_mass(), kept_value() });
        end = low;
    }
}

// Defers the last kept position whose subtree may hold something better; false when there is none.
bool Knapsack::backtrack(size_t & end) {
    size_t critical;
    while (!runs_.empty()) {
        Run & last = runs_.back();
        if (last.low == last.high) {
            runs_.pop_back();
            continue;
        }
        const size_t j = last.low;
        sort_bucket(bucket_of(p_[j]));
        ++last.low;
        if (hopeless(relax(j, critical))) { // a run ends at its first hopeless token
            runs_.pop_back();
            continue;
        }
        end = first_at_least(p_[j]); // equals below are deferred with it
        if (end == j || !hopeless(relax(end, critical))) return true;
        while (last.low < last.high && p_[last.low] == p_[j]) ++last.low;
    }
    return false;
}

// The work limit: what is open joins the ceiling: the branch at `end`, and the first position of every run, whose bound
// is the run's highest.
void Knapsack::give_up(size_t end) {
    size_t critical;
    ceiling_ = std::max(ceiling_, relax(end, critical));
    for (; !runs_.empty(); runs_.pop_back()) {
        Run & last = runs_.back();
        if (last.low == last.high) continue;
        const size_t j = last.low;
        sort_bucket(bucket_of(p_[j]));
        ++last.low;
        ceiling_ = std::max(ceiling_, relax(j, critical));
    }
}

void Knapsack::search(double budget) {
    const double cap = budget * (1 + SLACK);
    end_             = cap > 0 ? first_at_least(cap) : 0;
    while (end_ < items_ && p_[end_] <= cap) ++end_; // equal to cap: fits
    if (budget >= 1) end_ = items_;                  // everything, even if the sum is a little above 1
    need_ = budget >= 1 ? 0 : mass_[end_] - cap;
    if (need_ <= 0) {
        best_runs_.clear();
        best_ = ceiling_ = values_[end_];
        return;
    }
    best_runs_.assign(1, { 0, end_, 0, 0 }); // keeping everything is feasible
    descend(end_);
    for (size_t end; backtrack(end);) {
        if (nodes_ >= NODE_LIMIT) return give_up(end);
        descend(end);
    }
}

// The set of rule primal: the most probable tokens until their mass, summed in that order, is 1 - b. In a row whose sum is
// not 1, whether float32 made it so or the caller, that sum less b takes the place of 1 - b.
void Knapsack::greedy(double budget) {
    const double total  = mass_[items_];
    const double wanted = (std::abs(total - 1) < 1e-9 ? 1 : total) - budget;
    end_                = items_;
    double mass         = 0;
    size_t low          = items_;
    while (low > 0 && mass < wanted) {
        sort_bucket(bucket_of(p_[low - 1]));
        mass += p_[--low];
    }
    best_runs_.assign(1, { low, items_, 0, 0 });
    best_ = values_[low];
    need_ = budget >= 1 ? 0 : total - budget * (1 + SLACK);
    size_t critical;
    ceiling_ = need_ > 0 ? relax(items_, critical) : values_[items_];
}

void Knapsack::finish(size_t n, KnapsackSolution & out) {
    kept_.assign(n, 0);
    const auto keep = [&](size_t low, size_t high) {
        for (size_t k = low; k < high; ++k) kept_[size_t(id_[k])] = 1;
    };
    keep(end_, items_);
    for (const Run & run : best_runs_) keep(run.low, run.high);
    if (best_extra_ < end_) keep(best_extra_, best_extra_ + 1);
    out.kept.clear();
    for (size_t i = 0; i < n; ++i) {
        if (kept_[i]) out.kept.push_back(Token(i));
    }
    out.value     = best_;
    out.bound     = std::max(best_, ceiling_);
    out.gap       = out.bound > 0 ? (out.bound - out.value) / out.bound : 0;
    out.nodes     = nodes_;
    out.certified = out.gap <= TOLERANCE;
}

void Knapsack::solve(const double * p, size_t n, double budget, bool exact, KnapsackSolution & out) {
    fill(p, n);
    runs_.clear();
    best_ = ceiling_ = 0;
    nodes_           = 0;
    end_ = best_extra_ = items_;
    exact ? search(budget) : greedy(budget);
    finish(n, out);
}

void keep_exact(const Distribution & p, double budget, KeptSet & kept) {
    thread_local Knapsack            knapsack;
    thread_local KnapsackSolution    solution;
    thread_local std::vector<double> row;
    row.resize(p.size());
    p.probabilities(row.data());
    knapsack.solve(row.data(), row.size(), budget, true, solution);
    if (solution.kept.size() == p.size()) return kept.everything();
    kept.ids = solution.kept;
    kept.some();
}

} // namespace kad
