"""A frozen network stays frozen, whatever is called on the outside."""

import pytest
import torch
from torch import nn

from cxr_lightning.networks.frozen import Frozen, eval_mode


class Outer(nn.Module):
    """A trained layer beside a frozen network with batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trained = nn.Linear(3, 3)
        self.my_network = nn.Linear(3, 3)
        self.encoder = Frozen(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)))


@pytest.mark.parametrize("call", [lambda m: m.train(), lambda m: m.train(True), lambda m: m.eval()])
def test_frozen_network_stays_in_eval_mode(call):
    outer = call(Outer())
    assert not any(m.training for m in outer.encoder.modules())


def test_statistics_and_answers_do_not_change():
    outer = Outer().train()
    x = torch.randn(16, 3) + 5
    before = {k: v.clone() for k, v in outer.encoder.network.state_dict().items()}
    first = outer.encoder.network(x)
    assert torch.equal(outer.encoder.network(x), first)
    after = outer.encoder.network.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_gradient_passes_to_the_input_and_is_stored_on_no_parameter():
    outer = Outer().train()
    x = torch.randn(4, 3, requires_grad=True)
    outer.encoder.network(outer.trained(x)).square().sum().backward()
    assert outer.trained.weight.grad is not None
    assert outer.trained.weight.grad.any()
    assert all(p.grad is None and not p.requires_grad for p in outer.encoder.parameters())


def test_state_dict_leaves_the_frozen_weights_out_and_loads():
    outer = Outer()
    state = outer.state_dict()
    assert set(state) == {
        f"{layer}.{kind}" for layer in ("trained", "my_network") for kind in ("weight", "bias")
    }
    other = Outer()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    missing, unexpected = other.load_state_dict(state)
    assert missing == unexpected == []
    assert torch.equal(other.trained.weight, outer.trained.weight)
    assert not other.encoder.network[0].weight.any()


def test_state_dict_of_a_frozen_network_alone_is_empty_and_loads():
    frozen = Outer().encoder
    assert frozen.state_dict() == {}
    frozen.load_state_dict({})


@pytest.mark.parametrize("name", ["trained", "my_network"])
def test_missing_weights_of_trained_parts_are_still_an_error(name):
    outer = Outer()
    state = {k: v for k, v in outer.state_dict().items() if not k.startswith(f"{name}.")}
    with pytest.raises(RuntimeError, match=rf"Missing.*{name}\.weight"):
        outer.load_state_dict(state)


def test_moves_with_its_owner():
    outer = Outer().double()
    assert outer.encoder.network[0].weight.dtype == torch.float64


def test_eval_mode_is_left_as_it_was_part_by_part():
    outer = Outer().train()
    outer.trained.eval()
    before = [m.training for m in outer.modules()]
    with pytest.raises(KeyError), eval_mode(outer):
        assert not any(m.training for m in outer.modules())
        raise KeyError
    assert [m.training for m in outer.modules()] == before
    assert True in before
    assert False in before
