"""cxr generate: a synthetic data set in CheXpert layout."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cxr_lightning import __version__
from cxr_lightning.commands.sampling import (
    USUAL,
    SamplingOptions,
    check_exclusive,
    read_prompts,
    warn_of_unseen,
)
from cxr_lightning.data.policies import LabelPolicy
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.data.requests import ImageRequests
from cxr_lightning.data.sources.dicom_files import require_pydicom
from cxr_lightning.data.text_encoder import TextEncoder, check_text_encoder
from cxr_lightning.data.vocabulary import View, parse_conditions
from cxr_lightning.data.writers import ImageFormat
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.hub import ProductSource, find_product
from cxr_lightning.progress import progress_bar
from cxr_lightning.ranges import check_range
from cxr_lightning.synthesis.devices import Devices, Rank, choose_devices, find_rank
from cxr_lightning.synthesis.folder import SyntheticFolder
from cxr_lightning.synthesis.making import Plan, make_share
from cxr_lightning.synthesis.processes import Report, run_processes
from cxr_lightning.synthesis.rejection import (
    TRIES,
    Rejection,
    count_draws,
    describe_draws,
    list_reasons,
    plan_rejection,
)
from cxr_lightning.synthesis.request import FORMAT, Request

DEFAULT = "healthy,pneumonia,pleural_effusion"


def generate(
    model: str | Path,
    out: Path,
    condition: str | None = None,
    prompt: list[str] | None = None,
    text_encoder: Path | None = None,
    like: Path | None = None,
    balance: bool = False,
    view: View | None = None,
    count: int = 100,
    seed: int = 0,
    format: ImageFormat = "png",
    sampling: SamplingOptions = USUAL,
    reject: Path | None = None,
    reject_threshold: float | None = None,
    reject_tries: int = TRIES,
    batch_size: int = 64,
    device: str = "auto",
    devices: Devices = 1,
    revision: str | None = None,
) -> None:
    """Makes a synthetic data set in CheXpert layout from a generator product.

    Writes OUT/train/patientNNNNN/study1/view1_frontal.png (or .jpg, .dcm), OUT/train.csv and
    OUT/manifest.json. Image i depends on the product, the seed and i alone; another batch size,
    device or number of CPU threads can round a few pixels of a set to the next grey value. An
    interrupted run continues where it stopped when the same command is given again, also with other
    --devices, and ends with the same bytes; OUT appears when all images are there.

    Args:
        model: Product of stage 2, 4 or 5: its folder, or its name on the Hugging Face Hub
            (org/name).
        out: Folder to write: absent, or of this very request, unfinished or done.
        condition: Health conditions, separated by commas; several findings in one image are joined
            by a plus sign, as in pneumonia+pleural_effusion. Default, without prompt and like:
            healthy,pneumonia,pleural_effusion.
        prompt: In place of condition: one or more texts, such as "small left effusion, no
            pneumothorax, PA view, 70-year-old woman". What was understood is printed.
        text_encoder: With prompt, for a model that was trained with one: the folder of the same
            text encoder, so that side and severity are followed too.
        like: In place of condition: a prepared data set, whose training images' conditions, views,
            sexes and ages are drawn together.
        balance: With like: rare findings as often as common ones.
        view: AP or PA, for all images of condition; by default the model chooses, as common as each
            is with the condition in its training data.
        count: Number of images of each condition or prompt; with like, of all.
        seed: Seed of the data set.
        format: png; jpeg (quality 95); or dicom (Secondary Capture, needs pydicom). Every file says
            that it is synthetic.
        sampling: How the images are drawn.
        reject: A classifier (folder 'classifier' of an evaluation, or a TorchScript file): an image
            is drawn again until each observation that was asked for, as present or as absent, is on
            the right side of its threshold. After the last try the best one is kept and marked as
            unconfirmed in manifest.json.
        reject_threshold: Threshold of all observations, 0 to 1; default: the classifier's own
            operating points on held-out real images, or 0.5 where it has none.
        reject_tries: Draws of an image at most.
        batch_size: Images made at once.
        device: cpu, cuda, cuda:1, ..., or auto.
        devices: Number of processes, one a GPU, or on the CPU that share its threads; auto for all
            GPUs.
        revision: Branch, tag or commit of a model on the Hub.
    """
    _check_exclusive({"condition": condition, "prompt": prompt, "like": like}, view, balance)
    if text_encoder is not None and prompt is None:
        raise UserError(f"text_encoder: {text_encoder} reads prompts; give --prompt too.")
    check_range("count", count, 1)
    check_range("batch_size", batch_size, 1)
    check_range("reject_tries", reject_tries, 1)
    check_range("seed", seed, 0)
    if reject_threshold is not None:
        check_range("reject_threshold", reject_threshold, 0, 1, above=True, below=True)
    if format == "dicom":
        require_pydicom("format")
    rank = find_rank()
    places = choose_devices(device, devices, rank)
    source = find_product(model, "model", revision)
    generator = Generator.from_pretrained(source.folder, "model")
    chosen = sampling.choose(generator)
    encoder = check_text_encoder(text_encoder, generator.text_encoder, "text_encoder")
    policy = generator.label_policy
    requests = _requests(condition, prompt, encoder, like, balance, policy, view, count, seed)
    rejection = None
    if reject is not None:
        asked = requests.condition
        size = generator.image_size
        rejection = plan_rejection(reject, reject_threshold, reject_tries, asked, size)
    request = Request(
        format=FORMAT,
        kind="synthetic",
        version=__version__,
        product=_identify(model, source, generator),
        conditions=list(dict.fromkeys(name for name in requests.names if name is not None)),
        prompts=list(dict.fromkeys(text for text in requests.prompts if text is not None)),
        text_encoder=None if encoder is None else encoder.sha256,
        like=None if like is None else open_prepared(like).sha256,
        balance=balance,
        view=view,
        count=count,
        seed=seed,
        **asdict(chosen),
        batch_size=batch_size,
        size=generator.image_size,
        image_format=format,
        reject=rejection.request if rejection else None,
        asked=requests.sha256,
    )
    folder = SyntheticFolder(out, request)
    if folder.is_finished():
        folder.remove_rest()
        print(f"{out} holds these {len(requests)} synthetic radiographs already")
        return
    if out.exists():
        raise UserError(f"out: {out} exists already; give another folder or remove it.")
    _warn_of_sampler(chosen, generator)
    warn_of_unseen(requests.condition, generator)
    _say_unjudged(rejection)
    folder.open(len(requests))
    with folder.in_use():
        _run(Plan(source.folder, folder, requests, chosen, rejection), rank, places)


def _run(plan: Plan, rank: Rank, places: list[str]) -> None:
    """Makes this command's share of what is missing, and finishes the set if it is whole then."""
    folder, total = plan.folder, len(plan.requests)
    try:
        _make(plan, rank.share(folder.missing(total)), places)
        left = len(folder.missing(total))
        if left and rank.world > 1:
            print(
                f"process {rank.number} of {rank.world} is done; {left} images are left to the "
                "others, the last of which finishes the set"
            )
            return
        _finish(plan)
    except OSError:
        if not folder.is_finished():  # by another process
            raise
    print(f"{total} synthetic radiographs in {folder.out}")


def _make(plan: Plan, images: list[int], places: list[str]) -> None:
    """Makes images in this process, or in one for each of several devices."""
    if not images:
        return
    total = len(plan.requests)
    places = places[: len(images)]
    with progress_bar(total=total, initial=total - len(images), unit="image") as bar:
        if len(places) == 1:
            make_share(plan, places[0], images, bar.update)
            return
        threads = max(1, torch.get_num_threads() // len(places))
        task = partial(_make_one_share, plan, images, places, threads)
        run_processes(task, len(places), bar.update)


def _make_one_share(
    plan: Plan, images: list[int], places: list[str], threads: int, number: int, report: Report
) -> None:
    """What one of several processes does."""
    torch.set_num_threads(threads)
    make_share(plan, places[number], images[number :: len(places)], report)


def _finish(plan: Plan) -> None:
    """Puts the set in its place, and says what was rejected."""
    facts: dict[str, Any] = {}
    counts: dict[str, Any] = {}
    if plan.rejection is not None:
        counts = count_draws(plan.requests.labels(), plan.folder.records())
        facts["rejection"] = plan.rejection.facts() | counts
    plan.folder.finish(plan.requests, facts)
    if plan.rejection is not None:
        print(describe_draws(counts, plan.rejection.tries))


def _say_unjudged(rejection: Rejection | None) -> None:
    """Names what the classifier does not judge of what is asked for."""
    for reason, observations in list_reasons(rejection.unjudged if rejection else {}):
        print(f"warning: not confirmed: {observations} ({reason})", file=sys.stderr)


def _check_exclusive(sources: dict[str, Any], view: View | None, balance: bool) -> None:
    given = check_exclusive(sources)
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


def _warn_of_sampler(sampling: Sampling, generator: Generator) -> None:
    if sampling.sampler == "consistency" and generator.own_sampling is None:
        print(
            "warning: the sampler consistency is for products of configs/distill.yaml, and this is "
            "none: its images vary too little and are blurred",
            file=sys.stderr,
        )


def _requests(
    condition: str | None,
    prompt: list[str] | None,
    encoder: TextEncoder | None,
    like: Path | None,
    balance: bool,
    policy: LabelPolicy,
    view: View | None,
    count: int,
    seed: int,
) -> ImageRequests:
    if prompt is not None:
        prompts = read_prompts(prompt, has_encoder=encoder is not None)
        return ImageRequests.of_prompts(prompts, count, encoder)
    if like is not None:
        table = open_prepared(like, "like").table
        train = table[table["split"] == "train"].reset_index(drop=True)
        return ImageRequests.like(train, count, seed, balance, policy)
    conditions = parse_conditions(condition if condition is not None else DEFAULT)
    return ImageRequests.of_conditions(conditions, count, view)
