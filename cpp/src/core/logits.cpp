#include "logits.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>

namespace kad {

// Names the first logit that is NaN or +inf. events: whose the logits are, where not in order.
[[noreturn]] static void refuse(const float * logits, const char * who, const Token * events) {
    size_t at = 0;
    while (logits[at] <= FLT_MAX) ++at;
    const std::string token = std::to_string(events ? size_t(events[at]) : at);
    throw Error(KAD_NOT_A_NUMBER, std::string(who) + ": the logit of token " + token + " is " + shown(logits[at]) +
                                      "; expected finite values or -inf");
}

static void check_possible(float max, size_t n, const char * who) {
    if (max > -INFINITY) return;
    throw Error(KAD_NOT_A_NUMBER,
                std::string(who) + ": no token is possible (all " + std::to_string(n) + " logits are -inf)");
}

float check_logits(const float * logits, size_t n, const char * who) {
    float max;
    if (!scan(logits, n, max)) refuse(logits, who, nullptr);
    check_possible(max, n, who);
    return max;
}

bool possible(const float * logits, size_t n) {
    return std::any_of(logits, logits + n, [](float logit) { return logit > -INFINITY; });
}

// ---- Reading a row -----------------------------------------------------------------------------------------------------
// A block is summed relative to its own largest logit, while it lies in the cache, since the row's is not known before the
// end; exp((block's - row's) / T) then brings the sums to one scale, with one rounding per block. A block's sum becomes 0
// only if its best token's weight is 0: draw() relies on that.

void Distribution::set(const float * logits, size_t n, double temperature, const char * who, const Support * support,
                       Workers * workers) {
    logits_  = logits;
    support_ = support;
    workers_ = workers;
    n_       = n;
    one_hot_ = temperature == 0;
    // Finite even for a temperature so small that its inverse is not: 0 * inf would be NaN.
    inverse_ = one_hot_ ? 1 : std::min(1 / temperature, DBL_MAX);
    maxima_.resize((n + BLOCK - 1) / BLOCK);
    sums_.resize(maxima_.size());
    double * const    sums = one_hot_ ? nullptr : sums_.data();
    std::atomic<bool> ok{ true };
    share_blocks(maxima_.size(), workers_, [&](size_t first, size_t end) {
        const size_t at = first * BLOCK, length = std::min(n, end * BLOCK) - at;
        double *     to = sums ? sums + first : nullptr;
        if (!read_blocks(logits + at, length, inverse_, maxima_.data() + first, to)) ok = false;
    });
    if (!ok) refuse(logits, who, listed() ? support->events.data() : nullptr);
    max_ = -INFINITY;
    for (const float each : maxima_) max_ = std::max(max_, each);
    check_possible(max_, n, who);
    top_   = find_top();
    total_ = 1;
    if (!one_hot_) {
        rescale(maxima_.data(), maxima_.size(), max_, inverse_, sums_.data());
        total_ = 0;
        for (const double each : sums_) total_ += each;
    }
    log_total_ = std::log(total_);
}

// The lowest entry of the largest logit: in the first block that holds one.
size_t Distribution::find_top() const {
    const size_t b     = size_t(std::find(maxima_.begin(), maxima_.end(), max_) - maxima_.begin());
    const auto   first = logits_ + b * BLOCK;
    return size_t(std::find(first, logits_ + std::min(n_, (b + 1) * BLOCK), max_) - logits_);
}

// ---- Probabilities -----------------------------------------------------------------------------------------------------

size_t Distribution::entry(Token v) const {
    if (!listed()) return std::min(size_t(v), n_);
    const Token entry = support_->entry_of[size_t(v)];
    return entry < 0 ? n_ : size_t(entry);
}

double Distribution::probability(Token v) const {
    const size_t i = entry(v);
    if (one_hot_ || i == n_) return i == top_ ? 1 : 0;
    return weight(logits_[i]) / total_;
}

double Distribution::log_probability(Token v) const {
    const size_t i = entry(v);
    if (one_hot_ || i == n_) return i == top_ ? 0 : -INFINITY;
    return (double(logits_[i]) - double(max_)) * inverse_ - log_total_;
}

void Distribution::probabilities(double * out) const {
    for (size_t b = 0; b < blocks(); ++b) scaled_block(b, 1, out + b * BLOCK);
    if (one_hot_) return;
    for (size_t v = 0; v < size(); ++v) out[v] /= total_;
}

double Distribution::reach(double log_threshold) const {
    return std::max((log_threshold + log_total_) / inverse_, -DBL_MAX);
}

// ---- Blocks of tokens --------------------------------------------------------------------------------------------------

// scale * weight of block b's tokens; of a one-hot row scale * probability.
void Distribution::scaled_block(size_t b, double scale, double * out) const {
    const size_t at = b * BLOCK, length = std::min(BLOCK, size() - at);
    if (one_hot_) {
        std::fill(out, out + length, 0.0);
        if (size_t(top()) / BLOCK == b) out[size_t(top()) - at] = scale;
    } else if (listed()) {
        scaled_entries(at, length, scale, out);
    } else {
        const size_t given = at < n_ ? std::min(length, n_ - at) : 0;
        kad::weights(logits_ + at, given, max_, inverse_, scale, out);
        std::fill(out + given, out + length, 0.0);
    }
}

// Where the row lists its tokens: those from `at` on, each to its place.
void Distribution::scaled_entries(size_t at, size_t length, double scale, double * out) const {
    const std::vector<Token> & events = support_->events;
    const auto                 first  = std::lower_bound(events.begin(), events.end(), Token(at));
    const auto                 last   = std::lower_bound(first, events.end(), Token(at + length));
    double                     some[BLOCK];
    kad::weights(logits_ + (first - events.begin()), size_t(last - first), max_, inverse_, scale, some);
    std::fill(out, out + length, 0.0);
    for (auto v = first; v != last; ++v) out[size_t(*v) - at] = some[v - first];
}

size_t Distribution::clipped_difference(size_t b, double a, const Distribution & q, double c, double * out) const {
    double less[BLOCK];
    scaled_block(b, a / total_, out);
    q.scaled_block(b, c / q.total_, less);
    const size_t length = std::min(BLOCK, size() - b * BLOCK);
    subtract_clipped(out, less, length);
    return length;
}

double total_variation(const Distribution & p, const Distribution & q) {
    double total = 0;
    double terms[Distribution::BLOCK];
    for (size_t b = 0; b < p.blocks(); ++b) total += lane_sum(terms, q.clipped_difference(b, 1, p, 1, terms));
    return total;
}

// ---- The draw ----------------------------------------------------------------------------------------------------------

Token Distribution::draw(double coin) const {
    if (one_hot_) return top();
    const double target = coin * total_;
    double       before = 0; // cumulative sum of the blocks passed
    for (size_t b = 0; b < sums_.size(); before += sums_[b], ++b) {
        if (!(before + sums_[b] > target)) continue;
        const size_t at = b * BLOCK, length = std::min(BLOCK, n_ - at);
        double       terms[BLOCK], sum      = before;
        kad::weights(logits_ + at, length, max_, inverse_, 1, terms);
        for (size_t i = 0; i < length; ++i) {
            sum += terms[i];
            if (sum > target && terms[i] > 0) return event(at + i);
        }
    }
    size_t last = n_ - 1;
    while (!(weight(logits_[last]) > 0)) --last;
    return event(last);
}

} // namespace kad
