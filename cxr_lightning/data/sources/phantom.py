"""Simulated radiographs: made on the way, then read as any data set in CheXpert's layout."""

from pathlib import Path
from typing import ClassVar

from cxr_lightning.data.sources.chexpert import ChexpertSource


class PhantomSource(ChexpertSource):
    """The phantom data set at `root`; written there first if the folder is absent or empty.

    Args:
        root: Its folder.
        patients: Simulated patients.
        size: Side of the images, in pixels.
        seed: Seed of the simulation.
        workers: Processes that write images.

    Raises:
        UserError: If `root` holds something else.
    """

    name: ClassVar[str] = "phantom"

    def __init__(self, root: Path, *, patients: int, size: int, seed: int, workers: int) -> None:
        if not root.exists() or not any(root.iterdir()):
            from cxr_lightning.data.phantom import write_phantom

            write_phantom(root, patients=patients, size=size, seed=seed, workers=workers)
        super().__init__(root)
