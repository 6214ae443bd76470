"""Does a value out of range get an error that names it and what was expected, and does the instance work on?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kad_llama import KadLlama, deferral, mixture
from kad_llama.errors import (
    ContextError,
    InvalidArgumentError,
    ModelError,
    NotANumberError,
    OutOfMemoryError,
    PromptError,
    StateError,
)

Tiny = Callable[..., Path]
SMALL: dict[str, Any] = {"n_layer": 1, "hidden": 32}


@pytest.fixture(scope="module")
def small(tiny: Tiny) -> Path:
    return tiny("llama", **SMALL)


@pytest.fixture(scope="module")
def kad(tiny_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with KadLlama(*tiny_pair, n_ctx=64, n_threads=1) as instance:
        yield instance


# ---- The constructor's values ----------------------------------------------------------------------------------------

BIG = 10**400

CONSTRUCTOR = [
    ({"rule": "xyzzy"}, "xyzzy.*dual, primal, exact, nudging.*base, aligned"),
    ({"rule": 5}, "5.*expected one of dual"),
    ({"rule": None}, "None.*expected one of dual"),
    ({"threshold": -0.01}, "threshold -0.01.*0 to 1"),
    ({"threshold": 1.5}, "threshold 1.5.*0 to 1"),
    ({"threshold": float("nan")}, "threshold is nan.*finite"),
    ({"threshold": "0.4"}, "threshold is '0.4'.*number"),
    ({"threshold": BIG}, "threshold"),
    ({"rule": "base", "threshold": 0.4}, "threshold 0.4.*'base' has none"),
    ({"rule": "primal", "threshold": 2}, "threshold 2.*0 to 1"),
    ({"rule": "nudging", "threshold": -1}, "threshold -1.*0 to 1"),
    ({"rule": "exact", "threshold": 1.01}, "threshold 1.01.*'exact'.*0 to 1"),
    ({"rule": "bet", "threshold": -0.2}, "threshold -0.2.*'bet'.*0 to 1"),
    ({"rule": "chow", "threshold": 2}, "threshold 2.*'chow'.*0 to 1"),
    ({"rule": "diff", "threshold": -1.5}, "threshold -1.5.*'diff'.*-1 to 1"),
    ({"rule": "opt", "threshold": 11}, "threshold 11.*'opt'.*0 to 10"),
    ({"rule": "token-v1", "threshold": 1.2}, "threshold 1.2.*'token-v1'.*-1 to 1"),
    ({"rule": "token-v3", "threshold": -0.1}, "threshold -0.1.*'token-v3'.*0 to 1"),
    ({"rule": "implicit-reward"}, "reference is None.*'implicit-reward'.*needs"),
    ({"rule": "implicit-reward", "rule_temperature": 0.5}, "rule_temperature is 0.5.*'implicit-reward'"),
    ({"rule": "implicit-reward", "rule_temperature": "sampling"}, "rule_temperature is 'sampling'.*'implicit-reward'"),
    ({"reference": "before.gguf"}, "reference is 'before.gguf'.*'dual'.*none"),
    ({"rule_temperature": 0}, "rule_temperature is 0.*> 0"),
    ({"rule_temperature": -1.0}, "rule_temperature is -1.0.*> 0"),
    ({"rule_temperature": float("inf")}, "rule_temperature is inf"),
    ({"rule_temperature": "warm"}, "warm.*sampling"),
    ({"n_ctx": 0}, "n_ctx 0.*at least 1"),
    ({"n_ctx": -5}, "n_ctx -5.*at least 1"),
    ({"n_ctx": 2**40}, "n_ctx is 1099511627776"),
    ({"n_ctx": 1.5}, "n_ctx is 1.5.*whole"),
    ({"n_ctx": True}, "n_ctx is True.*whole"),
    ({"n_threads": 0}, "n_threads is 0.*at least 1"),
    ({"n_threads": -3}, "n_threads is -3.*at least 1"),
    ({"n_threads": 10**6}, "n_threads 1000000.*1 to"),
    ({"n_gpu_layers": -2}, "n_gpu_layers -2.*-1"),
    ({"n_gpu_layers": 0.5}, "n_gpu_layers is 0.5.*whole"),
    ({"n_gpu_layers_aligned": -2}, "n_gpu_layers_aligned.*-2"),
    ({"base_params": {"n_bach": 3}}, "base.*n_bach.*unknown.*n_batch"),
    ({"aligned_params": {"n_bach": 3}}, "aligned.*n_bach.*unknown.*n_batch"),
    ({"base_params": {"n_ctx": 3}}, "n_ctx.*cannot be set.*use n_ctx"),
    ({"base_params": {"n_gpu_layers": 3}}, "n_gpu_layers.*cannot be set"),
    ({"base_params": {"embeddings": 1}}, "embeddings.*cannot be set"),
    ({"base_params": {"n_seq_max": 2}}, "n_seq_max.*cannot be set"),
    ({"base_params": {"n_batch": 0}}, "n_batch.* 0.*1 to"),
    ({"base_params": {"n_batch": -1}}, "n_batch.*-1.*1 to"),
    ({"base_params": {"n_batch": 2.5}}, "n_batch.*2.5.*whole"),
    ({"base_params": {"n_batch": float("nan")}}, "n_batch.*nan"),
    ({"base_params": {"n_batch": BIG}}, "n_batch"),
    ({"base_params": {"n_batch": "8"}}, "n_batch.*'8'.*number"),
    ({"base_params": {"n_batch\0x": 8}}, "n_batch"),
    ({"base_params": {"n_ubatch": 0}}, "n_ubatch.* 0.*1 to"),
    ({"base_params": {7: 1}}, "base_params.*7"),
    ({"base_params": [1]}, "base_params.*dict"),
    ({"base_params": {"type_k": "q9_9"}}, "type_k.*q9_9.*f16"),
    ({"base_params": {"type_v": "q4_k"}}, "type_v.*q4_k.*f16"),
    ({"base_params": {"type_k": 12}}, "type_k.* 12.*f16"),
    ({"base_params": {"type_k": -1}}, "type_k.*-1"),
    ({"base_params": {"flash_attn_type": 7}}, "flash_attn_type.*7.*-1 to 1"),
]


@pytest.mark.parametrize("reproducible", [False, True])
def test_constructor_values(
    tiny_pair: tuple[Path, Path], reproducible: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Reproducible mode, which measures before it opens, refuses the same values."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wrong = []
    for keywords, message in CONSTRUCTOR:
        try:
            KadLlama(*tiny_pair, **{"n_ctx": 32, "n_threads": 1, "reproducible": reproducible, **keywords}).close()
        except InvalidArgumentError as error:
            if not re.search(message, str(error), re.DOTALL):
                wrong.append(f"{keywords}: the message {error} lacks {message}")
        except Exception as error:
            wrong.append(f"{str(keywords)[:60]}: {type(error).__name__}: {str(error)[:100]}")
        else:
            wrong.append(f"{keywords}: accepted")
    assert not wrong, "\n".join(wrong)


def test_quantised_v_cache_without_flash_attention(tiny_pair: tuple[Path, Path]) -> None:
    fields = {"type_v": "q8_0", "flash_attn_type": 0}
    with pytest.raises((ModelError, InvalidArgumentError), match="q8_0.*flash_attn"):
        KadLlama(*tiny_pair, n_ctx=32, base_params=fields)


def test_unknown_keywords(kad: KadLlama, tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(TypeError, match="treshold"):
        KadLlama(*tiny_pair, treshold=0.4)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        KadLlama(*tiny_pair, "dual")  # type: ignore[misc]
    for call in (kad.generate, kad.stream):
        with pytest.raises(TypeError, match="temprature"):
            call("x", temprature=1)  # type: ignore[operator]
        with pytest.raises(TypeError):
            call("x", 5)  # type: ignore[operator]


def test_rules_without_their_model(tiny_pair: tuple[Path, Path]) -> None:
    base, aligned = tiny_pair
    for rule in ("dual", "primal", "nudging"):
        with pytest.raises(InvalidArgumentError, match=f"rule {rule} needs the aligned model.*rule base"):
            KadLlama(base, None, rule=rule, n_ctx=32)
        with pytest.raises(InvalidArgumentError, match=f"rule {rule} needs the base model.*rule aligned"):
            KadLlama(None, aligned, rule=rule, n_ctx=32)
    for rule, pair in (("base", (None, aligned)), ("aligned", (base, None)), ("base", (None, None))):
        with pytest.raises(InvalidArgumentError, match=f"rule {rule} needs the"):
            KadLlama(*pair, rule=rule, n_ctx=32)


@pytest.mark.parametrize("reproducible", [False, True])
def test_implicit_reward_needs_one_vocabulary(
    tiny_pair: tuple[Path, Path], tiny_cross_pair: tuple[Path, Path], reproducible: bool
) -> None:
    """Refused from the vocabularies alone: nothing is loaded, measured or run."""
    (base, aligned), other = tiny_pair, tiny_cross_pair[0]
    seen: list[float] = []
    for files, reference, whose in (((base, aligned), other, "reference"), ((other, aligned), base, "base")):
        with pytest.raises(ModelError, match=f"implicit-reward needs one vocabulary.*the {whose} model.*{other.name}"):
            KadLlama(
                *files,
                rule="implicit-reward",
                reference=reference,
                reproducible=reproducible,
                n_ctx=32,
                progress=seen.append,
            )
    assert seen == []


def test_context_is_capped(tiny: Tiny) -> None:
    short, long = tiny("llama", n_ctx=48, **SMALL), tiny("llama", n_ctx=96, chat_template=True, **SMALL)
    with KadLlama(long, short, n_ctx=10**6, n_threads=1) as kad:
        assert kad.base is not None and kad.aligned is not None
        assert (kad.base.n_ctx, kad.aligned.n_ctx) == (48, 48)
        assert kad.generate("The", raw=True, max_tokens=100, seed=1).stats.tokens < 48


def test_batch_sizes_do_not_change_the_text(tiny_pair: tuple[Path, Path]) -> None:
    texts = set()
    fields: list[dict[str, int]] = [
        {},
        {"n_batch": 1},
        {"n_batch": 7},
        {"n_ubatch": 1},
        {"n_batch": 2**30, "n_ubatch": 2**30},
    ]
    for given in fields:
        with KadLlama(*tiny_pair, n_ctx=96, n_threads=1, base_params=given, aligned_params=given) as kad:
            texts.add(kad.generate("The people of the town", raw=True, max_tokens=20, seed=5, spec=False, draft=0).text)
    assert len(texts) == 1


def test_small_batch_and_the_default_draft(tiny_pair: tuple[Path, Path]) -> None:
    """A draft that the batch cannot hold is an error; without speculation there is no draft."""
    with KadLlama(*tiny_pair, n_ctx=64, n_threads=1, base_params={"n_batch": 2}) as kad:
        assert kad.max_draft == 1
        with pytest.raises(InvalidArgumentError, match="draft.* 3.*1"):
            kad.generate("The", raw=True, max_tokens=2, draft=3)
        auto = kad.generate("The", raw=True, max_tokens=20, seed=1).stats  # makes do with what there is
        assert auto.mode == "auto" and auto.drafted <= auto.base_passes
        assert kad.generate("The", raw=True, max_tokens=2, seed=1, draft=1).stats.tokens == 2
        assert kad.generate("The", raw=True, max_tokens=2, seed=1, draft=0).stats.tokens == 2
        assert kad.generate("The", raw=True, max_tokens=2, seed=1, spec=False).stats.tokens == 2


# ---- A call's values -------------------------------------------------------------------------------------------------

CALL = [
    ({"max_tokens": -1}, "max_tokens is -1.*0 to"),
    ({"max_tokens": 1.5}, "max_tokens is 1.5.*whole"),
    ({"max_tokens": True}, "max_tokens is True"),
    ({"max_tokens": None}, "max_tokens is None"),
    ({"max_tokens": 2**31}, "max_tokens is 2147483648"),
    ({"temperature": -0.1}, "temperature -0.1.*>= 0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": float("inf")}, "temperature is inf"),
    ({"temperature": "hot"}, "temperature is 'hot'"),
    ({"temperature": BIG}, "temperature"),
    ({"top_k": -1}, "top_k is -1.*0 to"),
    ({"top_k": 2.5}, "top_k is 2.5"),
    ({"top_p": 0}, "top_p 0.*0 < top_p <= 1"),
    ({"top_p": 1.01}, "top_p 1.01.*0 < top_p <= 1"),
    ({"top_p": -1}, "top_p -1"),
    ({"min_p": -0.1}, "min_p -0.1.*0 <= min_p < 1"),
    ({"min_p": 1}, "min_p 1.*0 <= min_p < 1"),
    ({"seed": -1}, "seed is -1.*0 to 18446744073709551615"),
    ({"seed": 2**64}, "seed is 18446744073709551616"),
    ({"seed": 1.0}, "seed is 1.0"),
    ({"seed": "x"}, "seed is 'x'"),
    ({"stop": ""}, "stop has ''.*at least one"),
    ({"stop": ["a", ""]}, "stop has ''"),
    ({"stop": "a\0b"}, "stop has 'a.*NUL"),
    ({"stop": 5}, "stop is 5"),
    ({"stop": [5]}, "stop has 5"),
    ({"stop": b"x"}, "stop"),
    ({"stop": "\ud800"}, "stop.*surrogate|stop.*UTF-8"),
    ({"draft": -1}, "draft is -1.*0 to"),
    ({"draft": 10**6}, "draft is 1000000.*at most"),
    ({"draft": 1.5}, "draft is 1.5"),
    ({"text_number": -1}, "text_number is -1"),
    ({"text_number": 2**64}, "text_number is 18446744073709551616"),
    ({"text_number": "0"}, "text_number is '0'"),
]


def test_call_values(kad: KadLlama) -> None:
    expected = kad.generate("The sky", raw=True, max_tokens=4, seed=9).text
    wrong = []
    for keywords, message in CALL:
        for call in (kad.generate, kad.stream):
            try:
                call("The sky", raw=True, **{"max_tokens": 2, **keywords})
            except InvalidArgumentError as error:
                if not re.search(message, str(error), re.DOTALL):
                    wrong.append(f"{keywords}: the message {error} lacks {message}")
            except Exception as error:
                wrong.append(f"{str(keywords)[:60]}: {type(error).__name__}: {str(error)[:100]}")
            else:
                wrong.append(f"{keywords}: accepted")
        assert kad.generate("The sky", raw=True, max_tokens=4, seed=9).text == expected, f"after {keywords}"
    assert not wrong, "\n".join(wrong)


def test_extreme_values_that_are_allowed(kad: KadLlama) -> None:
    allowed: list[dict[str, Any]] = [
        {"max_tokens": 2**31 - 1},
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"temperature": np.float32(0.5), "seed": np.uint64(2**64 - 1), "max_tokens": np.int32(3)},
        {"top_k": 2**31 - 1, "top_p": 1e-30, "min_p": 0.999999},
        {"top_p": 5e-324},
        {"seed": 2**64 - 1, "text_number": 2**64 - 1},
        {"stop": [], "draft": kad.max_draft},
        {"stop": ["\n" * 1000, "🙂" * 100, "a"]},
        {"stop": [f"stop {i}" for i in range(200)]},
    ]
    for keywords in allowed:
        given = {"max_tokens": 3, "seed": 1, **keywords}
        out = kad.generate("The sky", raw=True, **given)
        assert out.finish_reason in ("stop", "length"), keywords


def test_sampling_rule_temperature_at_zero(tiny_pair: tuple[Path, Path]) -> None:
    with KadLlama(*tiny_pair, n_ctx=64, n_threads=1, rule_temperature="sampling") as kad:
        with pytest.raises(InvalidArgumentError, match="temperature"):
            kad.generate("The", raw=True, max_tokens=2, temperature=0)
        assert kad.generate("The", raw=True, max_tokens=2, temperature=0.5, seed=1).stats.tokens == 2


def test_tokens_and_roles(kad: KadLlama) -> None:
    n_vocab = kad.base.n_vocab if kad.base else 0
    for token in (-1, n_vocab, 2**31 - 1, 2**40):
        with pytest.raises(InvalidArgumentError, match=str(token)):
            kad.token_bytes(token)
    with pytest.raises(InvalidArgumentError, match="judge.*base, aligned"):
        kad.tokenize("x", role="judge")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="judge"):
        kad.token_bytes(1, role="judge")  # type: ignore[arg-type]


def test_tokenising_odd_text(kad: KadLlama) -> None:
    assert kad.tokenize("") == []
    for text in ("a\0b", "\0", "🙂" * 50, "\u0300" * 100, "x" * 100_000):
        ids = kad.tokenize(text)
        back = b"".join(kad.token_bytes(token) for token in ids)
        assert back == text.encode("utf-8", "surrogateescape"), text[:10]
    assert kad.tokenize("\udc80")  # a byte that is no character, as file names have them
    with pytest.raises(InvalidArgumentError, match="surrogate"):
        kad.tokenize("\ud800")
    with pytest.raises(InvalidArgumentError, match="text"):
        kad.tokenize(5)  # type: ignore[arg-type]


def test_one_model_cannot_give_two_rows(tiny_pair: tuple[Path, Path]) -> None:
    with KadLlama(tiny_pair[0], None, rule="base", n_ctx=32, n_threads=1) as kad:
        with pytest.raises(InvalidArgumentError, match="both models"):
            kad.next_logits("x")
        with pytest.raises(InvalidArgumentError, match="aligned"):
            kad.tokenize("x", role="aligned")
        with pytest.raises(InvalidArgumentError, match="aligned"):
            kad.token_bytes(1, role="aligned")


def test_rows_functions() -> None:
    row = np.zeros(4, np.float32)
    for call in (mixture, deferral):
        for bad, message in (
            (np.zeros(3, np.float32), "same shape"),
            (np.zeros((2, 2, 2), np.float32), "shape"),
            (np.zeros(0, np.float32), "shape"),
            (np.array(["a"] * 4), "dtype"),
            (np.zeros(4, complex), "dtype"),
        ):
            with pytest.raises(InvalidArgumentError, match=message):
                call(bad, row)
        for value in (np.nan, np.inf):
            with pytest.raises(NotANumberError, match="aligned_logits.*token 2"):
                call(row, np.array([0, 0, value, 0], np.float32), rule="nudging")
        with pytest.raises(NotANumberError, match="base_logits.*-inf"):
            call(np.full(4, -np.inf, np.float32), row)
        with pytest.raises(InvalidArgumentError, match="temperature -1"):
            call(row, row, temperature=-1)


# ---- Prompts ---------------------------------------------------------------------------------------------------------


def test_prompts(kad: KadLlama) -> None:
    expected = kad.generate("The sky", max_tokens=4, seed=9).text
    user = {"role": "user", "content": "x"}
    for prompt, message in (
        ([], "empty list"),
        (5, "int"),
        (b"x", "bytes"),
        (None, "NoneType"),
        ([user, {"role": "robot", "content": "x"}], "message 1.*robot.*system, user, assistant"),
        ([user, {"role": "assistant", "content": "x"}], "message 1.*assistant.*last"),
        ([{"role": "user"}], "message 0.*content"),
        ([{"content": "x"}], "message 0.*role"),
        ([{"role": "user", "content": None}], "message 0.*NoneType"),
        ([{**user, "name": "x"}], "message 0.*name"),
        (["x"], "message 0.*dict"),
        ("a \ud800", "surrogate.*character 2"),
        ([{"role": "user", "content": "\udc80"}], "surrogate"),
    ):
        with pytest.raises(PromptError, match=message):
            kad.generate(prompt, max_tokens=2)  # type: ignore[arg-type]
    for prompt, message in (("", "no tokens"), ([user], "raw.*str"), ("\ud800", "surrogate")):
        with pytest.raises(PromptError, match=message):
            kad.generate(prompt, raw=True, max_tokens=2)  # type: ignore[arg-type]
    assert kad.generate("The sky", max_tokens=4, seed=9).text == expected


def test_prompts_that_are_odd_but_allowed(kad: KadLlama) -> None:
    for prompt in ("", " ", "\0", "a\0b", "\ufeff", "🙂", "<|im_end|>", "\u202e", "\r\n"):
        assert kad.generate(prompt, max_tokens=2, seed=1).stats.tokens <= 2
    for prompt in ("\0", "a\0b", "<|im_end|><|im_end|>"):
        assert kad.generate(prompt, raw=True, max_tokens=2, seed=1).stats.tokens <= 2


def test_broken_template(tiny_pair: tuple[Path, Path]) -> None:
    for template in ("{{ messages[", "{{ raise_exception('no') }}", "{{ 1/0 }}", "{% if false %}x{% endif %}"):
        with pytest.raises(PromptError), KadLlama(*tiny_pair, n_ctx=32, n_threads=1, base_template=template) as kad:
            kad.generate("x", max_tokens=1)


# ---- The context -----------------------------------------------------------------------------------------------------


def test_prompt_longer_than_the_context(kad: KadLlama) -> None:
    long = "The people of the town. " * 100
    n = len(kad.tokenize(long))
    with pytest.raises(ContextError, match=rf"{n} tokens.*holds 64"):
        kad.generate(long, raw=True)
    with pytest.raises(ContextError, match="holds 64"):
        kad.generate(long)
    with pytest.raises(ContextError, match="1,?000,?000|holds 64"):
        kad.generate("x " * 500_000, raw=True)
    assert kad.generate("The", raw=True, max_tokens=2, seed=1).stats.tokens == 2


MODES: tuple[dict[str, Any], ...] = ({"spec": False}, {"draft": 0}, {"draft": 1}, {"draft": 3}, {"draft": 7})


@pytest.mark.parametrize("n_ctx", [8, 40])
@pytest.mark.parametrize("pair", ["tiny_pair", "tiny_cross_pair"])
def test_context_fills_up(pair: str, n_ctx: int, request: pytest.FixtureRequest) -> None:
    """In every mode the text ends at the same event, and what was said is kept."""
    files: tuple[Path, Path] = request.getfixturevalue(pair)
    with KadLlama(*files, n_ctx=n_ctx, n_threads=1) as kad:
        for seed in range(4):
            for temperature in (0.0, 1.0):
                outs = [
                    kad.generate("The s", raw=True, max_tokens=10**6, seed=seed, temperature=temperature, **mode)
                    for mode in MODES
                ]
                assert len({out.text for out in outs}) == 1, [out.text for out in outs]
                assert len({(out.finish_reason, out.stats.tokens) for out in outs}) == 1
                if outs[0].finish_reason == "length":
                    assert outs[0].text and outs[0].stats.tokens >= 1


def test_context_holds_exactly(kad: KadLlama) -> None:
    """Prompt and answer together take every place there is, and no more."""
    prompt = "The people of the town"
    n = len(kad.tokenize(prompt))
    for mode in MODES:
        lengths = [kad.generate(prompt, raw=True, max_tokens=1000, seed=s, **mode) for s in range(8)]
        full = {out.stats.prompt_tokens + out.stats.tokens for out in lengths if out.finish_reason == "length"}
        assert full == {64}, (mode, full)
        assert all(out.stats.prompt_tokens == n for out in lengths)


def test_prompt_that_fills_the_context(kad: KadLlama) -> None:
    word = "x" * 64
    assert len(kad.tokenize(word)) == 64
    for mode in MODES:
        out = kad.generate(word, raw=True, seed=1, **mode)
        assert (out.finish_reason, out.text, out.stats.tokens) in {("length", "", 0), ("stop", "", 0)}
    with pytest.raises(ContextError, match="65 tokens.*holds 64"):
        kad.generate(word + "x", raw=True)
    base, aligned = kad.next_logits(word, raw=True)
    assert np.isfinite(base).any() and np.isfinite(aligned).any()


@pytest.mark.parametrize("n_ctx", [1, 2, 3])
def test_smallest_contexts(tiny_pair: tuple[Path, Path], n_ctx: int) -> None:
    with KadLlama(*tiny_pair, n_ctx=n_ctx, n_threads=1) as kad:
        token = kad.token_bytes(50).decode()
        assert len(kad.tokenize(token)) == 1
        for mode in ({"spec": False}, {"draft": 0}, {"draft": "auto"}):
            out = kad.generate(token, raw=True, max_tokens=10, seed=2, **mode)  # type: ignore[arg-type]
            assert out.stats.tokens <= n_ctx - 1


# ---- Memory ----------------------------------------------------------------------------------------------------------


def test_cache_that_cannot_fit(tiny: Tiny) -> None:
    huge = tiny("llama", n_ctx=2**31 - 1, **SMALL)
    for keywords in ({}, {"reproducible": True}):
        with pytest.raises(OutOfMemoryError, match=r"do not fit.*cache \d+\.\d+ GiB.*= \d+\.\d+ GiB of \d+\.\d+ GiB"):
            KadLlama(huge, None, rule="base", n_ctx=2**31 - 1, **keywords)
    with KadLlama(huge, None, rule="base", n_ctx=64, n_threads=1) as kad:
        assert kad.generate("x", raw=True, max_tokens=1, seed=1).stats.tokens <= 1


def test_progress_that_raises(small: Path) -> None:
    def stop(_fraction: float) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        KadLlama(small, None, rule="base", n_ctx=32, progress=stop)
    with pytest.raises(StateError, match="closed"):
        closed = KadLlama(small, None, rule="base", n_ctx=32, n_threads=1)
        closed.close()
        closed.generate("x")


def test_rows_of_different_lengths() -> None:
    with pytest.raises(InvalidArgumentError, match="aligned_logits is no array"):
        mixture([[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [0.0]])
