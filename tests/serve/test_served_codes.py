"""What vLLM draws is what the samplers draw: greedy codes are equal, whatever stands beside them in the batch."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT
from tiny_pipeline import MACHINE, options, write_gpt, write_text_files, write_tokenizer

from autoregressive.models.generate import Sampling
from autoregressive.models.gpt import build_gpt
from autoregressive.sample.pipeline import Pipeline, load_pipeline
from autoregressive.serve.options import EngineOptions
from golden.fill import uniform
from language.padding import pad_left

pytest.importorskip("vllm", reason="needs vLLM: bash scripts/test_serve.sh")

SCALES = (1.0, 1.75, 4.0, 7.5)
MIXED = [(label, Sampling(cfg_scale=scale, cfg_interval=interval, greedy=True))
         for label in (3, 9) for scale in SCALES for interval in (-1, 5)]  # fmt: skip
# Room for 6 blocks of 32 positions (one more is vLLM's own): four pictures of 64 positions need 8.
LOAD = {"block_size": 32, "num_gpu_blocks_override": 7}


def drawn(folder: Path, pair: tuple, wishes: list, engine: dict | None = None, **more) -> dict:
    """{"codes", "preemptions"} of a process that has vLLM to itself."""
    given = {"precision": "none", "max_num_seqs": 4, "cache_dir": str(folder / "cache"), **(engine or {})}
    engine = EngineOptions(**given)
    job = {"pair": pair, "engine": engine, "wishes": wishes, "more": more}
    (folder / "job").write_bytes(pickle.dumps(job))
    command = [sys.executable, str(ROOT / "tests/serve/draw_codes.py"), str(folder / "job")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-20_000:]
    return pickle.loads((folder / "job.out").read_bytes())


def written(folder: Path, **shape) -> tuple:
    """The options of a class-conditional pair whose pictures have 8 x 8 codes."""
    write_tokenizer(folder)
    write_gpt(folder / "gpt.pt", build_gpt("GPT-1M", **shape), image_size=32, class_names=None)
    return options(folder)


def expected(pipeline: Pipeline, wishes: list) -> list[list[int]]:
    found = []
    for label, sampling in wishes:
        found += pipeline.codes(torch.tensor([label]), sampling).tolist()
    assert len({tuple(codes) for codes in found}) > len(found) // 2, "they differ"
    return found


def test_classes_with_guidance_of_their_own_in_one_batch(tmp_path):
    pair = written(tmp_path)
    wanted = expected(load_pipeline(*pair, MACHINE), MIXED)
    assert drawn(tmp_path, pair, MIXED)["codes"] == wanted


def test_pictures_that_lose_their_place_come_back_the_same(tmp_path):
    pair = written(tmp_path)
    wanted = expected(load_pipeline(*pair, MACHINE), MIXED)
    found = drawn(tmp_path, pair, MIXED, **LOAD, max_num_batched_tokens=16)  # who comes back is read in chunks
    assert found["preemptions"] > 0 and found["codes"] == wanted


def test_heads_that_are_padded_and_steps_that_are_compiled(tmp_path):
    pair = written(tmp_path, dim=80)  # heads 20 wide, as the 3B's are 100
    wanted = expected(load_pipeline(*pair, MACHINE), MIXED)
    assert drawn(tmp_path, pair, MIXED, engine={"compile": True})["codes"] == wanted


def test_layers_that_two_processes_share_and_few_key_heads(tmp_path):
    pair = written(tmp_path, n_kv_head=2)
    wanted = expected(load_pipeline(*pair, MACHINE), MIXED)
    assert drawn(tmp_path, pair, MIXED, engine={"tensor_parallel_size": 2})["codes"] == wanted


def test_captions_of_all_lengths_in_chunks_and_under_preemption(tmp_path):
    files = write_text_files(tmp_path)
    gpt = build_gpt("GPT-1M", model_type="t2i", cls_token_num=120, caption_dim=32)
    write_gpt(files / "gpt.pt", gpt, class_names=None, image_size=32)
    pair = options(files, {"gpt_type": "t2i", "cls_token_num": 120})
    pipeline = load_pipeline(*pair, MACHINE)
    wishes = [(torch.from_numpy(uniform(f"caption {n}", (n, 32))), Sampling(scale, interval, greedy=True))
              for n, scale, interval in ((1, 7.5, -1), (120, 1.75, -1), (37, 1.0, -1), (64, 4.0, 9), (8, 7.5, 3))]
    wanted = []
    for rows, sampling in wishes:
        cond, valid = pad_left([rows])
        wanted += pipeline.codes(cond, sampling, valid=valid).tolist()
    # A prompt of 120 rows is read 16 at a time.
    found = drawn(tmp_path, pair, wishes, **LOAD, max_num_batched_tokens=16)
    assert found["preemptions"] > 0 and found["codes"] == wanted
