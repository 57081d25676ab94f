"""Datasets in every format, and all that can be wrong with their items."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masklet.dataset import Dataset, DatasetError, read_dataset
from masklet.errors import UserError
from masklet.item_table import blank_row

CLICK = {"frame_index": 0, "object_id": 1, "points": [[40.0, 45.0]], "labels": [1]}
NANO = {"model_type": "nano"}


@pytest.fixture
def folder(clip: Path, tmp_path: Path) -> Path:
    """A folder with two videos in a folder of their own."""
    (tmp_path / "clips").mkdir()
    for name in ("a", "b"):
        shutil.copy(clip, tmp_path / "clips" / f"{name}.mp4")
    (tmp_path / "click.json").write_text(json.dumps([CLICK]))
    return tmp_path


def fields_of(dataset: Dataset) -> list[dict[str, Any]]:
    return [
        {"item_id": one.item_id, **one.job.model_dump(mode="json", exclude_defaults=True)}
        for one in dataset.items
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The same items in the format that the name of the file says."""
    if path.suffix in (".yaml", ".json"):
        path.write_text(json.dumps(rows if path.suffix == ".yaml" else {"items": rows}))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
            writer.writeheader()
            for row in rows:
                inline = json.dumps(row["prompts"])
                by_path = isinstance(row["prompts"], str)
                writer.writerow({**row, "prompts": row["prompts"] if by_path else inline})
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("kind", ["yaml", "json", "jsonl", "csv", "parquet"])
def test_every_format_says_the_same(folder: Path, kind: str) -> None:
    rows = [
        {"item_id": "one", "file": "clips/a.mp4", "prompts": [CLICK], "end_frame": 3},
        {"item_id": "two", "file": "clips/b.mp4", "prompts": [CLICK], "bbox_tracking": True},
    ]
    if kind == "parquet":  # where the columns of a file have one schema
        rows = [{**dict.fromkeys(["end_frame", "bbox_tracking"]), **row} for row in rows]
    found = read_dataset(write(folder / f"set.{kind}", rows), NANO)
    assert found.problems == ()
    clips = folder / "clips"
    one, two = ({"item_id": name, "prompts": [CLICK], **NANO} for name in ("one", "two"))
    assert fields_of(found) == [
        one | {"file": str(clips / "a.mp4"), "end_frame": 3},
        two | {"file": str(clips / "b.mp4"), "bbox_tracking": True},
    ]


@pytest.mark.parametrize("kind", ["yaml", "csv", "jsonl", "parquet"])
def test_prompts_by_path_are_beside_the_dataset(folder: Path, kind: str) -> None:
    rows = [{"item_id": "one", "file": "clips/a.mp4", "prompts": "click.json"}]
    [item] = read_dataset(write(folder / f"set.{kind}", rows), NANO).items
    assert [one.points for one in item.job.prompts] == [[(40.0, 45.0)]]


def test_an_item_goes_before_the_defaults_and_overrides_before_both(folder: Path) -> None:
    items = [
        {"item_id": "one", "file": "clips/a.mp4", "end_frame": 3},
        {"item_id": "two", "file": "clips/b.mp4"},
    ]
    defaults = {"prompts": [CLICK], "end_frame": 5, "bbox_tracking": True, **NANO}
    path = folder / "set.yaml"
    path.write_text(json.dumps({"defaults": defaults, "items": items}))
    jobs = [one.job for one in read_dataset(path, {"bbox_tracking": False}).items]
    assert [job.end_frame for job in jobs] == [3, 5]
    assert [job.bbox_tracking for job in jobs] == [False, False]


def test_videos_with_prompts_beside_them(folder: Path) -> None:
    clips = folder / "clips"
    shutil.copy(folder / "click.json", clips / "a.json")
    shutil.copy(clips / "a.mp4", clips / "what is this (1)")
    shutil.copy(folder / "click.json", clips / "what is this (1).json")
    (clips / "README.txt").write_text("about these")
    (clips / ".hidden.mp4").write_bytes(b"")
    for place in (str(clips), f"{folder}/*/*", f"{folder}/**/*"):
        found = read_dataset(place, NANO)
        names = [one.item_id.removeprefix("clips_") for one in found.items]
        assert names == ["a", "what_is_this_1_"], place
        [problem] = found.problems
        assert problem.place.endswith("b.mp4 (b)") or problem.place.endswith("b.mp4 (clips_b)")
        assert problem.message == "there are neither prompts nor mask_prompts"


def test_all_problems_are_listed_at_once(folder: Path) -> None:
    file = "clips/a.mp4"
    rows: list[Any] = [
        {"item_id": "good", "file": file, "prompts": [CLICK]},
        {"item_id": "../up", "file": file, "prompts": [CLICK]},
        {"item_id": "GOOD", "file": file, "prompts": [CLICK]},
        {"item_id": "gone", "file": "no.mp4", "prompts": [CLICK]},
        {"item_id": "box", "file": file, "prompts": [{**CLICK, "box": [5, 5, 1, 1]}]},
        {"item_id": "none", "file": file},
        {"item_id": "field", "file": file, "prompts": [CLICK], "colour": "red"},
        {"item_id": "model", "file": file, "prompts": [CLICK], "model_type": "huge"},
        {"item_id": "summary.json", "file": file, "prompts": [CLICK]},
        {"item_id": "path", "file": file, "prompts": "no.json"},
        "no mapping",
        {"item_id": "more-of-it", "file": "no.mp4", "prompts": [CLICK]},
        {"item_id": "range", "file": file, "prompts": [CLICK], "start_frame": 5, "end_frame": 3},
        {"item_id": "late", "file": file, "prompts": [CLICK], "start_frame": 5},
        {"item_id": "zip", "file": file, "mask_prompts": "click.json"},
        {"item_id": "empty", "file": "empty.mp4", "prompts": [CLICK]},
        {"item_id": "json", "file": file, "prompts": "[{"},
        {"file": None, "prompts": [CLICK]},
    ]
    (folder / "empty.mp4").touch()
    path = folder / "set.yaml"
    path.write_text(json.dumps({"defaults": NANO, "items": rows}))
    found = read_dataset(path)
    assert [one.item_id for one in found.items] == ["good"]
    assert len(found.problems) == 17
    with pytest.raises(DatasetError, match="17 of 18 items cannot be run") as refusal:
        found.require_sound()
    lines = refusal.value.lines
    for number, words in enumerate(
        [
            "item 2 (../up): the item_id is not safe",
            "item 3 (GOOD): the item_id is there twice",
            "item 4 (gone) and 1 more: ",
            "item 5 (box): prompts[0] (frame 0, object 1) has the box",
            "item 6 (none): there are neither",
            "item 7 (field): colour is not a field",
            "item 8 (model): There is no model 'huge'",
            "item 9 (summary.json): the item_id is the name of a file",
            "item 10 (path): ",
            "item 11 and 1 more: an item is a mapping",
            "item 13 (range): start_frame 5 is after end_frame 3",
            "item 14 (late): prompts[0] (frame 0, object 1): the frame is outside the processed "
            "range 5 to the end",
            f"item 15 (zip): {folder / 'click.json'}: is not a zip of masks",
            f"item 16 (empty): {folder / 'empty.mp4'}: is empty",
            "item 17 (json): prompts: is not valid JSON: ",
        ]
    ):
        assert lines[number].startswith(words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("set.csv", b"item_id,colour\na,red\n", "'colour' is not a column"),
        ("set.csv", b'item_id,file\n"a,b', "is not valid CSV"),
        ("set.csv", b"\xff\xfe\x00", "is not valid CSV"),
        ("set.csv", b"", "has no items"),
        ("set.csv", b"item_id,file\n", "has no items"),
        ("set.jsonl", b"\xff\xfe\x00", "is not valid JSONL"),
        ("set.parquet", b"PAR1 it is not", "is not valid PARQUET"),
        ("set.yaml", b"a: &a [*a]", "aliases"),
        ("set.yaml", b"items: 7", "a dataset is a list of items"),
        ("set.yaml", b"items: []\nmore: 1", "more is not part of a dataset"),
        (
            "set.yaml",
            b"items: []\ndefaults: {item_id: a}",
            "defaults are fields of a job, item_id is none",
        ),
        ("set.yaml", b"items: []\ndefaults: 7", "defaults are a mapping"),
        ("set.yaml", b"[]", "has no items"),
        ("set.txt", b"a", "a dataset is a .yaml"),
    ],
)
def test_what_is_no_dataset_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="set") as refusal:
        read_dataset(tmp_path / name)
    assert words in str(refusal.value)


@pytest.mark.parametrize("start", [" ", "\t", "'", "videos/"])
def test_of_an_address_with_something_before_it_no_secret_is_shown(
    start: str, tmp_path: Path
) -> None:
    address = f"{start}https://me:SECRET@h.example/v.mp4?sig=SECRET"
    jobs = [{"file": address, "prompts": [{"frame_index": 999}]}, {"file": address}]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    found = read_dataset(tmp_path / "jobs.json")
    for problem in found.problems:
        assert "SECRET" not in problem.message
        row = blank_row("a", problem.file, "out", "")
        assert "SECRET" not in str(row)
    if start.strip():
        assert "is neither a path nor an address" in found.problems[0].message


def test_a_model_that_is_none_is_a_problem_wherever_the_weights_are(tmp_path: Path) -> None:
    job = {"file": str(tmp_path / "a.mp4"), "model_type": "larg", "prompts": [CLICK]}
    (tmp_path / "a.mp4").write_bytes(b"video")
    (tmp_path / "jobs.json").write_text(json.dumps([job]))
    [problem] = read_dataset(tmp_path / "jobs.json", weights=False).problems
    assert "There is no model 'larg'" in problem.message


def test_a_dataset_that_is_not_there(tmp_path: Path) -> None:
    for place, words in (
        (tmp_path / "set.csv", "there is no such dataset"),
        (tmp_path / "*.mp4", "matches no file"),
        ("a\0b", "there is no such dataset"),
    ):
        with pytest.raises(UserError, match=words):
            read_dataset(place)


def test_a_row_of_too_many_cells_is_the_problem_of_its_item(folder: Path) -> None:
    path = folder / "set.csv"
    path.write_text("item_id,file,prompts\na,clips/a.mp4,click.json,7\nb,clips/b.mp4,click.json\n")
    found = read_dataset(path, NANO)
    assert [one.item_id for one in found.items] == ["b"]
    [problem] = found.problems
    assert problem.place == "line 2 (a)"
    assert problem.message == "the line has more cells than the first one has columns"


def test_a_broken_line_is_the_problem_of_its_item(folder: Path) -> None:
    good = json.dumps({"item_id": "good", "file": "clips/a.mp4", "prompts": [CLICK]})
    broken = ['{"item_id": "a"', "[" * 100_000, '{"file": "a", "file": "b"}', "7"]
    path = folder / "set.jsonl"
    path.write_text("\n".join([*broken, good]))
    found = read_dataset(path, NANO)
    assert [one.item_id for one in found.items] == ["good"]
    for number, words in enumerate(
        ("is not valid JSON: ", "is nested too deeply", "the key 'file' is there twice", "an item"),
        1,
    ):
        problem = found.problems[number - 1]
        assert problem.place == f"line {number}"
        assert words in problem.message
