#include "deferral.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace kad {

static const kad_rule_info RULES[] = {
    { "dual", "S = {v : p(v) >= lambda}", "KAD, Lagrangian dual (arXiv 2510.27017)", 0.4, 0, 1, 1 },
    { "primal", "S = smallest set of most probable tokens with mass >= 1 - b",
      "KAD, greedy LP solution (arXiv 2510.27017)", 0.9, 0, 1, 1 },
    { "nudging", "S = everything if max p >= gamma, else nothing", "NUDGING, token level (arXiv 2410.09300)", 0.4, 0, 1,
      0 },
    { "base", "S = everything: pi = p", "the base alone (lossless speculative decoding when drafting)", 0, 0, 0, 0 },
    { "aligned", "S = nothing: pi = q", "the aligned model alone", 0, 0, 0, 0 },
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

// {v : p(v) >= lambda}. A threshold of 0 keeps everything, tokens of probability zero included.
void keep_dual(const Distribution & p, double lambda, KeptSet & kept) {
    if (lambda <= 0) return kept.everything();
    kept.ids.clear();
    const double at_least = p.at_least(std::log(lambda));
    for (size_t i = 0; i < p.size(); ++i) {
        if (double(p.logits()[i]) >= at_least) kept.ids.push_back(Token(i));
    }
    kept.some();
}

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

void decide(const kad_rule & rule, const Distribution * p, KeptSet & kept) {
    switch (rule.kind) {
        case KAD_RULE_DUAL: return keep_dual(*p, rule.threshold, kept);
        case KAD_RULE_PRIMAL: return keep_primal(*p, rule.threshold, kept);
        case KAD_RULE_NUDGING: return keep_nudging(*p, rule.threshold, kept);
        case KAD_RULE_BASE: return kept.everything();
        case KAD_RULE_ALIGNED: return kept.nothing();
    }
    rule_info(rule.kind); // throws
}

void check_rule(const kad_rule & rule) {
    const kad_rule_info & info = rule_info(rule.kind);
    if (info.low != info.high && !(rule.threshold >= info.low && rule.threshold <= info.high)) {
        throw Error(KAD_INVALID_ARGUMENT, "threshold " + shown(rule.threshold) + " is out of range for rule " +
                                              info.name + "; expected " + shown(info.low) + " to " + shown(info.high));
    }
    const double t = rule.temperature;
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
