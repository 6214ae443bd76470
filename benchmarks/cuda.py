"""The same comparison on a machine with an NVIDIA card, with a base of several billion parameters.

    python benchmarks/cuda.py [--pair F16x64] [--rules base,dual]      # says what it does first; --dry-run stops there

NOT RUN YET: nobody with such a card has tried this script. What can be checked without one is (tests/test_benchmarks.py):
the commands it gives, the names of the pairs and their sizes.

Before it, in a fresh environment, with the CUDA toolkit and a compiler installed:

    export CMAKE_ARGS="-DGGML_CUDA=on"
    pip install --no-cache-dir --force-reinstall llama-cpp-python==0.3.36
    pip install scikit-build-core cffi cmake ninja && pip install --no-build-isolation ".[demo,test,bench]"

CMAKE_ARGS stays set, so that llama.cpp's own programs are built for the card too. The script widens SmolLM2-135M 64 times
(5 billion parameters), runs peers.py on it, and prints the ratios with the card's
name. Results go to the folder `cuda` beside docs/results.json and can be read there as a page.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import common
import running

# Of SmolLM2-135M: what the three matrices of all feed-forward blocks hold, and the rest.
FEED_FORWARD = 30 * 3 * 576 * 1536
REST = 134_515_008 - FEED_FORWARD
FILE = Path(__file__).resolve().parents[1] / "docs" / "cuda" / "results.json"


def parameters(name: str) -> int:
    """Parameters of a widened pair's base."""
    return REST + running.widening(name)[1] * FEED_FORWARD


def commands(pair: str, rules: str) -> list[list[str]]:
    """What is run, one after the other."""
    peers = [sys.executable, str(Path(__file__).with_name("peers.py"))]
    file = ["--file", str(FILE)]
    return [[*peers, "run", "--pairs", pair, "--rules", rules, *file], [*peers, "page", *file]]


def ratios(file: Path) -> list[list[str]]:
    """One line per candidate: times the base alone."""
    from results import Store, ratio

    return [
        [group.pair, group.rule, candidate, str(ratio(cell, cells.get(running.BASE)) or "-")]
        for group, cells in Store(file).cells.items()
        for candidate, cell in cells.items()
        if cell.runs
    ]


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", default="F16x64")
    parser.add_argument("--rules", default="base,dual")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    given = parser.parse_args(arguments)
    print(f"base: {parameters(given.pair) / 1e9:.1f} B parameters")
    todo = commands(given.pair, given.rules)
    for command in todo:
        print(" ".join(command))
    if given.dry_run:
        return
    if running.backend() == "CPU":
        raise SystemExit("llama-cpp-python was built without CUDA; see this script's first lines")
    for command in todo:
        subprocess.run(command, check=True)
    print(f"\n{running.backend()}\n")
    common.table(["pair", "rule", "candidate", "times the base alone"], ratios(FILE))


if __name__ == "__main__":
    main()
