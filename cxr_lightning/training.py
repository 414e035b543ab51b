"""LightningCLI for the five stages: cxr fit, validate, test, predict."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

from cxr_lightning.arguments import OneSentence
from cxr_lightning.callbacks.acceleration import Acceleration
from cxr_lightning.callbacks.checkpoint import Checkpoint
from cxr_lightning.callbacks.export import Export
from cxr_lightning.callbacks.finite import FiniteLoss
from cxr_lightning.callbacks.generation import GenerationMetrics
from cxr_lightning.callbacks.goodhart import GoodhartStop
from cxr_lightning.callbacks.logger import run_logger
from cxr_lightning.callbacks.pace import Pace
from cxr_lightning.callbacks.predictions import WritePredictions
from cxr_lightning.callbacks.preemption import Preemption
from cxr_lightning.callbacks.samples import SampleGrid
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.errors import UserError
from cxr_lightning.files import check_there
from cxr_lightning.stages.base import Stage
from cxr_lightning.stages.moco import MoCo
from cxr_lightning.stages.precision import default_precision

PLACES = ("root", "text_encoder", "resident", "probabilities")
"""Arguments of the data that say where it is and not what it is."""

PRODUCTS = ("autoencoder", "encoder", "generator", "imagenet")
"""Arguments of the stages that do so."""

NO_NEWS = (
    "LightningCLI's args parameter",  # it is meant so
    ".*does not have many workers",  # the loader reads in the main process
    "The number of training batches .* is smaller than the logging interval",  # epochs do not count
    r"Found .* module\(s\) in eval mode",  # frozen networks and moving averages
    "Precision .* is not supported by the model summary",  # in mixed precision weights are float32
    r".isinstance\(treespec, LeafSpec\)",  # lightning 2.6 with torch >= 2.13
)
"""Warnings that tell a user nothing, each with the reason."""


class StageParser(OneSentence, LightningArgumentParser):
    """The parser of `CxrCLI`."""


class CxrCLI(LightningCLI):
    """`cxr fit --config configs/<stage>.yaml --config configs/scale/<scale>.yaml --data.root DIR`.

    Beside `model`, `data` and `trainer` a configuration has the groups `checkpoint`, `export`,
    `samples`, `generation`, `goodhart` and `acceleration` (the callbacks of that name).
    The same command into the same `trainer.default_root_dir` continues an unfinished run.
    """

    @classmethod
    def run(cls, args: list[str] | None, callbacks: Sequence[Callback] = ()) -> None:
        """Parses and runs `args`, beginning with the subcommand; those of the process if None."""
        exact = {"allow_abbrev": False}  # else a mistyped --trainer.max_step counts as max_steps
        with warnings.catch_warnings():
            for message in NO_NEWS:
                warnings.filterwarnings("ignore", message)
            cls(
                Stage,
                CheXpertDataModule,
                subclass_mode_model=True,
                auto_configure_optimizers=False,
                seed_everything_default=0,
                save_config_callback=SaveConfig,
                save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
                load_from_checkpoint_support=False,  # else a checkpoint overrides the user's values
                trainer_defaults={"callbacks": [*in_every_run(), *callbacks]},
                parser_class=StageParser,
                parser_kwargs={"prog": "cxr", **exact, **dict.fromkeys(cls.subcommands(), exact)},
                args=args,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks as groups and links what must agree."""
        parser.add_argument("--project", default="cxr_lightning", help="Project in W&B.")
        parser.add_lightning_class_args(Checkpoint, "checkpoint")
        parser.add_lightning_class_args(Export, "export")
        parser.add_lightning_class_args(SampleGrid, "samples")
        parser.add_lightning_class_args(GenerationMetrics, "generation")
        parser.add_lightning_class_args(GoodhartStop, "goodhart")
        parser.add_lightning_class_args(Acceleration, "acceleration")
        parser.link_arguments("data.image_size", "model.init_args.image_size")
        parser.link_arguments("data.text_encoder", "model.init_args.text_encoder")
        parser.link_arguments(
            "trainer.default_root_dir", "checkpoint.dirpath", compute_fn=checkpoint_folder
        )

    def before_instantiate_classes(self) -> None:
        """Fills in the precision where none is asked for, and warns of one that is slow here.

        Raises:
            UserError: If a GPU is asked for where there is none, or several inputs are missing.
        """
        config = self.config[self.config["subcommand"]]
        check_there(input_paths(config))
        trainer = config["trainer"]
        if trainer["accelerator"] == "gpu" and not torch.accelerator.is_available():
            raise UserError(
                "trainer.accelerator: gpu was asked for and there is no GPU here; use --config "
                "configs/scale/cpu.yaml."
            )
        on_cpu = trainer["accelerator"] == "cpu" or not torch.accelerator.is_available()
        fast = default_precision("cpu" if on_cpu else "cuda")
        if trainer["precision"] is None:
            trainer["precision"] = fast
        elif trainer["precision"] == "bf16-mixed" != fast:
            rank_zero_warn(
                "trainer.precision: bf16-mixed is much slower than 32-true on this device, which "
                "has no instructions for it; use null, which takes what is fast."
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with `run_logger` unless the configuration names a logger.

        Raises:
            UserError: If its settings are impossible here, or contradict each other.
        """
        config = self.config_init[self.config_init["subcommand"]]
        if config["trainer"]["logger"] is None:
            folder = Path(config["trainer"]["default_root_dir"] or ".")
            kwargs["logger"] = run_logger(folder, config["project"])
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, ImportError) as error:
            said = " ".join(str(error).split())
            raise UserError(f"trainer: {said.rstrip('.')}; change that in trainer.") from error

    def before_fit(self) -> None:
        """Checks the data before anything is written, and continues an unfinished run."""
        self.datamodule.setup("fit")
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))["fit"]
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Export):
                callback.config = config
        last = Path(checkpoint_folder(self.trainer.default_root_dir)) / "last.ckpt"
        if self.config_init["fit"]["ckpt_path"] is None and last.is_file():
            check_same_run(Path(self.trainer.default_root_dir), config)
            self.config_init["fit"]["ckpt_path"] = str(last)

    def before_validate(self) -> None:
        """Warns where the numbers are of untrained networks."""
        self._warn_of_untrained("validate")

    def before_test(self) -> None:
        """Likewise; stage 3 opens products."""
        if not isinstance(self.model, MoCo):
            self._warn_of_untrained("test")

    def _warn_of_untrained(self, command: str) -> None:
        if self.config_init[command]["ckpt_path"] is None:
            last = Path(checkpoint_folder(self.trainer.default_root_dir)) / "last.ckpt"
            rank_zero_warn(
                "ckpt_path: null was given, so these numbers are of networks before training; name "
                f"a checkpoint with --ckpt_path {last}."
            )


def input_paths(config: Any) -> dict[str, Any]:
    """The files and folders that a configuration of a stage names, by argument."""
    arguments = config["model"].get("init_args") or {}
    groups = {
        "data": (config["data"], ("root", "text_encoder", "probabilities")),
        "model": (arguments, PRODUCTS),
        "generation": (config["generation"], ("weights", "encoder", "encoder_held_out")),
    }
    return {
        f"{group}.{name}": values.get(name)
        for group, (values, names) in groups.items()
        for name in names
    }


def in_every_run() -> list[Callback]:
    """Callbacks that have no settings."""
    return [WritePredictions(), FiniteLoss(), Pace(), Preemption()]


class SaveConfig(SaveConfigCallback):
    """Writes the resolved configuration to the run folder, and to the logger."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves once a fit; Lightning calls it on the first process only."""
        if stage != "fit":
            return
        text = self.parser.dump(self.config, skip_none=False)
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(text)
        for logger in trainer.loggers:
            logger.log_hyperparams(yaml.safe_load(text))


def checkpoint_folder(default_root_dir: str | None) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(default_root_dir or ".") / "checkpoints")


def check_same_run(folder: Path, config: dict[str, Any]) -> None:
    """Refuses to continue a run with another model, data or seed than it was started with.

    Products and data sets may be elsewhere by now: stage and data module compare what is in them.

    Raises:
        UserError: Naming the first argument that differs.
    """
    saved = folder / "config.yaml"
    if not saved.is_file():
        return
    before, now = _identity(yaml.safe_load(saved.read_text())), _identity(config)
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{key}: the unfinished run in {folder} has {before.get(key)!r}, but "
                f"{now.get(key)!r} was asked for; use the same value, or another "
                "--trainer.default_root_dir for a new run."
            )


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """What makes a run what it is, by argument."""
    model = config["model"]
    arguments = {k: v for k, v in model.get("init_args", {}).items() if k not in PRODUCTS}
    data = {k: v for k, v in config["data"].items() if k not in PLACES}
    return {
        "seed_everything": config["seed_everything"],
        "model.class_path": model["class_path"],
        **{f"model.{key}": value for key, value in arguments.items()},
        **{f"data.{key}": value for key, value in data.items()},
    }
