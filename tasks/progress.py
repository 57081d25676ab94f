"""Progress of a stage in Prefect: an artifact that moves, and ten lines in the run's log."""

import threading
import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

_SECONDS_BETWEEN_UPDATES = 2.0


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


def log_tenths(stage: str, done: int, total: int) -> None:
    """Log each tenth of a stage; reports like `masklet.run.Progress`."""
    if 10 * done // total > 10 * (done - 1) // total:
        get_run_logger().info("%s: %d of %d frames", stage, done, total)
