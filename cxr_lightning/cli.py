"""cxr: one table of commands; LightningCLI for fit, validate, test and predict."""

import errno
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin

from cxr_lightning.errors import UserError

STAGE_COMMANDS = {
    "fit": "train a stage: cxr fit --config configs/vae.yaml --data.root PREPARED",
    "validate": "losses and metrics of a stage on the validation split",
    "test": "the same on the test split; stage 3: linear evaluation of encoders",
    "predict": "run a stage's predict step over the validation split",
}
COMMANDS = {
    "prepare": "read a data set (or make a phantom one) into the prepared format; --describe one",
    "generate": "make a synthetic data set from a generator product",
    "interpolate": "a sheet of the images between two: latent code, noise, condition",
    "edit": "a sheet of images with less and more of a finding",
    "evaluate": "measure a synthetic data set against a real one",
    "report": "turn evaluations into one HTML page, Markdown and JSON",
    "serve": "answer requests for images over HTTP, from a generator product",
    "push": "put a product with its card on the Hugging Face Hub",
    "benchmark": "speed of a training step (arguments of fit), --ladder; of --data; beside --peers",
}

VARIANTS = {
    ("prepare", "--describe"): "describe",
    ("benchmark", "--data"): "benchmark_data",
    ("benchmark", "--ladder"): "benchmark_ladder",
    ("benchmark", "--peers"): "benchmark_peers",
}
"""Options that turn a command into another one, in the module of that name."""

BENCHMARK_USAGE = """\
usage: cxr benchmark --config configs/ddpm.yaml --data.root PREPARED [options of cxr fit]
       cxr benchmark --ladder [RUNG ...] --config configs/ddpm.yaml --data.root PREPARED [...]
       cxr benchmark --data PREPARED [--files ORIGINALS] [...]
       cxr benchmark --peers [diffusers monai] [...]

The first times training steps of a stage: images a second, MFU, waiting for data, memory, as JSON.
--ladder does so with one setting after the other that makes a GPU faster: fp32, mixed,
cudnn_benchmark, compile, channels_last, max_autotune. --data times the loader and cxr prepare,
--peers our training step beside those of diffusers and MONAI; --help behind these
shows their options."""


def main(args: list[str] | None = None) -> None:
    """Runs one command; mistakes of the user end with one sentence and exit code 2."""
    args = sys.argv[1:] if args is None else args
    try:
        run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _is_cut_off():
            raise
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"cxr {args[0]}: interrupted; give the same command again.", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        mistake = find_mistake(error)
        if mistake is None:
            raise
        print(f"cxr {args[0]}: error: {mistake}", file=sys.stderr)
        sys.exit(2)


def find_mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error: jsonargparse wraps what a class raises when built.

    A full disk counts as one: what was written is kept, and the same command goes on from there.
    """
    while error is not None and not isinstance(error, UserError):
        full = (os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
        if any(text in str(error) for text in full):  # safetensors' and torch's have no errno
            place = getattr(error, "filename", None) or "out"
            return UserError(
                f"{place}: no space is left on its disk; make room and give the same command again."
            )
        error = error.__cause__
    return error


def _is_cut_off() -> bool:
    """Whether the reader of the output went away, as `head` does; then the rest goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def run(args: list[str]) -> None:
    """Runs one command; raises `UserError` for mistakes of the user."""
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return
    if args[0] == "--version":
        from cxr_lightning import __version__

        print(__version__)
        return
    name = find_variant(args)
    if name in STAGE_COMMANDS:
        from cxr_lightning.training import CxrCLI

        CxrCLI.run(None if args == sys.argv[1:] else args)
    elif name in ("benchmark", "benchmark_ladder") and {"-h", "--help"} & {*args}:
        print(BENCHMARK_USAGE)
    elif name in ("benchmark", "benchmark_ladder"):
        from cxr_lightning import benchmark

        getattr(benchmark, name)(args[1:])
    elif name in {**COMMANDS, **dict.fromkeys(VARIANTS.values())}:
        run_function(args[0], name, args[1:])
    else:
        known = ", ".join([*COMMANDS, *STAGE_COMMANDS])
        raise UserError(f"{args[0]!r} is not a command of cxr; use one of {known}.")


def find_variant(args: list[str]) -> str:
    """The function that a command line asks for: its command, or one of `VARIANTS`."""
    options = {argument.split("=")[0] for argument in args[1:]}
    for (command, option), name in VARIANTS.items():
        if args[0] == command and option in options:
            return name
    return args[0] if args[0] not in VARIANTS.values() else ""


def state_flags(args: list[str], flags: set[str]) -> list[str]:
    """Completes an option that stands for "yes" when alone: `--strict` to `--strict=true`."""
    stated = []
    for argument, following in zip(args, [*args[1:], "--"], strict=False):
        alone = argument.removeprefix("--") in flags and following.startswith("--")
        stated.append(f"{argument}=true" if alone else argument)
    return stated


def run_function(command: str, name: str, args: list[str]) -> None:
    """Runs the function `name` with its arguments as options; its docstring is the help.

    An argument that is a dataclass is a group of options.

    Args:
        command: What the user typed behind `cxr`.
        name: Name of the function and of its module.
        args: The options.
    """
    from cxr_lightning.arguments import OneSentence

    function = getattr(importlib.import_module(f"cxr_lightning.commands.{name}"), name)
    summary = inspect.cleandoc(function.__doc__).split("\n\nArgs:")[0]
    parser = OneSentence(prog=f"cxr {command}", description=summary, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file with the options.")
    parameters = inspect.signature(function).parameters
    groups: dict[str, Any] = {
        key: p.annotation for key, p in parameters.items() if is_dataclass(p.annotation)
    }
    several: set[str] = set()
    for owner in (function, *groups.values()):
        for option, settings in options_of_lists(owner).items():
            is_variant = (command, f"--{option}") in VARIANTS  # may stand alone
            nargs = "*" if is_variant else "+"
            parser.add_argument(f"--{option}", nargs=nargs, **settings)
            several.add(option)
    parser.add_function_arguments(function, as_positional=False, skip={*several, *groups})
    for group in groups.values():
        skip = several & {field.name for field in fields(group)}
        parser.add_class_arguments(group, skip=skip, instantiate=False)
    args = state_flags(args, {key for key, p in parameters.items() if p.annotation is bool})
    values = parser.instantiate(parser.parse_args(args)).as_dict()
    values.pop("config")
    for key, group in groups.items():
        values[key] = group(**{field.name: values.pop(field.name) for field in fields(group)})
    function(**values)


def options_of_lists(owner: Callable[..., Any]) -> dict[str, dict[str, Any]]:
    """Settings for the arguments of a function or dataclass that are lists: values with blanks.

    jsonargparse reads a list from a signature as one value.
    """
    from docstring_parser import parse

    described = {param.arg_name: param.description for param in parse(owner.__doc__ or "").params}
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in inspect.signature(owner).parameters.items():
        kinds = (parameter.annotation, *get_args(parameter.annotation))
        item = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is list), None)
        if item is not None:
            required = parameter.default is parameter.empty
            text = " ".join((described[name] or "").split())
            found[name] = {"type": item, "required": required, "help": text}
    return found


def usage() -> str:
    """What `cxr --help` prints."""
    rows = [f"  {name:<11} {text}" for name, text in {**COMMANDS, **STAGE_COMMANDS}.items()]
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
