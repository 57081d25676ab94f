"""The flows `label-dataset` and `label-shard`: a dataset as Prefect runs."""

from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from pydantic import Field

from masklet.item_table import ItemRow, summarise
from masklet.label import holding, open_table
from masklet.shards import forget_shards, plan_shards, read_shard, shard_rows, take_over
from masklet.storage import absolute
from tasks.artifacts import show_dataset
from tasks.label_dataset import ItemProgress, check_dataset, ended, label_items, run_on_workers
from tasks.segment import refusable

ShardSize = Annotated[int, Field(ge=1, le=1000)]
Processes = Annotated[int, Field(ge=1, le=256)]
InFlight = Annotated[int, Field(ge=1, le=200)]


@flow(name="label-dataset", persist_result=False, validate_parameters=False)
@refusable
def label_dataset(
    dataset: str,
    out: str = "out",
    config: Path | None = None,
    shard_size: ShardSize = 100,
    processes: Processes = 1,
    deployment: str | None = None,
    max_in_flight: InFlight = 8,
    skip_invalid: bool = False,
) -> State[dict[str, Any]]:
    """Run every item of a dataset into a directory of its own, and keep a table of them.

    What is there and up to date is not made again. The run fails if an item has failed; the others
    are done all the same.

    Args:
        dataset: file (.yaml, .json, .csv, .jsonl, .parquet), folder or glob of videos.
        out: folder, or s3:// or another fsspec URL, for the run directories.
        config: job file whose fields go before those of the dataset, such as another model.
        shard_size: how many items a run takes on; 50 to 200 where they are sent to workers.
        processes: how many items a run works on at the same time; each loads the model.
        deployment: of the flow label-shard, such as label-shard/label-shard, whose workers run the
            shards; this run does it all itself without one.
        max_in_flight: how many shards may be with the workers at a time.
        skip_invalid: run the items that can be run although others cannot.
    """
    config = Path(config) if config else None
    # a refused task is a state, from which its one line is raised
    checked = check_dataset(
        dataset, config, skip_invalid=skip_invalid, weights=deployment is None, return_state=True
    )
    found = checked.result()
    run_id = str(flow_run.id)
    out = absolute(out)  # workers may run elsewhere
    with holding(out), open_table(found, out, run_id) as table:
        take_over(table, out, run_id)
        shards = plan_shards(found.items, out, run_id, shard_size)
        moved, rows = ItemProgress(len(found.items)), dict[str, ItemRow]()

        def note(new: list[ItemRow]) -> None:
            rows.update({row.item_id: row for row in new})
            table.put(*new)
            moved.to(list(rows.values()))

        if deployment:
            for new in run_on_workers(
                shards, deployment, out, run_id, processes=processes, in_flight=max_in_flight
            ):
                note(new)
        else:
            for shard in shards:
                label_shard(shard.place, out, run_id, processes=processes, return_state=True)
                note(list(shard_rows(shard.place, run_id).values()))
        summary = table.close()
        forget_shards(out)
    show_dataset(summary, table.rows())
    return ended(summary)


@flow(name="label-shard", persist_result=False, validate_parameters=False)
@refusable
def label_shard(
    shard: str, out: str, run_id: str, attempt: int = 0, processes: Processes = 1
) -> State[dict[str, Any]]:
    """Run a part of a dataset that label-dataset has planned; not to be started by hand.

    Args:
        shard: file with the items.
        out: folder or URL for the run directories.
        run_id: of the run of label-dataset.
        attempt: counts the runs of this shard.
        processes: how many items to work on at the same time.
    """
    total = len(read_shard(shard))
    labelled = label_items(shard, out, run_id, attempt, processes, total, return_state=True)
    return ended(summarise(labelled.result(), run_id))
