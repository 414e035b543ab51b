"""Features of image sets, kept on disk: computed once, block by block, and resumable.

A set of features lies in a folder of the cache that is named by the hash of the images, the hash of
the extractor's weights, and the preprocessing. `features.npy` is a memory map (n, f), float32;
`blocks.json` says which blocks are done, each with the hash of its bytes, so that a killed run goes
on and damage is found.
"""

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8
from numpy.lib.format import open_memmap
from torch import Tensor

from cxr_lightning.errors import UserError
from cxr_lightning.files import alone, create_array, write_whole
from cxr_lightning.metrics.extractors import Extractor
from cxr_lightning.progress import progress_bar

BLOCK = 1024
"""Images in a block, however many a network sees at once."""


class FeatureCache:
    """Computes features of images and keeps them.

    Args:
        folder: Where they are kept.
        batch_size: Images that a network sees at once.
        device: Where the networks run.
    """

    def __init__(self, folder: Path, batch_size: int, device: torch.device) -> None:
        self.folder = folder
        self.batch_size = batch_size
        self.device = device
        self.checked: dict[Path, _Blocks] = {}

    def features(
        self,
        extractor: Extractor,
        images: UInt8[np.ndarray, "n h w"],
        images_sha256: str,
        rows: Int[np.ndarray, " k"],
        title: str,
    ) -> Float32[Tensor, "k f"]:
        """Features of some images of a set, on the CPU.

        Whole blocks are computed, where one of their images is asked for.

        Args:
            extractor: The network, on the device of this cache.
            images: All images of the set.
            images_sha256: Hash that tells the set from any other.
            rows: Which features are asked for.
            title: What the progress bar says.
        """
        shape = (len(images), extractor.num_features)
        blocks = self._open(_key(extractor, images_sha256, shape, self.device), shape)
        missing = [b for b in np.unique(rows // BLOCK).tolist() if b not in blocks.done]
        if missing:
            network = extractor.to(self.device)
            for block in progress_bar(missing, title, unit_scale=BLOCK, unit="image"):
                chosen = images[block * BLOCK : (block + 1) * BLOCK]
                blocks.write(block, self._compute(network, chosen))
        return torch.from_numpy(blocks.values[rows])

    def _compute(
        self, extractor: Extractor, images: UInt8[np.ndarray, "b h w"]
    ) -> Float32[np.ndarray, "b f"]:
        batches = np.array_split(images, range(self.batch_size, len(images), self.batch_size))
        raw = (torch.from_numpy(np.array(batch)[:, None]) for batch in batches)
        found = torch.cat([extractor(batch.to(self.device)).cpu() for batch in raw]).numpy()
        if not np.isfinite(found).all():
            count = int((~np.isfinite(found)).any(axis=1).sum())
            raise UserError(
                f"extractor: {extractor.name} gives {count} of {len(found)} images features that "
                "are no finite numbers; correct the network, or use another."
            )
        return found

    def _open(self, key: dict[str, Any], shape: tuple[int, int]) -> "_Blocks":
        text = json.dumps(key, sort_keys=True)
        shown = re.sub(r"[^\w.-]", "_", key["extractor"])[:15]
        folder = self.folder / f"{shown}-{hashlib.sha256(text.encode()).hexdigest()}"
        if folder not in self.checked:
            self.checked[folder] = _Blocks(folder, key, shape)
        return self.checked[folder]


def _key(
    extractor: Extractor, images_sha256: str, shape: tuple[int, int], device: torch.device
) -> dict[str, Any]:
    return {
        "extractor": extractor.name,
        "weights": extractor.sha256,
        "preprocessing": extractor.preprocessing,
        "images": images_sha256,
        "shape": list(shape),
        "device": device.type,  # kernels round differently
        "torch": torch.__version__.split("+")[0],  # likewise
    }


class _Blocks:
    """Features of one set by one extractor on disk."""

    def __init__(self, folder: Path, key: dict[str, Any], shape: tuple[int, int]) -> None:
        self.folder = folder
        self.key = key
        self.done: dict[int, str] = {}
        with alone(folder):  # evaluations that run at once share the real images
            self._begin(shape)

    def _begin(self, shape: tuple[int, int]) -> None:
        """Opens what is there, or makes it."""
        folder, file = self.folder, self.folder / "features.npy"
        done = self._read_done()
        if done is None or not file.is_file() or not self._fits(file, shape):
            if file.exists() or (folder / "blocks.json").exists():
                _warn(f"{folder} is damaged, so it is made again")
            self.values = create_array(file, np.float32, shape)
            self._write_done()
            return
        self.values, self.done = open_memmap(file, "r+"), done
        damaged = [b for b, sha256 in self.done.items() if self._hash(b) != sha256]
        if damaged:
            _warn(f"{len(damaged)} blocks in {folder} are damaged, so they are made again")
            self.done = {b: sha256 for b, sha256 in self.done.items() if b not in damaged}

    def write(self, block: int, features: Float32[np.ndarray, "b f"]) -> None:
        """Stores a block and notes that it is done."""
        self.values[block * BLOCK : (block + 1) * BLOCK] = features
        self.values.flush()
        self.done[block] = self._hash(block)
        self._write_done()

    def _fits(self, file: Path, shape: tuple[int, int]) -> bool:
        try:
            values = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError):
            return False
        return values.shape == shape and values.dtype == np.float32

    def _read_done(self) -> dict[int, str] | None:
        """Hashes of the blocks that are done; None where there is no valid list."""
        try:
            content = json.loads((self.folder / "blocks.json").read_text())
            same = content["key"] == self.key
            return {int(b): str(h) for b, h in content["blocks"].items()} if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _write_done(self) -> None:
        text = json.dumps({"key": self.key, "blocks": self.done})
        write_whole(self.folder / "blocks.json", text.encode(), self.folder)

    def _hash(self, block: int) -> str:
        rows = self.values[block * BLOCK : (block + 1) * BLOCK]
        return hashlib.blake2b(rows.tobytes(), digest_size=16).hexdigest()


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
