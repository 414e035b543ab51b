"""What is checked before an evaluation begins: places, products and networks that were given."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from cxr_lightning.artifacts import ancestors, check_product
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.facts import Identities
from cxr_lightning.evaluation.judge import open_classifier
from cxr_lightning.evaluation.reidentification import load_reidentification
from cxr_lightning.evaluation.synthetic import read_manifest


def check_places(real: Path, synthetic: Path, out: Path) -> None:
    """Refuses a real set in the synthetic one's place, and an `out` where something would go."""
    if real.resolve() == synthetic.resolve() or (synthetic / "images.npy").is_file():
        raise UserError(
            f"synthetic: {synthetic} is a prepared (real) data set; give the synthetic one's "
            "folder of images."
        )
    if out.exists() and not (out.is_dir() and (_is_evaluation(out) or not any(out.iterdir()))):
        raise UserError(
            f"out: {out} exists and holds no evaluation; give a new folder, or empty this one."
        )
    for name, folder in (("real", real), ("synthetic", synthetic)):
        if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
            raise UserError(
                f"out: {out} lies in the {name} data set; give a folder somewhere else."
            )


def check_inputs_stay(out: Path, inputs: Mapping[str, Path | None]) -> None:
    """Refuses inputs within the folder that is replaced when the evaluation is finished."""
    for name, path in inputs.items():
        if path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(
                f"{name}: {path} lies in {out}, which the evaluation replaces; give another --out."
            )


def _is_evaluation(folder: Path) -> bool:
    try:
        content = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", "records"} <= set(content)


def check_products(
    encoder: Path | None,
    encoder_held_out: Path | None,
    generator: Path | None,
    maker: Path | None,
) -> Identities:
    """Manifests of the products that were given, and of the one that made the images."""
    if generator is not None and encoder is None:
        raise UserError(
            f"generator: {generator} serves the representation score, which needs an encoder too; "
            "give --encoder."
        )
    if encoder_held_out is not None and encoder is None:
        raise UserError(
            f"encoder_held_out: {encoder_held_out} stands beside another encoder; give --encoder."
        )
    identities: Identities = {}
    for role, kind, folder in (
        ("encoder", "encoder", encoder),
        ("encoder_held_out", "encoder", encoder_held_out),
        ("generator", "generator", generator),
        ("maker", "generator", maker),
    ):
        if folder is not None:
            identities[role] = check_product(folder, kind, role)
    held_out = identities.get("encoder_held_out", {}).get("sha256")
    used = identities.get("encoder", {}).get("sha256")
    if held_out is not None and (held_out == used or is_parent(identities, "encoder_held_out")):
        raise UserError(
            f"encoder_held_out: {encoder_held_out} is the encoder of --encoder, or the one that "
            "the generator was fine-tuned with; give one that was trained with another "
            "--seed_everything."
        )
    return identities


def is_parent(identities: Identities, role: str) -> bool:
    """Whether the generator was fine-tuned with the encoder of this role, at any time."""
    if not {role, "generator"} <= set(identities):
        return False
    return identities[role]["sha256"] in ancestors(identities["generator"])


def find_maker(synthetic: Path, size: int) -> Path | None:
    """The product that made the images, if it still lies where their manifest says.

    Args:
        synthetic: The synthetic data set.
        size: Side of the real images in pixels; a product of another size is of no use.
    """
    manifest = read_manifest(synthetic)
    product = manifest.get("product", {})
    folder = Path(product.get("path", ""))
    if manifest.get("size") != size:
        return None
    try:
        found = check_product(folder, "generator", "synthetic")["sha256"]
    except UserError:  # moved, or of the Hub
        return None
    return folder if found == product["sha256"] else None


def load_generator(folder: Path, size: int) -> Generator:
    """A checked generator product, which must make images of the real ones' size."""
    generator = Generator.from_pretrained(folder, "generator")
    if generator.image_size != size:
        raise UserError(
            f"generator: {folder} makes images of {generator.image_size} pixels but the real "
            f"images have {size}; prepare them with --size {generator.image_size}."
        )
    return generator


def check_networks(classifier: Path | None, reidentification: Path | None) -> None:
    """Opens the networks of the user once, so that a wrong file is told before work starts."""
    for name, file in (("classifier", classifier), ("reidentification", reidentification)):
        if file is not None and not file.exists():
            raise UserError(f"{name}: there is no {file}; give a file or folder that is there.")
    if classifier is not None:
        open_classifier(classifier)
    if reidentification is not None:
        load_reidentification(reidentification, torch.device("cpu"))
