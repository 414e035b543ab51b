"""Reports that several tests look at."""

from pathlib import Path

import pytest
from evaluation_writer import full_metrics, minimal_metrics, write_evaluation

from cxr_lightning.commands.report import report

NAMED = {"baseline": 1.5, "finetune": 1.0, "finetune_with_a_long_name_and_guidance_3": 1.2}
"""Evaluations and how far their images are from real ones."""


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of one full evaluation, of three, and of one with hardly anything."""
    root = tmp_path_factory.mktemp("reports")
    several = [
        write_evaluation(root / name, full_metrics(shift, seed))
        for seed, (name, shift) in enumerate(NAMED.items())
    ]
    minimal = write_evaluation(root / "minimal", minimal_metrics())
    folders = {"full": [several[1]], "three": several, "minimal": [minimal]}
    for name, chosen in folders.items():
        report(chosen, root / f"{name}.html")
    return {name: root / f"{name}.html" for name in folders}
