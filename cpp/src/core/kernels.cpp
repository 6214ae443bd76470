#include "kernels.h"

#include <algorithm>
#include <cmath>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(KAD_ONE_CLONE)
#    define KAD_CLONES __attribute__((target_clones("default", "sse4.2", "avx2", "avx512f")))
#else
#    define KAD_CLONES // NEON is part of every aarch64
#endif

namespace kad {

// ---- What the clones share: inlined, so that it is compiled for each -----------------------------------------------------

// As an integer whose order is that of the floats (of the two zeros -0 is the smaller, and they are equal as floats).
static inline int32_t key_of(int32_t bits) { return bits ^ int32_t(uint32_t(bits >> 31) >> 1); }

// Plain reductions of integers, which any vector width gives alike. A NaN has a magnitude above infinity's.
static inline bool scan_block(const float * logits, size_t n, float & max) {
    int32_t best = INT32_MIN, magnitude = 0;
    for (size_t i = 0; i < n; ++i) {
        int32_t bits;
        std::memcpy(&bits, logits + i, sizeof bits);
        best      = std::max(best, key_of(bits));
        magnitude = std::max(magnitude, bits & INT32_MAX);
    }
    constexpr int32_t infinity = 0x7f800000;
    const int32_t     bits     = key_of(best);
    std::memcpy(&max, &bits, sizeof max);
    return best < infinity && magnitude <= infinity;
}

static inline void weigh(const float * logits, size_t n, double max, double inverse, double * out) {
    for (size_t i = 0; i < n; ++i) out[i] = exp_minus((max - double(logits[i])) * inverse);
}

static inline double sum_lanes(const double * values, size_t n) {
    double sum[LANES] = {};
    size_t i          = 0;
    for (; i + LANES <= n; i += LANES) {
        for (size_t k = 0; k < LANES; ++k) sum[k] += values[i + k];
    }
    for (; i < n; ++i) sum[0] += values[i];
    double total = 0;
    for (size_t k = 0; k < LANES; ++k) total += sum[k];
    return total;
}

// ---- The kernels -----------------------------------------------------------------------------------------------------

KAD_CLONES static bool scan_row(const float * logits, size_t n, float & max) { return scan_block(logits, n, max); }

// An impossible block is left out: its sum is 0, and its largest logit no number to subtract from.
KAD_CLONES static bool read_row(const float * logits, size_t n, double inverse, float * maxima, double * sums) {
    double terms[BLOCK];
    for (size_t b = 0, at = 0; at < n; ++b, at += BLOCK) {
        const size_t length = std::min(BLOCK, n - at);
        if (!scan_block(logits + at, length, maxima[b])) return false;
        if (!sums) continue;
        sums[b] = 0;
        if (maxima[b] == -INFINITY) continue;
        weigh(logits + at, length, maxima[b], inverse, terms);
        sums[b] = sum_lanes(terms, length);
    }
    return true;
}

KAD_CLONES static void rescale_row(const float * maxima, size_t n, double max, double inverse, double * sums) {
    for (size_t b = 0; b < n; ++b) sums[b] *= exp_minus((max - double(maxima[b])) * inverse);
}

KAD_CLONES static void weigh_row(const float * logits, size_t n, double max, double inverse, double scale,
                                 double * out) {
    for (size_t i = 0; i < n; ++i) out[i] = scale * exp_minus((max - double(logits[i])) * inverse);
}

// A negative double is a negative integer, -0 included.
KAD_CLONES static void subtract_row(double * values, const double * less, size_t n) {
    for (size_t i = 0; i < n; ++i) values[i] = double_of(std::max(integer_of(values[i] - less[i]), int64_t(0)));
}

KAD_CLONES static double sum_row(const double * values, size_t n) { return sum_lanes(values, n); }

// Only what is static may have clones under every linker.
bool scan(const float * logits, size_t n, float & max) { return scan_row(logits, n, max); }

bool read_blocks(const float * logits, size_t n, double inverse, float * maxima, double * sums) {
    return read_row(logits, n, inverse, maxima, sums);
}

void rescale(const float * maxima, size_t n, double max, double inverse, double * sums) {
    rescale_row(maxima, n, max, inverse, sums);
}

void weights(const float * logits, size_t n, double max, double inverse, double scale, double * out) {
    weigh_row(logits, n, max, inverse, scale, out);
}

void subtract_clipped(double * values, const double * less, size_t n) { subtract_row(values, less, n); }

double lane_sum(const double * values, size_t n) { return sum_row(values, n); }

} // namespace kad
