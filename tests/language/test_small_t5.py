"""The small T5: its vocabulary, its masks, and that a saved one is what was trained."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from support import run_script

from dataset.codes import held_out_rows
from dataset.coloured_digits import write_pictures
from language import small_t5_task
from language.small_t5 import (
    END,
    PAD,
    SENTINELS,
    Texts,
    filled_in,
    learn_pieces,
    read,
    save,
    small_t5,
    tokenizer_of,
    words_of,
)
from language.small_t5_options import SmallT5
from language.small_t5_task import read_captions, train

TINY = {"width": 32, "layers": 2, "heads": 2, "batch_size": 32}


@pytest.fixture(scope="module")
def lists(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    write_pictures(folder, 400, 40, seed=0)
    return folder / "lists"


@pytest.fixture(scope="module")
def captions(lists) -> list[list[str]]:
    return read_captions(lists)


@pytest.fixture(scope="module")
def pieces(captions) -> bytes:
    return learn_pieces(captions, 256)


def texts_of(captions, pieces, mask: float = 0.3) -> Texts:
    tokenizer = tokenizer_of(pieces)
    return Texts(words_of(captions, tokenizer), mask, len(tokenizer) - 1)


def test_captions_are_read_from_strings_and_lists(lists, tmp_path):
    lines = [json.loads(line) for line in (lists / "test.jsonl").read_text().splitlines()]
    assert read_captions(lists / "test.jsonl", clean=False) == [line["text"] for line in lines]
    assert read_captions(lists) == read_captions(lists / "test.jsonl") + read_captions(lists / "train.jsonl")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text('{"text": "A  red\\nseven"}\n{"text": ["one", "Two"]}\n')
    assert read_captions(mixed) == [["a red seven"], ["one", "two"]]
    assert read_captions(mixed, clean=False) == [["A  red\nseven"], ["one", "Two"]]


def test_a_caption_that_cleaning_empties_is_named(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"text": "x"}\n{"text": ["y", "<br>"]}\n')
    with pytest.raises(ValueError, match="list.jsonl, line 1: cleaning leaves nothing of the caption '<br>'"):
        read_captions(tmp_path)
    assert read_captions(tmp_path, clean=False)[1] == ["y", "<br>"]


@pytest.mark.parametrize(("text", "error"), [
    ('{"text": "x"}\n{"text": 3}\n', "line 1: 'text' is 3"), ('{"text": "x"}\n{"text": [" "]}\n', "line 1: .*nothing"),
    ('{"text": "x"}\n{"txt": "y"}\n', "line 1: no 'text'"), ("{\n", "line 0: not JSON"),
    ('{"text": "x"}\n', "1 captions, too"), ('{"text": []}\n{"text": "y"}\n', "line 0: .*holds 0"),
])  # fmt: skip
def test_a_bad_line_is_named(tmp_path, text, error):
    (tmp_path / "list.jsonl").write_text(text)
    with pytest.raises(ValueError, match=error):
        read_captions(tmp_path / "list.jsonl")
    with pytest.raises(ValueError, match="--data-path .*none: there is no such"):
        read_captions(tmp_path / "none")


def test_transformers_tokenizer_is_sentencepiece_s(captions, pieces):
    from sentencepiece import SentencePieceProcessor

    model, tokenizer = SentencePieceProcessor(model_proto=pieces), tokenizer_of(pieces)
    for text in [text for line in captions[:100] for text in line]:
        assert tokenizer(text)["input_ids"] == [*model.encode(text), END]
        assert tokenizer.decode(model.encode(text)) == model.decode(model.encode(text))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (PAD, END)
    assert len(tokenizer) == model.get_piece_size() + SENTINELS
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [
        len(tokenizer) - 1,
        len(tokenizer) - 100,
    ]


def test_a_word_is_one_piece_whatever_follows_it(pieces):
    tokenizer = tokenizer_of(pieces)
    alone = tokenizer("7", add_special_tokens=False)["input_ids"]
    assert len(alone) == 1
    for text in ("7,", "7.", "7: red"):
        assert tokenizer(text)["input_ids"][0] == alone[0]
    assert len(tokenizer("somebody wrote a red seven", add_special_tokens=False)["input_ids"]) == 5


def test_words_hold_all_pieces(captions, pieces):
    tokenizer = tokenizer_of(pieces)
    for line, texts in zip(words_of(captions[:50], tokenizer), captions):
        for words, text in zip(line, texts):
            assert sum(words, []) == tokenizer(text, add_special_tokens=False)["input_ids"]
            assert len(words) == len(text.split())


def restored(inputs: list[int], targets: list[int], first: int) -> list[int]:
    """The text, with the target's words put back in place of the sentinels."""
    spans, sentinel = {}, first
    for token in targets[: targets.index(END)]:
        if token == sentinel:
            spans[token], sentinel = [], sentinel - 1
        else:
            spans[sentinel + 1].append(token)
    return [piece for token in inputs[: inputs.index(END)] for piece in spans.get(token, [token])]


@pytest.mark.parametrize("alone", [True, False])
def test_masked_words_stand_in_the_target(captions, pieces, alone):
    lines = [line[:1] for line in captions] if alone else captions
    texts = texts_of(lines, pieces)
    known = [[sum(words, []) for words in line] for line in texts.lines]
    whole = {tuple(one) for line in known for one in line}
    pairs = {tuple(one + other) for line in known for one in line for other in line}
    batch, masked, words = texts.draw(300, np.random.default_rng(0)), 0, 0
    for inputs, targets, word in zip(batch.inputs.tolist(), batch.targets.tolist(), batch.word.tolist()):
        text = restored(inputs, targets, texts.sentinel)
        assert tuple(text) in (whole if alone else pairs)
        assert [w >= 0 for w in word] == [PAD <= t < texts.sentinel - SENTINELS + 1 and t != END for t in targets]
        masked += len({w for w in word if w >= 0})
        words += len(text)
        if not alone:  # one caption is read as it is, with a sentinel before or behind it, and the other is the target
            seen = inputs[: inputs.index(END)]
            assert texts.sentinel in (seen[0], seen[-1])
            assert tuple(token for token in seen if token != texts.sentinel) in whole
    assert 0.2 < masked / words < (0.45 if alone else 0.8)


def test_held_out_lines_are_not_trained_on(lists, monkeypatch):
    """Not even for the vocabulary: each line here has a word of its own."""
    own = [[f"{word} red"] for word in ("qqq", "vvv", "zzz", "xxx", "jjj", "kkk", "www", "yyy")]
    seen = []
    monkeypatch.setattr(small_t5_task, "learn_pieces", lambda texts, n: seen.extend(texts) or learn_pieces(own, n))
    drawn = []
    draw = Texts.draw
    monkeypatch.setattr(Texts, "draw", lambda self, *more: drawn.append(len(self.lines)) or draw(self, *more))
    train(own, SmallT5(str(lists), "out", steps=1, val_fraction=0.3, **TINY))
    kept, held_out = held_out_rows(np.arange(8), 0.3, 0)
    assert seen == [own[i] for i in kept] and set(drawn) == {len(kept), len(held_out)} and len(held_out) > 0


def test_training_is_a_function_of_the_seed(captions, lists):
    def trained(seed: int) -> torch.Tensor:
        torch.seed()  # whatever the global generator holds
        model, _, _ = train(captions, SmallT5(str(lists), "out", steps=3, seed=seed, **TINY))
        return torch.cat([weight.flatten() for weight in model.parameters()])

    assert torch.equal(trained(0), trained(0)) and not torch.equal(trained(0), trained(1))


def test_a_saved_encoder_is_the_trained_one_and_fills_in_more_words(captions, lists, pieces, tmp_path):
    from transformers import AutoTokenizer, T5EncoderModel

    few, _, at_first = train(captions, SmallT5(str(lists), "out", steps=1, **TINY))
    model, learned, share = train(captions, SmallT5(str(lists), "out", steps=150, **TINY))
    assert at_first < 0.2 and share > at_first + 0.3
    save(tmp_path, model, learned)
    encoder = T5EncoderModel.from_pretrained(tmp_path, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(tokenizer) == len(tokenizer_of(learned)) == encoder.config.vocab_size
    texts = [line[0] for line in captions[:20]]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        features = encoder(**batch).last_hidden_state  # [20, T, width]
        for i, text in enumerate(texts):
            ids = tokenizer_of(learned)(text, return_tensors="pt").input_ids
            expected = model.encoder(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(features[i, : len(expected)], expected, atol=1e-4, rtol=1e-4)
    assert encoder.config.d_model == TINY["width"]


def test_the_decoder_sees_the_mean_of_a_text_s_features_and_nothing_of_its_padding(captions, pieces):
    texts = texts_of(captions, pieces)
    batch = texts.draw(4, np.random.default_rng(0))
    model = small_t5(32, 2, 2, len(tokenizer_of(pieces))).eval()
    said = read(model, batch).logits
    for inputs, targets, logits in zip(batch.inputs, batch.targets, said):
        alone = model.encoder(input_ids=inputs[inputs != PAD][None]).last_hidden_state
        tokens = model(encoder_outputs=(alone.mean(1, keepdim=True),), labels=targets[None]).logits[0]
        torch.testing.assert_close(logits, tokens, atol=1e-5, rtol=1e-4)


def test_words_are_counted_once_and_wrong_where_a_piece_is(captions, pieces):
    texts = texts_of(captions, pieces)

    class Oracle:
        """Says every target, but for one piece of each text."""

        def __init__(self, spoiled: int):
            self.spoiled = spoiled

        def encoder(self, input_ids, attention_mask):
            return type("Encoded", (), {"last_hidden_state": torch.zeros(*input_ids.shape, 1)})

        def __call__(self, encoder_outputs, labels):
            said = labels.clamp(min=0).clone()
            for row, target in zip(said, labels):
                places = torch.nonzero((target > END) & (target < texts.sentinel - SENTINELS + 1)).flatten()
                row[places[: self.spoiled]] = END
            return type("Read", (), {"logits": torch.nn.functional.one_hot(said, texts.sentinel + 1).float()})

    assert filled_in(Oracle(0), texts) == 1.0
    assert 0.8 < filled_in(Oracle(1), texts) < 1.0
    assert filled_in(Oracle(1000), texts) == 0.0


def test_the_command_makes_a_folder_once(lists, tmp_path):
    out = tmp_path / "t5"
    arguments = ["--data-path", lists, "--output", out, "--steps", "2", "--width", "16", "--heads", "2"]
    first = run_script("language/train_small_t5.py", *arguments)
    assert "masked words of held-out captions" in first.stdout
    assert {"config.json", "model.safetensors", "tokenizer.json", "spiece.model", "settings.json"} <= {
        p.name for p in out.iterdir()
    }
    shutil.copytree(lists, tmp_path / "lists")  # what the captions are decides, not where they lie
    moved = ["--data-path", tmp_path / "lists", *arguments[2:]]
    assert "already" in run_script("language/train_small_t5.py", *moved).stdout
    refused = run_script("language/train_small_t5.py", *arguments, "--seed", "1", code=2)
    assert "--output" in refused.stderr and "seed 0, not 1" in refused.stderr
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize(("flags", "error"), [
    ({"width": 30, "heads": 4}, "--width 30: must be a multiple of --heads 4"),
    ({"mask": 1.5}, "--mask 1.5: is a share"), ({"steps": 0}, "--steps 0: must be at least 1"),
    ({"val_fraction": 0.0}, "--val-fraction 0.0: must be above 0 and below 1"),
])  # fmt: skip
def test_flags_are_checked(flags, error):
    with pytest.raises(ValueError, match=error):
        SmallT5("lists", "out", **flags)
