"""The step on table models: the real generator (cpp/src/runtime) over tables of numbers, and its oracle.

tests/cpp/table_models.cpp holds the models; `write` runs them through the shipped loop in any mode. `expected` says
what must come out: over one vocabulary `reference.write`, over two `two_vocabularies` below, which is section 6 of
docs/method.md the slow way. Neither knows of drafts, passes or caches.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import law
import numpy as np
from numpy.typing import NDArray

from kad_llama import reference

HARNESS = law.ROOT / "tests/cpp/table_models.cpp"
SOURCES = [f"runtime/{name}.cpp" for name in ("constraint", "generator", "sequence", "speaker", "text_bridge", "utf8")]
SPECULATIVE, LAZY, PLAIN = 0, 1, 2
END = b"<end>"


def load(library: Path) -> law.Core:
    """A library with the table models in it."""
    core = law.load(library)
    text = HARNESS.read_text().split("/* table: begin */")[1].split("/* table: end */")[0]
    core.ffi.cdef(re.sub(r"//.*", "", text))
    return core


@dataclass(frozen=True, eq=False)
class Table:
    """A model: the row after a context is rows[length % period, last id]. A token spelled END ends the text."""

    rows: NDArray[np.float32]
    words: tuple[bytes, ...]
    prompt: tuple[int, ...] = (0,)

    def row(self, ids: Sequence[int]) -> reference.Row:
        return self.rows[len(ids) % len(self.rows), ids[-1]].astype(np.float64)

    def tokenise(self, text: bytes) -> list[int]:
        """Greedy: the longest token that fits, of equals the lowest id."""
        ids, at = [], 0
        while at < len(text):
            fitting = [i for i, w in enumerate(self.words) if w != END and text.startswith(w, at)]
            ids.append(max(fitting, key=lambda i: len(self.words[i])))
            at += len(self.words[ids[-1]])
        return ids


@dataclass(frozen=True, eq=False)
class Run:
    """Two tables, and the settings of a text."""

    base: Table
    aligned: Table
    rule: str = "dual"
    threshold: float | None = None
    temperature: float = 1.0
    seed: int = 0
    text_number: int = 0
    max_tokens: int = 12
    n_ctx: int = 512


@dataclass(frozen=True)
class Event:
    """What is compared: the bytes said, the id in the speaker's vocabulary, who spoke."""

    bytes: bytes
    id: int
    source: str


# ---- The shipped loop ------------------------------------------------------------------------------------------------


def c_model(core: law.Core, table: Table, alive: list[Any], can_rewind: bool) -> dict[str, Any]:
    ffi = core.ffi
    words = [ffi.new("char[]", word) for word in table.words]
    fields = {
        "bytes": ffi.new("const char *[]", words),
        "n_bytes": ffi.new("int32_t[]", [len(word) for word in table.words]),
        "ends": ffi.new("int32_t[]", [int(word == END) for word in table.words]),
        "prompt": ffi.new("int32_t[]", list(table.prompt)),
    }
    alive += [*words, *fields.values()]
    return fields | {
        "n_vocab": len(table.words),
        "period": len(table.rows),
        "rows": law.pointer(core, table.rows, "const float *"),
        "n_prompt": len(table.prompt),
        "can_rewind": int(can_rewind),
        "max_batch": 16,
    }


def write(
    core: law.Core, run: Run, mode: int, draft: int = 3, *, logprobs: bool = False, can_rewind: bool = True
) -> tuple[list[Event], Any]:
    """One text by the shipped generator: its events, and the counts of the run."""
    events, result = write_events(core, run, mode, draft, logprobs=logprobs, can_rewind=can_rewind)
    said = [Event(core.ffi.buffer(e.bytes, e.n_bytes)[:], e.id, "aligned" if e.source else "base") for e in events]
    return said, result


def write_events(
    core: law.Core, run: Run, mode: int, draft: int = 3, *, logprobs: bool = False, can_rewind: bool = True
) -> tuple[Any, Any]:
    """The same, with everything that the harness tells of an event."""
    ffi, alive = core.ffi, []
    c_run = ffi.new("table_run *")
    c_run.models = [c_model(core, table, alive, can_rewind) for table in (run.base, run.aligned)]
    c_run.rule = law.c_rule(core, law.Case(run.base.rows[0, 0], run.aligned.rows[0, 0], run.rule, run.threshold))[0]
    for name in ("temperature", "seed", "text_number", "max_tokens", "n_ctx"):
        setattr(c_run, name, getattr(run, name))
    c_run.mode, c_run.draft, c_run.logprobs = mode, draft, int(logprobs)
    events, result = ffi.new("table_event[]", run.max_tokens), ffi.new("table_result *")
    law.check(core, core.lib.table_write(c_run, events, run.max_tokens, result))
    return events[0 : result.n_events], result


# ---- The oracle ------------------------------------------------------------------------------------------------------


def expected(run: Run) -> list[Event]:
    """What any mode must write."""
    return one_vocabulary(run) if run.base.words == run.aligned.words else two_vocabularies(run)


def one_vocabulary(run: Run) -> list[Event]:
    words = run.base.words
    draws = reference.write(
        run.base.row,
        run.aligned.row,
        run.max_tokens,
        rule=run.rule,
        threshold=run.threshold,
        temperature=run.temperature,
        seed=run.seed,
        text_number=run.text_number,
        prompt=run.base.prompt,
        end=[i for i, word in enumerate(words) if word == END],
    )
    return [Event(words[d.token], d.token, d.source) for d in draws if words[d.token] != END]


def unfinished(text: bytes) -> bytes:
    """The bytes at the end of the text that begin a character and do not finish it."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    decoder.decode(text)
    return decoder.getstate()[0]


def sanitised(text: bytes) -> bytes:
    """The text as tokenisers are given it: each byte of no character is U+FFFD."""
    return re.sub("[\udc80-\udcff]", "\ufffd", text.decode("utf-8", "surrogateescape")).encode()


def whole(word: bytes) -> bool:
    return sanitised(word) == word


def two_vocabularies(run: Run) -> list[Event]:
    """Events are byte strings; each model reads its own tokenisation; a character is finished by its speaker."""
    tables = (run.base, run.aligned)
    keys: list[Any] = []  # base ids, then aligned ids; an event stands at its lowest id
    of_id = []
    for role, table in enumerate(tables):
        own = [word if word == END or whole(word) else (role, word) for word in table.words]
        keys += [key for key in dict.fromkeys(own) if key not in keys]
        of_id.append([keys.index(key) for key in own])

    def row(role: int, ids: Sequence[int]) -> reference.Row:
        sums = np.full(len(keys), -np.inf)
        np.logaddexp.at(sums, of_id[role], tables[role].row(ids))
        return sums

    said: list[Event] = []
    text = b""
    while len(said) < run.max_tokens:
        ids = [[*table.prompt, *table.tokenise(sanitised(text))] for table in tables]
        raw = [row(role, ids[role]) for role in (0, 1)]
        keep = reference.kept(run.rule, run.threshold, raw[0])
        p, q = (reference.softmax(r, run.temperature) for r in raw)
        place = len(said)
        coins = [reference.coin(run.seed, run.text_number, place, purpose) for purpose in (1, 2, 3, 4)]
        draw = reference.draw(keep, p, q, coins)
        key = keys[draw.token]
        if key == END:
            break
        speaker = int(draw.source == "aligned")
        first = of_id[speaker].index(draw.token)
        chain, ended = [first], False
        spoken = tables[speaker].words[first]
        while unfinished(spoken) and not ended:
            further, ended = finish(run, tables[speaker], [*ids[speaker], *chain], place, len(chain) - 1)
            ends_chain = not ended and not continues(spoken, tables[speaker].words[further][:1])
            spoken += b"" if ended else tables[speaker].words[further]
            chain.append(further)
            if ends_chain:
                break
        said.append(Event(spoken, first, draw.source))
        text += spoken
        if ended:
            break
    return said


def finish(run: Run, table: Table, ids: Sequence[int], place: int, i: int) -> tuple[int, bool]:
    """The i-th further token of a character, from the speaker alone; and whether it ends the text instead."""
    q = reference.softmax(table.row(ids), run.temperature)
    token = reference.inverse_distribution(q, reference.coin(run.seed, run.text_number, place, 16 + i))
    return token, table.words[token] == END


def continues(text: bytes, byte: bytes) -> bool:
    """Does the byte go on with the character that the text ends in?"""
    longer = unfinished(text) + byte
    return unfinished(longer) == longer or whole(longer)


# ---- Runs ------------------------------------------------------------------------------------------------------------

LETTERS = (b"a", b"b", b" c", END)
BASE_WORDS = (b"a", b"b", b"ab", b"\xc3", b"\xa9", b"\xe2\x82", b"\xe2", b"\x82", b"\xac", b"\xef\xbf\xbd", END)
ALIGNED_WORDS = (b"b", b"\xc3\xa9", b"a", b"\xc3", b"\xa9", b"ba", b"\xef\xbf\xbd", b"\xe2", b"\x82", b"\xac", END)


def table(words: tuple[bytes, ...], seed: int, spread: float = 1.5) -> Table:
    """A random model that seldom ends the text."""
    rows = spread * np.random.default_rng(seed).standard_normal((3, len(words), len(words)))
    rows[:, :, words.index(END)] -= 2
    return Table(rows.astype(np.float32), words)


def same_words(seed: int) -> Run:
    return Run(table(LETTERS, 2 * seed), table(LETTERS, 2 * seed + 1), seed=seed)


def other_words(seed: int) -> Run:
    return Run(table(BASE_WORDS, 2 * seed), table(ALIGNED_WORDS, 2 * seed + 1), seed=seed)


RULES = (
    ("dual", 0.4),
    ("dual", 0.2),
    ("primal", 0.9),
    ("primal", 0.4),
    ("nudging", 0.5),
    ("base", 0.0),
    ("aligned", 0.0),
)


def failures(core: law.Core, runs: Sequence[Run], modes: Sequence[tuple[int, int]]) -> list[str]:
    """Texts of the shipped loop that are not the oracle's, over all rules; at most the first few."""
    wrong = []
    for k, run in enumerate(runs):
        for rule, threshold in RULES:
            run = replace(run, rule=rule, threshold=threshold, temperature=(1.0, 0.7, 1.0, 0.0)[k % 4])
            wanted = expected(run)
            for mode, draft in modes:
                got, _ = write(core, run, mode, draft)
                if got != wanted:
                    wrong.append(
                        f"{rule} {threshold}, seed {run.seed}, mode {mode}, draft {draft}: {got}, not {wanted}"
                    )
    return wrong[:5]
