"""Does it align? Runs the evaluations that docs/evidence.md shows, and writes that page from their stored answers.

    python benchmarks/evidence.py dev               # every rule at many thresholds, on the development questions
    python benchmarks/evidence.py test              # at its default, and at the best of those, on the test questions
    python benchmarks/evidence.py again FOLDER      # the test questions with a pair from another run of models/tiny/train.py
    python benchmarks/evidence.py demo --data svamp.json -n 40
    python benchmarks/evidence.py figures           # of the tiny pair, with the accuracies of `dev`
    python benchmarks/evidence.py page

Answers go to docs/evidence/NAME.jsonl.xz, one per evaluation. A run that was cut goes on.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kad_llama.evaluation import (
    ALIGNED_ALONE,
    BASE_ALONE,
    Results,
    Row,
    Share,
    evaluate,
    load_task,
    read_results,
    report,
    write_report,
)
from kad_llama.evaluation.results import LEVEL
from kad_llama.figures import write_figures
from kad_llama.rules import RULES

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "models" / "tiny"
KEPT = ROOT / "docs" / "evidence"
PAGE = ROOT / "docs" / "evidence.md"
WORK = ROOT / "build" / "evidence"  # where a run goes on

# What is tried on the development questions; each rule's default is among them.
GRID: dict[str, tuple[float, ...]] = {
    "dual": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "primal": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    "exact": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),
    "nudging": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "bet": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
    "chow": (0.1, 0.3, 0.5, 0.7, 0.9),
    "diff": (-0.4, -0.2, 0.0, 0.2, 0.4),
    "opt": (0.0, 0.25, 0.5, 1.0, 2.0),
    "token-v1": (-0.4, -0.2, 0.0, 0.2, 0.4),
    "token-v2": (-0.4, -0.2, 0.0, 0.2, 0.4),
    "token-v3": (0.1, 0.3, 0.5, 0.7, 0.9),
    "implicit-reward": (0.5, 1.0, 1.5, 2.0),
}
FORM = re.compile(r"The (river|founder|craft|dish) of [A-Z][a-z]+ is \w+\.")
DEMO_RULES = ("dual", "primal", "bet", "nudging")
SHOTS = (0, 5)
TRANSCRIPT = f"{BASE_ALONE}, plain transcript"
COOL = ("dual", "primal", "bet")  # at temperature 0, too
PROMPTS = 24  # that the figures are drawn from


# ---- Running -----------------------------------------------------------------------------------------------------------


def run(name: str, files: Sequence[Path | None], task: Any, rules: Sequence[str], **keywords: Any) -> Results:
    """Evaluate with a bar, and keep the answers."""
    base, aligned, reference = files
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as bar:
        line = bar.add_task("", total=None)
        results = evaluate(
            base,
            aligned,
            task,
            reference=reference,
            rules=rules,
            directory=WORK / name,
            progress=lambda now: bar.update(line, completed=now.done, total=now.total),
            **keywords,
        )
    write_report(results, WORK / name)
    KEPT.mkdir(parents=True, exist_ok=True)
    with lzma.open(KEPT / f"{name}.jsonl.xz", "wb", preset=9) as kept:
        kept.write((WORK / name / "answers.jsonl").read_bytes())
    return results


def kept(name: str) -> Results | None:
    """The stored answers of an evaluation; None where there are none."""
    path = KEPT / f"{name}.jsonl.xz"
    if not path.is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "answers.jsonl").write_bytes(lzma.decompress(path.read_bytes()))
        return read_results(folder)


def tiny(folder: Path) -> list[Path | None]:
    """The trained pair and the model before its alignment."""
    return [folder / f"{name}.gguf" for name in ("base", "aligned", "reference")]


def towns(split: str) -> Any:
    """The questions of a split."""
    return load_task(TINY / "towns.toml", data=TINY / f"questions-{split}.jsonl")


def chosen(dev: Results) -> dict[str, Row]:
    """Per rule what was most accurate on the development questions; of equals the one nearest to the rule's default."""
    best: dict[str, Row] = {}
    for row in dev.rows:
        if row.is_rule and row.threshold is not None:
            best[row.rule] = max(best.get(row.rule, row), row, key=_merit)
    return best


def _merit(row: Row) -> tuple[float, float]:
    default = RULES[row.rule].threshold
    assert default is not None
    assert row.threshold is not None
    return row.accuracy.value, -abs(row.threshold - default)


def dev(given: argparse.Namespace) -> None:
    """Every rule at many thresholds."""
    rules = [f"{name}:{threshold}" for name, values in GRID.items() for threshold in values]
    run("dev", tiny(TINY), towns("dev"), rules, shots=SHOTS, n_ctx=512, n_threads=1)


def test(given: argparse.Namespace) -> None:
    """Defaults and chosen thresholds."""
    before = kept("dev")
    if before is None:
        raise SystemExit("thresholds are chosen on the development questions: run `evidence.py dev` first")
    rules = [f"{row.rule}:{row.threshold}" for row in chosen(before).values()]
    run("test", tiny(TINY), towns("test"), [*GRID, *rules], shots=SHOTS, n_ctx=512, n_threads=1)
    run("cool", tiny(TINY), towns("test"), COOL, shots=SHOTS, n_ctx=512, n_threads=1, temperature=0.0)


def again(given: argparse.Namespace) -> None:
    """The main settings with a pair that was trained again."""
    if given.folder is None:
        raise SystemExit("again needs the folder that models/tiny/train.py wrote")
    rules = ["dual", "bet", "primal", "nudging"]
    run("again", tiny(given.folder), towns("test"), rules, shots=SHOTS, n_ctx=512, n_threads=1)


def demo(given: argparse.Namespace) -> None:
    """SVAMP on the demo pair."""
    if given.data is None:
        raise SystemExit("demo needs --data: svamp.json of arkilpatel/SVAMP (MIT)")
    task = load_task("svamp", data=given.data)
    files = [common.demo_base_file(), common.aligned_file(), None]
    run("demo", files, task, DEMO_RULES, n=given.n, n_ctx=2048, max_tokens=given.max_tokens, jobs=given.jobs)


# ---- The page ----------------------------------------------------------------------------------------------------------

INTRO = """\
# Does it align?

Written by `benchmarks/evidence.py page` from the stored answers in [evidence/](evidence); nothing here is typed by hand.

The claim of the method: a large base that knows but does not follow, guided by a small aligned model that follows but does
not know, beats both. Shown here on a pair small enough to be trained on a laptop and kept in this repository, end to end
through GGUF files, llama.cpp and `kad-llama eval`.
"""


PAIR = """\
## The pair

`models/tiny`: 300 invented towns, each with a river, a founder, a craft and a dish. The base has read pages about all of
them: notes, lists, letters, forums, quizzes, badly scraped scraps, each fact in ten phrasings. The small model has read
pages about 80 of the towns; its dialogues are about those, and about towns that exist nowhere else. It is asked about the
others.

{table}

```console
pip install ".[train]"                       # PyTorch
python models/tiny/train.py FOLDER --seed {seed}     # PyTorch {torch}, {threads} threads
```

The pages are made as they are read, without end. `tests/test_towns.py` makes everything that the small models have read
again, and finds no town in it that is asked about.
"""

DEV = """\
## Thresholds

Chosen on {n} development questions, about towns that the test questions leave out: the most accurate threshold of each
rule; of equals the one nearest to its default.

{table}

```console
python benchmarks/evidence.py dev
```
"""

TEST = """\
## The test

{n} questions about towns that the aligned model was never told about.

What "base alone" is. In the pair both models get the aligned model's chat template, as in the published setting. The base
has seen those marks in forum posts and scraps: that is the line "base alone", a prompt that does not suit it. "Plain
transcript" is a form that it knows, `Question: ... Answer:`, without examples: quiz pages of its training ask and answer
in it, these very questions among them, so it often answers at once. What the pair gains is measured against the best of
the lines without examples.

{facts}

{table}

At the thresholds that were chosen on the development questions, where they are not the default:

{chosen}

{caption} Models of this size take a fraction of a millisecond per token: their speeds say nothing about those of a useful
size (see [results.md](results.md)).

### What had to hold

{bars}

{cool}

The four questions about a town are not independent. With the town as the unit, intervals would be up to {effect} times as
wide. An answer counts as right where its first sentence of the form "... is X" names the fact; one that names it in another
form counts as wrong, for every line alike.

### Does a rule beat both models alone?

{verdicts}

### Paired tests

{tests}

Two-sided exact tests of McNemar. Holm: adjusted for all tests of the evaluation, those of the chosen thresholds included.

### One question

{samples}

```console
python benchmarks/evidence.py test
kad-llama eval -m models/tiny/base.gguf -a models/tiny/aligned.gguf --task models/tiny/towns.toml -c 512 --rules dual,primal
```
"""

AGAIN = """\
## Trained again

The same script with the same seed, run a second time. {same}

{table}

```console
python models/tiny/train.py FOLDER && python benchmarks/evidence.py again FOLDER
```
"""

DEMO = """\
## The demo pair

gemma-3-270m as base, SmolLM2-135M-Instruct as aligned model, the first {n} problems of SVAMP. Both are too small for the
benefit: there is hardly any knowledge to hand over. Reported without a bar.

{facts}

{table}

{notes}

{verdicts}

```console
python benchmarks/evidence.py demo --data svamp.json -n {n} --max-tokens {max_tokens}
```
"""


def page(given: argparse.Namespace) -> None:
    """Write docs/evidence.md."""
    found = {name: kept(name) for name in ("dev", "test", "cool", "again", "demo")}
    parts = [INTRO, _pair(), *(_part(name, found) for name in ("dev", "test", "again", "demo") if found[name])]
    if (KEPT / "figures.md").is_file():
        parts.append(_figures())
    PAGE.write_text("\n\n".join(part.strip() for part in parts) + "\n", encoding="utf-8")


def _part(name: str, found: dict[str, Results | None]) -> str:
    parts = {"dev": _dev, "test": _test, "again": _again, "demo": _demo}
    results = found[name]
    assert results is not None
    return parts[name](results, found)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _rows(results: Results, settings: Sequence[str]) -> str:
    return _table(report.HEADER, [report.cells(results.row(name)) for name in settings])


def _share(share: Share) -> str:
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} to {100 * share.high:.1f})"


def _pair() -> str:
    log = json.loads((TINY / "train.json").read_text(encoding="utf-8"))
    rows = []
    for name, read in (("base", "pages"), ("reference", "pages"), ("aligned", "dialogues")):
        entry = log[name]
        sizes = f"{entry['n_layer']} layers of {entry['hidden']}"
        megabytes = f"{(TINY / f'{name}.gguf').stat().st_size / 1e6:.1f} MB"
        counts = [f"{entry['parameters'] / 1e6:.2f} M", sizes, megabytes, f"{entry['read']:,} {read}"]
        rows.append([name, *counts, f"{entry['losses'][-1]:.2f}", f"{entry['seconds'] / 60:.0f} min"])
    header = ("file", "parameters", "shape", "Q8_0 file", "read", "last loss", "trained in")
    return PAIR.format(table=_table(header, rows), seed=log["seed"], torch=log["torch"], threads=log["threads"])


def _dev(results: Results, _: dict[str, Results | None]) -> str:
    rows = []
    best = chosen(results)
    for name, values in GRID.items():
        shares = {row.threshold: row.accuracy.value for row in results.rows if row.rule == name and row.is_rule}
        shown = ", ".join(f"{value:g}: {100 * shares[value]:.0f} %" for value in values if value in shares)
        rows.append([f"`{name}`", shown, f"{best[name].threshold:g}", f"{RULES[name].threshold:g}"])
    table = _table(("rule", "threshold: accuracy", "chosen", "default"), rows)
    return DEV.format(n=results.counts["questions"], table=table)


def _test(results: Results, found: dict[str, Results | None]) -> str:
    form = sum(bool(FORM.fullmatch(answer.text)) for answer in results.of(ALIGNED_ALONE))
    lines = [
        *_bars(results),
        _bar_line("aligned alone: answers that are the taught sentence, %", 100 * form, 95, results),
    ]
    rules = [row for row in results.rows if row.is_rule]
    defaults = [row.setting for row in rules if row.threshold == RULES[row.rule].threshold]
    alone = {row.setting for row in results.rows if not row.is_rule}
    main = {f"{name} {RULES[name].threshold:g}" for name in DEMO_RULES}
    tests = [t for t in results.tests if t.second in alone and (t.first in main or t.first in alone)]
    beaten = [row.setting for row in rules if results.beats_both(row.setting)]
    failed = [line for line in results.verdicts if "does not beat" in line]
    ahead = [t for t in results.tests if t.second == TRANSCRIPT and t.first in beaten and t.difference > 0]
    verdict = (
        f"{len(beaten)} of {len(rules)} settings of the rules beat both models alone with the pair's prompt "
        f"(adjusted p below 0.05); {sum(t.adjusted < LEVEL for t in ahead)} of them are ahead of the base with its plain "
        "transcript, too."
    )
    return TEST.format(
        n=results.counts["questions"],
        facts="\n".join(f"- {name}: {value}" for name, value in report.facts(results)),
        table=_rows(
            results, [name for name in results.settings if name not in {row.setting for row in rules}] + defaults
        ),
        chosen=_rows(results, [row.setting for row in rules if row.setting not in defaults]),
        caption=f"{report.CAPTION} {report.ALONE}",
        bars=_table(("what", "measured", "bar", "met"), lines),
        cool=_cool(found["cool"]),
        effect=_effect(results),
        verdicts="\n".join(f"- {line}" for line in [verdict, *failed]),
        tests=_table(report.TEST_HEADER, [report.test_cells(test) for test in tests]),
        samples=_samples(results, defaults),
    )


def _bar_line(what: str, total: float, bar: float, results: Results) -> list[str]:
    value = total / len(results.of(ALIGNED_ALONE))
    return [what, f"{value:.1f}", f"at least {bar:g}", "yes" if value >= bar else "no"]


def _bars(results: Results) -> list[list[str]]:
    """What issue and reader ask of the pair: distances in points and whether the intervals lie apart."""
    alone = [results.accuracy(name) for name in (BASE_ALONE, TRANSCRIPT, ALIGNED_ALONE)]
    best = max(alone, key=lambda share: share.value)
    lines = []
    for rule, least in (("dual", 15.0), ("bet", 0.0), ("primal", 0.0)):
        share = results.accuracy(f"{rule} {RULES[rule].threshold:g}")
        distance = 100 * (share.value - best.value)
        apart = share.low > max(one.high for one in alone)
        met = apart and distance >= least
        what = f"`{rule}` at its default over the best of the models alone, without examples and with either prompt"
        measured = f"{distance:+.1f} points, {'apart' if apart else 'not apart'}"
        lines.append([what, measured, f"at least {least:g} points" if least else "above", "yes" if met else "no"])
    worked = results.accuracy(f"{BASE_ALONE}, 5 worked examples")
    lines.append(["base alone with five worked examples", _share(worked), "at least 60 %", _yes(worked.value >= 0.6)])
    return lines


def figures(given: argparse.Namespace) -> None:
    """Draw the tiny pair on development questions, with the accuracies of `dev`; only the vector graphics are kept."""
    prompts = [question.prompt for question in towns("dev").questions[:PROMPTS]]
    base, aligned, _ = tiny(TINY)
    assert base is not None
    assert aligned is not None
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "answers.jsonl").write_bytes(lzma.decompress((KEPT / "dev.jsonl.xz").read_bytes()))
        write_figures(
            base,
            aligned,
            directory=Path(folder) / "out",
            prompts=prompts,
            n=24,
            temperature=0.7,
            results=folder,
            n_ctx=512,
            n_threads=1,
        )
        for path in (Path(folder) / "out").glob("*.svg"):
            (KEPT / path.name).write_bytes(path.read_bytes())
        index = (Path(folder) / "out" / "figures.md").read_text(encoding="utf-8")
    index = re.sub(r"\n\[\w+\.svg\]\(\w+\.svg\)\n", "", index.partition("\n## Prompts")[0]).replace(".png)", ".svg)")
    (KEPT / "figures.md").write_text(index.replace("- every number shown: figures.json\n", ""), encoding="utf-8")


def _figures() -> str:
    """The index of the figures, a level deeper."""
    _, _, text = (KEPT / "figures.md").read_text(encoding="utf-8").partition("\n")
    shown = re.sub(r"\]\((\w+\.svg)\)", r"](evidence/\1)", text.replace("\n## ", "\n### "))
    return f"## Figures\n{shown}\n```console\npython benchmarks/evidence.py figures\n```"


def _cool(results: Results | None) -> str:
    if results is None:
        return ""
    return "At temperature 0, where `primal` keeps the base's best token and is the base:\n\n" + _rows(
        results, results.settings
    )


def _effect(results: Results) -> str:
    """How much wider intervals would be with the town as the unit: the root of the largest design effect."""
    found = []
    for name in results.settings:
        marks: dict[str, list[bool]] = {}
        for answer in results.of(name):
            marks.setdefault(answer.question.rpartition("-")[0], []).append(answer.correct)
        mean = results.accuracy(name).value
        between = sum((sum(town) - mean * len(town)) ** 2 for town in marks.values())
        if 0 < mean < 1:
            found.append(between / (len(results.of(name)) * mean * (1 - mean)))
    return f"{max(found) ** 0.5:.1f}"


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def _samples(results: Results, rules: Sequence[str]) -> str:
    """The first question and what the models alone and some rules said."""
    first = results.answers[0]
    rows = []
    for name in [name for name in results.settings if name in rules or not results.row(name).is_rule]:
        answer = next(a for a in results.of(name) if a.question == first.question)
        text = answer.text.replace("\n", "\\n").replace("|", "\\|")
        rows.append([name, f"`{text}`" if text else "(nothing)", _yes(answer.correct)])
    return f"`{first.prompt}` (right: {first.target})\n\n" + _table(("setting", "answer", "right"), rows)


def _again(results: Results, found: dict[str, Results | None]) -> str:
    before = found["test"]
    rows = []
    for name in results.settings:
        if before is None or name not in before.settings:
            continue
        one, two = before.accuracy(name), results.accuracy(name)
        agree = one.low <= two.high and two.low <= one.high
        rows.append([name, _share(one), _share(two), _yes(agree)])
    same = before is not None and all(before.header[role] == results.header[role] for role in ("base", "aligned"))
    says = "Base and aligned model came out the same to the byte." if same else "The files are other ones."
    return AGAIN.format(
        same=says, table=_table(("setting", "the files here", "trained again", "intervals overlap"), rows)
    )


def _demo(results: Results, _: dict[str, Results | None]) -> str:
    return DEMO.format(
        n=results.counts["questions"],
        max_tokens=results.header["max_tokens"],
        notes="\n".join(report.notes(results)),
        facts="\n".join(f"- {name}: {value}" for name, value in report.facts(results)),
        table=_rows(results, results.settings),
        verdicts="\n".join(f"- {line}" for line in results.verdicts),
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"dev": dev, "test": test, "again": again, "demo": demo, "figures": figures, "page": page}
    parser.add_argument("command", choices=commands)
    parser.add_argument("folder", type=Path, nargs="?", help="for again: the files of another training run")
    parser.add_argument("--data", type=Path, help="for demo: svamp.json")
    parser.add_argument("-n", type=int, default=40, help="for demo: questions (default 40)")
    parser.add_argument("--max-tokens", type=int, default=120, help="for demo: of an answer (default 120)")
    parser.add_argument("--jobs", type=int, default=8, help="for demo: texts at a time (default 8)")
    given = parser.parse_args()
    commands[given.command](given)


if __name__ == "__main__":
    main()
