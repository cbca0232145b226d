"""Pictures, a tokenizer and a classifier for the tests of reconstruction, all tiny."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from support import filled

from dataset.options import DataOptions
from evaluations.convnet import ConvNet, ConvNetConfig
from tokenizer.tokenizer_image.reconstruct_options import ClosenessOptions, ReconstructionRun, ReconstructTokenizer
from tokenizer.tokenizer_image.vq_model import VQ_models
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

SIDE, COUNT, TORN = 16, 11, 4
VQ = VQ_models["VQ-4-tiny"]


def write_files(root: Path) -> Path:
    """The folder, with pictures/ (one of them torn), vq.pt and net.pt in it."""
    random = np.random.default_rng(0)
    for number in range(COUNT):
        path = root / "pictures" / ("ant", "cat")[number // 6] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        colour = random.integers(0, 256, 3) + random.normal(0, 8 * number, (20, 24, 3))
        Image.fromarray(colour.clip(0, 255).astype(np.uint8)).save(path)
    (root / "pictures" / "ant" / f"{TORN:02d}.png").write_bytes(b"torn")
    vq, net = VQ(), ConvNet(ConvNetConfig(width=4, num_classes=3, image_size=SIDE))
    torch.manual_seed(0)
    ema = VQ().state_dict()  # random codes; filled weights choose one for all
    papers = {"format": 1, "kind": "tokenizer", "model": "VQ-4-tiny", "config": asdict(vq.config), "image_size": SIDE}
    torch.save({"model": filled(vq).state_dict(), "ema": ema, "meta": papers}, root / "vq.pt")
    papers = {"format": 1, "kind": "classifier", "config": vars(net.config), "class_names": None}
    torch.save({"model": net.state_dict(), "meta": papers}, root / "net.pt")
    return root


def data(files: Path, path: str | None = None, dataset: str = "imagenet") -> DataOptions:
    return DataOptions(path or str(files / "pictures"), dataset, "test", num_workers=0)


def options(files: Path, out: Path, closeness: ClosenessOptions | None = None, path: str | None = None,
            dataset: str = "imagenet", **run) -> ReconstructTokenizer:  # fmt: skip
    chosen = {"per_proc_batch_size": 3, "max_bad": 0.1, "device": "cpu", "sample_dir": str(out), **run}
    closeness = closeness or ClosenessOptions(perceptual_net=str(files / "net.pt"), feature_net=str(files / "net.pt"))
    return ReconstructTokenizer(ReconstructionRun(**chosen), TokenizerOptions(vq_ckpt=str(files / "vq.pt")),
                                data(files, path, dataset), closeness)  # fmt: skip
