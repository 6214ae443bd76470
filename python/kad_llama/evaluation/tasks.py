"""What is asked, and which answer is right: tasks are small TOML files over the lines of a data file.

Keys of a task file (only `prompt` and `target` must be there; "template" is text with `{field}` over a data line's fields,
`{field.key}` and `{field.0}` inside them, `{{` and `}}` for braces):

name             what the task is called; default: the file's name
data             JSONL, or one JSON list, of objects; a path relative to the task file
source           where the data comes from, for the error when there is none
id               template of a question's id; default: the number of the line
prompt           template of the user's message
system           a system message
transcript       template of the question as it stands after worked examples; default: prompt
examples         worked examples: a list of {question, answer}, or the path of a file of such lines
target           template of the right answer
target_pattern   a regular expression with one group that cuts it out of that (its last match)
options          the field with the texts of the options; `{options}` in a prompt is then a lettered list
labels           the field with the options' own labels, where the target is one of them
letters          the letters that "option letter" looks for, without `options`; default "ABCDE"
find             "last number", "boxed", "option letter", "whole" (default), or a regular expression with one group
compare          "exact" (default), "numeric" or "latex"
ignore           for exact: what does not matter, of "case", "space", "punctuation" (all default) and "articles"
tolerance        for numbers: the largest difference of equal ones; default 0
max_tokens       most tokens of an answer; default 256
stop             strings that end an answer
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation.extraction import COMPARISONS, IGNORABLE, Comparison, finder, number

__all__ = ["BUILT_IN", "Example", "Mark", "Question", "Task", "load_task"]

BUILT_IN = ("arc", "csqa", "gsm8k", "math", "svamp")

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TEXTS = ("name", "data", "source", "id", "prompt", "system", "transcript", "target", "target_pattern")
_MORE_TEXTS = ("options", "labels", "letters", "find", "compare")
_KEYS = (*_TEXTS, *_MORE_TEXTS, "examples", "ignore", "tolerance", "max_tokens", "stop")


@dataclass(frozen=True)
class Question:
    """One question: what the user says, how it stands in a transcript, the right answer, the letters of its options."""

    id: str
    prompt: str
    transcript: str
    target: str
    letters: str


@dataclass(frozen=True)
class Example:
    """A worked example."""

    question: str
    answer: str


@dataclass(frozen=True)
class Mark:
    """What a text is worth: the answer found in it, whether one of the right form was found, and whether it is right."""

    answer: str | None
    form: bool
    correct: bool


@dataclass(frozen=True)
class Task:
    """A task with its questions.

    Attributes
    ----------
    questions
        In the order of the data.
    skipped
        The malformed lines that were passed over: file, line and what was expected.
    identity
        What tells this task from another: name, and SHA-256 of the task file, its data and its file of examples.
    """

    name: str
    questions: tuple[Question, ...]
    examples: tuple[Example, ...]
    system: str | None
    find: str
    comparison: Comparison
    max_tokens: int
    stop: tuple[str, ...]
    skipped: tuple[str, ...]
    identity: Mapping[str, Any]

    def mark(self, question: Question, text: str) -> Mark:
        """Find the answer in a text and compare it."""
        answer = finder(self.find)(text, question.letters)
        form = answer is not None and self.comparison.has_form(answer)
        return Mark(answer, form, form and answer is not None and self.comparison.equal(answer, question.target))

    def first(self, n: int | None) -> tuple[Question, ...]:
        """Return the first `n` questions, all for None."""
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InvalidArgumentError(f"n is {n!r}; expected a whole number of at least 1, or None for all questions")
        return self.questions[:n]

    def worked(self, n: int) -> tuple[Example, ...]:
        """Return the first `n` worked examples; refuse one that is asked as a question too."""
        if not 0 <= n <= len(self.examples):
            raise InvalidArgumentError(
                f"{n} worked examples were asked for, but task {self.name!r} has {len(self.examples)}; "
                "take fewer, or give its file more under `examples`"
            )
        asked = {
            _key(text): question.id for question in self.questions for text in (question.prompt, question.transcript)
        }
        for example in self.examples[:n]:
            if _key(example.question) in asked:
                raise InvalidArgumentError(
                    f"the worked example {example.question[:60]!r} of task {self.name!r} is question "
                    f"{asked[_key(example.question)]!r} of its data; expected examples that are not asked"
                )
        return self.examples[:n]


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


def load_task(
    task: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    bad_lines: Literal["stop", "skip"] = "stop",
) -> Task:
    """Read a task file and its data.

    Parameters
    ----------
    task
        The path of a task file, or the name of a built-in task: see `BUILT_IN`. This module's docstring has the keys.
    data
        The data, in place of the file's own `data`; built-in tasks have none.
    bad_lines
        What becomes of a malformed line: "stop" raises, "skip" leaves it out and notes it in `Task.skipped`.

    Raises
    ------
    InvalidArgumentError
        For a file that cannot be read, a key that is wrong, a malformed line (file and line named), two questions of
        one id, or no question at all.
    """
    if bad_lines not in ("stop", "skip"):
        raise InvalidArgumentError(f"bad_lines is {bad_lines!r}; expected 'stop' or 'skip'")
    given, text, folder = _task_file(task)
    spec = _Spec(_toml(text, given), given, Path(given).stem)
    path = _data_path(spec, folder, data)
    content = _read(path, "the data")
    skipped: list[str] = []
    questions = tuple(_questions(spec, str(path), content, skipped if bad_lines == "skip" else None))
    if not questions:
        why = f"all {len(skipped)} lines are malformed; the first: {skipped[0]}" if skipped else "it is empty"
        raise InvalidArgumentError(f"{str(path)!r} has no question for task {spec.name!r}: {why}")
    examples, examples_sha256 = _examples(spec, folder)
    identity = {
        "name": spec.name,
        "sha256": _sha256(text),
        "data_sha256": _sha256(content),
        "examples_sha256": examples_sha256,
    }
    return Task(
        spec.name,
        questions,
        examples,
        spec.text("system"),
        spec.find,
        spec.comparison,
        spec.max_tokens,
        spec.stop,
        tuple(skipped),
        identity,
    )


# ---- Files --------------------------------------------------------------------------------------------------------------


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(f"cannot read {what} in {str(path)!r}: {error.strerror}") from error


def _task_file(task: str | os.PathLike[str]) -> tuple[str, bytes, Path | None]:
    """The name to use in errors, the content, and the folder that paths are relative to: None for a built-in task."""
    name = os.fspath(task)
    if name in BUILT_IN:
        return name, (resources.files(__package__) / "tasks" / f"{name}.toml").read_bytes(), None
    path = Path(name)
    if not path.exists() and path.suffix != ".toml":
        raise InvalidArgumentError(
            f"task {name!r} is neither a file nor built in; expected a task file or one of {', '.join(BUILT_IN)}"
        )
    return name, _read(path, "the task"), path.parent


def _toml(content: bytes, name: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError:
            raise InvalidArgumentError(
                "Python before 3.11 cannot read TOML by itself; install tomli: pip install 'kad-llama[eval]'"
            ) from None
    try:
        return dict(tomllib.loads(content.decode("utf-8-sig")))
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"task {name!r} is not UTF-8 at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgumentError(f"task {name!r} is no TOML: {error}") from None


def _data_path(spec: _Spec, folder: Path | None, data: str | os.PathLike[str] | None) -> Path:
    if data is not None:
        return Path(data)
    own = spec.text("data")
    if own is not None and folder is not None:
        return folder / own
    source = spec.text("source")
    where = f"; it comes from {source}" if source else ""
    raise InvalidArgumentError(f"task {spec.name!r} has no data of its own: give --data FILE (data=){where}")


def _entries(content: bytes, path: str, skipped: list[str] | None) -> Iterator[tuple[int, str, Any]]:
    """The number of each entry, where it stands, and what it is: the lines of a JSONL, or the items of a JSON list."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path!r} is not UTF-8 at byte {error.start}") from None
    if text.lstrip().startswith("["):
        try:
            items = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidArgumentError(f"{path!r}, line {error.lineno}: {error.msg}; expected one JSON list") from None
        except (ValueError, RecursionError) as error:
            raise InvalidArgumentError(f"{path!r}: {error}; expected one JSON list, or an object per line") from None
        yield from ((i, f"{path!r}, entry {i}", item) for i, item in enumerate(items, start=1))
        return
    for i, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path!r}, line {i}"
        try:
            yield i, where, json.loads(line)
        except json.JSONDecodeError as error:
            _bad(f"{where}: {error.msg} at column {error.colno}; expected one JSON object", skipped)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            _bad(f"{where}: {error}; expected one JSON object", skipped)


def _bad(why: str, skipped: list[str] | None) -> None:
    if skipped is None:
        raise InvalidArgumentError(f"{why}. Mend the line, or leave such lines out with --bad-lines skip")
    skipped.append(why)


# ---- The task file's keys -----------------------------------------------------------------------------------------------


class _Spec:
    """A task file, checked as far as that goes without data."""

    def __init__(self, table: dict[str, Any], path: str, name: str) -> None:
        self._path, self._table = path, table
        for key, value in table.items():
            if key not in _KEYS:
                self._refuse(key, f"expected one of {', '.join(_KEYS)}")
            if key in _TEXTS + _MORE_TEXTS and (not isinstance(value, str) or not value):
                self._refuse(key, "expected text")
        for key in ("prompt", "target"):
            if key not in table:
                raise InvalidArgumentError(f"task {path!r} has no {key!r}; expected a template such as '{{question}}'")
        self.name = self.text("name") or name
        self.find = self.text("find") or "whole"
        self.max_tokens = self._whole("max_tokens", 256)
        self.stop = self._texts("stop", ())
        self.letters = self._letters()
        self.comparison = self._comparison()
        self.target_pattern = self._checked_pattern(self.text("target_pattern"))
        self._checked_pattern(self.find)

    def text(self, key: str) -> str | None:
        value = self._table.get(key)
        return None if value is None else str(value)

    def get(self, key: str) -> Any:
        return self._table.get(key)

    def _refuse(self, key: str, expected: str) -> None:
        raise InvalidArgumentError(f"task {self._path!r}: {key} is {self._table[key]!r}; {expected}")

    def _whole(self, key: str, default: int) -> int:
        value = self._table.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._refuse(key, "expected a whole number of at least 1")
        return int(value)

    def _texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self._table.get(key, list(default))
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self._refuse(key, "expected a list of texts")
        return tuple(value)

    def _letters(self) -> str:
        letters = self._table.get("letters", "ABCDE")
        if not all(letter in _ALPHABET for letter in letters):
            self._refuse("letters", 'expected capitals, such as "ABCD"')
        return str(letters)

    def _comparison(self) -> Comparison:
        kind = self.text("compare") or "exact"
        if kind not in COMPARISONS:
            self._refuse("compare", f"expected one of {', '.join(COMPARISONS)}")
        ignore = self._texts("ignore", ("case", "space", "punctuation"))
        if not set(ignore) <= set(IGNORABLE):
            self._refuse("ignore", f"expected some of {', '.join(IGNORABLE)}")
        tolerance = self._table.get("tolerance", 0)
        if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not 0 <= tolerance < float("inf"):
            self._refuse("tolerance", "expected a number of at least 0")
        return Comparison(kind, ignore, Fraction(str(tolerance)))

    def _checked_pattern(self, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                finder(pattern)
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"task {self._path!r}: {error}") from None
        return pattern


# ---- From a line to a question ------------------------------------------------------------------------------------------


class _LineError(Exception):
    """What is wrong with a line."""


def _field(line: Mapping[str, Any], path: str) -> Any:
    """What a dotted path leads to; a name applied to a list is applied to each of its items."""
    value: Any = line
    for key in path.split("."):
        try:
            if isinstance(value, list):
                value = value[int(key)] if key.isdecimal() else [item[key] for item in value]
            else:
                value = value[key]
        except (KeyError, IndexError, TypeError):
            raise _LineError(f"there is no {path!r}; expected the fields that the task names") from None
    return value


def _rendered(template: str, line: Mapping[str, Any]) -> str:
    def place(match: re.Match[str]) -> str:
        whole = match.group()
        if whole in ("{{", "}}"):
            return whole[0]
        if match.group(1) is None:
            raise InvalidArgumentError(
                f"the template {template!r} has a single {whole!r}; expected {{field}}, {{{{ or }}}}"
            )
        value = _field(line, match.group(1).strip())
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise _LineError(f"{match.group(1)!r} is {value!r}; expected text or a number")
        return str(value)

    return _PLACE.sub(place, template)


def _options(spec: _Spec, line: Mapping[str, Any]) -> list[str]:
    path = spec.text("options")
    if path is None:
        return []
    options = _field(line, path)
    if not isinstance(options, list) or not 2 <= len(options) <= len(_ALPHABET):
        raise _LineError(f"{path!r} is {options!r}; expected a list of 2 to {len(_ALPHABET)} options")
    return [str(option) for option in options]


def _target(spec: _Spec, line: Mapping[str, Any], letters: str) -> str:
    target = _rendered(spec.text("target") or "", line).strip()
    if spec.target_pattern is not None:
        cut = finder(spec.target_pattern)(target, letters)
        if cut is None:
            raise _LineError(f"the target {target[-60:]!r} has nothing that {spec.target_pattern!r} matches")
        target = cut
    if spec.text("options") is not None:
        target = _letter(spec, line, target, letters)
    if spec.comparison.kind == "numeric" and number(target) is None:
        raise _LineError(f"the target is {target!r}; expected a number")
    if spec.find == "option letter" and target not in tuple(letters):
        raise _LineError(f"the target is {target!r}; expected one of the letters {', '.join(letters)}")
    if not spec.comparison.has_form(target):
        raise _LineError(f"the target is {target!r}; expected something to compare an answer with")
    return target


def _letter(spec: _Spec, line: Mapping[str, Any], target: str, letters: str) -> str:
    """The letter of the option that a target names by its label, or by its place, counted from 0."""
    path = spec.text("labels")
    if path is not None:
        labels = [str(label) for label in _field(line, path)]
        if target not in labels[: len(letters)]:
            raise _LineError(f"the target is {target!r}; expected one of the labels {', '.join(labels)}")
        return letters[labels.index(target)]
    return letters[int(target)] if target.isdecimal() and int(target) < len(letters) else target


def _question(spec: _Spec, line: Any, place: int) -> Question:
    if not isinstance(line, dict):
        raise _LineError(f"it is {str(line)[:60]!r}; expected one JSON object")
    options = _options(spec, line)
    letters = _ALPHABET[: len(options)] if options else spec.letters
    fields = line
    if options:
        lettered = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        fields = {**line, "options": lettered}
    prompt = _rendered(spec.text("prompt") or "", fields).strip()
    if not prompt:
        raise _LineError("the prompt is empty; expected a question")
    own = spec.text("id")
    return Question(
        str(place) if own is None else _rendered(own, line).strip(),
        prompt,
        _rendered(spec.text("transcript") or spec.text("prompt") or "", fields).strip(),
        _target(spec, line, letters),
        letters,
    )


def _questions(spec: _Spec, path: str, content: bytes, skipped: list[str] | None) -> Iterator[Question]:
    seen: dict[str, str] = {}
    for i, where, line in _entries(content, path, skipped):
        try:
            question = _question(spec, line, i)
            if question.id in seen:
                raise _LineError(
                    f"the id {question.id!r} is also that of {seen[question.id]}; expected one for each question"
                )
        except _LineError as error:
            _bad(f"{where}: {error}", skipped)
            continue
        seen[question.id] = where
        yield question


def _examples(spec: _Spec, folder: Path | None) -> tuple[tuple[Example, ...], str | None]:
    """The worked examples, and the SHA-256 of their file where they have one of their own."""
    given = spec.get("examples")
    if given is None:
        return (), None
    if isinstance(given, str):
        path = (folder or Path()) / given
        content = _read(path, "the worked examples")
        entries = [(where, item) for _, where, item in _entries(content, str(path), None)]
        digest: str | None = _sha256(content)
    elif isinstance(given, list):
        entries, digest = [(f"worked example {i} of task {spec.name!r}", item) for i, item in enumerate(given, 1)], None
    else:
        raise InvalidArgumentError(f"task {spec.name!r}: examples is {given!r}; expected a path or a list")
    return tuple(_example(where, item) for where, item in entries), digest


def _example(where: str, item: Any) -> Example:
    found = [item.get(key) if isinstance(item, dict) else None for key in ("question", "answer")]
    question, answer = (text.strip() if isinstance(text, str) else "" for text in found)
    if not question or not answer:
        raise InvalidArgumentError(f"{where} is {str(item)[:60]!r}; expected 'question' and 'answer', both text")
    return Example(question, answer)
