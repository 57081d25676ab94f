"""The stages of a segmentation as Prefect tasks: each calls the library and says what came of it.

Inputs are not hashed and results not stored: the manifest knows what is done, Prefect shows it.
"""

from collections.abc import Sequence
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
from masklet.manifest import Manifest
from masklet.media import Source
from masklet.pipeline import Outputs, Steps
from masklet.plan import Plan
from masklet.run import Run
from masklet.works import wanted

Input = TypeVar("Input")


@task(cache_policy=NO_CACHE, persist_result=False)
def ingest(job: SegmentJob, known: Manifest | None) -> Source:
    source = pipeline.ingest(job, known)
    get_run_logger().info(
        "%s: %d frames of %dx%d at %.3g frames per second",
        source.path.name,
        source.num_frames,
        source.width,
        source.height,
        float(source.frame_rate),
    )
    return source


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
def propagate(run: Run, plan: Plan) -> State[None]:
    pipeline.propagate(run, plan)
    return _say_why(run, "propagate")


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{name}")
def export(run: Run, plan: Plan, name: str) -> State[None]:
    pipeline.export(run, plan, name)
    return _say_why(run, name)


@task(cache_policy=NO_CACHE, persist_result=False)
def finish(run: Run, plan: Plan) -> Outputs:
    outputs = pipeline.finish(run, plan)
    get_run_logger().info("price $%.4f, outputs in %s", outputs.summary["price"], run.root)
    return outputs


def _export_all(run: Run, plan: Plan) -> None:
    futures = [export.submit(_whole(run), _whole(plan), name) for name in wanted(run.job)]
    wait(futures)
    for future in futures:
        future.result()


def _whole(value: Input) -> Input:
    """Keep Prefect from searching an input for futures, through every frame of a plan."""
    return cast(Input, opaque(value))


STEPS = Steps(
    ingest=lambda job, known: ingest(_whole(job), _whole(known)),
    check_prompts=lambda job, source: check_prompts(_whole(job), _whole(source)),
    propagate=lambda run, plan: propagate(_whole(run), _whole(plan)),
    export_all=_export_all,
    finish=lambda run, plan: finish(_whole(run), _whole(plan)),
)


def _say_why(run: Run, stage: str) -> State[None]:
    """Log the reason of each artifact; the state is named Reused if nothing had to be done."""
    reasons = {artifact: why for (of, artifact), why in list(run.reasons.items()) if of == stage}
    for artifact, reason in reasons.items():
        get_run_logger().info("%s %s: %s", stage, artifact, reason or "reused")
    if any(reasons.values()):
        return Completed(message=_count(list(reasons.values())))
    return Completed(name="Reused", message="up to date in the manifest")


def _count(reasons: Sequence[object]) -> str:
    return f"{sum(reason is not None for reason in reasons)} of {len(reasons)} made"
