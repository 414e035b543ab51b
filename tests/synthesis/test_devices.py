"""Which device each process gets, and the share of a command among several."""

import pytest
import torch

from cxr_lightning.errors import UserError
from cxr_lightning.synthesis.devices import Rank, choose_devices, find_rank


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were four GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize(
    ("device", "devices", "rank", "expected"),
    [
        ("auto", 1, Rank(), ["cuda:0"]),
        ("auto", "auto", Rank(), ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cuda", 2, Rank(), ["cuda:0", "cuda:1"]),
        ("cuda", 1, Rank(6, 8, 2), ["cuda:2"]),
        ("auto", "auto", Rank(6, 8, 5), ["cuda:1"]),
        ("cuda", 4, Rank(1, 2), ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]),
        ("cpu", 3, Rank(), ["cpu", "cpu", "cpu"]),
        ("cpu", "auto", Rank(), ["cpu"]),
    ],
)
def test_devices(gpus, device, devices, rank, expected):
    assert choose_devices(device, devices, rank) == expected


@pytest.mark.parametrize(
    ("device", "devices", "rank", "message"),
    [
        ("cuda", 5, Rank(), "devices: 5 GPUs are not there; use 1 to 4, or auto"),
        ("cuda", 2, Rank(0, 2, 0), "devices: 2 are given to one process of torchrun"),
        ("cuda:1", 2, Rank(), "devices: 2 cannot all be cuda:1"),
        ("auto", 0, Rank(), "devices: 0 is not possible"),
    ],
)
def test_devices_that_cannot_be(gpus, device, devices, rank, message):
    with pytest.raises(UserError, match=f"^{message}"):
        choose_devices(device, devices, rank)


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_devices("auto", "auto", Rank()) == ["cpu"]
    with pytest.raises(UserError, match="^device: 'cuda' is not there; use cpu or auto"):
        choose_devices("cuda", 1, Rank())


def test_ranks_share_all_images_and_none_twice():
    images = [0, 1, 2, 5, 6, 8, 9]
    shares = [Rank(number, 3).share(images) for number in range(3)]
    assert sorted(i for share in shares for i in share) == images
    assert Rank().share(images) == images
    # what is there already moves no image from one rank to another
    assert Rank(1, 3).share([5, 6, 7]) == [7]


def test_a_rank_is_read_from_the_environment():
    assert find_rank({}) == Rank(0, 1, None)
    assert find_rank({"RANK": "3"}) == Rank(0, 1, None)
    assert find_rank({"RANK": "3", "WORLD_SIZE": "8"}) == Rank(3, 8, None)
    assert find_rank({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Rank(3, 8, 1)


@pytest.mark.parametrize(("rank", "world"), [("8", "8"), ("-1", "2"), ("a", "2"), ("0", "0")])
def test_a_rank_that_is_none_is_refused(rank, world):
    with pytest.raises(UserError, match=f"^RANK: '{rank}' of WORLD_SIZE '{world}' is no rank"):
        find_rank({"RANK": rank, "WORLD_SIZE": world})
