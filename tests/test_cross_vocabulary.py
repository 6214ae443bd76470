"""Different vocabularies: is the text still one, and is each model's own tokenisation a function of it?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from real import FEW, LAZY, PLAIN, STORY, answer, in_new_process, prompt_of, said

from kad_llama import KadLlama

Tiny = Callable[..., Path]
COMBINATIONS = [("a", "b"), ("b", "a"), ("a", "s"), ("s", "a"), ("b", "s"), ("s", "b")]
NAMES = ["-".join(pair) for pair in COMBINATIONS]


def pair(tiny: Tiny, base: str, aligned: str, rare: float = 1.0) -> tuple[Path, Path]:
    return (
        tiny("llama", vocabulary=base, rare=rare),
        tiny("llama", vocabulary=aligned, rare=rare, noise=0.3, chat_template=True),
    )


def instance(tiny: Tiny, base: str, aligned: str, **keywords: Any) -> KadLlama:
    keywords = {"reproducible": True, "n_threads": 1, "n_ctx": 1024} | keywords
    return KadLlama(*pair(tiny, base, aligned), **keywords)


# ---- One text --------------------------------------------------------------------------------------------------------
# Caught here: a lazy run that catches up with ids said instead of its own tokenisation; a space put before a word that only
# a prompt should begin with; a character finished by the other model, or with the draw's coins; a cap that counts tokens.


@pytest.mark.parametrize("rule", ["dual", "primal", "nudging", "base"])
@pytest.mark.parametrize(("base", "aligned"), COMBINATIONS, ids=NAMES)
def test_one_text(tiny: Tiny, base: str, aligned: str, rule: str) -> None:
    with instance(tiny, base, aligned, rule=rule) as kad:
        assert not kad.vocab.equal and kad.vocab.n_differing > 0
        for n_prompt, keywords in (
            (40, {}),
            (100, {"temperature": 0.7}),
            (100, {"temperature": 0.0}),
            (300, {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01}),
        ):
            prompt = prompt_of(kad, n_prompt)
            wanted = kad.generate(prompt, seed=n_prompt, max_tokens=50, **PLAIN, **keywords)
            assert wanted.stats.note == ""
            modes: dict[str, dict[str, Any]] = {
                "lazy": LAZY,
                "speculative": {"draft": 3},
                "speculative, far": {"draft": 8},
                "auto": {"draft": "auto"},
            }
            for name, mode in modes.items():
                out = kad.generate(prompt, seed=n_prompt, max_tokens=50, **mode, **keywords)
                assert answer(out) == answer(wanted), (mode, keywords)
                if mode != LAZY:
                    assert out.stats.mode == name.split(",")[0] and out.stats.note == ""
                    continue
                greedy = keywords.get("temperature") == 0
                assert out.stats.mode == ("lazy" if rule in ("dual", "primal") or greedy else "plain")
                if rule == "base" and greedy:
                    assert out.stats.aligned_passes == 0 < wanted.stats.aligned_passes
                if rule == "dual" and keywords.get("temperature", 1) == 1:
                    assert out.stats.aligned_passes < wanted.stats.aligned_passes, "a lazy run that asks every time"


@pytest.mark.parametrize(("base", "aligned"), COMBINATIONS, ids=NAMES)
def test_warm_fresh_and_elsewhere(tiny: Tiny, base: str, aligned: str) -> None:
    with instance(tiny, base, aligned) as kad:
        prompts = [prompt_of(kad, n) for n in (150, 40, 90)]
        calls: list[tuple[Any, dict[str, Any]]] = [
            (p, {"seed": 5, "max_tokens": 50, **mode}) for p in (*prompts, *prompts) for mode in (PLAIN, LAZY)
        ]
        here = [answer(kad.generate(p, **keywords)) for p, keywords in calls]
    load = {"reproducible": True, "n_threads": 1, "n_ctx": 1024}
    assert in_new_process(*pair(tiny, base, aligned), load, calls[::-1])[::-1] == here
    for prompt, wanted in zip(prompts, here[::2], strict=False):
        with instance(tiny, base, aligned) as kad:
            assert answer(kad.generate(prompt, seed=5, max_tokens=50, **LAZY)) == wanted


# ---- Events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "aligned"), COMBINATIONS, ids=NAMES)
def test_counts_are_of_events(tiny: Tiny, base: str, aligned: str) -> None:
    """A character made of several tokens is one event, in max_tokens and in the statistics; its bytes come whole."""
    made_of_several = 0
    with instance(tiny, base, aligned) as kad:
        for seed in range(30):
            out = kad.generate("Café?", seed=seed, max_tokens=40, **PLAIN)
            assert out.stats.tokens == len(out.tokens) <= 40
            assert (out.finish_reason == "length") == (len(out.tokens) == 40)
            assert "".join(token.text for token in out.tokens) == out.text == said(out).decode("utf-8", "replace")
            for token in out.tokens:
                own = kad.token_bytes(token.id, role=token.source)
                assert token.bytes.startswith(own)
                made_of_several += token.bytes != own
                token.text.encode()
            if not out.tokens:
                continue
            # One event fewer is the same text without its last event.
            short = kad.generate("Café?", seed=seed, max_tokens=len(out.tokens) - 1, **LAZY)
            assert said(short) == b"".join(token.bytes for token in out.tokens[:-1])
    assert made_of_several > 5


@pytest.mark.parametrize(("base", "aligned"), COMBINATIONS, ids=NAMES)
def test_a_full_context_ends_every_mode_at_one_event(tiny: Tiny, base: str, aligned: str) -> None:
    full = 0
    for reproducible in (True, False):
        with instance(tiny, base, aligned, n_ctx=160, reproducible=reproducible) as kad:
            prompt = prompt_of(kad, 50)
            for seed in range(6):
                plain, lazy = (kad.generate(prompt, seed=seed, max_tokens=1000, **mode) for mode in (PLAIN, LAZY))
                if reproducible:
                    assert answer(plain) == answer(lazy)
                if plain.finish_reason == "length":
                    assert 0 < plain.stats.tokens < 1000
                    full += 1
    assert full > 0, "no text filled the context"


def test_a_full_context_with_equal_vocabularies(tiny_pair: tuple[Path, Path]) -> None:
    """Prompt and text fill it to the last token, whatever the mode and the draft."""
    with KadLlama(*tiny_pair, n_ctx=128, reproducible=True, n_threads=1) as kad:
        for seed in range(6):
            outs = [kad.generate(prompt_of(kad, 60), seed=seed, max_tokens=1000, **mode) for mode in FEW.values()]
            assert all(answer(out) == answer(outs[0]) for out in outs)
            if outs[0].finish_reason == "length":
                assert outs[0].stats.prompt_tokens + outs[0].stats.tokens == 128
    assert "length" in {out.finish_reason for out in outs}


# ---- Tokenisation of the demo's models -------------------------------------------------------------------------------
# A text is tokenised in pieces, cut where the text alone says. Caught here: a cut that one of the tokenisers does not
# respect, so that piecewise and whole differ; ids that depend on who said what.

TEXTS = {
    "prose": STORY * 2,
    "emoji": "Well done! 🎉🎉 The team 👩‍🚀 flew to the moon 🌕, and back again. 🙂 So what? ❤️ is all you need.",
    "CJK": "日本語のテキスト。 The word 日本 means Japan. 中文也可以, 한국어도 됩니다 and so on.\n次の行です。\nnext line",
    "code": "def f(x):\n    if x > 3:\n        return x ** 2  # squared\n    return {'a': [1, 2]}\n\n\n"
    "print(f(4))\nfor i in range(10):\n\tpass\n",
    "newlines": "One.\n\n\nTwo,  three;   four\r\nfive \n six\n\tseven. \n\n - eight\n1. nine\n"
    "ten or more words in a line\n\nAnd a paragraph.\nend",
    "numbers": "In 2024, 366 days; 3.14159 and 1,000,000. It's 50% off, isn't it? He said: don't. www.example.org/a?b=c",
    "accents": "Übung macht den Meister. Être ou ne pas être, señor? Ça va. naïve café — “quoted” text… and more",
}


def cuts(data: bytes) -> list[bytes]:
    """The rule of the engine, in Python: before a space and a letter behind a word; where a line begins,
    unless more white space stands before it: byte-level tokenisers cut two newlines before a word in the middle."""

    def letter(byte: int) -> bool:
        return chr(byte).isalpha() and byte < 128

    def plain(byte: int) -> bool:
        return 0x20 < byte < 0x7F or 0xE4 <= byte <= 0xE9

    pieces, start, i = [], 0, 1
    while i + 1 < len(data):
        ends_word = (chr(data[i - 1]).isalnum() and data[i - 1] < 128) or data[i - 1] in b".,;:!?"
        if i > start and (
            (data[i] == 0x20 and letter(data[i + 1]) and ends_word)
            or (data[i - 1] == 0x0A and plain(data[i]) and not data[max(i - 2, 0) : i - 1].isspace())
            or (i - start >= 1024 and (data[i] < 0x80 or data[i] >= 0xC0))
        ):
            pieces.append(data[start:i])
            start = i
        i += 1
    return [*pieces, data[start:]]


def piecewise(kad: KadLlama, role: Any, data: bytes) -> list[int]:
    return [token for piece in cuts(data) for token in kad.tokenize(piece.decode(), role=role)]


@pytest.fixture(scope="module")
def demo(gemma: Path, smollm: Path) -> Iterator[KadLlama]:
    with KadLlama(gemma, smollm, n_ctx=512, n_threads=2) as kad:
        yield kad


@pytest.mark.parametrize("role", ["base", "aligned"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_make_the_whole(demo: KadLlama, text: str, role: str) -> None:
    data = TEXTS[text].encode()
    assert b"".join(cuts(data)) == data
    assert len(cuts(data)) > 3
    assert piecewise(demo, role, data) == demo.tokenize(TEXTS[text], role=role)


def common(*lists: Sequence[int]) -> int:
    n = 0
    while n < min(map(len, lists)) and len({ids[n] for ids in lists}) == 1:
        n += 1
    return n


SEEDS = {"gemma base": (2,), "SmolLM2 base": (7, 10)}  # with words, and with two newlines before one


@pytest.mark.parametrize("roles", SEEDS)
def test_what_the_cache_holds_is_the_tokenisation_of_the_text(gemma: Path, smollm: Path, roles: str) -> None:
    """How much the next prompt finds in the base's cache tells which ids a run has evaluated there."""
    prompt = "Question: Name five animals and say 'hello' to each, with emoji 🐈.\n\nAnswer: Here they are.\n\nOne."
    files = (gemma, smollm) if roles == "gemma base" else (smollm, gemma)
    paragraphs = 0
    with KadLlama(*files, n_ctx=512, n_threads=2) as kad:
        assert kad.base is not None
        bos = [kad.base.bos] if kad.base.add_bos else []
        start = bos + kad.tokenize(prompt)
        for seed in SEEDS[roles]:
            kad.generate("x", raw=True, max_tokens=0)
            out = kad.generate(prompt, raw=True, seed=seed, max_tokens=24, draft=0)
            if len(out.tokens) < 4:
                continue
            triples = zip(out.text, out.text[1:], out.text[2:], strict=False)
            paragraphs += any(a == b == "\n" and c.isalpha() for a, b, c in triples)
            before, after = (
                start + piecewise(kad, "base", b"".join(token.bytes for token in tokens))
                for tokens in (out.tokens[:-1], out.tokens)
            )
            again = bos + kad.tokenize(prompt + out.text + " And")
            found = kad.generate(prompt + out.text + " And", raw=True, seed=seed, max_tokens=1, draft=0)
            assert found.stats.prompt_tokens == len(again)
            evaluated = after if out.finish_reason == "stop" else before
            assert found.stats.prompt_cached == common(evaluated, after, again) > len(start), (seed, out.text)
    assert paragraphs or roles == "gemma base", "no text with a second paragraph"


@pytest.mark.parametrize(("base", "aligned"), [("a", "b"), ("b", "a"), ("b", "s")])
def test_ids_said_are_not_kept_as_they_were_said(tiny: Tiny, base: str, aligned: str) -> None:
    """Random models say tokens that no tokeniser would choose; what is cached is the tokenisation all the same."""
    told = 0
    with KadLlama(*pair(tiny, base, aligned, rare=0.01), n_threads=1) as kad:
        assert kad.base is not None
        prompt = "Where did the train stop?\n"
        start = ([kad.base.bos] if kad.base.add_bos else []) + kad.tokenize(prompt)
        for seed in range(60):
            kad.generate("x", raw=True, max_tokens=0)
            out = kad.generate(prompt, raw=True, seed=seed, max_tokens=24, **PLAIN)
            if "\ufffd" in out.text or out.finish_reason != "length":
                continue
            before, after = (
                start + piecewise(kad, "base", b"".join(token.bytes for token in tokens))
                for tokens in (out.tokens[:-1], out.tokens)
            )
            again = start[: len(start) - len(kad.tokenize(prompt))] + kad.tokenize(prompt + out.text + "\x01")
            found = kad.generate(prompt + out.text + "\x01", raw=True, seed=seed, max_tokens=1, **PLAIN)
            shared = common(before, after, again)
            assert found.stats.prompt_cached == shared
            told += shared > len(start) + 5 and len(after) - len(start) != len(out.tokens)
    assert told >= 5, "every token said was the tokeniser's own choice"


@pytest.mark.long
def test_demo_pair_says_one_text(gemma: Path, smollm: Path) -> None:
    """gemma's rows are bit-equal for passes of a few rows or one; either way plain and lazy agree."""
    with KadLlama(gemma, smollm, n_ctx=1024, n_threads=2, reproducible=True) as kad:
        for n_prompt in (40, 300):
            for temperature in (0.0, 0.7, 1.0):
                prompt = prompt_of(kad, n_prompt)
                plain, lazy = (
                    kad.generate(prompt, seed=1, temperature=temperature, max_tokens=60, **mode)
                    for mode in (PLAIN, LAZY)
                )
                assert answer(plain) == answer(lazy)
