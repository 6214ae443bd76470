"""A test of the tests: plant named mistakes in a copy of the C++ sources and see them caught.

A mutant is a list of textual substitutions, each of which must match exactly once; one that does not has gone stale and
fails here. It is compiled with c++ into a library of its own. The checks that the other test files make must pass on the
unmutated copy and fail on every mutant.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import law
import pytest

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
        assert count == 1, f"mutant {mutant.name!r} is stale: {file} holds {there!r} {count} times; update test_mutants.py"
        (tree / file).write_text(text.replace(there, instead))
        changed.add(tree / file)
    return changed


class Workshop:
    """Compiles copies of some sources; objects of files that a mutant does not touch are compiled once."""

    def __init__(self, folder: Path, sources: list[str]) -> None:
        self.folder = folder
        self.sources = sources
        original = self.copy("original")
        files = [original / source for source in sources]
        objects = law.compile_objects(files, [HEADERS, original], folder / "objects")
        self.objects = dict(zip(sources, objects, strict=True))
        self.unmutated = law.load(law.link(objects, folder / "original.so"))

    def copy(self, name: str) -> Path:
        tree = self.folder / name
        shutil.copytree(SOURCES, tree)
        return tree

    def build(self, mutant: Mutant) -> law.Core:
        """The library with a mutant in it."""
        name = "".join(c if c.isalnum() else "_" for c in mutant.name)
        tree = self.copy(name)
        changed = substitute(tree, mutant)
        header_changed = any(path.suffix == ".h" for path in changed)
        again = [s for s in self.sources if header_changed or tree / s in changed]
        fresh = law.compile_objects([tree / s for s in again], [HEADERS, tree], self.folder / f"{name}.objects")
        objects = self.objects | dict(zip(again, fresh, strict=True))
        return law.load(law.link(list(objects.values()), self.folder / f"{name}.so"))


# ---- The draw --------------------------------------------------------------------------------------------------------

CORE_SOURCES = [f"core/{name}.cpp" for name in ("coins", "deferral", "draw", "logits", "mixture")] + ["c_api_rows.cpp"]


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


def zero_check(core: law.Core) -> list[str]:
    """A coin of exactly 0 where pi(x) = 0: the base keeps two tokens that hold everything, x is neither."""
    case = law.Case(law.logits([0.5, 0.5, 0.0]), law.logits([0.0, 0.0, 1.0]), "dual", 0.4, name="disjoint")
    return law.zero_failures(law.core_draw(core, case), case)


def coin_check(core: law.Core) -> list[str]:
    """Coins are those of the oracle."""
    keys = [(seed, text, event, purpose) for seed in (0, 9) for text in (0, 1) for event in (0, 5) for purpose in (1, 4)]
    return [f"coin {key}" for key in keys if core.lib.kad_coin(*key) != law.reference.coin(*key)]


ACCEPT = "coins.acceptance * q.probability(x) < pi.probability(x)"

CORE_MUTANTS = [
    Mutant("a comparison that is not strict", (("core/draw.cpp", ACCEPT, ACCEPT.replace("<", "<=")),), zero_check),
    Mutant(
        "a residual without the kept set",
        (
            (
                "core/mixture.cpp",
                "static void each(const KeptSet & kept, size_t n, Visit visit) {",
                "static void each(const KeptSet &, size_t n, Visit visit) {\n    KeptSet kept;\n    kept.everything();",
            ),
        ),
        law_check,
    ),
    Mutant(
        "acceptance with p instead of pi",
        (("core/draw.cpp", ACCEPT, ACCEPT.replace("pi.probability", "p.probability")),),
        law_check,
    ),
    Mutant(
        "alpha from the raw rows instead of the shaped ones",
        (
            ("core/mixture.h", "// alpha = 1 - p'(S)", "extern const Distribution * raw_row;\n// alpha = 1 - p'(S)"),
            ("core/mixture.cpp", "namespace kad {\n\n", "namespace kad {\n\nconst Distribution * raw_row = nullptr;\n"),
            ("core/mixture.cpp", "alpha_(deferred_mass(p, kept))", "alpha_(deferred_mass(*raw_row, kept))"),
            ("c_api_rows.cpp", "decide(*rule, &raw, kept);", "decide(*rule, &raw, kept);\n        raw_row = &raw;"),
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
        (("core/draw.cpp", "coins.source < pi.base_share", "coins.acceptance < pi.base_share"),),
        law_check,
    ),
    Mutant(
        "coins that do not depend on the text number",
        (("core/coins.cpp", "{ event, text_number, purpose, 0 }", "{ event, 0, purpose, 0 }"),),
        coin_check,
    ),
]


@pytest.fixture(scope="module")
def core_workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("core"), CORE_SOURCES)


@pytest.mark.parametrize("check", [law_check, zero_check, coin_check])
def test_checks_pass_without_a_mutant(core_workshop: Workshop, check: Callable[[law.Core], list[str]]) -> None:
    assert check(core_workshop.unmutated) == []


@pytest.mark.parametrize("mutant", CORE_MUTANTS, ids=lambda mutant: mutant.name)
def test_core_mutants_are_caught(core_workshop: Workshop, mutant: Mutant) -> None:
    assert mutant.check(core_workshop.build(mutant)), f"{mutant.name}: not caught"


def test_a_stale_mutant_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "draw.cpp").write_text("c < p; c < p;")
    for there in ("c <= p", "c < p"):
        with pytest.raises(AssertionError, match="stale"):
            substitute(tmp_path, Mutant("old", (("draw.cpp", there, ""),), law_check))
