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

class Distribution {
public:
    static constexpr size_t BLOCK = 512;

    // Reads n logits at a temperature >= 0. The logits must outlive this object; -inf is probability zero. Temperature 0
    // is one-hot at the best token, ties to the lowest id.
    // Throws KAD_NOT_A_NUMBER on NaN, +inf, or a row of nothing but -inf; `who` names the row in the message.
    void set(const float * logits, size_t n, double temperature, const char * who);

    size_t size() const { return n_; }
    Token  top() const { return top_; }
    double temperature() const { return one_hot_ ? 0 : 1 / inverse_; }

    double probability(Token v) const;
    void   probabilities(double * out) const; // probability() of every token, out[size()]
    double log_probability(Token v) const;

    // Inverse distribution function: the lowest token whose cumulative sum exceeds the coin in [0, 1); if none does by
    // rounding, the last token of non-zero probability. Never a token of probability zero.
    Token draw(double coin) const;

    // Is p(v) >= exp(log_threshold)? Compared in the log domain: logit/T >= log threshold + log sum exp(logit/T).
    // at_least() is the smallest logit for which that holds, as a double.
    double at_least(double log_threshold) const;

    const float * logits() const { return logits_; }

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

} // namespace kad
