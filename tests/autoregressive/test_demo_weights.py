"""Which weights the page opens on, and what it says of those that it lacks."""

import json
from pathlib import Path

import pytest
import torch
from app_server import tiny_shop
from tiny_pipeline import NAMES

from autoregressive.bundled import or_bundled
from autoregressive.demo import weights
from autoregressive.demo.options import App, PageOptions
from autoregressive.options import EncoderOptions, GPTOptions
from language.t5 import at_hand
from tokenizer.tokenizer_image.vq_options import TokenizerOptions


def files(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text("")
    return folder


def test_given_weights_come_first(tmp_path):
    folder = files(tmp_path, "vq_ds16_c2i.pt", "c2i_B_256.pt")
    given = App(GPTOptions(gpt_ckpt="mine.pt"), TokenizerOptions(vq_ckpt="vq.pt"))
    assert weights.class_pair(given, folder) == (given.gpt, given.tokenizer)
    half = App(GPTOptions(gpt_ckpt="mine.pt"))
    assert weights.class_pair(half, folder)[1].vq_ckpt is None, "its loading says what is missing"


def test_published_weights_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr("autoregressive.bundled.BUNDLED", tmp_path)
    assert weights.class_pair(App(), tmp_path)[0].gpt_ckpt == str(tmp_path / "gpt"), "none is there yet"
    folder = files(tmp_path, "c2i_B_256.pt", "c2i_L_384.pt")
    assert weights.class_pair(App(), folder)[0].gpt_ckpt == str(tmp_path / "gpt"), "their tokenizer is not"
    files(tmp_path, "vq_ds16_c2i.pt")
    gpt, vq = weights.class_pair(App(), folder)
    assert (gpt.gpt_ckpt, vq.vq_ckpt) == (str(folder / "c2i_B_256.pt"), str(folder / "vq_ds16_c2i.pt"))
    assert weights.class_pair(App(GPTOptions("GPT-L")), folder)[0].gpt_ckpt == str(folder / "c2i_L_384.pt")
    with pytest.raises(ValueError, match=r"--gpt-model GPT-XXL: .*download\.py c2i_XXL_384\.pt vq_ds16_c2i\.pt` fetch"):
        weights.class_pair(App(GPTOptions("GPT-XXL")), folder)
    assert weights.text_pair(App(), folder) is None
    files(tmp_path, "vq_ds16_t2i.pt", "t2i_XL_stage2_512.pt")
    gpt, vq = weights.text_pair(App(), folder)
    assert (gpt.gpt_type, gpt.cls_token_num, Path(gpt.gpt_ckpt).name) == ("t2i", 120, "t2i_XL_stage2_512.pt")


def test_text_weights_that_are_given_leave_the_classes_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("autoregressive.bundled.BUNDLED", tmp_path)
    given = App(GPTOptions(gpt_ckpt="t.pt", gpt_type="t2i"), TokenizerOptions(vq_ckpt="v.pt"))
    assert weights.class_pair(given, tmp_path)[0] == GPTOptions(gpt_ckpt=str(tmp_path / "gpt"))
    gpt, vq = weights.text_pair(given, tmp_path)
    assert (gpt.gpt_ckpt, gpt.cls_token_num, vq.vq_ckpt) == ("t.pt", 120, "v.pt")


def test_the_pair_that_ships_is_taken_where_no_weights_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("autoregressive.bundled.BUNDLED", tmp_path)
    gpt, vq = or_bundled(GPTOptions(use_ema=True), TokenizerOptions())
    assert (gpt.gpt_ckpt, vq.vq_ckpt) == (str(tmp_path / "gpt"), str(tmp_path / "tokenizer")) and gpt.use_ema
    other = GPTOptions("GPT-B"), TokenizerOptions()
    for pair in (other, (GPTOptions(gpt_ckpt="a"), TokenizerOptions()), (GPTOptions(), TokenizerOptions(vq_ckpt="a")),
                 (GPTOptions(gpt_type="t2i"), TokenizerOptions())):  # fmt: skip
        assert or_bundled(*pair) == pair
    monkeypatch.setattr("autoregressive.bundled.BUNDLED", tmp_path / "nowhere")
    assert or_bundled(GPTOptions(), TokenizerOptions()) == (GPTOptions(), TokenizerOptions())


def test_the_page_begins_within_its_bounds(tmp_path):
    shop = tiny_shop(tmp_path, page=PageOptions(max_images=3, seed=5))
    begins = shop.classes.begins
    assert (begins.seed, begins.count, begins.top_k, begins.size) == (5, 3, 256, 256), "of 2000, the model has 256"
    assert shop.classes.checkpoint == "gpt.pt" and shop.classes.pipeline.class_names == NAMES
    assert shop.text is None and "download.py t2i_XL" in shop.no_text


def test_what_a_text_model_lacks_is_named(tmp_path, monkeypatch):
    app = App(encoder=EncoderOptions(t5_path=str(tmp_path / "t5")))
    gpt, vq, encoder = "weights", "a tokenizer", "the text encoder: the files of `flan-t5-xl`"
    pair = GPTOptions(), TokenizerOptions()
    assert [line.split(":")[0] for line in weights.missing_text(app, None, tmp_path)] == [f"{gpt} and {vq}",
                                                                                          encoder.split(":")[0]]
    files(tmp_path, "vq_ds16_t2i.pt")
    (line, _) = weights.missing_text(app, None, tmp_path)
    assert line == "weights: `python3 scripts/download.py t2i_XL_stage1_256.pt`"
    (line,) = weights.missing_text(app, pair, tmp_path)
    assert line.startswith(encoder) and "--gpt-type t2i" in line
    monkeypatch.setattr("language.t5.find_spec", lambda name: None if name in ("sentencepiece", "bs4") else True)
    packages, _ = weights.missing_text(app, pair, tmp_path)
    assert packages == "sentencepiece, beautifulsoup4: `pip install 'llamagen[t2i]'`"
    (tmp_path / "t5/flan-t5-xl").mkdir(parents=True)
    assert len(lines := weights.missing_text(app, None, tmp_path)) == 3, "one fault does not hide the others"
    assert "flan-t5-xl: lacks the config" in lines[-1]


HELD = {"config.json", "spiece.model", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"}


@pytest.mark.parametrize("lost", [None, "config.json", "spiece.model", "model-2.safetensors",
                                  "model.safetensors.index.json"])  # fmt: skip
def test_an_encoder_is_at_hand_when_all_of_it_was_fetched(lost, tmp_path, monkeypatch):
    index = tmp_path / "index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))

    def cached(place: str, file: str) -> str | None:
        assert place == "google/flan-t5-xl"
        return str(index) if file in HELD and file != lost else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert at_hand("flan-t5-xl", tmp_path) == (lost is None)


@pytest.mark.parametrize("fault", [ValueError("is broken"), torch.OutOfMemoryError("is too large"), MemoryError("oh")])
def test_a_text_model_that_cannot_be_used_does_not_end_the_page(fault, tmp_path, monkeypatch):
    pair = GPTOptions(gpt_ckpt="t.pt", gpt_type="t2i"), TokenizerOptions(vq_ckpt="v.pt")

    def fail(*given):
        raise fault

    monkeypatch.setattr("autoregressive.demo.shop.text_pair", lambda options: pair)
    monkeypatch.setattr("autoregressive.demo.shop.load_text_pipeline", fail)
    shop = tiny_shop(tmp_path)
    assert shop.text is None and "flan-t5-xl" in shop.no_text, "nothing large is fetched that nobody asked for"
    monkeypatch.setattr("autoregressive.demo.shop.missing_text", lambda options, pair: [])
    (tmp_path / "again").mkdir()
    shop = tiny_shop(tmp_path / "again")
    assert shop.no_text == f"**The text-conditional model in `t.pt` cannot be used:** {fault}"
