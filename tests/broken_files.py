"""Damaged files, and a place to open them: every case in a process of its own, so that an abort is seen and survived."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

ROOT = Path(__file__).resolve().parents[1]

# ---- Files ---------------------------------------------------------------------------------------------------------

_WRITERS: dict[gguf.GGUFValueType, str] = {
    gguf.GGUFValueType.UINT8: "add_uint8",
    gguf.GGUFValueType.INT8: "add_int8",
    gguf.GGUFValueType.UINT16: "add_uint16",
    gguf.GGUFValueType.INT16: "add_int16",
    gguf.GGUFValueType.UINT32: "add_uint32",
    gguf.GGUFValueType.INT32: "add_int32",
    gguf.GGUFValueType.FLOAT32: "add_float32",
    gguf.GGUFValueType.UINT64: "add_uint64",
    gguf.GGUFValueType.INT64: "add_int64",
    gguf.GGUFValueType.FLOAT64: "add_float64",
    gguf.GGUFValueType.BOOL: "add_bool",
    gguf.GGUFValueType.STRING: "add_string",
}
UINT16, UINT32, INT32 = gguf.GGUFValueType.UINT16, gguf.GGUFValueType.UINT32, gguf.GGUFValueType.INT32
FLOAT32, BOOL, STRING = gguf.GGUFValueType.FLOAT32, gguf.GGUFValueType.BOOL, gguf.GGUFValueType.STRING

Array = np.ndarray[Any, Any]
Change = Callable[[str, Array], "Array | None"]


def edited(
    source: Path,
    target: Path,
    *,
    values: Mapping[str, tuple[gguf.GGUFValueType | None, Any]] | None = None,
    drop: Iterable[str] = (),
    architecture: str | None = None,
    tensors: Change | None = None,
) -> Path:
    """Write `target`, a copy of a GGUF with some things changed.

    Parameters
    ----------
    values
        Keys to set: type (None for an array, whose type its elements give) and value.
    drop
        Keys to leave out.
    architecture
        Another general.architecture; the other keys keep their names.
    tensors
        Called with every tensor's name and its entries as stored; answers the new entries, or None to leave it out.
    """
    reader = gguf.GGUFReader(source)
    given = dict(values or {})
    name = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture or name)
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in drop or key in given:
            continue
        if entry.types[0] is gguf.GGUFValueType.ARRAY:
            writer.add_array(key, entry.contents())
        else:
            getattr(writer, _WRITERS[entry.types[0]])(key, entry.contents())
    for key, (kind, value) in given.items():
        if kind is None:
            writer.add_array(key, value)
        else:
            getattr(writer, _WRITERS[kind])(key, value)
    for tensor in reader.tensors:
        data: Array | None = np.array(tensor.data)
        if tensors is not None:
            data = tensors(tensor.name, data)  # type: ignore[arg-type]
        if data is not None:
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def truncated(source: Path, target: Path, size: int) -> Path:
    """Write the first `size` bytes of a file; a negative size counts from its end."""
    target.write_bytes(source.read_bytes()[:size])
    return target


def tensor_start(path: Path) -> int:
    """Return where the tensors begin: everything before is the header."""
    return int(gguf.GGUFReader(path).data_offset)


def flipped(source: Path, target: Path, seed: int, within: int, count: int = 1) -> Path:
    """Write a copy with `count` random bytes among the first `within` changed. The same seed changes the same bytes."""
    data = bytearray(source.read_bytes())
    dice = random.Random(seed)
    for _ in range(count):
        at = dice.randrange(within)
        data[at] ^= 1 + dice.randrange(255)
    target.write_bytes(bytes(data))
    return target


# ---- Cases in processes of their own ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ending:
    """How a case ended: "ok", an exception's class with its message, a signal's name, "time out" or "exit N"."""

    case: Any
    how: str
    message: str
    kad: bool
    """The exception is a KadError."""

    @property
    def survived(self) -> bool:
        """Whether the process lived to say what was wrong, or to finish."""
        return self.how == "ok" or self.kad

    def __str__(self) -> str:
        return f"{self.case}: {self.how}: {self.message}"


# The parent never opens a model, so that forking it is safe: it holds no thread of llama.cpp.
_RUNNER = """
import json, os, signal, sys, traceback
import kad_llama
sys.path.insert(0, sys.argv[1])
body = {}
given = json.loads(sys.stdin.readline())
exec(given["body"], body)
real = os.dup(1)
for number, case in enumerate(given["cases"]):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(2, 1)
        signal.alarm(given["seconds"])
        code = 0
        try:
            said = body["case"](case)
            answer = {"how": "ok", "message": "" if said is None else str(said), "kad": False}
        except BaseException as error:
            answer = {"how": type(error).__name__, "message": str(error), "kad": isinstance(error, kad_llama.KadError)}
            if not answer["kad"]:
                answer["message"] += " | " + traceback.format_exc(limit=-3)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    text = b""
    while part := os.read(read, 65536):
        text += part
    os.close(read)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        ended = os.WTERMSIG(status)
        how = "time out" if ended == signal.SIGALRM else signal.Signals(ended).name
        answer = {"how": how, "message": "", "kad": False}
    elif not text:
        answer = {"how": f"exit {os.WEXITSTATUS(status)}", "message": "", "kad": False}
    else:
        answer = json.loads(text)
    os.write(real, json.dumps(answer).encode() + b"\\n")
"""

# What most cases do: open a file in a role, say three tokens.
OPEN = """
def case(given):
    import kad_llama
    base, aligned, keywords = given
    with kad_llama.KadLlama(base, aligned, **{"n_ctx": 64, "n_threads": 1, **keywords}) as kad:
        return kad.generate("The sky", max_tokens=3, seed=1, raw=True).text
"""

INSPECT = """
def case(path):
    import kad_llama
    return kad_llama.inspect_file(path)
"""


def run_cases(
    body: str, cases: Iterable[Any], *, seconds: int = 20, env: Mapping[str, str] | None = None
) -> list[Ending]:
    """Run ``case(x)`` of `body` on every case (JSON values), each in a forked process; `seconds` is for one case."""
    todo = list(cases)
    given = json.dumps({"body": body, "cases": todo, "seconds": seconds})
    run = subprocess.run(
        [sys.executable, "-c", _RUNNER, str(ROOT)],
        input=given + "\n",
        capture_output=True,
        text=True,
        env={**os.environ, "GGML_NO_BACKTRACE": "1", **(env or {})},
        timeout=seconds * max(1, len(todo)) + 60,
    )
    lines = run.stdout.splitlines()
    if run.returncode != 0 or len(lines) != len(todo):
        raise AssertionError(f"the runner ended with {run.returncode} after {len(lines)} cases: {run.stderr[-2000:]}")
    return [Ending(case, **json.loads(line)) for case, line in zip(todo, lines, strict=True)]
