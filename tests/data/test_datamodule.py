"""The data module on a tiny prepared data set."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.prepared import open_prepared
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.stages.vae import VAE
from cxr_lightning.types import OBSERVATIONS


def test_splits_partition_the_table(datamodule):
    rows = np.concatenate(list(datamodule.rows.values()))
    assert sorted(rows) == list(range(len(datamodule.prepared.table)))
    assert len(datamodule.rows["train"]) > len(datamodule.rows["valid"]) > 0


def test_training_batches_are_whole_and_of_the_training_split(datamodule):
    batches = list(datamodule.train_dataloader())
    assert {len(b.image) for b in batches} == {4}
    index = torch.cat([b.index for b in batches])
    assert len(index.unique()) == len(index)
    assert set(index.tolist()) <= set(datamodule.rows["train"])


def test_validation_is_all_of_its_split_in_order(datamodule):
    index = torch.cat([b.index for b in datamodule.val_dataloader()])
    assert index.tolist() == datamodule.rows["valid"].tolist()
    again = torch.cat([b.index for b in datamodule.predict_dataloader()])
    assert torch.equal(again, index)


def test_test_split_falls_back_to_validation(datamodule):
    assert len(datamodule.rows["test"]) == 0
    index = torch.cat([b.index for b in datamodule.test_dataloader()])
    assert index.tolist() == datamodule.rows["valid"].tolist()
    datamodule.rows["test"] = datamodule.rows["train"][:3]
    index = torch.cat([b.index for b in datamodule.test_dataloader()])
    assert index.tolist() == datamodule.rows["test"].tolist()


def test_order_of_training_depends_on_the_seed(prepared):
    orders = []
    for seed in (0, 0, 1):
        module = CheXpertDataModule(prepared, batch_size=4, image_size=32, seed=seed)
        module.setup()
        orders.append(torch.cat([b.index for b in module.train_dataloader()]).tolist())
    assert orders[0] == orders[1] != orders[2]


def test_images_arrive_raw_and_leave_for_the_stage_in_model_range(datamodule):
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.image.dtype == torch.uint8
    moved = datamodule.on_after_batch_transfer(batch, 0)
    assert torch.equal(moved.image, to_model(batch.image))
    assert torch.equal(moved.index, batch.index)


def test_batch_of_gives_the_rows_asked_for(datamodule):
    rows = datamodule.rows["train"][[5, 1]]
    batch = datamodule.batch_of(rows)
    expected = torch.from_numpy(datamodule.prepared.images[rows]).unsqueeze(1)
    assert torch.equal(batch.image, to_model(expected))
    assert batch.index.tolist() == rows.tolist()
    assert torch.equal(batch.condition.value, datamodule.condition.value[rows])


def test_label_policies_reach_the_condition(prepared):
    known = {}
    for blank in ("unknown", "negative"):
        module = CheXpertDataModule(prepared, 4, 32, uncertain="ones", blank=blank)
        module.setup()
        known[blank] = module.condition.observations_known
    assert known["negative"].all()
    assert not known["unknown"].all()


def test_another_size_is_refused_with_both_remedies(prepared):
    module = CheXpertDataModule(prepared, image_size=64)
    with pytest.raises(UserError, match=r"^data\.image_size: 64 .*set it to 32 or .*--size 64\.$"):
        module.setup()


def test_no_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^data\.root: no prepared data set at"):
        CheXpertDataModule(tmp_path / "none").setup()


def test_a_batch_larger_than_the_training_split_is_refused(prepared):
    with pytest.raises(UserError, match=r"^data\.root: the train split .* needs at least 5000;"):
        CheXpertDataModule(prepared, batch_size=5000, image_size=32).setup()


def test_a_policy_for_no_observation_is_refused(prepared):
    with pytest.raises(UserError, match=r"^data\.uncertain: 'Flu' "):
        CheXpertDataModule(prepared, 4, 32, uncertain={"Flu": "ones"}).setup()


def test_processes_must_divide_the_batch(prepared, monkeypatch):
    monkeypatch.setattr(CheXpertDataModule, "_world_size", 3)
    with pytest.raises(UserError, match=r"^data\.batch_size: 4 .* multiple of 3\.$"):
        CheXpertDataModule(prepared, batch_size=4, image_size=32).setup()


def test_every_process_needs_a_validation_image(prepared, monkeypatch):
    monkeypatch.setattr(CheXpertDataModule, "_world_size", 50)
    with pytest.raises(UserError, match=r"^data\.root: the valid split .* needs at least 50;"):
        CheXpertDataModule(prepared, batch_size=50, image_size=32).setup()


def test_view_is_balanced_in_training_alone(prepared):
    """Over many epochs a condition's images are of each view as often as all images are."""
    names = ["healthy", "pneumonia", "pleural_effusion"]
    module = CheXpertDataModule(prepared, 4, 32, balance_view=names)
    module.setup()
    loader = module.train_dataloader()
    table = module.prepared.table.iloc[module.rows["train"]]
    expected = module.weights / module.weights.sum() * len(table)
    counts = np.zeros(len(table))
    epochs = 200
    for epoch in range(epochs):
        loader.batches.set_epoch(epoch)
        counts += np.bincount(np.concatenate(list(loader.batches)), minlength=len(table))
    # Of each epoch less than one batch is cut off; counts vary by less than one an epoch.
    seen = counts / epochs * len(table) / (len(loader) * 4)
    assert abs(seen - expected).max() < 5 * 0.5 / epochs**0.5
    assert module.val_dataloader().batches.weights is None
    plain = CheXpertDataModule(prepared, 4, 32)
    plain.setup()
    assert plain.train_dataloader().batches.weights is None


def test_resident_images_make_the_same_batches(prepared):
    modules = []
    for resident in (False, True):
        module = CheXpertDataModule(prepared, 4, 32, resident=resident, blank="negative")
        module.setup()
        modules.append(module)
    for name in ("train_dataloader", "val_dataloader"):
        loaders = [getattr(module, name)() for module in modules]
        for plain, rows in zip(*loaders, strict=True):
            assert isinstance(rows, torch.Tensor)
            first = modules[0].on_after_batch_transfer(plain, 0)
            second = modules[1].on_after_batch_transfer(rows, 0)
            assert torch.equal(first.image, second.image)
            assert torch.equal(first.index, second.index)
            for one, other in zip(first.condition, second.condition, strict=True):
                assert torch.equal(one, other)


def test_resident_images_are_copied_once_in_blocks(prepared, monkeypatch):
    monkeypatch.setattr("cxr_lightning.data.dataset.BLOCK", 7)
    module = CheXpertDataModule(prepared, 4, 32, resident=True)
    module.setup()
    for rows in module.train_dataloader():
        module.on_after_batch_transfer(rows, 0)
        first = module.on_device
    assert module.on_device is first
    assert np.array_equal(first.images.numpy(), module.prepared.images)


@pytest.mark.parametrize("resident", [None, False, True])
def test_training_is_the_same_bit_for_bit(prepared, quiet_trainer, resident):
    losses = []
    for choice in (False, resident):
        torch.manual_seed(0)
        stage = VAE(image_size=32, width=4, latent_dim=4)
        module = CheXpertDataModule(prepared, 4, 32, resident=choice)
        quiet_trainer(max_steps=3, limit_val_batches=1).fit(stage, module)
        losses.append([p.detach().clone() for p in stage.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*losses, strict=True))


@pytest.mark.parametrize("changes", [{"batch_size": 0}, {"batch_size": -2}, {"seed": -1}])
def test_numbers_that_are_not_possible(prepared, changes):
    (name,) = changes
    with pytest.raises(UserError, match=rf"^data\.{name}: {changes[name]} is not possible"):
        CheXpertDataModule(prepared, image_size=32, **{"batch_size": 4, **changes}).setup()


def test_each_command_needs_its_own_splits(prepared, monkeypatch):
    module = CheXpertDataModule(prepared, batch_size=5000, image_size=32)
    for stage in ("validate", "predict", "test"):
        module.setup(stage)  # no training batch is needed
    for stage in ("fit", None):
        with pytest.raises(UserError, match=r"the train split .* needs at least 5000"):
            module.setup(stage)
    monkeypatch.setattr(CheXpertDataModule, "_world_size", 50)
    with pytest.raises(UserError, match=r"the valid split .* needs at least 50"):
        module.setup("test")


def test_other_probabilities_are_other_labels(prepared, tmp_path):
    """A run is not continued with them, though it is where the same file lies elsewhere."""
    paths = open_prepared(prepared).table["Path"]

    def state(name: str, value: float) -> dict[str, Any]:
        table = pd.DataFrame({"Path": paths} | dict.fromkeys(OBSERVATIONS, value))
        table.to_csv(tmp_path / name, index=False)
        module = CheXpertDataModule(prepared, 4, 32, probabilities=tmp_path / name)
        module.setup()
        return module.state_dict()

    plain = CheXpertDataModule(prepared, 4, 32)
    plain.setup()
    assert state("a.csv", 0.5) == state("b.csv", 0.5)
    assert state("a.csv", 0.25) != state("b.csv", 0.5)
    assert set(plain.state_dict()) == {"images", "labels"}
