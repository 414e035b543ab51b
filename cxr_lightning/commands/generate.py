"""cxr generate: a synthetic data set in CheXpert layout."""

import json
import shutil
import sys
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
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.data.prompt import UNFOLLOWED, parse_prompt
from cxr_lightning.data.requests import ImageRequests
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import View, parse_condition
from cxr_lightning.diffusion.batches import padded_batches
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import SamplerName, Sampling, Spacing
from cxr_lightning.diffusion.synthetic_images import synthetic_note
from cxr_lightning.errors import UserError
from cxr_lightning.hub import ProductSource, find_product

FORMAT = 1
DEFAULT = "healthy,pneumonia,pleural_effusion"


@dataclass(frozen=True)
class Request:
    """What the images of a synthetic data set depend on; the same request gives the same files."""

    format: int
    kind: str
    version: str
    product: dict[str, str]
    conditions: list[str]
    prompts: list[str]
    like: str | None
    balance: bool
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
    model: str | Path,
    out: Path,
    condition: str | None = None,
    prompt: list[str] | None = None,
    like: Path | None = None,
    balance: bool = False,
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
    revision: str | None = None,
) -> None:
    """Makes a synthetic data set in CheXpert layout from a generator product.

    Writes OUT/train/patientNNNNN/study1/view1_frontal.png, OUT/train.csv and OUT/manifest.json.
    Image i depends on the product, the seed and i alone; another batch size or device can round a
    few pixels of a set to the next grey value. An interrupted run continues where it stopped when
    the same command is given again, and ends with the same bytes; OUT appears when all images are
    there.

    Args:
        model: Product of stage 2 or 4: its folder, or its name on the Hugging Face Hub (org/name).
        out: Folder to write; must not exist.
        condition: Health conditions, separated by commas; several findings in one image are joined
            by a plus sign, as in pneumonia+pleural_effusion. Default, without prompt and like:
            healthy,pneumonia,pleural_effusion.
        prompt: In place of condition: one or more texts, such as "small left effusion, no
            pneumothorax, PA view, 70-year-old woman". What was understood is printed.
        like: In place of condition: a prepared data set, whose training images' conditions, views,
            sexes and ages are drawn together.
        balance: With like: rare findings as often as common ones.
        view: AP or PA, for all images of condition; by default the model chooses, as common as each
            is with the condition in its training data.
        count: Number of images of each condition or prompt; with like, of all.
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
        revision: Branch, tag or commit of a model on the Hub.
    """
    _check_exclusive({"condition": condition, "prompt": prompt, "like": like}, view, balance)
    for argument, value in (("count", count), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{argument}: {value} is not possible; use 1 or more.")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative; give 0 or more.")
    if out.exists():
        raise UserError(f"out: {out} exists already; give another folder or remove it.")
    requests = _requests(condition, prompt, like, balance, view, count, seed)
    low, high = _interval(guidance_interval)
    sampling = Sampling(sampler, steps, guidance, (low, high), eta, spacing, start)
    source = find_product(model, "model", revision)
    generator = Generator.from_pretrained(source.folder, "model")
    generator.check(sampling)
    for caution in generator.rarely_seen(requests.condition):
        print(f"warning: {caution}", file=sys.stderr)
    target = torch.device(_device(device))
    request = Request(
        format=FORMAT,
        kind="synthetic",
        version=__version__,
        product=_identify(model, source, generator),
        conditions=list(dict.fromkeys(name for name in requests.names if name is not None)),
        prompts=list(dict.fromkeys(text for text in requests.prompts if text is not None)),
        like=None if like is None else open_prepared(like).sha256,
        balance=balance,
        view=view,
        count=count,
        seed=seed,
        **asdict(sampling),
        batch_size=batch_size,
        size=generator.image_size,
    )
    partial = _open_partial(out, request, len(requests))
    _make_images(generator.to(target), partial, request, requests, sampling)
    _write_table(partial, out.name, request, requests)
    partial.rename(out)
    print(f"{len(requests)} synthetic radiographs in {out}")


def _check_exclusive(sources: dict[str, Any], view: View | None, balance: bool) -> None:
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise UserError(
            f"{given[1]}: {sources[given[1]]} is given beside {given[0]}; give one of the two."
        )
    if balance and "like" not in given:
        raise UserError("balance: it says how to draw from a prepared data set; give --like too.")
    if view is not None and {"prompt", "like"} & set(given):
        raise UserError(
            f"view: {view} is given beside {given[0]}, which states views itself; leave it out."
        )


def _identify(model: str | Path, source: ProductSource, generator: Generator) -> dict[str, str]:
    """The product as it was named, its hash, and its commit on the Hub."""
    product = {"path": str(model), "sha256": str(generator.manifest["sha256"])}
    return product if source.commit is None else product | {"commit": source.commit}


def _requests(
    condition: str | None,
    prompt: list[str] | None,
    like: Path | None,
    balance: bool,
    view: View | None,
    count: int,
    seed: int,
) -> ImageRequests:
    if prompt is not None:
        prompts = [parse_prompt(text) for text in prompt]
        for understood in prompts:
            print(understood.describe())
            if understood.has_details:
                print(UNFOLLOWED)
        return ImageRequests.of_prompts(prompts, count)
    if like is not None:
        try:
            table = open_prepared(like).table
        except UserError as error:
            raise UserError(str(error).replace("data.root", "like", 1)) from error
        train = table[table["split"] == "train"].reset_index(drop=True)
        return ImageRequests.like(train, count, seed, balance)
    names = (condition if condition is not None else DEFAULT).split(",")
    return ImageRequests.of_conditions([parse_condition(name) for name in names], count, view)


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


def _open_partial(out: Path, request: Request, images: int) -> Path:
    """The folder that becomes `out`: a new one, or that of an interrupted run of this request."""
    partial = out.with_name(f".{out.name}.partial")
    state = partial / "request.json"
    wanted = json.dumps(asdict(request), indent=1)
    if state.is_file() and state.read_text() == wanted:
        return partial
    shutil.rmtree(partial, ignore_errors=True)
    size = images * request.size**2
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
    requests: ImageRequests,
    sampling: Sampling,
) -> None:
    wanted = range(len(requests))
    missing = [i for i in wanted if not (folder / _path(i)).is_file()]
    note = synthetic_note(request.product["sha256"])
    width = min(request.batch_size, len(wanted))
    with tqdm(total=len(wanted), initial=len(wanted) - len(missing), unit="image") as bar:
        for batch, padded in padded_batches(missing, width):
            index = torch.tensor(padded)
            asked = requests.condition.rows(index).to(generator.device)
            images = generator.sample(asked, index, sampling, seed=request.seed)
            for i, pixels in zip(batch, to_image(images).cpu().numpy()[:, 0], strict=False):
                _write_png(folder / _path(i), pixels, note)
            bar.update(len(batch))


def _path(i: int) -> str:
    return f"train/patient{i + 1:05d}/study1/view1_frontal.png"


def _write_png(path: Path, pixels: np.ndarray, note: PngInfo) -> None:
    """Writes a file that is either whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=note)
    temporary.rename(path)


def _write_table(folder: Path, name: str, request: Request, requests: ImageRequests) -> None:
    """train.csv with CheXpert's columns, and the manifest; the run's state file goes."""
    rows = [{"Path": f"{name}/{_path(i)}"} | row for i, row in enumerate(requests.rows())]
    pd.DataFrame(rows).to_csv(folder / "train.csv", index=False)
    images = [
        {"path": _path(i), "condition": condition, "prompt": prompt, "index": i}
        for i, (condition, prompt) in enumerate(zip(requests.names, requests.prompts, strict=True))
    ]
    manifest = asdict(request) | {"images": images}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    (folder / "request.json").unlink()
