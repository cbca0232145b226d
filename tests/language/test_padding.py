"""Captions of a batch stand at its right end."""

import pytest
import torch

from language.padding import pad_left, pad_right, to_left


def captions(*lengths: int) -> list[torch.Tensor]:
    return [torch.arange(1.0, 3 * n + 1).view(n, 3) + 100 * place for place, n in enumerate(lengths)]


@pytest.mark.parametrize("length", [None, 4, 7])
def test_captions_stand_at_the_right_end_behind_zeros(length):
    features = captions(2, 4, 0)
    padded, valid = pad_left(features, length)
    assert padded.shape == (3, length or 4, 3) and valid.dtype == torch.bool
    assert valid.sum(1).tolist() == [2, 4, 0]
    for row, each in enumerate(features):
        assert torch.equal(padded[row, padded.shape[1] - len(each) :], each)
        assert torch.equal(padded[row][valid[row]], each) and not padded[row][~valid[row]].any()


def test_a_batch_of_empty_captions_has_a_position():
    padded, valid = pad_left(captions(0, 0))
    assert padded.shape == (2, 1, 3) and not valid.any()


def test_tokens_are_padded_as_features_are():
    padded, valid = pad_left([torch.tensor([5, 6]), torch.tensor([7])])
    assert padded.tolist() == [[5, 6], [0, 7]] and valid.tolist() == [[True, True], [False, True]]


def test_padding_keeps_the_type():
    assert pad_left([torch.ones(2, 3, dtype=torch.bfloat16)])[0].dtype == torch.bfloat16


def test_too_long_a_caption_is_refused():
    with pytest.raises(ValueError, match="a caption of 4 tokens does not fit into 3"):
        pad_left(captions(1, 4), 3)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_right_padded_captions_move_to_the_left_padded_ones_place(dtype):
    features = captions(2, 5, 1)
    left, valid = pad_left(features, 5)
    right, before = pad_right(features, 5)
    assert all(torch.equal(right[row, : len(each)], each) for row, each in enumerate(features))
    assert torch.equal(before, valid.flip(1)) and not right[~before].any()
    for start, mask in ((right, before), (left, valid)):
        moved, moved_mask = to_left(start, mask.to(dtype))
        assert torch.equal(moved, left) and torch.equal(moved_mask, valid.to(dtype)) and moved_mask.dtype == dtype
