"""Products: written whole, read only if whole and unchanged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cxr_lightning import artifacts
from cxr_lightning.artifacts import (
    ancestors,
    check_product,
    load_network,
    product_sha256,
    read_card,
    read_config,
    save_product,
)
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.priors import LatentPrior
from cxr_lightning.errors import UserError
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.networks.encoder import Encoder

KINDS = [("autoencoder", "autoencoder"), ("encoder", "encoder"), ("generator", "generator")]


@pytest.fixture
def copy(products: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a product, to be broken."""

    def make(name: str) -> Path:
        return shutil.copytree(products / name, tmp_path / name)

    return make


@pytest.mark.parametrize(("name", "kind"), [*KINDS, ("uncond", "generator")])
def test_a_whole_product_passes_and_gives_its_manifest(products, name, kind):
    manifest = check_product(products / name, kind, "model")
    assert manifest["format"] == 3
    assert manifest["kind"] == kind
    assert manifest["sha256"] == product_sha256(products / name)


def test_a_network_comes_back_with_its_arguments_weights_and_mode(products, make_autoencoder):
    loaded = load_network(Autoencoder, products / "autoencoder")
    state, expected = loaded.state_dict(), make_autoencoder().state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[k], expected[k]) for k in state)
    assert not loaded.training
    assert read_config(products / "autoencoder")["latent_dim"] == 6


def test_an_encoder_keeps_its_batch_norm_statistics(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(image_size=16, width=4, backbone="small", dim=8).train()
    encoder(torch.rand(8, 1, 16, 16))
    save_product(tmp_path / "p", "encoder", {"encoder": encoder}, {})
    loaded = load_network(Encoder, tmp_path / "p")
    state = encoder.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in loaded.state_dict().items())


def test_loading_prints_nothing(products, capsys):
    load_network(Autoencoder, products / "autoencoder")
    assert capsys.readouterr() == ("", "")


def test_a_product_holds_its_card_and_no_pickle(products):
    files = sorted(
        str(f.relative_to(products / "generator"))
        for f in (products / "generator").rglob("*")
        if f.is_file()
    )
    parts = ("autoencoder", "denoiser", "prior")
    names = ("config.json", "manifest.json", "model.safetensors")
    expected = ["README.md", "manifest.json", *(f"{p}/{n}" for p in parts for n in names)]
    assert files == sorted(expected)


@pytest.mark.parametrize("name", ["autoencoder", "generator"])
def test_the_card_does_not_count_in_the_hash(copy, name):
    folder = copy(name)
    before = product_sha256(folder)
    (folder / "README.md").write_text("my own words")
    manifest = check_product(folder, name, "model")
    assert manifest["sha256"] == product_sha256(folder) == before
    assert read_card(folder, manifest) == "my own words"


@pytest.mark.parametrize("name", ["autoencoder", "encoder", "generator", "uncond"])
def test_a_product_without_a_card_is_whole_and_gets_the_same_one(copy, name):
    folder = copy(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").unlink()
    manifest = check_product(folder, None, "model")
    assert read_card(folder, manifest) == card


def test_a_card_that_is_no_text_is_named(copy):
    folder = copy("encoder")
    (folder / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"^model: .*README\.md is not UTF-8"):
        read_card(folder, check_product(folder, "encoder", "model"))


def test_parameters_are_counted(products):
    manifest = check_product(products / "generator", "generator", "model")
    generator = Generator.from_pretrained(products / "generator")
    for part, count in manifest["parameters"].items():
        network = getattr(generator, part)
        assert count == sum(weights.numel() for weights in network.parameters())
    assert set(manifest["parameters"]) == {"autoencoder", "prior", "denoiser"}


@pytest.mark.parametrize("part", ["autoencoder", "prior", "denoiser"])
def test_the_parts_of_a_generator_are_products_themselves(products, part):
    manifest = check_product(products / "generator" / part, part, "model")
    generator = check_product(products / "generator", "generator", "model")
    assert generator["parts"][part] == manifest["sha256"]


def test_facts_are_in_the_manifest(tmp_path):
    facts = {"parents": {"autoencoder": "ab"}, "step": 3, "metrics": {"loss": 0.5}}
    save_product(tmp_path / "p", "prior", {"prior": LatentPrior(latent_dim=2)}, facts)
    manifest = check_product(tmp_path / "p", "prior", "model")
    assert {k: manifest[k] for k in facts} == facts


def test_hash_depends_on_weights_and_arguments_not_on_facts_or_place(tmp_path, make_autoencoder):
    hashes = []
    for name, seed, facts in (("a", 0, {}), ("b", 0, {"step": 1}), ("c", 1, {})):
        save_product(tmp_path / name, "autoencoder", {"autoencoder": make_autoencoder(seed)}, facts)
        hashes.append(product_sha256(tmp_path / name))
    assert hashes[0] == hashes[1] != hashes[2]


def test_no_folder(tmp_path):
    with pytest.raises(UserError, match=r"^model\.x: no product at .*'cxr fit .*vae\.yaml'\.$"):
        check_product(tmp_path / "none", "autoencoder", "model.x")


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="no product at"):
        check_product(tmp_path / "file", "autoencoder", "model.x")


def test_a_folder_that_is_no_product(tmp_path):
    with pytest.raises(UserError, match=r"no product, since it has no manifest\.json"):
        check_product(tmp_path, "encoder", "model.x")


def test_another_value_range(copy):
    folder = copy("encoder")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["value_range"] == [-1.0, 1.0]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"value_range": [0.0, 1.0]}))
    with pytest.raises(UserError, match=r"^model: .* works on grey values \[0.0, 1.0\], but"):
        check_product(folder, "encoder", "model")
    del manifest["value_range"]  # products of this format have no other
    (folder / "manifest.json").write_text(json.dumps(manifest))
    check_product(folder, "encoder", "model")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": 1}', "\x00"])
def test_a_manifest_that_is_none(copy, text):
    folder = copy("autoencoder")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="is not a product's manifest"):
        check_product(folder, "autoencoder", "model.x")


def test_a_manifest_that_is_no_text(copy):
    folder = copy("autoencoder")
    (folder / "manifest.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(UserError, match="is not a product's manifest"):
        check_product(folder, "autoencoder", "model.x")


def test_another_format(copy):
    folder = copy("autoencoder")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UserError, match="has product format 99, but this version reads format 3"):
        check_product(folder, "autoencoder", "model.x")


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_another_kind(products, name, kind):
    wanted = "encoder" if kind != "encoder" else "generator"
    with pytest.raises(UserError, match=f"kind '{kind}', but '{wanted}' is needed"):
        check_product(products / name, wanted, "model.x")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("autoencoder", "config.json"),
        ("autoencoder", "model.safetensors"),
        ("generator", "denoiser/model.safetensors"),
        ("generator", "prior/manifest.json"),
    ],
)
def test_a_missing_file_is_named(copy, name, file):
    folder = copy(name)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"lacks {file}; "):
        check_product(folder, name, "model.x")


def test_a_missing_part_is_named(copy):
    folder = copy("generator")
    shutil.rmtree(folder / "prior")
    with pytest.raises(UserError, match=r"lacks prior/config\.json"):
        check_product(folder, "generator", "model.x")


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("encoder", "config.json"),
        ("encoder", "model.safetensors"),
        ("generator", "autoencoder/config.json"),
        ("generator", "prior/model.safetensors"),
    ],
)
@pytest.mark.parametrize("position", [0, -1])
def test_one_changed_byte_is_noticed(copy, name, file, position):
    folder = copy(name)
    data = bytearray((folder / file).read_bytes())
    data[position] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(UserError, match="were changed after it was made"):
        check_product(folder, name, "model.x")


def test_a_folder_of_the_name_of_a_part_hides_no_change(copy):
    folder = copy("encoder")
    shutil.copytree(folder, folder.parent / "denoiser")
    (folder.parent / "denoiser").rename(folder / "denoiser")
    (folder / "prior").mkdir()
    assert check_product(folder, "encoder", "model.x")["kind"] == "encoder"
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(UserError, match="were changed after it was made"):
        check_product(folder, "encoder", "model.x")


def test_weights_that_do_not_fit_the_arguments_do_not_load(copy):
    folder = copy("autoencoder")
    weights = load_file(folder / "model.safetensors")
    del weights["decoder.0.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"decoder\.0\.bias"):
        load_network(Autoencoder, folder)


def test_a_mistake_of_the_user_is_one_sentence(copy, products, tmp_path):
    folder = copy("encoder")
    (folder / "config.json").unlink()
    for place in (folder, products / "generator", tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as info:
            check_product(place, "encoder", "model.encoder")
        text = str(info.value)
        assert text.startswith("model.encoder: ")
        assert text.endswith(".")
        assert "\n" not in text


def test_generator_errors_name_the_argument(products):
    with pytest.raises(UserError, match=r"^model\.generator: "):
        Generator.from_pretrained(products / "encoder", "model.generator")


def test_a_new_product_replaces_the_old_one(tmp_path, make_autoencoder):
    folder = tmp_path / "p"
    save_product(folder, "autoencoder", {"autoencoder": make_autoencoder(0)}, {})
    before = product_sha256(folder)
    (folder / "stray").write_text("x")
    save_product(folder, "autoencoder", {"autoencoder": make_autoencoder(1)}, {})
    assert check_product(folder, "autoencoder", "m")["sha256"] != before
    assert not (folder / "stray").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_what_is_no_product_is_not_replaced(tmp_path, make_autoencoder):
    (tmp_path / "run").mkdir()
    networks = {"autoencoder": make_autoencoder(0)}
    save_product(tmp_path / "run", "autoencoder", networks, {})  # an empty folder is free
    (tmp_path / "run/manifest.json").unlink()
    (tmp_path / "file").write_text("mine")
    for place in ("run", "file"):
        with pytest.raises(UserError, match="is there and is no product"):
            save_product(tmp_path / place, "autoencoder", networks, {})
    assert (tmp_path / "run/model.safetensors").is_file()
    assert (tmp_path / "file").read_text() == "mine"


def test_ancestors_are_parents_and_theirs():
    assert ancestors({}) == []
    facts = {"parents": {"generator": "a", "encoder": "b"}, "ancestors": ["b", "c"]}
    assert ancestors(facts) == ["a", "b", "c"]


def test_a_failed_save_leaves_the_old_product(tmp_path, make_autoencoder, monkeypatch):
    folder = tmp_path / "p"
    save_product(folder, "autoencoder", {"autoencoder": make_autoencoder(0)}, {})
    before = product_sha256(folder)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(artifacts, "_write_manifest", fail)
    with pytest.raises(OSError, match="disk full"):
        save_product(folder, "autoencoder", {"autoencoder": make_autoencoder(1)}, {})
    assert check_product(folder, "autoencoder", "m")["sha256"] == before
    assert list(tmp_path.iterdir()) == [folder]
