"""Parquet files of this machine, by their paths alone.

To pyarrow a relative path such as `a:b` is an address, and `object=1` in a path a column.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A file, or all files of a folder, as one table; all columns unless some are named."""
    return pq.read_table(path.absolute(), columns=columns, partitioning=None)


def write_table(table: pa.Table, path: Path, **options: Any) -> None:
    """Write a file, compressed by zstd; options: others of `pyarrow.parquet.write_table`."""
    pq.write_table(table, path.absolute(), compression="zstd", **options)
