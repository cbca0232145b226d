"""What processes tell one another."""

import json

from support import run_script

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


def test_rank_0_gathers_every_rank_s_value_in_order(tmp_path):
    for ranks in (1, 3):
        script, out = tmp_path / "gather.py", tmp_path / str(ranks)
        script.write_text(SCRIPT)
        out.mkdir()
        run_script(script, str(out), ranks=ranks)
        got = [json.loads((out / str(rank)).read_text()) for rank in range(ranks)]
        assert got == [[[rank, list(range(rank + 1))] for rank in range(ranks)], *[[]] * (ranks - 1)]
