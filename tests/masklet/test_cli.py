"""The command line: its options, one line for every refusal, and nothing written then."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masklet import pipeline
from masklet.cli import main
from masklet.errors import UserError
from masklet.job import SegmentJob
from masklet.media import Source, probe, write_video
from masklet.pipeline import Outputs

WIDTH, HEIGHT, FRAMES = 64, 48, 10
CLICK: dict[str, Any] = {"frame_index": 0, "object_id": 1, "points": [[5, 6]], "labels": [1]}
# what makes rich print boxes, colors and wrapped lines
TERMINAL = {"COLUMNS": "40", "TERM": "xterm-256color", "FORCE_COLOR": "1"}

Run = Callable[..., tuple[int, str, str]]
Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    frames = (np.full((HEIGHT, WIDTH, 3), 20 * number, np.uint8) for number in range(FRAMES))
    write_video(path, frames, width=WIDTH, height=HEIGHT, frame_rate=Fraction(10))
    return path


@pytest.fixture(scope="module")
def source(clip: Path) -> Source:
    return probe(clip)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Call `masklet ARGUMENTS` in `tmp_path`; no model may be loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORCE_COLOR", raising=False)

    def no_model(*_: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(pipeline, "load_model", no_model)

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["masklet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        return int(stopped.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def refuse(run: Run, tmp_path: Path) -> Refuse:
    """The line with which `masklet segment … --out out` refuses, without a trace on the disk."""

    def call(*arguments: Any) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run("segment", "--out", "out", "--model-type", "nano", *arguments)
        assert (code, out) == (2, "")
        assert sorted(tmp_path.rglob("*")) == before
        return one_line(err)

    return call


def one_line(err: str) -> str:
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1
    assert err.startswith("masklet: ")
    return err.removeprefix("masklet: ").rstrip("\n")


def save(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


# Refusals


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [
        ([], [], "the job has no prompts"),
        ([{**CLICK, "labels": [1, 0]}], [], "prompts[0] (frame 0, object 1) has 1 points but 2"),
        ([CLICK, {**CLICK, "frame_index": 99}], [], "prompts[1] (frame 99, object 1): there is no"),
        ([{**CLICK, "points": [[64, 0]]}], [], "prompts[0] (frame 0, object 1): the point (64, 0)"),
        ([CLICK, {**CLICK, "object_id": "1"}], [], "1 and '1' differ only in type"),
        ([{**CLICK, "object_id": "../x"}], [], "prompts[0] (frame 0, object '../x') object_id"),
        ([{**CLICK, "[red]": 1}], [], "[red] is not a field"),
        ([{**CLICK, "\x1b[2Jx": 1}], [], "[2Jx is not a field"),
        ([{**CLICK, "[/red] :smile: " + "very long " * 99: 1}], [], "[/red] :smile: very long"),
        ([{**CLICK, "object_id": "\x1b[2J\x9b"}], [], "object_id"),
        ([CLICK], ["--start-frame", 5], "prompts[0] (frame 0, object 1): the frame is outside"),
        ([CLICK], ["--start-frame", 5, "--end-frame", 2], "start_frame 5 is after end_frame 2"),
        ([CLICK], ["--end-frame", 10], "end_frame is 10"),
        ([CLICK], ["--start-frame", -2], "start_frame should be greater than or equal to -1"),
        ([CLICK], ["--frame-interval", 0], "frame_interval should be greater than or equal to 1"),
        ([CLICK], ["--frame-interval", 10**30], "frame_interval should be less than or equal"),
        ([CLICK], ["--direction", "up"], "'forward', 'backward' or 'both', not 'up'"),
        ([CLICK], ["--device", "tpu"], "not 'tpu'"),
        ([CLICK], ["--model-type", "sam3"], "There is no model 'sam3'"),
        ([CLICK], ["--model-type", "[red]"], "There is no model '[red]'"),
        ([CLICK], ["--checkpoint", "none.pt"], "none.pt"),
        ([CLICK], ["--multimask-output"], "multimask_output is for images, and clip.mp4 is"),
        ([CLICK], ["--mask-prompts", "none.zip"], "none.zip: cannot be read: No such file"),
        ([CLICK], ["--mask-prompts", "prompts.json"], "prompts.json: is not a zip of masks"),
        ([CLICK], ["--prompts", "none.json"], "none.json: cannot be read: No such file"),
        ([CLICK], ["--prompts", "."], "cannot be read: Is a directory"),
        ([CLICK], ["--config", "none.yaml"], "none.yaml: cannot be read: No such file"),
        ([CLICK], ["--config", "prompts.json"], "a job file is a mapping"),
    ],
)
def test_a_job_that_is_wrong(
    refuse: Refuse,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    clip: Path,
    source: Source,
    prompts: list[Any],
    options: list[Any],
    words: str,
) -> None:
    monkeypatch.setattr(pipeline, "probe", lambda file: source)
    for name, value in TERMINAL.items():
        monkeypatch.setenv(name, value)
    save(tmp_path / "prompts.json", prompts)
    message = refuse(clip, "--prompts", "prompts.json", *options)
    assert words in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("none.mp4", "none.mp4"),
        ("-i", "-i"),
        ("new\nline\x1b[31m.mp4", "line"),
        ("[red]none.mp4", "[red]none.mp4"),
        (":smile:.mp4", ":smile:.mp4"),
        ("x" * 300, "xxx"),
        ("a\0b", "NUL"),
        (".", "is a folder"),
        ("", "file"),
        ("ftp://example.org/a.mp4", "ftp:// addresses are not fetched from here"),
        ("ftp://example.org/a.mp4?by=a.json", "ftp:// addresses are not fetched from here"),
        ("prompts.json", "prompts.json"),
        ("job.yaml", "job.yaml is no video: if it is a job file, put --config before it"),
    ],
)
def test_a_file_that_is_no_video(refuse: Refuse, tmp_path: Path, file: str, words: str) -> None:
    save(tmp_path / "prompts.json", [CLICK])
    message = refuse("--prompts", "prompts.json", "--", file)
    assert words in message
    assert message.isprintable()


@pytest.mark.parametrize("name", ["-i", "new\nline.mp4", "[red].mp4"])
def test_a_video_of_an_odd_name_is_read(run: Run, tmp_path: Path, clip: Path, name: str) -> None:
    (tmp_path / name).write_bytes(clip.read_bytes())
    save(tmp_path / "prompts.json", [CLICK])
    code, out, _ = run("price", "--prompts", "prompts.json", "--", name)
    assert (code, out) == (0, "0.0100\n")


def test_a_mask_that_is_wrong_is_named_by_its_entry(
    refuse: Refuse, tmp_path: Path, clip: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "masks.zip", "w") as archive:
        archive.writestr("0_1.png", b"no picture")
    message = refuse(clip, "--mask-prompts", "masks.zip")
    assert message.startswith("masks.zip: '0_1.png' is not a readable PNG")


def test_no_model_of_that_name_here(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Path
) -> None:
    monkeypatch.setattr("masklet.models.locate_checkpoint", lambda spec, checkpoint=None: None)
    code, _, err = run("segment", clip, "--out", "out")
    assert code == 2
    assert "masklet models pull large" in one_line(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "clip.mp4"], "'--out'"),
        (["segment", "clip.mp4", "--out", "out", "--start-frame", "x"], "'--start-frame'"),
        (["segment", "clip.mp4", "--out", "out", "--start-frame", "1.5"], "'--start-frame'"),
        (["segment", "clip.mp4", "--out", "out", "--bogus"], "--bogus"),
        (["segment", "clip.mp4", "more.mp4", "--out", "out"], "more.mp4"),
        (["segment", "clip.mp4", "--out"], "'--out'"),
        (["segment", "clip.mp4", "--out", ""], "out is empty"),
        (["segment", "--out", "out"], "name a video"),
        (["segment", "-i", "--out", "out"], "-i"),
        (["price", "--out", "out", "clip.mp4"], "--out"),
        (["price", "--debug-masks=5", "clip.mp4"], "--debug-masks"),
        (["price"], "name a video"),
        (["prompts", "bogus"], "'bogus'"),
        (["prompts", "check", "none.json"], "VIDEO"),
        (["prompts", "check", "none.json", "clip.mp4"], "none.json: cannot be read"),
        (["schema", "clip.mp4"], "clip.mp4"),
        (["bogus"], "'bogus'"),
        (["--bogus"], "--bogus"),
        (["models", "bogus"], "'bogus'"),
        (["models", "pull"], "NAME"),
        (["models", "pull", "bogus"], "There is no model 'bogus'"),
        (["segment", "[red]" * 99 + "\n", "--bogus\n[/red]"], "[/red]"),
    ],
)
def test_a_command_line_that_is_wrong(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], words: str
) -> None:
    for name, value in TERMINAL.items():
        monkeypatch.setenv(name, value)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words.lower() in one_line(err).lower()
    assert not (tmp_path / "out").exists()


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50
)
@given(
    st.lists(
        st.text(max_size=8)
        | st.sampled_from(["segment", "price", "models", "--config", "--prompts", "-o", "--"]),
        max_size=5,
    )
)
def test_whatever_is_typed_is_answered_in_one_line(run: Run, arguments: list[str]) -> None:
    # the commands that work without a file, and an empty one, print a table or the help
    code, _, err = run("price", *arguments, "--no-such-option")
    assert code in (0, 2)
    if code == 2:
        one_line(err)


# What works


def test_the_help_of_every_command(run: Run) -> None:
    code, out, err = run("--help")
    assert (code, err) == (0, "")
    for command in ("segment", "price", "models"):
        assert re.search(rf"^  {command} .*\w.*[^.]\.$", out, re.MULTILINE), out
        code, text, err = run(command, "--help")
        assert (code, err) == (0, "")
        assert f"masklet {command}" in text
    assert run()[:2] == (0, out)
    assert run("models", "pull", "--help")[0] == 0


@pytest.mark.parametrize("command", ["segment", "price"])
def test_the_help_has_every_field_and_its_default(run: Run, command: str) -> None:
    text = " ".join(run(command, "--help")[1].split())
    for name in set(SegmentJob.model_fields) - {"file"}:
        assert f"--{name.replace('_', '-')} " in text
    for default in ("large", "auto", "forward", "1"):
        assert f"[default: {default}]" in text
    assert "{frame_index}_{object_id}.png" in text


def test_a_price_is_the_number_alone(run: Run, tmp_path: Path, clip: Path) -> None:
    prompts = save(tmp_path / "prompts.json", [CLICK, {**CLICK, "object_id": "b"}])
    code, out, err = run("price", clip, "--prompts", prompts, "--frame-interval", 3)
    assert (code, out) == (0, "0.0100\n")
    assert "4 frames, 2 objects, sam2.1_hiera_large" in err


def test_a_price_above_the_least(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Source
) -> None:
    long = Source(**{**vars(source), "pts": tuple(range(1800))})
    monkeypatch.setattr(pipeline, "probe", lambda file: long)
    prompts = save(tmp_path / "prompts.json", [CLICK, {**CLICK, "object_id": "b"}])
    arguments = ("price", "clip.mp4", "--prompts", prompts)
    assert run(*arguments)[1] == "0.2736\n"
    assert run(*arguments, "--model-type", "tiny")[1] == "0.2016\n"


def test_the_price_of_a_preview(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Source
) -> None:
    long = Source(**{**vars(source), "pts": tuple(range(180_000))})
    monkeypatch.setattr(pipeline, "probe", lambda file: long)
    prompts = save(tmp_path / "prompts.json", [CLICK, {**CLICK, "frame_index": 170_000}])
    code, out, err = run("price", "clip.mp4", "--prompts", prompts, "--preview")
    assert (code, out) == (0, "0.0100\n")
    assert "2 frames, 1 object, " in err


def test_a_price_for_a_wrong_job(run: Run, tmp_path: Path, clip: Path) -> None:
    prompts = save(tmp_path / "prompts.json", [{**CLICK, "frame_index": 10}])
    code, out, err = run("price", clip, "--prompts", prompts)
    assert (code, out) == (2, "")
    assert one_line(err).startswith("prompts[0] (frame 10, object 1)")


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[SegmentJob, Path]]:
    """The jobs that `masklet segment` is about to run; none is run."""
    seen: list[tuple[SegmentJob, Path]] = []

    def record(job: SegmentJob, out: Path, **_: Any) -> Outputs:
        seen.append((job, out))
        summary = {"frames": 4, "objects": [1, "b"], "price": 0.01}
        return Outputs({"masks": f"{out}/masks.zip"}, summary, {"propagate": 2.0})

    monkeypatch.setattr(pipeline, "run_job", record)
    return seen


def test_options_are_the_fields_of_the_job(
    run: Run, jobs: list[tuple[SegmentJob, Path]], tmp_path: Path
) -> None:
    prompts = save(tmp_path / "prompts.json", {"prompts": [CLICK]})
    options = (
        *("--model-type", "tiny", "--checkpoint", "w.pt", "--device", "cpu", "--prompts", prompts),
        *("--mask-prompts", "m.zip", "--start-frame", 1, "--end-frame", 8, "--frame-interval", 2),
        *("--direction", "both", "--debug-masks", "--pixel-confidences", "--bbox-tracking"),
        *("--preview", "--strict", "--multimask-output", "--no-keep-masklets"),
        *("--max-cond-frames", 4),
        *("--precision", "bfloat16", "--compile", "-o", "out"),
    )
    code, out, _ = run("segment", "clip.mp4", *options)
    assert code == 0
    assert "out/masks.zip" in out
    assert "4 frames, 2 objects, prompted frames only, price $0.0100" in out
    assert jobs[0][1] == Path("out")
    assert jobs[0][0].model_dump() == {
        "file": "clip.mp4",
        "model_type": "tiny",
        "checkpoint": Path("w.pt"),
        "device": "cpu",
        "prompts": [{**CLICK, "points": [(5, 6)], "box": None}],
        "mask_prompts": Path("m.zip"),
        "start_frame": 1,
        "end_frame": 8,
        "frame_interval": 2,
        "direction": "both",
        "debug_masks": True,
        "pixel_confidences": True,
        "bbox_tracking": True,
        "preview": True,
        "strict": True,
        "multimask_output": True,
        "keep_masklets": False,
        "max_cond_frames": 4,
        "precision": "bfloat16",
        "compile": True,
    }


def test_paths_of_the_outputs_are_printed_as_they_are(
    run: Run, jobs: list[tuple[SegmentJob, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    out = "[/red] :smile: " + "long/" * 40
    code, printed, _ = run("segment", "clip.mp4", "--out", out)
    assert (code, len(jobs)) == (0, 1)
    assert f"{Path(out)}/masks.zip\n" in printed


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_job_file_and_options_that_override_it(
    run: Run, jobs: list[tuple[SegmentJob, Path]], tmp_path: Path, suffix: str
) -> None:
    folder = tmp_path / "jobs"
    folder.mkdir()
    save(folder / "p.json", [CLICK])
    save(tmp_path / "p.json", [CLICK, {**CLICK, "object_id": 2}])
    config = save(
        folder / f"job.{suffix}",
        {
            "file": "in_folder.mp4",
            "prompts": "p.json",
            "mask_prompts": "m.zip",
            "debug_masks": True,
            "end_frame": 5,
        },
    )
    assert run("segment", "--config", config, "--out", "out")[0] == 0
    # a relative path to the job file, too
    relative = config.relative_to(tmp_path)
    overriding = ("--prompts", "p.json", "--mask-prompts", "n.zip", "--no-debug-masks")
    assert run("segment", "here.mp4", "--config", relative, "--out", "out", *overriding)[0] == 0
    assert run("segment", "--config", relative, "--out", "out", "--end-frame", 3)[0] == 0
    (first, _), (second, _), (third, _) = jobs
    assert first.file == third.file == str(folder / "in_folder.mp4")
    assert first.mask_prompts == third.mask_prompts == folder / "m.zip"
    assert (len(first.prompts), first.debug_masks, first.end_frame) == (1, True, 5)
    assert second.file == str(tmp_path / "here.mp4")
    assert second.mask_prompts == tmp_path / "n.zip"
    assert (len(second.prompts), second.debug_masks, second.end_frame) == (2, False, 5)
    assert (third.debug_masks, third.end_frame) == (True, 3)


def test_a_job_file_that_is_wrong(refuse: Refuse, tmp_path: Path) -> None:
    save(tmp_path / "job.json", {"file": "a.mp4", "prompts": [{**CLICK, "labels": [3]}]})
    message = refuse("--config", "job.json")
    assert message.startswith("prompts[0] (frame 0, object 1) labels.0 should be 0 or 1, not 3")


def test_a_refusal_while_the_bars_are_shown_is_one_line(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(job: SegmentJob, out: Path, **_: Any) -> Outputs:
        raise UserError("the disk is full")

    monkeypatch.setattr(pipeline, "run_job", fail)
    assert refuse("clip.mp4") == "the disk is full"


def test_progress_is_shown_on_stderr(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def report(job: SegmentJob, out: Path, *, progress: Callable[..., None], **_: Any) -> Outputs:
        for done in range(5):
            progress("propagate", done, 4)
        summary = {"frames": 4, "objects": [1], "price": 0.01}
        return Outputs({"masks": "masks.zip"}, summary, {"propagate": 0.0})

    monkeypatch.setattr(pipeline, "run_job", report)
    code, out, err = run("segment", "clip.mp4", "--out", "out")
    assert code == 0
    assert "propagate" in err
    assert "4/4" in err
    assert "nothing to track again" in out


# As real processes


def masklet(*arguments: Any, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", "from masklet.cli import main; main()", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parents[1]), **environment},
        capture_output=True,
        timeout=300,
    )


def test_a_refusal_of_a_real_process(tmp_path: Path) -> None:
    # a file name that is no UTF-8, on a terminal that is none either
    name = os.fsdecode(b"\xff[red]\xe9.mp4")
    done = masklet("price", name, cwd=tmp_path, PYTHONIOENCODING="ascii", **TERMINAL)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.count(b"\n") == 1
    assert b"[red]" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_has_gone_is_no_defect(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", "from masklet.cli import main; main()", "segment", "--help"],
        env={**os.environ, "PYTHONPATH": str(Path(pipeline.__file__).parents[1])},
        stdout=write,
        stderr=subprocess.PIPE,
        timeout=300,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_the_command_line_starts_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; import masklet.cli.app; "
        "print([name for name in ('torch', 'sam2', 'prefect') if name in sys.modules])"
    )
    root = Path(pipeline.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, timeout=300, check=True
    )
    assert done.stdout == b"[]\n"
