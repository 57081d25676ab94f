"""Use the deployments as people do, on a server, a pool and a worker of their own, and break them.

    python -m benchmarks.deploy_check [--frames 1200] [scheduled cancelled …]

Triggers runs by the REST API, lets a schedule fire, cancels a run, kills a worker with SIGKILL, and
looks at what is left in the run directories. Ends with exit code 1 and one line if something is not
as docs/prefect.md says. Takes some five minutes; needs curl.
"""

import json
import shutil
import signal
import tempfile
import time
from argparse import ArgumentParser
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.clips import long_clip
from benchmarks.stack import Stack, kill_tree, running_stack, wait_for
from masklet.media import write_video
from masklet.status import read_status

_CLICK = {"kind": "point", "frame_index": 0, "object_id": 1, "x": 40, "y": 45}


def main() -> None:
    parser = ArgumentParser(description="Use the deployments as people do, and break them.")
    parser.add_argument("checks", nargs="*", choices=[*CHECKS, []], help="all without any")
    parser.add_argument(
        "--frames",
        type=int,
        default=1200,
        help="of the runs that are stopped: half a minute or more",
    )
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_disc(folder / "disc.mp4")
        shutil.copy(long_clip(options.frames), folder / "long.mp4")
        with running_stack(folder / "prefect") as stack:
            for name in options.checks or CHECKS:
                begun = time.monotonic()
                said = CHECKS[name](stack, folder)
                console.print(f"{name:<12} {said} ({time.monotonic() - begun:.0f} s)")
    console.print("all is as documented")


def write_disc(path: Path) -> None:
    """A red disc that moves to the right, 20 frames of 160x96 pixels."""
    y, x = np.mgrid[:96, :160]

    def picture(frame_index: int) -> Any:
        ground = np.stack([40 + 0 * x, 60 + y // 2, 120 + x // 4], axis=2)
        inside = (x - 40 - 3 * frame_index) ** 2 + (y - 45) ** 2 < 22**2
        return np.where(inside[..., None], (220, 40, 30), ground).astype(np.uint8)

    write_video(path, map(picture, range(20)), width=160, height=96, frame_rate=Fraction(10))


def job(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"file": str(folder / "disc.mp4"), "model_type": "nano", "prompts": [_CLICK], **fields}


def expect(holds: bool, what: str, found: object) -> None:
    if not holds:
        raise SystemExit(f"expected {what}, found {found}")


def deployed(stack: Stack, folder: Path) -> str:
    nightly = stack.deployment("label-dataset/label-dataset-nightly")
    [schedule] = nightly["schedules"]
    expect(not schedule["active"], "an inactive schedule", schedule)
    expect(bool(schedule["schedule"]["timezone"]), "a timezone", schedule)
    expect(nightly["global_concurrency_limit"]["limit"] == 1, "a limit of one", nightly)
    policy = nightly["concurrency_options"]["collision_strategy"]
    expect(policy == "CANCEL_NEW", "a policy for overlap", policy)
    names = ("segment/segment", "label-dataset/label-dataset", "label-shard/label-shard")
    for name in (*names, "reprocess/reprocess"):
        expect("id" in stack.deployment(name), name, None)
    return "five deployments"


def run_by_curl(stack: Stack, folder: Path) -> str:
    out = folder / "curl"
    run = stack.run("segment/segment", {"job": job(folder), "out": str(out)})
    state = stack.ended(run)
    expect(state[0] == "COMPLETED", "a completed run", state)
    outputs = json.loads((out / "outputs.json").read_text())
    expect(outputs["summary"]["frames"] == 20, "20 frames", outputs["summary"])
    shown = stack.curl("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run]}}})
    keys = {one["key"] for one in shown}
    wanted = {"contact-sheet", "objects", "outputs", "price", "propagate", "reasons"}
    expect(wanted <= keys, f"the artifacts {sorted(wanted)}", sorted(keys))
    return f"{len(shown)} artifacts"


def refusals(stack: Stack, folder: Path) -> str:
    place = f"/deployments/{stack.deployment('segment/segment')['id']}/create_flow_run"
    body = {"parameters": {"job": job(folder, device="tpu"), "out": str(folder / "refused")}}
    said = stack.curl(place, body)
    expect("'tpu' is not one of" in str(said.get("detail")), "a refusal by the server", said)
    late = job(folder, prompts=[_CLICK | {"frame_index": 99}])
    state = stack.ended(stack.run("segment/segment", {"job": late, "out": str(folder / "refused")}))
    line = "prompts[0] (frame 99, object 1): there is no frame 99; disc.mp4 has the frames 0 to 19"
    expect(state == ("FAILED", line), line, state)
    expect(not (folder / "refused").exists(), "nothing written", "a run directory")
    return "by the server, and by the run in one line"


def dataset(folder: Path) -> Path:
    """Two items, two seconds of work."""
    path = folder / "dataset.jsonl"
    prompts = [{"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}]
    item = {"file": str(folder / "disc.mp4"), "model_type": "nano", "prompts": prompts}
    lines = [json.dumps({"item_id": name, **item}) for name in ("one", "two")]
    path.write_text("\n".join(lines) + "\n")
    return path


def reprocessed(stack: Stack, folder: Path) -> str:
    """The same data with one more output: nothing is tracked again."""
    given = {"dataset": str(dataset(folder)), "out": str(folder / "labelled")}
    state = stack.ended(stack.run("label-dataset/label-dataset", given))
    expect(state[0] == "COMPLETED", "a labelled dataset", state)
    config = folder / "boxes.yaml"
    config.write_text("bbox_tracking: true\n")
    state = stack.ended(stack.run("reprocess/reprocess", given | {"config": str(config)}))
    expect(state[0] == "COMPLETED", "a reprocessed dataset", state)
    for table in (folder / "labelled").rglob("one/manifest.parquet"):
        found = {one.stage: one.row for one in read_status(table.parent).artifacts if one.row}
        tracked, boxes = found["propagate"], found["bbox_tracking"]
        expect(tracked.run_id != boxes.run_id, "masklets of the first run", tracked)
        return "boxes of the masklets of the run before"
    raise SystemExit("expected the run directory of an item, found none")


def scheduled(stack: Stack, folder: Path) -> str:
    """Every six seconds instead of every night: one is at work, the next are left out."""
    nightly = stack.deployment("label-dataset/label-dataset-nightly")
    place, [schedule] = f"/deployments/{nightly['id']}", nightly["schedules"]
    given = {"dataset": str(dataset(folder)), "out": str(folder / "nightly")}
    stack.curl(place, {"parameters": given}, "PATCH")
    often = {"interval": 6, "anchor_date": "2026-01-01T00:00:00Z", "timezone": "Europe/Berlin"}
    fast = {"active": True, "schedule": often}
    stack.curl(f"{place}/schedules/{schedule['id']}", fast, "PATCH")

    def ended() -> dict[str, int] | None:
        found = stack.curl(
            "/flow_runs/filter", {"deployments": {"id": {"any_": [nightly["id"]]}}, "limit": 200}
        )
        types = [run["state"]["type"] for run in found if run["auto_scheduled"]]
        counts = {name: types.count(name) for name in ("COMPLETED", "CANCELLED", "FAILED")}
        return counts if counts["COMPLETED"] and counts["CANCELLED"] else None

    counts = wait_for("a run of the schedule, and one that was left out", ended, 300)
    stack.curl(f"{place}/schedules/{schedule['id']}", {"active": False}, "PATCH")
    expect(not counts["FAILED"], "no failed run", counts)
    return f"{counts['COMPLETED']} completed, {counts['CANCELLED']} left out while it was at work"


def at_work(stack: Stack, folder: Path, out: Path) -> tuple[str, dict[str, Any]]:
    """A run in the middle of its tracking, and its parameters."""
    click = _CLICK | {"x": 427, "y": 240}
    given = {"job": job(folder, file=str(folder / "long.mp4"), prompts=[click]), "out": str(out)}
    run = stack.run("segment/segment", given)

    def has_checkpoint() -> bool | None:
        return True if (out / ".tracking" / "checkpoint.safetensors").exists() else None

    wait_for("a checkpoint", has_checkpoint, 300)
    return run, given


def goes_on(stack: Stack, out: Path, run: str) -> str:
    begun = read_status(out).tracked
    state = stack.ended(run)
    expect(state[0] == "COMPLETED", "a completed run", state)
    expect((out / "masks.zip").exists(), "masks", list(out.iterdir()))
    return f"went on after {max(begun.values())} frames"


def cancelled(stack: Stack, folder: Path) -> str:
    out = folder / "cancelled"
    run, given = at_work(stack, folder, out)
    stack.curl(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    state = stack.ended(run)
    expect(state[0] == "CANCELLED", "a cancelled run", state)
    expect(bool(read_status(out).tracked), "a run that can go on", read_status(out))
    return goes_on(stack, out, stack.run("segment/segment", given))


def crashed(stack: Stack, folder: Path) -> str:
    """The worker and the run's process are gone at once; later the same run is tried again."""
    out = folder / "crashed"
    run, _ = at_work(stack, folder, out)
    kill_tree(stack.processes[-1].pid, signal.SIGKILL)
    stack.start_worker()
    killed = time.monotonic()
    state = stack.ended(run)
    expect(state[0] == "CRASHED", "a crashed run", state)
    noticed = time.monotonic() - killed
    stack.curl(f"/flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})
    return f"noticed after {noticed:.0f} s, {goes_on(stack, out, run)}"


CHECKS = {
    check.__name__: check
    for check in (deployed, run_by_curl, refusals, reprocessed, scheduled, cancelled, crashed)
}

if __name__ == "__main__":
    main()
