// A row of logits as a distribution: its normaliser, the probability of a token, its best token, a draw.
//
// Sums are doubles, in a fixed order (eight lanes, blocks of BLOCK entries), so that a draw is the same however wide
// the machine's vectors are (kernels.h).
#pragma once

#include <vector>

#include "kernels.h"
#include "notation.h"
#include "workers.h"

namespace kad {

// Throws KAD_NOT_A_NUMBER unless every logit is finite or -inf, and one is finite; the message begins with `who`. Gives the largest.
float check_logits(const float * logits, size_t n, const char * who);

// Is any token of these logits possible?
bool possible(const float * logits, size_t n);

// Where a row lists some of the events: entry i is event events[i], ascending; entry_of[v] is the entry of event v, -1
// where the row has none (probability zero). events empty: entry i is event i, and events from n on have probability zero.
struct Support {
    size_t             n_events = 0;
    std::vector<Token> events;
    std::vector<Token> entry_of; // n_events of them; empty where events is
};

// Tokens are events throughout; an entry is a place in the row that was given.
class Distribution {
public:
    static constexpr size_t BLOCK = kad::BLOCK;

    // Reads n logits at a temperature >= 0, in one pass. Logits and support must outlive this object; -inf is probability
    // zero. Temperature 0 is one-hot at the best token, ties to the lowest id. Without a support there are n events.
    // Throws KAD_NOT_A_NUMBER on NaN, +inf, or a row of nothing but -inf; `who` names the row in the message. What was
    // read before is then gone. A long row is shared out among the workers, if there are any.
    void set(const float * logits, size_t n, double temperature, const char * who, const Support * support = nullptr,
             Workers * workers = nullptr);

    size_t size() const { return support_ ? support_->n_events : n_; }
    Token  top() const { return event(top_); }
    double temperature() const { return one_hot_ ? 0 : 1 / inverse_; }

    double probability(Token v) const;
    void   probabilities(double * out) const; // probability() of every token, out[size()]
    double log_probability(Token v) const;

    // Inverse distribution function: the lowest token whose cumulative sum exceeds the coin in [0, 1); if none does by
    // rounding, the last token of non-zero probability. Never a token of probability zero.
    Token draw(double coin) const;

    // p(v) >= exp(log_threshold) holds where logit - largest logit >= reach(log_threshold), in double: in the log domain, and
    // relative to the best token, so that no logit is too large for it. Finite, so that -inf never reaches it.
    double reach(double log_threshold) const;

    // ---- By entries, ascending as their tokens are ----
    size_t        entries() const { return n_; }
    Token         event(size_t entry) const { return listed() ? support_->events[entry] : Token(entry); }
    const float * logits() const { return logits_; }
    float         largest() const { return max_; }

    // Of each block of BLOCK entries the largest logit: what lies below a limit need not be looked into.
    const std::vector<float> & block_maxima() const { return maxima_; }

    // exp((logit - largest) / T), for temperatures > 0: probabilities before they are divided by total().
    double weight(float logit) const { return exp_minus((double(max_) - double(logit)) * inverse_); }
    void   weights(const float * logits, size_t n, double * out) const {
        kad::weights(logits, n, max_, inverse_, 1, out);
    }
    double total() const { return total_; }

    Workers * workers() const { return workers_; }

    // ---- By blocks of BLOCK tokens ----
    size_t blocks() const { return (size() + BLOCK - 1) / BLOCK; }

    // The length of block b, and into out: max(0, a p(v) - c q(v)) of its tokens, p this row and q another of the same size.
    size_t clipped_difference(size_t b, double a, const Distribution & q, double c, double * out) const;

private:
    const float *       logits_    = nullptr;
    const Support *     support_   = nullptr;
    Workers *           workers_   = nullptr;
    size_t              n_         = 0;
    double              inverse_   = 1; // 1 / temperature
    float               max_       = 0;
    size_t              top_       = 0; // an entry
    bool                one_hot_   = false;
    double              total_     = 1; // sum of exp((logit - max) / T)
    double              log_total_ = 0;
    std::vector<float>  maxima_; // by blocks of BLOCK entries
    std::vector<double> sums_;   // total_, likewise

    bool   listed() const { return support_ && !support_->events.empty(); }
    size_t entry(Token v) const; // n_ for none
    size_t find_top() const;
    void   scaled_block(size_t b, double scale, double * out) const;
    void   scaled_entries(size_t at, size_t length, double scale, double * out) const;
};

// TV(p, q) = sum of max(0, q(v) - p(v)): the mass by which two rows of one size differ.
double total_variation(const Distribution & p, const Distribution & q);

} // namespace kad
