"""The card of a product: its README.md, as the Hugging Face Hub shows it.

Everything in it comes from the product's manifest and configs. It does not count in the product's
hash, so that its owner may edit it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from cxr_lightning.errors import UserError
from cxr_lightning.markdown import escape
from cxr_lightning.types import OBSERVATIONS

NAME = "README.md"

PLACEHOLDER = "ORG/NAME"
"""Stands for the product's name on the Hub until it has one."""

EVALUATION = ("<!-- evaluation -->", "<!-- end of evaluation -->")
"""Between them stands what was measured of the product."""

UNMEASURED = "Not yet evaluated against real images"
"""Begins what stands there before."""

FEW = 100
"""Training images of an observation below which the card names it."""

EXAMPLES = 3


@dataclass(frozen=True)
class Kind:
    """What the card of a kind of product says of it.

    Attributes:
        title: The heading.
        does: What the product does, behind "It".
        tags: Tags on the Hub.
        task: Task on the Hub, where one fits.
    """

    title: str
    does: str
    tags: tuple[str, ...]
    task: str | None = None


KINDS = {
    "generator": Kind(
        "Generator of synthetic chest X-rays",
        "makes synthetic chest radiographs that show stated health conditions",
        ("synthetic-data", "diffusion"),
        "text-to-image",
    ),
    "autoencoder": Kind(
        "Autoencoder of chest X-rays",
        "gives a chest radiograph a latent code of few numbers, and a code a blurred radiograph",
        ("variational-autoencoder",),
    ),
    "encoder": Kind(
        "Encoder of chest X-rays",
        "gives a chest radiograph an embedding",
        ("contrastive-learning",),
        "image-feature-extraction",
    ),
    "classifier": Kind(
        "Classifier of chest X-rays",
        "tells findings, view, sex and age from a chest radiograph, to judge synthetic ones",
        ("classification",),
        "image-classification",
    ),
}

STAGES = {
    "VAE": "Stage 1: a variational autoencoder (Kingma and Welling 2014, arXiv 1312.6114).",
    "DDPM": "Stage 2: a denoising diffusion model (Ho et al. 2020, arXiv 2006.11239), given the "
    "health condition.",
    "MoCo": "Stage 3: momentum contrast (He et al. 2020, arXiv 1911.05722) with a clustering loss "
    "over categories from metadata.",
    "Finetune": "Stage 4: a denoising diffusion model (Ho et al. 2020, arXiv 2006.11239), given "
    "the health condition, and fine-tuned with a representation loss: the distance of original and "
    "reconstruction in the embedding of a frozen encoder (MoCo, He et al. 2020, arXiv 1911.05722).",
    "ConsistencyTuning": "Stage 5: a denoising diffusion model (Ho et al. 2020, arXiv 2006.11239), "
    "given the health condition, and tuned to few steps (Geng et al. 2024, arXiv 2406.14548).",
}
"""Method and paper, by the class of the stage."""

REFINES = (
    "It refines the image of a variational autoencoder (DiffuseVAE, Pandey et al. 2022, arXiv "
    "2201.00308)."
)
"""What is said besides of a generator with an autoencoder."""

TRAINING = {
    "batch_size": ("data", "batch_size"),
    "precision": ("trainer", "precision"),
    "gradient_clip_val": ("trainer", "gradient_clip_val"),
    "uncertain labels": ("data", "uncertain"),
    "blank labels": ("data", "blank"),
    "views balanced among": ("data", "balance_view"),
    "seed": ("seed_everything",),
}
"""Settings beside those of the stage, and where the configuration has them."""


FACTS: dict[str, Any] = {
    "step": None,
    "data": None,
    "earlier_data": [],
    "dataset": {},
    "training_images": {},
    "training_patients": {},
    "parents": {},
    "parameters": {},
    "metrics": {},
    "config": {},
}
"""Facts of a manifest that a product may lack."""


def model_card(manifest: Mapping[str, Any], configs: Mapping[str, Mapping[str, Any]]) -> str:
    """The card of a new product.

    Args:
        manifest: What the product says of itself; facts that it lacks are left out.
        configs: Part to the arguments its network is built from; a single network's part is the
            kind of the product.
    """
    kind = KINDS.get(manifest["kind"]) or Kind("Network for chest X-rays", "works on them", ())
    front = ModelCardData(
        library_name="cxr_lightning",
        pipeline_tag=kind.task,
        tags=["chest-x-ray", "radiology", "medical-imaging", *kind.tags],
        inference=False,
    )
    facts = FACTS | dict(manifest)
    known: dict[str, int] = facts["training_images"]
    counts = {
        observation: known[observation] for observation in OBSERVATIONS if observation in known
    }
    body = _template().render(
        **facts | {"training_images": counts},
        about=kind,
        name=PLACEHOLDER,
        markers=EVALUATION,
        unmeasured=UNMEASURED,
        size=next((c["image_size"] for c in configs.values() if "image_size" in c), None),
        method=_method(manifest),
        configs=configs,
        settings=_settings(facts["config"]),
        never=[o for o in OBSERVATIONS if counts.get(o) == 0],
        rare=[o for o in OBSERVATIONS if 0 < counts.get(o, 0) < FEW],
        few=FEW,
        examples=_examples(counts),
    )
    return f"---\n{front.to_yaml()}\n---\n\n{body.strip()}\n"


def complete_card(
    card: str, name: str, evaluation: str | None = None, license: str | None = None
) -> str:
    """A card with what is known when a product is shared; the user's own words stay.

    Args:
        card: The card as it stands.
        name: The product's name on the Hub.
        evaluation: Markdown of what was measured, in the place of what stood there.
        license: An identifier of the Hub's, such as cc-by-nc-4.0.

    Raises:
        UserError: If the card's first lines cannot be read.
    """
    text = card.replace(PLACEHOLDER, name)
    if evaluation is not None:
        begin, end = EVALUATION
        section = f"{begin}\n{evaluation.strip()}\n{end}"
        old = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if old.search(text):
            text = old.sub(lambda _: section, text, count=1)
        else:
            text = f"{text.rstrip()}\n\n## Evaluation\n\n{section}\n"
    if license is None:
        return text
    try:
        whole = ModelCard(text)
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"license: the first lines of {NAME} of the product are no YAML "
            f"({' '.join(str(error).split())}); correct what stands between the two lines ---."
        ) from error
    whole.data["license"] = license
    return str(whole)


def missing_facts(card: str) -> list[str]:
    """What readers of a shared card look for and do not find: licence, evaluation."""
    front = card.removeprefix("---").partition("\n---")[0]
    has_license = re.search(r"^license:", front, re.MULTILINE)
    lacking = {"licence": not has_license, "evaluation": UNMEASURED in card}
    return [name for name, is_lacking in lacking.items() if is_lacking]


def _method(manifest: Mapping[str, Any]) -> str:
    path = manifest.get("config", {}).get("model", {}).get("class_path", "")
    said = [STAGES.get(str(path).rpartition(".")[2], "")]
    said += [REFINES] if "autoencoder" in manifest.get("parts", {}) else []
    return " ".join(filter(None, said))


def _settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run that a reader wants to know; no paths."""
    arguments = config.get("model", {}).get("init_args", {})
    optimizer = arguments.get("optimizer") or {}
    found = {key: value for key, value in arguments.items() if _plain(value)}
    if "class_path" in optimizer:
        found["optimizer"] = str(optimizer["class_path"]).rpartition(".")[2]
        found["learning rate"] = optimizer.get("init_args", {}).get("lr")
    for name, path in TRAINING.items():
        value: Any = config
        for key in path:
            value = value.get(key, {}) if isinstance(value, Mapping) else {}
        if value not in ({}, None):
            found[name] = value
    return {name: _text(value) for name, value in found.items() if value is not None}


def _plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_plain(part) for part in value)
    return isinstance(value, int | float) or (isinstance(value, str) and "/" not in value)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return ", ".join(_text(part) for part in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if isinstance(value, float) else str(value)


def number(value: float) -> str:
    """A number with four significant digits."""
    return f"{value:.4g}"


def _examples(counts: Mapping[str, int]) -> list[str]:
    """Health conditions to ask for in an example: those with most training images."""
    asked = [o for o in OBSERVATIONS if o not in ("No Finding", "Support Devices")]
    shown = sorted((o for o in asked if counts.get(o, 0) > 0), key=lambda o: -counts[o])
    return [o.lower().replace(" ", "_") for o in shown[:EXAMPLES]] or ["pneumonia"]


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("cxr_lightning", ""),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"md": escape, "number": number, "text": _text}
    return environment.get_template("model_card.md.j2")
