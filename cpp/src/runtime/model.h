// One GGUF in llama.cpp: vocabulary, weights, context. With file.cpp, llama_log.cpp, token_table.cpp, samplers.cpp,
// grammar.cpp and the sampler plug-in (host_sequence.cpp, sampler_plugin.cpp) the only room that includes llama.h.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>

#include "backend_workers.h"
#include "language_model.h"

struct llama_model;
struct llama_context;
struct llama_vocab;

namespace kad {

// kad_model_params, owned.
struct ModelOptions {
    std::string                                 path;
    int32_t                                     n_gpu_layers = -1;
    bool                                        vocab_only   = false;
    std::vector<std::pair<std::string, double>> fields;

    bool   has(const std::string & name) const;
    double get(const std::string & name, double fallback) const;
};

struct ContextOptions {
    uint32_t n_ctx     = 0;
    uint32_t n_slots   = 1;     // texts in the cache at a time
    bool     separate  = false; // each slot has cells of its own, n_ctx of them; otherwise all slots share n_ctx
    int32_t  n_threads = 0;     // 0 = physical cores
    int32_t  type_k    = -1;    // a ggml_type; -1 = the field, or llama.cpp's default
    int32_t  type_v    = -1;

    // Passes of a few tokens are what counts: flash attention is left out where they are faster without it. It changes last bits.
    bool short_passes = false;
};

class LlamaModel : public LanguageModel, public Vocabulary {
public:
    // Most rows with logits in one pass, so the longest draft is one less.
    static constexpr size_t MAX_ROWS = 64;

    // Loads vocabulary and weights. progress gives the fraction done and may answer false to give up (KAD_INTERRUPTED).
    LlamaModel(const ModelOptions & options, kad_role role, bool verbose, const std::function<bool(double)> & progress);
    ~LlamaModel() override;

    // (Re)makes the context. `cancel` is looked at while llama.cpp computes.
    void make_context(const ContextOptions & options, bool verbose, const std::atomic<bool> * cancel);
    bool has_context() const { return context_ != nullptr; }
    void free_context();

    // LanguageModel
    size_t    n_vocab() const override { return bytes_.size(); }
    size_t    n_ctx() const override { return n_ctx_; }
    size_t    n_slots() const override { return n_slots_; }
    bool      shares_cells() const override { return shares_cells_; }
    size_t    max_batch() const override { return n_batch_; }
    size_t    max_rows() const override { return std::min(MAX_ROWS, n_batch_); }
    bool      can_rewind() const override { return can_rewind_; }
    void      evaluate(const Piece * pieces, size_t n_pieces) override;
    void      synchronize() override;
    float *   row(size_t i) override;
    Workers * workers() override { return workers_.get(); }
    void      drop(size_t slot, size_t keep) override;
    void      copy(size_t from, size_t to, size_t n) override;

    // Vocabulary
    size_t              size() const override { return bytes_.size(); }
    const std::string & bytes(Token id) const override { return bytes_[size_t(id)]; }
    TokenKind           kind(Token id) const override { return kinds_[size_t(id)]; }
    int32_t             type(Token id) const override { return types_[size_t(id)]; }
    std::vector<Token>  tokenize_continuation(const std::string & text) const override;
    std::vector<Token>  tokenize(const std::string & text, bool parse_special) const;
    std::vector<Token>  special_tokens() const; // those that parse_special alone finds in text

    const llama_vocab * vocab() const { return vocab_; } // for samplers and grammars

    // Strings of the result live as long as the model.
    void                describe(kad_model_info & info) const;
    const std::string & architecture() const { return architecture_; }
    uint32_t            n_ctx_train() const { return n_ctx_train_; }

private:
    ModelOptions              options_;
    kad_role                  role_;
    llama_model *             model_   = nullptr;
    llama_context *           context_ = nullptr;
    const llama_vocab *       vocab_   = nullptr;
    size_t                    n_ctx_ = 0, n_slots_ = 1, n_batch_ = 0;
    bool                      shares_cells_ = true;
    std::vector<int32_t>      wanted_rows_; // of the last pass: where in its batch each row lies
    uint32_t                  n_ctx_train_ = 0;
    bool                      can_rewind_  = true;
    int32_t                   type_k_ = -1, type_v_ = -1, flash_attn_ = -1;
    const std::atomic<bool> * cancel_ = nullptr;
    std::unique_ptr<Workers>  workers_;

    std::vector<std::string> bytes_;
    std::vector<TokenKind>   kinds_;
    std::vector<int32_t>     types_;
    bool                     adds_space_ = false; // the tokenizer puts a space before the first word
    std::string description_, architecture_, chat_template_, bos_text_, eos_text_, type_k_name_, type_v_name_, devices_;

    void read_vocabulary();
    void check_role() const;
    void check_pass(const Piece * pieces, size_t n_pieces) const;
};

// The ggml_type a cache can have by name, -1 for none.
int32_t      cache_type(const std::string & name);
const char * cache_type_name(int32_t type);

// Names that kad_model_params::field_names may have. Throws KAD_INVALID_ARGUMENT for an unknown one, for one that the
// engine sets itself, and for a value its type cannot have.
void check_field(const std::string & name, double value, const char * whose);

} // namespace kad
