"""The manifest of a dataset: one row an item, in a Parquet file that is right at any moment."""

import io
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from masklet import storage
from masklet.addresses import shown_address
from masklet.errors import UserError

if TYPE_CHECKING:
    from masklet.dataset import Item
    from masklet.pipeline import Outputs

SCHEMA_VERSION = 1
PENDING, DONE, REUSED, FAILED = "pending", "done", "reused", "failed"
_SHARE_OF_TIME = 0.05  # that writing the table may take, once it is large
_MOST_NAMED = 20


@dataclass(frozen=True)
class ItemRow:
    """One row: an item, and what came of it in the last run that ended it.

    item_id: also the name of its run directory; of an item that cannot be run, its place in the
    dataset, such as `line 4`.
    status: `pending`, no run has ended it yet; `done`; `reused`, all of it was there already;
    `failed`.
    reason: why its artifacts were made, see docs/manifest.md; several are joined by commas.
    error: one line, if it failed.
    look_at: one line on a damaged source, and on objects that are hardly seen.
    file: the source. out: the run directory.
    model: full name. frames, objects: of the job; artifacts: how many were made in this run.
    price: dollars. bytes: of all artifacts.
    seconds: that this run spent on it; model_seconds: on propagation, 0.0 where it was reused.
    finished: when, ISO 8601 in UTC. run_id: which run. worker: which process.
    """

    item_id: str
    status: str
    reason: str
    error: str
    look_at: str
    file: str
    out: str
    model: str
    frames: int
    objects: int
    artifacts: int
    price: float
    bytes: int
    seconds: float
    model_seconds: float
    finished: str
    run_id: str
    worker: str
    schema_version: int

    def done(self, outputs: "Outputs", look_at: str, seconds: float) -> "ItemRow":
        """The row of an item that has its outputs, after so many seconds."""
        made = [one for one in outputs.artifacts if one.reason]
        return replace(
            self,
            status=DONE if made else REUSED,
            reason=", ".join(dict.fromkeys(str(one.reason) for one in made)),
            look_at=look_at,
            model=outputs.summary["model"],
            frames=outputs.summary["frames"],
            objects=len(outputs.summary["objects"]),
            artifacts=len(made),
            price=outputs.summary["price"],
            bytes=sum(one.bytes for one in outputs.artifacts),
            seconds=round(seconds, 3),
            model_seconds=round(outputs.seconds.get("propagate", 0.0), 3),
            finished=_now(),
        )

    def failed(self, error: str, seconds: float) -> "ItemRow":
        error, seconds = _as_text(error), round(seconds, 3)
        return replace(self, status=FAILED, error=error, seconds=seconds, finished=_now())


def blank_row(item_id: str, file: str, out: str, run_id: str) -> ItemRow:
    """The row of an item that this process is about to run, or that nobody has run."""
    worker = f"process {os.getpid()} on {os.uname().nodename}" if run_id else ""
    name, shown = _as_text(item_id), _as_text(shown_address(file))
    place = _as_text(shown_address(out))
    return ItemRow(
        name, PENDING, "", "", "", shown, place, "", 0, 0, 0, 0.0, 0, 0.0, 0.0, "", run_id,
        worker, SCHEMA_VERSION,
    )  # fmt: skip


def _as_text(name: str) -> str:
    # the names of files need not be UTF-8, which everything in a table has to be
    return name.encode("utf-8", "replace").decode()


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
SCHEMA = pa.schema([(field.name, _ARROW_TYPES[field.type]) for field in fields(ItemRow)])  # type: ignore[index]  # field.type is the class itself here


def read_rows(place: str) -> list[ItemRow]:
    """The rows of a manifest; none if it is not there.

    Raises UserError for a file that is no such manifest.
    """
    content = storage.read_bytes(place)
    if content is None:
        return []
    try:
        return [
            ItemRow(**row) for row in pq.read_table(io.BytesIO(content)).cast(SCHEMA).to_pylist()
        ]
    except Exception as error:
        # whatever pyarrow makes of a damaged file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{place}: cannot be read ({reason}); remove it to start afresh") from None


class ItemTable:
    """A manifest in memory, written when an item ends, with a summary beside it if it has a place.

    Where that would take more than a twentieth of the time it is written later, by a thread, since
    the next item may take hours. What a killed process did not write down is found in the run
    directories by the next one.
    """

    def __init__(
        self,
        place: str,
        rows: Iterable[ItemRow],
        run_id: str,
        summary_place: str | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._place, self._summary_place, self._about = place, summary_place, dict(about or {})
        self._rows = {row.item_id: row for row in rows}
        self._run_id = run_id
        self._begun, self._next_write = time.monotonic(), 0.0
        self._changed, self._is_behind, self._is_closed = threading.Condition(), False, False
        self._writer: threading.Thread | None = None
        self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_closed:
            self.close()

    def missing(self, items: Sequence["Item"]) -> list["Item"]:
        """The items that this run has not ended yet."""
        return [one for one in items if self._rows[one.item_id].run_id != self._run_id]

    def rows(self) -> list[ItemRow]:
        return list(self._rows.values())

    def put(self, *rows: ItemRow) -> None:
        with self._changed:
            self._rows.update({row.item_id: row for row in rows})
            self._is_behind = True
            if time.monotonic() >= self._next_write:
                self._write()
                return
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_late, daemon=True)
                self._writer.start()
            self._changed.notify()

    def close(self) -> dict[str, Any]:
        """Write it for the last time, and return the summary."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
            return self._write()

    def _write_late(self) -> None:
        with self._changed:
            while not self._is_closed:
                early = self._next_write - time.monotonic()
                if not self._is_behind:
                    self._changed.wait()
                elif early > 0:
                    self._changed.wait(early)
                else:
                    self._is_behind = False  # also where it fails: the next one in `put` says so
                    with suppress(Exception):
                        self._write()

    def _write(self) -> dict[str, Any]:
        begun = time.monotonic()
        buffer = io.BytesIO()
        rows = [asdict(row) for row in self._rows.values()]
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), buffer, compression="zstd")
        storage.write_bytes(self._place, buffer.getvalue())
        summary = self._about | summarise(self.rows(), self._run_id)
        summary["seconds"] = round(begun - self._begun, 3)
        if self._summary_place is not None:
            text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
            storage.write_bytes(self._summary_place, text.encode())
        now = time.monotonic()
        self._next_write, self._is_behind = now + (now - begun) / _SHARE_OF_TIME, False
        return summary


def summarise(rows: Sequence[ItemRow], run_id: str) -> dict[str, Any]:
    """What a run has come to so far; items that it has not ended are pending.

    price, frames: of what is done and reused. frames_per_second: of the tracking in this run, None
    without any.
    """
    ended = [row for row in rows if row.run_id == run_id and row.status != PENDING]
    right = [row for row in ended if row.status in (DONE, REUSED)]
    tracked = [row for row in right if row.model_seconds]
    model_seconds = sum(row.model_seconds for row in tracked)
    failures: dict[str, list[str]] = {}
    for row in ended:
        if row.status == FAILED:
            failures.setdefault(row.error, []).append(row.item_id)
    return {
        "items": len(rows),
        **{status: sum(row.status == status for row in ended) for status in (DONE, REUSED, FAILED)},
        PENDING: len(rows) - len(ended),
        "is_complete": len(right) == len(rows),
        "price": round(sum(row.price for row in right), 6),
        "frames": sum(row.frames for row in right),
        "bytes": sum(row.bytes for row in right),
        "frames_per_second": (
            round(sum(row.frames for row in tracked) / model_seconds, 2) if model_seconds else None
        ),
        "failures": [
            {"error": error, "count": len(ids), "items": ids[:_MOST_NAMED]}
            for error, ids in failures.items()
        ],
        "look_at": {row.item_id: row.look_at for row in right if row.look_at},
        "updated": _now(),
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
