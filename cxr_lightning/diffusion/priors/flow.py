"""A small flow from noise to latent codes, given the condition."""

import copy
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cxr_lightning.networks.blocks import sinusoidal_embedding
from cxr_lightning.networks.momentum import momentum_copy, momentum_update
from cxr_lightning.types import FIELDS, Condition

TIME_WIDTH = 64
LAYERS = 4
STEPS = 4_000
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
DECAY = 0.995
"""Of the moving average of the weights."""

CHECK_EVERY = 200
HELD_OUT = 0.1
DROP_FIELD = 0.1
DROP_ALL = 0.1
DROP_TEXT = 0.2
SOLVER_STEPS = 25


class FlowPrior(nn.Module):
    """Flow matching over z (Lipman et al. 2022, arXiv 2210.02747; Liu et al. 2022, 2209.03003).

    A perceptron v(z_s, s, c) learns the velocity z - noise along z_s = (1 - s) noise + s z, on
    standardised codes; a latent code is the end of the ODE dz = v ds from noise. Fields of the
    condition are dropped at random, so any subset may be stated; the weights of the condition start
    at zero, so that a field that no training image knows leaves no trace. A tenth of the codes is
    held out, and the weights that serve these best are kept: with few images a flow repeats their
    codes.

    Args:
        latent_dim: Dimension of the latent code.
        width: Of the hidden layers.
        text_dim: Columns of the text embeddings of conditions; 0: they are not looked at.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, width: int = 256, text_dim: int = 0) -> None:
        super().__init__()
        self.noise_dim = latent_dim
        self.text_dim = text_dim
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("scale", torch.ones(latent_dim))
        inputs = latent_dim + TIME_WIDTH + 3 * len(FIELDS) + (text_dim + 1 if text_dim else 0)
        self.first = nn.Linear(inputs, width)
        nn.init.zeros_(self.first.weight[:, latent_dim + TIME_WIDTH :])  # see the docstring
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(LAYERS)])
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(LAYERS)])
        self.last = nn.Linear(width, latent_dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def velocity(
        self, z: Float[Tensor, "b d"], s: Float[Tensor, " b"], condition: Condition
    ) -> Float[Tensor, "b d"]:
        """Velocity of standardised codes at times s in [0, 1]."""
        time = sinusoidal_embedding(1000.0 * s, TIME_WIDTH)
        inputs = [z, time, condition.features()]
        if self.text_dim:
            inputs.append(condition.text_features(self.text_dim))
        h = self.first(torch.cat(inputs, dim=1))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            h = h + layer(F.silu(norm(h)))
        velocity: Tensor = self.last(h)
        return velocity

    @torch.no_grad()
    def forward(
        self, noise: Float[Tensor, "b d"], condition: Condition, guidance: float = 1.0
    ) -> Float[Tensor, "b d"]:
        """Latent codes for a condition from standard normal noise; Heun's method.

        Guidance is that of the velocity (Zheng et al. 2023, arXiv 2311.13443): that with no
        condition plus g times the difference to it.
        """
        null = Condition.unknown(len(noise), noise.device)

        def velocity(z: Tensor, s: Tensor) -> Tensor:
            conditional = self.velocity(z, s, condition)
            if guidance == 1.0:
                return conditional
            return torch.lerp(self.velocity(z, s, null), conditional, guidance)

        z, step = noise, 1.0 / SOLVER_STEPS
        for i in range(SOLVER_STEPS):
            start, end = (torch.full_like(z[:, 0], j * step) for j in (i, i + 1))
            first = velocity(z, start)
            second = velocity(z + step * first, end)
            z = z + 0.5 * step * (first + second)
        return self.mean + self.scale * z

    @torch.enable_grad()
    def fit(self, z: Float[Tensor, "n d"], condition: Condition) -> None:
        """Trains the flow; the same codes give the same flow on one kind of device."""
        z = z.detach().float()
        self.mean.copy_(z.mean(0))
        self.scale.copy_(z.std(0, correction=0).clamp_min(1e-6))
        z = (z - self.mean) / self.scale
        draw = torch.Generator().manual_seed(0)
        order = torch.randperm(len(z), generator=draw)
        count = max(int(HELD_OUT * len(z)), 1)
        held_out, rest = order[:count], order[count:] if len(z) > 1 else order
        checks = _Draws(len(held_out), z.shape[1], torch.Generator().manual_seed(1))
        average, best = momentum_copy(self), math.inf
        self.requires_grad_(True)
        optimizer = torch.optim.AdamW(self.parameters(), LEARNING_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        kept = copy.deepcopy(self.state_dict())
        for step in range(1, STEPS + 1):
            rows = rest[torch.randint(len(rest), (BATCH_SIZE,), generator=draw)]
            draws = _Draws(len(rows), z.shape[1], draw)
            loss = self._loss(z, condition, rows, draws)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            momentum_update([(self, average)], min(DECAY, (1.0 + step) / (10.0 + step)))
            if step % CHECK_EVERY == 0:
                with torch.no_grad():
                    error = float(average._loss(z, condition, held_out, checks))
                if error < best:
                    best, kept = error, copy.deepcopy(average.state_dict())
        self.load_state_dict(kept)
        self.requires_grad_(False)

    def _loss(
        self,
        z: Float[Tensor, "n d"],
        condition: Condition,
        rows: Tensor,
        draws: "_Draws",
    ) -> Float[Tensor, ""]:
        code = z[rows.to(z.device)]
        noise, s = draws.noise.to(z.device), draws.s.to(z.device)
        stated = condition.rows(rows.to(z.device)).keep(draws.keep.to(z.device))
        stated = stated.keep_text(draws.keep_text.to(z.device))
        between = torch.lerp(noise, code, s[:, None])
        return F.mse_loss(self.velocity(between, s, stated), code - noise)


class _Draws:
    """The random numbers of a batch, from the CPU, so that a seed means the same everywhere."""

    def __init__(self, count: int, dimension: int, generator: torch.Generator) -> None:
        self.noise = torch.randn(count, dimension, generator=generator)
        self.s = torch.rand(count, generator=generator)
        fields = torch.rand(count, len(FIELDS), generator=generator) >= DROP_FIELD
        everything = torch.rand(count, 1, generator=generator)
        self.keep = fields & (everything >= DROP_ALL)
        self.keep_text = everything >= DROP_ALL + DROP_TEXT
