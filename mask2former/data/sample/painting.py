"""Brushes of the sample pictures: tileable noise, light, and sprites drawn in metres.

Colours are float32 sRGB in [0, 1], channels RGB. Canvases are (height, width[, 3]) arrays, x to the right and
y down, at ``SUPERSAMPLING`` times the resolution of the finished picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

SUPERSAMPLING = 3

Colour = Sequence[float]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Light:
    """The light of one scene.

    Attributes:
        direction: unit vector in the picture (x right, y down) towards the sun.
        tint: colour of the sunlight, multiplies every object.
        strength: contrast between lit and shaded sides, 0 (overcast) to about 1.
        haze: colour that distant things fade into.
        shadow: (shear, length) of a cast shadow, in units of the object's height.
    """

    direction: tuple[float, float]
    tint: np.ndarray
    strength: float
    haze: np.ndarray
    shadow: tuple[float, float]


def smoothstep(low: float, high: float, values: np.ndarray) -> np.ndarray:
    """0 below ``low``, 1 above ``high``, a smooth cubic in between."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(base: np.ndarray, over: np.ndarray | Colour, alpha: np.ndarray | float) -> np.ndarray:
    """Linear blend; an (h, w) ``alpha`` is broadcast over the channels of (h, w, 3) images."""
    if isinstance(alpha, np.ndarray) and alpha.ndim == 2:
        alpha = alpha[..., None]
    return base + (np.asarray(over, np.float32) - base) * alpha


def noise_tile(
    rng: np.random.Generator, size: int = 256, cells: Sequence[int] = (4, 8, 16, 32, 64)
) -> np.ndarray:
    """Fractal noise (size, size), zero mean, unit deviation, periodic in both axes.

    Args:
        cells: grid cells across the tile for each octave (divisors of ``size``); amplitudes fall as 1/cells**0.8.
    """
    tile = np.zeros((size, size), np.float32)
    for count in cells:
        step, margin = size // count, 2
        grid = np.pad(rng.standard_normal((count, count), np.float32), margin, mode="wrap")
        side = grid.shape[0] * step
        octave = cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        cut = margin * step
        tile += octave[cut : cut + size, cut : cut + size] * (cells[0] / count) ** 0.8
    return (tile - tile.mean()) / tile.std()


def sample_tile(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The periodic ``tile`` at float positions ``x``, ``y`` (h, w), in tile pixels."""
    size = tile.shape[0]
    return cv2.remap(
        tile,
        np.mod(x, size).astype(np.float32),
        np.mod(y, size).astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )


def rounded(points: Points, rounds: int = 2) -> list[tuple[float, float]]:
    """Chaikin's corner cutting of a closed polygon: each round halves the sharpness of its corners."""
    corners = np.asarray(points, np.float64)
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        cut = np.stack([0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following], axis=1)
        corners = cut.reshape(-1, 2)
    return [(x, y) for x, y in corners.tolist()]


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 24) -> Points:
    """Polygon of an axis-aligned ellipse."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return [(x + rx * c, y + ry * s) for c, s in zip(np.cos(angles), np.sin(angles))]


def limb(start: tuple[float, float], end: tuple[float, float], w0: float, w1: float) -> Points:
    """Polygon of a tapered capsule from ``start`` (width ``w0``) to ``end`` (width ``w1``)."""
    angle = np.arctan2(end[1] - start[1], end[0] - start[0])
    turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 7)
    back = [
        (start[0] + w0 / 2 * np.cos(angle + t), start[1] + w0 / 2 * np.sin(angle + t)) for t in turn
    ]
    front = [
        (end[0] + w1 / 2 * np.cos(angle + np.pi + t), end[1] + w1 / 2 * np.sin(angle + np.pi + t))
        for t in turn
    ]
    return [*back, *front]


@dataclass
class Sprite:
    """One object on its own canvas, in metres around its foot: x to the right, y up.

    Attributes:
        scale: canvas pixels per metre.
        left, right, top, bottom: extent of the canvas in metres (``bottom`` is <= 0).
        rgb: (h, w, 3) float32; mask: (h, w) uint8, 0 or 1.
    """

    scale: float
    left: float
    right: float
    top: float
    light: Light
    bottom: float = 0.0
    rgb: np.ndarray = field(init=False)
    mask: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        height = max(int(np.ceil((self.top - self.bottom) * self.scale)) + 2, 3)
        width = max(int(np.ceil((self.right - self.left) * self.scale)) + 2, 3)
        self.rgb = np.zeros((height, width, 3), np.float32)
        self.mask = np.zeros((height, width), np.uint8)

    def fill(self, points: Points, colour: Colour, bulge: float = 0.5) -> None:
        """Paint a polygon; ``bulge`` > 0 shades its rim as if the surface were round."""
        xy = np.asarray(points, np.float64)
        xy = np.stack([xy[:, 0] - self.left, self.top - xy[:, 1]], axis=1) * self.scale
        height, width = self.mask.shape
        x0, y0 = np.clip(np.floor(xy.min(0)).astype(int) - 2, 0, (width - 1, height - 1))
        x1, y1 = np.clip(np.ceil(xy.max(0)).astype(int) + 3, (x0 + 1, y0 + 1), (width, height))
        part = np.zeros((y1 - y0, x1 - x0), np.uint8)
        # 4 fractional bits: corners keep their place between pixels.
        cv2.fillPoly(part, [np.round((xy - (x0, y0)) * 16).astype(np.int32)], 1, shift=4)
        inside = part.astype(bool)
        shade = np.ones(part.shape, np.float32)
        if bulge:
            shade += bulge * self.relief(part)
        window = (slice(y0, y1), slice(x0, x1))
        painted = np.asarray(colour, np.float32) * self.light.tint * shade[..., None]
        self.rgb[window][inside] = painted[inside]
        self.mask[window] |= part

    def relief(self, part: np.ndarray) -> np.ndarray:
        """Light on a part (h, w) that bulges towards the viewer: about -1 (shaded) to 1 (lit)."""
        radius = max(0.18 * min(part.shape), 1.0)
        soft = cv2.GaussianBlur(part.astype(np.float32), (0, 0), radius)
        slope_x = cv2.Sobel(soft, cv2.CV_32F, 1, 0, scale=radius / 4)
        slope_y = cv2.Sobel(soft, cv2.CV_32F, 0, 1, scale=radius / 4)
        lx, ly = self.light.direction
        return np.clip(-(slope_x * lx + slope_y * ly) * self.light.strength, -1, 1)

    def warp(self, rng: np.random.Generator, amount: float, grain: float) -> None:
        """Move every pixel by smooth noise of ``amount`` metres and ``grain`` metres: ragged outlines."""
        height, width = self.mask.shape
        cells = (max(int(height / (grain * self.scale)), 2), max(int(width / (grain * self.scale)), 2))
        move = rng.standard_normal((2, *cells), np.float32) * amount * self.scale
        shift_y, shift_x = (
            cv2.resize(axis, (width, height), interpolation=cv2.INTER_CUBIC) for axis in move
        )
        rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
        source = (columns + shift_x, rows + shift_y)
        self.rgb = cv2.remap(self.rgb, *source, cv2.INTER_NEAREST)
        self.mask = cv2.remap(self.mask, *source, cv2.INTER_NEAREST)

    def place(self, x: float, y: float) -> tuple[int, int]:
        """Canvas (column, row) of this sprite's upper left pixel when its foot stands at (x, y)."""
        return round(x + self.left * self.scale), round(y - self.top * self.scale)
