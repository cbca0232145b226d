"""SLURM: what srun tells a process, and the batch script, with a shell in the place of SLURM's commands."""

import os
import subprocess

import pytest
from support import ROOT

from engine.slurm import first_host, names_of_torchrun, tasks_of

STEP = {"SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "1", "SLURM_STEP_NUM_TASKS": "11", "SLURM_PROCID": "9",
        "SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
        "SLURM_STEP_NODELIST": "gpu-a[07-08],gpu-b1", "SLURM_NTASKS": "64", "SLURM_JOB_NODELIST": "login1"}  # fmt: skip


def test_a_task_of_srun_s_knows_what_torchrun_would_tell_it():
    told = names_of_torchrun(STEP)
    port = int(told.pop("MASTER_PORT"))
    assert told == {"RANK": "9", "WORLD_SIZE": "11", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3",
                    "MASTER_ADDR": "gpu-a07"}  # fmt: skip
    ports = {int(names_of_torchrun({**STEP, **other})["MASTER_PORT"]) for other in
             ({"SLURM_PROCID": "3"}, {"SLURM_JOB_ID": "1235"}, {"SLURM_STEP_ID": "2"}, {"SLURM_JOB_ID": "99999999"})}
    assert len(ports) == 4 and port in ports and all(20_000 <= each < 30_000 for each in ports)


def test_a_master_that_is_named_stays():
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4567"}
    assert names_of_torchrun({**STEP, **given}).items() >= given.items()


@pytest.mark.parametrize("env", [{}, {**STEP, "SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_NTASKS": "64"}],
                         ids=["no SLURM", "one task", "in an sbatch script"])  # fmt: skip
def test_others_are_alone(env):
    assert names_of_torchrun(env) == {}


@pytest.mark.parametrize("text, counts", [("2(x3)", [2, 2, 2]), ("4(x2),3", [4, 4, 3]), ("8", [8]),
                                          ("1,16(x2),2", [1, 16, 16, 2])])  # fmt: skip
def test_tasks_of_each_node(text, counts):
    assert tasks_of(text) == counts


@pytest.mark.parametrize("text", ["", "4(x2", "four", "4(x2);3"])
def test_tasks_that_are_not_understood_are_named(text):
    with pytest.raises(ValueError, match="SLURM_STEP_TASKS_PER_NODE=.*: not understood.* Export RANK"):
        tasks_of(text)


@pytest.mark.parametrize("nodes, first", [
    ("node7", "node7"), ("b,a", "b"), ("node[01-03,07],gpu5", "node01"), ("gpu5,node[01-03]", "gpu5"),
    ("rack[2-3]n[09,11].site", "rack2n09.site"), ("n[9,11-12]", "n9"), ("gpu-a-[007]", "gpu-a-007"),
])  # fmt: skip
def test_task_0_is_on_the_first_host(nodes, first):
    assert first_host(nodes) == first


def submit(tmp_path, srun: str) -> tuple[int, list[str]]:
    """The batch script's exit code, and the calls of SLURM's commands; `srun`: what it does."""
    for name, body in (("srun", srun), ("scontrol", "exit 0")):
        (tmp_path / name).write_text(f'#!/bin/bash\n(IFS="|"; echo "{name}|$*") >> {tmp_path}/calls\n{body}\n')
        (tmp_path / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "77",
           "SLURM_JOB_NAME": "llamagen", "SLURM_SUBMIT_DIR": str(tmp_path)}  # fmt: skip
    line = ["bash", ROOT / "scripts/slurm/train_c2i_fsdp.sbatch", "--code-path", "two words"]
    done = subprocess.run(line, env=env, cwd=ROOT, timeout=30)
    return done.returncode, (tmp_path / "calls").read_text().splitlines()


@pytest.mark.parametrize("code", [0, 1, 2, 137, 143])
def test_a_job_is_queued_again_exactly_where_the_run_was_told_to_stop(code, tmp_path):
    returned, (run, *others) = submit(tmp_path, f"exit {code}")
    assert returned == code
    assert others == (["scontrol|requeue|77"] if code == 143 else [])
    assert run.split("|") == ["srun", "--wait=60", "python3", "autoregressive/train/train_c2i_fsdp.py", "--run-name",
                              "llamagen-77", "--resume", "--code-path", "two words"]  # fmt: skip


def test_a_cancelled_job_is_not_queued_again_but_waits_for_its_run(tmp_path):
    """scancel sends SIGTERM to the batch script, too; the time limit's --signal does not."""
    returned, calls = submit(tmp_path, f"kill -TERM $PPID; sleep 0.2; echo saved >> {tmp_path}/calls; exit 143")
    assert returned == 143 and calls[1:] == ["saved"]


def test_it_is_told_before_the_time_is_up():
    lines = (ROOT / "scripts/slurm/train_c2i_fsdp.sbatch").read_text().splitlines()
    told = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert {"--signal=TERM@120", "--requeue", "--open-mode=append"} <= set(told)
    first_command = next(number for number, line in enumerate(lines) if line and line[0] != "#")
    assert lines.index("#SBATCH --signal=TERM@120") < first_command, "SLURM reads no further"
