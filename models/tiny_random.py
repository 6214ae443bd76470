"""Which small files can every architecture be tested with?

Random GGUFs of about a megabyte that load in milliseconds. Their words mean nothing, but their distributions behave:
neither flat nor one-hot, dependent on the whole context, mostly text and now and then a stray byte. Two files of one
`seed` share their weights; `noise` makes one of them disagree with the other.

    python models/tiny_random.py OUTDIR         # everything in CATALOGUE
    python models/tiny_random.py OUTDIR --list  # what that would be
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, TokenType

ARCHITECTURES = ("llama", "qwen3", "gemma3", "moe", "mamba", "jamba", "bert")
QUANTISATIONS = {
    "F32": gguf.LlamaFileType.ALL_F32,
    "F16": gguf.LlamaFileType.MOSTLY_F16,
    "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
HEAD = 32  # entries of a head: a whole block, so that caches may be quantised too
INNER_NOISE = 0.15  # share of the noise that matrices before the output get: errors of layers add up
EXPERTS, EXPERTS_USED, EXPERT_UNITS = 4, 2, 64
WINDOW = 32  # gemma3's sliding window, in tokens: short, so that tests reach beyond it

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)

# ---- Vocabularies --------------------------------------------------------------------------------------------------

TEXT_A = """
The sky is blue because the air scatters the short waves of sunlight more than the long ones. In the evening the light
has a longer way to go through the air, and what is left of it is red and orange. When you ask a question about the
world, someone should answer it with what they know, and say where they are not sure. The people of the town went to
the market in the morning to buy bread, apples, cheese and a little fish. They were talking about the weather, the
harvest and the price of everything. There was a small house at the end of the road, and the old woman who lived there
had many books which she had read again and again. The children would come after school, and she would tell them
stories about the sea, the mountains and the stars. Water is made of two parts hydrogen and one part oxygen; it can be
ice, liquid or steam. A number that can be divided only by one and by itself is called a prime number. If there are
three boxes with five apples each, then there are fifteen apples. This is how you make tea: heat the water, put the
leaves into the pot, wait for four minutes and pour. Thank you for your help, the answer was very useful.
It's a café — naïve, isn't it? 🙂 The year 2024 had 366 days.
"""

TEXT_B = """
Computers store each number as a row of bits, and every program is a long list of simple steps. To sort a list, compare
two neighbours and swap them when they stand in the wrong order; repeat until nothing changes. Programmers write
functions, give them names, and test whether they return the expected results. Yesterday our train stopped between two
stations for almost an hour, so we played cards and drank some coffee. My brother plays football on Saturdays, but his
knee hurts and his doctor says he must rest. Birds fly south before winter begins; some cross whole oceans without
sleeping. Please write a short letter to your friend and describe how your garden looks in spring. First dig a hole,
second set the young tree upright, third fill in soil and press gently. Why do metals feel colder than wood? Because
heat flows out of your hand faster. Music from another room sounds dull, since walls keep high notes back. He asked
whether she could lend him five euros until Monday. She laughed, opened her purse and found only two coins. Nobody knew
what happened next; perhaps somebody will find out tomorrow. Question: how many legs do eight spiders have? Answer: 64.
El niño comió piñas. Übung macht den Meister. 日本 日本 日本語 ✓ ✓ ★ 🎉 🎉
"""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PIECES = re.compile(r" ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+")  # words with the space before them, as GPT-2 cuts
MERGES = {"a": 300, "b": 270, "s": 230}


@dataclass
class Vocabulary:
    """What goes under tokenizer.ggml: one entry per id in tokens, types and scores."""

    model: str
    add_bos: bool
    tokens: list[str] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)

    def add(self, token: str, kind: TokenType = TokenType.NORMAL, score: float = 0.0) -> None:
        self.tokens.append(token)
        self.types.append(int(kind))
        self.scores.append(score)

    def pad(self, size: int) -> None:
        """Fill up to `size` ids with tokens that no text contains."""
        while len(self.tokens) < size:
            self.add(f"[unused{len(self.tokens)}]", TokenType.UNUSED)

    def is_rare(self, id_: int) -> bool:
        """Whether an id is half a character or nothing at all: a model should say such things seldom."""
        token = self.tokens[id_]
        if self.types[id_] in (TokenType.UNUSED, TokenType.UNKNOWN):
            return True
        if self.types[id_] == TokenType.BYTE:
            return not 0x20 <= int(token[3:5], 16) < 0x7F
        if self.model == "llama" or token in SPECIAL:
            return False
        text = bytes(_byte_of()[letter] for letter in token)
        return not text.decode("utf-8", errors="replace").replace("\ufffd", "\0").isprintable()


@cache
def _letters() -> tuple[str, ...]:
    """GPT-2's visible letter for each byte: printable Latin-1 stands for itself, the rest is numbered from U+0100."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte) if byte in visible else chr(next(spare)) for byte in range(256))


@cache
def _byte_of() -> dict[str, int]:
    return {letter: byte for byte, letter in enumerate(_letters())}


def train_bpe(words: Counter[tuple[str, ...]], count: int) -> list[tuple[str, str]]:
    """The `count` most frequent merges, found one at a time; ties go to the pair that sorts first."""
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for word, times in words.items():
            merged[_merge(word, best)] += times
        words = merged
    return merges


def _merge(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for symbol in word:
        # A symbol just made is longer than either half, so it cannot be taken for the first half of the next pair.
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return tuple(out)


def _byte_level(name: str, text: str) -> Vocabulary:
    """A GPT-2 vocabulary; "a" ends with its special tokens and wants no BOS, "b" begins with them and wants one."""
    vocabulary = Vocabulary("gpt2", add_bos=name == "b")
    words = Counter(tuple(_letters()[byte] for byte in piece.encode()) for piece in PIECES.findall(text))
    merges = train_bpe(words, MERGES[name])
    ordinary = list(dict.fromkeys([*_letters(), *(left + right for left, right in merges)]))
    specials = [(token, TokenType.CONTROL) for token in SPECIAL]
    normals = [(token, TokenType.NORMAL) for token in ordinary]
    for token, kind in normals + specials if name == "a" else specials + normals:
        vocabulary.add(token, kind)
    vocabulary.merges = [f"{left} {right}" for left, right in merges]
    return vocabulary


def _sentencepiece(text: str) -> Vocabulary:
    """A SentencePiece vocabulary that puts a space before the first word and falls back to bytes."""
    vocabulary = Vocabulary("llama", add_bos=True)
    vocabulary.add("<unk>", TokenType.UNKNOWN)
    for token in SPECIAL:
        vocabulary.add(token, TokenType.CONTROL)
    for byte in range(256):
        vocabulary.add(f"<0x{byte:02X}>", TokenType.BYTE)
    pieces = (piece.replace(" ", "\u2581") for piece in PIECES.findall(text) if "\n" not in piece)
    words = Counter(tuple(piece) for piece in pieces)
    merges = train_bpe(words, MERGES["s"])
    # The tokeniser joins the pair with the highest score first: the order of the merges.
    for rank, token in enumerate(dict.fromkeys(left + right for left, right in merges)):
        vocabulary.add(token, score=-float(rank))
    for token in sorted({letter for word in words for letter in word}):
        vocabulary.add(token, score=-1000.0)
    return vocabulary


def make_vocabulary(name: str, pad_to: int = 0) -> Vocabulary:
    """Vocabulary "a", "b" (byte-level, of two texts) or "s" (SentencePiece), padded to a multiple of 32.

    `pad_to` asks for a longer tail of unused tokens: the same vocabulary, a bigger matrix.
    """
    if name not in MERGES:
        raise ValueError(f"vocabulary is {name!r}; expected 'a', 'b' or 's'")
    made = _sentencepiece(TEXT_B) if name == "s" else _byte_level(name, TEXT_A if name == "a" else TEXT_B)
    size = -(-len(made.tokens) // 32) * 32
    if pad_to and (pad_to < size or pad_to % 32):
        raise ValueError(f"pad_to is {pad_to}; expected a multiple of 32 and at least {size}")
    made.pad(max(size, pad_to))
    return made


def _write_vocabulary(writer: gguf.GGUFWriter, vocab: Vocabulary, chat_template: bool) -> None:
    writer.add_tokenizer_model(vocab.model)
    writer.add_tokenizer_pre("gpt-2" if vocab.model == "gpt2" else "default")
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    if vocab.model == "llama":
        writer.add_token_scores(vocab.scores)
        writer.add_unk_token_id(0)
    else:
        writer.add_token_merges(vocab.merges)
    writer.add_bos_token_id(vocab.tokens.index("<|endoftext|>" if vocab.add_bos else "<|im_start|>"))
    writer.add_eos_token_id(vocab.tokens.index("<|im_end|>"))
    writer.add_add_bos_token(vocab.add_bos)
    writer.add_add_space_prefix(vocab.model == "llama")
    if chat_template:
        writer.add_chat_template(CHAT_TEMPLATE)


# ---- Architectures -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """The sizes one file is made with."""

    n_vocab: int
    n_layer: int
    hidden: int
    n_ctx: int

    @property
    def heads(self) -> int:
        return self.hidden // HEAD


@dataclass(frozen=True)
class Tensor:
    """One tensor. `shape` has rows first; `deviation` is that of its Gaussian entries around `mean`."""

    name: str
    shape: tuple[int, ...]
    deviation: float
    mean: float | np.ndarray = 0.0
    matrix: bool = True  # quantised, and given noise


def _matrix(name: str, rows: int, columns: int, gain: float = 1.0, experts: int = 0) -> Tensor:
    """A matrix that turns entries of deviation 1 into entries of deviation `gain`."""
    shape = (experts, rows, columns) if experts else (rows, columns)
    return Tensor(f"{name}.weight", shape, gain / np.sqrt(columns))


def _vector(name: str, size: int, mean: float = 1.0, deviation: float = 0.1) -> Tensor:
    return Tensor(name, (size,), deviation, mean, matrix=False)


def _ends(shape: Shape, embedding: float = 0.5, logits: float = 4.0) -> list[Tensor]:
    """Embedding and output. A weak embedding leaves the word to the context; logits of deviation 4 give 2-3 bits."""
    return [
        Tensor("token_embd.weight", (shape.n_vocab, shape.hidden), embedding),
        _vector("output_norm.weight", shape.hidden),
        _matrix("output", shape.n_vocab, shape.hidden, logits),
    ]


def _attention(block: str, shape: Shape, norm: bool = True) -> list[Tensor]:
    """Sharp scores (query and key twice as large) and one key-value head for all query heads."""
    return [
        *([_vector(f"{block}.attn_norm.weight", shape.hidden)] if norm else []),
        _matrix(f"{block}.attn_q", shape.hidden, shape.hidden, 1.4),
        _matrix(f"{block}.attn_k", HEAD, shape.hidden, 1.4),
        _matrix(f"{block}.attn_v", HEAD, shape.hidden, 2.0),
        _matrix(f"{block}.attn_output", shape.hidden, shape.hidden, 3.0),
    ]


def _feed_forward(block: str, shape: Shape, experts: int = 0) -> list[Tensor]:
    units, suffix = (EXPERT_UNITS, "_exps") if experts else (2 * shape.hidden, "")
    return [
        _vector(f"{block}.ffn_norm.weight", shape.hidden),
        *([_matrix(f"{block}.ffn_gate_inp", experts, shape.hidden, 2.0)] if experts else []),
        _matrix(f"{block}.ffn_gate{suffix}", units, shape.hidden, 1.0, experts),
        _matrix(f"{block}.ffn_up{suffix}", units, shape.hidden, 1.0, experts),
        _matrix(f"{block}.ffn_down{suffix}", shape.hidden, units, 2.0, experts),
    ]


def _state_space(block: str, shape: Shape, norms: bool) -> list[Tensor]:
    """A Mamba layer; `norms` are Jamba's. Steps of 0.05 to 1 and decays of 1 to 4: it remembers some ten tokens."""
    inner, state, rank = 2 * shape.hidden, 4, 8
    step = np.geomspace(0.05, 1.0, inner)
    vectors = [("ssm_dt_norm", rank), ("ssm_b_norm", state), ("ssm_c_norm", state)] if norms else []
    return [
        _vector(f"{block}.attn_norm.weight", shape.hidden),
        _matrix(f"{block}.ssm_in", 2 * inner, shape.hidden, 1.5),
        Tensor(f"{block}.ssm_conv1d.weight", (inner, 4), 0.5, matrix=False),
        _vector(f"{block}.ssm_conv1d.bias", inner, 0.0),
        _matrix(f"{block}.ssm_x", rank + 2 * state, inner, 2.0),
        *(_vector(f"{block}.{name}.weight", size) for name, size in vectors),
        Tensor(f"{block}.ssm_dt.weight", (inner, rank), 0.2, matrix=False),
        Tensor(f"{block}.ssm_dt.bias", (inner,), 0.0, np.log(np.expm1(step)), matrix=False),
        Tensor(f"{block}.ssm_a", (inner, state), 0.0, -np.arange(1.0, state + 1), matrix=False),
        _vector(f"{block}.ssm_d", inner),
        _matrix(f"{block}.ssm_out", shape.hidden, inner, 2.0),
    ]


def _transformer(shape: Shape) -> list[Tensor]:
    blocks = [f"blk.{i}" for i in range(shape.n_layer)]
    return _ends(shape) + [t for b in blocks for t in _attention(b, shape) + _feed_forward(b, shape)]


def _mixture_of_experts(shape: Shape) -> list[Tensor]:
    blocks = [f"blk.{i}" for i in range(shape.n_layer)]
    return _ends(shape) + [t for b in blocks for t in _attention(b, shape) + _feed_forward(b, shape, experts=EXPERTS)]


def _qwen3(shape: Shape) -> list[Tensor]:
    norms = [_vector(f"blk.{i}.attn_{name}_norm.weight", HEAD, mean=1.4) for i in range(shape.n_layer) for name in "qk"]
    return _transformer(shape) + norms


def _gemma3(shape: Shape) -> list[Tensor]:
    posts = [
        _vector(f"blk.{i}.post_{name}_norm.weight", shape.hidden)
        for i in range(shape.n_layer)
        for name in ("attention", "ffw")
    ]
    # Gemma multiplies the embedding by the square root of its length.
    small = [
        t if t.name != "token_embd.weight" else _ends(shape, 0.5 / np.sqrt(shape.hidden))[0] for t in _qwen3(shape)
    ]
    return small + posts


def _mamba(shape: Shape) -> list[Tensor]:
    return _ends(shape) + [t for i in range(shape.n_layer) for t in _state_space(f"blk.{i}", shape, norms=False)]


def _jamba(shape: Shape) -> list[Tensor]:
    tensors = _ends(shape)
    for i in range(shape.n_layer):
        block = f"blk.{i}"
        tensors += _attention(block, shape) if i % 2 else _state_space(block, shape, norms=True)
        tensors += _feed_forward(block, shape)
    return tensors


def _bert(shape: Shape) -> list[Tensor]:
    tensors = [
        Tensor("token_embd.weight", (shape.n_vocab, shape.hidden), 1.0),
        Tensor("token_types.weight", (1, shape.hidden), 0.1, matrix=False),
        Tensor("position_embd.weight", (shape.n_ctx, shape.hidden), 0.1, matrix=False),
    ]
    norms = ["token_embd_norm"]
    for i in range(shape.n_layer):
        block = f"blk.{i}"
        tensors += _attention(block, shape, norm=False)
        tensors += [_vector(f"{block}.attn_{name}.bias", HEAD, 0.0) for name in "kv"]
        tensors += [_vector(f"{block}.attn_{name}.bias", shape.hidden, 0.0) for name in ("q", "output")]
        tensors += [_matrix(f"{block}.ffn_up", 2 * shape.hidden, shape.hidden)]
        tensors += [_matrix(f"{block}.ffn_down", shape.hidden, 2 * shape.hidden)]
        tensors += [_vector(f"{block}.ffn_up.bias", 2 * shape.hidden, 0.0)]
        tensors += [_vector(f"{block}.ffn_down.bias", shape.hidden, 0.0)]
        norms += [f"{block}.attn_output_norm", f"{block}.layer_output_norm"]
    for name in norms:
        tensors += [_vector(f"{name}.weight", shape.hidden), _vector(f"{name}.bias", shape.hidden, 0.0)]
    return tensors


TENSORS: dict[str, Callable[[Shape], list[Tensor]]] = {
    "llama": _transformer,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "moe": _mixture_of_experts,
    "mamba": _mamba,
    "jamba": _jamba,
    "bert": _bert,
}


def _write_sizes(writer: gguf.GGUFWriter, architecture: str, shape: Shape) -> None:
    """The architecture's own metadata."""
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length({"mamba": 0, "moe": EXPERT_UNITS}.get(architecture, 2 * shape.hidden))
    writer.add_head_count(0 if architecture == "mamba" else shape.heads)
    if architecture == "jamba":  # layers without key-value heads are the recurrent ones
        writer.add_head_count_kv([i % 2 for i in range(shape.n_layer)])
    elif architecture != "mamba":
        writer.add_head_count_kv(1)
    if architecture in ("mamba", "jamba"):
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * shape.hidden)
        writer.add_ssm_state_size(4)
        writer.add_ssm_time_step_rank(8)
    if architecture == "bert":
        writer.add_layer_norm_eps(1e-6)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        writer.add_token_type_count(1)
        return
    writer.add_layer_norm_rms_eps(1e-6)
    if architecture in ("qwen3", "gemma3"):
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
    if architecture == "gemma3":
        writer.add_sliding_window(WINDOW)
        writer.add_sliding_window_pattern([i % 2 == 0 for i in range(shape.n_layer)])
    if architecture == "moe":
        writer.add_expert_count(EXPERTS)
        writer.add_expert_used_count(EXPERTS_USED)
    if architecture in ("llama", "moe"):
        writer.add_rope_dimension_count(HEAD)
        writer.add_vocab_size(shape.n_vocab)


# ---- Weights and the file ------------------------------------------------------------------------------------------


def _values(tensor: Tensor, vocab: Vocabulary, seed: int, noise: float, noise_seed: int, rare: float) -> np.ndarray:
    """Entries as float32, each tensor from a stream of its own: adding one changes no other.

    Rows are drawn in order, so a longer vocabulary repeats a shorter one's rows.
    """
    key = zlib.crc32(tensor.name.encode())
    values = np.random.default_rng([seed, key]).standard_normal(tensor.shape) * tensor.deviation
    if tensor.matrix and noise:
        deviation = tensor.deviation * noise * (1 if tensor.name == "output.weight" else INNER_NOISE)
        values += np.random.default_rng([noise_seed, key, 1]).standard_normal(tensor.shape) * deviation
    if tensor.name == "output.weight":
        values[[vocab.is_rare(id_) for id_ in range(len(vocab.tokens))]] *= rare
    return (values + tensor.mean).astype(np.float32)


def write(
    path: Path | str,
    architecture: str,
    *,
    seed: int = 0,
    quantisation: str = "F32",
    vocabulary: str = "a",
    chat_template: bool = False,
    n_layer: int = 2,
    hidden: int = 96,
    n_ctx: int | None = None,
    noise: float = 0.0,
    noise_seed: int = 1,
    pad_to: int = 0,
    rare: float = 0.3,
) -> Path:
    """Write one random GGUF. The same arguments give the same bytes.

    Parameters
    ----------
    path : Path or str
        The file to write.
    architecture : str
        One of ARCHITECTURES. "moe" is a llama with four experts, two used; "mamba" is recurrent; "jamba" alternates
        recurrent and attention layers; "bert" is an encoder, which cannot generate.
    seed : int
        Of the weights.
    quantisation : str
        "F32", "F16" or "Q8_0", of the matrices.
    vocabulary : str
        "a", "b" or "s"; see make_vocabulary.
    chat_template : bool
        Whether to write a ChatML template.
    n_layer, hidden : int
        Layers; entries of the hidden state, a multiple of 32.
    n_ctx : int or None
        Training context; None is 4096, or 128 for the encoder, whose positions are a matrix.
    noise : float
        Deviation of Gaussian noise on the output matrix, as a fraction of that matrix's own; the others get
        INNER_NOISE times that. 0.3 makes a total variation of 0.3 to 0.6 between a file without and one with it.
    noise_seed : int
        Of the noise.
    pad_to : int
        Vocabulary size to reach with unused tokens; 0 = the next multiple of 32.
    rare : float
        Scale of the logits of unused tokens, control characters and parts of a UTF-8 character. 0.3 gives them about
        0.2 % of the mass together; with 1 they are as likely as words, and most texts are broken UTF-8.

    Raises
    ------
    ValueError
        An argument out of range; the message names it.
    """
    numbers = {"seed": seed, "noise": noise, "noise_seed": noise_seed, "rare": rare}
    _check(architecture, quantisation, n_layer, hidden, n_ctx, **numbers)
    vocab = make_vocabulary(vocabulary, pad_to)
    shape = Shape(len(vocab.tokens), n_layer, hidden, n_ctx or (128 if architecture == "bert" else 4096))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "llama" if architecture == "moe" else architecture)
    try:
        writer.add_name(f"tiny random {architecture}, seed {seed}" + (f", noise {noise:g}" if noise else ""))
        writer.add_file_type(QUANTISATIONS[quantisation])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _write_sizes(writer, architecture, shape)
        _write_vocabulary(writer, vocab, chat_template)
        for tensor in TENSORS[architecture](shape):
            kind = GGMLQuantizationType[quantisation if tensor.matrix else "F32"]
            values = _values(tensor, vocab, seed, noise, noise_seed, rare)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _check(
    architecture: str, quantisation: str, n_layer: int, hidden: int, n_ctx: int | None, **not_negative: float
) -> None:
    if architecture not in TENSORS:
        raise ValueError(f"architecture is {architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
    if quantisation not in QUANTISATIONS:
        raise ValueError(f"quantisation is {quantisation!r}; expected one of {', '.join(QUANTISATIONS)}")
    if n_layer < 1 or (architecture == "jamba" and n_layer < 2):
        raise ValueError(f"n_layer is {n_layer}; expected at least {2 if architecture == 'jamba' else 1}")
    if hidden < 32 or hidden % 32:
        raise ValueError(f"hidden is {hidden}; expected a positive multiple of 32")
    if n_ctx is not None and n_ctx < 1:
        raise ValueError(f"n_ctx is {n_ctx}; expected at least 1, or None")
    for name, value in not_negative.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}; expected a finite number of at least 0")


# ---- The catalogue -------------------------------------------------------------------------------------------------

_ALIGNED: dict[str, Any] = {"noise": 0.3, "chat_template": True}
_DECODERS = ARCHITECTURES[:-1]

# File name -> architecture and arguments of write(). Every "-aligned" belongs to the "-base" of the same name.
CATALOGUE: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"{a}-base-q8_0": (a, {"quantisation": "Q8_0"}) for a in _DECODERS},
    **{f"{a}-aligned-q8_0": (a, {"quantisation": "Q8_0", **_ALIGNED}) for a in _DECODERS},
    "llama-base-f32": ("llama", {}),
    "llama-aligned-f32": ("llama", _ALIGNED),
    "llama-base-f16": ("llama", {"quantisation": "F16"}),
    "llama-aligned-f16": ("llama", {"quantisation": "F16", **_ALIGNED}),
    "llama-padded-q8_0": ("llama", {"quantisation": "Q8_0", "pad_to": 704}),
    "llama-vocabulary-b-q8_0": ("llama", {"quantisation": "Q8_0", "vocabulary": "b", "chat_template": True}),
    "llama-vocabulary-s-q8_0": ("llama", {"quantisation": "Q8_0", "vocabulary": "s", "chat_template": True}),
    "bert-f32": ("bert", {}),
}


def write_all(folder: Path) -> list[Path]:
    """Write every file of the catalogue into `folder`."""
    return [write(folder / f"{name}.gguf", arch, **arguments) for name, (arch, arguments) in CATALOGUE.items()]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="tiny_random.py", description="Write tiny random GGUFs for tests.")
    parser.add_argument("folder", type=Path, help="where to write them; made if need be")
    parser.add_argument("--list", action="store_true", help="print the names and arguments, write nothing")
    given = parser.parse_args(arguments)
    if given.list:
        for name, (architecture, settings) in CATALOGUE.items():
            print(f"{name}.gguf: {architecture} {settings}")
        return 0
    try:
        for path in write_all(given.folder):
            print(f"{path}: {path.stat().st_size / 1e3:.0f} kB", file=sys.stderr)
    except OSError as error:
        print(f"tiny_random.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
