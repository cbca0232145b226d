"""What a run says survives a crash, and a resumed run says nothing twice."""

import json
import sys

import pytest

from engine.logger import Logger


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_figures_are_on_disk_at_once(tmp_path):
    logger = Logger(tmp_path / "run")
    logger.record(1, {"loss": 2.5})
    assert records(tmp_path / "run") == [{"step": 1, "loss": 2.5}]
    logger.say("hello")
    assert (tmp_path / "run/log.txt").read_text() == "hello\n"


def test_rewinding_forgets_what_comes_after_and_a_line_cut_short(tmp_path):
    logger = Logger(tmp_path)
    for step in (1, 2, 3, 4):
        logger.record(step, {"loss": 1 / step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    logger.close()
    again = Logger(tmp_path)
    again.rewind(2)
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    again.record(3, {"loss": 0.0})
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3]


def test_rewinding_a_new_run_does_nothing(tmp_path):
    Logger(tmp_path).rewind(5)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_other_ranks_are_silent(tmp_path, capsys):
    logger = Logger(None)
    logger.say("hello")
    logger.record(1, {"loss": 1.0})
    logger.rewind(0)
    logger.close()
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


def test_wandb_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="--wandb: .*pip install wandb"):
        Logger(tmp_path, "project")
