"""Two gloo processes that saw parts of different size give the metrics of one process."""

from pathlib import Path

import pytest
import torch
from processes import in_group
from torch import Tensor

from cxr_lightning.data.transforms import to_model
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.metrics.fid import frechet_distance
from cxr_lightning.metrics.representation_score import ReconstructedRepresentationScore
from cxr_lightning.networks.encoder import Encoder

PARTS = (slice(0, 23), slice(23, 30))


def _raw(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (30, 1, 16, 16), generator=generator, dtype=torch.uint8)


def measure(part: slice) -> dict[str, float]:
    """FID and RRS of the images in a part; torchmetrics adds up over the processes."""
    fid = frechet_distance(build_extractor("fixed"))
    fid.update(_raw(0)[part], real=True)
    fid.update(_raw(1)[part] // 2, real=False)
    torch.manual_seed(0)
    encoder = Encoder(image_size=16, width=4, backbone="small", dim=8).eval()
    score = ReconstructedRepresentationScore(encoder)
    score.update(to_model(_raw(0)[part]), to_model(_raw(1)[part]))
    return {"fid": float(fid.compute()), "rrs": float(score.compute()["rrs"])}


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path: Path) -> None:
    in_group(lambda rank: torch.save(measure(PARTS[rank]), tmp_path / f"{rank}.pt"))
    whole, part = measure(slice(None)), measure(PARTS[0])
    assert part["fid"] != pytest.approx(whole["fid"], rel=1e-3)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["fid"] == pytest.approx(whole["fid"], rel=1e-6)
        assert found["rrs"] == pytest.approx(whole["rrs"], rel=1e-6)
