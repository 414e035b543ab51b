"""A network of the user that says whether two radiographs show the same patient."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cxr_lightning.errors import UserError
from cxr_lightning.networks.torchscript import load_torchscript


@dataclass(frozen=True)
class Reidentification:
    """A network that says whether two images show the same patient.

    Attributes:
        path: Its file.
        network: From two batches of images (b, 1, h, w), float32 in [0, 1], to the probability of
            the same patient, (b,) or (b, 1).
        device: Where it runs.
    """

    path: Path
    network: nn.Module
    device: torch.device

    @torch.no_grad()
    def scores(
        self, first: UInt8[np.ndarray, "b h w"], second: UInt8[np.ndarray, "b h w"]
    ) -> Float[Tensor, " b"]:
        """The score of each pair.

        Raises:
            UserError: If the network fails, or does not bring one finite number a pair.
        """
        one, other = (
            torch.from_numpy(np.array(raw)[:, None]).to(self.device).float() / 255
            for raw in (first, second)
        )
        try:
            scores = self.network(one, other)
        except RuntimeError as error:
            raise UserError(
                f"reidentification: {self.path} fails on two images of {tuple(first.shape[1:])} "
                f"pixels ({error}); let the network take images (b, 1, h, w) of that size."
            ) from error
        fits = isinstance(scores, Tensor) and scores.shape in ((len(first),), (len(first), 1))
        if not fits or not bool(scores.isfinite().all()):
            raise UserError(
                f"reidentification: {self.path} does not bring one finite number a pair; let it "
                "return the probability of the same patient, (b,) or (b, 1)."
            )
        return scores.flatten()


def load_reidentification(path: Path, device: torch.device) -> Reidentification:
    """Loads a re-identification network from a TorchScript file.

    Raises:
        UserError: If the file cannot be loaded.
    """
    try:
        network = load_torchscript(path, device)
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"reidentification: {path} is no TorchScript file; save the network with "
            "torch.jit.trace(network, (image, image)).save(FILE)."
        ) from error
    return Reidentification(path, network, device)
