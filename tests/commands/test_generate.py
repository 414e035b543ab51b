"""`cxr generate` on tiny generators: layout, determinism, resume, mistakes."""

import dataclasses
import errno
import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.cli import main
from cxr_lightning.data.sources.base import COLUMNS
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.synthetic import read_synthetic
from cxr_lightning.synthesis.folder import SyntheticFolder
from cxr_lightning.types import FIELDS, Condition


@pytest.fixture
def run(make_set: Callable[..., Path]) -> Callable[..., Path]:
    return make_set


def files(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def pixels(folder: Path) -> dict[str, np.ndarray]:
    return {
        str(f.relative_to(folder)): np.asarray(Image.open(f)) for f in sorted(folder.rglob("*.png"))
    }


def test_folder_has_the_layout_of_chexpert_and_nothing_else(run, tmp_path):
    out = run(tmp_path / "deep" / "synthetic")
    images = [f"train/patient{i:05d}/study1/view1_frontal.png" for i in range(1, 7)]
    assert set(files(out)) == {*images, "train.csv", "manifest.json"}
    assert list(out.parent.iterdir()) == [out]


def test_table_has_the_columns_of_chexpert_and_the_requested_labels(run, tmp_path):
    out = run(tmp_path / "synthetic")
    table = pd.read_csv(out / "train.csv")
    assert tuple(table.columns) == COLUMNS
    assert table["Path"][0] == "synthetic/train/patient00001/study1/view1_frontal.png"
    assert (tmp_path / table["Path"][5]).is_file()
    assert set(table["Frontal/Lateral"]) == {"Frontal"}
    healthy, ill = table[:3], table[3:]
    assert (healthy["No Finding"] == 1).all()
    assert (healthy["Support Devices"] == 0).all()
    assert (healthy["Pneumonia"] == 0).all()  # no finding denies it
    assert (ill[["Pneumonia", "Edema"]] == 1).all(axis=None)
    assert (ill["No Finding"] == 0).all()
    assert ill[["Fracture", "Support Devices"]].isna().all(axis=None)


def test_manifest_tells_how_the_images_were_made(run, tmp_path, products):
    out = run(tmp_path / "synthetic", seed=5, guidance=1.5, sampler="ddpm")
    manifest = json.loads((out / "manifest.json").read_text())
    folder = products / "generator"
    expected = {
        "format": 1,
        "kind": "synthetic",
        "product": {"path": str(folder), "sha256": product_sha256(folder)},
        "seed": 5,
        "sampler": "ddpm",
        "steps": 2,
        "guidance": 1.5,
        "size": 32,
        "conditions": ["healthy", "pneumonia+edema"],
    }
    assert {k: manifest[k] for k in expected} == expected
    assert [i["index"] for i in manifest["images"]] == list(range(6))
    assert [i["condition"] for i in manifest["images"]] == ["healthy"] * 3 + ["pneumonia+edema"] * 3
    assert all((out / i["path"]).is_file() for i in manifest["images"])


def test_pictures_are_grey_and_say_that_they_are_synthetic(run, tmp_path, products):
    out = run(tmp_path / "synthetic", count=1)
    for file in out.rglob("*.png"):
        picture = Image.open(file)
        assert picture.mode == "L"
        assert picture.size == (32, 32)
        assert picture.text["Synthetic"] == "yes"
        assert picture.text["Product-SHA256"] == product_sha256(products / "generator")
        assert picture.text["Software"].startswith("cxr_lightning ")


def test_images_are_those_of_the_generator(run, tmp_path, products):
    out = run(tmp_path / "synthetic", seed=3, guidance=2.0, batch_size=6)
    rows = [parse_condition(name).request(3) for name in ("healthy", "pneumonia+edema")]
    asked = Condition.cat(rows)
    generator = Generator.from_pretrained(products / "generator")
    made = to_image(
        generator.sample(asked, torch.arange(6), Sampling(steps=2, guidance=2.0), seed=3)
    ).numpy()
    for i, picture in enumerate(pixels(out).values()):
        assert np.array_equal(picture, made[i, 0])


@pytest.mark.parametrize(("view", "value"), [("AP", 0.0), ("PA", 1.0)])
def test_the_view_may_be_asked_for(run, tmp_path, products, view, value):
    out = run(tmp_path / "synthetic", count=1, view=view)
    assert set(pd.read_csv(out / "train.csv")["AP/PA"]) == {view}
    assert json.loads((out / "manifest.json").read_text())["view"] == view
    asked = parse_condition("healthy").request(1, view)
    column = FIELDS.index("PA")
    assert (asked.known[0, column], asked.value[0, column]) == (True, value)
    plain = run(tmp_path / "plain", count=1)
    assert set(pd.read_csv(plain / "train.csv")["AP/PA"]) == {"UNKNOWN"}
    for name, picture in pixels(plain).items():
        assert not np.array_equal(pixels(out)[name], picture)


def test_the_same_command_gives_the_same_bytes_and_another_seed_does_not(run, tmp_path):
    first = files(run(tmp_path / "a" / "set", count=1))
    assert files(run(tmp_path / "b" / "set", count=1)) == first
    other = pixels(run(tmp_path / "c" / "set", count=1, seed=1))
    for name, picture in pixels(tmp_path / "a" / "set").items():
        assert not np.array_equal(other[name], picture)


def test_precision_is_part_of_the_request(run, tmp_path):
    out = run(tmp_path / "set", count=1, precision="bf16")
    assert json.loads((out / "manifest.json").read_text())["precision"] == "bf16"
    with pytest.raises(UserError, match="out: .* exists already"):
        run(tmp_path / "set", count=1)
    fp32 = pixels(run(tmp_path / "fp32" / "set", count=1))
    assert any(not np.array_equal(fp32[name], picture) for name, picture in pixels(out).items())


@pytest.mark.parametrize("name", ["generator", "uncond"])
def test_batch_size_changes_no_picture_beyond_a_rounding(run, tmp_path, products, name):
    one = run(tmp_path / "1" / "set", model=products / name, batch_size=1)
    four = run(tmp_path / "4" / "set", model=products / name, batch_size=4)
    assert files(one).keys() == files(four).keys()
    assert (one / "train.csv").read_bytes() == (four / "train.csv").read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (one, four)]
    assert [manifest.pop("batch_size") for manifest in manifests] == [1, 4]
    assert manifests[0] == manifests[1]
    # kernels for one image and for several add in another order: about 1e-5 of a model-range
    # value, 1e-3 of a grey value, which a rounding shows in one pixel of a thousand at most
    difference = np.stack(
        [pixels(one)[f].astype(int) - picture for f, picture in pixels(four).items()]
    )
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() <= 1e-3


def stop_after(monkeypatch: pytest.MonkeyPatch, images: int, error: type[BaseException]) -> None:
    """Makes writing fail at a picture, as a kill or a full disk would."""
    write, written = SyntheticFolder.write, []

    def failing(*args: Any) -> None:
        if len(written) == images:
            raise error
        written.append(write(*args))

    monkeypatch.setattr(SyntheticFolder, "write", failing)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_goes_on_and_ends_like_an_uninterrupted_one(
    run, tmp_path, monkeypatch, error
):
    whole = files(run(tmp_path / "whole" / "set", batch_size=4))
    out = tmp_path / "resumed" / "set"
    with monkeypatch.context() as patch:
        stop_after(patch, 3, error)
        with pytest.raises(error):
            run(out, batch_size=4)
    assert not out.exists()
    made: list[Any] = []
    original = Generator.sample

    def note(self: Generator, condition: Any, index: Any, *sampling: Any, **seed: int) -> Any:
        made.extend(index.tolist())
        return original(self, condition, index, *sampling, **seed)

    monkeypatch.setattr(Generator, "sample", note)
    assert files(run(out, batch_size=4)) == whole
    assert made == [3, 4, 5, 5]  # the last one fills the batch, so that all have one shape
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed 0 there, 1 here"),
        ({"format": "jpeg"}, "image_format png there, jpeg here"),
        ({"guidance_interval": [0.2, 0.8]}, r"guidance_interval \[0.0, 1.0\] there"),
    ],
)
def test_images_of_an_unfinished_set_of_another_request_are_never_lost(
    run, tmp_path, monkeypatch, change, difference
):
    whole = files(run(tmp_path / "whole" / "set"))
    out = tmp_path / "resumed" / "set"
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(out)
    there = files(out.parent)
    with pytest.raises(UserError, match=rf"^out: .*\.set\.partial holds 2 images.*{difference}"):
        run(out, **change)
    assert files(out.parent) == there
    assert files(run(out)) == whole


def test_an_unfinished_set_of_another_request_without_images_is_replaced(
    run, tmp_path, monkeypatch
):
    whole = files(run(tmp_path / "whole" / "set", seed=1))
    out = tmp_path / "resumed" / "set"
    with monkeypatch.context() as patch:
        stop_after(patch, 0, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(out)
    assert files(run(out, seed=1)) == whole
    assert list(out.parent.iterdir()) == [out]


def test_a_folder_in_which_another_command_works_is_left_alone(run, tmp_path, monkeypatch):
    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        stop_after(patch, 0, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(out)
    there = files(tmp_path)
    with (tmp_path / ".set.partial" / "request.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as that command holds it
        with pytest.raises(
            UserError, match=r"^out: another command is at work in .*\.set\.partial"
        ):
            run(out, seed=1)
    assert files(tmp_path) == there
    run(out, seed=1)


def test_a_command_that_another_one_outruns_compares_the_requests(run, tmp_path, monkeypatch):
    whole = files(run(tmp_path / "whole" / "set"))
    out = tmp_path / "raced" / "set"
    begin = SyntheticFolder._begin

    def outrun(folder: SyntheticFolder) -> None:
        begin(dataclasses.replace(folder, request=dataclasses.replace(folder.request, seed=0)))
        begin(folder)

    monkeypatch.setattr(SyntheticFolder, "_begin", outrun)
    with pytest.raises(UserError, match=r"^out: another command began .*\(seed 0 there, 1 here\)"):
        run(out, seed=1)
    assert [file.name for file in out.parent.iterdir()] == [".set.partial"]
    monkeypatch.undo()
    assert files(run(out)) == whole


def test_a_condition_that_is_named_twice_is_made_once(run, tmp_path):
    once = files(run(tmp_path / "once" / "set", condition="healthy"))
    assert files(run(tmp_path / "twice" / "set", condition="healthy, Healthy")) == once


def test_a_run_killed_while_it_finishes_goes_on(run, tmp_path, monkeypatch):
    whole = files(run(tmp_path / "whole" / "set"))
    out = tmp_path / "resumed" / "set"
    for place in ("_write_text", "remove_rest"):  # before the table, and behind the renaming
        with monkeypatch.context() as patch:
            patch.setattr(SyntheticFolder, place, lambda *_: (_ for _ in ()).throw(MemoryError))
            with pytest.raises(MemoryError):
                run(out)
    assert files(run(out)) == whole
    assert list(out.parent.iterdir()) == [out]


def test_a_finished_set_of_the_same_request_is_told(run, tmp_path, products, capsys):
    out = run(tmp_path / "set")
    there = files(out)
    moved = shutil.copytree(products / "generator", tmp_path / "copy")
    run(out, model=moved)  # wherever the product lies
    assert "holds these 6 synthetic radiographs already" in capsys.readouterr().out
    assert files(out) == there
    with pytest.raises(UserError, match=rf"^out: {out} exists already"):
        run(out, seed=1)
    assert files(out) == there


def test_an_existing_folder_is_refused_and_left_alone(run, tmp_path):
    out = tmp_path / "synthetic"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(UserError, match=rf"^out: {out} exists already"):
        run(out)
    assert files(out) == {"mine": b"x"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": "healthy,flu"}, "condition: 'flu'"),
        ({"condition": "healthy+edema"}, "contradicts itself"),
        ({"condition": ""}, "condition: ''"),
        ({"count": 0}, "count: 0 "),
        ({"batch_size": -1}, "batch_size: -1 "),
        ({"seed": -1}, "seed: -1 "),
        ({"steps": 0}, "steps: 0 "),
        ({"steps": 51}, "steps: 51 "),
        ({"guidance": -2.0}, "guidance: -2.0 "),
        ({"prompt": ["edema"]}, r"prompt: \['edema'\] is given beside condition"),
        ({"condition": None, "prompt": ["banana"]}, "prompt: 'banana' names no finding"),
        ({"condition": None, "prompt": ["no edema, edema"]}, "states Edema as present"),
        ({"condition": None, "prompt": ["edema"], "view": "PA"}, "view: PA is given beside prompt"),
        ({"condition": None, "like": Path("/nowhere")}, "like: no prepared data set at /nowhere"),
        ({"balance": True}, "balance: .* give --like too"),
        ({"guidance_interval": [0.2]}, "guidance_interval: 0.2 is no interval"),
        ({"guidance_interval": [0.9, 0.2]}, "guidance_interval: 0.9 to 0.2 is no interval"),
        ({"eta": 3.0}, "eta: 3.0 "),
        ({"start": 0.0}, "start: 0.0 "),
        ({"start": 0.01, "steps": 4}, "steps: 4 .* begun at 0.01; use 1 to 1"),
        ({"device": "cuda:99"}, "device: 'cuda:99'"),
        ({"device": "gpu"}, "device: 'gpu'"),
        ({"devices": 0}, "devices: 0 "),
        ({"devices": 2, "device": "cuda:1"}, "devices: 2 cannot all be cuda:1"),
        ({"reject": Path("/nowhere")}, "reject: no file or folder /nowhere"),
        ({"reject_tries": 0}, "reject_tries: 0 "),
        ({"reject_threshold": 1.0}, "reject_threshold: 1.0 "),
        ({"count": -3}, "count: -3 "),
        ({"model": Path("/nowhere")}, "model: no product at /nowhere"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(run, tmp_path, change, message):
    with pytest.raises(UserError, match=message) as info:
        run(tmp_path / "synthetic", **change)
    assert "\n" not in str(info.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_refused_before_anything_is_written(run, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match=r"^out: .* 0 are free"):
        run(tmp_path / "synthetic")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"^out: .*file/set cannot be written \(.*\); choose"):
        run(tmp_path / "file" / "set")
    assert files(tmp_path) == {"file": b"x"}


def test_a_disk_that_is_full_in_the_middle_loses_nothing(
    run, tmp_path, products, monkeypatch, capsys
):
    whole = files(run(tmp_path / "whole" / "set"))
    out = tmp_path / "full" / "set"
    write, written = Path.write_bytes, []

    def half(file: Path, content: bytes) -> int:
        written.append(file)
        if len(written) > 3:
            write(file, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, content)

    command = ["generate", f"--model={products}/generator", f"--out={out}", "--count=3"]
    command += ["--condition=healthy,pneumonia+edema", "--steps=2", "--device=cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(SystemExit) as stop:
            main(command)
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith("no space is left on its disk; make room and give the same command again.")
    made = files(out.parent)
    pictures = {name: content for name, content in made.items() if name.endswith(".png")}
    assert len(pictures) == 3
    for name, content in pictures.items():
        assert content == whole[name.removeprefix(".set.partial/set/")]
    assert not [name for name in made if "writing" in name]  # the half is gone
    main(command)
    assert files(out) == whole
    assert list(out.parent.iterdir()) == [out]


def test_a_changed_product_and_another_kind_are_refused(run, tmp_path, products):
    with pytest.raises(UserError, match=r"^model: .* of kind 'autoencoder'"):
        run(tmp_path / "synthetic", model=products / "autoencoder")
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    (folder / "prior" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^model: .* were changed"):
        run(tmp_path / "synthetic", model=folder)
    assert not (tmp_path / "synthetic").exists()


def test_prompts_become_conditions_and_labels(run, tmp_path, capsys):
    texts = ["small left effusion, no pneumothorax, PA view, 70-year-old woman", "possible edema"]
    out = run(tmp_path / "synthetic", condition=None, prompt=texts, count=2)
    said = capsys.readouterr().out
    assert "present: Pleural Effusion\nabsent: Pneumothorax\nview: PA\nsex: Female" in said
    assert "side and severity are not followed" in said
    table = pd.read_csv(out / "train.csv")
    assert tuple(table.columns) == COLUMNS
    effusion, doubtful = table[:2], table[2:]
    assert (effusion["Pleural Effusion"] == 1).all()
    assert (effusion["Pneumothorax"] == 0).all()
    assert (effusion[["Sex", "Age", "AP/PA"]] == ["Female", 70, "PA"]).all(axis=None)
    assert (doubtful["Edema"] == -1).all()
    assert doubtful[["Age", "Pneumonia"]].isna().all(axis=None)
    assert set(doubtful["AP/PA"]) == {"UNKNOWN"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert [i["prompt"] for i in manifest["images"]] == [texts[0]] * 2 + [texts[1]] * 2
    assert {i["condition"] for i in manifest["images"]} == {None}
    drawn = read_synthetic(out, 32, tmp_path / "images.npy")
    assert drawn.requested is None
    assert (drawn.table["Pleural Effusion"] == 1).sum() == 2


def test_a_set_like_a_prepared_one_has_its_conditions(run, tmp_path, prepared):
    real = pd.read_csv(prepared / "table.csv")
    train = real[real["split"] == "train"]
    out = run(tmp_path / "synthetic", condition=None, like=prepared, count=len(train))
    table = pd.read_csv(out / "train.csv")
    columns = ["Sex", "Age", "AP/PA"]
    drawn, expected = (t[columns].value_counts(dropna=False).to_dict() for t in (table, train))
    assert drawn == expected
    for observation in ("Pneumonia", "Pleural Effusion"):
        assert (table[observation] == 1).sum() == (train[observation] == 1).sum()


def test_guidance_without_condition_dropout_is_refused(run, tmp_path, products):
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] = {"model": {"init_args": {"drop_condition": 0.0}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"^guidance: 2.0 needs a model .*drop_condition"):
        run(tmp_path / "synthetic", model=folder, guidance=2.0)
    run(tmp_path / "synthetic", model=folder, guidance=1.0)


def test_a_finding_that_training_never_showed_is_told_with_its_count(
    run, tmp_path, products, capsys
):
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["training_images"] = {"Edema": 0, "Pneumonia": 500, "Fracture": 3}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    run(tmp_path / "synthetic", model=folder, condition="edema,pneumonia", count=1)
    said = capsys.readouterr().err
    assert "warning: only 0 training images of this model show Edema" in said
    assert "Pneumonia:" not in said
    assert "Fracture" not in said


def test_consistency_sampling_of_a_generator_that_was_not_tuned_is_warned_of(run, tmp_path, capsys):
    run(tmp_path / "synthetic", sampler="consistency", count=1)
    assert "the sampler consistency is for products of configs/distill.yaml" in (
        capsys.readouterr().err
    )
    run(tmp_path / "usual", count=1)
    assert "consistency" not in capsys.readouterr().err


def test_a_tuned_model_has_its_own_sampler_and_steps(run, tmp_path, products):
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sampling"] = {"sampler": "consistency", "steps": 2}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    out = run(tmp_path / "synthetic", model=folder, count=1, steps=None)
    made = json.loads((out / "manifest.json").read_text())
    assert (made["sampler"], made["steps"]) == ("consistency", 2)


def test_a_set_like_a_prepared_one_has_the_label_policy_of_the_training(
    run, tmp_path, products, prepared
):
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["config"] = {"data": {"blank": "negative"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    out = run(tmp_path / "synthetic", model=folder, condition=None, like=prepared)
    assert pd.read_csv(out / "train.csv")["Fracture"].notna().all()


def test_changed_labels_of_a_prepared_set_make_it_another_request(
    run, tmp_path, prepared, monkeypatch
):
    like = shutil.copytree(prepared, tmp_path / "prepared")
    finished = run(tmp_path / "finished", condition=None, like=like)
    out = tmp_path / "unfinished"
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            run(out, condition=None, like=like)
    table = pd.read_csv(like / "table.csv", keep_default_na=False)
    table["Fracture"] = 1.0
    table.to_csv(like / "table.csv", index=False)
    with pytest.raises(UserError, match=r"^out: .* holds 2 images .*\(asked [0-9a-f]{64} there"):
        run(out, condition=None, like=like)
    with pytest.raises(UserError, match=r"^out: .* exists already"):
        run(finished, condition=None, like=like)
