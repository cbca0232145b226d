"""Pictures of a list of prompts, over any number of processes: PNG files, and what each shows.

    images/000000.png ...    picture i is of prompt i; its noise depends on (seed, i) alone
    captions.txt             a prompt a line, in the order of the pictures
    result.jsonl             {"text", "image_path"} a line

Axes: B pictures, N codes of a picture.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from autoregressive.sample.many import checkpoint_stem, models_of, sample_missing
from autoregressive.sample.options import SampleT2IMany
from autoregressive.sample.pipeline import Pipeline, load_text_pipeline, sampling_from
from dataset.captions import stem_of
from dataset.text import read_prompts
from engine.checkpoint import write_text
from engine.distributed import leave, setup
from evaluations.archive import sha256
from evaluations.images import claim, picture_path


def run_name(options: SampleT2IMany, pipeline: Pipeline) -> str:
    """The published name of the folder."""
    sampling, size = options.sampling, pipeline.gpt.image_size
    return (f"{pipeline.gpt.name}-{checkpoint_stem(options.gpt)}-{stem_of(Path(options.many.prompt_csv)).lower()}-"
            f"size-{size}-size-{size}-{pipeline.tokenizer.name}-topk-{sampling.top_k}-topp-{sampling.top_p}-"
            f"temperature-{sampling.temperature}-cfg-{sampling.cfg_scale}-seed-{options.many.global_seed}")  # fmt: skip


def sample_many_prompts(options: SampleT2IMany) -> Path:
    """Write the pictures that are missing, then captions.txt and result.jsonl; the folder."""
    many, prompt = options.many, options.prompt
    context = setup(options.machine.device)
    prompts = [" ".join(text.split()) for text in read_prompts(many.prompt_csv, "--prompt-csv")[: many.num_fid_samples]]
    pipeline = load_text_pipeline(options.gpt, options.tokenizer, options.encoder, options.machine, context.device)
    folder = Path(many.sample_dir) / run_name(options, pipeline)
    images = folder / "images"

    def missing() -> list[int]:
        meta = {**models_of(options, pipeline), "encoder": pipeline.encoder.name,
                "encoder_checksum": pipeline.encoder.checksum, "encoder_precision": str(pipeline.encoder.model.dtype),
                "encoder_tokens": pipeline.encoder.tokenize.max_length, "prompts": Path(many.prompt_csv).name,
                "prompts_sha256": sha256(many.prompt_csv), **asdict(prompt)}  # fmt: skip
        claim(folder, meta)
        images.mkdir(exist_ok=True)
        todo = [i for i in range(len(prompts)) if not picture_path(images, i).exists()]
        if len(todo) < len(prompts):
            print(f"{folder}: {len(prompts) - len(todo)} pictures are there, {len(todo)} to go")
        return todo

    todo, sampling = context.on_main(missing), sampling_from(options.sampling)

    def codes_of(part: list[int]) -> Tensor:
        given = pipeline.captions([prompts[i] for i in part], prompt.negative_prompt, prompt.left_padding)
        return pipeline.codes(sampling=sampling, seed=many.global_seed, pictures=torch.tensor(part), **given)

    sample_missing(pipeline, codes_of, many, None, images, todo, context, sampling)
    context.barrier()

    def conclude() -> None:
        lines = [{"text": text, "image_path": str(picture_path(images, i))} for i, text in enumerate(prompts)]
        write_text(folder / "captions.txt", "".join(text + "\n" for text in prompts))
        write_text(folder / "result.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        print(f"{len(prompts)} pictures -> {images}")

    context.on_main(conclude)
    leave()
    return folder
