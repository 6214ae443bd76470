"""`kad-llama figures`: are the numbers those of the oracle, and are the files whole, plain and readable without colour?"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from real import Events

import kad_llama.figures
from kad_llama import KadLlama, deferral, reference
from kad_llama.cli import main
from kad_llama.errors import InvalidArgumentError, KadError
from kad_llama.evaluation import Answer
from kad_llama.evaluation.identity import model_identity
from kad_llama.evaluation.settings import read_rule
from kad_llama.figures import collect as collecting
from kad_llama.figures import index, write_figures
from kad_llama.figures.collect import (
    BUDGET,
    EVENTS,
    SWEPT,
    THRESHOLDS,
    Names,
    Numbers,
    Plan,
    Position,
    Texts,
    rows_along,
    unfilled,
)
from kad_llama.figures.draw import draw, visible
from kad_llama.generation import Generation

Pair = tuple[Path, Path]
Capture = pytest.CaptureFixture[str]
Rows = tuple[np.ndarray, np.ndarray]

HOW: dict[str, Any] = {"n_ctx": 256, "n_threads": 1}
FIGURES = ("distribution", "acceptance", "entropy", "budget")  # those that need no results


@pytest.fixture(params=["equal", "different"])
def pair(request: pytest.FixtureRequest) -> Pair:
    """Two files of one vocabulary, or of two."""
    name = "tiny_pair" if request.param == "equal" else "tiny_cross_pair"
    found: Pair = request.getfixturevalue(name)
    return found


class Recorder:
    """Keeps the rows that numbers are made of, beside what was made of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, list[tuple[Rows, Position]]] = {}
        made = collecting.position_of

        def recorded(rows: Rows, setting: Any, *more: Any) -> Position:
            position = made(rows, setting, *more)
            self.seen.setdefault(setting.name, []).append((rows, position))
            return position

        monkeypatch.setattr(collecting, "position_of", recorded)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers alone: drawing takes most of the time."""
    monkeypatch.setattr(kad_llama.figures.draw, "draw", lambda numbers: {})


# ---- Numbers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["dual:0.2", "primal:0.6", "nudging", "bet", "token-v1", "opt"])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
def test_a_position_against_the_oracle(pair: Pair, rule: str, temperature: float) -> None:
    setting = read_rule(rule)
    with KadLlama(*pair, rule=setting.rule, threshold=setting.threshold, **HOW) as kad:
        stream = kad.stream("Why?", seed=3, max_tokens=4, temperature=temperature, spec=False)
        with stream:
            found = [
                (rows, collecting.position_of(rows, setting, temperature, True))
                for rows in rows_along(stream, kad.vocab.n_events)
            ]
    for rows, position in found:
        check_position(rows, position, rule, temperature)
    for token, (_, position) in zip(stream.result.tokens, found, strict=False):
        assert position.alpha == pytest.approx(token.deferred_mass, abs=1e-9), "rows of another event"


def check_position(rows: Rows, position: Position, rule: str, temperature: float) -> None:
    setting = read_rule(rule)
    decision = reference.decide(setting.rule, setting.threshold, *rows)
    p, q = (reference.softmax(row, temperature) for row in rows)
    base, aligned = reference.said(decision, p, q)
    assert position.alpha == pytest.approx(reference.deferred_mass(decision, p, q), abs=1e-9)
    assert position.right == pytest.approx(1 - reference.total_variation(base + aligned, q), abs=1e-9)

    shares = position.shares
    assert shares is not None and shares.n_kept == decision.kept.sum()
    columns = np.stack([p, q, base, aligned])
    np.testing.assert_allclose(shares.columns[:-1].T, columns[:, shares.events], atol=1e-9)
    np.testing.assert_allclose(shares.columns.sum(axis=0), columns.sum(axis=1), atol=1e-9)
    assert (shares.kept == decision.kept[shares.events]).all()
    height = columns[:2].max(axis=0).clip(base + aligned)
    left_out = np.delete(height, shares.events)
    assert len(shares.events) == min(EVENTS, int((height > 1e-300).sum())) == len(set(shares.events))
    assert left_out.max() <= height[shares.events].min() + 1e-12, "a more probable event is not shown"
    assert (np.diff(height[shares.events]) <= 1e-12).all()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_sweep_against_the_oracle(
    pair: Pair, temperature: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recorder = Recorder(monkeypatch)
    numbers = write_figures(
        *pair, directory=tmp_path, prompts=["Why?", "And then?"], n=3, temperature=temperature, seed=5, **HOW
    )
    rows = [rows for rows, _ in recorder.seen["dual 0.4"]][: numbers.positions]
    assert numbers.entropy is not None and [sweep.rule for sweep in numbers.entropy] == list(SWEPT)
    for sweep in numbers.entropy:
        for i, threshold in enumerate(THRESHOLDS):
            entropies, alphas = [], []
            for base, aligned in rows:
                keep = reference.kept(sweep.rule, threshold, base, aligned_logits=aligned)
                p = reference.softmax(base, temperature)
                alphas.append(reference.deferred_mass(keep, p))
                if keep.any():
                    kept = p[keep] / p[keep].sum()
                    entropies.append(float(-(kept[kept > 0] * np.log(kept[kept > 0])).sum()))
            assert sweep.alpha[i] == pytest.approx(np.mean(alphas), abs=1e-6)
            assert sweep.kept[i] == len(entropies) / len(rows)
            wanted = np.mean(entropies) if entropies else None
            assert sweep.entropy[i] == (None if wanted is None else pytest.approx(wanted, abs=1e-6))
    assert any(None in sweep.entropy for sweep in numbers.entropy), "S was never empty: this proves little"


@pytest.mark.usefixtures("undrawn")
def test_the_budget_of_real_rows(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = Recorder(monkeypatch)
    numbers = write_figures(*tiny_pair, directory=tmp_path, prompts=["Why?"], n=5, temperature=0.5, seed=2, **HOW)
    given = numbers.budget
    assert given is not None and given.budget == BUDGET
    for i, (rows, _) in enumerate(recorder.seen["dual 0.4"][: numbers.positions]):
        p = reference.softmax(rows[0])  # at temperature 1, whatever the texts were written at
        kept = reference.kept("primal", BUDGET, rows[0])
        assert given.critical[i] == pytest.approx(p[kept].min(), abs=1e-9)
        assert given.greedy[i] == pytest.approx(BUDGET - p[~kept].sum(), abs=1e-9)
        optimum = deferral(*rows, rule="exact", threshold=BUDGET)
        assert given.exact[i] == pytest.approx(BUDGET - p[optimum].sum(), abs=1e-9)
        assert -1e-9 <= given.greedy[i] < given.critical[i]


def test_the_budget_by_brute_force() -> None:
    """The optimum of all 2^12 sets; 200 rows."""
    random = np.random.default_rng(4)
    for _ in range(200):
        p = random.dirichlet(np.full(12, 0.4))
        found = unfilled(p)
        order = np.argsort(-p)
        count = int(np.flatnonzero(np.cumsum(p[order]) >= 1 - BUDGET)[0])
        assert found.critical == p[order[count]]
        assert found.greedy == pytest.approx(BUDGET - p[order[count + 1 :]].sum(), abs=1e-12)
        kept, _ = reference.knapsack_brute_force(p, BUDGET)
        assert found.exact == pytest.approx(BUDGET - p[~kept].sum(), abs=1e-9) and found.certified
        assert found.greedy < found.critical


@pytest.fixture(scope="module")
def written(tiny_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> tuple[Numbers, Path, Any]:
    """One run of 3 prompts and 40 positions each, what it wrote, and the rows."""
    folder = tmp_path_factory.mktemp("figures") / "new" / "folder"
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(patch)
        prompts = ["Why?", "Tell me of the sea.", "How many apples?"]
        numbers = write_figures(*tiny_pair, directory=folder, prompts=prompts, n=40, seed=11, **HOW)
    return numbers, folder, recorder.seen


def test_what_is_counted_agrees_with_what_is_computed(written: tuple[Numbers, Path, Any]) -> None:
    """Counts within 4 standard deviations of the sum of their probabilities: 6 comparisons, error rate below 4e-4.

    Guesses are not compared at all positions: there the standard deviation is that of a share of as many guesses, and the
    mean over all positions stands for that over theirs.
    """
    numbers, _, seen = written
    assert numbers.acceptance is not None
    assert [each.setting for each in numbers.acceptance] == ["dual 0.4", "primal 0.9", "nudging 0.4"]
    for each in numbers.acceptance:
        alphas = np.array([position.alpha for _, position in seen[each.setting]])
        rights = np.array([position.right for _, position in seen[each.setting]])
        assert each.positions == len(alphas) > 50
        assert each.kept == pytest.approx(1 - alphas.mean(), abs=1e-12)
        assert each.right == pytest.approx(rights.mean(), abs=1e-12)
        said, guesses = each.said_by_base, each.right_guesses
        assert said is not None and guesses is not None and guesses.of > 40
        assert abs(said.share - each.kept) < 4 * math.sqrt((alphas * (1 - alphas)).sum()) / said.of + 1 / said.of
        assert abs(guesses.share - each.right) < 4 * math.sqrt(each.right * (1 - each.right) / guesses.of)
        for measured in (said, guesses):
            assert measured.share == measured.count / measured.of
            assert measured.low < measured.share < measured.high
    assert max(abs(each.kept - each.right) for each in numbers.acceptance) > 0.1, "the two could be exchanged"


def test_the_position_shown(written: tuple[Numbers, Path, Any]) -> None:
    numbers, _, seen = written
    shown = numbers.distribution
    assert shown is not None and shown.shared
    alphas = [position.alpha for _, position in seen["dual 0.4"]]
    first = next(i for i, alpha in enumerate(alphas) if 0.2 <= alpha <= 0.8)
    assert (shown.position, shown.alpha, shown.positions) == (first + 1, alphas[first], len(alphas))
    assert sum(bar.p for bar in shown.bars) + shown.rest[0] == pytest.approx(1)
    assert sum(bar.base + bar.aligned for bar in shown.bars) + sum(shown.rest[2:]) == pytest.approx(1)
    assert sum(bar.base for bar in shown.bars) + shown.rest[2] == pytest.approx(1 - shown.alpha)


def at(alpha: float) -> Position:
    return Position(alpha, 0.5)


def test_which_position_is_chosen() -> None:
    choose = collecting._chosen
    assert choose([at(0.1), at(0.8), at(0.5)], None) == 1
    assert choose([at(0.05), at(0.9), at(0.95)], None) == 1, "none is shared: the nearest to a half"
    assert choose([at(0.1), at(0.5), at(0.9)], 3) == 2
    assert choose([at(0.1), at(0.5)], 3) is None


# ---- Events and texts ---------------------------------------------------------------------------------------------------


def test_what_events_are_called(pair: Pair) -> None:
    """Every event, against section 6 in the tests' own words; equal vocabularies: against the tokens."""
    with KadLlama(*pair, **HOW) as kad:
        name = Names(kad)
        if kad.vocab.equal:
            ends = [event for event in range(kad.vocab.n_events) if name(event) is None]
            assert ends and kad.base is not None and kad.base.eos in ends
            others = [event for event in range(kad.vocab.n_events) if event not in ends]
            assert all(name(event) == kad.token_bytes(event) for event in others)
            return
        events = Events(kad)
        assert len(events.number) > 400 and name(events.end) is None
        for key, number in events.number.items():
            assert name(number) == (key[1] if isinstance(key, tuple) else key)
        assert max(events.number.values()) == kad.vocab.n_events - 1


def test_the_text_before_a_position(pair: Pair) -> None:
    texts = Texts(read_rule("dual"), whole=False)
    plan = Plan(("Why?", "Who?"), 6, read_rule("dual"), None, 1.0, 3)
    done: list[int] = []
    with KadLlama(*pair, **HOW) as kad:
        texts.write(kad, plan, done.append)
        outs = [kad.generate(p, max_tokens=6, seed=3, text_number=i, spec=False) for i, p in enumerate(plan.prompts)]
    wanted = [
        (i, "".join(t.text for t in out.tokens[:k])) for i, out in enumerate(outs) for k in range(len(out.tokens))
    ]
    found = [(prompt, before) for _, prompt, before in texts.positions]
    ends = [out for out in outs if out.finish_reason == "stop"]
    assert [each for each in found if each in wanted] == wanted and len(found) <= len(wanted) + len(ends)
    assert sum(done) == 2 * 2 * plan.n, "progress does not end at the total"
    assert texts.said == sum(len(out.tokens) for out in outs)
    assert texts.by_base == sum(t.source == "base" for out in outs for t in out.tokens)


@pytest.mark.parametrize(
    ("rows", "handed_out", "said", "reason", "kept"),
    [
        (5, 5, 5, "length", 5),
        (4, 3, 3, "stop", 4),  # the end of the text: an event that says nothing
        (5, 3, 5, "stop", 3),  # two tokens lay in a stop string
        (4, 3, 3, "interrupted", 3),  # after the row, before the draw
        (1, 0, 0, "stop", 1),
    ],
)
def test_which_positions_belong_to_a_text(
    tiny_pair: Pair, rows: int, handed_out: int, said: int, reason: Any, kept: int
) -> None:
    with KadLlama(*tiny_pair, **HOW) as kad:
        out = kad.generate("Why?", max_tokens=5, seed=3, spec=False, temperature=0.5)
    assert len(out.tokens) == 5
    out = Generation(out.text, out.tokens[:handed_out], reason, 3, replace(out.stats, tokens=said))
    texts = Texts(read_rule("dual"), whole=False)
    texts._take([at(0.5)] * rows, 0, out)
    assert len(texts.positions) == kept


class Guesser:
    """Stands in for KadLlama where guesses are counted."""

    def __init__(self, out: Generation, max_draft: int = 8, stops: bool = False) -> None:
        self.out, self.max_draft, self.stops = out, max_draft, stops
        self.asked: dict[str, Any] = {}

    def generate(self, prompt: str, **keywords: Any) -> Generation:
        self.asked = keywords
        if self.stops:
            stopped = KeyboardInterrupt()
            stopped.partial = self.out  # type: ignore[attr-defined]
            raise stopped
        return self.out


def test_guesses_are_counted_also_where_ctrl_c_ends_them(tiny_pair: Pair) -> None:
    with KadLlama(*tiny_pair, **HOW) as kad:
        out = kad.generate("Why?", max_tokens=20, seed=3, draft=4)
    assert out.stats.drafted > out.stats.accepted > 0
    plan = Plan(("Why?",), 20, read_rule("dual"), None, 0.7, 3)
    for kad, drafted, draft in ((Guesser(out), 1, 4), (Guesser(out, 2, True), 1, 2), (Guesser(out, 0), 0, None)):
        texts = Texts(read_rule("dual"), whole=False)
        with pytest.raises(KeyboardInterrupt) if kad.stops else contextlib.nullcontext():
            texts._guessing(kad, plan, 5, "Why?")  # type: ignore[arg-type]
        assert (texts.drafted, texts.accepted) == (drafted * out.stats.drafted, drafted * out.stats.accepted)
        assert kad.asked.get("draft") == draft and kad.asked.get("text_number", 5) == 5
        assert bool(texts.note) == (draft is None)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b" the", "␣the"),
        (b"\n\t", "\\n\\t"),
        (b"$x$", "$x$"),
        (b"\\n", "\\\\n"),
        ("né".encode(), "né"),
        ("天🙂".encode(), "\\u5929\\U0001f642"),
        (b"\xf0\x9f", "\\xf0\\x9f"),
        (b"\x1b[0m", "\\x1b[0m"),
        ("\u202ea".encode(), "\\u202ea"),
        (None, "(end of text)"),
    ],
)
def test_tokens_are_visible(data: bytes | None, shown: str) -> None:
    assert visible(data) == shown


# ---- Files --------------------------------------------------------------------------------------------------------------


def pixels(png: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def test_the_files(written: tuple[Numbers, Path, Any]) -> None:
    numbers, folder, _ = written
    wanted = {f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == wanted | {"figures.md", "figures.json"}
    for name in FIGURES:
        seen = pixels((folder / f"{name}.png").read_bytes())
        assert (seen[..., :1] == seen).all(), "something is coloured"
        assert len(np.unique(seen)) > 10 and seen.shape[1] == 1125
        root = ElementTree.parse(folder / f"{name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
    stored = json.loads((folder / "figures.json").read_text())
    assert stored["kad_llama_figures"] == 1 and not stored["interrupted"]
    assert stored["budget"] == asdict(numbers.budget)  # type: ignore[call-overload]
    assert stored["acceptance"][0]["setting"] == "dual 0.4"
    assert "text" in stored["distribution"]["bars"][0] and stored["about"]["vocabularies"]["equal"]


def test_the_index(written: tuple[Numbers, Path, Any]) -> None:
    numbers, folder, _ = written
    page = (folder / "figures.md").read_text()
    for name in FIGURES:
        assert f"]({name}.png)" in page and f"]({name}.svg)" in page
    assert "accuracy.png" not in page and "Left out" in page and "kad-llama eval" in page
    assert f"From {numbers.positions} positions" in page and "vocabularies: equal" in page
    assert "1. `Why?`" in page


def test_the_same_numbers_give_the_same_bytes(
    written: tuple[Numbers, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also under a style of the user's."""
    import matplotlib

    numbers, folder, _ = written
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "yellow")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20)
    for name, data in draw(numbers).items():
        assert data == (folder / name).read_bytes()


def test_no_state_of_pyplot() -> None:
    code = "import sys, kad_llama.figures.draw as d; from kad_llama.figures import Numbers; d.draw(Numbers({}));"
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_awkward_texts_can_be_drawn(written: tuple[Numbers, Path, Any], tmp_path: Path) -> None:
    """Formulas that are none, characters without a glyph, bytes, very long tokens; prompts with backticks and breaks."""
    numbers, _, _ = written
    assert numbers.distribution is not None
    bars = [
        replace(numbers.distribution.bars[0], bytes=data)
        for data in (b"$\\frac{", b"_^$$", "天".encode(), b"\xff", b"x" * 200, None)
    ]
    odd = replace(numbers.distribution, bars=bars, before="$a\n" * 60, prompt="``a`\n# b|")
    about = numbers.about | {"prompts": ["``a`\n# b|"]}
    files = draw(replace(numbers, distribution=odd))
    svg = files["distribution.svg"].decode()
    ElementTree.fromstring(svg)
    assert "$\\\\frac{" in svg and "x" * 40 not in svg and "(end of text)" in svg
    page = index.index(replace(numbers, about=about, distribution=odd))
    assert "1. ```` ``a` # b| ````" in page or "1. ``` ``a` # b| ```" in page
    index.write(tmp_path, {"figures.json": json.dumps(replace(numbers, distribution=odd).to_dict()).encode()})


def test_different_vocabularies_leave_nothing_out(tiny_cross_pair: Pair, tmp_path: Path) -> None:
    numbers = write_figures(*tiny_cross_pair, directory=tmp_path, prompts=["Why?"], n=8, **HOW)
    assert set(numbers.missing) == {"accuracy"}
    page = (tmp_path / "figures.md").read_text()
    assert "vocabularies: different" in page and all(f"{name}.png" in page for name in FIGURES)


def test_a_token_rule_and_a_position(tiny_pair: Pair, tmp_path: Path) -> None:
    numbers = write_figures(
        *tiny_pair, directory=tmp_path, prompts=["Why?"], n=4, rule="token-v3:0.3", position=2, temperature=0.8, **HOW
    )
    shown = numbers.distribution
    assert shown is not None and shown.exchanged and shown.position == 2 and shown.setting == "token-v3 0.3"
    page = (tmp_path / "figures.md").read_text()
    assert "the one asked for" in page and "The aligned model keeps" in page
    assert numbers.acceptance is not None and len(numbers.acceptance) == 3


def test_a_position_behind_the_end(tiny_pair: Pair) -> None:
    """What was asked for is not there: said by name, and the other figures stand."""
    place = collecting.Place((np.zeros(4, np.float32), np.zeros(4, np.float32)), read_rule("dual"), 1.0)
    whole = collecting.position_of(place.rows, place.setting, 1.0, True)
    texts = Texts(read_rule("dual"), True, positions=[(whole, 0, "")])
    numbers = Numbers({})
    with KadLlama(*tiny_pair, **HOW) as kad:
        collecting._fill(numbers, texts, Plan(("Why?",), 9, read_rule("dual"), 5, 1.0, 1), Names(kad))
    assert numbers.distribution is None and "position 5" in numbers.missing["distribution"]
    assert numbers.budget is not None and numbers.entropy is not None


# ---- Results of an evaluation -------------------------------------------------------------------------------------------


def store_results(folder: Path, pair: Pair, settings: dict[str, tuple[str, float | None, int, float]]) -> Path:
    """An evaluation's file; each setting with its rule, threshold, right answers of 10, and seconds per answer."""
    files = {role: model_identity(path, print) for role, path in zip(("base", "aligned"), pair, strict=True)}
    lines = [json.dumps({"kad_llama_eval": 1, **files, "task": {"name": "sums"}})]
    for setting, (rule, threshold, right, seconds) in settings.items():
        for i in range(10):
            answer = Answer(
                **dict.fromkeys(("prompt", "text", "answer", "target"), ""),
                **dict.fromkeys(("base_passes", "aligned_passes", "drafted", "accepted", "repetition", "shots"), 0),
                setting=setting,
                rule=rule,
                threshold=threshold,
                seed=1,
                question=str(i),
                prompt_aligned=None,
                correct=i < right,
                form=True,
                finish_reason="stop",
                tokens=20,
                seconds=seconds,
                aligned_share=0.5,
                deferred_mass=0.5,
                mode="plain",
                jobs=1,
            )
            lines.append(json.dumps(asdict(answer)))
    folder.mkdir(exist_ok=True)
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")
    return folder


SETTINGS: dict[str, tuple[str, float | None, int, float]] = {
    "base alone": ("base", None, 2, 2.0),
    "aligned alone": ("aligned", None, 3, 0.5),
    "dual 0.6": ("dual", 0.6, 6, 1.0),
    "dual 0.2": ("dual", 0.2, 5, 4.0),
    "bet 0.2": ("bet", 0.2, 9, 5.0),
}


def test_accuracy_and_speed(tiny_pair: Pair, tmp_path: Path) -> None:
    results = store_results(tmp_path / "results", tiny_pair, SETTINGS)
    out = tmp_path / "out"
    numbers = write_figures(*tiny_pair, directory=out, prompts=["Why?"], n=2, results=results, **HOW)
    given = numbers.accuracy
    assert given is not None and (given.task, given.questions, given.answers, given.even) == ("sums", 10, 50, True)
    assert [(c.rule, c.thresholds) for c in given.curves] == [("dual", [0.2, 0.6]), ("bet", [0.2])]
    assert [value for value, _, _ in given.curves[0].accuracy] == [0.5, 0.6]
    assert [speed and speed[0] for speed in given.curves[0].speed] == [5.0, 20.0]
    assert given.alone == [("base alone", 0.2, 10.0), ("aligned alone", 0.3, 40.0)]
    low, high = given.curves[0].accuracy[0][1:]
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson's interval of 5 of 10
    seen = pixels((out / "accuracy.png").read_bytes())
    assert (seen[..., :1] == seen).all()
    assert "accuracy.svg" in (out / "figures.md").read_text() and not numbers.missing


def test_many_rules_and_one_threshold_can_be_drawn() -> None:
    curve = collecting.Curve("dual", [0.4], [(0.5, 0.4, 0.6)], [None])
    for count in (1, 5, 9):
        given = collecting.Accuracies("t", 1, 1, True, [curve] * count, [("base alone", 0.0, None)])
        assert len(draw(Numbers({}, accuracy=given))) == 2


def test_results_of_another_pair_are_refused(tiny_pair: Pair, tiny_cross_pair: Pair, tmp_path: Path) -> None:
    results = store_results(tmp_path / "results", tiny_cross_pair, SETTINGS)
    with pytest.raises(InvalidArgumentError, match=r"another pair: their base file is 'llama-.*this one is"):
        write_figures(*tiny_pair, directory=tmp_path / "out", results=results)
    assert not (tmp_path / "out").exists()


def test_results_that_are_none(tiny_pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="expected the directory of an evaluation"):
        write_figures(*tiny_pair, directory=tmp_path / "out", results=tmp_path)
    alone = {name: SETTINGS[name] for name in ("base alone", "aligned alone")}
    results = store_results(tmp_path / "results", tiny_pair, alone)
    numbers = write_figures(
        *tiny_pair, directory=tmp_path / "out", prompts=["Why?"], n=1, rule="bet", results=results, **HOW
    )
    assert numbers.accuracy is None and "no answers of a rule" in (tmp_path / "out" / "figures.md").read_text()


# ---- Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompts": []}, r"prompts is \[\]"),
        ({"prompts": "Why?"}, "expected a list"),
        ({"prompts": ["Why?", "  "]}, "none of them empty"),
        ({"prompts": ["\udc80"]}, "lone surrogate at character 0"),
        ({"n": 0}, "n is 0"),
        ({"n": True}, "n is True"),
        ({"seed": -1}, "seed is -1"),
        ({"position": 0}, "position is 0"),
        ({"position": 9, "prompts": ["a", "b"], "n": 4}, "position is 9; expected a whole number 1 to 8"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"rule": "nope"}, "'nope' is unknown"),
        ({"rule": "dual:2"}, "out of range"),
        ({"rule": "base"}, "shares nothing"),
        ({"rule": "implicit-reward"}, "shares nothing"),
    ],
)
def test_bad_values(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Refused before any file is looked at."""
    with pytest.raises(InvalidArgumentError, match=message):
        write_figures("nothing.gguf", "nothing.gguf", directory=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_too_long(tiny_pair: Pair, tmp_path: Path) -> None:
    """The second one, refused before the first is answered."""
    with pytest.raises(KadError, match=r"prompt 1 has \d+ tokens"):
        write_figures(*tiny_pair, directory=tmp_path, prompts=["Why?", "Why? " * 300], n=2, **HOW)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tiny_pair: Pair, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text("")
    line = ["figures", "-m", str(tiny_pair[0]), "-a", str(tiny_pair[1]), "-o", str(tmp_path / "file" / "out")]
    assert main(line) == 1
    assert "cannot write figures to" in capsys.readouterr().err


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(KadError, match=r'pip install "kad-llama\[eval\]"'):
        write_figures("nothing.gguf", "nothing.gguf", directory=tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "has none"), (b"Why\xff?\n", "is not UTF-8 at byte 3"), (None, "cannot read the file of prompts")],
)
def test_bad_files_of_prompts(content: bytes | None, message: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    assert main(["figures", "-m", "x.gguf", "-a", "y.gguf", "-f", str(path), "-o", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["-m", "x.gguf"], "-a FILE, the aligned model, is missing"),
        (["-a", "x.gguf"], "-m FILE, the base model, is missing"),
        (["--demo", "-m", "x.gguf"], "brings its own"),
        (["-m", "x", "-a", "y", "-p", "a", "-f", "b"], "not allowed with"),
        (["-m", "x", "-a", "y", "-n", "0"], "at least 1"),
        (["-m", "x", "-a", "y", "--position", "x"], "at least 1"),
    ],
)
def test_wrong_usage(line: list[str], message: str, capsys: Capture) -> None:
    assert main(["figures", *line]) == 2
    assert message in capsys.readouterr().err


# ---- The command --------------------------------------------------------------------------------------------------------


def command(pair: Pair, folder: Path, *more: str) -> list[str]:
    return ["figures", "-m", str(pair[0]), "-a", str(pair[1]), "-c", "256", "-t", "1", "-o", str(folder), *more]


def test_the_command(tiny_pair: Pair, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "prompts").write_bytes(b"\xef\xbb\xbfWhy?\r\n\n  Who? \n")
    line = command(tiny_pair, tmp_path / "out", "-f", str(tmp_path / "prompts"), "-n", "3", "--temp", "0.8", "-s", "4")
    assert main(line) == 0
    captured = capsys.readouterr()
    assert str(tmp_path / "out" / "budget.png") in captured.out and "accuracy" not in captured.out
    assert "left out" in captured.err and "figures.md" in captured.err
    stored = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert stored["about"]["prompts"] == ["Why?", "Who?"] and stored["about"]["temperature"] == 0.8
    assert stored["about"]["seed"] == 4 and stored["about"]["positions_per_prompt"] == 3
    assert main([*line, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == stored, "another run gives other numbers"


# ---- Ctrl-C -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_call", [3, 9, 14])
def test_interrupted_runs_draw_what_there_is(
    tiny_pair: Pair, at_call: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    """In the first text, and under the second and the third rule."""
    made, calls = collecting.position_of, []

    def stops(*given: Any) -> Position:
        calls.append(given)
        if len(calls) == at_call:
            raise KeyboardInterrupt
        return made(*given)

    monkeypatch.setattr(collecting, "position_of", stops)
    assert main(command(tiny_pair, tmp_path, "-p", "Why?", "-n", "6")) == 130
    assert "interrupted" in capsys.readouterr().err
    stored = json.loads((tmp_path / "figures.json").read_text())
    assert stored["interrupted"] and len(stored["budget"]["critical"]) == min(at_call - 1, 6)
    assert 1 <= len(stored["acceptance"]) <= 3
    assert "**Interrupted**" in (tmp_path / "figures.md").read_text()
    assert not list(tmp_path.glob(".*"))


def test_interrupted_before_anything(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stops(*given: Any) -> Position:
        raise KeyboardInterrupt

    monkeypatch.setattr(collecting, "position_of", stops)
    assert main(command(tiny_pair, tmp_path, "-p", "Why?")) == 130
    assert not list(tmp_path.iterdir())


def test_interrupted_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that was there stays whole, and nothing is left beside it."""
    index.write(tmp_path, {"a.png": b"old", "b.png": b"old"})
    replaced, writes = Path.replace, Path.write_bytes

    def stops(self: Path, target: Path) -> Path:
        if target.name == "b.png":
            raise KeyboardInterrupt
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        index.write(tmp_path, {"a.png": b"new", "b.png": b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"new", "b.png": b"old"}

    def half(self: Path, data: bytes) -> int:
        writes(self, data[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        index.write(tmp_path, {"a.png": b"newer"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.png": b"new", "b.png": b"old"}


def test_a_real_signal(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """It comes in the middle of a text, to a process of its own."""
    pair = tiny("llama", n_layer=4, hidden=256), tiny("llama", noise=0.3, chat_template=True)
    code = """
import os, signal, sys, threading
from kad_llama.cli import figures, main
from kad_llama.figures import collect
signal.signal(signal.SIGINT, signal.default_int_handler)
made, calls = collect.position_of, []
def counted(*given):
    calls.append(None)
    if len(calls) == 5:
        threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()
    return made(*given)
collect.position_of = counted
sys.exit(main(sys.argv[1:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *command(pair, tmp_path, "-n", "1000")],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    assert done.returncode == 130, done.stderr
    stored = json.loads((tmp_path / "figures.json").read_text())
    assert stored["interrupted"] and 3 <= stored["positions"] < 200
    for name in FIGURES:
        pixels((tmp_path / f"{name}.png").read_bytes())
        ElementTree.parse(tmp_path / f"{name}.svg")
    assert not list(tmp_path.glob(".*"))
