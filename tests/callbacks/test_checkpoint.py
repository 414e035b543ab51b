"""A run that is killed anywhere ends as one that is not: also what its validations bring."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cxr_lightning.callbacks.checkpoint import Checkpoint
from cxr_lightning.callbacks.export import Export

pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended")

SCORES = {2: 0.05, 4: 0.03, 6: 0.04, 8: 0.035}


class KilledError(Exception):
    pass


class Toy(LightningModule):
    """A module whose validation score depends on the step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        pass

    def on_validation_epoch_end(self) -> None:
        self.log("score", torch.tensor(SCORES.get(self.global_step, 1.0)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


class Exports(Export):
    """Notes the steps at which a product would be written, in a file that outlives a kill."""

    def __init__(self, file: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.file = file

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self.file.open("a") as stream:
            stream.write(f"{trainer.global_step}\n")


class Kill(Callback):
    """Ends the process in its way, at a step of the training or in the validation after it."""

    def __init__(self, where: str, step: int) -> None:
        self.where, self.step = where, step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if (self.where, self.step) == ("training", trainer.global_step):
            raise KilledError

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        if (self.where, self.step) == ("validation", trainer.global_step):
            raise KilledError

    def on_fit_end(self, trainer: Trainer, *_: Any) -> None:
        if self.where == "end":
            raise KilledError


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., list[int]]:
    """Runs to step 8, from the last checkpoint if there is one; gives the steps of products."""

    def fit(kill: Kill | None, monitor: str | None, intervals: tuple[int, int]) -> list[int]:
        save_every, validate_every = intervals
        last = tmp_path / "last.ckpt"
        callbacks: list[Callback] = [
            *([kill] if kill else []),
            Exports(tmp_path / "exports", monitor=monitor),
            Checkpoint(tmp_path, save_last=True, save_top_k=0, every_n_train_steps=save_every),
        ]
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=8,
            val_check_interval=validate_every,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            callbacks=callbacks,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        loaders = (DataLoader(torch.zeros(5, 1)), DataLoader(torch.zeros(2, 1)))
        try:
            trainer.fit(Toy(), *loaders, ckpt_path=last if last.exists() else None)
        except KilledError:
            assert kill is not None
        else:
            assert kill is None
        file = tmp_path / "exports"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    return fit


KILLS = [
    *[("training", step) for step in (1, 2, 3, 4, 5, 6, 7)],
    *[("validation", step) for step in (2, 4, 6, 8)],
]


@pytest.mark.parametrize("intervals", [(2, 2), (1, 2), (3, 2), (4, 4)])
@pytest.mark.parametrize(("where", "step"), KILLS)
def test_the_best_product_is_that_of_a_run_that_is_not_killed(
    run: Callable[..., list[int]], where: str, step: int, intervals: tuple[int, int]
) -> None:
    if where == "validation" and step % intervals[1]:
        pytest.skip("there is no validation at that step")
    run(Kill(where, step), "score", intervals)
    assert run(None, "score", intervals)[-1] == 4


@pytest.mark.parametrize("where", ["validation", "end"])
@pytest.mark.parametrize("intervals", [(2, 2), (8, 8), (8, 2), (3, 4), (2, 3)])
def test_a_run_that_is_killed_at_its_end_leaves_the_newest_product(
    run: Callable[..., list[int]], where: str, intervals: tuple[int, int]
) -> None:
    if where == "validation" and 8 % intervals[1]:
        pytest.skip("there is no validation at that step")
    run(Kill(where, 8), None, intervals)
    assert run(None, None, intervals)[-1] == 8
