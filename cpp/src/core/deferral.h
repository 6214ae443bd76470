// Which tokens does the base keep? One function per rule (method.md, section 2).
#pragma once

#include <vector>

#include "logits.h"

namespace kad {

// S, or T under a token rule. Everything and Nothing are not listed; Some lists its ids in ascending order.
struct KeptSet {
    enum class Extent { Nothing, Some, Everything };

    Extent             extent = Extent::Nothing;
    std::vector<Token> ids;

    bool contains(Token v) const;
    bool at_most_one() const { return extent == Extent::Nothing || (extent == Extent::Some && ids.size() == 1); }

    void nothing() {
        extent = Extent::Nothing;
        ids.clear();
    }
    void everything() {
        extent = Extent::Everything;
        ids.clear();
    }
    void some() { extent = ids.empty() ? Extent::Nothing : Extent::Some; }
};

// p and q are the raw rows at the rule's temperature.
void keep_dual(const Distribution & p, double lambda, KeptSet & kept);
void keep_primal(const Distribution & p, double budget, KeptSet & kept);
void keep_nudging(const Distribution & p, double gamma, KeptSet & kept);
void keep_bet(const Distribution & p, const Distribution & q, double lambda, KeptSet & kept);
void keep_chow(const Distribution & q, double a, KeptSet & kept);
void keep_diff(const Distribution & p, const Distribution & q, double a, KeptSet & kept);
void keep_opt(const Distribution & p, const Distribution & q, double a, KeptSet & kept);
// The token rules: what the aligned model keeps, T.
void keep_token_v1(const Distribution & p, const Distribution & q, double a, KeptSet & kept);
void keep_token_v2(const Distribution & p, double a, KeptSet & kept);
void keep_token_v3(const Distribution & p, double a, KeptSet & kept);

// The rule's set: S, or T under a token rule. Rows that the rule does not look at may be NULL. Not for implicit-reward.
void decide(const kad_rule & rule, const Distribution * p, const Distribution * q, KeptSet & kept);

// Which raw rows a rule looks at.
bool looks_at(const kad_rule & rule, kad_role role);

// Throws KAD_INVALID_ARGUMENT for an unknown rule, a threshold out of range or a rule temperature that is neither > 0 nor
// KAD_RULE_TEMPERATURE_SAMPLING; for implicit-reward it must be 1.
void check_rule(const kad_rule & rule);

// The temperature at which the rule compares, given the sampling temperature. Throws for "sampling" at temperature 0:
// every row would be one-hot, nothing would ever be deferred, and the run would silently be the bare base.
double rule_temperature(const kad_rule & rule, double temperature);

const kad_rule_info & rule_info(int32_t kind);
int32_t               rule_count();

} // namespace kad
