"""Classifiers of the evaluation: the built-in one, and one that a user gives."""

from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.errors import UserError
from cxr_lightning.networks.encoder import Backbone, build_backbone, lay_out
from cxr_lightning.types import FIELDS, OBSERVATIONS


class Classifier(nn.Module, PyTorchModelHubMixin):
    """Tells the fields of a condition from a radiograph.

    Args:
        image_size: Height and width in pixels that the backbone sees.
        width: Channels of the first stage of the `small` backbone; the others have fixed widths.
        backbone: One of the encoder's backbones, from random weights.
    """

    def __init__(
        self, *, image_size: int = 64, width: int = 16, backbone: Backbone = "small"
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.backbone, features = build_backbone(backbone, width, image_size)
        self.head = nn.Linear(features, len(FIELDS))
        lay_out(self, width)

    def preprocess(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 s s"]:
        """Resizes to the classifier's size: antialiased, bilinear; the same size stays as it is."""
        size = (self.image_size, self.image_size)
        if image.shape[-2:] == size:
            return image
        return F.interpolate(image, size, mode="bilinear", antialias=True)

    def forward(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 17"]:
        """One logit for each of `FIELDS`; that of Age is of years / 100.

        Args:
            image: Model range [-1, 1], any size.
        """
        logits: Tensor = self.head(self.backbone(self.preprocess(image)))
        return logits

    def probabilities(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 17"]:
        """Values of `FIELDS` in [0, 1].

        Args:
            image: Model range [-1, 1], any size.
        """
        return self(image).float().sigmoid()


class GivenClassifier(nn.Module):
    """A user's TorchScript network, which gives one probability for each observation.

    Args:
        network: From float images (b, 1, h, w) in [0, 1] to (b, 14) in CheXpert's column order.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def probabilities(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 17"]:
        """Values of `FIELDS` in [0, 1]; NaN for what no observation is.

        Raises:
            UserError: If the network gives anything but probabilities of the observations.
        """
        try:
            given = self.network((image + 1.0) / 2.0)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise _unusable(f"fails on images {tuple(image.shape)} ({reason})") from error
        wanted = (len(image), len(OBSERVATIONS))
        if not isinstance(given, Tensor) or tuple(given.shape) != wanted:
            shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise _unusable(f"gives {shape} for {len(image)} images instead of {wanted}")
        if not ((given >= 0.0) & (given <= 1.0)).all():
            raise _unusable("gives numbers outside of 0 to 1; apply the sigmoid in it")
        return F.pad(given.float(), (0, len(FIELDS) - len(OBSERVATIONS)), value=float("nan"))


def _unusable(what: str) -> UserError:
    return UserError(
        f"classifier: the network {what}; give a TorchScript file that maps float images "
        "(b, 1, h, w) in 0 to 1 to (b, 14) probabilities in CheXpert's column order."
    )
