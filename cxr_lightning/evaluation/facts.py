"""The facts of an evaluation: what was compared, with which networks and settings."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cxr_lightning import __version__
from cxr_lightning.artifacts import product_sha256, training_sets
from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.records import FORMAT
from cxr_lightning.evaluation.synthetic import SyntheticSet
from cxr_lightning.files import sha256_file

Identities = dict[str, dict[str, Any]]
"""Manifests of the products that were given, by their role."""


def describe_inputs(inputs: EvaluationInputs, identities: Identities) -> dict[str, Any]:
    """What was compared, by hash and not by path.

    Args:
        inputs: The evaluation.
        identities: Manifests of the products that were given, and of the images' `maker` where it
            was found.

    Returns:
        The first part of `metrics.json`, plain values only.
    """
    manifest = inputs.synthetic.manifest
    known = ("seed", "sampler", "steps", "guidance", "size", "view")
    table, header = inputs.real.table, inputs.real.header
    generator = identities.get("generator")
    maker = generator if inputs.made_by_generator else identities.get("maker")
    return {
        "format": FORMAT,
        "version": __version__,
        "real": {
            "source": header.get("source"),
            "sha256": inputs.real.sha256,
            "labels_sha256": inputs.real.labels_sha256,
            "size": inputs.real.size,
            "count": len(table),
            "patients": int(table["patient"].nunique()),
            "splits": {str(k): int(v) for k, v in table["split"].value_counts().items()},
            "resize": header.get("resize"),
            "is_training_data": _is_training_data(inputs.real, maker),
        },
        "synthetic": {
            "count": len(inputs.synthetic.images),
            "sha256": inputs.synthetic.sha256,
            "labels_sha256": _synthetic_labels_sha256(inputs.synthetic),
            "labelled": inputs.synthetic.labelled,
            "failures": inputs.synthetic.failures,
            "notes": inputs.synthetic.notes,
            "product_sha256": inputs.synthetic.product_sha256,
            **{fact: manifest[fact] for fact in known if fact in manifest},
        },
        "encoder": identities.get("encoder", {}).get("sha256"),
        "encoder_held_out": identities.get("encoder_held_out", {}).get("sha256"),
        "generator": identities.get("generator", {}).get("sha256"),
        "classifier": _file_or_product_sha256(inputs.classifier),
        "reidentification": _file_or_product_sha256(inputs.reidentification),
        "generator_card": _card(generator or maker),
        "extractors": [
            {
                "name": extractor.name,
                "sha256": extractor.sha256,
                "num_features": extractor.num_features,
                "preprocessing": extractor.preprocessing,
            }
            for extractor in inputs.extractors
        ],
        "settings": asdict(inputs.settings)
        | {"device": inputs.device.type, "torch": torch.__version__},
        "conditions": [
            {
                "name": c.name,
                "definition": c.definition,
                "n_real": len(inputs.real_rows(c)),
                "n_synthetic": int(inputs.synthetic.matches(c).sum()),
            }
            for c in inputs.conditions
        ],
    }


def _synthetic_labels_sha256(synthetic: SyntheticSet) -> str:
    """Hash of the table and of what each image was made for, in the order of the images."""
    requested = [] if synthetic.requested is None else synthetic.requested.tolist()
    rows = pd.util.hash_pandas_object(synthetic.table, index=False).to_numpy(dtype=np.uint64)
    return hashlib.sha256(rows.tobytes() + "\n".join(map(str, requested)).encode()).hexdigest()


def _file_or_product_sha256(path: Path | None) -> str | None:
    """Hash of a network of the user; None where there is none."""
    if path is None:
        return None
    return product_sha256(path) if path.is_dir() else sha256_file(path)


def _is_training_data(real: PreparedDataset, maker: dict[str, Any] | None) -> bool | None:
    """Whether any part of what made the images was trained on this set; None: nobody knows."""
    sets = training_sets(maker or {})
    return real.sha256 in sets if sets else None


def _card(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a generator's manifest says of it, without paths."""
    if manifest is None:
        return None
    facts = {k: manifest.get(k) for k in ("version", "step", "data", "parents", "metrics", "parts")}
    model = manifest.get("config", {}).get("model", {})
    arguments = model.get("init_args", {})
    plain = {k: v for k, v in arguments.items() if isinstance(v, int | float | bool)}
    return facts | {"stage": model.get("class_path"), "arguments": plain}
