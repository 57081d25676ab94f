"""`python -m benchmarks.where_time_goes`: what each part of the pipeline takes, on one core.

A clip is tracked from the file to the masklet store with one thread for all of torch's work. The
seconds are of the processor, so other programs do not count. Work is counted by torch's own counter
of multiplications and additions; the share is of the speed of a large matrix product in the same
precision on the same core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from benchmarks.clips import grid_plan, open_clip
from benchmarks.machine import describe, matmul_gflops
from benchmarks.tracker_speed import DTYPES
from benchmarks.upstream import any_weights
from masklet import propagate, tracker
from masklet.attention import Fusion
from masklet.media import read_frames
from masklet.models import find_model
from masklet.network import Network
from masklet.plan import Plan
from masklet.store import MaskletWriter

# torch counts attention on GPUs only
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]  # torch's


@dataclass
class Part:
    """Processor seconds and counted work of a part of the pipeline."""

    seconds: float = 0.0
    flops: float = 0.0


class Clock:
    """Adds up what the functions that it wraps take, each in the thread where it runs."""

    def __init__(self, *, count: bool) -> None:
        self.parts: dict[str, Part] = {}
        self._count, self._lock = count, Lock()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.of(name):
                return function(*args, **kwargs)

        return timed

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        mapping = {_ATTENTION: _attention_flops}
        counter = FlopCounterMode(display=False, custom_mapping=mapping) if self._count else None
        begun = time.thread_time()
        with ExitStack() as stack:
            if counter:
                stack.enter_context(counter)
            yield
        with self._lock:
            part = self.parts.setdefault(name, Part())
            part.seconds += time.thread_time() - begun
            part.flops += counter.get_total_flops() if counter else 0


def clocked(plan: Plan, network: Network, *, count: bool) -> dict[str, Part]:
    clock = Clock(count=count)
    parts = [
        ("prepare frames", propagate, "stretch"),
        ("image encoder", Network, "encode"),
        ("memory attention", Fusion, "__call__"),
        ("mask decoder", Network, "decode"),
        ("memory encoder", Network, "encode_memory"),
        ("all of tracking", tracker, "track"),
        ("write", MaskletWriter, "add"),
        ("write", MaskletWriter, "flush"),
    ]
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for name, place, attribute in parts:
            function = clock.wrap(name, getattr(place, attribute))
            stack.enter_context(patch.object(place, attribute, function))
        propagate.propagate(plan, plan.object_ids, network, Path(folder), lambda steps: None)
    return clock.parts


def decode_seconds(plan: Plan) -> float:
    """Of the decoder's process, by the wall: it runs beside everything else."""
    begun = time.perf_counter()
    for _ in read_frames(plan.source, plan.timeline):
        pass
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description="what each part of the pipeline takes")
    parser.add_argument("clip", nargs="?", type=Path, help="a video; the demo's without one")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--objects", type=int, default=4)
    parser.add_argument("--precision", choices=DTYPES, default="float32")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source, spec = open_clip(args.clip), find_model(args.model)
    network = Network.of(any_weights(spec, "cpu"), DTYPES[args.precision])
    plan = grid_plan(source, args.frames, args.objects)
    clocked(plan, network, count=False)
    timed, counted = clocked(plan, network, count=False), clocked(plan, network, count=True)
    peak = matmul_gflops(DTYPES[args.precision])
    inside = ("memory attention", "mask decoder", "memory encoder")
    whole = timed.pop("all of tracking")
    choice = Part(whole.seconds - sum(timed[name].seconds for name in inside))
    per_object = {*inside, "memory and the rest of tracking", "write"}
    timed["memory and the rest of tracking"] = choice

    table = Table("part", "ms", "per", "GFLOP", "GFLOP/s", "of matmul", box=None)
    decode = decode_seconds(plan) / len(plan.timeline)
    table.add_row("decode (other process)", f"{1e3 * decode:.2f}", "frame", "", "", "")
    for name, part in timed.items():
        times = len(plan.timeline) * (args.objects if name in per_object else 1)
        flops = counted[name].flops if name in counted else 0.0
        row = [name, f"{1e3 * part.seconds / times:.2f}"]
        row.append("frame and object" if name in per_object else "frame")
        if flops:
            speed = flops / part.seconds / 1e9
            row += [f"{flops / times / 1e9:.2f}", f"{speed:.0f}", f"{speed / peak:.0%}"]
        table.add_row(*row)
    console = Console(width=120)
    console.print(
        f"{spec.name} in {args.precision}, {args.objects} objects, {args.frames} frames of "
        f"{source.width}x{source.height}, one core of {describe()}"
    )
    console.print(table)


if __name__ == "__main__":
    main()
