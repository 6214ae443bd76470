"""A grammar as the C API takes it: GBNF, from a string, a LlamaGrammar or a JSON schema.

The schema is converted by ``llama_cpp.LlamaGrammar.from_json_schema``. What that converter would pass over in silence is
refused here, and its rules for characters of a string are narrowed to what JSON allows, so that the text always parses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kad_llama.errors import InvalidArgumentError

__all__ = ["grammar_text"]

# Keywords that the converter reads, and those that constrain nothing. The rest would be ignored.
_READ = {
    *("type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format", "enum", "const", "oneOf", "anyOf", "allOf", "$ref"),
}
_SILENT = {
    *("$schema", "$id", "$anchor", "$comment", "$defs", "definitions", "title", "description"),
    *("default", "examples", "deprecated", "readOnly", "writeOnly"),
}
# Where a keyword counts only beside, or only without, others.
_NEEDS = {"minItems": "items", "maxItems": "items", "required": "properties"}
_EXCLUDES = {
    "minLength": ("pattern", "format", "enum", "const"),
    "maxLength": ("pattern", "format", "enum", "const"),
    "allOf": ("properties", "additionalProperties", "oneOf", "anyOf", "enum", "const", "$ref"),
    "oneOf": ("properties", "anyOf", "enum", "const", "items", "$ref"),
    "anyOf": ("properties", "enum", "const", "items", "$ref"),
    "properties": ("$ref", "enum", "const"),
    "prefixItems": ("items",),
}
# Characters of a JSON string that stand for themselves.
_PLAIN = r'[^"\\\x00-\x1F\x7F]'


def grammar_text(grammar: Any, json_schema: object) -> str | None:
    """Return GBNF whose first rule is ``root``; None when neither is given."""
    if grammar is not None and json_schema is not None:
        raise InvalidArgumentError("grammar and json_schema are both given; expected one of them")
    if json_schema is not None:
        return _from_schema(json_schema)
    if grammar is None:
        return None
    text = grammar if isinstance(grammar, str) else getattr(grammar, "_grammar", None)
    if not isinstance(text, str):
        raise InvalidArgumentError(f"grammar is {grammar!r}; expected GBNF as a str, or a llama_cpp.LlamaGrammar")
    if getattr(grammar, "_root", "root") != "root":
        raise InvalidArgumentError(f"grammar begins with rule {grammar._root!r}; expected its first rule to be 'root'")
    return _encodable("grammar", text)


def _encodable(name: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{name} holds a lone surrogate at character {error.start}") from None
    if "\0" in text:
        raise InvalidArgumentError(f"{name} holds NUL at character {text.index(chr(0))}; write it as \\x00")
    return text


def _from_schema(schema: object) -> str:
    loaded = _load(schema)
    for part in _parts(loaded):
        _check_part(part)
    from llama_cpp.llama_grammar import LlamaGrammar

    try:
        text = str(LlamaGrammar.from_json_schema(json.dumps(loaded), verbose=False)._grammar)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        reason = str(error) or type(error).__name__
        raise InvalidArgumentError(f"json_schema cannot be made into a grammar: {reason}") from None
    text = re.sub(r'^char ::= \[\^"\\\\\]', lambda _: f"char ::= {_PLAIN}", text, flags=re.MULTILINE)
    # Literals hold what json.dumps() escapes: of a character beyond U+FFFF a pair of surrogates, which nothing can say.
    text = re.sub(r"\\u(d[89ab]..)\\u(d[c-f]..)", _character, text)
    text = re.sub(r"^dot ::= .*$", lambda _: f"dot ::= {_PLAIN}", text, flags=re.MULTILINE)
    return _encodable("json_schema", text)


def _character(pair: re.Match[str]) -> str:
    """Return the character that a pair of surrogates, in hexadecimal, stands for."""
    return b"".join(int(half, 16).to_bytes(2, "big") for half in pair.groups()).decode("utf-16-be")


def _load(schema: object) -> Mapping[str, Any]:
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise InvalidArgumentError(f"json_schema is no JSON: {error}") from None
        except RecursionError:
            raise InvalidArgumentError("json_schema is nested too deeply") from None
    if not isinstance(schema, Mapping):
        raise InvalidArgumentError(f"json_schema is {schema!r}; expected a JSON object, as a str or a dict")
    try:
        loaded: Mapping[str, Any] = json.loads(
            json.dumps(schema, allow_nan=False)
        )  # a copy: the converter writes into it
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(f"json_schema is no JSON: {error}") from None
    return loaded


def _parts(schema: object) -> Iterator[Mapping[str, Any]]:
    """Yield the schema and all schemas in it."""
    waiting = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping):
            raise InvalidArgumentError(f"json_schema has {part!r} as a schema; expected an object")
        yield part
        for name in ("properties", "$defs", "definitions"):
            inner = part.get(name, {})
            waiting += inner.values() if isinstance(inner, Mapping) else [inner]
        for name in ("items", "prefixItems", "oneOf", "anyOf", "allOf"):
            inner = part.get(name, [])
            waiting += inner if isinstance(inner, list) else [inner]
        if not isinstance(part.get("additionalProperties", True), bool):
            waiting.append(part["additionalProperties"])


def _check_part(part: Mapping[str, Any]) -> None:
    """Refuse what the converter would pass over."""
    where = f"json_schema, in {json.dumps(part)[:80]}"
    unknown = sorted(part.keys() - _READ - _SILENT)
    if unknown:
        raise InvalidArgumentError(
            f"{where}: {unknown[0]!r} is nothing that llama.cpp's converter can express; leave it out"
        )
    for name, other in _NEEDS.items():
        if name in part and not isinstance(part.get(other), Mapping):
            raise InvalidArgumentError(f"{where}: {name!r} counts only beside {other!r} (an object)")
    for name, others in _EXCLUDES.items():
        clash = [other for other in others if name in part and other in part]
        if clash:
            raise InvalidArgumentError(
                f"{where}: {name!r} and {clash[0]!r} cannot be combined by llama.cpp's converter"
            )
    missing = [name for name in part.get("required", []) if name not in part["properties"]]
    if missing:
        raise InvalidArgumentError(f"{where}: 'required' names {missing[0]!r}, which 'properties' lacks")
    if "pattern" in part:
        _check_pattern(part["pattern"])
    for name in ("const", "enum", "properties"):
        value = part.get(name)
        names = list(value) if name == "properties" and isinstance(value, Mapping) else value
        for string in _strings(names):
            _check_literal(name, string)


def _strings(value: object) -> Iterator[str]:
    """Yield the strings of a JSON value, names included."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, Mapping):
            waiting += [*item, *item.values()]


def _check_literal(name: str, string: str) -> None:
    """The converter takes JSON's own escapes for GBNF's: what it would write is no JSON."""
    bad = re.search('["\\\\\x00-\x1f\ud800-\udfff]', string)
    if bad:
        raise InvalidArgumentError(
            f"json_schema: {name} has {string!r} with {bad.group()!r}, which llama.cpp's converter would misspell; expected "
            "text without quotes, backslashes, control characters and lone surrogates"
        )


def _check_pattern(pattern: object) -> None:
    """A pattern goes into a JSON string as it stands: it may not match what JSON would have to escape."""
    if not isinstance(pattern, str):
        raise InvalidArgumentError(f"json_schema: pattern is {pattern!r}; expected a str")
    for match in re.finditer(r"\\(.)|\[(\^?)([^\]]*)\]|([\x00-\x1f\"\x7f])", pattern, re.DOTALL):
        escaped, negated, characters, plain = match.groups()
        bad = plain or (escaped and escaped not in "[]()|{}*+?-") or negated
        if bad or any(_covers(characters or "", ord(c)) for c in '"\\\0\n\x1f'):
            raise InvalidArgumentError(
                f"json_schema: pattern {pattern!r} has {match.group()!r}, which may match what a JSON string cannot hold "
                "as it stands; expected characters and classes without quotes, backslashes and control characters"
            )


def _covers(characters: str, code: int) -> bool:
    """Whether the inside of a character class holds a code point."""
    ranges = [(ord(low), ord(high)) for low, high in re.findall(r"(.)-(.)", characters, re.DOTALL)]
    return chr(code) in characters or any(low <= code <= high for low, high in ranges)
