"""From a text to an answer, and whether it is the right one: what a task's `find` and `compare` mean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from kad_llama.errors import InvalidArgumentError

__all__ = [
    "COMPARISONS",
    "FINDERS",
    "IGNORABLE",
    "Comparison",
    "Finder",
    "boxed",
    "finder",
    "latex",
    "normalised",
    "number",
]

Finder = Callable[[str, str], "str | None"]  # of a text and the letters of its options

COMPARISONS = ("exact", "numeric", "latex")
IGNORABLE = ("case", "space", "punctuation", "articles")

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}}(?![0-9A-Za-z]))?"
_CURRENCY = r"[$€£¥]"
# A sign belongs to the number unless something to subtract from stands before it ("10-5" has 10 and 5).
_SIGNED = rf"(?P<sign>(?<![0-9A-Za-z)\]}}])[+-])?(?:{_CURRENCY}(?P<late>[+-])?)?(?<![^\W_])(?P<number>{_UNSIGNED})"
_FRACTION = r"(?:/(?P<below>[0-9]+)(?![0-9.]*[0-9]))?"  # 3/4 is one number
_DATE = re.compile(r"[0-9]+(?:/[0-9]+){2,}")  # and here each part is one
_NUMBER = re.compile(_SIGNED + _FRACTION)
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[0-9.,]+)\s*\}\s*\{\s*([0-9]+)\s*\}")
_LATEX_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*([0-9])\s*([0-9])")
_MOST_DIGITS = 400  # of a number; longer ones are no answer to anything


def _plain_numbers(text: str) -> str:
    """Numbers as they are typed: no LaTeX fractions and separators, an ASCII minus."""
    text = text.replace("\u2212", "-").replace("{,}", ",").replace("\\!", "").replace("\\$", "$").replace("\\%", "%")
    text = _LATEX_SHORT_FRACTION.sub(r"\1/\2", _LATEX_FRACTION.sub(r"\1/\2", text))
    return _DATE.sub(lambda date: date.group().replace("/", " "), text)


def _value(match: re.Match[str]) -> Fraction | None:
    if len(match.group()) > _MOST_DIGITS:
        return None
    value = Fraction(match["number"].replace(",", ""))
    if match["below"] is not None:
        below = int(match["below"])
        if below == 0:
            return None
        value /= below
    negative = (match["sign"] == "-") != (match["late"] == "-")
    return -value if negative else value


def number(text: str) -> Fraction | None:
    """Return the number that a text is, exactly; None when it is not one number.

    A sign, a currency sign before it, a percent sign or a full stop after it, thousands separators and LaTeX's dollar signs
    do not matter: "$1,000.00." is 1000, "5 %" is 5. "3/4" and "\\frac{3}{4}" are
    three quarters. Units are not taken off: "5 kg" is none.
    """
    plain = _plain_numbers(text).strip().strip("$").strip().rstrip(".%").rstrip()
    match = _NUMBER.fullmatch(plain)
    return None if match is None else _value(match)


def _last_number(text: str, letters: str) -> str | None:
    del letters
    found = None
    for match in _NUMBER.finditer(_plain_numbers(text)):
        if _value(match) is not None:
            found = match.group()
    return found


def boxed(text: str, letters: str = "") -> str | None:
    """Return what the last ``\\boxed{...}`` or ``\\fbox{...}`` with balanced braces holds; "\\{" is no brace."""
    del letters
    found = None
    for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text):
        end = _closing(text, match.end())
        if end is not None:
            found = text[match.end() : end].strip()
    return found or None


def _closing(text: str, at: int) -> int | None:
    """Where the brace closes that was opened before `at`."""
    depth = 1
    while at < len(text):
        if text[at] == "\\":
            at += 1  # whatever follows is escaped
        elif text[at] in "{}":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return at
        at += 1
    return None


def _option_letter(text: str, letters: str) -> str | None:
    """The option that a text names. The first of these that is there decides:

    1. the last "answer is B", "Answer: (b)", "option B", "choice B" or ``\\boxed{B}``, in either case;
    2. a marked letter that the text begins with: "B", "B.", "(b) ...", "b) ..." (but not "(B) is wrong ...");
    3. the last marked capital: "(B)", "B)", "**B**", and "B." or "B:" where a line begins;
    4. the last capital that stands alone, "A" before a word and "I" left out.
    """
    either = f"[{letters}{letters.lower()}]"
    capital = f"[{letters}]"
    edge = r"(?![\w'’])"
    said = r"(?:answer|option|choice)(?:\s+is|\s+would\s+be)?\s*[:\s]\s*(?:option\s+|choice\s+)?"
    closed = rf"\(({either})\)|\[({either})\]|({either})(?=[*_`\"”]*(?:[.,;:!?)\n]|\s*$))"
    open_ended = rf"({capital}){edge}(?:(?<!A)|(?!\s+(?!because|since|as|and|or)[a-z]))"
    stated = rf"(?i:\b{said})[*_`\"“]*(?:{closed}|{open_ended})"
    in_box = rf"\\boxed\s*\{{\s*(?:\\text(?:bf|rm)?\s*\{{)?\s*\(?({either})\)?\s*\}}"
    goes_on = r"(?!\s+(?:is|was|are|and|or|can|could|cannot|would|seems|may|might)\b)"  # a sentence about that option
    begins = rf"\A\s*[*_`]*(?:\(({either})\){goes_on}|({either})[*_`]*(?:[.):](?!\w)|\s*\Z)|({capital})[*_`]*\s*\n)"
    marked = rf"\(({capital})\)|(?<![\w(])({capital})\)|\*\*\(?({capital})\)?[.:]?\*\*|^[ \t]*({capital})[.:](?!\w)"
    alone = rf"(?<![\w'’.-])({capital}){edge}(?!-)"
    for pattern in (rf"{stated}|{in_box}", begins, marked):
        if found := _last_group(pattern, text):
            return found.upper()
    kept = [m for m in re.finditer(alone, text) if not _is_word(m, text)]
    return kept[-1].group(1) if kept else None


def _is_word(match: re.Match[str], text: str) -> bool:
    """Whether a capital that stands alone is the article, or the speaker."""
    after = text[match.end() :]
    return match.group(1) == "I" or (match.group(1) == "A" and re.match(r"\s+\w", after) is not None)


def _last_group(pattern: str, text: str) -> str | None:
    found = None
    for match in re.finditer(pattern, text, re.MULTILINE):
        found = next(group for group in match.groups() if group is not None)
    return found


def _whole(text: str, letters: str) -> str | None:
    del letters
    return text.strip() or None


FINDERS: dict[str, Finder] = {
    "last number": _last_number,
    "boxed": boxed,
    "option letter": _option_letter,
    "whole": _whole,
}


def finder(find: str) -> Finder:
    """Return what finds the answer: one of `FINDERS` by name, or a regular expression's one group at its last match.

    Raises
    ------
    InvalidArgumentError
        For what is neither.
    """
    if find in FINDERS:
        return FINDERS[find]
    wanted = f"expected {', '.join(map(repr, FINDERS))} or a regular expression with one group"
    try:
        pattern = re.compile(find)
    except re.error as error:
        raise InvalidArgumentError(f"find is {find!r}, which is no regular expression ({error}); {wanted}") from None
    if pattern.groups != 1:
        raise InvalidArgumentError(f"find is {find!r}, with {pattern.groups} groups; {wanted}")

    def last(text: str, letters: str) -> str | None:
        del letters
        groups = [match.group(1) for match in pattern.finditer(text)]
        return groups[-1].strip() or None if groups and groups[-1] else None

    return last


# ---- Comparing ----------------------------------------------------------------------------------------------------------


def normalised(text: str, ignore: Sequence[str] = ("case", "space", "punctuation")) -> str:
    """Return a text without what does not matter.

    "case": capitals. "space": how much and which white space. "punctuation": at either end of a word, quotes and brackets
    too; a sign before a digit and a percent sign stay, and so does what stands inside a word ("1.5", "don't").
    "articles": a, an, the.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    if "case" in ignore:
        text = text.casefold()
    if "punctuation" in ignore:
        text = re.sub(r"\S+", lambda word: _without_punctuation(word.group()), text)
    if "articles" in ignore:
        text = re.sub(r"\b(?:a|an|the)\b", " ", text, flags=re.IGNORECASE)
    return " ".join(text.split()) if "space" in ignore else text


def _without_punctuation(word: str) -> str:
    start, end = 0, len(word)
    while start < end and _is_punctuation(word, start):
        start += 1
    while end > start and _is_punctuation(word, end - 1):
        end -= 1
    return word[start:end]


def _is_punctuation(word: str, at: int) -> bool:
    character = word[at]
    if character == "%" or not unicodedata.category(character).startswith("P"):
        return False
    number_follows = re.match(r"[.]?[0-9]", word[at + 1 :]) is not None
    return not (number_follows and character in "-.")


_LATEX_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|,|;|:|!| |quad|qquad)(?![A-Za-z])|\\(?:big|Big|bigg|Bigg)[lr]?(?![A-Za-z])"
)
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")


def latex(text: str) -> str:
    """Return LaTeX in one of the ways to write it: no spacing, \\left and \\right, text commands, dollar signs or units of
    degrees; \\dfrac and \\tfrac as \\frac, its arguments in braces."""
    text = _LATEX_TEXT.sub(r"\1", text.strip().strip("$"))
    text = _LATEX_DROPPED.sub("", text).replace("\\$", "").replace("\\%", "").replace("%", "")
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac\s*([0-9])\s*([0-9])", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\sqrt\s*([0-9])", r"\\sqrt{\1}", text)
    return re.sub(r"\s+", "", text).rstrip(".")


@dataclass(frozen=True)
class Comparison:
    """How a found answer is compared with the target; `tolerance` is the largest difference of two equal numbers."""

    kind: str = "exact"
    ignore: tuple[str, ...] = ("case", "space", "punctuation")
    tolerance: Fraction = Fraction(0)

    def has_form(self, answer: str) -> bool:
        """Whether this can be compared at all: a number for numeric, something to read for the others."""
        if self.kind == "numeric":
            return number(answer) is not None
        return bool(latex(answer) if self.kind == "latex" else normalised(answer, self.ignore))

    def equal(self, answer: str, target: str) -> bool:
        """Whether the answer is the target."""
        if self.kind == "exact":
            return normalised(answer, self.ignore) == normalised(target, self.ignore)
        a, b = number(answer), number(target)
        if a is not None and b is not None:
            return abs(a - b) <= self.tolerance
        return self.kind == "latex" and latex(answer) == latex(target)
