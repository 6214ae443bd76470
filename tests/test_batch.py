"""Several texts at once: is each what it would be alone, and what happens when one cannot go on?

Runs are reproducible where texts are compared: by default a row depends in its last bits on what else a pass holds.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real import STORY

from kad_llama import Generation, KadLlama
from kad_llama.errors import ContextError, InvalidArgumentError, StateError

PROMPTS = ["The people of the town", "A river", "The people of the town lived by", "One two three"]
MODES: list[dict[str, Any]] = [{"draft": "auto"}, {"draft": 3}, {"draft": 0}, {"spec": False}]


def answer(out: Generation) -> tuple[str, list[bytes], list[str], str]:
    return out.text, [token.bytes for token in out.tokens], [token.source for token in out.tokens], out.finish_reason


@pytest.fixture(scope="module", params=["tiny_pair", "tiny_cross_pair"])
def kad(request: pytest.FixtureRequest) -> Iterator[KadLlama]:
    files = request.getfixturevalue(request.param)
    with KadLlama(*files, n_ctx=512, n_threads=1, n_parallel=3, reproducible=True) as instance:
        yield instance


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_each_text_is_what_it_is_alone(kad: KadLlama, mode: dict[str, Any]) -> None:
    """More texts than places, prompts that share a beginning, texts of different lengths."""
    settings = {"seed": 11, "max_tokens": 30, "raw": True, "stop": ["the"], **mode}
    many = kad.generate_many(PROMPTS, **settings)
    for i, out in enumerate(many):
        alone = kad.generate(PROMPTS[i], text_number=i, **settings)
        assert isinstance(alone, Generation) and answer(out) == answer(alone)
        assert out.seed == 11 and out.stats.tokens == len(out.tokens)
    assert len({out.text for out in many}) == len(PROMPTS)


def test_n_answers(kad: KadLlama) -> None:
    out = kad.generate("A river", raw=True, n=5, seed=3, max_tokens=12, text_number=4)
    wanted = [kad.generate("A river", raw=True, seed=3, max_tokens=12, text_number=4 + i) for i in range(5)]
    assert [answer(each) for each in out] == [answer(each) for each in wanted]
    assert len(kad.generate("A river", raw=True, n=1, seed=3, max_tokens=2)) == 1
    assert kad.generate_many([], seed=1) == []


def raw_prompt(kad: KadLlama, n_tokens: int, start: int = 0) -> str:
    """A raw prompt of exactly so many tokens; another one for every start."""
    text = (STORY * 20)[start:]
    for end in range(n_tokens, len(text)):
        if len(kad.prompt(text[:end], raw=True).base_ids or []) == n_tokens:
            return text[:end]
    raise AssertionError(f"no prompt of {n_tokens} tokens")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for every step of the engine that a batch takes."""
    from kad_llama import batch

    counted: list[None] = []
    monkeypatch.setattr(batch, "let_interrupt_in", lambda _: counted.append(None))
    return counted


def test_texts_share_their_passes(kad: KadLlama, steps: list[None]) -> None:
    """Caught here: texts that are written one after another. A plain text takes a step for each event."""
    out = kad.generate("A river", raw=True, n=3, seed=5, max_tokens=100, spec=False)
    longest = max(each.stats.tokens for each in out)
    assert longest <= len(steps) <= longest + 10 < sum(each.stats.tokens for each in out)


def test_texts_share_the_cells_of_their_prompt(tiny_pair: tuple[Path, Path], steps: list[None]) -> None:
    """One prompt of 200 tokens and six texts fit in 360 cells, two prompts do not. The next call finds the room again."""
    with KadLlama(*tiny_pair, n_ctx=360, n_threads=1, n_parallel=6) as several:
        prompt = raw_prompt(several, 200)
        for seed in range(3):
            steps.clear()
            out = several.generate(prompt, raw=True, n=6, seed=seed, max_tokens=8, spec=False)
            assert len(steps) < 8 + 6
            assert all(each.finish_reason == "stop" or each.stats.tokens == 8 for each in out)
            other = several.generate("A" + prompt, raw=True, n=2, seed=seed, max_tokens=100, draft=2)
            assert all(each.finish_reason == "stop" or each.stats.tokens == 100 for each in other)


@pytest.mark.parametrize("length", [64, 128, 100])
def test_prompts_of_whole_blocks(tiny: Callable[..., Path], length: int) -> None:
    """Caught here: a prompt's last row that is lost to another text's pass, and then made by a pass of its own."""
    pair = tiny("llama", n_layer=4, hidden=256), tiny("llama", n_layer=4, hidden=256, noise=0.3)
    with KadLlama(*pair, n_ctx=512, n_threads=1, n_parallel=3, reproducible=True) as several:
        prompts = [raw_prompt(several, length, start) for start in range(4)]
        for settings in ({"spec": False}, {"draft": "auto"}):
            shared: dict[str, Any] = {"raw": True, "seed": 6, "max_tokens": 12, "logprobs": True, **settings}
            many = several.generate_many(prompts, **shared)
            for i, out in enumerate(many):
                alone = several.generate(prompts[i], text_number=i, **shared)
                assert isinstance(alone, Generation) and answer(out) == answer(alone)
                assert [token.logprob for token in out.tokens] == [token.logprob for token in alone.tokens]


def test_reproducible_texts(tiny_pair: tuple[Path, Path]) -> None:
    with KadLlama(*tiny_pair, n_ctx=256, n_threads=1, reproducible=True, n_parallel=3) as several:
        assert several.n_parallel == 3
        many = [answer(out) for out in several.generate_many(PROMPTS, raw=True, seed=2, max_tokens=40)]
    with KadLlama(*tiny_pair, n_ctx=256, n_threads=1, reproducible=True) as one:
        assert one.n_parallel == 1
        for i, prompt in enumerate(PROMPTS):
            alone = one.generate(prompt, raw=True, seed=2, max_tokens=40, text_number=i, spec=False)
            assert answer(alone) == many[i]
        assert [answer(out) for out in one.generate_many(PROMPTS, raw=True, seed=2, max_tokens=40)] == many


def test_caches_that_do_not_hold_them_all(tiny_pair: tuple[Path, Path]) -> None:
    """The last ones wait; what their cells held is evaluated again. Texts are as long as their contexts allow."""
    with KadLlama(*tiny_pair, n_ctx=96, n_threads=1, n_parallel=4) as kad:
        many = kad.generate("The people", raw=True, n=6, seed=1, max_tokens=200, draft=2)
        for out in many:
            full = out.stats.prompt_tokens + out.stats.tokens == 96
            assert out.finish_reason == "stop" or full
        assert any(out.finish_reason == "length" for out in many)


def test_bad_values(kad: KadLlama, tiny_pair: tuple[Path, Path]) -> None:
    for n in (0, -1, 1.5, True, "3", 2**16 + 1, 2**70):
        with pytest.raises(InvalidArgumentError, match=f"n is {n!r}.*1 to 65536"):
            kad.generate("A", n=n)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match="prompts is 'A'.*list"):
        kad.generate_many("A")
    with pytest.raises(InvalidArgumentError, match="draft is 'fast'.*auto"):
        kad.generate("A", draft="fast")  # type: ignore[arg-type]
    refused = ((0, "n_parallel is 0.*1 to 64"), (65, "n_parallel 65 .*1 to 64"), (True, "n_parallel is True"))
    for n_parallel, words in refused:
        with pytest.raises(InvalidArgumentError, match=words):
            KadLlama(*tiny_pair, n_parallel=n_parallel)
    with pytest.raises(ContextError, match="prompt 5 has .* tokens for the base model, .*512"):
        kad.generate_many(["A"] * 5 + ["A " * 2000], raw=True, max_tokens=3)
    assert kad.generate("A", raw=True, n=2, max_tokens=3, seed=1)[0].stats.tokens <= 3


def test_one_call_at_a_time(kad: KadLlama) -> None:
    with kad.stream("A", raw=True, seed=1, max_tokens=50) as stream:
        next(stream)
        with pytest.raises(StateError, match="stream"):
            kad.generate_many(["A", "B"])


@pytest.mark.skipif(os.name == "nt", reason="SIGINT to oneself ends the process on Windows")
def test_interrupt(tiny: Callable[..., Path]) -> None:
    """What was written so far is in `partial`, and the instance stays usable."""
    base = tiny("llama", hidden=256, n_layer=8)
    with KadLlama(base, tiny("llama", noise=0.3), n_ctx=2000, n_threads=1, n_parallel=2) as kad:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt) as error:
            for _ in range(100):
                kad.generate("The people", raw=True, n=3, seed=1, max_tokens=1900)
        partial = error.value.partial  # type: ignore[attr-defined]
        assert len(partial) == 3 and partial[0] is not None
        assert kad.generate("The", raw=True, n=2, seed=1, max_tokens=2)[1].stats.tokens <= 2
