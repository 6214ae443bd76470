"""The command `kad-llama`. Heavy modules are imported where they are used, so that --help is quick."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from kad_llama.cli import answer, bench, chat, demo, evaluate, explain, figures, inspect, output, perplexity
from kad_llama.cli import arguments as flags
from kad_llama.errors import KadError

BROKEN_PIPE = 141  # the shell's number for a reader that left


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        The arguments without the program's name; those of the process when None.

    Returns
    -------
    int
        Exit status: 0, 1 after an error, 2 after a wrong usage, 130 after Ctrl-C, 141 when the reader has gone.
    """
    output.prepare()
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that left is still handled
        return status
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except KadError as error:
        output.error(str(error))
        return 1
    except KeyboardInterrupt:
        return answer.INTERRUPTED


def _run(argv: list[str]) -> int:
    commands = {
        "inspect": _inspect,
        "rules": _rules,
        "explain": _explain,
        "perplexity": _perplexity,
        "bench": _bench,
        "eval": _eval,
        "figures": _figures,
    }
    try:
        return commands[argv[0]](argv[1:]) if argv and argv[0] in commands else _answer(argv)
    except SystemExit as leaving:  # argparse: after --help, and after a usage error
        return leaving.code if isinstance(leaving.code, int) else 1


def _answer(argv: list[str]) -> int:
    command = flags.parser()
    arguments = command.parse_args(argv)
    if arguments.version:
        return _version()
    flags.check(command, arguments)
    if arguments.demo:
        return demo.run(arguments)
    text = answer.read_prompt(arguments)
    if text is None and (arguments.json or arguments.raw):
        flag = "--json" if arguments.json else "--raw"
        command.error(f"{flag} is for one answer, and there is no prompt: use -p TEXT, -f FILE or a pipe")
    with answer.open_from(arguments) as kad:
        return chat.Chat(kad, arguments).run() if text is None else answer.one_answer(kad, text, arguments)


def _explain(argv: list[str]) -> int:
    command = flags.explain_parser()
    arguments = command.parse_args(argv)
    if arguments.version:
        return _version()
    if arguments.demo:
        command.error("--demo answers; it explains nothing: use -m FILE and -a FILE")
    flags.check(command, arguments)
    return explain.run(arguments)


def _perplexity(argv: list[str]) -> int:
    command = flags.perplexity_parser()
    arguments = command.parse_args(argv)
    arguments.demo = arguments.raw = False
    arguments.system = None
    arguments.no_spec = arguments.rule == "base" and arguments.aligned is None  # then the base is measured alone
    flags.check(command, arguments)
    if arguments.ctx_size < 4:
        command.error(f"-c {arguments.ctx_size}: a window has a first half and a second; expected at least 4 tokens")
    return perplexity.run(arguments)


def _bench(argv: list[str]) -> int:
    command = flags.bench_parser()
    arguments = command.parse_args(argv)
    arguments.raw = arguments.no_spec = False
    arguments.system = arguments.file = None
    flags.check(command, arguments)
    if arguments.rule == "aligned":
        command.error("--rule aligned runs the aligned model alone, which every bench measures; name another rule")
    if arguments.demo:
        arguments.model, arguments.aligned = map(str, demo.models())
    return bench.run(arguments)


def _eval(argv: list[str]) -> int:
    command = evaluate.parser()
    arguments = command.parse_args(argv)
    evaluate.check(command, arguments)
    return evaluate.run(arguments)


def _figures(argv: list[str]) -> int:
    command = figures.parser()
    arguments = command.parse_args(argv)
    figures.check(command, arguments)
    return figures.run(arguments)


def _inspect(argv: list[str]) -> int:
    command = flags.inspect_parser()
    arguments = command.parse_args(argv)
    if not (arguments.model or arguments.aligned):
        command.error("nothing to inspect: give -m FILE, -a FILE or both")
    return inspect.run(arguments)


def _rules(argv: list[str]) -> int:
    flags.rules_parser().parse_args(argv)
    from kad_llama.rules import RULES

    rows = [
        [
            rule.name,
            rule.formula,
            "-" if rule.threshold is None else f"{rule.threshold:g}",
            "-" if rule.low is None or rule.high is None else f"{rule.low:g} to {rule.high:g}",
            rule.source,
        ]
        for rule in RULES.values()
    ]
    output.table(rows, ["rule", "what is kept", "t", "range", "source"])
    print(
        "\nt is --threshold. p: base, q: aligned, r: reference model. The base keeps S: pi = p on S, + (1 - p(S)) q.\n"
        "The aligned model keeps T, and the base gets the rest: pi = q on T, + (1 - q(T)) p."
    )
    return 0


def _version() -> int:
    from importlib.metadata import PackageNotFoundError, version

    import kad_llama

    def package(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed as a package"

    info = kad_llama.library_info()
    print(f"kad-llama {package('kad-llama')}")
    print(f"llama-cpp-python {package('llama-cpp-python')}")
    print(f"llama.cpp {_version_text(info.loaded_llama_version, info.loaded_llama_commit)}")
    print(f"built against {_version_text(info.built_llama_version, info.built_llama_commit)}")
    print(f"backends: {info.backends}")
    return 0


def _version_text(version: str, commit: str) -> str:
    return (version or "(version unknown)") + (f" (commit {commit})" if commit else "")


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere instead of complaining about a reader that left."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
