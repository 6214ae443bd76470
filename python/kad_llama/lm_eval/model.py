"""The model "kad": what the harness asks of a model, answered under pi."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from kad_llama import __version__
from kad_llama.batch import Job, write_texts
from kad_llama.cli import output
from kad_llama.cli.answer import open_engine
from kad_llama.errors import ContextError, InvalidArgumentError
from kad_llama.generation import Generation
from kad_llama.lm_eval.arguments import read_generation, read_model_arguments
from kad_llama.lm_eval.contexts import Contexts
from kad_llama.prompts import Prompt
from kad_llama.scoring import Completion, Score, score_settings
from kad_llama.settings import Settings

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ModuleNotFoundError as error:
    raise InvalidArgumentError(
        f"lm-evaluation-harness is not installed ({error}): pip install 'kad-llama[lm-eval]'"
    ) from None

__all__ = ["KadLM"]


@register_model("kad")
class KadLM(LM):  # type: ignore[misc]  # the harness has no types
    """A pair as a model of lm-evaluation-harness.

    Parameters
    ----------
    base, aligned, reference
        GGUF files, as for `KadLlama`; with rule "base" or "aligned" the other one may be left out.
    rule, threshold, rule_temperature, n_ctx, n_parallel, n_threads, n_gpu_layers, n_gpu_layers_aligned, reproducible, \
base_params, aligned_params, reference_params, base_template, verbose
        As for `KadLlama`.
    temperature
        How each model speaks in log-likelihoods, and in a text that is drawn while its task names no temperature; 1.
        Texts are greedy unless their task says otherwise.
    seed, draft, ngram, spec
        As for `KadLlama.generate`; the seed is 0. Text i of equal generation options is text number i of it.
    batch_size, max_batch_size, device, trust_remote_code
        What the harness adds. A batch size above 1 is `n_parallel`, and ``device="cpu"`` is no layers on the GPU.

    Raises
    ------
    InvalidArgumentError
        For unknown names and values out of range, before a file is opened.
    KadError
        As `KadLlama` does.

    Notes
    -----
    "Greedy" is what the pair writes at temperature 0: the base's best token if the rule keeps it, otherwise the aligned
    model's best. It need not be the most probable token of pi, of which the log-likelihood is.
    """

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        arguments = read_model_arguments(model_args)
        self._arguments = arguments
        load = dict(arguments.load)
        self.kad = open_engine(load.pop("base"), load.pop("aligned"), **load)
        self._contexts = Contexts(self.kad, load.get("base_template"))
        self._settings = score_settings("", {"temperature": arguments.speak["temperature"]})
        # At temperature 0 pi is one token, so that a score says whether a text is that of every one: 0 or -inf.
        self._greedy = None if load.get("rule_temperature") == "sampling" else score_settings("", {"temperature": 0.0})

    # ---- Chats ----------------------------------------------------------------------------------------------------------

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a chat as text, by the aligned model's template (a plain transcript where there is none)."""
        return self._contexts.render(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that `apply_chat_template` renders; None where none is asked for."""
        if isinstance(chat_template, str):
            raise InvalidArgumentError(
                f"apply_chat_template is {chat_template!r}; a GGUF has one template without a name: give no name"
            )
        return self._contexts.template if chat_template else None

    @property
    def tokenizer_name(self) -> str:
        """A name for what the templates render, by which the harness keeps requests; it asks only where it renders chats."""
        self._contexts.templated = True
        prompts = (self._contexts.template, self._arguments.load.get("base_template"), self._contexts.one_text)
        return f"kad-{hashlib.sha256(repr(prompts).encode()).hexdigest()[:16]}"

    # ---- Texts ----------------------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Write a text for each (context, generation options), `n_parallel` of them at a time."""
        asked = [read_generation(request.args[1], self._arguments.speak) for request in requests]
        groups: dict[str, list[int]] = {}
        for i, settings in enumerate(asked):
            self.kad._check_draft(settings)
            groups.setdefault(repr(settings), []).append(i)
        texts: dict[int, str] = {}
        with self._progress("writing", len(requests)) as report:
            for indices in groups.values():
                for some, number in _chunks(indices, 4 * self.kad.n_parallel):
                    for i, text in self._write(requests, some, replace(asked[indices[0]], text_number=number)):
                        texts[i] = text
                    report(len(texts))
        return [texts[i] for i in range(len(requests))]

    def _write(self, requests: Sequence[Any], indices: Sequence[int], settings: Settings) -> Iterator[tuple[int, str]]:
        """Texts that are written at once. Those that Ctrl-C leaves whole go to the harness' cache all the same."""
        prompts = [self._contexts.to_write(requests[i].args[0], settings.max_tokens) for i in indices]
        try:
            written: Sequence[Generation | None] = self._write_prompts(prompts, settings)
        except BaseException as error:
            self._keep(requests, indices, getattr(error, "partial", []))
            raise
        self._keep(requests, indices, written)
        return ((i, each.text) for i, each in zip(indices, written, strict=True) if each is not None)

    def _write_prompts(self, prompts: Sequence[Prompt], settings: Settings) -> list[Generation]:
        """What `generate_many` does, of prompts that are built."""
        seed = settings.seed or 0
        jobs = [
            Job(prompt, replace(settings, text_number=(settings.text_number + i) % 2**64), seed)
            for i, prompt in enumerate(prompts)
        ]
        release = self.kad._acquire()
        try:
            return write_texts(self.kad._engine, jobs)
        finally:
            release()

    def _keep(self, requests: Sequence[Any], indices: Sequence[int], written: Sequence[Generation | None]) -> None:
        for i, each in zip(indices, written, strict=False):
            if each is not None and each.finish_reason != "interrupted":
                self.cache_hook.add_partial("generate_until", requests[i].args, each.text)

    # ---- Log-likelihoods ------------------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return log pi of each continuation of a context, and whether the pair would write it greedily."""
        answers: dict[int, tuple[float, bool]] = {}
        if self._greedy is None:
            output.note('rule_temperature "sampling" has no greedy text: is_greedy, and metrics that use it, are False')
        with self._progress("scoring", len(requests)) as report:
            # Contexts that begin alike follow each other: what both models have read of one serves the next.
            for i in sorted(range(len(requests)), key=lambda i: requests[i].args[:2]):
                prompt, completion = self._contexts.to_score(*requests[i].args[:2])
                answers[i] = self._log_pi(prompt, completion)
                self.cache_hook.add_partial("loglikelihood", requests[i].args, answers[i])
                report(len(answers))
        self._note_impossible(logprob for logprob, _ in answers.values())
        return [answers[i] for i in range(len(requests))]

    def _log_pi(self, prompt: Prompt, completion: Completion) -> tuple[float, bool]:
        logprob = self._score(prompt, completion, self._settings).logprob
        if self._greedy is None or logprob == -math.inf:
            return logprob, False
        return logprob, self._score(prompt, completion, self._greedy).logprob > -math.inf

    def _score(self, prompt: Prompt, completion: Completion, settings: Settings) -> Score:
        return self.kad._score(prompt, completion, settings)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return log pi of each whole document, cut into windows that the contexts hold."""
        answers: list[float] = []
        with self._progress("scoring documents", len(requests)) as report:
            for request in requests:
                answers.append(self._document(request.args[0]))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, answers[-1])
                report(len(answers))
        self._note_impossible(answers)
        return answers

    def _note_impossible(self, logprobs: Iterable[float]) -> None:
        """Texts of probability 0 are worth a line: across vocabularies they need not be strange ones."""
        impossible = sum(logprob == -math.inf for logprob in logprobs)
        if impossible:
            who = "has probability 0"
            if self._contexts.crossed:
                who = "the base does not keep and the aligned model, of another vocabulary, lacks"
            output.note(f"{impossible} texts have log-likelihood -inf: there is a token in them that {who}")

    def _document(self, text: str) -> float:
        document = self._contexts.document(text)
        n_ctx = self.kad.base.n_ctx if self._contexts.role == "base" else self.kad.aligned.n_ctx  # type: ignore[union-attr]
        total, begin, size = 0.0, 0, n_ctx
        while begin < len(document.ids):
            window = document.window(begin, size)
            try:
                score = self._score(document.prompt(window), document.completion(window), self._settings)
            except ContextError:  # the other vocabulary needs more tokens for the same text
                if not self._contexts.crossed or size < 8:
                    raise
                size -= max(1, size // 16)
                continue
            total, begin, size = total + score.logprob, window.end, n_ctx
        return total

    # ---- What the harness notes of a model --------------------------------------------------------------------------------

    def get_model_info(self) -> dict[str, Any]:
        """Return what stands in the results beside the arguments."""
        models = {"base": self.kad.base, "aligned": self.kad.aligned, "reference": self.kad.reference}
        described = {f"{role}_model": info.description for role, info in models.items() if info is not None}
        return {"kad_llama_version": __version__, **described}

    @contextmanager
    def _progress(self, what: str, total: int) -> Iterator[Any]:
        """A progress bar; at its end, a line about contexts that were too long."""
        before = self._contexts.shortened
        with output.working(what, total) as report:
            yield report or (lambda done: None)
        if self._contexts.shortened > before:
            output.note(
                f"{self._contexts.shortened - before} contexts are too long for n_ctx and lost their beginning; raise n_ctx"
            )


def _chunks(indices: Sequence[int], size: int) -> Iterator[tuple[Sequence[int], int]]:
    """Parts of at most `size`, each with the place where it begins."""
    for first in range(0, len(indices), size):
        yield indices[first : first + size], first
