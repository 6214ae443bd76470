#include "draw.h"

namespace kad {

bool draw_without_aligned(const Distribution & p, const KeptSet & kept, const DrawCoins & coins, Outcome & outcome) {
    if (kept.extent != KeptSet::Extent::Some || kept.ids.size() != 1) return false;
    const Token v = kept.ids[0];
    if (!(coins.acceptance < p.probability(v))) return false;
    outcome = { v, KAD_SOURCE_BASE };
    return true;
}

Outcome draw(const Distribution & p, const Distribution & q, const KeptSet & kept, Token x, const DrawCoins & coins) {
    Outcome outcome;
    if (draw_without_aligned(p, kept, coins, outcome)) return outcome;
    if (kept.at_most_one()) return { x, KAD_SOURCE_ALIGNED };

    const Mixture pi(p, q, kept);
    // No division, and strict: a token of probability zero is never taken, whatever the coin.
    const bool accepted = coins.acceptance * q.probability(x) < pi.probability(x);
    outcome.token       = accepted ? x : pi.draw_residual(coins.residual);
    outcome.source      = coins.source < pi.base_share(outcome.token) ? KAD_SOURCE_BASE : KAD_SOURCE_ALIGNED;
    return outcome;
}

} // namespace kad
