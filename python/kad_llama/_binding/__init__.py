"""The C library as cffi sees it: ``ffi`` and ``lib``, with everything kad_llama.h declares.

Importing this package maps llama-cpp-python's libllama first and the extension after it, in whatever order the rest of
the package is imported.
"""

from kad_llama._binding.library import check, load

ffi, lib = load()

__all__ = ["check", "ffi", "lib"]
