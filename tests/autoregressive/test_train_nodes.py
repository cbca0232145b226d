"""Several nodes: copies between them, parts within; two of two processes each are played on this machine."""

import json
from pathlib import Path

import pytest
import torch
from support import ROOT, as_srun, as_torchrun, run_script

from autoregressive.train.options import TrainSharded
from autoregressive.train.task import train_c2i
from benchmarks.kills_trial import write_codes
from engine.checkpoint import read_file
from engine.config import parse

NODES = {"ranks": 4, "node": 2}


def flags_of(folder: Path, name: str) -> list[str]:
    """Three steps of GPT-1M."""
    flags = ["--code-path", folder / "codes", "--gpt-model", "GPT-1M", "--num-classes", 10, "--global-batch-size", 8,
             "--max-steps", 3, "--num-workers", 0, "--device", "cpu", "--mixed-precision", "none", "--results-dir",
             folder, "--run-name", name, "--log-every", 1, "--preview-every", 0, "--lr", 1e-3, "--data-parallel",
             "hsdp", "--dropout-p", 0, "--token-dropout-p", 0]  # fmt: skip
    return [str(flag) for flag in flags]


def trained(folder: Path, name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and last weights."""
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    (saved,) = (folder / name / "checkpoints").iterdir()
    return [line["loss"] for line in lines], read_file(saved)["model"]


def test_two_nodes_train_as_one_process_whoever_starts_them(tmp_path):
    write_codes(tmp_path / "codes")
    train_c2i(parse(TrainSharded, flags_of(tmp_path, "one")))
    for launcher in (as_torchrun, as_srun):
        flags = flags_of(tmp_path, launcher.__name__)
        run_script(ROOT / "autoregressive/train/train_c2i_fsdp.py", *flags, **NODES, launcher=launcher)
    losses, model = trained(tmp_path, "one")
    nodes, tensors = trained(tmp_path, "as_torchrun")
    assert nodes == pytest.approx(losses, rel=2e-5) and len(nodes) == 3
    assert all(torch.allclose(tensors[name], value, atol=2e-5, rtol=1e-3) for name, value in model.items())
    under_srun, same = trained(tmp_path, "as_srun")
    assert under_srun == nodes and all(torch.equal(value, same[name]) for name, value in tensors.items())


# What a rank of four finds in LOCAL_RANK and LOCAL_WORLD_SIZE.
MESH = """
import json
import os
import sys
from pathlib import Path
from engine.distributed import setup
from engine.sharding import mesh_for

context = setup("cpu")
rank = context.rank
found = {"two and two": (os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]),
         "three and one": (rank % 3, 3 - 2 * (rank // 3)), "two, one and one": (rank % 2 * (rank < 2), 1 + (rank < 2)),
         "round robin": (rank // 2, 2), "one does not know": (rank % 2, 2 * (rank > 0))}
said = {}
for case, (place, node) in found.items():
    os.environ.update(LOCAL_RANK=str(place), LOCAL_WORLD_SIZE=str(node))
    try:
        said[case] = mesh_for("hsdp", context).mesh.tolist()
    except ValueError as error:
        said[case] = str(error)
(Path(sys.argv[1]) / f"{rank}").write_text(json.dumps(said))
context.barrier()
"""


def test_a_node_is_a_row_of_the_mesh_or_all_say_why_not(tmp_path):
    (tmp_path / "mesh.py").write_text(MESH)
    run_script(tmp_path / "mesh.py", tmp_path, **NODES, launcher=as_srun)
    ranks = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(4)]
    assert [said.pop("two and two") for said in ranks] == [[[0, 1], [2, 3]]] * 4
    for said in ranks:
        for words in said.values():
            assert words.startswith("--data-parallel hsdp: every node must have as many processes"), words
    assert "Process 3 of 4 is number 0 of 1 on its node" in ranks[3]["three and one"]
    assert "Process 1 of 4 is number 0 of 2 on its node" in ranks[1]["round robin"]
