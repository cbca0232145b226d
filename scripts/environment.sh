# Sourced by the quickstarts and test.sh: make or reuse .venv with the pinned packages, and step to the project's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python 3.10 or newer is needed (set PYTHON=...)" >&2; exit 2; }
[ -x .venv/bin/python ] || "$python" -m venv .venv
# The stamp says which requirements .venv holds, so that a second run starts at once.
stamp=.venv/requirements.stamp
if ! cat requirements.txt pyproject.toml | cmp -s - "$stamp"; then
    echo "installing the pinned packages into .venv (about 1.5 minutes, 6 GB; torch brings its CUDA libraries) ..."
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
    cat requirements.txt pyproject.toml > "$stamp"
fi
export PATH="$PWD/.venv/bin:$PATH"

began=$SECONDS  # the environment stands
step() { printf '\n== %s (%d s)\n' "$1" $((SECONDS - began)); }
