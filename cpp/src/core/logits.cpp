#include "logits.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

// The two passes over a row are compiled several times and chosen at load for the machine, where the compiler and the
// loader can do that. Results are the same bit for bit: eight lanes whatever the width, and no contraction of a*b+c
// (the build sets -ffp-contract=off).
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#    define KAD_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#    define KAD_CLONES
#endif

namespace kad {

static constexpr size_t LANES = 8;

// exp(x) for x <= 0, without branches or library calls so that loops over it vectorise. x = n ln 2 + r with
// |r| <= ln(2)/2; exp(r) by its Taylor polynomial of degree 13 (truncation below 4e-18 relative), then scaled by 2^n in
// the exponent bits. Below -708 the result is 0: exp would be subnormal. tests compare with libm.
static inline double exp_negative(double x) {
    const double shift   = 6755399441055744.0; // 1.5 * 2^52: adding it rounds to an integer in the low bits
    const double clamped = x > -708.0 ? x : -708.0;
    const double t       = clamped * 1.4426950408889634 + shift;
    const double n       = t - shift;
    const double r       = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    double       e       = 1.0 / 6227020800.0;
    e                    = e * r + 1.0 / 479001600.0;
    e                    = e * r + 1.0 / 39916800.0;
    e                    = e * r + 1.0 / 3628800.0;
    e                    = e * r + 1.0 / 362880.0;
    e                    = e * r + 1.0 / 40320.0;
    e                    = e * r + 1.0 / 5040.0;
    e                    = e * r + 1.0 / 720.0;
    e                    = e * r + 1.0 / 120.0;
    e                    = e * r + 1.0 / 24.0;
    e                    = e * r + 1.0 / 6.0;
    e                    = e * r + 0.5;
    e                    = e * r + 1.0;
    e                    = e * r + 1.0;
    uint64_t bits;
    std::memcpy(&bits, &t, sizeof bits);
    bits = (bits << 52) + (uint64_t(1023) << 52);
    double power;
    std::memcpy(&power, &bits, sizeof power);
    const double result = e * power;
    return x > -708.0 ? result : 0.0;
}

// The largest logit, and whether any is NaN or +inf.
KAD_CLONES static void scan(const float * logits, size_t n, float & max, bool & bad) {
    float    best[LANES];
    uint32_t wrong[LANES] = {};
    for (size_t k = 0; k < LANES; ++k) best[k] = -INFINITY;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t k = 0; k < LANES; ++k) {
            const float l = logits[i + k];
            best[k]       = l > best[k] ? l : best[k];
            wrong[k] |= uint32_t(!(l <= FLT_MAX));
        }
    }
    for (; i < n; ++i) {
        best[0] = logits[i] > best[0] ? logits[i] : best[0];
        wrong[0] |= uint32_t(!(logits[i] <= FLT_MAX));
    }
    max = *std::max_element(best, best + LANES);
    bad = std::any_of(wrong, wrong + LANES, [](uint32_t w) { return w != 0; });
}

// exp((logit - max) * inverse) of n logits.
KAD_CLONES static void weights(const float * logits, size_t n, double max, double inverse, double * out) {
    for (size_t i = 0; i < n; ++i) out[i] = exp_negative((double(logits[i]) - max) * inverse);
}

// max(0, a p - c q) of n logits, where p = exp((logit - max) * inverse) and so q: a and c carry the normalisers.
KAD_CLONES static void differences(const float * p, double p_max, double p_inverse, double a, const float * q,
                                   double q_max, double q_inverse, double c, size_t n, double * out) {
    for (size_t i = 0; i < n; ++i) {
        const double first  = a * exp_negative((double(p[i]) - p_max) * p_inverse);
        const double second = c * exp_negative((double(q[i]) - q_max) * q_inverse);
        const double left   = first - second; // without a branch around it, so that it vectorises
        out[i]              = left > 0 ? left : 0.0;
    }
}

KAD_CLONES static double summed(const double * values, size_t n);

double lane_sum(const double * values, size_t n) { return summed(values, n); }

KAD_CLONES static double summed(const double * values, size_t n) {
    double sum[LANES] = {};
    size_t i          = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t k = 0; k < LANES; ++k) sum[k] += values[i + k];
    }
    for (; i < n; ++i) sum[0] += values[i];
    double total = 0;
    for (size_t k = 0; k < LANES; ++k) total += sum[k];
    return total;
}

// Throws unless every logit is finite or -inf, and one is finite. Gives the largest.
float check_logits(const float * logits, size_t n, const char * who) {
    float max;
    bool  bad;
    scan(logits, n, max, bad);
    if (bad) {
        size_t at = 0;
        while (logits[at] <= FLT_MAX) ++at;
        throw Error(KAD_NOT_A_NUMBER, std::string(who) + ": the logit of token " + std::to_string(at) + " is " +
                                          shown(logits[at]) + "; expected finite values or -inf");
    }
    if (max == -INFINITY) {
        throw Error(KAD_NOT_A_NUMBER,
                    std::string(who) + ": no token is possible (all " + std::to_string(n) + " logits are -inf)");
    }
    return max;
}

bool possible(const float * logits, size_t n) {
    return std::any_of(logits, logits + n, [](float logit) { return logit > -INFINITY; });
}

void Distribution::set(const float * logits, size_t n, double temperature, const char * who, const Support * support) {
    if (support) {
        dense_.assign(support->n_events, -INFINITY);
        for (size_t i = 0; i < n; ++i) dense_[support->events.empty() ? i : size_t(support->events[i])] = logits[i];
        logits = dense_.data();
        n      = support->n_events;
    }
    max_     = check_logits(logits, n, who);
    logits_  = logits;
    n_       = n;
    one_hot_ = temperature == 0;
    // Finite even for a temperature so small that its inverse is not: 0 * inf would be NaN.
    inverse_ = one_hot_ ? 1 : std::min(1 / temperature, DBL_MAX);
    top_     = Token(std::find(logits, logits + n, max_) - logits);
    if (one_hot_) {
        total_     = 1;
        log_total_ = 0;
        return;
    }
    blocks_.resize((n + BLOCK - 1) / BLOCK);
    total_ = 0;
    for (size_t b = 0; b < blocks_.size(); ++b) {
        const size_t length = std::min(BLOCK, n - b * BLOCK);
        double       terms[BLOCK];
        weights(logits + b * BLOCK, length, max_, inverse_, terms);
        blocks_[b] = lane_sum(terms, length);
        total_ += blocks_[b];
    }
    log_total_ = std::log(total_);
}

double Distribution::weight(size_t i) const { return exp_negative((double(logits_[i]) - double(max_)) * inverse_); }

double Distribution::probability(Token v) const {
    if (one_hot_) return v == top_ ? 1 : 0;
    return weight(size_t(v)) / total_;
}

void Distribution::probabilities(double * out) const {
    if (one_hot_) {
        std::fill(out, out + n_, 0.0);
        out[top_] = 1;
        return;
    }
    weights(logits_, n_, max_, inverse_, out);
    for (size_t i = 0; i < n_; ++i) out[i] /= total_;
}

double Distribution::log_probability(Token v) const {
    if (one_hot_) return v == top_ ? 0 : -INFINITY;
    return (double(logits_[v]) - double(max_)) * inverse_ - log_total_;
}

size_t Distribution::clipped_difference(size_t b, double a, const Distribution & q, double c, double * out) const {
    const size_t at = b * BLOCK, length = std::min(BLOCK, n_ - at);
    if (one_hot_ || q.one_hot_) {
        for (size_t i = 0; i < length; ++i) {
            const Token v = Token(at + i);
            out[i]        = std::max(0.0, a * probability(v) - c * q.probability(v));
        }
    } else {
        differences(logits_ + at, max_, inverse_, a / total_, q.logits_ + at, q.max_, q.inverse_, c / q.total_, length,
                    out);
    }
    return length;
}

double total_variation(const Distribution & p, const Distribution & q) {
    double total = 0;
    double terms[Distribution::BLOCK];
    for (size_t b = 0; b < p.blocks(); ++b) total += lane_sum(terms, q.clipped_difference(b, 1, p, 1, terms));
    return total;
}

Token Distribution::draw(double coin) const {
    if (one_hot_) return top_;
    const double target = coin * total_;
    double       before = 0; // cumulative sum of the blocks passed
    for (size_t b = 0; b < blocks_.size(); before += blocks_[b], ++b) {
        if (!(before + blocks_[b] > target)) continue;
        double       sum = before;
        const size_t end = std::min(n_, (b + 1) * BLOCK);
        for (size_t i = b * BLOCK; i < end; ++i) {
            const double w = weight(i);
            sum += w;
            if (sum > target && w > 0) return Token(i);
        }
    }
    size_t last = n_ - 1;
    while (!(weight(last) > 0)) --last;
    return Token(last);
}

} // namespace kad
