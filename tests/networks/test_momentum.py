"""Momentum copies follow their online network and nothing else moves them."""

from pathlib import Path

import pytest
import torch
from processes import in_group
from torch import Tensor, nn

from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.momentum import (
    grouped_forward,
    momentum_copy,
    momentum_update,
    momentum_update_buffers,
)


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(image_size=32, width=4, backbone="small", dim=8)


def test_copy_equals_the_network_head_included_and_takes_no_gradient() -> None:
    online = small_encoder().train()
    copy = momentum_copy(online)
    assert all(torch.equal(p, copy.state_dict()[n]) for n, p in online.state_dict().items())
    assert not copy.training
    assert not any(p.requires_grad for p in copy.parameters())
    assert online.training
    assert all(p.requires_grad for p in online.parameters())
    assert online.head[0].weight.data_ptr() != copy.head[0].weight.data_ptr()


def test_update_is_the_average_of_every_parameter_and_of_no_buffer() -> None:
    online = small_encoder()
    average = momentum_copy(online)
    for parameter in online.parameters():
        parameter.data.normal_()
    for buffer in online.buffers():
        buffer.data.fill_(3)
    before = {n: t.clone() for n, t in average.state_dict().items()}
    momentum_update([(online, average)], 0.9)
    source = online.state_dict()
    parameters = dict(average.named_parameters())
    for name, tensor in average.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * source[name] if name in parameters else before[name]
        torch.testing.assert_close(tensor, expected)
    assert any("head" in name for name in parameters)


@pytest.mark.parametrize(("momentum", "equal"), [(0.0, 0), (1.0, 1)])
def test_limits_of_momentum(momentum: float, equal: int) -> None:
    nets = [nn.Linear(2, 2), nn.Linear(2, 2)]
    average = momentum_copy(nets[1])
    momentum_update([(nets[0], average)], momentum)
    torch.testing.assert_close(average.weight, nets[equal].weight, rtol=0, atol=1e-7)


def test_update_of_buffers_averages_statistics_and_copies_counters() -> None:
    online = nn.BatchNorm1d(2)
    average = momentum_copy(online)
    online.running_mean.fill_(1.0)
    online.num_batches_tracked.fill_(7)
    momentum_update_buffers([(online, average)], 0.75)
    torch.testing.assert_close(average.running_mean, torch.full((2,), 0.25))
    assert average.num_batches_tracked == 7


@pytest.mark.parametrize("update", [momentum_update, momentum_update_buffers])
@pytest.mark.parametrize("other", [nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(2))])
def test_unlike_networks_are_refused(update, other) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="differ"):
        update([(nn.BatchNorm1d(2), other)], 0.9)


def test_grouped_forward_keeps_the_order_of_images() -> None:
    network = small_encoder().eval()
    image = torch.rand(11, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            grouped_forward(network, image, 3), network(image), rtol=0, atol=1e-5
        )


def test_groups_change_batch_statistics_and_a_permutation_alone_does_not() -> None:
    network = small_encoder().train()
    image = torch.rand(32, 1, 32, 32)
    with torch.no_grad():
        whole = network(image)
        one_group = grouped_forward(network, image, 32)
        groups = grouped_forward(network, image, 8)
    # sums in another order: float32 rounding through four blocks
    torch.testing.assert_close(one_group, whole, rtol=0, atol=1e-4)
    assert (groups - whole).abs().max() > 1e-2
    assert not groups.requires_grad


def companions(network: nn.Module, group_size: int | None, image: Tensor) -> Tensor:
    """Which images each key depends on, (key, image), for one order of the groups."""

    def embed(batch: Tensor) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            return (
                network(batch)
                if group_size is None
                else grouped_forward(network, batch, group_size)
            )

    base, depends = embed(image), torch.zeros(len(image), len(image), dtype=torch.bool)
    for j in range(len(image)):
        other = image.clone()
        other[j] = 1.0 - other[j]
        depends[:, j] = (embed(other) - base).abs().amax(dim=1) > 1e-5
    return depends


def test_leak_of_batch_norm_and_its_absence() -> None:
    """A key that depends on all images of the query's batch, and on no other, gives itself away."""
    network, image = small_encoder(), torch.rand(8, 1, 32, 32)
    leak = companions(network.train(), None, image)
    assert leak.all()
    grouped = companions(network.train(), 4, image)
    assert (grouped.sum(dim=1) == 4).all()  # half of the batch, not in its order
    assert not grouped[:4, :4].all()
    alone = companions(network.eval(), None, image)
    assert torch.equal(alone, torch.eye(8, dtype=torch.bool))


def run_rank(rank: int, folder: Path) -> None:
    """What each of two processes does."""
    network = small_encoder().train()
    image = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    here = slice(4 * rank, 4 * rank + 4)
    torch.manual_seed(rank)  # the order is rank 0's all the same
    keys = grouped_forward(network, image[here], 2)
    image[4:] = 1.0 - image[4:]  # the images of rank 1 alone
    torch.manual_seed(rank)
    changed = grouped_forward(network, image[here], 2)
    torch.save((keys, changed), folder / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_permute_their_images_and_give_the_keys_of_one(tmp_path: Path) -> None:
    in_group(lambda rank: run_rank(rank, tmp_path))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    image = torch.rand(8, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    network = small_encoder().train()
    torch.manual_seed(0)
    one = grouped_forward(network, image, 2)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), one, rtol=0, atol=1e-5)
    first, changed = parts[0]
    assert (changed - first).abs().max() > 1e-3  # statistics are shared with the other rank
