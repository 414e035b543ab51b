"""`cxr evaluate`: how close a synthetic data set is to the real one, condition by condition."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from cxr_lightning import __version__
from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.data.prepared import PreparedDataset, open_prepared
from cxr_lightning.data.vocabulary import HealthCondition, parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.files import atomic_folder
from cxr_lightning.metrics.extractors import build_extractor
from cxr_lightning.metrics.fidelity_axis import fidelity
from cxr_lightning.metrics.inputs import (
    EvaluationInputs,
    RealSplit,
    SyntheticSet,
    read_synthetic,
)
from cxr_lightning.metrics.records import AxisResult
from cxr_lightning.metrics.representation_axis import representation
from cxr_lightning.networks.encoder import Encoder

FORMAT = 1
AXES = (fidelity, representation)
"""What an evaluation consists of; a new axis is a function from the inputs to an `AxisResult`."""

GRID_IMAGES = 8
GRID_COLUMNS = 4


def evaluate(
    real: Path,
    synthetic: Path,
    out: Path,
    encoder: Path | None = None,
    generator: Path | None = None,
    extractor: Literal["inception", "encoder", "fixed"] = "inception",
    extractor_weights: Path | None = None,
    conditions: str | None = None,
    split: RealSplit = "all",
    reconstructions: int = 64,
    bootstrap: int = 200,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Compares a synthetic data set with the real one and writes metrics.json and image grids.

    Per health condition and over all: the Fréchet distance with its 95 % interval over patients and
    its floor between real images. With a generator and an encoder: the reconstructed representation
    score of held-out images, with its calibration.

    Args:
        real: Prepared data set, made by 'cxr prepare'.
        synthetic: Synthetic data set, made by 'cxr generate' or in CheXpert layout (train.csv).
        out: Folder of the evaluation; an earlier evaluation there is replaced.
        encoder: Encoder product, for the representation score.
        generator: Generator product, for the representation score.
        extractor: Network of the Fréchet distance.
        extractor_weights: Its weights: a file for inception, an encoder product for encoder
            (default: the one given as encoder).
        conditions: Health conditions joined by commas (default: those of the synthetic data set).
        split: Split of the real images for the Fréchet distance.
        reconstructions: Held-out real images per condition to reconstruct, at most.
        bootstrap: Draws of each 95 % interval; 0 for none.
        batch_size: Images that a network sees at once.
        seed: Of every random choice.

    Raises:
        UserError: If an argument does not fit; nothing is written then.
    """
    numbers = {"reconstructions": reconstructions, "batch_size": batch_size}
    _check_arguments(real, synthetic, out, numbers, bootstrap)
    prepared = _open_real(real)
    identities = _check_products(encoder, generator)
    loaded = _load_generator(generator, prepared.size) if generator else None
    if extractor == "encoder":
        extractor_weights = extractor_weights or encoder
    features = build_extractor(extractor, extractor_weights)
    drawn = read_synthetic(synthetic, prepared.size)
    chosen = _choose_conditions(conditions, prepared, drawn)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = EvaluationInputs(
        real=prepared,
        synthetic=drawn,
        conditions=chosen,
        extractor=features.to(device),
        encoder=load_network(Encoder, encoder).eval().to(device) if encoder else None,
        encoder_sha256=identities.get("encoder", {}).get("sha256", ""),
        encoder_is_parent=_is_parent(identities),
        generator=loaded.to(device) if loaded else None,
        split=split,
        reconstructions=reconstructions,
        bootstrap=bootstrap,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )
    result = AxisResult()
    for axis in AXES:
        part = axis(inputs)
        result.records += part.records
        result.skipped += part.skipped
        result.grids |= part.grids
    _write(out, inputs, identities, result)


def _check_arguments(
    real: Path, synthetic: Path, out: Path, at_least_one: dict[str, int], bootstrap: int
) -> None:
    for name, value in at_least_one.items():
        if value < 1:
            raise UserError(f"{name}: {value} is too few; give 1 or more.")
    if bootstrap < 0:
        raise UserError(f"bootstrap: {bootstrap} is negative; give 0 (no intervals) or more.")
    if real.resolve() == synthetic.resolve():
        raise UserError(
            f"synthetic: {synthetic} is the real data set too; give the synthetic one's folder."
        )
    if out.exists() and not (out.is_dir() and (_is_evaluation(out) or not any(out.iterdir()))):
        raise UserError(
            f"out: {out} exists and holds no evaluation; give a new folder, or empty this one."
        )


def _open_real(real: Path) -> PreparedDataset:
    try:
        return open_prepared(real)
    except UserError as error:
        raise UserError(str(error).replace("data.root", "real", 1)) from error


def _is_evaluation(folder: Path) -> bool:
    try:
        content = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", "records"} <= set(content)


def _check_products(encoder: Path | None, generator: Path | None) -> dict[str, dict[str, Any]]:
    """Manifests of the products that were given."""
    if generator is not None and encoder is None:
        raise UserError(
            f"generator: {generator} serves the representation score, which needs an encoder too; "
            "give --encoder."
        )
    identities = {}
    for kind, folder in (("encoder", encoder), ("generator", generator)):
        if folder is not None:
            identities[kind] = check_product(folder, kind, kind)
    return identities


def _load_generator(folder: Path, size: int) -> Generator:
    generator = Generator.from_pretrained(folder, "generator")
    if generator.image_size != size:
        raise UserError(
            f"generator: {folder} makes images of {generator.image_size} pixels but the real "
            f"images have {size}; prepare them with --size {generator.image_size}."
        )
    return generator


def _is_parent(identities: dict[str, dict[str, Any]]) -> bool:
    """Whether the generator's manifest names the encoder."""
    if not {"encoder", "generator"} <= set(identities):
        return False
    return identities["encoder"]["sha256"] in json.dumps(identities["generator"])


def _choose_conditions(
    text: str | None, prepared: PreparedDataset, synthetic: SyntheticSet
) -> list[HealthCondition]:
    """The conditions asked for, or the synthetic set's; at least one has images on both sides."""
    if text is None:
        chosen = synthetic.conditions()
    else:
        chosen = [parse_condition(part) for part in text.split(",") if part.strip()]
    both = [c for c in chosen if synthetic.matches(c).any() and c.matches(prepared.table).any()]
    if not both:
        names = ", ".join(c.name for c in chosen) or "none"
        raise UserError(
            f"conditions: no condition ({names}) has both real and synthetic images; name others "
            "with --conditions."
        )
    return list({c.name: c for c in chosen}.values())


def _write(
    out: Path,
    inputs: EvaluationInputs,
    identities: dict[str, dict[str, Any]],
    result: AxisResult,
) -> None:
    if not result.records:
        reasons = "; ".join(f"{s.metric} of {s.condition}: {s.reason}" for s in result.skipped)
        raise UserError(f"out: nothing to write to {out}, as no number could be made ({reasons}).")
    content = {
        "format": FORMAT,
        "version": __version__,
        **_identities(inputs, identities),
        "settings": {
            "split": inputs.split,
            "reconstructions": inputs.reconstructions,
            "bootstrap": inputs.bootstrap,
            "seed": inputs.seed,
        },
        "conditions": [c.name for c in inputs.conditions],
        "records": [record.as_json() for record in result.records],
        "skipped": [asdict(skipped) for skipped in result.skipped],
    }
    with atomic_folder(out) as partial:
        (partial / "grids").mkdir()
        for name, images in (_example_grids(inputs) | result.grids).items():
            make_grid(images).save(partial / "grids" / f"{name}.png")
        text = json.dumps(content, indent=1, allow_nan=False)
        (partial / "metrics.json").write_text(text + "\n")
    print(f"{len(result.records)} records in {out / 'metrics.json'}")


def _identities(inputs: EvaluationInputs, identities: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was compared, by hash and not by path."""
    manifest = inputs.synthetic.manifest
    facts = ("seed", "sampler", "steps", "guidance", "size")
    return {
        "real": {
            "source": inputs.real.header.get("source"),
            "sha256": inputs.real.sha256,
            "size": inputs.real.size,
            "count": len(inputs.real.table),
        },
        "synthetic": {
            "count": len(inputs.synthetic.images),
            "failures": inputs.synthetic.failures,
            "product_sha256": manifest.get("product", {}).get("sha256"),
            **{fact: manifest[fact] for fact in facts if fact in manifest},
        },
        "encoder": identities.get("encoder", {}).get("sha256"),
        "generator": identities.get("generator", {}).get("sha256"),
        "extractor": {
            "name": inputs.extractor.name,
            "sha256": inputs.extractor.sha256,
            "num_features": inputs.extractor.num_features,
        },
    }


def _example_grids(inputs: EvaluationInputs) -> dict[str, UInt8[np.ndarray, "k h w"]]:
    """The first generated images of each condition and real ones drawn at random."""
    grids = {}
    for condition in inputs.conditions:
        generator = np.random.default_rng(inputs.seed)
        rows = np.sort(generator.permutation(inputs.real_rows(condition))[:GRID_IMAGES])
        drawn = np.flatnonzero(inputs.synthetic.matches(condition))[:GRID_IMAGES]
        if len(rows):
            grids[f"{condition.name}_original"] = np.array(inputs.real.images[rows])
        if len(drawn):
            grids[f"{condition.name}_generated"] = inputs.synthetic.images[drawn]
    return grids


def make_grid(images: UInt8[np.ndarray, "k h w"]) -> Image.Image:
    """Images side by side, four a row, one black pixel apart."""
    count, height, width = images.shape
    columns = min(count, GRID_COLUMNS)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1), dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)
