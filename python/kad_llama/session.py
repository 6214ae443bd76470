"""KadLlama: two GGUF files in, aligned text out."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from operator import methodcaller
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from kad_llama import prompts
from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import Progress, check, text
from kad_llama.batch import Job, write_texts
from kad_llama.errors import ContextError, InvalidArgumentError, StateError
from kad_llama.files import default_threads, fields_of, fill_model, measure_passes
from kad_llama.generation import Generation
from kad_llama.rules import RULES, c_rule
from kad_llama.scoring import Completion, Score, read_completion, score_settings, show_score_settings
from kad_llama.settings import Settings, read_settings, show_settings
from kad_llama.stream import Stream, seed_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from kad_llama.settings import Keywords

__all__ = ["KadLlama", "ModelInfo", "VocabInfo"]

Role = Literal["base", "aligned", "reference"]
Path = str | os.PathLike[str]
Messages = str | Sequence[Mapping[str, str]]

_ROLES: dict[str, int] = {
    "base": lib.KAD_ROLE_BASE,
    "aligned": lib.KAD_ROLE_ALIGNED,
    "reference": lib.KAD_ROLE_REFERENCE,
}


_MOST_TEXTS = 65_536  # of one call


@dataclass(frozen=True)
class ModelInfo:
    """One loaded model. Sizes are bytes; `max_pass` is the most rows per pass (bit-equal ones in reproducible mode).

    `flash_attn` is 1 (on), 0 (off) or -1 (as llama.cpp chooses); `n_ubatch` the tokens of a physical batch. On a CPU a dense
    aligned or reference model runs without flash attention, unless the run is reproducible or the caller chose: README.md,
    How it runs.
    """

    path: str
    description: str
    architecture: str
    weight_bytes: int
    cache_bytes: int
    n_params: int
    n_vocab: int
    n_ctx_train: int
    n_ctx: int
    n_batch: int
    n_layer: int
    can_rewind: bool
    max_pass: int
    type_k: str
    type_v: str
    n_ubatch: int
    flash_attn: int
    devices: str
    chat_template: str
    bos: int
    eos: int
    add_bos: bool
    bos_text: str
    eos_text: str


@dataclass(frozen=True)
class VocabInfo:
    """How the two vocabularies relate: `overlap` is the share of the aligned model's tokens that the base has too."""

    equal: bool
    overlap: float
    n_differing: int
    differing: tuple[int, ...]
    n_events: int


class _Vocabulary:
    """One model's vocabulary, as prompts need it."""

    def __init__(self, kad: KadLlama, role: Role, info: Any) -> None:
        self._kad = weakref.ref(kad)
        self._role = role
        self.bos: int = info.bos
        self.eos: int = info.eos
        self.bos_text = text(info.bos_text)
        self.eos_text = text(info.eos_text)
        self.add_bos = bool(info.add_bos)
        self.chat_template = text(info.chat_template)
        ids = kad._ids(lambda ids, n, size: lib.kad_special_tokens(kad._engine, _ROLES[role], ids, n, size))
        self.specials = [(kad.token_bytes(token, role=role).decode("utf-8", "replace"), token) for token in ids]

    def tokenize(self, text: str | bytes, special: bool) -> list[int]:
        kad = self._kad()
        if kad is None:
            raise StateError("this KadLlama is gone; keep it as long as its prompts are made")
        return kad._tokenize(text, self._role, special)


class _Turn:
    """A call's turn with the engine: it ends when this is called or dropped. Ctrl-C may strike between any two bytecodes."""

    def __init__(self, kad: KadLlama) -> None:
        self._kad = kad
        self._held: list[threading.Lock] = []  # the lock, while it is held
        self.thread = threading.get_ident()
        self.ending = False

    def begin(self) -> None:
        # Signal handlers run between bytecodes, and there is none between taking the lock and noting it.
        lock = self._kad._lock
        self._held.extend(compress((lock,), map(lock.acquire, (True,))))
        self._kad._owner = self.thread

    def __call__(self) -> None:
        self.ending = True
        if not self._held:
            return
        self._kad._owner = None
        with contextlib.suppress(IndexError):  # another thread was quicker
            # Nor between removing the note and giving the lock back.
            deque(map(methodcaller("release"), iter(self._held.pop, None)), maxlen=0)
        if self._kad._abandoned:
            self._kad.close()

    def __del__(self) -> None:
        self()


class KadLlama:
    """A large base model, aligned at inference time by a small aligned one.

    The text is a function of the two models, the prompt, the settings and the seed. Drafting changes the speed only.

    Parameters
    ----------
    base, aligned
        GGUF files. `base` may be None with rule "aligned" (of a base that is given only the vocabulary is loaded then),
        `aligned` with rule "base" (the text is then another one than with an aligned model, by the same law).
    rule, threshold
        Which tokens the base keeps; see ``kad_llama.RULES``. None is the rule's default.
    reference
        A third GGUF of the same vocabulary, for rule "implicit-reward" alone: the small model before its alignment.
    rule_temperature
        The temperature > 0 at which the rule compares probabilities, or "sampling" for the sampling temperature.
    n_ctx
        Tokens per model, prompt and answer; capped by both models' training length.
    n_parallel
        Texts written at a time, 1 to 64; None is 8, or 1 in reproducible mode. They share the `n_ctx` tokens of the caches,
        and the last ones wait where those do not hold them all. In reproducible mode each has `n_ctx` tokens of its own, and
        the caches take `n_parallel` times the memory. Recurrent and hybrid models write one text at a time.
    n_threads
        Threads; None is the physical cores.
    n_gpu_layers, n_gpu_layers_aligned
        Layers on the GPU; -1 is all, where libllama was built for one. The reference goes as the aligned model does.
    reproducible
        The same text whatever the mode, the draft length and what ran before. The first time measures each model for
        seconds (and keeps the answer); cache types are then chosen so that rows are bit-equal.
    base_params, aligned_params, reference_params
        llama.cpp's own fields by name, e.g. ``{"n_batch": 256, "type_k": "q8_0", "flash_attn_type": 1}``.
    base_template
        A Jinja chat template for the base's prompt. Default: the aligned model's when vocabularies are equal, else a plain
        transcript (``kad_llama.prompts.DEFAULT_BASE_TEMPLATE``).
    verbose
        Show llama.cpp's log on stderr while loading.
    progress
        Called while loading with the fraction done, 0 to 1.

    Raises
    ------
    FileError, ModelError, OutOfMemoryError, InvalidArgumentError, LibraryMismatchError
        Before anything is loaded, where it can be known then. All are ``KadError``.

    Notes
    -----
    An instance may be used from several threads: calls queue. Models are freed by `close`, a ``with`` block, or the
    garbage collector.

    Examples
    --------
    >>> with KadLlama("base.gguf", "aligned.gguf", rule="dual", threshold=0.4) as kad:  # doctest: +SKIP
    ...     print(kad.generate("Why is the sky blue?", max_tokens=200, seed=7).text)
    """

    def __init__(
        self,
        base: Path | None,
        aligned: Path | None,
        *,
        rule: str = "dual",
        threshold: float | None = None,
        reference: Path | None = None,
        rule_temperature: float | Literal["sampling"] = 1.0,
        n_ctx: int = 4096,
        n_parallel: int | None = None,
        n_threads: int | None = None,
        n_gpu_layers: int = -1,
        n_gpu_layers_aligned: int = -1,
        reproducible: bool = False,
        base_params: Mapping[str, Any] | None = None,
        aligned_params: Mapping[str, Any] | None = None,
        reference_params: Mapping[str, Any] | None = None,
        base_template: str | None = None,
        verbose: bool = False,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        self._engine: Any = ffi.NULL
        self._lock = threading.Lock()  # whose turn it is to generate
        self._using = threading.RLock()  # close() waits for short calls that need no turn
        self._owner: int | None = None
        self._abandoned = False
        self._turn: weakref.ref[_Turn] | None = None
        self._stream: weakref.ref[Stream] | None = None
        self._paths = {"base": base, "aligned": aligned, "reference": reference}
        self._base_template = base_template
        for name, value in (
            ("n_ctx", n_ctx),
            ("n_gpu_layers", n_gpu_layers),
            ("n_gpu_layers_aligned", n_gpu_layers_aligned),
            ("n_threads", n_threads),
            ("n_parallel", n_parallel),
        ):
            if value is None and name in ("n_threads", "n_parallel"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
                raise InvalidArgumentError(f"{name} is {value!r}; expected a whole number")
        if n_threads is not None and n_threads < 1:
            raise InvalidArgumentError(f"n_threads is {n_threads}; expected at least 1, or None for the physical cores")
        if n_parallel is not None and n_parallel < 1:
            raise InvalidArgumentError(f"n_parallel is {n_parallel}; expected 1 to 64 texts at a time, or None")
        params = ffi.new("kad_engine_params *", lib.kad_engine_default_params())
        params.rule = c_rule(rule, threshold, rule_temperature)[0]
        params.n_ctx = n_ctx
        params.n_parallel = n_parallel or 0
        params.n_threads = n_threads or default_threads()
        params.reproducible = bool(reproducible)
        params.verbose = bool(verbose)
        alive = []
        models: tuple[tuple[Role, Path | None, int, Mapping[str, Any] | None], ...] = (
            ("base", base, n_gpu_layers, base_params),
            ("aligned", aligned, n_gpu_layers_aligned, aligned_params),
            ("reference", reference, n_gpu_layers_aligned, reference_params),
        )
        if RULES[rule].reference != (reference is not None):
            wanted = "needs reference=, the aligned model before its alignment" if reference is None else "uses none"
            raise InvalidArgumentError(f"reference is {reference!r}, but rule {rule!r} {wanted}")
        # Rule aligned never asks the base: of a base that is named all the same, the vocabulary will do.
        self._asks_base = rule != "aligned"
        params.base.vocab_only = not self._asks_base
        used = [(role, path, layers, given) for role, path, layers, given in models if path is not None]
        for role, path, layers, given in used:
            alive += fill_model(getattr(params, role), path, layers, fields_of(given, f"{role}_params"))
        if reproducible:
            check(lib.kad_engine_check(params))  # before models are run to be measured
            for role, path, layers, given in used:
                if role == "base" and not self._asks_base:
                    continue
                found = measure_passes(
                    path,
                    role,
                    n_ctx=n_ctx,
                    n_parallel=params.n_parallel,
                    n_threads=params.n_threads,
                    n_gpu_layers=layers,
                    params=given,
                    progress=progress,
                )
                fields = fields_of(given, f"{role}_params")
                fields.setdefault("type_k", lib.kad_cache_type(found.type_k.encode()))
                fields.setdefault("type_v", lib.kad_cache_type(found.type_v.encode()))
                setattr(params, f"max_pass_{role}", found.max_pass)
                alive += fill_model(getattr(params, role), path, layers, fields)
        self._engine = self._open(params, progress)
        del alive
        self._vocabularies: dict[str, _Vocabulary] = {}
        self.base = self._model("base")
        self.aligned = self._model("aligned")
        self.reference = self._model("reference")
        self.vocab = self._vocab()

    @staticmethod
    def _open(params: Any, progress: Callable[[float], object] | None) -> Any:
        out = ffi.new("kad_engine **")
        report = Progress(params, progress)
        status = lib.kad_engine_open(params, out)
        if report.raised is not None and status == lib.KAD_OK:
            lib.kad_engine_close(out[0])
        report.check(status)
        return out[0]

    # ---- What was loaded --------------------------------------------------------------------------------------------

    def _model(self, role: Role) -> ModelInfo | None:
        info = ffi.new("kad_model_info *")
        check(lib.kad_engine_model(self._engine, _ROLES[role], info))
        path = self._paths[role]
        if path is None:
            return None
        self._vocabularies[role] = _Vocabulary(self, role, info)
        return ModelInfo(
            os.fspath(path),
            text(info.description),
            text(info.architecture),
            info.weight_bytes,
            info.cache_bytes,
            info.n_params,
            info.n_vocab,
            info.n_ctx_train,
            info.n_ctx,
            info.n_batch,
            info.n_layer,
            bool(info.can_rewind),
            info.max_pass,
            text(info.type_k),
            text(info.type_v),
            info.n_ubatch,
            info.flash_attn,
            text(info.devices),
            text(info.chat_template),
            info.bos,
            info.eos,
            bool(info.add_bos),
            text(info.bos_text),
            text(info.eos_text),
        )

    def _vocab(self) -> VocabInfo:
        info = ffi.new("kad_vocab_info *")
        check(lib.kad_engine_vocab(self._engine, info))
        differing = tuple(token for token in info.differing if token >= 0)
        return VocabInfo(bool(info.equal), info.overlap, info.n_differing, differing, info.n_events)

    @property
    def max_draft(self) -> int:
        """The longest draft, in tokens."""
        with self._using:
            self._need_open()
            return int(lib.kad_max_draft(self._engine))

    @property
    def n_parallel(self) -> int:
        """How many texts can be written at a time."""
        with self._using:
            self._need_open()
            return int(lib.kad_max_parallel(self._engine))

    # ---- Text and tokens --------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, role: Role = "base", special: bool = False) -> list[int]:
        """Return the ids of a text in one model's vocabulary, without a BOS. `special` reads special-token spellings."""
        self._need_open()
        if role not in self._vocabularies:
            raise InvalidArgumentError(f"role is {role!r}; expected one of {', '.join(self._vocabularies)}")
        if not isinstance(text, (str, bytes)):
            raise InvalidArgumentError(f"text is {text!r}; expected a str")
        try:
            return self._tokenize(text, role, special)
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"the text holds a lone surrogate at character {error.start}; expected text that UTF-8 can encode"
            ) from None

    def _tokenize(self, text: str | bytes, role: Role, special: bool) -> list[int]:
        data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
        with self._using:
            self._need_open()
            return self._ids(
                lambda ids, n, size: lib.kad_tokenize(
                    self._engine, _ROLES[role], data, len(data), special, ids, n, size
                ),
                len(data) + 16,
            )

    @staticmethod
    def _ids(call: Callable[[Any, int, Any], int], guess: int = 1024) -> list[int]:
        """Return what a function that fills a buffer with ids gives, however many there are."""
        size = ffi.new("size_t *")
        ids = ffi.new("int32_t[]", guess)
        check(call(ids, guess, size))
        if size[0] > guess:
            guess = size[0]
            ids = ffi.new("int32_t[]", guess)
            check(call(ids, guess, size))
        return list(ffi.unpack(ids, size[0])) if size[0] else []

    def token_bytes(self, token: int, *, role: Role = "base") -> bytes:
        """Return the bytes of one token; of a control token, its spelling."""
        self._need_open()
        if role not in self._vocabularies and role not in _ROLES:
            raise InvalidArgumentError(f"role is {role!r}; expected base or aligned")
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)) or not -(2**31) <= token < 2**31:
            raise InvalidArgumentError(f"token is {token!r}; expected the id of a token")
        data, size = ffi.new("const char **"), ffi.new("size_t *")
        with self._using:
            self._need_open()
            check(lib.kad_token_bytes(self._engine, _ROLES[role], token, data, size, ffi.NULL))
            return bytes(ffi.buffer(data[0], size[0]))

    def prompt(self, prompt: Messages, raw: bool = False) -> prompts.Prompt:
        """Return the text and the ids that each model starts from, and the stop strings of the base's transcript."""
        self._need_open()
        aligned = self._vocabularies.get("aligned")
        return prompts.build(
            prompt,
            vocab_base=self._vocabularies.get("base") if self._asks_base else None,
            vocab_aligned=aligned,
            equal=self.vocab.equal,
            aligned_template=aligned.chat_template if aligned else None,
            base_template=self._base_template,
            raw=raw,
        )

    # ---- Generating -------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: Messages, *, raw: bool = ..., n: None = ..., **settings: Unpack[Keywords]
    ) -> Generation: ...

    @overload
    def generate(
        self, prompt: Messages, *, raw: bool = ..., n: int, **settings: Unpack[Keywords]
    ) -> list[Generation]: ...

    @show_settings
    def generate(
        self, prompt: Messages, *, raw: bool = False, n: int | None = None, **settings: Unpack[Keywords]
    ) -> Generation | list[Generation]:
        """Write one answer, or with `n` a list of n answers to the same prompt.

        Parameters
        ----------
        prompt
            A user's message, or chat messages: dicts with "role" and "content". With `raw`, the text to go on from.
        raw
            No templates: both models go on from the text as it stands, special-token spellings read as tokens.
        n
            Write n answers at once, 1 to 65,536: a list. They are texts number `text_number`, `text_number` + 1, ... of the
            seed; `n_parallel` of them at a time share the passes of both models.
        max_tokens
            Most events, 0 or more; a character made of several tokens is one event.
        temperature
            How each model speaks, >= 0; 0 is its best token. Who speaks is decided at the rule temperature.
        top_k, top_p, min_p, typical_p
            llama.cpp's samplers, applied to each model's own distribution: >= 0, (0, 1], [0, 1), (0, 1]; 0, 1.0, 0.0 and 1.0
            are off. Their order, and that of the next ones, is llama.cpp's: logit bias, penalties, DRY, top-k, typical,
            top-p, min-p, XTC, temperature.
        repeat_penalty, frequency_penalty, presence_penalty, repeat_last_n
            Penalties on the model's own last `repeat_last_n` tokens (>= 0, -1 is all), prompt included: > 0 (1.0 is off),
            and -1e6 to 1e6 (0.0 is off).
        dry_multiplier, dry_base, dry_allowed_length, dry_penalty_last_n, dry_sequence_breakers
            DRY, against repeated sequences: >= 0 (0.0 is off), >= 1, >= 0, tokens looked back (-1 is all), strings of at
            most 40 bytes that no sequence crosses.
        xtc_probability, xtc_threshold
            XTC drops the top tokens but the last that reaches the threshold: [0, 1] (0.0 is off), [0, 1] (above 0.5 is off).
            Its coin is a function of the seed, the position and the speaker.
        logit_bias
            What is added to a token's logit, by its text: finite, or ``-math.inf`` to ban it. The text must be one token of
            every model; the spelling of any model's end of generation is meant for all of them.
        mirostat
            0. Anything else is refused: mirostat draws for itself.
        grammar
            GBNF as a str or a ``llama_cpp.LlamaGrammar``: the text is drawn from the mixture restricted to what may come
            next. One that ends by itself is a sentence of the grammar.
        json_schema
            A JSON schema, str or dict, instead of a grammar. Keywords that llama.cpp's converter would ignore are refused.
        seed
            0 to 2**64 - 1; None draws one. The result has it.
        stop
            Strings that end the text before them.
        draft
            Guesses per base pass. "auto" chooses at every round by what passes have taken on this machine and which guesses
            were right in this text; 1 to `max_draft` is fixed; 0 runs lazily: the aligned model only where it is needed.
        ngram
            With draft="auto": guesses may also come from an n-gram table of prompt and text.
        spec
            False runs both models at every token, the reference.
        logprobs
            Fill `logprob` and `base_share` of every token; a lazy run then is a plain one.
        text_number
            Which text of this seed: the turn of a chat, the index within several texts.

        Raises
        ------
        InvalidArgumentError, PromptError, ContextError
            Before anything is evaluated.
        StateError
            After `close`, or while a stream is open in this thread.
        KeyboardInterrupt
            On Ctrl-C, within a pass where the backend can stop, whatever the program's own handler does; the instance
            stays usable. This and every error in mid-text has the text so far as its attribute `partial`, a `Generation`.
        """
        if n is not None:
            if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or not 1 <= n <= _MOST_TEXTS:
                raise InvalidArgumentError(f"n is {n!r}; expected a whole number from 1 to {_MOST_TEXTS}")
            return self.generate_many([prompt] * int(n), raw=raw, **settings)
        stream = self.stream(prompt, raw=raw, **settings)
        try:
            with stream:
                for _ in stream:
                    pass
        except BaseException as error:
            error.partial = stream.partial  # type: ignore[attr-defined]
            raise
        return stream.result

    @show_settings
    def generate_many(
        self, prompts: Sequence[Messages], *, raw: bool = False, **settings: Unpack[Keywords]
    ) -> list[Generation]:
        """Write an answer to each prompt, `n_parallel` of them at a time: parameters and errors of `generate`.

        Text i is text number `text_number` + i of the seed, and in reproducible mode what ``generate`` would write with that
        number alone. An error in mid-text has the texts so far as its attribute `partial`, a list, None for a text that
        had not begun.

        Returns
        -------
        list of Generation
            In the order of `prompts`. Times and passes of each are those it took part in.
        """
        self._need_open()
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise InvalidArgumentError(f"prompts is {prompts!r}; expected a list of prompts")
        chosen = read_settings(**settings)
        release = self._acquire()
        try:
            return write_texts(self._engine, self._jobs(prompts, raw, chosen))
        finally:
            release()

    def _jobs(self, prompts: Sequence[Messages], raw: bool, settings: Settings) -> list[Job]:
        self._check_draft(settings)
        seed = seed_of(settings)
        jobs: list[Job] = []
        for i, prompt in enumerate(prompts):
            same = i > 0 and prompt is prompts[i - 1]
            built = jobs[-1].prompt if same else self._fitting(self.prompt(prompt, raw), i)
            number = replace(settings, text_number=(settings.text_number + i) % 2**64)
            jobs.append(Job(built, number, seed))
        return jobs

    def _fitting(self, prompt: prompts.Prompt, i: int) -> prompts.Prompt:
        """The prompt, where it fits: of several texts the last is opened when the first are long under way."""
        for model, ids, role in ((self.base, prompt.base_ids, "base"), (self.aligned, prompt.aligned_ids, "aligned")):
            if model is not None and ids is not None and len(ids) > model.n_ctx:
                raise ContextError(
                    f"prompt {i} has {len(ids)} tokens for the {role} model, but the context holds {model.n_ctx}; "
                    "shorten the prompt or raise n_ctx"
                )
        return prompt

    @show_settings
    def stream(self, prompt: Messages, *, raw: bool = False, **settings: Unpack[Keywords]) -> Stream:
        """Write one answer token by token: parameters and errors of `generate`.

        Returns
        -------
        Stream
            An iterator of `Token`, to be read to its end, closed, or dropped; its `result` is then the `Generation`.
            While it is open, other threads wait and further calls in this thread raise `StateError`.
        """
        self._need_open()
        chosen = read_settings(**settings)
        release = self._acquire()
        try:
            return self._start(prompt, raw, chosen, release)
        except BaseException:
            release()
            raise

    def _check_draft(self, settings: Settings) -> None:
        if settings.spec and settings.draft != "auto" and settings.draft > self.max_draft:
            raise InvalidArgumentError(
                f"draft is {settings.draft}; expected at most {self.max_draft} guesses per pass (the batch holds no more)"
            )

    def _start(self, prompt: Messages, raw: bool, settings: Settings, release: Callable[[], None]) -> Stream:
        self._check_draft(settings)
        built = self.prompt(prompt, raw)
        stream = Stream(self._engine, built, settings, release)
        self._stream = weakref.ref(stream)
        return stream

    @show_score_settings
    def score(
        self, prompt: Messages, completion: str | Generation, *, raw: bool = False, **settings: Unpack[Keywords]
    ) -> Score:
        """Return what pi says of a given text after a prompt, token by token, as ``generate(logprobs=True)`` would.

        Each model evaluates each token once, many to a pass. Nothing is drawn.

        Parameters
        ----------
        prompt, raw
            As for `generate`.
        completion
            A text, or a `Generation`. Of a text: the tokens of the base's own tokenisation (the aligned model's where no
            base runs), as it goes on from the prompt; special-token spellings are plain text. Across vocabularies each is
            an event, but a further token of a character has the log-probability that the base alone gives it. Of a
            Generation: its own ids, each event one entry; a character made of several tokens is one.
        temperature, top_k, ...
            How each model speaks, and its samplers: as for `generate`. `seed` and `text_number` matter to XTC alone; the
            seed is a Generation's own, else 0, unless given.

        Returns
        -------
        Score
            `tokens`, one for each token or event (none for an empty text), and their sum `logprob`. The end of the text is
            not scored. What the models cannot say there, or no longer under top-k and the like, has -inf.

        Raises
        ------
        InvalidArgumentError
            For values out of range, ids that no model has, and what only says how a text is written (`max_tokens`, `stop`,
            `draft`, `grammar` ...).
        ContextError
            When prompt and text exceed a context in either model's tokens. These before anything is evaluated.
        StateError, KeyboardInterrupt
            As for `generate`.
        """
        self._need_open()
        chosen = score_settings(completion, dict(settings))
        given = read_completion(self, completion)
        return self._score(self.prompt(prompt, raw), given, chosen)

    def _score(self, prompt: prompts.Prompt, completion: Completion, settings: Settings) -> Score:
        release = self._acquire()
        try:
            stream = Stream(self._engine, prompt, settings, release)
        except BaseException:
            release()
            raise
        self._stream = weakref.ref(stream)
        with stream:
            values = stream.score(completion.ids, completion.sources, events=completion.events)
            return Score(completion.scored(values), stream.stats)

    @property
    def _speaking_role(self) -> Role:
        """In whose tokens a text is scored."""
        return "base" if self._asks_base and self.base is not None else "aligned"

    def _tokenize_continuation(self, data: bytes, role: Role) -> list[int]:
        with self._using:
            self._need_open()
            return self._ids(
                lambda ids, n, size: lib.kad_tokenize_continuation(
                    self._engine, _ROLES[role], data, len(data), ids, n, size
                ),
                len(data) + 16,
            )

    def next_logits(self, prompt: Messages, *, raw: bool = False) -> tuple[NDArray[np.float32], ...]:
        """Return the rows of logits after a prompt, as the rule sees them.

        Forbidden tokens are -inf and end of generation is folded into one event. With equal vocabularies entry i is token
        i; otherwise entries are events (byte strings), base ids first.

        Returns
        -------
        tuple of numpy.ndarray
            base and aligned (and reference, where there is one), float32, shape (vocab.n_events,). `kad_llama.mixture` of
            them is what is sampled.
        """
        if self.base is None or self.aligned is None:
            raise InvalidArgumentError("next_logits needs both models; this instance has one")
        with self.stream(prompt, raw=raw, spec=False, seed=0) as stream:
            return stream.rows(self.vocab.n_events, 2 if self.reference is None else 3)

    # ---- One call at a time -----------------------------------------------------------------------------------------

    def _acquire(self) -> _Turn:
        """Wait for this thread's turn; return what ends it. That does nothing the second time."""
        if self._owner == threading.get_ident():
            raise StateError(
                "a stream of this KadLlama is open in this thread; read it to its end, close() it, or use it in a with block"
            )
        left = self._turn() if self._turn is not None else None
        if left is not None and left.ending and left.thread == threading.get_ident():
            left()  # Ctrl-C kept it from ending
        turn = _Turn(self)
        self._turn = weakref.ref(turn)
        turn.begin()
        if self._engine == ffi.NULL:
            turn()
            self._need_open()
        return turn

    def _need_open(self) -> None:
        if self._engine == ffi.NULL:
            raise StateError("this KadLlama is closed; make a new one")

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._engine == ffi.NULL)

    def close(self) -> None:
        """Free both models. May be called again; waits for a call in another thread, closes a stream open in this one.

        In a signal handler that runs inside a call of this thread it lets that call end first.
        """
        if self._owner == threading.get_ident():
            stream = self._stream() if self._stream is not None else None
            if stream is not None and not stream.busy:
                stream.close()
        if self._owner == threading.get_ident():
            self._abandoned = True  # a signal handler inside a call: the end of the call closes
            return
        with self._lock, self._using:
            engine, self._engine = self._engine, ffi.NULL
            lib.kad_engine_close(engine)

    def __enter__(self) -> KadLlama:
        self._need_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may come here before the stream that is still open; then the stream's end frees the models.
        with contextlib.suppress(Exception):  # also where __init__ never ran
            if self._lock.locked():
                self._abandoned = True
            else:
                self.close()
