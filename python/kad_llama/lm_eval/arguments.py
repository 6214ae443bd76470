"""What the harness hands over by name, checked: `--model_args`, and the generation options of tasks and `--gen_kwargs`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kad_llama.errors import InvalidArgumentError
from kad_llama.rules import number
from kad_llama.settings import Keywords, Settings, read_settings

__all__ = ["ModelArguments", "read_generation", "read_model_arguments"]

_FILES = ("base", "aligned", "reference")
_WHOLE = ("n_ctx", "n_parallel", "n_threads", "n_gpu_layers", "n_gpu_layers_aligned")
_LOAD = (
    *_FILES,
    *("rule", "threshold", "rule_temperature"),
    *_WHOLE,
    *("reproducible", "base_params", "aligned_params", "reference_params", "base_template", "verbose"),
)
_SPEAK = ("temperature", "seed", "draft", "ngram", "spec")
# What the harness' command adds by itself, asked for or not. GGUF files hold no code that could be trusted.
_HARNESS = ("batch_size", "max_batch_size", "device", "trust_remote_code")
_DEVICES = (None, "cuda", "cuda:0", "mps", "gpu")

_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_STOPS = ("until", "stop")
_RENAMED = {"repetition_penalty": "repeat_penalty"}
# Keywords of `generate` that tasks may give by their own names; the others are the adapter's to set.
_OWN = tuple(name for name in Keywords.__annotations__ if name not in ("max_tokens", "stop", "logprobs", "text_number"))
_OPTIONS = (*_STOPS, *_TOKENS, "do_sample", "num_beams", *_RENAMED, *_OWN)
MAX_TOKENS = 256  # the harness' own default


@dataclass(frozen=True)
class ModelArguments:
    """`load`: keywords of KadLlama. `speak`: how a text is written; its `temperature` is also the one of scores."""

    load: dict[str, Any]
    speak: dict[str, Any]


def read_model_arguments(given: Mapping[str, Any]) -> ModelArguments:
    """Check `--model_args`. The harness guesses types from text, so whole numbers may come as floats."""
    _known("model_args", given, (*_LOAD, *_SPEAK, *_HARNESS))
    given = {name: _as_whole(value) if name in (*_WHOLE, "seed", "draft") else value for name, value in given.items()}
    load = {name: given[name] for name in _LOAD if name in given}
    for name in _FILES:
        load[name] = _file(name, given.get(name))
    load["rule"] = load.get("rule", "dual")
    _read_device(given.get("device"), load)
    _read_batch_size(given.get("batch_size"), load)
    speak = {"temperature": 1.0, "seed": 0} | {name: given[name] for name in _SPEAK if given.get(name) is not None}
    speak["temperature"] = number("temperature", speak["temperature"])
    read_settings(**speak)  # refuses what is out of range before a file is opened
    return ModelArguments(load, speak)


def _known(what: str, given: Mapping[str, Any], names: Iterable[str]) -> None:
    names = list(names)
    for name in given:
        if name not in names:
            nearest = difflib.get_close_matches(str(name), names, 1, 0)[0]
            raise InvalidArgumentError(
                f"{what} has {name}={given[name]!r}, which is unknown; the nearest name there is: {nearest!r}"
            )


def _as_whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _file(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, (str, os.PathLike)) and os.fspath(value)):
        return value
    raise InvalidArgumentError(f"model_args has {name}={value!r}; expected the path of a GGUF file")


def _read_device(device: Any, load: dict[str, Any]) -> None:
    """`--device cpu` puts no layers on a GPU; cuda:0, the harness' default, leaves it to `n_gpu_layers`."""
    if device == "cpu":
        load.setdefault("n_gpu_layers", 0)
        load.setdefault("n_gpu_layers_aligned", 0)
    elif device not in _DEVICES:
        raise InvalidArgumentError(
            f"device is {device!r}; expected 'cpu' or 'cuda:0' (another GPU: choose it by CUDA_VISIBLE_DEVICES)"
        )


def _read_batch_size(size: Any, load: dict[str, Any]) -> None:
    """`--batch_size N`: N texts at a time. 1 is what the harness gives unasked, and `auto` is for us to choose."""
    if size is None or str(size).startswith("auto"):
        return
    try:
        texts = int(size)
    except ValueError:
        raise InvalidArgumentError(
            f"batch_size is {size!r}; expected a whole number of at least 1, or 'auto'"
        ) from None
    if texts < 1:
        raise InvalidArgumentError(f"batch_size is {size!r}; expected a whole number of at least 1, or 'auto'")
    if texts > 1:
        load.setdefault("n_parallel", texts)


def read_generation(given: Mapping[str, Any], speak: Mapping[str, Any]) -> Settings:
    """The settings that a task's generation options ask for; what the pair cannot do is refused by name.

    As in the harness' own models a text is greedy unless `do_sample` or a temperature says otherwise; a text that is drawn
    and names no temperature is drawn at that of `speak`.
    """
    _known("the task's generation options", given, _OPTIONS)
    beams = given.get("num_beams")
    if beams not in (None, 1):
        raise InvalidArgumentError(f"num_beams is {beams!r}; expected 1: there is no beam search")
    own = {_RENAMED.get(name, name): value for name, value in given.items() if name in (*_OWN, *_RENAMED)}
    if None not in (given.get("repetition_penalty"), given.get("repeat_penalty")):
        raise InvalidArgumentError("repetition_penalty and repeat_penalty are the same; give one of them")
    chosen = {name: value for name, value in own.items() if value is not None}
    return read_settings(
        **{
            **speak,
            **chosen,
            "temperature": _temperature(given, speak["temperature"]),
            "max_tokens": _max_tokens(given),
            "stop": _stops(given),
        }
    )


def _temperature(given: Mapping[str, Any], default: float) -> float:
    sampled, temperature = given.get("do_sample"), given.get("temperature")
    if sampled is not None and not isinstance(sampled, bool):
        raise InvalidArgumentError(f"do_sample is {sampled!r}; expected true or false")
    if sampled is False:
        return 0.0
    if temperature is None:
        return default if sampled else 0.0
    return number("temperature", temperature)


def _max_tokens(given: Mapping[str, Any]) -> int:
    limits = {name: given[name] for name in _TOKENS if given.get(name) is not None}
    if len(set(limits.values())) > 1:
        shown = " and ".join(f"{name}={value!r}" for name, value in limits.items())
        raise InvalidArgumentError(f"{shown} contradict each other; give max_gen_toks alone, as tasks do")
    return int(read_settings(max_tokens=_as_whole(next(iter(limits.values()), MAX_TOKENS))).max_tokens)


def _stops(given: Mapping[str, Any]) -> list[str]:
    """All stop strings. Tasks write "" for one that never occurs."""
    stops: list[str] = []
    for name in _STOPS:
        value = given.get(name)
        if value is None:
            continue
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise InvalidArgumentError(f"{name} is {value!r}; expected a string or a list of strings")
        stops += [text for text in texts if text and text not in stops]
    return stops
