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
    for temperature, top_p in ((0.0, 1.0), (0.7, 0.8), (1.0, 1.0)):
        for case in list(law.cases(rule, threshold, temperature, top_p))[::3]:
            box = law.reference_draw(case)
            failures += law.law_failures(box, case) + law.zero_failures(box, case)
    assert not failures, failures[0]


@pytest.mark.parametrize("rule, threshold", law.RULES)
def test_the_guess_is_right_as_often_as_any_coupling_allows(rule: str, threshold: float) -> None:
    for case in law.cases(rule, threshold):
        decision, p, q = case.distributions()
        right, pi = reference.guess_right(decision, p, q), reference.mix(decision, p, q)
        assert right == pytest.approx(1 - reference.total_variation(q, pi)), case.name
        if decision.keeper == "base":
            keep, alpha = decision.kept, reference.deferred_mass(decision, p)
            assert right == pytest.approx(alpha + np.minimum(p, (1 - alpha) * q)[keep].sum()), case.name
            if keep.sum() == 1:
                v = int(np.argmax(keep))
                assert right == pytest.approx(alpha + p[v] * q[v]), case.name


@pytest.mark.parametrize("rule", list(reference.RULES))
def test_pi_is_what_both_say(rule: str) -> None:
    """alpha is the aligned model's part of pi, in both roles."""
    for case in law.cases(rule, None):
        if rule == "exact" and case.base.size > 16:
            continue
        decision, p, q = case.distributions()
        by_base, by_aligned = reference.said(decision, p, q)
        pi, alpha = reference.mix(decision, p, q), reference.deferred_mass(decision, p, q)
        assert pi.sum() == pytest.approx(1, abs=1e-12) and pi.min() >= 0
        if decision.keeper == "joint":
            assert np.isnan(alpha) and np.isnan(reference.base_share(decision, p, q)).all()
        else:
            assert by_aligned.sum() == pytest.approx(alpha, abs=1e-12)
            assert reference.base_share(decision, p, q) * pi == pytest.approx(by_base, abs=1e-12)


def test_exact_is_not_greedy() -> None:
    """p = (.6, .3, .1), b = .9: greedy keeps .6, the optimum keeps .1."""
    base = np.log([0.6, 0.3, 0.1])
    assert reference.kept("exact", 0.9, base).tolist() == [False, False, True]
    assert reference.kept("primal", 0.9, base).tolist() == [True, False, False]
    assert not reference.kept("exact", 1.0, base).any()
    assert reference.kept("exact", 0.0, base).all()


# ---- Under a grammar -------------------------------------------------------------------------------------------------


def legal_law(decision: reference.Decision, p: reference.Row, q: reference.Row, ok: reference.Mask) -> reference.Row:
    """The law of draw_legal, by integrating its redraw (c5 to c7) and adding what the first draw says.

    The first draw's own law is shown above: its outcome is y with pi(y). Given that it was refused, the redraw is a draw
    of three further coins.
    """
    rows = [reference.log_pi(p), reference.log_pi(q)]
    pi = reference.mix(decision, p, q)
    refused = next(c for c in refusing_coins(decision, p, q, ok))

    def redraw(coins: law.Coins) -> reference.Draw:
        c5, c6, c7, _ = coins
        return reference.draw_legal(decision, *rows, ok, reference.softmax, (*refused, c5, c6, c7))

    found = law.integrate(redraw, p.size)
    again = found.said.sum(axis=1)
    return np.where(ok, pi, 0) + pi[~ok].sum() * again


def refusing_coins(
    decision: reference.Decision, p: reference.Row, q: reference.Row, ok: reference.Mask
) -> list[tuple[float, ...]]:
    grid = itertools.product((0.01, 0.3, 0.6, 0.99), repeat=3)
    return [(*c, 0.5) for c in grid if not ok[reference.draw(decision, p, q, (*c, 0.5)).token]]


@pytest.mark.parametrize("rule", ["dual", "bet", "token-v1", "implicit-reward", "base"])
def test_the_law_under_a_grammar(rule: str) -> None:
    """pi[ok] / Z, also where the aligned model has no legal mass."""
    p, q = np.array([0.5, 0.25, 0.15, 0.1, 0.0]), np.array([0.1, 0.3, 0.0, 0.25, 0.35])
    base, aligned = (np.asarray(reference.log_pi(x)) for x in (p, q))
    third = np.zeros(5)
    for legal in ([0, 3], [2], [1, 2, 4], [2, 3]):
        ok = np.isin(np.arange(5), legal)
        decision = reference.decide(rule, 0.2, base, aligned)
        first = reference.first_row(rule, 0.2, base, aligned, third)
        at = reference.softmax(first)
        pi = reference.mix(decision, at, q)
        if not pi[ok].sum() > 0:
            continue
        wanted = np.where(ok, pi, 0) / pi[ok].sum()
        assert legal_law(decision, at, q, ok) == pytest.approx(wanted, abs=1e-6), (rule, legal)


def test_no_legal_mass_masks_the_models() -> None:
    """At temperature 0 the base says 0, which is refused: of what is legal its best is 2, kept if S had it."""
    base, aligned = np.log([0.5, 0.1, 0.4]), np.log([0.6, 0.3, 0.1])
    speak = lambda logits: reference.softmax(logits, 0)  # noqa: E731
    ok = np.array([False, True, True])
    coins = [0.5] * 7
    kept_0_and_2 = reference.decide("dual", 0.4, base, aligned)
    got = reference.draw_legal(kept_0_and_2, base, aligned, ok, speak, coins)
    assert (got.token, got.source, got.proposal) == (2, "base", 1)
    kept_0 = reference.decide("dual", 0.45, base, aligned)
    got = reference.draw_legal(kept_0, base, aligned, ok, speak, coins)
    assert (got.token, got.source, got.deferred_mass) == (1, "aligned", 1.0)


def test_a_model_without_a_legal_token_gives_way() -> None:
    zero = -np.inf
    keep = reference.Decision("base", np.array([True, False, False]))
    ok = np.array([False, True, True])
    coins = [0.1, 0.1, 0.1, 0.5, 0.9, 0.5, 0.2]  # c5 draws from q'', c7 from p''

    def legal(base: list[float], aligned: list[float]) -> reference.Draw:
        return reference.draw_legal(keep, np.array(base), np.array(aligned), ok, reference.softmax, coins)

    only_aligned = reference.draw_legal(
        reference.Decision("base", np.ones(3, dtype=bool)),
        np.array([0.0, zero, zero]),
        np.zeros(3),
        ok,
        reference.softmax,
        coins,
    )
    assert (only_aligned.token, only_aligned.source, only_aligned.base_share) == (2, "aligned", 0.0)
    only_base = legal([0.0, 0.0, 0.0], [0.0, zero, zero])
    assert (only_base.token, only_base.source, only_base.proposal) == (1, "base", -1)
    with pytest.raises(ValueError, match="neither"):
        legal([0.0, zero, zero], [0.0, zero, zero])


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
    with pytest.raises(ValueError, match="no set"):
        reference.deferral(row, row, rule="implicit-reward")
    with pytest.raises(ValueError, match="0.5"):
        reference.decide("implicit-reward", 1.0, row, row, rule_temperature=0.5)
    with pytest.raises(ValueError, match="reference_logits"):
        reference.mixture(row, row, rule="implicit-reward")
    with pytest.raises(ValueError, match="no token"):
        apart = np.where(np.eye(3, dtype=bool), 0.0, -np.inf)
        reference.mixture(apart[0], apart[1], rule="implicit-reward", reference_logits=row)
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
    odd_then_even = text(1, grammar=lambda ids: np.arange(4) % 2 == (len(ids) + 1) % 2)
    assert [token % 2 for token in odd_then_even] == [1, 0] * 15
    rewarded = {"rule": "implicit-reward", "reference_model": lambda ids: np.zeros(4)}
    assert text(1, **rewarded) == text(1, **rewarded) != text(1)
