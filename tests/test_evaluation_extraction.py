"""Is the answer that a text gives found, and compared as people would?"""

from __future__ import annotations

from fractions import Fraction

import pytest

from kad_llama.errors import InvalidArgumentError
from kad_llama.evaluation.extraction import Comparison, finder, latex, normalised, number

# ---- The last number ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 42.", "42"),
        ("It is 42...", "42"),
        ("He pays $5.", "5"),
        ("5.0", "5"),
        ("It costs $1,234.50 in all.", "1234.50"),
        ("1,000", "1000"),
        ("a loss of -7", "-7"),
        ("a loss of −7 degrees", "-7"),
        ("-$5 in the end", "-5"),
        ("$-5 in the end", "-5"),
        ("10-5", "5"),
        ("10 - 5 = 5", "5"),
        ("x=-5", "-5"),
        ("(3)-4", "4"),
        ("pages 3-4", "4"),
        ("- 5 apples", "5"),
        (".5", "1/2"),
        ("-.5", "-1/2"),
        ("the sum is 3.14", "157/50"),
        ("half: 1/2", "1/2"),
        ("-3/4 of it", "-3/4"),
        ("on 1/2/2024", "2024"),
        ("5/0", None),
        (r"so \frac{3}{4}", "3/4"),
        (r"so \dfrac12 of them", "1/2"),
        (r"it is 1{,}500", "1500"),
        (r"\$12", "12"),
        ("50%", "50"),
        ("**7**", "7"),
        ("_7_", "7"),
        ("7kg", "7"),
        ("the 2nd", "2"),
        ("H2O and x2", None),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("12,34", "34"),
        ("2.5e3", "2500"),
        ("1e-3", "1/1000"),
        ("1e9999", "1"),
        ("#### 18", "18"),
        ("18.\n\nNext", "18"),
        ("no number", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_last_number(text: str, expected: str | None) -> None:
    found = finder("last number")(text, "")
    assert (None if found is None else number(found)) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000", "1000"),
        ("1000.0", "1000"),
        ("$1,000.00.", "1000"),
        ("+5", "5"),
        ("5 %", "5"),
        (r"$\frac{1}{2}$", "1/2"),
        ("5 kg", None),
        ("five", None),
        ("5 6", None),
        ("1.2.3", None),
        ("", None),
        ("-", None),
        ("١٢", None),  # digits that are no ASCII
    ],
)
def test_number(text: str, expected: str | None) -> None:
    assert number(text) == (None if expected is None else Fraction(expected))


# ---- Boxed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{5}", "5"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed {3}", "3"),
        (r"\fbox{3}", "3"),
        (r"\boxed{3} and then \boxed{4", "3"),  # the last one was cut
        (r"\boxed{3", None),
        (r"\boxed{}", None),
        (r"boxed{3}", None),
        ("3", None),
    ],
)
def test_boxed(text: str, expected: str | None) -> None:
    assert finder("boxed")(text, "") == expected


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (r"\dfrac{1}{2}", r"\frac12", True),
        (r"\frac{1}{2}", "0.5", True),
        (r"\left( 3, 4 \right)", "(3,4)", True),
        (r"90^\circ", "90", True),
        (r"\text{even}", "even", True),
        ("1{,}000", "1000", True),
        (r"x^2 + 1", "x^2+1", True),
        (r"2\sqrt3", r"2\sqrt{3}", True),
        (r"2\pi", r"3\pi", False),
        (r"\frac{1}{2}", r"\frac{2}{1}", False),
        (r"\leftarrow", "arrow", False),
        ("x", "X", False),
    ],
)
def test_latex(a: str, b: str, equal: bool) -> None:
    assert Comparison("latex").equal(a, b) is equal


def test_latex_keeps_what_it_does_not_know() -> None:
    assert latex(r"\sin x") == r"\sinx" and latex(r"\alpha_{1}") == r"\alpha_{1}"


# ---- Option letters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("B. Because it is warm", "B"),
        ("b) it is warm", "B"),
        ("(B)", "B"),
        ("(b)", "B"),
        ("**B**", "B"),
        (" B\n", "B"),
        ("B\n\nIt is warm.", "B"),
        ("Answer: B", "B"),
        ("answer: b", "B"),
        ("The answer is (C).", "C"),
        ("The answer is C", "C"),
        ("The answer is **C**.", "C"),
        ("The correct answer is: D.", "D"),
        ("The answer is option D", "D"),
        ("The answer is A.", "A"),
        ("The answer is A because it melts.", "A"),
        (r"so \boxed{B}", "B"),
        (r"so \boxed{\text{B}}", "B"),
        ("I thought the answer is A, but the answer is B.", "B"),
        ("(A) is too cold. (B) is too hot. So C is what is left. The answer is C.", "C"),
        ("(A) is wrong, so it is (B)", "B"),
        ("A bad cab fed a bee.", None),  # an article and lower-case words
        ("A cat, and then a dog", None),
        ("a", "A"),
        ("a dog", None),
        ("the answer is a matter of taste", None),
        ("An answer: a dog", None),
        ("Because it is warm", None),
        ("it could be D", "D"),
        ("I think it is E", "E"),
        ("vitamin B12", None),
        ("plan-B-like", None),
        ("It is F", None),  # no option
        ("", None),
        ("Dear me", None),
    ],
)
def test_option_letter(text: str, expected: str | None) -> None:
    assert finder("option letter")(text, "ABCDE") == expected


def test_option_letter_knows_the_options() -> None:
    assert finder("option letter")("The answer is E.", "ABCD") is None
    assert finder("option letter")("The answer is J.", "ABCDEFGHIJ") == "J"


# ---- Whole, and regular expressions -------------------------------------------------------------------------------------


def test_whole_and_patterns() -> None:
    assert finder("whole")("  Paris. \n", "") == "Paris."
    assert finder("whole")(" \n", "") is None
    find = finder(r"(?im)^result:\s*(.*)$")
    assert find("Result: 1\nresult: 2 \nend", "") == "2"
    assert find("nothing", "") is None
    assert find("result:\n\n", "") is None
    assert finder("a(b)?")("ab a", "") is None  # the last match has an empty group


@pytest.mark.parametrize("find", ["last", "(", "(a)(b)", ""])
def test_a_finder_that_is_none(find: str) -> None:
    with pytest.raises(
        InvalidArgumentError, match="expected 'last number', 'boxed', 'option letter', 'whole' or a regular"
    ):
        finder(find)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("Paris", "paris.", True),
        ("  New\n York ", "new york", True),
        ('"Yes!"', "yes", True),
        ("(B)", "B", True),
        ("a , b", "a, b", True),
        ("don't", "dont", False),
        ("1.5", "15", False),
        ("-5", "5", False),
        ("5%", "5", False),
        ("U.S.", "u.s", True),
        ("ﬁne", "fine", True),
        ("the sea", "sea", False),
    ],
)
def test_exact(a: str, b: str, equal: bool) -> None:
    assert Comparison("exact").equal(a, b) is equal


def test_exact_ignores_what_it_is_told() -> None:
    assert Comparison("exact", ("case", "space", "punctuation", "articles")).equal("The sea!", "sea")
    assert not Comparison("exact", ()).equal("Sea", "sea")
    assert not Comparison("exact", ("case",)).equal("a  b", "a b")
    assert normalised("A  B.", ("space",)) == "A B."


def test_numeric() -> None:
    numeric = Comparison("numeric")
    assert numeric.equal("$1,000", "1000.0") and not numeric.equal("0.333", "1/3")
    assert Comparison("numeric", tolerance=Fraction("0.001")).equal("0.333", "1/3")
    assert not numeric.equal("five", "5") and not numeric.has_form("five") and numeric.has_form("-5")
    assert not Comparison("exact").has_form("...") and Comparison("exact").has_form("a")
