"""`masklet eval` on small drawn videos, against upstream's tracker and another evaluator."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.misc import load_video_frames
from vos_benchmark.evaluator import Evaluator

from masklet import evaluate as evaluation
from masklet.cli import main
from masklet.errors import UserError
from masklet.evaluate import evaluate, innermost, prompt_of
from masklet.failures import Failure, picture_failure, write_failures
from masklet.ground_truth import TrueVideo, find_videos
from masklet.models import find_model
from masklet.network import Network
from masklet.preprocess import preprocess
from masklet.scores import ObjectScore, Scores, VideoScore
from tests.masklet.oracle import make_oracle

WIDTH, HEIGHT, FRAMES = 128, 80, 7
LATE, START = 5, 2
"""An object, and the frame on which it is first seen."""


def labels(at: int) -> NDArray[np.uint8]:
    """Object 1 moves to the right, before object 2, which rises; object 5 comes on frame 2."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    found = np.zeros((HEIGHT, WIDTH), np.uint8)
    found[(x - 70) ** 2 + (y - 55 + 3 * at) ** 2 < 17**2] = 2
    found[(x - 35 - 4 * at) ** 2 + (y - 40) ** 2 < 18**2] = 1
    if at >= START:
        found[(abs(x - 112) < 10) & (abs(y - 20 - 3 * at) < 12)] = LATE
    return found


def write_frame(path: Path, at: int) -> None:
    colours = np.zeros((6, 3), np.float32)
    colours[:] = (40, 90, 130), (220, 60, 40), (240, 220, 60), (0, 0, 0), (0, 0, 0), (60, 200, 80)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    shade = 12 * np.sin(x / 9) + 12 * np.cos(y / 7)
    picture = (colours[labels(at)] + shade[..., None]).clip(0, 255).astype(np.uint8)
    Image.fromarray(picture).save(path, quality=95)


def write_labels(path: Path, values: NDArray[np.uint8]) -> None:
    Image.fromarray(values).save(path)


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("davis")
    frames, truths = root / "JPEGImages/480p/discs", root / "Annotations/480p/discs"
    frames.mkdir(parents=True)
    truths.mkdir(parents=True)
    for at in range(FRAMES):
        write_frame(frames / f"{at:05d}.jpg", at)
        write_labels(truths / f"{at:05d}.png", labels(at))
    return root


@pytest.fixture(scope="module")
def discs(davis: Path) -> TrueVideo:
    [video] = find_videos(davis)
    return video


@pytest.fixture(scope="module")
def network(nano: SAM2Base) -> Network:
    return Network.of(nano)


@torch.inference_mode()
def upstream_labels(nano: SAM2Base, video: TrueVideo, kind: str) -> list[NDArray[np.uint8]]:
    """Label maps as upstream's own tool makes them; its predictor reads the folder itself.

    Each object is tracked apart from its first frame on; a pixel goes to the highest logit.
    """
    predictor = make_oracle(find_model("nano"), nano)
    size = video.source.num_frames, HEIGHT, WIDTH
    logits = {}
    for one, start in {1: 0, 2: 0, LATE: START}.items():
        state = predictor.init_state(str(video.source.path))
        mask = labels(start) == one
        if kind == "mask":
            predictor.add_new_mask(state, start, one, mask)
        elif kind == "box":
            y, x = np.nonzero(mask)
            box = np.array([x.min(), y.min(), x.max(), y.max()], np.float32)
            predictor.add_new_points_or_box(state, start, one, box=box)
        logits[one] = np.full(size, -1024, np.float32)
        for at, _, found in predictor.propagate_in_video(state, start_frame_idx=start):
            logits[one][at] = found[0, 0].numpy()
    stacked = np.stack(list(logits.values()))
    ids = np.array(list(logits), np.uint8)[stacked.argmax(axis=0)]
    return list(np.where(stacked.max(axis=0) > 0, ids, 0))


@pytest.mark.parametrize("kind", ["mask", "box"])
def test_scores_are_those_of_upstreams_masks_and_of_vos_benchmark(nano, network, discs, kind):
    guesses = upstream_labels(nano, discs, kind)
    judge = Evaluator()
    for at in range(1, FRAMES - 1):
        judge.feed_frame(guesses[at], labels(at))
    score, failure = evaluate(discs, network, kind)
    assert failure is not None
    assert [one.object_id for one in score.objects] == [1, 2, LATE]
    for one in score.objects:
        j, f = judge.object_iou[one.object_id], judge.boundary_f[one.object_id]
        if one.object_id == LATE:
            # the other evaluator also counts the frame on which the object is given
            j, f = j[1:], f[1:]
            assert (one.prompted, one.frames) == (START, (3, 4, 5))
        else:
            assert (one.prompted, one.frames) == (0, (1, 2, 3, 4, 5))
        # rounding may turn a pixel of several hundred over
        assert one.j == pytest.approx(j, abs=5e-3)
        assert one.f == pytest.approx(f, abs=2e-2)
    assert min(one.j.min() for one in score.objects) < 1, "a perfect guess shows nothing"
    for one, mask in failure.guess.items():
        assert (mask != (guesses[failure.frame_index] == one)).mean() < 1e-3


def test_the_tracker_sees_the_same_pixels_as_upstream(nano, discs):
    theirs, height, width = load_video_frames(str(discs.source.path), nano.image_size, True)
    assert (height, width) == (HEIGHT, WIDTH)
    for at, image in evaluation_frames(discs):
        assert torch.equal(preprocess(image, nano.image_size), theirs[at])


def evaluation_frames(video: TrueVideo) -> list[tuple[int, NDArray[np.uint8]]]:
    from masklet.media import read_frames

    return list(read_frames(video.source, range(FRAMES)))


def test_only_annotated_frames_count_and_masks_may_overlap(network, davis, tmp_path):
    root = tmp_path / "sav"
    frames = root / "JPEGImages_24fps/discs"
    frames.parent.mkdir(parents=True)
    frames.symlink_to(davis / "JPEGImages/480p/discs")
    both = {"000": (1,), "001": (1, 2)}  # the second object has the first one in it
    for name, ids in both.items():
        folder = root / "Annotations_6fps/discs" / name
        folder.mkdir(parents=True)
        for at in (0, 2, 4, 6):
            write_labels(folder / f"{at:05d}.png", np.isin(labels(at), ids) * np.uint8(1))
    [video] = find_videos(root)
    score, failure = evaluate(video, network, "mask")
    assert [(one.object_id, one.frames) for one in score.objects] == [
        ("000", (2, 4)),
        ("001", (2, 4)),
    ]
    assert failure is not None
    assert (failure.guess["000"] & failure.guess["001"]).any()


def test_an_object_that_comes_too_late_is_not_scored(network, davis, tmp_path):
    root = tmp_path / "davis"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "JPEGImages/480p").symlink_to(davis / "JPEGImages/480p")
    folder = root / "Annotations/480p/discs"
    folder.mkdir(parents=True)
    for at in range(4):
        seen = labels(at)
        write_labels(folder / f"{at:05d}.png", np.where(seen == LATE, 0, seen) * np.uint8(at > 1))
    # prompted on frame 2, the last but one: what is left does not count
    [video] = find_videos(root)
    progress: list[int] = []
    score, failure = evaluate(video, network, "mask", progress.append)
    assert (score.objects, score.summary, failure) == ((), None, None)
    assert sum(progress) == FRAMES


# Prompts


def test_a_box_is_tight_and_a_point_is_innermost():
    mask = np.zeros((40, 60), bool)
    mask[10:21, 30:47] = True
    mask[0:9, 0:9] = True
    [clicks] = prompt_of(mask, "box").clicks
    assert clicks.box is not None
    assert clicks.box.tolist() == [0, 0, 46, 20]
    assert len(clicks.points) == len(clicks.labels) == 0
    [clicks] = prompt_of(mask, "point").clicks
    # 11 rows have one row in the middle; the first of its innermost pixels
    assert (clicks.points.tolist(), clicks.labels.tolist()) == ([[35, 15]], [1])
    assert clicks.box is None
    assert prompt_of(mask, "mask").mask is mask


def test_beyond_the_picture_is_outside():
    mask = np.zeros((30, 30), bool)
    mask[0:21, 0:21] = True
    assert innermost(mask) == (10, 10)


# Scores


def an_object(*j: float) -> ObjectScore:
    values = np.array(j)
    return ObjectScore(1, 0, tuple(range(1, len(j) + 1)), values, values / 2)


def test_objects_weigh_the_same_however_long_and_in_whichever_video():
    scores = Scores(
        {},
        (
            VideoScore("a", (an_object(0.9, 0.9, 0.9, 0.9), an_object(0.6))),
            VideoScore("b", (an_object(0.0),)),
            VideoScore("c", ()),
        ),
    )
    assert scores.summary is not None
    assert (scores.summary.objects, scores.summary.frames) == (3, 5)
    assert scores.summary.j.mean == pytest.approx(0.5)
    assert scores.summary.j.recall == pytest.approx(2 / 3)
    assert scores.summary.j_and_f == pytest.approx(0.375)
    assert [row[:5] for row in scores.rows()] == [
        ("a", "2", "4", "56.2", "75.0"),
        ("b", "1", "1", "0.0", "0.0"),
        ("c", "0", "0", "", ""),
        ("mean", "3", "5", "37.5", "50.0"),
    ]


# The picture of failures


def test_a_failure_shows_the_true_outline_beside_the_mask(discs):
    truth = {1: labels(3) == 1}
    guess = {1: np.zeros((HEIGHT, WIDTH), bool)}
    guess[1][5:45, 5:45] = True
    failure = Failure(3, 0.1, 0.2, truth, guess)
    pair = picture_failure(discs, failure).astype(int)
    frame = evaluation_frames(discs)[3][1].astype(int)
    # the pictures are not enlarged, so that each is in the middle of its half
    left, right = (
        pair[(246 - HEIGHT) // 2 :, (436 - WIDTH) // 2 + x :][:HEIGHT, :WIDTH] for x in (0, 440)
    )
    inside = np.hypot(*(np.mgrid[:HEIGHT, :WIDTH] - np.array([40, 47])[:, None, None])) < 14
    assert np.array_equal(left[inside], frame[inside])
    assert (abs(left - frame).max(axis=2) > 60).sum() > 60
    assert abs(right[15:35, 15:35] - frame[15:35, 15:35]).max(axis=2).min() > 5
    assert np.array_equal(right[60:], frame[60:])


def test_the_worst_of_many_videos_come_first_and_the_rest_is_left_out(tmp_path):
    failures = [
        (f"v{n}", Failure(n, 1 - n / 100, 0.5, {}, {}), np.full((246, 876, 3), n, np.uint8))
        for n in range(60)
    ]
    write_failures(failures, tmp_path / "failures.jpg")
    with Image.open(tmp_path / "failures.jpg") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(int)
    assert pixels.shape[0] == 12 + 20 * (246 + 42)
    assert abs(pixels[100, 400] - 59) <= 1
    assert abs(pixels[100, 1300] - 58) <= 1
    assert abs(pixels[-100, 1300] - 20) <= 1


# The command

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["masklet", "eval", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


def test_the_command_prints_a_table_and_writes_it_with_the_failures(run, davis, tmp_path):
    out = tmp_path / "new" / "out"
    code, printed, _ = run(davis, "--model", "nano", "--prompt", "point", "--out", out)
    assert code == 0
    head, discs, mean = [line.split() for line in printed.splitlines()]
    assert head[:5] == ["sequence", "objects", "frames", "J&F", "J"]
    assert discs[:3] == ["discs", "3", "5"]
    assert mean[1:] == discs[1:]
    with (out / "scores.csv").open() as file:
        assert [" ".join(row).split() for row in csv.reader(file)] == [head, discs, mean]
    written = json.loads((out / "scores.json").read_text())
    assert (written["model"], written["prompt"]) == ("nano", "point")
    by_object = written["videos"]["discs"]["by_object"]
    assert by_object["5"]["frames"] == [3, 4, 5]
    values = [np.mean(one["j"]) for one in by_object.values()]
    assert written["mean"]["j"]["mean"] == pytest.approx(np.mean(values))
    assert f"{100 * np.mean(values):.1f}" == mean[4]
    with Image.open(out / "failures.jpg") as sheet:
        assert sheet.size == (900, 12 + 246 + 42)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "scribble"], "--prompt should be mask, box, point, not 'scribble'"),
        (["--model", "sam3"], "There is no model 'sam3'"),
        (["--checkpoint", "none.pt"], "There is no checkpoint file none.pt"),
        (["--sequences", "discs,../../etc"], "there is no video '../../etc'"),
        (["--out", "{davis}/JPEGImages/480p/discs/00000.jpg"], "00000.jpg"),
    ],
)
def test_refusals_are_one_line_and_no_model_is_loaded(run, davis, monkeypatch, options, words):
    def no_model(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(evaluation, "load_model", no_model)
    code, out, err = run(davis, "--model", "nano", *(text.format(davis=davis) for text in options))
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err


def test_a_folder_that_is_no_dataset_is_refused(run, tmp_path):
    code, _, err = run(tmp_path, "--model", "nano")
    assert (code, err.count("\n")) == (2, 1)
    assert "has no folders JPEGImages and Annotations" in err


def test_an_unreadable_picture_is_an_error_of_the_user(network, davis, tmp_path):
    root = tmp_path / "davis"
    for kind in ("JPEGImages", "Annotations"):
        folder = root / kind / "480p/discs"
        folder.mkdir(parents=True)
        for path in (davis / kind / "480p/discs").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    [video] = find_videos(root)
    damaged = video.source.path / video.source.names[3]
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    with pytest.raises(UserError, match=r"00003\.jpg in it cannot be decoded"):
        evaluate(video, network, "mask")
