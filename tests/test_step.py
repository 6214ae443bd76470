"""The step on table models: every mode writes the oracle's text, and says the same of it.

The oracle draws each event from its own rows with its own coins (test_core_law.py shows that such a draw has the law
pi), so equal texts are the exact law of the step, draft by draft, without sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import law
import numpy as np
import pytest
import step

from kad_llama import reference

SPECULATIVE = [(step.SPECULATIVE, draft) for draft in range(1, 9)]


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> law.Core:
    sources = [law.ROOT / "cpp/src" / name for name in (*law.CORE_SOURCES, *step.SOURCES)]
    compiled = law.compile_objects([*sources, step.HARNESS], [law.ROOT / "cpp/include", law.ROOT / "cpp/src"], objects)
    return step.load(law.link(compiled, tmp_path_factory.mktemp("step") / "step.so"))


def test_one_vocabulary(core: law.Core) -> None:
    runs = [step.same_words(seed) for seed in range(40)]
    assert step.failures(core, runs, [(step.PLAIN, 3), (step.LAZY, 3), *SPECULATIVE]) == []


def test_two_vocabularies(core: law.Core) -> None:
    """Guesses are texts, which either model reads in its own tokens; characters are made of several."""
    runs = [step.other_words(seed) for seed in range(60)]
    assert step.failures(core, runs, [(step.PLAIN, 3), (step.LAZY, 3), *SPECULATIVE[::2]]) == []


def said(core: law.Core, written: tuple[Any, Any]) -> list[step.Event]:
    sources = ("base", "aligned", "joint")
    return [step.Event(core.ffi.buffer(e.bytes, e.n_bytes)[:], e.id, sources[e.source]) for e in written[0]]


def test_passes_are_not_taken_for_draws(core: law.Core) -> None:
    """Four texts whose guesses are all right, and passes that sleep: about 10 base passes each, of 80 events.

    Caught here: a pacer that is told of passes as if they were draws, and then drafts nothing (62 passes and more).
    """
    words = step.same_words(3)
    rows = words.base.rows.copy()
    rows[:, :, words.base.words.index(step.END)] = -50
    base, aligned = (replace(words.base, rows=rows, pass_s=seconds) for seconds in (0.004, 0.001))
    run = replace(words, base=base, aligned=aligned, rule="base", max_tokens=80)
    texts = step.write_texts(core, run, step.AUTO, 15, 4, 4, ngram=False)
    assert [len(events) for events, _ in texts] == [80] * 4
    assert max(counts.base_passes for _, counts in texts) < 40


@pytest.mark.parametrize("mode", [(step.PLAIN, 3), (step.LAZY, 3), (step.SPECULATIVE, 3), (step.AUTO, 15)])
@pytest.mark.parametrize("slow", ["eval_s", "read_s", "text_s"])
def test_parts_of_the_time(core: law.Core, slow: str, mode: tuple[int, int]) -> None:
    """What sleeps is charged to its own part and to no other, and the parts are no more than the whole.

    Caught here: the rows that a draw reads, or the passes that a grammar's refusal asks for, charged to the draw too;
    passes that re-tokenisation leads to charged to the text; a place where text is tokenised unseen.
    """
    for seed in range(3):
        words, s = step.other_words(seed), 0.005
        seconds = {"eval_s": {"pass_s": s}, "read_s": {}, "text_s": {"text_s": s}}[slow]
        run = replace(words, base=replace(words.base, **seconds), aligned=replace(words.aligned, **seconds))
        run = replace(run, max_tokens=8, shape_s=s if slow == "read_s" else 0.0)
        if slow == "eval_s":
            run = step.with_grammar(run)
        _, counts = step.write_events(core, run, *mode)
        parts = {name: getattr(counts, name) for name in ("eval_s", "read_s", "draw_s", "text_s")}
        assert all(part > 0 for part in parts.values()) and sum(parts.values()) <= counts.generate_s
        charged = parts.pop(slow)
        assert charged >= counts.slept_s - (2 * s if slow == "eval_s" else 0) > 0  # a pass over each prompt
        assert sum(parts.values()) < charged / 2, parts


@pytest.mark.parametrize("make", [step.same_words, step.many_words, step.other_words])
@pytest.mark.parametrize("slots", [1, 2, 3, 5])
def test_several_texts_at_once(core: law.Core, make: Any, slots: int) -> None:
    """Each is what it is alone, in every mode, while texts come and go; prompts are shared, and cells run out.

    Caught here: rows of a shared pass given to the wrong text; a row used after the pass that overwrote it; a slot whose
    cells another text took.
    """
    for seed in range(12):
        rule, threshold = step.RULES[seed % len(step.RULES)]
        if rule in ("implicit-reward", "exact"):
            rule, threshold = "dual", 0.3
        run = replace(make(seed), rule=rule, threshold=threshold)
        run = replace(run, temperature=(1.0, 0.7, 0.0)[seed % 3], n_ctx=(512, 40)[seed % 2])
        wanted = [step.expected(replace(run, text_number=i)) for i in range(5)]
        for mode, draft in (
            (step.PLAIN, 3),
            (step.LAZY, 3),
            (step.SPECULATIVE, 2),
            (step.SPECULATIVE, 5),
            (step.AUTO, 15),
        ):
            texts = step.write_texts(core, run, mode, draft, 5, slots)
            assert [said(core, text) for text in texts] == wanted, (rule, mode, draft)


@pytest.mark.parametrize("make", [step.same_words, step.other_words])
@pytest.mark.parametrize("ngram", [True, False])
@pytest.mark.parametrize("constrained", [False, True])
def test_the_pacer_does_not_change_the_text(core: law.Core, make: Any, ngram: bool, constrained: bool) -> None:
    """Whatever it chooses, guesses of the n-gram table included; long texts over few words, so that there are some."""
    guessed = 0
    for seed in range(20):
        run = replace(make(seed), max_tokens=60, temperature=(1.0, 0.4, 0.0)[seed % 3])
        run = step.with_grammar(run) if constrained else run
        ((events, counts),) = step.write_texts(core, run, step.AUTO, 15, 1, ngram=ngram)
        assert said(core, (events, counts)) == step.expected(run)
        guessed += counts.drafted
    assert guessed > 0


SAMPLERS = ({"top_k": 2}, {"penalty": 1.5}, {"top_k": 3, "penalty": -1.0}, {})


def test_samplers(core: law.Core) -> None:
    """They look at the speaker's context, guesses included; across vocabularies each at its own."""
    runs = [replace(step.same_words(seed), **SAMPLERS[seed % 3]) for seed in range(16)]
    runs += [replace(step.other_words(seed), **SAMPLERS[seed % 3]) for seed in range(16)]
    assert (
        step.failures(core, runs, [(step.PLAIN, 3), (step.LAZY, 3), (step.SPECULATIVE, 2), (step.SPECULATIVE, 5)]) == []
    )


def test_grammars_over_one_vocabulary(core: law.Core) -> None:
    """Draw, check, redraw: with and without mass on what is allowed, at every temperature and with samplers."""
    runs = [step.with_grammar(replace(step.same_words(seed), **SAMPLERS[seed // 4 % 4])) for seed in range(32)]
    modes = [(step.PLAIN, 3), (step.LAZY, 3), (step.SPECULATIVE, 1), (step.SPECULATIVE, 4)]
    assert step.failures(core, runs, modes) == []


def test_corrections_under_a_grammar(core: law.Core) -> None:
    """A redraw that turns its proposal down corrects to one of several tokens, by the residual of the restricted laws."""
    runs = [step.with_grammar(step.many_words(seed)) for seed in range(12)]
    assert step.failures(core, runs, [(step.PLAIN, 3), (step.SPECULATIVE, 3)]) == []


def test_grammars_over_two_vocabularies(core: law.Core) -> None:
    """Bytes that one model says move the other's grammar; characters are finished as the grammar allows."""
    runs = [step.with_grammar(step.other_words(seed)) for seed in range(40)]
    assert step.failures(core, runs, [(step.PLAIN, 3), (step.LAZY, 3), (step.SPECULATIVE, 3)]) == []


def test_a_guess_that_goes_wrong_is_no_error(core: law.Core) -> None:
    """Where the text never goes the aligned model has no numbers: guesses end there, and the text stands."""
    runs = []
    for seed in range(20):
        run = step.same_words(seed)
        base, aligned = run.base.rows.copy(), run.aligned.rows.copy()
        base[:, :, 1] = -np.inf  # never said by the base, often guessed
        aligned[:, :, 1] = aligned.max()
        aligned[:, 1, :] = np.nan
        runs.append(replace(run, base=replace(run.base, rows=base), aligned=replace(run.aligned, rows=aligned)))
    # Of rule base the oracle asks for rows where the text goes alone; at temperature 0 too.
    assert step.failures(core, runs, [(step.PLAIN, 3), *SPECULATIVE], [("base", 0.0)]) == []


def test_another_text_number_is_another_text(core: law.Core) -> None:
    run = replace(step.same_words(3), text_number=2**63 + 5)
    assert step.failures(core, [run], [(step.PLAIN, 3), (step.LAZY, 3), (step.SPECULATIVE, 3)]) == []
    assert step.expected(run) != step.expected(step.same_words(3))


def test_caches_that_cannot_rewind(core: law.Core) -> None:
    for make in (step.same_words, step.other_words):
        for seed in range(10):
            for mode in (step.PLAIN, step.LAZY, step.SPECULATIVE):
                said, counts = step.write(core, make(seed), mode, can_rewind=False)
                assert said == step.expected(make(seed))
                assert counts.mode != step.SPECULATIVE


def test_log_probabilities_are_those_of_pi(core: law.Core) -> None:
    for seed in range(10):
        run = replace(step.same_words(seed), threshold=0.3, temperature=0.7)
        draws = reference.write(
            run.base.row,
            run.aligned.row,
            12,
            threshold=0.3,
            temperature=0.7,
            seed=seed,
            prompt=run.base.prompt,
            end=[3],
        )
        for mode, draft in ((step.PLAIN, 3), (step.LAZY, 3), *SPECULATIVE):
            events, counts = step.write_events(core, run, mode, draft, logprobs=True)
            assert counts.mode == (step.PLAIN if mode == step.LAZY else mode)
            for event, draw in zip(events, draws, strict=False):
                told = (event.logprob, event.base_share, event.deferred_mass)
                assert told == pytest.approx((draw.logprob, draw.base_share, draw.deferred_mass), abs=1e-9)
            without, _ = step.write_events(core, run, mode, draft)
            for event, draw in zip(without, draws, strict=False):
                assert np.isnan(event.logprob)
                assert event.deferred_mass == pytest.approx(draw.deferred_mass, abs=1e-9)


@pytest.mark.parametrize("make", [step.same_words, step.other_words])
def test_a_full_context_ends_every_mode_at_the_same_event(core: law.Core, make: object) -> None:
    full = 0
    for seed in range(20):
        run = replace(make(seed), n_ctx=7, max_tokens=20)  # type: ignore[operator]
        texts = [step.write(core, run, mode, draft) for mode, draft in ((step.PLAIN, 3), (step.LAZY, 3), *SPECULATIVE)]
        plain, counts = texts[0]
        for said, other in texts[1:]:
            assert (said, other.finish) == (plain, counts.finish)
        assert plain == step.expected(run)[: len(plain)]
        lengths = [
            len(t.prompt) + (len(plain) if run.base.words == run.aligned.words else len(t.tokenise(text_of(plain))))
            for t in (run.base, run.aligned)
        ]
        assert max(lengths) <= run.n_ctx
        full += counts.finish == 4
    assert full >= 5


def text_of(events: list[step.Event]) -> bytes:
    return step.sanitised(b"".join(event.bytes for event in events))


def test_guesses_are_counted(core: law.Core) -> None:
    """Right and wrong guesses are marked; a right one saves a base pass."""
    for seed in range(20):
        run = replace(step.same_words(seed), max_tokens=30)
        events, counts = step.write_events(core, run, step.SPECULATIVE, 4)
        draws = counts.n_events + (counts.finish == 1)
        assert counts.base_passes <= draws - counts.accepted + 1
        right = sum(event.guess == 1 for event in events)
        assert right <= counts.accepted <= right + 1  # the end of the text may have been guessed
        assert counts.accepted <= counts.drafted
        assert step.write(core, run, step.PLAIN)[1].drafted == 0


def test_the_guess_is_the_aligned_models_own_draw(core: law.Core) -> None:
    """One model in both roles and rule base: every guess is right."""
    for seed in range(20):
        run = replace(step.same_words(seed), rule="base", max_tokens=30)
        _, counts = step.write(core, replace(run, aligned=run.base), step.SPECULATIVE, 5)
        assert counts.accepted == counts.drafted


@pytest.mark.parametrize("make", [step.same_words, step.other_words])
def test_at_temperature_0_the_bases_best_token_is_enough(core: law.Core, make: Callable[[int], step.Run]) -> None:
    """Rule base never asks the aligned model then, nudging where it defers; above 0 both run plain. The text stands."""
    asked = dict.fromkeys(("base", "nudging", "primal", "bet"), 0)
    for rule in asked:
        for seed in range(12):
            run = replace(make(seed), rule=rule, threshold=None, temperature=0.0, max_tokens=20)
            events, counts = step.write(core, run, step.LAZY)
            assert events == step.expected(run)
            assert counts.mode == (step.PLAIN if rule == "bet" else step.LAZY)
            asked[rule] += counts.aligned_passes
            for mode, draft in ((step.PLAIN, 3), (step.SPECULATIVE, 3), (step.AUTO, 8)):
                assert step.write(core, run, mode, draft)[0] == events
            warm = replace(run, temperature=0.5)
            lazy = rule == "primal"
            assert step.write(core, warm, step.LAZY)[1].mode == (step.LAZY if lazy else step.PLAIN)
            _, described = step.write_events(core, run, step.LAZY, logprobs=True)
            assert described.mode == step.PLAIN
    assert asked["base"] == 0 < asked["nudging"] < asked["bet"]


def test_lazy_asks_the_aligned_model_less(core: law.Core) -> None:
    runs = [replace(step.same_words(seed), max_tokens=30) for seed in range(10)]
    passes = {mode: sum(step.write(core, r, mode)[1].aligned_passes for r in runs) for mode in (step.LAZY, step.PLAIN)}
    assert passes[step.LAZY] < 0.75 * passes[step.PLAIN]
