"""Stage 3: MoCo v2 with a clustering loss on metadata."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from cxr_lightning.data.augment import DRAWS, PRESETS, Augmentation, Preset, sample_draws, two_views
from cxr_lightning.data.categories import CATEGORIES
from cxr_lightning.data.datamodule import Split
from cxr_lightning.data.partners import Partners, Positives, group_codes
from cxr_lightning.diffusion.random import image_uniform
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.losses.clustering import (
    Centroids,
    clustering_loss,
    nearest_centre,
    rarer_category,
    spherical_kmeans,
)
from cxr_lightning.losses.contrastive import (
    Queue,
    in_batch_info_nce,
    info_nce,
    info_nce_logits,
    instance_accuracy,
)
from cxr_lightning.metrics.collapse import spread
from cxr_lightning.metrics.probe import label_scores, probe_labels
from cxr_lightning.networks.encoder import Backbone, Encoder
from cxr_lightning.networks.frozen import eval_mode
from cxr_lightning.networks.gather import all_ranks, all_rows, first_rank
from cxr_lightning.networks.imagenet import load_imagenet
from cxr_lightning.networks.momentum import (
    grouped_forward,
    momentum_copy,
    momentum_update,
    momentum_update_buffers,
)
from cxr_lightning.ranges import check_range
from cxr_lightning.stages.base import Decay, Product, Stage
from cxr_lightning.stages.moco_clustering import (
    Clustering,
    check_categories,
    image_shares,
)
from cxr_lightning.stages.moco_linear import TRAINED, Judged, evaluate_encoders, open_encoders
from cxr_lightning.stages.moco_monitors import MONITORED, Monitors, Seen
from cxr_lightning.types import Batch

BLOCK = 256
"""Images that are embedded at once outside of training steps."""


def default_sgd(parameters: Any) -> torch.optim.Optimizer:
    """SGD as in MoCo v2: learning rate 0.03, momentum 0.9, weight decay 1e-4."""
    return torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=1e-4)


@final
class MoCo(Stage):
    """Representation learning: L = L_moco + lambda L_clustering.

    Two views of each image are embedded by the encoder (queries) and by its momentum copy (keys).
    L_moco is InfoNCE over a queue of earlier keys; L_clustering draws images towards the centroid
    of their category. The product is the encoder of the queries.

    Batch norm must not tell a query which key is its own. `grouped` embeds the keys in groups,
    permuted over all processes, with batch statistics of their own. `eval` gives keys no batch
    statistics at all: the copy follows the encoder's running ones (EMAN, Cai et al. 2021, arXiv
    2101.08482).

    Validation computes InfoNCE among the validation images (up to 4096), so it neither reads nor
    writes the queue. It also fits a linear probe of the 14 observations, and nearest neighbours, on
    the features of as many training images; the encoder is not touched by either. Testing is a
    linear evaluation, see `evaluation.linear`.

    Args:
        image_size: Height and width in pixels that the encoder sees.
        width: Width of the `small` backbone.
        backbone: Network that computes the features.
        dim: Dimension of the embedding.
        imagenet: File of torchvision's ImageNet weights that the backbone starts from, `.pth` or
            `.safetensors`; random weights by default.
        temperature: T of InfoNCE.
        momentum: Share of the old key encoder in an update, which follows each optimizer step: 0.99
            for some ten thousand steps, 0.999 for longer trainings.
        queue_size: Number of keys held; at most a quarter of the training images is used.
        positives: What query and key are views of: one `image`, or two images of one `study` or one
            `patient` where there are two (MedAug, Vu et al. 2021, arXiv 2102.10663); then no key of
            the same patient is a negative.
        bn: How the key encoder's batch norm runs: `grouped` or `eval`.
        group_size: Least number of images in a group of keys.
        augmentation: What makes the views: the name of a preset or its settings.
        clustering: Settings of the clustering loss.
        encoders: Products of stage 3 that `cxr test` judges side by side; by default the product in
            `trainer.default_root_dir`.
        optimizer: Called with the encoder's parameters.
        warmup_steps: Steps of linear learning-rate warm-up.
        decay: Learning rate after warm-up.

    Raises:
        UserError: If a number is out of its range, or the ImageNet weights do not fit.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 32,
        backbone: Backbone = "resnet18",
        dim: int = 128,
        *,
        imagenet: Path | None = None,
        temperature: float = 0.2,
        momentum: float = 0.999,
        queue_size: int = 16384,
        positives: Positives = "image",
        bn: Literal["grouped", "eval"] = "grouped",
        group_size: int = 16,
        augmentation: Preset | Augmentation = "cxr",
        clustering: Clustering = Clustering(),
        encoders: list[Path] | None = None,
        optimizer: OptimizerCallable = default_sgd,
        warmup_steps: int = 0,
        decay: Decay = "cosine",
    ) -> None:
        super().__init__(optimizer, warmup_steps, decay)
        for name, size in (("image_size", image_size), ("width", width), ("dim", dim)):
            check_range(f"model.{name}", size, 1)
        check_range("model.queue_size", queue_size, 1)
        check_range("model.group_size", group_size, 2)
        check_range("model.momentum", momentum, 0, 1, below=True)
        check_range("model.temperature", temperature, 0, above=True)
        self.temperature = temperature
        self.momentum = momentum
        self.queue_size = queue_size
        self.positives = positives
        self.bn = bn
        self.group_size = group_size
        self.augmentation = PRESETS[augmentation] if isinstance(augmentation, str) else augmentation
        self.clustering = clustering
        self.encoders = encoders or []
        self.architecture: dict[str, Any] = {
            "image_size": image_size,
            "width": width,
            "backbone": backbone,
            "dim": dim,
        }
        self.encoder = Encoder(**self.architecture)
        self.imagenet = imagenet
        self.parents: dict[str, str] = {}
        if imagenet is not None:
            load_imagenet(self.encoder.backbone, backbone, imagenet)
            self.parents["imagenet"] = sha256_file(imagenet)
        self.key_encoder = momentum_copy(self.encoder).train()  # `embed_keys` sets its mode
        self._build_buffers(queue_size, len(CATEGORIES.get(clustering.scheme, ())))  # type: ignore[call-overload]
        self.tables: dict[str, Tensor] = {}
        self.partners: Partners | None = None
        self.clustered_epoch = -1
        self.monitors = Monitors()

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
        return Product("encoder", {"encoder": self.encoder}, self.parents)

    def compilable(self) -> list[nn.Module]:
        """The encoder of the queries."""
        return [self.encoder]

    def setup(self, stage: str) -> None:
        """Looks up categories and patients; sizes a queue that is still empty.

        Raises:
            UserError: If the scheme or the labels do not do for the clustering loss, or a test has
                no training images.
        """
        table, rows = self.datamodule.prepared.table, self.datamodule.rows["train"]
        if stage == "test" and len(rows) < self.trainer.world_size:
            raise UserError(
                f"data.root: {self.datamodule.root} has no training images to fit linear "
                "classifiers on; use a prepared data set with a train split."
            )
        self.categories, shares = image_shares(self.clustering, self.datamodule)
        patient = torch.from_numpy(group_codes(table, "patient"))
        self.tables = {"shares": shares, "patient": patient}
        if self.positives != "image":
            self.partners = Partners(group_codes(table, self.positives), rows)
        if stage == "fit" and self.clustering.weight > 0 and self.clustering.scheme != "kmeans":
            check_categories(self.categories, shares[rows], patient[rows])
        if int(self.queue.filled) == 0:
            size = min(self.queue_size, max(len(rows) // 4, 1))
            self._build_buffers(size, len(self.categories))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the clusters of `kmeans` too."""
        super().on_save_checkpoint(checkpoint)
        if self.clustering.scheme == "kmeans":
            checkpoint["clusters"] = (self.clustered_epoch, self.tables["shares"].cpu())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives the queue the size that the checkpoint's has, and takes its clusters."""
        super().on_load_checkpoint(checkpoint)
        self._build_buffers(*checkpoint["state_dict"]["queue.weights"].shape)
        if "clusters" in checkpoint:
            self.clustered_epoch, self.tables["shares"] = checkpoint["clusters"]

    def on_train_start(self) -> None:
        """Warns of settings that would have no effect on this training."""
        super().on_train_start()
        steps, warmup = self.trainer.estimated_stepping_batches, self.clustering.warmup_steps
        if self.clustering.weight > 0 and warmup >= steps:
            rank_zero_warn(
                f"model.clustering.warmup_steps: {warmup} is not below the {steps} steps of this "
                "training, so the clustering loss is never used; lower it."
            )
        count = self.datamodule.batch_size
        alone = self.trainer.world_size == 1  # several processes permute their keys
        if self.bn == "grouped" and alone and count < 2 * self.group_size:
            rank_zero_warn(
                f"model.bn: a batch of {count} images is one group of at least {self.group_size}, "
                "so batch norm can give keys away; use --model.bn eval or a --data.batch_size of "
                f"at least {2 * self.group_size}."
            )
        if self.partners is not None and self.partners.share == 0.0:
            rank_zero_warn(
                f"model.positives: no {self.positives} has two training images, so "
                f"{self.positives!r} does what 'image' does; use that, or data that name patients."
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Finds the clusters of `kmeans` anew, once an epoch after the warm-up."""
        super().on_train_batch_start(batch, batch_idx)
        due = self.clustered_epoch != self.current_epoch
        started = self.global_step >= self.clustering.warmup_steps
        if self.clustering.scheme == "kmeans" and due and started:
            self._find_clusters()
            self.clustered_epoch = self.current_epoch

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """L_moco + lambda L_clustering; then the keys enter the queue."""
        count = len(batch.image)
        draws = self.draw(sample_draws, count)
        partner = self._draw_partners(batch)
        query_view, key_view = two_views(batch.image, draws, self.augmentation, partner.image)
        query, key = self.encoder(query_view), self.embed_keys(key_view)
        patients = self.look_up("patient", batch.index)
        excluded = None
        if self.positives != "image":
            excluded = patients[:, None] == self.queue.patients
        logits = info_nce_logits(query, key, self.queue.keys, self.temperature, excluded)
        contrast = info_nce(logits)
        weights, key_weights = (self.look_up("shares", b.index) for b in (batch, partner))
        self.centroids.update(key, key_weights)
        totals = all_ranks(weights.sum(dim=0, keepdim=True)).sum(dim=0)
        cluster = self._cluster(query, weights, totals)
        self.queue.enqueue(key, key_weights, patients, self.global_step)
        weight = self.clustering.weight_at(self.global_step)
        loss = contrast + weight * cluster
        scalars: dict[str, Tensor | float] = {
            "loss": loss.detach(),
            "info_nce": contrast.detach(),
            "clustering": cluster.detach(),
            "clustering_weight": weight,
            "accuracy": instance_accuracy(logits),
            "queue_age": self.queue.age(self.global_step),
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
        self.monitors.clear()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Embeds two views of each image, its own ones every time, and the image itself."""
        if batch_idx * self.datamodule.batch_size >= MONITORED:
            return
        draws = image_uniform(0, batch.index, 2, DRAWS)
        first, second = two_views(batch.image, draws, self.augmentation)
        embedded = self.encoder(first), self.encoder(second), self.key_encoder(second)
        features = self.encoder.features(batch.image).float()
        self.monitors.add(Seen(*embedded, features, batch.index))

    def on_validation_epoch_end(self) -> None:
        """Logs loss and monitors over the images of all ranks; warns of a collapse."""
        seen = self.monitors.seen_by_all()
        if len(seen.first) < 2:
            return
        weights = self.look_up("shares", seen.row)
        contrast = in_batch_info_nce(seen.first, seen.key, self.temperature)
        cluster = self._cluster(seen.first, weights, None)
        spreads = spread(seen.first, seen.second, weights)
        scalars = {
            "loss": contrast + self.clustering.weight * cluster,
            "info_nce": contrast,
            "clustering": cluster,
            **spreads,
            **self._tell_labels(seen),
        }
        finite = {name: value for name, value in scalars.items() if not torch.isnan(value)}
        self.log_scalars(self.split, finite, len(seen.first))
        if not self.trainer.sanity_checking and self.global_step >= self.clustering.warmup_steps:
            categories = len(self.categories)
            if self.clustering.scheme == "kmeans":  # may be more clusters than dimensions
                categories = min(categories, self.encoder.dim // 8)
            self.monitors.warn_of_collapse(spreads, seen, categories, self.global_step)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Nothing: all is done at the end."""

    def on_test_epoch_end(self) -> None:
        """Linear evaluation of the encoders that are asked for.

        They are: the one of this module where it was trained or comes from a checkpoint, and the
        products `encoders`; without any, the product in the run's folder.
        """
        root = Path(self.trainer.default_root_dir)
        trained = bool(self.trainer.ckpt_path) or self.global_step > 0
        folders = self.encoders if trained or self.encoders else [root / "product"]
        judged = [Judged(TRAINED, self.encoder, self.architecture, None)] if trained else []
        judged += open_encoders(folders)
        split: Split = "test" if len(self.datamodule.rows["test"]) else "valid"
        rows = {"train": self.datamodule.rows["train"], "test": self.datamodule.rows[split]}
        patient = self.datamodule.prepared.table["patient"].to_numpy()
        scalars = evaluate_encoders(
            judged,
            self.imagenet,
            lambda encoder, part: self.embed_rows(
                encoder.to(self.device).eval().features, rows[part]
            ),
            {part: self._labels(torch.from_numpy(rows[part])) for part in rows},
            {part: patient[rows[part]] for part in rows},
            root / "linear_evaluation.json" if self.trainer.is_global_zero else None,
            {"data": self.datamodule.prepared.sha256, "split": split},
        )
        self.log_scalars("test", scalars, 1)

    def predict_step(self, batch: Batch, batch_idx: int) -> Float[Tensor, "b d"]:
        """Embeddings of the images as they are."""
        embedding: Tensor = self.encoder(batch.image)
        return embedding

    def look_up(self, name: str, index: Int[Tensor, " b"]) -> Tensor:
        """What a table of all images says of some: `shares` in categories, or code of `patient`."""
        if self.tables[name].device != index.device:
            self.tables[name] = self.tables[name].to(index.device)
        return self.tables[name][index]

    @torch.no_grad()
    def embed_rows(
        self, embed: Callable[[Tensor], Tensor], rows: Int[np.ndarray, " n"]
    ) -> Float32[Tensor, "n f"]:
        """What a network says of images of the prepared data set; each rank embeds its part.

        Args:
            embed: From images in model range to one row each, in eval mode.
            rows: At least one a rank.
        """
        mine = np.array_split(rows, self.trainer.world_size)[self.global_rank]
        parts = []
        with self.trainer.precision_plugin.forward_context():
            for block in np.array_split(mine, -(-len(mine) // BLOCK)):
                image = self.datamodule.batch_of(block, self.device).image
                parts.append(embed(image).float())
        return all_rows(parts)

    def _labels(self, index: Int[Tensor, " b"]) -> Int[Tensor, "b 14"]:
        """Labels of the observations for probe and nearest neighbours."""
        return probe_labels(self.datamodule.condition.rows(index.cpu())).to(self.device)

    def _tell_labels(self, seen: Seen) -> dict[str, Tensor]:
        """AUROC of linear probe and nearest neighbours: each observation's, and their mean."""
        train = self.datamodule.rows["train"]
        if len(train) < self.trainer.world_size:  # a set that is only for validation
            return {}
        rows = train[:: -(-len(train) // MONITORED)]
        bank = self.embed_rows(self.encoder.features, rows)
        bank_labels = self._labels(torch.from_numpy(rows))
        return label_scores(seen.features, self._labels(seen.row), bank, bank_labels)

    def _draw_partners(self, batch: Batch) -> Batch:
        """The images that the keys are of."""
        if self.partners is None:
            return batch
        draw = self.draw(torch.rand, len(batch.index)).numpy()
        rows = self.partners(batch.index.cpu().numpy(), draw)
        return self.datamodule.batch_of(rows, self.device)

    def _find_clusters(self) -> None:
        """K-means on the embeddings of the training images; all images join the nearest centre."""
        train, valid = (self.datamodule.rows[split] for split in ("train", "valid"))
        rows = np.concatenate([train, valid])
        with eval_mode(self.encoder), torch.compiler.set_stance("force_eager"):
            embedding = self.embed_rows(self.encoder, rows)
        clusters, seed = self.clustering.clusters, self.current_epoch
        centres = first_rank(spherical_kmeans(embedding[: len(train)], clusters, seed))
        self.centroids.restart(centres)
        shares = torch.zeros(len(self.tables["shares"]), len(centres), device=self.device)
        shares[rows] = nearest_centre(embedding, centres)
        self.tables["shares"] = shares

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

    def _build_buffers(self, size: int, categories: int) -> None:
        """An empty queue of this size, and centroids not yet known."""
        dim = self.encoder.dim
        self.queue = Queue(size, dim, categories).to(self.device)
        self.centroids = Centroids(categories, dim, self.clustering.momentum).to(self.device)
