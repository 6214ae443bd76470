"""`kad-llama bench`: do the numbers follow from what was measured, and is nothing of it lost?"""

from __future__ import annotations

import itertools
import json
import math
import random
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp
import pytest
from fake_engine import MODELS, FakeEngine, FakeStream, Terminal, engine_fixture, token  # noqa: F401

from kad_llama import KadLlama
from kad_llama.cli import alone, bench, bench_report, main
from kad_llama.cli import arguments as flags
from kad_llama.cli.bench_report import Sample, Series, advice, bound, right_runs, tokens_per_round
from kad_llama.errors import EvaluationError, ModelError, StateError

Capture = pytest.CaptureFixture[str]
NAMES = {"r": "right", "c": "corrected", "n": "none"}


def guesses(letters: str) -> tuple[str, ...]:
    return tuple(NAMES[letter] for letter in letters)


# ---- Right guesses and the bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("letters", "runs"),
    [
        ("", []),
        ("c", [(0, True)]),
        ("rrrc", [(3, True)]),
        ("rrnrc", [(4, True)]),  # nobody guessed the third one: it counts as right
        ("crr", [(0, True), (2, False)]),
    ],
)
def test_stretches_of_right_guesses(letters: str, runs: list[tuple[int, bool]]) -> None:
    assert right_runs(guesses(letters)) == runs


@pytest.mark.parametrize(
    ("runs", "draft", "expected"),
    [
        ([(3, True), (3, True)], 1, 8 / 4),  # rr rc, twice
        ([(3, True), (3, True)], 2, 8 / 4),  # rrr c: the third is drawn without a guess, and c begins a round
        ([(3, True), (3, True)], 3, 8 / 2),
        ([(3, True), (3, True)], 9, 8 / 2),
        ([(0, True)] * 5, 4, 1.0),
        ([(3, True), (4, False)], 2, 7 / (2 + 4 / 3) + 1 / (2 + 4 / 3)),  # the text's end cuts the last round
    ],
)
def test_tokens_per_round_by_hand(runs: list[tuple[int, bool]], draft: int, expected: float) -> None:
    assert tokens_per_round(runs, draft) == pytest.approx(expected)
    assert math.isnan(tokens_per_round([], draft))


@pytest.mark.parametrize("draft", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("rate", [0.2, 0.6, 0.95])
def test_tokens_per_round_are_those_of_drafting(draft: int, rate: float) -> None:
    """Drafting round by round over the same right and wrong positions takes as many rounds."""
    coins = random.Random(draft)
    right = [coins.random() < rate for _ in range(2000)] + [False]
    at = rounds = 0
    while at < len(right):
        rounds += 1
        kept = 0
        while kept < draft and right[at + kept]:
            kept += 1
        at += kept + 1
    runs = right_runs("right" if good else "corrected" for good in right)
    assert tokens_per_round(runs, draft) == pytest.approx(at / rounds, rel=2 / rounds)


def series(name: str, flag: str, draft: int, *samples: Sample) -> Series:
    return Series(name, flag, draft, 0, dict(enumerate(samples, start=1)))


PLAIN = series("plain", "--no-spec", 0, Sample(10, 1.25, 1.0, 9, 0.2, 9))
THREE = series("draft 3", "--draft 3", 3, Sample(8, 0.6, 0.4, 2, 0.16, 8, 8, 6, guesses("rrrcrrrc")))
ONE = series("draft 1", "--draft 1", 1, Sample(8, 0.7, 0.52, 4, 0.12, 6, 4, 4, guesses("rnrnrnrn")))
QUICK = series("auto", "--draft auto", 0, Sample(8, 0.65, 0.4, 2, 0.16, 8))


def test_bound_by_hand() -> None:
    found = bound([series("base alone", "", 0, Sample(10, 1.0, 0.9, 9)), PLAIN, ONE, THREE, QUICK])
    assert found is not None
    assert found["settings"] == pytest.approx(
        {
            "plain": 10 / 1.2,  # the prompt's row was there: ten tokens of nine passes
            "draft 1": 2 / (0.13 + 1.5 * 0.02),  # the stretches of draft 3: eight tokens in four rounds
            "draft 3": 4 / (0.2 + 4 * 0.02),
        }
    )
    assert found["setting"] == "draft 3" and found["guesses_from"] == "draft 3"
    assert found["tokens_per_second"] == pytest.approx(4 / 0.28)
    assert found["reached_by_auto"] == pytest.approx((8 / 0.65) / (4 / 0.28))


def test_bound_takes_medians_of_the_repeats() -> None:
    slow = Sample(10, 9.0, 8.0, 9, 0.9, 9)
    three = series("plain", "--no-spec", 0, *PLAIN.samples.values(), slow, *PLAIN.samples.values())
    found = bound([three])
    assert found is not None and found["tokens_per_second"] == pytest.approx(1 / 0.12)
    assert found["guesses_from"] is None and found["reached_by_auto"] is None


def test_no_bound_of_nothing() -> None:
    assert bound([]) is None
    assert bound([Series("plain", "--no-spec"), series("base alone", "", 0, Sample(10, 1.0, 0.9, 9))]) is None


def test_sample_of_a_run() -> None:
    stats = replace(
        FakeStream([]).result.stats,
        tokens=6,
        tokens_per_second=12.0,
        base_eval_s=0.2,
        reference_eval_s=0.05,
        aligned_eval_s=0.1,
    )
    found = bench.sample_of([replace(token("x"), guess="right"), token("y")], stats)
    assert found == Sample(6, 0.5, 0.25, 2, 0.1, 3, 4, 3, ("right", "none"))
    assert found.speed == 12 and found.outside == pytest.approx(0.3)


def test_variation() -> None:
    plain = series("plain", "--no-spec", 0, Sample(10, 1.0), Sample(10, 1.5))
    alone = series("base alone", "", 0, Sample(10, 2.5), Sample(10, 1.0), Sample(10, 2.0))
    lazy = series("lazy", "--draft 0", 0, Sample(10, 1.0), Sample(10, 9.0))  # the text's doing, it may be
    assert bench_report.variation([plain, lazy, ONE]) == pytest.approx(1.5)
    assert bench_report.variation([alone, plain, lazy, ONE]) == pytest.approx(2.5)
    assert bench_report.variation([PLAIN, lazy]) is None


def test_entry() -> None:
    base = series("base alone", "", 0, Sample(10, 1.0, 0.9, 9), Sample(10, 2.0, 1.8, 9))
    two = series("draft 1", "--draft 1", 1, *ONE.samples.values(), Sample(8, 0.5, 0.3, 2, 0.12, 6, 4, 2))
    two.samples[7] = Sample(8, 0.8, 0.4, 4, 0.12, 6, 4, 3)  # a repeat that the base did not run
    found = bench_report.entry(two, base)
    assert found["tokens_per_second"]["values"] == pytest.approx([8 / 0.7, 16, 10])
    assert found["tokens_per_second"]["median"] == pytest.approx(8 / 0.7)
    assert found["times_base_alone"]["values"] == pytest.approx([0.8 / 0.7, 3.2]), "repeat by repeat"
    assert found["times_base_alone"]["least"] == pytest.approx(0.8 / 0.7)
    assert found["right"] == 0.75 and found["tokens_per_base_pass"] == 2.0
    assert found["outside_evaluation"] == pytest.approx(0.16) and found["tokens"] == 8
    assert found["base_pass_s"] == pytest.approx(0.13) and found["aligned_pass_s"] == pytest.approx(0.02)
    assert bench_report.entry(base, base)["right"] is None


# ---- The advice ---------------------------------------------------------------------------------------------------------


def speeds(name: str, flag: str, *values: float, right: int = 9) -> Series:
    drafts = int(flag.startswith("--draft"))
    samples = [Sample(10, 10 / value, drafted=10 * drafts, accepted=right * drafts) for value in values]
    return series(name, flag, 0, *samples)


BASE = speeds("base alone", "", 10, 10, 10)


def test_advice_leaves_auto() -> None:
    auto, seven = speeds("auto", "--draft auto", 19, 19, 21), speeds("draft 7", "--draft 7", 20, 20, 20)
    assert advice([BASE, auto, seven, speeds("plain", "--no-spec", 8, 8, 8)]) == (
        "On this machine --draft auto wrote 1.90 times as fast as the base alone; "
        "the best fixed setting was --draft 7 (2.00 times): leave --draft at auto."
    )


@pytest.mark.parametrize(
    ("fixed", "do"),
    [
        ((22, 22, 22), "set --draft 7"),
        ((22, 22, 17), "leave --draft at auto"),  # not in every repeat
        ((22, 22), "leave --draft at auto"),  # in too few repeats
        ((19.5, 19.5, 19.5), "leave --draft at auto"),  # hardly faster
    ],
)
def test_advice_names_a_fixed_setting_only_where_it_is_clear(fixed: tuple[float, ...], do: str) -> None:
    found = advice([BASE, speeds("auto", "--draft auto", 19, 19, 19), speeds("draft 7", "--draft 7", *fixed)])
    assert found is not None and found.endswith(f"times): {do}.")


def test_advice_says_what_the_second_model_costs() -> None:
    pair = [speeds("auto", "--draft auto", 8, 8, 8, right=2), speeds("plain", "--no-spec", 9, 9, 9)]
    assert advice([BASE, *pair]) == (
        "On this machine --draft auto wrote 0.80 times as fast as the base alone (125 ms a token instead of 100), "
        "so the aligned model costs speed; the best fixed setting was --no-spec (0.90 times): set --no-spec"
        "; only 20 % of the guesses were right, so drafts gain little here."
    )


def test_advice_where_auto_alone_is_slow() -> None:
    found = advice([BASE, speeds("auto", "--draft auto", 8, 8, 8), speeds("draft 7", "--draft 7", 12, 12, 12)])
    assert found is not None and "costs speed" not in found
    assert "0.80 times as fast as the base alone (125 ms a token instead of 100); " in found
    assert found.endswith("--draft 7 (1.20 times): set --draft 7.")


def test_advice_without_auto() -> None:
    lazy, plain = speeds("lazy", "--draft 0", 9, 9, 9), speeds("plain", "--no-spec", 8, 8, 8)
    assert advice([BASE, plain, lazy]) == (
        "On this machine the aligned model costs speed: the fastest setting tried, --draft 0, wrote 0.90 times as fast "
        "as the base alone (111 ms a token instead of 100)."
    )
    assert advice([BASE, plain, speeds("draft 3", "--draft 3", 15, 15, 15)]) == (
        "On this machine the fastest setting tried, --draft 3, wrote 1.50 times as fast as the base alone."
    )
    assert advice([BASE, speeds("auto", "--draft auto", 15, 15, 15)]) == (
        "On this machine the only setting that ran, --draft auto, wrote 1.50 times as fast as the base alone."
    )


def test_no_advice_without_a_comparison() -> None:
    assert advice([BASE]) is None
    assert advice([speeds("plain", "--no-spec", 8)]) is None


# ---- The command, with an engine that takes its times from a table ------------------------------------------------------

MS = {"plain": 12, "lazy": 11, "draft 1": 8, "draft 2": 6, "draft 3": 5, "draft 4": 5.1, "draft 7": 6, "auto": 5.2}
BASE_MS, ALIGNED_MS = 10, 1
SIZES: dict[str, Any] = {"n_ctx": 4096, "cache_bytes": 1 << 20, "type_k": "f16"}  # of both models


class BenchEngine(FakeEngine):
    """Writes texts of right guesses; the first seed, which warms up, is slow."""

    log: list[tuple[str, int]]
    modes: dict[str, str]
    length: dict[str, int]
    still: set[str]  # for whom the clock stands still
    ends: dict[int, BaseException]  # by the number of the run

    max_draft = 8
    reference = None
    base = SimpleNamespace(**SIZES, path="base.gguf", weight_bytes=3 << 20, type_v="q8_0", n_ubatch=512, flash_attn=-1)
    aligned = SimpleNamespace(
        **SIZES, path="aligned.gguf", weight_bytes=1 << 20, type_v="f16", n_ubatch=64, flash_attn=0
    )

    def prompt(self, prompt: str) -> Any:
        return SimpleNamespace(base_ids=[1, 2, 3], aligned_ids=[1, 2, 3, 4])

    def generate(
        self, prompt: str, *, seed: int, max_tokens: int, spec: bool = True, draft: Any = 3, **given: Any
    ) -> Any:
        self.calls.append((prompt, given))
        name = "plain" if not spec else "lazy" if draft == 0 else draft if draft == "auto" else f"draft {draft}"
        run(name, seed)
        n, k = self.length.get(name, max_tokens), draft if spec and draft != "auto" else 0
        mode = self.modes.get(name, name if name in ("plain", "lazy", "auto") else "speculative")
        base_passes, seconds = -(-n // (k + 1)), n * MS[name] * (9 if seed == 1 else 1) / 1000
        seconds = 0.0 if name in self.still else seconds
        stats = replace(
            FakeStream([]).result.stats,
            tokens=n,
            base_passes=base_passes,
            aligned_passes=k * base_passes,
            drafted=n * (k > 0),
            accepted=n * (k > 0),
            mode=mode,
            note=f"{name} cannot run" if mode == "plain" and name != "plain" else "",
            tokens_per_second=0.0 if not seconds else n / seconds,
            base_eval_s=0.75 * seconds,
            aligned_eval_s=0.15 * seconds,
        )
        return SimpleNamespace(stats=stats, tokens=[replace(token("x"), guess="right" if k else "none")] * n)


def run(name: str, seed: int) -> None:
    BenchEngine.log.append((name, seed))
    if len(BenchEngine.log) in BenchEngine.ends:
        raise BenchEngine.ends[len(BenchEngine.log)]


class FakeAlone:
    made: list[tuple[str, dict[str, Any]]]

    def __init__(self, path: str, **keywords: Any) -> None:
        self.name = path.removesuffix(".gguf")
        type(self).made.append((path, keywords))

    def __call__(self, ids: list[int], tokens: int, seed: int) -> alone.AloneRun:
        run(self.name, seed)
        seconds = tokens * (BASE_MS if self.name == "base" else ALIGNED_MS) / 1000
        assert len(ids) == (3 if self.name == "base" else 4)
        seconds = 0.0 if self.name in BenchEngine.still else seconds
        return alone.AloneRun((7,) * tokens, seconds, 0.98 * seconds)

    def __enter__(self) -> FakeAlone:
        return self

    def __exit__(self, *error: object) -> None:
        self.name = "closed"


@pytest.fixture(name="fake")
def fake_fixture(engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> type[BenchEngine]:
    BenchEngine.log, BenchEngine.modes, BenchEngine.length, BenchEngine.ends, FakeAlone.made = [], {}, {}, {}, []
    BenchEngine.still = set()
    monkeypatch.setattr(sys.modules["kad_llama.session"], "KadLlama", BenchEngine)
    monkeypatch.setattr(alone, "ModelAlone", FakeAlone)
    monkeypatch.setattr(bench, "_resident", itertools.cycle([50 << 20, 150 << 20]).__next__)
    return BenchEngine


LINE = ["bench", *MODELS, "-t", "2", "-n", "24", "--drafts", "7,1,3,auto", "--repeats", "2"]
ORDER = ["base", "aligned", "plain", "lazy", "draft 1", "draft 3", "draft 7", "auto"]
TABLE = """\
base.gguf + aligned.gguf, rule dual
run            tokens/s             times base alone     right  per pass  outside  MiB
base alone     100 (100-100)        1.00 (1.00-1.00)     -      1.04      2.0 %    4
aligned alone  1000 (1000-1000)     10.00 (10.00-10.00)  -      -         2.0 %    2
plain          83.3 (83.3-83.3)     0.83 (0.83-0.83)     -      1.00      10.0 %   6
lazy           90.9 (90.9-90.9)     0.91 (0.91-0.91)     -      1.00      10.0 %   6
draft 1        125 (125-125)        1.25 (1.25-1.25)     100 %  2.00      10.0 %   6
draft 3        200 (200-200)        2.00 (2.00-2.00)     100 %  4.00      10.0 %   6
draft 7        167 (167-167)        1.67 (1.67-1.67)     100 %  8.00      10.0 %   6
auto           192 (192-192)        1.92 (1.92-1.92)     -      1.00      10.0 %   6
bound          222                  2.22                 -      -         -        -
"""


def test_table_in_a_pipe(fake: type[BenchEngine], capsys: Capture) -> None:
    assert main(LINE) == 0
    captured = capsys.readouterr()
    table, rest = captured.out.split("\n\n", 1)
    assert [line.split() for line in table.splitlines()] == [line.split() for line in TABLE.splitlines()]
    assert "Bound: the best setting (draft 3)" in rest and "guesses right as in draft 7" in rest
    assert "auto reaches 87 % of the bound" in " ".join(rest.split())
    assert "held 150 MiB" in rest and "(50 before)" in " ".join(rest.split())
    assert "Caution" not in rest and "Interrupted" not in rest and "Left out" not in rest
    assert max(map(len, captured.out.splitlines())) <= 100
    assert " ".join(rest.split()).endswith(
        "On this machine --draft auto wrote 1.92 times as fast as the base alone; "
        "the best fixed setting was --draft 3 (2.00 times): leave --draft at auto."
    )


def test_repeats_are_interleaved_and_the_first_is_not_counted(fake: type[BenchEngine], capsys: Capture) -> None:
    assert main([*LINE, "-s", "1", "--temp", "0.5", "-p", "Hi", "--json"]) == 0
    assert fake.log == [("plain", 1), *((name, seed) for seed in (1, 2, 3) for name in ORDER)]
    (made,) = fake.made
    assert made.closed and made.keywords["n_threads"] == 2
    assert all(call == ("Hi", {"temperature": 0.5}) for call in made.calls)
    found = json.loads(capsys.readouterr().out)
    assert found["repeats"] == 2 and [len(s["tokens_per_second"]["values"]) for s in found["series"]] == [2] * 8
    assert found["series"][2]["tokens_per_second"]["least"] == pytest.approx(1000 / 12), "the first seed is slow"


def test_models_alone_are_opened_as_the_pair_is(fake: type[BenchEngine]) -> None:
    assert main([*LINE, "-ngl", "5", "-ngla", "6", "-b", "64", "-ctka", "q8_0", "-faa", "on"]) == 0
    shared = {"n_ctx": 4096, "n_threads": 2, "temperature": 1.0}
    # What the pair's contexts have, whatever the flags say.
    of_base = {"type_k": "f16", "type_v": "q8_0", "n_batch": 64, "n_ubatch": 512, "flash_attn_type": -1}
    of_aligned = {"type_k": "f16", "type_v": "f16", "n_ubatch": 64, "flash_attn_type": 0}
    assert FakeAlone.made == [
        ("base.gguf", {**shared, "n_gpu_layers": 5, "params": of_base}),
        ("aligned.gguf", {**shared, "n_gpu_layers": 6, "params": of_aligned}),
    ]


def test_json(fake: type[BenchEngine], capsys: Capture) -> None:
    assert main([*LINE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        *(
            "base",
            "aligned",
            "rule",
            "temperature",
            "threads",
            "prompt",
            "max_tokens",
            "seed",
            "repeats",
            "interrupted",
        ),
        *("series", "left_out", "short_runs", "variation", "bound", "memory", "advice"),
    ]
    assert found["memory"] == {"before_bytes": 50 << 20, "pair_bytes": 150 << 20}
    assert [s["name"] for s in found["series"]] == ["base alone", "aligned alone", *ORDER[2:]]
    assert found["bound"]["settings"]["draft 3"] == pytest.approx(1000 / (5 * 0.9))
    assert found["variation"] == 1 and found["prompt"] == flags.BENCH_PROMPT


@pytest.mark.parametrize("columns", [80, 100])
def test_table_on_a_terminal(fake: type[BenchEngine], monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    assert main(LINE) == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert max(map(len, plain.splitlines())) <= columns
    row = next(line for line in plain.splitlines() if "draft 3" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    times = "2.00 (2.00-2.00)" if columns == 100 else "2.00"
    assert cells == ["draft 3", "200 (200-200)", times, "100 %", "4.00", "10.0 %", "6"], "no cell is folded"


def test_progress_on_a_terminal(fake: type[BenchEngine], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert main(LINE) == 0
    assert "measuring" in screen.getvalue() and "100%" in screen.getvalue()
    assert "tokens/s" in capsys.readouterr().out


# ---- What ends it early, and what cannot run ----------------------------------------------------------------------------


def test_interrupted_with_what_there_is(fake: type[BenchEngine], capsys: Capture) -> None:
    fake.ends = {1 + 8 + 8 + 4: KeyboardInterrupt()}  # in the second counted repeat's lazy run
    assert main([*LINE, "--json"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert found["interrupted"] and found["repeats"] == 1
    assert [len(s["tokens_per_second"]["values"]) for s in found["series"]] == [2, 2, 2, 1, 1, 1, 1, 1]
    assert found["advice"].startswith("On this machine --draft auto")
    fake.log.clear()
    assert main(LINE) == 130
    assert "Interrupted: this is what was measured until then." in capsys.readouterr().out


def test_interrupted_before_anything_ran(fake: type[BenchEngine], capsys: Capture) -> None:
    fake.ends = {2: KeyboardInterrupt()}
    assert main(LINE) == 130
    assert capsys.readouterr().out == "Nothing was measured yet.\n"
    fake.log.clear()
    assert main([*LINE, "--json"]) == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["series"], found["bound"], found["advice"], found["variation"]) == ([], None, None, None)


@pytest.mark.parametrize("at", [1 + 5, 1 + 8 + 5])
def test_interrupted_before_a_repeat_counts(fake: type[BenchEngine], capsys: Capture, at: int) -> None:
    """Then the repeat that warms up is better than nothing, and is called so."""
    fake.ends = {at: KeyboardInterrupt()}
    assert main([*LINE, "--json"]) == 130
    found = json.loads(capsys.readouterr().out)
    counts = [len(s["tokens_per_second"]["values"]) for s in found["series"]]
    assert counts == ([1, 1, 1, 1] if at < 9 else [2, 2, 2, 2, 1, 1, 1, 1])
    assert found["repeats"] == 0 and found["advice"]
    fake.log.clear()
    assert main(LINE) == 130
    assert "Caution: no repeat was completed after the one that warms up" in capsys.readouterr().out


def test_interrupted_before_the_pair_ran(fake: type[BenchEngine], capsys: Capture) -> None:
    fake.ends = {1 + 2: KeyboardInterrupt()}
    assert main(LINE) == 130
    shown = capsys.readouterr().out
    assert shown.splitlines()[2].split()[:3] == ["base", "alone", "100"] and "bound" not in shown
    assert shown.endswith("No advice: the base alone and the pair did not both run in one repeat.\n")


def test_an_error_loses_nothing(fake: type[BenchEngine], capsys: Capture) -> None:
    fake.ends = {1 + 8 + 8 + 4: EvaluationError("it broke")}
    assert main([*LINE, "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["error"] == "it broke" and found["repeats"] == 1 and len(found["series"]) == 8
    assert captured.err.endswith("kad-llama: error: it broke\n")


def test_what_runs_otherwise_is_left_out(fake: type[BenchEngine], capsys: Capture) -> None:
    """And is not run again: in another mode it would stand in the table under a wrong name."""
    fake.modes = {"lazy": "plain", "draft 1": "lazy", "draft 3": "lazy"}
    assert main(LINE) == 0
    shown = capsys.readouterr().out
    assert "Left out: lazy (lazy cannot run).\nLeft out: draft 1, draft 3 (it runs lazy here).\n" in shown
    assert [line.split("  ")[0] for line in shown.splitlines()[2:8]] == [
        *("base alone", "aligned alone", "plain", "draft 7", "auto", "bound")
    ]
    assert [name for name, _ in fake.log].count("draft 1") == 1


def test_a_clock_that_stands_still(fake: type[BenchEngine], capsys: Capture) -> None:
    """Who took no time has no speed: the others are shown, and nobody at all is no error."""
    fake.still = {"aligned", "draft 3"}
    assert main(LINE) == 0
    shown = capsys.readouterr().out
    assert "Left out: aligned alone, draft 3 (by this machine's clock a run took no time).\n" in shown
    assert (
        "\ndraft 7 " in shown
        and "\ndraft 3 " not in shown
        and "--draft auto wrote 1.92 times" in " ".join(shown.split())
    )
    fake.still = set(ORDER)
    assert main([*LINE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["left_out"]) == len(ORDER) and found["bound"] is found["advice"] is None
    assert main(LINE) == 0
    assert "Nothing was measured yet.\nLeft out: base alone, " in capsys.readouterr().out


def test_drafts_that_do_not_fit(fake: type[BenchEngine], capsys: Capture) -> None:
    line = ["bench", *MODELS, "-n", "24", "--repeats", "1"]
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["left_out"]) == ["draft 11", "draft 15"] and "at most 8 guesses" in found["left_out"]["draft 11"]
    assert [s["name"] for s in found["series"]][4:] == ["draft 1", "draft 2", "draft 3", "draft 4", "draft 7", "auto"]
    for n, most in (("24", 8), ("8", 7)):
        assert main([*line, "-n", n, "--drafts", "3,9"]) == 1
        assert f"--drafts has 9; expected at most {most}: " in capsys.readouterr().err


def test_short_texts_are_not_counted(fake: type[BenchEngine], capsys: Capture) -> None:
    fake.length = {"draft 3": 7, "draft 1": 0, "auto": 8}
    assert main([*LINE, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in found["series"]] == ["base alone", "aligned alone", "plain", "lazy", "draft 7", "auto"]
    assert found["short_runs"] == 4
    assert next(s["tokens"] for s in found["series"] if s["name"] == "auto") == 8


def test_caution_of_one_repeat(fake: type[BenchEngine], capsys: Capture) -> None:
    for repeats, told in (("1", True), ("2", False)):
        assert main([*LINE[:-1], repeats]) == 0
        assert ("Caution: one repeat shows no spread; give --repeats 5." in capsys.readouterr().out) == told


def test_caution_where_speeds_vary(fake: type[BenchEngine], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(bench, "UNSTEADY", 0.99)
    assert main(LINE) == 0
    assert "Caution: the same work went up to 1.0 times as fast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "status", "named"),
    [
        (["-n", "7"], 2, "'7': expected a whole number of at least 8"),
        (["-n", "x"], 2, "'x'"),
        (["--repeats", "0"], 2, "'0': expected a whole number of at least 1"),
        (["--drafts", "1,0"], 2, "'0': expected whole numbers of at least 1 and 'auto', with commas between them"),
        (["--drafts", "1,,2"], 2, "''"),
        (["--drafts", "fast"], 2, "'fast'"),
        (["-s", "-1"], 2, "'-1': expected a whole number 0 to 2**64 - 1"),
        (["-s", str(2**64)], 2, "expected a whole number 0"),
        (["--rule", "aligned"], 2, "--rule aligned runs the aligned model alone"),
        (["--rule", "implicit-reward"], 2, "-r FILE is missing"),
        (["--no-spec"], 2, "--no-spec"),
        (["-n", "4094"], 1, "the prompt has 3 tokens and -n is 4094, but the context holds 4096; give a smaller -n"),
    ],
)
def test_bench_refuses(fake: type[BenchEngine], capsys: Capture, line: list[str], status: int, named: str) -> None:
    assert main(["bench", *MODELS, *line]) == status
    captured = capsys.readouterr()
    assert named in captured.err and captured.out == ""
    assert fake.log == []


def test_missing_models(capsys: Capture) -> None:
    assert main(["bench", "-m", "base.gguf"]) == 2
    assert "-a FILE, the aligned model, is missing" in capsys.readouterr().err


FLAGS = shlex.split("""
-h --help -m --model -a --aligned --rule --threshold -r --reference --rule-temp -p --prompt -n --max-tokens --repeats
--drafts --temp -s --seed --reproducible --demo -c --ctx-size -t --threads -ngl --n-gpu-layers -fa --flash-attn
-ctk --cache-type-k -ctv --cache-type-v -b --batch-size -ub --ubatch-size --no-mmap --mlock
-ngla -faa -ctka -ctva -ba -uba --no-mmapa --mlocka --json --verbose
""")


def test_help_lists_every_flag(capsys: Capture) -> None:
    command = flags.bench_parser()
    assert sorted(name for action in command._actions for name in action.option_strings) == sorted(FLAGS)
    assert all(action.help for action in command._actions)
    assert main(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    words = shown.replace(",", " ").split()
    assert [flag for flag in FLAGS if flag not in words] == [] and "kad-llama bench" in shown
    assert main(["--help"]) == 0
    assert "kad-llama bench -m" in capsys.readouterr().out


# ---- Tiny models ---------------------------------------------------------------------------------------------------------


def test_alone_says_what_the_engine_says(tiny_pair: tuple[Path, Path]) -> None:
    """Best tokens, prompt in several batches: the ids are those of the base alone in the engine."""
    with KadLlama(tiny_pair[0], None, rule="base", n_ctx=256, n_threads=1) as kad:
        prompt = "The sky is blue because the light of the sun is scattered. " * 3
        text = kad.generate(prompt, raw=True, max_tokens=12, temperature=0, spec=False)
        ids = kad.prompt(prompt, raw=True).base_ids or []
    with alone.ModelAlone(tiny_pair[0], n_ctx=256, n_threads=1, temperature=0, params={"n_batch": 16}) as model:
        assert len(ids) > 32
        found = model(ids, 12, 1)
        assert found.ids == model(ids, 12, 2).ids, "and the second text does not see the first"
    assert list(found.ids) == [said.id for said in text.tokens]
    assert 0 < found.eval_s < found.seconds


def test_alone_runs_as_it_is_told(tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"n_batch": 32, "n_ubatch": 16}
    with alone.ModelAlone(tiny_pair[0], n_ctx=512, n_threads=3, temperature=1.0, params=params) as model:
        context = model._context
        assert [llama_cpp.llama_n_threads(context), llama_cpp.llama_n_threads_batch(context)] == [3, 3]
        assert [llama_cpp.llama_n_ctx(context), llama_cpp.llama_n_batch(context)] == [512, 32]
        assert llama_cpp.llama_n_ubatch(context) == 16
        whole, calls = model._evaluate, []

        def one_second(ids: list[int]) -> float:
            calls.append(len(ids))
            whole(ids)
            return 1.0

        monkeypatch.setattr(model, "_evaluate", one_second)
        assert model([5] * 40, 10, 1).eval_s == 9, "the prompt is not counted"
        assert calls == [32, 8, *[1] * 9]


def test_alone_draws_by_its_seed(tiny_pair: tuple[Path, Path]) -> None:
    with alone.ModelAlone(tiny_pair[0], n_ctx=128, n_threads=1, temperature=1.0) as model:
        one, again, other = (model([5, 6, 7], 20, seed).ids for seed in (1, 1, 2))
    assert one == again != other
    with pytest.raises(StateError):
        model([5], 1, 1)


def test_alone_errors(tiny_pair: tuple[Path, Path], tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"llama.cpp cannot load '.*no.gguf'"):
        alone.ModelAlone(tmp_path / "no.gguf", n_ctx=64, n_threads=1, temperature=0)
    with alone.ModelAlone(tiny_pair[0], n_ctx=32, n_threads=1, temperature=0) as model:
        n_ctx = 256  # what llama.cpp makes of it
        with pytest.raises(EvaluationError, match="prompt and text must fit the context"):
            model([5] * 20, n_ctx, 1)
    assert "llama_model_load" not in capfd.readouterr().err


def test_bench_of_a_tiny_pair(tiny_pair: tuple[Path, Path], capsys: Capture) -> None:
    base, aligned = map(str, tiny_pair)
    line = ["bench", "-m", base, "-a", aligned, "-t", "1", "-c", "256", "-n", "16", "--repeats", "2", "--drafts", "1,3"]
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in found["series"]] == [
        "base alone",
        "aligned alone",
        "plain",
        "lazy",
        "draft 1",
        "draft 3",
    ]
    assert found["left_out"] == {}
    for each in found["series"]:
        assert 0 < each["outside_evaluation"] < 1 and each["memory_bytes"] > 0
        assert each["tokens_per_second"]["least"] <= each["tokens_per_second"]["median"]
    assert found["series"][-1]["right"] == pytest.approx(found["series"][-2]["right"], abs=0.5)
    assert set(found["bound"]["settings"]) == {"plain", "lazy", "draft 1", "draft 3"}
    assert found["memory"]["pair_bytes"] > 0 and found["advice"].startswith("On this machine ")


def test_bench_of_other_rules(tiny: Callable[..., Path], tiny_pair: tuple[Path, Path], capsys: Capture) -> None:
    line = ["bench", "-m", tiny_pair[0], "-a", tiny_pair[1], "-t", "1", "-c", "256", "-n", "16", "--repeats", "1"]
    reference = ["--rule", "implicit-reward", "-r", tiny("llama", noise=0.15)]
    for rule in (["--rule", "bet"], reference):
        assert main([*map(str, [*line, *rule]), "--drafts", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert list(found["left_out"]) == ["lazy"]
        assert [s["name"] for s in found["series"]] == ["base alone", "aligned alone", "plain", "draft 2"]
