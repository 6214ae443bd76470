#include "kernels.h"

#include <algorithm>
#include <cmath>

// To compare and to time the clones. KAD_ONE_CLONE: what the compiler's flags say and nothing else. KAD_UNFUSED: those for
// machines without fused multiply-adds.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__has_attribute) && !defined(KAD_ONE_CLONE)
#    if __has_attribute(target_clones)
#        define KAD_CLONES __attribute__((target_clones("default", "sse4.2", "avx2", "avx512f")))
#    endif
#endif
#ifndef KAD_CLONES
#    define KAD_CLONES // NEON is part of every aarch64
#else
#    define KAD_FUSED_CLONES
#endif

// Inlined, so that it is compiled for each clone.
#if defined(__GNUC__)
#    define KAD_INLINE inline __attribute__((always_inline))
#else
#    define KAD_INLINE inline
#endif

namespace kad {

// ---- What the clones share -------------------------------------------------------------------------------------------

static KAD_INLINE int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

static KAD_INLINE float float_of(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// As an integer whose order is that of the floats (of the two zeros -0 is the smaller, and they are equal as floats).
static KAD_INLINE int32_t key_of(int32_t bits) { return bits ^ int32_t(uint32_t(bits >> 31) >> 1); }

// Plain reductions of integers, which any vector width gives alike. A NaN has a magnitude above infinity's.
static KAD_INLINE bool scan_block(const float * logits, size_t n, float & max) {
    int32_t best = INT32_MIN, magnitude = 0;
    for (size_t i = 0; i < n; ++i) {
        const int32_t bits = bits_of(logits[i]);
        best               = std::max(best, key_of(bits));
        magnitude          = std::max(magnitude, bits & INT32_MAX);
    }
    constexpr int32_t infinity = 0x7f800000;
    max                        = float_of(key_of(best));
    return best < infinity && magnitude <= infinity;
}

// a * b + c, rounded once or twice.
template <bool FUSED>
static KAD_INLINE double madd(double a, double b, double c) {
    if constexpr (FUSED) {
        return std::fma(a, b, c);
    } else {
        return a * b + c;
    }
}

// No branch, table or call. y = n ln 2 - r with |r| <= ln(2)/2, so exp(-y) = exp(r) / 2^n; n is rounded in the low bits of a
// double by adding 1.5 * 2^52, and ln 2 is split so that n times its first part is exact. exp(r) = 1 + r + r^2 Q(r): Q has
// degree 9 and interpolates at Chebyshev's nodes, 2e-17 off relative to exp(r), its even and odd terms apart so that the
// chain of dependent operations is half as long. From y = 709 on n is 1023, whose 2^-n has the bits of +0: the result is 0,
// as exp(-y) would be subnormal.
template <bool FUSED>
static KAD_INLINE double exponential(double y) {
    const double  shift = 6755399441055744.0;
    const int64_t given = integer_of(y), last = 0x4086280000000000; // 709.0
    const double  least = double_of(given < last ? given : last);
    const double  t     = madd<FUSED>(least, 1.4426950408889634, shift);
    const double  n     = t - shift;
    const double  r    = madd<FUSED>(n, 1.90821492927058770002e-10, madd<FUSED>(n, 6.93147180369123816490e-01, -least));
    const double  s    = r * r;
    double        even = 0x1.289185613a3d6p-22;
    even               = madd<FUSED>(even, s, 0x1.a019b90d2ae7ap-16);
    even               = madd<FUSED>(even, s, 0x1.6c16c1788bd90p-10);
    even               = madd<FUSED>(even, s, 0x1.5555555553d63p-5);
    even               = madd<FUSED>(even, s, 0.5);
    double odd         = 0x1.af38a9b0ec855p-26;
    odd                = madd<FUSED>(odd, s, 0x1.71de0dae63bb3p-19);
    odd                = madd<FUSED>(odd, s, 0x1.a01a01a7c41d5p-13);
    odd                = madd<FUSED>(odd, s, 0x1.11111111109b3p-7);
    odd                = madd<FUSED>(odd, s, 0x1.5555555555556p-3);
    const double e     = 1.0 + madd<FUSED>(s, madd<FUSED>(odd, r, even), r);
    return e * double_of(int64_t((uint64_t(1023) << 52) - (uint64_t(integer_of(t)) << 52)));
}

template <bool FUSED>
static KAD_INLINE void weigh(const float * logits, size_t n, double max, double inverse, double scale, double * out) {
    for (size_t i = 0; i < n; ++i) out[i] = scale * exponential<FUSED>((max - double(logits[i])) * inverse);
}

static KAD_INLINE double sum_lanes(const double * values, size_t n) {
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

// The three rows' log pi; what NaN the sum makes of infinities is overwritten.
static KAD_INLINE void log_rewards(const RewardRows & rows, size_t at, size_t n, double * out) {
    const float *const base = rows.base + at, *const aligned = rows.aligned + at,
                       *const reference = rows.reference + at;
    const double              beta      = rows.beta;
    const int32_t             never     = bits_of(-INFINITY);
    const int64_t             least     = integer_of(-double(INFINITY));
    for (size_t i = 0; i < n; ++i) {
        const double  sum  = double(base[i]) + beta * (double(aligned[i]) - double(reference[i]));
        const int32_t none = int32_t(bits_of(base[i]) == never) | int32_t(bits_of(aligned[i]) == never) |
                             int32_t(bits_of(reference[i]) == never);
        const int64_t mask = -int64_t(none);
        out[i]             = double_of((integer_of(sum) & ~mask) | (least & mask));
    }
}

// key_of() for doubles.
static KAD_INLINE int64_t long_key_of(int64_t bits) { return bits < 0 ? bits ^ INT64_MAX : bits; }

// An impossible block is left out: its sum is 0, and its largest logit no number to subtract from.
template <bool FUSED>
static KAD_INLINE bool read_row(const float * logits, size_t n, double inverse, float * maxima, double * sums) {
    double terms[BLOCK];
    for (size_t b = 0, at = 0; at < n; ++b, at += BLOCK) {
        const size_t length = std::min(BLOCK, n - at);
        if (!scan_block(logits + at, length, maxima[b])) return false;
        if (!sums) continue;
        sums[b] = 0;
        if (maxima[b] == -INFINITY) continue;
        weigh<FUSED>(logits + at, length, maxima[b], inverse, 1, terms);
        sums[b] = sum_lanes(terms, length);
    }
    return true;
}

template <bool FUSED>
static KAD_INLINE void rescale_row(const float * maxima, size_t n, double max, double inverse, double * sums) {
    for (size_t b = 0; b < n; ++b) sums[b] *= exponential<FUSED>((max - double(maxima[b])) * inverse);
}

// ---- The kernels that take exponentials ------------------------------------------------------------------------------

// Compiled with some attributes, and named by them.
#define KAD_EXPONENTIALS(NAME, ATTRIBUTES, FUSED)                                                                      \
    ATTRIBUTES static bool read_##NAME(const float * logits, size_t n, double inverse, float * maxima,                 \
                                       double * sums) {                                                                \
        return read_row<FUSED>(logits, n, inverse, maxima, sums);                                                      \
    }                                                                                                                  \
    ATTRIBUTES static void rescale_##NAME(const float * maxima, size_t n, double max, double inverse, double * sums) { \
        rescale_row<FUSED>(maxima, n, max, inverse, sums);                                                             \
    }                                                                                                                  \
    ATTRIBUTES static void weigh_##NAME(const float * logits, size_t n, double max, double inverse, double scale,      \
                                        double * out) {                                                                \
        weigh<FUSED>(logits, n, max, inverse, scale, out);                                                             \
    }                                                                                                                  \
    ATTRIBUTES static double  one_##NAME(double y) { return exponential<FUSED>(y); }                                   \
    static const Exponentials NAME##_exponentials = { read_##NAME, rescale_##NAME, weigh_##NAME, one_##NAME }

namespace {

struct Exponentials {
    bool (*read)(const float *, size_t, double, float *, double *);
    void (*rescale)(const float *, size_t, double, double, double *);
    void (*weigh)(const float *, size_t, double, double, double, double *);
    double (*one)(double);
};

} // namespace

#if defined(KAD_FUSED_CLONES)
KAD_EXPONENTIALS(unfused, KAD_CLONES, false);
KAD_EXPONENTIALS(avx2, __attribute__((target("avx2,fma"))), true);
KAD_EXPONENTIALS(avx512, __attribute__((target("avx512f,fma"))), true);

static const Exponentials & choose() {
    __builtin_cpu_init();
#    if defined(KAD_UNFUSED)
    return unfused_exponentials;
#    endif
    if (!__builtin_cpu_supports("fma")) return unfused_exponentials;
    if (__builtin_cpu_supports("avx512f")) return avx512_exponentials;
    return __builtin_cpu_supports("avx2") ? avx2_exponentials : unfused_exponentials;
}

// Not a constant of the file: another file's may need it first.
static const Exponentials & chosen() {
    static const Exponentials & found = choose();
    return found;
}
#else
#    if (defined(__FMA__) || defined(__ARM_FEATURE_FMA)) && !defined(KAD_UNFUSED)
constexpr bool HAS_FMA = true;
#    else
constexpr bool HAS_FMA = false;
#    endif
KAD_EXPONENTIALS(only, , HAS_FMA);
static const Exponentials & chosen() { return only_exponentials; }
#endif

bool read_blocks(const float * logits, size_t n, double inverse, float * maxima, double * sums) {
    return chosen().read(logits, n, inverse, maxima, sums);
}

void rescale(const float * maxima, size_t n, double max, double inverse, double * sums) {
    chosen().rescale(maxima, n, max, inverse, sums);
}

void weights(const float * logits, size_t n, double max, double inverse, double scale, double * out) {
    chosen().weigh(logits, n, max, inverse, scale, out);
}

double exp_minus(double y) { return chosen().one(y); }

// ---- The other kernels -----------------------------------------------------------------------------------------------

KAD_CLONES static bool scan_row(const float * logits, size_t n, float & max) { return scan_block(logits, n, max); }

// A negative double is a negative integer, -0 included.
KAD_CLONES static void subtract_row(double * values, const double * less, size_t n) {
    for (size_t i = 0; i < n; ++i) values[i] = double_of(std::max(integer_of(values[i] - less[i]), int64_t(0)));
}

KAD_CLONES static void extent_row(const float * values, size_t n, float & smallest, float & largest) {
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (size_t i = 0; i < n; ++i) {
        const int32_t key = key_of(bits_of(values[i]));
        low               = std::min(low, key);
        high              = std::max(high, key);
    }
    smallest = float_of(key_of(low));
    largest  = float_of(key_of(high));
}

// Rounded in the low bits of a double, by adding 2^52.
KAD_CLONES static void bin_row(const float * values, size_t n, double high, double scale, uint32_t last,
                               uint32_t * out) {
    const int64_t end = integer_of(double(last));
    for (size_t i = 0; i < n; ++i) {
        const double place = double_of(std::min(integer_of((high - double(values[i])) * scale), end));
        out[i]             = uint32_t(uint64_t(integer_of(place + 4503599627370496.0)));
    }
}

KAD_CLONES static double best_reward(const RewardRows & rows, size_t n) {
    double  terms[BLOCK];
    int64_t best = INT64_MIN;
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t length = std::min(BLOCK, n - at);
        log_rewards(rows, at, length, terms);
        for (size_t i = 0; i < length; ++i) best = std::max(best, long_key_of(integer_of(terms[i])));
    }
    return double_of(long_key_of(best));
}

KAD_CLONES static void reward_row(const RewardRows & rows, size_t n, double best, float * out) {
    double terms[BLOCK];
    for (size_t at = 0; at < n; at += BLOCK) {
        const size_t length = std::min(BLOCK, n - at);
        log_rewards(rows, at, length, terms);
        for (size_t i = 0; i < length; ++i) out[at + i] = float(terms[i] - best);
    }
}

KAD_CLONES static double sum_row(const double * values, size_t n) { return sum_lanes(values, n); }

// Only what is static may have clones under every linker.
bool scan(const float * logits, size_t n, float & max) { return scan_row(logits, n, max); }

void subtract_clipped(double * values, const double * less, size_t n) { subtract_row(values, less, n); }

void extent(const float * values, size_t n, float & smallest, float & largest) {
    extent_row(values, n, smallest, largest);
}

void bins_of(const float * values, size_t n, double high, double scale, uint32_t last, uint32_t * out) {
    bin_row(values, n, high, scale, last, out);
}

double largest_reward(const RewardRows & rows, size_t n) { return best_reward(rows, n); }

void rewards_below(const RewardRows & rows, size_t n, double best, float * out) { reward_row(rows, n, best, out); }

double lane_sum(const double * values, size_t n) { return sum_row(values, n); }

} // namespace kad
