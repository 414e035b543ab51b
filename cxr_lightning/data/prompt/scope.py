"""Which findings a word such as "no" or "possible" speaks of.

As in NegEx (Chapman et al. 2001, doi 10.1006/jbin.2001.1029), a cue speaks of what follows it, or,
for some cues, of what stands before it, up to the end of its scope. Scopes here end at phrases
rather than after a number of words, since a prompt is one list of findings.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cxr_lightning.data.prompt.tokens import Item

TARGETS = ("finding", "predicate")
CUES = ("cue", "cue_after")
CONTENT = (*TARGETS, "organ", "side", "severity", "degree", "unused")
STOPS = ("exception", ".")
LINKS = (",", "and", "or", "versus", *STOPS)
"""What can stand between two phrases, from the weakest to the strongest."""

VERBS = ("is", "are", "was", "were", "has", "have", "in place", "in situ")
SEEN = ("see", "seen", "identified", "noted", "present", "evident", "visible")
"""After these verbs a denied list goes on: "no effusion and edema are seen"."""

STATES = ("present", "uncertain", "absent", "history")
"""Of several cues the last of these counts: "no opacity suspicious for pneumonia" denies both."""


@dataclass(frozen=True)
class Segment:
    """What stands between two links, such as "small left effusion".

    Attributes:
        link: What stands before it, one of `LINKS`.
        items: Its items.
    """

    link: str
    items: tuple[Item, ...]

    def of(self, *kinds: str) -> list[Item]:
        """Its items of these kinds."""
        return [item for item in self.items if item.kind in kinds]


def cut_segments(items: list[Item]) -> list[Segment]:
    """Cuts at links, at stops and at what is said of the view and the patient."""
    segments = []
    link, part = ".", list[Item]()
    for item in items:
        if item.kind not in ("link", "stop", "view", "sex"):
            part.append(item)
            continue
        if part:
            segments.append(Segment(link, tuple(part)))
            link, part = ",", []
        if item.kind in ("link", "stop"):
            link = max(link, item.value, key=LINKS.index)
    return [*segments, Segment(link, tuple(part))] if part else segments


def find_states(segments: list[Segment]) -> tuple[dict[Item, str], dict[Item, list[Item]]]:
    """The states of findings and predicates, and which of them each cue speaks of.

    What no cue speaks of is present. Alternatives of which nothing else is said ("atelectasis
    versus pneumonia") are uncertain, as in the CheXpert labeller.
    """
    states: dict[Item, str] = {}
    reached: dict[Item, list[Item]] = {}
    is_request = any(item.value == "request" for s in segments for item in s.items)
    for place, segment in enumerate(segments):
        for cue in segment.of(*CUES):
            if cue.text == "?" and is_request:  # "Could you draw pneumonia?" doubts nothing
                continue
            reached[cue] = _reach(segments, place, cue)
            for target in reached[cue]:
                states[target] = max(states.get(target, "present"), cue.value, key=STATES.index)
    for before, after in itertools.pairwise(segments):
        pair = before.of("finding")[-1:] + after.of("finding")[:1]
        doubt = after.link in ("or", "versus") and len(pair) == 2
        if doubt and not any(item in states for item in pair):
            states.update(dict.fromkeys(pair, "uncertain"))
    return {t: states.get(t, "present") for s in segments for t in s.of(*TARGETS)}, reached


def _reach(segments: list[Segment], place: int, cue: Item) -> list[Item]:
    """The findings and predicates that a cue speaks of.

    A cue speaks of what follows it in its segment ("no effusion"), else of what stands before it
    ("effusion: none"), else of the segment before ("effusion, none"). Cues such as "ruled out" look
    back first. A denial of something unknown ("effusion without hernia") does not turn back.
    """
    segment = segments[place]
    after = [item for item in segment.of(*CONTENT) if item.index > cue.index]
    before = [item for item in segment.of(*CONTENT) if item.index < cue.index]
    ahead = [item for item in after if item.kind in TARGETS]
    behind = [item for item in before if item.kind in TARGETS]
    turns = cue.kind == "cue_after" or (not ahead and not (after and cue.value == "absent"))
    if behind and turns:
        return behind + list(_backward(segments, place))
    listed = _count_listed(segments, place, after) if cue.value == "absent" else 0
    further = list(_forward(segments, place, listed)) if after else []
    if ahead or further:
        return ahead + further
    alone = all(item.kind in ("side", "severity") for item in before + after)
    if alone and place > 0 and segment.link not in STOPS:
        return segments[place - 1].of(*TARGETS) + list(_backward(segments, place - 1))
    return []


def _forward(segments: list[Segment], place: int, listed: int) -> Iterator[Item]:
    """What a cue speaks of beyond its segment: up to a stop, another cue or the end of a list.

    "or" continues ("no effusion or large edema"), "and" only before a bare name ("no effusion and
    edema", but not "no effusion and a large pneumothorax", nor "no effusion and cardiomegaly is
    stable"), a comma only within a list that ends so ("no effusion, pneumothorax, or edema", but
    not "no effusion, pneumothorax"), or that has so many names `listed`.
    """
    for i in range(place + 1, len(segments)):
        if segments[i].of("cue") or not (i <= place + listed or _continues(segments, i)):
            return
        yield from segments[i].of(*TARGETS)


def _count_listed(segments: list[Segment], place: int, after: list[Item]) -> int:
    """How many names follow a denied one by commas alone, up to the end of its sentence.

    "No effusion, pneumothorax, edema." is such a list. 0 where anything but names stands in the
    sentence too ("no effusion, edema, large pneumothorax"), or a single name follows, which may be
    asked for ("no effusion, pneumothorax").
    """
    rest = list(itertools.takewhile(lambda s: s.link not in STOPS, segments[place + 1 :]))
    plain = all(segment.link == "," and _is_name(segment.items) for segment in rest)
    return len(rest) if plain and len(rest) > 1 and _is_name(after) else 0


def _is_name(items: Sequence[Item]) -> bool:
    """Whether these are a finding's name and nothing that qualifies it."""
    kinds = {item.kind for item in items}
    return "finding" in kinds and kinds <= {"finding", "degree", "filler"}


def _continues(segments: list[Segment], i: int) -> bool:
    link = segments[i].link
    if link == ",":
        return _in_list(segments[i:])
    return link in ("or", "versus") or (link == "and" and _joins(segments[i]))


def _in_list(segments: list[Segment]) -> bool:
    """Whether names follow, up to one after "or", or plain names up to one after "and"."""
    plain = True
    for segment in segments:
        if segment.link == "or":
            return True
        if segment.link == "and" and _joins(segment):
            return plain
        if segment.link != "," or segment.of(*CUES):
            return False
        plain &= not segment.of("side", "severity")
    return False


def _joins(segment: Segment) -> bool:
    """Whether a denial before "and" goes on: a bare name of which nothing else is said."""
    if not _is_bare(segment):
        return False
    words = {
        item.text.lower() for item in segment.of("filler") if item.index > segment.items[0].index
    }
    return words.isdisjoint(VERBS) or not words.isdisjoint(SEEN)


def _backward(segments: list[Segment], place: int) -> Iterator[Item]:
    """What a cue that looks back speaks of before its segment: "effusion and edema not seen"."""
    for i in range(place, 0, -1):
        link = segments[i].link
        is_list = link == "and" or (link == "," and i < place)
        linked = link in ("or", "versus") or (is_list and _is_bare(segments[i]))
        if not linked or segments[i - 1].of(*CUES):
            return
        yield from segments[i - 1].of(*TARGETS)


def _is_bare(segment: Segment) -> bool:
    return segment.items[0].kind in (*TARGETS, "organ")
