// What a grammar lets the text go on with, over events (method.md, section 4).
//
// Grammars speak of tokens. Each vocabulary has its own state, and all are fed the same bytes: with shared ids one state
// will do.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "text_bridge.h"

namespace kad {

class Constraint {
public:
    // One grammar for each role whose ids are to be judged; events must outlive it.
    explicit Constraint(const EventSpace & events) : events_(&events) {}
    void add(kad_role role, std::unique_ptr<Grammar> grammar);

    // The same state; what was asked of this one is not remembered.
    Constraint clone() const;

    // May this event be said next? Remembered until accept().
    bool allows(Token event);

    // ok[e] for every event with ask[e]; 0 elsewhere.
    void allowed(const std::vector<uint8_t> & ask, std::vector<uint8_t> & ok);

    // Advances over an event that `role` said in these ids, more than one for a character. Throws KAD_MODEL_ERROR when another vocabulary cannot spell its bytes.
    void accept(kad_role role, const std::vector<Token> & ids);

    // The state of one vocabulary, to be asked about further tokens of a character. With shared ids there is one for all.
    std::unique_ptr<Grammar> state(kad_role role) const;

    // The id of `role` that stands for the end of the text; -1 when it has none.
    Token end_id(kad_role role) const { return end_ids_[role]; }

private:
    const EventSpace *       events_;
    std::unique_ptr<Grammar> grammars_[ROLE_COUNT];
    Token                    end_ids_[ROLE_COUNT] = { -1, -1, -1 };
    enum Answer : uint8_t { Unknown, No, Yes };
    std::vector<uint8_t> answers_; // by event

    bool end_allowed();
    void spell(kad_role role, const std::string & bytes);
};

} // namespace kad
