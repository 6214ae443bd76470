// The passes of one model, shared by all the texts in its cache: what several speakers want is evaluated together.
#pragma once

#include <memory>
#include <vector>

#include "language_model.h"
#include "pacing.h"
#include "text_bridge.h"

namespace kad {

class Speaker;

// Rows that a speaker needs: those after the first `from`, from+1, ... all tokens of context.
struct Want {
    Speaker *                  speaker;
    const std::vector<Token> * context;
    size_t                     from;
};

class Stage {
public:
    // max_pass: most tokens per pass outside prompts. reproducible: fixed prompt blocks, only whole ones are reused.
    Stage(LanguageModel & model, const EventSpace & events, kad_role role, bool reproducible, size_t max_pass);

    LanguageModel &    model() const { return model_; }
    const EventSpace & events() const { return events_; }
    kad_role           role() const { return role_; }
    bool               reproducible() const { return reproducible_; }
    size_t             max_pass() const { return max_pass_; }
    Speaker &          speaker(size_t slot) const { return *speakers_[slot]; }
    uint64_t           passes() const { return passes_; } // rows in the model's buffer are those of the last one

    // Makes all rows that are wanted, in as few passes as max_pass allows. Then Speaker::row() has them at hand.
    void make_rows(const std::vector<Want> & wants);

    // One pass: pieces[i] is speakers[i]'s. Its rows are stored. With wait = false that is left to finish().
    void evaluate(const std::vector<Piece> & pieces, const std::vector<Speaker *> & speakers, bool wait = true);
    void finish();
    // What was left to finish() comes to its end, whatever else went wrong.
    void settle() noexcept;

    // Slots share their cells: idle ones are emptied until n more tokens fit.
    void make_room(size_t n);

    // A name for a prompt's beginning whose cells slots share.
    uint64_t new_share() { return ++shares_; }

    PassTimes times;     // what passes outside prompts took
    double    spent = 0; // seconds of all passes, those over prompts and those that failed included

private:
    LanguageModel &                       model_;
    const EventSpace &                    events_;
    kad_role                              role_;
    bool                                  reproducible_;
    size_t                                max_pass_;
    uint64_t                              passes_ = 0;
    std::vector<std::unique_ptr<Speaker>> speakers_; // by slot
    std::vector<Piece>                    pieces_, running_;
    std::vector<Speaker *>                taking_, waiting_;
    std::vector<Want>                     open_;
    double                                running_s_ = 0;
    uint64_t                              shares_    = 0;

    void   take_rows();
    size_t held() const;
    void   gather();
    void   recover(const std::vector<Piece> & pieces, const std::vector<Speaker *> & speakers);
};

} // namespace kad
