"""`python -m benchmarks.memory`: memory over a long clip, masklet's beside upstream's.

Each curve is a process of its own that tracks a clip of 854x480 pixels and notes the memory that it
holds (resident; on a GPU what torch has allocated) every ten frames. The table compares the peak of
a run over `--frames` with that of a run over a tenth of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clips import grid_plan, long_clip
from benchmarks.machine import describe
from benchmarks.upstream import any_weights, make_predictor, track
from masklet.media import probe
from masklet.models import find_model
from masklet.network import Network
from masklet.propagate import propagate

MIB = 2**20
Curve = list[tuple[int, float]]


class Watch:
    """Notes the memory in use every ten frames."""

    def __init__(self, device: str) -> None:
        self.device, self.frames = device, 0
        self.curve: Curve = []

    def __call__(self, frames: int = 1) -> None:
        self.frames += frames
        if self.frames % 10 == 0:
            self.curve.append((self.frames, self._now()))

    def peak(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / MIB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def _now(self) -> float:
        if self.device == "cuda":
            return torch.cuda.memory_allocated() / MIB
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / MIB


def run_one(who: str, model_name: str, device: str, objects: int, frames: int) -> None:
    """The process of one curve: prints its peak and the curve as JSON."""
    spec = find_model(model_name)
    model, watch = any_weights(spec, device), Watch(device)
    plan = grid_plan(probe(str(long_clip(frames))), frames, objects)
    if who == "masklet":
        with tempfile.TemporaryDirectory() as folder:
            propagate(plan, plan.object_ids, Network.of(model), Path(folder), watch)
    else:
        track(make_predictor(spec, model), plan, watch)
    print(json.dumps([watch.peak(), watch.curve]))


def measure(*given: object) -> tuple[float, Curve]:
    command = [sys.executable, "-m", "benchmarks.memory", "--one", *map(str, given)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    peak, curve = json.loads(done.stdout.splitlines()[-1])
    return peak, curve


def main() -> None:
    parser = argparse.ArgumentParser(description="memory over a long clip")
    parser.add_argument("--model", default="nano")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--frames", type=int, default=3000)
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--upstream-objects", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--plot", type=Path, default=Path("out/memory.png"))
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        who, model, device, objects, frames = args.one
        run_one(who, model, device, int(objects), int(frames))
        return
    short = args.frames // 10
    table = Table("", "objects", f"peak at {short}", f"peak at {args.frames}", "ratio", box=None)
    figure, axes = plt.subplots(figsize=(7, 4))
    runs = [("masklet", n) for n in args.objects]
    runs += [("upstream", n) for n in args.upstream_objects]
    for who, objects in runs:
        few, _ = measure(who, args.model, args.device, objects, short)
        many, curve = measure(who, args.model, args.device, objects, args.frames)
        cells = (f"{few:.0f} MiB", f"{many:.0f} MiB", f"{many / few:.3f}")
        table.add_row(who, str(objects), *cells)
        style = "-" if who == "masklet" else "--"
        axes.plot(*zip(*curve, strict=True), style, label=f"{who}, {objects} objects")
    axes.set(xlabel="frame", ylabel="memory in use, MiB", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.plot, dpi=110)
    console = Console(width=120)
    console.print(f"{args.model} on {args.device}, 854x480; {describe()}")
    console.print(table)
    console.print(f"curves: {args.plot}")


if __name__ == "__main__":
    main()
