"""Reconstructions of picture files: one output for each input, of the size that the tokenizer knows."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tokenizer.tokenizer_image import vq_reconstruct
from tokenizer.tokenizer_image.vq_load import Tokenizer
from tokenizer.tokenizer_image.vq_options import DemoTokenizer, Reconstruction


def test_outputs_do_not_overwrite_each_other():
    names = vq_reconstruct.names_for(("a/cat.png", "b/Cat.jpg", "cat-2.png", "cat.webp", "dog.png"))
    assert names == ["cat", "Cat-2", "cat-2-2", "cat-3", "dog"]


@pytest.mark.parametrize("trained_on, given, side", [(16, "auto", 16), (None, "auto", 512), (16, 32, 32)])
def test_the_size_is_the_asked_one_or_the_checkpoint_s(trained_on, given, side, tmp_path, monkeypatch):
    perfect = SimpleNamespace(
        encode_codes=lambda images: images[:, 0],
        decode_code=lambda codes: codes[:, None].expand(-1, 3, -1, -1),
    )
    monkeypatch.setattr(vq_reconstruct, "load_tokenizer", lambda *_, **__: Tokenizer(perfect, "VQ", "", trained_on))
    (tmp_path / "more").mkdir()
    paths = (str(tmp_path / "cat.png"), str(tmp_path / "more/cat.png"))
    for path, grey in zip(paths, (90, 200)):
        Image.fromarray(np.full((40, 50, 3), grey, np.uint8)).save(path)
    demo = Reconstruction(paths, str(tmp_path / "out"), "x", given, device="cpu")
    vq_reconstruct.reconstruct_files(DemoTokenizer(demo))
    for name, grey in (("cat_x.png", 90), ("cat-2_x.png", 200)):
        sheet = Image.open(tmp_path / "out" / name)
        assert sheet.size == (2 * side + 6, side + 4) and sheet.getpixel((side, side)) == (grey, grey, grey)
