"""The interactive chat: streams answers, keeps the conversation, survives Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

from kad_llama.cli import answer, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import ContextError, KadError

if TYPE_CHECKING:
    from kad_llama.generation import Generation
    from kad_llama.session import KadLlama

HELP = """\
  /help   this list
  /reset  forget the conversation
  /stats  statistics of the last answer
  /quit   leave, as Ctrl-D does
Ctrl-C stops an answer and keeps what was said; twice at the prompt it leaves."""


class Chat:
    """One conversation on a terminal."""

    def __init__(self, kad: KadLlama, arguments: argparse.Namespace) -> None:
        self._kad = kad
        self._arguments = arguments
        self._last: Generation | None = None
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message."""
        system = self._arguments.system
        self.messages = [] if system is None else [{"role": "system", "content": system}]

    @property
    def turn(self) -> int:
        """Number of answers so far: the text number of the next."""
        return sum(message["role"] == "assistant" for message in self.messages)

    def run(self) -> int:
        """Read and answer until the person leaves. Answers the exit status."""
        _use_readline()
        output.note("Type a message. /help lists the commands; Ctrl-D leaves.")
        leaving = False
        while True:
            try:
                line = _ask()
            except EOFError:
                output.note("")
                return 0
            except KeyboardInterrupt:
                # One that came too late to stop an answer must not cost the conversation.
                output.note("" if leaving else "\n  Ctrl-C again, or Ctrl-D, leaves.")
                if leaving:
                    return 0
                leaving = True
                continue
            leaving = False
            if line.startswith("/"):
                if self._command(line.strip()):
                    return 0
            elif line.strip():
                self._answer(line)

    def _command(self, line: str) -> bool:
        """Obey a command. Answers whether to leave."""
        if line == "/quit":
            return True
        if line == "/reset":
            self.reset()
            output.note("  The conversation is forgotten.")
        elif line == "/stats":
            if self._last is None:
                output.note("  No answer yet.")
            else:
                output.show_stats(self._last)
        elif line == "/help":
            output.note(HELP)
        else:
            output.note(f"  Unknown command {line.split()[0]!r}.\n{HELP}")
        return False

    def _answer(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})
        keywords = {**flags.answer_keywords(self._arguments), "text_number": self.turn}
        try:
            result, interrupted = answer.stream_text(self._kad, list(self.messages), self._arguments.color, keywords)
        except KeyboardInterrupt:
            self.messages.pop()
            output.note("  Stopped before the first word: your message was dropped.")
            return
        except KadError as error:
            self.messages.pop()
            output.error(str(error))
            output.note("  Your message was dropped; the conversation stands as before.")
            if isinstance(error, ContextError):
                output.note("  /reset starts a new one.")
            return
        self._last = result
        self._keep(result, interrupted)
        if self._arguments.stats:
            output.show_stats(result)

    def _keep(self, result: Generation, interrupted: bool) -> None:
        """Put the answer, partial ones too, into the conversation; a turn without one is dropped."""
        if not result.text.strip():
            self.messages.pop()
            reason = "Stopped before the first word" if interrupted else "The answer is empty"
            output.note(f"  {reason}: your message was dropped, the conversation stands as before.")
            return
        self.messages.append({"role": "assistant", "content": result.text})
        if interrupted:
            output.note("  Stopped. What was said stays in the conversation.")
        elif result.finish_reason == "length":
            output.note(f"  Cut after {result.stats.tokens} tokens (-n, -c).")


def _use_readline() -> None:
    """Line editing and history for input(), where Python has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401


def _ask() -> str:
    """A line from the person. The prompt must not land in a file that standard output was sent to."""
    if output.is_terminal(sys.stdout):
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()
