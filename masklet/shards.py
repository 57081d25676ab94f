"""Parts of a dataset that are run elsewhere: `OUT/.shards/<run_id>/`, one file of items a shard.

Whoever runs a shard writes a table of its own beside it, so that no two processes write one file.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from masklet import storage
from masklet.dataset import Item
from masklet.errors import UserError
from masklet.item_table import FAILED, ItemRow, ItemTable, read_rows
from masklet.job import make_job
from masklet.label import pending_row, run_items

_FOLDER = ".shards"


@dataclass(frozen=True)
class Shard:
    """Some items of a run. place: the file that holds them. item_ids: in their order."""

    place: str
    item_ids: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.place.rsplit("/", 1)[-1].removesuffix(".jsonl")


def plan_shards(items: Sequence[Item], out: str, run_id: str, size: int) -> list[Shard]:
    """Write items down in shards of `size`; the same items give the same shards again.

    Others have other names, so that nothing is taken for theirs that was ended before.
    """
    shards = []
    for first in range(0, len(items), size):
        part = items[first : first + size]
        lines = [
            json.dumps({"item_id": one.item_id, "job": one.job.model_dump(mode="json")})
            for one in part
        ]
        content = "\n".join(lines).encode()
        name = f"{first // size:05}-{hashlib.sha256(content).hexdigest()[:8]}"
        place = storage.join(out, _FOLDER, run_id, f"{name}.jsonl")
        storage.write_bytes(place, content)
        shards.append(Shard(place, tuple(one.item_id for one in part)))
    return shards


def read_shard(place: str) -> list[Item]:
    content = storage.read_bytes(place)
    if content is None:
        raise UserError(f"{place}: there is no such shard; its run is over")
    return [
        Item(fields["item_id"], make_job(fields["job"]))
        for fields in map(json.loads, content.decode().splitlines())
    ]


def run_shard(
    place: str, out: str, run_id: str, attempt: int = 0, *, processes: int = 1
) -> Iterator[ItemRow]:
    """Run the items of a shard that no earlier attempt has ended; yields the rows of all of them.

    An item that another process is at work on is waited for.
    """
    items = read_shard(place)
    ended = shard_rows(place, run_id)
    yield from ended.values()
    left = [one for one in items if one.item_id not in ended]
    # of the same attempt, run again, there is a table already
    rows = [ended.get(one.item_id) or pending_row(one, out) for one in items]
    with ItemTable(_table(place, attempt), rows, run_id) as table:
        for row in run_items(left, out, run_id, processes=processes, wait=True):
            table.put(row)
            yield row


def shard_rows(place: str, run_id: str) -> dict[str, ItemRow]:
    """What the attempts at a shard have ended; of an item's rows the first that is no failure."""
    folder, name = place.removesuffix(".jsonl").rsplit("/", 1)
    rows: dict[str, ItemRow] = {}
    for file in sorted(storage.list_files(folder)):
        if file.startswith(f"{name}-") and file.endswith(".parquet"):
            for row in read_rows(storage.join(folder, file)):
                known = rows.get(row.item_id)
                if row.run_id == run_id and (known is None or known.status == FAILED):
                    rows[row.item_id] = row
    return rows


def give_up(
    place: str, out: str, run_id: str, attempt: int, item_ids: Sequence[str]
) -> dict[str, ItemRow]:
    """Write down that items have failed because whatever ran them has died; gives their rows."""
    rows = {
        item.item_id: replace(pending_row(item, out), run_id=run_id).failed(
            "the runs that worked on it died, perhaps for want of memory", 0.0
        )
        for item in read_shard(place)
        if item.item_id in item_ids
    }
    ItemTable(_table(place, attempt), rows.values(), run_id)
    return rows


def take_over(table: ItemTable, out: str, run_id: str) -> None:
    """Take the rows that runs which were killed have left in their shards, and remove those."""
    place = storage.join(out, _FOLDER)
    names = storage.list_files(place)
    known = {row.item_id: row for row in table.rows()}
    for name in sorted(names):
        if name.endswith(".parquet") and not name.startswith(f"{run_id}/"):
            for row in read_rows(storage.join(place, name)):
                if row.item_id in known and row.finished > known[row.item_id].finished:
                    known[row.item_id] = row
    table.put(*known.values())
    for other in {name.split("/", 1)[0] for name in names} - {run_id}:
        storage.remove(storage.join(place, other))


def forget_shards(out: str) -> None:
    """Remove the shards, once their rows are in the manifest of the dataset."""
    storage.remove(storage.join(out, _FOLDER))


def _table(place: str, attempt: int) -> str:
    return f"{place.removesuffix('.jsonl')}-{attempt}.parquet"
