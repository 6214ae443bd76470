// One model's side of one text: its slot of the cache, and its rows of logits, ready to be drawn from.
#pragma once

#include <memory>
#include <vector>

#include "../core/logits.h"
#include "stage.h"

namespace kad {

// A model's row at one position, read for the two questions of method.md, section 4.
struct Row {
    size_t             length = 0;       // tokens of the context that the row follows; 0 = no row here
    uint64_t           pass   = 0;       // of the stage, in whose buffer it lies; 0 = in `copy`
    float *            own    = nullptr; // prepared logits over the model's own ids
    std::vector<float> copy;
    bool               read  = false;
    uint64_t           event = 0; // for which it was read
    std::vector<float> shaped_own;
    std::vector<float> entries, shaped_entries; // where vocabularies differ: over events (EventSpace::project)
    std::vector<float> merged;                  // of a row that lies over events in place: what that overwrote
    bool               over_events = false;     // it does
    const float *      by_event    = nullptr;   // the raw row over events
    Distribution       at_rule;                 // who speaks: raw, at the rule's temperature
    Distribution       spoken;                  // how this speaker speaks: shaped, at the sampling temperature
};

struct Reading {
    double   rule_temperature = 1; // 0: rows of this speaker are not asked by the rule
    double   temperature      = 1;
    Shaper * shaper           = nullptr; // owned by the sequence
    bool     in_place         = false; // no mask and no chain will ask for the raw row over ids while it is drawn from
};

struct EvaluationCount {
    int    passes  = 0;
    double seconds = 0;
    double read_s  = 0; // of getting its rows ready to be drawn from
};

class Speaker {
public:
    static constexpr size_t BLOCK = 64; // reproducible prompts are evaluated in blocks of this many tokens

    Speaker(Stage & stage, size_t slot) : stage_(stage), slot_(slot), rows_(2) {}

    LanguageModel & model() const { return stage_.model(); }
    Stage &         stage() const { return stage_; }
    size_t          slot() const { return slot_; }
    size_t          holds() const { return tokens_.size(); } // tokens in the cache
    bool            idle() const { return idle_; }
    size_t          common_prefix(const std::vector<Token> & context) const;

    // A new text begins. keep_rows: room for this many rows. own_rows: they outlive the next pass.
    void begin(const Reading & reading, size_t keep_rows, bool own_rows);
    void set_idle(bool idle) { idle_ = idle; } // whether its cells may be taken

    // Room for at least n rows from here on.
    void keep_rows(size_t n);

    // Starts on the next block of the prompt; finish_block() waits for it, true when the row after the whole prompt is there.
    // cached() is then the number of prompt tokens that were not evaluated again.
    void   start_block(const std::vector<Token> & prompt);
    bool   finish_block(const std::vector<Token> & prompt);
    size_t cached() const { return cached_; }
    size_t prefilled() const { return started_ ? tokens_.size() : 0; }
    bool   started() const { return started_; }

    // Takes over what another slot holds of the prompt, where that is more. Cells are shared.
    void adopt(Speaker & other, const std::vector<Token> & prompt);
    // How many cells are held in common with another slot, at least.
    size_t shares(const Speaker & other) const;

    // The row after `context`, evaluating what the cache lacks, read for event number `event`.
    Row & row(const std::vector<Token> & context, uint64_t event);
    bool  has_row(const std::vector<Token> & context) const;
    void  keep_row(const std::vector<Token> & context); // beyond the next pass, if it is at hand

    // How this model speaks over its own ids (further tokens of a character). Valid until the next call.
    const Distribution & own(Row & row);

    // A draw from it by one coin.
    Token draw_own(Row & row, double coin, double & logprob);

    // The same among the ids with ok; logprob is still that of the whole row. If none of them has mass, from the row masked
    // before the samplers; -1 when nothing is left.
    Token draw_own_allowed(Row & row, const std::vector<uint8_t> & ok, double coin, double & logprob);

    // The row over events as this model speaks when only events with ok are left before its samplers, in `buffer`, which must
    // outlive `out`. False when nothing is left.
    bool restricted(const Row & row, const std::vector<uint8_t> & ok, std::vector<float> & buffer, Distribution & out);

    // Drops from the cache what does not belong to context.
    void trim(const std::vector<Token> & context);
    void forget() { rewind(0); }

    // ---- For the stage ----

    // Rewinds to what the cache has of context. True when rows after from .. all tokens are to be made; `from` is then the first.
    bool lacks(const std::vector<Token> & context, size_t & from);
    void took(const Piece & piece, size_t first_row,
              double seconds); // a pass: its rows begin at the model's row(first_row)
    void lost(size_t keep);    // a pass that failed
    void own_rows();           // copies rows out of the model's buffer
    void keep_prompt_row();    // the one after the prompt, where nothing came after it yet

    EvaluationCount count; // since begin()

private:
    Stage &            stage_;
    size_t             slot_;
    Reading            reading_;
    bool               idle_ = true, own_rows_ = false;
    std::vector<Token> tokens_;       // what the cache holds
    size_t             blocks_   = 0; // tokens of it that were evaluated as whole prompt blocks
    size_t             cached_   = 0;
    size_t             n_prompt_ = 0;
    uint64_t         share_ = 0; // the beginning that it has in common with other slots of the same number, 0 for none
    size_t           n_shared_ = 0;     // its length
    bool             started_  = false; // prefill has chosen what to reuse
    std::vector<Row> rows_;             // slot length % size
    Distribution     own_;
    std::vector<float> masked_, masked_shaped_;

    size_t        last_block() const; // where the prompt\'s last block begins
    void          choose_reuse(const std::vector<Token> & prompt);
    void          evaluate_block(const std::vector<Token> & context, size_t n_rows, bool wait);
    void          rewind(size_t keep);
    void          store(float * logits, size_t length);
    void          restore_own(Row & row);
    const float * over_events(Row & row);
    void          own_row(Row & row);
    void          read(Row & row, uint64_t event);
    bool          mask(const Row & row, const std::vector<uint8_t> & ok_ids);
    Row &         at(size_t length) { return rows_[length % rows_.size()]; }
    bool          has_row(size_t length) const {
        const Row & row = rows_[length % rows_.size()];
        return row.length == length && (row.pass == 0 || row.pass == stage_.passes());
    }
};

} // namespace kad
