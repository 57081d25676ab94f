"""Images as a video: folders and zips of them, and animations. Frames carry their numbers."""

import io
import json
import os
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from masklet import fetch
from masklet.dataset import read_dataset
from masklet.errors import UserError
from masklet.job import SegmentJob, make_job
from masklet.media import (
    AnimationSource,
    ImageSource,
    ImagesSource,
    image_child,
    images,
    probe,
    read_frames,
)
from masklet.media.images import natural_order
from masklet.pipeline import run_job
from masklet.status import read_status
from tests.masklet.conftest import Eye, files_of
from tests.masklet.test_media import HEIGHT, WIDTH, number, numbers, picture

CLICK: dict[str, Any] = {"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}
NAMES = ("frame10.png", "frame2.png", "frame1.png", "frame0009.png")
IN_ORDER = ("frame1.png", "frame2.png", "frame0009.png", "frame10.png")

Build = Callable[[Path], Path]


def encoded(index: int, format: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture(index)).save(stream, format, **options)
    return stream.getvalue()


FRAMES = {name: encoded(IN_ORDER.index(name)) for name in NAMES}


def folder_of(path: Path, contents: dict[str, bytes] = FRAMES) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


def zip_of(
    path: Path,
    entries: Sequence[tuple[str | zipfile.ZipInfo, bytes]] = tuple(FRAMES.items()),
    compression: int = zipfile.ZIP_DEFLATED,
) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of two entries with one name
        for name, content in entries:
            archive.writestr(name, content)
    return path


def job(path: Path, **fields: Any) -> SegmentJob:
    return make_job({"file": str(path), "model_type": "nano", "prompts": [CLICK], **fields})


def read_all(path: Path) -> None:
    source = probe(path)
    list(read_frames(source, range(source.num_frames)))


def check_result_or_one_line(path: Path) -> None:
    line = ""
    try:
        read_all(path)
    except UserError as error:
        line = str(error)
    assert not line or line.isprintable()
    assert list(path.parent.iterdir()) == [path]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_all(path)
    line = str(raised.value)
    assert line.startswith(path.name)
    assert line.isprintable()
    assert len(line) < 400
    return line


# Folders and zips


@pytest.mark.parametrize("build", [folder_of, zip_of])
def test_frames_are_in_the_order_people_count(build: Build, tmp_path: Path) -> None:
    source = probe(build(tmp_path / "video.mp4"))
    assert isinstance(source, ImagesSource)
    assert source.names == IN_ORDER
    assert (source.width, source.height, source.num_frames) == (WIDTH, HEIGHT, 4)
    assert numbers(source, [0, 1, 2, 3]) == [0, 1, 2, 3]
    assert numbers(source, [3, 1]) == [3, 1]
    assert [source.timestep(index) for index in (0, 3)] == [0, 3 / 24]
    assert source.frame_rate == 24


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**30), st.integers(0, 3))))
def test_numbers_in_names_count_as_numbers(parts: list[tuple[str, int, int]]) -> None:
    named = {f"{word}{'0' * zeros}{count}.png": (word, count) for word, count, zeros in parts}
    ordered = [named[name] for name in sorted(named, key=natural_order)]
    assert ordered == sorted(ordered)


def test_the_order_of_odd_names_is_the_same_whichever_came_first() -> None:
    names = ["", "1", "01", "1a", "a1", "A1", "²", "é", "x" + "9" * 5000, "x" + "9" * 4999 + "8"]
    ordered = sorted(names, key=natural_order)
    names.reverse()
    assert sorted(names, key=natural_order) == ordered


def test_images_of_any_kind_upright_and_opaque(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = io.BytesIO()
    Image.fromarray(np.rot90(picture(1))).save(stored, "PNG", exif=exif)
    clear = io.BytesIO()
    Image.fromarray(picture(2)).convert("RGBA").save(clear, "WEBP", lossless=True)
    contents = {"0.jpg": encoded(0, "JPEG"), "1.png": stored.getvalue(), "2": clear.getvalue()}
    source = probe(folder_of(tmp_path / "mixed", contents | {"3.bmp": encoded(3, "BMP")}))
    assert numbers(source, range(4)) == [0, 1, 2, 3]


def test_what_systems_leave_in_folders_and_zips_does_not_count(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder")
    plain = probe(folder).sha256
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "out").mkdir()
    assert probe(folder).num_frames == 4
    assert probe(folder).sha256 == plain
    (folder / "Thumbs.db").write_bytes(b"x")
    assert probe(folder).num_frames == 4
    assert probe(folder).sha256 == plain
    left = {"clip/": b"", "clip/.DS_Store": b"x", "__MACOSX/clip/._frame1.png": b"x"}
    inside = {f"clip/{name}": content for name, content in FRAMES.items()}
    source = probe(zip_of(tmp_path / "mac.zip", tuple((left | inside).items())))
    assert numbers(source, range(4)) == [0, 1, 2, 3]


def test_one_image_in_a_folder_is_a_video_of_one_frame(tmp_path: Path) -> None:
    source = probe(folder_of(tmp_path / "one", {"a.png": encoded(7)}))
    assert (numbers(source, [0]), source.frame_rate) == ([7], Fraction(1))


def test_names_in_no_encoding(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "x")
    (path / os.fsdecode(b"frame3\xff.png")).write_bytes(encoded(5))
    source = probe(path)
    assert numbers(source, range(5)) == [0, 1, 5, 2, 3]
    run_job(job(path), tmp_path / "out")


def test_names_and_content_are_the_identity(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a")
    plain = probe(folder).sha256
    assert probe(folder_of(tmp_path / "b")).sha256 == plain
    (folder / "frame1.png").rename(folder / "frame3.png")
    assert probe(folder).sha256 != plain
    (folder / "frame3.png").rename(folder / "frame1.png")
    assert probe(folder).sha256 == plain
    (folder / "frame1.png").write_bytes(encoded(9))
    assert probe(folder).sha256 != plain


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("3.png", b"no image", "3.png in it is damaged, or no image"),
        ("notes.txt", b"read me", "notes.txt in it is damaged, or no image"),
        ("3.png", b"", "3.png in it is damaged, or no image"),
        ("3.png", encoded(3)[:-100], "3.png in it cannot be decoded"),
    ],
)
@pytest.mark.parametrize("build", [folder_of, zip_of])
def test_what_is_no_image_is_named(
    build: Build, name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    contents = {**FRAMES, name: content}
    path = tmp_path / "x"
    folder_of(path, contents) if build is folder_of else zip_of(path, tuple(contents.items()))
    assert words in refusal(path)


def test_images_of_several_sizes(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.new("RGB", (9, 8)).save(small, "PNG")
    path = folder_of(tmp_path / "x", FRAMES | {"frame4.png": small.getvalue()})
    words = f"frame4.png in it has 9x8 pixels, but the first image has {WIDTH}x{HEIGHT}"
    assert words in refusal(path)


def test_an_animation_is_no_frame(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "x", FRAMES | {"z.webp": animation("WEBP")})
    assert "z.webp in it is an animation" in refusal(path)


def test_a_folder_or_zip_without_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is a folder with no images in it" in refusal(tmp_path / "empty")
    assert "is a zip with no images in it" in refusal(zip_of(tmp_path / "empty.zip", ()))


def test_what_is_no_regular_file_in_a_folder(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "x")
    os.mkfifo(path / "z.png")
    assert "z.png in it is not a regular file" in refusal(path)
    (path / "z.png").unlink()
    (path / "z.png").symlink_to("nowhere")
    assert "z.png in it is not a regular file" in refusal(path)


def test_images_that_change_after_they_were_looked_at(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "x")
    source = probe(path)
    (path / "frame2.png").unlink()
    with pytest.raises(UserError, match=r"frame2\.png in it is not a regular file"):
        list(read_frames(source, [0, 1]))


# Hostile zips


def link(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = 0o120777 << 16
    return entry


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (("../5.png", encoded(4)), "has a name that leads elsewhere"),
        (("/5.png", encoded(4)), "has a name that leads elsewhere"),
        (("a/../5.png", encoded(4)), "has a name that leads elsewhere"),
        (("..\\5.png", encoded(4)), "has a name that leads elsewhere"),
        ((link("5.png"), b"/etc/passwd"), "5.png in it is a link"),
        (("frame1.png", encoded(4)), "frame1.png in it is there twice"),
        (("other/5.png", encoded(4)), "images in several folders, . and other"),
        (("5.png", bytes(2**25)), "m.zip unpacks to over 200 times its size"),
        (("\x1b[2J\n.png", b"x"), "?[2J?.png in it is damaged, or no image"),
    ],
)
def test_an_entry_that_is_hostile(
    entry: tuple[str | zipfile.ZipInfo, bytes], words: str, tmp_path: Path
) -> None:
    path = zip_of(tmp_path / "m.zip", (*FRAMES.items(), entry))
    assert words in refusal(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_unusual_packing_is_refused(compression: int, tmp_path: Path) -> None:
    path = zip_of(tmp_path / "m.zip", compression=compression)
    assert "is packed in an unusual way" in refusal(path)


def flagged(content: bytes, signature: bytes, at: int) -> bytes:
    changed = bytearray(content)
    start = 0
    while (start := content.find(signature, start)) >= 0:
        changed[start + at] |= 1
        start += 1
    return bytes(changed)


def test_an_encrypted_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "m.zip")
    content = flagged(path.read_bytes(), b"PK\x01\x02", 8)
    path.write_bytes(flagged(content, b"PK\x03\x04", 6))
    assert "is encrypted: zip it without a password" in refusal(path)


def test_an_entry_that_is_larger_than_it_says(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "m.zip", (("1.png", bytes(2**20)),))
    content = bytearray(path.read_bytes())
    for signature, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = content.index(signature) + at
        content[start : start + 4] = struct.pack("<I", 9)
    path.write_bytes(content)
    assert "cannot be unpacked" in refusal(path) or "no image" in refusal(path)


def test_images_are_limited_in_number_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder_of(tmp_path / "x")
    monkeypatch.setattr(images, "MAX_IMAGES", 3)
    assert "is a folder with 4 images in it; 1 to 3 make a video" in refusal(path)
    monkeypatch.setattr(images, "MAX_IMAGES", 4)
    monkeypatch.setattr(image_child, "MAX_FILE_BYTES", 50)
    assert "frame1.png in it is larger than" in refusal(path)


def zip_bytes() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FRAMES.items():
            archive.writestr(name, content)
    return stream.getvalue()


ZIP = zip_bytes()
CHANGES = st.lists(st.tuples(st.integers(0, len(ZIP) - 1), st.binary(max_size=6)), max_size=4)


@settings(max_examples=60, deadline=None)
@given(CHANGES, st.integers(len(ZIP) // 2, len(ZIP)))
def test_any_damage_to_a_zip(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, bytes]], length: int
) -> None:
    content = bytearray(ZIP)
    for at, new in changes:
        content[at : at + len(new)] = new
    path = tmp_path_factory.mktemp("damaged") / "m.zip"
    path.write_bytes(b"PK\3\4" + bytes(content[4:length]))
    check_result_or_one_line(path)


# Animations


def animation(format: str, count: int = 5, **options: Any) -> bytes:
    stream = io.BytesIO()
    frames = [Image.fromarray(picture(index)) for index in range(count)]
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
    save = {"save_all": True, "append_images": frames[1:]} | lossless.get(format, {})
    frames[0].save(stream, format, **(save | options))
    return stream.getvalue()


@pytest.mark.parametrize("format", ["WEBP", "PNG", "AVIF", "GIF"])
def test_an_animation_is_a_video(format: str, tmp_path: Path) -> None:
    durations = [100, 40, 200, 80, 100]
    path = tmp_path / "moving"
    path.write_bytes(animation(format, duration=durations))
    source = probe(path)
    assert not isinstance(source, ImageSource)
    assert (source.num_frames, source.width, source.height) == (5, WIDTH, HEIGHT)
    times = [source.timestep(index) for index in range(5)]
    assert times == pytest.approx([0, 0.1, 0.14, 0.34, 0.42], abs=0.002)
    assert numbers(source, range(5)) == [0, 1, 2, 3, 4]
    assert numbers(source, [4, 2, 0]) == [4, 2, 0]
    assert numbers(source, [1, 3]) == [1, 3]


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_a_late_frame_of_an_animation_has_the_time_of_those_before_it(
    format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed: list[int] = []
    # the limit would be of this process
    monkeypatch.setattr(image_child, "_allow_time", lambda: allowed.append(1))
    moving = image_child.Animation(animation(format))
    for index, frames in [(4, 0), (2, 3), (2, 0), (4, 2), (0, 1)]:
        allowed.clear()
        assert number(np.asarray(moving.frame(index))) == index
        assert len(allowed) == frames


def test_frames_that_hold_only_what_changed_are_whole(tmp_path: Path) -> None:
    still = Image.fromarray(picture(0)).convert("RGBA")
    frames = [still.copy() for _ in range(3)]
    for index, frame in enumerate(frames):
        frame.paste((255, 0, 0, 255), (10 * index, 0, 10 * index + 10, 10))
    path = tmp_path / "moving.png"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=50)
    for index, image in read_frames(probe(path), [0, 1, 2]):
        np.testing.assert_array_equal(image, np.asarray(frames[index].convert("RGB")))


def test_a_picture_before_an_animation_is_no_frame(tmp_path: Path) -> None:
    cover, first, second = (Image.fromarray(picture(index)) for index in (9, 1, 2))
    path = tmp_path / "moving.png"
    cover.save(path, save_all=True, default_image=True, append_images=[first, second])
    assert numbers(probe(path), [0, 1]) == [1, 2]


def test_a_duration_of_nothing_is_that_of_browsers(tmp_path: Path) -> None:
    path = tmp_path / "moving.webp"
    path.write_bytes(animation("WEBP", count=3, duration=0))
    source = probe(path)
    assert [source.timestep(index) for index in range(3)] == [0, 0.1, 0.2]


def test_an_animation_of_too_many_frames(tmp_path: Path) -> None:
    content = bytearray(animation("PNG"))
    # acTL, which says how many there are
    at = content.index(b"acTL") + 4
    content[at : at + 4] = struct.pack("!I", 2**30)
    path = tmp_path / "moving.png"
    path.write_bytes(content)
    assert refusal(path)


MOVING = {format: animation(format, count=3) for format in ("WEBP", "PNG", "AVIF")}


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(MOVING)), st.data())
def test_any_damage_to_an_animation(
    tmp_path_factory: pytest.TempPathFactory, format: str, data: st.DataObject
) -> None:
    content = bytearray(MOVING[format])
    places = st.integers(16, len(content) - 1)
    for at, new in data.draw(st.lists(st.tuples(places, st.binary(max_size=4)), max_size=4)):
        content[at : at + len(new)] = new
    path = tmp_path_factory.mktemp("damaged") / "moving"
    path.write_bytes(bytes(content[: data.draw(places)]))
    check_result_or_one_line(path)


# Runs


@pytest.mark.parametrize("kind", ["folder", "zip", "animation"])
def test_a_run_and_its_rerun(kind: str, eye: Eye, tmp_path: Path) -> None:
    path = tmp_path / "source"
    if kind == "folder":
        folder_of(path)
    elif kind == "zip":
        zip_of(path)
    else:
        path.write_bytes(animation("WEBP", count=4))
    fields = {"debug_masks": True, "bbox_tracking": True}
    outputs = run_job(job(path, **fields), tmp_path / "out")
    assert outputs.summary["frames"] == 4
    assert outputs.summary["price"] == 0.01
    video = probe(outputs.files["debug_masks"])
    assert (video.num_frames, video.width, video.height) == (4, WIDTH, HEIGHT)
    assert len(json.loads(Path(outputs.files["bbox_tracking"]).read_text())) == 4
    before = files_of(tmp_path / "out")
    assert read_status(tmp_path / "out").is_right
    eye.forget()
    again = run_job(job(path, **fields), tmp_path / "out")
    assert all(one.reason is None for one in again.artifacts)
    assert eye.saw_nothing()
    assert files_of(tmp_path / "out") == before
    # of a source that is known, another output reads the frames
    run_job(job(path, preview=True), tmp_path / "out")


def test_a_run_inside_the_folder_of_its_images(eye: Eye, tmp_path: Path) -> None:
    path = folder_of(tmp_path / "frames")
    run_job(job(path), path / "out")
    eye.forget()
    run_job(job(path), path / "out")
    assert eye.saw_nothing()
    with pytest.raises(UserError, match="is an output of the run directory"):
        run_job(job(path), path)


def test_a_changed_image_is_tracked_again_and_a_touched_one_is_not(
    eye: Eye, tmp_path: Path
) -> None:
    path = folder_of(tmp_path / "frames")
    run_job(job(path), tmp_path / "out")
    os.utime(path / "frame2.png", (1, 1))
    eye.forget()
    run_job(job(path), tmp_path / "out")
    assert eye.tracked == []
    (path / "frame2.png").write_bytes(encoded(50))
    assert not read_status(tmp_path / "out").is_right
    run_job(job(path), tmp_path / "out")
    assert eye.tracked == [1]


def test_a_zip_that_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLET_CACHE", str(tmp_path / "cache"))
    path = zip_of(tmp_path / "frames.zip")
    monkeypatch.setattr(fetch, "fetch", lambda file: path)
    assert run_job(job(path), tmp_path / "out").summary["frames"] == 4


def test_items_of_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    clip, other = folder_of(tmp_path / "set" / "clip"), folder_of(tmp_path / "set" / "without")
    (tmp_path / "set" / "clip.json").write_text(json.dumps([CLICK]))
    [item] = read_dataset(str(tmp_path / "set"), {"model_type": "nano"}).items
    assert item.job.file == str(clip)
    rows = [{"item_id": "a", "file": str(other), "prompts": [CLICK]}]
    archive = zip_of(tmp_path / "frames.zip")
    rows.append({"item_id": "b", "file": str(archive), "prompts": [CLICK]})
    (tmp_path / "set.json").write_text(json.dumps(rows))
    found = read_dataset(str(tmp_path / "set.json"), {"model_type": "nano"}).items
    assert [one.job.file for one in found] == [str(other), str(archive)]


def test_an_animation_has_a_source_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "moving.webp"
    path.write_bytes(animation("WEBP"))
    source = probe(path)
    assert isinstance(source, AnimationSource)
    shutil.copy(path, tmp_path / "copy")
    assert probe(tmp_path / "copy").sha256 == source.sha256
    assert number(next(read_frames(source, [3]))[1]) == 3
