#include "reward.h"

#include <algorithm>
#include <cmath>

#include "logits.h"

namespace kad {

// Summed in double and stored relative to the largest: a float then holds log pi to 1e-6 wherever pi exceeds 1e-7.
void implicit_reward(const float * base, const float * aligned, const float * reference, size_t n, double beta,
                     std::vector<float> & out) {
    check_logits(base, n, "base model");
    check_logits(aligned, n, "aligned model");
    check_logits(reference, n, "reference model");
    const auto log_pi = [&](size_t v) {
        if (base[v] == -INFINITY || aligned[v] == -INFINITY || reference[v] == -INFINITY) return double(-INFINITY);
        return double(base[v]) + beta * (double(aligned[v]) - double(reference[v]));
    };
    double best = -INFINITY;
    for (size_t v = 0; v < n; ++v) best = std::max(best, log_pi(v));
    if (best == -INFINITY) {
        throw Error(KAD_NOT_A_NUMBER, "rule implicit-reward: no token is possible for the base, the aligned and the "
                                      "reference model alike");
    }
    out.resize(n);
    for (size_t v = 0; v < n; ++v) out[v] = float(log_pi(v) - best);
}

} // namespace kad
