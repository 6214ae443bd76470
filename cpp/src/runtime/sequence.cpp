#include "sequence.h"

#include <algorithm>

namespace kad {

void Sequence::append(const std::string & bytes) {
    const size_t before = text.size();
    text += bytes;
    ++events;
    ends.push_back(text.size());
    length  = text.size();
    settled = length;
    for (const std::string & stop : stops) {
        // Only a match that ends in the new bytes can be new.
        const size_t from = before >= stop.size() ? before - stop.size() + 1 : 0;
        const size_t at   = text.find(stop, from);
        if (at != std::string::npos && at < length) {
            length = at;
            finish = KAD_FINISH_STOP;
        }
    }
    if (finish == KAD_FINISH_STOP) {
        settled = length;
        return;
    }
    // The longest end of the text that may still become a stop string is not settled.
    for (const std::string & stop : stops) {
        for (size_t k = std::min(stop.size() - 1, text.size()); k > 0; --k) {
            if (text.compare(text.size() - k, k, stop, 0, k) == 0) {
                settled = std::min(settled, text.size() - k);
                break;
            }
        }
    }
}

} // namespace kad
