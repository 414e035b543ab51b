"""How well embeddings spread: what falls when representation learning collapses."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def effective_rank(embedding: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The exponential of the entropy of the singular values' shares (Roy and Vetterli 2007).

    From 1 (all embeddings on one line) to min(n, d).
    """
    values = torch.linalg.svdvals(embedding.double())
    share = values / values.sum()
    rank: Tensor = torch.special.entr(share).sum().exp()
    return rank.float()


def alignment(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared distance between two views of an image (Wang and Isola 2020, 2005.10242)."""
    return (first - second).square().sum(dim=1).mean()


def uniformity(embedding: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Logarithm of E exp(-2 squared distance) over pairs (Wang and Isola 2020, 2005.10242).

    0 when all embeddings are equal, about -4 when unit-norm embeddings are uniform.
    """
    return torch.pdist(embedding).square().mul(-2.0).exp().mean().log()


def pair_distance(
    embedding: Float[Tensor, "n d"], pairs: Bool[Tensor, "n n"] | None = None
) -> Float[Tensor, ""]:
    """Mean 1 - cosine over pairs of different images; NaN without a pair.

    Args:
        embedding: Unit norm.
        pairs: Which pairs count; all by default.
    """
    different = ~torch.eye(len(embedding), dtype=torch.bool, device=embedding.device)
    chosen = different if pairs is None else different & pairs
    return (1.0 - embedding @ embedding.T)[chosen].mean()


def same_category(weights: Float[Tensor, "n k"]) -> Bool[Tensor, "n n"]:
    """Which pairs of images share a category."""
    shown = (weights > 0).float()
    return shown @ shown.T > 0


def retrieval(first: Float[Tensor, "n d"], second: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Share of images whose second view is, of all second views, the nearest to the first."""
    nearest = (first @ second.T).argmax(dim=1)
    return (nearest == torch.arange(len(first), device=first.device)).float().mean()


def spread(
    first: Float[Tensor, "n d"], second: Float[Tensor, "n d"], weights: Float[Tensor, "n k"]
) -> dict[str, Tensor]:
    """All monitors of one set of images; NaN where they do not apply.

    Args:
        first: Unit-norm embeddings of one view of each image.
        second: Those of another view.
        weights: Shares of the images in the categories.
    """
    return {
        "effective_rank": effective_rank(first),
        "alignment": alignment(first, second),
        "uniformity": uniformity(first),
        "view_distance": 0.5 * alignment(first, second),
        "same_category_distance": pair_distance(first, same_category(weights)),
        "random_distance": pair_distance(first),
        "retrieval": retrieval(first, second),
    }


def describe_collapse(
    monitors: dict[str, Tensor], images: int, dim: int, categories: int
) -> str | None:
    """One sentence on how embeddings are collapsed; None if they are not.

    The effective rank should reach twice the number of categories (or half of what the numbers of
    images and dimensions allow), and images of one category should be three times as far apart as
    two views of one image.

    Args:
        monitors: From `spread`.
        images: Number of images they are from.
        dim: Dimension of the embeddings.
        categories: Number of categories.
    """
    rank, needed = float(monitors["effective_rank"]), min(2 * categories, min(images, dim) / 2)
    if rank < needed:
        return f"the embeddings have an effective rank of {rank:.1f}, below {needed:.1f}"
    within, views = (float(monitors[k]) for k in ("same_category_distance", "view_distance"))
    if within < 3.0 * views:  # False where there is no pair
        return (
            f"images of one category are {within:.4f} apart (1 - cosine), less than 3 times the "
            f"{views:.4f} between two views of one image"
        )
    return None
