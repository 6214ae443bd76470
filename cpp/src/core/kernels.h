// The loops over a row that cost something, and the exponential in them.
//
// Compiled several times and chosen at load for the machine, where compiler and loader can do that. Results are the same
// bit for bit, whatever the vector width, for three reasons: sums run in LANES lanes that are added up in one order, so a
// wider register holds more lanes and not other sums; the build sets -ffp-contract=off, so that no a*b+c is rounded once
// where another machine rounds twice; and every other operation (conversion, comparison, integer arithmetic, the maximum
// of integers) is exact, or rounds its own operands alone.
//
// Comparisons are made between integers. Without -ffast-math a compiler has to heed that comparing doubles may trap, and GCC
// 12 then leaves a loop that selects by them scalar on AVX2: three times slower. The bits of doubles that are not negative
// stand in the order of the doubles.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace kad {

constexpr size_t LANES = 8;
constexpr size_t BLOCK = 512; // logits that stay in the first-level cache between the two looks at them

inline int64_t integer_of(double x) {
    int64_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline double double_of(int64_t bits) {
    double x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// exp(-y) for y >= 0, to one unit in the last place, +infinity included; exactly 1 at 0. No branch, table or call.
//
// y = n ln 2 - r with |r| <= ln(2)/2, so exp(-y) = exp(r) / 2^n; n is rounded in the low bits of a double by adding
// 1.5 * 2^52, and ln 2 is split so that n times its first part is exact. exp(r) = 1 + r + r^2 Q(r): Q has degree 9 and
// interpolates at Chebyshev's nodes, 2e-17 off relative to exp(r), its even and odd terms apart so that the chain of
// dependent operations is half as long. From y = 709 on n is 1023, whose 2^-n has the bits of +0: the result is 0, as
// exp(-y) would be subnormal.
inline double exp_minus(double y) {
    const double  shift = 6755399441055744.0;
    const int64_t given = integer_of(y), last = 0x4086280000000000; // 709.0
    const double  least = double_of(given < last ? given : last);
    const double  t     = least * 1.4426950408889634 + shift;
    const double  n     = t - shift;
    const double  r     = (n * 6.93147180369123816490e-01 - least) + n * 1.90821492927058770002e-10;
    const double  s     = r * r;
    double        even  = 0x1.289185613a3d6p-22;
    even                = even * s + 0x1.a019b90d2ae7ap-16;
    even                = even * s + 0x1.6c16c1788bd90p-10;
    even                = even * s + 0x1.5555555553d63p-5;
    even                = even * s + 0.5;
    double odd          = 0x1.af38a9b0ec855p-26;
    odd                 = odd * s + 0x1.71de0dae63bb3p-19;
    odd                 = odd * s + 0x1.a01a01a7c41d5p-13;
    odd                 = odd * s + 0x1.11111111109b3p-7;
    odd                 = odd * s + 0x1.5555555555556p-3;
    const double e      = 1.0 + (r + s * (even + odd * r));
    return e * double_of(int64_t((uint64_t(1023) << 52) - (uint64_t(integer_of(t)) << 52)));
}

// The largest of n logits; false when one is NaN or +inf.
bool scan(const float * logits, size_t n, float & max);

// One pass over a row. By blocks of BLOCK: the largest logit, and the sum of exp((logit - that) * inverse); sums NULL: the
// largest alone. False when a logit is NaN or +inf; what follows its block is then not read.
bool read_blocks(const float * logits, size_t n, double inverse, float * maxima, double * sums);

// sums[b] *= exp((maxima[b] - max) * inverse): from the block's own largest logit to the row's.
void rescale(const float * maxima, size_t n, double max, double inverse, double * sums);

// scale * exp((logit - max) * inverse) of n logits.
void weights(const float * logits, size_t n, double max, double inverse, double scale, double * out);

// values[i] = max(0, values[i] - less[i]).
void subtract_clipped(double * values, const double * less, size_t n);

// The smallest and the largest of n > 0 numbers.
void extent(const float * values, size_t n, float & smallest, float & largest);

// Of n values <= high the bin (high - value) * scale, rounded to the nearest, `last` at most: a monotone function of the value.
void bins_of(const float * values, size_t n, double high, double scale, uint32_t last, uint32_t * out);

// log p + beta (log q - log r), up to a constant; -inf where any of the three is -inf. The largest of n such, and each less `best`.
struct RewardRows {
    const float *base, *aligned, *reference;
    double       beta;
};
double largest_reward(const RewardRows & rows, size_t n);
void   rewards_below(const RewardRows & rows, size_t n, double best, float * out);

// The sum of n doubles in LANES lanes.
double lane_sum(const double * values, size_t n);

} // namespace kad
