"""Label a dataset with two workers and a store, kill one and restart the server, and count.

    python -m benchmarks.label_scale [--clips 200] [--shard-size 50] [--timed 100]

A Prefect server on Postgres, two process workers and an S3-protocol server, each on a port of its
own, all gone at the end. First some of the clips are timed: by the library alone, then by one and
by two workers. Then all of them are labelled; a worker is killed with SIGKILL in the middle, and
the server is restarted. Ends with exit code 1 and one line unless every item is done exactly once.
Takes about ten minutes on two cores; installs Debian's postgresql if there is none.
"""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.stack import Stack, kill_tree, running_stack, wait_for
from masklet import storage
from masklet.dataset import read_dataset
from masklet.item_table import ItemRow, read_rows
from masklet.label import label_dataset
from masklet.media import write_video

_BUCKET = "masklet-scale"
_FRAMES = 3
_LABEL = """
import sys
from flows.label_dataset import label_dataset
dataset, out, size = sys.argv[1:]
label_dataset(
    dataset, out, shard_size=int(size), deployment="label-shard/label-shard", return_state=True
)
"""


def main() -> None:
    parser = ArgumentParser(description="Label with two workers, kill one, and count.")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--shard-size", type=int, default=50)
    parser.add_argument("--timed", type=int, default=100, help="clips of the timed runs; 0: none")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)  # Postgres runs as another user
        everything = write_clips(folder / "clips", options.clips, "all.jsonl")
        with postgres(folder / "postgres"), s3(folder), running_stack(folder / "prefect") as stack:
            stop(stack, 1)  # the stack's own worker, which takes two runs at a time
            if options.timed:
                few = write_clips(folder / "clips", options.timed, "few.jsonl")
                compare(stack, few, folder, options.timed, console)
            injure(stack, everything, folder, options.clips, options.shard_size, console)


def write_clips(folder: Path, count: int, name: str) -> Path:
    """A dataset of so many clips of 64x48 pixels and three frames, no two of them alike."""
    folder.mkdir(exist_ok=True)
    y, x = np.mgrid[:48, :64]

    def picture(number: int, frame_index: int) -> Any:
        inside = (x - 20 - 2 * frame_index) ** 2 + (y - 24) ** 2 < 10**2
        ground = np.stack([40 + 0 * x, 60 + y, 60 + x], axis=2) + number % 60
        return np.where(inside[..., None], (220, 40, 30), ground).astype(np.uint8)

    lines = []
    for number in range(count):
        file = folder / f"clip-{number:04}.mp4"
        if not file.exists():
            frames = [picture(number, frame_index) for frame_index in range(_FRAMES)]
            write_video(file, iter(frames), width=64, height=48, frame_rate=Fraction(10))
        click = {"frame_index": 0, "object_id": 1, "points": [[20, 24]], "labels": [1]}
        item = {"item_id": file.stem, "file": str(file), "model_type": "nano", "prompts": [click]}
        lines.append(json.dumps(item))
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def compare(stack: Stack, dataset: Path, folder: Path, count: int, console: Console) -> None:
    """The library alone, one worker and two, each into a place of its own."""
    begun = time.monotonic()
    label_dataset(read_dataset(dataset), str(folder / "library"))
    bare = time.monotonic() - begun
    console.print(f"library alone    {bare:7.1f} s, {bare / count:.2f} s an item")
    for workers in (1, 2):
        for number in range(workers):
            start_worker(stack, f"timed-{workers}-{number}", workers)
        out = f"s3://{_BUCKET}/timed-{workers}"
        begun = time.monotonic()
        parent = start_label(stack, dataset, out, (count + workers - 1) // workers)
        parent.wait(7200)
        seconds = time.monotonic() - begun
        expect(len(done_rows(out)) == count, f"{count} items done", read_rows_of(out))
        spent = sum(row.seconds for row in done_rows(out)) / count
        console.print(
            f"{workers} worker{'s' if workers > 1 else ' '}        {seconds:7.1f} s, "
            f"{seconds / count:.2f} s an item, {spent:.2f} s of it in a worker; "
            f"{(seconds * workers - bare) / count:+.2f} s of a worker's time over the library"
        )
        stop(stack, workers)


def injure(
    stack: Stack, dataset: Path, folder: Path, count: int, size: int, console: Console
) -> None:
    """Kill a worker after a third of the items, restart the server after half, and count."""
    out = f"s3://{_BUCKET}/injured"
    victim, _ = start_worker(stack, "first", 2), start_worker(stack, "second", 2)
    begun = time.monotonic()
    parent = start_label(stack, dataset, out, size)

    def ended(least: int) -> Callable[[], int | None]:
        def look() -> int | None:
            number = sum(row.status != "pending" for row in read_rows_of(out))
            return number if number >= least else None

        return look

    number = wait_for("a third of the items", ended(count // 3), 7200)
    kill_tree(victim.pid, signal.SIGKILL)
    console.print(f"SIGKILL of a worker and its run after {number} items")
    start_worker(stack, "third", 2)
    number = wait_for("half of the items", ended(count // 2), 7200)
    kill_tree(stack.processes[0].pid, signal.SIGKILL)
    stack.processes[0].wait()
    stack.processes[0] = stack.start("server", "server", "start")
    stack.processes.pop()
    console.print(f"restart of the server after {number} items")
    parent.wait(7200)
    console.print(f"{count} items in {time.monotonic() - begun:.1f} s")
    check(out, count, console)


def check(out: str, count: int, console: Console) -> None:
    """Every item is there once, done once, with the files that its manifest speaks of."""
    rows = read_rows_of(out)
    expect(len(rows) == count, f"{count} rows", len(rows))
    expect(len({row.item_id for row in rows}) == count, "different items", rows)
    expect({row.status for row in rows} == {"done"}, "all done", Counter(r.status for r in rows))
    expect({row.reason for row in rows} == {"new"}, "all new", Counter(r.reason for r in rows))
    summary = json.loads(storage.read_bytes(f"{out}/summary.json") or b"{}")
    expect(summary["is_complete"], "a complete summary", summary)
    for row in rows:
        there = storage.list_files(row.out)
        content = storage.read_bytes(f"{row.out}/manifest.parquet")
        made = pq.read_table(fsspec.open(f"{row.out}/manifest.parquet").open()).to_pylist()
        expect(content is not None and len(made) > 4, "a manifest", row)
        for one in made:
            expect((one["status"], one["reason"]) == ("done", "new"), "an artifact made once", one)
            is_file = one["stage"] != "input" and one["path"] and one["stage"] != "propagate"
            size = there.get(one["path"]) if is_file else one["bytes"]
            expect(size == one["bytes"], "the file that it speaks of", one)
    left = [name for name in storage.list_files(out) if name.startswith(".")]
    expect(not left, "nothing left over", left)
    workers = Counter(row.worker for row in rows)
    console.print(f"every one of {count} items done exactly once, by {len(workers)} runs of shards")


def read_rows_of(out: str) -> list[ItemRow]:
    return read_rows(f"{out}/dataset.parquet")


def done_rows(out: str) -> list[ItemRow]:
    return [row for row in read_rows_of(out) if row.status == "done"]


def expect(holds: bool, what: str, found: object) -> None:
    if not holds:
        raise SystemExit(f"expected {what}, found {str(found)[:500]}")


def start_label(stack: Stack, dataset: Path, out: str, size: int) -> "subprocess.Popen[bytes]":
    """The flow label-dataset in a process of its own."""
    with (stack.folder / "label.log").open("ab") as log:
        command = [sys.executable, "-c", _LABEL, str(dataset), out, str(size)]
        return subprocess.Popen(command, env=stack.environment, stdout=log, stderr=log)


def start_worker(stack: Stack, name: str, among: int) -> "subprocess.Popen[bytes]":
    """A worker with its share of the cores, one of so many."""
    how = ["--pool", "masklet", "--type", "process", "--limit", "1", "--name", name]
    threads = max(1, (os.cpu_count() or 1) // among)
    return stack.start(name, "worker", "start", *how, OMP_NUM_THREADS=str(threads))


def stop(stack: Stack, count: int) -> None:
    """End the processes that were started last."""
    for process in stack.processes[-count:]:
        kill_tree(process.pid, signal.SIGTERM)
        process.wait(120)
    del stack.processes[-count:]


@dataclass
class _User:
    """Whom Postgres runs as, since it refuses root."""

    name: str

    def prefix(self) -> list[str]:
        return ["runuser", "-u", self.name, "--"] if os.geteuid() == 0 else []


@contextmanager
def postgres(folder: Path) -> Iterator[None]:
    """A Postgres of its own, which Prefect's server is told of by the environment."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        subprocess.run(["apt-get", "install", "-y", "postgresql"], check=True)
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    bin_folder, port = programs[-1].parent, free_port()
    user = _User("postgres")
    folder.mkdir()
    if os.geteuid() == 0:
        shutil.chown(folder, pwd.getpwnam(user.name).pw_uid)

    def call(program: str, *arguments: str) -> None:
        command = [*user.prefix(), str(bin_folder / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/")

    data = str(folder / "data")
    call("initdb", "-D", data, "-U", "masklet", "--auth=trust")
    settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    call("pg_ctl", "-D", data, "-w", "-t", "120", "-l", f"{folder}/log", "-o", settings, "start")
    os.environ["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = (
        f"postgresql+asyncpg://masklet@127.0.0.1:{port}/postgres"
    )
    os.environ["PREFECT_SERVER_DATABASE_MIGRATE_ON_START"] = "true"
    try:
        yield
    finally:
        call("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


@contextmanager
def s3(folder: Path) -> Iterator[None]:
    """An S3-protocol server with a bucket, which s3fs is told of by the environment."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "s3.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
    os.environ["AWS_ACCESS_KEY_ID"] = os.environ["AWS_SECRET_ACCESS_KEY"] = "masklet"
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    try:
        wait_for("the S3 server", lambda: _connects(port), 120)
        fsspec.filesystem("s3").mkdir(_BUCKET)
        yield
    finally:
        server.terminate()
        server.wait(20)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _connects(port: int) -> bool | None:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return None
    return True


if __name__ == "__main__":
    main()
