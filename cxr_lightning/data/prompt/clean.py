"""Text before it is cut into tokens: one form of characters, lines, signs and short forms."""

import itertools
import re
import unicodedata

CHARACTERS = {
    **dict.fromkeys(map(ord, "‐‑‒–−"), "-"),
    **dict.fromkeys(map(ord, "—―"), " - "),
    **dict.fromkeys(map(ord, "‘’ʼ"), "'"),
    ord("•"): "\n",
    ord("\u00ad"): None,  # a soft hyphen
}

WRAPPED = 25
"""Characters of a line that may have been broken within a sentence."""

# fmt: off
OPEN = {
    "a", "an", "and", "any", "are", "at", "evidence", "for", "in", "is", "large", "left",
    "mild", "moderate", "no", "nor", "not", "of", "on", "or", "pleural", "right", "severe",
    "small", "the", "there", "to", "was", "with", "without",
}
# fmt: on
"""Words that do not end a statement."""

MARKS = tuple(",;:.!?(&+/-")

END = r"(?=\s*(?:[,;]|$))"
UNIT = r"(?![.\d]|\s*(?:y|mo|w|d|h|[cm]m|/|%))"
SIGNS = (
    (r"\(\s*-\s*\)", " negative"),  # effusion (-)
    (r"\(\s*\+\s*\)", " "),
    (rf"\s*[=:]\s*-1(?:\.0)?{UNIT}", " not excluded"),  # CheXpert's own: edema = -1
    (rf"\s*[=:]\s*0(?:\.0)?{UNIT}", " absent"),
    (rf"\s*[=:]\s*1(?:\.0)?{UNIT}", " "),
    (rf"(?<=[a-z])\s*-{END}", " absent"),  # edema +, effusion -
    (rf"(?<=[a-z])\s*\+{END}", " "),
)
PLUS = r"(?:^|(?<=[\s,;]))\+(?=[a-z])"  # +effusion -pneumothorax
MINUS = r"(?:^|(?<=[\s,;]))-(?=[a-z])"

SIDED = (
    r"\s+(?:pleural|eff|ptx|pneumothorax|sided?|lower|upper|middle|mid|lung|base|basal|basilar|apical"
    r"|apex|lobe|hilar|rib)"
)
"""Begins of what follows an `l` or `r` that is a side."""

SHORT_FORMS = (
    (r"\b(bilat|rt|lt|pl|pulm|mod|sm|eff)\.(?=\s*[a-z,])", r"\1 "),
    (rf"\bl(?={SIDED})", "left"),
    (rf"\br(?={SIDED})", "right"),
    (r"\br\s?>\s?l\b", "R>L"),
    (r"\bl\s?>\s?r\b", "L>R"),
    (r"\bp\.\s?a\.", "PA "),
    (r"\ba\.\s?p\.", "AP "),
)


LIST_MARK = r"\s*[,;/]\s*(?:(?:and|or)\b)?\s*"
DENIED_LIST = re.compile(
    r"\b(no(?:\s+(?:evidence|signs?)\s+of)?|without|negative\s+for|denies)\s*\(([^()]+)\)",
    re.IGNORECASE,
)
"""A denial of what stands in brackets: no (pneumothorax, effusion)."""


def clean(text: str) -> str:
    """The text with one form of each character, without line ends, its signs in words.

    A line that ends within a sentence is joined to the next; any other one ends with a full stop.
    """
    plain = join_lines(unicodedata.normalize("NFKC", text).translate(CHARACTERS))
    for pattern, words in (*SHORT_FORMS, *SIGNS):
        plain = re.sub(pattern, words, plain, flags=re.IGNORECASE)
    plain = DENIED_LIST.sub(
        lambda found: f"{found[1]} {re.sub(LIST_MARK, ' or ', found[2])}", plain
    )
    if re.search(PLUS, plain, flags=re.IGNORECASE):
        plain = re.sub(PLUS, " ", plain, flags=re.IGNORECASE)
        plain = re.sub(MINUS, "no ", plain, flags=re.IGNORECASE)
    return plain


def join_lines(text: str) -> str:
    """The lines of a text as one."""
    lines = [line.strip() for line in text.splitlines()]
    if len(lines) < 2:
        return text
    joined = lines[0]
    for before, line in itertools.pairwise(lines):
        if not line or not joined:
            joined += line
        elif not before:
            joined += f". {line}"
        else:
            joined += f" {line}" if _goes_on(before, line) else f". {line}"
    return joined


def _goes_on(before: str, line: str) -> bool:
    """Whether a line is the rest of the sentence before it, or that has its mark already."""
    if before.endswith(MARKS) or before.split()[-1].lower() in OPEN:
        return True
    first = line.split()[0].lower()
    return first in ("and", "or", "nor") or (len(before) >= WRAPPED and line[0].islower())
