"""The flow `reprocess`: a dataset again, with other settings."""

from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.label_dataset import InFlight, Processes, ShardSize, label_dataset


@flow(name="reprocess", persist_result=False, validate_parameters=False)
def reprocess(
    config: Path,
    dataset: str,
    out: str,
    shard_size: ShardSize = 100,
    processes: Processes = 1,
    deployment: str | None = None,
    max_in_flight: InFlight = 8,
) -> State[dict[str, Any]]:
    """Label a dataset again with another model, or with other outputs.

    In the same directory, only what the new settings change is made again: another output is made
    of the masklets that are there, another model tracks everything again.

    Args:
        config: job file whose fields go before those of the dataset.
        dataset: file (.yaml, .json, .csv, .jsonl, .parquet), folder or glob of videos.
        out: folder or URL of the run directories; that of the first run, to reuse what is there.
        shard_size, processes, deployment, max_in_flight: as in label-dataset.
    """
    return label_dataset.fn(
        dataset,
        out,
        config=config,
        shard_size=shard_size,
        processes=processes,
        deployment=deployment,
        max_in_flight=max_in_flight,
    )
