"""`kad-llama explain` and `kad-llama perplexity`: are the numbers those of the engine, and do the tables stand?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import MODELS, FakeEngine, Terminal, engine_fixture, token, typed_fixture  # noqa: F401
from real import STORY, Run

from kad_llama import KadLlama, Token, mixture
from kad_llama.cli import main
from kad_llama.scoring import Score

Tiny = Callable[..., Path]
Capture = pytest.CaptureFixture[str]

# ---- explain ----------------------------------------------------------------------------------------------------------


def explained(text: str, source: Any = "base", **fields: Any) -> Token:
    given = {
        "logprob": math.log(0.5),
        "base_logprob": math.log(0.25),
        "aligned_logprob": math.log(1e-6),
        "deferred_mass": 0.75,
        "base_share": 1.0,
    }
    return replace(token(text), source=source, **(given | fields))


SCRIPT = [
    explained("The sky"),
    explained(" is\n", "aligned", guess="right", base_share=0.0, base_logprob=-math.inf),
    explained(" 天空", "aligned", guess="corrected", base_share=0.12345),
    replace(explained(""), bytes=b"\xf0\x9f"),
    explained(" [b]o", logprob=math.log(0.00009)),
]
TABLE = """\
text         source        p      q   alpha      pi  P(base)  guess
'The sky'    base     0.2500  1e-06  0.7500  0.5000   1.0000
' is\\n'      aligned       0  1e-06  0.7500  0.5000        0  right
' 天空'      aligned  0.2500  1e-06  0.7500  0.5000   0.1235  corrected
b'\\xf0\\x9f'  base     0.2500  1e-06  0.7500  0.5000   1.0000
' [b]o'      base     0.2500  1e-06  0.7500   9e-05   1.0000
"""


def test_table_in_a_pipe(engine: type[FakeEngine], capsys: Capture) -> None:
    engine.scripts = [list(SCRIPT)]
    assert main(["explain", *MODELS, "-p", "Hi"]) == 0
    assert capsys.readouterr().out == TABLE


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("color", ["auto", "never"])
def test_table_on_a_terminal(
    engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch, columns: int, color: str
) -> None:
    long = "antidisestablishmentarianism" * 2
    engine.scripts = [[*SCRIPT, explained(" " + long, "aligned")]]
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    assert main(["explain", *MODELS, "-p", "Hi", "--color", color]) == 0
    shown = screen.getvalue()
    assert ("\x1b[36m" in shown) == (color == "auto")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(map(len, plain.splitlines())) <= columns
    rows = [line.split() for line in plain.splitlines() if line.strip()]
    assert rows[0] == ["text", "source", "p", "q", "alpha", "pi", "P(base)", "guess"]
    assert rows[2] == ["'The", "sky'", "base", "0.2500", "1e-06", "0.7500", "0.5000", "1.0000"]
    assert rows[4][-1] == "corrected" and "[b]o" in plain
    beginnings = "".join(line[: line.find("  ")] if "  " in line.lstrip() else line for line in plain.splitlines()[7:])
    assert long in re.sub(r"[\s']", "", beginnings), "a long text is folded, never cut"


def test_colour_in_a_pipe(engine: type[FakeEngine], capsys: Capture) -> None:
    engine.scripts = [list(SCRIPT)]
    assert main(["explain", *MODELS, "-p", "Hi", "--color", "always"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["\x1b[36m" in line for line in lines] == [False, False, True, True, False, False]
    assert re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines)) + "\n" == TABLE


def test_what_a_rule_does_not_have(engine: type[FakeEngine], capsys: Capture) -> None:
    engine.scripts = [[explained("a", "joint", deferred_mass=None, base_share=None, aligned_logprob=None)]]
    flags = ["--rule", "implicit-reward", "-r", "reference.gguf"]
    assert main(["explain", *MODELS, "-p", "Hi", *flags]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["'a'", "joint", "0.2500", "-", "-", "0.5000", "-"]


def test_flags_are_those_of_an_answer(engine: type[FakeEngine], capsys: Capture) -> None:
    line = "-p Hi -n 9 --temp 0.5 --top-k 4 -s 3 --draft 2 --rule primal --threshold 0.8 --raw --stats"
    assert main(["explain", *MODELS, *line.split()]) == 0
    (made,) = engine.made
    assert made.keywords["rule"] == "primal" and made.keywords["threshold"] == 0.8 and made.closed
    ((prompt, keywords),) = made.calls
    assert prompt == "Hi" and keywords["logprobs"] is True
    assert {
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 4,
        "seed": 3,
        "draft": 2,
        "raw": True,
    }.items() <= keywords.items()
    assert "seed 7" in capsys.readouterr().err


def test_json_has_the_tokens(engine: type[FakeEngine], capsys: Capture) -> None:
    engine.scripts = [list(SCRIPT)]
    assert main(["explain", *MODELS, "-p", "Hi", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [t["text"] for t in printed["tokens"]] == [t.text for t in SCRIPT]
    assert printed["tokens"][2]["base_share"] == 0.12345 and printed["tokens"][1]["base_logprob"] is None


@pytest.mark.parametrize(("raised", "status"), [(KeyboardInterrupt(), 130), (None, 1)])
def test_what_was_said_is_explained(
    engine: type[FakeEngine], capsys: Capture, raised: BaseException | None, status: int
) -> None:
    from kad_llama.errors import EvaluationError

    engine.scripts = [[*SCRIPT[:2], raised or EvaluationError("no pass")]]
    assert main(["explain", *MODELS, "-p", "Hi"]) == status
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 3 and captured.out.startswith("text")
    assert ("no pass" in captured.err) == (status == 1)


def test_explain_refuses(engine: type[FakeEngine], typed: Callable[..., None], capsys: Capture) -> None:
    typed()
    for line, status, named in (
        ("--demo -p Hi", 2, "--demo"),
        ("-p Hi", 2, "-m FILE"),
        (" ".join(MODELS), 1, "no prompt"),
        (" ".join(MODELS) + " -p Hi --nonsense", 2, "--nonsense"),
    ):
        assert main(["explain", *line.split()]) == status
        captured = capsys.readouterr()
        assert named in captured.err and captured.out == ""


def test_explain_says_what_the_engine_says(tiny_pair: tuple[Path, Path], capsys: Capture) -> None:
    base, aligned = map(str, tiny_pair)
    line = ["-m", base, "-a", aligned, "-p", "Why?", "-n", "8", "-s", "3", "-c", "256", "-t", "1"]
    assert main(["explain", *line]) == 0
    shown = capsys.readouterr().out.splitlines()
    with KadLlama(base, aligned, n_ctx=256, n_threads=1) as kad:
        out = kad.generate("Why?", max_tokens=8, seed=3, logprobs=True)
    assert len(shown) == len(out.tokens) + 1
    for printed, said in zip(shown[1:], out.tokens, strict=True):
        assert printed.startswith(repr(said.text)) and f"  {said.source}  " in printed
        assert said.logprob is not None and f" {math.exp(said.logprob):.4f} " in printed


# ---- perplexity ---------------------------------------------------------------------------------------------------------

TEXT = STORY * 2 + "It's a café — naïve, isn't it? 🙂 日本語\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def report(capsys: Capture, *line: object) -> dict[str, Any]:
    assert main(["perplexity", *map(str, line), "-t", "1", "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_perplexity_by_hand(tiny_pair: tuple[Path, Path], file: Path, capsys: Capture) -> None:
    """Two windows of 16: the 7 tokens after the first 9, each from rows that a run of its own gives."""
    base, aligned = tiny_pair
    found = report(capsys, file, "-m", base, "-a", aligned, "-c", 16, "--chunks", 2, "--reproducible")
    values: dict[str, list[float]] = {"pi": [], "base alone": [], "aligned alone": []}
    alphas, n_bytes = [], 0
    with KadLlama(base, aligned, n_ctx=16, n_threads=1, reproducible=True) as kad:
        assert kad.base is not None and not kad.base.add_bos
        ids = kad.tokenize(TEXT)
        for at in (9, 10, 11, 12, 13, 14, 15, 25, 26, 27, 28, 29, 30, 31):
            with Run(kad, ids[at // 16 * 16 : at]) as run:
                rows = run.rows()
            p, q = (np.exp(row - np.logaddexp.reduce(row)) for row in map(np.float64, rows))
            pi = mixture(*rows)
            for name, law in zip(values, (pi, p, q), strict=True):
                values[name].append(math.log(law[ids[at]]))
            alphas.append(1 - p[p >= 0.4].sum())
            n_bytes += len(kad.token_bytes(ids[at]))
    assert (found["tokens_scored"], found["windows"]) == (14, 2)
    assert found["mean_alpha"] == pytest.approx(np.mean(alphas), abs=1e-6)
    for name, logprobs in values.items():
        series = found["series"][name]
        wanted = math.exp(-np.mean(logprobs))
        assert series["perplexity"] == pytest.approx(wanted, rel=1e-4)
        assert series["standard_error"] == pytest.approx(wanted * np.std(logprobs, ddof=1) / math.sqrt(14), rel=1e-4)
        assert series["bits_per_byte"] == pytest.approx(-sum(logprobs) / math.log(2) / n_bytes, rel=1e-4)
        assert (series["tokens"], series["impossible"]) == (14, 0)


def test_perplexity_is_that_of_score(tiny_pair: tuple[Path, Path], file: Path, capsys: Capture) -> None:
    base, aligned = tiny_pair
    found = report(capsys, file, "-m", base, "-a", aligned, "-c", 64, "--chunks", 1, "--rule", "bet", "--temp", "0.8")
    with KadLlama(base, aligned, n_ctx=64, n_threads=1, rule="bet") as kad:
        ids = kad.tokenize(TEXT)[:64]
        texts = [b"".join(map(kad.token_bytes, part)).decode() for part in (ids[:33], ids[33:])]
        score = kad.score(*texts, raw=True, temperature=0.8)
        assert [token.ids[0] for token in score.tokens] == ids[33:], "the halves tokenise apart as together"
    assert found["series"]["pi"]["perplexity"] == pytest.approx(math.exp(-score.logprob / 31), rel=1e-9)


@pytest.mark.parametrize(
    ("flags", "series", "alpha"),
    [
        (["--rule", "base"], {"pi", "base alone"}, 0.0),
        (["--rule", "aligned"], {"pi", "aligned alone"}, 1.0),
        (["--rule", "token-v3"], {"pi", "base alone", "aligned alone"}, None),
    ],
)
def test_perplexity_of_other_rules(
    tiny_pair: tuple[Path, Path], file: Path, capsys: Capture, flags: list[str], series: set[str], alpha: float | None
) -> None:
    models = {"base": ["-m", tiny_pair[0]], "aligned": ["-a", tiny_pair[1]]}
    given = models.get(flags[1], ["-m", tiny_pair[0], "-a", tiny_pair[1]])
    found = report(capsys, file, *given, "-c", 64, *flags)
    assert set(found["series"]) == series and found["windows"] > 1
    assert alpha is None or found["mean_alpha"] == alpha
    if alpha is not None:
        one, other = found["series"].values()
        assert one == other


def test_perplexity_of_implicit_reward(tiny: Tiny, tiny_pair: tuple[Path, Path], file: Path, capsys: Capture) -> None:
    line = [file, "-m", tiny_pair[0], "-a", tiny_pair[1], "-c", "64", "-t", "1", "--chunks", "2"]
    flags = ["--rule", "implicit-reward", "-r", tiny("llama", noise=0.15)]
    assert report(capsys, *line, *flags)["mean_alpha"] is None
    assert main(["perplexity", *map(str, [*line, *flags])]) == 0
    assert "alpha" not in capsys.readouterr().out


def test_perplexity_across_vocabularies(tiny_cross_pair: tuple[Path, Path], file: Path, capsys: Capture) -> None:
    base, aligned = tiny_cross_pair
    found = report(capsys, file, "-m", base, "-a", aligned, "-c", 64)
    alone = report(capsys, file, "-m", base, "--rule", "base", "-c", 64)
    series = found["series"]
    assert series["base alone"]["impossible"] == 0
    assert series["aligned alone"]["impossible"] > 0 and series["aligned alone"]["perplexity"] is None
    assert series["aligned alone"]["perplexity_of_the_rest"] > 1
    ratio = series["base alone"]["bits_per_byte"] / alone["series"]["base alone"]["bits_per_byte"]
    assert ratio == pytest.approx(1, abs=0.1), "much the same tokens, in somewhat other windows"
    assert main(["perplexity", str(file), "-m", str(base), "-a", str(aligned), "-c", "64", "-t", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0].split()[-4:] == ["impossible", "of", "the", "rest"]
    assert "impossible" in captured.err


def test_windows_too_long_for_the_aligned_model_are_shortened(
    tiny_cross_pair: tuple[Path, Path], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Programmers write functions, give them names, and test results. " * 20)
    base, aligned = tiny_cross_pair
    with KadLlama(base, aligned, n_ctx=64, n_threads=1) as kad:
        n = [len(kad.tokenize(path.read_text(), role=role)) for role in ("base", "aligned")]  # type: ignore[arg-type]
    assert n[1] > 1.2 * n[0], "the text is longer for the aligned model"
    found = report(capsys, path, "-m", base, "-a", aligned, "-c", 64)
    assert found["windows"] > n[0] // 64
    assert 0.4 * n[0] < found["tokens_scored"] < 0.55 * n[0]


def test_a_window_begins_with_a_bos(tiny: Tiny, file: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model wants one: it takes the first token's place, as in llama.cpp's own tool."""
    model, prompts = tiny("llama", vocabulary="b"), []
    whole = KadLlama._score

    def spy(kad: KadLlama, prompt: Any, completion: Any, settings: Any) -> Score:
        prompts.append(prompt.base_ids)
        return whole(kad, prompt, completion, settings)

    monkeypatch.setattr(KadLlama, "_score", spy)
    report(capsys, file, "-m", model, "--rule", "base", "-c", 32, "--chunks", 2)
    with KadLlama(model, None, rule="base", n_ctx=32, n_threads=1) as kad:
        assert kad.base is not None and kad.base.add_bos
        ids = [kad.base.bos, *kad.tokenize(TEXT)]
    assert prompts == [ids[:17], [ids[0], *ids[33:49]]]


def test_perplexity_table(tiny_pair: tuple[Path, Path], file: Path, capsys: Capture) -> None:
    base, aligned = map(str, tiny_pair)
    line = [str(file), "-m", base, "-a", aligned, "-c", "64", "-t", "1"]
    assert main(["perplexity", *line]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    shown = captured.out.splitlines()
    assert shown[0].split() == ["perplexity", "+-", "bits", "per", "byte"]
    found = report(capsys, *line)
    for row, (name, series) in zip(shown[1:4], found["series"].items(), strict=True):
        assert row.startswith(name + " ")
        assert float(row.split()[-3]) == pytest.approx(series["perplexity"], rel=1e-3)
        assert float(row.split()[-1]) == pytest.approx(series["bits_per_byte"], abs=1e-4)
    counts = f"{found['tokens_scored']} tokens scored in {found['windows']} windows of 64"
    assert re.fullmatch(rf"{counts}; mean alpha 0\.\d{{3}}; \d+ tokens a second", shown[5])


def test_progress_on_a_terminal(
    tiny_pair: tuple[Path, Path], file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert main(["perplexity", str(file), "-m", str(tiny_pair[0]), "--rule", "base", "-c", "64", "-t", "1"]) == 0
    assert "scoring" in screen.getvalue() and "perplexity" in capsys.readouterr().out


def test_interrupted_with_what_there_is(
    tiny_pair: tuple[Path, Path], file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    whole, calls = KadLlama._score, []

    def once(kad: KadLlama, *given: Any) -> Score:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(kad, *given)

    monkeypatch.setattr(KadLlama, "_score", once)
    line = ["perplexity", str(file), "-m", str(tiny_pair[0]), "--rule", "base", "-c", "64", "-t", "1", "--json"]
    assert main(line) == 130
    assert json.loads(capsys.readouterr().out)["windows"] == 2


def test_perplexity_refuses(tiny_pair: tuple[Path, Path], file: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    models = ["-m", str(tiny_pair[0]), "-a", str(tiny_pair[1])]
    for line, status, named in (
        ([str(tmp_path / "none.txt"), *models], 1, "none.txt': No such file"),
        ([str(tmp_path), *models], 1, "Is a directory"),
        ([str(tmp_path / "bad.txt"), *models], 1, "is not UTF-8: byte 3 is 0xff"),
        ([str(file), *models, "-c", "2000"], 1, "tokens, but one window needs 2000"),
        ([str(file), *models, "-c", "3"], 2, "-c 3"),
        ([str(file), *models, "--chunks", "0"], 2, "'0'"),
        ([str(file), "-m", models[1]], 2, "-a FILE"),
        (models, 2, "FILE"),
        ([str(file), *models, "-n", "5"], 2, "-n"),
    ):
        assert main(["perplexity", *line]) == status, line
        captured = capsys.readouterr()
        assert named in captured.err and captured.out == ""


def test_help(capsys: Capture) -> None:
    for name, words in (
        ("explain", ["--top-k", "alpha", "--json"]),
        ("perplexity", ["FILE", "--chunks", "default 512"]),
    ):
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"kad-llama {name}" in shown and all(word in shown for word in words)
