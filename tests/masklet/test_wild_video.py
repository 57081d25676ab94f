"""Video as it is in the wild, made with ffmpeg: every frame carries its number in its pixels."""

import json
import os
import re
import subprocess
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from masklet.errors import UserError
from masklet.job import SegmentJob, make_job
from masklet.media import Source, probe, process, read_frames, sound_of
from masklet.media.encode import Timing
from masklet.media.process import opened
from masklet.models import find_model
from masklet.pipeline import run_job
from masklet.plan import plan_job
from masklet.price import price_of
from tests.masklet.test_media import (
    FRAMES,
    HEIGHT,
    RAW,
    WIDTH,
    X264,
    ffmpeg,
    make,
    number,
    numbers,
    picture,
)

CLICK = {"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}
FEW = b"".join(picture(n).tobytes() for n in range(30))
LOSSLESS = ("-c:v", "ffv1")


def check_all(source: Source, shown: list[int] | None = None, *, rate: float = 25) -> None:
    """Which frames there are, when, and in which order, forwards and backwards."""
    shown = list(range(FRAMES)) if shown is None else shown
    assert source.num_frames == len(shown)
    assert numbers(source, range(source.num_frames)) == shown
    assert numbers(source, range(source.num_frames - 1, -1, -1)) == shown[::-1]
    times = [source.timestep(index) for index in range(source.num_frames)]
    assert times == pytest.approx([(n - shown[0]) / rate for n in shown], abs=2e-3)


def said_by_ffmpeg(path: Path) -> str:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stderr


# Geometry


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_is_applied(degrees: int, tmp_path: Path) -> None:
    upright, rotated = make(tmp_path / "u.mp4", *X264, raw=FEW), tmp_path / "r.mp4"
    ffmpeg("-display_rotation", str(degrees), "-i", upright, "-c", "copy", rotated)
    source = probe(rotated)
    expected = (WIDTH, HEIGHT) if degrees == 180 else (HEIGHT, WIDTH)
    assert (source.width, source.height) == expected
    for index, image in read_frames(source, [0, 7, 29]):
        # display_rotation is counter-clockwise
        assert number(np.rot90(image, -degrees // 90)) == index


def test_prompts_and_outputs_of_a_rotated_video_are_upright(tmp_path: Path) -> None:
    upright, rotated = make(tmp_path / "u.mp4", *X264, raw=FEW), tmp_path / "r.mp4"
    ffmpeg("-display_rotation", "90", "-i", upright, "-c", "copy", rotated)
    last = {**CLICK, "points": [[HEIGHT - 1, WIDTH - 1]]}
    outputs = run_job(job(rotated, prompts=[last], end_frame=1, debug_masks=True), tmp_path / "o")
    assert (outputs.summary["width"], outputs.summary["height"]) == (HEIGHT, WIDTH)
    video = probe(outputs.files["debug_masks"])
    assert (video.width, video.height) == (HEIGHT, WIDTH)
    sideways = {**CLICK, "points": [[WIDTH - 1, HEIGHT - 1]]}
    with pytest.raises(UserError, match="outside the frame of 96x128"):
        run_job(job(rotated, prompts=[sideways]), tmp_path / "o2")


def test_pixels_that_are_not_square_stay_as_stored(tmp_path: Path) -> None:
    source = probe(make(tmp_path / "wide.mp4", *X264, "-vf", "setsar=4/3", raw=FEW))
    assert (source.width, source.height, source.pixel_aspect) == (WIDTH, HEIGHT, Fraction(4, 3))
    check_all(source, list(range(30)))
    video = debug_video(source, tmp_path, end_frame=2)
    assert (probe(video).width, probe(video).pixel_aspect) == (WIDTH, Fraction(4, 3))


@pytest.mark.parametrize(("width", "height"), [(127, 96), (128, 95), (127, 95)])
def test_odd_sizes(width: int, height: int, tmp_path: Path) -> None:
    crop = ("-vf", f"format=gbrp,crop={width}:{height}:0:0:exact=1")
    source = probe(make(tmp_path / "odd.mkv", *crop, *LOSSLESS, raw=FEW))
    assert (source.width, source.height) == (width, height)
    for index, image in read_frames(source, [0, 29]):
        np.testing.assert_array_equal(image, picture(index)[:height, :width])
    video = probe(debug_video(source, tmp_path, end_frame=2))
    assert (video.width, video.height) == (width + width % 2, height + height % 2)


def test_frames_of_8k(tmp_path: Path) -> None:
    path = make(
        tmp_path / "8k.mp4", "-vf", "scale=7680:5760:flags=neighbor", *X264, "-frames:v", "3"
    )
    source = probe(path)
    assert (source.width, source.height, source.num_frames) == (7680, 5760, 3)
    for index, image in read_frames(source, [2]):
        assert number(image[::60, ::60]) == index


# Time


def test_variable_frame_rate(tmp_path: Path) -> None:
    kept = [n for n in range(FRAMES) if n % 10 in (0, 1, 4)]
    chosen = ("-vf", "select='eq(mod(n,10),0)+eq(mod(n,10),1)+eq(mod(n,10),4)'")
    source = probe(make(tmp_path / "vfr.mp4", *chosen, "-fps_mode", "vfr", *X264, "-bf", "2"))
    check_all(source, kept)
    spec = find_model("nano")
    plan = plan_job(job(source.path), source)
    assert len(plan.frame_indices) == len(kept)
    assert price_of(job(source.path), plan, spec).frames == len(kept)
    video = probe(debug_video(source, tmp_path))
    assert [video.timestep(n) for n in range(video.num_frames)] == pytest.approx(
        [source.timestep(n) for n in range(source.num_frames)], abs=1e-6
    )
    assert numbers(video, range(video.num_frames)) == kept


def test_the_debug_video_of_every_third_frame_keeps_its_times(tmp_path: Path) -> None:
    source = probe(make(tmp_path / "x.mp4", *X264, raw=FEW))
    video = probe(debug_video(source, tmp_path, start_frame=4, frame_interval=3))
    assert numbers(video, range(video.num_frames)) == list(range(4, 30, 3))
    assert video.timestep(video.num_frames - 1) == pytest.approx(24 / 25)


@pytest.mark.parametrize("rate", [1, 240])
def test_frame_rates(rate: int, tmp_path: Path) -> None:
    times = ("-vf", f"settb=1/{rate},setpts=N", "-fps_mode", "passthrough")
    path = make(tmp_path / "x.mp4", *times, "-enc_time_base", f"1/{rate}", *X264, raw=FEW)
    source = probe(path)
    check_all(source, list(range(30)), rate=rate)
    assert source.frame_rate == rate
    assert probe(debug_video(source, tmp_path)).frame_rate == rate


def test_b_frames_with_an_edit_list_and_a_late_start(tmp_path: Path) -> None:
    whole = make(tmp_path / "w.mp4", *X264, "-g", "50", "-bf", "3")
    late = tmp_path / "late.mp4"
    ffmpeg("-itsoffset", "7.5", "-i", whole, "-c", "copy", late)
    check_all(probe(late))
    cut = tmp_path / "cut.mp4"
    ffmpeg("-ss", "2.6", "-i", whole, "-c", "copy", cut)
    assert b"elst" in cut.read_bytes()
    source = probe(cut)
    shown = numbers(source, range(source.num_frames))
    assert shown == list(range(shown[0], FRAMES))
    assert shown[0] in (65, 66)
    check_all(source, shown)


def test_a_wrong_frame_count_in_the_header(tmp_path: Path) -> None:
    path = make(tmp_path / "x.avi", "-c:v", "mpeg4", "-q:v", "2")
    content = bytearray(path.read_bytes())
    main, stream = content.index(b"avih") + 8 + 16, content.index(b"strh") + 8 + 32
    for at in (main, stream):
        assert int.from_bytes(content[at : at + 4], "little") == FRAMES
        content[at : at + 4] = (7).to_bytes(4, "little")
    path.write_bytes(content)
    check_all(probe(path))


def test_no_frame_count_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "live.mkv"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "rawvideo"]
    command += ["-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", "25", "-i", "-", *X264]
    # to a pipe, so that nothing can be written into the header afterwards
    done = subprocess.run([*command, "-f", "matroska", "-"], input=RAW, capture_output=True)
    path.write_bytes(done.stdout)
    check_all(probe(path))


@pytest.mark.parametrize("count", [1, 2])
def test_one_frame_and_two(count: int, tmp_path: Path) -> None:
    source = probe(make(tmp_path / "x.mp4", *X264, "-frames:v", str(count)))
    check_all(source, list(range(count)))
    outputs = run_job(job(source.path, debug_masks=True, bbox_tracking=True), tmp_path / "o")
    assert outputs.summary["frames"] == count
    assert probe(outputs.files["debug_masks"]).num_frames == count


def test_a_first_frame_that_is_no_key_frame(tmp_path: Path) -> None:
    options = (*X264, "-g", "25", "-sc_threshold", "0")
    whole = make(tmp_path / "w.ts", *options).read_bytes()
    path = tmp_path / "tail.ts"
    path.write_bytes(whole[len(whole) // 10 // 188 * 188 :])
    source = probe(path)
    shown = numbers(source, range(source.num_frames))
    assert shown == list(range(25, FRAMES))
    check_all(source, shown)


def test_ten_frames_of_three_hours_are_reached_by_seeks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, path = make(tmp_path / "m.mp4", *X264, "-g", "25", "-bf", "2"), tmp_path / "long.mp4"
    ffmpeg("-stream_loop", "2699", "-i", part, "-c", "copy", path)
    source, size = probe(path), path.stat().st_size
    assert source.num_frames == 2700 * FRAMES
    assert source.timestep(source.num_frames - 1) == pytest.approx(3 * 3600, abs=1)
    files: list[int] = []

    def noting(path: Path) -> Any:
        file = opened(path)
        files.append(os.dup(file.fileno()))  # has the same position, which the decoder moves
        return file

    monkeypatch.setattr(process, "opened", noting)
    wanted = list(range(20_013, 270_000, 25_000))
    assert len(wanted) == 10
    for (index, image), at in zip(read_frames(source, wanted), wanted, strict=True):
        assert (index, number(image)) == (at, at % FRAMES)
        assert os.lseek(files[-1], 0, os.SEEK_CUR) / size < at / source.num_frames + 0.02
    assert len(files) == len(wanted)
    for descriptor in files:
        os.close(descriptor)


# Damage


TRUNCATED: dict[str, tuple[str, ...]] = {
    "t.mkv": X264,
    "t.mp4": (*X264, "-movflags", "+faststart"),
    "t.avi": ("-c:v", "mjpeg"),
    "t.mpg": ("-c:v", "mpeg2video"),
    "t.flv": X264,
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_a_truncated_file(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make(tmp_path / name, *TRUNCATED[name], "-g", "25")
    whole = path.read_bytes()
    assert probe(path).damage == ""
    path.write_bytes(whole[: len(whole) * 6 // 10 + 1])
    source = probe(path)
    assert source.damage
    assert 30 < source.num_frames < 80
    outputs = run_job(job(path, end_frame=1), tmp_path / "o")
    said = f"{name} is damaged (ffmpeg: {source.damage}); {source.num_frames} frames can be decoded"
    assert said in caplog.text
    assert json.loads((tmp_path / "o" / "outputs.json").read_text())["summary"]["damage"]
    assert outputs.summary["damage"] == source.damage
    rows = pq.read_table(tmp_path / "o" / "manifest.parquet").to_pylist()
    [error] = [row["error"] for row in rows if row["stage"] == "ingest"]
    assert error == f"the source is damaged: {source.damage}"
    # a rerun knows it without decoding anything
    assert run_job(job(path, end_frame=1), tmp_path / "o").summary == outputs.summary
    with pytest.raises(UserError, match=r"is damaged .* leave out strict") as raised:
        run_job(job(path, strict=True), tmp_path / "o2")
    assert said in str(raised.value)
    assert not (tmp_path / "o2").exists()


# Colour


def test_10_bit_and_444(tmp_path: Path) -> None:
    for name, options in {
        "ten.mkv": (*LOSSLESS, "-pix_fmt", "yuv420p10le"),
        "full.mp4": (*X264[:4], "-pix_fmt", "yuv444p"),
        "ten444.mkv": (*LOSSLESS, "-pix_fmt", "yuv444p10le"),
        "twelve.mkv": (*LOSSLESS, "-pix_fmt", "gbrp12le"),
    }.items():
        source = probe(make(tmp_path / name, *options, raw=FEW))
        assert source.transfer == "sdr"
        check_all(source, list(range(30)))
        [(_, image)] = read_frames(source, [9])
        assert np.abs(image.astype(int) - picture(9)).mean() < (16 if "420" in str(options) else 6)


def colours() -> NDArray[np.uint8]:
    """Grey steps from black to white, and red, green, blue at half of it."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for step in range(8):
        image[:48, step * 16 : step * 16 + 16] = step * 255 // 7
    for channel in range(3):
        image[48:, channel * 32 : channel * 32 + 32, channel] = 128
    return image


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_high_dynamic_range_looks_as_on_a_screen(transfer: str, tmp_path: Path) -> None:
    to_hdr = (
        "format=yuv444p,setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv,"
        "zscale=t=linear:npl=203,format=gbrpf32le,"
        f"zscale=p=bt2020:t={transfer}:m=bt2020nc:r=tv:npl=203,format=yuv444p10le"
    )
    said = ("-color_primaries", "bt2020", "-color_trc", transfer, "-colorspace", "bt2020nc")
    x265 = f"log-level=0:crf=4:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    raw = colours().tobytes() * 5
    options = ("-sws_flags", "accurate_rnd", "-vf", f"scale=out_color_matrix=bt709,{to_hdr}")
    path = make(
        tmp_path / "hdr.mp4", *options, "-c:v", "libx265", "-x265-params", x265, *said, raw=raw
    )
    source = probe(path)
    assert source.transfer == ("pq" if transfer == "smpte2084" else "hlg")
    [(_, image)] = read_frames(source, [3])
    inner = (slice(8, 40), slice(4, None, 16))
    found, true = image[inner].mean((0, 2)), colours()[inner].mean((0, 2))
    assert np.all(np.diff(found) > 8)  # no two steps become one
    assert np.abs(found - true)[:6].max() < 14  # greys up to the brightest stay what they are
    for channel in range(3):
        patch = image[60:84, channel * 32 + 8 : channel * 32 + 24].mean((0, 1))
        others = np.delete(patch, channel)
        assert patch[channel] > 90
        assert others.max() < 50


def test_interlaced_frames_are_taken_as_stored(tmp_path: Path) -> None:
    options = (*X264, "-vf", "setfield=tff", "-flags", "+ilme+ildct", "-x264opts", "tff=1")
    path = make(tmp_path / "i.mkv", *options, raw=FEW)
    assert "top" in said_by_ffmpeg(path)
    check_all(probe(path), list(range(30)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("alpha.webm", ("-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", "-deadline", "realtime")),
        ("alpha.mov", ("-c:v", "prores_ks", "-profile:v", "4444", "-pix_fmt", "yuva444p10le")),
    ],
)
def test_alpha_is_left_out(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    half = ("-vf", "format=rgba,colorchannelmixer=aa=0.5")
    path = make(tmp_path / name, *half, *options, raw=FEW)
    check_all(probe(path), list(range(30)))


# Streams


def test_of_several_video_streams_the_first_counts(tmp_path: Path) -> None:
    first = make(tmp_path / "a.mp4", *X264, raw=FEW)
    second = make(tmp_path / "b.mp4", *X264, "-vf", "negate,scale=64:48")
    both = tmp_path / "both.mkv"
    ffmpeg("-i", first, "-i", second, "-map", "0", "-map", "1", "-c", "copy", both)
    source = probe(both)
    assert (source.width, source.height) == (WIDTH, HEIGHT)
    check_all(source, list(range(30)))


@pytest.mark.parametrize("name", ["sound.m4a", "subtitles.mkv"])
def test_no_video_at_all(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "sound.m4a":
        ffmpeg("-f", "lavfi", "-i", "sine=d=1", path)
    else:
        (tmp_path / "s.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nhello\n")
        ffmpeg("-i", tmp_path / "s.srt", path)
    with pytest.raises(UserError, match="holds no video, only sound or other data"):
        probe(path)


# The debug video's sound


def with_sound(tmp_path: Path, *options: str) -> Path:
    """Frames with a tone that begins with frame 50, after two seconds of silence."""
    silent = make(tmp_path / "silent.mp4", *X264, "-g", "25", "-bf", "2")
    path = tmp_path / "sound.mp4"
    tone = "aevalsrc='if(lt(t,2),0,0.5*sin(2*PI*1000*t))':d=4:s=48000"
    ffmpeg(*options, "-i", silent, "-f", "lavfi", "-i", tone, "-c:v", "copy", "-c:a", "aac", path)
    return path


def samples(path: Path) -> NDArray[np.float32]:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(path)]
    command += ["-map", "0:a:0", "-ac", "1", "-ar", "8000", "-f", "f32le", "-"]
    return np.frombuffer(subprocess.run(command, capture_output=True).stdout, np.float32)


def test_the_debug_video_has_the_sound_of_its_frames(tmp_path: Path) -> None:
    source = probe(with_sound(tmp_path))
    heard = samples(debug_video(source, tmp_path, start_frame=25, end_frame=74))
    assert len(heard) / 8000 == pytest.approx(2, abs=0.1)
    onset = float(np.flatnonzero(np.abs(heard) > 0.1)[0]) / 8000
    assert onset == pytest.approx(1, abs=0.05)  # a second after frame 25 comes frame 50


@pytest.mark.parametrize("layout", ["7.1.4", "quad", "9 channels"])
def test_sound_of_channels_that_no_browser_knows_is_mixed_down_or_left_out(
    layout: str, tmp_path: Path
) -> None:
    silent = make(tmp_path / "silent.mp4", *X264, raw=FEW)
    channels = {"7.1.4": 12, "quad": 4, "9 channels": 9}[layout]
    tone = "|".join(["sin(2*PI*440*t)"] * channels)
    given = "" if layout == "9 channels" else f":c={layout}"
    path = tmp_path / "sound.mov"
    sound = ("-f", "lavfi", "-i", f"aevalsrc='{tone}':d=1:s=48000{given}")
    ffmpeg("-i", silent, *sound, "-c:v", "copy", "-c:a", "pcm_s16le", path)
    said = said_by_ffmpeg(debug_video(probe(path), tmp_path))
    known = {"7.1.4": "7.1", "quad": "quad"}
    assert (f"Hz, {known[layout]}" in said) if layout in known else ("Audio" not in said)


def test_times_too_fine_for_mp4_are_made_coarser(tmp_path: Path) -> None:
    ffmpeg(
        *("-f", "lavfi", "-i", "testsrc=s=64x64:r=2:d=4", *X264),
        *("-video_track_timescale", "1000000000", tmp_path / "fine.mp4"),
    )
    source = probe(tmp_path / "fine.mp4")
    assert source.time_base == Fraction(1, 10**9)
    made = probe(debug_video(source, tmp_path, frame_interval=2))
    assert [made.timestep(index) for index in range(made.num_frames)] == [0, 1, 2, 3]


@given(
    st.lists(st.integers(1, 2**40), max_size=20),
    st.sampled_from([1, 1000, 90_000, 1_000_003, 10**9]),
)
def test_coarser_times_still_rise_and_fit(gaps: list[int], base: int) -> None:
    pts = (0, *accumulate(gaps))
    made = Timing.of(SimpleNamespace(time_base=Fraction(1, base), pts=pts), range(len(pts)))
    assert all(after > before for before, after in pairwise(made.pts))
    if max(gaps, default=0) * Fraction(1, base) < 86_400:
        assert max((b - a for a, b in pairwise(made.pts)), default=0) < 2**29
    if max(gaps, default=0) < 2**29:
        assert (made.time_base, tuple(made.pts)) == (Fraction(1, base), pts)
    for own, ours in zip(pts, made.pts, strict=True):
        assert abs(Fraction(own, base) - ours * made.time_base) <= len(pts) * made.time_base


def test_a_source_without_sound_or_with_what_is_none(tmp_path: Path) -> None:
    silent = probe(make(tmp_path / "silent.mp4", *X264, raw=FEW))
    assert sound_of(silent, range(30)) is None
    assert "Audio" not in said_by_ffmpeg(debug_video(silent, tmp_path))
    early = probe(with_sound(tmp_path))
    cut = tmp_path / "short.mkv"
    ffmpeg("-i", early.path, "-map", "0", "-c:v", "copy", "-af", "atrim=end=1", cut)
    assert sound_of(probe(cut), range(75, 100)) is None  # there is sound, but not there


def test_the_debug_video_plays_in_browsers(tmp_path: Path) -> None:
    video = debug_video(probe(with_sound(tmp_path)), tmp_path, end_frame=9)
    said = said_by_ffmpeg(video)
    assert re.search(r"Video: h264 \(High\) \(avc1.*yuv420p\(tv, bt709", said)
    assert "Audio: aac (LC)" in said
    content = video.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


# Helpers


def job(path: Path, **fields: Any) -> SegmentJob:
    return make_job({"file": str(path), "model_type": "nano", "prompts": [CLICK], **fields})


def debug_video(source: Source, tmp_path: Path, **fields: Any) -> Path:
    """Made by a whole run."""
    first = max(0, fields.get("start_frame", 0))
    prompts = [{**CLICK, "frame_index": first}]
    given = job(source.path, prompts=prompts, debug_masks=True, **fields)
    return Path(run_job(given, tmp_path / "debug").files["debug_masks"])
