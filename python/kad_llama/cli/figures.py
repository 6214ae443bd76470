"""`kad-llama figures`: the figures of the KAD paper on a pair."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from kad_llama.cli import answer, demo, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import PromptError

if TYPE_CHECKING:
    from kad_llama.figures import Numbers

USAGE = """\
kad-llama figures -m BASE.gguf -a ALIGNED.gguf [-p TEXT | -f FILE] [options]
       kad-llama figures --demo [options]"""

DESCRIPTION = """\
Let the pair write a few texts, and draw from the distributions on the way: p, q and pi at a position, which proposals of
either model reach the text, the entropy of what the base keeps, the budget that the knapsack leaves; and, from the results
of `kad-llama eval`, accuracy and speed against the thresholds. As PNG and SVG, with an index (DIR/figures.md) and the
numbers (DIR/figures.json). Needs the `eval` extra. Ctrl-C draws what there is."""

POSITIONS = 64


def parser() -> argparse.ArgumentParser:
    """The parser of `kad-llama figures`."""
    result = flags.new_parser("kad-llama figures", USAGE, DESCRIPTION)
    flags.add_models(result)
    _add_texts(result)
    _add_shown(result)
    flags.add_llama(result)
    group = result.add_argument_group("output")
    group.add_argument("-o", "--output", metavar="DIR", default="figures", help="where the files go (default: figures)")
    group.add_argument("--json", action="store_true", help="print the numbers as one JSON object")
    group.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    return result


def _add_texts(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("texts")
    source = group.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", metavar="TEXT", help="what is answered (default: four prompts)")
    source.add_argument("-f", "--file", metavar="FILE", help="prompts, one per line")
    group.add_argument(
        "-n", type=flags.positive, default=POSITIONS, metavar="N", help="most positions per prompt (default 64)"
    )
    group.add_argument("--temp", type=float, default=1.0, metavar="X", help="temperature of each model (default 1.0)")
    group.add_argument("-s", "--seed", type=flags.seed, default=1, metavar="N", help="of the texts (default 1)")
    group.add_argument("--demo", action="store_true", help="the demo pair; needs the `demo` extra")


def _add_shown(result: argparse.ArgumentParser) -> None:
    group = result.add_argument_group("what is shown")
    group.add_argument(
        "--rule",
        default="dual",
        metavar="NAME[:X]",
        help="of the texts for distribution, entropy and budget (default dual); acceptance has its own three",
    )
    group.add_argument(
        "--position",
        type=flags.positive,
        metavar="N",
        help="whose distribution (default: the first with alpha between 0.2 and 0.8)",
    )
    group.add_argument("--results", metavar="DIR", help="of `kad-llama eval`, for accuracy and speed")


def check(command: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what contradicts itself, or is missing (exit status 2)."""
    if arguments.demo and (arguments.model or arguments.aligned):
        command.error("--demo brings its own two models: leave out -m and -a")
    for flag, value, what in (("-m", arguments.model, "base"), ("-a", arguments.aligned, "aligned")):
        if not (value or arguments.demo):
            command.error(f"{flag} FILE, the {what} model, is missing (try --demo for a pair of small models)")


def run(arguments: argparse.Namespace) -> int:
    """Draw and say what was drawn. Answers the exit status."""
    from kad_llama.figures import PROMPTS, write_figures

    prompts: tuple[str, ...] = PROMPTS if arguments.prompt is None else (arguments.prompt,)
    if arguments.file is not None:
        prompts = read_prompts(arguments.file)
    if arguments.demo:
        arguments.model, arguments.aligned = map(str, demo.models())
    with output.working("writing texts", 1.0) as show:

        def progress(done: int, whole: int, now: str) -> None:
            if show is not None:
                show(done / whole)

        numbers = write_figures(
            arguments.model,
            arguments.aligned,
            directory=arguments.output,
            prompts=prompts,
            n=arguments.n,
            rule=arguments.rule,
            position=arguments.position,
            temperature=arguments.temp,
            seed=arguments.seed,
            results=arguments.results,
            progress=progress,
            **flags.llama_keywords(arguments),
        )
    _show(numbers, Path(arguments.output), arguments.json)
    return answer.INTERRUPTED if numbers.interrupted else 0


def read_prompts(path: str) -> tuple[str, ...]:
    """Return the lines of a file that are not empty."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PromptError(f"cannot read the file of prompts {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"the file of prompts {path!r} is not UTF-8 at byte {error.start}") from None
    prompts = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not prompts:
        raise PromptError(f"the file of prompts {path!r} has none; expected one per line")
    return prompts


def _show(numbers: Numbers, folder: Path, as_json: bool) -> None:
    from kad_llama.figures.index import TITLES

    if as_json:
        output.dump(numbers.to_dict())
    else:
        rows = [
            [title, str(folder / f"{name}.png"), f"{name}.svg"]
            for name, title in TITLES.items()
            if getattr(numbers, name) is not None
        ]
        output.table(rows, ["figure", "file", "and"])
    for name, reason in numbers.missing.items():
        output.note(f"{TITLES[name]}: left out, {reason}")
    if numbers.interrupted:
        output.note("interrupted: the figures show what there was until then")
    output.note(f"index: {folder / 'figures.md'}; every number: {folder / 'figures.json'}")
