"""The manifest of a run directory: what was made, from what, and why it was made again.

`manifest.parquet` has one row per (stage, artifact); `SCHEMA` names the columns. It alone decides
what is done: a piece of work is skipped when a row with its key exists and its output is there
with the size the row says.
"""

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from masklet.atomic import replacing

SCHEMA_VERSION = 1
FILE_NAME = "manifest.parquet"


class Reason(StrEnum):
    """Why a piece of work was done."""

    NEW = "new"
    INPUTS = "inputs changed"
    PARAMETERS = "parameters changed"
    CODE = "code changed"
    MISSING = "output missing"
    DAMAGED = "output damaged"
    FAILED = "failed before"


@dataclass(frozen=True, eq=False)
class Work:
    """One artifact that a stage makes, and all that its content depends on.

    Compared by identity, so that it can be a key of a dict while it holds dicts.

    stage, code_version: the stage, and the number raised by hand when its output would change.
    artifact: name within the stage. path: relative to the run directory; a file or a folder.
    parameters: JSON values. inputs: content hashes by name.
    """

    stage: str
    code_version: int
    artifact: str
    path: str
    parameters: Mapping[str, Any]
    inputs: Mapping[str, str]

    @property
    def key(self) -> str:
        """sha256 of stage, code version, parameters and inputs as canonical JSON."""
        parts = [self.stage, self.code_version, dict(self.parameters), dict(self.inputs)]
        return hashlib.sha256(_canonical(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One row of the manifest: one artifact, and how it came about.

    stage, artifact: what made it, and its name there; together they are unique.
    key: `Work.key`; a row stands for its artifact while the key is the same.
    path: relative to the run directory. bytes, sha256: of the file, or of the folder's files.
    rows: frames of a masklet, pictures of a zip, boxes, frames of a video.
    status: `done` or `failed`; error: one line, if the last try failed.
    reason: why it was made the last time, a `Reason`.
    seconds: how long that took, shared among artifacts made together.
    finished: when, ISO 8601 in UTC. run_id: which run of the process did it.
    code_version, parameters, inputs: what the key is made of; the last two are canonical JSON.
    schema_version: `SCHEMA_VERSION` of this table.
    """

    stage: str
    artifact: str
    key: str
    path: str
    bytes: int
    sha256: str
    rows: int
    status: str
    error: str
    reason: str
    seconds: float
    finished: str
    run_id: str
    code_version: int
    parameters: str
    inputs: str
    schema_version: int


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
SCHEMA = pa.schema([(field.name, _ARROW_TYPES[field.type]) for field in fields(Row)])  # type: ignore[index]  # field.type is the class itself here


class Manifest:
    """The manifest of one run directory, in memory; every `record` is on disk when it returns."""

    def __init__(self, root: Path, run_id: str) -> None:
        self._root, self._run_id = root, run_id
        self._rows: dict[tuple[str, str], Row] = {}
        self._writing = threading.Lock()
        path = root / FILE_NAME
        if path.exists():
            for row in pq.read_table(path, partitioning=None).to_pylist():
                if row["schema_version"] == SCHEMA_VERSION:
                    self._rows[row["stage"], row["artifact"]] = Row(**row)

    def row(self, stage: str, artifact: str) -> Row:
        return self._rows[stage, artifact]

    def rows(self, stage: str | None = None) -> list[Row]:
        """The rows of one stage, or all of them."""
        return [row for row in self._rows.values() if stage in (None, row.stage)]

    def reason_to_run(self, work: Work) -> Reason | None:
        """Why `work` has to be done, or None if its output is there and up to date."""
        row = self._rows.get((work.stage, work.artifact))
        if row is None:
            return Reason.NEW
        if row.status != "done":
            return Reason.FAILED
        if row.key != work.key:
            if row.code_version != work.code_version:
                return Reason.CODE
            same_inputs = row.inputs == _canonical(dict(work.inputs))
            return Reason.PARAMETERS if same_inputs else Reason.INPUTS
        size = _size(self._root / work.path)
        if size is None:
            return Reason.MISSING
        return None if size == row.bytes else Reason.DAMAGED

    def record(self, work: Work, *, reason: Reason, rows: int, seconds: float) -> Row:
        """Note that `work` is done and what came of it."""
        path = self._root / work.path
        return self._put(
            work, reason, rows, seconds, "done", "", _size(path) or 0, content_hash(path)
        )

    def record_failure(self, work: Work, *, reason: Reason, seconds: float, error: str) -> None:
        """Note that `work` failed; it is tried again by the next run.

        An earlier artifact in its place stays what it is: its row gets the error and keeps the key.
        """
        row = self._rows.get((work.stage, work.artifact))
        if row is not None and row.status == "done" and _size(self._root / row.path) == row.bytes:
            with self._writing:
                self._rows[work.stage, work.artifact] = replace(row, error=error)
                self._write()
        else:
            self._put(work, reason, 0, seconds, "failed", error, 0, "")

    def forget(self, stage: str, artifact: str) -> None:
        with self._writing:
            del self._rows[stage, artifact]
            self._write()

    def _put(
        self,
        work: Work,
        reason: Reason,
        rows: int,
        seconds: float,
        status: str,
        error: str,
        size: int,
        sha256: str,
    ) -> Row:
        row = Row(
            stage=work.stage,
            artifact=work.artifact,
            key=work.key,
            path=work.path,
            bytes=size,
            sha256=sha256,
            rows=rows,
            status=status,
            error=error,
            reason=reason.value,
            seconds=round(seconds, 3),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            run_id=self._run_id,
            code_version=work.code_version,
            parameters=_canonical(dict(work.parameters)),
            inputs=_canonical(dict(work.inputs)),
            schema_version=SCHEMA_VERSION,
        )
        with self._writing:
            self._rows[work.stage, work.artifact] = row
            self._write()
        return row

    def _write(self) -> None:
        rows = [asdict(row) for row in self._rows.values()]
        with replacing(self._root / FILE_NAME) as temporary:
            pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and hashes of a folder's files."""
    if path.is_dir():
        parts = [[part.name, content_hash(part)] for part in sorted(path.iterdir())]
        return hashlib.sha256(_canonical(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int | None:
    if path.is_dir():
        return sum(part.stat().st_size for part in path.iterdir())
    return path.stat().st_size if path.exists() else None


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
