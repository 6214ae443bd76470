// pi: the probability of an event under the mixture, and the residual (method.md, sections 1 and 3).
#pragma once

#include "deferral.h"

namespace kad {

// alpha = 1 - p'(S): exactly 1 when S is empty, 0 when it is everything.
double deferred_mass(const Distribution & p, const KeptSet & kept);

// pi(v) = p'(v) [v in S] + alpha q'(v). Holds references; p, q and kept must outlive it.
class Mixture {
public:
    Mixture(const Distribution & p, const Distribution & q, const KeptSet & kept);

    double alpha() const { return alpha_; }
    double probability(Token v) const;

    // P(the base said v) = p'(v) [v in S] / pi(v); 0 where pi(v) is 0.
    double base_share(Token v) const;

    // The draw by one coin from the residual, proportional to max(0, pi - q'). Since alpha <= 1 that is
    // max(0, p'(v) - (1 - alpha) q'(v)) on S and nothing outside it, so only S is visited. If no mass is left by rounding:
    // the most probable token of pi.
    Token draw_residual(double coin) const;

private:
    const Distribution & p_;
    const Distribution & q_;
    const KeptSet &      kept_;
    double               alpha_;

    double residual(Token v) const;
    Token  most_probable() const;
};

} // namespace kad
