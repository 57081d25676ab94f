"""The objects of the demo clip: solids of revolution, textured, lit and drawn with exact coverage.

A toy is a half-width along its axis. That one shape makes a balloon, a ball, a pumpkin, a blimp
and, with its roundness turned down, a kite of cloth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo.landscape import Array, mix, noise, sample, smooth_step

STEPS, TURN = 256, 512
"""Rows (along the axis) and columns (once around it) of a toy's texture."""

SUPERSAMPLING = 4

SUN = np.array([-0.52, -0.66, 0.54], np.float32)  # x right, y down, z to the camera; length 1
VIEWER = np.array([0, 0, 1], np.float32)
HALFWAY = (SUN + VIEWER) / np.linalg.norm(SUN + VIEWER)


@dataclass(frozen=True)
class Toy:
    """A solid of revolution; lengths are in units of half its axis.

    `half_width` is (STEPS,) float32 from one end of the axis to the other, `albedo`
    (STEPS, TURN, 3) float32 in 0..1; `roundness` 1 is a solid, smaller is flatter.
    """

    half_width: Array
    albedo: Array
    roundness: float = 1.0
    gloss: float = 0.25


@dataclass(frozen=True)
class Pose:
    """Where a toy is: its centre (x, y) and half its axis in pixels, angles in radians.

    At angle 0 the axis points down; `spin` turns the toy about its axis; `stretch` scales its
    width.
    """

    x: float
    y: float
    half_axis: float
    angle: float = 0.0
    spin: float = 0.0
    stretch: float = 1.0


def draw(toy: Toy, pose: Pose, canvas: Array) -> NDArray[np.bool_]:
    """Put `toy` over `canvas`, (H, W, 3) float32 in 0..1; where it covers half a pixel or more.

    Returns (H, W) bool.
    """
    height, width = canvas.shape[:2]
    truth = np.zeros((height, width), np.bool_)
    outline = _outline(toy, pose)
    x0, y0 = (int(v) for v in np.maximum(np.floor(outline.min(axis=0)) - 1, 0))
    x1, y1 = (int(v) for v in np.minimum(np.ceil(outline.max(axis=0)) + 2, (width, height)))
    if x0 >= x1 or y0 >= y1:
        return truth
    covered = _coverage(outline - (x0, y0), x1 - x0, y1 - y0)
    crop = canvas[y0:y1, x0:x1]
    crop += (_shade(toy, pose, x0, y0, x1, y1) - crop) * covered[..., None]
    truth[y0:y1, x0:x1] = covered >= 0.5
    return truth


def _outline(toy: Toy, pose: Pose) -> NDArray[np.float64]:
    """The silhouette as a polygon in continuous pixels, (2 * STEPS, 2)."""
    axis = np.linspace(-1, 1, STEPS)
    along = np.concatenate([axis, axis[::-1]]) * pose.half_axis
    across = np.concatenate([toy.half_width, -toy.half_width[::-1]])
    across = across * pose.half_axis * pose.stretch
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    return np.stack(
        [pose.x + across * cos - along * sin, pose.y + across * sin + along * cos], axis=1
    )


def _coverage(outline: NDArray[np.float64], width: int, height: int) -> Array:
    """The share of each pixel inside the polygon, (height, width) float32 in 0..1."""
    fine = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    # Pillow's pixel centres are at integers, ours at halves.
    corners = (outline * SUPERSAMPLING - 0.5).ravel().tolist()
    ImageDraw.Draw(fine).polygon(corners, fill=255)
    return np.asarray(fine.reduce(SUPERSAMPLING), np.float32) / 255


def _shade(toy: Toy, pose: Pose, x0: int, y0: int, x1: int, y1: int) -> Array:
    """The lit surface in the window [x0, x1) × [y0, y1) of the frame, (rows, columns, 3)."""
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float32) + np.float32(0.5)
    x, y = (x - np.float32(pose.x)) / pose.half_axis, (y - np.float32(pose.y)) / pose.half_axis
    cos, sin = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
    step = np.clip((y * cos - x * sin + 1) / 2 * (STEPS - 1), 0, STEPS - 1)
    whole = step.astype(np.intp)
    slope = np.gradient(toy.half_width, 2 / (STEPS - 1)).astype(np.float32).clip(-3, 3)[whole]
    across = (x * cos + y * sin) / pose.stretch / np.maximum(toy.half_width[whole], 1e-3)
    across = np.clip(across, -1, 1)
    around = np.arcsin(across) / (2 * np.pi) + pose.spin / (2 * np.pi)
    albedo = sample(toy.albedo, step, around * TURN)
    out, tilt = across * toy.roundness, -slope * toy.roundness
    normal = np.stack([out * cos - tilt * sin, out * sin + tilt * cos, np.sqrt(1 - out**2)], axis=2)
    normal /= np.sqrt((normal**2).sum(axis=2, keepdims=True))
    return _light(albedo, normal, toy.gloss)


def _light(albedo: Array, normal: Array, gloss: float) -> Array:
    direct = np.clip(normal @ SUN, 0, 1)
    sky = mix((0.30, 0.31, 0.22), (0.46, 0.52, 0.64), (1 - normal[..., 1]) / 2)
    sunlight = np.array((0.86, 0.78, 0.62), np.float32) * direct[..., None]
    highlight = gloss * np.clip(normal @ HALFWAY, 0, 1) ** 40
    edge = 0.10 * (1 - normal[..., 2]) ** 3
    lit: Array = np.clip(albedo * (sky + sunlight) + (highlight + edge)[..., None], 0, 1)
    return lit


def _toy(
    half_width: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    paint: Callable[[Array, Array], Array],
    roundness: float = 1.0,
    gloss: float = 0.25,
) -> Toy:
    """A toy from its half-width over -1..1 and its paint over (along -1..1, around 0..2 pi)."""
    along, around = np.meshgrid(
        np.linspace(-1, 1, STEPS, dtype=np.float32),
        np.linspace(0, 2 * np.pi, TURN, endpoint=False, dtype=np.float32),
        indexing="ij",
    )
    width = half_width(np.linspace(-1, 1, STEPS)).astype(np.float32)
    return Toy(width, np.clip(paint(along, around), 0, 1), roundness, gloss)


@cache
def balloon() -> Toy:
    """A hot-air balloon: red and orange gores, a small basket close under it."""
    grain = noise(np.random.default_rng(11), (STEPS, TURN), (24, 48), 3)

    def width(s: NDArray[np.float64]) -> NDArray[np.float64]:
        head = np.sqrt(np.clip(0.68**2 - (s + 0.32) ** 2, 0, None))
        # From where the circle leans inwards by this slope, its tangent goes on to the basket.
        slope = 0.72
        lean = -0.32 + 0.68 * slope / np.hypot(1, slope)
        taper = np.clip(0.68 / np.hypot(1, slope) - slope * (s - lean), 0.13, None)
        basket = np.interp(s, [0.70, 0.74, 0.98, 1.0], [0.0, 0.16, 0.145, 0.12])
        return np.where(s < lean, head, np.maximum(taper * (s < 0.97), basket))

    def paint(along: Array, around: Array) -> Array:
        gores = smooth_step(np.sin(around * 6), -0.6, 0.6)
        colour = mix((0.66, 0.05, 0.10), (0.93, 0.28, 0.13), gores)
        colour = mix(colour, (0.97, 0.62, 0.22), 0.7 * smooth_step(-along, 0.72, 0.9))
        colour = mix(colour, (0.42, 0.10, 0.06), smooth_step(along, 0.60, 0.72))
        return colour * (1 + 0.10 * grain)[..., None]

    return _toy(width, paint, gloss=0.12)


@cache
def ball() -> Toy:
    """A beach ball: soft stripes of white and blue from pole to pole."""
    grain = noise(np.random.default_rng(12), (STEPS, TURN), (10, 20), 4)

    def paint(along: Array, around: Array) -> Array:
        stripes = smooth_step(np.sin(around * 4 + 0.6), -0.5, 0.5)
        colour = mix((0.10, 0.34, 0.80), (0.93, 0.95, 0.98), stripes)
        colour = mix(colour, (0.10, 0.34, 0.80), smooth_step(np.abs(along), 0.80, 0.92))
        return colour * (1 + 0.06 * grain)[..., None]

    return _toy(lambda s: np.sqrt(np.clip(1 - s * s, 0, None)), paint, gloss=0.55)


@cache
def pumpkin() -> Toy:
    """A pumpkin: deep ribs, a speckled skin and a stub of a stem."""
    speckle = noise(np.random.default_rng(13), (STEPS, TURN), (20, 60), 4)

    def width(s: NDArray[np.float64]) -> NDArray[np.float64]:
        body = 1.18 * np.clip(1 - np.abs((s - 0.12) / 0.88) ** 2.5, 0, None) ** 0.5
        stem = np.interp(s, [-1.0, -0.74, -0.6], [0.13, 0.17, 0.34])
        return np.where(s < -0.6, np.maximum(body, stem), body)

    def paint(along: Array, around: Array) -> Array:
        ribs = np.abs(np.sin(around * 6)) ** 0.7
        colour = mix((0.52, 0.17, 0.03), (0.98, 0.50, 0.08), ribs)
        colour = mix(colour, (0.80, 0.30, 0.05), 0.5 + 0.8 * speckle)
        return mix(colour, (0.34, 0.27, 0.10), smooth_step(-along, 0.66, 0.78))

    return _toy(width, paint, gloss=0.22)


@cache
def kite() -> Toy:
    """A kite: a diamond of yellow cloth with a soft band of a darker gold."""
    weave = noise(np.random.default_rng(14), (STEPS, TURN), (64, 128), 2)

    def width(s: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.interp(s, [-1.0, -0.25, 1.0], [0.02, 0.74, 0.02])

    def paint(along: Array, around: Array) -> Array:
        band = np.exp(-(((along + 0.25) / 0.28) ** 2))
        colour = mix((1.0, 0.86, 0.16), (0.93, 0.58, 0.06), band)
        spars = np.exp(-((np.sin(around) / 0.05) ** 2))
        colour = mix(colour, (0.80, 0.46, 0.05), 0.5 * spars)
        return colour * (1 + 0.08 * weave)[..., None]

    return _toy(width, paint, roundness=0.4, gloss=0.10)


@cache
def blimp() -> Toy:
    """A blimp: violet, a pale band along its side, fins at its tail."""
    panels = noise(np.random.default_rng(15), (STEPS, TURN), (16, 32), 2)

    def width(s: NDArray[np.float64]) -> NDArray[np.float64]:
        hull = 0.43 * np.clip(1 - np.abs((s + 0.08) / 0.92) ** 2.2, 0, None) ** 0.5
        hull = np.minimum(hull, np.interp(s, [0.1, 1.0], [0.43, 0.14]))
        fins = np.interp(s, [0.40, 0.72, 0.93, 1.0], [0.0, 0.26, 0.38, 0.28])
        return np.maximum(hull, fins)

    def paint(along: Array, around: Array) -> Array:
        band = smooth_step(np.cos(around - 0.15), 0.93, 0.985)
        colour = mix((0.40, 0.14, 0.58), (0.86, 0.72, 0.95), 0.75 * band)
        seams = np.exp(-((np.sin(along * 14) / 0.16) ** 2))
        return colour * (1 - 0.16 * seams + 0.12 * panels)[..., None]

    return _toy(width, paint, gloss=0.45)
