"""Videos with their true masks: folders in the layout of DAVIS or of SA-V.

DAVIS, where each picture has the ids of all objects as its pixels:

    JPEGImages/480p/<video>/00000.jpg, …
    Annotations/480p/<video>/00000.png, …     8 bits, grey or palette; 0 is no object
    ImageSets/<year>/val.txt                  optional: the videos to take; the newest year's

SA-V, where every object has pictures of its own, and objects may overlap:

    JPEGImages_24fps/<video>/00000.jpg, …
    Annotations_6fps/<video>/<object>/00000.png, 00004.png, …

Nothing in a dataset is believed: names come from listing its folders alone, sizes are checked
before pixels are read.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from masklet.errors import UserError
from masklet.job import OBJECT_ID_PATTERN, ObjectId
from masklet.label_picture import check_size, read_labels
from masklet.media import ImagesSource, probe_images

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_MAX_LIST_BYTES = 1 << 20
_ALONE, _VOID = 255, 255


@dataclass(frozen=True)
class TrueVideo:
    """A video, and files with the true masks of some of its frames.

    labels: by frame_index, a picture of the ids of all objects; or
    masks: by object, and by frame_index, a picture that is not 0 where the object is.
    """

    name: str
    source: ImagesSource
    labels: Mapping[int, Path]
    masks: Mapping[str, Mapping[int, Path]]

    @property
    def may_overlap(self) -> bool:
        """Whether a pixel can be part of several objects."""
        return bool(self.masks)

    def annotated(self, object_id: ObjectId) -> list[int]:
        """The frames of which it is known where the object is, also those without it; ascending."""
        return sorted(self.masks[str(object_id)] if self.masks else self.labels)

    def truth(self, frame_index: int) -> dict[ObjectId, NDArray[np.bool_]]:
        """Every object that is seen on the frame, in the order of ids: (height, width) bool.

        Raises UserError for a picture that cannot be read.
        """
        found: dict[ObjectId, NDArray[np.bool_]] = {}
        for object_id, files in sorted(self.masks.items()):
            if frame_index in files:
                mask = self._read(files[frame_index]) > 0
                if mask.any():
                    found[object_id] = mask
        if frame_index in self.labels:
            labels = self._read(self.labels[frame_index])
            ids = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
            found |= {int(one): labels == one for one in ids if one}
        return found

    def first_seen(self) -> dict[ObjectId, int]:
        """The first frame where each object is seen, in the order of ids. Reads every picture.

        255 is an object where it is the only one, as in DAVIS 2016; beside others it marks pixels
        that belong to none, as in DAVIS 2017. Raises UserError if there is no object.
        """
        first: dict[ObjectId, int] = {}
        for frame_index in sorted({at for one in self._files() for at in one}):
            for object_id in self.truth(frame_index):
                first.setdefault(object_id, frame_index)
        if len(first) > 1:
            first.pop(_VOID, None)
        if not first:
            raise UserError(f"{self.name}: no annotation marks an object")
        return dict(sorted(first.items(), key=lambda item: (str(type(item[0])), item[0])))

    def _files(self) -> list[Mapping[int, Path]]:
        return [self.labels, *self.masks.values()]

    def _read(self, path: Path) -> NDArray[np.uint8]:
        pixels = read_labels(path, self.source.width, self.source.height)
        if pixels.ndim == 3:
            # some masks of DAVIS 2016 were saved in colour
            if _has_colours(pixels):
                raise UserError(
                    f"{path}: has several colours, which are no numbers of objects: save it with "
                    "a palette, or in grey"
                )
            return np.where(pixels.any(axis=2), np.uint8(_ALONE), np.uint8(0))
        return pixels


def _has_colours(pixels: NDArray[np.uint8]) -> bool:
    """Whether (height, width, 3) has more than one colour beside black; shades of grey are one."""
    marked = pixels[pixels.any(axis=2)].astype(np.uint32)
    colours = marked @ np.array([1, 256, 65536], np.uint32)
    is_grey = bool((marked == marked[:, :1]).all())
    return not is_grey and bool((colours != colours[0]).any())


def find_videos(dataset: Path, names: Sequence[str] | None = None) -> list[TrueVideo]:
    """Find the videos of a dataset, in the order of their names, and check all but their pixels.

    names: the videos to take; by default those of the newest ImageSets/<year>/val.txt, or all that
    have annotations. Raises UserError for a folder that is no dataset, or a video that is missing
    or has frames or annotations that do not fit.
    """
    frames, annotations = _roots(dataset)
    there = {name for name in _folders(frames) if (annotations / name).is_dir()}
    origin = "--sequences"
    if names is None:
        names, origin = _listed(dataset) or (sorted(there), str(annotations))
    for name in names:
        if name not in there:
            raise UserError(
                f"{origin}: there is no video {name[:80]!r} in both {frames} and {annotations}"
            )
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{frames}: {name[:80]!r} is no name of a video: letters, digits, '_', '.' and '-'"
            )
    if not names:
        raise UserError(f"{dataset}: {frames} and {annotations} have no video in common")
    return [_video(name, frames / name, annotations / name) for name in sorted(set(names))]


def _roots(dataset: Path) -> tuple[Path, Path]:
    """The folders of videos and of their annotations."""
    sav = dataset / "JPEGImages_24fps", dataset / "Annotations_6fps"
    if all(folder.is_dir() for folder in sav):
        return sav
    frames, annotations = dataset / "JPEGImages", dataset / "Annotations"
    if not frames.is_dir() or not annotations.is_dir():
        raise UserError(
            f"{dataset}: has no folders JPEGImages and Annotations (DAVIS), nor JPEGImages_24fps "
            "and Annotations_6fps (SA-V)"
        )
    resolutions = sorted(set(_folders(frames)) & set(_folders(annotations)))
    if "480p" in resolutions:
        resolutions = ["480p"]
    if len(resolutions) != 1:
        raise UserError(
            f"{dataset}: JPEGImages and Annotations should have one folder of a resolution in "
            f"common, such as 480p; they have {len(resolutions)}"
        )
    return frames / resolutions[0], annotations / resolutions[0]


def _listed(dataset: Path) -> tuple[list[str], str] | None:
    """The names in the newest ImageSets/<year>/val.txt, and its path; None without one."""
    lists = sorted((dataset / "ImageSets").glob("[0-9][0-9][0-9][0-9]/val.txt"))
    if not lists:
        return None
    with lists[-1].open("rb") as file:
        content = file.read(_MAX_LIST_BYTES + 1)
    if len(content) > _MAX_LIST_BYTES:
        raise UserError(f"{lists[-1]}: is larger than a list of videos can be")
    lines = content.decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()], str(lists[-1])


def _video(name: str, frames: Path, annotations: Path) -> TrueVideo:
    pictures = _numbered(frames, (".jpg", ".jpeg"))
    source = probe_images(frames, [pictures[number].name for number in sorted(pictures)])
    position = {number: index for index, number in enumerate(sorted(pictures))}
    objects = _folders(annotations)
    for object_id in objects:
        if not re.fullmatch(OBJECT_ID_PATTERN, object_id):
            raise UserError(f"{annotations}: {object_id[:80]!r} is no object id")
    labels = {} if objects else _annotations(annotations, source, position)
    masks = {one: _annotations(annotations / one, source, position) for one in objects}
    return TrueVideo(name, source, labels, masks)


def _annotations(
    folder: Path, source: ImagesSource, position: Mapping[int, int]
) -> dict[int, Path]:
    """Annotations by frame_index."""
    files = _numbered(folder, (".png",))
    if len(files) < 3:
        raise UserError(
            f"{folder}: has {len(files)} annotations; 3 are needed, as the first and the last one "
            "do not count"
        )
    for number, path in files.items():
        if number not in position:
            raise UserError(f"{path}: is the annotation of no frame in {source.path}")
        check_size(path, source.width, source.height)
    return {position[number]: path for number, path in sorted(files.items())}


def _numbered(folder: Path, suffixes: tuple[str, ...]) -> dict[int, Path]:
    """The files of a folder by the number that is their name."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.suffix.lower() not in suffixes:
            continue
        if not _NUMBER.fullmatch(path.stem) or not path.is_file():
            raise UserError(f"{path}: is not a file named after its frame's number")
        number = int(path.stem)
        if number in found:
            raise UserError(f"{path}: has the same number as {found[number].name}")
        found[number] = path
    return found


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder; hidden ones are left out."""
    return sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
