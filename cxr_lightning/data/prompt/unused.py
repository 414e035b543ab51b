"""The words of a prompt that carry meaning, but that no field of a condition holds."""

from cxr_lightning.data.prompt.scope import CUES, TARGETS, Segment
from cxr_lightning.data.prompt.tokens import Item

MEANINGFUL = (*CUES, *TARGETS, "organ", "side", "severity", "degree", "unused")
SILENT = ("chest", "lung", "bone", "finding")
"""Organs and predicates that say nothing alone."""


def unused_words(
    segments: list[Segment], states: dict[Item, str], used: set[Item], dropped: set[Item]
) -> tuple[str, ...]:
    """Neighbouring words that were not used, together.

    Args:
        segments: The text.
        states: State of each finding and predicate.
        used: Items that went into the result.
        dropped: Predicates and findings that were understood, but cannot be held beside the others;
            they are named with their segment.
    """
    denied = {item for item in used if item.kind == "cue" and item.value == "absent"}
    denied |= {target for target, state in states.items() if state == "absent"}
    groups: list[str] = []
    for segment in segments:
        rest = [item for item in segment.items if item not in used]
        if any(item in dropped for item in rest):
            groups.append(_join(rest))
            continue
        groups += _neighbours(segment, [i for i in rest if _is_meaningful(segment, i, denied)])
    return tuple(dict.fromkeys(groups))


def _neighbours(segment: Segment, items: list[Item]) -> list[str]:
    """The items of a segment, joined where only filler stands between them."""
    groups: list[list[Item]] = []
    for item in items:
        last = groups[-1][-1].index if groups else item.index
        between = [other for other in segment.items if last < other.index < item.index]
        if groups and all(other.kind == "filler" for other in between):
            groups[-1] += [*between, item]
        else:
            groups.append([item])
    return [_join(group) for group in groups]


def _is_meaningful(segment: Segment, item: Item, denied: set[Item]) -> bool:
    if item.kind == "degree":  # "no acute fracture" is "no fracture"
        return denied.isdisjoint(segment.items)
    return item.kind in MEANINGFUL and item.value not in SILENT and item.text != "?"


def _join(items: list[Item]) -> str:
    return " ".join(item.text for item in items)
