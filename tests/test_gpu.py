"""What needs a GPU; `make gpu-check` runs it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jaxtyping
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import LambdaCallback

from cxr_lightning.callbacks.acceleration import Acceleration
from cxr_lightning.callbacks.throughput import matmul_flops
from cxr_lightning.cli import main
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator
from cxr_lightning.diffusion.samplers import Sampling
from cxr_lightning.metrics.fid import frechet, moments
from cxr_lightning.metrics.kid import kid
from cxr_lightning.metrics.neighbours import nearest
from cxr_lightning.metrics.prdc import prdc
from cxr_lightning.stages.ddpm import DDPM
from cxr_lightning.stages.vae import VAE
from cxr_lightning.types import Batch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
CONFIGS = Path(__file__).parents[1] / "configs"


def test_generator_makes_the_same_images_as_on_the_cpu(products: Path) -> None:
    generator = Generator.from_pretrained(products / "generator")
    asked = parse_condition("pneumonia").request(4)
    index = torch.arange(4)
    expected = to_image(generator.sample(asked, index, Sampling(steps=5))).int()
    on_gpu = asked.to("cuda")
    made = to_image(generator.cuda().sample(on_gpu, index, Sampling(steps=5))).cpu().int()
    # TF32 convolutions keep 10 bits: a relative error of 1e-3 a layer, a few grey values in all
    assert (made - expected).abs().float().mean() < 2.0
    images = generator.generate("pneumonia", 4, steps=5)
    assert (torch.from_numpy(images.pixels) - made[:, 0]).abs().max() <= 1


@pytest.mark.filterwarnings("ignore:At step .* the encoder is collapsed")  # 4 steps
@pytest.mark.filterwarnings("ignore:model.clustering.scheme")  # few phantoms, many findings
@pytest.mark.parametrize("stage", ["vae", "ddpm", "moco"])
def test_stage_fits_in_bf16(stage: str, prepared: Path, products: Path, tmp_path: Path) -> None:
    flags = {
        "vae": ["--model.init_args.width=8"],
        "ddpm": [
            f"--model.init_args.autoencoder={products}/autoencoder",
            "--model.init_args.width=32",
        ],
        "moco": ["--model.init_args.bn=eval", "--model.init_args.clustering.warmup_steps=1"],
    }
    main(
        [
            "fit",
            f"--config={CONFIGS / stage}.yaml",
            f"--config={CONFIGS}/scale/cpu-smoke.yaml",
            f"--data.root={prepared}",
            f"--trainer.default_root_dir={tmp_path}",
            "--trainer.accelerator=gpu",
            "--trainer.precision=bf16-mixed",
            *flags[stage],
        ]
    )
    assert (tmp_path / "product" / "manifest.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"compile": True}, {"compile": True, "channels_last": True}])
def test_a_compiled_stage_trains_the_same_weights(
    settings: dict[str, bool], prepared: Path, quiet_trainer: Callable[..., Trainer]
) -> None:
    """By inductor; the suite's checks of shapes cannot be traced."""
    jaxtyping.config.update("jaxtyping_disable", True)
    trained = []
    for change in ({}, settings):
        torch.manual_seed(0)
        sgd = partial(torch.optim.SGD, lr=1e-4)
        stage = DDPM(None, form="uncond", image_size=32, width=32, optimizer=sgd)
        trainer = quiet_trainer(
            accelerator="gpu", max_steps=3, val_check_interval=1, callbacks=[Acceleration(**change)]
        )
        trainer.fit(stage, CheXpertDataModule(prepared, batch_size=8, image_size=32))
        trained.append(stage.cpu().state_dict())
    jaxtyping.config.update("jaxtyping_disable", False)
    for name, value in trained[0].items():  # TF32 convolutions keep 10 bits
        torch.testing.assert_close(trained[1][name], value, rtol=1e-3, atol=1e-6, msg=name)


def test_images_that_fit_lie_on_the_gpu_by_default(
    prepared: Path, quiet_trainer: Callable[..., Trainer]
) -> None:
    """The stage sees the same batches as from the memory map."""
    seen: dict[bool | None, list[Batch]] = {}
    for resident in (None, False):
        module = CheXpertDataModule(prepared, batch_size=4, image_size=32, resident=resident)
        batches = seen.setdefault(resident, [])
        recorder = LambdaCallback(
            on_train_batch_start=lambda t, m, batch, i, batches=batches: batches.append(batch)
        )
        trainer = quiet_trainer(
            accelerator="gpu", max_steps=3, limit_val_batches=0, callbacks=[recorder]
        )
        trainer.fit(VAE(image_size=32, width=4, latent_dim=4), module)
        assert (module.on_device is not None) == (resident is None)
    for automatic, gathered in zip(seen[None], seen[False], strict=True):
        assert automatic.image.is_cuda
        assert torch.equal(automatic.image, gathered.image)
        assert torch.equal(automatic.condition.value, gathered.condition.value)


def test_metrics_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    real, other = (torch.randn(600, 64, generator=generator) for _ in range(2))
    other[:5] = real[:5] + 1e-4  # near copies: TF32 must not blur their distances

    def measure(device: str) -> list[float]:
        one, two = real.to(device), other.to(device)
        near = nearest(two, one, 3).distance
        shares = [part.double().mean() for part in prdc(one, two)]
        values = [frechet(moments(one), moments(two)), kid(one, two).mean, *shares]
        return [float(v) for v in (*values, *near[:5, 0], near.mean())]

    assert measure("cuda") == pytest.approx(measure("cpu"), rel=1e-4, abs=1e-6)


def test_evaluation(prepared: Path, products: Path, tmp_path: Path) -> None:
    asked = ["--condition=healthy,pleural_effusion", "--count=24", "--steps=4"]
    folder = f"--out={tmp_path / 'synthetic'}"
    main(["generate", f"--model={products / 'generator'}", folder, *asked])
    main(
        [
            *("evaluate", f"--real={prepared}", f"--synthetic={tmp_path / 'synthetic'}"),
            *(f"--out={tmp_path / 'out'}", f"--encoder={products / 'encoder'}"),
            *(f"--generator={products / 'generator'}", "--bootstrap=20", "--reconstructions=4"),
            *("--classifier_steps=20", "--utility_seeds=1", "--utility_fractions=1.0"),
        ]
    )
    axes = {r["axis"] for r in json.loads((tmp_path / "out/metrics.json").read_text())["records"]}
    assert {"fidelity", "representation"} <= axes


def test_the_rate_that_float32_is_measured_against_is_that_of_tf32() -> None:
    """Convolutions of float32 are computed in TF32, half as fast as in bfloat16; float32 is not."""
    gpu, before = torch.device("cuda"), torch.get_float32_matmul_precision()
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    share = matmul_flops(gpu, torch.float32) / matmul_flops(gpu, torch.bfloat16)
    assert 0.25 < share < 1.0
    assert torch.get_float32_matmul_precision() == before
