"""The fixed extractor."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxr_lightning.errors import UserError
from cxr_lightning.metrics.extractors import build_extractor


def test_the_same_on_every_machine(make_raw: Callable[..., Tensor]) -> None:
    # Pinned, so that a change of the weights is noticed: values are not comparable across it.
    extractor = build_extractor("fixed")
    sha256 = "c0219246848a74944fc9a46b0a0a97206cbf63dec6e8ca61df7c2b159f038347"
    assert extractor.sha256 == sha256
    assert extractor.num_features == 64
    torch.manual_seed(5)  # the global generator plays no part
    assert torch.equal(extractor(make_raw()), build_extractor("fixed")(make_raw()))


def test_has_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^extractor: .*leave the argument out\.$"):
        build_extractor("fixed", tmp_path)
