// Under a grammar: draw, check, redraw (method.md, section 4). The part of the loop that runs only where an outcome was refused,
// and the grammar's state as the text goes on.
#include <algorithm>

#include "generator.h"

namespace kad {

Constraint * Generator::constraint(Sequence & sequence) const {
    return sequence.constraints.empty() ? nullptr : &sequence.constraints[sequence.constrained];
}

// After an event that was said: the state that a right guess prepared, or this one moved on.
void Generator::advance_constraint(Sequence & sequence, const Said & said, bool guessed_right) {
    if (!constraint(sequence)) return;
    const size_t next = sequence.constrained + 1;
    if (guessed_right && next < sequence.constraints.size()) {
        sequence.constrained = next;
        return;
    }
    const kad_role role = said.source == KAD_SOURCE_BASE ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    try {
        constraint(sequence)->accept(role, said.ids);
    } catch (const Error & error) {
        sequence.lost = error; // one vocabulary's state may have moved and not the other's
        throw;
    }
}

Error Generator::nothing_allowed(const Sequence & sequence) const {
    return Error(KAD_NOT_A_NUMBER,
                 "after " + std::to_string(sequence.events) +
                     " tokens no model has a token that the grammar allows and logit_bias does not ban; "
                     "check both");
}

// The outcome was refused: redraw among the tokens that have any mass; without any allowed mass, both models choose again.
Outcome Generator::redraw_event(Sequence & sequence, Said & said) {
    if (!pi_) mix(sequence);
    const DrawCoins      coins(sequence.coins, sequence.events, PURPOSE_REDRAW);
    std::vector<uint8_t> ask(events_.size()), ok;
    for (size_t e = 0; e < ask.size(); ++e) {
        ask[e] = pi_->probability(Token(e)) > 0 || pi_->aligned().probability(Token(e)) > 0;
    }
    constraint(sequence)->allowed(ask, ok);
    Outcome outcome;
    if (redraw(*pi_, ok, coins, outcome)) return outcome;
    constraint(sequence)->allowed(std::vector<uint8_t>(ok.size(), 1), ok);
    return is_joint() ? draw_joint_restricted(sequence, ok, coins) : draw_restricted(sequence, said, ok, coins);
}

// No mass of pi is allowed: both models speak again from what is, S still from the raw rows; section 3 with the redraw's coins.
// A model with no token to say gives way to the other.
Outcome Generator::draw_restricted(Sequence & sequence, Said & said, const std::vector<uint8_t> & ok,
                                   const DrawCoins & coins) {
    Distribution p, q;
    const bool   base_can    = restricted(sequence, KAD_ROLE_BASE, row(sequence, KAD_ROLE_BASE), ok, p);
    const bool   aligned_can = restricted(sequence, KAD_ROLE_ALIGNED, row(sequence, KAD_ROLE_ALIGNED), ok, q);
    if (!base_can && !aligned_can) throw nothing_allowed(sequence);
    said.base_share = base_can ? 1 : 0;
    if (!base_can) return { q.draw(coins.proposal), KAD_SOURCE_ALIGNED };
    if (!aligned_can) return { p.draw(coins.residual), KAD_SOURCE_BASE };
    KeptSet kept = sequence.now.kept;
    if (kept.extent == KeptSet::Extent::Some) {
        const auto refused = [&](Token v) { return !ok[size_t(v)]; };
        kept.ids.erase(std::remove_if(kept.ids.begin(), kept.ids.end(), refused), kept.ids.end());
        kept.some();
    }
    const Mixture pi(p, q, kept, rule_info(settings_.rule.kind).exchanged != 0);
    const Outcome outcome = kad::draw(pi, q.draw(coins.proposal), coins);
    said.base_share       = pi.base_share(outcome.token);
    return outcome;
}

// The same for implicit-reward: log pi and the proposal's row, masked before their chains.
Outcome Generator::draw_joint_restricted(Sequence & sequence, const std::vector<uint8_t> & ok,
                                         const DrawCoins & coins) {
    Distribution  q;
    const bool    aligned_can = restricted(sequence, KAD_ROLE_ALIGNED, row(sequence, KAD_ROLE_ALIGNED), ok, q);
    const float * joint       = joint_logits(sequence, &ok);
    const bool    joint_can   = possible(joint, joint_row_.size());
    if (!aligned_can && !joint_can) throw nothing_allowed(sequence);
    Outcome outcome = { -1, KAD_SOURCE_JOINT };
    if (joint_can) mix_joint(sequence, joint);
    if (joint_can && aligned_can) {
        outcome = kad::draw(Mixture(joint_, q), q.draw(coins.proposal), coins);
    } else {
        outcome.token = joint_can ? joint_.draw(coins.residual) : q.draw(coins.proposal);
    }
    mix(sequence); // what describe() speaks of
    return outcome;
}

// A role's row as it speaks when its raw row is masked first; false when it has nothing to say. Valid until the next call for
// that role.
bool Generator::restricted(Sequence & sequence, kad_role role, const Row & row, const std::vector<uint8_t> & ok,
                           Distribution & out) {
    return speaker(sequence, role).restricted(row, ok, restricted_[role], out);
}

static std::vector<uint8_t> support(const Distribution & row) {
    std::vector<uint8_t> possible(row.size());
    for (size_t i = 0; i < possible.size(); ++i) possible[i] = row.probability(Token(i)) > 0;
    return possible;
}

// One model's draw by one coin among allowed events: from its row as it speaks, else from its masked row; -1 when nothing is left.
Token Generator::allowed_draw(Sequence & sequence, Constraint & state, kad_role role, const Row & row, double coin) {
    std::vector<uint8_t> ok;
    state.allowed(support(row.spoken), ok);
    const Token y = draw_allowed(row.spoken, ok, coin);
    if (y >= 0) return y;
    state.allowed(std::vector<uint8_t>(ok.size(), 1), ok);
    Distribution own;
    return restricted(sequence, role, row, ok, own) ? own.draw(coin) : -1;
}

} // namespace kad
