#include "stage.h"

#include <algorithm>
#include <chrono>

#include "speaker.h"

namespace kad {

using Clock = std::chrono::steady_clock;

static double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

Stage::Stage(LanguageModel & model, const EventSpace & events, kad_role role, bool reproducible, size_t max_pass)
    : model_(model), events_(events), role_(role), reproducible_(reproducible),
      max_pass_(std::min(max_pass, std::min(model.max_batch(), model.max_rows()))) {
    for (size_t slot = 0; slot < model.n_slots(); ++slot) speakers_.push_back(std::make_unique<Speaker>(*this, slot));
}

void Stage::make_rows(const std::vector<Want> & wants) {
    const uint64_t before = passes_;
    open_.clear();
    for (const Want & want : wants) {
        Want left = want;
        if (left.speaker->lacks(*left.context, left.from)) open_.push_back(left);
    }
    while (!open_.empty()) {
        if (passes_ != before) {
            // Rows of an earlier pass are wanted too, and this one overwrites the model's buffer.
            for (const Want & want : wants) want.speaker->own_rows();
        }
        gather();
        const auto start = Clock::now();
        evaluate(pieces_, taking_);
        size_t n = 0;
        for (const Piece & piece : pieces_) n += piece.n;
        times.observe(n, since(start));
        const auto done = [](const Want & want) { return want.speaker->holds() >= want.context->size(); };
        open_.erase(std::remove_if(open_.begin(), open_.end(), done), open_.end());
    }
}

// The next pass: what the open wants lack, as far as max_pass goes.
void Stage::gather() {
    pieces_.clear();
    taking_.clear();
    size_t room = max_pass_;
    for (const Want & want : open_) {
        const size_t at = want.speaker->holds(), n = std::min(room, want.context->size() - at), end = at + n;
        if (n == 0) break;
        // Rows are wanted after the tokens from-1, from, ...
        const size_t n_rows = end < want.from ? 0 : std::min(n, end - (want.from - 1));
        pieces_.push_back({ want.speaker->slot(), want.context->data() + at, n, at, n_rows });
        taking_.push_back(want.speaker);
        room -= n;
    }
}

void Stage::evaluate(const std::vector<Piece> & pieces, const std::vector<Speaker *> & speakers, bool wait) {
    size_t n = 0;
    for (const Piece & piece : pieces) n += piece.n;
    make_room(n);
    running_         = pieces;
    waiting_         = speakers;
    const auto start = Clock::now();
    ++passes_;
    try {
        model_.evaluate(pieces.data(), pieces.size());
    } catch (...) {
        recover(pieces, speakers);
        throw;
    }
    running_s_ = since(start);
    if (wait) finish();
}

void Stage::finish() {
    if (waiting_.empty()) return;
    const auto start = Clock::now();
    model_.synchronize();
    running_s_ += since(start);
    size_t row = 0;
    for (size_t i = 0; i < running_.size(); ++i) {
        waiting_[i]->took(running_[i], row, running_s_);
        row += running_[i].n_rows;
    }
    waiting_.clear();
}

// After a pass that failed the slots hold an unknown part of it.
void Stage::recover(const std::vector<Piece> & pieces, const std::vector<Speaker *> & speakers) {
    waiting_.clear();
    for (size_t i = 0; i < pieces.size(); ++i) speakers[i]->lost(pieces[i].at);
}

void Stage::make_room(size_t n) {
    if (!model_.shares_cells()) return;
    size_t held = 0;
    for (const auto & speaker : speakers_) held += speaker->holds();
    for (const auto & speaker : speakers_) {
        if (held + n <= model_.n_ctx()) return;
        if (!speaker->idle()) continue;
        held -= speaker->holds();
        speaker->forget();
    }
}

} // namespace kad
