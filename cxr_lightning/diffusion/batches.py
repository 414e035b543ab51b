"""Batches of one shape: how many images are made at once must not change their rounding."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def padded_batches(items: Sequence[T], width: int) -> Iterator[tuple[list[T], list[T]]]:
    """Cuts a sequence into batches, the last one filled up with its last item.

    Kernels for one image and for several add in another order. So that an image comes out the same
    wherever it stands, and whatever was left to do, all batches have one shape.

    Args:
        items: What to cut.
        width: Items of a batch, 1 or more.

    Yields:
        The items of a batch, and the same filled up to `width`.
    """
    for start in range(0, len(items), width):
        batch = list(items[start : start + width])
        yield batch, batch + batch[-1:] * (width - len(batch))
