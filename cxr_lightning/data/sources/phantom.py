"""Simulated radiographs: made on the way, then read as any data set in CheXpert's layout."""

import json
import tempfile
from pathlib import Path
from typing import ClassVar

from cxr_lightning.data.sources.chexpert import ChexpertSource
from cxr_lightning.errors import UserError

SETTINGS = "phantom.json"
MIN_PATIENTS = 2
MIN_SIZE = 16


class PhantomSource(ChexpertSource):
    """The phantom data set at `root`; written there first if the folder is absent or empty.

    Args:
        root: Its folder.
        patients: Simulated patients of the train split; an eighth more are in the valid split.
        size: Side of the images, in pixels.
        seed: Seed of the simulation.
        workers: Processes that write images.

    Raises:
        UserError: If `root` holds something else, or a phantom of other settings.
    """

    name: ClassVar[str] = "phantom"

    def __init__(self, root: Path, *, patients: int, size: int, seed: int, workers: int) -> None:
        """Writes the phantom where there is none."""
        settings = {"patients": patients, "size": size, "seed": seed}
        if patients < MIN_PATIENTS or size < MIN_SIZE:
            raise UserError(
                f"patients: {patients} patients of {size} px are too little for a phantom; give "
                f"--patients {MIN_PATIENTS} and --size {MIN_SIZE} or more."
            )
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            _write(root.resolve(), settings, workers)
        file = root / SETTINGS
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else "no phantom"
        if found != settings:
            raise UserError(
                f"root: {root} holds {found} and not the phantom {settings}; give another folder, "
                "or --source chexpert to read what is there."
            )
        super().__init__(root)


def _write(root: Path, settings: dict[str, int], workers: int) -> None:
    """Writes the phantom under its final name, since its paths begin with that, and moves it."""
    from cxr_lightning.data.phantom import write_phantom

    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as staging:
        folder = Path(staging) / root.name
        try:
            write_phantom(
                folder,
                patients=settings["patients"],
                size=settings["size"],
                seed=settings["seed"],
                workers=workers,
            )
        except ValueError as error:
            name, _, reason = str(error).partition(" is ")
            raise UserError(f"{name}: {reason}.") from error
        (folder / SETTINGS).write_text(json.dumps(settings) + "\n", encoding="utf-8")
        folder.replace(root)
