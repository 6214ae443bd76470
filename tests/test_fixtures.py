"""Do the small models of models/ load, decode and behave, and does widening leave the function alone?"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
import pytest
from llama_cpp import _logger

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.widen import widen
from models import tiny_random

TEXT = "The people of the town went to the market because the sky was blue. Thank you for your help!"
CANNOT_REWIND = {"mamba", "jamba"}  # a recurrent state cannot forget its last tokens


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def _quiet(_level: int, _text: bytes, _data: object) -> None:
    """Takes llama.cpp's log and drops it."""


@pytest.fixture(scope="module", autouse=True)
def backend() -> Iterator[None]:
    """Silence while this file runs; then llama_cpp's own log again, for whoever comes next in this process."""
    llama_cpp.llama_log_set(_quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    yield
    llama_cpp.llama_log_set(_logger.llama_log_callback, ctypes.c_void_p(0))


class Probe:
    """One GGUF through the low-level bindings, so that these tests need nothing of kad_llama."""

    def __init__(self, path: Path, n_ctx: int = 256) -> None:
        model_params = llama_cpp.llama_model_default_params()
        model_params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model_params)
        assert self.model, f"{path} does not load"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_ctx
        params.n_threads = params.n_threads_batch = 1
        params.swa_full = True
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.context, f"{path} gives no context"
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.memory = llama_cpp.llama_get_memory(self.context)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        data = text.encode()
        ids = (llama_cpp.llama_token * (len(data) + 8))()
        n = llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(ids), False, special)
        return list(ids[:n])

    def piece(self, id_: int) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        n = llama_cpp.llama_token_to_piece(self.vocab, id_, buffer, 64, 0, False)
        return buffer.raw[:n]

    def decode(self, ids: Sequence[int], first: int = 0) -> np.ndarray:
        """Logits after each of `ids`, whose positions begin at `first`; shape (len(ids), n_vocab)."""
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, id_ in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = id_, first + i, 1
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        assert llama_cpp.llama_decode(self.context, batch) == 0
        pointers = (llama_cpp.llama_get_logits_ith(self.context, i) for i in range(len(ids)))
        out = np.array([np.ctypeslib.as_array(row, (self.n_vocab,)) for row in pointers], dtype=np.float64)
        llama_cpp.llama_batch_free(batch)
        return out


def softmax(rows: np.ndarray) -> np.ndarray:
    rows = np.exp(rows - rows.max(-1, keepdims=True))
    return rows / rows.sum(-1, keepdims=True)


def entropy(p: np.ndarray) -> np.ndarray:
    """In bits."""
    return -np.sum(p * np.log2(np.maximum(p, 1e-300)), axis=-1)


def variation(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Total variation per row."""
    return np.abs(p - q).sum(-1) / 2


def rows_of(path: Path, text: str = TEXT) -> np.ndarray:
    with Probe(path) as probe:
        return softmax(probe.decode(probe.tokenize(text)))


def sampled(probe: Probe, n: int, seed: int = 0) -> np.ndarray:
    """The distributions that `n` tokens after TEXT were drawn from, one by one at temperature 1."""
    generator = np.random.default_rng(seed)
    ids = probe.tokenize(TEXT)
    rows = [softmax(probe.decode(ids)[-1])]
    for _ in range(n):
        ids.append(int(generator.choice(probe.n_vocab, p=rows[-1])))
        rows.append(softmax(probe.decode(ids[-1:], len(ids) - 1)[0]))
    return np.array(rows[:-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("tiny")


@pytest.mark.parametrize("quantisation", tiny_random.QUANTISATIONS)
@pytest.mark.parametrize("architecture", tiny_random.ARCHITECTURES[:-1])
def test_architecture_decodes(folder: Path, architecture: str, quantisation: str) -> None:
    """Small, finite, of middling entropy."""
    path = tiny_random.write(folder / f"{architecture}-{quantisation}.gguf", architecture, quantisation=quantisation)
    assert path.stat().st_size < 1.5e6
    with Probe(path) as probe:
        rows = sampled(probe, 60)
    assert np.isfinite(rows).all()
    assert 1 < entropy(rows).mean() < 4


@pytest.mark.parametrize("architecture", tiny_random.ARCHITECTURES[:-1])
def test_context_matters(folder: Path, architecture: str) -> None:
    """Another token 1 to 20 places back changes what comes next: a cache left wrong would show."""
    path = tiny_random.write(folder / f"{architecture}-context.gguf", architecture)
    rows = rows_of(path)[-1]
    for back in (1, 2, 6, 20):
        with Probe(path) as probe:
            ids = probe.tokenize(TEXT)
            ids[-1 - back] = (ids[-1 - back] + 7) % 256
            assert variation(rows, softmax(probe.decode(ids)[-1])) > 0.005


@pytest.mark.parametrize("architecture", tiny_random.ARCHITECTURES[:-1])
def test_pair_disagrees_somewhat(folder: Path, architecture: str) -> None:
    base = tiny_random.write(folder / "base.gguf", architecture)
    aligned = tiny_random.write(folder / "aligned.gguf", architecture, noise=0.3, chat_template=True)
    assert 0.1 < variation(rows_of(base), rows_of(aligned)).mean() < 0.6


@pytest.mark.parametrize("architecture", tiny_random.ARCHITECTURES[:-1])
def test_rewind(folder: Path, architecture: str) -> None:
    """Attention caches drop a suffix and go on as if it had not been; recurrent states say that they cannot."""
    path = tiny_random.write(folder / f"{architecture}-rewind.gguf", architecture)
    with Probe(path) as probe:
        ids = probe.tokenize(TEXT * 3)
        rows = probe.decode(ids)
        assert len(ids) > 2 * tiny_random.WINDOW
        dropped = llama_cpp.llama_memory_seq_rm(probe.memory, 0, len(ids) - 4, -1)
        assert dropped == (architecture not in CANNOT_REWIND)
        if dropped:
            again = probe.decode(ids[-4:], len(ids) - 4)
            # F32 weights: llama.cpp's kernels differ by batch size.
            assert variation(softmax(rows[-4:]), softmax(again)).max() < 0.02


def test_encoder_loads_without_memory(folder: Path) -> None:
    """The refusal's two signs: no memory, and attention.causal false."""
    path = tiny_random.write(folder / "bert.gguf", "bert")
    assert not gguf.GGUFReader(path).fields["bert.attention.causal"].contents()
    with Probe(path, 64) as probe:
        assert not probe.memory


@pytest.mark.parametrize("architecture", tiny_random.ARCHITECTURES)
def test_same_arguments_same_bytes(folder: Path, architecture: str) -> None:
    arguments = {"seed": 5, "quantisation": "Q8_0", "noise": 0.2, "chat_template": True}
    first = tiny_random.write(folder / "first.gguf", architecture, **arguments).read_bytes()
    assert tiny_random.write(folder / "second.gguf", architecture, **arguments).read_bytes() == first
    assert tiny_random.write(folder / "third.gguf", architecture, **arguments | {"seed": 6}).read_bytes() != first


@pytest.mark.parametrize("name", ["a", "b", "s"])
def test_vocabulary_round_trip(folder: Path, name: str) -> None:
    """Every text survives, in fewer tokens than bytes; specials are single ids; a template is there."""
    path = tiny_random.write(folder / f"{name}.gguf", "llama", vocabulary=name, chat_template=True)
    with Probe(path) as probe:
        assert probe.n_vocab % 32 == 0
        for text in (TEXT, "naïve 🙂 日本語 ✓\n\n  x = 12345;\t'don't'", "\u0000\x7f"):
            said = b"".join(map(probe.piece, probe.tokenize(text)))
            assert said == (b" " if name == "s" else b"") + text.encode()
        assert len(probe.tokenize(TEXT)) < 0.7 * len(TEXT)
        assert len(probe.tokenize("<|im_start|><|im_end|>", special=True)) == 2
        assert llama_cpp.llama_vocab_is_eog(probe.vocab, probe.tokenize("<|im_end|>", special=True)[-1])
        assert llama_cpp.llama_model_chat_template(probe.model, None) == tiny_random.CHAT_TEMPLATE.encode()


def test_padding_keeps_the_model(folder: Path) -> None:
    """A longer tail of unused ids changes no logit of the others."""
    short = tiny_random.write(folder / "short.gguf", "llama", quantisation="Q8_0")
    long = tiny_random.write(folder / "long.gguf", "llama", quantisation="Q8_0", pad_to=704)
    with Probe(short) as one, Probe(long) as two:
        ids = one.tokenize(TEXT)
        assert two.tokenize(TEXT) == ids and two.n_vocab == 704 > one.n_vocab
        assert np.array_equal(one.decode(ids), two.decode(ids)[:, : one.n_vocab])
        assert two.piece(703) == b""


@pytest.mark.parametrize(
    "arguments, named",
    [
        ({"architecture": "gpt5"}, "gpt5"),
        ({"architecture": "llama", "hidden": 40}, "40"),
        ({"architecture": "jamba", "n_layer": 1}, "n_layer is 1"),
        ({"architecture": "llama", "quantisation": "Q2_K"}, "Q2_K"),
        ({"architecture": "llama", "vocabulary": "z"}, "'z'"),
        ({"architecture": "llama", "pad_to": 64}, "64"),
        ({"architecture": "llama", "noise": float("nan")}, "nan"),
        ({"architecture": "llama", "seed": -1}, "-1"),
        ({"architecture": "llama", "rare": -2.0}, "-2"),
    ],
)
def test_write_names_the_bad_value(folder: Path, arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        tiny_random.write(folder / "bad.gguf", **arguments)
    assert not list(folder.glob("bad*"))


# Mean total variation that rounding the weights may cost: relative errors of about 0, 2^-12, 1/120 and 1/9, which
# logits of deviation 4 and two layers amplify some fivefold.
ROUNDING = {"F32": 1e-3, "F16": 5e-3, "Q8_0": 0.06, "Q4_0": 0.6}


@pytest.mark.parametrize("quantisation", ROUNDING)
def test_widening_keeps_the_function(folder: Path, quantisation: str) -> None:
    """Widening costs nothing beyond the rounding, which the same file with factor 1 has too."""
    source = tiny_random.write(folder / "narrow.gguf", "llama", chat_template=True)
    same = widen(source, folder / "same.gguf", factor=1, quantisation=quantisation)
    wide = widen(source, folder / "wide.gguf", factor=2, quantisation=quantisation, template=False)
    original, rounded, widened = rows_of(source), rows_of(same), rows_of(wide)
    assert variation(original, widened).mean() < ROUNDING[quantisation]
    assert variation(rounded, widened).max() < 1e-3
    fields = gguf.GGUFReader(wide).fields
    assert fields["llama.feed_forward_length"].contents() == 2 * 192
    assert "tokenizer.chat_template" in gguf.GGUFReader(same).fields and "tokenizer.chat_template" not in fields


def test_widened_tensors(folder: Path) -> None:
    """Rows repeat, new columns are zero, and noise has the deviation that was asked for."""
    source = tiny_random.write(folder / "narrow.gguf", "llama")
    old = {t.name: t.data for t in gguf.GGUFReader(source).tensors}
    wide = widen(source, folder / "x3.gguf", factor=3, quantisation="F32")
    new = {t.name: t.data for t in gguf.GGUFReader(wide).tensors}
    assert np.array_equal(new["blk.0.ffn_up.weight"], np.tile(old["blk.0.ffn_up.weight"], (3, 1)))
    down = new["blk.0.ffn_down.weight"]
    assert np.array_equal(down[:, :192], old["blk.0.ffn_down.weight"]) and not down[:, 192:].any()
    noisy = gguf.GGUFReader(widen(source, folder / "noisy.gguf", factor=3, quantisation="F32", noise=0.1)).tensors
    for tensor in noisy:
        before = new[tensor.name]
        expected = 0.1 * before.std() if len(tensor.shape) > 1 else 0
        assert np.std(tensor.data - before) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "arguments, named",
    [({"factor": 0}, "0"), ({"quantisation": "Q6_K"}, "Q6_K"), ({"noise": -1.0}, "-1"), ({"seed": -2}, "-2")],
)
def test_widen_names_the_bad_value(folder: Path, arguments: dict, named: str) -> None:
    source = tiny_random.write(folder / "narrow.gguf", "llama")
    with pytest.raises(ValueError, match=named):
        widen(source, folder / "never.gguf", **arguments)
    assert not list(folder.glob("never*"))


def test_widen_refuses_other_architectures(folder: Path) -> None:
    source = tiny_random.write(folder / "qwen3.gguf", "qwen3")
    with pytest.raises(ValueError, match="qwen3"):
        widen(source, folder / "never.gguf")
    experts = tiny_random.write(folder / "moe.gguf", "moe")
    with pytest.raises(ValueError, match="experts"):
        widen(experts, folder / "never.gguf")


def test_widen_refuses_broken_sources(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        widen(folder / "nowhere.gguf", folder / "never.gguf")
    whole = tiny_random.write(folder / "whole.gguf", "llama").read_bytes()
    for size in (0, 3, 20, 3000, len(whole) // 2):
        (folder / "broken.gguf").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="broken.gguf"):
            widen(folder / "broken.gguf", folder / "never.gguf")
    assert not list(folder.glob("never*"))
