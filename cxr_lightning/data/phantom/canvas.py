"""Resolution-independent drawing: sampling grid, soft edges, strokes, smooth noise, blur.

Lengths are in *field units*: the image plane spans [-1, 1] in both directions, x to the right
(the patient's left side), y down. Maps are float32 arrays of shape (size, size).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Map = NDArray[np.floating[Any]]
Points = NDArray[np.float64]


def unit(values: Map) -> Map:
    """Clip to [0, 1]."""
    return np.asarray(np.clip(values, 0, 1))


@dataclass(frozen=True)
class Pose:
    """Similarity from the body frame to the image plane: magnify, rotate, shift."""

    rotation: float = 0.0
    """Clockwise on the screen, radians."""
    shift: tuple[float, float] = (0.0, 0.0)
    """(x, y), field units."""
    magnification: float = 1.0

    def to_image(self, points: Points) -> Points:
        """Map body points (n, 2) to the image plane (n, 2)."""
        cos, sin = math.cos(self.rotation), math.sin(self.rotation)
        turned = np.asarray(points @ np.array([[cos, sin], [-sin, cos]]))
        return np.asarray(self.magnification * turned + np.array(self.shift))


class Canvas:
    """Pixel centres of a square image and their body coordinates.

    Attributes:
        axis: Pixel centres along one side, shape (size,), field units.
        x: Body x of each pixel, shape (size, size).
        y: Body y of each pixel, shape (size, size).
        pixel: Side of a pixel in body units.
    """

    def __init__(self, size: int, pose: Pose) -> None:
        """Sample the body frame of `pose` on `size` x `size` pixels."""
        self.size = size
        self.pose = pose
        self.axis: Map = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(
            np.float32
        )
        self.pixel = 2 / size / pose.magnification
        cos = np.float32(math.cos(pose.rotation) / pose.magnification)
        sin = np.float32(math.sin(pose.rotation) / pose.magnification)
        across = self.axis[None, :] - np.float32(pose.shift[0])
        down = self.axis[:, None] - np.float32(pose.shift[1])
        self.x: Map = cos * across + sin * down
        self.y: Map = cos * down - sin * across

    def step(self, distance: Map, width: float = 0.0) -> Map:
        """Anti-aliased step: 0 for distance << 0, 1/2 at 0, 1 for distance >> 0.

        Args:
            distance: Signed distance to an edge, field units.
            width: Width of the transition; never under 1.5 pixels.
        """
        t = unit(distance * np.float32(1 / max(width, 1.5 * self.pixel)) + 0.5)
        return t * t * (3 - 2 * t)

    def spot(self, x: float, y: float, rx: float, ry: float | None = None) -> Map:
        """Gaussian spot of height 1 with standard deviations (rx, ry) at body point (x, y)."""
        ry = rx if ry is None else ry
        squared = ((self.x - x) * (1 / rx)) ** 2 + ((self.y - y) * (1 / ry)) ** 2
        return np.exp(np.float32(-0.5) * squared)

    def segments(self, starts: Points, ends: Points, radii: Points) -> Map:
        """Draw solid round rods; where rods meet, the thicker one counts.

        A rod thinner than a pixel is widened and thinned out in proportion, so its total mass
        does not depend on `size`.

        Args:
            starts: Body points, shape (n, 2).
            ends: Body points, shape (n, 2).
            radii: Radius of each rod, shape (n,).

        Returns:
            Length of the ray inside the rods, field units.
        """
        layer = np.zeros((self.size, self.size), np.float32)
        a, b = self.pose.to_image(starts), self.pose.to_image(ends)
        radius = np.hypot(radii, 0.8 * self.pixel)
        gain = 2 * radii**2 / radius
        radius = radius * self.pose.magnification
        low = np.minimum(a, b) - radius[:, None]
        high = np.maximum(a, b) + radius[:, None]
        first = np.clip(np.floor((low + 1) * self.size / 2), 0, self.size).astype(int)
        last = np.clip(np.ceil((high + 1) * self.size / 2), 0, self.size).astype(int)
        for i in np.flatnonzero((last > first).all(axis=1)):
            (c0, r0), (c1, r1) = first[i].tolist(), last[i].tolist()
            self._rod(layer[r0:r1, c0:c1], (c0, r0), a[i], b[i] - a[i], radius[i], gain[i])
        return layer

    def _rod(
        self,
        window: Map,
        corner: tuple[int, int],
        start: Points,
        along: Points,
        radius: float,
        gain: float,
    ) -> None:
        rows, columns = window.shape
        dx = self.axis[None, corner[0] : corner[0] + columns] - np.float32(start[0])
        dy = self.axis[corner[1] : corner[1] + rows, None] - np.float32(start[1])
        ux, uy = along.tolist()
        length2 = max(ux * ux + uy * uy, 1e-12)
        t = unit(dx * (ux / length2) + dy * (uy / length2))
        squared = (dx - t * ux) ** 2 + (dy - t * uy) ** 2
        np.maximum(window, gain * (1 - squared * (1 / radius**2)), out=window)

    def polyline(self, points: Points, radius: float | Points) -> Map:
        """Draw a rod along `points` (n, 2) with one radius or one per segment (n - 1,)."""
        radii = np.broadcast_to(np.asarray(radius, np.float64), len(points) - 1)
        return self.segments(points[:-1], points[1:], radii)

    def noise(self, cells: int, rng: np.random.Generator) -> Map:
        """Smooth random field, about unit variance, features of about 2 / `cells` field units."""
        coarse = rng.standard_normal((cells + 4, cells + 4)).astype(np.float32)
        fine = Image.fromarray(coarse).resize(
            (self.size, self.size), Image.Resampling.BICUBIC, box=(2, 2, cells + 2, cells + 2)
        )
        return np.asarray(fine) * np.float32(1.4)

    def low_pass(self, image: Map, cells: int) -> Map:
        """Keep of `image` what `cells` x `cells` means can tell: a blur that is cheap if wide."""
        means = Image.fromarray(image).resize((cells, cells), Image.Resampling.BOX)
        return np.asarray(means.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def blur(self, image: Map, sigma: float) -> Map:
        """Gaussian blur with standard deviation `sigma` in field units; edges repeat."""
        pixels = sigma * self.size / 2
        reach = math.ceil(2.5 * pixels)
        offsets = np.arange(-reach, reach + 1)
        taps = np.exp(-0.5 * (offsets / pixels) ** 2)
        taps = (taps / taps.sum()).astype(np.float32)
        for _ in range(2):
            padded = np.pad(image, ((reach, reach), (0, 0)), mode="edge")
            image = sum(t * padded[k : k + self.size] for k, t in enumerate(taps)).T
        return image


def curve(points: list[tuple[float, float]], pieces: int = 5) -> Points:
    """Smooth curve through `points` (Catmull-Rom spline, 1974).

    Args:
        points: Body points, at least 2.
        pieces: Straight pieces between neighbouring points.

    Returns:
        Points on the curve, shape ((len(points) - 1) * pieces + 1, 2).
    """
    knots = np.asarray([points[0], *points, points[-1]], np.float64)
    t = np.linspace(0, 1, pieces, endpoint=False)[:, None]
    before, start, end, after = knots[:-3], knots[1:-2], knots[2:-1], knots[3:]
    arcs = [
        b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
        for a, b, c, d in zip(before, start, end, after, strict=True)
    ]
    return np.concatenate([*arcs, knots[-1:]])
