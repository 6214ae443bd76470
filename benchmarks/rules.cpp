// What does a rule cost at one position? Reads the rows that the rule looks at and decides, as the engine does.
#include <ctime>

#include "core/deferral.h"
#include "core/reward.h"

using namespace kad;

static void decide_once(const kad_rule & rule, const float * const rows[3], size_t n, Distribution & p,
                        Distribution & q, std::vector<float> & joint, KeptSet & kept) {
    if (rule_info(rule.kind).reference) {
        implicit_reward(rows[0], rows[1], rows[2], n, rule.threshold, joint);
        return p.set(joint.data(), n, 1, "log pi");
    }
    if (looks_at(rule, KAD_ROLE_BASE)) p.set(rows[0], n, 1, "base");
    if (looks_at(rule, KAD_ROLE_ALIGNED)) q.set(rows[1], n, 1, "aligned");
    decide(rule, &p, &q, kept);
}

// Microseconds of processor time per position; -1 for a rule that this core does not know. kind -1 is the unit: one pass over the base's row
// (largest logit, normaliser).
extern "C" double microseconds(int kind, double threshold, const float * base, const float * aligned,
                               const float * reference, size_t n, int repeats) {
    static Distribution       p, q;
    static std::vector<float> joint;
    static KeptSet            kept;
    const float * const       rows[3] = { base, aligned, reference };
    try {
        const std::clock_t start = std::clock();
        for (int k = 0; k < repeats; ++k) {
            if (kind < 0) {
                p.set(base, n, 1, "base");
            } else {
                decide_once(kad_rule{ kind, threshold, 1 }, rows, n, p, q, joint, kept);
            }
        }
        return 1e6 * double(std::clock() - start) / CLOCKS_PER_SEC / repeats;
    } catch (const Error &) {
        return -1;
    }
}
