"""The text encoder: a caption's features are its own, and what is not an encoder is said to be none."""

import json
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from tiny_t5 import SENTENCES, write_t5

from language.clean import clean_caption
from language.t5 import T5Embedder, TextEncoder

TEXTS = ["a large red seven on a blue background", "", "One CAT, and two dogs.", "a photo of a green nine", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_t5(tmp_path_factory.mktemp("t5") / "tiny")


@pytest.fixture(scope="module")
def encoder(folder) -> TextEncoder:
    return TextEncoder.load(str(folder))


def close(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("batch_size", [2, 5])
def test_features_do_not_depend_on_the_batch(encoder, batch_size):
    alone = [encoder.encode([text])[0] for text in TEXTS]
    assert [len(each) for each in alone] == [len(row) for row in encoder.tokenize.all(TEXTS)]
    assert all(each.shape[1] == encoder.width == 32 for each in alone)
    assert close(encoder.encode(TEXTS, batch_size), alone)
    assert not close(alone[:1] * 4, alone[1:])


def test_features_are_those_of_the_plain_model(encoder, folder):
    from transformers import AutoTokenizer, T5EncoderModel

    model, tokenizer = (each.from_pretrained(folder) for each in (T5EncoderModel, AutoTokenizer))
    text = "a large red seven"
    with torch.no_grad():
        expected = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    assert close(encoder.encode([text]), [expected])


def test_padding_on_either_side_is_not_seen(encoder):
    (row,) = encoder.tokenize.all(["a green nine"])
    tokens, valid = torch.zeros(2, len(row) + 3, dtype=torch.int64), torch.zeros(2, len(row) + 3, dtype=torch.bool)
    tokens[0, : len(row)], valid[0, : len(row)] = torch.tensor(row), True
    tokens[1, 3:], valid[1, 3:] = torch.tensor(row), True
    features = encoder.features(tokens, valid)
    assert close([features[0, : len(row)], features[1, 3:]], encoder.encode(["a green nine"]) * 2)
    assert not features[~valid].any()


def test_features_can_be_trained_on(encoder):
    layer = torch.nn.Linear(encoder.width, 2)
    tokens = torch.tensor([encoder.tokenize("cat")])
    for features in (encoder.features(tokens, torch.ones_like(tokens).bool()), *encoder.encode(["cat"])):
        layer(features).sum().backward()
    assert layer.weight.grad is not None


def test_half_a_surrogate_pair_is_read(folder):
    assert TextEncoder.load(str(folder), clean=False).tokenize("a \ud83d cat")


def test_an_empty_caption_is_its_end_token(encoder):
    assert encoder.tokenize.all(["", "   "]) == [[encoder.tokenize.tokenizer.eos_token_id]] * 2
    assert encoder.encode([]) == []


def test_captions_are_cleaned_unless_told_otherwise(encoder, folder):
    dirty = "A <b>large</b> RED seven  (1234567)"
    raw = TextEncoder.load(str(folder), clean=False)
    assert encoder.tokenize.all([dirty]) == raw.tokenize.all([clean_caption(dirty)]) != raw.tokenize.all([dirty])


def test_long_captions_are_cut_with_their_end_token_and_that_is_said_once(folder):
    encoder = TextEncoder.load(str(folder), max_length=6)
    whole = TextEncoder.load(str(folder)).tokenize.all(TEXTS)
    with pytest.warns(UserWarning, match=r"3 of 5 captions have more than 6 tokens \(the longest \d+\)"):
        cut = encoder.tokenize.all(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.tokenize.all(TEXTS)
    assert encoder.tokenize.cut == 6 and max(map(len, cut)) == 6
    end = encoder.tokenize.tokenizer.eos_token_id
    assert all(short == (full if len(full) <= 6 else [*full[:5], end]) for short, full in zip(cut, whole, strict=True))
    expected = encoder.tokenize.tokenizer(TEXTS[0], truncation=True, max_length=6)["input_ids"]
    assert cut[0] == expected, "the tokenizer itself cuts otherwise"


def test_both_vocabulary_files_give_the_same_features(encoder, folder, tmp_path):
    other = write_t5(tmp_path / "json", tokenizer="tokenizer.json")
    assert not (other / "spiece.model").exists() and not (folder / "tokenizer.json").exists()
    assert close(TextEncoder.load(str(other)).encode(TEXTS), encoder.encode(TEXTS))


def test_the_width_is_the_model_s(tmp_path):
    encoder = TextEncoder.load("wide", folder=write_t5(tmp_path / "wide", width=48).parent)
    assert encoder.width == 48 and encoder.encode(["cat"])[0].shape[1] == 48


def test_precision_and_checksum(encoder, folder):
    half = TextEncoder.load(str(folder), dtype=torch.bfloat16)
    assert half.encode(["cat"])[0].dtype == torch.bfloat16
    assert torch.allclose(half.encode(["cat"])[0].float(), encoder.encode(["cat"])[0], atol=0.1)
    assert half.checksum == encoder.checksum
    tuned = TextEncoder.load(str(folder))
    list(tuned.model.parameters())[-3].mul_(1.1)
    assert tuned.checksum != encoder.checksum
    third = TextEncoder.load(str(folder), dtype=torch.float16)
    assert third.encode(["cat"])[0].dtype == torch.float16 and third.checksum is None


def test_a_checksum_is_of_a_model_of_any_size(tmp_path):
    """Of large matrices some values are taken, in steps."""
    folder = write_t5(tmp_path, [*SENTENCES, *(f"{i} {i * i} {chr(97 + i % 26)}" for i in range(400))], 64, words=400)
    encoder = TextEncoder.load(str(folder))
    assert max(weight.numel() for weight in encoder.model.parameters()) > 3 * 4096
    assert encoder.checksum == TextEncoder.load(str(folder), dtype=torch.bfloat16).checksum
    next(encoder.model.parameters()).neg_()
    del encoder.checksum
    assert encoder.checksum != TextEncoder.load(str(folder)).checksum


def test_an_offloaded_encoder_comes_back(encoder):
    before = encoder.encode(TEXTS)
    assert encoder.offload() is encoder and encoder.device.type == "cpu"
    place = "cuda" if torch.cuda.is_available() else "cpu"
    assert encoder.to(place).device.type == place
    assert close([each.cpu() for each in encoder.encode(TEXTS)], before)
    assert encoder.offload().encode(["cat"], device="cpu")[0].device.type == "cpu"


def test_the_published_face_pads_on_the_right(encoder, folder):
    embedder = T5Embedder(device="cpu", local_cache=True, cache_dir=str(folder.parent), dir_or_name=folder.name,
                          torch_dtype=torch.float32, model_max_length=40)  # fmt: skip
    features, mask = embedder.get_text_embeddings(TEXTS)
    assert features.shape == (5, 40, 32) and mask.shape == (5, 40)
    lengths = mask.sum(1).tolist()
    assert close([each[:n] for each, n in zip(features, lengths)], encoder.encode(TEXTS))
    assert all(mask[row, :n].all() for row, n in enumerate(lengths))
    with pytest.raises(ValueError, match="nowhere/flan-t5-xl: no such folder; fetch the files of google/flan-t5-xl"):
        T5Embedder(device="cpu", cache_dir=str(folder / "nowhere"), dir_or_name="flan-t5-xl")


def test_a_folder_that_is_no_encoder_says_what_it_lacks(folder, tmp_path):
    def refused(words: str, change) -> None:
        broken = tmp_path / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder, broken)
        change(broken)
        with pytest.raises(ValueError, match=f"--t5-model-type .*broken: {words}"):
            TextEncoder.load("broken", folder=tmp_path)

    def configure(**changes):
        def change(it: Path) -> None:
            config = json.loads((it / "config.json").read_text())
            (it / "config.json").write_text(json.dumps({**config, **changes}))

        return change

    refused(r"lacks the config \(config.json\);", lambda it: (it / "config.json").unlink())
    refused(r"lacks the weights \(\*.safetensors or", lambda it: (it / "model.safetensors").unlink())
    refused(r"lacks the tokenizer \(tokenizer.json or spiece.model\)", lambda it: (it / "spiece.model").unlink())
    refused("lacks the weights .*, the tokenizer", lambda it: [path.unlink() for path in it.glob("*m*del*")])
    weights = (folder / "model.safetensors").read_bytes()
    refused("not a whole T5 encoder", lambda it: (it / "model.safetensors").write_bytes(weights[:-3]))
    refused("not a whole T5 encoder", lambda it: (it / "spiece.model").write_bytes(b"torn"))
    refused("not a whole T5 encoder .is a bert, not a T5", configure(model_type="bert"))
    refused("not the weights .* of another shape", configure(d_ff=40))
    refused("not the weights .* missing", configure(num_layers=3))
    refused("the tokenizer is not this model's: .* end token 1, and 5", configure(eos_token_id=5))


def test_an_encoder_that_cannot_be_had_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--t5-model-type nothing: neither a folder .* one of flan-t5-xl, .*an id"):
        TextEncoder.load("nothing", folder=tmp_path)

    from transformers import AutoConfig

    def offline(*args, **kwargs):
        raise OSError("We couldn't connect\nand so on")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    for name, repository in (("flan-t5-xl", "google/flan-t5-xl"), ("some/encoder", "some/encoder")):
        words = rf"--t5: {repository} is not on this machine and could not be fetched \(We couldn't connect\)\. Fetch"
        with pytest.raises(ValueError, match=words):
            TextEncoder.load(name, folder=tmp_path, flag="--t5")


@pytest.mark.parametrize("package", ["transformers", "sentencepiece", "google.protobuf", "ftfy", "bs4"])
def test_a_missing_package_names_the_extra(package, folder, monkeypatch):
    from language import clean

    clean._libraries.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=r"pip install 'llamagen\[t2i\]'"):
        TextEncoder.load(str(folder)).encode(["a cat"])
    clean._libraries.cache_clear()
