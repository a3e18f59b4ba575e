"""The objects of the sample pictures: people, cars, trees and balloons, built of shaded parts."""

import colorsys

import numpy as np

from .painting import Colour, Light, Points, Sprite, ellipse, limb, mix, rounded

SKIN = ((0.93, 0.76, 0.65), (0.82, 0.62, 0.48), (0.62, 0.43, 0.31), (0.38, 0.26, 0.19))
HAIR = ((0.13, 0.1, 0.08), (0.3, 0.19, 0.1), (0.62, 0.47, 0.26), (0.55, 0.53, 0.52))
PAINT = (
    (0.75, 0.1, 0.1),
    (0.12, 0.24, 0.6),
    (0.88, 0.88, 0.88),
    (0.5, 0.53, 0.56),
    (0.14, 0.15, 0.17),
    (0.9, 0.7, 0.12),
    (0.1, 0.45, 0.5),
)
GLASS = (0.2, 0.26, 0.32)
RUBBER = (0.07, 0.07, 0.08)


def _pick(rng: np.random.Generator, palette: tuple) -> np.ndarray:
    """One colour of the palette, slightly varied."""
    colour = np.asarray(palette[rng.integers(len(palette))], np.float32)
    return np.clip(colour + rng.normal(0, 0.03, 3), 0.03, 0.97).astype(np.float32)


def _vivid(rng: np.random.Generator) -> np.ndarray:
    """A saturated colour of any hue but the greens of the fields."""
    hue = rng.uniform(0.45, 1.2) % 1.0
    return np.asarray(
        colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 0.9), rng.uniform(0.6, 0.95)), np.float32
    )


def person(rng: np.random.Generator, scale: float, light: Light) -> Sprite:
    """A walking or standing person, 1.75 m tall."""
    sprite = Sprite(scale, -0.7, 0.7, 1.85, light)
    skin, shirt, hair = _pick(rng, SKIN), _vivid(rng), _pick(rng, HAIR)
    trousers = _pick(rng, ((0.13, 0.16, 0.28), (0.2, 0.18, 0.17), (0.35, 0.3, 0.24)))
    stride, facing = rng.uniform(0.02, 0.26), rng.choice((-1, 1))
    swing = stride * 0.9
    dress = rng.random() < 0.25
    for side in (-1, 1):  # the far leg and arm first, and darker
        dim = 0.75 if side < 0 else 1.0
        foot = side * facing * stride
        leg = skin if dress else trousers
        sprite.fill(limb((side * 0.08, 0.86), (foot + side * 0.06, 0.1), 0.25, 0.16), leg * dim)
        sprite.fill(
            ellipse(foot + side * 0.06 + facing * 0.05, 0.06, 0.15, 0.065), (0.12, 0.1, 0.1)
        )
    if dress:
        sprite.fill(rounded([(-0.2, 1.05), (0.2, 1.05), (0.36, 0.5), (-0.36, 0.5)], 1), shirt)
    arms = []
    for side in (-1, 1):
        hand = (side * (0.32 + 0.1 * stride) - side * facing * swing, 0.82 + 0.2 * stride)
        arms.append((side * 0.26, hand, shirt * (0.8 if side < 0 else 1.05)))
    torso = [(-0.3, 1.44), (0.3, 1.44), (0.25, 1.1), (0.24, 0.78), (-0.24, 0.78), (-0.25, 1.1)]
    shoulder, hand, sleeve = arms[0]
    sprite.fill(limb((shoulder, 1.36), hand, 0.17, 0.13), sleeve)
    sprite.fill(ellipse(*hand, 0.075, 0.075, 10), skin)
    sprite.fill(rounded(torso), shirt, bulge=0.7)
    shoulder, hand, sleeve = arms[1]
    sprite.fill(limb((shoulder, 1.36), hand, 0.17, 0.13), sleeve)
    sprite.fill(ellipse(*hand, 0.075, 0.075, 10), skin)
    sprite.fill(limb((0, 1.4), (0, 1.5), 0.14, 0.14), skin * 0.85)
    sprite.fill(ellipse(0, 1.64, 0.17, 0.18), hair)
    sprite.fill(ellipse(facing * 0.035, 1.6, 0.135, 0.15), skin, bulge=0.6)
    return sprite


def car(rng: np.random.Generator, scale: float, light: Light, side_view: bool = True) -> Sprite:
    """A car, 1.5 m high: 4.2 m long from the side, 1.85 m wide from behind or from the front."""
    return (_car_side if side_view else _car_end)(rng, scale, light)


def _car_side(rng: np.random.Generator, scale: float, light: Light) -> Sprite:
    sprite = Sprite(scale, -2.25, 2.25, 1.8, light)
    paint, flip = _pick(rng, PAINT), rng.choice((-1, 1))
    # Roof line as (rear foot, rear top, front top, front foot) of the cabin.
    estate = rng.random() < 0.35
    rear, rear_top, front_top = (-2.05, -1.75, 0.25) if estate else (-1.75, -1.1, 0.3)
    roof, front = (1.62, 1.0) if estate else (1.48, 1.05)

    def fill(points: Points, colour: Colour, bulge: float = 0.3) -> None:
        sprite.fill(np.asarray(points) * (flip, 1), colour, bulge)

    cabin = [(rear, 0.9), (rear_top, roof), (front_top, roof), (front + 0.15, 0.9)]
    body = [(-2.12, 0.3), (-2.2, 0.75), (-2.05, 1.0), (-1.2, 1.02), (1.0, 0.98)]
    body += [(1.85, 0.88), (2.18, 0.68), (2.2, 0.3)]
    fill(rounded(cabin), paint * 0.96, 0.4)
    fill(rounded(body), paint, 0.5)
    post, sill = -0.38, 1.0
    top = roof - 0.1
    fill(
        [(rear + 0.28, sill), (rear_top + 0.1, top), (post - 0.05, top), (post - 0.05, sill)], GLASS
    )
    fill(
        [(post + 0.05, sill), (post + 0.05, top), (front_top - 0.02, top), (front - 0.1, sill)],
        GLASS,
    )
    fill([(-2.1, 0.3), (-2.15, 0.42), (2.15, 0.42), (2.15, 0.3)], paint * 0.35, 0)
    fill(
        [(post - 0.02, 0.42), (post - 0.02, 0.98), (post + 0.02, 0.98), (post + 0.02, 0.42)],
        paint * 0.6,
        0,
    )
    fill(ellipse(2.06, 0.74, 0.12, 0.09), (0.98, 0.95, 0.8), 0)
    fill(ellipse(-2.1, 0.82, 0.09, 0.1), (0.7, 0.08, 0.06), 0)
    for x in (-1.32, 1.32):
        fill(ellipse(x, 0.4, 0.44, 0.42), paint * 0.25, 0)
        fill(ellipse(x, 0.34, 0.36, 0.34), RUBBER, 0.3)
        fill(ellipse(x, 0.34, 0.2, 0.2), (0.62, 0.64, 0.66), 0.6)
        fill(ellipse(x, 0.34, 0.07, 0.07), (0.3, 0.3, 0.32), 0)
    return sprite


def _car_end(rng: np.random.Generator, scale: float, light: Light) -> Sprite:
    sprite = Sprite(scale, -1.05, 1.05, 1.7, light)
    paint, front = _pick(rng, PAINT), rng.random() < 0.5
    for side in (-1, 1):
        x = side * 0.72
        sprite.fill([(x - 0.16, 0), (x + 0.16, 0), (x + 0.16, 0.5), (x - 0.16, 0.5)], RUBBER, 0)
    sprite.fill(
        rounded([(-0.86, 0.85), (-0.66, 1.52), (0.66, 1.52), (0.86, 0.85)]), paint * 0.96, 0.4
    )
    body = [(-0.92, 0.22), (-0.98, 0.75), (-0.84, 1.0), (0.84, 1.0), (0.98, 0.75), (0.92, 0.22)]
    sprite.fill(rounded(body), paint, 0.5)
    sprite.fill(rounded([(-0.72, 0.98), (-0.56, 1.42), (0.56, 1.42), (0.72, 0.98)], 1), GLASS, 0.3)
    sprite.fill([(-0.9, 0.24), (-0.9, 0.42), (0.9, 0.42), (0.9, 0.24)], paint * 0.3, 0)
    lamp = (0.98, 0.95, 0.8) if front else (0.75, 0.08, 0.06)
    for side in (-1, 1):
        sprite.fill(ellipse(side * 0.72, 0.74, 0.17, 0.1), lamp, 0)
    if front:
        sprite.fill(
            rounded([(-0.45, 0.55), (-0.45, 0.76), (0.45, 0.76), (0.45, 0.55)], 1), (0.1, 0.1, 0.1)
        )
    sprite.fill([(-0.26, 0.46), (-0.26, 0.58), (0.26, 0.58), (0.26, 0.46)], (0.9, 0.9, 0.85), 0)
    return sprite


def tree(rng: np.random.Generator, scale: float, light: Light) -> Sprite:
    """A broad-leaved tree (5 m) or a conifer (6 m), with ragged outlines and leafy texture."""
    sprite = Sprite(scale, -2.3, 2.3, 6.3, light)
    bark = _pick(rng, ((0.33, 0.23, 0.15), (0.4, 0.33, 0.27)))
    sprite.fill(limb((0, 0.1), (0.05, 2.6), 0.5, 0.3), bark, 0.8)
    bark_rgb, bark_mask = sprite.rgb.copy(), sprite.mask.copy()
    (_conifer if rng.random() < 0.35 else _crown)(rng, sprite)
    sprite.warp(rng, amount=0.1, grain=0.22)
    speckle = 1 + 0.16 * rng.standard_normal(sprite.mask.shape, np.float32)
    sprite.rgb *= speckle[..., None]
    bare = bark_mask.astype(bool) & ~sprite.mask.astype(bool)
    sprite.rgb[bare] = bark_rgb[bare]
    sprite.mask |= bark_mask
    return sprite


def _crown(rng: np.random.Generator, sprite: Sprite) -> None:
    """Clumps of leaves in an ellipsoid, painted from the shaded underside to the lit top."""
    leaf = _pick(rng, ((0.13, 0.3, 0.1), (0.17, 0.34, 0.12), (0.12, 0.27, 0.14), (0.55, 0.3, 0.08)))
    rx, ry = rng.uniform(1.4, 1.85), rng.uniform(1.3, 1.7)
    angle, radius = rng.uniform(0, 2 * np.pi, 28), np.sqrt(rng.uniform(0, 1, 28))
    x, y = rx * radius * np.cos(angle) * 0.85, ry * radius * np.sin(angle) * 0.85
    lx, ly = sprite.light.direction
    lit = (x * lx / rx - y * ly / ry) * sprite.light.strength
    sprite.fill(rounded(ellipse(0, 3.5, rx * 0.8, ry * 0.8, 12)), leaf * 0.6, 0)
    for k in np.argsort(lit):
        size = rng.uniform(0.42, 0.66)
        shade = np.clip(0.95 + 0.5 * lit[k] + rng.normal(0, 0.07), 0.45, 1.6)
        sprite.fill(ellipse(x[k], 3.5 + y[k], size, size * 0.85, 12), leaf * shade, 0.7)


def _conifer(rng: np.random.Generator, sprite: Sprite) -> None:
    """Tiers of branches, the lower ones wider."""
    leaf = _pick(rng, ((0.08, 0.22, 0.16), (0.1, 0.25, 0.13)))
    width, tiers = rng.uniform(1.3, 1.7), 6
    for k in range(tiers):
        low = 0.9 + k * 0.82
        half = width * (1 - k / (tiers + 0.6))
        points = [(-half, low), (-half * 0.3, low + 1.3), (half * 0.3, low + 1.3), (half, low)]
        sprite.fill(
            [*points, (half * 0.4, low + 0.18), (-half * 0.4, low + 0.18)],
            leaf * (0.9 + 0.06 * k),
            0.9,
        )


def balloon(rng: np.random.Generator, scale: float, light: Light) -> Sprite:
    """A hot-air balloon; ``scale`` is the radius of its envelope, its foot the basket's floor."""
    sprite = Sprite(scale, -1.1, 1.1, 3.1, light)
    height, width = sprite.mask.shape
    x = (np.arange(width, dtype=np.float32)[None] + 0.5) / scale + sprite.left
    y = sprite.top - (np.arange(height, dtype=np.float32)[:, None] + 0.5) / scale - 2.0  # centre: 0
    ball = np.sqrt(np.clip(1 - y * y, 0, 1))
    cone = np.sqrt(0.75) + (y + 0.5) * 0.62
    half = np.where(y > -0.5, ball, np.where(y > -1.45, cone, 0)).astype(np.float32)
    inside = (np.abs(x) < half) & (half > 0)
    across = np.clip(x / np.maximum(half, 1e-3), -1, 1)  # -1 .. 1 over the width of the envelope
    colours = np.stack([_vivid(rng), _vivid(rng), np.full(3, rng.uniform(0.85, 0.95), np.float32)])
    gores = np.floor(np.arcsin(across) / np.pi * rng.integers(6, 11) + 0.25).astype(int)
    bands = np.floor((y + 2) * rng.uniform(2.2, 3.6)).astype(int)
    pattern = (gores, bands + 0 * gores, gores + bands)[rng.integers(3)] % 3
    lx, ly = light.direction
    shade = 0.82 + light.strength * 0.4 * (across * half * lx - np.clip(y, -1, 1) * ly)
    seams = np.abs(np.modf(np.arcsin(across) / np.pi * 10 + 20)[0] - 0.5) > 0.44
    shade = np.where(seams, shade * 0.92, shade)
    envelope = colours[pattern] * light.tint * shade[..., None]
    wicker = _pick(rng, ((0.45, 0.3, 0.16), (0.36, 0.25, 0.14)))
    sprite.fill([(-0.25, 0.58), (0.25, 0.58), (0.18, 0.28), (-0.18, 0.28)], wicker * 0.55, 0)
    sprite.fill(rounded([(-0.2, 0.3), (0.2, 0.3), (0.17, 0.0), (-0.17, 0.0)], 1), wicker, 0.6)
    sprite.rgb[inside] = mix(envelope, (0.5, 0.5, 0.5), 0.04)[inside]
    sprite.mask[inside] = 1
    return sprite
