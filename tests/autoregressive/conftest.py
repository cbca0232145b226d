"""Weights of tiny models, and what the sampler of thousands makes of them; some files have fixtures of their own."""

from pathlib import Path

import pytest
from many_runs import contents, many
from tiny_pipeline import write_files

from autoregressive.sample.many import sample_many


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    return write_files(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def wanted(files, tmp_path_factory) -> dict[str, bytes]:
    """The pictures of many(), one after the other."""
    return contents(sample_many(many(files, tmp_path_factory.mktemp("one"), per_proc_batch_size=1)).parent)
