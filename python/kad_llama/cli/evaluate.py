"""`kad-llama eval`: does the pair answer the questions of a task better than its models alone?"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad_llama.cli import answer, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import KadError

if TYPE_CHECKING:
    from kad_llama.evaluation.results import Results
    from kad_llama.evaluation.runner import Progress
    from kad_llama.evaluation.tasks import Task

USAGE = """\
kad-llama eval -m BASE.gguf -a ALIGNED.gguf --task FILE|NAME [--data FILE] [options]
       kad-llama eval --report DIR [options]"""

DESCRIPTION = """\
Let rules, and the two models alone, answer the same questions with the same seeds. Every answer is stored at once in
DIR/answers.jsonl; the same command again goes on where it stopped, and may add rules, questions (-n) and seeds.
DIR/report.md and DIR/report.html have accuracies with intervals, paired tests, speeds, and who spoke.
Ctrl-C reports what there is."""

QUESTIONS = 100
WIDE = 135  # columns of the table with the quartiles of the speed
LINE = 100  # and of the lines below it
SECONDS_BETWEEN_LINES = 60  # of progress, where it is no terminal that would show a bar


def parser() -> argparse.ArgumentParser:
    """The parser of `kad-llama eval`."""
    result = flags.new_parser("kad-llama eval", USAGE, DESCRIPTION)
    flags.add_models(result)
    result.add_argument(
        "-r", "--reference", metavar="FILE", help="for implicit-reward: the small model before its alignment"
    )
    _add_task(result)
    _add_compared(result)
    _add_sampling(result)
    flags.add_llama(result)
    group = result.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="DIR", help="where answers and report go (default: eval-TASK)")
    group.add_argument("--report", metavar="DIR", help="write the report anew from the answers in DIR; needs no model")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of the tables")
    group.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    return result


def _add_task(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("questions")
    group.add_argument(
        "--task", metavar="FILE|NAME", help="a task file, or a built-in task: gsm8k, svamp, math, arc, csqa"
    )
    group.add_argument(
        "--data", metavar="FILE", help="the data, in place of the task file's own; built-in tasks have none"
    )
    group.add_argument("-n", type=_count_or_all, default=QUESTIONS, metavar="N|all", help="the first N (default 100)")
    group.add_argument(
        "--bad-lines",
        choices=["stop", "skip"],
        default="stop",
        help="a malformed line ends it (default), or is left out and counted in the report",
    )


def _add_compared(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("what is compared")
    group.add_argument(
        "--rules",
        type=_words,
        default=["dual"],
        metavar="NAME[:X],...",
        help="rules, each with its default threshold or X (default dual); see `kad-llama rules`",
    )
    group.add_argument("--no-single", action="store_true", help="leave out the two models alone")
    group.add_argument(
        "--shots",
        type=_counts,
        metavar="K,...",
        help="also the base alone with K worked examples, for each K; 0 = a plain transcript without any; none = nothing of "
        "the kind (default: 5 if the task has them)",
    )


def _add_sampling(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("how they answer")
    group.add_argument("--temp", type=float, default=0.7, metavar="X", help="temperature of each model (default 0.7)")
    group.add_argument(
        "--rule-temp",
        type=flags.rule_temperature,
        default=1.0,
        metavar="X|sampling",
        help="temperature at which rules compare (default 1.0); sampling = the one of --temp",
    )
    group.add_argument("--max-tokens", type=flags.positive, metavar="N", help="most tokens of an answer (the task's)")
    group.add_argument(
        "--seeds", type=flags.positive, default=1, metavar="K", help="answers to each question (default 1)"
    )
    group.add_argument(
        "-s", "--seed", type=flags.seed, default=1, metavar="N", help="all seeds follow from it (default 1)"
    )
    group.add_argument(
        "--jobs",
        type=flags.positive,
        default=1,
        metavar="N",
        help="texts written at a time, sharing passes (default 1)",
    )
    group.add_argument(
        "--reproducible", action="store_true", help="the texts do not depend on drafts, or on what ran before"
    )


def _count_or_all(text: str) -> int | None:
    return None if text == "all" else flags.positive(text)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _counts(text: str) -> list[int]:
    if text.strip() == "none":
        return []
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) >= 1000:
            raise argparse.ArgumentTypeError(
                f"invalid value {part!r}: expected whole numbers below 1000 with commas between them, or none"
            )
    return [int(part) for part in parts]


def check(command: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what cannot go together, or is missing (exit status 2)."""
    if arguments.report is not None:
        given = [f for f, v in (("-m", arguments.model), ("-a", arguments.aligned), ("--task", arguments.task)) if v]
        if given or arguments.output:
            command.error(f"--report DIR reads what is stored there: leave out {[*given, '-o'][0]}")
        return
    for flag, value, what in (
        ("-m FILE", arguments.model, "the base model"),
        ("-a FILE", arguments.aligned, "the aligned model"),
        ("--task FILE|NAME", arguments.task, "what is asked"),
    ):
        if not value:
            command.error(f"{flag}, {what}, is missing")
    needs = any(rule.split(":")[0] == "implicit-reward" for rule in arguments.rules)
    if needs and not arguments.reference:
        command.error("-r FILE is missing: rule implicit-reward needs the small model before its alignment")
    if arguments.reference and not needs:
        command.error("-r is for rule implicit-reward, which is not among --rules")


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and report. Answers the exit status."""
    from kad_llama.evaluation.results import read_results
    from kad_llama.evaluation.tasks import load_task

    if arguments.report is not None:
        _report(read_results(arguments.report), Path(arguments.report), arguments.json)
        return 0
    task = load_task(arguments.task, data=arguments.data, bad_lines=arguments.bad_lines)
    folder = Path(arguments.output or "eval-" + re.sub(r"[^\w.-]+", "-", task.name))
    if task.skipped:
        output.note(f"{len(task.skipped)} malformed lines are left out; the first: {task.skipped[0]}")
    begun: list[bool] = []  # whether the folder was found to be this evaluation's
    try:
        results = _evaluate(arguments, task, folder, begun)
    except KeyboardInterrupt:
        if begun:
            output.note("interrupted: the same command goes on from here")
            _report(read_results(folder), folder, arguments.json)
        return answer.INTERRUPTED
    except KadError:
        if begun:
            with contextlib.suppress(KadError):  # the first error says what went wrong
                _report(read_results(folder), folder, arguments.json)
        raise
    _report(results, folder, arguments.json)
    return 0


def _evaluate(arguments: argparse.Namespace, task: Task, folder: Path, begun: list[bool]) -> Results:
    from kad_llama.evaluation.runner import evaluate

    keywords = flags.llama_keywords(arguments)
    if arguments.reference:
        keywords["reference_params"] = flags.model_params(arguments, "_aligned") or None
    with _progress() as show:

        def progress(at: Progress) -> None:
            if at.total:
                begun[:] = [True]
            show(at)

        return evaluate(
            arguments.model,
            arguments.aligned,
            task,
            directory=folder,
            rules=arguments.rules,
            reference=arguments.reference,
            n=arguments.n,
            repetitions=arguments.seeds,
            temperature=arguments.temp,
            rule_temperature=arguments.rule_temp,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
            single=not arguments.no_single,
            shots=arguments.shots,
            jobs=arguments.jobs,
            progress=progress,
            reproducible=arguments.reproducible,
            **keywords,
        )


# ---- Progress -----------------------------------------------------------------------------------------------------------


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """A bar with answers and time left on a terminal, now and then a line elsewhere."""
    if not output.is_terminal(sys.stderr):
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        *(BarColumn(), TaskProgressColumn(), MofNCompleteColumn(), TextColumn("answers,")),
        *(TimeRemainingColumn(), TextColumn("left  {task.description}", markup=False)),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bar:
        shown: list[Any] = []

        def progress(at: Progress) -> None:
            if not shown or (at.total and bar.tasks[0].total is None):
                for old in shown:
                    bar.remove_task(old)
                shown[:] = [bar.add_task(at.now, total=at.total or None, completed=at.done)]
            else:
                bar.update(shown[0], completed=at.done, description=at.now)

        yield progress


class _Lines:
    """A line of progress a minute."""

    def __init__(self) -> None:
        self._begun = self._last = time.monotonic()
        self._before: int | None = None

    def __call__(self, at: Progress) -> None:
        if self._before is None and at.total:
            self._before, self._begun = at.done, time.monotonic()
        now = time.monotonic()
        if self._before is None or now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        output.note(f"{at.done} of {at.total} answers ({100 * at.done // at.total} %){self._left(at, now)}: {at.now}")

    def _left(self, at: Progress, now: float) -> str:
        fresh = at.done - (self._before or 0)
        return f", {(now - self._begun) / fresh * (at.total - at.done) / 60:.0f} min left" if fresh else ""


# ---- Showing ------------------------------------------------------------------------------------------------------------


def _report(results: Results, folder: Path, as_json: bool) -> None:
    from kad_llama.evaluation import report

    page, web, why = report.write_report(results, folder)
    if as_json:
        output.dump(results.to_dict())
    else:
        _show(results)
    if why:
        output.note(why)
    output.note(f"report: {page} and {web.name}; every answer: {folder / 'answers.jsonl'}")


def _show(results: Results) -> None:
    from kad_llama.evaluation import report

    for name, value in report.facts(results)[:-1]:
        print(f"{name}: {value}")
    if not results.rows:
        print("No answer is stored yet.")
        return
    print()
    on_screen = output.is_terminal(sys.stdout)
    width = shutil.get_terminal_size().columns if on_screen else WIDE
    output.table([report.cells(row, quartiles=width >= WIDE) for row in results.rows], report.HEADER)
    for line in (*report.notes(results), *results.verdicts):
        print(textwrap.fill(line, min(width, LINE), break_on_hyphens=False, break_long_words=False))
