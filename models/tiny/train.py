"""Make the tiny pair from nothing: vocabulary, training, GGUF files, questions.

    python models/tiny/train.py OUTDIR [--seed N] [--steps-scale X]

base.gguf has read pages about every town (world.py). reference.gguf, a smaller model, has read pages about the taught towns
alone; aligned.gguf is that model after dialogues. Also written: the questions, and train.json with losses and times.
PyTorch on two CPU cores takes 20 to 30 minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, TokenType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional as F

from models.tiny import world

VOCABULARY = 640  # a multiple of 32: whole quantisation blocks
HEAD = 32
N_CTX = 512
WINDOW = 256  # tokens of a training example
BATCH = 32
EPSILON = 1e-5
ROPE_BASE = 10000.0


@dataclass(frozen=True)
class Shape:
    """The sizes of one model, a llama."""

    n_layer: int
    hidden: int
    units: int


@dataclass(frozen=True)
class Course:
    """How long and how fast a model learns."""

    steps: int
    rate: float


SHAPES = {"base": Shape(4, 192, 512), "small": Shape(3, 96, 256)}
COURSES = {"base": Course(900, 3e-3), "reference": Course(500, 4e-3), "aligned": Course(500, 2e-3)}


# ---- Vocabulary ----------------------------------------------------------------------------------------------------


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE over pages and dialogues, cut as GPT-2 cuts; the special tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(world.SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Dialogues bring many invented names: then syllables are worth a merge, and whole names of towns are not.
    texts = [*islice(world.pages(1, world.towns()), 4000), *(f"{q}\n{a}" for q, a in islice(world.dialogues(1), 8000))]
    for mark in world.SPECIAL:
        texts = [text.replace(mark, "\n") for text in texts]
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"train.py: the vocabulary has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}")
    return tokenizer


# ---- Model ---------------------------------------------------------------------------------------------------------


def _rotation(length: int) -> tuple[Tensor, Tensor]:
    """cos and sin of llama's rotary positions, each [length, HEAD / 2]."""
    frequencies = ROPE_BASE ** -(torch.arange(0, HEAD, 2, dtype=torch.float64) / HEAD)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    return angles.cos().float(), angles.sin().float()


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, EPSILON)


class Block(nn.Module):
    """Attention and a gated feed-forward part, as llama.cpp's "llama" has them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d, f = shape.hidden, shape.units
        self.attn_norm, self.ffn_norm = Norm(d), Norm(d)
        self.attn_q, self.attn_k, self.attn_v, self.attn_output = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.ffn_gate, self.ffn_up = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.ffn_down = nn.Linear(f, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.attn_norm(x)
        q, k, v = (self._heads(part(y)) for part in (self.attn_q, self.attn_k, self.attn_v))
        mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v, is_causal=True)
        x = x + self.attn_output(mixed.transpose(1, 2).reshape(x.shape))
        y = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(y)) * self.ffn_up(y))

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        """[batch, length, hidden] -> [batch, heads, length, HEAD]."""
        return x.view(*x.shape[:2], -1, HEAD).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring entries by the position's angles: llama.cpp's order for the "llama" architecture."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class Llama(nn.Module):
    """Token ids [batch, length] -> logits [batch, length, VOCABULARY]. The output matrix is the embedding."""

    def __init__(self, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(VOCABULARY, shape.hidden)
        self.blk = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.output_norm = Norm(shape.hidden)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deeper = name.endswith(("attn_output.weight", "ffn_down.weight"))
                deviation = 0.02 if "token_embd" in name else weight.shape[1] ** -0.5
                with torch.no_grad():
                    weight.normal_(0, deviation / (math.sqrt(2 * shape.n_layer) if deeper else 1), generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        cos, sin = _rotation(ids.shape[1])
        x = self.token_embd(ids)
        for block in self.blk:
            x = block(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)

    def n_params(self) -> int:
        return sum(weight.numel() for weight in self.parameters())


# ---- Training ------------------------------------------------------------------------------------------------------

T = TypeVar("T")
Batch = tuple[Tensor, Tensor]  # ids [BATCH, WINDOW] and what follows each; -100: not learned
IGNORED = -100


class Counted(Iterator[T]):
    """An iterator that knows how much was taken from it."""

    def __init__(self, items: Iterator[T]) -> None:
        self.items = items
        self.taken = 0

    def __next__(self) -> T:
        self.taken += 1
        return next(self.items)


def page_batches(tokenizer: Tokenizer, texts: Iterator[str]) -> Iterator[Batch]:
    """Pages one after the other, cut into windows."""
    end = tokenizer.token_to_id(world.END)
    ids: list[int] = []
    need = BATCH * WINDOW + 1
    while True:
        while len(ids) < need:
            for encoded in tokenizer.encode_batch(list(islice(texts, 64))):
                ids += [end, *encoded.ids]
        flat = torch.tensor(ids[:need])
        ids = ids[need - 1 :]
        yield flat[:-1].view(BATCH, WINDOW), flat[1:].view(BATCH, WINDOW)


def dialogue_batches(tokenizer: Tokenizer, pairs: Iterator[tuple[str, str]]) -> Iterator[Batch]:
    """One dialogue per row, the answer alone learned, in the form that the chat template makes."""
    end, user, assistant, stop = (tokenizer.token_to_id(mark) for mark in world.SPECIAL)
    rows = 128
    while True:
        asked, answers = zip(*islice(pairs, rows), strict=True)
        ids, targets = [], []
        for question, answer in zip(
            tokenizer.encode_batch(list(asked)), tokenizer.encode_batch(list(answers)), strict=True
        ):
            prompt = [end, user, *question.ids, stop, assistant]
            whole = [*prompt, *answer.ids, stop]
            ids.append(whole[:-1])
            targets.append([IGNORED] * (len(prompt) - 1) + whole[len(prompt) :])
        length = max(map(len, ids))
        yield (
            torch.tensor([row + [end] * (length - len(row)) for row in ids]),
            torch.tensor([row + [IGNORED] * (length - len(row)) for row in targets]),
        )


def train(model: Llama, batches: Iterator[Batch], course: Course, say: Callable[[str], None]) -> list[float]:
    """AdamW with a warm-up and a cosine. Answers the loss of every 50 steps."""
    matrices = [w for w in model.parameters() if w.dim() == 2]
    vectors = [w for w in model.parameters() if w.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=course.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, course.rate, course.steps, pct_start=0.05)
    losses, total, start = [], 0.0, time.perf_counter()
    for step, (ids, targets) in enumerate(islice(batches, course.steps), 1):
        loss = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 50 == 0 or step == course.steps:
            losses.append(total / ((step - 1) % 50 + 1))
            total = 0.0
            say(f"step {step} of {course.steps}: loss {losses[-1]:.4f}, {time.perf_counter() - start:.0f} s")
    return losses


# ---- GGUF ----------------------------------------------------------------------------------------------------------


def write_gguf(path: Path, name: str, model: Llama, tokenizer: Tokenizer, aligned: bool) -> None:
    """Write the model with its vocabulary; matrices in Q8_0. The aligned file has a chat template."""
    shape = model.shape
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    writer.add_license("MIT")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.units)
    writer.add_head_count(shape.hidden // HEAD)
    writer.add_head_count_kv(shape.hidden // HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_vocab_size(VOCABULARY)
    _write_vocabulary(writer, tokenizer, aligned)
    for key, weight in model.state_dict().items():
        kind = GGMLQuantizationType.Q8_0 if weight.dim() == 2 else GGMLQuantizationType.F32
        values = weight.detach().numpy().astype(np.float32)
        writer.add_tensor(key, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_vocabulary(writer: gguf.GGUFWriter, tokenizer: Tokenizer, aligned: bool) -> None:
    tokens = [tokenizer.id_to_token(id_) for id_ in range(VOCABULARY)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in world.SPECIAL else TokenType.NORMAL for token in tokens])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokens.index(world.END))
    writer.add_eos_token_id(tokens.index(world.STOP if aligned else world.END))
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    if aligned:
        writer.add_chat_template(world.CHAT_TEMPLATE)


def probe(model: Llama, tokenizer: Tokenizer) -> dict[str, Any]:
    """A text, its ids, and the five greatest logits after it, of the weights as they are in the file."""
    rounded = copy.deepcopy(model)
    for weight in rounded.parameters():
        if weight.dim() == 2:
            kind = GGMLQuantizationType.Q8_0
            values = gguf.quants.dequantize(gguf.quants.quantize(weight.detach().numpy(), kind), kind)
            weight.data.copy_(torch.from_numpy(values))
    text = world.split("taught")[0].answer("river").rpartition(" ")[0]
    ids = [tokenizer.token_to_id(world.END), *tokenizer.encode(text).ids]
    with torch.no_grad():
        best = rounded(torch.tensor([ids]))[0, -1].topk(5)
    return {
        "text": text,
        "ids": ids,
        "best": best.indices.tolist(),
        "logits": [round(x, 4) for x in best.values.tolist()],
    }


# ---- The command ---------------------------------------------------------------------------------------------------


def write_questions(folder: Path) -> None:
    """The questions that the evaluation asks, and worked examples about towns that it never asks about."""
    for name in ("dev", "test"):
        _write_lines(folder / f"questions-{name}.jsonl", world.questions(name))
    _write_lines(folder / "examples.jsonl", world.examples())


def _write_lines(path: Path, lines: Iterable[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train the tiny pair and write it as GGUF.")
    parser.add_argument("folder", type=Path, help="where to write; made if need be")
    parser.add_argument("--seed", type=int, default=1, help="of weights, pages and dialogues (default 1)")
    parser.add_argument("--steps-scale", type=float, default=1.0, help="fewer steps, for a trial (default 1.0)")
    parser.add_argument("--only", choices=["base", "small"], help="train one of the two alone")
    given = parser.parse_args(arguments)
    given.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    log: dict[str, Any] = {"seed": given.seed, "torch": torch.__version__, "threads": torch.get_num_threads()}

    def learn(name: str, model: Llama, read: Counted[Any], batches: Iterator[Batch]) -> None:
        course = COURSES[name]
        course = Course(max(1, round(course.steps * given.steps_scale)), course.rate)
        start = time.perf_counter()
        losses = train(model, batches, course, lambda line: print(f"{name}: {line}", file=sys.stderr, flush=True))
        write_gguf(given.folder / f"{name}.gguf", f"kad-llama tiny {name}", model, tokenizer, name == "aligned")
        log[name] = asdict(model.shape) | asdict(course) | {
            "parameters": model.n_params(),
            "read": read.taken,
            "seconds": round(time.perf_counter() - start),
            "losses": [round(loss, 4) for loss in losses],
            "probe": probe(model, tokenizer),
        }  # fmt: skip

    def weights(offset: int) -> torch.Generator:
        return torch.Generator().manual_seed(1000 * given.seed + offset)

    if given.only != "small":
        pages = Counted(world.pages(world.page_seed(given.seed, "base"), world.towns()))
        learn("base", Llama(SHAPES["base"], weights(1)), pages, page_batches(tokenizer, pages))
    if given.only != "base":
        small = Llama(SHAPES["small"], weights(2))
        pages = Counted(world.pages(world.page_seed(given.seed, "reference"), world.split("taught")))
        learn("reference", small, pages, page_batches(tokenizer, pages))
        pairs = Counted(world.dialogues(world.page_seed(given.seed, "aligned")))
        learn("aligned", small, pairs, dialogue_batches(tokenizer, pairs))
    write_questions(given.folder)
    (given.folder / "train.json").write_text(json.dumps(log, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
