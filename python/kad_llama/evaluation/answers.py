"""Every answer of an evaluation, one JSON line each, so that an interrupted run loses nothing and goes on where it stopped.

The first line of `answers.jsonl` is a header: which files, which task, how it was sampled. A run appends to a file with the
same header only; more rules, questions and seeds may be added. Each line is one write. A last line that was cut short is
overwritten by the next run, and passed over by readers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from kad_llama.errors import InvalidArgumentError, StateError

__all__ = ["FILE", "Answer", "Store", "read_answers"]

FILE = "answers.jsonl"
FORMAT = 1
_LOCK = "answers.lock"

# Entries of the header that must agree; the others (names, versions) are for people to read.
_MODELS = ("base", "aligned", "reference")
_SAMPLING = ("temperature", "rule_temperature", "max_tokens", "seed", "n_ctx", "reproducible", "params")
_TASK = ("name", "sha256", "data_sha256", "examples_sha256")


@dataclass(frozen=True)
class Answer:
    """One answer, as its line has it.

    Attributes
    ----------
    setting
        What answered: "dual 0.4", "base alone", "base alone, 5 worked examples", "aligned alone".
    rule, threshold, shots
        The same in parts; rule "base" or "aligned" and no threshold for a model alone.
    seed, repetition, question
        The seed used, which of the question's answers this is (from 0), and the question's id.
    prompt, prompt_aligned
        What the text goes on from, and, where the aligned model has another prompt than the base, that one.
    text, answer, target
        What was said, the answer found in it (None: none), the right one.
    correct, form
        Whether it is right; whether an answer of the right form was found.
    tokens, seconds
        Tokens said, and the time after the prompt.
    jobs
        How many texts were written at a time; above 1 the seconds are theirs together.
    base_passes, aligned_passes, drafted, accepted, aligned_share, deferred_mass, mode, finish_reason
        As in `kad_llama.Stats` and `kad_llama.Generation`.
    """

    setting: str
    rule: str
    threshold: float | None
    shots: int
    seed: int
    repetition: int
    question: str
    prompt: str
    prompt_aligned: str | None
    text: str
    answer: str | None
    target: str
    correct: bool
    form: bool
    finish_reason: str
    tokens: int
    seconds: float
    base_passes: int
    aligned_passes: int
    drafted: int
    accepted: int
    aligned_share: float | None
    deferred_mass: float | None
    mode: str
    jobs: int

    @property
    def key(self) -> tuple[str, str, int]:
        """Setting, question and repetition: one answer of each is stored."""
        return self.setting, self.question, self.repetition


_FIELDS = tuple(field.name for field in fields(Answer))


def read_answers(directory: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Answer]]:
    """Return the header and all answers stored in a directory, also while a run writes there.

    Raises
    ------
    InvalidArgumentError
        When there is no such file, or a line is not one of an evaluation; the message has file and line.
    """
    path = Path(directory) / FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidArgumentError(
            f"cannot read {str(path)!r}: {error.strerror}; expected the directory of an evaluation (-o)"
        ) from error
    lines = _whole_lines(content)
    if not lines:
        raise InvalidArgumentError(f"{str(path)!r} is empty; expected the answers of an evaluation")
    return _header(lines[0], path), _answers(lines[1:], path)


def _whole_lines(content: bytes) -> list[bytes]:
    """The lines that end; a run that was killed may have left the beginning of one more."""
    return content.split(b"\n")[:-1]


def _header(line: bytes, path: Path) -> dict[str, Any]:
    header = _object(line, path, 1)
    if header.get("kad_llama_eval") != FORMAT:
        raise InvalidArgumentError(
            f"{str(path)!r}, line 1: kad_llama_eval is {header.get('kad_llama_eval')!r}; expected {FORMAT}, as this version "
            "writes it. Give another directory (-o)"
        )
    return header


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        value = None
    if not isinstance(value, dict):
        raise InvalidArgumentError(
            f"{str(path)!r}, line {number} is no JSON object: {line[:60]!r}. The file was damaged: take the line out"
        )
    return value


def _answers(lines: list[bytes], path: Path) -> list[Answer]:
    found: dict[tuple[str, str, int], Answer] = {}
    for number, line in enumerate(lines, start=2):
        value = _object(line, path, number)
        missing = [name for name in _FIELDS if name not in value]
        if missing:
            raise InvalidArgumentError(
                f"{str(path)!r}, line {number} has no {missing[0]!r}; expected {', '.join(_FIELDS)}. Take the line out"
            )
        answer = Answer(**{name: value[name] for name in _FIELDS})
        found[answer.key] = answer
    return list(found.values())


class Store:
    """The file of answers, open for one process.

    Parameters
    ----------
    directory
        Where `answers.jsonl` lies, or will; made if need be.
    header
        What this run would write on the first line.

    Attributes
    ----------
    header
        What stands there now.
    done
        The answers that are there, by setting, question and repetition.

    Raises
    ------
    InvalidArgumentError
        When the file has a header that differs in what must agree; the message names the entries.
    StateError
        When another process has it open.
    """

    def __init__(self, directory: str | os.PathLike[str], header: Mapping[str, Any]) -> None:
        self.path = Path(directory) / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = _Lock(self.path.parent / _LOCK)
        except OSError as error:
            raise InvalidArgumentError(f"cannot write to {str(self.path.parent)!r}: {error.strerror}") from error
        try:
            self._open(dict(header))
        except BaseException:
            self._lock.close()
            raise

    def _open(self, header: dict[str, Any]) -> None:
        lines = _whole_lines(self.path.read_bytes()) if self.path.exists() else []
        self.header = _merged(_header(lines[0], self.path), header, self.path) if lines else header
        self.done = {answer.key: answer for answer in _answers(lines[1:], self.path)}
        first = _line(self.header)
        if not lines or lines[0] + b"\n" != first:
            self._rewrite(first, lines[1:])
        else:
            self._cut(sum(len(line) + 1 for line in lines))
        self._file = open(self.path, "ab", buffering=0)  # closed by close()  # noqa: SIM115

    def _rewrite(self, first: bytes, rest: list[bytes]) -> None:
        part = self.path.with_suffix(".part")
        part.write_bytes(first + b"".join(line + b"\n" for line in rest))
        part.replace(self.path)

    def _cut(self, size: int) -> None:
        """Take off a last line that a killed run did not finish."""
        if self.path.stat().st_size > size:
            os.truncate(self.path, size)

    def add(self, answer: Answer) -> None:
        """Append an answer, in one write that goes to the system at once."""
        line = _line(asdict(answer))
        if self._file.write(line) != len(line):
            raise InvalidArgumentError(
                f"{str(self.path)!r} was written in part only; make room on that disk and run again"
            )
        self.done[answer.key] = answer

    def close(self) -> None:
        """Close the file and let other processes have it."""
        self._file.close()
        self._lock.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass") + b"\n"


def _merged(stored: dict[str, Any], given: dict[str, Any], path: Path) -> dict[str, Any]:
    """The header of a run that goes on. A reference may be added later; skipped lines are those of this reading."""
    differing = [f"{name} (there {_shown(a)}, here {_shown(b)})" for name, a, b in _compared(stored, given) if a != b]
    if differing:
        raise InvalidArgumentError(
            f"{str(path)!r} has answers of another evaluation, which differs in {'; '.join(differing)}. "
            "Give another directory (-o), or the settings from there"
        )
    merged = stored | {"task": given["task"]}
    return merged if stored.get("reference") else merged | {"reference": given.get("reference")}


def _compared(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    rows: list[tuple[str, Any, Any]] = []
    for role in _MODELS:
        a, b = stored.get(role) or {}, given.get(role) or {}
        if role != "reference" or (a and b):
            rows.append((f"the {role} file", _file_shown(a), _file_shown(b)))
    there, here = stored.get("task") or {}, given.get("task") or {}
    names = {
        "name": "the task",
        "sha256": "the task file",
        "data_sha256": "the data",
        "examples_sha256": "the examples",
    }
    rows += [(names[key], there.get(key), here.get(key)) for key in _TASK]
    return rows + [(key.replace("_", " "), stored.get(key), given.get(key)) for key in _SAMPLING]


def _file_shown(model: Mapping[str, Any]) -> str:
    return f"{model.get('size')} bytes, SHA-256 {str(model.get('sha256'))[:12]}"


def _shown(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 and " " not in text else text


class _Lock:
    """A lock that a file stands for, held by one process and gone with it however it ends."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a+b")  # noqa: SIM115
        try:
            _take_lock(self._file.fileno())
        except OSError:
            self._file.seek(0)
            owner = self._file.read(32).decode("ascii", "replace").strip()
            self._file.close()
            by = f" (process {owner})" if owner else ""
            raise StateError(
                f"another run{by} writes to {str(path.parent)!r}; wait for its end, or give another directory (-o)"
            ) from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()).encode())
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        self._file.close()


def _take_lock(number: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(number, 1 << 30, os.SEEK_SET)  # beyond what is read: a locked byte cannot be
        msvcrt.locking(number, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
