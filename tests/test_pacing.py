"""Does the pacer keep up with the best fixed setting, and does the n-gram table guess what its rule says?

Texts are simulated: which guesses are right is drawn, what passes take is a table like those measured on real machines. The
shipped pacer decides from what it sees. Seeds are fixed, so these tests fail always or never: their error rate is 0.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import law
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

HARNESS = law.ROOT / "tests/cpp/paced_texts.cpp"
AUTO, PLAIN, LAZY = -2, -1, 0
FIXED = [PLAIN, LAZY, *range(1, 16)]

# Milliseconds of passes of so many tokens, and of one token of the aligned model.
MACHINES: dict[str, tuple[dict[int, float], float]] = {
    "F16": ({1: 84, 2: 146, 3: 145, 4: 151, 5: 158, 6: 168, 8: 215, 9: 208, 16: 312}, 8.4),
    "Q8_0": ({1: 62, 2: 102, 3: 117, 4: 128, 5: 187, 6: 193, 8: 174, 9: 231, 16: 284}, 8.4),
    "Q4_0": ({1: 28, 2: 49, 3: 69, 4: 77, 5: 98, 6: 137, 8: 143, 9: 160, 16: 183}, 8.4),
    "demo": ({1: 12, 4: 29.5, 8: 46, 16: 80}, 8.1),
    "large": ({1: 400, 4: 430, 8: 520, 16: 700}, 8.0),
}


@dataclass(frozen=True)
class Text:
    """A text's guesses. `calibrated`: the aligned model's probabilities say how likely a guess is right."""

    right: np.ndarray[Any, Any]
    confidence: np.ndarray[Any, Any]
    needed: np.ndarray[Any, Any]
    table: np.ndarray[Any, Any] | None = None
    table_right: np.ndarray[Any, Any] | None = None

    @staticmethod
    def drawn(
        seed: int, share: float | np.ndarray[Any, Any], alpha: float, n: int = 200, calibrated: bool = True
    ) -> Text:
        rng = np.random.default_rng(seed)
        mean = np.broadcast_to(share, n)
        each = rng.beta(4 * mean, 4 * (1 - mean))  # some events are surer than others
        confidence = each if calibrated else rng.random(n)
        return Text(np.int32(rng.random(n) < each), confidence, np.int32(rng.random(n) < alpha))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> law.Core:
    sources = [law.ROOT / "cpp/src/runtime" / name for name in ("pacing.cpp", "ngram.cpp")]
    compiled = law.compile_objects([*sources, HARNESS], [law.ROOT / "cpp/include", law.ROOT / "cpp/src"], objects)
    library = law.link(compiled, tmp_path_factory.mktemp("pacing") / "pacing.so")
    import cffi

    ffi = cffi.FFI()
    ffi.cdef(law.marked(HARNESS))
    return law.Core(ffi, ffi.dlopen(str(Path(library))))


@dataclass(frozen=True)
class Setting:
    """Seconds are told as a multiple `clock` of what they are; `copies` of a text run in step; seconds of a draw."""

    lazy: bool = True
    clock: float = 1.0
    copies: int = 1
    draw: float = 0.0
    first: float = 0.0


def write(
    core: law.Core, machine: str, texts: list[Text], how: int, setting: Setting | None = None
) -> tuple[list[float], list[int]]:
    """Seconds of each text, and how often a base pass had so many tokens."""
    ffi, (base, aligned) = core.ffi, MACHINES[machine]
    c = ffi.new("pace_machine *", asdict(setting or Setting()) | {"most": 15})
    known = sorted(base)
    for n in range(1, 65):
        slope = (base[16] - base[8]) / 8
        c.base[n] = 1e-3 * (np.interp(n, known, [base[k] for k in known]) if n <= 16 else base[16] + slope * (n - 16))
        c.aligned[n] = 1e-3 * aligned * (1 + 0.12 * (n - 1))
    alive, c_texts = [], ffi.new("pace_text[]", len(texts))
    for text, target in zip(texts, c_texts, strict=True):
        target.n = len(text.right)
        for name in ("right", "needed", "table", "table_right"):
            if getattr(text, name) is not None:
                array = np.ascontiguousarray(getattr(text, name), np.int32)
                alive.append(array)
                setattr(target, name, ffi.cast("const int32_t *", ffi.from_buffer(array)))
        confidence = np.ascontiguousarray(text.confidence, np.float64)
        alive.append(confidence)
        target.confidence = ffi.cast("const double *", ffi.from_buffer(confidence))
    seconds, counts = ffi.new("double[]", len(texts)), ffi.new("int32_t[65]")
    core.lib.pace_write(c, c_texts, len(texts), how, seconds, counts)
    return list(seconds), list(counts)


def against_best(core: law.Core, machine: str, texts: list[Text], setting: Setting | None = None) -> float:
    """How much longer the pacer takes than the best fixed setting, chosen on these very texts: 0.05 is 5 %."""
    setting = setting or Setting()
    fixed = [sum(write(core, machine, texts, how, setting)[0]) for how in FIXED if setting.lazy or how != LAZY]
    return sum(write(core, machine, texts, AUTO, setting)[0]) / min(fixed) - 1


# ---- Against the best fixed setting ----------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("share", [0.5, 0.7, 0.85, 0.95, 0.98])
def test_as_fast_as_the_best_fixed_setting(core: law.Core, machine: str, share: float) -> None:
    """Within 8 %, the first text of an engine and all that it must find out included, whether the rule needs q or not."""
    for lazy in (True, False):
        for alpha in (0.15, 0.6, 0.9):
            texts = [Text.drawn(seed, share, alpha if lazy else 1.0) for seed in range(8)]
            assert against_best(core, machine, texts, Setting(lazy)) < 0.08, (lazy, alpha)


@pytest.mark.parametrize("machine", MACHINES)
def test_confidence_that_says_nothing(core: law.Core, machine: str) -> None:
    texts = [Text.drawn(seed, 0.85, 0.6, calibrated=False) for seed in range(8)]
    assert against_best(core, machine, texts) < 0.08


@pytest.mark.parametrize("machine", MACHINES)
def test_a_text_that_changes_midway(core: law.Core, machine: str) -> None:
    """Guesses are right at 97 %, then at 40 %, then at 97 % again: no fixed draft suits both."""
    share = np.repeat([0.97, 0.4, 0.97], 150)
    texts = [Text.drawn(seed, share, 0.7, n=450) for seed in range(6)]
    assert against_best(core, machine, texts) < 0.04


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_short_texts_begin_with_what_the_others_showed(core: law.Core, machine: str, share: float) -> None:
    """Caught here: a pacer that finds everything out anew in each text of 40 events. The first ten are not counted."""
    texts = [Text.drawn(seed, share, 0.6, n=40) for seed in range(40)]
    fixed = min(sum(write(core, machine, texts, how)[0][10:]) for how in FIXED)
    assert sum(write(core, machine, texts, AUTO)[0][10:]) / fixed - 1 < 0.05


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("share", [0.5, 0.85, 0.98])
@pytest.mark.parametrize("copies", [2, 4, 8])
def test_several_texts_that_share_every_pass(core: law.Core, machine: str, share: float, copies: int) -> None:
    """Passes hold a round of each text, and each draws for itself: here for half of what an aligned pass takes."""
    texts = [Text.drawn(seed, share, 0.6) for seed in range(8)]
    draw = MACHINES[machine][1] / 2000
    assert against_best(core, machine, texts, Setting(copies=copies, draw=draw)) < 0.08


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("share", [0.7, 0.95])
def test_draws_cost_time(core: law.Core, machine: str, share: float) -> None:
    """A draw takes a quarter of an aligned pass here. A first one that takes a second is no measure of the others."""
    texts = [Text.drawn(seed, share, 0.6) for seed in range(8)]
    sound = Setting(draw=MACHINES[machine][1] / 4000)
    assert against_best(core, machine, texts, sound) < 0.08
    alone, stalled = (
        sum(write(core, machine, [text], AUTO, setting)[0][0] - setting.first for text in texts)
        for setting in (sound, replace(sound, first=1.0))
    )
    assert stalled / alone < 1.05


def test_a_sure_text_is_drafted_far_and_a_poor_one_is_not(core: law.Core) -> None:
    """Fails for a pacer that always drafts alike."""
    longest = {}
    for share in (0.98, 0.2):
        counts = np.array(write(core, "Q8_0", [Text.drawn(1, share, 0.5, n=400)], AUTO)[1])
        longest[share] = (counts * np.arange(65)).sum() / counts.sum()
    assert longest[0.98] > 6
    assert longest[0.2] < 2.5


def test_guesses_of_the_table_are_used_where_they_are_right(core: law.Core) -> None:
    n = 400
    text = Text.drawn(3, 0.8, 0.5, n=n)
    right = Text(text.right, text.confidence, text.needed, np.full(n, 3), np.ones(n))
    wrong = Text(text.right, text.confidence, text.needed, np.full(n, 0), np.zeros(n))
    without, useful, useless = (sum(write(core, "demo", [each], AUTO)[0]) for each in (text, right, wrong))
    assert without / useful > 1.5
    assert useless / without < 1.03


@pytest.mark.parametrize("machine", MACHINES)
def test_the_aligned_model_reads_guesses_of_the_table_along(core: law.Core, machine: str) -> None:
    """Where the rule needs q at every event, the table's guesses spare passes of the aligned model, and cost nothing."""
    text = Text.drawn(3, 0.97, 1.0, n=400)
    same = Text(text.right, text.confidence, text.needed, np.full(400, 3), text.right)
    other = Text(text.right, text.confidence, text.needed, np.full(400, 1), np.zeros(400))
    needs = Setting(lazy=False)
    without, useful, useless = (sum(write(core, machine, [each], AUTO, needs)[0]) for each in (text, same, other))
    spared = 7 * MACHINES[machine][1] / (MACHINES[machine][0][8] + 8 * MACHINES[machine][1])  # of a draft of 8, at most
    assert without / useful - 1 > 0.5 * spared
    assert useless / without < 1.03


# ---- What passes take ------------------------------------------------------------------------------------------------


def times(core: law.Core, seen: list[tuple[int, float]]) -> list[float]:
    out = core.ffi.new("double[64]")
    core.lib.pace_times([n for n, _ in seen], [s for _, s in seen], len(seen), out)
    return list(out)


def test_times(core: law.Core) -> None:
    assert times(core, [])[0] == 0.05 and all(a < b for a, b in pairwise(times(core, [])))
    known = times(core, [(1, 0.060), (4, 0.120), (8, 0.180)])
    assert known[0] == 0.060 and known[3] == 0.120 and known[7] == 0.180
    assert known[1] == pytest.approx(0.080) and known[5] == pytest.approx(0.150)
    assert 0.180 < known[15] < 0.180 + 8 * 0.0172  # beyond: less steep than from one to eight
    assert times(core, [(4, 0.100)])[0] < 0.100 < times(core, [(4, 0.100)])[4]


def test_times_that_are_none(core: law.Core) -> None:
    """NaN, negative and infinite seconds and lengths that no pass has change nothing; an outlier counts as three times."""
    sound = [(1, 0.060)] * 6
    nonsense = [(1, float("nan")), (1, -1.0), (1, float("inf")), (0, 1.0), (65, 1.0)]
    assert times(core, sound + nonsense) == times(core, sound)
    assert times(core, [*sound, (1, 60.0)])[0] == pytest.approx(0.060 * (5 / 6 + 3 / 6), rel=1e-3)
    drift = times(core, sound + [(1, 0.120)] * 20)
    assert drift[0] == pytest.approx(0.120, rel=0.05)


@pytest.mark.parametrize("clock", [0.0, float("nan"), -1.0, 1e-12])
def test_a_clock_that_stands_still(core: law.Core, clock: float) -> None:
    """Every plan is then a guess; the text is written, with drafts that a round can hold."""
    seconds, counts = write(core, "Q8_0", [Text.drawn(1, 0.9, 0.5)], AUTO, Setting(clock=clock))
    assert np.isfinite(seconds).all() and sum(counts[1:17]) > 0 and sum(counts[17:]) == 0


# ---- The n-gram table ------------------------------------------------------------------------------------------------


def guess(core: law.Core, events: list[int], most: int = 8) -> tuple[list[int], list[int]]:
    found, match = core.ffi.new("int32_t[]", most), core.ffi.new("int32_t[]", most)
    n = core.lib.ngram_guess(events, len(events), most, found, match)
    return list(found[0:n]), list(match[0:n])


def test_table_by_hand(core: law.Core) -> None:
    assert guess(core, []) == ([], [])
    assert guess(core, [1, 2, 3, 4]) == ([], [])
    assert guess(core, [1, 2, 3, 4, 5, 1, 2, 3], 2) == ([4, 5], [1, 1])
    assert guess(core, [9, 2, 3, 4, 5, 1, 2, 3], 2)[1] == [0, 0]  # only two events match
    assert guess(core, [1, 2, 3, 4, 7, 1, 2, 3, 5, 8, 1, 2, 3], 1)[0] == [5]  # the latest
    # An earlier place, as 7 stands before it too; and how often the latest ones were followed by 5 says nothing of it.
    said = [1, 2, 3, 4, 8, 1, 2, 3, 5, 9, 1, 2, 3, 5, 7, 1, 0, 7, 1, 2, 3]
    assert guess(core, [7, *said], 1) == ([4], [1])
    assert guess(core, [6, *said], 1) == ([5], [2])
    for others, expected in ((7, 4), (8, 5)):  # of the last eight places
        between = [event for i in range(others) for event in (20 + i, 1, 2, 3, 5)]
        assert guess(core, [7, 1, 2, 3, 4, *between, 7, 1, 2, 3], 1)[0] == [expected]
    assert guess(core, [1, 2, 3, 4, 1, 2, 3, -1, 1, 2, 3], 1)[0] == [4]  # the latest that can be said
    same = list(range(10, 42))  # a context further back than 32 events counts for no more
    assert guess(core, [7, *same, 4, 8, *same, 5, 7, *same], 1)[0] == [5]
    assert guess(core, [7, *same[1:], 4, 8, *same[1:], 5, 7, *same[1:]], 1)[0] == [4]
    assert guess(core, [1, 2, 1, 2, 1, 2], 5)[0] == [1, 2, 1, 2, 1]  # along its own guesses
    assert guess(core, [1, 2, -1, 1, 2, -1, 1, 2]) == ([], [])  # nothing is guessed through what cannot be said
    assert guess(core, [0, 0, 0, 0], 3)[0] == [0, 0, 0]


def slow_guess(events: list[int], most: int) -> list[int]:
    for n in (3, 2):
        if len(events) < n or -1 in events[-n:]:
            continue
        places = [i for i in range(n, len(events)) if events[i - n : i] == events[-n:]]
        places = [i for i in (places[-8:] if n == 3 else places[-1:]) if events[i] != -1]
        if places:
            at = max(places, key=lambda i: (agree(events, i) if n == 3 else 0, i))
            walk = events[:]
            while len(walk) < len(events) + most and walk[at + len(walk) - len(events)] != -1:
                walk.append(walk[at + len(walk) - len(events)])
            return walk[len(events) :]
    return []


def agree(events: list[int], at: int) -> int:
    """How many events before `at` are those at the end, 32 at most."""
    return next((n for n in range(min(32, at)) if events[at - 1 - n] != events[-1 - n]), min(32, at))


@given(events=st.lists(st.integers(-1, 3), max_size=60), most=st.integers(1, 20))
def test_table_against_a_search(core: law.Core, events: list[int], most: int) -> None:
    assert guess(core, events, most)[0] == slow_guess(events, most)


def test_table_of_many_events(core: law.Core) -> None:
    """It grows many times over, and large ids have keys of their own."""
    rng = np.random.default_rng(0)
    events = [int(event) for event in rng.integers(0, 2**21 - 2, 20_000)]
    assert guess(core, events + events[100:103], 10)[0] == events[103:113]
