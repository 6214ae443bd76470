"""One text: does every mode, every process and every history of calls say the same?

Plain runs are the reference. What a reproducible run says may depend on files, settings, messages and seed alone; the
default may differ between modes, but only where a draw was a near tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real import DRAFTS, FEW, LAZY, MODES, PLAIN, Run, answer, in_new_process, margin, prompt_of, rows_along

from kad_llama import RULES, KadLlama, reference
from kad_llama._binding import lib

RULES_HERE = sorted(RULES)
TEMPERATURES = (0.0, 0.7, 1.0)
SAMPLERS: dict[str, dict[str, Any]] = {
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "top-k": {"top_k": 20},
    "all": {"top_k": 40, "top_p": 0.95, "min_p": 0.02, "temperature": 0.7},
}
GRAMMAR = 'root ::= "{" (pair ("," pair)*)? "}"\npair ::= [a-z ]+ ":" [^,{}:"]+'
# Samplers that look back, a keyed one, and a grammar: all that a rewind could leave in a wrong state.
LOOKING_BACK: dict[str, Any] = {
    "repeat_penalty": 1.3,
    "presence_penalty": 0.4,
    "repeat_last_n": 12,
    "dry_multiplier": 0.8,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.05,
    "typical_p": 0.95,
    "min_p": 0.01,
}
EVERY_RULE: dict[str, dict[str, Any]] = {
    "samplers": LOOKING_BACK | {"temperature": 0.8},
    "grammar, best": {"grammar": GRAMMAR, "temperature": 0.0},
    "both": LOOKING_BACK | {"grammar": GRAMMAR, "temperature": 0.9},
}
SMOL: dict[str, Any] = {"reproducible": True, "n_ctx": 1024, "n_threads": 2}
Open = Callable[..., KadLlama]


@dataclass(frozen=True)
class Real:
    """A pair of files with real weights, and how it was loaded."""

    kad: KadLlama
    files: tuple[Path, Path]
    load: dict[str, Any]


@pytest.fixture(scope="module")
def opened(tiny_pair: tuple[Path, Path], tiny: Callable[..., Path]) -> Iterator[Open]:
    """``opened("dual")``: a reproducible instance of the tiny pair, kept for the next test."""
    with ExitStack() as stack:
        kept: dict[tuple[Any, ...], KadLlama] = {}

        def get(rule: str, **keywords: Any) -> KadLlama:
            key = (rule, *sorted(keywords.items()))
            if key not in kept:
                if RULES[rule].reference:
                    keywords["reference"] = tiny("llama", noise=0.6)
                made = KadLlama(*tiny_pair, rule=rule, reproducible=True, n_ctx=1024, n_threads=1, **keywords)
                kept[key] = stack.enter_context(made)
            return kept[key]

        yield get


@pytest.fixture(scope="module")
def smol_pair(widened: Path, smollm: Path) -> tuple[Path, Path]:
    return widened, smollm


@pytest.fixture(scope="module")
def smol(smol_pair: tuple[Path, Path]) -> Iterator[KadLlama]:
    with KadLlama(*smol_pair, **SMOL) as kad:
        yield kad


@pytest.fixture(scope="module", params=["trained", pytest.param("smollm", marks=pytest.mark.long)])
def real(request: pytest.FixtureRequest, trained_pair: tuple[Path, Path]) -> Iterator[Real]:
    """Real weights: the trained pair; and, measured for a minute first, SmolLM2 with a base twice as wide."""
    if request.param == "smollm":
        yield Real(request.getfixturevalue("smol"), request.getfixturevalue("smol_pair"), SMOL)
    else:
        load = {"reproducible": True, "n_ctx": 512, "n_threads": 2}
        with KadLlama(*trained_pair, **load) as kad:
            yield Real(kad, trained_pair, load)


def same_in(kad: KadLlama, prompt: Any, modes: dict[str, dict[str, Any]], **keywords: Any) -> dict[str, Any]:
    """The plain answer, once every mode of `modes` has given it too and has run as what it was asked for."""
    wanted = answer(kad.generate(prompt, **PLAIN, **keywords))
    for name, mode in modes.items():
        out = kad.generate(prompt, **mode, **keywords)
        assert answer(out) == wanted, f"{name} against plain, {keywords}"
        if name in DRAFTS:
            assert (out.stats.mode, out.stats.note) == ("speculative", "")
            assert out.stats.drafted > 0 or out.stats.tokens < 2
    return wanted


# ---- Reproducible: a tiny pair, everything ---------------------------------------------------------------------------
# Caught here: a guess drawn with another coin than the draw's that is kept for its value; a window's guess kept after a
# wrong one; rows of a dropped guess read at the next position; a pass longer than what is bit-equal; a block of the
# prompt reused that was evaluated in other passes; a lazy run that catches up with the wrong tokens.


@pytest.mark.parametrize(("temperature", "n_prompt"), [(0.0, 24), (0.7, 100), (1.0, 600)])
@pytest.mark.parametrize("rule", RULES_HERE)
def test_modes_say_the_same(opened: Open, rule: str, temperature: float, n_prompt: int) -> None:
    kad = opened(rule)
    assert kad.max_draft >= 8
    modes = {"lazy": LAZY} if rule == "aligned" else MODES  # one model speaks: nothing to guess
    same_in(kad, prompt_of(kad, n_prompt), modes, temperature=temperature, seed=n_prompt, max_tokens=40)


@pytest.mark.parametrize("samplers", SAMPLERS)
@pytest.mark.parametrize("rule", ["dual", "primal", "nudging", "base"])
def test_samplers_do_not_change_that(opened: Open, rule: str, samplers: str) -> None:
    kad = opened(rule)
    same_in(kad, prompt_of(kad, 60), FEW | {"draft 5": MODES["draft 5"]}, seed=3, max_tokens=40, **SAMPLERS[samplers])


@pytest.mark.parametrize("settings", EVERY_RULE)
@pytest.mark.parametrize("rule", RULES_HERE)
def test_every_rule_under_samplers_and_a_grammar(opened: Open, rule: str, settings: str) -> None:
    kad = opened(rule)
    modes = {"lazy": LAZY} if rule == "aligned" else FEW
    same_in(kad, prompt_of(kad, 60), modes, seed=4, max_tokens=30, **EVERY_RULE[settings])


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_a_rule_decided_on_cooled_rows(opened: Open, temperature: float) -> None:
    kad = opened("dual", rule_temperature="sampling", threshold=0.3)
    same_in(kad, prompt_of(kad, 60), FEW, seed=5, temperature=temperature, max_tokens=40)


@pytest.mark.parametrize("n_prompt", [235, 245, 500])
def test_a_text_that_outgrows_a_stretch_of_the_cache(opened: Open, n_prompt: int) -> None:
    """llama.cpp lays caches out in stretches of 256 cells, and kernels change with their number."""
    kad = opened("dual")
    for seed in range(3):
        same_in(kad, prompt_of(kad, n_prompt), MODES, seed=seed, max_tokens=50)


def test_texts_differ_from_seed_to_seed(opened: Open) -> None:
    """Else all of the above would hold for a constant."""
    kad = opened("dual")
    texts = {kad.generate(prompt_of(kad, 24), seed=seed, max_tokens=40).text for seed in range(20)}
    assert len(texts) > 15


@pytest.mark.parametrize("quantisation", ["Q8_0", "F16"])
def test_after_other_calls(tiny: Callable[..., Path], quantisation: str) -> None:
    """A warm instance says what a new one says: only whole prompt blocks of 64 are reused.

    Rows of F16 weights depend on the size of the pass, so there the history shows as soon as anything else is reused.
    """
    tiny_pair = (
        tiny("llama", quantisation=quantisation),
        tiny("llama", quantisation=quantisation, noise=0.3, chat_template=True),
    )
    keywords: dict[str, Any] = {"seed": 11, "max_tokens": 90}
    with KadLlama(*tiny_pair, reproducible=True, n_threads=1) as kad:
        prompts = [prompt_of(kad, n) for n in (24, 100, 300)]
    fresh = []
    for prompt in prompts:
        with KadLlama(*tiny_pair, reproducible=True, n_threads=1) as kad:
            fresh.append(answer(kad.generate(prompt, **PLAIN, **keywords)))
    with KadLlama(*tiny_pair, reproducible=True, n_threads=1) as kad:
        for around in ({"draft": 8}, {"draft": 1}, LAZY, PLAIN):
            for i in (2, 0, 1, 2, 1):
                limit = {"max_tokens": 70} if i else {}  # one of them fills the context
                kad.generate(prompts[i] + " and then", seed=1, **limit, **around)
                kad.generate(prompts[i], seed=2, max_tokens=9, stop=["e"], temperature=0.5, **around)
                with kad.stream(prompts[i - 1], seed=3, **around) as stream:
                    next(stream)
                kad.next_logits(prompts[i])
                for mode in FEW.values():
                    assert answer(kad.generate(prompts[i], **mode, **keywords)) == fresh[i]


def turns(first: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": "Tell me a story about the sea."},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "And what happened next?"},
    ]


def test_second_turn_of_a_chat(tiny_pair: tuple[Path, Path]) -> None:
    chat = turns("")[:1]
    answers = []
    for mode in ({"draft": 4}, PLAIN, LAZY):
        with KadLlama(*tiny_pair, reproducible=True, n_threads=1) as kad:
            first = kad.generate(chat, seed=8, max_tokens=150, **mode)
            again = turns(first.text)
            answers.append(same_in(kad, again, MODES, seed=8, text_number=1, max_tokens=40))
            assert answer(kad.generate(again, seed=8, max_tokens=40)) != answers[-1], "text_number draws other coins"
    with KadLlama(*tiny_pair, reproducible=True, n_threads=1) as kad:
        answers.append(answer(kad.generate(again, seed=8, text_number=1, max_tokens=40)))
    assert all(found == answers[0] for found in answers)


@pytest.mark.parametrize("rule", ["dual", "base"])
def test_in_a_new_process(opened: Open, tiny_pair: tuple[Path, Path], rule: str) -> None:
    kad = opened(rule)
    calls = [
        (prompt_of(kad, n), {"seed": n, "max_tokens": 40, "temperature": temperature} | mode)
        for n in (24, 100, 600)
        for temperature in TEMPERATURES
        for mode in FEW.values()
    ]
    here = [answer(kad.generate(prompt, **keywords)) for prompt, keywords in calls]
    load = {"rule": rule, "reproducible": True, "n_ctx": 1024, "n_threads": 1}
    assert in_new_process(*tiny_pair, load, calls[::-1])[::-1] == here


# ---- Reproducible: real weights --------------------------------------------------------------------------------------


def test_smollm(smol: KadLlama) -> None:
    """SmolLM2 Q4_1 with a Q8_0 base twice as wide."""
    assert smol.max_draft >= 8
    wanted = same_in(smol, prompt_of(smol, 40), MODES, temperature=1.0, seed=7, max_tokens=24)
    assert len(wanted["events"]) > 8


@pytest.mark.parametrize(
    ("n_prompt", "temperature", "modes"),
    [(40, 1.0, MODES), (100, 0.7, FEW), (450, 1.0, FEW), (100, 0.0, FEW)],
    ids=["40 tokens T=1, all modes", "100 tokens T=0.7", "450 tokens T=1", "100 tokens T=0"],
)
def test_real_weights(real: Real, n_prompt: int, temperature: float, modes: dict[str, dict[str, Any]]) -> None:
    assert real.kad.max_draft >= 8
    wanted = same_in(real.kad, prompt_of(real.kad, n_prompt), modes, temperature=temperature, seed=7, max_tokens=24)
    assert len(wanted["events"]) > 8


def test_real_weights_with_samplers_in_a_second_turn_and_a_new_process(real: Real) -> None:
    keywords: dict[str, Any] = {"seed": 2, "max_tokens": 20, "top_p": 0.9, "top_k": 40, "min_p": 0.01}
    chat = turns(real.kad.generate(turns("")[:1], max_tokens=30, seed=2).text)
    wanted = same_in(real.kad, chat, FEW, text_number=1, **keywords)
    assert in_new_process(*real.files, real.load, [(chat, keywords | {"text_number": 1, "draft": 2})]) == [wanted]


@pytest.mark.long
@pytest.mark.parametrize("rule", ["dual", "primal", "nudging", "base"])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_smollm_whole(smol_pair: tuple[Path, Path], rule: str, temperature: float) -> None:
    with KadLlama(*smol_pair, rule=rule, **SMOL) as kad:
        calls, here = [], []
        for n_prompt in (40, 100, 600):
            for samplers in ({}, {"top_p": 0.9, "top_k": 50, "min_p": 0.01}):
                keywords: dict[str, Any] = {"temperature": temperature, "seed": n_prompt, "max_tokens": 40, **samplers}
                prompt = prompt_of(kad, n_prompt)
                here.append(same_in(kad, prompt, MODES, **keywords))
                calls.append((prompt, keywords | {"draft": 6}))
        chat = turns(kad.generate(turns("")[:1], seed=1, max_tokens=60, temperature=temperature).text)
        here.append(same_in(kad, chat, MODES, temperature=temperature, seed=1, text_number=1, max_tokens=40))
        calls.append((chat, {"temperature": temperature, "seed": 1, "text_number": 1, "max_tokens": 40}))
    assert in_new_process(*smol_pair, SMOL | {"rule": rule}, calls[::-1])[::-1] == here


# ---- The default -----------------------------------------------------------------------------------------------------


def test_default_same_call_in_a_new_process(tiny_pair: tuple[Path, Path], trained_pair: tuple[Path, Path]) -> None:
    """The first call of a process, twice over; in the mode it is made in."""
    for pair, keywords in (
        (tiny_pair, {"draft": 5, "max_tokens": 200, "seed": 1}),
        (tiny_pair, {"spec": False, "max_tokens": 200, "seed": 2}),
        (trained_pair, {"draft": 3, "max_tokens": 40, "seed": 3}),
    ):
        calls = [("Tell me a story about the sea and the stars. " * 12, keywords)]
        first, second = (in_new_process(*pair, {"n_threads": 2}, calls) for _ in range(2))
        assert first == second
        assert len(first[0]["events"]) > 8


@pytest.fixture(scope="module")
def f16_pair(tiny: Callable[..., Path]) -> tuple[Path, Path]:
    """Rows of F16 weights depend on the size of the pass."""
    return tiny("llama", quantisation="F16"), tiny("llama", quantisation="F16", noise=0.3, chat_template=True)


def variation(first: np.ndarray, second: np.ndarray) -> float:
    return reference.total_variation(reference.softmax(first), reference.softmax(second))


def arithmetic_noise(kad: KadLlama, context: list[int], rows: tuple[np.ndarray, ...], longest: int) -> float:
    """The largest total variation between `rows` and the same rows from passes of 1 to `longest` tokens."""
    worst = 0.0
    for n in range(1, longest + 1):
        for prompt in (context[-1:], context[:-n], context):  # forget; everything but n tokens; these n in one pass
            with Run(kad, prompt) as run:
                found = run.rows()
        worst = max(worst, *(variation(a, b) for a, b in zip(rows, found, strict=True)))
    return worst


def divergences(kad: KadLlama, ids: list[int], n_seeds: int, max_tokens: int, draft: int) -> dict[str, Any]:
    """Plain and speculative runs of the default, seed by seed: how many agree, and how near to a tie the others part.

    The criterion. `slack` is the least change of a probability that could give the plain run another outcome (margin()).
    The noise at that context is measured: the largest total variation of either row over passes of 1 to draft + 1
    tokens, and what alpha changed between the two runs. A divergence is at a near tie when slack <= 3 noise.
    """
    same, parted, elsewhere = 0, [], []
    for seed in range(n_seeds):
        texts, alphas = [], []
        for mode in (lib.KAD_MODE_PLAIN, lib.KAD_MODE_SPECULATIVE):
            with Run(kad, ids[-1:]) as run:
                run.step()  # forget what ran before
            text: list[int] = []
            alpha: list[float] = []
            with Run(kad, ids, seed=seed, max_tokens=max_tokens, mode=mode, draft=draft) as run:
                while not run.ended:
                    said = run.step()
                    text += said
                    alpha += [run.buffer[i].deferred_mass for i in range(len(said))]
            texts.append(text)
            alphas.append(alpha)
        plain, speculative = texts
        coins = [[reference.coin(seed, 0, t, purpose) for purpose in (1, 2, 3, 4)] for t in range(max_tokens)]
        agree = next(
            (t for t, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), min(map(len, texts))
        )
        same += plain == speculative
        if plain == speculative and len(elsewhere) > 500:
            continue
        with Run(kad, ids[-1:]) as run:
            run.step()
        rows = rows_along(kad, ids, plain[:agree], seed=seed, max_tokens=max_tokens)
        elsewhere += [margin(*rows[t], coins[t]).slack for t in range(0, agree, 5)]
        if plain == speculative:
            continue
        here = margin(*rows[agree], coins[agree])
        if agree < len(plain):
            assert here.outcome == plain[agree], "the coins and rows reported are not those that decided"
        noise = arithmetic_noise(kad, ids + plain[:agree], rows[agree], draft + 1)
        if agree < min(map(len, alphas)):
            noise = max(noise, abs(alphas[0][agree] - alphas[1][agree]))
        parted.append((seed, agree, here.slack, noise))
    return {"same": same, "of": n_seeds, "parted": parted, "elsewhere": elsewhere}


def check_divergences(found: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    parted = found["parted"]
    slacks = [slack for _, _, slack, _ in parted]
    noises = [noise for *_, noise in parted]
    chance = float(np.mean(np.array(found["elsewhere"]) <= max(slacks, default=0.0)))
    share = found["same"] / found["of"]
    line = (
        f"{found['same']} of {found['of']} texts identical in both modes ({share:.0%}); {len(parted)} part, at slacks up to "
        f"{max(slacks, default=0):.1e} under noise up to {max(noises, default=0):.1e}; as near to a tie are "
        f"{chance:.1%} of the events where they agree (median slack {np.median(found['elsewhere']):.1e})"
    )
    print(line)
    record_property("identical_texts_across_modes", share)
    record_property("divergences", line)
    for seed, event, slack, noise in parted:
        assert slack <= 3 * noise, f"seed {seed} parts at event {event}: slack {slack:.2e}, noise {noise:.2e}"


def test_default_parts_at_near_ties_only(
    f16_pair: tuple[Path, Path], record_property: Callable[[str, object], None]
) -> None:
    """Catches a mode that says something else for another reason than arithmetic: a wrong coin parts at any slack."""
    with KadLlama(*f16_pair, n_threads=2, n_ctx=1024) as kad:
        ids = kad.prompt(prompt_of(kad, 100)).base_ids or []
        found = divergences(kad, ids, 60, 100, draft=4)
    assert found["parted"], "no divergence to look at: the pair computes bit-equal rows"
    check_divergences(found, record_property)
    assert np.median(found["elsewhere"]) > 10 * max(slack for _, _, slack, _ in found["parted"])


@pytest.mark.long
def test_default_parts_at_near_ties_only_on_smollm(
    smol_pair: tuple[Path, Path], record_property: Callable[[str, object], None]
) -> None:
    with KadLlama(*smol_pair, n_threads=2, n_ctx=1024) as kad:
        ids = kad.prompt(prompt_of(kad, 300)).base_ids or []
        found = divergences(kad, ids, 12, 40, draft=3)
    check_divergences(found, record_property)
