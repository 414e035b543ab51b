"""Metrics during validation."""

from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer

from cxr_lightning.artifacts import load_network
from cxr_lightning.callbacks.generation import GenerationMetrics
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.metrics.representation_score import ReconstructedRepresentationScore
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
    score = ReconstructedRepresentationScore(load_network(Encoder, products / "encoder"))
    for rows in metrics._share(trainer, module, "valid"):
        batch = datamodule.batch_of(rows)
        score.update(
            batch.image,
            generator.reconstruct(batch.image, batch.condition, batch.index, Sampling(steps=2)),
        )
    assert logged["finetune/valid/rrs"] == pytest.approx(float(score.compute()), abs=1e-6)
    assert not any("fid" in k or "score" in k for k in module.state_dict())
    # nothing is carried over to the next validation
    again = trainer.validate(module, datamodule=datamodule, verbose=False)[0]
    assert again == logged


def test_every_second_validation_and_no_extractor(products, datamodule, quiet_trainer):
    torch.manual_seed(0)
    metrics = GenerationMetrics(encoder=products / "encoder", count=2, every=2)
    seen = []
    trainer = quiet_trainer(max_steps=3, val_check_interval=1, callbacks=[metrics])
    measure = metrics._measure_score
    metrics._measure_score = lambda *args: (seen.append(trainer.global_step), measure(*args))
    trainer.fit(VAE(image_size=32, width=4, latent_dim=6), datamodule=datamodule)
    assert seen == [1, 3]
    assert "vae/valid/rrs" in trainer.callback_metrics
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


def test_missing_weights_are_refused_at_once():
    with pytest.raises(UserError):
        GenerationMetrics(extractor="encoder")
