// The draw: (p', q', S, coins) -> outcome. Method.md, section 3, on one screen.
//
// Law: over independent uniform coins P(outcome = y) = pi(y), and P(outcome = x) = 1 - TV(pi, q'), the best that any
// coupling of pi with a draw x from q' can do.
//
//   One token v in S, or none. P(y = v) = p'(v) + (1 - p'(v)) q'(v), and for y != v it is (1 - p'(v)) q'(y); with
//   alpha = 1 - p'(v) that is pi. Needs no q' when c2 < p'(v).
//   Otherwise. x is accepted with probability min(1, pi(x)/q'(x)), so accepted mass is min(q', pi); what is missing is
//   max(0, pi - q') with total TV(pi, q'), which is the probability of a rejection: the residual restores pi. This holds
//   for any pi: the token rules and implicit-reward, which have no S, are always drawn so.
#pragma once

#include <vector>

#include "coins.h"
#include "mixture.h"

namespace kad {

struct DrawCoins {
    double proposal, acceptance, residual, source; // c1 .. c4

    DrawCoins() = default;
    // first: the purpose of c1; PURPOSE_REDRAW for a redraw.
    DrawCoins(const Coins & coins, uint64_t event, uint64_t first = PURPOSE_PROPOSAL)
        : proposal(coins(event, first)), acceptance(coins(event, first + 1)), residual(coins(event, first + 2)),
          source(coins(event, PURPOSE_SOURCE)) {}
};

struct Outcome {
    Token      token;
    kad_source source;
};

// The draw as far as it goes without the aligned model: true, and the outcome, in step 2 when S = {v} and c2 < p'(v), and in
// step 3 when the sampling temperature is 0 and S holds v, the base's best token.
//
// Proof of the second: p' is one-hot at v, so alpha = 1 - p'(S) = 0 and pi is one-hot at v. If x is v it is accepted: c2 q'(v) <
// 1 = pi(v), as c2 < 1. Any other x is not: pi(x) = 0. Then the residual max(0, pi - q') has no mass but at v, and should it have
// none at all, the outcome is the most probable token of pi, which is v. P(base) = p'(v) / pi(v) = 1: the base said it.
bool draw_without_aligned(const Distribution & p, const KeptSet & kept, const DrawCoins & coins, Outcome & outcome);

// Steps 2 and 3; x is the aligned model's own draw (step 1: q.draw(coins.proposal)).
Outcome draw(const Mixture & pi, Token x, const DrawCoins & coins);

// Who said v: the base with probability base_share(v), by the fourth coin.
kad_source speaker_of(const Mixture & pi, Token v, double coin);

// ---- Under a grammar (method.md, section 4): draw; if the outcome is not allowed, redraw ----------------------------------
//
// ok[v]: v may be said next. The redraw is step 3 with target pi[ok] / Z, Z = pi(ok), and proposal q'[ok] / q'(ok); from the
// target by c7 when q'(ok) = 0. Its coins c5, c6, c7 stand in `coins` as the first three.
// Law: P(y) = pi(y) [y ok] + (1 - Z) pi(y) [y ok] / Z = pi(y) [y ok] / Z.
// False when Z = 0: no outcome.
bool redraw(const Mixture & pi, const std::vector<uint8_t> & ok, const DrawCoins & coins, Outcome & outcome);

// The draw from one row alone, restricted to ok; -1 when no such token is possible.
Token draw_allowed(const Distribution & row, const std::vector<uint8_t> & ok, double coin);

} // namespace kad
