"""What a user is told of a request: which part of it the images cannot show well."""

from collections.abc import Mapping
from typing import Any

from cxr_lightning.data.prompt import UNFOLLOWED, Prompt
from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition

FEW = 10
"""Training images of a finding, view or sex below which there is a caution."""

SEEN = {
    "views": {"PA": "the view PA", "AP": "the view AP"},
    "sexes": {"Male": "a male patient", "Female": "a female patient"},
}
"""What a product counts of its training images beside findings, in words; first what is 1."""


def rarely_seen(condition: Condition, manifest: Mapping[str, Any]) -> list[str]:
    """A sentence for each finding, view and sex asked for that few training images show.

    Args:
        condition: What is asked for.
        manifest: The generator product's, as far as it knows how many show what.
    """
    counts: dict[str, int] = dict(manifest.get("training_images", {}))
    dataset = manifest.get("dataset", {})
    for kind, words in SEEN.items():
        if kind in dataset:
            counts |= {word: dataset[kind].get(value, 0) for value, word in words.items()}
    shown, absent = (
        (condition.known & (condition.value == value)).any(dim=0).tolist() for value in (1.0, 0.0)
    )
    asked = [o for o in OBSERVATIONS if shown[FIELDS.index(o)]]
    for field, words in zip(("PA", "Male"), SEEN.values(), strict=True):
        column = FIELDS.index(field)
        is_asked = shown[column], absent[column]
        asked += [word for word, yes in zip(words.values(), is_asked, strict=True) if yes]
    return [
        f"only {counts[what]} training images of this model show {what}: what it draws for it "
        "means little"
        for what in asked
        if counts.get(what, FEW) < FEW
    ]


def unfollowed(prompt: Prompt, *, has_encoder: bool) -> list[str]:
    """What of a prompt no image follows.

    Args:
        prompt: What was understood.
        has_encoder: Whether a text encoder reads it too.
    """
    unused = f"not used of the prompt: {', '.join(prompt.unused)}" if prompt.unused else ""
    details = UNFOLLOWED if prompt.has_details and not has_encoder else ""
    return list(filter(None, [unused, details]))
