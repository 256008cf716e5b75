"""The app as its users see it, in headless Chromium: what is shown, uploaded, moved and downloaded."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from urllib.parse import urlparse

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("detectron2")
pytest.importorskip("streamlit")
pytest.importorskip("playwright")

from playwright import sync_api

from mrcnn_ext.app.inputs import sample_scene
from mrcnn_ext.app.serve import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
PATIENCE = 40_000  # milliseconds, on a loaded machine

pytestmark = [
    pytest.mark.detectron2,
    pytest.mark.skipif(CHROMIUM is None, reason="the app's browser test needs Chromium"),
]


@pytest.fixture
def server(checkpoints, tmp_path):
    """The address of ``mrcnn-ext app`` with two models."""
    port = free_port("localhost", 0)
    command = [
        sys.executable,
        "-m",
        "mrcnn_ext",
        "app",
        str(checkpoints[0]),
        "--compare",
        str(checkpoints[1]),
    ]
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    try:
        deadline = time.monotonic() + 120
        while "URL:" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://localhost:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
        # Streamlit prints one of its own where a page closes its connection before it is open.
        assert not re.search(r'File "[^"]*mrcnn_ext[/\\](app|accel|inference|modeling)\b', log.read_text()), (
            log.read_text()
        )
    finally:
        process.kill()


class User:
    """A page in a window of its own, and all that it asked for and complained of."""

    def __init__(self, browser, address, width=1400, height=1000):
        self.page = browser.new_context(viewport={"width": width, "height": height}).new_page()
        self.page.set_default_timeout(PATIENCE)
        self.complaints, self.hosts = [], set()
        self.page.on("console", lambda m: m.type == "error" and self.complaints.append(m.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlparse(request.url).hostname))
        self.address = address

    def arrives(self):
        self.page.goto(self.address)
        self.page.locator(".overlay svg").wait_for()

    def sees(self, text):
        sync_api.expect(self.page.get_by_text(text).first).to_be_visible(timeout=PATIENCE)

    def counts(self, selector, number):
        sync_api.expect(self.page.locator(selector)).to_have_count(number, timeout=PATIENCE)

    def shows_scores(self, scores):
        wanted, seen = sorted(f"{score:.2f}" for score in scores), []
        deadline = time.monotonic() + PATIENCE / 1000
        while seen != wanted and time.monotonic() < deadline:
            self.page.wait_for_timeout(200)
            labels = "groups => groups.map(group => group.getAttribute('aria-label'))"
            labels = self.page.locator(".object").evaluate_all(labels)
            seen = sorted(label.rpartition(" ")[2] for label in labels)
        assert seen == wanted

    def slides(self, name, *keys):
        slider = self.page.get_by_role("slider", name=name)
        slider.focus()
        for key in keys:
            slider.press(key)

    def opens(self, tab):
        self.page.get_by_role("tab", name=tab).click()

    def toggles(self, name):
        self.page.get_by_text(name, exact=True).click()

    def downloads(self, name):
        # What a button gives is replaced when the page runs.
        self.page.locator("[data-test-script-state=notRunning]").wait_for()
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=name).click()
        with open(download.value.path(), "rb") as file:
            return download.value.suggested_filename, file.read()


def test_the_app(server, models, tmp_path, noise):
    expected = models[0].predict(sample_scene(0)).instances
    sure = int((expected.scores >= 0.5).sum())
    assert 0 < sure < len(expected)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        first = User(browser, server)
        with screenshot_of_failure(first, tmp_path):
            first.arrives()
            threshold_and_toggles(first, expected, sure)
            pointing(first, models[0])
            downloads(first, len(expected), models[0])
            heads(first)
            roi_layers(first)
            comparison_and_speed(first, models[1].predict(sample_scene(0)).instances)
        second = User(browser, server, width=500)
        with screenshot_of_failure(second, tmp_path):
            second.arrives()
            uploads(second, noise, tmp_path)
            narrow_window(second)
        first.opens("Detections")
        first.sees("scene 0.png")  # whatever the other looks at
        for user in (first, second):
            assert user.complaints == []
            assert user.hosts - {None, ""} == {"localhost"}  # data: and blob: addresses have none
        browser.close()


@contextlib.contextmanager
def screenshot_of_failure(user, folder):
    try:
        yield
    except BaseException:
        user.page.screenshot(path=folder / "failure.png", full_page=True)
        print(f"what the browser showed: {folder / 'failure.png'}; its console: {user.complaints}")
        raise


def threshold_and_toggles(user, expected, sure):
    user.shows_scores(expected.scores[:sure].tolist())
    user.slides("Score threshold", "End")
    user.sees(f"Nothing above the threshold; {len(expected)} below it.")
    user.slides("Score threshold", "Home")
    user.counts(".object", len(expected))
    for name, selector in (("Boxes", ".box:not([stroke=none])"), ("Masks", ".mask"), ("Keypoints", ".point")):
        assert user.page.locator(selector).count() > 0
        user.toggles(name)
        user.counts(selector, 0)
        user.toggles(name)
        user.counts(".object", len(expected))
    user.toggles("Labels")
    user.counts(".label", 0)
    user.toggles("Labels")
    user.counts(".label", len(expected))


def pointing(user, model):
    group = user.page.locator(".object").last
    label = group.get_attribute("aria-label")
    assert label.rpartition(" ")[0] in model.classes
    group.locator(".box").dispatch_event("pointermove", {"clientX": 500, "clientY": 400})
    sync_api.expect(user.page.locator(".tip")).to_contain_text(label)
    group.locator(".box").dispatch_event("click")
    user.counts(".object.chosen", 1)


def downloads(user, count, model):
    name, data = user.downloads("Results (COCO JSON)")
    assert name == "scene 0.json"
    content = json.loads(data)
    assert len(content["annotations"]) == count
    assert {annotation["category_id"] for annotation in content["annotations"]} <= set(range(1, 9))
    name, data = user.downloads("Picture (PNG)")
    assert name == "scene 0.png"
    picture = np.array(Image.open(io.BytesIO(data)))
    assert picture.shape[1] / picture.shape[0] == 256 / 160 and picture.std() > 10
    name, data = user.downloads("Both (ZIP)")
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.namelist() == ["scene 0.png", "predictions.json"]
        assert json.loads(file.read("predictions.json"))["annotations"] == content["annotations"]


def heads(user):
    user.opens("Heads")
    user.sees("The mask head's 28 x 28 probabilities")
    user.sees("The keypoint head's 56 x 56 heatmaps")
    user.counts("[data-testid=stImage] img", 5)


def roi_layers(user):
    user.opens("RoI layers")
    user.sees("Move the box by part of a cell")
    user.counts("[data-testid=stImage] img", 8)
    before = [image.get_attribute("src") for image in user.page.locator("[data-testid=stImage] img").all()]
    user.slides("Move the box to the right", *["ArrowRight"] * 20)  # a whole cell, for which all layers move
    user.counts("[data-testid=stImage] img", 12)
    user.page.get_by_text(re.compile("changed by [1-9]")).nth(3).wait_for()
    after = [image.get_attribute("src") for image in user.page.locator("[data-testid=stImage] img").all()]
    assert not set(before) & set(after)
    user.slides("Move the box to the right", *["ArrowLeft"] * 20)
    user.counts("[data-testid=stImage] img", 8)


def comparison_and_speed(user, others):
    user.opens("Compare")
    user.counts(".overlay svg", 2)
    user.counts(".object.chosen", 1)  # it is an object of the first model
    user.sees("Found by both")
    user.opens("Detections")
    user.page.get_by_test_id("stRadio").get_by_text("model_1.pth").click()
    user.counts(".overlay svg", 1)
    user.shows_scores(others.scores.tolist())
    user.opens("Speed")
    user.page.get_by_role("button", name="Measure").click()
    user.sees("times as fast")


def uploads(user, noise, folder):
    photo, film, text = folder / "photo.png", folder / "film.mp4", folder / "text_*of*.jpg"
    Image.fromarray(noise).save(photo)
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"mp4v"), 5, (64, 48))
    for shift in range(3):
        writer.write(np.roll(noise, 8 * shift, axis=1))
    writer.release()
    text.write_text("no image <b>at all</b>")
    user.page.get_by_test_id("stExpandSidebarButton").click()
    user.page.get_by_text("Your files").click()
    user.page.locator("input[type=file]").set_input_files([photo, film, text])
    user.sees("text_*of*.jpg: this is neither an image")
    user.page.get_by_test_id("stSidebarCollapseButton").locator("button").click()
    user.sees("All 4 (ZIP)")
    user.slides("Picture", "ArrowRight", "ArrowRight")
    user.page.locator('.overlay svg[aria-label^="film.mp4, frame 1:"]').wait_for()
    name, data = user.downloads("All 4 (ZIP)")
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        frames = [f"film_{frame:06d}.png" for frame in range(3)]
        assert file.namelist() == ["photo.png", *frames, "predictions.json"]


def narrow_window(user):
    for tab in ("Detections", "Heads", "RoI layers", "Compare"):
        user.opens(tab)
        overflow = "document.documentElement.scrollWidth > window.innerWidth"
        assert not user.page.evaluate(overflow), f"{tab} is wider than the window"
