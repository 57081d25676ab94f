"""What the procedural world is made of: textures, shapes and cut-outs as sprites with alpha."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from training.assets import Bank

if TYPE_CHECKING:
    from _typeshed import SupportsLenAndGetItem

cv2.setNumThreads(0)

SPRITE = 224

Uint8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Rng = np.random.Generator
T = TypeVar("T")


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A number between low and high, uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def one_of(rng: Rng, things: SupportsLenAndGetItem[T]) -> T:
    """Any of the things, all equally likely."""
    return things[int(rng.integers(len(things)))]


def noise_texture(rng: Rng, size: int) -> Uint8:
    """Two to four colours mixed by octaves of value noise; uint8 (size, size, 3)."""
    field = np.zeros((size, size), np.float32)
    for octave in range(int(rng.integers(1, 5))):
        cells = 2 ** (octave + int(rng.integers(1, 3)))
        grid = rng.random((cells + 1, cells + 1), dtype=np.float32)
        field += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC) / (1 + octave)
    if rng.random() < 0.3:
        field = np.sin(field * rng.uniform(4, 25)).astype(np.float32)
    colours = rng.uniform(0, 255, (int(rng.integers(2, 5)), 3))
    low, high = float(field.min()), float(field.max())
    where = (field - low) / max(high - low, 1e-6) * (len(colours) - 1)
    stops = np.arange(len(colours))
    return np.stack([np.interp(where, stops, colours[:, c]) for c in range(3)], -1).astype(np.uint8)


def pattern_texture(rng: Rng, size: int) -> Uint8:
    """Stripes, checks or dots in two colours; uint8 (size, size, 3)."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    k = rng.uniform(8, 60)
    waves = (np.sin(k * u), np.sin(k * u) * np.sin(k * v), np.maximum(np.sin(k * u), np.sin(k * v)))
    mix = (waves[int(rng.integers(3))] > rng.uniform(-0.5, 0.5))[..., None]
    one, two = rng.uniform(0, 255, (2, 3))
    return np.asarray(np.where(mix, one, two), np.uint8)


def plain_texture(rng: Rng, size: int) -> Uint8:
    """A linear gradient between two near colours; uint8 (size, size, 3)."""
    one = rng.uniform(0, 255, 3)
    two = np.clip(one + rng.normal(0, 40, 3), 0, 255)
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    column = one + (two - one) * ramp
    full = np.broadcast_to(column, (size, size, 3))
    return np.ascontiguousarray(np.rot90(full, int(rng.integers(4)))).astype(np.uint8)


def photo_texture(rng: Rng, photo: Uint8, size: int) -> Uint8:
    """A random square crop of a photograph; uint8 (size, size, 3)."""
    side = int(log_uniform(rng, 48, min(photo.shape[:2])))
    top = int(rng.integers(0, photo.shape[0] - side + 1))
    left = int(rng.integers(0, photo.shape[1] - side + 1))
    crop = np.ascontiguousarray(photo[top : top + side, left : left + side])
    return np.asarray(cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def texture(rng: Rng, bank: Bank, size: int) -> Uint8:
    """A texture of a random kind; uint8 (size, size, 3)."""
    if len(bank.grounds) and rng.random() < 0.2:
        return photo_texture(rng, one_of(rng, bank.grounds), size)
    kind = rng.random()
    if kind < 0.65:
        return photo_texture(rng, one_of(rng, bank.photos), size)
    if kind < 0.8:
        return noise_texture(rng, size)
    return pattern_texture(rng, size) if kind < 0.86 else plain_texture(rng, size)


def skin(rng: Rng, bank: Bank, size: int) -> Uint8:
    """What covers an object; uint8 (size, size, 3).

    Often a texture under a colour of its own, since things that a person would point at differ from
    what is around them; but an animal in the grass does not.
    """
    base = texture(rng, bank, size)
    return tinted(rng, base, rng.uniform(0.3, 0.8)) if rng.random() < 0.5 else base


def patchwork(rng: Rng, bank: Bank, size: int) -> Uint8:
    """Two to four skins beside each other, as clothes or a piebald coat; uint8 (size, size, 3)."""
    out = skin(rng, bank, size)
    for _ in range(int(rng.integers(1, 4))):
        cells = 2 if rng.random() < 0.5 else int(rng.integers(3, 8))
        grid = rng.normal(size=(cells, cells))
        field = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        patch = field > rng.uniform(-0.3, 0.8)
        out[patch] = skin(rng, bank, size)[patch]
    return out


def tinted(rng: Rng, picture: Uint8, share: float) -> Uint8:
    """Mix a random colour, seldom a grey one, into a picture; uint8 (h, w, 3)."""
    hue, saturation, value = rng.uniform(0, 180), rng.uniform(60, 255), rng.uniform(70, 255)
    pixel = np.array([[[hue, saturation, value]]], np.uint8)
    colour = np.asarray(cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB), np.float32)
    return np.asarray(picture * (1 - share) + colour * share, np.float32).astype(np.uint8)


def blob(rng: Rng) -> Float32:
    """Outline of a closed random Fourier curve; float32 (64, 2) in [-1, 1]."""
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(t)
    for k in range(2, int(rng.integers(3, 8))):
        radius += rng.normal(0, 0.5 / k) * np.cos(k * t + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.2, None)
    outline = np.stack([radius * np.cos(t), radius * np.sin(t)], -1)
    return np.asarray(outline / np.abs(outline).max(), np.float32)


def outline(rng: Rng) -> Float32:
    """Outline of a blob, polygon, ellipse or thin shape; float32 (n, 2) in [-1, 1]."""
    kind = rng.random()
    if kind < 0.4:
        return blob(rng)
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    if kind >= 0.65:
        angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    points = np.stack([np.cos(angles), np.sin(angles)], -1)
    if kind < 0.65:
        points *= rng.uniform(0.4, 1, (len(points), 1))
    points[:, 1] *= rng.uniform(0.12, 0.25) if kind > 0.9 else rng.uniform(0.4, 1)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = points @ rotation
    return np.asarray(points / max(np.abs(points).max(), 1e-6), np.float32)


def fill(
    alpha: Uint8, points: Float32, centre: tuple[float, float], radius: float, value: int
) -> None:
    """Fill an outline in place, antialiased, with 4 fractional bits."""
    pixels = np.round((points * radius + centre) * 16).astype(np.int32)
    cv2.fillPoly(alpha, [pixels], value, lineType=cv2.LINE_AA, shift=4)


def shape_sprite(rng: Rng, bank: Bank, side: int) -> Uint8:
    """One to three textured shapes that overlap, sometimes with a hole; uint8 (side, side, 4)."""
    sprite = np.zeros((side, side, 4), np.uint8)
    parts = 1 if rng.random() < 0.55 else int(rng.integers(2, 4))
    cover = patchwork(rng, bank, side) if rng.random() < 0.4 else skin(rng, bank, side)
    half = side / 2
    for part in range(parts):
        alpha = np.zeros((side, side), np.uint8)
        radius = half * (0.9 if parts == 1 else rng.uniform(0.35, 0.6))
        reach = half * 0.9 - radius
        centre = (half, half) if part == 0 else tuple(half + rng.uniform(-reach, reach, 2))
        fill(alpha, outline(rng), (float(centre[0]), float(centre[1])), radius, 255)
        if rng.random() < 0.08:
            fill(alpha, outline(rng), (float(centre[0]), float(centre[1])), radius * 0.45, 0)
        if part and rng.random() < 0.2:
            cover = skin(rng, bank, side)
        inside = alpha > 0
        sprite[inside, :3] = cover[inside]
        sprite[..., 3] = np.maximum(sprite[..., 3], alpha)
    return shade(rng, sprite)


def shade(rng: Rng, sprite: Uint8) -> Uint8:
    """Light from one side and a round falloff, as on a solid body; uint8 (h, w, 4)."""
    if rng.random() < 0.4:
        return sprite
    x = np.linspace(-1, 1, len(sprite), dtype=np.float32)
    y = x[:, None]
    angle, strength = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.5)
    light = 1 + strength * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
    light -= np.float32(rng.uniform(0, 0.4)) * (x * x + y * y)
    sprite[..., :3] = np.clip(sprite[..., :3] * light[..., None].astype(np.float32), 0, 255)
    return sprite


def cutout_sprite(rng: Rng, bank: Bank, side: int) -> Uint8:
    """A cut-out, perhaps mirrored, with other colours or another skin; uint8 (side, side, 4)."""
    # the bank begins with what is richest in colours, which looks most like a photograph
    rank = int(len(bank.cutouts) * rng.random() ** 1.7)
    sprite = np.asarray(
        cv2.resize(np.array(bank.cutouts[rank]), (side, side), interpolation=cv2.INTER_AREA),
        np.uint8,
    )
    if rng.random() < 0.5:
        sprite = np.ascontiguousarray(sprite[:, ::-1])
    kind = rng.random()
    if kind < 0.15:
        sprite[..., :3] = skin(rng, bank, side)
    elif kind < 0.35:
        sprite[..., :3] = tinted(rng, sprite[..., :3], rng.uniform(0.2, 0.6))
    elif kind < 0.45:
        mix = rng.uniform(0.3, 0.7)
        sprite[..., :3] = cv2.addWeighted(
            np.ascontiguousarray(sprite[..., :3]), mix, texture(rng, bank, side), 1 - mix, 0
        )
    elif kind < 0.7:
        gain = rng.uniform(0.6, 1.2, 3).astype(np.float32)
        order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
        sprite[..., :3] = np.clip(sprite[..., :3][..., order] * gain, 0, 255).astype(np.uint8)
    return shade(rng, sprite)


def sprite(rng: Rng, bank: Bank, side: int) -> Uint8:
    """A cut-out or a drawn shape; uint8 (side, side, 4)."""
    use_cutout = len(bank.cutouts) > 0 and rng.random() < 0.65
    return (cutout_sprite if use_cutout else shape_sprite)(rng, bank, side)


@dataclass(frozen=True)
class Film:
    """A thing that moves by itself: its phases, shown there and back again.

    phases: uint8 (P, h, h, 4). start: a phase; rate: phases a unit of time. colours: float32
    (3, 4), what becomes of (r, g, b, 1).
    """

    phases: Uint8
    side: int
    start: float
    rate: float
    is_mirrored: bool
    colours: Float32

    def at(self, t: float) -> Uint8:
        """What it looks like at time t, uint8 (side, side, 4)."""
        last = len(self.phases) - 1
        way = last - abs((self.start + self.rate * t) % (2 * last) - last)
        phase = np.array(self.phases[round(way)])
        shrinks = self.side < len(phase)
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        out = np.asarray(cv2.resize(phase, (self.side, self.side), interpolation=method), np.uint8)
        rgb = np.ascontiguousarray(out[..., :3])
        out[..., :3] = np.clip(cv2.transform(rgb.astype(np.float32), self.colours), 0, 255)
        return np.ascontiguousarray(out[:, ::-1]) if self.is_mirrored else out


def film(rng: Rng, bank: Bank, side: int, speed: float) -> Film:
    """A film of the bank, often in other colours, sometimes in very different ones."""
    phases = one_of(rng, bank.films)
    colours = np.eye(3, 4)
    kind = rng.random()
    if kind < 0.5:
        colours[:, :3] *= rng.uniform(0.6, 1.3) * np.exp(rng.normal(0, 0.12, 3))[:, None]
    elif kind < 0.6:
        colours = colours[rng.permutation(3)]
    elif kind < 0.75:
        share = rng.uniform(0.15, 0.6)
        colours[:, :3] *= 1 - share
        colours[:, 3] = share * rng.uniform(0, 255, 3)
    return Film(
        phases,
        side,
        float(rng.uniform(0, len(phases))),
        log_uniform(rng, 1, 12) * np.sqrt(speed),
        bool(rng.random() < 0.5),
        colours.astype(np.float32),
    )


@dataclass(frozen=True)
class Limb:
    """A part of a body that swings about a joint.

    sprite: uint8 (side, side, 4), as large as the body's. joint: (x, y) in sprite pixels.
    swing: radians. rate: radians a unit of time.
    """

    sprite: Uint8
    joint: tuple[float, float]
    swing: float
    rate: float
    phase: float
    in_front: bool

    def at(self, t: float) -> Uint8:
        """The limb as it stands at time t."""
        angle = self.swing * np.sin(self.rate * t + self.phase)
        turn = cv2.getRotationMatrix2D(self.joint, float(np.degrees(angle)), 1.0)
        side = self.sprite.shape[0]
        return np.asarray(cv2.warpAffine(self.sprite, turn, (side, side)), np.uint8)


def limbs(rng: Rng, bank: Bank, torso: Uint8) -> list[Limb]:
    """Two to five arms and legs for a torso (side, side, 4); they mostly hang down from it."""
    side = torso.shape[0]
    inside = np.argwhere(torso[..., 3] >= 128)[:, ::-1]
    if len(inside) == 0:
        return []
    cover, rate = skin(rng, bank, side), float(rng.uniform(0.05, 0.7))
    out = []
    for _ in range(int(rng.integers(2, 6))):
        if rng.random() < 0.3:
            cover = skin(rng, bank, side)
        joint = inside[rng.integers(len(inside))].astype(np.float64)
        outward = np.arctan2(*(joint - inside.mean(0))[::-1])
        angle = rng.normal(np.pi / 2, 0.5) if rng.random() < 0.6 else rng.normal(outward, 0.5)
        drawn = np.dstack([cover, np.zeros((side, side), np.uint8)])
        alpha = np.zeros((side, side), np.uint8)
        x, y = float(joint[0]), float(joint[1])
        length, width = side * rng.uniform(0.15, 0.33), side * rng.uniform(0.03, 0.09)
        fill(alpha, drop(angle, length, width), (x, y), 1.0, 255)
        drawn[..., 3] = alpha
        swing, phase = float(rng.uniform(0.1, 0.9)), float(rng.uniform(0, 2 * np.pi))
        out.append(Limb(drawn, (x, y), swing, rate, phase, bool(rng.random() < 0.5)))
    return out


def drop(angle: float, length: float, width: float) -> Float32:
    """Outline of a long ellipse that begins at the origin; float32 (32, 2)."""
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    along, across = (1 + np.cos(t)) / 2 * length, np.sin(t) * width
    cos, sin = np.cos(angle), np.sin(angle)
    points = np.stack([along * cos - across * sin, along * sin + across * cos], -1)
    return np.asarray(points, np.float32)


def shrunk(picture: Uint8, scale: float) -> Uint8:
    """A sprite (side, side, 4) made smaller about its centre, in a canvas of the same size."""
    side = picture.shape[0]
    centre = np.array([side / 2, side / 2]) * (1 - scale)
    matrix = np.array([[scale, 0, centre[0]], [0, scale, centre[1]]])
    return np.asarray(cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_AREA), np.uint8)


def over(front: Uint8, back: Uint8) -> Uint8:
    """`front` laid over `back`, both sprites uint8 (h, w, 4) of solid things with soft edges."""
    cover = front[..., 3:].astype(np.float32) * (1 / 255)
    out = np.empty_like(back)
    colours = back[..., :3].astype(np.float32)
    # an edge over nothing keeps its colour
    share = np.where(back[..., 3:] == 0, np.float32(1) * (cover > 0), cover)
    out[..., :3] = colours + (front[..., :3] - colours) * share
    out[..., 3] = np.maximum(front[..., 3], back[..., 3])
    return out
