"""What the objects of a sample picture stand in: light, sky, mountains, water, fields and roads."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .painting import Light, mix, noise_tile, sample_tile, smoothstep

# Sky at the top and at the horizon, cloud, tint and strength of the light, threshold of the clouds.
WEATHER = {
    "clear": (
        (0.22, 0.45, 0.78),
        (0.72, 0.84, 0.93),
        (0.97, 0.97, 0.98),
        (1.0, 0.99, 0.96),
        0.9,
        0.9,
    ),
    "fair": (
        (0.3, 0.52, 0.8),
        (0.76, 0.86, 0.92),
        (0.95, 0.95, 0.96),
        (1.0, 0.99, 0.97),
        0.75,
        0.1,
    ),
    "evening": (
        (0.36, 0.45, 0.68),
        (0.97, 0.77, 0.55),
        (0.98, 0.8, 0.7),
        (1.0, 0.88, 0.74),
        0.95,
        0.4,
    ),
    "overcast": (
        (0.62, 0.66, 0.71),
        (0.83, 0.85, 0.86),
        (0.75, 0.77, 0.79),
        (0.9, 0.92, 0.95),
        0.3,
        -0.8,
    ),
}
WEATHER_ODDS = (0.35, 0.3, 0.2, 0.15)


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera over a flat ground; all lengths in canvas pixels but ``eye`` (metres).

    A point on the ground at distance Z and sideways X (metres) is seen at
    ``x = centre + focal * X / Z``, ``y = horizon + focal * eye / Z``.
    """

    height: int
    width: int
    horizon: int
    eye: float

    @property
    def focal(self) -> float:
        return 1.1 * self.height

    def scale_at(self, y: float) -> float:
        """Pixels per metre of an object whose foot is seen at row ``y``."""
        return (y - self.horizon) / self.eye

    def ground(self) -> tuple[np.ndarray, np.ndarray]:
        """Sideways X and distance Z of the ground in metres, (height - horizon, width) each."""
        below = np.arange(self.height - self.horizon, dtype=np.float32)[:, None] + 0.5
        aside = np.arange(self.width, dtype=np.float32)[None] + 0.5 - self.width / 2
        return aside * self.eye / below, np.repeat(
            self.focal * self.eye / below, self.width, axis=1
        )


def choose_light(rng: np.random.Generator) -> tuple[Light, str]:
    """The sun and the name of the weather."""
    weather = str(rng.choice(list(WEATHER), p=WEATHER_ODDS))
    _, haze, _, tint, strength, _ = WEATHER[weather]
    side = 1.0 if rng.random() < 0.5 else -1.0
    height = rng.uniform(0.35, 0.6) if weather == "evening" else rng.uniform(0.7, 1.2)
    direction = (side * math.cos(height), -math.sin(height))
    shadow = (-side * rng.uniform(0.3, 0.9) / height, rng.uniform(0.12, 0.25))
    return Light(
        direction, np.asarray(tint, np.float32), strength, np.asarray(haze, np.float32), shadow
    ), weather


def paint_sky(rng: np.random.Generator, image: np.ndarray, camera: Camera, weather: str) -> None:
    """Gradient and a layer of clouds in perspective, down to the horizon; in place."""
    top, low, cloud, _, _, threshold = WEATHER[weather]
    rows = np.arange(camera.horizon, dtype=np.float32)[:, None] / camera.horizon
    sky = mix(np.asarray(top, np.float32), low, np.repeat(rows**1.3, camera.width, 1))
    away = 1.0 / (1.12 - rows)
    columns = np.arange(camera.width, dtype=np.float32)[None] / camera.height - 0.5
    x, y = columns * away * 110 + rng.uniform(0, 256), np.repeat(away * 75, camera.width, 1)
    tile = noise_tile(rng)
    density = sample_tile(tile, x, y)
    cover = smoothstep(threshold, threshold + 1.1, density) * 0.92
    belly = smoothstep(-1.5, 1.5, sample_tile(tile, x + 6, y + 9) - density)
    shaded = mix(
        np.asarray(cloud, np.float32), np.asarray(low, np.float32) * 0.86, (1 - belly) * 0.75
    )
    image[: camera.horizon] = mix(sky, shaded, cover * (1 - 0.6 * rows**3))


def paint_mountains(
    rng: np.random.Generator, image: np.ndarray, camera: Camera, light: Light
) -> np.ndarray:
    """One or two ridges with slopes in light and shade, bluer with distance; in place.

    Returns:
        (horizon, width) bool mask of the mountains.
    """
    area = np.zeros((camera.horizon, camera.width), bool)
    rows = np.arange(camera.horizon, dtype=np.float32)[:, None]
    columns = np.arange(camera.width, dtype=np.float32)
    rock = ((0.37, 0.4, 0.42), (0.31, 0.4, 0.33), (0.46, 0.38, 0.31))[rng.integers(3)]
    snow = rng.random() < 0.35
    layers = rng.integers(1, 3)
    for layer in range(layers):
        tile = noise_tile(rng, cells=(2, 4, 8, 16, 32, 64))
        line = sample_tile(tile, columns[None] * 0.6, np.full((1, camera.width), 7.0))[0]
        peak = camera.height * (0.17 - 0.07 * layer) * (1 + 0.42 * line)
        ridge = camera.horizon - np.maximum(peak, 0.045 * camera.height)
        inside = rows > ridge[None]
        depth = (rows - ridge[None]) / camera.height
        texture = sample_tile(tile, columns[None] * 0.9 + depth * 160, rows * 0.8)
        turned = sample_tile(tile, columns[None] * 0.9 + depth * 160 + 4, rows * 0.8)
        slope = np.clip(
            (texture - turned) * math.copysign(1, light.direction[0]) * light.strength, -1, 1
        )
        colour = np.asarray(rock, np.float32) * light.tint * (1 + 0.55 * slope)[..., None]
        if snow and layer == 0:
            cap = smoothstep(0.05, 0.01, depth + 0.02 * texture)
            white = np.asarray((0.93, 0.95, 0.98), np.float32) * light.tint
            colour = mix(colour, white, cap * (0.8 + 0.15 * slope))
        colour = mix(colour, light.haze, 0.45 - 0.25 * (layer == layers - 1))
        image[: camera.horizon][inside] = colour[inside]
        area |= inside
    return area


def paint_field(rng: np.random.Generator, image: np.ndarray, camera: Camera, light: Light) -> None:
    """Grass in perspective: patches, tufts and blades, hazy towards the horizon; in place."""
    x, z = camera.ground()
    greens = ((0.3, 0.46, 0.16), (0.36, 0.52, 0.2), (0.45, 0.5, 0.22), (0.26, 0.42, 0.2))
    base = np.asarray(greens[rng.integers(len(greens))], np.float32) + rng.normal(0, 0.015, 3)
    patches, tufts = noise_tile(rng), noise_tile(rng, cells=(16, 32, 64, 128))
    near = smoothstep(0.0, 0.25, (camera.eye * camera.focal / z) / camera.height)
    wave = sample_tile(patches, x * 9, z * 9)
    fine = sample_tile(tufts, x * 40, z * 40) * near
    blades = rng.standard_normal(x.shape, np.float32)
    blades = cv2.GaussianBlur(blades, (0, 0), sigmaX=0.8, sigmaY=2.2) * (0.3 + near)
    shade = 1 + 0.07 * wave + 0.09 * fine + 0.14 * blades
    dry = smoothstep(0.2, 2.0, wave) * 0.45
    grass = mix(np.broadcast_to(base.astype(np.float32), (*x.shape, 3)), (0.58, 0.53, 0.27), dry)
    grass = grass * light.tint * shade[..., None]
    image[camera.horizon :] = mix(grass, light.haze, 0.35 * np.exp(-near * 6))


def paint_road(
    rng: np.random.Generator, image: np.ndarray, camera: Camera, light: Light, across: bool
) -> np.ndarray:
    """A road with edge lines and a dashed middle, running away or ``across`` the view; in place.

    Returns:
        (height - horizon, width) bool mask of the road.
    """
    x, z = camera.ground()
    if across:
        half = rng.uniform(2.0, 2.8)
        near_row = rng.uniform(0.42, 0.62) * (camera.height - camera.horizon)
        offset = camera.focal * camera.eye / near_row + half
        aside, along = z - offset + rng.uniform(-0.25, 0.25) * x, x
    else:
        half = rng.uniform(1.7, 2.6)
        bend, start = rng.uniform(-0.006, 0.006), rng.uniform(-1.5, 1.5)
        aside, along = x - start - rng.uniform(-0.3, 0.3) * z - bend * z * z, z
    area = np.abs(aside) < half
    grain = sample_tile(noise_tile(rng, cells=(8, 32, 64, 128)), x * 40, z * 40)
    greys = ((0.4, 0.4, 0.42), (0.33, 0.33, 0.35), (0.5, 0.48, 0.45))
    asphalt = np.asarray(greys[rng.integers(3)], np.float32)
    worn = 0.05 * np.cos(aside / half * 2 * np.pi * 1.0)
    fade = np.clip(12 / z, 0, 1)
    colour = asphalt * light.tint * (1 + worn + 0.06 * grain * fade)[..., None]
    edge = np.abs(np.abs(aside) - (half - 0.22)) < 0.09
    dash = (np.abs(aside) < 0.09) & (np.mod(along, 3.0) < 1.7)
    colour = mix(colour, (0.88, 0.87, 0.82), (edge | dash) * np.float32(0.85) * fade)
    colour = mix(colour, light.haze, 0.35 * np.exp(-12 / z * 2.5))
    image[camera.horizon :][area] = colour[area]
    return area


def paint_water(
    rng: np.random.Generator, image: np.ndarray, camera: Camera, light: Light
) -> np.ndarray:
    """A lake from the horizon to a wavy shore that mirrors what is painted above it; in place.

    Returns:
        (height - horizon, width) bool mask of the water.
    """
    rows = np.arange(camera.height - camera.horizon, dtype=np.float32)[:, None]
    columns = np.arange(camera.width, dtype=np.float32)[None]
    bank = sample_tile(noise_tile(rng), columns * 0.35, np.zeros_like(columns))
    tilt = rng.uniform(-0.06, 0.06) * (columns / camera.width - 0.5) * 2
    shore = camera.height * (rng.uniform(0.1, 0.17) + tilt + 0.012 * bank)
    area = rows < np.maximum(shore, 0.03 * camera.height)
    x, z = camera.ground()
    ripple = sample_tile(noise_tile(rng, cells=(8, 16, 32, 64)), x * 12, z * 3)
    mirrored = camera.horizon - 1 - rows * 1.5 + ripple * (0.4 + rows * 0.06)
    mirrored = np.clip(mirrored, 0, camera.horizon - 1).astype(int)
    mirror = image[mirrored, np.broadcast_to(columns.astype(int), area.shape)]
    deep = np.asarray((0.12, 0.3, 0.4), np.float32) * light.tint
    water = mix(mirror * 0.92, deep, 0.35 + 0.2 * smoothstep(0, 0.2, rows / camera.height))
    water = water * (1 + 0.06 * ripple)[..., None]
    rim = smoothstep(0.02, 0.0, (shore - rows) / camera.height) * area
    water = mix(water, (0.66, 0.6, 0.46), rim * 0.5)
    image[camera.horizon :][area] = water[area]
    return area
