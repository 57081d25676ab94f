"""People of today, cars, aircraft and furniture, from the models of UFO: Alien Invasion (GPL).

The archive keeps models as ``.md2`` files: where every vertex is, frame by frame. Beside that of a
body lie ``.tag`` (where its head and hands are, frame by frame) and ``.anm`` (which frames are a
walk or a fall), and heads to choose from. The formats are those of ``model_md2.cpp`` and
``r_model_alias.cpp`` of the game and of Quake II.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.actors import Posed, dyed, to_skin
from training.sprites import one_of

PICTURES = (".png", ".jpg", ".tga")
DYED, FALLING = 0.5, 0.25
HEADER = struct.Struct("<4s16i")

Float32 = NDArray[np.float32]
Uint8 = NDArray[np.uint8]
Rng = np.random.Generator


@dataclass(frozen=True)
class Model:
    """positions: float32 (T, V, 3), y up. uv: float32 (V, 2). faces: uint16 (F, 3).

    skin: the name of the picture that it wears if there is no choice.
    """

    positions: Float32
    uv: Float32
    faces: NDArray[np.uint16]
    skin: str

    def at(self, frame: float, skin: Uint8, place: Float32 | None = None) -> Posed:
        """The model at a frame, between two if it is none of them; place: float32 (4, 4)."""
        count = len(self.positions)
        one, share = int(frame) % count, np.float32(frame % 1)
        positions = self.positions[one] * (1 - share) + self.positions[(one + 1) % count] * share
        if place is not None:
            positions = positions @ place[:3, :3].T + place[:3, 3]
        return Posed(positions, normals(positions, self.faces), self.uv, self.faces, skin)


def normals(positions: Float32, faces: NDArray[np.uint16]) -> Float32:
    """At every vertex, the sum of its faces', the larger face the more; float32 (V, 3)."""
    a, b, c = (positions[faces[:, i]] for i in range(3))
    out = np.zeros_like(positions)
    for i in range(3):
        np.add.at(out, faces[:, i], np.cross(b - a, c - a))
    return out


def upright(points: Float32) -> Float32:
    """(..., 3) with z up -> with y up."""
    x, y, z = np.moveaxis(points, -1, 0)
    return np.stack([x, z, -y], -1)


def read_model(data: bytes) -> Model:
    """An .md2 file -> its model. Raises ValueError for anything else."""
    if data[:4] != b"IDP2":
        raise ValueError("not an IDP2 file")
    fields = HEADER.unpack_from(data)
    width, height, frame_size, skins, vertices, corners, triangles, _, frames = fields[2:11]
    at_skins, at_corners, at_triangles, at_frames = fields[11:15]
    skin = data[at_skins : at_skins + 64].split(b"\0")[0].decode() if skins else ""
    uv = np.frombuffer(data, "<i2", 2 * corners, at_corners).reshape(-1, 2)
    ids = np.frombuffer(data, "<u2", 6 * triangles, at_triangles).reshape(-1, 2, 3)
    frame = np.dtype(
        {
            "names": ["scale", "shift", "at"],
            "formats": ["(3,)<f4", "(3,)<f4", f"({vertices},4)u1"],
            "offsets": [0, 12, 40],
            "itemsize": frame_size,
        }
    )
    film = np.frombuffer(data, frame, frames, at_frames)
    positions = film["at"][..., :3] * film["scale"][:, None] + film["shift"][:, None]
    # a corner of a triangle is a vertex and a place on the skin
    pairs, faces = np.unique(
        np.stack([ids[:, 0].ravel(), ids[:, 1].ravel()], -1), axis=0, return_inverse=True
    )
    places = uv[pairs[:, 1]] / np.array([width, height], np.float32)
    places[:, 1] = 1 - places[:, 1]  # the first row of a skin is that of v = 0
    return Model(
        upright(positions[:, pairs[:, 0]]).astype(np.float32),
        places.astype(np.float32),
        faces.reshape(-1, 3).astype(np.uint16),
        skin,
    )


def read_tags(data: bytes) -> dict[str, Float32]:
    """A .tag file -> name of a tag: float32 (T, 4, 4), from what is attached there to the body."""
    if data[:4] != b"JDP2":
        raise ValueError("not a JDP2 file")
    tags, frames, at_names, at_tags = struct.unpack_from("<4i", data, 8)
    axes = np.frombuffer(data, "<f4", 12 * tags * frames, at_tags).reshape(tags, frames, 4, 3)
    out = np.zeros((tags, frames, 4, 4), np.float32)
    out[..., :3, :] = np.moveaxis(upright(axes), -1, -2)
    # the columns are where x, y and z of the body go; what is attached has y up as well
    out[..., :3, :3] = upright(out[..., :3, :3])
    out[..., 3, 3] = 1
    names = [data[at_names + 64 * i :][:64].split(b"\0")[0].decode() for i in range(tags)]
    return dict(zip(names, out, strict=True))


def read_moves(words: str) -> dict[str, tuple[int, int]]:
    """An .anm file -> name of a move: its first and its last frame."""
    found = re.findall(r"^\s*([a-z]\w*)\s+(\d+)\s+(\d+)\s", words, re.M)
    return {name: (int(first), int(last)) for name, first, last in found}


@dataclass(frozen=True)
class Figure:
    """A model, and what there is to choose from: its skins, and its heads with theirs.

    walks, falls: what it can do, as (first, last) frame.
    """

    model: Model
    skins: list[Uint8]
    walks: list[tuple[int, int]]
    falls: list[tuple[int, int]]
    heads: list[tuple[Model, list[Uint8]]]
    neck: Float32 | None


class Models:
    """The game's archive of models, by name."""

    def __init__(self, path: Path) -> None:
        self.zip = zipfile.ZipFile(path)
        self.names = sorted(self.zip.namelist())

    def figures(self) -> list[str]:
        """Names of the models that are things by themselves: no heads, and no weapons in hand."""
        wholes = ("civilians", "soldiers", "aliens", "pilots", "animals", "aircraft", "objects")
        return [
            name
            for name in self.names
            if name.endswith(".md2")
            and name.startswith(tuple(f"models/{kind}/" for kind in wholes))
            and "head" not in PurePosixPath(name).stem
        ]

    def is_alive(self, name: str) -> bool:
        """Whether a model has moves."""
        return name.replace(".md2", ".anm") in self.names

    @lru_cache(maxsize=1)  # noqa: B019  # all films of a figure are shot in a row
    def figure(self, name: str) -> Figure | None:
        """The figure of the name; None if nothing in the archive is its skin."""
        model = self.model(name)
        skins = self.skins(name, model)
        if not skins:
            return None
        if not self.is_alive(name):
            return Figure(model, skins, [], [], [], None)
        moves = read_moves(self.zip.read(name.replace(".md2", ".anm")).decode(errors="replace"))
        tag_file = name.replace(".md2", ".tag")
        tags = read_tags(self.zip.read(tag_file)) if tag_file in self.names else {}
        folder = str(PurePosixPath(name).parent)
        heads = [
            (head, self.skins(other, head))
            for other in self.names
            if other.startswith(f"{folder}/") and other.endswith(".md2") and "head" in other
            for head in [self.model(other)]
        ]
        return Figure(
            model,
            skins,
            [(a, b) for what, (a, b) in moves.items() if b - a > 3 and "death" not in what],
            [(a, b) for what, (a, b) in moves.items() if b - a > 3 and "death" in what],
            [(head, choice) for head, choice in heads if choice],
            tags.get("tag_head"),
        )

    # one archive lives as long as its process, so the caches need not let it go
    @lru_cache(maxsize=128)  # noqa: B019
    def model(self, name: str) -> Model:
        """The model of the name."""
        return read_model(self.zip.read(name))

    def skins(self, name: str, model: Model) -> list[Uint8]:
        """What a model can wear: pictures of its own name with a letter, and the one it names."""
        path = PurePosixPath(name)
        named = PurePosixPath(model.skin.removeprefix(".")).stem
        own = re.compile(rf"{re.escape(path.stem)}[a-z]?|{re.escape(named)}")
        return [
            to_skin(Image.open(io.BytesIO(self.zip.read(other))))
            for other in self.names
            for picture in [PurePosixPath(other)]
            if picture.parent == path.parent
            and picture.suffix in PICTURES
            and own.fullmatch(picture.stem)
        ]


def acted(rng: Rng, figure: Figure, phases: int) -> list[list[Posed]]:
    """The figure doing something, phase by phase, with a head and a skin, at times dyed."""
    skin = one_of(rng, figure.skins)
    if rng.random() < DYED:
        skin = dyed(rng, skin)
    moves = figure.falls if rng.random() < FALLING else figure.walks
    moves = moves or figure.walks or figure.falls or [(0, 0)]
    first, last = one_of(rng, moves)
    start, step = rng.uniform(0, 100), rng.uniform(0.5, 2)
    span = last - first
    # there and back again: not all that is done ends where it began
    way = [abs((start + step * i) % (2 * span) - span) if span else 0.0 for i in range(phases)]
    frames = [first + at for at in way]
    scenes = [[figure.model.at(frame, skin)] for frame in frames]
    if figure.heads and figure.neck is not None:
        head, choice = one_of(rng, figure.heads)
        face = one_of(rng, choice)
        for frame, scene in zip(frames, scenes, strict=True):
            scene.append(head.at(0, face, figure.neck[round(frame) % len(figure.neck)]))
    return scenes
