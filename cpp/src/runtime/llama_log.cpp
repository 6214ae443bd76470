#include "llama_log.h"

#include <cstdio>
#include <mutex>

#include "llama.h"

namespace kad {

struct LlamaLog::State {
    bool              verbose = false;
    std::string       errors;
    ggml_log_callback previous = nullptr;
    void *            previous_data = nullptr;

    static void receive(ggml_log_level level, const char * text, void * data) {
        State * state = static_cast<State *>(data);
        if (state->verbose) fputs(text, stderr);
        if (level == GGML_LOG_LEVEL_ERROR && state->errors.size() < 1000) state->errors += text;
    }
};

static std::mutex & log_mutex() {
    static std::mutex mutex;
    return mutex;
}

LlamaLog::LlamaLog(bool verbose) : state_(new State) {
    log_mutex().lock();
    state_->verbose = verbose;
    llama_log_get(&state_->previous, &state_->previous_data);
    llama_log_set(State::receive, state_);
}

LlamaLog::~LlamaLog() {
    llama_log_set(state_->previous, state_->previous_data);
    log_mutex().unlock();
    delete state_;
}

std::string LlamaLog::reason() const {
    std::string text = state_->errors;
    while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
    for (char & c : text) {
        if (c == '\n') c = ';';
    }
    return text.empty() ? "" : ": " + text;
}

} // namespace kad
