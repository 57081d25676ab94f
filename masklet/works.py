"""What a job asks for, artifact by artifact, and why each of them has to be made.

A run, a dry run and `masklet status` decide by the same function, `decide`. What it needs of a job
is `Asked`, small enough for a row of the manifest, so that the status of a directory can be told
from the directory alone.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from pydantic import TypeAdapter, ValidationError

from masklet.errors import UserError
from masklet.exports import EXPORTS, overlay_settings
from masklet.frame_table import FILE_NAME as FRAMES
from masklet.job import ObjectId, SegmentJob
from masklet.manifest import FILE_NAME as MANIFEST
from masklet.manifest import Manifest, Reason, Row, Work
from masklet.models import ModelSpec
from masklet.plan import IMAGE_MASKS, FramePrompts, ObjectPlan, Plan
from masklet.price import price_of

CODE_VERSIONS = {"ingest": 3, "check_prompts": 1, "propagate": 2, "preview": 3, "finish": 1}
"""Raise a stage's number whenever its output would change; an export's stands in `EXPORTS`."""

Force: TypeAlias = Literal[
    "all", "propagate", "masks", "pixel_confidences", "bbox_tracking", "debug_masks", "preview"
]
"""What to make again although it is there: everything, from `propagate` on, or one output."""

PREVIEW = "preview"
"""The stage of a preview, its one artifact, and the folder of its pictures."""

_OF_ONE_KIND = {PREVIEW, "propagate", *EXPORTS}
"""The stages that a preview has and a full run has not, or the other way round."""

_UNKNOWN = ""
"""Stands for the hash of what has yet to be made."""

Decisions: TypeAlias = dict[Work, Reason | None]


@dataclass(frozen=True)
class Asked:
    """A job on a known source, as far as what it makes depends on it.

    model, rates: full name, and the price per minute and per object and minute.
    outputs: names as in outputs.json; of a preview, that alone.
    size: [width, height] of the source. frames: how many get masks, and the first and last of them.
    tracking: what the masklets of all objects depend on; prompts: a digest for each object.
    hashes: of the source, the checkpoint and the model's config.
    """

    model: str
    rates: Sequence[float]
    objects: Sequence[ObjectId]
    outputs: Sequence[str]
    keep_masklets: bool
    size: Sequence[int]
    frames: Sequence[int]
    tracking: Mapping[str, Any]
    prompts: Mapping[str, str]
    hashes: Mapping[str, str]
    is_image: bool = False

    @classmethod
    def of(cls, job: SegmentJob, plan: Plan, spec: ModelSpec, hashes: Mapping[str, str]) -> "Asked":
        indices, cost = plan.frame_indices, price_of(job, plan, spec)
        is_numbered = plan.is_image and len(plan.objects) > 1 and not job.preview
        numbers = plan.object_ids if is_numbered else [None]
        return cls(
            spec.name,
            [cost.price_per_minute, cost.price_per_object_minute],
            list(plan.object_ids),
            [_numbered(name, number) for name in wanted(job) for number in numbers],
            job.keep_masklets,
            [plan.source.width, plan.source.height],
            [len(indices), indices[0], indices[-1]],
            _tracking(job, plan, spec),
            {str(one.object_id): _prompts_digest(one) for one in plan.objects},
            hashes,
            plan.is_image,
        )

    @classmethod
    def from_row(cls, row: Row) -> "Asked | None":
        """What the row of `check_work` says; None if this version of masklet did not write it."""
        said = json.loads(row.parameters) | {"hashes": json.loads(row.inputs)}
        try:
            TypeAdapter(cls).validate_python(said)  # a look only: it would turn 1 into 1.0
            asked = cls(**said)
            works_of(asked)
        except (ValidationError, TypeError, LookupError, ValueError):
            return None
        exported = {split_name(name)[0] for name in asked.outputs}
        is_whole = (
            asked.frames
            and asked.prompts.keys() == {str(one) for one in asked.objects}
            and (asked.is_preview or {"masks"} <= exported <= EXPORTS.keys())
            and asked.hashes.keys() == {"source", "checkpoint", "config"}
        )
        return asked if is_whole else None

    @property
    def is_preview(self) -> bool:
        return list(self.outputs) == [PREVIEW]

    def belongs(self, row: Row) -> bool:
        """Whether a row is of this kind of job: a preview and a full run leave each other's be."""
        return (row.stage == PREVIEW) == self.is_preview or row.stage not in _OF_ONE_KIND


def wanted(job: SegmentJob) -> list[str]:
    """The stages whose outputs a job asks for: masks always, the others by their fields.

    A preview is made alone, whatever else the job asks for.
    """
    if job.preview:
        return [PREVIEW]
    return [name for name in EXPORTS if name == "masks" or getattr(job, name)]


def split_name(output: str) -> tuple[str, int | None]:
    """An output's stage, and which of an image's masks it is of: `masks_2` is (masks, 2)."""
    stage, _, number = output.rpartition("_")
    return (stage, int(number)) if number.isdecimal() else (output, None)


def check_force(force: str | None, job: SegmentJob) -> Force | None:
    """`force` if it is nothing, or names what this job has; raises UserError otherwise."""
    if force is None:
        return None
    if force not in get_args(Force):
        raise UserError(f"what is forced is one of {', '.join(get_args(Force))}, not {force!r}")
    if force not in ("all", *wanted(job)) and (force != "propagate" or job.preview):
        raise UserError(f"{force} cannot be forced: the job does not ask for it")
    return cast(Force, force)


def is_forced(force: Force | None, stage: str) -> bool:
    """Whether a stage is to be done although its output is there."""
    after_propagate = stage in ("propagate", "finish") or stage in EXPORTS
    return force in ("all", stage) or (force == "propagate" and after_propagate)


def reason_to_run(work: Work, manifest: Manifest, force: Force | None) -> Reason | None:
    """Why `work` has to be done: the manifest's reason, or that it was asked to be done again."""
    forced = Reason.FORCED if is_forced(force, work.stage) else None
    return manifest.reason_to_run(work) or forced


def decide(asked: Asked, manifest: Manifest, force: Force | None = None) -> Decisions:
    """Why each artifact of a job has to be made, None where it need not be; in order of stages.

    What depends on masklets that have yet to be made counts as changed. It may turn out not to be,
    if they come out as they were.
    """
    hashes = {
        _input_name(str(one)): _expected_hash(track_work(asked, one), manifest)
        for one in asked.objects
    }
    decisions = {work: reason_to_run(work, manifest, force) for work in works_of(asked, hashes)}
    is_read = any(why for work, why in decisions.items() if _reads_masklets(work, asked))
    if not asked.keep_masklets and not is_read:
        # it does not matter then that they are not there
        not_there = (Reason.REMOVED, Reason.MISSING, Reason.DAMAGED)
        for work, why in decisions.items():
            if work.stage == "propagate" and why in not_there:
                decisions[work] = None
    return decisions


def _reads_masklets(work: Work, asked: Asked) -> bool:
    # outputs.json of an image has the scores of its masks
    return work.stage in EXPORTS or (asked.is_image and _is_outputs(work))


def _is_outputs(work: Work) -> bool:
    # an object can have this name, too
    return (work.stage, work.artifact) == ("finish", "outputs.json")


def masklet_inputs(decisions: Decisions) -> dict[str, str]:
    """What `outputs.json` depends on, which is the hashes of all masklets and some more."""
    return next(dict(work.inputs) for work in decisions if _is_outputs(work))


def works_of(asked: Asked, masklets: Mapping[str, str] | None = None) -> list[Work]:
    """Every work of a job, in order of stages.

    masklets: their hashes by input name, as far as they are known.
    """
    if masklets is None:
        masklets = {_input_name(str(one)): _UNKNOWN for one in asked.objects}
    first = [ingest_work(asked), check_work(asked)]
    if asked.is_preview:
        return [*first, preview_work(asked), price_work(asked), outputs_work(asked, {})]
    tracking = [track_work(asked, one) for one in asked.objects]
    outputs = [export_work(asked, name, masklets) for name in asked.outputs]
    return [*first, *tracking, *outputs, price_work(asked), outputs_work(asked, masklets)]


def explain(work: Work, reason: Reason | None, row: Row | None) -> str:
    """A reason with what it is about, such as `inputs changed (source)`; '' for none."""
    if reason is None:
        return ""
    about = ""
    if row is not None:
        if reason is Reason.CODE:
            about = f"version {row.code_version} to {work.code_version}"
        elif reason is Reason.INPUTS:
            about = _differing(row.inputs, work.inputs)
        elif reason is Reason.PARAMETERS:
            about = _differing(row.parameters, work.parameters)
        elif reason is Reason.FAILED or row.error:
            about = row.error
    return f"{reason} ({about})" if about else str(reason)


def masklet_hashes(asked: Asked, manifest: Manifest) -> dict[str, str]:
    """The hashes of the masklets that are there, as inputs of what is made of them."""
    return {
        _input_name(str(one)): manifest.row("propagate", str(one)).sha256 for one in asked.objects
    }


def ingest_work(asked: Asked) -> Work:
    """The table of the source's frames."""
    version, inputs = CODE_VERSIONS["ingest"], {"source": asked.hashes["source"]}
    return Work("ingest", version, FRAMES, FRAMES, {}, inputs)


def check_work(asked: Asked) -> Work:
    """The checked job: no file, but the row that says what was asked for last."""
    parameters = asdict(asked)
    hashes = parameters.pop("hashes")
    return Work("check_prompts", CODE_VERSIONS["check_prompts"], "job", "", parameters, hashes)


def track_work(asked: Asked, object_id: ObjectId) -> Work:
    """One object's masklet."""
    return Work(
        "propagate",
        CODE_VERSIONS["propagate"],
        str(object_id),
        f"masklets/object={object_id}",
        {**asked.tracking, "prompts": asked.prompts[str(object_id)]},
        {
            **{name: asked.hashes[name] for name in ("source", "checkpoint", "config")},
            **_code_of("ingest", "check_prompts"),
        },
    )


def export_work(asked: Asked, name: str, masklets: Mapping[str, str]) -> Work:
    """An output made from masklets of these hashes: of all objects, or of one mask of an image."""
    stage, number = split_name(name)
    making, file = EXPORTS[stage], Path(EXPORTS[stage].file)
    objects = asked.objects if number is None else [number]
    path = _numbered(file.stem, number) + file.suffix
    return Work(
        stage,
        making.code_version,
        path,
        path,
        {"objects": objects, "size": asked.size, "settings": making.settings()},
        _of_masklets(
            asked, {_input_name(str(one)): masklets[_input_name(str(one))] for one in objects}
        ),
    )


def possible_exports(asked: Asked, masklets: Mapping[str, str]) -> list[Work]:
    """Every output that could be asked for of the same objects."""
    numbers = [number for _, number in map(split_name, asked.outputs)]
    names = [_numbered(name, number) for name in EXPORTS for number in dict.fromkeys(numbers)]
    return [export_work(asked, name, masklets) for name in names]


def written_files() -> list[str]:
    """Every file that a run can write beside its folders; of an image, those of each mask too."""
    numbers: list[ObjectId | None] = [None, *range(IMAGE_MASKS)]
    exports = [
        _numbered(Path(one.file).stem, number) + Path(one.file).suffix
        for one in EXPORTS.values()
        for number in numbers
    ]
    return ["outputs.json", "price.json", MANIFEST, FRAMES, *exports]


def preview_work(asked: Asked) -> Work:
    """The pictures of the prompted frames; on the frames between them nothing depends."""
    return Work(
        PREVIEW,
        CODE_VERSIONS[PREVIEW],
        PREVIEW,
        PREVIEW,
        {
            "model": asked.model,
            "precision": asked.tracking["precision"],
            "objects": asked.objects,
            "prompts": asked.prompts,
            "settings": overlay_settings(),
        },
        {**asked.hashes, **_code_of("ingest", "check_prompts", "propagate")},
    )


def price_work(asked: Asked) -> Work:
    parameters = {
        "model": asked.model,
        "rates": asked.rates,
        "frames": asked.frames[0],
        "objects": len(asked.objects),
    }
    version, inputs = CODE_VERSIONS["finish"], _code_of("ingest", "check_prompts")
    return Work("finish", version, "price.json", "price.json", parameters, inputs)


def outputs_work(asked: Asked, masklets: Mapping[str, str]) -> Work:
    names = ("model", "rates", "objects", "outputs", "keep_masklets", "size", "frames")
    return Work(
        "finish",
        CODE_VERSIONS["finish"],
        "outputs.json",
        "outputs.json",
        {name: getattr(asked, name) for name in names},
        _of_masklets(asked, masklets),
    )


def _of_masklets(asked: Asked, masklets: Mapping[str, str]) -> dict[str, str]:
    """The inputs of what is made of masklets."""
    code = _code_of("ingest", "check_prompts", "propagate")
    return {**masklets, "source": asked.hashes["source"], **code}


def _code_of(*stages: str) -> dict[str, str]:
    """The code versions of earlier stages as inputs: raising one makes all that follows again."""
    return {f"code of {stage}": str(CODE_VERSIONS[stage]) for stage in stages}


def _expected_hash(work: Work, manifest: Manifest) -> str:
    """The hash that a masklet has, or had and will have again; it is the same for the same key."""
    row = manifest.find(work.stage, work.artifact)
    is_known = row is not None and row.key == work.key and row.status != "failed"
    return row.sha256 if row and is_known else _UNKNOWN


def _differing(recorded: str, now: Mapping[str, Any]) -> str:
    """The names under which two mappings differ, the first one given as JSON."""
    before, after = json.loads(recorded), json.loads(json.dumps(now))
    names = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _input_name(artifact: str) -> str:
    return f"object={artifact}"


def _numbered(name: str, number: ObjectId | None) -> str:
    return name if number is None else f"{name}_{number}"


def _tracking(job: SegmentJob, plan: Plan, spec: ModelSpec) -> dict[str, Any]:
    """What the masklets of all objects depend on, but for files and code."""
    network = {"model": spec.name, "precision": job.precision}
    if plan.is_image:
        return {**network, "masks": len(plan.objects)}
    return {
        **network,
        "direction": plan.direction,
        "start": plan.start,
        "timeline": _digest(list(plan.timeline)),
        "max_cond_frames": job.max_cond_frames,
    }


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
