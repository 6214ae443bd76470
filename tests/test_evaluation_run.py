"""Does an evaluation ask every setting the same, store every answer once, and go on where it stopped?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kad_llama import KadLlama
from kad_llama.errors import ContextError, InvalidArgumentError, ModelError, StateError
from kad_llama.evaluation import Answer, Progress, Results, Task, evaluate, load_task, question_seed, read_results
from kad_llama.evaluation import engines as engines_module
from kad_llama.evaluation.answers import Store, read_answers
from kad_llama.evaluation.settings import read_rule, settings_of

Tiny = Callable[..., Path]
Pair = tuple[Path, Path]

TASK = """
data = "data.jsonl"
prompt = "How much is {a} and {b}?"
transcript = "{a} + {b}"
target = "{sum}"
find = "last number"
compare = "numeric"
max_tokens = 8
examples = [{question = "1 + 1", answer = "It is 2."}, {question = "2 + 1", answer = "It is 3."}]
"""


# One thread: two that share busy cores with other processes wait for each other most of the time.
asked = partial(evaluate, n_threads=1)


def write_task(folder: Path, n: int = 40) -> Path:
    lines = [json.dumps({"a": 10 + i, "b": i, "sum": 10 + 2 * i}) for i in range(n)]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "sums.toml").write_text(TASK)
    return folder / "sums.toml"


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_task(tmp_path))


def lines_of(folder: Path) -> list[bytes]:
    return (folder / "answers.jsonl").read_bytes().splitlines()


def texts(results: Results) -> dict[Any, Any]:
    return {
        a.key: (a.seed, a.prompt, a.text, a.answer, a.correct, a.form, a.tokens, a.aligned_share)
        for a in results.answers
    }


# ---- What is asked ------------------------------------------------------------------------------------------------------


def test_all_settings_answer_the_same_questions_with_the_same_seeds(
    tiny_pair: Pair, task: Task, tmp_path: Path
) -> None:
    seen: list[Progress] = []
    results = asked(
        *tiny_pair,
        task,
        directory=tmp_path / "out",
        rules=["dual", "primal:0.8", "base", "dual:0.4"],
        n=3,
        repetitions=2,
        shots=[1, 2],
        seed=5,
        progress=seen.append,
    )
    assert results.settings == [
        *("base alone", "base alone, 1 worked example", "base alone, 2 worked examples", "aligned alone"),
        *("dual 0.4", "primal 0.8", "base"),
    ]
    expected = {(q, r): question_seed(5, r, q) for q in "123" for r in (0, 1)}
    for setting in results.settings:
        assert {(a.question, a.repetition): a.seed for a in results.of(setting)} == expected
    assert [(a.done, a.total) for a in seen if a.total][-1] == (42, 42)
    assert [a.done for a in seen if a.now in results.settings] == list(range(1, 43))
    # Question by question: all settings answer one before the next one comes.
    assert [a.question for a in read_results(tmp_path / "out").answers] == [q for q in "123" for _ in range(14)]


def test_a_seed_is_a_function_of_three_things() -> None:
    seeds = {question_seed(s, r, q) for s in (0, 1) for r in (0, 1) for q in ("1", "11", "2")}
    assert len(seeds) == 12 and all(0 <= seed < 2**53 for seed in seeds)
    assert question_seed(1, 0, "chal-1") == 7472605337234953  # stored answers depend on it


def test_texts_are_those_of_the_engine(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    results = asked(
        *tiny_pair, task, directory=tmp_path / "out", rules=["dual:0.3"], n=2, reproducible=True, temperature=0.9
    )
    with KadLlama(*tiny_pair, rule="dual", threshold=0.3, reproducible=True, n_threads=1) as kad:
        for answer, question in zip(results.of("dual 0.3"), task.questions, strict=False):
            out = kad.generate(question.prompt, max_tokens=8, temperature=0.9, seed=question_seed(1, 0, question.id))
            assert (answer.text, answer.tokens, answer.prompt) == (
                out.text,
                out.stats.tokens,
                kad.prompt(question.prompt).base_text,
            )
            assert answer.deferred_mass == pytest.approx(out.stats.deferred_mass)
            assert answer.prompt == results.of("base alone")[int(answer.question) - 1].prompt
            mark = task.mark(question, out.text)
            assert (answer.answer, answer.correct, answer.form) == (mark.answer, mark.correct, mark.form)
    with KadLlama(None, tiny_pair[1], rule="aligned", reproducible=True, n_threads=1) as kad:
        out = kad.generate(task.questions[1].prompt, max_tokens=8, temperature=0.9, seed=question_seed(1, 0, "2"))
        assert results.of("aligned alone")[1].text == out.text


def test_worked_examples_are_a_transcript(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    results = asked(*tiny_pair, task, directory=tmp_path / "out", rules=[], n=1, shots=[2], single=False)
    (answer,) = results.answers
    assert (
        answer.prompt
        == "Question: 1 + 1\nAnswer: It is 2.\n\nQuestion: 2 + 1\nAnswer: It is 3.\n\nQuestion: 10 + 0\nAnswer:"
    )
    assert (answer.rule, answer.threshold, answer.shots, answer.mode) == ("base", None, 2, "plain")


def test_a_plain_transcript_without_examples(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    results = asked(*tiny_pair, task, directory=tmp_path / "out", rules=["dual"], n=1, shots=[0])
    assert results.settings == ["base alone", "base alone, plain transcript", "aligned alone", "dual 0.4"]
    (answer,) = results.of("base alone, plain transcript")
    assert answer.prompt == "Question: 10 + 0\nAnswer:"
    assert [row.is_rule for row in results.rows] == [False, False, False, True]


def test_worked_examples_by_default(task: Task) -> None:
    assert [setting.shots for setting in settings_of(task, ["dual"])] == [0, 0, 0]  # it has two, not five
    five = replace(task, examples=task.examples * 3)
    assert [setting.shots for setting in settings_of(five, "dual,bet")] == [0, 5, 0, 0, 0]
    assert [setting.shots for setting in settings_of(five, ["dual"], shots=())] == [0, 0, 0]


def test_different_vocabularies(tiny_cross_pair: Pair, task: Task, tmp_path: Path) -> None:
    results = asked(*tiny_cross_pair, task, directory=tmp_path / "out", rules=["dual"], n=1)
    (alone,), (pair,) = results.of("base alone"), results.of("dual 0.4")
    assert alone.prompt == pair.prompt == "Question: How much is 10 and 0?\nAnswer:"
    assert pair.prompt_aligned is not None and "im_start" in pair.prompt_aligned
    assert results.of("aligned alone")[0].prompt == pair.prompt_aligned


def test_a_reference_comes_later(tiny_pair: Pair, tiny: Tiny, task: Task, tmp_path: Path) -> None:
    first = asked(*tiny_pair, task, directory=tmp_path / "out", n=2)
    assert first.header["reference"] is None
    third = tiny("llama", noise=0.2, noise_seed=7)
    results = asked(*tiny_pair, task, directory=tmp_path / "out", n=2, rules=["implicit-reward"], reference=third)
    assert (
        results.header["reference"]["name"] == third.name == read_results(tmp_path / "out").header["reference"]["name"]
    )
    assert len(results.answers) == 8 and len(lines_of(tmp_path / "out")) == 9
    (answer, _) = results.of("implicit-reward 1")
    assert answer.deferred_mass is None and answer.aligned_share is None
    other = tiny("llama", noise=0.2, noise_seed=8)
    with pytest.raises(InvalidArgumentError, match="differs in the reference file"):
        asked(*tiny_pair, task, directory=tmp_path / "out", n=2, rules=["implicit-reward"], reference=other)


def test_several_texts_at_a_time_are_the_same_texts(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    one = asked(*tiny_pair, task, directory=tmp_path / "one", n=3, repetitions=2, reproducible=True)
    many = asked(*tiny_pair, task, directory=tmp_path / "many", n=3, repetitions=2, reproducible=True, jobs=4)
    assert texts(one) == texts(many)
    assert {a.jobs for a in one.answers} == {1} and {a.jobs for a in many.answers} == {4}


def test_engines_take_turns_where_memory_is_short(
    tiny_pair: Pair, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines_module, "_memory_for_all", lambda: 0.0)
    monkeypatch.setattr("kad_llama.evaluation.runner.ROUND", 2)
    open_now: set[int] = set()
    most = 0

    class Counted(KadLlama):
        def __init__(self, *given: Any, **keywords: Any) -> None:
            nonlocal most
            super().__init__(*given, **keywords)
            open_now.add(id(self))
            most = max(most, len(open_now))

        def close(self) -> None:
            open_now.discard(id(self))
            super().close()

    monkeypatch.setattr(engines_module, "KadLlama", Counted)
    results = asked(*tiny_pair, task, directory=tmp_path / "out", rules=["dual", "bet"], n=3)
    order = [(a.setting, a.question) for a in results.answers]
    names = ["base alone", "aligned alone", "dual 0.4", "bet 0.2"]
    assert order == [(name, q) for qs in ("12", "3") for name in names for q in qs]
    assert most == 2 and not open_now
    together = asked(*tiny_pair, task, directory=tmp_path / "other", rules=["dual", "bet"], n=3, jobs=1)
    assert {a.key for a in together.answers} == {a.key for a in results.answers}


# ---- Going on -----------------------------------------------------------------------------------------------------------


def test_more_rules_questions_and_seeds_are_added(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked(*tiny_pair, task, directory=out, rules=["dual"], n=2)
    before = lines_of(out)
    assert len(before) == 1 + 2 * 3
    asked(*tiny_pair, task, directory=out, rules=["dual"], n=2)
    assert lines_of(out) == before
    results = asked(*tiny_pair, task, directory=out, rules=["dual", "bet"], n=3, repetitions=2)
    assert lines_of(out)[: len(before)] == before
    assert len(lines_of(out)) == 1 + 3 * 4 * 2 and results.is_even
    fewer = asked(*tiny_pair, task, directory=out, rules=["bet"], n=1)
    assert len(fewer.answers) == 24  # everything that is there


# Without matplotlib, which takes a second to import. Ctrl-C comes a moment after this run has stored so many answers.
COMMAND = """
import os, signal, sys, threading
sys.modules["matplotlib"] = None
from kad_llama.cli import main
from kad_llama.evaluation.answers import Store
add, left = Store.add, [int(os.environ.get("STOP_AFTER", 0))]
def counted(self, answer):
    add(self, answer)
    left[0] -= 1
    if left[0] == 0:
        threading.Timer(0.003, os.kill, (os.getpid(), signal.SIGINT)).start()
Store.add = counted
sys.exit(main())
"""


def run_command(pair: Pair, task: Path, out: Path, stop_after: int = 0) -> subprocess.CompletedProcess[str]:
    line = ["eval", "-m", str(pair[0]), "-a", str(pair[1]), "--task", str(task), "-o", str(out), "--reproducible"]
    line += ["-n", "30", "--max-tokens", "32", "--rules", "dual,primal", "--shots", "2", "-c", "512", "-t", "1"]
    environment = os.environ | {"STOP_AFTER": str(stop_after)}
    return subprocess.run(
        [sys.executable, "-c", COMMAND, *line], capture_output=True, text=True, timeout=90, env=environment
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_an_interrupted_run_goes_on(tiny_pair: Pair, tmp_path: Path) -> None:
    """Ctrl-C twice in mid-run, then to the end: the answers are those of a run in one piece, and each is there once."""
    path = write_task(tmp_path)
    total = 30 * 5
    whole = run_command(tiny_pair, path, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "parts"
    kept: list[bytes] = []
    for stop_after in (10, 50):
        stopped = run_command(tiny_pair, path, out, stop_after)
        assert stopped.returncode == 130, stopped.stdout + stopped.stderr
        assert "Traceback" not in stopped.stderr and "goes on from here" in stopped.stderr
        lines = lines_of(out)
        assert len(kept) + stop_after <= len(lines) < total + 1, "it was not interrupted in mid-run"
        assert lines[: len(kept)] == kept
        kept = lines
        questions = len({json.loads(line)["question"] for line in lines[1:]})
        assert f"{questions} questions" in (out / "report.md").read_text()
    done = run_command(tiny_pair, path, out)
    assert done.returncode == 0, done.stderr
    assert lines_of(out)[: len(kept)] == kept and len(lines_of(out)) == total + 1
    assert texts(read_results(out)) == texts(read_results(tmp_path / "whole"))
    assert [a.key for a in read_results(out).answers] == [a.key for a in read_results(tmp_path / "whole").answers]


def test_an_answer_under_way_is_not_stored(
    tiny_pair: Pair, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several at a time: those that had ended are kept, the others are written again."""
    from kad_llama import batch

    real, calls = batch._Batch._end, []

    def end(self: Any, i: int, interrupted: bool) -> None:
        real(self, i, interrupted)
        calls.append(interrupted)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(batch._Batch, "_end", end)
    with pytest.raises(KeyboardInterrupt):
        asked(*tiny_pair, task, directory=tmp_path / "out", rules=["dual"], n=4, jobs=4, single=False)
    stored = read_results(tmp_path / "out").answers
    assert 1 <= len(stored) <= 2 and all(a.finish_reason != "interrupted" for a in stored)
    monkeypatch.undo()
    results = asked(*tiny_pair, task, directory=tmp_path / "out", rules=["dual"], n=4, jobs=4, single=False)
    assert len(results.answers) == 4


# ---- The store ----------------------------------------------------------------------------------------------------------


def test_a_cut_last_line_is_written_again(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = asked(*tiny_pair, task, directory=out, n=2, reproducible=True)
    content = (out / "answers.jsonl").read_bytes()
    for cut in (1, 20, len(content.splitlines()[-1])):
        (out / "answers.jsonl").write_bytes(content[:-cut])
        assert len(read_results(out).answers) == 5
        again = asked(*tiny_pair, task, directory=out, n=2, reproducible=True)
        assert texts(again) == texts(whole)
        assert len(lines_of(out)) == 7 and all(json.loads(line) for line in lines_of(out))
    (out / "answers.jsonl").write_bytes(content[:30])  # of the header
    with pytest.raises(InvalidArgumentError, match=r"answers.jsonl' is empty"):
        read_results(out)
    assert len(asked(*tiny_pair, task, directory=out, n=1).answers) == 3


def test_a_damaged_line_is_named(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked(*tiny_pair, task, directory=out, n=2)
    lines = lines_of(out)
    for bad, message in (
        (b"{oops", "line 3 is no JSON object"),
        (b"\xff", "line 3 is no"),
        (b'{"setting": 1}', "line 3 has no 'rule'"),
    ):
        (out / "answers.jsonl").write_bytes(b"\n".join([*lines[:2], bad, *lines[3:]]) + b"\n")
        for read in (lambda: read_results(out), lambda: asked(*tiny_pair, task, directory=out, n=2)):
            with pytest.raises(InvalidArgumentError, match=message):
                read()
    (out / "answers.jsonl").write_bytes(b'{"x": 1}\n')
    with pytest.raises(InvalidArgumentError, match="line 1: kad_llama_eval is None; expected 1"):
        read_results(out)
    with pytest.raises(InvalidArgumentError, match=r"cannot read .*nowhere.*expected the directory of an evaluation"):
        read_results(tmp_path / "nowhere")


def test_answers_of_something_else_are_refused(tiny_pair: Pair, tiny: Tiny, task: Task, tmp_path: Path) -> None:
    base, aligned = tiny_pair
    out = tmp_path / "out"
    asked(base, aligned, task, directory=out, n=1)
    before = (out / "answers.jsonl").read_bytes()

    def refused(message: str, base: Path = base, aligned: Path = aligned, task: Task = task, **more: Any) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            asked(base, aligned, task, directory=out, n=1, **more)
        assert (out / "answers.jsonl").read_bytes() == before

    other = tiny("llama", noise=0.3, noise_seed=2, chat_template=True)
    refused(r"answers of another evaluation, which differs in the base file \(there \d+ bytes, SHA-256", base=other)
    refused("differs in the aligned file", aligned=other)
    refused(r"differs in temperature \(there 0.7, here 0.5\)\. Give another directory", temperature=0.5)
    refused("differs in max tokens", max_tokens=5)
    refused("differs in seed", seed=2)
    refused("differs in n ctx", n_ctx=256)
    refused("differs in rule temperature", rule_temperature="sampling")
    refused("differs in reproducible", reproducible=True)
    refused(r"differs in params \(there None, here .*q8_0", base_params={"type_k": "q8_0"})
    asked(base, aligned, task, directory=out, n=1, base_params={"load_mode": 0})  # changes no number
    assert (out / "answers.jsonl").read_bytes() == before
    refused("temperature .*; max tokens", temperature=0.5, max_tokens=5)
    (tmp_path / "data.jsonl").write_text((tmp_path / "data.jsonl").read_text() + "\n")
    refused(r"differs in the data \(there [0-9a-f]{12}, here [0-9a-f]{12}\)", task=load_task(tmp_path / "sums.toml"))
    write_task(tmp_path)
    (tmp_path / "sums.toml").write_text(TASK + "stop = ['x']")
    refused("differs in the task file", task=load_task(tmp_path / "sums.toml"))


def test_names_and_folders_of_the_files_do_not_matter(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    base = tmp_path / "renamed.gguf"
    base.write_bytes(tiny_pair[0].read_bytes())
    asked(*tiny_pair, task, directory=tmp_path / "out", n=1)
    asked(base, tiny_pair[1], task, directory=tmp_path / "out", n=1)
    assert len(lines_of(tmp_path / "out")) == 4


def test_one_process_at_a_time(tiny_pair: Pair, task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    header = asked(*tiny_pair, task, directory=out, n=1).header
    held = (
        "import sys, json; from kad_llama.evaluation.answers import Store\n"
        "with Store(sys.argv[1], json.loads(sys.argv[2])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held, str(out), json.dumps(header)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(StateError, match=rf"another run \(process {other.pid}\) writes to .*out"):
            asked(*tiny_pair, task, directory=out, n=2)
        assert len(read_results(out).answers) == 3  # reading needs no lock
        other.kill()
    with Store(out, header):
        pass
    assert len(asked(*tiny_pair, task, directory=out, n=2).answers) == 6


def test_a_line_is_what_was_answered(tmp_path: Path) -> None:
    answer = Answer(
        *("dual 0.4", "dual", 0.4, 0, 7, 0, "é\u2028", "p", None, "text\n\ud800", None, "5", False, False, "stop"),
        *(3, 0.25, 2, 3, 4, 3, 0.5, 0.25, "auto", 1),
    )
    with Store(tmp_path, {"kad_llama_eval": 1, "task": {}}) as store:
        store.add(answer)
        assert read_answers(tmp_path)[1] == [answer]  # at once, not at the end


# ---- Errors -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("duel", "rule 'duel' is unknown; expected one of dual"),
        ("dual:x", "rule 'dual:x' has the threshold 'x'; expected NAME or NAME:NUMBER"),
        ("dual:2", "threshold 2.0 is out of range for rule 'dual'; expected 0 to 1"),
        ("base:0.5", "threshold 0.5: rule 'base' has none"),
        ("dual:nan", "finite"),
    ],
)
def test_rules_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        read_rule(text)


def test_errors_before_anything_is_opened(
    tiny_pair: Pair, tiny_cross_pair: Pair, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*given: Any, **keywords: Any) -> None:
        raise AssertionError("a model was opened")

    monkeypatch.setattr(engines_module, "KadLlama", never)

    def refused(error: type[Exception], message: str, pair: Pair = tiny_pair, **more: Any) -> None:
        with pytest.raises(error, match=message):
            asked(*pair, task, directory=tmp_path / "out", **more)
        assert not (tmp_path / "out").exists()

    refused(InvalidArgumentError, "rule 'duel' is unknown", rules=["dual", "duel"])
    refused(InvalidArgumentError, "needs a reference", rules=["implicit-reward"])
    refused(ModelError, "needs one vocabulary", pair=tiny_cross_pair, rules=["implicit-reward"], reference=tiny_pair[0])
    refused(InvalidArgumentError, "nothing to compare", rules=[], single=False)
    refused(InvalidArgumentError, "n is 0; expected", n=0)
    refused(InvalidArgumentError, "repetitions is 0; expected", repetitions=0)
    refused(InvalidArgumentError, "jobs is 65; expected", jobs=65)
    refused(InvalidArgumentError, "3 worked examples were asked for, but task 'sums' has 2", shots=[3])
    refused(InvalidArgumentError, "shots has -1; expected", shots=[-1])
    refused(InvalidArgumentError, "temperature 0 with rule_temperature", temperature=0, rule_temperature="sampling")
    refused(InvalidArgumentError, "n_ctx", n_ctx=0)
    refused(Exception, "missing.gguf", pair=(tmp_path / "missing.gguf", tiny_pair[1]))


def test_a_question_that_does_not_fit_is_named(tiny_pair: Pair, tmp_path: Path) -> None:
    write_task(tmp_path, 2)
    with open(tmp_path / "data.jsonl", "a") as data:
        data.write(json.dumps({"a": "very " * 400, "b": 1, "sum": 3}) + "\n")
    with pytest.raises(ContextError, match="base alone, question 3: .*context"):
        asked(*tiny_pair, load_task(tmp_path / "sums.toml"), directory=tmp_path / "out", n_ctx=128)
    assert len(read_results(tmp_path / "out").answers) == 6


def test_the_digest_of_a_file_is_kept(tiny_pair: Pair, tmp_path: Path) -> None:
    import hashlib

    from kad_llama.evaluation.identity import model_identity

    path = tmp_path / "m.gguf"
    path.write_bytes(b"one")
    read: list[str] = []
    first = model_identity(path, read.append)
    assert first == model_identity(path, read.append)
    assert first == {"name": "m.gguf", "size": 3, "sha256": hashlib.sha256(b"one").hexdigest()} and len(read) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert model_identity(path, read.append)["sha256"] == hashlib.sha256(b"two").hexdigest()
    for i, part in ((1, b"o"), (2, b"ne")):
        (tmp_path / f"s-0000{i}-of-00002.gguf").write_bytes(part)
    shards = model_identity(tmp_path / "s-00001-of-00002.gguf", read.append)
    assert (shards["size"], shards["sha256"]) == (3, first["sha256"])
