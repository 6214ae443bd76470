"""Pieces that were tokenised before are remembered: never as something else, not even after a tokeniser that failed."""

from __future__ import annotations

from pathlib import Path

import cffi
import law
import pytest

HARNESS = law.ROOT / "tests/cpp/text_tokens.cpp"


@pytest.mark.parametrize("period", [0, 2, 3, 7])
def test_a_failure_leaves_nothing_behind(period: int, tmp_path: Path, objects: Path) -> None:
    include = [law.ROOT / "cpp/include", law.ROOT / "cpp/src"]
    sources = [HARNESS, *(law.ROOT / "cpp/src/runtime" / name for name in ("text_bridge.cpp", "utf8.cpp"))]
    library = law.link(law.compile_objects(sources, include, objects), tmp_path / "text_tokens.so")
    ffi = cffi.FFI()
    ffi.cdef(law.marked(HARNESS))
    failures = ffi.new("int32_t *")
    assert ffi.dlopen(str(library)).text_tokens_wrong(period, failures) == 0
    assert (failures[0] > 100) == (period > 0)
