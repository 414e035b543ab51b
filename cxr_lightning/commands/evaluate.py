"""`cxr evaluate`: how good, faithful, useful and private a synthetic data set is."""

import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cxr_lightning.artifacts import load_network
from cxr_lightning.data.prepared import PreparedDataset, open_prepared
from cxr_lightning.data.vocabulary import HealthCondition, parse_conditions
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.checks import (
    check_inputs_stay,
    check_networks,
    check_places,
    check_products,
    find_maker,
    is_parent,
    load_generator,
)
from cxr_lightning.evaluation.condition import condition
from cxr_lightning.evaluation.facts import Identities, describe_inputs
from cxr_lightning.evaluation.features import FeatureCache
from cxr_lightning.evaluation.fidelity import fidelity
from cxr_lightning.evaluation.inputs import EvaluationInputs, RealSplit, ScoreEncoder, Settings
from cxr_lightning.evaluation.privacy import privacy
from cxr_lightning.evaluation.records import AxisResult, Source
from cxr_lightning.evaluation.representation import representation
from cxr_lightning.evaluation.synthetic import SyntheticSet, read_synthetic
from cxr_lightning.evaluation.utility import utility
from cxr_lightning.evaluation.work import Work
from cxr_lightning.files import check_there
from cxr_lightning.metrics.bootstrap import LEAST_DRAWS
from cxr_lightning.metrics.extractors import build_extractors
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.ranges import check_range

Axis = Literal["fidelity", "representation", "condition", "utility", "privacy"]

AXES: dict[Axis, Callable[[EvaluationInputs], AxisResult]] = {
    "fidelity": fidelity,
    "representation": representation,
    "condition": condition,
    "utility": utility,
    "privacy": privacy,
}
"""What an evaluation consists of; a new axis is a function from the inputs to an `AxisResult`."""

GRID_IMAGES = 8

NAMES_OF_ALL_RUNS = ("product", "classifier")


def evaluate(
    real: Path,
    synthetic: Path,
    out: Path,
    encoder: Path | None = None,
    encoder_held_out: Path | None = None,
    generator: Path | None = None,
    extractor: list[str] | None = None,
    axes: list[str] | None = None,
    conditions: str | None = None,
    split: RealSplit = "all",
    classifier: Path | None = None,
    reidentification: Path | None = None,
    cache: Path | None = None,
    reconstructions: int = 64,
    bootstrap: int = 200,
    classifier_steps: int = Settings.classifier_steps,
    utility_seeds: int = 3,
    utility_fractions: list[float] | None = None,
    false_positives: float = 0.01,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Compares a synthetic data set with the real one: metrics.json, image grids, closest pairs.

    Five axes: fidelity (FID, KID, precision, recall, density, coverage, diversity, grey values and
    spatial frequencies), representation (the reconstructed representation score, with --encoder),
    condition (does a classifier of real images see what was asked for), utility
    (does a classifier trained with synthetic images do better on real ones), privacy (are training
    images copied). Each number stands beside what real images reach in its place, with a 95 %
    interval over patients. A run that was killed goes on when the same command is given again.

    Args:
        real: Prepared data set, made by 'cxr prepare'; its training split is what the generator
            was trained on.
        synthetic: Folder made by 'cxr generate', or any folder of images: with one CSV file in
            CheXpert's columns, in sub-folders by class, or without labels; or such a CSV file.
        out: Folder of the evaluation; an earlier evaluation there is replaced when this one is
            finished.
        encoder: Encoder product, for the representation score and, unless `extractor` says
            otherwise, for fidelity and privacy.
        encoder_held_out: Another encoder product, such as one of another seed, which gives the
            representation score of a fine-tuned generator without flattering it.
        generator: Generator product, for the representation score; default: the one that made the
            synthetic images, if it still lies where their manifest says.
        extractor: Networks of fidelity and privacy, one or more NAME or NAME=WEIGHTS: inception,
            xrv, rad_dino, encoder, module (TorchScript or safetensors), fixed (for smoke tests).
            Default: encoder where one is given, else inception; other axes need none.
        axes: One or more of fidelity, representation, condition, utility, privacy; default: all.
        conditions: Health conditions joined by commas (default: those of the synthetic data set).
        split: Split of the real images for fidelity; held_out is valid and test.
        classifier: Classifier of the condition axis: a folder 'classifier' of an earlier
            evaluation, or a TorchScript file; default: one is trained on the real training split.
        reidentification: TorchScript file that maps two batches of images in [0, 1] to the
            probability that they show the same patient.
        cache: Folder where features are kept; default: feature_cache beside out.
        reconstructions: Held-out real images per condition to reconstruct, at most.
        bootstrap: Draws of each 95 % interval; 0 for none.
        classifier_steps: Training steps of each classifier.
        utility_seeds: Classifiers trained for each setting of the utility axis.
        utility_fractions: Shares of the real training patients of the utility axis; default: 0.1 1.
        false_positives: Share of real images of other patients that the copy test may flag.
        batch_size: Images that a network sees at once.
        seed: Of every random choice.

    Raises:
        UserError: If an argument does not fit; nothing is written then.
    """
    command = _command(locals())
    settings = Settings(
        split=split,
        reconstructions=reconstructions,
        bootstrap=bootstrap,
        batch_size=batch_size,
        seed=seed,
        classifier_steps=classifier_steps,
        utility_seeds=utility_seeds,
        utility_fractions=tuple(utility_fractions or Settings.utility_fractions),
        false_positives=false_positives,
    )
    chosen_axes = _check_axes(axes or list(AXES))
    _check_settings(settings)
    given: dict[str, Path | None] = {
        "real": real,
        "synthetic": synthetic,
        "encoder": encoder,
        "encoder_held_out": encoder_held_out,
        "generator": generator,
        "classifier": classifier,
        "reidentification": reidentification,
    }
    check_there(given)
    check_places(real, synthetic, out)
    prepared = open_prepared(real, "real")
    maker = find_maker(synthetic, prepared.size)
    if generator is None and encoder is not None and "representation" in chosen_axes:
        generator = maker
    check_inputs_stay(out, given | {"generator": generator, "cache": cache})
    check_networks(classifier, reidentification)
    identities = check_products(encoder, encoder_held_out, generator, maker)
    loaded = load_generator(generator, prepared.size) if generator else None
    extractors = build_extractors(extractor or _default_extractor(chosen_axes, encoder), encoder)
    parsed = None if conditions is None else parse_conditions(conditions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = out.resolve()
    work = Work(place.with_name(f".{place.name}.partial"))
    with work.lock:
        try:
            drawn = read_synthetic(synthetic, prepared.size, work.folder / "synthetic.npy")
            chosen = _choose_conditions(parsed, prepared, drawn)
        except UserError:
            work.discard()
            raise
        inputs = EvaluationInputs(
            real=prepared,
            synthetic=drawn,
            conditions=chosen,
            extractors=[one.to(device) for one in extractors],
            encoders=[
                ScoreEncoder(
                    load_network(Encoder, folder).eval().to(device),
                    Source(role, identities[role]["sha256"]),
                    is_parent(identities, role),
                )
                for role, folder in (("encoder", encoder), ("encoder_held_out", encoder_held_out))
                if folder is not None
            ],
            generator=loaded.to(device) if loaded else None,
            classifier=classifier,
            reidentification=reidentification,
            cache=FeatureCache(cache or out.parent / "feature_cache", batch_size, device),
            work=work.folder,
            settings=settings,
            device=device,
        )
        _measure(inputs, work, out, identities, {"command": command, "axes": chosen_axes})


def _measure(
    inputs: EvaluationInputs,
    work: Work,
    out: Path,
    identities: Identities,
    request: dict[str, Any],
) -> None:
    """Makes what is not there yet of an evaluation, and writes it."""
    facts = describe_inputs(inputs, identities) | request
    _warn_of_another_maker(inputs)
    work.accept(facts)
    axes: list[Axis] = request["axes"]
    parts = [work.axis(axis) or work.save_axis(axis, AXES[axis](inputs)) for axis in axes]
    _write(out, inputs, work, facts, parts)


def _warn_of_another_maker(inputs: EvaluationInputs) -> None:
    """Says where images and reconstructions are of two generators."""
    made_by = inputs.synthetic.product_sha256
    if made_by is not None and inputs.generator is not None and not inputs.made_by_generator:
        print(
            "warning: the synthetic images were made by another product than --generator, whose "
            "reconstructions the representation score judges",
            file=sys.stderr,
        )


def _command(arguments: dict[str, Any]) -> str:
    """The command that was given, with the last part of each path only; see `_without_folders`."""
    words = ["cxr", "evaluate"]
    for name, parameter in inspect.signature(evaluate).parameters.items():
        value = arguments[name]
        if value == parameter.default:
            continue
        values = value if isinstance(value, list) else [value]
        words += [f"--{name}", *(_without_folders(v) for v in values)]
    return shlex.join(words)


def _without_folders(value: Any) -> str:
    """A path, or the path in NAME=PATH, without the folders above it.

    A folder of a name that all runs use, such as `product`, keeps the one above.
    """
    if isinstance(value, Path):
        above = value.parent.name if value.name in NAMES_OF_ALL_RUNS else ""
        return f"{above}/{value.name}" if above else value.name
    name, equals, path = str(value).partition("=")
    return f"{name}={_without_folders(Path(path))}" if equals else name


def _default_extractor(axes: list[Axis], encoder: Path | None) -> list[str]:
    if not {"fidelity", "privacy"} & {*axes}:
        return []
    return ["encoder" if encoder else "inception"]


def _check_axes(axes: list[str]) -> list[Axis]:
    """The axes in their order, each once."""
    for axis in axes:
        if axis not in AXES:
            raise UserError(f"axes: {axis!r} is no axis; use one or more of {', '.join(AXES)}.")
    return [axis for axis in AXES if axis in axes]


def _check_settings(settings: Settings) -> None:
    for name in ("reconstructions", "batch_size", "classifier_steps", "utility_seeds"):
        check_range(name, getattr(settings, name), 1)
    if settings.bootstrap < LEAST_DRAWS and settings.bootstrap != 0:
        raise UserError(
            f"bootstrap: {settings.bootstrap} draws make no interval; give 0 (no intervals), or "
            f"{LEAST_DRAWS} or more."
        )
    check_range("seed", settings.seed, 0, 2**32 - 1)
    for fraction in settings.utility_fractions:
        check_range("utility_fractions", fraction, 0, 1, above=True)
    check_range("false_positives", settings.false_positives, 0, 1, above=True, below=True)


def _choose_conditions(
    asked: list[HealthCondition] | None, prepared: PreparedDataset, synthetic: SyntheticSet
) -> list[HealthCondition]:
    """The conditions asked for, or the synthetic set's; none where it has no labels.

    Raises:
        UserError: If there are labels, but no condition has images on both sides.
    """
    if asked is None and synthetic.requested is None and not synthetic.labelled:
        print("The synthetic images have no labels: what needs conditions is left out.")
        return []
    chosen = synthetic.conditions() if asked is None else asked
    both = [c for c in chosen if synthetic.matches(c).any() and c.matches(prepared.table).any()]
    if not both:
        names = ", ".join(c.name for c in chosen) or "none"
        raise UserError(
            f"conditions: no condition ({names}) has both real and synthetic images; name others "
            "with --conditions."
        )
    return [c for i, c in enumerate(chosen) if not any(c.means(before) for before in chosen[:i])]


def _write(
    out: Path,
    inputs: EvaluationInputs,
    work: Work,
    facts: dict[str, Any],
    parts: list[dict[str, Any]],
) -> None:
    records = [record for part in parts for record in part["records"]]
    skipped = [entry for part in parts for entry in part["skipped"]]
    if not records:
        reasons = "; ".join(f"{s['metric']} of {s['condition']}: {s['reason']}" for s in skipped)
        raise UserError(f"out: nothing to write to {out}, as no number could be made ({reasons}).")
    _save_examples(inputs, work)
    curves = {name: curve for part in parts for name, curve in part["curves"].items()}
    pairs = [pair for part in parts for pair in part["pairs"]]
    judges = {r["extractor_sha256"] for r in records if r["axis"] == "condition"}
    lists = {"records": records, "skipped": skipped, "curves": curves, "pairs": pairs}
    work.finish(out.resolve(), facts | {"classifier": next(iter(sorted(judges)), None)} | lists)
    failed = sum(record["passed"] is False for record in records)
    judged = sum(record["passed"] is not None for record in records)
    print(
        f"{len(records)} records in {out / 'metrics.json'}; of {judged} that are compared with "
        f"real images {failed} are worse than these"
    )


def _save_examples(inputs: EvaluationInputs, work: Work) -> None:
    """The first generated images of each condition and real ones drawn at random."""
    groups = {g.condition: g for g in inputs.groups() if g.subgroup == "all"}
    names = [c.name for c in inputs.conditions] or ["all"]
    for name in names:
        if name not in groups:
            continue
        group, generator = groups[name], np.random.default_rng(inputs.settings.seed)
        rows = np.sort(generator.permutation(group.real)[:GRID_IMAGES])
        drawn = group.synthetic[:GRID_IMAGES]
        original = work.folder / "grids" / f"{name}_original.png"
        if len(rows) and not original.exists():  # the representation axis has its own originals
            work.save_grid("grids", f"{name}_original", np.array(inputs.real.images[rows]))
        if len(drawn):
            work.save_grid("grids", f"{name}_generated", np.array(inputs.synthetic.images[drawn]))
