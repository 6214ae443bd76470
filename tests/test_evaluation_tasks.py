"""Task files: do they say what is asked and what is right, and is what is wrong with them named?"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation import BUILT_IN, load_task

TASK = """
name = "sums"
data = "sums.jsonl"
prompt = "What is {a} and {b}?"
target = "{sum}"
find = "last number"
compare = "numeric"
"""
LINES = [{"a": 1, "b": 2, "sum": 3}, {"a": 2, "b": "2", "sum": "4.0"}]

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(task, lines)``: a task file with its data beside it; returns the task file."""

    def make(task: str = TASK, lines: Any = LINES, name: str = "sums.jsonl") -> Path:
        content = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name).write_text(content)
        path = tmp_path / "task.toml"
        path.write_text(task)
        return path

    return make


def test_questions(write: Write) -> None:
    task = load_task(write())
    assert task.name == "sums" and task.max_tokens == 256 and task.stop == () and task.skipped == ()
    first, second = task.questions
    assert (first.id, first.prompt, first.target) == ("1", "What is 1 and 2?", "3")
    assert (second.id, second.prompt, second.transcript) == ("2", "What is 2 and 2?", "What is 2 and 2?")
    assert task.mark(second, "2 and 2 is 4.").correct and task.mark(second, "$4.00").correct
    assert task.mark(second, "it is 5").form and not task.mark(second, "it is 5").correct
    assert not task.mark(second, "it is four").form
    assert task.first(1) == (first,) and task.first(None) == task.first(9) == task.questions


def test_a_json_list_and_a_file_elsewhere(write: Write, tmp_path: Path) -> None:
    path = write(lines=json.dumps(LINES, indent=4))
    assert len(load_task(path).questions) == 2
    (tmp_path / "other.json").write_text('[{"a": 5, "b": 5, "sum": 10}]')
    assert load_task(path, data=tmp_path / "other.json").questions[0].target == "10"


def test_every_key(write: Write) -> None:
    task = load_task(
        write(
            """
            data = "sums.jsonl"
            id = "{meta.id}"
            system = "Be brief."
            prompt = "{{{q}}} {options}"
            transcript = "{q}"
            target = "is: {answer}"
            target_pattern = 'is: (\\S+)'
            options = "choices.text"
            labels = "choices.label"
            find = "option letter"
            ignore = ["case"]
            max_tokens = 7
            stop = ["\\n\\n"]
            examples = [{question = "So?", answer = "A."}]
            """,
            [
                {
                    "meta": {"id": "x1"},
                    "q": "Why?",
                    "answer": "2",
                    "choices": [{"text": t, "label": n} for n, t in ((1, "yes"), (2, "no"))],
                }
            ],
        )
    )
    (question,) = task.questions
    assert (question.id, question.prompt) == ("x1", "{Why?} A. yes\nB. no")
    assert (question.transcript, question.target, question.letters) == ("Why?", "B", "AB")
    assert (task.name, task.system, task.max_tokens, task.stop) == ("task", "Be brief.", 7, ("\n\n",))
    assert task.worked(1)[0].answer == "A." and task.mark(question, "The answer is B").correct


def test_a_target_may_be_the_place_of_an_option(write: Write) -> None:
    text = 'data = "sums.jsonl"\nprompt = "{q}"\ntarget = "{n}"\noptions = "o"\nfind = "option letter"\n'
    task = load_task(write(text, [{"q": "?", "n": 1, "o": ["x", "y"]}, {"q": "?", "n": "A", "o": ["x", "y"]}]))
    assert [question.target for question in task.questions] == ["B", "A"]


BAD_LINES = [
    ("{", r"line 2: Expecting property name .* at column 2; expected one JSON object"),
    ('{"a": 1}', r"line 2: there is no 'b'; expected the fields that the task names"),
    ("3", r"line 2: it is '3'; expected one JSON object"),
    ('{"a": [1], "b": 2, "sum": 3}', r"line 2: 'a' is \[1\]; expected text or a number"),
    ('{"a": null, "b": 2, "sum": 3}', r"line 2: 'a' is None; expected text or a number"),
    ('{"a": 1, "b": 2, "sum": "three"}', r"line 2: the target is 'three'; expected a number"),
    ('{"a": 1, "b": 2, "sum": ""}', r"line 2: the target is ''; expected a number"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_a_malformed_line_is_named_or_skipped(write: Write, line: str, message: str) -> None:
    good = [json.dumps(entry) for entry in LINES]
    path = write(lines="\n".join([good[0], line, "", good[1]]))
    with pytest.raises(InvalidArgumentError, match=rf"sums.jsonl', {message}.*--bad-lines skip"):
        load_task(path)
    task = load_task(path, bad_lines="skip")
    assert [question.id for question in task.questions] == ["1", "4"]
    assert len(task.skipped) == 1 and "sums.jsonl', line 2: " in task.skipped[0]


@pytest.mark.parametrize("line", ["[" * 200_000, '{"a": 1, "b": ' + "9" * 5000 + "}"], ids=["brackets", "digits"])
def test_a_line_that_the_parser_gives_up_on(write: Write, line: str) -> None:
    test_a_malformed_line_is_named_or_skipped(write, line, "line 2: ")
    with pytest.raises(InvalidArgumentError, match=r"sums.jsonl'.*expected one JSON list|sums.jsonl', line 1: "):
        load_task(write(lines=line))


def test_two_questions_of_one_id(write: Write) -> None:
    path = write(TASK + 'id = "{a}"\n', [*LINES, {"a": 1, "b": 9, "sum": 10}])
    with pytest.raises(InvalidArgumentError, match=r"line 3: the id '1' is also that of .*line 1"):
        load_task(path)
    assert len(load_task(path, bad_lines="skip").questions) == 2


def test_targets_that_a_task_cannot_have(write: Write) -> None:
    letters = 'data = "sums.jsonl"\nprompt = "{q}"\ntarget = "{t}"\nfind = "option letter"\nletters = "AB"\n'
    with pytest.raises(InvalidArgumentError, match="the target is 'C'; expected one of the letters A, B"):
        load_task(write(letters, [{"q": "?", "t": "C"}]))
    with pytest.raises(InvalidArgumentError, match=r"the target '3' has nothing that '#### \(.*' matches"):
        load_task(write(TASK + "target_pattern = '#### (.*)'", LINES))
    with pytest.raises(InvalidArgumentError, match=r"the target is '\.'; expected something to compare"):
        load_task(write('data = "sums.jsonl"\nprompt = "{q}"\ntarget = "{t}"', [{"q": "?", "t": "."}]))
    with pytest.raises(InvalidArgumentError, match="the prompt is empty"):
        load_task(write('data = "sums.jsonl"\nprompt = "{q}"\ntarget = "{t}"', [{"q": " ", "t": "x"}]))


def test_no_question_at_all(write: Write) -> None:
    for lines in ("", "\n\n", "[]"):
        with pytest.raises(InvalidArgumentError, match="has no question for task 'sums': it is empty"):
            load_task(write(lines=lines))
    with pytest.raises(InvalidArgumentError, match=r"all 1 lines are malformed; the first: .*line 1"):
        load_task(write(lines="{"), bad_lines="skip")


def test_a_broken_list(write: Write) -> None:
    with pytest.raises(InvalidArgumentError, match=r"sums.jsonl', line 3: .*; expected one JSON list"):
        load_task(write(lines='[\n{"a": 1},\n{"a": }]'))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("colour = 3", "colour is 3; expected one of name, data"),
        ("max_tokens = 0", "max_tokens is 0; expected a whole number"),
        ("max_tokens = true", "max_tokens is True; expected a whole number"),
        ('compare = "near"', "no TOML"),  # given twice
        ("stop = 'x'", "stop is 'x'; expected a list"),
        ("system = 3", "system is 3; expected text"),
        ("ignore = ['colour']", "ignore is .*; expected some of case, space"),
        ("tolerance = -1", "tolerance is -1; expected a number of at least 0"),
        ("letters = 'ab'", "letters is 'ab'; expected capitals"),
        ("target_pattern = '('", "no regular expression"),
        ("examples = 3", "examples is 3; expected a path or a list"),
        ("examples = [{question = 'So?'}]", "worked example 1 of task 'sums' is .*expected 'question' and 'answer'"),
        ("examples = 'none.jsonl'", "cannot read the worked examples in .*none.jsonl"),
    ],
)
def test_a_key_that_is_wrong(write: Write, more: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        load_task(write(TASK + more))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('target = "{sum}"', "", "has no 'target'"),
        ('"numeric"', '"near"', "compare is 'near'; expected one of exact, numeric, latex"),
        ('"last number"', '"last"', "find is 'last', with 0 groups"),
        ("{a} and", "{a and", "the template .* has a single '{'"),
    ],
)
def test_a_key_that_is_missing_or_unknown(write: Write, old: str, new: str, message: str) -> None:
    assert old in TASK
    with pytest.raises(InvalidArgumentError, match=message):
        load_task(write(TASK.replace(old, new)))


def test_files_that_are_not_there(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "sums.jsonl").unlink()
    with pytest.raises(InvalidArgumentError, match=r"cannot read the data in .*sums.jsonl': No such file"):
        load_task(path)
    with pytest.raises(InvalidArgumentError, match=r"cannot read the task in .*no.toml"):
        load_task(tmp_path / "no.toml")
    with pytest.raises(InvalidArgumentError, match=r"'sum' is neither a file nor built in; expected .* gsm8k"):
        load_task("sum")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(InvalidArgumentError, match="not UTF-8 at byte 8"):
        load_task(tmp_path / "latin.toml")
    (tmp_path / "sums.jsonl").write_bytes(b"\xff")
    with pytest.raises(InvalidArgumentError, match=r"sums.jsonl' is not UTF-8 at byte 0"):
        load_task(path)


def test_worked_examples_are_not_asked(write: Write, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text(
        '{"question": "What is 7 and 1?", "answer": "8"}\n{"question": "what is 1  and 2?", "answer": "3"}\n'
    )
    task = load_task(write(TASK + "examples = 'more.jsonl'"))
    assert len(task.worked(1)) == 1 and task.identity["examples_sha256"]
    with pytest.raises(
        InvalidArgumentError, match=r"the worked example 'what is 1  and 2\?' of task 'sums' is question '1'"
    ):
        task.worked(2)
    with pytest.raises(InvalidArgumentError, match="3 worked examples were asked for, but task 'sums' has 2"):
        task.worked(3)


def test_identity_follows_every_file(write: Write, tmp_path: Path) -> None:
    first = load_task(write()).identity
    assert load_task(write()).identity == first
    other = load_task(write(TASK + "max_tokens = 9")).identity
    assert other["sha256"] != first["sha256"] and other["data_sha256"] == first["data_sha256"]
    assert load_task(write(lines=LINES[:1])).identity["data_sha256"] != first["data_sha256"]


# ---- Built-in tasks -----------------------------------------------------------------------------------------------------

BUILT_IN_LINES: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "gsm8k": (
        {"question": "How many?", "answer": "2 + 3 = <<2+3=5>>5\n#### 1,005"},
        "1,005",
        "It is 1005.",
        "It is 5.",
    ),
    "svamp": (
        {"ID": "c-1", "Body": "There are 4", "Question": "How many?", "Answer": 4.0},
        "4.0",
        "The answer is 4.",
        "3",
    ),
    "math": ({"problem": "Half?", "answer": r"\frac{1}{2}"}, r"\frac{1}{2}", r"\boxed{\dfrac12}", r"\boxed{2} 1/2"),
    "arc": (
        {
            "id": "a",
            "question": "Which?",
            "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]},
            "answerKey": "3",
        },
        *("C", "The answer is C.", "The answer is A."),
    ),
    "csqa": (
        {"id": "a", "question": "Which?", "choices": {"text": list("vwxyz"), "label": list("ABCDE")}, "answerKey": "E"},
        *("E", "(E)", "The answer is D."),
    ),
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_tasks(name: str, tmp_path: Path) -> None:
    line, target, right, wrong = BUILT_IN_LINES[name]
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    task = load_task(name, data=tmp_path / "data.jsonl")
    (question,) = task.questions
    assert task.name == name and question.target == target
    assert task.mark(question, right).correct and not task.mark(question, wrong).correct
    with pytest.raises(
        InvalidArgumentError, match=rf"task '{name}' has no data of its own: give --data FILE .*comes from .*\("
    ):
        load_task(name)


@pytest.mark.parametrize("name", ["gsm8k", "svamp"])
def test_worked_examples_of_built_in_tasks_are_right(name: str, tmp_path: Path) -> None:
    """Each ends with its answer, and every equation in it holds."""
    import re

    line, *_ = BUILT_IN_LINES[name]
    (tmp_path / "data.jsonl").write_text(json.dumps(line) + "\n")
    examples = load_task(name, data=tmp_path / "data.jsonl").worked(5)
    for example in examples:
        equations = re.findall(r"((?:\d+ [-+*/] )+\d+) = \$?(\d+)", example.answer)
        assert equations, example
        assert all(eval(left) == int(right) for left, right in equations), example
        assert example.answer.endswith(f"The answer is {equations[-1][1]}.")
