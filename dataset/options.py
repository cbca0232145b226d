"""The flags about pictures."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class DataOptions:
    data_path: str | None = None
    """The pictures: a folder, or a .jsonl list. `digits` needs none."""

    dataset: str = "imagenet"
    """How they lie there. imagenet or folder: a sub-folder per class. flat or coco: one folder without labels.
    t2i_image: the same, or a folder of .jsonl lists. jsonl: a list, or a folder of lists, of
    {"image_path": ..., "label": number or name}. cifar10: train/ and test/ class folders, else fetched by torchvision.
    digits: the handwritten digits that scikit-learn ships."""

    split: Literal["train", "test", "all"] = "train"
    """Which part, for cifar10 and digits."""

    flip: Literal["auto", "on", "off"] = "auto"
    """Whether a picture's mirror image is as good as the picture. auto: on, but off for digits."""

    num_workers: int = 4
    """Processes that read pictures, on each rank; at most one per processor core. 0: the main process reads them."""

    @property
    def flips(self) -> bool:
        return self.flip == "on" or (self.flip == "auto" and self.dataset != "digits")
