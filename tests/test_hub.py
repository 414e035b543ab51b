"""Products on a Hub: a real server on this machine, and the real client."""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_server import READ, WRITE, Hub, Repository, serve_hub, use_hub
from huggingface_hub import constants

from cxr_lightning import hub as module
from cxr_lightning.artifacts import check_product, product_sha256
from cxr_lightning.cli import main
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.hub import find_product, share

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<:DeprecationWarning")  # the client's


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with serve_hub() as hub:
        use_hub(monkeypatch, hub, tmp_path / "cache")
        yield hub


@pytest.fixture
def chest(hub: Hub, products: Path) -> Repository:
    """The generator of the tests, as org/chest."""
    return hub.add("org/chest", products / "generator")


def fails(call: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as info:
        call()
    assert "\n" not in str(info.value)
    assert str(info.value).endswith(".")


def test_a_generator_comes_from_the_hub(chest, products):
    generator = Generator.from_pretrained("org/chest")
    assert generator.manifest["sha256"] == product_sha256(products / "generator")
    local = Generator.from_pretrained(products / "generator")
    assert np.array_equal(
        generator.generate("edema", steps=2).pixels, local.generate("edema", steps=2).pixels
    )


def test_only_a_product_is_downloaded(hub, chest):
    chest.commit(chest.commits[chest.main] | {"evil.py": b"", "data/patients.csv": b""})
    source = find_product("org/chest", "model")
    assert source.commit == chest.main
    there = {str(f.relative_to(source.folder)) for f in source.folder.rglob("*") if f.is_file()}
    assert there == set(chest.commits[chest.main]) - {"evil.py", "data/patients.csv"}
    check_product(source.folder, "generator", "model")


def test_the_command_takes_a_name_and_says_so_in_the_manifest(chest, products, tmp_path):
    flags = ["--condition=edema", "--count=2", "--steps=2", "--device=cpu"]
    main(["generate", "--model=org/chest", f"--out={tmp_path}/a/set", *flags])
    main(["generate", f"--model={products / 'generator'}", f"--out={tmp_path}/b/set", *flags])
    for file in (tmp_path / "a/set").rglob("*.png"):
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()
    manifest = json.loads((tmp_path / "a/set/manifest.json").read_text())
    assert manifest["product"] == {
        "path": "org/chest",
        "sha256": product_sha256(products / "generator"),
        "commit": chest.main,
    }


def test_a_second_time_nothing_is_downloaded_and_no_connection_is_needed(hub, chest, monkeypatch):
    first = find_product("org/chest", "model")
    hub.requests.clear()
    assert find_product("org/chest", "model") == first
    assert not [request for request in hub.requests if "/resolve/" in request]
    hub.requests.clear()
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert find_product("org/chest", "model") == first
    assert not hub.requests
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert find_product("org/chest", "model") == first


def test_a_revision_is_a_commit_of_its_own(hub, chest, products):
    old = chest.main
    files = {f"{'' if f.parent.name == 'uncond' else 'denoiser/'}{f.name}": f.read_bytes()
             for f in (products / "uncond").rglob("*") if f.is_file()}  # fmt: skip
    chest.commit(files)
    assert Generator.from_pretrained("org/chest").autoencoder is None
    generator = Generator.from_pretrained("org/chest", revision=old)
    assert generator.autoencoder is not None
    assert find_product("org/chest", "model", old).commit == old


def test_a_folder_wins_over_the_hub(hub, chest, products, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(products / "uncond", tmp_path / "org" / "chest")
    assert Generator.from_pretrained("org/chest").autoencoder is None
    assert not hub.requests


@pytest.mark.parametrize("model", [Path("org/chest"), "runs/ddpm/product", "./chest", "chest"])
def test_what_is_no_name_is_a_folder(hub, chest, model):
    assert find_product(model, "model") == (Path(model), None)
    assert not hub.requests
    fails(lambda: Generator.from_pretrained(model), "^model: no product at ")


def test_a_revision_of_a_folder_is_refused(products):
    folder = products / "generator"
    fails(lambda: find_product(folder, "model", "main"), "^revision: 'main' is of a model on the")


def test_no_such_model(hub):
    fails(
        lambda: find_product("org/none", "model.generator"),
        "^model.generator: there is no folder org/none, and the Hugging Face Hub has no model "
        "org/none that you may use",
    )


def test_a_private_model_is_for_those_who_may(hub, products, monkeypatch):
    hub.add("org/chest", products / "generator", private=True)
    monkeypatch.setenv("HF_TOKEN", "")
    fails(lambda: find_product("org/chest", "model"), "log in with 'hf auth login'")
    monkeypatch.setenv("HF_TOKEN", READ)
    assert find_product("org/chest", "model").commit


def test_a_model_with_terms(hub, products):
    hub.add("org/chest", products / "generator", gated=True)
    fails(lambda: find_product("org/chest", "model"), f"accept them at {hub.url}/org/chest and log")


def test_no_such_revision(chest):
    fails(lambda: find_product("org/chest", "model", "v9"), "org/chest .* has no revision 'v9'")


@pytest.mark.parametrize("name", ["org/a--b", "org/a..b", "org/chest.git"])
def test_a_name_that_cannot_be(hub, name):
    fails(lambda: find_product(name, "model"), "is no name on the Hugging Face Hub")


def test_a_model_of_something_else(hub, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    hub.add("org/bert", other)
    fails(lambda: find_product("org/bert", "model"), "org/bert .* is no product of cxr_lightning")


def test_a_changed_file_is_noticed(chest):
    files = dict(chest.commits[chest.main])
    files["prior/config.json"] += b" "
    chest.commit(files)
    fails(lambda: Generator.from_pretrained("org/chest"), "were changed after it was made")


def test_another_kind_is_refused(hub, products):
    hub.add("org/encoder", products / "encoder")
    fails(lambda: Generator.from_pretrained("org/encoder"), "kind 'encoder', but 'generator'")


def test_offline_without_a_copy(hub, chest, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails(
        lambda: find_product("org/chest", "model"),
        r"^model: there is no folder org/chest, and .* does not answer at .*HF_HUB_OFFLINE is set",
    )


def test_no_connection_without_a_copy(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    fails(lambda: find_product("org/chest", "model"), "does not answer at http://127.0.0.1:9 for")


def test_a_hub_in_trouble(hub, chest):
    hub.broken["/api/models"] = 418
    fails(lambda: find_product("org/chest", "model"), "does not answer at .* for org/chest")


def test_a_full_disk_is_no_trouble_of_the_hub(chest, monkeypatch, capsys, tmp_path):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "cache"))

    monkeypatch.setattr(module, "snapshot_download", full)
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--model=org/chest", f"--out={tmp_path}/set"])
    assert stop.value.code == 2
    assert "no space is left" in capsys.readouterr().err


FILES = {
    "manifest.json": b"{}",
    "prior/model.safetensors": Path(__file__),
    "README.md": b"# Mine\n",
}
WRITTEN = FILES | {"prior/model.safetensors": Path(__file__).read_bytes()}


def test_files_are_shared_in_one_commit(hub, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"345")
    address = share(FILES | {"b/model.safetensors": weights}, "me/mine", private=False, message="m")
    assert address == f"{hub.url}/me/mine"
    made = hub.repositories["me/mine"]
    assert not made.private
    assert len(made.commits) == 2  # the first is the Hub's own
    assert hub.files("me/mine") == {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        **WRITTEN,
        "b/model.safetensors": b"345",
    }


def test_parts_of_an_earlier_product_go_and_other_files_stay(hub):
    others = {"LICENSE": b"mine", "onnx/config.json": b"{}"}
    share(FILES | {"prior/config.json": b"{}"} | others, "me/mine", private=False, message="1")
    share({"manifest.json": b"[]"}, "me/mine", private=False, message="2")
    files = hub.files("me/mine")
    assert set(files) == {".gitattributes", "manifest.json", "README.md", *others}
    assert files["manifest.json"] == b"[]"


def test_private_stays_private(hub):
    share(FILES, "me/mine", private=True, message="m")
    assert hub.repositories["me/mine"].private
    share(FILES | {"manifest.json": b"[]"}, "me/mine", private=True, message="m")
    assert hub.files("me/mine")["manifest.json"] == b"[]"


def test_what_is_to_be_private_does_not_go_to_a_public_place(hub, tmp_path):
    repository = hub.add("me/mine", tmp_path)
    before = repository.main
    fails(
        lambda: share(FILES, "me/mine", private=True, message="m"),
        "^private: me/mine exists on the Hugging Face Hub and is public",
    )
    assert repository.main == before
    assert not hub.blobs


def test_nobody_is_logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    fails(lambda: share(FILES, "me/mine", private=False, message="m"), "^repo: me/mine .* token")
    assert not hub.requests


def test_somebody_who_may_not_write(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", READ)
    fails(lambda: share(FILES, "me/mine", private=False, message="m"), "that you may use this way")
    repository = hub.add("org/theirs", tmp_path)
    before = repository.main
    fails(lambda: share(FILES, "org/theirs", private=False, message="m"), "use this way")
    assert repository.main == before


@pytest.mark.parametrize("name", ["mine", "a/b/c", "", "https://huggingface.co/me/mine", "me/a--b"])
def test_a_name_that_nothing_can_be_shared_as(hub, name):
    fails(lambda: share(FILES, name, private=False, message="m"), "is no name on the Hugging Face")
    assert not hub.requests


def test_sharing_offline(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    fails(lambda: share(FILES, "me/mine", private=False, message="m"), "HF_HUB_OFFLINE is set")


def test_an_upload_that_breaks_off_leaves_nothing_to_see(hub):
    hub.broken["/upload/"] = 403
    fails(lambda: share(FILES, "me/mine", private=False, message="m"), "^repo: the upload to me/mi")
    assert set(hub.files("me/mine")) == {".gitattributes"}
    del hub.broken["/upload/"]
    share(FILES, "me/mine", private=False, message="m")
    assert WRITTEN.items() <= hub.files("me/mine").items()


def test_the_client_is_the_real_one():
    assert module.snapshot_download is huggingface_hub.snapshot_download
    assert WRITE != READ
