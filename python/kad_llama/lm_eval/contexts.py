"""From the harness' strings to prompts and tokens: chats, the seam between context and continuation, what is too long.

A context is raw text for both models, special-token spellings read as tokens, as the harness' own models read it. A rendered
chat is that text too where one template serves both models. Where the base has a prompt of its own (another vocabulary, a
`base_template`, no chat template at all) the text alone would not tell; then the messages behind it are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from kad_llama.errors import ContextError, InvalidArgumentError, PromptError
from kad_llama.prompts import DEFAULT_BASE_TEMPLATE, Prompt
from kad_llama.scoring import Completion, read_completion

if TYPE_CHECKING:
    from kad_llama.session import KadLlama, ModelInfo

__all__ = ["Contexts", "Window", "windows"]

Role = Literal["base", "aligned"]

# Across vocabularies the beginning of a text may take a few tokens more than all of it.
_MARGIN = 16


@dataclass(frozen=True)
class _Chat:
    """Messages that end with a user's, and how the answer begins."""

    messages: list[Mapping[str, str]]
    begun: str


class Contexts:
    """The contexts of one pair."""

    def __init__(self, kad: KadLlama, base_template: str | None) -> None:
        self._kad = kad
        self.role: Role = "base" if kad._speaking_role == "base" else "aligned"
        self._models: dict[Role, ModelInfo] = {}
        if kad.base is not None and kad._asks_base:
            self._models["base"] = kad.base
        if kad.aligned is not None:
            self._models["aligned"] = kad.aligned
        self._control = {token for _, token in kad._vocabularies[self.role].specials}
        own_template = kad.aligned.chat_template if kad.aligned is not None else ""
        self.template = own_template or base_template or DEFAULT_BASE_TEMPLATE
        same = len(self._models) == 1 or (kad.vocab.equal and not base_template)
        self.one_text = bool(own_template) and same
        self._chats: dict[str, _Chat] = {}
        self.templated = False
        self.shortened = 0
        # Requests of one context come one after the other.
        self._tokens = lru_cache(maxsize=1)(lambda context: kad.tokenize(context, role=self.role, special=True))
        self._raw_prompt = lru_cache(maxsize=1)(lambda context: kad.prompt(context, raw=True))

    @property
    def crossed(self) -> bool:
        """Whether two models with different vocabularies run."""
        return len(self._models) == 2 and not self._kad.vocab.equal

    # ---- Chats ----------------------------------------------------------------------------------------------------------

    def render(self, history: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """The text of a chat. Without a generation prompt the last message is the beginning of the answer."""
        messages, begun = list(history), ""
        if not add_generation_prompt:
            if not messages or messages[-1].get("role") != "assistant":
                raise PromptError("the chat has no answer to go on with: expected an assistant's message at its end")
            begun = messages.pop()["content"]
        prompt = self._kad.prompt(messages)
        text = prompt.aligned_text if prompt.aligned_text is not None else prompt.base_text
        context = f"{text}{begun}"
        if not self.one_text:
            self._chats[context] = _Chat(messages, begun)
        return context

    def _chat_prompt(self, chat: _Chat) -> Prompt:
        prompt = self._kad.prompt(chat.messages)
        if not chat.begun:
            return prompt

        def with_answer(ids: list[int] | None, role: Role) -> list[int] | None:
            return None if ids is None else ids + self._kad._tokenize_continuation(chat.begun.encode(), role)

        return replace(
            prompt,
            base_ids=with_answer(prompt.base_ids, "base"),
            aligned_ids=with_answer(prompt.aligned_ids, "aligned"),
        )

    # ---- Prompts --------------------------------------------------------------------------------------------------------

    def prompt(self, context: str, rooms: Mapping[Role, int]) -> Prompt:
        """The prompt of a context that leaves `rooms` tokens in each model; raw text loses its beginning for that."""
        chat = self._chats.get(context)
        if chat is not None:
            return self._chat_prompt(chat)
        if self.templated and not self.one_text:
            raise InvalidArgumentError(
                "a chat prompt is known as text alone, perhaps from the harness' cache of requests, but here each model has "
                "a prompt of its own; run with --cache_requests refresh, or without"
            )
        return self._raw(context, rooms) if context else self.start()

    def start(self) -> Prompt:
        """Nothing but the token that begins a text, or where a model has none, the one that ends it."""
        ids: dict[Role, list[int]] = {role: [self.first(role)] for role in self._models}
        return Prompt(base_ids=ids.get("base"), aligned_ids=ids.get("aligned"))

    def first(self, role: Role) -> int:
        """What stands before the first token of a text."""
        info = self._models[role]
        token = info.bos if info.bos >= 0 else info.eos
        if token < 0:
            raise PromptError(f"the context is empty, and the {role} model has neither a BOS nor an EOS to begin with")
        return token

    def _raw(self, context: str, rooms: Mapping[Role, int]) -> Prompt:
        prompt, text = self._raw_prompt(context), context
        while excess := self._excess(prompt, rooms):
            role = max(excess, key=lambda each: excess[each])
            kept = self._kad.tokenize(text, role=role, special=True)[excess[role] :]
            text = b"".join(self._kad.token_bytes(token, role=role) for token in kept).decode("utf-8", "ignore")
            if not text:
                raise ContextError(
                    f"{rooms[role]} tokens are to follow a context, but the {role} model holds {self._models[role].n_ctx} "
                    "in all; raise n_ctx, or let max_gen_toks be smaller"
                )
            prompt = self._kad.prompt(text, raw=True)
        self.shortened += text != context
        return prompt

    def _excess(self, prompt: Prompt, rooms: Mapping[Role, int]) -> dict[Role, int]:
        """By how many tokens the prompt is too long, of the models where it is."""
        lengths: dict[Role, int] = {"base": len(prompt.base_ids or []), "aligned": len(prompt.aligned_ids or [])}
        excess = {role: lengths[role] + rooms[role] - info.n_ctx for role, info in self._models.items()}
        return {role: tokens for role, tokens in excess.items() if tokens > 0}

    def to_write(self, context: str, max_tokens: int) -> Prompt:
        """The prompt of a text to be written."""
        return self.prompt(context, dict.fromkeys(self._models, max_tokens))

    # ---- Continuations --------------------------------------------------------------------------------------------------

    def to_score(self, context: str, continuation: str) -> tuple[Prompt, Completion]:
        """The prompt and the tokens of a continuation.

        White space at the end of a context belongs to the continuation: most vocabularies put it into the next word. A chat
        of two prompts stands as it is, as `KadLlama.score` takes it.
        """
        if context not in self._chats:
            before = context.rstrip()
            context, continuation = before, context[len(before) :] + continuation
        completion = self._following(context, continuation)
        rooms: dict[Role, int] = {}
        for role in self._models:
            apart = role != self.role and self.crossed
            rooms[role] = self._length(completion, role) + _MARGIN if apart else len(completion.ids)
        return self.prompt(context, rooms), completion

    def _length(self, completion: Completion, role: Role) -> int:
        return len(self._kad._tokenize_continuation(b"".join(completion.bytes), role))

    def _following(self, context: str, continuation: str) -> Completion:
        """The continuation's tokens: what the whole text has beyond the context, as the harness' own models cut it.

        Where a token would lie across the seam, or the continuation spells a special token, the cut would be another text;
        then the tokens are those that the continuation has by itself.
        """
        if context not in self._chats:
            before = self._tokens(context)
            whole = self._kad.tokenize(context + continuation, role=self.role, special=True)
            rest = whole[len(before) :]
            if whole[: len(before)] == before and not self._control.intersection(rest):
                return self.completion(rest)
        return read_completion(self._kad, continuation)

    def completion(self, ids: Sequence[int]) -> Completion:
        """Tokens to be scored, each by itself."""
        return Completion([(token,) for token in ids], [self._kad.token_bytes(token, role=self.role) for token in ids])

    # ---- Whole documents ------------------------------------------------------------------------------------------------

    def document(self, text: str) -> Document:
        """A document, ready to be cut into windows."""
        return Document(self._kad, self, text)


@dataclass(frozen=True)
class Window:
    """Tokens begin .. end of a document are predicted from tokens start .. begin; before the first stands a first token."""

    start: int
    begin: int
    end: int


def windows(begin: int, n: int, size: int, lead: int, whole: Callable[[int], bool] = lambda _: True) -> Window:
    """The window of at most `size` tokens that predicts a document of `n` tokens from `begin` on.

    As the harness cuts: each token is predicted once, as many as possible in a window, and each window is full, so that the
    last one sees as much as there is. A window but the first sees at least one character of the text. `lead` of the size are
    for what stands before the text. Cuts fall where `whole` says that a character begins.
    """
    room, seen = size - lead, max(0, begin - 1)
    while seen > 0 and not whole(seen):
        seen -= 1
    end = min(n, max(begin + 1, seen + room))
    while begin + 1 < end < n and not whole(end):
        end -= 1
    start = min(seen, max(0, end - room))
    while start < seen and not whole(start):
        start += 1
    return Window(start, begin, end)


class Document:
    """A text in the tokens of the model that scores it."""

    def __init__(self, kad: KadLlama, contexts: Contexts, text: str) -> None:
        self._kad, self._contexts = kad, contexts
        self.ids = kad.tokenize(text, role=contexts.role)
        self.bytes = [kad.token_bytes(token, role=contexts.role) for token in self.ids]

    def _character_begins(self, at: int) -> bool:
        """Across vocabularies the other model can be cut there; 10xxxxxx goes on with a character."""
        if not self._contexts.crossed:
            return True
        return next((data[0] for data in self.bytes[at:] if data), 0) & 0xC0 != 0x80

    def window(self, begin: int, size: int) -> Window:
        """The window of at most `size` tokens that begins to predict at `begin`."""
        return windows(begin, len(self.ids), size, self._lead(begin), self._character_begins)

    def _lead(self, begin: int) -> int:
        info = self._contexts._models[self._contexts.role]
        return int(begin == 0 or (info.add_bos and info.bos >= 0))

    def prompt(self, window: Window) -> Prompt:
        """What the window's tokens are predicted from: a first token where the text begins, or a model wants one."""
        seen = self.ids[window.start : window.begin]
        data = b"".join(self.bytes[window.start : window.begin])
        ids: dict[Role, list[int]] = {}
        for role, info in self._contexts._models.items():
            apart = role != self._contexts.role and self._contexts.crossed
            own = self._kad._tokenize_continuation(data, role) if apart else seen
            leads = window.begin == 0 or (info.add_bos and info.bos >= 0)
            ids[role] = [self._contexts.first(role), *own] if leads else list(own)
        return Prompt(base_ids=ids.get("base"), aligned_ids=ids.get("aligned"))

    def completion(self, window: Window) -> Completion:
        """The window's tokens."""
        taken = slice(window.begin, window.end)
        return Completion([(token,) for token in self.ids[taken]], self.bytes[taken])
