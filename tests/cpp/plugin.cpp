// plugin base.gguf aligned.gguf "a prompt" seed texts tokens: pi in llama.cpp's own sampling loop. One line of ids per text.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include <kad_llama.h>
#include <llama.h>

static llama_context * open_model(const char * path) {
    llama_model *        model  = llama_model_load_from_file(path, llama_model_default_params());
    llama_context_params params = llama_context_default_params();
    params.n_ctx                = 256;
    params.n_threads = params.n_threads_batch = 1;
    return model ? llama_init_from_model(model, params) : nullptr;
}

int main(int argc, char ** argv) {
    if (argc != 7) return std::fprintf(stderr, "usage: %s base aligned prompt seed texts tokens\n", argv[0]), 2;
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_context * base    = open_model(argv[1]);
    llama_context * aligned = open_model(argv[2]);
    if (!base || !aligned) return std::fprintf(stderr, "plugin: a model cannot be loaded\n"), 1;
    const llama_vocab *      vocab = llama_model_get_vocab(llama_get_model(base));
    const std::string        text  = argv[3];
    std::vector<llama_token> ids(text.size() + 8);
    ids.resize(size_t(llama_tokenize(vocab, text.data(), int(text.size()), ids.data(), int(ids.size()), true, false)));

    kad_sampler_params params = kad_sampler_default_params(); // rule dual
    params.base_model         = llama_get_model(base);
    params.aligned            = aligned;
    params.prompt             = ids.data();
    params.n_prompt           = ids.size();
    llama_sampler * kad       = nullptr;
    if (kad_sampler_init(&params, &kad) != KAD_OK) return std::fprintf(stderr, "plugin: %s\n", kad_last_error()), 1;
    llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
    llama_sampler_chain_add(chain, kad); // first; the chain owns it now
    llama_sampler_chain_add(chain, llama_sampler_init_dist(uint32_t(std::atoi(argv[4]))));

    for (int i = 0; i < std::atoi(argv[5]); ++i) {
        llama_memory_clear(llama_get_memory(base), true);
        llama_sampler_reset(kad); // and not the chain, whose dist would start again with its seed
        llama_decode(base, llama_batch_get_one(ids.data(), int(ids.size())));
        for (int n = 0; n < std::atoi(argv[6]); ++n) {
            llama_token token = llama_sampler_sample(chain, base, -1);
            std::printf("%d ", token);
            if (llama_vocab_is_eog(vocab, token)) break;
            llama_decode(base, llama_batch_get_one(&token, 1));
        }
        std::printf("\n");
    }
    if (kad_sampler_status(kad) != KAD_OK) return std::fprintf(stderr, "plugin: %s\n", kad_last_error()), 1;
    llama_sampler_free(chain);
    llama_free(aligned); // contexts after samplers
    llama_free(base);
    return 0;
}
