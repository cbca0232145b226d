"""Completion: codes that are given stay, and what follows is what would have followed them anyway."""

import json
from dataclasses import replace
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from support import filled
from tiny_pipeline import ENCODER, MACHINE, options, write_files, write_text_files

from autoregressive.models.generate import Sampling, decode_codes
from autoregressive.models.gpt import ModelArgs, Transformer
from autoregressive.models.runners import CompiledRunner, EagerRunner
from autoregressive.options import GPTOptions, SamplingOptions
from autoregressive.sample.grid import sample_grid, sample_prompts
from autoregressive.sample.options import GridOptions, PromptGridOptions, SampleC2I, SampleT2I
from autoregressive.sample.pipeline import load_pipeline
from engine.config import parse
from golden.fill import uniform

SETTINGS = {
    "plain": Sampling(),
    "guided": Sampling(cfg_scale=3.0, top_k=40),
    "schedule": Sampling(cfg_scale=3.0, cfg_schedule="linear"),
    "interval that ends within the known codes": Sampling(cfg_scale=3.0, cfg_interval=3),
    "interval that ends after them": Sampling(cfg_scale=3.0, cfg_interval=9),
}
SMALL = dict(dim=64, n_layer=3, n_head=4, vocab_size=96, num_classes=10, block_size=16)


def small(kind: str) -> tuple[Transformer, torch.Tensor, torch.Tensor | None]:
    """A model, conditions of three pictures, and which rows of captions hold a token."""
    if kind == "c2i":
        return filled(Transformer(ModelArgs(**SMALL))), torch.tensor([3, 9, 0]), None
    text = filled(Transformer(ModelArgs(**SMALL, model_type="t2i", cls_token_num=8, caption_dim=24)))
    valid = torch.arange(8) >= torch.tensor([5, 2, 6])[:, None]  # the first two rows hold no token of any
    return text, torch.from_numpy(uniform("captions", (3, 8, 24))) * valid[..., None], valid


@pytest.mark.parametrize("kind", ["c2i", "t2i"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_picture_is_completed_to_itself(kind, name):
    model, cond, valid = small(kind)
    runner, numbers = EagerRunner(model), torch.tensor([4, 0, 7])
    whole = decode_codes(runner, cond, 16, SETTINGS[name], 5, numbers, valid)
    assert len(whole.unique()) > 16
    for k in (0, 1, 5, 6, 15):
        again = decode_codes(runner, cond, 16, SETTINGS[name], 5, numbers, valid, known=whole[:, :k])
        assert torch.equal(again, whole), k


def test_other_known_codes_stay_and_change_what_follows():
    model, cond, _ = small("c2i")
    whole = decode_codes(EagerRunner(model), cond, 16, SETTINGS["guided"], 5, torch.arange(3))
    known = (whole[:, :6] + 1) % 96
    seen = []
    found = decode_codes(EagerRunner(model), cond, 16, SETTINGS["guided"], 5, torch.arange(3), known=known,
                         on_code=lambda i, out: seen.append((i, out[:, :6].clone())))  # fmt: skip
    assert torch.equal(found[:, :6], known) and not torch.equal(found[:, 6:], whole[:, 6:])
    assert [i for i, _ in seen] == list(range(6, 16)), "a code that is known is not chosen again"
    assert all(torch.equal(codes, known) for _, codes in seen), "a preview shows what is kept from the start"


def test_known_codes_are_read_in_one_step(monkeypatch):
    model, cond, _ = small("c2i")
    steps = []
    look = EagerRunner.look
    monkeypatch.setattr(EagerRunner, "look", lambda self, codes: steps.append(self.rows) or look(self, codes))
    known = torch.zeros(3, 10, dtype=torch.int64)
    decode_codes(EagerRunner(model), cond, 16, SETTINGS["guided"], 5, torch.arange(3), known=known)
    assert steps == [6] * 5


def test_no_second_branch_is_computed_for_codes_that_are_known(monkeypatch):
    model, cond, _ = small("c2i")
    rows = []
    prefill = model.prefill
    monkeypatch.setattr(model, "prefill", lambda cond, *rest: rows.append(len(cond)) or prefill(cond, *rest))
    known = torch.zeros(3, 5, dtype=torch.int64)
    sampling = SETTINGS["interval that ends within the known codes"]  # codes 0 to 4 are guided
    decode_codes(EagerRunner(model), cond, 16, sampling, 5, torch.arange(3), known=known)
    decode_codes(EagerRunner(model), cond, 16, sampling, 5, torch.arange(3), known=known[:, :4])
    assert rows == [3, 6]


def test_the_compiled_step_goes_on_from_known_codes_too(monkeypatch):
    monkeypatch.setattr(CompiledRunner, "BUCKET", 8)
    model, cond, valid = small("t2i")
    monkeypatch.setattr(torch, "compile", lambda step, **_: step)  # its masks and buckets are what is looked at
    whole = decode_codes(EagerRunner(model), cond, 16, SETTINGS["guided"], 5, torch.arange(3), valid)
    again = decode_codes(CompiledRunner(model), cond, 16, SETTINGS["guided"], 5, torch.arange(3), valid,
                         known=whole[:, :6])  # fmt: skip
    assert torch.equal(again, whole)


def test_the_compiled_step_keeps_its_limit_in_every_thread():
    runner, seen = CompiledRunner(small("c2i")[0]), []

    def begin() -> None:  # as a page does
        with torch.inference_mode():
            runner.start(torch.tensor([3]), 4)
        seen.append(torch._dynamo.config.cache_size_limit)

    thread = Thread(target=begin)
    thread.start()
    thread.join()
    assert seen[0] >= CompiledRunner.SHAPES


def test_nothing_left_to_sample_is_refused():
    model, cond, _ = small("c2i")
    with pytest.raises(ValueError, match="16 of 16 codes are known: nothing is left"):
        decode_codes(EagerRunner(model), cond, 16, Sampling(), 5, torch.arange(3), known=torch.zeros(3, 16, dtype=int))


# ---- pictures


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = write_files(tmp_path_factory.mktemp("weights"))
    pixels = uniform("picture", (40, 60, 3)) * 60 + 128
    Image.fromarray(pixels.astype(np.uint8)).save(folder / "start.png")
    return folder


def start(files: Path) -> Image.Image:
    return Image.open(files / "start.png").convert("RGB")


def test_codes_of_a_picture_are_the_tokenizers(files):
    pipeline = load_pipeline(*options(files), MACHINE)
    drawn = pipeline.codes(pipeline.labels([3]), Sampling(), seed=1)
    picture = Image.fromarray(pipeline.to_pictures(drawn)[0])
    codes = pipeline.encode(picture)
    assert codes.shape == (16,) and codes.dtype == torch.int64
    assert torch.equal(codes, pipeline.encode(picture.crop((0, 0, 16, 16))))
    wide = Image.new("RGB", (32, 16))
    wide.paste(picture, (8, 0))
    assert torch.equal(codes, pipeline.encode(wide)), "the centre counts"


@pytest.mark.parametrize("rows, columns, kept", [("auto", 0, 8), (1, 0, 4), (3, 3, 15), (0, 1, 1)])
def test_kept_codes_stay(rows, columns, kept, files):
    pipeline = load_pipeline(*options(files), MACHINE)
    known = pipeline.top_codes(start(files), rows, columns)
    assert torch.equal(known, pipeline.encode(start(files))[:kept])
    found = pipeline.codes(pipeline.labels([3, 9]), Sampling(cfg_scale=2.0), seed=1, known=known)
    assert torch.equal(found[:, :kept], known.expand(2, -1)) and found.shape == (2, 16)


@pytest.mark.parametrize(
    "rows, columns, message",
    [
        (4, 0, r"--keep-rows 4: a picture has 4 rows of codes; keep 0 to 3"),
        (-1, 0, r"--keep-rows -1: "),
        (0, 0, r"--keep-columns 0: of the row that follows the 0 kept ones, 1 to 3 of its 4 codes"),
        (2, 4, r"--keep-columns 4: .* 0 to 3 of its 4 codes"),
    ],
)
def test_more_than_the_top_is_refused(rows, columns, message, files):
    pipeline = load_pipeline(*options(files), MACHINE)
    with pytest.raises(ValueError, match=message):
        pipeline.top_codes(start(files), rows, columns)


def completed(files: Path, tmp_path: Path, **given) -> SampleC2I:
    grid = GridOptions(labels=["three", "grey whale"], num_images=3, batch_size=2, seed=1, keep_rows=3,
                       output=str(tmp_path / "grid.png"), single_dir=str(tmp_path / "single"),
                       prefix_image=str(files / "start.png"))  # fmt: skip
    gpt, vq = options(files)
    return SampleC2I(gpt, vq, MACHINE, SamplingOptions(cfg_scale=2.0, top_k=100), replace(grid, **given))


def test_the_command_completes_a_picture(files, tmp_path, capsys):
    sample_grid(completed(files, tmp_path))
    pipeline = load_pipeline(*options(files), MACHINE)
    known = pipeline.top_codes(start(files), 3)
    expected = pipeline.codes(pipeline.labels([3, 9, 3]), Sampling(cfg_scale=2.0, top_k=100), 1, known=known)
    for i, picture in enumerate(pipeline.to_pictures(expected)):
        file = Image.open(tmp_path / "single" / f"{i:06d}.png")
        assert np.array_equal(np.asarray(file), picture)
    settings = json.loads(file.text["settings"])
    assert settings["completed"] == "start.png" and settings["kept_codes"] == 12
    assert "12 codes in" in capsys.readouterr().out, "3 x 4 were sampled"


def test_prompts_complete_a_picture_as_well(files, tmp_path):
    text = write_text_files(tmp_path)
    grid = PromptGridOptions(prompts=["a whale"], prefix_image=str(files / "start.png"),
                             output=str(tmp_path / "t.png"))  # fmt: skip
    gpt, vq = options(text, {"gpt_type": "t2i", "cls_token_num": 120})
    encoder = replace(ENCODER, t5_path=str(text / "t5"))
    sample_prompts(SampleT2I(gpt, vq, encoder, MACHINE, grid=grid))
    assert json.loads(Image.open(tmp_path / "t.png").text["settings"])["kept_codes"] == 8


def test_what_is_no_picture_is_known_before_anything_is_loaded(files, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for name in ("text.png", "nowhere.png"):
        given = replace(completed(files, tmp_path, prefix_image=str(tmp_path / name)), gpt=GPTOptions("none.pt"))
        with pytest.raises(ValueError, match=rf"--prefix-image: .*{name}: not a readable picture"):
            sample_grid(given)


def test_what_to_keep_needs_a_picture(capsys):
    for flags in (["--keep-rows", "3"], ["--keep-columns", "1"]):
        with pytest.raises(SystemExit):
            parse(SampleC2I, flags)
        assert "of which picture? Give" in " ".join(capsys.readouterr().err.split())
