"""What a run made, what it reused and why, as a table in Prefect."""

from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from masklet.pipeline import Outputs


def show_reasons(outputs: Outputs) -> None:
    """Publish the table `reasons` of the task that runs: one row an artifact."""
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
    try:
        create_table_artifact(rows, key="reasons", description="What was made, and why")
    except Exception as error:
        # the outputs are complete; the manifest tells the same
        get_run_logger().warning("the table of reasons could not be shown: %s", error)
