"""Does a file that cannot be used get an error that names it, and does the process live on?

Whatever could abort runs in a process of its own (broken_files.run_cases).
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import broken_files as broken
import numpy as np
import pytest
from broken_files import INSPECT, OPEN, Ending, run_cases

from kad_llama import KadLlama, inspect_file
from kad_llama.errors import FileError, ModelError, NotANumberError

Tiny = Callable[..., Path]
SMALL: dict[str, Any] = {"n_layer": 1, "hidden": 32}
ALONE: dict[str, Any] = {"rule": "base"}


@pytest.fixture(scope="module")
def small(tiny: Tiny) -> Path:
    return tiny("llama", **SMALL)


def assert_named(ending: Ending, *kinds: str) -> None:
    """The case ended with one of our errors, and the message has the file's name and more than that."""
    assert ending.how in kinds, str(ending)
    assert Path(ending.case[0] if isinstance(ending.case, list) else ending.case).name in ending.message, str(ending)


# ---- Files -----------------------------------------------------------------------------------------------------------


def damaged_files(small: Path, folder: Path) -> dict[str, Path]:
    """Files that are no whole GGUF, by what is wrong with them."""
    start, size = broken.tensor_start(small), small.stat().st_size
    files = {
        "missing": folder / "no-such-file.gguf",
        "directory": folder / "folder.gguf",
        "empty": folder / "empty.gguf",
        "random": folder / "random.gguf",
        "text": folder / "text.gguf",
        "magic only": folder / "magic.gguf",
        "absurd counts": folder / "counts.gguf",
        "fifo": folder / "fifo.gguf",
        "a file as a folder": small / "inside.gguf",
        "name too long": folder / ("x" * 5000),
        "odd name": folder / "naïve \n\udcff name.gguf",
    }
    files["directory"].mkdir()
    files["empty"].touch()
    files["random"].write_bytes(np.random.default_rng(0).bytes(5000))
    files["text"].write_text("This is no model.\n")
    files["magic only"].write_bytes(b"GGUF")
    files["absurd counts"].write_bytes(small.read_bytes()[:8] + b"\xff" * 15 + b"\x7f" + small.read_bytes()[24:])
    os.mkfifo(files["fifo"])
    for where in (5, 20, 100, start // 2, start - 1, start, (start + size) // 2, size - 1):
        name = f"truncated at {where}"
        files[name] = broken.truncated(small, folder / f"cut-{where}.gguf", where)
    return files


def test_damaged_files(small: Path, tmp_path: Path) -> None:
    files = damaged_files(small, tmp_path)
    for ending in run_cases(INSPECT, [str(path) for path in files.values()], seconds=10):
        assert ending.how == "FileError", str(ending)
        assert re.search(r"expected|fetch it again|convert|No such file|too long|Not a directory", ending.message), str(
            ending
        )
    for ending in run_cases(OPEN, [[str(path), None, ALONE] for path in files.values()], seconds=10):
        assert ending.how == "FileError", str(ending)


def test_truncation_says_how_much_is_missing(small: Path, tmp_path: Path) -> None:
    size = small.stat().st_size
    cut = broken.truncated(small, tmp_path / "cut.gguf", size - 100)
    with pytest.raises(FileError, match=rf"cut.gguf.*truncated: {size - 100} bytes of {size}, 100 are missing"):
        inspect_file(cut)


def test_unreadable_file(small: Path) -> None:
    """For root no file is unreadable: there the case becomes somebody else first."""
    become = "import os\n    if os.geteuid() == 0:\n        os.setgroups([]), os.setgid(65534), os.setuid(65534)\n"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # so that the other user comes as far as the file
        locked = Path(folder) / "locked.gguf"
        locked.write_bytes(small.read_bytes())
        locked.chmod(0)
        first, second = (
            run_cases(body.replace("import kad_llama\n", become + "    import kad_llama\n"), [str(locked)])[0]
            for body in ("def case(path):\n    import kad_llama\n    open(path)\n", INSPECT)
        )
    assert first.how == "PermissionError", str(first)
    assert_named(second, "FileError")
    assert "Permission denied" in second.message


def test_path_with_a_nul_is_refused(small: Path) -> None:
    """C would stop reading at the NUL and open another file."""
    for path in (f"{small}\0.part", "\0"):
        with pytest.raises(ValueError, match="NUL|null"):
            inspect_file(path)
        with pytest.raises(ValueError, match="NUL|null"):
            KadLlama(path, None, rule="base", n_ctx=32)


def test_split_files(small: Path, tmp_path: Path) -> None:
    count = (broken.UINT16, 2)
    second = broken.edited(
        small, tmp_path / "m-00002-of-00002.gguf", values={"split.no": (broken.UINT16, 1), "split.count": count}
    )
    first = broken.edited(
        small, tmp_path / "lonely-00001-of-00002.gguf", values={"split.no": (broken.UINT16, 0), "split.count": count}
    )
    unnamed = broken.edited(small, tmp_path / "x.gguf", values={"split.no": (broken.UINT16, 0), "split.count": count})
    with pytest.raises(FileError, match=r"m-00002-of-00002.gguf.*shard 2 of 2.*give the first one"):
        inspect_file(second)
    with pytest.raises(FileError, match=r"lonely-00002-of-00002.gguf"):
        inspect_file(first)
    with pytest.raises(FileError, match=r"x.gguf.*not named like one"):
        inspect_file(unnamed)
    (tmp_path / "lonely-00002-of-00002.gguf").write_bytes(second.read_bytes()[:-10])
    cases = [[str(path), None, ALONE] for path in (second, first, unnamed)]
    for ending in run_cases(OPEN, cases):
        assert ending.how == "FileError", str(ending)


def test_models_that_cannot_write(small: Path, tiny: Tiny, tmp_path: Path) -> None:
    bert = tiny("bert", quantisation="F32", **SMALL)
    plain = broken.edited(bert, tmp_path / "bert-no-key.gguf", drop=["bert.attention.causal"])
    encoder = broken.edited(small, tmp_path / "causal.gguf", values={"llama.attention.causal": (broken.BOOL, False)})
    vocabulary = broken.edited(small, tmp_path / "vocab.gguf", tensors=lambda _name, _data: None)
    no_tokens = broken.edited(small, tmp_path / "no-tokens.gguf", drop=["tokenizer.ggml.tokens"])
    no_vocab = broken.edited(
        small, tmp_path / "no-vocab.gguf", values={"tokenizer.ggml.model": (broken.STRING, "no_vocab")}
    )
    unknown = broken.edited(small, tmp_path / "arch.gguf", architecture="mystery")
    for path in (bert, encoder, vocabulary, no_tokens):
        with pytest.raises(ModelError, match=re.escape(path.name)):
            inspect_file(path)
    files = (bert, plain, encoder, vocabulary, no_tokens, no_vocab, unknown)
    endings = run_cases(OPEN, [[str(path), None, ALONE] for path in files])
    endings += run_cases(OPEN, [[str(small), str(path), {}] for path in files])
    for ending in endings:
        name = next(path.name for path in reversed(files) if str(path) in ending.case)
        assert ending.how in ("ModelError", "FileError"), str(ending)
        assert name in ending.message, str(ending)
    assert "mystery" in endings[6].message


U32 = (0, 1, 33, 513, 65536, 2**31 - 1, 2**32 - 1)


def odd_headers(source: Path, folder: Path) -> dict[str, Path]:
    """Sound GGUFs whose metadata are wrong, by what is wrong."""
    made: dict[str, Path] = {}

    def add(label: str, **change: Any) -> None:
        made[label] = broken.edited(source, folder / f"odd-{len(made)}.gguf", **change)

    for key in ("block_count", "expert_count", "embedding_length", "attention.head_count", "attention.head_count_kv"):
        for number in U32:
            add(f"{key} {number}", values={f"llama.{key}": (broken.UINT32, number)})
    for key in ("expert_used_count", "feed_forward_length", "rope.dimension_count", "attention.key_length"):
        for number in (0, 1, 7, 2**32 - 1):
            add(f"{key} {number}", values={f"llama.{key}": (broken.UINT32, number)})
    for label, value in (("nan", float("nan")), ("negative", -1.0), ("infinite", float("inf"))):
        add(f"epsilon {label}", values={"llama.attention.layer_norm_rms_epsilon": (broken.FLOAT32, value)})
    add("rope scaling", values={"llama.rope.scaling.type": (broken.STRING, "bogus")})
    for number in (0, 1, 31, 2**32 - 1):
        add(f"alignment {number}", values={"general.alignment": (broken.UINT32, number)})
    for name in ("tokens", "token_type", "merges"):
        key = f"tokenizer.ggml.{name}"
        for kind, value in ((broken.STRING, "a"), (broken.FLOAT32, 1.5), (None, [1.5, 2.5]), (None, ["a", "b"])):
            add(f"{name} as {value!r}", values={key: (kind, value)})
        add(f"no {name}", drop=[key])
    for value in ("", "a", "a b c"):
        add(f"merges {value!r}", values={"tokenizer.ggml.merges": (None, [value] * 300)})
    for tokenizer in ("llama", "bert", "t5", "rwkv", "mystery"):
        add(f"tokenizer {tokenizer}", values={"tokenizer.ggml.model": (broken.STRING, tokenizer)})
    for architecture in ("gemma3", "qwen3", "mamba", "t5", "bert", "gpt2", "rwkv6", "clip"):
        add(f"architecture {architecture}", architecture=architecture)
    for tensor in ("token_embd.weight", "output_norm.weight", "blk.0.attn_k.weight"):
        add(f"without {tensor}", tensors=lambda name, data, tensor=tensor: None if name == tensor else data)
        add(f"short {tensor}", tensors=lambda name, data, tensor=tensor: data[:-1] if name == tensor else data)
    return made


def assert_survived(endings: list[Ending], labels: dict[str, str]) -> None:
    """Every case ended with one of our errors, or well; none is called a defect of ours."""
    dead = [f"{labels[e.case[0]]}: {e.how} {e.message[:200]}" for e in endings if not e.survived]
    assert not dead, f"{len(dead)} of {len(endings)} cases: " + "; ".join(dead)
    internal = [f"{labels[e.case[0]]}: {e.message[:200]}" for e in endings if e.how == "InternalError"]
    assert not internal, "reported as a defect of kad-llama: " + "; ".join(internal)


def test_odd_headers(small: Path, tmp_path: Path) -> None:
    made = odd_headers(small, tmp_path)
    labels = {str(path): label for label, path in made.items()}
    # A file that says "llama.block_count = 4 thousand million" must not be read for minutes.
    endings = run_cases(OPEN, [[path, None, ALONE] for path in labels], seconds=5)
    assert_survived(endings, labels)
    for ending in endings:
        if ending.how == "FileError":
            assert Path(ending.case[0]).name in ending.message, str(ending)


def test_equal_tokens(small: Path, tmp_path: Path) -> None:
    """Two ids with one spelling: a single flipped bit among the tokens can make them."""
    import gguf

    tokens = gguf.GGUFReader(small).fields["tokenizer.ggml.tokens"].contents()
    twice = [*tokens[:-1], tokens[40]]
    path = broken.edited(small, tmp_path / "twice.gguf", values={"tokenizer.ggml.tokens": (None, twice)})
    assert_survived(run_cases(OPEN, [[str(path), None, ALONE]]), {str(path): "equal tokens"})


def test_odd_experts(tiny: Tiny, tmp_path: Path) -> None:
    moe = tiny("moe", **SMALL)
    labels = {}
    for key in ("expert_count", "expert_used_count"):
        for number in (0, 1, 5, 2**32 - 1):
            path = broken.edited(
                moe, tmp_path / f"{key}-{number}.gguf", values={f"llama.{key}": (broken.UINT32, number)}
            )
            labels[str(path)] = f"{key} {number}"
    assert_survived(run_cases(OPEN, [[path, None, ALONE] for path in labels], seconds=5), labels)


def fuzzed(source: Path, folder: Path, seeds: range, count: int) -> dict[str, str]:
    start = broken.tensor_start(source)
    paths = (broken.flipped(source, folder / f"fuzz-{seed}.gguf", seed, start, count) for seed in seeds)
    return {str(path): f"flips of seed {seed}" for seed, path in zip(seeds, paths, strict=True)}


def test_flipped_bytes_in_the_header(small: Path, tmp_path: Path) -> None:
    labels = fuzzed(small, tmp_path, range(200), 1) | fuzzed(small, tmp_path, range(200, 300), 4)
    assert_survived(run_cases(OPEN, [[path, None, ALONE] for path in labels], seconds=10), labels)


@pytest.mark.long
def test_flipped_bytes_in_many_headers(small: Path, tiny: Tiny, tmp_path: Path) -> None:
    labels = fuzzed(small, tmp_path, range(1000, 2500), 1)
    for architecture in ("moe", "gemma3", "jamba", "qwen3"):
        folder = tmp_path / architecture
        folder.mkdir()
        labels |= fuzzed(tiny(architecture), folder, range(150), 2)
    assert_survived(run_cases(OPEN, [[path, None, ALONE] for path in labels], seconds=10), labels)


def test_flipped_bytes_in_the_tensors(small: Path, tmp_path: Path) -> None:
    """Wrong weights are only wrong numbers: a text, or NaN said by name."""
    labels = {}
    for seed in range(20):
        path = broken.flipped(small, tmp_path / f"{seed}.gguf", seed, small.stat().st_size, count=500)
        path.write_bytes(
            small.read_bytes()[: broken.tensor_start(small)] + path.read_bytes()[broken.tensor_start(small) :]
        )
        labels[str(path)] = f"seed {seed}"
    assert_survived(run_cases(OPEN, [[path, None, ALONE] for path in labels], seconds=10), labels)


# ---- Not a number ----------------------------------------------------------------------------------------------------


def poison(source: Path, target: Path, tensor: str, rows: slice, value: float = float("nan")) -> Path:
    def change(name: str, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        if name == tensor:
            data = data.copy()
            data[rows] = value
        return data

    return broken.edited(source, target, tensors=change)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights(tiny: Tiny, tmp_path: Path, value: float) -> None:
    sound = tiny("llama", quantisation="F32", **SMALL)
    sick = poison(sound, tmp_path / "nan.gguf", "output.weight", slice(None), value)
    inside = poison(sound, tmp_path / "inside.gguf", "blk.0.attn_q.weight", slice(0, 4), value)
    cases: list[Any] = [[str(path), None, ALONE] for path in (sick, inside)]
    cases += [[str(path), str(sound), {}] for path in (sick, inside)]
    cases += [[str(sound), str(path), {"rule": "nudging"}] for path in (sick, inside)]
    for ending, who in zip(run_cases(OPEN, cases), ["base"] * 4 + ["aligned"] * 2, strict=True):
        assert ending.how == "NotANumberError", str(ending)
        assert who in ending.message, str(ending)


@pytest.mark.parametrize("samplers", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.05}, {"top_k": 1, "top_p": 0.5}])
@pytest.mark.parametrize("role", ["base", "aligned"])
def test_one_nan_logit_is_seen_behind_samplers(tiny: Tiny, tmp_path: Path, role: str, samplers: dict[str, Any]) -> None:
    """Truncation could drop the very token whose logit is NaN, and a text would come from a broken model."""
    sound = tiny("llama", quantisation="F32", **SMALL)
    sick = poison(sound, tmp_path / "one.gguf", "output.weight", slice(40, 41))
    pair = [str(sick), str(sound)] if role == "base" else [str(sound), str(sick)]
    body = OPEN.replace("max_tokens=3", f"max_tokens=3, spec=False, **{samplers}")
    for temperature in (1.0, 0.0):
        case = body.replace("seed=1", f"seed=1, temperature={temperature}")
        (ending,) = run_cases(case, [[*pair, {"rule": "nudging"}]])
        assert ending.how == "NotANumberError", f"temperature {temperature}: {ending}"
        assert role in ending.message and "token 40" in ending.message, str(ending)


def test_instance_works_on_after_nan(tiny: Tiny, tmp_path: Path) -> None:
    """NaN after one token only: the next prompt does not meet it."""
    sound = tiny("llama", quantisation="F32", **SMALL)
    with KadLlama(sound, None, rule="base", n_ctx=32, n_threads=1) as healthy:
        bad = healthy.tokenize("7")[0]
        expected = healthy.generate("The sky", raw=True, max_tokens=4, seed=3, temperature=0).text
    sick = poison(sound, tmp_path / "one.gguf", "token_embd.weight", slice(bad, bad + 1))
    with KadLlama(sick, None, rule="base", n_ctx=32, n_threads=1) as kad:
        with pytest.raises(NotANumberError, match="base model"):
            kad.generate("7", raw=True)
        assert kad.generate("The sky", raw=True, max_tokens=4, seed=3, temperature=0).text == expected


def test_a_failed_load_leaves_nothing_behind(small: Path, tmp_path: Path) -> None:
    """A second model that cannot be loaded frees the first."""
    bad = broken.edited(small, tmp_path / "arch.gguf", architecture="mystery")
    for _ in range(3):
        with pytest.raises(FileError, match="mystery"):
            KadLlama(small, bad, n_ctx=32, n_threads=1)
    with KadLlama(small, None, rule="base", n_ctx=32, n_threads=1) as kad:
        assert not kad.closed
