"""From messages to the token ids that each model starts from.

Two shapes of prompt. An aligned model gets its own chat template. A base model has none worth the name, so across
vocabularies it gets a plain transcript; with equal vocabularies both models get the same ids, the aligned model's.

Message contents never become special tokens: a user who types a turn marker has typed text. A rendered template no
longer knows what was the user's, so contents are marked while rendering, and the marks tell which spans are text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from kad_llama.errors import PromptError

__all__ = ["DEFAULT_BASE_TEMPLATE", "Message", "Prompt", "Vocabulary", "build", "check_messages", "turn_stops"]

Message = dict[str, str]

ROLES = ("system", "user", "assistant")

# The transcript for a base model. It ends without a space: most vocabularies put the space into the next word.
DEFAULT_BASE_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] | trim }}\n\n"
    "{% elif message['role'] == 'user' %}Question: {{ message['content'] | trim }}\n"
    "{% else %}Answer: {{ message['content'] | trim }}\n\n"
    "{% endif %}{% endfor %}Answer:"
)

# Unicode sets these 32 aside for use inside a program; they stand for nothing and are no white space.
_NONCHARACTERS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))

# What turn markers look like, where a file defines them as ordinary-looking tokens.
_MARKER = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]")

# What C's isspace() takes for white space; llama.cpp strips it around some special tokens.
_C_SPACE = " \t\n\v\f\r"


class Vocabulary(Protocol):
    """What a prompt needs to know of one model's vocabulary."""

    @property
    def specials(self) -> Sequence[tuple[str, int]]:
        """Spelling and id of every control token: those that only ``tokenize(..., special=True)`` reads as tokens."""

    @property
    def bos(self) -> int:
        """Id of the beginning of a text, -1 when there is none."""

    @property
    def eos(self) -> int:
        """Id of the end of a text, -1 when there is none."""

    @property
    def bos_text(self) -> str:
        """Spelling of ``bos``, "" when there is none."""

    @property
    def eos_text(self) -> str:
        """Spelling of ``eos``, "" when there is none."""

    @property
    def add_bos(self) -> bool:
        """Whether the model wants a BOS before its prompt."""

    def tokenize(self, text: str | bytes, special: bool) -> list[int]:
        """Ids of `text`, without a BOS of its own. `special` reads special-token spellings as tokens."""


@dataclass(frozen=True)
class Prompt:
    """What the models start from. Text and ids are None where that model is absent."""

    base_text: str | None = None
    base_ids: list[int] | None = None
    aligned_text: str | None = None
    aligned_ids: list[int] | None = None
    stops: list[str] = field(default_factory=list)


def build(
    prompt: str | Sequence[Mapping[str, str]],
    *,
    vocab_base: Vocabulary | None,
    vocab_aligned: Vocabulary | None,
    equal: bool,
    aligned_template: str | None,
    base_template: str | None = None,
    raw: bool = False,
) -> Prompt:
    """Render and tokenise a prompt for the models that are there.

    Parameters
    ----------
    prompt
        One user message as a str, or chat messages: dicts with `role` (system, user, assistant) and `content`.
    vocab_base, vocab_aligned
        The vocabularies; None for a model that is absent. One of them must be there.
    equal
        Whether the vocabularies are equal; then both models get the same ids unless `base_template` is given.
    aligned_template
        The aligned model's chat template (Jinja); None or "" when its file has none.
    base_template
        A Jinja template for the base's prompt instead of the default.
    raw
        Both models get the text as it stands, special-token spellings included; no template, no stop strings.

    Raises
    ------
    PromptError
        For a prompt of the wrong shape, and for a template that fails or refuses it.
    """
    if vocab_base is None and vocab_aligned is None:
        raise PromptError("no vocabulary was given: a prompt needs the base's, the aligned model's or both")
    if raw:
        return _raw(prompt, vocab_base, vocab_aligned)
    messages = check_messages(prompt)
    transcript = base_template or DEFAULT_BASE_TEMPLATE

    stops: list[str] = []
    base_text = base_ids = aligned_text = aligned_ids = None
    if vocab_aligned is not None:
        aligned_text, aligned_ids = _chat(messages, aligned_template or transcript, vocab_aligned)
        if not aligned_template:
            stops = turn_stops(transcript, vocab_aligned)
    if vocab_base is not None:
        if equal and vocab_aligned is not None and aligned_ids is not None and not base_template:
            base_text, base_ids = aligned_text, list(aligned_ids)
        else:
            base_text, base_ids = _chat(messages, transcript, vocab_base)
            stops = turn_stops(transcript, vocab_base)
    return Prompt(base_text, base_ids, aligned_text, aligned_ids, stops)


def check_messages(prompt: object) -> list[Message]:
    """The prompt as a list of messages, checked. Raises PromptError naming the index and the value."""
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise PromptError(f"prompt is a {type(prompt).__name__}: expected a str or a list of messages")
    if not prompt:
        raise PromptError("prompt is an empty list: expected at least one message, the last one a user's")
    messages = [_check_message(index, message) for index, message in enumerate(prompt)]
    if messages[-1]["role"] != "user":
        raise PromptError(
            f"message {len(messages) - 1} has the role {messages[-1]['role']!r}: the last message must be a user's"
        )
    return messages


def _check_message(index: int, message: object) -> Message:
    if not isinstance(message, Mapping):
        raise PromptError(f"message {index} is {message!r}: expected a dict with 'role' and 'content'")
    for name in ("role", "content"):
        if name not in message:
            raise PromptError(f"message {index} has no {name!r}: expected a dict with 'role' and 'content'")
    for name in message:
        if name not in ("role", "content"):
            raise PromptError(f"message {index} has an unknown key {name!r}: expected 'role' and 'content' only")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(f"message {index} has the role {role!r}: expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise PromptError(f"message {index} has a content of type {type(content).__name__}: expected a str")
    _check_text(content, f"message {index}")
    return {"role": role, "content": content}


def _check_text(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what} holds a lone surrogate, {text[error.start]!r}, at character {error.start}: "
            "expected text that UTF-8 can encode"
        ) from None


def turn_stops(template: str, vocab: Vocabulary) -> list[str]:
    """The stop strings of a transcript: what stands between an answer and the user's next turn.

    A base model that has answered goes on to invent the next question. The marker is found by rendering a probe, so
    that custom templates have theirs. A marker made of special tokens (ChatML and its kin) is none: a control token
    is never drawn, and its spelling would never be met in the text.
    """
    answer, question = "kad-probe-answer", "kad-probe-question"
    probe = [
        {"role": "user", "content": "kad-probe-first"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": question},
    ]
    try:
        rendered = _formatter(template, vocab)(probe)
    except PromptError:
        return []  # a template for a single question has no turns to mark
    _, found, rest = rendered.partition(answer)
    between, found_next, _ = rest.partition(question)
    marker = between.strip()
    if not (found and found_next and marker) or any(spelling in marker for spelling, _ in vocab.specials if spelling):
        return []
    # One line is enough to know the turn is over, and a model that forgets the empty line before it still stops.
    starts_line = "\n" in between[: between.index(marker)]
    return [("\n" if starts_line else "") + marker.splitlines()[0].rstrip()]


def _raw(prompt: object, vocab_base: Vocabulary | None, vocab_aligned: Vocabulary | None) -> Prompt:
    if not isinstance(prompt, str):
        raise PromptError(f"raw=True with a prompt of type {type(prompt).__name__}: a raw prompt must be a str")
    _check_text(prompt, "the prompt")

    def ids(vocab: Vocabulary | None) -> list[int] | None:
        return None if vocab is None else _one_bos(vocab.tokenize(prompt, special=True), vocab)

    base_ids, aligned_ids = ids(vocab_base), ids(vocab_aligned)
    if base_ids == [] or aligned_ids == []:
        raise PromptError("the raw prompt '' has no tokens: expected text, since this model takes no BOS")
    return Prompt(
        None if base_ids is None else prompt, base_ids, None if aligned_ids is None else prompt, aligned_ids, []
    )


def _one_bos(ids: list[int], vocab: Vocabulary) -> list[int]:
    """Begin with a BOS where the model wants one, unless the template has written it."""
    if vocab.add_bos and vocab.bos >= 0 and ids[:1] != [vocab.bos]:
        return [vocab.bos, *ids]
    return ids


# ---- Rendering ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=16)
def _compiled(template: str, bos_text: str, eos_text: str) -> Any:
    # Imported here: llama_cpp loads libllama, which the command's --help has no use for.
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    return Jinja2ChatFormatter(template, eos_token=eos_text, bos_token=bos_text, add_generation_prompt=True)


def _formatter(template: str, vocab: Vocabulary) -> Callable[[list[Message]], str]:
    def render(messages: list[Message]) -> str:
        # A template is a program from a file: whatever it raises says that it refuses these messages.
        try:
            formatter = _compiled(template, vocab.bos_text, vocab.eos_text)
            return str(formatter(messages=messages, enable_thinking=False).prompt)
        except Exception as error:
            raise PromptError(f"the chat template refuses these messages: {type(error).__name__}: {error}") from error

    return render


def _chat(messages: list[Message], template: str, vocab: Vocabulary) -> tuple[str, list[int]]:
    """Text and ids of the rendered messages; contents are plain text whatever they spell."""
    render = _formatter(template, vocab)
    text = render(messages)
    _check_text(text, "the rendered prompt")
    spans = _user_spans(messages, render, text)
    if spans is not None:
        ids = _tokenize_around(text, spans, vocab)
    elif _cannot_forge(messages, render, text, vocab):
        ids = vocab.tokenize(text, special=True)
    else:
        raise PromptError(
            "a message spells a special token, or part of one, and the chat template rewrites messages, so that what "
            "is the user's text can no longer be told from the template's: take the special token out of the message"
        )
    ids = _one_bos(ids, vocab)
    if not ids:
        raise PromptError("the rendered prompt has no tokens: expected a template that writes the messages")
    return text, ids


def _user_spans(messages: list[Message], render: Callable[[list[Message]], str], text: str) -> list[range] | None:
    """Where message contents lie in the rendered text, or None when the template rewrites them.

    Each content is rendered between two marks. They stand inside its surrounding white space, so that a template that
    trims does the same to marked text. The answer is trusted only if the text without marks is the ordinary
    rendering and every span is a whole content.
    """
    free = [mark for mark in _NONCHARACTERS if not any(mark in message["content"] for message in messages)]
    if len(free) < 2 or any(mark in text for mark in free[:2]):
        return None
    opening, closing = free[:2]
    cores = {message["content"].strip() for message in messages}

    def marked(content: str) -> str:
        core = content.strip()
        return content.replace(core, opening + core + closing, 1) if core else content

    try:
        rendering = render([{**message, "content": marked(message["content"])} for message in messages])
    except PromptError:
        return None
    spans: list[range] = []
    plain: list[str] = []
    length, start = 0, None
    for character in rendering:
        if character == opening:
            if start is not None:
                return None
            start = length
        elif character == closing:
            if start is None:
                return None
            spans.append(range(start, length))
            start = None
        else:
            plain.append(character)
            length += 1
    if start is not None or "".join(plain) != text:
        return None
    return spans if all(text[span.start : span.stop] in cores for span in spans) else None


def _cannot_forge(
    messages: list[Message], render: Callable[[list[Message]], str], text: str, vocab: Vocabulary
) -> bool:
    """Whether ordinary tokenising is safe although the user's spans are unknown.

    Two conditions, both cautious: no content holds, begins, ends or lies inside a special spelling; and the rendering
    has just the special tokens that it has with harmless contents (a template that deletes text could join two
    halves).
    """
    try:
        harmless = render([{**message, "content": "x"} for message in messages])
    except PromptError:
        return False
    spellings = [spelling for spelling, _ in vocab.specials if spelling] + _markers(harmless, vocab)
    if any(_touches(message["content"], spelling) for message in messages for spelling in spellings):
        return False
    return _specials_in(text, vocab) == _specials_in(harmless, vocab)


def _touches(content: str, spelling: str) -> bool:
    core = content.strip()
    if spelling in content or (core and core in spelling):
        return True
    return any(content.endswith(spelling[:n]) or content.startswith(spelling[-n:]) for n in range(1, len(spelling)))


def _specials_in(text: str, vocab: Vocabulary) -> list[int]:
    return [piece for piece in _split(text, [], vocab) if isinstance(piece, int)]


# ---- Tokenising around what the user wrote -----------------------------------------------------------------------


def _tokenize_around(text: str, spans: list[range], vocab: Vocabulary) -> list[int]:
    """Ids of a text in which special spellings count everywhere but in `spans`.

    llama.cpp tokenises the text between two special tokens by itself, prefix included. So cutting at the same
    places and tokenising the rest without special tokens gives its ids, but for the cuts that spans forbid.
    """
    ids: list[int] = []
    cuts = _cuts(text, spans, vocab)
    for piece in _split(text, spans, vocab):
        if isinstance(piece, int):
            ids.append(piece)
            continue
        ends = [*(cut for cut in cuts if piece.start < cut < piece.stop), piece.stop]
        for start, end in zip([piece.start, *ends], ends, strict=False):
            ids += vocab.tokenize(text[start:end], special=False)
    return ids


def _cuts(text: str, spans: list[range], vocab: Vocabulary) -> list[int]:
    """Where user text must be cut so that it spells none of the template's user-defined tokens.

    Some files define their turn markers as user-defined tokens, which llama.cpp reads as tokens even with special
    parsing off. A marker cut after its first character is text. Only what the template itself writes is a marker.
    """
    own = list(text)
    for span in spans:
        own[span.start : span.stop] = " " * len(span)
    cuts: set[int] = set()
    for spelling in _markers("".join(own), vocab):
        at = text.find(spelling)
        while at >= 0:
            if _meets(at, at + len(spelling), spans):
                cuts.add(at + 1)
            at = text.find(spelling, at + 1)
    return sorted(cuts)


def _markers(own: str, vocab: Vocabulary) -> list[str]:
    """The user-defined tokens that a template writes: one token wherever they stand, with special parsing off."""

    def is_token(spelling: str) -> bool:
        ids = vocab.tokenize(spelling, special=False)
        return len(ids) == 1 and ids[0] in vocab.tokenize(f"x{spelling}x", special=False)

    return [spelling for spelling in sorted(set(_MARKER.findall(own))) if is_token(spelling)]


def _split(text: str, spans: list[range], vocab: Vocabulary) -> list[range | int]:
    """Plain pieces (where they lie) and special tokens (ids), in order.

    llama.cpp's order: the longest spelling first (in bytes), each taken from left to right out of the text that
    longer ones have left. An occurrence that shares a character with a span is text, at its border too.
    """
    pieces: list[range | int] = [range(len(text))]
    by_length = sorted(vocab.specials, key=lambda special: len(special[0].encode()), reverse=True)
    for spelling, token in by_length:
        if not spelling or spelling not in text:
            continue
        before, after = _strips(spelling, token, vocab)
        cut: list[range | int] = []
        for piece in pieces:
            if isinstance(piece, int):
                cut.append(piece)
                continue
            rest = piece
            for at in _occurrences(text, spelling, piece, spans):
                left = range(rest.start, at)
                cut += [_without_space(text, left, at_end=True) if before else left, token]
                rest = range(at + len(spelling), piece.stop)
                if after:
                    rest = _without_space(text, rest, at_end=False)
            cut.append(rest)
        pieces = [piece for piece in cut if isinstance(piece, int) or piece]
    return pieces


def _occurrences(text: str, spelling: str, within: range, spans: list[range]) -> Iterator[int]:
    at = text.find(spelling, within.start, within.stop)
    while at >= 0:
        end = at + len(spelling)
        if _meets(at, end, spans):
            at = text.find(spelling, at + 1, within.stop)
        else:
            yield at
            at = text.find(spelling, end, within.stop)


def _meets(start: int, end: int, spans: list[range]) -> bool:
    """Whether text[start:end] shares a character with a span."""
    return any(start < span.stop and span.start < end for span in spans)


def _strips(spelling: str, token: int, vocab: Vocabulary) -> tuple[bool, bool]:
    """Whether this special token swallows the white space before and after it (Phi-3's do), found by trying."""
    letter, left, right = (vocab.tokenize(text, special=False) for text in ("x", "x \n", " \nx"))
    before = left != letter and vocab.tokenize("x \n" + spelling, special=True) == [*letter, token]
    after = right != letter and vocab.tokenize(spelling + " \nx", special=True) == [token, *letter]
    return before, after


def _without_space(text: str, piece: range, *, at_end: bool) -> range:
    inside = text[piece.start : piece.stop]
    if at_end:
        return range(piece.start, piece.start + len(inside.rstrip(_C_SPACE)))
    return range(piece.stop - len(inside.lstrip(_C_SPACE)), piece.stop)
