#include "constraint.h"

namespace kad {

void Constraint::add(kad_role role, std::unique_ptr<Grammar> grammar) {
    const Vocabulary & vocabulary = *events_->vocabulary(role);
    for (size_t i = 0; i < vocabulary.size() && end_ids_[role] < 0; ++i) {
        if (vocabulary.kind(Token(i)) == TokenKind::End) end_ids_[role] = Token(i);
    }
    grammars_[role] = std::move(grammar);
}

Constraint Constraint::clone() const {
    Constraint copy(*events_);
    for (const kad_role role : ROLES) {
        if (grammars_[role]) copy.grammars_[role] = grammars_[role]->clone();
        copy.end_ids_[role] = end_ids_[role];
    }
    return copy;
}

std::unique_ptr<Grammar> Constraint::state(kad_role role) const {
    if (grammars_[role]) return grammars_[role]->clone();
    for (const auto & grammar : grammars_) {
        if (grammar && events_->shared_ids()) return grammar->clone();
    }
    throw Error(KAD_INTERNAL_ERROR, std::string("no grammar over the vocabulary of the ") + role_name(role) + " model");
}

bool Constraint::end_allowed() {
    for (const kad_role role : ROLES) {
        if (grammars_[role] && end_ids_[role] >= 0) return grammars_[role]->allows(end_ids_[role]);
    }
    return false;
}

bool Constraint::allows(Token event) {
    answers_.resize(events_->size());
    uint8_t & answer = answers_[size_t(event)];
    if (answer != Unknown) return answer == Yes;
    bool yes = false;
    if (events_->ends(event)) {
        yes = end_allowed();
    } else {
        for (const kad_role role : ROLES) {
            const Token id = grammars_[role] ? events_->id(role, event) : -1;
            if (id < 0) continue;
            yes = grammars_[role]->allows(id);
            break;
        }
    }
    answer = yes ? Yes : No;
    return yes;
}

// Equal bytes are one event, so it is asked of the first vocabulary that has it; all of a vocabulary's at once.
void Constraint::allowed(const std::vector<uint8_t> & ask, std::vector<uint8_t> & ok) {
    answers_.resize(events_->size());
    std::vector<uint8_t> ids;
    for (const kad_role role : ROLES) {
        if (!grammars_[role]) continue;
        ids.assign(events_->row_size(role), 0);
        for (size_t e = 0; e < answers_.size(); ++e) {
            const Token id = events_->id(role, Token(e));
            // Where ids are shared, all ends are at the lowest, which need be no end of this vocabulary's own.
            if (ask[e] && answers_[e] == Unknown && id >= 0 && !events_->ends(events_->event(role, id)))
                ids[size_t(id)] = 1;
        }
        const std::vector<uint8_t> asked = ids;
        grammars_[role]->restrict(ids.data(), ids.size());
        for (size_t i = 0; i < ids.size(); ++i) {
            if (asked[i]) answers_[size_t(events_->event(role, Token(i)))] = ids[i] ? Yes : No;
        }
    }
    ok.resize(answers_.size());
    for (size_t e = 0; e < ok.size(); ++e) {
        ok[e] = ask[e] && (events_->ends(Token(e)) ? allows(Token(e)) : answers_[e] == Yes);
    }
}

void Constraint::accept(kad_role role, const std::vector<Token> & ids) {
    for (const kad_role each : ROLES) {
        if (!grammars_[each]) continue;
        for (const Token id : ids) {
            const Token same = each == role || events_->shared_ids() ? id : events_->id(each, events_->event(role, id));
            if (same >= 0) {
                grammars_[each]->accept(same);
            } else {
                spell(each, events_->vocabulary(role)->bytes(id));
            }
        }
    }
    answers_.clear();
}

// Bytes for which this vocabulary has no token, one by one.
void Constraint::spell(kad_role role, const std::string & bytes) {
    for (const char c : bytes) {
        const uint8_t byte = uint8_t(c);
        const Token   id   = events_->byte_id(role, byte);
        if (id < 0) {
            throw Error(KAD_MODEL_ERROR, std::string("the vocabulary of the ") + role_name(role) +
                                             " model has no token for the byte " + std::to_string(byte) +
                                             ": a grammar cannot follow this text there");
        }
        grammars_[role]->accept(id);
    }
}

} // namespace kad
