"""Which models are open, and what each setting writes.

A `KadLlama` has one rule, so every setting has one of its own. Their weights are the same mapped files, their caches are
not, and where llama.cpp repacks weights or puts them on a GPU, each has its own copy. So all are open at the same time
only where that many whole copies would fit; else one after another, beside the aligned model, which is small and stays.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check
from kad_llama.batch import Job, write_texts
from kad_llama.evaluation.settings import Setting
from kad_llama.evaluation.tasks import Question, Task
from kad_llama.files import default_threads, fields_of, fill_model, inspect_file
from kad_llama.generation import Generation
from kad_llama.prompts import Message, Prompt, build
from kad_llama.rules import c_rule
from kad_llama.session import KadLlama
from kad_llama.settings import Settings
from kad_llama.stream import Stream

__all__ = ["Engines", "Models"]

_OF_FREE_MEMORY = 0.5  # what engines that are open together may take
_WITH_GPU = 1 << 30  # bytes of the same where it is not known how much memory is free

Path_ = str | os.PathLike[str]


class Models:
    """The files, and how they are opened: the keywords of `KadLlama` but its rule."""

    def __init__(self, base: Path_, aligned: Path_, reference: Path_ | None, keywords: Mapping[str, Any]) -> None:
        self.base, self.aligned, self.reference = base, aligned, reference
        self.keywords = dict(keywords)
        self.reference_params = self.keywords.pop("reference_params", None)

    def of(self, setting: Setting) -> tuple[Path_ | None, Path_ | None, dict[str, Any]]:
        """The base, the aligned model and the further keywords of a setting's `KadLlama`.

        The aligned model alone is opened with the base's vocabulary, which says what prompt the base has in the pair.
        """
        keywords = {**self.keywords, "rule": setting.rule, "threshold": setting.threshold}
        if setting.rule == "implicit-reward":
            keywords |= {"reference": self.reference, "reference_params": self.reference_params}
        return self.base, None if setting.alone and setting.rule == "base" else self.aligned, keywords

    def check(self, setting: Setting) -> None:
        """Refuse what cannot be opened, before any weights are loaded: values, files, memory, vocabularies."""
        base, aligned, keywords = self.of(setting)
        params = ffi.new("kad_engine_params *", lib.kad_engine_default_params())
        params.rule = c_rule(setting.rule, setting.threshold, keywords.get("rule_temperature", 1.0))[0]
        params.n_ctx = keywords.get("n_ctx", 4096)
        params.n_threads = keywords.get("n_threads") or default_threads()
        params.n_parallel = keywords.get("n_parallel") or 0
        params.reproducible = bool(keywords.get("reproducible"))
        params.base.vocab_only = setting.rule == "aligned"
        alive = []
        for role, path, suffix in (
            ("base", base, ""),
            ("aligned", aligned, "_aligned"),
            ("reference", None, "_aligned"),
        ):
            path = keywords.get("reference") if role == "reference" else path
            if path is not None:
                layers = keywords.get(f"n_gpu_layers{suffix}", -1)
                given = fields_of(keywords.get(f"{role}_params"), f"{role}_params")
                alive += fill_model(getattr(params, role), path, layers, given)
        check(lib.kad_engine_check(params))
        del alive

    def bytes_of(self, setting: Setting) -> int:
        """What a setting's engine takes at most: weights, and caches as F16."""
        base, aligned, keywords = self.of(setting)
        paths = [None if setting.rule == "aligned" else base, aligned, keywords.get("reference")]
        files = [inspect_file(path) for path in paths if path is not None]
        return sum(f.tensor_bytes + f.cache_bytes_per_token * keywords.get("n_ctx", 4096) for f in files)


class Engines:
    """The engines that are open. Closed by `close` or a with block."""

    def __init__(self, models: Models, settings: Sequence[Setting], opening: Callable[[str], object]) -> None:
        self._models = models
        self._opening = opening
        self._open: dict[tuple[str, float | None], KadLlama] = {}
        distinct = {(s.rule, s.threshold, s.alone): s for s in settings}
        need = sum(models.bytes_of(setting) for setting in distinct.values())
        self.together = need <= _memory_for_all()

    def _engine(self, setting: Setting) -> KadLlama:
        """The engine of a setting; others give way where not all fit, but for the aligned model alone."""
        key = ("alone " * setting.alone + setting.rule, setting.threshold)
        if key in self._open:
            return self._open[key]
        if not self.together:
            for other in [k for k in self._open if k != ("alone aligned", None) and k != key]:
                self._open.pop(other).close()
        base, aligned, keywords = self._models.of(setting)
        self._opening(" and ".join(Path(path).name for path in (base, aligned) if path is not None))
        self._open[key] = KadLlama(base, aligned, **keywords)
        return self._open[key]

    def prompt(self, setting: Setting, task: Task, question: Question) -> Prompt:
        """What a setting goes on from.

        The base alone has the prompt that it has in the pair. As a transcript, with worked examples or without, it has
        "Question: ... Answer:", whose turn marker ends the text.
        """
        if setting.transcript:
            return self._engine(setting).prompt(_transcript(task, question, setting.shots))
        messages = _messages(task, question.prompt)
        if not (setting.alone and setting.rule == "base"):
            return self._engine(setting).prompt(messages)
        pair = self._engine(Setting("", "aligned", None, alone=True))
        if not pair.vocab.equal:
            return self._engine(setting).prompt(messages)
        words = pair._vocabularies
        template = words["aligned"].chat_template
        both = build(
            messages, vocab_base=words["base"], vocab_aligned=words["aligned"], equal=True, aligned_template=template
        )
        return Prompt(both.base_text, both.base_ids, stops=both.stops)

    def write(self, setting: Setting, jobs: Sequence[tuple[Prompt, int]], settings: Settings) -> list[Generation]:
        """Write a text for every prompt and seed, all at once. An error has what was written as `partial`.

        A model alone runs plain, one token to a pass, as llama.cpp would run it.
        """
        kad = self._engine(setting)
        if setting.alone:
            settings = replace(settings, spec=False)
        if len(jobs) == 1:
            return [_write_one(kad, *jobs[0], settings)]
        release = kad._acquire()
        try:
            return write_texts(kad._engine, [Job(prompt, settings, seed) for prompt, seed in jobs])
        finally:
            release()

    def close(self) -> None:
        """Free all models."""
        while self._open:
            self._open.popitem()[1].close()

    def __enter__(self) -> Engines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _memory_for_all() -> float:
    import psutil

    from kad_llama import library_info

    free = _OF_FREE_MEMORY * float(psutil.virtual_memory().available)
    return free if library_info().backends.strip() == "CPU" else min(free, _WITH_GPU)


def _messages(task: Task, question: str) -> list[Message]:
    system = [{"role": "system", "content": task.system}] if task.system else []
    return [*system, {"role": "user", "content": question}]


def _transcript(task: Task, question: Question, shots: int) -> list[Message]:
    """Worked examples as earlier turns; the base alone renders them as "Question: ...\\nAnswer: ...\\n\\n"."""
    *system, last = _messages(task, question.transcript)
    turns = [
        {"role": role, "content": text}
        for example in task.worked(shots)
        for role, text in (("user", example.question), ("assistant", example.answer))
    ]
    return [*system, *turns, last]


def _write_one(kad: KadLlama, prompt: Prompt, seed: int, settings: Settings) -> Generation:
    """As `KadLlama.generate` does, from a prompt that is ready."""
    release = kad._acquire()
    try:
        stream = Stream(kad._engine, prompt, replace(settings, seed=seed), release)
    except BaseException:
        release()
        raise
    kad._stream = weakref.ref(stream)
    with stream:
        for _ in stream:
            pass
    return stream.result
