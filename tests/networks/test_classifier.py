"""The classifiers: one value for each field, any size, a product; and a user's network."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.errors import UserError
from cxr_lightning.networks.classifier import Classifier, GivenClassifier
from cxr_lightning.types import FIELDS


@pytest.mark.parametrize("backbone", ["small", "resnet18"])
def test_one_logit_for_each_field(backbone) -> None:  # type: ignore[no-untyped-def]
    classifier = Classifier(image_size=32, width=4, backbone=backbone).eval()
    image = torch.rand(3, 1, 32, 32) * 2 - 1
    with torch.no_grad():
        assert classifier(image).shape == (3, len(FIELDS))
        torch.testing.assert_close(
            classifier.probabilities(image), torch.sigmoid(classifier(image))
        )


def test_larger_images_are_resized_antialiased() -> None:
    classifier = Classifier(image_size=32, width=4).eval()
    image = torch.rand(2, 1, 80, 64) * 2 - 1
    small = F.interpolate(image, (32, 32), mode="bilinear", antialias=True)
    assert classifier.preprocess(small) is small
    with torch.no_grad():
        torch.testing.assert_close(classifier(image), classifier(small))


def test_product_round_trip(tmp_path: Path) -> None:
    classifier = Classifier(image_size=32, width=4).eval()
    classifier.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path, strict=True)
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(image), classifier(image), rtol=0, atol=1e-6)


class _Brightness(nn.Module):
    """The mean grey value of the image for each of so many columns."""

    def __init__(self, columns: int, factor: float = 1.0) -> None:
        super().__init__()
        self.columns = columns
        self.factor = factor

    def forward(self, image: Tensor) -> Tensor:
        return self.factor * image.mean(dim=(1, 2, 3))[:, None].expand(-1, self.columns)


def _scripted(network: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is kept, not developed
        return torch.jit.script(network)


def test_a_given_network_sees_0_to_1_and_knows_no_demographics() -> None:
    classifier = GivenClassifier(_scripted(_Brightness(14)))
    image = torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None].expand(-1, 1, 8, 8)
    found = classifier.probabilities(image)
    assert found.shape == (3, len(FIELDS))
    torch.testing.assert_close(found[:, :14], torch.tensor([[0.0], [0.5], [1.0]]).expand(-1, 14))
    assert found[:, 14:].isnan().all()


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (_Brightness(5), r"gives \(2, 5\) for 2 images instead of \(2, 14\)"),
        (_Brightness(14, factor=3.0), "outside of 0 to 1"),
        (_Brightness(14, factor=float("nan")), "outside of 0 to 1"),
        (nn.Conv2d(3, 14, 8), "fails on images"),
    ],
)
def test_a_given_network_that_does_something_else_is_refused(network: nn.Module, text: str) -> None:
    with pytest.raises(UserError, match=text):
        GivenClassifier(_scripted(network)).probabilities(torch.ones(2, 1, 8, 8))
