#include "reproducible.h"

#include <algorithm>
#include <cstring>

#include "../core/coins.h"

namespace kad {

namespace {

constexpr size_t TESTED = 16; // rows per pass: drafts up to 15
constexpr size_t BLOCK  = 64;

// Where passes begin: across 256 cells first, for that is where unequal kernels show soonest; then across 512, over it, and
// under 256. Where the engine will hold several texts, so do the passes: two, with cells of their own.
constexpr size_t   STARTS[] = { 250, 505, 530, 24 };
constexpr uint32_t CELLS    = 640; // of the caches measured, whatever the run's own context will be

std::vector<Token> some_text(const LlamaModel & model, size_t n) {
    std::vector<Token> text;
    const Coins        coins{ 2604, 16146 };
    for (uint64_t i = 0; text.size() < n; ++i) {
        const Token id = Token(coins(i, 0) * double(model.size()));
        if (model.kind(id) == TokenKind::Text || i > 100 * n) text.push_back(id);
    }
    return text;
}

// The model under measurement, passes counted against the most there can be.
class Bench {
public:
    Bench(LlamaModel & model, const std::function<bool(double)> & progress) : model_(model), progress_(progress) {}

    LlamaModel & model() { return model_; }

    void evaluate(const std::vector<Token> & text, size_t at, size_t n, size_t n_rows, size_t slot = 0) {
        const Piece piece = { slot, text.data() + at, n, at, n_rows };
        pass(&piece, 1, n);
    }
    // Both slots from `at` on: n tokens and m.
    void evaluate_both(const std::vector<Token> & text, size_t at, size_t n, size_t m) {
        const Piece pieces[] = { { 0, text.data() + at, n, at, n }, { 1, text.data() + at, m, at, m } };
        pass(pieces, 2, n + m);
    }
    void pass(const Piece * pieces, size_t n_pieces, size_t n) {
        model_.evaluate(pieces, n_pieces);
        model_.synchronize();
        done_ += n;
        if (progress_ && !progress_(std::min(1.0, double(done_) / MOST))) {
            throw Error(KAD_INTERRUPTED, "the measurement was interrupted");
        }
    }
    bool row_is(size_t i, const std::vector<float> & other) const {
        return std::memcmp(model_.row(i), other.data(), other.size() * sizeof(float)) == 0;
    }

private:
    // Tokens evaluated when every pass size holds at every start: the texts before the starts, single passes, blocks, and all
    // but the single passes again for two texts.
    static constexpr double             MOST = 2 * (530 + 24 + 4 * (TESTED + 2 + TESTED * (TESTED + 2)));
    LlamaModel &                        model_;
    const std::function<bool(double)> & progress_;
    size_t                              done_ = 0;
};

void prefill(Bench & bench, const std::vector<Token> & text, size_t slot, size_t from, size_t to) {
    for (size_t at = from; at < to;) {
        const size_t n = std::min({ BLOCK, bench.model().max_batch(), to - at });
        bench.evaluate(text, at, n, 0, slot);
        at += n;
    }
}

using Rows = std::vector<std::vector<float>>;

// The longest pass beginning at `start` whose rows, and the row after it, equal those of single passes, `alone`; with all its
// rows wanted (scoring guesses) and with the last alone (catching up).
size_t equal_rows(Bench & bench, const std::vector<Token> & text, size_t start, size_t most, Rows & alone) {
    LlamaModel & model = bench.model();
    alone.resize(most + 1);
    for (size_t i = 0; i <= most; ++i) {
        bench.evaluate(text, start + i, 1, 1);
        alone[i].assign(model.row(0), model.row(0) + model.n_vocab());
    }
    for (size_t n = 2; n <= most; ++n) {
        model.drop(0, start);
        bench.evaluate(text, start, n, n);
        for (size_t i = 0; i < n; ++i) {
            if (!bench.row_is(i, alone[i])) return n - 1;
        }
        bench.evaluate(text, start + n, 1, 1); // reads what the pass left in the cache
        if (!bench.row_is(0, alone[n])) return n - 1;
        model.drop(0, start);
        bench.evaluate(text, start, n, 1);
        if (!bench.row_is(0, alone[n - 1])) return n - 1;
    }
    return most;
}

// The longest pass over two texts, slot 1 holding what slot 0 does, whose rows equal those of single passes.
size_t equal_rows_of_two(Bench & bench, const std::vector<Token> & text, size_t start, size_t most,
                         const Rows & alone) {
    for (size_t n = 2; n <= most; ++n) {
        const size_t second = n / 2, first = n - second;
        bench.model().drop(0, start);
        bench.evaluate_both(text, start, first, second);
        for (size_t i = 0; i < n; ++i) {
            if (!bench.row_is(i, alone[i < first ? i : i - first])) return n - 1;
        }
        bench.model().drop(1, start);
    }
    return most;
}

size_t longest_pass(Bench & bench, size_t most) {
    LlamaModel &             model   = bench.model();
    const std::vector<Token> text    = some_text(model, STARTS[2] + TESTED + 1);
    size_t                   longest = std::min({ most, model.max_batch(), model.max_rows() });
    const size_t             slots   = std::min<size_t>(model.n_slots(), 2);
    size_t                   held    = 0;
    Rows                     alone;
    for (const size_t start : STARTS) {
        if (longest < 2) break;
        for (size_t slot = 0; slot < slots; ++slot) {
            if (held > start) model.drop(slot, start);
            prefill(bench, text, slot, std::min(held, start), start);
        }
        longest = equal_rows(bench, text, start, longest, alone);
        if (slots > 1 && longest > 1) longest = equal_rows_of_two(bench, text, start, longest, alone);
        for (size_t slot = 0; slot < slots; ++slot) model.drop(slot, start);
        held = start;
    }
    return longest;
}

} // namespace

PassInfo measure_passes(LlamaModel & model, const ModelOptions & options, const ContextOptions & context,
                        const std::atomic<bool> * cancel, const std::function<bool(double)> & progress) {
    const int32_t                     f16 = cache_type("f16"), q8_0 = cache_type("q8_0");
    const std::pair<int32_t, int32_t> candidates[] = { { f16, f16 }, { f16, q8_0 }, { q8_0, q8_0 } };
    PassInfo                          best;
    best.max_pass = 0;
    for (const auto & [type_k, type_v] : candidates) {
        ContextOptions tried = context;
        tried.n_ctx          = CELLS;
        tried.n_slots        = std::min(tried.n_slots, 2u);
        tried.separate       = true;
        tried.type_k         = options.has("type_k") ? int32_t(options.get("type_k", 0)) : type_k;
        tried.type_v         = options.has("type_v") ? int32_t(options.get("type_v", 0)) : type_v;
        PassInfo found;
        found.type_k = tried.type_k;
        found.type_v = tried.type_v;
        found.tested = int32_t(TESTED);
        try {
            model.make_context(tried, false, cancel);
        } catch (const Error & error) {
            if (error.status != KAD_MODEL_ERROR) throw;
            continue; // this model cannot have such a cache
        }
        // A cache that cannot rewind cannot be measured, and is never speculated on.
        Bench bench(model, progress);
        found.max_pass = model.can_rewind() ? int32_t(longest_pass(bench, size_t(found.tested))) : 1;
        if (found.max_pass > best.max_pass) best = found;
        if (best.max_pass == best.tested || !model.can_rewind() || (options.has("type_k") && options.has("type_v")))
            break;
    }
    model.free_context();
    if (best.max_pass == 0)
        throw Error(KAD_MODEL_ERROR,
                    "no cache type that reproducible mode tries can be had for \"" + options.path + "\"");
    return best;
}

} // namespace kad
