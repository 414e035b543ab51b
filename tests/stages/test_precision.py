"""The precision where none is asked for: in a function, and in a run."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from cxr_lightning.cli import main
from cxr_lightning.stages import precision

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_cpu_takes_bf16_where_it_computes_in_it(monkeypatch, bf16, expected):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: bf16)
    assert precision.default_precision("cpu") == expected
    assert precision.default_precision("cuda") == "bf16-mixed"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_gpu_that_emulates_bf16_takes_float32(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert precision.default_precision("cuda") == expected


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", {"_is_avx512_bf16_supported"}, True),
        ("x86_64", {"_is_amx_tile_supported"}, True),
        ("x86_64", set(), False),
        ("aarch64", {"_is_avx512_bf16_supported"}, False),
    ],
)
def test_instructions_that_count(monkeypatch, machine, flags, expected):
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda name=name: name in flags)
    if machine == "aarch64":
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert precision.cpu_has_bf16() is expected


def test_a_mac_has_no_onednn_to_ask(monkeypatch):
    def absent():
        raise AttributeError

    monkeypatch.setattr(precision.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", absent)
    assert precision.cpu_has_bf16() is False


def fit(prepared: Path, out: Path, *flags: str) -> str:
    """Trains a step, and returns the precision in the run's saved configuration."""
    main(
        [
            "fit",
            f"--config={CONFIGS / 'vae.yaml'}",
            f"--config={CONFIGS / 'scale/cpu.yaml'}",
            f"--data.root={prepared}",
            "--data.image_size=32",
            "--data.batch_size=4",
            "--model.init_args.width=4",
            f"--trainer.default_root_dir={out}",
            "--trainer.max_steps=1",
            "--trainer.limit_val_batches=0",
            "--trainer.enable_progress_bar=false",
            "--trainer.enable_model_summary=false",
            "--trainer.log_every_n_steps=1",
            "--generation.extractor=null",
            *flags,
        ]
    )
    return yaml.safe_load((out / "config.yaml").read_text())["trainer"]["precision"]


@pytest.mark.parametrize("bf16", [True, False])
def test_a_run_on_a_cpu_takes_what_is_fast_and_says_so_in_its_configuration(
    prepared, tmp_path, monkeypatch, bf16
):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: bf16)
    used: set[torch.dtype] = set()
    convolve = nn.Conv2d.forward

    def spy(layer: nn.Conv2d, x: Tensor) -> Tensor:
        made = convolve(layer, x)
        used.add(made.dtype)
        return made

    monkeypatch.setattr(nn.Conv2d, "forward", spy)
    assert fit(prepared, tmp_path) == ("bf16-mixed" if bf16 else "32-true")
    assert used == {torch.bfloat16 if bf16 else torch.float32}


def test_bf16_is_warned_of_where_it_is_slow(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: False)
    with pytest.warns(UserWarning, match=r"^trainer\.precision: bf16-mixed is .* use null"):
        assert fit(prepared, tmp_path, "--trainer.precision=bf16-mixed") == "bf16-mixed"
