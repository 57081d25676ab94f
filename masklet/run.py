"""A run directory, held by one process while it works there."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import NamedTuple

from masklet import lock, works
from masklet.atomic import remove_temporary_files
from masklet.content import Stamp
from masklet.errors import UserError
from masklet.job import SegmentJob
from masklet.manifest import FILE_NAME, INPUT, Done, InputFile, Manifest, Reason, Work
from masklet.models import ModelSpec
from masklet.standings import CHECKPOINT, standings
from masklet.storage import is_url, require_name
from masklet.store import object_folder, part_hashes
from masklet.works import Asked, Force

Progress = Callable[[str, int, int], None]
_SCRATCH = ".tracking"


class Stopped(Exception):
    """The run was given up while this thread was at work."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress function of those who do not want to be told."""


@dataclass(frozen=True)
class Weights:
    """A model, the file its weights come from, and the hash of its config."""

    spec: ModelSpec
    file: InputFile
    config_sha256: str


class Made(NamedTuple):
    """What a run did about one artifact; `reason` is None where it was there already."""

    stage: str
    artifact: str
    reason: Reason | None
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Order:
    """A checked job, and how to go about it.

    asked: what it asks for. inputs: the files it reads.
    force: what to make again although it is there. verify: hash again what is there.
    """

    job: SegmentJob
    weights: Weights
    asked: Asked
    inputs: Sequence[InputFile]
    force: Force | None = None
    verify: bool = False

    def check_inputs(self) -> None:
        """Raise UserError if a file is not what it was when it was hashed.

        What is made of it would be recorded as made of what it was.
        """
        for file in self.inputs:
            if Stamp.of(file.path) != file.stamp:
                raise UserError(
                    f"{file.path}: was changed or removed while the job was at work; run it again"
                )


@dataclass(frozen=True)
class Run:
    """One order at work in its run directory.

    progress: called with (stage, done, total) as work goes on.
    hold: this process's hold on the directory.
    reasons: why each artifact was made, by (stage, artifact); None where it was there already.
    stop: set when the run is given up; work that goes on in other threads then raises Stopped.
    """

    order: Order
    root: Path
    manifest: Manifest
    progress: Progress
    hold: lock.Hold
    reasons: dict[tuple[str, str], Reason | None] = field(default_factory=dict)
    stop: Event = field(default_factory=Event)

    @property
    def job(self) -> SegmentJob:
        return self.order.job

    @property
    def masklets(self) -> Path:
        return self.root / "masklets"

    @property
    def scratch(self) -> Path:
        """Where masklets grow until they are complete; it outlives a run that is killed."""
        return self.root / _SCRATCH

    def clear_scratch(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def check(self) -> None:
        """Raise UserError if what is made now could not be recorded as what it is asked to be."""
        self.hold.check()
        self.order.check_inputs()

    def decide(self) -> works.Decisions:
        """Why each artifact has to be made, as far as it can be told now."""
        return works.decide(self.order.asked, self.manifest, self.order.force)

    def reason_to_run(self, work: Work) -> Reason | None:
        """Why `work` has to be done now; noted in `reasons`."""
        reason = works.reason_to_run(work, self.manifest, self.order.force)
        self.reasons[work.stage, work.artifact] = reason
        return reason

    def report(self) -> tuple[Made, ...]:
        """What was made and why, and what was there, in the order in which it was looked at."""
        return tuple(
            Made(stage, artifact, reason, row.bytes, row.seconds if reason else 0.0)
            for (stage, artifact), reason in self.reasons.items()
            if (row := self.manifest.find(stage, artifact)) is not None
        )

    def seconds(self, stage: str) -> float:
        """How long this run worked on a stage; 0.0 where all of it was reused."""
        return sum(
            row.seconds
            for row in self.manifest.rows(stage)
            if self.reasons.get((stage, row.artifact)) is not None
        )

    @contextmanager
    def recording(self, works: dict[Work, Reason]) -> Iterator[dict[Work, int]]:
        """Record `works`, done together in the block, which notes the rows of each.

        The time is shared among them. If the block raises, they are recorded as failed, unless the
        run was given up.
        """
        self.hold.check()
        begun = time.perf_counter()
        rows: dict[Work, int] = {}
        try:
            yield rows
            self.check()
        except (Stopped, lock.Lost):
            raise
        except Exception as error:
            for work, reason in works.items():
                self.manifest.record_failure(
                    work, reason=reason, seconds=_share(begun, works), error=_one_line(error)
                )
            raise
        seconds = _share(begun, works)
        self.manifest.record(
            [Done(work, reason, rows[work], seconds) for work, reason in works.items()]
        )

    def counter(self, stage: str, total: int) -> Callable[[int], None]:
        """A function that counts steps of a stage and reports them."""
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            if self.stop.is_set():
                raise Stopped
            self.hold.check()
            done += steps
            self.progress(stage, done, total)

        return advance


def run_directory(out: str | Path) -> Path:
    """The run directory of this name; raises UserError for an empty one, or an address."""
    if is_url(require_name(str(out))):
        raise UserError(f"{out}: is an address; a run writes into a directory of this machine")
    return Path(out)


@contextmanager
def open_run(order: Order, root: Path, progress: Progress, *, wait: bool = False) -> Iterator[Run]:
    """Take hold of a run directory; it is made if it is not there.

    Raises UserError if it cannot be written, or if another process holds it and this one is not
    told to `wait`. Where the directory was made here and nothing was published, all that is the
    run's own is removed again, unless the tracking in it can go on.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with lock.held(root, wait=wait) as hold:
        try:
            order.check_inputs()  # it may have taken long to get hold of it
            # nothing in folders that are not its own: a run of another may be at work there
            remove_temporary_files(root, *(root / _SCRATCH).glob("**/"))
            manifest = open_manifest(root, verify=order.verify, check=hold.check)
            yield Run(order, root, manifest, progress, hold)
        finally:
            if hold.stands and not (root / _SCRATCH / CHECKPOINT).exists():
                shutil.rmtree(root / _SCRATCH, ignore_errors=True)
                if made and not _holds_outputs(root):
                    _remove_own(root, order.asked)
                    _remove_empty(made)


def open_manifest(
    root: Path, *, verify: bool = False, check: Callable[[], None] = lambda: None
) -> Manifest:
    """The manifest of a directory, empty if it has none; raises UserError for a damaged one."""
    try:
        return Manifest(root, uuid.uuid4().hex, verify=verify, check=check)
    except Exception as error:
        # whatever pyarrow makes of a damaged file: nothing in the directory can be trusted then
        raise UserError(
            f"{root / FILE_NAME}: cannot be read ({_one_line(error)}); remove it to start afresh"
        ) from None


def frames_tracked(root: Path) -> dict[str, int]:
    """How far a run that was killed had come, by the keys of its works; empty without one.

    Only what the next run goes on from counts: neither a checkpoint nor parts that are damaged.
    """
    return {
        key: steps
        for one, (key, steps, parts) in standings(root / _SCRATCH / CHECKPOINT).items()
        if parts.items() <= part_hashes(object_folder(root / _SCRATCH, one)).items()
        or parts == part_hashes(object_folder(root / "masklets", one))
    }


def _remove_own(root: Path, asked: Asked) -> None:
    """Remove what a run makes in its directory; other files there are somebody else's."""
    made = [work.path for work in works.works_of(asked) if work.path]
    for name in (*made, FILE_NAME, lock.FILE_NAME):
        shutil.rmtree(root / name, ignore_errors=True)
        with suppress(OSError):
            (root / name).unlink()
    _remove_empty([root / "masklets"])


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders that were made for a run, innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _holds_outputs(root: Path) -> bool:
    with suppress(OSError):
        manifest = Manifest(root, "")
        notes = (INPUT, "ingest", "check_prompts")
        return any(row.status == "done" and row.stage not in notes for row in manifest.rows())
    return False


def _share(begun: float, works: dict[Work, Reason]) -> float:
    return (time.perf_counter() - begun) / max(len(works), 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
