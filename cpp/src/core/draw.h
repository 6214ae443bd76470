// The draw: (p', q', S, coins) -> outcome. Method.md, section 3, on one screen.
//
// Law: over independent uniform coins P(outcome = y) = pi(y), and P(outcome = x) = 1 - TV(pi, q'), the best that any
// coupling of pi with a draw x from q' can do.
//
//   One token v in S, or none. P(y = v) = p'(v) + (1 - p'(v)) q'(v), and for y != v it is (1 - p'(v)) q'(y); with
//   alpha = 1 - p'(v) that is pi. Needs no q' when c2 < p'(v).
//   Otherwise. x is accepted with probability min(1, pi(x)/q'(x)), so accepted mass is min(q', pi); what is missing is
//   max(0, pi - q') with total TV(pi, q'), which is the probability of a rejection: the residual restores pi.
#pragma once

#include "coins.h"
#include "mixture.h"

namespace kad {

struct DrawCoins {
    double proposal, acceptance, residual, source; // c1 .. c4

    DrawCoins() = default;
    DrawCoins(const Coins & coins, uint64_t event)
        : proposal(coins(event, PURPOSE_PROPOSAL)), acceptance(coins(event, PURPOSE_ACCEPTANCE)),
          residual(coins(event, PURPOSE_RESIDUAL)), source(coins(event, PURPOSE_SOURCE)) {}
};

struct Outcome {
    Token      token;
    kad_source source;
};

// Step 2 as far as it goes without the aligned model: true, and the outcome, when S = {v} and c2 < p'(v).
bool draw_without_aligned(const Distribution & p, const KeptSet & kept, const DrawCoins & coins, Outcome & outcome);

// Steps 2 and 3; x is the aligned model's own draw (step 1: q.draw(coins.proposal)).
Outcome draw(const Distribution & p, const Distribution & q, const KeptSet & kept, Token x, const DrawCoins & coins);

} // namespace kad
