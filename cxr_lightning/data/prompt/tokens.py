"""Text to tokens, and tokens to items: the longest phrases that the lexicon has."""

import re
from dataclasses import dataclass

from cxr_lightning.data.prompt.age import FRENCH
from cxr_lightning.data.prompt.lexicon import LEXICON, LOBES, PUNCTUATION, Kind

CASED = ("L", "R", "F", "M")
"""Abbreviations that mean something only in upper case."""

TOKEN = re.compile(
    r"\b[A-Za-z]/(?:[A-Za-z]\b)?"  # w/o, s/p, w/
    r"|\b[Vv][Ss]\."
    rf"|\b{FRENCH}"  # 14F pigtail
    r"|\d+(?:\.\d+|(?:st|nd|rd|th)\b)?"
    r"|[^\W\d_]+(?:'[^\W\d_]+)?\d*"  # words, can't, T12
    r"|(?<=\s)-+(?=\s)"  # a dash; hyphens only join words
    r"|[.;!,()?&+/]"
)


@dataclass(frozen=True)
class Token:
    """A word or a mark.

    Attributes:
        text: As written, or a part of what an abbreviation stands for.
        key: What it is looked up by: in lower case and in the singular.
        start: Where it begins in the text.
        end: Where it ends.
    """

    text: str
    key: str
    start: int
    end: int


@dataclass(frozen=True)
class Item:
    """A phrase of the lexicon, or a word that it lacks, which is of the kind `unused`.

    Attributes:
        kind: Its kind.
        value: Its meaning, as the lexicon has it.
        text: As written.
        index: Its place among the items.
        start: Where it begins in the text.
        end: Where it ends.
    """

    kind: Kind
    value: str
    text: str
    index: int
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """Cuts a clean text into tokens; the short names of lobes are written out."""
    tokens = []
    for match in TOKEN.finditer(text):
        word, start, end = match.group(), match.start(), match.end()
        if word.lower() in LOBES:
            parts = LOBES[word.lower()].split()
            tokens += [Token(part, part, start, end) for part in parts]
        elif word == "?":
            touches = text[start - 1 : start].isalnum()
            tokens.append(Token(word, "? " if touches else "?", start, end))
        else:
            tokens.append(Token(word, _key(word), start, end))
    return tokens


def find_items(text: str) -> list[Item]:
    """Reads a clean text from left to right, the longest phrase first."""
    tokens = tokenize(text)
    items: list[Item] = []
    position = 0
    while position < len(tokens):
        kind, value, length = _longest(tokens[position : position + LONGEST])
        part = tokens[position : position + length]
        written = " ".join(token.text for token in part)
        items.append(Item(kind, value, written, len(items), part[0].start, part[-1].end))
        position += length
    return items


def _longest(tokens: list[Token]) -> tuple[Kind, str, int]:
    """Kind, meaning and length of the longest phrase that these tokens begin with."""
    keys = tuple(token.key for token in tokens)
    for length in range(len(keys), 0, -1):
        if keys[:length] in PHRASES:
            return *PHRASES[keys[:length]], length
    return "unused", "", 1


def _key(word: str) -> str:
    """Lower case and singular; what it makes need be no word, since the lexicon passes here too."""
    if word in CASED:
        return word
    key = word.lower().removesuffix("'s").strip("-") or "-"
    if len(key) < 4 or key.endswith(("us", "is")):
        return key
    if key.endswith("ies"):
        return key[:-3] + "y"
    if key.endswith("sses"):
        return key[:-2]
    return key.removesuffix("s") if not key.endswith("ss") else key


PHRASES: dict[tuple[str, ...], tuple[Kind, str]] = {
    **{(mark,): meaning for mark, meaning in PUNCTUATION.items()},
    **{
        tuple(token.key for token in tokenize(phrase)): (kind, value)
        for kind, meanings in LEXICON.items()
        for value, phrases in meanings.items()
        for phrase in phrases.split(", ")
    },
}
LONGEST = max(map(len, PHRASES))
