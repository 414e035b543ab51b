"""CheXpertDataModule: the prepared data set for all stages."""

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from lightning import LightningDataModule

from cxr_lightning.data.dataset import Radiographs, table_condition
from cxr_lightning.data.policies import BlankPolicy, UncertainPolicy
from cxr_lightning.data.prepared import PreparedDataset, open_prepared
from cxr_lightning.data.sampler import Batches, BatchSampler, ResumableLoader
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.types import Batch, Condition

Split = Literal["train", "valid", "test"]


class CheXpertDataModule(LightningDataModule):
    """Batches of a prepared data set.

    Whole batches are gathered from the memory map in the main process and go to the device as
    uint8; conversion to model range happens there.

    Args:
        root: Folder written by `cxr prepare`.
        batch_size: Global batch size; every process takes its equal part.
        image_size: Height and width in pixels; must be the prepared size.
        uncertain: Policy for uncertain labels (-1), for all observations or one by one: `ignore`
            (unknown), `zeros`, `ones`, `soft` (0.5).
        blank: Policy for blank labels: `unknown` or `negative`.
        seed: Seed of the order of training images.
    """

    def __init__(
        self,
        root: Path,
        batch_size: int = 64,
        image_size: int = 64,
        uncertain: UncertainPolicy | dict[str, UncertainPolicy] = "ignore",
        blank: BlankPolicy = "unknown",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.image_size = image_size
        self.uncertain: UncertainPolicy | dict[str, UncertainPolicy] = uncertain
        self.blank: BlankPolicy = blank
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
        if self.batch_size % self._world_size:
            raise UserError(
                f"data.batch_size: {self.batch_size} does not divide among {self._world_size} "
                f"processes; use a multiple of {self._world_size}."
            )
        table = self.prepared.table
        self.condition: Condition = table_condition(table, self.uncertain, self.blank)
        self.rows = {s: np.flatnonzero(table["split"] == s) for s in get_args(Split)}
        for split, need in (("train", self.batch_size), ("valid", self._world_size)):
            if len(self.rows[split]) < need:
                raise UserError(
                    f"data.root: the {split} split of {self.root} has {len(self.rows[split])} "
                    f"images and needs at least {need}; use a smaller --data.batch_size or prepare "
                    "more images."
                )

    def batch_of(self, rows: np.ndarray, device: torch.device | str = "cpu") -> Batch:
        """The images at these rows of the prepared table, in model range, on a device."""
        view = Radiographs(self.prepared, rows, self.condition)
        batch = view[list(range(len(rows)))]
        condition = Condition(*(part.to(device) for part in batch.condition))
        return Batch(to_model(batch.image.to(device)), condition, batch.index.to(device))

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

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Raw uint8 to model range, on the device."""
        return batch._replace(image=to_model(batch.image))

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
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            world_size=self._world_size,
        )
        view = Radiographs(self.prepared, rows, self.condition)
        return ResumableLoader(view, sampler, pin_memory=torch.cuda.is_available())
