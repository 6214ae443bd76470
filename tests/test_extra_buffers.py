"""Does a libllama whose AMX code ends the process leave ours alive?

The AMX code itself can be tried only on such a machine. What is tried everywhere: the child process in which it is tried.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cffi
import law
import llama_cpp
import pytest

from kad_llama._binding import lib

HARNESS = law.ROOT / "tests/cpp/survives.cpp"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is tried")
def test_a_child_that_dies_is_told_from_one_that_lives(tmp_path: Path, objects: Path) -> None:
    """Also a child that hangs, and although pytest's own fault handler stands ready to report."""
    sources = [law.ROOT / "cpp/src/runtime/extra_buffers.cpp", HARNESS]
    ggml = Path(llama_cpp.__file__).parents[1] / "include"
    include = [law.ROOT / "cpp/include", law.ROOT / "cpp/src", ggml]
    library = law.link(law.compile_objects(sources, include, objects), tmp_path / "survives.so")
    ffi = cffi.FFI()
    ffi.cdef(law.marked(HARNESS))
    # Lazily: the ggml that it multiplies with is not linked, and not called here.
    core = ffi.dlopen(str(library), ffi.RTLD_LAZY)
    assert [core.survives_case(i) for i in range(7)] == [1, 0, 0, 0, 0, 0, 0]


def test_the_answer_is_the_same_every_time() -> None:
    assert lib.kad_extra_buffers_work() in (0, 1)
    assert lib.kad_extra_buffers_work() == lib.kad_extra_buffers_work()
