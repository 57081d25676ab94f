"""`python -m benchmarks.store_size RUN_DIRECTORY`: bytes per frame and object of a masklet store.

Beside them: the raw half-precision logits that one would keep otherwise, which would not give the
same masks and confidences again.
"""

import sys
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table


def main(run_directory: Path) -> None:
    table = Table("object", "frames", "bytes per frame", "raw float16", "ratio", box=None)
    all_frames, total, total_raw = 0, 0, 0
    for folder in sorted((run_directory / "masklets").iterdir()):
        parts = sorted(folder.iterdir())
        frames = sum(pq.read_metadata(part).num_rows for part in parts)
        about = pq.read_schema(parts[0]).metadata
        raw = 2 * int(about[b"height"]) * int(about[b"width"]) * frames
        stored = sum(part.stat().st_size for part in parts)
        table.add_row(*_row(folder.name.removeprefix("object="), frames, stored, raw))
        all_frames, total, total_raw = all_frames + frames, total + stored, total_raw + raw
    table.add_row(*_row("all", all_frames, total, total_raw))
    Console().print(table)


def _row(name: str, frames: int, stored: int, raw: int) -> tuple[str, ...]:
    return (
        name,
        str(frames),
        f"{stored / frames:.0f}",
        f"{raw / frames:.0f}",
        f"{stored / raw:.2f}",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
