"""The phantom: determinism, visible truth, CheXpert's table, failure paths."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from cxr_lightning.data.phantom import (
    Acquisition,
    Anatomy,
    Effusion,
    Findings,
    Pneumonia,
    Pneumothorax,
    heart_to_thorax,
    labels,
    radiograph,
    render,
    report,
    sample_acquisition,
    sample_anatomy,
    sample_findings,
    truth,
    write_phantom,
)
from cxr_lightning.data.phantom.anatomy import Chest
from cxr_lightning.data.phantom.canvas import Canvas, Pose
from cxr_lightning.data.phantom.findings import OBSERVATIONS

PATHOLOGIES = [o for o in OBSERVATIONS if o not in ("No Finding", "Support Devices")]
HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,"
    "Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
SIZE = 64


def study_of(seed: int, view: str) -> tuple[Anatomy, Acquisition]:
    """Patient and study, straight and centred so that zones are where they are expected."""
    patient = sample_anatomy(np.random.default_rng(seed))
    acquisition = sample_acquisition(np.random.default_rng(seed + 1000), view)
    return patient, dataclasses.replace(acquisition, pose=Pose(), marker=None)


def film(
    findings: Findings, seed: int = 0, view: str = "PA", size: int = SIZE
) -> NDArray[np.float32]:
    """Rendered image as float, 0 to 255."""
    patient, acquisition = study_of(seed, view)
    rng = np.random.default_rng(seed + 2000)
    image = render(patient, findings, size=size, rng=rng, acquisition=acquisition)
    return image.astype(np.float32)


def zone(image: NDArray[np.float32], side: str, top: float, bottom: float, inner: float = 0.35,
         outer: float = 0.55) -> float:  # fmt: skip
    """Mean over rows [top, bottom) and columns [inner, outer) from the midline, field units."""
    size = image.shape[0]
    rows = slice(round((top + 1) * size / 2), round((bottom + 1) * size / 2))
    sign = 1 if side == "left" else -1
    columns = sorted(round((sign * edge + 1) * size / 2) for edge in (inner, outer))
    return float(image[rows, columns[0] : columns[1]].mean())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set."""
    root = tmp_path_factory.mktemp("phantom") / "Phantom-v1"
    write_phantom(root, patients=24, size=32, seed=3, progress=False)
    return root


class TestRender:
    """Images against their truth."""

    @pytest.mark.parametrize("size", [16, 33, 64, 128])
    def test_raw_form(self, size: int) -> None:
        patient = sample_anatomy(np.random.default_rng(0))
        image = render(patient, Findings(), size=size, rng=np.random.default_rng(1))
        assert image.shape == (size, size)
        assert image.dtype == np.uint8
        assert image.min() < 30
        assert image.max() > 180

    def test_same_seed_same_image(self) -> None:
        findings = Findings(
            effusion=Effusion("left", "small"), pneumonia=Pneumonia("right", "lower")
        )
        np.testing.assert_array_equal(film(findings), film(findings))
        assert np.abs(film(findings) - film(findings, seed=1)).mean() > 3

    def test_sizes_show_the_same_chest(self) -> None:
        small, large = film(Findings(), size=32), film(Findings(), size=128)
        means = large.reshape(32, 4, 32, 4).mean(axis=(1, 3))
        assert np.abs(small - means).mean() < 6

    def test_lung_is_darker_than_heart_and_brighter_than_air(self) -> None:
        image = film(Findings())
        lung = zone(image, "right", -0.4, 0.0)
        assert image[:4, :4].mean() < lung - 40
        assert zone(image, "left", 0.05, 0.2, 0.02, 0.15) > lung + 60

    def test_heart_lies_on_the_image_right(self) -> None:
        image = film(Findings())
        assert zone(image, "left", 0.1, 0.25, 0.2, 0.35) > zone(
            image, "right", 0.1, 0.25, 0.2, 0.35
        )

    @pytest.mark.parametrize("view", ["AP", "PA"])
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("seed", range(4))
    def test_effusion_whitens_the_lower_zone_of_its_side_by_size(
        self, view: str, side: str, seed: int
    ) -> None:
        other = "right" if side == "left" else "left"
        films = [film(Findings(effusion=Effusion(side, s)), seed, view) for s in
                 ("small", "moderate", "large")]  # fmt: skip
        lower = [
            zone(f, side, -0.1, 0.4, 0.4, 0.65) for f in [film(Findings(), seed, view), *films]
        ]
        assert lower == sorted(lower)
        assert lower[2] > lower[0] + 20
        assert zone(films[2], side, -0.4, 0.0) > zone(films[1], side, -0.4, 0.0) + 20
        healthy = zone(film(Findings(), seed, view), other, -0.1, 0.3)
        assert abs(zone(films[1], other, -0.1, 0.3) - healthy) < 6

    def test_small_effusion_blunts_the_costophrenic_angle(self) -> None:
        change = film(Findings(effusion=Effusion("right", "small"))) - film(Findings())
        rows, columns = np.nonzero(change > 20)
        assert rows.size > 4
        assert (columns < SIZE / 2).all()
        assert rows.min() > SIZE * 0.6

    @pytest.mark.parametrize("lobe", ["upper", "middle", "lower"])
    def test_pneumonia_is_an_opacity_in_its_lobe(self, lobe: str) -> None:
        change = film(Findings(pneumonia=Pneumonia("right", lobe))) - film(Findings())
        rows, columns = np.nonzero(change > 15)
        assert rows.size > 20
        assert (columns < SIZE / 2 + 1).all()
        centre = rows.mean() / SIZE * 2 - 1
        expected = {"upper": (-0.6, -0.2), "middle": (-0.1, 0.4), "lower": (0.0, 0.5)}[lobe]
        assert expected[0] < centre < expected[1]

    @pytest.mark.parametrize("seed", range(4))
    def test_pneumothorax_darkens_the_rim_and_not_the_other_side(self, seed: int) -> None:
        gas = Findings(pneumothorax=Pneumothorax("left", "large"))
        change = film(gas, seed) - film(Findings(), seed)
        assert zone(change, "left", -0.45, -0.1, 0.5, 0.6) < -8
        assert abs(zone(change, "right", -0.45, -0.1, 0.5, 0.6)) < 3

    def test_pneumothorax_rim_has_no_markings(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gas = Findings(pneumothorax=Pneumothorax("left", "large"))
        normal = film(gas)
        monkeypatch.setattr(radiograph, "vessels", lambda chest: np.full_like(chest.off, 5))
        change = film(gas) - normal
        assert abs(zone(change, "left", -0.3, 0.0, 0.58, 0.64)) < 3
        assert zone(change, "left", -0.3, 0.0, 0.25, 0.35) > 10

    @pytest.mark.parametrize(
        "device", ["endotracheal tube", "central line", "pacemaker", "ECG leads"]
    )
    def test_device_shows(self, device: str) -> None:
        change = film(Findings(devices=frozenset([device])), size=128) - film(Findings(), size=128)
        assert np.count_nonzero(change > 15) > 20
        assert change.min() > -15

    def test_ap_has_a_larger_heart_and_higher_diaphragm(self) -> None:
        pairs = [(film(Findings(), s, "AP"), film(Findings(), s, "PA")) for s in range(8)]
        higher = [zone(ap, "right", 0.2, 0.4) - zone(pa, "right", 0.2, 0.4) for ap, pa in pairs]
        assert np.mean(higher) > 20

    def test_too_small(self) -> None:
        patient = sample_anatomy(np.random.default_rng(0))
        with pytest.raises(ValueError, match=r"size is 8; .* at least 16"):
            render(patient, Findings(), size=8, rng=np.random.default_rng(0))


class TestHeart:
    """Cardiothoracic ratio."""

    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("view", ["AP", "PA"])
    def test_ratio_separates_cardiomegaly(self, seed: int, view: str) -> None:
        patient, acquisition = study_of(seed, view)
        assert 0.42 <= heart_to_thorax(patient, acquisition, enlarged=False) <= 0.48
        assert 0.52 < heart_to_thorax(patient, acquisition, enlarged=True) < 0.70

    def test_outline_has_the_stated_width(self) -> None:
        patient, acquisition = study_of(0, "PA")
        for enlarged in (False, True):
            canvas = Canvas(512, acquisition.pose)
            chest = Chest(patient, acquisition, canvas, enlarged)
            columns = canvas.axis[(chest.heart > 0).any(axis=0)]
            width = columns.max() - columns.min()
            assert width / (2 * patient.chest_width) == pytest.approx(chest.heart_ratio, abs=0.01)

    def test_cardiomegaly_whitens_beside_the_heart(self) -> None:
        change = film(Findings(cardiomegaly=True)) - film(Findings())
        assert (change > 15).any(axis=0).sum() >= 4


class TestLabels:
    """Label patterns and reports."""

    def test_observations_are_the_projects(self) -> None:
        types = pytest.importorskip("cxr_lightning.types")
        assert types.OBSERVATIONS == OBSERVATIONS

    def test_no_finding_never_with_pathologies(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(500):
            findings = sample_findings(rng, portable=bool(rng.random() < 0.5))
            row = labels(findings, rng)
            assert tuple(row) == OBSERVATIONS
            assert row["No Finding"] == 1 or math.isnan(row["No Finding"])
            if row["No Finding"] == 1:
                assert not any(row[o] in (1, -1) for o in PATHOLOGIES)
            assert truth(findings)["No Finding"] == (
                not any(truth(findings)[o] for o in PATHOLOGIES)
            )

    def test_mix_of_conditions(self) -> None:
        rng = np.random.default_rng(1)
        drawn = [sample_findings(rng, portable=True) for _ in range(3000)]
        shares = {
            "none": np.mean([f.normal for f in drawn]),
            "both": np.mean([bool(f.effusion and f.pneumonia) for f in drawn]),
            "effusion": np.mean([bool(f.effusion and not f.pneumonia) for f in drawn]),
            "pneumonia": np.mean([bool(f.pneumonia and not f.effusion) for f in drawn]),
        }
        expected = {"none": 0.30, "both": 0.10, "effusion": 0.30, "pneumonia": 0.25}
        assert shares == pytest.approx(expected, abs=0.03)

    def test_effusion_never_hides_pneumonia(self) -> None:
        rng = np.random.default_rng(4)
        drawn = [sample_findings(rng, portable=False) for _ in range(1000)]
        for findings in (f for f in drawn if f.effusion and f.pneumonia):
            shared = {findings.effusion.side, findings.pneumonia.side} != {"left", "right"}
            if shared and findings.effusion.size != "small":
                assert (findings.effusion.size, findings.pneumonia.lobe) == ("moderate", "upper")

    def test_uncertain_and_blank_occur(self) -> None:
        findings = Findings(pneumonia=Pneumonia("left", "upper"))
        rng = np.random.default_rng(2)
        rows = pd.DataFrame([labels(findings, rng) for _ in range(400)])
        assert (rows["Pneumonia"] == -1).mean() == pytest.approx(0.35, abs=0.08)
        assert set(rows["Pneumonia"]) == {1.0, -1.0}
        assert rows["Pleural Effusion"].isna().mean() == pytest.approx(0.75, abs=0.08)
        assert rows["No Finding"].isna().all()

    def test_report(self) -> None:
        assert report(Findings()) == "No acute cardiopulmonary abnormality."
        text = report(
            Findings(effusion=Effusion("left", "small"), devices=frozenset(["ECG leads"]))
        )
        assert text == (
            "Small left pleural effusion. No pneumothorax. No focal consolidation. "
            "Heart size is normal. ECG leads in place."
        )

    def test_impossible_findings(self) -> None:
        with pytest.raises(ValueError, match="only the right lung has a middle lobe"):
            Pneumonia("left", "middle")
        # the suite's type hook, where on, refuses these with a TypeError of its own
        with pytest.raises((ValueError, TypeError), match="huge"):
            Effusion("left", "huge")
        with pytest.raises((ValueError, TypeError), match="stent"):
            Findings(devices=frozenset(["stent"]))


def contents(root: Path) -> dict[str, bytes]:
    """Bytes of every file by relative path."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


class TestWrite:
    """Data set on disk."""

    def test_tables(self, written: Path) -> None:
        for split, first in (("train", "patient00001"), ("valid", "patient64541")):
            table = pd.read_csv(written / f"{split}.csv")
            assert ",".join(table.columns) == HEADER
            assert table["Path"][0] == f"Phantom-v1/{split}/{first}/study1/view1_frontal.jpg"
            assert all((written.parent / path).is_file() for path in table["Path"])
            assert set(table["AP/PA"]) <= {"AP", "PA"}
            assert table["Age"].between(18, 90).all()
        valid = pd.read_csv(written / "valid.csv")[list(OBSERVATIONS)]
        assert valid.isin([0.0, 1.0]).all(axis=None)
        assert ",1.0," in (written / "train.csv").read_text()

    def test_every_image_has_report_and_truth(self, written: Path) -> None:
        tables = [pd.read_csv(written / f"{s}.csv") for s in ("train", "valid")]
        paths = pd.concat(tables)["Path"].tolist()
        assert pd.read_csv(written / "reports.csv")["Path"].tolist() == paths
        assert pd.read_csv(written / "truth.csv")["Path"].tolist() == paths
        assert len(list(written.rglob("*.jpg"))) == len(paths)
        with Image.open(written.parent / paths[0]) as image:
            assert (image.size, image.mode) == ((32, 32), "L")

    def test_truth_agrees_with_valid_labels(self, written: Path) -> None:
        valid = pd.read_csv(written / "valid.csv").merge(
            pd.read_csv(written / "truth.csv"), on="Path"
        )
        assert ((valid["Pleural Effusion"] == 1) == valid["effusion_side"].notna()).all()
        assert ((valid["Pneumonia"] == 1) == valid["pneumonia_lobe"].notna()).all()
        assert ((valid["Cardiomegaly"] == 1) == (valid["cardiothoracic_ratio"] > 0.5)).all()

    def test_patients_are_disjoint(self, written: Path) -> None:
        names = [{p.name for p in (written / s).iterdir()} for s in ("train", "valid")]
        assert not names[0] & names[1]
        assert [len(n) for n in names] == [24, 3]

    def test_more_workers_or_patients_change_no_image(self, written: Path, tmp_path: Path) -> None:
        root = tmp_path / "Phantom-v1"
        write_phantom(root, patients=26, valid_patients=3, size=32, seed=3, workers=2,
                      progress=False)  # fmt: skip
        old, new = contents(written), contents(root)
        images = [name for name in old if name.endswith(".jpg")]
        assert all(old[name] == new[name] for name in images)
        assert new["train.csv"].startswith(old["train.csv"])
        assert new["valid.csv"] == old["valid.csv"]

    def test_progress_goes_to_stderr(self, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        write_phantom(tmp_path / "p", patients=2, valid_patients=1, size=16)
        streams = capsys.readouterr()
        assert streams.out == ""
        assert streams.err.endswith("phantom: 3/3 patients\n")

    @pytest.mark.parametrize(
        ("name", "value"),
        [("patients", 1), ("size", 15), ("valid_patients", 0), ("workers", 0), ("seed", -1)],
    )
    def test_bad_numbers(self, tmp_path: Path, name: str, value: int) -> None:
        with pytest.raises(ValueError, match=f"{name} is {value}; use a number from"):
            write_phantom(tmp_path / "p", **{name: value})
        assert list(tmp_path.iterdir()) == []

    def test_existing_folder_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="not an empty folder"):
            write_phantom(tmp_path, patients=2)
        assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]

    def test_interrupted_run_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Image.Image, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_phantom(tmp_path / "p", patients=2, progress=False)
        assert list(tmp_path.iterdir()) == []
