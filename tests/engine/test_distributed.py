"""What processes tell one another."""

import json

import torch
from support import run_script

from engine.distributed import pick_precision

SCRIPT = """
import json
import sys
from pathlib import Path
import torch
from engine.distributed import leave, setup

context = setup("cpu")
got = context.gather({"rank": context.rank, "values": torch.arange(context.rank + 1)})
assert all(each["values"].dtype == torch.int64 for each in got)
plain = [[each["rank"], each["values"].tolist()] for each in got]
(Path(sys.argv[1]) / f"{context.rank}").write_text(json.dumps(plain))
leave()
"""


MAIN = """
import sys
from pathlib import Path
from engine.distributed import leave, setup

context = setup("cpu")
calls = []
assert context.on_main(lambda: calls.append(1) or [7]) == [7] and len(calls) == context.is_main

def fail():
    raise OSError("the disk is full")

try:
    context.on_main(fail)
except (OSError, SystemExit) as error:
    (Path(sys.argv[1]) / f"{context.rank}").write_text(f"{type(error).__name__} {error}")
leave()
"""


def test_what_rank_0_finds_and_what_stops_it_reaches_all(tmp_path):
    """A rank that waited for one that is gone would wait until its time is up, a day in a search."""
    for ranks in (1, 3):
        script, out = tmp_path / "main.py", tmp_path / str(ranks)
        script.write_text(MAIN)
        out.mkdir()
        run_script(script, str(out), ranks=ranks, timeout=60)
        said = [(out / str(rank)).read_text() for rank in range(ranks)]
        assert said == ["OSError the disk is full", *["SystemExit 2"] * (ranks - 1)]


def test_rank_0_gathers_every_rank_s_value_in_order(tmp_path):
    for ranks in (1, 3):
        script, out = tmp_path / "gather.py", tmp_path / str(ranks)
        script.write_text(SCRIPT)
        out.mkdir()
        run_script(script, str(out), ranks=ranks, launcher="torchrun")
        got = [json.loads((out / str(rank)).read_text()) for rank in range(ranks)]
        assert got == [[[rank, list(range(rank + 1))] for rank in range(ranks)], *[[]] * (ranks - 1)]


def test_tf32_is_float32_with_rounded_products():
    before = torch.get_float32_matmul_precision()
    try:
        assert pick_precision("none", torch.device("cpu")) is torch.float32
        assert torch.get_float32_matmul_precision() == before == "highest"
        assert pick_precision("tf32", torch.device("cpu")) is torch.float32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
