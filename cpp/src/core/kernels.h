// The loops over a row that cost something, and the exponential in them.
//
// Compiled several times and chosen at load for the machine, where compiler and loader can do that. Results are the same
// bit for bit, whatever the vector width, for three reasons: sums run in LANES lanes that are added up in one order, so a
// wider register holds more lanes and not other sums; the build sets -ffp-contract=off, so that a compiler fuses no multiply
// and add that is not fused here; and every other operation (conversion, comparison, integer arithmetic, the maximum of
// integers) is exact, or rounds its own operands alone. The exponential is made of fused multiply-adds where that is known to
// be possible (x86-64 with FMA under glibc, aarch64, whatever the compiler's flags ask for): two thirds of the time, and last
// bits that differ from those of other machines.
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

// exp(-y) for y >= 0, to one unit in the last place, +infinity included; exactly 1 at 0.
double exp_minus(double y);

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
