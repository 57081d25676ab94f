"""The background of the demo clip: hills at golden hour in layers that a panning camera passes.

Everything is drawn once, as strips wider than the frame; a frame only shifts the strips, the near
ones further than the far ones. Lengths are pixels of a 480 pixel high frame times `scale`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.floating]
"""Floats; float32 wherever there are many."""

DESIGN_HEIGHT = 480
"""Height, in pixels, of the frame that the lengths of the scene are written for."""

PAN = 300.0
"""How far the camera moves during the clip: pixels at the speed 1, the foot of the pumpkin."""

HORIZON, FOREGROUND_SPEED = 268.0, 1.1

BAND = 32  # rows drawn at a time: what is in work stays in the processor's cache


@dataclass(frozen=True)
class Layer:
    """A strip of the landscape and how fast it passes.

    `strip` is (rows, columns, 4) float32 in 0..1, red, green and blue multiplied by alpha, the
    last; `speed` is (rows,), pixels of shift per pixel of pan; `top` is the frame's row of row 0.
    """

    top: int
    strip: Array
    speed: Array

    def draw(self, canvas: Array, pan: float) -> None:
        """Put the layer over `canvas`, (height, width, 3) float32, for a pan in pixels."""
        rows, columns = self.strip.shape[:2]
        shift = self.speed * np.float32(pan)
        whole = np.floor(shift).astype(np.intp)
        part = (shift - whole)[:, None, None]
        start = (np.arange(rows) * columns + whole)[:, None]
        # One column more than the frame is wide: a fraction of a pixel mixes two neighbours.
        across = np.arange(canvas.shape[1] + 1)
        pixels = self.strip.reshape(-1, 4)
        for first in range(0, rows, BAND):
            band = slice(first, min(first + BAND, rows))
            seen = pixels.take(start[band] + across, axis=0)
            seen = seen[:, :-1] + (seen[:, 1:] - seen[:, :-1]) * part[band]
            below = canvas[self.top : self.top + rows][band]
            below *= 1 - seen[..., 3:]
            below += seen[..., :3]


def noise(
    rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int], octaves: int = 4
) -> Array:
    """Smooth noise that repeats seamlessly, (rows, columns) float32, mean about 0, within -1..1.

    `cells` is the number of bumps of the coarsest octave along rows and columns.
    """
    total = np.zeros(shape, np.float32)
    weight = 1.0
    for octave in range(octaves):
        grid = [min(n * 2**octave, size) for n, size in zip(cells, shape, strict=True)]
        wrapped = np.pad(rng.uniform(-1, 1, grid).astype(np.float32), 2, mode="wrap")
        picture = Image.fromarray(wrapped).resize(
            shape[::-1],
            Image.Resampling.BICUBIC,
            box=(2, 2, grid[1] + 2, grid[0] + 2),
        )
        total += weight * np.asarray(picture)
        weight /= 2
    total /= 2 - 2 * weight
    return total


def sample(texture: Array, row: Array, column: Array) -> Array:
    """Bilinear look-up in a texture that repeats: (H, W, …) at float positions of any shape."""
    height, width = texture.shape[:2]
    flat = texture.reshape(height * width, -1)
    r0, c0 = np.floor(row).astype(np.int32), np.floor(column).astype(np.int32)
    r, c = (row - r0)[..., None], (column - c0)[..., None]
    r0, r1 = r0 % height * width, (r0 + 1) % height * width
    c0, c1 = c0 % width, (c0 + 1) % width
    upper = flat[r0 + c0] * (1 - c) + flat[r0 + c1] * c
    lower = flat[r1 + c0] * (1 - c) + flat[r1 + c1] * c
    looked_up: Array = upper * (1 - r) + lower * r
    return looked_up


def smooth_step(x: Array, low: float, high: float) -> Array:
    """0 below `low`, 1 above `high`, and a smooth way between."""
    x = np.clip((x - low) / (high - low), 0, 1)
    return x * x * (3 - 2 * x)


def mix(a: Sequence[float] | Array, b: Sequence[float] | Array, amount: Array) -> Array:
    """From colour `a` to colour `b`: (…, 3) for amounts of shape (…)."""
    first, second = np.asarray(a, np.float32), np.asarray(b, np.float32)
    return first + (second - first) * amount[..., None]


def landscape(width: int, height: int) -> list[Layer]:
    """The layers of the background, the farthest first."""
    scale = height / DESIGN_HEIGHT
    rng = np.random.default_rng(7)
    return [
        _sky(rng, width, height, scale),
        _ridge(rng, width, scale, (185, 300), (0.50, 0.56, 0.70), (0.74, 0.72, 0.76), 0.10, 7),
        _ridge(rng, width, scale, (222, 300), (0.36, 0.50, 0.52), (0.62, 0.68, 0.58), 0.22, 5),
        _ridge(rng, width, scale, (248, 305), (0.15, 0.31, 0.22), (0.30, 0.43, 0.24), 0.40, 6, 5.0),
        _meadow(rng, width, height, scale),
    ]


def _layer(top: int, colour: Array, alpha: Array, speed: NDArray[np.floating]) -> Layer:
    colour = np.clip(colour, 0, 1) * alpha[..., None]
    return Layer(top, np.concatenate([colour, alpha[..., None]], axis=2), speed.astype(np.float32))


def _strip_width(width: int, scale: float, speed: float) -> int:
    return width + int(PAN * scale * speed) + 3


def _sky(rng: np.random.Generator, width: int, height: int, scale: float) -> Layer:
    speed, rows = 0.04, min(height, int(300 * scale))
    columns = _strip_width(width, scale, speed)
    y = np.linspace(0, 1, rows, dtype=np.float32)[:, None] * np.ones((1, columns), np.float32)
    x = np.arange(columns, dtype=np.float32)[None] / width
    colour = mix((0.30, 0.55, 0.86), (0.72, 0.84, 0.92), smooth_step(y, 0.0, 0.75))
    colour = mix(colour, (1.0, 0.88, 0.70), 0.85 * smooth_step(y, 0.45, 1.0))
    glow = np.exp(-((x - 0.06) ** 2 / 0.06 + (y - 0.55) ** 2 / 0.16))
    colour = mix(colour, (1.0, 0.94, 0.78), 0.6 * glow)
    puffs = noise(rng, (rows, columns), (5, 6), 5)
    lit = puffs - np.roll(puffs, int(6 * scale), axis=0)  # clouds are brighter on their upper side
    cover = 0.75 * smooth_step(puffs + 0.25 * (y - 0.4), 0.08, 0.5)
    colour = mix(colour, mix((0.90, 0.88, 0.90), (1.0, 0.98, 0.95), 0.5 + 2 * lit), cover)
    return _layer(0, colour, np.ones((rows, columns), np.float32), np.full(rows, speed))


def _ridge(
    rng: np.random.Generator,
    width: int,
    scale: float,
    rows: tuple[int, int],
    crest: Sequence[float],
    foot: Sequence[float],
    speed: float,
    hills: int,
    trees: float = 0.0,
) -> Layer:
    """A chain of hills between two rows, its foot in haze; `trees` roughen its outline, pixels."""
    columns = _strip_width(width, scale, speed)
    top, bottom = (int(row * scale) for row in rows)
    line = noise(rng, (1, columns), (1, hills), 5)[0]
    line = (line - line.min()) / (line.max() - line.min()) * (bottom - top) * 0.45
    line += trees * scale * (noise(rng, (1, columns), (1, columns // max(int(7 * scale), 2)), 2)[0])
    y = np.arange(bottom - top, dtype=np.float32)[:, None]
    alpha = np.clip(y - line - 2, 0, 1)
    depth = (y - line) / (bottom - top)
    rough = noise(rng, (bottom - top, columns), (4, hills * 8), 4)
    slope = np.gradient(line)[None] / max(scale, 0.3)
    light = 1 + 0.22 * rough - 0.10 * np.clip(slope, -1.5, 1.5)
    colour = mix(crest, foot, smooth_step(depth, 0.0, 0.9)) * light[..., None]
    return _layer(top, colour, alpha, np.full(bottom - top, speed))


def _meadow(rng: np.random.Generator, width: int, height: int, scale: float) -> Layer:
    top = int(HORIZON * scale)
    columns = _strip_width(width, scale, FOREGROUND_SPEED)
    nearness = np.linspace(0, 1, height - top, dtype=np.float32)
    speed = 0.45 + (FOREGROUND_SPEED - 0.45) * nearness
    across = np.arange(columns, dtype=np.float32)[None] / scale / speed[:, None]
    away = np.broadcast_to(900 / speed[:, None], across.shape)
    patches = sample(noise(rng, (256, 256), (4, 4), 4), away / 4, across / 6)[..., 0]
    tufts = sample(noise(rng, (512, 512), (64, 96), 3), away * 1.1, across * 1.6)[..., 0]
    colour = mix((0.36, 0.52, 0.18), (0.66, 0.72, 0.30), 0.5 + 0.9 * patches)
    colour = mix(colour, (0.74, 0.74, 0.44), 0.6 * (1 - smooth_step(nearness, 0.0, 0.45))[:, None])
    colour *= (1 + (0.10 + 0.28 * nearness[:, None]) * tufts)[..., None]
    colour *= (1.04 - 0.16 * nearness)[:, None, None]
    _flowers(rng, colour, nearness, scale)
    rise = noise(rng, (1, columns), (1, 4), 2)[0] * 5 * scale + 6 * scale
    alpha = np.clip(np.arange(height - top, dtype=np.float32)[:, None] - rise, 0, 1)
    return _layer(top, colour, alpha, speed)


def _flowers(rng: np.random.Generator, colour: Array, nearness: Array, scale: float) -> None:
    rows, columns = colour.shape[:2]
    petals = ((0.98, 0.95, 0.86), (0.98, 0.84, 0.36), (0.90, 0.62, 0.66))
    for _ in range(170):
        row, column = int(rows * rng.uniform(0.2, 1) ** 0.8), int(rng.integers(columns))
        petal, size = petals[rng.integers(3)], scale * (0.5 + 1.7 * row / rows)
        reach = int(3 * size) + 1
        y0, y1 = max(row - reach, 0), min(row + reach + 1, rows)
        x0, x1 = max(column - reach, 0), min(column + reach + 1, columns)
        y, x = np.ogrid[y0:y1, x0:x1]
        distance = np.hypot((y - row) * 1.6, x - column).astype(np.float32)
        amount = 0.85 * np.clip(size - distance + 0.5, 0, 1)
        colour[y0:y1, x0:x1] = mix(colour[y0:y1, x0:x1], petal, amount)
