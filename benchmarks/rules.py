"""Microseconds per position of every rule, and how many passes over the row that is.

    python benchmarks/rules.py [--repeats 15] [--compiler c++]

A pass is what rule base costs: reading the base's row once for its largest logit and its normaliser. A rule's cost is
that of every row it looks at and of its decision; what the draw does with the set is not in it. rules.cpp is compiled
with the sources of the core as the library is (-O3, no contraction) and takes processor time inside, so neither calls
from Python nor other programs count. The median of repeats, in which rules, rows and sizes take turns.

Rows: one token that has nearly everything (peaked), a normal spread of 1 (flat), logits that are all but equal beside
one impossible and one high token (clustered: the worst case found for primal), all logits equal (equal).
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import tempfile
from pathlib import Path

import common
import numpy as np
from numpy.typing import NDArray

from kad_llama import reference

ROOT = Path(__file__).resolve().parents[1]
SIZES = (32_768, 131_072, 262_144)
UNIT = -1

Row32 = NDArray[np.float32]


def compile_core(compiler: str, folder: Path) -> ctypes.CDLL:
    """rules.cpp with the core, as a library."""
    sources = [*sorted((ROOT / "cpp/src/core").glob("*.cpp")), Path(__file__).with_suffix(".cpp")]
    include = [f"-I{ROOT / 'cpp/include'}", f"-I{ROOT / 'cpp/src'}"]
    flags = ["-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-fPIC", "-shared", *include]
    subprocess.run([compiler, *flags, *map(str, sources), "-o", str(folder / "rules.so")], check=True)
    library = ctypes.CDLL(str(folder / "rules.so"))
    library.microseconds.restype = ctypes.c_double
    pointers = [ctypes.c_void_p] * 3
    library.microseconds.argtypes = [ctypes.c_int, ctypes.c_double, *pointers, ctypes.c_size_t, ctypes.c_int]
    return library


def base_rows(size: int) -> dict[str, Row32]:
    generator = np.random.default_rng(size)
    normal = generator.standard_normal(size)
    peaked, clustered = 3 * normal, 1e-3 * normal
    peaked[size // 3] += 25
    clustered[size // 3], clustered[size // 2] = 5, -np.inf
    rows = {"peaked": peaked, "flat": normal, "clustered": clustered, "equal": np.zeros(size)}
    return {kind: row.astype(np.float32) for kind, row in rows.items()}


def measure(library: ctypes.CDLL, repeats: int) -> dict[tuple[int, str, int], float]:
    """Median microseconds by (size, kind of row, rule kind)."""
    taken: dict[tuple[int, str, int], list[float]] = {}
    for _ in range(repeats):
        for size in SIZES:
            others = (3 * np.random.default_rng(1).standard_normal((2, size))).astype(np.float32)
            for kind, row in base_rows(size).items():
                pointers = [r.ctypes.data for r in (row, *others)]
                for number, rule in [(UNIT, "base"), *enumerate(reference.RULES)]:
                    threshold = reference.RULES[rule].threshold
                    once = library.microseconds(number, threshold, *pointers, size, 1)
                    taken.setdefault((size, kind, number), []).append(once)
    return {key: statistics.median(values) for key, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--compiler", default="c++")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        median = measure(compile_core(arguments.compiler, Path(folder)), arguments.repeats)
    kinds = list(dict.fromkeys(kind for _, kind, _ in median))
    for size in SIZES:
        rows = [["one pass", *(f"{median[size, kind, UNIT]:.0f}" for kind in kinds)]]
        for number, rule in enumerate(reference.RULES):
            if rule in ("base", "aligned"):  # they decide nothing
                continue
            took = [(median[size, kind, number], median[size, kind, UNIT]) for kind in kinds]
            rows.append([rule, *("-" if us < 0 else f"{us:.0f} ({us / unit:.1f})" for us, unit in took)])
        print(f"\n{size} tokens: microseconds (passes)\n")
        common.table(["rule", *kinds], rows)


if __name__ == "__main__":
    main()
