"""Clustering loss: spherical K-means whose assignments are the categories of the metadata.

K-means with known assignments (Yang et al. 2017, DCN, arXiv 1610.04794) on the unit sphere, in the
prototype form of ProtoNCE (Li et al. 2021, PCL, arXiv 2005.04966) or as the bare pull.
"""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cxr_lightning.networks.gather import is_distributed

Form = Literal["prototype", "pull"]

EXCLUDED = -1e4
"""Logit of a centroid that is left out; finite, so that its gradient is 0 and not NaN."""


def clustering_loss(
    embedding: Float[Tensor, "b d"],
    weights: Float[Tensor, "b k"],
    centroids: Float[Tensor, "k d"],
    *,
    known: Bool[Tensor, " k"] | None = None,
    totals: Float[Tensor, " k"] | None = None,
    form: Form = "prototype",
    temperature: float = 0.2,
) -> Float[Tensor, ""]:
    """Mean over the categories present of the mean loss of their images, in float32.

    - `prototype`: -log(exp(z c / T) / (exp(z c / T) + sum of exp(z c_j / T))), where j runs over
      the categories that the image is not in, so that its own categories do not repel each other.
    - `pull`: 1 - z c.

    Images without a category contribute exactly 0. Per unit of weight the gradient of `prototype`
    is up to 1 / T times that of `pull`.

    Args:
        embedding: Unit-norm embeddings z.
        weights: Share of each image in each category; rows sum to 1 or 0.
        centroids: Unit-norm centroids c; they take no gradient.
        known: Which centroids exist; the others are left out. All by default.
        totals: Weight that each category's mean is divided by; by default that of this batch. For
            several ranks the global batch's divided by their number: then the mean of the ranks'
            losses is the loss of the global batch.
        form: The loss of one image and one centroid.
        temperature: T of the prototype form.
    """
    known = torch.ones_like(weights[0], dtype=torch.bool) if known is None else known
    totals = weights.sum(dim=0) if totals is None else totals
    with torch.autocast(embedding.device.type, enabled=False):
        cosine = embedding.float() @ centroids.detach().float().clone().T
        if form == "pull":
            loss = 1.0 - cosine
        else:
            loss = _prototype_loss(cosine / temperature, weights > 0, known)
        present = (totals > 0) & known
        balance = torch.where(present, 1.0 / totals.clamp(min=1e-12), 0.0)
        return (weights * loss * balance).sum() / present.sum().clamp(min=1)


def rarer_category(
    weights: Float[Tensor, "b k"], seen: Float[Tensor, " k"]
) -> Float[Tensor, "b k"]:
    """Keeps the weights of the rarest category alone (Supervised Minority).

    On two unequal categories a class loss on both collapses the larger one to a point (Mildenberger
    et al. 2025, A Tale of Two Classes, arXiv 2503.17024); its images then keep InfoNCE alone.

    Args:
        weights: Share of each image in each category.
        seen: How much of each category was seen so far.
    """
    return weights * F.one_hot(seen.argmin(), len(seen)).to(weights)


@torch.no_grad()
def spherical_kmeans(
    embedding: Float[Tensor, "n d"], clusters: int, seed: int
) -> Float[Tensor, "k d"]:
    """Centres of clusters of embeddings that have no categories, as PCL and DeepCluster find them.

    K-means on unit vectors (scikit-learn's MiniBatchKMeans), with its centres moved onto the
    sphere: there the nearest centre is the one of the largest cosine (Dhillon and Modha 2001).

    Args:
        embedding: Unit-norm embeddings.
        clusters: k; at most n.
        seed: The same seed gives the same clusters of the same embeddings.

    Returns:
        Unit-norm centres; see `nearest_centre`.
    """
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(clusters, random_state=seed, n_init=3, batch_size=4096)
    kmeans.fit(embedding.float().cpu().numpy())
    return F.normalize(torch.from_numpy(kmeans.cluster_centers_).to(embedding), dim=1)


def nearest_centre(
    embedding: Float[Tensor, "n d"], centres: Float[Tensor, "k d"]
) -> Float[Tensor, "n k"]:
    """One-hot rows: the centre of the largest cosine."""
    return F.one_hot((embedding @ centres.T).argmax(dim=1), len(centres)).float()


class Centroids(nn.Module):
    """One centroid a category: moving average of its images' keys, kept on the unit sphere.

    A category's first mean starts its centroid. Sums and counts are reduced over all ranks, so that
    all ranks hold the same centroids. All of it is in the state dict.

    Args:
        categories: Number of categories.
        dim: Dimension of a key.
        momentum: Share of the old centroid in an update.

    Attributes:
        vectors: Float32 (categories, dim), unit norm, or 0 as long as not known.
        known: Bool (categories,), whether any image of the category was seen.
        seen: Float32 (categories,), weight of the images seen since the last restart.
    """

    vectors: Tensor
    known: Tensor
    seen: Tensor

    def __init__(self, categories: int, dim: int, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("vectors", torch.zeros(categories, dim))
        self.register_buffer("known", torch.zeros(categories, dtype=torch.bool))
        self.register_buffer("seen", torch.zeros(categories))

    @torch.no_grad()
    def restart(self, vectors: Float[Tensor, "k d"]) -> None:
        """Puts all centroids where new clusters have their centres; nothing was seen of these."""
        self.vectors.copy_(vectors)
        self.known.fill_(True)
        self.seen.zero_()

    @torch.no_grad()
    def update(
        self, keys: Float[Tensor, "b d"], weights: Float[Tensor, "b k"]
    ) -> Float[Tensor, " k"]:
        """Moves the centroids towards the means of the keys of all ranks.

        Args:
            keys: Unit-norm keys of this rank.
            weights: Share of each image in each category.

        Returns:
            Weight of each category in the global batch.
        """
        totals = weights.float().sum(dim=0)
        sums = weights.float().T @ keys.detach().float()
        if is_distributed():
            torch.distributed.all_reduce(totals)
            torch.distributed.all_reduce(sums)
        means = sums / totals.clamp(min=1e-12)[:, None]
        moved = self.momentum * self.vectors + (1.0 - self.momentum) * means
        moved = torch.where(self.known[:, None], moved, means)
        usable = (totals > 0) & (moved.norm(dim=1) > 1e-6)
        self.vectors.copy_(torch.where(usable[:, None], F.normalize(moved, dim=1), self.vectors))
        self.known.logical_or_(usable)
        self.seen.add_(totals)
        return totals


def _prototype_loss(
    logits: Float[Tensor, "b k"], positive: Bool[Tensor, "b k"], known: Bool[Tensor, " k"]
) -> Float[Tensor, "b k"]:
    """-log softmax of each category against the known ones that the image is not in."""
    others = logits.masked_fill(positive | ~known, EXCLUDED).logsumexp(dim=1, keepdim=True)
    return F.softplus(others - logits)
