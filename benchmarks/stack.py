"""A Prefect server, a work pool and a worker of their own, started as by `make server`."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

_PREFECT = [str(Path(sys.executable).with_name("prefect")), "--no-prompt"]
_FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
Value = TypeVar("Value")


@dataclass
class Stack:
    """A server on a port of its own; its data and logs lie in `folder`."""

    folder: Path
    port: int
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_HOME": str(self.folder),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
        }

    def prefect(self, *arguments: str) -> str:
        """Run a prefect command to its end; returns what it printed."""
        done = subprocess.run(
            [*_PREFECT, *arguments], env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"prefect {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def start(self, name: str, *arguments: str, **settings: str) -> "subprocess.Popen[bytes]":
        """Start a prefect command that stays, with its output in `<name>.log`.

        settings: environment variables of its own.
        """
        environment = self.environment | settings
        if name == "server":
            # the user interface would look for the API there
            del environment["PREFECT_API_URL"]
            environment["PREFECT_SERVER_API_PORT"] = str(self.port)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*_PREFECT, *arguments], env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def start_worker(self) -> "subprocess.Popen[bytes]":
        return self.start(
            "worker", "worker", "start", "--pool", "masklet", "--type", "process", "--limit", "2"
        )

    def curl(self, path: str, body: Mapping[str, Any] | None = None, method: str = "") -> Any:
        """Call the REST API as the README does."""
        command = ["curl", "-s", "--retry", "5", "-H", "Content-Type: application/json"]
        command += [f"{self.url}/api{path}"]
        if body is not None:
            command += ["-d", json.dumps(body)]
        if method:
            command += ["-X", method]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return json.loads(said) if said else None

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.curl(f"/deployments/name/{name}"))

    def run(self, name: str, parameters: Mapping[str, Any]) -> str:
        """Start a run of a deployment; returns its id."""
        place = f"/deployments/{self.deployment(name)['id']}/create_flow_run"
        made = self.curl(place, {"parameters": parameters})
        if "id" not in made:
            raise SystemExit(f"{name}: no run was made: {made}")
        return str(made["id"])

    def state(self, run: str) -> tuple[str, str]:
        """The type of a run's state, and its message."""
        state = self.curl(f"/flow_runs/{run}")["state"]
        return state["type"], state["message"] or ""

    def ended(self, run: str, seconds: float = 900) -> tuple[str, str]:
        """Wait for the final state of a run."""

        def final() -> tuple[str, str] | None:
            state = self.state(run)
            return state if state[0] in _FINAL else None

        return wait_for(f"the end of run {run}", final, seconds)


def wait_for(what: str, look: Callable[[], Value | None], seconds: float) -> Value:
    """Look every half second until there is something; raises SystemExit when time is up."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := look()) is not None:
            return found
        time.sleep(0.5)
    raise SystemExit(f"{what}: not within {seconds:.0f} s")


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """A server with the deployments of prefect.yaml, and a worker; all are ended on leaving."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        stack = Stack(folder, free.getsockname()[1])
    try:
        stack.start("server", "server", "start")
        wait_for("the server", lambda: _answers(stack), 600)
        stack.prefect("work-pool", "create", "masklet", "--type", "process")
        stack.prefect("automation", "create", "--from-file", "automations.yaml")
        stack.prefect("deploy", "--all")
        stack.start_worker()
        yield stack
    finally:
        for process in stack.processes:
            kill_tree(process.pid, signal.SIGTERM)
        for process in stack.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                kill_tree(process.pid, signal.SIGKILL)


def _answers(stack: Stack) -> bool | None:
    command = ["curl", "-s", "-m", "3", f"{stack.url}/api/health"]
    said = subprocess.run(command, capture_output=True, text=True).stdout
    return True if said == "true" else None


def kill_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and to all that descend from it."""
    for one in [*_descendants(pid), pid]:
        try:
            os.kill(one, number)
        except ProcessLookupError:
            continue


def _descendants(pid: int) -> list[int]:
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            found += [*_descendants(int(child)), int(child)]
    return found
