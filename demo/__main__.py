"""The demo in one command: `python -m demo --out out/demo`.

Renders a clip whose truth is known, segments it with the bundled model through the Prefect flow,
and prints what came out and how near it is to the truth. The clip is kept beside the output
folder, in `<out>-clip`, and rendered again only when its version changes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from demo.render import is_rendered, render_to
from demo.report import report
from masklet.atomic import replacing
from masklet.contact_sheet import contact_sheet, moments
from masklet.job import load_job_fields, make_job
from masklet.manifest import Manifest
from masklet.media import probe, read_frames


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m demo", description="Run masklet's demo.")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder of the run")
    out: Path = parser.parse_args().out
    clip = out.with_name(f"{out.name}-clip")
    console = Console()
    if not is_rendered(clip):
        with console.status(f"rendering the demo clip into {clip}"):
            render_to(clip)
    # Prefect takes seconds to import; the clip's own errors should not wait for it.
    from flows.segment import segment

    job = make_job(load_job_fields(clip / "job.yaml"), base=clip)
    segment(job, out)
    sheet = out / "contact_sheet.png"
    _write_contact_sheet(out / "debug_masks.mp4", sheet)
    report(_outputs(out), clip, look_first=sheet, console=console)


def _write_contact_sheet(video: Path, sheet: Path) -> None:
    source = probe(video)
    indices = moments(range(source.num_frames))
    pictures = [(at, source.timestep(at), frame) for at, frame in read_frames(source, indices)]
    with replacing(sheet) as temporary:
        contact_sheet(pictures).save(temporary, "PNG")


def _outputs(out: Path) -> dict[str, Any]:
    """The run's outputs.json, whose paths are relative to it, with paths that can be opened.

    The pace of tracking is added to the summary; it is known from the manifest alone.
    """
    names: dict[str, Any] = json.loads((out / "outputs.json").read_text(encoding="utf-8"))
    summary = names.pop("summary")
    seconds = sum(row.seconds for row in Manifest(out, run_id="").rows("propagate"))
    summary["frames_per_second"] = summary["frames"] / seconds
    return {name: out / path for name, path in names.items()} | {"summary": summary}


if __name__ == "__main__":
    main()
