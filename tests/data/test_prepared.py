import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_lightning.data import prepared_writer
from cxr_lightning.data.prepared import open_prepared, read_failures
from cxr_lightning.data.prepared_writer import (
    PreparedWriter,
    check_free_space,
    open_writer,
    partial_folder,
)
from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources.base import TABLE_COLUMNS
from cxr_lightning.data.sources.reading import Chunk
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

SIZE = 8
IMAGES = np.random.default_rng(0).integers(0, 256, (6, SIZE, SIZE), dtype=np.uint8)


def make_table(count=6):
    table = pd.DataFrame({column: [""] * count for column in TABLE_COLUMNS})
    table[list(OBSERVATIONS)] = np.nan
    table["Age"] = [34.0, np.nan, 0.0, 90.0, 40.5, 1.0][:count]
    table.loc[:4, "Edema"] = [1.0, 0.0, -1.0, np.nan, NOT_ANNOTATED]
    table["Path"] = [f"train/patient{i:05d}/view1_frontal.jpg" for i in range(count)]
    table["patient"] = [f"patient{i:05d}" for i in range(count)]
    return table.assign(
        split="train", study="study1", Sex="Unknown", report='"a", b\nc', **{PROBLEM: ""}
    )


def chunk(start, stop, failures=None):
    failures = failures or {}
    rows = [row for row in range(start, stop) if row - start not in failures]
    return Chunk(stop - start, IMAGES[rows], [(100 + row, 200) for row in rows], failures)


def write(out, *chunks):
    with open_writer(out, make_table(), SIZE, "request") as writer:
        for part in chunks:
            writer.append(part)
        return writer.finish("folder", [], Resize(SIZE), "request")


@pytest.fixture
def out(tmp_path):
    write(tmp_path / "out", chunk(0, 4), chunk(4, 6))
    return tmp_path / "out"


def test_round_trip(out):
    prepared = open_prepared(out, verify=True)
    assert np.array_equal(prepared.images, IMAGES)
    assert isinstance(prepared.images, np.memmap)
    assert not prepared.images.flags.writeable
    assert prepared.size == SIZE
    assert prepared.sha256 == sha256_file(out / "images.npy")
    expected = make_table().drop(columns=PROBLEM)
    expected = expected.assign(width=np.arange(100, 106), height=200)
    pd.testing.assert_frame_equal(prepared.table, expected, check_dtype=False)
    assert prepared.header["count"] == 6
    assert prepared.header["format"] == 2
    assert prepared.header["resize"]["filter"] == "bicubic"
    assert set(prepared.header["versions"]) >= {"cxr_lightning", "pillow"}
    assert read_failures(out).empty
    assert sorted(f.name for f in out.parent.iterdir()) == ["out"]
    assert sorted(f.name for f in out.iterdir()) == [
        "failures.csv",
        "header.json",
        "images.npy",
        "table.csv",
    ]


def test_labels_and_ages_are_written_as_in_chexpert(out):
    text = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    assert text["Edema"].tolist() == ["1.0", "0.0", "-1.0", "", "n/a", ""]
    assert pd.read_csv(out / "table.csv")["Edema"].isna().tolist() == [False] * 3 + [True] * 3
    assert text["Age"].tolist() == ["34", "", "0", "90", "40.5", "1"]


def test_failures_leave_their_rows_out(tmp_path):
    out = tmp_path / "out"
    write(out, chunk(0, 4, {1: "truncated, badly"}), chunk(4, 6, {0: "no such file"}))
    prepared = open_prepared(out, verify=True)
    assert np.array_equal(prepared.images, IMAGES[[0, 2, 3, 5]])
    assert prepared.table["Age"].tolist() == [34, 0, 90, 1]
    assert prepared.table["width"].tolist() == [100, 102, 103, 105]
    paths = make_table()["Path"]
    assert read_failures(out).to_numpy().tolist() == [
        [paths[1], "truncated, badly"],
        [paths[4], "no such file"],
    ]


def test_rows_with_problems_are_no_images_but_failures(tmp_path):
    table = make_table()
    table[PROBLEM] = ["", "line 3: no path", "", "", "", "line 7: odd"]
    table.loc[1, "Path"] = ""
    with open_writer(tmp_path / "out", table, SIZE, "request") as writer:
        assert len(writer.table) == 4
        writer.append(Chunk(4, IMAGES[:3], [(9, 9)] * 3, {3: "empty"}))
        writer.finish("folder", [], Resize(SIZE), "request")
    prepared = open_prepared(tmp_path / "out")
    assert prepared.table["Age"].tolist() == [34, 0, 90]
    assert PROBLEM not in prepared.table.columns
    assert read_failures(tmp_path / "out").to_numpy().tolist() == [
        ["", "line 3: no path"],
        [table["Path"][5], "line 7: odd"],
        [table["Path"][4], "empty"],
    ]


def stop(out, error, *chunks):
    """Writes some chunks, then raises."""
    with open_writer(out, make_table(), SIZE, "request") as writer:
        for part in chunks:
            writer.append(part)
        raise error


def interrupt(out, *chunks):
    with pytest.raises(KeyboardInterrupt):
        stop(out, KeyboardInterrupt(), *chunks)


def test_an_error_before_the_first_image_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError, match="at once"):
        stop(tmp_path / "out", RuntimeError("at once"))
    assert not any(tmp_path.iterdir())


def test_a_full_disk_loses_nothing(tmp_path, out):
    error = OSError(errno.ENOSPC, "No space left on device")
    again = tmp_path / "again"
    with pytest.raises(UserError, match=r"out: .* cannot be written .*No space.* goes on"):
        stop(again, error, chunk(0, 4))
    assert not again.exists()
    with open_writer(again, make_table(), SIZE, "request") as writer:
        assert writer.rows_done == 4
        writer.append(chunk(4, 6))
        writer.finish("folder", [], Resize(SIZE), "request")
    for file in out.iterdir():
        assert sha256_file(file) == sha256_file(again / file.name)


def test_a_target_that_cannot_be_written():
    with pytest.raises(UserError, match=r"out: /sys/prepared cannot be written"):
        stop(Path("/sys/prepared"), RuntimeError(), chunk(0, 4))


def test_an_interrupted_writer_goes_on(tmp_path, out):
    again = tmp_path / "again"
    interrupt(again, chunk(0, 2))
    assert not again.exists()
    interrupt(again, chunk(2, 4))
    with open_writer(again, make_table(), SIZE, "request") as writer:
        assert writer.rows_done == 4
        writer.append(chunk(4, 6))
        writer.finish("folder", [], Resize(SIZE), "request")
    for file in out.iterdir():
        assert sha256_file(file) == sha256_file(again / file.name)


def test_failures_survive_an_interruption(tmp_path):
    out = tmp_path / "out"
    interrupt(out, chunk(0, 4, {0: "empty"}))
    with open_writer(out, make_table(), SIZE, "request") as writer:
        assert writer.failures == {0: "empty"}
        writer.append(chunk(4, 6))
        writer.finish("folder", [], Resize(SIZE), "request")
    assert np.array_equal(open_prepared(out).images, IMAGES[1:])


def test_another_request_does_not_wipe_what_is_unfinished(tmp_path):
    out = tmp_path / "out"
    interrupt(out, chunk(0, 4))
    with (
        pytest.raises(UserError, match=r"\.out\.partial holds an unfinished data set of other"),
        open_writer(out, make_table(), SIZE, "other"),
    ):
        pass
    with open_writer(out, make_table(), SIZE, "request") as writer:
        assert writer.rows_done == 4
    shutil.rmtree(partial_folder(out))
    with open_writer(out, make_table(), SIZE, "other") as writer:
        writer.append(chunk(0, 6))
        writer.finish("folder", [], Resize(SIZE), "other")
    assert np.array_equal(open_prepared(out, verify=True).images, IMAGES)


def test_failures_that_cannot_be_read(out):
    (out / "failures.csv").write_text("")
    with pytest.raises(UserError, match=r"failures\.csv that cannot be read"):
        read_failures(out)


@pytest.mark.parametrize("damage", ["torn journal", "lost pixels", "surplus pixels"])
def test_a_kill_while_writing(tmp_path, damage):
    out = tmp_path / "out"
    interrupt(out, chunk(0, 2), chunk(2, 4))
    journal = partial_folder(out) / "journal.jsonl"
    array = partial_folder(out) / "images.npy"
    if damage == "torn journal":
        journal.write_text(journal.read_text()[:-5])
    elif damage == "lost pixels":
        array.write_bytes(array.read_bytes()[:-1])
    else:
        array.write_bytes(array.read_bytes() + bytes(100))
    with open_writer(out, make_table(), SIZE, "request") as writer:
        done = writer.rows_done
        assert done == (4 if damage == "surplus pixels" else 2)
        writer.append(chunk(done, 6))
        writer.finish("folder", [], Resize(SIZE), "request")
    assert np.array_equal(open_prepared(out, verify=True).images, IMAGES)


def test_two_writers_at_once(tmp_path):
    out = tmp_path / "out"
    with open_writer(out, make_table(), SIZE, "request") as writer:
        writer.append(chunk(0, 4))
        with pytest.raises(UserError, match="another 'cxr prepare' is writing"):
            PreparedWriter(out, make_table(), SIZE, "request")
        writer.append(chunk(4, 6))
        writer.finish("folder", [], Resize(SIZE), "request")
    assert np.array_equal(open_prepared(out).images, IMAGES)


@pytest.mark.parametrize("name", ["sha256_file", "write_table", "hash_rows"])
def test_no_second_writer_gets_in_while_the_first_finishes(tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    work = getattr(prepared_writer, name)

    def second(*args):
        with pytest.raises(UserError, match="another 'cxr prepare' is writing"):
            PreparedWriter(out, make_table(), SIZE, "request")
        return work(*args)

    monkeypatch.setattr(prepared_writer, name, second)
    write(out, chunk(0, 6))
    assert np.array_equal(open_prepared(out, verify=True).images, IMAGES)
    assert not (out / "journal.jsonl").exists()


def test_a_writer_that_cannot_finish_lets_the_next_one_go_on(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(prepared_writer, "write_table", full)
        with pytest.raises(UserError, match=r"out: .* cannot be written"):
            write(out, chunk(0, 6))
    write(out)
    assert np.array_equal(open_prepared(out, verify=True).images, IMAGES)


def test_no_space(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(UserError, match=r"1000 bytes free, and 6 images of 8 x 8 px need 6384"):
        stop(tmp_path / "deep" / "out", KeyboardInterrupt())
    assert not any(tmp_path.iterdir())
    check_free_space(tmp_path / "out", 0, SIZE)


def edit_header(out, **changes):
    header = json.loads((out / "header.json").read_text())
    (out / "header.json").write_text(json.dumps(header | changes))


@pytest.mark.parametrize("name", ["images.npy", "table.csv", "failures.csv"])
def test_missing_file(out, name):
    (out / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        open_prepared(out)


def test_no_prepared_data_set(tmp_path):
    with pytest.raises(UserError, match=r"data\.root: no prepared data set at .*cxr prepare"):
        open_prepared(tmp_path / "absent")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"format": 1}'])
def test_broken_header(out, text):
    (out / "header.json").write_text(text)
    with pytest.raises(UserError, match=r"header\.json"):
        open_prepared(out)


def test_other_format(out):
    edit_header(out, format=1)
    with pytest.raises(UserError, match="is of format 1, and this version reads 2"):
        open_prepared(out)


@pytest.mark.parametrize("changes", [{"count": 7}, {"size": 16}])
def test_array_of_another_shape(out, changes):
    edit_header(out, **changes)
    with pytest.raises(UserError, match=r"images\.npy of uint8 \(6, 8, 8\)"):
        open_prepared(out)


def test_array_of_another_type(out):
    np.save(out / "images.npy", IMAGES.astype(np.float32))
    with pytest.raises(UserError, match="float32"):
        open_prepared(out)


def test_truncated_array(out):
    file = out / "images.npy"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"images\.npy that cannot be read"):
        open_prepared(out)


def test_array_with_pickles_is_refused(out):
    np.save(out / "images.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"images\.npy that cannot be read"):
        open_prepared(out)


def test_table_with_another_number_of_rows(out):
    table = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    table.iloc[:-1].to_csv(out / "table.csv", index=False)
    with pytest.raises(UserError, match=r"5 rows in table\.csv and 6 images"):
        open_prepared(out)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Edema", "Oedema", "without Edema"),
        (",train,", ",dev,", "split 'dev'"),
        ("-1.0", "3", r"wrong value in table\.csv, row 2: Edema is '3'"),
        (",34,", ",old,", r"wrong value in table\.csv, row 0: Age is 'old'"),
        (",102,200", ",wide,200", "width or height"),
    ],
)
def test_edited_table(out, old, new, message):
    file = out / "table.csv"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        open_prepared(out)


def test_a_patient_in_two_splits_is_refused(out):
    table = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    table["patient"] = "patient7"
    table.to_csv(out / "table.csv", index=False)
    assert len(open_prepared(out).table) == 6
    table.loc[2, "split"] = "valid"
    table.to_csv(out / "table.csv", index=False)
    with pytest.raises(UserError, match=r"has the patient 'patient7' in two splits in table\.csv"):
        open_prepared(out)


def test_table_with_rows_in_another_order(out):
    table = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    table.iloc[::-1].to_csv(out / "table.csv", index=False)
    with pytest.raises(UserError, match=r"has other rows in table\.csv than images in images\.npy"):
        open_prepared(out)


def test_labels_may_be_corrected(out):
    file = out / "table.csv"
    file.write_text(file.read_text().replace("-1.0", "1.0"))
    assert open_prepared(out).table["Edema"][2] == 1


def test_changed_pixels_are_found_on_request(out):
    file = out / "images.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert len(open_prepared(out).images) == 6
    with pytest.raises(UserError, match="differs from the hash"):
        open_prepared(out, verify=True)


def test_a_table_that_lost_what_is_not_annotated_is_refused(out):
    """As pandas does where it reads and writes a table without further words."""
    table = pd.read_csv(out / "table.csv")
    table.assign(ward="east").to_csv(out / "table.csv", index=False)
    with pytest.raises(UserError, match=r"lost the n/a of Edema in table.csv.*keep_default_na"):
        open_prepared(out)


def test_a_column_may_be_added(out):
    table = pd.read_csv(out / "table.csv", dtype=str, keep_default_na=False)
    table.assign(ward="east").to_csv(out / "table.csv", index=False)
    opened = open_prepared(out).table
    assert set(opened["ward"]) == {"east"}
    assert opened["Edema"].iloc[4] == NOT_ANNOTATED
