"""Is the libllama in this process the one that kad-llama was built against?

llama.h passes structs by value and has no version macro: another libllama would corrupt the stack without a word. So
versions are compared before the first call into it, and a difference is an error that names the command to mend it.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from typing import Any, NoReturn

from kad_llama.errors import LibraryMismatchError

_PACKAGE = "llama-cpp-python"
_PATH_VARIABLE = "LLAMA_CPP_LIB_PATH"
_REBUILD = (
    "pip install scikit-build-core cffi cmake ninja && pip install --force-reinstall --no-deps --no-build-isolation .   "
    "(in kad-llama's source folder)"
)
_loaded: tuple[Any, Any] | None = None


def load() -> tuple[Any, Any]:
    """Load llama-cpp-python's libllama, then the extension, and return the extension's ``(ffi, lib)``.

    The order matters on Linux: the extension asks for ``libllama.so.0`` by name, and gets the one already mapped.

    Raises
    ------
    LibraryMismatchError
        If either cannot be loaded.
    """
    global _loaded
    if _loaded is None:
        _load_llama_cpp()
        try:
            module = importlib.import_module("kad_llama._binding._kad")
        except ImportError as error:
            _refuse_extension(error)
        _loaded = (module.ffi, module.lib)
    return _loaded


def check() -> None:
    """Compare the llama.cpp of the build with the one loaded; do nothing when they agree.

    Raises
    ------
    LibraryMismatchError
        If they differ. The message has both versions and the command that mends it.
    """
    ffi, lib = load()
    import llama_cpp

    built = ffi.string(lib.KAD_BUILT_LLAMA_CPP_PYTHON).decode()
    found = str(llama_cpp.__version__)
    if found != built:
        raise LibraryMismatchError(
            f"kad-llama was built against llama-cpp-python {built}, found {found} in {_folder(llama_cpp)}. {_mend()}"
        )
    if lib.kad_library_check() != lib.KAD_OK:
        raise LibraryMismatchError(
            f"kad-llama was built against {_built(ffi, lib)}, found {_found(ffi, lib)}. {_mend()}"
        )


def _load_llama_cpp() -> None:
    try:
        importlib.import_module("llama_cpp")
    except ModuleNotFoundError as error:
        if error.name != "llama_cpp":
            raise
        raise LibraryMismatchError(
            f"kad-llama needs llama-cpp-python, which is not installed. Mend it with: pip install {_pin()}"
        ) from None
    except (OSError, RuntimeError, AttributeError) as error:  # no libllama there, or not one of its version
        raise LibraryMismatchError(f"llama-cpp-python could not load its libllama: {error}. {_mend()}") from None


def _refuse_extension(error: ImportError) -> NoReturn:
    """Say why the extension cannot be loaded."""
    if isinstance(error, ModuleNotFoundError) and error.name == "kad_llama._binding._kad":
        raise LibraryMismatchError(
            f"kad-llama's compiled part is missing from {os.path.dirname(__file__)}: this is a source folder, or an "
            "installation that was interrupted. Mend it with: pip install --force-reinstall --no-deps .   "
            "(in kad-llama's source folder), and start Python elsewhere than in python/"
        ) from None
    raise LibraryMismatchError(
        f"kad-llama's compiled part does not fit the libllama of this environment: {error}. {_mend()}"
    ) from None


def _info(ffi: Any, lib: Any) -> Any:
    info = ffi.new("kad_library_info *")
    lib.kad_library(info)
    return info


def _describe(ffi: Any, version: Any, commit: Any) -> str:
    name = ffi.string(version).decode(errors="replace") or "of an unknown version"
    return f"llama.cpp {name} (commit {ffi.string(commit).decode(errors='replace') or 'unknown'})"


def _built(ffi: Any, lib: Any) -> str:
    info = _info(ffi, lib)
    return _describe(ffi, info.built_llama_version, info.built_llama_commit)


def _found(ffi: Any, lib: Any) -> str:
    info = _info(ffi, lib)
    return _describe(ffi, info.loaded_llama_version, info.loaded_llama_commit)


def _folder(package: Any) -> str:
    return os.path.dirname(str(package.__file__))


def _pin() -> str:
    """Return the requirement that kad-llama's own metadata names, "llama-cpp-python==0.3.36" for instance."""
    try:
        requirements = importlib.metadata.requires("kad-llama") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    return next((line.split(";")[0].strip() for line in requirements if line.startswith(_PACKAGE)), _PACKAGE)


def _mend() -> str:
    """Return the sentences that say how to get the right library back."""
    swapped = os.environ.get(_PATH_VARIABLE)
    if swapped is not None:
        return f"{_PATH_VARIABLE}={swapped!r} puts another libllama in its place. Mend it with: unset {_PATH_VARIABLE}"
    return (
        f"Mend it with: pip install --force-reinstall --no-deps {_pin()}   "
        f"or build kad-llama against the one installed: {_REBUILD}"
    )
