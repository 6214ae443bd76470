"""Do the reports say what the stored answers say, and what a reader must know besides?"""

from __future__ import annotations

import json
import math
import random
import re
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scipy.stats import binomtest

from kad_llama.cli import main
from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation import Answer, Results, read_results, write_report
from kad_llama.evaluation import report as report_module
from kad_llama.evaluation.plots import plots

HEADER: dict[str, Any] = {
    "kad_llama_eval": 1,
    "base": {"name": "base.gguf", "size": 5 << 20, "sha256": "a" * 64},
    "aligned": {"name": "aligned.gguf", "size": 1 << 20, "sha256": "b" * 64},
    "reference": None,
    "task": {
        "name": "facts <1|2>",
        "sha256": "c" * 64,
        "data_sha256": "d" * 64,
        "examples_sha256": None,
        "skipped": [],
    },
    "temperature": 0.7,
    "rule_temperature": 1.0,
    "max_tokens": 32,
    "seed": 1,
    "n_ctx": 4096,
    "reproducible": False,
    "versions": {"kad_llama": "0.1.0"},
}
# setting: rule, threshold, shots, probability of a right answer, alpha
SETTINGS: dict[str, tuple[str, float | None, int, float, float | None]] = {
    "base alone": ("base", None, 0, 0.2, 0.0),
    "base alone, 5 worked examples": ("base", None, 5, 0.7, 0.0),
    "aligned alone": ("aligned", None, 0, 0.3, 1.0),
    "dual 0.4": ("dual", 0.4, 0, 0.75, 0.6),
    "nudging 0.4": ("nudging", 0.4, 0, 0.3, 0.97),
    "implicit-reward 1": ("implicit-reward", 1.0, 0, 0.35, None),
}


def answer(setting: str, question: str, repetition: int = 0, correct: bool = True, **more: Any) -> Answer:
    rule, threshold, shots, _, alpha = SETTINGS[setting]
    given: dict[str, Any] = {
        "setting": setting,
        "rule": rule,
        "threshold": threshold,
        "shots": shots,
        "seed": 7,
        "repetition": repetition,
        "question": question,
        "prompt": "<b>Why</b> & how?",
        "prompt_aligned": None,
        "text": "It is <i>5</i>.",
        "answer": "5",
        "target": "5" if correct else "6",
        "correct": correct,
        "form": True,
        "finish_reason": "stop",
        "tokens": 10,
        "seconds": 0.5,
        "base_passes": 5,
        "aligned_passes": 10,
        "drafted": 0,
        "accepted": 0,
        "aligned_share": alpha,
        "deferred_mass": alpha,
        "mode": "auto",
        "jobs": 1,
    }
    return Answer(**(given | more))


def made(questions: int = 60, repetitions: int = 1) -> list[Answer]:
    coins = random.Random(questions)
    found = []
    for q in range(questions):
        for name, (*_, p, alpha) in SETTINGS.items():
            for repetition in range(repetitions):
                correct, tokens = coins.random() < p, coins.randint(1, 30)
                drafted = 0 if alpha in (0.0, 1.0) else tokens
                more: dict[str, Any] = {"tokens": tokens, "seconds": tokens / coins.uniform(10, 20), "drafted": drafted}
                more |= {"accepted": drafted // 2, "form": correct or coins.random() < 0.9}
                more["finish_reason"] = coins.choice(["stop", "stop", "stop", "length"])
                if alpha not in (0.0, 1.0, None):
                    more["deferred_mass"] = min(1.0, max(0.0, coins.gauss(alpha, 0.01)))
                found.append(answer(name, f"q{q}", repetition, correct, **more))
    return found


def write(folder: Path, answers: list[Answer], header: dict[str, Any] = HEADER) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(line) for line in (header, *map(asdict, answers))]
    (folder / "answers.jsonl").write_text("".join(line + "\n" for line in lines))
    return folder


def table_of(markdown: str, first: str) -> list[dict[str, str]]:
    """The rows of the table whose first heading is `first`."""
    lines = markdown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |"))
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[start:]]
    header, rows = cells[0], []
    for row in cells[2:]:
        if not row:
            break
        rows.append(dict(zip(header, row, strict=True)))
    return rows


# ---- Figures ------------------------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_lines(tmp_path: Path) -> None:
    """Every figure of the report, computed anew from answers.jsonl with nothing but json, statistics and scipy."""
    folder = write(tmp_path / "out", made())
    write_report(read_results(folder), folder)
    rows = {row["setting"]: row for row in table_of((folder / "report.md").read_text(), "setting")}
    assert list(rows) == list(SETTINGS)
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()[1:]]
    for name, row in rows.items():
        own = [line for line in lines if line["setting"] == name]
        right = sum(line["correct"] for line in own)
        ci = binomtest(right, len(own)).proportion_ci(method="wilson")
        assert row["right"] == f"{100 * right / len(own):.1f} %"
        assert row["95 % interval"] == f"{100 * ci.low:.1f} to {100 * ci.high:.1f}"
        assert row["form"] == f"{100 * sum(line['form'] for line in own) / len(own):.1f} %"
        speeds = [line["tokens"] / line["seconds"] for line in own]
        low, _, high = statistics.quantiles(speeds, n=4, method="inclusive")
        assert row["tokens/s"] == f"{statistics.median(speeds):.1f} ({low:.1f}-{high:.1f})"
        drafted = sum(line["drafted"] for line in own)
        rate = f"{100 * sum(line['accepted'] for line in own) / drafted:.1f} %" if drafted else "-"
        assert row["guesses right"] == rate
        tokens = sum(line["tokens"] for line in own)
        assert row["tokens"] == f"{tokens / len(own):.1f}"
        if name.startswith(("dual", "nudging")):
            share = sum(line["aligned_share"] * line["tokens"] for line in own) / tokens
            alpha = sum(line["deferred_mass"] * line["tokens"] for line in own) / tokens
            assert (row["aligned said"], row["mean alpha"]) == (f"{100 * share:.1f} %", f"{alpha:.2f}")
        else:
            assert (row["aligned said"], row["mean alpha"]) == ("-", "-")


def test_the_tests_are_mcnemars_and_adjusted(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", made())
    write_report(read_results(folder), folder)
    rows = table_of((folder / "report.md").read_text(), "first")
    assert len(rows) == 3 * 3 + 3 + 3  # rules with models, models, rules
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()[1:]]
    marks = {name: {x["question"]: x["correct"] for x in lines if x["setting"] == name} for name in SETTINGS}
    values = []
    for row in rows:
        a, b = marks[row["first"]], marks[row["second"]]
        better, worse = (sum(x[q] and not y[q] for q in a) for x, y in ((a, b), (b, a)))
        assert (row["better"], row["worse"]) == (str(better), str(worse))
        assert row["difference"] == f"{100 * (better - worse) / len(a):+.1f} points"
        values.append(binomtest(better, better + worse).pvalue)
    order = sorted(range(len(values)), key=values.__getitem__)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, values[i] * (len(values) - rank)))
        for name, value in (("p", values[i]), ("p, Holm", largest)):
            assert rows[i][name] == ("< 0.0001" if value < 0.0001 else f"{value:.4f}")


def test_results_for_scripts() -> None:
    results = Results(HEADER, made(20, 3))
    row = results.row("dual 0.4")
    assert (row.rule, row.threshold, row.shots, row.is_rule, row.modes) == ("dual", 0.4, 0, True, ("auto",))
    assert row.accuracy == results.accuracy("dual 0.4") and row.accuracy.answers == 60 and row.accuracy.questions == 20
    assert results.counts == {"settings": 6, "questions": 20, "repetitions": 3, "answers": 360} and results.is_even
    test = results.compare("dual 0.4", "base alone")
    assert test is not None and test.difference == pytest.approx(
        row.accuracy.value - results.accuracy("base alone").value
    )
    assert json.loads(json.dumps(results.to_dict()))["rows"][3]["setting"] == "dual 0.4"
    with pytest.raises(ValueError, match=r"setting 'dual' has no answers; expected one of: 'base alone', "):
        results.accuracy("dual")


def test_many_thresholds_are_not_tested_against_each_other() -> None:
    def one(i: int) -> Answer:
        given = asdict(answer("dual 0.4", "q")) | {"setting": f"dual 0.{i}", "threshold": i / 10}
        return Answer(**given)

    results = Results(HEADER, [answer("base alone", "q"), answer("aligned alone", "q"), *map(one, range(1, 8))])
    assert len(results.tests) == 7 * 2 + 1


# ---- Sentences ----------------------------------------------------------------------------------------------------------


def test_verdicts() -> None:
    verdicts = Results(HEADER, made(150)).verdicts
    dual, nudging, implicit = verdicts  # and nothing about the models: the base knows more, and the form is there
    assert re.match(
        r"dual 0.4 beats both models alone: \+\d+\.\d points against base alone \(adjusted p < 0.0001\) and \+", dual
    )
    assert re.search(
        r"With another prompt for the base: \+5\.3 points against base alone, 5 worked examples \(adj", dual
    )
    assert nudging.startswith("nudging 0.4 does not beat both models alone: ")
    assert "Mean alpha is 0.97: the base was hardly ever sure enough to keep a token" in nudging
    assert "of its answers were cut at their most tokens." in nudging
    assert "Mean alpha" not in implicit
    assert implicit.startswith("implicit-reward 1 does not beat both models alone: ")


def results_of(marks: dict[str, list[bool]], **more: Any) -> Results:
    return Results(
        HEADER, [answer(name, f"q{i}", 0, ok, **more) for name, given in marks.items() for i, ok in enumerate(given)]
    )


def test_why_a_rule_does_not_beat_both() -> None:
    few = results_of({"base alone": [False] * 3, "aligned alone": [False] * 3, "dual 0.4": [True] * 3})
    assert "so few questions do not tell it from chance" in few.verdicts[0]
    formless = results_of(
        {"base alone": [False] * 9, "aligned alone": [False] * 9, "dual 0.4": [False] * 9}, form=False
    )
    assert "100 % of its answers have no answer of the right form." in formless.verdicts[0]
    assert formless.verdicts[-1] == "The aligned model itself misses the form in 100 % of its answers."
    quiet = results_of(
        {"base alone": [True] * 9, "aligned alone": [False] * 9, "dual 0.4": [True] * 9}, deferred_mass=0.01
    )
    assert "Mean alpha is 0.01: the aligned model hardly ever spoke" in quiet.verdicts[0]
    marks = {"base alone": [False] * 9, "base alone, 5 worked examples": [False] * 9, "aligned alone": [False] * 9}
    ignorant = results_of(marks | {"dual 0.4": [False] * 9})
    assert "With 5 worked examples the base answers 0 %, the aligned model alone 0 %" in ignorant.verdicts[-1]
    assert "Its own figures do not show why." in ignorant.verdicts[0]
    apart = Results(HEADER, [answer("base alone", "a"), answer("aligned alone", "a"), answer("dual 0.4", "b")])
    assert apart.verdicts[0] == "dual 0.4 shares no question with both models alone."
    assert Results(HEADER, [answer("dual 0.4", "a")]).verdicts == []


def test_notes(tmp_path: Path) -> None:
    header = HEADER | {"task": HEADER["task"] | {"skipped": ["'d.jsonl', line 3: there is no 'x'"]}}
    answers = [answer("base alone", "a"), answer("base alone", "b"), answer("dual 0.4", "a", jobs=4)]
    folder = write(tmp_path / "out", answers, header)
    write_report(read_results(folder), folder)
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text().replace("&#39;", "'")
        assert "Not finished: not all settings have answered the same questions." in text
        assert "1 malformed lines of the data were left out; the first: 'd.jsonl', line 3" in text
        assert "Texts were written several at a time" in text
    whole = write(tmp_path / "whole", [answer("dual 0.4", "a")])
    write_report(read_results(whole), whole)
    assert "Note" not in (whole / "report.md").read_text()


def test_several_seeds_are_said_to_be_no_questions(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", made(20, 3))
    write_report(read_results(folder), folder)
    text = (folder / "report.md").read_text()
    assert "20 questions, 3 answers to each" in text and "Questions are the unit" in text and "McNemar" not in text


# ---- HTML and plots -----------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else_and_escapes(tmp_path: Path) -> None:
    folder = write(tmp_path / "out", made())
    *_, why = write_report(read_results(folder), folder)
    page = (folder / "report.html").read_text()
    assert why == "" and page.count("<svg") == 3
    assert not re.search(r'(?:src|href)="(?!#)', page) and "<script" not in page and "@import" not in page
    assert "<i>5</i>" not in page and "&lt;i&gt;5&lt;/i&gt;" in page and "facts &lt;1|2&gt;" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(svg)
    for row in table_of((folder / "report.md").read_text(), "setting"):
        cells = "".join(f"<td>{cell}</td>" for cell in row.values())
        assert f"<tr>{cells}</tr>" in page


def test_plots_are_the_same_each_time_and_have_no_colour() -> None:
    results = Results(HEADER, made())
    first, second = plots(results), plots(results)
    assert first == second and first[0][0] == "Accuracy, with 95 % intervals"
    for title, svg in first:
        for r, g, b in re.findall(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})\b", svg):
            assert r == g == b
        assert "dual 0.4" in svg
        assert ("base alone" in svg) is ("Who" not in title)  # who spoke is a question of the pair alone
    assert plots(Results(HEADER, [])) == []


def test_a_report_without_matplotlib_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = write(tmp_path / "out", made(5))
    *_, why = write_report(read_results(folder), folder)
    assert "pip install 'kad-llama[eval]'" in why
    assert "<svg" not in (folder / "report.html").read_text() and "dual 0.4" in (folder / "report.html").read_text()


# ---- The command --------------------------------------------------------------------------------------------------------


def test_report_without_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "out", made(10))
    assert main(["eval", "--report", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "dual 0.4" in shown.out and "report.md" in shown.err
    assert (folder / "report.md").exists() and (folder / "report.html").exists()
    assert main(["eval", "--report", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 6 and found["answers"] == 60 and found["header"]["task"]["name"] == "facts <1|2>"
    (folder / "answers.jsonl").write_text(json.dumps(HEADER) + "\n" + '{"cut')
    assert main(["eval", "--report", str(folder)]) == 0
    assert "No answer is stored yet." in capsys.readouterr().out
    assert "No answer is stored yet." in (folder / "report.html").read_text()
    assert main(["eval", "--report", str(tmp_path / "none")]) == 1
    assert "cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([], "-m FILE, the base model, is missing"),
        (["-m", "b"], "-a FILE, the aligned model, is missing"),
        (["-m", "b", "-a", "a"], "--task FILE|NAME, what is asked, is missing"),
        (["-m", "b", "-a", "a", "--task", "gsm8k", "--rules", "implicit-reward"], "-r FILE is missing"),
        (["-m", "b", "-a", "a", "--task", "gsm8k", "-r", "r"], "-r is for rule implicit-reward"),
        (["--report", "d", "-m", "b"], "leave out -m"),
        (["--report", "d", "-o", "e"], "leave out -o"),
        (["-n", "0"], "invalid value '0': expected a whole number of at least 1"),
        (["--shots", "x"], "invalid value 'x': expected whole numbers below 1000"),
        (["--bad-lines", "maybe"], "invalid choice: 'maybe'"),
        (["--rule", "dual"], "unrecognized arguments: --rule dual"),
    ],
)
def test_wrong_usage(line: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *line]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", "gsm8k"], "give --data FILE (data=); it comes from openai/grade-school-math, test split (MIT)"),
        (["--task", "svamp"], "it comes from arkilpatel/SVAMP"),
        (["--task", "none"], "task 'none' is neither a file nor built in"),
        (["--task", "gsm8k", "--data", "none.jsonl"], "cannot read the data in 'none.jsonl'"),
    ],
)
def test_errors_are_status_1(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "-m", "b", "-a", "a", *more]) == 1
    assert message in capsys.readouterr().err


def test_a_run_from_the_command(
    tiny_pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With lines that are skipped, the default folder, and a line of progress where there is no terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kad_llama.cli.evaluate.SECONDS_BETWEEN_LINES", 0)
    (tmp_path / "d.jsonl").write_text('{"q": "Why?", "t": "1"}\n{"q": \n{"q": "How?", "t": "2"}\n')
    (tmp_path / "t.toml").write_text(
        'data = "d.jsonl"\nprompt = "{q}"\ntarget = "{t}"\nfind = "last number"\nmax_tokens = 4\n'
    )
    line = ["eval", "-m", str(tiny_pair[0]), "-a", str(tiny_pair[1]), "--task", "t.toml", "-c", "256", "-t", "1"]
    assert main(line) == 1
    assert "'d.jsonl', line 2: " in capsys.readouterr().err
    assert not Path("eval-t").exists()
    assert main([*line, "--bad-lines", "skip", "--temp", "0", "-n", "all"]) == 0
    shown = capsys.readouterr()
    assert "task: t: 2 questions" in shown.out and "1 malformed lines" in shown.out
    assert "1 malformed lines are left out" in shown.err and "6 of 6 answers (100 %)" in shown.err
    assert len(read_results("eval-t").answers) == 6
    assert "1 malformed lines" in Path("eval-t/report.md").read_text()
    # The same again computes nothing; another temperature is refused, and the report stays.
    assert main([*line, "--bad-lines", "skip", "--temp", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"] == 6
    before = Path("eval-t/report.md").stat().st_mtime_ns
    assert main([*line, "--bad-lines", "skip"]) == 1
    assert "differs in temperature (there 0.0, here 0.7)" in capsys.readouterr().err
    assert Path("eval-t/report.md").stat().st_mtime_ns == before


def test_help_names_every_built_in_task(capsys: pytest.CaptureFixture[str]) -> None:
    from kad_llama.evaluation import BUILT_IN

    assert main(["eval", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in BUILT_IN)
    assert main(["--help"]) == 0
    assert "kad-llama eval -m" in capsys.readouterr().out


def test_captions_name_what_the_table_has() -> None:
    for heading in ("Right", "Form", "Tokens/s", "Guesses right", "Aligned said", "alpha", "Tokens:"):
        assert heading in report_module.CAPTION
    assert math.isnan(Results(HEADER, [answer("base alone", "a", drafted=0)]).row("base alone").acceptance)


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "report.md").mkdir()
    with pytest.raises(InvalidArgumentError, match=r"cannot write .*report\.md.*--report writes the report anew"):
        write_report(Results(HEADER, made()), tmp_path)
