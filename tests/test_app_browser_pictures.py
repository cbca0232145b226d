"""The page in a real browser, from pictures that are there: completion, and the tokenizer."""

import numpy as np
from app_browser import (  # noqa: F401 - fixtures
    browser,
    draw,
    gallery,
    image_of,
    needs_chromium,
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
)
from PIL import Image

from autoregressive.models.generate import Sampling

pytestmark = needs_chromium


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
