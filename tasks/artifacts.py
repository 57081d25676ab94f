"""What a run shows of itself in Prefect's UI, as artifacts of the task that runs.

They only show. The outputs are complete without them, so a server that cannot be reached costs a
warning and nothing else.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from masklet.glance import Seen
from masklet.item_table import ItemRow
from masklet.pipeline import Outputs
from masklet.run import Run

_MAX_WIDTH = 1200
_QUALITY = 80
_MAX_ROWS = 200
_COUNTED = {
    "masks": "pictures",
    "pixel_confidences": "pictures",
    "previews": "pictures",
    "debug_masks": "frames",
    "bbox_tracking": "boxes",
}


def show_reasons(outputs: Outputs) -> None:
    """The table `reasons`: what was made, what was reused and why; one row an artifact."""
    rows = [
        {
            "stage": one.stage,
            "artifact": one.artifact,
            "outcome": "made" if one.reason else "reused",
            "reason": str(one.reason or ""),
            "bytes": one.bytes,
            "seconds": one.seconds,
        }
        for one in outputs.artifacts
    ]
    with _unless_unreachable("the table of reasons"):
        create_table_artifact(rows, key="reasons", description="What was made, and why")


def show_outputs(run: Run, outputs: Outputs) -> None:
    """The table `outputs`: what is in the run directory, how much it holds, and where it lies."""
    by_path = {str((run.root / row.path).resolve()): row for row in run.manifest.rows() if row.path}
    rows = []
    for name, path in outputs.files.items():
        row, counted = by_path.get(path), _COUNTED.get(name.rstrip("_0123456789"))
        holds = f"{row.rows} {counted}" if row and counted else ""
        if name == "masklets":
            holds = f"{len(outputs.summary['objects'])} objects"
        size = row.bytes if row else outputs.summary["masklet_bytes"] if name == "masklets" else ""
        rows.append({"output": name, "holds": holds, "bytes": size, "path": path})
    with _unless_unreachable("the table of outputs"):
        create_table_artifact(rows, key="outputs", description=f"Outputs in {run.root.resolve()}")


def show_objects(seen: Sequence[Seen], frames: int) -> None:
    """The table `objects`: where each is seen, on how many frames and how surely."""
    rows = [
        {
            "object": str(one.object_id),
            "frames present": one.frames,
            "of": frames,
            "mean confidence": "" if one.confidence is None else round(one.confidence, 3),
            "first frame": "" if one.first_frame is None else one.first_frame,
            "last frame": "" if one.last_frame is None else one.last_frame,
        }
        for one in seen
    ]
    with _unless_unreachable("the table of objects"):
        create_table_artifact(rows, key="objects", description="Objects, and where they are seen")


def show_price(run: Run) -> None:
    """The table `price`: the total, and how it came about."""
    cost = json.loads((run.root / "price.json").read_text(encoding="utf-8"))
    with _unless_unreachable("the price"):
        create_table_artifact(
            [{"what": name.replace("_", " "), "value": value} for name, value in cost.items()],
            key="price",
            description=f"${cost['total']:.4f}: what a hosted service would bill",
        )


def show_picture(key: str, picture: Image.Image, description: str) -> None:
    """A picture that is a part of the artifact, so that any browser with the UI can show it.

    No address has to be served: it is a JPEG of some 100 kB as a data: address in Markdown.
    """
    small, buffer = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((_MAX_WIDTH, 4 * _MAX_WIDTH))
    small.save(buffer, "JPEG", quality=_QUALITY)
    address = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    with _unless_unreachable(f"the picture {key}"):
        create_markdown_artifact(f"![{description}]({address})", key=key, description=description)


def show_dataset(summary: Mapping[str, Any], rows: Sequence[ItemRow]) -> None:
    """The table `dataset`, the summary; `failed-items` and `look-at`, if there are any."""
    named = ("failures", "look_at")
    shown = [
        {"what": name.replace("_", " "), "value": str(value)}
        for name, value in summary.items()
        if name not in named
    ]
    failed = [{"item": one.item_id, "error": one.error} for one in rows if one.status == "failed"]
    seen = [{"item": name, "look at": line} for name, line in summary["look_at"].items()]
    with _unless_unreachable("the summary"):
        create_table_artifact(shown, key="dataset", description="How the items have ended")
        if failed:
            create_table_artifact(
                failed[:_MAX_ROWS], key="failed-items", description=f"{len(failed)} items failed"
            )
        if seen:
            create_table_artifact(
                seen[:_MAX_ROWS], key="look-at", description=f"{len(seen)} items to look at"
            )


@contextmanager
def _unless_unreachable(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # the server may be restarting
        get_run_logger().warning("%s could not be shown: %s", what, error)
