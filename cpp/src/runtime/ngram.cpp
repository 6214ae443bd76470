#include "ngram.h"

#include <algorithm>

namespace kad {

static constexpr int    PLACES  = 8;  // of three events, that are looked at
static constexpr size_t CONTEXT = 32; // events back, at most

// Of the last n <= 3 events; 0 where there are none to go by. Ids are below 2^21 - 1, so that each key is an n-gram's own.
uint64_t NGramTable::key(size_t n) const {
    if (events_.size() < n) return 0;
    uint64_t key = 0;
    for (size_t i = events_.size() - n; i < events_.size(); ++i) {
        if (events_[i] == NOTHING) return 0;
        key = key << 21 | (uint64_t(events_[i]) + 1);
    }
    return key;
}

NGramTable::Place & NGramTable::Places::find(uint64_t key) {
    const size_t mask = slots.size() - 1;
    size_t       i    = size_t((key * 0x9E3779B97F4A7C15u) >> 20) & mask;
    while (slots[i].key != 0 && slots[i].key != key) i = (i + 1) & mask;
    return slots[i];
}

void NGramTable::Places::grow() {
    std::vector<Place> old(slots.size() * 2);
    old.swap(slots);
    for (const Place & place : old) {
        if (place.key != 0) find(place.key) = place;
    }
}

void NGramTable::learn(Places & places, size_t n, Token next) {
    const uint64_t which = key(n);
    if (which == 0) return;
    if (places.used * 2 >= places.slots.size()) places.grow();
    Place &    place = places.find(which);
    const bool same  = place.key != 0 && events_[place.at] == next;
    places.used += place.key == 0;
    if (n == 3) before_.back() = place.at;
    place = { which, uint32_t(events_.size()), same ? place.runs + 1 : 1 };
}

// Of the last places of three events, from `at` on back: the one whose context agrees the furthest, 0 for none.
uint32_t NGramTable::furthest(uint32_t at) const {
    uint32_t found = 0;
    size_t   most  = 0;
    for (int i = 0; i < PLACES && at > 0; ++i, at = before_[at]) {
        if (events_[at] == NOTHING) continue;
        size_t n = 0;
        while (n < std::min<size_t>(CONTEXT, at) && events_[at - 1 - n] == events_[events_.size() - 1 - n]) ++n;
        if (n <= most) continue;
        most  = n;
        found = at;
    }
    return found;
}

// The longest match that there is.
NGramTable::Place NGramTable::best(int & match) const {
    for (size_t n = 3; n >= 2; --n) {
        const uint64_t which = key(n);
        if (which == 0) continue;
        Place place = (n == 3 ? triples_ : pairs_).find(which);
        if (n == 3) {
            const uint32_t at = furthest(place.at);
            if (events_[at] != events_[place.at]) place.runs = 1; // what the latest ones were followed by
            place.at = at;
        }
        if (place.at == 0 || events_[place.at] == NOTHING) continue;
        match = n == 2 ? 0 : streak_ >= 2 ? 3 : place.runs >= 2 ? 2 : 1;
        return place;
    }
    return {};
}

void NGramTable::append(Token event) {
    int         match;
    const Place guessed = best(match);
    before_.push_back(0);
    if (guessed.key != 0) streak_ = events_[guessed.at] == event ? streak_ + 1 : 0;
    learn(triples_, 3, event);
    learn(pairs_, 2, event);
    events_.push_back(event);
}

void NGramTable::guess(size_t n, std::vector<Guess> & out) const {
    out.clear();
    int         match = 0;
    const Place place = best(match);
    if (place.key == 0) return;
    for (size_t i = 0; i < n; ++i) {
        const size_t at    = place.at + i;
        const Token  event = at < events_.size() ? events_[at] : out[at - events_.size()].event;
        if (event == NOTHING) return;
        out.push_back({ event, match });
    }
}

} // namespace kad
