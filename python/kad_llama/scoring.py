"""What a text that is given would have been worth: log-probabilities, token by token, without a draw."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from kad_llama.errors import InvalidArgumentError
from kad_llama.generation import Generation, Stats
from kad_llama.settings import Settings, read_settings, show_settings

if TYPE_CHECKING:
    from kad_llama.session import KadLlama

__all__ = ["Completion", "Score", "ScoredToken", "read_completion", "score_settings", "show_score_settings"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SOURCES = {"base": 0, "aligned": 1, "joint": 2}
# Keywords of `generate` that say how a text is written.
_OF_A_RUN = ("max_tokens", "stop", "draft", "ngram", "spec", "logprobs", "grammar", "json_schema", "mirostat")


@dataclass(frozen=True)
class ScoredToken:
    """One token of a given text; of a `Generation`, one event.

    Attributes
    ----------
    text
        What it adds to the text. Bytes that do not yet make a character come with a later token, so that joined texts are
        the text.
    bytes, ids
        Its bytes, and its ids in the vocabulary of the model that said it (of a text: the base's).
    logprob
        log pi, natural logarithm, before a grammar; -inf for what cannot be said there.
    base_logprob, aligned_logprob
        log p' and log q', as each model speaks; None of a model that does not run.
    deferred_mass
        alpha at this position: the probability that the aligned model speaks; None under implicit-reward, and for a further
        token of a character, to which no rule applies.
    base_share
        Probability that the base said it rather than the aligned model; None under implicit-reward.
    """

    text: str
    bytes: bytes
    ids: tuple[int, ...]
    logprob: float
    base_logprob: float | None
    aligned_logprob: float | None
    deferred_mass: float | None
    base_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; bytes as a list of ints."""
        return asdict(self) | {"bytes": list(self.bytes)}


@dataclass(frozen=True)
class Score:
    """The tokens of a given text with their log-probabilities, and how the run went (`stats`)."""

    tokens: list[ScoredToken]
    stats: Stats

    @property
    def logprob(self) -> float:
        """log pi of the whole text, natural logarithm: the sum over its tokens; 0 for an empty one."""
        values = [token.logprob for token in self.tokens]
        return -math.inf if -math.inf in values else math.fsum(values)

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "logprob": self.logprob,
            "tokens": [token.to_dict() for token in self.tokens],
            "stats": self.stats.to_dict(),
        }


@dataclass(frozen=True)
class Completion:
    """A text as the library takes it: per entry its ids and bytes; `counts` and `sources` of events, else every id alone."""

    ids: list[tuple[int, ...]]
    bytes: list[bytes]
    events: bool = False
    sources: list[int] | None = None

    def scored(self, values: Sequence[Sequence[float]]) -> list[ScoredToken]:
        """Return the tokens with what the library said of each."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        last = len(self.bytes) - 1
        return [
            ScoredToken(decoder.decode(data, i == last), data, ids, logprob, *map(_or_none, others))
            for i, (ids, data, (logprob, *others)) in enumerate(zip(self.ids, self.bytes, values, strict=True))
        ]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def read_completion(kad: KadLlama, completion: str | Generation) -> Completion:
    """Return the entries of a text, or the events of a `Generation` with the ids that it was made of."""
    if isinstance(completion, Generation):
        tokens = completion.tokens
        for i, token in enumerate(tokens):
            role = "aligned" if token.source == "aligned" and not kad.vocab.equal else kad._speaking_role
            if b"".join(kad.token_bytes(each, role=role) for each in token.ids) != token.bytes:
                raise InvalidArgumentError(
                    f"token {i} of the Generation has ids {list(token.ids)} and bytes {token.bytes!r}, which are not one in "
                    f"the {role} model's vocabulary; score it with the models that wrote it"
                )
        sources = None if kad.vocab.equal else [_SOURCES[token.source] for token in tokens]
        return Completion([token.ids for token in tokens], [token.bytes for token in tokens], True, sources)
    if not isinstance(completion, str):
        raise InvalidArgumentError(f"completion is a {type(completion).__name__}; expected a str or a Generation")
    try:
        data = completion.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the completion holds a lone surrogate at character {error.start}; expected text that UTF-8 can encode"
        ) from None
    role = kad._speaking_role
    ids = kad._tokenize_continuation(data, role)
    return Completion([(token,) for token in ids], [kad.token_bytes(token, role=role) for token in ids])


def score_settings(completion: object, given: dict[str, Any]) -> Settings:
    """Check the keywords of `KadLlama.score`; the seed, which XTC looks at, is a Generation's own where none is given."""
    for name in _OF_A_RUN:
        if name in given:
            raise InvalidArgumentError(
                f"{name} is {given[name]!r}: it says how a text is written, and score writes none; leave it out"
            )
    seed = given.get("seed")
    if seed is None:
        seed = completion.seed if isinstance(completion, Generation) else 0
    return read_settings(**(given | {"seed": seed, "max_tokens": 1, "spec": False, "logprobs": True}))


def show_score_settings(function: _Function) -> _Function:
    """Give `score` the signature that help() and editors show."""
    signature = show_settings(function).__signature__  # type: ignore[attr-defined]
    parameters = [p for name, p in signature.parameters.items() if name not in _OF_A_RUN]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
