"""The benchmark of sampling counts what it says: whole batches, the work of a step, steps that are saved."""

import sys
from dataclasses import replace

import pytest
import torch
from support import ROOT

from autoregressive.models import ways
from autoregressive.sample.pipeline import Pipeline
from benchmarks import sampling_contenders as contenders
from benchmarks import sampling_many as many
from benchmarks import sampling_quality as quality
from benchmarks import sampling_table as table
from benchmarks.options import SamplingBenchmark
from engine import distributed
from evaluations.images import PngWriter

LIMITS = {"byte": 1e-9, "operation": 1e-10, "float32 operation": 1e-10, "bfloat16 operation": 1e-10, "width": 4}


@pytest.fixture
def tiny(tmp_path, monkeypatch) -> SamplingBenchmark:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks/sampling.py")])
    monkeypatch.setattr(table, "rounds", in_turn)
    monkeypatch.setattr(table, "machine", lambda options: LIMITS)
    monkeypatch.setattr(ways, "find_compiler", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    return SamplingBenchmark(str(tmp_path / "table.md"), ("GPT-1M",), 32, (1, 2), precision="none", device="cpu",
                             top_k=0, repeats=1)  # fmt: skip


def in_turn(work: dict[str, tuple], repeats: int) -> dict[str, dict[str, float]]:
    """measure.rounds in this process."""
    before, found = torch.get_default_dtype(), {}
    for name, (contender, *given) in work.items():
        try:
            found[name] = {**contender(*given), "peak": 1.0}
        finally:
            torch.set_default_dtype(before)
    return found


def lines(options: SamplingBenchmark) -> dict[str, list[str]]:
    with open(options.output) as file:
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in file if line.startswith("| ")]
    return {name: row for name, *row in cells if name not in ("", "---")}


def test_all_draw_the_same_number_of_codes_and_stand_beside_the_floor(tiny):
    whole = table.contenders_of(table.completed(tiny))
    names = tuple(name for name in whole if name.startswith("GPT-1M"))
    assert len(names) == 2 * (len(contenders.ways_of(table.completed(tiny))) + len(contenders.CACHES))
    table.compare(replace(tiny, only=names))
    rows = lines(tiny)
    for name in names:
        codes, seconds, step, share, _ = rows[name]
        pictures = int(name.split(", ")[1].split()[0])
        assert float(step) == pytest.approx(250 * float(seconds), abs=2.6)  # of 4 codes; seconds have two decimals
        assert float(codes) == pytest.approx(1000 * pictures / float(step), rel=0.5) and share.endswith(" %")
    assert rows["GPT-1M, 2 pictures: floor, matrix products"][0]


def test_ours_stand_there_in_the_bits_that_their_names_say(tiny, monkeypatch):
    options, found = table.completed(tiny), {}
    make = ways.make_runner

    def seen(way, model, *more):
        runner = make(way, model, *more)
        found[name] = type(runner).__name__, ways.precision_of(model)
        return runner

    monkeypatch.setattr(ways, "make_runner", seen)
    for name in contenders.ways_of(options):
        contenders.ours(options, "GPT-1M", 1, name)
    for name, (runner, precision) in found.items():
        (bits,) = [kind for kind in ("fp16 matrices", "int8") if name.startswith(kind)] or [""]
        assert precision.endswith(bits) and ("," in precision) == bool(bits)
        assert runner.startswith("CompiledPacked") == name.endswith("compiled")


def test_the_floors_count_each_weight_once_a_step_and_each_row_s_products(tiny):
    options = table.completed(tiny)
    model = torch.nn.ModuleList([contenders.llama(contenders.configuration(options, "GPT-1M"), "sdpa")])
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name)
    head = model[0].lm_head.weight.numel()
    for pictures in (1, 3):
        numbers, operations = table.work_of_a_step(options, "GPT-1M", pictures)
        cache = 2 * pictures * 2 * 4 * 2.5 * 128  # rows, keys and values, layers, positions half way, width
        assert numbers == matrices + cache
        assert operations == 2 * 2 * pictures * matrices - 2 * pictures * head + 2 * cache  # guided before the head


@pytest.mark.parametrize("native", [False, True])
def test_bf16_is_measured_where_the_processor_multiplies_it(tiny, native, monkeypatch):
    monkeypatch.setattr(distributed, "cpu_has_bf16", lambda: native)
    randn, ones = torch.randn, torch.ones
    monkeypatch.setattr(torch, "randn", lambda *size, **more: randn([min(n, 4) for n in size], **more))
    monkeypatch.setattr(torch, "ones", lambda size, **more: ones(min(size, 4), **more))
    options = table.completed(tiny)
    assert {"float32 operation", "operation"} <= (rates := contenders.machine(options)).keys()
    assert ("bfloat16 operation" in rates) == native
    names = table.contenders_of(options)
    assert "VQ-16, float32" in names
    for bf16 in ("VQ-16, bfloat16", "decoded in bf16", "in bf16, eager"):
        assert (bf16 in names) == native
    assert ("in int8 of float32" in names) != native


def test_the_pair_that_ships_is_looked_at_in_fewer_steps(tiny, monkeypatch):
    monkeypatch.setattr(quality, "DRAWS", 1)
    options = replace(table.completed(tiny), top_k=2000)
    plain, ahead = (quality.looking_ahead(options, 1, window) for window in (1, 8))
    assert plain["steps"] == plain["codes"] == 64 and 8 <= ahead["steps"] < 45


def test_fewer_bits_are_compared_with_float32_after_the_same_codes(tiny, monkeypatch):
    monkeypatch.setattr(quality, "SAMPLES", 4)
    monkeypatch.setattr(quality, "BATCH", 2)
    options = replace(table.completed(tiny), top_k=2000)
    exact, *_, eight = names = list(quality.bits_of(options))
    (compiled,) = (name for name in names if name.endswith("compiled"))
    same, near, less = (quality.fewer_bits(options, name) for name in (exact, compiled, eight))
    assert same == {"distance": 0.0, "different": 0.0, "whole different": 0.0}
    assert near["distance"] < 0.01 and near["different"] < 0.1
    assert 0.002 < less["distance"] < 0.1 and 0 < less["different"] < 0.3
    assert quality.decoded_in_bf16(options)["psnr"] > 40
    if quality.FILLED in names:
        half = quality.fewer_bits(options, quality.FILLED)
        assert 1e-5 < half["distance"] < 1e-3 and half["different"] < 0.01


def test_the_whole_path_is_measured_with_every_picture_written(tiny, monkeypatch):
    written, write = [], PngWriter.write
    monkeypatch.setattr(PngWriter, "write", lambda self, part, pictures: written.extend(
        (number, picture.shape) for number, picture in zip(part, pictures)) or write(self, part, pictures))  # fmt: skip
    table.compare(replace(tiny, many=3, only=("by the thousand, GPT-1M",)))
    assert written == [(number, (32, 32, 3)) for number in range(3)]
    pictures, at_once, rate, hours, busy = lines(tiny)["GPT-1M"]
    assert (pictures, at_once, busy) == ("3", "3", "") and float(rate) > 0
    assert float(hours) == pytest.approx(50_000 / 3600 / float(rate), rel=0.1)
    figures = {"by the thousand, the pair that ships": {"seconds": 0.02, "at once": 512, "idle": 0.03}}
    assert many.many(table.completed(replace(tiny, many=100)), figures) == [
        ["the pair that ships", "3,200", "512", "50.00", "0.3", "97 %"]]  # fmt: skip


@pytest.mark.parametrize("room, said", [(1, "1"), (0, "does not fit")])
def test_the_whole_path_says_what_did_fit(tiny, room, said, monkeypatch):
    codes = Pipeline.codes

    def small(self, labels, *given, **more):
        if len(labels) > room:
            raise torch.OutOfMemoryError
        return codes(self, labels, *given, **more)

    monkeypatch.setattr(Pipeline, "codes", small)
    table.compare(replace(tiny, many=3, only=("by the thousand, GPT-1M",)))
    assert lines(tiny)["GPT-1M"][:2] == ["3", said]


def test_one_that_runs_out_of_memory_does_not_fit_and_the_others_go_on(tiny, monkeypatch):
    def starved(options, name, pictures, way):
        raise torch.OutOfMemoryError

    names = [f"GPT-1M, 1 picture: {who}" for who in ("ours, packed", "transformers, DynamicCache, sdpa")]
    monkeypatch.setattr(table, "ours", starved)
    table.compare(replace(tiny, only=tuple(names)))
    rows = lines(tiny)
    assert rows[names[0]][0] == "does not fit" and float(rows[names[1]][0]) > 0


@pytest.mark.parametrize("wrong, message", [
    ({"gpt_model": ("GPT-9B",)}, "--gpt-model GPT-9B: choose one of"),
    ({"only": ("mine",)}, "--only mine: there are no such contenders"),
    ({"image_size": 40}, "--image-size 40: must be a multiple of 16"),
])  # fmt: skip
def test_what_cannot_be_measured_is_said_first(tiny, wrong, message):
    with pytest.raises(ValueError, match=message):
        table.compare(replace(tiny, **wrong))


@pytest.mark.parametrize("wrong", [{"pictures": ()}, {"pictures": (0,)}, {"cfg_scale": 1.0}, {"repeats": 0}])
def test_options_that_measure_nothing_are_refused(tiny, wrong):
    with pytest.raises(ValueError, match="--" + next(iter(wrong)).replace("_", "-")):
        replace(tiny, **wrong)
