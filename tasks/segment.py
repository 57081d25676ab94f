"""The stages of a segmentation as Prefect tasks: each calls the library and says what came of it.

Inputs are not hashed and results not stored: the manifest knows what is done, Prefect shows it.
"""

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.logging import get_run_logger
from prefect.states import Completed, Failed
from prefect.utilities.annotations import opaque

from masklet import pipeline
from masklet.errors import UserError
from masklet.glance import Seen, glance, preview_sheet
from masklet.job import SegmentJob
from masklet.manifest import Manifest, Reason
from masklet.media import Source
from masklet.pipeline import Outputs, Steps
from masklet.plan import Plan
from masklet.run import Run
from masklet.works import split_name
from tasks.artifacts import (
    show_objects,
    show_outputs,
    show_picture,
    show_price,
    show_reasons,
)


def _is_readable(record: logging.LogRecord) -> bool:
    """Leave out Prefect's traceback of a UserError, whose one line it logs too."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        record.exc_info = None  # of a failed state, to which Prefect adds a traceback of nothing
    return not isinstance(error, UserError)


for _name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_is_readable)

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")


def refusable(stage: Callable[Parameters, Value]) -> Callable[Parameters, Value]:
    """Let a UserError end a task or a flow as failed, with its one line and without a traceback."""

    @wraps(stage)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Value:
        try:
            return stage(*args, **kwargs)
        except UserError as error:
            return cast(Value, Failed(message=str(error), data=error))

    return run


@task(cache_policy=NO_CACHE, persist_result=False)
@refusable
def ingest(job: SegmentJob, known: Manifest | None) -> State[Source]:
    job = pipeline.with_local_source(job)
    reused = known and pipeline.known_source(job, known)
    source = reused or pipeline.ingest(job)
    get_run_logger().info(
        "%s: %d frames of %dx%d at %.3g frames per second",
        source.path.name,
        source.num_frames,
        source.width,
        source.height,
        float(source.frame_rate),
    )
    return _reused(source) if reused else Completed(data=source)


@task(cache_policy=NO_CACHE, persist_result=False)
@refusable
def check_prompts(job: SegmentJob, source: Source) -> Plan:
    plan = pipeline.check_prompts(job, source)
    get_run_logger().info(
        "%d objects (%s) on %d frames, %s",
        len(plan.objects),
        ", ".join(map(str, plan.object_ids)),
        len(plan.frame_indices),
        plan.direction,
    )
    return plan


@task(cache_policy=NO_CACHE, persist_result=False)
@refusable
def preview(run: Run, plan: Plan) -> State[None]:
    pipeline.preview(run, plan)
    _log_notes(run)
    show_picture("prompted-frames", preview_sheet(run.root / "preview"), "The prompted frames")
    return _ended(run, "preview", None)


@task(cache_policy=NO_CACHE, persist_result=False)
@refusable
def propagate(run: Run, plan: Plan) -> State[None]:
    pipeline.propagate(run, plan)
    _log_notes(run)
    return _ended(run, "propagate", None)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
@refusable
def export(run: Run, plan: Plan, name: str) -> State[None]:
    pipeline.export(run, plan, name)
    return _ended(run, split_name(name)[0], None)


@task(cache_policy=NO_CACHE, persist_result=False)
def look(run: Run, plan: Plan) -> State[None]:
    """Show the objects and a contact sheet; what cannot be shown fails nothing."""
    if not run.masklets.exists():
        return Completed(name="Skipped", message="the masklets were not kept", data=None)
    try:
        seen, sheet = glance(plan, run.masklets)
    except Exception:
        get_run_logger().warning("the contact sheet could not be made", exc_info=True)
        return Completed(name="Skipped", message="it could not be made", data=None)
    for one in seen:
        get_run_logger().info("object %s %s", one.object_id, _presence(one, plan))
    show_objects(seen, len(plan.frame_indices))
    show_picture("contact-sheet", sheet, f"{plan.source.path.name}: a few moments")
    return Completed(data=None)


@task(cache_policy=NO_CACHE, persist_result=False)
@refusable
def finish(run: Run, plan: Plan) -> State[Outputs]:
    outputs = pipeline.finish(run, plan)
    get_run_logger().info("price $%.4f, outputs in %s", outputs.summary["price"], run.root)
    show_reasons(outputs)
    show_outputs(run, outputs)
    show_price(run)
    return _ended(run, "finish", outputs)


def task_steps() -> Steps:
    """The stages of one run as tasks, each drawn after what it waits for."""
    before: list[State[Any]] = []

    def after_it(stage: Task[..., Any], *inputs: object) -> Any:
        state = stage(*map(_whole, inputs), wait_for=list(before), return_state=True)
        before[:] = [state]
        return state.result()

    def export_all(run: Run, plan: Plan) -> None:
        given, earlier = (_whole(run), _whole(plan)), list(before)
        looking = look.submit(*given, return_state=False, wait_for=earlier)
        names = run.order.asked.outputs
        exporting = [
            export.submit(*given, name, return_state=False, wait_for=earlier) for name in names
        ]
        wait([*exporting, looking])
        for future in exporting:
            future.result()
        before[:] = [future.state for future in exporting]

    return Steps(
        ingest=lambda job, known: after_it(ingest, job, known),
        check_prompts=lambda job, source: after_it(check_prompts, job, source),
        preview=lambda run, plan: after_it(preview, run, plan),
        propagate=lambda run, plan: after_it(propagate, run, plan),
        export_all=export_all,
        finish=lambda run, plan: after_it(finish, run, plan),
    )


def _whole(value: Value) -> Value:
    """Keep Prefect from searching an input for futures, through every frame of a plan."""
    return cast(Value, opaque(value))


def _presence(one: Seen, plan: Plan) -> str:
    frames = len(plan.frame_indices)
    if one.confidence is None:
        return f"is on none of {frames} frames"
    return (
        f"is on {one.frames} of {frames} frames, {one.first_frame} to {one.last_frame}, "
        f"confidence {one.confidence:.3f}"
    )


def _log_notes(run: Run) -> None:
    # the notes of the stages before are written only when it is sure that work begins
    for stage in ("ingest", "check_prompts"):
        _log_reasons(run, stage)


def _log_reasons(run: Run, stage: str) -> list[Reason | None]:
    """Log why each artifact of a stage was made, and what came of it; None for what was reused."""
    reasons = {artifact: why for (of, artifact), why in list(run.reasons.items()) if of == stage}
    for artifact, reason in reasons.items():
        row = run.manifest.find(stage, artifact)
        made = f" ({row.rows} rows, {row.bytes} bytes, {row.seconds:.1f} s)" if row else ""
        words = f"{reason}{made}" if reason else "reused"
        get_run_logger().info("%s %s: %s", stage, artifact, words)
    return list(reasons.values())


def _ended(run: Run, stage: str, value: Value) -> State[Value]:
    """The state of a stage that is over, named Reused if nothing had to be done."""
    reasons = _log_reasons(run, stage)
    made = sum(reason is not None for reason in reasons)
    if made == 0:
        return _reused(value)
    return Completed(message=f"{made} of {len(reasons)} made", data=value)


def _reused(value: Value) -> State[Value]:
    return Completed(name="Reused", message="up to date in the manifest", data=value)
