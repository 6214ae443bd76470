#include "draw.h"

#include <algorithm>

namespace kad {

bool draw_without_aligned(const Distribution & p, const KeptSet & kept, const DrawCoins & coins, Outcome & outcome) {
    const bool one    = kept.extent == KeptSet::Extent::Some && kept.ids.size() == 1;
    const bool greedy = p.temperature() == 0 && kept.contains(p.top());
    if (!one && !greedy) return false;
    const Token v = greedy ? p.top() : kept.ids[0];
    if (!greedy && !(coins.acceptance < p.probability(v))) return false;
    outcome = { v, KAD_SOURCE_BASE };
    return true;
}

kad_source speaker_of(const Mixture & pi, Token v, double coin) {
    const double base = pi.base_share(v);
    if (base != base) return KAD_SOURCE_JOINT; // NaN: nobody speaks alone
    return coin < base ? KAD_SOURCE_BASE : KAD_SOURCE_ALIGNED;
}

Outcome draw(const Mixture & pi, Token x, const DrawCoins & coins) {
    if (pi.at_most_one()) {
        Outcome outcome;
        if (draw_without_aligned(pi.base(), pi.kept(), coins, outcome)) return outcome;
        return { x, KAD_SOURCE_ALIGNED };
    }
    // No division, and strict: a token of probability zero is never taken, whatever the coin.
    const bool  accepted = coins.acceptance * pi.aligned().probability(x) < pi.probability(x);
    const Token y        = accepted ? x : pi.draw_residual(coins.residual);
    return { y, speaker_of(pi, y, coins.source) };
}

// Inverse distribution function over unnormalised weights; -1 when all are zero.
static Token draw_from(const std::vector<double> & weights, double coin) {
    double total = 0;
    for (const double w : weights) total += w;
    const double target = coin * total;
    double       sum    = 0;
    Token        chosen = -1;
    for (size_t i = 0; i < weights.size(); ++i) {
        if (!(weights[i] > 0)) continue;
        sum += weights[i];
        chosen = Token(i);
        if (sum > target) break;
    }
    return chosen;
}

Token draw_allowed(const Distribution & row, const std::vector<uint8_t> & ok, double coin) {
    std::vector<double> weights(row.size());
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = ok[i] ? row.probability(Token(i)) : 0;
    return draw_from(weights, coin);
}

bool redraw(const Mixture & pi, const std::vector<uint8_t> & ok, const DrawCoins & coins, Outcome & outcome) {
    const size_t        n = pi.size();
    std::vector<double> target(n), proposal(n);
    double              z = 0, q = 0; // pi(ok), q'(ok)
    for (size_t i = 0; i < n; ++i) {
        target[i]   = ok[i] ? pi.probability(Token(i)) : 0;
        proposal[i] = ok[i] ? pi.aligned().probability(Token(i)) : 0;
        z += target[i];
        q += proposal[i];
    }
    if (!(z > 0)) return false;
    Token y = -1;
    if (q > 0) {
        y = draw_from(proposal, coins.proposal);
        if (!(coins.acceptance * proposal[size_t(y)] * z < target[size_t(y)] * q)) {
            std::vector<double> & left = proposal; // max(0, target / z - proposal / q), up to a factor
            for (size_t i = 0; i < n; ++i) left[i] = std::max(0.0, target[i] * q - proposal[i] * z);
            y = draw_from(left, coins.residual);
            if (y < 0) y = Token(std::max_element(target.begin(), target.end()) - target.begin());
        }
    } else {
        y = draw_from(target, coins.residual);
    }
    outcome = { y, speaker_of(pi, y, coins.source) };
    return true;
}

} // namespace kad
