"""Label a dataset: every item into its run directory, and a manifest of the whole.

`OUT/<item_id>/` are run directories. `OUT/dataset.parquet` has one row an item, `OUT/summary.json`
says how it goes; both are replaced as items end. What is done is decided by the manifests of the
run directories alone, so a run can be killed at any time, and the next one does what is missing.
"""

import json
import logging
import multiprocessing
import os
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklet import lock, storage
from masklet.atomic import remove_temporary_files
from masklet.dataset import Dataset, Item
from masklet.errors import UserError
from masklet.item_table import ItemRow, ItemTable, blank_row, read_rows
from masklet.parquet import read_table
from masklet.pipeline import (
    Outputs,
    Steps,
    choose_device,
    load_weights,
    preview,
    propagate,
    run_job,
)
from masklet.run import Run

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

MANIFEST = "dataset.parquet"
SUMMARY = "summary.json"
Report = Callable[[ItemRow], None]
_LOGGER = logging.getLogger(__name__)
_RARELY = 0.1  # of the frames; an object seen on fewer is worth a look


def label_dataset(
    dataset: Dataset,
    out: str,
    *,
    processes: int = 1,
    report: Report = lambda row: None,
    run_id: str | None = None,
    wait: bool = False,
) -> dict[str, Any]:
    """Run the items of a dataset that are not done, and return the summary.

    Its problems become rows of failed items.

    Args:
        out: a folder, or a URL that fsspec knows.
        processes: how many to run at the same time; each loads the model once.
        report: called with the row of every item that ends.
        run_id: of a run that was interrupted, to leave alone the items that it has ended.
        wait: wait for another process that labels into `out`.

    Raises UserError if `out` cannot be used.
    """
    run_id, out = run_id or uuid.uuid4().hex, storage.require_name(out)
    with holding(out, wait=wait), open_table(dataset, out, run_id) as table:
        for row in run_items(table.missing(dataset.items), out, run_id, processes=processes):
            table.put(row)
            report(row)
        return table.close()


@contextmanager
def holding(out: str, *, wait: bool = False) -> Iterator[None]:
    """Keep others from writing the manifest of a folder; a store has no locks.

    What a killed process was about to write there is removed.
    """
    if storage.is_url(out):
        yield
        return
    with lock.held(Path(out), wait=wait):
        remove_temporary_files(Path(out))
        yield


def open_table(dataset: Dataset, out: str, run_id: str) -> ItemTable:
    """The dataset's manifest as this run finds it, with a row for each item."""
    _keep_others_files(dataset, out)
    place = storage.join(out, MANIFEST)
    known = {row.item_id: row for row in read_rows(place)}
    rows = [known.get(item.item_id) or pending_row(item, out) for item in dataset.items]
    for problem in dataset.problems:
        row = blank_row(problem.place, problem.file, "", run_id)
        rows.append(row.failed(problem.message, 0.0))
    about = {"dataset": dataset.source, "run_id": run_id}
    return ItemTable(place, rows, run_id, storage.join(out, SUMMARY), about)


def _keep_others_files(dataset: Dataset, out: str) -> None:
    """Refuse to write over the dataset, or over a summary.json of somebody else's."""
    place = storage.join(out, SUMMARY)
    for own in (storage.join(out, MANIFEST), place):
        if not storage.is_url(out) and os.path.realpath(own) == os.path.realpath(dataset.source):
            raise UserError(f"{own}: is the dataset; use another --out")
    found = storage.read_bytes(place)
    if found is not None and not _is_summary(found):
        raise UserError(f"{place}: is not of a run of masklet; move it, or use another --out")


def _is_summary(content: bytes) -> bool:
    try:
        summary = json.loads(content)
    except ValueError:
        return False
    return isinstance(summary, dict) and "run_id" in summary


def pending_row(item: Item, out: str) -> ItemRow:
    return blank_row(item.item_id, item.job.file, storage.join(out, item.item_id), "")


def run_items(
    items: Sequence[Item], out: str, run_id: str, *, processes: int = 1, wait: bool = False
) -> Iterator[ItemRow]:
    """Run items and yield their rows as they end; whatever goes wrong with one is in its row."""
    if processes == 1:
        models = LastModel()
        for item in items:
            yield run_item(item, out, run_id, models, wait=wait)
    elif items:
        yield from _in_processes(items, out, run_id, min(processes, len(items)), wait)


def run_item(
    item: Item, out: str, run_id: str, models: "LastModel", *, wait: bool = False
) -> ItemRow:
    """Run one item into its directory."""
    begun = time.perf_counter()
    place = storage.join(out, item.item_id)
    row = blank_row(item.item_id, item.job.file, place, run_id)
    steps = Steps(preview=partial(preview, load=models), propagate=partial(propagate, load=models))
    try:
        with storage.run_directory(place) as folder:
            outputs = run_job(item.job, folder, steps=steps, wait=wait)
            found = what_to_look_at(folder, outputs)
    except UserError as error:
        return row.failed(str(error), time.perf_counter() - begun)
    except Exception as error:
        _LOGGER.debug("%s", item.item_id, exc_info=True)
        text = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return row.failed(text, time.perf_counter() - begun)
    return row.done(outputs, found, time.perf_counter() - begun)


def what_to_look_at(folder: Path, outputs: Outputs) -> str:
    """One line on a damaged source and objects that are hardly seen; '' if there is nothing."""
    damage = outputs.summary.get("damage")
    found = [f"the source is damaged: {damage}"] if damage else []
    hardly = []
    if "masklets" in outputs.files:
        for path in sorted(Path(folder, "masklets").glob("object=*")):
            scores = read_table(path, ["object_score"])
            seen = sum(score > 0 for score in scores["object_score"].to_pylist())
            if seen <= _RARELY * len(scores):
                hardly.append(f"object {path.name.removeprefix('object=')} is on {seen} frames")
    if hardly:
        found.append(f"{', '.join(hardly[:5])} of {outputs.summary['frames']}")
    return "; ".join(found)


@dataclass
class LastModel:
    """Loads models for runs, and keeps the last one for the next run."""

    _key: Any = None
    _model: "SAM2Base | None" = None

    def __call__(self, run: Run) -> "SAM2Base":
        weights = run.order.weights
        key = (weights.spec, weights.file.sha256, choose_device(run.job.device))
        if self._model is None or key != self._key:
            self._model = None  # before the next one takes memory
            self._key, self._model = key, load_weights(run)
        return self._model


_models = LastModel()
"""Of a process of the pool."""


def _in_processes(
    items: Sequence[Item], out: str, run_id: str, processes: int, wait_for_others: bool
) -> Iterator[ItemRow]:
    """As `run_items`; an item whose process dies is run once more, alone, before it has failed."""
    waiting, suspects = deque(items), deque[Item]()
    while waiting or suspects:
        alone = not waiting
        queue = suspects if alone else waiting
        with _Pool(1 if alone else processes) as pool:
            running: dict[Future[ItemRow], Item] = {}
            while queue or running:
                while queue and len(running) < pool.size:
                    item = queue.popleft()
                    running[pool.submit(item, out, run_id, wait_for_others)] = item
                over, _ = wait(running, return_when=FIRST_COMPLETED)
                lost = [running.pop(one) for one in over if _is_lost(one)]
                for one in [one for one in over if not _is_lost(one)]:
                    del running[one]
                    yield one.result()
                if lost:
                    lost += running.values()
                    break
            else:
                continue
        for item in lost:
            if alone:
                row = blank_row(
                    item.item_id, item.job.file, storage.join(out, item.item_id), run_id
                )
                yield row.failed("its process died, perhaps for want of memory", 0.0)
            else:
                suspects.append(item)


def _is_lost(future: Future[ItemRow]) -> bool:
    return isinstance(future.exception(), BrokenProcessPool)


class _Pool:
    """Processes that share the cores; none of them outlives this one, nor Ctrl-C."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._others = set(multiprocessing.active_children())
        threads = max(1, (os.cpu_count() or 1) // size)
        self._executor = ProcessPoolExecutor(
            size,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(threads,),
        )

    def submit(self, item: Item, out: str, run_id: str, wait: bool) -> Future[ItemRow]:
        try:
            return self._executor.submit(_run_in_pool, item, out, run_id, wait)
        except BrokenProcessPool as error:  # it broke a moment ago
            broken: Future[ItemRow] = Future()
            broken.set_exception(error)
            return broken

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        self._executor.shutdown(cancel_futures=True)


def _run_in_pool(item: Item, out: str, run_id: str, wait: bool) -> ItemRow:
    try:
        return run_item(item, out, run_id, _models, wait=wait)
    except SystemExit:
        # what ends this process would be sent to the parent as the item's outcome, and end that
        os._exit(128 + signal.SIGTERM)


def _begin(threads: int) -> None:
    """Set up a process of the pool, before it imports torch."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends what runs here
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _leave(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    # a parent that is killed says nothing to its children, which would wait for ever
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
