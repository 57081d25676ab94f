"""What the tests of reruns share: a finished run directory, and an eye on what a rerun does."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from masklet import pipeline, propagate, tracker, tracking
from masklet.job import make_job
from masklet.manifest import SCHEMA
from masklet.media import write_video
from masklet.network import Network
from masklet.pipeline import run_job
from tests.conftest import HEIGHT, WIDTH, picture

FRAMES = 5
ALL_OUTPUTS = {"debug_masks": True, "pixel_confidences": True, "bbox_tracking": True}
CLICK = {"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}
BOX = {"frame_index": 2, "object_id": "wide", "box": [20, 10, 120, 90]}


def write_clip(path: Path, speed: float = 3.0) -> Path:
    frames = (picture(frame_index, speed) for frame_index in range(FRAMES))
    write_video(path, frames, width=WIDTH, height=HEIGHT, frame_rate=Fraction(10))
    return path


@dataclass
class Eye:
    """What runs did while this looked.

    tracked: ids of the objects that were propagated; each other field counts calls.
    """

    tracked: list[Any] = field(default_factory=list)
    model_calls: int = 0
    models_loaded: int = 0
    probes: int = 0

    def saw_nothing(self) -> bool:
        return self == Eye()

    def forget(self) -> None:
        self.__dict__.update(vars(Eye()))


@pytest.fixture
def eye(monkeypatch: pytest.MonkeyPatch) -> Eye:
    """Everything is done as ever, and counted."""
    eye = Eye()

    def counting(owner: Any, name: str, note: Callable[..., None]) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            note(*arguments)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    def one_more(count: str) -> Callable[..., None]:
        return lambda *_: setattr(eye, count, getattr(eye, count) + 1)

    counting(tracking, "track_objects", lambda plan, works, *_: eye.tracked.extend(works))
    counting(Network, "encode", one_more("model_calls"))
    counting(tracker, "condition", one_more("model_calls"))
    counting(tracker, "track", one_more("model_calls"))
    counting(pipeline, "load_model", one_more("models_loaded"))
    counting(pipeline, "probe", one_more("probes"))
    return eye


class File(NamedTuple):
    """What is the same as long as nobody touched a file."""

    sha256: str
    mtime_ns: int
    inode: int


def files_of(out: Path) -> dict[str, File]:
    """Every file of a run directory but the lock, which says who works there."""
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.name != ".lock":
            about = path.stat()
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path.relative_to(out))] = File(digest, about.st_mtime_ns, about.st_ino)
    return found


def contents_of(out: Path) -> dict[str, str]:
    """Hashes of the files that the same job always makes the same; the manifest has times."""
    return {name: file.sha256 for name, file in files_of(out).items() if name != "manifest.parquet"}


@pytest.fixture(scope="session")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job with every output: a click on the first frame, and a box on the third."""
    clip = write_clip(tmp_path_factory.mktemp("short") / "clip.mp4")
    return {"file": str(clip), "model_type": "nano", "prompts": [CLICK, BOX], **ALL_OUTPUTS}


@pytest.fixture(scope="session")
def finished(fields: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of `fields`; look at it, and leave it as it is."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run_job(make_job(fields), out)
    return out


@pytest.fixture
def out(finished: Path, fields: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of `finished` whose manifest knows the inodes of the copy."""
    shutil.copytree(finished, tmp_path / "out")
    run_job(make_job(fields), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def checkpoints_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_checkpoints_all_the_time(monkeypatch)


def keep_checkpoints_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLET_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(propagate, "_MOST_FOR_KEEPING", 1e9)


def rewritten(out: Path, stage: str, /, **values: Any) -> None:
    """Change rows of the manifest."""
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    rows = [row | values if row["stage"] == stage else row for row in rows]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), out / "manifest.parquet")
