"""Kill a run again and again, let it go on, and compare what it made with an uninterrupted run's.

    python -m benchmarks.kill [--injuries 50] [--frames 180] [--seed 0]

The injuries come in random order: SIGKILL and SIGTERM at random moments, a disk that fills up (a
small tmpfs, where one can be mounted), files that may not grow, and flushes to disk that fail.
After each of them the manifest must be readable and tell the truth, and what ended by itself must
have ended with one line and exit code 2. A run directory that is complete is compared byte by byte,
and the next one begins, until there were enough injuries.
"""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console

from benchmarks.clips import demo_clip
from masklet.atomic import TEMPORARY_FILES
from masklet.status import State, read_status

KINDS = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "full disk", "file size", "failing flush")
DISK_BYTES = 400 * 2**20
# of a row, what says when and how a thing was made, and not what it is
TOLD_APART = {"mtime_ns", "inode", "reason", "seconds", "finished", "run_id"}


@dataclass
class Tally:
    """What was done to the runs so far. longest: seconds of the longest attempt that ended."""

    injuries: Counter[str] = field(default_factory=Counter)
    completed: int = 0
    went_on: int = 0
    longest: float = 0.0


def main() -> None:
    parser = ArgumentParser(description="Kill a run, let it go on, and compare what it made.")
    parser.add_argument("--injuries", type=int, default=50)
    parser.add_argument("--frames", type=int, default=180)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console, chance, tally = Console(), random.Random(options.seed), Tally()
    with tempfile.TemporaryDirectory() as temporary, small_disk(Path(temporary)) as disk:
        arguments = job(Path(temporary), options.frames)
        whole = Path(temporary, "uninterrupted")
        begun = time.monotonic()
        assert attempt("none", [*arguments, "--out", str(whole)], None).returncode == 0
        tally.longest = time.monotonic() - begun
        console.print(f"uninterrupted: {tally.longest:.1f} s")
        while tally.injuries.total() < options.injuries or not tally.completed:
            out = disk / f"run-{tally.completed}"
            injure_until_complete(out, arguments, chance, tally, console, options.injuries)
            compare(whole, out)
            console.print("no difference")
            shutil.rmtree(out)
    report(tally, console)


def job(folder: Path, frames: int) -> list[str]:
    """Two objects both ways from the middle, and every output there is."""
    middle = frames // 2
    prompts = [
        {"frame_index": middle, "object_id": 1, "points": [[427, 240]], "labels": [1]},
        {"frame_index": middle, "object_id": "two", "box": [200, 200, 400, 400]},
    ]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    outputs = ["--debug-masks", "--pixel-confidences", "--bbox-tracking"]
    given = ["--prompts", str(folder / "prompts.json"), "--end-frame", str(frames - 1)]
    how = ["--model-type", "nano", "--direction", "both", "--device", "cpu"]
    return ["segment", str(demo_clip()), *given, *how, *outputs]


def injure_until_complete(
    out: Path,
    arguments: list[str],
    chance: random.Random,
    tally: Tally,
    console: Console,
    most: int,
) -> None:
    command = [*arguments, "--out", str(out)]
    while True:
        kind = chance.choice(KINDS) if tally.injuries.total() < most else "none"
        before = standing(out)
        ended = injured_attempt(kind, command, out, chance, tally)
        if ended is not None and ended.returncode == 0:
            tally.completed += 1
            console.print(f"complete after {tally.injuries.total()} injuries")
            return
        tally.injuries[kind] += 1
        tally.went_on += standing(out) > before > 0
        console.print(f"{tally.injuries.total():>3} {kind:<14} stands at {standing(out)}")
        check_refusal(kind, ended, out)
        check_truth(out)


def injured_attempt(
    kind: str, command: list[str], out: Path, chance: random.Random, tally: Tally
) -> subprocess.CompletedProcess[str] | None:
    """None if it was killed, what it said if it ended."""
    if kind in ("SIGKILL", "SIGTERM"):
        seconds = chance.uniform(0.05, 0.7) * tally.longest
        ended = attempt("none", command, seconds, getattr(signal, kind))
    elif kind == "full disk":
        with little_space(out.parent, chance.randrange(1, 3_000_000)):
            ended = attempt("none", command, None)
    elif kind == "file size":
        ended = attempt(f"filesize:{chance.randrange(1, 4_000_000)}", command, None)
    elif kind == "failing flush":
        ended = attempt(f"fsync:{chance.randrange(1, 60)}", command, None)
    else:
        ended = attempt("none", command, None)
    return None if ended.returncode < 0 else ended


def attempt(
    injury: str, command: list[str], seconds: float | None, stop: signal.Signals = signal.SIGKILL
) -> subprocess.CompletedProcess[str]:
    """Run masklet, and stop it after some seconds if it still runs."""
    whole = [sys.executable, "-m", "benchmarks.injured", injury, *command]
    with subprocess.Popen(whole, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as p:
        try:
            said = p.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            p.send_signal(stop)
            said = p.communicate()[1]
        return subprocess.CompletedProcess(whole, p.returncode, stderr=said)


def check_refusal(kind: str, ended: subprocess.CompletedProcess[str] | None, out: Path) -> None:
    """What ends by itself says why in one line, and takes its temporary files with it."""
    if ended is None:
        return
    said = [line for line in ended.stderr.splitlines() if line.startswith("masklet: ")]
    expected = 143 if kind == "SIGTERM" else 2
    right = ended.returncode == expected and "Traceback" not in ended.stderr
    if not right or (kind != "SIGTERM" and len(said) != 1):
        raise SystemExit(f"{kind}: ended with {ended.returncode} and said:\n{ended.stderr}")
    if left := temporary_files(out):
        raise SystemExit(f"{kind}: left {left}")


def check_truth(out: Path) -> None:
    """Everything that the manifest calls done is there, with the content that it says."""
    if not (out / "manifest.parquet").exists():
        return
    for found in read_status(out, verify=True).artifacts:
        if found.state in (State.DAMAGED, State.MISSING) and found.row:
            raise SystemExit(f"{found.stage} {found.artifact}: {found.why}")


def compare(whole: Path, out: Path) -> None:
    """Raise SystemExit if the files, or what the manifests say of them, differ anywhere."""
    if left := temporary_files(out):
        raise SystemExit(f"left behind: {left}")
    ours, theirs = contents(out), contents(whole)
    if ours != theirs:
        names = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        raise SystemExit(f"not the bytes of the uninterrupted run: {', '.join(names)}")
    if manifest_rows(out) != manifest_rows(whole):
        raise SystemExit("not what the uninterrupted run's manifest says")


def contents(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*") if path.is_file() and path.name != "manifest.parquet"]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def manifest_rows(out: Path) -> list[str]:
    rows = pq.read_table(out / "manifest.parquet").to_pylist()
    said = [{name: v for name, v in row.items() if name not in TOLD_APART} for row in rows]
    return sorted(json.dumps(row) for row in said)


def temporary_files(out: Path) -> list[str]:
    scratch = [out / ".tracking"] if (out / "outputs.json").exists() else []
    found = [*out.rglob(TEMPORARY_FILES), *(path for path in scratch if path.exists())]
    return [str(path.relative_to(out)) for path in found]


def standing(out: Path) -> int:
    """How many frames the checkpoint has, or all of them once the masklets are in place."""
    if (out / "masklets").exists():
        return 10**6
    found = read_status(out).tracked if (out / "manifest.parquet").exists() else {}
    return max(found.values(), default=0)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own that can be filled, where mounting is allowed; else a folder."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "masklet", str(disk)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        print("no tmpfs can be mounted here: full disks are left out", file=sys.stderr)
        yield disk
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@contextmanager
def little_space(disk: Path, left: int) -> Iterator[None]:
    """Fill the file system but for `left` bytes."""
    filling = disk / "filling"
    with filling.open("wb") as file:
        file.truncate(0)
        free = shutil.disk_usage(disk).free
        block = bytes(2**20)
        for _ in range(max(0, free - left) // len(block)):
            file.write(block)
    try:
        yield
    finally:
        filling.unlink()


def report(tally: Tally, console: Console) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in tally.injuries.most_common())
    console.print(
        f"\n{tally.injuries.total()} injuries ({kinds}) in {tally.completed} runs; "
        f"{tally.went_on} attempts went on from a checkpoint.\n"
        "Every completed run has the bytes of the uninterrupted one, and left no temporary file."
    )


if __name__ == "__main__":
    main()
