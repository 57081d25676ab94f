"""The tracking of a run: it goes on where a killed run stood, and publishes what is complete.

Masklets grow in the run's scratch folder, beside a checkpoint of where each object stands. They
move to their place when all objects are complete; the manifest learns of it after that.
"""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from masklet.atomic import put_folder
from masklet.checkpoint import Kept, Standing, load_checkpoint, save_checkpoint
from masklet.job import ObjectId
from masklet.manifest import Work
from masklet.network import Network
from masklet.plan import Plan
from masklet.propagate import count_steps, propagate
from masklet.settings import load_settings
from masklet.standings import CHECKPOINT
from masklet.store import object_folder, part_hashes

_LOGGER = logging.getLogger(__name__)


def track_objects(
    plan: Plan,
    works: Mapping[ObjectId, Work],
    network: Network,
    scratch: Path,
    masklets: Path,
    counter: Callable[[int], Callable[[int], None]],
    check: Callable[[], None],
) -> None:
    """Make the masklets of `works`, going on from the checkpoint in `scratch` where it fits.

    Args:
        works: the work of each object that is to be tracked; their keys tell whether a checkpoint
            is of the same work.
        scratch: folder where masklets grow; it is the caller's to remove when this is recorded.
        masklets: folder that gets the complete masklets.
        counter: makes a function that counts steps, given how many there are.
        check: raises if what is tracked is not what it was any more; called before a checkpoint is
            kept, and before anything is published.
    """
    seconds_between = load_settings().checkpoint_seconds
    steps = count_steps(plan, network.model)
    path = scratch / CHECKPOINT
    kept = _usable(load_checkpoint(path), works, scratch, masklets, steps)
    groups = _by_steps(works, kept)
    advance = counter(steps * len(groups))
    for begun, object_ids in groups.items():
        if begun:
            _LOGGER.info("%s: going on after %d of %d frames", object_ids, begun, steps)
        if begun == steps:
            advance(steps)
            continue

        def keep(standings: Mapping[ObjectId, Standing]) -> None:
            check()
            kept.update({one: Kept(works[one].key, at) for one, at in standings.items()})
            save_checkpoint(path, kept)

        propagate(
            plan,
            object_ids,
            network,
            scratch,
            advance,
            begun={one: kept[one].standing for one in object_ids if one in kept},
            keep=keep,
            seconds_between=seconds_between,
        )
    check()
    for one in works:
        publish(object_folder(scratch, one), object_folder(masklets, one))


def _usable(
    found: Mapping[ObjectId, Kept],
    works: Mapping[ObjectId, Work],
    scratch: Path,
    masklets: Path,
    steps: int,
) -> dict[ObjectId, Kept]:
    """The standings that belong to these works and whose parts are all there.

    What is left of others is removed. A run that was killed while it published has left a complete
    masklet in its place already.
    """
    kept = {}
    for one, work in works.items():
        grown, place = object_folder(scratch, one), object_folder(masklets, one)
        found_here = found.get(one)
        if found_here and found_here.key == work.key:
            at = found_here.standing
            is_published = at.steps == steps and at.parts == part_hashes(place)
            there = part_hashes(grown)
            if is_published or at.parts.items() <= there.items():
                # what came after the checkpoint is made again, or is of another job
                for name in there.keys() - at.parts.keys():
                    (grown / name).unlink()
                kept[one] = found_here
                continue
        shutil.rmtree(grown, ignore_errors=True)
    return kept


def _by_steps(
    works: Mapping[ObjectId, Work], kept: Mapping[ObjectId, Kept]
) -> dict[int, Sequence[ObjectId]]:
    """The objects by how many steps they have taken, those that are farthest first."""
    taken = {one: kept[one].standing.steps if one in kept else 0 for one in works}
    return {
        steps: [one for one in works if taken[one] == steps]
        for steps in sorted(set(taken.values()), reverse=True)
    }


def publish(grown: Path, place: Path) -> None:
    """Put a complete masklet in its place; one that is there already gives way."""
    if grown.exists():  # or it was published before the run was killed
        put_folder(grown, place)
