"""The steps of labelling a dataset as Prefect tasks, and its shards as runs of a deployment."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx
from prefect import get_client, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.logging import get_run_logger
from prefect.states import Cancelling, Completed, Failed

from masklet.dataset import Dataset, DatasetError, load_overrides, read_dataset
from masklet.errors import UserError
from masklet.item_table import FAILED, ItemRow
from masklet.shards import Shard, give_up, run_shard, shard_rows
from tasks.segment import refusable

ATTEMPTS = 3
_MOST_ATTEMPTS = 12
_SECONDS_BETWEEN_UPDATES = 2.0
_SECONDS_BETWEEN_LINES = 10.0
_SECONDS_BETWEEN_LOOKS = 3.0
_PATIENCE = 1800.0  # seconds with a server that does not answer
Value = TypeVar("Value")


@task(cache_policy=NO_CACHE, persist_result=False)
@refusable
def check_dataset(
    dataset: str, config: Path | None, *, skip_invalid: bool, weights: bool
) -> Dataset:
    found = read_dataset(dataset, load_overrides(config) if config else None, weights=weights)
    try:
        sound = found if skip_invalid and found.items else found.require_sound()
    except DatasetError as error:
        for line in error.lines:
            get_run_logger().error("%s", line)
        raise
    get_run_logger().info("%d items", len(sound.items))
    return sound


@task(cache_policy=NO_CACHE, persist_result=False)
@refusable
def label_items(
    shard: str, out: str, run_id: str, attempt: int, processes: int, total: int
) -> list[ItemRow]:
    moved, rows = ItemProgress(total), list[ItemRow]()
    for row in run_shard(shard, out, run_id, attempt, processes=processes):
        rows.append(row)
        moved.to(rows)
    return rows


class ItemProgress:
    """An artifact that moves as items end, and lines in the log, with the time that is left."""

    def __init__(self, total: int) -> None:
        self._total, self._begun = total, time.monotonic()
        self._updated = self._logged = 0.0
        self._artifact: UUID | None = None
        self._told: set[str] = set()

    def to(self, rows: Sequence[ItemRow]) -> None:
        """Tell of the rows of all items that have ended so far."""
        for row in rows:
            if row.status == FAILED and row.item_id not in self._told:
                self._told.add(row.item_id)
                get_run_logger().error("%s: %s", row.item_id, row.error)
        now, is_last = time.monotonic(), len(rows) == self._total
        if not is_last and now - self._updated < _SECONDS_BETWEEN_UPDATES:
            return
        self._updated = now
        left = (now - self._begun) / max(len(rows), 1) * (self._total - len(rows))
        failed = f", {len(self._told)} failed" if self._told else ""
        clock = f"{left // 3600:.0f}:{left // 60 % 60:02.0f}:{left % 60:02.0f}"
        words = f"{len(rows)} of {self._total} items{failed}"
        words += f", {clock} left" if rows and not is_last else ""
        if is_last or now - self._logged >= _SECONDS_BETWEEN_LINES:
            self._logged = now
            get_run_logger().info("%s", words)
        try:
            self._publish(100 * len(rows) / self._total, words)
        except Exception as error:
            # the server may be restarting
            get_run_logger().warning("progress could not be shown: %s", error)

    def _publish(self, percent: float, words: str) -> None:
        if self._artifact is not None:
            update_progress_artifact(self._artifact, percent, words)
            return
        artifact = create_progress_artifact(percent, "items", words)
        if isinstance(artifact, UUID):  # a coroutine only where an event loop runs
            self._artifact = artifact


@dataclass(frozen=True)
class _Sent:
    """A shard that a run of the deployment is to do.

    attempt: how many runs of it there were before; lost: how many of them have ended while they
    were waited for, without ending all items; died: how many of the last of these have ended at
    the item `at`.
    """

    shard: Shard
    attempt: int = 0
    lost: int = 0
    died: int = 0
    at: str = ""

    def again(self, left: Sequence[str]) -> "_Sent":
        died = self.died + 1 if left[0] == self.at else 1
        return _Sent(self.shard, self.attempt + 1, self.lost + 1, died, left[0])


def run_on_workers(
    shards: Sequence[Shard],
    deployment: str,
    out: str,
    run_id: str,
    *,
    processes: int,
    in_flight: int,
) -> Iterator[list[ItemRow]]:
    """Have shards run by a deployment, and yield rows of items as they end, some more than once.

    At most `in_flight` runs are there at a time. A run that has ended without ending its items, as
    when its worker was killed, is made again; an item at which three runs have died has failed.
    The same flow run asks for the same runs when it is itself run again; those that have ended
    before tell nothing of the items that they have left.
    """
    waiting = deque(map(_Sent, shards))
    running: dict[UUID, _Sent] = {}
    try:
        while waiting or running:
            while waiting and len(running) < in_flight:
                sent = waiting.popleft()
                run = _start(sent, deployment, out, run_id, processes)
                if run.state is None or not run.state.is_final():
                    running[run.id] = sent
                    continue
                rows = shard_rows(sent.shard.place, run_id)
                if not rows.keys() >= set(sent.shard.item_ids):
                    waiting.appendleft(replace(sent, attempt=sent.attempt + 1))
                yield list(rows.values())
            if not running:
                continue
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            live = _live(list(running))
            for flow_run_id, sent in list(running.items()):
                rows = shard_rows(sent.shard.place, run_id)
                if flow_run_id not in live:
                    del running[flow_run_id]
                    if again := _what_is_left(sent, rows, out, run_id):
                        waiting.append(again)
                yield list(rows.values())
    except BaseException:
        _cancel(list(running))
        raise


def _what_is_left(sent: _Sent, rows: dict[str, ItemRow], out: str, run_id: str) -> _Sent | None:
    """The next attempt at a shard whose run has ended, None if there is nothing left to do.

    Rows of items that are given up are added to `rows`.
    """
    lost = [one for one in sent.shard.item_ids if one not in rows]
    if not lost:
        return None
    again = sent.again(lost)
    get_run_logger().warning(
        "shard %s ended without %d of its items, %s first", sent.shard.name, len(lost), lost[0]
    )
    if again.lost >= _MOST_ATTEMPTS or (again.died >= ATTEMPTS and len(lost) == 1):
        rows |= give_up(sent.shard.place, out, run_id, again.attempt, lost)
        return None
    if again.died >= ATTEMPTS:
        rows |= give_up(sent.shard.place, out, run_id, again.attempt, lost[:1])
        return replace(again, attempt=again.attempt + 1, died=0)
    return again


def _start(sent: _Sent, deployment: str, out: str, run_id: str, processes: int) -> FlowRun:
    parameters = {
        "shard": sent.shard.place,
        "out": out,
        "run_id": run_id,
        "attempt": sent.attempt,
        "processes": processes,
    }
    name = f"{sent.shard.name}-{sent.attempt}"
    try:
        run = _patiently(
            lambda: run_deployment(
                deployment,
                parameters=parameters,
                flow_run_name=f"shard-{name}",
                timeout=0,
                idempotency_key=f"{run_id}-{name}",
            )
        )
        assert isinstance(run, FlowRun)  # a coroutine only where an event loop runs
        return run
    except ObjectNotFound:
        raise UserError(
            f"{deployment}: the server has no such deployment; run prefect deploy --all"
        ) from None


def _live(flow_run_ids: list[UUID]) -> set[UUID]:
    """Those of the runs that have not ended."""

    def look() -> set[UUID]:
        these = FlowRunFilter(id=FlowRunFilterId(any_=flow_run_ids))
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_run_filter=these)
        return {run.id for run in found if run.state is None or not run.state.is_final()}

    return _patiently(look)


def _cancel(flow_run_ids: list[UUID]) -> None:
    with get_client(sync_client=True) as client:
        for one in flow_run_ids:
            try:
                client.set_flow_run_state(one, Cancelling())
            except Exception as error:
                get_run_logger().warning("the run %s could not be cancelled: %s", one, error)


def _patiently(call: Callable[[], Value]) -> Value:
    """Call until the server answers: it may be restarting."""
    begun = time.monotonic()
    while True:
        try:
            return call()
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            status = getattr(getattr(error, "response", None), "status_code", 500)
            if status < 500 or time.monotonic() - begun > _PATIENCE:
                raise
            get_run_logger().warning("the server does not answer (%s); waiting", error)
            time.sleep(_SECONDS_BETWEEN_LOOKS)


def ended(summary: dict[str, Any]) -> State[dict[str, Any]]:
    """The state in which labelling ends: failed if an item has, or was not come to."""
    names = ("done", "reused", "failed", *(["pending"] if summary["pending"] else []))
    counts = ", ".join(f"{summary[name]} {name}" for name in names)
    words = f"{counts}; price ${summary['price']:.4f}"
    if summary["is_complete"]:
        return Completed(message=words, data=summary)
    for first in summary["failures"][:1]:
        words += f". {first['items'][0]}: {first['error']}"
    return Failed(message=words, data=UserError(words))
