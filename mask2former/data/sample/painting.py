"""Brushes of the sample pictures: tileable noise, light, and sprites drawn in metres.

Colours are float32 sRGB in [0, 1], channels RGB. Canvases are (height, width[, 3]) arrays, x to the
right and y down, at ``SUPERSAMPLING`` times the resolution of the finished picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

SUPERSAMPLING = 2

Colour = Sequence[float]
Points = np.ndarray | Sequence[tuple[float, float]]  # (n, 2): x, y


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
    mixed = np.asarray(over, np.float32) - base
    if isinstance(alpha, np.ndarray) and alpha.ndim == 2:
        plane = alpha.astype(np.float32, copy=False)
        mixed = mixed * cv2.merge([plane, plane, plane])  # twice as fast as broadcasting
    else:
        mixed = mixed * np.float32(alpha)
    mixed += base
    return mixed


def noise_tile(
    rng: np.random.Generator, size: int = 256, cells: Sequence[int] = (4, 8, 16, 32, 64)
) -> np.ndarray:
    """Fractal noise (size, size), zero mean, unit deviation, periodic in both axes.

    Args:
        cells: grid cells across the tile for each octave, each a multiple of the one before, all
            divisors of ``size``; amplitudes fall as cells ** -0.8.
    """
    tile = np.zeros((cells[0], cells[0]), np.float32)
    for count in cells:
        octave = rng.standard_normal((count, count), np.float32)
        tile = _enlarge_periodic(tile, count) + octave * (cells[0] / count) ** 0.8
    tile = _enlarge_periodic(tile, size)
    return (tile - tile.mean()) / tile.std()


def _enlarge_periodic(tile: np.ndarray, size: int) -> np.ndarray:
    step, margin = size // len(tile), 2
    wide = np.pad(tile, margin, mode="wrap")
    wide = cv2.resize(wide, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
    return wide[margin * step : margin * step + size, margin * step : margin * step + size]


def sample_tile(tile: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The periodic ``tile`` at positions ``x``, ``y`` in its pixels, which broadcast to (h, w)."""
    x, y = np.broadcast_arrays(np.float32(x), np.float32(y))
    return cv2.remap(tile, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)


def rounded(points: Points, rounds: int = 2) -> np.ndarray:
    """Chaikin's corner cutting of a closed polygon; each round makes its corners rounder."""
    corners = np.asarray(points, np.float64)
    for _ in range(rounds):
        following = np.concatenate([corners[1:], corners[:1]])
        cut = np.stack(
            [0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following], axis=1
        )
        corners = cut.reshape(-1, 2)
    return corners


def ellipse(x: float, y: float, rx: float, ry: float, corners: int = 24) -> np.ndarray:
    """Polygon of an axis-aligned ellipse."""
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)


def limb(start: tuple[float, float], end: tuple[float, float], w0: float, w1: float) -> np.ndarray:
    """Polygon of a tapered capsule from ``start`` (width ``w0``) to ``end`` (width ``w1``)."""
    turn = np.linspace(np.pi / 2, 3 * np.pi / 2, 7)
    turn = turn + math.atan2(end[1] - start[1], end[0] - start[0])
    round_end = np.stack([np.cos(turn), np.sin(turn)], axis=1) / 2
    return np.concatenate([start + w0 * round_end, end - w1 * round_end])


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
        (left, top), (right, bottom) = xy.min(axis=0).tolist(), xy.max(axis=0).tolist()
        x0, y0 = min(max(int(left) - 2, 0), width - 1), min(max(int(top) - 2, 0), height - 1)
        x1, y1 = max(min(int(right) + 4, width), x0 + 1), max(min(int(bottom) + 4, height), y0 + 1)
        part = np.zeros((y1 - y0, x1 - x0), np.uint8)
        # 4 fractional bits: corners keep their place between pixels.
        cv2.fillPoly(part, [np.round((xy - (x0, y0)) * 16).astype(np.int32)], 1, shift=4)
        inside = part.astype(bool)
        shade = np.ones(part.shape, np.float32)
        if bulge and min(part.shape) > 8:  # too small to see otherwise
            shade += bulge * self.relief(part)
        window = (slice(y0, y1), slice(x0, x1))
        painted = np.asarray(colour, np.float32) * self.light.tint * shade[..., None]
        np.copyto(self.rgb[window], painted, where=inside[..., None], casting="same_kind")
        self.mask[window] |= part

    def relief(self, part: np.ndarray) -> np.ndarray:
        """Light on a part (h, w) that bulges towards the viewer: about -1 (shaded) to 1 (lit)."""
        radius = max(0.18 * min(part.shape), 1.0)
        soft = cv2.GaussianBlur(part.astype(np.float32), (0, 0), radius)
        lx, ly = self.light.direction
        # Central differences along the direction of the light.
        kernel = np.array([[0, ly, 0], [lx, 0, -lx], [0, -ly, 0]], np.float32)
        slope = cv2.filter2D(soft, -1, kernel * (radius * self.light.strength))
        return np.clip(slope, -1, 1, out=slope)

    def warp(self, rng: np.random.Generator, amount: float, grain: float) -> None:
        """Roughen outlines: move pixels by noise of ``amount`` metres, smooth over ``grain``."""
        height, width = self.mask.shape
        cells = (
            max(int(height / (grain * self.scale)), 2),
            max(int(width / (grain * self.scale)), 2),
        )
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
