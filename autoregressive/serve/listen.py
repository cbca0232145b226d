"""From options to a server that listens."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from autoregressive.bundled import or_bundled
from autoregressive.sample.options import text_gpt
from autoregressive.sample.pipeline import sampling_from
from autoregressive.serve.options import Serve
from autoregressive.serve.painter import check_plugin, painter


def serve(options: Serve) -> None:
    """Start the engine, and listen until Ctrl-C."""
    check_plugin()
    asyncio.run(listen(options))


async def listen(options: Serve) -> None:
    import uvicorn

    from autoregressive.serve.api import Endpoint, build

    gpt, tokenizer = or_bundled(options.gpt, options.tokenizer)
    captions = gpt.gpt_type == "t2i"
    if captions and gpt.cls_token_num == 1:  # the flag's default, which is the other kind's
        gpt = replace(gpt, cls_token_num=text_gpt().cls_token_num)
    chosen = options.server
    if chosen.api_key is None:
        chosen = replace(chosen, api_key=os.environ.get("LLAMAGEN_API_KEY"))
    async with painter(gpt, tokenizer, options.engine, options.encoder if captions else None) as one:
        name = chosen.model_name or one.pipeline.gpt.name
        places = options.engine.max_num_seqs * options.engine.data_parallel_size
        app = build(Endpoint(one, chosen, sampling_from(options.sampling), name, places))
        server = uvicorn.Server(uvicorn.Config(app, chosen.host, chosen.port, log_level="warning"))
        print(f"{name} ({Path(gpt.gpt_ckpt).name}) is served on http://{chosen.host}:{chosen.port}", flush=True)
        await server.serve()
        if not server.started:
            raise ValueError(f"--port {chosen.port}: cannot listen on {chosen.host}:{chosen.port}; choose another")
