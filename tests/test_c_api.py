"""The C API through cffi: every function with NULL, every status code, struct sizes, buffers, order of calls.

Two codes cannot be reached from here. KAD_LIBRARY_MISMATCH needs another libllama in the process; the packaging tests load
one. KAD_INTERNAL_ERROR is a defect: a test that reaches it has found one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_api import N_CTX, Params, Sequence, cancelled, expect, ids_of, message, n_events, ok

import kad_llama
from kad_llama._binding import ffi, lib

Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def engine(tiny_pair: tuple[Path, Path]) -> Iterator[Any]:
    params = Params(*tiny_pair, n_parallel=1)
    ok(params.open())
    yield params.out[0]
    lib.kad_engine_close(params.out[0])


# ---- NULL ------------------------------------------------------------------------------------------------------------

NULL = ffi.NULL
RULE = ffi.new("kad_rule *", {"kind": 0, "threshold": 0.4, "temperature": 1.0})
ROW = ffi.new("float[]", [0.0, 1.0])
OUT = ffi.new("double[]", 2)
COINS = ffi.new("double[4]", [0.1, 0.2, 0.3, 0.4])
SIZE = ffi.new("size_t *")


def null_calls(engine: Any, sequence: Any) -> list[tuple[str, Callable[[], int], str]]:
    """Calls that have one NULL where none may be: label, call, the name the message must have."""
    sp = ffi.new("kad_sequence_params *", lib.kad_sequence_default_params())
    ep = ffi.new("kad_engine_params *", lib.kad_engine_default_params())
    ids, tokens, n = ffi.new("int32_t[]", [1]), ffi.new("kad_token[]", 65), ffi.new("int32_t *")
    path, text = ffi.new("char[]", b"x"), ffi.new("char[]", b"x")
    engine_out, sequence_out = ffi.new("kad_engine **"), ffi.new("kad_sequence **")
    return [
        ("library", lambda: lib.kad_library(NULL), "out"),
        ("rule_describe", lambda: lib.kad_rule_describe(0, NULL), "out"),
        ("rule_named, name", lambda: lib.kad_rule_named(NULL, RULE), "name"),
        ("rule_named, out", lambda: lib.kad_rule_named(b"dual", NULL), "out"),
        ("mixture, rule", lambda: lib.kad_mixture(NULL, ROW, ROW, NULL, 2, 1.0, OUT), "rule"),
        ("mixture, base", lambda: lib.kad_mixture(RULE, NULL, ROW, NULL, 2, 1.0, OUT), "base_logits"),
        ("mixture, aligned", lambda: lib.kad_mixture(RULE, ROW, NULL, NULL, 2, 1.0, OUT), "aligned_logits"),
        ("mixture, pi", lambda: lib.kad_mixture(RULE, ROW, ROW, NULL, 2, 1.0, NULL), "pi"),
        ("deferral, rule", lambda: lib.kad_deferral(NULL, ROW, ROW, 2, 1.0, ffi.new("uint8_t[2]")), "rule"),
        ("deferral, out", lambda: lib.kad_deferral(RULE, ROW, ROW, 2, 1.0, NULL), "deferred"),
        (
            "draw, rule",
            lambda: lib.kad_draw(NULL, ROW, ROW, NULL, NULL, NULL, 2, 1.0, COINS, ffi.new("kad_draw_result *")),
            "rule",
        ),
        (
            "draw, coins",
            lambda: lib.kad_draw(RULE, ROW, ROW, NULL, NULL, NULL, 2, 1.0, NULL, ffi.new("kad_draw_result *")),
            "coins",
        ),
        ("draw, out", lambda: lib.kad_draw(RULE, ROW, ROW, NULL, NULL, NULL, 2, 1.0, COINS, NULL), "out"),
        ("file_inspect, path", lambda: lib.kad_file_inspect(NULL, ffi.new("kad_file_info *")), "path"),
        ("file_inspect, out", lambda: lib.kad_file_inspect(path, NULL), "out"),
        ("engine_open, params", lambda: lib.kad_engine_open(NULL, engine_out), "params"),
        ("engine_open, out", lambda: lib.kad_engine_open(ep, NULL), "out"),
        ("engine_open, no paths", lambda: lib.kad_engine_open(ep, engine_out), "model"),
        ("engine_model, engine", lambda: lib.kad_engine_model(NULL, 0, ffi.new("kad_model_info *")), "engine"),
        ("engine_model, out", lambda: lib.kad_engine_model(engine, 0, NULL), "out"),
        ("engine_vocab, engine", lambda: lib.kad_engine_vocab(NULL, ffi.new("kad_vocab_info *")), "engine"),
        ("engine_vocab, out", lambda: lib.kad_engine_vocab(engine, NULL), "out"),
        ("tokenize, engine", lambda: lib.kad_tokenize(NULL, 0, text, 1, 0, ids, 1, SIZE), "engine"),
        ("tokenize, text", lambda: lib.kad_tokenize(engine, 0, NULL, 1, 0, ids, 1, SIZE), "text"),
        ("tokenize, ids", lambda: lib.kad_tokenize(engine, 0, text, 1, 0, NULL, 8, SIZE), "ids"),
        ("tokenize, n", lambda: lib.kad_tokenize(engine, 0, text, 1, 0, ids, 1, NULL), "n_ids"),
        ("token_bytes, engine", lambda: lib.kad_token_bytes(NULL, 0, 0, NULL, NULL, NULL), "engine"),
        ("special_tokens, engine", lambda: lib.kad_special_tokens(NULL, 0, ids, 1, SIZE), "engine"),
        ("special_tokens, n", lambda: lib.kad_special_tokens(engine, 0, ids, 1, NULL), "n_ids"),
        ("special_tokens, ids", lambda: lib.kad_special_tokens(engine, 0, NULL, 100, SIZE), "ids"),
        ("sequence_open, engine", lambda: lib.kad_sequence_open(NULL, sp, ids, 1, ids, 1, sequence_out), "engine"),
        ("sequence_open, params", lambda: lib.kad_sequence_open(engine, NULL, ids, 1, ids, 1, sequence_out), "params"),
        (
            "sequence_open, base ids",
            lambda: lib.kad_sequence_open(engine, sp, NULL, 1, ids, 1, sequence_out),
            "base_ids",
        ),
        (
            "sequence_open, aligned ids",
            lambda: lib.kad_sequence_open(engine, sp, ids, 1, NULL, 1, sequence_out),
            "aligned_ids",
        ),
        (
            "sequence_open, no ids",
            lambda: lib.kad_sequence_open(engine, sp, NULL, 0, ids, 1, sequence_out),
            "base_ids is empty",
        ),
        ("sequence_open, out", lambda: lib.kad_sequence_open(engine, sp, ids, 1, ids, 1, NULL), "out"),
        ("step, sequence", lambda: lib.kad_sequence_step(NULL, tokens, 65, n), "sequence"),
        ("step, tokens", lambda: lib.kad_sequence_step(sequence, NULL, 65, n), "tokens"),
        ("step, n", lambda: lib.kad_sequence_step(sequence, tokens, 65, NULL), "n is NULL"),
        ("length, sequence", lambda: lib.kad_sequence_length(NULL, SIZE, SIZE), "sequence"),
        ("progress, sequence", lambda: lib.kad_sequence_prompt_progress(NULL, SIZE, SIZE), "sequence"),
        ("rows, sequence", lambda: lib.kad_sequence_rows(NULL, ROW, ROW, NULL, 2), "sequence"),
        ("stats, sequence", lambda: lib.kad_sequence_stats(NULL, ffi.new("kad_stats *")), "sequence"),
        ("stats, out", lambda: lib.kad_sequence_stats(sequence, NULL), "out"),
        ("measure, params", lambda: lib.kad_measure_passes(NULL, 0, ffi.new("kad_pass_info *")), "params"),
        ("measure, out", lambda: lib.kad_measure_passes(ep, 0, NULL), "out"),
        ("measure, no path", lambda: lib.kad_measure_passes(ep, 0, ffi.new("kad_pass_info *")), "path"),
    ]


def test_null(engine: Any) -> None:
    with Sequence(engine, max_tokens=3, seed=1) as sequence:
        for label, call, name in null_calls(engine, sequence.c):
            status = call()
            assert status == lib.KAD_INVALID_ARGUMENT, f"{label}: {status} {message()}"
            assert name in message(), f"{label}: {message()}"
        sequence.read()  # none of that has changed anything


def test_null_that_is_allowed(engine: Any) -> None:
    lib.kad_engine_close(NULL)
    lib.kad_sequence_close(NULL)
    lib.kad_engine_cancel(NULL)
    lib.kad_engine_catch_sigint(NULL, 1)
    assert lib.kad_sequence_finish(NULL) == lib.KAD_FINISH_NONE
    assert ffi.string(lib.kad_sequence_note(NULL)) == b""
    assert lib.kad_max_draft(NULL) == 0
    assert lib.kad_cache_type(NULL) == -1
    ok(lib.kad_token_bytes(engine, 0, 1, NULL, NULL, NULL))
    with Sequence(engine) as sequence:
        ok(lib.kad_sequence_length(sequence.c, NULL, NULL))
        ok(lib.kad_sequence_prompt_progress(sequence.c, NULL, NULL))
        ok(lib.kad_sequence_rows(sequence.c, NULL, NULL, NULL, n_events(engine)))


# ---- Sizes of structs, ids and names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["huge", "larger", "zero", "tiny"])
def test_struct_sizes(engine: Any, tiny_pair: tuple[Path, Path], change: str) -> None:
    def wrong(struct: str) -> int:
        full = int(ffi.sizeof(struct))
        return {"zero": 0, "tiny": 4, "larger": full + 1, "huge": 2**63}[change]

    params = Params(*tiny_pair)
    params.c.size = wrong("kad_engine_params")
    expect(
        params.open(),
        lib.KAD_INVALID_ARGUMENT,
        "params.size",
        str(wrong("kad_engine_params")),
        str(ffi.sizeof("kad_engine_params")),
    )
    assert params.out[0] == NULL
    expect(lib.kad_measure_passes(params.c, 0, ffi.new("kad_pass_info *")), lib.KAD_INVALID_ARGUMENT, "params.size")
    sequence = Sequence(engine, size=wrong("kad_sequence_params"))
    expect(sequence.open(), lib.KAD_INVALID_ARGUMENT, "params.size", str(wrong("kad_sequence_params")))
    assert sequence.c == NULL


def test_struct_of_an_older_header(engine: Any, tiny_pair: tuple[Path, Path]) -> None:
    """A shorter struct is completed with defaults: what lies behind its end is not read."""
    params = Params(*tiny_pair, memory_limit=1)
    params.c.size = ffi.offsetof("kad_engine_params", "memory_limit")
    ok(params.open())
    lib.kad_engine_close(params.out[0])
    sequence = Sequence(engine, max_tokens=2, n_stops=10**6)
    sequence.params.size = ffi.offsetof("kad_sequence_params", "n_stops")
    with sequence:
        sequence.read()


def test_roles_and_ids(engine: Any) -> None:
    for role in (-1, 3, 2**31 - 1):
        calls = [
            lib.kad_engine_model(engine, role, ffi.new("kad_model_info *")),
            lib.kad_tokenize(engine, role, b"x", 1, 0, NULL, 0, SIZE),
            lib.kad_token_bytes(engine, role, 0, NULL, NULL, NULL),
            lib.kad_special_tokens(engine, role, NULL, 0, SIZE),
        ]
        assert set(calls) == {lib.KAD_INVALID_ARGUMENT}
        assert f"role {role}" in message()
    for token in (-1, 2**31 - 1, -(2**31)):
        expect(lib.kad_token_bytes(engine, 0, token, NULL, NULL, NULL), lib.KAD_INVALID_ARGUMENT, str(token))


def test_rules() -> None:
    info = ffi.new("kad_rule_info *")
    for kind in (-1, lib.kad_rule_count(), 10**6):
        expect(lib.kad_rule_describe(kind, info), lib.KAD_INVALID_ARGUMENT, str(kind))
    for name in (b"", b"DUAL", b"dua"):
        expect(lib.kad_rule_named(name, RULE), lib.KAD_INVALID_ARGUMENT, "dual, primal, exact, nudging, bet, chow")
    for rule, part in (
        ((99, 0.4, 1.0), "99"),
        ((0, 1.1, 1.0), "1.1"),
        ((0, -0.1, 1.0), "-0.1"),
        ((0, math.nan, 1.0), "nan"),
        ((0, 0.4, 0.0), "temperature"),
        ((0, 0.4, -2.0), "temperature"),
        ((0, 0.4, math.nan), "temperature"),
        ((0, 0.4, math.inf), "temperature"),
    ):
        expect(
            lib.kad_mixture(ffi.new("kad_rule *", rule), ROW, ROW, NULL, 2, 1.0, OUT), lib.KAD_INVALID_ARGUMENT, part
        )
    expect(lib.kad_mixture(RULE, ROW, ROW, NULL, 0, 1.0, OUT), lib.KAD_INVALID_ARGUMENT, "n is 0")
    for coin in (-0.1, 1.0, math.nan):
        coins = ffi.new("double[4]", [0.1, coin, 0.1, 0.1])
        result = ffi.new("kad_draw_result *")
        expect(lib.kad_draw(RULE, ROW, ROW, NULL, NULL, NULL, 2, 1.0, coins, result), lib.KAD_INVALID_ARGUMENT, "coin")


def test_engine_params(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_ctx": 0}, "n_ctx 0"),
        ({"n_ctx": -1}, "n_ctx -1"),
        ({"n_threads": -1}, "n_threads -1"),
        ({"n_threads": 10**6}, "n_threads 1000000"),
        ({"max_pass_base": -1}, "max_pass -1"),
        ({"rule": {"kind": 99, "threshold": 0, "temperature": 1}}, "99"),
        ({"rule": {"kind": 0, "threshold": 7, "temperature": 1}}, "7"),
    ]
    for fields, part in cases:
        params = Params(*tiny_pair, **fields)
        expect(params.open(), lib.KAD_INVALID_ARGUMENT, part)
        assert params.out[0] == NULL
    params = Params(*tiny_pair)
    params.c.base.n_fields = 1
    expect(params.open(), lib.KAD_INVALID_ARGUMENT, "field_names")
    params.c.base.field_names = params.keep(ffi.new("char *[]", [NULL]))
    params.c.base.field_values = params.keep(ffi.new("double[]", [1.0]))
    expect(params.open(), lib.KAD_INVALID_ARGUMENT, "field name")
    params.c.base.field_names[0] = params.keep(ffi.new("char[]", b"n_bach"))
    expect(params.open(), lib.KAD_INVALID_ARGUMENT, "n_bach", "n_batch")
    vocabulary = Params(*tiny_pair)
    vocabulary.c.base.vocab_only = 1
    expect(vocabulary.open(), lib.KAD_INVALID_ARGUMENT, "base model")


def test_measuring_checks_its_values(tiny_pair: tuple[Path, Path]) -> None:
    out = ffi.new("kad_pass_info *")
    for fields, part in (({"n_ctx": 0}, "n_ctx"), ({"n_ctx": -7}, "n_ctx"), ({"n_threads": -1}, "n_threads")):
        expect(lib.kad_measure_passes(Params(*tiny_pair, **fields).c, 0, out), lib.KAD_INVALID_ARGUMENT, part)
    params = Params(*tiny_pair)
    params.c.base.vocab_only = 1
    expect(lib.kad_measure_passes(params.c, 0, out), lib.KAD_INVALID_ARGUMENT, "weights")
    expect(lib.kad_measure_passes(Params(*tiny_pair).c, 5, out), lib.KAD_INVALID_ARGUMENT, "role 5")
    expect(lib.kad_measure_passes(Params(*tiny_pair, memory_limit=1000).c, 0, out), lib.KAD_OUT_OF_MEMORY, "weights")


# ---- Every status code -------------------------------------------------------------------------------------------------


def test_file_and_model_errors(tiny: Tiny, tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    info = ffi.new("kad_file_info *")
    missing = str(tmp_path / "none.gguf").encode()
    expect(lib.kad_file_inspect(missing, info), lib.KAD_FILE_ERROR, "none.gguf")
    expect(lib.kad_file_inspect(b"", info), lib.KAD_FILE_ERROR)
    bert = tiny("bert", quantisation="F32")
    expect(lib.kad_file_inspect(str(bert).encode(), info), lib.KAD_MODEL_ERROR, bert.name, "encoder")
    params = Params(bert, tiny_pair[1])
    expect(params.open(), lib.KAD_MODEL_ERROR, bert.name)
    expect(Params(tiny_pair[0], tmp_path / "none.gguf").open(), lib.KAD_FILE_ERROR, "none.gguf")


def test_out_of_memory(tiny_pair: tuple[Path, Path]) -> None:
    for limit in (1, 10**5):
        params = Params(*tiny_pair, memory_limit=limit)
        expect(params.open(), lib.KAD_OUT_OF_MEMORY, "base", "aligned", "weights", "cache", " free")
        assert params.out[0] == NULL
    # What is measured against the limit is about what the models take: a hundred times that is enough.
    params = Params(*tiny_pair, memory_limit=10**8)
    ok(params.open())
    lib.kad_engine_close(params.out[0])


def test_small_memory_figures_are_readable(tiny_pair: tuple[Path, Path]) -> None:
    """A message of zeros says nothing: "0.00 GiB of 0.00 GiB"."""
    expect(Params(*tiny_pair, memory_limit=1000).open(), lib.KAD_OUT_OF_MEMORY)
    assert "= 0.00 GiB" not in message(), message()


def test_context_too_small(engine: Any) -> None:
    with Sequence(engine, max_tokens=2, seed=1) as running:
        too_long = Sequence(engine, [1] * (N_CTX + 1))
        expect(too_long.open(), lib.KAD_CONTEXT_TOO_SMALL, str(N_CTX + 1), str(N_CTX))
        assert too_long.c == NULL
        running.read()  # a refused sequence does not supersede the running one


def test_sequence_values(engine: Any) -> None:
    stop = ffi.new("char[]", b"")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"temperature": -1.0}, "temperature -1"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"temperature": math.inf}, "temperature inf"),
        ({"top_k": -1}, "top_k -1"),
        ({"top_p": 0.0}, "top_p 0"),
        ({"top_p": 1.1}, "top_p 1.1"),
        ({"top_p": math.nan}, "top_p nan"),
        ({"min_p": 1.0}, "min_p 1"),
        ({"min_p": -0.5}, "min_p -0.5"),
        ({"min_p": math.nan}, "min_p nan"),
        ({"max_tokens": -1}, "max_tokens -1"),
        ({"mode": 4}, "mode 4"),
        ({"mode": -1}, "mode -1"),
        ({"mode": lib.KAD_MODE_SPECULATIVE, "draft": 0}, "draft 0"),
        ({"mode": lib.KAD_MODE_SPECULATIVE, "draft": -4}, "draft -4"),
        (
            {"mode": lib.KAD_MODE_SPECULATIVE, "draft": lib.kad_max_draft(engine) + 1},
            f"expected 1 to {lib.kad_max_draft(engine)}",
        ),
        ({"n_stops": 1}, "stops"),
        ({"n_stops": 1, "stops": ffi.new("char *[]", [NULL])}, "stop string"),
        ({"n_stops": 1, "stops": ffi.new("char *[]", [stop])}, "stop string 0 is empty"),
    ]
    for fields, part in cases:
        sequence = Sequence(engine, **fields)
        expect(sequence.open(), lib.KAD_INVALID_ARGUMENT, part)
        assert sequence.c == NULL


def test_ids_out_of_range(engine: Any) -> None:
    """Never handed to llama.cpp; the engine is as good as before."""
    with Sequence(engine, max_tokens=4, seed=3) as sequence:
        expected = sequence.read()
    for bad in (-1, 2**31 - 1, -(2**31)):
        sequence = Sequence(engine, [1, 2, bad, 3])
        status = sequence.open()
        if status == lib.KAD_OK:
            status = sequence.step()
            lib.kad_sequence_close(sequence.c)
        expect(status, lib.KAD_INVALID_ARGUMENT, str(bad), "vocabulary")
    with Sequence(engine, max_tokens=4, seed=3) as sequence:
        assert sequence.read() == expected


def test_superseded(engine: Any) -> None:
    with Sequence(engine, max_tokens=4, seed=1) as first:
        ok(first.step())
        with Sequence(engine, max_tokens=4, seed=1) as second:
            for status in (
                first.step(),
                lib.kad_sequence_stats(first.c, ffi.new("kad_stats *")),
                lib.kad_sequence_rows(first.c, NULL, NULL, NULL, 1),
                lib.kad_sequence_prompt_progress(first.c, NULL, NULL),
            ):
                expect(status, lib.KAD_BAD_STATE, "superseded")
            assert lib.kad_sequence_finish(first.c) == lib.KAD_FINISH_NONE
            ok(lib.kad_sequence_length(first.c, SIZE, NULL))
            second.read()
        expect(first.step(), lib.KAD_BAD_STATE, "superseded")


def test_an_engine_outlives_its_closing_while_a_sequence_is_open(tiny_pair: tuple[Path, Path]) -> None:
    """The collector, or an error that holds a frame, may keep a sequence longer than its engine."""
    params = Params(*tiny_pair)
    ok(params.open())
    sequence = Sequence(params.out[0])
    ok(sequence.open())
    place = sequence.out
    lib.kad_engine_close(params.out[0])
    assert lib.kad_sequence_finish(place[0]) == lib.KAD_FINISH_NONE
    lib.kad_sequence_release(place)
    assert place[0] == NULL
    lib.kad_sequence_release(place)
    lib.kad_sequence_release(NULL)


def test_an_open_text_that_is_not_stepped_gives_way(tiny_pair: tuple[Path, Path]) -> None:
    """Its cells are taken by those that are, and it is evaluated again when it goes on: the text it would have been."""
    ids = [1 + i % 7 for i in range(300)]
    params = Params(*tiny_pair, n_ctx=400, n_parallel=2)
    ok(params.open())
    engine = params.out[0]
    fields = {"max_tokens": 20, "seed": 1, "mode": lib.KAD_MODE_PLAIN}
    with Sequence(engine, ids, **fields) as alone:
        wanted = alone.read()
    with Sequence(engine, ids, **fields) as first:
        ok(first.step())
        with Sequence(engine, ids[::-1], **fields) as second:
            assert second.read()
            assert first.read() == wanted
            assert lib.kad_sequence_finish(second.c) != lib.KAD_FINISH_NONE  # ended, and not closed
        with Sequence(engine, ids[5:], **fields) as third:
            assert third.read()
    lib.kad_engine_close(engine)


def test_not_a_number(tiny: Tiny, tmp_path: Path) -> None:
    import broken_files as broken

    sound = tiny("llama", quantisation="F32", n_layer=1, hidden=32)
    sick = broken.edited(
        sound,
        tmp_path / "nan.gguf",
        tensors=lambda name, data: data * np.float32("nan") if name == "output.weight" else data,
    )
    params = Params(sick, None, rule={"kind": lib.KAD_RULE_BASE, "temperature": 1.0})
    ok(params.open())
    with Sequence(params.out[0]) as sequence:
        ok(sequence.step())
        for _ in range(2):
            sequence.n[0] = 77
            expect(sequence.step(), lib.KAD_NOT_A_NUMBER, "base model", "nan")
            assert sequence.n[0] == 77, "outputs are left untouched"
    lib.kad_engine_close(params.out[0])


def test_progress_can_give_up(tiny_pair: tuple[Path, Path]) -> None:
    params = Params(*tiny_pair)
    seen: list[float] = []

    @ffi.callback("int32_t(double, void *)")  # type: ignore[untyped-decorator]
    def give_up(fraction: float, _data: Any) -> int:
        seen.append(fraction)
        return int(len(seen) < 3)

    params.c.progress = give_up
    expect(params.open(), lib.KAD_INTERRUPTED, "interrupted")
    assert params.out[0] == NULL
    assert seen == sorted(seen) and all(0 <= fraction <= 1 for fraction in seen)


def test_cancel(tiny: Tiny) -> None:
    """From another thread, in the prompt and in the middle of a text; the same text as if nothing had been."""
    # Q8_0 and few cells: rows are bit-equal however they are grouped, so every text is comparable.
    pair = (tiny("llama", n_layer=8, hidden=256), tiny("llama", noise=0.3))
    params = Params(*pair, n_ctx=4096)
    ok(params.open())
    engine = params.out[0]
    prompt = ids_of(engine, b"The people of the town. ") * 150
    with Sequence(engine, prompt[:50], max_tokens=20, seed=5) as sequence:
        expected = sequence.read()

    lib.kad_engine_cancel(engine)  # nothing runs: no effect
    with Sequence(engine, prompt[:50], max_tokens=20, seed=5) as sequence:
        assert sequence.read() == expected
    with Sequence(engine, [7, *prompt]) as sequence:
        status, waited = cancelled(engine, sequence)
        assert status == lib.KAD_INTERRUPTED, "the prompt was evaluated before it could be cancelled"
        assert waited < 2
        assert lib.kad_sequence_finish(sequence.c) == lib.KAD_FINISH_NONE
    with Sequence(engine, prompt[:50], max_tokens=20, seed=5) as sequence:
        said, hits = b"", 0
        while lib.kad_sequence_finish(sequence.c) == lib.KAD_FINISH_NONE:
            timer = threading.Timer(0.002 * (1 + hits % 3), lib.kad_engine_cancel, (engine,))
            if hits < 10:
                timer.start()
            status = sequence.step()
            timer.cancel()
            hits += status == lib.KAD_INTERRUPTED
            if status == lib.KAD_OK:
                said += b"".join(bytes(ffi.buffer(t.bytes, t.n_bytes)) for t in sequence.tokens[0 : sequence.n[0]])
            else:
                expect(status, lib.KAD_INTERRUPTED)
        assert said == expected
        assert hits, "no cancel met a pass"
    lib.kad_engine_close(engine)


# ---- Buffers and order -------------------------------------------------------------------------------------------------


def test_tokenize_sizes(engine: Any) -> None:
    text = b"The sky is blue because of the air."
    n = ffi.new("size_t *")
    ok(lib.kad_tokenize(engine, 0, text, len(text), 0, NULL, 0, n))
    size = n[0]
    assert 1 < size <= len(text)
    ids = ffi.new("int32_t[]", [-7] * (size + 1))
    ok(lib.kad_tokenize(engine, 0, text, len(text), 0, ids, size - 1, n))
    assert n[0] == size and set(ids) == {-7}, "nothing is written when there is too little room"
    ok(lib.kad_tokenize(engine, 0, text, len(text), 0, ids, size, n))
    assert n[0] == size and ids[size] == -7 and min(ids[0:size]) >= 0
    ok(lib.kad_tokenize(engine, 0, text, 0, 0, NULL, 0, n))
    assert n[0] == 0
    for odd in (b"\xff\xfe\x80", b"\0\0", b"\xf0\x9f", b"\xed\xa0\x80"):
        ok(lib.kad_tokenize(engine, 0, odd, len(odd), 0, ids, size + 1, n))


def test_tokenize_special(engine: Any) -> None:
    text, n = b"<|im_end|>", ffi.new("size_t *")
    ids = ffi.new("int32_t[]", 20)
    ok(lib.kad_tokenize(engine, 0, text, len(text), 1, ids, 20, n))
    assert n[0] == 1
    special = int(ids[0])
    kind = ffi.new("int32_t *")
    ok(lib.kad_token_bytes(engine, 0, special, NULL, NULL, kind))
    assert kind[0] == 2
    ok(lib.kad_tokenize(engine, 0, text, len(text), 0, ids, 20, n))
    assert n[0] > 1 and special not in list(ids[0 : n[0]])
    ok(lib.kad_special_tokens(engine, 0, NULL, 0, n))
    count = n[0]
    listed = ffi.new("int32_t[]", count)
    ok(lib.kad_special_tokens(engine, 0, listed, count, n))
    assert list(listed) == sorted(listed) and special in list(listed)


def test_capacity(engine: Any) -> None:
    with Sequence(engine, mode=lib.KAD_MODE_SPECULATIVE, draft=5, max_tokens=8, seed=2) as sequence:
        for capacity in (0, 1, 5):
            expect(sequence.step(capacity), lib.KAD_INVALID_ARGUMENT, f"capacity {capacity}", "6")
        said = b""
        while lib.kad_sequence_finish(sequence.c) == lib.KAD_FINISH_NONE:
            ok(sequence.step(6))
            said += b"".join(bytes(ffi.buffer(t.bytes, t.n_bytes)) for t in sequence.tokens[0 : sequence.n[0]])
        ok(lib.kad_sequence_length(sequence.c, SIZE, NULL))
        assert SIZE[0] == len(said)


def test_step_after_the_end(engine: Any) -> None:
    with Sequence(engine, max_tokens=3, seed=2) as sequence:
        sequence.read()
        finish = lib.kad_sequence_finish(sequence.c)
        for _ in range(3):
            sequence.n[0] = 9
            ok(sequence.step())
            assert sequence.n[0] == 0 and lib.kad_sequence_finish(sequence.c) == finish
    with Sequence(engine, max_tokens=0) as sequence:
        assert lib.kad_sequence_finish(sequence.c) == lib.KAD_FINISH_LENGTH
        ok(sequence.step())
        assert sequence.n[0] == 0


def test_progress_and_rows(engine: Any) -> None:
    size = n_events(engine)
    base, aligned = ffi.new("float[]", size), ffi.new("float[]", size)
    done, total = ffi.new("size_t *"), ffi.new("size_t *")
    with Sequence(engine, max_tokens=5, seed=4) as sequence:
        ok(lib.kad_sequence_prompt_progress(sequence.c, done, total))
        assert total[0] == 2 * len(sequence.ids) and done[0] <= total[0]
        for wrong in (0, size - 1, size + 1, 2**40):
            expect(
                lib.kad_sequence_rows(sequence.c, base, aligned, NULL, wrong),
                lib.KAD_INVALID_ARGUMENT,
                str(wrong),
                str(size),
            )
        ok(lib.kad_sequence_rows(sequence.c, base, aligned, NULL, size))
        ok(lib.kad_sequence_prompt_progress(sequence.c, done, total))
        assert done[0] == total[0]
        first = list(base)
        sequence.read()
        ok(lib.kad_sequence_rows(sequence.c, base, NULL, NULL, size))
        assert list(base) != first
    with Sequence(engine, max_tokens=5, seed=4) as sequence:
        untouched = sequence.read()
    with Sequence(engine, max_tokens=5, seed=4) as sequence:
        said = b""
        while lib.kad_sequence_finish(sequence.c) == lib.KAD_FINISH_NONE:
            ok(lib.kad_sequence_rows(sequence.c, base, aligned, NULL, size))
            ok(sequence.step())
            said += b"".join(bytes(ffi.buffer(t.bytes, t.n_bytes)) for t in sequence.tokens[0 : sequence.n[0]])
        assert said == untouched, "looking at the rows changed the text"


def test_engine_with_one_model(tiny_pair: tuple[Path, Path]) -> None:
    params = Params(None, tiny_pair[1], rule={"kind": lib.KAD_RULE_ALIGNED, "temperature": 1.0})
    ok(params.open())
    engine = params.out[0]
    info = ffi.new("kad_model_info *")
    ok(lib.kad_engine_model(engine, lib.KAD_ROLE_BASE, info))
    assert info.loaded == 0 and ffi.string(info.chat_template) == b"" and info.bos == -1
    expect(lib.kad_tokenize(engine, 0, b"x", 1, 0, NULL, 0, SIZE), lib.KAD_INVALID_ARGUMENT, "no base model")
    ids = ffi.new("int32_t[]", [1, 2])
    out, sp = ffi.new("kad_sequence **"), ffi.new("kad_sequence_params *", lib.kad_sequence_default_params())
    ok(lib.kad_sequence_open(engine, sp, NULL, 0, ids, 2, out))
    row = ffi.new("float[]", n_events(engine))
    expect(lib.kad_sequence_rows(out[0], row, NULL, NULL, len(row)), lib.KAD_INVALID_ARGUMENT, "base")
    lib.kad_sequence_close(out[0])
    lib.kad_engine_close(engine)


def test_vocabulary_only(tiny_pair: tuple[Path, Path]) -> None:
    """A model without weights tokenises, and does not speak."""
    params = Params(*tiny_pair, rule={"kind": lib.KAD_RULE_BASE, "temperature": 1.0})
    params.c.aligned.vocab_only = 1
    ok(params.open())
    engine = params.out[0]
    assert ids_of(engine, b"The sky", 1) == ids_of(engine, b"The sky", 0)
    info = ffi.new("kad_model_info *")
    ok(lib.kad_engine_model(engine, 1, info))
    assert info.loaded == 0 and info.weight_bytes == 0
    with Sequence(engine, max_tokens=2) as sequence:
        sequence.read()
    lib.kad_engine_close(engine)


def test_last_error() -> None:
    """A message stays until the next failing call, and belongs to its thread."""
    expect(lib.kad_rule_named(b"one", RULE), lib.KAD_INVALID_ARGUMENT, '"one"')
    ok(lib.kad_rule_named(b"dual", RULE))
    assert '"one"' in message()
    other: list[str] = []

    def elsewhere() -> None:
        other.append(message())
        lib.kad_rule_named(b"two", RULE)
        other.append(message())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert other[0] == "" and '"two"' in other[1]
    assert '"one"' in message()
    assert lib.kad_rule_named("naïve".encode(), RULE) == lib.KAD_INVALID_ARGUMENT
    assert "naïve" in message()


def test_library() -> None:
    ok(lib.kad_library_check())
    info = ffi.new("kad_library_info *")
    ok(lib.kad_library(info))
    assert ffi.string(info.loaded_llama_version) == ffi.string(info.built_llama_version) != b""
    assert b"CPU" in ffi.string(info.backends)
    assert ffi.string(lib.kad_version()).decode() == kad_llama.__version__


def test_cache_types() -> None:
    assert lib.kad_cache_type(b"q3_k") == lib.kad_cache_type(b"") == -1
    for name in (b"f32", b"f16", b"bf16", b"q8_0", b"q4_0", b"q4_1", b"iq4_nl", b"q5_0", b"q5_1"):
        assert ffi.string(lib.kad_cache_type_name(lib.kad_cache_type(name))) == name
    for number in (-1, 10, 12, 10**6, -(2**31)):
        assert ffi.string(lib.kad_cache_type_name(number)) == b""
