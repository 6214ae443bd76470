"""What does --draft auto cost where it has seen little: in short texts, and in the first one after a pair is opened?

    python benchmarks/short.py [--pairs demo --rules dual --lengths 16,32,64 --drafts 2,3,4 --rounds 24] [--keep]

In a round every candidate, at every length of text, opens the pair anew and answers one question twice: the first answer,
before which no pass was timed and no guess was seen, and the next one, with another seed. Candidates take turns in being
first. Given is the speed of auto over that of each fixed setting in the same round. Answers of fewer than 16 tokens count
for no ratio. `--keep` adds the table to docs/results.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import results
import running
from results import Cell
from running import AUTO, PLAIN

TEXTS = ("first", "next")


def candidates(drafts: str) -> dict[str, dict[str, Any]]:
    """Keywords of generate(), by the name on the page."""
    fixed = {f"k={k}": {"draft": int(k)} for k in drafts.split(",")}
    return {PLAIN: {"spec": False}, **fixed, AUTO: {"draft": "auto"}}


def compare(files: running.Pair, rule: str, given: argparse.Namespace) -> dict[tuple[str, int], dict[str, Cell]]:
    """By text and length: the runs of every candidate."""
    ways = candidates(given.drafts)
    lengths = [int(length) for length in given.lengths.split(",")]
    found = {(text, length): {name: Cell() for name in ways} for text in TEXTS for length in lengths}
    for number in range(given.rounds):
        question = running.QUESTIONS[number % len(running.QUESTIONS)]
        order = [*ways][number % len(ways) :] + [*ways][: number % len(ways)]
        for length in lengths:
            for name in order:
                with running.open_pair(files, rule) as kad:
                    candidate = running.Kad(kad, ways[name])
                    for i, text in enumerate(TEXTS):
                        run = candidate.run(question, 2 * number + i, given.temperature, length)
                        if run.seconds > 0:  # an answer may be empty
                            found[text, length][name].runs[number] = run
        print(f"\r{files.name}, rule {rule}: round {number + 1} of {given.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def header(drafts: str) -> list[str]:
    """Of the table."""
    return ["pair", "rule", "text", "tokens", "rounds", *(f"auto over {k}" for k in candidates(drafts) if k != AUTO)]


def row(pair: str, rule: str, text: str, length: int, cells: dict[str, Cell]) -> list[str]:
    """One line of the table; rounds are those that count against plain."""
    ratios = [results.ratio(cells[AUTO], cell) for name, cell in cells.items() if name != AUTO]
    rounds = ratios[0].rounds if ratios[0] else 0
    return [pair, rule, text, str(length), str(rounds), *(str(ratio or "-") for ratio in ratios)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="demo")
    parser.add_argument("--rules", default="dual")
    parser.add_argument("--lengths", default="16,32,64", help="tokens of a text at most (default: %(default)s)")
    parser.add_argument("--drafts", default="2,3,4", help="fixed drafts beside auto (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--temperature", type=float, default=1.0)
    common.keep_arguments(parser)
    given = parser.parse_args()
    rows = []
    for name in given.pairs.split(","):
        files = running.pair(name)
        for rule in given.rules.split(","):
            found = compare(files, rule, given)
            rows += [row(name, rule, text, length, cells) for (text, length), cells in found.items()]
    columns = header(given.drafts)
    rows = common.beside_kept(given, "short", columns, rows, 4)
    common.show(given, "short", f"Short texts, temperature {given.temperature:g}", columns, rows)


if __name__ == "__main__":
    main()
