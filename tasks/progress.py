"""Progress of a stage as a Prefect artifact and as lines of the run's log."""

import threading
import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

_SECONDS_BETWEEN_UPDATES = 2.0


class ProgressArtifacts:
    """Report like `masklet.run.Progress`; call it from within the task whose stage moves on."""

    def __init__(self) -> None:
        self._artifacts: dict[str, UUID] = {}
        self._last_update: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._is_due(stage, done == total):
            return
        percent = 100 * done / max(total, 1)
        words = f"{stage}: {done} of {total} frames"
        get_run_logger().info(words)
        if stage in self._artifacts:
            update_progress_artifact(self._artifacts[stage], percent, words)
        else:
            key = stage.replace("_", "-")
            artifact = create_progress_artifact(percent, key, words)
            if isinstance(artifact, UUID):  # a coroutine only where an event loop runs
                self._artifacts[stage] = artifact

    def _is_due(self, stage: str, is_last: bool) -> bool:
        now = time.monotonic()
        with self._lock:
            due = now - self._last_update.get(stage, 0.0) >= _SECONDS_BETWEEN_UPDATES
            if due or is_last:
                self._last_update[stage] = now
            return due or is_last
