"""Training on captions: every way to the same batch gives the same loss, stages go on, faults end in a sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, filled, run_script
from tiny_pipeline import ENCODER, TEXT_GPT, write_text_files

import dataset.faults as faults
from autoregressive.train.extract import extract_list_codes
from autoregressive.train.options import (
    ExtractTextCodes,
    HoldOut,
    ListExtraction,
    ListOptions,
    TextTraining,
    TrainT2I,
)
from autoregressive.train.text_task import CaptionTask, train_t2i
from dataset.caption_lists import CaptionLists
from dataset.captioned import Captioned, Pixels, StoredCodes, StoredFeatures, Tokens, Unusable
from dataset.captions import lists_in
from dataset.feature_store import FeatureStoreWriter
from engine.distributed import Context
from engine.options import OptimOptions, RunOptions
from language.padding import pad_left
from language.t5 import TextEncoder
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

WORDS = ["red", "blue", "green", "large", "small", "seven", "dogs", "in the snow"]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """Models; lists a and b of 14 captioned pictures; their codes, and features of long and of short captions."""
    root = write_text_files(tmp_path_factory.mktemp("train"))
    random = np.random.default_rng(0)
    (root / "lists/pictures").mkdir(parents=True)
    for name in "ab":
        lines = []
        for i in range(7):
            Image.fromarray(random.integers(0, 256, (36, 40, 3), np.uint8)).save(root / f"lists/pictures/{name}{i}.png")
            caption = " ".join(random.choice(WORDS, 2 + i % 4))
            lines.append({"image_path": f"pictures/{name}{i}.png", "text": [caption, caption, caption.split()[0]]})
        (root / f"lists/{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = TokenizerOptions(vq_ckpt=str(root / "vq.pt"))
    extraction = ListExtraction(code_path=str(root / "codes"), image_size=16, device="cpu")
    extract_list_codes(ExtractTextCodes(extraction, ListOptions(str(root / "lists"), num_workers=0), tokenizer))
    encoder = TextEncoder.load("tiny", root / "t5")
    for key, folder in ((0, "features"), (2, "short")):
        for name in "ab":
            texts = [json.loads(line)["text"][key] for line in (root / f"lists/{name}.jsonl").read_text().splitlines()]
            write_features(root / folder / name, encoder, texts)
    return root


def write_features(folder: Path, encoder: TextEncoder, texts: list[str]) -> None:
    found = encoder.encode(texts)
    papers = {"name": encoder.name, "checksum": encoder.checksum}
    settings = {"width": encoder.width, "dtype": "bf16", "encoder": papers, "cleaning": True, "max_length": 120,
                "caption_key": "blip", "trunc_caption": False, "source": {}}  # fmt: skip
    writer = FeatureStoreWriter(folder, settings, len(texts))
    writer.write_shard(0, torch.cat(found), np.array([len(each) for each in found]), np.arange(len(texts)))
    writer.finish()


def asked(places: Path, folder: Path, *, steps: int = 4, name: str = "run", optim: dict | None = None,
          run: dict | None = None, validation: HoldOut | None = None, **changed) -> TrainT2I:  # fmt: skip
    model = TextTraining(data_path=str(places / "lists"), gpt_model="GPT-1M", image_size=16, num_workers=0, dropout_p=0,
                         token_dropout_p=0)  # fmt: skip
    optim = {"max_steps": steps, "global_batch_size": 4, "device": "cpu", "mixed_precision": "none", "lr": 1e-3,
             **(optim or {})}  # fmt: skip
    run = {"results_dir": str(folder), "run_name": name, "log_every": 1, "preview_every": 0, **(run or {})}
    encoder = replace(ENCODER, t5_path=str(places / "t5"))
    return TrainT2I(replace(model, **changed), OptimOptions(**optim), RunOptions(**run), validation or HoldOut(),
                    TokenizerOptions(vq_ckpt=str(places / "vq.pt")), encoder)  # fmt: skip


def figures(folder: Path, name: str = "run", what: str = "loss") -> list[float]:
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [line[what] for line in map(json.loads, lines) if what in line]


def checkpoint(folder: Path, step: int, name: str = "run") -> dict:
    return torch.load(folder / name / f"checkpoints/{step:07d}.pt", weights_only=True)


@pytest.fixture(scope="module")
def plain(places, tmp_path_factory) -> Path:
    """Captions and pictures encoded in training."""
    folder = tmp_path_factory.mktemp("plain")
    train_t2i(asked(places, folder))
    return folder


def test_codes_of_before_and_of_the_moment_train_alike(plain, places, tmp_path):
    train_t2i(asked(places, tmp_path, code_path=str(places / "codes")))
    assert figures(tmp_path) == figures(plain) and len(set(figures(plain))) == 4
    with_codes, without = (checkpoint(folder, 4)["model"] for folder in (tmp_path, plain))
    assert all(torch.equal(with_codes[name], without[name]) for name in without)


def test_features_of_the_store_train_as_those_of_the_moment_but_for_bf16(plain, places, tmp_path):
    train_t2i(asked(places, tmp_path, t5_feat_path=str(places / "features")))
    assert figures(tmp_path) == pytest.approx(figures(plain), rel=1e-3)
    assert figures(tmp_path) != figures(plain), "the store holds bf16"
    papers = [checkpoint(folder, 4)["meta"]["encoder"] for folder in (tmp_path, plain)]
    assert papers[0] == papers[1] and papers[0]["name"] == "tiny" and papers[0]["width"] == 32


def test_the_short_caption_is_drawn_at_its_share(places, tmp_path, monkeypatch):
    taken, own = [], CaptionTask.captions
    monkeypatch.setattr(CaptionTask, "captions", lambda self, batch: taken.extend(batch["held"].sum(1).tolist())
                        or own(self, batch))  # fmt: skip
    short, long = str(places / "short"), str(places / "features")
    shares = {}
    for share in (0.0, 0.3, 1.0):
        taken.clear()
        train_t2i(asked(places, tmp_path, name=str(share), steps=60, t5_feat_path=long, short_t5_feat_path=short,
                        short_share=share, code_path=str(places / "codes"), run={"log_every": 0}))  # fmt: skip
        shares[share] = list(taken)
    lengths = {share: np.mean(found) for share, found in shares.items()}
    drawn = (lengths[0.0] - lengths[0.3]) / (lengths[0.0] - lengths[1.0])
    assert drawn == pytest.approx(0.3, abs=0.09) and lengths[0.0] > lengths[1.0], "of 240 draws"


def test_a_resumed_run_equals_the_uninterrupted_one(plain, places, tmp_path):
    train_t2i(asked(places, tmp_path, optim={"max_steps": 2}))
    train_t2i(asked(places, tmp_path, run={"resume": True}))
    resumed, whole = checkpoint(tmp_path, 4)["model"], checkpoint(plain, 4)["model"]
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def train_on_two(places: Path, folder: Path, *more) -> None:
    flags = ["--data-path", places / "lists", "--t5-path", places / "t5", "--t5-model-type", "tiny", "--t5-precision",
             "none", "--vq-ckpt", places / "vq.pt", "--image-size", 16, "--gpt-model", "GPT-1M", "--global-batch-size",
             4, "--max-steps", 4, "--num-workers", 0, "--dropout-p", 0, "--token-dropout-p", 0, "--lr", 1e-3,
             "--device", "cpu", "--mixed-precision", "none", "--results-dir", folder, "--run-name", "run",
             "--log-every", 1, "--preview-every", 0]  # fmt: skip
    run_script(ROOT / "autoregressive/train/train_t2i.py", *flags, *more, ranks=2)


def test_two_processes_train_as_one(plain, places, tmp_path):
    train_on_two(places, tmp_path)
    assert figures(tmp_path) == pytest.approx(figures(plain), rel=1e-5)


def test_two_processes_train_sharded_as_one_and_others_go_on_from_their_checkpoint(plain, places, tmp_path):
    train_on_two(places, tmp_path, "--data-parallel", "fsdp", "--max-steps", 3, "--preview-every", 3)
    assert figures(tmp_path) == pytest.approx(figures(plain)[:3], rel=1e-5)
    assert np.asarray(Image.open(tmp_path / "run/previews/0000003.png")).std() > 5
    train_t2i(asked(places, tmp_path, name="other", gpt_ckpt=str(tmp_path / "run/checkpoints/0000003")))
    assert figures(tmp_path, "other") == pytest.approx(figures(plain)[3:], rel=1e-5), "at its step"


def test_captions_are_dropped_at_their_rate(places, tmp_path, monkeypatch):
    dropped, own = [], CaptionTask.conditional_loss
    monkeypatch.setattr(CaptionTask, "conditional_loss", lambda self, module, batch, drop: dropped.append(drop)
                        or own(self, module, batch, drop))  # fmt: skip
    train_t2i(asked(places, tmp_path, steps=80, code_path=str(places / "codes"), run={"log_every": 0},
                    class_dropout_prob=0.25))  # fmt: skip
    assert torch.cat(dropped).float().mean() == pytest.approx(0.25, abs=0.08)


def test_held_out_captions_and_previews(places, tmp_path):
    train_t2i(asked(places, tmp_path, validation=HoldOut(val_fraction=0.3, preview_cfg_scale=2.0),
                    run={"preview_every": 4, "val_every": 2}))  # fmt: skip
    assert len(figures(tmp_path, what="val_loss")) == 2
    with Image.open(tmp_path / "run/previews/0000004.png") as picture:
        assert np.asarray(picture).std() > 5


def test_a_sample_that_counts_nothing_weighs_nothing(places):
    lists = CaptionLists(lists_in(places / "lists"))
    features = StoredFeatures(lists, str(places / "features"), None, 0.0, 0, 120)
    data = Captioned(lists, features, StoredCodes(lists, str(places / "codes")), pad_left, 0)
    model, context = filled(TEXT_GPT), Context(0, 1, torch.device("cpu"))
    task = CaptionTask(model, "GPT-1M", {}, torch.optim.SGD(model.parameters()), context, encoder=None, tokenizer=None,
                       faults=faults.Faults(["bad lines"], 0.0), shown=data)  # fmt: skip
    four, three = (data.__getitems__([(0, row) for row in rows]) for rows in ((0, 3, 5, 9), (0, 5, 9)))
    with torch.no_grad():
        wanted = task.conditional_loss(model, three, None)
        four["counts"][1] = 0
        torch.testing.assert_close(task.conditional_loss(model, four, None), wanted)
        four["counts"][1] = 1
        assert (task.conditional_loss(model, four, None) - wanted).abs() > 1e-3


def test_held_out_pictures_that_cannot_be_used_do_not_lower_the_loss(places):
    """The mean is over those that count."""
    lists = CaptionLists(lists_in(places / "lists"))
    features = StoredFeatures(lists, str(places / "features"), None, 0.0, 0, 120)
    held_out = Captioned(lists, features, StoredCodes(lists, str(places / "codes")), pad_left, 0)
    model = filled(TEXT_GPT).eval()

    def loss(*bad: int) -> float | None:
        context = Context(0, 1, torch.device("cpu"))
        task = CaptionTask(model, "GPT-1M", {}, torch.optim.SGD(model.parameters()), context, held_out, batch=4,
                           encoder=None, tokenizer=None, faults=faults.Faults([], 0.0), shown=held_out)  # fmt: skip
        own = held_out.__getitems__

        class Spoiled:
            def __len__(self):
                return 7

            def __getitems__(self, keys):
                batch = own(keys)
                batch["counts"][[place in bad for _, place in keys]] = 0
                return batch

        task.held_out = Spoiled()
        with torch.no_grad():
            return task.validate().get("val_loss")

    each = [loss(*set(range(7)) - {row}) for row in range(7)]
    assert loss() == pytest.approx(np.mean(each), rel=1e-5)
    assert loss(2, 5) == pytest.approx(np.mean([each[row] for row in (0, 1, 3, 4, 6)]), rel=1e-5)
    assert loss(*range(7)) is None


# ---- stages


def test_stage_2_goes_on_with_the_weights_at_another_size(plain, places, tmp_path, capsys):
    stage_1 = str(plain / "run/checkpoints/0000004.pt")
    train_t2i(asked(places, tmp_path, steps=1, image_size=32, gpt_ckpt=stage_1, optim={"lr": 0.0}))
    assert "0000004.pt: its weights go on, from step 0" in capsys.readouterr().out
    saved, before = checkpoint(tmp_path, 1), checkpoint(plain, 4)
    assert saved["steps"] == 1 and saved["meta"]["config"]["block_size"] == 64 and saved["meta"]["image_size"] == 32
    assert saved["model"].keys() == before["model"].keys(), "no weight depends on the size"
    assert all(torch.equal(saved["model"][name], before["model"][name]) for name in before["model"])


def test_a_run_goes_on_with_the_data_that_it_began_with_alone(plain, places, tmp_path):
    """Neither other features, nor pictures of another size."""
    other = TextEncoder.load("tiny", places / "t5")
    other.model.encoder.final_layer_norm.weight.data += 1
    for name in "ab":
        write_features(tmp_path / "other" / name, other, ["red"] * 7)
    shutil.copytree(plain / "run", tmp_path / "run")
    for changed, words in (({"t5_feat_path": str(tmp_path / "other")}, r"the encoder was tiny \(checksum .* is tiny"),
                           ({"image_size": 32}, "image_size was 16, is 32")):  # fmt: skip
        with pytest.raises(ValueError, match=f"--resume .*cannot go on exactly, since {words}.*--finetune"):
            train_t2i(asked(places, tmp_path, steps=6, run={"resume": True}, **changed))


def test_a_checkpoint_of_the_same_size_goes_on_at_its_step(plain, places, tmp_path):
    train_t2i(asked(places, tmp_path, steps=5, gpt_ckpt=str(plain / "run/checkpoints/0000004.pt")))
    assert len(figures(tmp_path)) == 1 and (tmp_path / "run/checkpoints/0000005.pt").is_file()


@pytest.mark.parametrize("changed", [{"image_size": 32}, {"finetune": True}])
def test_a_run_that_has_begun_no_longer_needs_what_it_began_with(changed, plain, places, tmp_path, capsys):
    first = tmp_path / "stage1.pt"
    first.write_bytes((plain / "run/checkpoints/0000004.pt").read_bytes())
    given = {"gpt_ckpt": str(first), **changed}
    train_t2i(asked(places, tmp_path, steps=2, **given))
    first.unlink()
    capsys.readouterr()
    train_t2i(asked(places, tmp_path, steps=3, run={"resume": True}, **given))
    said = capsys.readouterr().out
    assert "resumed at step 2 of 3" in said and "from step 0" not in said


@pytest.mark.parametrize("entries", [("model",), ("model", "meta")])
def test_weights_without_an_optimizer_start_at_step_0(entries, plain, places, tmp_path):
    whole = checkpoint(plain, 4)
    torch.save({name: whole[name] for name in entries}, tmp_path / "bare.pt")
    train_t2i(asked(places, tmp_path, steps=1, gpt_ckpt=str(tmp_path / "bare.pt")))
    assert len(figures(tmp_path)) == 1


@pytest.mark.parametrize("part, key, words", [
    ("encoder", "checksum", r"the encoder was other \(checksum 000"),
    ("tokenizer", "checksum", "the tokenizer was other"),
    ("encoder", "cleaned", r"the encoder was other \(cleaned False\), is tiny \(cleaned True\)"),
])  # fmt: skip
def test_weights_of_another_encoder_or_tokenizer_are_refused(part, key, words, plain, places, tmp_path):
    state = checkpoint(plain, 4)
    state["meta"][part] = {"name": "other", key: {"checksum": "0" * 16, "cleaned": False}[key]}
    torch.save(state, tmp_path / "other.pt")
    given = {"image_size": 32, "gpt_ckpt": str(tmp_path / "other.pt")}
    with pytest.raises(ValueError, match=f"--gpt-ckpt .*: was trained on other data, since {words}.*--finetune"):
        train_t2i(asked(places, tmp_path, steps=1, **given))
    train_t2i(asked(places, tmp_path, steps=1, finetune=True, **given))


def test_captions_are_encoded_in_the_encoder_s_precision_whatever_the_trainer_s(places):
    encoder = TextEncoder.load("tiny", places / "t5")
    tokens, valid = pad_left([torch.tensor(encoder.tokenize(text)) for text in WORDS])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder.features(tokens, valid)
    assert torch.equal(mixed, encoder.features(tokens, valid))


# ---- what does not fit


@pytest.mark.parametrize("changed, error", [
    (dict(gpt_type="c2i"), "--gpt-type c2i: this command trains t2i; train_c2i.py"),
    (dict(dataset="imagenet_code"), "--dataset imagenet_code: this command trains on lists"),
    (dict(t5_feat_path="{places}/nowhere"), "--t5-feat-path .*nowhere: there is no such folder"),
    (dict(t5_feat_path="{places}/t5"), "--t5-feat-path .*t5: no folder a in it"),
    (dict(code_path="{places}/lists"), "--code-path .*there is no code store"),
    (dict(code_path="{places}/codes", image_size=32), "--image-size 32: .*codes of 16-px pictures"),
    (dict(image_size=18), "--image-size 18: must be a multiple of the tokenizer's down-sampling, 4"),
    (dict(downsample_size=8), "--downsample-size 8: a picture of 16 px has 4 x 4 codes"),
    (dict(vocab_size=100), "--vocab-size 100: the codes are of a vocabulary of 256; leave"),
    (dict(vocab_size=300), "--vocab-size 300: the codes are of a vocabulary of 256; leave"),
    (dict(finetune=True), "--finetune: give the weights"),
    (dict(short_t5_feat_path="{places}/short"), "--short-t5-feat-path goes with --t5-feat-path"),
    (dict(data_path="{places}/t5"), "--data-path .*t5: no .jsonl lists in it"),
    (dict(data_start=4), "--data-start 4"),
])  # fmt: skip
def test_what_does_not_fit_is_named_before_training(changed, error, places, tmp_path):
    changed = {name: str(value).format(places=places) if name.endswith("path") else value
               for name, value in changed.items()}  # fmt: skip
    with pytest.raises(ValueError, match=error):
        train_t2i(asked(places, tmp_path, **changed))
    assert not (tmp_path / "run").exists()


def test_a_gpt_of_short_captions_cuts_them_by_itself(places, tmp_path):
    train_t2i(asked(places, tmp_path, steps=1, cls_token_num=5))
    assert checkpoint(tmp_path, 1)["meta"]["encoder"]["max_length"] == 5
    options = asked(places, tmp_path, name="other", cls_token_num=5)
    with pytest.raises(ValueError, match="--t5-feature-max-len 6: the GPT takes 5 tokens"):
        train_t2i(replace(options, encoder=replace(options.encoder, t5_feature_max_len=6)))


def test_pictures_that_cannot_be_used_are_counted_by_cause_and_too_many_are_known_before_the_end(
    places, tmp_path, capsys
):
    lists = tmp_path / "lists"
    lists.mkdir()
    lines = (places / "lists/a.jsonl").read_text().replace("pictures/", f"{places}/lists/pictures/").splitlines()
    (lists / "a.jsonl").write_text("\n".join(["{torn", *lines[:3], '{"text": "no picture"}', *lines[3:]]))
    options = ListExtraction(code_path=str(tmp_path / "codes"), image_size=16, device="cpu", shard_size=3, max_bad=0.3)
    tokenizer = TokenizerOptions(vq_ckpt=str(places / "vq.pt"))
    extract_list_codes(ExtractTextCodes(options, ListOptions(str(lists), num_workers=0), tokenizer))
    assert "7 pictures x 1 crops" in (said := capsys.readouterr().out)
    assert "2 skipped (1 not JSON, 1 no picture; " in said and "skipped.jsonl names them)" in said
    # All lists count together, and one of them may hold nothing.
    (lists / "b.jsonl").write_text("{torn\n")
    together = replace(options, code_path=str(tmp_path / "together"))
    extract_list_codes(ExtractTextCodes(together, ListOptions(str(lists), num_workers=0), tokenizer))
    assert "0 pictures x 1 crops" in capsys.readouterr().out
    codes = StoredCodes(CaptionLists(lists_in(lists)), str(tmp_path / "together"))
    assert len(codes.read(1, {}, 0)) == 16
    with pytest.raises(Unusable, match="no codes of its picture"):
        codes.read(9, {}, 0)
    (lists / "b.jsonl").unlink()
    strict = replace(options, code_path=str(tmp_path / "strict"), max_bad=0.05)
    with pytest.raises(ValueError, match=r"1 of 9 pictures cannot be used \(1 not JSON\), more than --max-bad 0.05"):
        extract_list_codes(ExtractTextCodes(strict, ListOptions(str(lists), num_workers=0), tokenizer))
    assert [path.name for path in (tmp_path / "strict/a").glob("*.codes.npy")] == ["shard-00000.codes.npy"]


def test_an_encoder_that_every_step_needs_is_not_moved_away(places, tmp_path):
    options = asked(places, tmp_path)
    with pytest.raises(ValueError, match="--t5-offload: training encodes captions at every step"):
        train_t2i(replace(options, encoder=replace(options.encoder, t5_offload=True)))


def test_features_of_two_encoders_are_refused(places, tmp_path):
    wide = TextEncoder.load("tiny", places / "t5")
    wide.model.encoder.final_layer_norm.weight.data += 1
    (tmp_path / "a").symlink_to(places / "features/a")
    write_features(tmp_path / "b", wide, ["red"] * 7)
    with pytest.raises(ValueError, match="--t5-feat-path .*b: holds features of another encoder"):
        train_t2i(asked(places, tmp_path / "out", t5_feat_path=str(tmp_path)))


def test_too_many_faults_end_the_run_and_few_are_passed_over(places, tmp_path, monkeypatch, capsys):
    lists = tmp_path / "lists"
    lists.mkdir()
    lines = (places / "lists/a.jsonl").read_text().replace("pictures/", f"{places}/lists/pictures/").splitlines()
    (lists / "a.jsonl").write_text("\n".join([*lines, "{torn", *lines]))
    monkeypatch.setattr(faults, "FAIR_SAMPLE", 12)
    with pytest.warns(UserWarning, match="line 7: not JSON"):
        train_t2i(asked(places, tmp_path / "few", data_path=str(lists), steps=3, max_bad=0.5))
        said = capsys.readouterr().out
        assert "samples cannot be used (1 bad lines; warnings name them)" in said
        assert "1 of 12 samples could not be used: 1 bad lines" in said, "once more, at the end"
        with pytest.raises(ValueError, match=r"1 of the 12 samples seen cannot be used \(1 bad lines\), more than"):
            train_t2i(asked(places, tmp_path / "many", data_path=str(lists), steps=3))


def test_pictures_that_are_too_small_count_by_their_cause(places):
    lists = CaptionLists(lists_in(places / "lists"))
    data = Captioned(lists, Tokens(lists, lambda text: [1], "blip"), Pixels(lists, 37), pad_left, 0)
    with pytest.warns(UserWarning, match="smaller than --image-size 37"):
        batch = data.__getitems__([(0, 0)])
    assert batch["counts"].tolist() == [0] and batch["faults"][0].tolist() == [0, 0, 1, 0, 0]
