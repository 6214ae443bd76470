"""What do guesses from the text itself bring, where an answer repeats its prompt, and what do they cost elsewhere?

    python benchmarks/copying.py [--pairs demo,Q8_0 --rules base,dual --temperatures 0,1] [--keep]

Side by side: draft="auto" as it is, and with ngram=False, where the aligned model alone guesses. "copy" is a prompt that
asks for a text with one word replaced, and shows that twice first: models as small as these copy nothing otherwise, and
at temperature 1 even so they leave the text soon. "elsewhere" are the ordinary questions of running.py. The variants take
turns in being first. Elsewhere takes more rounds: the least of many cells is held against a loss of 3 %, and rounds differ
by more than that. Where the time goes stands beside it, and the limit: how much faster than without the table, if with it
no pass of the aligned model took any time. `--keep` adds the table to docs/results.json; rows there that were not measured
now stay.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import results
import running
from results import Cell

from kad_llama import KadLlama

TEXTS = (
    (
        "The old mill stood by the river. Every morning the miller opened the gate, and the water turned the wheel. "
        "The wheel turned the stones, and the stones ground the wheat. In the evening the miller closed the gate again, "
        "swept the floor of the mill, and sat down by the river to watch the water until it was dark."
    ),
    (
        "A library lends books to everyone who lives in the town. A reader may take ten books home and keep them for "
        "four weeks. Whoever brings a book back late pays a small fine for every week. The library is open from Monday "
        "to Saturday, and on Sunday a reader may put books into the box beside the door."
    ),
    (
        "To make the soup, cut two onions and four carrots into small pieces and fry them in a large pot. Add one litre "
        "of water and a spoon of salt. Let the soup boil for twenty minutes, then add the beans and let the soup rest. "
        "Serve the soup hot, with bread and a little oil, and keep what is left of the soup in a cold place."
    ),
    (
        "The train leaves the city at seven and stops at every village on the way to the coast. At nine the train "
        "crosses the long bridge, and from there the passengers see the sea. The train arrives at the harbour at ten, "
        "where a ship waits for the passengers of the train and leaves as soon as the last of them is on board."
    ),
)
WORDS = (("river", "lake"), ("reader", "member"), ("soup", "stew"), ("train", "bus"))
VARIANTS = {"with": {"draft": "auto"}, "without": {"draft": "auto", "ngram": False}}


def copy_prompt(number: int) -> str:
    """A text and the same with one word replaced, twice; then the text once more, for the model to do it again."""
    text, (old, new) = TEXTS[number % len(TEXTS)], WORDS[number % len(TEXTS)]
    return f"Before: {text}\nAfter: {text.replace(old, new)}\n\n" * 2 + f"Before: {text}\nAfter:"


def prompt(kind: str, number: int) -> str:
    """The prompt of a round."""
    return copy_prompt(number) if kind == "copy" else running.QUESTIONS[number % len(running.QUESTIONS)]


def compare(kad: KadLlama, kind: str, temperature: float, given: argparse.Namespace) -> dict[str, Cell]:
    """Rounds of both variants; the first round warms up and is not counted."""
    rounds = given.rounds if kind == "copy" else given.elsewhere
    cells = {name: Cell() for name in VARIANTS}
    raw = {"raw": kind == "copy"}
    for number in range(-1, rounds):
        for name, keywords in sorted(VARIANTS.items(), reverse=number % 2 == 0):
            run = running.Kad(kad, keywords | raw).run(
                prompt(kind, max(0, number)), number + 1, temperature, given.tokens
            )
            if number >= 0:
                cells[name].runs[number] = run
        print(f"\r{kind}, temperature {temperature:g}: round {number + 1} of {rounds}", end="", file=sys.stderr)
    # At once, as the table comes at the end alone.
    print(f": {results.ratio(cells['with'], cells['without']) or '-'}", file=sys.stderr)
    return cells


def milliseconds(cell: Cell) -> str:
    """Of a token: in base passes, in aligned passes, and the rest."""
    base, aligned = cell.total("base_eval_s"), cell.total("aligned_eval_s")
    each = 1e3 / cell.total("tokens")
    return " + ".join(f"{each * part:.1f}" for part in (base, aligned, cell.total("seconds") - base - aligned))


def limit(cells: dict[str, Cell]) -> float:
    """How much faster than without the table, if with it no pass of the aligned model took any time."""
    least = cells["with"].total("seconds") - cells["with"].total("aligned_eval_s")
    return cells["with"].total("tokens") / least / cells["without"].speed


HEADER = (
    "pair",
    "rule",
    "temperature",
    "prompt",
    "positions",
    "with over without",
    "right with",
    "right without",
    "tokens per base pass",
    "ms/token with: base + aligned + rest",
    "without",
    "limit",
)


def facts(rows: Sequence[Sequence[str]]) -> dict[str, float]:
    """What bars are held against, from the rows as they are shown."""
    gains: dict[str, list[float]] = {}
    limits: dict[str, list[float]] = {}
    elsewhere: list[float] = []
    for row in rows:
        line = dict(zip(HEADER, row, strict=True))
        if line["with over without"] == "-":  # texts too short to count
            continue
        median = float(line["with over without"].split()[0])
        if line["prompt"] == "copy":
            gains.setdefault(line["pair"], []).append(median)
            limits.setdefault(line["pair"], []).append(float(line["limit"]))
        else:
            elsewhere.append(median)
    most = max(gains, key=lambda pair: statistics.median(gains[pair]), default="")
    return {
        "copy_gain": statistics.median(gains.get(most, [0.0])),
        "copy_limit": statistics.median(limits.get(most, [0.0])),
        "copy_least": min((value for values in gains.values() for value in values), default=0.0),
        "copy_loss": min(elsewhere, default=0.0),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="demo,Q8_0")
    parser.add_argument("--rules", default="base,dual")
    parser.add_argument("--temperatures", default="0,1")
    parser.add_argument("--prompts", default="copy,elsewhere", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="of each copy prompt (default: %(default)s)")
    parser.add_argument("--elsewhere", type=int, default=40, help="of ordinary questions (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=80)
    common.keep_arguments(parser)
    given = parser.parse_args()
    if unknown := set(given.prompts.split(",")) - {"copy", "elsewhere"}:
        parser.error(f"--prompts: {', '.join(sorted(unknown))}; expected copy, elsewhere or both, between commas")
    rows: list[list[str]] = []
    for name in given.pairs.split(","):
        files = running.pair(name)
        for rule in given.rules.split(","):
            with running.open_pair(files, rule) as kad:
                for temperature in map(float, given.temperatures.split(",")):
                    for kind in given.prompts.split(","):
                        cells = compare(kad, kind, temperature, given)
                        ratio = results.ratio(cells["with"], cells["without"])
                        passes = [cell.tokens / max(1.0, cell.total("base_passes")) for cell in cells.values()]
                        rows.append(
                            [name, rule, f"{temperature:g}", kind, str(cells["with"].tokens), str(ratio or "-")]
                            + [f"{cell.right:.2f}" for cell in cells.values()]
                            + [" and ".join(f"{value:.2f}" for value in passes)]
                            + [*map(milliseconds, cells.values()), f"{limit(cells):.2f}"]
                        )
    rows = common.beside_kept(given, "copying", HEADER, rows, 4)
    common.show(given, "copying", "Guesses from the text itself", HEADER, rows, **facts(rows))


if __name__ == "__main__":
    main()
