"""The page in a real browser, as people use it: each tab from end to end, two people at once, a phone, a keyboard."""

import io
import json
import shutil
from pathlib import Path
from time import sleep

import numpy as np
import pytest
from app_server import listening, slowly, tiny_shop
from PIL import Image

from autoregressive.demo.options import PageOptions
from autoregressive.demo.shop import Shop
from autoregressive.models.generate import Sampling
from golden.fill import uniform

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
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


def test_classes_are_found_by_name_and_drawn(page, shop):
    panel = tab(page, "Classes")
    menu = panel.get_by_role("combobox", name="Classes").first
    panel.get_by_label("Clear").or_(panel.get_by_title("Clear")).first.click()
    menu.click()
    menu.press_sequentially("whal")
    page.get_by_role("option", name="grey whale").click()
    found = draw(panel, count=2, seed=3)
    assert np.array_equal(small(found), wanted(shop, (9, 9), 3))
    papers = json.loads(found[1].text["settings"])
    assert papers["shows"] == "grey whale" and papers["seed"] == 3


def test_the_picture_fills_in_row_by_row_and_stop_stops_it(page, shop):
    panel = tab(page, "Classes")
    preview, shown = panel.locator(".preview img"), []
    with slowly(0.4):
        press(panel, "Draw")
        for _ in range(2):
            page.wait_for_function(ANOTHER, arg=[address for address, _ in shown])
            shown.append((preview.evaluate("image => image.src"), np.asarray(image_of(preview))))
        press(panel, "Stop")
        told = status(panel, "Stopped after")
    grey = [(pixels == 96).all(-1).mean() for _, pixels in shown]
    assert grey[0] > grey[1] > 0.2, "there is more of it each time"
    assert "of 16 codes" in told and not gallery(panel)
    assert np.array_equal(small(draw(panel, count=1, seed=2)), wanted(shop, (0,), 2)), "and it can go on"
    assert not preview.is_visible()


def test_two_people_at_once_get_their_own_pictures(browser, url, shop):
    pages = [opened(browser, url) for _ in range(2)]
    panels = [tab(each, "Classes") for each in pages]
    with slowly(0.1):
        for seed, panel in enumerate(panels):
            setting(panel, "Pictures").fill("2")
            panel.get_by_label("Seed", exact=True).fill(str(seed))
            press(panel, "Draw")
        for panel in panels:
            status(panel, "Code")
        press(panels[1], "Stop")
        status(panels[1], "Stopped")
        status(panels[0], "Done")
    panels[0].locator(".gallery-container img").nth(1).wait_for()
    assert np.array_equal(small(gallery(panels[0])), wanted(shop, (0, 1), 0)), "another's Stop does not stop it"
    assert np.array_equal(small(draw(panels[1], seed=5)), wanted(shop, (0, 1), 5))
    for each in pages:
        each.context.close()


def test_the_dice_and_a_picture_s_settings(page, tmp_path):
    panel = tab(page, "Classes")
    first = draw(panel, count=2, seed=4)
    seed = panel.get_by_label("Seed", exact=True)
    press(panel, "⚄ New seed")
    page.wait_for_function("f => f.value != '4'", arg=seed.element_handle())
    setting(panel, "Pictures").fill("1")
    panel.locator(".gallery-container img").nth(1).click()
    press(panel, "Again with these settings")
    page.wait_for_function("f => f.value == '4'", arg=seed.element_handle())
    assert setting(panel, "Pictures").input_value() == "2"
    path = tmp_path / "mine.png"
    path.write_bytes(page.request.get(panel.locator(".gallery-container img").first.get_attribute("src")).body())
    assert json.loads(Image.open(path).text["settings"])["seed"] == 4 and len(first) == 2
    press(panel, "⚄ New seed")
    page.wait_for_function("f => f.value != '4'", arg=seed.element_handle())
    panel.locator("input[type=file]").last.set_input_files(path)
    page.wait_for_function("f => f.value == '4'", arg=seed.element_handle())


def test_an_example_fills_the_classes_in(page, shop):
    panel = tab(page, "Classes")
    panel.get_by_role("button", name="one · 1, two · 2").click()
    panel.get_by_role("button", name="one · 1").first.wait_for()
    page.wait_for_timeout(500)
    assert np.array_equal(small(draw(panel, count=2, seed=1)), wanted(shop, (1, 2), 1))


@pytest.mark.parametrize("name", ["Classes", "Prompts", "Completion"])
@pytest.mark.parametrize("way", ["stop", "closing"])
def test_stop_and_closing_the_page_end_a_drawing_in_every_tab(way, name, browser, url, tmp_path):
    page, steps = opened(browser, url), []
    panel = tab(page, name)
    if name == "Prompts":
        panel.get_by_label("Prompts").fill("a red bird")
    if name == "Completion":
        upload(panel, picture_file(tmp_path))
        setting(panel, "Rows kept").fill("1")
        panel.locator(".kept img").wait_for()
    with slowly(0.5, steps.append):
        press(panel, "Complete" if name == "Completion" else "Draw")
        status(panel, "Code")
        if way == "stop":
            press(panel, "Stop")
            status(panel, "Stopped after")
        else:
            page.context.close()
            sleep(1)  # until the server has seen it
        begun = len(steps)
        sleep(1.5)
        assert len(steps) <= begun + (way == "closing") and begun < 10, "no step more"
    if way == "stop":
        page.context.close()


def test_whoever_comes_to_a_full_queue_is_told_so(browser, tmp_path):
    shop = tiny_shop(tmp_path, page=PageOptions(max_images=6, at_once=1, max_queue=1))
    with listening(shop) as url, slowly(0.5):
        pages = [opened(browser, url) for _ in range(3)]
        panels = [tab(page, "Classes") for page in pages]
        press(panels[0], "Draw")
        status(panels[0], "Code")
        press(panels[1], "Draw")
        status(panels[1], "Waiting")
        pages[1].wait_for_timeout(500)
        press(panels[2], "Draw")
        status(panels[2], "Nothing was drawn: see the message")
        assert "busy" in pages[2].get_by_test_id("toast-body").inner_text()
        for panel in panels[:2]:
            press(panel, "Stop")
        for panel in panels[:2]:
            status(panel, "Stopped")
        assert len(shop.jobs._waiting) == 1, "who was sent away has announced himself"
        for page in pages:
            page.context.close()
        for _ in range(100):
            if not shop.jobs._waiting:
                break
            sleep(0.1)
        assert not shop.jobs._waiting, "of who has left nothing is kept"


def test_prompts_are_drawn(page, shop):
    panel = tab(page, "Prompts")
    press(panel, "Draw")
    page.get_by_text("Write a prompt first.").wait_for()
    status(panel, "Nothing was drawn")
    panel.get_by_label("Prompts").fill("a red bird\na whale")
    found = draw(panel, count=2, seed=1)
    papers = json.loads(found[1].text["settings"])
    assert papers["shows"] == "a whale" and papers["prompts"] == ["a red bird", "a whale"]
    pipeline = shop.text.pipeline
    codes = pipeline.codes(**pipeline.captions(["a red bird", "a whale"]), sampling=Sampling(7.5, top_k=256), seed=1)
    pictures = [Image.fromarray(each).resize((256, 256), Image.Resampling.BICUBIC)
                for each in pipeline.to_pictures(codes)]  # fmt: skip
    assert np.array_equal(small(found), small(pictures))
    panel.get_by_label("Prompts").fill("bird " * 150)
    press(panel, "Draw")
    assert "Of 1 prompts only the first 120 tokens were read." in status(panel, "Of 1 prompts")


def test_a_page_without_a_text_model_says_what_is_missing(browser, tmp_path):
    with listening(tiny_shop(tmp_path)) as url:
        page = opened(browser, url)
        panel = tab(page, "Prompts")
        assert "download.py t2i_XL_stage1_256.pt vq_ds16_t2i.pt" in panel.inner_text()
        page.context.close()


def test_a_picture_is_completed(page, shop, tmp_path):
    panel = tab(page, "Completion")
    upload(panel, picture_file(tmp_path))
    panel.locator(".kept img").wait_for()
    setting(panel, "Rows kept").fill("1")
    setting(panel, "Codes kept of the next row").fill("3")
    setting(panel, "Codes kept of the next row").blur()
    found = draw(panel, count=2, seed=1, go="Complete")
    pipeline = shop.classes.pipeline
    known = pipeline.top_codes(Image.open(tmp_path / "upload.png"), 1, 3)
    codes = pipeline.codes(pipeline.labels([0, 0]), Sampling(4.0, top_k=256), 1, known=known)
    pictures = [Image.fromarray(each).resize((256, 256), Image.Resampling.BICUBIC)
                for each in pipeline.to_pictures(codes)]  # fmt: skip
    assert np.array_equal(small(found), small(pictures))


def test_what_is_kept_is_shown_of_the_picture_that_is_there(page, tmp_path):
    panel = tab(page, "Completion")
    setting(panel, "Rows kept").fill("0")
    upload(panel, picture_file(tmp_path))
    panel.locator(".kept img").wait_for()
    pale = np.asarray(image_of(panel.locator(".kept img"))).min()
    assert pale >= 3 * 235 // 4, "nothing is kept yet"
    press(panel, "Complete")
    page.get_by_text("Keep at least one code").first.wait_for()
    status(panel, "Nothing was drawn")
    (tmp_path / "no.png").write_text("no picture")
    panel.get_by_label("Remove Image").or_(panel.get_by_label("Clear")).first.click()
    panel.locator(".kept img").wait_for(state="detached")
    upload(panel, tmp_path / "no.png")
    page.get_by_text("This file is not a picture that can be read").first.wait_for()
    setting(panel, "Rows kept").fill("2")
    page.wait_for_timeout(500)
    assert not panel.locator(".kept img").count(), "not the picture that was there before"


def test_a_png_without_our_settings_is_said_and_the_page_goes_on(page, shop, tmp_path):
    panel = tab(page, "Classes")
    panel.locator("input[type=file]").last.set_input_files(picture_file(tmp_path))
    page.get_by_text("this file holds no settings").first.wait_for()
    assert np.array_equal(small(draw(panel, count=1, seed=2)), wanted(shop, (0,), 2))


def test_a_completion_is_drawn_again_from_its_file_alone(page, shop, tmp_path):
    panel = tab(page, "Completion")
    upload(panel, picture_file(tmp_path))
    panel.locator(".kept img").wait_for()
    setting(panel, "Rows kept").fill("1")
    first = draw(panel, count=2, seed=4, go="Complete")
    (tmp_path / "mine.png").write_bytes(
        page.request.get(panel.locator(".gallery-container img").first.get_attribute("src")).body()
    )
    page.reload()
    panel = tab(page, "Completion")
    panel.locator("input[type=file]").last.set_input_files(tmp_path / "mine.png")
    panel.locator(".kept img").wait_for()
    assert setting(panel, "Rows kept").input_value() == "1"
    for _ in range(2):
        press(panel, "Complete")
        assert "From its own codes." in status(panel, "Done")
        panel.locator(".gallery-container img").nth(1).wait_for()
        assert np.array_equal(small(gallery(panel)), small(first)), "of the same codes, not of their pixels"
        setting(panel, "Rows kept").fill("2")
        press(panel, "Again with these settings")
        page.wait_for_function("f => f.value == '1'", arg=setting(panel, "Rows kept").element_handle())


def test_a_picture_that_was_drawn_is_picked_for_completion(page, shop):
    press(tab(page, "Completion"), "Take the picture chosen under Classes")
    page.get_by_text("Draw some pictures under Classes first.").wait_for()
    drawn = tab(page, "Classes")
    draw(drawn, count=2, seed=1)
    drawn.locator(".gallery-container img").nth(1).click()
    panel = tab(page, "Completion")
    press(panel, "Take the picture chosen under Classes")
    panel.locator(".kept img").wait_for()
    found = draw(panel, count=1, seed=1, go="Complete")
    pipeline = shop.classes.pipeline
    source = pipeline.codes(pipeline.labels([0, 1]), Sampling(4.0, top_k=256), 1)[1]
    codes = pipeline.codes(pipeline.labels([0]), Sampling(4.0, top_k=256), 1, known=source[:8])
    picture = Image.fromarray(pipeline.to_pictures(codes)[0]).resize((256, 256), Image.Resampling.BICUBIC)
    assert np.array_equal(small(found)[0], np.asarray(picture))


def test_the_tokenizer_shows_codes_and_reconstruction(page, shop, tmp_path):
    panel = tab(page, "Tokenizer")
    upload(panel, picture_file(tmp_path))
    panel.locator("img").first.wait_for()
    press(panel, "Encode and decode")
    panel.get_by_text("PSNR").wait_for()
    codes = shop.classes.pipeline.encode(Image.open(tmp_path / "upload.png")).reshape(4, 4).tolist()
    rows = panel.locator(".codes").inner_text().strip().splitlines()
    assert [[int(code) for code in row.split()] for row in rows] == codes
    assert panel.locator("img").count() == 4


def test_a_file_that_is_no_picture_is_said_and_the_page_goes_on(page, shop, tmp_path):
    (tmp_path / "no.png").write_text("no picture")
    panel = tab(page, "Tokenizer")
    upload(panel, tmp_path / "no.png")
    press(panel, "Encode and decode")
    page.get_by_text("This file is not a picture that can be read").first.wait_for()
    assert np.array_equal(small(draw(tab(page, "Classes"), count=1, seed=2)), wanted(shop, (0,), 2))


def test_the_page_is_used_by_keyboard(page, shop):
    panel = tab(page, "Classes")
    panel.get_by_label("Seed", exact=True).fill("2")
    button = panel.get_by_role("button", name="Draw", exact=True)
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if button.evaluate("b => b === document.activeElement"):
            break
    else:
        pytest.fail("Tab does not reach the button")
    page.keyboard.press("Enter")
    status(panel, "Done")
    page.keyboard.press("Tab")
    assert panel.get_by_role("button", name="Stop", exact=True).evaluate("b => b === document.activeElement")


def test_the_page_fits_a_phone(browser, url):
    page = opened(browser, url, width=390, height=844)
    for name in ("Classes", "Prompts", "Completion", "Tokenizer"):
        more = page.get_by_role("tab", name=name)
        if not more.is_visible():  # folded into a menu
            page.locator(".overflow-menu > button").click()
            page.locator(".overflow-dropdown").get_by_text(name).click()
        else:
            more.click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
    page.context.close()


def test_nothing_is_fetched_from_elsewhere(browser, url):
    page = browser.new_context().new_page()
    hosts = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if "://" in request.url else None)
    page.goto(url)
    page.get_by_role("button", name="Draw", exact=True).first.wait_for(timeout=WAIT)
    page.wait_for_timeout(500)
    assert hosts == {url.split("/")[2]}
    page.context.close()
