"""masklet: cut objects out of video with SAM 2, on your own machines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from masklet.errors import UserError

__all__ = ["UserError", "segment"]


def segment(
    file: str | Path, *, out: str | Path, **fields: Any
) -> Mapping[str, str] | tuple[str, Mapping[str, str]]:
    """Run a job in this process.

    Args:
        file: the video.
        out: the run directory; what is there and up to date is not made again.
        fields: any other field of `masklet.job.SegmentJob`.

    Returns:
        The paths of the outputs by name; with `debug_masks=True` a tuple of the debug video's path
        and that mapping, with `preview=True` of the first picture's path and that mapping.

    Raises:
        UserError: one line that says what is wrong with the job and what to do.
    """
    from masklet.job import make_job
    from masklet.pipeline import as_returned, run_job
    from masklet.run import run_directory

    job = make_job({"file": str(file), **fields})
    return as_returned(job, run_job(job, run_directory(out)))
