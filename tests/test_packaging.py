"""Is what was installed whole, does it refuse another libllama, and does the library serve a C++ program?"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import llama_cpp
import pytest

import kad_llama
from kad_llama._binding import check, ffi, lib
from kad_llama.errors import LibraryMismatchError

ROOT = Path(__file__).resolve().parents[1]
HEADER = ROOT / "cpp" / "include" / "kad_llama.h"
LLAMA_LIB = Path(llama_cpp.__file__).parent / "lib"


def skip_or_fail(reason: str) -> NoReturn:
    """Skip with a reason; on CI, where the tool should be there, fail."""
    if os.environ.get("KAD_CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def generator() -> ModuleType:
    """The build's helper, which is not installed."""
    path = ROOT / "python" / "kad_llama" / "_binding" / "build.py"
    spec = importlib.util.spec_from_file_location("kad_build", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_kad_llama(**environment: str) -> subprocess.CompletedProcess[str]:
    """Import the package in a process of its own, outside the source folder."""
    return subprocess.run(
        [sys.executable, "-c", "import kad_llama"],
        env={**os.environ, **environment},
        cwd=Path(sys.prefix),
        capture_output=True,
        text=True,
        timeout=120,
    )


# ---- The module ------------------------------------------------------------------------------------------------------


def test_the_module_holds_every_function_of_the_header() -> None:
    names = re.findall(r"^KAD_API\b[^;(]*?\b(kad_\w+)\s*\(", HEADER.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert len(names) == HEADER.read_text(encoding="utf-8").count("\nKAD_API ")
    assert [name for name in names if not hasattr(lib, name)] == []


def test_the_module_holds_the_constants_of_the_header() -> None:
    assert lib.KAD_RULE_TEMPERATURE_SAMPLING == -1.0
    assert (lib.KAD_OK, lib.KAD_INTERNAL_ERROR) == (0, 11)
    assert ffi.sizeof("kad_engine_params") > ffi.sizeof("kad_model_params") > 0


def test_the_declarations_are_cut_between_the_marks() -> None:
    text = """a;
/* cffi: begin */
/* a comment */
#define KAD_X -1.5
#define KAD_N 3
KAD_API int f(void); // another
/* cffi: end */ b;"""
    cut = generator().declarations(text)
    assert " ".join(cut.split()) == "static const double KAD_X; #define KAD_N 3 int f(void);"


def test_a_header_without_marks_is_refused() -> None:
    with pytest.raises(SystemExit, match="cffi: begin"):
        generator().declarations("int f(void);")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ELF files")
def test_the_module_carries_no_path_of_the_build() -> None:
    from kad_llama._binding import _kad

    if shutil.which("readelf") is None:
        skip_or_fail("readelf is not installed: apt install binutils")
    dynamic = subprocess.run(["readelf", "-d", _kad.__file__], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"(?:RPATH|RUNPATH).*\[(.*)\]", dynamic) == ["$ORIGIN/../../llama_cpp/lib"]
    assert "libllama.so" in dynamic
    assert "libggml-cpu" not in dynamic, "the module is tied to one backend"
    assert ".abi3." in Path(_kad.__file__).name


# ---- Versions --------------------------------------------------------------------------------------------------------


def test_versions_agree() -> None:
    version = importlib.metadata.version("kad-llama")
    assert ffi.string(lib.kad_version()).decode() == version
    assert kad_llama.__version__ == version
    assert f" VERSION {version} " in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def test_the_pins_of_the_build_and_of_the_run_are_one() -> None:
    built = ffi.string(lib.KAD_BUILT_LLAMA_CPP_PYTHON).decode()
    assert built == llama_cpp.__version__ == importlib.metadata.version("llama-cpp-python")
    pins = re.findall(r'"llama-cpp-python([^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert pins == [f"=={built}"] * 2


def test_the_loaded_libllama_is_the_one_of_the_build() -> None:
    info = ffi.new("kad_library_info *")
    assert lib.kad_library(info) == lib.KAD_OK
    assert ffi.string(info.built_llama_version) == ffi.string(info.loaded_llama_version)
    assert ffi.string(info.built_llama_commit) == ffi.string(info.loaded_llama_commit)
    assert lib.kad_library_check() == lib.KAD_OK
    check()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_libllama_is_mapped_once() -> None:
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    files = {line.split()[-1] for line in maps.splitlines() if "/libllama.so" in line}
    assert len(files) == 1, files
    assert Path(files.pop()).parent == LLAMA_LIB.resolve()


# ---- Another libllama ------------------------------------------------------------------------------------------------


def test_another_package_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    monkeypatch.setattr(llama_cpp, "__version__", "0.3.1")
    built = ffi.string(lib.KAD_BUILT_LLAMA_CPP_PYTHON).decode()
    with pytest.raises(LibraryMismatchError) as caught:
        check()
    assert f"llama-cpp-python {built}, found 0.3.1" in str(caught.value)
    assert f"pip install --force-reinstall --no-deps llama-cpp-python=={built}" in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="patches ELF files")
@pytest.mark.parametrize(("library", "field"), [("libllama", "version"), ("libggml-base", "commit")])
def test_a_library_swapped_by_the_environment_is_refused(tmp_path: Path, library: str, field: str) -> None:
    info = ffi.new("kad_library_info *")
    lib.kad_library(info)
    text = ffi.string(getattr(info, f"loaded_llama_{field}"))
    other = text.translate(bytes.maketrans(b"0123456789", b"1234567890")) if text != b"unknown" else b"strange"
    shutil.copytree(LLAMA_LIB, tmp_path / "lib")
    for path in (tmp_path / "lib").glob(f"{library}.so*"):
        content = path.read_bytes()
        assert b"\0" + text + b"\0" in content
        path.write_bytes(content.replace(b"\0" + text + b"\0", b"\0" + other + b"\0"))
    done = import_kad_llama(LLAMA_CPP_LIB_PATH=str(tmp_path / "lib"))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "LibraryMismatchError" in last
    assert text.decode() in last, "the version of the build is missing"
    assert other.decode() in last, "the version found is missing"
    assert "unset LLAMA_CPP_LIB_PATH" in last


def test_an_equal_copy_named_by_the_environment_is_taken() -> None:
    done = import_kad_llama(LLAMA_CPP_LIB_PATH=str(LLAMA_LIB))
    assert done.returncode == 0, done.stderr


def test_a_missing_libllama_is_named(tmp_path: Path) -> None:
    done = import_kad_llama(LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "LibraryMismatchError" in last
    assert str(tmp_path) in last
    assert "unset LLAMA_CPP_LIB_PATH" in last


# ---- The library alone -----------------------------------------------------------------------------------------------


def test_a_cpp_program_finds_and_uses_the_installed_library(programs: Path) -> None:
    program = programs / "example"
    usage = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert usage.returncode == 2
    assert "usage:" in usage.stderr

    missing = subprocess.run([program, "no.gguf", "none.gguf", "Hello"], capture_output=True, text=True, timeout=60)
    assert missing.returncode == 1
    assert "no.gguf" in missing.stderr
