"""A test of the tests: plant named mistakes in a copy of the C++ sources and see them caught.

A mutant is a list of textual substitutions, each of which must match exactly once; one that does not has gone stale and
fails here. It is compiled with c++ into a library of its own. The checks that the other test files make must pass on
the unmutated copy and fail on every mutant.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import core_rows
import law
import pytest
import step

SOURCES = law.ROOT / "cpp/src"
HEADERS = law.ROOT / "cpp/include"


@dataclass(frozen=True)
class Mutant:
    """A mistake: what it is, where it is planted, and the check that must notice."""

    name: str
    substitutions: tuple[tuple[str, str, str], ...]  # file, what stands there, what is put there
    check: Callable[[law.Core], list[str]]


def substitute(tree: Path, mutant: Mutant) -> set[Path]:
    """Plants a mutant in a copy of cpp/src; the files that changed."""
    changed = set()
    for file, there, instead in mutant.substitutions:
        text = (tree / file).read_text()
        count = text.count(there)
        assert count == 1, (
            f"mutant {mutant.name!r} is stale: {file} holds {there!r} {count} times; update test_mutants.py"
        )
        (tree / file).write_text(text.replace(there, instead))
        changed.add(tree / file)
    return changed


class Workshop:
    """Compiles copies of some sources, each in a folder of its own."""

    def __init__(self, folder: Path, objects: Path, sources: list[str], load: Callable[[Path], law.Core]) -> None:
        self.folder = folder
        self.objects = objects
        self.sources = sources
        self.load = load
        self.unmutated = self.compile(self.copy("original"))

    def copy(self, name: str) -> Path:
        tree = self.folder / name
        shutil.copytree(SOURCES, tree)
        for harness in (step.HARNESS, core_rows.HARNESS):
            if harness.name in self.sources:
                shutil.copy(harness, tree)
        return tree

    def build(self, mutant: Mutant) -> law.Core:
        """The library with a mutant in it."""
        tree = self.copy("".join(c if c.isalnum() else "_" for c in mutant.name))
        substitute(tree, mutant)
        return self.compile(tree)

    def compile(self, tree: Path) -> law.Core:
        objects = law.compile_objects([tree / source for source in self.sources], [HEADERS, tree], self.objects)
        return self.load(law.link(objects, tree / "mutant.so"))


# ---- The draw --------------------------------------------------------------------------------------------------------


def law_check(core: law.Core) -> list[str]:
    """The exact law on a few rows that tell rules, truncation and both branches apart."""
    named = {name: (base, aligned) for name, base, aligned in law.pairs()}
    failures = []
    for name in ("ordinary", "ties", "zeros", "equal"):
        for rule, threshold in (("dual", 0.4), ("primal", 0.3)):
            for temperature, top_p in ((1.0, 1.0), (0.7, 0.8)):
                case = law.Case(*named[name], rule, threshold, temperature, top_p=top_p, name=name)
                failures += law.law_failures(law.core_draw(core, case), case)
    return failures


RULE_CASES = (("bet", 0.2), ("chow", 0.5), ("token-v1", 0.25), ("token-v3", 0.5), ("implicit-reward", 1.0))


def rule_check(core: law.Core) -> list[str]:
    """The same for rules that look at two or three models, and for pi as a row of its own."""
    failures = []
    for rule, threshold in RULE_CASES:
        for case in law.cases(rule, threshold):
            if case.name.split(",")[0] in ("ordinary", "ties", "zeros", "random 0"):
                failures += law.law_failures(law.core_draw(core, case), case)
    return failures


def zero_check(core: law.Core) -> list[str]:
    """A coin of exactly 0 where pi(x) = 0: the base keeps two tokens that hold everything, x is neither."""
    case = law.Case(law.logits([0.5, 0.5, 0.0]), law.logits([0.0, 0.0, 1.0]), "dual", 0.4, name="disjoint")
    return law.zero_failures(law.core_draw(core, case), case)


def coin_check(core: law.Core) -> list[str]:
    """Coins are those of the oracle."""
    keys = [
        (seed, text, event, purpose) for seed in (0, 9) for text in (0, 1) for event in (0, 5) for purpose in (1, 4)
    ]
    return [f"coin {key}" for key in keys if core.lib.kad_coin(*key) != law.reference.coin(*key)]


ACCEPT = "coins.acceptance * pi.aligned().probability(x) < pi.probability(x)"
ALPHA = "deferred_(deferred_mass(exchanged ? q : p, kept))"
DECIDED = "decide(*rule, &raw_p, &raw_q, kept);"

CORE_MUTANTS = [
    Mutant("a comparison that is not strict", (("core/draw.cpp", ACCEPT, ACCEPT.replace("<", "<=")),), zero_check),
    Mutant(
        "a residual without the kept set",
        (
            (
                "core/mixture.cpp",
                "const bool listed = form_ == Form::BaseKeeps && kept_->extent != KeptSet::Extent::Everything;",
                "const bool listed = false;",
            ),
        ),
        law_check,
    ),
    Mutant(
        "acceptance with p instead of pi",
        (("core/draw.cpp", ACCEPT, ACCEPT.replace("pi.probability", "pi.base().probability")),),
        law_check,
    ),
    Mutant(
        "alpha from the raw rows instead of the shaped ones",
        (
            (
                "core/mixture.h",
                "// 1 - row(S): exactly",
                "extern const Distribution * raw_row;\n// 1 - row(S): exactly",
            ),
            ("core/mixture.cpp", "namespace kad {\n\n", "namespace kad {\n\nconst Distribution * raw_row = nullptr;\n"),
            ("core/mixture.cpp", ALPHA, ALPHA.replace("q : p", "q : *raw_row")),
            ("c_api_rows.cpp", DECIDED, f"{DECIDED}\n        raw_row = &raw_p;"),
        ),
        law_check,
    ),
    Mutant(
        "the residual drawn by the coin of acceptance",
        (("core/draw.cpp", "draw_residual(coins.residual)", "draw_residual(coins.acceptance)"),),
        law_check,
    ),
    Mutant(
        "acceptance by the coin of the proposal",
        (("core/draw.cpp", ACCEPT, ACCEPT.replace("acceptance", "proposal")),),
        law_check,
    ),
    Mutant(
        "the branch of one kept token by the coin of the proposal",
        (("core/draw.cpp", "coins.acceptance < p.probability(v)", "coins.proposal < p.probability(v)"),),
        law_check,
    ),
    Mutant(
        "who spoke by the coin of acceptance",
        (
            (
                "core/draw.cpp",
                "return { y, speaker_of(pi, y, coins.source) }",
                "return { y, speaker_of(pi, y, coins.acceptance) }",
            ),
        ),
        law_check,
    ),
    Mutant(
        "coins that mix up text number and purpose",
        (("core/coins.cpp", "purpose, 0 }, { seed, 0 })[0]", "purpose - text_number, 0 }, { seed, 0 })[0]"),),
        coin_check,
    ),
    Mutant(
        "a bet against the base's own best token",
        (("core/deferral.cpp", "keep_bet(*p, *q, t, kept);", "keep_bet(*p, *p, t, kept);"),),
        rule_check,
    ),
    Mutant(
        "chow looks at the base",
        (("core/deferral.cpp", "keep_chow(*q, t, kept);", "keep_chow(*p, t, kept);"),),
        rule_check,
    ),
    Mutant(
        "token-v1 looks at the base's probabilities",
        (("core/deferral.cpp", "keep_token_v1(*p, *q, t, kept);", "keep_token_v1(*p, *p, t, kept);"),),
        rule_check,
    ),
    Mutant(
        "token rules without the exchange of roles",
        (("c_api_rows.cpp", "pi.emplace(p, q, kept, info.exchanged != 0);", "pi.emplace(p, q, kept, false);"),),
        rule_check,
    ),
    Mutant(
        "a residual of the token rules that leaves out what the aligned model keeps",
        (
            (
                "core/mixture.cpp",
                "out[*v - first] = deferred_ * p_.probability(*v);",
                "out[*v - first] = 0;",
            ),
        ),
        rule_check,
    ),
    Mutant(
        "P(base) of the token rules without the weight that is left to the base",
        (
            (
                "core/mixture.cpp",
                "? p_.probability(v) : deferred_ * p_.probability(v);",
                "? p_.probability(v) : p_.probability(v);",
            ),
        ),
        rule_check,
    ),
    Mutant(
        "a reward of the wrong sign",
        (
            (
                "core/kernels.cpp",
                "beta * (double(aligned[i]) - double(reference[i]))",
                "beta * (double(reference[i]) - double(aligned[i]))",
            ),
        ),
        rule_check,
    ),
    Mutant(
        "a reward without the reference model",
        (("core/kernels.cpp", "(double(aligned[i]) - double(reference[i]))", "double(aligned[i])"),),
        rule_check,
    ),
]


@pytest.fixture(scope="module")
def core_workshop(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("core"), objects, law.CORE_SOURCES, law.load)


@pytest.mark.parametrize("check", [law_check, rule_check, zero_check, coin_check])
def test_checks_pass_without_a_mutant(core_workshop: Workshop, check: Callable[[law.Core], list[str]]) -> None:
    assert check(core_workshop.unmutated) == []


@pytest.mark.parametrize("mutant", CORE_MUTANTS, ids=lambda mutant: mutant.name)
def test_core_mutants_are_caught(core_workshop: Workshop, mutant: Mutant) -> None:
    assert mutant.check(core_workshop.build(mutant)), f"{mutant.name}: not caught"


# ---- The step --------------------------------------------------------------------------------------------------------

STEP_SOURCES = [*law.CORE_SOURCES, *step.SOURCES, step.HARNESS.name]
MODES = ((step.PLAIN, 3), (step.LAZY, 3), *((step.SPECULATIVE, draft) for draft in (1, 2, 3, 8)))


def text_check(core: law.Core) -> list[str]:
    """One vocabulary: every mode and draft length writes the oracle's text."""
    return step.failures(core, [step.same_words(seed) for seed in range(12)], MODES)


def character_check(core: law.Core) -> list[str]:
    """Two vocabularies that cut characters in different places."""
    return step.failures(core, [step.other_words(seed) for seed in range(12)], MODES[:2])


def grammar_check(core: law.Core) -> list[str]:
    """One vocabulary under a grammar, with and without samplers; temperature 0 leaves nothing allowed with mass."""
    samplers = ({"top_k": 2}, {"penalty": 1.5}, {})
    runs = [step.with_grammar(replace(step.same_words(seed), **samplers[seed % 3])) for seed in range(12)]
    return step.failures(core, runs, MODES)


def correction_check(core: law.Core) -> list[str]:
    """More words, so that a redraw corrects to one of several."""
    return step.failures(core, [step.with_grammar(step.many_words(seed)) for seed in range(12)], MODES[:1])


def bytes_check(core: law.Core) -> list[str]:
    """A grammar over two vocabularies: each model's state follows what the other said."""
    return step.failures(core, [step.with_grammar(step.other_words(seed)) for seed in range(16)], MODES[:2])


def saving_check(core: law.Core) -> list[str]:
    """A right guess saves a base pass: with d draws of which g were right guesses, at most d - g + 1 passes."""
    wrong = []
    for seed in range(12):
        for rule in ("dual", "nudging", "base"):
            run = replace(step.same_words(seed), rule=rule, max_tokens=30)
            said, counts = step.write(core, run, step.SPECULATIVE, 3)
            draws = len(said) + (counts.finish == 1)
            if counts.base_passes > draws - counts.accepted + 1:
                wrong.append(
                    f"{rule}, seed {seed}: {counts.base_passes} passes, {draws} draws, {counts.accepted} right"
                )
    return wrong


EVENT = "const Token event = timed_draw(sequence, said);"
DECIDE = "decide(settings_.rule, at_rule(KAD_ROLE_BASE), at_rule(KAD_ROLE_ALIGNED), now.kept);"
COINS = "const DrawCoins coins(sequence.coins, sequence.events);"
GUESS = "row.spoken.draw(sequence.coins(event, PURPOSE_PROPOSAL))"

STEP_MUTANTS = [
    Mutant(
        "the position after the draft drawn from p",
        (
            (
                "runtime/generator.cpp",
                EVENT,
                "Token event = timed_draw(sequence, said);\n"
                "        if (sequence.now.said > 0 && sequence.now.said == sequence.now.guesses.size()) {\n"
                "            const double bonus = sequence.coins(sequence.events, PURPOSE_RESIDUAL);\n"
                "            event = row(sequence, KAD_ROLE_BASE).spoken.draw(bonus);\n"
                "        }",
            ),
        ),
        text_check,
    ),
    Mutant(
        "a budget shared across the window",
        (
            (
                "runtime/generator.cpp",
                DECIDE,
                "kad_rule shared = settings_.rule;\n"
                "    if (shared.kind == KAD_RULE_PRIMAL) shared.threshold /= double(now.guesses.size() + 1);\n"
                "    " + DECIDE.replace("settings_.rule", "shared"),
            ),
        ),
        text_check,
    ),
    Mutant(
        "guesses dropped for their value and drawn anew with fresh coins",
        (
            ("runtime/generator.cpp", "\nnamespace kad {\n", "\nnamespace kad {\n\nextern size_t dropped;\n"),
            ("runtime/drafting.cpp", "\nnamespace kad {\n", "\nnamespace kad {\n\nsize_t dropped;\n"),
            (
                "runtime/drafting.cpp",
                "if (x < 0) return false;",
                "if (x == 1) {\n"
                "        dropped = sequence.events + now.guesses.size() + 1;\n"
                "        return false;\n"
                "    }\n"
                "    if (x < 0) return false;",
            ),
            (
                "runtime/generator.cpp",
                COINS,
                "Coins fresh = sequence.coins;\n"
                "    if (dropped == sequence.events + 1) fresh.seed += 1, dropped = 0;\n"
                "    const DrawCoins coins(fresh, sequence.events);",
            ),
        ),
        text_check,
    ),
    Mutant(
        "characters finished by the draw's own coin",
        (("runtime/generator.cpp", "PURPOSE_CHARACTER + i", "PURPOSE_PROPOSAL"),),
        character_check,
    ),
    Mutant(
        "a redraw by the draw's own coins",
        (
            (
                "runtime/redraw.cpp",
                "const DrawCoins      coins(sequence.coins, sequence.events, PURPOSE_REDRAW);",
                "const DrawCoins      coins(sequence.coins, sequence.events);",
            ),
        ),
        grammar_check,
    ),
    Mutant(
        "a redraw's residual of laws that are not normalised",
        (("core/draw.cpp", "target[i] * q - proposal[i] * z)", "target[i] * q - proposal[i])"),),
        correction_check,
    ),
    Mutant(
        "masked after the samplers instead of before",
        (
            (
                "runtime/speaker.cpp",
                "masked_.assign(row.own, row.own + ok_ids.size());",
                "const float * from = row.shaped_own.empty() ? row.own : row.shaped_own.data();\n"
                "    masked_.assign(from, from + ok_ids.size());",
            ),
        ),
        grammar_check,
    ),
    Mutant(
        "a grammar that the guesses move",
        (
            (
                "runtime/drafting.cpp",
                "Constraint next = sequence.constraints.back().clone();",
                "Constraint & next = sequence.constraints.back();",
            ),
            ("runtime/drafting.cpp", "sequence.constraints.push_back(std::move(next));", "(void) next;"),
        ),
        grammar_check,
    ),
    Mutant(
        "a sampler that sees the context of the round's first event",
        (
            (
                "runtime/speaker.cpp",
                "shape(tokens_.data(), row.length, event,",
                "shape(tokens_.data(), n_prompt_, event,",
            ),
        ),
        grammar_check,
    ),
    Mutant(
        "the other model's grammar hears only the first token of a character",
        (("runtime/constraint.cpp", "for (const Token id : ids) {", "for (const Token id : { ids[0] }) {"),),
        bytes_check,
    ),
    Mutant(
        "a refused token of a character drawn again by the same coin",
        (("runtime/generator.cpp", "PURPOSE_CHARACTER_REDRAW + i", "PURPOSE_CHARACTER + i"),),
        bytes_check,
    ),
    Mutant(
        "the base's best token at temperature 0, kept or not",
        (("core/draw.cpp", "p.temperature() == 0 && kept.contains(p.top())", "p.temperature() == 0"),),
        text_check,
    ),
    Mutant(
        "the base's best token where it is kept, at every temperature",
        (("core/draw.cpp", "p.temperature() == 0 && kept.contains(p.top())", "kept.contains(p.top())"),),
        text_check,
    ),
    Mutant(
        "a cache that forgets the guesses before they are compared",
        (("runtime/speaker.cpp", "if (common < n) rewind(common);", "rewind(common);"),),
        saving_check,
    ),
]


@pytest.fixture(scope="module")
def step_workshop(tmp_path_factory: pytest.TempPathFactory, objects: Path) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("step"), objects, STEP_SOURCES, step.load)


@pytest.mark.parametrize(
    "check", [text_check, character_check, grammar_check, correction_check, bytes_check, saving_check]
)
def test_step_checks_pass_without_a_mutant(step_workshop: Workshop, check: Callable[[law.Core], list[str]]) -> None:
    assert check(step_workshop.unmutated) == []


@pytest.mark.parametrize("mutant", STEP_MUTANTS, ids=lambda mutant: mutant.name)
def test_step_mutants_are_caught(step_workshop: Workshop, mutant: Mutant) -> None:
    assert mutant.check(step_workshop.build(mutant)), f"{mutant.name}: not caught"


@pytest.mark.parametrize("guess", ["Token(event % 3)", "Token(sequence.events % 2)"])
def test_whatever_guesses_the_text_is_the_same(step_workshop: Workshop, guess: str) -> None:
    """Not a mistake but a bad drafter: it may cost time and must not change a token."""
    drafter = Mutant(f"guesses {guess}", (("runtime/drafting.cpp", GUESS, guess),), text_check)
    assert text_check(step_workshop.build(drafter)) == []


def test_a_stale_mutant_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "draw.cpp").write_text("c < p; c < p;")
    for there in ("c <= p", "c < p"):
        with pytest.raises(AssertionError, match="stale"):
            substitute(tmp_path, Mutant("old", (("draw.cpp", there, ""),), law_check))
