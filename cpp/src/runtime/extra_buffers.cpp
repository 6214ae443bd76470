#include "extra_buffers.h"

#if defined(__linux__)
#    include <sys/prctl.h>
#    include <sys/wait.h>
#    include <unistd.h>

#    include <cerrno>
#    include <csignal>
#    include <cstring>
#    include <ctime>
#    include <vector>

#    include "ggml-backend.h"
#    include "ggml.h"

namespace kad {

static bool run_child(bool (*what)()) {
    for (const int signal : { SIGSEGV, SIGILL, SIGBUS, SIGFPE, SIGABRT }) std::signal(signal, SIG_DFL);
    prctl(PR_SET_DUMPABLE, 0);
    return what();
}

bool survives(bool (*what)(), int seconds) {
    const pid_t child = fork();
    if (child < 0) return false;
    if (child == 0) _exit(run_child(what) ? 0 : 1);
    for (int waited = 0; waited < seconds * 100; ++waited) {
        int         status;
        const pid_t found = waitpid(child, &status, WNOHANG);
        if (found == child) return WIFEXITED(status) && WEXITSTATUS(status) == 0;
        // A host that reaps every child itself leaves no answer.
        if (found < 0 && errno != EINTR) return false;
        const timespec pause = { 0, 10'000'000 };
        nanosleep(&pause, nullptr);
    }
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    return false;
}

static ggml_backend_buffer_type_t amx_buffers(ggml_backend_dev_t cpu) {
    auto * list = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_dev_get_extra_bufts"));
    if (!list) return nullptr;
    for (ggml_backend_buffer_type_t * type = list(cpu); type && *type; ++type) {
        if (std::strcmp(ggml_backend_buft_name(*type), "AMX") == 0) return *type;
    }
    return nullptr;
}

// Ones times ones, two rows: the smallest product that AMX's tiles take part in.
static bool multiply() {
    constexpr int64_t        K = 64, N = 32, M = 2;
    const ggml_backend_dev_t cpu     = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const ggml_backend_t     backend = ggml_backend_dev_init(cpu, nullptr);
    auto *                   threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_set_n_threads"));
    if (!backend || !threads) return false;
    threads(backend, 1); // the threads of the parent are not here
    const ggml_init_params room    = { 1 << 20, nullptr, true };
    ggml_context *         weights = ggml_init(room);
    ggml_context *         rest    = ggml_init(room);
    ggml_tensor *          a       = ggml_new_tensor_2d(weights, GGML_TYPE_Q8_0, K, N);
    ggml_tensor *          b       = ggml_new_tensor_2d(rest, GGML_TYPE_F32, K, M);
    ggml_tensor *          product = ggml_mul_mat(rest, a, b);
    ggml_cgraph *          graph   = ggml_new_graph(rest);
    ggml_build_forward_expand(graph, product);
    if (!ggml_backend_alloc_ctx_tensors_from_buft(weights, amx_buffers(cpu))) return false;
    if (!ggml_backend_alloc_ctx_tensors(rest, backend)) return false;
    const std::vector<float> ones(size_t(K * N), 1.0f);
    std::vector<uint8_t>     quantised(ggml_nbytes(a));
    ggml_quantize_chunk(GGML_TYPE_Q8_0, ones.data(), quantised.data(), 0, N, K, nullptr);
    ggml_backend_tensor_set(a, quantised.data(), 0, quantised.size());
    ggml_backend_tensor_set(b, ones.data(), 0, ggml_nbytes(b));
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) return false;
    std::vector<float> out(size_t(N * M));
    ggml_backend_tensor_get(product, out.data(), 0, ggml_nbytes(product));
    for (const float value : out) {
        if (!(value > 0.95f * K && value < 1.05f * K)) return false;
    }
    return true;
}

bool extra_buffers_work() {
    static const bool works = [] {
        const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
        return !cpu || !amx_buffers(cpu) || survives(multiply);
    }();
    return works;
}

} // namespace kad
#else
namespace kad {
bool extra_buffers_work() { return true; }
bool survives(bool (*what)(), int) { return what(); }
} // namespace kad
#endif
