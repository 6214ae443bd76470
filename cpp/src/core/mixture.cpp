#include "mixture.h"

#include <algorithm>
#include <cmath>

namespace kad {

double deferred_mass(const Distribution & row, const KeptSet & kept) {
    if (kept.extent == KeptSet::Extent::Nothing) return 1;
    if (kept.extent == KeptSet::Extent::Everything) return 0;
    if (kept.ids.size() == row.size()) return 0;
    double mass = 0;
    for (const Token v : kept.ids) mass += row.probability(v);
    // What n rounded terms leave of 1 is no mass: the samplers dropped all that is not kept. A coin of exactly 0 would
    // take a token of probability zero for it.
    const double rounding = kept.ids.size() > 1 ? double(kept.ids.size()) * 0x1.0p-52 : 0;
    return 1 - mass > rounding ? 1 - mass : 0;
}

Mixture::Mixture(const Distribution & p, const Distribution & q, const KeptSet & kept, bool exchanged)
    : form_(exchanged ? Form::AlignedKeeps : Form::BaseKeeps), p_(p), q_(q), kept_(&kept),
      deferred_(deferred_mass(exchanged ? q : p, kept)) {}

Mixture::Mixture(const Distribution & pi, const Distribution & q) : form_(Form::Joint), p_(pi), q_(q) {}

double Mixture::alpha() const {
    switch (form_) {
        case Form::BaseKeeps: return deferred_;
        case Form::AlignedKeeps: return 1 - deferred_;
        case Form::Joint: break;
    }
    return NAN;
}

double Mixture::probability(Token v) const {
    if (form_ == Form::Joint) return p_.probability(v);
    const bool           exchanged = form_ == Form::AlignedKeeps;
    const Distribution & keeper    = exchanged ? q_ : p_;
    const Distribution & other     = exchanged ? p_ : q_;
    const double         deferred  = deferred_ * other.probability(v);
    return kept_->contains(v) ? keeper.probability(v) + deferred : deferred;
}

double Mixture::base_share(Token v) const {
    if (form_ == Form::Joint) return NAN;
    if (form_ == Form::BaseKeeps && !kept_->contains(v)) return 0;
    const double pi   = probability(v);
    const double base = form_ == Form::BaseKeeps ? p_.probability(v) : deferred_ * p_.probability(v);
    return pi > 0 ? base / pi : 0;
}

Token Mixture::draw_residual(double coin) const {
    const bool listed = form_ == Form::BaseKeeps && kept_->extent != KeptSet::Extent::Everything;
    return listed ? draw_kept_residual(coin) : draw_row_residual(coin);
}

// ---- The base keeps some tokens -------------------------------------------------------------------------------------
// Outside S pi = alpha q' <= q', so the residual lives on S: max(0, p'(v) - (1 - alpha) q'(v)).

double Mixture::kept_residual(Token v) const {
    return std::max(0.0, p_.probability(v) - (1 - deferred_) * q_.probability(v));
}

Token Mixture::draw_kept_residual(double coin) const {
    double total = 0;
    for (const Token v : kept_->ids) total += kept_residual(v);
    if (!(total > 0)) return most_probable();
    const double target = coin * total;
    double       sum    = 0;
    Token        chosen = -1;
    for (const Token v : kept_->ids) {
        const double mass = kept_residual(v);
        if (!(mass > 0)) continue;
        sum += mass;
        chosen = v; // by rounding none may exceed the coin: then the last one with mass
        if (sum > target) break;
    }
    return chosen;
}

// ---- Every token may have some --------------------------------------------------------------------------------------
// One block after another, in vector instructions. The base keeps everything: max(0, p' - q'), as alpha is 0; pi itself
// likewise. The aligned model keeps T: on T pi = q' + beta p', so beta p' is left; elsewhere max(0, beta p' - q').

size_t Mixture::residual_block(size_t block, double * out) const {
    if (form_ != Form::AlignedKeeps) return p_.clipped_difference(block, 1, q_, 1, out);
    const size_t length = p_.clipped_difference(block, deferred_, q_, 1, out);
    const Token  first = Token(block * Distribution::BLOCK), end = first + Token(length);
    if (kept_->extent == KeptSet::Extent::Some) {
        auto v = std::lower_bound(kept_->ids.begin(), kept_->ids.end(), first);
        for (; v != kept_->ids.end() && *v < end; ++v) out[*v - first] = deferred_ * p_.probability(*v);
    }
    return length; // T is everything: beta is 0 and so is all of it
}

Token Mixture::draw_row_residual(double coin) const {
    thread_local std::vector<double> sums;
    double                           terms[Distribution::BLOCK], total = 0;
    sums.resize(p_.blocks());
    double * const out = sums.data(); // each thread has its own `sums`
    share_blocks(p_.blocks(), p_.workers(), [this, out](size_t first, size_t end) {
        double some[Distribution::BLOCK];
        for (size_t b = first; b < end; ++b) out[b] = lane_sum(some, residual_block(b, some));
    });
    for (const double each : sums) total += each;
    if (!(total > 0)) return most_probable();
    // The coin is below 1 and the sums run in one order, so one block exceeds the target; where a subnormal total rounds the
    // product up to itself, the first does. Inside it the order differs from the lanes': by rounding no token may exceed it,
    // then the last one with mass.
    const double target = coin * total < total ? coin * total : 0;
    double       sum    = 0;
    size_t       b      = 0;
    while (!(sum + sums[b] > target)) sum += sums[b++];
    const size_t length = residual_block(b, terms);
    Token        chosen = -1;
    for (size_t i = 0; i < length && !(sum > target); ++i) {
        if (!(terms[i] > 0)) continue;
        sum += terms[i];
        chosen = Token(b * Distribution::BLOCK + i);
    }
    return chosen;
}

Token Mixture::most_probable() const {
    Token  best      = 0;
    double best_mass = -1;
    for (size_t i = 0; i < size(); ++i) {
        const double mass = probability(Token(i));
        if (mass > best_mass) {
            best      = Token(i);
            best_mass = mass;
        }
    }
    return best;
}

} // namespace kad
