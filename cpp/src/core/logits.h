// A row of logits as a distribution: its normaliser, the probability of a token, its best token, a draw.
//
// Sums are doubles, in a fixed order (eight lanes, blocks of BLOCK tokens), so that a draw is the same whatever vector
// instructions the machine has.
#pragma once

#include <cstddef>
#include <vector>

#include "notation.h"

namespace kad {

// Throws KAD_NOT_A_NUMBER unless every logit is finite or -inf, and one is finite; the message begins with `who`. Gives the largest.
float check_logits(const float * logits, size_t n, const char * who);

// Is any token of these logits possible?
bool possible(const float * logits, size_t n);

struct Support {
    size_t             n_events = 0;
    std::vector<Token> events;
    std::vector<Token> entry_of;
};

class Distribution {
public:
    static constexpr size_t BLOCK = 512;

    // Reads n logits at a temperature >= 0. The logits must outlive this object; -inf is probability zero. Temperature 0
    // is one-hot at the best token, ties to the lowest id.
    // Throws KAD_NOT_A_NUMBER on NaN, +inf, or a row of nothing but -inf; `who` names the row in the message.
    void set(const float * logits, size_t n, double temperature, const char * who, const Support * support = nullptr);
    std::vector<float> dense_;

    size_t size() const { return n_; }
    Token  top() const { return top_; }
    double temperature() const { return one_hot_ ? 0 : 1 / inverse_; }

    double probability(Token v) const;
    void   probabilities(double * out) const; // probability() of every token, out[size()]
    double log_probability(Token v) const;

    // Inverse distribution function: the lowest token whose cumulative sum exceeds the coin in [0, 1); if none does by
    // rounding, the last token of non-zero probability. Never a token of probability zero.
    Token draw(double coin) const;

    // p(v) >= exp(log_threshold) holds where logit - largest logit >= reach(log_threshold), in double: in the log domain, and
    // relative to the best token, so that no logit is too large for it.
    double reach(double log_threshold) const { return (log_threshold + log_total_) / inverse_; }

    const float * logits() const { return logits_; }
    size_t        blocks() const { return (n_ + BLOCK - 1) / BLOCK; }

    // The length of block b, and into out: max(0, a p(v) - c q(v)) of its tokens, p this row and q another of the same size.
    size_t clipped_difference(size_t b, double a, const Distribution & q, double c, double * out) const;

private:
    const float *       logits_    = nullptr;
    size_t              n_         = 0;
    double              inverse_   = 1; // 1 / temperature
    float               max_       = 0;
    Token               top_       = 0;
    bool                one_hot_   = false;
    double              total_     = 1; // sum of exp((logit - max) / T)
    double              log_total_ = 0;
    std::vector<double> blocks_; // total_ by blocks of BLOCK tokens

    double weight(size_t i) const; // exp((logit - max) / T)
};

// The sum of n doubles in eight lanes: an order that vector units of any width can keep.
double lane_sum(const double * values, size_t n);

// TV(p, q) = sum of max(0, q(v) - p(v)): the mass by which two rows of one size differ.
double total_variation(const Distribution & p, const Distribution & q);

} // namespace kad
