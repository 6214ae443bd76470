#include "reward.h"

#include <cmath>

#include "logits.h"

namespace kad {

// Summed in double and stored relative to the largest: a float then holds log pi to 1e-6 wherever pi exceeds 1e-7.
void implicit_reward(const float * base, const float * aligned, const float * reference, size_t n, double beta,
                     std::vector<float> & out) {
    check_logits(base, n, "base model");
    check_logits(aligned, n, "aligned model");
    check_logits(reference, n, "reference model");
    const RewardRows rows{ base, aligned, reference, beta };
    const double     best = largest_reward(rows, n);
    if (best == -INFINITY) {
        throw Error(KAD_NOT_A_NUMBER, "rule implicit-reward: no token is possible for the base, the aligned and the "
                                      "reference model alike");
    }
    out.resize(n);
    rewards_below(rows, n, best, out.data());
}

} // namespace kad
