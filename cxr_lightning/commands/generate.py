"""cxr generate: a synthetic data set in CheXpert layout."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from cxr_lightning import __version__
from cxr_lightning.artifacts import product_sha256
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import HealthCondition, View, parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import SamplerName, Sampling, Spacing
from cxr_lightning.errors import UserError
from cxr_lightning.types import OBSERVATIONS, Condition

FORMAT = 1


@dataclass(frozen=True)
class Request:
    """What the images of a synthetic data set depend on; the same request gives the same files."""

    format: int
    kind: str
    version: str
    product: dict[str, str]
    conditions: list[str]
    view: View | None
    count: int
    seed: int
    sampler: str
    steps: int
    guidance: float
    guidance_interval: tuple[float, float]
    eta: float
    spacing: str
    start: float
    batch_size: int
    size: int


def generate(
    model: Path,
    out: Path,
    condition: str = "healthy,pneumonia,pleural_effusion",
    view: View | None = None,
    count: int = 100,
    seed: int = 0,
    sampler: SamplerName = Sampling.sampler,
    steps: int = Sampling.steps,
    guidance: float = 1.0,
    guidance_interval: list[float] | None = None,
    eta: float = 0.0,
    spacing: Spacing = "trailing",
    start: float = 1.0,
    batch_size: int = 64,
    device: str = "auto",
) -> None:
    """Makes a synthetic data set in CheXpert layout from a generator product.

    Writes OUT/train/patientNNNNN/study1/view1_frontal.png, OUT/train.csv and OUT/manifest.json.
    Image i depends on the product, the seed and i alone; another batch size or device can round a
    few pixels of a set to the next grey value. An interrupted run continues where it stopped when
    the same command is given again, and ends with the same bytes; OUT appears when all images are
    there.

    Args:
        model: Product of stage 2 or 4.
        out: Folder to write; must not exist.
        condition: Health conditions, separated by commas; several findings in one image are joined
            by a plus sign, as in pneumonia+pleural_effusion.
        view: AP or PA, for all images; by default the model chooses, as common as each is with the
            condition in its training data.
        count: Number of images of each condition.
        seed: Seed of the data set.
        sampler: ddpm (ancestral), ddim, dpmpp_2m, dpmpp_3m (DPM-Solver++) or unipc.
        steps: Number of denoising steps.
        guidance: Weight of classifier-free guidance; 1 for none, larger for stronger conditions.
        guidance_interval: From and to which share of the diffusion steps there is guidance, such as
            0.2 0.8 (0 the clean image, 1 pure noise); default: all of them.
        eta: Stochasticity of ddim, 0 to 1.
        spacing: trailing (steps evenly in time) or logsnr (in the log signal-to-noise ratio).
        start: Share of the diffusion to begin at; below 1 from the VAE's image, noised to there.
        batch_size: Images made at once.
        device: cpu, cuda, cuda:1, ..., or auto.
    """
    conditions = [parse_condition(name) for name in condition.split(",")]
    for argument, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{argument}: {value} is not possible; use 1 or more.")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more.")
    if out.exists():
        raise UserError(f"out: {out} exists already; give another folder or remove it.")
    low, high = _interval(guidance_interval)
    sampling = Sampling(sampler, steps, guidance, (low, high), eta, spacing, start)
    generator = Generator.from_pretrained(model, "model")
    generator.check(sampling)
    target = torch.device(_device(device))
    request = Request(
        format=FORMAT,
        kind="synthetic",
        version=__version__,
        product={"path": str(model), "sha256": product_sha256(model)},
        conditions=[c.name for c in conditions],
        view=view,
        count=count,
        seed=seed,
        **asdict(sampling),
        batch_size=batch_size,
        size=generator.image_size,
    )
    partial = _open_partial(out, request)
    _make_images(generator.to(target), partial, request, conditions, sampling)
    _write_table(partial, out.name, request, conditions)
    partial.rename(out)
    print(f"{count * len(conditions)} synthetic radiographs in {out}")


def _interval(given: list[float] | None) -> list[float]:
    if given is not None and len(given) != 2:
        raise UserError(
            f"guidance_interval: {' '.join(map(str, given))} is no interval; give two numbers from "
            "0 to 1, the smaller first."
        )
    return given or [0.0, 1.0]


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device: {name!r} is not there; use cpu or auto.") from error
    return name


def _open_partial(out: Path, request: Request) -> Path:
    """The folder that becomes `out`: a new one, or that of an interrupted run of this request."""
    partial = out.with_name(f".{out.name}.partial")
    state = partial / "request.json"
    wanted = json.dumps(asdict(request), indent=1)
    if state.is_file() and state.read_text() == wanted:
        return partial
    shutil.rmtree(partial, ignore_errors=True)
    size = request.count * len(request.conditions) * request.size**2
    out.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out.parent).free
    if size > free:
        raise UserError(
            f"out: {out} needs up to {size} bytes and {free} are free; make room or use a smaller "
            "--count."
        )
    partial.mkdir()
    state.write_text(wanted)
    return partial


def _make_images(
    generator: Generator,
    folder: Path,
    request: Request,
    conditions: list[HealthCondition],
    sampling: Sampling,
) -> None:
    wanted = range(request.count * len(conditions))
    missing = [i for i in wanted if not (folder / _path(i)).is_file()]
    note = PngInfo()
    note.add_text("Synthetic", "yes")
    note.add_text("Software", f"cxr_lightning {__version__}")
    note.add_text("Product-SHA256", request.product["sha256"])
    requests = [condition.request(1, request.view) for condition in conditions]
    width = min(request.batch_size, len(wanted))
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="image") as bar:
        for batch in _batches(missing, width):
            padded = batch + batch[-1:] * (width - len(batch))  # one shape, so one rounding
            which = [requests[i // request.count] for i in padded]
            asked = Condition.cat(which).to(generator.device)
            images = generator.generate(asked, torch.tensor(padded), sampling, seed=request.seed)
            for i, pixels in zip(batch, to_image(images).cpu().numpy()[:, 0], strict=False):
                _write_png(folder / _path(i), pixels, note)
            bar.update(len(batch))


def _batches(items: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _path(i: int) -> str:
    return f"train/patient{i + 1:05d}/study1/view1_frontal.png"


def _write_png(path: Path, pixels: np.ndarray, note: PngInfo) -> None:
    """Writes a file that is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=note)
    temporary.rename(path)


def _write_table(
    folder: Path, name: str, request: Request, conditions: list[HealthCondition]
) -> None:
    """train.csv with CheXpert's columns, and the manifest; the run's state file goes."""
    rows, images = [], []
    for i in range(request.count * len(conditions)):
        condition = conditions[i // request.count]
        row: dict[str, Any] = {
            "Path": f"{name}/{_path(i)}",
            "Sex": "Unknown",
            "Age": "",
            "Frontal/Lateral": "Frontal",
            "AP/PA": request.view or "",
        }
        rows.append(row | _labels(condition))
        images.append({"path": _path(i), "condition": condition.name, "index": i})
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    manifest = asdict(request) | {"images": images}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (folder / "request.json").unlink()


def _labels(condition: HealthCondition) -> dict[str, float | str]:
    """The requested observations as CheXpert's 1.0 and 0.0, blank where nothing was asked."""
    asked = condition.request(1)
    values = zip(asked.observations[0].tolist(), asked.observations_known[0].tolist(), strict=True)
    return {o: v if known else "" for o, (v, known) in zip(OBSERVATIONS, values, strict=True)}
