#!/usr/bin/env bash
# Set the environment for serving up (or reuse it), then run the serving tests. Arguments go to pytest.
source "$(dirname "$0")/environment_serve.sh"
python -m pytest tests/serve "$@"
