"""The bank of pictures that the procedural world is made of: photographs and cut-outs.

Opaque pictures become backgrounds and textures, pictures with an alpha channel become cut-outs.
scikit-image's bundled pictures are always there (public domain, CC0, CC BY); further ones come from
the Debian packages of `training.packages`, or from folders of one's own. ``python -m
training.assets`` builds the bank once; training only maps it into memory.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.packages import fetch

PHOTO_HEIGHT, PHOTO_WIDTH = 384, 512
CUTOUT_SIZE = 224
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
HELD_OUT_PERCENT = 12
SCENE_BYTES, SCENE_COLOURS = 150_000, 60

Uint8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Bank:
    """One split of the bank.

    photos: uint8 (N, 384, 512, 3), RGB. cutouts: uint8 (M, 224, 224, 4), RGB and alpha 0..255.
    films: uint8 (K, P, 192, 192, 4), things that move, in P phases. grounds: uint8 (G, 384, 512,
    3), seen from above. M, K and G may be 0, N may not. Cut-outs richest in colours come first.
    """

    photos: Uint8
    cutouts: Uint8
    films: Uint8 = field(default_factory=lambda: np.zeros((0, 1, 1, 1, 4), np.uint8))
    grounds: Uint8 = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))


def held_out(name: str) -> bool:
    """Whether the picture of this name belongs to the held-out split (by a hash of the name)."""
    return zlib.crc32(name.encode()) % 100 < HELD_OUT_PERCENT


def load_bank(folder: Path, split: str) -> Bank:
    """Map the bank built in `folder` into memory; split is 'train' or 'held_out'."""
    photos, cutouts = (
        np.load(folder / f"{kind}_{split}.npy", mmap_mode="r") for kind in ("photos", "cutouts")
    )
    more = {
        kind: np.load(file, mmap_mode="r")
        for kind in ("films", "grounds")
        if (file := folder / f"{kind}_{split}.npy").exists()
    }
    return Bank(photos, cutouts, **more)


def to_photo(picture: Image.Image) -> Uint8:
    """RGB picture -> uint8 (384, 512, 3): the largest centred 4:3 crop, resampled."""
    rgb = np.asarray(picture.convert("RGB"))
    height, width = rgb.shape[:2]
    side = min(height / PHOTO_HEIGHT, width / PHOTO_WIDTH)
    crop_h, crop_w = int(side * PHOTO_HEIGHT), int(side * PHOTO_WIDTH)
    top, left = (height - crop_h) // 2, (width - crop_w) // 2
    crop = rgb[top : top + crop_h, left : left + crop_w]
    return np.asarray(
        cv2.resize(crop, (PHOTO_WIDTH, PHOTO_HEIGHT), interpolation=cv2.INTER_AREA), dtype=np.uint8
    )


def colours(photo: Uint8) -> int:
    """How many of 32768 colours a thumbnail has: flags and playing cards have few, scenes many."""
    small = cv2.resize(photo, (64, 48), interpolation=cv2.INTER_AREA).astype(np.int32) >> 3
    return len(np.unique(small @ np.array([1024, 32, 1])))


def to_cutout(picture: Image.Image) -> Uint8 | None:
    """RGBA picture -> uint8 (224, 224, 4) centred on its opaque part, or None if it is no object.

    An object here is one that is mostly one opaque piece: line drawings, texts and full frames
    would teach that holes belong to objects, or nothing at all.
    """
    picture.thumbnail((3 * CUTOUT_SIZE, 3 * CUTOUT_SIZE), Image.Resampling.BILINEAR)
    rgba = np.array(picture.convert("RGBA"))
    solid = (rgba[..., 3] >= 128).astype(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
    if count < 2:
        return None
    biggest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    x, y, w, h, area = (int(v) for v in stats[biggest])
    if area < 0.85 * solid.sum() or not 0.25 < area / (w * h) < 0.97 or min(w, h) < 24:
        return None
    rgba[..., 3] = np.where(labels == biggest, rgba[..., 3], 0)
    scale = (CUTOUT_SIZE - 8) / max(w, h)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    small = cv2.resize(rgba[y : y + h, x : x + w], size, interpolation=cv2.INTER_AREA)
    out = np.zeros((CUTOUT_SIZE, CUTOUT_SIZE, 4), np.uint8)
    left, top = (CUTOUT_SIZE - size[0]) // 2, (CUTOUT_SIZE - size[1]) // 2
    out[top : top + size[1], left : left + size[0]] = small
    return out


def is_cutout(picture: Image.Image) -> bool:
    """Whether the picture has an alpha channel that hides at least a tenth of it."""
    if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
        return False
    small = picture.copy()
    small.thumbnail((64, 64))
    return float((np.asarray(small.convert("RGBA"))[..., 3] < 128).mean()) > 0.1


def distinct_files(folder: Path) -> list[Path]:
    """Pictures below `folder`; of a wallpaper in many sizes the one nearest to 1024 pixels wide."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    best: dict[Path, tuple[float, Path]] = {}
    for path in files:
        sized = path.stem.split("x")
        is_size = len(sized) == 2 and all(part.isdigit() for part in sized)
        key = path.parent if is_size else path
        distance = abs(int(sized[0]) - 1024.0) if is_size else 0.0
        if path.stem != "screenshot" and (key not in best or distance < best[key][0]):
            best[key] = (distance, path)
    return [path for _, path in best.values()]


def bundled_files() -> list[Path]:
    """scikit-image's own pictures, without the ones that are no scenes or textures."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    skip = {
        "logo",
        "text",
        "page",
        "phantom",
        "horse",
        "multipage",
        "color",
        "clock_motion",
        "chessboard_GRAY",
        "microaneurysms",
        "motorcycle_right",
    }
    return sorted(p for p in folder.iterdir() if p.suffix in SUFFIXES and p.stem not in skip)


def pictures(folders: list[Path], limit: int) -> Iterator[tuple[str, Image.Image, bool]]:
    """(name, picture, whether it may be a scene): bundled, and at most `limit` of every folder."""
    for path in bundled_files():
        yield f"skimage/{path.name}", Image.open(path), True
    for folder in folders:
        files = distinct_files(folder)
        files.sort(key=lambda p: (p.stat().st_size < 300_000, zlib.crc32(p.name.encode())))
        for path in files[:limit]:
            try:
                picture = Image.open(path)
                picture.load()
            except (OSError, ValueError, SyntaxError):
                continue
            yield str(path.relative_to(folder)), picture, path.stat().st_size >= SCENE_BYTES


def build(folders: list[Path], out: Path, limit: int = 4000) -> dict[str, Any]:
    """Write photos_{split}.npy and cutouts_{split}.npy to `out`; return what went in, by kind."""
    kept: dict[str, list[Uint8]] = {
        f"{kind}_{split}": [] for kind in ("photos", "cutouts") for split in ("train", "held_out")
    }
    names: dict[str, list[str]] = {key: [] for key in kept}
    for name, picture, large in pictures(folders, limit):
        cut = is_cutout(picture)
        array = to_cutout(picture) if cut else to_photo(picture) if large else None
        if array is None or (not cut and colours(array) < SCENE_COLOURS):
            continue
        split = "held_out" if held_out(name) else "train"
        key = f"{'cutouts' if cut else 'photos'}_{split}"
        kept[key].append(array)
        names[key].append(name)
    out.mkdir(parents=True, exist_ok=True)
    for key, arrays in kept.items():
        empty = (0, CUTOUT_SIZE, CUTOUT_SIZE, 4)
        order = sorted(range(len(arrays)), key=lambda i: -colours(arrays[i][..., :3]))
        names[key] = [names[key][i] for i in order]
        rich_first = [arrays[i] for i in order]
        np.save(out / f"{key}.npy", np.stack(rich_first) if arrays else np.zeros(empty, np.uint8))
    (out / "names.json").write_text(json.dumps(names, indent=1))
    return {key: len(value) for key, value in names.items()}


def main() -> None:
    """Command line: build the bank."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folders", nargs="*", type=Path, help="folders of further pictures")
    parser.add_argument("--debian", type=Path, help="fetch Debian's packages into this folder")
    parser.add_argument("--out", type=Path, default=Path("training/runs/bank"))
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # the folders are one's own, and photographs are large
    fetched = fetch(args.debian) if args.debian else []
    print(json.dumps(build(fetched + args.folders, args.out)))


if __name__ == "__main__":
    main()
