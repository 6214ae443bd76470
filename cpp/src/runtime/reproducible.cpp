#include "reproducible.h"

#include <algorithm>
#include <cstring>

#include "../core/coins.h"

namespace kad {

namespace {

constexpr size_t TESTED = 16; // rows per pass: drafts up to 15
constexpr size_t BLOCK  = 64;

// Where passes begin: across 256 cells first, for that is where unequal kernels show soonest; then over 512; then under 256.
constexpr size_t STARTS[] = { 250, 520, 24 };

std::vector<Token> some_text(const LlamaModel & model, size_t n) {
    std::vector<Token> text;
    const Coins        coins{ 2604, 16146 };
    for (uint64_t i = 0; text.size() < n; ++i) {
        const Token id = Token(coins(i, 0) * double(model.size()));
        if (model.kind(id) == TokenKind::Text || i > 100 * n) text.push_back(id);
    }
    return text;
}

void prefill(LlamaModel & model, const std::vector<Token> & text, size_t from, size_t to) {
    for (size_t at = from; at < to;) {
        const size_t n = std::min({ BLOCK, model.max_batch(), to - at });
        model.evaluate(text.data() + at, n, at, 0);
        at += n;
    }
}

// The longest pass beginning at `start` whose rows, and the row after it, equal those of single passes.
size_t equal_rows(LlamaModel & model, const std::vector<Token> & text, size_t start, size_t most) {
    const size_t                    width = model.n_vocab() * sizeof(float);
    std::vector<std::vector<float>> alone(most + 1);
    for (size_t i = 0; i <= most; ++i) {
        model.evaluate(text.data() + start + i, 1, start + i, 1);
        alone[i].assign(model.row(0), model.row(0) + model.n_vocab());
    }
    for (size_t n = 2; n <= most; ++n) {
        model.drop(start);
        model.evaluate(text.data() + start, n, start, n);
        for (size_t i = 0; i < n; ++i) {
            if (std::memcmp(model.row(i), alone[i].data(), width) != 0) return n - 1;
        }
        model.evaluate(text.data() + start + n, 1, start + n, 1); // reads what the pass left in the cache
        if (std::memcmp(model.row(0), alone[n].data(), width) != 0) return n - 1;
    }
    return most;
}

size_t longest_pass(LlamaModel & model, size_t most) {
    const std::vector<Token> text    = some_text(model, STARTS[1] + TESTED + 1);
    size_t                   longest = std::min({ most, model.max_batch(), model.max_rows() });
    size_t                   held    = 0;
    for (const size_t start : STARTS) {
        if (longest < 2 || start + longest + 1 > std::min(model.n_ctx(), text.size())) continue;
        if (held > start) model.drop(held = start);
        prefill(model, text, held, start);
        longest = equal_rows(model, text, start, longest);
        model.drop(held = start);
    }
    return longest;
}

} // namespace

PassInfo measure_passes(LlamaModel & model, const ModelOptions & options, const ContextOptions & context,
                        const std::atomic<bool> * cancel) {
    const int32_t                     f16 = cache_type("f16"), q8_0 = cache_type("q8_0");
    const std::pair<int32_t, int32_t> candidates[] = { { f16, f16 }, { f16, q8_0 }, { q8_0, q8_0 } };
    PassInfo                          best;
    best.max_pass = 0;
    for (const auto & [type_k, type_v] : candidates) {
        ContextOptions tried = context;
        tried.n_ctx          = std::min<uint32_t>(context.n_ctx, 768);
        tried.type_k         = options.has("type_k") ? int32_t(options.get("type_k", 0)) : type_k;
        tried.type_v         = options.has("type_v") ? int32_t(options.get("type_v", 0)) : type_v;
        PassInfo found;
        found.type_k = tried.type_k;
        found.type_v = tried.type_v;
        found.tested = int32_t(std::min<size_t>(TESTED, tried.n_ctx));
        try {
            model.make_context(tried, false, cancel);
        } catch (const Error & error) {
            if (error.status != KAD_MODEL_ERROR) throw;
            continue; // this model cannot have such a cache
        }
        // A cache that cannot rewind cannot be measured, and is never speculated on.
        found.max_pass = model.can_rewind() ? int32_t(longest_pass(model, size_t(found.tested))) : 1;
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
