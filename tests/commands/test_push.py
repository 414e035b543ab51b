"""`cxr push`: a product, its card and an evaluation go to a Hub on this machine."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluation_writer import full_metrics
from hub_server import Hub, serve_hub, use_hub
from huggingface_hub import ModelCard

from cxr_lightning.artifacts import check_product, product_sha256
from cxr_lightning.cli import main
from cxr_lightning.diffusion.generator import Generator

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")  # the client's


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as hub:
        use_hub(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.fixture
def model(products: Path, tmp_path: Path) -> Path:
    """A generator that says where it comes from."""
    folder = shutil.copytree(products / "generator", tmp_path / "product")
    config = {
        "data": {"root": "/home/alice/hospital/data"},
        "model": {"init_args": {"width": 8, "drop_condition": 0.1}},
        "trainer": {"callbacks": [{"folder": "~/alice"}], "default_root_dir": "runs/ddpm"},
    }
    dataset = {"source": "chexpert", "origins": ["CheXpert"]}
    for file in folder.rglob("manifest.json"):
        manifest = json.loads(file.read_text()) | {"config": config, "dataset": dataset}
        file.write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def evaluate(tmp_path: Path) -> Callable[..., Path]:
    """Writes an evaluation of the images of a product."""

    def make(made_by: str | None, generator: str | None = None, **changes: Any) -> Path:
        content = full_metrics(**changes)
        content["synthetic"]["product_sha256"] = made_by
        content["generator"] = generator
        folder = tmp_path / "evaluation"
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(content))
        return folder

    return make


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["push", *map(str, args)])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_what_is_pushed_can_be_used_by_its_name(hub, model, capsys):
    main(["push", f"--model={model}", "--repo=me/chest"])
    said = capsys.readouterr().out
    assert said.startswith(f"generator in {hub.url}/me/chest\n")
    assert "It was trained on chexpert, CheXpert: see that its terms" in said
    generator = Generator.from_pretrained("me/chest")
    assert generator.manifest["sha256"] == product_sha256(model)
    local = Generator.from_pretrained(model)
    assert np.array_equal(
        generator.generate("edema", steps=2).pixels, local.generate("edema", steps=2).pixels
    )
    assert not hub.repositories["me/chest"].private


@pytest.mark.parametrize("kind", ["autoencoder", "encoder"])
def test_every_kind_can_be_shared(hub, products, kind, tmp_path, capsys):
    main(["push", f"--model={products / kind}", f"--repo=me/{kind}", "--private"])
    assert hub.repositories[f"me/{kind}"].private
    assert capsys.readouterr().out.startswith(f"{kind} in ")
    for path, content in hub.files(f"me/{kind}").items():
        (tmp_path / path).write_bytes(content)
    assert check_product(tmp_path, kind, "model")["sha256"] == product_sha256(products / kind)


def test_the_card_goes_along_with_the_owners_words(hub, model):
    card = (model / "README.md").read_text(encoding="utf-8")
    (model / "README.md").write_text(card + "\nMore: ü.\n", encoding="utf-8")
    before = {f: f.read_bytes() for f in model.rglob("*") if f.is_file()}
    main(["push", f"--model={model}", "--repo=me/chest", "--license=cc-by-nc-4.0"])
    shared = hub.files("me/chest")["README.md"].decode()
    assert shared.endswith("\nMore: ü.\n")
    assert 'from_pretrained("me/chest")' in shared
    assert ModelCard(shared).data.to_dict()["license"] == "cc-by-nc-4.0"
    assert "Not yet evaluated" in shared
    assert {f: f.read_bytes() for f in model.rglob("*") if f.is_file()} == before


def test_what_the_card_lacks_is_said(hub, model, evaluate, capsys):
    pushed = ["push", f"--model={model}", "--repo=me/chest"]
    folder = evaluate(product_sha256(model))
    for flags, said in (
        ([], "no licence and no evaluation"),
        ([f"--evaluation={folder}"], "no licence"),
        (["--license=mit"], "no evaluation"),
    ):
        main([*pushed, *flags])
        assert f"its card there has {said}; push again" in capsys.readouterr().out
    main([*pushed, f"--evaluation={folder}", "--license=mit"])
    assert "its card there" not in capsys.readouterr().out


def test_a_product_of_an_earlier_version_gets_a_card(hub, model):
    (model / "README.md").unlink()
    for file in model.rglob("manifest.json"):
        manifest = json.loads(file.read_text())
        del manifest["dataset"], manifest["parameters"]
        file.write_text(json.dumps(manifest))
    main(["push", f"--model={model}", "--repo=me/chest"])
    assert "# Generator of synthetic chest X-rays" in hub.files("me/chest")["README.md"].decode()


def test_the_headline_of_an_evaluation_enters_the_card(hub, model, evaluate, tmp_path):
    sha256 = product_sha256(model)
    folder = evaluate(sha256, sha256)
    main(["push", f"--model={model}", "--repo=me/chest", f"--evaluation={folder}"])
    shared = hub.files("me/chest")["README.md"].decode()
    main(["report", f"--evaluation={folder}", f"--out={tmp_path}/report.html"])
    report = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    start = report.index("| Axis | In words | Key number | Real images |")
    table = "\n".join(report[start : start + 7])  # five axes
    evaluation = shared.split("## Evaluation\n")[1].split("\n## ")[0]
    assert table in evaluation
    assert table.count("\n| ") == 6
    assert "Not yet evaluated" not in shared


def test_whether_copies_could_be_found_is_known_from_the_product(hub, model, evaluate):
    """Also where the evaluation was not given the generator."""
    manifest = json.loads((model / "manifest.json").read_text()) | {"data": "ff" * 32}
    (model / "manifest.json").write_text(json.dumps(manifest))
    folder = evaluate(product_sha256(model))
    content = json.loads((folder / "metrics.json").read_text())
    del content["real"]["is_training_data"]
    (folder / "metrics.json").write_text(json.dumps(content))
    main(["push", f"--model={model}", "--repo=me/chest", f"--evaluation={folder}"])
    shared = hub.files("me/chest")["README.md"].decode()
    assert "Not known: the generator was trained on other images than these" in shared
    assert "no sign of copying" not in shared.lower()
    manifest |= {"earlier_data": [content["real"]["sha256"]]}
    (model / "manifest.json").write_text(json.dumps(manifest))
    main(["push", f"--model={model}", "--repo=me/chest", f"--evaluation={folder}"])
    assert "a set that it was trained on" in hub.files("me/chest")["README.md"].decode()


def test_the_split_that_was_measured_is_named(hub, model, evaluate):
    settings = {"split": "test", "bootstrap": 200, "seed": 0}
    folder = evaluate(product_sha256(model), settings=settings)
    main(["push", f"--model={model}", "--repo=me/chest", f"--evaluation={folder}"])
    shared = hub.files("me/chest")["README.md"].decode()
    assert "Against the 240 images of the split test of real ones, a set that it was" in shared


def test_a_licence_that_the_hub_does_not_know(hub, model, capsys):
    said = fails(capsys, f"--model={model}", "--repo=me/chest", "--license=proprietary")
    assert "license: the Hugging Face Hub refuses the first lines of the card" in said
    assert "give a licence that it knows" in said


@pytest.mark.parametrize(
    ("made_by", "generator"), [("cd" * 32, None), (None, None), ("own", "cd" * 32), (None, "own")]
)
def test_an_evaluation_of_something_else_is_refused(
    hub, model, evaluate, capsys, made_by, generator
):
    own = product_sha256(model)
    given = [own if sha == "own" else sha for sha in (made_by, generator)]
    folder = evaluate(*given)
    said = fails(capsys, f"--model={model}", "--repo=me/chest", f"--evaluation={folder}")
    named = "product cdcdcdcd" if "cd" * 32 in given else "a product that it does not name"
    assert f"evaluation: {folder} measured {named}, and {model} is {own[:8]};" in said
    assert not hub.requests


def test_paths_of_this_machine_stay_here(hub, model):
    main(["push", f"--model={model}", "--repo=me/chest"])
    files = hub.files("me/chest")
    assert not [path for path, content in files.items() if b"hospital" in content]
    for path in ("manifest.json", "prior/manifest.json"):
        own = json.loads((model / path).read_text())
        own["config"]["data"]["root"] = "data"
        own["config"]["trainer"]["default_root_dir"] = "ddpm"  # a relative one too
        own["config"]["trainer"]["callbacks"][0]["folder"] = "alice"
        assert json.loads(files[path]) == own


def test_texts_of_the_folder_go_along_and_nothing_else(hub, model, tmp_path, capsys):
    (model / "LICENSE").write_text("mine")
    (model / "evaluation" / "grids").mkdir(parents=True)
    (model / "evaluation" / "grids" / "healthy_original.png").write_text("secret")
    (tmp_path / "diary").write_text("secret")
    (model / "notes.txt").symlink_to(tmp_path / "diary")
    (model / ".cache").mkdir()
    (model / ".cache" / "token").write_text("secret")
    (model / ".DS_Store").write_text("secret")
    main(["push", f"--model={model}", "--repo=me/chest"])
    files = hub.files("me/chest")
    assert files["LICENSE"] == b"mine"
    left = (
        "not sent, since it is no part of the product: evaluation/grids/healthy_original.png, notes"
    )
    assert left in capsys.readouterr().out
    assert not [path for path, content in files.items() if content == b"secret"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "/nowhere"}, "model: no product at /nowhere"),
        ({"repo": "mine"}, "repo: 'mine' is no name on the Hugging Face Hub"),
        ({"evaluation": "/nowhere"}, "evaluation: no metrics.json in /nowhere"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(hub, model, capsys, change, message):
    given = {"model": model, "repo": "me/chest"} | change
    assert message in fails(capsys, *(f"--{name}={value}" for name, value in given.items()))
    assert not hub.requests


def test_a_changed_product_is_refused(hub, model, capsys):
    (model / "prior" / "config.json").write_text("{}")
    assert "were changed" in fails(capsys, f"--model={model}", "--repo=me/chest")
    assert not hub.requests


def test_nobody_is_logged_in(hub, model, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    said = fails(capsys, f"--model={model}", "--repo=me/chest")
    assert "repo: me/chest cannot be written without a token; log in with 'hf auth login'" in said


def test_no_connection(hub, model, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    said = fails(capsys, f"--model={model}", "--repo=me/chest")
    assert "repo: the Hugging Face Hub does not answer at http://127.0.0.1:9 for me/chest" in said
