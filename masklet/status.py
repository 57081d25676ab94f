"""What is in a run directory: what is right, stale, missing or damaged, told from it alone.

Nothing is written, no model is needed, and a run that holds the directory is not disturbed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from masklet import lock, works
from masklet.errors import UserError
from masklet.manifest import INPUT, Manifest, Reason, Row, Work
from masklet.models import config_sha256, find_model
from masklet.run import frames_tracked, open_manifest
from masklet.works import Asked


class State(StrEnum):
    """What can be said of one artifact."""

    DONE = "done"
    STALE = "stale"
    MISSING = "missing"
    DAMAGED = "damaged"
    FAILED = "failed"
    REMOVED = "removed"
    APART = "apart"


_STATES = {
    None: State.DONE,
    Reason.NEW: State.MISSING,
    Reason.MISSING: State.MISSING,
    Reason.DAMAGED: State.DAMAGED,
    Reason.FAILED: State.FAILED,
    Reason.REMOVED: State.REMOVED,
}
"""Every other reason to make something is that what is there is stale."""


@dataclass(frozen=True)
class Artifact:
    """One artifact of the run directory, or one file that the last job read.

    why: what is wrong with it, '' if nothing. row: the manifest's, None if it was never made.
    """

    stage: str
    artifact: str
    state: State
    why: str
    row: Row | None


@dataclass(frozen=True)
class Status:
    """A run directory as it stands against the job that it was last used for.

    holder: which process works in it right now, if any. asked: the last job.
    tracked: frames that a run which did not end has tracked, by object; the next one goes on.
    """

    root: Path
    holder: str | None
    asked: Asked | None
    artifacts: tuple[Artifact, ...]
    tracked: Mapping[str, int]

    @property
    def is_right(self) -> bool:
        """Whether the last job would have nothing to do; its inputs need not be there any more."""
        return self.asked is not None and all(
            found.state in (State.DONE, State.REMOVED, State.APART)
            or (found.stage, found.state) == (INPUT, State.MISSING)
            for found in self.artifacts
        )

    @property
    def masklet_bytes(self) -> int:
        return sum(row.bytes for row in self._masklets)

    @property
    def bytes_per_frame_and_object(self) -> float | None:
        """Of the masklets that are there; None without any."""
        rows = sum(row.rows for row in self._masklets)
        return self.masklet_bytes / rows if rows else None

    @property
    def _masklets(self) -> list[Row]:
        found = [one.row for one in self.artifacts if one.stage == "propagate" and one.row]
        return [row for row in found if row.status == "done"]


def read_status(root: Path, *, verify: bool = False) -> Status:
    """Compare a run directory with its manifest, and that with the last job and its inputs.

    With `verify` every file is hashed; otherwise those whose size and times are as recorded are
    believed. Raises UserError if there is no manifest, or none that can be read.
    """
    manifest, holder = open_manifest(root, verify=verify), lock.holder(root)
    if not manifest.rows() and holder is None:
        raise UserError(f"{root}: is no run directory: there is no manifest.parquet in it")
    inputs = [_input(row, manifest) for row in manifest.rows(INPUT)]
    job = manifest.find("check_prompts", "job")
    asked = Asked.from_row(job) if job else None
    tracked: dict[str, int] = {}
    if asked is None:
        artifacts = [_file(row, manifest) for row in _own_rows(manifest)]
    else:
        changed = {one.artifact for one in inputs if one.state == State.STALE}
        artifacts = _compare(_now(asked, changed), manifest)
        begun = frames_tracked(root)
        keys = {one: works.track_work(asked, one).key for one in asked.objects}
        tracked = {str(one): begun[key] for one, key in keys.items() if key in begun}
    return Status(root, holder, asked, (*inputs, *artifacts), tracked)


def _compare(asked: Asked, manifest: Manifest) -> list[Artifact]:
    decisions = works.decide(asked, manifest)
    found = [_artifact(work, reason, manifest) for work, reason in decisions.items()]
    shown = {(one.stage, one.artifact) for one in found}
    others = [row for row in _own_rows(manifest) if (row.stage, row.artifact) not in shown]
    hashes = works.masklet_inputs(decisions)
    possible = {} if asked.is_preview else works.possible_exports(asked, hashes)
    by_place = {(work.stage, work.artifact): work for work in possible}
    for row in others:
        if not asked.belongs(row):
            why = f"of a {'full run' if asked.is_preview else 'preview'}; it is left as it is"
            found.append(Artifact(row.stage, row.artifact, State.APART, why, row))
        elif work := by_place.get((row.stage, row.artifact)):
            found.append(_artifact(work, manifest.reason_to_run(work), manifest))
        else:
            found.append(Artifact(row.stage, row.artifact, State.STALE, "not asked for", row))
    return found


def _artifact(work: Work, reason: Reason | None, manifest: Manifest) -> Artifact:
    row = manifest.find(work.stage, work.artifact)
    state = _STATES.get(reason, State.STALE)
    if reason is None and row and row.status == "removed":
        state = State.REMOVED
    why = works.explain(work, reason, row)
    if state == State.REMOVED:
        why = "another output would need it to be tracked again"
    return Artifact(work.stage, work.artifact, state, why, row)


def _input(row: Row, manifest: Manifest) -> Artifact:
    harm = manifest.harm(row)
    if harm is Reason.MISSING:
        why = f"{row.path} is gone; what was made of it is kept"
        return Artifact(INPUT, row.artifact, State.MISSING, why, row)
    if harm is Reason.DAMAGED:
        why = f"the content of {row.path} changed"
        return Artifact(INPUT, row.artifact, State.STALE, why, row)
    return Artifact(INPUT, row.artifact, State.DONE, "", row)


def _file(row: Row, manifest: Manifest) -> Artifact:
    """All that can be said where the last job is not known."""
    left = {"failed": Reason.FAILED, "removed": Reason.REMOVED}
    harm = left.get(row.status) or manifest.harm(row)
    return Artifact(row.stage, row.artifact, _STATES[harm], harm or "", row)


def _own_rows(manifest: Manifest) -> list[Row]:
    return [row for row in manifest.rows() if row.stage != INPUT]


def _now(asked: Asked, changed: set[str]) -> Asked:
    """The last job with the hashes that its inputs have now, as far as they can be known."""
    hashes = {name: "changed" if name in changed else of for name, of in asked.hashes.items()}
    try:
        hashes["config"] = config_sha256(find_model(asked.model))
    except UserError:
        hashes["config"] = "changed"  # there is no such model any more
    return replace(asked, hashes=hashes)
