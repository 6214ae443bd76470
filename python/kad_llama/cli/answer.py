"""One answer: open the models, read the prompt, stream the text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kad_llama.cli import arguments as flags
from kad_llama.cli import output
from kad_llama.errors import KadError, PromptError

if TYPE_CHECKING:
    from kad_llama.generation import Generation
    from kad_llama.session import KadLlama

INTERRUPTED = 130  # the shell's number for Ctrl-C


def open_engine(base: str | Path | None, aligned: str | Path | None, **keywords: Any) -> KadLlama:
    """KadLlama with a progress bar."""
    from kad_llama.session import KadLlama

    names = " and ".join(Path(p).name for p in (base, aligned, keywords.get("reference")) if p is not None)
    with output.loading(names) as progress:
        return KadLlama(base, aligned, progress=progress, **keywords)


def open_from(arguments: argparse.Namespace) -> KadLlama:
    """The models that these flags ask for, and no other."""
    base = arguments.model if flags.needs_base(arguments) else None
    aligned = arguments.aligned if flags.needs_aligned(arguments) else None
    return open_engine(base, aligned, **flags.engine_keywords(arguments))


def read_prompt(arguments: argparse.Namespace) -> str | None:
    """The prompt of -p, -f or piped standard input; None when there is none and a person sits at the terminal."""
    if arguments.prompt is not None:
        return str(arguments.prompt)
    if arguments.file is not None and arguments.file != "-":
        return _without_last_newline(_decode(_read_file(arguments.file), arguments.file), arguments.raw)
    if arguments.file is None and output.is_terminal(sys.stdin):
        return None
    if sys.stdin is None or sys.stdin.closed:
        raise PromptError("no prompt: standard input is closed; use -p TEXT or -f FILE")
    source = getattr(sys.stdin, "buffer", None)
    text = sys.stdin.read() if source is None else _decode(source.read(), "standard input")
    if not text.strip():
        raise PromptError("no prompt: standard input is empty; use -p TEXT or -f FILE")
    return _without_last_newline(text, arguments.raw)


def _read_file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PromptError(f"cannot read the prompt file {path!r}: {error.strerror}") from error


def _decode(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the prompt in {where} is not UTF-8: byte {error.start} is {data[error.start]:#04x}"
        ) from None


def _without_last_newline(text: str, raw: bool) -> str:
    # An editor's last newline is no part of a question; a raw prompt is taken as it stands.
    return text if raw else text.removesuffix("\n").removesuffix("\r")


def messages_for(text: str, arguments: argparse.Namespace) -> str | list[dict[str, str]]:
    """The prompt as the engine takes it: with the system message, if there is one."""
    if arguments.system is None:
        return text
    return [{"role": "system", "content": arguments.system}, {"role": "user", "content": text}]


def stream_text(
    kad: KadLlama, prompt: str | list[dict[str, str]], color: str, keywords: dict[str, Any]
) -> tuple[Generation, bool]:
    """Stream one answer to standard output. Answers what was generated, and whether Ctrl-C ended it."""
    writer = output.TextWriter(color)
    interrupted = False
    stream = kad.stream(prompt, **keywords)
    try:
        with stream:
            for token in stream:
                writer.token(token)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        writer.end()
    return stream.result, interrupted


def one_answer(kad: KadLlama, text: str, arguments: argparse.Namespace) -> int:
    """Answer once, as text or as JSON. Answers the exit status."""
    prompt, keywords = messages_for(text, arguments), flags.answer_keywords(arguments)
    if arguments.json:
        result, interrupted = _collect(kad, prompt, keywords)
        output.dump(output.generation_object(result))
    else:
        result, interrupted = stream_text(kad, prompt, arguments.color, keywords)
    if arguments.stats:
        output.show_stats(result)
    return INTERRUPTED if interrupted else 0


def _collect(kad: KadLlama, prompt: str | list[dict[str, str]], keywords: dict[str, Any]) -> tuple[Generation, bool]:
    stream = kad.stream(prompt, logprobs=True, **keywords)
    try:
        with stream:
            for _ in stream:
                pass
    except KeyboardInterrupt:
        return stream.result, True
    except KadError as error:  # what was said is not lost
        output.dump(output.generation_object(stream.result) | {"error": str(error)})
        raise
    return stream.result, False
