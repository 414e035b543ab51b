"""What the stages share: random draws, seeding, learning rate."""

import math
import shutil
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.errors import UserError
from cxr_lightning.stages.base import Stage, default_optimizer
from cxr_lightning.stages.vae import VAE
from cxr_lightning.types import Batch, Condition


def stage(**changes: Any) -> VAE:
    torch.manual_seed(0)
    return VAE(image_size=8, width=4, latent_dim=3, **changes)


def on_rank(module: Stage, rank: int, world: int, step: int = 0) -> Stage:
    """Sets a trainer that says no more than this."""
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=world,
        global_rank=rank,
        global_step=step,
        estimated_stepping_batches=100,
        precision="32-true",
        gradient_clip_val=1.0,
    )
    return module


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_together_draw_what_one_process_draws(world):
    parts = []
    for rank in range(world):
        module = on_rank(stage(), rank, world)
        torch.manual_seed(5)
        parts.append(module.draw(lambda n: torch.randn(n, 2), 8 // world))
    torch.manual_seed(5)
    assert torch.equal(torch.cat(parts), torch.randn(8, 2))


def test_draws_without_trainer_are_those_of_one_process():
    module = stage()
    torch.manual_seed(5)
    drawn = module.draw(lambda n: torch.randn(n, 2), 3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.randn(3, 2))


def step_noise(seed: str, step: int, batch_idx: int, monkeypatch: Any) -> list[float]:
    monkeypatch.setenv("PL_GLOBAL_SEED", seed)
    module = on_rank(stage(), 0, 1, step)
    batch = Batch(torch.zeros(1, 1, 8, 8), Condition.unknown(1), torch.arange(1))
    module.on_train_batch_start(batch, batch_idx)
    return torch.randn(3).tolist()


def test_randomness_of_a_step_depends_on_seed_step_and_micro_step(monkeypatch):
    first = step_noise("0", 3, 1, monkeypatch)
    assert step_noise("0", 3, 1, monkeypatch) == first
    for other in (("1", 3, 1), ("0", 4, 1), ("0", 3, 2)):
        assert step_noise(*other, monkeypatch) != first


def rates(module: Stage) -> list[float]:
    optimizers = on_rank(module, 0, 1).configure_optimizers()
    factor = optimizers["lr_scheduler"]["scheduler"].lr_lambdas[0]
    return [factor(step) for step in range(101)]


def test_warmup_rises_linearly_to_the_full_rate():
    rate = rates(stage(warmup_steps=4))
    assert rate[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rate[100] == 1.0


def test_cosine_decay_ends_at_zero():
    rate = rates(stage(decay="cosine"))
    assert rate[0] == 1.0
    assert rate[50] == pytest.approx(0.5)
    assert rate[100] == pytest.approx(0.0, abs=1e-12)


def test_optimizer_gets_what_is_trained_and_only_that():
    module = stage()
    module.autoencoder.encoder.requires_grad_(False)
    optimizer = on_rank(module, 0, 1).configure_optimizers()["optimizer"]
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert given == [id(p) for p in module.autoencoder.decoder.parameters()]


def test_a_stage_without_generator_has_none():
    assert Stage.generator(stage()) is None


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("algorithm", "order"), [("norm", 2.0), ("value", math.inf)])
def test_gradients_are_clipped_with_a_fused_optimizer(
    prepared, quiet_trainer, precision, algorithm, order
):
    module = VAE(image_size=32, width=4, latent_dim=3)
    trainer = quiet_trainer(
        max_steps=1,
        limit_val_batches=0,
        precision=precision,
        gradient_clip_val=1e-3,
        gradient_clip_algorithm=algorithm,
    )
    trainer.fit(module, datamodule=CheXpertDataModule(prepared, batch_size=4, image_size=32))
    assert trainer.optimizers[0].defaults["fused"]
    gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
    # the loss sums over pixels, so gradients are far larger: clipping leaves exactly the limit
    assert torch.linalg.vector_norm(gradient, order).item() == pytest.approx(1e-3, rel=1e-3)


def test_float16_has_a_loss_scale_so_lightning_clips_there():
    module = stage()
    module._trainer = SimpleNamespace(precision="16-mixed")
    asked = []
    module.clip_gradients = lambda *args: asked.append(args)
    optimizer = default_optimizer(module.parameters())
    module.configure_gradient_clipping(optimizer, 1.0, "norm")
    assert asked == [(optimizer, 1.0, "norm")]


def test_a_run_goes_on_only_with_the_images_and_labels_that_it_began_with(
    prepared, quiet_trainer, tmp_path
):
    data = tmp_path / "data"
    shutil.copytree(prepared, data)

    def fit(steps, checkpoint=None):
        trainer = quiet_trainer(max_steps=steps, limit_val_batches=0)
        module = CheXpertDataModule(data, batch_size=4, image_size=32)
        trainer.fit(
            VAE(image_size=32, width=4, latent_dim=3), datamodule=module, ckpt_path=checkpoint
        )
        return trainer

    saved = tmp_path / "saved.ckpt"
    fit(1).save_checkpoint(saved)
    assert fit(2, saved).global_step == 2
    text = (data / "table.csv").read_text()
    (data / "table.csv").write_text(text.replace(",1.0,", ",0.0,", 1))
    with pytest.raises(UserError, match="^data.root: .* holds other images or labels than"):
        fit(3, saved)


def test_a_checkpoint_is_for_the_products_that_it_was_trained_with():
    module, checkpoint = stage(), {}
    made = module.product()
    module.product = lambda: replace(made, parents={"encoder": "one", "generator": "g"})
    module.on_save_checkpoint(checkpoint)
    module.on_load_checkpoint(checkpoint)
    module.on_load_checkpoint({})  # of an earlier version
    module.product = lambda: replace(made, parents={"encoder": "other", "generator": "g"})
    with pytest.raises(UserError, match="^model.encoder: the checkpoint was trained with another"):
        module.on_load_checkpoint(checkpoint)


def test_float16_with_a_fused_optimizer_and_clipping_is_refused_before_training():
    module = on_rank(stage(), 0, 1)
    module.trainer.precision = "16-mixed"
    with pytest.raises(UserError, match=r"^trainer.precision: with 16-mixed .*fused false"):
        module.configure_optimizers()
    module.trainer.gradient_clip_val = None
    module.configure_optimizers()
    plain = on_rank(stage(optimizer=torch.optim.SGD), 0, 1)
    plain.trainer.precision = "16-mixed"
    plain.configure_optimizers()


def test_the_fused_optimizer_is_adamw():
    torch.manual_seed(0)
    first = torch.nn.Parameter(torch.randn(50))
    second = torch.nn.Parameter(first.detach().clone())
    fused, plain = default_optimizer([first]), torch.optim.AdamW([second], lr=1e-4, fused=False)
    for _ in range(5):
        first.grad = torch.randn(50)
        second.grad = first.grad.clone()
        fused.step()
        plain.step()
    # five steps of float32
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)
