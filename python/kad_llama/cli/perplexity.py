"""`kad-llama perplexity`: how well do the mixture and either model alone predict a text?

As llama.cpp's own tool measures it: the file in windows of n_ctx tokens, one after the other, the second half of each window
scored after the first.
"""

from __future__ import annotations

import argparse
import codecs
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad_llama.cli import answer, output
from kad_llama.errors import ContextError, InvalidArgumentError

if TYPE_CHECKING:
    from kad_llama.prompts import Prompt
    from kad_llama.scoring import Completion, Score
    from kad_llama.session import KadLlama

_NAMES = {"pi": "logprob", "base alone": "base_logprob", "aligned alone": "aligned_logprob"}


@dataclass
class Series:
    """Log-probabilities of tokens, natural logarithm, and the bytes that they stand for."""

    values: list[float] = field(default_factory=list)
    bytes: int = 0

    def add(self, value: float | None, n_bytes: int) -> None:
        """Take one token; None is a token that this series has no number for."""
        if value is not None:
            self.values.append(value)
            self.bytes += n_bytes

    def report(self) -> dict[str, Any]:
        """Return perplexity and standard error, bits per byte, and what is left of it without the impossible tokens."""
        possible = [value for value in self.values if value > -math.inf]
        rest, error = _perplexity(possible)
        impossible = len(self.values) - len(possible)
        whole = impossible == 0
        return {
            "perplexity": rest if whole else math.inf,
            "standard_error": error if whole else math.nan,
            "bits_per_byte": -math.fsum(possible) / math.log(2) / self.bytes if whole and self.bytes else math.inf,
            "tokens": len(self.values),
            "impossible": impossible,
            "perplexity_of_the_rest": rest,
        }


def _perplexity(values: list[float]) -> tuple[float, float]:
    """exp of the mean surprise, and its standard error by the delta method; NaN where there are too few tokens."""
    n = len(values)
    if not n:
        return math.nan, math.nan
    mean = -math.fsum(values) / n
    if n == 1:
        return math.exp(mean), math.nan
    variance = math.fsum((value + mean) ** 2 for value in values) / n
    return math.exp(mean), math.exp(mean) * math.sqrt(variance / (n - 1))


@dataclass
class Totals:
    """What was scored so far."""

    series: dict[str, Series] = field(default_factory=lambda: {name: Series() for name in _NAMES})
    alphas: list[float] = field(default_factory=list)
    windows: int = 0
    scored: int = 0
    read: int = 0
    seconds: float = 0.0

    def add(self, score: Score, tokens: int, seconds: float) -> None:
        """Take one window of `tokens` tokens."""
        for token in score.tokens:
            for name, attribute in _NAMES.items():
                self.series[name].add(getattr(token, attribute), len(token.bytes))
            if token.deferred_mass is not None:
                self.alphas.append(token.deferred_mass)
        self.windows += 1
        self.scored += len(score.tokens)
        self.read += tokens
        self.seconds += seconds

    def report(self) -> dict[str, Any]:
        """Return the whole result, for JSON."""
        return {
            "series": {name: series.report() for name, series in self.series.items() if series.values},
            "mean_alpha": math.fsum(self.alphas) / len(self.alphas) if self.alphas else None,
            "tokens_scored": self.scored,
            "windows": self.windows,
            "tokens_per_second": self.read / self.seconds if self.seconds else math.nan,
        }


@dataclass(frozen=True)
class Window:
    """A stretch of the file, ready to be scored; `end` is where the next one begins."""

    prompt: Prompt
    completion: Completion
    tokens: int
    end: int


class Text:
    """A file in the tokens of the model that scores it, cut into windows that every context holds."""

    def __init__(self, kad: KadLlama, data: bytes) -> None:
        self.kad = kad
        self.role = kad._speaking_role
        info = getattr(kad, self.role)
        assert info is not None  # the model that runs
        self.bos = info.bos if info.add_bos and info.bos >= 0 else None
        self.ids = ([] if self.bos is None else [self.bos]) + kad._tokenize(data, self.role, False)
        self.bytes = [kad.token_bytes(token, role=self.role) for token in self.ids]
        if self.bos is not None:
            self.bytes[0] = b""
        self.other = "aligned" if self.role == "base" and kad.aligned is not None and not kad.vocab.equal else None
        self.whole = self._character_ends()
        self.n_ctx = info.n_ctx

    def _character_ends(self) -> list[bool]:
        """Whether a character begins at each token: across vocabularies the other model can be cut there."""
        if self.other is None:
            return [True] * (len(self.ids) + 1)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        ends = [True]
        for data in self.bytes:
            decoder.decode(data)
            ends.append(not decoder.getstate()[0])
        return ends

    def _cut(self, at: int, low: int) -> int:
        """Return the last place in low+1 .. at where a character begins."""
        while at > low + 1 and not self.whole[at]:
            at -= 1
        return at

    def window(self, begin: int, length: int) -> Window:
        """Return the window of (about) `length` tokens from `begin`; the first of them gives way to a BOS."""
        from kad_llama.prompts import Prompt
        from kad_llama.scoring import Completion

        end = self._cut(begin + length, begin)
        half = self._cut(begin + length // 2 + 1, begin)
        ids = self.ids[begin:half]
        if self.bos is not None:
            ids[0] = self.bos
        prompt = Prompt(base_ids=ids, aligned_ids=self._aligned_prompt(begin, half, ids))
        completion = Completion([(token,) for token in self.ids[half:end]], self.bytes[half:end])
        return Window(prompt, completion, end - begin, end)

    def _aligned_prompt(self, begin: int, half: int, ids: list[int]) -> list[int]:
        if self.other is None:
            return ids
        info = self.kad.aligned
        assert info is not None
        skipped = begin + (self.bos is not None)  # what the BOS took the place of
        own = self.kad._tokenize_continuation(b"".join(self.bytes[skipped:half]), "aligned")
        bos = [info.bos] if info.add_bos and info.bos >= 0 else []
        return bos + own

    def scores(self, settings: Any) -> Iterator[tuple[Score, Window]]:
        """Score window after window, to the last whole one.

        Across vocabularies a window may be too long for the other model, in whose tokens the text is longer: then it is
        shortened. What does not fit is refused before anything is evaluated.
        """
        begin, length = 0, self.n_ctx
        while begin + self.n_ctx <= len(self.ids):
            window = self.window(begin, length)
            try:
                score = self.kad._score(window.prompt, window.completion, settings)
            except ContextError:
                if self.other is None or length < 8:
                    raise
                length -= max(1, length // 16)
                continue
            yield score, window
            begin, length = window.end, self.n_ctx


def run(arguments: argparse.Namespace) -> int:
    """Measure and print. Answers the exit status."""
    from kad_llama.settings import read_settings

    data = _read(arguments.file)
    with answer.open_from(arguments) as kad:
        text = Text(kad, data)
        if len(text.ids) < text.n_ctx:
            raise InvalidArgumentError(
                f"{arguments.file!r} has {len(text.ids)} tokens, but one window needs {text.n_ctx}; "
                "give a longer file or a smaller -c"
            )
        settings = read_settings(temperature=arguments.temp, max_tokens=1, spec=False, logprobs=True, seed=0)
        totals, interrupted = _measure(text, settings, arguments.chunks)
    if arguments.json:
        output.dump(totals.report())
    else:
        _show(totals.report(), text.n_ctx)
    return answer.INTERRUPTED if interrupted else 0


def _read(path: str) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {path!r}: {error.strerror}") from error
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path!r} is not UTF-8: byte {error.start} is {data[error.start]:#04x}") from None
    return data.removeprefix(codecs.BOM_UTF8)


def _measure(text: Text, settings: Any, chunks: int | None) -> tuple[Totals, bool]:
    """Score all windows, or the first `chunks`; Ctrl-C ends it with what there is."""
    totals = Totals()
    windows = len(text.ids) // text.n_ctx
    share = 1.0 if chunks is None else min(1.0, chunks / windows)
    with output.working("scoring", share * len(text.ids)) as progress:
        start = time.perf_counter()
        try:
            for score, window in islice(text.scores(settings), chunks):
                now = time.perf_counter()
                totals.add(score, window.tokens, now - start)
                start = now
                if progress is not None:
                    progress(window.end)
        except KeyboardInterrupt:
            return totals, True
    return totals, False


def _show(report: dict[str, Any], n_ctx: int) -> None:
    header = ["", "perplexity", "+-", "bits per byte"]
    impossible = any(series["impossible"] for series in report["series"].values())
    if impossible:
        header += ["impossible", "of the rest"]
    rows = []
    for name, series in report["series"].items():
        row = [name, _figure(series["perplexity"]), _figure(series["standard_error"]), _figure(series["bits_per_byte"])]
        if impossible:
            row += [str(series["impossible"]), _figure(series["perplexity_of_the_rest"])]
        rows.append(row)
    output.table(rows, header)
    alpha = "" if report["mean_alpha"] is None else f"; mean alpha {report['mean_alpha']:.3f}"
    print(
        f"{report['tokens_scored']} tokens scored in {report['windows']} windows of {n_ctx}{alpha}; "
        f"{report['tokens_per_second']:.0f} tokens a second"
    )
    if impossible:
        output.note(
            "impossible: tokens of the text that the speaker cannot say there; one of them makes the perplexity infinite. "
            "Of the rest: the perplexity of the others."
        )


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}" if value < 1000 else f"{value:.1f}"
