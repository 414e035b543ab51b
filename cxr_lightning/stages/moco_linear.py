"""`cxr test` of stage 3: encoders side by side under linear evaluation."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from cxr_lightning.artifacts import check_product, load_network, read_config, run_name
from cxr_lightning.evaluation.linear import MACRO, Images, LinearRecord, linear_evaluation
from cxr_lightning.files import write_whole
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.networks.imagenet import load_imagenet

BASELINE = "random"
"""Name of the encoder with random weights."""

IMAGENET = "imagenet"
"""Name of the encoder with ImageNet weights."""

TRAINED = "this"
"""Name of the encoder that the run trained."""

PRINTED = (MACRO, "Pleural Effusion", "Pneumonia")
"""Labels that the printed table shows; the file holds all."""

Part = str
"""`train`, what classifiers are fitted on, or `test`, what they are judged on."""


class Judged(NamedTuple):
    """An encoder under evaluation.

    Attributes:
        name: How records call it.
        encoder: The network.
        architecture: What it is built from.
        sha256: Of its product, where it is one.
    """

    name: str
    encoder: Encoder
    architecture: Mapping[str, Any]
    sha256: str | None


def open_encoders(folders: Sequence[Path]) -> list[Judged]:
    """Products of stage 3, each named by its run's folder.

    Where another one has that name, the full path is the name; a folder named twice counts once.

    Raises:
        UserError: If a folder is no such product.
    """
    folders = list({folder.resolve(): folder for folder in folders}.values())
    runs = [run_name(folder) for folder in folders]
    taken = Counter((BASELINE, IMAGENET, TRAINED, *runs))
    judged = []
    for folder, run in zip(folders, runs, strict=True):
        manifest = check_product(folder, "encoder", "model.encoders")
        name = run if taken[run] == 1 else str(folder.resolve())
        network = load_network(Encoder, folder)
        judged.append(Judged(name, network, read_config(folder), manifest["sha256"]))
    return judged


def evaluate_encoders(
    judged: Sequence[Judged],
    imagenet: Path | None,
    embed: Callable[[Encoder, Part], Tensor],
    labels: Mapping[Part, Int[Tensor, "_ 14"]],
    patients: Mapping[Part, Shaped[np.ndarray, " _"]],
    file: Path | None,
    facts: Mapping[str, Any],
) -> dict[str, float]:
    """Linear evaluation of encoders beside the first one's architecture with random weights.

    Args:
        judged: At least one.
        imagenet: ImageNet weights for another one of that architecture.
        embed: Features of all images of a part.
        labels: 1 present, 0 absent, -1 masked.
        patients: Patient of each image.
        file: Where the results go, as JSON; None to write and print nothing.
        facts: What the file says beside them.

    Returns:
        Macro AUROC of each encoder and share of the patients, by a name for logging.

    Raises:
        UserError: If the ImageNet weights do not fit.
    """
    architecture = judged[0].architecture
    encoders = [Judged(BASELINE, random_encoder(architecture), architecture, None), *judged]
    if imagenet is not None:
        start = random_encoder(architecture)
        load_imagenet(start.backbone, architecture["backbone"], imagenet)
        encoders.insert(1, Judged(IMAGENET, start, architecture, None))
    seen: dict[Part, dict[str, Tensor]] = {part: {} for part in labels}
    for one in encoders:
        for part in seen:
            seen[part][one.name] = embed(one.encoder, part)
    train, test = (Images(seen[p], labels[p], patients[p]) for p in ("train", "test"))
    records, skipped = linear_evaluation(train, test)
    if file is not None:
        content = {
            **facts,
            "encoders": {one.name: {"sha256": one.sha256, **one.architecture} for one in encoders},
            "records": [_as_json(record) for record in records],
            "skipped": [entry._asdict() for entry in skipped],
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, (json.dumps(content, indent=1) + "\n").encode(), file.parent)
        named = [one.name for one in encoders]
        print(summary(records, named[: named.index(judged[0].name) + 1]))
        print(f"{len(skipped)} of the shares and observations could not be judged; all in {file}")
    return {
        f"linear_auroc_{record.encoder}_{record.fraction:g}": record.auroc
        for record in records
        if record.label == MACRO
    }


def random_encoder(architecture: Mapping[str, Any]) -> Encoder:
    """An encoder with random weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(**architecture)


def summary(records: Sequence[LinearRecord], beside: Sequence[str]) -> str:
    """A table: AUROC of each encoder and share of the patients, and its gain over some others."""
    lines = [f"{'label':<17} {'patients':>8}  {'encoder':<24} AUROC"]
    for record in records:
        if record.label in PRINTED:
            line = f"{record.label:<17} {record.fraction:>8.1%}  {record.encoder:<24} "
            line += f"{record.auroc:.3f}{_span(record.interval)}"
            for other in beside:
                if other in record.gains:
                    gain = record.gains[other]
                    line += f", {gain.value:+.3f}{_span(gain.interval)} over {other}"
            lines.append(line)
    return "\n".join(lines)


def _as_json(record: LinearRecord) -> dict[str, Any]:
    gains = {other: gain._asdict() for other, gain in record.gains.items()}
    return {**record._asdict(), "gains": gains}


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
