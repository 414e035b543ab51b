"""CheXpertDataModule: the prepared data set for all stages."""

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from cxr_lightning.data.balance import view_weights
from cxr_lightning.data.dataset import Radiographs, ResidentRadiographs, Rows, table_condition
from cxr_lightning.data.policies import BlankPolicy, LabelPolicy, Preset, UncertainPolicy
from cxr_lightning.data.prepared import PreparedDataset, open_prepared
from cxr_lightning.data.sampler import Batches, BatchSampler, ResumableLoader
from cxr_lightning.data.text_encoder import TextEncoder, report_embeddings
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.ranges import check_range
from cxr_lightning.types import Batch, Condition

Split = Literal["train", "valid", "test"]

RESIDENT_SHARE = 0.25
"""Of a GPU's free memory, what the images may take by default: training needs the rest."""


class CheXpertDataModule(LightningDataModule):
    """Batches of a prepared data set.

    Whole batches are gathered from the memory map in the main process and go to the device as
    uint8, or lie there already; conversion to model range happens there. No worker process is
    needed.

    Args:
        root: Folder written by `cxr prepare`.
        batch_size: Global batch size; every process takes its equal part.
        image_size: Height and width in pixels; must be the prepared size.
        uncertain: Policy for uncertain labels (-1), for all observations or one by one: `ignore`
            (unknown), `zeros`, `ones`, `soft` (a number from the range `soft`), `multi_class` (a
            class of its own), `self_trained` (from `probabilities`); or a preset: `chexpert_paper`,
            `common`.
        blank: Policy for blank labels: `unknown` or `negative`, for all observations or one by one.
        soft: Range of `soft`, in [0, 1].
        probabilities: CSV file with a Path column and probabilities by observation.
        balance_view: Health conditions among which AP and PA are made equally common, by drawing
            training images more or less often; see `view_weights`.
        text_encoder: Folder of a text encoder, see `TextEncoder`: the reports become part of the
            conditions. Their embeddings are kept in `root`.
        resident: Whether all images lie on the device, instead of being gathered from the memory
            map batch by batch; by default on a GPU with room for them.
        seed: Seed of the order of training images, and of `soft`.
    """

    def __init__(
        self,
        root: Path,
        batch_size: int = 64,
        image_size: int = 64,
        uncertain: UncertainPolicy | Preset | dict[str, UncertainPolicy] = "ignore",
        blank: BlankPolicy | dict[str, BlankPolicy] = "unknown",
        soft: tuple[float, float] = (0.55, 0.85),
        probabilities: Path | None = None,
        balance_view: list[str] | None = None,
        text_encoder: Path | None = None,
        resident: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.image_size = image_size
        self.policy = LabelPolicy(uncertain, blank, soft, seed)
        self.probabilities = probabilities
        self.balance_view = balance_view
        self.text_encoder = text_encoder
        self.resident = resident
        self.on_device: ResidentRadiographs | None = None
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Opens the prepared data set and applies the label policies.

        Raises:
            UserError: If it is not what the arguments say, or too small for one batch.
        """
        self.prepared: PreparedDataset = open_prepared(self.root)
        if self.prepared.size != self.image_size:
            raise UserError(
                f"data.image_size: {self.image_size} was asked for, but {self.root} holds images "
                f"of {self.prepared.size} pixels; set it to {self.prepared.size} or prepare again "
                f"with --size {self.image_size}."
            )
        check_range("data.batch_size", self.batch_size, 1)
        check_range("data.seed", self.seed, 0)
        if self.batch_size % self._world_size:
            raise UserError(
                f"data.batch_size: {self.batch_size} does not divide among {self._world_size} "
                f"processes; use a multiple of {self._world_size}."
            )
        table = self.prepared.table
        self.condition: Condition = table_condition(table, self.policy, self.probabilities)
        if self.text_encoder is not None:
            encoder = TextEncoder(self.text_encoder, "data.text_encoder")
            text = report_embeddings(self.prepared, encoder)
            self.condition = self.condition._replace(text=text)
        self.rows = {s: np.flatnonzero(table["split"] == s) for s in get_args(Split)}
        for split, need in self._needs(stage).items():
            if len(self.rows[split]) < need:
                raise UserError(
                    f"data.root: the {split} split of {self.root} has {len(self.rows[split])} "
                    f"images and needs at least {need}; use a smaller --data.batch_size, fewer "
                    "processes, or prepare more images (--valid_fraction)."
                )
        self.weights: Float[np.ndarray, " n"] | None = None
        if self.balance_view is not None:
            self.weights = view_weights(table.iloc[self.rows["train"]], self.balance_view)

    def state_dict(self) -> dict[str, Any]:
        """Hashes of images and labels, for the checkpoint."""
        hashes = {"images": self.prepared.sha256, "labels": self.prepared.labels_sha256}
        if self.probabilities is not None:
            hashes["probabilities"] = sha256_file(self.probabilities)
        return hashes

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuses to continue a training on other images or labels.

        Raises:
            UserError: If they differ.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and state_dict != self.state_dict():
            raise UserError(
                f"data.root: {self.root} holds other images or labels than the unfinished run was "
                "trained on; give those, or another --trainer.default_root_dir for a new run."
            )

    def batch_of(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """The images at these rows of the prepared table, in model range, on a device."""
        if self.on_device is not None and self.on_device.images.device == torch.device(device):
            batch = self.on_device.batch(torch.from_numpy(rows).to(device))
            return batch._replace(image=to_model(batch.image))
        view = Radiographs(self.prepared, rows, self.condition)
        batch = view[list(range(len(rows)))]
        image, index = batch.image.to(device), batch.index.to(device)
        return Batch(to_model(image), batch.condition.to(device), index)

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled whole batches of the training split."""
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        """The validation split in order."""
        return self._loader("valid", shuffle=False)

    def test_dataloader(self) -> ResumableLoader:
        """The test split in order; the validation split where the source has no test split."""
        return self._loader("test" if len(self.rows["test"]) else "valid", shuffle=False)

    def predict_dataloader(self) -> Batches:
        """The validation split in order."""
        return Batches(self.val_dataloader())

    def on_after_batch_transfer(self, batch: Batch | Tensor, dataloader_idx: int) -> Batch:
        """Raw uint8 to model range, on the device; rows to a batch where all images lie there."""
        if isinstance(batch, Tensor):
            batch = self._resident_on(batch.device).batch(batch)
        return batch._replace(image=to_model(batch.image))

    @property
    def is_resident(self) -> bool:
        """Whether batches come from a copy of all images on the device."""
        if self.resident is not None or self.trainer is None:
            return bool(self.resident)
        device = self.trainer.strategy.root_device
        if device.type != "cuda":
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return self.on_device is not None or self.prepared.images.nbytes < RESIDENT_SHARE * free

    def _resident_on(self, device: torch.device) -> ResidentRadiographs:
        if self.on_device is None or self.on_device.images.device != device:
            self.on_device = ResidentRadiographs(self.prepared.images, self.condition, device)
        return self.on_device

    def _needs(self, stage: str | None) -> dict[Split, int]:
        """Images that a split must have: a batch to train, one a process to evaluate."""
        if stage == "test":
            return {"test" if len(self.rows["test"]) else "valid": self._world_size}
        evaluated: dict[Split, int] = {"valid": self._world_size}
        if stage in ("validate", "predict"):
            return evaluated
        return {"train": self.batch_size, **evaluated}

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _loader(self, split: Split, shuffle: bool) -> ResumableLoader:
        rows = self.rows[split]
        sampler = BatchSampler(
            len(rows),
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            weights=self.weights if shuffle else None,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            world_size=self._world_size,
        )
        view: Dataset[Any] = (
            Rows(rows) if self.is_resident else Radiographs(self.prepared, rows, self.condition)
        )
        return ResumableLoader(view, sampler, pin_memory=torch.cuda.is_available())
