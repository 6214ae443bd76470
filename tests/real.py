"""Helpers of the tests on GGUF files: modes, answers to compare, new processes, a run stepped by hand, events.

Run as a script it answers calls in a process of its own: a JSON request on standard input, answers on standard output.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kad_llama import Generation, KadLlama, reference
from kad_llama._binding import ffi, lib
from kad_llama._binding.calls import check

PLAIN: dict[str, Any] = {"spec": False}
LAZY: dict[str, Any] = {"draft": 0}
DRAFTS: dict[str, dict[str, Any]] = {f"draft {n}": {"draft": n} for n in range(1, 9)}
MODES: dict[str, dict[str, Any]] = {"plain": PLAIN, "lazy": LAZY} | DRAFTS
FEW: dict[str, dict[str, Any]] = {name: MODES[name] for name in ("plain", "lazy", "draft 3", "draft 8")}

STORY = (
    "The old house at the end of the road had been empty for years. People said that the woman who once lived there kept "
    "a garden of strange flowers, and that on quiet nights you could hear her sing. One morning a young man came to the "
    "town with a map and a question. He asked the baker, who only laughed and gave him bread. He asked the teacher, who "
    "told him about the sea and the stars but nothing about the house. In the evening he stood before the gate alone. "
)

Answer = dict[str, Any]


def answer(out: Generation) -> Answer:
    """What must be the same in every mode: the text, how it ended, every event's id, bytes, speaker and alpha."""
    events = [[token.id, token.bytes.hex(), token.source, token.deferred_mass] for token in out.tokens]
    return {"text": out.text, "finish": out.finish_reason, "events": events}


def said(out: Generation) -> bytes:
    return b"".join(token.bytes for token in out.tokens)


def prompt_of(kad: KadLlama, n_tokens: int, task: str = "Tell me how this story goes on. ") -> str:
    """A message whose prompt has about `n_tokens` tokens, the template's included."""
    words = (task + STORY * (n_tokens // 60 + 1)).split(" ")
    low, high = 1, len(words)
    while low < high:
        middle = (low + high) // 2
        prompt = kad.prompt(" ".join(words[:middle]))
        if len(prompt.base_ids or prompt.aligned_ids or []) < n_tokens:
            low = middle + 1
        else:
            high = middle
    return " ".join(words[:low])


# ---- A process of its own --------------------------------------------------------------------------------------------


def in_new_process(
    base: Path, aligned: Path, load: Mapping[str, Any], calls: Sequence[tuple[Any, Mapping[str, Any]]]
) -> list[Answer]:
    """The answers to `calls`, each a prompt and keywords of generate(), one after the other in a new process."""
    request = {
        "base": str(base),
        "aligned": str(aligned),
        "load": dict(load),
        "calls": [[p, dict(k)] for p, k in calls],
    }
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(request), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: list[Answer] = json.loads(done.stdout)
    return answers


def _serve() -> None:
    request = json.load(sys.stdin)
    with KadLlama(request["base"], request["aligned"], **request["load"]) as kad:
        json.dump([answer(kad.generate(prompt, **keywords)) for prompt, keywords in request["calls"]], sys.stdout)


# ---- A run stepped by hand -------------------------------------------------------------------------------------------


class Run:
    """One sequence over given ids, stepped round by round; `rows` are the very rows that its next event is drawn from.

    Only one may be open, and nothing else may use the instance meanwhile.
    """

    def __init__(
        self, kad: KadLlama, ids: Sequence[int], aligned_ids: Sequence[int] | None = None, **settings: Any
    ) -> None:
        self.n = kad.vocab.n_events
        params = ffi.new("kad_sequence_params *", lib.kad_sequence_default_params())
        for name, value in {"mode": lib.KAD_MODE_PLAIN, **settings}.items():
            setattr(params, name, value)
        base, aligned = (
            ffi.new("int32_t[]", list(given)) for given in (ids, ids if aligned_ids is None else aligned_ids)
        )
        out = ffi.new("kad_sequence **")
        check(lib.kad_sequence_open(kad._engine, params, base, len(base), aligned, len(aligned), out))
        self.sequence = out[0]
        self.buffer = ffi.new("kad_token[]", lib.kad_max_draft(kad._engine) + 1)

    def step(self) -> list[int]:
        """One round; the ids said."""
        count = ffi.new("int32_t *")
        check(lib.kad_sequence_step(self.sequence, self.buffer, len(self.buffer), count))
        return [self.buffer[i].id for i in range(count[0])]

    @property
    def ended(self) -> bool:
        return bool(lib.kad_sequence_finish(self.sequence) != lib.KAD_FINISH_NONE)

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        base, aligned = np.empty(self.n, np.float32), np.empty(self.n, np.float32)
        pointers = [ffi.cast("float *", ffi.from_buffer(row, require_writable=True)) for row in (base, aligned)]
        check(lib.kad_sequence_rows(self.sequence, *pointers, ffi.NULL, self.n))
        return base, aligned

    def close(self) -> None:
        lib.kad_sequence_close(self.sequence)
        self.sequence = ffi.NULL

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rows_along(kad: KadLlama, ids: Sequence[int], text: Sequence[int], **settings: Any) -> list[tuple[np.ndarray, ...]]:
    """The rows from which a plain run draws each event of `text`, and the rows after it; it must say that text."""
    settings = {"max_tokens": len(text) + 1} | settings
    rows: list[tuple[np.ndarray, ...]] = []
    heard: list[int] = []
    with Run(kad, ids, **settings) as run:
        while len(rows) <= len(text):
            rows.append(run.rows())
            if len(rows) > len(text):
                break
            while len(heard) < len(rows) and not run.ended:
                heard += run.step()
    assert heard == list(text), "a plain run from here says something else"
    return rows


# ---- How near a draw was to another outcome --------------------------------------------------------------------------


@dataclass(frozen=True)
class Margin:
    """By how much the decisions of one draw were taken, as probability; the smallest one changes the outcome first."""

    outcome: int
    slack: float


def margin(base_row: np.ndarray, aligned_row: np.ndarray, coins: Sequence[float], threshold: float = 0.4) -> Margin:
    """Rule dual at temperature 1. Every decision compares a coin or the threshold with a probability, or with a sum of them.

    None of these moves by more than the total variation between two versions of a row (step 3: three times that), so
    another outcome under noise of d needs a slack of at most 3 d.
    """
    p, q = reference.softmax(base_row), reference.softmax(aligned_row)
    keep = reference.kept("dual", threshold, base_row)
    c1, c2, c3, _ = coins
    slack = float(np.min(np.abs(p[p > threshold / 4] - threshold), initial=1.0))  # who is kept
    outcome = reference.draw(keep, p, q, coins)
    if keep.sum() <= 1:
        if keep.any():
            slack = min(slack, abs(float(p[keep][0]) - c2))
        if outcome.source == "aligned":
            slack = min(slack, _edge(q, c1))
    else:
        pi = reference.mix(keep, p, q)
        x = outcome.proposal
        slack = min(slack, _edge(q, c1), abs(float(pi[x] - c2 * q[x])))
        if outcome.token != x:
            left = reference.residual(keep, p, q)
            slack = min(slack, _edge(left, c3 * float(left.sum())))
    return Margin(outcome.token, slack)


def _edge(weights: np.ndarray, target: float) -> float:
    """From the target to the nearer end of the stretch it falls into."""
    sums = np.cumsum(weights)
    x = reference.inverse_distribution(weights, target)
    return float(min(sums[x] - target, target - (sums[x] - weights[x])))


# ---- Events across vocabularies --------------------------------------------------------------------------------------


def token_kind(kad: KadLlama, role: str, token: int) -> tuple[int, bytes]:
    """0 ordinary, 1 control or unknown, 2 end of generation, 3 without bytes; and the bytes."""
    data, size, kind = ffi.new("const char **"), ffi.new("size_t *"), ffi.new("int32_t *")
    number = lib.KAD_ROLE_BASE if role == "base" else lib.KAD_ROLE_ALIGNED
    check(lib.kad_token_bytes(kad._engine, number, token, data, size, kind))
    return kind[0], bytes(ffi.buffer(data[0], size[0]))


def first_end(kad: KadLlama) -> int:
    """Where a row over shared ids holds the end of generation: at the lowest such id."""
    return next(token for token in range(kad.vocab.n_events) if token_kind(kad, "base", token)[0] == 2)


class Events:
    """Section 6 in Python: which event a token is. Equal bytes are one event, parts of characters are their model's own."""

    def __init__(self, kad: KadLlama) -> None:
        self.kad = kad
        self.number: dict[Any, int] = {}
        self.end = -1
        assert kad.base is not None and kad.aligned is not None
        self.n = kad.base.n_vocab  # an event of the base has the number of its lowest id; further ones follow
        for role, model in (("base", kad.base), ("aligned", kad.aligned)):
            for token in range(model.n_vocab):
                kind, data = token_kind(kad, role, token)
                number = token if role == "base" else self.n
                if kind == 2 and self.end < 0:
                    self.end = number
                elif kind == 0 and self._key(role, data) not in self.number:
                    self.number[self._key(role, data)] = number
                else:
                    continue
                self.n += role == "aligned"

    @staticmethod
    def _key(role: str, data: bytes) -> Any:
        try:
            data.decode()
        except UnicodeDecodeError:
            return role, data
        return data

    def of(self, out: Generation) -> int:
        """The event of a run of one: the end of the text where nothing was said."""
        if not out.tokens:
            assert out.finish_reason == "stop"
            return self.end
        token = out.tokens[0]
        return self.number[self._key(token.source, self.kad.token_bytes(token.id, role=token.source))]


# ---- Fit -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Chi-square of counts against a law: cells with at least 5 expected by themselves, the rest in one."""

    cells: int
    p_value: float


def fit(counts: np.ndarray, law: np.ndarray) -> Fit:
    from scipy import stats

    expected = law * counts.sum()
    alone = expected >= 5
    seen, wanted = list(counts[alone]), list(expected[alone])
    rest, rest_wanted = counts[~alone].sum(), expected[~alone].sum()
    assert not counts[law == 0].any(), "something of probability zero was said"
    if rest_wanted >= 5 or not wanted:
        seen.append(rest)
        wanted.append(rest_wanted)
    else:  # too little for a cell: with the smallest
        smallest = int(np.argmin(wanted))
        seen[smallest] += rest
        wanted[smallest] += rest_wanted
    statistic = sum((s - w) ** 2 / w for s, w in zip(seen, wanted, strict=True))
    return Fit(int(alone.sum()), float(stats.chi2.sf(statistic, len(wanted) - 1)))


def entropy(law: np.ndarray) -> float:
    """In bits."""
    positive = law[law > 0]
    return float(-(positive * np.log2(positive)).sum())


def normal_distance(hits: float, expected: float, variance: float) -> float:
    """How many standard deviations a sum of independent events lies from its expectation."""
    return abs(hits - expected) / math.sqrt(variance)


if __name__ == "__main__":
    _serve()
