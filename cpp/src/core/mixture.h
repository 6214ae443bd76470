// pi: the probability of an event under the mixture, and the residual (method.md, sections 1 to 3). Three forms:
//
//   the base keeps S       pi(v) = p'(v) [v in S] + alpha q'(v),  alpha = 1 - p'(S)
//   the aligned keeps T    pi(v) = q'(v) [v in T] + beta p'(v),   beta = 1 - q'(T)     (the token rules)
//   nobody keeps           pi is a row of its own                                      (implicit-reward)
#pragma once

#include "deferral.h"

namespace kad {

// 1 - row(S): exactly 1 when S is empty, 0 when it is everything.
double deferred_mass(const Distribution & row, const KeptSet & kept);

// Holds references; rows and kept must outlive it.
class Mixture {
public:
    // The base keeps S; exchanged: the aligned model keeps T.
    Mixture(const Distribution & p, const Distribution & q, const KeptSet & kept, bool exchanged = false);
    // pi itself, and the proposal's row.
    Mixture(const Distribution & pi, const Distribution & q);

    size_t size() const { return q_.size(); }

    // The probability that the aligned model speaks: 1 - p'(S), or q'(T); NaN where nobody speaks alone.
    double alpha() const;
    double probability(Token v) const;

    const Distribution & base() const { return p_; }
    const Distribution & aligned() const { return q_; }  // its draw is the proposal
    const KeptSet &      kept() const { return *kept_; } // not where nobody keeps

    // P(the base said v) = p'(v) [v in S] / pi(v), or beta p'(v) / pi(v); 0 where pi(v) is 0; NaN where nobody speaks alone.
    double base_share(Token v) const;

    // May step 2 of the draw be taken: does the base keep at most one token?
    bool at_most_one() const { return form_ == Form::BaseKeeps && kept_->at_most_one(); }

    // The draw by one coin from the residual, proportional to max(0, pi - q'). If no mass is left by rounding: the most
    // probable token of pi.
    Token draw_residual(double coin) const;

private:
    enum class Form { BaseKeeps, AlignedKeeps, Joint };

    Form                 form_;
    const Distribution & p_; // pi itself where the form is Joint
    const Distribution & q_;
    const KeptSet *      kept_     = nullptr;
    double               deferred_ = 0; // alpha, or beta

    Token  draw_kept_residual(double coin) const;
    Token  draw_row_residual(double coin) const;
    size_t residual_block(size_t block, double * out) const;
    double kept_residual(Token v) const;
    Token  most_probable() const;
};

} // namespace kad
