"""What tests of the C API share: parameters that keep what they point to, a sequence in a with block, statuses."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from kad_llama._binding import ffi, lib

N_CTX = 64


def message() -> str:
    return str(ffi.string(lib.kad_last_error()).decode())


def expect(status: int, wanted: int, *parts: str) -> None:
    assert status == wanted, f"answered {status}: {message()}"
    for part in parts:
        assert part in message(), message()


def ok(status: int) -> None:
    assert status == lib.KAD_OK, f"answered {status}: {message()}"


class Params:
    """Engine parameters with what they point to."""

    def __init__(self, base: Path | str | None, aligned: Path | str | None, **fields: Any) -> None:
        self.alive: list[Any] = []
        self.c = ffi.new("kad_engine_params *", lib.kad_engine_default_params())
        self.c.n_ctx, self.c.n_threads = N_CTX, 1
        for model, path in ((self.c.base, base), (self.c.aligned, aligned)):
            if path is not None:
                model.path = self.keep(ffi.new("char[]", str(path).encode()))
        for name, value in fields.items():
            setattr(self.c, name, value)

    def keep(self, thing: Any) -> Any:
        self.alive.append(thing)
        return thing

    def open(self) -> int:
        self.out = ffi.new("kad_engine **")
        return int(lib.kad_engine_open(self.c, self.out))


def ids_of(engine: Any, text: bytes, role: int = 0) -> list[int]:
    ids, n = ffi.new("int32_t[]", len(text) + 8), ffi.new("size_t *")
    ok(lib.kad_tokenize(engine, role, text, len(text), 0, ids, len(text) + 8, n))
    return [int(token) for token in ids[0 : n[0]]]


class Sequence:
    """One sequence, closed at the end of a with block."""

    def __init__(self, engine: Any, prompt: list[int] | None = None, **fields: Any) -> None:
        self.engine = engine
        self.params = ffi.new("kad_sequence_params *", lib.kad_sequence_default_params())
        for name, value in fields.items():
            setattr(self.params, name, value)
        self.ids = ids_of(engine, b"The sky is blue") if prompt is None else prompt
        self.out = ffi.new("kad_sequence **")
        self.tokens = ffi.new("kad_token[]", 65)
        self.n = ffi.new("int32_t *")

    def open(self) -> int:
        ids = ffi.new("int32_t[]", self.ids)
        return int(lib.kad_sequence_open(self.engine, self.params, ids, len(ids), ids, len(ids), self.out))

    @property
    def c(self) -> Any:
        return self.out[0]

    def step(self, capacity: int = 65) -> int:
        return int(lib.kad_sequence_step(self.c, self.tokens, capacity, self.n))

    def read(self, limit: int = 500) -> bytes:
        said = b""
        for _ in range(limit):
            if lib.kad_sequence_finish(self.c) != lib.KAD_FINISH_NONE:
                return said
            ok(self.step())
            said += b"".join(bytes(ffi.buffer(t.bytes, t.n_bytes)) for t in self.tokens[0 : self.n[0]])
        raise AssertionError("the sequence does not end")

    def __enter__(self) -> Sequence:
        ok(self.open())
        return self

    def __exit__(self, *_: object) -> None:
        lib.kad_sequence_close(self.c)


def n_events(engine: Any) -> int:
    info = ffi.new("kad_vocab_info *")
    ok(lib.kad_engine_vocab(engine, info))
    return int(info.n_events)


def cancelled(engine: Any, sequence: Sequence) -> tuple[int, float]:
    """Step until cancelled by a thread: the last status, and the seconds from cancelling to the answer."""
    asked: list[float] = []

    def cancel() -> None:
        asked.append(time.perf_counter())
        lib.kad_engine_cancel(engine)

    timer = threading.Timer(0.1, cancel)
    timer.start()
    while (status := sequence.step()) == lib.KAD_OK and lib.kad_sequence_finish(sequence.c) == lib.KAD_FINISH_NONE:
        pass
    timer.join()
    return status, time.perf_counter() - asked[0]
