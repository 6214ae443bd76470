"""Does the automatic draft length find the best fixed setting?

    python benchmarks/pacing.py [--pairs demo,Q8_0 --rules base,dual --positions 800] [--keep]

auto, lazy, plain and draft lengths 1 to 15 run in turn, from the same prompts. The best fixed setting is chosen on one
half of the rounds and compared with auto on the other, both ways, so that its luck does not count. Runs are kept beside
the results file, in pacing.json; an interrupted command goes on where it stopped. `--keep` adds the table to
docs/results.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import peers
import results
import running
from results import Group, Store

from kad_llama import RULES
from kad_llama.files import default_threads


def names(rule: str, lengths: int) -> list[str]:
    """auto and every fixed setting of a rule."""
    lazy = [running.LAZY] if RULES[rule].lazy else []
    return [running.AUTO, running.PLAIN, *lazy, *(f"k={k}" for k in range(1, lengths + 1))]


def row(group: Group, store: Store) -> tuple[list[str], float] | None:
    """A line of the table, and the worse of the two comparisons."""
    found = results.halves(store.group(group))
    if len(found) < 2:
        return None
    cell = store.group(group)[running.AUTO]
    compared = [f"{ratio} of {name}" for name, ratio in found]
    worse = min(ratio.median for _, ratio in found)
    return [group.pair, group.rule, str(cell.tokens), *compared, f"{cell.right:.2f}"], worse


HEADER = ("pair", "rule", "positions", "chosen on the even rounds", "chosen on the odd rounds", "guesses right")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default=peers.PAIRS)
    parser.add_argument("--rules", default="base,dual")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--positions", type=int, default=800, help="per setting, at least (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=80, help="per run, at most (default: %(default)s)")
    parser.add_argument("--lengths", type=int, default=15, help="the longest draft (default: %(default)s)")
    common.keep_arguments(parser)
    given = parser.parse_args()
    store = Store(given.file.with_name("pacing.json"))
    amount = peers.Amount(given.tokens, given.positions, 0, default_threads(), reference="")
    groups = [Group(p, r, given.temperature) for p in given.pairs.split(",") for r in given.rules.split(",")]
    peers.measure_all(store, {group: names(group.rule, given.lengths) for group in groups}, amount)
    rows = [found for group in groups if (found := row(group, store))]
    facts = {f"pacing {cells[0]}, rule {cells[1]}": worse for cells, worse in rows}
    title = f"auto against every fixed setting, temperature {given.temperature:g}"
    common.show(given, "pacing", title, HEADER, [cells for cells, _ in rows], **facts)


if __name__ == "__main__":
    main()
