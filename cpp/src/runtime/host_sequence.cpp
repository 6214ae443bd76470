#include "host_sequence.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "abort_guard.h"
#include "llama.h"
#include "llama_log.h"

namespace kad {

// ---- Which sequences are taken --------------------------------------------------------------------------------------
// A taken sequence may hold no cells (nothing evaluated yet), so that llama.cpp cannot tell it from a free one.

static std::mutex                                      mutex;
static std::set<std::pair<llama_context *, int32_t>> & taken() {
    static std::set<std::pair<llama_context *, int32_t>> sequences;
    return sequences;
}

static bool holds_cells(llama_context * context, int32_t id) {
    return llama_memory_seq_pos_max(llama_get_memory(context), id) >= 0;
}

static bool take(llama_context * context, int32_t id) {
    const std::lock_guard<std::mutex> lock(mutex);
    return !holds_cells(context, id) && taken().insert({ context, id }).second;
}

static void check_context(llama_context * context, const std::string & who) {
    const llama_model * model = llama_get_model(context);
    if (!llama_get_memory(context) || llama_model_has_encoder(model) || !llama_model_has_decoder(model)) {
        throw Error(KAD_MODEL_ERROR,
                    "the " + who +
                        " context keeps no memory of a text (an encoder, say); expected one of a causal "
                        "language model");
    }
    if (llama_vocab_n_tokens(llama_model_get_vocab(model)) <= 0) {
        throw Error(KAD_MODEL_ERROR, "the " + who + " model has no vocabulary and cannot write text");
    }
}

// ---- Taking and giving back -----------------------------------------------------------------------------------------

HostSequence::HostSequence(llama_context * context, int32_t id, const std::string & who)
    : context_(context), id_(id), who_(who), n_vocab_(0), n_ctx_(0) {
    check_context(context, who);
    const llama_model * model = llama_get_model(context);
    n_vocab_                  = size_t(llama_vocab_n_tokens(llama_model_get_vocab(model)));
    n_ctx_                    = llama_n_ctx_seq(context);
    keeps_history_            = !llama_model_is_recurrent(model) && !llama_model_is_hybrid(model);
    const int32_t n_seq       = int32_t(llama_n_seq_max(context));
    if (id < 0 || id >= n_seq) {
        throw Error(KAD_INVALID_ARGUMENT, who + "_seq_id " + std::to_string(id) + " is out of range; expected 0 to " +
                                              std::to_string(n_seq - 1) + " (the context's n_seq_max is " +
                                              std::to_string(n_seq) + ")");
    }
    if (!take(context, id)) {
        throw Error(KAD_INVALID_ARGUMENT, name() + " is in use; expected one that is empty and has no other sampler: "
                                                   "remove its cells with llama_memory_seq_rm(), or name another");
    }
}

HostSequence::~HostSequence() {
    const LlamaLog log(false);
    llama_memory_seq_rm(llama_get_memory(context_), id_, -1, -1);
    const std::lock_guard<std::mutex> lock(mutex);
    taken().erase({ context_, id_ });
}

// Recurrent caches have one state per sequence and no history: a copy evaluates its tokens again when it is asked.
std::unique_ptr<HostSequence> HostSequence::copy() const {
    const int32_t n_seq = int32_t(llama_n_seq_max(context_));
    for (int32_t id = 0; id < n_seq; ++id) {
        if (holds_cells(context_, id)) continue;
        {
            const std::lock_guard<std::mutex> lock(mutex);
            if (taken().count({ context_, id })) continue;
        }
        auto other = std::make_unique<HostSequence>(context_, id, who_);
        if (!keeps_history_ || tokens_.empty()) return other;
        const AbortGuard guard;
        llama_memory_seq_cp(llama_get_memory(context_), id_, id, -1, -1);
        other->tokens_ = tokens_;
        other->row_    = row_;
        return other;
    }
    throw Error(KAD_BAD_STATE, "no sequence of the " + who_ + " context is free for a clone: its n_seq_max is " +
                                   std::to_string(n_seq) + "; make the context with a larger one, or free a sampler");
}

std::string HostSequence::name() const { return "sequence " + std::to_string(id_) + " of the " + who_ + " context"; }

// ---- Following ------------------------------------------------------------------------------------------------------

const float * HostSequence::follow(const std::vector<Token> & tokens) {
    check(tokens);
    check_untouched();
    const auto   common = std::mismatch(tokens_.begin(), tokens_.end(), tokens.begin(), tokens.end()).first;
    const size_t same   = size_t(common - tokens_.begin());
    if (same == tokens.size() && same == tokens_.size() && !row_.empty()) return row_.data();
    rewind(std::min(same, tokens.size() - 1));
    while (tokens_.size() < tokens.size()) evaluate(tokens);
    return row_.data();
}

void HostSequence::check(const std::vector<Token> & tokens) const {
    if (tokens.empty()) {
        throw Error(KAD_BAD_STATE, "there is no token yet that the " + who_ +
                                       " model could go on from; give a prompt of at least one token");
    }
    if (tokens.size() > n_ctx_) {
        throw Error(KAD_CONTEXT_TOO_SMALL, "the text has " + std::to_string(tokens.size()) + " tokens, but " + name() +
                                               " holds " + std::to_string(n_ctx_) +
                                               "; end the text before, or make the context with a larger n_ctx");
    }
    for (const Token token : tokens) {
        if (token >= 0 && size_t(token) < n_vocab_) continue;
        throw Error(KAD_INVALID_ARGUMENT, "token id " + std::to_string(token) + " is not in the vocabulary of the " +
                                              who_ + " model; expected 0 to " + std::to_string(n_vocab_ - 1));
    }
}

// Cells that somebody else added or removed would give another text's logits, or positions that llama.cpp refuses.
void HostSequence::check_untouched() {
    const int64_t held = int64_t(llama_memory_seq_pos_max(llama_get_memory(context_), id_)) + 1;
    if (held == int64_t(tokens_.size())) return;
    const std::string message = name() + " holds " + std::to_string(held) + " tokens, but this sampler left " +
                                std::to_string(tokens_.size()) +
                                " there; leave that sequence to the sampler, and put nothing else into it";
    clear();
    throw Error(KAD_BAD_STATE, message);
}

void HostSequence::clear() {
    llama_memory_seq_rm(llama_get_memory(context_), id_, -1, -1);
    tokens_.clear();
    row_.clear();
}

// Keeps the first `keep` tokens; a cache that cannot drop a suffix starts again from nothing.
void HostSequence::rewind(size_t keep) {
    if (keep >= tokens_.size()) return;
    const LlamaLog log(false);
    const bool     kept = keep > 0 && keeps_history_ && holds_window(keep) &&
                          llama_memory_seq_rm(llama_get_memory(context_), id_, llama_pos(keep), -1);
    if (!kept) return clear();
    tokens_.resize(keep);
    row_.clear();
}

// A sliding-window cache forgets cells as the text goes on: those that position `keep` looks back to must be there.
bool HostSequence::holds_window(size_t keep) const {
    const llama_pos first  = llama_memory_seq_pos_min(llama_get_memory(context_), id_);
    const llama_pos window = llama_model_n_swa(llama_get_model(context_));
    return first <= (window > 0 ? std::max(0, llama_pos(keep) - window) : 0);
}

// The next block of `tokens` that the cache lacks, with a row after the last token of all.
void HostSequence::evaluate(const std::vector<Token> & tokens) {
    const size_t at    = tokens_.size();
    const size_t n     = std::min(tokens.size() - at, size_t(llama_n_batch(context_)));
    const bool   last  = at + n == tokens.size();
    auto         block = std::vector<Token>(tokens.begin() + ptrdiff_t(at), tokens.begin() + ptrdiff_t(at + n));
    row_.clear();
    try {
        decode(block.data(), n, last);
    } catch (...) {
        // Some of the block may have reached the cache.
        if (!llama_memory_seq_rm(llama_get_memory(context_), id_, llama_pos(at), -1) || at == 0) clear();
        throw;
    }
    tokens_.insert(tokens_.end(), block.begin(), block.end());
}

void HostSequence::decode(Token * tokens, size_t n, bool with_row) {
    const size_t                at = tokens_.size();
    std::vector<llama_pos>      positions(n);
    std::vector<int32_t>        n_seq(n, 1);
    std::vector<llama_seq_id *> seq_ids(n, &id_);
    std::vector<int8_t>         wanted(n, 0);
    for (size_t i = 0; i < n; ++i) positions[i] = llama_pos(at + i);
    wanted[n - 1]           = with_row ? 1 : 0;
    const llama_batch batch = { int32_t(n),   tokens,         nullptr,      positions.data(),
                                n_seq.data(), seq_ids.data(), wanted.data() };
    LlamaLog          log(false);
    const int32_t     result = llama_decode(context_, batch);
    llama_synchronize(context_);
    const std::string what = std::to_string(n) + " tokens at position " + std::to_string(at) + " of " + name();
    if (result == 1) {
        throw Error(KAD_CONTEXT_TOO_SMALL, "there are no cells for " + what +
                                               ": other sequences fill the context; make it with a larger n_ctx");
    }
    if (result == 2) throw Error(KAD_INTERRUPTED, "the host's abort callback stopped " + what);
    const float * logits = result == 0 && with_row ? llama_get_logits_ith(context_, int32_t(n) - 1) : nullptr;
    if (result != 0 || (with_row && !logits)) {
        throw Error(KAD_EVALUATION_FAILED, "llama.cpp could not evaluate " + what + " (llama_decode answered " +
                                               std::to_string(result) + ")" + log.reason());
    }
    if (with_row) row_.assign(logits, logits + n_vocab_);
}

} // namespace kad
