"""`cxr generate --reject`: a classifier confirms what the images show."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from cxr_lightning.artifacts import save_product
from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.networks.classifier import Classifier
from cxr_lightning.synthesis.folder import SyntheticFolder
from cxr_lightning.types import OBSERVATIONS, Condition

JUDGED = ("No Finding", "Pneumonia", "Edema")
NAMES = ("healthy", "pneumonia+edema")
TRIES = 4


def point(threshold: float, auroc: float = 0.9) -> dict[str, float]:
    return {"threshold": threshold, "auroc": auroc, "positives": 9, "negatives": 9}


@pytest.fixture(scope="module")
def network() -> Classifier:
    """An untrained classifier whose answers differ between images."""
    torch.manual_seed(1)
    found = Classifier(image_size=32, width=4).eval()
    with torch.no_grad():
        found.head.weight *= 30.0
    return found


@pytest.fixture(scope="module")
def first_draws(products: Path) -> np.ndarray:
    """The first draw of all six images."""
    asked = Condition.cat([parse_condition(name).request(3) for name in NAMES])
    generator = Generator.from_pretrained(products / "generator")
    return to_image(generator.sample(asked, torch.arange(6), Sampling(steps=2))).numpy()


@pytest.fixture(scope="module")
def thresholds(network: Classifier, first_draws: np.ndarray) -> dict[str, float]:
    """Such that half of the answers lie above, and none on it, where rounding would decide."""
    with torch.no_grad():
        said = network.probabilities(to_model(torch.from_numpy(first_draws)))
    return {o: float(said[:, OBSERVATIONS.index(o)].quantile(0.5)) for o in JUDGED}


@pytest.fixture
def save(tmp_path: Path, network: Classifier) -> Callable[..., Path]:
    """Saves the classifier with some facts."""

    def apply(**facts: Any) -> Path:
        folder = tmp_path / "classifier"
        save_product(folder, "classifier", {"classifier": network}, facts)
        return folder

    return apply


@pytest.fixture
def classifier(save: Callable[..., Path], thresholds: dict[str, float]) -> Path:
    points = {observation: point(t) for observation, t in thresholds.items()}
    return save(fields=list(JUDGED), operating_points=points, data={"size": 32})


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def manifest_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return content


def test_images_are_drawn_until_they_are_confirmed(
    make_set, tmp_path, classifier, network, thresholds, products, capsys
):
    out = make_set(tmp_path / "set", reject=classifier, reject_tries=TRIES, batch_size=2)
    generator = Generator.from_pretrained(products / "generator")
    draws_of = []
    for i, record in enumerate(manifest_of(out)["images"]):
        ill = i >= 3
        asked = parse_condition(NAMES[ill]).request(2)
        margins, drawn = [], []
        for attempt in range(TRIES):
            number = torch.full((2,), i + attempt * 2**32)
            image = to_image(generator.sample(asked, number, Sampling(steps=2)))[:1]
            drawn.append(image[0, 0].numpy())
            with torch.no_grad():
                said = network.probabilities(to_model(image))[0]
            margin = min(
                (said[OBSERVATIONS.index(o)].logit() - torch.tensor(t).logit()).item()
                * (1 if (o == "No Finding") != ill else -1)
                for o, t in thresholds.items()
            )
            margins.append(margin)
            if margin >= 0:
                break
        best = int(np.argmax(margins))
        confirmed = margins[best] >= 0
        assert (record["draws"], record["attempt"]) == (len(margins), best)
        assert record["confirmed"] is confirmed
        assert np.array_equal(np.asarray(Image.open(out / record["path"])), drawn[best])
        draws_of.append((len(margins), confirmed))
    assert any(draws > 1 for draws, _ in draws_of)  # else this would show nothing
    assert {confirmed for _, confirmed in draws_of} == {True, False}
    found = manifest_of(out)["rejection"]
    total, confirmed = (sum(column) for column in zip(*draws_of, strict=True))
    assert (found["draws"], found["rejected"]) == (total, total - confirmed)
    assert found["unconfirmed"] == 6 - confirmed
    assert found["conditions"]["healthy"]["draws"] == sum(draws for draws, _ in draws_of[:3])
    assert found["thresholds"] == pytest.approx(thresholds)
    said = capsys.readouterr()
    assert f"rejected {total - confirmed} of {total} draws" in said.out
    assert "  healthy: " in said.out
    assert said.err.startswith("warning: not confirmed: Enlarged Cardiomediastinum, Cardiomegaly, ")
    assert "Pleural Other, Fracture and Support Devices (the classifier did not learn" in said.err


def test_an_interruption_and_several_commands_change_nothing(
    make_set, tmp_path, classifier, monkeypatch
):
    settings = {"reject": classifier, "reject_tries": TRIES, "batch_size": 2}
    whole = files(make_set(tmp_path / "whole" / "set", **settings))
    out = tmp_path / "parts" / "set"
    write, written = SyntheticFolder.write, []

    def failing(*args: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write(*args))

    with monkeypatch.context() as patch:
        patch.setattr(SyntheticFolder, "write", failing)
        with pytest.raises(KeyboardInterrupt):
            make_set(out, **settings)
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        make_set(out, **settings)
    assert files(out) == whole


def test_batch_size_changes_no_decision(make_set, tmp_path, classifier):
    settings = {"reject": classifier, "reject_tries": TRIES}
    one, six = (
        make_set(tmp_path / str(size) / "set", batch_size=size, **settings) for size in (1, 6)
    )
    assert manifest_of(one)["images"] == manifest_of(six)["images"]
    assert manifest_of(one)["rejection"] == manifest_of(six)["rejection"]


def test_a_threshold_of_all_observations_may_be_given(make_set, tmp_path, classifier):
    settings = {"reject": classifier, "condition": "pneumonia", "reject_tries": 2}
    out = make_set(tmp_path / "set", reject_threshold=1 - 1e-6, **settings)
    manifest = manifest_of(out)
    assert manifest["reject"]["threshold"] == 1 - 1e-6
    assert manifest["rejection"]["thresholds"] == {"No Finding": 1 - 1e-6, "Pneumonia": 1 - 1e-6}
    assert manifest["rejection"]["unconfirmed"] == 3
    assert manifest["rejection"]["rejection_rate"] == 1.0
    assert [image["draws"] for image in manifest["images"]] == [2, 2, 2]


def test_images_of_which_nothing_can_be_judged_are_kept_as_drawn(make_set, tmp_path, classifier):
    settings = {"condition": None, "prompt": ["PA view", "pneumonia"], "count": 2}
    out = make_set(tmp_path / "set", reject=classifier, reject_tries=2, **settings)
    manifest = manifest_of(out)
    records = manifest["images"]
    assert [(r["confirmed"], r["draws"]) for r in records[:2]] == [(None, 1)] * 2
    assert {r["confirmed"] for r in records[2:]} <= {True, False}
    assert manifest["rejection"]["unjudged"] == 2
    plain = make_set(tmp_path / "plain", **settings)
    for record in records[:2]:
        first, kept = (np.asarray(Image.open(f / record["path"])) for f in (plain, out))
        assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    ("facts", "changes", "message"),
    [
        (
            {"fields": ["Fracture"]},
            {"condition": "edema"},
            r"reject: .* can judge nothing .*\(No Finding and Edema: .* did not learn it\)",
        ),
        (
            {"fields": list(JUDGED), "operating_points": {o: point(0.5, 0.61) for o in JUDGED}},
            {},
            r"reject: .* can judge nothing .*only 0\.61 on held-out",
        ),
        ({"fields": list(JUDGED), "operating_points": {}}, {}, "too few held-out real images"),
        ({"fields": list(JUDGED), "data": {"size": 64}}, {}, "images of 64 pixels, .* makes 32;"),
        (
            {"fields": list(JUDGED)},
            {"condition": None, "prompt": ["PA view"]},
            r"reject: .* \(no observation is stated\)",
        ),
    ],
)
def test_a_classifier_that_cannot_judge_is_refused(
    make_set, tmp_path, save, facts, changes, message
):
    with pytest.raises(UserError, match=message) as info:
        make_set(tmp_path / "set", reject=save(**facts), **changes)
    assert "\n" not in str(info.value)
    assert [path.name for path in tmp_path.iterdir()] == ["classifier"]


def test_an_encoder_is_no_classifier(make_set, tmp_path, products):
    with pytest.raises(UserError, match=r"^reject: .* of kind 'encoder', but 'classifier'"):
        make_set(tmp_path / "set", reject=products / "encoder")


def test_a_product_without_operating_points_has_thresholds_of_a_half(make_set, tmp_path, save):
    out = make_set(tmp_path / "set", reject=save(fields=["Edema"]), condition="edema")
    assert manifest_of(out)["rejection"]["thresholds"] == {"Edema": 0.5}


class _Bright(nn.Module):
    """The mean grey value for every observation."""

    def forward(self, image: Tensor) -> Tensor:
        return image.mean(dim=(1, 2, 3))[:, None].expand(-1, 14)


def test_a_torchscript_classifier_judges_too(make_set, tmp_path, first_draws):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is kept, not developed
        torch.jit.script(_Bright()).save(tmp_path / "network.pt")
    grey = (first_draws[:, 0] / 255.0).mean(axis=(1, 2))
    threshold = float((grey.min() + grey.max()) / 2)
    settings = {"reject": tmp_path / "network.pt", "reject_threshold": threshold}
    out = make_set(
        tmp_path / "set", condition=None, prompt=["support devices"], count=6, **settings
    )
    for record in manifest_of(out)["images"]:
        picture = np.asarray(Image.open(out / record["path"])) / 255.0
        assert record["confirmed"] is bool(picture.mean() >= threshold)
