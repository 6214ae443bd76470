"""Do llama.cpp's threads do a job of ours whole, and each part of it once?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cffi
import law
import llama_cpp
import numpy as np
import pytest

HARNESS = law.ROOT / "tests/cpp/workers.cpp"
HOUR = 3_600_000_000  # microseconds


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> Any:
    """The harness, against the ggml that llama_cpp has loaded."""
    package = Path(llama_cpp.__file__).parent
    include = [law.ROOT / "cpp/include", law.ROOT / "cpp/src", package.parent / "include"]
    sources = [law.ROOT / "cpp/src/runtime/backend_workers.cpp", HARNESS]
    compiled = law.compile_objects(sources, include, objects)
    libraries = [path for name in ("libggml", "libggml-base") for path in (package / "lib").glob(f"{name}.*")]
    wanted = [path for path in libraries if path.suffix in (".so", ".dylib")]
    ffi = cffi.FFI()
    ffi.cdef(law.marked(HARNESS))
    return ffi.dlopen(str(law.link([*compiled, *wanted], tmp_path_factory.mktemp("workers") / "workers.so"))), ffi


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64])
def test_every_part_runs_once(core: Any, n: int) -> None:
    """Three times the same job."""
    lib, ffi = core
    done = np.zeros(n, dtype=np.int32)
    assert lib.workers_job(2, n, HOUR, ffi.from_buffer("int32_t[]", done)) == min(2, n)
    assert done.tolist() == [3] * n


def test_workers_that_take_too_long_to_start_are_left_alone(core: Any) -> None:
    """No job starts in no time: the caller does it all, and says that it is the only one."""
    lib, ffi = core
    done = np.zeros(7, dtype=np.int32)
    assert lib.workers_job(2, 7, 0, ffi.from_buffer("int32_t[]", done)) == 1
    assert done.tolist() == [3] * 7


def test_one_thread_needs_none(core: Any) -> None:
    lib, ffi = core
    assert lib.workers_job(1, 1, HOUR, ffi.new("int32_t[1]")) == 0
