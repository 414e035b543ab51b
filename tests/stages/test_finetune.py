"""Stage 4 on tiny data: the representation loss trains the U-Net and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from text_model import write_text_model

from cxr_lightning.artifacts import save_product
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.text_encoder import TextEncoder
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.errors import UserError
from cxr_lightning.losses.representation import representation_loss
from cxr_lightning.stages.denoising import random_draws, random_drop
from cxr_lightning.stages.finetune import Finetune


@pytest.fixture
def make(products: Path):
    """Makes stages that start from the tiny products."""

    def build(**changes: Any) -> Finetune:
        given = {"generator": products / "generator", "encoder": products / "encoder"}
        return Finetune(**{**given, "image_size": 32, **changes})

    return build


@pytest.mark.parametrize("generator", ["generator", "uncond"])
def test_a_fit_trains_the_denoiser_and_leaves_encoder_autoencoder_and_prior(
    make, products, datamodule, quiet_trainer, generator
):
    module = make(generator=products / generator)
    state = {k: v.clone() for k, v in module.encoder.network.state_dict().items()}
    prior = module.networks.prior
    fitted = {} if prior is None else {k: v.clone() for k, v in prior.state_dict().items()}
    weight = module.networks.denoiser.head.weight.detach().clone()
    trainer = quiet_trainer(max_steps=3, val_check_interval=3)
    trainer.fit(module.train(), datamodule=datamodule)
    names = ("loss", "diffusion", "representation")
    wanted = {f"finetune/{split}/{name}" for split in ("train", "valid") for name in names}
    assert wanted <= trainer.callback_metrics.keys()
    assert all(v.isfinite() for v in trainer.callback_metrics.values())
    assert not torch.equal(module.networks.denoiser.head.weight, weight)
    # batch-norm statistics included
    after = module.encoder.network.state_dict()
    assert any("running_mean" in k for k in after)
    assert all(torch.equal(after[k], state[k]) for k in state)
    assert not any(m.training for m in module.encoder.network.modules())
    assert all(p.grad is None for p in module.encoder.parameters())
    if prior is not None:
        assert all(torch.equal(v, fitted[k]) for k, v in prior.state_dict().items())


def test_starts_from_the_generator_product(make, products):
    module = make()
    start = Generator.from_pretrained(products / "generator")
    for ours in (module.networks.denoiser, module.networks.average):
        pairs = zip(ours.parameters(), start.denoiser.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert all(p.requires_grad for p in module.networks.denoiser.parameters())
    prior = module.networks.prior.state_dict()
    assert all(torch.equal(v, prior[k]) for k, v in start.prior.state_dict().items())


def test_goes_on_with_the_text_encoder_of_the_generator_only(make, products, tmp_path):
    pytest.importorskip("sentence_transformers")
    model = write_text_model(tmp_path / "model")
    wanted = TextEncoder(model, "text").sha256
    start = Generator.from_pretrained(products / "generator")
    parts = {"denoiser": start.denoiser, "autoencoder": start.autoencoder, "prior": start.prior}
    facts = {"parents": {"text_encoder": wanted}}
    save_product(tmp_path / "product", "generator", parts, facts)
    module = make(generator=tmp_path / "product", text_encoder=model)
    assert module.product().parents["text_encoder"] == wanted
    with pytest.raises(UserError, match=r"^data\.text_encoder: none was given"):
        make(generator=tmp_path / "product")
    with pytest.raises(UserError, match=r"^data\.text_encoder: .* without a text encoder"):
        make(text_encoder=model)


def test_loss_is_diffusion_plus_lambda_representation_with_warmup(make, datamodule, monkeypatch):
    module = make(representation_weight=0.5, representation_warmup_steps=3)
    monkeypatch.setattr(module, "log_scalars", lambda *_: None)
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    torch.manual_seed(3)
    loss = module.training_step(batch, 0)
    torch.manual_seed(3)
    condition = random_drop(module, batch.condition, 0.1, 0.1)
    denoised = module.networks.denoise(
        batch.image, condition, random_draws(module, module.networks, 4)
    )
    representation = representation_loss(
        module.encoder.network, batch.image, denoised.x0, denoised.a_t, 0.25
    )
    assert float(representation.detach()) > 0
    expected = denoised.loss() + 0.5 * (1 / 4) * representation
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)


def test_representation_loss_changes_the_gradient_of_the_denoiser(make, datamodule, monkeypatch):
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    gradients = []
    for weight in (0.0, 1.0):
        module = make(representation_weight=weight)
        monkeypatch.setattr(module, "log_scalars", lambda *_: None)
        torch.manual_seed(3)
        module.training_step(batch, 0).backward()
        gradients.append(module.networks.denoiser.stem.weight.grad)
        assert all(p.grad is None for p in module.encoder.parameters())
    assert not torch.allclose(*gradients, rtol=1e-3, atol=0)


def test_checkpoint_holds_no_frozen_weights(make):
    state = make().state_dict()
    assert {".".join(k.split(".")[:2]) for k in state} == {
        f"networks.{part}" for part in ("denoiser", "average", "prior")
    }


def test_product_names_both_parents(make, products):
    product = make().product()
    assert product.kind == "generator"
    assert set(product.parents) == {"generator", "encoder"}
    assert set(product.networks) == {"denoiser", "autoencoder", "prior"}


@pytest.mark.parametrize(
    ("change", "argument"),
    [({"generator": "encoder"}, "generator"), ({"encoder": "generator"}, "encoder")],
)
def test_products_of_another_kind_are_refused(make, products, change, argument):
    with pytest.raises(UserError, match=rf"^model\.{argument}: .* of kind"):
        make(**{k: products / v for k, v in change.items()})


def test_another_image_size_is_refused(make):
    with pytest.raises(UserError, match=r"^model\.generator: .* 32 pixels.* is 64;"):
        make(image_size=64)


def test_a_resumed_run_equals_the_uninterrupted_one(make, prepared, quiet_trainer, tmp_path):
    settings = {"limit_val_batches": 0, "enable_checkpointing": True}

    def fit(steps: int, ckpt: Path | None = None) -> dict[str, torch.Tensor]:
        seed_everything(0, verbose=False)
        module = make()
        saver = ModelCheckpoint(tmp_path, save_top_k=0, save_last=True, every_n_train_steps=2)
        trainer = quiet_trainer(max_steps=steps, callbacks=[saver], **settings)
        data = CheXpertDataModule(prepared, batch_size=4, image_size=32)
        trainer.fit(module, datamodule=data, ckpt_path=ckpt, weights_only=False)
        return module.state_dict()

    fit(2)
    resumed = fit(4, tmp_path / "last.ckpt")
    whole = fit(4)
    assert all(torch.equal(resumed[key], whole[key]) for key in whole)
