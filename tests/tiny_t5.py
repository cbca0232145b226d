"""A T5 encoder as transformers keeps it in a folder: two layers, and a vocabulary of the sentences that it is given."""

import io
from collections.abc import Sequence
from pathlib import Path

SENTENCES = (
    "a large red seven on a blue background",
    "one cat and two dogs, in the snow",
    "a photo of a green nine: drawn by hand. it is small",
    "the quick brown fox jumps over the lazy dog; why not?",
)


def write_t5(
    folder: str | Path, sentences: Sequence[str] = SENTENCES, width: int = 32, layers: int = 2, words: int = 300,
    tokenizer: str = "spiece.model", seed: int = 0,
) -> Path:  # fmt: skip
    """`words`: at most so many in the vocabulary. `tokenizer`: what holds it, spiece.model or tokenizer.json."""
    import sentencepiece
    import torch
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*sentences] * max(1, 20 // len(sentences))), model_writer=vocabulary,
        model_type="unigram", vocab_size=words, hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
        minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(vocabulary.getvalue())
    found = T5Tokenizer.from_pretrained(folder)
    torch.manual_seed(seed)
    config = T5Config(vocab_size=len(found), d_model=width, d_kv=8, num_heads=max(1, width // 8), d_ff=2 * width,
                      num_layers=layers, feed_forward_proj="gated-gelu", tie_word_embeddings=False)  # fmt: skip
    T5EncoderModel(config).save_pretrained(folder)
    if tokenizer == "tokenizer.json":
        found.save_pretrained(folder)
        (folder / "spiece.model").unlink()
    return folder
