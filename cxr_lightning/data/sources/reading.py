"""Reads many images, in order, in several processes, with bounded memory.

Worker processes import this module and the reader's: both are free of torch and pandas, so that
they start at once.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8

from cxr_lightning.data.resize import Reading, Resize, UnreadableImageError
from cxr_lightning.errors import UserError

T = TypeVar("T")

ImageReader = Callable[[str, Resize | None], Reading]
"""Gives the image of a `Path`, resized; picklable."""

CHUNK_IMAGES = 64
CHUNK_BYTES = 2**22
IN_FLIGHT = 4
"""Chunks a worker has at most in the queue or waiting to be written."""


class Chunk(NamedTuple):
    """Some consecutive rows.

    Attributes:
        rows: How many rows it covers.
        images: The resized images of the readable ones, in order.
        extents: Width and height of each of these as they were.
        failures: Reason by offset within the chunk, for the others.
    """

    rows: int
    images: UInt8[np.ndarray, "n size size"]
    extents: list[tuple[int, int]]
    failures: dict[int, str]


def split_rows(paths: list[str], size: int) -> Iterator[list[str]]:
    """Consecutive paths in chunks of at most `CHUNK_IMAGES` images and about `CHUNK_BYTES`."""
    step = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // size**2))
    return (paths[start : start + step] for start in range(0, len(paths), step))


def read_chunk(reader: ImageReader, resize: Resize, paths: list[str]) -> Chunk:
    """Reads and resizes consecutive images."""
    images = np.empty((len(paths), resize.size, resize.size), dtype=np.uint8)
    extents: list[tuple[int, int]] = []
    failures: dict[int, str] = {}
    for offset, path in enumerate(paths):
        try:
            images[len(extents)], width, height = reader(path, resize)
            extents.append((width, height))
        except UnreadableImageError as error:
            failures[offset] = str(error)
    return Chunk(len(paths), images[: len(extents)], extents, failures)


def read_chunks(
    reader: ImageReader, resize: Resize, chunks: Iterable[list[str]], workers: int
) -> Generator[Chunk, None, None]:
    """Reads chunks of paths; see `in_order`."""
    yield from in_order(partial(read_chunk, reader, resize), chunks, workers)


def in_order(
    task: Callable[[list[str]], T], chunks: Iterable[list[str]], workers: int
) -> Generator[T, None, None]:
    """What a task makes of chunks of paths; in order, and the same for any `workers`.

    Args:
        task: Picklable, from a module that is free of torch and pandas.
        chunks: The paths.
        workers: Processes, at most.

    Raises:
        UserError: If a worker process dies.
    """
    chunks = list(chunks)
    workers = min(workers, len(chunks))
    if workers <= 1:
        yield from map(task, chunks)
        return
    pool = ProcessPoolExecutor(workers, _context(), initializer=_ignore_interrupt)
    pending: deque[Future[T]] = deque()
    try:
        for paths in chunks:
            pending.append(pool.submit(task, paths))
            if len(pending) > IN_FLIGHT * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise UserError(
            f"workers: one of {workers} worker processes was killed, probably for want of memory; "
            "use fewer."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Workers that start from a clean process: no copy of the threads of this one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "cxr_lightning.data.sources.files"])
    return context


def _ignore_interrupt() -> None:
    """Leaves Ctrl-C to the main process, which stops the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
