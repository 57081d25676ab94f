import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masklet.manifest import (
    FILE_NAME,
    SCHEMA,
    SCHEMA_VERSION,
    Done,
    Manifest,
    Reason,
    Work,
    content_hash,
)

DOCUMENT = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text(encoding="utf-8")
WORK = Work("masks", 1, "masks.zip", "masks.zip", {"size": [4, 3]}, {"object=1": "abc"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / WORK.path).write_bytes(b"12345")
    Manifest(tmp_path, "first").record([Done(WORK, Reason.NEW, 7, 1.5)])
    return tmp_path


def test_what_is_recorded_is_not_done_again(root: Path) -> None:
    assert Manifest(root, "second").reason_to_run(WORK) is None


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (replace(WORK, parameters={"size": [5, 3]}), Reason.PARAMETERS),
        (replace(WORK, inputs={"object=1": "abd"}), Reason.INPUTS),
        (replace(WORK, inputs={}), Reason.INPUTS),
        (replace(WORK, code_version=2), Reason.CODE),
        (replace(WORK, artifact="other.zip"), Reason.NEW),
        (replace(WORK, stage="other"), Reason.NEW),
    ],
)
def test_a_change_is_named(root: Path, work: Work, reason: Reason) -> None:
    assert Manifest(root, "second").reason_to_run(work) == reason


def test_a_lost_or_cut_output_is_noticed(root: Path) -> None:
    (root / WORK.path).write_bytes(b"1234")
    assert Manifest(root, "second").reason_to_run(WORK) == Reason.DAMAGED
    (root / WORK.path).unlink()
    assert Manifest(root, "second").reason_to_run(WORK) == Reason.MISSING


def test_a_failure_is_tried_again(root: Path) -> None:
    (root / WORK.path).unlink()
    manifest = Manifest(root, "second")
    manifest.record_failure(WORK, reason=Reason.MISSING, seconds=0.1, error="disk full")
    assert Manifest(root, "third").reason_to_run(WORK) == Reason.FAILED
    assert Manifest(root, "third").row("masks", "masks.zip").error == "disk full"


def test_a_failure_leaves_an_earlier_artifact_what_it_is(root: Path) -> None:
    other = replace(WORK, inputs={"object=1": "abd"})
    manifest = Manifest(root, "second")
    manifest.record_failure(other, reason=Reason.INPUTS, seconds=0.1, error="disk full")
    again = Manifest(root, "third")
    assert again.row("masks", "masks.zip").error == "disk full"
    assert again.reason_to_run(WORK) is None
    assert again.reason_to_run(other) == Reason.INPUTS


def test_the_order_of_parameters_does_not_matter() -> None:
    one = replace(WORK, parameters={"a": 1, "b": 2})
    assert one.key == replace(WORK, parameters={"b": 2, "a": 1}).key
    assert one.key != WORK.key


def test_the_file_is_plain_parquet_of_the_schema(root: Path) -> None:
    table = pq.read_table(root / FILE_NAME)
    assert table.schema.equals(SCHEMA)
    [row] = table.to_pylist()
    assert (row["bytes"], row["rows"], row["status"], row["run_id"]) == (5, 7, "done", "first")
    assert row["sha256"] == content_hash(root / WORK.path)
    assert pa.types.is_int64(table.schema.field("schema_version").type)


def test_a_folder_is_hashed_by_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before = content_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert content_hash(tmp_path) != before
    (tmp_path / "b").rename(tmp_path / "a")
    assert content_hash(tmp_path) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of one size, the last of which is the newest."""
    (tmp_path / "parts").mkdir()
    for number, name in enumerate("abc"):
        (tmp_path / "parts" / name).write_text(name)
        os.utime(tmp_path / "parts" / name, (number, number))
    return tmp_path / "parts"


def swap(folder: Path) -> None:
    (folder / "a").rename(folder / "t")
    (folder / "b").rename(folder / "a")
    (folder / "t").rename(folder / "b")


def put_an_older_one_in_its_place(folder: Path) -> None:
    (folder / "b").write_text("x")
    os.utime(folder / "b", (0, 0))


@pytest.mark.parametrize("harm", [swap, put_an_older_one_in_its_place])
def test_a_folder_is_hashed_when_its_size_and_newest_file_stayed(
    harm: Callable[[Path], None], folder: Path
) -> None:
    work = replace(WORK, path=folder.name)
    Manifest(folder.parent, "first").record([Done(work, Reason.NEW, 3, 0.1)])
    assert Manifest(folder.parent, "second").reason_to_run(work) is None
    time.sleep(0.05)  # longer than the kernel's clock stands still
    harm(folder)
    assert Manifest(folder.parent, "third").reason_to_run(work) == Reason.DAMAGED


def test_every_field_is_documented(root: Path) -> None:
    section = DOCUMENT.split("## Fields")[1].split("##")[0]
    documented = re.findall(r"^\| `(\w+)` \| (\w+) \|", section, re.MULTILINE)
    assert documented == [(field.name, str(field.type)) for field in SCHEMA]
    assert f"of this table: {SCHEMA_VERSION} " in section
    reasons = DOCUMENT.split("## Reasons")[1].split("##")[0]
    assert re.findall(r"^\| `([\w ]+)` \|", reasons, re.MULTILINE) == list(Reason)


def test_the_examples_in_python_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "out").mkdir()
    (root / "out" / "clip").symlink_to(root)
    monkeypatch.chdir(root)
    examples = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    assert capsys.readouterr().out == "masks\tmasks.zip\t5\tnew\n"


def test_a_manifest_of_version_1_is_read_and_its_files_hashed_once(root: Path) -> None:
    table = pq.read_table(root / FILE_NAME).drop_columns(["mtime_ns", "inode"])
    at = table.schema.get_field_index("schema_version")
    pq.write_table(table.set_column(at, "schema_version", pa.array([1])), root / FILE_NAME)
    manifest = Manifest(root, "second")
    assert manifest.reason_to_run(WORK) is None
    manifest.settle()
    [row] = pq.read_table(root / FILE_NAME).to_pylist()
    about = (root / WORK.path).stat()
    assert (row["mtime_ns"], row["inode"]) == (about.st_mtime_ns, about.st_ino)
    assert row["schema_version"] == SCHEMA_VERSION


def test_a_manifest_of_a_later_version_is_refused(root: Path) -> None:
    table = pq.read_table(root / FILE_NAME)
    at = table.schema.get_field_index("schema_version")
    later = pa.array([SCHEMA_VERSION + 1])
    pq.write_table(table.set_column(at, "schema_version", later), root / FILE_NAME)
    with pytest.raises(ValueError, match=f"schema_version is {SCHEMA_VERSION + 1}"):
        Manifest(root, "second")


def test_a_file_that_was_only_touched_is_hashed_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(root / WORK.path, (1, 1))
    manifest = Manifest(root, "second")
    assert manifest.reason_to_run(WORK) is None
    manifest.settle()

    def must_not_run(path: Path) -> str:
        raise AssertionError(f"{path} was hashed")

    monkeypatch.setattr("masklet.manifest.content_hash", must_not_run)
    assert Manifest(root, "third").reason_to_run(WORK) is None
    with pytest.raises(AssertionError):
        Manifest(root, "fourth", verify=True).reason_to_run(WORK)


def test_forgotten_rows_are_gone(root: Path) -> None:
    Manifest(root, "second").forget("masks", "masks.zip")
    assert Manifest(root, "third").rows() == []
