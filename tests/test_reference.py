"""The oracle itself: against numbers worked out by hand, against its own exact law, and against the papers' facts."""

from __future__ import annotations

import itertools
from typing import Any

import law
import numpy as np
import pytest

from kad_llama import reference

TABLES = law.tables()


def settings(entry: dict[str, Any]) -> dict[str, Any]:
    return {k: entry[k] for k in ("rule", "threshold", "temperature", "rule_temperature") if k in entry}


@pytest.mark.parametrize("entry", TABLES["mixtures"], ids=lambda entry: entry["note"])
def test_mixture_by_hand(entry: dict[str, Any]) -> None:
    base, aligned = law.logits(entry["base"]), law.logits(entry["aligned"])
    deferred = reference.deferral(base, aligned, **settings(entry))
    assert (~deferred).astype(int).tolist() == entry["kept"]
    p = reference.softmax(base, entry.get("temperature", 1.0))
    assert reference.deferred_mass(~deferred, p) == pytest.approx(entry["alpha"], abs=1e-7)
    assert reference.mixture(base, aligned, **settings(entry)) == pytest.approx(entry["pi"], abs=1e-7)


@pytest.mark.parametrize("entry", TABLES["draws"], ids=lambda entry: entry["note"])
def test_draw_by_hand(entry: dict[str, Any]) -> None:
    case = law.Case(law.logits(entry["base"]), law.logits(entry["aligned"]), entry["rule"], entry["threshold"])
    result = law.reference_draw(case)(tuple(entry["coins"]))
    assert (result.token, result.proposal, result.source) == (entry["token"], entry["proposal"], entry["source"])
    assert result.base_share == pytest.approx(entry["base_share"], abs=1e-7)


@pytest.mark.parametrize("rule, threshold", law.RULES)
def test_the_oracle_has_the_law(rule: str, threshold: float) -> None:
    failures = []
    for (name, base, aligned), (temperature, top_p) in itertools.product(
        law.pairs()[::2], ((0.0, 1.0), (0.7, 0.8), (1.0, 1.0))
    ):
        case = law.Case(base, aligned, rule, threshold, temperature, top_p=top_p, name=f"{name}, T = {temperature}")
        failures += law.law_failures(law.reference_draw(case), case) + law.zero_failures(law.reference_draw(case), case)
    assert not failures, failures[0]


@pytest.mark.parametrize("rule, threshold", law.RULES)
def test_the_guess_is_right_as_often_as_any_coupling_allows(rule: str, threshold: float) -> None:
    for name, base, aligned in law.pairs():
        keep = reference.kept(rule, threshold, base)
        p, q = reference.softmax(base), reference.softmax(aligned)
        pi = reference.mix(keep, p, q)
        assert reference.guess_right(keep, p, q) == pytest.approx(1 - reference.total_variation(q, pi)), name
        if keep.sum() == 1:
            v = int(np.argmax(keep))
            alpha = reference.deferred_mass(keep, p)
            assert reference.guess_right(keep, p, q) == pytest.approx(alpha + p[v] * q[v]), name


# ---- Coins -----------------------------------------------------------------------------------------------------------


def philox4x64_10(counter: list[int], key: list[int]) -> list[int]:
    """Philox as the paper writes it (Salmon et al. 2011), in whole numbers."""
    word = 2**64
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            second // word ^ counter[1] ^ key[0],
            second % word,
            first // word ^ counter[3] ^ key[1],
            first % word,
        ]
        key = [(key[0] + 0x9E3779B97F4A7C15) % word, (key[1] + 0xBB67AE8584CAA73B) % word]
    return counter


def test_philox_known_answer() -> None:
    """The vector of counter 0, key 0 that the authors publish with their code."""
    published = [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B]
    assert philox4x64_10([0, 0, 0, 0], [0, 0]) == published
    assert reference.coin(0, 0, 0, 0) == (published[0] >> 11) / 2**53


def test_coin_is_philox_of_its_key_and_counter() -> None:
    generator = np.random.default_rng(5)
    largest = 2**64 - 1
    keys = [tuple(int(x) for x in generator.integers(0, 2**64, 4, dtype=np.uint64)) for _ in range(50)]
    for seed, text, event, purpose in [*keys, (largest,) * 4, (1, 0, 0, 1), (0, 1, 0, 1), (7, 0, largest, 3)]:
        expected = (philox4x64_10([event, text, purpose, 0], [seed, 0])[0] >> 11) / 2**53
        assert reference.coin(seed, text, event, purpose) == expected


# ---- Shaping ---------------------------------------------------------------------------------------------------------


def left(probabilities: list[float], **settings: Any) -> list[int]:
    return np.flatnonzero(np.isfinite(reference.shape(law.logits(probabilities), **settings))).tolist()


def test_shape_by_hand() -> None:
    p = [0.15, 0.4, 0.05, 0.3, 0.1]
    assert left(p) == [0, 1, 2, 3, 4]
    assert left(p, top_k=2) == [1, 3]
    assert left(p, top_k=9) == [0, 1, 2, 3, 4]
    assert left(p, top_p=0.65) == [1, 3]
    assert left(p, top_p=0.75) == [0, 1, 3]
    assert left(p, top_p=0.01) == [1]
    assert left(p, min_p=0.5) == [1, 3]
    assert left(p, min_p=0.3) == [0, 1, 3]
    # In order: of the first three, renormalised to .15/.85, .4/.85, .3/.85, top-p 0.8 keeps two (0.7/0.85 = 0.82).
    assert left(p, top_k=3, top_p=0.8) == [1, 3]
    # Ties: the lower id.
    assert left([0.25, 0.25, 0.25, 0.25], top_k=2) == [0, 1]
    assert left([0.0, 0.5, 0.5], top_p=1.0) == [1, 2]


def test_shape_leaves_the_logits_that_stay() -> None:
    row = np.array([1.0, -2.0, 3.0])
    assert reference.shape(row, top_k=2).tolist() == [1.0, -np.inf, 3.0]


# ---- Bad input, and texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [[], [[1.0]], [np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]], ids=str)
def test_rows_that_are_none(row: Any) -> None:
    with pytest.raises(ValueError, match="row"):
        reference.softmax(row)


def test_settings_that_are_none() -> None:
    row = np.zeros(3)
    with pytest.raises(ValueError, match="duel"):
        reference.kept("duel", 0.4, row)
    with pytest.raises(ValueError, match="1.5"):
        reference.kept("dual", 1.5, row)
    with pytest.raises(ValueError, match="-1"):
        reference.softmax(row, -1.0)
    with pytest.raises(ValueError, match="bare base"):
        reference.mixture(row, row, rule_temperature="sampling", temperature=0)


def test_a_text_is_a_function_of_its_seed() -> None:
    tables = np.random.default_rng(3).standard_normal((2, 4, 4))

    def model(which: int) -> reference.Model:
        return lambda ids: tables[which, ids[-1] if ids else 0]

    def text(seed: int, **keywords: Any) -> list[int]:
        return [e.token for e in reference.write(model(0), model(1), 30, seed=seed, **keywords)]

    assert text(1) == text(1)
    assert text(1) != text(2) and text(1) != text(1, text_number=1)
    ended = text(1, end=[2])
    assert ended == text(1)[: len(ended)] and ended.index(2) == len(ended) - 1
    assert text(1, temperature=0) == text(2, temperature=0)
