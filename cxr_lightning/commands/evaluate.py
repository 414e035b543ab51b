"""`cxr evaluate`: how good, faithful, useful and private a synthetic data set is."""

import inspect
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from cxr_lightning.artifacts import check_product, load_network
from cxr_lightning.data.prepared import PreparedDataset, open_prepared
from cxr_lightning.data.vocabulary import HealthCondition, parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.condition import condition
from cxr_lightning.evaluation.facts import Identities, describe_inputs
from cxr_lightning.evaluation.features import FeatureCache
from cxr_lightning.evaluation.fidelity import fidelity
from cxr_lightning.evaluation.inputs import EvaluationInputs, RealSplit, ScoreEncoder, Settings
from cxr_lightning.evaluation.judge import open_classifier
from cxr_lightning.evaluation.privacy import privacy
from cxr_lightning.evaluation.records import AxisResult, Source
from cxr_lightning.evaluation.reidentification import load_reidentification
from cxr_lightning.evaluation.representation import representation
from cxr_lightning.evaluation.synthetic import SyntheticSet, read_synthetic
from cxr_lightning.evaluation.utility import utility
from cxr_lightning.evaluation.work import Work
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
    spatial frequencies), representation (the reconstructed representation score, with --generator
    and --encoder), condition (does a classifier of real images see what was asked for), utility
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
        encoder: Encoder product, for the representation score.
        encoder_held_out: Another encoder product, such as one of another seed, which gives the
            representation score of a fine-tuned generator without flattering it.
        generator: Generator product, for the representation score.
        extractor: Networks of fidelity and privacy, one or more NAME or NAME=WEIGHTS: inception,
            xrv, rad_dino, encoder, module (TorchScript or safetensors), fixed (for smoke tests).
            Default: encoder where one is given, else inception; other axes need none.
        axes: Which axes, one or more; default: all.
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
    _check_places(real, synthetic, out)
    _check_inputs_stay(
        out,
        encoder=encoder,
        encoder_held_out=encoder_held_out,
        generator=generator,
        classifier=classifier,
        reidentification=reidentification,
        cache=cache,
    )
    _check_networks(classifier, reidentification)
    prepared = open_prepared(real, "real")
    identities = _check_products(encoder, encoder_held_out, generator)
    loaded = _load_generator(generator, prepared.size) if generator else None
    extractors = build_extractors(extractor or _default_extractor(chosen_axes, encoder), encoder)
    parsed = None if conditions is None else _parse_conditions(conditions)
    place = out.resolve()
    work = Work(place.with_name(f".{place.name}.partial"))
    try:
        drawn = read_synthetic(synthetic, prepared.size, work.folder / "synthetic.npy")
        chosen = _choose_conditions(parsed, prepared, drawn)
    except UserError:
        work.discard()
        raise
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    inputs = EvaluationInputs(
        real=prepared,
        synthetic=drawn,
        conditions=chosen,
        extractors=[one.to(device) for one in extractors],
        encoders=[
            ScoreEncoder(
                load_network(Encoder, folder).eval().to(device),
                Source(role, identities[role]["sha256"]),
                _is_parent(identities, role),
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
    facts = describe_inputs(inputs, identities) | {"command": command, "axes": chosen_axes}
    _warn_of_another_maker(facts)
    work.accept(facts)
    parts = [work.axis(axis) or work.save_axis(axis, AXES[axis](inputs)) for axis in chosen_axes]
    _write(out, inputs, work, facts, parts)


def _warn_of_another_maker(facts: dict[str, Any]) -> None:
    """Says where images and reconstructions are of two generators."""
    made_by, generator = facts["synthetic"]["product_sha256"], facts["generator"]
    if None not in (made_by, generator) and made_by != generator:
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


def _check_places(real: Path, synthetic: Path, out: Path) -> None:
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


def _check_inputs_stay(out: Path, **inputs: Path | None) -> None:
    """Refuses inputs within the folder that is replaced when the evaluation is finished."""
    for name, path in inputs.items():
        if path is not None and out.resolve() in (path.resolve(), *path.resolve().parents):
            raise UserError(
                f"{name}: {path} lies in {out}, which the evaluation replaces; give another --out."
            )


def _check_networks(classifier: Path | None, reidentification: Path | None) -> None:
    """Opens the networks of the user once, so that a wrong file is told before work starts."""
    for name, file in (("classifier", classifier), ("reidentification", reidentification)):
        if file is not None and not file.exists():
            raise UserError(f"{name}: there is no {file}; give a file or folder that is there.")
    if classifier is not None:
        open_classifier(classifier)
    if reidentification is not None:
        load_reidentification(reidentification, torch.device("cpu"))


def _is_evaluation(folder: Path) -> bool:
    try:
        content = json.loads((folder / "metrics.json").read_text())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"format", "records"} <= set(content)


def _check_products(
    encoder: Path | None, encoder_held_out: Path | None, generator: Path | None
) -> Identities:
    """Manifests of the products that were given."""
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
    ):
        if folder is not None:
            identities[role] = check_product(folder, kind, role)
    held_out = identities.get("encoder_held_out", {}).get("sha256")
    used = identities.get("encoder", {}).get("sha256")
    if held_out is not None and (held_out == used or _is_parent(identities, "encoder_held_out")):
        raise UserError(
            f"encoder_held_out: {encoder_held_out} is the encoder of --encoder, or the one that "
            "the generator was fine-tuned with; give one that was trained with another "
            "--seed_everything."
        )
    return identities


def _load_generator(folder: Path, size: int) -> Generator:
    generator = Generator.from_pretrained(folder, "generator")
    if generator.image_size != size:
        raise UserError(
            f"generator: {folder} makes images of {generator.image_size} pixels but the real "
            f"images have {size}; prepare them with --size {generator.image_size}."
        )
    return generator


def _is_parent(identities: Identities, role: str) -> bool:
    """Whether the generator's manifest names the encoder of this role."""
    if not {role, "generator"} <= set(identities):
        return False
    return identities[role]["sha256"] in json.dumps(identities["generator"])


def _parse_conditions(text: str) -> list[HealthCondition]:
    return [parse_condition(part) for part in text.split(",") if part.strip()]


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
