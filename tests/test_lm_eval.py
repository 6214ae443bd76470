"""Does the model "kad" of lm-evaluation-harness answer under pi, with the harness' own idea of contexts and windows?"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from real import STORY, token_kind

from kad_llama import KadLlama
from kad_llama.errors import ContextError, FileError, InvalidArgumentError, PromptError
from kad_llama.lm_eval import __main__ as command
from kad_llama.lm_eval.arguments import read_generation, read_model_arguments
from kad_llama.lm_eval.contexts import windows

Tiny = Callable[..., Path]
Pair = tuple[Path, Path]

PROMPT = "Question: Why is the sky blue?\nAnswer:"
CHAT = [{"role": "user", "content": "Why is the sky blue?"}]
SPEAK = {"temperature": 1.0, "seed": 0}
RULES = ["dual", "primal", "exact", "nudging", "bet", "chow", "diff", "opt", "token-v1", "token-v2", "token-v3", "base"]

QUESTIONS = """
task: tiny_{name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
metadata: {{version: 1}}
"""
WRITTEN = """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], do_sample: false, temperature: 0.0, max_gen_toks: 9}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOSEN = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The harness' evaluator, with no hub and its caches in a folder of this run. Read by `datasets` when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (OFFLINE | {"HF_HOME": str(tmp_path_factory.mktemp("hub"))}).items():
            patch.setenv(name, value)
        yield SimpleNamespace(
            evaluate=importlib.import_module("lm_eval").simple_evaluate,
            TaskManager=importlib.import_module("lm_eval.tasks").TaskManager,
            utils=importlib.import_module("lm_eval.utils"),
        )


def model(pair: Sequence[Path | None], **model_args: Any) -> Any:
    from kad_llama.lm_eval import KadLM

    base, aligned = pair
    given = {"n_threads": 1, "n_ctx": 512, "reproducible": True} | model_args
    return KadLM(**{"base": base and str(base), "aligned": aligned and str(aligned)} | given)


@pytest.fixture(scope="module")
def dual(harness: Any, tiny_pair: Pair) -> Any:
    return model(tiny_pair)


@pytest.fixture(scope="module")
def cross(harness: Any, tiny_cross_pair: Pair) -> Any:
    return model(tiny_cross_pair)


def asked(*requests: tuple[Any, ...]) -> list[Any]:
    """Requests as the harness makes them."""
    return [SimpleNamespace(args=request) for request in requests]


# ---- Tasks, by the harness --------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with two tasks of six questions."""
    data = tmp_path / "questions.jsonl"
    rows = [
        {
            "question": f"How much is {i} and {i}?",
            "answer": str(2 * i),
            "choices": ["one", "many", str(2 * i)],
            "gold": 2,
        }
        for i in range(6)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "written.yaml").write_text(QUESTIONS.format(name="written", data=data) + WRITTEN)
    (tmp_path / "chosen.yaml").write_text(QUESTIONS.format(name="chosen", data=data) + CHOSEN)
    return tmp_path


@pytest.mark.parametrize("chat", [False, True])
def test_tasks(harness: Any, tasks: Path, tiny_pair: Pair, dual: Any, chat: bool) -> None:
    """Both kinds of task from YAML files: what is logged is what KadLlama says by itself."""
    manager = harness.TaskManager(include_path=str(tasks), include_defaults=False)
    out = harness.evaluate(
        model="kad",
        model_args=f"base={tiny_pair[0]},aligned={tiny_pair[1]},n_threads=1,n_ctx=512,reproducible=True",
        tasks=["tiny_written", "tiny_chosen"],
        task_manager=manager,
        apply_chat_template=chat,
        bootstrap_iters=0,
        device="cuda:0",  # what the harness' command adds by itself
        batch_size=1,
    )
    kad: KadLlama = dual.kad
    written, chosen = out["samples"]["tiny_written"], out["samples"]["tiny_chosen"]
    assert (len(written), len(chosen)) == (6, 6)
    for sample in written:
        ((context, _),) = sample["arguments"]
        assert ("<|im_start|>" in context) == chat
        alone = kad.generate(context, raw=True, temperature=0, max_tokens=9, stop=".", seed=0)
        assert sample["resps"] == [[alone.text]]
    hits = 0
    for sample in chosen:
        scores = [float(response[0][0]) for response in sample["resps"]]
        for (context, choice), score in zip(sample["arguments"], scores, strict=True):
            seam = context.rstrip()  # of a chat, the end of its line moves to the choice
            assert score == kad.score(seam, context[len(seam) :] + choice, raw=True).logprob
        hits += scores.index(max(scores)) == 2
    assert out["results"]["tiny_chosen"]["acc,none"] == pytest.approx(hits / 6)
    assert out["config"]["aligned_model"] and out["config"]["kad_llama_version"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kad_llama.lm_eval", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )


def test_the_command(tasks: Path, tiny_pair: Pair) -> None:
    """With --model left out, and options as text."""
    done = run(
        *(
            "--model_args",
            f"base={tiny_pair[0]},aligned={tiny_pair[1]},rule=primal,threshold=0.9,n_gpu_layers=-1,n_ctx=512",
        ),
        *("--tasks", "tiny_written", "--include_path", str(tasks), "--gen_kwargs", "do_sample=True,top_p=0.9"),
        **(OFFLINE | {"HF_HOME": str(tasks / "hub")}),
    )
    assert done.returncode == 0, done.stderr
    assert "|tiny_written|" in done.stdout and done.stdout.startswith("kad (")


def test_a_command_without_the_harness(tmp_path: Path) -> None:
    """As where lm-eval is not installed: a folder before all others in which its import fails."""
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'lm_eval'\")")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = run("--tasks", "tiny", PYTHONPATH=os.pathsep.join(paths))
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'kad-llama[lm-eval]'" in done.stderr and "Traceback" not in done.stderr


def test_a_command_with_wrong_arguments(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        read_model_arguments({"aligend": "x"})

    monkeypatch.setattr(command, "_run_harness", refuse)
    assert command.main() == 1
    assert "aligend='x', which is unknown; the nearest name there is: 'aligned'" in capsys.readouterr().err

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "_run_harness", interrupt)
    assert command.main() == 130
    assert "--use_cache" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["--tasks", "x"], True),
        (["run", "--tasks", "x", "--model_args", "base=y"], True),
        (["--model=hf"], False),
        (["--tasks", "x", "-M", "dummy"], False),
        (["--config", "x.yaml"], False),
        (["ls", "tasks"], False),
        ([], False),
    ],
)
def test_the_model_is_kad_unless_named(given: list[str], added: bool) -> None:
    assert command.with_model(given) == given + (["--model", "kad"] if added else [])


# ---- Log-likelihoods ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["dual", "cross"])
def test_it_is_the_score_of_kad_llama(which: str, request: pytest.FixtureRequest) -> None:
    lm = request.getfixturevalue(which)
    texts = [" the air scatters short waves.", " Blue", " café 🙂", "\n\nThank you"]
    answers = lm.loglikelihood(asked(*((PROMPT, text) for text in texts)))
    assert [answer[0] for answer in answers] == [lm.kad.score(PROMPT, text, raw=True).logprob for text in texts]


def test_it_is_the_sum_of_what_a_run_says(dual: Any) -> None:
    """The log-probabilities of a text that was drawn, where its tokens are those of its text."""
    same = 0
    for seed in range(20):
        out = dual.kad.generate(PROMPT, raw=True, seed=seed, max_tokens=6, logprobs=True)
        if [token.id for token in out.tokens] != dual.kad.tokenize(out.text) or not out.text:
            continue
        same += 1
        ((logprob, _),) = dual.loglikelihood(asked((PROMPT, out.text)))
        assert logprob == math.fsum(token.logprob for token in out.tokens)
    assert same > 3


def test_all_one_token_continuations_sum_to_one(dual: Any) -> None:
    """By their texts where a text is that one token; the end of the text and halves of characters by their ids."""
    kad, total, ended = dual.kad, 0.0, False
    requests = []
    for token in range(kad.base.n_vocab):
        kind, data = token_kind(kad, "base", token)
        text = data.decode("utf-8", "replace")
        if kind == 0 and kad.tokenize(PROMPT + text)[len(kad.tokenize(PROMPT)) :] == [token]:
            requests.append((PROMPT, text))
        elif kind == 0 or (kind == 2 and not ended):
            ended = ended or kind == 2  # all ends are one event
            completion = dual._contexts.completion([token])
            total += math.exp(dual._log_pi(kad.prompt(PROMPT, raw=True), completion)[0])
    answers = dual.loglikelihood(asked(*requests))
    assert total + math.fsum(math.exp(logprob) for logprob, _ in answers) == pytest.approx(1, abs=1e-9)
    assert len(requests) > 0.5 * kad.base.n_vocab and 0 < total < 0.9
    assert sum(greedy for _, greedy in answers) <= 1


def test_white_space_moves_to_the_continuation(dual: Any) -> None:
    moved, plain = dual.loglikelihood(asked((PROMPT + " \n ", "Blue"), (PROMPT, " \n Blue")))
    assert moved == plain
    assert moved[0] != dual.kad.score(PROMPT + " \n ", "Blue", raw=True).logprob


def test_a_token_across_the_seam(dual: Any) -> None:
    """The whole text's tokens begin differently: the continuation is scored as text of its own."""
    kad = dual.kad
    context, continuation = next(
        (text[:at], text[at:])
        for text in (" answer", " question", " because", " scatter")
        for at in range(2, len(text))
        if kad.tokenize(text)[: len(kad.tokenize(text[:at]))] != kad.tokenize(text[:at])
    )
    (answer,) = dual.loglikelihood(asked((context, continuation)))
    assert answer[0] == kad.score(context, continuation, raw=True).logprob > -math.inf


def test_special_spellings_of_a_continuation_are_text(dual: Any) -> None:
    (answer,) = dual.loglikelihood(asked((PROMPT, " <|im_start|>")))
    assert answer[0] == dual.kad.score(PROMPT, " <|im_start|>", raw=True).logprob > -math.inf


@pytest.mark.parametrize("which", ["dual", "cross"])
def test_an_empty_context(which: str, request: pytest.FixtureRequest) -> None:
    """Each model begins with its BOS, or with its EOS where it has none."""
    lm = request.getfixturevalue(which)
    ((logprob, _), (spaces, _)) = lm.loglikelihood(asked(("", "The sky"), (" ", "The sky")))
    prompt = lm._contexts.start()
    for info, ids in ((lm.kad.base, prompt.base_ids), (lm.kad.aligned, prompt.aligned_ids)):
        assert ids == [info.bos if info.bos >= 0 else info.eos]
    completion = lm._contexts.completion(lm.kad.tokenize("The sky"))
    assert logprob == lm._score(prompt, completion, lm._settings).logprob
    assert spaces != logprob


@pytest.mark.parametrize("rule", [*RULES, "aligned", "implicit-reward"])
def test_greedy(harness: Any, tiny: Tiny, tiny_pair: Pair, rule: str) -> None:
    """True of what is written at temperature 0 and of its beginnings; false when any one token is another."""
    extra = {"reference": str(tiny("llama", noise=0.15))} if rule == "implicit-reward" else {}
    lm = model(tiny_pair, rule=rule, **extra)
    tried = 0
    for context in (PROMPT, "Thank you for", "The functions return", STORY[:50].rstrip()):
        text = lm.generate_until(asked((context, {"max_gen_toks": 4})))[0]
        parts = lm._contexts._following(context, text)
        written = lm.kad.generate(context, raw=True, temperature=0, max_tokens=4, seed=0)
        if [entry[0] for entry in parts.ids] != [token.id for token in written.tokens] or not parts.ids:
            continue  # its text has other tokens
        tried += 1
        ids = [entry[0] for entry in parts.ids]
        others = [[*ids[:at], ids[at] - 1, *ids[at + 1 :]] for at in range(len(ids))]
        prompt = lm.kad.prompt(context, raw=True)
        assert [lm._log_pi(prompt, lm._contexts.completion(ids[:n]))[1] for n in range(1, len(ids) + 1)] == [
            True
        ] * len(ids)
        assert [lm._log_pi(prompt, lm._contexts.completion(other))[1] for other in others] == [False] * len(others)
        assert lm.loglikelihood(asked((context, text)))[0][1]
    assert tried > 0


def test_greedy_at_the_sampling_temperature(harness: Any, tiny_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    """That rule has no text at temperature 0, and it is said."""
    lm = model(tiny_pair, rule_temperature="sampling", temperature=0.7)
    ((logprob, greedy),) = lm.loglikelihood(asked((PROMPT, " the")))
    assert logprob == lm.kad.score(PROMPT, " the", raw=True, temperature=0.7).logprob and not greedy
    assert "no greedy text" in capsys.readouterr().err
    with pytest.raises(InvalidArgumentError, match="temperature"):
        lm.generate_until(asked((PROMPT, {"do_sample": False})))


@pytest.mark.parametrize("rule", ["base", "aligned"])
def test_one_model_alone(harness: Any, tiny_pair: Pair, rule: str) -> None:
    paths = (tiny_pair[0], None) if rule == "base" else (None, tiny_pair[1])
    lm = model(paths, rule=rule)
    both = model(tiny_pair, rule=rule)
    requests = asked((PROMPT, " the air"), (PROMPT, " Blue"))
    assert lm.loglikelihood(requests) == both.loglikelihood(requests)
    assert lm.loglikelihood_rolling(asked((STORY,))) == both.loglikelihood_rolling(asked((STORY,)))
    assert lm.generate_until(asked((PROMPT, {"max_gen_toks": 6})))[0]


def test_a_long_context_loses_its_beginning(harness: Any, tiny_pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    lm = model(tiny_pair, n_ctx=64)
    ((logprob, _),) = lm.loglikelihood(asked((STORY * 2 + PROMPT, " the air")))
    assert "1 contexts are too long for n_ctx" in capsys.readouterr().err
    ids, n = lm.kad.tokenize(STORY * 2 + PROMPT), len(lm.kad.tokenize(" the air"))
    left = b"".join(map(lm.kad.token_bytes, ids[-(64 - n) :])).decode()
    assert left.endswith(PROMPT) and logprob == lm.kad.score(left, " the air", raw=True).logprob
    assert lm.generate_until(asked((STORY * 2, {"max_gen_toks": 8})))[0]
    with pytest.raises(ContextError, match=r"99 tokens are to follow .* holds 64 in all"):
        lm.generate_until(asked((STORY, {"max_gen_toks": 99})))


# ---- Whole documents ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "size"), [(0, 8), (1, 8), (7, 8), (8, 8), (30, 8), (41, 13)])
def test_windows_are_the_harness_own(harness: Any, n: int, size: int) -> None:
    """Where no window but the first has something before its text."""
    ids = list(range(n))
    theirs = [
        harness.utils.make_disjoint_window(pair)
        for pair in harness.utils.get_rolling_token_windows(ids, -1, size - 1, 1)
    ]
    ours, begin = [], 0
    while begin < n:
        window = windows(begin, n, size, int(begin == 0))
        ours.append(([-1] * (begin == 0) + ids[window.start : begin], ids[begin : window.end]))
        begin = window.end
    assert ours == theirs


def test_windows_cut_where_characters_begin() -> None:
    begin, seen = 0, []
    while begin < 50:
        window = windows(begin, 50, 12, 1, lambda at: at % 3 == 0)
        assert window.end - window.start <= 11 and window.start < max(1, window.begin) and window.start % 3 == 0
        seen.append(window.end)
        begin = window.end
    assert all(end % 3 == 0 for end in seen[:-1]) and seen[-1] == 50


def test_a_document(harness: Any, tiny_pair: Pair) -> None:
    """The sum over windows put together by hand."""
    lm = model(tiny_pair, n_ctx=64)
    ids = lm.kad.tokenize(STORY)
    assert not lm.kad.base.add_bos and len(ids) > 130
    first = lm._contexts.first("base")
    total, begin = 0.0, 0
    while begin < len(ids):
        end = min(len(ids), begin + 63)
        context = [first] if begin == 0 else ids[end - 64 : begin]
        prompt = type(lm._contexts.start())(base_ids=context, aligned_ids=context)
        total += lm.kad._score(prompt, lm._contexts.completion(ids[begin:end]), lm._settings).logprob
        begin = end
    answers = lm.loglikelihood_rolling(asked((STORY,), ("",), ("The sky",)))
    assert answers[0] == pytest.approx(total, rel=1e-12) and answers[1] == 0.0
    assert answers[2] == lm.loglikelihood(asked(("", "The sky")))[0][0]


def test_a_document_across_vocabularies(harness: Any, tiny_cross_pair: Pair) -> None:
    """Windows that the other vocabulary may find too long; every token is predicted once, characters stay whole."""
    text = "Thank you 🙂 日本語 — naïve café. " * 12
    lm, seen = (
        model(tiny_cross_pair, n_ctx=64, threshold=0),
        [],
    )  # keeps all: what the aligned model cannot say is possible
    score = lm._score

    def noted(prompt: Any, completion: Any, settings: Any) -> Any:
        result = score(prompt, completion, settings)
        seen.append((prompt, completion))
        return result

    lm._score = noted
    (answer,) = lm.loglikelihood_rolling(asked((text,)))
    assert -math.inf < answer < 0 and len(seen) > 3
    assert b"".join(b"".join(completion.bytes) for _, completion in seen).decode() == text
    assert [entry for _, completion in seen for entry in completion.ids] == [(each,) for each in lm.kad.tokenize(text)]
    for prompt, completion in seen:
        assert len(prompt.base_ids) + len(completion.ids) <= 64
        assert prompt.base_ids[0] == lm.kad.base.bos, "this base wants a BOS before every text"
        b"".join(completion.bytes).decode()


def test_the_impossible_is_said(cross: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A token of the base's that the rule hands over, and that the aligned model does not have, has probability 0."""
    answers = cross.loglikelihood(asked((PROMPT, " 日本"), (PROMPT, " the")))
    assert answers[0] == (-math.inf, False) and answers[1][0] > -math.inf
    assert "1 texts have log-likelihood -inf" in capsys.readouterr().err


# ---- Texts --------------------------------------------------------------------------------------------------------------


def test_texts_are_those_of_generate(dual: Any) -> None:
    """In the order asked, whatever their options; drawn ones by the seed and their place among equals."""
    drawn, greedy = {"do_sample": True, "temperature": 0.8, "max_gen_toks": 8}, {"until": [".", ""], "max_gen_toks": 20}
    contexts = ["Thank you", PROMPT, "The functions", PROMPT, PROMPT]
    texts = dual.generate_until(asked(*zip(contexts, [drawn, greedy, drawn, drawn, greedy], strict=True)))
    alone = [
        dual.kad.generate(context, raw=True, temperature=0.8, max_tokens=8, seed=0, text_number=i).text
        for i, context in enumerate(["Thank you", "The functions", PROMPT])
    ]
    assert [texts[0], texts[2], texts[3]] == alone
    best = dual.kad.generate(PROMPT, raw=True, temperature=0, max_tokens=20, stop=".", seed=0).text
    assert texts[1] == texts[4] == best and "." not in best


def test_many_texts_in_parts(harness: Any, tiny_pair: Pair) -> None:
    """More than are written in one call: text numbers go on."""
    lm = model(tiny_pair, seed=5)
    assert lm.kad.n_parallel == 1
    texts = lm.generate_until(asked(*[(PROMPT, {"do_sample": True, "max_gen_toks": 4})] * 9))
    many = lm.kad.generate_many([PROMPT] * 9, raw=True, max_tokens=4, seed=5)
    assert texts == [each.text for each in many] and len(set(texts)) > 1


def test_the_model_of_a_batch_size(harness: Any, tiny_pair: Pair) -> None:
    lm = model(tiny_pair, batch_size=3, reproducible=False)
    assert lm.kad.n_parallel == 3
    assert len(lm.generate_until(asked(*[(PROMPT, {"max_gen_toks": 3})] * 4))) == 4


def test_interrupted_texts_are_kept(dual: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part of the answers, and of the part that was cut short the texts that were whole."""
    kept: list[Any] = []
    write, calls = dual._write_prompts, iter(range(10))

    def interrupted(prompts: Any, settings: Any) -> Any:
        written = write(prompts, settings)
        if next(calls):
            error = KeyboardInterrupt()
            error.partial = [written[0], SimpleNamespace(finish_reason="interrupted", text="ha"), None]  # type: ignore[attr-defined]
            raise error
        return written

    monkeypatch.setattr(dual, "_write_prompts", interrupted)
    hook = SimpleNamespace(add_partial=lambda name, arguments, text: kept.append((name, arguments)))
    monkeypatch.setattr(dual, "cache_hook", hook)
    requests = asked(*((f"{i}. {PROMPT}", {"max_gen_toks": 2}) for i in range(8)))
    with pytest.raises(KeyboardInterrupt):
        dual.generate_until(requests)
    assert kept == [("generate_until", request.args) for request in requests[:5]]


# ---- Chats -------------------------------------------------------------------------------------------------------------


def test_a_chat_of_one_text(dual: Any) -> None:
    """The aligned model's template; both models read it as the prompt that KadLlama makes of the messages."""
    context = dual.apply_chat_template(CHAT)
    assert context == dual.kad.prompt(CHAT).aligned_text and dual.chat_template(True) == dual.kad.aligned.chat_template
    assert dual._contexts.to_write(context, 8) == dual.kad.prompt(context, raw=True)
    assert dual._contexts.to_write(context, 8).base_ids == dual.kad.prompt(CHAT).base_ids
    begun = [*CHAT, {"role": "assistant", "content": "It is"}]
    assert dual.apply_chat_template(begun, add_generation_prompt=False) == context + "It is"
    with pytest.raises(PromptError, match="no answer to go on with"):
        dual.apply_chat_template(CHAT, add_generation_prompt=False)
    with pytest.raises(InvalidArgumentError, match="'tools'; a GGUF has one template"):
        dual.chat_template("tools")
    assert dual.chat_template(False) is None


def test_a_chat_of_two_prompts(harness: Any, cross: Any, tiny_cross_pair: Pair) -> None:
    """Across vocabularies the base reads the plain transcript of the same messages."""
    context = cross.apply_chat_template(CHAT)
    assert cross._contexts.to_write(context, 8) == cross.kad.prompt(CHAT)
    assert cross.loglikelihood(asked((context, " Blue")))[0][0] == cross.kad.score(CHAT, " Blue").logprob
    written = cross.kad.generate(CHAT, temperature=0, max_tokens=6, seed=0).text
    assert cross.generate_until(asked((context, {"max_gen_toks": 6}))) == [written]

    begun = cross.apply_chat_template([*CHAT, {"role": "assistant", "content": " It is"}], add_generation_prompt=False)
    whole, start, rest = (
        cross.loglikelihood(asked(request))[0][0]
        for request in ((context, " It is blue"), (context, " It is"), (begun, " blue"))
    )
    assert begun == context + " It is" and whole == pytest.approx(start + rest, abs=1e-9)


def test_a_chat_from_the_cache_of_requests(harness: Any, tiny_cross_pair: Pair, tiny_pair: Pair) -> None:
    """Where the text does not say what each model reads, it is refused instead of guessed; the name tells pairs apart."""
    lm, other = model(tiny_cross_pair), model(tiny_pair)
    context = other.apply_chat_template(CHAT)
    assert lm.loglikelihood(asked((context, " Blue")))[0][0] < 0  # no chat is rendered in this run: it is plain text
    assert lm.tokenizer_name != other.tokenizer_name == model(tiny_pair, rule="bet").tokenizer_name
    with pytest.raises(InvalidArgumentError, match="--cache_requests refresh"):
        lm.loglikelihood(asked((context, " Blue")))
    assert other.loglikelihood(asked((context, " Blue")))[0][0] < 0


def test_a_base_without_templates(harness: Any, tiny_pair: Pair) -> None:
    """A chat is a transcript then, and its turn markers end the text, as KadLlama has it."""
    lm = model((tiny_pair[0], None), rule="base")
    context = lm.apply_chat_template(CHAT)
    assert context == "Question: Why is the sky blue?\nAnswer:"
    assert lm._contexts.to_write(context, 8).stops == ["\nQuestion:"] == lm.kad.prompt(CHAT).stops
    template = "{% for message in messages %}<{{ message['content'] }}>{% endfor %}"
    assert model((tiny_pair[0], None), rule="base", base_template=template).apply_chat_template(CHAT).startswith("<Why")


# ---- What is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pretrained": "x"}, r"pretrained='x', which is unknown"),
        ({"treshold": 0.4}, r"treshold=0.4, which is unknown; the nearest name there is: 'threshold'"),
        ({"base": 3}, r"base=3; expected the path of a GGUF file"),
        ({"temperature": "hot"}, r"temperature is 'hot'; expected a number"),
        ({"seed": -1}, r"seed is -1"),
        ({"draft": "fast"}, r"draft is 'fast'"),
        ({"device": "cuda:1"}, r"device is 'cuda:1'; expected 'cpu' or 'cuda:0'"),
        ({"batch_size": 0}, r"batch_size is 0; expected a whole number of at least 1"),
        ({"batch_size": "many"}, r"batch_size is 'many'"),
    ],
)
def test_wrong_model_arguments(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        read_model_arguments({"base": "b.gguf", "aligned": "a.gguf"} | given)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"rule": "duel"}, InvalidArgumentError, "rule 'duel' is unknown"),
        ({"threshold": 2}, InvalidArgumentError, "threshold 2 is out of range"),
        ({"n_ctx": 1.5}, InvalidArgumentError, "n_ctx is 1.5; expected a whole number"),
        ({"base": "missing.gguf"}, FileError, "missing.gguf"),
        ({"reference": "r.gguf"}, InvalidArgumentError, "reference is 'r.gguf', but rule 'dual' uses none"),
    ],
)
def test_arguments_that_kad_llama_refuses(
    harness: Any, tiny_pair: Pair, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model(tiny_pair, **given)


def test_model_arguments() -> None:
    read = read_model_arguments(
        {"base": "b", "n_gpu_layers": -1.0, "draft": 3.0, "device": "cuda:0", "batch_size": "auto:4"}
    )
    assert read.load == {"base": "b", "aligned": None, "reference": None, "rule": "dual", "n_gpu_layers": -1}
    assert read.speak == {"temperature": 1.0, "seed": 0, "draft": 3}
    read = read_model_arguments(
        {"aligned": "a", "rule": "aligned", "device": "cpu", "batch_size": "4", "temperature": 0.7}
    )
    assert read.load["n_gpu_layers"] == read.load["n_gpu_layers_aligned"] == 0 and read.load["n_parallel"] == 4
    assert read.speak["temperature"] == 0.7


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_return_sequences": 2}, r"num_return_sequences=2, which is unknown"),
        ({"max_length": 20}, r"max_length=20, which is unknown"),
        ({"num_beams": 4}, r"num_beams is 4; expected 1"),
        ({"do_sample": "yes"}, r"do_sample is 'yes'; expected true or false"),
        ({"max_gen_toks": 20, "max_tokens": 30}, r"max_gen_toks=20 and max_tokens=30 contradict"),
        ({"max_gen_toks": -2}, r"max_tokens is -2"),
        ({"until": [3]}, r"until is \[3\]; expected a string"),
        ({"repetition_penalty": 1.2, "repeat_penalty": 1.1}, r"are the same; give one"),
        ({"temperature": "1"}, r"temperature is '1'; expected a number"),
    ],
)
def test_wrong_generation_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        read_generation(given, SPEAK)


@pytest.mark.parametrize(
    ("given", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": True}, 0.9),
        ({"do_sample": True, "temperature": 0.2}, 0.2),
        ({"temperature": 0}, 0.0),
    ],
)
def test_temperatures(given: dict[str, Any], temperature: float) -> None:
    assert read_generation(given, SPEAK | {"temperature": 0.9}).temperature == temperature


def test_generation_options() -> None:
    read = read_generation({"until": "Q:", "stop": ["", "\n", "Q:"], "repetition_penalty": 1.2, "top_k": 40}, SPEAK)
    assert (read.stop, read.repeat_penalty, read.top_k, read.max_tokens) == (("Q:", "\n"), 1.2, 40, 256)
    assert (read.temperature, read.seed, read_generation({"seed": 3}, SPEAK).seed) == (0.0, 0, 3)
    assert read_generation({"max_new_tokens": 7, "num_beams": 1, "until": None}, SPEAK).max_tokens == 7
