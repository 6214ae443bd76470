#include "llama_log.h"

#include <cstdio>
#include <mutex>

#include "llama.h"

namespace kad {

static thread_local LlamaLog * listening = nullptr;

// The host's own callback, from before ours.
static ggml_log_callback host_callback = nullptr;
static void *            host_data     = nullptr;

static void dispatch(ggml_log_level level, const char * text, void *) {
    if (listening) {
        listening->receive(level, text);
    } else if (host_callback) {
        host_callback(level, text, host_data);
    } else {
        std::fputs(text, stderr); // as llama.cpp does
    }
}

// llama.cpp has one log for the process. Ours stays in front of the host's, and passes on what is not for us; a host that
// sets another one later is heard again the next time.
static void install() {
    static std::mutex           mutex;
    std::lock_guard<std::mutex> lock(mutex);
    ggml_log_callback           callback;
    void *                      data;
    llama_log_get(&callback, &data);
    if (callback == dispatch) return;
    host_callback = callback;
    host_data     = data;
    llama_log_set(dispatch, nullptr);
}

LlamaLog::LlamaLog(bool verbose) : verbose_(verbose), outer_(listening) {
    install();
    listening = this;
}

LlamaLog::~LlamaLog() { listening = outer_; }

void LlamaLog::receive(int level, const char * text) {
    if (verbose_) std::fputs(text, stderr);
    if (level == GGML_LOG_LEVEL_ERROR && errors_.size() < 1000) errors_ += text;
}

std::string LlamaLog::reason() const {
    std::string text = errors_;
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    for (char & c : text) {
        if (c == '\n') c = ';';
    }
    return text.empty() ? "" : ": " + text;
}

} // namespace kad
