"""The keywords of `KadLlama.generate` and `stream`: one list, checked once, shown by help()."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np

from kad_llama.errors import InvalidArgumentError
from kad_llama.grammars import grammar_text
from kad_llama.rules import number

__all__ = ["Keywords", "Settings", "read_settings", "show_settings"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_INT32 = 2**31 - 1


class Keywords(TypedDict, total=False):
    """What a caller may give, for type checkers; `KadLlama.generate` says what each one means."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: str | Sequence[str]
    xtc_probability: float
    xtc_threshold: float
    logit_bias: Mapping[str, float] | None
    mirostat: int
    grammar: Any
    json_schema: str | Mapping[str, Any] | None
    seed: int | None
    stop: str | Sequence[str] | None
    draft: int | Literal["auto"]
    ngram: bool
    spec: bool
    logprobs: bool
    text_number: int


@dataclass(frozen=True)
class Settings:
    """The same, checked; `grammar` is GBNF, made of `json_schema` where that was given."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    logit_bias: Mapping[str, float] | None = None
    mirostat: int = 0
    grammar: str | None = None
    json_schema: str | Mapping[str, Any] | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    draft: int | Literal["auto"] = "auto"
    ngram: bool = True
    spec: bool = True
    logprobs: bool = False
    text_number: int = 0


def _whole(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= int(value) <= high:
        raise InvalidArgumentError(f"{name} is {value!r}; expected a whole number {low} to {high}")
    return int(value)


def _text(name: str, item: object) -> str:
    if not isinstance(item, str) or not item or "\0" in item:
        raise InvalidArgumentError(f"{name} has {item!r}; expected strings of at least one character, without NUL")
    try:
        item.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            f"{name} has {item!r}, a lone surrogate; expected text that UTF-8 can encode"
        ) from None
    return item


def _texts(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise InvalidArgumentError(f"{name} is {value!r}; expected a string or a list of strings")
    return tuple(_text(name, item) for item in value)


def _biases(value: object) -> Mapping[str, float]:
    if not isinstance(value, Mapping):
        raise InvalidArgumentError(f"logit_bias is {value!r}; expected a dict from the text of a token to a number")
    return {_text("logit_bias", text): _bias(text, bias) for text, bias in value.items()}


def _bias(text: str, bias: object) -> float:
    if isinstance(bias, (float, np.floating)) and bias == -math.inf:
        return -math.inf
    return number(f"logit_bias of {text!r}", bias)


_WHOLE = {
    "max_tokens": (0, _INT32),
    "top_k": (0, _INT32),
    "repeat_last_n": (-1, _INT32),
    "dry_allowed_length": (0, _INT32),
    "dry_penalty_last_n": (-1, _INT32),
    "mirostat": (-_INT32, _INT32),
    "seed": (0, 2**64 - 1),
    "draft": (0, _INT32),
    "text_number": (0, 2**64 - 1),
}


def _checked(name: str, value: Any) -> Any:
    """Return one keyword's value in the type of `Settings`; ranges of samplers are the C API's to check."""
    if name == "draft" and isinstance(value, str):
        if value != "auto":
            raise InvalidArgumentError(f'draft is {value!r}; expected "auto", or a whole number of at least 0')
        return value
    if name in _WHOLE:
        return _whole(name, value, *_WHOLE[name])
    if name in ("spec", "logprobs", "ngram"):
        return bool(value)
    if name in ("stop", "dry_sequence_breakers"):
        return _texts(name, value)
    if name == "logit_bias":
        return _biases(value)
    return value if name in ("grammar", "json_schema") else number(name, value)


def read_settings(**given: Any) -> Settings:
    """Check keywords of `KadLlama.generate`, any of them; the others get their defaults."""
    defaults = {field.name: field.default for field in fields(Settings)}
    for name in given:
        if name not in defaults:
            nearest = difflib.get_close_matches(name, defaults, 1, 0)
            raise TypeError(f"unexpected keyword argument {name!r}; the nearest one there is: {nearest[0]!r}")
    checked: dict[str, Any] = {
        name: None if value is None and defaults[name] is None else _checked(name, value)
        for name, value in given.items()
    }
    checked["grammar"] = grammar_text(checked.get("grammar"), checked.get("json_schema"))
    return Settings(**checked)


def show_settings(function: _Function) -> _Function:
    """Give a method of ``**settings: Unpack[Keywords]`` the signature that help() and editors show."""
    written = inspect.signature(function)
    parameters = [p for p in written.parameters.values() if p.kind is not p.VAR_KEYWORD]
    accepted = Keywords.__annotations__
    for field in fields(Settings):
        annotation = getattr(accepted[field.name], "__forward_arg__", accepted[field.name])
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=annotation)
        )
    function.__signature__ = written.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
