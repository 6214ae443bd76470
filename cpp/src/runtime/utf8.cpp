#include "utf8.h"

#include <algorithm>

namespace kad {

// The bytes that may follow: Unicode 15, table 3-7. `i` is the index within the character, `lead` its first byte.
static bool may_follow(unsigned char lead, size_t i, unsigned char byte) {
    if (i == 1) {
        switch (lead) {
            case 0xE0: return byte >= 0xA0 && byte <= 0xBF;
            case 0xED: return byte >= 0x80 && byte <= 0x9F;
            case 0xF0: return byte >= 0x90 && byte <= 0xBF;
            case 0xF4: return byte >= 0x80 && byte <= 0x8F;
            default: break;
        }
    }
    return byte >= 0x80 && byte <= 0xBF;
}

static int length_of(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) return 3;
    if (lead >= 0xF0 && lead <= 0xF4) return 4;
    return 0;
}

int character_at(const std::string & text, size_t i) {
    const unsigned char lead   = static_cast<unsigned char>(text[i]);
    const int           length = length_of(lead);
    for (int k = 1; k < length; ++k) {
        if (i + k >= text.size()) return -1;
        if (!may_follow(lead, size_t(k), static_cast<unsigned char>(text[i + k]))) return 0;
    }
    return length;
}

size_t unfinished(const std::string & text) {
    for (size_t back = 1; back <= std::min<size_t>(3, text.size()); ++back) {
        const int length = character_at(text, text.size() - back);
        if (length == -1) return back;
        if (length > 0) return 0;
    }
    return 0;
}

bool continues(const std::string & text, unsigned char byte) {
    const size_t open = unfinished(text);
    return open > 0 && may_follow(static_cast<unsigned char>(text[text.size() - open]), open, byte);
}

bool well_formed(const std::string & text) {
    for (size_t i = 0; i < text.size();) {
        const int length = character_at(text, i);
        if (length <= 0) return false;
        i += size_t(length);
    }
    return true;
}

std::string sanitised(const std::string & text) {
    std::string clean;
    for (size_t i = 0; i < text.size();) {
        const int length = character_at(text, i);
        if (length > 0) {
            clean.append(text, i, size_t(length));
            i += size_t(length);
        } else {
            clean += "\xEF\xBF\xBD";
            i += 1;
        }
    }
    return clean;
}

} // namespace kad
