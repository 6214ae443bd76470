"""`kad-llama bench`, the numbers: from what was measured to the table, the bound and the advice. Nothing is run here.

The bound is the speed that the measured passes and guesses allow when drawing costs nothing. Of a setting:

    tokens per round / seconds per round,    a round being one base pass and the aligned passes before it.

Seconds per round are (base_s + aligned_s) / base_passes of a run, the median over the repeats: B(k + 1) + a A, with B(n) the
time of a base pass of n tokens, A that of an aligned pass and a their number in a round, all as runs with draft k had them
(the reference model's time is counted with the base's). A plain or lazy run has a round for every token.

With draft k it writes E(k) in the mean. Whether the guess at a position is right does not depend on the draft length: it is
the same draw by the same coin. So E(k) follows from the runs with the longest draft. A stretch of L right guesses and the
wrong one after it are L + 1 tokens, written in ceil((L + 1) / (k + 1)) rounds of k guesses. A stretch that the text's end
cut is L tokens in L / (k + 1) rounds. A token that nobody guessed, as after a whole draft that was right, counts as right:
that errs upwards, save for the longest draft.

The bound is the largest of these over the settings that ran. It keeps one length for the whole text: a drafter that knows
where to stop can be faster.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ALIGNED", "AUTO", "BASE", "PLAIN", "Sample", "Series", "advice", "bound", "entry", "rows"]

BASE, ALIGNED, PLAIN, AUTO = "base alone", "aligned alone", "plain", "auto"
HEADER = ("run", "tokens/s", "times base alone", "right", "per pass", "outside", "MiB")
NARROW = ("run", "tokens/s", "times", "right", "/pass", "outside", "MiB")
MOSTLY_WRONG = 0.5
FEWEST_REPEATS = 3
WORTH_A_FLAG = 1.05  # less is not worth setting by hand, and within what machines do from day to day
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One run. Times are seconds after the prompt; `guesses` has Token.guess of every token."""

    tokens: int
    seconds: float
    base_s: float = 0.0
    base_passes: int = 0
    aligned_s: float = 0.0
    aligned_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    guesses: tuple[str, ...] = ()

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds

    @property
    def outside(self) -> float:
        """Share of the time that no model was evaluated."""
        return 1 - (self.base_s + self.aligned_s) / self.seconds


@dataclass
class Series:
    """The runs of one candidate, by the number of the repeat; `draft` is 0 where the length of drafts is not fixed."""

    name: str
    flag: str = ""
    draft: int = 0
    memory_bytes: int = 0
    samples: dict[int, Sample] = field(default_factory=dict)

    @property
    def of_the_pair(self) -> bool:
        """Whether both models ran."""
        return bool(self.flag)

    def total(self, name: str) -> float:
        """Return the sum of one field over all runs."""
        return math.fsum(getattr(sample, name) for sample in self.samples.values())


def spread(values: Sequence[float]) -> dict[str, Any] | None:
    """Return median, least and greatest, and the values themselves; None of nothing."""
    if not values:
        return None
    return {
        "median": statistics.median(values),
        "least": min(values),
        "greatest": max(values),
        "values": list(values),
    }


def ratios(series: Series, other: Series) -> list[float]:
    """How many times as fast as another candidate in the same repeat: of two runs side by side, the machine was one."""
    return [
        sample.speed / other.samples[repeat].speed
        for repeat, sample in series.samples.items()
        if repeat in other.samples
    ]


def entry(series: Series, base: Series) -> dict[str, Any]:
    """Return what --json says of one candidate: medians over the repeats."""
    samples = list(series.samples.values())
    return {
        "name": series.name,
        "flag": series.flag,
        "tokens_per_second": spread([sample.speed for sample in samples]),
        "times_base_alone": spread(ratios(series, base)),
        "right": _median(sample.accepted / sample.drafted for sample in samples if sample.drafted),
        "tokens_per_base_pass": _median(sample.tokens / sample.base_passes for sample in samples if sample.base_passes),
        "outside_evaluation": _median(sample.outside for sample in samples),
        "tokens": _median(sample.tokens for sample in samples),
        "base_pass_s": base_pass(series),
        "aligned_pass_s": aligned_pass(series),
        "memory_bytes": series.memory_bytes,
    }


def base_pass(series: Series) -> float | None:
    """Return the seconds of a base pass."""
    return _median(s.base_s / s.base_passes for s in series.samples.values() if s.base_passes)


def aligned_pass(series: Series) -> float | None:
    """Return the seconds of an aligned pass."""
    return _median(s.aligned_s / s.aligned_passes for s in series.samples.values() if s.aligned_passes)


def variation(all_series: Iterable[Series]) -> float | None:
    """Return how many times its least speed a greatest is, at worst; None of single runs.

    Of the models alone and of plain runs: their speed does not depend on what is written, so that only the machine is left.
    """
    steady = [series for series in all_series if not series.of_the_pair or series.name == PLAIN]
    speeds = [[sample.speed for sample in series.samples.values()] for series in steady]
    return max((max(values) / min(values) for values in speeds if len(values) > 1), default=None)


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


# ---- The bound ----------------------------------------------------------------------------------------------------------


def right_runs(guesses: Iterable[str]) -> list[tuple[int, bool]]:
    """Return the lengths of the stretches of right guesses, each with whether a wrong guess came after it."""
    runs, length = [], 0
    for guess in guesses:
        if guess == "corrected":
            runs.append((length, True))
            length = 0
        else:
            length += 1
    return [*runs, (length, False)] if length else runs


def tokens_per_round(runs: Sequence[tuple[int, bool]], draft: int) -> float:
    """Return E(draft), of the stretches of right guesses."""
    tokens = sum(length + wrong for length, wrong in runs)
    rounds = math.fsum(
        math.ceil((length + 1) / (draft + 1)) if wrong else length / (draft + 1) for length, wrong in runs
    )
    return tokens / rounds if rounds else math.nan


def bound(all_series: Sequence[Series]) -> dict[str, Any] | None:
    """Return the bound, where it lies, and that of every setting; None before any setting ran."""
    pair = [series for series in all_series if series.of_the_pair and series.samples]
    longest = max((series for series in pair if series.draft), key=lambda series: series.draft, default=None)
    runs = [] if longest is None else [run for s in longest.samples.values() for run in right_runs(s.guesses)]
    settings = {series.name: _bound_of(series, runs) for series in pair if series.name != AUTO}
    settings = {name: speed for name, speed in settings.items() if math.isfinite(speed)}
    if not settings:
        return None
    best = max(settings, key=lambda name: settings[name])
    auto = next((series for series in pair if series.name == AUTO), None)
    reached = None if auto is None else statistics.median(s.speed for s in auto.samples.values()) / settings[best]
    return {
        "tokens_per_second": settings[best],
        "setting": best,
        "guesses_from": None if longest is None else longest.name,
        "settings": settings,
        "reached_by_auto": reached,
    }


def _bound_of(series: Series, runs: Sequence[tuple[int, bool]]) -> float:
    took = _median(
        (s.base_s + s.aligned_s) / _rounds(s, series.draft) for s in series.samples.values() if s.base_passes
    )
    tokens = tokens_per_round(runs, series.draft) if series.draft else 1.0
    return tokens / took if took else math.nan


def _rounds(sample: Sample, draft: int) -> int:
    """Return how many rounds a run had; the prompt left a plain run its first one without a pass."""
    return sample.base_passes if draft else sample.tokens


# ---- The advice ---------------------------------------------------------------------------------------------------------


def advice(all_series: Sequence[Series]) -> str | None:
    """Return one sentence for this machine and pair; None before the pair and the base alone ran in one repeat."""
    base = next((series for series in all_series if series.name == BASE), Series(BASE))
    speeds = {s.name: statistics.median(r) for s in all_series if s.of_the_pair and (r := ratios(s, base))}
    if not speeds:
        return None
    by_name = {series.name: series for series in all_series}
    fixed = max((name for name in speeds if name != AUTO), key=lambda name: speeds[name], default=None)
    if AUTO not in speeds:
        assert fixed is not None  # there is a speed, and it is not auto's
        sentence = _advice_of_one(by_name[fixed], base, speeds[fixed], "the fastest setting tried")
    elif fixed is None:
        sentence = _advice_of_one(by_name[AUTO], base, speeds[AUTO], "the only setting that ran")
    else:
        sentence = _advice_of_auto(by_name[AUTO], by_name[fixed], base, speeds)
    return f"On this machine {sentence}{_wrong(all_series)}."


def _advice_of_one(series: Series, base: Series, times: float, how: str) -> str:
    if times >= 1:
        return f"{how}, {series.flag}, wrote {times:.2f} times as fast as the base alone"
    return f"the aligned model costs speed: {how}, {series.flag}, {_cost(series, base, times)}"


def _advice_of_auto(auto: Series, fixed: Series, base: Series, speeds: dict[str, float]) -> str:
    times, best = speeds[AUTO], speeds[fixed.name]
    gains = ratios(fixed, auto)
    # Faster in every repeat, of three at least: the best of many settings is the best by luck too.
    clear = len(gains) >= FEWEST_REPEATS and min(gains) > 1 and statistics.median(gains) > WORTH_A_FLAG
    wrote = f"wrote {times:.2f} times as fast as the base alone"
    if times < 1:
        wrote = _cost(auto, base, times) + (", so the aligned model costs speed" if best < 1 else "")
    do = f"set {fixed.flag}" if clear else "leave --draft at auto"
    return f"--draft auto {wrote}; the best fixed setting was {fixed.flag} ({best:.2f} times): {do}"


def _cost(series: Series, base: Series, times: float) -> str:
    both = [repeat for repeat in series.samples if repeat in base.samples]
    took, alone = (1000 * statistics.median(1 / s.samples[repeat].speed for repeat in both) for s in (series, base))
    return f"wrote {times:.2f} times as fast as the base alone ({_figure(took)} ms a token instead of {_figure(alone)})"


def _wrong(all_series: Sequence[Series]) -> str:
    """What to add where most guesses were wrong."""
    drafted = sum(series.total("drafted") for series in all_series)
    right = _share(sum(series.total("accepted") for series in all_series), drafted)
    if right is None or right >= MOSTLY_WRONG:
        return ""
    return f"; only {100 * right:.0f} % of the guesses were right, so drafts gain little here"


# ---- The table ----------------------------------------------------------------------------------------------------------


def rows(report: dict[str, Any], wide: bool) -> list[list[str]]:
    """Return the table's cells; without the ratio's least and greatest where there is no room for them."""
    found = [_row(entry, wide) for entry in report["series"] if entry["tokens_per_second"]]
    limit = report["bound"]
    if limit is not None:
        base = next((entry["tokens_per_second"] for entry in report["series"] if entry["name"] == BASE), None)
        times = _fixed(limit["tokens_per_second"] / base["median"], 2) if base else "-"
        found.append(["bound", _figure(limit["tokens_per_second"]), times, *["-"] * 4])
    return found


def _row(entry: dict[str, Any], wide: bool) -> list[str]:
    speed, times = entry["tokens_per_second"], entry["times_base_alone"]
    return [
        entry["name"],
        _spread(speed, 1 if speed["greatest"] < 100 else 0),
        "-" if times is None else _spread(times, 2) if wide else _fixed(times["median"], 2),
        _percent(entry["right"], 0),
        _fixed(entry["tokens_per_base_pass"], 2),
        _percent(entry["outside_evaluation"], 1),
        f"{entry['memory_bytes'] / MIB:.0f}",
    ]


def _spread(value: dict[str, Any], digits: int) -> str:
    return f"{value['median']:.{digits}f} ({value['least']:.{digits}f}-{value['greatest']:.{digits}f})"


def _figure(value: float) -> str:
    return _fixed(value, 1 if value < 100 else 0)


def _fixed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
