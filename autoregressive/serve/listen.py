"""From options to a server that listens."""

import asyncio
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from autoregressive.bundled import or_bundled
from autoregressive.options import GPTOptions
from autoregressive.sample.options import with_text_tokens
from autoregressive.sample.pipeline import sampling_from
from autoregressive.serve.launch import check_plugin, lend
from autoregressive.serve.options import Serve, ServerOptions
from autoregressive.serve.painter import painter
from tokenizer.tokenizer_image.vq_options import TokenizerOptions

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(options: Serve) -> None:
    """Start the engine, and listen until Ctrl-C."""
    check_plugin()
    if options.engine.node_rank:
        lend(*models(options), options.engine)
    else:
        asyncio.run(listen(options))


def models(options: Serve) -> tuple[GPTOptions, TokenizerOptions]:
    """As they are loaded."""
    gpt, tokenizer = or_bundled(options.gpt, options.tokenizer)
    return (with_text_tokens(gpt) if gpt.gpt_type == "t2i" else gpt), tokenizer


async def listen(options: Serve) -> None:
    from autoregressive.serve.endpoint import Endpoint
    from autoregressive.serve.leaving import Server

    gpt, tokenizer = models(options)
    chosen = options.server
    if chosen.api_key is None:
        chosen = replace(chosen, api_key=os.environ.get("LLAMAGEN_API_KEY"))
    if chosen.api_key is None and chosen.host not in LOOPBACK:
        print(f"--host {chosen.host} lets other machines in, and no --api-key is asked of them", file=sys.stderr)
    place = listening(chosen)
    encoder, sampling = options.encoder if gpt.gpt_type == "t2i" else None, sampling_from(options.sampling)
    async with painter(gpt, tokenizer, options.engine, encoder, sampling) as one:
        name = chosen.model_name or one.pipeline.gpt.name
        places = options.engine.max_num_seqs * options.engine.data_parallel_size
        server = Server(Endpoint(one, chosen, sampling, name, places))
        host = f"[{chosen.host}]" if ":" in chosen.host else chosen.host
        print(f"{name} ({Path(gpt.gpt_ckpt).name}) is served on http://{host}:{chosen.port}", flush=True)
        await server.serve(sockets=[place])


def listening(options: ServerOptions) -> socket.socket:
    """Taken before the engine starts: an address that cannot be had is known at once."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise ValueError(f"--host {options.host} --port {options.port}: cannot listen there ({error.strerror}); choose "
                         "another") from error  # fmt: skip
