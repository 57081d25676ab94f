"""Folders in the layout of a dataset, whole ones and hostile ones."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masklet.errors import UserError
from masklet.ground_truth import find_videos
from masklet.media import read_frames

WIDTH, HEIGHT = 32, 24
FRAMES = 4


def save_frame(path: Path, shade: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 80, 120)).save(path)


def save_labels(path: Path, labels: np.ndarray, mode: str = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(labels, np.uint8))
    if mode == "P":
        picture.putpalette(bytes(range(256)) * 3)
    picture.save(path)


def labels_of(**boxes: int) -> np.ndarray:
    """A label map with left=, right= ids in its halves, away from the middle."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[4:20, 2:12] = boxes.get("left", 0)
    labels[4:20, 20:30] = boxes.get("right", 0)
    return labels


@pytest.fixture
def davis(tmp_path: Path) -> Path:
    """Two videos of four frames; `pair` has the objects 1 and 3, `solo` the object 255."""
    root = tmp_path / "davis"
    for at in range(FRAMES):
        for video in ("pair", "solo"):
            save_frame(root / f"JPEGImages/480p/{video}/{at:05d}.jpg", shade=40 * at)
        labels = labels_of(left=1, right=3 if at else 0)
        save_labels(root / f"Annotations/480p/pair/{at:05d}.png", labels)
        save_labels(root / f"Annotations/480p/solo/{at:05d}.png", labels_of(left=255), mode="L")
    return root


@pytest.fixture
def sav(tmp_path: Path) -> Path:
    """One video of nine frames, of which every fourth is annotated; its two objects overlap."""
    root = tmp_path / "sav"
    for at in range(9):
        save_frame(root / f"JPEGImages_24fps/clip/{at:05d}.jpg")
    for at in (0, 4, 8):
        for name, box in (("000", (2, 20)), ("001", (10, 30))):
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[4:20, slice(*box)] = 255 if at or name == "000" else 0
            save_labels(root / f"Annotations_6fps/clip/{name}/{at:05d}.png", labels, mode="L")
    return root


def test_label_maps_hold_several_objects_by_their_ids(davis):
    pair, solo = find_videos(davis)
    assert (pair.name, solo.name) == ("pair", "solo")
    assert not pair.may_overlap
    assert pair.first_seen() == {1: 0, 3: 1}
    assert pair.annotated(3) == [0, 1, 2, 3]
    truth = pair.truth(2)
    assert list(truth) == [1, 3]
    assert np.array_equal(truth[3], labels_of(right=1) > 0)
    assert solo.first_seen() == {255: 0}


def test_255_beside_other_ids_is_no_object(davis):
    save_labels(davis / "Annotations/480p/pair/00001.png", labels_of(left=1, right=255))
    assert find_videos(davis, ["pair"])[0].first_seen() == {1: 0, 3: 2}


def test_masks_of_single_objects_may_overlap(sav):
    [video] = find_videos(sav)
    assert video.may_overlap
    assert video.first_seen() == {"000": 0, "001": 4}
    assert video.annotated("001") == [0, 4, 8]
    truth = video.truth(8)
    assert (truth["000"] & truth["001"]).sum() == 16 * 10
    assert video.truth(5) == {}


def test_masks_may_be_saved_in_colour_or_with_one_bit(davis):
    left = labels_of(left=1) > 0
    folder = davis / "Annotations/480p/solo"
    Image.fromarray(np.stack([left * np.uint8(200)] * 3, axis=2)).save(folder / "00001.png")
    Image.fromarray(left).save(folder / "00002.png")
    video = find_videos(davis, ["solo"])[0]
    assert np.array_equal(video.truth(1)[255], left)
    assert np.array_equal(video.truth(2)[1], left)


def test_label_maps_are_read_with_16_bits_and_with_alpha(davis):
    labels = labels_of(left=1, right=3)
    folder = davis / "Annotations/480p/pair"
    Image.fromarray(labels.astype(np.uint16)).save(folder / "00001.png")
    opaque = Image.new("L", (WIDTH, HEIGHT), 255)
    Image.merge("LA", [Image.fromarray(labels), opaque]).save(folder / "00002.png")
    video = find_videos(davis, ["pair"])[0]
    for at in (1, 2):
        assert {one: mask.sum() for one, mask in video.truth(at).items()} == {1: 160, 3: 160}


@pytest.mark.parametrize("kind", ["colours", "large numbers"])
def test_what_has_no_numbers_of_objects_is_refused(davis, kind):
    labels = labels_of(left=1, right=3)
    path = davis / "Annotations/480p/pair/00001.png"
    if kind == "colours":
        palette = np.array([[0, 0, 0], [128, 0, 0], [0, 0, 0], [0, 128, 0]], np.uint8)
        Image.fromarray(palette[labels]).save(path)
    else:
        Image.fromarray(labels.astype(np.uint16) * 300).save(path)
    words = "has several colours" if kind == "colours" else "has the value 900"
    with pytest.raises(UserError, match=words):
        find_videos(davis, ["pair"])[0].first_seen()


def test_frames_are_the_pixels_that_pillow_decodes(davis):
    source = find_videos(davis, ["pair"])[0].source
    for indices in ([0, 2, 3], [3, 1]):
        for frame_index, image in read_frames(source, indices):
            with Image.open(davis / f"JPEGImages/480p/pair/{frame_index:05d}.jpg") as picture:
                assert np.array_equal(image, np.asarray(picture))


def test_frames_are_in_the_order_of_their_numbers(davis):
    folder = davis / "JPEGImages/480p/pair"
    (folder / "00003.jpg").rename(folder / "10.jpg")
    (davis / "Annotations/480p/pair/00003.png").rename(davis / "Annotations/480p/pair/000010.png")
    video = find_videos(davis, ["pair"])[0]
    assert list(video.source.names[-2:]) == ["00002.jpg", "10.jpg"]
    assert video.annotated(1) == [0, 1, 2, 3]


def test_the_newest_list_of_a_dataset_is_taken_unless_videos_are_named(davis):
    for year, names in (("2016", "pair\nsolo\n"), ("2017", "\nsolo\n")):
        (davis / "ImageSets" / year).mkdir(parents=True)
        (davis / "ImageSets" / year / "val.txt").write_text(names)
    assert [video.name for video in find_videos(davis)] == ["solo"]
    assert [video.name for video in find_videos(davis, ["pair"])] == ["pair"]


def test_other_resolutions_are_taken_where_there_is_no_480p(davis):
    (davis / "JPEGImages/480p").rename(davis / "JPEGImages/Full-Resolution")
    (davis / "Annotations/480p").rename(davis / "Annotations/Full-Resolution")
    assert len(find_videos(davis)) == 2


def large_png() -> bytes:
    """A PNG whose header alone promises 100,000 x 100,000 pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk


def large_jpeg(path: Path) -> bytes:
    """A JPEG file whose frame header says 65,000 x 65,000 pixels."""
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 65_000, 65_000)
    return bytes(content)


def break_dataset(root: Path, how: str) -> None:
    frames, truths = root / "JPEGImages/480p/pair", root / "Annotations/480p/pair"
    match how:
        case "no annotations":
            (root / "Annotations").rename(root / "Elsewhere")
        case "two resolutions":
            for kind in ("JPEGImages", "Annotations"):
                (root / kind / "480p").rename(root / kind / "720p")
                (root / kind / "1080p").mkdir()
        case "nothing in common":
            (root / "Annotations/480p").rename(root / "Annotations/moved")
            (root / "Annotations/480p").mkdir()
        case "path in a list":
            (root / "ImageSets/2017").mkdir(parents=True)
            (root / "ImageSets/2017/val.txt").write_text("../../../etc\n")
        case "odd name":
            (root / "JPEGImages/480p/\x1b[2J").mkdir()
            (root / "Annotations/480p/\x1b[2J").mkdir()
        case "frame of another size":
            save_frame(frames / "00002.jpg", size=(WIDTH, HEIGHT + 2))
        case "annotation of another size":
            save_labels(truths / "00002.png", np.zeros((HEIGHT, WIDTH - 1)))
        case "annotation of no frame":
            (frames / "00002.jpg").unlink()
        case "two annotations":
            (truths / "00001.png").unlink()
            (truths / "00002.png").unlink()
        case "no frames":
            for path in frames.iterdir():
                path.unlink()
        case "name without a number":
            (frames / "00002.jpg").rename(frames / "last.jpg")
        case "same number":
            save_frame(frames / "2.jpg")
        case "folder as a frame":
            (frames / "00002.jpg").unlink()
            (frames / "00002.jpg").mkdir()
        case "frame that is no image":
            (frames / "00002.jpg").write_bytes(b"no image")
        case "annotation too large":
            (truths / "00002.png").write_bytes(large_png())
        case "frame too large":
            (frames / "00000.jpg").write_bytes(large_jpeg(frames / "00000.jpg"))
        case "odd object id":
            (truths / "a b").mkdir()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no annotations", "has no folders JPEGImages and Annotations"),
        ("two resolutions", "one folder of a resolution in common, such as 480p; they have 2"),
        ("nothing in common", "have no video in common"),
        ("path in a list", "val.txt: there is no video '../../../etc'"),
        ("odd name", "is no name of a video"),
        (
            "frame of another size",
            "00002.jpg in it has 32x26 pixels, but the first image has 32x24",
        ),
        ("annotation of another size", "00002.png: has 31x24 pixels, but the video has 32x24"),
        ("annotation of no frame", "00002.png: is the annotation of no frame"),
        ("two annotations", "pair: has 2 annotations; 3 are needed"),
        ("no frames", "pair is a folder with no images in it"),
        ("name without a number", "last.jpg: is not a file named after its frame's number"),
        ("same number", "2.jpg: has the same number as 00002.jpg"),
        ("folder as a frame", "00002.jpg: is not a file"),
        ("frame that is no image", "00002.jpg in it is damaged, or no image"),
        ("annotation too large", "00002.png: "),
        ("frame too large", "00000.jpg in it has more than"),
        ("odd object id", "'a b' is no object id"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused_before_anything_is_tracked(davis, how, words):
    break_dataset(davis, how)
    with pytest.raises(UserError) as refused:
        find_videos(davis)
    assert words in str(refused.value)


@pytest.mark.parametrize("name", ["../davis", "", "/etc", "pair/../solo", "nobody"])
def test_names_that_are_no_videos_are_refused(davis, name):
    with pytest.raises(UserError, match="--sequences: there is no video"):
        find_videos(davis, [name])


def test_pictures_that_are_cut_off_are_refused_when_they_are_read(davis):
    video = find_videos(davis, ["pair"])[0]
    for path in (video.source.path / video.source.names[1], video.labels[1]):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="is not a readable PNG"):
        video.first_seen()
    with pytest.raises(UserError, match="in it cannot be decoded"):
        list(read_frames(video.source, [0, 1]))


def test_a_video_without_an_object_is_refused(davis):
    for path in (davis / "Annotations/480p/solo").iterdir():
        save_labels(path, labels_of())
    with pytest.raises(UserError, match="solo: no annotation marks an object"):
        find_videos(davis, ["solo"])[0].first_seen()
