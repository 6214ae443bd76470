"""pi inside a present llama-cpp-python program: a logits processor for ``Llama.create_completion``."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check
from kad_llama.errors import EvaluationError, InvalidArgumentError, ModelError, StateError
from kad_llama.files import default_threads, inspect_file
from kad_llama.rules import RULES, c_rule

__all__ = ["KadLogitsProcessor"]

N_CTX = 4096
FAR = 1e6  # below the end of the text: probability 0 at any temperature under 1000


class KadLogitsProcessor:
    """Turns the logits of a ``llama_cpp.Llama``, the base, into log pi: the large model, aligned by a small one.

    >>> llama = llama_cpp.Llama("base.gguf", n_ctx=4096)  # doctest: +SKIP
    >>> with KadLogitsProcessor("aligned.gguf", base=llama) as kad:  # doctest: +SKIP
    ...     answer = llama.create_completion(
    ...         prompt, logits_processor=[kad], temperature=1, top_k=0, top_p=1, min_p=0
    ...     )
    ...     kad.raise_if_failed()

    The aligned model gets the very ids that the base evaluated, so the prompt should be in its chat template. It runs in a
    context of its own and keeps what two calls have in common, so one processor serves any number of completions, one at a
    time.

    Parameters
    ----------
    aligned : str, os.PathLike or llama_cpp.Llama
        The small aligned model: a GGUF file, or a Llama, whose weights and settings are used and whose context is left
        alone. It must stay open as long as the processor.
    rule, threshold, rule_temperature
        As for `KadLlama`: see `kad_llama.RULES`. The rule temperature is a number > 0; "sampling" is refused, since the
        temperature of the completion is not known here.
    base : llama_cpp.Llama or None
        The Llama it will be used with. Then the vocabularies are compared now, and what cannot work is refused at once.
        Without it only their sizes are compared, at the first row.
    reference : str, os.PathLike, llama_cpp.Llama or None
        For rule "implicit-reward" alone: the small model before alignment.
    n_ctx : int or None
        Most tokens of prompt and text. None: the base's n_ctx where it is known, else 4096; at most what the model was
        trained on.
    n_threads : int or None
        None: as the Llama given as the model, else as base, else the physical cores.
    n_batch : int
        Tokens per pass while a prompt is evaluated.
    n_gpu_layers : int or None
        For models given as files; None is all, where the backend can offload.

    Raises
    ------
    InvalidArgumentError
        For values out of range, vocabularies that differ, a missing or needless reference, a Llama with a draft model (as
        base) or with LoRA (as aligned or reference).
    FileError, ModelError
        For files that cannot be used.

    Notes
    -----
    With ``temperature=1, top_k=0, top_p=1, min_p=0`` (Llama's defaults are 0.8, 40, 0.95 and 0.05) the law is
    `KadLlama.generate`'s at temperature 1. Its other defaults (typical_p 1, no penalties, no mirostat) change nothing; set
    otherwise, they act on pi, not on each speaker. typical_p below 1 is undefined in llama.cpp where tokens are impossible.

    llama_cpp drops every logits processor when ``logit_bias`` is given, without a word: `calls` stays at 0. Its
    ``draft_model`` shows a processor the same ids for several positions: not to be combined. The ``logprobs`` it reports are
    the base's own, not pi's.

    llama_cpp also swallows what a processor raises. Here the error is kept, the text ends (only end of generation is
    possible), and `raise_if_failed` raises it.
    """

    def __init__(
        self,
        aligned: str | os.PathLike[str] | llama_cpp.Llama,
        *,
        rule: str = "dual",
        threshold: float | None = None,
        rule_temperature: float = 1.0,
        base: llama_cpp.Llama | None = None,
        reference: str | os.PathLike[str] | llama_cpp.Llama | None = None,
        n_ctx: int | None = None,
        n_threads: int | None = None,
        n_batch: int = 512,
        n_gpu_layers: int | None = None,
    ) -> None:
        self._sampler = ffi.NULL
        self._contexts: list[_Context] = []
        self._error: BaseException | None = None
        self._end = -1
        self._base = base
        self.calls = 0  # rows turned into log pi; 0 after a completion: llama_cpp dropped the processor
        params = ffi.new("kad_sampler_params *", lib.kad_sampler_default_params())
        params.rule = c_rule(rule, threshold, rule_temperature)[0]
        _check_reference(rule, reference)
        if base is not None:
            _check_base(base)
            params.base_model = ffi.cast("const struct llama_model *", base.model)
            n_ctx = base.n_ctx() if n_ctx is None else n_ctx
        sizes = {
            "n_ctx": N_CTX if n_ctx is None else _whole("n_ctx", n_ctx),
            "n_batch": _whole("n_batch", n_batch),
            "n_threads": None if n_threads is None else _whole("n_threads", n_threads),
            "default_threads": default_threads() if base is None else base.n_threads,
        }
        _check_layers(n_gpu_layers, aligned, reference)
        try:
            params.aligned = self._open("aligned", aligned, n_gpu_layers, sizes)
            if reference is not None:
                params.reference = self._open("reference", reference, n_gpu_layers, sizes)
            out = ffi.new("struct llama_sampler **")
            check(lib.kad_sampler_init(params, out))
            self._sampler = out[0]
            end = ffi.new("int32_t *")
            check(lib.kad_sampler_end(self._sampler, end))
            self._end = int(end[0])
        except BaseException:
            self.close()
            raise

    def __call__(self, input_ids: NDArray[np.intc], scores: NDArray[np.single]) -> NDArray[np.single]:
        """Return log pi after `input_ids` for the base's logits `scores`: a new array of their shape, (V,).

        Never raises. After an error, until `raise_if_failed`, only end of generation is possible.
        """
        if self._error is None:
            try:
                return self._log_pi(input_ids, scores)
            except BaseException as error:  # Ctrl-C too: the wrapper would swallow it and go on with the base alone
                self._error = error
        return self._forced_end(scores)

    def raise_if_failed(self) -> None:
        """Raise what went wrong inside since the last time, and forget it; do nothing if nothing did.

        Call it after every completion: the text of one that failed ended early.
        """
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Free the sampler, its contexts, and the models that were loaded here. Closing twice does nothing."""
        sampler, self._sampler = self._sampler, ffi.NULL
        # What looks at weights that are gone cannot be freed without touching them: it is left where it is.
        if sampler != ffi.NULL and all(context.open for context in self._contexts):
            llama_cpp.llama_sampler_free(_ctypes_pointer(sampler))
        while self._contexts:
            self._contexts.pop().close()

    def __enter__(self) -> KadLogitsProcessor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_contexts"):
            self.close()

    def _open(self, role: str, model: Any, n_gpu_layers: int | None, sizes: dict[str, int | None]) -> Any:
        context = _Context(role, model, n_gpu_layers, sizes)
        self._contexts.append(context)
        return ffi.cast("struct llama_context *", context.pointer)

    def _log_pi(self, input_ids: NDArray[np.intc], scores: NDArray[np.single]) -> NDArray[np.single]:
        if self._sampler == ffi.NULL:
            raise StateError("this KadLogitsProcessor is closed")
        if self._base is not None and self._base.draft_model is not None:
            raise InvalidArgumentError(_NO_DRAFT)
        for context in self._contexts:
            context.check_open()
        ids = np.ascontiguousarray(input_ids, dtype=np.int32)
        row = np.array(scores, dtype=np.float32)  # a view into llama_cpp's candidates, not contiguous
        check(
            lib.kad_sampler_row(
                self._sampler,
                ffi.cast("const int32_t *", ffi.from_buffer(ids)),
                ids.size,
                ffi.cast("float *", ffi.from_buffer(row, require_writable=True)),
                row.size,
            )
        )
        self.calls += 1
        return row

    def _forced_end(self, scores: NDArray[np.single]) -> NDArray[np.single]:
        # Not -inf: under a grammar that forbids the end here, a row of nothing but -inf makes llama.cpp end the process.
        row = np.where(np.isfinite(scores), scores - np.float32(FAR), -np.inf).astype(np.float32)
        if 0 <= self._end < row.size:
            row[self._end] = 0
        return row


_NO_DRAFT = (
    "base has a draft_model, which shows a logits processor the same ids for several positions; load it without one "
    "(KadLlama drafts with the aligned model itself)"
)


class _Context:
    """A context over a file's model, which is then ours, or over a Llama's, which is not."""

    def __init__(self, role: str, model: Any, n_gpu_layers: int | None, sizes: dict[str, int | None]) -> None:
        self.role = role
        self.pointer: int | None = None
        self._loaded: int | None = None
        self._llama: llama_cpp.Llama | None = model if isinstance(model, llama_cpp.Llama) else None
        if self._llama is not None:
            self.check_open()
            if self._llama.lora_path is not None:
                raise InvalidArgumentError(
                    f"{role} is a Llama with LoRA, which no second context has; merge it into a GGUF"
                )
            weights: Any = self._llama.model
            params = _copy(self._llama.context_params)
        else:
            weights = self._load(model, n_gpu_layers)
            params = llama_cpp.llama_context_default_params()
        try:
            self.pointer = self._make(weights, params, sizes)
        except BaseException:
            self.close()
            raise

    def _load(self, path: Any, n_gpu_layers: int | None) -> int:
        if not isinstance(path, (str, os.PathLike)):
            raise InvalidArgumentError(
                f"{self.role} is {path!r}; expected the path of a GGUF file or a llama_cpp.Llama"
            )
        inspect_file(path)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = -1 if n_gpu_layers is None else n_gpu_layers
        params.use_extra_bufts = bool(lib.kad_extra_buffers_work())
        self._loaded = llama_cpp.llama_model_load_from_file(os.fsencode(Path(path)), params)
        if not self._loaded:
            raise ModelError(f"{self.role} {os.fspath(path)!r} cannot be loaded; fetch it again")
        return int(self._loaded)

    def _make(self, model: Any, params: Any, sizes: dict[str, int | None]) -> int:
        trained = llama_cpp.llama_model_n_ctx_train(model)
        n_ctx = sizes["n_ctx"] or N_CTX
        params.n_ctx = min(n_ctx, trained) if trained > 0 else n_ctx
        params.n_batch = params.n_ubatch = min(sizes["n_batch"] or n_ctx, params.n_ctx)
        params.n_seq_max = 1
        params.embeddings = False
        params.swa_full = True  # so that a second completion can keep what it has in common with the first
        if self._llama is None or sizes["n_threads"] is not None:
            params.n_threads = params.n_threads_batch = sizes["n_threads"] or sizes["default_threads"]
        pointer = llama_cpp.llama_init_from_model(model, params)
        if not pointer:
            raise EvaluationError(
                f"llama.cpp could not make a context of {params.n_ctx} tokens for the {self.role} model"
            )
        return int(pointer)

    @property
    def open(self) -> bool:
        """Are the weights there? Those of a Llama go when it is closed."""
        return self._llama is None or self._llama._model.model is not None

    def check_open(self) -> None:
        if not self.open:
            raise StateError(f"the Llama given as {self.role} is closed; keep it open as long as the processor")

    def close(self) -> None:
        if self.pointer is not None and self.open:
            llama_cpp.llama_free(self.pointer)
        if self._loaded:
            llama_cpp.llama_model_free(self._loaded)
        self.pointer = self._loaded = None


def _copy(params: Any) -> Any:
    return type(params).from_buffer_copy(params)


def _ctypes_pointer(sampler: Any) -> Any:
    return ctypes.cast(int(ffi.cast("uintptr_t", sampler)), llama_cpp.llama_sampler_p_ctypes)


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 < value < 2**31:
        raise InvalidArgumentError(f"{name} is {value!r}; expected a whole number > 0")
    return int(value)


def _check_base(base: object) -> None:
    if not isinstance(base, llama_cpp.Llama):
        raise InvalidArgumentError(f"base is {base!r}; expected the llama_cpp.Llama that the processor is used with")
    if base._model.model is None:
        raise StateError("the Llama given as base is closed")
    if base.draft_model is not None:
        raise InvalidArgumentError(_NO_DRAFT)


def _check_reference(rule: str, reference: object) -> None:
    if RULES[rule].reference and reference is None:
        raise InvalidArgumentError(
            f"rule {rule!r} needs a reference: the small model before alignment; reference is None"
        )
    if reference is not None and not RULES[rule].reference:
        raise InvalidArgumentError(f"rule {rule!r} uses no reference; leave it out")


def _check_layers(n_gpu_layers: int | None, *models: object) -> None:
    if n_gpu_layers is None:
        return
    if isinstance(n_gpu_layers, bool) or not isinstance(n_gpu_layers, int) or n_gpu_layers < -1:
        raise InvalidArgumentError(f"n_gpu_layers is {n_gpu_layers!r}; expected -1 (all) or more")
    if all(model is None or isinstance(model, llama_cpp.Llama) for model in models):
        raise InvalidArgumentError(f"n_gpu_layers is {n_gpu_layers!r}, but the models are loaded already; leave it out")
