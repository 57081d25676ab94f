"""Fill in the form of `segment` in a real browser, and look at what a run shows there.

    python -m benchmarks.ui_check [--browser /usr/bin/chromium] [--out out/ui]

Uses a server and a worker of its own. Checks that the form has every field of a job with its
description, its default and its choices; that points and boxes are entered by hand; that wrong
values are refused; that a run shows its stages, logs and pictures; and that a run which waits for
approval goes on. Screenshots lie in out/ui; last.png is the page as the last check left it. Needs
`pip install playwright`, and Chromium, from the system or by `playwright install chromium`.
"""

import argparse
import tempfile
from pathlib import Path

from playwright.sync_api import Locator, Page, expect, sync_playwright
from rich.console import Console

from benchmarks.deploy_check import write_disc
from benchmarks.stack import Stack, running_stack, wait_for
from masklet.job import SegmentJob
from masklet.models import model_names

_PATIENCE = 60_000  # milliseconds
_ON_ALL_FRAMES = "is on 20 of 20 frames"


class Form:
    """The page `Run` of the deployment `segment`, in the newer user interface."""

    def __init__(self, page: Page, stack: Stack) -> None:
        self.page, self._stack = page, stack
        deployment = stack.deployment("segment/segment")["id"]
        page.goto(f"{stack.url}/v2/deployments/deployment/{deployment}/run")
        self.field("File").wait_for()

    def field(self, label: str, nth: int = 0) -> Locator:
        """The field with this label; the nth, where several entries have one."""
        for words in (label, f"{label} (Optional)"):
            if self.page.get_by_label(words, exact=True).count() > nth:
                return self.page.get_by_label(words, exact=True).nth(nth)
        return self.page.get_by_label(label, exact=True).nth(nth)

    def choose(self, label: str, choice: str) -> None:
        self.page.get_by_role("button", name=f"Select {label}", exact=True).click()
        self.page.get_by_role("option", name=choice, exact=True).click()

    def box_of(self, label: str) -> Locator:
        """A field with its label and its description."""
        words = self.page.get_by_text(f"{label} (Optional)", exact=True)
        if words.count() == 0:
            words = self.page.get_by_text(label, exact=True)
        return words.first.locator("xpath=ancestor::div[.//fieldset][1]")

    def add_prompt(self, kind: str, **values: object) -> None:
        nth = self.page.get_by_role("tab", name=kind, exact=True).count()
        self.page.get_by_role("button", name="Add item").last.click()
        self.page.get_by_role("tab", name=kind, exact=True).nth(nth).click()
        for label, value in values.items():
            words = label.replace("_", " ").title()
            if label == "object_id":
                self.page.get_by_text("Object Id", exact=True).last.locator(
                    "xpath=ancestor::div[.//input][1]"
                ).locator("input").first.fill(str(value))
                continue
            self.page.get_by_label(words, exact=True).last.fill(str(value))

    def submit(self) -> None:
        self.page.get_by_role("button", name="Submit").click()


def main() -> None:
    parser = argparse.ArgumentParser(description="Check the user interface in a real browser.")
    parser.add_argument("--browser", help="Chromium's executable, if it is not playwright's own")
    parser.add_argument("--out", type=Path, default=Path("out/ui"), help="folder for screenshots")
    options = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = Path(options.browser or playwright.chromium.executable_path)
        if not browser.exists():
            parser.error(f"no Chromium at {browser}: install it, or say --browser PATH")
        options.out.mkdir(parents=True, exist_ok=True)
        folder = Path(temporary)
        write_disc(folder / "disc.mp4")
        # a container has neither the sandbox nor much shared memory
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=options.browser, args=arguments)
        with running_stack(folder / "prefect") as stack:
            for check in (fields, refused, run_by_hand, approved):
                page = chromium.new_page(viewport={"width": 1400, "height": 1000})
                page.set_default_timeout(_PATIENCE)
                expect.set_options(timeout=_PATIENCE)
                try:
                    check(page, stack, folder, options.out)
                finally:
                    page.screenshot(path=options.out / "last.png")
                page.close()
                console.print(f"{check.__name__:<12} as expected")
        chromium.close()
    console.print(f"screenshots in {options.out}")


def fields(page: Page, stack: Stack, folder: Path, out: Path) -> None:
    """Every field of a job with its description, its default and its choices."""
    page.set_viewport_size({"width": 1400, "height": 3000})
    form = Form(page, stack)
    page.screenshot(path=out / "form.png")
    shown = page.locator("body").inner_text()
    schema = SegmentJob.model_json_schema()["properties"]
    for name, about in schema.items():
        words = name.replace("_", " ").title()
        check(words in shown, f"the field {words}")
        check(about["description"] in shown, f"the description of {words}")
        default, box = about.get("default"), form.box_of(words)
        if isinstance(default, bool):
            state = form.field(words).get_attribute("aria-checked")
            check(state == str(default).lower(), f"{words} to be {default}")
        elif isinstance(default, int):
            check(form.field(words).input_value() == str(default), f"{words} to be {default}")
        elif isinstance(default, str):
            choices = model_names() if name == "model_type" else about["enum"]
            check(default in box.inner_text(), f"{words} to be {default}")
            box.get_by_role("button", name=f"Select {words}", exact=True).click()
            offered = page.get_by_role("option").all_inner_texts()
            check(set(choices) <= set(offered), f"the choices {choices} of {words}")
            page.keyboard.press("Escape")


def refused(page: Page, stack: Stack, folder: Path, out: Path) -> None:
    """A number out of range is refused in the form; no run is made of it."""
    page.set_viewport_size({"width": 1400, "height": 3000})
    form = Form(page, stack)
    form.field("File").fill(str(folder / "disc.mp4"))
    form.field("out").fill(str(folder / "refused"))
    form.field("Frame Interval").fill("0")
    form.submit()
    said = form.field("Frame Interval").evaluate("field => field.validationMessage")
    check("1" in said, "the form to refuse a frame interval of 0")
    page.screenshot(path=out / "refused.png")
    page.wait_for_timeout(2000)
    check(page.url.endswith("/run"), "the form to stay")


def fill_in(form: Form, folder: Path, run_directory: Path) -> None:
    form.field("File").fill(str(folder / "disc.mp4"))
    form.choose("Model Type", "nano")
    form.field("out").fill(str(run_directory))
    form.add_prompt("Point prompt", frame_index=0, object_id=1, x=40, y=45)
    box = {"x_min": 20, "y_min": 10, "x_max": 120, "y_max": 90}
    form.add_prompt("Box prompt", frame_index=4, object_id=2, **box)


def run_by_hand(page: Page, stack: Stack, folder: Path, out: Path) -> None:
    page.set_viewport_size({"width": 1400, "height": 3600})
    form = Form(page, stack)
    fill_in(form, folder, folder / "by_hand")
    page.screenshot(path=out / "filled.png")
    form.submit()
    run = newest_run(stack)
    state = stack.ended(run)
    check(state[0] == "COMPLETED", f"a completed run, not {state}")
    # of a run that has ended the newer page asks for the logs once, and some may still be under way
    wait_for("the logs of the run", lambda: _when(_ON_ALL_FRAMES in logs_of(stack, run)), 60)
    page.set_viewport_size({"width": 1400, "height": 1400})
    for version, prefix in (("v2", "/v2"), ("v1", "")):
        page.goto(f"{stack.url}{prefix}/runs/flow-run/{run}")
        expect(page.get_by_text(_ON_ALL_FRAMES).first).to_be_visible()
        page.wait_for_timeout(10_000)  # the graph is drawn, and moves into its place
        page.screenshot(path=out / f"run-{version}.png")
        page.get_by_role("tab", name="Artifacts").or_(
            page.get_by_text("Artifacts", exact=True)
        ).last.click()
        expect(page.get_by_text("contact-sheet").first).to_be_visible()
        page.screenshot(path=out / f"artifacts-{version}.png")
        for key in ("contact-sheet", "outputs", "objects", "price", "reasons"):
            page.goto(f"{stack.url}{prefix}/artifacts/artifact/{newest_artifact(stack, run, key)}")
            expect(page.get_by_text(key).first).to_be_visible()
            page.wait_for_timeout(1500)
            page.screenshot(path=out / f"{key}-{version}.png")
            if key == "contact-sheet":
                widths = page.evaluate("[...document.images].map(one => one.naturalWidth)")
                check(max(widths, default=0) > 600, f"a picture, not widths of {widths}")


def approved(page: Page, stack: Stack, folder: Path, out: Path) -> None:
    """The preview is shown, the run waits without a worker, and is resumed in the browser."""
    page.set_viewport_size({"width": 1400, "height": 3600})
    form = Form(page, stack)
    fill_in(form, folder, folder / "approved")
    form.field("approve").click()
    form.submit()
    run = newest_run(stack)
    waits = wait_for("a run that waits", lambda: _when(stack.state(run)[0] == "PAUSED"), 300)
    check(waits and not (folder / "approved" / "masks.zip").exists(), "no masks yet")
    page.set_viewport_size({"width": 1400, "height": 1400})
    page.goto(f"{stack.url}/v2/artifacts/artifact/{newest_artifact(stack, run, 'prompted-frames')}")
    page.wait_for_timeout(2000)
    page.screenshot(path=out / "preview.png")
    page.goto(f"{stack.url}/v2/runs/flow-run/{run}")
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name="Resume", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Select").first.click()
    page.get_by_role("option", name="approve", exact=True).click()
    page.screenshot(path=out / "resume.png")
    dialog.get_by_role("button", name="Resume", exact=True).click()
    state = stack.ended(run)
    check(state[0] == "COMPLETED", f"a completed run, not {state}")
    check((folder / "approved" / "masks.zip").exists(), "masks")


def newest_run(stack: Stack) -> str:
    def look() -> str | None:
        found = stack.curl("/flow_runs/filter", {"sort": "EXPECTED_START_TIME_DESC", "limit": 1})
        new = [run["id"] for run in found if run["id"] not in _SEEN]
        _SEEN.update(new)
        return new[0] if new else None

    return wait_for("a run made by the form", look, 60)


_SEEN: set[str] = set()


def logs_of(stack: Stack, run: str) -> str:
    found = stack.curl("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
    return "\n".join(log["message"] for log in found)


def newest_artifact(stack: Stack, run: str, key: str) -> str:
    of_run = {"flow_run_id": {"any_": [run]}, "key": {"any_": [key]}}
    found = stack.curl("/artifacts/filter", {"artifacts": of_run, "sort": "CREATED_DESC"})
    return str(found[0]["id"])


def _when(holds: bool) -> bool | None:
    return True if holds else None


def check(holds: bool, what: str) -> None:
    if not holds:
        raise SystemExit(f"expected {what}")


if __name__ == "__main__":
    main()
