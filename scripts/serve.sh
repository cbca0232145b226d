#!/usr/bin/env bash
# Set the environment for serving up (or reuse it), then serve: the small pair that ships, or --gpt-ckpt FILE --vq-ckpt FILE.
source "$(dirname "$0")/environment_serve.sh"
exec python autoregressive/serve/server.py "$@"
