#include "mixture.h"

#include <algorithm>

namespace kad {

double deferred_mass(const Distribution & p, const KeptSet & kept) {
    if (kept.extent == KeptSet::Extent::Nothing) return 1;
    if (kept.extent == KeptSet::Extent::Everything) return 0;
    if (kept.ids.size() == p.size()) return 0;
    double mass = 0;
    for (const Token v : kept.ids) mass += p.probability(v);
    // What n rounded terms leave of 1 is no mass: the samplers dropped all that is not kept. A coin of exactly 0 would
    // take a token of probability zero for it.
    const double rounding = kept.ids.size() > 1 ? double(kept.ids.size()) * 0x1.0p-52 : 0;
    return 1 - mass > rounding ? 1 - mass : 0;
}

Mixture::Mixture(const Distribution & p, const Distribution & q, const KeptSet & kept)
    : p_(p), q_(q), kept_(kept), alpha_(deferred_mass(p, kept)) {}

double Mixture::probability(Token v) const {
    const double deferred = alpha_ * q_.probability(v);
    return kept_.contains(v) ? p_.probability(v) + deferred : deferred;
}

double Mixture::base_share(Token v) const {
    if (!kept_.contains(v)) return 0;
    const double pi = probability(v);
    return pi > 0 ? p_.probability(v) / pi : 0;
}

double Mixture::residual(Token v) const { return std::max(0.0, p_.probability(v) - (1 - alpha_) * q_.probability(v)); }

// Visits S in ascending order.
template <typename Visit>
static void each(const KeptSet & kept, size_t n, Visit visit) {
    if (kept.extent == KeptSet::Extent::Some) {
        for (const Token v : kept.ids) {
            if (!visit(v)) return;
        }
    } else if (kept.extent == KeptSet::Extent::Everything) {
        for (size_t i = 0; i < n; ++i) {
            if (!visit(Token(i))) return;
        }
    }
}

Token Mixture::draw_residual(double coin) const {
    double total = 0;
    each(kept_, p_.size(), [&](Token v) {
        total += residual(v);
        return true;
    });
    if (!(total > 0)) return most_probable();
    const double target = coin * total;
    double       sum    = 0;
    Token        chosen = -1;
    each(kept_, p_.size(), [&](Token v) {
        const double mass = residual(v);
        if (!(mass > 0)) return true;
        sum += mass;
        chosen = v; // by rounding none may exceed the coin: then the last one with mass
        return !(sum > target);
    });
    return chosen;
}

Token Mixture::most_probable() const {
    Token  best      = 0;
    double best_mass = -1;
    for (size_t i = 0; i < q_.size(); ++i) {
        const double mass = probability(Token(i));
        if (mass > best_mass) {
            best      = Token(i);
            best_mass = mass;
        }
    }
    return best;
}

} // namespace kad
