"""How much faster are several answers at once than one after another?

    python benchmarks/texts.py [--pairs Q8_0,demo --rules base,dual --n 8] [--keep]

generate(prompt, n=8) against eight calls with text_number 0 to 7, in turns; a first round warms up. They are the same texts
up to llama.cpp's arithmetic, which depends on the length of a pass. Counted is the whole call: tokens of all texts over the
time. A prompt is evaluated in a round's first calls; then the caches hold it. `--keep` adds the table to docs/results.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import results
import running
from results import Cell

from kad_llama import KadLlama

MODES: dict[str, dict[str, Any]] = {"plain": {"spec": False}, "lazy": {"draft": 0}, "auto": {"draft": "auto"}}


def timed(call: Callable[[], list[Any]]) -> running.Run:
    """All texts of a call as one run."""
    begun = time.perf_counter()
    texts = call()
    seconds = time.perf_counter() - begun
    sums = [sum(getattr(text.stats, name) for text in texts) for name in ("tokens", "base_passes", "aligned_passes")]
    return running.Run(sums[0], seconds, *sums[1:])


def ways(kad: KadLlama, question: str, keywords: dict[str, Any], n: int) -> dict[str, Callable[[], list[Any]]]:
    """The n texts of a question, made in two ways."""
    return {
        "together": lambda: list(kad.generate(question, n=n, **keywords)),
        "one by one": lambda: [kad.generate(question, text_number=i, **keywords) for i in range(n)],
    }


def compare(kad: KadLlama, given: argparse.Namespace) -> dict[str, dict[str, Cell]]:
    """By mode: rounds of both ways, each as often the first; round -1 is not counted."""
    found = {mode: {"together": Cell(), "one by one": Cell()} for mode in given.modes.split(",")}
    for number in range(-1, given.rounds):
        question = running.QUESTIONS[max(0, number) % len(running.QUESTIONS)]
        settings = {"seed": number + 1, "max_tokens": given.tokens, "temperature": given.temperature}
        for mode, cells in found.items():
            calls = ways(kad, question, settings | MODES[mode], given.n)
            for name in sorted(calls, reverse=number % 2 == 0):
                run = timed(calls[name])
                if number >= 0:
                    cells[name].runs[number] = run
    return found


HEADER = (
    "pair",
    "rule",
    "mode",
    "texts",
    "positions",
    "together over one by one",
    "together over the first mode together",
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="Q8_0,demo")
    parser.add_argument("--rules", default="base,dual")
    parser.add_argument("--modes", default="plain,lazy,auto", help=f"of {', '.join(MODES)} (default: %(default)s)")
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--temperature", type=float, default=1.0)
    common.keep_arguments(parser)
    given = parser.parse_args()
    rows, medians = [], []
    for name in given.pairs.split(","):
        files = running.pair(name)
        for rule in given.rules.split(","):
            with running.open_pair(files, rule) as kad:
                found = compare(kad, given)
            first = next(iter(found.values()))["together"]
            for mode, cells in found.items():
                gain = results.ratio(cells["together"], cells["one by one"])
                medians += [gain.median] if gain else []
                over = results.ratio(cells["together"], first)
                texts = [str(given.n), str(cells["together"].tokens)]
                rows.append([name, rule, mode, *texts, str(gain or "-"), str(over or "-")])
                print(rows[-1], file=sys.stderr)
    title = f"{given.n} texts at once, temperature {given.temperature:g}"
    common.show(given, "texts", title, HEADER, rows, texts_gain=min(medians, default=0.0))


if __name__ == "__main__":
    main()
