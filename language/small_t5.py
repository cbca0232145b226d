"""A small T5 for one's own captions: its vocabulary, the words it fills in, its weights. small_t5_task.py trains it.

Raffel et al. 2020, section 3.1.4 (span corruption). A caption alone seldom says what a masked word was; another caption
of the same picture does. So where a line has several captions, a text is two of them and its span is the whole of one:
the encoder reads the other as it will read prompts, and its features have to tell whose colour a colour is, which the
words alone do not. And the decoder gets no rows of features to look through, but their plain mean, as a GPT's codes do
(the keys of its conditions are zero). Axes: B texts, T tokens.
"""

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from language.t5 import without_bars

PAD, END, UNKNOWN = range(3)  # as in every T5
IGNORED = -100  # targets that the loss passes over
SENTINELS = 100  # as many as published T5s have
WORDS = 199  # of a caption, at most; words in a row share a sentinel, so that there are always enough
BIAS = "relative_attention_bias"
Words = list[list[int]]  # of a caption: of each word, its pieces


@dataclass
class Batch:
    """Texts with sentinels in place of masked words, and what stands there."""

    inputs: Tensor  # int64 [B, T], padded on the right
    targets: Tensor  # int64 [B, T]: sentinel, its words' pieces, sentinel, ..., END; -100 beyond
    word: Tensor  # int64 [B, T]: which masked word a target is of; -1 for sentinels, END and padding


# ---- vocabulary


def learn_pieces(captions: list[list[str]], size: int) -> bytes:
    """A sentencepiece model of at most `size` pieces."""
    try:
        import sentencepiece
    except ImportError as error:
        raise ValueError("a vocabulary needs sentencepiece: pip install 'llamagen[t2i]'") from error
    written = io.BytesIO()
    # Signs stand alone here, so that no piece is a word with a comma: it would be another word to the model.
    texts = [re.sub(r"([^\w\s])", r" \1 ", text) for line in captions for text in line]
    # Every word once more by itself: what is rare in captions becomes a piece, too.
    texts += sorted({word for text in texts for word in text.split()})
    # Its text rules are left out, as transformers reads them by a package of its own; captions are cleaned before.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=written, vocab_size=size, hard_vocab_limit=False, pad_id=PAD,
        eos_id=END, unk_id=UNKNOWN, bos_id=-1, normalization_rule_name="identity", num_threads=1, minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


def tokenizer_of(pieces: bytes):
    """transformers' T5 tokenizer of a sentencepiece model; the sentinels are its last pieces, the first one last."""
    import transformers
    from sentencepiece import SentencePieceProcessor

    if int(transformers.__version__.partition(".")[0]) < 5:
        raise ValueError(f"a vocabulary of one's own needs transformers 5, this is {transformers.__version__}: "
                         "pip install 'transformers>=5'")  # fmt: skip

    model = SentencePieceProcessor(model_proto=pieces)
    vocabulary = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    vocabulary += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(SENTINELS))]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=SENTINELS)


def words_of(captions: list[list[str]], tokenizer) -> list[list[Words]]:
    texts = [text for line in captions for text in line]
    found = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    # sentencepiece's sign for the space before a word
    starts = [name.startswith("\u2581") for name in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    return [[_words(next(found), starts)[:WORDS] for _ in line] for line in captions]


def _words(pieces: list[int], starts: list[bool]) -> Words:
    words: Words = []
    for piece in pieces:
        if starts[piece] or not words:
            words.append([])
        words[-1].append(piece)
    return words


# ---- masks


@dataclass
class Texts:
    """Lines of captions, from which texts are drawn and masked."""

    lines: list[list[Words]]
    mask: float  # the share of words that are masked in the caption of a line that has but one
    sentinel: int  # the first; the next ones count down

    def draw(self, count: int, random: np.random.Generator) -> Batch:
        """Of lines at random: two captions in either order, one of them masked, or the only one with some masks."""
        rows = []
        for line in random.integers(len(self.lines), size=count):
            captions = [self.lines[line][i] for i in random.permutation(len(self.lines[line]))]
            if len(captions) == 1:
                chosen = random.random(len(captions[0])) < self.mask
                chosen[random.integers(len(chosen))] |= not chosen.any()
            else:
                second = random.random() < 0.5
                chosen = np.array([second] * len(captions[0]) + [not second] * len(captions[1]))
            rows.append(self.masked([word for caption in captions[:2] for word in caption], chosen))
        inputs, targets, words = zip(*rows)
        return Batch(_padded(inputs, PAD), _padded(targets, IGNORED), _padded(words, -1))

    def masked(self, text: Words, chosen: np.ndarray) -> tuple[list[int], list[int], list[int]]:
        """Input, target, and the masked word of each of the target's tokens, of a text and its chosen words."""
        inputs, targets, words, sentinel = [], [], [], self.sentinel
        for i, pieces in enumerate(text):
            if not chosen[i]:
                inputs += pieces
                continue
            if i == 0 or not chosen[i - 1]:  # words in a row share a sentinel
                inputs.append(sentinel)
                targets.append(sentinel)
                words.append(-1)
                sentinel -= 1
            targets += pieces
            words += [i] * len(pieces)
        return [*inputs, END], [*targets, sentinel, END], [*words, -1, -1]


def _padded(rows: tuple[list[int], ...], value: int) -> Tensor:
    """int64 [B, T]."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


# ---- model


def small_t5(width: int, layers: int, heads: int, vocab_size: int):
    """transformers' T5, with one layer to decode by and without dropout."""
    try:
        from transformers import T5Config, T5ForConditionalGeneration
    except ImportError as error:
        raise ValueError("a T5 needs transformers: pip install 'llamagen[t2i]'") from error
    config = T5Config(d_model=width, d_kv=width // heads, d_ff=2 * width, num_layers=layers, num_decoder_layers=1,
                      num_heads=heads, vocab_size=vocab_size, feed_forward_proj="relu", tie_word_embeddings=False,
                      dropout_rate=0.0, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD)  # fmt: skip
    model = T5ForConditionalGeneration(config)
    # As transformers draws it, logits start ten times too large where the head is not tied to the embedding.
    torch.nn.init.normal_(model.lm_head.weight, std=width**-0.5)
    # Heads that look at different distances from the start find out sooner which words belong together.
    for name, weight in model.named_parameters():
        if BIAS in name:
            torch.nn.init.normal_(weight, std=1.5)
    return model


def optimizer_of(model, lr: float) -> torch.optim.Optimizer:
    """Position biases, of several units, move faster than the other weights, which are small."""
    biases = [weight for name, weight in model.named_parameters() if BIAS in name]
    others = [weight for name, weight in model.named_parameters() if BIAS not in name]
    return torch.optim.AdamW([{"params": others}, {"params": biases, "lr": 16 * lr}], lr, betas=(0.9, 0.98),
                             weight_decay=0.01)  # fmt: skip


def read(model, batch: Batch):
    """transformers' loss and logits [B, T, pieces], of a decoder that sees the mean of a text's features alone."""
    valid = batch.inputs.ne(PAD)
    features = model.encoder(input_ids=batch.inputs, attention_mask=valid).last_hidden_state  # [B, T, width]
    mean = (features * valid[..., None]).sum(1, keepdim=True) / valid.sum(1)[:, None, None]
    return model(encoder_outputs=(mean,), labels=batch.targets)


@torch.inference_mode()
def filled_in(model, texts: Texts, batches: int = 8) -> float:
    """The share of masked words whose pieces are all the likeliest, each after the right ones before it."""
    random = np.random.default_rng(0)
    words = wrong = 0
    for _ in range(batches):
        batch = texts.draw(64, random)
        right = read(model, batch).logits.argmax(-1) == batch.targets
        place = batch.word + 2 * WORDS * torch.arange(64)[:, None]  # [B, T], a number for each word of each text
        words += len(place[batch.word >= 0].unique())
        wrong += len(place[(batch.word >= 0) & ~right].unique())
    return 1 - wrong / words


def save(folder: Path, model, pieces: bytes) -> None:
    """What AutoTokenizer and T5EncoderModel, or T5ForConditionalGeneration, read by from_pretrained(folder)."""
    with without_bars():
        model.save_pretrained(folder)
    tokenizer_of(pieces).save_pretrained(folder)
    (folder / "spiece.model").write_bytes(pieces)
