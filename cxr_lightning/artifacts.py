"""Product folders: what a finished stage hands to the next one.

A network's product is a folder with `config.json` (the arguments it is built from),
`model.safetensors` and `manifest.json`. A generator is a folder of three of them, `autoencoder/`,
`prior/` and `denoiser/`, with a manifest of its own. `README.md` is its card: people may edit it,
and it does not count. No pickle: a stranger's product runs no code.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin
from torch import nn

from cxr_lightning import __version__
from cxr_lightning.errors import UserError
from cxr_lightning.files import atomic_folder, sha256_file
from cxr_lightning.model_card import NAME as CARD
from cxr_lightning.model_card import model_card
from cxr_lightning.types import MODEL_RANGE

FORMAT = 3
NETWORK_FILES = ("config.json", "model.safetensors", "manifest.json")
MADE_BY = {
    "autoencoder": "cxr fit --config configs/vae.yaml",
    "generator": "cxr fit --config configs/ddpm.yaml",
    "encoder": "cxr fit --config configs/moco.yaml",
    "classifier": "cxr evaluate --axes condition",
}

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def save_product(
    folder: Path, kind: str, networks: Mapping[str, nn.Module], facts: Mapping[str, Any]
) -> None:
    """Writes a product, replacing an earlier one at once.

    Args:
        folder: Where the product goes.
        kind: `autoencoder`, `encoder`, `generator`, or `classifier`.
        networks: Name to network; for a single network {kind: network}, for a generator its parts.
        facts: What the manifest says beside format, kind, version and hashes: parents, data,
            config, metrics.

    Raises:
        UserError: If the folder holds something else.
    """
    check_replaceable(folder, "folder")
    with atomic_folder(folder) as partial:
        if kind == "generator":
            hashes = {}
            for name, network in networks.items():
                (partial / name).mkdir()
                hashes[name] = _save_network(partial / name, name, network, facts)["sha256"]
            parts = {"parts": hashes, "parameters": _count_parameters(networks)}
            manifest = _write_manifest(partial, kind, _combine(hashes), {**facts, **parts})
        else:
            manifest = _save_network(partial, kind, networks[kind], facts)
        (partial / CARD).write_text(read_card(partial, manifest), encoding="utf-8")


def check_replaceable(folder: Path, argument: str) -> None:
    """Refuses a place for a product where something else would be lost.

    Args:
        folder: Where the product shall go.
        argument: The argument that named it, for the message.

    Raises:
        UserError: If there is a file, or a folder that holds something and is no product.
    """
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / "manifest.json").is_file():
        raise UserError(
            f"{argument}: {folder} is there and is no product, and would be replaced by one; "
            "give a new folder."
        )


def training_sets(manifest: Mapping[str, Any]) -> list[str]:
    """Hashes of the sets of images that a product, and what it was made from, was trained on."""
    sets = [manifest.get("data"), *manifest.get("earlier_data", [])]
    return [*dict.fromkeys(sha256 for sha256 in sets if sha256)]


def ancestors(manifest: Mapping[str, Any]) -> list[str]:
    """Hashes of all products that a product was made from, and of those that these were."""
    return [*dict.fromkeys([*manifest.get("parents", {}).values(), *manifest.get("ancestors", [])])]


def run_name(folder: Path) -> str:
    """What people call a product: its folder, or its run's where that is called `product`."""
    place = folder.resolve()
    return place.parent.name if place.name == "product" else place.name


def check_product(folder: Path, kind: str | None, argument: str) -> dict[str, Any]:
    """Reads a product's manifest after checking that all its files are there and unchanged.

    Args:
        folder: The product.
        kind: What it must be; None for any kind.
        argument: The argument that named the folder, for the message.

    Raises:
        UserError: If the folder or files of it are missing, it is another kind of product, of
            another format or of another value range, or its bytes changed since it was made.
    """
    made_by = MADE_BY.get(kind or "generator", MADE_BY["generator"])
    if not folder.is_dir():
        raise UserError(f"{argument}: no product at {folder}; make it with '{made_by}'.")
    manifest = _read_manifest(folder, argument, made_by)
    if kind is not None and manifest["kind"] != kind:
        raise UserError(
            f"{argument}: {folder} is a product of kind {manifest['kind']!r}, but {kind!r} is "
            f"needed; make one with '{made_by}'."
        )
    files = product_files(manifest)
    missing = sorted(file for file in files if not (folder / file).is_file())
    if missing:
        raise UserError(
            f"{argument}: the product at {folder} lacks {', '.join(missing)}; make it again with "
            f"'{made_by}' or copy the whole folder."
        )
    if manifest["sha256"] != _hash_files(folder, manifest.get("parts", ())):
        raise UserError(
            f"{argument}: the files of the product at {folder} were changed after it was made; "
            f"copy it again or make it with '{made_by}'."
        )
    return manifest


def product_files(manifest: Mapping[str, Any]) -> list[str]:
    """Paths within a product of the files that it consists of, its card aside."""
    parts = manifest.get("parts")
    if not parts:
        return list(NETWORK_FILES)
    return ["manifest.json", *(f"{part}/{name}" for part in parts for name in NETWORK_FILES)]


def read_card(folder: Path, manifest: Mapping[str, Any]) -> str:
    """The card of a product; a new one where it has none, as products of earlier versions.

    Raises:
        UserError: If it is no text.
    """
    file = folder / CARD
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"model: {file} is not UTF-8 ({error}); save it as UTF-8.") from error
    parts = {part: folder / part for part in manifest.get("parts", {})}
    parts = parts or {manifest["kind"]: folder}
    return model_card(manifest, {part: read_config(place) for part, place in parts.items()})


def product_sha256(folder: Path) -> str:
    """Hex sha256 over the files (configs and weights) that make a product what it is."""
    return _hash_files(folder, json.loads((folder / "manifest.json").read_text()).get("parts", ()))


def _hash_files(folder: Path, parts: Iterable[str]) -> str:
    """The same of a product of these parts, or of a single network."""
    hashes = {part: _hash_files(folder / part, ()) for part in parts}
    files = {name: sha256_file(folder / name) for name in NETWORK_FILES[:2]} if not hashes else {}
    return _combine(hashes or files)


def load_network(network_class: type[NetworkT], folder: Path) -> NetworkT:
    """Builds a network from a checked product folder, in eval mode, on the CPU."""
    assert issubclass(network_class, PyTorchModelHubMixin)
    with contextlib.redirect_stdout(io.StringIO()):  # the mixin prints where it loads from
        return network_class.from_pretrained(folder, strict=True, local_files_only=True)


def read_config(folder: Path) -> dict[str, Any]:
    """The arguments that a product's network is built from."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def _save_network(
    folder: Path, kind: str, network: nn.Module, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes one network; returns its manifest."""
    assert isinstance(network, PyTorchModelHubMixin)
    network.save_pretrained(folder)
    (folder / CARD).unlink(missing_ok=True)  # the mixin's generic one
    facts = {**facts, "parameters": _count_parameters({kind: network})}
    return _write_manifest(folder, kind, _hash_files(folder, ()), facts)


def _count_parameters(networks: Mapping[str, nn.Module]) -> dict[str, int]:
    return {name: sum(p.numel() for p in part.parameters()) for name, part in networks.items()}


def _write_manifest(
    folder: Path, kind: str, sha256: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "version": __version__,
        "value_range": MODEL_RANGE,
        "sha256": sha256,
        **facts,
    }
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (folder / "manifest.json").write_text(text)
    written: dict[str, Any] = json.loads(text)
    return written


def _read_manifest(folder: Path, argument: str, made_by: str) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(
            f"{argument}: {folder} is no product, since it has no manifest.json; give the folder "
            f"that '{made_by}' wrote as 'product'."
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        known = manifest["format"] == FORMAT
        manifest["kind"], manifest["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{argument}: {path} is not a product's manifest ({error!r}); copy the product again."
        ) from error
    if not known:
        raise UserError(
            f"{argument}: {folder} has product format {manifest['format']!r}, but this version "
            f"reads format {FORMAT}; make the product again with this version."
        )
    value_range = manifest.get("value_range", [*MODEL_RANGE])
    if value_range != [*MODEL_RANGE]:
        raise UserError(
            f"{argument}: {folder} works on grey values {value_range}, but this version on "
            f"{[*MODEL_RANGE]}; make the product again with this version."
        )
    return manifest


def _combine(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256("".join(f"{k}:{hashes[k]};" for k in sorted(hashes)).encode()).hexdigest()
