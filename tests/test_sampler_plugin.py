"""The llama_sampler in a host's chain: is its law pi, does it keep the aligned model in step, are its errors heard?

Rows are compared with `kad_llama.mixture` of rows that the host evaluates itself, to 1e-5. The fits of the C++ program's
tokens have fixed seeds; over machines and versions each of the two fails with probability 0.001 when the law holds.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
from c_api import expect, message, ok
from host import Host, Sampler, log_pi, params
from real import fit

import kad_llama
from kad_llama._binding import ffi, lib

Tiny = Callable[..., Path]
PROMPT = [300, 301, 45, 320]
TEXT = "The sky is blue"
NULL = ffi.NULL


@pytest.fixture
def base(tiny_pair: tuple[Path, Path]) -> Iterator[Host]:
    with Host(tiny_pair[0]) as host:
        yield host


@pytest.fixture
def aligned(tiny_pair: tuple[Path, Path]) -> Iterator[Host]:
    with Host(tiny_pair[1], n_seq_max=3, n_ctx=3 * 256) as host:
        yield host


@pytest.fixture
def other(tiny_pair: tuple[Path, Path]) -> Iterator[Host]:
    """The aligned model once more, for the rows that the tests evaluate."""
    with Host(tiny_pair[1]) as host:
        yield host


def close_to(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def refused(given: Any, *parts: str, status: int | None = None) -> None:
    out = ffi.new("struct llama_sampler **")
    wanted = lib.KAD_INVALID_ARGUMENT if status is None else status
    expect(lib.kad_sampler_init(given, out), wanted, *parts)
    assert out[0] == NULL


# ---- The law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", kad_llama.RULES)
def test_apply_gives_log_pi(tiny: Tiny, base: Host, aligned: Host, other: Host, rule: str) -> None:
    needs = kad_llama.RULES[rule].reference
    with Host(tiny("llama", noise=0.3, noise_seed=2)) as small, Host(tiny("llama", noise=0.3, noise_seed=2)) as oracle:
        fields = {"reference": small.c} if needs else {}
        with Sampler(params(aligned, PROMPT, base, rule=rule, **fields)) as sampler:
            text = list(PROMPT)
            for token in (310, 77, 401):
                rows = [host.row(text) for host in ((base, other, oracle) if needs else (base, other))]
                found = sampler.apply(rows[0])
                ok(sampler.status())
                close_to(found, log_pi(rows, base, aligned, rule=rule))
                assert np.exp(found.astype(np.float64)).sum() == pytest.approx(1, abs=1e-5)
                sampler.accept(token)
                text.append(token)


@pytest.fixture(scope="module")
def plugin(programs: Path, tiny_pair: tuple[Path, Path]) -> Callable[..., list[list[int]]]:
    def run(seed: int, texts: int, tokens: int) -> list[list[int]]:
        command = [programs / "plugin", *tiny_pair, TEXT, *map(str, (seed, texts, tokens))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return [[int(token) for token in line.split()] for line in done.stdout.splitlines()]

    return run


def prompt_of(host: Host) -> list[int]:
    ids = (llama_cpp.llama_token * 64)()
    n = llama_cpp.llama_tokenize(host.vocab, TEXT.encode(), len(TEXT), ids, 64, True, False)
    return list(ids[:n])


def test_a_chain_in_a_cpp_program_samples_pi(
    plugin: Callable[..., list[list[int]]], base: Host, aligned: Host, other: Host
) -> None:
    """The first tokens of 5,000 texts, and the third ones after the most common first two."""
    texts = plugin(7, 5000, 3)
    assert len(texts) == 5000
    prompt = prompt_of(base)
    first_two, n = Counter((t[0], t[1]) for t in texts if len(t) == 3).most_common(1)[0]
    assert n > 100
    thirds = [t[2] for t in texts if len(t) == 3 and (t[0], t[1]) == first_two]
    for said, tokens in (((), [t[0] for t in texts]), (first_two, thirds)):
        context = [*prompt, *said]
        law = np.exp(log_pi([base.row(context), other.row(context)], base, aligned))
        fitted = fit(np.bincount(tokens, minlength=law.size), law / law.sum())
        assert fitted.cells > 3 and fitted.p_value > 0.001, fitted


def test_texts_of_a_cpp_program_end(plugin: Callable[..., list[list[int]]], base: Host) -> None:
    ends = base.ends()
    texts = plugin(3, 20, 200)
    assert any(len(text) > 50 for text in texts)
    for text in texts:
        assert len(text) == 200 or text[-1] == llama_cpp.llama_vocab_eos(base.vocab)
        assert not ends.intersection(text[:-1])


def test_candidates_may_come_in_any_order(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    order = np.random.default_rng(5).permutation(row.size)
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        straight = sampler.apply(row)
        shuffled = sampler.apply(row[order], order)
        assert np.array_equal(sampler.ids, order)
        assert np.array_equal(shuffled, straight[order])


def test_a_padded_tail_is_never_said(tiny: Tiny, aligned: Host, other: Host) -> None:
    with Host(tiny("llama", pad_to=aligned.n_vocab + 64)) as base:
        row = base.row(PROMPT)
        row[aligned.n_vocab :] = 50  # as likely as can be
        with Sampler(params(aligned, PROMPT, base)) as sampler:
            found = sampler.apply(row)
            ok(sampler.status())
            assert np.isneginf(found[aligned.n_vocab :]).all()
            close_to(found, log_pi([row, other.row(PROMPT)], base, aligned))


def test_the_end_stands_where_the_base_looks_for_it(base: Host, aligned: Host) -> None:
    eos, ends = int(llama_cpp.llama_vocab_eos(base.vocab)), base.ends()
    assert len(ends) > 1 and eos != min(ends)
    end = ffi.new("int32_t *")
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        ok(lib.kad_sampler_end(sampler.c, end))
        found = sampler.apply(base.row(PROMPT))
    assert end[0] == eos
    assert np.isfinite(found[eos])
    assert np.isneginf(found[sorted(ends - {eos})]).all()


# ---- In step ---------------------------------------------------------------------------------------------------------


def test_reset_goes_back_to_the_prompt(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        first = sampler.apply(row)
        sampler.accept(310, 311)
        assert aligned.held() == len(PROMPT), "accepted tokens wait for the next apply"
        assert not np.array_equal(sampler.apply(row), first)
        assert aligned.held() == len(PROMPT) + 2
        sampler.reset()
        close_to(sampler.apply(row), first)
        assert aligned.held() == len(PROMPT)


def test_clones_go_their_own_way(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        sampler.accept(310)
        straight = sampler.apply(row)
        with Sampler(sampler) as clone:
            ok(clone.status())
            assert np.array_equal(clone.apply(row), straight)
            assert aligned.held(1) == len(PROMPT) + 1
            clone.accept(77)
            moved = clone.apply(row)
            assert not np.array_equal(moved, straight)
            assert np.array_equal(sampler.apply(row), straight), "the clone moved its original"
            sampler.accept(77)
            close_to(sampler.apply(row), moved)
        assert aligned.held(1) == 0, "a freed clone keeps its cells"
        assert aligned.held(0) == len(PROMPT) + 2
    assert aligned.held(0) == 0


def test_state_is_copied(tiny_pair: tuple[Path, Path], base: Host) -> None:
    """Without a further sequence, which llama.cpp's own way to copy would need."""
    row = base.row(PROMPT)
    with (
        Host(tiny_pair[1], n_seq_max=2, n_ctx=512) as two,
        Sampler(params(two, PROMPT, base)) as sampler,
        Sampler(sampler) as clone,
    ):
        sampler.accept(310, 77)
        llama_cpp.llama_sampler_copy(sampler.pointer, clone.pointer)
        close_to(clone.apply(row), sampler.apply(row))
        ok(clone.status())


def test_a_clone_leaves_sequences_that_have_no_cells_yet(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    with (
        Sampler(params(aligned, PROMPT, base)) as sampler,
        Sampler(params(aligned, base=base, aligned_seq_id=1)),
        Sampler(sampler) as clone,
    ):
        ok(clone.status())
        assert np.array_equal(clone.apply(row), sampler.apply(row))
        assert [aligned.held(i) for i in range(3)] == [len(PROMPT), 0, len(PROMPT)]


def test_a_whole_chain_is_cloned(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    sampler = Sampler(params(aligned, PROMPT, base))
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    llama_cpp.llama_sampler_chain_add(chain, sampler.pointer)
    llama_cpp.llama_sampler_chain_add(chain, llama_cpp.llama_sampler_init_greedy())
    clone = llama_cpp.llama_sampler_clone(chain)
    assert aligned.held(1) == len(PROMPT)
    best = int(np.argmax(sampler.apply(row)))
    assert llama_cpp.llama_sampler_sample(clone, base.context, -1) == best
    llama_cpp.llama_sampler_free(clone)
    llama_cpp.llama_sampler_free(chain)
    assert [aligned.held(i) for i in range(3)] == [0, 0, 0]


def test_a_clone_without_a_free_sequence_has_failed(tiny_pair: tuple[Path, Path], base: Host) -> None:
    row = base.row(PROMPT)
    with Host(tiny_pair[1]) as single, Sampler(params(single, PROMPT, base)) as sampler, Sampler(sampler) as clone:
        expect(clone.status(), lib.KAD_BAD_STATE, "n_seq_max is 1")
        clone.reset()
        assert int(np.argmax(clone.apply(row))) == llama_cpp.llama_vocab_eos(base.vocab)
        with Sampler(clone) as again:
            expect(again.status(), lib.KAD_BAD_STATE)
        expect(lib.kad_sampler_row(clone.c, ffi.new("int32_t[]", [1]), 1, ffi.new("float[]", 4), 4), lib.KAD_BAD_STATE)
        ok(sampler.status())


@pytest.mark.parametrize("architecture", ["mamba", "jamba", "gemma3"])
def test_caches_that_cannot_rewind(tiny: Tiny, architecture: str) -> None:
    """Recurrent, hybrid and sliding-window caches: after reset and in a clone the law is that of a fresh context."""
    fields = {"n_ubatch": 32, "swa_full": False}
    paths = tiny(architecture), tiny(architecture, noise=0.3)
    long = [300 + i % 200 for i in range(400)]
    with (
        Host(paths[0], n_ctx=512) as p,
        Host(paths[1], n_ctx=512, **fields) as q,
        Host(paths[1], n_ctx=1024, n_seq_max=2, **fields) as host,
        Sampler(params(host, PROMPT, p)) as sampler,
    ):
        near = p.row(PROMPT)
        first = log_pi([near, q.row(PROMPT)], p, q)
        far = p.evaluate(long)
        second = log_pi([far, q.evaluate(long)], p, q)
        anew = log_pi([far, q.row(PROMPT + long)], p, q)
        close_to(sampler.apply(near), first)
        sampler.accept(*long)
        close_to(sampler.apply(far), second)
        with Sampler(sampler) as clone:
            close_to(clone.apply(far), second if architecture == "gemma3" else anew)
            clone.reset()
            close_to(clone.apply(near), first)
        sampler.reset()
        close_to(sampler.apply(near), first)
        ok(sampler.status())


def test_rows_follow_any_ids(base: Host, aligned: Host, other: Host) -> None:
    def row(ids: list[int]) -> np.ndarray:
        logits = base.row(ids)
        c_ids = ffi.new("int32_t[]", ids)
        ok(lib.kad_sampler_row(sampler.c, c_ids, len(ids), ffi.cast("float *", ffi.from_buffer(logits)), logits.size))
        return logits

    with Sampler(params(aligned, base=base)) as sampler:
        for ids in (PROMPT, [*PROMPT, 310], [*PROMPT, 77, 78], PROMPT, [300, 5], [*PROMPT, 310]):
            np.testing.assert_allclose(
                row(ids), log_pi([base.row(ids), other.row(ids)], base, aligned), rtol=0, atol=2e-2
            )
            assert aligned.held() == len(ids)


# ---- Errors ----------------------------------------------------------------------------------------------------------


def only_the_end(found: np.ndarray, end: int) -> None:
    weights = np.exp(found.astype(np.float64) - found.max())
    assert weights[end] == 1 and weights.sum() == 1


def failing(sampler: Sampler, base: Host, row: np.ndarray, status: int, *parts: str) -> None:
    only_the_end(sampler.apply(row), llama_cpp.llama_vocab_eos(base.vocab))
    expect(sampler.status(), status, *parts)


def test_a_full_context_ends_the_text(tiny_pair: tuple[Path, Path], base: Host) -> None:
    row = base.row(PROMPT)
    with Host(tiny_pair[1], n_ctx=256) as small, Sampler(params(small, PROMPT, base)) as sampler:
        sampler.accept(*[300] * 252)
        assert np.isfinite(sampler.apply(row)).sum() > 100
        ok(sampler.status())
        sampler.accept(300)
        failing(sampler, base, row, lib.KAD_CONTEXT_TOO_SMALL, "257 tokens", "holds 256")
        sampler.accept(300)
        failing(sampler, base, row, lib.KAD_CONTEXT_TOO_SMALL)
        sampler.reset()
        assert np.isfinite(sampler.apply(row)).sum() > 100
        ok(sampler.status())


def test_cells_that_others_take_end_the_text(tiny_pair: tuple[Path, Path], base: Host) -> None:
    """Sequences that share the cells of one context fill it together."""
    row = base.row(PROMPT)
    with (
        Host(tiny_pair[1], n_ctx=256, n_seq_max=2, kv_unified=True) as shared,
        Sampler(params(shared, PROMPT, base)) as a,
        Sampler(params(shared, PROMPT, base, aligned_seq_id=1)) as b,
    ):
        a.accept(*[300] * 150)
        a.apply(row)
        ok(a.status())
        b.accept(*[301] * 150)
        failing(b, base, row, lib.KAD_CONTEXT_TOO_SMALL, "no cells")
        b.reset()
        assert np.isfinite(b.apply(row)).sum() > 100
        ok(b.status())


def test_an_evaluation_that_the_host_stops(tiny_pair: tuple[Path, Path], base: Host) -> None:
    """Blocks that were done before the abort callback said stop are taken back."""
    row, left = base.row(PROMPT), [10**9]

    def stop(_: object) -> bool:
        left[0] -= 1
        return left[0] < 0

    callback = llama_cpp.ggml_abort_callback(stop)
    with (
        Host(tiny_pair[1], n_ubatch=32, abort_callback=callback) as host,
        Sampler(params(host, PROMPT, base)) as sampler,
    ):
        before = left[0]
        sampler.accept(*[300] * 150)
        sampler.apply(row)
        ok(sampler.status())
        sampler.reset()
        straight = sampler.apply(row)
        left[0] = (before - left[0]) // 2
        sampler.accept(*[300] * 150)
        failing(sampler, base, row, lib.KAD_INTERRUPTED, "abort callback")
        assert host.held() in (0, len(PROMPT))
        left[0] = 10**9
        sampler.reset()
        close_to(sampler.apply(row), straight)
        ok(sampler.status())


def test_broken_rows_end_the_text(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    bad = row.copy()
    bad[45] = np.nan
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        failing(sampler, base, bad, lib.KAD_NOT_A_NUMBER, "token 45", "nan")
        only_the_end(sampler.apply(row), llama_cpp.llama_vocab_eos(base.vocab))  # until it is reset
        sampler.reset()
        failing(sampler, base, np.full_like(row, -np.inf), lib.KAD_NOT_A_NUMBER, "no token is possible")


def test_candidates_that_were_cut_end_the_text(base: Host, aligned: Host) -> None:
    row, eos = base.row(PROMPT), int(llama_cpp.llama_vocab_eos(base.vocab))
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        found = sampler.apply(row[40:50], np.arange(40, 50))
        assert sampler.ids[int(np.argmax(found))] == eos
        expect(sampler.status(), lib.KAD_INVALID_ARGUMENT, "10 logits", f"expected {row.size}", "first in the chain")
        sampler.reset()
        twice = np.arange(row.size)
        twice[3] = 4
        sampler.apply(row, twice)
        expect(sampler.status(), lib.KAD_INVALID_ARGUMENT, "once")


@pytest.mark.parametrize("token", [-1, 1 << 20])
def test_tokens_out_of_range_end_the_text(base: Host, aligned: Host, token: int) -> None:
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        sampler.accept(token)
        failing(sampler, base, base.row(PROMPT), lib.KAD_INVALID_ARGUMENT, f"token id {token}")


def test_a_sequence_that_the_host_changed_is_refused(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    with Sampler(params(aligned, PROMPT, base)) as sampler:
        sampler.apply(row)
        llama_cpp.llama_memory_seq_rm(aligned.memory, 0, 2, -1)
        sampler.accept(310)
        failing(sampler, base, row, lib.KAD_BAD_STATE, "sequence 0 of the aligned context holds 2 tokens", "left 4")
        sampler.reset()
        assert np.isfinite(sampler.apply(row)).sum() > 100
        ok(sampler.status())


def test_other_sequences_of_the_context_may_be_used(base: Host, aligned: Host) -> None:
    row = base.row(PROMPT)
    with Sampler(params(aligned, PROMPT, base, aligned_seq_id=2)) as sampler:
        first = sampler.apply(row)
        aligned.evaluate([5, 6, 7])  # sequence 0
        assert np.array_equal(sampler.apply(row), first)
        with Sampler(sampler) as clone:
            assert aligned.held(1) == len(PROMPT), "a clone took a sequence in use"
            assert np.array_equal(clone.apply(row), first)
    assert aligned.held(0) == 3


def test_bad_parameters_are_named(tiny: Tiny, tiny_cross_pair: tuple[Path, Path], base: Host, aligned: Host) -> None:
    refused(NULL, "params")
    refused(params(aligned, PROMPT, size=4), "size is 4")
    for name in ("aligned", "prompt"):
        given = params(aligned, PROMPT)
        setattr(given, name, NULL)
        refused(given, f"{name} is NULL")
    refused(params(aligned, PROMPT, aligned_seq_id=3), "aligned_seq_id 3", "0 to 2")
    refused(params(aligned, PROMPT, aligned_seq_id=-1), "aligned_seq_id -1")
    refused(params(aligned, PROMPT, reference=base.c), "rule dual uses no reference")
    refused(params(aligned, PROMPT, rule="implicit-reward"), "needs a reference context")
    refused(params(aligned, [300, aligned.n_vocab]), f"token id {aligned.n_vocab}")
    refused(params(aligned, [300] * 257), "257 tokens", "holds 256", status=lib.KAD_CONTEXT_TOO_SMALL)
    sampling = params(aligned, PROMPT)
    sampling.rule.temperature = lib.KAD_RULE_TEMPERATURE_SAMPLING
    refused(sampling, "sampling", "number > 0")
    wrong = params(aligned, PROMPT)
    wrong.rule.threshold = 1.5
    refused(wrong, "threshold 1.5")
    with Host(tiny_cross_pair[0]) as foreign:
        refused(
            params(aligned, PROMPT, foreign), "vocabularies of the base and the aligned model differ", "the first: "
        )
        given = params(aligned, PROMPT, rule="implicit-reward", reference=foreign.c)
        refused(given, "vocabularies of the aligned and the reference model differ")
    with Sampler(params(aligned, PROMPT)):
        refused(params(aligned, PROMPT), "sequence 0 of the aligned context is in use")
    assert aligned.held() == 0
    aligned.evaluate(PROMPT)
    refused(params(aligned, PROMPT), "sequence 0 of the aligned context is in use", "llama_memory_seq_rm")
    expect(lib.kad_sampler_init(params(aligned, PROMPT), NULL), lib.KAD_INVALID_ARGUMENT, "out is NULL")


def test_without_the_base_model_sizes_are_compared(tiny: Tiny, aligned: Host) -> None:
    with Host(tiny("llama", pad_to=aligned.n_vocab + 64)) as base, Sampler(params(aligned, PROMPT)) as sampler:
        failing(sampler, base, base.row(PROMPT), lib.KAD_INVALID_ARGUMENT, "base_model")


def test_foreign_samplers_are_refused(base: Host, aligned: Host) -> None:
    greedy = llama_cpp.llama_sampler_init_greedy()
    pointer = ffi.cast("struct llama_sampler *", int(ffi.cast("uintptr_t", ffi.cast("void *", address(greedy)))))
    expect(lib.kad_sampler_status(pointer), lib.KAD_INVALID_ARGUMENT, "kad_sampler_init")
    llama_cpp.llama_sampler_free(greedy)
    expect(lib.kad_sampler_status(NULL), lib.KAD_INVALID_ARGUMENT, "sampler is NULL")
    expect(lib.kad_sampler_end(NULL, ffi.new("int32_t *")), lib.KAD_INVALID_ARGUMENT, "sampler is NULL")
    ids, logits = ffi.new("int32_t[]", [300]), ffi.new("float[]", base.n_vocab)
    expect(lib.kad_sampler_row(NULL, ids, 1, logits, 4), lib.KAD_INVALID_ARGUMENT, "sampler is NULL")
    with Sampler(params(aligned, base=base)) as sampler:
        expect(lib.kad_sampler_end(sampler.c, NULL), lib.KAD_INVALID_ARGUMENT, "id is NULL")
        expect(lib.kad_sampler_row(sampler.c, NULL, 1, logits, 4), lib.KAD_INVALID_ARGUMENT, "ids is NULL")
        expect(lib.kad_sampler_row(sampler.c, ids, 1, NULL, 4), lib.KAD_INVALID_ARGUMENT, "logits is NULL")
        expect(lib.kad_sampler_row(sampler.c, ids, 1, logits, 4), lib.KAD_INVALID_ARGUMENT, "4 logits")
        expect(lib.kad_sampler_row(sampler.c, ids, 0, logits, base.n_vocab), lib.KAD_BAD_STATE, "no token")
        assert message()


def address(pointer: Any) -> int:
    import ctypes

    return int(ctypes.cast(pointer, ctypes.c_void_p).value or 0)


def test_an_encoder_is_refused(tiny: Tiny) -> None:
    with Host(tiny("bert"), n_ctx=64) as encoder:
        refused(params(encoder, [5]), "causal language model", status=lib.KAD_MODEL_ERROR)
