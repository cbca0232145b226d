#!/usr/bin/env bash
# Set the environment up (or reuse it), then run the linter and the tests, a process for each core (four at most).
# Arguments go to pytest; -n 0 keeps it to one process.
# The tests of the page drive Chromium; without it they are skipped. On Debian and Ubuntu: apt-get install chromium
source "$(dirname "$0")/environment.sh"
command -v chromium chromium-browser google-chrome > /dev/null ||
    echo "no Chromium: the page's tests in a browser are skipped (on Debian and Ubuntu: apt-get install chromium)"
ruff check --quiet .
python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
