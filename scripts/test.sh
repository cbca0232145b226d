#!/usr/bin/env bash
# Set the environment up (or reuse it), then run the linter and the tests. Arguments go to pytest.
source "$(dirname "$0")/environment.sh"
ruff check --quiet .
python -m pytest "$@"
