"""Does the class keep its word: one call at a time, nothing lost, results that can be had again?

Models are Q8_0 and texts short, so that rows are bit-equal however they are grouped and texts can be compared.
"""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kad_llama import KadLlama, Stream, mixture
from kad_llama.errors import InvalidArgumentError, StateError

Tiny = Callable[..., Path]
PROMPT = "The people of the town"


@pytest.fixture(scope="module")
def kad(tiny_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with KadLlama(*tiny_pair, n_ctx=200, n_threads=1) as instance:
        yield instance


@pytest.fixture
def own(tiny_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    """An instance that the test may close."""
    instance = KadLlama(*tiny_pair, n_ctx=200, n_threads=1)
    yield instance
    instance.close()


def say(kad: KadLlama, seed: int = 7, **keywords: Any) -> str:
    return kad.generate(PROMPT, **{"raw": True, "max_tokens": 12, "seed": seed, **keywords}).text


# ---- After the end -----------------------------------------------------------------------------------------------------


def test_calls_after_close(tiny_pair: tuple[Path, Path]) -> None:
    kad = KadLlama(*tiny_pair, n_ctx=64, n_threads=1)
    assert not kad.closed
    kad.close()
    assert kad.closed
    kad.close()
    for call in (
        lambda: kad.generate("x"),
        lambda: kad.stream("x"),
        lambda: kad.next_logits("x"),
        lambda: kad.tokenize("x"),
        lambda: kad.token_bytes(1),
        lambda: kad.prompt("x"),
        lambda: kad.max_draft,
        lambda: kad.__enter__(),
    ):
        with pytest.raises(StateError, match="closed; make a new one"):
            call()
    assert kad.base is not None and kad.base.n_ctx == 64  # what was learnt stays


def test_with_block(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(ZeroDivisionError), KadLlama(*tiny_pair, n_ctx=64, n_threads=1) as kad:
        1 / 0  # noqa: B018
    assert kad.closed
    with pytest.raises(ZeroDivisionError), KadLlama(*tiny_pair, n_ctx=64, n_threads=1) as kad:
        for _ in kad.stream(PROMPT, raw=True, max_tokens=50):
            1 / 0  # noqa: B018
    assert kad.closed


def test_close_with_an_open_stream(own: KadLlama) -> None:
    stream = own.stream(PROMPT, raw=True, seed=7)
    first = [next(stream) for _ in range(3)]
    own.close()
    assert own.closed
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.text.startswith("".join(token.text for token in first))
    rest = list(stream)
    assert stream.result.tokens == first + rest
    stream.close()
    assert list(stream) == []


# ---- One stream at a time ----------------------------------------------------------------------------------------------


def test_second_call_in_the_same_thread(kad: KadLlama) -> None:
    expected = say(kad)
    with kad.stream(PROMPT, raw=True, seed=7, max_tokens=12) as stream:
        text = next(stream).text
        for call in (kad.generate, kad.stream, kad.next_logits):
            with pytest.raises(StateError, match=r"stream.*open.*close\(\)"):
                call("x")  # type: ignore[operator]
        assert kad.tokenize("x") and kad.max_draft and kad.prompt("x")
        text += "".join(token.text for token in stream)
    assert text == stream.result.text == expected
    assert say(kad) == expected


def test_dropping_a_stream_frees_the_instance(kad: KadLlama) -> None:
    expected = say(kad)
    stream = kad.stream(PROMPT, raw=True)
    next(stream)
    del stream
    assert say(kad) == expected
    kad.stream(PROMPT, raw=True)  # never read
    assert say(kad) == expected
    for _ in kad.stream(PROMPT, raw=True):
        break
    assert say(kad) == expected


def test_dropping_a_stream_elsewhere(kad: KadLlama) -> None:
    """A stream made here and closed by another thread, and the other way round."""
    expected = say(kad)
    with ThreadPoolExecutor(1) as pool:
        stream = kad.stream(PROMPT, raw=True)
        pool.submit(stream.close).result()
        assert say(kad) == expected
        theirs = pool.submit(kad.stream, PROMPT, raw=True, seed=7, max_tokens=12).result()
        assert "".join(token.text for token in theirs) == expected
        assert say(kad) == expected


def test_result_of_an_open_stream(kad: KadLlama) -> None:
    with kad.stream(PROMPT, raw=True) as stream, pytest.raises(StateError, match="goes on"):
        _ = stream.result
    assert stream.result.text == "" and stream.result.tokens == []
    assert stream.result.finish_reason == "interrupted"
    assert stream.result.stats.tokens == 0


def test_closing_mid_way_keeps_what_was_said(kad: KadLlama) -> None:
    full = kad.generate(PROMPT, raw=True, max_tokens=12, seed=7)
    for n in range(12):
        with kad.stream(PROMPT, raw=True, max_tokens=12, seed=7, spec=False) as stream:
            said = [next(stream) for _ in range(n)]
        part = stream.result
        assert part.seed == 7
        assert full.text.startswith(part.text) and len(part.tokens) >= n
        assert part.tokens[:n] == said
        assert part.text == "".join(token.text for token in part.tokens)


def test_stream_is_the_generation(kad: KadLlama) -> None:
    for mode in ({"draft": 3}, {"draft": 0}, {"spec": False}):
        out = kad.generate(PROMPT, raw=True, max_tokens=40, seed=3, **mode)  # type: ignore[arg-type]
        stream = kad.stream(PROMPT, raw=True, max_tokens=40, seed=3, **mode)  # type: ignore[arg-type]
        tokens = list(stream)
        assert tokens == stream.result.tokens == out.tokens
        assert "".join(token.text for token in tokens) == out.text == stream.result.text
        assert b"".join(token.bytes for token in tokens).decode("utf-8", "replace") == out.text


def test_errors_leave_no_stream_open(kad: KadLlama) -> None:
    expected = say(kad)
    for keywords in ({"draft": 10**6}, {"temperature": -1}, {"stop": ""}):
        with pytest.raises(InvalidArgumentError):
            kad.stream(PROMPT, raw=True, **keywords)  # type: ignore[arg-type]
        assert say(kad) == expected


# ---- Threads -----------------------------------------------------------------------------------------------------------


def test_threads_queue(tiny_pair: tuple[Path, Path]) -> None:
    """Many threads, one instance: every text is the one that it gets alone."""
    with KadLlama(*tiny_pair, n_ctx=200, n_threads=1, reproducible=True) as kad:
        calls = [(f"{PROMPT} {i % 5}", i, {"draft": i % 4, "spec": i % 3 > 0}) for i in range(24)]

        def one(call: tuple[str, int, dict[str, Any]]) -> str:
            prompt, seed, mode = call
            if seed % 2:
                return kad.generate(prompt, max_tokens=10, seed=seed, **mode).text
            with kad.stream(prompt, max_tokens=10, seed=seed, **mode) as stream:
                return "".join(token.text for token in stream)

        alone = [one(call) for call in calls]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(one, calls))
    assert together == alone
    assert len(set(alone)) > 10


def test_close_waits_for_a_call_elsewhere(own: KadLlama) -> None:
    expected = say(own, max_tokens=100)
    began = threading.Event()
    said: list[str] = []

    def read() -> None:
        with own.stream(PROMPT, raw=True, max_tokens=100, seed=7) as stream:
            for token in stream:
                said.append(token.text)
                began.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert began.wait(20)
    own.close()
    thread.join()
    assert "".join(said) == expected
    with pytest.raises(StateError, match="closed"):
        own.generate("x")


def test_waiting_calls_and_close(own: KadLlama) -> None:
    """Those that come before close() are answered, the others are told; none waits for ever."""
    expected = say(own)
    stream = own.stream(PROMPT, raw=True)
    next(stream)
    answers: list[str] = []

    def wait() -> None:
        try:
            answers.append(say(own))
        except StateError as error:
            answers.append(str(error))

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    own.close()
    for thread in threads:
        thread.join(20)
    assert len(answers) == 3
    assert all(answer == expected or "closed" in answer for answer in answers), answers


def test_python_runs_while_models_compute(tiny: Tiny) -> None:
    """One long pass does not stop other Python threads."""
    big = tiny("llama", n_layer=8, hidden=256, quantisation="F32")
    with KadLlama(big, None, rule="base", n_ctx=2048, n_threads=1, base_params={"n_batch": 1500}) as kad:
        ids = "The sky is blue. " * 250
        gaps: list[float] = []
        stop = threading.Event()

        def tick() -> None:
            last = time.perf_counter()
            while not stop.is_set():
                time.sleep(0.001)
                now = time.perf_counter()
                gaps.append(now - last)
                last = now

        thread = threading.Thread(target=tick)
        thread.start()
        start = time.perf_counter()
        stats = kad.generate(ids, raw=True, max_tokens=1, seed=1).stats
        took = time.perf_counter() - start
        stop.set()
        thread.join()
    assert stats.prompt_tokens > 1000
    assert max(gaps) < 0.5 * took, f"a gap of {max(gaps):.3f} s in a call of {took:.3f} s"


# ---- Collected, leaked -------------------------------------------------------------------------------------------------


def test_collected_without_close(tiny_pair: tuple[Path, Path]) -> None:
    kad = KadLlama(*tiny_pair, n_ctx=64, n_threads=1)
    alive = weakref.ref(kad)
    stream = kad.stream(PROMPT, raw=True, max_tokens=5)
    next(stream)
    del kad
    assert len(list(stream)) >= 1  # the stream keeps its models
    del stream
    gc.collect()
    assert alive() is None


CYCLE = """
import gc, sys
from kad_llama import KadLlama

class Holder:
    pass

def garbage():
    holder = Holder()
    holder.me = holder
    first, second = ("kad", "stream") if sys.argv[3] == "kad" else ("stream", "kad")
    kad = KadLlama(sys.argv[1], sys.argv[2], n_ctx=64, n_threads=1)
    stream = kad.stream("The sky", raw=True, max_tokens=20)
    next(stream)
    for name in (first, second):
        setattr(holder, name, {"kad": kad, "stream": stream}[name])

gc.disable()
for _ in range(3):
    garbage()
    gc.collect()
kad = KadLlama(sys.argv[1], sys.argv[2], n_ctx=64, n_threads=1)
stream = kad.stream("The sky", raw=True, max_tokens=20)
next(stream)
if sys.argv[3] == "exit":
    sys.me = (kad, stream)   # still alive when the interpreter ends
print("well")
"""


@pytest.mark.parametrize("order", ["kad", "stream", "exit"])
def test_garbage_with_an_open_stream(tiny_pair: tuple[Path, Path], order: str) -> None:
    """The collector may finish the instance before its stream: no memory may be used after it was freed."""
    run = subprocess.run(
        [sys.executable, "-c", CYCLE, *map(str, tiny_pair), order],
        capture_output=True,
        text=True,
        env={**os.environ, "MALLOC_PERTURB_": "165"},
        timeout=120,
    )
    assert run.returncode == 0, f"ended with {run.returncode}: {run.stderr[-1500:]}"
    assert run.stdout == "well\n" and run.stderr == ""


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc, which is Linux's"
)
def test_instances_do_not_leak(tiny_pair: tuple[Path, Path]) -> None:
    def use() -> None:
        kad = KadLlama(*tiny_pair, n_ctx=256, n_threads=1)
        stream = kad.stream(PROMPT, raw=True, max_tokens=5, top_k=5)
        next(stream)
        kad.close()

    for _ in range(5):
        use()
    gc.collect()
    before = resident()
    for _ in range(20):
        use()
    gc.collect()
    assert resident() - before < 8e6, f"20 instances took {(resident() - before) / 1e6:.1f} MB"


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc, which is Linux's"
)
def test_calls_do_not_leak(kad: KadLlama) -> None:
    def use(n: int) -> None:
        for i in range(n):
            kad.generate(PROMPT, raw=True, max_tokens=3, seed=i, top_p=0.9, stop=["zzz"])
            with pytest.raises(InvalidArgumentError):
                kad.generate(PROMPT, temperature=-1)

    use(50)
    before = resident()
    use(200)
    assert resident() - before < 4e6


# ---- What is reported --------------------------------------------------------------------------------------------------

MODES: tuple[dict[str, Any], ...] = (
    {},
    {"draft": 1},
    {"draft": 7},
    {"draft": 0},
    {"spec": False},
    {"draft": 0, "logprobs": True},
    {"logprobs": True},
)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_statistics(kad: KadLlama, mode: dict[str, Any]) -> None:
    for seed in range(5):
        start = time.perf_counter()
        out = kad.generate(PROMPT, raw=True, max_tokens=30, seed=seed, **mode)
        took = time.perf_counter() - start
        stats = out.stats
        assert stats.tokens == len(out.tokens)
        assert stats.tokens == 30 or out.finish_reason == "stop"
        assert 0 <= stats.accepted <= stats.drafted
        assert stats.acceptance_rate == (stats.accepted / stats.drafted if stats.drafted else 0)
        assert stats.tokens_per_base_pass == (stats.tokens / stats.base_passes if stats.base_passes else 0)
        assert 0 <= stats.deferred_mass <= 1 and 0 <= stats.aligned_share <= 1
        assert stats.aligned_share == pytest.approx(np.mean([token.source == "aligned" for token in out.tokens]))
        assert stats.deferred_mass == pytest.approx(np.mean([token.deferred_mass for token in out.tokens]))
        assert 0 < stats.prompt_s + stats.base_eval_s + stats.aligned_eval_s <= stats.wall_s <= took
        assert stats.prompt_s <= stats.wall_s and stats.tokens_per_second > 0
        evaluated = stats.base_eval_s + stats.aligned_eval_s
        assert stats.read_s > 0 and stats.draw_s > 0 and stats.text_s == 0
        assert evaluated + stats.read_s + stats.draw_s <= stats.tokens / stats.tokens_per_second
        assert stats.prompt_tokens == len(kad.tokenize(PROMPT)) == stats.prompt_tokens_aligned
        assert 0 <= stats.prompt_cached <= stats.prompt_tokens
        guesses = [token.guess for token in out.tokens]
        assert guesses.count("right") <= stats.accepted <= guesses.count("right") + 1  # an end of text may be guessed
        names = {"auto": "auto", 0: "lazy"}
        wanted = names.get(mode.get("draft", "auto"), "speculative") if mode.get("spec", True) else "plain"
        if mode.get("logprobs") and wanted == "lazy":
            assert stats.mode == "plain" and "log-probabilities" in stats.note
        else:
            assert stats.mode == wanted and stats.note == ""
        if stats.mode not in ("speculative", "auto"):
            assert stats.drafted == 0 and set(guesses) <= {"none"}
            # The first row comes with the prompt; every further event needs one base pass.
            assert stats.base_passes in (stats.tokens - 1, stats.tokens)
        for token in out.tokens:
            assert (token.logprob is None) == (token.base_share is None) == (not mode.get("logprobs", False))
            assert 0 <= token.deferred_mass <= 1
        assert stats.to_dict()["tokens"] == stats.tokens
        assert out.to_dict()["seed"] == seed


def test_statistics_of_a_call_that_did_nothing(kad: KadLlama) -> None:
    """Nothing of the call before shows."""
    for _ in range(2):
        kad.generate(PROMPT * 5, raw=True, max_tokens=3, seed=1)
    out = kad.generate("The", raw=True, max_tokens=0)
    assert (out.text, out.tokens, out.finish_reason) == ("", [], "length")
    stats = out.stats
    assert stats.prompt_tokens == 1 and stats.prompt_cached <= stats.prompt_tokens
    assert (stats.tokens, stats.base_passes, stats.aligned_passes, stats.drafted) == (0, 0, 0, 0)
    assert (stats.tokens_per_second, stats.deferred_mass, stats.aligned_share) == (0, 0, 0)
    with kad.stream("The", raw=True) as stream:
        pass
    assert stream.result.stats.prompt_cached <= stream.result.stats.prompt_tokens


def test_prompt_is_reused(kad: KadLlama) -> None:
    kad.generate("Something else", raw=True, max_tokens=1)
    first = kad.generate(PROMPT * 3, raw=True, max_tokens=3, seed=1).stats
    second = kad.generate(PROMPT * 3 + " went", raw=True, max_tokens=3, seed=1).stats
    assert first.prompt_cached == 0
    assert second.prompt_cached >= first.prompt_tokens - 1


def test_drawn_seed_gives_the_text_again(kad: KadLlama) -> None:
    seeds = set()
    for _ in range(5):
        out = kad.generate(PROMPT, raw=True, max_tokens=12)
        assert 0 <= out.seed < 2**64
        assert say(kad, out.seed) == out.text
        seeds.add(out.seed)
    assert len(seeds) == 5
    assert kad.generate(PROMPT, raw=True, max_tokens=2, seed=2**64 - 1).seed == 2**64 - 1
    with kad.stream(PROMPT, raw=True, max_tokens=12) as stream:
        text = "".join(token.text for token in stream)
    assert say(kad, stream.result.seed) == text


def test_seeds_and_text_numbers_matter(kad: KadLlama) -> None:
    texts = {say(kad, seed) for seed in range(10)}
    numbers = {say(kad, 0, text_number=number) for number in range(10)}
    assert len(texts) > 5 and len(numbers) > 5
    assert say(kad, 0, text_number=0) == say(kad, 0)
    assert say(kad, 0, temperature=0) == say(kad, 1, temperature=0, text_number=5)


@pytest.mark.parametrize("pair", ["tiny_pair", "tiny_cross_pair"])
@pytest.mark.parametrize("rule", ["dual", "primal", "nudging", "base", "aligned"])
def test_first_position_is_the_mixture(pair: str, rule: str, request: pytest.FixtureRequest) -> None:
    """logprob and base_share of the first token are those of pi computed from the rows that the engine reports."""
    files = request.getfixturevalue(pair)
    with KadLlama(*files, n_ctx=64, n_threads=1) as kad:  # rule "aligned" never asks the base
        base, aligned = kad.next_logits(PROMPT, raw=True)
    with KadLlama(*files, rule=rule, n_ctx=64, n_threads=1) as kad:
        if rule != "aligned":  # which writes its own ids: the base is not loaded
            assert base.shape == aligned.shape == (kad.vocab.n_events,)
        for temperature in (0.7, 1.0):
            pi = mixture(base, aligned, rule=rule, temperature=temperature)
            logs = set()
            for seed in range(20):
                out = kad.generate(PROMPT, raw=True, max_tokens=1, seed=seed, temperature=temperature, logprobs=True)
                if not out.tokens:
                    continue
                (token,) = out.tokens
                assert token.logprob is not None and token.base_share is not None
                if len(token.bytes.decode("utf-8", "ignore")) == 0 or not token.bytes.isascii():
                    continue  # a character of several tokens is more than one draw
                close = np.min(np.abs(np.log(np.maximum(pi, 1e-300)) - token.logprob))
                assert close < 1e-5, f"no event has the log-probability {token.logprob}"
                if kad.vocab.equal:
                    assert math.log(pi[token.id]) == pytest.approx(token.logprob, abs=1e-5)
                    p = np.exp((base - base.max()).astype(np.float64) / temperature)
                    p /= p.sum()
                    share = token.base_share * pi[token.id]
                    assert share == pytest.approx(0, abs=1e-6) or share == pytest.approx(p[token.id], rel=1e-4)
                if rule == "base":
                    assert token.source == "base" and token.base_share == pytest.approx(1) and token.deferred_mass == 0
                if rule == "aligned":
                    assert token.source == "aligned" and token.base_share == 0 and token.deferred_mass == 1
                if token.base_share in (0.0, 1.0):
                    assert token.source == ("base" if token.base_share else "aligned")
                logs.add(token.logprob)
            assert logs


def test_logprobs_do_not_change_the_text(kad: KadLlama) -> None:
    for seed in range(5):
        for mode in ({}, {"draft": 0}, {"spec": False}):
            assert say(kad, seed, logprobs=True, **mode) == say(kad, seed, **mode)


def test_source_and_alpha_are_the_same_in_every_mode(kad: KadLlama) -> None:
    for seed in range(5):
        outs = [kad.generate(PROMPT, raw=True, max_tokens=20, seed=seed, **mode) for mode in MODES[:5]]
        seen = {tuple((t.id, t.source, round(t.deferred_mass, 9)) for t in out.tokens) for out in outs}
        assert len(seen) == 1


def test_stop_strings(kad: KadLlama) -> None:
    full = kad.generate(PROMPT, raw=True, max_tokens=60, seed=3)
    for start in range(0, len(full.text) - 4, 7):
        stop = full.text[start : start + 4]
        for mode in ({}, {"draft": 0}):
            out = kad.generate(PROMPT, raw=True, max_tokens=60, seed=3, stop=stop, **mode)  # type: ignore[arg-type]
            assert out.finish_reason == "stop"
            assert out.text == full.text[: full.text.index(stop)]
            assert out.text == "".join(token.text for token in out.tokens)
            assert out.stats.tokens >= len(out.tokens)


def test_chat_goes_on(kad: KadLlama) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    for turn in range(3):
        out = kad.generate(messages, max_tokens=8, seed=1, text_number=turn, stop="\n")
        messages += [{"role": "assistant", "content": out.text}, {"role": "user", "content": "And then?"}]
        assert out.stats.prompt_tokens > 5


def test_generation_is_plain_data(kad: KadLlama) -> None:
    import json
    import pickle

    out = kad.generate(PROMPT, raw=True, max_tokens=5, seed=1, logprobs=True)
    assert pickle.loads(pickle.dumps(out)) == out
    assert json.loads(json.dumps(out.to_dict()))["text"] == out.text
    assert isinstance(kad.stream("x", raw=True), Stream)
