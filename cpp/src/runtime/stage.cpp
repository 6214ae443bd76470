#include "stage.h"

#include <algorithm>

#include "speaker.h"
#include "timer.h"

namespace kad {

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
    for (const Want & want : wants) {
        // Those that are at hand are wanted too, and the pass for the others overwrites the model's buffer.
        const auto open = [&](const Want & each) { return each.speaker == want.speaker; };
        if (!open_.empty() && std::none_of(open_.begin(), open_.end(), open)) want.speaker->own_rows();
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
    const Timer timer(spent);
    size_t      n = 0;
    for (const Piece & piece : pieces) n += piece.n;
    make_room(n);
    for (const auto & speaker : speakers_) {
        if (std::find(speakers.begin(), speakers.end(), speaker.get()) == speakers.end()) speaker->keep_prompt_row();
    }
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
    if (wait) take_rows();
}

void Stage::finish() {
    const Timer timer(spent);
    take_rows();
}

void Stage::take_rows() {
    if (waiting_.empty()) return;
    const auto start = Clock::now();
    try {
        model_.synchronize();
    } catch (...) {
        recover(std::vector<Piece>(running_), std::vector<Speaker *>(waiting_));
        throw;
    }
    running_s_ += since(start);
    size_t row = 0;
    for (size_t i = 0; i < running_.size(); ++i) {
        waiting_[i]->took(running_[i], row, running_s_);
        row += running_[i].n_rows;
    }
    waiting_.clear();
}

void Stage::settle() noexcept {
    try {
        finish();
    } catch (...) {
        // The slots hold no part of it then; what went wrong is reported by whoever asks next.
    }
}

// After a pass that failed the slots hold an unknown part of it.
void Stage::recover(const std::vector<Piece> & pieces, const std::vector<Speaker *> & speakers) {
    waiting_.clear();
    for (size_t i = 0; i < pieces.size(); ++i) speakers[i]->lost(pieces[i].at);
}

// Tokens in the caches; a prompt's beginning that several slots share is counted once.
size_t Stage::held() const {
    size_t held = 0;
    for (size_t i = 0; i < speakers_.size(); ++i) {
        size_t counted = 0;
        for (size_t j = 0; j < i; ++j) counted = std::max(counted, speakers_[i]->shares(*speakers_[j]));
        held += speakers_[i]->holds() - counted;
    }
    return held;
}

void Stage::make_room(size_t n) {
    if (!model_.shares_cells()) return;
    for (const auto & speaker : speakers_) {
        if (held() + n <= model_.n_ctx()) return;
        if (speaker->idle()) speaker->forget();
    }
}

} // namespace kad
