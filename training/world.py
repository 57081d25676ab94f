"""The procedural world: seeded clips of textured objects over moving backgrounds, with exact masks.

Everything is drawn from a `numpy.random.Generator`: the same generator state and bank give the same
clip. World coordinates are x in [0, aspect], y in [0, 1]; the picture is squeezed to a square as
the tracker squeezes its input, so round things become narrow in wide frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from training.assets import Bank
from training.sprites import (
    SPRITE,
    Film,
    Float32,
    Limb,
    Rng,
    Uint8,
    film,
    limbs,
    log_uniform,
    one_of,
    over,
    shrunk,
    sprite,
    texture,
)

ASPECTS = (16 / 9, 16 / 9, 4 / 3, 1.0, 9 / 16)
MOST_BLUR = 0.12
LEAD_SPEED = 3.0
FILMED = 0.7


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
    """One object: its sprite uint8 (side, side, 4), its way, and how its look changes on it.

    film: what it shows instead of the sprite, if it moves by itself.
    wobble: float32 (side, side, 2), the displacement in sprite pixels at full deflection, or None.
    turning: how much narrower it becomes as it turns away, and radians a unit of time.
    shadow: uint8 (side, side), blurred coverage, or None.
    """

    sprite: Uint8
    motion: Motion
    stretch: Float32
    limbs: tuple[Limb, ...] = ()
    wobble: Float32 | None = None
    wobble_speed: float = 0.0
    turning: tuple[float, float] = (0.0, 0.0)
    shadow: Uint8 | None = None
    shadow_offset: tuple[float, float] = (0.0, 0.0)
    film: Film | None = None

    def pose(self, t: float) -> Uint8:
        """What it looks like at time t, before it is placed; uint8 (side, side, 4)."""
        out = self.sprite if self.film is None else self.film.at(t)
        for limb in self.limbs:
            out = over(limb.at(t), out) if limb.in_front else over(out, limb.at(t))
        if self.wobble is None:
            return out
        side = out.shape[0]
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).astype(np.float32)
        grid += self.wobble * np.float32(np.sin(self.wobble_speed * t))
        x, y = cv2.split(grid)
        return np.asarray(cv2.remap(out, x, y, cv2.INTER_LINEAR), np.uint8)

    def placement(self, t: float) -> NDArray[np.float64]:
        """3x3 matrix from sprite pixels to world coordinates."""
        x, y, angle, log_size = (float(v) for v in self.motion.at(t))
        side = self.sprite.shape[0]
        narrower, rate = self.turning
        scale = np.exp(log_size) / side
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        stretch = self.stretch * np.array([1 - narrower * np.sin(rate * t) ** 2, 1.0])
        turn = np.array([[cos, -sin], [sin, cos]]) * stretch
        out = np.eye(3)
        out[:2, :2] = turn
        out[:2, 2] = np.array([x, y]) - turn @ np.array([side / 2, side / 2])
        return out


def shadow_of(picture: Uint8) -> Uint8:
    """The blurred coverage of a sprite (side, side, 4); uint8 (side, side)."""
    alpha = np.ascontiguousarray(picture[..., 3])
    return np.asarray(cv2.GaussianBlur(alpha, (0, 0), len(picture) * 0.04), np.uint8)


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


def player(rng: Rng, bank: Bank, aspect: float, speed: float, size: int, twin: Film | None) -> Body:
    """One object that moves by itself, mostly upright; `twin` is the film of one like it."""
    diameter = log_uniform(rng, 0.2, 1.1)
    side = int(np.clip(diameter * size, 24, SPRITE))
    own = film(rng, bank, side, speed)
    if twin is not None:
        own = replace(own, phases=twin.phases, colours=twin.colours)
    picture = own.at(0)
    way = motion(rng, aspect, speed, diameter)
    if rng.random() < 0.85:
        way.base[2] *= 0.1
        way.drift[2], way.sway[2] = 0.1 * way.drift[2], 0.3 * way.sway[2]
    shadow = shadow_of(picture) if rng.random() < 0.4 else None
    return Body(
        picture,
        way,
        np.exp(rng.normal(0, 0.08, 2)).astype(np.float32),
        shadow=shadow,
        shadow_offset=(float(rng.normal(0, 0.08)), float(rng.uniform(0, 0.1))),
        film=own,
    )


def body(
    rng: Rng, bank: Bank, aspect: float, speed: float, size: int, twin: Uint8 | None = None
) -> Body:
    """One random object for a picture of `size` pixels; `twin` is the sprite of one like it."""
    diameter = log_uniform(rng, 0.15, 0.9)
    side = int(np.clip(1.15 * diameter * size, 24, SPRITE))
    picture = twin if twin is not None else sprite(rng, bank, side)
    side = picture.shape[0]
    parts: list[Limb] = []
    if twin is None and rng.random() < 0.35:
        picture = shrunk(picture, 0.55)
        parts = limbs(rng, bank, picture)
    shadow = shadow_of(picture) if rng.random() < 0.25 else None
    return Body(
        picture,
        motion(rng, aspect, speed, diameter),
        np.exp(rng.normal(0, 0.15, 2)).astype(np.float32),
        tuple(parts),
        wobble_field(rng, side) if rng.random() < 0.6 else None,
        float(rng.uniform(2, 12) * speed),
        (
            float(rng.uniform(0, 0.6)) if rng.random() < 0.35 else 0.0,
            float(rng.uniform(1, 5)) * speed,
        ),
        shadow,
        (float(rng.normal(0, 0.06)), float(rng.uniform(0, 0.08))),
    )


def view(state: Float32, aspect: float, size: int) -> NDArray[np.float64]:
    """3x3 matrix from world coordinates to pixels of the squeezed square picture."""
    x, y, angle, log_zoom = (float(v) for v in state)
    zoom = np.exp(log_zoom)
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    to_centre = np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]])
    to_pixels = np.array([[size / aspect, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]])
    return np.asarray(to_pixels @ turn @ to_centre, np.float64)


def background(rng: Rng, bank: Bank, size: int, likes: list[Uint8]) -> Uint8:
    """What lies behind everything, at about the resolution it is seen at; uint8 (h, w, 3).

    Things that do not move stand about in it, some of them `likes`: sprites of objects.
    """
    height = int(size * rng.uniform(1.1, 1.8))
    if rng.random() < 0.15:
        return texture(rng, bank, height)
    photo = one_of(rng, bank.photos)
    rows = int(rng.uniform(0.3, 1) * photo.shape[0])
    cols = int(rng.uniform(0.3, 1) * photo.shape[1])
    top = int(rng.integers(0, photo.shape[0] - rows + 1))
    left = int(rng.integers(0, photo.shape[1] - cols + 1))
    crop = np.ascontiguousarray(photo[top : top + rows, left : left + cols])
    if rng.random() < 0.5:
        crop = np.ascontiguousarray(crop[:, ::-1])
    scene = np.asarray(cv2.resize(crop, (height, height), interpolation=cv2.INTER_AREA), np.uint8)
    if len(bank.grounds) and rng.random() < 0.45:
        lay(rng, scene, one_of(rng, bank.grounds))
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 8))):
            side = int(log_uniform(rng, 0.06, 0.4) * size)
            is_like = rng.random() < 0.3
            if is_like:
                thing = one_of(rng, likes)
            elif len(bank.films) and rng.random() < 0.5:
                thing = film(rng, bank, side, 0.0).at(0)
            else:
                thing = sprite(rng, bank, side)
            stand(rng, scene, thing, side)
    if rng.random() < 0.5:  # out of focus, as behind most things that are filmed
        sigma = rng.uniform(0.5, 3) * size / 256
        scene = np.asarray(cv2.GaussianBlur(scene, (0, 0), sigma), np.uint8)
    return scene


def lay(rng: Rng, scene: Uint8, ground: Uint8) -> None:
    """Lay ground (h, w, 3) in perspective over a background (H, W, 3), in place, to a horizon."""
    height, width = scene.shape[:2]
    horizon = int(height * rng.uniform(-0.3, 0.75))
    far = log_uniform(rng, 0.25, 1)
    rows, cols = ground.shape[:2]
    top = max(0, horizon)
    depth = np.arange(top, height, dtype=np.float32) - (horizon - 2)
    depth = (height - (horizon - 2)) / depth
    across = (np.arange(width, dtype=np.float32) - width / 2) * (cols / width / rng.uniform(0.7, 2))
    x = across[None] * depth[:, None] + np.float32(rng.uniform(0, cols))
    y = np.broadcast_to((depth * (rows / far))[:, None], x.shape) + np.float32(rng.uniform(0, rows))
    # a ground far away is a mean of many of its texels
    blurred = cv2.resize(ground, (cols // 4, rows // 4), interpolation=cv2.INTER_AREA)
    near = cv2.remap(ground, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    away = cv2.remap(blurred, x / 4, y / 4, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    share = np.clip(depth / 3 - 0.3, 0, 1)[:, None, None]
    scene[top:] = (near + (away.astype(np.float32) - near) * share).astype(np.uint8)


def stand(rng: Rng, scene: Uint8, thing: Uint8, side: int) -> None:
    """Draw a sprite at a random place of a background (h, w, 3), in place, `side` pixels large."""
    height, width = scene.shape[:2]
    small = cv2.resize(thing, (side, side), interpolation=cv2.INTER_AREA)
    top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
    patch = scene[top : top + side, left : left + side]
    cover = small[..., 3:].astype(np.float32) * (1 / 255)
    patch[:] = (patch + (small[..., :3] - patch.astype(np.float32)) * cover).astype(np.uint8)


def streak(shift: NDArray[np.float64], most: float) -> Float32 | None:
    """The kernel of motion blur along `shift` pixels, or None where it would not show."""
    length = float(min(np.hypot(*shift), most))
    if length < 1.5:
        return None
    side = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((side, side), np.float32)
    way = shift / np.hypot(*shift) * length / 2
    ends = [np.round((side // 2 + sign * way) * 16).astype(int) for sign in (-1, 1)]
    start, end = ((int(x), int(y)) for x, y in ends)
    cv2.line(kernel, start, end, 1.0, lineType=cv2.LINE_AA, shift=4)
    return np.asarray(kernel / kernel.sum(), np.float32)


def draw(
    frame: Uint8,
    labels: Uint8,
    index: int,
    thing: Body,
    t: float,
    to_pixels: NDArray[np.float64],
    later: NDArray[np.float64] | None = None,
) -> None:
    """Draw one object into frame (S, S, 3) and labels (S, S), in place.

    to_pixels: from the world at time t. later: from sprite pixels to where they are when the
    shutter closes, or None for a shutter that takes no time.
    """
    side, size = thing.sprite.shape[0], frame.shape[0]
    matrix = to_pixels @ thing.placement(t)
    centre = np.array([side / 2, side / 2, 1.0])
    shift = np.zeros(2) if later is None else ((later - matrix) @ centre)[:2]
    kernel = streak(shift, MOST_BLUR * size)
    margin = 0 if kernel is None else kernel.shape[0] // 2
    corners = np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1.0]]) @ matrix[:2].T
    left, top = (int(v) for v in np.clip(np.floor(corners.min(0)) - margin, 0, size))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(0)) + 1 + margin, 0, size))
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
    warped = cv2.warpAffine(thing.pose(t), local, extent, flags=cv2.INTER_LINEAR)
    cover = warped[..., 3:].astype(np.float32) * (1 / 255)
    light = warped[..., :3] * cover
    if kernel is not None:
        light = cv2.filter2D(light, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        cover = cv2.filter2D(cover, -1, kernel, borderType=cv2.BORDER_CONSTANT)[..., None]
    patch[:] = (patch * (1 - cover) + light).astype(np.uint8)
    labels[top:bottom, left:right][cover[..., 0] >= 0.5] = index


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
        if len(bank.films) and rng.random() < FILMED:
            like = things[-1].film if things and rng.random() < 0.3 else None
            things.append(player(rng, bank, aspect, speed, size, like))
            continue
        twin = things[-1].sprite if things and rng.random() < 0.12 else None
        things.append(body(rng, bank, aspect, speed, size, twin))
    return things


@dataclass(frozen=True)
class Camera:
    """A path of its own, and the object that it keeps in view, if any.

    share: how much of the lead's way it goes with it. shutter: how long a picture is exposed, in
    units of time.
    """

    path: Motion
    lead: Motion | None
    share: float
    shutter: float

    def to_pixels(self, t: float, aspect: float, size: int) -> NDArray[np.float64]:
        """3x3 matrix from the world at time t to pixels."""
        state = self.path.at(t)
        if self.lead is not None:
            state[:2] += self.share * (self.lead.at(t) - self.lead.at(0))[:2]
        return view(state, aspect, size)


def filmed(rng: Rng, aspect: float, speed: float, things: list[Body]) -> tuple[Camera, list[Body]]:
    """A camera, and the objects as it films them: one that it follows goes a longer way."""
    shutter = float(rng.uniform(0.2, 0.9)) if rng.random() < 0.5 else 0.0
    path = camera(rng, aspect, speed)
    if rng.random() < 0.6:
        return Camera(path, None, 0.0, shutter), things
    chosen = int(rng.integers(len(things)))
    way = things[chosen].motion
    way = replace(way, drift=way.drift * np.array([LEAD_SPEED, 1, 1, 1], np.float32))
    things = [*things[:chosen], replace(things[chosen], motion=way), *things[chosen + 1 :]]
    return Camera(path, way, float(rng.uniform(0.7, 1.05)), shutter), things


def render(rng: Rng, bank: Bank, size: int, frames: int, stride: float = 1.0) -> Clip:
    """A clip of `frames` pictures of size x size pixels, `stride` units of time apart."""
    aspect = one_of(rng, ASPECTS)
    speed = log_uniform(rng, 0.005, 0.08)
    things = cast(rng, bank, aspect, speed, size)
    scenery = background(rng, bank, size, [thing.sprite for thing in things])
    pan, things = filmed(rng, aspect, speed, things)
    glass = lens(rng, size)
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
        t, closing = i * stride, i * stride + pan.shutter
        to_pixels, later = (pan.to_pixels(at, aspect, size) for at in (t, closing))
        frame = scene_at(scenery, to_pixels @ to_world, later @ to_world, size)
        for k, thing in enumerate(things):
            moved = later @ thing.placement(closing)
            draw(frame, labels[i], k + 1, thing, t, to_pixels, moved)
        pictures[i] = glass.apply(rng, frame, t)
    return Clip(pictures, labels)


def scene_at(
    scenery: Uint8, matrix: NDArray[np.float64], later: NDArray[np.float64], size: int
) -> Uint8:
    """The background through the camera, blurred by its motion; uint8 (size, size, 3)."""
    frame = cv2.warpAffine(
        scenery,
        matrix[:2],
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    centre = np.array([scenery.shape[1] / 2, scenery.shape[0] / 2, 1.0])
    kernel = streak(((later - matrix) @ centre)[:2], MOST_BLUR * size)
    return np.asarray(frame if kernel is None else cv2.filter2D(frame, -1, kernel), np.uint8)
