/*
 * kad_llama.h: a large base GGUF, aligned at inference time by a small aligned GGUF.
 *
 * This is the only public header, and its manual. At every position of a text two models give a distribution
 * over the next token: the large base model gives p, the small aligned model gives q. A rule chooses the set S of
 * tokens that the base keeps; everything else is handed to the aligned model. What is sampled is the mixture
 *
 *     pi(v) = p(v) [v in S] + alpha q(v),        alpha = 1 - p(S).
 *
 * The text is a function of the two models, the prompt, the settings and the seed. Plain, lazy and speculative runs
 * are three ways of computing the same text; the small model's drafts change the speed and nothing else.
 *
 * A whole program:
 *
 *     kad_engine_params ep = kad_engine_default_params();
 *     ep.base.path = "base.gguf";
 *     ep.aligned.path = "aligned.gguf";
 *     kad_engine * engine = NULL;
 *     if (kad_engine_open(&ep, &engine) != KAD_OK) { puts(kad_last_error()); return 1; }
 *     // token ids of the prompt for either model: kad_tokenize()
 *     kad_sequence_params sp = kad_sequence_default_params();
 *     kad_sequence * seq = NULL;
 *     kad_sequence_open(engine, &sp, base_ids, n_base, aligned_ids, n_aligned, &seq);
 *     kad_token tokens[64];
 *     int32_t n = 0;
 *     while (kad_sequence_finish(seq) == KAD_FINISH_NONE) {
 *         if (kad_sequence_step(seq, tokens, 64, &n) != KAD_OK) { puts(kad_last_error()); break; }
 *         for (int32_t i = 0; i < n; ++i) fwrite(tokens[i].bytes, 1, tokens[i].n_bytes, stdout);
 *     }
 *     kad_sequence_close(seq);
 *     kad_engine_close(engine);
 *
 * Conventions
 *   - Every function that can fail returns a kad_status. KAD_OK is 0. On any other value nothing was changed unless
 *     the function's own comment says so, outputs are left untouched, and kad_last_error() says what was wrong,
 *     naming the value and what was expected. No exception crosses this boundary and no call ends the process.
 *   - Parameter structs start with their own size. Fill them with the *_default_params() function, then change
 *     fields. A struct longer than this library knows is refused; a shorter one is completed with defaults. New fields
 *     come at their ends; the layout of nested structs and of results changes with the major version only.
 *   - Strings are UTF-8 and NUL-terminated unless a length stands beside them. A `const char *` that a function
 *     returns belongs to the library; its comment says how long it lives.
 *   - Buffers are the caller's. `size_t` counts elements of the array beside it.
 *   - *_close(NULL) does nothing.
 *   - An engine and its sequences may be used by one thread at a time; the caller serialises. Only
 *     kad_engine_cancel() may be called from another thread, at any time. Different engines are independent.
 *   - Probabilities are doubles in [0, 1]; log-probabilities are natural logarithms; times are seconds.
 *
 * Ranges: seeds are any 64-bit value; temperatures are finite and >= 0; thresholds: see kad_rule_info.
 */
#ifndef KAD_LLAMA_H
#define KAD_LLAMA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#    if defined(KAD_BUILD)
#        define KAD_API __declspec(dllexport)
#    else
#        define KAD_API __declspec(dllimport)
#    endif
#else
#    define KAD_API __attribute__((visibility("default")))
#endif

/* The Python binding is generated from what stands between the two cffi marks. */
/* cffi: begin */

/* ---- Results --------------------------------------------------------------------------------------------------- */

/* What a call answers. Numbers are never reused or changed. */
typedef enum kad_status {
    KAD_OK                  = 0,
    KAD_INVALID_ARGUMENT    = 1,  /* a value out of range, an unknown name, a NULL that may not be one */
    KAD_FILE_ERROR          = 2,  /* a file that is missing, unreadable, truncated or not a usable GGUF */
    KAD_MODEL_ERROR         = 3,  /* a sound GGUF that cannot play the role it was given (an encoder, say) */
    KAD_OUT_OF_MEMORY       = 4,  /* models and caches do not fit; the message has the figures */
    KAD_CONTEXT_TOO_SMALL   = 5,  /* the prompt is longer than the context; the message has both numbers */
    KAD_EVALUATION_FAILED   = 6,  /* llama.cpp could not evaluate a batch */
    KAD_NOT_A_NUMBER        = 7,  /* a model produced NaN or infinite logits, or no possible token */
    KAD_INTERRUPTED         = 8,  /* kad_engine_cancel() or Ctrl-C; what was said so far is kept */
    KAD_LIBRARY_MISMATCH    = 9,  /* the libllama loaded is not the one this library was built against */
    KAD_BAD_STATE           = 10, /* a call that does not fit: on a sequence that a later one superseded */
    KAD_INTERNAL_ERROR      = 11, /* a defect in this library; please report it */
} kad_status;

/* The message of the last call on this thread that did not answer KAD_OK; "" when there was none.
 * Lives until the next failing call on the same thread. */
KAD_API const char * kad_last_error(void);

/* ---- The library ----------------------------------------------------------------------------------------------- */

/* This library's version, "MAJOR.MINOR.PATCH". Static. */
KAD_API const char * kad_version(void);

/* What this library was built against, and what was loaded. llama.h passes structs by value and carries no version
 * macro, so a different libllama would corrupt the stack silently: versions are compared before anything is called. */
typedef struct kad_library_info {
    const char * built_llama_version;    /* e.g. "0.5.0" */
    const char * built_llama_commit;     /* short git hash, "" when the build did not know it */
    const char * loaded_llama_version;   /* of the libllama in this process; "" when it is too old to say */
    const char * loaded_llama_commit;    /* of the ggml in this process */
    const char * backends;               /* comma separated names of the ggml backends registered, e.g. "CPU,CUDA" */
    const char * system_info;            /* llama.cpp's own line about instruction sets */
} kad_library_info;

/* Fills *out with static strings. Always succeeds for a non-NULL out. */
KAD_API kad_status kad_library(kad_library_info * out);

/* KAD_OK, or KAD_LIBRARY_MISMATCH. kad_engine_open() calls it first. */
KAD_API kad_status kad_library_check(void);

/* 0 where llama.cpp's AMX code would end the process (GCC builds it wrongly, ggml-org/llama.cpp#26954): models are then loaded
 * with use_extra_bufts = 0 unless told otherwise, and a program that loads its own should do the same. Else 1. Tried once per
 * process, on AMX machines alone, in a child process. */
KAD_API int32_t kad_extra_buffers_work(void);

/* ---- Rules: which tokens does the base keep? -------------------------------------------------------------------- */

/* t is the threshold. Most rules choose S, what the base keeps. Under the token rules roles are exchanged: the aligned model
 * speaks first and keeps T, and pi(v) = q(v) [v in T] + (1 - q(T)) p(v). implicit-reward has no set. */
typedef enum kad_rule_kind {
    KAD_RULE_DUAL            = 0,  /* S = {v : p(v) >= t} */
    KAD_RULE_PRIMAL          = 1,  /* S = smallest set of most probable tokens with mass >= 1 - t */
    KAD_RULE_EXACT           = 2,  /* S = complement of the set of mass <= t with the largest sum of -p log p */
    KAD_RULE_NUDGING         = 3,  /* S = everything if max p >= t, else nothing */
    KAD_RULE_BET             = 4,  /* S = {v : p(v) >= max q - t} */
    KAD_RULE_CHOW            = 5,  /* S = nothing if max q >= 1 - t, else everything */
    KAD_RULE_DIFF            = 6,  /* S = nothing if max q >= max p - t, else everything */
    KAD_RULE_OPT             = 7,  /* S = nothing if max q >= max p - t TV(p, q), else everything */
    KAD_RULE_TOKEN_V1        = 8,  /* T = {v : q(v) >= max p - t} */
    KAD_RULE_TOKEN_V2        = 9,  /* T = {v : p(v) >= max p - t} */
    KAD_RULE_TOKEN_V3        = 10, /* T = {v : p(v) >= (1 - t) max p} */
    KAD_RULE_IMPLICIT_REWARD = 11, /* pi proportional to p (q / r)^t, r the reference model */
    KAD_RULE_BASE            = 12, /* S = everything: pi = p */
    KAD_RULE_ALIGNED         = 13, /* S = nothing: pi = q */
} kad_rule_kind;

/* The temperature value that means: decide the rule on the distributions as sampled (cooled, not truncated). */
#define KAD_RULE_TEMPERATURE_SAMPLING -1.0

/* One rule with its parameter. */
typedef struct kad_rule {
    int32_t kind;        /* a kad_rule_kind */
    double  threshold;   /* the rule's one parameter, within kad_rule_info's range; ignored by base and aligned */
    double  temperature; /* the rule compares probabilities at this temperature: > 0, default 1, or
                            KAD_RULE_TEMPERATURE_SAMPLING (then the sampling temperature must not be 0). 1 under
                            implicit-reward, which compares nothing */
} kad_rule;

/* A row of the table of rules. Static strings. */
typedef struct kad_rule_info {
    const char * name;      /* "dual" */
    const char * formula;   /* one line, ASCII */
    const char * source;    /* the paper */
    double       threshold; /* default */
    double       low, high; /* the closed range of the threshold; both 0 where there is none */
    int32_t      lazy;      /* 1 when most events need p alone, so that lazy runs are possible; at temperature 0
                               they are for base and nudging too */
    int32_t      exchanged; /* 1 for the token rules: the aligned model keeps, the base gets what is deferred */
    int32_t      reference; /* 1 when a reference model is needed (and one vocabulary for all) */
} kad_rule_info;

/* Number of rules; rule `kind` (0 .. count-1) into *out. KAD_INVALID_ARGUMENT outside. */
KAD_API int32_t    kad_rule_count(void);
KAD_API kad_status kad_rule_describe(int32_t kind, kad_rule_info * out);

/* The rule called `name` with its default threshold and temperature 1. KAD_INVALID_ARGUMENT names the known ones. */
KAD_API kad_status kad_rule_named(const char * name, kad_rule * out);

/* ---- Functions on rows of logits --------------------------------------------------------------------------------- *
 * Pure functions of their arguments: no model, no state. A row has n float logits over one vocabulary; -inf is
 * probability zero; NaN, +inf and a row of nothing but -inf are KAD_NOT_A_NUMBER.                                    */

/* pi of one position, as sampled at `temperature` (>= 0; 0 = each speaker's best token, ties to the lowest id)
 * under `rule`, into pi[n]. Sums to 1. reference_logits: NULL unless the rule is implicit-reward; then `temperature` applies
 * to log pi, and rows without a token that all three can say are KAD_NOT_A_NUMBER. */
KAD_API kad_status kad_mixture(const kad_rule * rule, const float * base_logits, const float * aligned_logits,
                               const float * reference_logits, size_t n, double temperature, double * pi);

/* d of one pair of rows into deferred[n]: 1 where the token is deferred to the other model, 0 where it is kept (in S; under the
 * token rules in T). Depends on the rule, not on how a speaker speaks; `temperature` matters only for
 * KAD_RULE_TEMPERATURE_SAMPLING. KAD_INVALID_ARGUMENT for implicit-reward, which keeps no set. */
KAD_API kad_status kad_deferral(const kad_rule * rule, const float * base_logits, const float * aligned_logits, size_t n,
                                double temperature, uint8_t * deferred);

/* A solution of KAD's knapsack: which tokens to defer so that sum of -p log p over them is largest, their mass <= b. */
typedef struct kad_knapsack_result {
    double  value;     /* sum of -p(v) log p(v) over the deferred tokens */
    double  bound;     /* no set within the budget has a larger value */
    double  gap;       /* (bound - value) / bound, 0 when bound is 0 */
    int64_t nodes;     /* relaxations solved */
    int32_t certified; /* 1 when gap <= 1e-9 */
} kad_knapsack_result;

/* S, the complement of the deferred tokens, into kept[n]: 1 where the base keeps the token.
 *
 * p[n]: probabilities in [0, 1] that sum to 1 within 1e-4, taken as they are. budget: b in [0, 1]; 1 defers everything.
 * exact = 1: branch and bound to a relative gap of 1e-9, or to a fixed limit of work, whose gap is then reported (flat
 * rows, small budgets). The deferred mass is <= b (1 + 1e-12) to within the rounding of sums (1e-15); tokens of
 * probability zero are deferred. exact = 0: the set of rule primal (its test: kept mass >= 1 - b, so rounding may put
 * the deferred mass above b), and the bound of the relaxation that may split a token.
 * The set is a function of p, b and exact alone. Keeps a workspace of some 40 n bytes per thread. */
KAD_API kad_status kad_knapsack(const double * p, size_t n, double budget, int32_t exact, uint8_t * kept,
                                kad_knapsack_result * out);

/* Where an outcome came from. Under implicit-reward nobody speaks alone: every outcome is KAD_SOURCE_JOINT. */
typedef enum kad_source { KAD_SOURCE_BASE = 0, KAD_SOURCE_ALIGNED = 1, KAD_SOURCE_JOINT = 2 } kad_source;

/* One draw. */
typedef struct kad_draw_result {
    int32_t token;         /* the outcome, 0 .. n-1 */
    int32_t proposal;      /* the aligned model's own draw x, or -1 when it was not needed */
    int32_t source;        /* a kad_source */
    double  deferred_mass; /* alpha = 1 - p'(S), the probability that the aligned model speaks; under the token rules q'(T);
                              NaN under implicit-reward */
    double  logprob;       /* log pi(token) */
    double  base_share;    /* P(base said it) = p'(token) [token in S] / pi(token); under the token rules
                              (1 - q'(T)) p'(token) / pi(token); NaN under implicit-reward */
} kad_draw_result;

/* The draw: (p, q, coins) -> outcome. Over coins that are independent and uniform on [0, 1), the outcome's law is pi.
 *
 * base, aligned: the raw rows, on which the rule decides. base_shaped, aligned_shaped: the rows as each speaker's
 * samplers left them (dropped tokens are -inf), or NULL for the raw ones; `temperature` is applied to them here.
 * reference: the raw row of the reference model for implicit-reward, else NULL; base_shaped is then log pi as shaped.
 * coins: c1 the aligned model's own draw, c2 acceptance, c3 the residual, c4 the source. */
KAD_API kad_status kad_draw(const kad_rule * rule, const float * base, const float * aligned, const float * reference,
                            const float * base_shaped, const float * aligned_shaped, size_t n, double temperature,
                            const double coins[4], kad_draw_result * out);

/* The coin of (seed, text number, event, purpose): a 53-bit uniform in [0, 1) from Philox4x64-10 (Salmon et al. 2011)
 * with key (seed, 0) and counter (event, text_number, purpose, 0). Purposes: 1-3 the draw, 4 the source, 5-7 the redraw
 * under a grammar, 8 XTC, 16+i the i-th further token of a character. The same on every platform. */
KAD_API double kad_coin(uint64_t seed, uint64_t text_number, uint64_t event, uint64_t purpose);

/* ---- Files ---------------------------------------------------------------------------------------------------------- */

/* What a GGUF file says of itself, read from its header alone. */
typedef struct kad_file_info {
    char     architecture[64];   /* general.architecture, e.g. "llama" */
    char     name[128];          /* general.name, "" when absent */
    char     quantisation[64];   /* llama.cpp's name of the file type, e.g. "Q4_K - Medium" */
    uint64_t file_bytes;         /* size on disk of this file */
    uint64_t tensor_bytes;       /* weights, all shards together where they lie beside it */
    uint64_t cache_bytes_per_token; /* KV cache of one token with F16 K and V: an estimate from the header; 0 for
                                       caches that do not grow with the text */
    uint32_t n_layer, n_ctx_train, n_vocab;
    int32_t  has_chat_template;  /* 0 or 1 */
    int32_t  n_shards;           /* 1 for an unsplit file */
} kad_file_info;

/* Reads the header of a GGUF without loading it, and refuses what cannot be used: KAD_FILE_ERROR for a path that is
 * missing, unreadable, a directory, not a GGUF, truncated (the message says how many bytes are missing), or a shard
 * other than the first; KAD_MODEL_ERROR for a model that cannot generate (an encoder). */
KAD_API kad_status kad_file_inspect(const char * path, kad_file_info * out);

/* ---- The engine: two models and their contexts ---------------------------------------------------------------------- */

/* The reference is the small model before alignment; only implicit-reward has one. It gets the aligned model's prompt. */
typedef enum kad_role { KAD_ROLE_BASE = 0, KAD_ROLE_ALIGNED = 1, KAD_ROLE_REFERENCE = 2 } kad_role;

/* Which model, and how llama.cpp is to run it. */
typedef struct kad_model_params {
    const char *         path;         /* a GGUF file; NULL = this model is not used (see kad_engine_open) */
    int32_t              n_gpu_layers; /* -1 = all layers, where the backend can offload */
    int32_t              vocab_only;   /* 1 = load the vocabulary and no weights: for tokenising only */
    size_t               n_fields;     /* llama.cpp's own fields, by name: any scalar field of llama_model_params or */
    const char * const * field_names;  /*   llama_context_params, e.g. "n_batch", "type_k" (a ggml_type), "load_mode", */
    const double *       field_values; /*   "flash_attn_type", "rope_freq_base". Those the engine sets itself
                                            (n_ctx, n_seq_max, embeddings ...) are refused by name. */
} kad_model_params;

/* Called while models load with the fraction done, 0 .. 1. Return 0 to give up (then KAD_INTERRUPTED). */
typedef int32_t (*kad_progress)(double fraction, void * user_data);

typedef struct kad_engine_params {
    size_t           size;              /* sizeof(kad_engine_params) */
    kad_model_params base;
    kad_model_params aligned;
    kad_rule         rule;
    int32_t          n_ctx;             /* tokens per model, prompt and answer; > 0; capped by both models' training length */
    int32_t          n_threads;         /* 0 = the physical cores */
    int32_t          reproducible;      /* 1 = the text does not depend on mode, draft length or what ran before.
                                           type_k and type_v are then chosen by measurement unless named in fields */
    int32_t          max_pass_base;     /* reproducible: most rows per pass; 0 = measure at load (takes seconds) */
    int32_t          max_pass_aligned;
    int32_t          verbose;           /* 1 = llama.cpp's log on stderr while loading; 0 = errors only, in messages */
    kad_progress     progress;          /* NULL = none */
    void *           progress_user_data;
    uint64_t         memory_limit;      /* bytes that models, caches and buffers may take; 0 = what the machine has free */
    kad_model_params reference;         /* for implicit-reward alone: the small model before alignment, of the same vocabulary */
    int32_t          max_pass_reference;
    int32_t          n_parallel;        /* texts that can be written at a time, 1 to 64; 0 = 8, or 1 in reproducible mode. They
                                           share the n_ctx tokens of the caches, and the last ones wait where those do not hold
                                           them all; in reproducible mode each has n_ctx tokens of its own, so the caches take
                                           n_parallel times the memory. Recurrent and hybrid models hold one text */
} kad_engine_params;

typedef struct kad_engine kad_engine;

/* Rule dual at 0.4, n_ctx 4096, everything else 0 or NULL; n_gpu_layers -1. */
KAD_API kad_engine_params kad_engine_default_params(void);

/* Loads both models and makes their contexts. On success *out is an engine that kad_engine_close() frees.
 *
 * Rule `base` needs no aligned model, rule `aligned` no base model: leave that path NULL. Without an aligned model,
 * rule base draws from p by the third coin: the same law as with one, another text.
 *
 * KAD_INVALID_ARGUMENT, KAD_FILE_ERROR, KAD_MODEL_ERROR, KAD_OUT_OF_MEMORY (checked before loading, with figures),
 * KAD_LIBRARY_MISMATCH, KAD_INTERRUPTED (the progress function said so). */
KAD_API kad_status kad_engine_open(const kad_engine_params * params, kad_engine ** out);

/* What kad_engine_open() refuses before it loads any weights: values, files, memory, and vocabularies where the rule needs one
 * for all. For hosts that do something costly first, such as kad_measure_passes(). The same results. */
KAD_API kad_status kad_engine_check(const kad_engine_params * params);

/* Frees the models, now or when the last of its sequences is closed. Only kad_sequence_close() may be called with these then. */
KAD_API void       kad_engine_close(kad_engine * engine);

/* Stops the evaluation that is running, from any thread: the call in progress answers KAD_INTERRUPTED as soon as
 * llama.cpp looks (on CPU within milliseconds; on other backends at the end of the pass). Nothing running: no effect; to
 * end a text between two steps, do not step again. */
KAD_API void kad_engine_cancel(kad_engine * engine);

/* While an engine computes on this thread, let SIGINT (Ctrl-C) act like kad_engine_cancel(), then run the handler that
 * was there before. on = 1 / 0; for hosts whose own handler only sets a flag, as Python's does. Default off. */
KAD_API void kad_engine_catch_sigint(kad_engine * engine, int32_t on);

/* What was loaded. Strings live as long as the engine. */
typedef struct kad_model_info {
    int32_t      loaded;              /* 0: this role has no model, all else is 0 or "" */
    const char * description;         /* llama.cpp's, e.g. "llama 1B Q8_0" */
    const char * architecture;
    uint64_t     weight_bytes;
    uint64_t     cache_bytes;         /* of the context as made */
    uint64_t     n_params;
    int32_t      n_vocab, n_ctx_train, n_ctx, n_batch, n_layer;
    int32_t      can_rewind;          /* 1 if the cache can drop a suffix; 0 (recurrent, hybrid): no speculation */
    int32_t      max_pass;            /* reproducible: most rows per pass with bit-equal results; else n_batch */
    const char * type_k;              /* "f16" */
    const char * type_v;
    int32_t      n_ubatch;            /* tokens per physical batch */
    int32_t      flash_attn;          /* 1 on, 0 off, -1 as llama.cpp chooses. Off, with n_ubatch 64, for a dense aligned or
                                         reference model on a CPU with an F16 or F32 cache, where passes of a few tokens are
                                         faster without it. Not in reproducible runs, nor where either field is given, layers have
                                         sliding windows, or scores would take more than 32 MiB */
    const char * devices;             /* where layers lie, e.g. "CPU" or "CUDA0" */
    const char * chat_template;       /* "" when the file has none */
    int32_t      bos, eos;            /* -1 when absent */
    int32_t      add_bos;             /* 1 if the model wants a BOS before its prompt */
    const char * bos_text;            /* spelling, "" when absent */
    const char * eos_text;
} kad_model_info;

KAD_API kad_status kad_engine_model(const kad_engine * engine, int32_t role, kad_model_info * out);

/* How the two vocabularies relate. */
typedef struct kad_vocab_info {
    int32_t equal;            /* 1: same bytes for every id up to the smaller size, same token types */
    double  overlap;          /* share of the aligned model's tokens whose bytes the base has too, 0 .. 1 */
    int32_t n_differing;      /* ids that differ, up to the smaller size */
    int32_t differing[5];     /* the first of them, -1 where there are fewer */
    int32_t n_events;         /* width of a row over events: ids, when equal; else the base's ids, each event at its lowest, then
                                 the byte strings that the aligned model alone can say */
} kad_vocab_info;

KAD_API kad_status kad_engine_vocab(const kad_engine * engine, kad_vocab_info * out);

/* Tokenises n_bytes of UTF-8. parse_special = 1 reads special-token spellings as the tokens they name; 0 leaves them
 * plain text. No BOS is added. *n_ids receives the number of ids; when it exceeds `capacity` nothing is written and the
 * answer is still KAD_OK: call again with room. A model loaded with vocab_only suffices. */
KAD_API kad_status kad_tokenize(const kad_engine * engine, int32_t role, const char * text, size_t n_bytes,
                                int32_t parse_special, int32_t * ids, size_t capacity, size_t * n_ids);

/* The same for text that goes on from a prompt, as scores and runs across vocabularies read it: no space is put before the
 * first word, special-token spellings are plain text, and invalid UTF-8 becomes U+FFFD. */
KAD_API kad_status kad_tokenize_continuation(const kad_engine * engine, int32_t role, const char * text, size_t n_bytes,
                                             int32_t * ids, size_t capacity, size_t * n_ids);

/* The bytes of one token as text (control tokens: their spelling). Lives as long as the engine. *type receives
 * 0 ordinary, 1 control or unknown (spelled in templates only), 2 end of generation, 3 without bytes. */
KAD_API kad_status kad_token_bytes(const kad_engine * engine, int32_t role, int32_t id, const char ** bytes,
                                   size_t * n_bytes, int32_t * type);

/* The ids of the tokens that kad_tokenize() reads from text only with parse_special = 1 (turn markers and the like), ascending.
 * Sizes as for kad_tokenize(). */
KAD_API kad_status kad_special_tokens(const kad_engine * engine, int32_t role, int32_t * ids, size_t capacity, size_t * n_ids);

/* ---- A sequence: one text being written ------------------------------------------------------------------------------ */

typedef enum kad_mode {
    KAD_MODE_SPECULATIVE = 0, /* the aligned model guesses ahead, the base scores all guesses in one pass */
    KAD_MODE_LAZY        = 1, /* one base pass per token; the aligned model only where it is needed */
    KAD_MODE_PLAIN       = 2, /* both models at every token: the reference */
    KAD_MODE_AUTO        = 3, /* at every round the one of these that promises most tokens a second, by what passes have taken
                                 and which guesses were right; guesses also come from an n-gram table of prompt and text */
} kad_mode;

typedef enum kad_finish {
    KAD_FINISH_NONE    = 0, /* still going */
    KAD_FINISH_EOG     = 1, /* a model ended the text */
    KAD_FINISH_STOP    = 2, /* a stop string was met; the text ends before it */
    KAD_FINISH_LENGTH  = 3, /* max_tokens were said */
    KAD_FINISH_CONTEXT = 4, /* a context is full */
} kad_finish;

typedef struct kad_sequence_params {
    size_t               size;        /* sizeof(kad_sequence_params) */
    uint64_t             seed;
    uint64_t             text_number; /* the turn of a chat, the index within n texts; 0 for a single call */
    double               temperature; /* >= 0; 0 = each speaker's best token */
    int32_t              top_k;       /* llama.cpp's samplers, per speaker, in llama.cpp's order; 0 = off */
    double               top_p;       /* (0, 1]; 1 = off */
    double               min_p;       /* [0, 1); 0 = off */
    int32_t              max_tokens;  /* >= 0 */
    int32_t              mode;        /* a kad_mode; falls back to lazy or plain where the models or the rule
                                         forbid it, see kad_sequence_note() */
    int32_t              draft;       /* speculative: guesses per pass, 1 .. kad_max_draft() */
    int32_t              logprobs;    /* 1 = fill logprob and base_share (a lazy run then is a plain one) */
    size_t               n_stops;
    const char * const * stops;       /* stop strings, NUL-terminated, not empty; copied */
    /* More of llama.cpp's samplers. Each model's own logits go through a chain of its own, in its own vocabulary, in
       llama.cpp's order: logit bias, penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature. Penalties and DRY look
       at the model's own tokens, prompt included. Under implicit-reward the base's chain acts on log pi. */
    double               typical_p;         /* (0, 1]; 1 = off */
    double               repeat_penalty;    /* > 0; 1 = off */
    double               frequency_penalty; /* 0 = off */
    double               presence_penalty;  /* 0 = off */
    int32_t              repeat_last_n;     /* tokens that the penalties look back; -1 = the whole context */
    double               dry_multiplier;    /* >= 0; 0 = off */
    double               dry_base;          /* >= 1 */
    int32_t              dry_allowed_length; /* >= 0 */
    int32_t              dry_penalty_last_n; /* tokens that DRY looks back; -1 = the whole context */
    size_t               n_dry_sequence_breakers;
    const char * const * dry_sequence_breakers; /* at most 40 bytes each; NULL = llama.cpp's: line break, colon, double quote,
                                                   asterisk */
    double               xtc_probability;   /* [0, 1]; 0 = off. Its coin is keyed by (seed, text number, event, speaker) */
    double               xtc_threshold;     /* [0, 1] */
    size_t               n_biases;
    const char * const * bias_texts;        /* the text of one token each, which every model must have (or the spelling of */
    const double *       biases;            /*   an end of generation, for all of them); what is added to its logit: finite,
                                                 or -inf to ban it */
    int32_t              mirostat;          /* 0; anything else is refused: mirostat draws for itself */
    /* What may be said: a GBNF grammar (NULL = none) and the name of its first rule (NULL = "root"). It restricts the text, not
       a speaker: sampled is pi restricted to the tokens that may come next. Where that has no mass (usual at temperature 0)
       both models choose again among them. A text that ends by itself (KAD_FINISH_EOG) is a sentence of the grammar. Across
       vocabularies a grammar may not name tokens. */
    const char *         grammar;
    const char *         grammar_root;
    int32_t              ngram;       /* KAD_MODE_AUTO: 1 = guesses may come from the n-gram table, 0 = from the aligned model alone */
} kad_sequence_params;

typedef struct kad_sequence kad_sequence;

/* Temperature 1, samplers off, 256 tokens, KAD_MODE_AUTO (KAD_MODE_SPECULATIVE: 3 guesses), seed 0. */
KAD_API kad_sequence_params kad_sequence_default_params(void);

/* The longest draft that this engine can take: one less than the largest batch it evaluates with every row's logits. */
KAD_API int32_t kad_max_draft(const kad_engine * engine);

/* How many sequences of this engine can be open at a time; see kad_engine_params.n_parallel. */
KAD_API int32_t kad_max_parallel(const kad_engine * engine);

/* Starts a text after the given prompts (token ids, one list per model that is loaded; with equal vocabularies usually
 * the same list). Ids are copied. Evaluates nothing yet. Each open sequence has a place in the caches, kad_max_parallel() of
 * them; with none free, opening the next one supersedes the one that was opened first, whose later steps answer
 * KAD_BAD_STATE. What a prompt shares with what the caches hold is not evaluated again.
 *
 * KAD_INVALID_ARGUMENT; KAD_CONTEXT_TOO_SMALL when a prompt is longer than the context (both numbers in the message). One
 * that fills it exactly is evaluated, and the text ends with KAD_FINISH_CONTEXT before its first token. */
KAD_API kad_status kad_sequence_open(kad_engine * engine, const kad_sequence_params * params, const int32_t * base_ids,
                                     size_t n_base, const int32_t * aligned_ids, size_t n_aligned, kad_sequence ** out);
KAD_API void       kad_sequence_close(kad_sequence * sequence);
KAD_API void       kad_sequence_release(kad_sequence ** sequence); /* closes it, if there is one, and makes it NULL */

/* One event of the text. */
typedef struct kad_token {
    int32_t      id;            /* in the vocabulary of `source`; of a character made of several tokens, the first. */
    int32_t      source;        /* a kad_source: who said it */
    const char * bytes;         /* lives until the sequence is closed or stepped again */
    size_t       n_bytes;       /* 0 for end of generation, which is never handed out as a token */
    double       logprob;       /* log pi(event), before a grammar; NaN unless logprobs was asked for */
    double       base_share;    /* P(base said it); NaN unless logprobs was asked for, and under implicit-reward */
    double       deferred_mass; /* alpha at this position; NaN under implicit-reward */
    int32_t      guess;         /* 0 not guessed, 1 guessed right, 2 corrected */
    double       base_logprob;  /* log p'(event) and log q'(event), as the models spoke; NaN unless logprobs was asked for */
    double       aligned_logprob;
    const int32_t * ids;        /* all its ids in the vocabulary of `source`; lives as bytes do */
    size_t       n_ids;         /* 1, or as many as the character took */
} kad_token;

/* Does the next piece of work: a block of the prompt, or one round (draft, one base pass, draw, keep or correct).
 * Writes the events said, at most `capacity` (>= kad_max_draft() + 1), and their number to *n, which is 0 while the
 * prompt is evaluated or the text has ended. After KAD_INTERRUPTED or another failure the text so far stands, and stepping may go on. */
KAD_API kad_status kad_sequence_step(kad_sequence * sequence, kad_token * tokens, size_t capacity, int32_t * n);

/* The same piece of work for n open sequences of one engine at once: they draft in shared passes, and their guesses are scored
 * in shared passes. A sequence that has finished, or whose last tokens were not taken yet, is passed over. kad_sequence_take()
 * then gives what each one said, `capacity` as above, or what went wrong in that one. Here are answered the failures that
 * stopped them all (KAD_INTERRUPTED, KAD_EVALUATION_FAILED); KAD_INVALID_ARGUMENT for sequences of different engines or one
 * named twice. With reproducible = 1 each text is what it would be alone. */
KAD_API kad_status kad_step(kad_sequence * const * sequences, size_t n);
KAD_API kad_status kad_sequence_take(kad_sequence * sequence, kad_token * tokens, size_t capacity, int32_t * n);

KAD_API int32_t kad_sequence_finish(const kad_sequence * sequence); /* a kad_finish */

/* Bytes of the text: `length` without the stop string that ended it; `settled` <= length is what no stop string can
 * still take away. */
KAD_API kad_status kad_sequence_length(const kad_sequence * sequence, size_t * length, size_t * settled);

/* Prompt tokens evaluated so far and in all, both models together; equal once generation has begun. */
KAD_API kad_status kad_sequence_prompt_progress(const kad_sequence * sequence, size_t * done, size_t * total);

/* The rows at the next position, evaluated if need be, as the rule sees them (forbidden tokens -inf, end of generation
 * folded, events when vocabularies differ): n = kad_vocab_info.n_events floats each. Any may be NULL. */
KAD_API kad_status kad_sequence_rows(kad_sequence * sequence, float * base, float * aligned, float * reference, size_t n);

/* What pi says of an event of a given text. */
typedef struct kad_score {
    double logprob;         /* log pi(event); -inf for what cannot be said there */
    double base_logprob;    /* log p'(event) and log q'(event); NaN for a model that does not run */
    double aligned_logprob;
    double deferred_mass;   /* alpha at this position; NaN under implicit-reward, and for a further token of a character */
    double base_share;      /* P(base said it); NaN under implicit-reward */
} kad_score;

/* Scores a given text after the prompt of a sequence that was just opened: the numbers that a run with logprobs would give
 * with these events, before a grammar, under the samplers and the temperature of its params. Nothing is drawn. Rows are made
 * many to a pass, and each model evaluates each token once. Afterwards the sequence is ended; kad_sequence_stats() tells
 * what it took.
 *
 * ids: the events' ids one after the other. sources: of each event the kad_source in whose vocabulary its ids are; NULL = all
 * KAD_SOURCE_BASE (KAD_SOURCE_ALIGNED where no base runs). counts: ids per event, as kad_token.n_ids gave them; more than
 * one only where vocabularies differ, for a character made of several tokens: they add up to one score. With NULL every id
 * has a score of its own: the first token of such a character that of the event, a further one log p of the model that began
 * it (there the other model's log-probability and deferred_mass are NaN). out: n_events scores.
 *
 * An end of generation is scored as the one event that all of them are. Control tokens and tokens without bytes get -inf.
 * Across vocabularies neither adds to the text.
 *
 * KAD_INVALID_ARGUMENT for ids out of range, counts that do not make events, or a grammar. KAD_CONTEXT_TOO_SMALL when prompt
 * and text exceed a context, in the models' own tokens (both numbers in the message). KAD_BAD_STATE after a step. These
 * before anything is evaluated. After KAD_INTERRUPTED or another failure `out` is untouched, the sequence ended, and the
 * engine usable. */
KAD_API kad_status kad_sequence_score(kad_sequence * sequence, const int32_t * ids, const int32_t * counts,
                                      const int32_t * sources, size_t n_events, kad_score * out);

typedef struct kad_stats {
    int32_t mode;                  /* the kad_mode that ran */
    int32_t prompt_tokens;         /* of the base's prompt (the aligned model's when there is no base) */
    int32_t prompt_tokens_aligned;
    int32_t prompt_cached;         /* of the base's prompt, not evaluated again */
    int32_t tokens;                /* events said, end of generation not counted */
    int32_t base_passes;           /* base evaluations after the prompt in which this text took part */
    int32_t aligned_passes;
    int32_t drafted;               /* guesses that an outcome was compared with */
    int32_t accepted;              /* of them right */
    int32_t aligned_tokens;        /* events said by the aligned model */
    double  deferred_mass;         /* mean alpha over the events; NaN under implicit-reward */
    double  prompt_s;              /* until both prompts were evaluated */
    double  generate_s;            /* after that, inside kad_sequence_step or kad_step, whoever else took part */
    double  base_eval_s;           /* of generate_s: in llama_decode + llama_synchronize of the base */
    double  aligned_eval_s;
    int32_t reference_passes;
    double  reference_eval_s;
    /* Further parts of generate_s, of this text alone. Where texts run together generate_s has those of the others too. */
    double  read_s;                /* getting rows ready: copies, events from ids, samplers, normalisers; guesses' too */
    double  draw_s;                /* who speaks, and the draws, with what a joint row or a grammar's refusal asks for */
    double  text_s;                /* text into the tokens of both models, where vocabularies differ. Both 0 for scores */
} kad_stats;

/* How the run went so far. KAD_BAD_STATE once a later sequence superseded this one: read it before. */
KAD_API kad_status kad_sequence_stats(const kad_sequence * sequence, kad_stats * out);

/* Why the mode that ran is not the one asked for; "" when it is. Lives as long as the sequence. */
KAD_API const char * kad_sequence_note(const kad_sequence * sequence);

/* ---- In somebody else's llama.cpp program ----------------------------------------------------------------------------- *
 * A llama_sampler that turns the base's logits into log pi, for the sampler chain of a program that runs the base itself.
 * The program also loads the aligned model and makes a context for it; the sampler keeps one sequence of that context in
 * step.
 *
 *     kad_sampler_params sp = kad_sampler_default_params();
 *     sp.base_model = base_model;                    // so that the vocabularies are compared now
 *     sp.aligned    = aligned_context;
 *     sp.prompt     = ids; sp.n_prompt = n;          // what the base's context has evaluated
 *     struct llama_sampler * kad = NULL;
 *     if (kad_sampler_init(&sp, &kad) != KAD_OK) { puts(kad_last_error()); return 1; }
 *     llama_sampler_chain_add(chain, kad);           // first; the chain owns it now
 *     llama_sampler_chain_add(chain, llama_sampler_init_dist(seed));
 *     ... llama_sampler_sample(chain, base_context, -1), llama_decode() of what it gave, until llama_vocab_is_eog() ...
 *     if (kad_sampler_status(kad) != KAD_OK) puts(kad_last_error());
 *
 * Both models need one vocabulary (a padded tail aside). Neither model's logits are shaped before the mixture: samplers that
 * follow act on pi. llama.cpp's typical sampler is undefined where tokens are impossible, as many are here: leave it off. */

struct llama_sampler; /* llama.cpp's; this header needs none of llama.h */
struct llama_model;
struct llama_context;

typedef struct kad_sampler_params {
    size_t                     size;             /* sizeof(kad_sampler_params) */
    kad_rule                   rule;             /* its temperature a number: that of the chain is not known here */
    const struct llama_model * base_model;       /* NULL = unknown: then only sizes are compared, at the first row, and
                                                    the text's end stands at the aligned model's end-of-sequence token */
    struct llama_context *     aligned;          /* must outlive the sampler and its clones, as must the reference */
    int32_t                    aligned_seq_id;   /* an empty sequence of that context, the sampler's until it is freed */
    struct llama_context *     reference;        /* rule implicit-reward: of the small model before alignment; else NULL */
    int32_t                    reference_seq_id;
    const int32_t *            prompt;           /* token ids, copied; evaluated in blocks of the context's n_batch */
    size_t                     n_prompt;         /* 0 = none yet, for kad_sampler_row() */
} kad_sampler_params;

/* Rule dual at 0.4, sequence 0, everything else 0 or NULL. */
KAD_API kad_sampler_params kad_sampler_default_params(void);

/* Makes the sampler and evaluates the prompt. Free it with llama_sampler_free(), or with the chain that owns it.
 *
 *   apply   Replaces every logit by log pi, -inf for what cannot be said: control tokens, tokens without bytes, a padded
 *           tail, and all end-of-generation ids of either model but one of the base's (its end-of-sequence token where it
 *           has one), which stands for them all. Needs the whole vocabulary in any order, so it comes first in the chain.
 *           May be called again without an accept: nothing is evaluated then.
 *   accept  Remembers the token. It is evaluated at the next apply: the last token of a text never is, and several
 *           accepted at once are one pass. The prompt was given here; do not accept it again.
 *   reset   Back to the prompt, and forgets an error. The common prefix stays in the cache; a cache that cannot drop a
 *           suffix (recurrent, hybrid, a sliding window that has moved on) is evaluated again from the start.
 *   clone   Takes a free sequence of the aligned context (an empty one below its n_seq_max; make it with n_seq_max > 1) and
 *           one of the reference's, and copies the cells (a recurrent or hybrid cache is evaluated again). With none free
 *           the clone has failed from the start, with KAD_BAD_STATE, and reset does not mend it.
 *   free    Gives the sequences back, empty.
 *
 * These cannot answer errors: kad_sampler_status() does. After an error apply leaves only end of generation possible, so
 * that the host's loop ends: all other logits are lowered by 1e6, which is probability 0 at any temperature below 1000 (and
 * not -inf, so that a grammar which forbids the end here can go on until it does not).
 *
 * One thread at a time per context. Between calls the context may be used for other sequences.
 *
 * KAD_INVALID_ARGUMENT: vocabularies that differ (the message has the first five ids), a sequence in use, a missing or
 * needless reference, rule temperature "sampling". KAD_MODEL_ERROR, KAD_CONTEXT_TOO_SMALL, KAD_EVALUATION_FAILED,
 * KAD_INTERRUPTED (the context's own abort callback), KAD_LIBRARY_MISMATCH. */
KAD_API kad_status kad_sampler_init(const kad_sampler_params * params, struct llama_sampler ** out);

/* KAD_OK, or what apply, accept, clone or reset met first since the last reset, with its message in kad_last_error().
 * KAD_INVALID_ARGUMENT for a sampler of another kind, the chain itself included. */
KAD_API kad_status kad_sampler_status(const struct llama_sampler * sampler);

/* The id at which end of generation stands, into *id; -1 when neither vocabulary has one. */
KAD_API kad_status kad_sampler_end(const struct llama_sampler * sampler, int32_t * id);

/* For hosts that hand over a row of logits instead of sampling through a chain: brings the aligned (and reference) sequence
 * to exactly `ids`, the tokens that the base evaluated (what is common stays, the rest is rewound, what is missing
 * evaluated), and replaces the base's n_vocab logits at the next position by log pi. On an error logits are left as they
 * are, and the next call starts anew. */
KAD_API kad_status kad_sampler_row(struct llama_sampler * sampler, const int32_t * ids, size_t n_ids, float * logits,
                                   size_t n_vocab);

/* ---- Reproducible passes ------------------------------------------------------------------------------------------------ */

/* Up to how many rows per pass a model gives bit-equal logits, and with which cache types. */
typedef struct kad_pass_info {
    int32_t max_pass;   /* 1 = rows evaluated together never equal rows evaluated alone */
    int32_t type_k;     /* ggml_type of the K cache to use */
    int32_t type_v;
    int32_t tested;     /* the largest pass that was tried */
} kad_pass_info;

/* Loads the model of `role` alone and measures (seconds): under, across and over 512 cells of cache, at every pass size.
 * kad_engine_open does this itself in reproducible mode when max_pass is 0; hosts that keep the answer on disk call it.
 * params->progress hears the fraction done of loading, then of measuring, and may give up. */
KAD_API kad_status kad_measure_passes(const kad_engine_params * params, int32_t role, kad_pass_info * out);

/* The ggml_type called `name` ("f16", "q8_0"); -1 when there is none that a cache can have. */
KAD_API int32_t      kad_cache_type(const char * name);
KAD_API const char * kad_cache_type_name(int32_t type); /* "" when there is none */

/* cffi: end */

#ifdef __cplusplus
}
#endif

#endif /* KAD_LLAMA_H */
