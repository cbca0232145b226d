"""Before the first step: processes find one another, not the dead, and say where they were not started alike."""

import json
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from linear_task import LinearOptions
from support import run_script

from engine.distributed import fresh_store, listed
from engine.options import ParallelOptions
from engine.startup import fingerprint, flags_of

# What rank 1 has otherwise in each case.
UNLIKE = """
import json
import sys
from dataclasses import replace
from pathlib import Path
import torch
sys.path.append("tests/engine")
from linear_task import LinearOptions, build, options_in
from engine.distributed import leave
from engine.sharded_checkpoint import ShardedWriter
from engine.startup import join

folder, found = Path(sys.argv[1]), {}
options = options_in(folder)
context = join(options)
other = context.rank == 1

def said(case, work):
    try:
        found[case] = work()
    except ValueError as error:
        found[case] = str(error)

def unlike(change):
    trainer = build(options, context)
    with torch.no_grad():
        change(trainer)
    trainer.check_alike()

def spoil(trainer):
    trainer.feed.dataset.x[20] += other

def move(trainer):
    next(trainer.task.model.parameters())[-1] += 1e-3 * other

def hide(trainer):
    trainer.run.stores[-1].folder = folder / f"node{context.rank}"
    trainer.writer = ShardedWriter(context)

lr = replace(options.optim, lr=0.5 if other else 0.25)
said("nothing", lambda: unlike(lambda trainer: None))
said("flags", lambda: join(replace(options, optim=lr)))
said("elsewhere", lambda: join(replace(options, run=replace(options.run, results_dir=f"{context.rank}"))) and None)
cloud = replace(options.run, cloud_save_path="cloud" if other else None)
said("place", lambda: join(replace(options, run=cloud)))
said("folder", lambda: unlike(hide))
said("data", lambda: unlike(spoil))
said("weights", lambda: unlike(move))
said("step", lambda: unlike(lambda trainer: setattr(trainer, "step", 3 * other)))
said("model", lambda: unlike(lambda trainer: setattr(trainer.task, "meta", lambda: {"layers": 12 + other})))
(folder / f"{context.rank}.json").write_text(json.dumps(found))
leave()
"""


def test_all_say_which_rank_was_started_otherwise_and_how(tmp_path):
    (tmp_path / "unlike.py").write_text(UNLIKE)
    run_script(tmp_path / "unlike.py", tmp_path, ranks=2)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert "node0 is not the same folder for all" in one.pop("folder")
    assert "node1 is not the same folder for all" in other.pop("folder")
    assert one == other and one.pop("nothing") is None and one.pop("elsewhere") is None
    named = {"flags": "--lr is 0.5 on rank 1, 0.25 on 0", "data": "the data .* on rank 1", "step": "the step is 3 on",
             "place": "--cloud-save-path is 'given' on rank 1, None on 0",
             "weights": r"the weights \(a hash\) is '\w+' on rank 1", "model": "{'layers': 13} on rank 1"}  # fmt: skip
    assert one.keys() == named.keys()
    for case, words in named.items():
        with pytest.raises(ValueError, match=words):
            raise ValueError(one[case])
        assert one[case].count(" on rank ") == 1, "what is alike is not named"


def test_flags_are_named_as_a_user_gives_them_and_places_of_files_may_differ():
    flags = flags_of(LinearOptions())
    assert flags["--lr"] == 1e-2 and flags["--ckpt-every"] == 1000
    assert (flags["--results-dir"], flags["--cloud-save-path"]) == ("given", None) and "--device" not in flags
    assert flags_of(ParallelOptions(async_ckpt=True))["--async-ckpt"] is True
    assert listed(list(range(12))) == "0, 1, 2, 3, 4, 5, 6, 7 and 4 more"


def test_a_fingerprint_tells_names_shapes_types_and_values_apart():
    value = torch.arange(6.0)
    states = [{"a": value}, {"b": value}, {"a": value.view(2, 3)}, {"a": value.double()}, {"a": value + 1},
              {"a": value, "b": value}, {}]  # fmt: skip
    assert len({fingerprint(state.items()) for state in states}) == len(states)
    large = torch.zeros(100_000)
    for place in range(50):
        moved = large.clone()
        moved[place] += 1e-6
        assert fingerprint([("a", large)]) == fingerprint([("a", large.clone())]) != fingerprint([("a", moved)])


def meet(store: dist.Store, world: int, ranks: range) -> list[dist.Store]:
    """The stores that processes get, played by threads."""
    found: dict[int, dist.Store] = {}
    threads = [threading.Thread(target=lambda rank=rank: found.update({rank: fresh_store(store, rank, world, 20)}))
               for rank in ranks]  # fmt: skip
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join(20)
    return [found[rank] for rank in ranks]


@pytest.mark.parametrize("ranks", [range(3), range(2, -1, -1)], ids=["first to last", "last to first"])
def test_restarted_processes_find_one_another_and_not_the_dead(ranks):
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=20))
    for times in range(3):  # the second and third time beside what the dead left
        stores = meet(store, 3, ranks)
        assert not any(each.check(["address"]) for each in stores)
        stores[0].set("address", f"{times}")
        assert [each.get("address") for each in stores] == [f"{times}".encode()] * 3


def test_a_process_that_does_not_come_is_named():
    store = dist.HashStore()
    threading.Thread(target=fresh_store, args=(store, 1, 3, 5), daemon=True).start()
    with pytest.raises(OSError, match=r"of 3 processes 1 did not come within 0 s: \[2\]"):
        fresh_store(store, 0, 3, 0.4)
    store.set_timeout(timedelta(seconds=0.2))
    with pytest.raises(OSError, match="process 0 of 3 did not come"):
        fresh_store(store, 2, 3, 5)
