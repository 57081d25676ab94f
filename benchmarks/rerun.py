"""`python -m benchmarks.rerun [--frames 10000]`: how long the same job takes a second time.

Runs `masklet segment` with every output once, then again and again, in turn with a command that
only starts up; the difference is what it takes to find that nothing has to be done. The first run
is kept in `out/rerun-<frames>` for the next time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.clips import long_clip
from benchmarks.machine import describe

OUTPUTS = ("--debug-masks", "--pixel-confidences", "--bbox-tracking")
PROMPTS = [{"frame_index": 0, "object_id": 1, "points": [[430, 240]], "labels": [1]}]


def timed(*arguments: str) -> float:
    """Seconds that a `masklet` command takes as a whole process."""
    begun = time.perf_counter()
    command = [str(Path(sys.executable).with_name("masklet")), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begun


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file but the lock; of the manifest too."""
    files = (path for path in sorted(folder.rglob("[!.]*")) if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def main() -> None:
    parser = argparse.ArgumentParser(description="how long a rerun takes")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    clip, out = long_clip(args.frames), Path(f"out/rerun-{args.frames}")
    prompts = out.with_suffix(".json")
    prompts.write_text(json.dumps(PROMPTS))
    job = ["segment", str(clip), "--model-type", "nano", "--prompts", str(prompts), *OUTPUTS]
    job += ["--out", str(out)]
    first = timed(*job)
    before = contents(out)
    rounds = [(timed("schema"), timed(*job), timed(*job, "--verify")) for _ in range(args.times)]
    assert contents(out) == before, "a rerun touched what was there"
    start, again, verified = (statistics.median(column) for column in zip(*rounds, strict=True))
    table = Table("command", "seconds", "beyond start-up", box=None)
    table.add_row("start-up alone (masklet schema)", f"{start:.2f}", "")
    table.add_row(
        "the first run, or what was missing of it", f"{first:.1f}", f"{first - start:.1f}"
    )
    table.add_row("the same job again", f"{again:.2f}", f"{again - start:.2f}")
    table.add_row("again with --verify", f"{verified:.2f}", f"{verified - start:.2f}")
    console = Console(width=120)
    console.print(f"{args.frames} frames, all outputs, median of {args.times}; {describe()}")
    console.print(table)


if __name__ == "__main__":
    main()
