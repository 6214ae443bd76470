#include "gbnf.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include "../core/notation.h"
#include "utf8.h"

namespace kad {

namespace {

constexpr uint32_t LAST_CHARACTER = 0x10FFFF;
constexpr size_t   NO_RULE        = SIZE_MAX;
constexpr size_t   MOST_REPEATS   = 2000; // llama.cpp's; it reads more as "without end"
constexpr size_t   DEEPEST    = 500; // brackets within brackets, and rules that begin with rules: llama.cpp recurses
constexpr double   MOST_STEPS = 1e7; // llama.cpp's search for left recursion visits a rule once per way to it

struct Item {
    size_t rule      = NO_RULE; // NO_RULE: characters or a token
    bool   skippable = false;
    size_t times     = 1; // copies that llama.cpp makes
};

using Alternative = std::vector<Item>;

struct Rule {
    explicit Rule(const std::string & name) : name(name) {}

    std::string              name;
    bool                     defined = false;
    std::vector<Alternative> alternatives;
    bool                     nullable = false; // may it be empty?
    int                      state    = 0;     // of the search for left recursion: 1 in progress, 2 done
    double                   steps    = 0;
};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool is_word(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || is_digit(c); }

class Reader {
public:
    Reader(const std::string & text, const TokenCheck & token) : text_(text), token_(token) {}

    GrammarFacts read(const std::string & root) {
        space(true);
        while (at_ < text_.size()) rule();
        for (const Rule & rule : rules_) {
            if (!rule.defined) fail_rule(rule, "is used and not defined");
        }
        if (!ids_.count(root)) {
            throw Error(KAD_INVALID_ARGUMENT, "grammar has no rule \"" + root + "\"; expected one to begin with");
        }
        facts_.text += text_.substr(copied_);
        find_nullable();
        for (size_t id = 0; id < rules_.size(); ++id) find_left_recursion(id, 0);
        return facts_;
    }

private:
    const std::string &                     text_;
    const TokenCheck &                      token_;
    size_t                                  at_ = 0;
    std::vector<Rule>                       rules_; // named ones and brackets
    std::unordered_map<std::string, size_t> ids_;
    size_t                                  symbols_ = 0; // rules that llama.cpp makes of it
    size_t                                  copies_  = 1; // of rules, by the repetitions so far of the last item
    GrammarFacts                            facts_;
    size_t                                  copied_ = 0; // of text_ into facts_.text

    char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }

    [[noreturn]] void fail(const std::string & what) const {
        const size_t line = 1 + size_t(std::count(text_.begin(), text_.begin() + ptrdiff_t(at_), '\n'));
        std::string  rest = text_.substr(at_, text_.find('\n', at_) - at_);
        if (rest.size() > 40) rest = sanitised(rest.substr(0, 40)) + "...";
        throw Error(KAD_INVALID_ARGUMENT, "grammar, line " + std::to_string(line) + ": " + what + " at " +
                                              (at_ < text_.size() ? "\"" + rest + "\"" : "its end"));
    }

    [[noreturn]] static void fail_rule(const Rule & rule, const std::string & what) {
        throw Error(KAD_INVALID_ARGUMENT, "grammar: rule \"" + rule.name + "\" " + what);
    }

    // White space and comments; line breaks too where a rule cannot end.
    void space(bool line_breaks) {
        for (;; ++at_) {
            if (peek() == '#') at_ = std::min(text_.size(), text_.find_first_of("\r\n", at_));
            if (at_ >= text_.size() || !std::strchr(line_breaks ? " \t\r\n" : " \t", text_[at_])) {
                if (peek() != '#') return;
                --at_;
            }
        }
    }

    void expect(const char * token) {
        const size_t n = std::strlen(token);
        if (text_.compare(at_, n, token) != 0) fail(std::string("expected ") + token);
        at_ += n;
    }

    std::string name() {
        const size_t from = at_;
        while (is_word(peek())) ++at_;
        if (at_ == from) fail("expected a rule's name (letters, digits, -)");
        return text_.substr(from, at_ - from);
    }

    size_t named(const std::string & name) {
        const auto [found, fresh] = ids_.emplace(name, rules_.size());
        if (fresh) {
            rules_.emplace_back(name);
            ++symbols_;
        }
        return found->second;
    }

    size_t number() {
        const size_t from  = at_;
        size_t       value = 0;
        while (is_digit(peek())) value = std::min<size_t>(value * 10 + size_t(text_[at_++] - '0'), UINT32_MAX);
        if (at_ == from) fail("expected a whole number");
        return value;
    }

    // name ::= alternatives
    void rule() {
        const size_t id = named(name());
        space(false);
        expect("::=");
        space(true);
        rules_[id].alternatives.clear(); // llama.cpp takes the last definition
        alternatives(id, 0);
        if (at_ < text_.size() && peek() != '\r' && peek() != '\n') fail("expected the end of the line");
        space(true);
    }

    void alternatives(size_t id, size_t depth) {
        if (depth > DEEPEST) fail("too many brackets within brackets");
        for (;;) {
            Alternative items = sequence(rules_[id].name, depth);
            rules_[id].alternatives.push_back(std::move(items));
            if (peek() != '|') break;
            ++at_;
            space(true);
        }
        rules_[id].defined = true;
    }

    Alternative sequence(std::string name, size_t depth) {
        Alternative items;
        bool        repeatable = false; // is there an item that * + ? {} could be about?
        while (at_ < text_.size()) {
            const char c = peek();
            if (std::strchr("*+?{", c)) {
                if (!repeatable) fail("expected something to repeat before it");
                repeatable = repeat(items, depth > 0);
            } else if (c == '"') {
                repeatable = literal();
                if (repeatable) items.emplace_back();
            } else if (c == '(') {
                items.push_back(group(name, depth));
                repeatable = true;
            } else if (is_word(c) || c == '[' || c == '<' || c == '!' || c == '.') {
                items.push_back(symbol(c));
                repeatable = true;
            } else {
                break;
            }
            space(depth > 0);
        }
        return items;
    }

    Item symbol(char first) {
        copies_ = 1;
        Item item;
        if (is_word(first)) {
            item.rule = named(name());
        } else if (first == '[') {
            char_class();
        } else if (first == '.') {
            ++at_;
        } else {
            token();
        }
        return item;
    }

    Item group(std::string name, size_t depth) {
        expect("(");
        space(true);
        const size_t before = symbols_;
        Item         item;
        item.rule = rules_.size();
        rules_.emplace_back(name);
        ++symbols_;
        alternatives(item.rule, depth + 1);
        if (peek() != ')') fail("expected )");
        ++at_;
        copies_ = std::max<size_t>(1, symbols_ - before);
        return item;
    }

    // A string; false for an empty one, which is nothing to llama.cpp.
    bool literal() {
        copies_ = 1;
        expect("\"");
        const size_t from = at_;
        while (peek() != '"') character();
        ++at_;
        return at_ - 1 > from;
    }

    void char_class() {
        const size_t from = at_;
        expect("[");
        const bool negated = peek() == '^';
        if (negated) ++at_;
        if (peek() == ']') fail("expected at least one character in [ ]");
        std::vector<std::pair<uint32_t, uint32_t>> ranges;
        while (peek() != ']') {
            const uint32_t low = character();
            ranges.emplace_back(low, low);
            if (peek() != '-' || peek(1) == ']') continue;
            ++at_;
            ranges.back().second = character();
            if (ranges.back().second < low) fail("expected a range whose end is not before its beginning");
        }
        ++at_;
        if (!negated) return;
        facts_.text += text_.substr(copied_, from - copied_) + complement(std::move(ranges));
        copied_ = at_;
    }

    // The class of all other characters.
    std::string complement(std::vector<std::pair<uint32_t, uint32_t>> ranges) const {
        ranges.emplace_back(LAST_CHARACTER + 1, LAST_CHARACTER + 1);
        std::sort(ranges.begin(), ranges.end());
        std::string others;
        uint32_t    next = 0; // the lowest character that may still be in it
        for (const auto & [low, high] : ranges) {
            if (low > next) {
                char range[32];
                std::snprintf(range, sizeof range, "\\U%08X-\\U%08X", unsigned(next), unsigned(low - 1));
                others += range;
            }
            next = std::max(next, high + 1);
        }
        if (others.empty()) fail("expected a class that some character is in");
        return "[" + others + "]";
    }

    uint32_t character() {
        if (at_ >= text_.size()) fail("expected a closing quote or bracket");
        if (peek() == '\\') return escape();
        const int n = std::max(1, character_at(text_, at_));
        uint32_t  c = static_cast<unsigned char>(text_[at_]);
        if (n > 1) c &= 0xFFu >> (n + 1);
        for (int i = 1; i < n; ++i) c = c << 6 | (static_cast<unsigned char>(text_[at_ + size_t(i)]) & 0x3F);
        at_ += size_t(n);
        return c;
    }

    uint32_t escape() {
        const char kind = peek(1);
        if (kind != 'x' && kind != 'u' && kind != 'U') {
            const char * known = "trn\\\"[]-";
            if (kind == '\0' || !std::strchr(known, kind))
                fail("expected an escape of GBNF (\\t \\r \\n \\\\ \\\" \\[ \\] \\- \\x \\u \\U)");
            at_ += 2;
            return kind == 't' ? '\t' : kind == 'r' ? '\r' : kind == 'n' ? '\n' : static_cast<unsigned char>(kind);
        }
        const size_t digits = kind == 'x' ? 2 : kind == 'u' ? 4 : 8;
        uint32_t     value  = 0;
        for (size_t i = 0; i < digits; ++i) {
            const char * hex   = "0123456789abcdef0123456789ABCDEF";
            const char   digit = peek(2 + i);
            const char * found = digit ? std::strchr(hex, digit) : nullptr;
            if (!found) fail("expected " + std::to_string(digits) + " hexadecimal digits in the escape");
            value = value << 4 | uint32_t((found - hex) % 16);
        }
        if (value > LAST_CHARACTER) fail("expected a character up to U+10FFFF");
        at_ += 2 + digits;
        return value;
    }

    void token() {
        const size_t from = at_;
        if (peek() == '!') ++at_;
        if (peek() != '<') fail("expected <");
        const size_t end = text_.find('>', at_);
        if (end == std::string::npos) fail("expected > after the token");
        const std::string why = token_(text_.substr(at_, end + 1 - at_));
        if (!why.empty()) fail(why);
        at_ = end + 1;
        if (facts_.token.empty()) facts_.token = text_.substr(from, at_ - from);
    }

    // * + ? {n} {n,} {n,m} after an item. False when the item is gone: {0} or {0,0}.
    bool repeat(Alternative & items, bool line_breaks) {
        const char c   = text_[at_++];
        size_t     low = c == '+' ? 1 : 0, high = 1;
        bool       ends = c == '?';
        if (c == '{') braces(low, high, ends, line_breaks);
        if (low > MOST_REPEATS || (ends && high > MOST_REPEATS)) {
            fail("expected at most " + std::to_string(MOST_REPEATS) + " repetitions before this, llama.cpp's limit");
        }
        if (ends && high < low) fail("expected {low,high} with low <= high before this");
        const size_t total = ends && high > 0 ? high : std::max<size_t>(1, low);
        if (copies_ * total > MOST_REPEATS) {
            fail("expected fewer repetitions within repetitions before this: " + std::to_string(copies_ * total) +
                 " rules, llama.cpp takes " + std::to_string(MOST_REPEATS));
        }
        symbols_ += ends ? high - low : 1;
        copies_ *= total;
        items.back().skippable = items.back().skippable || low == 0;
        items.back().times     = std::min(items.back().times * total, MOST_REPEATS);
        if (!ends || high > 0) return true;
        items.pop_back();
        return false;
    }

    void braces(size_t & low, size_t & high, bool & ends, bool line_breaks) {
        space(line_breaks);
        low  = number();
        high = low;
        ends = true;
        space(line_breaks);
        if (peek() == ',') {
            ++at_;
            space(line_breaks);
            ends = is_digit(peek());
            if (ends) high = number();
            space(line_breaks);
        }
        expect("}");
    }

    bool may_be_empty(const Item & item) const {
        return item.skippable || (item.rule != NO_RULE && rules_[item.rule].nullable);
    }

    void find_nullable() {
        for (bool changed = true; changed;) {
            changed = false;
            for (Rule & rule : rules_) {
                const bool now =
                    std::any_of(rule.alternatives.begin(), rule.alternatives.end(), [&](const auto & items) {
                        return std::all_of(items.begin(), items.end(),
                                           [&](const Item & item) { return may_be_empty(item); });
                    });
                changed       = changed || now != rule.nullable;
                rule.nullable = now;
            }
        }
    }

    // A rule that can begin with itself sends llama.cpp round for ever; its own search misses what is empty by other rules.
    void find_left_recursion(size_t id, size_t depth) {
        if (rules_[id].state == 2) return;
        if (rules_[id].state == 1)
            fail_rule(rules_[id], "can begin with itself (left recursion); put the recursion last");
        if (depth > DEEPEST * 2) fail_rule(rules_[id], "begins with rules that begin with rules, too many to follow");
        rules_[id].state = 1;
        double steps     = 1;
        for (const Alternative & items : rules_[id].alternatives) {
            for (const Item & item : items) {
                if (item.rule != NO_RULE) {
                    find_left_recursion(item.rule, depth + 1);
                    steps += double(item.times) * rules_[item.rule].steps;
                }
                if (!may_be_empty(item)) break;
            }
        }
        if (steps > MOST_STEPS) fail_rule(rules_[id], "can begin in too many ways for llama.cpp; write it with fewer");
        rules_[id].steps = steps;
        rules_[id].state = 2;
    }
};

} // namespace

GrammarFacts check_gbnf(const std::string & text, const std::string & root, const TokenCheck & token) {
    if (!well_formed(text) || text.find('\0') != std::string::npos) {
        throw Error(KAD_INVALID_ARGUMENT, "grammar is not UTF-8 without NUL; expected GBNF as UTF-8");
    }
    return Reader(text, token).read(root);
}

} // namespace kad
