#include "model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <thread>

#include "abort_guard.h"
#include "extra_buffers.h"
#include "llama.h"
#include "llama_log.h"
#include "token_table.h"

namespace kad {

// ---- llama.cpp's own fields, by name ---------------------------------------------------------------------------------

namespace {

struct Field {
    const char * name;
    double       low, high;
    bool         integer;
    void (*set)(llama_model_params &, llama_context_params &, double);
};

#define KAD_FIELD(where, name, low, high, integer)                                                                     \
    { #name, low, high, integer, [](llama_model_params & model, llama_context_params & context, double value) {        \
         (void)model;                                                                                                  \
         (void)context;                                                                                                \
         where.name = static_cast<decltype(where.name)>(value);                                                        \
     } }

constexpr double BIG = 1 << 30;

const Field FIELDS[] = {
    KAD_FIELD(model, split_mode, 0, 3, true),
    KAD_FIELD(model, load_mode, -1, 4, true),
    KAD_FIELD(model, lazy_mode, 0, 2, true),
    KAD_FIELD(model, main_gpu, 0, 1024, true),
    KAD_FIELD(model, check_tensors, 0, 1, true),
    KAD_FIELD(model, use_extra_bufts, 0, 1, true),
    KAD_FIELD(model, no_host, 0, 1, true),
    KAD_FIELD(context, n_batch, 1, BIG, true),
    KAD_FIELD(context, n_ubatch, 1, BIG, true),
    KAD_FIELD(context, n_threads, 1, 512, true),
    KAD_FIELD(context, n_threads_batch, 1, 512, true),
    KAD_FIELD(context, rope_scaling_type, -1, 3, true),
    KAD_FIELD(context, flash_attn_type, -1, 1, true),
    KAD_FIELD(context, rope_freq_base, 0, 1e12, false),
    KAD_FIELD(context, rope_freq_scale, 0, 1e6, false),
    KAD_FIELD(context, yarn_ext_factor, -1, 1e6, false),
    KAD_FIELD(context, yarn_attn_factor, -1, 1e6, false),
    KAD_FIELD(context, yarn_beta_fast, -1, 1e6, false),
    KAD_FIELD(context, yarn_beta_slow, -1, 1e6, false),
    KAD_FIELD(context, yarn_orig_ctx, 0, BIG, true),
    KAD_FIELD(context, type_k, 0, GGML_TYPE_COUNT - 1, true),
    KAD_FIELD(context, type_v, 0, GGML_TYPE_COUNT - 1, true),
    KAD_FIELD(context, offload_kqv, 0, 1, true),
    KAD_FIELD(context, op_offload, 0, 1, true),
};

#undef KAD_FIELD

// Fields that would break what the engine promises, and where to say it instead.
const std::pair<const char *, const char *> OWN_FIELDS[] = {
    { "n_gpu_layers", "use n_gpu_layers or n_gpu_layers_aligned" },
    { "n_ctx", "use n_ctx" },
    { "vocab_only", "a model must have its weights" },
    { "no_alloc", "a model must have its weights" },
    { "n_seq_max", "the engine runs one sequence" },
    { "n_rs_seq", "the engine sets it" },
    { "n_outputs_max", "the engine sets it" },
    { "n_outputs_max_per_seq", "the engine sets it" },
    { "embeddings", "logits are needed" },
    { "attention_type", "attention is causal" },
    { "pooling_type", "logits are needed" },
    { "swa_full", "rewinding needs the full-size cache" },
    { "kv_unified", "the engine sets it" },
    { "no_perf", "the engine sets it" },
    { "ctx_type", "the engine sets it" },
    { "defrag_thold", "llama.cpp no longer reads it" },
    { "load_mtp", "the engine does not use such layers" },
};

// What llama.cpp accepts as a cache type (its -ctk and -ctv).
constexpr ggml_type CACHE_TYPES[] = { GGML_TYPE_F32,  GGML_TYPE_F16,    GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                      GGML_TYPE_Q4_1, GGML_TYPE_IQ4_NL, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1 };

bool abort_requested(void * data) {
    return static_cast<const std::atomic<bool> *>(data)->load(std::memory_order_relaxed);
}

} // namespace

int32_t cache_type(const std::string & name) {
    for (const ggml_type type : CACHE_TYPES) {
        if (name == ggml_type_name(type)) return type;
    }
    return -1;
}

const char * cache_type_name(int32_t type) {
    for (const ggml_type known : CACHE_TYPES) {
        if (type == known) return ggml_type_name(known);
    }
    return "";
}

void check_field(const std::string & name, double value, const char * whose) {
    const std::string what = std::string(whose) + " field \"" + name + "\"";
    for (const auto & own : OWN_FIELDS) {
        if (name == own.first) throw Error(KAD_INVALID_ARGUMENT, what + " cannot be set: " + own.second);
    }
    std::string known;
    for (const Field & field : FIELDS) {
        if (name == field.name) {
            const bool whole = !field.integer || value == std::floor(value);
            if (!(value >= field.low && value <= field.high) || !whole) {
                throw Error(KAD_INVALID_ARGUMENT, what + " is " + shown(value) + "; expected " +
                                                      (field.integer ? "a whole number " : "a number ") +
                                                      shown(field.low) + " to " + shown(field.high));
            }
            if ((name == "type_k" || name == "type_v") && !*cache_type_name(int32_t(value))) {
                throw Error(KAD_INVALID_ARGUMENT, what + " is " + shown(value) +
                                                      ", a type that no cache can have; expected one of f32, f16, "
                                                      "bf16, q8_0, q4_0, q4_1, iq4_nl, q5_0, q5_1");
            }
            return;
        }
        known += (known.empty() ? "" : ", ") + std::string(field.name);
    }
    throw Error(KAD_INVALID_ARGUMENT, what + " is unknown; expected one of " + known);
}

bool ModelOptions::has(const std::string & name) const {
    return std::any_of(fields.begin(), fields.end(), [&](const auto & field) { return field.first == name; });
}

double ModelOptions::get(const std::string & name, double fallback) const {
    for (const auto & field : fields) {
        if (field.first == name) return field.second;
    }
    return fallback;
}

static void apply_fields(const ModelOptions & options, llama_model_params & model, llama_context_params & context) {
    for (const auto & [name, value] : options.fields) {
        for (const Field & field : FIELDS) {
            if (name == field.name) field.set(model, context, value);
        }
    }
}

// ---- Loading ------------------------------------------------------------------------------------------------------------

LlamaModel::LlamaModel(const ModelOptions & options, kad_role role, bool verbose,
                       const std::function<bool(double)> & progress)
    : options_(options), role_(role) {
    llama_model_params   params  = llama_model_default_params();
    llama_context_params context = llama_context_default_params();
    params.use_extra_bufts       = params.use_extra_bufts && extra_buffers_work();
    apply_fields(options, params, context);
    params.n_gpu_layers = options.n_gpu_layers;
    params.vocab_only   = options.vocab_only;
    struct Watch {
        const std::function<bool(double)> & progress;
        bool                                gave_up = false;
    } watch{ progress };
    params.progress_callback = [](float fraction, void * data) {
        Watch * w = static_cast<Watch *>(data);
        if (w->progress && !w->progress(double(fraction))) w->gave_up = true;
        return !w->gave_up;
    };
    params.progress_callback_user_data = &watch;

    LlamaLog         log(verbose);
    const AbortGuard guard;
    try {
        model_ = llama_model_load_from_file(options.path.c_str(), params);
    } catch (const std::exception & e) {
        throw Error(KAD_FILE_ERROR, "\"" + options.path + "\" cannot be loaded: " + e.what() + "; fetch it again");
    }
    if (watch.gave_up) {
        if (model_) llama_model_free(model_);
        throw Error(KAD_INTERRUPTED, "loading \"" + options.path + "\" was interrupted");
    }
    if (!model_)
        throw Error(KAD_FILE_ERROR, "\"" + options.path + "\" cannot be loaded" + log.reason() +
                                        "; fetch it again, or convert it for this version of llama.cpp");
    try {
        check_role();
        read_vocabulary();
    } catch (const Error &) {
        llama_model_free(model_);
        throw;
    } catch (const std::exception & e) {
        llama_model_free(model_);
        throw Error(KAD_FILE_ERROR,
                    "\"" + options.path + "\" has a vocabulary that cannot be used: " + e.what() + "; fetch it again");
    } catch (...) {
        llama_model_free(model_);
        throw;
    }
}

LlamaModel::~LlamaModel() {
    LlamaLog log(false); // llama.cpp reports what it frees
    free_context();
    llama_model_free(model_);
}

void LlamaModel::check_role() const {
    const std::string who = "\"" + options_.path + "\" ";
    if (llama_model_has_encoder(model_) || !llama_model_has_decoder(model_)) {
        throw Error(KAD_MODEL_ERROR, who + "is an encoder or encoder-decoder model; expected a causal language model");
    }
    if (llama_model_is_diffusion(model_)) {
        throw Error(KAD_MODEL_ERROR,
                    who +
                        "is a diffusion model and does not write from left to right; expected a causal language model");
    }
}

void LlamaModel::read_vocabulary() {
    vocab_          = llama_model_get_vocab(model_);
    const int32_t n = llama_vocab_n_tokens(vocab_);
    if (n <= 0 || llama_vocab_type(vocab_) == LLAMA_VOCAB_TYPE_NONE) {
        throw Error(KAD_MODEL_ERROR, "\"" + options_.path + "\" has no vocabulary and cannot write text");
    }
    TokenTable table               = read_tokens(vocab_);
    bytes_                         = std::move(table.bytes);
    kinds_                         = std::move(table.kinds);
    types_                         = std::move(table.types);
    const std::vector<Token> probe = tokenize("x", false);
    adds_space_                    = !probe.empty() && bytes_[size_t(probe[0])].substr(0, 1) == " ";

    char text[512];
    llama_model_desc(model_, text, sizeof text);
    description_        = text;
    architecture_       = llama_model_meta_val_str(model_, "general.architecture", text, sizeof text) >= 0 ? text : "";
    const char * tmpl   = llama_model_chat_template(model_, nullptr);
    chat_template_      = tmpl ? tmpl : "";
    const auto spelling = [&](llama_token id) { return id >= 0 && id < n ? bytes_[size_t(id)] : std::string(); };
    bos_text_           = spelling(llama_vocab_bos(vocab_));
    eos_text_           = spelling(llama_vocab_eos(vocab_));
    n_ctx_train_        = uint32_t(std::max(0, llama_model_n_ctx_train(model_)));
    // What the cache of such a model can do is known only with a context; these two kinds keep no history to return to.
    can_rewind_ = !llama_model_is_recurrent(model_) && !llama_model_is_hybrid(model_);
}

void LlamaModel::free_context() {
    LlamaLog log(false);
    if (context_) llama_free(context_);
    context_ = nullptr;
}

static int32_t physical_cores() {
    const int32_t logical = int32_t(std::thread::hardware_concurrency());
    return std::max(1, logical > 4 ? logical / 2 : logical); // llama.cpp's own rule of thumb
}

// Does the backend know of CPUs alone?
static bool cpu_only() {
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        if (ggml_backend_dev_type(ggml_backend_dev_get(i)) != GGML_BACKEND_DEVICE_TYPE_CPU) return false;
    }
    return true;
}

// A number of the model's header that holds for every layer; 0 where there is none, or each layer has its own.
static int64_t of_every_layer(const llama_model * model, const std::string & name) {
    char value[32] = "";
    return llama_model_meta_val_str(model, name.c_str(), value, sizeof value) < 0 ? 0
                                                                                  : std::strtoll(value, nullptr, 10);
}

// On a CPU ggml's flash attention takes 64 queries at a time; in shorter passes each query goes through the cache by itself, which
// takes the longer the text is. Without it the scores lie in memory, n_head rows for each token of a physical batch: so that
// holds 64 tokens, for which a dense model took no longer than for 512. All stays as llama.cpp has it where the caller chose; where V
// needs flash attention, being quantised; where scores would take more than 32 MiB; with sliding windows, whose masked cells
// flash attention alone passes over; and with layers of several widths or experts.
static void prefer_short_passes(const ModelOptions & options, const llama_model * model,
                                const std::string & architecture, llama_context_params & params) {
    constexpr int64_t PHYSICAL_BATCH = 64, MOST_BYTES = 32 << 20;
    const auto        plain = [](ggml_type type) { return type == GGML_TYPE_F16 || type == GGML_TYPE_F32; };
    const int64_t     heads = of_every_layer(model, architecture + ".attention.head_count");
    if (options.has("flash_attn_type") || options.has("n_ubatch") || !cpu_only()) return;
    if (!plain(params.type_k) || !plain(params.type_v) || llama_model_n_swa(model) > 0) return;
    if (heads <= 0 || of_every_layer(model, architecture + ".attention.head_count_kv") <= 0) return;
    if (of_every_layer(model, architecture + ".expert_count") > 0) return;
    if (heads * int64_t(params.n_ctx) * PHYSICAL_BATCH * int64_t(sizeof(float)) > MOST_BYTES) return;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.n_ubatch        = std::min<uint32_t>(params.n_ubatch, PHYSICAL_BATCH);
}

void LlamaModel::make_context(const ContextOptions & options, bool verbose, const std::atomic<bool> * cancel) {
    free_context();
    llama_model_params   model  = llama_model_default_params();
    llama_context_params params = llama_context_default_params();
    params.n_batch              = 512;
    params.n_ubatch             = 512;
    params.n_threads = params.n_threads_batch = options.n_threads > 0 ? options.n_threads : physical_cores();
    apply_fields(options_, model, params);
    if (options.type_k >= 0) params.type_k = ggml_type(options.type_k);
    if (options.type_v >= 0) params.type_v = ggml_type(options.type_v);
    // A row of each in a pass; and each takes part of what a batch holds.
    const size_t most    = std::min(params.n_batch, options.n_ctx);
    n_slots_             = can_rewind_ ? std::min<size_t>(std::max(1u, options.n_slots), most) : 1;
    shares_cells_        = !options.separate;
    params.n_ctx         = options.separate ? options.n_ctx * uint32_t(n_slots_) : options.n_ctx;
    params.n_batch       = std::min(params.n_batch, options.n_ctx);
    params.n_ubatch      = std::min(params.n_ubatch, params.n_batch);
    params.n_seq_max     = uint32_t(n_slots_);
    params.kv_unified    = !options.separate; // separate: a text's cells lie as if it were alone
    params.n_outputs_max = uint32_t(std::min<size_t>(MAX_ROWS, params.n_batch));
    params.swa_full      = true; // rewinding needs what a sliding window would have dropped
    params.no_perf       = true;
    params.embeddings    = false;
    cancel_              = cancel;
    if (options.short_passes) prefer_short_passes(options_, model_, architecture_, params);
    if (cancel) {
        params.abort_callback      = abort_requested;
        params.abort_callback_data = const_cast<std::atomic<bool> *>(cancel);
    }
    LlamaLog         log(verbose);
    const AbortGuard guard;
    try {
        context_ = llama_init_from_model(model_, params);
    } catch (const std::exception & e) {
        throw Error(KAD_MODEL_ERROR, "no context for \"" + options_.path + "\": " + e.what());
    }
    if (!context_) {
        throw Error(KAD_MODEL_ERROR, "no context for \"" + options_.path + "\" with n_ctx " +
                                         std::to_string(options.n_ctx) + ", cache types " +
                                         ggml_type_name(params.type_k) + "/" + ggml_type_name(params.type_v) +
                                         log.reason());
    }
    if (!llama_get_memory(context_)) {
        free_context();
        throw Error(KAD_MODEL_ERROR, "\"" + options_.path + "\" keeps no memory of a text (an encoder, " +
                                         architecture_ + "); expected a causal language model");
    }
    workers_     = backend_workers(size_t(params.n_threads));
    n_ctx_       = options.n_ctx;
    n_batch_     = std::min<size_t>(llama_n_batch(context_), options.n_ctx);
    type_k_      = params.type_k;
    type_v_      = params.type_v;
    type_k_name_ = ggml_type_name(params.type_k);
    type_v_name_ = ggml_type_name(params.type_v);
    flash_attn_  = params.flash_attn_type;
    devices_.clear();
    const bool offload = llama_supports_gpu_offload() && options_.n_gpu_layers != 0;
    for (size_t i = 0; offload && i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_GPU ||
            ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            devices_ += (devices_.empty() ? "" : ", ") + std::string(ggml_backend_dev_name(device));
        }
    }
    if (devices_.empty()) devices_ = "CPU";
}

// ---- Evaluation -----------------------------------------------------------------------------------------------------------

// llama.cpp ends the process on a batch that is too large, a position out of step or an unknown id; nothing of the kind may
// reach it.
void LlamaModel::check_pass(const Piece * pieces, size_t n_pieces) const {
    size_t n = 0, n_rows = 0;
    for (size_t k = 0; k < n_pieces; ++k) {
        const Piece & piece = pieces[k];
        n += piece.n;
        n_rows += piece.n_rows;
        if (piece.n > 0 && piece.n_rows <= piece.n && piece.at + piece.n <= n_ctx_ && piece.slot < n_slots_) continue;
        throw Error(KAD_INTERNAL_ERROR, "a pass of " + std::to_string(piece.n) + " tokens at " +
                                            std::to_string(piece.at) + " of slot " + std::to_string(piece.slot) +
                                            " with " + std::to_string(piece.n_rows) + " rows exceeds a context of " +
                                            std::to_string(n_ctx_) + " or " + std::to_string(n_slots_) + " slots");
    }
    if (n == 0 || n > n_batch_ || n_rows > max_rows()) {
        throw Error(KAD_INTERNAL_ERROR, "a pass of " + std::to_string(n) + " tokens with " + std::to_string(n_rows) +
                                            " rows exceeds a batch of " + std::to_string(n_batch_) + " or " +
                                            std::to_string(max_rows()) + " rows");
    }
    for (size_t k = 0; k < n_pieces; ++k) {
        for (size_t i = 0; i < pieces[k].n; ++i) {
            const Token id = pieces[k].tokens[i];
            if (id >= 0 && size_t(id) < bytes_.size()) continue;
            throw Error(KAD_INVALID_ARGUMENT, "token id " + std::to_string(id) + " is not in the vocabulary of the " +
                                                  role_name(role_) + " model (0 to " +
                                                  std::to_string(bytes_.size() - 1) + ")");
        }
    }
}

namespace {

// A llama_batch over vectors that keep their capacity from pass to pass.
struct Batch {
    std::vector<Token>          tokens;
    std::vector<llama_pos>      positions;
    std::vector<int32_t>        n_seq;
    std::vector<llama_seq_id>   slots;
    std::vector<llama_seq_id *> seq_ids;
    std::vector<int8_t>         wanted;

    // wanted_rows: where in the batch each row lies.
    Batch & fill(const Piece * pieces, size_t n_pieces, std::vector<int32_t> & wanted_rows) {
        tokens.clear();
        positions.clear();
        slots.clear();
        wanted.clear();
        wanted_rows.clear();
        for (size_t k = 0; k < n_pieces; ++k) {
            const Piece & piece = pieces[k];
            for (size_t i = 0; i < piece.n; ++i) {
                const bool row = i + piece.n_rows >= piece.n;
                if (row) wanted_rows.push_back(int32_t(tokens.size()));
                tokens.push_back(piece.tokens[i]);
                positions.push_back(llama_pos(piece.at + i));
                slots.push_back(llama_seq_id(piece.slot));
                wanted.push_back(row);
            }
        }
        n_seq.assign(tokens.size(), 1);
        seq_ids.resize(tokens.size());
        for (size_t i = 0; i < tokens.size(); ++i) seq_ids[i] = &slots[i];
        return *this;
    }
    llama_batch view() {
        return { int32_t(tokens.size()), tokens.data(),  nullptr,      positions.data(),
                 n_seq.data(),           seq_ids.data(), wanted.data() };
    }
};

} // namespace

void LlamaModel::evaluate(const Piece * pieces, size_t n_pieces) {
    check_pass(pieces, n_pieces);
    static thread_local Batch batch;
    LlamaLog                  log(false);
    const int32_t             result = llama_decode(context_, batch.fill(pieces, n_pieces, wanted_rows_).view());
    if (result != 0 || !wanted_rows_.empty()) llama_synchronize(context_);
    if (result == 0) return;
    if (result == 2 || (cancel_ && cancel_->load())) throw Error(KAD_INTERRUPTED, "interrupted");
    throw Error(KAD_EVALUATION_FAILED, "llama.cpp could not evaluate " + std::to_string(batch.tokens.size()) +
                                           " tokens at position " + std::to_string(pieces[0].at) + " of the " +
                                           role_name(role_) + " model (llama_decode answered " +
                                           std::to_string(result) + ")" + log.reason());
}

void LlamaModel::synchronize() { llama_synchronize(context_); }

float * LlamaModel::row(size_t i) {
    float * logits = i < wanted_rows_.size() ? llama_get_logits_ith(context_, wanted_rows_[i]) : nullptr;
    if (!logits)
        throw Error(KAD_INTERNAL_ERROR,
                    "no row " + std::to_string(i) + " after a pass with " + std::to_string(wanted_rows_.size()));
    return logits;
}

void LlamaModel::drop(size_t slot, size_t keep) {
    llama_memory_t memory = llama_get_memory(context_);
    if (keep == 0 && n_slots_ == 1) {
        llama_memory_clear(memory, false);
    } else if (!llama_memory_seq_rm(memory, llama_seq_id(slot), llama_pos(keep), -1)) {
        throw Error(KAD_INTERNAL_ERROR,
                    "the cache of the " + std::string(role_name(role_)) + " model cannot drop a suffix");
    }
}

void LlamaModel::copy(size_t from, size_t to, size_t n) {
    if (!shares_cells_) throw Error(KAD_INTERNAL_ERROR, "slots with cells of their own cannot share them");
    llama_memory_seq_cp(llama_get_memory(context_), llama_seq_id(from), llama_seq_id(to), 0, llama_pos(n));
}

// ---- Vocabulary -------------------------------------------------------------------------------------------------------------

std::vector<Token> LlamaModel::tokenize(const std::string & text, bool parse_special) const {
    if (text.size() > size_t(std::numeric_limits<int32_t>::max()) / 2) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "a text of " + std::to_string(text.size()) + " bytes is too long to tokenise");
    }
    std::vector<Token> ids(text.size() + 8);
    const auto         read = [&] {
        // A vocabulary that lacks what its tokenizer needs (byte tokens, say) is found out here.
        try {
            return llama_tokenize(vocab_, text.data(), int32_t(text.size()), ids.data(), int32_t(ids.size()), false,
                                  parse_special);
        } catch (const std::exception & e) {
            throw Error(KAD_MODEL_ERROR, "\"" + options_.path + "\" has a vocabulary that cannot tokenise this text: " +
                                             e.what() + "; fetch the file again");
        }
    };
    int32_t n = read();
    if (n < 0) {
        ids.resize(size_t(-n));
        n = read();
    }
    ids.resize(size_t(std::max(0, n)));
    return ids;
}

std::vector<Token> LlamaModel::special_tokens() const {
    std::vector<Token> ids;
    for (size_t i = 0; i < types_.size(); ++i) {
        if (types_[i] & (LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN)) ids.push_back(Token(i));
    }
    return ids;
}

// A tokenizer that puts a space before the first word is given a first word to put it before, which is then taken off: the
// first of a few prefixes that ends at a token's end.
std::vector<Token> LlamaModel::tokenize_continuation(const std::string & text) const {
    if (text.empty()) return {};
    if (!adds_space_) return tokenize(text, false);
    for (const char * prefix : { "\n", "x", ".", "0" }) {
        std::vector<Token> ids  = tokenize(prefix + text, false);
        size_t             used = 0;
        for (size_t i = 0; i < ids.size() && used <= std::strlen(prefix) + 1; ++i) {
            const std::string & piece = bytes_[size_t(ids[i])];
            used += piece.size();
            // The space may be a token of its own.
            const bool with_space = used == std::strlen(prefix) + 1 && piece.substr(piece.size() - 1) == prefix;
            if (with_space) return { ids.begin() + ptrdiff_t(i) + 1, ids.end() };
        }
    }
    return tokenize(text, false);
}

// ---- What it is -------------------------------------------------------------------------------------------------------------

void LlamaModel::describe(kad_model_info & info) const {
    info               = {};
    info.loaded        = 1;
    info.description   = description_.c_str();
    info.architecture  = architecture_.c_str();
    info.weight_bytes  = options_.vocab_only ? 0 : llama_model_size(model_);
    info.n_params      = options_.vocab_only ? 0 : llama_model_n_params(model_);
    info.n_vocab       = int32_t(bytes_.size());
    info.n_ctx_train   = int32_t(n_ctx_train_);
    info.n_ctx         = int32_t(n_ctx_);
    info.n_batch       = int32_t(n_batch_);
    info.n_layer       = options_.vocab_only ? 0 : llama_model_n_layer(model_);
    info.can_rewind    = can_rewind_;
    info.max_pass      = int32_t(n_batch_);
    info.type_k        = type_k_name_.c_str();
    info.type_v        = type_v_name_.c_str();
    info.n_ubatch      = context_ ? int32_t(llama_n_ubatch(context_)) : 0;
    info.flash_attn    = flash_attn_;
    info.devices       = devices_.c_str();
    info.chat_template = chat_template_.c_str();
    info.bos           = llama_vocab_bos(vocab_);
    info.eos           = llama_vocab_eos(vocab_);
    info.add_bos       = llama_vocab_get_add_bos(vocab_);
    info.bos_text      = bos_text_.c_str();
    info.eos_text      = eos_text_.c_str();
}

} // namespace kad
