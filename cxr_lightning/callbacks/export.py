"""Export: writes the stage's product."""

import math
from pathlib import Path
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from cxr_lightning.artifacts import check_product, check_replaceable, save_product
from cxr_lightning.callbacks.generation import GenerationMetrics
from cxr_lightning.data.description import count_shown, describe_training
from cxr_lightning.errors import UserError
from cxr_lightning.stages.base import Stage


class Export(Callback):
    """Writes the product after each validation, or after each best one, and when fit ends.

    Args:
        folder: Where the product goes; by default `product` in `trainer.default_root_dir`.
        monitor: Logged value that decides what is best. None: the newest networks are exported,
            which is right for averaged weights, unless `GoodhartStop` watches.
        mode: Whether the smallest (`min`) or largest (`max`) value is best.

    Attributes:
        config: The resolved configuration of the run, for the manifest.
    """

    def __init__(
        self,
        folder: Path | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.best: float | None = None
        self.config: dict[str, Any] = {}
        self.trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a folder of something else before the training."""
        if stage == "fit":
            check_replaceable(self._product_folder(trainer), "export.folder")

    def on_train_batch_end(self, *_: Any) -> None:
        """Notes that this run did something: a finished run that is started again does nothing."""
        self.trained = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports if this validation is the best so far, or if nothing is monitored."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor is None or self._improved(trainer):
            self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exports the final networks, unless an earlier best was exported.

        A run that was killed after its last step may have left an older product, or none.
        """
        if self.monitor is not None and self.best is not None:
            if self.trained or self._exported(trainer) is not None:
                return
            rank_zero_warn(
                f"export.monitor: the product of the best {self.monitor} is gone; the newest "
                "networks take its place."
            )
        if self.trained or self._exported(trainer) != trainer.global_step:
            self._export(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, and what it is a value of."""
        return {"best": self.best, "monitor": self.monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the best value so far; a best of something else does not count."""
        if state_dict.get("monitor", self.monitor) == self.monitor:
            self.best = state_dict["best"]

    def _product_folder(self, trainer: Trainer) -> Path:
        return self.folder or Path(trainer.default_root_dir) / "product"

    def _exported(self, trainer: Trainer) -> int | None:
        """The step that the product was exported at; None where there is no whole one."""
        try:
            manifest = check_product(self._product_folder(trainer), None, "export.folder")
        except UserError:
            return None
        step: int | None = manifest.get("step")
        return step

    def _improved(self, trainer: Trainer) -> bool:
        assert self.monitor is not None
        if self.monitor not in trainer.callback_metrics:
            pauses = [c for c in trainer.callbacks if isinstance(c, GenerationMetrics)]  # type: ignore[attr-defined]
            if any(c.every > 1 and not c.measured for c in pauses):
                return False  # nothing was measured since the run was resumed
            raise UserError(
                f"export.monitor: {self.monitor!r} is not logged by this stage; use one of "
                f"{', '.join(sorted(trainer.callback_metrics))}."
            )
        value = float(trainer.callback_metrics[self.monitor])
        best = self.best
        better = best is None or (value < best if self.mode == "min" else value > best)
        if better and not math.isnan(value):  # a NaN as the best would never be beaten
            self.best = value
            return True
        return False

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Stage)
        if not trainer.is_global_zero:
            return
        product = pl_module.product()
        prepared = pl_module.datamodule.prepared
        images, patients = count_shown(prepared.table[prepared.table["split"] == "train"])
        facts = {
            "parents": dict(product.parents),
            "ancestors": pl_module.ancestors,
            "data": prepared.sha256,
            "labels_sha256": prepared.labels_sha256,
            "earlier_data": [s for s in pl_module.earlier_data if s != prepared.sha256],
            "dataset": describe_training(prepared),
            "training_images": images,
            "training_patients": patients,
            "step": trainer.global_step,
            "metrics": {k: float(v) for k, v in sorted(trainer.callback_metrics.items())},
            "config": self.config,
        }
        if product.sampling is not None:
            facts["sampling"] = {
                "sampler": product.sampling.sampler,
                "steps": product.sampling.steps,
            }
        save_product(self._product_folder(trainer), product.kind, product.networks, facts)
