"""Text encoder: reports and prompts as vectors, by a model of sentence-transformers."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float32
from torch import Tensor

from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.errors import UserError
from cxr_lightning.files import array_bytes, sha256_file, write_whole

INSTALL = "pip install 'cxr_lightning[text]'"
BATCH_SIZE = 64


class TextEncoder:
    """Embeds texts; a text without a letter counts as none.

    Args:
        folder: A model of sentence-transformers, or of transformers (then the mean over tokens is
            taken), on this machine.
        argument: The argument that named it, for error messages.
        device: Where it runs; by default a GPU, if there is one.

    Attributes:
        sha256: Over the model's files.

    Raises:
        UserError: If there is no such folder; when it is first used, if the library is not
            installed or the model cannot be read.
    """

    def __init__(self, folder: Path, argument: str, device: str | None = None) -> None:
        if not folder.is_dir():
            raise UserError(
                f"{argument}: there is no folder {folder}; give that of a model of "
                "sentence-transformers or transformers."
            )
        self.folder = folder
        self.argument = argument
        self.device = device
        self.sha256 = _hash_folder(folder)

    @cached_property
    def model(self) -> Any:
        """The model; read when it is first needed, which is not where embeddings are kept."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise UserError(
                f"{self.argument}: sentence-transformers is needed; install it with {INSTALL}."
            ) from error
        try:
            return SentenceTransformer(str(self.folder), device=self.device, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n")[0]
            raise UserError(
                f"{self.argument}: the model in {self.folder} cannot be read ({reason}); give one "
                "of sentence-transformers or transformers."
            ) from error

    @cached_property
    def dimension(self) -> int:
        """Columns of an embedding."""
        return int(self.encode([" ", "a"]).shape[1])

    def encode(self, texts: Sequence[str], *, progress: bool = False) -> Float32[Tensor, "n e"]:
        """Embeddings of length 1; 0 for a text without a letter. On the CPU.

        Args:
            texts: At least one.
            progress: Whether a bar is shown.
        """
        found = self.model.encode(
            list(texts),
            batch_size=BATCH_SIZE,
            show_progress_bar=progress,
            convert_to_tensor=True,
            normalize_embeddings=True,
        )
        there = torch.tensor([any(map(str.isalpha, text)) for text in texts])
        return found.float().cpu() * there[:, None]


def report_embeddings(prepared: PreparedDataset, encoder: TextEncoder) -> Float32[Tensor, "n e"]:
    """Embeddings of the reports of a prepared data set, one row an image.

    They are kept in its folder, for one text encoder and the same reports.

    Raises:
        UserError: If it has no reports.
    """
    if "report" not in prepared.table.columns:
        raise UserError(
            f"data.text_encoder: {prepared.root} has no reports; leave it out, or prepare a source "
            "that has texts."
        )
    reports = prepared.table["report"].fillna("").astype(str).tolist()
    key = hashlib.sha256(json.dumps([encoder.sha256, reports]).encode()).hexdigest()
    file = prepared.root / f"text-{key[:16]}.npy"
    if not os.access(prepared.root, os.W_OK):
        if not file.is_file():
            print(f"{prepared.root} cannot be written to: embeddings of its reports are not kept")
            return _embed_distinct(reports, encoder)
    else:
        with FileLock(file.with_suffix(".lock")):  # one of several processes makes it
            if not file.is_file():
                write_whole(file, array_bytes(_embed_distinct(reports, encoder).numpy()))
    return torch.from_numpy(np.load(file, allow_pickle=False))


def _embed_distinct(texts: list[str], encoder: TextEncoder) -> Float32[Tensor, "n e"]:
    """Embeds each distinct text once."""
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return encoder.encode(list(row), progress=True)[torch.tensor([row[text] for text in texts])]


def check_text_encoder(
    folder: Path | None, wanted: str | None, argument: str
) -> TextEncoder | None:
    """The text encoder that a product was trained with.

    Args:
        folder: The one that was given.
        wanted: Hash of the product's; None if it looks at no texts.
        argument: The argument that named the folder, for error messages.

    Raises:
        UserError: If it is another one, or the product has none.
    """
    if folder is None:
        return None
    if wanted is None:
        raise UserError(
            f"{argument}: {folder} was given, but the generator was trained without a text "
            "encoder; leave it out, or train stage 2 with data.text_encoder."
        )
    encoder = TextEncoder(folder, argument)
    if encoder.sha256 != wanted:
        raise UserError(
            f"{argument}: the generator was trained with another text encoder than {folder}; give "
            f"the one whose files have the sha256 {wanted[:16]}..."
        )
    return encoder


def _hash_folder(folder: Path) -> str:
    """Hash of all files of a model, whatever the folder is called.

    Without its descriptions, and without hidden files, where a download notes its own time.
    """
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    seen = [f for f in files if f.suffix != ".md" and not any(p.startswith(".") for p in f.parts)]
    hashes = {file.as_posix(): sha256_file(folder / file) for file in seen}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()
