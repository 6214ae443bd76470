"""What does the exact knapsack cost on real rows, and how far does greedy fall short of it?

    python benchmarks/knapsack.py [--rows 1000] [--budget 0.9]

Rows are p at temperature 1 after each position of texts that lie in this repository: 60 % from SmolLM2-135M-Instruct
(49k tokens), 40 % from gemma-3-270m (262k tokens). Time is CPU time of the calling thread, which is the only one, on rows
of probabilities that are already there. The critical token is the one that the relaxation splits: the least probable
token of greedy's kept set. Nothing is kept on disk.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import common
import llama_cpp
import numpy as np

import kad_llama

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("README.md", "LICENSE", "python/kad_llama/session.py", "cpp/include/kad_llama.h")
CONTEXT = 256  # llama-cpp-python holds all rows of a context: 270 MB at 262k tokens


@dataclass(frozen=True)
class Measured:
    """One row: times in milliseconds, shortfall of greedy relative to the optimum, p of the critical token."""

    exact_ms: float
    greedy_ms: float
    nodes: int
    gap: float
    shortfall: float
    critical: float
    top_deferred: bool


def rows(path: Path, count: int) -> Iterator[np.ndarray]:
    """`count` rows of logits, float32, shape (V,): the first positions of each text in turn."""
    model = llama_cpp.Llama(str(path), n_ctx=CONTEXT, n_batch=CONTEXT, logits_all=True, verbose=False)
    share = -(-count // len(TEXTS))
    for name in TEXTS:
        ids = model.tokenize((ROOT / name).read_bytes())
        left = min(share, count)
        for start in range(0, left, CONTEXT):
            window = ids[start : start + min(CONTEXT, left - start)]
            model.reset()
            model.eval(window)
            yield from np.array(model.scores[: len(window)], dtype=np.float32)
        count -= left
    model.close()


def measure(logits: np.ndarray, budget: float) -> Measured:
    """Solve one row both ways."""
    p = kad_llama.mixture(logits, logits, rule="base")
    begun = time.thread_time()
    exact = kad_llama.knapsack(p, budget)
    middle = time.thread_time()
    greedy = kad_llama.knapsack(p, budget, method="greedy")
    end = time.thread_time()
    shortfall = (exact.value - greedy.value) / exact.value if exact.value > 0 else 0.0
    critical = float(p[greedy.kept].min()) if greedy.kept.any() else 0.0
    return Measured(
        1e3 * (middle - begun),
        1e3 * (end - middle),
        exact.nodes,
        exact.gap,
        shortfall,
        critical,
        not exact.kept[int(np.argmax(p))],
    )


def at(values: Sequence[float], form: str) -> str:
    """Median, 95th percentile and greatest."""
    return " / ".join(f"{x:{form}}" for x in (*np.percentile(values, (50, 95)), max(values)))


def line(name: str, found: list[Measured]) -> list[str]:
    """One line of the table."""
    return [
        name,
        str(len(found)),
        at([m.exact_ms for m in found], ".2f"),
        at([m.greedy_ms for m in found], ".2f"),
        at([m.nodes for m in found], ".0f"),
        f"{np.mean([m.gap <= 1e-9 for m in found]):.1%}",
        f"{max(m.gap for m in found):.1e}",
        f"{np.mean([m.shortfall > 1e-9 for m in found]):.1%}",
        at([100 * m.shortfall for m in found], ".2f") + " %",
        at([m.critical for m in found], ".3f"),
        f"{np.mean([m.top_deferred for m in found]):.1%}",
    ]


HEADER = (
    "rows of",
    "rows",
    "exact, ms",
    "greedy, ms",
    "nodes",
    "certified",
    "worst gap",
    "greedy falls short",
    "by",
    "p of critical token",
    "argmax deferred",
)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Cost of the exact knapsack on real rows, and greedy's shortfall.")
    parser.add_argument("--rows", type=int, default=1000, help="how many in all (default: %(default)s)")
    parser.add_argument("--budget", type=float, nargs="+", default=[0.9], help="b, one or more (default: 0.9)")
    given = parser.parse_args()
    large = given.rows * 2 // 5
    sources = (
        ("SmolLM2, 49k", common.aligned_file(), given.rows - large),
        ("gemma-3, 262k", common.demo_base_file(), large),
    )
    found: dict[float, dict[str, list[Measured]]] = {b: {name: [] for name, _, _ in sources} for b in given.budget}
    for name, path, count in sources:
        for logits in rows(path, count):
            for budget in given.budget:
                found[budget][name].append(measure(logits, budget))
    print("Columns of three: median / 95th percentile / worst.")
    for budget, by_name in found.items():
        print(f"\nbudget {budget:g}\n")
        together = [m for measured in by_name.values() for m in measured]
        common.table(HEADER, [line(n, m) for n, m in by_name.items()] + [line("all", together)])


if __name__ == "__main__":
    main()
