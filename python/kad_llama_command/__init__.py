"""The command `kad-llama`, outside the package so that it can say in one line why the package cannot be imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command; an unusable installation is an error message, not a traceback."""
    try:
        from kad_llama.cli import main as command
    except ImportError as error:
        print(f"kad-llama: error: {error}", file=sys.stderr)
        return 1
    return command()
