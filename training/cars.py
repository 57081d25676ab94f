"""Cars of the game TORCS (GPL-2+, Free Art License): bodies from its .acc files, wheels that turn.

The files are AC3D's text format with strips of triangles and normals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.actors import Posed, to_skin

WHEEL_RADIUS, WHEEL_WIDTH = 0.32, 0.2
STRIP = 4

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
Rng = np.random.Generator


@dataclass(frozen=True)
class Car:
    """body: what does not turn. hubs: float32 (4, 3), the middles of its wheels."""

    body: list[Posed]
    hubs: Float32


def read_body(file: Path) -> list[Posed]:
    """The textured pieces of an .acc file."""
    _, *objects = file.read_text(errors="replace").split("\nOBJECT ")
    pieces = (read_piece(words.splitlines(), file.parent) for words in objects)
    return [piece for piece in pieces if piece is not None]


def read_piece(words: list[str], folder: Path) -> Posed | None:
    """One object of an .acc file; None if it has no faces, or no skin in the folder."""
    lines = iter(words)
    skin: Path | None = None
    vertices, uv = np.zeros((0, 6), np.float32), np.zeros((0, 2), np.float32)
    faces: list[tuple[int, int, int]] = []
    flags = 0
    for line in lines:
        word, _, rest = line.partition(" ")
        if word == "texture" and skin is None:
            skin = folder / rest.split('"')[1]
        elif word == "numvert":
            rows = [next(lines).split() for _ in range(int(rest))]
            vertices = np.array([[*row, "0", "1", "0"][:6] for row in rows], np.float32)
            uv = np.zeros((len(rows), 2), np.float32)
        elif word == "SURF":
            flags = int(rest, 16)
        elif word == "refs":
            refs = [next(lines).split() for _ in range(int(rest))]
            ids = [int(ref[0]) for ref in refs]
            uv[ids] = [(float(ref[1]), float(ref[2])) for ref in refs]
            faces += strip(ids) if flags & 15 == STRIP else fan(ids)
    if skin is None or not skin.is_file() or not faces:
        return None
    paint = to_skin(Image.open(skin))
    paint[..., 3] = 255
    positions, normals = (np.ascontiguousarray(part) for part in np.split(vertices, 2, axis=1))
    return Posed(positions, normals, uv, np.array(faces, np.uint16), paint)


def strip(ids: list[int]) -> list[tuple[int, int, int]]:
    """Triangles of a strip."""
    return [(ids[i], ids[i + 1], ids[i + 2]) for i in range(len(ids) - 2)]


def fan(ids: list[int]) -> list[tuple[int, int, int]]:
    """Triangles of a polygon."""
    return [(ids[0], ids[i], ids[i + 1]) for i in range(1, len(ids) - 1)]


def read_car(folder: Path) -> Car:
    """The car of a folder of the game's ``cars/``."""
    words = (folder / f"{folder.name}.xml").read_text(errors="replace")

    def number(section: str, name: str, otherwise: float) -> float:
        found = re.search(rf'"{section}">.*?"{name}"[^>]*val="([-0-9.]+)".*?</section', words, re.S)
        return float(found[1]) if found else otherwise

    hubs = []
    for end, x in (("Front", 1.3), ("Rear", -1.3)):
        along = number(f"{end} Axle", "xpos", x)
        hubs += [
            (along, WHEEL_RADIUS, number(f"{end} {side} Wheel", "ypos", z))
            for side, z in (("Right", -0.75), ("Left", 0.75))
        ]
    return Car(read_body(folder / f"{folder.name}.acc"), np.array(hubs, np.float32))


def wheel_skin(rng: Rng) -> Uint8:
    """A dark tyre with spokes of some grey; uint8 (64, 64, 4)."""
    out = np.full((64, 64, 4), 255, np.uint8)
    out[..., :3] = rng.integers(15, 45)
    metal = [int(rng.integers(90, 230))] * 3
    for i in range(spokes := int(rng.integers(4, 9))):
        angle = 2 * np.pi * i / spokes
        end = (int(32 + 20 * np.cos(angle)), int(32 + 20 * np.sin(angle)))
        cv2.line(out, (32, 32), end, (*metal, 255), int(rng.integers(3, 8)))
    cv2.circle(out, (32, 32), 20, (*metal, 255), 3)
    return out


def wheel(hub: Float32, angle: float, skin: Uint8) -> Posed:
    """A wheel about its hub, turned by `angle`."""
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rim = np.stack([np.cos(t + angle), np.sin(t + angle)], -1) * WHEEL_RADIUS
    outward = 1.0 if hub[2] > 0 else -1.0
    sides = [np.column_stack([rim, np.full(24, z)]) for z in (-WHEEL_WIDTH / 2, WHEEL_WIDTH / 2)]
    middle = np.array([[0, 0, outward * WHEEL_WIDTH / 2]])
    positions = np.concatenate([*sides, middle]).astype(np.float32) + hub
    normals = np.concatenate(
        [np.column_stack([rim, np.full(24, 0.3 * outward)])] * 2 + [[[0, 0, outward]]]
    )
    flat = 0.5 + 0.5 * np.stack([np.cos(t), np.sin(t)], -1) * 0.98
    uv = np.concatenate([flat, flat, [[0.5, 0.5]]]).astype(np.float32)
    near = 24 if outward > 0 else 0
    faces = []
    for i in range(24):
        j = (i + 1) % 24
        faces += [(i, j, 24 + i), (j, 24 + j, 24 + i), (near + i, near + j, 48)]
    return Posed(positions, normals.astype(np.float32), uv, np.array(faces, np.uint16), skin)


def driven(rng: Rng, car: Car, phases: int) -> list[list[Posed]]:
    """The car as its wheels turn, phase by phase."""
    skin, spin = wheel_skin(rng), rng.normal(0, 0.7)
    return [car.body + [wheel(hub, spin * i, skin) for hub in car.hubs] for i in range(phases)]
