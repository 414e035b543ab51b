"""`cxr interpolate` on tiny generators, through the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.cli import main
from cxr_lightning.commands.generate import generate
from cxr_lightning.commands.sampling import SamplingOptions
from cxr_lightning.data.resize import Resize, read_grey
from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.types import Condition

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(products: Path, tmp_path: Path) -> Run:
    """Runs the command: 2 rows of 3 images of 2 steps, one a batch; returns images.json."""

    def apply(*args: object, model: str = "generator", name: str = "sheet") -> dict[str, Any]:
        settings = ["--rows", 2, "--columns", 3, "--steps", 2, "--batch_size", 1, "--device", "cpu"]
        paths = ["--out", tmp_path / f"{name}.png", "--singles", tmp_path / name]
        given = ["--model", products / model, *paths, *settings, *args]
        main(["interpolate", *map(str, given)])
        content: dict[str, Any] = json.loads((tmp_path / name / "images.json").read_text())
        return content

    return apply


@pytest.fixture
def fails(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the command, which must say what is wrong and write nothing."""

    def apply(*args: object, model: str = "generator") -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as stop:
            run(*args, model=model)
        assert stop.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        said = capsys.readouterr().err.splitlines()[-1]
        return said.removeprefix("cxr interpolate: error: ")

    return apply


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    """Two radiographs of other sizes than the model's."""
    draw = np.random.default_rng(0)
    files = [tmp_path / "a.png", tmp_path / "b.jpg"]
    for file, shape in zip(files, ((32, 32), (50, 64)), strict=True):
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8)).save(file)
    return files


def tile(folder: Path, row: int, column: int) -> np.ndarray:
    return np.asarray(Image.open(folder / f"row{row:03d}_column{column:03d}.png"))


def test_the_ends_are_the_images_of_cxr_generate(run, products, tmp_path):
    run("--condition", "pneumonia", "--space", "both", "--seed", 3)
    generate(
        products / "generator",
        tmp_path / "set",
        condition="pneumonia",
        count=4,
        seed=3,
        sampling=SamplingOptions(steps=2),
        batch_size=1,
        device="cpu",
    )
    for i in range(4):
        plain = Image.open(tmp_path / f"set/train/patient{i + 1:05d}/study1/view1_frontal.png")
        assert np.array_equal(tile(tmp_path / "sheet", i // 2, 2 * (i % 2)), np.asarray(plain))


def test_two_conditions_are_those_of_one_image(run, products, tmp_path):
    content = run("--condition", "healthy,pneumonia+edema", "--guidance", 2.0)
    assert content["space"] == "condition"
    generator = Generator.from_pretrained(products / "generator")
    for row in (0, 1):
        for column, name in ((0, "healthy"), (2, "pneumonia+edema")):
            asked, index = parse_condition(name).request(1), torch.tensor([2 * row])
            made = generator.sample(asked, index, Sampling(steps=2, guidance=2.0))
            assert np.array_equal(
                tile(tmp_path / "sheet", row, column), to_image(made)[0, 0].numpy()
            )
        ends = [tile(tmp_path / "sheet", row, column) for column in (0, 2)]
        assert not np.array_equal(*ends)


def test_prompts_are_understood_and_told(run, capsys):
    texts = ["small left effusion", "no finding, PA view"]
    content = run("--prompt", *texts)
    said = capsys.readouterr().out
    assert "present: Pleural Effusion" in said
    assert said.count("side and severity are not followed") == 1
    ends = {(t["start"]["condition"], t["end"]["condition"]) for t in content["images"]}
    assert ends == {tuple(texts)}


def test_a_tuned_model_has_its_own_sampler(run, products, tmp_path):
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sampling"] = {"sampler": "consistency", "steps": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert run(model=folder)["sampler"] == "consistency"


def test_given_radiographs_lie_between_their_reconstructions(run, products, tmp_path, pair):
    content = run("--images", *pair, "--condition", "edema")
    generator = Generator.from_pretrained(products / "generator")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 34 + 2, 5 * 34 + 2)
    for side, (file, column) in enumerate(zip(pair, (0, 2), strict=True)):
        shown = sheet[2:34, 4 * 34 * side + 2 :][:, :32]
        assert np.array_equal(shown, read_grey(file, Resize(32)).image)
        for row in (0, 1):
            made = generator.reconstruct(
                to_model(torch.from_numpy(shown.copy())[None, None]),
                parse_condition("edema").request(1),
                torch.tensor([row]),
                Sampling(steps=2),
            )
            assert np.array_equal(
                tile(tmp_path / "sheet", row, column), to_image(made)[0, 0].numpy()
            )
    first = content["images"][0]
    assert (first["start"]["latent"], first["end"]["latent"]) == tuple(map(str, pair))
    assert Image.open(tmp_path / "sheet.png").text["Synthetic"] == "partly"


@pytest.mark.parametrize(
    ("space", "latent", "noise"), [("z", 3, 2), ("noise", 2, 3), ("both", 3, 3)]
)
def test_contents_say_what_each_image_is(run, tmp_path, products, space, latent, noise):
    content = run("--space", space, "--seed", 5, "--curve", "linear")
    folder = products / "generator"
    expected = {
        "kind": "interpolation",
        "product_sha256": product_sha256(folder),
        "model": str(folder),
        "space": space,
        "curve": "linear",
        "seed": 5,
        "steps": 2,
    }
    assert {key: content[key] for key in expected} == expected
    assert len(content["images"]) == 6
    assert {p.name for p in (tmp_path / "sheet").glob("*.png")} == {
        image["file"] for image in content["images"]
    }
    assert content["images"][4] == {
        "file": "row001_column001.png",
        "row": 1,
        "column": 1,
        "t": 0.5,
        "start": {"condition": "unknown", "latent": 2, "noise": 2},
        "end": {"condition": "unknown", "latent": latent, "noise": noise},
    }


def test_the_sheet_shows_the_single_images(run, tmp_path, products):
    run()
    picture = Image.open(tmp_path / "sheet.png")
    sheet = np.asarray(picture)
    for row in (0, 1):
        for column in (0, 1, 2):
            shown = sheet[2 + 34 * row :, 2 + 34 * column :][:32, :32]
            assert np.array_equal(shown, tile(tmp_path / "sheet", row, column))
    assert picture.text["Synthetic"] == "yes"
    assert picture.text["Product-SHA256"] == product_sha256(products / "generator")
    assert json.loads(picture.text["Request"])["space"] == "z"


def test_curves_differ_in_the_middle_alone(run, tmp_path):
    for curve in ("spherical", "linear"):
        run("--curve", curve, name=curve)
    for column, same in ((0, True), (1, False), (2, True)):
        pictures = [tile(tmp_path / curve, 0, column) for curve in ("spherical", "linear")]
        assert np.array_equal(*pictures) == same


def test_batch_size_changes_no_picture_beyond_a_rounding(run, tmp_path):
    run("--condition", "healthy,edema", name="one")
    run("--condition", "healthy,edema", "--batch_size", 4, name="four")
    for row in (0, 1):
        for column in range(3):
            a, b = (tile(tmp_path / name, row, column).astype(int) for name in ("one", "four"))
            assert np.abs(a - b).max() <= 1
            assert (a != b).mean() <= 0.01


def test_an_unconditional_model_has_noise_alone(run, fails, tmp_path, products, pair):
    for args in (("--space", "z"), ("--space", "both"), (), ("--images", *pair)):
        assert "(model.form: uncond) has none; use --space noise" in fails(*args, model="uncond")
    run("--space", "noise", model="uncond")
    generator = Generator.from_pretrained(products / "uncond")
    made = generator.sample(Condition.unknown(1), torch.tensor([1]), Sampling(steps=2))
    assert np.array_equal(tile(tmp_path / "sheet", 0, 2), to_image(made)[0, 0].numpy())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--columns", 1], "columns: 1 is not possible; use 2 or more."),
        (["--rows", 0], "rows: 0 is not possible; use 1 or more."),
        (["--seed", -1], "seed: -1 is not possible; use 0 or more."),
        (["--batch_size", 0], "batch_size: 0 is not possible"),
        (["--steps", 51], "steps: 51 is not possible"),
        (["--out", "sheet.jpg"], "out: sheet.jpg is no PNG file; give a name that ends in .png."),
        (["--condition", "healthy,flu"], "condition: 'flu' in 'flu' is not a health condition"),
        (["--condition", "healthy,edema,pneumonia"], "condition: 3 are given; give 2 at most."),
        (["--prompt", "edema", "effusion", "fracture"], "prompt: 3 are given; give 2 at most."),
        (["--prompt", "banana"], "prompt: 'banana' names no finding"),
        (["--condition", "edema", "--prompt", "edema"], "prompt: ['edema'] is given beside condi"),
        (["--images", "a.png"], "images: 1 radiographs are no two ends of a row; give two"),
        (["--images", "a.png", "b.png"], "images: a.png cannot be read (no such file); give a pic"),
        (["--images", "a", "b", "--space", "noise"], "space: noise is given beside images"),
        (["--model", "nowhere"], "model: no product at nowhere"),
        (["--device", "gpu"], "device: 'gpu' is not there"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(fails, args, message):
    assert fails(*args).startswith(message)


def test_an_unreadable_picture_is_named(fails, tmp_path, pair):
    pair[1].write_text("no picture")
    assert fails("--images", *pair).startswith(f"images: {pair[1]} cannot be read (Unidentified")


def test_places_that_cannot_be_written_are_told_before_work(fails, tmp_path):
    (tmp_path / "file").write_text("mine")
    sheet = tmp_path / "file" / "sheet.png"
    assert fails("--out", sheet).startswith(f"out: {sheet} cannot be written (")
    same = tmp_path / "same.png"
    assert fails("--out", same, "--singles", same).startswith(f"singles: {same} is the sheet")


def test_files_that_exist_are_left_alone(fails, tmp_path):
    (tmp_path / "sheet.png").write_text("mine")
    assert "out: " in (said := fails())
    assert said.endswith("exists already; give another name or remove it.")
    assert (tmp_path / "sheet.png").read_text() == "mine"
    (tmp_path / "sheet.png").unlink()
    (tmp_path / "sheet").mkdir()
    assert fails().startswith(f"singles: {tmp_path / 'sheet'} exists already")
