"""The stages of a segmentation as Prefect tasks: each calls the library and says what came of it.

Inputs are not hashed and results not stored: the manifest knows what is done, Prefect shows it.
"""

from typing import TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import wait
from prefect.logging import get_run_logger
from prefect.states import Completed
from prefect.utilities.annotations import opaque

from masklet import pipeline
from masklet.job import SegmentJob
from masklet.manifest import Manifest, Reason
from masklet.media import Source
from masklet.pipeline import Outputs, Steps
from masklet.plan import Plan
from masklet.run import Run
from masklet.works import split_name
from tasks.reasons import show_reasons

Value = TypeVar("Value")


@task(cache_policy=NO_CACHE, persist_result=False)
def ingest(job: SegmentJob, known: Manifest | None) -> State[Source]:
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
def preview(run: Run, plan: Plan) -> State[None]:
    pipeline.preview(run, plan)
    _log_notes(run)
    return _ended(run, "preview", None)


@task(cache_policy=NO_CACHE, persist_result=False)
def propagate(run: Run, plan: Plan) -> State[None]:
    pipeline.propagate(run, plan)
    _log_notes(run)
    return _ended(run, "propagate", None)


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
def export(run: Run, plan: Plan, name: str) -> State[None]:
    pipeline.export(run, plan, name)
    return _ended(run, split_name(name)[0], None)


@task(cache_policy=NO_CACHE, persist_result=False)
def finish(run: Run, plan: Plan) -> State[Outputs]:
    outputs = pipeline.finish(run, plan)
    get_run_logger().info("price $%.4f, outputs in %s", outputs.summary["price"], run.root)
    show_reasons(outputs)
    return _ended(run, "finish", outputs)


def _export_all(run: Run, plan: Plan) -> None:
    futures = [export.submit(_whole(run), _whole(plan), name) for name in run.order.asked.outputs]
    wait(futures)
    for future in futures:
        future.result()


def _whole(value: Value) -> Value:
    """Keep Prefect from searching an input for futures, through every frame of a plan."""
    return cast(Value, opaque(value))


STEPS = Steps(
    ingest=lambda job, known: ingest(_whole(job), _whole(known)).result(),
    check_prompts=lambda job, source: check_prompts(_whole(job), _whole(source)),
    preview=lambda run, plan: preview(_whole(run), _whole(plan)),
    propagate=lambda run, plan: propagate(_whole(run), _whole(plan)),
    export_all=_export_all,
    finish=lambda run, plan: finish(_whole(run), _whole(plan)).result(),
)


def _log_notes(run: Run) -> None:
    # the notes of the stages before are written only when it is sure that work begins
    for stage in ("ingest", "check_prompts"):
        _log_reasons(run, stage)


def _log_reasons(run: Run, stage: str) -> list[Reason | None]:
    """Log why each artifact of a stage was made; None is for what was reused."""
    reasons = {artifact: why for (of, artifact), why in list(run.reasons.items()) if of == stage}
    for artifact, reason in reasons.items():
        get_run_logger().info("%s %s: %s", stage, artifact, reason or "reused")
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
