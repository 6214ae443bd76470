#include "engine.h"

#include <algorithm>

#include "file.h"

namespace kad {

// Which models a rule runs: rule base may do without the aligned one, rule aligned without the base.
static void check_roles(const EngineOptions & options) {
    const kad_rule_info & rule = rule_info(options.rule.kind);
    for (const kad_role role : { KAD_ROLE_BASE, KAD_ROLE_ALIGNED }) {
        const ModelOptions & model  = options.models[role];
        const bool           speaks = !model.path.empty() && !model.vocab_only;
        const int32_t        alone  = role == KAD_ROLE_BASE ? KAD_RULE_ALIGNED : KAD_RULE_BASE;
        if (!speaks && options.rule.kind != alone) {
            throw Error(KAD_INVALID_ARGUMENT, std::string("rule ") + rule.name + " needs the " + role_name(role) +
                                                  " model; give its path, or use rule " + rule_info(alone).name);
        }
    }
    const ModelOptions & reference = options.models[KAD_ROLE_REFERENCE];
    if (rule.reference && (reference.path.empty() || reference.vocab_only)) {
        throw Error(KAD_INVALID_ARGUMENT,
                    std::string("rule ") + rule.name +
                        " needs a reference model: the aligned model before its alignment; give its path");
    }
    if (!rule.reference && !reference.path.empty()) {
        throw Error(KAD_INVALID_ARGUMENT, "a reference model (\"" + reference.path + "\") is given, but rule " +
                                              rule.name + " uses none; leave it out, or use rule implicit-reward");
    }
}

// One row of each must fit into a pass.
static constexpr int32_t MOST_TEXTS = int32_t(LlamaModel::MAX_ROWS);

// Texts in the caches at a time, where nothing else is asked for. They share n_ctx cells; in reproducible runs each has n_ctx of
// its own, which costs memory.
static uint32_t texts_of(const EngineOptions & options) {
    return options.n_parallel ? uint32_t(options.n_parallel) : options.reproducible ? 1 : 8;
}

static void check_options(const EngineOptions & options) {
    check_rule(options.rule);
    if (options.n_ctx <= 0) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "n_ctx " + std::to_string(options.n_ctx) + " is out of range; expected at least 1 token");
    }
    if (options.n_threads < 0 || options.n_threads > 512) {
        throw Error(KAD_INVALID_ARGUMENT, "n_threads " + std::to_string(options.n_threads) +
                                              " is out of range; expected 1 to 512, or 0 for the "
                                              "physical cores");
    }
    if (options.n_parallel < 0 || options.n_parallel > MOST_TEXTS) {
        throw Error(KAD_INVALID_ARGUMENT, "n_parallel " + std::to_string(options.n_parallel) +
                                              " is out of range; expected 1 to " + std::to_string(MOST_TEXTS) +
                                              " texts at a time, or 0 for the default");
    }
    check_roles(options);
    for (const kad_role role : ROLES) {
        const ModelOptions & model = options.models[role];
        if (model.n_gpu_layers < -1) {
            throw Error(KAD_INVALID_ARGUMENT,
                        std::string(role == KAD_ROLE_BASE ? "n_gpu_layers " : "n_gpu_layers_aligned ") +
                            std::to_string(model.n_gpu_layers) + " is out of range; expected -1 (all) or more");
        }
        for (const auto & [name, value] : model.fields) check_field(name, value, role_name(role));
        if (options.max_pass[role] < 0) {
            throw Error(KAD_INVALID_ARGUMENT, "max_pass " + std::to_string(options.max_pass[role]) +
                                                  " is out of range; expected 0 (measure) or more");
        }
    }
}

// Bytes per element of a cache of this type, relative to F16; quantised types are near enough for a refusal.
static double relative_to_f16(int32_t type) {
    const std::string name = cache_type_name(type);
    if (name == "f32") return 2;
    if (name == "q8_0") return 0.53;
    if (name == "f16" || name == "bf16" || name.empty()) return 1;
    return 0.35;
}

struct MemoryNeed {
    uint64_t weights = 0, cache = 0, buffers = 0;
    uint64_t total() const { return weights + cache + buffers; }
};

static MemoryNeed memory_of(const kad_file_info & file, const ModelOptions & options, uint64_t n_ctx,
                            uint64_t n_cells) {
    const double type_k = options.get("type_k", -1), type_v = options.get("type_v", -1);
    MemoryNeed   need;
    need.weights = file.tensor_bytes;
    need.cache   = uint64_t(double(file.cache_bytes_per_token) * double(n_cells) *
                            (relative_to_f16(int32_t(type_k)) + relative_to_f16(int32_t(type_v))) / 2);
    // Logits of one pass, in llama.cpp's buffer and in its graph.
    need.buffers = uint64_t(file.n_vocab) * sizeof(float) * 2 * std::min<uint64_t>(LlamaModel::MAX_ROWS, n_ctx);
    return need;
}

static std::string figures(kad_role role, const MemoryNeed & need) {
    return std::string(role_name(role)) + " " + gibibytes(need.total()) + " (weights " + gibibytes(need.weights) +
           ", cache " + gibibytes(need.cache) + ", logits " + gibibytes(need.buffers) + ")";
}

static void check_memory(const EngineOptions & options, const kad_file_info * files, uint64_t n_ctx) {
    uint64_t    total   = 0;
    bool        offload = false;
    std::string parts;
    for (const kad_role role : ROLES) {
        const ModelOptions & model = options.models[role];
        if (model.path.empty() || model.vocab_only) continue;
        const MemoryNeed need =
            memory_of(files[role], model, n_ctx, options.reproducible ? n_ctx * texts_of(options) : n_ctx);
        total += need.total();
        parts += (parts.empty() ? "" : " + ") + figures(role, need);
        offload = offload || model.n_gpu_layers != 0;
    }
    const uint64_t limit = options.memory_limit ? options.memory_limit : available_memory(offload);
    if (total > limit) {
        throw Error(KAD_OUT_OF_MEMORY, "the models do not fit into memory: " + parts + " = " + gibibytes(total) +
                                           " of " + gibibytes(limit) +
                                           " free; use a smaller quantisation, a shorter context than " +
                                           std::to_string(n_ctx) + ", a smaller cache type, or close other programs");
    }
}

// Headers of all files, and the context that every model can have.
struct Headers {
    kad_file_info files[ROLE_COUNT] = {};
    uint64_t      n_ctx             = 0;

    explicit Headers(const EngineOptions & options) : n_ctx(uint64_t(options.n_ctx)) {
        for (const kad_role role : ROLES) {
            if (options.models[role].path.empty()) continue;
            files[role] = inspect_file(options.models[role].path);
            if (!options.models[role].vocab_only && files[role].n_ctx_train)
                n_ctx = std::min<uint64_t>(n_ctx, files[role].n_ctx_train);
        }
    }
};

// implicit-reward multiplies three rows token by token: one vocabulary, or nothing.
static void check_one_vocabulary(const EngineOptions & options) {
    if (!rule_info(options.rule.kind).reference) return;
    std::unique_ptr<LlamaModel> models[ROLE_COUNT];
    for (const kad_role role : ROLES) {
        ModelOptions words = options.models[role];
        words.vocab_only   = true;
        models[role]       = std::make_unique<LlamaModel>(words, role, options.verbose, nullptr);
    }
    for (const kad_role role : { KAD_ROLE_BASE, KAD_ROLE_REFERENCE }) {
        const VocabularyComparison found = compare(*models[role], *models[KAD_ROLE_ALIGNED]);
        if (found.equal) continue;
        throw Error(KAD_MODEL_ERROR,
                    std::string("rule ") + rule_info(options.rule.kind).name + " needs one vocabulary, but the " +
                        role_name(role) + " model \"" + options.models[role].path + "\" and the aligned model \"" +
                        options.models[KAD_ROLE_ALIGNED].path + "\" differ in " + std::to_string(found.n_differing) +
                        " ids, the first is " + std::to_string(found.differing[0]) + "; use models of one family");
    }
}

void Engine::check(const EngineOptions & options) {
    check_options(options);
    const Headers headers(options);
    check_memory(options, headers.files, headers.n_ctx);
    check_one_vocabulary(options);
}

Engine::Engine(const EngineOptions & options) : options_(options) {
    check(options);
    const Headers         headers(options);
    const kad_file_info * files = headers.files;
    const uint64_t        n_ctx = headers.n_ctx;

    double bytes = 0, before = 0; // of weights, for the progress
    for (const kad_file_info & file : headers.files) bytes += double(file.tensor_bytes);

    for (const kad_role role : ROLES) {
        if (options.models[role].path.empty()) continue;

        const double own      = double(files[role].tensor_bytes);
        const auto   progress = [&](double fraction) {
            return !cancel && (!options.progress || options.progress((before + fraction * own) / bytes));
        };

        models_[role] = std::make_unique<LlamaModel>(options.models[role], role, options.verbose, progress);
        before += own;
    }
    if (models_[KAD_ROLE_BASE] && models_[KAD_ROLE_ALIGNED])
        comparison_ = compare(*models_[KAD_ROLE_BASE], *models_[KAD_ROLE_ALIGNED]);

    Settings settings;

    LanguageModel *    speaking[ROLE_COUNT]     = {};
    const Vocabulary * vocabularies[ROLE_COUNT] = {};

    settings.rule         = options.rule;
    settings.n_ctx        = size_t(n_ctx);
    settings.reproducible = options.reproducible;
    for (const kad_role role : ROLES) {
        if (!speaks(role)) continue;
        LlamaModel &   model = *models_[role];
        ContextOptions context;
        context.n_ctx     = uint32_t(n_ctx);
        context.n_threads = options.n_threads;
        context.n_slots   = texts_of(options);
        context.separate  = options.reproducible;
        // Drafting and deciding take short passes of the small models. Reproducible runs are paid in bits, not in speed.
        context.short_passes = !options.reproducible && role != KAD_ROLE_BASE;
        if (options.reproducible) {
            if (options.max_pass[role] == 0) {
                const PassInfo measured =
                    measure_passes(model, options.models[role], context, &cancel, options.progress);
                max_pass_[role] = measured.max_pass;
                context.type_k  = measured.type_k;
                context.type_v  = measured.type_v;
            } else {
                max_pass_[role] = options.max_pass[role];
            }
            settings.max_pass[role] = size_t(max_pass_[role]);
        }
        model.make_context(context, options.verbose, &cancel);
        if (!options.reproducible) max_pass_[role] = int32_t(model.max_batch());
        settings.architecture[role] = model.architecture();
        speaking[role]              = &model;
        vocabularies[role]          = &model;
    }

    events_    = std::make_unique<EventSpace>(vocabularies[KAD_ROLE_BASE], vocabularies[KAD_ROLE_ALIGNED],
                                              comparison_.equal, vocabularies[KAD_ROLE_REFERENCE]);
    generator_ = std::make_unique<Generator>(speaking, *events_, settings);
}

PassInfo Engine::measure(const EngineOptions & options, kad_role role) {
    const ModelOptions & wanted = options.models[role];
    if (wanted.path.empty())
        throw Error(KAD_INVALID_ARGUMENT,
                    std::string("the ") + role_name(role) + " model has no path; expected a GGUF file");
    if (wanted.vocab_only) throw Error(KAD_INVALID_ARGUMENT, "vocab_only is set: measuring needs the model's weights");
    EngineOptions alone = options; // the other models are not loaded
    for (const kad_role other : ROLES) {
        if (other != role) alone.models[other].path.clear();
    }
    alone.rule = { role == KAD_ROLE_BASE ? KAD_RULE_BASE : KAD_RULE_ALIGNED, 0, 1 };
    if (role == KAD_ROLE_REFERENCE) std::swap(alone.models[KAD_ROLE_ALIGNED], alone.models[role]);
    check_options(alone);
    const kad_file_info file                                    = inspect_file(wanted.path);
    kad_file_info       files[ROLE_COUNT]                       = {};
    files[role == KAD_ROLE_REFERENCE ? KAD_ROLE_ALIGNED : role] = file;
    check_memory(alone, files,
                 std::min<uint64_t>(uint64_t(options.n_ctx), file.n_ctx_train ? file.n_ctx_train : UINT64_MAX));
    LlamaModel     model(wanted, role, options.verbose, options.progress);
    ContextOptions context;
    context.n_ctx     = uint32_t(file.n_ctx_train ? std::min<int64_t>(options.n_ctx, file.n_ctx_train) : options.n_ctx);
    context.n_threads = options.n_threads;
    context.n_slots   = texts_of(options);
    context.separate  = true;
    return measure_passes(model, wanted, context, nullptr, options.progress);
}

} // namespace kad
