#include "text_bridge.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>

#include "utf8.h"

namespace kad {

// Tokens by their bytes: open addressing over numbers of tokens, whose bytes stay where they are. A map of strings would take
// tens of MiB for a large vocabulary.
class ByteIndex {
public:
    using Bytes = std::function<const std::string &(Token)>;

    ByteIndex(size_t most, Bytes bytes) : bytes_(std::move(bytes)) {
        size_t size = 16;
        while (size < 2 * most) size *= 2;
        places_.assign(size, -1);
    }

    // The token with these bytes that was added first; -1 when there is none.
    Token find(const std::string & bytes) const { return places_[place(bytes)]; }

    // The same, and the token itself where it is the first.
    Token add(Token token) {
        Token & at = places_[place(bytes_(token))];
        if (at < 0) at = token;
        return at;
    }

private:
    Bytes              bytes_;
    std::vector<Token> places_;

    size_t place(const std::string & bytes) const {
        size_t i = std::hash<std::string>()(bytes) & (places_.size() - 1);
        while (places_[i] >= 0 && bytes_(places_[i]) != bytes) i = (i + 1) & (places_.size() - 1);
        return i;
    }
};

VocabularyComparison compare(const Vocabulary & base, const Vocabulary & aligned) {
    VocabularyComparison result;
    const size_t         n = std::min(base.size(), aligned.size());
    for (size_t i = 0; i < n; ++i) {
        const Token id = Token(i);
        if (base.type(id) == aligned.type(id) && base.bytes(id) == aligned.bytes(id)) continue;
        ++result.n_differing;
        if (result.differing.size() < 5) result.differing.push_back(id);
    }
    result.equal = result.n_differing == 0;
    ByteIndex known(base.size(), [&](Token id) -> const std::string & { return base.bytes(id); });
    for (size_t i = 0; i < base.size(); ++i) {
        if (base.kind(Token(i)) == TokenKind::Text) known.add(Token(i));
    }
    size_t text = 0, shared = 0;
    for (size_t i = 0; i < aligned.size(); ++i) {
        if (aligned.kind(Token(i)) != TokenKind::Text) continue;
        ++text;
        shared += known.find(aligned.bytes(Token(i))) >= 0;
    }
    result.overlap = text ? double(shared) / double(text) : 0;
    return result;
}

EventSpace::EventSpace(const Vocabulary * base, const Vocabulary * aligned, bool equal, const Vocabulary * reference) {
    sides_[KAD_ROLE_BASE].vocabulary      = base;
    sides_[KAD_ROLE_ALIGNED].vocabulary   = aligned;
    sides_[KAD_ROLE_REFERENCE].vocabulary = reference;
    if (base && aligned && !equal) {
        merge_bytes();
    } else {
        share_ids();
    }
}

// Which ids take part, which are forbidden, which end the text.
void EventSpace::fill(Side & side, size_t n, const std::vector<bool> & ends) {
    side.n = n;
    for (size_t i = 0; i < n; ++i) {
        const TokenKind kind = side.vocabulary->kind(Token(i));
        if (ends[i]) {
            side.ends.push_back(Token(i));
        } else if (kind != TokenKind::Text) {
            side.forbidden.push_back(Token(i));
        }
    }
}

void EventSpace::share_ids() {
    size_t n = SIZE_MAX;
    for (const Side & side : sides_) {
        if (side.vocabulary) n = std::min(n, side.vocabulary->size());
    }
    std::vector<bool> ends(n, false); // the union of both models' sets
    for (const Side & side : sides_) {
        for (size_t i = 0; side.vocabulary && i < n; ++i) {
            if (side.vocabulary->kind(Token(i)) == TokenKind::End) ends[i] = true;
        }
    }
    n_events_ = n;
    for (Side & side : sides_) {
        if (!side.vocabulary) continue;
        fill(side, n, ends);
        if (!side.ends.empty()) end_ = side.ends[0];
        side.event_of.resize(n);
        for (size_t i = 0; i < n; ++i) side.event_of[i] = Token(i);
        for (const Token id : side.forbidden) side.event_of[size_t(id)] = -1;
        for (const Token id : side.ends) side.event_of[size_t(id)] = end_;
        side.id_of     = side.event_of;
        side.n_entries = n;
    }
}

// Bytes that are no whole characters never merge across the models: whoever starts a character finishes it.
void EventSpace::merge_bytes() {
    shared_ids_          = false;
    const Side & base    = sides_[KAD_ROLE_BASE];
    const Side & aligned = sides_[KAD_ROLE_ALIGNED];
    const size_t n_base = base.vocabulary->size(), n_all = n_base + aligned.vocabulary->size();

    // Tokens of both, the base's first.
    const auto bytes_of = [&](Token token) -> const std::string & {
        return size_t(token) < n_base ? base.vocabulary->bytes(token)
                                      : aligned.vocabulary->bytes(Token(size_t(token) - n_base));
    };
    const auto event_of = [&](Token token) {
        return size_t(token) < n_base ? base.event_of[size_t(token)] : aligned.event_of[size_t(token) - n_base];
    };
    ByteIndex whole(n_all, bytes_of);
    for (const int role : { KAD_ROLE_BASE, KAD_ROLE_ALIGNED }) {
        Side &            side = sides_[role];
        const size_t      n    = side.vocabulary->size();
        std::vector<bool> ends(n, false);
        for (size_t i = 0; i < n; ++i) ends[i] = side.vocabulary->kind(Token(i)) == TokenKind::End;
        fill(side, n, ends);
        side.event_of.assign(n, -1);
        side.byte_ids.assign(256, -1);
        ByteIndex    own(n, bytes_of);
        const size_t first = role == KAD_ROLE_BASE ? 0 : n_base;
        // A new event gets the next number; of the base, that of its id.
        const auto fresh = [&](size_t i) { return Token(role == KAD_ROLE_BASE ? i : n_events_); };
        for (size_t i = 0; i < n; ++i) {
            const Token id = Token(i);
            if (ends[i]) {
                if (end_ < 0) end_ = fresh(i);
                side.event_of[i] = end_;
            } else if (side.vocabulary->kind(id) == TokenKind::Text) {
                const std::string & bytes = side.vocabulary->bytes(id);
                if (bytes.size() == 1 && side.byte_ids[uint8_t(bytes[0])] < 0) side.byte_ids[uint8_t(bytes[0])] = id;
                const Token token = Token(first + i), same = (well_formed(bytes) ? whole : own).add(token);
                side.event_of[i] = same == token ? fresh(i) : event_of(same);
            }
            if (side.event_of[i] == Token(n_events_) || role == KAD_ROLE_BASE) ++n_events_;
        }
    }
    list_entries();
}

// Which ids say an event, and which events a projected row lists.
void EventSpace::list_entries() {
    for (const int role : { KAD_ROLE_BASE, KAD_ROLE_ALIGNED }) {
        Side & side = sides_[role];
        side.id_of.assign(n_events_, -1);
        for (size_t i = 0; i < side.n; ++i) {
            const Token event = side.event_of[i];
            if (event < 0) continue;
            if (side.id_of[size_t(event)] < 0) {
                side.id_of[size_t(event)] = Token(i);
            } else if (event != end_) {
                side.merged.push_back(Token(i));
            }
        }
        side.support.n_events = n_events_;
        side.n_entries        = side.n;
        if (role == KAD_ROLE_BASE) continue; // entry i is event i
        side.support.entry_of.assign(n_events_, -1);
        for (size_t e = 0; e < n_events_; ++e) {
            if (side.id_of[e] < 0) continue;
            side.support.entry_of[e] = Token(side.support.events.size());
            side.support.events.push_back(Token(e));
            side.entry_ids.push_back(side.id_of[e]);
        }
        side.n_entries = side.support.events.size();
    }
}

// log(exp(a) + exp(b)) in double.
static double log_add(double a, double b) {
    if (std::isnan(a) || std::isnan(b)) return NAN; // max() would pass over it; it must reach the check of the row
    const double high = std::max(a, b);
    if (high == -INFINITY) return high;
    return high + std::log1p(std::exp(std::min(a, b) - high));
}

void EventSpace::prepare(kad_role role, float * out) const {
    const Side & side = sides_[role];
    for (const Token id : side.forbidden) out[id] = -INFINITY;
    if (side.ends.size() < 2) return;
    double folded = -INFINITY;
    for (const Token id : side.ends) {
        folded = log_add(folded, out[id]);
    }
    for (const Token id : side.ends) out[id] = -INFINITY;
    out[side.ends[0]] = float(folded);
}

Token EventSpace::folded(kad_role role, Token id) const {
    const Side & side = sides_[role];
    return size_t(id) < side.n && end_ >= 0 && side.event_of[size_t(id)] == end_ ? side.ends[0] : id;
}

bool EventSpace::spells_end(const std::string & text) const {
    for (const Side & side : sides_) {
        for (const Token id : side.ends) {
            if (side.vocabulary->kind(id) == TokenKind::End && side.vocabulary->bytes(id) == text) return true;
        }
    }
    return false;
}

const float * EventSpace::project(kad_role role, const float * row, std::vector<float> & buffer) const {
    const Side & side = sides_[role];
    if (in_place(role)) {
        std::vector<float> own;
        buffer.assign(row, row + side.n);
        project_in_place(role, buffer.data(), own);
        return buffer.data();
    }
    buffer.resize(side.n_entries);
    for (size_t i = 0; i < side.n_entries; ++i) buffer[i] = row[side.entry_ids[i]];
    for (const Token id : side.merged) {
        float & sum = buffer[size_t(side.support.entry_of[size_t(side.event_of[size_t(id)])])];
        sum         = float(log_add(sum, row[id]));
    }
    return buffer.data();
}

void EventSpace::project_in_place(kad_role role, float * row, std::vector<float> & own) const {
    const Side & side = sides_[role];
    own.clear();
    for (const Token id : side.merged) {
        float & sum = row[side.event_of[size_t(id)]];
        own.push_back(sum);
        own.push_back(row[id]);
        sum     = float(log_add(sum, row[id]));
        row[id] = -INFINITY;
    }
}

// Backwards: an event that several ids were merged into gets its first value last.
void EventSpace::restore(kad_role role, float * row, const std::vector<float> & own) const {
    const Side & side = sides_[role];
    for (size_t i = side.merged.size(); i-- > 0;) {
        row[side.event_of[size_t(side.merged[i])]] = own[2 * i];
        row[side.merged[i]]                        = own[2 * i + 1];
    }
}

void EventSpace::spread(kad_role role, const float * entries, float * out) const {
    const Side & side = sides_[role];
    std::fill(out, out + n_events_, -INFINITY);
    for (size_t i = 0; i < side.n_entries; ++i) {
        out[side.support.events.empty() ? i : size_t(side.support.events[i])] = entries[i];
    }
}

const std::string & EventSpace::bytes(Token event) const {
    static const std::string none;
    if (ends(event)) return none;
    for (const Side & side : sides_) {
        if (side.vocabulary && side.id_of[size_t(event)] >= 0) return side.vocabulary->bytes(side.id_of[size_t(event)]);
    }
    return none;
}

Token EventSpace::id(kad_role role, Token event) const {
    return sides_[role].vocabulary ? sides_[role].id_of[size_t(event)] : -1;
}

static bool letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

static bool space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static bool ends_word(char c) { return letter(c) || (c >= '0' && c <= '9') || std::strchr(".,;:!?", c) != nullptr; }

// The first byte of a character that is surely no white space: ASCII, or U+4000 to U+9FFF.
static bool plain(char c) {
    const unsigned char byte = static_cast<unsigned char>(c);
    return (byte > 0x20 && byte < 0x7F) || (byte >= 0xE4 && byte <= 0xE9);
}

size_t next_cut(const std::string & text, size_t from) {
    constexpr size_t LONGEST = 1024;
    for (size_t i = from + 1; i + 1 < text.size(); ++i) {
        if (text[i] == ' ' && letter(text[i + 1]) && text[i - 1] && ends_word(text[i - 1])) return i;
        // Not after further white space: pre-tokenisers split "\n\nWord" before the last line break, not after it.
        const bool lone_break = text[i - 1] == '\n' && !(i >= 2 && space(text[i - 2]));
        if (lone_break && plain(text[i])) return i;
        if (i - from >= LONGEST) {
            // No word ended: cut at the start of the next character.
            const unsigned char c = static_cast<unsigned char>(text[i]);
            if (c < 0x80 || c >= 0xC0) return i;
            if (i - from >= LONGEST + 4) return i; // only continuation bytes: no characters here
        }
    }
    return std::string::npos;
}

void TextTokens::add_piece(const std::string & text, size_t from, size_t length) {
    piece_.assign(text, from, length);
    LastPieces & last = *last_;
    size_t       i    = size_t(std::find(last.text, last.text + LastPieces::N, piece_) - last.text);
    if (i == LastPieces::N) {
        std::vector<Token> tokens =
            vocabulary_->tokenize_continuation(sanitised(piece_)); // may throw: nothing is kept then
        i = last.next;
        last.tokens[i].swap(tokens);
        last.text[i].swap(piece_);
        last.next = (i + 1) % LastPieces::N;
    }
    tokens_.insert(tokens_.end(), last.tokens[i].begin(), last.tokens[i].end());
}

const std::vector<Token> & TextTokens::tokens(const std::string & text) {
    tokens_.resize(settled_);
    for (size_t cut; (cut = next_cut(text, cut_)) != std::string::npos; cut_ = cut) {
        add_piece(text, cut_, cut - cut_);
        settled_ = tokens_.size(); // with cut_: the next piece may fail
    }
    add_piece(text, cut_, std::string::npos);
    return tokens_;
}

void TextTokens::follow(const std::string & text, size_t n_prompt, std::vector<Token> & context) {
    const std::vector<Token> & own = tokens(text);
    // Nearly always the new token is simply appended.
    const size_t n     = std::min(context.size() - n_prompt, own.size());
    const auto   agree = std::mismatch(own.begin(), own.begin() + ptrdiff_t(n), context.begin() + ptrdiff_t(n_prompt));
    context.erase(agree.second, context.end());
    context.insert(context.end(), agree.first, own.cend());
}

} // namespace kad
