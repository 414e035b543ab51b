"""cxr: one table of commands; LightningCLI for fit, validate, test and predict."""

import importlib
import inspect
import sys
from pathlib import Path

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

SEVERAL = {"report": {"evaluation": "Folders made by 'cxr evaluate', one or more."}}
"""Options that take several values: jsonargparse reads a list from a signature as one value."""


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
    except Exception as error:
        mistake = find_mistake(error)
        if mistake is None:
            raise
        print(f"cxr {args[0]}: error: {mistake}", file=sys.stderr)
        sys.exit(2)


def find_mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error: jsonargparse wraps what a class raises when built."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


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
        run_function(name, args[1:])
    else:
        known = ", ".join([*COMMANDS, *STAGE_COMMANDS])
        raise UserError(f"{name!r} is not a command of cxr; use one of {known}.")


def run_function(name: str, args: list[str]) -> None:
    """Runs the function of that name with its arguments as options; its docstring is the help."""
    from jsonargparse import ArgumentParser

    command = getattr(importlib.import_module(f"cxr_lightning.commands.{name}"), name)
    summary = inspect.cleandoc(command.__doc__).split("\n\nArgs:")[0]
    parser = ArgumentParser(prog=f"cxr {name}", description=summary, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with the options.")
    several = SEVERAL.get(name, {})
    for option, text in several.items():
        parser.add_argument(f"--{option}", nargs="+", type=Path, required=True, help=text)
    parser.add_function_arguments(command, as_positional=False, skip=set(several))
    values = parser.instantiate(parser.parse_args(args)).as_dict()
    values.pop("config")
    command(**values)


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
