"""The loss of a part of the logits at a time is that of all of them, and so is its gradient; the logits never stand
there together."""

import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import autoregressive.models.loss as head
from autoregressive.models.gpt import build_gpt

DROP = torch.zeros(6, dtype=torch.bool)


def model_and_batch(vocab: int = 48):
    torch.manual_seed(0)
    model = build_gpt("GPT-1M", vocab_size=vocab, block_size=16, token_dropout_p=0, resid_dropout_p=0, ffn_dropout_p=0)
    torch.nn.init.normal_(model.output.weight, std=0.2)
    return model, torch.randint(vocab, (6, 16)), torch.arange(6)


def loss_and_slopes(model, codes, labels, whole: bool, valid=None, scale: float = 1.0):
    model.zero_grad()
    logits, loss = model(codes[:, :-1], labels, codes, valid=valid, drop=DROP, with_logits=whole)
    assert (logits is not None) == whole
    (scale * loss).backward()
    return loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("valid", [None, [1, 0, 1, 1, 0, 1], [0] * 6], ids=["all", "some", "none"])
@pytest.mark.parametrize("rows", [96, 40, 1])
def test_parts_are_the_whole(rows, valid, monkeypatch):
    monkeypatch.setattr(head, "PART", rows * 48)
    model, codes, labels = model_and_batch()
    valid = None if valid is None else torch.tensor(valid)
    one, expected = loss_and_slopes(model, codes, labels, True, valid, scale=3.0)
    two, found = loss_and_slopes(model, codes, labels, False, valid, scale=3.0)
    torch.testing.assert_close(two, one, atol=1e-6, rtol=1e-6)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm(), name
    assert valid is not None and not valid.any() or expected["output.weight"].abs().max() > 0.01


def test_in_bf16_the_head_multiplies_in_bf16(monkeypatch):
    monkeypatch.setattr(head, "PART", 40 * 48)
    model, codes, labels = model_and_batch()
    with torch.autocast("cpu", torch.bfloat16):
        one, expected = loss_and_slopes(model, codes, labels, True)
        two, found = loss_and_slopes(model, codes, labels, False)
    assert two.dtype == torch.float32
    torch.testing.assert_close(two, one, atol=0.01, rtol=0)
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 0.02 * value.norm() + 1e-7, name
    h, weight = torch.randn(6, 16, 128), torch.randn(48, 128)
    with torch.autocast("cpu", torch.bfloat16):
        found = head.head_loss(h, weight, codes, None)
    rounded = head.head_loss(h.bfloat16(), weight.bfloat16(), codes, None)
    assert found == rounded != head.head_loss(h, weight, codes, None)


def test_without_a_gradient_none_is_computed():
    model, codes, labels = model_and_batch()
    with torch.no_grad():
        one, two = (model(codes[:, :-1], labels, codes, drop=DROP, with_logits=whole)[1] for whole in (True, False))
    torch.testing.assert_close(one, two)
    assert not two.requires_grad


class Largest(TorchDispatchMode):
    """The most values of the vocabulary's width that were there at once."""

    def __init__(self, width: int):
        super().__init__()
        self.width, self.now, self.peak = width, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        new = isinstance(out, torch.Tensor) and not function._schema.is_mutable and not function.is_view
        if new and out.dim() and out.shape[-1] == self.width:
            self.now += out.numel()
            self.peak = max(self.peak, self.now)
            weakref.finalize(out, self.gone, out.numel())
        return out

    def gone(self, numel: int) -> None:
        self.now -= numel


def test_the_logits_of_the_whole_batch_never_stand_there(monkeypatch):
    width, rows = 5003, 96
    monkeypatch.setattr(head, "PART", 8 * width)
    model, codes, labels = model_and_batch(width)
    peaks = []
    for whole in (True, False):
        with Largest(width) as seen:
            loss_and_slopes(model, codes, labels, whole)
        peaks.append(seen.peak)
    assert peaks[0] >= 2 * rows * width and peaks[1] <= 5 * 8 * width
