"""Several threads at one instance: nobody frees what another one uses. And what an ended text leaves behind."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kad_llama import KadLlama, measure_passes
from kad_llama._binding import lib

PROMPT = "The river runs to the sea, and the sea is never full."


def test_a_stream_is_closed_from_another_thread(tiny_pair: tuple[Path, Path]) -> None:
    """The reading thread comes to its end; the text so far is a beginning of the whole one; the next call works."""
    with KadLlama(*tiny_pair, n_ctx=4096, reproducible=True) as kad:
        whole = kad.generate(PROMPT, raw=True, seed=4, max_tokens=3000)
        for delay in (0.0, 0.01, 0.05):
            stream = kad.stream(PROMPT, raw=True, seed=4, max_tokens=3000)
            raised: list[BaseException] = []

            def read(stream: object = stream, raised: list[BaseException] = raised) -> None:
                try:
                    for _ in stream:  # type: ignore[attr-defined]
                        pass
                except BaseException as error:
                    raised.append(error)

            reader = threading.Thread(target=read)
            reader.start()
            time.sleep(delay)
            stream.close()
            reader.join(10)
            assert not reader.is_alive() and raised == []
            assert stream.result.finish_reason == "interrupted" or len(whole.text) == len(stream.result.text)
            assert whole.text.startswith(stream.result.text.rstrip("\ufffd"))
        assert kad.generate(PROMPT, raw=True, seed=4, max_tokens=3000).text == whole.text


def test_short_calls_wait_for_close(tiny_pair: tuple[Path, Path]) -> None:
    """tokenize() in one thread, close() in another: an error, never freed memory. In a process of its own, to see it die."""
    code = f"""
import threading
from kad_llama import KadLlama
from kad_llama.errors import StateError
for _ in range(20):
    kad = KadLlama({str(tiny_pair[0])!r}, {str(tiny_pair[1])!r}, n_ctx=64)
    def use():
        try:
            while True:
                kad.tokenize("a few words " * 200); kad.token_bytes(65); kad.max_draft; kad.prompt("Hi")
        except StateError:
            pass
    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads: thread.start()
    kad.close()
    for thread in threads: thread.join()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_interrupted_call_hands_over_what_was_said(tiny_pair: tuple[Path, Path]) -> None:
    with KadLlama(*tiny_pair, n_ctx=4096) as kad:
        whole = kad.generate(PROMPT, raw=True, seed=4, max_tokens=3000)
        for part in (2, 4, 8, 16):  # the machine may have been busy before, so that half of that time is too late
            try:
                assert cancelled_after(kad, whole.stats.wall_s / part) < 50, "cancels were not heard"
            except KeyboardInterrupt as error:
                assert error.partial.finish_reason == "interrupted"  # type: ignore[attr-defined]
                assert 0 < len(error.partial.tokens) < 3000  # type: ignore[attr-defined]
                return
    pytest.fail("every cancel came too late")


def cancelled_after(kad: KadLlama, seconds: float) -> int:
    """A long call that another thread cancels, many times; how many it was when the call came to its own end."""
    ended, sent = threading.Event(), 0

    def cancel() -> None:
        nonlocal sent
        ended.wait(seconds)
        while not ended.wait(1e-4):  # one that comes between two passes is not kept
            lib.kad_engine_cancel(kad._engine)
            sent += 1

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        kad.generate(PROMPT, raw=True, seed=4, max_tokens=3000)
    finally:
        ended.set()
        thread.join()
    return sent


def test_rule_aligned_is_the_aligned_model_alone(tiny_cross_pair: tuple[Path, Path]) -> None:
    """A base that is given is not asked, not loaded, and does not stop the text with its transcript's markers."""
    base, aligned = tiny_cross_pair
    with KadLlama(base, aligned, rule="aligned") as both, KadLlama(None, aligned, rule="aligned") as alone:
        assert both.base is not None and both.base.weight_bytes == 0
        prompt = [{"role": "user", "content": "Question: why?"}]
        assert both.prompt(prompt) == alone.prompt(prompt)
        for seed in range(3):
            one, other = (kad.generate(prompt, seed=seed, max_tokens=60) for kad in (both, alone))
            assert (one.text, one.tokens) == (other.text, other.tokens)
            assert one.stats.base_passes == 0


@pytest.mark.parametrize("quantisation", ["Q8_0", "F32"])
def test_a_small_context_is_measured_as_a_large_one(tiny: Callable[..., Path], quantisation: str) -> None:
    """Texts in it may cross 256 cells all the same, and nothing is certified that was not tried."""
    path = tiny("llama", quantisation=quantisation)
    large = measure_passes(path, "base", n_ctx=4096)
    assert measure_passes(path, "base", n_ctx=260) == measure_passes(path, "base", n_ctx=16) == large
    assert large.tested == 16
