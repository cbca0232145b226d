"""Modules in other states."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support import ROOT, environment
from torch import nn

from autoregressive.models.gpt import build_gpt
from engine.modes import on_meta
from evaluations.inception import Inception
from tokenizer.tokenizer_image.vq_model import VQ_models


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3, dtype=torch.bfloat16)
        nn.init.normal_(tensor=self.table.weight, std=0.1)
        self.table.weight.data = F.normalize(self.table.weight.data, dim=-1)
        self.register_buffer("used", torch.zeros(2, dtype=torch.int32))


@pytest.mark.parametrize("build", [Normalised, VQ_models["VQ-4-tiny"], lambda: build_gpt("GPT-1M"), Inception],
                         ids=["one of all kinds", "tokenizer", "GPT", "Inception"])  # fmt: skip
def test_modules_on_meta_have_the_names_and_shapes_of_real_ones(build):
    with on_meta():
        empty = build().state_dict()
    real = build().state_dict()
    assert list(empty) == list(real) and all(value.is_meta for value in empty.values())
    assert all((value.shape, value.dtype) == (real[name].shape, real[name].dtype) for name, value in empty.items())
    assert not any(value.is_meta for value in real.values()), "it ends with its `with`"


def test_what_is_asked_for_elsewhere_is_made():
    with on_meta():
        drawn = nn.init.normal_(torch.zeros(500, device="cpu"))
        assert float(drawn.std()) == pytest.approx(1, abs=0.1)
        assert float(F.normalize(torch.full((1, 4), 3.0, device="cpu")).sum()) == pytest.approx(2)


def test_nothing_waits_for_a_compiler():
    code = ("import sys; from engine.modes import on_meta; from tokenizer.tokenizer_image.vq_model import VQ_models\n"
            "from autoregressive.models.gpt import build_gpt; from evaluations.inception import Inception\n"
            "with on_meta():\n"
            "    VQ_models['VQ-16'](), build_gpt('GPT-B'), build_gpt('GPT-B', model_type='t2i'), Inception()\n"
            "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)")  # fmt: skip
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, check=True)


def test_it_ends_with_an_error_too():
    with pytest.raises(ZeroDivisionError), on_meta():
        nn.Linear(2, 2).weight / (1 // 0)
    layer = nn.Embedding(50, 50)
    assert not layer.weight.is_meta and float(layer.weight.std()) == pytest.approx(1, abs=0.1)
