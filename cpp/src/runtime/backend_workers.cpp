#include "backend_workers.h"

#include "ggml-backend.h"
#include "ggml.h"

namespace kad {

namespace {

struct Job {
    size_t                              n    = 0;
    const std::function<void(size_t)> * part = nullptr;
};

void take_parts(ggml_tensor *, int thread, int n_threads, void * job) {
    const Job & given = *static_cast<const Job *>(job);
    for (size_t i = size_t(thread); i < given.n; i += size_t(n_threads)) (*given.part)(i);
}

// A graph of one node, whose operation is the job.
class BackendWorkers : public Workers {
public:
    BackendWorkers(ggml_backend_t backend, size_t n_threads, std::chrono::microseconds most)
        : backend_(backend), n_threads_(n_threads), most_(most),
          context_(
              ggml_init({ ggml_tensor_overhead() + ggml_graph_overhead_custom(1, false) + 1024, nullptr, false })) {
        if (!context_) {
            n_threads_ = 1;
            return;
        }
        graph_ = ggml_new_graph_custom(context_, 1, false);
        ggml_build_forward_expand(graph_, ggml_custom_4d(context_, GGML_TYPE_F32, 1, 1, 1, 1, nullptr, 0, take_parts,
                                                         GGML_N_TASKS_MAX, &job_));
    }
    ~BackendWorkers() override {
        ggml_free(context_);
        ggml_backend_free(backend_);
    }
    BackendWorkers(const BackendWorkers &)             = delete;
    BackendWorkers & operator=(const BackendWorkers &) = delete;

    size_t count() const override { return n_threads_; }

    void run(size_t n, const std::function<void(size_t)> & part) override {
        if (!tried_ && !pays()) n_threads_ = 1;
        if (n_threads_ > 1 && started({ n, &part })) return;
        for (size_t i = 0; i < n; ++i) part(i);
    }

private:
    ggml_backend_t            backend_;
    size_t                    n_threads_;
    std::chrono::microseconds most_;
    bool                      tried_ = false;
    Job                       job_;
    ggml_context *            context_;
    ggml_cgraph *             graph_ = nullptr;

    // False where no part was begun: the graph has one node, so nothing can stop it in between.
    bool started(const Job & job) {
        job_ = job;
        return ggml_backend_graph_compute(backend_, graph_) == GGML_STATUS_SUCCESS;
    }

    // The least that an empty job took, of a few: the first may have to make the threads.
    bool pays() {
        using Clock = std::chrono::steady_clock;
        tried_      = true;
        for (int i = 0; i < 5; ++i) {
            const auto start = Clock::now();
            if (started(Job()) && Clock::now() - start < most_) return true;
        }
        return false;
    }
};

} // namespace

std::unique_ptr<Workers> backend_workers(size_t n_threads, std::chrono::microseconds most) {
    const ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (n_threads < 2 || !cpu) return nullptr;
    const auto set_threads = reinterpret_cast<ggml_backend_set_n_threads_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), "ggml_backend_set_n_threads"));
    const ggml_backend_t backend = set_threads ? ggml_backend_dev_init(cpu, nullptr) : nullptr;
    if (!backend) return nullptr;
    set_threads(backend, int(n_threads));
    return std::make_unique<BackendWorkers>(backend, n_threads, most);
}

} // namespace kad
