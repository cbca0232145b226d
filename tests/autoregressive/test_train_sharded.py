"""Sharded training: the weights, steps and pictures of unsharded, and checkpoints that any number of processes read.

Every run is 6 steps of GPT-1M on 2 gloo processes, if not said otherwise.
"""

import json
import os
import pickle
import re
import resource
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, command, environment, run_script
from tiny_pipeline import write_files

from autoregressive.load import load_gpt
from autoregressive.models.gpt import build_gpt
from autoregressive.options import GPTOptions
from dataset.code_store import CodeStoreWriter
from engine.checkpoint import read_file
from engine.distributed import Context
from engine.options import OptimOptions, ParallelOptions
from engine.parallel import Parallel
from engine.sharded_checkpoint import Reader, read_papers, read_tensors, verify

ALONE = Context(0, 1, torch.device("cpu"))
SCRIPT = ROOT / "autoregressive/train/train_c2i_fsdp.py"


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A tokenizer, and codes of 40 pictures of ten classes."""
    root = write_files(tmp_path_factory.mktemp("sharded"))
    tokenizer = torch.load(root / "gpt.pt", weights_only=True)["meta"]["tokenizer"]
    settings = {"grid": [4, 4], "crops": 1, "vocab_size": 256, "tokenizer": tokenizer, "image_size": 16,
                "class_names": None, "source": {}}  # fmt: skip
    writer = CodeStoreWriter(root / "codes", settings, 40)
    codes = np.random.default_rng(0).integers(0, 256, (40, 1, 16))
    writer.write_shard(0, codes, np.arange(40) % 10, np.arange(40))
    writer.finish()
    return root


def flags_of(places: Path, folder: Path, name: str = "run") -> list:
    return ["--code-path", places / "codes", "--gpt-model", "GPT-1M", "--num-classes", 10, "--global-batch-size", 8,
            "--max-steps", 6, "--num-workers", 0, "--device", "cpu", "--mixed-precision", "none", "--results-dir",
            folder, "--run-name", name, "--log-every", 1, "--ckpt-every", 0, "--preview-every", 0, "--lr", 1e-3,
            "--dropout-p", 0, "--token-dropout-p", 0, "--drop-path-rate", 0]  # fmt: skip


def train(places: Path, folder: Path, *flags, ranks: int = 2, code: int = 0, name: str = "run") -> str:
    done = run_script(SCRIPT, *flags_of(places, folder, name), *flags, ranks=ranks, code=code)
    return done.stdout + done.stderr


def losses(folder: Path, name: str = "run", what: str = "loss") -> list[float]:
    lines = map(json.loads, (folder / name / "metrics.jsonl").read_text().splitlines())
    return [line[what] for line in lines if what in line]


def checkpoint(folder: Path, step: int = 6, name: str = "run") -> Path:
    return folder / name / f"checkpoints/{step:07d}"


def same(one: Path, other: Path) -> bool:
    """Whether all tensors of two checkpoints are equal to the bit, moments included."""
    found = [read_tensors(folder) for folder in (one, other)]
    assert found[0].keys() == found[1].keys() and any(name.endswith(".exp_avg_sq") for name in found[0])
    return all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.fixture(scope="module")
def alone(places, tmp_path_factory) -> Path:
    """On one process; held-out loss, previews, a moving average and a checkpoint at step 3, too."""
    folder = tmp_path_factory.mktemp("alone")
    train(places, folder, *MORE, ranks=1)
    return folder


MORE = ["--ema", "--ema-decay", 0.5, "--val-fraction", 0.2, "--val-every", 3, "--ckpt-every", 3]


@pytest.fixture(scope="module")
def sharded(places, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    train(places, folder, *MORE)
    return folder


# ---- steps


def test_two_processes_train_sharded_as_one_does(alone, sharded):
    """From the same weights, though each process draws no more than its part of them."""
    for what in ("loss", "val_loss", "model_grad_norm"):
        assert losses(sharded, what=what) == pytest.approx(losses(alone, what=what), rel=2e-5), what
    one, two = read_file(checkpoint(alone).with_suffix(".pt")), read_file(checkpoint(sharded))
    for part in ("model", "ema"):
        assert one[part].keys() == two[part].keys()
        for key, value in one[part].items():
            torch.testing.assert_close(two[part][key], value, atol=2e-5, rtol=1e-3)
    assert all(one[key] == two[key] for key in ("meta", "order", "steps"))


@pytest.mark.parametrize("flags", [
    ["--data-parallel", "sdp", "--gradient-accumulation-steps", 2], ["--data-parallel", "hsdp", "--async-ckpt"],
    ["--activation-checkpointing", "--gradient-accumulation-steps", 2, "--reduce-every-part"],
], ids=["sdp in parts", "hsdp in the background", "checkpointing, summed at every part"])  # fmt: skip
def test_every_way_to_shard_trains_alike(flags, places, sharded, tmp_path):
    train(places, tmp_path, *MORE, *flags)
    assert losses(tmp_path) == pytest.approx(losses(sharded), rel=2e-5)
    assert read_papers(checkpoint(tmp_path, 3))["steps"] == 3
    model, other = (read_file(checkpoint(folder, 3))["model"] for folder in (sharded, tmp_path))
    assert all(torch.allclose(model[name], other[name], atol=2e-5) for name in model)


COMPILED = """
import runpy, sys
from torch import nn
compile = nn.Module.compile
nn.Module.compile = lambda self: print("compiles a", type(self).__name__) or compile(self, backend="aot_eager")
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_blocks_are_compiled_one_by_one_and_train_alike(places, sharded, tmp_path):
    (tmp_path / "compiled.py").write_text(COMPILED)
    flags = [*flags_of(places, tmp_path), *MORE, "--compile", "--compile-on-cpu", "--activation-checkpointing"]
    said = run_script(tmp_path / "compiled.py", SCRIPT, *flags, ranks=2).stdout
    assert said.count("compiles a TransformerBlock") == said.count("compiles a") == 2 * 4
    assert losses(tmp_path) == pytest.approx(losses(sharded), rel=2e-5)


def test_in_bf16_it_learns_the_same(places, alone, tmp_path):
    train(places, tmp_path, *MORE, "--mixed-precision", "bf16", "--preview-every", 6, "--vq-ckpt", places / "vq.pt")
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=1e-2) and losses(tmp_path) != losses(alone)
    assert {value.dtype for value in read_file(checkpoint(tmp_path))["model"].values()} == {torch.float32}
    with Image.open(tmp_path / "run/previews/0000006.png") as picture:
        assert np.asarray(picture).std() > 5


def test_previews_are_those_of_one_process(places, tmp_path):
    """fully_shard looks after `forward` alone; sampling calls others."""
    flags = ["--preview-every", 2, "--vq-ckpt", places / "vq.pt", "--max-steps", 2]
    for name, ranks in (("one", 1), ("two", 2)):
        train(places, tmp_path, *flags, ranks=ranks, name=name)
    one, two = (np.asarray(Image.open(tmp_path / name / "previews/0000002.png"), np.int32) for name in ("one", "two"))
    assert one.std() > 5 and np.abs(one - two).max() <= 1


# ---- checkpoints


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(places, tmp_path):
    flags = ["--dropout-p", 0.2, "--ema"]
    train(places, tmp_path, *flags, name="whole")
    train(places, tmp_path, *flags, "--max-steps", 3, name="parts")
    train(places, tmp_path, *flags, "--resume", name="parts")
    assert same(checkpoint(tmp_path, name="parts"), checkpoint(tmp_path, name="whole"))
    assert not same(checkpoint(tmp_path, 3, name="parts"), checkpoint(tmp_path, name="whole"))


@pytest.mark.parametrize("ranks, flags", [(1, []), (4, []), (2, ["--data-parallel", "ddp"])])
def test_other_numbers_of_processes_and_ways_to_shard_go_on(ranks, flags, places, sharded, tmp_path):
    shutil.copytree(sharded / "run", tmp_path / "run")
    shutil.rmtree(checkpoint(tmp_path))
    assert "resumed at step 3 of 6" in train(places, tmp_path, *MORE, "--resume", *flags, ranks=ranks)
    assert losses(tmp_path) == pytest.approx(losses(sharded), rel=2e-5) and len(losses(tmp_path)) == 6
    assert checkpoint(tmp_path).is_dir() == (ranks == 4)


def test_a_run_of_one_process_goes_on_sharded_and_the_last_checkpoints_are_kept(places, alone, tmp_path):
    shutil.copytree(alone / "run", tmp_path / "run")
    checkpoint(tmp_path).with_suffix(".pt").unlink()
    train(places, tmp_path, *MORE, "--resume", "--ckpt-every", 1, "--keep-ckpts", 2)
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=2e-5)
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["0000005", "0000006"]


def damage(folder: Path, how: str) -> str:
    """What is said of it."""
    path = folder / "__1_0.distcp"
    data = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(data[:-100])
        return r"__1_0.distcp: truncated \(\d+ bytes of \d+\)"
    if how == "changed":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return "__1_0.distcp: damaged"
    path.unlink()
    return "__1_0.distcp: is missing"


@pytest.mark.parametrize("how", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(how, places, sharded, tmp_path):
    shutil.copytree(sharded / "run", tmp_path / "run")
    words = damage(checkpoint(tmp_path), how)
    (tmp_path / "run/checkpoints/.0000005.part").mkdir()  # of a killed run
    said = train(places, tmp_path, *MORE, "--resume")
    assert re.search(f"0000006/{words}", said) and "resumed at step 3 of 6" in said
    assert losses(tmp_path) == losses(sharded)
    assert same(checkpoint(tmp_path), checkpoint(sharded))
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["0000003", "0000006"]


@pytest.mark.parametrize("change, words", [
    (lambda text: text.replace('"steps": 6', '"steps": 4'), r"meta\.json: damaged"),
    (lambda text: "[]", r"meta\.json: cannot be read"), (lambda text: text[:-20], r"meta\.json: cannot be read"),
], ids=["another step", "a list", "cut"])  # fmt: skip
def test_a_changed_meta_json_is_named(change, words, sharded, tmp_path):
    shutil.copytree(checkpoint(sharded), tmp_path / "copy")
    verify(tmp_path / "copy")
    text = (tmp_path / "copy/meta.json").read_text()
    assert change(text) != text
    (tmp_path / "copy/meta.json").write_text(change(text))
    with pytest.raises(ValueError, match=words):
        verify(tmp_path / "copy")


KILLED = """
import os, runpy, signal, sys
from engine.sharded_checkpoint import ShardedWriter
publish = ShardedWriter._publish
def die(writer, described):
    if writer.path.name == "0000006" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(writer, described)
ShardedWriter._publish = die
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def test_a_process_killed_in_the_middle_of_a_save_costs_the_steps_since_the_one_before(places, sharded, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    line = command(tmp_path / "killed.py", SCRIPT, *flags_of(places, tmp_path), *MORE, ranks=2)
    line.insert(line.index("--standalone"), "--max-restarts=1")
    done = subprocess.run(line, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count("resumed at step 3 of 6") == 1, done.stderr
    assert sorted(os.listdir(tmp_path / "run/checkpoints")) == ["0000003", "0000006"]
    assert same(checkpoint(tmp_path), checkpoint(sharded)) and losses(tmp_path) == losses(sharded)


def test_a_disk_that_fills_up_costs_no_checkpoint(places, sharded, tmp_path):
    train(places, tmp_path, *MORE, "--max-steps", 2, "--ckpt-every", 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for flag in ("--no-async-ckpt", "--async-ckpt"):
            said = train(places, tmp_path, *MORE, "--ckpt-every", 4, "--resume", flag, code=2)
            assert re.search(r"error: could not write .*0000004: .*; what stood there before is whole", said), said
            assert os.listdir(tmp_path / "run/checkpoints") == ["0000002"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train(places, tmp_path, *MORE, "--resume", "--async-ckpt")
    assert same(checkpoint(tmp_path), checkpoint(sharded))


def test_sharded_processes_that_start_from_other_weights_say_so(places, tmp_path):
    for rank in range(2):
        content = torch.load(places / "gpt.pt", weights_only=True)
        content["model"]["norm.weight"] += rank
        torch.save(content, tmp_path / f"{rank}.pt")
    script = tmp_path / "train.py"
    script.write_text(f"import os, runpy, sys\nsys.argv.append('{tmp_path}/' + os.environ['RANK'] + '.pt')\n"
                      f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n")  # fmt: skip
    flags = [*flags_of(places, tmp_path), "--finetune", "--gpt-ckpt"]
    said = run_script(script, *flags, ranks=2, code=2).stderr
    assert re.search(r"not started alike: the weights \(a hash\) is '\w+' on rank 1, '\w+' on 0\.", said), said


def test_samplers_read_a_sharded_checkpoint(sharded, alone):
    options = [GPTOptions(gpt_ckpt=str(path)) for path in (checkpoint(sharded), checkpoint(alone).with_suffix(".pt"))]
    one, two = (load_gpt(each, 4, torch.device("cpu"), torch.float32).model.state_dict() for each in options)
    assert all(torch.allclose(one[name], two[name], atol=2e-5, rtol=1e-3) for name in one)


def published(folder: Path, alone: Path, world: int) -> Path:
    """Step 3 of `alone` as the published FSDP training leaves it on `world` processes."""
    state = torch.load(checkpoint(alone, 3).with_suffix(".pt"), weights_only=True)
    (folder / "published").mkdir()
    torch.save(state["model"], folder / "published/consolidated.pth")
    names = list(state["model"])
    decayed = [name for name in names if "norm" not in name]
    order = [*decayed, *(name for name in names if "norm" in name)]
    ours = [name for name in names if state["model"][name].dim() >= 2]
    ours += [name for name in names if state["model"][name].dim() < 2]
    moments = {name: state["optimizer"]["state"][number] for number, name in enumerate(ours)}
    for rank in range(world):
        held = {}
        for number, name in enumerate(order):
            flat = {key: moments[name][key].flatten() for key in ("exp_avg", "exp_avg_sq")}
            # Pieces of a block's flat values: of a weight some processes have much, some nothing.
            ends = [len(flat["exp_avg"]) * min(1, (part * (2 + number % 3)) / (2 * world)) for part in range(world + 1)]
            begin, end = (int(each) for each in ends[rank : rank + 2])
            if rank == world - 1:
                end = len(flat["exp_avg"])
            held[number] = {"step": moments[name]["step"], **{key: value[begin:end] for key, value in flat.items()}}
        sizes = [range(len(decayed)), range(len(decayed), len(order))]
        groups = [{"lr": 1e-3, "params": list(numbers)} for numbers in sizes]
        path = folder / f"published/optimizer.{rank:05d}-of-{world:05d}.pth"
        torch.save({"state": held, "param_groups": groups}, path)
    (folder / "published/resume_step.txt").write_text("3\n")
    return folder / "published"


@pytest.mark.parametrize("ranks", [1, 2])
def test_published_folders_go_on_at_their_step(ranks, places, alone, tmp_path):
    given = published(tmp_path, alone, 3)
    flags = ["--val-fraction", 0.2, "--val-every", 0, "--gpt-resume", given]
    assert "resumed at step 3 of 6" in train(places, tmp_path, *flags, ranks=ranks)
    assert losses(tmp_path) == pytest.approx(losses(alone)[3:], rel=2e-5)
    if ranks == 1:
        next(given.glob("optimizer.00001*")).unlink()
        said = train(places, tmp_path, *flags, ranks=1, code=2, name="other")
        assert "--gpt-ckpt" in said and "lacks optimizer.00001-of-00003.pth" in said


# ---- without processes


def test_weights_are_functions_of_their_names_and_the_seed():
    """So a part of the model can be drawn by itself, on the meta device, too."""
    for options in ({}, {"model_type": "t2i", "caption_dim": 32, "cls_token_num": 7}):
        torch.manual_seed(3)
        model = build_gpt("GPT-1M", **options)
        torch.manual_seed(3)
        with torch.device("meta"):
            empty = build_gpt("GPT-1M", **options)
        assert all(value.is_meta for value in empty.state_dict().values())
        assert all(torch.equal(empty.initial(name), value) for name, value in model.state_dict().items())
        torch.manual_seed(4)
        other = build_gpt("GPT-1M", **options).state_dict()
        drawn = [name for name, value in other.items() if value.std() > 0]
        flat = [tuple(other[name].flatten()[:9].tolist()) for name in drawn]
        assert len(set(flat)) == len(drawn), "no weight is another one's copy"
        assert len(drawn) > 20 and not any(torch.equal(model.state_dict()[name], other[name]) for name in drawn)
        assert all(abs(other[name].std() / 0.02 - 1) < 0.05 for name in drawn if "uncond" not in name)


def test_activations_are_computed_again_where_they_are_not_kept():
    def calls(again: bool) -> int:
        options, found = ParallelOptions(activation_checkpointing=again), []
        model = Parallel(options, ALONE, OptimOptions()).place(partial(build_gpt, "GPT-1M"), "layers", "initial")
        for layer in model.layers:
            layer.attention.register_forward_hook(lambda *given: found.append(1))
        codes = torch.zeros(2, 64, dtype=torch.int64)
        model(codes[:, :-1], torch.tensor([1, 2]), codes)[1].backward()
        return len(found)

    assert (calls(False), calls(True)) == (4, 8)


def test_an_index_that_would_run_code_is_not_read(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / ".metadata").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(ValueError, match=r"\.metadata: not the index of a checkpoint \(names posix.mkdir\)"):
        Reader(tmp_path).read_metadata()
    assert not (tmp_path / "harm").exists()


def test_what_cannot_be_sharded_so_is_named():
    with pytest.raises(ValueError, match="--data-parallel zero3: choose one of ddp, fsdp"):
        ParallelOptions(data_parallel="zero3")
