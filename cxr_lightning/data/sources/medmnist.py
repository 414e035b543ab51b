"""PneumoniaMNIST and ChestMNIST (Yang et al. 2023, arXiv 2110.14795; medmnist.com)."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Integer, UInt8

from cxr_lightning.data.resize import Reading, Resize, UnreadableImageError
from cxr_lightning.data.sources.base import Source, arrange
from cxr_lightning.data.sources.nih_labels import map_nih
from cxr_lightning.data.sources.tables import PROBLEM
from cxr_lightning.errors import UserError
from cxr_lightning.types import NOT_ANNOTATED, OBSERVATIONS

Flag = Literal["pneumoniamnist", "chestmnist"]
NativeSize = Literal[28, 64, 128, 224]

NATIVE_SIZES: tuple[NativeSize, ...] = get_args(NativeSize)
ORIGINS: dict[Flag, str] = {
    "pneumoniamnist": "Kermany et al. 2018",
    "chestmnist": "NIH ChestX-ray14",
}
OFFICIAL_SPLITS = {"train": "train", "val": "valid", "test": "test"}


class MedmnistSource(Source):
    """One npz file of MedMNIST; downloaded by the package `medmnist` if it is not at `root`.

    The official splits are kept. The files do not say which images are of one patient, so each
    image counts as a patient of its own. All images are frontal; PneumoniaMNIST is AP (Kermany et
    al. 2018), ChestMNIST does not say.

    Args:
        root: Folder of `<flag>.npz` (28 px) or `<flag>_<size>.npz`.
        flag: Which set.
        size: Size that is wanted; decides about the file.
        download_size: Side of the original images instead.

    Raises:
        UserError: If the file is neither there nor to be had, or is not as it should be.
    """

    name: ClassVar[str] = "medmnist"
    parallel: ClassVar[bool] = False  # one stream, and tiny images

    def __init__(
        self, root: Path, flag: Flag, size: int, download_size: NativeSize | None = None
    ) -> None:
        """Finds or downloads the file."""
        self.flag = flag
        self.origins = (ORIGINS[flag],)
        self.file = _find_file(root, flag, size, download_size)
        self.inputs = (self.file.name,)
        self.reader = _NpzReader(self.file)

    def table(self) -> pd.DataFrame:
        """See the base class."""
        parts = []
        for split, official in OFFICIAL_SPLITS.items():
            labels = _read_labels(self.file, split)
            pneumonia = self.flag == "pneumoniamnist"
            observations = map_pneumonia(labels) if pneumonia else map_nih(labels == 1)
            part = pd.DataFrame(observations, columns=list(OBSERVATIONS))
            part["Path"] = [f"{self.flag}/{split}/{index:06d}" for index in range(len(labels))]
            parts.append(part.assign(split=official))
        table = pd.concat(parts, ignore_index=True)
        table["patient"] = [f"patient{number:06d}" for number in range(1, len(table) + 1)]
        view = "AP" if self.flag == "pneumoniamnist" else ""
        table[["Sex", "Frontal/Lateral", "AP/PA", "study"]] = ["Unknown", "Frontal", view, "study1"]
        return arrange(table.assign(Age=np.nan, **{PROBLEM: ""}))


class _NpzReader:
    """Reads images by `Path`; quick where they come in the order of the table."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.streams: dict[str, _ImageStream] = {}

    def __call__(self, path: str, resize: Resize | None = None) -> Reading:
        _, split, index = path.split("/")
        if split not in self.streams:
            self.streams[split] = _ImageStream(self.file, f"{split}_images.npy")
        image = self.streams[split].read(int(index))
        height, width = image.shape
        return Reading(resize(image) if resize else image, width, height)


class _ImageStream:
    """One array of an npz file, read image by image without holding it in memory."""

    def __init__(self, file: Path, member: str) -> None:
        self.archive = zipfile.ZipFile(file)
        self.stream = _open_member(self.archive, member)
        shape, _, dtype = _read_array_header(self.stream)
        if dtype != np.uint8 or len(shape) != 3:
            raise UserError(
                f"root: {member} in {file} is {dtype} {shape} and not uint8 (n, h, w); download "
                "the file again."
            )
        self.shape = shape[1:]
        self.start = self.stream.tell()

    def read(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """Image number `index`."""
        length = self.shape[0] * self.shape[1]
        try:
            self.stream.seek(self.start + index * length)
            content = self.stream.read(length)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UnreadableImageError(f"{type(error).__name__}: {error}") from error
        if len(content) < length:
            raise UnreadableImageError("the file is truncated")
        return np.frombuffer(content, dtype=np.uint8).reshape(self.shape)


def map_pneumonia(labels: Integer[np.ndarray, "n 1"]) -> Float[np.ndarray, "n 14"]:
    """0 normal: No Finding 1, Pneumonia 0; 1: No Finding blank, Pneumonia 1; else not annotated."""
    observations = np.full((len(labels), len(OBSERVATIONS)), NOT_ANNOTATED)
    observations[:, OBSERVATIONS.index("No Finding")] = np.nan
    observations[:, OBSERVATIONS.index("Pneumonia")] = labels[:, 0]
    observations[labels[:, 0] == 0, OBSERVATIONS.index("No Finding")] = 1.0
    return observations


def _file_name(flag: Flag, native: NativeSize) -> str:
    return f"{flag}.npz" if native == 28 else f"{flag}_{native}.npz"


def _find_file(root: Path, flag: Flag, size: int, download_size: NativeSize | None) -> Path:
    """The npz file to read: a local one, or else a downloaded one."""
    local = [native for native in NATIVE_SIZES if (root / _file_name(flag, native)).is_file()]
    if download_size is None and local:
        return root / _file_name(flag, _smallest_not_below(size, local))
    native = download_size or _smallest_not_below(size, list(NATIVE_SIZES))
    file = root / _file_name(flag, native)
    if not file.is_file():
        _download(file, flag, native)
    return file


def _smallest_not_below(size: int, natives: list[NativeSize]) -> NativeSize:
    return min((native for native in natives if native >= size), default=max(natives))


def _download(file: Path, flag: Flag, native: NativeSize) -> None:
    try:
        import medmnist
    except ImportError as error:
        raise UserError(
            f"root: there is no {file}; put it there, or 'pip install medmnist' to have it "
            "downloaded."
        ) from error
    information: dict[str, Any] = medmnist.INFO[flag]
    data_set = getattr(medmnist, information["python_class"])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        data_set(split="train", download=True, root=str(file.parent), size=native)
    except Exception as error:  # the package raises what its downloader and checks raise
        file.unlink(missing_ok=True)
        url = information["url" if native == 28 else f"url_{native}"]
        raise UserError(
            f"root: {file.name} cannot be downloaded ({error}); fetch {url} elsewhere and put it "
            f"at {file}."
        ) from error


def _read_labels(file: Path, split: str) -> Integer[np.ndarray, "n labels"]:
    """The labels of one split, checked against the number of images."""
    try:
        with zipfile.ZipFile(file) as archive:
            with archive.open(f"{split}_labels.npy") as stream:
                labels: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
            with _open_member(archive, f"{split}_images.npy") as images:
                shape, _, _ = _read_array_header(images)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"root: {file} is not a file of MedMNIST ({error}); remove it to download it again."
        ) from error
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 2 or len(labels) != shape[0]:
        raise UserError(
            f"root: {file} has {shape[0]} {split} images and labels {labels.dtype} {labels.shape}; "
            "download it again."
        )
    return labels


def _open_member(archive: zipfile.ZipFile, member: str) -> zipfile.ZipExtFile:
    return cast(zipfile.ZipExtFile, archive.open(member))


def _read_array_header(stream: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of an array in npy format 1 or 2; the stream is left at its data."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)
