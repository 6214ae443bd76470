"""A host program as the sampler meets it: llama.cpp's models, contexts and chains through llama_cpp's bare functions.

`prepared` and `log_pi` are the oracle of what the sampler must do to a row, written here once more from llama.cpp's own
answers about the vocabulary.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from c_api import ok

import kad_llama
from kad_llama._binding import ffi, lib

_alive: Any = weakref.WeakKeyDictionary()  # what parameters point to
BARRED = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN


class Host:
    """One model with one context. Fields are llama_context_params'."""

    def __init__(self, path: Path, **fields: Any) -> None:
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        for name, value in ({"n_ctx": 256, "n_threads": 1, "n_threads_batch": 1} | fields).items():
            setattr(params, name, value)
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.model and self.context
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.memory = llama_cpp.llama_get_memory(self.context)

    @property
    def c(self) -> Any:
        return ffi.cast("struct llama_context *", self.context)

    @property
    def c_model(self) -> Any:
        return ffi.cast("const struct llama_model *", self.model)

    def evaluate(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after `ids`, evaluated as one batch after what sequence 0 holds."""
        array = (llama_cpp.llama_token * len(ids))(*ids)
        assert llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(ids))) == 0
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(logits, shape=(self.n_vocab,)).copy()

    def row(self, ids: Sequence[int]) -> np.ndarray:
        llama_cpp.llama_memory_clear(self.memory, True)
        return self.evaluate(ids)

    def held(self, sequence: int = 0) -> int:
        return int(llama_cpp.llama_memory_seq_pos_max(self.memory, sequence)) + 1

    def ends(self) -> set[int]:
        return {i for i in range(self.n_vocab) if llama_cpp.llama_vocab_is_eog(self.vocab, i)}

    def barred(self) -> set[int]:
        """Ids that nobody may say: control tokens and tokens without bytes."""
        buffer = ctypes.create_string_buffer(256)

        def empty(token: int) -> bool:
            return bool(llama_cpp.llama_token_to_piece(self.vocab, token, buffer, 256, 0, True) == 0)

        ids = range(self.n_vocab)
        return {i for i in ids if llama_cpp.llama_vocab_get_attr(self.vocab, i) & BARRED or empty(i)}

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prepared(row: np.ndarray, n: int, ends: set[int], barred: set[int]) -> np.ndarray:
    """`row` with what cannot be said at -inf and all ends folded at the lowest, `n` wide."""
    out = np.full(n, -np.inf, np.float32)
    out[: min(n, row.size)] = row[:n]
    folded = np.logaddexp.reduce(out[sorted(i for i in ends if i < n)].astype(np.float64))
    out[sorted(i for i in ends | barred if i < n)] = -np.inf
    out[min(ends)] = folded
    return out


def log_pi(rows: Sequence[np.ndarray], base: Host, aligned: Host, **rule: Any) -> np.ndarray:
    """What the sampler makes of the rows of base, aligned and perhaps reference: the base's vocabulary wide."""
    n, ends = min(row.size for row in rows), base.ends() | aligned.ends()
    p, q, *r = (prepared(row, n, ends, aligned.barred() - ends) for row in rows)
    third = {"reference_logits": r[0]} if r else {}
    with np.errstate(divide="ignore"):
        law = np.log(kad_llama.mixture(p, q, **rule, **third))
    out = np.full(base.n_vocab, -np.inf)
    out[:n] = law
    end = int(llama_cpp.llama_vocab_eos(base.vocab))
    out[min(ends)], out[end] = (-np.inf if end != min(ends) else law[end]), law[min(ends)]
    return out


def params(aligned: Host, prompt: Sequence[int] = (), base: Host | None = None, **fields: Any) -> Any:
    """kad_sampler_params, with the prompt that they point to; `rule` by name."""
    c = ffi.new("kad_sampler_params *", lib.kad_sampler_default_params())
    ok(lib.kad_rule_named(fields.pop("rule", "dual").encode(), ffi.addressof(c, "rule")))
    ids = ffi.new("int32_t[]", list(prompt))
    c.aligned, c.prompt, c.n_prompt = aligned.c, ids, len(prompt)
    if base is not None:
        c.base_model = base.c_model
    for name, value in fields.items():
        setattr(c, name, value)
    _alive[c] = ids
    return c


CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])


class Sampler:
    """A sampler of kad_sampler_init(), or a clone of one, driven through llama.cpp's functions."""

    def __init__(self, given: Any) -> None:
        if isinstance(given, Sampler):
            self.c = ffi.cast("struct llama_sampler *", _address(llama_cpp.llama_sampler_clone(given.pointer)))
            return
        out = ffi.new("struct llama_sampler **")
        ok(lib.kad_sampler_init(given, out))
        self.c = out[0]

    @property
    def pointer(self) -> Any:
        return ctypes.cast(int(ffi.cast("uintptr_t", self.c)), llama_cpp.llama_sampler_p_ctypes)

    def apply(self, row: np.ndarray, ids: np.ndarray | None = None) -> np.ndarray:
        """The candidates' logits after apply(), in the order of `ids` (0, 1, 2 ... without)."""
        candidates = np.zeros(row.size, CANDIDATE)
        candidates["id"] = np.arange(row.size) if ids is None else ids
        candidates["logit"] = row
        data = candidates.ctypes.data_as(ctypes.POINTER(llama_cpp.llama_token_data))
        array = llama_cpp.llama_token_data_array(data, row.size, -1, True)  # sorted, as far as anyone knows
        llama_cpp.llama_sampler_apply(self.pointer, ctypes.byref(array))
        assert not array.sorted
        self.ids = candidates["id"].copy()
        return candidates["logit"].copy()

    def accept(self, *tokens: int) -> None:
        for token in tokens:
            llama_cpp.llama_sampler_accept(self.pointer, token)

    def reset(self) -> None:
        llama_cpp.llama_sampler_reset(self.pointer)

    def status(self) -> int:
        return int(lib.kad_sampler_status(self.c))

    def free(self) -> None:
        llama_cpp.llama_sampler_free(self.pointer)

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


def _address(pointer: Any) -> int:
    return int(ctypes.cast(pointer, ctypes.c_void_p).value or 0)
