"""The model "kad" of EleutherAI's lm-evaluation-harness: its tasks, answered by a pair.

``python -m kad_llama.lm_eval`` is the harness' own command with this model in it. In a program, importing `KadLM` registers
the name for ``lm_eval.simple_evaluate(model="kad", ...)``. The harness comes with ``pip install 'kad-llama[lm-eval]'``.

>>> from kad_llama.lm_eval import KadLM  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

__all__ = ["KadLM"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: `python -m kad_llama.lm_eval` comes by here, and says itself what is not installed.
    if name == "KadLM":
        from kad_llama.lm_eval.model import KadLM

        return KadLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
