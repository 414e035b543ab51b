"""`cxr benchmark`: what a training step of a stage costs; rung by rung with `--ladder`."""

import gc
import json
import tempfile
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from cxr_lightning.callbacks.throughput import Throughput
from cxr_lightning.errors import UserError
from cxr_lightning.training import CxrCLI

STEPS = 40

RUNGS = {
    "fp32": {"trainer.precision": "32-true"},
    "mixed": {"trainer.precision": "null"},
    "cudnn_benchmark": {"trainer.benchmark": "true"},
    "compile": {"acceleration.compile": "true"},
    "channels_last": {"acceleration.channels_last": "true"},
    "max_autotune": {"acceleration.mode": "max-autotune"},
}
"""Settings of each rung, on top of those of the rungs before it."""


def benchmark(args: list[str]) -> None:
    """Times training steps of the configuration in `args` and prints the figures as JSON.

    Takes the arguments of `fit`. The last line is the JSON; nothing is left behind.
    """
    _say(json.dumps(measure(args), indent=1))


def benchmark_ladder(args: list[str]) -> None:
    """The same with one setting after the other that makes a GPU faster, a line of JSON each.

    Args:
        args: Those of `fit`, and `--ladder`, behind which rungs may be named; all by default.

    Raises:
        UserError: If a rung is unknown.
    """
    args = [part for a in args for part in (a.split("=", 1) if a.startswith("--ladder=") else [a])]
    place = args.index("--ladder")
    behind = next((i for i, a in enumerate(args) if i > place and a.startswith("-")), len(args))
    wanted = args[place + 1 : behind] or list(RUNGS)
    unknown = [name for name in wanted if name not in RUNGS]
    if unknown:
        raise UserError(f"ladder: there is no rung {unknown[0]!r}; use {', '.join(RUNGS)}.")
    settings: dict[str, str] = {}
    for rung, change in RUNGS.items():
        settings |= change
        if rung in wanted:
            flags = [f"--{key}={value}" for key, value in settings.items()]
            figures = measure([*args[:place], *args[behind:], *flags])
            _say(json.dumps({"rung": rung, **figures}))


@rank_zero_only
def _say(text: str) -> None:
    print(text, flush=True)


def measure(args: list[str]) -> dict[str, Any]:
    """Figures of some training steps of the configuration in `args`.

    Args:
        args: Those of `fit`.
    """
    gc.collect()  # of the run before
    torch.compiler.reset()
    throughput = Throughput()
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "trainer.default_root_dir": folder,
            "trainer.max_steps": STEPS,
            "trainer.limit_val_batches": 0,
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            "trainer.logger": "false",
            "export.folder": f"{folder}/product",
            "checkpoint.save_last": "false",
            "checkpoint.save_top_k": 0,
        }
        flags = [f"--{key}={value}" for key, value in overrides.items()]
        CxrCLI.run(["fit", *args, *flags], callbacks=[throughput])
    return throughput.result
