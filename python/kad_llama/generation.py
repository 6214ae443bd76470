"""What a run gives back: tokens, the text, statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Generation", "Stats", "Token"]


@dataclass(frozen=True)
class Token:
    """One event of the text: a token, or, across vocabularies, a character made of several tokens.

    Attributes
    ----------
    text
        What it adds to the text. Bytes that do not yet make a character are held back and come with a later token, so
        that joined texts are the text; a stop string's part is left out.
    bytes
        Its bytes, exactly as said.
    id
        Its id in the vocabulary of the model that said it; of several tokens, the first.
    source
        Who said it: "base" or "aligned"; under implicit-reward, where nobody speaks alone, "joint".
    logprob
        log pi of the event, natural logarithm, before a grammar restricted it; None unless logprobs were asked for.
    base_share
        Probability that the base said it rather than the aligned model; None unless logprobs were asked for, and under
        implicit-reward.
    deferred_mass
        alpha at this position: the probability that the aligned model speaks; None under implicit-reward.
    guess
        "none": not guessed; "right": guessed and kept; "corrected": guessed wrong.
    base_logprob, aligned_logprob
        log p' and log q' of the event, as each model spoke; None unless logprobs were asked for (and of a model that is not
        there).
    ids
        All its ids in the vocabulary of `source`: one, or as many as the character took.
    """

    text: str
    bytes: bytes
    id: int
    source: Literal["base", "aligned", "joint"]
    logprob: float | None
    base_share: float | None
    deferred_mass: float | None
    guess: Literal["none", "right", "corrected"]
    base_logprob: float | None
    aligned_logprob: float | None
    ids: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON; bytes as a list of ints."""
        return asdict(self) | {"bytes": list(self.bytes)}


@dataclass(frozen=True)
class Stats:
    """How a run went. Tokens are events; times are seconds.

    Attributes
    ----------
    prompt_tokens, prompt_tokens_aligned, prompt_cached
        Length of the base's prompt (the aligned model's where there is no base), of the aligned model's, and how much of
        the first was reused from the call before.
    tokens
        Events said; end of generation is not counted.
    base_passes, aligned_passes, reference_passes
        Evaluations after the prompt; of several texts written at once, those in which this one took part.
    drafted, accepted, acceptance_rate
        Guesses that an outcome was compared with, those that were right, and their share (0 without guesses).
    tokens_per_base_pass
        tokens / base_passes (0 without passes).
    deferred_mass
        Mean alpha over the events; None under implicit-reward.
    aligned_share
        Share of the events said by the aligned model.
    mode, note
        "auto", "speculative", "lazy" or "plain", as it ran; and why it is not what was asked for, "" when it is.
    tokens_per_second
        tokens over the time after the prompt.
    prompt_s, wall_s
        Time until both prompts were evaluated; the whole call.
    base_eval_s, aligned_eval_s, reference_eval_s
        Of the time after the prompt: inside llama_decode and llama_synchronize of each model.
    read_s, draw_s, text_s
        Of the same time: getting rows ready (normalisers, samplers), drawing from them, and turning text into the tokens
        of both models where vocabularies differ. In seconds, of this text alone.
    """

    prompt_tokens: int
    prompt_tokens_aligned: int
    prompt_cached: int
    tokens: int
    base_passes: int
    aligned_passes: int
    reference_passes: int
    drafted: int
    accepted: int
    acceptance_rate: float
    tokens_per_base_pass: float
    deferred_mass: float | None
    aligned_share: float
    mode: Literal["speculative", "lazy", "plain", "auto"]
    note: str
    tokens_per_second: float
    prompt_s: float
    wall_s: float
    base_eval_s: float
    aligned_eval_s: float
    reference_eval_s: float
    read_s: float
    draw_s: float
    text_s: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Generation:
    """A text and how it came about. Given the models, the prompt and the settings, `seed` gives it again.

    `finish_reason` is "stop" (a model ended the text, or a stop string was met), "length" (max_tokens, or a context is
    full), or "interrupted" (Ctrl-C, a closed stream or an error; the text so far).
    """

    text: str
    tokens: list[Token]
    finish_reason: Literal["stop", "length", "interrupted"]
    seed: int
    stats: Stats

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            "text": self.text,
            "tokens": [token.to_dict() for token in self.tokens],
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            "stats": self.stats.to_dict(),
        }
