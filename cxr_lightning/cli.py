"""cxr: one table of commands; LightningCLI for fit, validate, test and predict."""

import importlib
import sys

from cxr_lightning.errors import UserError

STAGE_COMMANDS = {
    "fit": "train a stage: cxr fit --config configs/vae.yaml --data.root PREPARED",
    "validate": "losses and metrics of a stage on the validation split",
    "test": "the same on the test split",
    "predict": "run a stage's predict step over the validation split",
}
COMMANDS = {
    "prepare": "read a data set (or make a phantom one) into the prepared format",
    "generate": "make a synthetic data set from a generator product",
    "evaluate": "measure a synthetic data set against a real one",
    "report": "turn evaluations into one HTML page and Markdown",
    "benchmark": "images per second of a stage's training step; takes the arguments of fit",
}


def main(args: list[str] | None = None) -> None:
    """Runs one command; mistakes of the user end with one sentence and exit code 2."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] == "--version":
        from cxr_lightning import __version__

        print(__version__)
        return
    try:
        run(args)
    except UserError as error:
        print(f"cxr {args[0]}: error: {error}", file=sys.stderr)
        sys.exit(2)


def run(args: list[str]) -> None:
    """Runs one command; raises `UserError` for mistakes of the user."""
    name = args[0]
    if name in STAGE_COMMANDS:
        from cxr_lightning.training import CxrCLI

        CxrCLI.run(None if args == sys.argv[1:] else args)
    elif name == "benchmark":
        from cxr_lightning.training import CxrCLI

        CxrCLI.benchmark(args[1:])
    elif name in COMMANDS:
        from jsonargparse import auto_cli

        command = getattr(importlib.import_module(f"cxr_lightning.commands.{name}"), name)
        auto_cli(command, as_positional=False, args=args[1:], prog=f"cxr {name}")
    else:
        known = ", ".join([*COMMANDS, *STAGE_COMMANDS])
        raise UserError(f"{name!r} is not a command of cxr; use one of {known}.")


def usage() -> str:
    """What `cxr --help` prints."""
    rows = [f"  {name:<10} {text}" for name, text in {**COMMANDS, **STAGE_COMMANDS}.items()]
    return "\n".join(
        [
            "usage: cxr COMMAND [options]      cxr COMMAND --help shows a command's options",
            "",
            "Trains a generator of synthetic chest X-rays for stated health conditions,",
            "and measures the result.",
            "",
            *rows,
        ]
    )
