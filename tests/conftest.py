"""One thread: tiny tensors gain nothing from more, and on a busy machine they wait for one another most of the time."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the scripts that tests start

import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list) -> None:
    """The longest test comes first, so that of several processes none waits for it at the end."""
    items.sort(key=lambda item: item.path.name != "test_prompts_to_digits.py")
