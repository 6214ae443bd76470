"""llama.cpp's samplers, one chain per speaker: is pi made of the rows that they leave, in every mode, one text?

The law's oracle shapes both rows in NumPy, after llama.cpp's documentation of each sampler, and mixes them. Seeds are fixed;
over machines and versions each fit fails with probability 0.001 when the law holds: with the 8 fits here, fewer than one
version in a hundred.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
from real import STORY, Events, answer, first_end, fit

from kad_llama import KadLlama, reference
from kad_llama.errors import InvalidArgumentError
from kad_llama.settings import Keywords, Settings, read_settings

SEEDS = 3000
# Ends in words that it had before, so that DRY has something to do.
PROMPT = "The people of the town went to the market. The people of the town"
BAN = -math.inf

# ---- The oracle ------------------------------------------------------------------------------------------------------


def penalised(row: np.ndarray, context: Sequence[int], s: Settings) -> np.ndarray:
    """Penalties: counts in the last n tokens; a repeat penalty divides a positive logit and multiplies another."""
    row = row.copy()
    window = context if s.repeat_last_n < 0 else context[max(0, len(context) - s.repeat_last_n) :]
    for token in set(window):
        row[token] = row[token] * s.repeat_penalty if row[token] <= 0 else row[token] / s.repeat_penalty
        row[token] -= window.count(token) * s.frequency_penalty + s.presence_penalty
    return row


def dried(row: np.ndarray, context: Sequence[int], s: Settings, breakers: set[int]) -> np.ndarray:
    """DRY: a token that would go on with L >= allowed repeated tokens loses multiplier * base^(L - allowed)."""
    row = row.copy()
    window = list(context if s.dry_penalty_last_n < 0 else context[max(0, len(context) - s.dry_penalty_last_n) :])
    n = len(window)
    limit = next((i for i in range(n) if window[n - 1 - i] in breakers), n)
    longest: dict[int, int] = {}
    for at in range(1, n):
        same = 0
        while same < min(at, limit) and window[at - 1 - same] == window[n - 1 - same]:
            same += 1
        if same >= s.dry_allowed_length:
            longest[window[at]] = max(longest.get(window[at], 0), same)
    for token, same in longest.items():
        if token not in breakers:
            row[token] -= s.dry_multiplier * s.dry_base ** (same - s.dry_allowed_length)
    return row


def typical(row: np.ndarray, p: float) -> np.ndarray:
    """Keep the tokens whose surprise is nearest to the entropy, until their mass exceeds p."""
    probabilities = reference.softmax(row)
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = -np.log(probabilities)
        entropy = np.nansum(probabilities * surprise)
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    last = int(np.argmax(np.cumsum(probabilities[order]) > p))
    out = np.full_like(row, -np.inf)
    out[order[: last + 1]] = row[order[: last + 1]]
    return out


def xtc(row: np.ndarray, threshold: float) -> np.ndarray:
    """When its coin says so: of the tokens that reach the threshold only the least probable stays."""
    probabilities = reference.softmax(row)
    top = np.flatnonzero(probabilities >= threshold)
    out = row.copy()
    if len(top) > 1:
        out[np.setdiff1d(top, top[np.argmin(probabilities[top])])] = -np.inf
    return out


class Oracle:
    """pi of the first event after PROMPT on an instance with equal vocabularies."""

    def __init__(self, kad: KadLlama, prompt: str = PROMPT) -> None:
        self.kad, self.prompt = kad, prompt
        self.context = kad.prompt(prompt, raw=True).base_ids or []
        self.rows = kad.next_logits(prompt, raw=True)
        self.bytes = [kad.token_bytes(i) for i in range(kad.vocab.n_events)]

    def shaped(self, row: np.ndarray, s: Settings, exclude: bool) -> np.ndarray:
        row = row.astype(np.float64)
        for text, bias in (s.logit_bias or {}).items():
            row[[i for i, data in enumerate(self.bytes) if data == text.encode()]] += bias
        breakers = {i for i, data in enumerate(self.bytes) if any(b.encode() in data for b in s.dry_sequence_breakers)}
        row = dried(penalised(row, self.context, s), self.context, s, breakers)
        if s.top_k:
            row = reference.shape(row, top_k=s.top_k)
        if s.typical_p < 1:
            row = typical(row, s.typical_p)
        row = reference.shape(row, top_p=s.top_p, min_p=s.min_p)
        return xtc(row, s.xtc_threshold) if exclude else row

    def law(self, **keywords: Any) -> np.ndarray:
        s = read_settings(**keywords)
        law = np.zeros(len(self.bytes))
        for base_on in (False, True):
            for aligned_on in (False, True):
                weight = math.prod(s.xtc_probability if on else 1 - s.xtc_probability for on in (base_on, aligned_on))
                if weight:
                    shaped = [self.shaped(r, s, on) for r, on in zip(self.rows, (base_on, aligned_on), strict=True)]
                    law += weight * reference.mixture(
                        *self.rows, base_shaped=shaped[0], aligned_shaped=shaped[1], temperature=s.temperature
                    )
        return law

    def counts(self, seeds: int = SEEDS, **keywords: Any) -> np.ndarray:
        counts, end = np.zeros(len(self.bytes)), first_end(self.kad)
        for seed in range(seeds):
            out = self.kad.generate(self.prompt, raw=True, max_tokens=1, seed=seed, **keywords)
            counts[out.tokens[0].id if out.tokens else end] += 1
        return counts


@pytest.fixture(scope="module")
def kad(tiny_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with KadLlama(*tiny_pair, n_ctx=256, n_threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def reproducible(tiny_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with KadLlama(*tiny_pair, n_ctx=512, n_threads=1, reproducible=True) as made:
        yield made


# ---- The law ---------------------------------------------------------------------------------------------------------

LAWS: dict[str, dict[str, Any]] = {
    "bias": {"logit_bias": {" the": 3.0, "e": 2.0, "s": 2.5, " of": BAN}},
    "repeat": {"repeat_penalty": 1.8, "repeat_last_n": -1},
    "frequency and presence": {"frequency_penalty": -0.7, "presence_penalty": -0.9, "repeat_last_n": 8},
    "dry": {
        "dry_multiplier": 1.5,
        "dry_base": 1.3,
        "dry_allowed_length": 1,
        "dry_sequence_breakers": ["."],
        "repeat_last_n": 0,
    },
    "typical": {"typical_p": 0.8},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.02},
    "all": {
        "logit_bias": {" the": 2.0},
        "repeat_penalty": 1.2,
        "frequency_penalty": 0.2,
        "presence_penalty": -0.5,
        "dry_multiplier": 0.5,
        "dry_allowed_length": 1,
        "top_k": 60,
        "typical_p": 0.95,
        "top_p": 0.95,
        "min_p": 0.01,
        "xtc_probability": 0.3,
        "xtc_threshold": 0.03,
        "temperature": 0.8,
    },
}


def prompts(kad: KadLlama) -> Iterator[str]:
    """Words, and what the models' best tokens make of them: they soon repeat themselves."""
    words = STORY.split(" ")
    for first in range(0, len(words) - 6, 3):
        prompt = " ".join(words[first : first + 6])
        for more in (0, 5, 10, 20):
            yield prompt + kad.generate(prompt, raw=True, max_tokens=more, temperature=0, draft=0).text


def telling(kad: KadLlama, settings: dict[str, Any]) -> tuple[Oracle, np.ndarray, np.ndarray]:
    """An oracle at a prompt where these settings matter, its law and the law without them."""
    for prompt in prompts(kad):
        oracle = Oracle(kad, prompt)
        law, plain = oracle.law(**settings), oracle.law(temperature=settings.get("temperature", 1.0))
        if reference.total_variation(law, plain) > 0.1 and (law * SEEDS >= 5).sum() >= 8:
            return oracle, law, plain
    raise AssertionError("STORY has no such words")


@pytest.mark.parametrize("name", LAWS)
def test_law(kad: KadLlama, name: str) -> None:
    """Catches a sampler left out or out of its order, a wrong window, logits not read back after the chain, one coin of XTC
    for both speakers, and (in `all`) a temperature before truncation."""
    oracle, law, plain = telling(kad, LAWS[name])
    counts = oracle.counts(**LAWS[name])
    found = fit(counts, law)
    assert not counts[law == 0].any()
    assert found.cells >= 8 and found.p_value > 0.001, found
    assert fit(counts, plain).p_value < 1e-4, "these settings would not be missed"


def test_law_of_a_bias_across_vocabularies(tiny_cross_pair: tuple[Path, Path]) -> None:
    """A bias on a text is one on the event, whatever ids say it in either vocabulary."""
    with KadLlama(*tiny_cross_pair, n_ctx=256, n_threads=1) as kad:
        assert not kad.vocab.equal
        events = Events(kad)
        bias = dict(zip(_said_by_both(kad), (1.5, BAN, 1.0), strict=False))
        rows = kad.next_logits(PROMPT, raw=True)
        shaped = [row.astype(np.float64) for row in rows]
        for text, value in bias.items():
            forced = kad.generate(PROMPT, raw=True, max_tokens=1, logit_bias={text: 1e9})
            assert forced.text == text
            for row in shaped:
                row[events.of(forced)] += value
        counts = np.zeros(events.n)
        for seed in range(SEEDS):
            counts[events.of(kad.generate(PROMPT, raw=True, max_tokens=1, seed=seed, draft=0, logit_bias=bias))] += 1
        law = reference.mixture(*rows, base_shaped=shaped[0], aligned_shaped=shaped[1])
        found = fit(counts, law)
        assert not counts[law == 0].any()
        assert found.cells >= 8 and found.p_value > 0.001, found
        assert fit(counts, reference.mixture(*rows)).p_value < 1e-4


def _said_by_both(kad: KadLlama) -> list[str]:
    """Texts that are one token of either model, the most frequent first."""
    said = Counter(kad.generate(PROMPT, raw=True, max_tokens=1, seed=seed, draft=0).text for seed in range(500))
    both = []
    for text, _ in said.most_common():
        with suppress(InvalidArgumentError):
            kad.generate(PROMPT, raw=True, max_tokens=0, logit_bias={text: 1.0})
            both.append(text)
    return both


# ---- Temperature 0 ---------------------------------------------------------------------------------------------------


def test_the_best_token(kad: KadLlama) -> None:
    """What changes the best token does so at temperature 0; what keeps it does not."""
    said: dict[str, list[bool]] = {}
    stronger = {"xtc_probability": 1.0, "typical_p": 0.05, "logit_bias": {" the": 20.0}}
    for prompt in islice(prompts(kad), 60):
        oracle = Oracle(kad, prompt)
        plain = int(np.argmax(oracle.law(temperature=0)))
        for name, given in LAWS.items():
            settings = {**given, "temperature": 0}
            settings |= {key: value for key, value in stronger.items() if key in settings}
            out = oracle.counts(seeds=1, **settings)
            assert out.argmax() == oracle.law(**settings).argmax(), (name, prompt)
            said.setdefault(name, []).append(out.argmax() != plain)
        for settings in ({"top_k": 1}, {"top_p": 0.01}, {"min_p": 0.99}):
            assert oracle.counts(seeds=1, temperature=0, **settings).argmax() == plain
    assert [name for name, changed in said.items() if not any(changed)] == []


# ---- Windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [-1, 0, 1, 7, 40])
@pytest.mark.parametrize("mode", [{"spec": False}, {"draft": 0}, {"draft": 4}], ids=["plain", "lazy", "draft 4"])
def test_a_penalty_sees_its_window_of_prompt_and_text(kad: KadLlama, window: int, mode: dict[str, Any]) -> None:
    settings = {"presence_penalty": 1e6, "repeat_last_n": window, **mode}
    out = kad.generate(PROMPT, raw=True, max_tokens=120, seed=4, **settings)
    ids = (kad.prompt(PROMPT, raw=True).base_ids or []) + [token.id for token in out.tokens]
    repeated = {n for n in (1, 7, 40, len(ids)) if _repeats(ids, len(out.tokens), n)}
    if window == 0:
        assert repeated == {1, 7, 40, len(ids)}
    else:
        n = len(ids) if window < 0 else window
        assert n not in repeated
        assert window < 0 or repeated, "a longer look back would have found repetitions"


def _repeats(ids: list[int], said: int, n: int) -> bool:
    """Whether one of the last `said` ids was among the n before it."""
    return any(ids[i] in ids[max(0, i - n) : i] for i in range(len(ids) - said, len(ids)))


def test_an_end_of_generation_in_the_prompt_counts_for_the_end_of_the_text(kad: KadLlama) -> None:
    """All ends are one event, at one id; a template's <|im_end|> is another id of it."""
    settings: dict[str, Any] = {
        "logit_bias": {"<|endoftext|>": 1e5},
        "presence_penalty": 1e6,
        "repeat_last_n": -1,
        "seed": 1,
    }
    assert kad.generate("The sky", raw=True, max_tokens=3, **settings).finish_reason == "stop"
    templated = kad.generate([{"role": "user", "content": "Hi"}], max_tokens=3, **settings)
    assert templated.finish_reason == "length" and templated.stats.tokens == 3


# ---- Bias ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["tiny_pair", "tiny_cross_pair"])
def test_bans_hold(pair: str, request: pytest.FixtureRequest) -> None:
    with KadLlama(*request.getfixturevalue(pair), n_ctx=512, n_threads=1) as kad:
        free = kad.generate(PROMPT, raw=True, max_tokens=200, seed=4, logit_bias={"<|im_end|>": BAN})
        assert (free.finish_reason, free.stats.tokens > 150) == ("length", True), (
            "the end was banned in both vocabularies"
        )
        common = [t for t in (*ascii_lowercase, " the") if any(token.text == t for token in free.tokens)]
        assert common
        for mode in ({"spec": False}, {"draft": 0}, {"draft": 4}):
            out = kad.generate(PROMPT, raw=True, max_tokens=200, seed=4, logit_bias=dict.fromkeys(common, BAN), **mode)
            assert not {token.text for token in out.tokens} & set(common)
        forced = kad.generate(PROMPT, raw=True, max_tokens=20, seed=4, logit_bias={"e": 1e30})
        assert forced.text == "e" * 20
        ended = kad.generate(PROMPT, raw=True, max_tokens=20, seed=4, logit_bias={"<|im_end|>": 1e30})
        assert (ended.text, ended.finish_reason) == ("", "stop")


# ---- One text --------------------------------------------------------------------------------------------------------

MANY: dict[str, Any] = {
    "repeat_penalty": 1.15,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.2,
    "repeat_last_n": 30,
    "dry_multiplier": 0.8,
    "dry_allowed_length": 1,
    "dry_penalty_last_n": 100,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.05,
    "logit_bias": {"e": 1.0, "t": BAN, "<|im_end|>": -3.0},
    "top_k": 100,
    "typical_p": 0.97,
    "top_p": 0.97,
    "min_p": 0.005,
}


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
def test_one_text(reproducible: KadLlama, temperature: float) -> None:
    settings, guessed = {**MANY, "temperature": temperature, "max_tokens": 60}, 0
    for seed in range(3):
        plain = reproducible.generate(PROMPT, seed=seed, spec=False, **settings)
        for mode in ({"draft": 0}, {"draft": 1}, {"draft": 3}, {"draft": 8}):
            out = reproducible.generate(PROMPT, seed=seed, **mode, **settings)
            assert answer(out) == answer(plain), (seed, mode)
            guessed += out.stats.accepted
    assert guessed > 20


def test_one_text_across_vocabularies(tiny_cross_pair: tuple[Path, Path]) -> None:
    with KadLlama(*tiny_cross_pair, n_ctx=512, n_threads=1, reproducible=True) as kad:
        for seed in range(3):
            plain = kad.generate(PROMPT, seed=seed, spec=False, max_tokens=50, **MANY)
            assert plain.stats.tokens > 10
            for mode in ({"draft": 0}, {"draft": 3}):
                assert answer(kad.generate(PROMPT, seed=seed, max_tokens=50, **mode, **MANY)) == answer(plain), (
                    seed,
                    mode,
                )


# ---- Refused, by name ------------------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"mirostat": 1}, "mirostat 1 .*draws for itself"),
    ({"mirostat": 2}, "mirostat 2 "),
    ({"mirostat": 0.5}, "mirostat is 0.5.*whole"),
    ({"typical_p": 0}, "typical_p 0 .*0 < typical_p <= 1"),
    ({"typical_p": 1.1}, "typical_p 1.1"),
    ({"typical_p": float("nan")}, "typical_p is nan"),
    ({"repeat_penalty": 0}, "repeat_penalty 0 .*> 0"),
    ({"repeat_penalty": -1}, "repeat_penalty -1"),
    ({"repeat_penalty": 1e-320}, "repeat_penalty 1e-320|repeat_penalty 9.99"),
    ({"repeat_penalty": 1e39}, r"repeat_penalty 1e\+39"),
    ({"frequency_penalty": 1e7}, "frequency_penalty 1"),
    ({"presence_penalty": "x"}, "presence_penalty is 'x'"),
    ({"repeat_last_n": -2}, "repeat_last_n is -2.*-1 to"),
    ({"repeat_last_n": 1.5}, "repeat_last_n is 1.5"),
    ({"dry_multiplier": -0.5}, "dry_multiplier -0.5.*>= 0"),
    ({"dry_base": 0.5}, "dry_base 0.5.*>= 1"),
    ({"dry_allowed_length": -1}, "dry_allowed_length is -1"),
    ({"dry_penalty_last_n": -2}, "dry_penalty_last_n is -2"),
    ({"dry_sequence_breakers": ["x" * 41]}, "dry_sequence_breakers.*41 bytes.*40"),
    ({"dry_sequence_breakers": [""]}, "dry_sequence_breakers has ''"),
    ({"dry_sequence_breakers": 5}, "dry_sequence_breakers is 5"),
    ({"xtc_probability": 1.01}, "xtc_probability 1.01"),
    ({"xtc_threshold": -0.1}, "xtc_threshold -0.1"),
    ({"logit_bias": {"xyzzy xyzzy": 1}}, '"xyzzy xyzzy" is no single token of the base model'),
    ({"logit_bias": {"<|im_start|>": 1}}, r'"<\|im_start\|>" is a control token.*never said'),
    ({"logit_bias": {"e": float("nan")}}, "logit_bias of 'e' is nan"),
    ({"logit_bias": {"e": float("inf")}}, "logit_bias of 'e' is inf"),
    ({"logit_bias": {"e": 1e300}}, r'logit_bias "e" is 1e\+300'),
    ({"logit_bias": {5: 1.0}}, "logit_bias has 5"),
    ({"logit_bias": [("e", 1.0)]}, "logit_bias is .*dict"),
    ({"temperature": 0, "logit_bias": {"xyzzy xyzzy": 1}}, "no single token"),
]


@pytest.mark.parametrize("method", ["generate", "stream"])
def test_values_that_cannot_be_honoured(kad: KadLlama, method: str) -> None:
    wrong = []
    for keywords, message in REFUSED:
        try:
            getattr(kad, method)("The sky", raw=True, max_tokens=2, **keywords)
        except InvalidArgumentError as error:
            if not re.search(message, str(error), re.DOTALL):
                wrong.append(f"{keywords}: {error}")
        else:
            wrong.append(f"{keywords}: accepted")
    assert not wrong, "\n".join(wrong)


def test_a_bias_names_the_model_that_lacks_it(tiny_cross_pair: tuple[Path, Path]) -> None:
    with KadLlama(*tiny_cross_pair, n_ctx=64, n_threads=1) as kad:
        vocabularies = [
            {kad.token_bytes(i, role=role) for i in range(model.n_vocab)}  # type: ignore[arg-type]
            for role, model in (("base", kad.base), ("aligned", kad.aligned))
            if model is not None
        ]
        for lacking, (has, lacks) in (("aligned", vocabularies), ("base", reversed(vocabularies))):
            text = max((t.decode() for t in has - lacks if t.isascii() and t.strip().isalpha()), key=len)
            with pytest.raises(InvalidArgumentError, match=f"no single token of the {lacking} model"):
                kad.generate("The", raw=True, max_tokens=1, logit_bias={text: 1.0})


def test_extreme_values_are_no_error(kad: KadLlama) -> None:
    extremes: list[dict[str, Any]] = [
        {"repeat_penalty": 1e38, "temperature": 1.5},
        {"repeat_penalty": 1e-37},
        {"frequency_penalty": -1e6, "presence_penalty": -1e6},
        {
            "dry_multiplier": 1e38,
            "dry_base": 1e38,
            "dry_allowed_length": 0,
            "dry_sequence_breakers": [],
            "typical_p": 0.5,
        },
        {"logit_bias": {"e": 3e38, "t": -3e38}, "typical_p": 1e-9},
        {
            "logit_bias": dict.fromkeys("abcdefghij", BAN),
            "typical_p": 0.99,
            "xtc_probability": 1.0,
            "xtc_threshold": 0.0,
        },
        {"top_k": 1, "typical_p": 0.01, "top_p": 1e-30, "min_p": 0.999, "xtc_probability": 1.0, "temperature": 0},
        {"repeat_last_n": 2**31 - 1, "dry_penalty_last_n": 2**31 - 1, "repeat_penalty": 1.1, "dry_multiplier": 1.0},
    ]
    for settings in extremes:
        out = kad.generate(PROMPT, raw=True, max_tokens=12, seed=1, **settings)
        assert out.finish_reason in ("stop", "length"), settings


# ---- The list of keywords --------------------------------------------------------------------------------------------


def test_one_list_of_keywords() -> None:
    import inspect
    from dataclasses import fields

    names = [field.name for field in fields(Settings)]
    assert sorted(Keywords.__annotations__) == sorted(names)
    doc = KadLlama.generate.__doc__ or ""
    for method in (KadLlama.generate, KadLlama.stream):
        shown = inspect.signature(method).parameters
        own = ["n"] if method is KadLlama.generate else []
        assert list(shown) == ["self", "prompt", "raw", *own, *names]
        assert all(shown[name].default == getattr(Settings(), name) for name in names)
    assert [
        name for name in [*names, "raw"] if not re.search(rf"^        (\w+, )*{name}(, \w+)*$", doc, re.MULTILINE)
    ] == []


def test_an_unknown_keyword_names_the_nearest(kad: KadLlama) -> None:
    wrong: dict[str, str] = {
        "temprature": "temperature",
        "typical": "typical_p",
        "repetition_penalty": "repeat_penalty",
    }
    call: Callable[..., Any]
    for name, nearest in wrong.items():
        for call in (kad.generate, kad.stream):
            with pytest.raises(TypeError, match=f"{name}.*{nearest}"):
                call("x", **{name: 1})
