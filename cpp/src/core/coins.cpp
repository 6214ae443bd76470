#include "coins.h"

namespace kad {

// High and low half of a 64 x 64 bit product, in 32-bit limbs: no 128-bit type is needed.
static void multiply(uint64_t a, uint64_t b, uint64_t & high, uint64_t & low) {
    const uint64_t a0 = a & 0xffffffffu, a1 = a >> 32, b0 = b & 0xffffffffu, b1 = b >> 32;
    const uint64_t p00 = a0 * b0, p01 = a0 * b1, p10 = a1 * b0, p11 = a1 * b1;
    const uint64_t middle = (p00 >> 32) + (p01 & 0xffffffffu) + (p10 & 0xffffffffu);
    low                   = (p00 & 0xffffffffu) | (middle << 32);
    high                  = p11 + (p01 >> 32) + (p10 >> 32) + (middle >> 32);
}

std::array<uint64_t, 4> philox4x64_10(std::array<uint64_t, 4> x, std::array<uint64_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
        uint64_t high0, low0, high1, low1;
        multiply(0xD2E7470EE14C6C93u, x[0], high0, low0);
        multiply(0xCA5A826395121157u, x[2], high1, low1);
        x = { high1 ^ x[1] ^ key[0], low1, high0 ^ x[3] ^ key[1], low0 };
        key[0] += 0x9E3779B97F4A7C15u;
        key[1] += 0xBB67AE8584CAA73Bu;
    }
    return x;
}

double Coins::operator()(uint64_t event, uint64_t purpose) const {
    const uint64_t word = philox4x64_10({ event, text_number, purpose, 0 }, { seed, 0 })[0];
    return double(word >> 11) * 0x1.0p-53;
}

uint32_t Coins::bits(uint64_t event, uint64_t purpose, int speaker) const {
    const uint64_t word = philox4x64_10({ event, text_number, purpose, 0 }, { seed, 0 })[std::size_t(speaker)];
    return uint32_t((word >> 32) % 0xffffffffu); // 2^32 - 1 asks llama.cpp for a random seed
}

} // namespace kad
