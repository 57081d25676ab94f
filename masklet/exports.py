"""What a user downloads, each made from the masklet store alone: the model is not needed here."""

import io
import json
import os
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from masklet import overlay as drawing
from masklet.atomic import replacing
from masklet.job import ObjectId
from masklet.media import Source, Timing, read_frames, sound_of, write_video
from masklet.overlay import colours_of, overlay
from masklet.plan import Plan
from masklet.store import MaskletRow, read_together, upsample

Advance = Callable[[int], None]
Box = dict[str, int | str | float | list[int]]
Item = TypeVar("Item")
Made = TypeVar("Made")

PNG_COMPRESSION = 6
"""zlib's level; pictures are compressed as PNG, so the zip only stores them."""
ZIP_METHOD = zipfile.ZIP_STORED


def write_masks(plan: Plan, masklets: Path, path: Path, advance: Advance) -> int:
    """Zip of `{frame_index}_{object_id}.png`, 8-bit, 0 or 255, source size; returns the count."""
    return _write_pictures(plan, masklets, path, advance, binary_mask)


def write_pixel_confidences(plan: Plan, masklets: Path, path: Path, advance: Advance) -> int:
    """Zip like that of the masks, of round(255 * sigmoid(logit)); returns the count."""
    return _write_pictures(plan, masklets, path, advance, confidence)


def write_bbox_tracking(plan: Plan, masklets: Path, path: Path, advance: Advance) -> int:
    """JSON of every frame's boxes, `{"0": [{frame_index, object_id, bbox, timestep}, …], …}`.

    Edges are the smallest and largest pixel index that is set; timestep is in seconds. An absent
    object has no box. Returns the number of boxes.
    """

    def boxes(item: tuple[int, dict[ObjectId, MaskletRow]]) -> tuple[int, list[Box]]:
        frame_index, rows = item
        timestep = round(plan.source.timestep(frame_index), 3)
        found: list[Box] = []
        for object_id, row in rows.items():
            box = bounding_box(_full_size(plan.source, row) > 0)
            if box is not None:
                found.append(
                    {
                        "frame_index": frame_index,
                        "object_id": object_id,
                        "bbox": box,
                        "timestep": timestep,
                    }
                )
        return frame_index, found

    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "{\n"
        for frame_index, found in _in_order(boxes, read_together(masklets, plan.object_ids)):
            file.write(f'{separator}"{frame_index}": {json.dumps(found)}')
            separator = ",\n"
            count += len(found)
            advance(1)
        file.write("\n}\n")
    return count


def write_debug_video(plan: Plan, masklets: Path, path: Path, advance: Advance) -> int:
    """The source's processed frames with the masks drawn on them, as H.264; returns the count.

    Each is shown when it is in the source, with what is heard there.
    """
    source, colours = plan.source, colours_of(plan.object_ids)

    def draw(
        item: tuple[tuple[int, NDArray[np.uint8]], tuple[int, dict[ObjectId, MaskletRow]]],
    ) -> NDArray[np.uint8]:
        (frame_index, frame), (stored_index, rows) = item
        if frame_index != stored_index:
            raise ValueError(f"frame {frame_index} was decoded, but {stored_index} is stored")
        masks = {object_id: _full_size(source, row) > 0 for object_id, row in rows.items()}
        return overlay(frame, masks, colours)

    def frames() -> Generator[NDArray[np.uint8], None, None]:
        stored = read_together(masklets, plan.object_ids)
        with closing(read_frames(source, plan.frame_indices)) as decoded:
            for picture in _in_order(draw, zip(decoded, stored, strict=True)):
                yield picture
                advance(1)

    with closing(frames()) as pictures:
        write_video(
            path,
            pictures,
            width=source.width,
            height=source.height,
            frame_rate=source.frame_rate,
            timing=Timing.of(source, plan.frame_indices),
            pixel_aspect=source.pixel_aspect,
            sound=sound_of(source, plan.frame_indices),
        )
    return len(plan.frame_indices)


def binary_mask(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """255 where the logit is above 0, else 0."""
    return np.asarray((logits > 0) * np.uint8(255))


def confidence(logits: NDArray[np.float32]) -> NDArray[np.uint8]:
    """round(255 * sigmoid(logit)) as uint8."""
    import torch  # takes seconds, which a refused job need not wait for

    return np.asarray(torch.sigmoid(torch.from_numpy(logits)).mul(255).round().byte().numpy())


def bounding_box(mask: NDArray[np.bool_]) -> list[int] | None:
    """[x_min, y_min, x_max, y_max] of the pixels set, inclusive; None without any."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return None
    return [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]


def _write_pictures(
    plan: Plan,
    masklets: Path,
    path: Path,
    advance: Advance,
    to_picture: Callable[[NDArray[np.float32]], NDArray[np.uint8]],
) -> int:
    def encode(item: tuple[int, dict[ObjectId, MaskletRow]]) -> list[tuple[str, bytes]]:
        frame_index, rows = item
        return [
            (f"{frame_index}_{object_id}.png", _png(to_picture(_full_size(plan.source, row))))
            for object_id, row in rows.items()
        ]

    count = 0
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w", ZIP_METHOD) as archive:
        for pictures in _in_order(encode, read_together(masklets, plan.object_ids)):
            for name, content in pictures:
                # a fixed time and fixed rights, so that the same masks are the same bytes
                entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                entry.external_attr = 0o644 << 16
                entry.compress_type = ZIP_METHOD
                archive.writestr(entry, content)
                count += 1
            advance(1)
    return count


def _use_one_torch_thread() -> None:
    # each worker would start a team of its own, as large as the machine
    import torch

    torch.set_num_threads(1)


class _TorchThreads:
    """The number of threads that torch gives to new threads.

    What one thread asks for becomes that number, so the first of several exports at once notes it,
    and the last one puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._exports, self._before = Lock(), 0, 1

    @contextmanager
    def kept(self) -> Iterator[None]:
        import torch

        with self._lock:
            if self._exports == 0:
                self._before = torch.get_num_threads()
            self._exports += 1
        try:
            yield
        finally:
            with self._lock:
                self._exports -= 1
                if self._exports == 0:
                    torch.set_num_threads(self._before)


_torch_threads = _TorchThreads()


def _full_size(source: Source, row: MaskletRow) -> NDArray[np.float32]:
    return upsample(row.logits, source.height, source.width)


def _png(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


def _in_order(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Map over a stream in order, on all cores and a few items ahead.

    Threads suffice: decoding, upsampling and PNG compression leave the GIL.
    """
    workers = os.cpu_count() or 1
    with (
        _torch_threads.kept(),
        ThreadPoolExecutor(workers, initializer=_use_one_torch_thread) as pool,
    ):
        pending: deque[Future[Made]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@dataclass(frozen=True)
class Export:
    """An output made from the masklet store: its file, and the function that writes it.

    Raise `code_version` whenever the function's output changes. `settings` are the constants that
    it depends on: a change of one makes this output again without a new version.
    """

    file: str
    code_version: int
    write: Callable[[Plan, Path, Path, Advance], int]
    settings: Callable[[], Mapping[str, Any]] = dict


def _zip_settings() -> Mapping[str, Any]:
    return {"png_compression": PNG_COMPRESSION, "zip_method": ZIP_METHOD}


def overlay_settings() -> Mapping[str, Any]:
    """The constants that drawn masks depend on, as JSON values."""
    return {
        "colours": [list(colour) for colour in drawing.COLOURS],
        "fill": drawing.FILL,
        "outer_edge": drawing.OUTER_EDGE,
    }


EXPORTS: dict[str, Export] = {
    "masks": Export("masks.zip", 1, write_masks, _zip_settings),
    "pixel_confidences": Export("pixel_confidences.zip", 1, write_pixel_confidences, _zip_settings),
    "bbox_tracking": Export("bbox_tracking.json", 1, write_bbox_tracking),
    "debug_masks": Export("debug_masks.mp4", 3, write_debug_video, overlay_settings),
}
