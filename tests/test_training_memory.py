"""Memory of sharded training: what is worked out is what a real step takes, and GETTING_STARTED has the table."""

from dataclasses import replace

import pytest
import torch
from support import ROOT

from autoregressive.models.gpt import GPT_CONFIGS, build_gpt
from benchmarks.live_memory import live_memory
from benchmarks.memory_per_rank import Setting, moments, peak
from benchmarks.options import TrainingMemory
from benchmarks.training_memory_table import COLUMNS, settings, traced, worked_out

TINY = Setting("GPT-1M", 4, "fsdp", pictures=2, codes=64)
WIDE = replace(TINY, gpt_model="few layers, many codes", activation_checkpointing=True)
SETTINGS = {  # by what the peak is
    "a block's gradients": TINY,
    "what blocks keep": replace(TINY, pictures=16),
    "a block computed again": replace(TINY, pictures=4, activation_checkpointing=True),
    "with copies in each node": replace(TINY, gpus=16, data_parallel="hsdp"),
    "with a moving average": replace(TINY, gpus=8, ema=True),
    "whole gradients of the parts before": replace(TINY, gpus=8, parts=3),
    "gradients in parts": replace(TINY, gpus=8, parts=3, reduce_every_part=True),
    "the gradients outside of the blocks": replace(WIDE, pictures=1),
    "the loss head": replace(WIDE, pictures=64),
}


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Where the loss head and what else is in no block weigh as much as in a large model."""
    monkeypatch.setitem(GPT_CONFIGS, WIDE.gpt_model, dict(n_layer=2, n_head=4, dim=128, num_classes=1000))


def total(setting: Setting, whole_logits: bool = False) -> float:
    return sum(peak(setting, whole_logits).values())


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_worked_out_is_what_a_step_takes(name):
    setting = SETTINGS[name]
    parts, whole = traced(setting)
    assert total(setting) == pytest.approx(parts, rel=0.02)
    assert total(setting, whole_logits=True) == pytest.approx(whole, rel=0.02)
    if name == "the loss head":
        logits = setting.tokens * 16384
        assert whole - parts > 4 * logits, "in parts, the float32 logits of the whole batch are not there"


@pytest.mark.parametrize("gpus, way, shards", [(8, "fsdp", 8), (64, "fsdp", 64), (64, "hsdp", 8), (4, "hsdp", 4)])
def test_weights_and_moments_are_parted_among_all_or_within_a_node(gpus, way, shards):
    state = moments(replace(WIDE, gpus=gpus, data_parallel=way))[0]
    parameters = list(build_gpt(WIDE.gpt_model, block_size=64).parameters())
    numbers = sum(p.chunk(shards)[0].numel() for p in parameters)
    assert numbers > sum(p.numel() for p in parameters) / shards, "the first holds more of 1001 classes"
    assert (state["weights"], state["moments"]) == (4 * numbers, 8 * numbers)


def test_memory_counts_storages_once_and_for_as_long_as_they_live():
    with live_memory() as live:
        x = torch.zeros(1000)  # 4000 bytes
        views = [x[1:], x.view(10, 100), x.add_(1)]
        assert live.now == live.peak == 4000
        y = x.double()
        assert live.now == 12000
        y.untyped_storage().resize_(0)
        assert (live.now, live.peak) == (4000, 12000)
        del x
        assert live.now == 4000, "a view holds it"
        del views
        assert (live.now, live.peak) == (0, 12000)
        on_meta = torch.empty(1000, device="meta")
        assert live.now == 0 and bool(torch.ones(1).isfinite()) and len(on_meta) == 1000


def written() -> dict[str, list[str]]:
    """The table of GETTING_STARTED.md, by the name of the row."""
    lines = (ROOT / "GETTING_STARTED.md").read_text().split(f"| {' | '.join(COLUMNS)} |\n")[1].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1 : lines.index("")]]
    return {name: cells for name, *cells in rows}


def test_getting_started_has_the_table():
    rows = written()
    assert list(rows) == list(settings(TrainingMemory()))
    for name, setting in settings(TrainingMemory()).items():
        *cells, seen, whole, whole_seen = rows[name]
        assert worked_out(name, setting)[1:] == [*cells, whole]
        assert float(seen) == pytest.approx(float(cells[-1]), rel=0.03)
        assert float(whole_seen) == pytest.approx(float(whole), rel=0.03)
