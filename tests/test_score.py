"""Scores of a given text: are they the numbers that a run with log-probabilities gives, made in few passes?"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real import Run, prompt_of, rows_along, token_kind

from kad_llama import Generation, KadLlama, ScoredToken, Token, mixture, reference
from kad_llama._binding import lib
from kad_llama.errors import ContextError, InvalidArgumentError, StateError
from kad_llama.scoring import Completion, score_settings

Tiny = Callable[..., Path]
RULES = ["dual", "primal", "exact", "nudging", "bet", "chow", "diff", "opt", "token-v1", "token-v2", "token-v3", "base"]
NUMBERS = ("logprob", "base_logprob", "aligned_logprob", "deferred_mass", "base_share")
SETTINGS: dict[str, dict[str, Any]] = {
    "raw rows": {},
    "warm, truncated": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9},
    "stateful": {"repeat_penalty": 1.3, "dry_multiplier": 0.8, "logit_bias": {" very": 2.0}},
    "XTC": {"xtc_probability": 0.5, "xtc_threshold": 0.05, "text_number": 3},
    "best tokens": {"temperature": 0.0},
}
PROMPT = "Why is the sky blue? It is because"


def instance(pair: tuple[Path, Path], **keywords: Any) -> KadLlama:
    return KadLlama(*pair, **({"reproducible": True, "n_threads": 1, "n_ctx": 512} | keywords))


def numbers(token: Token | ScoredToken) -> tuple[float | None, ...]:
    return tuple(getattr(token, name) for name in NUMBERS)


def check_same(out: Generation, scored: Sequence[ScoredToken]) -> None:
    """The same tokens with exactly the same numbers."""
    assert [(token.text, token.bytes, token.ids) for token in scored] == [(t.text, t.bytes, t.ids) for t in out.tokens]
    assert [numbers(token) for token in scored] == [numbers(token) for token in out.tokens]


def of_ids(
    kad: KadLlama,
    ids: Sequence[Sequence[int]],
    sources: list[int] | None = None,
    *,
    events: bool = False,
    **settings: Any,
) -> list[ScoredToken]:
    """Scores of ids after PROMPT."""
    given = Completion([tuple(entry) for entry in ids], [b""] * len(ids), events, sources)
    return kad._score(kad.prompt(PROMPT, raw=True), given, score_settings("", settings)).tokens


@pytest.fixture(scope="module")
def dual(tiny_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with instance(tiny_pair) as kad:
        yield kad


@pytest.fixture(scope="module")
def cross(tiny_cross_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with instance(tiny_cross_pair) as kad:
        yield kad


# ---- The numbers of generate(logprobs=True) -----------------------------------------------------------------------
# Caught here: a row of the wrong position, or one that a rewind left behind; a context that re-tokenisation changed; the
# samplers' state, event number or seed; an entry that says another token's numbers.


@pytest.mark.parametrize("rule", RULES)
def test_equal_vocabularies(tiny_pair: tuple[Path, Path], rule: str) -> None:
    with instance(tiny_pair, rule=rule) as kad:
        for seed, keywords in enumerate(SETTINGS.values()):
            prompt = prompt_of(kad, 20 + 45 * seed)
            out = kad.generate(prompt, seed=seed, max_tokens=60, logprobs=True, spec=seed % 2 == 0, **keywords)
            assert len(out.tokens) > 5
            check_same(out, kad.score(prompt, out, **keywords).tokens)


@pytest.mark.parametrize("rule", RULES)
def test_different_vocabularies(tiny_cross_pair: tuple[Path, Path], rule: str) -> None:
    several = 0
    with instance(tiny_cross_pair, rule=rule) as kad:
        for seed, keywords in enumerate(s for name, s in SETTINGS.items() if name != "stateful"):
            prompt = prompt_of(kad, 20 + 45 * seed)
            out = kad.generate(prompt, seed=seed, max_tokens=60, logprobs=True, **keywords)
            several += sum(len(token.ids) > 1 for token in out.tokens)
            check_same(out, kad.score(prompt, out, **keywords).tokens)
    assert several > 0, "no character of several tokens was said, and nothing of them tested"


def test_implicit_reward(tiny: Tiny, tiny_pair: tuple[Path, Path]) -> None:
    reference = tiny("llama", noise=0.15)
    with instance(tiny_pair, rule="implicit-reward", reference=reference) as kad:
        for seed, keywords in enumerate(SETTINGS.values()):
            out = kad.generate(PROMPT, seed=seed, max_tokens=40, logprobs=True, **keywords)
            scored = kad.score(PROMPT, out, **keywords).tokens
            check_same(out, scored)
            assert {(token.deferred_mass, token.base_share) for token in scored} == {(None, None)}


@pytest.mark.parametrize("rule", ["base", "aligned"])
def test_a_single_model(tiny_pair: tuple[Path, Path], rule: str) -> None:
    paths = (tiny_pair[0], None) if rule == "base" else (None, tiny_pair[1])
    with instance(paths, rule=rule) as kad:  # type: ignore[arg-type]
        out = kad.generate(PROMPT, seed=1, max_tokens=40, logprobs=True)
        scored = kad.score(PROMPT, out).tokens
        check_same(out, scored)
        known, missing = ("base", "aligned") if rule == "base" else ("aligned", "base")
        for token in scored:
            assert getattr(token, f"{known}_logprob") == token.logprob and getattr(token, f"{missing}_logprob") is None
            assert (token.deferred_mass, token.base_share) == ((0, 1) if rule == "base" else (1, 0))


@pytest.mark.parametrize("architecture", ["mamba", "jamba", "gemma3"])
def test_other_caches(tiny: Tiny, architecture: str) -> None:
    """A state that cannot go back; a sliding window."""
    pair = tiny(architecture), tiny(architecture, noise=0.3, chat_template=True)
    with instance(pair) as kad:
        out = kad.generate(PROMPT, seed=1, max_tokens=60, logprobs=True, spec=False)
        check_same(out, kad.score(PROMPT, out).tokens)
        assert kad.generate(PROMPT, seed=1, max_tokens=60, spec=False).text == out.text


def test_a_grammar_is_not_part_of_it(dual: KadLlama) -> None:
    """What was drawn under a grammar is scored as before it."""
    out = dual.generate(PROMPT, seed=2, max_tokens=12, logprobs=True, grammar='root ::= [a-z ]+ "."')
    check_same(out, dual.score(PROMPT, out).tokens)


def test_weights_that_are_never_bit_equal_to_their_noise(tiny: Tiny) -> None:
    """F16 rows depend on the size of the pass: the scores differ no more than that explains.

    The noise is measured on the spot: the largest total variation of p or q between a token evaluated alone and in one pass
    with the whole text. What is sampled moves by no more than that at an event of either row, and by three times that in
    pi where the kept set stays; positions where alpha shows that it changed are left out.
    """
    pair = tiny("llama", quantisation="F16"), tiny("llama", quantisation="F16", noise=0.3, chat_template=True)
    with instance(pair, reproducible=False) as kad:
        ids = kad.prompt(PROMPT, raw=True).base_ids
        assert ids is not None
        out = kad.generate(PROMPT, raw=True, seed=1, max_tokens=60, logprobs=True, spec=False)
        scored = kad.score(PROMPT, out, raw=True).tokens
        said = [token.id for token in out.tokens]
        alone = rows_along(kad, ids, said, seed=1)
        noise = 0.0
        for n in range(1, len(said) + 1, 3):
            for context in (ids[-1:], [*ids, *said[:n]]):  # forget; everything in one pass
                with Run(kad, context) as run:
                    rows = run.rows()
            noise = max(noise, *map(variation, alone[n], rows))
        assert 1e-6 < noise < 1e-2
        apart = 0
        for token, entry in zip(out.tokens, scored, strict=True):
            assert token.deferred_mass is not None and entry.deferred_mass is not None
            if abs(token.deferred_mass - entry.deferred_mass) > 3 * noise:
                apart += 1
                continue
            for name in ("logprob", "base_logprob", "aligned_logprob"):
                wanted = math.exp(getattr(token, name))
                assert math.exp(getattr(entry, name)) == pytest.approx(wanted, abs=3 * noise)
        assert apart <= 2


def variation(first: np.ndarray, second: np.ndarray) -> float:
    return reference.total_variation(reference.softmax(first), reference.softmax(second))


# ---- The mathematics, from the rows ---------------------------------------------------------------------------------


def test_a_text_against_the_rows(dual: KadLlama) -> None:
    """Each token of a text: log pi by `mixture` of the rows after the text before it."""
    text = " the air scatters the short waves of sunlight, and so on."
    score = dual.score(PROMPT, text, raw=True)
    ids = dual.prompt(PROMPT, raw=True).base_ids
    assert ids is not None and "".join(token.text for token in score.tokens) == text
    for n, token in enumerate(score.tokens):
        with Run(dual, [*ids, *(t.ids[0] for t in score.tokens[:n])]) as run:
            rows = run.rows()
        pi = mixture(*rows, rule="dual")
        assert token.logprob == pytest.approx(math.log(pi[token.ids[0]]), abs=1e-9)
    assert score.logprob == pytest.approx(sum(token.logprob for token in score.tokens), rel=1e-12)


def test_the_events_of_a_position_sum_to_one(dual: KadLlama) -> None:
    assert dual.base is not None
    total, impossible, ends = 0.0, 0, 0
    for token in range(dual.base.n_vocab):
        (entry,) = of_ids(dual, [(token,)])
        kind = token_kind(dual, "base", token)[0]
        if kind == 2:  # all ends are one event
            ends += 1
            total += math.exp(entry.logprob) if ends == 1 else 0
        elif kind != 0:
            impossible += 1
            assert (entry.logprob, entry.base_logprob, entry.aligned_logprob) == (-math.inf,) * 3
            assert entry.base_share == 0
        else:
            total += math.exp(entry.logprob)
    assert total == pytest.approx(1, abs=1e-9) and impossible > 0 and ends > 0


def test_the_events_of_a_position_sum_to_one_across_vocabularies(cross: KadLlama) -> None:
    assert cross.base is not None and cross.aligned is not None
    seen: dict[Any, float] = {}
    for source, (role, model) in enumerate((("base", cross.base), ("aligned", cross.aligned))):
        for token in range(model.n_vocab):
            (entry,) = of_ids(cross, [(token,)], [source])
            kind, data = token_kind(cross, role, token)
            if kind in (1, 3):
                assert entry.logprob == -math.inf
                continue
            whole = data.decode("utf-8", "replace").encode() == data
            key = "end" if kind == 2 else data if whole else (role, data)
            assert seen.setdefault(key, entry.logprob) == entry.logprob, "equal bytes are one event"
    assert sum(map(math.exp, seen.values())) == pytest.approx(1, abs=1e-9)


# ---- Characters, and texts against events -----------------------------------------------------------------------------


def with_a_character(kad: KadLlama) -> tuple[Generation, int]:
    """An answer, and where in it a character of several tokens was said."""
    for seed in range(50):
        out = kad.generate(PROMPT, raw=True, seed=seed, max_tokens=40, logprobs=True)
        for i, token in enumerate(out.tokens):
            if len(token.ids) > 1 and i:
                return out, i
    raise AssertionError("no character of several tokens in 50 answers")


def test_further_tokens_of_a_character(cross: KadLlama) -> None:
    """One by one they are the event's first token and log p of its speaker; together they are the event."""
    out, at = with_a_character(cross)
    ids = [(token,) for said in out.tokens[: at + 1] for token in said.ids]
    sources = [0 if said.source == "base" else 1 for said in out.tokens[: at + 1] for _ in said.ids]
    entries = of_ids(cross, ids, sources)[-len(out.tokens[at].ids) :]
    assert math.fsum(entry.logprob for entry in entries) == pytest.approx(out.tokens[at].logprob, abs=1e-9)
    own = "base_logprob" if out.tokens[at].source == "base" else "aligned_logprob"
    for further in entries[1:]:
        assert further.logprob == getattr(further, own) and further.deferred_mass is None
        assert further.base_share == (out.tokens[at].source == "base")


def test_a_text_ended_inside_a_character(tiny_cross_pair: tuple[Path, Path]) -> None:
    """An event that begins a character and does not finish it: its speaker ended the text there."""
    with instance(tiny_cross_pair, rule="base") as kad:
        assert kad.base is not None
        kinds = [token_kind(kad, "base", token) for token in range(kad.base.n_vocab)]
        begun = next(i for i, (kind, data) in enumerate(kinds) if kind == 0 and data == b"\xf0")
        end = next(i for i, (kind, _) in enumerate(kinds) if kind == 2)
        (event,) = of_ids(kad, [(begun,)], events=True)
        first, last = of_ids(kad, [(begun,), (end,)])
        assert event.logprob == first.logprob + last.logprob > -math.inf
        assert last.logprob < 0 and of_ids(kad, [(begun,)])[0].logprob == first.logprob


@pytest.mark.parametrize("which", ["dual", "cross"])
def test_a_text_and_its_tokens_as_events(which: str, request: pytest.FixtureRequest) -> None:
    kad: KadLlama = request.getfixturevalue(which)
    text = "The café — naïve, isn't it? Thank you 🙂 日本語"
    score = kad.score(PROMPT, text, raw=True)
    assert b"".join(token.bytes for token in score.tokens).decode() == text
    assert "".join(token.text for token in score.tokens) == text
    single = [token.ids for token in score.tokens]
    assert [numbers(t) for t in of_ids(kad, single)] == [numbers(t) for t in score.tokens]
    if which == "dual":
        assert [numbers(t) for t in of_ids(kad, single, events=True)] == [numbers(t) for t in score.tokens]
    else:
        assert any(token.deferred_mass is None for token in score.tokens), "no character of several tokens"


def test_a_generation_of_another_rule(tiny_pair: tuple[Path, Path], dual: KadLlama) -> None:
    """With one vocabulary an answer can be scored under any rule; sources say nothing then."""
    out = dual.generate(PROMPT, raw=True, seed=1, max_tokens=30, logprobs=True)
    with instance(tiny_pair, rule="aligned") as alone:
        scored = alone.score(PROMPT, out, raw=True).tokens
    assert [t.logprob for t in scored] == [t.aligned_logprob for t in out.tokens]


# ---- What it costs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reproducible", [True, False])
def test_each_token_is_evaluated_once(tiny_pair: tuple[Path, Path], reproducible: bool) -> None:
    """n - 1 tokens in passes that hold them just so: none can have been evaluated twice."""
    with instance(tiny_pair, reproducible=reproducible) as kad:
        assert kad.base is not None and kad.aligned is not None
        for text in ("The sky is blue. " * 40, "One."):
            stats = kad.score(PROMPT, text).stats
            n = len(kad.tokenize(text))
            for passes, info in ((stats.base_passes, kad.base), (stats.aligned_passes, kad.aligned)):
                assert passes == math.ceil((n - 1) / min(64, info.max_pass))
            assert stats.tokens == n and stats.mode == "plain"
        assert kad.score(PROMPT, "One.").stats.prompt_tokens > 0


def passes(contexts: Sequence[Sequence[int]], most: int) -> int:
    """How often contexts one after the other cost a pass of at most `most` tokens, none evaluated but for its own row."""
    count = ready = 0
    for at in range(1, len(contexts)):
        if at <= ready:
            continue
        before, longer = contexts[at - 1], contexts[at]
        keep = next(
            (i for i, (x, y) in enumerate(zip(before, longer, strict=False)) if x != y), min(len(before), len(longer))
        )
        count, ready = count + 1, at
        for ahead in contexts[at + 1 :]:
            if list(ahead[: len(longer)]) != list(longer) or len(ahead) > keep + most:
                break
            longer, ready = ahead, ready + 1
    return count


def test_passes_across_vocabularies(cross: KadLlama) -> None:
    """No more than the models' own tokenisations of the text, as it grows, ask for."""
    text = "Thank you for your help, the answer was very useful. The functions return numbers, not words. " * 2
    score = cross.score(PROMPT, text)
    said = [b"".join(token.bytes for token in score.tokens[:n]) for n in range(len(score.tokens))]
    for role, info, found in (
        ("base", cross.base, score.stats.base_passes),
        ("aligned", cross.aligned, score.stats.aligned_passes),
    ):
        assert info is not None and info.max_pass > 4
        contexts = [cross._tokenize_continuation(data, role) for data in said]  # type: ignore[arg-type]
        assert found == passes(contexts, min(64, info.max_pass)) < len(said) / 2


# ---- Edges ----------------------------------------------------------------------------------------------------------


def test_an_empty_text(dual: KadLlama) -> None:
    score = dual.score(PROMPT, "")
    assert (score.tokens, score.logprob, score.stats.base_passes) == ([], 0.0, 0)
    assert score.to_dict()["tokens"] == []


def test_the_impossible_is_no_error(dual: KadLlama) -> None:
    score = dual.score(PROMPT, "zq zq zq", top_k=1)
    assert score.logprob == -math.inf and all(token.logprob <= 0 for token in score.tokens)
    assert dual.score(PROMPT, "zq zq zq").logprob > -math.inf


def test_special_spellings_are_text(dual: KadLlama) -> None:
    score = dual.score(PROMPT, "<|im_end|>")
    assert len(score.tokens) > 1 and score.logprob > -math.inf


def test_a_text_that_fills_the_context(tiny_pair: tuple[Path, Path]) -> None:
    with instance(tiny_pair, n_ctx=128) as kad:
        ids = kad.prompt(PROMPT, raw=True).base_ids
        assert ids is not None
        room = 128 - len(ids)
        assert len(of_ids(kad, [(ids[0],)] * room)) == room
        with pytest.raises(ContextError, match=r"129 tokens for the base model, but the context holds 128"):
            of_ids(kad, [(ids[0],)] * (room + 1))
        with pytest.raises(ContextError, match=r"base model, but the context holds 128"):
            kad.score(PROMPT, "word " * 300)
        assert kad.score(PROMPT, " very").logprob < 0


def test_a_text_too_long_for_the_aligned_model_alone(tiny_cross_pair: tuple[Path, Path]) -> None:
    with instance(tiny_cross_pair, n_ctx=128) as kad:
        text = next(t for n in range(200) if len(kad.tokenize(t := "function " * n, role="aligned")) > 128)
        assert len(kad.tokenize(text)) + len(kad.prompt("x", raw=True).base_ids or []) < 128
        with pytest.raises(ContextError, match="for the aligned model, but the context holds 128"):
            kad.score("x", text, raw=True)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"max_tokens": 5}, "max_tokens"),
        ({"stop": "a"}, "stop"),
        ({"draft": 3}, "draft"),
        ({"grammar": 'root ::= "a"'}, "grammar"),
        ({"mirostat": 2}, "mirostat"),
        ({"temperature": -1.0}, "temperature -1"),
        ({"top_p": 2.0}, "top_p 2"),
    ],
)
def test_settings_are_refused_by_name(dual: KadLlama, keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        dual.score(PROMPT, "text", **keywords)


def test_bad_ids_are_refused_by_name(dual: KadLlama, cross: KadLlama) -> None:
    n = dual.vocab.n_events
    with pytest.raises(
        InvalidArgumentError, match=f"id {n} at event 1 is no token of the base model; expected 0 to {n - 1}"
    ):
        of_ids(dual, [(1,), (n,)])
    with pytest.raises(InvalidArgumentError, match="id -1 at event 0"):
        of_ids(dual, [(-1,)])
    with pytest.raises(InvalidArgumentError, match="2 ids at event 0, but 1 make the event"):
        of_ids(dual, [(40, 41)], events=True)
    with pytest.raises(InvalidArgumentError, match="2 ids at event 0, but 1 make the event"):
        of_ids(cross, [cross.tokenize("air ")[:1] * 2], events=True)
    with pytest.raises(InvalidArgumentError, match="counts has 0 at event 0"):
        of_ids(dual, [()], events=True)
    with pytest.raises(InvalidArgumentError, match="source 2 at event 0; expected 0"):
        of_ids(cross, [(40,)], [2])
    with pytest.raises(InvalidArgumentError, match="lone surrogate at character 1"):
        dual.score(PROMPT, "a\udc80")
    with pytest.raises(InvalidArgumentError, match="completion is a bytes"):
        dual.score(PROMPT, b"a")  # type: ignore[arg-type]


def test_a_source_that_does_not_run(tiny_pair: tuple[Path, Path]) -> None:
    with (
        instance((None, tiny_pair[1]), rule="aligned") as kad,  # type: ignore[arg-type]
        pytest.raises(InvalidArgumentError, match="source base at event 0: no base model"),
    ):
        of_ids(kad, [(40,)], [0])


def test_turns(dual: KadLlama) -> None:
    """It waits its turn as other calls do, and gives it back after an error."""
    with dual.stream(PROMPT, seed=1), pytest.raises(StateError, match="open in this thread"):
        dual.score(PROMPT, "text")
    wanted = dual.score(PROMPT, "text").logprob
    with pytest.raises(ContextError):
        dual.score(PROMPT, "word " * 2000)
    assert dual.score(PROMPT, "text").logprob == wanted


def test_a_sequence_that_has_begun(dual: KadLlama) -> None:
    with dual.stream(PROMPT, seed=1) as stream:
        next(stream)
        with pytest.raises(StateError, match="has begun or ended"):
            stream.score([(40,)], None, events=False)
    with dual.stream(PROMPT, seed=1) as stream:
        stream.score([(40,)], None, events=False)
        with pytest.raises(StateError, match="has begun or ended"):
            stream.score([(40,)], None, events=False)
        assert list(stream) == []


def test_interrupted(tiny_pair: tuple[Path, Path]) -> None:
    text = "The sky is blue. " * 60
    with instance(tiny_pair) as kad:
        wanted = kad.score(PROMPT, text)
        ended = threading.Event()

        def cancel() -> None:
            while not ended.wait(0.0005):
                lib.kad_engine_cancel(kad._engine)

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                for _ in range(1000):
                    kad.score(PROMPT, text)
        finally:
            ended.set()
            canceller.join()
        assert [numbers(t) for t in kad.score(PROMPT, text).tokens] == [numbers(t) for t in wanted.tokens]
        assert kad.generate(PROMPT, seed=1, max_tokens=5).stats.tokens == 5


def test_signature_shows_what_it_takes() -> None:
    shown = inspect.signature(KadLlama.score).parameters
    assert {"prompt", "completion", "temperature", "top_k", "xtc_probability", "seed"} <= set(shown)
    assert not {"max_tokens", "stop", "draft", "grammar", "logprobs"} & set(shown)


def test_a_generation_of_other_models(tiny_cross_pair: tuple[Path, Path], tiny_pair: tuple[Path, Path]) -> None:
    with KadLlama(*tiny_pair, n_ctx=128, n_threads=1) as kad:
        out = kad.generate("Tell me.", max_tokens=20, seed=1)
    with (
        KadLlama(*tiny_cross_pair, n_ctx=128, n_threads=1) as other,
        pytest.raises(InvalidArgumentError, match="token .* of the Generation .* the models that wrote it"),
    ):
        other.score("Tell me.", out)
