// The part of the C API that needs no model: errors, rules, coins, functions on rows of logits.
#include <cmath>
#include <cstring>
#include <optional>

#include "core/draw.h"
#include "core/knapsack.h"
#include "core/reward.h"
#include "errors.h"

namespace kad {

static thread_local std::string last_error;

kad_status fail(kad_status status, const std::string & message) noexcept {
    try {
        last_error = message;
    } catch (...) {
        last_error.clear();
    }
    return status;
}

static void check_temperature(double temperature) {
    if (!(temperature >= 0 && std::isfinite(temperature))) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "temperature " + shown(temperature) + " is out of range; expected a finite value >= 0");
    }
}

static void check_rows(const kad_rule * rule, const float * base, const float * aligned, const float * reference,
                       size_t n) {
    need(rule, "rule");
    need(base, "base_logits");
    need(aligned, "aligned_logits");
    if (n == 0) throw Error(KAD_INVALID_ARGUMENT, "n is 0; expected rows of at least one logit");
    check_rule(*rule);
    if (rule_info(rule->kind).reference) need(reference, "reference_logits");
}

// One position: rows read for the rule (raw, at its temperature) and for the speakers (shaped, at the sampling temperature).
struct Position {
    Distribution           raw_p, raw_q, p, q; // p is pi itself under implicit-reward
    std::vector<float>     joint;
    KeptSet                kept;
    std::optional<Mixture> pi;

    Position(const kad_rule * rule, const float * base, const float * aligned, const float * reference,
             const float * base_shaped, const float * aligned_shaped, size_t n, double temperature) {
        check_rows(rule, base, aligned, reference, n);
        check_temperature(temperature);
        const kad_rule_info & info = rule_info(rule->kind);
        const double          t    = rule_temperature(*rule, temperature);
        q.set(aligned_shaped ? aligned_shaped : aligned, n, temperature, "aligned_logits");
        if (info.reference) {
            implicit_reward(base, aligned, reference, n, rule->threshold, joint);
            p.set(base_shaped ? base_shaped : joint.data(), n, temperature, "log pi");
            pi.emplace(p, q);
            return;
        }
        raw_p.set(base, n, t, "base_logits");
        if (looks_at(*rule, KAD_ROLE_ALIGNED)) raw_q.set(aligned, n, t, "aligned_logits");
        p.set(base_shaped ? base_shaped : base, n, temperature, "base_logits");
        decide(*rule, &raw_p, &raw_q, kept);
        pi.emplace(p, q, kept, info.exchanged != 0);
    }
};

// A distribution given as probabilities, and a budget.
static void check_knapsack(const double * p, size_t n, double budget) {
    if (n == 0) throw Error(KAD_INVALID_ARGUMENT, "n is 0; expected a row of at least one probability");
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
        if (!(p[i] >= 0 && p[i] <= 1)) {
            throw Error(KAD_INVALID_ARGUMENT,
                        "p[" + std::to_string(i) + "] is " + shown(p[i]) + "; expected a probability, 0 to 1");
        }
        sum += p[i];
    }
    if (!(std::abs(sum - 1) <= 1e-4)) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "p sums to " + shown(sum) + "; expected 1 within 1e-4: probabilities, not logits");
    }
    if (!(budget >= 0 && budget <= 1)) {
        throw Error(KAD_INVALID_ARGUMENT, "budget " + shown(budget) + " is out of range; expected 0 to 1");
    }
}

} // namespace kad

using namespace kad;

extern "C" {

const char * kad_last_error(void) { return last_error.c_str(); }

const char * kad_version(void) { return KAD_VERSION; }

int32_t kad_rule_count(void) { return rule_count(); }

kad_status kad_rule_describe(int32_t kind, kad_rule_info * out) {
    return guarded([&] {
        need(out, "out");
        *out = rule_info(kind);
    });
}

kad_status kad_rule_named(const char * name, kad_rule * out) {
    return guarded([&] {
        need(name, "name");
        need(out, "out");
        std::string known;
        for (int32_t kind = 0; kind < rule_count(); ++kind) {
            const kad_rule_info & info = rule_info(kind);
            if (std::strcmp(info.name, name) == 0) {
                *out = { kind, info.threshold, 1.0 };
                return;
            }
            known += (kind ? ", " : "") + std::string(info.name);
        }
        throw Error(KAD_INVALID_ARGUMENT, "rule \"" + std::string(name) + "\" is unknown; expected one of " + known);
    });
}

double kad_coin(uint64_t seed, uint64_t text_number, uint64_t event, uint64_t purpose) {
    return Coins{ seed, text_number }(event, purpose);
}

kad_status kad_mixture(const kad_rule * rule, const float * base_logits, const float * aligned_logits,
                       const float * reference_logits, size_t n, double temperature, double * pi) {
    return guarded([&] {
        need(pi, "pi");
        const Position at(rule, base_logits, aligned_logits, reference_logits, nullptr, nullptr, n, temperature);
        for (size_t i = 0; i < n; ++i) pi[i] = at.pi->probability(Token(i));
    });
}

kad_status kad_deferral(const kad_rule * rule, const float * base_logits, const float * aligned_logits, size_t n,
                        double temperature, uint8_t * deferred) {
    return guarded([&] {
        need(deferred, "deferred");
        check_rows(rule, base_logits, aligned_logits, base_logits, n);
        check_temperature(temperature);
        const double t = rule_temperature(*rule, temperature);
        Distribution p, q;
        p.set(base_logits, n, t, "base_logits");
        q.set(aligned_logits, n, t, "aligned_logits");
        KeptSet kept;
        decide(*rule, &p, &q, kept);
        for (size_t i = 0; i < n; ++i) deferred[i] = kept.contains(Token(i)) ? 0 : 1;
    });
}

kad_status kad_knapsack(const double * p, size_t n, double budget, int32_t exact, uint8_t * kept,
                        kad_knapsack_result * out) {
    return guarded([&] {
        need(p, "p");
        need(kept, "kept");
        need(out, "out");
        check_knapsack(p, n, budget);
        thread_local Knapsack         knapsack;
        thread_local KnapsackSolution solution;
        knapsack.solve(p, n, budget, exact != 0, solution);
        std::memset(kept, 0, n);
        for (const Token v : solution.kept) kept[v] = 1;
        *out = { solution.value, solution.bound, solution.gap, solution.nodes, solution.certified ? 1 : 0 };
    });
}

kad_status kad_draw(const kad_rule * rule, const float * base, const float * aligned, const float * reference,
                    const float * base_shaped, const float * aligned_shaped, size_t n, double temperature,
                    const double coins[4], kad_draw_result * out) {
    return guarded([&] {
        need(coins, "coins");
        need(out, "out");
        for (int i = 0; i < 4; ++i) {
            if (!(coins[i] >= 0 && coins[i] < 1)) {
                throw Error(KAD_INVALID_ARGUMENT,
                            "coin " + shown(coins[i]) + " is out of range; expected 0 <= coin < 1");
            }
        }
        const Position  at(rule, base, aligned, reference, base_shaped, aligned_shaped, n, temperature);
        const Mixture & pi = *at.pi;
        DrawCoins       c;
        c.proposal      = coins[0];
        c.acceptance    = coins[1];
        c.residual      = coins[2];
        c.source        = coins[3];
        const Token   x = at.q.draw(c.proposal);
        const Outcome y = draw(pi, x, c);
        *out = { y.token, x, y.source, pi.alpha(), std::log(pi.probability(y.token)), pi.base_share(y.token) };
    });
}

} // extern "C"
