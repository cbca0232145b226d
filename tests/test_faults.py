"""What goes wrong on people's machines: wrong flags end in a sentence, and killed runs go on as if nothing had been."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from feature_files import classifier_file, made
from PIL import Image
from support import ROOT, command, environment, filled
from wrong_flags import Commands, assert_sentence, named

import autoregressive.train.task as task_module
from autoregressive.models.gpt import build_gpt, gpt_config
from autoregressive.train.task import ClassTask
from dataset import faults
from dataset.codes import Codes, open_codes
from engine.distributed import Context
from tokenizer.tokenizer_image.vq_model import VQ_models

EXTRACT, CONVERT, DRAW, TRAIN = (
    f"autoregressive/train/{name}.py" for name in ("extract_codes_c2i", "convert_codes", "draw_codes", "train_c2i")
)
GRID, MANY = "autoregressive/sample/sample_c2i.py", "autoregressive/sample/sample_c2i_ddp.py"
VQ_TRAIN, DEMO = "tokenizer/tokenizer_image/vq_train.py", "tokenizer/tokenizer_image/vq_demo.py"
RECONSTRUCT, ORIGINALS = "tokenizer/tokenizer_image/reconstruction_vq_ddp.py", "tokenizer/validation/val_ddp.py"
EVALUATE, REFERENCE = "evaluations/c2i/evaluator.py", "evaluations/c2i/reference.py"
SEARCH, SCALING = "evaluations/search.py", "evaluations/plot_scaling.py"

SAMPLER = "--vq-ckpt {vq} --gpt-ckpt {gpt} --device cpu --precision none"
# Flags that work, for each command; a fault is one of them given again, otherwise.
GOOD = {
    EXTRACT: "--vq-ckpt {vq} --data-path {pictures} --image-size 16 --num-workers 0 --device cpu --code-path {out}/new",
    CONVERT: "--published {published} --code-path {out}/new --vocab-size 256",
    DRAW: "--code-path {codes} --vq-ckpt {vq} --pictures 0 1 --output {out}/drawn.png --device cpu",
    TRAIN: "--code-path {codes} --gpt-model GPT-1M --global-batch-size 4 --num-workers 0 --device cpu "
    "--mixed-precision none --results-dir {out}/runs --max-steps 2 --preview-every 0",
    GRID: SAMPLER + " --output {out}/grid.png",
    MANY: SAMPLER + " --num-fid-samples 2 --sample-dir {out}/many --image-size-eval 16",
    VQ_TRAIN: "--data-path {pictures} --vq-model VQ-4-tiny --image-size 16 --global-batch-size 4 --num-workers 0 "
    "--device cpu --mixed-precision none --perceptual-weight 0 --disc-weight 0 --results-dir {out}/runs --max-steps 2",
    DEMO: "--vq-ckpt {vq} --image-path {pictures}/ant/0.png --image-size 16 --output-dir {out}/demo --device cpu",
    RECONSTRUCT: "--vq-ckpt {vq} --data-path {pictures} --num-workers 0 --device cpu --no-lpips --no-rfid "
    "--sample-dir {out}/many",
    ORIGINALS: "--data-path {pictures} --image-size 16 --num-workers 0 --sample-dir {out}/many",
    REFERENCE: "--data-path {pictures} --image-size 16 --num-workers 0 --feature-net {net} --device cpu "
    "--output {out}/made.npz",
    EVALUATE: "{reference} {samples} --feature-net {net} --device cpu --no-cache",
    SEARCH: SAMPLER + " --reference {reference} --feature-net {net} --cfg-scales 2 --num-samples 9 "
    "--output {out}/search",
    SCALING: "--runs run={run} --output {out}/scaling.png",
}
COMMANDS = Commands(GOOD)
call = COMMANDS.call
FAULTS = [
    (EXTRACT, "--data-path {nowhere}", "--data-path .*nowhere"),
    (EXTRACT, "--data-path {empty}", "--data-path .*empty: no class folders"),
    (EXTRACT, "--image-size 18", "--image-size 18: must be a multiple"),
    (EXTRACT, "--image-size 0", "--image-size 0: must be at least 1"),
    (EXTRACT, "--batch-size 0", "--batch-size 0: must be at least 1"),
    (EXTRACT, "--shard-size -1", "--shard-size -1: must be at least 1"),
    (EXTRACT, "--max-bad 1.5", "--max-bad 1.5: is a share"),
    (EXTRACT, "--ten-crop --crop-range 0.5", "--crop-range 0.5: must be at least 1"),
    (EXTRACT, "--vq-ckpt {nowhere}", "--vq-ckpt .*nowhere: there is no such file"),
    (EXTRACT, "--vq-ckpt {gpt}", "--vq-ckpt .*holds a gpt, not a tokenizer"),
    (EXTRACT, "--vq-ckpt {torn}", "--vq-ckpt .*truncated"),
    (VQ_TRAIN, "--data-path {nowhere}", "--data-path .*nowhere"),
    (VQ_TRAIN, "--data-path {empty}", "--data-path .*empty: no class folders"),
    (VQ_TRAIN, "--image-size 18", "--image-size 18: must be a multiple"),
    (VQ_TRAIN, "--image-size 0", "--image-size 0: must be at least 1"),
    (VQ_TRAIN, "--max-bad -1", "--max-bad -1.0: is a share"),
    (VQ_TRAIN, "--global-batch-size 999", "--global-batch-size 999: must be from 1 to"),
    (VQ_TRAIN, "--gradient-accumulation-steps 3", "--global-batch-size 4: must be a multiple"),
    (VQ_TRAIN, "--vq-model VQ-5", "--vq-model VQ-5: unknown"),
    (VQ_TRAIN, "--finetune", "--finetune: give the weights .* --vq-ckpt"),
    (VQ_TRAIN, "--vq-ckpt {gpt}", "--vq-ckpt .*holds a gpt, not a tokenizer"),
    (VQ_TRAIN, "--vq-ckpt {torn}", "--vq-ckpt .*truncated"),
    (TRAIN, "--code-path {nowhere}", "--code-path .*nowhere"),
    (TRAIN, "--code-path {empty}", "--code-path .*empty: there is no code store"),
    (TRAIN, "--image-size 64", "--image-size 64"),
    (TRAIN, "--num-classes 1", "--num-classes 1"),
    (TRAIN, "--vocab-size 200", "--vocab-size 200"),
    (TRAIN, "--preview-labels zebra", "--preview-labels: class 'zebra': unknown"),
    (TRAIN, "--preview-labels 2", "--preview-labels: class 2"),
    (TRAIN, "--global-batch-size 999", "--global-batch-size 999: must be from 1 to"),
    (TRAIN, "--gradient-accumulation-steps 3", "--global-batch-size 4: must be a multiple"),
    (TRAIN, "--finetune", "--finetune: give the weights .* --gpt-ckpt"),
    (TRAIN, "--finetune --gpt-ckpt {vq}", "--gpt-ckpt .*not the weights of this model"),
    (TRAIN, "--gpt-ckpt {torn}", "--gpt-ckpt .*truncated"),
    (GRID, "--gpt-ckpt {nowhere}", "--gpt-ckpt .*nowhere: there is no such file"),
    (GRID, "--gpt-ckpt {vq}", "--gpt-ckpt .*holds a tokenizer, not a GPT"),
    (GRID, "--gpt-ckpt {torn}", "--gpt-ckpt .*truncated"),
    (GRID, "--vq-ckpt {gpt}", "--vq-ckpt .*holds a gpt, not a tokenizer"),
    (GRID, "--image-size 18", "--image-size 18"),
    (GRID, "--labels 2", "class 2: this model has classes 0 to 1"),
    (GRID, "--labels anteater", "class 'anteater': unknown"),
    (GRID, "--num-images 0", "--num-images 0: must be at least 1"),
    (MANY, "--gpt-ckpt {nowhere}", "--gpt-ckpt .*nowhere: there is no such file"),
    (MANY, "--gpt-ckpt {vq}", "--gpt-ckpt .*holds a tokenizer, not a GPT"),
    (MANY, "--vq-ckpt {torn}", "--vq-ckpt .*truncated"),
    (MANY, "--num-classes 3", "--num-classes 3"),
    (MANY, "--num-fid-samples 0", "--num-fid-samples 0: must be at least 1"),
    (MANY, "--per-proc-batch-size 0", "--per-proc-batch-size 0: must be at least 1"),
    (DEMO, "--image-path {nowhere}", "--image-path .*nowhere: there is no such file"),
    (DEMO, "--image-path {torn}", "torn.pt: not a readable picture"),
    (DEMO, "--vq-ckpt {gpt}", "--vq-ckpt .*holds a gpt, not a tokenizer"),
    (RECONSTRUCT, "--data-path {nowhere}", "--data-path .*nowhere"),
    (RECONSTRUCT, "--data-path {empty}", "--data-path .*empty: no class folders"),
    (RECONSTRUCT, "--image-size 18", "--image-size 18: must be a multiple of VQ-4-tiny's down-sampling, 4"),
    (RECONSTRUCT, "--image-size 4", "--image-size 4: SSIM needs pictures of 7 px"),
    (RECONSTRUCT, "--image-size-eval 6", "--image-size-eval 6: must be at least 7"),
    (RECONSTRUCT, "--per-proc-batch-size 0", "--per-proc-batch-size 0: must be at least 1"),
    (RECONSTRUCT, "--max-bad 1.5", "--max-bad 1.5: is a share"),
    (RECONSTRUCT, "--precision fp64", "--precision fp64: choose"),
    (RECONSTRUCT, "--vq-ckpt {nowhere}", "--vq-ckpt .*nowhere: there is no such file"),
    (RECONSTRUCT, "--vq-ckpt {gpt}", "--vq-ckpt .*holds a gpt, not a tokenizer"),
    (RECONSTRUCT, "--vq-ckpt {torn}", "--vq-ckpt .*truncated"),
    (RECONSTRUCT, "--codebook-size 7", "--codebook-size 7: .*has 256"),
    (RECONSTRUCT, "--sample-dir {torn}", "--sample-dir: cannot write into the folder .*torn"),
    (RECONSTRUCT, "--feature-net {nowhere}", "--no-rfid goes without --feature-net"),
    (RECONSTRUCT, "--feature-net {nowhere} --rfid", "--feature-net .*nowhere: there is no such file"),
    (RECONSTRUCT, "--feature-net {vq} --rfid", "--feature-net .*holds neither Inception's weights nor a classifier"),
    (RECONSTRUCT, "--perceptual-net {vq} --lpips", "--perceptual-net .*holds tokenizer, not a classifier"),
    (ORIGINALS, "--data-path {nowhere}", "--data-path .*nowhere"),
    (ORIGINALS, "--data-path {empty}", "--data-path .*empty: no class folders"),
    (ORIGINALS, "--image-size 0", "--image-size 0: must be at least 1"),
    (ORIGINALS, "--per-proc-batch-size 0", "--per-proc-batch-size 0: must be at least 1"),
    (ORIGINALS, "--max-bad -1", "--max-bad -1.0: is a share"),
    (ORIGINALS, "--sample-dir {torn}", "--sample-dir: cannot write into the folder .*torn"),
    (REFERENCE, "--data-path {empty}", "--data-path .*empty: no class folders"),
    (REFERENCE, "--max-bad 1.5", "--max-bad 1.5: is a share"),
    (REFERENCE, "--keep -1", "--keep -1: must be at least 0"),
    (REFERENCE, "--output {out}/made.txt", "--output .*made.txt: must end in .npz"),
    (REFERENCE, "--output {torn}/made.npz", "--output: cannot write into the folder .*torn"),
    (REFERENCE, "--image-size 24", "reads pictures of 16 x 16 px, these are 24 x 24"),
    (EVALUATE, "--feature-net {nowhere}", "--feature-net .*nowhere: there is no such file"),
    (EVALUATE, "--feature-net {torn}", "--feature-net .*truncated"),
    (EVALUATE, "--feature-net {gpt}", "--feature-net .*Expected Inception's weights or a classifier"),
    (EVALUATE, "--batch-size 0", "--batch-size 0: must be at least 1"),
    (EVALUATE, "--device tpu", "--device tpu: unknown"),
    (SEARCH, "--reference {nowhere}", "nowhere: there is no such file"),
    (SEARCH, "--reference {torn}", "torn.pt: truncated or not an npz"),
    (SEARCH, "--gpt-ckpt {vq}", "--gpt-ckpt .*holds a tokenizer, not a GPT"),
    (SEARCH, "--cfg-scales 0.5", "--cfg-scales 0.5: must be at least 1"),
    (SEARCH, "--cfg-schedule wavy", "--cfg-schedule wavy"),
    (SEARCH, "--output {torn}", "--output: cannot write into the folder .*torn"),
    (SCALING, "--runs {run}", "--runs .*expected NAME=DIR"),
    (SCALING, "--runs run={empty}", "--runs run=.*: no metrics.jsonl there"),
    (SCALING, "--scores run={torn}", "--scores .*not a SAMPLES.json"),
    (SCALING, "--output {out}/scaling.pdf", "--output .*scaling.pdf"),
    (DRAW, "--code-path {nowhere}", "--code-path .*nowhere"),
    (DRAW, "--pictures 99", "--pictures 99: .*has pictures 0 to 7"),
    (DRAW, "--crop 9", "--crop 9"),
    (DRAW, "--vq-ckpt {torn}", "--vq-ckpt .*truncated"),
    (CONVERT, "--published {nowhere}", "nowhere"),
    (CONVERT, "--published {empty}", "empty"),
    (CONVERT, "--image-size 384", "DATASET384_codes .*--image-size"),
    (CONVERT, "--vocab-size 2", "--vocab-size"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """Pictures, a tokenizer, their codes, a GPT, and things that none of the commands can use."""
    root = tmp_path_factory.mktemp("faults")
    names = ("pictures", "vq.pt", "codes", "gpt.pt", "published", "empty", "nowhere", "torn.pt", "net.safetensors",
             "reference.npz", "samples.npz", "run")  # fmt: skip
    found = {name.partition(".")[0]: root / name for name in names}
    random = np.random.default_rng(0)
    for number in range(8):
        path = found["pictures"] / ("ant", "cat")[number % 2] / f"{number // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(path)
    vq = filled(VQ_models["VQ-4-tiny"]())
    meta = {"format": 1, "image_size": 16, "class_names": ["ant", "cat"]}
    tokenizer = {**meta, "kind": "tokenizer", "model": "VQ-4-tiny", "config": asdict(vq.config)}
    torch.save({"model": vq.state_dict(), "meta": tokenizer}, found["vq"])
    gpt = filled(build_gpt("GPT-1M", block_size=16, num_classes=2))
    papers = {**meta, "kind": "gpt", "model": "GPT-1M", "config": gpt_config(gpt), "downsample_size": 4}
    torch.save({"model": gpt.state_dict(), "meta": papers}, found["gpt"])
    found["torn"].write_bytes(found["gpt"].read_bytes()[:5000])
    found["empty"].mkdir()
    for kind, value in (("codes", np.full((1, 2, 16), 7)), ("labels", np.zeros(1))):
        folder = found["published"] / f"imagenet256_{kind}"
        folder.mkdir(parents=True)
        np.save(folder / "0.npy", value.astype(np.int64))
    classifier_file(found["net"], side=16)
    for name, kind in (("reference", "reference"), ("samples", "generation")):
        made(root, name, kind, side=16)
    found["run"].mkdir()
    (found["run"] / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0, "flops": 1e9}\n')
    assert call(EXTRACT, places=found, out=root, more=f"--code-path {found['codes']}") == 0
    return found


@pytest.mark.parametrize("entry", GOOD, ids=named)
def test_the_flags_that_faults_start_from_work(entry, places, tmp_path):
    assert call(entry, places=places, out=tmp_path) == 0


@pytest.mark.parametrize("entry, flags, words", FAULTS, ids=named)
def test_a_wrong_flag_ends_in_a_sentence_that_names_it(entry, flags, words, places, tmp_path, capsys):
    capsys.readouterr()
    assert call(entry, flags, places=places, out=tmp_path) == 2
    assert_sentence(capsys.readouterr().err, words)


# ---- pictures


def test_other_pictures_do_not_go_into_a_code_store(places, tmp_path, capsys):
    moved = tmp_path / "elsewhere"
    shutil.copytree(places["pictures"], moved)
    for path in (places["pictures"], moved, moved):
        assert call(EXTRACT, f"--data-path {path}", places=places, out=tmp_path) == 0
    (moved / "cat" / "0.png").rename(moved / "cat" / "7.png")
    assert call(EXTRACT, f"--data-path {moved}", places=places, out=tmp_path) == 2
    assert "holds codes of other settings (source: {\"pictures\": " in capsys.readouterr().err


def test_tokenizer_training_passes_over_torn_pictures_up_to_a_share(places, tmp_path, capsys, monkeypatch):
    pictures = tmp_path / "pictures"
    shutil.copytree(places["pictures"], pictures)
    (pictures / "ant" / "1.png").write_bytes(b"torn")
    flags = f"--data-path {pictures} --log-every 1"
    with pytest.warns(UserWarning, match=r"1\.png: not a readable picture"):
        assert call(VQ_TRAIN, flags, places=places, out=tmp_path) == 0
        said = "".join(capsys.readouterr())
        monkeypatch.setattr(faults, "FAIR_SAMPLE", 8)
        assert "cannot be used (1 unreadable pictures; warnings" in said and "unreadable 0.25" in said
        assert call(VQ_TRAIN, flags + " --max-bad 0.2", places=places, out=tmp_path / "lenient") == 0
        assert call(VQ_TRAIN, flags, places=places, out=tmp_path / "strict") == 2
    said = capsys.readouterr().err
    assert "1 of the 8 samples seen cannot be used (1 unreadable pictures), more than --max-bad 0.001" in said


# ---- held-out pictures over several processes


def test_every_held_out_picture_counts_once(places, monkeypatch):
    held_out = Codes(open_codes(places["codes"]), 0, np.arange(7))
    model = filled(build_gpt("GPT-1M", block_size=16, num_classes=2))

    def loss(rank: int, world: int) -> float:
        context = Context(rank, world, torch.device("cpu"))
        optimizer = torch.optim.SGD(model.parameters())
        with torch.no_grad():
            return ClassTask(model, "GPT-1M", {}, optimizer, context, held_out, 2).validate()["val_loss"]

    batches, own = [], ClassTask.conditional_loss
    monkeypatch.setattr(ClassTask, "conditional_loss", lambda self, *more, **options:
                        batches.append(self.context.rank) or own(self, *more, **options))  # fmt: skip
    alone, ranks = loss(0, 1), []
    batches.clear()
    monkeypatch.setattr(Context, "mean", lambda self, values: ranks.append(values) or values)
    each = [loss(rank, 3) for rank in range(3)]
    sums = {name: sum(values[name] for values in ranks) for name in ("losses", "count")}
    assert sums["losses"] / sums["count"] == pytest.approx(alone, rel=1e-5) and sums["count"] == 7
    assert len(set(each)) == 3
    assert batches == [0, 0, 1, 1, 2, 2], "sharded weights are gathered by all or by none"


def test_fewer_held_out_pictures_than_processes_are_refused(places, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(task_module, "join", lambda options: Context(0, 2, torch.device("cpu")))
    assert call(TRAIN, "--val-fraction 0.01", places=places, out=tmp_path) == 2
    assert "--val-fraction: holds out 1 pictures, fewer than the 2 processes" in capsys.readouterr().err


# ---- runs that end too soon


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.glob("runs/*/checkpoints/*.pt"))


def start(more: str, places: dict[str, Path], out: Path) -> subprocess.Popen:
    """A training run in a process group of its own, once it has saved for the first time."""
    process = subprocess.Popen(command(ROOT / TRAIN, *COMMANDS.arguments(TRAIN, more, places, out)), env=environment(),
                               start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)  # fmt: skip
    began = time.monotonic()
    while not checkpoints(out) and process.poll() is None and time.monotonic() - began < 60:
        time.sleep(0.01)
    return process


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_a_killed_run_goes_on_as_if_nothing_had_been(places, tmp_path):
    flags = "--max-steps 60 --ckpt-every 20"
    process = start(flags, places, tmp_path / "killed")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 1 <= len(checkpoints(tmp_path / "killed")) < 3
    for out, more in (("killed", " --resume"), ("whole", "")):
        assert call(TRAIN, flags + more, places=places, out=tmp_path / out) == 0
    killed, whole = (weights(checkpoints(tmp_path / out)[-1]) for out in ("killed", "whole"))
    assert all(torch.equal(killed[name], whole[name]) for name in whole) and len(killed) == len(whole)


def test_a_finetuned_run_goes_on_without_the_weights_that_it_began_with(places, tmp_path):
    assert call(TRAIN, "--max-steps 1", places=places, out=tmp_path / "first") == 0
    (first,) = checkpoints(tmp_path / "first")
    flags = f"--finetune --gpt-ckpt {first}"
    assert call(TRAIN, f"{flags} --max-steps 1", places=places, out=tmp_path) == 0
    first.unlink()
    assert call(TRAIN, f"{flags} --max-steps 2 --resume", places=places, out=tmp_path) == 0
    assert int(checkpoints(tmp_path)[-1].stem) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_the_whole_process_group_ends_a_run_saved(number, places, tmp_path):
    process = start("--max-steps 100000 --ckpt-every 5 --num-workers 1 --keep-ckpts 1", places, tmp_path)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number, said
    assert "everything is saved" in said
    step = int(checkpoints(tmp_path)[-1].stem)
    assert call(TRAIN, f"--max-steps {step + 2} --resume", places=places, out=tmp_path) == 0
    assert int(checkpoints(tmp_path)[-1].stem) == step + 2


def test_workers_end_with_a_run_that_fails(places, tmp_path):
    """Python waits for its workers at exit, so one that heeded no signal at all would keep a failed run for ever."""
    code = ("import numpy as np; from dataset.loading import batch_loader; from dataset.images import *\n"
            "images = Images(ArraySource(np.zeros((9, 8, 8, 3), np.uint8), np.zeros(9)), 8)\n"
            "def fail():\n    batches = batch_loader(images, [[0]] * 9, 1)\n"
            "    for batch in batches: raise RuntimeError('failed')\nfail()")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=tmp_path, timeout=30,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 1 and "RuntimeError: failed" in done.stderr


def test_a_full_disk_leaves_the_checkpoint_before_whole(places, tmp_path, capsys):
    assert call(TRAIN, places=places, out=tmp_path) == 0
    (saved,) = checkpoints(tmp_path)
    before, limits = saved.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        assert call(TRAIN, "--max-steps 4 --resume", places=places, out=tmp_path) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "could not write" in capsys.readouterr().err
    assert list(saved.parent.iterdir()) == [saved] and saved.read_bytes() == before
    assert call(TRAIN, "--max-steps 4 --resume", places=places, out=tmp_path) == 0


def test_the_launcher_stops_where_python_fails(tmp_path):
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts/launch.sh", tmp_path / "scripts")
    (tmp_path / "python3").write_text("#!/bin/sh\n[ \"$1\" = -c ] && exit 3\necho started\n")
    (tmp_path / "python3").chmod(0o755)
    env = {**environment(), "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "nproc_per_node": ""}
    script = f". {tmp_path}/scripts/launch.sh; launch entry.py"
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, timeout=30)
    assert done.returncode == 3 and "started" not in done.stdout
