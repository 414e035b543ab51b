"""The direction of a finding: found again where it was planted, confounders or not."""

import pytest
import torch
from sklearn.linear_model import LinearRegression

from cxr_lightning.diffusion.direction import CONFOUNDERS, condition_direction
from cxr_lightning.types import FIELDS, Condition

FINDING, PA, AGE = (FIELDS.index(name) for name in ("Pleural Effusion", "PA", "Age"))
DIM = 16


class World:
    """Codes of images whose view goes with the finding: z = finding u + view v + noise.

    Attributes:
        u: What the finding does.
        v: What the view does.
    """

    def __init__(self, count: int = 4000, unknown: float = 0.0) -> None:
        draw = torch.Generator().manual_seed(0)
        self.u, self.v = torch.randn(2, DIM, generator=draw)
        finding = (torch.rand(count, generator=draw) < 0.4).float()
        # nine of ten effusions on AP films, three of ten others
        ap = torch.where(finding == 1, 0.9, 0.3)
        view = (torch.rand(count, generator=draw) >= ap).float()
        self.z = finding[:, None] * self.u + 2.0 * view[:, None] * self.v
        self.z = self.z + 0.5 * torch.randn(count, DIM, generator=draw)
        value = torch.zeros(count, len(FIELDS))
        value[:, FINDING], value[:, PA] = finding, view
        known = torch.zeros_like(value, dtype=torch.bool)
        known[:, FINDING] = True
        known[:, PA] = torch.rand(count, generator=draw) >= unknown
        self.condition = Condition.of(value * known, known)
        self.finding, self.view = finding, view


def means(z: torch.Tensor, finding: torch.Tensor) -> torch.Tensor:
    return z[finding == 1].mean(0) - z[finding == 0].mean(0)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def test_a_planted_direction_is_found_although_the_view_goes_with_the_finding():
    world = World()
    found = condition_direction(world.z, world.condition, "Pleural Effusion")
    # standard error of a coefficient: 0.5 / sqrt(4000 * 0.24 * (1 - 0.36)) = 0.02; five of them
    torch.testing.assert_close(found, world.u, rtol=0, atol=0.1)
    naive = means(world.z, world.finding)
    assert (naive - world.u).norm() > 10 * (found - world.u).norm()
    assert cosine(found, world.u) > 0.999 > 0.9 > cosine(naive, world.u)


def test_where_the_view_is_unknown_it_is_no_view():
    """A quarter unknown: their codes lie between, and neither AP nor PA gets them."""
    world = World(8000, unknown=0.25)
    found = condition_direction(world.z, world.condition, "Pleural Effusion")
    known = world.condition.known[:, PA]
    only = condition_direction(world.z[known], world.condition.rows(known), "Pleural Effusion")
    naive = means(world.z, world.finding)
    torch.testing.assert_close(only, world.u, rtol=0, atol=0.1)
    assert (only - world.u).norm() < (found - world.u).norm() < 0.6 * (naive - world.u).norm()


def test_it_is_the_coefficient_of_the_full_regression():
    """All fields at once, by scikit-learn."""
    draw = torch.Generator().manual_seed(3)
    known = torch.rand(300, len(FIELDS), generator=draw) < 0.7
    value = (torch.rand(300, len(FIELDS), generator=draw) < 0.5).float() * known
    value[:, AGE] = torch.rand(300, generator=draw) * known[:, AGE]
    z = torch.randn(300, DIM, generator=draw) + value @ torch.randn(17, DIM, generator=draw)
    found = condition_direction(z, Condition.of(value, known), "Pleural Effusion")
    rows = known[:, FINDING]
    others = [FIELDS.index(name) for name in CONFOUNDERS]
    columns = [value[rows][:, [FINDING]], value[rows][:, others], known[rows][:, others].float()]
    model = LinearRegression().fit(torch.cat(columns, dim=1).numpy(), z[rows].numpy())
    torch.testing.assert_close(found, torch.from_numpy(model.coef_[:, 0]), rtol=0, atol=1e-4)


def test_without_known_confounders_it_is_the_difference_of_the_means():
    world = World(200)
    condition = world.condition.keep((torch.arange(len(FIELDS)) == FINDING)[None])
    found = condition_direction(world.z, condition, "Pleural Effusion")
    torch.testing.assert_close(found, means(world.z, world.finding), rtol=0, atol=1e-5)


def test_images_whose_label_is_unknown_do_not_count():
    world = World(400)
    hidden = torch.zeros(400, 1, dtype=torch.bool)
    hidden[:100] = True
    column = torch.arange(len(FIELDS)) == FINDING
    condition = world.condition.keep(~(hidden & column))
    z = torch.where(hidden, 1e6, world.z)
    found = condition_direction(z, condition, "Pleural Effusion")
    rest = condition_direction(
        world.z[100:], world.condition.rows(slice(100, None)), FIELDS[FINDING]
    )
    assert torch.equal(found, rest)


def test_a_confounder_has_a_direction_too():
    world = World()
    found = condition_direction(world.z, world.condition, "PA")
    # the finding is no confounder of the view: its share stays
    torch.testing.assert_close(found, means(world.z, world.view), rtol=0, atol=1e-4)


@pytest.mark.parametrize("state", [0.0, 1.0])
def test_a_finding_that_does_not_vary_has_none(state):
    world = World(50)
    world.condition.value[:, FINDING] = state
    assert condition_direction(world.z, world.condition, "Pleural Effusion") is None
    nothing = world.condition.keep((torch.arange(len(FIELDS)) != FINDING)[None])
    assert condition_direction(world.z, nothing, "Pleural Effusion") is None


def test_a_finding_that_the_view_tells_wholly_has_none():
    world = World(200)
    world.condition.value[:, PA] = 1.0 - world.finding
    assert condition_direction(world.z, world.condition, "Pleural Effusion") is None
