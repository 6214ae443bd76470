// Randomness as an argument: a coin is a pure function of (seed, text number, event, purpose).
//
// Philox4x64-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011): counter-based, so
// a dropped guess that is drawn again gets the same coin, and the same on every platform.
#pragma once

#include <array>
#include <cstdint>

namespace kad {

enum Purpose : uint64_t {
    PURPOSE_PROPOSAL   = 1, // c1: the aligned model's own draw
    PURPOSE_ACCEPTANCE = 2, // c2: kept token or proposal
    PURPOSE_RESIDUAL   = 3, // c3: the correction
    PURPOSE_SOURCE     = 4, // c4: who is said to have spoken
    PURPOSE_REDRAW     = 5, // c5 .. c7: the same three when a grammar refused the outcome
    PURPOSE_XTC        = 8,
    PURPOSE_CHARACTER  = 16, // 16 + i: the i-th further token of a character
    // and when a grammar refused that token: its redraw. Far above, as characters have no longest chain.
    PURPOSE_CHARACTER_REDRAW = uint64_t(1) << 32
};

std::array<uint64_t, 4> philox4x64_10(std::array<uint64_t, 4> counter, std::array<uint64_t, 2> key);

struct Coins {
    uint64_t seed        = 0;
    uint64_t text_number = 0;

    // A 53-bit uniform in [0, 1).
    double operator()(uint64_t event, uint64_t purpose) const;

    // 32 random bits that seed a sampler of llama.cpp; `speaker` tells two of one purpose apart.
    uint32_t bits(uint64_t event, uint64_t purpose, int speaker) const;
};

} // namespace kad
