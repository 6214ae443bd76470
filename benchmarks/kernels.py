"""What does reading one row of logits cost, beside NumPy on the same row?

    python benchmarks/kernels.py [--repeats 51] [--compiler c++] [--keep]

Both find the normaliser and the most probable token. The core (Distribution::set, which also keeps block maxima) is
compiled as the library is, its kernels chosen for the machine, and once for each narrower instruction set that the
machine has. NumPy in three ways: in float64, as the core's sums are (x = row.astype(float64), exp(x - x.max()).sum(),
argmax); the same into buffers made beforehand, which spares it the pages of fresh arrays; and in float32 into a buffer,
the cheapest way, with half the bytes and 7 digits.

Processor time of the calling thread, called from Python all alike; the median of repeats in which all take turns. Rows:
a normal spread of 3 and a dozen tokens well above it, as a language model's are. NumPy uses what the machine has; to see
it beside a narrower core: NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL" python benchmarks/kernels.py
(of NumPy 2.4; older ones name AVX512F and its kin). `--keep` adds the table to docs/results.json.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
SIZES = (32_000, 49_152, 128_256, 262_144)
WIDTHS = {"AVX2": ("avx2 fma", "-mavx2 -mfma"), "SSE4.2": ("sse4_2", "-msse4.2")}

Row32 = NDArray[np.float32]
Reader = Callable[[Row32], float]


def compiled(compiler: str, folder: Path, name: str, flags: tuple[str, ...]) -> Reader:
    """The core's reading of a row, compiled with further flags."""
    sources = [ROOT / "cpp/src/core" / file for file in ("kernels.cpp", "logits.cpp")]
    include = [f"-I{ROOT / 'cpp/include'}", f"-I{ROOT / 'cpp/src'}"]
    common_flags = ["-std=c++17", "-O3", "-DNDEBUG", "-ffp-contract=off", "-fPIC", "-shared", *include]
    files = [*map(str, sources), str(Path(__file__).with_suffix(".cpp"))]
    subprocess.run([compiler, *common_flags, *flags, *files, "-o", str(folder / f"{name}.so")], check=True)
    read = ctypes.CDLL(str(folder / f"{name}.so")).read_row
    read.restype = ctypes.c_double
    read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_double]
    return lambda row: read(row.ctypes.data, row.size, 1.0)


def cores(compiler: str, folder: Path) -> dict[str, Reader]:
    """The core as shipped, and narrowed to the instruction sets that this machine has."""
    cpu = Path("/proc/cpuinfo")
    known = cpu.read_text() if cpu.exists() and platform.machine() == "x86_64" else ""
    narrowed = {name: flags for name, (needs, flags) in WIDTHS.items() if set(needs.split()) <= set(known.split())}
    readers = {
        name: compiled(compiler, folder, name, ("-DKAD_ONE_CLONE", *flags.split())) for name, flags in narrowed.items()
    }
    return {"as shipped": compiled(compiler, folder, "shipped", ()), **readers}


def numpy_plain(row: Row32) -> float:
    x = row.astype(np.float64)
    return float(np.exp(x - x.max()).sum()) + int(x.argmax())


def numpy_into(buffer: NDArray[np.floating]) -> Reader:
    """NumPy in the buffer's type, allocating nothing."""

    def read(row: Row32) -> float:
        x = buffer[: row.size]
        top = int(row.argmax())
        np.subtract(row, row[top], out=x, dtype=x.dtype)
        np.exp(x, out=x)
        return float(x.sum()) + top

    return read


def make_row(size: int) -> Row32:
    generator = np.random.default_rng(size)
    row = 3 * generator.standard_normal(size)
    row[generator.integers(0, size, 12)] += generator.uniform(8, 16, 12)
    return row.astype(np.float32)


def measure(readers: dict[str, Reader], repeats: int) -> dict[tuple[int, str], float]:
    """Median microseconds by (size, reader)."""
    rows = {size: make_row(size) for size in SIZES}
    taken: dict[tuple[int, str], list[float]] = {}
    for _ in range(repeats):
        for size, row in rows.items():
            for name, read in readers.items():
                start = time.thread_time_ns()
                read(row)
                taken.setdefault((size, name), []).append((time.thread_time_ns() - start) / 1e3)
    return {key: statistics.median(values) for key, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--compiler", default="c++")
    common.keep_arguments(parser)
    arguments = parser.parse_args()
    numpys = {
        "NumPy": numpy_plain,
        "in a buffer": numpy_into(np.empty(max(SIZES))),
        "in float32": numpy_into(np.empty(max(SIZES), np.float32)),
    }
    with tempfile.TemporaryDirectory() as folder:
        core = cores(arguments.compiler, Path(folder))
        median = measure({**numpys, **core}, arguments.repeats)
    rows = []
    for size in SIZES:
        cells = [f"{median[size, name]:.0f}" for name in numpys]
        for name in core:
            ratios = [f"{median[size, name] / median[size, other]:.2f}" for other in numpys]
            cells.append(f"{median[size, name]:.0f} ({', '.join(ratios)})")
        rows.append([str(size), *cells])
    title = "Reading one row on one thread, microseconds; in brackets as a part of NumPy's three times"
    common.show(arguments, "kernels", title, ["tokens", *numpys, *core], rows)


if __name__ == "__main__":
    main()
