"""The logits processor in llama-cpp-python: is its law pi, and do its errors end the text and come out?

Rows are compared with `kad_llama.mixture` of rows evaluated apart, to 1e-5. The fit of sampled tokens has fixed seeds; over
machines and versions each of its two positions fails with probability 0.001 when the law holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from host import Host, log_pi
from real import fit

import kad_llama
from kad_llama import KadLlama, KadLogitsProcessor, errors

Tiny = Callable[..., Path]
TEXT = "The sky is blue because"
PURE = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def load(path: Path, **fields: Any) -> llama_cpp.Llama:
    return llama_cpp.Llama(
        str(path), **{"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False, **fields}
    )


@pytest.fixture(scope="module")
def llama(tiny_pair: tuple[Path, Path]) -> Iterator[llama_cpp.Llama]:
    model = load(tiny_pair[0])
    yield model
    model.close()


def complete(llama: llama_cpp.Llama, kad: Any, prompt: Any = TEXT, **fields: Any) -> tuple[str, str, int]:
    """Text, finish reason, number of tokens."""
    out: Any = llama.create_completion(
        prompt, logits_processor=[kad], **{"max_tokens": 20, "seed": 7, **PURE, **fields}
    )
    return out["choices"][0]["text"], out["choices"][0]["finish_reason"], out["usage"]["completion_tokens"]


class Seen:
    """Rows in and out of a processor."""

    def __init__(self, kad: KadLogitsProcessor) -> None:
        self.kad = kad
        self.rows: list[tuple[list[int], np.ndarray, np.ndarray]] = []

    def __call__(self, ids: Any, scores: Any) -> Any:
        before = np.array(scores)
        after = self.kad(ids, scores)
        self.rows.append((ids.tolist(), before, np.array(after)))
        return after


# ---- The law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", kad_llama.RULES)
def test_rows_become_log_pi(tiny: Tiny, tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama, rule: str) -> None:
    """In a completion, at every position, for every rule."""
    paths = [tiny_pair[1]]
    if kad_llama.RULES[rule].reference:
        paths.append(tiny("llama", noise=0.3, noise_seed=2))
    llama.reset()
    with KadLogitsProcessor(paths[0], rule=rule, base=llama, n_threads=1, reference=(paths[1:] or [None])[0]) as kad:
        seen = Seen(kad)
        complete(llama, seen, max_tokens=5, logit_bias=None)
        kad.raise_if_failed()
        assert kad.calls == len(seen.rows) > 0
    hosts = [Host(path) for path in paths]
    with Host(tiny_pair[0]) as base:
        held = 0
        for ids, before, after in seen.rows:
            rows = [before, *(host.evaluate(ids[held:]) for host in hosts)]
            np.testing.assert_allclose(after, log_pi(rows, base, hosts[0], rule=rule), rtol=0, atol=1e-5)
            held = len(ids)
    for host in hosts:
        host.close()


def test_the_law_is_that_of_kad_llama(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    """The first tokens of 3,000 seeds against the mixture of the rows that KadLlama reports, at two positions."""
    with KadLlama(*tiny_pair, n_ctx=256) as engine, KadLogitsProcessor(tiny_pair[1], base=llama) as kad:
        for text in (TEXT, "In the garden"):  # alpha 0.4 and 0.3
            ids = engine.prompt(text, raw=True).base_ids
            assert ids
            law = kad_llama.mixture(*engine.next_logits(text, raw=True))
            law[[llama.token_eos(), 0]] = law[[0, llama.token_eos()]]  # folded at 0, but said as the end of sequence
            counts = np.zeros(law.size)
            for seed in range(1500):
                llama.set_seed(seed)
                sampled = llama.generate(
                    ids, temp=1, top_k=0, top_p=1, min_p=0, logits_processor=llama_cpp.LogitsProcessorList([kad])
                )
                counts[next(sampled)] += 1
            fitted = fit(counts, law)
            assert fitted.cells > 3 and fitted.p_value > 0.001, fitted
        kad.raise_if_failed()


# ---- In use ----------------------------------------------------------------------------------------------------------


def test_one_line_in_create_completion(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    with KadLogitsProcessor(tiny_pair[1], base=llama) as kad:
        text, _, n = complete(llama, kad)
        kad.raise_if_failed()
        assert kad.calls in (n, n + 1), "an end of the text is a row too"
        assert complete(llama, kad)[0] == text, "another text for the same seed"
        kad.raise_if_failed()
    bare: Any = llama.create_completion(TEXT, max_tokens=20, seed=7, **PURE)
    assert bare["choices"][0]["text"] != text


def test_many_completions_of_one_processor(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    """Other prompts, longer and shorter ones, streams, chats: each as with a processor of its own."""
    prompts = [TEXT, "Once", TEXT + " of the", "Once upon a time", TEXT]
    with KadLogitsProcessor(tiny_pair[1], base=llama) as kad:
        for prompt in prompts:
            llama.reset()
            text = complete(llama, kad, prompt)
            llama.reset()
            with KadLogitsProcessor(tiny_pair[1], base=llama) as fresh:
                assert complete(llama, fresh, prompt) == text
            kad.raise_if_failed()
        stream: Any = llama.create_completion(TEXT, logits_processor=[kad], max_tokens=20, seed=7, stream=True, **PURE)
        assert "".join(part["choices"][0]["text"] for part in stream) == text[0]
        calls = kad.calls
        llama.create_chat_completion([{"role": "user", "content": "Hi"}], logits_processor=[kad], max_tokens=5, seed=1)
        assert kad.calls > calls
        kad.raise_if_failed()


def test_a_llama_lends_its_weights(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    small = load(tiny_pair[1])
    small.eval([300, 301, 302])
    before = small.n_tokens, llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(small.ctx), 0)
    llama.reset()
    with KadLogitsProcessor(small, base=llama) as kad:
        seen = Seen(kad)
        complete(llama, seen)
        kad.raise_if_failed()
    assert (small.n_tokens, llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(small.ctx), 0)) == before
    ids, row, after = seen.rows[0]
    fields = {"flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED}  # as Llama has it
    with Host(tiny_pair[1], **fields) as aligned, Host(tiny_pair[0]) as base:
        np.testing.assert_allclose(after, log_pi([row, aligned.row(ids)], base, aligned), rtol=0, atol=1e-5)
    small.close()


def test_a_grammar_restricts_pi(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    grammar = llama_cpp.LlamaGrammar.from_string('root ::= ("blue" | "green") " sky"', verbose=False)
    with KadLogitsProcessor(tiny_pair[1], base=llama) as kad:
        for seed in range(5):
            assert complete(llama, kad, grammar=grammar, seed=seed)[0] in ("blue sky", "green sky")
        kad.raise_if_failed()


def test_logit_bias_drops_processors(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    """What the documentation says of llama_cpp: `calls` is how a program can tell."""
    with KadLogitsProcessor(tiny_pair[1], base=llama) as kad:
        complete(llama, kad, logit_bias={5: 1.0})
        assert kad.calls == 0


# ---- Errors inside ---------------------------------------------------------------------------------------------------


def test_a_full_context_ends_the_text_and_is_raised(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    prompt = [300 + i % 50 for i in range(254)]
    with KadLogitsProcessor(tiny_pair[1], base=llama, n_ctx=256) as kad:
        _, finish, n = complete(llama, kad, prompt, max_tokens=100, seed=3)
        assert finish == "stop" and n <= 3
        with pytest.raises(errors.ContextError, match="257 tokens.*holds 256"):
            kad.raise_if_failed()
        kad.raise_if_failed()  # once
        assert complete(llama, kad)[2] > 0
        kad.raise_if_failed()


@pytest.mark.parametrize(
    "settings", [PURE, {"temperature": 0.0}, {}, {"temperature": 50.0, "top_k": 0, "repeat_penalty": 1.5}]
)
def test_an_error_ends_the_text_at_once(
    tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("now")

    with KadLogitsProcessor(tiny_pair[1], base=llama) as kad:
        monkeypatch.setattr(kad, "_log_pi", interrupt)
        out: Any = llama.create_completion(TEXT, logits_processor=[kad], max_tokens=50, seed=2, **settings)
        assert (out["choices"][0]["text"], out["choices"][0]["finish_reason"]) == ("", "stop")
        with pytest.raises(KeyboardInterrupt, match="now"):
            kad.raise_if_failed()


def test_an_error_under_a_grammar_ends_where_it_allows(
    tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammar = llama_cpp.LlamaGrammar.from_json_schema(
        json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}), verbose=False
    )
    with KadLogitsProcessor(tiny_pair[1], base=llama) as kad:
        kad.close()
        text, finish, _ = complete(llama, kad, grammar=grammar, max_tokens=200)
        assert finish == "stop"
        assert isinstance(json.loads(text)["a"], bool)
        with pytest.raises(errors.StateError, match="closed"):
            kad.raise_if_failed()


def test_a_base_of_another_size_is_found_at_the_first_row(tiny: Tiny, tiny_pair: tuple[Path, Path]) -> None:
    padded = load(tiny("llama", pad_to=1024))
    with KadLogitsProcessor(tiny_pair[1]) as kad:
        assert complete(padded, kad)[:2] == ("", "stop")
        with pytest.raises(errors.InvalidArgumentError, match="1024 logits"):
            kad.raise_if_failed()
    with KadLogitsProcessor(tiny_pair[1], base=padded) as kad:
        assert complete(padded, kad)[2] > 0
        kad.raise_if_failed()
    padded.close()


def test_a_llama_that_was_closed_is_named(tiny_pair: tuple[Path, Path], llama: llama_cpp.Llama) -> None:
    small = load(tiny_pair[1])
    kad = KadLogitsProcessor(small, base=llama)
    small.close()
    assert complete(llama, kad)[:2] == ("", "stop")
    with pytest.raises(errors.StateError, match="aligned is closed"):
        kad.raise_if_failed()
    kad.close()
    kad.close()
    with pytest.raises(errors.StateError, match="aligned is closed"):
        KadLogitsProcessor(small)
    with pytest.raises(errors.StateError, match="base is closed"):
        KadLogitsProcessor(tiny_pair[1], base=small)


# ---- Bad input -------------------------------------------------------------------------------------------------------


def test_different_vocabularies_are_refused(tiny_cross_pair: tuple[Path, Path]) -> None:
    foreign = load(tiny_cross_pair[0])
    with pytest.raises(errors.InvalidArgumentError, match="vocabularies of the base and the aligned model differ"):
        KadLogitsProcessor(tiny_cross_pair[1], base=foreign)
    foreign.close()


def test_a_draft_model_is_refused(tiny_pair: tuple[Path, Path]) -> None:
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    drafting = load(tiny_pair[0], draft_model=LlamaPromptLookupDecoding(num_pred_tokens=2))
    with pytest.raises(errors.InvalidArgumentError, match="draft_model"):
        KadLogitsProcessor(tiny_pair[1], base=drafting)
    later, drafting.draft_model = drafting.draft_model, None
    with KadLogitsProcessor(tiny_pair[1], base=drafting) as kad:
        drafting.draft_model = later
        assert complete(drafting, kad)[0] == ""
        with pytest.raises(errors.InvalidArgumentError, match="draft_model"):
            kad.raise_if_failed()
    drafting.close()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rule": "duel"}, "rule 'duel' is unknown"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"rule": "base", "threshold": 0.5}, "threshold 0.5"),
        ({"rule_temperature": "sampling"}, "sampling"),
        ({"rule_temperature": 0}, "rule_temperature is 0"),
        ({"base": "base.gguf"}, "base is 'base.gguf'"),
        ({"rule": "implicit-reward"}, "needs a reference"),
        ({"reference": "small.gguf"}, "rule 'dual' uses no reference"),
        ({"rule": "implicit-reward", "reference": 7}, "reference is 7"),
        ({"n_ctx": 0}, "n_ctx is 0"),
        ({"n_ctx": True}, "n_ctx is True"),
        ({"n_batch": 0.5}, "n_batch is 0.5"),
        ({"n_threads": -1}, "n_threads is -1"),
        ({"n_gpu_layers": -2}, "n_gpu_layers is -2"),
    ],
)
def test_bad_arguments_are_named(tiny_pair: tuple[Path, Path], keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=message):
        KadLogitsProcessor(tiny_pair[1], **keywords)


def test_bad_models_are_named(tiny: Tiny, tmp_path: Path, llama: llama_cpp.Llama) -> None:
    with pytest.raises(errors.FileError, match="none.gguf"):
        KadLogitsProcessor(tmp_path / "none.gguf")
    with pytest.raises(errors.ModelError, match="bert"):
        KadLogitsProcessor(tiny("bert"))
    with pytest.raises(errors.InvalidArgumentError, match="aligned is 7"):
        KadLogitsProcessor(7)  # type: ignore[arg-type]
    lora = load(tiny("llama"))
    lora.lora_path = "adapter.gguf"
    with pytest.raises(errors.InvalidArgumentError, match="aligned is a Llama with LoRA"):
        KadLogitsProcessor(lora)
    lora.close()
    with pytest.raises(errors.InvalidArgumentError, match="n_gpu_layers is 3, but the models are loaded"):
        KadLogitsProcessor(llama, n_gpu_layers=3)
    with pytest.raises(TypeError, match="treshold"):
        KadLogitsProcessor(llama, treshold=0.4)  # type: ignore[call-arg]
