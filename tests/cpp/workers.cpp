// llama.cpp's threads, lent: tests/test_workers.py reads the declaration between the marks.
#include <atomic>
#include <cstdint>
#include <set>
#include <thread>
#include <vector>

#include "ggml-backend.h"
#include "runtime/backend_workers.h"

extern "C" {
/* workers: begin */
// Runs a job of n parts three times. done[i]: how often part i ran. The number of threads that took one; 0 when there are no
// workers. microseconds: how long a job may take to start; -1 when workers who take longer stay more than one.
int32_t workers_job(size_t n_threads, size_t n, int64_t microseconds, int32_t * done);
/* workers: end */
}

int32_t workers_job(size_t n_threads, size_t n, int64_t microseconds, int32_t * done) {
    const auto workers = kad::backend_workers(n_threads, std::chrono::microseconds(microseconds));
    if (!workers || workers->count() != n_threads) return 0;
    std::vector<std::atomic<int>>     counts(n);
    std::vector<std::thread::id>      who(n);
    const std::function<void(size_t)> part = [&](size_t i) {
        ++counts[i];
        who[i] = std::this_thread::get_id();
    };
    for (int round = 0; round < 3; ++round) workers->run(n, part);
    for (size_t i = 0; i < n; ++i) done[i] = counts[i];
    if (microseconds == 0 && workers->count() != 1) return -1;
    return int32_t(std::set<std::thread::id>(who.begin(), who.end()).size());
}
