"""cxr interpolate: a contact sheet of the images between two."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
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
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.interpolation import Curve, End, drawn_end, given_end
from cxr_lightning.diffusion.interpolation import interpolate as between
from cxr_lightning.errors import UserError
from cxr_lightning.ranges import check_range
from cxr_lightning.types import Condition

Space = Literal["z", "noise", "both", "condition"]
SIDES = ("start", "end")


def interpolate(
    model: str | Path,
    out: Path,
    condition: str | None = None,
    prompt: list[str] | None = None,
    space: Space | None = None,
    images: list[Path] | None = None,
    columns: int = 8,
    rows: int = 4,
    curve: Curve = "spherical",
    singles: Path | None = None,
    seed: int = 0,
    sampling: SamplingOptions = USUAL,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Makes a contact sheet of the images between two, each row from one to another.

    Row r leads from image 2r to image 2r + 1 of the seed, or between two given radiographs. What
    the two ends do not share goes along a curve; the ends are exactly the images that the generator
    makes of them. Between two conditions the denoiser's estimates for both are mixed.

    Args:
        model: Product of stage 2, 4 or 5: its folder, or its name on the Hugging Face Hub
            (org/name).
        out: The sheet, a PNG file; must not exist.
        condition: Health condition of all images, or two separated by a comma: that of the left and
            of the right end. By default nothing is stated.
        prompt: In place of condition: one or two texts, such as "left effusion, PA view".
        space: What differs between the ends of a row beside their conditions: z (the latent code;
            the noise of the diffusion is shared), noise (that noise; z is shared), both, or
            condition (nothing else: the same image with the one and the other). Default: condition
            where two are given, else z.
        images: Two radiographs, between whose latent codes each row leads; the rows differ in their
            noise. The originals stand at the left and right.
        columns: Images in a row.
        rows: Rows.
        curve: Of latent codes: spherical, or linear; noise is always spherical.
        singles: Folder for the single images too, with images.json, which says what each is; must
            not exist.
        seed: Seed of the images.
        sampling: How the images are drawn.
        batch_size: Images made at once.
        device: cpu, cuda, cuda:1, ..., or auto.
    """
    check_range("columns", columns, 2)
    check_range("rows", rows, 1)
    check_range("batch_size", batch_size, 1)
    check_range("seed", seed, 0)
    check_outputs(out, singles)
    conditions = read_conditions(condition, prompt, most=2)
    space = _choose_space(space, images, len(conditions))
    generator, chosen = open_generator(model, device, sampling)
    _check_latent(generator, space, images)
    warn_of_unseen(Condition.cat(list(conditions.values())), generator)
    given = None if images is None else read_radiographs(images, generator.image_size)
    tiles = _tiles(rows, columns, space, list(conditions), images)

    def draw(part: list[dict[str, Any]]) -> Float[Tensor, "b 1 h w"]:
        t = torch.tensor([tile["t"] for tile in part], device=generator.device)
        images = [None, None] if given is None else list(given)
        start, end = (
            _end(generator, [tile[side] for tile in part], conditions, image, seed, chosen.guidance)
            for side, image in zip(SIDES, images, strict=True)
        )
        return between(generator, start, end, t, chosen, curve)

    drawn = draw_all(draw, tiles, batch_size).unflatten(0, (rows, columns))
    request = {
        "kind": "interpolation",
        "model": str(model),
        "product_sha256": generator.manifest["sha256"],
        "space": space,
        "curve": curve,
        "seed": seed,
        **asdict(chosen),
        "batch_size": batch_size,
    }
    originals = [] if given is None else [image.expand(rows, -1, -1, -1) for image in given]
    write_sheet(out, singles, drawn, tiles, request, originals)
    print(f"{rows} rows of {columns} synthetic radiographs in {out}")


def _end(
    generator: Generator,
    described: list[dict[str, Any]],
    conditions: dict[str, Condition],
    given: Float[Tensor, "1 h w"] | None,
    seed: int,
    guidance: float,
) -> End:
    """The ends on one side of a batch, as `_tiles` describes them."""
    shown = Condition.cat([conditions[end["condition"]] for end in described])
    shown = shown.to(generator.device)
    noise = torch.tensor([end["noise"] for end in described])
    if given is None:
        latent = torch.tensor([end["latent"] for end in described])
        return drawn_end(generator, shown, latent, noise, seed, guidance)
    image = given.expand(len(described), -1, -1, -1).to(generator.device)
    return given_end(generator, image, shown, noise, seed)


def _choose_space(space: Space | None, images: list[Path] | None, conditions: int) -> Space:
    if images is None:
        return space or ("condition" if conditions == 2 else "z")
    if len(images) != 2:
        raise UserError(
            f"images: {len(images)} radiographs are no two ends of a row; give two, or none."
        )
    if space not in (None, "z"):
        raise UserError(
            f"space: {space} is given beside images, whose latent codes (z) differ; leave it out."
        )
    return "z"


def _check_latent(generator: Generator, space: Space, images: list[Path] | None) -> None:
    if generator.autoencoder is None and (space in ("z", "both") or images is not None):
        raise UserError(
            f"space: {space} needs a latent code, and an unconditional model (model.form: uncond) "
            "has none; use --space noise without images, or a generator of form1 or form2."
        )


def _tiles(
    rows: int, columns: int, space: Space, names: list[str], images: list[Path] | None
) -> list[dict[str, Any]]:
    """What each image is, row by row: where it lies between which ends."""

    def end(row: int, side: int) -> dict[str, Any]:
        first, own = 2 * row, 2 * row + side
        latent = own if space in ("z", "both") else first
        noise = own if space in ("noise", "both") else first
        if images is not None:
            return {"condition": names[-side], "latent": str(images[side]), "noise": row}
        return {"condition": names[-side], "latent": latent, "noise": noise}

    return [
        {
            "row": row,
            "column": column,
            "t": column / (columns - 1),
            **{name: end(row, side) for side, name in enumerate(SIDES)},
        }
        for row in range(rows)
        for column in range(columns)
    ]
