"""Probe damaged media files by the thousand: does one hang, crash, leak, or leave something behind?

    python -m benchmarks.fuzz_media [--files 10000] [--seed 0] [--processes 2] [--keep out/fuzz]

Small intact files of every container and image format that masklet reads are damaged at random:
bits flipped, bytes overwritten, parts cut out, doubled, swapped with those of another file, ends
cut off. Each is probed, and where that gives a source its first and last frame are read. All that
may come of it is a source or one line for the user, within ten seconds. Ends with exit code 1 if
anything else came, with the files that led to it in `--keep`.
"""

import argparse
import io
import os
import random
import resource
import shutil
import subprocess
import tempfile
import threading
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image
from rich.console import Console

from masklet.errors import UserError
from masklet.media import probe, read_frames

_MOST_SECONDS = 10.0
_MOST_GROWTH = 64 * 2**20
_BATCH = 100

_VIDEOS = {
    "h264.mp4": ["-c:v", "libx264", "-bf", "2"],
    "fragments.mp4": ["-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov"],
    "hevc.mkv": ["-c:v", "libx265", "-x265-params", "log-level=none"],
    "vp9.webm": ["-c:v", "libvpx-vp9", "-deadline", "realtime"],
    "vp8.webm": ["-c:v", "libvpx", "-deadline", "realtime"],
    "av1.mkv": ["-c:v", "libsvtav1", "-preset", "12"],
    "mpeg4.avi": ["-c:v", "mpeg4"],
    "mjpeg.avi": ["-c:v", "mjpeg"],
    "prores.mov": ["-c:v", "prores_ks"],
    "ffv1.nut": ["-c:v", "ffv1"],
    "h264.ts": ["-c:v", "libx264"],
    "mpeg2.mpg": ["-c:v", "mpeg2video"],
    "mpeg2.mxf": ["-c:v", "mpeg2video"],
    "flv.flv": ["-c:v", "flv"],
    "theora.ogv": ["-c:v", "libtheora"],
    "wmv.asf": ["-c:v", "wmv2"],
    "raw.y4m": ["-pix_fmt", "yuv420p"],
    "raw.h264": ["-c:v", "libx264"],
    "picture.gif": [],
}
_IMAGES = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")


@dataclass
class Findings:
    """What a batch of files led to.

    outcomes: how often each. defects: (what was wrong, the file's content).
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    defects: list[tuple[str, bytes]] = field(default_factory=list)
    slowest: float = 0.0
    grown: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description="Probe damaged media files by the thousand.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path("out/fuzz"), help="for what failed")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        intact = write_intact_files(Path(folder))
    console.print(f"{len(intact)} intact files of {sum(map(len, intact.values())):,} bytes")
    total = probe_all(intact, options.files, options.seed, options.processes, console)
    for outcome, count in total.outcomes.most_common():
        console.print(f"{count:6}  {outcome}")
    console.print(
        f"slowest {total.slowest:.1f} s; memory of a process grew by {total.grown / 2**20:.0f} MiB"
    )
    if total.grown > _MOST_GROWTH:
        raise SystemExit("memory leaks")
    if total.defects:
        options.keep.mkdir(parents=True, exist_ok=True)
        for number, (what, content) in enumerate(total.defects):
            (options.keep / f"{number}.bin").write_bytes(content)
            console.print(f"{options.keep / f'{number}.bin'}: {what}")
        raise SystemExit(f"{len(total.defects)} defects")
    console.print("a source or one line every time; no process, file or descriptor left behind")


def write_intact_files(folder: Path) -> dict[str, bytes]:
    """By name: twelve frames of 96x64 pixels in every format, some images, and a zip of images."""
    for name, options in _VIDEOS.items():
        pattern = ["-f", "lavfi", "-i", "testsrc=size=96x64:rate=25:duration=0.48"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", *pattern]
        quiet = os.environ | {"SVT_LOG": "0"}
        subprocess.run([*command, *options, str(folder / name)], check=True, env=quiet)
    ramp = np.arange(64 * 96 * 3, dtype=np.uint32).reshape(64, 96, 3)
    picture = Image.fromarray((ramp % 251).astype(np.uint8))
    for kind in _IMAGES:
        picture.save(folder / f"image.{kind.lower()}", kind)
    with zipfile.ZipFile(folder / "frames.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            stream = io.BytesIO()
            picture.rotate(number).save(stream, "PNG")
            archive.writestr(f"{number}.png", stream.getvalue())
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def damage(content: bytes, others: Sequence[bytes], chance: random.Random) -> bytes:
    """One to eight injuries; half of them in the first kilobyte, where the structure is."""
    hurt = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 3, 8))):
        reach = min(len(hurt), chance.choice((64, 1024, len(hurt), len(hurt))))
        at = chance.randrange(max(1, reach))
        length = chance.choice((1, 2, 4, 8, 64, 1024))
        match chance.randrange(7):
            case 0:
                hurt[at : at + 1] = bytes([hurt[at] ^ 1 << chance.randrange(8)]) if hurt else b""
            case 1:
                hurt[at : at + length] = chance.randbytes(length)
            case 2:
                hurt[at : at + length] = chance.choice((b"\0", b"\xff", b"\x7f")) * length
            case 3:
                del hurt[at : at + length]
            case 4:
                hurt[at:at] = hurt[at : at + length]
            case 5:
                other = chance.choice(others)
                hurt[at : at + length] = other[at : at + length]
            case _:
                del hurt[chance.randrange(max(1, len(hurt))) :]
    return bytes(hurt)


def probe_all(
    intact: dict[str, bytes], files: int, seed: int, processes: int, console: Console
) -> Findings:
    """Spread batches over processes; one that dies takes its batch with it, which is a defect."""
    total, begun = Findings(), time.monotonic()
    batches = [range(at, min(at + _BATCH, files)) for at in range(0, files, _BATCH)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = [pool.submit(probe_batch, intact, seed, batch) for batch in batches]
        for number, done in enumerate(as_completed(running), 1):
            found = done.result()
            total.outcomes += found.outcomes
            total.defects += found.defects
            total.slowest = max(total.slowest, found.slowest)
            total.grown = max(total.grown, found.grown)
            if number % 10 == 0:
                console.print(f"{number * _BATCH:,} files in {time.monotonic() - begun:.0f} s")
    return total


_FIRST_SIZE: list[int] = []


def probe_batch(intact: dict[str, bytes], seed: int, numbers: range) -> Findings:
    """Damage and probe some files; which, the seed and their numbers decide."""
    found, contents = Findings(), list(intact.values())
    for number in numbers:
        chance = random.Random(f"{seed}-{number}")
        name = chance.choice(list(intact))
        content = damage(intact[name], contents, chance)
        begun = time.monotonic()
        outcome, defect = probe_one(content)
        seconds = time.monotonic() - begun
        found.outcomes[outcome] += 1
        found.slowest = max(found.slowest, seconds)
        if seconds > _MOST_SECONDS:
            defect = f"took {seconds:.1f} s"
        if defect:
            found.defects.append((f"{name}, number {number}: {defect}", content))
    # ru_maxrss is in KiB; what the first batch needed is not a leak
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _FIRST_SIZE.append(size)
    found.grown = size - _FIRST_SIZE[0]
    return found


def probe_one(content: bytes) -> tuple[str, str]:
    """What came of a file, and what was wrong about it, if anything."""
    before = _held()
    folder = Path(tempfile.mkdtemp())
    path = folder / "file"
    path.write_bytes(content)
    try:
        outcome, defect = _outcome(path)
        left = sorted(one.name for one in folder.rglob("*") if one != path)
        if left:
            defect = f"left {left} behind"
    finally:
        shutil.rmtree(folder)
    if not defect and _held() != before:
        defect = f"holds {_held()}, before {before} (processes, descriptors, threads)"
    return outcome, defect


def _outcome(path: Path) -> tuple[str, str]:
    try:
        source = probe(str(path))
    except UserError as error:
        return "refused by the probe", _complaint(error)
    except Exception:
        return "a defect", traceback.format_exc(limit=-3)
    ends = sorted({0, source.num_frames - 1})
    try:
        shapes = {frame.shape for _, frame in read_frames(source, ends)}
    except UserError as error:
        return "a frame that cannot be decoded", _complaint(error)
    except Exception:
        return "a defect", traceback.format_exc(limit=-3)
    whole = shapes == {(source.height, source.width, 3)}
    return "a source", "" if whole else f"frames of {shapes}"


def _complaint(error: UserError) -> str:
    lines = str(error).splitlines()
    return "" if len(lines) == 1 and len(lines[0]) < 1000 else f"not one line: {str(error)!r:.300}"


def _held() -> tuple[int, int, int]:
    """How many children, descriptors and threads this process has."""
    tasks = Path("/proc/self/task").iterdir()
    children = sum(len((task / "children").read_text().split()) for task in tasks)
    return children, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


if __name__ == "__main__":
    main()
