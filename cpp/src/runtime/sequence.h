// One text being written: its prompt, what was said, its coins, its statistics, the round under way. Holds no model.
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../core/coins.h"
#include "../core/deferral.h"
#include "constraint.h"
#include "language_model.h"
#include "ngram.h"
#include "pacing.h"
#include "text_bridge.h"

namespace kad {

// An event that was said.
struct Said {
    std::vector<Token> ids; // one, or as many as a character took
    kad_source         source;
    std::string        bytes;
    double             logprob, base_share, deferred_mass;
    double             base_logprob, aligned_logprob;
    int                guess; // 0 not guessed, 1 right, 2 corrected
};

// A model's prompt and its own tokens of the text, in one vector: what its cache should hold.
struct Side {
    bool                        active   = false;
    size_t                      n_prompt = 0;
    std::vector<Token>          context;
    std::unique_ptr<Shaper>     shaper; // the speaker's samplers, NULL when off
    std::unique_ptr<TextTokens> tokens; // where vocabularies differ

    // What a round looks ahead: the context with guesses, and of how many of them (from the first) it has the rows.
    std::vector<Token>        ahead;
    std::optional<TextTokens> ahead_tokens;
    size_t                    scored = 0;
    std::vector<Token>        along; // the aligned model's: the context with what it reads of the table's guesses

    // The text as it stands, in this model's tokens.
    void retokenise(const std::string & text) { tokens->follow(text, n_prompt, context); }
};

// What a round guesses will be said next.
struct Guess {
    Token       event;
    std::string bytes;      // where vocabularies differ: of the whole character
    double      confidence; // the drafter's own probability of it; of an n-gram its class
};

// The round of one text that is under way.
struct Round {
    std::vector<Guess> guesses;
    Plan               plan;
    bool               drafting     = false; // the aligned model goes on guessing
    bool               as_table     = true;  // its guesses so far are the n-gram table's
    bool               table_stands = true;  // the table's guesses were right so far
    size_t             said         = 0;     // events of this round
    KeptSet            kept;                 // S (or T) at the next event, once it is decided
    bool               decided  = false;
    Token              proposal = -1;     // the aligned model's own draw at the last event, -1 where it was not asked
    std::vector<NGramTable::Guess> table; // what the n-gram table would guess
};

struct Sequence {
    Coins                    coins;
    double                   temperature = 1;
    int                      max_tokens  = 0;
    kad_mode                 mode        = KAD_MODE_PLAIN; // as it runs, see note
    size_t                   draft       = 0;              // most guesses of a round
    bool                     ngram       = true;           // may guesses come from the table?
    size_t                   slot        = 0;              // of the models' caches
    bool                     logprobs    = false;
    std::string              note;
    std::vector<std::string> stops;

    Side sides[ROLE_COUNT];
    // With a grammar: its state before the next event and, while a round has guesses, before each after it.
    std::vector<Constraint> constraints;
    size_t                  constrained = 0; // which of them is the next event's
    std::string             text;
    size_t                  events = 0; // events said
    std::vector<size_t>     ends;       // text length after each event
    kad_finish              finish  = KAD_FINISH_NONE;
    size_t                  length  = 0; // of the text without the stop string
    size_t                  settled = 0;

    Round                  now;
    std::unique_ptr<Pacer> pacer; // with KAD_MODE_AUTO
    NGramTable             table; // events of prompt and text, with KAD_MODE_AUTO

    bool                 prefilled = false;
    std::deque<Said>     said;    // not yet handed out
    std::optional<Error> failure; // to be reported once `said` is handed out
    std::optional<Error> lost;    // after which no step can go on: the grammar could not follow the text

    int    drafted = 0, accepted = 0, aligned_tokens = 0;
    double alpha_sum = 0, prompt_s = 0, generate_s = 0;
    double draw_s = 0, text_s = 0; // of generate_s: the draws, without reading rows; text into the models' tokens
    double prompt_eval_s[ROLE_COUNT] = {}; // of each role's evaluation count, what the prompt took
    double prompt_read_s[ROLE_COUNT] = {};
    int    prompt_passes[ROLE_COUNT] = {};

    // Adds the bytes of an event and looks for stop strings that it completes. Then `length` and `settled` are right.
    void append(const std::string & bytes);
};

} // namespace kad
