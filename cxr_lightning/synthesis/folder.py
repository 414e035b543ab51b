"""The folder of a synthetic data set: CheXpert's layout, and what is there until it is whole."""

import errno
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from cxr_lightning.data.requests import ImageRequests
from cxr_lightning.data.writers import FORMATS
from cxr_lightning.errors import UserError
from cxr_lightning.files import hold, write_whole
from cxr_lightning.synthesis.request import Request

STEM = "view1_frontal"


@dataclass(frozen=True)
class SyntheticFolder:
    """A synthetic data set on disk, for one request.

    All goes into a hidden folder beside `out`, whose part `set` is renamed to `out` at the end, so
    that `out` is either complete or not there. An image is either whole or absent, so that after a
    kill, or where the disk was full, the same request goes on with what is missing. Several
    processes may write into it, also on several machines: all that they could write twice is the
    same.

    Attributes:
        out: Where the set goes.
        request: What its images depend on.
    """

    out: Path
    request: Request

    @property
    def partial(self) -> Path:
        """The hidden folder."""
        return self.out.with_name(f".{self.out.name}.partial")

    @property
    def inside(self) -> Path:
        """What becomes `out`."""
        return self.partial / "set"

    def path(self, i: int) -> str:
        """Path of an image below the folder of the set."""
        suffix = FORMATS[self.request.image_format].suffix
        return f"train/patient{i + 1:05d}/study1/{STEM}{suffix}"

    def is_finished(self) -> bool:
        """Whether `out` holds the set of this very request."""
        manifest = _read_json(self.out / "manifest.json")
        return manifest is not None and self.request.difference(manifest) is None

    def open(self, images: int) -> None:
        """Makes the hidden folder, or goes on with the one of an unfinished run of this request.

        Args:
            images: Number of images of the set.

        Raises:
            UserError: If the hidden folder holds images of another request, the disk has no room
                for the set, or nothing can be written there.
        """
        if self.partial.exists():
            difference = self._difference()
            if difference is None:
                return
            begun = sum(1 for _ in self.partial.rglob(f"{STEM}.*"))
            if begun:
                raise UserError(
                    f"out: {self.partial} holds {begun} images of an unfinished set of another "
                    f"request ({difference}); give that command again to finish it, or remove the "
                    "folder."
                )
            self._require_unused()
            shutil.rmtree(self.partial)
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._check_room(images * self.request.size**2)
            self._begin()
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise UserError(
                f"out: {self.out} cannot be written ({error.strerror}); choose another folder."
            ) from error

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Holds the hidden folder, so that no other command removes it meanwhile."""
        import fcntl  # not on every platform, and only writing needs it

        with (self.partial / "request.json").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def _require_unused(self) -> None:
        if not (self.partial / "request.json").is_file():
            return
        hold(
            self.partial / "request.json",
            f"out: another command is at work in {self.partial}; wait for it, or give another "
            "folder.",
        ).close()

    def missing(self, images: int) -> list[int]:
        """Numbers of the images that are not there yet, of so many."""
        return [i for i in range(images) if not (self.inside / self.path(i)).is_file()]

    def write(self, i: int, content: bytes) -> None:
        """Writes an image."""
        write_whole(self.inside / self.path(i), content, self.partial / "writing")

    @contextmanager
    def log(self) -> Iterator[TextIO]:
        """A new file for one line of JSON about each image of a process; see `records`."""
        with tempfile.NamedTemporaryFile(
            "w", dir=self.partial / "records", suffix=".jsonl", delete=False
        ) as file:
            yield file  # type: ignore[misc]  # a wrapper of a text file

    def records(self) -> dict[int, dict[str, Any]]:
        """What all processes wrote of their images, by number; the last line may be torn."""
        found: dict[int, dict[str, Any]] = {}
        for file in sorted((self.partial / "records").glob("*.jsonl")):
            for line in file.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # of an image that was not written: it was made again
                    continue
                found[record.pop("index")] = record
        return found

    def finish(self, requests: ImageRequests, facts: dict[str, Any]) -> None:
        """Adds train.csv with CheXpert's columns and the manifest, and puts the set at `out`.

        Args:
            requests: What each image was asked for.
            facts: What the manifest says beside the request and the images.

        Raises:
            UserError: If `out` was made by something else meanwhile.
        """
        rows = [
            {"Path": f"{self.out.name}/{self.path(i)}"} | row
            for i, row in enumerate(requests.rows())
        ]
        self._write_text("train.csv", pd.DataFrame(rows).to_csv(index=False))
        records = self.records()
        asked = zip(requests.names, requests.prompts, strict=True)
        images = [
            {"path": self.path(i), "condition": condition, "prompt": prompt, "index": i}
            | records.get(i, {})
            for i, (condition, prompt) in enumerate(asked)
        ]
        manifest = self.request.facts() | facts | {"images": images}
        self._write_text("manifest.json", json.dumps(manifest, indent=1) + "\n")
        try:
            self.inside.rename(self.out)
        except OSError as error:
            if not self.out.exists() or self.is_finished():
                raise
            raise UserError(
                f"out: {self.out} was made by something else meanwhile; move it away and give the "
                "same command again."
            ) from error
        self.remove_rest()

    def remove_rest(self) -> None:
        """Removes the hidden folder of a finished set."""
        if not self.inside.exists():
            shutil.rmtree(self.partial, ignore_errors=True)

    def _begin(self) -> None:
        """Makes the hidden folder with the request in it, at once."""
        fresh = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", dir=self.out.parent))
        try:
            for name in ("set", "writing", "records"):
                (fresh / name).mkdir()
            (fresh / "request.json").write_text(json.dumps(self.request.facts(), indent=1))
            fresh.rename(self.partial)
        except OSError:
            shutil.rmtree(fresh)
            if not self.partial.exists():  # else another process was first
                raise
            difference = self._difference()
            if difference is not None:
                raise UserError(
                    f"out: another command began a set of another request in {self.partial} "
                    f"({difference}); give another folder."
                ) from None

    def _difference(self) -> str | None:
        """What the hidden folder's request has otherwise; None if there is nothing."""
        there = _read_json(self.partial / "request.json")
        return "no request.json there" if there is None else self.request.difference(there)

    def _check_room(self, needed: int) -> None:
        free = shutil.disk_usage(self.out.parent).free
        if needed > free:
            raise UserError(
                f"out: {self.out} needs up to {needed} bytes and {free} are free; make room or use "
                "a smaller --count."
            )

    def _write_text(self, name: str, text: str) -> None:
        write_whole(self.inside / name, text.encode(), self.partial / "writing")


def _read_json(file: Path) -> dict[str, Any] | None:
    """A JSON object; None if there is none."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
