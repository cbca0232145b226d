"""Optimizer groups, schedules, and the moving average."""

import pytest
import torch
from torch import nn

from engine.optim import EMA, adamw, schedule


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.register_buffer("seen", torch.zeros(3, dtype=torch.int64))


def test_decay_acts_on_matrices_convolutions_and_embeddings_alone():
    net = Net()
    names = {id(p): name for name, p in net.named_parameters()}
    optimizer = adamw(net, 1e-3, (0.9, 0.95), 0.05)
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups == {0.05: {"table.weight", "conv.weight", "head.weight"},
                      0.0: {"conv.bias", "norm.weight", "norm.bias", "head.bias"}}  # fmt: skip
    for p in net.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer.step()
    for name, p in net.named_parameters():
        factor = 1 - 1e-3 * 0.05 if name in groups[0.05] else 1
        torch.testing.assert_close(p.detach(), before[name] * factor, atol=1e-7, rtol=0)


def test_without_decay_parameters_keep_their_order():
    net = Net()
    (group,) = adamw(net, 1e-3, (0.9, 0.95), 0.0).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters() if p.requires_grad]


def test_schedules():
    assert [schedule("constant", step, 100, 0, 0.1) for step in (0, 50, 99)] == [1, 1, 1]
    assert [schedule("constant", step, 100, 4, 0.1) for step in range(5)] == [0.25, 0.5, 0.75, 1, 1]
    cosine = [schedule("cosine", step, 110, 10, 0.1) for step in range(10, 111)]
    assert cosine == sorted(cosine, reverse=True)
    assert [cosine[0], cosine[50], cosine[100]] == pytest.approx([1, 0.55, 0.1])
    assert schedule("cosine", 500, 110, 10, 0.1) == pytest.approx(0.1), "past the end it stays there"
    with pytest.raises(ValueError, match="--lr-schedule step: choose constant or cosine"):
        schedule("step", 0, 1, 0, 0)


def test_the_moving_average_has_its_closed_form():
    net, decay = Net().bfloat16(), 0.9
    ema = EMA(net, decay)
    start = net.head.weight.detach().float().clone()
    values = [torch.full_like(net.head.weight, value) for value in (1.0, -2.0, 4.0)]
    for step, value in enumerate(values):
        net.head.weight.data.copy_(value)
        net.seen += step + 1
        ema.update(net)
    expected = decay**3 * start + sum((1 - decay) * decay ** (2 - i) * value.float() for i, value in enumerate(values))
    torch.testing.assert_close(ema.state["head.weight"], expected, atol=1e-6, rtol=0)
    assert ema.state["head.weight"].dtype == torch.float32
    assert ema.state["seen"].tolist() == [6, 6, 6], "buffers are copied"


def test_the_moving_average_shares_no_memory_and_loads():
    net = Net()
    ema = EMA(net, 0.5)
    before = ema.state["head.bias"].clone()
    net.head.bias.data += 1
    assert torch.equal(ema.state["head.bias"], before)
    other = EMA(net, 0.5)
    other.load(ema.state)
    assert all(torch.equal(other.state[name], value) for name, value in ema.state.items())
