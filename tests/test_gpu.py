"""What needs a GPU; `make gpu-check` runs it."""

from pathlib import Path

import pytest
import torch

from cxr_lightning.cli import main
from cxr_lightning.data.transforms import to_image
from cxr_lightning.data.vocabulary import parse_condition
from cxr_lightning.diffusion.generator import Generator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]
CONFIGS = Path(__file__).parents[1] / "configs"


def test_generator_makes_the_same_images_as_on_the_cpu(products: Path) -> None:
    generator = Generator.from_pretrained(products / "generator")
    asked = parse_condition("pneumonia").request(4)
    index = torch.arange(4)
    expected = to_image(generator.generate(asked, index, steps=5)).int()
    on_gpu = asked.to("cuda")
    made = to_image(generator.cuda().generate(on_gpu, index, steps=5)).cpu().int()
    # TF32 convolutions keep 10 bits: a relative error of 1e-3 a layer, a few grey values in all
    assert (made - expected).abs().float().mean() < 2.0


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
