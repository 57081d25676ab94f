"""Images: every kind that Pillow reads, masks like SAM2ImagePredictor's, and hostile files."""

import importlib.util
import io
import json
import struct
import sys
import types
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base

from masklet.errors import UserError
from masklet.image import segment_image
from masklet.job import make_job
from masklet.media import ImageSource, image, probe, read_frames
from masklet.network import Network
from masklet.overlay import colours_of, overlay
from masklet.pipeline import check_prompts, dry_run, run_job
from masklet.plan import Clicks, FramePrompts, plan_job
from masklet.prompt_marks import draw_prompts
from masklet.status import read_status
from masklet.store import upsample
from tests.conftest import HEIGHT, WIDTH, disc, picture
from tests.masklet.comparison import click, said
from tests.masklet.conftest import Eye, contents_of, files_of

Pixels = NDArray[np.uint8]
CLICK: dict[str, Any] = {"frame_index": 0, "object_id": 1, "points": [[40, 45]], "labels": [1]}


def decoded(path: Path) -> Pixels:
    source = probe(path)
    assert isinstance(source, ImageSource)
    [(frame_index, pixels)] = read_frames(source, [0])
    assert frame_index == 0
    assert (source.height, source.width, 3) == pixels.shape
    return pixels


def saved(path: Path, picture: Image.Image, format: str = "PNG", **options: Any) -> Path:
    picture.save(path, format, **options)
    return path


# What files hold


@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("GIF", {}, 12),
        ("JPEG", {"quality": 95, "subsampling": 0}, 2),
        ("AVIF", {"quality": 95}, 3),
    ],
)
def test_every_format_under_a_name_that_lies(
    format: str, options: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    path = saved(tmp_path / "video.mp4", Image.fromarray(picture(0)), format, **options)
    difference = np.abs(decoded(path).astype(int) - picture(0)).mean()
    assert difference <= tolerance


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """What a viewer shows of pixels stored with this EXIF orientation."""
    stored: dict[int, Callable[[Pixels], Pixels]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    return stored[orientation](pixels)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [2, 5, 6, 7, 8])
def test_exif_orientation_is_applied(format: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "turned", Image.fromarray(picture(0)), format, exif=exif)
    np.testing.assert_array_equal(decoded(path), turned(picture(0), orientation))


def test_a_broken_exif_block_turns_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    saved(path, Image.fromarray(picture(0)), "JPEG", quality=95, subsampling=0, exif=exif)
    assert np.abs(decoded(path).astype(int) - picture(0)).mean() <= 2


def ramp() -> Pixels:
    return np.tile(np.arange(256, dtype=np.uint8), (16, 1))


def grey(values: NDArray[Any]) -> Pixels:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def png_16_bit_rgb(path: Path, values: NDArray[np.uint16]) -> Path:
    """Pillow writes none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(kind + content)
        return struct.pack("!I", len(content)) + kind + content + struct.pack("!I", checksum)

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
    return path


def test_greys(tmp_path: Path) -> None:
    levels = ramp()
    np.testing.assert_array_equal(
        decoded(saved(tmp_path / "l.png", Image.fromarray(levels))), grey(levels)
    )
    bits = levels > 99
    np.testing.assert_array_equal(
        decoded(saved(tmp_path / "1.png", Image.fromarray(bits))), grey(bits * 255)
    )
    # all 16 bits count: clipped at 255, nearly everything would be white
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decoded(saved(tmp_path / "16.png", deep)), grey(levels))
    np.testing.assert_array_equal(decoded(saved(tmp_path / "16.tif", deep, "TIFF")), grey(levels))
    for name, wide in (
        ("i.tif", levels.astype(np.int32) * 1000 - 70_000),
        ("f.tif", levels.astype(np.float32) / 9 - 3),
    ):
        found = decoded(saved(tmp_path / name, Image.fromarray(wide), "TIFF"))
        assert np.abs(found.astype(int) - grey(levels)).max() <= 1
        assert (found.min(), found.max()) == (0, 255)
    flat = Image.fromarray(np.full((4, 4), 7.0, np.float32))
    assert len(np.unique(decoded(saved(tmp_path / "flat.tif", flat, "TIFF")))) == 1


def test_colours_of_every_kind(tmp_path: Path) -> None:
    colours = np.zeros((16, 256, 3), np.uint8)
    colours[..., 0], colours[..., 1], colours[..., 2] = ramp(), 255 - ramp(), 40
    deep = png_16_bit_rgb(tmp_path / "16.png", colours.astype(np.uint16) * 256 + 200)
    np.testing.assert_array_equal(decoded(deep), colours)
    for format in ("TIFF", "JPEG"):
        cmyk = saved(tmp_path / "cmyk", Image.fromarray(colours).convert("CMYK"), format)
        assert np.abs(decoded(cmyk).astype(int) - colours).mean() <= 4, format
    few = np.where(ramp()[..., None] > 99, (250, 20, 30), (10, 90, 200)).astype(np.uint8)
    palette = Image.fromarray(few).quantize(2)
    np.testing.assert_array_equal(decoded(saved(tmp_path / "p.png", palette)), few)


def tiff(path: Path, *, photometric: int, planar: int, colours: int, big: bool = False) -> Path:
    """A TIFF of 9x7 pixels of 16 bits, 200 in their high byte, which Pillow does not write."""
    data = struct.pack("<H", 200 << 8) * (9 * 7)
    planes = colours if planar == 2 else 1
    tags = {256: [9], 257: [7], 258: [16] * colours, 259: [1], 262: [photometric]}
    at, entry, number = (16, "<HHQ8s", "Q") if big else (8, "<HHI4s", "I")
    after = at + struct.calcsize("<" + number) + 10 * struct.calcsize(entry) + 8
    starts = [after + 99 + len(data) * plane for plane in range(planes)]
    sizes = [len(data) * colours // planes] * planes
    tags |= {273: starts, 277: [colours], 278: [7], 279: sizes, 284: [planar]}
    directory, extra = b"", b""
    for tag, values in tags.items():
        packed = struct.pack(f"<{len(values)}I", *values)
        inline = len(packed) <= (8 if big else 4)
        where = packed if inline else struct.pack("<" + number, after + len(extra))
        directory += struct.pack(entry, tag, 4, len(values), where)
        extra += b"" if inline else packed
    count = struct.pack("<Q" if big else "<H", len(tags))
    head = b"II+\0\x08\0\0\0" if big else b"II*\0"
    body = head + struct.pack("<" + number, at) + count + directory
    body += bytes(after - len(body)) + extra
    path.write_bytes(body + bytes(after + 99 - len(body)) + data * colours)
    return path


def test_tiffs_that_pillow_reads_wrongly_are_refused(tmp_path: Path) -> None:
    right = {"photometric": 1, "planar": 1, "colours": 1}
    for big in (False, True):
        path = tiff(tmp_path / "x.tif", **right, big=big)
        np.testing.assert_array_equal(decoded(path), np.full((7, 9, 3), 200))
    colours = {"photometric": 2, "planar": 1, "colours": 3}
    np.testing.assert_array_equal(decoded(tiff(path, **colours)), np.full((7, 9, 3), 200))
    assert "in which 0 is white" in refusal(tiff(path, **{**right, "photometric": 0}))
    assert "a plane for each colour" in refusal(tiff(path, **{**colours, "planar": 2}))


def test_what_is_transparent_shows_white(tmp_path: Path) -> None:
    clear = ramp() < 100
    colour = np.where(clear[..., None], (9, 9, 9), (200, 30, 60)).astype(np.uint8)
    seen = np.where(clear[..., None], 255, colour)
    alpha = np.where(clear, 0, 255).astype(np.uint8)
    rgba = Image.fromarray(np.dstack([colour, alpha]))
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        path = saved(tmp_path / f"a.{format}", rgba, format, **options)
        np.testing.assert_array_equal(decoded(path), seen)
    two = Image.fromarray(np.dstack([colour[..., 0], alpha]), "LA")
    np.testing.assert_array_equal(
        decoded(saved(tmp_path / "la.png", two)), grey(np.where(clear, 255, 200))
    )
    # a colour of a palette that means nothing is there
    palette = Image.fromarray(colour).quantize(2)
    index = int(np.asarray(palette)[0, 0])
    path = saved(tmp_path / "p.png", palette, transparency=index)
    np.testing.assert_array_equal(decoded(path), seen)
    half = Image.new("RGBA", (3, 2), (0, 100, 200, 128))
    assert abs(int(decoded(saved(tmp_path / "h.png", half))[0, 0, 0]) - 127) <= 1


# Hostile files


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        probe(path)
    assert str(raised.value).startswith(path.name)
    return str(raised.value)


def bomb(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack("!II", width, height)
    content[29:33] = struct.pack("!I", zlib.crc32(bytes(content[12:29])))
    return bytes(content)


def animation() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.fromarray(picture(index)) for index in range(3)]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, "JPEG")
    return buffer.getvalue()[:-300]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (truncated(), "cannot be decoded (image file is truncated"),
        (bomb(60_000, 60_000), "has more than 89 million pixels"),
        # over the limit by less than twice, of which Pillow only warns
        (bomb(10_000, 9_000), "has more than 89 million pixels"),
        (bomb(0, 5), "is damaged, or no image"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 500, "is damaged, or no image"),
        (b"\xff\xd8\xff" + bytes(500), "is damaged, or no image"),
        (b"\0\0\0\x18ftypheic" + bytes(100), "x.png is HEIC, which Pillow does not read: save"),
        (b"P6 9 9 255 " + bytes(300), "no image in a format that masklet reads (JPEG, PNG"),
        (animation()[:-400], "cannot be decoded ("),
    ],
)
def test_a_file_that_is_no_image(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert words in refusal(path)


@pytest.mark.parametrize(
    "program",
    [
        "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
        "import sys; sys.stdin.buffer.read(); print('\\0' * 8)",
        "import sys; sys.stdout.buffer.write(b'\\0' + b'\\xff' * 100)",
        "import sys; sys.stdout.buffer.write(b'\\0\\0\\0\\0\\1\\0\\0\\0\\1')",
        "while True: pass",
        "bytes(2 ** 33)",
    ],
)
def test_a_decoder_that_is_taken_over_harms_nothing(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(program)
    path = saved(tmp_path / "x.png", Image.fromarray(picture(0)))
    monkeypatch.setattr(image.image_child, "__file__", str(tmp_path / "child.py"))
    monkeypatch.setattr(image, "SECONDS", 3.0)
    assert "cannot be decoded with 10 seconds of a CPU and 4 GiB" in refusal(path)


# The model


@pytest.fixture(scope="module")
def predictor(nano: SAM2Base) -> Any:
    """Upstream's predictor of images with the disc.

    It needs torchvision's transforms, which are plain Python, but not torchvision's operators,
    which do not load beside every build of torch: the package is loaded without its first file.
    """
    with pytest.MonkeyPatch.context() as patch:
        found = importlib.util.find_spec("torchvision")
        assert found is not None
        bare = types.ModuleType("torchvision")
        bare.__path__ = list(found.submodule_search_locations or [])
        patch.setitem(sys.modules, "torchvision", bare)
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        made = SAM2ImagePredictor(nano)
        # upstream writes down those of models for 1024 x 1024 pixels
        made._bb_feat_sizes = [(nano.image_size // by, nano.image_size // by) for by in (4, 8, 16)]
        made.set_image(picture(0))
    return made


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize(
    "clicks",
    [
        click((40, 45, 1)),
        click((40, 45, 1), (20, 80, 0), (120.5, 10.25, 0)),
        click(box=(18, 23, 63, 68)),
        click((40, 45, 1), (70, 45, 0), box=(18, 23, 63, 68)),
    ],
)
def test_the_masks_of_upstream_s_predictor(
    clicks: Clicks, multimask: bool, predictor: Any, nano: SAM2Base
) -> None:
    has_points = len(clicks.points) > 0
    with torch.inference_mode():
        masks, scores, _ = predictor.predict(
            clicks.points if has_points else None,
            clicks.labels if has_points else None,
            clicks.box,
            multimask_output=multimask,
            return_logits=True,
        )
    found = segment_image(Network.of(nano), picture(0), said(clicks), 3 if multimask else 1)
    order = np.argsort(-scores)
    assert [mask.score for mask in found] == pytest.approx(scores[order].tolist(), abs=1e-4)
    for mask, theirs in zip(found, masks[order], strict=True):
        ours = upsample(mask.logits, HEIGHT, WIDTH)
        assert np.abs(ours - theirs).max() <= 1e-3
        assert ((ours > 0) == (theirs > 0)).mean() >= 0.9999
    best = upsample(found[0].logits, HEIGHT, WIDTH) > 0
    assert (best & disc(0)).sum() / (best | disc(0)).sum() > 0.7


@pytest.mark.parametrize("clicks", [(), (click((40, 45, 1)),)])
def test_a_mask_prompt_is_upstream_s_mask_input(
    clicks: tuple[Clicks, ...], predictor: Any, nano: SAM2Base
) -> None:
    # a mask in whole cells of the low resolution, which is the same however it is made smaller
    side = nano.image_size // 4
    cells = np.zeros((side, side), bool)
    cells[side // 4 : side // 2, side // 4 : side // 2] = True
    mask = np.kron(cells, np.ones((4, 4), bool))
    large = np.asarray(Image.fromarray(picture(0)).resize(mask.shape[::-1]))
    with torch.inference_mode():
        predictor.set_image(large)
        scale = np.array(mask.shape[::-1]) / (WIDTH, HEIGHT)
        moved = tuple(
            Clicks((one.points * scale).astype(np.float32), one.labels, None) for one in clicks
        )
        masks, scores, _ = predictor.predict(
            moved[0].points if moved else None,
            moved[0].labels if moved else None,
            mask_input=_logits_of(cells)[None],
            multimask_output=True,
            return_logits=True,
        )
        predictor.set_image(picture(0))
    found = segment_image(Network.of(nano), large, FramePrompts(mask, moved), 3)
    order = np.argsort(-scores)
    assert [one.score for one in found] == pytest.approx(scores[order].tolist(), abs=2e-2)
    for one, theirs in zip(found, masks[order], strict=True):
        ours = upsample(one.logits, *mask.shape)
        assert ((ours > 0) == (theirs > 0)).mean() >= 0.99


def _logits_of(cells: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(cells, np.float32(10), np.float32(-10))


# The whole job


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("photo") / "disc.png", Image.fromarray(picture(0)))


@pytest.fixture
def fields(photo: Path) -> dict[str, Any]:
    return {"file": str(photo), "model_type": "nano", "prompts": [CLICK]}


def mask_in(out: Path, name: str, entry: str) -> NDArray[np.bool_]:
    with zipfile.ZipFile(out / name) as archive:
        assert archive.namelist() == [entry]
        return np.asarray(Image.open(io.BytesIO(archive.read(entry)))) > 0


def test_one_mask_whatever_the_object_ids(fields: dict[str, Any], tmp_path: Path, eye: Eye) -> None:
    extra = {"pixel_confidences": True, "bbox_tracking": True}
    prompts = [
        {**CLICK, "object_id": "a", "points": [[40, 45], [20, 80]], "labels": [1, 0]},
        {**CLICK, "object_id": 7, "points": [[45, 50]]},
        {"frame_index": 0, "object_id": "7", "box": [18, 23, 63, 68]},
    ]
    out = tmp_path / "out"
    outputs = run_job(make_job(fields | extra | {"prompts": prompts}), out)
    names = ["masks", "pixel_confidences", "bbox_tracking"]
    assert list(outputs.files) == [*names, "price", "masklets", "manifest"]
    mask = mask_in(out, "masks.zip", "0_0.png")
    assert (mask & disc(0)).sum() / (mask | disc(0)).sum() > 0.7
    assert zipfile.ZipFile(out / "pixel_confidences.zip").namelist() == ["0_0.png"]
    rows, columns = np.nonzero(mask)
    box = [int(edge) for edge in (columns.min(), rows.min(), columns.max(), rows.max())]
    assert json.loads((out / "bbox_tracking.json").read_text()) == {
        "0": [{"frame_index": 0, "object_id": 0, "bbox": box, "timestep": 0.0}]
    }
    assert json.loads((out / "price.json").read_text())["total"] == 0.01
    [score] = json.loads((out / "outputs.json").read_text())["scores"]
    assert 0.5 < score <= 1.1
    together = [
        {
            "frame_index": 0,
            "object_id": 1,
            "points": [[40, 45], [20, 80], [45, 50]],
            "labels": [1, 0, 1],
            "box": [18, 23, 63, 68],
        }
    ]
    eye.forget()
    run_job(make_job(fields | extra | {"prompts": together}), out)
    assert eye.saw_nothing(), "the same prompts under other ids are another job"


def test_three_masks_the_best_first(fields: dict[str, Any], tmp_path: Path, eye: Eye) -> None:
    extra = {"pixel_confidences": True, "bbox_tracking": True}
    out, job = tmp_path / "out", make_job(fields | extra | {"multimask_output": True})
    outputs = run_job(job, out)
    names = [
        f"{name}_{number}"
        for name in ("masks", "pixel_confidences", "bbox_tracking")
        for number in range(3)
    ]
    assert list(outputs.files) == [*names, "price", "masklets", "manifest"]
    scores = json.loads((out / "outputs.json").read_text())["scores"]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    masks = [mask_in(out, f"masks_{number}.zip", f"0_{number}.png") for number in range(3)]
    assert (masks[0] & disc(0)).sum() / (masks[0] | disc(0)).sum() > 0.7
    sure = set()
    for number in range(3):
        with zipfile.ZipFile(out / f"pixel_confidences_{number}.zip") as archive:
            sure.add(archive.read(f"0_{number}.png"))
    assert len(sure) == 3
    assert json.loads((out / "bbox_tracking_2.json").read_text()).keys() == {"0"}
    assert read_status(out).is_right
    before = files_of(out)
    eye.forget()
    run_job(job, out)
    assert files_of(out) == before
    assert eye.saw_nothing()
    # one mask again: the three, and what was made of them, are gone
    assert ("remove", "masks", "masks_2.zip", "not asked for") in dry_run(make_job(fields), out)
    run_job(make_job(fields), out)
    assert {path.name for path in out.iterdir() if path.name != ".lock"} == {
        *("masks.zip", "price.json", "outputs.json", "masklets", "manifest.parquet"),
        "frames.parquet",
    }
    assert [path.name for path in (out / "masklets").iterdir()] == ["object=0"]
    run_job(job, out)
    assert contents_of(out) == {
        name: file.sha256 for name, file in before.items() if name != "manifest.parquet"
    }


def test_one_mask_of_three_is_lost(fields: dict[str, Any], tmp_path: Path) -> None:
    out, job = tmp_path / "out", make_job(fields | {"multimask_output": True})
    run_job(job, out)
    before = contents_of(out)
    (out / "masks_1.zip").unlink()
    outputs = run_job(job, out)
    assert [one.artifact for one in outputs.artifacts if one.reason] == ["masks_1.zip"]
    for part in (out / "masklets" / "object=2").iterdir():
        part.unlink()
    outputs = run_job(job, out)
    assert [one.artifact for one in outputs.artifacts if one.reason] == ["2"]
    assert contents_of(out) == before


def test_scores_without_masklets(fields: dict[str, Any], tmp_path: Path, eye: Eye) -> None:
    out, job = tmp_path / "out", make_job(fields | {"keep_masklets": False})
    run_job(job, out)
    before = contents_of(out)
    assert not (out / "masklets").exists()
    eye.forget()
    run_job(job, out)
    assert eye.saw_nothing()
    (out / "outputs.json").unlink()
    run_job(job, out)
    assert contents_of(out) == before


def test_masks_as_prompts_are_one(fields: dict[str, Any], tmp_path: Path) -> None:
    whole = disc(0)
    left, right = whole.copy(), whole.copy()
    left[:, 40:], right[:, :40] = False, False

    def zipped(name: str, **masks: NDArray[np.bool_]) -> str:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for entry, mask in masks.items():
                buffer = io.BytesIO()
                Image.fromarray(mask).save(buffer, "PNG")
                archive.writestr(f"0_{entry}.png", buffer.getvalue())
        return str(tmp_path / name)

    empty = fields | {"prompts": [], "mask_prompts": zipped("empty.zip", x=whole & False)}
    with pytest.raises(UserError, match="no pixel is set"):
        run_job(make_job(empty), tmp_path / "empty")
    for name, masks in (("one", {"x": whole}), ("two", {"a": left, "b": right})):
        job = fields | {"prompts": [], "mask_prompts": zipped(f"{name}.zip", **masks)}
        run_job(make_job(job), tmp_path / name)
    found = mask_in(tmp_path / "one", "masks.zip", "0_0.png")
    assert (found & whole).sum() / (found | whole).sum() > 0.9
    np.testing.assert_array_equal(found, mask_in(tmp_path / "two", "masks.zip", "0_0.png"))


def test_a_preview_of_an_image(fields: dict[str, Any], tmp_path: Path) -> None:
    run_job(make_job(fields), tmp_path / "full")
    preview = fields | {"preview": True, "debug_masks": True}
    outputs = run_job(make_job(preview), tmp_path / "out")
    plan = check_prompts(make_job(fields), probe(fields["file"]))
    colours = colours_of(plan.object_ids)
    masked = overlay(picture(0), {0: mask_in(tmp_path / "full", "masks.zip", "0_0.png")}, colours)
    drawn = draw_prompts(masked, {0: plan.objects[0].prompts[0]}, colours, named=[0])
    np.testing.assert_array_equal(np.asarray(Image.open(outputs.files["preview"])), drawn)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": [{**CLICK, "frame_index": 1}]}, "there is no frame 1"),
        ({"prompts": [{**CLICK, "points": [[160, 45]]}]}, "is outside the frame of 160x96"),
        ({"prompts": []}, "no prompts"),
        ({"debug_masks": True}, "debug_masks is a video, and disc.png is an image"),
        (
            {"prompts": [{"frame_index": 0, "object_id": n, "box": [1, 1, 9, 9]} for n in (1, 2)]},
            "prompts[1] (frame 0, object 2): an image takes one box",
        ),
    ],
)
def test_what_cannot_be_had_of_an_image(
    change: dict[str, Any], words: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        run_job(make_job(fields | change), tmp_path / "out")
    assert words in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_three_masks_are_for_images(clip: Path) -> None:
    job = make_job({"file": str(clip), "prompts": [CLICK], "multimask_output": True})
    with pytest.raises(UserError, match=r"for images, and disc\.mp4 is a video"):
        plan_job(job, probe(clip))
