"""`python -m benchmarks.checkpoint_cost`: what it costs that a killed run can go on.

Saves checkpoints as large as they become (a full memory, and as many rows as wait for their part of
the store) and gives the time as a share of the time between two of them. State and rows have the
sizes of each model and random contents, so no weights are needed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from masklet.checkpoint import Kept, Standing, load_checkpoint, save_checkpoint
from masklet.job import ObjectId
from masklet.models import find_model, model_config
from masklet.settings import Settings
from masklet.store import MAX_PART_BYTES, PART_ROWS, MaskletRow
from masklet.tracker import Memory, MemoryBank

MAPS, POINTERS = 6, 15
SECONDS_BETWEEN = Settings.model_fields["checkpoint_seconds"].default


def standing(image_size: int, channels: int, rows: int) -> Standing:
    """One object with one prompted frame and all the memory of tracked ones."""
    side = image_size // 16

    def memory(*, with_map: bool) -> Memory:
        spatial = torch.randn(64, side, side).bfloat16() if with_map else None
        return Memory(spatial, torch.randn(channels))

    tracked = {at: memory(with_map=at <= MAPS) for at in range(1, POINTERS + 1)}
    bank = MemoryBank({0: memory(with_map=True)}, tracked)
    logits = np.random.default_rng(0).random((rows, side * 4, side * 4), np.float32)
    return Standing(500, bank, [MaskletRow(at, 1.0, row) for at, row in enumerate(logits)])


def main() -> None:
    parser = argparse.ArgumentParser(description="what checkpoints cost")
    parser.add_argument("--models", nargs="+", default=["nano", "large"])
    parser.add_argument("--objects", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--folder", type=Path, help="on the disk to measure")
    args = parser.parse_args()
    table = Table("model", "objects", "state each", "rows each", "file", "save", "share", box=None)
    for name in args.models:
        config = model_config(find_model(name))
        size = config.image_size
        rows = min(PART_ROWS, MAX_PART_BYTES // ((size // 4) ** 2 * 4)) - 1
        channels = config.image_encoder.neck.d_model
        one = standing(size, channels, rows)
        for objects in args.objects:
            kept: dict[ObjectId, Kept] = {
                number: Kept("key", standing(size, channels, rows)) for number in range(objects)
            }
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                path, seconds = Path(folder, "checkpoint.safetensors"), []
                for _ in range(5):
                    begun = time.perf_counter()
                    save_checkpoint(path, kept)
                    seconds.append(time.perf_counter() - begun)
                assert load_checkpoint(path)[0].standing.steps == one.steps
                taken, large = statistics.median(seconds), path.stat().st_size
            table.add_row(
                name,
                str(objects),
                f"{one.bank.nbytes / 2**20:.2f} MiB",
                str(rows),
                f"{large / 2**20:.1f} MiB",
                f"{1e3 * taken:.0f} ms",
                f"{taken / SECONDS_BETWEEN:.2%}",
            )
    console = Console(width=120)
    console.print(f"a checkpoint every {SECONDS_BETWEEN:.0f} s; {describe()}")
    console.print(table)


if __name__ == "__main__":
    main()
