"""A run directory, held by one process while it works there."""

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from masklet.errors import UserError
from masklet.job import SegmentJob
from masklet.manifest import FILE_NAME, Manifest, Reason, Work
from masklet.models import ModelSpec

Progress = Callable[[str, int, int], None]
_LOCK = ".lock"
_SCRATCH = ".tracking"


class Stopped(Exception):
    """The run was given up while this thread was at work."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress function of those who do not want to be told."""


@dataclass(frozen=True)
class Weights:
    """A model, the file its weights come from, and the hashes of the weights and of the config."""

    spec: ModelSpec
    checkpoint: Path
    sha256: str
    config_sha256: str


@dataclass(frozen=True)
class Run:
    """One job at work in its run directory.

    progress: called with (stage, done, total) as work goes on.
    reasons: why each artifact was made, by (stage, artifact); None where it was there already.
    stop: set when the run is given up; work that goes on in other threads then raises Stopped.
    """

    job: SegmentJob
    weights: Weights
    root: Path
    manifest: Manifest
    progress: Progress
    reasons: dict[tuple[str, str], Reason | None] = field(default_factory=dict)
    stop: Event = field(default_factory=Event)

    @property
    def masklets(self) -> Path:
        return self.root / "masklets"

    @property
    def scratch(self) -> Path:
        """Where masklets grow until they are complete."""
        return self.root / _SCRATCH

    def reason_to_run(self, work: Work) -> Reason | None:
        """As the manifest's, and noted in `reasons`."""
        reason = self.manifest.reason_to_run(work)
        self.reasons[work.stage, work.artifact] = reason
        return reason

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

        The time is shared among them. If the block raises, they are recorded as failed.
        """
        begun = time.perf_counter()
        rows: dict[Work, int] = {}
        try:
            yield rows
        except Exception as error:
            for work, reason in works.items():
                self.manifest.record_failure(
                    work, reason=reason, seconds=_share(begun, works), error=_one_line(error)
                )
            raise
        for work, reason in works.items():
            self.manifest.record(work, reason=reason, rows=rows[work], seconds=_share(begun, works))

    def counter(self, stage: str, total: int) -> Callable[[int], None]:
        """A function that counts steps of a stage and reports them."""
        done = 0

        def advance(steps: int) -> None:
            nonlocal done
            if self.stop.is_set():
                raise Stopped
            done += steps
            self.progress(stage, done, total)

        return advance


@contextmanager
def open_run(job: SegmentJob, weights: Weights, root: Path, progress: Progress) -> Iterator[Run]:
    """Take hold of a run directory; it is made if it is not there.

    Raises UserError if it cannot be written or another process holds it. A directory that was made
    here and in which nothing was published is removed again.
    """
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    with _hold(root):
        try:
            run = Run(job, weights, root, _open_manifest(root), progress)
            shutil.rmtree(run.scratch, ignore_errors=True)
            yield run
        finally:
            shutil.rmtree(root / _SCRATCH, ignore_errors=True)
            if made and not _holds_outputs(root):
                shutil.rmtree(root, ignore_errors=True)
                _remove_empty(made[1:])


@contextmanager
def _hold(root: Path) -> Iterator[None]:
    """Lock the directory; the kernel lets go of it when this process ends, however it ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise UserError(f"{root}: cannot be a run directory: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 200, 0).decode(errors="replace").strip()
        os.close(lock)
        raise UserError(f"{root}: another run is at work there ({holder}); wait for it") from None
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
        yield
    finally:
        os.close(lock)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the parents that were made for a run directory, innermost first."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _open_manifest(root: Path) -> Manifest:
    run_id = uuid.uuid4().hex
    try:
        return Manifest(root, run_id)
    except Exception as error:
        # whatever pyarrow makes of a damaged file: nothing in the directory can be trusted then
        raise UserError(
            f"{root / FILE_NAME}: cannot be read ({_one_line(error)}); remove it to start afresh"
        ) from None


def _holds_outputs(root: Path) -> bool:
    with suppress(OSError):
        manifest = Manifest(root, "")
        return any(row.status == "done" for row in manifest.rows())
    return False


def _share(begun: float, works: dict[Work, Reason]) -> float:
    return (time.perf_counter() - begun) / max(len(works), 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__
