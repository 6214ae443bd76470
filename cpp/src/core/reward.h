// implicit-reward: pi proportional to p (q / r)^beta (method.md, section 2; proxy tuning, arXiv 2401.08565). No set, three rows.
#pragma once

#include <vector>

#include "notation.h"

namespace kad {

// log pi up to a constant, as a row of logits whose largest is 0; -inf where p, q or r is 0. All three rows are raw, n logits
// each. Throws KAD_NOT_A_NUMBER when no token is possible for all three.
void implicit_reward(const float * base, const float * aligned, const float * reference, size_t n, double beta,
                     std::vector<float> & out);

} // namespace kad
