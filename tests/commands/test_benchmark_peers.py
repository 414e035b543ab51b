"""That the contestants are alike and take turns; how fast is for the benchmark itself."""

import json
import sys

import numpy as np
import pytest
import torch

from cxr_lightning.cli import main
from cxr_lightning.commands import benchmark_peers, peers
from cxr_lightning.commands.benchmark_peers import Cost, measure_in_turn, ratio
from cxr_lightning.commands.peers import Ours, Peer, Shape, count_parameters, make_peer

CPU = torch.device("cpu")
SMALL = ["--size=16", "--batch_size=2", "--rounds=2"]


def installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


needs_both = pytest.mark.skipif(
    not (installed("diffusers") and installed("monai") and installed("einops")),
    reason="pip install 'cxr_lightning[peers]'",
)


@needs_both
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_figures_of_both_peers(capsys):
    main(["benchmark", "--peers", *SMALL, "--precision=fp32"])
    result = json.loads(capsys.readouterr().out)
    parameters = result["parameters"]
    assert set(parameters) == {"ours", "diffusers", "monai"}
    for count in parameters.values():
        assert count == pytest.approx(parameters["ours"], rel=0.01)
    assert result["precision"] == "fp32"
    assert result["versions"]["monai"]
    names = {"training": {"stage", *parameters}, "sampling": set(parameters)}
    for what, contestants in names.items():
        for figures in (result[what]["wall"], result[what]["cpu"]):
            assert set(figures["images_per_second"]) == contestants
            assert all(len(rounds) == 2 for rounds in figures["rounds"].values())
            low, high = figures["ratio"]["interval"]
            assert 0 < low <= figures["ratio"]["median"] <= high
            assert figures["ratio"]["to"] in {"diffusers", "monai"}


@needs_both
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["diffusers", "monai"])
@pytest.mark.parametrize("width", [32, 64])
def test_a_peer_has_our_convolutions_and_our_number_of_parameters(name, width):
    """Compared as shapes of 3x3 kernels; the head and the skips are among them."""

    def kernels(network: torch.nn.Module) -> list[tuple[int, ...]]:
        layers = (m for m in network.modules() if isinstance(m, torch.nn.Conv2d))
        return sorted(tuple(m.weight.shape) for m in layers if m.kernel_size == (3, 3))

    shape = Shape(32, width)
    ours = Ours(shape, CPU).network
    peer = make_peer(name, shape, count_parameters(ours), CPU)
    assert kernels(peer.network) == kernels(ours)
    assert count_parameters(peer.network) == pytest.approx(count_parameters(ours), rel=0.01)


@needs_both
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["ours", "diffusers", "monai"])
def test_a_training_step_moves_weights_and_an_evaluation_does_not(name):
    torch.manual_seed(0)
    shape = Shape(16, 32)
    ours = Ours(shape, CPU)
    parameters = count_parameters(ours.network)
    one = ours if name == "ours" else make_peer(name, shape, parameters, CPU)
    image = torch.rand(2, 1, 16, 16) * 2 - 1
    before = [p.detach().clone() for p in one.network.parameters()]
    one.evaluation(image, bf16=False)()
    assert all(torch.equal(p, q) for p, q in zip(one.network.parameters(), before, strict=True))
    step = one.trainer(image, bf16=False)
    for _ in range(5):  # layers that start at zero hold back the gradient of those before them
        step()
    named = zip(one.network.named_parameters(), before, strict=True)
    unmoved = [name for (name, p), q in named if torch.equal(p, q)]
    # where nothing is known of the condition, its first layer has no input
    assert unmoved == (["condition.fields.weight"] if name == "ours" else [])
    assert 0.1 < one.loss(image).item() < 10


@needs_both
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["diffusers", "monai"])
def test_a_peer_noises_as_we_do(name):
    """A perfect prediction of the noise has no loss."""
    peer = make_peer(name, Shape(16, 32), 2_400_000, CPU)
    image = torch.rand(3, 1, 16, 16) * 2 - 1
    alpha_bar = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0)

    def oracle(y, t):
        a_t = alpha_bar[t][:, None, None, None]
        return ((y - a_t.sqrt() * image) / (1 - a_t).sqrt()).float()

    peer.predict = oracle
    # float32 noise over sqrt(1 - a_t) >= .01
    assert peer.loss(image).item() < 1e-6


def test_contestants_take_turns_and_the_first_round_does_not_count():
    order = []
    loops = {name: lambda name=name: order.append(name) for name in "ab"}
    costs = measure_in_turn(loops, 2, 3, CPU)
    assert order == [*"aaabbb"] * 3
    assert [len(rounds) for rounds in costs.values()] == [2, 2]


def test_the_ratio_is_of_the_same_round_and_to_the_faster_rival():
    busy = [1.0, 5.0, 1.0, 9.0, 1.0]  # a machine that others use too
    seconds = {"ours": 1.0, "fast": 1.1, "slow": 2.0}
    rounds = {name: [Cost(b * s, s) for b in busy] for name, s in seconds.items()}
    for clock in ("wall", "cpu"):
        found = ratio(rounds, "ours", ["slow", "fast"], clock)
        assert found == {"to": "fast", "median": 1.1, "interval": [1.1, 1.1]}


def test_the_interval_of_a_ratio_is_as_wide_as_its_rounds_differ():
    draw = np.random.default_rng(0)
    rounds = {
        "ours": [Cost(1.0, 1.0)] * 40,
        "peer": [Cost(float(s), 1.0) for s in draw.normal(1.2, 0.1, 40)],
    }
    low, high = ratio(rounds, "ours", ["peer"], "wall")["interval"]
    assert 1.1 < low < 1.2 < high < 1.3
    assert ratio(rounds, "ours", ["peer"], "cpu")["interval"] == [1.0, 1.0]


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", *args])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


@pytest.mark.parametrize("name", ["diffusers", "monai"])
def test_an_absent_peer_is_answered_with_the_command(monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.networks", None)
    said = fails(capsys, "--peers", name, *SMALL)
    assert f"peers: {name} cannot be imported" in said
    assert "pip install 'cxr_lightning[peers]'" in said
    assert said.count("\n") == 1


def test_a_peer_of_another_size_is_refused(monkeypatch, capsys):
    def large(shape, parameters, device):
        return Peer(lambda classes: torch.nn.Linear(2000, 2000), 128, parameters, None, device)

    monkeypatch.setitem(peers.PEERS, "diffusers", large)
    said = fails(capsys, "--peers", "diffusers", *SMALL)
    assert "peers: diffusers of this version has" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size=20"], "size: 20 does not suit all; use a multiple of 8."),
        (["--width=48"], "width: 48 does not suit all; use a multiple of 32."),
        (["--width=0"], "width: 0"),
        (["--rounds=0"], "rounds: 0 is not possible; use 1 or more"),
        (["--steps=0"], "steps: 0 is not possible; use 1 or more"),
        (["--batch_size=-1"], "batch_size: -1 is not possible; use 1 or more"),
    ],
)
def test_mistakes(capsys, flags, message):
    assert message in fails(capsys, "--peers", *flags)


def test_an_unknown_peer_and_an_absent_gpu(monkeypatch, capsys):
    said = fails(capsys, "--peers", "lucidrains", *SMALL)
    assert "peers: 'lucidrains' is not known; use one or more of diffusers, monai." in said
    monkeypatch.setattr(benchmark_peers.torch.cuda, "is_available", lambda: False)
    assert "there is no GPU here; use cpu" in fails(capsys, "--peers", "--device=cuda")
