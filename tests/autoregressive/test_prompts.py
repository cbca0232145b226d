"""From prompts to pictures: what a caption is to the GPT, and the samplers of prompts."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import sleep

import numpy as np
import pytest
import torch
from many_runs import Gpu
from PIL import Image
from support import ROOT, run_script
from tiny_pipeline import ENCODER, MACHINE, options, write_text_files
from tiny_t5 import write_t5

from autoregressive.models.generate import Sampling
from autoregressive.options import EncoderOptions, SamplingOptions
from autoregressive.sample.grid import SHIPPED_PROMPTS, prompts_of, sample_prompts
from autoregressive.sample.many_prompts import sample_many_prompts
from autoregressive.sample.options import (
    PromptGridOptions,
    PromptOptions,
    SampleT2I,
    SampleT2IMany,
    TextManyOptions,
)
from autoregressive.sample.pipeline import Pipeline, load_text_pipeline
from dataset.text import read_prompts

SAMPLING = Sampling(cfg_scale=3.0, top_k=100)
PROMPTS = ["a large red seven on a blue background", "one cat", "two dogs, in the snow", "a photo of a green nine"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_text_files(tmp_path_factory.mktemp("text"))


def encoder(files: Path, **changed) -> EncoderOptions:
    return replace(ENCODER, t5_path=str(files / "t5"), **changed)


def text_options(files: Path):
    gpt, vq = options(files)
    return replace(gpt, gpt_type="t2i", cls_token_num=120), vq


@pytest.fixture(scope="module")
def pipeline(files) -> Pipeline:
    return load_text_pipeline(*text_options(files), encoder(files), MACHINE)


def codes(pipeline: Pipeline, prompts, numbers=None, sampling=SAMPLING, **more) -> torch.Tensor:
    numbers = torch.arange(len(prompts)) if numbers is None else torch.tensor(numbers)
    return pipeline.codes(**pipeline.captions(prompts, **more), sampling=sampling, seed=1, pictures=numbers)


# ---- captions as conditions


def test_a_prompt_s_picture_does_not_depend_on_its_batch(pipeline):
    together = codes(pipeline, PROMPTS)
    assert len({tuple(row) for row in together.tolist()}) == len(PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(codes(pipeline, [prompt], [i])[0], together[i])
    assert torch.equal(codes(pipeline, PROMPTS[::-1], [3, 2, 1, 0]).flip(0), together)


def test_captions_stand_at_the_right_end_and_are_the_encoder_s_features(pipeline):
    given = pipeline.captions(PROMPTS)
    lengths = [len(pipeline.encoder.tokenize(prompt)) for prompt in PROMPTS]
    assert given["cond"].shape == (4, max(lengths), 32) and given["valid"].sum(1).tolist() == lengths
    for row, valid, prompt in zip(given["cond"], given["valid"], PROMPTS):
        assert not valid[: -int(valid.sum())].any()
        torch.testing.assert_close(row[valid], pipeline.encoder.encode([prompt])[0], atol=1e-5, rtol=0)


def test_without_left_padding_captions_stand_where_the_encoder_leaves_them(pipeline):
    given, left = pipeline.captions(PROMPTS, left=False), pipeline.captions(PROMPTS)
    assert given["cond"].shape == (4, 120, 32)
    for row, valid, other, held in zip(given["cond"], given["valid"], left["cond"], left["valid"]):
        assert valid[: int(valid.sum())].all() and torch.equal(row[valid], other[held])
    assert codes(pipeline, PROMPTS, left=False).shape == (4, 16)


def test_an_empty_prompt_is_the_unconditional_picture(pipeline):
    """Both branches of guidance are the same, whatever the scale."""
    null = pipeline.gpt.model.cls_embedding.uncond_embedding[-1:]
    for prompt in ("", "  \n", "<br> ()", "http://a.com"):  # of the latter, cleaning leaves nothing
        given = pipeline.captions([prompt])
        assert torch.equal(given["cond"][0], null) and given["valid"].tolist() == [[True]]
    guided = codes(pipeline, ["", "one cat"])
    plain = codes(pipeline, [""], sampling=replace(SAMPLING, cfg_scale=1.0))
    assert torch.equal(guided[0], plain[0]) and not torch.equal(guided[1], plain[0])


def test_guidance_leads_away_from_a_negative_prompt(pipeline):
    plain, negative = codes(pipeline, PROMPTS), codes(pipeline, PROMPTS, negative="two dogs, in the snow")
    assert not torch.equal(plain, negative)
    assert torch.equal(codes(pipeline, PROMPTS, negative=" "), plain), "an empty one is none"
    same = codes(pipeline, PROMPTS[2:3], [2], negative=PROMPTS[2])
    unguided = codes(pipeline, PROMPTS[2:3], [2], sampling=replace(SAMPLING, cfg_scale=1.0))
    assert torch.equal(same, unguided), "away from itself leads nowhere"
    given = pipeline.captions(PROMPTS, "a photo of a green nine: drawn by hand. it is small")
    assert given["negative"][0].shape == given["cond"].shape and given["negative"][1].all()


def test_a_prompt_that_is_too_long_is_cut_and_that_is_said_once(files):
    short = load_text_pipeline(*text_options(files), encoder(files, t5_feature_max_len=5), MACHINE)
    with pytest.warns(UserWarning, match="2 of 3 captions have more than 5 tokens") as said:
        for _ in range(2):
            given = short.captions([PROMPTS[0], PROMPTS[2], "one"])
    assert given["valid"].sum(1).max() == 5 and len(said) == 1


def test_one_visitor_does_not_take_the_encoder_off_the_device_under_another(files, monkeypatch):
    shared = load_text_pipeline(*text_options(files), encoder(files, t5_offload=True), MACHINE)
    there, seen, encode = [False], [], shared.encoder.encode

    def move(to: bool) -> None:
        there[0] = to

    def slowly(texts) -> list:
        seen.append(there[0])
        sleep(0.1)
        seen.append(there[0])
        return encode(texts)

    monkeypatch.setattr(shared.encoder, "to", lambda device: move(True))
    monkeypatch.setattr(shared.encoder, "offload", lambda: move(False))
    monkeypatch.setattr(shared.encoder, "encode", slowly)
    # As each visitor has it: the same models, and a runner of their own.
    visitors = [Thread(target=replace(shared, runner=None).captions, args=([f"prompt {i}"],)) for i in range(3)]
    for visitor in visitors:
        visitor.start()
        sleep(0.03)
    for visitor in visitors:
        visitor.join()
    assert len(seen) == 6 and all(seen)


@pytest.mark.parametrize("flag, value, error", [
    ("t5_model_type", "nowhere", "--t5-model-type nowhere: neither a folder .* nor the name of a T5 encoder"),
    ("t5_feature_dim", 2048, "--t5-feature-dim 2048: features are 32 wide"),
    ("t5_feature_max_len", 121, "--t5-feature-max-len 121: the GPT takes 120 tokens"),
    ("t5_precision", "fp8", "--t5-precision fp8: choose"),
])  # fmt: skip
def test_an_encoder_that_does_not_fit_is_named(flag, value, error, files):
    with pytest.raises(ValueError, match=f"(?s){error}"):
        load_text_pipeline(*text_options(files), encoder(files, **{flag: value}), MACHINE)


def test_another_encoder_than_the_one_of_training_is_refused(files, tmp_path):
    own = load_text_pipeline(*text_options(files), encoder(files), MACHINE).encoder.papers()
    write_text_files(tmp_path, own)
    load_text_pipeline(*text_options(tmp_path), encoder(tmp_path), MACHINE)
    write_t5(tmp_path / "t5/other", seed=1)
    with pytest.raises(ValueError, match="--t5-model-type other: is another encoder .*trained with .tiny, checksum"):
        load_text_pipeline(*text_options(tmp_path), encoder(tmp_path, t5_model_type="other"), MACHINE)
    write_t5(tmp_path / "t5/wide", width=64)
    with pytest.raises(ValueError, match="--t5-model-type wide: its features are 64 wide, .* 32 wide"):
        load_text_pipeline(*text_options(tmp_path), encoder(tmp_path, t5_model_type="wide"), MACHINE)


def test_prompts_are_cut_where_the_captions_of_training_were(files, tmp_path):
    own = load_text_pipeline(*text_options(files), encoder(files), MACHINE).encoder.papers()
    assert own["max_length"] == 120
    write_text_files(tmp_path, {**own, "max_length": 7})
    lengths = [
        load_text_pipeline(*text_options(tmp_path), encoder(tmp_path, **changed), MACHINE).encoder.tokenize.max_length
        for changed in ({}, {"t5_feature_max_len": 9})
    ]
    assert lengths == [7, 9]


def test_prompts_are_cleaned_where_the_captions_of_training_were(files, tmp_path):
    prompt, cleaned = ["A LARGE Red Seven!!"], []
    for clean in (True, False, None):
        write_text_files(tmp_path, {"name": "tiny", "checksum": None, "cleaned": clean})
        made = load_text_pipeline(*text_options(tmp_path), encoder(tmp_path), MACHINE).captions(prompt)["cond"]
        plain = load_text_pipeline(*text_options(files), encoder(files), MACHINE).captions(prompt)["cond"]
        cleaned.append(made.shape == plain.shape and torch.equal(made, plain))
    assert cleaned == [True, False, True]


def test_a_pipeline_without_an_encoder_says_so(files):
    from autoregressive.sample.pipeline import load_pipeline

    with pytest.raises(ValueError, match="no text encoder"):
        load_pipeline(*text_options(files), MACHINE).captions(["a"])


# ---- grids


def grid(files: Path, folder: Path, **changed) -> SampleT2I:
    chosen = PromptGridOptions(output=str(folder / "grid.png"), single_dir=str(folder / "single"), batch_size=2, seed=1,
                               prompts=PROMPTS)  # fmt: skip
    return SampleT2I(*text_options(files), encoder(files), MACHINE, SamplingOptions(cfg_scale=3.0, top_k=100),
                     grid=replace(chosen, **changed))  # fmt: skip


def test_a_grid_holds_the_prompts_pictures_and_what_made_them(files, tmp_path, pipeline):
    sample_prompts(grid(files, tmp_path))
    wanted = pipeline.to_pictures(codes(pipeline, PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        with Image.open(tmp_path / f"single/{i:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), wanted[i])
            assert json.loads(picture.text["settings"])["prompt"] == prompt
    with Image.open(tmp_path / "grid.png") as picture:
        assert json.loads(picture.text["settings"])["prompts"] == PROMPTS


def test_prompts_come_from_flags_a_list_standard_input_or_the_list_that_ships(tmp_path, monkeypatch):
    assert prompts_of(PromptGridOptions(prompts=["a", ""])) == ["a", ""]
    (tmp_path / "list.csv").write_text("Prompt,n\n\"a, b\",1\nc,2\n")
    assert prompts_of(PromptGridOptions(prompt_file=str(tmp_path / "list.csv"))) == ["a, b", "c"]
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat\n\n two dogs \n"))
    assert prompts_of(PromptGridOptions(prompt_file="-")) == ["a cat", "two dogs"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(ValueError, match="--prompt-file -: nothing came"):
        prompts_of(PromptGridOptions(prompt_file="-"))
    assert prompts_of(PromptGridOptions()) == read_prompts(SHIPPED_PROMPTS)[:4]
    with pytest.raises(ValueError, match="--prompts and --prompt-file: give one"):
        PromptGridOptions(prompts=["a"], prompt_file="b.csv")


# ---- lists of prompts


@pytest.fixture(scope="module")
def prompt_list(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "My.Prompts.tsv"
    path.write_text("Prompt\tCategory\n" + "".join(f"{prompt}\tx\n" for prompt in [*PROMPTS, "blue"]))
    return path


def many(files: Path, prompts: Path, folder: Path, **changed) -> SampleT2IMany:
    numbers = TextManyOptions(per_proc_batch_size=2, prompt_csv=str(prompts), sample_dir=str(folder))
    return SampleT2IMany(*text_options(files), encoder(files), MACHINE, SamplingOptions(cfg_scale=3.0, top_k=100),
                         many=replace(numbers, **changed))  # fmt: skip


@pytest.fixture(scope="module")
def sampled(files, prompt_list, tmp_path_factory) -> Path:
    return sample_many_prompts(many(files, prompt_list, tmp_path_factory.mktemp("many")))


NAME = "GPT-1M-gpt-my-size-16-size-16-VQ-4-tiny-topk-100-topp-1.0-temperature-1.0-cfg-3.0-seed-0"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("images/*.png")}


def test_a_run_leaves_pictures_captions_and_results_by_the_published_names(sampled, pipeline):
    assert sampled.name == NAME
    assert sorted(contents(sampled)) == [f"{i:06d}.png" for i in range(5)]
    assert (sampled / "captions.txt").read_text().splitlines() == [*PROMPTS, "blue"]
    lines = [json.loads(line) for line in (sampled / "result.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [*PROMPTS, "blue"]
    assert [Path(line["image_path"]) for line in lines] == [sampled / f"images/{i:06d}.png" for i in range(5)]
    given = pipeline.captions([*PROMPTS, "blue"])
    wanted = pipeline.to_pictures(pipeline.codes(**given, sampling=SAMPLING, seed=0))
    for i in range(5):
        assert np.array_equal(np.asarray(Image.open(sampled / f"images/{i:06d}.png")), wanted[i])


def test_a_stopped_run_goes_on_and_other_settings_are_refused(sampled, files, prompt_list, tmp_path, monkeypatch):
    shutil.copytree(sampled, tmp_path / NAME)
    for number in (1, 4):
        (tmp_path / NAME / f"images/{number:06d}.png").unlink()
    asked, own = [], Pipeline.captions
    monkeypatch.setattr(Pipeline, "captions", lambda self, texts, *more: asked.extend(texts) or own(self, texts, *more))
    sample_many_prompts(many(files, prompt_list, tmp_path))
    assert asked == [PROMPTS[1], "blue"] and contents(tmp_path / NAME) == contents(sampled)
    other = replace(many(files, prompt_list, tmp_path), prompt=PromptOptions(negative_prompt="a dog"))
    with pytest.raises(ValueError, match=r"holds pictures made with other settings \(negative_prompt None\)"):
        sample_many_prompts(other)
    for changed, words in ((dict(t5_precision="bf16"), "encoder_precision torch.float32"),
                           (dict(t5_feature_max_len=60), "encoder_tokens 120")):  # fmt: skip
        other = many(files, prompt_list, tmp_path)
        with pytest.raises(ValueError, match=rf"other settings \({words}\)"):
            sample_many_prompts(replace(other, encoder=replace(other.encoder, **changed)))
    (tmp_path / NAME / "settings.json").rename(tmp_path / "settings.json")
    with pytest.raises(ValueError, match="holds pictures of unknown settings"):
        sample_many_prompts(many(files, prompt_list, tmp_path))
    (tmp_path / "settings.json").rename(tmp_path / NAME / "settings.json")
    prompt_list = tmp_path / "My.tsv"
    prompt_list.write_text("Prompt\nsomething else\n")
    with pytest.raises(ValueError, match=r"other settings \(.*prompts_sha256"):
        sample_many_prompts(many(files, prompt_list, tmp_path))


def test_large_batches_that_are_decoded_beside_the_sampling_make_the_same_files(
    sampled, files, prompt_list, tmp_path, monkeypatch
):
    gpu = Gpu(monkeypatch)
    for asked, batch in ((2, [2, 2, 2]), ("auto", [5])):
        folder = sample_many_prompts(many(files, prompt_list, tmp_path / str(asked), per_proc_batch_size=asked))
        assert contents(folder) == contents(sampled) and gpu.sampled == batch
        gpu.sampled.clear()


def test_two_processes_make_the_same_files(sampled, files, prompt_list, tmp_path):
    flags = ["--gpt-ckpt", files / "gpt.pt", "--vq-ckpt", files / "vq.pt", "--t5-path", files / "t5", "--t5-model-type",
             "tiny", "--t5-precision", "none", "--prompt-csv", prompt_list, "--sample-dir", tmp_path, "--cfg-scale",
             "3", "--top-k", "100", "--per-proc-batch-size", "3", "--precision", "none", "--device", "cpu"]  # fmt: skip
    run_script(ROOT / "autoregressive/sample/sample_t2i_ddp.py", *flags, ranks=2)
    assert contents(tmp_path / NAME) == contents(sampled)
    assert (tmp_path / NAME / "captions.txt").read_text() == (sampled / "captions.txt").read_text()


def test_the_first_so_many_prompts_and_a_list_without_prompts(files, prompt_list, tmp_path):
    folder = sample_many_prompts(many(files, prompt_list, tmp_path, num_fid_samples=2))
    assert len(contents(folder)) == 2 == len((folder / "captions.txt").read_text().splitlines())
    (tmp_path / "none.tsv").write_text("Category\nx\n")
    with pytest.raises(ValueError, match="none.tsv, line 1: no column of prompts"):
        sample_many_prompts(many(files, tmp_path / "none.tsv", tmp_path))
