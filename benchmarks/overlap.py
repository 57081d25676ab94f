"""`python -m benchmarks.overlap`: whether decoding, tracking and writing hide behind each other.

Each of the three is timed alone (decoding with the resize to the model's size, tracking of frames
that are ready, writing of rows that are ready), in turn with all of them together, from the file to
the masklet store. Where all run on the same processor, as without a GPU, they share its cores: what
they take together cannot be less than their work divided by the cores, which is the "least" of the
table wherever the slowest of the three takes less.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.clips import grid_plan, open_clip
from benchmarks.machine import describe
from benchmarks.tracker_speed import DTYPES, ours
from benchmarks.upstream import any_weights
from masklet import propagate
from masklet.models import find_model
from masklet.network import Network
from masklet.plan import Plan
from masklet.store import MaskletRow, MaskletWriter


def parts(plan: Plan, network: Network) -> dict[str, Callable[[], None]]:
    """Decoding, tracking and writing, each without the others."""
    size = network.model.image_size
    everywhere = range(len(plan.timeline))
    read = propagate._images
    images = dict(read(plan, everywhere, size))

    def ready(_: Plan, positions: Sequence[int], __: int) -> Iterator[tuple[int, Tensor]]:
        yield from ((at, images[at]) for at in positions)

    def decode() -> None:
        for _ in read(plan, everywhere, size):
            pass

    def track() -> None:
        with patch.object(propagate, "_images", ready):
            for _ in propagate.segment_frames(plan, plan.object_ids, network):
                pass

    rows = [
        (one, MaskletRow(step.frame_index, 1.0, prediction.logits.float().cpu().numpy()))
        for step in propagate.segment_frames(plan, plan.object_ids, network)
        for one, prediction in step.predictions.items()
    ]

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            writers = {one: MaskletWriter(Path(folder, str(one)), one) for one in plan.object_ids}
            for one, row in rows:
                writers[one].add(row)
            for writer in writers.values():
                writer.flush()

    return {"decode": decode, "track": track, "write": write}


class Taken(NamedTuple):
    """Seconds by the clock, and of work on all cores, that of ended child processes too."""

    clock: float
    work: float

    @staticmethod
    def by(function: Callable[[], None]) -> Taken:
        clock, work = time.perf_counter(), _work()
        function()
        return Taken(time.perf_counter() - clock, _work() - work)


def _work() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def in_turn(rounds: int, *functions: Callable[[], None]) -> list[Taken]:
    """What each function takes, by the clock its median; in turn, the first turn does not count."""
    taken: list[list[Taken]] = [[] for _ in functions]
    for _ in range(rounds + 1):
        for turns, function in zip(taken, functions, strict=True):
            turns.append(Taken.by(function))
    return [sorted(turns[1:])[rounds // 2] for turns in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description="do decoding, tracking and writing overlap?")
    parser.add_argument("clip", nargs="?", type=Path, help="a video; the demo's without one")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    parser.add_argument("--frames", type=int, default=120)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    source, spec = open_clip(args.clip), find_model(args.model)
    network = Network.of(any_weights(spec, args.device), DTYPES[args.precision])
    columns = "objects", "decode", "track", "write", "least", "together", "of slowest", "of least"
    table = Table(*columns, box=None)
    for objects in args.objects:
        plan = grid_plan(source, args.frames, objects)
        alone = parts(plan, network)
        *each, together = in_turn(args.rounds, *alone.values(), partial(ours, network, plan))
        slowest = max(taken.clock for taken in each)
        least = max(slowest, sum(taken.work for taken in each) / (os.cpu_count() or 1))
        seconds = [*(taken.clock for taken in each), least, together.clock]
        ratios = [together.clock / slowest, together.clock / least]
        cells = [f"{one:.2f} s" for one in seconds] + [f"{ratio:.2f}" for ratio in ratios]
        table.add_row(str(objects), *cells)
    console = Console(width=120)
    console.print(
        f"{spec.name} in {args.precision} on {args.device}, {args.frames} frames of "
        f"{source.width}x{source.height}; {describe()}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
