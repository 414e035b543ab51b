"""The card of a product: true, readable on the Hub, and open to its owner's words."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from cxr_lightning.artifacts import check_product, read_card, save_product
from cxr_lightning.cli import main
from cxr_lightning.errors import UserError
from cxr_lightning.model_card import EVALUATION, PLACEHOLDER, complete_card, model_card, number
from cxr_lightning.networks.classifier import Classifier
from cxr_lightning.types import OBSERVATIONS

COUNTS = dict.fromkeys(OBSERVATIONS, 1000) | {"Edema": 0, "Fracture": 7, "Pneumonia": 5000}
MANIFEST: dict[str, Any] = {
    "format": 3,
    "kind": "generator",
    "version": "1.2.3",
    "sha256": "ab" * 32,
    "parts": {"autoencoder": "1" * 64, "denoiser": "2" * 64, "prior": "3" * 64},
    "parameters": {"autoencoder": 1234, "denoiser": 5678901, "prior": 5},
    "parents": {"autoencoder": "cd" * 32},
    "data": "ef" * 32,
    "dataset": {
        "source": "mixture",
        "origins": ["CheXpert", "NIH | Clinical <Center>"],
        "size": 64,
        "resize": {"filter": "bicubic", "antialias": True},
        "images": 191027,
        "patients": 64540,
        "views": {"AP": 161590, "PA": 29437},
        "projections": {"Frontal": 191027},
        "sexes": {"Male": 100000, "Female": 91027},
        "ages": {"lower quartile": 49.0, "median": 62.0, "upper quartile": 74.0},
    },
    "training_images": COUNTS,
    "training_patients": {o: count // 2 for o, count in COUNTS.items()},
    "step": 200000,
    "metrics": {"ddpm/valid/loss": 0.0123456, "ddpm/valid/fid_inception": 12.3456},
    "config": {
        "seed_everything": 0,
        "model": {
            "class_path": "cxr_lightning.stages.ddpm.DDPM",
            "init_args": {
                "autoencoder": "/home/alice/runs/vae/product",
                "width": 128,
                "multipliers": [1, 2],
                "min_snr_gamma": None,
                "prior": "flow",
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4}},
            },
        },
        "data": {"batch_size": 128, "root": "/home/alice/data", "uncertain": {"Edema": "ones"}},
        "trainer": {"precision": "bf16-mixed", "default_root_dir": "/home/alice/runs"},
    },
}
CONFIGS = {
    "autoencoder": {"image_size": 64, "latent_dim": 128},
    "denoiser": {"image_size": 64, "width": 128},
    "prior": {"kind": "flow"},
}


@pytest.fixture(scope="module")
def card() -> str:
    return model_card(MANIFEST, CONFIGS)


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The tables' cells by their first one."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines}


def test_the_first_lines_are_what_the_hub_reads(card):
    assert card.startswith("---\n")
    data = ModelCard(card).data.to_dict()
    assert data["library_name"] == "cxr_lightning"
    assert data["pipeline_tag"] == "text-to-image"
    assert {"chest-x-ray", "synthetic-data"} <= set(data["tags"])
    assert "license" not in data
    assert yaml.safe_load(card.split("---")[1]) == data


def test_it_says_what_it_is_and_is_not_for(card):
    assert "# Generator of synthetic chest X-rays\n" in card
    assert "in 64 × 64 pixels. Made with cxr_lightning 1.2.3. **Not for diagnosis.**" in card
    assert "arXiv 2201.00308" in section(card, "Method")
    table = rows(section(card, "Method"))
    assert table["denoiser"] == ["5,678,901", "image_size 64, width 128"]


def test_the_training_data_are_those_of_the_manifest(card):
    table = rows(section(card, "Training data"))
    assert table["Source"] == ["mixture (CheXpert, NIH \\| Clinical &lt;Center&gt;)"]
    assert table["Training images"] == ["191,027"]
    assert table["Patients"][0].startswith("64,540")
    assert table["Views"] == ["AP: 161590, PA: 29437; Frontal: 191027"]
    assert table["Age in years"] == ["lower quartile: 49, median: 62, upper quartile: 74"]
    assert table["sha256 of the images"] == ["ef" * 32]
    assert {o: table[o] for o in OBSERVATIONS} == {
        o: [f"{COUNTS[o]:,}", f"{COUNTS[o] // 2:,}"] for o in OBSERVATIONS
    }


def test_the_training_has_its_settings_and_no_path(card):
    text = section(card, "Training")
    assert "200,000 steps of 128 images." in text
    table = rows(text)
    assert table["width"] == ["128"]
    assert table["multipliers"] == ["1, 2"]
    assert table["optimizer"] == ["AdamW"]
    assert table["learning rate"] == ["0.0002"]
    assert table["precision"] == ["bf16-mixed"]
    assert table["uncertain labels"] == ["Edema: ones"]
    assert "min_snr_gamma" not in table
    assert f"- autoencoder: `{'cd' * 32}`" in text
    assert "alice" not in card


def test_the_metrics_are_those_at_export(card):
    table = rows(section(card, "Metrics at export"))
    assert table["ddpm/valid/loss"] == ["0.01235"]
    assert table["ddpm/valid/fid_inception"] == ["12.35"]
    assert "random convolutions" not in card
    with_fixed = MANIFEST | {"metrics": {"ddpm/valid/fid_fixed": 1.0}}
    assert "`fixed`, random convolutions" in model_card(with_fixed, CONFIGS)


def test_the_limits_name_what_was_rare(card):
    text = section(card, "Limits")
    assert "No training image shows Edema: do not ask for it." in text
    assert "Fewer than 100 training images show Fracture (7): " in text
    assert "cxr evaluate --axes privacy" in text
    assert "191,027 images of 64,540 patients (mixture)" in text


def test_the_example_asks_for_what_was_common(card):
    assert "--condition healthy,pneumonia," in card
    assert "edema" not in section(card, "How to use it")
    counts = MANIFEST["training_images"] | {"No Finding": 0}
    ill = model_card(MANIFEST | {"training_images": counts}, CONFIGS)
    assert "--condition pneumonia," in section(ill, "How to use it")


@pytest.mark.parametrize(
    ("stage", "parts", "said", "unsaid"),
    [
        ("vae.VAE", None, "1312.6114", "2201.00308"),
        ("moco.MoCo", None, "1911.05722", "2201.00308"),
        ("finetune.Finetune", ("autoencoder", "denoiser"), "representation loss", "1312.6114"),
        ("ddpm.DDPM", ("denoiser",), "2006.11239", "2201.00308"),
        ("another.Stage", ("denoiser",), "## Method", "arXiv"),
    ],
)
def test_the_method_is_that_of_the_stage(stage, parts, said, unsaid):
    config = {"model": {"class_path": f"cxr_lightning.stages.{stage}", "init_args": {}}}
    made = model_card({**MANIFEST, "parts": dict.fromkeys(parts or ()), "config": config}, CONFIGS)
    assert said in made
    assert unsaid not in made


def test_facts_that_a_product_lacks_are_left_out():
    bare = {k: MANIFEST[k] for k in ("format", "kind", "version", "sha256", "parts")}
    made = model_card(bare, CONFIGS)
    for title in ("Training data", "Training", "Metrics at export"):
        assert f"## {title}\n" not in made
    assert "No training image" not in made
    assert re.search("None|undefined|nan|{}", made) is None
    assert "## Limits" in made


@pytest.mark.parametrize("kind", ["autoencoder", "encoder", "generator"])
def test_python_of_the_card_runs(products, kind, tmp_path, monkeypatch):
    shutil.copytree(products / kind, tmp_path / kind)
    monkeypatch.chdir(tmp_path)
    text = (products / kind / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text.replace(PLACEHOLDER, kind), re.DOTALL)
    assert len(blocks) == 1
    found: dict[str, Any] = {}
    exec(blocks[0], found)
    if kind == "generator":
        assert len(list((tmp_path / "pictures").glob("*.png"))) == 8
    else:
        assert not found[kind].training


@pytest.mark.parametrize("name", ["autoencoder", "encoder", "generator", "classifier"])
def test_commands_of_the_card_parse(products, name, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    folder = products / name
    if name == "classifier":
        folder = tmp_path / name
        save_product(folder, name, {name: Classifier(image_size=32, width=8)}, {})
    text = (folder / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^cxr (.*)$", text, re.MULTILINE)
    assert len(commands) == 1
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as stop:
        main([*shlex.split(commands[0]), "--print_config"])
    assert stop.value.code == 0
    assert yaml.safe_load(said.getvalue())


def test_a_model_that_was_tuned_to_few_steps_says_so(card):
    tuned = MANIFEST | {"sampling": {"sampler": "consistency", "steps": 2}}
    usage = section(model_card(tuned, CONFIGS), "How to use it")
    assert "It was tuned to 2 steps of the sampler `consistency`" in usage
    assert "tuned" not in section(card, "How to use it")


def test_a_text_encoder_is_named_with_what_it_is_for(card):
    assert "--text_encoder" not in card
    manifest = MANIFEST | {"parents": {"autoencoder": "1" * 64, "text_encoder": "9" * 64}}
    made = model_card(manifest, CONFIGS)
    assert f"- text_encoder: `{'9' * 64}`" in made
    assert '--prompt "small left pneumonia" --text_encoder FOLDER' in section(made, "How to use it")


def test_an_evaluation_takes_the_place_of_the_last_one(card):
    first = complete_card(card, "me/mine", "| FID | 1\\2 |")
    assert (
        section(first, "Evaluation").strip() == f"{EVALUATION[0]}\n| FID | 1\\2 |\n{EVALUATION[1]}"
    )
    second = complete_card(first, "me/mine", "other numbers")
    assert "FID | 1" not in second
    assert "other numbers" in section(second, "Evaluation")
    assert section(second, "Limits") == section(card, "Limits")
    assert PLACEHOLDER not in second
    assert 'from_pretrained("me/mine")' in second


def test_without_a_place_for_it_an_evaluation_comes_last():
    text = complete_card("# Mine\n\nWords.\n", "me/mine", "numbers")
    assert (
        text == f"# Mine\n\nWords.\n\n## Evaluation\n\n{EVALUATION[0]}\nnumbers\n{EVALUATION[1]}\n"
    )


def test_words_of_the_owner_stay(card):
    mine = card.replace("## Limits", "## My words\n\nHello & <b>bold</b>.\n\n## Limits")
    mine = mine.replace("inference: false", "inference: false\nlanguage: en\nmine: [1, 2]")
    shared = complete_card(mine, "me/mine", "numbers", "cc-by-4.0")
    assert "Hello & <b>bold</b>." in section(shared, "My words")
    data = ModelCard(shared).data.to_dict()
    assert data["license"] == "cc-by-4.0"
    assert data["language"] == "en"
    assert data["mine"] == [1, 2]
    again = ModelCard(complete_card(shared, "me/mine", license="mit")).data.to_dict()
    assert again == data | {"license": "mit"}


def test_a_card_without_first_lines_gets_a_license():
    with contextlib.redirect_stderr(io.StringIO()):  # the Hub's library says that there are none
        shared = complete_card("# Mine\n", "me/mine", license="mit")
    assert ModelCard(shared).data.to_dict() == {"license": "mit"}
    assert shared.endswith("# Mine\n")


@pytest.mark.parametrize("lines", ["- 1", "a: [1", "a: b: c"])
def test_first_lines_that_are_no_yaml_are_named(lines):
    with pytest.raises(UserError, match=r"^license: the first lines of README\.md") as info:
        complete_card(f"---\n{lines}\n---\n# Mine\n", "me/mine", license="mit")
    assert "\n" not in str(info.value)


def test_an_older_product_gets_the_card_of_its_facts(products, tmp_path):
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    (folder / "README.md").unlink()
    manifest = check_product(folder, "generator", "model")
    manifest |= {"training_images": {"Edema": 3}, "data": "aa"}
    del manifest["parameters"]
    made = read_card(folder, manifest)
    assert rows(section(made, "Training data"))["Edema"] == ["3", "–"]
    assert rows(section(made, "Method"))["denoiser"][0] == "–"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.01235"), (1234567.0, "1.235e+06"), (2.0, "2")]
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text
