"""cxr edit: a contact sheet of images with less and more of a finding."""

import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cxr_lightning.commands.sampling import (
    USUAL,
    SamplingOptions,
    draw_all,
    open_generator,
    read_conditions,
    warn_of_unseen,
)
from cxr_lightning.commands.sheets import check_outputs, read_radiographs, write_sheet
from cxr_lightning.data.dataset import table_condition
from cxr_lightning.data.policies import LabelPolicy
from cxr_lightning.data.prepared import PreparedDataset, open_prepared
from cxr_lightning.data.transforms import to_model
from cxr_lightning.data.vocabulary import find_observation, state_finding
from cxr_lightning.diffusion.batches import padded_batches
from cxr_lightning.diffusion.cautions import FEW
from cxr_lightning.diffusion.direction import condition_direction
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.interpolation import drawn_end, given_end
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.classification import auroc
from cxr_lightning.progress import progress_bar
from cxr_lightning.ranges import check_range
from cxr_lightning.types import OBSERVATIONS, Condition

STRENGTHS = [-2.0, -1.0, 0.0, 1.0, 2.0]


class Direction(NamedTuple):
    """The direction of a finding, and what it was made from.

    Attributes:
        vector: From absent to present.
        present: Training images that show the finding.
        absent: Training images that are known not to.
        auroc: How well the directions of either half of the patients tell the other half apart; NaN
            where a half has none.
    """

    vector: Float[Tensor, " d"]
    present: int
    absent: int
    auroc: float

    def facts(self) -> dict[str, Any]:
        """All of it but the vector, of which the length, as JSON."""
        return {
            "length": float(self.vector.norm()),
            "present": self.present,
            "absent": self.absent,
            "auroc": None if math.isnan(self.auroc) else self.auroc,
        }


def edit(
    model: str | Path,
    data: Path,
    finding: str,
    out: Path,
    strength: list[float] | None = None,
    images: list[Path] | None = None,
    condition: str | None = None,
    switch: bool = False,
    rows: int = 4,
    singles: Path | None = None,
    seed: int = 0,
    sampling: SamplingOptions = USUAL,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Makes a contact sheet of images with less and more of a finding, each row one image.

    The latent code moves along the direction of the finding: from the codes of training images
    without it to those with it, as far as view, sex, age and support devices do not explain the
    difference. Only images whose label is known count. Strength 1 is the whole way, 0 the image as
    it is. The noise of the diffusion is that of the image.

    Args:
        model: Product of stage 2, 4 or 5: its folder, or its name on the Hugging Face Hub
            (org/name).
        data: Prepared data set, whose training images give the direction.
        finding: An observation, such as pneumonia.
        out: The sheet, a PNG file; must not exist.
        strength: How far to go, a column each; default: -2 -1 0 1 2.
        images: Radiographs to edit, a row each, with the original at the left. Default: new ones.
        condition: Health condition that the images show before they are edited; by default nothing
            is stated.
        switch: State the finding in the condition too: as present where the strength is above 0,
            as absent where it is below. By default the condition stays as it is.
        rows: New images to edit, those of the numbers 0, 1, ... of the seed.
        singles: Folder for the single images too, with images.json, which says what each is; must
            not exist.
        seed: Seed of the images.
        sampling: How the images are drawn.
        batch_size: Images made at once.
        device: cpu, cuda, cuda:1, ..., or auto.
    """
    strength = STRENGTHS if strength is None else strength
    check_range("rows", rows, 1)
    check_range("batch_size", batch_size, 1)
    check_range("seed", seed, 0)
    check_outputs(out, singles)
    observation = _read_finding(finding)
    ((name, stated),) = read_conditions(condition, None).items()
    generator, chosen = open_generator(model, device, sampling)
    prepared = _open_data(data, generator)
    warn_of_unseen(stated, generator)
    given = None if images is None else read_radiographs(images, generator.image_size)
    direction = _find_direction(generator, prepared, observation, batch_size)
    tiles = [
        {"row": row, "column": column, "strength": value, "condition": name, "index": row}
        | ({} if images is None else {"image": str(images[row])})
        | ({"stated": value > 0.0} if switch and value != 0.0 else {})
        for row in range(rows if images is None else len(images))
        for column, value in enumerate(strength)
    ]

    def draw(part: list[dict[str, Any]]) -> Float[Tensor, "b 1 h w"]:
        index = torch.tensor([tile["row"] for tile in part])
        before = stated.rows(0 * index).to(generator.device)
        if given is None:
            image = drawn_end(generator, before, index, index, seed, chosen.guidance)
        else:
            pixels = given[index].to(generator.device)
            image = given_end(generator, pixels, before, index, seed)
        assert image.z is not None
        distance = torch.tensor([tile["strength"] for tile in part], device=generator.device)
        z = image.z + distance[:, None] * direction.vector.to(generator.device)
        after = Condition.cat(
            [
                state_finding(stated, observation, tile["stated"]) if "stated" in tile else stated
                for tile in part
            ]
        )
        return generator.refine(z, after.to(generator.device), image.noise, chosen)

    drawn = draw_all(draw, tiles, batch_size).unflatten(0, (-1, len(strength)))
    request = {
        "kind": "edit",
        "model": str(model),
        "product_sha256": generator.manifest["sha256"],
        "data": {"path": str(data), "sha256": prepared.sha256},
        "finding": observation,
        "direction": direction.facts(),
        "seed": seed,
        **asdict(chosen),
        "batch_size": batch_size,
    }
    write_sheet(out, singles, drawn, tiles, request, [] if given is None else [given])
    print(f"{len(drawn)} images at {len(strength)} strengths of {observation} in {out}")


def _read_finding(finding: str) -> str:
    observation = find_observation(finding)
    if observation is None:
        raise UserError(
            f"finding: {finding!r} is no observation; use one of {', '.join(OBSERVATIONS)}."
        )
    return observation


def _open_data(data: Path, generator: Generator) -> PreparedDataset:
    if generator.autoencoder is None:
        raise UserError(
            "model: an unconditional model (model.form: uncond) has no latent code to edit; use a "
            "generator of form1 or form2."
        )
    prepared = open_prepared(data, "data")
    if prepared.size != generator.image_size:
        raise UserError(
            f"data: {data} holds images of {prepared.size} pixels, and the model makes images of "
            f"{generator.image_size}; prepare it with --size {generator.image_size}."
        )
    return prepared


def _find_direction(
    generator: Generator, prepared: PreparedDataset, observation: str, batch_size: int
) -> Direction:
    """The direction of a finding from the training images whose label is known; says what it is."""
    table, column = prepared.table, OBSERVATIONS.index(observation)
    known = table_condition(table, LabelPolicy())
    usable = known.known[:, column].numpy() & (table["split"] == "train").to_numpy()
    rows = np.flatnonzero(usable)
    condition = known.rows(torch.from_numpy(rows))
    shown = condition.value[:, column].numpy() == 1.0
    for lacking, count in (("shows", shown.sum()), ("is known to be without", (~shown).sum())):
        if not count:
            raise UserError(
                f"finding: no training image of {prepared.root} {lacking} {observation}; choose "
                "another --finding or --data."
            )
    z = _encode(generator, prepared, rows, batch_size)
    vector = condition_direction(z, condition, observation)
    if vector is None:
        raise UserError(
            f"finding: view, sex, age and support devices of the training images of "
            f"{prepared.root} tell {observation} wholly, so that it has no direction of its own; "
            "choose another --finding or --data."
        )
    half = pd.factorize(table["patient"].iloc[rows])[0] % 2
    present = int(shown.sum())
    told = _cross_auroc(z, condition, observation, half)
    direction = Direction(vector, present, len(rows) - present, told)
    print(
        f"direction of {observation}: {present} training images with it, {direction.absent} "
        f"without; it tells other patients apart with an AUROC of {told:.2f}"
    )
    if min(present, direction.absent) < FEW:
        print(
            f"warning: fewer than {FEW} training images on one side: the direction of "
            f"{observation} means little",
            file=sys.stderr,
        )
    return direction


def _encode(
    generator: Generator, prepared: PreparedDataset, rows: Int[np.ndarray, " n"], batch_size: int
) -> Float[Tensor, "n d"]:
    """Latent codes of rows of a prepared data set, on the CPU."""
    codes = []
    with progress_bar(total=len(rows), unit="image", desc="encode") as bar:
        for part, padded in padded_batches(rows.tolist(), batch_size):
            image = to_model(torch.from_numpy(prepared.images[padded]).unsqueeze(1))
            codes.append(generator.encode(image.to(generator.device))[: len(part)].cpu())
            bar.update(len(part))
    return torch.cat(codes)


def _cross_auroc(
    z: Float[Tensor, "n d"],
    condition: Condition,
    observation: str,
    half: Int[np.ndarray, " n"],
) -> float:
    """Mean AUROC of each half's direction on the codes of the other half; NaN without one."""
    found = []
    for side in (0, 1):
        made, other = torch.from_numpy(half == side), half != side
        vector = condition_direction(z[made], condition.rows(made), observation)
        if vector is None:
            return math.nan
        score = (z[torch.from_numpy(other)] @ vector).double().numpy()
        truth = condition.value[other, OBSERVATIONS.index(observation)].numpy() == 1.0
        found.append(float(auroc(truth, score, np.ones((1, len(truth))))[0]))
    return float(np.mean(found))
