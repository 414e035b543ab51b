"""Stage 4 on tiny data: the representation loss trains the U-Net and nothing else."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from text_model import write_text_model

from cxr_lightning.artifacts import check_product, save_product, training_sets
from cxr_lightning.callbacks.export import Export
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.text_encoder import TextEncoder
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.errors import UserError
from cxr_lightning.losses.representation import representation_loss
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.stages.draws import random_draws, random_drop
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
    assert wanted | {"finetune/valid/diffusion_ratio"} <= trainer.callback_metrics.keys()
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
    parts = {f"networks.{part}" for part in ("denoiser", "average", "prior")}
    assert {".".join(k.split(".")[:2]) for k in state} == {*parts, "diffusion_at_start"}


def test_the_product_knows_all_sets_that_it_was_trained_on(
    make, products, datamodule, quiet_trainer, tmp_path
):
    generator = shutil.copytree(products / "generator", tmp_path / "generator")
    file = generator / "manifest.json"
    earlier = {"data": "aa" * 32, "earlier_data": ["bb" * 32, datamodule.prepared.sha256]}
    file.write_text(json.dumps(json.loads(file.read_text()) | earlier))
    module = make(generator=generator)
    quiet_trainer(max_steps=1, limit_val_batches=0, callbacks=[Export()]).fit(
        module, datamodule=datamodule
    )
    manifest = check_product(tmp_path / "product", "generator", "model")
    assert manifest["earlier_data"] == ["aa" * 32, "bb" * 32]
    assert training_sets(manifest) == [manifest["data"], "aa" * 32, "bb" * 32]
    card = (tmp_path / "product/README.md").read_text(encoding="utf-8")
    assert f"| Trained before on images of sha256 | {'aa' * 32}, {'bb' * 32}; " in card


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


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"representation_weight": -0.1}, r"^model\.representation_weight: -0\.1 .* use 0"),
        ({"representation_weight": float("nan")}, r"^model\.representation_weight: nan"),
        ({"representation_warmup_steps": -1}, r"^model\.representation_warmup_steps: -1"),
        (
            {"mode": "reverse", "reverse_steps": 1},
            r"^model\.reverse_steps: 1 is not possible; use 2",
        ),
        ({"snr_min": -0.25}, r"^model\.snr_min: -0\.25 .* use 0"),
    ],
)
def test_values_out_of_range_are_refused(make, change, said):
    with pytest.raises(UserError, match=said):
        make(**change)


def test_an_encoder_of_another_image_size_is_refused(make, tmp_path):
    network = Encoder(image_size=16, width=4, backbone="small", dim=8)
    save_product(tmp_path / "encoder", "encoder", {"encoder": network}, {})
    with pytest.raises(UserError, match=r"^model\.encoder: .* of 16 pixels, .* is 32; train one"):
        make(encoder=tmp_path / "encoder")


def collect(module: Finetune, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a training step logs."""
    logged: dict[str, Any] = {}
    monkeypatch.setattr(module, "log_scalars", lambda _, scalars, __: logged.update(scalars))
    return logged


def test_mode_hidden_aligns_the_middle_with_the_clean_image(make, datamodule, monkeypatch):
    module = make(mode="hidden", representation_weight=0.5)
    logged = collect(module, monkeypatch)
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    torch.manual_seed(3)
    loss = module.training_step(batch, 0)
    torch.manual_seed(3)
    condition = random_drop(module, batch.condition, 0.1, 0.1, 0.2)
    denoised = module.networks.denoise(
        batch.image, condition, random_draws(module, module.networks, 4)
    )
    projected = module.projector(denoised.middle)
    target = module.encoder.network(batch.image)
    cosine = torch.nn.functional.cosine_similarity(projected, target)
    torch.testing.assert_close(logged["representation"], (1 - cosine).mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(loss, denoised.loss() + 0.5 * (1 - cosine).mean())
    loss.backward()
    assert all(p.grad is not None for p in module.projector.parameters())
    assert all(p.grad is None for p in module.encoder.parameters())
    # training only: no part of the product
    assert set(module.product().networks) == {"denoiser", "autoencoder", "prior"}


def test_mode_posterior_embeds_a_sample_of_the_reverse_step(make, datamodule, monkeypatch):
    module = make(mode="posterior", snr_min=0.0)
    logged = collect(module, monkeypatch)
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    torch.manual_seed(3)
    module.training_step(batch, 0)
    torch.manual_seed(3)
    condition = random_drop(module, batch.condition, 0.1, 0.1, 0.2)
    draws = random_draws(module, module.networks, 4)
    noise = torch.randn(4, 1, 32, 32)
    denoised = module.networks.denoise(batch.image, condition, draws)
    # Ho et al. 2020, equations 6 and 7, image by image
    a = module.networks.alpha_bar.tolist()
    previous = torch.empty_like(batch.image)
    for i, t in enumerate(draws.t.tolist()):
        alpha = a[t] / a[t - 1]
        beta = 1 - alpha
        mean = (
            a[t - 1] ** 0.5 * beta / (1 - a[t]) * denoised.x0[i]
            + alpha**0.5 * (1 - a[t - 1]) / (1 - a[t]) * denoised.y[i]
        )
        previous[i] = mean + ((1 - a[t - 1]) / (1 - a[t]) * beta) ** 0.5 * noise[i]
    expected = representation_loss(module.encoder.network, batch.image, previous, denoised.a_t, 0.0)
    # alpha_bar in float32 here and there
    torch.testing.assert_close(logged["representation"], expected, rtol=1e-4, atol=1e-6)


def test_mode_reverse_embeds_the_end_of_the_reverse_process(make, datamodule, monkeypatch):
    module = make(mode="reverse", reverse_steps=3)
    logged = collect(module, monkeypatch)
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    torch.manual_seed(3)
    module.training_step(batch, 0).backward()
    assert all(p.grad is None for p in module.encoder.parameters())
    torch.manual_seed(3)
    condition = random_drop(module, batch.condition, 0.1, 0.1, 0.2)
    draws = random_draws(module, module.networks, 4)
    denoised = module.networks.denoise(batch.image, condition, draws)
    end, a_last = module.networks.reverse(denoised, condition, draws, 3)
    assert (a_last >= denoised.a_t).all()
    expected = representation_loss(module.encoder.network, batch.image, end, a_last, 0.25)
    torch.testing.assert_close(logged["representation"], expected)


def test_the_control_leaves_the_encoder_alone_in_training(make, datamodule, monkeypatch):
    for mode in ("x0", "hidden"):
        module = make(representation_weight=0.0, mode=mode)
        logged = collect(module, monkeypatch)

        def refuse(*_: Any) -> None:
            raise AssertionError

        monkeypatch.setattr(module.encoder.network, "forward", refuse)
        batch = datamodule.batch_of(datamodule.rows["train"][:4])
        module.training_step(batch, 0).backward()
        assert logged.keys() == {"loss", "diffusion"}
        # with DDP a parameter without gradient is an error
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize("mode", ["x0", "hidden"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradient_ratio_is_that_of_two_backward_passes(
    make, datamodule, quiet_trainer, mode, precision
):
    module = make(mode=mode, representation_weight=0.5, representation_warmup_steps=1)
    trainer = quiet_trainer(
        max_steps=1, precision=precision, log_every_n_steps=1, limit_val_batches=0
    )
    losses: list[tuple[torch.Tensor, torch.Tensor]] = []
    ratio = module._gradient_ratio

    def keep(representation: torch.Tensor, diffusion: torch.Tensor) -> torch.Tensor:
        found = ratio(representation, diffusion)
        norms = []
        for loss in (representation, diffusion):
            loss.backward(retain_graph=True)
            middle = module.networks.denoiser.middle[-1].conv2
            layer = module.networks.denoiser.head if mode == "x0" else middle
            norms.append(float(layer.weight.grad.norm()))
            module.zero_grad()
        losses.append((found, norms[0] / norms[1]))
        return found

    module._gradient_ratio = keep
    trainer.fit(module, datamodule=datamodule)
    ((found, expected),) = losses
    assert expected > 0
    assert float(found) == pytest.approx(expected, rel=1e-5)
    assert float(trainer.callback_metrics["finetune/train/gradient_ratio"]) == float(found)


def test_gradient_ratio_is_computed_at_logged_steps_alone(make, datamodule, quiet_trainer):
    module = make()
    steps = []
    module._gradient_ratio = lambda *_: steps.append(module.global_step) or torch.tensor(0.1)
    trainer = quiet_trainer(max_steps=5, log_every_n_steps=2, limit_val_batches=0)
    trainer.fit(module, datamodule=datamodule)
    assert steps == [1, 3]


@pytest.mark.parametrize(
    ("mode", "ratio", "warned"), [("x0", 0.4, False), ("x0", 2.0, True), ("hidden", 2.0, False)]
)
def test_a_lambda_that_steers_too_much_is_warned_of_once(
    make, datamodule, quiet_trainer, recwarn, mode, ratio, warned
):
    module = make(mode=mode, representation_weight=0.1, representation_warmup_steps=2)
    # while lambda rises the ratio says nothing of the full one
    module._gradient_ratio = lambda *_: torch.tensor(1e6 if module.global_step < 2 else ratio)
    trainer = quiet_trainer(max_steps=6, log_every_n_steps=1, val_check_interval=1)
    trainer.fit(module, datamodule=datamodule)
    found = [str(w.message) for w in recwarn if "representation_weight" in str(w.message)]
    assert len(found) == warned
    if warned:
        assert "at 0.1 the gradient" in found[0]
        assert "is 2.00 times" in found[0]
        assert "lower it to about 0.005" in found[0]


def test_gradient_checkpointing_changes_neither_loss_nor_gradients(make, datamodule, monkeypatch):
    batch = datamodule.batch_of(datamodule.rows["train"][:4])
    found = []
    for checkpointing in (False, True):
        module = make(gradient_checkpointing=checkpointing, representation_weight=1.0)
        assert module.networks.denoiser.recompute is checkpointing
        collect(module, monkeypatch)
        torch.manual_seed(3)
        loss = module.training_step(batch, 0)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in module.networks.denoiser.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_diffusion_ratio_is_one_at_the_start_and_survives_a_resume(
    make, datamodule, quiet_trainer, tmp_path
):
    still = make()
    still.networks.update_average = lambda step: None
    trainer = quiet_trainer(max_steps=2, val_check_interval=2, limit_val_batches=1)
    trainer.fit(still, datamodule=datamodule)
    assert float(trainer.callback_metrics["finetune/valid/diffusion_ratio"]) == 1.0
    start = float(still.diffusion_at_start)
    rows = datamodule.rows["valid"]
    error = still._denoise_fixed(datamodule.batch_of(np.sort(rows))).error
    # the same images in another order: float32 sums
    assert start == pytest.approx(float(error.mean()), rel=1e-5)
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    moved = make()
    again = quiet_trainer(max_steps=3, val_check_interval=1, limit_val_batches=1)
    again.fit(moved, datamodule=datamodule, ckpt_path=tmp_path / "c.ckpt", weights_only=False)
    assert float(moved.diffusion_at_start) == start
    assert float(again.callback_metrics["finetune/valid/diffusion_ratio"]) != 1.0


def test_a_set_for_tests_alone_has_no_diffusion_ratio(make, prepared, quiet_trainer):
    class TestData(CheXpertDataModule):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            nothing = self.rows["train"][:0]
            self.rows = {"train": nothing, "valid": nothing, "test": self.rows["valid"]}

    module = make()
    module.diffusion_at_start.fill_(0.1)
    data = TestData(prepared, batch_size=4, image_size=32)
    logged = quiet_trainer(limit_test_batches=1).test(module, datamodule=data, verbose=False)[0]
    assert np.isfinite(logged["finetune/test/diffusion"])
    assert "finetune/test/diffusion_ratio" not in logged


def test_the_same_noise_gives_paired_images_before_and_after(make, products, datamodule):
    """A generator that did not move draws the very images of the one it started from."""
    module = make().eval()
    start = Generator.from_pretrained(products / "generator")
    batch = datamodule.batch_of(datamodule.rows["train"][:3])
    images = [
        generator.sample(batch.condition, torch.arange(3), Sampling(steps=2), seed=5)
        for generator in (start, module.generator())
    ]
    assert torch.equal(*images)


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


def test_validation_is_the_same_however_images_are_batched(make, prepared, quiet_trainer):
    """Its means are those of the whole split, also where a batch has no image inside the cut."""
    found = []
    for size in (4, 1):
        data = CheXpertDataModule(prepared, batch_size=size, image_size=32)
        found += quiet_trainer().validate(
            make(representation_weight=0.1), datamodule=data, verbose=False
        )
    for name in ("diffusion", "representation", "loss"):
        key = f"finetune/valid/{name}"
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-4), name
    expected = (
        found[0]["finetune/valid/diffusion"] + 0.1 * found[0]["finetune/valid/representation"]
    )
    assert found[0]["finetune/valid/loss"] == pytest.approx(expected, rel=1e-5)


def test_gradient_ratio_in_float16_is_that_of_scaled_losses(make):
    module = make()
    factors = []

    class Scaler:
        def get_scale(self) -> float:
            return 2.0**16

    head = module.networks.denoiser.head.weight
    module._trainer = Mock(spec=Trainer, precision_plugin=Mock(scaler=Scaler()))
    head.register_hook(lambda gradient: factors.append(float(gradient.abs().max())))
    ratio = module._gradient_ratio(3e-4 * head.sum(), 1e-4 * head.sum())
    assert float(ratio) == pytest.approx(3.0, rel=1e-6)
    assert factors == pytest.approx([3e-4 * 2.0**16, 1e-4 * 2.0**16])
