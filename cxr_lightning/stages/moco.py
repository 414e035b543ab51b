"""Stage 3: MoCo v2 with a clustering loss on metadata."""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from jaxtyping import Float
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from cxr_lightning.data.augment import PRESETS, Augmentation, Preset, sample_draws, two_views
from cxr_lightning.data.categories import CATEGORIES, Scheme, category_weights
from cxr_lightning.errors import UserError
from cxr_lightning.losses.clustering import Centroids, Form, clustering_loss, rarer_category
from cxr_lightning.losses.contrastive import Queue, in_batch_info_nce, info_nce
from cxr_lightning.metrics.collapse import describe_collapse, knn_auroc, spread
from cxr_lightning.networks.encoder import Backbone, Encoder
from cxr_lightning.networks.momentum import (
    grouped_forward,
    momentum_copy,
    momentum_update,
    momentum_update_buffers,
)
from cxr_lightning.stages.base import Decay, Product, Stage
from cxr_lightning.types import Batch

MONITORED = 4096
"""Validation images, over all ranks, that the monitors look at."""


def default_sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD as in MoCo v2: learning rate 0.03, momentum 0.9, weight decay 1e-4."""
    return torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4)


def _at_least(name: str, value: float | int, least: float | int) -> None:
    if not value >= least:
        raise UserError(f"model.{name}: {value} is too small; use at least {least}.")


def _share(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UserError(f"model.{name}: {value} is out of range; use 0 to below 1, such as 0.99.")


def _positive(name: str, value: float) -> None:
    if not value > 0.0:
        raise UserError(f"model.{name}: {value} must be above 0; use 0.2, as MoCo v2 does.")


@dataclass(frozen=True)
class Clustering:
    """How images of a category are drawn together.

    Attributes:
        scheme: Which categories there are: `binary` (normal, abnormal), `single` (exactly one
            finding), `multi` (the 14 observations), `view`, `sex`.
        weight: lambda, weight beside InfoNCE; 0 for plain MoCo. Above 0.5 (`prototype`) or 1
            (`pull`) expect collapse.
        form: `prototype` (softmax over the centroids) or `pull` (towards the own centroid alone).
        temperature: T of the `prototype` form.
        momentum: Share of the old centroid in an update.
        warmup_steps: First optimizer steps, with InfoNCE alone.
        ramp_steps: Optimizer steps after these in which the weight rises linearly.
        minority: Whether, of two categories, images of the rarer one alone are drawn together
            (Supervised Minority, Mildenberger et al. 2025, arXiv 2503.17024).
    """

    scheme: Scheme = "multi"
    weight: float = 0.1
    form: Form = "prototype"
    temperature: float = 0.2
    momentum: float = 0.99
    warmup_steps: int = 1000
    ramp_steps: int = 1000
    minority: bool = False

    def __post_init__(self) -> None:
        _at_least("clustering.weight", self.weight, 0.0)
        _at_least("clustering.warmup_steps", self.warmup_steps, 0)
        _at_least("clustering.ramp_steps", self.ramp_steps, 0)
        _share("clustering.momentum", self.momentum)
        _positive("clustering.temperature", self.temperature)
        if self.minority and len(CATEGORIES[self.scheme]) != 2:
            raise UserError(
                f"model.clustering.minority: it is for two categories, but scheme {self.scheme!r} "
                f"has {len(CATEGORIES[self.scheme])}; use scheme 'binary' or set it to false."
            )

    def weight_at(self, step: int) -> float:
        """The weight after `step` optimizer steps."""
        ramp = (step - self.warmup_steps) / self.ramp_steps if self.ramp_steps else 1.0
        return self.weight * min(ramp, 1.0) if step >= self.warmup_steps else 0.0


@final
class MoCo(Stage):
    """Representation learning: L = L_moco + lambda L_clustering.

    Two views of each image are embedded by the encoder (queries) and by its momentum copy (keys).
    L_moco is InfoNCE over a queue of earlier keys; L_clustering draws images towards the centroid
    of their category. The product is the encoder of the queries.

    Batch norm must not tell a query which key is its own. `grouped` embeds the keys in permuted
    groups with batch statistics of their own, within each process: images are not shuffled across
    processes. `eval` gives keys no batch statistics at all: the copy follows the encoder's running
    ones (EMAN, Cai et al. 2021, arXiv 2101.08482).

    Validation computes InfoNCE among the validation images (up to 4096), so it neither reads nor
    writes the queue, but for the nearest-neighbour AUROC, which reads it.

    Args:
        image_size: Height and width in pixels that the encoder sees.
        width: Width of the `small` backbone.
        backbone: Network that computes the features.
        dim: Dimension of the embedding.
        temperature: T of InfoNCE.
        momentum: Share of the old key encoder in an update, which follows each optimizer step: 0.99
            for some ten thousand steps, 0.999 for longer trainings.
        queue_size: Number of keys held; at most a quarter of the training images is used.
        bn: How the key encoder's batch norm runs: `grouped` or `eval`.
        group_size: Least number of images in a group of keys.
        augmentation: What makes the views: the name of a preset or its settings.
        clustering: Settings of the clustering loss.
        optimizer: Called with the encoder's parameters.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up.

    Raises:
        UserError: If a number is out of its range.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 32,
        backbone: Backbone = "resnet18",
        dim: int = 128,
        *,
        temperature: float = 0.2,
        momentum: float = 0.99,
        queue_size: int = 16384,
        bn: Literal["grouped", "eval"] = "grouped",
        group_size: int = 16,
        augmentation: Preset | Augmentation = "cxr",
        clustering: Clustering = Clustering(),
        optimizer: OptimizerCallable = default_sgd,
        warmup_steps: int = 0,
        decay: Decay = "cosine",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay)
        for name, size in (("image_size", image_size), ("width", width), ("dim", dim)):
            _at_least(name, size, 1)
        _at_least("queue_size", queue_size, 1)
        _at_least("group_size", group_size, 2)
        _share("momentum", momentum)
        _positive("temperature", temperature)
        self.temperature = temperature
        self.momentum = momentum
        self.queue_size = queue_size
        self.bn = bn
        self.group_size = group_size
        self.augmentation = PRESETS[augmentation] if isinstance(augmentation, str) else augmentation
        self.clustering = clustering
        self.categories = CATEGORIES[clustering.scheme]
        self.encoder = Encoder(image_size=image_size, width=width, backbone=backbone, dim=dim)
        self.key_encoder = momentum_copy(self.encoder).train()  # `embed_keys` sets its mode
        self.queue = Queue(queue_size, dim, len(self.categories))
        self.centroids = Centroids(len(self.categories), dim, clustering.momentum)
        self.validated: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.collapsed = False

    @property
    def name(self) -> str:
        """`moco`."""
        return "moco"

    @property
    def momentum_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """All that the momentum update moves: backbone and head together."""
        return [(self.encoder, self.key_encoder)]

    def product(self) -> Product:
        """The encoder of the queries."""
        return Product("encoder", {"encoder": self.encoder}, {})

    def setup(self, stage: str) -> None:
        """Shrinks a queue that is still empty to a quarter of the training images."""
        size = min(self.queue_size, max(len(self.datamodule.rows["train"]) // 4, 1))
        if int(self.queue.filled) == 0:
            self._build_queue(size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives the queue the size that the checkpoint's has."""
        self._build_queue(len(checkpoint["state_dict"]["queue.keys"]))

    def on_train_start(self) -> None:
        """Warns of settings that would have no effect on this training."""
        super().on_train_start()
        steps, warmup = self.trainer.estimated_stepping_batches, self.clustering.warmup_steps
        if self.clustering.weight > 0 and warmup >= steps:
            rank_zero_warn(
                f"model.clustering.warmup_steps: {warmup} is not below the {steps} steps of this "
                "training, so the clustering loss is never used; lower it."
            )
        count = self.datamodule.batch_size // self.trainer.world_size
        if self.bn == "grouped" and count < 2 * self.group_size:
            rank_zero_warn(
                f"model.bn: a batch of {count} images a process is one group of at least "
                f"{self.group_size}, so batch norm can give keys away; use --model.bn eval or a "
                f"--data.batch_size of at least {2 * self.group_size * self.trainer.world_size}."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L_moco + lambda L_clustering; then the keys enter the queue."""
        count = len(batch.image)
        draws = self.draw(sample_draws, count)
        query_view, key_view = two_views(batch.image, draws, self.augmentation)
        weights = category_weights(batch.condition, self.clustering.scheme)
        query, key = self.encoder(query_view), self.embed_keys(key_view)
        contrast = info_nce(query, key, self.queue.keys, self.temperature)
        cluster = self._cluster(query, weights, self.centroids.update(key, weights))
        self.queue.enqueue(key, weights)
        weight = self.clustering.weight_at(self.global_step)
        loss = contrast + weight * cluster
        scalars: dict[str, Tensor | float] = {
            "loss": loss.detach(),
            "info_nce": contrast.detach(),
            "clustering": cluster.detach(),
            "clustering_weight": weight,
        }
        self.log_scalars("train", scalars, count)
        return loss

    @torch.no_grad()
    def embed_keys(self, image: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b d"]:
        """Keys of a training batch, without gradient and without the batch-norm leak."""
        if self.bn == "eval":
            key: Tensor = self.key_encoder.eval()(image)
            return key
        return grouped_forward(self.key_encoder.train(), image, self.group_size)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps the optimizer, then moves the key encoder; not called while accumulating."""
        super().optimizer_step(*args, **kwargs)
        momentum_update(self.momentum_pairs, self.momentum)
        if self.bn == "eval":
            momentum_update_buffers(self.momentum_pairs, self.momentum)

    def on_validation_epoch_start(self) -> None:
        """Forgets the images validated before."""
        self.validated = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Embeds two views of each image, the same ones every time."""
        if batch_idx * self.datamodule.batch_size >= MONITORED:
            return
        draws = sample_draws(len(batch.image), torch.Generator().manual_seed(batch_idx))
        first, second = two_views(batch.image, draws, self.augmentation)
        weights = category_weights(batch.condition, self.clustering.scheme)
        embedded = self.encoder(first), self.encoder(second), self.key_encoder(second)
        self.validated.append((*embedded, weights))

    def on_validation_epoch_end(self) -> None:
        """Logs loss and monitors over the images of all ranks; warns of a collapse."""
        first, second, key, weights = (
            _all_rows(list(rows)) for rows in zip(*self.validated, strict=True)
        )
        if len(first) < 2:
            return
        contrast = in_batch_info_nce(first, key, self.temperature)
        cluster = self._cluster(first, weights, None)
        filled = int(self.queue.filled)
        bank, bank_weights = self.queue.keys[:filled], self.queue.weights[:filled]
        monitors = spread(first, second, weights)
        scalars = {
            "loss": contrast + self.clustering.weight * cluster,
            "info_nce": contrast,
            "clustering": cluster,
            "knn_auroc": knn_auroc(first, weights, bank, bank_weights),
            **monitors,
        }
        finite = {name: value for name, value in scalars.items() if not torch.isnan(value)}
        self.log_scalars(self.split, finite, len(first))
        if not self.trainer.sanity_checking and self.global_step >= self.clustering.warmup_steps:
            images, dim = first.shape
            reason = describe_collapse(monitors, images, dim, len(self.categories))
            self._warn_of_collapse(reason)

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "b d"]:
        """Embeddings of the images as they are."""
        embedding: Tensor = self.encoder(batch.image)
        return embedding

    def _warn_of_collapse(self, reason: str | None) -> None:
        """Warns when embeddings have become collapsed, once until they recover."""
        if reason is not None and not self.collapsed:
            rank_zero_warn(
                f"At step {self.global_step} {reason}: the encoder is collapsed or not trained "
                "yet; if this stays, lower --model.clustering.weight or train longer."
            )
        self.collapsed = reason is not None

    def _cluster(
        self,
        embedding: Float[Tensor, "b d"],
        weights: Float[Tensor, "b k"],
        totals: Float[Tensor, " k"] | None,
    ) -> Float[Tensor, ""]:
        """The clustering loss; `totals` are the global batch's, None for this batch's own."""
        totals = weights.sum(dim=0) if totals is None else totals / self.trainer.world_size
        if self.clustering.minority:
            weights = rarer_category(weights, self.centroids.seen)
            totals = rarer_category(totals[None], self.centroids.seen)[0]
        return clustering_loss(
            embedding,
            weights,
            self.centroids.vectors,
            known=self.centroids.known,
            totals=totals,
            form=self.clustering.form,
            temperature=self.clustering.temperature,
        )

    def _build_queue(self, size: int) -> None:
        if len(self.queue) != size:
            self.queue = Queue(size, self.encoder.dim, len(self.categories)).to(self.device)


def _all_rows(parts: list[Tensor]) -> Tensor:
    """The rows of all batches and ranks."""
    rows = torch.cat(parts)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.cat(gather_all_tensors(rows))
    return rows
