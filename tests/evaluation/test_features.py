"""The feature cache: computed once, resumable, found damaged, keyed by all that decides."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cxr_lightning.errors import UserError
from cxr_lightning.evaluation import features as module
from cxr_lightning.evaluation.features import FeatureCache
from cxr_lightning.metrics.extractors import Extractor

CPU = torch.device("cpu")


class Means(nn.Module):
    """Mean and sum of the pixels; counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.fail_after = 10**9

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        self.seen += len(raw)
        if self.seen > self.fail_after:
            raise RuntimeError("killed")
        values = raw.float().flatten(1)
        return torch.stack([values.mean(1), values.sum(1)], dim=1)


def _extractor(sha256: str = "a" * 64, preprocessing: str = "none") -> Extractor:
    return Extractor("means", Means(), 2, sha256, preprocessing)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)


def _expected(images: np.ndarray) -> np.ndarray:
    values = images.reshape(len(images), -1).astype(np.float64)
    return np.stack([values.mean(1), values.sum(1)], axis=1)


def test_features_of_rows_and_only_of_their_blocks(tmp_path: Path, images: np.ndarray) -> None:
    extractor = _extractor()
    rows = np.array([3, 1, 29])
    found = FeatureCache(tmp_path, 3, CPU).features(extractor, images, "x", rows, "")
    np.testing.assert_allclose(found.numpy(), _expected(images)[rows], rtol=1e-6)
    assert extractor.network.seen == 8 + 6  # the first block and the last


def test_nothing_is_computed_twice(tmp_path: Path, images: np.ndarray) -> None:
    rows = np.arange(30)
    FeatureCache(tmp_path, 4, CPU).features(_extractor(), images, "x", rows, "")
    again = _extractor()
    found = FeatureCache(tmp_path, 4, CPU).features(again, images, "x", rows, "")
    assert again.network.seen == 0
    np.testing.assert_allclose(found.numpy(), _expected(images), rtol=1e-6)


def test_a_killed_run_goes_on(tmp_path: Path, images: np.ndarray) -> None:
    killed = _extractor()
    killed.network.fail_after = 20
    with pytest.raises(RuntimeError, match="killed"):
        FeatureCache(tmp_path, 4, CPU).features(killed, images, "x", np.arange(30), "")
    again = _extractor()
    found = FeatureCache(tmp_path, 4, CPU).features(again, images, "x", np.arange(30), "")
    assert again.network.seen == 30 - 16  # two blocks of eight were done
    np.testing.assert_allclose(found.numpy(), _expected(images), rtol=1e-6)


@pytest.mark.parametrize("what", ["data", "weights", "preprocessing"])
def test_other_data_weights_or_preprocessing_are_computed_anew(
    tmp_path: Path, images: np.ndarray, what: str
) -> None:
    FeatureCache(tmp_path, 4, CPU).features(_extractor(), images, "x", np.arange(30), "")
    other = {
        "data": _extractor(),
        "weights": _extractor(sha256="b" * 64),
        "preprocessing": _extractor(preprocessing="antialiased to 299 px"),
    }[what]
    key = "y" if what == "data" else "x"
    FeatureCache(tmp_path, 4, CPU).features(other, images, key, np.arange(30), "")
    assert other.network.seen == 30


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "features.npy").read_bytes())
    content[-1] ^= 0xFF  # of the last block
    (folder / "features.npy").write_bytes(content)


def _truncate(folder: Path) -> None:
    content = (folder / "features.npy").read_bytes()
    (folder / "features.npy").write_bytes(content[:150])


def _garble_list(folder: Path) -> None:
    (folder / "blocks.json").write_text("{")


def _list_of_another(folder: Path) -> None:
    content = json.loads((folder / "blocks.json").read_text())
    (folder / "blocks.json").write_text(json.dumps(content | {"key": {}}))


@pytest.mark.parametrize(
    ("damage", "seen"),
    [(_flip_a_byte, 6), (_truncate, 30), (_garble_list, 30), (_list_of_another, 30)],
)
def test_a_damaged_cache_is_made_again_with_a_warning(
    tmp_path: Path, images: np.ndarray, capsys: pytest.CaptureFixture[str], damage, seen: int
) -> None:
    FeatureCache(tmp_path, 4, CPU).features(_extractor(), images, "x", np.arange(30), "")
    damage(next(tmp_path.iterdir()))
    again = _extractor()
    found = FeatureCache(tmp_path, 4, CPU).features(again, images, "x", np.arange(30), "")
    assert again.network.seen == seen
    assert "damaged" in capsys.readouterr().err
    np.testing.assert_allclose(found.numpy(), _expected(images), rtol=1e-6)


def test_long_names_do_not_share_a_folder(tmp_path: Path, images: np.ndarray) -> None:
    cache, rows = FeatureCache(tmp_path, 4, CPU), np.arange(30)
    name = "xrv:" + "nih-pc-chex-mimic_ch-google-openi-kaggle-densenet121-" * 3
    found = [
        cache.features(Extractor(name, Means(), 2, "a" * 64, "none"), some, sha256, rows, "")
        for some, sha256 in ((images, "x"), (images[::-1], "y"))
    ]
    assert len([*tmp_path.iterdir()]) == 2
    np.testing.assert_allclose(found[1].numpy(), _expected(images[::-1]), rtol=1e-6)


def test_what_begins_while_another_evaluation_is_at_it_goes_on_with_its_file(
    tmp_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, rows, second = module.create_array, np.arange(30), []

    def creating(*args: object) -> object:
        """Between the look at the folder and the new file another one begins."""
        if not second:
            other = FeatureCache(tmp_path, 4, CPU)
            second.append(threading.Thread(target=lambda: opened.append(ask(other))))
            second[0].start()
        return create(*args)

    def ask(cache: FeatureCache) -> torch.Tensor:
        return cache.features(_extractor(), images, "x", rows, "")

    opened: list[torch.Tensor] = []
    monkeypatch.setattr(module, "create_array", creating)
    found = ask(FeatureCache(tmp_path, 4, CPU))
    second[0].join()
    for values in (found, opened[0]):
        np.testing.assert_allclose(values.numpy(), _expected(images), rtol=1e-6)


class Standardised(Means):
    """Divides by the standard deviation, which a constant image lacks."""

    def forward(self, raw: torch.Tensor) -> torch.Tensor:
        return super().forward(raw) / raw.float().flatten(1).std(1, keepdim=True)


def test_features_that_are_no_numbers_are_refused(tmp_path: Path, images: np.ndarray) -> None:
    images[3] = 7
    extractor = Extractor("mine", Standardised(), 2, "a" * 64, "none")
    with pytest.raises(UserError, match="extractor: mine gives 1 of 8 images features that are no"):
        FeatureCache(tmp_path, 4, CPU).features(extractor, images, "x", np.arange(30), "")
