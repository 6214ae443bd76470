"""An engine that answers from a script, for the tests of the command."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Literal

import pytest

from kad_llama.generation import Generation, Stats, Token

MODELS = ["-m", "base.gguf", "-a", "aligned.gguf"]


def token(text: str, source: Literal["base", "aligned"] = "base") -> Token:
    """A token as the engine would say it."""
    return Token(text, text.encode(), 5, source, -0.5, None, 0.25, "none", None, None, (5,))


class FakeStream:
    """Says a script: tokens, or exceptions to raise in their place."""

    def __init__(self, script: list[Token | BaseException]) -> None:
        self._script = iter(script)
        self._said: list[Token] = []
        self._finish: Literal["stop", "interrupted"] = "stop"

    @property
    def result(self) -> Generation:
        stats = Stats(
            prompt_tokens=9,
            prompt_tokens_aligned=12,
            prompt_cached=0,
            tokens=len(self._said),
            base_passes=2,
            aligned_passes=3,
            reference_passes=0,
            drafted=4,
            accepted=3,
            acceptance_rate=0.75,
            tokens_per_base_pass=1.5,
            deferred_mass=0.5,
            aligned_share=0.25,
            mode="speculative",
            note="",
            tokens_per_second=math.nan,
            prompt_s=0.1,
            wall_s=0.2,
            base_eval_s=0.05,
            aligned_eval_s=0.05,
            reference_eval_s=0.0,
            read_s=0.01,
            draw_s=0.01,
            text_s=0.0,
        )
        return Generation("".join(said.text for said in self._said), list(self._said), self._finish, 7, stats)

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        item = next(self._script)
        if isinstance(item, BaseException):
            self._finish = "interrupted"
            raise item
        self._said.append(item)
        return item

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *error: object) -> None:
        pass


SCRIPT = [token("The sky"), token(" is", "aligned"), token(" blué.")]


class FakeEngine:
    """Stands in for KadLlama; remembers how it was made and called."""

    made: list[FakeEngine]
    scripts: list[list[Any]]

    def __init__(self, base: object, aligned: object, **keywords: Any) -> None:
        self.base_path, self.aligned_path, self.keywords = base, aligned, keywords
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.closed = False
        type(self).made.append(self)
        if keywords["progress"] is not None:
            keywords["progress"](1.0)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def stream(self, prompt: Any, **keywords: Any) -> FakeStream:
        self.calls.append((prompt, keywords))
        scripts = type(self).scripts
        return FakeStream(scripts.pop(0) if scripts else SCRIPT)


@pytest.fixture(name="engine")
def engine_fixture(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    """KadLlama replaced; the scripts that its answers follow go into `engine.scripts`."""
    FakeEngine.made, FakeEngine.scripts = [], []
    module = ModuleType("kad_llama.session")
    module.KadLlama = FakeEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kad_llama.session", module)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return FakeEngine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Pipe(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture(name="typed")
def typed_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A person at the terminal who types these lines; exceptions stand for Ctrl-C and Ctrl-D."""

    def at_terminal(*lines: str | BaseException) -> None:
        script = iter([*lines, EOFError()])

        def read(prompt: str = "") -> str:
            line = next(script)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", read)

    return at_terminal
