"""A process of its own that draws codes through vLLM, for test_served_codes.py: a job in a file, codes in another.

vLLM's settings that the commands have no flags for come in the job, to force what happens under load.
"""

import asyncio
import pickle
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]


def rows(one, condition):
    """A label, or what the GPT makes of a caption's features."""
    if isinstance(condition, int):
        return condition
    with torch.inference_mode():
        return one.pipeline.gpt.model.cls_embedding(condition[None], drop=None)[0]


async def draw(job: dict) -> dict:
    from prometheus_client import REGISTRY

    from autoregressive.serve import vllm_names
    from autoregressive.serve.painter import Wish, painter

    arguments = vllm_names.AsyncEngineArgs
    vllm_names.AsyncEngineArgs = lambda **given: arguments(**{**given, "disable_log_stats": False, **job["more"]})
    async with painter(*job["pair"], job["engine"]) as one:
        wishes = [Wish(rows(one, condition), sampling) for condition, sampling in job["wishes"]]
        codes = await asyncio.gather(*map(one.all_codes, wishes))
        preemptions = sum(sample.value for metric in REGISTRY.collect() if metric.name == "vllm:num_preemptions"
                          for sample in metric.samples if sample.name.endswith("_total"))  # fmt: skip
        return {"codes": codes, "preemptions": preemptions}


if __name__ == "__main__":
    file = Path(sys.argv[1])
    found = asyncio.run(draw(pickle.loads(file.read_bytes())))
    file.with_suffix(".out").write_bytes(pickle.dumps(found))
