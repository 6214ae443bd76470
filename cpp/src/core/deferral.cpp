#include "deferral.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <iterator>

#include "knapsack.h"

namespace kad {

static constexpr const char * KAD_PAPER      = "KAD, arXiv 2510.27017";
static constexpr const char * CASCADES_PAPER = "speculative cascades, arXiv 2405.19261";

// By kad_rule_kind. Name, formula, source; threshold, its range; lazy, exchanged, reference.
static const kad_rule_info RULES[] = {
    { "dual", "S = {v : p(v) >= t}", KAD_PAPER, 0.4, 0, 1, 1, 0, 0 },
    { "primal", "S = smallest set of most probable tokens with mass >= 1 - t", KAD_PAPER, 0.9, 0, 1, 1, 0, 0 },
    { "exact", "S = complement of the set of mass <= t with the largest sum of -p log p", KAD_PAPER, 0.9, 0, 1, 1, 0,
      0 },
    { "nudging", "S = everything if max p >= t, else nothing", "NUDGING, arXiv 2410.09300", 0.4, 0, 1, 0, 0, 0 },
    { "bet", "S = {v : p(v) >= max q - t}", "rejection criteria, arXiv 2604.16146", 0.2, 0, 1, 0, 0, 0 },
    { "chow", "S = nothing if max q >= 1 - t, else everything", CASCADES_PAPER, 0.5, 0, 1, 0, 0, 0 },
    { "diff", "S = nothing if max q >= max p - t, else everything", CASCADES_PAPER, 0, -1, 1, 0, 0, 0 },
    { "opt", "S = nothing if max q >= max p - t TV(p, q), else everything", CASCADES_PAPER, 0.5, 0, 10, 0, 0, 0 },
    { "token-v1", "T = {v : q(v) >= max p - t}", CASCADES_PAPER, 0, -1, 1, 0, 1, 0 },
    { "token-v2", "T = {v : p(v) >= max p - t}", CASCADES_PAPER, 0, -1, 1, 0, 1, 0 },
    { "token-v3", "T = {v : p(v) >= (1 - t) max p}", CASCADES_PAPER, 0.5, 0, 1, 0, 1, 0 },
    { "implicit-reward", "no set; pi proportional to p (q / r)^t", "proxy tuning, arXiv 2401.08565", 1, 0, 10, 0, 0,
      1 },
    { "base", "S = everything: pi = p", "speculative sampling, arXiv 2211.17192", 0, 0, 0, 0, 0, 0 },
    { "aligned", "S = nothing: pi = q", "the aligned model alone", 0, 0, 0, 0, 0, 0 },
};

int32_t rule_count() { return int32_t(std::size(RULES)); }

const kad_rule_info & rule_info(int32_t kind) {
    if (kind < 0 || kind >= rule_count()) {
        throw Error(KAD_INVALID_ARGUMENT, "rule kind " + std::to_string(kind) + " is unknown; expected 0 to " +
                                              std::to_string(rule_count() - 1));
    }
    return RULES[kind];
}

bool KeptSet::contains(Token v) const {
    if (extent != Extent::Some) return extent == Extent::Everything;
    return std::binary_search(ids.begin(), ids.end(), v);
}

// Appends the entries that pass, without a branch for each: many may, here and there. Where any entry of a block passes, `above`
// must hold of its largest logit: blocks of which it does not are not read.
template <class Above, class Passes>
static void append(const Distribution & row, const Above & above, const Passes & passes, std::vector<Token> & entries) {
    const std::vector<float> & maxima = row.block_maxima();
    for (size_t b = 0; b < maxima.size(); ++b) {
        if (!above(maxima[b])) continue;
        const size_t begin = b * Distribution::BLOCK, end = std::min(row.entries(), begin + Distribution::BLOCK);
        size_t       count = entries.size();
        entries.resize(count + (end - begin));
        for (size_t i = begin; i < end; ++i) {
            entries[count] = Token(i);
            count += size_t(passes(row.logits()[i], Token(i)));
        }
        entries.resize(count);
    }
}

// Keeps the tokens of those entries.
template <class Above, class Passes>
static void keep(const Distribution & row, const Above & above, const Passes & passes, KeptSet & kept) {
    kept.ids.clear();
    append(row, above, passes, kept.ids);
    for (Token & v : kept.ids) v = row.event(size_t(v));
    kept.some();
}

// {v : row(v) >= threshold}. A threshold of 0 or less keeps everything, tokens of probability zero included. What lies within
// 1e-13 of the threshold is kept: a token that meets it exactly (token-v2's best at t = 0) is not lost to rounding.
// A subtraction rounds monotonely: where a block's largest logit does not reach the threshold, nothing in it does.
static void keep_at_least(const Distribution & row, double threshold, KeptSet & kept) {
    if (threshold <= 0) return kept.everything();
    const double best = row.largest(), reach = row.reach(std::log(threshold) - 1e-13);
    const auto   reaches = [&](float logit, Token = 0) { return double(logit) - best >= reach; };
    keep(row, reaches, reaches, kept);
}

static double best(const Distribution & row) { return row.probability(row.top()); }

static void keep_all_unless(bool defer, KeptSet & kept) { return defer ? kept.nothing() : kept.everything(); }

void keep_dual(const Distribution & p, double lambda, KeptSet & kept) { keep_at_least(p, lambda, kept); }

// ---- primal ------------------------------------------------------------------------------------------------------------
// Order the tokens by descending logit, of equals the lower id first. The smallest set of most probable tokens with mass
// >= 1 - b ends at one critical token c: the first of the order at which the sum reaches 1 - b. It is found without a sort:
//
//   1. Where the best tokens of some blocks together have the mass 1 - b, c is no less probable than the worst of them: all
//      that are at least as probable as that one have it too. The others are left out, and blocks without any are not read.
//   2. A histogram of mass over BINS intervals of the logit. The bin is a monotone function of the logit (subtraction,
//      product and the nearest integer all round monotonely), so tokens of earlier bins come before those of later ones, and c lies
//      in the first bin at whose end the sum reaches 1 - b.
//   3. Only that bin's tokens are looked at further: the same again between their highest and lowest logit, until they are
//      few, or all equal. Every level leaves out tokens: the highest lies in the first bin and the lowest in the last.
//   4. What is left is put in order (equals are in order: entries ascend) and summed one by one.
//
// Sums are in another order than a descending one, in double: a mass within 1e-12 of 1 - b may be seen either way. Until step
// 4 masses are weights, not yet divided by their total.

static constexpr size_t BINS  = 1024;
static constexpr size_t FEW   = 256; // so many are sorted
static constexpr double REACH = 64; // in units of the temperature: what lies further below the best shares the last bin

// Some entries of a row in ascending order: all of it, or those that are listed. A workspace: a row like an earlier one
// allocates nothing.
struct Candidates {
    const float *         logits = nullptr;
    size_t                n      = 0;
    std::vector<double>   mass;
    std::vector<float>    own_logits; // of what is listed
    std::vector<Token>    listed;     // entries; empty for the whole row
    double                before = 0; // the mass of the tokens that come before all of these
    std::vector<uint32_t> bin_of;
    std::vector<double>   bins;
    std::vector<size_t>   order;
    std::vector<float>    best; // of blocks

    size_t entry(size_t k) const { return listed.empty() ? k : size_t(listed[k]); }
};

// A logit that the critical token does not lie below (step 1); -inf where the best tokens of all blocks have not the mass.
// They must have more than it by what rounding could take away.
static float lowest_needed(const Distribution & p, double wanted, std::vector<float> & best) {
    best = p.block_maxima();
    std::make_heap(best.begin(), best.end());
    double mass = 0;
    for (auto end = best.end(); end != best.begin(); --end) {
        std::pop_heap(best.begin(), end);
        mass += p.weight(*(end - 1));
        if (mass >= wanted + 1e-12 * p.total()) return *(end - 1);
    }
    return -INFINITY;
}

// The whole row, or of it what is not below `lowest`.
static void collect(const Distribution & p, float lowest, Candidates & c) {
    c.before = 0;
    c.listed.clear();
    c.logits = p.logits();
    c.n      = p.entries();
    if (lowest > -INFINITY) {
        const auto above = [&](float logit, Token = 0) { return logit >= lowest; };
        append(p, above, above, c.listed);
        c.n = c.listed.size();
        c.own_logits.resize(c.n);
        for (size_t k = 0; k < c.n; ++k) c.own_logits[k] = p.logits()[c.listed[k]];
        c.logits = c.own_logits.data();
    }
    c.mass.resize(c.n);
    p.weights(c.logits, c.n, c.mass.data());
}

// The intervals of one level, and in c.bin_of the one of each candidate.
struct Bins {
    float lowest, high;

    Bins(Candidates & c, double temperature) {
        extent(c.logits, c.n, lowest, high);
        const double low   = std::max(double(lowest), double(high) - std::min(REACH * temperature, double(FLT_MAX)));
        const double scale = std::min(double(BINS) / (double(high) - low), DBL_MAX); // finite, as 0 * inf would be NaN
        c.bin_of.resize(c.n);
        bins_of(c.logits, c.n, high, scale, uint32_t(BINS - 1), c.bin_of.data());
    }
};

// The mass of each bin. Neighbours add to different histograms: where most share a bin, each would wait for the one before.
static void fill_bins(Candidates & c) {
    constexpr size_t WAYS = 4;
    c.bins.assign(WAYS * BINS, 0);
    for (size_t k = 0; k < c.n; ++k) c.bins[k % WAYS * BINS + c.bin_of[k]] += c.mass[k];
    for (size_t way = 1; way < WAYS; ++way) {
        for (size_t b = 0; b < BINS; ++b) c.bins[b] += c.bins[way * BINS + b];
    }
}

// The bin in which the sum reaches `wanted`; c.before grows by the bins before it. If none does: BINS for the whole row, and
// of a bin that was seen to reach it in a sum of another order, the last with mass.
static size_t crossing_bin(double wanted, Candidates & c) {
    fill_bins(c);
    size_t last = BINS;
    for (size_t b = 0; b < BINS; ++b) {
        if (!(c.bins[b] > 0)) continue;
        if (last < BINS) c.before += c.bins[last];
        last = b;
        if (c.before + c.bins[b] >= wanted) return b;
    }
    return c.listed.empty() ? BINS : last;
}

// Leaves the tokens of one bin, moving them down: place `left` is never beyond k.
static void narrow(size_t bin, Candidates & c) {
    const bool whole = c.listed.empty();
    c.own_logits.resize(c.n);
    c.listed.resize(c.n);
    size_t left = 0;
    for (size_t k = 0; k < c.n; ++k) {
        c.mass[left]       = c.mass[k];
        c.own_logits[left] = c.logits[k];
        c.listed[left]     = whole ? Token(k) : c.listed[k];
        left += size_t(c.bin_of[k] == bin);
    }
    c.listed.resize(left);
    c.own_logits.resize(left);
    c.logits = c.own_logits.data();
    c.n      = left;
}

// Step 4: an entry. By rounding the sum may stay below `wanted`: then the last entry of those whose bin was seen to reach it,
// and SIZE_MAX where these are the whole row.
static size_t sum_in_order(Candidates & c, bool all_equal, double total, double wanted) {
    c.order.resize(c.n);
    for (size_t k = 0; k < c.n; ++k) c.order[k] = k;
    if (!all_equal) {
        std::sort(c.order.begin(), c.order.end(), [&](size_t a, size_t b) {
            return c.logits[a] > c.logits[b] || (c.logits[a] == c.logits[b] && a < b);
        });
    }
    double sum = c.before / total;
    for (const size_t k : c.order) {
        sum += c.mass[k] / total;
        if (sum >= wanted) return c.entry(k);
    }
    return c.listed.empty() ? SIZE_MAX : c.entry(c.order.back());
}

// The critical token's entry; SIZE_MAX if the sum over the whole row stays below `wanted` by rounding.
static size_t critical_entry(const Distribution & p, double wanted) {
    thread_local Candidates c;
    const double            wanted_weight = wanted * p.total();
    collect(p, lowest_needed(p, wanted_weight, c.best), c);
    for (;;) {
        const Bins bins(c, p.temperature());
        const bool all_equal = bins.high == bins.lowest;
        if (c.n <= FEW || all_equal) return sum_in_order(c, all_equal, p.total(), wanted);
        const size_t crossing = crossing_bin(wanted_weight, c);
        if (crossing == BINS) return SIZE_MAX;
        narrow(crossing, c);
    }
}

void keep_primal(const Distribution & p, double budget, KeptSet & kept) {
    if (1 - budget <= 0) return kept.nothing();
    const size_t critical = critical_entry(p, 1 - budget);
    if (critical == SIZE_MAX) return kept.everything();
    const float last = p.logits()[critical];
    keep(
        p, [&](float logit) { return logit >= last; },
        [&](float logit, Token i) { return (logit > last) | ((logit == last) & (size_t(i) <= critical)); }, kept);
}

void keep_nudging(const Distribution & p, double gamma, KeptSet & kept) {
    const bool sure = gamma <= 0 || 0 >= p.reach(std::log(gamma) - 1e-13);
    return sure ? kept.everything() : kept.nothing();
}

void keep_bet(const Distribution & p, const Distribution & q, double lambda, KeptSet & kept) {
    keep_at_least(p, best(q) - lambda, kept);
}

void keep_chow(const Distribution & q, double a, KeptSet & kept) { keep_all_unless(best(q) >= 1 - a, kept); }

void keep_diff(const Distribution & p, const Distribution & q, double a, KeptSet & kept) {
    keep_all_unless(best(q) >= best(p) - a, kept);
}

void keep_opt(const Distribution & p, const Distribution & q, double a, KeptSet & kept) {
    keep_all_unless(best(q) >= best(p) - a * total_variation(p, q), kept);
}

void keep_token_v1(const Distribution & p, const Distribution & q, double a, KeptSet & kept) {
    keep_at_least(q, best(p) - a, kept);
}

void keep_token_v2(const Distribution & p, double a, KeptSet & kept) { keep_at_least(p, best(p) - a, kept); }

void keep_token_v3(const Distribution & p, double a, KeptSet & kept) { keep_at_least(p, (1 - a) * best(p), kept); }

void decide(const kad_rule & rule, const Distribution * p, const Distribution * q, KeptSet & kept) {
    const double t = rule.threshold;
    switch (rule.kind) {
        case KAD_RULE_DUAL: return keep_dual(*p, t, kept);
        case KAD_RULE_PRIMAL: return keep_primal(*p, t, kept);
        case KAD_RULE_EXACT: return keep_exact(*p, t, kept);
        case KAD_RULE_NUDGING: return keep_nudging(*p, t, kept);
        case KAD_RULE_BET: return keep_bet(*p, *q, t, kept);
        case KAD_RULE_CHOW: return keep_chow(*q, t, kept);
        case KAD_RULE_DIFF: return keep_diff(*p, *q, t, kept);
        case KAD_RULE_OPT: return keep_opt(*p, *q, t, kept);
        case KAD_RULE_TOKEN_V1: return keep_token_v1(*p, *q, t, kept);
        case KAD_RULE_TOKEN_V2: return keep_token_v2(*p, t, kept);
        case KAD_RULE_TOKEN_V3: return keep_token_v3(*p, t, kept);
        case KAD_RULE_BASE: return kept.everything();
        case KAD_RULE_ALIGNED: return kept.nothing();
    }
    throw Error(KAD_INVALID_ARGUMENT, std::string("rule ") + rule_info(rule.kind).name + " keeps no set");
}

bool looks_at(const kad_rule & rule, kad_role role) {
    switch (rule.kind) {
        case KAD_RULE_BET:
        case KAD_RULE_DIFF:
        case KAD_RULE_OPT:
        case KAD_RULE_TOKEN_V1: return role != KAD_ROLE_REFERENCE;
        case KAD_RULE_CHOW: return role == KAD_ROLE_ALIGNED;
        case KAD_RULE_BASE:
        case KAD_RULE_ALIGNED:
        case KAD_RULE_IMPLICIT_REWARD: return false;
        default: return role == KAD_ROLE_BASE;
    }
}

void check_rule(const kad_rule & rule) {
    const kad_rule_info & info = rule_info(rule.kind);
    if (info.low != info.high && !(rule.threshold >= info.low && rule.threshold <= info.high)) {
        throw Error(KAD_INVALID_ARGUMENT, "threshold " + shown(rule.threshold) + " is out of range for rule " +
                                              info.name + "; expected " + shown(info.low) + " to " + shown(info.high));
    }
    const double t = rule.temperature;
    if (info.reference && t != 1) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "rule temperature " + (t == KAD_RULE_TEMPERATURE_SAMPLING ? "\"sampling\"" : shown(t)) +
                        " cannot be used with rule " + info.name + ", which compares nothing; expected 1");
    }
    if (t != KAD_RULE_TEMPERATURE_SAMPLING && !(t > 0 && std::isfinite(t))) {
        throw Error(KAD_INVALID_ARGUMENT, "rule temperature " + shown(t) +
                                              " is out of range; expected a finite value > 0, or "
                                              "\"sampling\" for the sampling temperature");
    }
}

double rule_temperature(const kad_rule & rule, double temperature) {
    if (rule.temperature != KAD_RULE_TEMPERATURE_SAMPLING) return rule.temperature;
    if (temperature == 0) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "rule temperature \"sampling\" cannot be used at temperature 0: every row would be one-hot and "
                    "nothing deferred; use rule temperature 1, or a temperature > 0");
    }
    return temperature;
}

} // namespace kad
