"""Several texts written at once: they share the passes of both models."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check
from kad_llama.errors import KadError
from kad_llama.generation import Generation
from kad_llama.prompts import Prompt
from kad_llama.settings import Settings
from kad_llama.stream import Text, let_interrupt_in

__all__ = ["Job", "write_texts"]


@dataclass(frozen=True)
class Job:
    """One text to write."""

    prompt: Prompt
    settings: Settings
    seed: int


class _Batch:
    """At most as many texts at a time as the engine has places; one that ends gives its place to the next."""

    def __init__(self, engine: Any, jobs: Sequence[Job]) -> None:
        self._engine = engine
        self._waiting = deque(enumerate(jobs))
        self._open: dict[int, Text] = {}
        self.results: list[Generation | None] = [None] * len(jobs)

    def run(self) -> None:
        while self._waiting or self._open:
            self._fill()
            sequences = ffi.new("kad_sequence *[]", [text.sequence for text in self._open.values()])
            let_interrupt_in(self._engine)
            check(lib.kad_step(sequences, len(sequences)))
            self._take()

    def _take(self) -> None:
        """What each text said; what went wrong in one of them once all have handed over theirs."""
        failure: KadError | None = None
        for i, text in list(self._open.items()):
            try:
                text.take()
                ended = text.settle()
            except KadError as error:
                failure = failure or error
                continue
            if ended:
                self._end(i, interrupted=False)
        if failure:
            raise failure

    def _fill(self) -> None:
        while self._waiting and len(self._open) < lib.kad_max_parallel(self._engine):
            i, job = self._waiting.popleft()
            self._open[i] = Text(self._engine, job.prompt, job.settings, job.seed)

    def _end(self, i: int, interrupted: bool) -> None:
        text = self._open.pop(i)
        try:
            if interrupted:
                with contextlib.suppress(KadError):
                    text.take()  # what was said before the step was cut short
                text.settle(cut=True)
            self.results[i] = text.summary(interrupted)
        finally:
            text.close()

    def close(self) -> None:
        for i in list(self._open):
            self._end(i, interrupted=True)


def write_texts(engine: Any, jobs: Sequence[Job]) -> list[Generation]:
    """Write all texts. An error has them, as far as they went, as its attribute `partial`: None for one not begun."""
    batch = _Batch(engine, jobs)
    try:
        batch.run()
    except BaseException as error:
        batch.close()
        error.partial = batch.results  # type: ignore[attr-defined]
        raise
    return [result for result in batch.results if result is not None]
