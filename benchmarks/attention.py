"""How much faster is a pair on a CPU because the aligned model runs without flash attention?

    python benchmarks/attention.py [--pairs demo --rules dual --lengths 0,400,1500] [--keep]

Side by side: the pair as it is opened, and with the aligned model's attention as llama.cpp chooses (its own default). The
variants take turns in being first, from prompts of several lengths: an ordinary question, behind so many words of another
text. Speed counts after the prompt; the time for the prompt stands beside it. `--keep` adds the table to
docs/results.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import copying
import results
import running
from results import Cell

from kad_llama import KadLlama
from kad_llama.files import default_threads

VARIANTS: dict[str, dict[str, Any]] = {"without": {}, "as llama.cpp": {"flash_attn_type": -1}}
MODES: dict[str, dict[str, Any]] = {"plain": {"spec": False}, "auto": {"draft": "auto"}}


def prompt(number: int, words: int) -> str:
    """A question of running.py, behind so many words; they differ from round to round, so that no prompt is reused."""
    texts = " ".join(copying.TEXTS[(number + i) % len(copying.TEXTS)] for i in range(words // 50 + 1)).split()
    return f"Text {number} of {words}. {' '.join(texts[:words])} {running.QUESTIONS[number % len(running.QUESTIONS)]}"


def compare(
    pairs: dict[str, KadLlama], words: int, given: argparse.Namespace
) -> tuple[dict[str, dict[str, Cell]], float]:
    """Cells by mode and variant, and how much longer the prompt takes without; the first round warms up."""
    cells = {mode: {name: Cell() for name in VARIANTS} for mode in MODES}
    longer = []
    for number in range(-1, given.rounds):
        asked, seconds = prompt(number + 1, words), {}
        for name, kad in sorted(pairs.items(), reverse=number % 2 == 0):
            first = kad.generate(asked, max_tokens=1, temperature=given.temperature, seed=0).stats
            seconds[name] = first.prompt_s
            for mode, keywords in MODES.items():
                run = running.Kad(kad, keywords).run(asked, number + 1, given.temperature, given.tokens)
                if number >= 0:
                    cells[mode][name].runs[number] = run
        if number >= 0:
            longer.append(seconds["without"] / seconds["as llama.cpp"])
        print(f"\r{words} words: round {number + 1} of {given.rounds}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return cells, statistics.median(longer)


HEADER = (
    "pair",
    "rule",
    "words before the question",
    "mode",
    "positions",
    "without flash attention over as llama.cpp chooses",
    "base passes, ms/token",
    "aligned passes, ms/token",
    "time for both prompts",
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default="demo")
    parser.add_argument("--rules", default="dual")
    parser.add_argument("--lengths", default="0,400,1500")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--temperature", type=float, default=1.0)
    common.keep_arguments(parser)
    given = parser.parse_args()
    rows = []
    for name in given.pairs.split(","):
        files = running.pair(name)
        for rule in given.rules.split(","):
            common_keywords = {"rule": rule, "n_ctx": 4096, "n_threads": default_threads()}
            pairs = {
                variant: KadLlama(files.base, files.aligned, aligned_params=fields, **common_keywords)
                for variant, fields in VARIANTS.items()
            }
            for words in map(int, given.lengths.split(",")):
                found, longer = compare(pairs, words, given)
                for mode, cells in found.items():
                    ratio = results.ratio(cells["without"], cells["as llama.cpp"])
                    parts = [
                        " and ".join(f"{1e3 * cell.total(part) / cell.total('tokens'):.1f}" for cell in cells.values())
                        for part in ("base_eval_s", "aligned_eval_s")
                    ]
                    tokens = cells["without"].tokens
                    rows.append([name, rule, str(words), mode, str(tokens), str(ratio or "-")])
                    rows[-1] += [*parts, f"{longer:.2f}"]
            for kad in pairs.values():
                kad.close()
    common.show(given, "attention", "The aligned model without flash attention", HEADER, rows)


if __name__ == "__main__":
    main()
