"""Batches of one shape."""

import pytest

from cxr_lightning.diffusion.batches import padded_batches


@pytest.mark.parametrize(
    ("count", "width", "expected"),
    [
        (0, 2, []),
        (4, 2, [([0, 1], [0, 1]), ([2, 3], [2, 3])]),
        (5, 3, [([0, 1, 2], [0, 1, 2]), ([3, 4], [3, 4, 4])]),
        (1, 3, [([0], [0, 0, 0])]),
    ],
)
def test_the_last_batch_is_filled_up_with_its_last_item(count, width, expected):
    assert list(padded_batches(range(count), width)) == expected


def test_items_that_are_left_of_an_interrupted_run():
    assert list(padded_batches([2, 7, 9], 2)) == [([2, 7], [2, 7]), ([9], [9, 9])]
