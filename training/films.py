"""Films of what moves by itself: people, animals, carts, cars, seen by a camera that goes round.

Every film is one actor or car doing one thing, in a dozen phases, lit from one side, on nothing.
``python -m training.films`` draws them once, from the models of two games; training shows them in
the world. Pictures of grounds and skies that one of the games has are kept beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from training.actors import Actor, Archive, Posed, choose, dyed, posed
from training.assets import SCENE_COLOURS, colours, held_out, to_photo
from training.cars import driven, read_car
from training.packages import ACTORS, CARS, PEOPLE, fetch
from training.people import Models, acted
from training.raster import triangles
from training.sprites import one_of

PHASES = 12
SIZE = 192
SUPERSAMPLED = 2 * SIZE
# films of each kind of actor: people, riders, carts and ships; animals; things that stand still
KINDS = {"units": 1, "fauna": 7, "flora/trees": 1, "structures": 0.3, "geology": 0.5}
FILMS_OF_A_CAR = 16
DYED = 0.3
# and of the figures, by the first of these that their names start with
FIGURES = {
    "models/civilians": 40,
    "models/soldiers": 12,
    "models/pilots": 12,
    "models/aliens": 5,
    "models/animals": 8,
    "models/objects/cars": 4,
    "models/objects/vehicles": 4,
    "models/objects/aircraft": 2,
    "models": 1,
}

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
Rng = np.random.Generator


@dataclass(frozen=True)
class Orbit:
    """A camera's way round a thing; angles in radians, at phase i: start + step * i."""

    azimuth: float
    azimuth_step: float
    elevation: float
    elevation_step: float
    distance: float
    sun: Float32
    ambient: float

    def turn(self, phase: int) -> Float32:
        """float32 (3, 3), from the world to the camera: x right, y up, z to the camera."""
        a = self.azimuth + self.azimuth_step * phase
        e = self.elevation + self.elevation_step * phase
        ca, sa, ce, se = np.cos(a), np.sin(a), np.cos(e), np.sin(e)
        about = np.array([[ca, 0, -sa], [0, 1, 0], [sa, 0, ca]])
        tilt = np.array([[1, 0, 0], [0, ce, -se], [0, se, ce]])
        return (tilt @ about).astype(np.float32)


def orbit(rng: Rng) -> Orbit:
    """A random way, mostly from the height of the eyes."""
    sun = rng.normal(size=3) + np.array([0, 1.5, 0])
    return Orbit(
        rng.uniform(0, 2 * np.pi),
        rng.normal(0, 0.06),
        max(-0.1, rng.normal(0.15, 0.2)),
        rng.normal(0, 0.015),
        rng.uniform(2.0, 6),
        (sun / np.linalg.norm(sun)).astype(np.float32),
        rng.uniform(0.35, 0.8),
    )


def deed(rng: Rng, actor: Actor) -> list[list[Posed]]:
    """An actor doing something, phase by phase."""
    pick = rng.random()
    moves = sorted(actor.animations)
    move = one_of(rng, moves) if moves else ""
    start, step = rng.uniform(0, 1000), rng.uniform(1, 3)
    still = np.eye(4, dtype=np.float32)
    return [posed(actor, move, pick, start + step * i, still) for i in range(PHASES)]


def film(rng: Rng, scenes: list[list[Posed]]) -> Uint8 | None:
    """uint8 (12, 192, 192, 4) of what is in each phase's scene; None if that is not one thing."""
    way = orbit(rng)
    everything = np.concatenate([part.positions for scene in scenes for part in scene])
    low, high = np.percentile(everything, [0.5, 99.5], axis=0)
    centre, radius = (low + high) / 2, float(np.linalg.norm(high - low) / 2)
    if not np.isfinite(radius) or radius <= 0:
        return None
    pictures = []
    for i, scene in enumerate(scenes):
        one = whole(picture(scene, way, i, centre, radius))
        if one is None:
            return None
        pictures.append(one)
    fitted = fit(pictures)
    return None if fitted is None else np.stack(fitted)


def picture(scene: list[Posed], way: Orbit, phase: int, centre: Float32, radius: float) -> Uint8:
    """One phase; uint8 (384, 384, 4)."""
    out = np.zeros((SUPERSAMPLED, SUPERSAMPLED, 4), np.uint8)
    nearness = np.zeros((SUPERSAMPLED, SUPERSAMPLED), np.float32)
    turn = way.turn(phase)
    focal = SUPERSAMPLED / 2 * np.sqrt(way.distance**2 - 1)
    for part in scene:
        seen = (part.positions - centre) @ turn.T / radius
        distance = np.maximum(way.distance - seen[:, 2], 0.05)
        x = SUPERSAMPLED / 2 + focal * seen[:, 0] / distance
        y = SUPERSAMPLED / 2 - focal * seen[:, 1] / distance
        corners = np.stack([x, y, 1 / distance], -1).astype(np.float32)
        length = np.maximum(np.linalg.norm(part.normals, axis=1), 1e-6)
        lit = np.clip(part.normals @ way.sun / length, 0, 1)
        light = (way.ambient + (1.25 - way.ambient) * lit).astype(np.float32)
        triangles(out, nearness, corners, part.uv, light, part.faces, part.skin)
    return out


def whole(picture: Uint8) -> Uint8 | None:
    """The picture without what does not hang together with most of it.

    None if that is much, or if it is more of a net than a thing, as a bare tree is.
    """
    solid = (picture[..., 3] > 0).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    areas = stats[1:, cv2.CC_STAT_AREA]
    if len(areas) == 0 or areas.max() < 0.7 * areas.sum():
        return None
    picture[labels != 1 + int(np.argmax(areas))] = 0
    kernel = np.ones((SUPERSAMPLED // 24, SUPERSAMPLED // 24), np.uint8)
    closed = cv2.morphologyEx(picture[..., 3], cv2.MORPH_CLOSE, kernel)
    return picture if (picture[..., 3] > 0).sum() > 0.75 * (closed > 0).sum() else None


def fit(pictures: list[Uint8]) -> list[Uint8] | None:
    """Cut to what any phase covers and made to fill (192, 192, 4); None if it is too thin."""
    cover = np.max([p[..., 3] for p in pictures], axis=0) > 0
    rows, cols = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
    areas = [float((p[..., 3] > 0).sum()) for p in pictures]
    if len(rows) == 0 or min(areas) < 0.06 * cover.any(1).sum() * cover.any(0).sum():
        return None
    middle = np.array([cols[0] + cols[-1] + 1, rows[0] + rows[-1] + 1]) / 2
    scale = (SIZE - 6) / max(rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1)
    if scale > 3:
        return None
    matrix = np.array(
        [[scale, 0, SIZE / 2 - scale * middle[0]], [0, scale, SIZE / 2 - scale * middle[1]]]
    )
    return [placed(p, matrix) for p in pictures]


def placed(picture: Uint8, matrix: NDArray[np.float64]) -> Uint8:
    """A picture with hard edges (384, 384, 4) -> (192, 192, 4) with soft ones."""
    cover = picture[..., 3:].astype(np.float32) / 255
    soft = np.dstack([picture[..., :3] * cover, cover * 255]).astype(np.float32)
    double = matrix * 2
    big = cv2.warpAffine(soft, double, (2 * SIZE, 2 * SIZE), flags=cv2.INTER_LINEAR)
    small = cv2.resize(big, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    alpha = small[..., 3:]
    small[..., :3] *= 255 / np.maximum(alpha, 1)
    return np.clip(small, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Subject:
    """What films are made of: an actor's or a figure's name in an archive, or a car's folder."""

    source: Path
    name: str
    count: float

    def shoot(self) -> list[Uint8]:
        """`count` films on average, each with looks, a deed and a camera of its own."""
        rng = np.random.default_rng([*self.name.encode()])
        count = int(self.count) + int(rng.random() < self.count % 1)
        scenes = (self.scenes(rng) for _ in range(count))
        shots = (film(rng, one) for one in scenes if one is not None)
        return [shot for shot in shots if shot is not None]

    def scenes(self, rng: Rng) -> list[list[Posed]] | None:
        """What is in front of the camera in each phase; None if there is nothing to see."""
        if self.source.is_dir():
            return driven(rng, _car(self.source), PHASES)
        if self.source.suffix == ".pk3":
            figure = _models(self.source).figure(self.name)
            return None if figure is None else acted(rng, figure, PHASES)
        try:
            actor = choose(_archive(self.source), rng, self.name)
        except (KeyError, ValueError, OSError):  # it names files that are not there
            return None
        if actor is None:
            return None
        if rng.random() < DYED:
            actor.skin = dyed(rng, actor.skin)
        return deed(rng, actor)


_car = lru_cache(maxsize=1)(read_car)
_archive = lru_cache(maxsize=1)(Archive)
_models = lru_cache(maxsize=1)(Models)


def subjects(archive: Path, cars: Path, models: Path) -> list[Subject]:
    """Everything that is filmed."""
    actors = [
        Subject(archive, name, count)
        for kind, count in KINDS.items()
        for name in _archive(archive).actors(kind)
    ]
    driving = [Subject(f, f.name, FILMS_OF_A_CAR) for f in sorted(cars.iterdir()) if f.is_dir()]
    figures = [
        Subject(models, name, next(n for start, n in FIGURES.items() if name.startswith(start)))
        for name in _models(models).figures()
    ]
    return actors + driving + figures


def films(everything: list[Subject]) -> Iterator[tuple[str, Uint8]]:
    """(name of the subject, film), drawn by as many processes as there are cores."""
    with get_context("spawn").Pool() as pool:
        drawn = pool.imap(Subject.shoot, everything, chunksize=8)
        for subject, shots in zip(everything, drawn, strict=True):
            yield from ((subject.name, shot) for shot in shots)


def grounds(archive: Path) -> Iterator[tuple[str, Uint8]]:
    """(name, uint8 (384, 512, 3)) of the grounds of the archive that are of many colours."""
    for name, picture in _archive(archive).grounds():
        photo = to_photo(picture)
        if colours(photo) >= SCENE_COLOURS:
            yield name, photo


def save(kind: str, named: Iterable[tuple[str, Uint8]], out: Path) -> dict[str, int]:
    """Write {kind}_{split}.npy to `out`; return how many there are of each split."""
    kept: dict[str, list[Uint8]] = {f"{kind}_train": [], f"{kind}_held_out": []}
    for name, array in named:
        kept[f"{kind}_{'held_out' if held_out(name) else 'train'}"].append(array)
    out.mkdir(parents=True, exist_ok=True)
    for key, arrays in kept.items():
        np.save(out / f"{key}.npy", np.stack(arrays))
    return {key: len(arrays) for key, arrays in kept.items()}


def main() -> None:
    """Command line: draw the films, and keep the grounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--debian", type=Path, default=Path("training/runs/pictures"))
    parser.add_argument("--out", type=Path, default=Path("training/runs/bank"))
    args = parser.parse_args()
    actors, cars, people = fetch(args.debian, (ACTORS, CARS, PEOPLE))
    archive = actors / "public.zip"
    counts = save("grounds", grounds(archive), args.out)
    counts |= save("films", films(subjects(archive, cars, people / "0models.pk3")), args.out)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
