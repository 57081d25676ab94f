"""The frames of a source as a Parquet file in the run directory: `frames.parquet`.

One row per frame of the source: `frame_index`, `pts` (presentation time in units of the time base)
and `timestep` (seconds from the first frame). A source that is known is not probed again.
"""

from fractions import Fraction
from pathlib import Path
from typing import cast

import pyarrow as pa

from masklet.atomic import replacing
from masklet.media import (
    AnimationSource,
    ImageSource,
    ImagesSource,
    Source,
    Transfer,
    image_names,
)
from masklet.parquet import read_table, write_table

FILE_NAME = "frames.parquet"

_KINDS = {
    Source: "video",
    ImageSource: "image",
    ImagesSource: "images",
    AnimationSource: "animation",
}


def write_frame_table(source: Source, path: Path) -> int:
    """Write everything known of a source but where it lies; returns the number of frames."""
    about = {
        "width": source.width,
        "height": source.height,
        "time_base": source.time_base,
        "frame_rate": source.frame_rate,
        "seekable": int(source.seekable),
        "pixel_aspect": source.pixel_aspect,
        "transfer": source.transfer,
        "damage": source.damage,
        "kind": _KINDS[type(source)],
    }
    frames = range(source.num_frames)
    table = pa.table(
        {
            "frame_index": pa.array(frames, pa.int64()),
            "pts": pa.array(source.pts, pa.int64()),
            "timestep": pa.array([source.timestep(index) for index in frames], pa.float64()),
        }
    )
    text = {name: str(value) for name, value in about.items()}
    with replacing(path) as temporary:
        write_table(table.replace_schema_metadata(text), temporary)
    return source.num_frames


def read_frame_table(path: Path, file: Path, sha256: str) -> Source:
    """The source at `file`, whose content has this hash and these frames.

    Raises ValueError for a table that `write_frame_table` did not write.
    """
    try:
        return _read(path, file, sha256)
    except (pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is no table of frames ({error})") from error


def _read(path: Path, file: Path, sha256: str) -> Source:
    table = read_table(path, ["pts"])
    about = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
    width, height, kind = int(about["width"]), int(about["height"]), about["kind"]
    if kind == "image":
        return ImageSource.of(file, sha256, width, height)
    if kind == "images":
        return ImagesSource.of(file, image_names(file), sha256, width, height)
    return (AnimationSource if kind == "animation" else Source)(
        path=file,
        sha256=sha256,
        width=width,
        height=height,
        time_base=Fraction(about["time_base"]),
        pts=tuple(table["pts"].to_pylist()),
        frame_rate=Fraction(about["frame_rate"]),
        seekable=about["seekable"] == "1",
        pixel_aspect=Fraction(about["pixel_aspect"]),
        transfer=cast(Transfer, about["transfer"]),
        damage=about["damage"],
    )
