"""The build's half of the binding: kad_llama.h into the C source of a cffi module. Called by CMake, never imported.

``build.py find`` prints ``VERSION;PREFIX`` of the llama-cpp-python in this environment.
``build.py generate HEADER OUTPUT`` writes the C source of ``kad_llama._binding._kad``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

MODULE = "kad_llama._binding._kad"
BEGIN, END = "/* cffi: begin */", "/* cffi: end */"

# What Python needs beyond the header: the package the build saw, and a C function that calls back into Python.
EXTRA = """
static char *const KAD_BUILT_LLAMA_CPP_PYTHON;
extern "Python" int32_t kad_python_progress(double fraction, void * user_data);
"""


def declarations(header: str) -> str:
    """Return the part of the header between the two marks, in the C that cffi reads.

    Comments and ``KAD_API`` go. A ``#define`` with a fractional value becomes a constant, which cffi asks the C
    compiler for; whole numbers it reads itself.
    """
    if header.count(BEGIN) != 1 or header.count(END) != 1:
        raise SystemExit(f"kad_llama.h: expected one line {BEGIN!r} and one line {END!r}")
    text = header.split(BEGIN)[1].split(END)[0]
    text = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    text = re.sub(r"\bKAD_API\b", "", text)
    return re.sub(
        r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+-?\d*\.\d.*$", r"static const double \1;", text, flags=re.MULTILINE
    )


def generate(header: Path, output: Path) -> None:
    """Write the C source of the module to ``output``."""
    import cffi

    builder = cffi.FFI()
    builder.cdef(declarations(header.read_text(encoding="utf-8")) + EXTRA)
    builder.set_source(MODULE, '#include "kad_llama.h"\n')
    builder.emit_c_code(str(output))


def find() -> tuple[str, str]:
    """Return the version of llama-cpp-python and the prefix that holds its CMake package, without importing it."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise SystemExit("llama-cpp-python is not installed in the build environment: pip install llama-cpp-python")
    prefix = Path(spec.origin).resolve().parents[1]
    if not (prefix / "lib" / "cmake" / "llama").is_dir():
        raise SystemExit(
            f"{prefix} has llama_cpp but no lib/cmake/llama, which kad-llama is built against. "
            "Install llama-cpp-python from its source distribution: pip install --no-binary llama-cpp-python"
        )
    return importlib.metadata.version("llama-cpp-python"), prefix.as_posix()


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["find"]:
            print(";".join(find()))
        case ["generate", source, target]:
            generate(Path(source), Path(target))
        case _:
            raise SystemExit(__doc__)
