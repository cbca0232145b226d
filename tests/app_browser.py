"""Chromium at the page: what its tests in a browser share."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from app_server import listening, tiny_shop
from PIL import Image

from autoregressive.demo.shop import Shop
from autoregressive.models.generate import Sampling
from golden.fill import uniform

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
ANOTHER = "old => { const i = document.querySelector('.preview img'); return i && !old.includes(i.src) }"
WAIT = 60_000  # milliseconds, on a machine that does much else


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Shop:
    return tiny_shop(tmp_path_factory.mktemp("browser"), text=True)


@pytest.fixture(scope="module")
def url(shop):
    with listening(shop) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, url):
    page = opened(browser, url)
    yield page
    page.context.close()


def opened(browser, url: str, width: int = 1280, height: int = 900):
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.get_by_role("heading", name="LlamaGen").wait_for()
    page.get_by_role("button", name="Draw", exact=True).first.wait_for()
    return page


def tab(page, name: str):
    """The panel of a tab, which is opened."""
    page.get_by_role("tab", name=name).click()
    return page.get_by_role("tabpanel").filter(visible=True)


def press(panel, name: str) -> None:
    panel.get_by_role("button", name=name, exact=True).click()


def status(panel, beginning: str):
    """Waits until the line below the progress bar begins so."""
    line = panel.get_by_role("status").filter(has_text=beginning)
    line.wait_for()
    return line.inner_text()


def gallery(panel) -> list[Image.Image]:
    """The files that its pictures are."""
    found = panel.locator(".gallery-container img")
    return [image_of(found.nth(i)) for i in range(found.count())]


def image_of(element) -> Image.Image:
    return Image.open(io.BytesIO(element.page.request.get(element.get_attribute("src")).body()))


def setting(panel, label: str):
    """The field that holds the number of a setting."""
    return panel.get_by_label(f"number input for {label}", exact=True)


def draw(panel, count: int = 2, seed: int = 1, go: str = "Draw") -> list[Image.Image]:
    setting(panel, "Pictures").fill(str(count))
    panel.get_by_label("Seed", exact=True).fill(str(seed))
    press(panel, go)
    status(panel, "Done")
    panel.locator(".gallery-container img").nth(count - 1).wait_for()
    return gallery(panel)


def small(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(each) for each in pictures])


def wanted(shop: Shop, classes, seed: int) -> np.ndarray:
    """As the page shows them at first."""
    pictures = shop.classes.pipeline.sample(classes, Sampling(cfg_scale=4.0, top_k=256), seed)
    return small([Image.fromarray(each).resize((256, 256), Image.Resampling.BICUBIC) for each in pictures])


def picture_file(folder: Path) -> Path:
    Image.fromarray((uniform("upload", (40, 60, 3)) * 100 + 128).astype(np.uint8)).save(folder / "upload.png")
    return folder / "upload.png"


def upload(panel, path: Path) -> None:
    panel.locator("input[type=file]").first.set_input_files(path)
