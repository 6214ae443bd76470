"""The shipped mixture and deferral against the oracle, on rows that hypothesis thinks of; and the facts of section 2.

Nothing here samples: hypothesis runs the same examples each time (derandomize), so no test fails by chance.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import law
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kad_llama import reference

SAME = settings(max_examples=150, deadline=None, derandomize=True, database=None)
KINDS = ("peaked", "ordinary", "flat", "tied", "holes", "one possible", "nearly tied", "extreme")


def make_row(kind: str, size: int, seed: int) -> law.Row32:
    """A row of one of KINDS."""
    generator = np.random.default_rng(seed)
    row = generator.standard_normal(size)
    if kind == "peaked":
        row[generator.integers(size)] += 15
    elif kind == "ordinary":
        row *= 3
    elif kind == "flat":
        row[:] = row[0]
    elif kind == "tied":
        row = np.round(row)
    elif kind == "holes":
        row = np.where(generator.random(size) < 0.7, -np.inf, 4 * row)
        row[generator.integers(size)] = 1.0
    elif kind == "one possible":
        row[np.arange(size) != generator.integers(size)] = -np.inf
    elif kind == "nearly tied":
        row = 20 + np.spacing(np.float32(20)) * np.round(2 * row)
    elif kind == "extreme":
        row *= 10.0 ** generator.uniform(1, 37)
    return row.astype(np.float32)


SET_RULES = tuple(rule for rule in reference.RULES if rule not in ("exact", "implicit-reward"))
# Rule exact has tests of its own: its set is settled by a work limit and a tie rule, not by a comparison.
RULES = [rule for rule in reference.RULES if rule != "exact"]


def critical(rule: str, p: reference.Row, q: reference.Row) -> list[float]:
    """Thresholds at which the rule's set is about to change, to rounding; none for a rule without a set."""
    first, second = p[:9], q[:9]
    of_rule: dict[str, reference.Row | list[float]] = {
        "dual": first,
        "primal": 1 - np.concatenate([first, np.cumsum(-np.sort(-p))[:9]]),
        "nudging": [p.max()],
        "bet": q.max() - first,
        "chow": [1 - q.max()],
        "diff": [p.max() - q.max()],
        "opt": [(p.max() - q.max()) / max(reference.total_variation(p, q), 1e-300)],
        "token-v1": p.max() - second,
        "token-v2": p.max() - first,
        "token-v3": 1 - first / p.max(),
    }
    return [float(x) for x in of_rule.get(rule, [])]


def thresholds(rule: str, p: reference.Row, q: reference.Row, generator: np.random.Generator) -> list[float]:
    """Critical ones, the ends of the range, the default, and any."""
    low, high = reference.RULES[rule].low, reference.RULES[rule].high
    some = [*critical(rule, p, q), low, high, reference.RULES[rule].threshold, 0.0]
    return [min(high, max(low, x)) for x in [*some, *generator.uniform(low, high, 3), *generator.uniform(0, 1, 3)]]


def third_row(rule: str, base: law.Row32, aligned: law.Row32, kind: str, seed: int) -> law.Row32 | None:
    """The reference model's row where the rule needs one, with a token that all three can say."""
    if rule != "implicit-reward":
        return None
    shared = np.flatnonzero(np.isfinite(base) & np.isfinite(aligned))
    row = make_row(kind, base.size, seed)
    row[shared[0]] = 0.5 if np.isneginf(row[shared[0]]) else row[shared[0]]
    return row


def make_case(rule: str, kinds: tuple[str, str, str], size: int, seed: int, warmth: tuple[float, Any]) -> law.Case:
    """Rows of the kinds, with a threshold that the seed takes from those that may matter."""
    generator = np.random.default_rng(seed)
    base, aligned = make_row(kinds[0], size, seed), make_row(kinds[1], size, seed + 1)
    temperature, warm = warmth if rule != "implicit-reward" else (warmth[0], 1.0)
    if rule == "implicit-reward" and not (np.isfinite(base) & np.isfinite(aligned)).any():
        aligned[np.argmax(base)] = 0
    at = temperature if warm == "sampling" else warm
    some = thresholds(rule, reference.softmax(base, at), reference.softmax(aligned, at), generator)
    third = third_row(rule, base, aligned, kinds[2], seed + 2)
    threshold = some[int(generator.integers(len(some)))]
    return law.Case(base, aligned, rule, threshold, temperature, warm, reference=third)


@st.composite
def warmths(draw: Any) -> tuple[float, Any]:
    temperature = draw(st.sampled_from([0.0, 1e-3, 0.7, 1.0, 1.3, 50.0]))
    return temperature, draw(st.sampled_from([1.0, 0.5, 2.0] + (["sampling"] if temperature else [])))


three_kinds = st.tuples(*[st.sampled_from(KINDS)] * 3)


@st.composite
def cases(draw: Any, largest: int = 2048, rules: tuple[str, ...] = tuple(RULES)) -> law.Case:
    """Rows, a rule, a threshold (often exactly where the set changes) and temperatures."""
    size = draw(st.one_of(st.integers(1, 9), st.integers(1, largest)))
    rule = draw(st.sampled_from(rules))
    return make_case(rule, draw(three_kinds), size, draw(st.integers(0, 2**20)), draw(warmths()))


@st.composite
def small_cases(draw: Any) -> law.Case:
    """Rows written out by hypothesis, so that a failure shrinks to something readable."""
    size = draw(st.integers(1, 6))
    logit = st.one_of(st.just(-math.inf), st.integers(-3, 3), st.floats(-(2.0**120), 2.0**120, width=32))
    row = st.lists(logit, min_size=size, max_size=size).filter(lambda r: max(r) > -math.inf)
    rule = draw(st.sampled_from([rule for rule in RULES if rule != "implicit-reward"]))
    return law.Case(
        np.array(draw(row), dtype=np.float32),
        np.array(draw(row), dtype=np.float32),
        rule,
        draw(st.floats(reference.RULES[rule].low, reference.RULES[rule].high)),
        draw(st.sampled_from([0.0, 0.7, 1.0])),
    )


@pytest.fixture(scope="module")
def core() -> law.Core:
    return law.under_test()


def compare(core: law.Core, case: law.Case) -> None:
    """C++ and oracle: the same set (either way at the edge), and of that set the same mixture."""
    pi = law.mixture(core, case)
    assert abs(pi.sum() - 1) < 1e-9
    assert pi.min() >= 0
    if case.joint:
        return compare_reward(case, pi)
    keep = ~law.deferral(core, case)
    assert law.acceptable(case, keep)
    p = reference.softmax(case.base, case.temperature)
    q = reference.softmax(case.aligned, case.temperature)
    decision = reference.Decision(reference.RULES[case.rule].keeper, keep)
    assert np.abs(pi - reference.mix(decision, p, q)).max() < 1e-9
    return None


def compare_reward(case: law.Case, pi: reference.Row) -> None:
    """To 1e-6, as the core keeps log pi in floats. At temperature 0 a token as good as the best, to rounding, may win."""
    assert case.reference is not None and case.threshold is not None
    log_pi = reference.log_reward(case.base, case.aligned, case.reference, case.threshold)
    assert (pi[np.isneginf(log_pi)] == 0).all()
    if case.temperature > 0:
        assert np.abs(pi - reference.softmax(log_pi, case.temperature)).max() < 1e-6
        return
    magnitude = max(float(np.abs(row[np.isfinite(row)]).max()) for row in (case.base, case.aligned, case.reference))
    rounding = 1e-14 * (1 + case.threshold) * (1 + magnitude)
    assert pi.max() == 1 and log_pi[int(np.argmax(pi))] >= log_pi.max() - rounding


@SAME
@given(case=st.one_of(cases(), small_cases()))
def test_mixture_and_deferral_equal_the_oracle(core: law.Core, case: law.Case) -> None:
    compare(core, case)


@pytest.mark.parametrize("rule", RULES)
def test_thousands_of_rows(core: law.Core, rule: str) -> None:
    """128 settings that hypothesis thinks of, 16 pairs of rows in each."""

    @settings(SAME, max_examples=128)
    @given(kinds=three_kinds, size=st.integers(1, 2048), seed=st.integers(0, 2**20), warmth=warmths())
    def each(kinds: tuple[str, str, str], size: int, seed: int, warmth: tuple[float, Any]) -> None:
        for k in range(16):
            compare(core, make_case(rule, kinds, 1 + size % 64 if k % 4 else size, seed + 7919 * k, warmth))

    each()


@pytest.mark.parametrize("k", range(20))
def test_a_large_vocabulary(core: law.Core, k: int) -> None:
    """20 pairs of rows of 262,144 logits, under every rule."""
    kinds = tuple(np.random.default_rng(k).permutation(KINDS)[:3])
    for rule in RULES:
        warmth = ((1.0, 1.0), (0.7, 1.0), (0.7, "sampling"), (0.0, 0.5))[k % 4]
        compare(core, make_case(rule, kinds, 262_144, 100 + k, warmth))


@SAME
@given(
    case=cases(64, SET_RULES),
    coins=st.tuples(*[st.one_of(st.just(0.0), st.just(law.LAST_COIN), st.floats(0, 0.999))] * 4),
)
def test_a_draw_is_possible_and_says_what_the_mixture_says(core: law.Core, case: law.Case, coins: law.Coins) -> None:
    keep, pi = ~law.deferral(core, case), law.mixture(core, case)
    decision = reference.Decision(reference.RULES[case.rule].keeper, keep)
    p, q = reference.softmax(case.base, case.temperature), reference.softmax(case.aligned, case.temperature)
    result = law.core_draw(core, case)(coins)
    assert q[result.proposal] > 0
    assert result.logprob == pytest.approx(math.log(pi[result.token]), abs=1e-9)
    by_base, _ = reference.said(decision, p, q)
    assert result.base_share * pi[result.token] == pytest.approx(by_base[result.token], abs=1e-9)
    if result.source == "base":
        assert by_base[result.token] > 0
    elif result.token != result.proposal:
        assert decision.keeper == "aligned" or keep.sum() > 1


@SAME
@given(case=cases(256, SET_RULES))
def test_alpha_is_exact_at_the_ends(core: law.Core, case: law.Case) -> None:
    """Exactly 1 when the base keeps nothing, exactly 0 when it keeps everything, whichever way the set is written.

    Roles exchanged, alpha is q(T): exactly 1 when T is everything, 0 when it is nothing.
    """
    exchanged = reference.RULES[case.rule].keeper == "aligned"
    keep = ~law.deferral(core, case)
    alpha = law.core_draw(core, case)((0.3, 0.3, 0.3, 0.3)).deferred_mass
    assert 0 <= alpha <= 1
    if keep.all():
        assert alpha == (1 if exchanged else 0)
    if not keep.any():
        assert alpha == (0 if exchanged else 1)


@SAME
@given(case=cases(512), threshold=st.floats(0.01, 1))
def test_dual_keeps_few(core: law.Core, case: law.Case, threshold: float) -> None:
    """At most floor(1 / lambda) tokens, one more through rounding."""
    kept = (~law.deferral(core, law.Case(case.base, case.aligned, "dual", threshold))).sum()
    assert kept <= math.floor(1 / threshold) + 1
    assert kept <= math.floor(1 / threshold) or kept * threshold < 1 + 1e-9


@SAME
@given(size=st.integers(1, 512), seed=st.integers(0, 2**20), budget=st.floats(0, 0.999))
def test_primal_is_dual_at_its_last_token(core: law.Core, size: int, seed: int, budget: float) -> None:
    """primal(b) = dual(lambda = probability of the last kept token), ties aside: the rows have none."""
    row = 3 * np.random.default_rng(seed).standard_normal(size)
    base = np.unique(row.astype(np.float32))[::-1].copy()
    keep = ~law.deferral(core, law.Case(base, base, "primal", budget))
    last = int(keep.sum()) - 1
    probability = reference.softmax(base)
    between = probability[last] if last + 1 == base.size else 0.5 * (probability[last] + probability[last + 1])
    dual = law.Case(base, base, "dual", float(between) if last + 1 < base.size else 0.5 * float(between))
    np.testing.assert_array_equal(keep, ~law.deferral(core, dual))


# ---- The edges of the arguments --------------------------------------------------------------------------------------

EXTREMES = """
import sys
sys.path[:0] = {path!r}
import law
import numpy as np
core = law.under_test()
rows = np.array([[1, 2, 0], [0, 1, 2]], dtype=np.float32)
for temperature in (5e-324, 1e-320, 1e-308, 1e-200):
    case = law.Case(rows[0], rows[1], "dual", 0.4, temperature)
    assert law.mixture(core, case).tolist() == [0, 1, 0], temperature
    assert law.core_draw(core, case)((0.5,) * 4).token == 1, temperature
    for rule in ("dual", "primal", "nudging", "bet"):
        case = law.Case(rows[0], rows[1], rule, 0.4, 1.0, temperature)
        assert not law.deferral(core, case)[1], (rule, temperature)
for temperature in (1e200, 1e308):
    case = law.Case(rows[0], rows[1], "aligned", 0, temperature)
    assert abs(law.mixture(core, case) - 1 / 3).max() < 1e-9, temperature
    assert law.deferral(core, law.Case(rows[0], rows[1], "dual", 0.4, 1.0, temperature)).all(), temperature
"""


def test_extreme_temperatures() -> None:
    """In a process of its own, since it must survive. Nearly 0 is the best token; nearly infinite is flat."""
    program = EXTREMES.format(path=[p for p in sys.path if p])
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stderr}"


BAD_RULES = [
    ({"kind": 99}, 1, "99"),
    ({"kind": -1}, 1, "-1"),
    ({"threshold": 1.0000001}, 1, "1.0000001"),
    ({"threshold": -0.25}, 1, "-0.25"),
    ({"threshold": math.nan}, 1, "nan"),
    ({"temperature": 0.0}, 1, "rule temperature 0"),
    ({"temperature": -2.0}, 1, "rule temperature -2"),
    ({"temperature": math.inf}, 1, "rule temperature inf"),
    ({"kind": law.RULE_KINDS["opt"], "threshold": 10.5}, 1, "10.5"),
    ({"kind": law.RULE_KINDS["diff"], "threshold": -1.5}, 1, "-1.5"),
    ({"kind": law.RULE_KINDS["implicit-reward"]}, 1, "reference_logits"),
    ({"kind": law.RULE_KINDS["implicit-reward"], "temperature": 0.5}, 1, "rule temperature 0.5"),
    ({"kind": law.RULE_KINDS["implicit-reward"], "temperature": law.SAMPLING}, 1, "sampling"),
]


@pytest.mark.parametrize("fields, status, words", BAD_RULES)
def test_bad_rules(core: law.Core, fields: dict[str, Any], status: int, words: str) -> None:
    rows = np.zeros((2, 3), dtype=np.float32)
    rule = core.ffi.new("kad_rule *", {"kind": 0, "threshold": 0.4, "temperature": 1.0} | fields)
    pi = core.ffi.new("double[3]", [9, 9, 9])
    pointers = [law.pointer(core, r, "const float *") for r in rows]
    assert core.lib.kad_mixture(rule, *pointers, core.ffi.NULL, 3, 1.0, pi) == status
    assert words in core.error()
    assert list(pi) == [9, 9, 9]


BAD_CALLS = [
    ([0, math.nan, 0], [0, 0, 0], 1.0, [0.5] * 4, 7, "nan"),
    ([0, 0, 0], [0, math.inf, 0], 1.0, [0.5] * 4, 7, "inf"),
    ([-math.inf] * 3, [0, 0, 0], 1.0, [0.5] * 4, 7, "base"),
    ([0, 0, 0], [-math.inf] * 3, 1.0, [0.5] * 4, 7, "aligned"),
    ([0, 0, 0], [0, 0, 0], -0.5, [0.5] * 4, 1, "-0.5"),
    ([0, 0, 0], [0, 0, 0], math.nan, [0.5] * 4, 1, "nan"),
    ([0, 0, 0], [0, 0, 0], 1.0, [0.5, 1.0, 0.5, 0.5], 1, "coin 1"),
    ([0, 0, 0], [0, 0, 0], 1.0, [0.5, 0.5, -0.1, 0.5], 1, "coin -0.1"),
    ([0, 0, 0], [0, 0, 0], 1.0, [0.5, 0.5, 0.5, math.nan], 1, "coin nan"),
]


@pytest.mark.parametrize("base, aligned, temperature, coins, status, words", BAD_CALLS)
def test_bad_calls(
    core: law.Core,
    base: list[float],
    aligned: list[float],
    temperature: float,
    coins: list[float],
    status: int,
    words: str,
) -> None:
    rows = np.array([base, aligned], dtype=np.float32)
    rule = law.c_rule(core, law.Case(rows[0], rows[1]))
    out = core.ffi.new("kad_draw_result *", {"token": 77})
    null = core.ffi.NULL
    pointers = [law.pointer(core, r, "const float *") for r in rows]
    assert core.lib.kad_draw(rule, *pointers, null, null, null, 3, temperature, coins, out) == status
    assert words in core.error().lower()
    assert out.token == 77


def test_null_and_empty(core: law.Core) -> None:
    row = law.pointer(core, np.zeros(3, dtype=np.float32), "const float *")
    rule = law.c_rule(core, law.Case(np.zeros(3, np.float32), np.zeros(3, np.float32)))
    null, out = core.ffi.NULL, core.ffi.new("double[3]")
    calls = [(null, row, row, 3, out), (rule, null, row, 3, out), (rule, row, null, 3, out), (rule, row, row, 0, out)]
    for c_rule, base, aligned, n, pi in [*calls, (rule, row, row, 3, null)]:
        assert core.lib.kad_mixture(c_rule, base, aligned, null, n, 1.0, pi) == 1
        assert core.error()


def test_the_table_of_rules(core: law.Core) -> None:
    """Names, defaults and order are those of the oracle; an unknown name is told the known ones."""
    info, rule = core.ffi.new("kad_rule_info *"), core.ffi.new("kad_rule *")
    assert core.lib.kad_rule_count() == len(reference.RULES)
    for kind, (name, known) in enumerate(reference.RULES.items()):
        default = known.threshold
        assert core.lib.kad_rule_describe(kind, info) == 0
        assert core.ffi.string(info.name).decode() == name
        assert info.threshold == default
        assert name in ("base", "aligned") or (info.low, info.high) == (known.low, known.high)
        assert info.exchanged == (known.keeper == "aligned") and info.reference == (known.keeper == "joint")
        assert core.lib.kad_rule_named(name.encode(), rule) == 0
        assert (rule.kind, rule.threshold, rule.temperature) == (kind, default, 1.0)
    assert core.lib.kad_rule_describe(len(reference.RULES), info) == 1
    assert core.lib.kad_rule_named(b"duel", rule) == 1
    assert "duel" in core.error() and "dual" in core.error()


# ---- The Python functions --------------------------------------------------------------------------------------------

needs_package = pytest.mark.skipif(
    "KAD_TEST_CORE" in os.environ, reason="KAD_TEST_CORE names a bare core: the Python functions are not under test"
)


@needs_package
@pytest.mark.parametrize("rule", SET_RULES)
def test_python_functions(rule: str) -> None:
    import kad_llama

    rows = 3 * np.random.default_rng(1).standard_normal((2, 5, 40)).astype(np.float32)
    for keywords in ({}, {"temperature": 0.7, "rule_temperature": "sampling"}, {"threshold": 0.25}, {"temperature": 0}):
        wanted = dict(keywords, threshold=None) if rule in ("base", "aligned") else keywords
        one = kad_llama.mixture(rows[0, 0], rows[1, 0], rule=rule, **wanted)
        deferred = kad_llama.deferral(rows[0, 0], rows[1, 0], rule=rule, **wanted)
        assert one.dtype == np.float64 and one.shape == (40,)
        assert deferred.dtype == np.bool_ and deferred.shape == (40,)
        np.testing.assert_allclose(one, reference.mixture(rows[0, 0], rows[1, 0], rule=rule, **wanted), atol=1e-9)
        np.testing.assert_array_equal(deferred, reference.deferral(rows[0, 0], rows[1, 0], rule=rule, **wanted))
        batch = kad_llama.mixture(rows[0], rows[1], rule=rule, **wanted)
        assert batch.shape == (5, 40)
        for k in range(5):
            np.testing.assert_array_equal(batch[k], kad_llama.mixture(rows[0, k], rows[1, k], rule=rule, **wanted))
        assert kad_llama.deferral(rows[0], rows[1], rule=rule, **wanted).shape == (5, 40)


@needs_package
def test_python_functions_of_three_models() -> None:
    import kad_llama

    rows = np.random.default_rng(1).standard_normal((3, 5, 40)).astype(np.float32)
    given = {"rule": "implicit-reward", "threshold": 2.0, "temperature": 0.7}
    batch = kad_llama.mixture(rows[0], rows[1], reference_logits=rows[2], **given)
    for k in range(5):
        expected = reference.mixture(rows[0, k], rows[1, k], reference_logits=rows[2, k], **given)
        np.testing.assert_allclose(batch[k], expected, atol=1e-6)
    refused = [
        ({"rule": "implicit-reward"}, "reference_logits"),
        ({"rule": "dual", "reference_logits": rows[2]}, "reference_logits"),
        ({"rule": "implicit-reward", "reference_logits": rows[2], "rule_temperature": 2.0}, "2.0"),
        ({"rule": "implicit-reward", "reference_logits": rows[2, 0]}, "shape"),
    ]
    for keywords, words in refused:
        with pytest.raises(ValueError, match=words):
            kad_llama.mixture(rows[0], rows[1], **keywords)
    with pytest.raises(ValueError, match="implicit-reward"):
        kad_llama.deferral(rows[0], rows[1], rule="implicit-reward")
    apart = np.where(np.eye(3, dtype=bool), 0, -np.inf).astype(np.float32)
    with pytest.raises(kad_llama.errors.NotANumberError, match="no token"):
        kad_llama.mixture(apart[0], apart[1], rule="implicit-reward", reference_logits=apart[2])


@needs_package
def test_python_functions_take_other_layouts() -> None:
    import kad_llama

    rows = np.random.default_rng(1).standard_normal((2, 6, 40)).astype(np.float32)
    expected = kad_llama.mixture(rows[0], rows[1])
    np.testing.assert_array_equal(kad_llama.mixture(rows[0].astype(np.float64), rows[1].astype(np.float64)), expected)
    np.testing.assert_array_equal(kad_llama.mixture(np.asfortranarray(rows[0]), np.asfortranarray(rows[1])), expected)
    np.testing.assert_array_equal(kad_llama.mixture(rows[0, ::2], rows[1, ::2]), expected[::2])


@needs_package
@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"rule": "duel"}, ValueError, "duel"),
        ({"threshold": 1.5}, ValueError, "1.5"),
        ({"threshold": -0.1}, ValueError, "-0.1"),
        ({"threshold": math.nan}, ValueError, "nan"),
        ({"temperature": -1.0}, ValueError, "-1"),
        ({"temperature": math.inf}, ValueError, "inf"),
        ({"rule_temperature": 0.0}, ValueError, "0"),
        ({"rule_temperature": -1.0}, ValueError, "-1"),
        ({"rule_temperature": "warm"}, ValueError, "warm"),
        ({"rule_temperature": "sampling", "temperature": 0}, ValueError, "sampling"),
        ({"temprature": 1.0}, TypeError, "temprature"),
    ],
)
def test_python_functions_refuse(keywords: dict[str, Any], error: type[Exception], words: str) -> None:
    import kad_llama

    for function in (kad_llama.mixture, kad_llama.deferral):
        with pytest.raises(error, match=words):
            function(np.zeros(3, np.float32), np.zeros(3, np.float32), **keywords)


@needs_package
def test_python_functions_refuse_rows() -> None:
    import kad_llama

    zero = np.zeros(3, np.float32)
    for function in (kad_llama.mixture, kad_llama.deferral):
        for other in (np.zeros(4, np.float32), np.zeros((2, 3), np.float32), np.zeros(0, np.float32)):
            with pytest.raises(ValueError, match="shape|length|size"):
                function(zero, other)
        with pytest.raises(ValueError):
            function(np.zeros((2, 2, 3), np.float32), np.zeros((2, 2, 3), np.float32))
        for bad in (math.nan, math.inf):
            with pytest.raises(kad_llama.errors.NotANumberError):
                function(np.array([0, bad, 0], np.float32), zero)
        with pytest.raises(kad_llama.errors.NotANumberError):
            function(zero - np.inf, zero)
        with pytest.raises(TypeError):
            function(zero, zero, "dual")
