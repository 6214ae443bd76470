"""Does Ctrl-C stop a prompt and a text at once, and is the instance as good as new afterwards?

Every case sends a real SIGINT to a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Tiny = Callable[..., Path]

# What every case begins with: two models, and a SIGINT that comes so many seconds from now.
HEAD = """
import json, os, signal, sys, threading, time
from kad_llama import KadLlama
from kad_llama.errors import StateError

def interrupt(seconds):
    sent = []
    def send():
        time.sleep(seconds)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=send, daemon=True).start()
    return sent

def report(**values):
    print(json.dumps(values))

signal.signal(signal.SIGINT, signal.default_int_handler)
base, aligned = sys.argv[1:3]
LONG = "The people of the town went to the market. " * 250
"""


@pytest.fixture(scope="module")
def slow_pair(tiny: Tiny) -> tuple[Path, Path]:
    """Slow enough that a signal meets a pass: some ten milliseconds a token. Q8_0, so that texts are comparable."""
    return tiny("llama", n_layer=12, hidden=512, n_ctx=8192), tiny("llama", noise=0.3, n_ctx=8192, chat_template=True)


def run(body: str, pair: tuple[Path, Path], timeout: int = 90) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-c", HEAD + body, *map(str, pair)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    ended = signal.Signals(-run.returncode).name if run.returncode < 0 else f"exit {run.returncode}"
    assert run.returncode == 0, f"{ended}: {run.stderr[-2000:]}"
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("slow", ["base", "aligned"])
def test_in_prefill(slow_pair: tuple[Path, Path], slow: str) -> None:
    """Also where one model's block is done when the other's is cut short."""
    result = run(
        """
with KadLlama(base, aligned, n_ctx=8192, n_threads=1) as kad:
    fresh = kad.generate("The sky", raw=True, max_tokens=10, seed=3).text
    sent = interrupt(0.3)
    stream = kad.stream(LONG, raw=True)
    try:
        next(stream)
        raise SystemExit("the prompt was evaluated before the signal came")
    except KeyboardInterrupt:
        waited = time.perf_counter() - sent[0]
    after = kad.generate("The sky", raw=True, max_tokens=10, seed=3).text
    out = stream.result
    report(waited=waited, same=fresh == after, reason=out.finish_reason, text=out.text, tokens=out.stats.tokens)
""",
        slow_pair if slow == "base" else slow_pair[::-1],
    )
    assert result["waited"] < 2
    assert result["same"], "another text after the interrupt"
    assert (result["reason"], result["text"], result["tokens"]) == ("interrupted", "", 0)


@pytest.mark.parametrize("mode", ["draft=3", "draft=0", "spec=False"])
def test_in_generation(slow_pair: tuple[Path, Path], mode: str) -> None:
    """What was said is kept, and is the beginning of the whole text."""
    result = run(
        f"""
with KadLlama(base, aligned, n_ctx=512, n_threads=1) as kad:
    whole = kad.generate("The sky", raw=True, max_tokens=100, seed=3, temperature=1.5, {mode}).text
    sent, said = None, []
    stream = kad.stream("The sky", raw=True, max_tokens=100, seed=3, temperature=1.5, {mode})
    try:
        for token in stream:
            said.append(token.text)
            sent = interrupt(0.05) if sent is None else sent
        raise SystemExit("the text ended before the signal came")
    except KeyboardInterrupt:
        waited = time.perf_counter() - sent[0]
    out = stream.result
    again = kad.generate("The sky", raw=True, max_tokens=100, seed=3, temperature=1.5, {mode}).text
    report(waited=waited, again=again == whole, begins=whole.startswith(out.text), n=len(said), reason=out.finish_reason,
           joined="".join(said) == out.text[: len("".join(said))], kept=len(out.tokens))
""",
        slow_pair,
    )
    assert result["waited"] < 2
    assert result["again"] and result["begins"] and result["joined"]
    assert result["kept"] >= result["n"] >= 1
    assert result["reason"] == "interrupted"


def test_interrupted_generate(slow_pair: tuple[Path, Path]) -> None:
    """generate() raises, and the next calls, in this thread and in another, find the instance free."""
    result = run(
        """
from concurrent.futures import ThreadPoolExecutor
with KadLlama(base, aligned, n_ctx=512, n_threads=1) as kad:
    whole = kad.generate("The sky", raw=True, max_tokens=10, seed=3).text
    sent = interrupt(0.2)
    try:
        kad.generate("The sky", raw=True, max_tokens=500, seed=5, temperature=2.0)
        raise SystemExit("ended too soon")
    except KeyboardInterrupt:
        waited = time.perf_counter() - sent[0]
    same = kad.generate("The sky", raw=True, max_tokens=10, seed=3).text == whole
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(kad.generate, "The sky", raw=True, max_tokens=10, seed=3).result(30).text == whole
report(waited=waited, same=same, other=other, closed=kad.closed)
""",
        slow_pair,
    )
    assert result["waited"] < 2
    assert result["same"] and result["other"] and result["closed"]


def test_while_loading(tiny_pair: tuple[Path, Path]) -> None:
    result = run(
        """
def slowly(fraction):
    if fraction < 1:
        interrupt(0)
        time.sleep(0.5)
try:
    KadLlama(base, aligned, n_ctx=64, progress=slowly)
    raise SystemExit("loaded")
except KeyboardInterrupt:
    pass
with KadLlama(base, aligned, n_ctx=64, n_threads=1) as kad:
    report(tokens=kad.generate("x", raw=True, max_tokens=2, seed=1, draft=0).stats.tokens)
""",
        tiny_pair,
    )
    assert result["tokens"] <= 2


def test_in_another_thread(slow_pair: tuple[Path, Path]) -> None:
    """Python handles signals in the main thread: a call in another one runs to its end."""
    result = run(
        """
with KadLlama(base, aligned, n_ctx=512, n_threads=1) as kad:
    whole = kad.generate("The sky", raw=True, max_tokens=40, seed=3).text
    texts = []
    thread = threading.Thread(target=lambda: texts.append(kad.generate("The sky", raw=True, max_tokens=40, seed=3).text))
    thread.start()
    interrupt(0.02)
    interrupted = False
    try:
        while not texts:
            time.sleep(0.01)
    except KeyboardInterrupt:
        interrupted = True
    thread.join()
    report(texts=texts, whole=whole, interrupted=interrupted)
""",
        slow_pair,
    )
    assert result["texts"] == [result["whole"]]


def test_ignored_signal_stays_ignored(slow_pair: tuple[Path, Path]) -> None:
    """A shell starts background jobs with SIGINT ignored: the terminal's Ctrl-C is not for them."""
    result = run(
        """
signal.signal(signal.SIGINT, signal.SIG_IGN)
with KadLlama(base, aligned, n_ctx=512, n_threads=1) as kad:
    sent = interrupt(0.1)
    out = kad.generate("The sky", raw=True, max_tokens=100, seed=5, temperature=1.5)
    report(sent=len(sent), reason=out.finish_reason)
""",
        slow_pair,
    )
    assert result["reason"] in ("stop", "length")


def test_handler_is_put_back(slow_pair: tuple[Path, Path]) -> None:
    """Between calls the host's handler is the host's; the one that was there is called during a call."""
    result = run(
        """
seen = []
signal.signal(signal.SIGINT, lambda *_: seen.append(1))
with KadLlama(base, aligned, n_ctx=512, n_threads=1) as kad:
    sent = interrupt(0.1)
    try:
        kad.generate("The sky", raw=True, max_tokens=100, seed=5, temperature=1.5)
    except KeyboardInterrupt:
        pass
    during = len(seen)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)
    report(during=during, after=len(seen))
""",
        slow_pair,
    )
    assert result == {"during": 1, "after": 2}


STORM = """
import faulthandler, random
faulthandler.dump_traceback_later(80, exit=True)
dice = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
with KadLlama(base, aligned, n_ctx=128, n_threads=1, n_parallel=3, reproducible=True) as kad:
    whole = kad.generate("The sky", raw=True, max_tokens=8, seed=3).text
    went = stopped = texts = partials = 0
    for i in range(ROUNDS):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-5, 0.012))
                if i % 3 == 2:
                    kad.generate_many(["The sky", "The sea", "The sand"], raw=True, max_tokens=8, seed=3)
                elif i % 3:
                    kad.generate("The sky", raw=True, max_tokens=8, seed=3)
                else:
                    for token in kad.stream("The sky", raw=True, max_tokens=8, seed=3):
                        pass
                went += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt as error:
            stopped += 1
            partial = getattr(error, "partial", None)
            for out in partial if isinstance(partial, list) else [partial]:
                partials += out is not None and out.stats.tokens != len(out.tokens)
        token = partial = out = None
        try:
            texts += kad.generate("The sky", raw=True, max_tokens=8, seed=3).text != whole
        except StateError as error:
            raise SystemExit(f"round {i}: {error}")
report(went=went, stopped=stopped, texts=texts, partials=partials)
"""


@pytest.mark.parametrize("rounds", [60, pytest.param(3000, marks=pytest.mark.long)])
def test_storm(tiny_pair: tuple[Path, Path], rounds: int) -> None:
    """Signals at any moment, also between two lines of Python: the instance is never left locked.

    A timer's signal stands in for Ctrl-C half of the time: it reaches the code between the passes.
    """
    head = """
def alarm(*_):
    os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGALRM, alarm)
"""
    result = run(head + STORM.replace("ROUNDS", str(rounds)), tiny_pair)
    assert result["texts"] == 0, "a text after an interruption was another one"
    assert result["partials"] == 0, "tokens were counted and lost"
    assert result["stopped"] > rounds / 20


@pytest.mark.parametrize(
    "call", ["generate('The sky', raw=True, seed=1)", "generate_many(['The sky'] * 3, raw=True, seed=1)"]
)
def test_close_in_a_signal_handler(slow_pair: tuple[Path, Path], call: str) -> None:
    """Inside a call it lets the call end, then frees the models; it does not wait for itself."""
    result = run(
        f"""
signal.signal(signal.SIGALRM, lambda *_: kad.close())
kad = KadLlama(base, aligned, n_ctx=512, n_threads=1, n_parallel=3)
signal.setitimer(signal.ITIMER_REAL, 0.05)
out = kad.{call.replace("seed=1", "seed=1, max_tokens=400, spec=False")}
tokens = [each.stats.tokens for each in (out if isinstance(out, list) else [out])]
report(tokens=tokens, closed=kad.closed)
""",
        slow_pair,
    )
    assert min(result["tokens"]) > 0 and result["closed"]
