"""The procedural world: seeded clips of textured objects over moving backgrounds, with exact masks.

Everything is drawn from a `numpy.random.Generator`: the same generator state and bank give the same
clip. World coordinates are x in [0, aspect], y in [0, 1]; the picture is squeezed to a square as
the tracker squeezes its input, so round things become narrow in wide frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from training.assets import Bank

cv2.setNumThreads(0)

SPRITE = 160
ASPECTS = (16 / 9, 16 / 9, 4 / 3, 1.0, 9 / 16)

Uint8 = NDArray[np.uint8]
Float32 = NDArray[np.float32]
Rng = np.random.Generator


@dataclass(frozen=True)
class Clip:
    """frames: uint8 (T, S, S, 3), RGB. labels: uint8 (T, S, S), 0 background, k the k-th object.

    `labels == k` is what is visible of object k: a pixel belongs to the front-most object whose
    coverage there is at least one half.
    """

    frames: Uint8
    labels: Uint8


@dataclass(frozen=True)
class Motion:
    """A path: base + drift * t + sway * sin(frequency * t + phase), for (x, y, angle, log size)."""

    base: Float32
    drift: Float32
    sway: Float32
    frequency: Float32
    phase: Float32

    def at(self, t: float) -> Float32:
        """(x, y, angle, log size) at time t, float32 (4,)."""
        swing = self.sway * np.sin(self.frequency * t + self.phase)
        return np.asarray(self.base + self.drift * t + swing, np.float32)


@dataclass(frozen=True)
class Body:
    """One object: its sprite uint8 (h, w, 4), its way, its squash, its wobble and its shadow.

    wobble: float32 (h, w, 2), the displacement in sprite pixels at full deflection, or None.
    shadow: uint8 (h, w), blurred coverage, or None.
    """

    sprite: Uint8
    motion: Motion
    stretch: Float32
    wobble: Float32 | None
    wobble_speed: float
    shadow: Uint8 | None
    shadow_offset: tuple[float, float]


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A number between low and high, uniform in its logarithm."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


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
    kind = rng.random()
    if kind < 0.55:
        return photo_texture(rng, bank.photos[int(rng.integers(len(bank.photos)))], size)
    if kind < 0.75:
        return noise_texture(rng, size)
    return pattern_texture(rng, size) if kind < 0.83 else plain_texture(rng, size)


def skin(rng: Rng, bank: Bank, size: int) -> Uint8:
    """What covers an object; uint8 (size, size, 3).

    Mostly a texture under a colour of its own: things that a person would point at differ from
    what is around them, and one click on a photograph's crop over another could mean anything.
    """
    base = texture(rng, bank, size)
    return tinted(rng, base, rng.uniform(0.5, 0.9)) if rng.random() < 0.9 else base


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
    cover = skin(rng, bank, side)
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
    sprite = np.array(bank.cutouts[int(rng.integers(len(bank.cutouts)))])
    sprite = np.asarray(cv2.resize(sprite, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
    if rng.random() < 0.5:
        sprite = np.ascontiguousarray(sprite[:, ::-1])
    kind = rng.random()
    if kind < 0.35:
        sprite[..., :3] = skin(rng, bank, side)
    elif kind < 0.8:
        sprite[..., :3] = tinted(rng, sprite[..., :3], rng.uniform(0.3, 0.7))
    elif kind < 0.85:
        mix = rng.uniform(0.3, 0.7)
        sprite[..., :3] = cv2.addWeighted(
            np.ascontiguousarray(sprite[..., :3]), mix, texture(rng, bank, side), 1 - mix, 0
        )
    else:
        gain = (rng.uniform(0.6, 1.2, 3) if rng.random() < 0.5 else np.ones(3)).astype(np.float32)
        order = rng.permutation(3) if rng.random() < 0.5 else np.arange(3)
        sprite[..., :3] = np.clip(sprite[..., :3][..., order] * gain, 0, 255).astype(np.uint8)
    return shade(rng, sprite)


def wobble_field(rng: Rng, size: int) -> Float32:
    """A smooth displacement of up to about a tenth of the sprite; float32 (size, size, 2)."""
    grid = rng.normal(0, size * rng.uniform(0.01, 0.06), (4, 4, 2)).astype(np.float32)
    return np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


def motion(rng: Rng, aspect: float, speed: float, diameter: float) -> Motion:
    """A path that starts in or near the frame; one in six leaves the frame and comes back."""
    base = np.array(
        [
            rng.uniform(0.08, 0.92) * aspect,
            rng.uniform(0.08, 0.92),
            rng.normal(0, 0.4) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi),
            np.log(diameter),
        ]
    )
    drift = np.array(
        [*rng.normal(0, 0.7 * speed, 2), rng.normal(0, speed), rng.normal(0, 0.3 * speed)]
    )
    sway = np.array([*np.abs(rng.normal(0, 0.08, 2)), rng.normal(0, 0.2), rng.normal(0, 0.12)])
    frequency = rng.uniform(2, 8, 4) * speed
    if rng.random() < 0.17:
        sway[0], drift[:2] = rng.uniform(0.6, 1.1) * aspect, 0
        frequency[0] = rng.uniform(1, 4) * speed / sway[0] + 0.05
    phase = rng.uniform(0, 2 * np.pi, 4)
    base[:2] -= (sway * np.sin(phase))[:2]
    return Motion(*(a.astype(np.float32) for a in (base, drift, sway, frequency, phase)))


def camera(rng: Rng, aspect: float, speed: float) -> Motion:
    """The path of the view's centre, its roll and its log zoom."""
    still = rng.random() < 0.3
    amount = 0.0 if still else speed
    base = np.array([aspect / 2, 0.5, 0, 0])
    drift = np.array(
        [*rng.normal(0, 0.5 * amount, 2), rng.normal(0, 0.1 * amount), rng.normal(0, 0.2 * amount)]
    )
    shake = 0.0 if still else log_uniform(rng, 0.001, 0.02)
    sway = np.array([*rng.normal(0, shake, 2), rng.normal(0, shake), rng.normal(0, shake)])
    return Motion(
        *(a.astype(np.float32) for a in (base, drift, sway, rng.uniform(0.5, 2.5, 4), np.zeros(4)))
    )


def body(
    rng: Rng, bank: Bank, aspect: float, speed: float, size: int, sprite: Uint8 | None = None
) -> Body:
    """One random object for a picture of `size` pixels; `sprite` makes it a twin of another."""
    diameter = log_uniform(rng, 0.22, 0.75)
    if sprite is None:
        use_cutout = len(bank.cutouts) > 0 and rng.random() < 0.5
        side = int(np.clip(1.15 * diameter * size, 20, SPRITE))
        sprite = (cutout_sprite if use_cutout else shape_sprite)(rng, bank, side)
    side = sprite.shape[0]
    shadow = None
    if rng.random() < 0.25:
        shadow = np.asarray(
            cv2.GaussianBlur(np.ascontiguousarray(sprite[..., 3]), (0, 0), side * 0.04), np.uint8
        )
    stretch = np.exp(rng.normal(0, 0.15, 2)).astype(np.float32)
    return Body(
        sprite,
        motion(rng, aspect, speed, diameter),
        stretch,
        wobble_field(rng, side) if rng.random() < 0.6 else None,
        float(rng.uniform(2, 12) * speed),
        shadow,
        (float(rng.normal(0, 0.06)), float(rng.uniform(0, 0.08))),
    )


def placement(state: Float32, stretch: Float32, side: int) -> NDArray[np.float64]:
    """3x3 matrix from sprite pixels to world coordinates."""
    x, y, angle, log_size = (float(v) for v in state)
    scale = np.exp(log_size) / side
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    turn = np.array([[cos, -sin], [sin, cos]]) * stretch
    out = np.eye(3)
    out[:2, :2] = turn
    out[:2, 2] = np.array([x, y]) - turn @ np.array([side / 2, side / 2])
    return out


def view(state: Float32, aspect: float, size: int) -> NDArray[np.float64]:
    """3x3 matrix from world coordinates to pixels of the squeezed square picture."""
    x, y, angle, log_zoom = (float(v) for v in state)
    zoom = np.exp(log_zoom)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    to_centre = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]])
    to_pixels = np.array([[size / aspect, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]])
    return np.asarray(to_pixels @ turn @ to_centre, np.float64)


def background(rng: Rng, bank: Bank, size: int) -> Uint8:
    """What lies behind everything, at about the resolution it is seen at; uint8 (h, w, 3)."""
    margin = rng.uniform(1.1, 1.8)
    height = int(size * margin)
    if rng.random() < 0.25:
        return texture(rng, bank, height)
    photo = bank.photos[int(rng.integers(len(bank.photos)))]
    rows = int(rng.uniform(0.3, 1) * photo.shape[0])
    cols = int(rng.uniform(0.3, 1) * photo.shape[1])
    top = int(rng.integers(0, photo.shape[0] - rows + 1))
    left = int(rng.integers(0, photo.shape[1] - cols + 1))
    crop = np.ascontiguousarray(photo[top : top + rows, left : left + cols])
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    scene = np.asarray(cv2.resize(crop, (height, height), interpolation=cv2.INTER_AREA), np.uint8)
    if rng.random() < 0.7:  # out of focus, as behind most things that are filmed
        scene = np.asarray(
            cv2.GaussianBlur(scene, (0, 0), rng.uniform(1, 4) * size / 256), np.uint8
        )
    return scene


def draw(
    frame: Uint8, labels: Uint8, index: int, thing: Body, t: float, to_pixels: NDArray[np.float64]
) -> None:
    """Draw one object into frame (S, S, 3) and labels (S, S), in place."""
    sprite, side, size = thing.sprite, thing.sprite.shape[0], frame.shape[0]
    matrix = to_pixels @ placement(thing.motion.at(t), thing.stretch, side)
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1.0]]) @ matrix[:2].T
    left, top = (int(v) for v in np.clip(np.floor(corners.min(0)), 0, size))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(0)) + 1, 0, size))
    if right - left < 1 or bottom - top < 1:
        return
    local = matrix[:2].copy()
    local[:, 2] -= (left, top)
    extent = (right - left, bottom - top)
    patch = frame[top:bottom, left:right]
    if thing.shadow is not None:
        moved = local.copy()
        moved[:, 2] += np.array(thing.shadow_offset) * size * np.exp(thing.motion.at(t)[3])
        dark = cv2.warpAffine(thing.shadow, moved, extent)[..., None].astype(np.float32)
        patch[:] = (patch * (1 - dark * (0.5 / 255))).astype(np.uint8)
    if thing.wobble is not None:
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).astype(np.float32)
        grid += thing.wobble * np.float32(np.sin(thing.wobble_speed * t))
        x, y = cv2.split(grid)
        sprite = np.asarray(cv2.remap(sprite, x, y, cv2.INTER_LINEAR), np.uint8)
    warped = cv2.warpAffine(sprite, local, extent, flags=cv2.INTER_LINEAR)
    cover = warped[..., 3:].astype(np.float32) * (1 / 255)
    patch[:] = (patch + (warped[..., :3] - patch.astype(np.float32)) * cover).astype(np.uint8)
    labels[top:bottom, left:right][warped[..., 3] >= 128] = index


@dataclass(frozen=True)
class Lens:
    """What happens to a picture after it is drawn; constant through a clip but for the drift."""

    gain: Float32
    drift: float
    blur: float
    noise: float
    quality: int

    def apply(self, rng: Rng, frame: Uint8, t: float) -> Uint8:
        """uint8 (S, S, 3) -> uint8 (S, S, 3)."""
        if self.blur > 0:
            frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), self.blur), np.uint8)
        out = frame * (self.gain * np.float32(1 + self.drift * np.sin(0.7 * t)))
        if self.noise > 0:
            out += self.noise * rng.standard_normal(out.shape, dtype=np.float32)
        frame = np.clip(out, 0, 255).astype(np.uint8)
        if self.quality < 100:
            _, code = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            frame = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
        return frame


def lens(rng: Rng, size: int) -> Lens:
    """A random lens: exposure, colour cast, flicker, blur, noise, compression."""
    gain = rng.uniform(0.7, 1.15) * np.exp(rng.normal(0, 0.05, 3))
    return Lens(
        gain.astype(np.float32),
        float(abs(rng.normal(0, 0.05))),
        float(rng.uniform(0.3, 1.2) * size / 256) if rng.random() < 0.35 else 0.0,
        float(rng.uniform(1, 6)) if rng.random() < 0.4 else 0.0,
        int(rng.integers(30, 95)) if rng.random() < 0.3 else 100,
    )


def cast(rng: Rng, bank: Bank, aspect: float, speed: float, size: int) -> list[Body]:
    """Two to four objects, back to front; sometimes two of them are twins."""
    things: list[Body] = []
    for _ in range(int(rng.integers(2, 5))):
        twin = things[-1].sprite if things and rng.random() < 0.06 else None
        things.append(body(rng, bank, aspect, speed, size, twin))
    return things


def render(rng: Rng, bank: Bank, size: int, frames: int, stride: float = 1.0) -> Clip:
    """A clip of `frames` pictures of size x size pixels, `stride` units of time apart."""
    aspect = float(ASPECTS[int(rng.integers(len(ASPECTS)))])
    speed = log_uniform(rng, 0.004, 0.05)
    things, scenery = cast(rng, bank, aspect, speed, size), background(rng, bank, size)
    pan, glass = camera(rng, aspect, speed), lens(rng, size)
    cover = 1.05 * max(1.0, scenery.shape[0] / size / 1.4)
    to_world = np.array(
        [
            [aspect * cover / scenery.shape[1], 0, aspect * (1 - cover) / 2],
            [0, cover / scenery.shape[0], (1 - cover) / 2],
            [0, 0, 1.0],
        ]
    )
    pictures = np.empty((frames, size, size, 3), np.uint8)
    labels = np.zeros((frames, size, size), np.uint8)
    for i in range(frames):
        to_pixels = view(pan.at(i * stride), aspect, size)
        frame = np.asarray(
            cv2.warpAffine(
                scenery,
                (to_pixels @ to_world)[:2],
                (size, size),
                flags=cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REFLECT_101,
            ),
            np.uint8,
        )
        for k, thing in enumerate(things):
            draw(frame, labels[i], k + 1, thing, i * stride, to_pixels)
        pictures[i] = glass.apply(rng, frame, i * stride)
    return Clip(pictures, labels)
