"""Architectures and stops: does every kind of cache give one text, and does a text end where it should?

Tiny random files: they load in milliseconds, and their caches are those of the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real import DRAFTS, FEW, LAZY, MODES, PLAIN, answer, prompt_of, said

from kad_llama import Generation, KadLlama

REWIND = ("llama", "qwen3", "gemma3", "moe")
CANNOT_REWIND = ("mamba", "jamba")
Tiny = Callable[..., Path]


def pair(tiny: Tiny, architecture: str, aligned: str | None = None) -> tuple[Path, Path]:
    return tiny(architecture), tiny(aligned or architecture, noise=0.3, chat_template=True)


def instance(tiny: Tiny, architecture: str, aligned: str | None = None, **keywords: Any) -> KadLlama:
    keywords = {"reproducible": True, "n_threads": 1, "n_ctx": 1024} | keywords
    return KadLlama(*pair(tiny, architecture, aligned), **keywords)


# ---- One text ----------------------------------------------------------------------------------------------------
# Caught here: a sliding window's cache that forgot cells and is rewound into them; a recurrent state that is taken for
# rewound; speculation on a cache that cannot rewind; a refusal that does not say which model.


@pytest.mark.parametrize("rule", ["dual", "nudging"])
@pytest.mark.parametrize("architecture", REWIND)
def test_one_text(tiny: Tiny, architecture: str, rule: str) -> None:
    with instance(tiny, architecture, rule=rule) as kad:
        assert kad.base is not None and kad.base.can_rewind
        assert kad.base.max_pass > 1, "speculation would be refused, and nothing tested"
        for n_prompt in (24, 100, 300):  # gemma3's window has 32 tokens
            prompt = prompt_of(kad, n_prompt)
            keywords: dict[str, Any] = {"seed": n_prompt, "max_tokens": 60}
            wanted = answer(kad.generate(prompt, **PLAIN, **keywords))
            for name, mode in MODES.items():
                out = kad.generate(prompt, **mode, **keywords)
                assert answer(out) == wanted, f"{name}, prompt of {n_prompt}"
                if name in DRAFTS:
                    assert out.stats.mode == "speculative" and out.stats.drafted > 0
                    longest = min(mode["draft"], kad.base.max_pass - 1)
                    assert (
                        out.stats.note == ""
                        if longest == mode["draft"]
                        else f"shortened to {longest}" in out.stats.note
                    )


@pytest.mark.parametrize("architecture", REWIND + CANNOT_REWIND)
def test_changed_prompts_and_second_turns(tiny: Tiny, architecture: str) -> None:
    """A warm instance says what a new one says: after a longer prompt, a shorter one, another ending, a second turn."""
    chat: list[dict[str, str]] = [{"role": "user", "content": "Tell me about the sea."}]
    with instance(tiny, architecture) as kad:
        story = prompt_of(kad, 150)
        prompts = [story, story[:-40] + "no", story[:60], story, story + " And then?", "Why?", story[:60] + " so"]
        calls: list[tuple[Any, dict[str, Any]]] = [(p, mode) for p in prompts for mode in ({"draft": 3}, LAZY, PLAIN)]
        warm = [answer(kad.generate(p, seed=4, max_tokens=40, **mode)) for p, mode in calls]
        first = kad.generate(chat, seed=4, max_tokens=90)
        chat += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And the stars?"}]
        warm += [answer(kad.generate(chat, seed=4, text_number=1, max_tokens=40, **mode)) for mode in FEW.values()]
    assert warm[-4] == warm[-3] == warm[-2] == warm[-1]
    for i, prompt in [*enumerate(prompts), (len(prompts), chat)]:
        with instance(tiny, architecture) as kad:
            keywords = {"text_number": 1} if prompt is chat else {}
            fresh = answer(kad.generate(prompt, seed=4, max_tokens=40, **PLAIN, **keywords))
        assert all(warm[j] == fresh for j in range(3 * i, 3 * i + 3)), prompt


@pytest.mark.parametrize("architecture", CANNOT_REWIND)
@pytest.mark.parametrize("reproducible", [True, False])
def test_speculation_is_refused_by_name(tiny: Tiny, architecture: str, reproducible: bool) -> None:
    with instance(tiny, architecture, reproducible=reproducible) as kad:
        assert kad.base is not None and not kad.base.can_rewind
        prompt = prompt_of(kad, 100)
        asked = kad.generate(prompt, seed=1, max_tokens=40, draft=3)
        assert asked.stats.mode == "plain" and architecture in asked.stats.note
        assert asked.stats.drafted == 0
        plain, lazy = (kad.generate(prompt, seed=1, max_tokens=40, **mode) for mode in (PLAIN, LAZY))
        assert plain.stats.note == lazy.stats.note == ""
        assert lazy.stats.mode == "lazy"
        assert answer(asked) == answer(plain)
        assert not reproducible or answer(lazy) == answer(plain)


@pytest.mark.parametrize(("base", "aligned"), [("llama", "mamba"), ("jamba", "llama"), ("gemma3", "moe")])
def test_two_architectures(tiny: Tiny, base: str, aligned: str) -> None:
    with instance(tiny, base, aligned) as kad:
        prompt = prompt_of(kad, 100)
        outs = {name: kad.generate(prompt, seed=6, max_tokens=60, **mode) for name, mode in FEW.items()}
        assert all(answer(out) == answer(outs["plain"]) for out in outs.values())
        stuck = [name for name in (base, aligned) if name in CANNOT_REWIND]
        assert outs["draft 3"].stats.mode == ("plain" if stuck else "speculative")
        assert all(name in outs["draft 3"].stats.note for name in stuck)


@pytest.mark.parametrize("architecture", CANNOT_REWIND)
def test_after_a_stop_and_an_early_end(tiny: Tiny, architecture: str) -> None:
    """What a recurrent state holds beyond the text must not reach the next one, continued or changed."""
    with instance(tiny, architecture, reproducible=False) as kad:
        prompt = prompt_of(kad, 60)
        whole = kad.generate(prompt, seed=9, max_tokens=60, **PLAIN)
        stop = whole.text[20:23]
        cut = kad.generate(prompt, seed=9, max_tokens=60, stop=stop, **PLAIN)
        assert cut.text == whole.text[: whole.text.index(stop)]
        after = [
            kad.generate(p, seed=2, max_tokens=30, raw=True, **PLAIN) for p in (prompt + cut.text, prompt, prompt + "!")
        ]
    for out, p in zip(after, (prompt + cut.text, prompt, prompt + "!"), strict=True):
        with instance(tiny, architecture, reproducible=False) as kad:
            assert kad.generate(p, seed=2, max_tokens=30, raw=True, **PLAIN).text == out.text


# ---- Stops ---------------------------------------------------------------------------------------------------------
# Caught here: a stop searched after the cap or once a round; a text that goes on after an end inside a block of right
# guesses; a cache that keeps what lies behind the end; a stop string's beginning handed out.


@pytest.fixture(scope="module")
def kad(tiny: Tiny) -> Iterator[KadLlama]:
    with instance(tiny, "llama", reproducible=False) as made:
        yield made


@pytest.fixture(scope="module")
def free(kad: KadLlama) -> list[tuple[int, Generation]]:
    """Texts without stops, by seed: speculative, drafts of 5."""
    return [(seed, kad.generate("Tell me.", seed=seed, max_tokens=50, draft=5)) for seed in range(120)]


@pytest.mark.parametrize("draft", [3, 8])
def test_end_of_generation_inside_a_block(tiny: Tiny, draft: int) -> None:
    """Texts that a model ended after a right guess, and texts whose very end was guessed."""
    after_right = guessed = 0
    with instance(tiny, "llama") as kad:
        for seed in range(300):  # which of them end so depends on the machine's arithmetic
            if after_right >= 3 and guessed >= 3:
                break
            out = kad.generate("Tell me.", seed=seed, max_tokens=500, draft=draft)
            if out.finish_reason != "stop" or len(out.tokens) < 2:
                continue
            after_right += out.tokens[-1].guess == "right"
            guessed += out.stats.accepted == 1 + sum(token.guess == "right" for token in out.tokens)
            assert answer(kad.generate("Tell me.", seed=seed, max_tokens=500, **PLAIN)) == answer(out)
            assert said(out).decode("utf-8", "replace") == out.text
    assert after_right >= 3 and guessed >= 3, "too few seeds end inside a block"


@pytest.mark.parametrize("reproducible", [False, True])
def test_stop_string_inside_a_block(tiny: Tiny, free: list[tuple[int, Generation]], reproducible: bool) -> None:
    tried = 0
    with instance(tiny, "llama", reproducible=reproducible) as kad:
        for seed, _ in free[:40]:
            out = kad.generate("Tell me.", seed=seed, max_tokens=50, draft=5)
            guesses = [token.guess for token in out.tokens]
            for t in range(4, len(guesses) - 1):
                # Events t-1, t and t+1 are right guesses: a stop that ends in event t has more of the block behind it.
                stop = out.tokens[t - 1].text[-1:] + out.tokens[t].text
                if guesses[t - 1 : t + 2] != ["right"] * 3 or not stop.isprintable() or len(stop) < 2:
                    continue
                modes = {
                    name: kad.generate("Tell me.", seed=seed, max_tokens=50, stop=["\x01", stop], **m)
                    for name, m in FEW.items()
                }
                ended = modes["draft 8"]
                assert ended.finish_reason == "stop"
                assert ended.text == out.text[: out.text.index(stop)]
                assert ended.stats.tokens <= t + 1
                assert {found.text for found in modes.values()} == {ended.text}
                tried += 1
                break
    assert tried >= 10


def test_what_is_streamed_never_holds_the_stop(kad: KadLlama, free: list[tuple[int, Generation]]) -> None:
    for seed, out in free[:40]:
        if len(out.text) < 12:
            continue
        stops = [out.text[8:11], "zzz", out.text[9:12]]
        for mode in FEW.values():
            with kad.stream("Tell me.", seed=seed, max_tokens=50, stop=stops, **mode) as stream:
                heard = ""
                for token in stream:
                    heard += token.text
                    assert not any(stop in heard for stop in stops)
            cut = min(out.text.index(stop) for stop in stops if stop in out.text)
            assert heard == stream.result.text == out.text[:cut]
            assert stream.result.finish_reason == "stop"


def test_a_stop_completed_by_the_last_token_allowed(kad: KadLlama, free: list[tuple[int, Generation]]) -> None:
    """The cap is checked after the stops, inside a block of guesses and outside."""
    tried = 0
    for seed, out in free[:60]:
        for t in range(3, min(len(out.tokens) - 1, 30)):
            before = "".join(token.text for token in out.tokens[:t])
            stop = before[-2:] + out.tokens[t].text
            if not out.tokens[t].text.isascii() or not out.tokens[t].text or out.text.index(stop) != len(before) - 2:
                continue
            for mode in FEW.values():
                reached = kad.generate("Tell me.", seed=seed, max_tokens=t + 1, stop=stop, **mode)
                assert (reached.finish_reason, reached.text) == ("stop", before[:-2]), (seed, t, mode)
                short = kad.generate("Tell me.", seed=seed, max_tokens=t, stop=stop, **mode)
                assert (short.finish_reason, short.text) == ("length", before)
            tried += 1
            break
    assert tried >= 10


@pytest.mark.parametrize("mode", FEW)
def test_the_cache_ends_with_the_text(kad: KadLlama, mode: str) -> None:
    """The next call finds prompt and text in the cache, and nothing behind them that it would have to believe."""
    prompt = "<|im_start|>user\nTell me.<|im_end|>\n<|im_start|>assistant\n"
    for seed in range(10):
        kad.generate("Why?", seed=1, max_tokens=5)  # something else in the cache
        whole = kad.generate(prompt, raw=True, seed=seed, max_tokens=40, **FEW[mode])
        if len(whole.tokens) < 30:
            continue
        stop = "".join(token.text for token in whole.tokens[20:22])
        if not stop.isascii() or whole.text.index(stop) != len("".join(token.text for token in whole.tokens[:20])):
            continue
        kad.generate("Why?", seed=1, max_tokens=5)
        cut = kad.generate(prompt, raw=True, seed=seed, max_tokens=40, stop=stop, **FEW[mode])
        ids = kad.tokenize(prompt, special=True) + [token.id for token in whole.tokens[:20]]
        again = kad.tokenize(prompt + cut.text, special=True)
        shared = next(
            (i for i, (a, b) in enumerate(zip(ids, again, strict=False)) if a != b), min(len(ids), len(again))
        )
        out = kad.generate(prompt + cut.text, raw=True, seed=99, max_tokens=10, **PLAIN)
        assert out.stats.prompt_tokens == len(again)
        assert out.stats.prompt_cached in (shared, min(shared, len(again) - 1)), (
            "text evaluated again, or too much kept"
        )
        assert out.stats.prompt_cached > len(kad.tokenize(prompt, special=True)) + 5
        return
    raise AssertionError("no seed to try this with")


# ---- Bytes ---------------------------------------------------------------------------------------------------------
# Caught here: text decoded token by token; half a character handed out; bytes lost at the end or at a stop.


@pytest.fixture(scope="module")
def stray(tiny: Tiny) -> Iterator[KadLlama]:
    """A pair that often says parts of characters."""
    with KadLlama(tiny("llama", rare=1.0), tiny("llama", noise=0.3, rare=1.0, chat_template=True), n_threads=1) as made:
        yield made


@pytest.mark.parametrize("mode", FEW)
def test_characters_are_never_split(stray: KadLlama, mode: str) -> None:
    joined = b""
    for seed in range(40):
        with stray.stream("Café?", seed=seed, max_tokens=60, **FEW[mode]) as stream:
            heard = b""
            texts = []
            for token in stream:
                heard += token.bytes
                texts.append(token.text)
                token.text.encode()  # no half of a pair
                assert "".join(texts) == heard.decode("utf-8", "replace") or not _whole(heard)
        out = stream.result
        assert "".join(texts) == out.text == heard.decode("utf-8", "replace")
        assert said(out) == heard
        for token in out.tokens:
            assert token.bytes == stray.token_bytes(token.id, role=token.source)
        joined += heard
    with pytest.raises(UnicodeDecodeError):
        joined.decode()
    whole = [c for c in joined.decode("utf-8", "ignore") if ord(c) > 127]
    assert whole, "no character was made of several tokens"


def _whole(data: bytes) -> bool:
    """Whether `data` does not end inside a character."""
    for n in range(1, min(4, len(data)) + 1):
        lead = data[-n]
        if lead >= 0xC2:
            return n >= (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
        if lead < 0x80:
            return True
    return True


# ---- Flash attention ---------------------------------------------------------------------------------------------
# Caught here: flash attention left out where the caller chose, where a quantised cache needs it, where the scores would fill
# memory, or in reproducible runs; and a model that says something else without it.


def attention(kad: KadLlama) -> list[tuple[int, int]]:
    assert kad.base is not None and kad.aligned is not None
    return [(model.flash_attn, model.n_ubatch) for model in (kad.base, kad.aligned)]


@pytest.mark.parametrize("architecture", REWIND + CANNOT_REWIND)
def test_the_small_model_on_a_cpu_runs_without_flash_attention(tiny: Tiny, architecture: str) -> None:
    """Not with a sliding window (gemma3), experts (moe), without attention (mamba), or in some layers alone (jamba)."""
    with instance(tiny, architecture, reproducible=False) as kad:
        assert attention(kad) == [(-1, 512), (0, 64) if architecture in ("llama", "qwen3") else (-1, 512)]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"flash_attn_type": 1}, (1, 512)),
        ({"flash_attn_type": -1}, (-1, 512)),
        ({"n_ubatch": 100}, (-1, 100)),
        ({"type_k": "q8_0"}, (-1, 512)),
        ({"type_v": "q8_0"}, (-1, 512)),
        ({"type_k": "f32", "type_v": "f32"}, (0, 64)),
        ({"n_batch": 8}, (0, 8)),
    ],
)
def test_flash_attention_as_the_caller_wants_it(
    tiny_pair: tuple[Path, Path], params: dict[str, Any], expected: tuple[int, int]
) -> None:
    with KadLlama(*tiny_pair, n_ctx=1024, n_threads=1, aligned_params=params) as kad:
        assert attention(kad) == [(-1, 512), expected]


def test_reproducible_runs_keep_flash_attention(tiny_pair: tuple[Path, Path]) -> None:
    with KadLlama(*tiny_pair, n_ctx=256, n_threads=1, reproducible=True) as kad:
        assert attention(kad) == [(-1, 256), (-1, 256)]


def test_scores_that_would_fill_memory(tiny: Tiny) -> None:
    """2 heads * 64 tokens * 4 bytes are 512 bytes for each token of context: 32 MiB hold 65,536 of them."""
    files = [tiny("llama", n_ctx=70_000, hidden=64), tiny("llama", n_ctx=70_000, hidden=64, noise=0.3)]
    for n_ctx, expected in ((65_536, 0), (65_792, -1)):
        with KadLlama(*files, n_ctx=n_ctx, n_threads=1) as kad:
            assert [flash_attn for flash_attn, _ in attention(kad)] == [-1, expected]


@pytest.mark.parametrize("architecture", REWIND)
def test_the_same_model_without_flash_attention(tiny: Tiny, architecture: str) -> None:
    """Log-probabilities between -5 and -20: against caches in full precision, rows without it are as near as rows with it.

    Rounding K and V to half precision moves them by 0.05 to 0.09 on average in these noisy models; another attention, by
    more than 1.
    """

    def scores(flash_attn: int, cache: str) -> np.ndarray:
        fields = {"flash_attn_type": flash_attn, "type_k": cache, "type_v": cache}
        with instance(tiny, architecture, reproducible=False, aligned_params=fields) as kad:
            tokens = kad.score(prompt_of(kad, 300), "The fox went down to the river and learned to swim.").tokens
        return np.array([token.aligned_logprob for token in tokens])

    exact = scores(0, "f32")
    without, attending = (float(np.abs(scores(on, "f16") - exact).mean()) for on in (0, 1))
    assert len(exact) > 10 and attending < 0.2 and without < 1.25 * attending
