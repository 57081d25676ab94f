"""What a video holds: its size, and the presentation time of every frame.

Without ffprobe, ffmpeg's `framecrc` output is the table: one line per packet (copied, cheap) or
per frame (decoded). Packets are frames only in well-made files, so their table is believed only
when every packet has its own presentation time, the codec shows one frame per packet, and the
frames decoded at both ends of the file are exactly those of the table. Otherwise the whole video
is decoded once.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import ffmpeg

from masklet.addresses import local_path, shown_address
from masklet.errors import UserError
from masklet.media.image import AnimatedError, probe_image
from masklet.media.images import is_zip, probe_animation, probe_images
from masklet.media.process import (
    MAX_PIXELS,
    Child,
    command,
    decoder,
    display_name,
    opened,
    reported,
    video_input,
)
from masklet.media.source import Source as Source
from masklet.media.source import Transfer

PROBE_SECONDS = 120.0
"""For the table of packets. Decoding everything is limited like reading: by its progress."""

MAX_SIDE = 16384
MAX_FRAMES = 10_000_000
SEEK_BACK = (0.0, 10.0, 60.0)
"""Where to seek, in seconds before the wanted frame, until a seek arrives early enough."""

# One packet, one shown frame. Others hide reference frames (VP8) or skip frames (MPEG-4).
_FRAME_PER_PACKET = {"h264", "hevc", "av1", "vp9", "mjpeg", "prores", "ffv1", "dnxhd", "rawvideo"}
_DISCARDED = 0x4
_HEAD_FRAMES = 32

_TRANSFERS: dict[str, Transfer] = {"smpte2084": "pq", "arib-std-b67": "hlg"}
# what decoders say of a start between keyframes, in files that are as they should be
_OF_A_SEEK = re.compile(r"\b(ref|refs|reference|mmco|POC)\b")
_NO_FORMAT = ("not on whitelist", "Error opening input: Invalid data", "Not detecting m3u8")

_IMAGE_STARTS = (
    rb"\x89PNG",
    rb"\xff\xd8\xff",
    rb"RIFF....WEBP",
    rb"BM....\0\0\0\0",
    rb"II[*+]\0|MM\0[*+]",
    rb"P[1-6]\s",
    rb"\0\0\0\x0cJXL |\xff\x0a",
    rb"\0\0\0\x0cjP  ",
    rb"....ftyp(avi[fs]|hei[cfmsx]|hev[cmsx]|mif1|msf1)",
)


@dataclass
class _Table:
    """Lines of a framecrc output: (pts, checksum) in the order in which they came."""

    rows: list[tuple[int, str]]
    time_base: Fraction = Fraction(1)
    codec: str = ""
    width: int = 0
    height: int = 0
    pixel_aspect: Fraction = Fraction(1)
    reason: str = ""

    @property
    def pts(self) -> list[int]:
        return [pts for pts, _ in self.rows]


def probe(file: str | Path) -> Source:
    """Read what a video or image file holds. The content decides, never the extension.

    A folder or a zip of images is a video, and so is an animated image. Raises UserError when the
    file is missing, is none of these, or has no frame that can be decoded.
    """
    path = _local_path(file)
    _check_is_there(path)
    if path.is_dir() or is_zip(path):
        return probe_images(path)
    if _is_image(path):
        try:
            return probe_image(path)
        except AnimatedError:
            return probe_animation(path)
    table, seekable = _frame_table(path)
    if table.width > MAX_SIDE or table.height > MAX_SIDE or table.width * table.height > MAX_PIXELS:
        raise UserError(
            f"{display_name(path)} has frames of {table.width}x{table.height} pixels; the limit is "
            f"{MAX_SIDE} a side and {MAX_PIXELS} in all: scale it down first"
        )
    with opened(path) as content:
        if content.read(4) == b"GIF8" and len(table.rows) == 1:
            return probe_image(path)
        content.seek(0)
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    pts = tuple(table.pts)
    duration = (pts[-1] - pts[0]) * table.time_base
    return Source(
        path=path,
        sha256=sha256,
        width=table.width,
        height=table.height,
        time_base=table.time_base,
        pts=pts,
        frame_rate=(len(pts) - 1) / duration if duration else Fraction(1),
        seekable=seekable,
        pixel_aspect=table.pixel_aspect,
        transfer=_transfer(path),
        damage=table.reason,
    )


def _local_path(file: str | Path) -> Path:
    path = local_path(file)
    if path is None:
        raise UserError(f"{shown_address(file)}: has to be fetched first, with masklet.fetch")
    return path


def _check_is_there(path: Path) -> None:
    """Raise UserError for what is neither a file nor a folder."""
    name = display_name(path)
    try:
        path.lstat()
    except OSError as error:  # also of a name that is too long for the file system
        raise UserError(f"{name[:100]} cannot be read ({error.strerror}): check the path") from None
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{name} is not a regular file: give the path of a video file")


def _is_image(path: Path) -> bool:
    """Whether a file begins as an image does."""
    with opened(path) as content:
        head = content.read(64)
    if not head:
        raise UserError(f"{display_name(path)} is empty: was it copied completely?")
    return any(re.match(start, head, re.DOTALL) for start in _IMAGE_STARTS)


def _frame_table(path: Path) -> tuple[_Table, bool]:
    """The frames that can be decoded, and whether a seek finds them under the same pts."""
    packets = _packets(path)
    head = _frames(path, count=_HEAD_FRAMES)
    if not head.rows:
        raise _no_frame_error(path, head.reason or packets.reason)
    packets.width, packets.height = head.width, head.height
    packets.pixel_aspect = head.pixel_aspect
    pts = packets.pts
    if (
        packets.codec in _FRAME_PER_PACKET
        and packets.time_base == head.time_base
        and pts[:_HEAD_FRAMES] == head.pts
        and len(set(pts)) == len(pts)
    ):
        end = _end(path, packets)
        if end.rows and pts[-len(end.rows) :] == end.pts:
            if not _OF_A_SEEK.search(end.reason):
                packets.reason = packets.reason or end.reason
            return packets, True
    frames = _frames(path)
    frames.reason = packets.reason or frames.reason
    _keep_increasing(path, frames)
    end = _end(path, frames)
    return frames, bool(end.rows) and frames.rows[-len(end.rows) :] == end.rows


def _packets(path: Path) -> _Table:
    """The packets that are meant to be shown, in presentation order; sizes are not known yet."""
    output = ffmpeg.output(
        video_input(), "pipe:", f="framecrc", codec="copy", copyinkf=None, flush_packets=1
    )
    with (
        reported(path),
        opened(path) as file,
        Child(command(output), stdin=file) as child,  # a large file takes long to read
    ):
        table = _table(path, child.lines(child.stdout))
        child.finish()
        table.reason = child.reason()
    table.rows.sort()
    return table


def _frames(path: Path, *, seek: float | None = None, count: int | None = None) -> _Table:
    """The first `count` frames that the decoder gives, in its order and under its times."""
    options = {} if count is None else {"frames:v": count}
    limit = None if count is None else PROBE_SECONDS
    with (
        reported(path),
        decoder(path, seek=seek, limit=limit, f="framecrc", flush_packets=1, **options) as (
            child,
            times,
        ),
    ):
        table = _table(path, child.lines(child.stdout), times)
        child.finish()
        table.reason = child.reason()
    return table


def _end(path: Path, table: _Table) -> _Table:
    """The frames that a seek to the last one of the table arrives at; none when it fails."""
    for back in SEEK_BACK:
        seek = float(table.rows[-1][0] * table.time_base) - back
        end = _frames(path, seek=seek)
        if end.rows:
            break
    return end


def _keep_increasing(path: Path, table: _Table) -> None:
    """Leave out frames that are never shown, since the next one has the same time."""
    rows = table.rows
    for index, ((before, _), (pts, _)) in enumerate(pairwise(rows), start=1):
        if pts < before:
            raise UserError(
                f"the presentation times of {display_name(path)} run backwards at frame {index} "
                "(were files joined?): re-encode it first (ffmpeg -i IN OUT.mp4)"
            )
    table.rows = [row for index, row in enumerate(rows) if not index or row[0] > rows[index - 1][0]]


def _table(path: Path, lines: Iterator[str], times: Iterator[int] | None = None) -> _Table:
    """Parse framecrc output; `times` are the true pts of decoded frames, which a muxer may bend."""
    table = _Table([])
    for line in lines:
        if line.startswith("#"):
            name, _, value = line[1:].partition(" 0: ")
            if name == "tb":
                table.time_base = Fraction(value)
            elif name == "codec_id":
                table.codec = value
            elif name == "dimensions":
                table.width, table.height = map(int, value.split("x"))
            elif name == "sar":
                width, height = map(int, value.split("/"))
                table.pixel_aspect = Fraction(width, height) if width and height else Fraction(1)
            continue
        _, _, pts, _, _, checksum, *more = (field.strip() for field in line.split(","))
        flags = next((int(field[2:], 16) for field in more if field.startswith("F=")), 0)
        shown = int(pts) if times is None else next(times, None)
        if shown is None or flags & _DISCARDED:
            continue
        table.rows.append((shown, checksum))
        if len(table.rows) > MAX_FRAMES:
            raise UserError(f"{display_name(path)} has over {MAX_FRAMES} frames: cut it into parts")
    return table


def _transfer(path: Path) -> Transfer:
    """By what ffmpeg says of the first frame; standard where it says nothing."""
    output = ffmpeg.output(video_input(), "-", f="null", **{"frames:v": 1})
    with (
        reported(path),
        opened(path) as file,
        Child(command(output, loglevel="info"), stdin=file, limit=PROBE_SECONDS) as child,
    ):
        child.finish()
        # of the output's stream: yuv420p10le(tv, bt2020nc/bt2020/smpte2084, progressive)
        colours = re.findall(r"Video: wrapped_avframe, \w+\(([^)]*)\)", child.said)
    if not colours:
        return "sdr"
    return next((name for sign, name in _TRANSFERS.items() if sign in colours[-1]), "sdr")


def _no_frame_error(path: Path, reason: str) -> UserError:
    name = display_name(path)
    if "matches no streams" in reason:
        return UserError(f"{name} holds no video, only sound or other data: give a video file")
    if any(sign in reason for sign in _NO_FORMAT):
        return UserError(
            f"{name} is not a video or image in a format that masklet reads, such as mp4 or png"
        )
    because = f" (ffmpeg: {reason})" if reason else ""
    return UserError(f"no frame of {name} can be decoded{because}: is the file complete?")
