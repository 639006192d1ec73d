"""The rating page in a real JupyterLab, driven by a headless Chromium: nothing that a rater clicked is lost, nothing is there twice."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from lib import ratings, results

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CHROMIUM, reason="no Chromium here: the page cannot be opened")]
HOSTILE = '<img src=x onerror="document.title=1"><b>bold</b> & **stars**'
SCREENSHOTS = os.environ.get("SCREENSHOTS")  # a folder: where to keep what the page looks like


def questions(number=10, systems=("one",), length=1):
    """Questions whose answers hold HTML."""
    return [{"id": f"q{n}", "question": f"Question {n}: what helps?", "answers": {s: f"{HOSTILE} answer {n} " + "It helps. " * length for s in systems}}
            for n in range(number)]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address, folder) of a JupyterLab without token; notebooks are written by `notebook`."""
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    places = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", f"--ServerApp.root_dir={folder}",
               "--IdentityProvider.token=", "--ServerApp.password=", "--LabApp.news_url=", "--LabApp.extension_manager=readonly"]
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, cwd=results.REPOSITORY, env=os.environ | places | {"PYTHONPATH": str(results.REPOSITORY)},
                                  stdout=log, stderr=log)
    address, ends = f"http://127.0.0.1:{port}", time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/status", timeout=2).close()
            break
        except OSError:
            assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
            assert time.monotonic() < ends, "JupyterLab does not answer"
            time.sleep(0.3)
    yield address, folder
    server.terminate()
    server.wait(20)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        one = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one
        one.close()


def notebook(lab, study, rater, before=""):
    """A notebook that shows the page of a rater; cells: the page, an empty one."""
    lines = [f"import os\n{before}", "from lib import ratings\n", "print('kernel', os.getpid())\n", f"ratings.rating_page({str(study)!r}, {rater!r})"]
    cell = {"cell_type": "code", "execution_count": None, "id": "page", "metadata": {}, "outputs": [], "source": "\n".join(lines)}
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    name = f"{study.name}-{rater}.ipynb"
    (lab[1] / name).write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return f"{lab[0]}/lab/workspaces/{study.name}{rater}/tree/{name}"


def run(page):
    """Execute the page's cell and wait for the form."""
    page.locator("#jp-main-statusbar", has_text="Idle").wait_for(timeout=60_000)
    page.locator(".jp-CodeCell .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    try:
        page.locator(".rating-page .axis").first.wait_for(timeout=60_000)
    finally:
        shot(page, "last_run")


def opened(browser, lab, study, rater, before="", size=(1280, 800)):
    page = browser.new_context(viewport={"width": size[0], "height": size[1]}).new_page()
    page.goto(notebook(lab, study, rater, before))
    page.locator(".jp-CodeCell .cm-content").first.wait_for(timeout=60_000)
    page.keyboard.press("Control+b")  # without the file browser, as one would
    run(page)
    return page


def rate(page, items, options=1):
    """Rate the items that follow by keyboard, the first option on every axis; wait until all is saved."""
    axes = page.locator(".rating-page .axis").count()
    page.locator(".rating-page").focus()
    for _ in range(items):
        for _ in range(axes):
            page.keyboard.press(str(options))
        page.keyboard.press("Enter")
    saved(page)


def saved(page):
    page.locator(".rating-page .saved").wait_for(timeout=20_000)


def shot(page, name):
    if SCREENSHOTS:
        page.screenshot(path=os.path.join(SCREENSHOTS, f"{name}.png"))


def rows(study, rater):
    return results.read_rows(study / "ratings" / f"{rater}.jsonl")


def test_ten_items_a_reload_and_nothing_lost(lab, browser):
    """Five items, reload, go on, five more; edit one; text is text; the file holds every score once."""
    study = lab[1] / "ten"
    ratings.make_study(study, "lay", questions(), ["anna"], ratings_per_answer=1)
    page = opened(browser, lab, study, "anna")
    assert page.locator(".rating-page .answer").inner_text().count(HOSTILE) == 1
    assert page.locator(".rating-page .answer img, .rating-page .answer b").count() == 0
    rate(page, 5)
    assert "5 done" in page.locator(".rating-page .count").inner_text()
    page.reload()
    page.locator(".jp-CodeCell .cm-content").first.wait_for(timeout=60_000)
    if not page.locator(".rating-page .axis").count():
        run(page)
    assert "6 of 10 · 5 done" in page.locator(".rating-page .count").inner_text()
    rate(page, 5)
    assert "10 done" in page.locator(".rating-page .count").inner_text()
    page.keyboard.press("p")  # back and edit: the second option on the first axis
    page.keyboard.press("ArrowUp")
    page.locator(".rating-page .axis").first.locator("button").nth(1).click()
    page.keyboard.press("c")
    page.keyboard.type("not sure")
    page.keyboard.press("Escape")
    saved(page)
    shot(page, "lay")
    assert page.title() != "1"
    table, excluded = ratings.read_ratings(study)
    assert len(table) == 20
    assert not table.duplicated(["answer", "rater", "axis"]).any()
    assert table["score"].sum() == 19
    assert excluded.empty
    assert len(rows(study, "anna")) == 22  # 20 clicks, 1 edit, 1 comment: every click is a line
    page.context.close()


def test_two_raters_at_once_and_twelve_axes_on_one_screen(lab, browser):
    study = lab[1] / "two"
    ratings.make_study(study, "independent", questions(3, length=120), ["anna", "ben"], ratings_per_answer=2)
    pages = {rater: opened(browser, lab, study, rater) for rater in ("anna", "ben")}
    for _ in range(3):
        for page in pages.values():
            rate(page, 1)
    for rater, page in pages.items():
        assert "3 done" in page.locator(".rating-page .count").inner_text()
        assert len(rows(study, rater)) == 36
    first = pages["anna"]
    first.keyboard.press("p")
    shot(first, "independent")
    last, frame = first.locator(".rating-page .axis").last.bounding_box(), first.locator(".rating-page .axes").bounding_box()
    assert last["y"] + last["height"] <= frame["y"] + frame["height"], "the twelfth axis is below the fold at 1280 x 800"
    table, _ = ratings.read_ratings(study)
    assert table.groupby("rater").size().to_dict() == {"anna": 36, "ben": 36}
    for page in pages.values():
        page.context.close()


def test_a_killed_kernel_a_full_disk_and_a_torn_line(lab, browser):
    """A click that could not be saved is shown as such, kept in the browser, and sent when the page is back; a torn line is cut off."""
    study = lab[1] / "hard"
    ratings.make_study(study, "pairwise", questions(4, ("x", "y"), 30), ["anna"], ratings_per_answer=1)
    full = ("from lib import results\nwhole = results.append_row\ndef disk(path, row):\n    if os.path.exists('full'):\n"
            "        raise OSError(28, 'No space left on device')\n    whole(path, row)\nresults.append_row = disk\n")
    page = opened(browser, lab, study, "anna", full)
    rate(page, 1, options=1)
    (lab[1] / "full").touch()
    page.keyboard.press("1")
    page.keyboard.press("2")
    page.locator(".rating-page .problem", has_text="No space left").wait_for(timeout=20_000)
    shot(page, "full_disk")
    assert len(rows(study, "anna")) == 9
    (lab[1] / "full").unlink()
    page.locator(".rating-page .again").click()
    saved(page)
    assert len(rows(study, "anna")) == 11
    kernel = int(page.locator(".jp-OutputArea-output", has_text="kernel").first.inner_text().split()[1])
    os.kill(kernel, signal.SIGKILL)
    page.locator(".rating-page").focus()
    page.keyboard.press("3")
    path = study / "ratings" / "anna.jsonl"
    with open(path, "a") as stream:  # as a kill in the middle of a line would leave it
        stream.write('{"task": "torn')
    page.wait_for_timeout(6_000)
    shot(page, "dead_kernel")
    for button in page.locator(".jp-Dialog button").all():  # "the kernel died"
        if button.is_visible():
            button.click()
            break
    page.reload()
    page.locator(".jp-CodeCell .cm-content").first.wait_for(timeout=60_000)
    page.wait_for_timeout(1_000)
    run(page)
    saved(page)
    rate(page, 3, options=3)
    assert "4 done" in page.locator(".rating-page .count").inner_text()
    shot(page, "pairwise")
    table, _ = ratings.read_ratings(study)
    assert len(table) == 36
    assert not table.duplicated(["answer", "rater", "axis"]).any()
    assert all(json.loads(line) for line in path.read_text().splitlines())
    page.context.close()


def test_the_page_on_a_tablet_and_with_several_answers(lab, browser):
    study = lab[1] / "tablet"
    ratings.make_study(study, "ranking", questions(2, ("x", "y", "z"), 20), ["anna"], ratings_per_answer=1)
    page = opened(browser, lab, study, "anna", size=(820, 1180))
    for axis in page.locator(".rating-page .axis").all():
        for answer, line in enumerate(axis.locator(".ranks").all()):
            line.locator("button").nth(answer).click()
    saved(page)
    shot(page, "tablet")
    wide = page.locator(".rating-page").bounding_box()
    assert wide["x"] + wide["width"] <= 820
    table, _ = ratings.read_ratings(study)
    assert sorted(table["score"]) == 3 * [1] + 3 * [2] + 3 * [3]
    page.context.close()
