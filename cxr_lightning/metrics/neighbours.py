"""Nearest neighbours by Euclidean distance: exact, in bounded memory, right also for near copies.

|a|^2 + |b|^2 - 2 a.b by matrix products is fast, but its fp32 rounding hides the distance of near
copies. So it only finds candidates; distances are recomputed from differences in float64, and where
a neighbour could be missing among the candidates, they are searched again more carefully: first
among few coordinates (see `projection`), where there are many points, then among all features in
fp32, at last in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int
from torch import Tensor

from cxr_lightning.metrics.projection import principal_projection
from cxr_lightning.progress import progress_bar

QUERY_BLOCK = 2048
POINT_BLOCK = 16384
PAIR_BLOCK = 4096
SPARE = 11
"""Candidates a query beyond the k that are asked for."""

DIMENSIONS = 128
"""Principal components of the first search."""

MANY_POINTS = 8192
"""Points from which on finding principal components pays."""


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
    index = _Index(points, k, point_groups)
    result = Neighbours(
        torch.full((len(queries), k), torch.inf, dtype=torch.float64, device=queries.device),
        torch.full((len(queries), k), -1, device=queries.device),
    )
    if len(points) == 0:
        return result
    starts = range(0, len(queries), QUERY_BLOCK)
    for start in progress_bar(starts, progress, disable=progress is None):
        rows = slice(start, start + QUERY_BLOCK)
        groups = None if query_groups is None else query_groups[rows]
        result.distance[rows], result.index[rows] = index.search(queries[rows], groups)
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
    found = [one.new_empty(0, dtype=torch.float64)]
    for r, c in zip(rows.split(PAIR_BLOCK), columns.split(PAIR_BLOCK), strict=True):
        found.append((one[r].double() - other[c].double()).norm(dim=1))
    return torch.cat(found)


@dataclass(frozen=True)
class _Coordinates:
    """Coordinates in which candidates are searched.

    Attributes:
        of: Coordinates of points.
        block: Coordinates of some of the points that are searched.
        candidates: How many candidates a query has.
    """

    of: Callable[[Float32[Tensor, "n f"]], Float[Tensor, "n c"]]
    block: Callable[[slice], Float[Tensor, "b c"]]
    candidates: int


class _Index:
    """Points made ready to be searched.

    Args:
        points: Where neighbours are looked for.
        k: Neighbours of each query.
        groups: Group of each point.
    """

    def __init__(
        self, points: Float32[Tensor, "m f"], k: int, groups: Int[Tensor, " m"] | None
    ) -> None:
        self.points = points
        self.k = k
        self.groups = groups
        centre = mean(points)
        if not bool(centre.isfinite().all()):
            raise ValueError("`points` must be finite.")
        self.stages: list[_Coordinates] = []
        if len(points) >= MANY_POINTS and points.shape[1] > 2 * DIMENSIONS:
            projection = principal_projection(points, centre, DIMENSIONS)
            self.stages.append(
                _Coordinates(projection.of, projection.of(points).__getitem__, 3 * k + 32)
            )
        for dtype in (torch.float32, torch.float64):
            of = partial(centred, centre=centre, dtype=dtype)
            self.stages.append(_Coordinates(of, partial(_centred_rows, points, of), k + SPARE))

    def search(
        self, queries: Float32[Tensor, "b f"], groups: Int[Tensor, " b"] | None
    ) -> Neighbours:
        """Neighbours of so many queries as fit in memory with a block of points."""
        found = Neighbours(
            queries.new_empty(len(queries), self.k, dtype=torch.float64),
            torch.empty(len(queries), self.k, dtype=torch.int64, device=queries.device),
        )
        unsure = torch.arange(len(queries), device=queries.device)
        for stage in self.stages:
            own = None if groups is None else groups[unsure]
            near, sure = self._ranked(stage, queries[unsure], own)
            found.distance[unsure], found.index[unsure] = near
            unsure = unsure[~sure]
            if not len(unsure):
                break
        return found

    def _ranked(
        self,
        stage: _Coordinates,
        queries: Float32[Tensor, "b f"],
        groups: Int[Tensor, " b"] | None,
    ) -> tuple[Neighbours, Bool[Tensor, " b"]]:
        """The nearest candidates, and whether no other point can be nearer."""
        short = stage.of(queries)
        if not bool(short.isfinite().all()):
            raise ValueError("`queries` must be finite.")
        squared, index = self._candidates(stage, short, groups)
        there = squared.isfinite()
        first = there & (torch.arange(squared.shape[1], device=squared.device) < self.k + SPARE)
        distance = self._distances(queries, index, first)
        limit = distance.topk(self.k, largest=False).values[:, -1]
        near = squared.double() - rounding_error(short, limit)[:, None] < limit.square()[:, None]
        distance = torch.minimum(distance, self._distances(queries, index, near & there & ~first))
        distance, order = distance.topk(self.k, largest=False)
        index = index.gather(1, order).masked_fill_(distance.isposinf(), -1)
        farthest = distance[:, -1]
        # A point that is no candidate is at least this far, in truth.
        beyond = squared[:, -1].double() - rounding_error(short, farthest)
        return Neighbours(distance, index), ~(beyond < farthest.square())

    def _distances(
        self,
        queries: Float32[Tensor, "b f"],
        index: Int[Tensor, "b n"],
        wanted: Bool[Tensor, "b n"],
    ) -> Float64[Tensor, "b n"]:
        """Distance of each query to some of its candidates; inf for the others."""
        distance = queries.new_full(index.shape, torch.inf, dtype=torch.float64)
        rows, columns = wanted.nonzero(as_tuple=True)
        distance[wanted] = row_distances(queries, self.points, rows, index[rows, columns])
        return distance

    def _candidates(
        self, stage: _Coordinates, short: Float[Tensor, "b c"], groups: Int[Tensor, " b"] | None
    ) -> tuple[Float[Tensor, "b n"], Int[Tensor, "b n"]]:
        """Squared distances, by matrix products in the dtype of `short`, and rows of near points.

        Ascending; inf and some row where there are too few points.
        """
        count = stage.candidates
        best = short.new_full((len(short), count), torch.inf)
        index = torch.zeros_like(best, dtype=torch.int64)
        for start in range(0, len(self.points), POINT_BLOCK):
            rows = slice(start, start + POINT_BLOCK)
            squared = squared_distances(short, stage.block(rows))
            if groups is not None and self.groups is not None:
                squared.masked_fill_(groups[:, None] == self.groups[rows], torch.inf)
            near, columns = squared.topk(min(count, squared.shape[1]), largest=False)
            best, order = torch.cat([best, near], 1).topk(count, largest=False)
            index = torch.cat([index, columns + start], 1).gather(1, order)
        return best, index


def _centred_rows(
    points: Float32[Tensor, "m f"],
    of: Callable[[Float32[Tensor, "b f"]], Float[Tensor, "b f"]],
    rows: slice,
) -> Float[Tensor, "b f"]:
    return of(points[rows])
