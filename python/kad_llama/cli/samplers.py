"""The flags of llama.cpp's further samplers and of grammars, by llama.cpp's names."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from kad_llama.errors import InvalidArgumentError

__all__ = ["add_samplers", "sampler_keywords"]

# flag, type, default (for the help alone), metavar, help. The keyword of `KadLlama.generate` is the flag's own name.
_FLAGS: tuple[tuple[str, type, float, str, str], ...] = (
    ("repeat-penalty", float, 1.0, "X", "divide the logits of tokens that were said"),
    ("repeat-last-n", int, 64, "N", "tokens that the penalties look back; -1 = all"),
    ("presence-penalty", float, 0.0, "X", "subtract X once from tokens that were said"),
    ("frequency-penalty", float, 0.0, "X", "subtract X for every time"),
    ("dry-multiplier", float, 0.0, "X", "DRY, against repeated sequences"),
    ("dry-base", float, 1.75, "X", "its base"),
    ("dry-allowed-length", int, 2, "N", "longest repetition it leaves alone"),
    ("dry-penalty-last-n", int, -1, "N", "tokens it looks back; -1 = all"),
    ("xtc-probability", float, 0.0, "X", "how often to drop the top tokens but the last of them"),
    ("xtc-threshold", float, 0.1, "X", "from which probability on"),
)
_OFF = {"repeat-penalty", "presence-penalty", "frequency-penalty", "dry-multiplier", "xtc-probability"}
_ESCAPES = {"\\n": "\n", "\\t": "\t", "\\r": "\r", '\\"': '"', "\\\\": "\\"}


def add_samplers(parser: argparse.ArgumentParser) -> None:
    """Add both groups of flags."""
    group = parser.add_argument_group("more samplers, of each model's own tokens")
    group.add_argument("--typical", type=float, metavar="X", help="locally typical sampling (default 1.0: off)")
    for name, kind, default, metavar, text in _FLAGS:
        shown = f"{text} (default {default}{': off' if name in _OFF else ''})"
        group.add_argument(f"--{name}", type=kind, metavar=metavar, help=shown)
    group.add_argument(
        "--dry-sequence-breaker",
        metavar="TEXT",
        action="append",
        help="no repetition crosses it; may be repeated, instead of \\n : \" *; 'none' = none",
    )
    group.add_argument(
        "-l",
        "--logit-bias",
        metavar="TEXT=BIAS",
        action="append",
        type=_bias,
        help="add to the logit of this one token; -inf or false bans it; may be repeated",
    )
    group.add_argument("--mirostat", type=int, metavar="N", help="0; refused: it draws for itself")
    _add_grammar(parser)


def _add_grammar(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("grammar").add_mutually_exclusive_group()
    group.add_argument("--grammar", metavar="GBNF", help="what may be said, as llama.cpp's GBNF")
    group.add_argument("--grammar-file", metavar="FILE", help="the same, from a file")
    group.add_argument("-j", "--json-schema", metavar="SCHEMA", help="say JSON of this schema")
    group.add_argument("-jf", "--json-schema-file", metavar="FILE", help="the same, from a file")


def _bias(given: str) -> tuple[str, float]:
    text, equals, value = given.rpartition("=")
    try:
        bias = -math.inf if value.lower() == "false" else float(value)
    except ValueError:
        bias = math.nan
    if not equals or not text or math.isnan(bias):
        raise argparse.ArgumentTypeError(f"invalid value {given!r}: expected TEXT=NUMBER, TEXT=-inf or TEXT=false")
    return text, bias


def sampler_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keywords of KadLlama.stream() that these flags stand for, those that were given."""
    names = ["mirostat", *(name.replace("-", "_") for name, *_ in _FLAGS)]
    keywords: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    keywords["typical_p"] = arguments.typical
    if arguments.dry_sequence_breaker is not None:
        keywords["dry_sequence_breakers"] = _breakers(arguments.dry_sequence_breaker)
    if arguments.logit_bias is not None:
        keywords["logit_bias"] = dict(arguments.logit_bias)
    for name in ("grammar", "json_schema"):
        path = getattr(arguments, f"{name}_file")
        keywords[name] = getattr(arguments, name) if path is None else _read(name, path)
    return {name: value for name, value in keywords.items() if value is not None}


def _breakers(given: list[str]) -> list[str]:
    texts = [re.sub(r'\\[ntr"\\]', lambda match: _ESCAPES[match.group()], text) for text in given]
    return [text for text in texts if text != "none"]


def _read(name: str, path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidArgumentError(f"cannot read the {name.replace('_', ' ')} in {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(
            f"the {name.replace('_', ' ')} in {path!r} is not UTF-8 at byte {error.start}"
        ) from None
