"""Export: when a product is written, and which."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer

from cxr_lightning.artifacts import check_product, load_network, save_product
from cxr_lightning.callbacks.export import Export
from cxr_lightning.callbacks.generation import GenerationMetrics
from cxr_lightning.data.description import describe_training
from cxr_lightning.errors import UserError
from cxr_lightning.networks.autoencoder import Autoencoder
from cxr_lightning.stages.vae import VAE


@pytest.fixture
def module() -> VAE:
    torch.manual_seed(0)
    return VAE(image_size=32, width=4, latent_dim=6)


def test_product_of_a_fit_is_the_network_at_its_end_with_its_facts(
    module, datamodule, quiet_trainer, tmp_path
):
    export = Export()
    export.config = {"model": {"width": 4}}
    quiet_trainer(max_steps=3, val_check_interval=2, callbacks=[export]).fit(
        module, datamodule=datamodule
    )
    manifest = check_product(tmp_path / "product", "autoencoder", "model")
    assert manifest["step"] == 3
    assert manifest["data"] == datamodule.prepared.sha256
    assert manifest["config"] == {"model": {"width": 4}}
    assert "vae/valid/loss" in manifest["metrics"]
    assert manifest["dataset"] == describe_training(datamodule.prepared)
    train = datamodule.prepared.table.query("split == 'train'")
    shown = train[train["Pneumonia"] == 1]
    assert manifest["training_images"]["Pneumonia"] == len(shown) > 0
    assert manifest["training_patients"]["Pneumonia"] == len(set(shown["patient"]))
    card = (tmp_path / "product" / "README.md").read_text(encoding="utf-8")
    assert f"| Training images | {len(train)} |" in card
    assert "| vae/valid/loss | " in card
    loaded = load_network(Autoencoder, tmp_path / "product").state_dict()
    state = module.autoencoder.state_dict()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


class Steps(Export):
    """Notes the steps at which a product is written."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(**changes)
        self.steps: list[int] = []

    def _export(self, trainer: Any, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)


def test_written_after_each_validation_and_at_the_end(module, datamodule, quiet_trainer):
    export = Steps()
    trainer = quiet_trainer(max_steps=5, val_check_interval=2, callbacks=[export])
    trainer.fit(module, datamodule=datamodule)
    assert export.steps == [2, 4, 5]


def test_not_written_by_sanity_checks_validate_and_test(module, datamodule, quiet_trainer):
    export = Steps()
    trainer = quiet_trainer(
        max_steps=1, num_sanity_val_steps=1, limit_val_batches=1, callbacks=[export]
    )
    trainer.validate(module, datamodule=datamodule, verbose=False)
    trainer.test(module, datamodule=datamodule, verbose=False)
    assert export.steps == []
    trainer.fit(module, datamodule=datamodule)
    assert export.steps[-1] == 1
    assert 0 not in export.steps


def validations(export: Steps, values: list[float]) -> list[int]:
    """Runs the hooks of validations with these values of the monitored key, then the end."""
    trainer = Mock(spec=Trainer, sanity_checking=False, state=SimpleNamespace(fn="fit"))
    module = Mock(spec=VAE)
    export.on_train_batch_end(trainer, module, None, None, 0)
    for step, value in enumerate(values):
        trainer.global_step = step
        trainer.callback_metrics = {"k": torch.tensor(value)}
        export.on_validation_end(trainer, module)
    trainer.global_step = 99
    export.on_fit_end(trainer, module)
    return export.steps


@pytest.mark.parametrize(("step", "written"), [(9, []), (8, [9]), (None, [9])])
def test_a_finished_run_that_is_started_again_writes_what_is_missing(tmp_path, step, written):
    trainer = Mock(spec=Trainer, global_step=9, default_root_dir=str(tmp_path))
    if step is not None:
        network = Autoencoder(image_size=8, width=4, latent_dim=2)
        save_product(tmp_path / "product", "autoencoder", {"autoencoder": network}, {"step": step})
    export = Steps()
    export.on_fit_end(trainer, Mock(spec=VAE))
    assert export.steps == written


NAN = float("nan")


@pytest.mark.parametrize(
    ("mode", "values", "steps"),
    [
        ("min", [3.0, 2.0, 2.5, 1.0], [0, 1, 3]),
        ("min", [1.0, 1.0, 2.0], [0]),
        ("max", [1.0, 3.0, 3.0, 2.0, 4.0], [0, 1, 4]),
        ("min", [NAN, 2.0, NAN, 1.0], [1, 3]),
        ("max", [NAN, 1.0, NAN, 2.0], [1, 3]),
        ("min", [NAN], [99]),
        ("min", [], [99]),
    ],
)
def test_only_the_best_is_written_where_a_value_is_monitored(mode, values, steps):
    assert validations(Steps(monitor="k", mode=mode), values) == steps


def test_the_best_of_another_value_does_not_count():
    first, second = Steps(monitor="other"), Steps(monitor="k")
    first.best = 0.5
    second.load_state_dict(first.state_dict())
    assert validations(second, [3.0]) == [0]


def test_best_value_survives_a_resume():
    first = Steps(monitor="k")
    validations(first, [2.0])
    second = Steps(monitor="k")
    second.load_state_dict(first.state_dict())
    assert validations(second, [3.0]) == []
    assert validations(second, [1.0]) == [0]


def test_a_key_that_is_not_logged_is_refused_with_those_that_are(module, datamodule, quiet_trainer):
    trainer = quiet_trainer(
        max_steps=1, val_check_interval=1, callbacks=[Export(monitor="vae/valid/typo")]
    )
    with pytest.raises(UserError, match=r"^export\.monitor: 'vae/valid/typo' .*vae/valid/loss"):
        trainer.fit(module, datamodule=datamodule)


def test_a_best_product_that_is_gone_is_replaced_by_the_newest(module, tmp_path):
    export = Steps(monitor="vae/valid/loss")
    export.load_state_dict({"monitor": "vae/valid/loss", "best": -1.0})
    trainer = Mock(spec=Trainer, global_step=7, default_root_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="export.monitor: the product of the best .* is gone"):
        export.on_fit_end(trainer, module)
    assert export.steps == [7]


def test_goes_to_the_folder_asked_for(module, datamodule, quiet_trainer, tmp_path):
    trainer = quiet_trainer(
        max_steps=1, limit_val_batches=0, callbacks=[Export(folder=tmp_path / "a" / "b")]
    )
    trainer.fit(module, datamodule=datamodule)
    check_product(tmp_path / "a" / "b", "autoencoder", "model")
    assert not (tmp_path / "product").exists()


def test_a_folder_of_something_else_is_refused_before_the_training(
    module, datamodule, quiet_trainer, tmp_path
):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    trainer = quiet_trainer(max_steps=1, callbacks=[Export(folder=tmp_path / "run")])
    with pytest.raises(UserError, match="export.folder: .*run is there and is no product"):
        trainer.fit(module, datamodule=datamodule)
    assert trainer.global_step == 0


def test_a_monitor_that_was_not_measured_since_a_resume_is_waited_for():
    export = Export(monitor="finetune/valid/rrs")
    pausing, always = (GenerationMetrics(extractor="fixed", every=every) for every in (2, 1))
    trainer = Mock(spec=Trainer, callback_metrics={}, callbacks=[pausing])
    assert not export._improved(trainer)
    pausing.measured = True
    for callback in (pausing, always):
        trainer.callbacks = [callback]
        with pytest.raises(UserError, match="is not logged by this stage"):
            export._improved(trainer)
