"""How different two pictures look: the distance between the features that a frozen network sees in them.

Zhang et al. 2018 (LPIPS), eq. 1: normalise each position's channels to length one, square the difference, weight the
channels, average over positions, add up over layers. The network is VGG16 with LPIPS's trained weights, or any
classifier of evaluations/convnet.py with equal weights (for small pictures, or where VGG's weights cannot be had).
"""

import os
import pickle
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.checkpoint import load_strict, read_weights
from evaluations.convnet import ConvNet, ConvNetConfig

VGG_FILE = "vgg16-397923af.pth"


class FeatureDistance(nn.Module):
    """(pictures, pictures), both [B, 3, H, W] in [-1, 1], -> distances [B]. Always frozen and in eval mode.

    Gradients flow to the pictures, never to the network.
    """

    def __init__(self, net: nn.Module, heads: list[Tensor] | None = None):
        """`net.features(x)` gives maps [B, C_l, h_l, w_l]; `heads` are their channel weights [1, C_l, 1, 1].

        Without heads every channel of every one of the L layers weighs 1 / L.
        """
        super().__init__()
        self.net = net
        for i, weight in enumerate(heads or []):
            self.register_buffer(f"head{i}", weight.detach())
        self.has_heads = heads is not None
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "FeatureDistance":
        return super().train(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        layers = []
        for i, (a, b) in enumerate(zip(self.net.features(x.float()), self.net.features(y.float()))):
            # F.normalize, unlike a division by a root, has a finite gradient where all channels are zero.
            difference = (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square()  # [B, C, h, w]
            if self.has_heads:
                difference = difference * getattr(self, f"head{i}")
            layers.append(difference.sum(1).mean((1, 2)))  # [B]
        distances = torch.stack(layers)  # [L, B]
        return distances.sum(0) if self.has_heads else distances.mean(0)


class VGGFeatures(nn.Module):
    """The trunk of an lpips.LPIPS, fed pictures in [-1, 1]."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.scale, self.trunk = model.scaling_layer, model.net

    def features(self, x: Tensor) -> list[Tensor]:
        return list(self.trunk(self.scale(x)))


def lpips_vgg(
    pretrained: bool = True, flag: str = "--perceptual-weight", without: str = "train without: --perceptual-weight 0"
) -> FeatureDistance:
    """LPIPS 0.1 on VGG16; `pretrained=False` leaves VGG random, for tests.

    Where it cannot be had, `flag` is what asked for it, and `without` how to do without it.
    """
    try:
        import lpips
    except ImportError as error:
        raise ValueError(
            f"{flag}: the package lpips is needed (pip install -e '.[train]'); or {without}"
        ) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # lpips calls torchvision's older interface
            model = lpips.LPIPS(net="vgg", pnet_rand=not pretrained, verbose=False)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:  # no network, no room, a damaged file
        folder = os.path.join(torch.hub.get_dir(), "checkpoints")
        raise ValueError(
            f"{flag}: could not get the VGG16 weights of LPIPS ({error}). Put {VGG_FILE} "
            f"(https://download.pytorch.org/models/{VGG_FILE}) into {folder}, give a classifier of yours by "
            f"--perceptual-net, or {without}"
        ) from error
    return FeatureDistance(VGGFeatures(model), [head.model[-1].weight for head in model.lins])


def build_perceptual(
    weight: float, net_file: str | None = None, device: torch.device | str = "cpu"
) -> FeatureDistance | None:
    """What --perceptual-weight and --perceptual-net ask for; None where the weight is 0."""
    if weight == 0:
        return None
    if net_file is None:
        return lpips_vgg().to(device)
    weights = read_weights(net_file, flag="--perceptual-net")
    if weights.meta.get("kind") != "classifier":
        raise ValueError(
            f"--perceptual-net {net_file}: holds {weights.meta.get('kind', 'something unknown')}, not a classifier; "
            "train one by evaluations/classifier.py"
        )
    net = ConvNet(ConvNetConfig(**weights.meta["config"]))
    load_strict(net, weights, "--perceptual-net")
    return FeatureDistance(net).to(device)
