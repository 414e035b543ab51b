import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_lightning.commands.prepare import prepare
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.data.prepared_writer import PreparedWriter
from cxr_lightning.data.sources.chexpert_plus import ChexpertPlusSource
from cxr_lightning.data.sources.folder import FolderSource
from cxr_lightning.data.sources.medmnist import ORIGINS
from cxr_lightning.data.sources.mimic_cxr import MimicCxrSource
from cxr_lightning.data.sources.nih14 import Nih14Source
from cxr_lightning.data.sources.rsna import RsnaSource
from cxr_lightning.data.sources.vindr import VindrSource
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED

SIZE = 8


def write_set(folder, seed, count=6, column="Edema", report=False):
    """Random images with labels of one observation, three patients of two images each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = [f"Path,patient,split,{column}" + ",report" * report]
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 24), dtype=np.uint8)).save(folder / f"{i}.png")
        split = "train" if i < 4 else "valid"
        label = ("1", "0", "-1", "", "1", "0")[i]
        lines.append(f"{i}.png,p{i // 2},{split},{label}" + f",text {i}" * report)
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def sets(tmp_path):
    """Two prepared data sets, `a` (edema, reports) and `b` (fracture), below one folder."""
    for name, options in (("a", {"report": True}), ("b", {"column": "Fracture"})):
        raw = write_set(tmp_path / "raw" / name, ord(name), **options)
        prepare("folder", raw, tmp_path / "sets" / name, SIZE, workers=1)
    return tmp_path / "sets"


def mix(sets, out, **options):
    prepare("mixture", sets, out, **{"size": SIZE, "workers": 2, **options})
    return open_prepared(out, verify=True)


def edit_header(folder, **changes):
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps(header | changes))


def test_rows_images_and_labels_stay_what_they_were(sets, tmp_path):
    mixed = mix(sets, tmp_path / "mixed")
    a, b = open_prepared(sets / "a"), open_prepared(sets / "b")
    assert np.array_equal(mixed.images, np.concatenate([a.images, b.images]))
    table = mixed.table
    assert table["Path"].tolist() == [f"{s}/{i}.png" for s in "ab" for i in range(6)]
    assert table["patient"].tolist() == [f"{s}/p{i // 2}" for s in "ab" for i in range(6)]
    assert table["split"].tolist() == (["train"] * 4 + ["valid"] * 2) * 2
    for column in ("Edema", "Fracture"):
        pd.testing.assert_series_equal(
            table[column], pd.concat([a.table[column], b.table[column]], ignore_index=True)
        )
    assert (table["Fracture"][:6] == NOT_ANNOTATED).all()  # a has no such column
    assert np.isnan(table["Edema"][3])  # not mentioned is something else
    assert table["report"].tolist() == [f"text {i}" for i in range(6)] + [""] * 6
    assert (table["width"] == 24).all()
    assert (table["height"] == 16).all()


def test_a_part_prepared_anew_is_another_request(sets, tmp_path, monkeypatch):
    mix(sets, tmp_path / "mixed")
    monkeypatch.setattr(PreparedWriter, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mix(sets, tmp_path / "killed")
    monkeypatch.undo()
    shutil.rmtree(sets / "a")
    raw = write_set(tmp_path / "again" / "a", 3, report=True)
    prepare("folder", raw, sets / "a", SIZE, workers=1)
    with pytest.raises(UserError, match=r"out: .* holds something else already"):
        mix(sets, tmp_path / "mixed")
    with pytest.raises(UserError, match="holds an unfinished data set of other options"):
        mix(sets, tmp_path / "killed")


def test_an_edited_table_of_a_part_is_another_request(sets, tmp_path):
    mix(sets, tmp_path / "mixed")
    table = pd.read_csv(sets / "a" / "table.csv", dtype=str, keep_default_na=False)
    table.assign(width="25").to_csv(sets / "a" / "table.csv", index=False)
    with pytest.raises(UserError, match=r"out: .* holds something else already"):
        mix(sets, tmp_path / "mixed")


def interrupted(*args):
    raise KeyboardInterrupt


def test_parts_are_chosen_and_checked(sets, tmp_path):
    raw = write_set(tmp_path / "raw" / "c", 3)
    prepare("folder", raw, sets / "c", SIZE, workers=1)
    mixed = mix(sets, tmp_path / "mixed", parts=["c", "b"])
    assert [p[0] for p in mixed.table["Path"]] == ["c"] * 6 + ["b"] * 6
    with pytest.raises(UserError, match="with b is no mixture; name two or more"):
        mix(sets, tmp_path / "out", parts=["b"])
    with pytest.raises(UserError, match="no prepared data set at .*absent"):
        mix(sets, tmp_path / "out", parts=["a", "absent"])
    with pytest.raises(UserError, match="root: there is no folder"):
        mix(tmp_path / "absent", tmp_path / "out")


@pytest.mark.parametrize("change", [{"size": 16}, {"aspect": "crop"}])
def test_other_preparation_is_refused(sets, tmp_path, change):
    with pytest.raises(UserError, match="parts: .* prepare it again in that way"):
        mix(sets, tmp_path / "out", **change)


def test_sets_of_the_same_origin_are_refused(sets, tmp_path):
    edit_header(sets / "a", source="nih14", origins=["NIH ChestX-ray14"])
    edit_header(sets / "b", source="rsna", origins=["NIH ChestX-ray14"])
    with pytest.raises(UserError, match="a and b both hold images of NIH ChestX-ray14"):
        mix(sets, tmp_path / "out")
    edit_header(sets / "b", origins=["MIMIC-CXR"])
    mixed = mix(sets, tmp_path / "mixed")
    assert mixed.header["origins"] == ["NIH ChestX-ray14", "MIMIC-CXR"]


def test_origins_that_sources_state():
    """Whose images are whose: RSNA and ChestMNIST are NIH's, CheXpert Plus has CheXpert's."""
    nih = Nih14Source.origins
    assert nih == RsnaSource.origins == (ORIGINS["chestmnist"],)
    assert ChexpertPlusSource.origins == ("CheXpert",)
    others = {*MimicCxrSource.origins, *VindrSource.origins, ORIGINS["pneumoniamnist"]}
    assert len(others) == 3
    assert not others & {*nih, *ChexpertPlusSource.origins}


def test_a_blank_image_may_be_in_two_sets(sets, tmp_path):
    for name, column in (("d", "Edema"), ("e", "Fracture")):
        raw = write_set(tmp_path / "raw" / name, ord(name), column=column)
        Image.fromarray(np.zeros((16, 24), dtype=np.uint8)).save(raw / "5.png")
        prepare("folder", raw, sets / name, SIZE, workers=1)
    assert len(mix(sets, tmp_path / "mixed", parts=["d", "e"]).table) == 12


def test_the_same_image_in_two_sets_is_refused(sets, tmp_path):
    raw = write_set(tmp_path / "raw" / "c", 9)
    (raw / "5.png").write_bytes((tmp_path / "raw" / "a" / "1.png").read_bytes())
    prepare("folder", raw, sets / "c", SIZE, workers=1)
    with pytest.raises(UserError, match=r"1 images are both in a and in c, such as 1\.png and 5"):
        mix(sets, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_same_command_again_and_parts_of_unknown_origin(sets, tmp_path, capsys):
    mix(sets, sets / "mixed")
    assert "origin unknown: a, b; make sure" in capsys.readouterr().out
    mix(sets, sets / "mixed")  # the result beside the parts is no part
    assert "complete already" in capsys.readouterr().out
    for name in "cd":
        raw = write_set(tmp_path / "raw" / name, ord(name))
        prepare("folder", raw, tmp_path / "own" / name, SIZE, workers=1, origin="our hospital")
    with pytest.raises(UserError, match="c and d both hold images of our hospital"):
        mix(tmp_path / "own", tmp_path / "out")


def test_a_stated_origin_stands_beside_what_the_source_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(FolderSource, "origins", ("CheXpert",))
    raw = write_set(tmp_path / "raw", 1)
    prepare("folder", raw, tmp_path / "out", SIZE, workers=1, origin="small")
    assert open_prepared(tmp_path / "out").header["origins"] == ["CheXpert", "small"]


def test_a_mixture_may_be_mixed_again(sets, tmp_path):
    prepare("folder", write_set(tmp_path / "raw" / "c", 3), tmp_path / "two" / "c", SIZE, workers=1)
    mix(sets, tmp_path / "two" / "ab")
    mixed = mix(tmp_path / "two", tmp_path / "out")
    assert mixed.table["Path"][0] == "ab/a/0.png"
    assert len(mixed.images) == 18
