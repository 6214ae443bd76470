#include "reproducible.h"

#include <algorithm>
#include <cstring>

#include "../core/coins.h"

namespace kad {

namespace {

constexpr size_t TESTED = 16; // rows per pass: drafts up to 15
constexpr size_t BLOCK  = 64;

// Where passes begin: across 256 cells first, for that is where unequal kernels show soonest; then across 512, over it, and
// under 256. One sequence: the engine runs no more at a time.
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

    void evaluate(const std::vector<Token> & text, size_t at, size_t n, size_t n_rows) {
        model_.evaluate(text.data() + at, n, at, n_rows);
        done_ += n;
        if (progress_ && !progress_(std::min(1.0, double(done_) / MOST))) {
            throw Error(KAD_INTERRUPTED, "the measurement was interrupted");
        }
    }
    bool row_is(size_t i, const std::vector<float> & other) const {
        return std::memcmp(model_.row(i), other.data(), other.size() * sizeof(float)) == 0;
    }

private:
    // Tokens evaluated when every pass size holds at every start: the texts before the starts, single passes, blocks.
    static constexpr double             MOST = 530 + 24 + 4 * (TESTED + 2 + TESTED * (TESTED + 2));
    LlamaModel &                        model_;
    const std::function<bool(double)> & progress_;
    size_t                              done_ = 0;
};

void prefill(Bench & bench, const std::vector<Token> & text, size_t from, size_t to) {
    for (size_t at = from; at < to;) {
        const size_t n = std::min({ BLOCK, bench.model().max_batch(), to - at });
        bench.evaluate(text, at, n, 0);
        at += n;
    }
}

// The longest pass beginning at `start` whose rows, and the row after it, equal those of single passes; with all its
// rows wanted (scoring guesses) and with the last alone (catching up).
size_t equal_rows(Bench & bench, const std::vector<Token> & text, size_t start, size_t most) {
    std::vector<std::vector<float>> alone(most + 1);
    for (size_t i = 0; i <= most; ++i) {
        bench.evaluate(text, start + i, 1, 1);
        alone[i].assign(bench.model().row(0), bench.model().row(0) + bench.model().n_vocab());
    }
    for (size_t n = 2; n <= most; ++n) {
        bench.model().drop(start);
        bench.evaluate(text, start, n, n);
        for (size_t i = 0; i < n; ++i) {
            if (!bench.row_is(i, alone[i])) return n - 1;
        }
        bench.evaluate(text, start + n, 1, 1); // reads what the pass left in the cache
        if (!bench.row_is(0, alone[n])) return n - 1;
        bench.model().drop(start);
        bench.evaluate(text, start, n, 1);
        if (!bench.row_is(0, alone[n - 1])) return n - 1;
    }
    return most;
}

size_t longest_pass(Bench & bench, size_t most) {
    LlamaModel &             model   = bench.model();
    const std::vector<Token> text    = some_text(model, STARTS[2] + TESTED + 1);
    size_t                   longest = std::min({ most, model.max_batch(), model.max_rows() });
    size_t                   held    = 0;
    for (const size_t start : STARTS) {
        if (longest < 2) break;
        if (held > start) model.drop(held = start);
        prefill(bench, text, held, start);
        longest = equal_rows(bench, text, start, longest);
        model.drop(held = start);
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
