// Guesses without a model: what followed the last events where they stood before, in prompt and text.
//
// Adaptive: learnt as the text goes on, from it alone. Where the last three events (or two) have stood together before, what
// followed them there is guessed: of the last few places of three, at the one whose earlier events agree the furthest back (so an
// edit that was made before is made again), the latest of those; of two, at the latest. Further guesses walk on along that
// place, and along themselves.
#pragma once

#include <vector>

#include "../core/notation.h"

namespace kad {

class NGramTable {
public:
    static constexpr Token NOTHING = -1; // an event that is never guessed, nor guessed from

    struct Guess {
        Token event;
        int match; // how sure: 0 two events match; 1 three; 2 three, followed by the same at least twice running; 3 three, where
                   // the table's last two guesses were right
    };

    void append(Token event);

    // What would be guessed next, at most n events; none where the last events have not stood before.
    void guess(size_t n, std::vector<Guess> & out) const;

    size_t size() const { return events_.size(); }

private:
    // Where an n-gram stood last: the position of what followed it, and how often the same event did so in a row.
    struct Place {
        uint64_t key  = 0; // 0 = an empty place
        uint32_t at   = 0; // never the first event's, which nothing stands before
        uint32_t runs = 0;
    };
    // Open addressing; a power of two, at most half full.
    struct Places {
        std::vector<Place> slots = std::vector<Place>(1024);
        size_t             used  = 0;

        Place & find(uint64_t key);
        void    grow();
    };

    std::vector<Token>    events_;
    std::vector<uint32_t> before_; // by position: where the three events before it stood before that, 0 = nowhere
    mutable Places        pairs_, triples_;
    size_t                streak_ = 0; // guesses that were right in a row

    uint64_t key(size_t n) const;
    Place    best(int & match) const;
    uint32_t furthest(uint32_t at) const;
    void     learn(Places & places, size_t n, Token next);
};

} // namespace kad
