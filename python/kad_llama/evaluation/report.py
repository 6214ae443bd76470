"""The report of an evaluation, as Markdown and as one HTML page: made from the stored answers alone."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation.results import Results, Row
from kad_llama.evaluation.statistics import PairedTest, Share, Spread

__all__ = ["HEADER", "TEST_HEADER", "cells", "facts", "notes", "test_cells", "write_report"]

HEADER = (
    "setting",
    "right",
    "95 % interval",
    "form",
    "tokens/s",
    "guesses right",
    "aligned said",
    "mean alpha",
    "tokens",
)
TEST_HEADER = ("first", "second", "difference", "better", "worse", "p", "p, Holm")

_SAMPLES = 3  # questions whose answers are shown
_SHOWN = 1500  # characters of each

CAPTION = (
    "Right: share of correct answers. Form: answers of the form that the task looks for, right or wrong. Tokens/s: after "
    "the prompt, median and quartiles over the answers. Guesses right: of those compared with an outcome. Aligned said, "
    "mean alpha: over all tokens. Tokens: mean of an answer."
)
ALONE = (
    "A model alone runs plain, one token per pass. The base alone has the prompt that it has in the pair; as a plain "
    "transcript and with worked examples it has Question: ... Answer:, and the examples are not asked here."
)
TESTS_ONE = (
    "Better, worse: questions that only the first, only the second answers right. p: exact test of McNemar, two-sided."
)
TESTS_MANY = (
    "Questions are the unit: better and worse count those of which the first, the second has more right answers. p: exact "
    "sign-flip test over questions, two-sided; intervals of accuracy are Wilson's with the effective number of answers."
)
HOLM = "Holm: adjusted for all {n} tests of this table together."


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _interval(share: Share) -> str:
    return f"{100 * share.low:.1f} to {100 * share.high:.1f}"


def _spread(speed: Spread, quartiles: bool) -> str:
    if math.isnan(speed.median) or not quartiles:
        return _number(speed.median, 1)
    return f"{speed.median:.1f} ({speed.low:.1f}-{speed.high:.1f})"


def cells(row: Row, quartiles: bool = True) -> list[str]:
    """Return a setting's line of the table, under `HEADER`; a narrow screen has no room for the quartiles of the speed."""
    return [
        row.setting,
        _percent(row.accuracy.value),
        _interval(row.accuracy),
        _percent(row.form.value),
        _spread(row.speed, quartiles),
        _percent(row.acceptance),
        _percent(row.aligned_share) if row.is_rule else "-",
        _number(row.deferred_mass, 2) if row.is_rule else "-",
        _number(row.tokens, 1),
    ]


def test_cells(test: PairedTest) -> list[str]:
    """Return a test's line of the table, under `TEST_HEADER`."""
    return [
        test.first,
        test.second,
        f"{100 * test.difference:+.1f} points",
        str(test.better),
        str(test.worse),
        _p(test.p),
        _p(test.adjusted),
    ]


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def facts(results: Results) -> list[tuple[str, str]]:
    """Return what was evaluated, as names and values."""
    header, counts = results.header, results.counts
    found = [(role, _model(header[role])) for role in ("base", "aligned", "reference") if header.get(role)]
    several = f", {counts['repetitions']} answers to each" if counts["repetitions"] > 1 else ""
    reproducible = ", reproducible" if header.get("reproducible") else ""
    return [
        *found,
        ("task", f"{header['task']['name']}: {counts['questions']} questions{several}"),
        (
            "sampling",
            f"temperature {header['temperature']:g}, rule temperature {_rule_temperature(header)}, at most "
            f"{header['max_tokens']} tokens, seed {header['seed']}, context {header['n_ctx']}{reproducible}",
        ),
        ("versions", ", ".join(f"{name} {value}" for name, value in header.get("versions", {}).items())),
    ]


def _model(model: dict[str, Any]) -> str:
    return f"{model['name']} ({model['size'] / 2**20:.1f} MiB, SHA-256 {model['sha256'][:12]})"


def _rule_temperature(header: dict[str, Any]) -> str:
    value = header["rule_temperature"]
    return value if isinstance(value, str) else f"{value:g}"


def notes(results: Results) -> list[str]:
    """Return what a reader must know before believing the figures."""
    found = []
    if not results.is_even:
        found.append(
            "Not finished: not all settings have answered the same questions. Each line of the table stands for the answers "
            "that its setting has; the tests take the questions and seeds that two settings share."
        )
    skipped = results.header["task"].get("skipped") or []
    if skipped:
        found.append(f"{len(skipped)} malformed lines of the data were left out; the first: {skipped[0]}")
    if any(answer.jobs > 1 for answer in results.answers):
        found.append("Texts were written several at a time: tokens/s are lower than those of one text alone.")
    return found


def _captions(results: Results) -> list[str]:
    several = results.counts["repetitions"] > 1
    tests = TESTS_MANY if several else TESTS_ONE
    return [f"{tests} {HOLM.format(n=len(results.tests))}"] if results.tests else []


# ---- Markdown -----------------------------------------------------------------------------------------------------------


def markdown(results: Results) -> str:
    """Return the report as Markdown."""
    lines = [f"# {results.header['task']['name']}", ""]
    lines += [f"- {name}: {_escaped(value)}" for name, value in facts(results)]
    lines += [line for note in notes(results) for line in ("", f"**Note.** {_escaped(note)}")]
    if results.rows:
        lines += ["", *_table(HEADER, [cells(row) for row in results.rows]), "", CAPTION, "", ALONE]
    else:
        lines += ["", "No answer is stored yet."]
    if results.verdicts:
        lines += ["", "## Does a rule beat both models alone?", "", *(f"- {line}" for line in results.verdicts)]
    if results.tests:
        lines += ["", "## Paired tests", "", *_table(TEST_HEADER, [test_cells(test) for test in results.tests])]
        lines += [line for caption in _captions(results) for line in ("", caption)]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(given: Sequence[str]) -> str:
        return "| " + " | ".join(_escaped(cell) for cell in given) + " |"

    return [line(header), "|---" * len(header) + "|", *map(line, rows)]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---- HTML ---------------------------------------------------------------------------------------------------------------


def html(results: Results, pictures: Sequence[tuple[str, str]]) -> str:
    """Return the report as one page that needs nothing else."""
    import jinja2

    source = (resources.files(__package__) / "report.html.j2").read_text(encoding="utf-8")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    return template.render(
        title=results.header["task"]["name"],
        facts=facts(results),
        notes=notes(results),
        header=HEADER,
        rows=[cells(row) for row in results.rows],
        captions=[CAPTION, ALONE],
        verdicts=results.verdicts,
        pictures=pictures,
        test_header=TEST_HEADER,
        tests=[test_cells(test) for test in results.tests],
        test_captions=_captions(results),
        samples=_samples(results),
    )


def _samples(results: Results) -> list[dict[str, Any]]:
    """The first questions, with every setting's first answer."""
    ids = list(dict.fromkeys(answer.question for answer in results.answers))[:_SAMPLES]
    found = []
    for question in ids:
        given = [a for s in results.settings for a in results.of(s) if a.question == question and a.repetition == 0]
        if given:
            found.append({"id": question, "target": given[0].target, "prompt": given[0].prompt, "answers": given})
    return found


def write_report(results: Results, directory: str | os.PathLike[str]) -> tuple[Path, Path, str]:
    """Write `report.md` and `report.html`.

    Returns
    -------
    tuple
        Both paths, and why there are no plots: "" where there are.
    """
    folder = Path(directory)
    why, pictures = "", []
    try:
        from kad_llama.evaluation.plots import plots

        pictures = plots(results)
    except ImportError:
        why = "matplotlib is not installed, so the report has no plots: pip install 'kad-llama[eval]', then --report"
    return (
        _written(folder / "report.md", markdown(results)),
        _written(folder / "report.html", html(results, pictures)),
        why,
    )


def _written(path: Path, text: str) -> Path:
    """In one piece, so that a reader never sees half a report."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8", errors="replace")
        part.replace(path)
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot write {str(path)!r}: {error.strerror}; the answers are kept, and --report writes the report anew"
        ) from error
    return path
