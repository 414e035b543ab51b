import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.commands import prepare as module
from cxr_lightning.commands.describe import describe
from cxr_lightning.commands.prepare import prepare
from cxr_lightning.data.prepared import open_prepared, read_failures
from cxr_lightning.data.prepared_writer import PreparedWriter, partial_folder
from cxr_lightning.data.sources.base import COLUMNS
from cxr_lightning.data.sources.files import LayoutReader
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.types import NOT_ANNOTATED

PATIENTS = 30


def write_chexpert(root, patients=PATIENTS, valid=False):
    """A small CheXpert with laterals; every image has its own grey level and a white corner."""
    lines = [",".join(COLUMNS)]
    for number in range(1, patients + 1):
        for view in ("view1_frontal", "view2_lateral"):
            path = f"train/patient{number:05d}/study1/{view}.png"
            image = np.full((20, 24), 60 + number, dtype=np.uint8)
            image[:6, :6] = 255
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / path)
            side = view.split("_")[1].title()
            lines.append(f"{root.name}/{path},Male,50,{side},{'AP' if side == 'Frontal' else ''}")
            lines[-1] += "," * 14
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def root(tmp_path):
    return write_chexpert(tmp_path / "CheXpert-v1.0-small")


def image_file(root, number, view="view1_frontal"):
    return root / f"train/patient{number:05d}/study1/{view}.png"


def hashes(folder):
    return {file.name: sha256_file(file) for file in folder.iterdir()}


def test_chexpert(root, tmp_path, capsys):
    out = tmp_path / "prepared" / "small"
    prepare("chexpert", root, out, size=16, workers=1, valid_fraction=0.2)
    data = open_prepared(out, verify=True)
    assert data.images.shape == (PATIENTS, 16, 16)
    assert set(data.table["Frontal/Lateral"]) == {"Frontal"}
    counts = data.table["split"].value_counts()
    assert counts["valid"] > 0
    for image, path in zip(data.images, data.table["Path"], strict=True):
        number = int(path.split("patient")[1][:5])
        assert image[8, 8] == 60 + number
        assert image[3, 1] == 255  # the corner, below the black border
        assert image[12, 14] == 60 + number
        assert image[0].max() == image[15].max() == 0
    text = capsys.readouterr().out
    assert f"{PATIENTS} lateral views are left out" in text
    assert f"{PATIENTS} images ({counts['train']} train, {counts['valid']} valid)" in text
    assert "0 failures" in text


def test_all_views_and_crop(root, tmp_path):
    prepare("chexpert", root, tmp_path / "out", 16, workers=1, views="all", aspect="crop")
    data = open_prepared(tmp_path / "out")
    assert len(data.images) == 2 * PATIENTS
    assert data.images.min() > 0
    assert data.header["resize"]["aspect"] == "crop"


def test_any_number_of_workers_gives_the_same_files(root, tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_lightning.data.sources.reading.CHUNK_IMAGES", 4)
    image_file(root, 7).write_bytes(b"")
    for workers in (1, 2):
        prepare("chexpert", root, tmp_path / str(workers), size=16, workers=workers)
    assert hashes(tmp_path / "1") == hashes(tmp_path / "2")


def break_images(root):
    content = image_file(root, 2).read_bytes()
    image_file(root, 1).unlink()
    image_file(root, 2).write_bytes(content[: len(content) // 2])
    image_file(root, 3).write_bytes(b"")
    image_file(root, 4).write_bytes(b"no image")


def test_unreadable_images_are_listed(root, tmp_path, capsys):
    break_images(root)
    out = tmp_path / "out"
    prepare("chexpert", root, out, size=16, workers=1)
    failures = read_failures(out)
    assert failures["Path"].tolist() == [
        f"{root.name}/train/patient{number:05d}/study1/view1_frontal.png" for number in range(1, 5)
    ]
    assert failures["reason"].ne("").all()
    data = open_prepared(out)
    assert len(data.images) == PATIENTS - 4
    assert data.images.max(axis=(1, 2)).min() > 0
    assert f"4 failures, see {out / 'failures.csv'}" in capsys.readouterr().out


def test_strict(root, tmp_path, capsys):
    break_images(root)
    for _ in range(2):  # while it is written, and when it is complete already
        with pytest.raises(UserError, match=r"strict: 4 of 30 images were left"):
            prepare("chexpert", root, tmp_path / "out", size=16, workers=1, strict=True)
        assert len(open_prepared(tmp_path / "out").images) == PATIENTS - 4
    capsys.readouterr()
    prepare("chexpert", root, tmp_path / "out", size=16, workers=1)
    assert "4 failures; prepare into a new folder" in capsys.readouterr().out


def test_no_readable_image(root, tmp_path):
    for file in root.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 30 images can be read"):
        prepare("chexpert", root, tmp_path / "out", size=16, workers=1)
    assert list(tmp_path.iterdir()) == [root]


def stop_after(monkeypatch, count, error):
    """Makes the reader raise at image number `count`."""
    plain = LayoutReader.__call__
    seen = []

    def image(self, path, resize=None):
        seen.append(path)
        if len(seen) > count:
            raise error
        return plain(self, path, resize)

    monkeypatch.setattr(LayoutReader, "__call__", image)
    monkeypatch.setattr("cxr_lightning.data.sources.reading.CHUNK_IMAGES", 4)
    return seen


def test_an_interrupted_command_goes_on(root, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        stop_after(patch, 10, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            prepare("chexpert", root, out, size=16, workers=1)
    assert not out.exists()
    assert partial_folder(out).is_dir()
    seen = stop_after(monkeypatch, 1000, RuntimeError())
    prepare("chexpert", root, out, size=16, workers=1)
    assert len(seen) == PATIENTS - 8  # two chunks of 4 were done
    assert not partial_folder(out).exists()
    prepare("chexpert", root, tmp_path / "whole", size=16, workers=1)
    assert hashes(out) == hashes(tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    root.mkdir()
    for number in range(3000):
        pixels = rng.integers(0, 256, (48, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "7.png").write_bytes(b"")
    (root / "list.csv").write_text("\n".join(["Path", *(f"{i}.png" for i in range(3000)), "7.png"]))
    prepare("folder", root, tmp_path / "whole", size=32, workers=2)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cxr_lightning", "prepare", "--source=folder"]
    command += [f"--root={root}", f"--out={out}", "--size=32", "--workers=2"]
    journal = partial_folder(out) / "journal.jsonl"
    kills = 0
    for records in (1, 12, 30):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            if journal.is_file() and journal.read_bytes().count(b"\n") > records:
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
        process.wait()
    assert kills >= 2  # the last one may find it finished
    subprocess.run(command, check=True, capture_output=True)
    assert hashes(out) == hashes(tmp_path / "whole")
    assert len(read_failures(out)) == 2


def test_damaged_rows_are_failures(root, tmp_path, capsys):
    file = root / "train.csv"
    file.write_text(file.read_text().replace("Male,50,Frontal,AP", "Male,fifty,Frontal,AP", 2))
    prepare("chexpert", root, tmp_path / "out", size=16, workers=1)
    failures = read_failures(tmp_path / "out")
    assert failures["reason"].tolist() == [
        f"train.csv, line {line}: Age is 'fifty', not a number of years" for line in (2, 4)
    ]
    assert len(open_prepared(tmp_path / "out").images) == PATIENTS - 2
    assert "2 failures, see" in capsys.readouterr().out
    file.write_text(file.read_text().replace("Male,50,", "Male,fifty,"))
    with pytest.raises(UserError, match="none of the 60 rows in .* can be used .*line 2: Age"):
        prepare("chexpert", root, tmp_path / "other", size=16, workers=1)


def test_complete_already(root, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    prepare("chexpert", root, out, size=16, workers=1)
    before = hashes(out)
    monkeypatch.setattr(module, "_read", None)
    prepare("chexpert", root, out, size=16, workers=2)
    assert "complete already: 30 images" in capsys.readouterr().out
    assert hashes(out) == before
    for change in ({"size": 32}, {"views": "all"}, {"aspect": "crop"}, {"valid_fraction": 0.9}):
        with pytest.raises(UserError, match=r"out: .* holds something else already"):
            prepare("chexpert", root, out, **{"size": 16, "workers": 1, **change})
    assert hashes(out) == before


def test_out_is_in_use(root, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "precious.txt").write_text("keep")
    with pytest.raises(UserError, match="holds something else already"):
        prepare("chexpert", root, tmp_path / "notes", workers=1)
    with pytest.raises(UserError, match="is a file"):
        prepare("chexpert", root, tmp_path / "notes" / "precious.txt", workers=1)
    with pytest.raises(UserError, match="is, or holds, the folder of the data set"):
        prepare("chexpert", root, root, workers=1)
    with pytest.raises(UserError, match="is, or holds"):
        prepare("chexpert", root, tmp_path, workers=1)
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(UserError, match="is a link"):
        prepare("chexpert", root, tmp_path / "link", workers=1)
    (tmp_path / "empty").mkdir()
    prepare("chexpert", root, tmp_path / "empty", size=16, workers=1)
    assert len(open_prepared(tmp_path / "empty").images) == PATIENTS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size: 0"),
        ({"workers": 0}, "workers: 0"),
        ({"valid_fraction": 1.0}, "valid_fraction: 1.0"),
        ({"seed": -1}, "seed: -1"),
    ],
)
def test_numbers_out_of_range(root, tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        prepare("chexpert", root, tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == [root]


def test_laterals_only(root, tmp_path):
    file = root / "train.csv"
    file.write_text(file.read_text().replace("Frontal,AP", "Lateral,"))
    with pytest.raises(UserError, match="lateral views only"):
        prepare("chexpert", root, tmp_path / "out", workers=1)


@pytest.mark.parametrize("place", [".", "image folder"])
def test_relative_paths(root, tmp_path, monkeypatch, place):
    (tmp_path / "train.csv").write_text((root / "train.csv").read_text())
    (root / "train.csv").unlink()  # the CSV file lies beside the image folder
    monkeypatch.chdir(tmp_path if place == "." else root)
    prepare("chexpert", Path(), Path("../new/out"), 16, workers=1)
    assert len(open_prepared(Path("../new/out")).images) == PATIENTS
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare("chexpert", root, Path(), 16, workers=1)
    assert len(open_prepared(tmp_path / "here").images) == PATIENTS


def test_no_usable_frontal(root, tmp_path):
    file = root / "train.csv"
    file.write_text(file.read_text().replace("Male,50,Frontal", "Male,old,Frontal"))
    with pytest.raises(UserError, match=r"none of the 30 rows .* can be used .*Age is 'old'"):
        prepare("chexpert", root, tmp_path / "out", 16, workers=1)


def test_folder(tmp_path, capsys):
    root = tmp_path / "images"
    root.mkdir()
    Image.fromarray(np.full((30, 30, 3), 77, dtype=np.uint8)).save(root / "a.png")
    (root / "list.csv").write_text("path,Edema\na.png,-1\n")
    prepare("folder", root, tmp_path / "out", size=8, workers=1, valid_fraction=0.0)
    data = open_prepared(tmp_path / "out")
    assert (data.images == 77).all()
    assert data.table["Edema"].tolist() == [-1]
    assert "no image is in valid" in capsys.readouterr().out
    Image.fromarray(np.full((30, 30), 78, dtype=np.uint8)).save(root / "b.png")
    (root / "list.csv").write_text("path,Edema\na.png,-1\nb.png,0\n")
    prepare("folder", root, tmp_path / "two", size=8, workers=1)
    said = capsys.readouterr().out
    assert "Each of the 2 images counts as a patient of its own." in said
    (root / "list.csv").write_text("path,Edema,patient\na.png,-1,p\nb.png,0,p\n")
    prepare("folder", root, tmp_path / "one", size=8, workers=1)
    assert "patient of its own" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"csv": Path("subset.csv")}, "csv: --source chexpert .* only folder and dicom; leave out"),
        ({"columns": {"Path": "a"}}, "columns: --source chexpert does not read it"),
        ({"parts": ["a"]}, "parts: .* only mixture"),
        ({"flag": "chestmnist"}, "flag: .* only medmnist"),
        ({"patients": 7}, "patients: .* only phantom"),
    ],
)
def test_an_option_that_the_source_does_not_read_is_refused(root, tmp_path, option, message):
    with pytest.raises(UserError, match=message):
        prepare("chexpert", root, tmp_path / "out", 16, workers=1, **option)
    assert not (tmp_path / "out").exists()


def write_medmnist(file, side=28):
    arrays = {
        f"{split}_{kind}": np.full((2, side, side) if kind == "images" else (2, 1), 1, np.uint8)
        for split in ("train", "val", "test")
        for kind in ("images", "labels")
    }
    np.savez_compressed(file, **arrays)


def test_medmnist(tmp_path):
    write_medmnist(tmp_path / "pneumoniamnist.npz")
    prepare("medmnist", tmp_path, tmp_path / "out", size=28, workers=2)
    data = open_prepared(tmp_path / "out")
    assert data.table["split"].tolist() == ["train", "train", "valid", "valid", "test", "test"]
    assert (data.images == 1).all()


def test_another_file_of_medmnist_is_another_request(tmp_path, monkeypatch):
    write_medmnist(tmp_path / "pneumoniamnist.npz")
    write_medmnist(tmp_path / "pneumoniamnist_64.npz", 64)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(PreparedWriter, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare("medmnist", tmp_path, out, workers=1, download_size=28)
    with pytest.raises(UserError, match="holds an unfinished data set of other options"):
        prepare("medmnist", tmp_path, out, workers=1, download_size=64)
    prepare("medmnist", tmp_path, out, workers=1, download_size=28)
    with pytest.raises(UserError, match=r"out: .* holds something else already"):
        prepare("medmnist", tmp_path, out, workers=1)  # reads the larger file
    assert set(open_prepared(out).table["width"]) == {28}


def interrupted(*args):
    raise KeyboardInterrupt


def test_phantom(tmp_path):
    root = tmp_path / "phantom"
    prepare("phantom", root, tmp_path / "out", size=16, workers=1, patients=2)
    data = open_prepared(tmp_path / "out")
    assert data.table[data.table["split"] == "train"]["patient"].nunique() == 2
    assert (data.table["split"] == "valid").any()
    assert (data.table["report"] != "").all()
    assert data.images.std(axis=(1, 2)).min() > 10
    prepare("phantom", root, tmp_path / "out", size=16, workers=1, patients=2)
    with pytest.raises(UserError, match=r"not the phantom .*'patients': 3"):
        prepare("phantom", root, tmp_path / "other", size=16, workers=1, patients=3)
    with pytest.raises(UserError, match="patients: 64541; use a number from 2 to 64540"):
        prepare("phantom", tmp_path / "new", tmp_path / "other", workers=1, patients=64541)
    with pytest.raises(UserError, match="patients: 1 patients"):
        prepare("phantom", tmp_path / "new", tmp_path / "other", workers=1, patients=1)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["out", "phantom"]


@pytest.mark.skipif("CXR_TEST_DATA" not in os.environ, reason="needs CXR_TEST_DATA")
@pytest.mark.parametrize(
    ("name", "counts", "sides"),
    [
        ("nih64", {"train": 720, "valid": 130}, {64}),
        ("kermany224", {"train": 4278, "valid": 459}, {224}),
        ("hannover_fullres", {"train": 76, "valid": 12}, {1024, 2000}),
        ("nih512", {"train": 2}, {512}),
    ],
)
def test_real_sets(tmp_path, capsys, name, counts, sides):
    root = Path(os.environ["CXR_TEST_DATA"]) / name
    prepare("chexpert", root, tmp_path / "out", 64, workers=2, valid_fraction=0.0, strict=True)
    data = open_prepared(tmp_path / "out", verify=True)
    assert data.table["split"].value_counts().to_dict() == counts
    assert data.table.groupby("patient")["split"].nunique().max() == 1
    assert set(data.table["width"]) == set(data.table["height"]) == sides
    assert data.images.std(axis=(1, 2)).min() > 10
    describe(tmp_path / "out", per_condition=4)
    facts = json.loads((tmp_path / "out/description/description.json").read_text())
    assert facts["images"] == sum(counts.values())
    assert facts["duplicates"]["groups across patients"] == 0
    assert (tmp_path / "out/description/healthy.png").is_file()


@pytest.mark.skipif("CXR_TEST_DATA" not in os.environ, reason="needs CXR_TEST_DATA")
def test_real_nih64(tmp_path):
    root = Path(os.environ["CXR_TEST_DATA"]) / "nih64"
    prepare("chexpert", root, tmp_path / "out", size=64, workers=1, strict=True)
    data = open_prepared(tmp_path / "out", verify=True)
    assert data.images.shape == (850, 64, 64)
    original = pd.concat([pd.read_csv(root / f"{split}.csv") for split in ("train", "valid")])
    columns = [c for c in COLUMNS if c not in ("Path", "Sex", "Frontal/Lateral", "AP/PA")]
    labels = data.table[columns].replace(NOT_ANNOTATED, np.nan)
    np.testing.assert_array_equal(labels.to_numpy(float), original[columns])
    unlabelled = ["Enlarged Cardiomediastinum", "Fracture", "Support Devices"]
    assert (data.table[unlabelled] == NOT_ANNOTATED).all(axis=None)
    assert (data.table[["width", "height"]] == 64).all(axis=None)
    for row in range(0, 850, 100):
        with Image.open(root.parent / data.table["Path"][row]) as image:
            assert np.array_equal(data.images[row], np.asarray(image)[..., 0])
