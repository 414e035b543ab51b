"""Findings, organs with predicates ("the heart is enlarged"), and their sides and severities."""

from dataclasses import dataclass
from typing import Literal

from cxr_lightning.data.prompt.scope import CUES, STOPS, TARGETS, Segment
from cxr_lightning.data.prompt.synonyms import ABNORMAL, NORMAL_MEANS_ABSENT
from cxr_lightning.data.prompt.tokens import Item

Extent = Literal["all", "acute", "lung"]

MODIFIERS = ("side", "severity")


@dataclass(frozen=True)
class Mention:
    """An observation where the text speaks of it.

    Attributes:
        observation: One of the 14.
        state: What is said of it: one of the `STATES` of scopes.
        target: The item that names it.
        items: All that says it.
        extent: Of No Finding: how much is said to be normal.
    """

    observation: str
    state: str
    target: Item
    items: tuple[Item, ...]
    extent: Extent = "all"


def find_mentions(segments: list[Segment], states: dict[Item, str]) -> list[Mention]:
    """The observations that a text mentions, in its order."""
    mentions: list[Mention] = []
    organs: list[Item] = []
    taken: set[Item] = set()
    for place, segment in enumerate(segments):
        if segment.link in STOPS or segments[place - 1].of(*TARGETS):
            organs = []
        for item in segment.items:
            if item.kind == "organ" and item not in taken:
                organs.append(item)
            elif item.kind == "finding":
                organs = []
                cues = _cues(segment, states[item])
                mentions += [
                    Mention(observation, states[item], item, (item, *cues))
                    for observation in item.value.split("+")
                ]
            elif item.kind == "predicate":
                subjects = [organ for organ in organs if _suits(item, organ)]
                subjects = subjects or _following(segments, place, item) or organs
                organs = []
                taken.update(subjects)
                mentions += _judge(segment, item, subjects, states[item])
    return mentions


def _cues(segment: Segment, state: str) -> list[Item]:
    return [] if state == "present" else segment.of(*CUES)


def _suits(predicate: Item, organ: Item) -> bool:
    """Whether a predicate speaks of an organ before it, if another may follow it."""
    return organ.value in ABNORMAL.get(predicate.value, NORMAL_MEANS_ABSENT)


def _following(segments: list[Segment], place: int, predicate: Item) -> list[Item]:
    """Organs that a predicate stands before: "normal heart and mediastinum"."""
    organs = []
    for item in segments[place].items[segments[place].items.index(predicate) + 1 :]:
        if item.kind in TARGETS:
            break
        if item.kind == "organ":
            organs.append(item)
    for segment in segments[place + 1 :] if organs else ():
        if segment.link not in ("and", "or") or segment.of(*TARGETS):
            break
        organs += segment.of("organ")
    return organs


def _judge(segment: Segment, predicate: Item, organs: list[Item], state: str) -> list[Mention]:
    """What a predicate says of organs, or of the whole radiograph where none is named."""
    items = (predicate, *_cues(segment, state))
    if predicate.value in ABNORMAL:
        return [
            Mention(ABNORMAL[predicate.value][organ.value], state, predicate, (*items, organ))
            for organ in organs
            if organ.value in ABNORMAL[predicate.value]
        ]
    expected = "present" if predicate.value in ("normal", "clear") else "absent"
    if state != expected or not (organs or _is_whole(segment, predicate)):
        return []
    whole: Extent = "all"
    if any(word.text.lower() in ("acute", "active") for word in segment.of("degree")):
        whole = "acute"
    if not organs:
        return [Mention("No Finding", "present", predicate, items, whole)]
    mentions = []
    for organ in organs:
        parts = (*items, organ)
        if organ.value in ("chest", "lung"):
            extent: Extent = "lung" if organ.value == "lung" else whole
            mentions.append(Mention("No Finding", "present", predicate, parts, extent))
        elif organ.value in NORMAL_MEANS_ABSENT:
            observation = NORMAL_MEANS_ABSENT[organ.value]
            mentions.append(Mention(observation, "absent", predicate, parts))
    return mentions


def _is_whole(segment: Segment, predicate: Item) -> bool:
    """Whether a predicate without an organ speaks of the radiograph.

    Not in "normal position", nor of an unknown subject: "the stomach is normal".
    """
    if predicate.value == "clear" or segment.of("finding"):
        return False
    unknown = [item for item in segment.of("unused") if item.value != "patient"]
    before = [item for item in unknown if item.index < predicate.index]
    subjects = [item for item in before if not item.text.lower().endswith("ly")]
    return not subjects and all(item.index != predicate.index + 1 for item in unknown)


def attach(segments: list[Segment], targets: set[Item]) -> dict[Item, list[Item]]:
    """Sides and severities of each target.

    A modifier belongs to what follows it in its segment ("left effusion"), else to what stands
    before it ("effusion on the left"; after a preposition this comes first). In a segment of its
    own it belongs to what was named last ("effusion, left"), or to the next where nothing was, or
    where another modifier is joined to it ("left and right effusions").
    """
    modifiers: dict[Item, list[Item]] = {target: [] for target in targets}
    last: Item | None = None
    for place, segment in enumerate(segments):
        if segment.link in STOPS:
            last = None
        named = [item for item in segment.items if item in targets]
        beyond = segments[place + 1] if place + 1 < len(segments) else None
        for item in segment.of(*MODIFIERS):
            if named:
                owner = _inside(segment, item, named)
            else:  # "left base clear" says something else of its side
                owner = None if segment.of("predicate") else _outside(beyond, targets, last)
            if owner is not None:
                modifiers[owner].append(item)
        last = named[-1] if named else last
    return modifiers


def _inside(segment: Segment, modifier: Item, named: list[Item]) -> Item | None:
    before = [item for item in segment.items if item.index < modifier.index]
    named_before = [item for item in before if item in named]
    words = [item for item in before if item.kind != "filler"]
    is_place = bool(words) and words[-1].kind == "place"
    following = [item for item in named if item.index > modifier.index]
    if named_before and not following and _is_denied(segment, modifier, named_before[-1]):
        return None  # "effusion is not large"
    if named_before and (is_place or not following or _cue_between(segment, modifier, following)):
        return named_before[-1]
    return following[0]


def _is_denied(segment: Segment, modifier: Item, target: Item) -> bool:
    denials = [cue for cue in segment.of("cue") if cue.value == "absent"]
    return any(target.index < cue.index < modifier.index for cue in denials)


def _cue_between(segment: Segment, modifier: Item, following: list[Item]) -> bool:
    return any(modifier.index < cue.index < following[0].index for cue in segment.of(*CUES))


def _outside(following: Segment | None, targets: set[Item], last: Item | None) -> Item | None:
    if following is None or following.link in STOPS:
        return last
    named = [item for item in following.items if item in targets]
    joined = following.link != "," and following.items[0].kind in MODIFIERS
    return named[0] if named and (last is None or joined) else last
