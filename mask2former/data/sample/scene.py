"""One sample scene: a landscape with objects in it, photographed, and which pixel belongs to what.

Index maps are (height, width) uint8: 0 is ignored, ``i`` is the scene's segment ``i - 1``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from . import landscape, things
from .landscape import Camera
from .painting import SUPERSAMPLING, Light, Sprite, mix

# Segments with a smaller visible share of the picture are too small to ask for: they are ignored.
MIN_VISIBLE = 0.006
# Height in metres of what stands on the ground, and the range of its height in the picture.
STANDING = {"person": (1.75, (0.33, 0.6)), "car": (1.5, (0.19, 0.3)), "tree": (5.0, (0.35, 0.7))}
# Mean number of each thing in a picture that has any.
EXPECTED = {"person": 1.5, "car": 1.2, "tree": 1.2, "balloon": 1.0}
MAX_THINGS = 7


@dataclass(frozen=True)
class Segment:
    """One segment of a scene: the name of its category and whether it is a crowd."""

    category: str
    iscrowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture, (h, w, 3) uint8 RGB, its (h, w) uint8 index map, and the segments of the map."""

    image: np.ndarray
    index: np.ndarray
    segments: tuple[Segment, ...]


@dataclass
class _Canvas:
    """The supersampled picture while it is painted."""

    image: np.ndarray
    index: np.ndarray
    segments: list[Segment]
    crossroad: bool = False  # the road runs across the view: cars on it show their sides

    def add(self, area: np.ndarray, category: str, iscrowd: bool = False) -> None:
        """Give the pixels of ``area``, an (h, w) bool mask, to a new segment."""
        self.segments.append(Segment(category, iscrowd))
        self.index[area] = len(self.segments)


def render_scene(
    rng: np.random.Generator,
    height: int,
    width: int,
    *,
    crowd: bool = False,
    ignored: bool = False,
    empty: bool = False,
) -> Scene:
    """Paint a scene of ``height`` x ``width`` pixels.

    Args:
        crowd: a group of distant people that nobody could count.
        ignored: part of the picture belongs to nothing: a lens border, a glare or a date stamp.
        empty: a landscape without any thing.
    """
    horizon = int(height * rng.uniform(0.34, 0.48)) * SUPERSAMPLING
    camera = Camera(height * SUPERSAMPLING, width * SUPERSAMPLING, horizon, rng.uniform(2.0, 2.7))
    light, weather = landscape.choose_light(rng)
    canvas = _paint_landscape(rng, camera, light, weather, lake=not crowd)
    if not empty:
        _add_balloons(rng, canvas, camera, light)
        if crowd:
            _add_crowd(rng, canvas, camera, light)
        _add_standing(rng, canvas, camera, light)
    index = _downsample_index(canvas.index, len(canvas.segments))
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA)
    if ignored:
        cover = (_lens_border, _glare, _date_stamp)[rng.integers(3)]
        image, hidden = cover(rng, image)
        index[hidden] = 0
    return Scene(_photograph(rng, image), *_drop_small(index, canvas.segments))


def _paint_landscape(
    rng: np.random.Generator, camera: Camera, light: Light, weather: str, lake: bool
) -> _Canvas:
    shape = (camera.height, camera.width)
    canvas = _Canvas(np.zeros((*shape, 3), np.float32), np.zeros(shape, np.uint8), [])
    sky, ground = np.zeros(shape, bool), np.zeros(shape, bool)
    sky[: camera.horizon] = True
    ground[camera.horizon :] = True
    landscape.paint_sky(rng, canvas.image, camera, weather)
    canvas.add(sky, "sky")
    if rng.random() < 0.55:
        sky[: camera.horizon] = landscape.paint_mountains(rng, canvas.image, camera, light)
        canvas.add(sky, "mountain")
    landscape.paint_field(rng, canvas.image, camera, light)
    canvas.add(ground, "grass")
    road = rng.random()
    if road < 0.65:
        canvas.crossroad = road < 0.35
        area = landscape.paint_road(rng, canvas.image, camera, light, across=canvas.crossroad)
        ground[camera.horizon :] = area
        canvas.add(ground, "road")
    if lake and rng.random() < 0.4:
        area = landscape.paint_water(rng, canvas.image, camera, light)
        ground[camera.horizon :] = area
        canvas.add(ground, "water")
    return canvas


def _composite(canvas: _Canvas, sprite: Sprite, x: float, y: float, haze: float) -> np.ndarray:
    """Paint a sprite, its foot at (x, y), faded by ``haze`` in [0, 1); returns its (h, w) mask."""
    column, row = sprite.place(x, y)
    height, width = canvas.index.shape
    top, left = max(row, 0), max(column, 0)
    bottom = min(row + sprite.mask.shape[0], height)
    right = min(column + sprite.mask.shape[1], width)
    area = np.zeros((height, width), bool)
    if top >= bottom or left >= right:
        return area
    window = (slice(top, bottom), slice(left, right))
    cut = (slice(top - row, bottom - row), slice(left - column, right - column))
    inside = sprite.mask[cut].astype(bool)
    hazed = mix(sprite.rgb[cut], sprite.light.haze, haze)
    np.copyto(canvas.image[window], hazed, where=inside[..., None])
    area[window] = inside
    return area


def _cast_shadow(canvas: _Canvas, sprite: Sprite, x: float, y: float) -> None:
    """Darken what the sprite keeps the sun from: its outline laid down, sheared and blurred."""
    shear, length = sprite.light.shadow
    height, width = canvas.index.shape
    column, row = sprite.place(x, y)
    # The sprite falls over towards the horizon; the row of its foot stays where it is.
    foot = y - row
    lay_down = np.array(
        [
            [1, -shear * length * 2, column + shear * length * 2 * foot],
            [0, length, y - length * foot],
        ]
    )
    shadow = cv2.warpAffine(sprite.mask.astype(np.float32), lay_down, (width, height))
    soft = max(0.04 * sprite.scale, 1.0)
    contact = np.zeros((height, width), np.float32)
    half = (0.42 * sprite.mask.any(axis=0).sum() * (0.5 if sprite.top > 3 else 1.0)).item()
    axes = (max(round(half), 1), max(round(0.09 * sprite.scale), 1))
    cv2.ellipse(contact, (round(x), round(y - 0.02 * sprite.scale)), axes, 0, 0, 360, 1.0, -1)
    dark = np.maximum(shadow * (0.25 + 0.3 * sprite.light.strength), 0.5 * contact)
    dark = cv2.GaussianBlur(dark, (0, 0), soft)
    canvas.image *= 1 - dark[..., None]


def _ground_haze(camera: Camera, y: float) -> float:
    return 0.3 * float(np.exp(-(y - camera.horizon) / camera.height * 16))


def _add_balloons(rng: np.random.Generator, canvas: _Canvas, camera: Camera, light: Light) -> None:
    """Balloons in the sky, far ones first, apart from each other."""
    count = min(rng.poisson(EXPECTED["balloon"]), 3)
    radii = np.sort(rng.uniform(0.06, 0.15, count)) * camera.height
    taken: list[float] = []
    for radius in radii:
        x = rng.uniform(0.08, 0.92) * camera.width
        if any(abs(x - other) < 2.2 * radius for other in taken):
            continue
        taken.append(x)
        sprite = things.balloon(rng, float(radius), light)
        foot = rng.uniform(0.75, 0.98) * camera.horizon
        haze = 0.25 * (1 - radius / (0.15 * camera.height))
        canvas.add(_composite(canvas, sprite, x, max(foot, 2.6 * radius), haze), "balloon")


def _add_crowd(rng: np.random.Generator, canvas: _Canvas, camera: Camera, light: Light) -> None:
    """Ten to sixteen distant people, shoulder to shoulder: one crowd segment."""
    centre = rng.uniform(0.25, 0.75) * camera.width
    tall = rng.uniform(0.13, 0.17) * camera.height
    foot = camera.horizon + tall / 1.75 * camera.eye
    people = rng.integers(10, 17)
    area = np.zeros(canvas.index.shape, bool)
    for y in np.sort(foot + rng.uniform(-0.02, 0.02, people) * camera.height):
        x = centre + rng.uniform(-0.5, 0.5) * 0.26 * people * tall
        sprite = things.person(rng, camera.scale_at(y), light)
        _cast_shadow(canvas, sprite, x, y)
        area |= _composite(canvas, sprite, x, y, _ground_haze(camera, y))
    # Annotators outline a crowd as a whole: the slits between its people belong to it.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    closed = cv2.morphologyEx(area.astype(np.uint8), cv2.MORPH_CLOSE, kernel)
    canvas.add(closed.astype(bool), "person", iscrowd=True)


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection of two boxes (x0, y0, x1, y1) over the area of the smaller one."""
    wide = min(a[2], b[2]) - max(a[0], b[0])
    high = min(a[3], b[3]) - max(a[1], b[1])
    area = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(wide, 0.0) * max(high, 0.0) / area


def _add_standing(rng: np.random.Generator, canvas: _Canvas, camera: Camera, light: Light) -> None:
    """People, cars and trees on the ground, painted from far to near so that near ones occlude."""
    has_road = any(segment.category == "road" for segment in canvas.segments)
    kinds: list[str] = []
    for kind in STANDING:
        expected = EXPECTED[kind] * (0.4 if kind == "car" and not has_road else 1.0)
        kinds += [kind] * min(rng.poisson(expected), 4)
    if not kinds:
        kinds = ["person", "tree"]
    rng.shuffle(kinds)
    boxes: list[tuple[float, ...]] = []
    placed: list[tuple[float, float, Sprite, str]] = []
    for kind in kinds[:MAX_THINGS]:
        for _ in range(12):
            spot = _find_spot(rng, canvas, camera, kind, boxes)
            if spot is not None:
                x, y, box = spot
                boxes.append(box)
                placed.append((y, x, _build(rng, camera, light, kind, y, canvas.crossroad), kind))
                break
    for y, x, sprite, kind in sorted(placed, key=lambda item: item[0]):
        _cast_shadow(canvas, sprite, x, y)
        canvas.add(_composite(canvas, sprite, x, y, _ground_haze(camera, y)), kind)


def _build(
    rng: np.random.Generator, camera: Camera, light: Light, kind: str, y: float, crossroad: bool
) -> Sprite:
    """The object of ``kind`` whose foot is seen at row ``y``."""
    scale = camera.scale_at(y)
    if kind == "car":
        return things.car(rng, scale, light, side_view=rng.random() < (0.9 if crossroad else 0.4))
    return {"person": things.person, "tree": things.tree}[kind](rng, scale, light)


def _find_spot(
    rng: np.random.Generator, canvas: _Canvas, camera: Camera, kind: str, boxes: list
) -> tuple[float, float, tuple[float, ...]] | None:
    """A foot point (x, y) and box for an object of ``kind``; None if this draw does not fit."""
    metres, (low, high) = STANDING[kind]
    tall = rng.uniform(low, high) * camera.height
    y = camera.horizon + tall / metres * camera.eye
    x = rng.uniform(-0.02, 1.02) * camera.width
    half = {"person": 0.22, "car": 0.9, "tree": 0.3}[kind] * tall
    box = (x - half, y - tall, x + half, y)
    row = min(int(y), camera.height - 1)
    column = min(max(int(x), 0), camera.width - 1)
    ground = canvas.segments[canvas.index[row, column] - 1].category
    allowed = {"tree": ("grass",), "car": ("road", "grass"), "person": ("road", "grass")}[kind]
    if ground not in allowed or (kind == "car" and ground == "grass" and rng.random() < 0.7):
        return None
    if any(_overlap(box, other) > 0.35 for other in boxes):
        return None
    return x, y, box


def _downsample_index(index: np.ndarray, count: int) -> np.ndarray:
    """The segment that covers most of each finished pixel."""
    height, width = index.shape[0] // SUPERSAMPLING, index.shape[1] // SUPERSAMPLING
    best, winner = np.zeros((height, width), np.float32), np.zeros((height, width), np.uint8)
    for i in range(1, count + 1):
        share = cv2.resize(
            (index == i).astype(np.float32), (width, height), interpolation=cv2.INTER_AREA
        )
        winner[share > best] = i
        best = np.maximum(best, share)
    return winner


def _drop_small(
    index: np.ndarray, segments: Sequence[Segment]
) -> tuple[np.ndarray, tuple[Segment, ...]]:
    """Ignore segments with too little to see and number the others 1, 2, ... again."""
    area = np.bincount(index.ravel(), minlength=len(segments) + 1)[1:]
    kept = [i for i in range(len(segments)) if area[i] >= MIN_VISIBLE * index.size]
    renumber = np.zeros(len(segments) + 1, np.uint8)
    for new, i in enumerate(kept, start=1):
        renumber[i + 1] = new
    return renumber[index], tuple(segments[i] for i in kept)


def _lens_border(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The black corners of a lens too small for the sensor."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    power = rng.uniform(3.0, 5.0)
    radius = (np.abs(x / width * 2 - 1) ** power + np.abs(y / height * 2 - 1) ** power) ** (
        1 / power
    )
    dark = 1 / (1 + np.exp(-(radius - rng.uniform(0.96, 1.02)) * 40))
    return mix(image, (0.02, 0.02, 0.02), dark.astype(np.float32)), dark > 0.5


def _glare(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sun in the lens: a blown-out disc near an upper corner."""
    height, width = image.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    centre = (rng.choice((0.1, 0.9)) * width, rng.uniform(0.05, 0.25) * height)
    distance = np.hypot(x - centre[0], y - centre[1]) / (rng.uniform(0.16, 0.24) * height)
    bright = np.where(distance < 1, 1 - 0.12 * distance**4, 0.88 * np.exp(-(distance - 1) * 2.5))
    return mix(image, (1.0, 0.97, 0.88), bright.astype(np.float32)), distance < 1.15


def _date_stamp(rng: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A dark plate with the date in a corner."""
    height, width = image.shape[:2]
    high, wide = round(0.13 * height), round(0.48 * width)
    top = rng.choice((0, height - high))
    left = rng.choice((0, width - wide))
    hidden = np.zeros((height, width), bool)
    hidden[top : top + high, left : left + wide] = True
    image = mix(image, (0.05, 0.05, 0.06), hidden * np.float32(0.88))
    date = f"{rng.integers(1, 29):02d}.{rng.integers(1, 13):02d}.26"
    size = wide / 160
    origin = (int(left + 0.08 * wide), int(top + 0.75 * high))
    ink = np.zeros((height, width), np.uint8)
    cv2.putText(ink, date, origin, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 1, cv2.LINE_AA)
    return mix(image, (1.0, 0.7, 0.25), ink / np.float32(255)), hidden


def _photograph(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """What a camera does to light: focus, vignette, white balance, exposure, noise; uint8."""
    height, width = image.shape[:2]
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.6))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    corner = (x / width * 2 - 1) ** 2 + (y / height * 2 - 1) ** 2
    image = image * (1 - rng.uniform(0.02, 0.12) * corner)[..., None]
    image = np.clip(image * rng.uniform(1.0, 1.22) * (1 + rng.normal(0, 0.02, 3)), 0, 1)
    image = image ** rng.uniform(0.9, 1.12)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0.004, 0.011)
    noise += rng.standard_normal((height, width, 1), np.float32) * 0.004
    return np.round(np.clip(image + noise * (0.6 + 0.8 * image), 0, 1) * 255).astype(np.uint8)
