"""Other hands on what a run reads, and in its directory, while it is at work."""

import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masklet import lock
from masklet.content import Stamp
from masklet.errors import UserError
from masklet.job import make_job
from masklet.manifest import Manifest
from masklet.pipeline import Steps, check_prompts, dry_run, run_job
from masklet.standings import CHECKPOINT
from masklet.status import read_status
from tests.conftest import picture
from tests.masklet.conftest import Eye, contents_of, files_of, rewritten, write_clip

pytestmark = pytest.mark.usefixtures("checkpoints_all_the_time")

Progress = Callable[[str, int, int], None]


def at_step(step: int, act: Callable[[], object], stage: str = "propagate") -> Progress:
    """A progress function that acts once, when so many steps of a stage are done."""

    def progress(name: str, done: int, total: int) -> None:
        if (name, done) == (stage, step):
            act()

    return progress


# ---------------------------------------------------------------------------------------------
# A source that changes


@pytest.fixture
def job(fields: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The job on a source of its own."""
    shutil.copyfile(fields["file"], tmp_path / "clip.mp4")
    return {**fields, "file": str(tmp_path / "clip.mp4")}


def change(job: dict[str, Any]) -> None:
    """Put another video of the same size in the source's place."""
    other = write_clip(Path(job["file"]).with_name("other.mp4"), speed=-1.0)
    other.replace(job["file"])


def restore(job: dict[str, Any], fields: dict[str, Any]) -> None:
    shutil.copyfile(fields["file"], job["file"])


@pytest.mark.parametrize(
    ("stage", "step"), [("propagate", 2), ("propagate", 5), ("debug_masks", 1), ("masks", 5)]
)
def test_a_source_that_changes_while_a_run_is_at_work(
    stage: str,
    step: int,
    job: dict[str, Any],
    fields: dict[str, Any],
    finished: Path,
    tmp_path: Path,
) -> None:
    """What was made of the other video is recorded nowhere, and no run goes on from it."""
    out = tmp_path / "out"
    progress = at_step(step, lambda: change(job), stage)
    with pytest.raises(UserError, match=r"clip\.mp4: was changed or removed while the job was"):
        run_job(make_job(job), out, progress=progress)
    restore(job, fields)
    run_job(make_job(job), out)
    assert contents_of(out) == contents_of(finished)


def test_a_source_that_changes_before_a_run_has_its_directory(
    job: dict[str, Any], tmp_path: Path, eye: Eye
) -> None:
    """As while it waits for another run; no time is lost on it then."""

    def check_and_change(*given: Any) -> Any:
        plan = check_prompts(*given)
        change(job)
        return plan

    with pytest.raises(UserError, match="was changed or removed"):
        run_job(make_job(job), tmp_path / "out", steps=Steps(check_prompts=check_and_change))
    assert eye.models_loaded == 0
    assert not (tmp_path / "out").exists()


def test_links_that_lead_elsewhere_are_another_folder(tmp_path: Path) -> None:
    for name in ("one", "two", "links"):
        (tmp_path / name).mkdir()
    for name in ("one", "two"):
        Image.fromarray(picture(len(name))).save(tmp_path / name / "0.bmp")
    (tmp_path / "now").symlink_to("one")
    (tmp_path / "links" / "0.bmp").symlink_to("../now/0.bmp")
    before = Stamp.of(tmp_path / "links")
    (tmp_path / "links" / "folder").mkdir()
    assert Stamp.of(tmp_path / "links") == before
    (tmp_path / "now").unlink()
    (tmp_path / "now").symlink_to("two")
    other = Stamp.of(tmp_path / "links")
    assert other != before
    (tmp_path / "links" / "0.bmp").rename(tmp_path / "links" / "1.bmp")
    assert Stamp.of(tmp_path / "links") not in (before, other)


# ---------------------------------------------------------------------------------------------
# A run directory that is taken away


def test_a_run_that_fails_removes_what_is_its_own_and_nothing_else(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLET_CHECKPOINT_SECONDS", "1e9")
    out = tmp_path / "new" / "out"

    def put_notes_and_leave() -> None:
        (out / "notes.txt").write_text("precious")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(make_job(fields), out, progress=at_step(2, put_notes_and_leave))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    with pytest.raises(KeyboardInterrupt):
        run_job(make_job(fields), tmp_path / "more" / "out", progress=at_step(2, _leave))
    assert not (tmp_path / "more").exists()


def _leave() -> None:
    raise KeyboardInterrupt


def put_another_in_its_place(out: Path, finished: Path) -> None:
    """Take the directory away, and put one there that another run has made."""
    out.rename(out.with_name("gone"))
    shutil.copytree(finished, out)


def assert_is_the_other(out: Path, finished: Path) -> None:
    assert contents_of(out) == contents_of(finished)
    assert (out / "manifest.parquet").read_bytes() == (finished / "manifest.parquet").read_bytes()


@pytest.mark.parametrize("seconds", ["0", "1e9"], ids=["checkpoints", "none"])
@pytest.mark.parametrize(("stage", "step"), [("propagate", 2), ("propagate", 5), ("masks", 2)])
def test_a_run_whose_directory_was_removed_leaves_the_next_ones_alone(
    stage: str,
    step: int,
    seconds: str,
    fields: dict[str, Any],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MASKLET_CHECKPOINT_SECONDS", seconds)
    out = tmp_path / "out"

    def remove_and_run_another() -> None:
        put_another_in_its_place(out, finished)
        (out / ".tracking" / "object=1").mkdir(parents=True)
        (out / ".tracking" / "object=1" / "frames-00000000.parquet").write_bytes(b"another's")

    with pytest.raises(
        lock.Lost, match=r"out: the directory, or its \.lock, was removed while a run"
    ):
        run_job(make_job(fields), out, progress=at_step(step, remove_and_run_another, stage))
    scratch = out / ".tracking"
    [part] = scratch.rglob("*.*")
    assert part.read_bytes() == b"another's"
    shutil.rmtree(scratch)
    assert_is_the_other(out, finished)


@pytest.mark.parametrize(
    ("function", "file"),
    [("content_hash", "bbox_tracking.json"), ("write_table", ".manifest.parquet.*.tmp")],
)
def test_a_directory_that_is_removed_while_a_work_is_recorded(
    function: str,
    file: str,
    fields: dict[str, Any],
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At moments when the hold was found to stand; the manifest of another run stays."""
    out, place = tmp_path / "out", f"masklet.manifest.{function}"
    call: Callable[..., Any] = pkgutil.resolve_name(place)

    def remove_and_call(*given: Any, **options: Any) -> Any:
        is_file = any(isinstance(one, Path) and one.match(file) for one in given)
        if is_file and (out / "masklets").exists() and not out.with_name("gone").exists():
            put_another_in_its_place(out, finished)
        return call(*given, **options)

    monkeypatch.setattr(place, remove_and_call)
    with pytest.raises(lock.Lost):
        run_job(make_job(fields), out)
    assert files_of(out).keys() == files_of(finished).keys()
    assert_is_the_other(out, finished)


def test_a_run_whose_directory_was_removed_says_so(fields: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(lock.Lost):
        run_job(make_job(fields), out, progress=at_step(2, lambda: shutil.rmtree(out)))
    assert not out.exists()


def test_a_directory_that_is_removed_before_a_failure_is_recorded(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    """As when another output, made at the same time, finds no directory to be put into."""
    out = tmp_path / "out"

    def remove_and_fail() -> None:
        out.rename(out.with_name("gone"))
        raise UserError("cannot be written")

    with pytest.raises(lock.Lost):
        run_job(make_job(fields), out, progress=at_step(2, remove_and_fail, "masks"))
    assert not out.exists()


def test_removed_masklets_are_gone_though_their_folder_is_a_link(
    fields: dict[str, Any], out: Path, tmp_path: Path
) -> None:
    (out / "masklets").rename(tmp_path / "elsewhere")
    (out / "masklets").symlink_to(tmp_path / "elsewhere")
    run_job(make_job({**fields, "keep_masklets": False}), out)
    assert not list((tmp_path / "elsewhere").rglob("*.parquet"))
    assert read_status(out).is_right


def test_masklets_on_another_disk(fields: dict[str, Any], out: Path, tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=_another_disk(tmp_path)) as folder:
        shutil.move(out / "masklets", folder)
        (out / "masklets").symlink_to(Path(folder, "masklets"))
        before = contents_of(out / "masklets")
        run_job(make_job(fields), out, force="propagate")
        assert contents_of(out / "masklets") == before
        assert {path.name for path in Path(folder, "masklets").iterdir()} == {
            "object=1",
            "object=wide",
        }
        assert read_status(out).is_right


def _another_disk(path: Path) -> Path:
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == path.stat().st_dev:
        pytest.skip("there is no other disk")
    return other


# ---------------------------------------------------------------------------------------------
# What is there is not what it should be


@pytest.mark.parametrize("path", ["", "price.json", "masklets"])
def test_a_row_of_another_path_does_not_stand_for_the_output(
    path: str, fields: dict[str, Any], out: Path
) -> None:
    made = (out / "masks.zip").read_bytes()
    row = Manifest(out, "").row("finish", "price.json")
    rewritten(out, "masks", path=path, bytes=row.bytes, sha256=row.sha256, mtime_ns=row.mtime_ns)
    (out / "masks.zip").unlink()
    assert not read_status(out).is_right
    run_job(make_job(fields), out)
    assert (out / "masks.zip").read_bytes() == made


def test_a_table_of_frames_that_is_none(fields: dict[str, Any], out: Path) -> None:
    """The manifest vouches for it, and yet the frames are found again."""
    before = contents_of(out)
    pq.write_table(pa.table({"a": [1]}), out / "frames.parquet")
    sha256, stamp = contents_of(out)["frames.parquet"], Stamp.of(out / "frames.parquet")
    assert stamp
    rewritten(out, "ingest", sha256=sha256, **stamp._asdict())
    run_job(make_job(fields), out)
    after = contents_of(out)
    assert {name for name in before if before[name] != after[name]} <= {"frames.parquet"}


def test_what_cannot_be_gone_on_from_is_not_promised(
    fields: dict[str, Any], tmp_path: Path
) -> None:
    out, scratch = tmp_path / "out", tmp_path / "out" / ".tracking"
    job = make_job({**fields, "direction": "both"})
    with pytest.raises(KeyboardInterrupt):
        run_job(job, out, progress=at_step(4, _leave))
    assert read_status(out).tracked == {"1": 3, "wide": 3}
    content = bytearray((scratch / CHECKPOINT).read_bytes())
    content[-1] ^= 1
    (scratch / CHECKPOINT).write_bytes(content)
    assert read_status(out).tracked == {}
    assert not [one for one in dry_run(job, out) if "goes on" in one.why]


def test_a_folder_with_the_name_of_a_temporary_file(fields: dict[str, Any], out: Path) -> None:
    (out / ".x.1.tmp").mkdir()
    before = files_of(out)
    run_job(make_job(fields), out)
    assert files_of(out) == before


def test_a_lock_that_is_a_pipe(fields: dict[str, Any], finished: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / ".lock")
    run_job(make_job(fields), tmp_path / "out")
    assert contents_of(tmp_path / "out").items() >= contents_of(finished).items()


@pytest.mark.parametrize("name", ["masks.zip", "manifest.parquet", "outputs.json"])
def test_a_link_that_leads_to_itself(
    name: str, fields: dict[str, Any], finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to(name)
    dry_run(make_job(fields), out)
    run_job(make_job(fields), out)
    assert contents_of(out) == contents_of(finished)


@pytest.mark.parametrize("tail", ["", "x"])
def test_a_directory_that_is_a_link_to_itself(
    tail: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(UserError, match="cannot be a run directory"):
        run_job(make_job(fields), tmp_path / "out" / tail)


def test_names_that_are_not_utf_8(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / os.fsdecode(b"\xff2")
    with pytest.raises(UserError, match="the name is not UTF-8"):
        run_job(make_job(fields), folder)
    assert not folder.exists()
    folder.mkdir()
    shutil.copyfile(fields["file"], folder / "clip.mp4")
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="the name is not UTF-8"):
        run_job(make_job({**fields, "file": "clip.mp4"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_while_the_command_line_is_imported(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background\n"
        "class Pressed:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from masklet.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "models"],
        env={**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[1])},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, b"", b"")
