"""Progress of a stage in Prefect: an artifact that moves, and lines in the run's log."""

import threading
import time
from dataclasses import dataclass
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

_SECONDS_BETWEEN_UPDATES = 2.0
_SECONDS_BETWEEN_LINES = 10.0


class ProgressArtifacts:
    """Reports like `masklet.run.Progress`; called from within the task whose stage moves on."""

    def __init__(self) -> None:
        self._artifacts: dict[str, UUID] = {}
        self._last_update: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._is_due(stage, is_last=done == total):
            return
        try:
            self._publish(stage, 100 * done / total, f"{stage}: {done} of {total} frames")
        except Exception as error:
            # the server may be restarting; hours of tracking do not end for that
            get_run_logger().warning("progress of %s could not be shown: %s", stage, error)

    def _publish(self, stage: str, percent: float, words: str) -> None:
        if stage in self._artifacts:
            update_progress_artifact(self._artifacts[stage], percent, words)
            return
        artifact = create_progress_artifact(percent, stage.replace("_", "-"), words)
        if isinstance(artifact, UUID):  # a coroutine only where an event loop runs
            self._artifacts[stage] = artifact

    def _is_due(self, stage: str, *, is_last: bool) -> bool:
        now = time.monotonic()
        with self._lock:
            due = is_last or now - self._last_update.get(stage, 0.0) >= _SECONDS_BETWEEN_UPDATES
            if due:
                self._last_update[stage] = now
            return due


@dataclass
class _Begun:
    """When a stage was first heard of and how far it was then, and when a line was last logged."""

    at: float
    done: int
    logged: float


class ProgressLog:
    """Logs how far a stage is, at what pace and for how long yet, each tenth of it.

    Reports like `masklet.run.Progress`. Lines are at least ten seconds apart, so that what is over
    soon goes without any.
    """

    def __init__(self) -> None:
        self._stages: dict[str, _Begun] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        with self._lock:
            begun = self._stages.setdefault(stage, _Begun(now, done, now))
            is_tenth = 10 * done // total > 10 * (done - 1) // total
            if not is_tenth or now - begun.logged < _SECONDS_BETWEEN_LINES:
                return
            begun.logged = now
        pace = (done - begun.done) / (now - begun.at)
        left = round((total - done) / pace) if pace else 0
        words = f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if left else ""
        get_run_logger().info(
            "%s: %d of %d frames, %.1f per second%s", stage, done, total, pace, words
        )
