"""Calls into the library: a status becomes an exception, a C string a str."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kad_llama import errors
from kad_llama._binding import ffi, lib

_ERRORS: dict[int, type[errors.KadError]] = {
    lib.KAD_INVALID_ARGUMENT: errors.InvalidArgumentError,
    lib.KAD_FILE_ERROR: errors.FileError,
    lib.KAD_MODEL_ERROR: errors.ModelError,
    lib.KAD_OUT_OF_MEMORY: errors.OutOfMemoryError,
    lib.KAD_CONTEXT_TOO_SMALL: errors.ContextError,
    lib.KAD_EVALUATION_FAILED: errors.EvaluationError,
    lib.KAD_NOT_A_NUMBER: errors.NotANumberError,
    lib.KAD_LIBRARY_MISMATCH: errors.LibraryMismatchError,
    lib.KAD_BAD_STATE: errors.StateError,
}


def text(pointer: Any) -> str:
    """Return a C string as a str; bytes that are no UTF-8 become U+FFFD."""
    return str(ffi.string(pointer).decode("utf-8", "replace"))


def check(status: int) -> None:
    """Raise what `status` stands for; do nothing for KAD_OK."""
    if status == lib.KAD_OK:
        return
    if status == lib.KAD_INTERRUPTED:
        raise KeyboardInterrupt
    raise _ERRORS.get(status, errors.InternalError)(text(lib.kad_last_error()))


class Progress:
    """Carries a callback into a ``kad_engine_params``, and what it raised back out. Must live as long as the call.

    Without a callback it still lets Python look for Ctrl-C while the library loads.
    """

    def __init__(self, params: Any, callback: Callable[[float], object] | None) -> None:
        self.callback = callback
        self.raised: BaseException | None = None
        self._handle = ffi.new_handle(self)
        params.progress = lib.kad_python_progress
        params.progress_user_data = self._handle

    def check(self, status: int) -> None:
        """Raise what the callback raised, else what `status` stands for."""
        if self.raised is not None:
            raise self.raised
        check(status)


# Python may raise Ctrl-C on the way into the function, before any line of it runs: that ends the loading as well.
@ffi.def_extern(error=0, onerror=lambda kind, value, trace: None)  # type: ignore[untyped-decorator]
def kad_python_progress(fraction: float, user_data: Any) -> int:
    report: Progress = ffi.from_handle(user_data)
    try:
        if report.callback is not None:
            report.callback(fraction)
    except BaseException as error:  # Ctrl-C too: it ends the loading
        report.raised = error
        return 0
    return 1
