"""The data sources by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from cxr_lightning.data.resize import Resize
from cxr_lightning.data.sources import chexpert, chexpert_plus, mimic_cxr
from cxr_lightning.data.sources.base import Source
from cxr_lightning.data.sources.dicom import DicomSource
from cxr_lightning.data.sources.folder import FolderSource
from cxr_lightning.data.sources.medmnist import Flag, MedmnistSource, NativeSize
from cxr_lightning.data.sources.mixture import MixtureSource
from cxr_lightning.data.sources.nih14 import Nih14Source
from cxr_lightning.data.sources.phantom import PhantomSource
from cxr_lightning.data.sources.rsna import RsnaSource
from cxr_lightning.data.sources.vindr import VindrSource
from cxr_lightning.errors import UserError

SourceName = Literal[
    "chexpert",
    "chexpert_plus",
    "mimic_cxr",
    "nih14",
    "rsna",
    "vindr",
    "medmnist",
    "folder",
    "dicom",
    "mixture",
    "phantom",
]


@dataclass(frozen=True)
class Options:
    """What some of the sources take; see `cxr prepare --help`."""

    resize: Resize
    out: Path
    seed: int
    workers: int
    labels: str | None = None
    csv: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[str] | None = None
    flag: Flag = "pneumoniamnist"
    download_size: NativeSize | None = None
    patients: int = 400


READ: dict[SourceName, set[str]] = {
    "chexpert": {"labels"},
    "chexpert_plus": {"labels"},
    "mimic_cxr": {"labels"},
    "medmnist": {"flag", "download_size"},
    "folder": {"csv", "columns"},
    "dicom": {"csv", "columns"},
    "mixture": {"parts"},
    "phantom": {"patients"},
}
"""Which of the options that have a default a source reads; none where it is not named."""


SOURCES: dict[SourceName, Callable[[Path, Options], Source]] = {
    "chexpert": lambda root, o: chexpert.ChexpertSource(
        root, choose_labels(o.labels, chexpert.Labeller)
    ),
    "chexpert_plus": lambda root, o: chexpert_plus.ChexpertPlusSource(
        root, choose_labels(o.labels, chexpert_plus.Section)
    ),
    "mimic_cxr": lambda root, o: mimic_cxr.MimicCxrSource(
        root, choose_labels(o.labels, mimic_cxr.Labeller)
    ),
    "nih14": lambda root, o: Nih14Source(root),
    "rsna": lambda root, o: RsnaSource(root),
    "vindr": lambda root, o: VindrSource(root),
    "medmnist": lambda root, o: MedmnistSource(root, o.flag, o.resize.size, o.download_size),
    "folder": lambda root, o: FolderSource(root, o.csv, o.columns),
    "dicom": lambda root, o: DicomSource(root, o.csv, o.columns),
    "mixture": lambda root, o: MixtureSource(root, o.parts, o.resize, o.out),
    "phantom": lambda root, o: PhantomSource(
        root, patients=o.patients, size=o.resize.size, seed=o.seed, workers=o.workers
    ),
}


def open_source(name: SourceName, root: Path, options: Options) -> Source:
    """The data set at `root`.

    Raises:
        UserError: If there is no such data set, or an option does not suit it.
    """
    usual = Options(options.resize, options.out, options.seed, options.workers)
    for option in (part.name for part in fields(Options)):
        given = getattr(options, option)
        if given != getattr(usual, option) and option not in READ.get(name, ()):
            readers = [source for source, read in READ.items() if option in read]
            raise UserError(
                f"{option}: --source {name} does not read it, only {' and '.join(readers)}; leave "
                f"out {given}."
            )
    return SOURCES[name](root, options)


def choose_labels(labels: str | None, labellers: Any) -> Any:
    """One of the values of a Literal; its first where none is asked for."""
    names = get_args(labellers)
    if labels is None:
        return names[0]
    if labels not in names:
        raise UserError(f"labels: {labels!r} is not known here; use one of {', '.join(names)}.")
    return labels
