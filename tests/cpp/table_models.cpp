// The shipped loop over models that are tables of numbers: no llama.cpp. tests/step.py reads the declarations between the
// marks and compares what comes out with the oracle.
#include <algorithm>
#include <cstring>

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
} table_model;

typedef struct table_run {
    table_model models[2]; // base, aligned
    kad_rule    rule;
    double      temperature;
    uint64_t    seed, text_number;
    int32_t     max_tokens, mode, draft, logprobs, n_ctx;
} table_run;

typedef struct table_event {
    char    bytes[64];
    int32_t n_bytes, id, source, guess;
    double  logprob, base_share, deferred_mass;
} table_event;

typedef struct table_result {
    int32_t n_events, finish, mode, drafted, accepted, base_passes, aligned_passes;
} table_result;

// One text; at most `capacity` events. n_events and finish say how it ended.
int32_t table_write(const table_run * run, table_event * events, int32_t capacity, table_result * result);
/* table: end */
}

namespace {

using namespace kad;

class TableModel : public LanguageModel, public Vocabulary {
public:
    TableModel(const table_model & table, size_t n_ctx) : table_(table), n_ctx_(n_ctx) {
        for (int32_t i = 0; i < table.n_vocab; ++i) words_.emplace_back(table.bytes[i], size_t(table.n_bytes[i]));
    }

    size_t n_vocab() const override { return words_.size(); }
    size_t n_ctx() const override { return n_ctx_; }
    size_t max_batch() const override { return size_t(table_.max_batch); }
    size_t max_rows() const override { return size_t(table_.max_batch); }
    bool   can_rewind() const override { return table_.can_rewind != 0; }

    void evaluate(const Token * tokens, size_t n, size_t at, size_t n_rows) override {
        if (at != held_.size() || n > max_batch() || n_rows > n || at + n > n_ctx_)
            throw Error(KAD_INTERNAL_ERROR, "a pass out of step");
        held_.insert(held_.end(), tokens, tokens + n);
        first_ = held_.size() - n_rows;
    }
    // llama.cpp hands out a buffer that the next pass overwrites: so does this.
    const float * row(size_t i) const override {
        const size_t length = first_ + i + 1;
        const size_t which  = (length % size_t(table_.period)) * words_.size() + size_t(held_.at(length - 1));
        buffer_.assign(table_.rows + which * words_.size(), table_.rows + (which + 1) * words_.size());
        return buffer_.data();
    }
    void drop(size_t keep) override {
        if (keep > held_.size() || (keep > 0 && !can_rewind())) throw Error(KAD_INTERNAL_ERROR, "a rewind out of step");
        held_.resize(keep);
    }

    size_t              size() const override { return words_.size(); }
    const std::string & bytes(Token id) const override { return words_[size_t(id)]; }
    TokenKind           kind(Token id) const override { return table_.ends[id] ? TokenKind::End : TokenKind::Text; }
    int32_t             type(Token) const override { return 0; }
    std::vector<Token>  tokenize_continuation(const std::string & text) const override {
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
    const table_model &        table_;
    size_t                     n_ctx_;
    std::vector<std::string>   words_;
    std::vector<Token>         held_;
    size_t                     first_ = 0;
    mutable std::vector<float> buffer_;
};

void hand_out(Sequence & sequence, table_event * events, int32_t capacity, table_result & result) {
    for (; !sequence.said.empty(); sequence.said.pop_front()) {
        const Said & said = sequence.said.front();
        if (result.n_events >= capacity || said.bytes.size() > sizeof events->bytes)
            throw Error(KAD_INVALID_ARGUMENT, "no room for an event");
        table_event & event = events[result.n_events++];
        event               = {};
        std::memcpy(event.bytes, said.bytes.data(), said.bytes.size());
        event.n_bytes       = int32_t(said.bytes.size());
        event.id            = said.id;
        event.source        = said.source;
        event.guess         = said.guess;
        event.logprob       = said.logprob;
        event.base_share    = said.base_share;
        event.deferred_mass = said.deferred_mass;
    }
}

} // namespace

int32_t table_write(const table_run * run, table_event * events, int32_t capacity, table_result * result) {
    return guarded([&] {
        TableModel       base(run->models[0], size_t(run->n_ctx)), aligned(run->models[1], size_t(run->n_ctx));
        const EventSpace space(&base, &aligned, compare(base, aligned).equal);
        Settings         settings;
        settings.rule            = run->rule;
        settings.n_ctx           = size_t(run->n_ctx);
        settings.architecture[0] = settings.architecture[1] = "table";
        Generator generator(&base, &aligned, space, settings);
        Sequence  sequence;
        sequence.coins       = { run->seed, run->text_number };
        sequence.temperature = run->temperature;
        sequence.max_tokens  = run->max_tokens;
        sequence.logprobs    = run->logprobs != 0;
        for (int role = 0; role < 2; ++role) {
            const table_model & table = run->models[role];
            sequence.sides[role].context.assign(table.prompt, table.prompt + table.n_prompt);
            if (!space.shared_ids()) sequence.sides[role].tokens = std::make_unique<TextTokens>(role ? aligned : base);
        }
        generator.begin(sequence, kad_mode(run->mode), size_t(run->draft));
        *result = {};
        while (sequence.finish == KAD_FINISH_NONE) {
            generator.step(sequence);
            hand_out(sequence, events, capacity, *result);
        }
        kad_stats stats = {};
        generator.read_counts(sequence, stats);
        result->finish         = sequence.finish;
        result->mode           = sequence.mode;
        result->drafted        = sequence.drafted;
        result->accepted       = sequence.accepted;
        result->base_passes    = stats.base_passes;
        result->aligned_passes = stats.aligned_passes;
    });
}
