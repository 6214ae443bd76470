"""The law on real files: do 5,000 seeds fit pi, and are guesses right as often as 1 - TV says?

The law is the NumPy oracle's mixture of the logits that the engine reports; the counts are the engine's own events.
Seeds are fixed, so nothing here is up to chance on one machine. Over machines and versions each fit fails with probability
0.001 when the law holds; with the eight fits of this file in both suites, fewer than one version in a hundred.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real import STORY, Events, Run, entropy, first_end, fit, normal_distance, rows_along

from kad_llama import Generation, KadLlama, reference
from kad_llama._binding import lib

SEEDS = 5000
Record = Callable[[str, object], None]


@dataclass(frozen=True)
class Position:
    prompt: str
    pi: np.ndarray
    alpha: float
    right: float  # 1 - TV(pi, q): how often the aligned model's guess is right


def position(kad: KadLlama, prompt: str, rule: str, temperature: float = 1.0) -> Position:
    kad.generate(prompt, raw=True, max_tokens=1, draft=8)  # from now on there is room for the rows of any draft
    base, aligned = kad.next_logits(prompt, raw=True)
    keep = reference.kept(rule, None, base)
    p, q = reference.softmax(base, temperature), reference.softmax(aligned, temperature)
    pi = reference.mix(keep, p, q)
    return Position(prompt, pi, reference.deferred_mass(keep, p), 1 - reference.total_variation(pi, q))


def positions(kad: KadLlama, rule: str, n: int, first: int = 1) -> Iterator[Position]:
    """The first `n` prefixes of STORY with over 2 bits, alpha between 0.2 and 0.8, and 8 cells of 5 expected."""
    words = STORY.split(" ")
    for length in range(first, len(words)):
        found = position(kad, " ".join(words[:length]), rule)
        if 0.2 < found.alpha < 0.8 and entropy(found.pi) > 2 and (found.pi * SEEDS >= 5).sum() >= 8:
            yield found
            n -= 1
            if n == 0:
                return
    raise AssertionError("STORY has too few such positions")


def counted(kad: KadLlama, at: Position, event: Callable[[Generation], int], **keywords: Any) -> np.ndarray:
    """How often each event is said, over the seeds. The prompt stays cached, and so does its last row."""
    counts = np.zeros(at.pi.size)
    kad.next_logits(at.prompt, raw=True)
    for seed in range(SEEDS):
        out = kad.generate(at.prompt, raw=True, max_tokens=1, seed=seed, **keywords)
        assert out.stats.prompt_cached == out.stats.prompt_tokens and out.stats.base_passes == 0
        assert out.stats.deferred_mass == pytest.approx(at.alpha, abs=1e-9) or not out.tokens
        counts[event(out)] += 1
    return counts


def check_fit(name: str, at: Position, counts: np.ndarray, record_property: Record) -> None:
    found = fit(counts, at.pi)
    line = f"{name}: alpha {at.alpha:.2f}, {entropy(at.pi):.1f} bits, {found.cells} cells, p = {found.p_value:.3f}"
    print(line)
    record_property("fit", line)
    assert counts.sum() == SEEDS and found.cells >= 8
    assert found.p_value > 0.001


# ---- Equal vocabularies ----------------------------------------------------------------------------------------------
# Caught here: a draw from p or q instead of pi; the acceptance compared with p(x) in place of pi(x); a residual over all
# tokens; one coin used twice; a rule that reads the wrong row.


@pytest.fixture(scope="module")
def equal(widened: Path, smollm: Path) -> Callable[..., KadLlama]:
    return lambda **keywords: KadLlama(widened, smollm, n_ctx=1024, n_threads=2, **keywords)


def token_event(kad: KadLlama) -> Callable[[Generation], int]:
    """Where vocabularies are equal an event is an id."""
    end = first_end(kad)
    return lambda out: out.tokens[0].id if out.tokens else end


@pytest.mark.parametrize("rule", ["dual", "primal"])
def test_law_with_equal_vocabularies(equal: Callable[..., KadLlama], rule: str, record_property: Record) -> None:
    with equal(rule=rule) as kad:
        assert kad.vocab.equal
        at = next(positions(kad, rule, 1, first=20))
        check_fit(f"equal, {rule}", at, counted(kad, at, token_event(kad)), record_property)


def test_a_wrong_law_does_not_fit(equal: Callable[..., KadLlama]) -> None:
    """The seeds of a position tell pi from p, from q, and from a law that lies nearer to p than to pi."""
    with equal(rule="dual") as kad:
        at = next(positions(kad, "dual", 1, first=20))
        base, aligned = kad.next_logits(at.prompt, raw=True)
        p, q = reference.softmax(base), reference.softmax(aligned)
        counts = counted(kad, at, token_event(kad))
        for wrong in (p, q, 0.4 * at.pi + 0.6 * p):
            assert fit(counts, wrong).p_value < 1e-4


@pytest.mark.long
@pytest.mark.parametrize("rule", ["dual", "primal", "base"])
def test_law_with_equal_vocabularies_at_more_positions(
    equal: Callable[..., KadLlama], rule: str, record_property: Record
) -> None:
    with equal(rule=rule) as kad:
        for at in positions(kad, "dual", 5) if rule == "base" else positions(kad, rule, 5):
            at = position(kad, at.prompt, rule)
            check_fit(f"equal, {rule}", at, counted(kad, at, token_event(kad)), record_property)


# ---- Different vocabularies ------------------------------------------------------------------------------------------
# Caught here: equal bytes drawn as two events; an aligned token's mass lost for want of a base token; the rule fed with ids.


def test_law_with_different_vocabularies(gemma: Path, smollm: Path, record_property: Record) -> None:
    with KadLlama(gemma, smollm, n_ctx=1024, n_threads=2) as kad:
        assert not kad.vocab.equal
        events = Events(kad)
        assert events.n == kad.vocab.n_events
        at = next(positions(kad, "dual", 1, first=40))
        start = time.perf_counter()
        counts = counted(kad, at, events.of, draft=0)
        record_property("seconds", time.perf_counter() - start)
        check_fit("different, dual", at, counts, record_property)


@pytest.mark.long
@pytest.mark.parametrize("rule", ["dual", "primal"])
def test_law_with_different_vocabularies_at_more_positions(
    gemma: Path, smollm: Path, rule: str, record_property: Record
) -> None:
    with KadLlama(gemma, smollm, rule=rule, n_ctx=1024, n_threads=2) as kad:
        events = Events(kad)
        for at in positions(kad, rule, 3):
            check_fit(f"different, {rule}", at, counted(kad, at, events.of, spec=False), record_property)


# ---- Later in a text, under speculation ------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "draft"), [("dual", 3), ("base", 1), ("primal", 2)])
def test_law_of_the_second_event(tiny_pair: tuple[Path, Path], rule: str, draft: int, record_property: Record) -> None:
    """Given the first event, the second is drawn from pi there, guess or not. Catches a guess kept for its value, and the
    position after the draft drawn from p."""
    with KadLlama(*tiny_pair, rule=rule, n_threads=1, reproducible=True) as kad:
        for i in range(200):
            ids = kad.prompt(f"Tell me about number {i}.").base_ids or []
            pi = law_after(kad, ids, rule)
            first, end = int(np.argmax(pi)), first_end(kad)
            law = law_after(kad, [*ids, first], rule)
            if first != end and pi[first] > 0.3 and (law * pi[first] * SEEDS / 2 >= 6).sum() >= 8:
                break
        counts = np.zeros(pi.size)
        for seed in range(SEEDS // 2):
            with Run(kad, ids, seed=seed, max_tokens=draft + 1, mode=lib.KAD_MODE_SPECULATIVE, draft=draft) as run:
                said: list[int] = []
                while len(said) < 2 and not run.ended:
                    said += run.step()
            if said[:1] == [first]:
                counts[said[1] if len(said) > 1 else end] += 1
        found = fit(counts, law)
        line = f"second event, {rule}, draft {draft}: {found.cells} cells, p = {found.p_value:.3f}"
        print(line)
        record_property("fit", line)
        assert counts.sum() > 500 and found.cells >= 8 and found.p_value > 0.001


def law_after(kad: KadLlama, ids: list[int], rule: str) -> np.ndarray:
    with Run(kad, ids) as run:
        return reference.mixture(*run.rows(), rule=rule)


# ---- How often guesses are right -------------------------------------------------------------------------------------
# Caught here: guesses drawn with another coin than the draw's (token match), or scored against p.

PROMPTS = ("Why is the sky blue?", "Write a short poem about a cat.", "Name three rivers and say where they flow.")


@pytest.fixture(scope="module", params=["trained", pytest.param("smollm", marks=pytest.mark.long)])
def one_file(request: pytest.FixtureRequest, trained_pair: tuple[Path, Path]) -> Path:
    """A file with real weights and a template. How passes of SmolLM2 differ is measured for half a minute first."""
    return trained_pair[1] if request.param == "trained" else request.getfixturevalue("smollm")


@pytest.mark.parametrize("rule", ["base", "nudging"])
def test_one_file_in_both_roles_guesses_right(one_file: Path, rule: str) -> None:
    """p = q bit for bit, so pi = q and x is always the outcome."""
    with KadLlama(one_file, one_file, rule=rule, reproducible=True, n_ctx=512, n_threads=2) as kad:
        for i, prompt in enumerate(PROMPTS[:2]):
            for keywords in ({"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}):
                out = kad.generate(prompt, seed=i, max_tokens=20, draft=(3, 8)[i], **keywords)
                assert out.stats.mode == "speculative" and out.stats.drafted > 5
                assert out.stats.accepted == out.stats.drafted
                assert {token.guess for token in out.tokens} <= {"right", "none"}


def test_one_file_in_both_roles_under_dual(one_file: Path, record_property: Record) -> None:
    with KadLlama(one_file, one_file, rule="dual", reproducible=True, n_ctx=512, n_threads=2) as kad:
        check_rate(kad, "dual", [f"Tell me about number {i}." for i in range(30)], 30, 3, record_property)


@pytest.mark.parametrize("rule", ["dual", "base", "primal", "nudging"])
def test_guesses_of_a_tiny_pair(tiny_pair: tuple[Path, Path], rule: str, record_property: Record) -> None:
    with KadLlama(*tiny_pair, rule=rule, reproducible=True, n_threads=1) as kad:
        check_rate(kad, rule, [f"Tell me about number {i}." for i in range(40)], 60, 4, record_property)


def check_rate(
    kad: KadLlama, rule: str, prompts: Sequence[str], max_tokens: int, draft: int, record_property: Record
) -> None:
    """Guesses compared at position t are right with probability r_t = 1 - TV(pi, q), whatever went before: the hits minus
    the r_t are a martingale of variance sum r_t (1 - r_t). Four deviations: 6e-5 of such tests would fail by chance."""
    hits = expected = variance = 0.0
    for seed, prompt in enumerate(prompts):
        out = kad.generate(prompt, seed=seed, max_tokens=max_tokens, draft=draft)
        ids = kad.prompt(prompt).base_ids or []
        guesses = [token.guess for token in out.tokens]
        compared = [t for t, guess in enumerate(guesses) if guess != "none"]
        if out.stats.drafted > len(compared):  # the end of the text was guessed at, and is no token
            compared.append(len(guesses))
        assert out.stats.drafted == len(compared)
        rows = rows_along(kad, ids, [token.id for token in out.tokens], seed=seed, max_tokens=max_tokens + 1)
        for t in compared:
            keep = reference.kept(rule, None, rows[t][0])
            right = reference.guess_right(keep, reference.softmax(rows[t][0]), reference.softmax(rows[t][1]))
            expected += right
            variance += right * (1 - right)
        hits += out.stats.accepted
    distance = normal_distance(hits, expected, variance)
    line = f"rule {rule}: {hits:.0f} guesses right, {expected:.1f} predicted, {distance:.1f} standard deviations apart"
    print(line)
    record_property("guesses", line)
    assert variance > 2 and distance < 4
