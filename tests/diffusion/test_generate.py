"""`Generator.generate`: the images of `cxr generate`, for a notebook."""

import json
import shutil
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxr_lightning.artifacts import product_sha256
from cxr_lightning.cli import main
from cxr_lightning.data.prompt import parse_prompt
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.synthetic_images import SyntheticImages
from cxr_lightning.errors import UserError
from cxr_lightning.types import Condition

PROMPT = "pleural effusion, PA view, 60-year-old man"


@pytest.fixture
def generator(products: Path) -> Generator:
    return Generator.from_pretrained(products / "generator")


@pytest.fixture
def with_facts(products: Path, tmp_path: Path) -> Any:
    """Makes a generator whose manifest says more."""

    def make(**facts: Any) -> Generator:
        folder = tmp_path / "product"
        shutil.copytree(products / "generator", folder, dirs_exist_ok=True)
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | facts))
        return Generator.from_pretrained(folder)

    return make


def written(out: Path, *flags: str) -> list[Path]:
    """The files that the command writes with these options."""
    main(["generate", f"--out={out}", "--device=cpu", "--steps=3", *flags])
    return sorted(out.rglob("*.png"))


@pytest.mark.parametrize(
    ("product", "request_", "flags", "arguments"),
    [
        ("generator", "pneumonia+pleural_effusion", [], {}),
        ("generator", "pneumonia", ["--view=PA", "--guidance=2"], {"view": "PA", "guidance": 2.0}),
        ("uncond", "edema", ["--sampler=ddpm", "--seed=4"], {"sampler": "ddpm", "seed": 4}),
        ("generator", PROMPT, [], {}),
    ],
)
def test_pixels_and_files_are_those_of_the_command(
    products, tmp_path, product, request_, flags, arguments
):
    option = "--prompt" if request_ == PROMPT else "--condition"
    flags = [f"--model={products / product}", option, request_, "--count=5", *flags]
    files = written(tmp_path / "set", *flags, "--batch_size=3")
    generator = Generator.from_pretrained(products / product)
    images = generator.generate(request_, 5, steps=3, batch_size=3, **arguments)
    assert images.pixels.dtype == np.uint8
    assert np.array_equal(images.pixels, [np.asarray(Image.open(file)) for file in files])
    saved = images.save(tmp_path / "saved")
    assert [f.read_bytes() for f in saved] == [f.read_bytes() for f in files]


def test_a_folder_may_be_given_as_text(products, generator):
    again = Generator.from_pretrained(str(products / "generator"))
    assert np.array_equal(
        again.generate("edema", steps=2).pixels, generator.generate("edema", steps=2).pixels
    )


def test_a_later_call_goes_on_with_the_set(generator):
    whole = generator.generate("edema", 6, steps=3, seed=2, batch_size=2)
    rest = generator.generate("edema", 2, steps=3, seed=2, batch_size=2, first=4)
    assert np.array_equal(rest.pixels, whole.pixels[4:])
    assert whole.numbers == (0, 1, 2, 3, 4, 5)
    assert rest.numbers == (4, 5)


def test_of_a_condition_every_row_is_asked_for(generator):
    rows = Condition.cat([parse_condition(n).request(1) for n in ("edema", "healthy")])
    images = generator.generate(rows, 2, steps=3)
    expected = Condition.cat([parse_condition(n).request(2) for n in ("edema", "healthy")])
    assert all(torch.equal(a, b) for a, b in zip(images.condition, expected, strict=True))
    assert len(images) == 4
    one = generator.generate(expected, steps=3)
    assert np.array_equal(one.pixels, images.pixels)


@pytest.mark.parametrize("read", [parse_condition, parse_prompt])
def test_a_text_that_was_read_before_is_as_good(generator, read):
    made = generator.generate(read("edema"), 2, steps=2)
    assert np.array_equal(made.pixels, generator.generate("edema", 2, steps=2).pixels)


def test_what_was_understood_is_with_the_images(generator):
    images = generator.generate(PROMPT, 2, steps=2)
    assert images.prompt == parse_prompt(PROMPT)
    said = repr(images)
    assert said.startswith("2 synthetic radiographs of 32 x 32 pixels, seed 0\n")
    assert "present: Pleural Effusion\nview: PA\nsex: Male\nage: 60 years" in said
    assert generator.generate("edema", steps=2).prompt is None


def test_what_of_a_prompt_is_not_used_is_warned_of(generator):
    with pytest.warns(UserWarning, match="not used|not followed") as said:
        generator.generate("mild edema, spiculated border", steps=2)
    assert [str(w.message) for w in said] == [
        "not used of the prompt: spiculated border",
        "side and severity are not followed: they need a model with a text encoder",
    ]


def test_a_tuned_model_has_its_own_sampler_and_steps(with_facts):
    plain = with_facts().generate("edema", sampler="consistency", steps=2)
    tuned = with_facts(sampling={"sampler": "consistency", "steps": 2})
    assert np.array_equal(tuned.generate("edema").pixels, plain.pixels)
    assert not np.array_equal(tuned.generate("edema", steps=3).pixels, plain.pixels)
    with pytest.raises(UserError, match="^sampler: unipc does not suit this model"):
        tuned.generate("edema", sampler="unipc")
    with pytest.raises(UserError, match="^steps: 5 are too many for the sampler consistency"):
        tuned.generate("edema", steps=5)


def test_what_few_training_images_show_is_warned_of(with_facts):
    generator = with_facts(training_images={"Edema": 3, "Pneumonia": 500})
    with pytest.warns(UserWarning, match="only 3 training images of this model show Edema"):
        generator.generate("edema", steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.generate("pneumonia", steps=2)


def test_a_view_and_a_sex_that_few_training_images_show_are_warned_of(with_facts):
    dataset = {"views": {"AP": 900, "PA": 4}, "sexes": {"Male": 904}}
    generator = with_facts(dataset=dataset)
    with pytest.warns(UserWarning, match="training images") as said:
        generator.generate("edema, PA view, 60-year-old woman", steps=2)
    end = ": what it draws for it means little"
    assert [str(w.message) for w in said] == [
        f"only 4 training images of this model show the view PA{end}",
        f"only 0 training images of this model show a female patient{end}",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generator.generate("edema, AP view, man", steps=2)
        generator.generate("edema", steps=2)


def test_guidance_without_condition_dropout_is_refused(with_facts):
    config = {"model": {"init_args": {"drop_condition": 0.0}}}
    generator = with_facts(config=config)
    with pytest.raises(UserError, match=r"^guidance: 2.0 needs a model .*drop_condition"):
        generator.generate("edema", steps=2, guidance=2.0)
    generator.generate("edema", steps=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 0}, "^count: 0 is not possible; use 1 or more"),
        ({"batch_size": 0}, "^batch_size: 0 "),
        ({"seed": -1}, "^seed: -1 "),
        ({"first": -1}, "^first: -1 "),
        ({"steps": 51}, "^steps: 51 "),
        ({"eta": 3.0}, "^eta: 3.0 "),
        ({"request": "banana"}, "^prompt: 'banana' names no finding"),
        ({"request": "healthy+edema"}, "^condition: 'healthy.edema' contradicts itself"),
        ({"request": "possible edema", "view": "PA"}, "^view: PA is given beside a prompt"),
        ({"request": Condition.unknown(1), "view": "PA"}, "^view: PA .* beside a condition"),
        ({"request": Condition.unknown(0)}, "^request: a condition of no row"),
        ({"guidance_interval": (0.2,)}, "^guidance_interval: 0.2 is no interval; give two"),
        ({"sampler": "consistency"}, "^steps: 20 are too many for the sampler consistency; use 1"),
    ],
)
def test_mistakes_are_one_sentence(generator, change, message):
    with pytest.raises(UserError, match=message) as info:
        generator.generate(**{"request": "edema", **change})
    assert "\n" not in str(info.value)


@pytest.fixture(scope="module")
def images() -> SyntheticImages:
    pixels = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    return SyntheticImages(pixels, Condition.unknown(3), (5, 6, 7), 1, product_sha256="ab")


def test_images_are_a_sequence_of_grey_pictures(images):
    assert len(images) == 3
    assert [picture.mode for picture in images] == ["L"] * 3
    assert np.array_equal(np.asarray(images[-1]), images.pixels[2])
    assert [np.asarray(p)[0, 0] for p in images[1:]] == [16, 32]
    with pytest.raises(IndexError):
        images[3]


def test_a_notebook_shows_a_grid(images):
    shown = Image.open(BytesIO(images._repr_png_()))
    assert shown.text["Synthetic"] == "yes"
    assert np.array_equal(np.asarray(shown), np.asarray(images.grid()))
    grid = np.asarray(images.grid(columns=2))
    assert grid.shape == (2 * 6 + 2, 2 * 6 + 2)  # two pixels between the images
    assert np.array_equal(grid[2:6, 8:12], images.pixels[1])
    assert np.array_equal(grid[8:12, 2:6], images.pixels[2])
    assert np.array_equal(np.asarray(images.grid(columns=2, rows=1)), grid[: 6 + 2])


def test_saved_pictures_say_that_they_are_synthetic(images, tmp_path):
    files = images.save(tmp_path / "deep" / "folder")
    assert [f.name for f in files] == ["00005.png", "00006.png", "00007.png"]
    for file, pixels in zip(files, images.pixels, strict=True):
        picture = Image.open(file)
        assert picture.text["Synthetic"] == "yes"
        assert picture.text["Product-SHA256"] == "ab"
        assert np.array_equal(np.asarray(picture), pixels)


def test_images_name_their_product(products, generator):
    made = generator.generate("edema", steps=2)
    assert made.product_sha256 == product_sha256(products / "generator")
    generator.manifest = {}  # as in training
    assert generator.generate("edema", steps=2).product_sha256 is None
