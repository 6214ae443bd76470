"""The command, with an engine that answers from a script: what goes where, and with which exit status."""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from fake_engine import MODELS, FakeEngine, Pipe, Terminal, engine_fixture, token, typed_fixture  # noqa: F401

from kad_llama.cli import answer, chat, main, output
from kad_llama.cli import arguments as flags
from kad_llama.errors import ContextError, InvalidArgumentError
from kad_llama.settings import Settings

# ---- Flags ---------------------------------------------------------------------------------------------------------

FLAGS = shlex.split("""
-h --help -m --model -a --aligned -p --prompt -f --file --system --raw --stop --demo
-n --max-tokens --temp --top-k --top-p --min-p -s --seed --rule --threshold -r --reference --rule-temp
--draft --no-ngram --no-spec --reproducible
-c --ctx-size -t --threads -ngl --n-gpu-layers -fa --flash-attn -ctk --cache-type-k -ctv --cache-type-v
-b --batch-size -ub --ubatch-size --no-mmap --mlock
-ngla -faa -ctka -ctva -ba -uba --no-mmapa --mlocka
--color --stats --json --verbose --version
--typical --repeat-penalty --repeat-last-n --presence-penalty --frequency-penalty --dry-multiplier --dry-base
--dry-allowed-length --dry-penalty-last-n --dry-sequence-breaker --xtc-probability --xtc-threshold -l --logit-bias --mirostat
--grammar --grammar-file -j --json-schema -jf --json-schema-file
""")


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
    line = """
        -p Hi -n 9 --temp 0.5 --top-k 4 --top-p 0.9 --min-p 0.1 -s 3 --rule primal --threshold 0.8 --rule-temp sampling
        --draft 2 --no-spec --reproducible -c 512 -t 2 -ngl 5 -ngla 6 --verbose --stop A --stop B
        -fa on -ctk q8_0 -ctv q4_0 -b 64 -ub 32 --no-mmap --mlock
        -faa auto -ctka f16 -ctva f32 -ba 16 -uba 8 --mlocka"""
    assert main([*MODELS, *shlex.split(line)]) == 0
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
                "ngram": True,
                "spec": False,
                "raw": False,
            },
        )
    ]


def test_the_reference_reaches_the_engine(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    line = "-p Hi --rule implicit-reward -r before.gguf -ctka q8_0"
    assert main([*MODELS, *shlex.split(line)]) == 0
    keywords = engine.made[0].keywords
    assert (keywords["reference"], keywords["reference_params"]) == ("before.gguf", {"type_k": "q8_0"})
    for wrong, words in (
        ("-p Hi --rule implicit-reward", "-r FILE is missing"),
        ("-p Hi -r before.gguf", "-r is for rule implicit-reward; rule dual uses no third model"),
    ):
        assert main([*MODELS, *shlex.split(wrong)]) == 2
        assert words in capsys.readouterr().err
    assert len(engine.made) == 1


def test_sampler_flags_reach_the_engine(engine: type[FakeEngine]) -> None:
    line = r"""
        -p Hi --typical 0.9 --repeat-penalty 1.1 --repeat-last-n 32 --presence-penalty 0.5 --frequency-penalty -0.25
        --dry-multiplier 0.8 --dry-base 2 --dry-allowed-length 3 --dry-penalty-last-n 99 --dry-sequence-breaker '\n'
        --dry-sequence-breaker ';' --xtc-probability 0.5 --xtc-threshold 0.2 -l ' a=b=-1.5' -l x=false -l y=-inf
        --mirostat 2 --grammar 'root ::= "x"'"""
    assert main([*MODELS, *shlex.split(line)]) == 0
    given = engine.made[0].calls[0][1]
    assert {name: value for name, value in given.items() if name in read_settings_names()} == {
        "typical_p": 0.9,
        "repeat_penalty": 1.1,
        "repeat_last_n": 32,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.25,
        "dry_multiplier": 0.8,
        "dry_base": 2.0,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 99,
        "dry_sequence_breakers": ["\n", ";"],
        "xtc_probability": 0.5,
        "xtc_threshold": 0.2,
        "logit_bias": {" a=b": -1.5, "x": -math.inf, "y": -math.inf},
        "mirostat": 2,
        "grammar": 'root ::= "x"',
    }


def read_settings_names() -> set[str]:
    """The keywords that only the sampler and grammar flags set."""
    names = {field.name for field in fields(Settings)}
    return names - {"max_tokens", "temperature", "top_k", "top_p", "min_p", "seed", "stop", "draft", "ngram", "spec"}


def test_no_sampler_flag_leaves_the_defaults_to_the_engine(engine: type[FakeEngine]) -> None:
    assert main([*MODELS, "-p", "Hi", "--dry-sequence-breaker", "none"]) == 0
    given = engine.made[0].calls[0][1]
    assert {name: given[name] for name in given.keys() & read_settings_names()} == {"dry_sequence_breakers": []}


def test_grammar_files(engine: type[FakeEngine], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.json"
    schema.write_bytes(b'\xef\xbb\xbf{"type": "object"}')
    assert main([*MODELS, "-p", "Hi", "-jf", str(schema)]) == 0
    assert engine.made[0].calls[0][1]["json_schema"] == '{"type": "object"}'
    schema.write_bytes(b"root ::= \xff")
    for name, words in ((str(schema), "not UTF-8 at byte 9"), (str(tmp_path / "gone"), "cannot read the grammar")):
        assert main([*MODELS, "-p", "Hi", "--grammar-file", name]) != 0
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "line", ["-l x", "-l =1", "-l x=nan", "-l x=much", "--grammar a --json-schema {}", "--typical x"]
)
def test_sampler_flags_that_mean_nothing(line: str, engine: type[FakeEngine]) -> None:
    assert main([*MODELS, "-p", "Hi", *line.split()]) != 0
    assert not engine.made


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
        "draft": "auto",
        "ngram": True,
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
    engine.scripts.append([token("Yes.\n")])
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
        "base_logprob": None,
        "aligned_logprob": None,
        "ids": [5],
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
    engine.scripts.append([token("The"), InvalidArgumentError("threshold is 2: expected 0 to 1")])
    assert main([*MODELS, "-p", "Why?"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "The\n"
    assert captured.err == "kad-llama: error: threshold is 2: expected 0 to 1\n"


def test_ctrl_c_is_status_130(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    engine.scripts += [[token("The"), KeyboardInterrupt()], [token("The"), KeyboardInterrupt()]]
    assert main([*MODELS, "-p", "Why?"]) == 130
    assert capsys.readouterr().out == "The\n"
    assert main([*MODELS, "-p", "Why?", "--json"]) == 130
    out = json.loads(capsys.readouterr().out)
    assert (out["text"], out["finish_reason"]) == ("The", "interrupted")


def test_a_reader_that_leaves(engine: type[FakeEngine], capsys: pytest.CaptureFixture[str]) -> None:
    engine.scripts.append([token("The"), BrokenPipeError()])
    assert main([*MODELS, "-p", "Why?"]) == 141
    assert capsys.readouterr().err == ""


def test_a_real_pipe_whose_reader_has_gone() -> None:
    """No traceback, at the interpreter's end neither."""
    code = (
        "import sys; from kad_llama import cli; cli._answer = lambda argv: print('text') or 0; sys.stdin.read(); "
        "sys.exit(cli.main([]))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


# ---- Chat ----------------------------------------------------------------------------------------------------------


def say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_chat_keeps_the_conversation(
    engine: type[FakeEngine], typed: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    engine.scripts += [[token("Hello.")], [token("Fine.")], [token("Who?")]]
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
    engine.scripts += [[token("Once"), KeyboardInterrupt()], [KeyboardInterrupt()], [token("Then")]]
    typed("Tell", "Dropped", KeyboardInterrupt(), "More", KeyboardInterrupt(), KeyboardInterrupt(), "never read")
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
    engine.scripts += [[ContextError("prompt of 5000 tokens, context of 4096")], [token("Yes")]]
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


def test_json_has_no_nan() -> None:
    assert output.finite({"a": [math.inf, (1.5, math.nan)], "b": "x"}) == {"a": [None, [1.5, None]], "b": "x"}


def test_rule_temperature() -> None:
    assert flags.rule_temperature("0.5") == 0.5
    assert flags.rule_temperature("sampling") == "sampling"
    with pytest.raises(argparse.ArgumentTypeError, match="expected a number or 'sampling'"):
        flags.rule_temperature("hot")
