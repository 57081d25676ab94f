"""Real processes on one run directory: one works, the others wait or say who has it."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from masklet import lock, pipeline
from masklet.errors import UserError
from masklet.status import read_status
from tests.masklet.conftest import contents_of, files_of

Start = Callable[..., "subprocess.Popen[str]"]

# runs the job, and stands still in the middle of the tracking until a line comes
_STANDS_STILL = """
import json, sys
from pathlib import Path
from masklet.job import make_job
from masklet.pipeline import run_job

def stand_still(stage, done, total):
    if (stage, done) == ("propagate", 3):
        print("standing still", flush=True)
        sys.stdin.readline()

run_job(make_job(json.loads(Path(sys.argv[1]).read_text())), Path("out"), progress=stand_still)
"""


@pytest.fixture
def start(tmp_path: Path, fields: dict[str, Any]) -> Iterator[Start]:
    """Start Python with some code in `tmp_path`, where the job lies in job.json."""
    (tmp_path / "job.json").write_text(json.dumps(fields))
    running: list[subprocess.Popen[str]] = []
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(pipeline.__file__).parents[1]),
        # of what rounding depends on, the same as here
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
    }

    def call(code: str, *arguments: str) -> "subprocess.Popen[str]":
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-c", code, *arguments]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)
        running.append(process)
        return process

    yield call
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def masklet(start: Start) -> Start:
    """Start `masklet segment --config job.json --out out …`."""
    command = ("segment", "--config", "job.json", "--out", "out")
    return lambda *more: start("from masklet.cli import main; main()", *command, *more)


@pytest.fixture
def holder(start: Start) -> "subprocess.Popen[str]":
    """A process in the middle of its job."""
    process = start(_STANDS_STILL, "job.json")
    assert process.stdout
    assert process.stdout.readline() == "standing still\n"
    return process


def _until_it_waits(process: "subprocess.Popen[str]") -> str:
    """The line that says so."""
    said = []
    while line := process.stderr.readline() if process.stderr else "":
        said.append(line)
        if "waiting for the run" in line:
            return line
    raise AssertionError(f"it did not wait: {said}")


def test_the_second_is_refused_and_told_who_is_at_work(
    holder: "subprocess.Popen[str]", masklet: Start, tmp_path: Path, finished: Path
) -> None:
    out = tmp_path / "out"
    before = files_of(out)
    second = masklet()
    printed, err = second.communicate(timeout=300)
    who = f"process {holder.pid} on {os.uname().nodename}"
    assert (second.returncode, printed) == (2, "")
    assert err == f"masklet: out: another run is at work there ({who}); wait for it\n"
    assert read_status(out).holder == who
    assert files_of(out) == before
    _, err = holder.communicate("go on\n", timeout=300)
    assert holder.returncode == 0, err
    assert contents_of(out) == contents_of(finished)
    assert read_status(out).holder is None


def test_one_that_waits_reuses_what_the_first_has_made(
    holder: "subprocess.Popen[str]", masklet: Start, tmp_path: Path, finished: Path
) -> None:
    second = masklet("--wait")
    assert f"process {holder.pid} on " in _until_it_waits(second)
    assert second.poll() is None
    holder.communicate("go on\n", timeout=300)
    made = files_of(tmp_path / "out")
    printed, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert "nothing to track again" in printed
    assert files_of(tmp_path / "out") == made
    assert contents_of(tmp_path / "out") == contents_of(finished)


def test_a_killed_holder_does_not_block(
    holder: "subprocess.Popen[str]", masklet: Start, tmp_path: Path, finished: Path
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=300)
    assert read_status(tmp_path / "out").holder is None
    second = masklet()
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert contents_of(tmp_path / "out") == contents_of(finished)


def test_a_waiting_one_goes_on_when_the_holder_is_killed(
    holder: "subprocess.Popen[str]", masklet: Start, tmp_path: Path, finished: Path
) -> None:
    second = masklet("--wait")
    _until_it_waits(second)
    holder.send_signal(signal.SIGKILL)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert contents_of(tmp_path / "out") == contents_of(finished)


def test_many_at_once_make_the_same(masklet: Start, tmp_path: Path, finished: Path) -> None:
    processes = [masklet("--wait") for _ in range(4)]
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert sum("nothing to track again" in printed for printed, _ in said) == 3
    assert contents_of(tmp_path / "out") == contents_of(finished)
    assert [path.name for path in (tmp_path / "out").rglob(".*")] == [".lock"]


def test_a_lock_says_who_holds_it_and_is_left_empty(tmp_path: Path) -> None:
    with lock.held(tmp_path):
        assert lock.holder(tmp_path) == f"process {os.getpid()} on {os.uname().nodename}"
        with pytest.raises(UserError, match=f"process {os.getpid()} on "), lock.held(tmp_path):
            pass
        assert lock.holder(tmp_path) is not None, "asking in vain has let go of it"
    assert lock.holder(tmp_path) is None
    with pytest.raises(RuntimeError), lock.held(tmp_path):
        raise RuntimeError
    assert lock.holder(tmp_path) is None


@pytest.mark.parametrize(
    "said", ["", "nonsense", "process {pid} on {here}", "process 12 on another"]
)
def test_whoever_ended_without_a_word_is_not_the_holder(said: str, tmp_path: Path) -> None:
    """Not even if its number is that of a process which lives: numbers are given again."""
    named = said.format(pid=os.getppid(), here=os.uname().nodename)
    (tmp_path / ".lock").write_text(named)
    assert lock.holder(tmp_path) is None
    assert (tmp_path / ".lock").read_text() == named
    with lock.held(tmp_path):
        assert lock.holder(tmp_path) == f"process {os.getpid()} on {os.uname().nodename}"


def test_whoever_looks_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            lock.holder(tmp_path)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(look)
        try:
            for _ in range(200):
                with lock.held(tmp_path):
                    pass
        finally:
            over.set()


def test_a_look_that_takes_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    pauses = iter(range(100))

    def pause(_: float) -> None:
        if next(pauses) == 20:
            os.close(looking)

    monkeypatch.setattr(time, "sleep", pause)
    with lock.held(tmp_path):
        assert next(pauses) == 21


def test_a_run_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(_: float) -> None:
        raise AssertionError("there is nothing to wait for")

    monkeypatch.setattr(time, "sleep", pause)
    with (
        lock.held(tmp_path),
        pytest.raises(UserError, match="another run is at work"),
        lock.held(tmp_path),
    ):
        pass


def test_the_name_of_the_holder_needs_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with lock.held(tmp_path):
        assert lock.holder(tmp_path) == "about to begin"


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="cannot be a run directory"), lock.held(tmp_path / "run"):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
