"""`cxr benchmark --data`: how fast images are read, against a plain loader and the hardware."""

import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.prepared import PreparedDataset, open_prepared
from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources.files import FolderReader
from cxr_lightning.data.sources.reading import read_chunks
from cxr_lightning.data.transforms import to_model
from cxr_lightning.errors import UserError
from cxr_lightning.files import usable_cores
from cxr_lightning.ranges import check_range

MAX_FILES = 4096
"""Images that the plain loader and the reading of originals go through, at most."""

CHUNK, CHUNKS = 32, 2000
"""Images that one process reads at once, and how often before the processes are started anew."""

SUFFIXES = {".png", ".jpg", ".jpeg"}

Pass = Callable[[], Iterable[int]]
"""One pass over some images, as sizes of its batches."""


def benchmark_data(
    data: Path,
    files: Path | None = None,
    batch_size: int = 256,
    workers: int = 0,
    rounds: int = 5,
    seconds: float = 2.0,
) -> None:
    """Measures how many images a second the loader gives, and prints it as JSON.

    Compared in one run, in turn, round by round (medians are printed): `loader` (raw batches
    gathered from the memory map, as they go to a device), `loader_float` (the same in model range,
    converted on this CPU), `resident_float` (all images in the CPU's memory instead of a GPU's),
    `plain_float` (a Dataset that opens one file an item, and a DataLoader), and the limits of this
    machine: `gather` (rows copied from the memory map by numpy alone), `stream` (the memory map
    copied in order), `copy` (memory to memory). With `files` also `prepare`: decoding and resizing
    by `cxr prepare` with one process and with one a core.

    Args:
        data: Folder of a prepared data set.
        files: Folder with the original PNG or JPEG files, for `plain_float` and `prepare`; by
            default `plain_float` opens the prepared images, saved as PNG files.
        batch_size: Images in a batch.
        workers: Worker processes of `plain_float`.
        rounds: Times that each is measured.
        seconds: Length of one measurement.

    Raises:
        UserError: If there is no prepared data set, or there are no files.
    """
    for name, value in (("batch_size", batch_size), ("rounds", rounds)):
        check_range(name, value, 1)
    check_range("workers", workers, 0)
    check_range("seconds", seconds, 0, above=True)
    prepared = open_prepared(data, "data")
    originals = None if files is None else find_images(files)
    with tempfile.TemporaryDirectory() as folder:
        paths = originals or save_images(prepared, Path(folder))
        passes = {
            "loader": loader_pass(data, batch_size),
            "loader_float": float_pass(data, batch_size, resident=False),
            "resident_float": float_pass(data, batch_size, resident=True),
            "plain_float": plain_pass(paths, prepared.size, batch_size, workers),
            **limit_passes(prepared, batch_size),
        }
        if originals is not None:
            for processes in sorted({1, usable_cores()}):
                name = f"prepare with {processes} process{'es' * (processes > 1)}"
                passes[name] = prepare_pass(originals, prepared.size, processes)
        speeds = measure_in_turn(passes, rounds, seconds)
    print(json.dumps(describe(prepared, speeds, batch_size, workers, originals), indent=1))


def measure_in_turn(passes: dict[str, Pass], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images a second of each pass, `rounds` times, one after the other in each round."""
    speeds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, one_pass in passes.items():
            speeds[name].append(images_per_second(one_pass, seconds))
    return speeds


def images_per_second(one_pass: Pass, seconds: float) -> float:
    """Speed of a pass, begun again until the time is over; the first batch is not counted."""
    with closing(_endless(one_pass)) as batches:
        next(batches)
        started = time.perf_counter()
        images, elapsed = 0, 0.0
        while elapsed < seconds:
            images += next(batches)
            elapsed = time.perf_counter() - started
    return images / elapsed


def _endless(one_pass: Pass) -> Generator[int, None, None]:
    while True:
        yield from one_pass()


def loader_pass(data: Path, batch_size: int) -> Pass:
    """The project's own loader: whole raw batches."""
    loader = open_module(data, batch_size, resident=False).train_dataloader()
    return lambda: (len(batch.index) for batch in loader)


def float_pass(data: Path, batch_size: int, *, resident: bool) -> Pass:
    """What a stage gets: whole batches in model range."""
    module = open_module(data, batch_size, resident=resident)
    loader = module.train_dataloader()

    def one_pass() -> Iterator[int]:
        for batch in loader:
            yield len(module.on_after_batch_transfer(batch, 0).image)

    return one_pass


def open_module(data: Path, batch_size: int, *, resident: bool) -> CheXpertDataModule:
    """The data module, set up."""
    size = open_prepared(data).size
    module = CheXpertDataModule(data, batch_size, size, resident=resident)
    module.setup()
    return module


class PlainFiles(Dataset[Float[Tensor, "1 h w"]]):
    """One image file an item, in model range: what most projects do.

    Args:
        paths: The files.
        size: Side in pixels that images of another size are resized to.
    """

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths = paths
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> Float[Tensor, "1 h w"]:
        """The image at a position."""
        with Image.open(self.paths[position]) as image:
            grey = image.convert("L")
        if grey.size != (self.size, self.size):
            grey = grey.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return to_model(torch.from_numpy(np.array(grey))[None])


def plain_pass(paths: list[Path], size: int, batch_size: int, workers: int) -> Pass:
    """A data loader over `PlainFiles`."""
    loader = DataLoader(
        PlainFiles(paths, size),
        min(batch_size, len(paths)),
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: (len(batch) for batch in loader)


def limit_passes(prepared: PreparedDataset, batch_size: int) -> dict[str, Pass]:
    """What no loader of a memory map can beat: plain copies of raw images."""
    images = prepared.images
    count = min(batch_size, len(images))
    target = np.empty((count, *images.shape[1:]), dtype=np.uint8)
    memory = np.empty_like(target)
    random = np.random.default_rng(0)

    def gather() -> Iterator[int]:
        order = random.permutation(len(images))
        for start in range(0, len(images) - count + 1, count):
            np.take(images, order[start : start + count], axis=0, out=target)
            yield count

    def stream() -> Iterator[int]:
        for start in range(0, len(images) - count + 1, count):
            np.copyto(target, images[start : start + count])
            yield count

    def copy() -> Iterator[int]:
        np.copyto(target, memory)
        yield count

    return {"gather": gather, "stream": stream, "copy": copy}


def prepare_pass(paths: list[Path], size: int, processes: int) -> Pass:
    """Decoding and resizing as `cxr prepare` does it, in small chunks, over many passes."""
    names = itertools.cycle(str(path.resolve()) for path in paths)

    def one_pass() -> Iterator[int]:
        chunks = [list(itertools.islice(names, CHUNK)) for _ in range(CHUNKS)]
        with closing(
            read_chunks(FolderReader((Path("/"),)), Resize(size), chunks, processes)
        ) as read:
            yield from (chunk.rows for chunk in read)

    return one_pass


def find_images(folder: Path) -> list[Path]:
    """PNG and JPEG files below a folder, at most `MAX_FILES`."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = sorted(itertools.islice(found, MAX_FILES))
    if not paths:
        raise UserError(f"files: no PNG or JPEG file below {folder}; give the originals' folder.")
    return paths


def save_images(prepared: PreparedDataset, folder: Path) -> list[Path]:
    """Writes the first images as PNG files."""
    paths = []
    for row, image in enumerate(prepared.images[:MAX_FILES]):
        paths.append(folder / f"{row:06d}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def describe(
    prepared: PreparedDataset,
    speeds: dict[str, list[float]],
    batch_size: int,
    workers: int,
    originals: list[Path] | None,
) -> dict[str, Any]:
    """The figures with what they were measured on; medians, and the range of the rounds."""
    middle = {name: median(values) for name, values in speeds.items()}
    facts: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "images": len(prepared.images),
        "size": prepared.size,
        "batch_size": batch_size,
        "plain": f"{'originals' if originals else 'PNG files of that size'}, {workers} workers",
        "images_per_second": {name: round(speed) for name, speed in middle.items()},
        "range": {name: [round(min(v)), round(max(v))] for name, v in speeds.items()},
        "loader_float_to_plain_float": middle["loader_float"] / middle["plain_float"],
        "loader_to_gather": middle["loader"] / middle["gather"],
        "copy_gigabytes_per_second": middle["copy"] * prepared.size**2 / 1e9,
    }
    return facts
