"""The classifier that judges synthetic images: trained here, or given by the user."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32

from cxr_lightning.artifacts import check_product, load_network, save_product
from cxr_lightning.data.dataset import table_condition
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.classification import (
    AGE,
    MAX_SIZE,
    POLICY,
    both_classes,
    fit_classifier,
    predict,
    training_key,
)
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.operating_points import OperatingPoint, operating_points
from cxr_lightning.evaluation.records import Source
from cxr_lightning.files import sha256_file
from cxr_lightning.networks.classifier import Classifier, GivenClassifier
from cxr_lightning.networks.torchscript import load_torchscript
from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition


class Judge(NamedTuple):
    """A classifier and what a record says of it.

    Attributes:
        network: In eval mode, on its device.
        source: Where its numbers come from.
        fields: The fields of `FIELDS` that it can tell.
        points: Operating point of each field that has one; None where nobody measured any.
        size: Side of the images that it was trained on; None where that is unknown.
    """

    network: Classifier | GivenClassifier
    source: Source
    fields: tuple[str, ...]
    points: dict[str, OperatingPoint] | None = None
    size: int | None = None


def choose_judge(inputs: EvaluationInputs) -> Judge:
    """The classifier that the user gave, or one trained on the training split."""
    if inputs.classifier is not None:
        judge = open_classifier(inputs.classifier)
    else:
        judge = _trained(inputs)
    return judge._replace(network=judge.network.to(inputs.device))


def open_classifier(path: Path, argument: str = "classifier") -> Judge:
    """Opens a classifier of the user.

    Args:
        path: A product folder of kind `classifier`, or a TorchScript file; see `GivenClassifier`.
        argument: The argument that named it, for error messages.

    Raises:
        UserError: If it is neither.
    """
    if path.is_dir():
        manifest = check_product(path, "classifier", argument)
        return _of_product(path, manifest)
    if not path.is_file():
        raise UserError(
            f"{argument}: no file or folder {path}; give a product of kind classifier or a "
            "TorchScript file, or leave the argument out."
        )
    try:
        network = load_torchscript(path)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{argument}: {path} is no TorchScript file; make one with torch.jit.save."
        ) from error
    source = Source("classifier", sha256_file(path), "grey values to 0 to 1")
    return Judge(GivenClassifier(network), source, OBSERVATIONS)


def _trained(inputs: EvaluationInputs) -> Judge:
    """The built-in classifier, kept as a product; trained where there is none for this key."""
    folder = inputs.work / "classifier"
    rows = inputs.split_rows("train")
    known = table_condition(inputs.real.table, POLICY)
    settings: dict[str, Any] = {
        "steps": inputs.settings.classifier_steps,
        "seed": inputs.settings.seed,
        "image_size": min(inputs.real.size, MAX_SIZE),
    }
    key = training_key(inputs.real.sha256, rows, known, inputs.device, settings)
    manifest = _read_kept(folder)
    if manifest.get("key") != key or "operating_points" not in manifest:
        steps = settings["steps"]
        print(f"condition: the classifier is trained on {len(rows)} images for {steps} steps")
        network = fit_classifier(inputs.real.images, rows, known, device=inputs.device, **settings)
        learned = [FIELDS[field] for field in np.flatnonzero(both_classes(known, rows))]
        if known.rows(torch.from_numpy(rows)).known[:, AGE].any():
            learned.append(FIELDS[AGE])
        points = _operating_points(inputs, network, known, learned)
        facts = {
            "key": key,
            "fields": learned,
            "data": {"sha256": inputs.real.sha256, "size": inputs.real.size},
            "operating_points": {field: asdict(point) for field, point in points.items()},
        }
        save_product(folder, "classifier", {"classifier": network.cpu()}, facts)
        manifest = check_product(folder, "classifier", "classifier")
    return _of_product(folder, manifest)


def _operating_points(
    inputs: EvaluationInputs, network: Classifier, known: Condition, learned: list[str]
) -> dict[str, OperatingPoint]:
    """Those on all held-out real images."""
    rows = inputs.split_rows("held_out")
    said = predict(network, inputs.real.images, rows, inputs.settings.batch_size, inputs.device)
    return operating_points(said, known, rows, learned)


def _read_kept(folder: Path) -> dict[str, Any]:
    """Manifest of a whole product; empty where there is none."""
    try:
        return check_product(folder, "classifier", "classifier")
    except UserError:
        return {}


def _of_product(folder: Path, manifest: dict[str, Any]) -> Judge:
    network = load_network(Classifier, folder).eval()
    preprocessing = f"{network.image_size} pixels, grey values to -1 to 1"
    source = Source("classifier", manifest["sha256"], preprocessing)
    points = None
    if "operating_points" in manifest:
        stated = manifest["operating_points"].items()
        points = {field: OperatingPoint(**point) for field, point in stated}
    fields = tuple(manifest.get("fields", FIELDS))
    return Judge(network, source, fields, points, manifest.get("data", {}).get("size"))


def stuck(probability: Float32[np.ndarray, "n 17"]) -> Bool[np.ndarray, " 17"]:
    """Fields whose answer is the same for every image (torchxrayvision issue 106)."""
    same: Bool[np.ndarray, " 17"] = np.ptp(probability, axis=0) < 1e-6
    return same
