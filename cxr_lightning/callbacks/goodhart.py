"""GoodhartStop: ends a fine-tuning that improves its own measure alone."""

from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from cxr_lightning.callbacks.export import Export
from cxr_lightning.callbacks.generation import HELD_OUT, GenerationMetrics
from cxr_lightning.errors import UserError
from cxr_lightning.stages.base import Stage

SCORE = "rrs"


class GoodhartStop(Callback):
    """Stops when the held-out score no longer improves while the score of the loss's encoder falls.

    "When a measure becomes a target, it ceases to be a good measure": from there on the generator
    learns the encoder and not the images. Of validations that measure the scores `patience` in a
    row must not improve on the best held-out score, with the other score below what it was at that
    best one. Counted from what the fine-tuning starts from. The product is then the one of the best
    held-out score, unless `export.monitor` names another value.

    Works where `GenerationMetrics` measures both scores; elsewhere, and with `patience: null`,
    there is no such stop, and the newest networks are the product.

    Args:
        patience: Validations without improvement; null for no stop.

    Raises:
        UserError: If `patience` is less than 1.
    """

    def __init__(self, patience: int | None = 5) -> None:
        if patience is not None and patience < 1:
            raise UserError(f"goodhart.patience: {patience} is too small; use 1 or more, or null.")
        self.patience = patience
        self.metrics: GenerationMetrics | None = None
        self.best = float("inf")
        self.own_at_best = float("inf")
        self.waited = 0
        self.stopped = False

    def state_dict(self) -> dict[str, Any]:
        """Best scores and how long ago; whether that ended the training."""
        names = ("best", "own_at_best", "waited", "stopped")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on waiting; what was stopped stays so."""
        self.stopped = state_dict.get("stopped", False)  # checkpoints before it was noted
        self.best = state_dict["best"]
        self.own_at_best = state_dict["own_at_best"]
        self.waited = state_dict["waited"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks whether both scores are measured, and makes the best held-out one the product's."""
        assert isinstance(pl_module, Stage)
        if stage != "fit" or pl_module.loss_encoder is None or self.patience is None:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        watching = [
            callback
            for callback in callbacks
            if isinstance(callback, GenerationMetrics) and callback.watches_held_out(pl_module)
        ]
        if not watching:
            rank_zero_info(
                "goodhart: the scores of the loss's encoder and of a held-out one are not both "
                "measured, so there is no stop where the first falls alone; give "
                "--generation.encoder and --generation.encoder_held_out."
            )
            return
        self.metrics = watching[0]
        for callback in callbacks:
            if isinstance(callback, Export) and callback.monitor is None:
                callback.monitor = f"{pl_module.name}/valid/{HELD_OUT}{SCORE}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the scores before the first step as the first ones."""
        if self.stopped and self.metrics is not None:
            trainer.should_stop = True
        if self.metrics is not None and trainer.global_step == 0:
            start = self.metrics.start
            self.best, self.own_at_best = start[HELD_OUT + SCORE], start[SCORE]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compares and stops; the same on every process, since the scores are."""
        assert isinstance(pl_module, Stage)
        if self.metrics is None or trainer.sanity_checking or not self.metrics.measured:
            return
        own, held_out = (
            float(trainer.callback_metrics[f"{pl_module.name}/valid/{prefix}{SCORE}"])
            for prefix in ("", HELD_OUT)
        )
        if held_out < self.best:
            self.best, self.own_at_best, self.waited = held_out, own, 0
            return
        self.waited += 1
        assert self.patience is not None
        if self.waited >= self.patience and own < self.own_at_best:
            trainer.should_stop = self.stopped = True
            rank_zero_info(
                f"goodhart: stopped at step {trainer.global_step}: the score of the held-out "
                f"encoder has not been below {self.best:.4g} for {self.waited} validations, while "
                f"that of the loss's encoder fell from {self.own_at_best:.4g} to {own:.4g}."
            )
