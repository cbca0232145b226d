"""The page in a real browser, as people use it: drawing in each tab, two people at once, a phone, a keyboard."""

import json
from time import sleep

import numpy as np
import pytest
from app_browser import (  # noqa: F401 - fixtures
    ANOTHER,
    WAIT,
    browser,
    draw,
    gallery,
    image_of,
    needs_chromium,
    opened,
    page,
    picture_file,
    press,
    setting,
    shop,
    small,
    status,
    tab,
    upload,
    url,
    wanted,
)
from app_server import listening, slowly, tiny_shop
from PIL import Image

from autoregressive.demo.options import PageOptions
from autoregressive.models.generate import Sampling

pytestmark = needs_chromium


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


def test_a_png_without_our_settings_is_said_and_the_page_goes_on(page, shop, tmp_path):
    panel = tab(page, "Classes")
    panel.locator("input[type=file]").last.set_input_files(picture_file(tmp_path))
    page.get_by_text("this file holds no settings").first.wait_for()
    assert np.array_equal(small(draw(panel, count=1, seed=2)), wanted(shop, (0,), 2))


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
