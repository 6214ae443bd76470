"""The evaluation itself: the same questions and seeds for every setting, stored answer by answer.

Question by question where all engines fit into memory at the same time, so that a run that is interrupted is a fair
comparison as far as it went. Where they do not, in rounds of 32 questions: every setting answers a round before the next one
begins.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kad_llama.errors import InvalidArgumentError, KadError
from kad_llama.evaluation.answers import FORMAT, Answer, Store
from kad_llama.evaluation.engines import Engines, Models
from kad_llama.evaluation.identity import model_identity
from kad_llama.evaluation.results import Results
from kad_llama.evaluation.settings import Setting, settings_of
from kad_llama.evaluation.tasks import Question, Task
from kad_llama.generation import Generation
from kad_llama.prompts import Prompt
from kad_llama.settings import Settings, read_settings

__all__ = ["Progress", "evaluate", "question_seed"]

ROUND = 32  # questions that a setting answers in a row where engines take turns
_TEXTS_MOST = 64

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is: answers that are stored, of how many, and what happens now."""

    done: int
    total: int
    now: str


def question_seed(seed: int, repetition: int, question: str) -> int:
    """Return the seed of a question's answer number `repetition`: the first 53 bits of a SHA-256 of all three.

    It depends on nothing else, so that all settings answer with the same coins, and more questions or settings change none.
    (53 bits, so that every reader of JSON gets the number exactly.)
    """
    digest = hashlib.sha256(f"{seed}:{repetition}:{question}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def evaluate(
    base: Path,
    aligned: Path,
    task: Task,
    *,
    directory: Path,
    rules: Sequence[str] = ("dual",),
    reference: Path | None = None,
    n: int | None = None,
    repetitions: int = 1,
    temperature: float = 0.7,
    rule_temperature: float | Literal["sampling"] = 1.0,
    max_tokens: int | None = None,
    seed: int = 1,
    single: bool = True,
    shots: Sequence[int] | None = None,
    jobs: int = 1,
    progress: Callable[[Progress], object] | None = None,
    **keywords: Any,
) -> Results:
    """Let rules and the models alone answer the same questions, and store every answer.

    What the directory has already is not computed again, so a run that was interrupted goes on; rules, questions and
    repetitions may be added.

    Parameters
    ----------
    base, aligned, reference
        GGUF files; the reference is for rule implicit-reward.
    task
        From `load_task`.
    directory
        Where `answers.jsonl` is, or will be.
    rules
        "NAME" or "NAME:THRESHOLD" each.
    n
        The first `n` questions; None is all.
    repetitions
        Answers to each question, with a seed each.
    temperature, rule_temperature
        As for `KadLlama.generate` and `KadLlama`. The default temperature is that of the published results.
    max_tokens
        Most tokens of an answer; None is the task's own.
    seed
        From which every question's seeds follow: `question_seed`.
    single
        Whether the two models answer alone, too.
    shots
        How many worked examples the base alone gets beside the rest, each a setting; None is 5 where the task has them.
    jobs
        Texts written at a time, sharing passes. Above 1 the seconds of an answer are those of all.
    progress
        Called with a `Progress` before models are opened and after every answer.
    **keywords
        Further keywords of `KadLlama`: n_ctx, n_threads, reproducible, base_params and so on.

    Returns
    -------
    Results
        Of everything in the directory.

    Raises
    ------
    InvalidArgumentError, FileError, ModelError, OutOfMemoryError
        Before any weights are loaded, where it can be known then.
    StateError
        When another process writes to the directory.
    KeyboardInterrupt
        On Ctrl-C, once all models are closed; every answer that was complete is stored.
    """
    tell = progress or (lambda _: None)
    settings = settings_of(task, rules, single=single, shots=shots, rule_temperature=rule_temperature)
    questions = task.first(n)
    _check_count("repetitions", repetitions, 10_000)
    _check_count("jobs", jobs, _TEXTS_MOST)
    chosen = read_settings(
        max_tokens=task.max_tokens if max_tokens is None else max_tokens,
        temperature=temperature,
        stop=task.stop or None,
        seed=seed,
    )
    keywords |= {"rule_temperature": rule_temperature, "n_parallel": jobs}
    models = Models(base, aligned, reference, keywords)
    _check_rules(models, settings, temperature)
    header = _header(models, task, chosen, lambda now: tell(Progress(0, 0, now)))
    with Store(directory, header) as store:
        run = _Run(task, questions, settings, repetitions, jobs, chosen, store, tell)
        if run.todo:
            with Engines(models, run.used, run.opening) as engines:
                run.all(engines)
        return Results(store.header, store.done.values())


def _check_count(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidArgumentError(f"{name} is {value!r}; expected a whole number from 1 to {most}")


def _check_rules(models: Models, settings: Sequence[Setting], temperature: float) -> None:
    needs = [setting for setting in settings if setting.rule == "implicit-reward"]
    if needs and models.reference is None:
        raise InvalidArgumentError(
            "rule implicit-reward needs a reference (-r), the small model before its alignment; give it, or leave the "
            "rule out"
        )
    if temperature == 0 and models.keywords["rule_temperature"] == "sampling":
        raise InvalidArgumentError(
            "temperature 0 with rule_temperature 'sampling' is the bare base; give a number to one of them"
        )
    for setting in settings:
        models.check(setting)


def _header(models: Models, task: Task, chosen: Settings, reading: Callable[[str], object]) -> dict[str, Any]:
    files = {
        role: None if path is None else model_identity(path, reading)
        for role, path in (("base", models.base), ("aligned", models.aligned), ("reference", models.reference))
    }
    return {
        "kad_llama_eval": FORMAT,
        **files,
        "task": {**task.identity, "skipped": list(task.skipped)},
        "temperature": float(chosen.temperature),
        "rule_temperature": models.keywords["rule_temperature"],
        "max_tokens": chosen.max_tokens,
        "seed": chosen.seed,
        "n_ctx": models.keywords.get("n_ctx", 4096),
        "reproducible": bool(models.keywords.get("reproducible")),
        "params": _params(models),
        "versions": _versions(),
    }


_LOADING = ("load_mode", "lazy_mode", "check_tensors")  # how a file is read changes no number


def _params(models: Models) -> dict[str, dict[str, str]] | None:
    """llama.cpp's settings of each model that were given, such as cache types: they change rows, and so texts."""
    given = {role: models.keywords.get(f"{role}_params") or {} for role in ("base", "aligned")}
    given["reference"] = models.reference_params or {}
    for role, name in (("base", "n_gpu_layers"), ("aligned", "n_gpu_layers_aligned")):
        if models.keywords.get(name, -1) != -1:
            given[role] = {**given[role], "n_gpu_layers": models.keywords[name]}
    found = {
        role: {name: str(value) for name, value in sorted(params.items()) if name not in _LOADING}
        for role, params in given.items()
    }
    return {role: params for role, params in found.items() if params} or None


def _versions() -> dict[str, str]:
    import platform

    import kad_llama

    info = kad_llama.library_info()
    return {
        "kad_llama": kad_llama.__version__,
        "llama.cpp": f"{info.loaded_llama_version} {info.loaded_llama_commit}".strip(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


Piece = tuple[Setting, Question, int]  # the last is the repetition


class _Run:
    """What is left to do, and doing it."""

    def __init__(
        self,
        task: Task,
        questions: Sequence[Question],
        settings: Sequence[Setting],
        repetitions: int,
        jobs: int,
        chosen: Settings,
        store: Store,
        tell: Callable[[Progress], object],
    ) -> None:
        self._task, self._questions, self._settings = task, questions, settings
        self._repetitions, self._jobs, self._chosen = range(repetitions), jobs, chosen
        self._store, self._tell = store, tell
        self._total = len(questions) * len(settings) * repetitions
        self.todo = sum(1 for setting in settings for _ in self._missing(setting, questions))
        self._now(f"{self._total - self.todo} answers are there")

    @property
    def used(self) -> list[Setting]:
        """The settings that have something left to do."""
        return [setting for setting in self._settings if any(True for _ in self._missing(setting, self._questions))]

    def opening(self, names: str) -> None:
        """Say that models are being opened."""
        self._now(f"loading {names}")

    def _now(self, what: str) -> None:
        self._tell(Progress(self._total - self.todo, self._total, what))

    def _missing(self, setting: Setting, questions: Sequence[Question]) -> Iterator[Piece]:
        for question in questions:
            for repetition in self._repetitions:
                if (setting.name, question.id, repetition) not in self._store.done:
                    yield setting, question, repetition

    def all(self, engines: Engines) -> None:
        """Answer what is missing, round by round."""
        size = -(-self._jobs // len(self._repetitions)) if engines.together else max(ROUND, self._jobs)
        for begin in range(0, len(self._questions), size):
            for setting in self._settings:
                pieces = list(self._missing(setting, self._questions[begin : begin + size]))
                for first in range(0, len(pieces), self._jobs):
                    self._some(engines, setting, pieces[first : first + self._jobs])

    def _some(self, engines: Engines, setting: Setting, pieces: Sequence[Piece]) -> None:
        """Write the texts of one setting, at most `jobs`, and store those that came to their end."""
        seed = int(self._chosen.seed or 0)
        seeds = [question_seed(seed, repetition, question.id) for _, question, repetition in pieces]
        prompts: list[Prompt] = []
        try:
            prompts += [engines.prompt(setting, self._task, question) for _, question, _ in pieces]
            texts: Sequence[Generation | None] = engines.write(
                setting, list(zip(prompts, seeds, strict=True)), self._chosen
            )
        except KadError as error:
            self._take(pieces, prompts, seeds, getattr(error, "partial", []))
            raise type(error)(f"{_named(setting, pieces)}: {error}") from error
        except KeyboardInterrupt as error:
            self._take(pieces, prompts, seeds, getattr(error, "partial", []))
            raise
        self._take(pieces, prompts, seeds, texts)

    def _take(
        self,
        pieces: Sequence[Piece],
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        texts: Sequence[Generation | None],
    ) -> None:
        for piece, prompt, seed, text in zip(pieces, prompts, seeds, texts, strict=False):
            if text is not None and text.finish_reason != "interrupted":
                self._store.add(self._answer(piece, prompt, seed, text))
                self.todo -= 1
                self._now(piece[0].name)

    def _answer(self, piece: Piece, prompt: Prompt, seed: int, text: Generation) -> Answer:
        setting, question, repetition = piece
        mark, stats = self._task.mark(question, text.text), text.stats
        shown = prompt.base_text if prompt.base_text is not None else prompt.aligned_text
        other = prompt.aligned_text if prompt.aligned_text != shown else None
        return Answer(
            setting=setting.name,
            rule=setting.rule,
            threshold=setting.threshold,
            shots=setting.shots,
            seed=seed,
            repetition=repetition,
            question=question.id,
            prompt=shown or "",
            prompt_aligned=other,
            text=text.text,
            answer=mark.answer,
            target=question.target,
            correct=mark.correct,
            form=mark.form,
            finish_reason=text.finish_reason,
            tokens=stats.tokens,
            seconds=stats.tokens / stats.tokens_per_second if stats.tokens_per_second else 0.0,
            base_passes=stats.base_passes,
            aligned_passes=stats.aligned_passes,
            drafted=stats.drafted,
            accepted=stats.accepted,
            aligned_share=None if stats.deferred_mass is None else stats.aligned_share,
            deferred_mass=stats.deferred_mass,
            mode=stats.mode,
            jobs=self._jobs,
        )


def _named(setting: Setting, pieces: Sequence[Piece]) -> str:
    ids = [question.id for _, question, _ in pieces]
    return f"{setting.name}, question {ids[0]}" + (f" to {ids[-1]}" if len(set(ids)) > 1 else "")
