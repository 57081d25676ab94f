"""The masklet store: every object's logits through time, as Parquet.

    masklets/object=<id>/frames-<first frame_index>.parquet

A row is one frame: `frame_index`, `object_score` (the logit of the object being there; of an
image's mask its predicted quality) and
`logits`, the low-resolution mask logits as float32. Binary masks and 8-bit confidences at source
size follow from them by `upsample` exactly: what is thrown away cannot reach either.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from masklet.atomic import replacing
from masklet.job import ObjectId
from masklet.parquet import read_table, write_table

# 255 * sigmoid rounds to 0 or 255 beyond ±6.24; the rest is room for rounding in the interpolation
SATURATION = 6.3
_SATURATED = 16.0
PART_ROWS = 256
_PARTS = "frames-*.parquet"
MAX_PART_BYTES = 8 * 2**20  # of logits in memory, for each object


@dataclass(frozen=True)
class MaskletRow:
    """One object on one frame.

    logits: (h, w) float32, low resolution; object_score: logit.
    """

    frame_index: int
    object_score: float
    logits: NDArray[np.float32]


def saturate(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make logits constant where no mask and no 8-bit confidence can depend on them.

    Bilinear upsampling mixes a pixel with its eight neighbours only. Where all nine are beyond
    ±SATURATION on one side, every output pixel they reach is 0 (or 255) and stays so when the
    middle one is replaced by ±16. The constants then compress to almost nothing.

    Args:
        logits: (h, w) float32.
    """
    return np.where(
        _all_around(logits <= -SATURATION),
        np.float32(-_SATURATED),
        np.where(_all_around(logits >= SATURATION), np.float32(_SATURATED), logits),
    )


def _all_around(flags: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(flags, 1, constant_values=True)
    rows = padded[:-2] & padded[1:-1] & padded[2:]
    return np.asarray(rows[:, :-2] & rows[:, 1:-1] & rows[:, 2:])


def upsample(logits: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear logits at source size, (height, width) float32, as SAM2VideoPredictor's."""
    import torch  # takes seconds, which a refused job need not wait for
    import torch.nn.functional as F

    low = torch.tensor(logits)[None, None]
    full = F.interpolate(low, size=(height, width), mode="bilinear", align_corners=False)
    return np.asarray(full[0, 0].numpy())


def object_folder(masklets: Path, object_id: ObjectId) -> Path:
    """Where an object's parts are; object ids were checked to be safe in a file name."""
    return masklets / f"object={object_id}"


class MaskletWriter:
    """Writes one object's rows into a folder, in parts, as they come.

    Rows come in ascending or in descending order of frame_index; where the order turns, `flush`
    keeps parts from overlapping. A writer given the `pending` rows and the `parts` of another goes
    on as that one would have.
    """

    def __init__(
        self,
        folder: Path,
        object_id: ObjectId,
        pending: Sequence[MaskletRow] = (),
        parts: Mapping[str, str] | None = None,
    ) -> None:
        self._folder, self._object_id = folder, object_id
        self._rows = list(pending)
        self._parts = dict(parts or {})
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def pending(self) -> tuple[MaskletRow, ...]:
        """The rows that are in no part yet, in the order they came."""
        return tuple(self._rows)

    @property
    def parts(self) -> Mapping[str, str]:
        """sha256 of each part written so far, by file name."""
        return dict(self._parts)

    def add(self, row: MaskletRow) -> None:
        self._rows.append(MaskletRow(row.frame_index, row.object_score, saturate(row.logits)))
        full = len(self._rows) * row.logits.nbytes >= MAX_PART_BYTES
        if full or len(self._rows) >= PART_ROWS:
            self.flush()

    def flush(self) -> None:
        """Publish what has been added as a part of its own."""
        if not self._rows:
            return
        rows = sorted(self._rows, key=lambda row: row.frame_index)
        path = self._folder / f"frames-{rows[0].frame_index:08d}.parquet"
        with replacing(path) as temporary:
            _write_part(temporary, rows, self._object_id)
        self._parts[path.name] = _sha256(path)
        self._rows = []


def part_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each part of a masklet, by file name; empty if there is no such folder."""
    return {path.name: _sha256(path) for path in sorted(folder.glob(_PARTS))}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_part(path: Path, rows: Sequence[MaskletRow], object_id: ObjectId) -> None:
    height, width = rows[0].logits.shape
    flat = pa.array(np.concatenate([row.logits.ravel() for row in rows]))
    table = pa.table(
        {
            "frame_index": pa.array([row.frame_index for row in rows], pa.int64()),
            "object_score": pa.array([row.object_score for row in rows], pa.float32()),
            "logits": pa.FixedSizeListArray.from_arrays(flat, height * width),
        }
    )
    about = {"object_id": json.dumps(object_id), "height": str(height), "width": str(width)}
    write_table(
        table.replace_schema_metadata(about),
        path,
        use_dictionary=False,
        write_statistics=["frame_index"],
        # the bytes of neighbouring floats are alike place by place
        column_encoding={
            "frame_index": "PLAIN",
            "object_score": "PLAIN",
            "logits.list.element": "BYTE_STREAM_SPLIT",
        },
    )


def read_masklet(folder: Path) -> Iterator[MaskletRow]:
    """Read an object's rows by ascending frame_index, one part in memory at a time."""
    for part in sorted(folder.glob(_PARTS)):
        table = read_table(part)
        about = table.schema.metadata
        shape = int(about[b"height"]), int(about[b"width"])
        logits = table["logits"].combine_chunks().flatten().to_numpy().reshape(-1, *shape)
        for index, score, row in zip(
            table["frame_index"].to_pylist(), table["object_score"].to_pylist(), logits, strict=True
        ):
            yield MaskletRow(index, score, row)


def read_together(
    masklets: Path, object_ids: Sequence[ObjectId]
) -> Iterator[tuple[int, dict[ObjectId, MaskletRow]]]:
    """Read several objects frame by frame: (frame_index, {object_id: row}), ascending."""
    folders = [object_folder(masklets, object_id) for object_id in object_ids]
    for rows in zip(*(read_masklet(folder) for folder in folders), strict=True):
        if len({row.frame_index for row in rows}) != 1:
            raise ValueError(f"{masklets}: the objects' rows are not of the same frames")
        yield rows[0].frame_index, dict(zip(object_ids, rows, strict=True))
