#include "deferral.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace kad {

static constexpr const char * KAD_PAPER      = "KAD (arXiv 2510.27017)";
static constexpr const char * CASCADES_PAPER = "speculative cascades (arXiv 2405.19261)";

// By kad_rule_kind. Name, formula, source; threshold, its range; lazy, exchanged, reference.
static const kad_rule_info RULES[] = {
    { "dual", "S = {v : p(v) >= t}", KAD_PAPER, 0.4, 0, 1, 1, 0, 0 },
    { "primal", "S = smallest set of most probable tokens with mass >= 1 - t", KAD_PAPER, 0.9, 0, 1, 1, 0, 0 },
    { "exact", "S = complement of the set D of mass <= t with the largest sum of -p log p", KAD_PAPER, 0.9, 0, 1, 1, 0,
      0 },
    { "nudging", "S = everything if max p >= t, else nothing", "NUDGING (arXiv 2410.09300)", 0.4, 0, 1, 0, 0, 0 },
    { "bet", "S = {v : p(v) >= max q - t}", "conservative confidence bet (arXiv 2604.16146)", 0.2, 0, 1, 0, 0, 0 },
    { "chow", "S = nothing if max q >= 1 - t, else everything", CASCADES_PAPER, 0.5, 0, 1, 0, 0, 0 },
    { "diff", "S = nothing if max q >= max p - t, else everything", CASCADES_PAPER, 0, -1, 1, 0, 0, 0 },
    { "opt", "S = nothing if max q >= max p - t TV(p, q), else everything", CASCADES_PAPER, 0.5, 0, 10, 0, 0, 0 },
    { "token-v1", "T = {v : q(v) >= max p - t}; pi = q on T + (1 - q(T)) p", CASCADES_PAPER, 0, -1, 1, 0, 1, 0 },
    { "token-v2", "T = {v : p(v) >= max p - t}; pi = q on T + (1 - q(T)) p", CASCADES_PAPER, 0, -1, 1, 0, 1, 0 },
    { "token-v3", "T = {v : p(v) >= (1 - t) max p}; pi = q on T + (1 - q(T)) p", CASCADES_PAPER, 0.5, 0, 1, 0, 1, 0 },
    { "implicit-reward", "no set; pi proportional to p (q / r)^t", "proxy tuning (arXiv 2401.08565)", 1, 0, 10, 0, 0,
      1 },
    { "base", "S = everything: pi = p", "the base alone (lossless speculative decoding when drafting)", 0, 0, 0, 0, 0,
      0 },
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

// {v : row(v) >= threshold}. A threshold of 0 or less keeps everything, tokens of probability zero included.
static void keep_at_least(const Distribution & row, double threshold, KeptSet & kept) {
    if (threshold <= 0) return kept.everything();
    kept.ids.clear();
    const double at_least = row.at_least(std::log(threshold));
    for (size_t i = 0; i < row.size(); ++i) {
        if (double(row.logits()[i]) >= at_least) kept.ids.push_back(Token(i));
    }
    kept.some();
}

static double best(const Distribution & row) { return row.probability(row.top()); }

static void keep_all_unless(bool defer, KeptSet & kept) { return defer ? kept.nothing() : kept.everything(); }

void keep_dual(const Distribution & p, double lambda, KeptSet & kept) { keep_at_least(p, lambda, kept); }

// The smallest set of most probable tokens with mass >= 1 - b; equal probabilities: the lower id counts as more probable.
// Never a full sort: only tokens within `width` of the best logit are ordered, and width doubles until they hold enough
// mass. That is exact: tokens outside the window are less probable than all inside, so they come after them in the order.
void keep_primal(const Distribution & p, double budget, KeptSet & kept) {
    const double wanted = 1 - budget;
    if (wanted <= 0) return kept.nothing();
    const float * logits = p.logits();
    const double  best   = logits[p.top()];
    // Beyond this distance from the best logit every probability is zero: no wider window can hold more.
    const double everything = 709 * p.temperature();
    for (double width = std::min(4 * p.temperature(), everything);; width = std::min(2 * width, everything)) {
        kept.ids.clear();
        double mass = 0;
        for (size_t i = 0; i < p.size(); ++i) {
            if (double(logits[i]) < best - width) continue;
            kept.ids.push_back(Token(i));
            mass += p.probability(Token(i));
        }
        // The same mass summed in descending order may differ in the last bits: sort when it is near enough.
        if (mass < wanted - 1e-9 && width < everything) continue;
        std::sort(kept.ids.begin(), kept.ids.end(),
                  [logits](Token a, Token b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
        mass = 0;
        for (size_t k = 0; k < kept.ids.size(); ++k) {
            mass += p.probability(kept.ids[k]);
            if (mass >= wanted) {
                kept.ids.resize(k + 1);
                std::sort(kept.ids.begin(), kept.ids.end());
                return kept.some();
            }
        }
        if (width >= everything) return kept.everything(); // by rounding the sum stays below 1 - b
    }
}

void keep_nudging(const Distribution & p, double gamma, KeptSet & kept) {
    const bool sure = gamma <= 0 || double(p.logits()[p.top()]) >= p.at_least(std::log(gamma));
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
