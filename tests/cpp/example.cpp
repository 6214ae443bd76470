// example base.gguf aligned.gguf "a prompt": two models in, one text out, through kad_llama.h alone.
// The prompt goes to both models as it stands, without chat templates.
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <kad_llama.h>

using Engine   = std::unique_ptr<kad_engine, decltype(&kad_engine_close)>;
using Sequence = std::unique_ptr<kad_sequence, decltype(&kad_sequence_close)>;

static int fail(const char * what) {
    std::fprintf(stderr, "example: %s: %s\n", what, kad_last_error());
    return 1;
}

// The ids of `text` in one model's vocabulary, after that model's BOS where it wants one. Empty when it failed.
static std::vector<int32_t> tokenize(const kad_engine * engine, kad_role role, const std::string & text) {
    kad_model_info model{};
    size_t         n = 0;
    if (kad_engine_model(engine, role, &model) != KAD_OK) return {};
    if (kad_tokenize(engine, role, text.data(), text.size(), 0, nullptr, 0, &n) != KAD_OK) return {};
    std::vector<int32_t> ids(n);
    if (kad_tokenize(engine, role, text.data(), text.size(), 0, ids.data(), ids.size(), &n) != KAD_OK) return {};
    if (model.add_bos && model.bos >= 0) ids.insert(ids.begin(), model.bos);
    return ids;
}

int main(int argc, char ** argv) {
    if (argc != 4 || std::strlen(argv[3]) == 0) {
        std::fprintf(stderr, "usage: %s base.gguf aligned.gguf \"a prompt\"   (kad_llama %s)\n", argv[0],
                     kad_version());
        return 2;
    }
    kad_engine_params params = kad_engine_default_params();
    params.base.path         = argv[1];
    params.aligned.path      = argv[2];
    params.n_ctx             = 512;
    kad_engine * opened      = nullptr;
    if (kad_engine_open(&params, &opened) != KAD_OK) return fail("opening the models");
    const Engine engine(opened, kad_engine_close);

    const std::vector<int32_t> base    = tokenize(engine.get(), KAD_ROLE_BASE, argv[3]);
    const std::vector<int32_t> aligned = tokenize(engine.get(), KAD_ROLE_ALIGNED, argv[3]);
    if (base.empty() || aligned.empty()) return fail("reading the prompt");

    kad_sequence_params settings = kad_sequence_default_params();
    settings.seed                = 7;
    settings.max_tokens          = 32;
    kad_sequence * started       = nullptr;
    if (kad_sequence_open(engine.get(), &settings, base.data(), base.size(), aligned.data(), aligned.size(),
                          &started) != KAD_OK) {
        return fail("starting the text");
    }
    const Sequence sequence(started, kad_sequence_close);

    std::vector<kad_token> tokens(static_cast<size_t>(kad_max_draft(engine.get())) + 1);
    while (kad_sequence_finish(sequence.get()) == KAD_FINISH_NONE) {
        int32_t n = 0;
        if (kad_sequence_step(sequence.get(), tokens.data(), tokens.size(), &n) != KAD_OK) return fail("writing");
        for (int32_t i = 0; i < n; ++i) std::fwrite(tokens[i].bytes, 1, tokens[i].n_bytes, stdout);
        std::fflush(stdout);
    }
    std::fputc('\n', stdout);

    kad_stats stats{};
    if (kad_sequence_stats(sequence.get(), &stats) != KAD_OK) return fail("counting");
    std::fprintf(stderr, "%d tokens, %d base passes, %d of %d guesses right\n", static_cast<int>(stats.tokens),
                 static_cast<int>(stats.base_passes), static_cast<int>(stats.accepted),
                 static_cast<int>(stats.drafted));
    return 0;
}
