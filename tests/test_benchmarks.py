"""The benchmarks' arithmetic, their reading of other programs, and the page: on numbers that were worked out by hand."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import attention
import copying
import cost
import cuda
import memory
import page
import peers
import plots
import results
import running
import short
from results import Cell, Group, Store
from running import AUTO, BASE, LAZY, PLAIN, Refused, Run

# ---- Other programs' output, as they wrote it ---------------------------------------------------------------------------

SIMPLE = """
<|im_start|>user
Why is the sky blue?<|im_end|>
<|im_start|>assistant
The color hue of the sky blue lies beneath the naturally occurring blue sky

0.00.698.146 I cmn          init: llama threadpool init, n_threads = 2
0.00.927.728 I common_speculative_init_result: loading draft model 'aligned.gguf'
0.12.226.068 I encoded   14 tokens in    0.392 seconds, speed:   35.690 t/s
0.12.226.069 I decoded   26 tokens in    8.004 seconds, speed:    3.248 t/s
0.12.226.070 I 
0.12.226.070 I n_draft   = 3
0.12.226.070 I n_predict = 26
0.12.226.070 I n_drafted = 42
0.12.226.070 I n_accept  = 11
0.12.226.071 I accept    = 26.190%
0.12.226.071 I draft:
0.12.226.120 I target:
0.12.226.126 I common_perf_print:    sampling time =      13.66 ms
0.12.226.127 I common_perf_print:    samplers time =      12.49 ms /    26 tokens
"""  # noqa: W291

SPECULATIVE = """
0.01.110.514 I cmn          init: llama threadpool init, n_threads = 2
0.03.458.347 I encoded   14 tokens in    0.816 seconds, speed:   17.166 t/s
0.03.458.348 I decoded   25 tokens in    1.445 seconds, speed:   17.305 t/s
0.03.458.349 I n_draft   = 7
0.03.458.349 I n_predict = 25
0.03.458.349 I n_drafted = 70
0.03.458.349 I n_accept  = 14
0.03.458.350 I accept    = 20.000%
"""

OTHER_BOS = """
0.00.714.164 W load: control-looking token:    212 '</s>' was not control-type; this is probably a bug in the model
0.01.146.526 I cmn          init: llama threadpool init, n_threads = 2
0.01.161.866 E main: draft model bos tokens must match target model to use speculation. add: 1 - 0, id: 2 - 1)
"""

OTHER_VOCABULARY = """
0.01.277.799 W spec common_specu: draft model vocab type must match target model to use speculation but vocab_type_dft = 2
0.01.277.809 E spec common_specu: the target and draft vocabs are not compatible
terminate called after throwing an instance of 'std::runtime_error'
  what():  draft model vocab type must match target model to use speculation
"""


def test_programs_reports_are_read() -> None:
    assert running.read_program(SIMPLE) == (Run(26, 8.004, drafted=42, accepted=11), 14)
    assert running.read_program(SPECULATIVE) == (Run(25, 1.445, drafted=70, accepted=14), 14)


@pytest.mark.parametrize(
    ("output", "status", "reason"),
    [
        (OTHER_BOS, 1, "draft model bos tokens must match target model to use speculation. add: 1 - 0, id: 2 - 1)"),
        (
            OTHER_VOCABULARY,
            -6,
            "draft model vocab type must match target model to use speculation but vocab_type_dft = 2",
        ),
        ("terminate\n  what():  no memory\n", -6, "no memory"),
        ("", 139, "nothing decoded, exit status 139"),
        (SIMPLE, 134, "nothing decoded, exit status 134"),
    ],
)
def test_refusals_say_why(output: str, status: int, reason: str) -> None:
    with pytest.raises(Refused, match="^" + re.escape(reason) + "$"):
        running.read_program(output, status)


# ---- Names --------------------------------------------------------------------------------------------------------------


def test_names_of_pairs() -> None:
    assert running.widening("Q8_0") == ("Q8_0", 16, 0.0)
    assert running.widening("Q8_0-0.05") == ("Q8_0", 16, 0.05)
    assert running.widening("F16x64-.1") == ("F16", 64, 0.1)
    for wrong in ("q8", "Q8_0-", "Q8_0x", "Q8_0-0.1-2", "demo2"):
        with pytest.raises(SystemExit, match=re.escape(repr(wrong))):
            running.widening(wrong)


def test_candidates_of_a_group() -> None:
    assert running.length("speculative k=11") == 11
    assert running.length("auto") is None
    assert running.is_exact("speculative k=3", 0.0)
    assert not running.is_exact("speculative k=3", 0.7)
    assert running.is_exact("speculative-simple k=3", 1.0)
    base, dual = peers.names("all", "base", "Q8_0", 1), peers.names("all", "dual", "Q8_0", 1)
    assert base[0] == BASE and LAZY not in base and "speculative-simple k=7" in base and AUTO in base
    assert LAZY in peers.names("all", "base", "Q8_0", 0)  # there the base's best token is enough
    assert LAZY in dual and not any(name.startswith("speculative") for name in dual)
    assert [name for name in peers.names("all", "base", "demo", 1) if " k=" in name] == [
        "speculative-simple k=3",
        "speculative k=3",
    ]
    assert peers.names("auto,k=2", "dual", "F16", 1) == [BASE, "auto", "k=2"]
    with pytest.raises(SystemExit, match="'fast'"):
        running.make("fast", None, None, 1)  # type: ignore[arg-type]


# ---- Arithmetic ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "k", "rounds"),
    [
        (["c"], 3, (1, 0, 1)),  # the last event: nothing is guessed
        (["rrrr"], 3, (4, 3, 1)),  # three guesses, and the event after them
        (["rcrc"], 1, (2, 1, 1)),  # r and the event after it, twice
        (["rcrc"], 3, (2, 2, 0.5)),  # rc, r and the last event
        (["rrrrcrrrn"], 4, (4.5, 3.5, 1)),  # rrrr+c, rrrn: what was not guessed counts as right
        (["rrrrcrrrn"], 2, (9 / 4, 6 / 4, 3 / 4)),  # rr+r, rc, rr+r, n
        (["ccrr"], 2, (4 / 3, 5 / 3, 1 / 3)),
        (["rrr", "rcr"], 1, (6 / 4, 2 / 4, 1)),  # rr, r | rc, r: no round goes beyond its text
        (["rrr", "", "rcr"], 3, (6 / 3, 4 / 3, 2 / 3)),  # rrr | rc, r
        ([""], 2, (0, 0, 0)),
    ],
)
def test_replay(texts: list[str], k: int, rounds: tuple[float, float, float]) -> None:
    assert results.replay(texts, k) == pytest.approx(rounds)


def test_replay_is_what_a_loop_would_do() -> None:
    """Against a round written as the generator has it: guess, keep the right ones, draw one more."""
    texts = ["rrcrrrrrcccrrrrrrrrrrrrcrcr" * 3, "crrrr", "rrrrrrrrrrc"]
    for k in (1, 2, 3, 7, 15):
        rounds = guessed = full = 0
        for text in texts:
            at = 0
            while at < len(text):
                room = min(k, len(text) - 1 - at)
                rounds, guessed = rounds + 1, guessed + room
                for i in range(room + 1):
                    letter = text[at]
                    at += 1
                    if i < room and letter == "c":
                        break
                else:
                    full += 1
        events = sum(map(len, texts))
        assert results.replay(texts, k) == pytest.approx((events / rounds, guessed / rounds, full / rounds))


def test_speculative_bound_by_hand() -> None:
    # Rounds of "rcrr" at k = 1: r+c, r+r: 2 events, 1 guess, all right. 2 / (1 * 10 ms + 50 ms + 1 * 0.5 * 10 ms).
    assert results.speculative_bound(["rcrr"], 1, 0.050, 0.010, 0.5) == pytest.approx(2 / 0.065)
    # At k = 3: rc, rr: 2 events a round, 3 guesses and 1, half of the rounds right throughout.
    assert results.speculative_bound(["rcrr"], 3, 0.080, 0.010, 1.0) == pytest.approx(2 / (0.020 + 0.080 + 0.005))


def cell(*runs: Run) -> Cell:
    return Cell(dict(enumerate(runs)), about="generate()", date="2026-11-27")


def draft_cell(tokens: int, seconds: float, passes: tuple[int, int], spent: tuple[float, float], guesses: str) -> Cell:
    return cell(Run(tokens, seconds, *passes, *spent, tokens, guesses.count("r"), guesses))


def test_bound_takes_the_best_setting() -> None:
    cells = {
        PLAIN: cell(Run(10, 2.0, 10, 10, 1.0, 0.25)),
        LAZY: cell(Run(10, 2.0, 10, 5, 1.0, 0.125)),
        "k=1": draft_cell(4, 1.0, (2, 4), (0.2, 0.04), ""),
        "k=3": draft_cell(4, 1.0, (2, 6), (0.5, 0.06), "rcrr"),
    }
    # k=1: A 10 ms, B 100 ms, u 0.5, replayed along k=3's letters: 2 / 0.115; k=3: 2 / (0.02 + 0.25 + 0.5 * 0.5 * 0.01).
    speed, name = results.bound(cells) or (0.0, "")
    assert name == "k=1"
    assert speed == pytest.approx(2 / 0.115)
    del cells["k=1"], cells["k=3"]
    assert results.bound(cells) == (pytest.approx(10 / 1.125), LAZY)
    assert results.bound({}) is None


def test_expected_events_and_curve() -> None:
    assert results.expected_events(0.0, 5) == 1
    assert results.expected_events(1.0, 5) == 6
    assert results.expected_events(0.5, 2) == pytest.approx(1.75)
    cells = {
        "k=1": draft_cell(4, 1.0, (2, 4), (0.2, 0.04), "rrrr"),
        "k=3": draft_cell(4, 1.0, (2, 6), (0.3, 0.06), "rrrr"),
    }
    low, high = results.curve(cells, cell(Run(10, 1.0)), (0.0, 1.0))
    assert low == pytest.approx(1 / 0.11 / 10)  # the short draft, which is wrong and costs 10 + 100 ms
    assert high == pytest.approx(4 / (0.03 + 0.15 + 0.01) / 10)
    cells[LAZY] = cell(Run(10, 1.0, 10, 4))  # 0.4 of the events need the aligned model
    assert results.curve(cells, cell(Run(10, 1.0)), (1.0,)) == [pytest.approx(4 / (0.03 + 0.15 + 0.004) / 10)]


def test_ratio_is_taken_within_rounds() -> None:
    over = Cell({0: Run(20, 1.0), 1: Run(20, 2.0), 3: Run(15, 0.001), 7: Run(20, 4.0)})
    under = Cell({0: Run(20, 2.0), 1: Run(20, 2.0), 2: Run(20, 1.0), 3: Run(20, 2.0), 7: Run(20, 2.0)})
    found = results.ratio(over, under)
    assert found is not None
    assert (found.median, found.rounds) == (1.0, 3)  # 2, 1 and 0.5; round 3 is short, and 2 was not run by both
    assert found.low == pytest.approx(0.6) and found.high == pytest.approx(1.8)
    assert results.ratio(over, under, rounds=[7]) == results.Ratio(0.5, 0.5, 0.5, 1)
    assert results.ratio(over, None) is None
    assert results.ratio(over, Cell({9: Run(20, 1.0)})) is None


def test_stalled_runs_are_left_out_of_sums() -> None:
    stalled = cell(Run(20, 1.0), Run(20, 1.2), Run(20, 30.0), Run(2, 9.0))  # the last is too short to be judged
    assert stalled.stalled == [2]
    assert stalled.tokens == 62
    assert stalled.total("seconds") == pytest.approx(11.2)
    assert stalled.speed == pytest.approx(42 / 11.2)
    assert page._stalled({PLAIN: stalled, AUTO: cell(Run(20, 1.0))}) == ["Stalled runs: plain 1."]


def test_halves_choose_on_one_and_compare_on_the_other() -> None:
    auto = [Run(20, 1.0)] * 4
    lucky = [Run(20, seconds) for seconds in (0.5, 4.0, 0.5, 4.0)]  # fast on the even rounds alone
    steady = [Run(20, 0.8)] * 4
    cells = {AUTO: cell(*auto), "k=1": cell(*lucky), PLAIN: cell(*steady), "speculative k=3": cell(*[Run(20, 0.1)] * 4)}
    (first, even), (second, odd) = results.halves(cells)
    assert (first, even.median) == ("k=1", pytest.approx(4.0))
    assert (second, odd.median) == (PLAIN, pytest.approx(0.8))
    # Later rounds, in which only some still ran, change nothing.
    more = {**cells, AUTO: cell(*auto, Run(20, 0.01)), "k=1": cell(*lucky, Run(20, 0.02))}
    assert results.halves(more) == results.halves(cells)
    assert results.halves({AUTO: cell(*auto)}) == []


def test_best_length_is_not_one_that_was_only_looked_at() -> None:
    lucky, long_run = cell(Run(50, 1.0)), cell(*[Run(50, 2.0)] * 10)
    cells = {"speculative k=3": lucky, "speculative k=7": long_run, "speculative-simple k=1": cell(Run(50, 0.1))}
    assert results.best(cells, "speculative") == "speculative k=7"
    assert results.best(cells, "speculative-simple") == "speculative-simple k=1"
    assert results.best(cells) is None


# ---- The loop -----------------------------------------------------------------------------------------------------------


class Fake:
    """Says a given number of tokens per run, and remembers when it ran."""

    about = "fake"

    def __init__(self, name: str, log: list[str], tokens: int = 20, seconds: float = 1.0) -> None:
        self.name, self.log, self.tokens, self.seconds = name, log, tokens, seconds

    def run(self, question: str, seed: int, temperature: float, tokens: int) -> Run:
        if seed:  # 0 is the warming up
            self.log.append(f"{seed} {self.name}")
        if self.tokens == 0:
            raise Refused("cannot")
        return Run(min(tokens, self.tokens), self.seconds)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """`opened` gives fakes; answers the log of who ran when."""
    log: list[str] = []
    speeds = {"speculative k=3": 2.0, "speculative k=7": 0.5}

    @contextmanager
    def opened(group: Group, wanted: list[str], threads: int) -> Iterator[dict[str, Fake]]:
        yield {name: Fake(name, log, 0 if name == "k=1" else 20, speeds.get(name, 1.0)) for name in wanted}

    monkeypatch.setattr(peers, "opened", opened)
    return log


GROUP = Group("Q8_0", "base", 1.0)


def test_rounds_interleave_and_stop(fakes: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "results.json")
    wanted = [BASE, "k=1", AUTO, "speculative k=3", "speculative k=7"]
    amount = peers.Amount(tokens=20, positions=40, scout=1, threads=1)
    peers.measure(store, GROUP, wanted, amount)
    # Round 1 tries everything; k=1 refuses and is not asked again; of the lengths the faster goes on.
    assert fakes == [f"1 {name}" for name in wanted] + ["2 base alone", "2 auto", "2 speculative k=7"]
    assert store.group(GROUP)["k=1"].refused == "cannot"
    assert capsys.readouterr().err == "k=1 does not run, pair Q8_0: cannot\n"
    assert peers.amounts(store, {GROUP: wanted}, amount) == (140, 140)
    fakes.clear()
    peers.measure(store, GROUP, wanted, amount)
    assert fakes == []


def test_what_is_stored_goes_on_where_it_stopped(fakes: list[str], tmp_path: Path) -> None:
    path = tmp_path / "docs" / "results.json"
    amount = peers.Amount(tokens=20, positions=40, scout=1, threads=1)
    peers.measure(Store(path), GROUP, [BASE, PLAIN], amount)
    fakes.clear()
    again = Store(path)
    peers.measure(again, GROUP, [BASE, PLAIN, AUTO], amount)
    # The candidate that is new runs in rounds of its own, beside the base alone, with the prompts of these rounds.
    assert fakes == ["3 base alone", "3 auto", "4 base alone", "4 auto"]
    assert sorted(again.group(GROUP)[BASE].runs) == [0, 1, 2, 3]
    assert Store(path).cells == again.cells
    assert all(line.count('"candidate"') <= 1 for line in path.read_text().splitlines())


def test_texts_that_end_early_do_not_go_on_for_ever(
    fakes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "run", lambda self, *_: Run(1, 0.1))
    store = Store(tmp_path / "results.json")
    peers.measure(store, GROUP, [BASE, PLAIN], peers.Amount(20, 40, 1, 1))
    assert len(store.group(GROUP)[PLAIN].runs) == 40  # 20 times the runs that full texts would take


def test_machines_are_measured_apart(measured: Store, fakes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on another machine: a group of its own, what the first measured left as it is, --again included."""
    monkeypatch.setattr(running, "machine", lambda threads: OTHER_MACHINE)
    monkeypatch.setattr(peers.peers_build, "version", lambda: "5.6")
    before = Store(measured.path).cells
    again = ["run", "--file", str(measured.path), "--pairs", "Q8_0", "--rules", "base", "--candidates", "auto"]
    peers.main([*again, "--positions", "40", "--again", "auto"])
    store = Store(measured.path)
    assert store.machines == [MACHINE, OTHER_MACHINE]
    assert store.cells.pop(GROUP._replace(machine=1)).keys() == {BASE, AUTO}
    assert store.cells == before


def test_guesses_are_stored_of_the_longest_draft_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "results.json")
    store.cells[GROUP] = {f"k={k}": draft_cell(4, 1.0, (2, 4), (0.2, 0.04), "rrcr") for k in (2, 10)}
    store.save()
    found = Store(store.path).cells[GROUP]
    assert found["k=10"] == store.cells[GROUP]["k=10"]
    assert found["k=2"].runs[0].guesses == ""
    assert found["k=2"].runs[0].accepted == 3


def test_real_candidates_on_a_tiny_pair(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(running, "pair", lambda name: running.Pair(name, *tiny_pair))
    store = Store(tmp_path / "results.json")
    wanted = [BASE, "Llama", PLAIN, LAZY, "k=3"]
    for rule in ("base", "dual"):
        peers.measure(store, Group("tiny", rule, 1.0), wanted, peers.Amount(24, 24, 1, 1))
    base, dual = store.cells.values()
    assert "rule base" in base[LAZY].refused and not dual[LAZY].refused
    for cells in (base, dual):
        for name in (BASE, "Llama", PLAIN, "k=3"):
            assert cells[name].tokens > 0 and cells[name].speed > 0, name
        first = cells["k=3"].runs[0]
        assert first.guesses.count("r") == first.accepted and len(first.guesses) == first.tokens
        assert cells[PLAIN].runs[0].guesses.strip("n") == ""
        speed, _ = results.bound(cells) or (0.0, "")
        assert speed > cells[PLAIN].speed


def test_base_alone_runs_at_the_temperature_of_its_group(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[float] = []
    real = running.ModelAlone

    def spy(path: Path, *, temperature: float, n_ctx: int, n_threads: int) -> running.ModelAlone:
        made.append(temperature)
        return real(path, temperature=temperature, n_ctx=n_ctx, n_threads=n_threads)

    monkeypatch.setattr(running, "ModelAlone", spy)
    with running.open_pair(running.Pair("tiny", *tiny_pair), "base", 1, n_ctx=256) as kad:
        alone = running.BaseAlone(kad, tiny_pair[0], 1)
        for temperature in (0.0, 0.0, 0.7):
            assert alone.run("Why?", 1, temperature, 4).tokens == 4
        alone.close()
    assert made == [0.0, 0.7]


# ---- The page -----------------------------------------------------------------------------------------------------------

MACHINE: dict[str, Any] = {
    "processor": "Some CPU",
    "architecture": "x86_64",
    "cores": 2,
    "threads": 2,
    "memory_gb": 8,
    "system": "Linux",
    "instructions": "AVX2",
    "backend": "CPU",
}
OTHER_MACHINE = MACHINE | {"instructions": "AVX-512"}


@pytest.fixture
def measured(tmp_path: Path) -> Store:
    """A small results file: auto is exactly twice the base alone, speculative half as fast again."""
    store = Store(tmp_path / "results.json")
    assert store.number(MACHINE) == GROUP.machine
    store.programs = {"kad-llama": "1.2", "llama-cpp-python": "3.4", "llama.cpp": "5.6"}
    runs = {
        BASE: Run(40, 4.0),
        PLAIN: Run(40, 5.0, 40, 40, 4.0, 0.8),
        "k=3": Run(40, 2.5, 12, 40, 1.2, 0.8, 30, 27, "rrrn" * 9 + "crrr"),
        AUTO: Run(40, 2.0, 12, 40, 1.0, 0.8, 30, 27),
        "speculative-simple k=1": Run(40, 5.0, drafted=40, accepted=10),
        "speculative k=3": Run(40, 3.0, drafted=40, accepted=30),
        "speculative k=7": Run(40, 2.5, drafted=40, accepted=30),
    }
    cells = {name: cell(run, run) for name, run in runs.items()}
    cells["speculative k=3"].about = "llama-speculative --spec-draft-n-max 3 -s SEED"
    cells["speculative k=7"].about = "llama-speculative --spec-draft-n-max 7 -s SEED"
    cells[LAZY] = Cell(refused="rule base needs both")
    cells[AUTO].date = "2026-11-28"
    store.cells[GROUP] = cells
    store.keep_table("memory", "Memory", ["pair", "MiB"], [["demo", "70"]], OTHER_MACHINE, memory_mib=70.0)
    return store


def test_page_says_what_was_measured(measured: Store, tmp_path: Path) -> None:
    page.write(Store(measured.path), tmp_path)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for line in (
        "Machine A: Some CPU (x86_64, AVX2), 2 cores, 2 threads, 8 GB, Linux, CPU",
        "Machine B: Some CPU (x86_64, AVX-512)",
        "### Q8_0, rule base, temperature 1, machine A\n\n"
        "Base alone: 10.0 tokens/s. Measured 2026-11-27 to 2026-11-28.",
        f"## Memory\n\nMachine B, {results.today()}.",
        "| Q8_0, rule base: auto / base alone | A | 2.00 (2.00-2.00) | at least 1.6 | yes | 2026-11-27 to 2026-11-28 |",
        "| Q8_0, rule base: auto / speculative-simple k=1 | A | 2.50 (2.50-2.50) | at least 2.5 | yes |",
        "| Q8_0, rule base: auto / speculative k=7 | A | 1.25 (1.25-1.25) | at least 1.2 | yes |",
        "| F16, rule base: auto / base alone | - | not measured | at least 1.9 | - | - |",
        f"| memory beyond a process that holds both contexts, MiB | B | 70 | at most 64 | no | {results.today()} |",
        "| Q8_0, rule base: auto / k=3, on the other half of the rounds the best of plain, k=3 "
        "| A | 1.25 (1.25-1.25) | at least 0.92 | yes |",
        "| auto | yes | 2.00 (2.00-2.00) | 80 | 0.90 | 3.33 | 10.0 % |",
        "| speculative k=7 | no | 1.60 (1.60-1.60) | 80 | 0.75 | - | - |",
        "| speculative k=N | llama.cpp 5.6 | base at temperature 0; above it nothing known | "
        "`llama-speculative --spec-draft-n-max N -s SEED` |",
        "Did not run: lazy (rule base needs both).",
        "speculative that were tried, times the base alone: 3 (1.33), 7 (1.60).",
    ):
        assert line in text, line
    assert "| speculative k=3 |" not in text  # only the best of its lengths has a line
    for picture in re.findall(r"\]\((results-.*?\.svg)\)", text):
        assert (tmp_path / picture).read_text(encoding="utf-8").startswith("<?xml")
    assert text.count(".svg") == 3


def test_a_programs_best_length_is_the_one_that_gains_most_in_its_rounds() -> None:
    """k=3 ran in rounds in which the machine was twice as fast: more tokens per second, fewer times the base alone."""
    slow, fast = Run(40, 4.0), Run(40, 2.0)
    cells = {
        BASE: Cell({0: slow, 1: slow, 2: fast, 3: fast}),
        "speculative k=3": Cell({2: Run(40, 1.6), 3: Run(40, 1.6)}),
        "speculative k=7": Cell({0: Run(40, 2.0), 1: Run(40, 2.0)}),
    }
    assert cells["speculative k=3"].speed > cells["speculative k=7"].speed
    assert results.best(cells, "speculative") == "speculative k=7"
    del cells[BASE]  # nothing to compare with: by speed
    assert results.best(cells, "speculative") == "speculative k=3"


def test_a_bar_that_was_missed_is_taken_apart(measured: Store) -> None:
    """k=3: 100 ms a base pass of four tokens, 20 ms an aligned one; the base alone takes 80 ms a pass."""
    cells = measured.cells[GROUP]
    assert page.limits(measured) == []
    cells[BASE] = cell(Run(40, 4.0, 39, base_eval_s=3.12))
    cells["speculative k=7"] = cell(Run(40, 1.8), Run(40, 0.9))  # nothing counts of a round without the base alone
    (line,) = page.limits(measured)
    most = results.bound(results.within(cells, [0]))
    assert most is not None and most[1] == "k=3"
    assert line.startswith("Missed on machine A, Q8_0, rule base, auto / speculative k=7: in the rounds that all ran, ")
    assert f"the bound is {most[0] / (40 / 1.8):.2f} times that. In its parts" in line
    assert "a base pass of 4 tokens takes as long as 1.25 of one token, an aligned pass 0.250; 90 % of the" in line
    assert f"could make {most[0] / 10:.2f} times the base alone, and the program makes 2.22, 0 % of its guesses" in line
    cells[AUTO] = cell(Run(40, 2.6))  # 1.54 times the base alone
    first, *_ = page.limits(measured)
    assert first.startswith("Missed on machine A, Q8_0, rule base, auto / base alone: in the rounds that all ran, ")
    assert first.endswith(f"k=3 could make {most[0] / 10:.2f} times the base alone.")
    cells[PLAIN] = cell(Run(40, 3.0, 40, 40, 1.0, 0.8))  # 40 tokens in 1.8 s of passes: no draft allows as many
    first, *_ = page.limits(measured)
    assert "a base pass of 4 tokens takes as long as 1.25 of one token" in first
    assert first.endswith(f"plain could make {40 / 1.8 / 10:.2f} times the base alone.")


def test_a_bound_that_was_missed_is_taken_apart(measured: Store) -> None:
    """k=3 along rrrn rrrn ... c rrr: 40 events in 11 rounds, where 12 base passes were made."""
    cells = measured.cells[GROUP]
    assert page.own_limits(measured) == []
    cells[AUTO] = cell(Run(40, 2.4, 12, 40, 1.0, 0.8, 30, 27))
    (line,) = page.own_limits(measured)
    most = 40 / 11 / (0.1 + (32 + 10) / 11 * 0.02)  # ten rounds of 3 guesses and one of 2, ten right throughout
    assert f"k=3 itself reaches {16 / most:.3f} of it, and auto 1.042 of k=3" in line
    assert "of k=3 makes 3.33 events; right guesses alone would make 3.64. 20.0 % of its time is outside" in line


def test_an_outside_share_that_was_missed_is_taken_apart(measured: Store) -> None:
    rows = [
        ["49k", "base", "plain", "9 (3.2 %)", "9 (9.0 %)"],
        ["262k", "base", "auto", "0.50 (3.2 %)", "0.40 (2.0 %)"],
    ]
    header = ["vocabulary", "rule", "mode", "after 100", "after 2,000"]
    measured.keep_table("outside", "Outside", header, rows, MACHINE, outside_100=3.24, outside_2000=2.0)
    assert page.outside_limits(measured) == []  # no parts were measured
    parts = [["262k", "base", "auto", after, *ms] for after, ms in (("100", ("0.3", "0.2")), ("2,000", ("7", "8")))]
    header = ["vocabulary", "rule", "mode", "after tokens", "reading rows", "Python"]
    measured.keep_table("outside_parts", "Parts", header, parts, MACHINE)
    (line,) = page.outside_limits(measured)
    assert line == (
        "Missed on machine A, share outside evaluation after 100 tokens: 262k, rule base, auto, 0.50 (3.2 %) ms a token. "
        "In its parts: reading rows 0.3, Python 0.2."
    )


def test_a_gain_that_was_missed_says_what_the_limit_was(measured: Store) -> None:
    measured.keep_table("copying", "Copying", ["pair"], [["demo"]], MACHINE, copy_gain=1.5, copy_limit=1.9)
    assert page.copy_limits(measured) == []
    measured.keep_table("copying", "Copying", ["pair"], [["demo"]], MACHINE, copy_gain=1.2, copy_limit=1.9)
    (line,) = page.copy_limits(measured)
    assert line.startswith("Missed on machine A, ") and "the gain would be 1.90." in line


def test_outside_and_its_parts() -> None:
    """10 events in 2 s, of which 1.9 s in the library and 1 s in evaluation."""
    before = cost.Reading(tokens=5, wall=1.0, library=0.5, evaluation=0.4, read=0.0, draw=0.0, text=0.0)
    after = cost.Reading(tokens=15, wall=3.0, library=2.4, evaluation=1.4, read=0.5, draw=0.2, text=0.1)
    found = cost.outside(before, after)
    assert str(found) == "100.00 (50.0 %)"
    assert found.parts == pytest.approx((50, 20, 10, 10, 10)) and len(found.parts) == len(cost.PARTS)


def test_page_is_the_same_from_the_same_data(measured: Store, tmp_path: Path) -> None:
    written = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        page.write(Store(measured.path), folder)
        written.append({file.name: file.read_bytes() for file in folder.iterdir()})
    assert written[0] == written[1]


def test_one_base_and_one_aligned_pass() -> None:
    # 100 and 20 ms a pass; 19 of 20 tokens in each of two runs took passes; 2.4 s a run.
    plain = cell(*[Run(20, 2.4, 19, 19, 1.9, 0.38)] * 2)
    assert page.one_pass_each({PLAIN: plain}) == pytest.approx(0.12 * 38 / 4.8)
    assert page.one_pass_each({}) is None


def test_parts_of_the_cost_add_up() -> None:
    found = plots.parts(cell(Run(10, 2.0, 5, 5, 1.0, 0.4)), cell(Run(10, 1.0)))
    assert found == pytest.approx([1.0, 0.4, 0.6])


# ---- The other scripts --------------------------------------------------------------------------------------------------


def test_copy_prompts_show_the_task_and_leave_it_to_do() -> None:
    for number, (text, (old, new)) in enumerate(zip(copying.TEXTS, copying.WORDS, strict=True)):
        assert text.count(old) >= 2 and new not in text
        *_, before, after = copying.copy_prompt(number).splitlines()
        assert (before, after) == (f"Before: {text}", "After:")
        assert copying.copy_prompt(number).count(f"After: {text.replace(old, new)}\n") == 2
        assert copying.prompt("copy", number + len(copying.TEXTS)) == copying.copy_prompt(number)


def test_limit_of_guesses_from_the_text() -> None:
    """40 tokens in 2 s, of which half in aligned passes, and in 4 s without: 4 times faster were those free."""
    cells = {"with": cell(Run(40, 2.0, 10, 10, 0.8, 1.0)), "without": cell(Run(40, 4.0, 20, 40, 2.0, 1.0))}
    assert copying.milliseconds(cells["with"]) == "20.0 + 25.0 + 5.0"
    assert copying.limit(cells) == pytest.approx(4.0)


def test_short_texts_beside_every_fixed_setting() -> None:
    """auto takes 2 s for 32 tokens, k=2 takes 1 s, k=3 takes 4 s; an answer of 8 tokens counts for no ratio."""
    seconds = {"plain": 4.0, "k=2": 1.0, "k=3": 4.0, "auto": 2.0}
    assert list(short.candidates("2,3")) == list(seconds)
    cells = {name: cell(Run(32, time), Run(8, 8.0)) for name, time in seconds.items()}
    line = short.row("demo", "dual", "first", 32, cells)
    assert line[:5] == ["demo", "dual", "first", "32", "1"]
    assert [found.split()[0] for found in line[5:]] == ["2.00", "0.50", "2.00"]
    assert len(line) == len(short.header("2,3"))
    nothing = {name: Cell() for name in cells}
    assert short.row("demo", "dual", "next", 16, nothing)[4:] == ["0", "-", "-", "-"]


def test_long_prompts_are_as_long_as_they_say_and_no_two_begin_alike() -> None:
    for words in (0, 400, 1500):
        prompts = [attention.prompt(number, words) for number in range(6)]
        found = {len(prompt.split()) - len(running.QUESTIONS[i].split()) for i, prompt in enumerate(prompts)}
        assert found == {words + 4}, "and the four of its number"
        assert len({prompt.split()[1] for prompt in prompts}) == 6


def test_memory_of_a_tiny_pair(tiny_pair: tuple[Path, Path]) -> None:
    base, aligned = map(str, tiny_pair)
    task = {"base": base, "aligned": aligned, "rule": "dual", "n_ctx": 512, "question": "Why? " * 20}
    _, ids = memory.peak(task | {"tokens": 0})
    assert len(ids) == 2 and len(ids[0]) > 20
    alone, held = memory.peak(task | {"ids": ids, "threads": 1})
    whole, said = memory.peak(task | {"tokens": 8, "keywords": {"draft": 3}})
    assert held == 2 and 0 < said <= 8
    assert min(alone, whole) > 20 * 2**20  # an interpreter with NumPy at least
    with pytest.raises(SystemExit, match="nowhere.gguf"):
        memory.peak(task | {"base": "nowhere.gguf", "tokens": 8, "keywords": {}})


def test_cuda_script_as_far_as_it_goes_without_a_card(smollm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = gguf.GGUFReader(smollm).tensors
    wide = sum(int(t.n_elements) for t in tensors if re.search(r"ffn_(gate|up|down)\.", t.name))
    assert (wide, sum(int(t.n_elements) for t in tensors) - wide) == (cuda.FEED_FORWARD, cuda.REST)
    cuda.main(["--dry-run", "--pair", "Q8_0x64"])
    printed = capsys.readouterr().out
    assert printed.startswith("base: 5.2 B parameters")
    for command in cuda.commands("Q8_0x64", "base"):
        parser: Callable[..., argparse.Namespace] = peers.parse
        assert parser(command[2:]).file == cuda.FILE
    if running.backend() == "CPU":
        with pytest.raises(SystemExit, match="without CUDA"):
            cuda.main([])


def test_rows_that_were_not_measured_again_stay(tmp_path: Path) -> None:
    import common

    def row(pair: str, prompt: str, gain: str, limit: str) -> list[str]:
        return [pair, "base", "1", prompt, "80", gain, "-", "-", "-", "-", "-", limit]

    given = argparse.Namespace(keep=True, file=tmp_path / "results.json")
    first = [row("demo", "copy", "1.40 (1.20-1.60)", "2.0"), row("Q8_0", "copy", "1.05 (1.00-1.10)", "1.3")]
    assert common.beside_kept(given, "copying", copying.HEADER, first, 4) == first
    common.show(given, "copying", "Guesses", copying.HEADER, first)
    again = [row("demo", "elsewhere", "0.99 (0.90-1.10)", "1.5"), row("demo", "copy", "1.60 (1.50-1.70)", "2.2")]
    rows = common.beside_kept(given, "copying", copying.HEADER, again, 4)
    assert rows == [again[1], first[1], again[0]]
    assert copying.facts(rows) == {"copy_gain": 1.6, "copy_limit": 2.2, "copy_least": 1.05, "copy_loss": 0.99}
    assert copying.facts([row("demo", "copy", "-", "0.0")])["copy_gain"] == 0.0  # texts too short to count
    assert common.beside_kept(given, "copying", copying.HEADER[:-1], again, 4) == again  # other columns
    assert common.beside_kept(argparse.Namespace(keep=False), "copying", copying.HEADER, again, 4) == again


def test_tables_of_other_scripts_are_kept(tmp_path: Path) -> None:
    import common

    given = argparse.Namespace(keep=True, file=tmp_path / "results.json")
    common.show(given, "texts", "Eight texts", ["a"], [["1"]], texts_gain=2.0)
    common.show(given, "texts", "Eight texts", ["a"], [["2"]], texts_gain=2.5)  # takes the place of the first
    common.show(given, "memory", "Memory", ["a"], [["3"]])
    kept, other = json.loads(given.file.read_text())["tables"]
    assert other["name"] == "memory"
    assert kept == {
        "name": "texts",
        "date": results.today(),
        "title": "Eight texts",
        "header": ["a"],
        "rows": [["2"]],
        "facts": {"texts_gain": 2.5},
        "machine": 0,
    }
