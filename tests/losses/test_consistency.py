"""The consistency loss: written out, and where its solution is known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from cxr_lightning.diffusion.consistency import earlier_time, gap_at
from cxr_lightning.diffusion.process import add_noise, velocity, x0_from_output
from cxr_lightning.diffusion.schedule import alpha_bar
from cxr_lightning.losses.consistency import consistency_loss

SD = 0.2


@pytest.mark.parametrize("huber", [0.0, 0.3])
def test_loss_written_out_image_by_image(huber):
    torch.manual_seed(0)
    estimate, target = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    t, r, a = torch.tensor([1, 20, 50]), torch.tensor([0, 15, 49]), torch.tensor([0.9, 0.4, 0.01])
    total = 0.0
    for i in range(3):
        pixels = zip(estimate[i].flatten().tolist(), target[i].flatten().tolist(), strict=True)
        square = sum((p - q) ** 2 for p, q in pixels) / 32 / (1 - float(a[i]))
        distance = math.sqrt(square + huber**2) - huber if huber else square
        total += int(t[i]) / (int(t[i]) - int(r[i])) * distance
    ours = consistency_loss(estimate, target, a, t, r, huber)
    assert float(ours) == pytest.approx(total / 3, rel=1e-5)


def test_the_whole_gap_is_the_diffusion_loss_of_the_velocity():
    torch.manual_seed(0)
    x0, noise, output = (torch.randn(5, 1, 4, 4, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([1, 10, 25, 40, 50])
    a_t = alpha_bar("linear", 50)[t]
    estimate = x0_from_output("v", add_noise(x0, noise, a_t), output, a_t)
    r = earlier_time(t, 1.0)
    ours = consistency_loss(estimate, x0, a_t, t, r)
    torch.testing.assert_close(ours, (output - velocity(x0, noise, a_t)).square().mean())


class Table:
    """Images N(0, s^2) of one pixel, and a network that is linear in it: one slope a time.

    Over the four states x_0 = +-s, eps = +-1, all first and second moments are those of the normal
    distributions, so the squared loss over them is its expectation, exactly.
    """

    def __init__(self, timesteps: int) -> None:
        self.a = alpha_bar("linear", timesteps)
        self.t = torch.arange(1, timesteps + 1).repeat_interleave(4)
        signs = torch.tensor([[-1, -1], [-1, 1], [1, -1], [1, 1]], dtype=torch.float64)
        self.x0, self.noise = (SD * signs[:, 0], signs[:, 1])

    def estimate(self, slope: Tensor, t: Tensor) -> Tensor:
        x0, noise = (
            part.repeat(len(t) // 4).reshape(-1, 1, 1, 1) for part in (self.x0, self.noise)
        )
        y = add_noise(x0, noise, self.a[t])
        return x0_from_output("v", y, slope[t].reshape(-1, 1, 1, 1) * y, self.a[t])

    def loss(self, slope: Tensor, gap: float) -> Tensor:
        r = earlier_time(self.t, gap)
        target = self.estimate(slope, r).detach()
        return consistency_loss(self.estimate(slope, self.t), target, self.a[self.t], self.t, r)

    def scale(self, slope: Tensor) -> Tensor:
        """k_t of f(y, t) = k_t y: sqrt(A_t) - sqrt(1 - A_t) slope."""
        return self.a.sqrt() - (1 - self.a).sqrt() * slope

    def slope(self, scale: Tensor) -> Tensor:
        slope = torch.zeros_like(scale)
        slope[1:] = ((self.a.sqrt() - scale) / (1 - self.a).sqrt())[1:]
        return slope

    def solution(self, gap: float) -> Tensor:
        """k_t = k_r Cov(y_r, y_t) / Var(y_t): regression of the target on y_t, time by time."""
        a, scale = self.a.tolist(), [1.0]
        for t, r in enumerate(earlier_time(torch.arange(1, len(a)), gap).tolist(), start=1):
            covariance = math.sqrt(a[r] * a[t]) * SD**2 + math.sqrt((1 - a[r]) * (1 - a[t]))
            scale.append(scale[r] * covariance / (a[t] * SD**2 + 1 - a[t]))
        return torch.tensor(scale, dtype=torch.float64)

    def exact(self) -> Tensor:
        """Of the probability-flow ODE."""
        return SD / (self.a * SD**2 + 1 - self.a).sqrt()


@pytest.mark.parametrize("gap", [1.0, 0.5, 0.125, 0.01])
def test_the_gradient_is_zero_at_the_solution_and_only_there(gap):
    table = Table(50)
    slope = table.slope(table.solution(gap)).requires_grad_()
    (gradient,) = torch.autograd.grad(table.loss(slope, gap), slope)
    assert gradient.abs().max() < 1e-12
    moved = (slope.detach() + 0.01).requires_grad_()
    (gradient,) = torch.autograd.grad(table.loss(moved, gap), moved)
    assert gradient.abs().max() > 1e-6


def test_the_solution_goes_to_the_function_of_the_ode_with_the_gap():
    """From the posterior mean, which hardly varies at pure noise, to within 1 % of the images."""
    table = Table(1000)
    scale = {gap: table.solution(gap) for gap in (1.0, *(0.5**k for k in range(1, 8)))}
    posterior_mean = table.a.sqrt() * SD**2 / (table.a * SD**2 + 1 - table.a)
    torch.testing.assert_close(scale[1.0], posterior_mean, rtol=1e-10, atol=0)
    missing = [1 - float(k[-1] / table.exact()[-1]) for k in scale.values()]
    # the figures in diffusion/consistency.py
    assert [round(100 * m, 1) for m in missing[1:7]] == [16.1, 7.2, 3.7, 2.0, 1.3, 0.9]
    assert missing[0] > 0.99
    assert 0 < missing[6] - missing[7] < 0.003


def test_the_gradient_at_the_true_function_goes_to_zero_with_the_gap():
    table, size = Table(1000), []
    slope = table.slope(table.exact()).requires_grad_()
    late = table.t[::4] >= 100  # early times are neighbours soon
    for gap in (0.5, 0.25, 0.125, 0.0625):
        (gradient,) = torch.autograd.grad(table.loss(slope, gap), slope)
        size.append(float(gradient[1:][late].abs().max()))
    for larger, smaller in pairwise(size):
        assert smaller < 0.62 * larger  # halves, and a rest of whole times


def test_training_turns_a_denoiser_into_the_consistency_function():
    """One step from noise begins without variance and ends with most of that of the images."""
    table = Table(20)
    slope = table.slope(table.solution(1.0)).requires_grad_()
    optimizer = torch.optim.Adam([slope], lr=0.03)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    before = float(table.scale(slope.detach())[-1]) / SD
    for step in range(300):
        optimizer.zero_grad()
        table.loss(slope, gap_at(step, 75, 1 / 16)).backward()
        optimizer.step()
        decay.step()
    after = float(table.scale(slope.detach())[-1]) / SD
    assert before < 0.01
    assert after == pytest.approx(float(table.solution(1 / 16)[-1]) / SD, abs=0.03)
