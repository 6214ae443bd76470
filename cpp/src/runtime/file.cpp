#include "file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "gguf.h"
#include "llama.h"
#include "llama_log.h"

namespace kad {

namespace {

struct FreeGguf {
    void operator()(gguf_context * gguf) const { gguf_free(gguf); }
};
using Gguf = std::unique_ptr<gguf_context, FreeGguf>;

[[noreturn]] void refuse(kad_status status, const std::string & path, const std::string & why) {
    throw Error(status, "\"" + path + "\" " + why);
}

uint64_t regular_file_size(const std::string & path) {
    struct stat info;
    if (stat(path.c_str(), &info) != 0) {
        refuse(KAD_FILE_ERROR, path,
               std::string("cannot be opened: ") + std::strerror(errno) + "; expected a GGUF file");
    }
    if ((info.st_mode & S_IFMT) == S_IFDIR) refuse(KAD_FILE_ERROR, path, "is a directory; expected a GGUF file");
    if ((info.st_mode & S_IFMT) != S_IFREG) refuse(KAD_FILE_ERROR, path, "is not a regular file; expected a GGUF file");
    std::FILE * file = std::fopen(path.c_str(), "rb");
    if (!file) refuse(KAD_FILE_ERROR, path, std::string("cannot be read: ") + std::strerror(errno));
    char       magic[4] = {};
    const bool gguf     = std::fread(magic, 1, 4, file) == 4 && std::memcmp(magic, "GGUF", 4) == 0;
    std::fclose(file);
    if (!gguf) {
        refuse(KAD_FILE_ERROR, path,
               "is not a GGUF file (" + std::to_string(info.st_size) +
                   " bytes that do not begin with \"GGUF\"); convert the model with llama.cpp's convert_hf_to_gguf.py");
    }
    return uint64_t(info.st_size);
}

std::string text_of(const gguf_context * gguf, const std::string & key) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    return id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING ? gguf_get_val_str(gguf, id) : "";
}

// An integer key; arrays give the element at i. `fallback` when absent.
uint64_t number_of(const gguf_context * gguf, const std::string & key, uint64_t fallback, size_t i = 0) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (id < 0) return fallback;
    gguf_type type = gguf_get_kv_type(gguf, id);
    if (type == GGUF_TYPE_ARRAY) {
        type = gguf_get_arr_type(gguf, id);
        if (i >= gguf_get_arr_n(gguf, id)) return fallback;
        if (type == GGUF_TYPE_UINT32 || type == GGUF_TYPE_INT32)
            return static_cast<const uint32_t *>(gguf_get_arr_data(gguf, id))[i];
        return fallback;
    }
    switch (type) {
        case GGUF_TYPE_UINT8: return gguf_get_val_u8(gguf, id);
        case GGUF_TYPE_UINT16: return gguf_get_val_u16(gguf, id);
        case GGUF_TYPE_UINT32: return gguf_get_val_u32(gguf, id);
        case GGUF_TYPE_INT32: return uint64_t(std::max(0, gguf_get_val_i32(gguf, id)));
        case GGUF_TYPE_UINT64: return gguf_get_val_u64(gguf, id);
        case GGUF_TYPE_BOOL: return gguf_get_val_bool(gguf, id) ? 1 : 0;
        default: return fallback;
    }
}

void copy_text(char * out, size_t size, const std::string & text) { std::snprintf(out, size, "%s", text.c_str()); }

// K and V of one token in F16. Layers without attention heads (recurrent ones) take nothing.
uint64_t cache_bytes(const gguf_context * gguf, const std::string & architecture, uint64_t n_layer) {
    const uint64_t n_head = number_of(gguf, architecture + ".attention.head_count", 0);
    const uint64_t n_embd = number_of(gguf, architecture + ".embedding_length", 0);
    uint64_t       total  = 0;
    for (uint64_t layer = 0; layer < n_layer; ++layer) {
        const uint64_t heads = number_of(gguf, architecture + ".attention.head_count_kv",
                                         number_of(gguf, architecture + ".attention.head_count", 0, layer), layer);
        const uint64_t width = n_head ? n_embd / n_head : 0;
        total += heads *
                 (number_of(gguf, architecture + ".attention.key_length", width) +
                  number_of(gguf, architecture + ".attention.value_length", width)) *
                 2;
    }
    return total;
}

// What llama.cpp asserts while it evaluates, on threads where nothing can be caught; and a number of layers to count to.
void check_numbers(const gguf_context * gguf, const std::string & path, const std::string & architecture) {
    const uint64_t layers = number_of(gguf, architecture + ".block_count", 1);
    if (layers == 0 || layers > 10000) {
        refuse(KAD_FILE_ERROR, path,
               "is damaged: it says it has " + std::to_string(layers) + " layers (" + architecture +
                   ".block_count); fetch it again");
    }
    for (const char * name : { ".attention.layer_norm_rms_epsilon", ".attention.layer_norm_epsilon" }) {
        const int64_t id = gguf_find_key(gguf, (architecture + name).c_str());
        if (id < 0 || gguf_get_kv_type(gguf, id) != GGUF_TYPE_FLOAT32) continue;
        const float value = gguf_get_val_f32(gguf, id);
        if (!(value >= 0 && std::isfinite(value))) {
            refuse(KAD_FILE_ERROR, path,
                   "is damaged: " + architecture + name + " is " + shown(value) +
                       "; expected a small positive "
                       "number; fetch it again");
        }
    }
}

} // namespace

kad_file_info inspect_file(const std::string & path) {
    kad_file_info info = {};
    info.file_bytes    = regular_file_size(path);

    LlamaLog               log(false);
    const gguf_init_params params = { /*no_alloc*/ true, /*ctx*/ nullptr };
    const Gguf             gguf(gguf_init_from_file(path.c_str(), params));
    if (!gguf)
        refuse(KAD_FILE_ERROR, path,
               "is a damaged GGUF file: its header cannot be read" + log.reason() + "; fetch it again");

    uint64_t end = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf.get()); ++i) {
        const uint64_t size = gguf_get_tensor_size(gguf.get(), i);
        info.tensor_bytes += size;
        end = std::max<uint64_t>(end, gguf_get_data_offset(gguf.get()) + gguf_get_tensor_offset(gguf.get(), i) + size);
    }
    if (end > info.file_bytes) {
        refuse(KAD_FILE_ERROR, path,
               "is truncated: " + std::to_string(info.file_bytes) + " bytes of " + std::to_string(end) + ", " +
                   std::to_string(end - info.file_bytes) + " are missing; fetch it again");
    }

    const std::string architecture = text_of(gguf.get(), "general.architecture");
    if (architecture.empty())
        refuse(KAD_FILE_ERROR, path, "names no model architecture (general.architecture); expected a language model");
    info.n_shards = int32_t(number_of(gguf.get(), "split.count", 1));
    if (info.n_shards > 1) {
        const uint64_t shard = number_of(gguf.get(), "split.no", 0);
        if (shard != 0) {
            refuse(KAD_FILE_ERROR, path,
                   "is shard " + std::to_string(shard + 1) + " of " + std::to_string(info.n_shards) +
                       " of a split model; give the first one (\"...-00001-of-...\")");
        }
        char prefix[4096], shard_path[4096];
        if (!llama_split_prefix(prefix, sizeof prefix, path.c_str(), 0, info.n_shards)) {
            refuse(KAD_FILE_ERROR, path,
                   "is the first of " + std::to_string(info.n_shards) +
                       " shards but is not named like one; expected \"NAME-00001-of-0000N.gguf\"");
        }
        for (int32_t i = 1; i < info.n_shards; ++i) {
            llama_split_path(shard_path, sizeof shard_path, prefix, i, info.n_shards);
            const uint64_t size = regular_file_size(shard_path);
            info.file_bytes += size;
            info.tensor_bytes += size;
        }
    }
    const bool causal = number_of(gguf.get(), architecture + ".attention.causal", 1) != 0;
    if (!causal) {
        refuse(KAD_MODEL_ERROR, path,
               "is an encoder (" + architecture +
                   ", attention.causal is false) and cannot write text; give a causal "
                   "language model");
    }
    check_numbers(gguf.get(), path, architecture);
    copy_text(info.architecture, sizeof info.architecture, architecture);
    copy_text(info.name, sizeof info.name, text_of(gguf.get(), "general.name"));
    copy_text(info.quantisation, sizeof info.quantisation,
              gguf_find_key(gguf.get(), "general.file_type") < 0
                  ? "unknown"
                  : llama_ftype_name(llama_ftype(number_of(gguf.get(), "general.file_type", 0))));
    info.n_layer               = uint32_t(number_of(gguf.get(), architecture + ".block_count", 0));
    info.n_ctx_train           = uint32_t(number_of(gguf.get(), architecture + ".context_length", 0));
    const int64_t list         = gguf_find_key(gguf.get(), "tokenizer.ggml.tokens");
    info.n_vocab               = list >= 0 && gguf_get_kv_type(gguf.get(), list) == GGUF_TYPE_ARRAY
                                     ? uint32_t(gguf_get_arr_n(gguf.get(), list))
                                     : 0;
    info.has_chat_template     = !text_of(gguf.get(), "tokenizer.chat_template").empty();
    info.cache_bytes_per_token = cache_bytes(gguf.get(), architecture, info.n_layer);
    if (info.n_vocab == 0)
        refuse(KAD_MODEL_ERROR, path, "has no vocabulary (tokenizer.ggml.tokens) and cannot write text");
    if (info.tensor_bytes == 0)
        refuse(KAD_MODEL_ERROR, path, "has no weights: a vocabulary or adapter only; give the model's own GGUF");
    return info;
}

// MemAvailable, and what a control group leaves of it; elsewhere what ggml says of the CPU.
static uint64_t available_main_memory() {
    uint64_t      available = 0;
    std::ifstream meminfo("/proc/meminfo");
    for (std::string line; std::getline(meminfo, line);) {
        unsigned long long kibibytes;
        if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kibibytes) == 1) available = uint64_t(kibibytes) << 10;
    }
    // What a group has in its page cache is given back when it is needed: model files read before, above all.
    uint64_t      limit = 0, used = 0, cached = 0;
    std::ifstream statistics("/sys/fs/cgroup/memory.stat");
    for (std::string line; std::getline(statistics, line);) {
        unsigned long long bytes;
        if (std::sscanf(line.c_str(), "inactive_file %llu", &bytes) == 1) cached += bytes;
        if (std::sscanf(line.c_str(), "active_file %llu", &bytes) == 1) cached += bytes;
    }
    if (std::ifstream("/sys/fs/cgroup/memory.max") >> limit && std::ifstream("/sys/fs/cgroup/memory.current") >> used &&
        available) {
        used -= std::min(used, cached);
        available = std::min(available, limit > used ? limit - used : 0);
    }
    if (available) return available;
    size_t free = 0, total = 0;
    if (ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU))
        ggml_backend_dev_memory(cpu, &free, &total);
    return free;
}

uint64_t available_memory(bool offload) {
    uint64_t bytes = available_main_memory();
    for (size_t i = 0; offload && i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_GPU)
            continue; // integrated ones share main memory
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(device, &free, &total);
        bytes += free;
    }
    return bytes;
}

std::string gibibytes(uint64_t bytes) {
    char text[32];
    // Small figures in small units: "0.00 GiB of 0.00 GiB" would say nothing.
    if (bytes < (10u << 20)) {
        std::snprintf(text, sizeof text, "%.2f KiB", double(bytes) / 1024);
    } else {
        std::snprintf(text, sizeof text, "%.2f GiB", double(bytes) / double(1u << 30));
    }
    return text;
}

} // namespace kad
