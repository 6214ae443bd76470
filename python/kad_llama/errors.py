"""What can go wrong, by name: one exception for every status of kad_llama.h, and one for prompts."""

from __future__ import annotations


class KadError(Exception):
    """Everything that kad-llama raises on purpose. The message names the value and what was expected."""


class InvalidArgumentError(KadError, ValueError):
    """A value out of range, or an unknown name."""


class FileError(KadError, ValueError):
    """A file that is missing, unreadable, truncated or not a usable GGUF."""


class ModelError(KadError, ValueError):
    """A sound GGUF that cannot play the role it was given, an encoder for instance."""


class OutOfMemoryError(KadError, MemoryError):
    """Models and caches do not fit. The message has the figures."""


class ContextError(KadError, ValueError):
    """The prompt is longer than the context. The message has both numbers."""


class EvaluationError(KadError, RuntimeError):
    """llama.cpp could not evaluate a batch."""


class NotANumberError(KadError, ArithmeticError):
    """A model produced NaN or infinite logits, or no possible token."""


class LibraryMismatchError(KadError, ImportError):
    """The libllama in this process is not the one that kad-llama was built against."""


class StateError(KadError, RuntimeError):
    """A call that does not fit the moment: after close(), or while a stream is open."""


class InternalError(KadError, RuntimeError):
    """A defect in kad-llama. Please report it."""


class PromptError(KadError, ValueError):
    """A prompt or a message that cannot be used, or a chat template that refuses it."""
