"""A training run whose processes are killed is, at its end, the run that was left alone."""

import pytest

from benchmarks import kills_trial
from benchmarks.kills_trial import ONE, STARTING, TORCHRUN, differences, trial
from benchmarks.options import KillsTrial


def test_three_kills_change_nothing(tmp_path):
    found, log, different = trial(KillsTrial(kills=3, steps=40, async_ckpt=False, seed=110), tmp_path)
    assert found.total() == len(log) == 3 and different == []
    assert (tmp_path / "killed.log").read_text().count("resumed at step") >= 2, "it did not begin anew"
    killed = {what for what, _ in found}
    assert {ONE, TORCHRUN} <= killed, "torchrun starts processes again, and a new torchrun goes on"
    assert any(at != STARTING for _, at in found)
    (tmp_path / "killed/metrics.jsonl").write_text("")
    assert differences(tmp_path / "alone", tmp_path / "killed") == ["the losses"]


def test_a_run_that_fails_for_another_reason_is_not_passed_over(tmp_path):
    training = kills_trial.Training(KillsTrial(), tmp_path, "no codes")
    training.start()
    with pytest.raises(RuntimeError, match="(?s)no codes: ended with code 1; .*exitcode  : 2"):
        training.finish()
