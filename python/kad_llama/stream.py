"""One text being written: settings checked, tokens as they come, what is held back, the result."""

from __future__ import annotations

import codecs
import contextlib
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check, text
from kad_llama.errors import StateError
from kad_llama.generation import Generation, Stats, Token
from kad_llama.prompts import Prompt
from kad_llama.settings import Settings, read_settings

__all__ = ["Settings", "Stream", "read_settings"]

_MODES: dict[int, Literal["speculative", "lazy", "plain", "auto"]] = {
    lib.KAD_MODE_SPECULATIVE: "speculative",
    lib.KAD_MODE_LAZY: "lazy",
    lib.KAD_MODE_PLAIN: "plain",
    lib.KAD_MODE_AUTO: "auto",
}
# Numbers that the C API takes by the same name.
_PLAIN = (
    *("text_number", "temperature", "max_tokens", "mirostat"),
    *("top_k", "top_p", "min_p", "typical_p", "xtc_probability", "xtc_threshold"),
    *("repeat_penalty", "frequency_penalty", "presence_penalty", "repeat_last_n"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
)
_GUESSES: tuple[Literal["none", "right", "corrected"], ...] = ("none", "right", "corrected")
_SOURCES: tuple[Literal["base", "aligned", "joint"], ...] = ("base", "aligned", "joint")


_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _strings(texts: Iterable[str]) -> tuple[list[Any], Any]:
    """Return a ``char *[]`` and, first, what it points to: both must live as long as it is read."""
    owned = [ffi.new("char[]", text.encode()) for text in texts]
    return owned, ffi.new("char *[]", owned)


def _mode(settings: Settings) -> tuple[int, int]:
    """Return the kad_mode and the draft of these settings."""
    if not settings.spec:
        return lib.KAD_MODE_PLAIN, 1
    if settings.draft == "auto":
        return lib.KAD_MODE_AUTO, 1
    return (lib.KAD_MODE_SPECULATIVE, settings.draft) if settings.draft else (lib.KAD_MODE_LAZY, 1)


def seed_of(settings: Settings) -> int:
    """Return the seed, drawn where none is given."""
    return secrets.randbits(32) if settings.seed is None else settings.seed


def let_interrupt_in(engine: Any) -> None:
    """Python runs signal handlers in the main thread, after a call: there Ctrl-C is let into the call."""
    main = threading.current_thread() is threading.main_thread()
    lib.kad_engine_catch_sigint(engine, main)


class Text:
    """One text being written in an engine: its sequence, what it said, what is held back.

    Tokens are held back while their bytes do not make whole characters and while a stop string may still take them away.

    Ctrl-C may strike between any two bytecodes. So lists only grow, each by one call, what is still to be done follows from
    their lengths, and everything here may be done again.
    """

    def __init__(self, engine: Any, prompt: Prompt, settings: Settings, seed: int) -> None:
        self._start = time.perf_counter()
        self._engine = engine
        self._settings = settings
        self._seed = seed
        # Whatever Ctrl-C cuts short, the sequence is closed with this object: it is known here as soon as it is open, and
        # closing and forgetting it is one call.
        self._place: Any = ffi.new("kad_sequence **")
        self._guard: Any = ffi.gc(self._place, lib.kad_sequence_release)
        self._buffer = ffi.new("kad_token[]", lib.kad_max_draft(engine) + 1)
        self._count = ffi.new("int32_t *")  # tokens in the buffer
        self._length = ffi.new("size_t *")  # of the text, and of it what is settled
        self._settled = ffi.new("size_t *")
        self._before = 0  # tokens said before those
        # All of them, each with the text's length in bytes after it, its own bytes, and the further fields of Token.
        self._said: list[tuple[int, bytes, tuple[Any, ...]]] = []
        self.tokens: list[Token] = []  # those that can no longer change, with their texts
        self._open(prompt)

    def _open(self, prompt: Prompt) -> None:
        chosen = self._settings
        params = ffi.new("kad_sequence_params *", lib.kad_sequence_default_params())
        params.seed = self._seed
        for name in _PLAIN:
            setattr(params, name, getattr(chosen, name))
        params.mode, params.draft = _mode(chosen)
        params.ngram = chosen.ngram
        params.logprobs = chosen.logprobs
        biases = chosen.logit_bias or {}
        lists = {
            "stops": (*(chosen.stop or ()), *prompt.stops),
            "dry_sequence_breakers": chosen.dry_sequence_breakers,
            "bias_texts": tuple(biases),
        }
        alive = {name: _strings(texts) for name, texts in lists.items()}
        for name, (_, array) in alive.items():
            setattr(params, name, array)
        params.n_stops, params.n_dry_sequence_breakers, params.n_biases = (len(texts) for texts in lists.values())
        values = ffi.new("double[]", list(biases.values()))
        params.biases = values
        grammar = ffi.NULL if chosen.grammar is None else ffi.new("char[]", chosen.grammar.encode())
        params.grammar = grammar
        base, aligned = (ffi.new("int32_t[]", ids or []) for ids in (prompt.base_ids, prompt.aligned_ids))
        check(lib.kad_sequence_open(self._engine, params, base, len(base), aligned, len(aligned), self._place))
        del alive

    @property
    def sequence(self) -> Any:
        """The open sequence; NULL after `close`."""
        return self._place[0]

    def step(self) -> int:
        """One piece of work for this text alone: the status."""
        self._empty_buffer()
        return int(lib.kad_sequence_step(self.sequence, self._buffer, len(self._buffer), self._count))

    def take(self) -> None:
        """Take over what the engine has."""
        self._empty_buffer()
        check(lib.kad_sequence_take(self.sequence, self._buffer, len(self._buffer), self._count))

    def close(self) -> None:
        """Give up the sequence; what was written stays."""
        lib.kad_sequence_release(self._place)

    def _empty_buffer(self) -> None:
        self._read_buffer()
        self._count[0] = 0
        self._before = len(self._said)

    def _read_buffer(self) -> None:
        while len(self._said) < self._before + self._count[0]:
            self._said.append(self._event(self._buffer[len(self._said) - self._before]))

    def _event(self, said: Any) -> tuple[int, bytes, tuple[Any, ...]]:
        fields = (
            said.id,
            _SOURCES[said.source],
            _or_none(said.logprob),
            _or_none(said.base_share),
            _or_none(said.deferred_mass),
            _GUESSES[said.guess],
            _or_none(said.base_logprob),
            _or_none(said.aligned_logprob),
            tuple(ffi.unpack(said.ids, said.n_ids)),
        )
        before = self._said[-1][0] if self._said else 0
        return before + said.n_bytes, bytes(ffi.buffer(said.bytes, said.n_bytes)), fields

    def settle(self, cut: bool = False) -> bool:
        """Hand out whole characters that no stop string can take away; all there is, where the text ends here.

        True when it has ended, or is `cut`.
        """
        self._read_buffer()
        ended = cut or bool(lib.kad_sequence_finish(self.sequence) != lib.KAD_FINISH_NONE)
        check(lib.kad_sequence_length(self.sequence, self._length, self._settled))
        length, settled = self._length[0], self._settled[0]
        decoder = _Utf8Decoder("replace")  # what is handed out ends with a whole character
        character: list[Token] = []
        for end, said, fields in self._said[len(self.tokens) :]:
            begin = end - len(said)
            if begin >= length or not (ended or end <= settled):
                break  # this one and all after it lie in the stop string, or may
            character.append(Token(decoder.decode(said[: length - begin]), said, *fields))
            if not decoder.getstate()[0]:
                self.tokens.extend(character)
                character = []
        if ended and character:
            rest = decoder.decode(b"", final=True)
            self.tokens.extend([*character[:-1], replace(character[-1], text=character[-1].text + rest)])
        return ended

    def stats(self) -> Stats:
        c = ffi.new("kad_stats *")
        check(lib.kad_sequence_stats(self.sequence, c))
        return Stats(
            prompt_tokens=c.prompt_tokens,
            prompt_tokens_aligned=c.prompt_tokens_aligned,
            prompt_cached=c.prompt_cached,
            tokens=c.tokens,
            base_passes=c.base_passes,
            aligned_passes=c.aligned_passes,
            reference_passes=c.reference_passes,
            drafted=c.drafted,
            accepted=c.accepted,
            acceptance_rate=c.accepted / c.drafted if c.drafted else 0.0,
            tokens_per_base_pass=c.tokens / c.base_passes if c.base_passes else 0.0,
            deferred_mass=_or_none(c.deferred_mass),
            aligned_share=c.aligned_tokens / c.tokens if c.tokens else 0.0,
            mode=_MODES[c.mode],
            note=text(lib.kad_sequence_note(self.sequence)),
            tokens_per_second=c.tokens / c.generate_s if c.generate_s else 0.0,
            prompt_s=c.prompt_s,
            wall_s=time.perf_counter() - self._start,
            base_eval_s=c.base_eval_s,
            aligned_eval_s=c.aligned_eval_s,
            reference_eval_s=c.reference_eval_s,
            read_s=c.read_s,
            draw_s=c.draw_s,
            text_s=c.text_s,
        )

    def summary(self, interrupted: bool) -> Generation:
        finish = lib.kad_sequence_finish(self.sequence)
        reason: Literal["stop", "length", "interrupted"] = "length"
        if interrupted or finish == lib.KAD_FINISH_NONE:
            reason = "interrupted"
        elif finish in (lib.KAD_FINISH_EOG, lib.KAD_FINISH_STOP):
            reason = "stop"
        joined = "".join(token.text for token in self.tokens)
        return Generation(joined, list(self.tokens), reason, self._seed, self.stats())


class Stream:
    """An iterator of `Token`; `result` is the `Generation` once it has ended, also when it was closed or interrupted.

    Tokens are held back while their bytes do not make whole characters and while a stop string may still take them away.
    """

    def __init__(self, engine: Any, prompt: Prompt, settings: Settings, release: Callable[[], None]) -> None:
        self._lock = threading.RLock()  # one thread at a time reads, closes or asks
        self._ending = threading.Lock()  # the engine may be cancelled only while this text is open
        self._closing = False
        self._engine = engine
        self._release: Callable[[], None] | None = None
        self._result: Generation | None = None
        self._open = False
        self._stepping = False
        self._handed_out = 0  # tokens
        self._text = Text(engine, prompt, settings, seed_of(settings))
        self._open = True
        self._release = release

    # ---- Reading ----------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        with self._lock:
            while self._handed_out == len(self._text.tokens):
                if self._closing:
                    self._end(interrupted=True)
                if not self._open:
                    raise StopIteration
                self._step()
            self._handed_out += 1
            return self._text.tokens[self._handed_out - 1]

    @property
    def busy(self) -> bool:
        """Whether a step is under way, as a signal handler finds it."""
        return self._stepping

    def _step(self) -> None:
        """One piece of work: a block of the prompt, or one round."""
        try:
            self._stepping = True
            let_interrupt_in(self._engine)
            status = self._text.step()
            if status == lib.KAD_INTERRUPTED and self._closing:
                return self._end(interrupted=True)  # close() in another thread
            check(status)
            ended = self._text.settle()
        except BaseException:
            self._end(interrupted=True)
            raise
        finally:
            self._stepping = False
        if ended:
            self._end(interrupted=False)

    def rows(self, n: int, models: int) -> tuple[NDArray[np.float32], ...]:
        """Return the rows of base, aligned and (with models=3) reference at the next position, `n` events each."""
        rows = tuple(np.empty(n, np.float32) for _ in range(models))
        pointers = [ffi.cast("float *", ffi.from_buffer(row, require_writable=True)) for row in rows]
        pointers += [ffi.NULL] * (3 - models)
        with self._lock:
            if not self._open:
                raise StateError("this stream has ended; its rows are gone")
            let_interrupt_in(self._engine)
            check(lib.kad_sequence_rows(self._text.sequence, *pointers, n))
        return rows

    def score(
        self, ids: Sequence[Sequence[int]], sources: Sequence[int] | None, *, events: bool
    ) -> list[tuple[float, float, float, float, float]]:
        """Score a given text instead of writing one, which ends this stream: the fields of ``kad_score`` for every entry.

        `events`: an entry is an event of one or more ids; else it is one id.
        """
        flat = ffi.new("int32_t[]", [token for entry in ids for token in entry])
        counts = ffi.new("int32_t[]", [len(entry) for entry in ids]) if events else ffi.NULL
        speakers = ffi.NULL if sources is None else ffi.new("int32_t[]", sources)
        out = ffi.new("kad_score[]", len(ids))
        with self._lock:
            if not self._open:
                raise StateError("this stream has ended; open a new one to score a text")
            let_interrupt_in(self._engine)
            check(lib.kad_sequence_score(self._text.sequence, flat, counts, speakers, len(ids), out))
        return [(s.logprob, s.base_logprob, s.aligned_logprob, s.deferred_mass, s.base_share) for s in out]

    # ---- Ending -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the text here, if it goes on, and free the instance for the next call. May be called again.

        From another thread it stops the evaluation that runs; the thread that reads the stream comes to its end.
        """
        self._closing = True
        while not self._lock.acquire(timeout=0.01):
            with self._ending:
                if self._open:
                    lib.kad_engine_cancel(self._engine)
        try:
            self._end(interrupted=True)
        finally:
            self._lock.release()

    def _end(self, interrupted: bool) -> None:
        try:
            if self._open:
                if interrupted:
                    self._text.settle(cut=True)
                self._result = self._text.summary(interrupted)
        finally:
            # All of it may be done again, where Ctrl-C cut it short.
            with self._ending:
                self._open = False
            self._text.close()
            if self._release is not None:
                self._release()

    @property
    def stats(self) -> Stats:
        """The statistics so far; those of the result once the stream has ended."""
        with self._lock:
            return self._text.stats() if self._result is None else self._result.stats

    @property
    def partial(self) -> Generation | None:
        """The `Generation` as far as it went, once the stream has ended in whatever way; None before."""
        return self._result

    @property
    def result(self) -> Generation:
        """The `Generation`, once the stream has ended, was closed or was interrupted.

        Raises
        ------
        StateError
            While it goes on.
        """
        if self._result is None:
            raise StateError("this stream goes on; read it to its end or close() it, then ask for its result")
        return self._result

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
