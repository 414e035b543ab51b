"""cxr generate and Generator.generate with a model that looks at texts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from text_model import write_text_model

from cxr_lightning.artifacts import save_product
from cxr_lightning.cli import main
from cxr_lightning.data.text_encoder import TextEncoder
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.errors import UserError

pytest.importorskip("sentence_transformers")
LEFT, RIGHT = "small left pleural effusion", "small right pleural effusion"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def product(
    tmp_path_factory: pytest.TempPathFactory,
    model: Path,
    make_autoencoder,
    make_denoiser,
    randomize,
) -> Path:
    """A random generator that looks at texts of that encoder, in denoiser and prior."""
    prior = LatentPrior(latent_dim=6, kind="flow", width=8, text_dim=12)
    prior.fitted.fill_(True)
    parts = {
        "autoencoder": make_autoencoder(),
        "prior": randomize(prior),
        "denoiser": make_denoiser(text_dim=12, latent_dim=6),
    }
    folder = tmp_path_factory.mktemp("product") / "product"
    parents = {"text_encoder": TextEncoder(model, "text").sha256}
    save_product(folder, "generator", parts, {"parents": parents})
    return folder


def _generate(product: Path, out: Path, *options: str) -> list[np.ndarray]:
    main(["generate", "--model", str(product), "--out", str(out), "--steps", "2", *options])
    images = json.loads((out / "manifest.json").read_text())["images"]
    return [np.asarray(Image.open(out / image["path"])) for image in images]


def test_the_words_of_a_prompt_are_followed_with_the_text_encoder(
    product: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--prompt", LEFT, RIGHT, "--count", "2"]
    blind = _generate(product, tmp_path / "blind", *asked)
    assert "need a model with a text encoder" in capsys.readouterr().out
    read = _generate(product, tmp_path / "read", *asked, "--text_encoder", str(model))
    assert "text encoder" not in capsys.readouterr().out
    assert not np.array_equal(read[0], blind[0])
    manifest = json.loads((tmp_path / "read" / "manifest.json").read_text())
    assert manifest["text_encoder"] == TextEncoder(model, "text").sha256
    generator = Generator.from_pretrained(product)
    again = generator.generate(LEFT, 2, steps=2, text_encoder=model)
    # batches of 2 here, of 4 there: equal up to rounding
    for ours, theirs in zip(again.pixels, read[:2], strict=True):
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_left_and_right_differ_by_their_text_alone(product: Path, model: Path) -> None:
    generator = Generator.from_pretrained(product)
    settings = {"steps": 2, "seed": 3, "text_encoder": model}
    left, right = (generator.generate(text, 1, **settings).pixels for text in (LEFT, RIGHT))
    assert not np.array_equal(left, right)
    with pytest.warns(UserWarning, match="side and severity are not followed"):
        blind = [generator.generate(text, 1, steps=2, seed=3).pixels for text in (LEFT, RIGHT)]
    assert np.array_equal(*blind)


def test_a_text_encoder_that_does_not_fit(
    product: Path, products: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_text_model(tmp_path / "other", seed=1)
    for options, message in (
        (["--prompt", LEFT, "--text_encoder", str(other)], "another text encoder"),
        (["--condition", "healthy", "--text_encoder", str(model)], "reads prompts"),
        (["--prompt", LEFT, "--text_encoder", str(tmp_path / "no")], "there is no folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            _generate(product, tmp_path / "out", *options)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert "error: text_encoder:" in said
        assert message in said
        assert not (tmp_path / "out").exists()
    blind = Generator.from_pretrained(products / "generator")
    with pytest.raises(UserError, match="without a text encoder"):
        blind.generate(LEFT, text_encoder=model)
    with pytest.raises(UserError, match="the request is none"):
        Generator.from_pretrained(product).generate("healthy", text_encoder=model)
