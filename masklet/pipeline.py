"""From a job to its outputs: the stages, and their order, written once.

`run_job` does them in this process. The Prefect flow calls it too, with `Steps` whose functions
are the same ones wrapped as tasks.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from masklet import works
from masklet.addresses import local_path, shown_address
from masklet.atomic import replacing
from masklet.content import Stamp
from masklet.errors import UserError
from masklet.exports import EXPORTS
from masklet.fetch import fetch
from masklet.frame_table import FILE_NAME as FRAMES
from masklet.frame_table import read_frame_table, write_frame_table
from masklet.job import SegmentJob
from masklet.manifest import INPUT, InputFile, Manifest, Reason, Row, Work
from masklet.media import Source, display_name, probe
from masklet.models import config_sha256, find_model, load_model, require_checkpoint
from masklet.plan import Plan, plan_job
from masklet.price import price_of
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
from masklet.store import object_folder, read_masklet
from masklet.works import Asked, wanted

if TYPE_CHECKING:
    from sam2.modeling.sam2_base import SAM2Base

    from masklet.network import Network

Loader = Callable[[Run], "SAM2Base"]
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
        seconds = self.seconds.get("propagate", 0.0)
        return self.summary["frames"] / seconds if seconds else None


def ingest(job: SegmentJob, known: Manifest | None = None) -> Source:
    """Read what there is to know of the source: its hash, its size and the times of its frames.

    What lies elsewhere is fetched. What the run directory knows of it is not found out again.
    """
    job = with_local_source(job)
    return (known and known_source(job, known)) or probe(job.file)


def with_local_source(job: SegmentJob) -> SegmentJob:
    """The job with its source on this machine; an address is fetched into the cache."""
    return job.model_copy(update={"file": str(fetch(job.file))})


def known_source(job: SegmentJob, known: Manifest) -> Source | None:
    """The source if the run directory knows its content; an untouched file is not even read."""
    path = local_path(job.file)
    if path is None or Stamp.of(path) is None:
        return None
    row = known.find("ingest", FRAMES)
    if row and row.code_version == works.CODE_VERSIONS["ingest"] and known.harm(row) is None:
        sha256 = known.identify("source", path).sha256
        if json.loads(row.inputs).get("source") == sha256:
            with suppress(ValueError):  # a manifest from elsewhere can vouch for any table
                return read_frame_table(known.root / FRAMES, path, sha256)
    return None


def check_prompts(job: SegmentJob, source: Source) -> Plan:
    """Turn the job into a plan for this source, or say what is wrong with it."""
    return plan_job(job, source)


def propagate(run: Run, plan: Plan, load: "Loader | None" = None) -> None:
    """Track the objects whose masklets are missing or out of date, and drop those not asked for.

    load: gives the model; it is loaded for this run alone by default.
    """
    tracking = {w: why for w, why in run.decide().items() if w.stage == "propagate"}
    outdated = {work: reason for work, reason in tracking.items() if reason}
    model = (load or load_weights)(run) if outdated else None
    _note_order(run, plan)
    run.reasons.update({(work.stage, work.artifact): why for work, why in tracking.items()})
    if model is not None:
        _say_what_retention_costs(run, outdated)
        # not by the reasons: what was never made is new, forced or not
        if works.is_forced(run.order.force, "propagate"):
            run.clear_scratch()
        with run.recording(outdated) as rows:
            _track(run, plan, outdated, model)
            rows.update(dict.fromkeys(outdated, len(plan.frame_indices)))
    run.clear_scratch()
    _forget_other_objects(run)


def preview(run: Run, plan: Plan, load: "Loader | None" = None) -> None:
    """Make pictures of the prompted frames; nothing of a full run in the directory is touched."""
    work = works.preview_work(run.order.asked)
    reason = works.reason_to_run(work, run.manifest, run.order.force)
    model = (load or load_weights)(run) if reason else None
    _note_order(run, plan)
    run.reasons[work.stage, work.artifact] = reason
    if reason and model is not None:
        from masklet.preview import write_preview

        scratch, advance = run.scratch / work.path, run.counter(work.stage, len(plan.prompted))
        with run.recording({work: reason}) as rows:
            network = _network(run, model)
            rows[work] = write_preview(plan, network, scratch, run.root / work.path, advance)


def export(run: Run, plan: Plan, name: str) -> None:
    """Make one output from the masklet store, unless it is there and up to date."""
    asked = run.order.asked
    work = works.export_work(asked, name, works.masklet_hashes(asked, run.manifest))
    _, number = works.split_name(name)
    if reason := run.reason_to_run(work):
        with run.recording({work: reason}) as rows:
            advance, path = run.counter(name, len(plan.frame_indices)), run.root / work.path
            part = plan if number is None else plan.only(number)
            rows[work] = EXPORTS[work.stage].write(part, run.masklets, path, advance)


def finish(run: Run, plan: Plan) -> Outputs:
    """Write the price and `outputs.json`, which names everything that the job asked for.

    Then the masklets are removed, if the job does not keep them; a preview has none.
    """
    job, spec, asked = run.job, run.order.weights.spec, run.order.asked
    cost = price_of(job, plan, spec)
    _write_json(run, works.price_work(asked), lambda: asdict(cost))
    keeps_masklets = job.keep_masklets and not job.preview
    masklets = {} if job.preview else works.masklet_hashes(asked, run.manifest)
    if job.preview:
        files = {"preview": f"{works.PREVIEW}/{plan.prompted[0]}.png", "previews": works.PREVIEW}
    else:
        files = {name: works.export_work(asked, name, masklets).path for name in asked.outputs}
    files |= {"price": "price.json"}
    files |= {"masklets": "masklets"} if keeps_masklets else {}
    files |= {"manifest": "manifest.parquet"}
    masklet_bytes = sum(row.bytes for row in run.manifest.rows("propagate"))
    summary = {
        **_fetched_from(run),
        "source_sha256": plan.source.sha256,
        **({"damage": plan.source.damage} if plan.source.damage else {}),
        "model": spec.name,
        "width": plan.source.width,
        "height": plan.source.height,
        "frames": len(plan.frame_indices),
        "first_frame": plan.frame_indices[0],
        "last_frame": plan.frame_indices[-1],
        "objects": list(plan.object_ids),
        "price": cost.total,
        "masklet_bytes": masklet_bytes if keeps_masklets else 0,
    }

    def document() -> Mapping[str, Any]:
        has_scores = plan.is_image and not job.preview
        scores = {"scores": _scores(run.masklets, plan)} if has_scores else {}
        return {**files, **scores, "summary": summary}

    _write_json(run, works.outputs_work(asked, masklets), document)
    if not (job.keep_masklets or job.preview):
        # the manifest first: were it last, a kill in between would look like a loss
        run.hold.check()
        run.manifest.mark_removed("propagate")
        for one in plan.object_ids:
            shutil.rmtree(object_folder(run.masklets, one), ignore_errors=True)
        with suppress(OSError):  # a link, to another disk for instance
            run.masklets.rmdir()
    run.manifest.settle()
    stages = wanted(job) if job.preview else ["propagate", *wanted(job)]
    return Outputs(
        {name: str((run.root / file).resolve()) for name, file in files.items()},
        summary,
        {stage: run.seconds(stage) for stage in stages},
        run.report(),
    )


def export_all(run: Run, plan: Plan) -> None:
    """Make every output that the job asks for, at the same time."""
    names = run.order.asked.outputs
    with ThreadPoolExecutor(len(names)) as pool:
        try:
            for done in [pool.submit(export, run, plan, name) for name in names]:
                done.result()
        except BaseException:
            run.stop.set()  # leaving the pool waits for the others
            raise


def _drop_stale_exports(run: Run) -> None:
    """Remove outputs of earlier runs that this job does not ask for and that no longer fit it."""
    run.hold.check()
    for row in _unwanted_exports(
        run.order.asked,
        run.manifest,
        works.masklet_hashes(run.order.asked, run.manifest),
    ):
        # by name: a manifest from elsewhere could hold any path
        (run.root / Path(row.artifact).name).unlink(missing_ok=True)
        run.manifest.forget(row.stage, row.artifact)


def _unwanted_exports(asked: Asked, manifest: Manifest, masklets: Mapping[str, str]) -> list[Row]:
    wanted = {works.export_work(asked, name, masklets).path for name in asked.outputs}
    possible = {work.artifact: work for work in works.possible_exports(asked, masklets)}
    rows = [row for stage in EXPORTS for row in manifest.rows(stage) if row.artifact not in wanted]
    return [
        row
        for row in rows
        if row.artifact not in possible or manifest.reason_to_run(possible[row.artifact])
    ]


@dataclass(frozen=True)
class Steps:
    """The functions that `run_job` calls, in their order."""

    ingest: Callable[[SegmentJob, Manifest | None], Source] = ingest
    check_prompts: Callable[[SegmentJob, Source], Plan] = check_prompts
    preview: Callable[[Run, Plan], object] = preview
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
        if job.preview:
            steps.preview(run, plan)
        else:
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
    them counts as changed if something else is to be tracked, and if the same is to be tracked
    again, as the same but for rounding.
    """
    order, _ = _prepare(job, out, Steps(), force, verify)
    manifest = open_manifest(out, verify=verify)
    decisions = works.decide(order.asked, manifest, order.force)
    begun = {} if order.force in ("all", "propagate") else frames_tracked(out)
    tracked = [one for one, why in decisions.items() if why and one.stage == "propagate"]
    read_again = {f"object={one.artifact}" for one in tracked}
    planned = []
    for work, reason in decisions.items():
        why = works.explain(work, reason, manifest.find(work.stage, work.artifact))
        if reason and work.key in begun:
            why += f"; goes on after {begun[work.key]} frames"
        if reason is None and read_again & work.inputs.keys():
            why = "unless a masklet comes out otherwise, by rounding"
        planned.append(Planned("make" if reason else "reuse", work.stage, work.artifact, why))
    if not (job.keep_masklets or job.preview):
        there = {row.artifact for row in manifest.rows("propagate") if row.status == "done"}
        there |= {one.artifact for one in tracked}
        gone = [str(one) for one in order.asked.objects if str(one) in there]
        planned += [Planned("remove", "propagate", one, "masklets are not kept") for one in gone]
    leftover: list[tuple[str, str]] = []
    if not job.preview:
        hashes = works.masklet_inputs(decisions)
        leftover += [("propagate", row.artifact) for row in _other_objects(order.asked, manifest)]
        unwanted = _unwanted_exports(order.asked, manifest, hashes)
        leftover += [(row.stage, row.artifact) for row in unwanted]
    return planned + [Planned("remove", *place, "not asked for") for place in leftover]


def _prepare(
    job: SegmentJob, out: Path, steps: Steps, force: str | None, verify: bool
) -> tuple[Order, Plan]:
    """Check everything about a job that can be checked without a model; writes nothing."""
    forced = works.check_force(force, job)
    path = local_path(job.file)
    _require_utf8(out, path, job.mask_prompts, job.checkpoint)
    known = open_manifest(out, verify=verify)
    weights = find_weights(job, known)
    stamp = Stamp.of(path) if path else None  # before the file is read
    source = steps.ingest(job, None if works.is_forced(forced, "ingest") else known)
    if source.damage:
        _say_what_is_damaged(source, job)
    plan = steps.check_prompts(job, source)
    _keep_inputs(source.path, job, weights, out)
    if job.preview:
        _keep_what_is_no_preview(out / works.PREVIEW)
    inputs = [weights.file]
    address = "" if path else shown_address(job.file)
    if address:
        stamp = Stamp.of(source.path)  # nobody writes to what was fetched
    if stamp is not None:
        inputs.append(InputFile("source", source.path, stamp, source.sha256, address))
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
    """What the Python call and the flow return: the files by name.

    Before them comes the first picture of a preview, or the debug video if there is one.
    """
    if job.preview:
        return outputs.files["preview"], outputs.files
    if job.debug_masks:
        return outputs.files["debug_masks"], outputs.files
    return outputs.files


def find_weights(job: SegmentJob, known: Manifest) -> Weights:
    """The model that the job names and its checkpoint file; raises UserError without one."""
    spec = find_model(job.model_type)
    checkpoint = require_checkpoint(spec, job.checkpoint)
    return Weights(spec, known.identify("checkpoint", checkpoint), config_sha256(spec))


def _keep_inputs(source: Path, job: SegmentJob, weights: Weights, out: Path) -> None:
    """Refuse a job that would write over what it reads."""
    # not by Path.resolve, which raises an error of its own for links that go round
    written = {_real(out / name) for name in [*works.written_files(), "masklets", works.PREVIEW]}
    for given in (source, job.mask_prompts, weights.file.path):
        if given is None:
            continue
        path = _real(Path(given))
        if path in written or path.parent in written or path == _real(out):
            raise UserError(f"{given}: is an output of the run directory {out}; use another --out")


def _keep_what_is_no_preview(folder: Path) -> None:
    """Refuse to put a preview in the place of a folder of somebody else's."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if not re.fullmatch(r"\..*|[0-9]+\.png", path.name):
            raise UserError(
                f"{path}: is not of a preview, which would take its folder's place; move it, or "
                "use another --out"
            )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _require_utf8(*paths: str | Path | None) -> None:
    """Refuse paths that neither the manifest nor a message can hold."""
    for path in paths:
        if path is None:
            continue
        name = str(Path(path).absolute())
        try:
            name.encode()
        except UnicodeEncodeError:  # by os.fsdecode, or half a character of JSON
            shown = name.encode(errors="replace").decode()
            raise UserError(f"{shown}: the name is not UTF-8; rename it, or move it") from None


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
    read = {file.name for file in run.order.inputs}
    for row in run.manifest.rows(INPUT):
        if row.artifact not in read:
            run.manifest.forget(INPUT, row.artifact)
    table, checked = works.ingest_work(run.order.asked), works.check_work(run.order.asked)
    if reason := run.reason_to_run(table):
        with run.recording({table: reason}) as rows:
            rows[table] = write_frame_table(plan.source, run.root / table.path)
        if plan.source.damage:
            run.manifest.remark(table, f"the source is damaged: {plan.source.damage}")
    if reason := run.reason_to_run(checked):
        with run.recording({checked: reason}) as rows:
            rows[checked] = len(plan.objects)


def _say_what_is_damaged(source: Source, job: SegmentJob) -> None:
    name, left = display_name(source.path), f"{source.num_frames} frames can be decoded"
    if job.strict:
        raise UserError(
            f"{name} is damaged (ffmpeg: {source.damage}); {left}: copy it again, or leave out "
            "strict to take those"
        )
    _LOGGER.warning(
        "%s is damaged (ffmpeg: %s); %s, and those are taken", name, source.damage, left
    )


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
    from masklet.image import write_image_masklets
    from masklet.tracking import track_objects

    network = _network(run, model)
    if plan.is_image:
        names = {work.artifact for work in outdated}
        wanted = [one for one in plan.object_ids if str(one) in names]
        write_image_masklets(plan, wanted, network, run.scratch, run.masklets)
        return
    if run.job.compile:
        network = network.compile()
    by_name = {work.artifact: work for work in outdated}
    works = {one: by_name[str(one)] for one in plan.object_ids if str(one) in by_name}
    counter = partial(run.counter, "propagate")
    track_objects(plan, works, network, run.scratch, run.masklets, counter, run.check)


def load_weights(run: Run) -> "SAM2Base":
    """The model of a run, on its device."""
    weights = run.order.weights
    return load_model(weights.spec, weights.file.path, choose_device(run.job.device))


def _network(run: Run, model: "SAM2Base") -> "Network":
    import torch

    from masklet.network import Network

    model.max_cond_frames_in_attn = run.job.max_cond_frames or -1
    return Network.of(model, getattr(torch, run.job.precision))


def _forget_other_objects(run: Run) -> None:
    run.hold.check()
    for row in _other_objects(run.order.asked, run.manifest):
        run.manifest.forget(row.stage, row.artifact)
    # by what is there: a run may have been killed when it had forgotten an object
    asked = {object_folder(run.masklets, one) for one in run.order.asked.objects}
    for folder in set(run.masklets.glob("object=*")) - asked:
        shutil.rmtree(folder, ignore_errors=True)


def _other_objects(asked: Asked, manifest: Manifest) -> list[Row]:
    kept = {str(object_id) for object_id in asked.objects}
    return [row for row in manifest.rows("propagate") if row.artifact not in kept]


def _fetched_from(run: Run) -> dict[str, str]:
    """The address of a source that was fetched; nothing for a file of this machine."""
    address = next((file.address for file in run.order.inputs if file.address), "")
    return {"source": address} if address else {}


def _scores(masklets: Path, plan: Plan) -> list[float]:
    """The predicted quality of each mask of an image."""
    rows = [next(read_masklet(object_folder(masklets, one))) for one in plan.object_ids]
    return [round(row.object_score, 6) for row in rows]


def _write_json(run: Run, work: Work, make: Callable[[], Any]) -> None:
    if reason := run.reason_to_run(work):
        with run.recording({work: reason}) as rows, replacing(run.root / work.path) as temporary:
            temporary.write_text(json.dumps(make(), indent=2) + "\n", encoding="utf-8")
            rows[work] = 1
