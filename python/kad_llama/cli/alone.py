"""One model in llama.cpp and nothing else: what `kad-llama bench` compares with."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import llama_cpp

from kad_llama._binding import lib
from kad_llama.errors import EvaluationError, ModelError, StateError
from kad_llama.files import fields_of

__all__ = ["AloneRun", "ModelAlone"]


@dataclass(frozen=True)
class AloneRun:
    """Ids said, seconds after the prompt, and those of them inside llama_decode and llama_synchronize."""

    ids: tuple[int, ...]
    seconds: float
    eval_s: float


class ModelAlone:
    """A plain loop of llama_decode and llama.cpp's own sampler chain (temperature, then dist): one token per pass.

    The text does not matter here: it goes on after an end of generation, so that every run has the same length.

    Parameters
    ----------
    path
        A GGUF file.
    n_ctx, n_threads, n_gpu_layers
        As KadLlama has them.
    temperature
        0 takes the best token.
    params
        llama.cpp's own fields by name, as KadLlama takes them in `base_params`.

    Raises
    ------
    ModelError
        When llama.cpp cannot load the file or make a context.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_ctx: int,
        n_threads: int,
        temperature: float,
        n_gpu_layers: int = -1,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self._model: Any = None
        self._context: Any = None
        self.temperature = temperature
        model, context = llama_cpp.llama_model_default_params(), llama_cpp.llama_context_default_params()
        model.n_gpu_layers = n_gpu_layers
        model.use_extra_bufts = bool(lib.kad_extra_buffers_work())
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, 512, 512
        context.n_threads = context.n_threads_batch = n_threads
        context.swa_full = context.no_perf = True  # as the pair's contexts
        for name, value in fields_of(params, "params").items():
            where = context if hasattr(context, name) else model
            setattr(where, name, type(getattr(where, name))(value))
        context.n_batch = min(context.n_batch, n_ctx)
        self._n_batch = context.n_batch
        self._open(os.fspath(path), model, context)

    def _open(self, path: str, model: Any, context: Any) -> None:
        with _log_kept() as errors:
            self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), model)
            if self._model:
                self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            what = "load" if not self._model else f"make a context of {context.n_ctx} tokens for"
            self.close()
            reason = "".join(f": {line}" for line in errors[-1:])
            raise ModelError(f"llama.cpp cannot {what} {path!r}{reason}; free memory, or take a smaller context")

    def __call__(self, ids: Sequence[int], tokens: int, seed: int) -> AloneRun:
        """Evaluate the prompt, then say `tokens` tokens."""
        if self._context is None:
            raise StateError("this model is closed; make a new one")
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), False)
        for begin in range(0, len(ids), self._n_batch):
            self._evaluate(ids[begin : begin + self._n_batch])
        chain = self._chain(seed)
        try:
            said: list[int] = []
            start, evaluating = time.perf_counter(), 0.0
            while len(said) < tokens:
                said.append(llama_cpp.llama_sampler_sample(chain, self._context, -1))
                if len(said) < tokens:
                    evaluating += self._evaluate(said[-1:])
            return AloneRun(tuple(said), time.perf_counter() - start, evaluating)
        finally:
            llama_cpp.llama_sampler_free(chain)

    def _chain(self, seed: int) -> Any:
        chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        if self.temperature > 0:
            samplers = [llama_cpp.llama_sampler_init_temp(self.temperature), llama_cpp.llama_sampler_init_dist(seed)]
        else:
            samplers = [llama_cpp.llama_sampler_init_greedy()]
        for sampler in samplers:
            llama_cpp.llama_sampler_chain_add(chain, sampler)
        return chain

    def _evaluate(self, ids: Sequence[int]) -> float:
        """Evaluate and wait for the row; return the seconds that took."""
        batch = (llama_cpp.llama_token * len(ids))(*ids)
        start = time.perf_counter()
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(batch, len(ids)))
        llama_cpp.llama_synchronize(self._context)
        seconds = time.perf_counter() - start
        if status != 0:
            raise EvaluationError(
                f"llama_decode of {len(ids)} tokens gave {status}; expected 0: prompt and text must fit the context"
            )
        return seconds

    def close(self) -> None:
        """Free the model. May be called again."""
        context, self._context = self._context, None
        model, self._model = self._model, None
        if context:
            llama_cpp.llama_free(context)
        if model:
            llama_cpp.llama_model_free(model)

    def __enter__(self) -> ModelAlone:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _log_kept() -> Iterator[list[str]]:
    """Keep llama.cpp's errors instead of printing its log; the callback from before is put back."""
    errors: list[str] = []

    def keep(level: int, text: bytes, data: Any) -> None:
        if level == 3:  # GGML_LOG_LEVEL_ERROR
            errors.append(text.decode("utf-8", "replace").strip())

    callback, before, data = llama_cpp.llama_log_callback(keep), llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        yield errors
    finally:
        llama_cpp.llama_log_set(before, data)
