"""The training loop, by a tiny task: what stops it costs nothing, and how it is spread changes nothing."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_task import LinearTask, build, train
from linear_task import options_in as options
from support import as_torchrun, run_script
from torch import nn

from engine.checkpoint import read_weights
from engine.distributed import Context
from engine.options import OptimOptions, RunOptions
from engine.run import Run

SCRIPT = Path(__file__).with_name("linear_task.py")
ALONE = Context(0, 1, torch.device("cpu"))


def last(folder: Path, run: str = "run") -> dict:
    """The newest checkpoint of a run."""
    return torch.load(max((folder / run / "checkpoints").glob("*.pt")), weights_only=True)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def close(first: dict, second: dict, tolerance: float = 1e-6) -> None:
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=tolerance, rtol=0)


def figures(folder: Path, name: str = "loss") -> list[tuple[int, float]]:
    """(step, figure) in the order of metrics.jsonl."""
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [(line["step"], line[name]) for line in lines]


def close_figures(first: Path, second: Path) -> None:
    for name in ("loss", "model_grad_norm", "abs_error"):
        np.testing.assert_allclose(figures(first, name), figures(second, name), atol=1e-5)


def test_training_learns(tmp_path):
    train(options(tmp_path, max_steps=100))
    steps, losses = zip(*figures(tmp_path))
    assert steps == tuple(range(1, 101)) and losses[-1] < 0.3 * losses[0]


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
    """With dropout and a moving average; step 7 of 5 an epoch is in the middle of the second one."""
    changed = dict(dropout=0.5, ema=True, ema_decay=0.9, lr_schedule="cosine", warmup_steps=3)
    whole = train(options(tmp_path / "whole", **changed))
    train(options(tmp_path / "cut", **changed, ckpt_every=7))
    newest = tmp_path / "cut/run/checkpoints/0000012.pt"
    newest.unlink()
    resumed = train(options(tmp_path / "cut", **changed, resume=True))
    assert resumed.task.seen == whole.task.seen[7:]
    one, other = last(tmp_path / "whole"), last(tmp_path / "cut")
    assert one["steps"] == other["steps"] == 12
    assert same(one["model"], other["model"]) and same(one["ema"], other["ema"])
    for number, state in one["optimizer"]["state"].items():
        assert same(state, other["optimizer"]["state"][number])
    assert figures(tmp_path / "whole") == figures(tmp_path / "cut"), "no step is missing, none stands there twice"
    assert not same(one["model"], one["ema"])


def test_two_ranks_equal_one_process_and_either_resumes_the_other(tmp_path):
    train(options(tmp_path / "one"))
    flags = ["--results-dir", tmp_path / "two", "--run-name", "run", "--ckpt-every", "7"]
    run_script(SCRIPT, *flags, ranks=2, launcher="torchrun")
    expected = last(tmp_path / "one")["model"]
    close(last(tmp_path / "two")["model"], expected)
    close_figures(tmp_path / "two", tmp_path / "one")
    (tmp_path / "two/run/checkpoints/0000012.pt").unlink()
    resumed = train(options(tmp_path / "two", resume=True))
    assert len(resumed.task.seen) == 5
    close(last(tmp_path / "two")["model"], expected)


def test_accumulation_changes_nothing(tmp_path):
    train(options(tmp_path / "whole"))
    parts = train(options(tmp_path / "parts", gradient_accumulation_steps=4))
    assert {len(part) for part in parts.task.seen} == {2}
    close(last(tmp_path / "parts")["model"], last(tmp_path / "whole")["model"])
    close_figures(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("flags", [{}, {"compile": True}, {"compile": True, "compile_on_cpu": True}],
                         ids=["as it is", "on a GPU", "on a CPU too"])  # fmt: skip
def test_compiling_changes_nothing_and_is_for_gpus_unless_told(flags, tmp_path, monkeypatch):
    train(options(tmp_path / "plain", log_every=1))
    compiled, compile = [], nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(compile(self, backend="aot_eager")))
    train(options(tmp_path / "asked", log_every=1, **flags))
    assert len(compiled) == flags.get("compile_on_cpu", 0)
    assert ("--compile-on-cpu insists" in (tmp_path / "asked/run/log.txt").read_text()) == (list(flags) == ["compile"])
    close_figures(tmp_path / "plain", tmp_path / "asked")


def test_a_batch_that_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--global-batch-size 8: .*1 processes x 3 --gradient-accumulation-steps"):
        build(options(tmp_path, gradient_accumulation_steps=3))


@pytest.mark.parametrize("precision", ["none", "fp16"])
def test_a_loss_that_is_no_number_stops_before_it_hurts_the_weights(precision, tmp_path):
    trainer = build(options(tmp_path / "bad", spoil_at=6, mixed_precision=precision))
    with pytest.raises(
        FloatingPointError, match=r"step 6: .*weights are those of the step before. Samples of this rank: \["
    ):
        trainer.fit()
    said = json.loads((tmp_path / "bad/run/not-finite-0000006.json").read_text())
    (samples,) = said.pop("samples of each rank")
    assert said == {"step": 6, "phase": "model"} and len(samples) == 8
    train(options(tmp_path / "good", max_steps=6, mixed_precision=precision))
    assert same(trainer.task.model.state_dict(), last(tmp_path / "good")["model"])


@pytest.mark.parametrize("precision", ["none", "fp16"])
def test_one_rank_s_loss_that_is_no_number_stops_all_with_the_samples_of_all(precision, tmp_path):
    flags = ("--results-dir", tmp_path, "--run-name", "run", "--spoil-at", 3, "--mixed-precision", precision)
    said = run_script(SCRIPT, *flags, ranks=2, code=2).stderr
    assert said.count("error: step 3: loss or gradient of model are not finite") == 2
    samples = json.loads((tmp_path / "run/not-finite-0000003.json").read_text())["samples of each rank"]
    assert [len(each) for each in samples] == [4, 4]


def test_sigterm_saves_exits_and_the_run_goes_on(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    train(options(tmp_path / "whole", dropout=0.3))
    flags = ["--results-dir", tmp_path / "cut", "--run-name", "run", "--dropout", "0.3"]
    done = run_script(SCRIPT, *flags, "--kill-at", "6", code=143)
    assert "stopped at step 7 of 12 (signal); everything is saved" in done.stdout + done.stderr
    assert last(tmp_path / "cut")["steps"] == 7
    ends = [(tmp_path / name / "run/log.txt").read_text().count("that was all") for name in ("cut", "whole")]
    assert ends == [0, 1], "a stopped run has not ended"
    train(options(tmp_path / "cut", dropout=0.3, resume=True))
    assert same(last(tmp_path / "cut")["model"], last(tmp_path / "whole")["model"])
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before, "handlers are given back"


def test_sigterm_to_one_rank_stops_all(tmp_path):
    script = tmp_path / "one_rank.py"
    source = SCRIPT.read_text().replace("if step == self.extra.kill_at:", 'if step == 6 and os.environ["RANK"] == "1":')
    script.write_text(source)
    run_script(script, "--results-dir", tmp_path, "--run-name", "run", ranks=2, code=143)
    assert last(tmp_path)["steps"] == 7


@pytest.mark.parametrize("hangs, what, where", [
    (("--hang-at", 5), "step 5", "loss"),
    (("--hang-validating", "--val-every", 5), "saving, validating or drawing after step 4", "validate"),
], ids=["step", "validation"])  # fmt: skip
def test_a_rank_that_hangs_is_named_with_its_step_and_where_it_stands(hangs, what, where, tmp_path):
    flags = ("--results-dir", tmp_path, "--run-name", "run", "--ckpt-every", 2)
    began = time.monotonic()
    said = run_script(SCRIPT, *flags, *hangs, "--timeout-minutes", 0.1, ranks=2, code=1).stderr
    assert time.monotonic() - began < 60
    assert f"error: process 1 of 2 stands still: {what} has taken more than 0.1 minutes (--timeout-minutes)" in said
    assert re.search(rf"File .*linear_task\.py\", line \d+ in {where}", said), "the stack of what it was at"
    assert last(tmp_path)["steps"] == 4


def test_one_process_alone_may_stand_still(tmp_path, monkeypatch):
    monkeypatch.setattr(LinearTask, "validate", lambda self: time.sleep(0.2) or {})
    assert train(options(tmp_path, timeout_minutes=0.0005, val_every=1, max_steps=2)).step == 2


@pytest.mark.parametrize("minutes, steps", [(0.0, 1), (None, 12), (60, 12)])
def test_max_minutes_stops_with_everything_saved(minutes, steps, tmp_path):
    train(options(tmp_path, max_minutes=minutes))
    assert last(tmp_path)["steps"] == steps


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(count=48), "samples was 40, is 48"),
        (dict(global_batch_size=4), "global_batch_size was 8, is 4"),
        (dict(global_seed=1), "global_seed was 0, is 1"),
    ],
)
def test_going_on_with_another_order_is_refused(changed, message, tmp_path):
    train(options(tmp_path, max_steps=3))
    with pytest.raises(ValueError, match=f"cannot go on exactly, since {message}.*--finetune"):
        train(options(tmp_path, resume=True, **changed))


def test_a_checkpoint_is_given_by_file_too_and_must_hold_an_optimizer(tmp_path):
    train(options(tmp_path / "first", max_steps=3))
    path = tmp_path / "first/run/checkpoints/0000003.pt"
    assert len(train(options(tmp_path / "second"), checkpoint=str(path)).task.seen) == 9
    torch.save({"model": last(tmp_path / "first")["model"]}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="--ckpt .*weights.pt: has no optimizer, steps; --finetune"):
        train(options(tmp_path / "third"), checkpoint=str(tmp_path / "weights.pt"))


def test_a_run_that_resumes_before_its_first_save_goes_on_from_the_checkpoint_it_was_given(tmp_path):
    train(options(tmp_path / "first", max_steps=3))
    path = str(tmp_path / "first/run/checkpoints/0000003.pt")
    assert len(train(options(tmp_path / "second", resume=True), checkpoint=path).task.seen) == 9
    assert train(options(tmp_path / "second", resume=True), checkpoint=path).task.seen == []  # its own comes first


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    train(options(tmp_path / "whole"))
    train(options(tmp_path / "cut", ckpt_every=5))
    path = tmp_path / "cut/run/checkpoints/0000012.pt"
    path.write_bytes(path.read_bytes()[:900])
    assert len(train(options(tmp_path / "cut", resume=True)).task.seen) == 2
    said = (tmp_path / "cut/run/log.txt").read_text()
    assert "0000012.pt: truncated" in said and "resumed at step 10 of 12" in said
    assert same(last(tmp_path / "cut")["model"], last(tmp_path / "whole")["model"])


def test_resume_without_a_checkpoint_starts_and_a_finished_run_stays_as_it_is(tmp_path):
    assert len(train(options(tmp_path, resume=True)).task.seen) == 12
    before = last(tmp_path)["model"]
    assert train(options(tmp_path, resume=True)).task.seen == []
    assert same(last(tmp_path)["model"], before)


def test_checkpoints_go_to_both_places_or_to_the_second_alone(tmp_path):
    train(options(tmp_path / "local", cloud_save_path=str(tmp_path / "cloud"), max_steps=1))
    assert same(last(tmp_path / "local")["model"], last(tmp_path / "cloud")["model"])
    train(options(tmp_path / "none", cloud_save_path=str(tmp_path / "alone"), local_save=False, max_steps=1))
    assert last(tmp_path / "alone")["steps"] == 1 and not (tmp_path / "none/run/checkpoints").exists()
    with pytest.raises(ValueError, match="--no-local-save: give --cloud-save-path"):
        Run(RunOptions(local_save=False), "LINE", ALONE)


def test_runs_are_numbered_and_resumed_by_their_model(tmp_path):
    def name(model: str, **changed) -> str:
        run = Run(RunOptions(results_dir=str(tmp_path), **changed), model, ALONE)
        run.folder.mkdir(parents=True, exist_ok=True)
        return run.name

    assert [name("A"), name("A"), name("B"), name("A", run_name="mine")] == ["000-A", "001-A", "002-B", "mine"]
    assert [name("A", resume=True), name("B", resume=True), name("C", resume=True)] == ["001-A", "002-B", "003-C"]


@pytest.mark.parametrize("name", ["run", None])
def test_a_run_that_torchrun_starts_again_goes_on_and_no_other(name, tmp_path, monkeypatch):
    mine = options(tmp_path, run_name=name)
    train(options(tmp_path, run_name=name, max_steps=6))  # another run, of no torchrun
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    if name:
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        with pytest.raises(ValueError, match="--run-name run: that run has checkpoints; add --resume"):
            train(mine)
        name, mine = "own", options(tmp_path, run_name="own")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    train(options(tmp_path, run_name=name, max_steps=3))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert len(train(mine).task.seen) == 9
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "other")
    assert len(train(options(tmp_path, run_name=name and "new")).task.seen) == 12, "killed before it had begun"
    assert len(list(tmp_path.iterdir())) == 3


def test_a_node_that_takes_a_lost_one_s_place_goes_on_with_the_others(tmp_path):
    """Its torchrun has not started anything again, those of the others have."""

    def again(times: int, *flags) -> None:
        def launcher(rank: int, *given) -> dict[str, str]:
            return {**as_torchrun(rank, *given), "TORCHELASTIC_RUN_ID": "x",
                    "TORCHELASTIC_RESTART_COUNT": str(rank * times)}  # fmt: skip

        run_script(SCRIPT, "--results-dir", tmp_path, "--run-name", "run", *flags, ranks=2, launcher=launcher)

    again(0, "--max-steps", 3)
    again(1)
    assert last(tmp_path)["steps"] == 12 and len(figures(tmp_path)) == 12


def test_a_named_run_is_not_overwritten(tmp_path):
    train(options(tmp_path, max_steps=1))
    with pytest.raises(ValueError, match="--run-name run: .*--resume"):
        train(options(tmp_path, max_steps=1))


def test_an_unknown_schedule_is_said_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="--lr-schedule step: choose constant or cosine"):
        build(options(tmp_path, lr_schedule="step"))


def test_a_resumed_run_keeps_the_flags_it_is_given(tmp_path):
    train(options(tmp_path, max_steps=3, weight_decay=0.5))
    group = train(options(tmp_path, max_steps=6, resume=True, weight_decay=0.1, beta2=0.9)).task.phases[0].optimizer
    assert [g["weight_decay"] for g in group.param_groups if g["weight_decay"]] == [0.1]
    assert {g["betas"] for g in group.param_groups} == {(0.9, 0.9)}


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(options(tmp_path, max_steps=3))
    path = tmp_path / "run/checkpoints/0000003.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "meta": {**state["meta"], "model": "another"}}, path)
    with pytest.raises(ValueError, match="holds the model another, this run trains"):
        train(options(tmp_path, resume=True))


@pytest.mark.parametrize("name, value", [("gradient_accumulation_steps", 0), ("max_steps", 0), ("lr", float("nan")),
                                         ("beta2", 1.0), ("max_grad_norm", -1.0)])  # fmt: skip
def test_numbers_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} {value}"):
        OptimOptions(**{name: value})


def test_epochs_and_flops_are_counted_from_step_0_and_a_resumed_run_counts_on(tmp_path, monkeypatch):
    monkeypatch.setattr(LinearTask, "flops", 2.5)
    train(options(tmp_path / "whole", log_every=4))
    assert figures(tmp_path / "whole", "epoch") == [(4, 0.8), (8, 1.6), (12, 2.4)], "five steps are an epoch"
    assert figures(tmp_path / "whole", "flops") == [(4, 80), (8, 160), (12, 240)], "8 samples a step"
    train(options(tmp_path / "cut", log_every=4, max_steps=6))
    train(options(tmp_path / "cut", log_every=4, resume=True))
    assert figures(tmp_path / "cut", "epoch") == [(4, 0.8), (6, 1.2), (8, 1.6), (12, 2.4)]
    assert figures(tmp_path / "cut", "flops") == [(4, 80), (6, 120), (8, 160), (12, 240)]
    assert read_weights(tmp_path / "cut/run/checkpoints/0000006.pt").trained == {"steps": 6, "epochs": 1.2}


def test_an_incomplete_last_batch_is_in_no_epoch_and_unknown_flops_are_not_logged(tmp_path):
    train(options(tmp_path, count=47, log_every=10, max_steps=10))
    assert figures(tmp_path, "epoch") == [(10, 2.0)]
    assert "flops" not in (tmp_path / "run" / "metrics.jsonl").read_text()
