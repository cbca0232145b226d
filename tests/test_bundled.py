"""The pair of models that ships: small, whole, described, and used where no weights are named."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, environment

from autoregressive.bundled import BUNDLED, or_bundled
from autoregressive.models.generate import Sampling
from autoregressive.options import GPTOptions, MachineOptions
from autoregressive.sample.many import sample_many
from autoregressive.sample.options import ManyOptions, SampleC2IMany
from autoregressive.sample.pipeline import load_pipeline
from engine.checkpoint import read_weights
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

MACHINE = MachineOptions(device="cpu", precision="none")


def pair() -> tuple[GPTOptions, TokenizerOptions]:
    return or_bundled(GPTOptions(), TokenizerOptions())


def test_it_is_at_most_15_mb_of_safetensors():
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 15_000_000
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}


def test_pictures_by_the_thousand_take_it_where_no_weights_are_named(tmp_path):
    many = ManyOptions(image_size_eval=32, sample_dir=str(tmp_path), num_fid_samples=2)
    npz = sample_many(SampleC2IMany(machine=MACHINE, many=many))
    assert npz.name.startswith("GPT-5M-gpt-size-32-") and np.load(npz)["arr_0"].shape == (2, 32, 32, 3)
    with pytest.raises(ValueError, match="--vq-ckpt: give"):  # yours is not paired with it
        sample_many(SampleC2IMany(GPTOptions(gpt_ckpt="mine.pt"), machine=MACHINE, many=many))


def test_its_card_says_what_a_user_must_know():
    card = (BUNDLED / "README.md").read_text()
    for word in ("CIFAR-10", "scripts/train_demo_cifar10.sh", "seed", "hours", "classifier", "held-out"):
        assert word in card, word
    share = re.search(r"(0\.\d+) of the generated pictures", card)
    assert share and float(share[1]) >= 0.6, "the mark of a pair trained on CPUs"
    for part in ("gpt", "tokenizer"):
        meta = json.loads((BUNDLED / part / "config.json").read_text())
        assert meta == read_weights(str(BUNDLED / part)).meta


def test_a_picture_is_drawn_and_read_again():
    pipeline = load_pipeline(*pair(), MACHINE)
    assert pipeline.class_names[0] == "airplane" and len(pipeline.class_names) == 10
    codes = pipeline.codes(pipeline.labels(["ship", "horse"]), Sampling(cfg_scale=4.0), seed=0)
    pictures = pipeline.to_pictures(codes)
    assert pictures.shape == (2, 32, 32, 3) and pictures.std() > 20
    again = pipeline.to_pictures(torch.stack([pipeline.encode(Image.fromarray(each)) for each in pictures]))
    error = np.square(again.astype(float) - pictures).mean()
    assert 10 * np.log10(255**2 / error) > 18, "in dB: its own pictures come through the tokenizer"


def test_the_sampler_without_flags_leaves_a_grid_and_waits_for_no_compiler(tmp_path):
    script = str(ROOT / "autoregressive/sample/sample_c2i.py")
    command = [sys.executable, "-X", "importtime", script, "--precision", "none"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=environment(), text=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" in imported and not imported & {"torch._dynamo", "torch.distributed.checkpoint", "sympy"}
    picture = Image.open(tmp_path / "sample_c2i.png")
    assert picture.width > 4 * 32 and json.loads(picture.text["settings"])["classes"][0] == "airplane"
