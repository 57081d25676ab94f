"""From a job to its outputs: the stages, and their order, written once.

`run_job` does them in this process. The Prefect flow calls it too, with `Steps` whose functions
are the same ones wrapped as tasks.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masklet import works
from masklet.atomic import replacing
from masklet.errors import UserError
from masklet.exports import EXPORTS
from masklet.frame_table import FILE_NAME as FRAMES
from masklet.frame_table import read_frame_table, write_frame_table
from masklet.job import SegmentJob
from masklet.manifest import InputFile, Manifest, Reason, Row, Stamp, Work
from masklet.media import Source, probe
from masklet.models import config_sha256, find_model, load_model, require_checkpoint
from masklet.plan import Plan, plan_job
from masklet.price import price
from masklet.run import (
    Made,
    Order,
    Progress,
    Run,
    Weights,
    frames_tracked,
    open_manifest,
    open_run,
    silent,
)
from masklet.store import object_folder
from masklet.works import Asked, wanted

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """What a run made.

    files: name -> absolute path. summary: what outputs.json says of the run as a whole.
    seconds: how long this run worked on each stage; 0.0 for what was there already.
    artifacts: what was made and why, and what was there already.
    """

    files: Mapping[str, str]
    summary: Mapping[str, Any]
    seconds: Mapping[str, float]
    artifacts: Sequence[Made] = ()

    @property
    def frames_per_second(self) -> float | None:
        """Processed frames per second of propagation; None if nothing was propagated."""
        seconds = self.seconds["propagate"]
        return self.summary["frames"] / seconds if seconds else None


def ingest(job: SegmentJob, known: Manifest | None = None) -> Source:
    """Read what there is to know of the source: its hash, its size and the times of its frames.

    A content that the run directory knows is not probed again, and a file that was not touched
    since is not even read.
    """
    path = Path(job.file)
    row = known.find("ingest", FRAMES) if known and path.is_file() else None
    if (
        known
        and row
        and row.code_version == works.CODE_VERSIONS["ingest"]
        and known.harm(row) is None
    ):
        sha256 = known.identify("source", path).sha256
        if json.loads(row.inputs)["source"] == sha256:
            return read_frame_table(known.root / FRAMES, path.absolute(), sha256)
    return probe(job.file)


def check_prompts(job: SegmentJob, source: Source) -> Plan:
    """Turn the job into a plan for this source, or say what is wrong with it."""
    return plan_job(job, source)


def propagate(run: Run, plan: Plan) -> None:
    """Track the objects whose masklets are missing or out of date, and drop those not asked for."""
    tracking = {w: why for w, why in run.decide().items() if w.stage == "propagate"}
    outdated = {work: reason for work, reason in tracking.items() if reason}
    model = None
    if outdated:
        model = load_model(
            run.order.weights.spec, run.order.weights.file.path, choose_device(run.job.device)
        )
    _note_order(run, plan)
    run.reasons.update({(work.stage, work.artifact): why for work, why in tracking.items()})
    if model is not None:
        _say_what_retention_costs(run, outdated)
        if Reason.FORCED in outdated.values():
            run.clear_scratch()
        with run.recording(outdated) as rows:
            _track(run, plan, outdated, model)
            rows.update(dict.fromkeys(outdated, len(plan.frame_indices)))
    run.clear_scratch()
    _forget_other_objects(run)


def export(run: Run, plan: Plan, name: str) -> None:
    """Make one output from the masklet store, unless it is there and up to date."""
    asked = run.order.asked
    work = works.export_work(asked, name, works.masklet_hashes(asked, run.manifest))
    if reason := run.reason_to_run(work):
        with run.recording({work: reason}) as rows:
            advance = run.counter(name, len(plan.frame_indices))
            rows[work] = EXPORTS[name].write(plan, run.masklets, run.root / work.path, advance)


def finish(run: Run, plan: Plan) -> Outputs:
    """Write the price and `outputs.json`, which names everything that the job asked for.

    Then the masklets are removed, if the job does not keep them.
    """
    job, spec, asked = run.job, run.order.weights.spec, run.order.asked
    cost = price(spec, len(plan.frame_indices), len(plan.objects))
    _write_json(run, works.price_work(asked), asdict(cost))
    files = {name: EXPORTS[name].file for name in wanted(job)} | {"price": "price.json"}
    files |= {"masklets": "masklets"} if job.keep_masklets else {}
    files |= {"manifest": "manifest.parquet"}
    masklet_bytes = sum(row.bytes for row in run.manifest.rows("propagate"))
    summary = {
        "source_sha256": plan.source.sha256,
        "model": spec.name,
        "width": plan.source.width,
        "height": plan.source.height,
        "frames": len(plan.frame_indices),
        "first_frame": plan.frame_indices[0],
        "last_frame": plan.frame_indices[-1],
        "objects": list(plan.object_ids),
        "price": cost.total,
        "masklet_bytes": masklet_bytes if job.keep_masklets else 0,
    }
    work = works.outputs_work(asked, works.masklet_hashes(asked, run.manifest))
    _write_json(run, work, files | {"summary": summary})
    if not job.keep_masklets:
        # the manifest first: were it last, a kill in between would look like a loss
        run.manifest.mark_removed("propagate")
        shutil.rmtree(run.masklets, ignore_errors=True)
    run.manifest.settle()
    stages = ["propagate", *wanted(job)]
    return Outputs(
        {name: str((run.root / file).resolve()) for name, file in files.items()},
        summary,
        {stage: run.seconds(stage) for stage in stages},
        run.report(),
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


def _drop_stale_exports(run: Run) -> None:
    """Remove outputs of earlier runs that this job does not ask for and that no longer fit it."""
    for work in _unwanted_exports(
        run.order.asked,
        run.manifest,
        works.masklet_hashes(run.order.asked, run.manifest),
    ):
        (run.root / work.path).unlink(missing_ok=True)
        run.manifest.forget(work.stage, work.artifact)


def _unwanted_exports(asked: Asked, manifest: Manifest, masklets: Mapping[str, str]) -> list[Work]:
    unwanted = [works.export_work(asked, o, masklets) for o in EXPORTS if o not in asked.outputs]
    there = [work for work in unwanted if manifest.find(work.stage, work.artifact)]
    return [work for work in there if manifest.reason_to_run(work)]


@dataclass(frozen=True)
class Steps:
    """The functions that `run_job` calls, in their order."""

    ingest: Callable[[SegmentJob, Manifest | None], Source] = ingest
    check_prompts: Callable[[SegmentJob, Source], Plan] = check_prompts
    propagate: Callable[[Run, Plan], object] = propagate
    export_all: Callable[[Run, Plan], object] = export_all
    finish: Callable[[Run, Plan], Outputs] = finish


def run_job(
    job: SegmentJob,
    out: Path,
    *,
    steps: Steps | None = None,
    progress: Progress = silent,
    force: str | None = None,
    verify: bool = False,
    wait: bool = False,
) -> Outputs:
    """Run a job into the directory `out`, doing only what is not there yet.

    Args:
        force: a stage from which on everything is made again although it is there, or `all`.
        verify: hash again what is there, instead of believing files that were not touched.
        wait: wait for another process that holds the directory.

    Raises UserError, before anything is written, for whatever is wrong with the job.
    """
    steps = steps or Steps()
    order, plan = _prepare(job, out, steps, force, verify)
    with open_run(order, out, progress, wait=wait) as run:
        steps.propagate(run, plan)
        _drop_stale_exports(run)
        steps.export_all(run, plan)
        return steps.finish(run, plan)


class Planned(NamedTuple):
    """What a run would do about one artifact: `make`, `reuse` or `remove`, and why."""

    action: str
    stage: str
    artifact: str
    why: str


def dry_run(
    job: SegmentJob, out: Path, *, force: str | None = None, verify: bool = False
) -> list[Planned]:
    """Say what `run_job` would do and why; nothing is written and no model is loaded.

    Whether objects that have to be tracked come out as they were cannot be known: what depends on
    them counts as changed.
    """
    order, _ = _prepare(job, out, Steps(), force, verify)
    manifest = open_manifest(out, verify=verify)
    decisions = works.decide(order.asked, manifest, order.force)
    hashes = next(dict(work.inputs) for work in decisions if work.stage == "masks")
    begun = {} if order.force in ("all", "propagate") else frames_tracked(out)
    planned = []
    for work, reason in decisions.items():
        why = works.explain(work, reason, manifest.find(work.stage, work.artifact))
        if reason and work.key in begun:
            why += f"; goes on after {begun[work.key]} frames"
        planned.append(Planned("make" if reason else "reuse", work.stage, work.artifact, why))
    leftover = [("propagate", row.artifact) for row in _other_objects(order.asked, manifest)]
    leftover += [(w.stage, w.artifact) for w in _unwanted_exports(order.asked, manifest, hashes)]
    return planned + [Planned("remove", *place, "not asked for") for place in leftover]


def _prepare(
    job: SegmentJob, out: Path, steps: Steps, force: str | None, verify: bool
) -> tuple[Order, Plan]:
    """Check everything about a job that can be checked without a model; writes nothing."""
    forced = works.check_force(force, job)
    known = open_manifest(out, verify=verify)
    weights = find_weights(job, known)
    path = Path(job.file)
    stamp = Stamp.of(path) if path.is_file() else None  # before the file is read
    source = steps.ingest(job, None if works.is_forced(forced, "ingest") else known)
    plan = steps.check_prompts(job, source)
    _keep_inputs(job, weights, out)
    inputs = [weights.file]
    if stamp is not None:
        inputs.append(InputFile("source", source.path, stamp, source.sha256))
    if job.mask_prompts is not None:
        inputs.append(known.identify("mask_prompts", job.mask_prompts))
    hashes = {
        "source": source.sha256,
        "checkpoint": weights.file.sha256,
        "config": weights.config_sha256,
    }
    asked = Asked.of(job, plan, weights.spec, hashes)
    return Order(job, weights, asked, inputs, forced, verify), plan


def as_returned(
    job: SegmentJob, outputs: Outputs
) -> Mapping[str, str] | tuple[str, Mapping[str, str]]:
    """What the Python call and the flow return: the files by name, after the debug video if any."""
    if job.debug_masks:
        return outputs.files["debug_masks"], outputs.files
    return outputs.files


def find_weights(job: SegmentJob, known: Manifest) -> Weights:
    """The model that the job names and its checkpoint file; raises UserError without one."""
    spec = find_model(job.model_type)
    checkpoint = require_checkpoint(spec, job.checkpoint)
    return Weights(spec, known.identify("checkpoint", checkpoint), config_sha256(spec))


def _keep_inputs(job: SegmentJob, weights: Weights, out: Path) -> None:
    """Refuse a job that would write over what it reads."""
    own = ["outputs.json", "price.json", "manifest.parquet", "masklets", FRAMES]
    written = {(out / name).resolve() for name in [*own, *(e.file for e in EXPORTS.values())]}
    for given in (job.file, job.mask_prompts, weights.file.path):
        if given is not None and Path(given).resolve() in written:
            raise UserError(f"{given}: is an output of the run directory {out}; use another --out")


def choose_device(device: str) -> str:
    """`auto` is the first of cuda, mps and cpu that is there."""
    import torch

    if device != "auto":
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _note_order(run: Run, plan: Plan) -> None:
    """Keep what was asked for and of what, once it is sure that work begins."""
    for file in run.order.inputs:
        run.manifest.remember(file)
    table, checked = works.ingest_work(run.order.asked), works.check_work(run.order.asked)
    if reason := run.reason_to_run(table):
        with run.recording({table: reason}) as rows:
            rows[table] = write_frame_table(plan.source, run.root / table.path)
    if reason := run.reason_to_run(checked):
        with run.recording({checked: reason}) as rows:
            rows[checked] = len(plan.objects)


def _say_what_retention_costs(run: Run, outdated: Mapping[Work, Reason]) -> None:
    again = [work.artifact for work, why in outdated.items() if why is Reason.REMOVED]
    if again:
        _LOGGER.warning(
            "%s: the masklets were removed (keep_masklets: false), so the model has to track %s "
            "again: %s",
            run.root,
            "one object" if len(again) == 1 else f"{len(again)} objects",
            ", ".join(again[:20]),
        )


def _track(run: Run, plan: Plan, outdated: Mapping[Work, Reason], model: "SAM2Base") -> None:
    # torch and sam2 take seconds to import, which a rerun need not spend
    import torch

    from masklet.network import Network
    from masklet.tracking import track_objects

    model.max_cond_frames_in_attn = run.job.max_cond_frames or -1
    network = Network.of(model, getattr(torch, run.job.precision))
    by_name = {work.artifact: work for work in outdated}
    works = {one: by_name[str(one)] for one in plan.object_ids if str(one) in by_name}
    counter = partial(run.counter, "propagate")
    track_objects(plan, works, network, run.scratch, run.masklets, counter)


def _forget_other_objects(run: Run) -> None:
    for row in _other_objects(run.order.asked, run.manifest):
        run.manifest.forget(row.stage, row.artifact)
        # by name: a manifest from elsewhere could hold any path
        shutil.rmtree(object_folder(run.masklets, Path(row.artifact).name), ignore_errors=True)


def _other_objects(asked: Asked, manifest: Manifest) -> list[Row]:
    kept = {str(object_id) for object_id in asked.objects}
    return [row for row in manifest.rows("propagate") if row.artifact not in kept]


def _write_json(run: Run, work: Work, value: Any) -> None:
    if reason := run.reason_to_run(work):
        with run.recording({work: reason}) as rows, replacing(run.root / work.path) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            rows[work] = 1
