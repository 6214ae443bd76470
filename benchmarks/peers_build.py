"""Where do llama.cpp's own speculative programs come from? From the sources that llama-cpp-python was built from.

    python benchmarks/peers_build.py

The wheel holds libllama and no programs. Its source distribution holds all of llama.cpp, so this script fetches that from
the package index, unpacks it into kad-llama's cache folder and builds `llama-speculative-simple` and `llama-speculative`,
once, for some minutes. GGML's options are the ones llama-cpp-python has by default (native, OpenMP, release); CMAKE_ARGS
is passed on, as pip does for llama-cpp-python, so that a CUDA build of one is compared with a CUDA build of the other.
So are CFLAGS and CXXFLAGS. On a processor with AMX it is left out, as `make` leaves it out of llama-cpp-python: GCC compiles
llama.cpp's AMX code to something that crashes (the README says more).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from functools import cache
from pathlib import Path

import platformdirs

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
PROGRAMS = ("llama-speculative-simple", "llama-speculative")
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF",
    "-DLLAMA_BUILD_SERVER=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_EXAMPLES=ON",
)


def home() -> Path:
    """The cache folder's part for this version."""
    return Path(platformdirs.user_cache_dir("kad-llama")) / f"peers-{VERSION}"


def source() -> Path:
    """llama.cpp as it lies inside the source distribution; fetched and unpacked the first time."""
    folder = home() / f"llama_cpp_python-{VERSION}" / "vendor" / "llama.cpp"
    if not folder.is_dir():
        home().mkdir(parents=True, exist_ok=True)
        # pip prepares the package's metadata too, which needs its build requirements; there is no switch against that.
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
        subprocess.run([*pip, "--no-binary", ":all:", "-d", str(home()), f"{PACKAGE}=={VERSION}"], check=True)
        part = home() / "part"
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(next(home().glob("*.tar.gz"))) as archive:
            archive.extractall(part, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(part)
        (part / folder.parents[1].name).rename(folder.parents[1])
    missing = [name for name in PROGRAMS if not (folder / "examples" / name.removeprefix("llama-")).is_dir()]
    if missing:
        raise SystemExit(f"{PACKAGE} {VERSION} holds no sources of {', '.join(missing)}")
    return folder


def cmake() -> str:
    """CMake of the test extra, or the machine's."""
    beside = Path(sys.executable).with_name("cmake")
    found = str(beside) if beside.is_file() else shutil.which("cmake")
    if not found:
        raise SystemExit('cmake is not installed: pip install ".[test]"')
    return found


def build() -> Path:
    """Build what is missing; return the folder of the programs."""
    folder = home() / ("build" + re.sub(r"\W+", "-", os.environ.get("CMAKE_ARGS", "")))
    if not all((folder / "bin" / name).is_file() for name in PROGRAMS):
        print(f"building {' and '.join(PROGRAMS)} (once, some minutes)", file=sys.stderr)
        extra = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
        _logged(folder, [cmake(), "-S", str(source()), "-B", str(folder), *OPTIONS, *extra])
        _logged(folder, [cmake(), "--build", str(folder), "--config", "Release", "-j", jobs, "--target", *PROGRAMS])
    return folder / "bin"


def _flags() -> dict[str, str]:
    """The environment, with AMX turned off where the processor has it."""
    info = Path("/proc/cpuinfo")
    amx = info.is_file() and "amx_tile" in info.read_text(encoding="utf-8")
    off = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16" if amx else ""
    return {name: f"{os.environ.get(name, '')} {off}".strip() for name in ("CFLAGS", "CXXFLAGS")}


def _logged(folder: Path, command: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "build.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | _flags())
    if done.returncode:
        raise SystemExit(f"the build failed; {log.name} says why")


@cache
def version() -> str:
    """llama.cpp's version as its sources say it."""
    text = (source() / "CMakeLists.txt").read_text(encoding="utf-8")
    numbers = [re.search(rf"set\(LLAMA_VERSION_{part}\s+(\d+)\)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(number.group(1) if number else "?" for number in numbers)


if __name__ == "__main__":
    print(build())
