#include "speaker.h"

#include <algorithm>
#include <cmath>

#include "../core/draw.h"
#include "timer.h"

namespace kad {

static const char * name_of(kad_role role) {
    static const char * const names[ROLE_COUNT] = { "base model", "aligned model", "reference model" };
    return names[role];
}

void Speaker::begin(const Reading & reading, size_t keep_rows, bool own_rows) {
    reading_  = reading;
    own_rows_ = own_rows;
    idle_     = false;
    this->keep_rows(keep_rows);
    for (Row & row : rows_) {
        row.read = false;
        // The next reading may ask for the row over ids. One whose buffer was overwritten is gone.
        if (row.over_events && row.length > 0 && has_row(row.length)) {
            restore_own(row);
        } else if (row.over_events) {
            row.length = 0;
        }
        // A row after generated tokens may come from another pass than the one a fresh run would make.
        if (stage_.reproducible()) row.length = 0;
    }
    count    = EvaluationCount();
    started_ = false;
    cached_  = 0;
}

void Speaker::keep_rows(size_t n) {
    if (rows_.size() >= n) return;
    std::vector<Row> rows(n);
    for (Row & row : rows_) {
        if (row.length > 0) rows[row.length % n] = std::move(row);
    }
    rows_.swap(rows);
}

size_t Speaker::common_prefix(const std::vector<Token> & context) const {
    const size_t n = std::min(tokens_.size(), context.size());
    return size_t(std::mismatch(tokens_.begin(), tokens_.begin() + ptrdiff_t(n), context.begin()).first -
                  tokens_.begin());
}

// Keeps the first `keep` tokens of the cache; caches that cannot rewind start again from nothing.
void Speaker::rewind(size_t keep) {
    if (keep >= tokens_.size()) return;
    if (!model().can_rewind()) keep = 0;
    tokens_.resize(keep);
    model().drop(slot_, keep);
    n_shared_ = std::min(n_shared_, keep);
    blocks_   = std::min(blocks_, keep / BLOCK * BLOCK);
    for (Row & row : rows_) {
        if (row.length > keep) row.length = 0;
    }
}

void Speaker::trim(const std::vector<Token> & context) {
    // A cache that cannot rewind would be emptied: better keep it, a longer prompt may still extend it.
    if (model().can_rewind()) rewind(common_prefix(context));
}

// ---- Passes -----------------------------------------------------------------------------------------------------------

void Speaker::took(const Piece & piece, size_t first_row, double seconds) {
    count.seconds += seconds;
    ++count.passes;
    tokens_.insert(tokens_.end(), piece.tokens, piece.tokens + piece.n);
    for (size_t i = 0; i < piece.n_rows; ++i)
        store(model().row(first_row + i), piece.at + piece.n - piece.n_rows + i + 1);
}

void Speaker::lost(size_t keep) {
    if (!model().can_rewind()) keep = 0;
    model().drop(slot_, keep);
    tokens_.resize(keep);
    n_shared_ = std::min(n_shared_, keep);
    if (keep > 0) return;
    blocks_ = 0;
    for (Row & row : rows_) row.length = 0;
}

// The row is made ready where it lies, in the model's buffer, until the next pass: only rows that are needed longer are copied.
void Speaker::store(float * logits, size_t length) {
    Row & row       = at(length);
    row.length      = length;
    row.read        = false;
    row.own         = logits;
    row.pass        = stage_.passes();
    row.over_events = false;
    {
        const Timer timer(count.read_s);
        stage_.events().prepare(stage_.role(), row.own);
    }
    if (own_rows_) own_row(row);
}

void Speaker::own_row(Row & row) {
    if (row.pass == 0) return;
    const Timer timer(count.read_s);
    row.copy.assign(row.own, row.own + stage_.events().row_size(stage_.role()));
    row.own  = row.copy.data();
    row.pass = 0;
    row.read = false;
}

void Speaker::own_rows() {
    for (Row & row : rows_) {
        if (row.length > 0 && row.pass == stage_.passes()) own_row(row);
    }
}

// A text whose prompt was evaluated may wait while others go on.
void Speaker::keep_prompt_row() {
    if (n_prompt_ > 0 && tokens_.size() == n_prompt_ && has_row(n_prompt_)) own_row(at(n_prompt_));
}

// A row of the prompt comes out of the pass over its whole block in reproducible runs, never out of a pass of its own.
size_t Speaker::last_block() const { return stage_.reproducible() ? (n_prompt_ - 1) / BLOCK * BLOCK : n_prompt_ - 1; }

void Speaker::choose_reuse(const std::vector<Token> & prompt) {
    const size_t n = prompt.size(), common = common_prefix(prompt);
    if (stage_.reproducible()) {
        // Only whole blocks that were evaluated as prompt blocks, and never the last block: so that every row after
        // the prompt comes from the same passes whatever ran before.
        rewind(std::min({ blocks_, common / BLOCK * BLOCK, (n - 1) / BLOCK * BLOCK }));
    } else if (common == n && has_row(n)) {
        rewind(n);
    } else {
        rewind(std::min(common, n - 1));
    }
    cached_  = tokens_.size();
    started_ = true;
}

void Speaker::adopt(Speaker & other, const std::vector<Token> & prompt) {
    const size_t n = std::min(other.common_prefix(prompt), prompt.size());
    if (&other == this || n <= common_prefix(prompt)) return;
    rewind(0);
    model().copy(other.slot_, slot_, n);
    tokens_.assign(prompt.begin(), prompt.begin() + ptrdiff_t(n));
    if (other.n_shared_ == 0) {
        other.share_    = stage_.new_share();
        other.n_shared_ = n;
    }
    // What goes beyond the other's own share is counted twice, which is safe.
    share_    = other.share_;
    n_shared_ = std::min(n, other.n_shared_);
    if (n < prompt.size() || !other.has_row(n)) return;
    const Row & theirs = other.rows_[n % other.rows_.size()];
    Row &       ours   = at(n);
    ours.length        = n;
    ours.own           = theirs.own;
    ours.merged        = theirs.merged;
    ours.over_events   = theirs.over_events;
    ours.pass          = stage_.passes();
    ours.read          = false;
    own_row(ours);
}

size_t Speaker::shares(const Speaker & other) const {
    return share_ == other.share_ ? std::min(n_shared_, other.n_shared_) : 0;
}

void Speaker::start_block(const std::vector<Token> & prompt) {
    const size_t n = prompt.size();
    n_prompt_      = n;
    if (!started_) choose_reuse(prompt);
    if (tokens_.size() == n && has_row(n)) return;
    if (tokens_.size() >= n) rewind(last_block()); // interrupted between evaluation and row
    evaluate_block(prompt, 1, false);
}

bool Speaker::finish_block(const std::vector<Token> & prompt) {
    stage_.finish();
    return tokens_.size() == prompt.size() && has_row(prompt.size());
}

// The next block of the prompt, with rows after its last n_rows tokens if it is the last.
void Speaker::evaluate_block(const std::vector<Token> & context, size_t n_rows, bool wait) {
    const size_t most  = stage_.reproducible() ? std::min(BLOCK, model().max_batch()) : model().max_batch();
    const size_t at    = tokens_.size();
    const size_t block = std::min(most, n_prompt_ - at);
    const bool   last  = at + block == n_prompt_;
    stage_.evaluate({ { slot_, context.data() + at, block, at, last ? std::min(n_rows, block) : 0 } }, { this }, wait);
    if (blocks_ == at && block == BLOCK) blocks_ = at + BLOCK;
}

Row & Speaker::row(const std::vector<Token> & context, uint64_t event) {
    const size_t length = context.size();
    stage_.make_rows({ { this, &context, length } });
    if (!has_row(length)) throw Error(KAD_INTERNAL_ERROR, "no row after " + std::to_string(length) + " tokens");
    Row & row = at(length);
    if (!row.read || row.event != event) read(row, event);
    return row;
}

bool Speaker::has_row(const std::vector<Token> & context) const {
    return has_row(context.size()) && common_prefix(context) == context.size();
}

void Speaker::keep_row(const std::vector<Token> & context) {
    if (has_row(context)) own_row(at(context.size()));
}

bool Speaker::lacks(const std::vector<Token> & context, size_t & from) {
    const size_t n      = context.size();
    const size_t common = common_prefix(context);
    // Where the cache already goes on beyond the context (guesses), its rows stay: they may prove right.
    if (common < n) rewind(common);
    const size_t first = from;
    while (from <= n && has_row(from)) ++from;
    if (from > n) return false;
    for (size_t length = first; length < from; ++length) own_row(at(length));
    rewind(from > n_prompt_ ? from - 1 : std::min(from - 1, last_block()));
    // A cache that could not rewind lacks the prompt too: it comes back in the blocks that it came in.
    while (tokens_.size() < n_prompt_) evaluate_block(context, from > n_prompt_ ? 0 : n_prompt_ - (from - 1), true);
    return tokens_.size() < n;
}

// ---- Reading ----------------------------------------------------------------------------------------------------------

// In place where that can be: a copy of a long row costs as much as reading it.
const float * Speaker::over_events(Row & row) {
    const EventSpace & events = stage_.events();
    const kad_role     role   = stage_.role();
    if (!reading_.in_place || !events.in_place(role)) return events.project(role, row.own, row.entries);
    if (!row.over_events) events.project_in_place(role, row.own, row.merged);
    row.over_events = true;
    return row.own;
}

// Back over the model's own ids; what was read of it over events is then to be read again.
void Speaker::restore_own(Row & row) {
    if (!row.over_events) return;
    stage_.events().restore(stage_.role(), row.own, row.merged);
    row.over_events = false;
    row.read        = false;
}

// One pass over the row where rule and speaker ask the same question of the same numbers; otherwise one each.
void Speaker::read(Row & row, uint64_t event) {
    const Timer        timer(count.read_s);
    const EventSpace & events = stage_.events();
    const kad_role     role   = stage_.role();
    const size_t       n_own  = events.row_size(role);
    const float *      raw    = row.own;
    const float *      spoken = raw;
    if (reading_.shaper) {
        // Truncation could drop the very token whose logit is NaN, and would sort by it.
        check_logits(raw, n_own, name_of(role));
        row.shaped_own.resize(n_own);
        // What the cache holds up to this row is its context: rows beyond a rewind are gone.
        reading_.shaper->shape(tokens_.data(), row.length, event, raw, row.shaped_own.data(), n_own);
        spoken = row.shaped_own.data();
    }
    if (!events.shared_ids()) {
        raw          = over_events(row);
        spoken       = reading_.shaper ? events.project(role, spoken, row.shaped_entries) : raw;
        row.by_event = raw;
    }
    const auto set = [&](Distribution & out, const float * logits, double temperature) {
        out.set(logits, events.entries(role), temperature, name_of(role), events.support(role), model().workers());
    };
    set(row.spoken, spoken, reading_.temperature);
    if (reading_.rule_temperature > 0) {
        if (spoken == raw && reading_.rule_temperature == reading_.temperature) {
            row.at_rule = row.spoken;
        } else {
            set(row.at_rule, raw, reading_.rule_temperature);
        }
    }
    row.read  = true;
    row.event = event;
}

const Distribution & Speaker::own(Row & row) {
    const Timer timer(count.read_s);
    restore_own(row);
    const bool shaped = reading_.shaper != nullptr;
    own_.set(shaped ? row.shaped_own.data() : row.own, stage_.events().row_size(stage_.role()), reading_.temperature,
             name_of(stage_.role()));
    return own_;
}

Token Speaker::draw_own(Row & row, double coin, double & logprob) {
    const Token v = own(row).draw(coin);
    logprob       = own_.log_probability(v);
    return v;
}

// masked_: the own row with only ids of ok_ids left, after the samplers; false when none is left: a bias may ban what the
// grammar allows.
bool Speaker::mask(const Row & row, const std::vector<uint8_t> & ok_ids) {
    masked_.assign(row.own, row.own + ok_ids.size());
    for (size_t i = 0; i < masked_.size(); ++i) {
        if (!ok_ids[i]) masked_[i] = -INFINITY;
    }
    if (reading_.shaper && possible(masked_.data(), masked_.size())) {
        masked_shaped_.resize(masked_.size());
        reading_.shaper->shape(tokens_.data(), row.length, row.event, masked_.data(), masked_shaped_.data(),
                               masked_.size());
        masked_.swap(masked_shaped_);
    }
    return possible(masked_.data(), masked_.size());
}

Token Speaker::draw_own_allowed(Row & row, const std::vector<uint8_t> & ok, double coin, double & logprob) {
    Token v = draw_allowed(own_, ok, coin); // own_ is this row: draw_own() came first
    if (v >= 0) logprob = own_.log_probability(v);
    if (v >= 0 || !mask(row, ok)) return v;
    logprob = -INFINITY;
    own_.set(masked_.data(), masked_.size(), reading_.temperature, name_of(stage_.role()));
    return own_.draw(coin);
}

bool Speaker::restricted(const Row & row, const std::vector<uint8_t> & ok, std::vector<float> & buffer,
                         Distribution & out) {
    const EventSpace &   events = stage_.events();
    const kad_role       role   = stage_.role();
    std::vector<uint8_t> ok_ids(events.row_size(role));
    for (size_t i = 0; i < ok_ids.size(); ++i) {
        const Token event = events.event(role, Token(i));
        ok_ids[i]         = event >= 0 && ok[size_t(event)];
    }
    if (!mask(row, ok_ids)) return false;
    if (events.shared_ids()) {
        buffer = masked_;
    } else {
        events.project(role, masked_.data(), buffer);
    }
    out.set(buffer.data(), buffer.size(), reading_.temperature, name_of(role), events.support(role));
    return true;
}

} // namespace kad
