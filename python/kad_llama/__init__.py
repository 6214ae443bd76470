"""A large base GGUF, aligned at inference time by a small aligned GGUF.

>>> from kad_llama import KadLlama
>>> with KadLlama("base.gguf", "aligned.gguf") as kad:  # doctest: +SKIP
...     print(kad.generate("Why is the sky blue?").text)
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kad_llama._binding import check as _check_library
from kad_llama._binding import ffi as _ffi
from kad_llama._binding import lib as _lib

_check_library()  # before the first call into llama.cpp
# llama-cpp-python prints llama.cpp's whole log until someone sets a level; leave that to the program if it did.
if logging.getLogger("llama-cpp-python").level == logging.NOTSET:
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)

from kad_llama import errors  # noqa: E402
from kad_llama._binding.calls import check, text  # noqa: E402
from kad_llama.errors import KadError  # noqa: E402
from kad_llama.files import FileInfo, PassInfo, inspect_file, measure_passes  # noqa: E402
from kad_llama.generation import Generation, Stats, Token  # noqa: E402
from kad_llama.knapsack import Knapsack, knapsack  # noqa: E402
from kad_llama.logits_processor import KadLogitsProcessor  # noqa: E402
from kad_llama.rules import RULES, Rule, deferral, mixture  # noqa: E402
from kad_llama.scoring import Score, ScoredToken  # noqa: E402
from kad_llama.session import KadLlama, ModelInfo, VocabInfo  # noqa: E402
from kad_llama.stream import Stream  # noqa: E402

__version__ = text(_lib.kad_version())


@dataclass(frozen=True)
class LibraryInfo:
    """What kad-llama was built against, and what was loaded."""

    built_llama_version: str
    built_llama_commit: str
    loaded_llama_version: str
    loaded_llama_commit: str
    backends: str
    system_info: str


def library_info() -> LibraryInfo:
    """Return the versions of llama.cpp, its backends, and its line about instruction sets."""
    info = _ffi.new("kad_library_info *")
    check(_lib.kad_library(info))
    return LibraryInfo(
        text(info.built_llama_version),
        text(info.built_llama_commit),
        text(info.loaded_llama_version),
        text(info.loaded_llama_commit),
        text(info.backends),
        text(info.system_info),
    )


__all__ = [
    "RULES",
    "FileInfo",
    "Generation",
    "KadError",
    "KadLlama",
    "KadLogitsProcessor",
    "Knapsack",
    "LibraryInfo",
    "ModelInfo",
    "PassInfo",
    "Rule",
    "Score",
    "ScoredToken",
    "Stats",
    "Stream",
    "Token",
    "VocabInfo",
    "__version__",
    "deferral",
    "errors",
    "inspect_file",
    "knapsack",
    "library_info",
    "measure_passes",
    "mixture",
]
