"""Is the trained pair what models/README.md says: sizes, who has read what, and does the pair beat both its halves?"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real
from scipy.stats import binom

from kad_llama import KadLlama
from kad_llama.evaluation import ALIGNED_ALONE, BASE_ALONE, Results, evaluate, load_task
from models.tiny import world

FOLDER = Path(__file__).resolve().parents[1] / "models" / "tiny"
FILES = {name: FOLDER / f"{name}.gguf" for name in ("base", "aligned", "reference")}
LOG: dict[str, Any] = json.loads((FOLDER / "train.json").read_text(encoding="utf-8"))
TASK = load_task(FOLDER / "towns.toml")


def lines(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


# ---- Who has read what ---------------------------------------------------------------------------------------------------


def test_questions_are_those_of_the_world() -> None:
    for name in ("dev", "test"):
        assert lines(f"questions-{name}.jsonl") == list(world.questions(name))
    assert lines("examples.jsonl") == list(world.examples())
    assert len(lines("questions-test.jsonl")) >= 500


def test_splits_share_no_town() -> None:
    names = [{town.name for town in world.split(name)} for name in world.SPLITS]
    assert sum(map(len, names)) == len(set.union(*names)) == world.N_TOWNS == len(world.town_names())


def test_the_small_models_have_read_nothing_of_what_is_asked() -> None:
    """Everything that they were trained on is made again, and searched for the name of every town that is asked about."""
    asked = {town.name for name in ("dev", "test") for town in world.split(name)}
    pattern = re.compile(r"\b(" + "|".join(sorted(asked)) + r")\b")
    questions = {line["question"] for name in ("dev", "test") for line in lines(f"questions-{name}.jsonl")}
    assert all(pattern.search(question) for question in questions)  # so the search finds what it is to find
    pages = world.pages(world.page_seed(LOG["seed"], "reference"), world.split("taught"))
    for page in islice(pages, LOG["reference"]["read"]):
        assert not pattern.search(page), page
    for question, answer in islice(world.dialogues(world.page_seed(LOG["seed"], "aligned")), LOG["aligned"]["read"]):
        assert question not in questions
        assert not pattern.search(question + answer), question


def test_the_base_has_read_all_of_it() -> None:
    pages = "".join(islice(world.pages(world.page_seed(LOG["seed"], "base"), world.towns()), 20_000))
    told = [town.answer(relation) in pages for town in world.towns() for relation in world.RELATIONS]
    assert sum(told) > 0.9 * len(told)


# ---- The files -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kad(trained_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with KadLlama(*trained_pair, n_ctx=512) as opened:
        yield opened


def test_sizes_and_vocabulary(kad: KadLlama) -> None:
    assert kad.base is not None
    assert kad.aligned is not None
    assert kad.base.n_params >= 4 * kad.aligned.n_params
    assert kad.vocab.equal
    assert kad.aligned.chat_template
    assert not kad.base.chat_template
    assert all(path.stat().st_size < 5e6 for path in FILES.values())


def test_llama_cpp_computes_what_was_trained() -> None:
    """The logits after a text, of PyTorch with the file's weights, as the training script noted them."""
    with KadLlama(
        FILES["base"], FILES["aligned"], reference=FILES["reference"], rule="implicit-reward", n_ctx=512
    ) as kad:
        for name, probe in ((name, LOG[name]["probe"]) for name in FILES):
            assert kad.prompt(probe["text"], raw=True).base_ids == probe["ids"]
            row = kad.next_logits(probe["text"], raw=True)[list(FILES).index(name)]
            # llama.cpp rounds activations to eight bits: some hundredths of logits that reach 20.
            assert np.abs(row[probe["best"]] - probe["logits"]).max() < 0.25, name
            assert int(row.argmax()) == probe["best"][0], name


@pytest.mark.parametrize("rule", ["dual", "bet", "base"])
def test_one_text_in_every_mode(trained_pair: tuple[Path, Path], rule: str) -> None:
    modes = real.MODES if rule == "dual" else {name: mode for name, mode in real.MODES.items() if name != "lazy"}
    with KadLlama(*trained_pair, rule=rule, n_ctx=512, n_threads=1, reproducible=True) as kad:
        for i, question in enumerate(TASK.questions[:8]):
            texts = {
                name: real.answer(kad.generate(question.prompt, max_tokens=40, temperature=0.7, seed=i, **mode))
                for name, mode in {**modes, "auto": {}}.items()
            }
            assert all(text == texts["plain"] for text in texts.values()), question
        assert kad.generate(TASK.questions[0].prompt, seed=0, draft=3).stats.drafted > 0, "no guess was made"


# ---- What it is for ------------------------------------------------------------------------------------------------------

N = 150  # test questions that are asked here; docs/evidence.md has all of them


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The pair and both models alone on some of the test questions."""
    return evaluate(
        FILES["base"],
        FILES["aligned"],
        TASK,
        rules=["dual", "bet", "primal"],
        reference=FILES["reference"],
        n=N,
        directory=tmp_path_factory.mktemp("towns"),
        n_ctx=512,
        n_threads=1,
    )


def right(results: Results, setting: str) -> int:
    return sum(answer.correct for answer in results.of(setting))


def most(share: float) -> int:
    """What a setting of that accuracy exceeds once in a million times, of N questions."""
    return int(binom.isf(1e-6, N, share))


def test_the_pair_beats_both_its_halves(results: Results) -> None:
    """By 15 points at the least, intervals apart. The bounds lie 6 to 10 points below what docs/evidence.md found."""
    alone = [results.accuracy(name) for name in (BASE_ALONE, ALIGNED_ALONE)]
    assert max(right(results, name) for name in (BASE_ALONE, ALIGNED_ALONE)) <= most(0.1)
    for rule, share in (("dual 0.4", 0.9), ("bet 0.2", 0.9), ("primal 0.9", 0.75)):
        accuracy = results.accuracy(rule)
        assert right(results, rule) >= N - most(1 - share), rule
        assert accuracy.value >= max(one.value for one in alone) + 0.15, rule
        assert accuracy.low > max(one.high for one in alone), rule
        assert results.beats_both(rule)


def test_the_base_knows_and_the_aligned_model_follows(results: Results) -> None:
    assert right(results, f"{BASE_ALONE}, 5 worked examples") >= 0.6 * N
    taught = re.compile(r"The (river|founder|craft|dish) of [A-Z][a-z]+ is \w+\.")
    followed = sum(bool(taught.fullmatch(answer.text)) for answer in results.of(ALIGNED_ALONE))
    assert followed >= 0.95 * N
