"""Metrics during validation."""

import shutil
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger

from cxr_lightning.artifacts import load_network, save_product
from cxr_lightning.callbacks.generation import GenerationMetrics
from cxr_lightning.callbacks.representation import RepresentationScores
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.representation_score import (
    ReconstructedRepresentationScore,
    embed,
    pair_distances,
)
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.stages.finetune import Finetune
from cxr_lightning.stages.vae import VAE


def test_keys_values_and_checkpoint(products, datamodule, quiet_trainer):
    module = Finetune(products / "generator", products / "encoder", image_size=32)
    metrics = GenerationMetrics(
        extractor="fixed",
        encoder=products / "encoder",
        count=6,
        batch_size=4,
        sampling=Sampling(steps=2),
    )
    trainer = quiet_trainer(callbacks=[metrics])
    logged = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    assert {"finetune/valid/fid_fixed", "finetune/valid/rrs"} <= set(logged)
    assert logged["finetune/valid/fid_fixed"] > 0
    # the score by hand, on the same six images
    generator = Generator.from_pretrained(products / "generator")
    encoder = load_network(Encoder, products / "encoder")
    score = ReconstructedRepresentationScore(encoder)
    for rows in metrics._share(trainer, module, "valid"):
        batch = datamodule.batch_of(rows)
        score.update(
            batch.image,
            generator.reconstruct(batch.image, batch.condition, batch.index, Sampling(steps=2)),
        )
    own = float(score.compute()["rrs"])
    assert logged["finetune/valid/rrs"] == pytest.approx(own, abs=1e-6)
    assert not any("fid" in k or "score" in k for k in module.state_dict())
    # nothing is carried over to the next validation
    again = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    assert again == logged


def test_a_test_scores_the_test_split(products, prepared, quiet_trainer, tmp_path, monkeypatch):
    """It may be the validation images that chose the product."""
    shutil.copytree(prepared, tmp_path / "set")
    table = pd.read_csv(tmp_path / "set" / "table.csv", dtype=str, keep_default_na=False)
    patient = table["patient"][table["split"] == "valid"].iloc[0]
    tested = table.index[table["patient"] == patient]
    table.loc[tested, "split"] = "test"
    table.to_csv(tmp_path / "set" / "table.csv", index=False)
    seen: list[int] = []
    add = RepresentationScores.add_reconstructions

    def noted(self, stage, batch, made):
        seen.extend(batch.index.tolist())
        add(self, stage, batch, made)

    monkeypatch.setattr(RepresentationScores, "add_reconstructions", noted)
    module = Finetune(products / "generator", products / "encoder", image_size=32)
    metrics = GenerationMetrics(
        extractor=None, encoder=products / "encoder", count=99, batch_size=4,
        sampling=Sampling(steps=1),
    )  # fmt: skip
    data = CheXpertDataModule(tmp_path / "set", batch_size=4, image_size=32)
    run = quiet_trainer(callbacks=[metrics])
    logged = run.test(module, datamodule=data, verbose=False)[0]
    assert "finetune/test/rrs" in logged
    assert sorted(seen) == tested.tolist()
    run.validate(module, datamodule=data, verbose=False)
    assert not {*seen[len(tested) :]} & {*tested}


def test_every_second_validation_and_no_extractor(products, datamodule, quiet_trainer):
    torch.manual_seed(0)
    metrics = GenerationMetrics(encoder=products / "encoder", count=2, every=2)
    seen = []
    trainer = quiet_trainer(max_steps=3, val_check_interval=1, callbacks=[metrics])
    measure = metrics._measure_reconstructions

    def noted(*args):
        seen.append(trainer.global_step)
        return measure(*args)

    metrics._measure_reconstructions = noted
    trainer.fit(VAE(image_size=32, width=4, latent_dim=6), datamodule=datamodule)
    assert seen == [1, 3]
    metrics.validations = 1  # as from a checkpoint
    module = VAE(image_size=32, width=4, latent_dim=6)
    assert "vae/valid/rrs" in trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    assert "vae/valid/rrs" in trainer.callback_metrics
    assert not any("floor" in key for key in trainer.callback_metrics)  # the VAE itself trains
    assert not any("fid" in key for key in trainer.callback_metrics)


def test_an_unconditional_generator_has_no_reconstruction_score(
    products, datamodule, quiet_trainer
):
    module = Finetune(products / "uncond", products / "encoder", image_size=32)
    metrics = GenerationMetrics(encoder=products / "encoder", count=2, sampling=Sampling(steps=2))
    trainer = quiet_trainer(callbacks=[metrics])
    logged = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    assert "finetune/valid/rrs" not in logged


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_a_fixed_choice_of_images(products, datamodule, world):
    metrics = GenerationMetrics(encoder=products / "encoder", count=10, batch_size=3)
    stage = Mock(spec=VAE, datamodule=datamodule)
    rows = []
    for rank in range(world):
        trainer = Mock(spec=Trainer, global_rank=rank, world_size=world)
        batches = metrics._share(trainer, stage, "train")
        assert all(len(b) <= 3 for b in batches)
        rows += [int(r) for b in batches for r in b]
    assert len(rows) == len(set(rows)) == 10
    assert set(rows) <= set(datamodule.rows["train"])


def test_a_missing_encoder_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match=r"^generation\.encoder: no product at"):
        GenerationMetrics(encoder=tmp_path / "none")


@pytest.fixture
def held_out(tmp_path):
    """The product of another encoder."""
    torch.manual_seed(1)
    network = Encoder(image_size=32, width=4, backbone="small", dim=6)
    save_product(tmp_path / "held_out", "encoder", {"encoder": network}, {})
    return tmp_path / "held_out"


def test_calibration_and_diversity_by_condition_on_both_encoders(
    products, datamodule, held_out, quiet_trainer
):
    module = Finetune(products / "generator", products / "encoder", image_size=32)
    settings = {"conditions": ["healthy", "pleural_effusion"], "count": 60, "batch_size": 16}
    metrics = GenerationMetrics(
        encoder=products / "encoder",
        encoder_held_out=held_out,
        sampling=Sampling(steps=1),
        **settings,
    )
    trainer = quiet_trainer(callbacks=[metrics])
    logged = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    found = {k.removeprefix("finetune/valid/"): v for k, v in logged.items()}
    overall = {"rrs", "rrs_floor_pixel", "rrs_floor_augment", "rrs_vae", "rrs_ceil_random"}
    assert overall <= found.keys()
    assert {f"held_out_{name}" for name in overall} <= found.keys()
    assert all(value >= 0 for value in found.values())
    # the same by hand, for one condition and the held-out encoder
    encoder = load_network(Encoder, held_out)
    table = datamodule.prepared.table
    rows = np.concatenate(metrics._share(trainer, module, "valid"))
    condition = parse_condition("healthy")
    rows = rows[condition.matches(table.iloc[rows])]
    batch = datamodule.batch_of(rows)
    made = module.generator().reconstruct(
        batch.image, batch.condition, batch.index, Sampling(steps=1)
    )
    expected = float(pair_distances(encoder, batch.image, made).mean())
    assert found["held_out_rrs_healthy"] == pytest.approx(expected, rel=1e-4)
    assert "held_out_nrrs_healthy" in found  # two healthy patients at least
    ratio = found["held_out_rrs_healthy"] / found["held_out_rrs_ceil_same_healthy"]
    assert found["held_out_nrrs_healthy"] == pytest.approx(ratio, rel=1e-5)
    rows = np.concatenate(metrics._share(trainer, module, "train"))
    rows = rows[condition.matches(table.iloc[rows])]
    assert len(rows) > 2
    batch = datamodule.batch_of(rows)
    drawn = module.generator().sample(batch.condition, batch.index, Sampling(steps=1))
    for name, images in (("diversity", drawn), ("diversity_real", batch.image)):
        e = embed(encoder, images)
        cosines = e @ e.T
        n = len(rows)
        mean = float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
        assert found[f"held_out_{name}_healthy"] == pytest.approx(1 - mean, abs=1e-5)
    # the second validation measures the calibration from what it kept
    assert trainer.validate(module, datamodule=datamodule, verbose=False)[0] == logged


def test_a_fine_tuning_is_measured_before_its_first_step(
    products, datamodule, held_out, quiet_trainer, tmp_path
):
    module = Finetune(products / "generator", products / "encoder", image_size=32)
    metrics, other = (
        GenerationMetrics(
            encoder=products / "encoder",
            encoder_held_out=held_out,
            count=4,
            sampling=Sampling(steps=1),
        )
        for _ in range(2)
    )
    trainer = quiet_trainer(callbacks=[other])
    before = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    logger = CSVLogger(tmp_path, name="csv")
    trainer = quiet_trainer(
        max_steps=1, val_check_interval=1, callbacks=[metrics], logger=logger, log_every_n_steps=1
    )
    trainer.fit(module.train(), datamodule=datamodule)
    names = ("rrs", "held_out_rrs", "held_out_rrs_vae")
    for name in names:
        assert metrics.start[name] == pytest.approx(before[f"finetune/valid/{name}"], abs=1e-6)
    rows = pd.read_csv(tmp_path / "csv/version_0/metrics.csv")
    first = rows[rows["step"] == 0]["finetune/valid/held_out_rrs"].dropna()
    # the first row; the validation after the first step is logged at step 0 too
    assert first.iloc[0] == pytest.approx(metrics.start["held_out_rrs"], rel=1e-9)
    again = GenerationMetrics(encoder=products / "encoder", encoder_held_out=held_out)
    again.load_state_dict(metrics.state_dict())
    assert again.start == metrics.start


@pytest.mark.parametrize("encoder", ["encoder", None])
def test_the_encoder_of_the_loss_is_no_held_out_one(products, datamodule, quiet_trainer, encoder):
    """Beside the score's encoder at once; beside the loss's before work starts."""
    said = r"^generation\.encoder_held_out: .* is the very encoder .* --seed_everything"
    own = None if encoder is None else products / encoder
    with pytest.raises(UserError, match=said):
        metrics = GenerationMetrics(encoder=own, encoder_held_out=products / "encoder")
        module = Finetune(products / "generator", products / "encoder", image_size=32)
        trainer = quiet_trainer(callbacks=[metrics])
        trainer.fit(module, datamodule=datamodule)


def test_missing_weights_are_refused_at_once():
    with pytest.raises(UserError):
        GenerationMetrics(extractor="encoder")


@pytest.mark.parametrize("name", ["count", "batch_size", "every"])
def test_numbers_that_are_not_possible(name):
    with pytest.raises(UserError, match=rf"^generation\.{name}: 0 is not possible; use 1 or more"):
        GenerationMetrics(**{name: 0})
