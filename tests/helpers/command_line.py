"""A stage's command in processes of its own, and what it logged."""

import csv
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"


def validate(
    stage: str, prepared: Path, folder: Path, processes: int, *flags: str
) -> dict[str, float]:
    """Runs `cxr validate` on all validation images, and returns the metrics under the stage's name.

    Args:
        stage: `vae`, `ddpm`, ...
        prepared: The data set.
        folder: The run's.
        processes: 1, or more by DDP.
        flags: Further ones.
    """
    arguments = [
        "validate",
        f"--config={CONFIGS}/{stage}.yaml",
        f"--config={CONFIGS}/scale/cpu-smoke.yaml",
        f"--data.root={prepared}",
        f"--trainer.default_root_dir={folder}",
        f"--trainer.devices={processes}",
        f"--trainer.strategy={'auto' if processes == 1 else 'ddp'}",
        "--trainer.limit_val_batches=null",
        "--generation.extractor=null",
        *flags,
    ]
    command = [sys.executable, "-m", "cxr_lightning", *arguments]
    subprocess.run(command, check=True, capture_output=True)
    with (folder / "csv/version_0/metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    return {k: float(v) for k, v in row.items() if k.startswith(f"{stage}/valid/")}
