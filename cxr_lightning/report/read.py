"""Reading what `cxr evaluate` wrote."""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cxr_lightning.errors import UserError
from cxr_lightning.evaluation.records import FORMAT, OVERALL

OBJECTS = ("real", "synthetic", "settings", "curves", "generator_card")
LISTS = ("records", "conditions", "skipped", "extractors", "pairs")
NEEDED = ("records", "conditions")


@dataclass(frozen=True)
class Measurement:
    """One record of metrics.json; see `cxr_lightning.evaluation.records.Record`."""

    axis: str
    metric: str
    value: float | None
    condition: str = OVERALL
    subgroup: str = OVERALL
    ci_low: float | None = None
    ci_high: float | None = None
    unit: str = ""
    better: str | None = None
    passed: bool | None = None
    real_floor: float | None = None
    floor_low: float | None = None
    floor_high: float | None = None
    floor_n: int | None = None
    value_at_floor_n: float | None = None
    floor_meaning: str = ""
    n_real: int | None = None
    n_synthetic: int | None = None
    extractor: str = ""
    extractor_sha256: str = ""
    preprocessing: str = ""
    warning: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Measurement":
        """Reads a record; raises KeyError or TypeError if it is none."""
        values: dict[str, Any] = {name: record[name] for name in ("axis", "metric", "value")}
        for part in fields(cls):
            value = record.get(part.name)
            if value is not None:
                values[part.name] = _typed(part.name, value)
        if not isinstance(values["axis"], str) or not isinstance(values["metric"], str):
            raise TypeError("axis or metric of a record is no text")
        return cls(**values)

    @property
    def source(self) -> tuple[str, str]:
        """What tells extractors apart: name and hash of the weights."""
        return self.extractor, self.extractor_sha256

    @property
    def compared(self) -> float | None:
        """The value to hold against the floor: at its number of images."""
        return self.value if self.value_at_floor_n is None else self.value_at_floor_n

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval."""
        if self.ci_low is None or self.ci_high is None:
            return None
        return self.ci_low, self.ci_high

    @property
    def compared_interval(self) -> tuple[float, float] | None:
        """The interval, moved to where `compared` stands."""
        if self.interval is None or self.compared is None or self.value is None:
            return None
        shift = self.compared - self.value
        return self.interval[0] + shift, self.interval[1] + shift

    @property
    def ratio(self) -> float | None:
        """How many times the floor the value is."""
        if self.compared is None or not self.real_floor or self.real_floor < 0:
            return None
        return self.compared / self.real_floor

    @property
    def span(self) -> list[float]:
        """All numbers that a plot of it shows."""
        ends = [*(self.compared_interval or ()), self.floor_low, self.floor_high]
        return [v for v in (self.compared, self.real_floor, *ends) if v is not None]


TEXTS = {f.name for f in fields(Measurement) if f.type in (str, str | None)}
FLOATS = {f.name for f in fields(Measurement) if f.type == float | None}
COUNTS = {f.name for f in fields(Measurement) if f.type == int | None}


def _typed(name: str, value: object) -> object:
    """A value of a record as its field holds it; raises TypeError if it does not fit."""
    if name in FLOATS | COUNTS:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value) if name in FLOATS else int(value)
    elif isinstance(value, str if name in TEXTS else bool if name == "passed" else dict):
        return value
    raise TypeError(f"{name} of a record is {value!r}")


@dataclass(frozen=True)
class Evaluation:
    """An evaluation as read.

    Attributes:
        name: What the report calls it, from its folder's name.
        metrics: Content of metrics.json.
        records: Its records.
        grids: Image files by name without suffix.
        pairs: Pictures of close pairs by name without suffix.
    """

    name: str
    metrics: dict[str, Any]
    records: list[Measurement]
    grids: dict[str, Path]
    pairs: dict[str, Path]

    def look_up(self, *path: str) -> Any:
        """What metrics.json holds there; None where it is absent."""
        value: Any = self.metrics
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def curve(self, *path: str) -> dict[str, Any]:
        """An object of the curves; empty where it is absent or something else."""
        found = self.look_up("curves", *path)
        return found if isinstance(found, dict) else {}

    def find(
        self,
        metric: str,
        condition: str = OVERALL,
        subgroup: str = OVERALL,
        source: tuple[str, str] | None = None,
    ) -> Measurement | None:
        """The first record with a value of a metric, a condition, a subgroup and an extractor."""
        for record in self.records:
            same = (record.metric, record.condition) == (metric, condition)
            same = same and record.subgroup == subgroup and record.value is not None
            if same and source in (None, record.source):
                return record
        return None

    def select(self, *metrics: str) -> Iterator[Measurement]:
        """The records of some metrics that have a value, over all patients."""
        for record in self.records:
            whole = record.subgroup == OVERALL and record.value is not None
            if whole and record.metric in metrics:
                yield record

    @property
    def conditions(self) -> list[str]:
        """Names of its health conditions."""
        return [condition["name"] for condition in self.metrics["conditions"]]


def read_evaluations(folders: list[Path]) -> list[Evaluation]:
    """Reads evaluations; they are named by their folders.

    Raises:
        UserError: If there is none, one is named twice, or a folder holds no evaluation.
    """
    if not folders:
        raise UserError("evaluation: none given; name one or more folders made by 'cxr evaluate'.")
    names = distinct_names(folders)
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def distinct_names(folders: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(f for f, p in zip(folders, parts, strict=True) if parts.count(p) > 1)
        raise UserError(f"evaluation: {twice} is named twice; name each folder once.")
    depth = 1
    while len({p[-depth:] for p in parts}) < len(parts):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def _read(folder: Path, name: str) -> Evaluation:
    file = folder / "metrics.json"
    if not file.is_file():
        raise UserError(f"evaluation: no metrics.json in {folder}; make it with 'cxr evaluate'.")
    try:
        # NaN and infinities are no JSON; a number that is none has no value.
        text = file.read_text(encoding="utf-8")
        metrics = json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
        known = metrics["format"] == FORMAT
        if known:
            metrics = _checked(metrics)
            records = [Measurement.from_json(record) for record in metrics["records"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"evaluation: {file} is no evaluation ({error!r}); make it again with 'cxr evaluate'."
        ) from error
    if not known:
        raise UserError(
            f"evaluation: {file} is no evaluation in format {FORMAT}; make it again with "
            "'cxr evaluate' of this version."
        )
    return Evaluation(
        name, metrics, records, _pictures(folder / "grids"), _pictures(folder / "pairs")
    )


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _checked(metrics: dict[str, Any]) -> dict[str, Any]:
    """The content with every optional part in place."""
    whole: dict[str, Any] = dict(metrics)
    for name in NEEDED:
        metrics[name]
    for names, kind in ((OBJECTS, dict), (LISTS, list)):
        for name in names:
            part = kind() if whole.get(name) is None else whole[name]
            if not isinstance(part, kind):
                raise TypeError(f"{name} is {type(part).__name__}")
            whole[name] = part
    for name in LISTS:
        if not all(isinstance(entry, dict) for entry in whole[name]):
            raise TypeError(f"an entry of {name} is no object")
    if not all(isinstance(entry.get("name"), str) for entry in whole["conditions"]):
        raise TypeError("a condition has no name")
    return whole


def _pictures(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.png")) if file.is_file()}


def unique(values: Iterable[Any]) -> list[Any]:
    """Values in order, each once."""
    return list(dict.fromkeys(values))
