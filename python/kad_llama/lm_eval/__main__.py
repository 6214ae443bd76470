"""`python -m kad_llama.lm_eval`: the harness' command, which knows the model "kad" then.

The harness finds models in its own package and in what a program registers before; it looks for no plug-ins.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from kad_llama.cli import output
from kad_llama.cli.answer import INTERRUPTED
from kad_llama.errors import KadError

_NAMES_A_MODEL = ("-M", "--model", "-C", "--config")
_NEED_NONE = ("ls", "validate", "-h", "--help")


def with_model(argv: Sequence[str]) -> list[str]:
    """The arguments, `--model kad` added where they name no model."""
    words = [word.partition("=")[0] for word in argv]
    if not argv or words[0] in _NEED_NONE or any(word in _NAMES_A_MODEL for word in words):
        return list(argv)
    return [*argv, "--model", "kad"]


def _run_harness() -> None:
    from lm_eval.__main__ import cli_evaluate

    sys.argv[1:] = with_model(sys.argv[1:])
    cli_evaluate()


def main() -> int:
    """Run the harness' command on the arguments of the process. Answers the exit status."""
    output.prepare()
    try:
        from kad_llama.lm_eval.model import KadLM  # noqa: F401  # registers it, or says what is not installed

        _run_harness()
    except KadError as error:
        output.error(str(error))
        return 1
    except KeyboardInterrupt:
        output.note("kad-llama: interrupted; a run with --use_cache FILE goes on where it stopped")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
