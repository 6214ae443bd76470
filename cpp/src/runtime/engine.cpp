#include "engine.h"

#include <algorithm>

#include "file.h"

namespace kad {

static constexpr kad_role ROLES[] = { KAD_ROLE_BASE, KAD_ROLE_ALIGNED };

static const char * name_of(kad_role role) { return role == KAD_ROLE_BASE ? "base" : "aligned"; }

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
    for (const kad_role role : ROLES) {
        const ModelOptions & model  = options.models[role];
        const bool           speaks = !model.path.empty() && !model.vocab_only;
        const int32_t        alone  = role == KAD_ROLE_BASE ? KAD_RULE_ALIGNED : KAD_RULE_BASE;
        if (!speaks && options.rule.kind != alone) {
            throw Error(KAD_INVALID_ARGUMENT, std::string("rule ") + rule_info(options.rule.kind).name + " needs the " +
                                                  name_of(role) + " model; give its path, or use rule " +
                                                  rule_info(alone).name);
        }
        if (model.n_gpu_layers < -1) {
            throw Error(KAD_INVALID_ARGUMENT,
                        std::string(role == KAD_ROLE_BASE ? "n_gpu_layers " : "n_gpu_layers_aligned ") +
                            std::to_string(model.n_gpu_layers) + " is out of range; expected -1 (all) or more");
        }
        for (const auto & [name, value] : model.fields) check_field(name, value, name_of(role));
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

static MemoryNeed memory_of(const kad_file_info & file, const ModelOptions & options, uint64_t n_ctx) {
    const double type_k = options.get("type_k", -1), type_v = options.get("type_v", -1);
    MemoryNeed   need;
    need.weights = file.tensor_bytes;
    need.cache   = uint64_t(double(file.cache_bytes_per_token) * double(n_ctx) *
                            (relative_to_f16(int32_t(type_k)) + relative_to_f16(int32_t(type_v))) / 2);
    // Logits of one pass, in llama.cpp's buffer and in its graph.
    need.buffers = uint64_t(file.n_vocab) * sizeof(float) * 2 * std::min<uint64_t>(LlamaModel::MAX_ROWS, n_ctx);
    return need;
}

static std::string figures(kad_role role, const MemoryNeed & need) {
    return std::string(name_of(role)) + " " + gibibytes(need.total()) + " (weights " + gibibytes(need.weights) +
           ", cache " + gibibytes(need.cache) + ", logits " + gibibytes(need.buffers) + ")";
}

static void check_memory(const EngineOptions & options, const kad_file_info * files, uint64_t n_ctx) {
    uint64_t    total   = 0;
    bool        offload = false;
    std::string parts;
    for (const kad_role role : ROLES) {
        const ModelOptions & model = options.models[role];
        if (model.path.empty() || model.vocab_only) continue;
        const MemoryNeed need = memory_of(files[role], model, n_ctx);
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

Engine::Engine(const EngineOptions & options) : options_(options) {
    check_options(options);
    kad_file_info files[2] = {};
    uint64_t      n_ctx    = uint64_t(options.n_ctx);
    for (const kad_role role : ROLES) {
        if (options.models[role].path.empty()) continue;
        files[role] = inspect_file(options.models[role].path);
        if (!options.models[role].vocab_only && files[role].n_ctx_train)
            n_ctx = std::min<uint64_t>(n_ctx, files[role].n_ctx_train);
    }
    check_memory(options, files, n_ctx);

    const double bytes[2] = { double(files[0].tensor_bytes), double(files[1].tensor_bytes) };
    for (const kad_role role : ROLES) {
        if (options.models[role].path.empty()) continue;
        const double before   = role == KAD_ROLE_BASE ? 0 : bytes[0];
        const auto   progress = [&](double fraction) {
            return !cancel &&
                   (!options.progress || options.progress((before + fraction * bytes[role]) / (bytes[0] + bytes[1])));
        };
        models_[role] = std::make_unique<LlamaModel>(options.models[role], role, options.verbose, progress);
    }
    if (models_[0] && models_[1]) comparison_ = compare(*models_[0], *models_[1]);

    Settings           settings;
    LanguageModel *    speaking[2]     = {};
    const Vocabulary * vocabularies[2] = {};
    settings.rule                      = options.rule;
    settings.n_ctx                     = size_t(n_ctx);
    settings.reproducible              = options.reproducible;
    for (const kad_role role : ROLES) {
        if (!speaks(role)) continue;
        LlamaModel &   model = *models_[role];
        ContextOptions context;
        context.n_ctx     = uint32_t(n_ctx);
        context.n_threads = options.n_threads;
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
    events_    = std::make_unique<EventSpace>(vocabularies[0], vocabularies[1], comparison_.equal);
    generator_ = std::make_unique<Generator>(speaking[0], speaking[1], *events_, settings);
}

PassInfo Engine::measure(const EngineOptions & options, kad_role role) {
    const ModelOptions & wanted = options.models[role];
    if (wanted.path.empty())
        throw Error(KAD_INVALID_ARGUMENT,
                    std::string("the ") + name_of(role) + " model has no path; expected a GGUF file");
    if (wanted.vocab_only) throw Error(KAD_INVALID_ARGUMENT, "vocab_only is set: measuring needs the model's weights");
    EngineOptions alone = options; // the other model is not loaded
    alone.models[1 - role].path.clear();
    alone.rule = { role == KAD_ROLE_BASE ? KAD_RULE_BASE : KAD_RULE_ALIGNED, 0, 1 };
    check_options(alone);
    const kad_file_info file     = inspect_file(wanted.path);
    kad_file_info       files[2] = {};
    files[role]                  = file;
    check_memory(alone, files,
                 std::min<uint64_t>(uint64_t(options.n_ctx), file.n_ctx_train ? file.n_ctx_train : UINT64_MAX));
    LlamaModel     model(wanted, role, options.verbose, options.progress);
    ContextOptions context;
    context.n_ctx     = uint32_t(file.n_ctx_train ? std::min<int64_t>(options.n_ctx, file.n_ctx_train) : options.n_ctx);
    context.n_threads = options.n_threads;
    return measure_passes(model, wanted, context, nullptr, options.progress);
}

} // namespace kad
