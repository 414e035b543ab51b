"""What every image of a synthetic data set shall show."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int

from cxr_lightning.data.dataset import table_condition
from cxr_lightning.data.policies import LabelPolicy
from cxr_lightning.data.prompt import Prompt
from cxr_lightning.data.text_encoder import TextEncoder
from cxr_lightning.data.vocabulary import CONDITIONS, HealthCondition, View
from cxr_lightning.errors import UserError
from cxr_lightning.types import FIELDS, OBSERVATIONS, Condition

UNKNOWN_VIEW = "UNKNOWN"
"""In the column `AP/PA`, where CheXpert has a blank: torchxrayvision's name for it, whose reader
fails on a column that is blank throughout, since pandas takes that for one of numbers."""

PLAIN = LabelPolicy()
"""Of labels where no model states one."""


@dataclass(frozen=True)
class ImageRequests:
    """What every image of a synthetic data set shall show.

    Attributes:
        condition: One row an image.
        names: Name of the health condition of each image; None where it is none of them.
        prompts: The text that each image was asked for with; None without one.
    """

    condition: Condition
    names: list[str | None]
    prompts: list[str | None]

    def __len__(self) -> int:
        return len(self.names)

    @staticmethod
    def of_conditions(
        conditions: Sequence[HealthCondition], count: int, view: View | None = None
    ) -> "ImageRequests":
        """So many images of each condition, one condition after the other."""
        asked = [condition.request(count, view) for condition in conditions]
        names: list[str | None] = [c.name for c in conditions for _ in range(count)]
        return ImageRequests(Condition.cat(asked), names, [None] * len(names))

    @staticmethod
    def of_prompts(
        prompts: Sequence[Prompt], count: int, encoder: TextEncoder | None = None
    ) -> "ImageRequests":
        """So many images of each prompt, one prompt after the other.

        Args:
            prompts: What was understood of each.
            count: Images of each.
            encoder: Makes their texts part of the conditions; None for a model without texts.
        """
        asked = [prompt.condition(count, encoder) for prompt in prompts]
        texts: list[str | None] = [prompt.text for prompt in prompts for _ in range(count)]
        return ImageRequests(Condition.cat(asked), [None] * len(texts), texts)

    @staticmethod
    def like(
        table: pd.DataFrame,
        count: int,
        seed: int,
        balance: bool,
        policy: LabelPolicy = PLAIN,
    ) -> "ImageRequests":
        """So many images with the joint distribution of conditions of a prepared table.

        Args:
            table: Rows of the prepared table to draw from; lateral views are left out, since a
                condition cannot ask for one.
            count: Number of images; each row is drawn as often as any other, give or take one.
            seed: Of the draw.
            balance: Draws an observation first, each as likely as any other that the table has,
                and then a row that shows it, so that rare findings are as common as others.
            policy: What -1 and blank mean: what the model was trained with.

        Raises:
            UserError: If there is no such row, or, with `balance`, none that shows an observation.
        """
        table = table[table["Frontal/Lateral"] != "Lateral"]
        if not len(table):
            raise UserError("like: the prepared set has no frontal image in its split train.")
        generator = np.random.default_rng(seed)
        rows = _balanced(table, count, generator) if balance else _even(table, count, generator)
        condition = table_condition(table, policy).rows(torch.from_numpy(rows))
        return ImageRequests(condition, [None] * count, [None] * count)

    @property
    def sha256(self) -> str:
        """Hash of all of it but the embeddings of texts, which machines round differently."""
        hashed = hashlib.sha256(json.dumps([self.names, self.prompts]).encode())
        for part in self.condition[:3]:
            hashed.update(part.numpy().tobytes())
        return hashed.hexdigest()

    def labels(self) -> list[str]:
        """What each image was asked for in a few words: its condition, prompt, or findings."""
        known = zip(self.names, self.prompts, self.condition.observations.tolist(), strict=True)
        return [name or prompt or _findings(shown) for name, prompt, shown in known]

    def rows(self) -> list[dict[str, Any]]:
        """What was asked for in CheXpert's columns but `Path`: 1, 0 or -1, blank where unknown.

        Sex and view have a word for unknown.
        """
        fields = (part.tolist() for part in self.condition[:3])
        return [_columns(*parts) for parts in zip(*fields, strict=True)]


def _even(table: pd.DataFrame, count: int, generator: np.random.Generator) -> Int[np.ndarray, " n"]:
    rounds = -(-count // len(table))
    return np.concatenate([generator.permutation(len(table)) for _ in range(rounds)])[:count]


def _balanced(
    table: pd.DataFrame, count: int, generator: np.random.Generator
) -> Int[np.ndarray, " n"]:
    shown = [np.flatnonzero(table[observation] == 1.0) for observation in OBSERVATIONS]
    shown = [rows for rows in shown if len(rows)]
    if not shown:
        raise UserError("balance: no image of the prepared set shows any observation.")
    chosen = generator.integers(len(shown), size=count)
    return np.array([generator.choice(shown[i]) for i in chosen])


def _findings(shown: list[float]) -> str:
    """The name of a condition that shows these observations."""
    names = {condition.present[0]: name for name, condition in CONDITIONS.items()}
    present = [names[o] for o, value in zip(OBSERVATIONS, shown, strict=True) if value == 1.0]
    return "+".join(present) or "none stated"


def _columns(value: list[float], known: list[bool], uncertain: list[bool]) -> dict[str, Any]:
    stated = {f: v for f, v, k in zip(FIELDS, value, known, strict=True) if k}
    soft = [o for o in OBSERVATIONS if 0.0 < stated.get(o, 0.0) < 1.0]
    doubtful = {f: -1.0 for f, doubt in zip(FIELDS, uncertain, strict=True) if doubt}
    doubtful |= dict.fromkeys(soft, -1.0)
    labels = stated | doubtful
    return {
        "Sex": {1.0: "Male", 0.0: "Female"}.get(stated.get("Male", -1.0), "Unknown"),
        "Age": round(100.0 * stated["Age"]) if "Age" in stated else "",
        "Frontal/Lateral": "Frontal",
        "AP/PA": {1.0: "PA", 0.0: "AP"}.get(stated.get("PA", -1.0), UNKNOWN_VIEW),
        **{observation: labels.get(observation, "") for observation in OBSERVATIONS},
    }
