"""The manifest of a run directory: what was made, from what, and why it was made again.

`manifest.parquet` has one row per (stage, artifact); `SCHEMA` names the columns, and
docs/manifest.md explains them. It alone decides what is done: a piece of work is skipped when a row
with its key exists and its output is there as the row describes it.
"""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import pyarrow as pa

from masklet.atomic import replacing
from masklet.content import Stamp, content_hash
from masklet.parquet import read_table, write_table

SCHEMA_VERSION = 2
FILE_NAME = "manifest.parquet"
INPUT = "input"
"""The stage of rows that describe a file the job reads."""


class Reason(StrEnum):
    """Why a piece of work was done."""

    NEW = "new"
    INPUTS = "inputs changed"
    PARAMETERS = "parameters changed"
    CODE = "code changed"
    MISSING = "output missing"
    DAMAGED = "output damaged"
    FAILED = "failed before"
    REMOVED = "masklets removed"
    FORCED = "forced"


@dataclass(frozen=True, eq=False)
class Work:
    """One artifact that a stage makes, and all that its content depends on.

    Compared by identity, so that it can be a key of a dict while it holds dicts.

    stage, code_version: the stage, and the number raised by hand when its output would change.
    artifact: name within the stage. path: relative to the run directory; a file or a folder, or ''
    for a step that leaves no file.
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
        return _key(self.stage, self.code_version, self.parameters, self.inputs)


_NO_FILE = Stamp(0, 0, 0)


class InputFile(NamedTuple):
    """A file that a job reads, as it was found: `stamp` is from before it was read.

    address: what it was fetched from, without secrets; '' for a file of this machine.
    """

    name: str
    path: Path
    stamp: Stamp
    sha256: str
    address: str = ""


class Done(NamedTuple):
    """A work that is done: why it was, its rows as in `Row`, and the seconds it took."""

    work: Work
    reason: Reason
    rows: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """One row of the manifest: one artifact, and how it came about.

    stage, artifact: what made it, and its name there; together they are unique.
    key: `Work.key`; a row stands for its artifact while the key is the same.
    path: relative to the run directory; absolute for an input; '' where there is no file.
    bytes, sha256: of the file, or of the folder's files; a removed one's are kept.
    mtime_ns, inode: when the file was last written, or the folder changed, and which one it is;
    where both are as recorded it need not be hashed again.
    rows: frames of a masklet, pictures of a zip, boxes, frames of a video.
    status: `done`, `failed` or `removed`; error: one line, if the last try failed; of the frame
    table, what is damaged in the source.
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
    mtime_ns: int
    inode: int
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

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.bytes, self.mtime_ns, self.inode)


_ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
SCHEMA = pa.schema([(field.name, _ARROW_TYPES[field.type]) for field in fields(Row)])  # type: ignore[index]  # field.type is the class itself here


class Manifest:
    """The manifest of one run directory, in memory; every `record` is on disk when it returns.

    With `verify` no file is believed to be what was recorded before it has been hashed again.
    `check` raises if the directory is not the one that was meant; it is asked before every write.
    """

    def __init__(
        self,
        root: Path,
        run_id: str,
        *,
        verify: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._check = check
        self._root, self._run_id, self._verify = root, run_id, verify
        self._rows: dict[tuple[str, str], Row] = {}
        self._verified: set[tuple[str, str]] = set()
        self._is_behind = False
        self._writing = threading.Lock()
        path = root / FILE_NAME
        if path.is_dir():
            raise IsADirectoryError("it is a folder")  # of which pyarrow would read every file
        if path.exists():
            for fields_of_row in read_table(path).to_pylist():
                row = _read_row(fields_of_row)
                self._rows[row.stage, row.artifact] = row

    @property
    def root(self) -> Path:
        return self._root

    def row(self, stage: str, artifact: str) -> Row:
        return self._rows[stage, artifact]

    def find(self, stage: str, artifact: str) -> Row | None:
        return self._rows.get((stage, artifact))

    def rows(self, stage: str | None = None) -> list[Row]:
        """The rows of one stage, or all of them."""
        return [row for row in list(self._rows.values()) if stage in (None, row.stage)]

    def reason_to_run(self, work: Work) -> Reason | None:
        """Why `work` has to be done, or None if its output is there and up to date."""
        row = self.find(work.stage, work.artifact)
        if row is None:
            return Reason.NEW
        if row.status == "failed":
            return Reason.FAILED
        if row.key != work.key:
            if row.code_version != work.code_version:
                return Reason.CODE
            same_inputs = row.inputs == _canonical(dict(work.inputs))
            return Reason.PARAMETERS if same_inputs else Reason.INPUTS
        if row.path != work.path:
            return Reason.DAMAGED
        return Reason.REMOVED if row.status == "removed" else self.harm(row)

    def harm(self, row: Row) -> Reason | None:
        """MISSING or DAMAGED if a row's file is not what was recorded, None if it is.

        A file of the same size that was touched since then is hashed; `settle` keeps its new time.
        So is the table of frames every time, since all that follows is computed from it.
        """
        if not row.path:
            return None
        path, place = self._root / row.path, (row.stage, row.artifact)
        stamp = Stamp.of(path)
        if stamp is None:
            return Reason.MISSING
        if stamp.bytes != row.bytes:
            return Reason.DAMAGED
        is_known = not (self._verify or row.stage == "ingest") or place in self._verified
        if is_known and stamp == row.stamp:
            return None
        if content_hash(path) != row.sha256:
            return Reason.DAMAGED
        self._verified.add(place)
        if stamp != row.stamp:
            self._rows[place] = replace(row, mtime_ns=stamp.mtime_ns, inode=stamp.inode)
            self._is_behind = True
        return None

    def settle(self) -> None:
        """Write down the new times of files that were touched but not changed."""
        with self._writing:
            if self._is_behind:
                self._write()

    def identify(self, name: str, path: Path) -> InputFile:
        """Find the hash of a file that the job reads; an untouched one is not read again."""
        stamp = Stamp.of(path)
        if stamp is None:
            raise FileNotFoundError(2, "No such file", str(path))
        row = self.find(INPUT, name)
        if row and not self._verify and (row.path, row.stamp) == (str(path.absolute()), stamp):
            return InputFile(name, path.absolute(), stamp, row.sha256)
        return InputFile(name, path.absolute(), stamp, content_hash(path))

    def remember(self, file: InputFile) -> None:
        """Note an input, for `identify` and for `masklet status`."""
        row, path = self.find(INPUT, file.name), str(file.path)
        about = {"address": file.address} if file.address else {}
        now = (path, file.stamp, file.sha256, _canonical(about))
        if row and (row.path, row.stamp, row.sha256, row.parameters) == now:
            return
        reason = Reason.INPUTS if row and row.sha256 != file.sha256 else Reason.NEW
        work = Work(INPUT, 1, file.name, path, about, {"content": file.sha256})
        self._put(self._new_row(work, reason, file.stamp, file.sha256))

    def record(self, done: Sequence[Done]) -> None:
        """Note that works are done and what came of them, all at once."""
        rows = [self._row_of(one) for one in done]
        self._put(*rows)

    def _row_of(self, done: Done) -> Row:
        work = done.work
        if not work.path:
            return self._new_row(work, done.reason, rows=done.rows, seconds=done.seconds)
        path = self._root / work.path
        sha256, stamp = content_hash(path), Stamp.of(path)
        assert stamp
        self._verified.add((work.stage, work.artifact))
        return self._new_row(work, done.reason, stamp, sha256, rows=done.rows, seconds=done.seconds)

    def record_failure(self, work: Work, *, reason: Reason, seconds: float, error: str) -> None:
        """Note that `work` failed; it is tried again by the next run.

        An earlier artifact in its place stays what it is: its row gets the error and keeps the key.
        """
        row = self.find(work.stage, work.artifact)
        if row is not None and _stands(row, self._root):
            with self._writing:
                self._rows[work.stage, work.artifact] = replace(row, error=error)
                self._write()
        else:
            failed = self._new_row(work, reason, seconds=seconds, status="failed", error=error)
            self._put(failed)

    def remark(self, work: Work, text: str) -> None:
        """Note something about an artifact that is done, as `error` of its row."""
        with self._writing:
            row = self._rows[work.stage, work.artifact]
            self._rows[work.stage, work.artifact] = replace(row, error=text)
            self._write()

    def mark_removed(self, stage: str) -> None:
        """Note that the artifacts of a stage are removed on purpose; their hashes are kept."""
        kept = [row for row in self.rows(stage) if row.status == "done"]
        if kept:
            with self._writing:
                for row in kept:
                    self._rows[stage, row.artifact] = replace(row, status="removed")
                self._write()

    def forget(self, stage: str, artifact: str) -> None:
        with self._writing:
            del self._rows[stage, artifact]
            self._write()

    def _new_row(
        self,
        work: Work,
        reason: Reason,
        stamp: Stamp = _NO_FILE,
        sha256: str = "",
        *,
        rows: int = 0,
        seconds: float = 0.0,
        status: str = "done",
        error: str = "",
    ) -> Row:
        return Row(
            stage=work.stage,
            artifact=work.artifact,
            key=work.key,
            path=work.path,
            bytes=stamp.bytes,
            sha256=sha256,
            mtime_ns=stamp.mtime_ns,
            inode=stamp.inode,
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

    def _put(self, *rows: Row) -> None:
        with self._writing:
            self._rows.update({(row.stage, row.artifact): row for row in rows})
            self._write()

    def _write(self) -> None:
        rows = [asdict(row) for row in self._rows.values()]
        with replacing(self._root / FILE_NAME, self._check) as temporary:
            write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
        self._is_behind = False


def _read_row(fields_of_row: dict[str, Any]) -> Row:
    """A row of this schema or of version 1, which had no mtime_ns and no inode.

    Raises ValueError for anything else: a manifest may come from elsewhere, and its paths are read.
    """
    version = fields_of_row.get("schema_version")
    if version == 1:
        fields_of_row |= {"mtime_ns": 0, "inode": 0, "schema_version": SCHEMA_VERSION}
    elif version != SCHEMA_VERSION:
        raise ValueError(f"its schema_version is {version}, not {SCHEMA_VERSION}")
    wrong = [one.name for one in fields(Row) if type(fields_of_row.get(one.name)) is not one.type]
    if wrong or len(fields_of_row) != len(fields(Row)):
        raise ValueError(f"its columns are not those of the schema: {', '.join(wrong)}")
    row = Row(**fields_of_row)
    path = PurePath(row.path)
    if row.stage != INPUT and (path.is_absolute() or ".." in path.parts):
        raise ValueError(f"{row.path} is not a path in the run directory")
    if row.status not in ("done", "failed", "removed"):
        raise ValueError(f"{row.status[:100]!r} is no status")
    parameters, inputs = (json.loads(text) for text in (row.parameters, row.inputs))
    if not (isinstance(parameters, dict) and isinstance(inputs, dict)):
        raise ValueError(f"the {row.stage} row's parameters and inputs are not JSON objects")
    if _key(row.stage, row.code_version, parameters, inputs) != row.key:
        raise ValueError(f"the {row.stage} row's key is not of what it says")
    return row


def _stands(row: Row, root: Path) -> bool:
    """Whether a row is of something that an attempt which failed has left as it was."""
    stamp = Stamp.of(root / row.path)
    return row.status == "removed" or (
        row.status == "done" and stamp is not None and stamp.bytes == row.bytes
    )


def _key(
    stage: str, code_version: int, parameters: Mapping[str, Any], inputs: Mapping[str, str]
) -> str:
    parts = [stage, code_version, dict(parameters), dict(inputs)]
    return hashlib.sha256(_canonical(parts).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
