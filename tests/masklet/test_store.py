from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from masklet.exports import binary_mask, confidence
from masklet.store import (
    MaskletRow,
    MaskletWriter,
    object_folder,
    read_masklet,
    read_together,
    saturate,
    upsample,
)


def smooth(seed: int, size: int = 64) -> np.ndarray[Any, Any]:
    """Logits like a model's: smooth, from far below to far above 0, with a little noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    radius = np.hypot(x - random.integers(10, 50), y - random.integers(10, 50))
    return (15 - radius + random.normal(0, 0.05, radius.shape)).astype(np.float32)


def write(folder: Path, indices: list[int], object_id: int | str = 1) -> list[MaskletRow]:
    rows = [MaskletRow(index, float(index), smooth(index)) for index in indices]
    writer = MaskletWriter(folder, object_id)
    for row, following in pairwise([*rows, rows[0]]):
        writer.add(row)
        if following.frame_index < rows[0].frame_index < row.frame_index:
            writer.flush()
    writer.flush()
    return rows


@settings(max_examples=60, deadline=None)
@given(
    logits=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 9)),
        elements=st.floats(-12, 12, width=32) | st.sampled_from([-1024.0, -6.3, 6.3, 0.0]),
    ),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_saturated_logits_give_the_same_masks_and_confidences(
    logits: np.ndarray[Any, Any], height: int, width: int
) -> None:
    before, after = upsample(logits, height, width), upsample(saturate(logits), height, width)
    assert np.array_equal(binary_mask(before), binary_mask(after))
    assert np.array_equal(confidence(before), confidence(after))


@pytest.mark.parametrize("size", [(480, 854), (120, 90), (64, 64), (33, 1000)])
def test_masks_and_confidences_read_back_exactly(tmp_path: Path, size: tuple[int, int]) -> None:
    rows = write(tmp_path, list(range(12)))
    for row, stored in zip(rows, read_masklet(tmp_path), strict=True):
        assert (stored.frame_index, stored.object_score) == (row.frame_index, row.object_score)
        full, again = upsample(row.logits, *size), upsample(stored.logits, *size)
        assert np.array_equal(binary_mask(full), binary_mask(again))
        assert np.array_equal(confidence(full), confidence(again))


@pytest.mark.parametrize(
    "indices",
    [
        list(range(600)),
        list(range(600, 0, -1)),
        [*range(50, 80), *range(49, -1, -1)],
        [*range(50, 306), *range(49, -1, -1)],
        [*range(50, 307), *range(49, -1, -1)],
        [*range(51, 79), *range(50, -1, -1)],
        [5, 4],
        [7],
    ],
    ids=[
        "forward",
        "backward",
        "both",
        "both, turning after a whole part",
        "both, turning after one row of a part",
        "both, without the start on the way there",
        "two backward",
        "one",
    ],
)
def test_rows_come_back_by_frame_index_in_parts(tmp_path: Path, indices: list[int]) -> None:
    write(tmp_path, indices)
    assert [row.frame_index for row in read_masklet(tmp_path)] == sorted(indices)
    assert all(pq.read_metadata(part).num_rows <= 256 for part in tmp_path.iterdir())


def test_the_same_rows_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, list(range(300)))
    for part in (tmp_path / "a").iterdir():
        assert part.read_bytes() == (tmp_path / "b" / part.name).read_bytes()


def test_what_cannot_matter_takes_almost_no_room(tmp_path: Path) -> None:
    writer = MaskletWriter(tmp_path, 1)
    for index in range(100):
        writer.add(MaskletRow(index, -3.0, np.full((64, 64), -1024, np.float32)))
    writer.flush()
    assert sum(part.stat().st_size for part in tmp_path.iterdir()) / 100 < 200


def test_a_part_is_plain_parquet_that_says_whose_it_is(tmp_path: Path) -> None:
    write(object_folder(tmp_path, "cat"), [3, 4], "cat")
    table = pq.read_table(next((tmp_path / "object=cat").iterdir()), partitioning=None)
    assert table.column_names == ["frame_index", "object_score", "logits"]
    assert table.schema.metadata == {b"object_id": b'"cat"', b"height": b"64", b"width": b"64"}
    assert len(table["logits"][0].as_py()) == 64 * 64


def test_objects_are_read_frame_by_frame(tmp_path: Path) -> None:
    for object_id in (1, "two"):
        write(object_folder(tmp_path, object_id), [2, 3, 4], object_id)
    frames = list(read_together(tmp_path, [1, "two"]))
    assert [(index, list(rows)) for index, rows in frames] == [
        (index, [1, "two"]) for index in (2, 3, 4)
    ]


def test_objects_with_other_frames_are_not_mixed(tmp_path: Path) -> None:
    write(object_folder(tmp_path, 1), [0, 1, 2])
    write(object_folder(tmp_path, 2), [0, 2, 3], 2)
    with pytest.raises(ValueError, match="not of the same frames"):
        list(read_together(tmp_path, [1, 2]))
    write(object_folder(tmp_path, 3), [0, 1], 3)
    with pytest.raises(ValueError, match="shorter"):
        list(read_together(tmp_path, [1, 3]))
