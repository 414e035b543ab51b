"""The representation loss: value, cut, gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxr_lightning.diffusion.process import add_noise, x0_from_epsilon
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.losses.representation import (
    PART,
    alignment_loss,
    recomputing,
    representation_loss,
    weight_inside,
)
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.frozen import Frozen
from cxr_lightning.types import Condition


class Stub(nn.Module):
    """Unit embeddings by a random matrix; counts the images that pass."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(64, 5, generator=generator)
        self.images = 0

    def forward(self, image: Tensor) -> Tensor:
        self.images += len(image)
        return F.normalize(image.flatten(1) @ self.matrix, dim=1)


def pairs(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0, estimate = (torch.randn(count, 1, 8, 8, generator=generator) for _ in range(2))
    return x0.tanh(), estimate.tanh()


def test_equal_images_have_no_distance():
    x0, _ = pairs(4)
    # squares of float32 differences of unit vectors
    assert float(representation_loss(Stub(), x0, x0.clone(), torch.full((4,), 0.9))) < 1e-12


def test_equals_a_loop_over_images():
    x0, estimate = pairs(6)
    a_t = torch.tensor([0.99, 0.7, 0.3, 0.2001, 0.19, 0.01])
    encoder = Stub()
    top = bottom = 0.0
    for i in range(6):
        weight, ratio = float(a_t[i]), float(a_t[i] / (1 - a_t[i]))
        if ratio >= 0.25:
            e, f = encoder(x0[i : i + 1])[0], encoder(estimate[i : i + 1])[0]
            top += weight * (1 - float(F.cosine_similarity(e, f, dim=0)))
            bottom += weight
    ours = representation_loss(encoder, x0, estimate, a_t, snr_min=0.25)
    assert float(ours) == pytest.approx(top / bottom, abs=1e-5)  # float32 cosines


def test_the_mean_over_processes_is_the_loss_of_all_images():
    x0, estimate = pairs(8)
    a_t = torch.tensor([0.9, 0.01, 0.02, 0.03, 0.8, 0.7, 0.6, 0.5])  # one inside the first half
    whole = representation_loss(Stub(), x0, estimate, a_t)
    halves = [slice(0, 4), slice(4, 8)]
    total = torch.stack([weight_inside(a_t[half], 0.25) for half in halves]).mean()
    parts = [
        representation_loss(Stub(), x0[half], estimate[half], a_t[half], total=total)
        for half in halves
    ]
    assert float(sum(parts) / 2) == pytest.approx(float(whole), rel=1e-5)


def test_opposite_embeddings_give_two_the_largest_value():
    x0, _ = pairs(3)
    assert float(representation_loss(Stub(), x0, -x0, torch.full((3,), 0.5))) == pytest.approx(2.0)


def test_images_beyond_the_cut_give_no_gradient_and_do_not_pass_the_encoder():
    x0, estimate = pairs(4)
    estimate.requires_grad_()
    encoder = Stub()
    loss = representation_loss(encoder, x0, estimate, torch.tensor([0.9, 0.1, 0.5, 0.19]))
    loss.backward()
    assert encoder.images == 2 * 2
    assert estimate.grad is not None
    assert [bool(g.any()) for g in estimate.grad] == [True, False, True, False]


def test_a_batch_beyond_the_cut_is_an_exact_zero_that_is_connected_to_the_graph():
    x0, estimate = pairs(3)
    estimate.requires_grad_()
    encoder = Stub()
    loss = representation_loss(encoder, x0, estimate, torch.full((3,), 0.1))
    assert float(loss.detach()) == 0.0
    assert encoder.images == 0
    loss.backward()
    assert estimate.grad is not None
    assert not estimate.grad.any()


def test_values_that_no_image_has_do_not_change_the_loss():
    x0, estimate = pairs(4)
    a_t = torch.full((4,), 0.9)
    beyond = torch.where(estimate.abs() > 0.5, 3.0 * estimate, estimate)
    losses = [representation_loss(Stub(), x0, e, a_t) for e in (beyond, beyond.clamp(-1, 1))]
    assert float(losses[0]) == float(losses[1]) > 0


def test_gradient_passes_where_the_estimate_is_beyond_the_image_range():
    x0, _ = pairs(2)
    estimate = torch.full_like(x0, -1.2).requires_grad_()
    representation_loss(Stub(), x0, estimate, torch.full((2,), 0.9)).backward()
    assert estimate.grad is not None
    assert (estimate.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_gradient_on_the_predicted_noise_is_bounded_by_half_of_that_on_the_estimate(schedule):
    """With w = a the multiplier w sqrt((1 - a) / a) = sqrt(a (1 - a)) is at most 1/2.

    The encoder here is linear, so its gradient is the same at every step, and the sum of weights
    is taken out of the normalised loss.
    """
    a = alpha_bar(schedule, 1000)[1:]
    x0, noise = pairs(1)[0].double(), torch.randn(1, 1, 8, 8, dtype=torch.float64)
    direction = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def linear(image: Tensor) -> Tensor:
        return (image.flatten(1) @ direction)[:, None]

    ratios = []
    for a_t in a[::50]:
        epsilon = (noise + 0.1).requires_grad_()
        one = a_t.reshape(1)
        estimate = x0_from_epsilon(add_noise(x0, noise, one), epsilon, one)
        estimate.retain_grad()
        loss = a_t * representation_loss(linear, x0, estimate, one, snr_min=0.0)
        loss.backward()
        assert epsilon.grad is not None
        assert estimate.grad is not None
        unweighted = estimate.grad / a_t
        ratios.append(float(epsilon.grad.norm() / unweighted.norm()))
    expected = (a * (1 - a)).sqrt()[::50]
    torch.testing.assert_close(torch.tensor(ratios, dtype=torch.float64), expected)
    assert max(ratios) <= 0.5


def test_gradient_reaches_the_denoiser_through_the_frozen_encoder_and_stays_on_no_weight(
    make_denoiser,
):
    torch.manual_seed(0)
    encoder = Frozen(Encoder(image_size=32, width=4, backbone="small", dim=8)).train()
    denoiser = make_denoiser()
    x0 = torch.rand(3, 1, 32, 32) * 2 - 1
    a_t = torch.tensor([0.9, 0.5, 0.3])
    y = add_noise(x0, torch.randn_like(x0), a_t)
    epsilon = denoiser(y, torch.tensor([3, 10, 20]), Condition.unknown(3))
    loss = representation_loss(encoder.network, x0, x0_from_epsilon(y, epsilon, a_t), a_t)
    loss.backward()
    assert denoiser.head.weight.grad.any()
    assert denoiser.stem.weight.grad.any()
    assert all(p.grad is None for p in encoder.parameters())


def test_alignment_is_the_mean_distance_without_gradient_through_the_encoder():
    x0, _ = pairs(5)
    x0.requires_grad_()
    encoder = Stub()
    projected = torch.randn(5, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = alignment_loss(encoder, x0, projected)
    cosines = [
        float(F.cosine_similarity(projected[i], encoder(x0[i : i + 1])[0], dim=0).detach())
        for i in range(5)
    ]
    assert float(loss.detach()) == pytest.approx(sum(1 - c for c in cosines) / 5, abs=1e-6)
    loss.backward()
    assert projected.grad is not None
    assert projected.grad.any()
    assert x0.grad is None


def test_recomputing_the_encoder_changes_neither_loss_nor_gradient():
    torch.manual_seed(0)
    network = Encoder(image_size=8, width=8, backbone="small", dim=8)
    encoder = Frozen(network).network
    x0, estimate = pairs(PART + 3)
    found = []
    for embed in (encoder, recomputing(encoder)):
        image = estimate.clone().requires_grad_()
        loss = representation_loss(embed, x0, image, torch.full((PART + 3,), 0.8))
        loss.backward()
        assert image.grad is not None
        found.append((loss.detach(), image.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    # the same sums over other batch sizes: float32 rounding of gradients of about 1e-3
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("mode", ["x0", "hidden"])
def test_distance_is_in_fp32_under_autocast(mode):
    torch.manual_seed(0)
    encoder = Encoder(image_size=8, width=8, backbone="small", dim=16).eval()
    x0, estimate = pairs(6)
    noised = x0 + 0.2 * estimate

    def loss() -> Tensor:
        if mode == "x0":
            return representation_loss(encoder, x0, noised, torch.full((6,), 0.8))
        return alignment_loss(encoder, x0, encoder(noised).bfloat16())

    expected = loss()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss()
    assert found.dtype == torch.float32
    assert 1e-4 < float(expected.detach()) < 0.2  # a bf16 cosine would move in steps of .0039
    assert float(found.detach()) == pytest.approx(float(expected.detach()), abs=1e-3)
