"""What SLURM's srun tells a process of a step, by the names that torchrun has for it."""

import re
from collections.abc import Mapping


def names_of_torchrun(env: Mapping[str, str]) -> dict[str, str]:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT; those of the last two that are set
    stay. Nothing where this is no task of a step of several.

    Of the step, not of the job: a plain command in an sbatch script is alone, whatever the job asked for.
    """
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) <= 1:
        return {}
    # All processes find the same one, other jobs of the same hosts another; below those that the system gives away.
    port = 20_000 + (int(env.get("SLURM_JOB_ID", 0)) * 16 + int(env.get("SLURM_STEP_ID", 0))) % 10_000
    return {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": env["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": env["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": str(tasks_of(env["SLURM_STEP_TASKS_PER_NODE"])[int(env["SLURM_NODEID"])]),
        "MASTER_ADDR": env.get("MASTER_ADDR") or first_host(env["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": env.get("MASTER_PORT") or str(port),
    }


def tasks_of(text: str) -> list[int]:
    """How many tasks each node has: '4(x2),3' -> [4, 4, 3]."""
    found = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    if None in found:
        raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={text}: not understood, should look like 4(x2),3. Export RANK, "
                         "WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE for each process instead")  # fmt: skip
    return [int(each[1]) for each in found for _ in range(int(each[2] or 1))]


def first_host(nodes: str) -> str:
    """Where a step's task 0 is: 'rack[01-03,07]n[2-5],gpu5' -> 'rack01n2'."""
    first = re.match(r"(?:\[[^]]*\]|[^,[])*", nodes)[0]
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first)
