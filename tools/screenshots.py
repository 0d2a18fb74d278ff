"""Take the screenshots of docs/screenshots: the console of a real server, with a fleet at work.

    python tools/screenshots.py                 five minutes, as the charts of load show so much
    python tools/screenshots.py --seconds 60    sooner, with shorter lines

Beside a simulated fleet of robots there are scikit-learn's handwritten digits and photographs, whose statistics look
like what they are. Needs chromium, and fonts-inter for the letters of the pictures that are committed.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from playwright.sync_api import Browser, Page, sync_playwright
from sklearn.datasets import load_digits, load_sample_images

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import normstats  # noqa: E402
from tests.server_process import ServerProcess  # noqa: E402

SHOTS = ROOT / "docs" / "screenshots"
LARGEST_BYTES = 300_000
FEATURES = 17
MEMBERS, SLOW = 8, (2, 5)
ROUND_SECONDS = 30
LEARNING_SECONDS = 90.0
SIDE, POOL = 32, 13  # pixels of a thumbnail, and how many of a photograph's make one of them
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# What "system-ui" is on a machine without a desktop: letters that look like those of one.
FONT = """<match target="pattern"><test name="family"><string>{}</string></test>
<edit name="family" mode="prepend" binding="strong"><string>Inter</string></edit></match>"""
FONTS = f"""<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><include ignore_missing="yes">/etc/fonts/fonts.conf</include>
{"".join(map(FONT.format, ("system-ui", "sans", "sans-serif")))}</fontconfig>
"""

Array = npt.NDArray[np.float32]

# Names of what a fleet has beside what moves: so that the list looks like one.
LAYERS = [
    f"vision/encoder/layer{layer}.{block}.bn{norm}" for layer in range(1, 5) for block in (0, 1) for norm in (1, 2)
]


class Fleet:
    """Who contributes. Everything runs on threads of this process until it is left."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._random = np.random.default_rng(7)

    def start(self) -> None:
        """Make the normalizers, and begin."""
        with normstats.connect(self._target) as client:
            self._create(client)
        for number in range(6):
            self._run(self._robot, number)
        for number in range(2):
            self._run(self._digits, number)
        self._run(self._pictures)
        self._run(self._training)
        self._run(self._watcher)
        for number in range(MEMBERS):
            self._run(self._member, number)

    def stop(self) -> None:
        """End all threads."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self, work: Callable[..., None], *arguments: int) -> None:
        thread = threading.Thread(target=self._quietly, args=(work, arguments), daemon=True)
        thread.start()
        self._threads.append(thread)

    def _quietly(self, work: Callable[..., None], arguments: tuple[int, ...]) -> None:
        try:
            work(*arguments)
        except normstats.NormstatsError:
            if not self._over.is_set():
                raise

    def _create(self, client: normstats.Client) -> None:
        obs = client.create("robot/obs", normstats.Standardize(FEATURES, clip=10.0))
        client.create("robot/reward", normstats.Standardize(1))
        client.create("robot/force", normstats.Standardize(6, half_life=600.0))
        client.create("digits/pixels", normstats.Standardize(64))
        client.create("photos/thumbnails", normstats.Standardize(3 * SIDE * SIDE))
        client.create("photos/channels", normstats.Standardize(3, channel_axis=1))
        client.create("language/block0.norm", normstats.LayerNorm(768))
        client.create("language/tokens.length", normstats.MinMax(1))
        for layer in LAYERS:
            norm = client.create(layer, normstats.BatchNorm(64))
            norm.update(self._random.normal(0.2, 1.5, (32, 64, 2, 2)).astype(np.float32))
        client.get(LAYERS[0]).freeze()
        for _ in range(40):
            obs.update(observations(self._random, progress=0.0))
        obs.snapshot("before-retraining")

    def _robot(self, number: int) -> None:
        random = np.random.default_rng(100 + number)
        began = time.monotonic()
        with normstats.connect(self._target) as client:
            while not self._over.is_set():
                batch = observations(random, 1 - math.exp(-(time.monotonic() - began) / LEARNING_SECONDS))
                names = {"robot/obs": batch, "robot/reward": random.gamma(4.0, 0.9, 64) - 1.2}
                if number < 2:
                    names["robot/force"] = random.normal(3, 1.4, (64, 6)).astype(np.float32)
                client.update(names)
                if number == 5 and time.monotonic() % 900 > 880:
                    return
                wave = 1.6 + math.sin(time.monotonic() / 23 + number)
                self._over.wait(float(random.exponential(0.05 + 0.05 * wave)))

    def _digits(self, number: int) -> None:
        digits = load_digits().data.astype(np.float32)
        random = np.random.default_rng(200 + number)
        with normstats.connect(self._target) as client:
            while not self._over.is_set():
                batch = digits[random.integers(0, len(digits), 32)]
                client.get("digits/pixels").update(batch)
                client.normalize(batch, "digits/pixels")
                self._over.wait(float(random.exponential(0.12)))

    def _pictures(self) -> None:
        random = np.random.default_rng(300)
        scenes = load_sample_images().images
        with normstats.connect(self._target) as client:
            while not self._over.is_set():
                batch = np.stack([thumbnail(scenes[0], random) for _ in range(4)])
                client.update({"photos/thumbnails": batch.reshape(4, -1), "photos/channels": batch})
                client.normalize(batch, "photos/channels")
                self._over.wait(0.7)

    def _training(self) -> None:
        random = np.random.default_rng(400)
        with normstats.connect(self._target) as client:
            while not self._over.is_set():
                layer = LAYERS[int(random.integers(1, 4))]
                x = random.normal(0.2, 1.5, (64, 64, 4, 4)).astype(np.float32)
                client.normalize(x, layer, mode="train")
                client.normalize(random.normal(size=(64, 768)).astype(np.float32), "language/block0.norm")
                self._over.wait(float(random.exponential(0.3)))

    def _watcher(self) -> None:
        with normstats.connect(self._target) as client:
            for _ in client.get("digits/pixels").watch():
                if self._over.is_set():
                    return

    def _member(self, number: int) -> None:
        """One of eight who step together. Two are too slow for every other step."""
        random = np.random.default_rng(500 + number)
        with normstats.connect(self._target) as client:
            terms = {"timeout": ROUND_SECONDS, "on_missing": "proceed", "quorum": 5}
            with client.get("robot/force").join("step", MEMBERS, **terms) as member:
                while not self._over.is_set():
                    try:
                        member.sync(random.normal(3, 1.4, (64, 6)).astype(np.float32))
                    except normstats.FailedPrecondition:
                        continue  # the round went on without it; it takes part in the next
                    self._over.wait(ROUND_SECONDS + 1 if number in SLOW else 0.2)


def observations(random: np.random.Generator, progress: float) -> Array:
    """Of a robot that learns to run: angles near zero, speeds farther out and ever farther, one sensor that is off."""
    feature = np.arange(FEATURES)
    angles = feature < 8
    mean = np.where(angles, 0.5, 2.2 * (0.2 + 0.8 * progress)) * np.sin(1.7 * feature)
    mean = mean + progress * np.where(feature == 11, 1.4, np.where(feature == 4, -0.3, 0))
    scale = np.where(angles, 0.3 + 0.06 * feature, (0.5 + 0.16 * feature) * (0.7 + 0.3 * progress))
    return np.asarray(random.normal(mean, scale, (64, FEATURES)), np.float32)


def thumbnail(scene: npt.NDArray[np.uint8], random: np.random.Generator) -> Array:
    """A photograph, a little moved and in other light: (3, SIDE, SIDE)."""
    top, left = random.integers(0, 10, 2)  # the photograph has 427 lines
    square = scene[top : top + SIDE * POOL, 110 + left : 110 + left + SIDE * POOL]
    small = square.reshape(SIDE, POOL, SIDE, POOL, 3).mean((1, 3))
    return np.asarray(small.transpose(2, 0, 1) * random.normal(1.0, 0.12), np.float32)


@dataclass(frozen=True)
class Shot:
    """One picture: a page, and what it is seen on."""

    file: str
    page: str
    theme: str
    width: int = 1440
    height: int = 900
    whole: bool = False


OBS, DIGITS, PICTURES, ALL = "#/n/robot/obs", "#/n/digits/pixels", "#/n/photos/thumbnails", "#/normalizers"
GALLERY = (
    Shot("overview-light.png", "#/", "light", whole=True),
    Shot("overview-dark.png", "#/", "dark", whole=True),
    Shot("normalizer-light.png", OBS, "light", height=1240),
    Shot("normalizer-dark.png", OBS, "dark", height=1240),
    Shot("pixels-dark.png", DIGITS, "dark", height=1010),
    Shot("pixels-light.png", DIGITS, "light", height=1010),
    Shot("phone.png", "#/", "light", width=400, height=860),
)


def take(browser: Browser, url: str, shot: Shot, folder: Path) -> Path:
    """Open a page, wait until it is live and drawn, and write what is seen."""
    page = browser.new_page(viewport={"width": shot.width, "height": shot.height}, color_scheme=shot.theme)
    try:
        page.goto(f"{url}/{shot.page}")
        page.wait_for_selector('#connection[data-state="live"]')
        page.wait_for_selector(".u-wrap")
        page.wait_for_timeout(5_500)  # a history and a comparison are asked for again after a few seconds
        settle(page)
        path = folder / shot.file
        page.screenshot(path=path, full_page=shot.whole)
        return path
    finally:
        page.close()


def settle(page: Page) -> None:
    """No focus, no pointer."""
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement?.blur()")
    page.wait_for_timeout(300)


@contextmanager
def browser_of(folder: Path) -> Iterator[Browser]:
    """Debian's chromium, in Inter where that is installed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not installed")
    fonts = folder / "fonts.conf"
    fonts.write_text(FONTS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=ARGUMENTS, env={**os.environ, "FONTCONFIG_FILE": str(fonts)}
        )
        yield browser
        browser.close()


def main() -> int:
    """A server, a fleet, a browser; returns 1 if a picture is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the fleet works before (%(default)s)")
    seconds = parser.parse_args().seconds
    SHOTS.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="normstats-screenshots-"))
    server = ServerProcess(folder).start()
    fleet = Fleet(server.target)
    try:
        fleet.start()
        time.sleep(seconds)
        with browser_of(folder) as browser:
            taken = [take(browser, server.http, shot, SHOTS) for shot in GALLERY]
    finally:
        fleet.stop()
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    sizes = {path.name: path.stat().st_size for path in taken}
    for name, size in sizes.items():
        print(f"{name}: {size / 1000:.0f} kB")
    return 1 if max(sizes.values()) > LARGEST_BYTES else 0


if __name__ == "__main__":
    sys.exit(main())
