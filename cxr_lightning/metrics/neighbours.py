"""Nearest neighbours by Euclidean distance: exact, in bounded memory, right also for near copies.

|a|^2 + |b|^2 - 2 a.b by matrix products is fast, but its fp32 rounding hides the distance of near
copies. So it only finds candidates; distances are recomputed from differences in float64, and where
rounding could have cost a neighbour, candidates are searched again in float64.

Another index would take the place of `_candidates`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from tqdm import tqdm

QUERY_BLOCK = 2048
POINT_BLOCK = 8192
PAIR_BLOCK = 4096
SPARE = 11
"""Candidates a query beyond the k that are asked for."""


class Neighbours(NamedTuple):
    """The k nearest points of each query, nearest first.

    Attributes:
        distance: Euclidean; inf where there are fewer than k points.
        index: Row of the point; -1 where there are fewer than k points.
    """

    distance: Float64[Tensor, "n k"]
    index: Int[Tensor, "n k"]  # type: ignore[assignment]  # hides tuple.index, unused here


@torch.no_grad()
def nearest(
    queries: Float32[Tensor, "n f"],
    points: Float32[Tensor, "m f"],
    k: int,
    *,
    query_groups: Int[Tensor, " n"] | None = None,
    point_groups: Int[Tensor, " m"] | None = None,
    progress: str | None = None,
) -> Neighbours:
    """Exact Euclidean nearest neighbours; of equally near points any may be among them.

    Args:
        queries: What neighbours are looked for.
        points: Where they are looked for, on the same device.
        k: Neighbours of each query.
        query_groups: Group of each query, such as its patient; pairs of one group are left out.
            `torch.arange(n)` on both sides means "not itself".
        point_groups: Group of each point; with `query_groups` or not at all.
        progress: Title of a progress bar; none by default.

    Raises:
        ValueError: If k is below 1, only one side has groups or a feature is not finite.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1, not {k}.")
    if (query_groups is None) != (point_groups is None):
        raise ValueError("`query_groups` and `point_groups` go together.")
    centre = mean(points)
    if not bool(centre.isfinite().all()):
        raise ValueError("`points` must be finite.")
    result = Neighbours(
        torch.full((len(queries), k), torch.inf, dtype=torch.float64, device=queries.device),
        torch.full((len(queries), k), -1, device=queries.device),
    )
    if len(points) == 0:
        return result
    starts = range(0, len(queries), QUERY_BLOCK)
    for start in tqdm(starts, progress, disable=None if progress else True):
        rows = slice(start, start + QUERY_BLOCK)
        groups = None if query_groups is None else query_groups[rows]
        result.distance[rows], result.index[rows] = _nearest_of_block(
            queries[rows], points, k, centre, groups, point_groups
        )
    return result


def mean(points: Float32[Tensor, "m f"]) -> Float64[Tensor, " f"]:
    """Mean of the points, summed in float64 block by block; 0 of no points."""
    total = points.new_zeros(points.shape[1], dtype=torch.float64)
    for block in points.split(POINT_BLOCK):
        total += block.sum(0, dtype=torch.float64)
    return total / max(len(points), 1)


def centred(
    points: Float32[Tensor, "b f"],
    centre: Float64[Tensor, " f"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "b f"]:
    """Points less a common centre, which makes them short and their rounding errors small."""
    return points.to(dtype) - centre.to(dtype)


def squared_distances(
    one: Float[Tensor, "n f"], other: Float[Tensor, "m f"]
) -> Float[Tensor, "n m"]:
    """Squared distances of all pairs by a matrix product; see `rounding_error`."""
    squares = one.square().sum(1)[:, None] + other.square().sum(1)
    return squares.addmm_(one, other.T, alpha=-2.0)


def rounding_error(
    balls: Float[Tensor, "n f"], radius: Float64[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Bound of the error of `squared_distances` from each ball's centre to points in the ball.

    A sum of f products is off by at most f u times the sum of their magnitudes (Higham 2002,
    Accuracy and Stability of Numerical Algorithms, eq. 3.5), u = eps / 2; that sum is at most
    (|a| + |b|)^2 with |b| <= |a| + radius. The rest of f + 4 and of eps stands for the last
    additions and for the rounding of the centred points.
    """
    reach = 2.0 * balls.double().norm(dim=1) + radius
    return (balls.shape[1] + 4) * torch.finfo(balls.dtype).eps * reach.square()


def row_distances(
    one: Float32[Tensor, "n f"],
    other: Float32[Tensor, "m f"],
    rows: Int[Tensor, " p"],
    columns: Int[Tensor, " p"],
) -> Float64[Tensor, " p"]:
    """Distance of row `rows[i]` of one to row `columns[i]` of the other, by their difference."""
    blocks = zip(rows.split(PAIR_BLOCK), columns.split(PAIR_BLOCK), strict=True)
    return torch.cat([(one[r].double() - other[c].double()).norm(dim=1) for r, c in blocks])


def _nearest_of_block(
    queries: Float32[Tensor, "b f"],
    points: Float32[Tensor, "m f"],
    k: int,
    centre: Float64[Tensor, " f"],
    query_groups: Int[Tensor, " b"] | None,
    point_groups: Int[Tensor, " m"] | None,
) -> Neighbours:
    """Neighbours of so many queries as fit in memory with a block of points."""
    short = centred(queries, centre)
    if not bool(short.isfinite().all()):
        raise ValueError("`queries` must be finite.")
    found, beyond = _ranked(short, queries, points, k, centre, query_groups, point_groups)
    farthest = found.distance[:, -1]
    # A point that is no candidate is at least this far, in truth.
    unsure = beyond - rounding_error(short, farthest) < farthest.square()
    if unsure.any():
        groups = None if query_groups is None else query_groups[unsure]
        exact = centred(queries[unsure], centre, torch.float64)
        again, _ = _ranked(exact, queries[unsure], points, k, centre, groups, point_groups)
        found.distance[unsure], found.index[unsure] = again
    return found


def _ranked(
    short: Float[Tensor, "b f"],
    queries: Float32[Tensor, "b f"],
    points: Float32[Tensor, "m f"],
    k: int,
    centre: Float64[Tensor, " f"],
    query_groups: Int[Tensor, " b"] | None,
    point_groups: Int[Tensor, " m"] | None,
) -> tuple[Neighbours, Float64[Tensor, " b"]]:
    """The nearest candidates, and the squared distance that no other point falls below."""
    squared, index = _candidates(short, points, k + SPARE, centre, query_groups, point_groups)
    rows = torch.arange(len(queries), device=queries.device).repeat_interleave(k + SPARE)
    distance = row_distances(queries, points, rows, index.flatten()).view_as(index)
    distance.masked_fill_(squared.isposinf(), torch.inf)
    distance, order = distance.topk(k, largest=False)
    index = index.gather(1, order).masked_fill_(distance.isposinf(), -1)
    return Neighbours(distance, index), squared[:, -1].double()


def _candidates(
    short: Float[Tensor, "b f"],
    points: Float32[Tensor, "m f"],
    count: int,
    centre: Float64[Tensor, " f"],
    query_groups: Int[Tensor, " b"] | None,
    point_groups: Int[Tensor, " m"] | None,
) -> tuple[Float[Tensor, "b c"], Int[Tensor, "b c"]]:
    """Squared distances, by matrix products in the dtype of `short`, and rows of near points.

    Ascending; inf and some row where there are too few points.
    """
    best = short.new_full((len(short), count), torch.inf)
    index = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(points), POINT_BLOCK):
        rows = slice(start, start + POINT_BLOCK)
        squared = squared_distances(short, centred(points[rows], centre, short.dtype))
        if query_groups is not None and point_groups is not None:
            squared.masked_fill_(query_groups[:, None] == point_groups[rows], torch.inf)
        near, columns = squared.topk(min(count, squared.shape[1]), largest=False)
        best, order = torch.cat([best, near], 1).topk(count, largest=False)
        index = torch.cat([index, columns + start], 1).gather(1, order)
    return best, index
