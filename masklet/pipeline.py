"""From a job to its outputs: the stages, and their order, written once.

`run_job` does them in this process. The Prefect flow calls it too, with `Steps` whose functions
are the same ones wrapped as tasks.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklet import exports
from masklet.atomic import replacing
from masklet.errors import UserError
from masklet.job import SegmentJob
from masklet.manifest import Work
from masklet.media import Source, probe
from masklet.models import (
    checkpoint_sha256,
    config_sha256,
    find_model,
    load_model,
    require_checkpoint,
)
from masklet.plan import FramePrompts, ObjectPlan, Plan, plan_job
from masklet.price import price
from masklet.run import Progress, Run, Weights, open_run, silent
from masklet.store import object_folder

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base


@dataclass(frozen=True)
class Export:
    """An output made from the masklet store: its file, and the function that writes it.

    Raise `code_version` whenever the function's output changes.
    """

    file: str
    code_version: int
    write: Callable[[Plan, Path, Path, Callable[[int], None]], int]


EXPORTS: Mapping[str, Export] = {
    "masks": Export("masks.zip", 1, exports.write_masks),
    "pixel_confidences": Export("pixel_confidences.zip", 1, exports.write_pixel_confidences),
    "bbox_tracking": Export("bbox_tracking.json", 1, exports.write_bbox_tracking),
    "debug_masks": Export("debug_masks.mp4", 1, exports.write_debug_video),
}
PROPAGATE_VERSION = 1


@dataclass(frozen=True)
class Outputs:
    """What a run made.

    files: name -> absolute path. summary: what outputs.json says of the run as a whole.
    seconds: how long this run worked on each stage; 0.0 for what was there already.
    """

    files: Mapping[str, str]
    summary: Mapping[str, Any]
    seconds: Mapping[str, float]

    @property
    def frames_per_second(self) -> float | None:
        """Processed frames per second of propagation; None if nothing was propagated."""
        seconds = self.seconds["propagate"]
        return self.summary["frames"] / seconds if seconds else None


def ingest(job: SegmentJob) -> Source:
    """Read what there is to know of the source: its hash, its size and the times of its frames."""
    return probe(job.file)


def check_prompts(job: SegmentJob, source: Source) -> Plan:
    """Turn the job into a plan for this source, or say what is wrong with it."""
    return plan_job(job, source)


def propagate(run: Run, plan: Plan) -> None:
    """Track the objects whose masklets are missing or out of date, and drop those not asked for."""
    works = {one: _propagate_work(run, plan, one) for one in plan.object_ids}
    outdated = {work: reason for work in works.values() if (reason := run.reason_to_run(work))}
    if outdated:
        model = load_model(run.weights.spec, run.weights.checkpoint, choose_device(run.job.device))
        object_ids = [one for one, work in works.items() if work in outdated]
        with run.recording(outdated) as rows:
            _track(run, plan, object_ids, model)
            for one in object_ids:
                _publish_folder(run.scratch / f"object={one}", run.root / works[one].path)
                rows[works[one]] = len(plan.frame_indices)
    _forget_other_objects(run, plan)


def export(run: Run, plan: Plan, name: str) -> None:
    """Make one output from the masklet store, unless it is there and up to date."""
    making, work = EXPORTS[name], _export_work(run, plan, name)
    if reason := run.reason_to_run(work):
        with run.recording({work: reason}) as rows:
            advance = run.counter(name, len(plan.frame_indices))
            rows[work] = making.write(plan, run.masklets, run.root / making.file, advance)


def finish(run: Run, plan: Plan) -> Outputs:
    """Write the price and `outputs.json`, which names everything that the job asked for."""
    cost = price(run.weights.spec, len(plan.frame_indices), len(plan.objects))
    _write_json(run.root / "price.json", asdict(cost))
    files = {name: EXPORTS[name].file for name in wanted(run.job)}
    files |= {"price": "price.json", "masklets": "masklets", "manifest": "manifest.parquet"}
    summary = {
        "source_sha256": plan.source.sha256,
        "model": run.weights.spec.name,
        "width": plan.source.width,
        "height": plan.source.height,
        "frames": len(plan.frame_indices),
        "first_frame": plan.frame_indices[0],
        "last_frame": plan.frame_indices[-1],
        "objects": list(plan.object_ids),
        "price": cost.total,
        "masklet_bytes": sum(row.bytes for row in run.manifest.rows("propagate")),
    }
    _write_json(run.root / "outputs.json", files | {"summary": summary})
    stages = ["propagate", *wanted(run.job)]
    return Outputs(
        {name: str((run.root / file).resolve()) for name, file in files.items()},
        summary,
        {stage: run.seconds(stage) for stage in stages},
    )


def export_all(run: Run, plan: Plan) -> None:
    """Make every output that the job asks for, at the same time."""
    names = wanted(run.job)
    with ThreadPoolExecutor(len(names)) as pool:
        try:
            for done in [pool.submit(export, run, plan, name) for name in names]:
                done.result()
        except BaseException:
            run.stop.set()  # leaving the pool waits for the others
            raise


def _drop_stale_exports(run: Run, plan: Plan) -> None:
    """Remove outputs of earlier runs that this job does not ask for and that no longer fit it."""
    for name in EXPORTS.keys() - set(wanted(run.job)):
        if run.manifest.reason_to_run(_export_work(run, plan, name)) is None:
            continue
        for row in run.manifest.rows(name):
            (run.root / EXPORTS[name].file).unlink(missing_ok=True)
            run.manifest.forget(name, row.artifact)


@dataclass(frozen=True)
class Steps:
    """The functions that `run_job` calls, in their order."""

    ingest: Callable[[SegmentJob], Source] = ingest
    check_prompts: Callable[[SegmentJob, Source], Plan] = check_prompts
    propagate: Callable[[Run, Plan], object] = propagate
    export_all: Callable[[Run, Plan], object] = export_all
    finish: Callable[[Run, Plan], Outputs] = finish


def run_job(
    job: SegmentJob, out: Path, *, steps: Steps | None = None, progress: Progress = silent
) -> Outputs:
    """Run a job into the directory `out`, doing only what is not there yet.

    Raises UserError, before anything is written, for whatever is wrong with the job.
    """
    steps = steps or Steps()
    weights = find_weights(job)
    source = steps.ingest(job)
    plan = steps.check_prompts(job, source)
    _keep_inputs(job, weights, out)
    with open_run(job, weights, out, progress) as run:
        steps.propagate(run, plan)
        _drop_stale_exports(run, plan)
        steps.export_all(run, plan)
        return steps.finish(run, plan)


def as_returned(
    job: SegmentJob, outputs: Outputs
) -> Mapping[str, str] | tuple[str, Mapping[str, str]]:
    """What the Python call and the flow return: the files by name, after the debug video if any."""
    if job.debug_masks:
        return outputs.files["debug_masks"], outputs.files
    return outputs.files


def find_weights(job: SegmentJob) -> Weights:
    """The model that the job names and its checkpoint file; raises UserError without one."""
    spec = find_model(job.model_type)
    checkpoint = require_checkpoint(spec, job.checkpoint)
    return Weights(spec, checkpoint, checkpoint_sha256(checkpoint), config_sha256(spec))


def _keep_inputs(job: SegmentJob, weights: Weights, out: Path) -> None:
    """Refuse a job that would write over what it reads."""
    own = ["outputs.json", "price.json", "manifest.parquet", "masklets"]
    written = {(out / name).resolve() for name in [*own, *(e.file for e in EXPORTS.values())]}
    for given in (job.file, job.mask_prompts, weights.checkpoint):
        if given is not None and Path(given).resolve() in written:
            raise UserError(f"{given}: is an output of the run directory {out}; use another --out")


def wanted(job: SegmentJob) -> list[str]:
    """Names of the outputs that a job asks for: masks always, the others by their fields."""
    return [name for name in EXPORTS if name == "masks" or getattr(job, name)]


def choose_device(device: str) -> str:
    """`auto` is the first of cuda, mps and cpu that is there."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _export_work(run: Run, plan: Plan, name: str) -> Work:
    hashes = {
        f"object={one}": run.manifest.row("propagate", str(one)).sha256 for one in plan.object_ids
    }
    making, size = EXPORTS[name], [plan.source.width, plan.source.height]
    return Work(
        name,
        making.code_version,
        making.file,
        making.file,
        {"objects": list(plan.object_ids), "size": size},
        hashes | {"source": plan.source.sha256},
    )


def _propagate_work(run: Run, plan: Plan, object_id: int | str) -> Work:
    one = next(o for o in plan.objects if o.object_id == object_id)
    return Work(
        "propagate",
        PROPAGATE_VERSION,
        str(object_id),
        f"masklets/object={object_id}",
        {
            "model": run.weights.spec.name,
            "direction": plan.direction,
            "start": plan.start,
            "timeline": _digest(list(plan.timeline)),
            "prompts": _prompts_digest(one),
        },
        {
            "source": plan.source.sha256,
            "checkpoint": run.weights.sha256,
            "config": run.weights.config_sha256,
        },
    )


def _track(run: Run, plan: Plan, object_ids: Sequence[int | str], model: "SAM2Base") -> None:
    # torch and sam2 take seconds to import, which a rerun need not spend
    from masklet.network import Network
    from masklet.propagate import count_steps
    from masklet.propagate import propagate as track_objects

    advance = run.counter("propagate", count_steps(plan, model))
    track_objects(plan, object_ids, Network.of(model), run.scratch, advance)


def _publish_folder(finished: Path, place: Path) -> None:
    place.parent.mkdir(exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    finished.replace(place)


def _forget_other_objects(run: Run, plan: Plan) -> None:
    kept = {str(object_id) for object_id in plan.object_ids}
    for row in run.manifest.rows("propagate"):
        if row.artifact not in kept:
            run.manifest.forget(row.stage, row.artifact)
            # by name: a manifest from elsewhere could hold any path
            shutil.rmtree(object_folder(run.masklets, Path(row.artifact).name), ignore_errors=True)


def _prompts_digest(one: ObjectPlan) -> str:
    return _digest([[at, _as_json(prompts)] for at, prompts in sorted(one.prompts.items())])


def _as_json(prompts: FramePrompts) -> list[Any]:
    mask = prompts.mask
    return [
        None if mask is None else [mask.shape, hashlib.sha256(mask.tobytes()).hexdigest()],
        *(
            [c.points.tolist(), c.labels.tolist(), None if c.box is None else c.box.tolist()]
            for c in prompts.clicks
        ),
    ]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write_json(path: Path, value: Any) -> None:
    content = json.dumps(value, indent=2) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") == content:
        return
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
