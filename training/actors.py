"""Animated things with a skeleton, from the models of the game 0 A.D. (CC BY-SA 3.0).

An actor is an XML file that names meshes, skins, animations and further actors attached to it: a
horse with its mane, reins and rider. Meshes and animations are read as the game keeps them in its
archive: ``.pmd`` (vertices, weights of bones, points to attach things to) and ``.psa`` (where every
bone is, frame by frame). The formats are those of ``source/graphics/ModelDef.cpp`` and
``SkeletonAnimDef.cpp`` of the game.
"""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.sprites import one_of

TEXTURE = 512
NO_BONE = 255
GARMENTS = 5
DEEPEST = 4  # an actor on an actor, as a sword in the hand of the rider of a horse
GROUNDS = ("art/textures/terrain/", "art/textures/skies/")
# of normals, of gloss, of height: no pictures
MAPS = ("_norm", "_normal", "_n", "_nm", "_spec", "_s", "_parallax", "_ao")

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
Rng = np.random.Generator


@dataclass(frozen=True)
class Mesh:
    """positions, normals: float32 (V, 3). uv: float32 (V, 2). bones: uint8 (V, 4), 255 for none.

    weights: float32 (V, 4). faces: uint16 (F, 3). rest: float32 (B, 4, 4), from a bone to the
    object, at rest. points: where things are attached: (bone, float32 (4, 4) from there to the
    bone).
    """

    positions: Float32
    normals: Float32
    uv: Float32
    bones: Uint8
    weights: Float32
    faces: NDArray[np.uint16]
    rest: Float32
    points: dict[str, tuple[int, Float32]]

    @cached_property
    def from_object(self) -> Float32:
        """From the object to a bone, at rest; float32 (B, 4, 4)."""
        return np.linalg.inv(self.rest).astype(np.float32)


@dataclass
class Actor:
    """One choice of an actor's looks. parts: (actor, name of the point where it is attached)."""

    mesh: Mesh
    skin: Uint8
    animations: dict[str, list[Float32]] = field(default_factory=dict)
    parts: list[tuple[Actor, str]] = field(default_factory=list)


def matrices(states: Float32) -> Float32:
    """float32 (..., 7), translation and quaternion (x, y, z, w) -> float32 (..., 4, 4)."""
    x, y, z, w = np.moveaxis(states[..., 3:], -1, 0)
    out = np.zeros((*states.shape[:-1], 4, 4), np.float32)
    out[..., 0, :3] = np.stack(
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)], -1
    )
    out[..., 1, :3] = np.stack(
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)], -1
    )
    out[..., 2, :3] = np.stack(
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)], -1
    )
    out[..., :3, 3] = states[..., :3]
    out[..., 3, 3] = 1
    return out


class _Reader:
    """Reads a file of the game: magic, version, length, then one thing after another."""

    def __init__(self, data: bytes, magic: bytes) -> None:
        if data[:4] != magic:
            raise ValueError(f"not a {magic.decode()} file")
        self.data, self.at = data, 12
        self.version = int(struct.unpack_from("<I", data, 4)[0])

    def number(self) -> int:
        self.at += 4
        return int(struct.unpack_from("<I", self.data, self.at - 4)[0])

    def array(self, kind: str, *shape: int) -> NDArray[Any]:
        count = int(np.prod(shape))
        out = np.frombuffer(self.data, np.dtype(kind), count, self.at).reshape(shape)
        self.at += out.nbytes
        return out

    def text(self) -> str:
        length = self.number()
        self.at += length
        return self.data[self.at - length : self.at].decode()


def read_mesh(data: bytes) -> Mesh:
    """A .pmd file -> its mesh."""
    reader = _Reader(data, b"PSMD")
    count = reader.number()
    layers = reader.number() if reader.version >= 4 else 1
    vertex = f"(3,)f4,(3,)f4,({layers},2)f4,(4,)u1,(4,)f4"
    vertices = reader.array(vertex, count)
    faces = reader.array("u2", reader.number(), 3)
    rest = matrices(reader.array("f4", reader.number(), 7).astype(np.float32))
    points = {}
    for _ in range(reader.number()):
        name = reader.text()
        state = reader.array("f4", 7).astype(np.float32)
        points[name] = (int(reader.array("u1", 1)[0]), matrices(state))
    return Mesh(
        vertices["f0"],
        vertices["f1"],
        vertices["f2"][:, 0],
        vertices["f3"],
        vertices["f4"],
        faces.astype(np.uint16),
        rest,
        points,
    )


def read_animation(data: bytes) -> Float32:
    """A .psa file -> float32 (frames, B, 4, 4), from a bone to the object."""
    reader = _Reader(data, b"PSSA")
    reader.text()
    reader.array("f4", 1)
    bones, frames = reader.number(), reader.number()
    return matrices(reader.array("f4", frames, bones, 7).astype(np.float32))


def to_skin(picture: Image.Image) -> Uint8:
    """uint8 (h, w, 4), at most 512 pixels a side, its first row that of v = 0."""
    rgba = np.asarray(picture.convert("RGBA"))
    height, width = (min(side, TEXTURE) for side in rgba.shape[:2])
    small = cv2.resize(rgba, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[::-1])


class Archive:
    """The game's archive of models. Everything in it is by name, below ``art/``."""

    def __init__(self, path: Path) -> None:
        self.zip = zipfile.ZipFile(path)
        self.names = set(self.zip.namelist())

    def actors(self, folder: str) -> list[str]:
        """Names of the actors below a folder, such as 'fauna'."""
        start = f"art/actors/{folder}/"
        return sorted(
            name.removeprefix("art/actors/")
            for name in self.names
            if name.startswith(start) and name.endswith(".xml")
        )

    def has_actor(self, name: str) -> bool:
        """Whether there is an actor of the name that is a thing, not smoke or dust."""
        return f"art/actors/{name}" in self.names and not name.startswith("particle/")

    def has_animation(self, name: str) -> bool:
        """Whether there is an animation of the name."""
        return f"art/animation/{name}.cached.psa" in self.names

    # one archive lives as long as its process, so the caches need not let it go
    @lru_cache(maxsize=512)  # noqa: B019
    def mesh(self, name: str) -> Mesh:
        """The mesh of the name."""
        return read_mesh(self.zip.read(f"art/meshes/{name}.cached.pmd"))

    @lru_cache(maxsize=256)  # noqa: B019
    def animation(self, name: str) -> Float32:
        """The animation of the name, as `read_animation` has it."""
        return read_animation(self.zip.read(f"art/animation/{name}.cached.psa"))

    @lru_cache(maxsize=256)  # noqa: B019
    def texture(self, name: str) -> Uint8:
        """The skin of the name, as `to_skin` has it."""
        return to_skin(Image.open(self._open(f"art/textures/skins/{name}.cached.dds")))

    def grounds(self) -> Iterator[tuple[str, Image.Image]]:
        """(name, picture) of grounds as seen from above, and of skies."""
        for name in sorted(self.names):
            stem = name.rsplit("/", 1)[-1].split(".")[0]
            if name.startswith(GROUNDS) and name.endswith(".dds") and not stem.endswith(MAPS):
                yield name, Image.open(self._open(name))

    def _open(self, name: str) -> io.BytesIO:
        return io.BytesIO(self.zip.read(name))

    def xml(self, name: str) -> ET.Element:
        """The root of an actor's or a variant's file."""
        return ET.fromstring(self.zip.read(f"art/{name}"))


def _variants(archive: Archive, variant: ET.Element) -> list[ET.Element]:
    """A variant and those it is made from, its own word last."""
    file = variant.get("file")
    if file is None:
        return [variant]
    return [*_variants(archive, archive.xml(f"variants/{file}")), variant]


@dataclass
class _Looks:
    """Names of files that an actor's variants ask for: a later one's mesh and skin win."""

    mesh: str | None = None
    skin: str | None = None
    parts: dict[str, set[str]] = field(default_factory=dict)
    animations: dict[str, list[str]] = field(default_factory=dict)

    def put_on(self, variant: ET.Element) -> None:
        self.mesh = variant.findtext("mesh") or self.mesh
        for item in variant.iter("texture"):
            self.skin = item.get("file") if item.get("name") == "baseTex" else self.skin
        for item in variant.iter("prop"):
            self.parts.setdefault(item.get("attachpoint", ""), set()).add(item.get("actor", ""))
        for item in variant.iter("animation"):
            name, file = item.get("name", "").lower(), item.get("file", "")
            self.animations.setdefault(name, []).append(file)


def choose(archive: Archive, rng: Rng, name: str, depth: int = 0) -> Actor | None:
    """An actor with one variant of every group, all equally likely; None if it has no body.

    Raises KeyError, ValueError or OSError where it names a file that is missing or unreadable.
    """
    root = archive.xml(f"actors/{name}")
    looks = _Looks()
    for group in root.iter("group"):
        if variants := group.findall("variant"):
            for variant in _variants(archive, one_of(rng, variants)):
                looks.put_on(variant)
    if looks.mesh is None or looks.skin is None:
        return None
    skin = painted(rng, archive.texture(looks.skin), root.findtext("material") or "")
    actor = Actor(archive.mesh(looks.mesh), skin)
    for move, files in looks.animations.items():
        if found := [archive.animation(file) for file in files if archive.has_animation(file)]:
            actor.animations[move] = found
    for point, parts in looks.parts.items():
        for part in sorted(parts):
            if depth < DEEPEST and archive.has_actor(part):
                chosen = choose(archive, rng, part, depth + 1)
                if chosen is not None:
                    actor.parts.append((chosen, point))
    return actor


def painted(rng: Rng, texture: Uint8, material: str) -> Uint8:
    """A skin (h, w, 4) as its material says: alpha is a hole, or where the player's colour is."""
    out = texture.copy()
    has_colour = "player" in material or "objectcolor" in material
    if has_colour:
        cover = texture[..., 3:].astype(np.float32) / 255
        colour = rng.uniform(0, 255, 3).astype(np.float32)
        out[..., :3] = (texture[..., :3] * (cover + (1 - cover) * colour / 255)).astype(np.uint8)
    if has_colour or "trans" not in material.replace("no_trans", ""):
        out[..., 3] = 255
    return out


def dyed(rng: Rng, skin: Uint8) -> Uint8:
    """A skin uint8 (h, w, 4) whose few main colours have become others, light, dark or bright.

    What is told apart by its colour is told apart still: a shirt, trousers, shoes.
    """
    lab = cv2.cvtColor(np.ascontiguousarray(skin[..., :3]), cv2.COLOR_RGB2LAB).astype(np.float32)
    texels = cv2.GaussianBlur(lab, (0, 0), 2).reshape(-1, 3)
    some = texels[rng.integers(0, len(texels), 2000)]
    means = some[rng.integers(0, len(some), GARMENTS)]
    for _ in range(8):
        which = _nearest(some, means)
        for i in range(GARMENTS):
            if (which == i).any():
                means[i] = some[which == i].mean(0)
    colours = np.stack(
        [rng.uniform(15, 240, GARMENTS), *rng.normal(128, rng.choice([8, 25]), (2, GARMENTS))], -1
    ).astype(np.float32)
    is_kept = rng.random(GARMENTS) < 0.3
    colours[is_kept] = means[is_kept]
    shift = (colours - means)[_nearest(texels, means)]
    shifted = lab + cv2.GaussianBlur(shift.reshape(lab.shape), (0, 0), 1)
    out = skin.copy()
    out[..., :3] = cv2.cvtColor(np.clip(shifted, 0, 255).astype(np.uint8), cv2.COLOR_LAB2RGB)
    return out


def _nearest(points: Float32, means: Float32) -> NDArray[np.intp]:
    """Which of the means (M, 3) is nearest to each of the points (N, 3)."""
    return np.argmin(((points[:, None] - means) ** 2).sum(-1), 1)


@dataclass(frozen=True)
class Posed:
    """A mesh as it stands: float32 (V, 3) positions and normals, and what it needs to be drawn."""

    positions: Float32
    normals: Float32
    uv: Float32
    faces: NDArray[np.uint16]
    skin: Uint8


def posed(actor: Actor, move: str, pick: float, frame: float, place: Float32) -> list[Posed]:
    """The actor and its parts at a frame of the animation `move`, or as they rest without one.

    pick: in [0, 1), which of several animations of the name. place: float32 (4, 4).
    """
    mesh = actor.mesh
    choices = actor.animations.get(move) or actor.animations.get("idle") or []
    bones = mesh.rest
    if choices:
        film = choices[int(pick * len(choices))]
        if film.shape[1] >= len(mesh.rest):
            bones = film[int(frame) % len(film), : len(mesh.rest)]
    out = [skinned(actor, bones, place)]
    for part, point in actor.parts:
        # "prop-" stands before some of the names
        found = mesh.points.get(point) or mesh.points.get(f"prop-{point}")
        bone, to_bone = found or (NO_BONE, np.eye(4, dtype=np.float32))
        there = bones[bone] @ to_bone if bone < len(bones) else to_bone
        out += posed(part, move, pick, frame, place @ there)
    return out


def skinned(actor: Actor, bones: Float32, place: Float32) -> Posed:
    """Linear blend skinning: every vertex goes with the bones that it hangs on."""
    mesh = actor.mesh
    at = np.concatenate([mesh.positions, np.ones((len(mesh.positions), 1), np.float32)], 1)
    positions, normals = mesh.positions, mesh.normals
    if len(bones):
        moves = np.concatenate([bones @ mesh.from_object, np.eye(4, dtype=np.float32)[None]])
        which = np.minimum(mesh.bones, len(bones))
        weights = mesh.weights * (mesh.bones != NO_BONE)
        total = weights.sum(1, keepdims=True)
        weights = np.where(total > 0, weights / np.maximum(total, 1e-6), [[1, 0, 0, 0]])
        blend = np.einsum("vk,vkij->vij", weights, moves[which]).astype(np.float32)
        positions = np.einsum("vij,vj->vi", blend, at)[:, :3]
        normals = np.einsum("vij,vj->vi", blend[:, :3, :3], mesh.normals)
    positions = positions @ place[:3, :3].T + place[:3, 3]
    normals = normals @ place[:3, :3].T
    return Posed(
        positions.astype(np.float32), normals.astype(np.float32), mesh.uv, mesh.faces, actor.skin
    )
