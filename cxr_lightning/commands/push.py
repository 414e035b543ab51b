"""`cxr push`: a product with its card to the Hugging Face Hub."""

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cxr_lightning.artifacts import check_product, product_files, read_card, training_sets
from cxr_lightning.errors import UserError
from cxr_lightning.hub import share
from cxr_lightning.model_card import NAME, complete_card, missing_facts
from cxr_lightning.report.read import read_evaluations

TEXTS = ("license*", "licence*", "notice*", "citation*", "*.md", "*.txt")
SHOWN = 5
"""Names of files that stay, in what is printed."""


def push(
    model: Path,
    repo: str,
    evaluation: Path | None = None,
    license: str | None = None,
    private: bool = False,
) -> None:
    """Uploads a product to the Hugging Face Hub, in one commit, and prints its address.

    Its card (README.md) goes with it, as you edited it, and so do texts beside it, such as LICENSE;
    anything else in the folder stays. Paths of this machine in its manifests are cut to their last
    part. Others use it by its name: cxr generate --model ORG/NAME.

    Args:
        model: Folder of a product, of any stage.
        repo: Where it goes, as org/name; made where it does not exist.
        evaluation: Folder made by 'cxr evaluate' of this generator's images; its headline goes into
            the card.
        license: Its licence on the Hub, such as cc-by-nc-4.0; by default what README.md beside the
            product says. That file stays as it is: give licence and evaluation at each push.
        private: Whether only you and your organisation may see it.
    """
    manifest = check_product(model, None, "model")
    headline = None if evaluation is None else _headline(evaluation, model, manifest)
    card = complete_card(read_card(model, manifest), repo, headline, license)
    files: dict[str, Path | bytes] = {
        path: _without_paths(model / path) if path.endswith("manifest.json") else model / path
        for path in product_files(manifest)
    }
    texts = {f.name: f for f in sorted(model.iterdir()) if _is_text(f)}
    content = {**texts, **files, NAME: card.encode()}
    message = f"{manifest['kind']} {manifest['sha256'][:8]}"
    address = share(content, repo, private=private, message=message)
    present = {str(f.relative_to(model)) for f in model.rglob("*") if f.is_file()}
    if left := sorted(p for p in present - {*content, *_cards(manifest)} if p[0] != "."):
        more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
        print(f"not sent, since it is no part of the product: {', '.join(left[:SHOWN])}{more}")
    print(f"{manifest['kind']} in {address}")
    if lacking := missing_facts(card):
        print(f"its card there has no {' and no '.join(lacking)}; push again to add what you have")
    print(
        f"It was trained on {_source(manifest)}: see that its terms let you share what was made "
        "from it, and measure whether it repeats patients (cxr evaluate --axes privacy)."
    )


def _is_text(file: Path) -> bool:
    """Whether a file is one that people put beside a product to share it."""
    named = any(fnmatch(file.name.lower(), pattern) for pattern in TEXTS)
    return named and file.name[0] != "." and file.is_file() and not file.is_symlink()


def _cards(manifest: dict[str, Any]) -> list[str]:
    return [f"{part}/{NAME}" for part in manifest.get("parts", {})]


def _headline(folder: Path, model: Path, manifest: dict[str, Any]) -> str:
    """What an evaluation of this product says, as Markdown."""
    read = read_evaluations([folder])[0]
    wanted = manifest["sha256"]
    made_by, generator = read.look_up("synthetic", "product_sha256"), read.look_up("generator")
    if made_by != wanted or generator not in (None, wanted):
        other = next((sha for sha in (made_by, generator) if sha not in (None, wanted)), None)
        of = f"product {other[:8]}" if other else "a product that it does not name"
        raise UserError(
            f"evaluation: {folder} measured {of}, and {model} is {wanted[:8]}; give an evaluation "
            "of images that this product made."
        )
    from cxr_lightning.report.render import render_headline  # its template engine takes a while

    real = read.metrics["real"]
    if real.get("is_training_data") is None and (sets := training_sets(manifest)):
        real["is_training_data"] = real.get("sha256") in sets
    split = read.look_up("settings", "split")
    count = real.get("splits", {}).get(split)
    if count is None:
        of = f"{real.get('count', '?')} real images"
    else:
        of = f"the {count} images of the split {split} of real ones"
    trained = ", a set that it was trained on" if real.get("is_training_data") else ""
    return f"Against {of}{trained}.\n\n{render_headline(read)}"


def _source(manifest: dict[str, Any]) -> str:
    dataset = manifest.get("dataset", {})
    names = [
        dataset.get("source", "data that its manifest does not name"),
        *dataset.get("origins", []),
    ]
    return ", ".join(dict.fromkeys(names))


PATHS = {
    "autoencoder",
    "ckpt_path",
    "default_root_dir",
    "dirpath",
    "encoder",
    "encoder_held_out",
    "encoders",
    "folder",
    "generator",
    "imagenet",
    "probabilities",
    "root",
    "save_dir",
    "text_encoder",
    "weights",
}
"""Settings that hold paths, which may be relative."""


def _without_paths(file: Path) -> bytes:
    """A manifest without the folders of this machine, which tell names of people and projects."""
    return (
        json.dumps(_cut(json.loads(file.read_text())), indent=1, sort_keys=True) + "\n"
    ).encode()


def _cut(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _cut(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_cut(part, key) for part in value]
    is_path = isinstance(value, str) and (Path(value).is_absolute() or value.startswith("~"))
    return Path(value).name if is_path or (isinstance(value, str) and key in PATHS) else value
