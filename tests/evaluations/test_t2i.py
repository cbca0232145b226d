"""The text-to-image evaluation: which pictures meet which captions, how pictures are prepared, and the two scores."""

import json
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from test_squares import picture, prepared
from torch import nn

from engine.checkpoint import read_weights
from evaluations.features import FeatureNet
from evaluations.options import FeatureOptions
from evaluations.t2i import evaluation_task
from evaluations.t2i.clip_net import MEAN, STD, clip_net, read_clip
from evaluations.t2i.evaluation_task import evaluate
from evaluations.t2i.options import EvaluateT2I, T2IOptions

SIDE, TOKENS, WIDTH = 16, 24, 12  # of the tiny CLIP
LETTERS = [c for c in string.printable if not c.isspace() and not c.isupper()]
START, END = "<|startoftext|>", "<|endoftext|>"
CAPTIONS = ["one cat", "two dogs", "", "a red cube", "it's late", "x", "y", "z", "a b", "snow", "a very long caption"]


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    """A folder as transformers keeps a CLIP: random weights, a word for each letter."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("clip")
    words = [*LETTERS, *(letter + "</w>" for letter in LETTERS), START, END]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**sizes, "vocab_size": len(words), "max_position_embeddings": TOKENS, "projection_dim": WIDTH,
            "bos_token_id": words.index(START), "eos_token_id": words.index(END), "pad_token_id": 0}  # fmt: skip
    vision = {**sizes, "image_size": SIDE, "patch_size": 8, "projection_dim": WIDTH}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))
    for parameter in model.parameters():  # as drawn, nothing has a say but what all texts share
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tiny_clip):
    model, tokenizer, known = read_clip("ViT-B/32", str(tiny_clip), "--clip-path")
    assert not known
    return clip_net("tiny", model, tokenizer, "0" * 16, known)


@pytest.fixture
def samples(tmp_path) -> Path:
    """Eleven pictures whose natural order is not the alphabet's, one of them wide, and their captions."""
    folder = tmp_path / "samples"
    (folder / "images").mkdir(parents=True)
    for i in range(len(CAPTIONS)):
        picture(i, width=35 if i == 2 else 20).save(folder / "images" / f"{i}.png")
    (folder / "captions.txt").write_text("\n".join(CAPTIONS) + "\n")
    return folder


@pytest.fixture
def real(tmp_path) -> Path:
    """Real pictures of several sizes, formats and modes, some in a folder within."""
    (tmp_path / "coco" / "val2014" / "more").mkdir(parents=True)
    for i in range(9):
        name = f"more/{i}.bmp" if i % 3 == 0 else f"{i}.png"
        mode = ("RGB", "L", "P")[i % 3]
        picture(100 + i, 18 + i, 40 - 2 * i, mode).save(tmp_path / "coco" / "val2014" / name)
    return tmp_path / "coco"


class MeanColour(nn.Module):
    """Stands for Inception: three features that a test can compute by itself. It notes what it is given."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images.clone())
        return images[:, :, ::7].mean((2, 3)), images[:, :, 0, 0]


@pytest.fixture
def colours(monkeypatch) -> MeanColour:
    """In the place of Inception, and as good as it."""
    module = MeanColour()
    net = FeatureNet("Inception 2015-12-05", "c" * 16, True, module, torch.empty(0, 3))
    monkeypatch.setattr(evaluation_task, "load_feature_net", lambda path, device: net)
    return module


def run(samples: Path, *, cache: bool = False, feature_net: str | None = None, batch_size: int = 4, **flags):
    flags.setdefault("clip_model4eval", "ViT-B/32" if flags.get("clip_path") else "WO")
    flags.setdefault("eval_res", 24)
    options = FeatureOptions(device="cpu", cache=cache, batch_size=batch_size, feature_net=feature_net)
    return evaluate(EvaluateT2I(T2IOptions(str(samples), **flags), options))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Of few well-behaved features [N, D]; the trace of the root from the eigenvalues of the product."""
    product = np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(product).astype(complex)).real.sum()
    traces = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * roots)


# ---- CLIP


def test_text_begins_with_the_prefix_and_ends_with_the_end_token(clip):
    words = clip.tokenizer.get_vocab()
    rows = clip.tokens(["A photo depicts it", "A photo depicts " + "cat " * 50])
    letters = [words[word] for word in ("a</w>", "p", "h", "o", "t", "o</w>", "d", "e", "p", "i", "c", "t", "s</w>")]
    assert rows[0].tolist()[:17] == [words[START], *letters, words["i"], words["t</w>"], words[END]]
    assert rows.shape == (2, TOKENS) and rows[0, 17:].sum() == 0
    assert rows[1, -1] == words[END] and (rows[1] == words[END]).sum() == 1
    assert rows[1, 1:14].tolist() == letters


def test_typographic_quotes_and_entities_are_read_as_plain(clip):
    odd, plain = clip.tokens(["\u201cit\u2019s\u201d a &amp; b", "\"it's\" a & b"])
    assert torch.equal(odd, plain)


def test_a_text_does_not_depend_on_its_batch(clip):
    alone, among = clip.texts(["a cat"])[0], clip.texts(["a cat", "a much longer text"])[0]
    assert torch.allclose(alone, among, atol=1e-5)
    assert not torch.allclose(alone, clip.texts(["a cap"])[0], atol=1e-2)


def by_hand(clip, files: list[Path], captions: list[str]) -> list[float]:
    """Cosines, through transformers' own forward pass."""
    cosines = []
    for file, caption in zip(files, captions):
        pixels = (prepared(file, 24, SIDE, False) / 255.0 - MEAN) / STD
        ids = clip.tokenizer(["A photo depicts " + caption], truncation=True, max_length=TOKENS, return_tensors="pt")
        with torch.no_grad():
            out = clip.model(pixel_values=torch.tensor(pixels).permute(2, 0, 1)[None].float(),
                             input_ids=ids["input_ids"])  # fmt: skip
        cosines.append(float((out.image_embeds * out.text_embeds).sum()))
    return cosines


@pytest.mark.parametrize(("how_many", "batch_size"), [(30000, 4), (30000, 1), (7, 3), (1, 8)])
def test_the_clip_score_is_the_mean_cosine_in_natural_order(tiny_clip, clip, samples, how_many, batch_size, capsys):
    cosines = by_hand(clip, [samples / "images" / f"{i}.png" for i in range(11)], CAPTIONS)
    assert np.ptp(cosines) > 0.05
    report = run(samples, clip_path=str(tiny_clip), how_many=how_many, batch_size=batch_size)
    assert report.scores["clip_score"] == pytest.approx(np.mean(cosines[:how_many]), abs=1e-5)
    lines = (samples / "score.txt").read_text().splitlines()
    assert lines[0].startswith("CLIP score by a CLIP that is not ViT-B/32, network ")
    assert "compares with none" in lines[0]
    assert lines[1] == f"CLIP score: {report.scores['clip_score']}" and len(lines) == 2
    assert capsys.readouterr().out.startswith("\n".join(lines))


def test_a_list_of_prompts_takes_the_place_of_captions(tiny_clip, samples, tmp_path):
    score = run(samples, clip_path=str(tiny_clip)).scores
    rows = "".join(f"{caption or 'nothing'}\tx\n" for caption in CAPTIONS)
    (tmp_path / "list.tsv").write_text("Prompt\tNote\n" + rows)
    (samples / "captions.txt").write_text("\n".join(caption or "nothing" for caption in CAPTIONS) + "\n")
    same = run(samples, clip_path=str(tiny_clip)).scores
    (samples / "captions.txt").unlink()
    assert run(samples, clip_path=str(tiny_clip), prompts=str(tmp_path / "list.tsv")).scores == same != score


# ---- FID


def features_of(files: list[Path], res: int) -> np.ndarray:
    return np.stack([prepared(file, res, 299, True)[::7].mean((0, 1)) for file in files])


@pytest.mark.parametrize("res", [24, 64])
def test_fid_is_that_of_the_prepared_pictures(res, samples, real, colours):
    report = run(samples, ref_dir=str(real), eval_res=res)
    sampled = features_of(sorted((samples / "images").glob("*.png")), res)
    reference = features_of(sorted((real / "val2014").rglob("*.*")), res)
    assert report.scores["fid"] == pytest.approx(frechet(sampled, reference), rel=1e-4)
    assert {tuple(images.shape[1:]) for images in colours.seen} == {(3, 299, 299)}
    lines = (samples / "score.txt").read_text().splitlines()
    assert lines[0] == f"FID_{res}px: {report.scores['fid']}"


def test_fid_of_equal_folders_is_nothing_and_how_many_does_not_limit_it(tiny_clip, samples, real, colours):
    shutil.rmtree(real / "val2014")
    shutil.copytree(samples / "images", real / "val2014")
    assert run(samples, ref_dir=str(real)).scores["fid"] == pytest.approx(0, abs=1e-6)
    picture(77).save(samples / "images" / "10.png")  # the last one
    few = run(samples, ref_dir=str(real), how_many=1, clip_path=str(tiny_clip))
    assert few.scores["fid"] > 1e-3
    assert json.loads((samples / "score.json").read_text())["captions"]["scored"] == 1


def test_another_network_is_named_first_and_gets_the_size_that_it_reads(samples, real, monkeypatch):
    module = MeanColour()
    net = FeatureNet("small.safetensors (ConvNet-4)", "d" * 16, False, module, torch.empty(0, 3), side=8)
    monkeypatch.setattr(evaluation_task, "load_feature_net", lambda path, device: net)
    run(samples, ref_dir=str(real), feature_net="small.safetensors")
    assert {tuple(images.shape[1:]) for images in module.seen} == {(3, 8, 8)}
    lines = (samples / "score.txt").read_text().splitlines()
    assert lines[0].startswith("FID_24px by small.safetensors (ConvNet-4), network dddddddddddddddd: no network of pub")
    assert json.loads((samples / "score.json").read_text())["comparable_with_published"] == {"FID_24px": False}


def test_another_reference_is_named_by_ref_type(tiny_clip, samples, real, colours):
    coco = run(samples, ref_dir=str(real)).scores["fid"]
    (real / "val2014").rename(real / "birds")
    (samples / "captions.txt").unlink()
    report = run(samples, ref_dir=str(real), ref_data="own", ref_type="birds", clip_path=str(tiny_clip))
    assert report.scores == {"fid": coco}
    assert "CLIP score is left out: no captions.txt" in (samples / "score.txt").read_text()


def test_clip_features_are_those_of_byte_pictures_and_are_named(tiny_clip, clip, samples, real):
    report = run(samples, ref_dir=str(real), fid_features="clip", clip_path=str(tiny_clip), clip_model4eval="WO")
    both = []
    for folder in (samples / "images", real / "val2014"):
        pixels = np.stack([prepared(file, 24, SIDE, False) for file in folder.rglob("*.*")])
        both.append(clip.pictures(torch.from_numpy(pixels))[0].double().numpy())
    a, b = (torch.from_numpy(np.atleast_2d(np.cov(each, rowvar=False))) for each in both)
    values, vectors = torch.linalg.eigh(a)
    half = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    roots = torch.linalg.eigvalsh(half @ b @ half).clamp(min=0).sqrt().sum()  # few pictures: singular
    expected = ((both[0].mean(0) - both[1].mean(0)) ** 2).sum() + float(a.trace() + b.trace() - 2 * roots)
    assert report.scores["fid"] == pytest.approx(expected, rel=1e-4)
    first, second = (samples / "score.txt").read_text().splitlines()[:2]
    assert first.startswith("FID_CLIP_24px by a CLIP that is not ViT-B/32") and second.startswith("FID_CLIP_24px: ")
    named = run(samples, ref_dir=str(real), fid_features="clip", feature_net=str(tiny_clip))
    assert named.scores == report.scores


def test_features_are_kept_by_pictures_network_and_preparation(samples, real, colours):
    first = run(samples, ref_dir=str(real), cache=True)
    kept = sorted(samples.glob("images.*.safetensors"))
    assert [path.name for path in kept] == ["images.lanczos24-floats299.features-cccccccc.safetensors"]
    assert len(read_weights(kept[0]).state["pooled"]) == 11
    seen = len(colours.seen)
    assert run(samples, ref_dir=str(real), cache=True).scores == first.scores and len(colours.seen) == seen
    assert run(samples, ref_dir=str(real), cache=True, eval_res=64).scores != first.scores
    seen = len(colours.seen)
    picture(77).save(samples / "images" / "3.png")
    assert run(samples, ref_dir=str(real), cache=True).scores != first.scores and len(colours.seen) > seen


# ---- the report


def test_the_report_tells_what_was_scored(tiny_clip, samples, real, colours):
    (samples / "settings.json").write_text('{"cfg_scale": 7.5}')
    report = run(samples, ref_dir=str(real), clip_path=str(tiny_clip))
    data = json.loads((samples / "score.json").read_text())
    assert data["scores"] == {"CLIP score": report.scores["clip_score"], "FID_24px": report.scores["fid"]}
    assert data["comparable_with_published"] == {"CLIP score": False, "FID_24px": True}
    assert data["samples"]["pictures"] == 11 and data["samples"]["made_by"] == {"cfg_scale": 7.5}
    assert data["reference"]["pictures"] == 9 and len(data["reference"]["sha256"]) == 64
    assert data["captions"] == {**data["captions"], "file": "captions.txt", "captions": 11, "scored": 11}
    assert "A photo depicts" in data["protocol"]["clip_score"] and {"torch", "transformers"} <= set(data["versions"])
    assert [path.name for path in samples.iterdir() if "part" in path.name] == []


def test_too_few_pictures_for_fid_are_noted(samples, real, monkeypatch):
    wide = FeatureNet("Inception 2015-12-05", "c" * 16, True, MeanColour(), torch.empty(0, 10))
    monkeypatch.setattr(evaluation_task, "load_feature_net", lambda path, device: wide)
    monkeypatch.setattr(MeanColour, "forward", lambda self, images: (images[:, 0, 0, :10], images[:, 0, 0, :2]))
    notes = run(samples, ref_dir=str(real)).notes
    assert len(notes) == 1 and "val2014: 9 pictures; FID is unreliable under 10" in notes[0]
    assert f"note: {notes[0]}" in (samples / "score.txt").read_text()


# ---- what goes wrong


@pytest.mark.parametrize(("flags", "error"), [
    ({"clip_model4eval": "ViT-L/14"}, r"--clip-model4eval ViT-L/14: choose one of ViT-B/32, ViT-G/14, or WO"),
    ({}, "nothing to score: give --ref-dir"),
    ({"ref_dir": "{nowhere}"}, "--ref-dir .*nowhere: there is no folder .*val2014; --ref-data coco2014 looks there"),
    ({"ref_dir": "{real}", "ref_data": "x"}, "there is no folder .*test; --ref-type train/valid/test"),
    ({"ref_dir": "{samples}", "ref_data": "x", "ref_type": "."}, "not a readable picture"),
    ({"ref_dir": "{empty}", "ref_data": "x", "ref_type": "."}, "FID needs at least two pictures, 0 in"),
    ({"clip_path": "{nowhere}"}, "--clip-path .*nowhere: no such folder; expected the files of openai/clip-vit"),
    ({"clip_path": "{empty}"}, "--clip-path .*empty: holds no config.json"),
    ({"prompts": "{nowhere}.csv"}, "--prompts .* --clip-model4eval WO leaves out"),
    ({"clip_path": "{clip}", "prompts": "{nowhere}.csv"}, "nowhere.csv: there is no such file"),
])  # fmt: skip
def test_what_cannot_be_scored_is_named(flags, error, tiny_clip, samples, real, colours, tmp_path):
    (tmp_path / "empty").mkdir()
    (samples / "broken").mkdir()
    (samples / "broken" / "0.png").write_bytes(b"torn")
    places = {"nowhere": tmp_path / "nowhere", "real": real, "samples": samples, "empty": tmp_path / "empty"}
    given = {name: value.format(**places, clip=tiny_clip) for name, value in flags.items()}
    with pytest.raises(ValueError, match=error):
        run(samples, **given)
    assert not list(samples.glob("score.*"))


@pytest.mark.parametrize("flag", ["how_many", "eval_res", "batch_size"])
def test_counts_are_at_least_one(flag, samples):
    with pytest.raises(ValueError, match=f"--{flag.replace('_', '-')} 0: must be at least 1"):
        run(samples, **{flag: 0})


def test_folders_without_pictures_and_torn_pictures_are_named(tiny_clip, samples, tmp_path):
    with pytest.raises(ValueError, match="--fake-dir .*empty: expected the pictures in a folder images"):
        run(tmp_path / "empty", clip_path=str(tiny_clip))
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match="--fake-dir .*empty: no pictures in"):
        run(tmp_path / "empty", clip_path=str(tiny_clip))
    (samples / "images" / "4.png").write_bytes(b"torn")
    with pytest.raises(ValueError, match="images/4.png: not a readable picture"):
        run(samples, clip_path=str(tiny_clip))
    (samples / "captions.txt").unlink()
    with pytest.raises(ValueError, match="captions.txt: there is no such file; give a list .*--clip-model4eval WO"):
        run(samples, clip_path=str(tiny_clip))


@pytest.mark.parametrize("count", [9, 12])
def test_captions_and_pictures_must_be_as_many(count, tiny_clip, clip, samples):
    captions = (CAPTIONS + ["one more"])[:count]
    (samples / "captions.txt").write_text("\n".join(captions) + "\n")
    with pytest.raises(ValueError, match=f"captions.txt: {count} captions for 11 pictures .* --prompts .*--force"):
        run(samples, clip_path=str(tiny_clip))
    report = run(samples, clip_path=str(tiny_clip), force=True)
    paired = by_hand(clip, [samples / "images" / f"{i}.png" for i in range(min(count, 11))], captions)
    assert report.scores["clip_score"] == pytest.approx(np.mean(paired), abs=1e-5)
    assert f"{count} captions for 11 pictures" in report.notes[0]


def test_a_clip_that_is_not_whole_is_named(tiny_clip, tmp_path):
    def refused(error: str, change) -> None:
        folder = tmp_path / "clip"
        shutil.copytree(tiny_clip, folder)
        change(folder)
        with pytest.raises(ValueError, match=f"--clip-path .*clip: {error}"):
            read_clip("ViT-B/32", str(folder), "--clip-path")
        shutil.rmtree(folder)

    def cut(folder: Path, share: float) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    def configure(folder: Path, part: str, name: str, value: int) -> None:
        config = json.loads((folder / "config.json").read_text())
        config[part][name] = value
        (folder / "config.json").write_text(json.dumps(config))

    def forget_words(folder: Path, end: int) -> None:
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
        configure(folder, "text_config", "eos_token_id", end)

    refused("not a whole CLIP", lambda folder: cut(folder, 0.5))
    refused("not a whole CLIP", lambda folder: (folder / "model.safetensors").unlink())
    refused("not the weights of a CLIP", lambda folder: configure(folder, "vision_config", "num_hidden_layers", 3))
    refused("not a whole CLIP", lambda folder: (folder / "vocab.json").unlink())
    for end in (2, 7):  # transformers 5 makes a tokenizer from nothing then, of two words
        refused("(the tokenizer is not|not a whole CLIP)", lambda folder, end=end: forget_words(folder, end))
    refused("the tokenizer is not .* and 7 in the", lambda it: configure(it, "text_config", "eos_token_id", 7))


def test_where_the_weights_cannot_be_had_the_flag_is_named(monkeypatch):
    from transformers import CLIPModel

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect\nand so on")

    monkeypatch.setattr(CLIPModel, "from_pretrained", offline)
    words = r"--clip-path: the weights of ViT-G/14 .* could not be fetched \(We couldn't connect\). Fetch laion/CLIP"
    with pytest.raises(ValueError, match=words):
        read_clip("ViT-G/14", None, "--clip-path")
