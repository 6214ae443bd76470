// extern "C": check arguments, catch everything, translate errors. The functions on rows are in c_api_rows.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "errors.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "llama.h"
#include "params.h"
#include "runtime/engine.h"
#include "runtime/extra_buffers.h"
#include "runtime/file.h"
#include "runtime/interrupt.h"
#include "runtime/samplers.h"
#include "runtime/utf8.h"

using namespace kad;

struct kad_engine : Engine {
    using Engine::Engine;
    std::atomic<size_t> users{ 1 }; // open sequences, and whoever opened the engine
};

struct kad_sequence : Sequence {
    kad_engine *      engine = nullptr;
    std::vector<Said> handed; // whose bytes the caller may still read
};

namespace {

kad_role role_of(int32_t role) {
    if (role < 0 || role >= ROLE_COUNT) {
        throw Error(KAD_INVALID_ARGUMENT,
                    "role " + std::to_string(role) + " is unknown; expected 0 (base), 1 (aligned) or 2 (reference)");
    }
    return kad_role(role);
}

ModelOptions model_options(const kad_model_params & params) {
    ModelOptions options;
    options.path         = params.path ? params.path : "";
    options.n_gpu_layers = params.n_gpu_layers;
    options.vocab_only   = params.vocab_only != 0;
    for (size_t i = 0; i < params.n_fields; ++i) {
        need(params.field_names, "field_names");
        need(params.field_values, "field_values");
        need(params.field_names[i], "a field name");
        options.fields.emplace_back(params.field_names[i], params.field_values[i]);
    }
    return options;
}

EngineOptions engine_options(const kad_engine_params & params) {
    EngineOptions options;
    options.models[KAD_ROLE_BASE]      = model_options(params.base);
    options.models[KAD_ROLE_ALIGNED]   = model_options(params.aligned);
    options.models[KAD_ROLE_REFERENCE] = model_options(params.reference);

    options.rule                         = params.rule;
    options.n_ctx                        = params.n_ctx;
    options.n_threads                    = params.n_threads;
    options.n_parallel                   = params.n_parallel;
    options.reproducible                 = params.reproducible != 0;
    options.verbose                      = params.verbose != 0;
    options.max_pass[KAD_ROLE_BASE]      = params.max_pass_base;
    options.max_pass[KAD_ROLE_ALIGNED]   = params.max_pass_aligned;
    options.max_pass[KAD_ROLE_REFERENCE] = params.max_pass_reference;

    options.memory_limit = params.memory_limit;
    if (params.progress) {
        options.progress = [progress = params.progress, data = params.progress_user_data](double fraction) {
            return progress(fraction, data) != 0;
        };
    }
    return options;
}

void check_library() {
    const std::string version = llama_version(), commit = ggml_commit();
    const std::string built_version = KAD_BUILT_LLAMA_VERSION, built_commit = KAD_BUILT_LLAMA_COMMIT;
    if (version == built_version && (built_commit.empty() || commit == built_commit)) return;
    throw Error(KAD_LIBRARY_MISMATCH, "the libllama in this process is version " + version + ", commit " + commit +
                                          ", but kad-llama was built against version " + built_version + ", commit " +
                                          built_commit +
                                          "; rebuild kad-llama against it, or load the libllama it was built with");
}

// Text sizes come from outside: a range error names them.
template <typename Number>
void in_range(const char * name, Number value, bool ok, const char * expected) {
    if (ok) return;
    throw Error(KAD_INVALID_ARGUMENT,
                std::string(name) + " " + shown(double(value)) + " is out of range; expected " + expected);
}

SamplerSettings sampler_settings(const kad_sequence_params & params) {
    SamplerSettings s;
    if (params.n_biases) {
        need(params.bias_texts, "bias_texts");
        need(params.biases, "biases");
    }
    for (size_t i = 0; i < params.n_biases; ++i) {
        need(params.bias_texts[i], "a bias text");
        s.logit_bias.emplace_back(params.bias_texts[i], params.biases[i]);
    }
    s.repeat_last_n      = params.repeat_last_n;
    s.repeat_penalty     = params.repeat_penalty;
    s.frequency_penalty  = params.frequency_penalty;
    s.presence_penalty   = params.presence_penalty;
    s.dry_multiplier     = params.dry_multiplier;
    s.dry_base           = params.dry_base;
    s.dry_allowed_length = params.dry_allowed_length;
    s.dry_penalty_last_n = params.dry_penalty_last_n;
    if (params.dry_sequence_breakers) s.dry_sequence_breakers.clear();
    for (size_t i = 0; params.dry_sequence_breakers && i < params.n_dry_sequence_breakers; ++i) {
        need(params.dry_sequence_breakers[i], "a DRY sequence breaker");
        s.dry_sequence_breakers.emplace_back(params.dry_sequence_breakers[i]);
    }
    s.top_k           = params.top_k;
    s.typical_p       = params.typical_p;
    s.top_p           = params.top_p;
    s.min_p           = params.min_p;
    s.xtc_probability = params.xtc_probability;
    s.xtc_threshold   = params.xtc_threshold;
    check_samplers(s);
    return s;
}

void check_sampling(const kad_sequence_params & params, size_t max_draft) {
    in_range("temperature", params.temperature, params.temperature >= 0 && std::isfinite(params.temperature),
             "a finite value >= 0");
    if (params.mirostat != 0) {
        throw Error(KAD_INVALID_ARGUMENT, "mirostat " + std::to_string(params.mirostat) +
                                              " is not possible: it draws for itself and moves its target by what it "
                                              "drew, here two models and a rule decide; expected 0 (off)");
    }
    in_range("max_tokens", params.max_tokens, params.max_tokens >= 0, "0 or more");
    in_range("mode", params.mode, params.mode >= KAD_MODE_SPECULATIVE && params.mode <= KAD_MODE_AUTO, "a kad_mode");
    if (params.mode == KAD_MODE_SPECULATIVE && (params.draft < 1 || size_t(params.draft) > max_draft)) {
        throw Error(KAD_INVALID_ARGUMENT, "draft " + std::to_string(params.draft) + " is out of range; expected 1 to " +
                                              std::to_string(max_draft) +
                                              " guesses per pass (the batch holds no more)");
    }
    for (size_t i = 0; i < params.n_stops; ++i) {
        need(params.stops, "stops");
        need(params.stops[i], "a stop string");
        if (!*params.stops[i])
            throw Error(KAD_INVALID_ARGUMENT,
                        "stop string " + std::to_string(i) + " is empty; expected at least one character");
    }
}

void take_prompt(Sequence & sequence, const Engine & engine, kad_role role, const int32_t * ids, size_t n) {
    if (!engine.speaks(role)) return;
    const char * name = role == KAD_ROLE_BASE ? "base_ids" : "aligned_ids"; // the reference has the aligned model's
    const bool   used = role != KAD_ROLE_BASE || engine.options().rule.kind != KAD_RULE_ALIGNED;
    if (n == 0 && used)
        throw Error(KAD_INVALID_ARGUMENT, std::string(name) + " is empty; expected a prompt of at least one token");
    if (n) need(ids, name);
    const size_t n_ctx = engine.model(role)->n_ctx();
    if (n > n_ctx) {
        throw Error(KAD_CONTEXT_TOO_SMALL, "the prompt has " + std::to_string(n) + " tokens for the " +

                                               role_name(role) + " model, but the context holds " +
                                               std::to_string(n_ctx) + "; shorten the prompt or raise n_ctx");
    }
    sequence.sides[role].context.assign(ids, ids + n);
}

// A model whose vocabulary has an end of generation, where ids are shared: the sets of ends may differ.
kad_role role_with_end(const Engine & engine) {
    kad_role speaking = KAD_ROLE_ALIGNED;
    for (const kad_role role : ROLES) {
        if (!engine.speaks(role)) continue;
        speaking = role;
        for (size_t id = 0; id < engine.model(role)->size(); ++id) {
            if (engine.model(role)->kind(Token(id)) == TokenKind::End) return role;
        }
    }
    return speaking;
}

// One state where ids are shared, else one for each vocabulary.
void take_grammar(Sequence & sequence, const Engine & engine, const kad_sequence_params & params) {
    if (!params.grammar) return;
    const bool shared = engine.events().shared_ids();
    Constraint constraint(engine.events());
    const auto add = [&](kad_role role) {
        const char * root = params.grammar_root ? params.grammar_root : "root";
        constraint.add(role, make_grammar(*engine.model(role), params.grammar, root, !shared));
    };
    if (shared) {
        add(role_with_end(engine));
    } else {
        for (const kad_role role : ROLES) {
            if (engine.speaks(role)) add(role);
        }
    }
    sequence.constraints.push_back(std::move(constraint));
}

void read_stats(const kad_sequence & sequence, kad_stats & stats) {
    stats                       = {};
    const Side & base           = sequence.sides[KAD_ROLE_BASE];
    const Side & aligned        = sequence.sides[KAD_ROLE_ALIGNED];
    stats.mode                  = sequence.mode;
    stats.prompt_tokens         = int32_t(base.active ? base.n_prompt : aligned.n_prompt);
    stats.prompt_tokens_aligned = int32_t(aligned.active ? aligned.n_prompt : 0);
    stats.tokens                = int32_t(sequence.events);
    stats.drafted               = sequence.drafted;
    stats.accepted              = sequence.accepted;
    stats.aligned_tokens        = sequence.aligned_tokens;
    stats.deferred_mass         = sequence.events ? sequence.alpha_sum / double(sequence.events) : 0;
    stats.prompt_s              = sequence.prompt_s;
    stats.generate_s            = sequence.generate_s;
    stats.draw_s                = sequence.draw_s;
    stats.text_s                = sequence.text_s;
    sequence.engine->generator().read_counts(sequence, stats);
}

void current_only(const kad_sequence * sequence) {
    need(sequence, "sequence");
    if (!sequence->engine->generator().has(*sequence)) {
        throw Error(KAD_BAD_STATE,
                    "this sequence was superseded by another one on the same engine; open it again with its prompt");
    }
}

} // namespace

extern "C" {

kad_status kad_library(kad_library_info * out) {
    return guarded([&] {
        need(out, "out");
        static const std::string backends = [] {
            std::string names;
            for (size_t i = 0; i < ggml_backend_reg_count(); ++i) {
                names += (i ? "," : "") + std::string(ggml_backend_reg_name(ggml_backend_reg_get(i)));
            }
            return names;
        }();
        *out = { KAD_BUILT_LLAMA_VERSION, KAD_BUILT_LLAMA_COMMIT, llama_version(),
                 ggml_commit(),           backends.c_str(),       llama_print_system_info() };
    });
}

kad_status kad_library_check(void) {
    return guarded([] { check_library(); });
}

int32_t kad_extra_buffers_work(void) { return extra_buffers_work() ? 1 : 0; }

kad_status kad_file_inspect(const char * path, kad_file_info * out) {
    return guarded([&] {
        need(path, "path");
        need(out, "out");
        check_library();
        *out = inspect_file(path);
    });
}

kad_engine_params kad_engine_default_params(void) {
    kad_engine_params params      = {};
    params.size                   = sizeof params;
    params.base.n_gpu_layers      = -1;
    params.aligned.n_gpu_layers   = -1;
    params.reference.n_gpu_layers = -1;

    params.rule  = { KAD_RULE_DUAL, 0.4, 1.0 };
    params.n_ctx = 4096;
    return params;
}

kad_status kad_engine_open(const kad_engine_params * params, kad_engine ** out) {
    return guarded([&] {
        need(out, "out");
        const kad_engine_params given = completed(params, kad_engine_default_params(), "params");
        check_library();
        static const bool initialised = (llama_backend_init(), true);
        (void)initialised;
        *out = new kad_engine(engine_options(given));
    });
}

kad_status kad_engine_check(const kad_engine_params * params) {
    return guarded([&] {
        const kad_engine_params given = completed(params, kad_engine_default_params(), "params");
        check_library();
        Engine::check(engine_options(given));
    });
}

static void leave(kad_engine * engine) {
    if (engine && --engine->users == 0) delete engine;
}

void kad_engine_close(kad_engine * engine) { leave(engine); }

void kad_engine_cancel(kad_engine * engine) {
    if (engine) engine->cancel = true;
}

void kad_engine_catch_sigint(kad_engine * engine, int32_t on) {
    if (engine) engine->catch_sigint = on != 0;
}

kad_status kad_engine_model(const kad_engine * engine, int32_t role, kad_model_info * out) {
    return guarded([&] {
        need(engine, "engine");
        need(out, "out");
        const kad_role     which = role_of(role);
        const LlamaModel * model = engine->model(which);
        if (!model) {
            *out             = {};
            out->description = out->architecture = out->type_k = out->type_v = out->devices = out->chat_template = "";
            out->bos_text = out->eos_text = "";
            out->bos = out->eos = -1;
            return;
        }
        model->describe(*out);
        if (engine->speaks(which)) {
            out->max_pass = engine->max_pass(which);
            // K and V of every cell: what the context was made with.
            const kad_file_info file  = inspect_file(engine->options().models[which].path);
            const auto          bytes = [&](const char * type) {
                return double(ggml_row_size(ggml_type(cache_type(type)), 256)) / 512;
            };
            out->cache_bytes = uint64_t(double(file.cache_bytes_per_token) * out->n_ctx *
                                        (bytes(out->type_k) + bytes(out->type_v)) / 2);
        } else {
            out->loaded = 0;
        }
    });
}

kad_status kad_engine_vocab(const kad_engine * engine, kad_vocab_info * out) {
    return guarded([&] {
        need(engine, "engine");
        need(out, "out");
        const VocabularyComparison & found = engine->vocabularies();
        *out                               = { found.equal,
                                               found.overlap,
                                               int32_t(found.n_differing),
                                               { -1, -1, -1, -1, -1 },
                                               int32_t(engine->events().size()) };
        for (size_t i = 0; i < found.differing.size(); ++i) out->differing[i] = found.differing[i];
    });
}

static const LlamaModel & model_for_text(const kad_engine * engine, int32_t role) {
    need(engine, "engine");
    const LlamaModel * model = engine->model(role_of(role));
    if (!model)
        throw Error(KAD_INVALID_ARGUMENT, std::string("this engine has no ") + role_name(kad_role(role)) + " model");
    return *model;
}

static void hand_ids(const std::vector<Token> & found, int32_t * ids, size_t capacity, size_t & n_ids) {
    if (found.size() <= capacity && !found.empty()) {
        need(ids, "ids");
        std::memcpy(ids, found.data(), found.size() * sizeof(int32_t));
    }
    n_ids = found.size();
}

kad_status kad_tokenize(const kad_engine * engine, int32_t role, const char * text, size_t n_bytes,
                        int32_t parse_special, int32_t * ids, size_t capacity, size_t * n_ids) {
    return guarded([&] {
        const LlamaModel & model = model_for_text(engine, role);
        need(text, "text");
        need(n_ids, "n_ids");
        hand_ids(model.tokenize(std::string(text, n_bytes), parse_special != 0), ids, capacity, *n_ids);
    });
}

kad_status kad_tokenize_continuation(const kad_engine * engine, int32_t role, const char * text, size_t n_bytes,
                                     int32_t * ids, size_t capacity, size_t * n_ids) {
    return guarded([&] {
        const LlamaModel & model = model_for_text(engine, role);
        if (n_bytes) need(text, "text");
        need(n_ids, "n_ids");
        const std::string given(text ? text : "", n_bytes);
        // Where vocabularies differ texts are tokenised piecewise: see TextTokens.
        hand_ids(engine->events().shared_ids() ? model.tokenize_continuation(sanitised(given))
                                               : TextTokens(model).tokens(given),
                 ids, capacity, *n_ids);
    });
}

kad_status kad_special_tokens(const kad_engine * engine, int32_t role, int32_t * ids, size_t capacity, size_t * n_ids) {
    return guarded([&] {
        const LlamaModel & model = model_for_text(engine, role);
        need(n_ids, "n_ids");
        hand_ids(model.special_tokens(), ids, capacity, *n_ids);
    });
}

kad_status kad_token_bytes(const kad_engine * engine, int32_t role, int32_t id, const char ** bytes, size_t * n_bytes,
                           int32_t * type) {
    return guarded([&] {
        const LlamaModel & model = model_for_text(engine, role);
        if (id < 0 || size_t(id) >= model.size()) {
            throw Error(KAD_INVALID_ARGUMENT, "token id " + std::to_string(id) + " is out of range; expected 0 to " +
                                                  std::to_string(model.size() - 1));
        }
        const std::string & text = model.bytes(id);
        if (bytes) *bytes = text.data();
        if (n_bytes) *n_bytes = text.size();
        if (type) {
            switch (model.kind(id)) {
                case TokenKind::Text: *type = 0; break;
                case TokenKind::Control: *type = 1; break;
                case TokenKind::End: *type = 2; break;
                case TokenKind::Empty: *type = 3; break;
            }
        }
    });
}

kad_sequence_params kad_sequence_default_params(void) {
    kad_sequence_params params = {};
    params.size                = sizeof params;
    params.temperature         = 1;
    params.top_p               = 1;
    params.max_tokens          = 256;
    params.mode                = KAD_MODE_AUTO;
    params.draft               = 3;
    params.ngram               = 1;
    params.typical_p           = 1;
    params.repeat_penalty      = 1;
    params.repeat_last_n       = 64;
    params.dry_base            = 1.75;
    params.dry_allowed_length  = 2;
    params.dry_penalty_last_n  = -1;
    params.xtc_threshold       = 0.1;
    return params;
}

int32_t kad_max_parallel(const kad_engine * engine) { return engine ? int32_t(engine->generator().max_texts()) : 0; }

int32_t kad_max_draft(const kad_engine * engine) { return engine ? int32_t(engine->generator().max_draft()) : 0; }

kad_status kad_sequence_open(kad_engine * engine, const kad_sequence_params * params, const int32_t * base_ids,
                             size_t n_base, const int32_t * aligned_ids, size_t n_aligned, kad_sequence ** out) {
    return guarded([&] {
        need(engine, "engine");
        need(out, "out");
        const kad_sequence_params given = completed(params, kad_sequence_default_params(), "params");
        check_sampling(given, engine->generator().max_draft());
        const SamplerSettings samplers = sampler_settings(given);
        rule_temperature(engine->options().rule, given.temperature); // refuses "sampling" at temperature 0

        auto sequence         = std::make_unique<kad_sequence>();
        sequence->engine      = engine;
        sequence->coins       = { given.seed, given.text_number };
        sequence->temperature = given.temperature;
        sequence->max_tokens  = given.max_tokens;
        sequence->logprobs    = given.logprobs != 0;
        sequence->ngram       = given.ngram != 0;
        for (size_t i = 0; i < given.n_stops; ++i) sequence->stops.emplace_back(given.stops[i]);
        take_prompt(*sequence, *engine, KAD_ROLE_BASE, base_ids, n_base);
        take_prompt(*sequence, *engine, KAD_ROLE_ALIGNED, aligned_ids, n_aligned);
        take_prompt(*sequence, *engine, KAD_ROLE_REFERENCE, aligned_ids, n_aligned);
        take_grammar(*sequence, *engine, given);

        for (const kad_role role : ROLES) {
            Side & side = sequence->sides[role];
            if (!engine->speaks(role)) continue;
            side.shaper = make_samplers(samplers, *engine->model(role), engine->events(), role, given.temperature,
                                        sequence->coins);
            if (!engine->events().shared_ids()) side.tokens = std::make_unique<TextTokens>(*engine->model(role));
        }
        const size_t draft =
            given.mode == KAD_MODE_AUTO ? std::min(AUTO_DRAFT, engine->generator().max_draft()) : size_t(given.draft);
        engine->generator().begin(*sequence, kad_mode(given.mode), draft);
        ++engine->users;
        *out = sequence.release();
    });
}

void kad_sequence_close(kad_sequence * sequence) {
    if (!sequence) return;
    kad_engine * engine = sequence->engine;
    engine->generator().leave(*sequence);
    delete sequence;
    leave(engine);
}

void kad_sequence_release(kad_sequence ** sequence) {
    if (!sequence) return;
    kad_sequence_close(*sequence);
    *sequence = nullptr;
}

// One piece of work for each sequence. What went wrong in one of them is in its failure.
static void step(kad_engine & engine, const std::vector<Sequence *> & sequences) {
    engine.cancel = false;
    const CatchInterrupt interrupt(engine.catch_sigint ? &engine.cancel : nullptr);
    engine.generator().step(sequences);
}

kad_status kad_step(kad_sequence * const * sequences, size_t n) {
    return guarded([&] {
        if (n) need(sequences, "sequences");
        std::vector<Sequence *> texts;
        for (size_t i = 0; i < n; ++i) {
            current_only(sequences[i]);
            if (sequences[i]->engine != sequences[0]->engine || std::count(sequences, sequences + i, sequences[i])) {
                throw Error(KAD_INVALID_ARGUMENT, "sequence " + std::to_string(i) +
                                                      " is of another engine or named twice; expected different "
                                                      "sequences of one engine");
            }
            if (sequences[i]->said.empty()) texts.push_back(sequences[i]);
        }
        if (!texts.empty()) step(*sequences[0]->engine, texts);
    });
}

// What was said before a failure is handed out first.
static void hand_out(kad_sequence & sequence, kad_token * tokens, size_t capacity, int32_t & n) {
    if (sequence.said.empty() && sequence.failure) {
        const Error failure = *sequence.failure;
        sequence.failure.reset();
        throw failure;
    }
    if (capacity < sequence.said.size()) {
        throw Error(KAD_INVALID_ARGUMENT, "capacity " + std::to_string(capacity) + " is too small; " +
                                              std::to_string(sequence.said.size()) + " tokens were said");
    }
    sequence.handed.assign(std::make_move_iterator(sequence.said.begin()),
                           std::make_move_iterator(sequence.said.end()));
    sequence.said.clear();
    for (size_t i = 0; i < sequence.handed.size(); ++i) {
        const Said & said = sequence.handed[i];
        tokens[i]         = { said.ids[0],       said.source,          said.bytes.data(),  said.bytes.size(),
                              said.logprob,      said.base_share,      said.deferred_mass, said.guess,
                              said.base_logprob, said.aligned_logprob, said.ids.data(),    said.ids.size() };
    }
    n = int32_t(sequence.handed.size());
}

kad_status kad_sequence_take(kad_sequence * sequence, kad_token * tokens, size_t capacity, int32_t * n) {
    return guarded([&] {
        current_only(sequence);
        need(tokens, "tokens");
        need(n, "n");
        hand_out(*sequence, tokens, capacity, *n);
    });
}

kad_status kad_sequence_step(kad_sequence * sequence, kad_token * tokens, size_t capacity, int32_t * n) {
    return guarded([&] {
        current_only(sequence);
        need(tokens, "tokens");
        need(n, "n");
        const size_t room = sequence->draft + 1;
        if (capacity < room) {
            throw Error(KAD_INVALID_ARGUMENT, "capacity " + std::to_string(capacity) +
                                                  " is too small; a step may say " + std::to_string(room) + " tokens");
        }
        try {
            if (sequence->said.empty() && !sequence->failure) step(*sequence->engine, { sequence });
        } catch (const Error & error) {
            if (sequence->said.empty()) throw;
            sequence->failure = error;
        }
        hand_out(*sequence, tokens, capacity, *n);
    });
}

// The role in whose vocabulary an event's ids are. Under implicit-reward, where nobody speaks alone, all are the same.
static kad_role speaker_of(const kad_engine & engine, const int32_t * sources, size_t i) {
    const bool base = engine.speaks(KAD_ROLE_BASE) && engine.options().rule.kind != KAD_RULE_ALIGNED;
    if (!sources) return base ? KAD_ROLE_BASE : KAD_ROLE_ALIGNED;
    const bool joint = rule_info(engine.options().rule.kind).reference != 0;
    if (sources[i] == KAD_SOURCE_BASE || (sources[i] == KAD_SOURCE_JOINT && joint)) return KAD_ROLE_BASE;
    if (sources[i] == KAD_SOURCE_ALIGNED) return KAD_ROLE_ALIGNED;
    throw Error(KAD_INVALID_ARGUMENT,
                "source " + std::to_string(sources[i]) + " at event " + std::to_string(i) +
                    (joint ? "; expected 0 (base), 1 (aligned) or 2 (joint)" : "; expected 0 (base) or 1 (aligned)"));
}

kad_status kad_sequence_score(kad_sequence * sequence, const int32_t * ids, const int32_t * counts,
                              const int32_t * sources, size_t n_events, kad_score * out) {
    return guarded([&] {
        current_only(sequence);
        if (n_events) need(ids, "ids");
        if (n_events) need(out, "out");
        kad_engine &       engine = *sequence->engine;
        std::vector<Given> events;
        for (size_t i = 0; i < n_events; ++i) {
            const int32_t n = counts ? counts[i] : 1;
            if (n < 1) {
                throw Error(KAD_INVALID_ARGUMENT, "counts has " + std::to_string(n) + " at event " + std::to_string(i) +
                                                      "; expected at least one id");
            }
            events.push_back({ speaker_of(engine, sources, i), { ids, ids + n } });
            ids += n;
        }
        engine.cancel = false;
        const CatchInterrupt    interrupt(engine.catch_sigint ? &engine.cancel : nullptr);
        const std::vector<Said> said = engine.generator().score_text(*sequence, events, !counts);
        for (size_t i = 0; i < n_events; ++i) {
            out[i] = { said[i].logprob, said[i].base_logprob, said[i].aligned_logprob, said[i].deferred_mass,
                       said[i].base_share };
        }
    });
}

int32_t kad_sequence_finish(const kad_sequence * sequence) {
    // A failure that is still to be reported comes before the end.
    return sequence && !sequence->failure ? sequence->finish : KAD_FINISH_NONE;
}

kad_status kad_sequence_length(const kad_sequence * sequence, size_t * length, size_t * settled) {
    return guarded([&] {
        need(sequence, "sequence");
        if (length) *length = sequence->length;
        if (settled) *settled = sequence->settled;
    });
}

kad_status kad_sequence_prompt_progress(const kad_sequence * sequence, size_t * done, size_t * total) {
    return guarded([&] {
        current_only(sequence);
        if (done) *done = sequence->engine->generator().prompt_done(*sequence);
        if (total) {
            *total = 0;
            for (const Side & side : sequence->sides) *total += side.active ? side.n_prompt : 0;
        }
    });
}

kad_status kad_sequence_rows(kad_sequence * sequence, float * base, float * aligned, float * reference, size_t n) {
    return guarded([&] {
        current_only(sequence);
        const size_t size = sequence->engine->events().size();
        if (n != size)
            throw Error(KAD_INVALID_ARGUMENT,
                        "n is " + std::to_string(n) + "; expected rows of " + std::to_string(size) + " events");
        sequence->engine->cancel = false;
        const CatchInterrupt interrupt(sequence->engine->catch_sigint ? &sequence->engine->cancel : nullptr);
        float * const        rows[ROLE_COUNT] = { base, aligned, reference };
        for (const kad_role role : ROLES) {
            if (rows[role]) sequence->engine->generator().event_row(*sequence, role, rows[role]);
        }
    });
}

kad_status kad_sequence_stats(const kad_sequence * sequence, kad_stats * out) {
    return guarded([&] {
        need(out, "out");
        current_only(sequence);
        read_stats(*sequence, *out);
    });
}

const char * kad_sequence_note(const kad_sequence * sequence) { return sequence ? sequence->note.c_str() : ""; }

kad_status kad_measure_passes(const kad_engine_params * params, int32_t role, kad_pass_info * out) {
    return guarded([&] {
        need(out, "out");
        const kad_engine_params given = completed(params, kad_engine_default_params(), "params");
        check_library();
        const PassInfo found = Engine::measure(engine_options(given), role_of(role));
        *out                 = { found.max_pass, found.type_k, found.type_v, found.tested };
    });
}

int32_t kad_cache_type(const char * name) { return name ? cache_type(name) : -1; }

const char * kad_cache_type_name(int32_t type) { return cache_type_name(type); }

} // extern "C"
