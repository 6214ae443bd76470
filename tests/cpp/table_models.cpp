// The shipped loop over models that are tables of numbers: no llama.cpp. tests/step.py reads the declarations between the
// marks and compares what comes out with the oracle.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <set>
#include <thread>

#include "errors.h"
#include "runtime/generator.h"

extern "C" {
/* table: begin */
typedef struct table_model {
    int32_t       n_vocab;
    int32_t       period; // rows are [period][n_vocab][n_vocab]: by context length modulo period, then by the last id
    const float * rows;
    const char * const * bytes; // spelling of each id
    const int32_t *      n_bytes;
    const int32_t *      ends; // 1 for an id that ends the text
    const int32_t *      prompt;
    int32_t              n_prompt;
    int32_t              can_rewind;
    int32_t              max_batch;
    double               pass_s; // seconds that a pass takes, however many tokens it has
    double               text_s; // and that turning a piece of text into tokens takes
} table_model;

// A grammar: an automaton over bytes that begins in state 0.
typedef struct table_grammar {
    int32_t         n_states; // 0 = no grammar
    const int32_t * next;     // [n_states][256]: the state after a byte, -1 = refused
    const int32_t * may_end;  // [n_states]
} table_grammar;

typedef struct table_run {
    table_model   models[3]; // base, aligned, reference (n_vocab 0 = none)
    kad_rule      rule;
    double        temperature;
    uint64_t      seed, text_number;
    int32_t       max_tokens, mode, draft, logprobs, n_ctx;
    int32_t       top_k;   // samplers of both speakers: this many tokens stay, 0 = all
    double        penalty; // and the logit of the context's last id is lowered by this
    double        shape_s; // seconds that they take
    table_grammar grammar;
    int32_t       n_texts; // written at once, numbers text_number, text_number + 1, ...
    int32_t       n_slots; // at most so many at a time
    int32_t       ngram;   // mode 3: guesses from the table
} table_run;

typedef struct table_event {
    char    bytes[64];
    int32_t n_bytes, id, n_ids, source, guess;
    double  logprob, base_share, deferred_mass, base_logprob, aligned_logprob;
} table_event;

typedef struct table_result {
    int32_t n_events, finish, mode, drafted, accepted, base_passes, aligned_passes;
    double  generate_s, eval_s, read_s, draw_s, text_s; // eval_s: of all models
    double  slept_s;                                    // what all texts of the call slept, prompts included
} table_result;

// The texts; at most `capacity` events each, those of text i from events[i * capacity] on. n_events and finish say how each
// ended.
int32_t table_write(const table_run * run, table_event * events, int32_t capacity, table_result * results);
/* table: end */
}

namespace {

using namespace kad;

double slept_s = 0;

void take(double seconds) {
    slept_s += seconds;
    if (seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

class TableModel : public LanguageModel, public Vocabulary {
public:
    TableModel(const table_model & table, size_t n_ctx, size_t n_slots)
        : table_(table), n_ctx_(n_ctx), held_(n_slots), cells_(n_slots) {
        for (int32_t i = 0; i < table.n_vocab; ++i) words_.emplace_back(table.bytes[i], size_t(table.n_bytes[i]));
    }

    size_t n_vocab() const override { return words_.size(); }
    size_t n_ctx() const override { return n_ctx_; }
    size_t n_slots() const override { return held_.size(); }
    bool   shares_cells() const override { return true; }
    size_t max_batch() const override { return size_t(table_.max_batch); }
    size_t max_rows() const override { return size_t(table_.max_batch); }
    bool   can_rewind() const override { return table_.can_rewind != 0; }

    void evaluate(const Piece * pieces, size_t n_pieces) override {
        rows_.clear();
        size_t n = 0, slots = 0;
        for (size_t k = 0; k < n_pieces; ++k) {
            const Piece & piece = pieces[k];
            auto &        held  = held_.at(piece.slot);
            if (piece.at != held.size() || piece.n_rows > piece.n || piece.at + piece.n > n_ctx_ ||
                (slots >> piece.slot & 1))
                throw Error(KAD_INTERNAL_ERROR, "a pass out of step");
            slots |= size_t(1) << piece.slot;
            held.insert(held.end(), piece.tokens, piece.tokens + piece.n);
            while (cells_[piece.slot].size() < held.size()) cells_[piece.slot].push_back(n_cells_++);
            for (size_t i = piece.n - piece.n_rows; i < piece.n; ++i)
                rows_.push_back(row_after(held, piece.at + i + 1));
            n += piece.n;
        }
        if (n > max_batch() || n == 0 || total() > n_ctx_) throw Error(KAD_INTERNAL_ERROR, "a pass too large");
        take(table_.pass_s);
    }
    void synchronize() override {}
    // llama.cpp hands out a buffer that the next pass overwrites: so does this.
    float * row(size_t i) override { return rows_.at(i).data(); }
    void    drop(size_t slot, size_t keep) override {
        if (keep > held_.at(slot).size() || (keep > 0 && !can_rewind()))
            throw Error(KAD_INTERNAL_ERROR, "a rewind out of step");
        held_[slot].resize(keep);
        cells_[slot].resize(keep);
    }
    void copy(size_t from, size_t to, size_t n) override {
        if (!held_.at(to).empty() || n > held_.at(from).size()) throw Error(KAD_INTERNAL_ERROR, "a copy out of step");
        held_[to].assign(held_[from].begin(), held_[from].begin() + ptrdiff_t(n));
        cells_[to].assign(cells_[from].begin(), cells_[from].begin() + ptrdiff_t(n));
    }

    size_t              size() const override { return words_.size(); }
    const std::string & bytes(Token id) const override { return words_[size_t(id)]; }
    TokenKind           kind(Token id) const override { return table_.ends[id] ? TokenKind::End : TokenKind::Text; }
    int32_t             type(Token) const override { return 0; }
    std::vector<Token>  tokenize_continuation(const std::string & text) const override {
        take(table_.text_s);
        std::vector<Token> ids;
        for (size_t at = 0; at < text.size(); at += words_[size_t(ids.back())].size()) {
            Token best = -1;
            for (size_t i = 0; i < words_.size(); ++i) {
                if (table_.ends[i] || text.compare(at, words_[i].size(), words_[i]) != 0) continue;
                if (best < 0 || words_[i].size() > words_[size_t(best)].size()) best = Token(i);
            }
            if (best < 0) throw Error(KAD_INTERNAL_ERROR, "no table word fits the text");
            ids.push_back(best);
        }
        return ids;
    }

private:
    const table_model &              table_;
    size_t                           n_ctx_;
    std::vector<std::string>         words_;
    std::vector<std::vector<Token>>  held_;  // by slot
    std::vector<std::vector<size_t>> cells_; // by slot: where its tokens lie; slots share what was copied
    size_t                           n_cells_ = 0;
    std::vector<std::vector<float>>  rows_;

    size_t total() const {
        std::set<size_t> used;
        for (const auto & cells : cells_) used.insert(cells.begin(), cells.end());
        return used.size();
    }
    std::vector<float> row_after(const std::vector<Token> & held, size_t length) const {
        const size_t  which = (length % size_t(table_.period)) * words_.size() + size_t(held.at(length - 1));
        const float * begin = table_.rows + which * words_.size();
        return { begin, begin + words_.size() };
    }
};

// Lowers the last id, then keeps the k best: equal ones by the lower id.
class TableShaper : public Shaper {
public:
    explicit TableShaper(const table_run & run)
        : top_k_(size_t(run.top_k)), penalty_(run.penalty), seconds_(run.shape_s) {}

    void shape(const Token * context, size_t n_context, uint64_t, const float * logits, float * shaped,
               size_t n) override {
        take(seconds_);
        std::copy(logits, logits + n, shaped);
        const Token last = context[n_context - 1];
        if (size_t(last) < n) shaped[last] -= float(penalty_);
        if (top_k_ == 0 || top_k_ >= n) return;
        std::vector<Token> order(n);
        for (size_t i = 0; i < n; ++i) order[i] = Token(i);
        std::stable_sort(order.begin(), order.end(), [&](Token a, Token b) { return shaped[a] > shaped[b]; });
        for (size_t i = top_k_; i < n; ++i) shaped[order[i]] = -INFINITY;
    }

private:
    size_t top_k_;
    double penalty_, seconds_;
};

class TableGrammar : public Grammar {
public:
    TableGrammar(const table_grammar & table, const TableModel & model) : table_(table), model_(model) {}

    std::unique_ptr<Grammar> clone() const override { return std::make_unique<TableGrammar>(*this); }

    bool allows(Token id) override {
        return model_.kind(id) == TokenKind::End ? table_.may_end[state_] != 0 : after(id) >= 0;
    }
    void restrict(uint8_t * ok, size_t n) override {
        for (size_t i = 0; i < n; ++i) ok[i] = ok[i] && allows(Token(i));
    }
    // llama.cpp ends the process on a token that was not checked: so the loop may never offer one.
    void accept(Token id) override {
        if (model_.kind(id) == TokenKind::End || after(id) < 0) throw Error(KAD_INTERNAL_ERROR, "accepted unchecked");
        state_ = after(id);
    }

private:
    const table_grammar & table_;
    const TableModel &    model_;
    int32_t               state_ = 0;

    int32_t after(Token id) const {
        int32_t state = state_;
        for (const char byte : model_.bytes(id)) {
            if (state >= 0) state = table_.next[state * 256 + uint8_t(byte)];
        }
        return state;
    }
};

void hand_out(Sequence & sequence, table_event * events, int32_t capacity, table_result & result) {
    for (; !sequence.said.empty(); sequence.said.pop_front()) {
        const Said & said = sequence.said.front();
        if (result.n_events >= capacity || said.bytes.size() > sizeof events->bytes)
            throw Error(KAD_INVALID_ARGUMENT, "no room for an event");
        table_event & event = events[result.n_events++];
        event               = {};
        std::memcpy(event.bytes, said.bytes.data(), said.bytes.size());
        event.n_bytes         = int32_t(said.bytes.size());
        event.id              = said.ids[0];
        event.n_ids           = int32_t(said.ids.size());
        event.source          = said.source;
        event.guess           = said.guess;
        event.logprob         = said.logprob;
        event.base_share      = said.base_share;
        event.deferred_mass   = said.deferred_mass;
        event.base_logprob    = said.base_logprob;
        event.aligned_logprob = said.aligned_logprob;
    }
}

} // namespace

namespace {

// Two models or three, and the loop over texts in them.
struct Tables {
    const table_run &           run;
    std::unique_ptr<TableModel> models[ROLE_COUNT];
    std::unique_ptr<EventSpace> space;
    std::unique_ptr<Generator>  generator;

    explicit Tables(const table_run & run) : run(run) {
        LanguageModel * speaking[ROLE_COUNT] = {};
        Settings        settings;
        for (const kad_role role : ROLES) {
            if (run.models[role].n_vocab == 0) continue;
            models[role]   = std::make_unique<TableModel>(run.models[role], size_t(run.n_ctx), size_t(run.n_slots));
            speaking[role] = models[role].get();
            settings.architecture[role] = "table";
        }
        const bool equal = compare(*models[KAD_ROLE_BASE], *models[KAD_ROLE_ALIGNED]).equal;
        space            = std::make_unique<EventSpace>(models[0].get(), models[1].get(), equal, models[2].get());
        settings.rule    = run.rule;
        settings.n_ctx   = size_t(run.n_ctx);
        generator        = std::make_unique<Generator>(speaking, *space, settings);
    }

    std::unique_ptr<Sequence> text(uint64_t number) {
        auto sequence         = std::make_unique<Sequence>();
        sequence->coins       = { run.seed, number };
        sequence->temperature = run.temperature;
        sequence->max_tokens  = run.max_tokens;
        sequence->logprobs    = run.logprobs != 0;
        sequence->ngram       = run.ngram != 0;
        Constraint constraint(*space);
        for (const kad_role role : ROLES) {
            if (!models[role]) continue;
            const table_model & table = run.models[role];
            Side &              side  = sequence->sides[role];
            side.context.assign(table.prompt, table.prompt + table.n_prompt);
            if (run.top_k || run.penalty != 0 || run.shape_s > 0) side.shaper = std::make_unique<TableShaper>(run);
            if (!space->shared_ids()) side.tokens = std::make_unique<TextTokens>(*models[role]);
            if (!space->shared_ids() || role == KAD_ROLE_BASE)
                constraint.add(role, std::make_unique<TableGrammar>(run.grammar, *models[role]));
        }
        if (run.grammar.n_states) sequence->constraints.push_back(std::move(constraint));
        return sequence;
    }

    void summarise(const Sequence & sequence, table_result & result) {
        kad_stats stats = {};
        generator->read_counts(sequence, stats);
        result.finish         = sequence.finish;
        result.mode           = sequence.mode;
        result.drafted        = sequence.drafted;
        result.accepted       = sequence.accepted;
        result.base_passes    = stats.base_passes;
        result.aligned_passes = stats.aligned_passes;
        result.generate_s     = sequence.generate_s;
        result.eval_s         = stats.base_eval_s + stats.aligned_eval_s + stats.reference_eval_s;
        result.read_s         = stats.read_s;
        result.draw_s         = sequence.draw_s;
        result.text_s         = sequence.text_s;
        result.slept_s        = slept_s;
    }
};

} // namespace

int32_t table_write(const table_run * run, table_event * events, int32_t capacity, table_result * results) {
    return guarded([&] {
        slept_s = 0;
        Tables                                 tables(*run);
        std::vector<std::unique_ptr<Sequence>> texts;
        std::vector<Sequence *>                open;
        for (int32_t i = 0; i < run->n_texts; ++i) results[i] = {};
        while (int32_t(texts.size()) < run->n_texts || !open.empty()) {
            while (int32_t(open.size()) < run->n_slots && int32_t(texts.size()) < run->n_texts) {
                texts.push_back(tables.text(run->text_number + texts.size()));
                open.push_back(texts.back().get());
                tables.generator->begin(*open.back(), kad_mode(run->mode), size_t(run->draft));
            }
            tables.generator->step(open);
            for (size_t i = 0; i < texts.size(); ++i) {
                Sequence & text = *texts[i];
                if (text.failure) throw *text.failure;
                hand_out(text, events + int32_t(i) * capacity, capacity, results[i]);
                if (text.finish == KAD_FINISH_NONE || !tables.generator->has(text)) continue;
                tables.summarise(text, results[i]);
                tables.generator->leave(text);
                open.erase(std::find(open.begin(), open.end(), &text));
            }
        }
    });
}
