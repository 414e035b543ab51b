"""Prompts in the words of radiology reports, to what a condition can hold."""

import itertools
import textwrap
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TypeVar

from cxr_lightning.data.prompt.age import cut_ages
from cxr_lightning.data.prompt.clean import clean
from cxr_lightning.data.prompt.healthy import Statement, settle_healthy
from cxr_lightning.data.prompt.mentions import Mention, attach, find_mentions
from cxr_lightning.data.prompt.prompt import (
    SEVERITIES,
    STATES,
    Finding,
    FindingState,
    Prompt,
    Side,
)
from cxr_lightning.data.prompt.scope import Segment, cut_segments, find_states
from cxr_lightning.data.prompt.synonyms import LESSER
from cxr_lightning.data.prompt.tokens import Item, find_items, tokenize
from cxr_lightning.data.prompt.unused import unused_words
from cxr_lightning.errors import UserError

EXAMPLE = "mild left pleural effusion, no pneumothorax, PA view, 70-year-old woman"

LENGTH = 2000
"""Characters that a prompt may have: a report fits in."""

T = TypeVar("T")


def parse_prompt(text: str, argument: str = "prompt") -> Prompt:
    """Reads a prompt such as "mild left pleural effusion, no pneumothorax, PA view".

    It knows the words of `lexicon.py`, spelt correctly. Sides and severities are not shared: in
    "left effusion and pneumothorax" only the effusion is said to be on the left.

    Args:
        text: The prompt.
        argument: What it is called in messages.

    Raises:
        UserError: If it is too long, nothing in it can be used, or it contradicts itself.
    """
    label = f"{argument}: {textwrap.shorten(text, 120)!r}"
    if len(text) > LENGTH:
        raise UserError(f"{label} has {len(text)} characters; write at most {LENGTH}.")
    plain = clean(text)
    ages, rest = cut_ages(plain)
    items = find_items(rest)
    segments = cut_segments(items)
    states, reached = find_states(segments)
    mentions = find_mentions(segments, states)
    modifiers = attach(segments, {mention.target for mention in mentions})
    statements = [
        (mention, _finding(mention, modifiers[mention.target], state, plain))
        for mention in mentions
        for state in STATES
        if mention.state == state  # what is history is none of them
    ]
    remainder = any("exception" in (item.kind, item.value) for item in items)
    statements, dropped = settle_healthy(statements, remainder, label)
    statements, narrower = _settle_narrower(statements, segments)
    dropped += narrower
    findings = _merge([finding for _, finding in statements])
    _check_states(findings, label)
    used = _used([mention for mention, _ in statements], reached, modifiers)
    values = [item.value for item in items if item.kind in ("view", "sex")]
    prompt = Prompt(
        text=text,
        findings=tuple(findings),
        view=_only(("AP", "PA"), values, "view", label),
        sex=_only(("Female", "Male"), values, "sex", label),
        age=_only(dict.fromkeys(ages), ages, "age", label),
        unused=unused_words(segments, states, used, {mention.target for mention in dropped}),
    )
    if not findings and prompt.view is None and prompt.sex is None and prompt.age is None:
        raise UserError(
            f"{label} names no finding, view, sex or age that a condition can hold; write for "
            f"example {EXAMPLE!r}."
        )
    return prompt


def _used(
    mentions: list[Mention], reached: dict[Item, list[Item]], modifiers: dict[Item, list[Item]]
) -> set[Item]:
    """The items that went into these mentions: they, their cues and their modifiers."""
    targets = {mention.target for mention in mentions}
    used = {cue for cue, spoken_of in reached.items() if not targets.isdisjoint(spoken_of)}
    return used.union(*(m.items for m in mentions), *(modifiers[target] for target in targets))


def _settle_narrower(
    statements: list[Statement], segments: list[Segment]
) -> tuple[list[Statement], list[Mention]]:
    """Drops the absence of a part of what is present: no field holds what it adds.

    That is the absence of something marked or recent ("no acute fracture, old fracture"), of what
    has another name ("congestion without edema", "tube removed, pacemaker"), and of all but what an
    exception names ("no effusion except a small one").
    """
    present = [(m, _segment(segments, m)) for m, f in statements if f.state == "present"]
    kept, dropped = list[Statement](), list[Mention]()
    for mention, finding in statements:
        before = [
            item
            for item in _segment(segments, mention).items
            if item.index < mention.target.index and item.kind == "degree" and item.value
        ]
        narrower = [
            one
            for one, segment in present
            if one.observation == mention.observation
            and (before or segment.link == "exception" or _is_part(mention, one))
        ]
        if finding.state == "absent" and narrower:
            dropped.append(mention)
        else:
            kept.append((mention, finding))
    return kept, dropped


def _segment(segments: list[Segment], mention: Mention) -> Segment:
    return next(segment for segment in segments if mention.target in segment.items)


def _is_part(denied: Mention, stated: Mention) -> bool:
    """Whether a denied name leaves room for the stated one: an empyema is a part of effusions."""
    one, other = _name(denied), _name(stated)
    general = one in denied.observation.lower()
    return one != other and bool(one and other) and (not general or other in LESSER)


def _name(mention: Mention) -> str:
    """The last word of what names a finding, in the singular; of a predicate, nothing."""
    return tokenize(mention.target.text)[-1].key if mention.target.kind == "finding" else ""


def _finding(mention: Mention, modifiers: list[Item], state: FindingState, text: str) -> Finding:
    """A mention with its modifiers; of several severities the highest counts."""
    items = [*mention.items, *modifiers]
    values = {item.value for item in modifiers}
    words = text[min(item.start for item in items) : max(item.end for item in items)]
    severity = next((value for value in reversed(SEVERITIES) if value in values), None)
    return Finding(mention.observation, state, _side(values), severity, " ".join(words.split()))


def _side(values: set[str]) -> Side | None:
    if "bilateral" in values or {"left", "right"} <= values:
        return "bilateral"
    if "left" in values:
        return "left"
    return "right" if "right" in values else None


def _merge(findings: list[Finding]) -> list[Finding]:
    """Joins statements of one observation, unless they name two sides or two severities."""
    merged: list[Finding] = []
    for finding in findings:
        for place, other in enumerate(merged):
            if _agree(finding, other):
                side, severity = other.side or finding.side, other.severity or finding.severity
                words = ", ".join(dict.fromkeys([other.words, finding.words]))
                merged[place] = replace(other, side=side, severity=severity, words=words)
                break
        else:
            merged.append(finding)
    return merged


def _agree(one: Finding, other: Finding) -> bool:
    pairs = [(one.side, other.side), (one.severity, other.severity)]
    same = (one.observation, one.state) == (other.observation, other.state)
    return same and all(a == b or a is None or b is None for a, b in pairs)


def _check_states(findings: list[Finding], label: str) -> None:
    """Raises where an observation is present and absent.

    "No left effusion, right effusion" is possible, and so is "no large effusion, small effusion".
    """
    for one, other in itertools.product(findings, repeat=2):
        opposite = (one.state, other.state) == ("present", "absent")
        sides, severities = {one.side, other.side}, {one.severity, other.severity} - {None}
        apart = sides == {"left", "right"} or len(severities) == 2
        if one.observation == other.observation and opposite and not apart:
            raise UserError(
                f"{label} states {one.observation} as present ({one.words!r}) and as absent "
                f"({other.words!r}); leave one of them out."
            )


def _only(options: Iterable[T], values: Collection[object], name: str, label: str) -> T | None:
    """The one option that is among the values."""
    stated = [option for option in options if option in values]
    if len(stated) > 1:
        raise UserError(
            f"{label} states more than one {name} ({', '.join(map(str, stated))}); leave one."
        )
    return stated[0] if stated else None
